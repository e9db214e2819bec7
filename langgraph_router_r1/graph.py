"""The state machine: think, route, answer. `build_router` makes the graph, `create_router` compiles it.

    START -> think -> route (one for each call, in parallel) -> think ... -> answer -> END

`think` lets the router write one turn and reads it; each model it asks for is a `Send("route", call)`, so calls run
side by side and each finished one is in the checkpoint by itself; `answer` writes the answer and the account.

When the router LLM does not answer and there is a `fallback`, `think` has the models asked in its order, one a turn,
until one replies; the router LLM is not tried again in that run.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast

from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.store.base import BaseStore
from langgraph.types import All, Checkpointer, Command, Overwrite, Send
from typing_extensions import override

from langgraph_router_r1 import intents, protocol
from langgraph_router_r1.accounting import account, add_spending, spending
from langgraph_router_r1.candidates import Candidates
from langgraph_router_r1.engines.base import (
    ContextFullError,
    EngineError,
    Fallback,
    Generation,
    RouterEngine,
    info_segment,
)
from langgraph_router_r1.engines.chat_model import CHARACTERS_PER_TOKEN
from langgraph_router_r1.events import DoneEvent, InfoEvent, RouteEvent, ThinkEvent
from langgraph_router_r1.ledger import (
    FREE,
    PER_MILLION,
    Price,
    PriceLike,
    add_bounds,
    add_usage,
    affordable,
    cost,
    worst_case,
)
from langgraph_router_r1.prompts import RouterPrompt, last_question
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import (
    PlannedCall,
    Refusal,
    RoutedCall,
    RouterContext,
    RouterInput,
    RouterOutput,
    RouterState,
    RunLimits,
    RunReport,
    Spending,
    StopReason,
)
from langgraph_router_r1.transcript import Segment, token_ids

logger = logging.getLogger(__name__)

MAX_CORRECTIONS = 2
"""How many malformed turns of a run are answered with a correction; the next one forces the answer."""

MAX_UNKNOWN_NAME = 60
"""Characters kept of a name that is not registered: the router may have written a whole paragraph before a colon."""

QUOTE_OVERHEAD_TOKENS = 64
"""Room for the tags around replies and for a notice, in what is reserved for the answer."""

MAX_FALLBACK_CALLS = 3
"""How many models are asked without the router LLM, one after another, before a run ends without a reply."""

Next = Command[Literal["route", "answer", "think"]]


@dataclass(frozen=True)
class _Limits:
    """What one run is held to: the build's settings with the run's context over them."""

    max_turns: int
    max_parallel: int
    cost_weight: float
    budget_usd: float | None

    def __post_init__(self) -> None:
        if self.max_turns < 0:
            msg = f"max_turns is {self.max_turns!r}; it must be 0 (never ask) or more"
            raise ValueError(msg)
        if self.max_parallel < 1:
            msg = f"max_parallel is {self.max_parallel!r}; it must be 1 or more"
            raise ValueError(msg)
        if not 0 <= self.cost_weight <= 1:
            msg = f"cost_weight is {self.cost_weight!r}; it must lie between 0 (quality only) and 1 (cost only)"
            raise ValueError(msg)
        if self.budget_usd is not None and not 0 <= self.budget_usd < float("inf"):
            msg = f"budget_usd is {self.budget_usd!r}; it must be 0 or more dollars, or None for no budget"
            raise ValueError(msg)

    def with_context(self, context: Any) -> _Limits:
        # Inside a larger graph the context is the parent's, of whatever type.
        if not isinstance(context, RouterContext):
            return self
        given = {field.name: getattr(context, field.name) for field in fields(self)}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def as_state(self) -> RunLimits:
        return cast("RunLimits", asdict(self))


@dataclass
class _Turn:
    """What `think` found out before it samples."""

    limits: _Limits
    fresh: bool
    """Whether this is the first turn of a run."""
    added: list[Segment]
    """Segments put in before the turn: the prompt, or what the calls brought back."""
    transcript: list[Segment]
    """The whole of it, `added` included."""
    routing: bool
    max_tokens: int


class _TokenCount:
    """Counts tokens with the router's tokenizer once it is known to be there, and estimates them until then.

    A reply that was paid for must neither be lost to a tokenizer that a dead server should have sent, nor wait for it.
    """

    def __init__(self, engine: RouterEngine) -> None:
        self._engine = engine
        self.exact = False

    def __call__(self, text: str) -> int:
        return self._engine.count_tokens(text) if self.exact else -(-len(text) // CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class _Machine:
    """The three nodes, each in a blocking and an asynchronous form around the same pure halves."""

    engine: RouterEngine
    registry: ModelRegistry
    candidates: Candidates
    count: _TokenCount
    fallback: Fallback | None
    prompt: RouterPrompt
    limits: _Limits
    max_tokens: int
    max_info_tokens: int
    router_price: Price
    checkpointed: bool

    # think

    def think(self, state: RouterState) -> Next:
        if _is_degraded(state):
            return self._after_reply(state)
        try:
            return self._think(state)
        except EngineError as error:
            if self.fallback is None:
                error.routing = self._account(self._begun(state)[1] if _is_fresh(state) else state)
                raise
            return self._degrade(state, error, self._rank(self.fallback, state))

    async def athink(self, state: RouterState) -> Next:
        if _is_degraded(state):
            return self._after_reply(state)
        try:
            return await self._athink(state)
        except EngineError as error:
            if self.fallback is None:
                error.routing = self._account(self._begun(state)[1] if _is_fresh(state) else state)
                raise
            # It embeds the question, and may load what it does that with.
            ranking = await asyncio.to_thread(self._rank, self.fallback, state)
            return self._degrade(state, error, ranking)

    def _think(self, state: RouterState) -> Next:
        turn = self._prepare(state)
        if turn.max_tokens < 1:
            return self._finish(state, turn, "budget_exhausted")
        try:
            generation = self.engine.generate(turn.transcript, stop=_stop(turn.routing), max_tokens=turn.max_tokens)
        except ContextFullError:
            return self._finish(state, turn, "context_full")
        return self._decide(state, turn, generation)

    async def _athink(self, state: RouterState) -> Next:
        await self.engine.aload()
        turn = self._prepare(state)
        if turn.max_tokens < 1:
            return self._finish(state, turn, "budget_exhausted")
        try:
            generation = await self.engine.agenerate(
                turn.transcript, stop=_stop(turn.routing), max_tokens=turn.max_tokens
            )
        except ContextFullError:
            return self._finish(state, turn, "context_full")
        return self._decide(state, turn, generation)

    def _prepare(self, state: RouterState) -> _Turn:
        limits = self._run_limits(state)
        fresh = _is_fresh(state)
        spent = self._spent(state)
        added: list[Segment] = []
        if fresh:
            chat = self.prompt.render(
                state["messages"],
                self.registry,
                cost_weight=limits.cost_weight,
                max_turns=limits.max_turns,
                control_tokens=self.engine.control_tokens,
            )
            added.append(self.engine.begin(chat))
            routing = limits.max_turns > 0 and self._can_ask(limits, spent, added)
            if not routing:
                added.append(info_segment(self.engine, self._quote([], routing=False)))
            transcript = added
        else:
            transcript = state["transcript"]
            routing = (
                not state.get("routing_off", False)
                and state.get("turn", 0) < limits.max_turns
                and self._can_ask(limits, spent, transcript)
            )
            if transcript[-1]["kind"] == "model":
                hops = sorted(
                    (hop for hop in state.get("hops", []) if hop["turn"] == state.get("turn", 0) - 1),
                    key=lambda hop: hop["index"],
                )
                added.append(info_segment(self.engine, self._quote(hops, routing=routing)))
            transcript = [*transcript, *added]
        return _Turn(limits, fresh, added, transcript, routing, self._affordable_tokens(limits, spent, transcript))

    def _decide(self, state: RouterState, turn: _Turn, generation: Generation) -> Next:
        self.count.exact = True  # no turn is sampled without the tokenizer
        segment = generation.segment
        done = 0 if turn.fresh else state.get("turn", 0)
        update = self._grow(state, turn, [segment])
        update["router_usage"] = Overwrite([generation.usage]) if turn.fresh else [generation.usage]
        event: ThinkEvent = {"type": "router_r1.think", "turn": done, "text": segment["text"]}
        get_stream_writer()(event)

        action = protocol.parse(segment["text"], self.registry.aliases, routing=turn.routing)
        match action:
            case protocol.Answer(text):
                update |= {"answer": text, "stop_reason": "answered" if turn.routing else "forced_answer"}
                return Command(update=update, goto="answer")
            case protocol.Route(calls):
                spent = self._spent(state) + cost(generation.usage, self.router_price)
                planned = self._plan(calls, done, turn.limits, spent, [*turn.transcript, segment])
                return self._route_to(planned, {**update, "turn": done + 1})
            case protocol.Invalid(reason):
                if not turn.routing:
                    return self._finish(state, turn, "no_answer", update, segment["text"])
                corrections = 0 if turn.fresh else state.get("corrections", 0)
                if generation.finish == "length":
                    reason = f"it was cut off after {generation.usage['completion_tokens']} tokens"
                spent = self._spent(state) + cost(generation.usage, self.router_price)
                routing_on = corrections < MAX_CORRECTIONS and self._can_ask(
                    turn.limits, spent, [*turn.transcript, segment]
                )
                words = self._harmless(_correction(reason, routing=routing_on))
                correction = info_segment(self.engine, protocol.quote(words))
                update["transcript"] = self._grow(state, turn, [segment, correction])["transcript"]
                update |= {"corrections": corrections + 1, "routing_off": not routing_on}
                return Command(update=update, goto="think")

    def _plan(
        self, calls: Sequence[protocol.Call], turn: int, limits: _Limits, spent: float, transcript: list[Segment]
    ) -> list[PlannedCall]:
        """Return the calls of a turn, those that must not be made marked so."""
        payloads: list[PlannedCall] = []
        for index, call in enumerate(calls):
            refusal: Refusal | None = None
            model = self.registry.by_alias(call.model).name if call.known else call.model[:MAX_UNKNOWN_NAME]
            if not call.known:
                refusal = {"status": "unknown_model", "reason": self.registry.explain_unknown(model)}
            elif index >= limits.max_parallel:
                refusal = {"status": "denied", "reason": f"at most {limits.max_parallel} models can be asked a turn"}
            payloads.append(_call(turn, index, model, call.query, refusal))
        askable = [payload for payload in payloads if payload["refusal"] is None]
        left = self._left_for_calls(limits, spent, self._prompt_tokens(transcript))
        if left is not None:
            worst_cases = [self.candidates.worst_case(payload["model"], payload["query"]) for payload in askable]
            for payload, worst, fits in zip(askable, worst_cases, affordable(worst_cases, left), strict=True):
                if not fits:
                    may_cost = f"may cost ${worst:.2g}" if math.isfinite(worst) else "has no upper bound of its cost"
                    reason = f"the call {may_cost} and ${max(left, 0.0):.2g} of the budget is left"
                    payload["refusal"] = {"status": "over_budget", "reason": reason}
        return payloads

    def _route_to(self, calls: Sequence[PlannedCall], update: dict[str, Any]) -> Next:
        """Send the calls out, and keep in the state what they may cost, should the run break off meanwhile."""
        worst = [self.candidates.worst_case(call["model"], call["query"]) for call in calls if call["refusal"] is None]
        update["in_flight_usd"] = add_bounds(*(usd if math.isfinite(usd) else None for usd in worst))
        return Command(update=update, goto=[Send("route", call) for call in calls])

    def _quote(self, hops: Sequence[RoutedCall], *, routing: bool) -> str:
        """Return what the calls of a turn brought back as one block, in call order, cut to `max_info_tokens`."""
        denied = [hop for hop in hops if hop["status"] == "denied"]
        lines = []
        for hop in hops:
            if hop["status"] == "denied":
                continue
            said = _said(hop) if hop["status"] == "ok" else f"No reply: {_sentence(self._reason(hop))}"
            lines.append(self._harmless(said if len(hops) == 1 else f"{self._called(hop)}: {said}"))
        lines = self._share_out(lines, self.max_info_tokens)
        if denied:
            lines.append(f"{len(denied)} more not asked: {denied[0]['reason']}.")
        if not routing:
            lines.append("No model can be asked any more. Answer now.")
        return protocol.quote("\n".join(lines))

    def _reason(self, hop: RoutedCall) -> str:
        """Return why there is no reply; the account tells of models by name, and the router knows aliases only."""
        name, reason = hop["answered_by"] or hop["model"], str(hop["reason"])
        if hop["status"] == "error" and name in self.registry and reason.startswith(f"{name} "):
            return self.registry[name].called + reason.removeprefix(name)
        return reason

    def _called(self, hop: RoutedCall) -> str:
        """Return what the router calls the model of a hop, or what it called one that there is not."""
        unknown = hop["status"] == "unknown_model" or hop["model"] not in self.registry
        return hop["model"] if unknown else self.registry[hop["model"]].called

    def _share_out(self, lines: list[str], tokens: int) -> list[str]:
        """Return the lines cut to so many tokens together: what short ones leave goes to long ones."""
        cut = list(lines)
        lengths = [self.engine.count_tokens(line) for line in lines]
        for place, index in enumerate(sorted(range(len(lines)), key=lengths.__getitem__)):
            share = tokens // (len(lines) - place)
            if lengths[index] > share:
                cut[index] = self.engine.truncate(lines[index], share)
            tokens -= min(lengths[index], share)
        return cut

    def _harmless(self, text: str) -> str:
        return protocol.sanitize(text, self.engine.control_tokens)

    # think, without the router LLM

    def _rank(self, fallback: Fallback, state: RouterState) -> list[str]:
        """Return the pool in the order in which to ask it; from the cheapest on when the fallback fails too."""
        names: list[str] = []
        try:
            ranking = fallback.rank(_whole_question(state), cost_weight=self._run_limits(state).cost_weight)
            names = [self.registry[name].name for name in ranking if name in self.registry]
        except Exception as error:  # noqa: BLE001 - whatever it is, the question is not lost
            # Its own words may hold a key.
            logger.warning("the fallback failed (%s): the cheapest models are asked", type(error).__name__)
        by_price = sorted(self.registry, key=lambda model: model.price.prompt + model.price.completion)
        return list(dict.fromkeys(names)) or [model.name for model in by_price]

    def _degrade(self, state: RouterState, error: EngineError, ranking: Sequence[str]) -> Next:
        """Go on without the router LLM. The transcript stays as it was before the turn that failed."""
        logger.warning("the router LLM does not answer, and the fallback takes its place: %s", error)
        update: dict[str, Any] = {}
        if _is_fresh(state):
            update, state = self._begun(state)
        order = self._within_budget(state, ranking)[:MAX_FALLBACK_CALLS]
        asks = f"the fallback asks {', then '.join(order)}" if order else "the budget pays for no call without it"
        event: ThinkEvent = {
            "type": "router_r1.think",
            "turn": state["turn"],
            "text": f"<think> The router LLM does not answer: {asks}. </think>",
        }
        get_stream_writer()(event)
        return self._ask_next(state, order, update)

    def _after_reply(self, state: RouterState) -> Next:
        order = [] if state["hops"][-1]["status"] == "ok" else state["fallback"] or []
        return self._ask_next(state, order, {})

    def _ask_next(self, state: RouterState, order: Sequence[str], update: dict[str, Any]) -> Next:
        """Ask the first of these models that the budget pays for; end with the last good reply when there is none."""
        order = self._within_budget(state, order)
        if not order:
            replies = [hop["response"] for hop in state["hops"] if hop["status"] == "ok"]
            answer = replies[-1] if replies else ""
            return Command(update={**update, "answer": answer, "stop_reason": "degraded"}, goto="answer")
        turn = state["turn"]
        call = _call(turn, 0, order[0], _whole_question(state))
        return self._route_to([call], {**update, "fallback": order[1:], "turn": turn + 1})

    def _within_budget(self, state: RouterState, names: Sequence[str]) -> list[str]:
        """Return those of the models that the budget pays for: all of it, as the router LLM writes no more."""
        budget = self._run_limits(state).budget_usd
        if budget is None:
            return list(names)
        left, query = budget - self._spent(state), _whole_question(state)
        return [name for name in names if self.candidates.worst_case(name, query) <= left]

    # route

    def route(self, call: PlannedCall) -> dict[str, list[RoutedCall]]:
        announce_call(call)
        again = self.checkpointed and call["refusal"] is None and intents.begin(call)
        hop = self.candidates.ask(call, again=again)
        announce_hop(hop)
        return {"hops": [hop]}

    async def aroute(self, call: PlannedCall) -> dict[str, list[RoutedCall]]:
        announce_call(call)
        again = self.checkpointed and call["refusal"] is None and await intents.abegin(call)
        hop = await self.candidates.aask(call, again=again)
        announce_hop(hop)
        return {"hops": [hop]}

    # answer

    def answer(self, state: RouterState) -> dict[str, Any]:
        answer = state.get("answer", "")
        routing = self._account({**state, "stop_reason": state.get("stop_reason") or "no_answer"})
        event: DoneEvent = {"type": "router_r1.done", "answer": answer, "routing": routing}
        get_stream_writer()(event)
        message = AIMessage(answer, response_metadata={"stop_reason": routing["stop_reason"]})
        # Without the mark of an open run, the same question asked again is a new run.
        return {"messages": [message], "answer": answer, "routing": routing, "question_id": None}

    async def aanswer(self, state: RouterState) -> dict[str, Any]:
        return self.answer(state)

    def _account(self, state: RouterState) -> RunReport:
        return account(
            state.get("hops", []),
            turns=state.get("turn", 0),
            router_tokens=add_usage(state.get("router_usage", [])),
            router_price=self.router_price,
            stop_reason=state.get("stop_reason"),
            earlier=state.get("earlier"),
            before=state.get("before"),
        )

    def _begun(self, state: RouterState) -> tuple[dict[str, Any], RouterState]:
        """Return the update that begins a run without a turn of the router LLM, and the state with it."""
        update = {**self._new_run(state), "transcript": Overwrite([])}
        cleared: dict[str, Any] = {"hops": [], "router_usage": []}
        return update, cast("RouterState", {"messages": state["messages"], **update, **cleared})

    # shared by the halves of think

    def _grow(self, state: RouterState, turn: _Turn, segments: list[Segment]) -> dict[str, Any]:
        """Return the state update that appends segments; the first of a run also clears what an earlier run left."""
        grown = [*turn.added, *segments]
        if not turn.fresh:
            return {"transcript": grown}
        return {**self._new_run(state), "transcript": Overwrite(grown)}

    def _new_run(self, state: RouterState) -> dict[str, Any]:
        """Return the update that begins a run: limits settled, what was spent before carried over, the rest cleared."""
        left = self._left_behind(state)
        if state.get("question_id") == _question(state).id:  # the same question, sent again after it broke off
            earlier, before = left, state.get("before")
        else:
            earlier, before = None, add_spending(state.get("before"), left)
        return {
            "question_id": _question(state).id,
            "limits": self._run_limits(state).as_state(),
            "hops": Overwrite([]),
            "router_usage": Overwrite([]),
            "turn": 0,
            "corrections": 0,
            "routing_off": False,
            "fallback": None,
            "in_flight_usd": 0.0,
            "earlier": add_spending(earlier),
            "before": add_spending(before),
            "stop_reason": None,
            "answer": "",
            "routing": account(
                [],
                turns=0,
                router_tokens=add_usage([]),
                router_price=FREE,
                stop_reason=None,
                earlier=earlier,
                before=before,
            ),
        }

    def _left_behind(self, state: RouterState) -> Spending:
        """Return what the run spent that the state holds, with what its calls in flight may have cost."""
        spent = self._account(state)
        in_flight = state.get("in_flight_usd", 0.0) if not _has_ended(state) and _calls_are_missing(state) else 0.0
        return spending(spent["cost_usd"], add_bounds(spent["maybe_cost_usd"], in_flight))

    def _run_limits(self, state: RouterState) -> _Limits:
        """Return what the run is held to: as it was built or, once it runs, as it began; a context has precedence."""
        begun = state.get("limits")
        limits = self.limits if begun is None or _is_fresh(state) else _Limits(**begun)
        return limits.with_context(get_runtime().context)

    def _finish(
        self,
        state: RouterState,
        turn: _Turn,
        stop_reason: StopReason,
        update: dict[str, Any] | None = None,
        text: str = "",
    ) -> Next:
        """End without an answer tag: with the best text there is."""
        update = self._grow(state, turn, []) if update is None else update
        replies = [] if turn.fresh else [hop["response"] for hop in state["hops"] if hop["status"] == "ok"]
        best = protocol.best_effort_answer(text) or (replies[-1] if replies else "")
        return Command(update={**update, "answer": best, "stop_reason": stop_reason}, goto="answer")

    def _spent(self, state: RouterState) -> float:
        """Return the dollars that count against the budget so far: spent for sure, and possibly billed."""
        if _is_fresh(state):
            again = state.get("question_id") == _question(state).id
            spent = self._left_behind(state) if again else spending(0.0, 0.0)
        else:
            routing = self._account(state)
            spent = spending(routing["cost_usd"], routing["maybe_cost_usd"])
        maybe = spent["maybe_cost_usd"]
        return spent["cost_usd"] + (math.inf if maybe is None else maybe)

    def _affordable_tokens(self, limits: _Limits, spent: float, transcript: list[Segment]) -> int:
        """Return how many tokens the router may sample: fewer than its limit when the budget pays for fewer."""
        if limits.budget_usd is None or self.router_price == FREE:
            return self.max_tokens
        left = limits.budget_usd - spent - worst_case(self._prompt_tokens(transcript), 0, self.router_price)
        if left < 0:
            return 0
        if self.router_price.completion == 0:
            return self.max_tokens
        return min(self.max_tokens, int(left / (self.router_price.completion * PER_MILLION)))

    def _left_for_calls(self, limits: _Limits, spent: float, prompt_tokens: int) -> float | None:
        """Return the dollars that calls may cost after a prompt of this length, None for no limit.

        What the router needs to say something with what they bring back is kept aside.
        """
        if limits.budget_usd is None:
            return None
        prompt_tokens += self.max_info_tokens + QUOTE_OVERHEAD_TOKENS
        return limits.budget_usd - spent - worst_case(prompt_tokens, self.max_tokens, self.router_price)

    def _can_ask(self, limits: _Limits, spent: float, transcript: list[Segment]) -> bool:
        """Return whether the budget pays for a turn, the shortest question to the cheapest model, and the answer."""
        prompt_tokens = self._prompt_tokens(transcript)
        spent += worst_case(prompt_tokens, self.max_tokens, self.router_price)
        left = self._left_for_calls(limits, spent, prompt_tokens + self.max_tokens)
        return left is None or self.candidates.least_worst_case() <= left

    def _prompt_tokens(self, transcript: list[Segment]) -> int:
        # Engines without token ids count characters: a token has at least one.
        return len(token_ids(transcript)) or sum(len(segment["text"].encode()) for segment in transcript)


def announce_call(call: PlannedCall) -> None:
    """Stream that a call is about to be made."""
    event: RouteEvent = {
        "type": "router_r1.route",
        "turn": call["turn"],
        "index": call["index"],
        "model": call["model"],
        "query": call["query"],
    }
    get_stream_writer()(event)


def announce_hop(hop: RoutedCall) -> None:
    """Stream what came of a call."""
    event: InfoEvent = {
        "type": "router_r1.info",
        "turn": hop["turn"],
        "index": hop["index"],
        "model": hop["model"],
        "answered_by": hop["answered_by"],
        "status": hop["status"],
        "reason": hop["reason"],
        "response": hop["response"],
        "cost_usd": hop["cost_usd"],
        "latency_s": hop["latency_s"],
    }
    get_stream_writer()(event)


def build_router(
    engine: RouterEngine,
    registry: ModelRegistry,
    *,
    max_turns: int = 4,
    max_parallel: int = 4,
    cost_weight: float = 0.0,
    budget_usd: float | None = None,
    prompt: RouterPrompt | None = None,
    max_tokens: int = 1024,
    max_info_tokens: int = 600,
    router_price: PriceLike = "free",
    fallback: Fallback | Literal["pilot"] | None = None,
    checkpointed: bool = True,
) -> StateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    """Return the graph, not compiled, for those who add to it.

    Args:
        engine: Where the router's tokens come from.
        registry: The models it may ask.
        max_turns: Most turns in which it may ask; then it must answer.
        max_parallel: Most models it may ask in one turn.
        cost_weight: How much money counts against quality, 0 to 1 (α in the paper); written into the prompt.
        budget_usd: The most a run may spend, in dollars; None for no limit.
        prompt: The template that states the task to the router.
        max_tokens: Most tokens the router writes in a turn.
        max_info_tokens: Most tokens of what comes back to it after a turn.
        router_price: Price of the router's own tokens, in any form that `Price.parse` reads.
        fallback: Chooses models when the router LLM does not answer: "pilot", for a `Pilot` on the registry's
            profile, or anything with its `rank`. The models are then asked the whole question in that order, at most
            three, until one replies; the run ends `degraded`. Should the fallback fail too, the cheapest are asked.
            None: such a run ends with the engine's `EngineError`. A pilot's first ranking loads its embeddings, which
            takes seconds; call `rank` once to have that behind you.
        checkpointed: Whether checkpoints of the graph are stored whenever it has a checkpointer. False only for a graph
            that is compiled with `checkpointer=False` and embedded in a graph that has one: then no call is noted.

    Raises:
        ValueError: A setting is out of its range, or the registry is empty or lacks the profile that a pilot needs.
        ModuleNotFoundError: The pilot's `[eval]` extra is not installed.
    """
    if not len(registry):
        msg = "the registry is empty: a router needs at least one model to ask"
        raise ValueError(msg)
    if max_tokens < 1 or max_info_tokens < 1:
        msg = f"max_tokens is {max_tokens!r} and max_info_tokens {max_info_tokens!r}; both must be 1 or more"
        raise ValueError(msg)
    count = _TokenCount(engine)
    machine = _Machine(
        engine=engine,
        registry=registry,
        candidates=Candidates(registry, count),
        count=count,
        fallback=_as_fallback(fallback, registry),
        prompt=prompt or RouterPrompt(),
        limits=_Limits(max_turns, max_parallel, cost_weight, budget_usd),
        max_tokens=max_tokens,
        max_info_tokens=max_info_tokens,
        router_price=Price.parse(router_price),
        checkpointed=checkpointed,
    )
    graph = StateGraph(RouterState, context_schema=RouterContext, input_schema=RouterInput, output_schema=RouterOutput)
    graph.add_node("think", Node(machine.think, machine.athink), destinations=("route", "think", "answer"))
    graph.add_node("route", Node(machine.route, machine.aroute), input_schema=PlannedCall)
    graph.add_node("answer", Node(machine.answer, machine.aanswer))
    graph.add_edge(START, "think")
    graph.add_edge("route", "think")
    graph.add_edge("answer", END)
    return graph


def create_router(
    engine: RouterEngine,
    registry: ModelRegistry,
    *,
    max_turns: int = 4,
    max_parallel: int = 4,
    cost_weight: float = 0.0,
    budget_usd: float | None = None,
    prompt: RouterPrompt | None = None,
    max_tokens: int = 1024,
    max_info_tokens: int = 600,
    router_price: PriceLike = "free",
    fallback: Fallback | Literal["pilot"] | None = None,
    checkpointer: Checkpointer = None,
    store: BaseStore | None = None,
    interrupt_before: All | list[str] | None = None,
    interrupt_after: All | list[str] | None = None,
    debug: bool = False,
    name: str = "router_r1",
) -> CompiledStateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    """Return the router, compiled: a Runnable from `{"messages": [...]}` to messages, answer and routing.

    Settings up to `fallback` are those of `build_router`; the others those of `StateGraph.compile`.

    Example:
        >>> from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
        >>> from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
        >>> engine = ScriptedEngine(["<think> ask </think><search> small: Capital of Peru? </search>",
        ...                          "<think> good </think><answer> Lima </answer>"])
        >>> small = ModelDescriptor(name="small", model=ScriptedChatModel(["Lima."]), price=1.0)
        >>> result = create_router(engine, ModelRegistry([small])).invoke({"messages": [("user", "Capital of Peru?")]})
        >>> result["answer"], result["routing"]["turns"], f"{result['routing']['cost_usd']:.6f}"
        ('Lima', 1, '0.000011')
    """
    graph = build_router(
        engine,
        registry,
        max_turns=max_turns,
        max_parallel=max_parallel,
        cost_weight=cost_weight,
        budget_usd=budget_usd,
        prompt=prompt,
        max_tokens=max_tokens,
        max_info_tokens=max_info_tokens,
        router_price=router_price,
        fallback=fallback,
        checkpointed=checkpointer is not False,
    )
    return graph.compile(
        checkpointer=checkpointer,
        store=store,
        interrupt_before=interrupt_before,
        interrupt_after=interrupt_after,
        debug=debug,
        name=name,
    )


class Node(Runnable[Any, Any]):
    """A node with a blocking and an asynchronous body, and nothing around them.

    `RunnableLambda` would trace each node a second time and read its signature on every call.
    """

    def __init__(self, body: Callable[[Any], Any], abody: Callable[[Any], Awaitable[Any]]) -> None:
        self._body, self._abody = body, abody

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._body(input)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._abody(input)


def _as_fallback(fallback: Fallback | str | None, registry: ModelRegistry) -> Fallback | None:
    if fallback is None or isinstance(fallback, Fallback):
        return fallback
    if fallback != "pilot":
        msg = f"fallback is {fallback!r}; it must be 'pilot', have a method rank(question, *, cost_weight), or be None"
        raise ValueError(msg)
    if registry.profile is None:
        msg = (
            "fallback is 'pilot' and the registry has no profile: run 'router-r1 profile', which writes one beside the "
            "registry's file, or give the registry the path of one as profile="
        )
        raise ValueError(msg)
    try:
        from langgraph_router_r1.pilot import Pilot
    except ModuleNotFoundError:
        msg = "fallback='pilot' needs the [eval] extra: pip install 'langgraph-router-r1[eval]'"
        raise ModuleNotFoundError(msg) from None
    return Pilot.from_profile(registry.profile, registry)


def _question(state: RouterState) -> AnyMessage:
    return state["messages"][last_question(state["messages"])]


def _whole_question(state: RouterState) -> str:
    """Return what a model is asked when no router LLM divides the question."""
    return protocol.sanitize(_question(state).text).strip()


def _is_fresh(state: RouterState) -> bool:
    """Return whether a run starts here: with another question, or with one that broke off while models were asked."""
    # Whoever sends a question again, instead of resuming, drops the calls in flight.
    return state.get("question_id") != _question(state).id or _calls_are_missing(state)


def _is_degraded(state: RouterState) -> bool:
    return state.get("fallback") is not None and not _is_fresh(state)


def _calls_are_missing(state: RouterState) -> bool:
    """Return whether the calls of the latest route turn have left no hop in the state."""
    last = state.get("turn", 0) - 1
    return last >= 0 and not any(hop["turn"] == last for hop in state.get("hops", []))


def _has_ended(state: RouterState) -> bool:
    """Return whether the run that the state holds, if any, came to its end."""
    return state.get("question_id") is None


def _stop(routing: bool) -> list[str]:
    return [protocol.SEARCH_END, protocol.ANSWER_END] if routing else [protocol.ANSWER_END]


def _said(hop: RoutedCall) -> str:
    """Return a reply as the router reads it: one that was cut says so first, where no later cut can lose it."""
    complete = hop["finish_reason"] in {None, "stop"}
    return hop["response"] if complete else f"(This reply was cut off.) {hop['response']}"


def _call(turn: int, index: int, model: str, query: str, refusal: Refusal | None = None) -> PlannedCall:
    call_id = uuid.uuid4().hex
    return {"id": call_id, "turn": turn, "index": index, "model": model, "query": query, "refusal": refusal}


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _correction(reason: str, *, routing: bool) -> str:
    how = (
        "Write either a search (name: question) or an answer, in its tags."
        if routing
        else "Answer now, in answer tags."
    )
    return f"That turn could not be read: {reason}. {how}"
