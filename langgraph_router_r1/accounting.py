"""The account of a run: what it cost, what may have been billed beside that, and what was spent before it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from langgraph_router_r1.ledger import (
    FREE,
    NO_COST,
    CostParts,
    Price,
    Usage,
    add_bounds,
    add_cost_parts,
    add_usage,
    affordable,
    cost,
)
from langgraph_router_r1.state import ModelBill, PlannedCall, RoutedCall, RunReport, Spending, StopReason


def account(
    calls: Sequence[RoutedCall],
    *,
    turns: int,
    router_usage: Sequence[Usage],
    router_price: Price,
    stop_reason: StopReason | None,
    earlier: Spending | None = None,
    before: Spending | None = None,
) -> RunReport:
    """Return the account of a run: its calls in call order, and the sums of what they cost.

    Args:
        calls: The routed calls, in any order.
        turns: Route turns so far.
        router_usage: The tokens of the router LLM, turn by turn: a tier of its price is one turn's.
        router_price: Their price.
        stop_reason: Why the run ended; None while it runs.
        earlier: What attempts at the same question spent that broke off.
        before: What was spent on the thread before this question.
    """
    earlier, before = add_spending(earlier), add_spending(before)
    calls = in_call_order(calls)
    by_model: dict[str, ModelBill] = {}

    def bill_of(name: str) -> ModelBill:
        nothing: ModelBill = {"calls": 0, "failed": 0, "cost_usd": 0.0, "prompt_tokens": 0, "completion_tokens": 0}
        return by_model.setdefault(name, nothing)

    for call in calls:
        if call["status"] not in {"ok", "error"}:
            continue
        billed = call["answered_by"] or call["model"]
        for name in call.get("failed", ()):  # in whose place another one was asked
            if name != billed:
                failing = bill_of(name)
                failing["calls"] += 1
                failing["failed"] += 1
        bill = bill_of(billed)
        bill["calls"] += 1
        bill["failed"] += call["status"] != "ok"
        bill["cost_usd"] += call["cost_usd"]
        bill["prompt_tokens"] += call["usage"]["prompt_tokens"]
        bill["completion_tokens"] += call["usage"]["completion_tokens"]
    router_cost = router_cost_usd(router_usage, router_price)
    own: CostParts = {**NO_COST, "router": router_cost}
    spent = total_spent(calls, router_cost, earlier)
    return {
        "turns": turns,
        "calls": calls,
        "cost_usd": spent["cost_usd"],
        "router_cost_usd": router_cost,
        "list_cost_parts": add_cost_parts([*(call["list_cost_parts"] for call in calls), own]),
        "earlier_cost_usd": earlier["cost_usd"],
        "maybe_cost_usd": spent["maybe_cost_usd"],
        "maybe_billed_twice": sum(call["maybe_billed_twice"] for call in calls),
        "thread_cost_usd": before["cost_usd"] + spent["cost_usd"],
        "by_model": by_model,
        "router_tokens": add_usage(router_usage),
        "candidate_tokens": add_usage(call["usage"] for call in calls),
        "stop_reason": stop_reason,
    }


def router_cost_usd(router_usage: Iterable[Usage], router_price: Price) -> float:
    """Return what the router's own tokens cost, in dollars; see `account`."""
    return sum(cost(usage, router_price) for usage in router_usage)


def total_spent(calls: Sequence[RoutedCall], router_cost: float, earlier: Spending) -> Spending:
    """Return what a run has spent, without the rest of its account.

    Args:
        calls: The routed calls, in call order.
        router_cost: What the router's own tokens cost, in dollars.
        earlier: What attempts at the same question spent that broke off.
    """
    return spending(
        sum(call["cost_usd"] for call in calls) + router_cost + earlier["cost_usd"],
        add_bounds(earlier["maybe_cost_usd"], *(call["maybe_cost_usd"] for call in calls)),
    )


