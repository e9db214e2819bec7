"""The reply of a routed model that is passed on to the user while the model writes it."""

from __future__ import annotations

import functools
import operator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk

from langgraph_router_r1.events import AnswerStream

_OPENING = "<think"
_CLOSINGS = ("</think>", "</thinking>")


class ReplyStream:
    """Puts the pieces of a reply together, and shows them except for the thinking that a reply may begin with."""

    def __init__(self, stream: AnswerStream) -> None:
        """Begin a reply; what an earlier attempt at it has shown becomes no message."""
        stream.abandon()
        self._stream = stream
        self._pieces: list[Any] = []
        self._blanks = ""
        self._held: str | None = ""  # what may be a thought; None once the reply itself has begun

    def take(self, piece: Any) -> None:
        """Take the next piece, as a Runnable streams it."""
        self._pieces.append(piece)
        text = piece if isinstance(piece, str) else piece.text if isinstance(piece, AIMessage) else ""
        if self._held is None:
            self._show(text)
            return
        self._held += text
        begun = self._held.lstrip()
        if begun.startswith(_OPENING):
            for closing in _CLOSINGS:
                _, closed, rest = begun.partition(closing)
                if closed and rest.strip():
                    self._begin(rest)
                    return
        elif begun and not _OPENING.startswith(begun):
            self._begin(begun)

    def whole(self) -> Any:
        """Return the whole reply.

        Raises:
            ValueError: Nothing came.
        """
        if not self._pieces:
            msg = "the stream ended before it began"
            raise ValueError(msg)
        joins = isinstance(self._pieces[0], AIMessageChunk | str)
        return functools.reduce(operator.add, self._pieces) if joins else self._pieces[-1]

    def _begin(self, text: str) -> None:
        self._held = None
        self._show(text.lstrip())

    def _show(self, text: str) -> None:
        shown = (self._blanks + text).rstrip()  # blanks at its end are no part of a reply
        self._blanks = (self._blanks + text)[len(shown) :]
        if shown:
            self._stream.answer(shown)
