"""Which message of a conversation is the question."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage


def last_question(messages: Sequence[AnyMessage]) -> int:
    """Return the place of the last human message.

    Raises:
        ValueError: There is none, it has no text, or a message holds an image or something else that is not text.
    """
    for place, message in enumerate(messages):
        _require_text(place, message)
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], HumanMessage):
            if not messages[index].text.strip():
                break
            return index
    msg = 'there is no question: the router needs a human message with text, as in {"messages": [("user", "...")]}'
    raise ValueError(msg)


_MEDIA = frozenset({"image", "image_url", "audio", "input_audio", "video", "file", "input_file", "document", "media"})
"""Types of content blocks that a router must not ignore in what another agent said; its tool calls are no content."""


def _require_text(place: int, message: AnyMessage) -> None:
    for block in [] if isinstance(message.content, str) else message.content:
        kind = "text" if isinstance(block, str) else str(block.get("type"))[:40]
        if kind in _MEDIA or (kind != "text" and not isinstance(message, AIMessage)):
            msg = (
                f"messages[{place}] holds a block of type {kind!r}; the router and the models that it asks read text "
                "only: put what it shows into words, or ask a model for images directly"
            )
            raise ValueError(msg)
