"""Money: usage into cost, and budgets that are never exceeded."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_router_r1 import Price
from langgraph_router_r1.ledger import Tier, Usage, add_usage, affordable, cost, worst_case

rates = st.tuples(*[st.floats(0, 100)] * 4)
flat_prices = rates.map(lambda rates: Price(*rates))
tokens = st.integers(0, 100_000)


@st.composite
def tiered_prices(draw: st.DrawFn) -> Price:
    """Draw a price whose tiers begin anywhere and rise in any of its rates."""
    lower, tiers = draw(rates), []
    base = lower
    for above in sorted(draw(st.sets(tokens, max_size=3))):
        lower = tuple(max(lower, higher) for lower, higher in zip(lower, draw(rates), strict=True))
        tiers.append(Tier(*lower, above=above))
    return Price(*base, tiers=tuple(tiers))


prices = flat_prices | tiered_prices()


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt = draw(tokens)
    cached = draw(st.integers(0, prompt))
    return {
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "cache_write_tokens": draw(st.integers(0, prompt - cached)),
        "completion_tokens": draw(tokens),
        "estimated": draw(st.booleans()),
    }


def test_prompt_cached_and_completion_tokens_are_priced_apart() -> None:
    usage: Usage = {"prompt_tokens": 1000, "cached_tokens": 400, "completion_tokens": 50, "estimated": False}
    assert cost(usage, Price(prompt=3, completion=15, cached=0.3)) == pytest.approx(
        (600 * 3 + 400 * 0.3 + 50 * 15) / 1e6
    )


@given(usages(), st.just(0) | tokens, st.just(0) | tokens, prices)
def test_no_call_within_its_bounds_costs_more_than_its_worst_case(
    usage: Usage, more_prompt: int, more_completion: int, price: Price
) -> None:
    most = worst_case(usage["prompt_tokens"] + more_prompt, usage["completion_tokens"] + more_completion, price)
    assert 0 <= cost(usage, price) <= most + 1e-12


@given(st.lists(usages()), flat_prices)
def test_the_cost_of_a_sum_is_the_sum_of_the_costs(parts: list[Usage], price: Price) -> None:
    whole = cost(add_usage(parts), price)
    assert math.isclose(whole, sum(cost(part, price) for part in parts), rel_tol=1e-9, abs_tol=1e-12)
    assert add_usage(parts)["estimated"] == any(part["estimated"] for part in parts)


@given(st.lists(st.floats(0, 10)), st.floats(0, 20))
def test_reserved_calls_together_never_exceed_what_is_left(worst_cases: list[float], left: float) -> None:
    fits = affordable(worst_cases, left)
    reserved = sum(worst for worst, fit in zip(worst_cases, fits, strict=True) if fit)
    assert len(fits) == len(worst_cases)
    assert reserved <= left + 1e-9


@pytest.mark.parametrize(
    ("written", "price"),
    [
        ("free", Price(0, 0)),
        (0.2, Price(0.2, 0.2)),
        (1, Price(1, 1)),
        ({"prompt": 0.1, "completion": 0.4}, Price(0.1, 0.4, 0.1)),
        ({"prompt": 0.1, "completion": 0.4, "cached": 0.01}, Price(0.1, 0.4, 0.01)),
    ],
)
def test_a_price_can_be_written_in_each_documented_form(written: object, price: Price) -> None:
    assert Price.parse(written) == price


@pytest.mark.parametrize(
    "written",
    [None, "", "cheap", True, -1, float("nan"), float("inf"), {"prompt": 1}, {"prompt": 1, "completion": "2"}, [1, 2]],
)
def test_anything_else_is_no_price(written: object) -> None:
    with pytest.raises(ValueError, match="price"):
        Price.parse(written)


TIERED = {"prompt": 3, "completion": 15, "cached": 0.3, "tiers": [{"above": 200, "prompt": 6, "completion": 22.5}]}


def test_a_long_prompt_is_charged_as_a_whole_and_with_its_completion_at_the_rates_of_its_tier() -> None:
    price = Price.parse(TIERED)
    assert price == Price(3, 15, 0.3, tiers=(Tier(6, 22.5, above=200),))
    usage: Usage = {"prompt_tokens": 200, "cached_tokens": 50, "completion_tokens": 10, "estimated": False}
    assert cost(usage, price) == pytest.approx((150 * 3 + 50 * 0.3 + 10 * 15) / 1e6)
    assert cost({**usage, "prompt_tokens": 201}, price) == pytest.approx((151 * 6 + 50 * 6 + 10 * 22.5) / 1e6)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tiers": [{"above": 200, "prompt": 2, "completion": 22}]}, "above 200 tokens is out of order or cheaper"),
        ({"tiers": [{"above": 200, "prompt": 6, "completion": 15}] * 2}, "above 200 tokens is out of order"),
        ({"tiers": [{"above": 200.5, "prompt": 6, "completion": 15}]}, r"price\.tiers\.above is 200\.5"),
        ({"tiers": [{"above": 200, "prompt": -6, "completion": 15}]}, r"price\.tiers\.prompt is -6"),
        ({"tiers": [{"prompt": 6, "completion": 15}]}, "it must be 'free'"),
        ({"tiers": [6]}, "it must be 'free'"),
        ({"tiers": 6}, "it must be 'free'"),
        ({"source": 6}, "it must be 'free'"),
    ],
)
def test_a_tier_that_is_wrong_is_refused_with_what_is_wrong_with_it(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Price.parse({**TIERED, **change})


def test_a_price_is_noted_in_json_and_read_from_it() -> None:
    price = Price.parse({**TIERED, "source": "a list"})
    read = Price.parse(json.loads(json.dumps(price.note())))
    assert (read, read.source) == (price, "a list")


def test_a_price_of_hundreds_of_digits_is_refused_as_a_price() -> None:
    with pytest.raises(ValueError, match=r"price\.prompt is 1000000"):
        Price.parse(10**400)


def test_a_wrong_price_is_not_shown_when_it_may_be_a_key() -> None:
    for wrong in ("sk-secret", {"prompt": "sk-secret", "completion": 1}, {"sk-secret": 1}):
        with pytest.raises(ValueError, match="price") as caught:
            Price.parse(wrong)
        assert "sk-secret" not in str(caught.value)
