"""The arithmetic of an account, on calls made up so that every figure in it is its own."""

from __future__ import annotations

from typing import Any, cast

from langgraph_router_r1.accounting import account, from_cache, spending, with_earlier
from langgraph_router_r1.ledger import NO_COST, NO_USAGE, Price, Tier
from langgraph_router_r1.state import RoutedCall, RunReport

ROUTER_TOKENS: Any = {**NO_USAGE, "prompt_tokens": 1000, "completion_tokens": 100}


def routed(index: int, model: str, status: Any, cost_usd: float, **fields: Any) -> RoutedCall:
    whole = {
        "turn": 0, "index": index, "model": model, "query": "?", "response": "", "status": status, "reason": None,
        "usage": {**NO_USAGE, "prompt_tokens": 10 * index, "completion_tokens": index}, "cost_usd": cost_usd,
        "list_cost_usd": cost_usd, "list_cost_parts": {**NO_COST, "completion": cost_usd}, "latency_s": 0.0,
        "answered_by": None, "finish_reason": None,
        "maybe_cost_usd": 0.0, "maybe_billed_twice": False, "inner": None, **fields,
    }  # fmt: skip
    return cast(RoutedCall, whole)


def made_up() -> RunReport:
    """One refused call, two that failed, one that a fallback answered: in another order than they were made in."""
    routed_calls = [
        routed(3, "a", "error", 0.25, maybe_cost_usd=2.0, maybe_billed_twice=True),
        routed(1, "a", "error", 0.5, maybe_cost_usd=1.0, maybe_billed_twice=True),
        routed(0, "a", "denied", 0.0),
        routed(2, "b", "ok", 8.0, answered_by="c"),
    ]
    return account(
        routed_calls,
        turns=1,
        router_usage=[ROUTER_TOKENS],
        router_price=Price(1000, 0),
        stop_reason="answered",
        earlier=spending(16.0, 32.0),
        before=spending(64.0, 128.0),
    )


def without_calls(routing: RunReport) -> dict[str, Any]:
    return {key: value for key, value in routing.items() if key != "calls"}


ACCOUNT: dict[str, Any] = {
    "turns": 1,
    "cost_usd": 25.75,
    "router_cost_usd": 1.0,
    "list_cost_parts": {**NO_COST, "completion": 8.75, "router": 1.0},
    "earlier_cost_usd": 16.0,
    "maybe_cost_usd": 35.0,
    "maybe_billed_twice": 2,
    "thread_cost_usd": 89.75,
    "by_model": {
        "a": {"calls": 2, "failed": 2, "cost_usd": 0.75, "prompt_tokens": 40, "completion_tokens": 4},
        "c": {"calls": 1, "failed": 0, "cost_usd": 8.0, "prompt_tokens": 20, "completion_tokens": 2},
    },
    "router_tokens": ROUTER_TOKENS,
    "candidate_tokens": {**NO_USAGE, "prompt_tokens": 60, "completion_tokens": 6},
    "stop_reason": "answered",
}


def test_an_account_adds_up_its_calls_the_router_and_what_was_spent_earlier() -> None:
    routing = made_up()
    assert without_calls(routing) == ACCOUNT
    assert [call["index"] for call in routing["calls"]] == [0, 1, 2, 3]


def test_what_earlier_attempts_spent_is_added_to_the_sums_and_to_no_call() -> None:
    changed = with_earlier(made_up(), spending(0.125, 4.0))
    assert without_calls(changed) == {
        **ACCOUNT,
        "cost_usd": 25.875,
        "earlier_cost_usd": 16.125,
        "maybe_cost_usd": 39.0,
        "thread_cost_usd": 89.875,
    }
    assert changed["calls"] == made_up()["calls"]


def test_an_account_from_a_cache_keeps_list_prices_and_tokens_and_spends_nothing() -> None:
    nothing = {"cost_usd": 0.0, "maybe_cost_usd": 0.0, "maybe_billed_twice": False}
    cached = from_cache(made_up())
    assert without_calls(cached) == {
        **ACCOUNT,
        **dict.fromkeys(("cost_usd", "router_cost_usd", "earlier_cost_usd", "maybe_cost_usd", "thread_cost_usd"), 0.0),
        "maybe_billed_twice": 0,
        "by_model": {name: {**bill, "cost_usd": 0.0} for name, bill in ACCOUNT["by_model"].items()},
    }
    assert cached["calls"] == [{**call, **nothing} for call in made_up()["calls"]]


def test_a_tier_of_the_routers_price_is_one_turns_and_not_that_of_all_turns_together() -> None:
    turn: Any = {**NO_USAGE, "prompt_tokens": 600}
    tiered = Price(1000, 0, tiers=(Tier(5000, 0, above=1000),))
    fields: Any = {"turns": 2, "router_price": tiered, "stop_reason": None}
    assert account([], router_usage=[turn, turn], **fields)["router_cost_usd"] == 1.2
    assert account([], router_usage=[{**turn, "prompt_tokens": 1001}], **fields)["router_cost_usd"] == 5.005
