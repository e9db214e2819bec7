"""A recorded run with one call made to another model, and the run as it goes on from there.

    router = fork(record, turn=0, model="large", engine=engine, registry=registry)
    other = router.invoke({"messages": [("user", record.question)]}, output_keys=RECORD_KEYS)

What stands before the call, and the other calls of its turn, come from the record and cost nothing. The call itself,
and all that follows, is real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AnyMessage
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer
from typing_extensions import Unpack, override

from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.engines.base import RouterEngine, is_billed
from langgraph_router_r1.events import AnswerStream
from langgraph_router_r1.graph import router_machine
from langgraph_router_r1.ledger import FREE, Price
from langgraph_router_r1.question import count_images, image_digests
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.registry import ModelRegistry, UnknownModelError
from langgraph_router_r1.replay import RecordedStrategy, ReplayError
from langgraph_router_r1.settings import Limits, RouterSettings
from langgraph_router_r1.state import PlannedCall, RoutedCall, RouterContext, RouterInput, RouterOutput, RouterState
from langgraph_router_r1.strategies import Ask, Call, Decision, Strategy, View


class ForkError(ValueError):
    """A run can't be forked there."""


def fork(
    record: RunRecord,
    *,
    turn: int,
    model: str,
    index: int = 0,
    engine: RouterEngine | None = None,
    registry: ModelRegistry,
    strategy: Strategy | None = None,
    checkpointer: Checkpointer = None,
    **settings: Unpack[RouterSettings],
) -> CompiledStateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    """Return a router that repeats a run up to a call, asks another model there, and goes on by itself.

    It is held to the limits of the run, whatever the settings say of them. A router LLM's own tokens cost what they did
    in the run, unless `router_price` says otherwise; of a chat model that was not the run's router, it must.

    Args:
        record: The run.
        turn: Which route turn the call is of, from 0.
        model: Which model of the registry is asked instead.
        index: The place of the call in its turn, from 0.
        engine: Where the router LLM's tokens come from, from there on.
        registry: The models that may be asked.
        strategy: Who decides from there on instead of a router LLM.
        checkpointer: Keeps the checkpoints of the fork, as with `create_router`.
        **settings: See `RouterSettings`.

    Raises:
        ForkError: The record has no such call, or the call was never made.
        UnknownModelError: The registry has no such model.
        ValueError: `router_price` is missing.
    """
    if model not in registry:
        raise UnknownModelError(registry.explain_unknown(model))
    found = [call for call in record.calls if (call["turn"], call["index"]) == (turn, index)]
    if not found or found[0]["status"] not in {"ok", "error"}:
        made = [f"{call['turn']}.{call['index']}" for call in record.calls if call["status"] in {"ok", "error"}]
        msg = f"the record has no call {turn}.{index} that was made; it has {', '.join(made) or 'none'}"
        raise ForkError(msg)
    paid = Price.parse(record.strategy["price"])
    # A chat model that was not the router of the run, or that cost nothing there, has a price of its own.
    is_known = paid != FREE and engine is not None and record.strategy.get("policy") == engine.model
    if engine is not None and (is_known or not is_billed(engine)):
        settings.setdefault("router_price", paid)
    machine = router_machine(engine, registry, strategy=strategy, **settings)
    asks = [place for place, note in enumerate(record.decisions) if note["kind"] == "ask"]
    forked = replace(
        machine,
        strategy=_Forked(record, machine.strategy, asks[turn], Call(registry[model].name, found[0]["query"]), index),
        candidates=_ForkedCalls(record, machine.candidates, (turn, index)),
        limits=Limits(**record.limits),
    )
    return forked.graph().compile(checkpointer=checkpointer, name="fork")


@dataclass
class _Forked(Strategy):
    """Decides what the record says up to the fork, and then what a live strategy says."""

    record: RunRecord
    live: Strategy
    fork_at: int
    """The decision that the call is of."""
    call: Call
    index: int

    def __post_init__(self) -> None:
        self.price = self.live.price
        self._recorded = RecordedStrategy(self.record)

    @override
    def note(self) -> Any:
        return self.live.note()

    @override
    def count_tokens(self, text: str) -> int:
        return self.live.count_tokens(text)

    @override
    def decide(self, view: View) -> Decision:
        return self._before(view) or self.live.decide(view)

    @override
    async def adecide(self, view: View) -> Decision:
        return self._before(view) or await self.live.adecide(view)

    def _before(self, view: View) -> Decision | None:
        if view.decided > self.fork_at:
            return None
        if image_digests(view.messages) != self.record.images:
            msg = (
                f"the recorded question came with {count_images(self.record.images)}, and this one does not come with "
                "the same: give the fork the question of the run, with its images"
            )
            raise ForkError(msg)
        try:
            decision = self._recorded.decide(view)
        except ReplayError as error:
            raise ForkError(str(error)) from None
        decision = replace(decision, usage=None)  # paid for by the recorded run
        if view.decided == self.fork_at and isinstance(decision, Ask):
            calls = [self.call if place == self.index else call for place, call in enumerate(decision.calls)]
            decision = replace(decision, calls=calls)
        return decision


class _ForkedCalls(Candidates):
    """Makes the forked call and those after it; all others come from the record, at no cost."""

    def __init__(self, record: RunRecord, live: Candidates, fork_at: tuple[int, int]) -> None:
        super().__init__(live.registry, len)
        self._live = live
        before = [call for call in record.calls if call["turn"] <= fork_at[0]]
        self._recorded = {(call["turn"], call["index"]): call for call in before}
        del self._recorded[fork_at]

    @override
    def worst_case(self, name: str, query: str, conversation: Sequence[AnyMessage] = ()) -> float:
        return self._live.worst_case(name, query, conversation)

    @override
    def worst_case_of(self, call: PlannedCall) -> float:
        return 0.0 if self._kept(call) else self._live.worst_case_of(call)

    @override
    def most_billed(self, call: PlannedCall) -> float:
        return 0.0 if self._kept(call) else self._live.most_billed(call)

    @override
    def context_of(self, name: str, conversation: Sequence[AnyMessage]) -> list[AnyMessage]:
        return self._live.context_of(name, conversation)

    @override
    def ask(self, call: PlannedCall, *, again: bool = False, stream: AnswerStream | None = None) -> RoutedCall:
        return self._kept(call) or self._live.ask(call, again=again, stream=stream)

    @override
    async def aask(self, call: PlannedCall, *, again: bool = False, stream: AnswerStream | None = None) -> RoutedCall:
        return self._kept(call) or await self._live.aask(call, again=again, stream=stream)

    def _kept(self, call: PlannedCall) -> RoutedCall | None:
        kept = self._recorded.get((call["turn"], call["index"]))
        return kept and {**kept, "cost_usd": 0.0, "maybe_cost_usd": 0.0, "maybe_billed_twice": False}
