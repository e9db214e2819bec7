"""Call one routed model: a `PlannedCall` in, a `RoutedCall` out. A failure becomes data, never an exception."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

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
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.retry import ExponentialJitterParams
from langgraph.errors import GraphBubbleUp
from langgraph.pregel.protocol import PregelProtocol
from typing_extensions import override

from langgraph_router_r1.agent_model import AgentModel
from langgraph_router_r1.engines.base import EngineError
from langgraph_router_r1.event_loops import AnyLoopModel, for_any_loop, in_thread
from langgraph_router_r1.ledger import (
    FREE,
    NO_USAGE,
    Usage,
    add_bounds,
    add_usage,
    bound,
    cost,
    finish_of,
    reported_usage,
    worst_case,
)
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.protocol import strip_thought
from langgraph_router_r1.registry import ModelDescriptor, ModelRegistry
from langgraph_router_r1.state import CallStatus, PlannedCall, RoutedCall, RunReport

logger = logging.getLogger(__name__)

TRANSIENT_ERRORS = (ModelRateLimitError, ModelAPIError, ModelConnectionError, ModelTimeoutError)
"""The failures that LangChain calls retryable."""

RETRY_WAITS: ExponentialJitterParams = {"exp_base": 2.0, "jitter": 1.0, "max": 60.0}
"""Seconds between the attempts of a call: 1, 2, 4, ... and up to one more, by chance."""

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

_NOT_BILLED = (
    ModelRateLimitError,
    ModelAuthenticationError,
    ModelPermissionDeniedError,
    ModelNotFoundError,
    ContextOverflowError,
    ModelInvalidRequestError,
    ConnectionRefusedError,
)
"""Failures after which nothing was generated: the provider refused the request, or no connection was made."""

_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError"})
"""Names of HTTP clients' errors (httpx's and its forks') for a request that never left."""


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
        self._clients: dict[str, _Client] = {}
        self._building = threading.Lock()

    def worst_case(self, name: str, query: str) -> float:
        """Return the most a call can cost in dollars, whoever of the model and its fallbacks answers.

        A token is at least one byte of text, so bytes bound the prompt for any tokenizer. A model that can't be told
        how much to write has no worst case short of infinity, unless it is free.
        """
        return max(_worst_case(choice, query) for choice in self._choices(name))

    def least_worst_case(self) -> float:
        """Return the most that the shortest question to the cheapest model can cost, in dollars."""
        return min(self.worst_case(name, "?") for name in self.registry.names)

    def ask(self, call: PlannedCall, *, again: bool = False) -> RoutedCall:
        """Make the call, unless it was refused before; return what came of it.

        Args:
            call: What to ask whom.
            again: Whether the call may have been made before, by a run that was stopped; the hop then says so.
        """
        if call["refusal"]:
            return _refused(call)
        outcome = self._begin(call, again=again)
        for choice in self._choices(call["model"]):
            try:
                attempt = _Attempt(self._client(choice), outcome)
                reply = attempt.with_retries().invoke(_messages(call), _config(choice))
                return self._replied(outcome, choice, reply)
            except GraphBubbleUp:  # an interrupt is no failure
                raise
            except Exception as error:  # noqa: BLE001 - whatever goes wrong becomes data; the next one may do better
                outcome.failures.append(error)
        return self._failed(outcome)

    async def aask(self, call: PlannedCall, *, again: bool = False) -> RoutedCall:
        """Make the call without blocking; see `ask`."""
        if call["refusal"]:
            return _refused(call)
        outcome = self._begin(call, again=again)
        for choice in self._choices(call["model"]):
            try:
                # Building a client imports its package and reads certificates: not on the event loop.
                client = self._clients.get(choice.name)
                if client is None:
                    client = await asyncio.to_thread(self._client, choice)
                attempt = _Attempt(client, outcome)
                reply = await attempt.with_retries().ainvoke(_messages(call), _config(choice))
                return self._replied(outcome, choice, reply)
            except GraphBubbleUp:  # an interrupt is no failure
                raise
            except Exception as error:  # noqa: BLE001 - whatever goes wrong becomes data; the next one may do better
                outcome.failures.append(error)
        return self._failed(outcome)

    # LangChain's `with_fallbacks` builds all of them first, takes an interrupt for a failure, and traces every one
    # under the name of the first.
    def _choices(self, name: str) -> Iterator[ModelDescriptor]:
        """Yield the model and then its fallbacks."""
        model = self.registry[name]
        yield model
        for fallback in model.fallbacks:
            yield self.registry[fallback]

    def _client(self, model: ModelDescriptor) -> _Client:
        with self._building:  # a second one would have a rate limit of its own
            if model.name not in self._clients:
                self._clients[model.name] = _Client(model)
            return self._clients[model.name]

    def _begin(self, call: PlannedCall, *, again: bool) -> _Outcome:
        outcome = _Outcome(call, again)
        if again:
            outcome.add_maybe(self.worst_case(call["model"], call["query"]))
        return outcome

    def _replied(self, outcome: _Outcome, model: ModelDescriptor, reply: AIMessage) -> RoutedCall:
        whole = reply.content if isinstance(reply.content, str) else reply.text
        # Cut before anything else reads it. Half a surrogate pair, as some JSON holds, is taken by no tokenizer.
        text = whole[: model.max_reply_chars].encode("utf-8", "replace").decode()
        response = strip_thought(text)
        usage, from_cache = reported_usage(reply.usage_metadata)
        if usage is None:
            usage = self._estimated(outcome.call, text, len(whole))
        list_cost = cost(usage, model.price)
        hop: RoutedCall = {
            **outcome.hop(),
            "response": response,
            "status": "ok" if response else "error",
            "reason": None if response else f"{model.name} gave an empty reply",
            "answered_by": model.name,
            "finish_reason": "too_long" if len(whole) > len(text) else finish_of(reply.response_metadata),
        }
        if is_router(model) and "routing" in reply.response_metadata:
            # What a router spends is the sum of its own account, not its tokens at a price.
            return _with_account(hop, reply.response_metadata["routing"])
        return {
            **hop,
            "usage": add_usage([hop["usage"], usage]),
            "cost_usd": hop["cost_usd"] + (0.0 if from_cache else list_cost),
            "list_cost_usd": hop["list_cost_usd"] + list_cost,
        }

    def _failed(self, outcome: _Outcome) -> RoutedCall:
        reason = public_reason(self.registry[outcome.call["model"]], outcome.failures[0])
        logger.info("%s", reason)
        return {**outcome.hop(), "reason": reason}

    def _estimated(self, call: PlannedCall, text: str, whole_length: int) -> Usage:
        # Of a reply that was cut, the part that is left is counted and taken for typical of the whole.
        kept = len(text) / whole_length if whole_length else 1.0
        return {
            "prompt_tokens": self._count_tokens(CALL_PROMPT.format(query=call["query"])),
            "cached_tokens": 0,
            "completion_tokens": math.ceil(self._count_tokens(text) / kept),
            "estimated": True,
        }