def in_call_order(calls: Iterable[RoutedCall]) -> list[RoutedCall]:
    """Return the routed calls by turn, and by place in the turn: those of one turn end in any order."""
    return sorted(calls, key=lambda call: (call["turn"], call["index"]))


def empty_account(earlier: Spending | None, before: Spending | None) -> RunReport:
    """Return the account of a run that begins; see `account`."""
    return account([], turns=0, router_usage=[], router_price=FREE, stop_reason=None, earlier=earlier, before=before)


def refuse_expensive(calls: Sequence[PlannedCall], worst_cases: Sequence[float], left: float) -> None:
    """Refuse the calls that may cost more than so many dollars, what the earlier ones may cost counted in.

    Args:
        calls: The calls of a turn, in order; those that are refused already stay so.
        worst_cases: The most that each can cost, in dollars; infinity when nothing bounds it.
        left: Dollars that they may cost together.
    """
    askable = [(call, worst) for call, worst in zip(calls, worst_cases, strict=True) if call["refusal"] is None]
    fits = affordable([worst for _, worst in askable], left)
    for call, worst in (pair for pair, fit in zip(askable, fits, strict=True) if not fit):
        may_cost = f"may cost ${worst:.2g}" if math.isfinite(worst) else "has no upper bound of its cost"
        reason = f"the call {may_cost} and ${max(left, 0.0):.2g} of the budget is left"
        call["refusal"] = {"status": "over_budget", "reason": reason}


def at_most(spent: Spending) -> float:
    """Return the dollars that count against a budget: spent, and possibly billed (infinity when that has no bound)."""
    maybe = spent["maybe_cost_usd"]
    return spent["cost_usd"] + (math.inf if maybe is None else maybe)


def spending(cost_usd: float, maybe_cost_usd: float | None) -> Spending:
    """Return dollars spent and, beside them, the most that may have been billed (None: no bound is known)."""
    return {"cost_usd": cost_usd, "maybe_cost_usd": maybe_cost_usd}


def add_spending(*spendings: Spending | None) -> Spending:
    """Add up; None is nothing spent.

    Example:
        >>> add_spending(None, spending(0.25, 0.0), spending(0.5, 1.0))
        {'cost_usd': 0.75, 'maybe_cost_usd': 1.0}
    """
    known = [spent for spent in spendings if spent is not None]
    return spending(
        sum(spent["cost_usd"] for spent in known), add_bounds(*(spent["maybe_cost_usd"] for spent in known))
    )


def with_earlier(routing: RunReport, earlier: Spending) -> RunReport:
    """Return the account with what attempts at the same question spent that broke off before this one."""
    return {
        **routing,
        "cost_usd": routing["cost_usd"] + earlier["cost_usd"],
        "earlier_cost_usd": routing["earlier_cost_usd"] + earlier["cost_usd"],
        "maybe_cost_usd": add_bounds(routing["maybe_cost_usd"], earlier["maybe_cost_usd"]),
        "thread_cost_usd": routing["thread_cost_usd"] + earlier["cost_usd"],
    }


def from_cache(routing: RunReport) -> RunReport:
    """Return the account of a run whose answer came from a cache: list prices stay, and nothing was spent."""
    calls: list[RoutedCall] = [
        {
            **call,
            "cost_usd": 0.0,
            "maybe_cost_usd": 0.0,
            "maybe_billed_twice": False,
            "inner": call["inner"] and from_cache(call["inner"]),
        }
        for call in routing["calls"]
    ]
    by_model: dict[str, ModelBill] = {name: {**bill, "cost_usd": 0.0} for name, bill in routing["by_model"].items()}
    return {
        **routing,
        "calls": calls,
        "by_model": by_model,
        "cost_usd": 0.0,
        "router_cost_usd": 0.0,
        "earlier_cost_usd": 0.0,
        "maybe_cost_usd": 0.0,
        "maybe_billed_twice": 0,
        "thread_cost_usd": 0.0,
    }
