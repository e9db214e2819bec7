"""Ask one routed model: a call in, a `Hop` out. Whatever goes wrong becomes data in the hop, never an exception."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langgraph.errors import GraphBubbleUp
from typing_extensions import override

from langgraph_router_r1.ledger import FREE, NO_USAGE, Usage, cost, reported_usage, worst_case
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.protocol import strip_thought
from langgraph_router_r1.registry import ModelDescriptor, ModelRegistry
from langgraph_router_r1.state import Hop, HopStatus, RouterCall

logger = logging.getLogger(__name__)

T = TypeVar("T")

PASSING_FAILURES = (ModelRateLimitError, ModelAPIError, ModelConnectionError, ModelTimeoutError)
"""The failures that LangChain calls retryable."""

PROMPT_OVERHEAD_TOKENS = 64
"""Room for what a chat template puts around a message, in worst cases."""

_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (ModelRateLimitError, "is rate limited (429)"),
    (ModelAuthenticationError, "refused its key (401)"),
    (ModelPermissionDeniedError, "does not permit the request (403)"),
    (ModelNotFoundError, "is not there (404)"),
    (ContextOverflowError, "has too short a context for the query"),
    (ModelInvalidRequestError, "rejected the request (400)"),
    (ModelAPIError, "had a server error (5xx)"),
    (ModelConnectionError, "can't be reached"),
    (ImportError, "needs a LangChain package that is not installed"),
)


class MissingKeyError(LookupError):
    """The environment variable that should hold a model's key is not set."""


