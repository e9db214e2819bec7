"""Money: what a call costs to the token, what a budget pays for, and what an account says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import answer, ask, pool, search
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price, create_router
from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.ledger import FREE, NO_USAGE, Usage, add_usage, affordable, cost, reported_usage, worst_case
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine


def used(prompt: int, cached: int, completion: int, *, written: int = 0, estimated: bool = False) -> Usage:
    return {
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "cache_write_tokens": written,
        "completion_tokens": completion,
        "estimated": estimated,
    }


def bounded(name: str, model: Any, price: Any = 1.0, max_tokens: int = 100, **fields: Any) -> ModelDescriptor:
    return ModelDescriptor(name=name, model=model, price=price, params={"max_tokens": max_tokens}, **fields)


# Prices


def test_cached_prompt_tokens_cost_as_much_as_others_unless_it_says_so() -> None:
    assert Price(2, 3).cached == 2
    assert Price(2, 3, cached=0.0).cached == 0.0
    assert Price.parse({"prompt": 2, "completion": 3}) == Price(2, 3, 2)
    assert Price.parse({"prompt": 2, "completion": 3, "cached": 0}) == Price(2, 3, 0)
    assert Price(2, 3, 0).cache_write == 2
    assert Price.parse({"prompt": 2, "completion": 3, "cache_write": 4}) == Price(2, 3, 2, 4)


@pytest.mark.parametrize("part", ["prompt", "completion", "cached", "cache_write"])
@pytest.mark.parametrize("wrong", [True, "1", None, -0.001, 1e9 + 1, float("inf")])
def test_each_part_of_a_price_is_checked_and_named(part: str, wrong: Any) -> None:
    parts: dict[str, Any] = {"prompt": 0.0, "completion": 1e9, "cached": 0, part: wrong}
    shown = re.escape(repr(wrong)) if isinstance(wrong, int | float) else ""
    with pytest.raises(ValueError, match=rf"price\.{part} is {shown}"):
        Price(**parts)


def test_a_price_may_be_anything_from_nothing_to_a_thousand_dollars_a_token() -> None:
    assert Price(0, 1e9, 1).completion == 1e9
    assert Price.parse(Price(1, 2)) == Price(1, 2)
    assert Price.parse("free") == FREE == Price(0, 0, 0)


@pytest.mark.parametrize("wrong", [False, "Free", {"prompt": 1, "cached": 1}, {"prompt": 1, "completion": 2, "per": 3}])
def test_what_is_no_price_is_refused_with_what_it_must_be(wrong: Any) -> None:
    shown = "False" if wrong is False else f"a {type(wrong).__name__}"
    must_be = "it must be 'free', a number of dollars per million tokens, or a table"
    with pytest.raises(ValueError, match=f"price is {shown}; {must_be}"):
        Price.parse(wrong)


@pytest.mark.parametrize(
    ("price", "shown"),
    [
        (FREE, "free"),
        (Price(0.2, 0.2), "$0.2/M"),
        (Price(1, 2), "$1/M in, $2/M out"),
        (Price(0, 2), "$0/M in, $2/M out"),
        (Price(2, 0), "$2/M in, $0/M out"),
        (Price(0, 0, 1), "$0/M"),
    ],
)
def test_a_price_reads_as_it_is_shown_to_the_router(price: Price, shown: str) -> None:
    assert str(price) == shown


# Usage


def test_usage_is_taken_from_the_reply_with_its_cached_part() -> None:
    reported = {"input_tokens": 10, "output_tokens": 3, "input_token_details": {"cache_read": 4}}
    assert reported_usage(reported) == (used(10, 4, 3), False)
    details = {"cache_read": 4, "cache_creation": 0, "ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 1}
    assert reported_usage({**reported, "input_token_details": details}) == (used(10, 4, 3, written=4), False)
    details = {"cache_read": 4, "cache_creation": 7}
    assert reported_usage({**reported, "input_token_details": details}) == (used(10, 4, 3, written=6), False)
    details = {"flex": 3, "flex_cache_read": 4, "flex_cache_creation": 3}
    assert reported_usage({**reported, "input_token_details": details}) == (used(10, 4, 3, written=3), False)
    assert reported_usage({"input_tokens": 0, "output_tokens": 0}) == (used(0, 0, 0), False)
    assert reported_usage({"input_tokens": 10, "output_tokens": 3, "input_token_details": None}) == (
        used(10, 0, 3), False,
    )  # fmt: skip


@pytest.mark.parametrize(("cached", "counted"), [(10, 10), (11, 10), (10**9, 10), (-1, 0), (True, 0), (2.5, 0)])
def test_no_more_of_the_prompt_is_cached_than_there_is(cached: Any, counted: int) -> None:
    usage, _ = reported_usage({"input_tokens": 10, "output_tokens": 3, "input_token_details": {"cache_read": cached}})
    assert usage == used(10, counted, 3)


@pytest.mark.parametrize("wrong", [None, -1, True, 2.5, "3"])
def test_usage_that_is_missing_or_impossible_in_either_part_is_not_believed(wrong: Any) -> None:
    assert reported_usage({"input_tokens": wrong, "output_tokens": 3}) == (None, False)
    assert reported_usage({"input_tokens": 3, "output_tokens": wrong}) == (None, False)
    assert reported_usage(None) == (None, False)


def test_a_total_cost_of_nothing_marks_a_reply_from_a_cache() -> None:
    tokens = {"input_tokens": 10, "output_tokens": 3}
    assert reported_usage({**tokens, "total_cost": 0}) == (used(10, 0, 3), True)
    assert reported_usage({**tokens, "total_cost": 1}) == (used(10, 0, 3), False)
    assert reported_usage({"total_cost": 0}) == (None, True)


def test_a_reply_that_reports_more_cached_tokens_than_its_prompt_has_earns_no_money() -> None:
    reply = AIMessage("Lima")
    details: Any = {"cache_read": 10**6}
    reply.usage_metadata = {
        "input_tokens": 10, "output_tokens": 3, "total_tokens": 13, "input_token_details": details,
    }  # fmt: skip
    price = {"prompt": 5.0, "completion": 7.0, "cached": 1.0}
    registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel([reply]), price=price)])
    assert ask([search("m: a?"), answer("x")], registry)["routing"]["cost_usd"] == pytest.approx((10 * 1 + 3 * 7) / 1e6)


# Sums


def test_each_kind_of_token_is_charged_at_its_own_price() -> None:
    assert cost(used(100, 30, 7), Price(2, 5, 0.5)) == pytest.approx((70 * 2 + 30 * 0.5 + 7 * 5) / 1e6)
    usage, price = used(100, 30, 7, written=20), Price(2, 5, 0.5, 2.5)
    assert cost(usage, price) == pytest.approx((50 * 2 + 30 * 0.5 + 20 * 2.5 + 7 * 5) / 1e6)


def test_the_worst_case_takes_the_most_expensive_of_a_fresh_a_cached_and_a_written_prompt() -> None:
    assert worst_case(100, 7, Price(2, 5, 0.5, 4)) == pytest.approx((100 * 4 + 7 * 5) / 1e6)
    assert worst_case(100, 7, Price(2, 5, 0.5)) == pytest.approx((100 * 2 + 7 * 5) / 1e6)
    assert worst_case(100, 7, Price(2, 5, 3)) == pytest.approx((100 * 3 + 7 * 5) / 1e6)


def test_usage_adds_up_part_by_part_and_is_estimated_if_any_part_is() -> None:
    parts = [used(1, 2, 4, estimated=True), used(8, 16, 32), used(64, 128, 256)]
    assert add_usage(parts) == used(73, 146, 292, estimated=True)
    assert add_usage(parts[1:]) == used(72, 144, 288)
    assert add_usage([used(9, 1, 2, written=4), used(8, 0, 3, written=5)]) == used(17, 1, 5, written=9)
    assert add_usage([]) == NO_USAGE == used(0, 0, 0)


@pytest.mark.parametrize(
    ("worst_cases", "left", "fits"),
    [
        ([0.0], 0.0, [True]),
        ([1.0, 0.0], 1.0, [True, True]),
        ([2.0, 1.0], 1.0, [False, True]),
        ([1.0, 1.0, 1.0], 2.0, [True, True, False]),
        ([3.0, 2.0, 2.0], 4.0, [True, False, False]),
        ([0.0], -0.1, [False]),
        ([7.0, 8.0], None, [True, True]),
        ([], 1.0, []),
    ],
)
def test_calls_are_held_against_what_is_left_to_the_last_cent(
    worst_cases: list[float], left: float | None, fits: list[bool]
) -> None:
    assert affordable(worst_cases, left) == fits


# What a budget pays for


TIER = {"above": 100, "prompt": 1.0, "completion": 30.0}


@pytest.mark.parametrize(
    "price",
    [
        1.0,
        {"prompt": 0.3, "completion": 7.0},
        {"prompt": 0.0, "completion": 3.0},
        {"prompt": 0.3, "completion": 7.0, "tiers": [TIER]},
    ],
)
def test_a_router_that_rambles_writes_what_the_budget_pays_for_and_not_a_token_more(price: Any) -> None:
    parsed = Price.parse(price)
    prompt, per_token = worst_case(2500, 0, parsed), parsed.at(2500).completion / 1e6
    for tokens in range(1, 400, 7):
        budget = prompt + (tokens + 0.5) * per_token
        spent = ask(["word " * 2000], pool(m="x"), budget_usd=budget, router_price=price, max_tokens=10**5)["routing"]
        assert spent["router_cost_usd"] == spent["cost_usd"]
        assert budget - 2 * per_token < spent["cost_usd"] <= budget


def test_a_budget_that_pays_for_the_prompt_and_one_token_is_used() -> None:
    unlimited = ask(["x" * 99], pool(m="x"), max_turns=0, router_price=1.0)["routing"]
    prompt = unlimited["router_tokens"]["prompt_tokens"]
    for extra, reason in ((-0.5, "budget_exhausted"), (0.5, "budget_exhausted"), (1.5, "no_answer")):
        budget = (prompt + extra) / 1e6
        result = ask(["x" * 99], pool(m="x"), max_turns=0, budget_usd=budget, router_price=1.0)
        assert result["routing"]["stop_reason"] == reason
        assert result["routing"]["cost_usd"] <= budget


def test_a_router_whose_completions_are_free_writes_as_long_as_its_limit() -> None:
    price = {"prompt": 1.0, "completion": 0.0}
    result = ask(["x" * 99], pool(m="x"), max_turns=0, budget_usd=1.0, router_price=price, max_tokens=50)
    assert result["routing"]["router_tokens"]["completion_tokens"] == 50


def test_a_call_that_the_budget_does_not_pay_for_says_what_it_may_cost_and_what_is_left() -> None:
    registry = ModelRegistry(
        [
            bounded("m", ScriptedChatModel(["x"]), price=100.0),
            ModelDescriptor(name="unbounded", model=RunnableLambda(lambda _: "Lima"), price=1.0),
            ModelDescriptor(name="cheap", model=ScriptedChatModel(["x"]), price="free"),
        ]
    )
    routed_calls = ask([search("m: a?", "unbounded: b?"), answer("x")], registry, budget_usd=0.001)["routing"]["calls"]
    worst = Candidates(registry, len).worst_case("m", "a?")
    assert [(routed["status"], routed["reason"]) for routed in routed_calls] == [
        ("over_budget", f"the call may cost ${worst:.2g} and $0.001 of the budget is left"),
        ("over_budget", "the call has no upper bound of its cost and $0.001 of the budget is left"),
    ]


def test_each_question_of_a_thread_is_charged_for_its_own_tokens_of_the_router() -> None:
    router = create_router(ScriptedEngine([answer("x")] * 3), pool(m="x"), checkpointer=InMemorySaver(), router_price=1)
    thread: Any = {"configurable": {"thread_id": "1"}}
    tokens = [
        router.invoke({"messages": [("user", "?")]}, thread)["routing"]["router_tokens"]["completion_tokens"]
        for _ in range(3)
    ]
    assert tokens[0] == tokens[1] == tokens[2] > 0


async def test_a_budget_of_nothing_pays_for_what_is_free() -> None:
    registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel(["Lima"]), price="free")])
    turns = [search("m: a?", "m: b?"), search("m: c?"), answer("x")]
    results = [
        ask(turns, registry, budget_usd=0.0),
        await create_router(ScriptedEngine(turns), registry, budget_usd=0.0).ainvoke({"messages": [("user", "?")]}),
    ]
    for result in results:
        assert [routed["status"] for routed in result["routing"]["calls"]] == ["ok"] * 3
        assert (result["answer"], result["routing"]["cost_usd"]) == ("x", 0)


def test_a_free_model_that_takes_no_limit_can_be_asked_under_a_budget() -> None:
    registry = ModelRegistry([ModelDescriptor(name="m", model=RunnableLambda(lambda _: "Lima"), price="free")])
    result = ask([search("m: a?"), answer("x")], registry, budget_usd=0.0)
    assert [routed["status"] for routed in result["routing"]["calls"]] == ["ok"]


def test_a_budget_that_pays_for_the_worst_case_to_the_last_cent_pays_for_the_call() -> None:
    registry = ModelRegistry([bounded("m", ScriptedChatModel(["x"]))])
    worst = Candidates(registry, len).worst_case("m", "Capital of Peru?")
    for budget, status in ((worst, "ok"), (worst * 0.999, "over_budget")):
        routed_calls = ask([search("m: Capital of Peru?"), answer("x")], registry, budget_usd=budget)["routing"][
            "calls"
        ]
        assert [routed["status"] for routed in routed_calls] == [status]
        assert routed_calls[0]["reason"] is None or f"${budget:.2g} of the budget is left" in routed_calls[0]["reason"]


def test_the_worst_case_bounds_what_any_tokenizer_makes_of_the_prompt() -> None:
    """A token is at least one byte; a chat template adds up to 64 around the message."""
    registry = ModelRegistry([bounded("m", ScriptedChatModel(["x"]), price={"prompt": 2.0, "completion": 3.0})])
    candidates = Candidates(registry, len)
    one, longer = candidates.worst_case("m", "?"), candidates.worst_case("m", "?" + "é" * 10 + "\ud83d")
    assert longer - one == pytest.approx(21 * 2.0 / 1e6)
    assert one >= (64 + 1) * 2.0 / 1e6 + 100 * 3.0 / 1e6


def test_a_model_is_asked_as_long_as_the_cheapest_could_answer_and_no_longer() -> None:
    """When no model can be paid the router is told so before it writes."""
    registry = ModelRegistry(
        [bounded("expensive", ScriptedChatModel(["x"]), price=50.0), bounded("cheap", ScriptedChatModel(["x"]))]
    )
    least = Candidates(registry, len).worst_case("cheap", "?")
    for budget, routes in ((least, True), (least * 0.999, False)):
        result = ask([search("cheap: ?") + answer("x"), answer("x")], registry, budget_usd=budget)
        assert (result["routing"]["turns"] == 1) == routes


def test_only_what_was_paid_is_taken_from_the_budget() -> None:
    """A reply from a cache costs nothing, whatever its list price."""
    registry = ModelRegistry([bounded("m", ScriptedChatModel(["word " * 100], cache=InMemoryCache()))])
    worst = Candidates(registry, len).worst_case("m", "a?")
    turns = [*[search("m: a?")] * 4, answer("x")]
    routing = ask(turns, registry, budget_usd=1.7 * worst)["routing"]
    assert [routed["status"] for routed in routing["calls"]] == ["ok"] * 4
    assert routing["calls"][3]["cost_usd"] == 0
    assert routing["calls"][3]["list_cost_usd"] == routing["calls"][0]["cost_usd"] > 0.3 * worst
    assert routing["cost_usd"] == pytest.approx(routing["calls"][0]["cost_usd"])


def test_what_one_turn_cost_is_missing_in_the_next() -> None:
    registry = ModelRegistry([bounded("m", ScriptedChatModel(["word " * 100]))])
    worst = Candidates(registry, len).worst_case("m", "a?")
    turns = [*[search("m: a?") + answer("forced")] * 4, answer("x")]
    routing = ask(turns, registry, budget_usd=1.7 * worst)["routing"]
    assert [routed["status"] for routed in routing["calls"]].count("ok") == 2
    assert routing["cost_usd"] <= 1.7 * worst


def test_a_call_that_costs_its_worst_case_leaves_the_router_enough_to_answer() -> None:
    """Whatever the budget: once a model was asked, the router can read its reply and say something."""
    reply = AIMessage("word " * 60)
    reply.usage_metadata = {"input_tokens": 110, "output_tokens": 100, "total_tokens": 210}
    registry = ModelRegistry([bounded("m", ScriptedChatModel([reply]))])
    turns = [search("m: a?") + answer("Lima")] * 6
    calls = 0
    for budget in range(1500, 9000, 150):
        settings: Any = {"router_price": 1.0, "max_tokens": 200, "max_info_tokens": 300}
        result = ask(turns, registry, budget_usd=budget / 1e6, **settings)
        calls += len(result["routing"]["calls"])
        assert result["routing"]["cost_usd"] <= budget / 1e6
        if result["routing"]["calls"]:
            assert (result["answer"], result["routing"]["stop_reason"] != "budget_exhausted") == ("Lima", True)
    assert calls > 20


# What an account says


async def test_calls_that_failed_and_replies_that_were_empty_are_in_the_account_of_their_model() -> None:
    registry = pool(good="Lima", down=ValueError("no"), empty=" ")
    turns = [search("good: a?", "down: a?", "empty: a?", "nobody: a?"), search("good: a?"), answer("x")]
    results = [
        ask(turns, registry),
        await create_router(ScriptedEngine(turns), registry).ainvoke({"messages": [("user", "?")]}),
    ]
    for result in results:
        by_model = result["routing"]["by_model"]
        assert {name: (bill["calls"], bill["failed"]) for name, bill in by_model.items()} == {
            "good": (2, 0), "down": (1, 1), "empty": (1, 1),
        }  # fmt: skip
        assert by_model["good"]["cost_usd"] == pytest.approx(2 * 11e-6)
        assert (by_model["good"]["prompt_tokens"], by_model["good"]["completion_tokens"]) == (20, 2)
        assert (by_model["empty"]["cost_usd"], by_model["down"]["cost_usd"]) == (pytest.approx(10e-6), 0)


def test_the_parts_of_an_account_add_up_to_its_cost() -> None:
    turns = [search("small: a?", "large: b?"), search("small: c?"), answer("x")]
    registry = ModelRegistry(
        [
            ModelDescriptor(name="small", model=ScriptedChatModel(["Lima it is"]), price=1.0),
            ModelDescriptor(name="large", model=ScriptedChatModel(["Lima"]), price={"prompt": 3, "completion": 9}),
        ]
    )
    routing = ask(turns, registry, router_price={"prompt": 0.5, "completion": 2.0})["routing"]
    calls = sum(routed["cost_usd"] for routed in routing["calls"])
    assert calls == pytest.approx((2 * 13 * 1.0 + 10 * 3 + 1 * 9) / 1e6)
    assert calls == pytest.approx(sum(bill["cost_usd"] for bill in routing["by_model"].values()))
    tokens = routing["router_tokens"]
    assert tokens["completion_tokens"] == sum(len(turn) for turn in turns)
    assert routing["router_cost_usd"] == pytest.approx(
        (tokens["prompt_tokens"] * 0.5 + tokens["completion_tokens"] * 2.0) / 1e6
    )
    assert routing["cost_usd"] == pytest.approx(calls + routing["router_cost_usd"])
    assert routing["candidate_tokens"] == used(30, 0, 7)
    assert [(routed["turn"], routed["index"]) for routed in routing["calls"]] == [(0, 0), (0, 1), (1, 0)]
