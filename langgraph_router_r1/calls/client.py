"""The client of one routed model: built from its descriptor, each request in its own time, failures in plain words."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAuthenticationError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langgraph.constants import TAG_NOSTREAM
from langgraph.pregel.protocol import PregelProtocol

from langgraph_router_r1.calls.agent_model import AgentModel
from langgraph_router_r1.calls.health import Health, RestingError
from langgraph_router_r1.calls.reply_stream import ReplyStream
from langgraph_router_r1.calls.tools import ToolsNotSupportedError, tool_options
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.event_loops import AnyLoopModel, for_any_loop, in_thread
from langgraph_router_r1.ledger import FREE, worst_case
from langgraph_router_r1.provider_errors import failure
from langgraph_router_r1.question import images_in, is_image

if TYPE_CHECKING:
    from langgraph_router_r1.calls.middleware import ModelCall
    from langgraph_router_r1.events import AnswerStream

PROMPT_OVERHEAD_TOKENS = 64
"""Room for what a chat template puts around a message, in worst cases."""

_NOT_BILLED = (
    ModelRateLimitError,
    ModelAuthenticationError,
    ModelPermissionDeniedError,
    ModelNotFoundError,
    ContextOverflowError,
    ModelInvalidRequestError,
    ConnectionRefusedError,
    ToolsNotSupportedError,
)
"""Failures after which nothing was generated: the provider refused the request, or no connection was made."""

_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError"})
"""Names of HTTP clients' errors (httpx's and its forks') for a request that never left."""


asked_by_a_router: ContextVar[bool] = ContextVar("asked_by_a_router", default=False)
"""Whether what runs is a model that a router asks: what it streams is no part of the router's stream."""


class MissingKeyError(LookupError):
    """The environment variable that should hold a model's key is not set."""


class Client:
    """One model, built from its descriptor; shared by all calls to it."""

    def __init__(self, descriptor: ModelDescriptor, *, rests: bool = True) -> None:
        """Build the model; see `build_model` for what that raises."""
        self._health = Health(descriptor) if rests and descriptor.rest_after else None
        self.descriptor, self.model = descriptor, build_model(descriptor)
        self._headers = _openai_headers(self.model)
        chat_model = _inner(_chat_model(self.model))
        self._is_chat_model = isinstance(chat_model, BaseChatModel)
        # Without it, OpenAI's client asks for no usage when it streams from another address than OpenAI's.
        self._usage_option: dict[str, Any] = {"stream_usage": True} if hasattr(chat_model, "stream_usage") else {}

    @property
    def is_resting(self) -> bool:
        """Whether a request would be refused now, because the model keeps failing."""
        return self._health is not None and self._health.is_resting

    def watching(self) -> AbstractContextManager[None]:
        """Return what every request is made in: it raises `RestingError` while the model rests."""
        return contextlib.nullcontext() if self._health is None else self._health.watching()

    def send(self, call: ModelCall, stream: AnswerStream | None = None) -> AIMessage:
        """Return the reply to a request; a stream is given it while it is written.

        Raises:
            TimeoutError: There is none within the descriptor's `timeout_s`.
            Exception: Whatever the model's own package raises.
        """
        with _asking():
            return self._sent(call, stream)

    def _sent(self, call: ModelCall, stream: AnswerStream | None) -> AIMessage:
        options = self._options(call)
        if stream is None:
            work = functools.partial(self.model.invoke, call.messages, self._config(), **options)
            return _as_message(in_thread(work).result(timeout=self.descriptor.timeout_s))
        with contextlib.closing(ReplyStream(stream, call.model.max_reply_chars)) as pieces:
            work = functools.partial(self._streamed, call, pieces)
            return _as_message(in_thread(work).result(timeout=self.descriptor.timeout_s))

    async def asend(self, call: ModelCall, stream: AnswerStream | None = None) -> AIMessage:
        """Return the reply without blocking; see `send`."""
        with _asking():
            return await self._asent(call, stream)

    async def _asent(self, call: ModelCall, stream: AnswerStream | None) -> AIMessage:
        async with asyncio.timeout(self.descriptor.timeout_s):
            if stream is None:
                return _as_message(await self.model.ainvoke(call.messages, self._config(), **self._options(call)))
            pieces = ReplyStream(stream, call.model.max_reply_chars)
            options = self._options(call) | self._usage_option
            async for piece in self.model.astream(call.messages, self._config(), **options):
                pieces.take(piece)
            return _as_message(pieces.whole())

    def _streamed(self, call: ModelCall, pieces: ReplyStream) -> Any:
        for piece in self.model.stream(call.messages, self._config(), **self._options(call), **self._usage_option):
            pieces.take(piece)
        return pieces.whole()

    def _config(self) -> RunnableConfig:
        name = self.descriptor.name
        # A routed model's reply is no part of the answer, and stays out of the messages that are streamed.
        return {"run_name": f"ask {name}", "metadata": {"router_r1_model": name}, "tags": [TAG_NOSTREAM]}

    def _options(self, call: ModelCall) -> dict[str, Any]:
        """Return what a request carries besides the messages: tools, another length of the reply, and the call's id.

        By the id a provider can tell a repetition. It would be part of the key of LangChain's cache, which then would
        never hit.
        """
        options = {} if call.tools is None else tool_options(_inner(_chat_model(self.model)), call.tools)
        if self._is_chat_model and call.model.max_tokens != self.descriptor.max_tokens:
            options["max_tokens"] = call.model.max_tokens
        if call.id is None or self._headers is None or get_llm_cache() is not None:
            return options
        key = uuid.uuid5(uuid.UUID(call.id), self.descriptor.name)
        return {**options, "extra_headers": {"Idempotency-Key": str(key), **self._headers}}


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    token = asked_by_a_router.set(True)
    try:
        yield
    finally:
        asked_by_a_router.reset(token)


