"""The reply of a routed model that is passed on to the user while the model writes it."""

from __future__ import annotations

import functools
import operator
import re
import threading
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk

from langgraph_router_r1.events import AnswerStream
from langgraph_router_r1.protocol import THINK_TAG
from langgraph_router_r1.scanner import Trimmed

_BEGUN_TAG = re.compile(r"</?(?:t(?:h(?:i(?:n(?:k(?:i(?:n(?:g)?)?)?)?)?)?)?)?$", re.IGNORECASE)


class ClosedError(RuntimeError):
    """Nobody waits for the reply any more."""


class ReplyStream:
    """Puts the pieces of a reply together, and shows them without the thinking that the model shows.

    What is a thought is as for `protocol.strip_thought`. If a reply has shown its thinking without an opening tag, that
    is known at the closing tag only: then nothing more is shown, and the reply becomes another message at its end.
    """

    def __init__(self, stream: AnswerStream, max_chars: int) -> None:
        """Begin a reply of at most so many characters; what an earlier attempt has shown becomes no message."""
        stream.abandon()
        self._stream, self._left = stream, max_chars
        self._pieces: list[Any] = []
        self._held, self._trimmed = "", Trimmed()
        self._depth = 0
        self._begun = self._ended = self._closed = False
        self._lock = threading.Lock()

    def take(self, piece: Any) -> None:
        """Take the next piece, as a Runnable streams it.

        Raises:
            ClosedError: The stream is closed: the piece comes too late.
        """
        with self._lock:
            if self._closed:
                raise ClosedError
            self._pieces.append(piece)
            text = piece if isinstance(piece, str) else piece.text if isinstance(piece, AIMessage) else ""
            self._read(text[: self._left])
            self._left -= min(len(text), self._left)

    def close(self) -> None:
        """Show nothing more: the attempt is over, though its thread may go on."""
        with self._lock:
            self._closed = True

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

    def _read(self, piece: str) -> None:
        text, start = self._held + piece, 0
        for tag in THINK_TAG.finditer(text):
            self._show(text[start : tag.start()])
            start = tag.end()
            if not tag[1]:
                self._depth += 1
            elif self._depth:
                self._depth -= 1
            else:
                self._ended = self._begun
        begun = _BEGUN_TAG.search(text, max(start, len(text) - 12))
        self._show(text[start : begun.start() if begun else None])
        self._held = begun[0] if begun else ""

    def _show(self, text: str) -> None:
        if self._depth or self._ended:
            return
        if shown := self._trimmed.take(text):
            self._stream.answer(shown)
            self._begun = True