class _Outcome:
    """What is known of a call while its attempts are made."""

    def __init__(self, call: PlannedCall, again: bool) -> None:
        self.call, self._again = call, again
        self.failures: list[Exception] = []
        """The last failure of each model that was tried."""
        self._accounts: list[RunReport] = []
        self._maybe_usd: float | None = 0.0
        self._started = time.perf_counter()

    def add_maybe(self, worst_usd: float) -> None:
        """Note that so much may have been billed without a reply to show for it."""
        self._maybe_usd = add_bounds(self._maybe_usd, bound(worst_usd))

    def add_account(self, account: RunReport) -> None:
        """Note what a router had spent when it broke off."""
        self._accounts.append(account)

    def hop(self) -> RoutedCall:
        """Return the hop, as far as it does not depend on the reply."""
        hop: RoutedCall = {
            **_blank_hop(self.call),
            "latency_s": time.perf_counter() - self._started,
            "maybe_cost_usd": self._maybe_usd,
            "maybe_billed_twice": self._again,
        }
        return functools.reduce(_with_account, self._accounts, hop)


class _Client:
    """One model, built, with its rate limit; shared by all calls to it."""

    def __init__(self, descriptor: ModelDescriptor) -> None:
        self.descriptor, self.model = descriptor, build_model(descriptor)
        rate = descriptor.requests_per_second
        self.limiter = InMemoryRateLimiter(requests_per_second=rate, max_bucket_size=1) if rate else None
        self._headers = _openai_headers(self.model)

    def options(self, call: PlannedCall) -> dict[str, Any]:
        """Return what a request carries besides the messages: the call's id, by which a provider can tell a repetition.

        It would be part of the key of LangChain's cache, which then would never hit.
        """
        if "id" not in call or self._headers is None or get_llm_cache() is not None:
            return {}
        key = uuid.uuid5(uuid.UUID(call["id"]), self.descriptor.name)
        return {"extra_headers": {"Idempotency-Key": str(key), **self._headers}}