class Clients:
    """The clients of a pool, each built when it is first needed.

    Routers over the same models may share one: then they share connections too.
    """

    def __init__(self, *, rests: bool = True) -> None:
        """Begin with none.

        Args:
            rests: Whether models that keep failing are rested, see `ModelDescriptor.rest_after`. For measurements it
                is False: what they find must not depend on who failed before.
        """
        self._rests = rests
        self._built: dict[tuple[str, Any], Client] = {}
        self._building = threading.Lock()

    def get(self, model: ModelDescriptor) -> Client:
        """Return the client of a model; see `build_model` for what building it raises."""
        key = self._key(model)
        with self._building:  # a second one would have connections of its own
            if key not in self._built:
                self._built[key] = Client(model, rests=self._rests)
            return self._built[key]

    async def aget(self, model: ModelDescriptor) -> Client:
        """Return the client of a model; see `get`."""
        if (client := self._built.get(self._key(model))) is not None:
            return client
        # Building a client imports its package and reads certificates: not on the event loop.
        return await asyncio.to_thread(self.get, model)

    def is_resting(self, model: ModelDescriptor) -> bool:
        """Return whether a request to a model would be refused now, because it keeps failing."""
        client = self._built.get(self._key(model))  # one that was never built has never failed
        return client is not None and client.is_resting

    @staticmethod
    def _key(model: ModelDescriptor) -> tuple[str, Any]:
        # Descriptors may say different things of one model, and still mean the same client.
        which = model.model if isinstance(model.model, str) else id(model.model)
        params = sorted((name, value) for name, value in model.params.items() if name != "max_tokens")
        settings = (model.base_url, model.api_key_env, model.timeout_s, repr(params))
        return model.name, (which, *settings, model.rest_after, model.rest_s)


def build_model(model: ModelDescriptor) -> Runnable[Any, Any]:
    """Return the Runnable behind a descriptor: built from its string, or the object it holds, set up as it says.

    Raises:
        MissingKeyError: `api_key_env` names a variable that is not set.
        ImportError: The provider's LangChain package is not installed.
    """
    if isinstance(model.model, str):
        return for_any_loop(build_chat_model(model))
    runnable: Runnable[Any, Any] = model.model
    if isinstance(_inner(runnable), PregelProtocol):
        return AgentModel(runnable)
    if isinstance(_inner(runnable), BaseChatModel):
        # Without a limit a call would have no worst case to hold against a budget.
        runnable = runnable.bind(**{"max_tokens": model.max_tokens, **model.params})
    return for_any_loop(runnable)


def build_chat_model(model: ModelDescriptor) -> BaseChatModel:
    """Return the chat model that a descriptor names by a string.

    Raises:
        MissingKeyError: `api_key_env` names a variable that is not set.
        ImportError: The provider's LangChain package is not installed.
    """
    from langchain.chat_models import init_chat_model

    options: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": model.max_tokens,
        **model.params,
        "timeout": model.timeout_s,
        "max_retries": 0,  # tried again around the client, where each attempt has its own time and rate limit
    }
    if model.base_url is not None:
        options["base_url"] = model.base_url
    if model.api_key_env is not None:
        key = os.environ.get(model.api_key_env)
        if not key:
            msg = f"{model.name}: the environment variable {model.api_key_env!r} is not set"
            raise MissingKeyError(msg)
        options["api_key"] = key
    elif model.base_url is not None:
        # A server of one's own asks for no key, but clients insist on some value.
        options["api_key"] = "none"
    built = init_chat_model(model.model, **options)
    assert isinstance(built, BaseChatModel)
    return built


