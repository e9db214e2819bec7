"""Any LangChain chat model as an untrained router: text only, no token ids."""

from __future__ import annotations

import contextlib
import functools
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.constants import TAG_NOSTREAM

from langgraph_router_r1.engines.base import ContextFullError, EngineError, Generation, OnText, cut_after_stop
from langgraph_router_r1.event_loops import for_any_loop
from langgraph_router_r1.ledger import CHARACTERS_PER_TOKEN, NO_USAGE, estimate_tokens, finish_of, reported_usage
from langgraph_router_r1.protocol import encodable
from langgraph_router_r1.provider_errors import failure
from langgraph_router_r1.transcript import Segment

_CONFIG: RunnableConfig = {"run_name": "router", "tags": [TAG_NOSTREAM]}
"""What the router writes is no message of the run: its answer is streamed by the graph."""

_OPENING = re.compile(r'<(search|answer)(?: from="[^"<>\n]*")?>')


class ChatModelEngine:
    """Plays the router with a chat model that was not trained for it, for comparison and for a first try.

    Example:
        >>> engine = ChatModelEngine(init_chat_model("openai:gpt-4o-mini"))                # doctest: +SKIP
    """

    control_tokens: tuple[str, ...] = ()
    is_billed = True
    """Its tokens cost money: see `own_price`."""

    def __init__(self, chat_model: BaseChatModel, *, model: str | None = None) -> None:
        """Wrap a chat model; `model` is the policy's name in transcripts, by default the chat model's own.

        Raises:
            TypeError: It is no chat model, but its name, say.
        """
        given: object = chat_model  # whatever the annotation says; it is not shown, for settings may hold keys
        if not isinstance(given, Runnable):
            hint = ": init_chat_model makes one of its name" if isinstance(given, str) else ""
            raise TypeError(f"chat_model is a {type(given).__name__}; it must be a chat model of LangChain{hint}")
        self.chat_model = chat_model
        self._client = for_any_loop(chat_model)
        self.model = model or str(getattr(chat_model, "model_name", None) or chat_model.get_name())

    async def aload(self) -> None:
        """See `RouterEngine.aload`; there is nothing to load."""

    def begin(self, messages: Sequence[Mapping[str, str]]) -> Segment:
        """See `RouterEngine.begin`."""
        text = "\n\n".join(message["content"] for message in messages)
        return {"kind": "prompt", "text": text, "token_ids": [], "messages": [dict(message) for message in messages]}

    def encode(self, text: str) -> list[int]:
        """See `RouterEngine.encode`."""
        return []

    def count_tokens(self, text: str) -> int:
        """See `RouterEngine.count_tokens`."""
        return estimate_tokens(text)

    def truncate(self, text: str, max_tokens: int) -> str:
        """See `RouterEngine.truncate`."""
        return text[: max_tokens * CHARACTERS_PER_TOKEN]

    def generate(
        self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int, on_text: OnText | None = None
    ) -> Generation:
        """See `RouterEngine.generate`."""
        chat, options = _chat(transcript), self._options(stop, max_tokens, on_text)
        try:
            if on_text is None:
                reply = self._client.invoke(chat, _CONFIG, **options)
            else:
                pieces = []
                for piece in self._client.stream(chat, _CONFIG, **options):
                    pieces.append(piece)
                    on_text(piece.text)
                reply = _joined(pieces)
        except Exception as error:  # noqa: BLE001 - any provider, any exception
            problem = self._error(error)
        else:
            return self._read(transcript, reply, stop)
        # Raised outside the handler: the provider's exception, which may hold a key, would be its context.
        raise problem

    async def agenerate(
        self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int, on_text: OnText | None = None
    ) -> Generation:
        """See `RouterEngine.agenerate`."""
        chat, options = _chat(transcript), self._options(stop, max_tokens, on_text)
        try:
            if on_text is None:
                reply = await self._client.ainvoke(chat, _CONFIG, **options)
            else:
                pieces = []
                async for piece in self._client.astream(chat, _CONFIG, **options):
                    pieces.append(piece)
                    on_text(piece.text)
                reply = _joined(pieces)
        except Exception as error:  # noqa: BLE001 - any provider, any exception
            problem = self._error(error)
        else:
            return self._read(transcript, reply, stop)
        raise problem

    def _options(self, stop: Sequence[str], max_tokens: int, on_text: OnText | None) -> dict[str, Any]:
        # Without it, OpenAI's client asks for no usage when it streams from another address than OpenAI's.
        inner = getattr(self.chat_model, "bound", self.chat_model)
        usage = {"stream_usage": True} if on_text is not None and hasattr(inner, "stream_usage") else {}
        # An empty list of stop strings is refused by some providers.
        ends = {"stop": closing} if (closing := _closing(stop)) else {}
        return {**ends, "max_tokens": max_tokens, **usage}

    def __repr__(self) -> str:
        return f"ChatModelEngine({self.model!r})"

    def _error(self, error: Exception) -> EngineError:
        if isinstance(error, ContextOverflowError):
            return ContextFullError(f"the router's context is full: {self.model!r} takes no more")
        where = f" at {address}" if (address := _address(self.chat_model)) else ""
        return EngineError(f"the router model {self.model!r}{where} {failure(error)}")

    def _read(self, transcript: Sequence[Segment], reply: AIMessage, stop: Sequence[str]) -> Generation:
        cut_by_length = finish_of(reply.response_metadata) == "length"
        # Half an emoji, as some JSON holds, is taken by no tokenizer.
        text = cut_after_stop(encodable(reply.text), _closing(stop))
        if not cut_by_length:
            text += _missing_end(text, stop)
        usage, from_cache = reported_usage(reply.usage_metadata)
        if from_cache:
            usage = NO_USAGE.copy()  # nobody sampled anything, and nothing is paid
        return Generation(
            segment={"kind": "policy", "text": text, "token_ids": [], "policy": self.model},
            usage=usage
            or {
                "prompt_tokens": sum(self.count_tokens(segment["text"]) for segment in transcript),
                "cached_tokens": 0,
                "completion_tokens": self.count_tokens(text),
                "estimated": True,
            },
            finish="length" if cut_by_length else "stop",
        )