class _Attempt(Runnable[Any, AIMessage]):
    """One attempt of a call at one model, within the model's own time and rate limit."""

    def __init__(self, client: _Client, outcome: _Outcome) -> None:
        self._client, self._outcome = client, outcome
        self._options = client.options(outcome.call)
        self._timeout_s = client.descriptor.timeout_s

    def with_retries(self) -> Runnable[Any, AIMessage]:
        """Return the attempt, repeated as often as the descriptor says while the failure is a transient one."""
        retries = self._client.descriptor.retries
        if not retries:
            return self
        return self.with_retry(
            retry_if_exception_type=TRANSIENT_ERRORS,
            stop_after_attempt=retries + 1,
            exponential_jitter_params=RETRY_WAITS,
        )

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        if self._client.limiter:
            self._client.limiter.acquire()
        call = functools.partial(self._client.model.invoke, input, config, **self._options)
        try:
            return _as_message(in_thread(call).result(timeout=self._timeout_s))
        except Exception as error:
            self._note(error)
            raise

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        if self._client.limiter:
            await self._client.limiter.aacquire()
        try:
            async with asyncio.timeout(self._timeout_s):
                return _as_message(await self._client.model.ainvoke(input, config, **self._options))
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: Exception) -> None:
        if isinstance(error, EngineError):  # of a router, as a routed model
            if error.routing is not None:
                self._outcome.add_account(error.routing)
        elif not isinstance(error, GraphBubbleUp) and _may_have_been_billed(error):
            self._outcome.add_maybe(_worst_case(self._client.descriptor, self._outcome.call["query"]))


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
        return {"hops", "routing"} <= set(getattr(inner, "channels", ()))
    return isinstance(inner, BaseChatModel) and inner._llm_type == "router-r1"


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


def _worst_case(model: ModelDescriptor, query: str) -> float:
    """Return the most that one attempt at one model can cost, in dollars; infinity when nothing bounds it."""
    if is_router(model):
        # What it spends is its own account's sum, whatever its descriptor says of tokens.
        context = getattr(_inner(model.model), "context", None)
        budget = getattr(context, "budget_usd", None)
        return math.inf if budget is None else float(budget)
    if not model.is_bounded and model.price != FREE:
        return math.inf
    prompt_tokens = len(CALL_PROMPT.format(query=query).encode("utf-8", "replace")) + PROMPT_OVERHEAD_TOKENS
    return worst_case(prompt_tokens, model.max_tokens, model.price)


def _may_have_been_billed(error: BaseException) -> bool:
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


def _openai_headers(model: Any) -> dict[str, str] | None:
    """Return the headers that requests to this model carry already.

    None if they may carry no more: it is not OpenAI's client, or it has a cache of its own.
    """
    package = sys.modules.get("langchain_openai.chat_models.base")  # not imported: then it is none of theirs
    bound = model.model if isinstance(model, AnyLoopModel) else model
    inner = _inner(bound)
    if package is None or not isinstance(inner, package.BaseChatOpenAI) or inner.cache:
        return None
    settings = {**inner.model_kwargs, **(bound.kwargs if isinstance(bound, RunnableBinding) else {})}
    return dict(settings.get("extra_headers") or {})


def _with_account(hop: RoutedCall, account: RunReport) -> RoutedCall:
    """Return the hop of a call to a router, with what that router spent besides what the hop holds already."""
    list_cost = sum(inner["list_cost_usd"] for inner in account["hops"]) + account["router_cost_usd"]
    return {
        **hop,
        "usage": add_usage([hop["usage"], account["router_tokens"], account["candidate_tokens"]]),
        "cost_usd": hop["cost_usd"] + account["cost_usd"],
        "list_cost_usd": hop["list_cost_usd"] + list_cost,
        "maybe_cost_usd": add_bounds(hop["maybe_cost_usd"], account["maybe_cost_usd"]),
        "inner": account,
    }


def _messages(call: PlannedCall) -> list[BaseMessage]:
    return [HumanMessage(CALL_PROMPT.format(query=call["query"]))]


def _config(model: ModelDescriptor) -> RunnableConfig:
    return {"run_name": f"ask {model.name}", "metadata": {"router_r1_model": model.name}}


def _as_message(reply: Any) -> AIMessage:
    if isinstance(reply, str):
        return AIMessage(reply)
    if isinstance(reply, AIMessage):
        return reply
    msg = f"the model replied with a {type(reply).__name__}; it must be an AIMessage or a string"
    raise TypeError(msg)


def _blank_hop(call: PlannedCall) -> RoutedCall:
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
        "finish_reason": None,
        "maybe_cost_usd": 0.0,
        "maybe_billed_twice": False,
        "inner": None,
    }


def _refused(call: PlannedCall) -> RoutedCall:
    assert call["refusal"] is not None
    status: CallStatus = call["refusal"]["status"]
    return {**_blank_hop(call), "status": status, "reason": call["refusal"]["reason"]}