class Candidates:
    """The models of a registry, ready to be asked; each is built when it is first needed.

    Example:
        >>> candidates = Candidates(registry, count_tokens=len)                            # doctest: +SKIP
        >>> candidates.ask({"turn": 0, "index": 0, "model": "small", "query": "Capital of Peru?", "refusal": None})
        {'turn': 0, 'index': 0, 'model': 'small', ..., 'response': 'Lima', 'status': 'ok', ...}
    """

    def __init__(self, registry: ModelRegistry, count_tokens: Callable[[str], int]) -> None:
        """Keep the pool; `count_tokens` estimates the usage of models that do not report it."""
        self.registry = registry
        self._count_tokens = count_tokens
        self._legs: dict[str, Runnable[Any, tuple[str, AIMessage]]] = {}
        self._building = threading.Lock()

    def worst_case(self, name: str, query: str) -> float:
        """Return the most a call can cost in dollars, whoever of the model and its fallbacks answers.

        A token is at least one byte of text, so bytes bound the prompt for any tokenizer. A model that can't be told
        how much to write has no worst case short of infinity, unless it is free.
        """
        prompt_tokens = len(CALL_PROMPT.format(query=query).encode("utf-8", "replace")) + PROMPT_OVERHEAD_TOKENS
        model = self.registry[name]
        return max(
            worst_case(prompt_tokens, choice.max_tokens, choice.price)
            if choice.is_bounded or choice.price == FREE
            else math.inf
            for choice in (model, *(self.registry[name] for name in model.fallbacks))
        )

    def least_worst_case(self) -> float:
        """Return the most that the shortest question to the cheapest model can cost, in dollars."""
        return min(self.worst_case(name, "?") for name in self.registry.names)

    def ask(self, call: RouterCall) -> Hop:
        """Make the call, unless it was refused before; return what came of it."""
        if call["refusal"]:
            return _refused(call)
        model = self.registry[call["model"]]
        started = time.perf_counter()
        try:
            answered_by, reply = self._first_reply(model, call)
            return self._replied(call, answered_by, reply, time.perf_counter() - started)
        except GraphBubbleUp:  # an interrupt is no failure
            raise
        except Exception as error:  # noqa: BLE001 - whatever goes wrong becomes data
            return _failed(call, model, error, time.perf_counter() - started)

    async def aask(self, call: RouterCall) -> Hop:
        """Make the call without blocking; see `ask`."""
        if call["refusal"]:
            return _refused(call)
        model = self.registry[call["model"]]
        started = time.perf_counter()
        try:
            answered_by, reply = await self._afirst_reply(model, call)
            return self._replied(call, answered_by, reply, time.perf_counter() - started)
        except GraphBubbleUp:  # an interrupt is no failure
            raise
        except Exception as error:  # noqa: BLE001 - whatever goes wrong becomes data
            return _failed(call, model, error, time.perf_counter() - started)

    # LangChain's `with_fallbacks` builds all of them first, takes an interrupt for a failure, and traces every one
    # under the name of the first.
    def _first_reply(self, model: ModelDescriptor, call: RouterCall) -> tuple[str, AIMessage]:
        """Return the reply of the model, or of the first of its fallbacks that gives one; who it was comes with it."""
        failures: list[Exception] = []
        for choice in (model, *(self.registry[name] for name in model.fallbacks)):
            try:
                return self._leg(choice).invoke(_messages(call), _config(choice))
            except GraphBubbleUp:
                raise
            except Exception as error:  # noqa: BLE001 - the next one may do better
                failures.append(error)
        raise failures[0]

    async def _afirst_reply(self, model: ModelDescriptor, call: RouterCall) -> tuple[str, AIMessage]:
        """See `_first_reply`."""
        failures: list[Exception] = []
        for choice in (model, *(self.registry[name] for name in model.fallbacks)):
            try:
                # Building a client imports its package and reads certificates: not on the event loop.
                leg = self._legs.get(choice.name)
                if leg is None:
                    leg = await asyncio.to_thread(self._leg, choice)
                return await leg.ainvoke(_messages(call), _config(choice))
            except GraphBubbleUp:
                raise
            except Exception as error:  # noqa: BLE001 - the next one may do better
                failures.append(error)
        raise failures[0]

    def _leg(self, model: ModelDescriptor) -> Runnable[Any, tuple[str, AIMessage]]:
        """Return the model alone, with its retries; each attempt has the model's own time and rate limit."""
        with self._building:  # a second one would have a rate limit of its own
            if model.name not in self._legs:
                leg: Runnable[Any, tuple[str, AIMessage]] = _Leg(model)
                if model.retries:
                    leg = leg.with_retry(retry_if_exception_type=PASSING_FAILURES, stop_after_attempt=model.retries + 1)
                self._legs[model.name] = leg
            return self._legs[model.name]

    def _replied(self, call: RouterCall, answered_by: str, reply: AIMessage, latency_s: float) -> Hop:
        # Half an emoji, as some JSON holds, is taken by no tokenizer.
        response = strip_thought(reply.text.encode("utf-8", "replace").decode())
        usage, cached_reply = self._usage(call, reply)
        list_cost = cost(usage, self.registry[answered_by].price)
        return {
            **_hop(call),
            "response": response,
            "status": "ok" if response else "error",
            "reason": None if response else f"{answered_by} gave an empty reply",
            "usage": usage,
            "cost_usd": 0.0 if cached_reply else list_cost,
            "list_cost_usd": list_cost,
            "latency_s": latency_s,
            "answered_by": answered_by,
        }

    def _usage(self, call: RouterCall, reply: AIMessage) -> tuple[Usage, bool]:
        """Return the tokens of a reply, counted here when it does not say, and whether it came from a cache."""
        usage, from_cache = reported_usage(reply.usage_metadata)
        if usage is None:
            usage = {
                "prompt_tokens": self._count_tokens(CALL_PROMPT.format(query=call["query"])),
                "cached_tokens": 0,
                "completion_tokens": self._count_tokens(reply.text.encode("utf-8", "replace").decode()),
                "estimated": True,
            }
        return usage, from_cache


