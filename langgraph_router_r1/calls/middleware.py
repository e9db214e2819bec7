"""What stands around each call of a routed model: an ordered list of `CallMiddleware`, as in LangChain's agents.

    class Log(CallMiddleware):
        def wrap_call(self, call, proceed):
            reply = proceed(call)
            print(call.model.name, len(reply.text))
            return reply

        async def awrap_call(self, call, proceed):
            reply = await proceed(call)
            print(call.model.name, len(reply.text))
            return reply

    router = create_router(engine, registry, middleware=[Log()])

The first of the list is the outermost. Retries and rate limits stand between those and the client.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from langchain_core.exceptions import ModelAPIError, ModelConnectionError, ModelRateLimitError, ModelTimeoutError
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from tenacity import AsyncRetrying, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter
from typing_extensions import override

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.prompts import call_messages, tool_messages
from langgraph_router_r1.state import Tools

TRANSIENT_ERRORS = (ModelRateLimitError, ModelAPIError, ModelConnectionError, ModelTimeoutError)
"""The failures that LangChain calls retryable."""

RETRY_WAITS: dict[str, float] = {"exp_base": 2.0, "jitter": 1.0, "max": 60.0}
"""Seconds between the attempts of a call: 1, 2, 4, ... and up to one more, by chance."""


@dataclass(frozen=True)
class ModelCall:
    """A request to one routed model."""

    model: ModelDescriptor
    """The model that was chosen, or one of its fallbacks."""
    query: str
    id: str | None = None
    """The same whenever a resumed run makes the call again; None for a call outside of a run."""

    conversation: Sequence[AnyMessage] = ()
    """The messages of the run, for models that share them; if the question has images, at least the question."""
    is_brief: bool = True
    """Whether answers shall be short."""

    tools: Tools | None = None
    """What the model may call; it is then sent the whole conversation."""

    @property
    def messages(self) -> list[BaseMessage]:
        """What the model is sent."""
        if self.tools is not None:
            return tool_messages(self.model, self.query, self.conversation)
        return call_messages(self.model, self.query, self.conversation, is_brief=self.is_brief)


class MiddlewareError(RuntimeError):
    """Middleware lacks the method that the run needs: a mistake in the program, so it ends the run."""


Send = Callable[[ModelCall], AIMessage]
AsyncSend = Callable[[ModelCall], Awaitable[AIMessage]]


class CallMiddleware:
    """Wraps calls: passes them on with `proceed`, or answers them itself; what it raises is the call's failure.

    A cache, a recorder, an approval, a tracer are of this kind. Write both methods, for blocking and asynchronous runs.
    One object serves all calls of a router, from several threads and event loops.
    """

    each_attempt: ClassVar[bool] = False
    """Whether it wraps each attempt, within retries and the rate limit, and not the call as a whole."""

    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        """Return the reply to a call."""
        raise MiddlewareError(f"{type(self).__name__} has no wrap_call, which blocking runs need")

    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        """Return the reply to a call of an asynchronous run."""
        raise MiddlewareError(f"{type(self).__name__} has no awrap_call, which asynchronous runs need")


class Retry(CallMiddleware):
    """Makes a call again, as often as the descriptor says, while its failure is a transient one."""

    @override
    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        if not call.model.retries:  # tenacity takes a twentieth of a run's own time
            return proceed(call)
        return Retrying(**_retries(call.model))(proceed, call)

    @override
    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        if not call.model.retries:
            return await proceed(call)
        reply: AIMessage = await AsyncRetrying(**_retries(call.model))(proceed, call)
        return reply


def _retries(model: ModelDescriptor) -> dict[str, Any]:
    return {
        "retry": retry_if_exception_type(TRANSIENT_ERRORS),
        "stop": stop_after_attempt(model.retries + 1),
        "wait": wait_exponential_jitter(**RETRY_WAITS),
        "reraise": True,
    }


class RateLimit(CallMiddleware):
    """Holds each model to its descriptor's `requests_per_second`.

    Each router has one of its own, unless its middleware has one that it shares with others.
    """

    each_attempt = True

    def __init__(self) -> None:
        """Begin with no request made."""
        self._limiters: dict[str, InMemoryRateLimiter] = {}
        self._lock = threading.Lock()

    @override
    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        if limiter := self._limiter(call.model):
            limiter.acquire()
        return proceed(call)

    @override
    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        if limiter := self._limiter(call.model):
            await limiter.aacquire()
        return await proceed(call)

    def _limiter(self, model: ModelDescriptor) -> InMemoryRateLimiter | None:
        rate = model.requests_per_second
        if not rate:
            return None
        with self._lock:  # a second one would let as many requests through again
            if model.name not in self._limiters:
                self._limiters[model.name] = InMemoryRateLimiter(requests_per_second=rate, max_bucket_size=1)
            return self._limiters[model.name]


def ordered(middleware: Sequence[CallMiddleware]) -> tuple[CallMiddleware, ...]:
    """Return a router's own middleware with retries and rate limits at their place in it."""
    outer = [one for one in middleware if not one.each_attempt]
    inner = [one for one in middleware if one.each_attempt]
    if not any(isinstance(one, RateLimit) for one in inner):
        inner = [RateLimit(), *inner]
    return (*outer, Retry(), *inner)


def wrap(middleware: Sequence[CallMiddleware], send: Send) -> Send:
    """Return the way through all middleware to `send`."""
    for one in reversed(middleware):
        send = _wrapped(one, send)
    return send


def awrap(middleware: Sequence[CallMiddleware], send: AsyncSend) -> AsyncSend:
    """Return the way through all middleware to `send`, for asynchronous runs."""
    for one in reversed(middleware):
        send = _awrapped(one, send)
    return send


def _wrapped(one: CallMiddleware, send: Send) -> Send:
    return lambda call: one.wrap_call(call, send)


def _awrapped(one: CallMiddleware, send: AsyncSend) -> AsyncSend:
    async def wrapped(call: ModelCall) -> AIMessage:  # tenacity awaits coroutine functions only
        return await one.awrap_call(call, send)

    return wrapped
