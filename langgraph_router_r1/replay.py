"""A recorded run once more: the same graph, with decisions and replies from the record and without any model.

    record = RunRecord.model_validate_json(Path("run.json").read_text())
    router = replay(record)
    for event in router.stream({"messages": [("user", record.question)]}, stream_mode="custom"):
        ...

The account of the replayed run is that of the record; nothing is paid again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AnyMessage
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import override

from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.events import AnswerStream
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.machine import RouterMachine
from langgraph_router_r1.protocol import sanitize
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.state import PlannedCall, RoutedCall, RouterContext, RouterInput, RouterOutput, RouterState
from langgraph_router_r1.strategies import Again, Answer, Ask, Call, Decision, Propose, Strategy, View


class ReplayError(ValueError):
    """A record does not say what came next: it is of a run that broke off, or was changed."""


def replay(record: RunRecord) -> CompiledStateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    """Return a router that does what the record says: the same transcript, calls, costs and answer.

    Raises:
        ReplayError: Only when it runs: it is given another question, or comes to the end of a run that broke off.
    """
    # Refusals are part of the record: limits must not make others.
    most = max((len(decision["calls"]) for decision in record.decisions), default=1)
    limits = Limits(
        max_turns=max(record.limits["max_turns"], record.report["turns"]),
        max_parallel=max(record.limits["max_parallel"], most),
        cost_weight=record.limits["cost_weight"],
    )
    machine = RouterMachine(
        strategy=RecordedStrategy(record), candidates=_RecordedCalls(record), limits=limits, checkpointed=False
    )
    return machine.graph().compile(name="replay")


@dataclass
class RecordedStrategy(Strategy):
    """Decides what the record says."""

    record: RunRecord

    def __post_init__(self) -> None:
        self.price = Price.parse(self.record.strategy["price"])

    @override
    def decide(self, view: View) -> Decision:
        decided = view.decided
        if view.question != sanitize(self.record.question).strip():  # which is how a strategy sees it
            raise ReplayError(f"the record is of the question {self.record.question!r}, and not of {view.question!r}")
        if decided >= len(self.record.decisions):
            raise ReplayError(f"the record has {decided} decisions, and no answer after them: its run broke off")
        note = self.record.decisions[decided]
        first = sum(earlier["segments"] for earlier in self.record.decisions[:decided])
        fields: dict[str, Any] = {
            "thought": note["thought"],
            "segments": self.record.segments[first : first + note["segments"]],
            "usage": note["usage"],
            "notes": note["notes"],
        }
        if note["kind"] == "ask":
            return Ask([Call(**call) for call in note["calls"]], **fields)
        if note["kind"] == "again":
            plan = note.get("plan")
            return Again(**fields) if plan is None else Propose(plan=plan, **fields)
        reason = note["stop_reason"] or "answered"
        return Answer(note["text"], stop_reason=reason, reply=note["reply"], tool_calls=note["tool_calls"], **fields)

    @override
    async def adecide(self, view: View) -> Decision:
        return self.decide(view)


class _RecordedCalls(Candidates):
    """Returns the calls of the record."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__(_registry(record), len)
        self._calls = {(call["turn"], call["index"]): call for call in record.calls}

    @override
    def worst_case(self, name: str, query: str, conversation: Sequence[AnyMessage] = ()) -> float:
        return 0.0

    @override
    def ask(self, call: PlannedCall, *, again: bool = False, stream: AnswerStream | None = None) -> RoutedCall:
        turn, index = call["turn"], call["index"]
        if (turn, index) not in self._calls:
            raise ReplayError(f"the record has no call {index} in turn {turn}: its run broke off")
        return self._calls[turn, index]

    @override
    async def aask(self, call: PlannedCall, *, again: bool = False, stream: AnswerStream | None = None) -> RoutedCall:
        return self.ask(call, again=again)


def _registry(record: RunRecord) -> ModelRegistry:
    """Return the models of the run, at its prices; nothing is asked of them."""
    # Old records have no prices.
    called: dict[str, Any] = {call["model"]: "free" for call in record.calls if call["status"] != "unknown_model"}
    # A registry must not be empty, and a run that only answered has called nobody.
    prices = {**called, **record.prices} or {"nobody": "free"}
    return ModelRegistry(
        ModelDescriptor(name=name, model="openai:replayed", price=price, modalities=("text", "image"))
        for name, price in prices.items()
    )
