"""Call one routed model: a `PlannedCall` in, a `RoutedCall` out. A failure becomes data, never an exception."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.errors import GraphBubbleUp

from langgraph_router_r1.calls.client import Clients, is_router, may_have_been_billed, public_reason, request_worst_case
from langgraph_router_r1.calls.health import RestingError
from langgraph_router_r1.calls.middleware import CallMiddleware, MiddlewareError, ModelCall, awrap, ordered, wrap
from langgraph_router_r1.calls.prompt_cache import warm_caches
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines.base import EngineError
from langgraph_router_r1.events import AnswerStream
from langgraph_router_r1.ledger import (
    FROM_CACHE,
    NO_COST,
    NO_USAGE,
    CostParts,
    Usage,
    add_bounds,
    add_cost_parts,
    add_usage,
    bound,
    cost,
    cost_parts,
    finish_of,
    reported_usage,
    sum_of,
)
from langgraph_router_r1.protocol import encodable, strip_thought
from langgraph_router_r1.question import count_images, images_in, last_question, question_images
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import CallStatus, PlannedCall, RoutedCall, RouterState, RunReport, WarmCache
from langgraph_router_r1.storable import storable, without_nul

logger = logging.getLogger(__name__)


class Candidates:
    """The models of a registry, ready to be asked; each is built when it is first needed.

    Example:
        >>> candidates = Candidates(registry, count_tokens=len)                            # doctest: +SKIP
        >>> candidates.ask({"turn": 0, "index": 0, "model": "small", "query": "Capital of Peru?", "refusal": None})
        {'turn': 0, 'index': 0, 'model': 'small', ..., 'response': 'Lima', 'status': 'ok', ...}
    """

    def __init__(
        self,
        registry: ModelRegistry,
        count_tokens: Callable[[str], int],
        middleware: Sequence[CallMiddleware] = (),
        clients: Clients | None = None,
        *,
        is_brief: bool = True,
    ) -> None:
        """Keep the pool.

        Args:
            registry: The models.
            count_tokens: Estimates the usage of models that do not report it.
            middleware: What stands around each call; retries and rate limits are added.
            clients: Built models to share with others; by default its own.
            is_brief: Whether answers shall be short.
        """
        self.registry = registry
        self._count_tokens = count_tokens
        self._middleware = ordered(middleware)
        self._clients = Clients() if clients is None else clients
        self._is_brief = is_brief

    def offered(self, conversation: Sequence[AnyMessage]) -> ModelRegistry:
        """Return the models that may be asked about a question: if it has images, those that read images.

        Raises:
            ValueError: There are none.
        """
        images = question_images(conversation)
        if not images:
            return self.registry
        offered = self.registry.reading_images()
        if not len(offered):
            msg = (
                f"the question comes with {count_images(images)}, and no model of the registry reads images; it has: "
                f"{', '.join(map(repr, self.registry.names))}. A model that does must say so: "
                'modalities = ["text", "image"]'
            )
            raise ValueError(msg)
        return offered

    def is_resting(self, name: str) -> bool:
        """Return whether a model is not asked for now, because it keeps failing."""
        return self._clients.is_resting(self.registry[name])

    def warm_caches(self, state: RouterState) -> list[WarmCache]:
        """Return the prompt caches that are warm for a run that begins; see `prompt_cache`."""
        return warm_caches(state, self.registry, self._count_tokens)

    def context_of(self, name: str, conversation: Sequence[AnyMessage]) -> list[AnyMessage]:
        """Return the messages that a call must carry.

        All of a run's if the model or a fallback shares them; else the question, if it has images.
        """
        if any(choice.share_context != "none" for choice in self._choices(name, conversation)):
            return list(conversation)
        question = conversation[last_question(conversation)]
        return [question] if images_in(question) else []

    def worst_case(self, name: str, query: str, conversation: Sequence[AnyMessage] = ()) -> float:
        """Return the most a call can cost in dollars, whoever of the model and its fallbacks answers.

        A token is at least one byte of text, so bytes bound the prompt for any tokenizer. A model that can't be told
        how much to write has no worst case short of infinity, unless it is free.
        """
        return max(
            request_worst_case(ModelCall(choice, query, None, conversation, self._is_brief))
            for choice in self._choices(name, conversation)
        )

    def worst_case_of(self, call: PlannedCall) -> float:
        """Return the most that a planned call can cost in dollars; see `worst_case`."""
        return max(map(request_worst_case, self._requests(call)))

    def most_billed(self, call: PlannedCall) -> float:
        """Return the most dollars that may be billed for a planned call of which nothing is heard.

        Every attempt with the model and with each fallback may have failed after it was sent, and be billed.
        """
        if call["refusal"]:
            return 0.0
        return sum(request_worst_case(one) * (1 + one.model.retries) for one in self._requests(call))

    def ask(self, call: PlannedCall, *, again: bool = False, stream: AnswerStream | None = None) -> RoutedCall:
        """Make the call, unless it was refused before; return what came of it.

        Args:
            call: Which model to ask what.
            again: Whether the call may have been made before, by a run that was stopped; the result then says so.
            stream: Takes the reply while it is written.
        """
        if call["refusal"]:
            return _refused(call)
        outcome = self._begin(call, again=again)

        def send(request: ModelCall) -> AIMessage:
            client = self._clients.get(request.model)
            with client.watching(), outcome.noting(request):
                return outcome.received(request, client.send(request, stream))

        for request in self._requests(call):
            outcome.begin()
            try:
                return self._replied(outcome, request, wrap(self._middleware, send)(request))
            except (GraphBubbleUp, MiddlewareError):  # an interrupt is no failure, and a mistake in the program no data
                raise
            except Exception as error:  # noqa: BLE001 - whatever goes wrong becomes data; the next one may do better
                outcome.gave_up(error)
        return self._failed(outcome)

    async def aask(self, call: PlannedCall, *, again: bool = False, stream: AnswerStream | None = None) -> RoutedCall:
        """Make the call without blocking; see `ask`."""
        if call["refusal"]:
            return _refused(call)
        outcome = self._begin(call, again=again)

        async def send(request: ModelCall) -> AIMessage:
            client = await self._clients.aget(request.model)
            with client.watching(), outcome.noting(request):
                return outcome.received(request, await client.asend(request, stream))

        for request in self._requests(call):
            outcome.begin()
            try:
                return self._replied(outcome, request, await awrap(self._middleware, send)(request))
            except (GraphBubbleUp, MiddlewareError):  # an interrupt is no failure, and a mistake in the program no data
                raise
            except Exception as error:  # noqa: BLE001 - whatever goes wrong becomes data; the next one may do better
                outcome.gave_up(error)
        return self._failed(outcome)

    # LangChain's `with_fallbacks` builds all of them first, takes an interrupt for a failure, and traces every one
    # under the name of the first.
    def _choices(self, name: str, conversation: Sequence[AnyMessage]) -> Iterator[ModelDescriptor]:
        """Yield the model and then its fallbacks, as far as they can be asked about the question."""
        model = self.registry[name]
        yield model
        has_images = bool(question_images(conversation))
        for fallback in map(self.registry.__getitem__, model.fallbacks):
            if fallback.reads_images or not has_images:
                yield fallback

    def _requests(self, call: PlannedCall) -> Iterator[ModelCall]:
        context = call.get("context", ())
        for model in self._choices(call["model"], context):
            yield ModelCall(model, call["query"], call.get("id"), context, self._is_brief, call.get("tools"))

    def _begin(self, call: PlannedCall, *, again: bool) -> _Outcome:
        outcome = _Outcome(call, again)
        if again:
            outcome.add_maybe(self.most_billed(call))
        return outcome

    def _replied(self, outcome: _Outcome, request: ModelCall, reply: AIMessage) -> RoutedCall:
        model = outcome.sent_to or request.model  # a middleware may have chosen another one
        text, whole_length = _text_of(model, reply)
        response = strip_thought(text)
        # Of tools that the run did not offer, nobody knows how to run them.
        offered = reply.tool_calls if request.tools is not None else []
        problem, tool_calls = None, []
        try:
            tool_calls = [storable(call) for call in offered]
        except ValueError as error:  # paid for, and no data that the run can go on with
            problem = f"{model.name} called a tool with something that can't be kept: {error}"
        if not response and not offered:
            problem = f"{model.name} gave an empty reply"
        routed: RoutedCall = {
            **self._spent(outcome),
            "response": response,
            "status": "error" if problem else "ok",
            "reason": problem or self._why_not(outcome),
            "tool_calls": tool_calls,
            "answered_by": model.name,
            "finish_reason": "too_long" if whole_length > len(text) else finish_of(reply.response_metadata),
        }
        # What was sent is in the account already; this was answered by a middleware, such as a cache.
        return self._priced(routed, replace(request, model=model), reply) if outcome.sent_to is None else routed

    def _why_not(self, outcome: _Outcome) -> str | None:
        """Return why the model that was asked did not reply; None while it has not failed."""
        if not outcome.failures:
            return None
        reason = public_reason(self.registry[outcome.call["model"]], outcome.failures[0])
        logger.info("%s", reason)
        return reason

    def _failed(self, outcome: _Outcome) -> RoutedCall:
        failure, reason = outcome.failures[0], self._why_not(outcome)
        was_refused = isinstance(failure, RestingError) and not outcome.was_sent
        return {**self._spent(outcome), "status": "resting" if was_refused else "error", "reason": reason}

    def _spent(self, outcome: _Outcome) -> RoutedCall:
        """Return the routed call with the costs of all replies that came, also of those that middleware kept back."""
        routed = outcome.routed()
        for request, reply in outcome.replies:
            routed = self._priced(routed, request, reply)
        return routed

    def _priced(self, routed: RoutedCall, request: ModelCall, reply: AIMessage) -> RoutedCall:
        """Return the routed call with the usage and the cost of a reply added."""
        model = request.model
        if is_router(model) and "routing" in reply.response_metadata:
            # What a router spends is the sum of its own account, not its tokens at a price.
            return _with_account(routed, reply.response_metadata["routing"])
        usage, is_free = reported_usage(reply.usage_metadata)
        if usage is None:
            usage = self._estimated(request, *_text_of(model, reply))
        is_free = is_free or FROM_CACHE in reply.response_metadata
        spent = 0.0 if is_free else cost(usage, model.price)
        added: RoutedCall = {
            **routed,
            "usage": add_usage([routed["usage"], usage]),
            "cost_usd": routed["cost_usd"] + spent,
        }
        return _with_cost(added, cost_parts(usage, model.price))

    def _estimated(self, request: ModelCall, text: str, whole_length: int) -> Usage:
        # Of a reply that was cut, the part that is left is counted and taken for typical of the whole.
        kept = len(text) / whole_length if whole_length else 1.0
        return {
            "prompt_tokens": sum(
                self._count_tokens(message.text) + len(images_in(message)) * (request.model.image_tokens or 0)
                for message in request.messages
            ),
            "cached_tokens": 0,
            "completion_tokens": math.ceil(self._count_tokens(text) / kept),
            "estimated": True,
        }


class _Outcome:
    """What is known of a call while its attempts are made."""

    def __init__(self, call: PlannedCall, again: bool) -> None:
        self.call, self._again = call, again
        self.failed: list[str] = []
        """The models that were sent the call and failed."""
        self.failures: list[Exception] = []
        """The last failure of each model that was tried."""
        self.sent_to: ModelDescriptor | None = None
        """The model that the latest request went to, since `begin`; None while none was sent."""
        self.was_sent = False
        """Whether any request was."""
        self.replies: list[tuple[ModelCall, AIMessage]] = []
        """Every reply that came, and to which request: all of them were paid for."""
        self._accounts: list[RunReport] = []
        self._maybe_usd: float | None = 0.0
        self._started = time.perf_counter()

    def begin(self) -> None:
        """Note that another model is tried now."""
        self.sent_to = None

    def gave_up(self, error: Exception) -> None:
        """Note that the model which was tried has failed."""
        self.failures.append(error)
        if self.sent_to is not None:
            self.failed.append(self.sent_to.name)

    def received(self, request: ModelCall, reply: AIMessage) -> AIMessage:
        """Note a reply, and return it."""
        self.replies.append((request, reply))
        return reply

    @contextlib.contextmanager
    def noting(self, request: ModelCall) -> Iterator[None]:
        """Note where an attempt goes, and what may be billed should it fail."""
        self.sent_to, self.was_sent = request.model, True
        try:
            yield
        except Exception as error:
            if isinstance(error, EngineError):  # of a router, as a routed model
                if error.routing is not None:
                    self.add_account(error.routing)
            elif not isinstance(error, GraphBubbleUp) and may_have_been_billed(error):
                self.add_maybe(request_worst_case(request))
            raise

    def add_maybe(self, worst_usd: float) -> None:
        """Note that so much may have been billed without a reply to show for it."""
        self._maybe_usd = add_bounds(self._maybe_usd, bound(worst_usd))

    def add_account(self, account: RunReport) -> None:
        """Note what a router had spent when it broke off."""
        self._accounts.append(account)

    def routed(self) -> RoutedCall:
        """Return the routed call, as far as it does not depend on the reply."""
        routed: RoutedCall = {
            **_blank(self.call),
            "failed": self.failed,
            "latency_s": time.perf_counter() - self._started,
            "maybe_cost_usd": self._maybe_usd,
            "maybe_billed_twice": self._again,
        }
        return functools.reduce(_with_account, self._accounts, routed)


def _text_of(model: ModelDescriptor, reply: AIMessage) -> tuple[str, int]:
    """Return the text of a reply, cut to what the descriptor allows, and how long it was before."""
    whole = reply.content if isinstance(reply.content, str) else reply.text
    # Cut before anything else reads it.
    return without_nul(encodable(whole[: model.max_reply_chars])), len(whole)


def _with_account(routed: RoutedCall, account: RunReport) -> RoutedCall:
    """Return a call to a router, with what that router spent besides what the call holds already."""
    spent: RoutedCall = {
        **routed,
        "usage": add_usage([routed["usage"], account["router_tokens"], account["candidate_tokens"]]),
        "cost_usd": routed["cost_usd"] + account["cost_usd"],
        "maybe_cost_usd": add_bounds(routed["maybe_cost_usd"], account["maybe_cost_usd"]),
        "inner": account,
    }
    return _with_cost(spent, account["list_cost_parts"])


def _with_cost(routed: RoutedCall, parts: CostParts) -> RoutedCall:
    """Return the routed call with this cost at list price added."""
    total = add_cost_parts([routed["list_cost_parts"], parts])
    return {**routed, "list_cost_parts": total, "list_cost_usd": sum_of(total)}


def _blank(call: PlannedCall) -> RoutedCall:
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
        "list_cost_parts": NO_COST.copy(),
        "latency_s": 0.0,
        "answered_by": None,
        "failed": [],
        "finish_reason": None,
        "maybe_cost_usd": 0.0,
        "maybe_billed_twice": False,
        "tool_calls": [],
        "review": call.get("review"),
        "inner": None,
    }


def _refused(call: PlannedCall) -> RoutedCall:
    assert call["refusal"] is not None
    status: CallStatus = call["refusal"]["status"]
    return {**_blank(call), "status": status, "reason": call["refusal"]["reason"]}