class _Leg(Runnable[Any, tuple[str, AIMessage]]):
    """One attempt at one model, within its time and rate limit; gives its name with its reply, so that it is billed."""

    def __init__(self, model: ModelDescriptor) -> None:
        self._descriptor, self._model = model, build_model(model)
        rate = model.requests_per_second
        self._limiter = InMemoryRateLimiter(requests_per_second=rate, max_bucket_size=1) if rate else None

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> tuple[str, AIMessage]:
        if self._limiter:
            self._limiter.acquire()
        attempt = functools.partial(self._model.invoke, input, config, **kwargs)
        return _signed(self._descriptor.name, _within(self._descriptor.timeout_s, attempt))

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> tuple[str, AIMessage]:
        if self._limiter:
            await self._limiter.aacquire()
        async with asyncio.timeout(self._descriptor.timeout_s):
            return _signed(self._descriptor.name, await self._model.ainvoke(input, config, **kwargs))


def build_model(model: ModelDescriptor) -> Runnable[Any, Any]:
    """Return the Runnable behind a descriptor: built from its string, or the object it holds, set up as it says.

    Raises:
        MissingKeyError: `api_key_env` names a variable that is not set.
        ImportError: The provider's LangChain package is not installed.
    """
    if isinstance(model.model, str):
        return _from_string(model)
    runnable: Runnable[Any, Any] = model.model
    if isinstance(runnable.bound if isinstance(runnable, RunnableBinding) else runnable, BaseChatModel):
        # Without a limit a call would have no worst case to hold against a budget.
        runnable = runnable.bind(**{"max_tokens": model.max_tokens, **model.params})
    return runnable


def _from_string(model: ModelDescriptor) -> BaseChatModel:
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


def public_reason(model: ModelDescriptor, error: BaseException) -> str:
    """Return why a call failed in words fit for the router, a trace or a log: providers' own words may hold keys."""
    if isinstance(error, TimeoutError | ModelTimeoutError):
        return f"{model.name} gave no reply within {model.timeout_s:g} s"
    if isinstance(error, MissingKeyError):
        return f"{model.name} has no key: the environment variable {model.api_key_env!r} is not set"
    for kind, words in _REASONS:
        if isinstance(error, kind):
            return f"{model.name} {words}"
    return f"{model.name} failed ({type(error).__name__})"


def _messages(call: RouterCall) -> list[BaseMessage]:
    return [HumanMessage(CALL_PROMPT.format(query=call["query"]))]


def _config(model: ModelDescriptor) -> RunnableConfig:
    return {"run_name": f"ask {model.name}", "metadata": {"router_r1_model": model.name}}


def _signed(name: str, reply: Any) -> tuple[str, AIMessage]:
    if isinstance(reply, str):
        return name, AIMessage(reply)
    if isinstance(reply, AIMessage):
        return name, reply
    msg = f"{name} replied with a {type(reply).__name__}; it must be an AIMessage or a string"
    raise TypeError(msg)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Run a blocking call in a thread of its own and wait so long for it.

    Python can't end a thread: a call that hangs for ever is left behind, and does not hold up the end of the program.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            future.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), daemon=True, name="router-r1-call").start()
    return future.result(timeout=seconds)


def _hop(call: RouterCall) -> Hop:
    return {
        "turn": call["turn"],
        "index": call["index"],
        "model": call["model"],
        "query": call["query"],
        "response": "",
        "status": "error",
        "reason": None,
        "usage": NO_USAGE.copy(),
        "cost_usd": 0.0,
        "list_cost_usd": 0.0,
        "latency_s": 0.0,
        "answered_by": None,
    }


def _refused(call: RouterCall) -> Hop:
    assert call["refusal"] is not None
    status: HopStatus = call["refusal"]["status"]
    return {**_hop(call), "status": status, "reason": call["refusal"]["reason"]}


def _failed(call: RouterCall, model: ModelDescriptor, error: Exception, latency_s: float) -> Hop:
    reason = public_reason(model, error)
    logger.info("%s", reason)
    return {**_hop(call), "reason": reason, "latency_s": latency_s}
