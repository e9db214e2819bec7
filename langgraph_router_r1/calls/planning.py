"""From the calls that a strategy decided to those that are made: names, limits and the budget are checked here."""

from __future__ import annotations

from collections.abc import Sequence

from langgraph_router_r1.accounting import refuse_expensive
from langgraph_router_r1.calls.candidates import Candidates
from langgraph_router_r1.protocol import Call
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.state import PlannedCall, Refusal, planned_call

MAX_UNKNOWN_NAME = 60
"""Characters kept of a name that is not registered: the router may have written a whole paragraph before a colon."""


def plan_calls(
    calls: Sequence[Call], candidates: Candidates, *, turn: int, limits: Limits, left_usd: float | None
) -> list[PlannedCall]:
    """Return the calls of a turn, those that must not be made marked so.

    Args:
        calls: As they were decided, in order.
        candidates: The models.
        turn: Which route turn it is.
        limits: What the run is held to.
        left_usd: Dollars that the calls may cost together; None for no limit.
    """
    registry, planned = candidates.registry, list[PlannedCall]()
    for index, call in enumerate(calls):
        refusal: Refusal | None = None
        known = call.known and call.model in registry
        model = registry[call.model].name if known else call.model[:MAX_UNKNOWN_NAME]
        if not known:
            refusal = {"status": "unknown_model", "reason": registry.explain_unknown(model)}
        elif index >= limits.max_parallel:
            refusal = {"status": "denied", "reason": f"at most {limits.max_parallel} models can be asked a turn"}
        planned.append(planned_call(turn, index, model, call.query, refusal))
    if left_usd is not None:
        refuse_expensive(planned, worst_cases(planned, candidates), left_usd)
    return planned


def worst_cases(calls: Sequence[PlannedCall], candidates: Candidates) -> list[float]:
    """Return the most that each call can cost, in dollars; 0 for one that is not made."""
    return [0.0 if call["refusal"] else candidates.worst_case(call["model"], call["query"]) for call in calls]