def is_router(model: ModelDescriptor) -> bool:
    """Return whether a routed model is itself a router of this package, whose replies carry an account."""
    inner = _inner(model.model)
    inner = getattr(inner, "bound", inner)  # retries around it
    if isinstance(inner, PregelProtocol):
        return {"calls", "routing", "router_usage"} <= set(getattr(inner, "channels", ()))
    return isinstance(inner, BaseChatModel) and inner._llm_type == "router-r1"


def public_reason(model: ModelDescriptor, error: BaseException) -> str:
    """Return why a call failed in words fit for the router, a trace or a log: providers' own words may hold keys."""
    if isinstance(error, TimeoutError | ModelTimeoutError):
        return f"{model.name} gave no reply within {model.timeout_s:g} s"
    if isinstance(error, RestingError):
        return str(error)
    if isinstance(error, MissingKeyError):
        return f"{model.name} has no key: the environment variable {model.api_key_env!r} is not set"
    if isinstance(error, ToolsNotSupportedError):
        return f"{model.name} can't call tools"
    return f"{model.name} {failure(error)}"


def request_worst_case(call: ModelCall) -> float:
    """Return the most that one attempt at a call can cost, in dollars; infinity when nothing bounds it."""
    model = call.model
    if is_router(model):
        # What it spends is its own account's sum, whatever its descriptor says of tokens.
        context = getattr(_inner(model.model), "context", None)
        budget = getattr(context, "budget_usd", None)
        return math.inf if budget is None else float(budget)
    messages = call.messages
    images = sum(len(images_in(message)) for message in messages)
    # The bytes of an image say nothing about its tokens: providers scale it first, each in its own way.
    is_bounded = model.is_bounded and not (images and model.image_tokens is None)
    if not is_bounded and model.price != FREE:
        return math.inf
    texts = [_all_of(message).encode("utf-8", "replace") for message in messages]
    if call.tools is not None:
        texts.append(json.dumps(call.tools["tools"]).encode())
    # What a model looks up for itself (`ReadingModel`) it reads, and pays for, too.
    read = sum(map(len, texts)) + getattr(_inner(model.model), "most_read_bytes", 0)
    prompt_tokens = read + PROMPT_OVERHEAD_TOKENS * len(texts) + images * (model.image_tokens or 0)
    return worst_case(prompt_tokens, model.max_tokens, model.price)


def _all_of(message: BaseMessage) -> str:
    """Return all that a model reads of a message but images: its text, or its blocks and tool calls as JSON."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    if isinstance(message.content, str) and not calls:
        return message.content
    content = message.content
    blocks = content if isinstance(content, str) else [block for block in content if not is_image(block)]
    return json.dumps([blocks, calls], default=str)


def may_have_been_billed(error: BaseException) -> bool:
    """Return whether a provider may have generated, and billed, a reply to a request that failed in this way."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # nothing keeps an error from being its own cause
        if isinstance(cause, _NOT_BILLED) or type(cause).__name__ in _NOT_SENT:
            return False
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return True


def _inner(model: Any) -> Any:
    return model.bound if isinstance(model, RunnableBinding) else model


def _chat_model(model: Any) -> Any:
    return model.model if isinstance(model, AnyLoopModel) else model


def _openai_headers(model: Any) -> dict[str, str] | None:
    """Return the headers that requests to this model carry already.

    None if they may carry no more: it is not OpenAI's client, or it has a cache of its own.
    """
    package = sys.modules.get("langchain_openai.chat_models.base")  # not imported: then it is none of theirs
    bound = _chat_model(model)
    inner = _inner(bound)
    if package is None or not isinstance(inner, package.BaseChatOpenAI) or inner.cache:
        return None
    settings = {**inner.model_kwargs, **(bound.kwargs if isinstance(bound, RunnableBinding) else {})}
    return dict(settings.get("extra_headers") or {})


def _as_message(reply: Any) -> AIMessage:
    if isinstance(reply, str):
        return AIMessage(reply)
    if isinstance(reply, AIMessage):
        return reply
    msg = f"the model replied with a {type(reply).__name__}; it must be an AIMessage or a string"
    raise TypeError(msg)
