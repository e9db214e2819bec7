"""Which message of a conversation is the question, and which images messages hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeGuard

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage


def last_question(messages: Sequence[AnyMessage]) -> int:
    """Return the place of the last human message.

    Raises:
        ValueError: There is none, it has no text, or a message holds what can't be read: an image that is not a user's
            or has an unknown form, or something else that is neither text nor an image.
    """
    for place, message in enumerate(messages):
        _require_readable(place, message)
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], HumanMessage):
            if not messages[index].text.strip():
                break
            return index
    msg = 'there is no question: the router needs a human message with text, as in {"messages": [("user", "...")]}'
    raise ValueError(msg)


def is_image(block: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a content block is an image."""
    return isinstance(block, dict) and block.get("type") in ("image", "image_url")


def images_in(message: BaseMessage) -> list[dict[str, Any]]:
    """Return the image blocks of a message, in the form in which they came.

    Example:
        >>> images_in(HumanMessage(["What is this?", {"type": "image", "url": "https://example.com/cat.png"}]))
        [{'type': 'image', 'url': 'https://example.com/cat.png'}]
    """
    return [] if isinstance(message.content, str) else [block for block in message.content if is_image(block)]


def question_images(messages: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """Return the image blocks of the question; none if there are no messages."""
    return images_in(messages[last_question(messages)]) if messages else []


def image_digests(messages: Sequence[AnyMessage]) -> list[str]:
    """Return the SHA-256 of each image of the question: of its data as it was given, or of its address."""
    return [hashlib.sha256(str(_source(image)).encode()).hexdigest() for image in question_images(messages)]


def count_images(images: Sequence[Any]) -> str:
    """Return how many images there are, in words.

    Example:
        >>> count_images([{}]), count_images([{}, {}])
        ('1 image', '2 images')
    """
    return f"{len(images)} image{'' if len(images) == 1 else 's'}"


def in_words(message: BaseMessage) -> str:
    """Return the text of a message, with a note of the images that whoever reads it can't see."""
    images = images_in(message)
    note = f"(This message came with {count_images(images)} that you cannot see.)"
    return f"{message.text}\n{note}" if images else message.text


_MEDIA = frozenset({"image", "image_url", "audio", "input_audio", "video", "file", "input_file", "document", "media"})
"""Types of content blocks that a router must not ignore in what another agent said; its tool calls are no content."""


def _require_readable(place: int, message: AnyMessage) -> None:
    for block in [] if isinstance(message.content, str) else message.content:
        if isinstance(message, HumanMessage) and is_image(block):
            if _source(block) is not None:
                continue
            msg = (
                f"messages[{place}] holds an image in an unknown form; it must be "
                '{"type": "image", "url": "https://..."}, {"type": "image", "base64": "...", "mime_type": "image/png"} '
                'or {"type": "image_url", "image_url": {"url": "https://... or data:..."}}'
            )
            raise ValueError(msg)
        kind = "text" if isinstance(block, str) else str(block.get("type"))[:40]
        if kind in _MEDIA or (kind != "text" and not isinstance(message, AIMessage)):
            msg = (
                f"messages[{place}] holds a block of type {kind!r}; the router and the models that it asks read text "
                "and the images of users only: put what it shows into words, or ask a model for it directly"
            )
            raise ValueError(msg)


def _source(block: dict[str, Any]) -> str | None:
    """Return the address, the data or the file's id of an image block; None if it is in no known form.

    LangChain's `content_blocks` would copy the whole data of an image each time.
    """
    match block:
        case {"type": "image_url", "image_url": {"url": str(url)}} | {"type": "image", "url": str(url)}:
            return _address(url)
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:  # Anthropic's form, as the next one
            return _address(url)
        case {"type": "image", "source": {"type": "base64", "media_type": str(), "data": str(data)}}:
            return data or None
        case {"type": "image", "mime_type": str(), "base64": str(data)}:
            return data or None
        case {"type": "image", "mime_type": str(), "data": str(data)}:  # LangChain's form of before 1.0
            return data or None
        case {"type": "image", "file_id": str(file_id)}:
            return file_id or None
    return None


def _address(url: str) -> str | None:
    # Any other address, such as that of a file, may be read on the machine of whoever fetches it.
    return url if url.lower().startswith(("https://", "http://", "data:")) else None
