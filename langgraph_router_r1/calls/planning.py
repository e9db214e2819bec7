"""From the calls that a strategy decided to those that are made: names, limits and the budget are checked here."""

from __future__ import annotations

from collections.abc import Sequence

from langgraph_router_r1.accounting import refuse_expensive
from langgraph_router_r1.calls.candidates import Candidates
from langgraph_router_r1.ledger import cost
from langgraph_router_r1.protocol import Call, fold
from langgraph_router_r1.state import PendingCalls, PlannedCall, Refusal, planned_call
from langgraph_router_r1.strategies.base import Ask, Strategy, View

MAX_UNKNOWN_NAME = 60
"""Characters kept of a name that is not registered: the router may have written a whole paragraph before a colon."""


def pending_calls(decision: Ask, view: View, candidates: Candidates, strategy: Strategy) -> PendingCalls:
    """Return the calls of a turn, those that must not be made marked so, and what they may cost.

    Args:
        decision: Which models are asked what.
        view: The run before it.
        candidates: The models.
        strategy: Who decided.

    Raises:
        ValueError: There are none.
    """
    if not decision.calls:
        msg = f"{type(strategy).__name__} decided to ask, and names no model"
        raise ValueError(msg)
    calls = [_planned(call, index, view, candidates, forms=decision.forms) for index, call in enumerate(decision.calls)]
    # A reply with tool calls is a message of its own, and none of it is streamed.
    if decision.relay and view.stream is not None and view.tools is None:
        calls[0]["relay_id"] = view.stream.message_id
    if view.limits.budget_usd is None:
        return {"calls": calls, "left_usd": None, "needs_approval": []}
    spent = view.spent_usd + (cost(decision.usage, strategy.price) if decision.usage else 0.0)
    left = view.limits.budget_usd - spent - decision.keep_usd
    refuse_expensive(calls, worst_cases(calls, candidates), left)
    return {"calls": calls, "left_usd": left, "needs_approval": []}


def worst_cases(calls: Sequence[PlannedCall], candidates: Candidates) -> list[float]:
    """Return the most that each call can cost, in dollars; 0 for one that is not made."""
    return [0.0 if call["refusal"] else candidates.worst_case_of(call) for call in calls]


def _planned(call: Call, index: int, view: View, candidates: Candidates, *, forms: bool) -> PlannedCall:
    registry, most = view.registry, view.limits.max_parallel
    refusal: Refusal | None = None
    known = call.known and call.model in registry
    model = registry[call.model].name if known else call.model[:MAX_UNKNOWN_NAME]
    if not known:
        refusal = {"status": "unknown_model", "reason": _why_not(call, model, view, candidates)}
    elif index >= most:
        refusal = {"status": "denied", "reason": f"at most {most} models can be asked a turn"}
    planned = planned_call(view.turn, index, model, call.query, refusal)
    if refusal is not None:
        return planned
    if view.tools is not None and (forms or not view.tools["is_form"]):
        planned["tools"], planned["context"] = view.tools, list(view.messages)
    elif context := candidates.context_of(model, view.messages):
        planned["context"] = context
    return planned


def _why_not(call: Call, model: str, view: View, candidates: Candidates) -> str:
    """Return why a call names no model that can be asked, in the names that the router knows."""
    everyone = candidates.registry
    names = everyone.names if call.known else everyone.aliases
    if fold(model) not in map(fold, names):
        return view.offered.explain_unknown(model)
    reading = ", ".join(map(repr, view.registry.aliases))
    return f"{model!r} can't see images, and the question comes with one; those that can: {reading}"