def _address(chat_model: Any) -> str | None:
    """Return where a chat model's provider is, if the model says so: server and port, as the rest may be secret."""
    inner = getattr(chat_model, "bound", chat_model)
    for name in ("openai_api_base", "base_url", "anthropic_api_url", "endpoint"):
        value = getattr(inner, name, None)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # no address
                parts = urlsplit(value)
                return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.hostname else None
    return None


def _chat(transcript: Sequence[Segment]) -> list[BaseMessage]:
    """Return the transcript as a conversation: what comes back is said by the user."""
    chat: list[BaseMessage] = []
    for segment in transcript:
        if segment["kind"] == "prompt":
            chat += convert_to_messages(segment["messages"])
        else:
            kind = AIMessage if segment["kind"] == "policy" else HumanMessage
            chat.append(kind(segment["text"].strip()))
    return chat


def _joined(pieces: Sequence[Any]) -> AIMessage:
    """Return the message that was streamed in these pieces."""
    if not pieces:
        msg = "the stream ended before it began"
        raise ValueError(msg)
    whole: AIMessage = functools.reduce(operator.add, pieces)
    return whole


def _missing_end(text: str, stop: Sequence[str]) -> str:
    """Return the closing tag that a provider cut off: stop strings are left out of what chat APIs return."""
    opened = max(_OPENING.finditer(text), key=re.Match.start, default=None)
    if opened is None:
        return ""
    end = f"</{opened[1]}>"
    return end if end in stop and opened.start() > text.rfind(end) else ""


def _closing(stop: Sequence[str]) -> list[str]:
    """Return the stop strings without the tags that pass on a reply.

    Chat APIs leave stop strings out of the text, and these can't be put back. What follows such a tag, nobody reads.
    """
    return [string for string in stop if not string.startswith("<answer from=")]
