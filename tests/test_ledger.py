"""Money: usage into cost, and budgets that are never exceeded."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_router_r1 import Price
from langgraph_router_r1.ledger import Usage, add_usage, affordable, cost, worst_case

prices = st.builds(Price, st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
tokens = st.integers(0, 100_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt = draw(tokens)
    return {
        "prompt_tokens": prompt,
        "cached_tokens": draw(st.integers(0, prompt)),
        "completion_tokens": draw(tokens),
        "estimated": draw(st.booleans()),
    }


def test_prompt_cached_and_completion_tokens_are_priced_apart() -> None:
    usage: Usage = {"prompt_tokens": 1000, "cached_tokens": 400, "completion_tokens": 50, "estimated": False}
    assert cost(usage, Price(prompt=3, completion=15, cached=0.3)) == pytest.approx(
        (600 * 3 + 400 * 0.3 + 50 * 15) / 1e6
    )


@given(usages(), prices)
def test_no_call_costs_more_than_its_worst_case(usage: Usage, price: Price) -> None:
    most = worst_case(usage["prompt_tokens"], usage["completion_tokens"], price)
    assert 0 <= cost(usage, price) <= most + 1e-12


@given(st.lists(usages()), prices)
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


def test_a_price_of_hundreds_of_digits_is_refused_as_a_price() -> None:
    with pytest.raises(ValueError, match=r"price\.prompt is 1000000"):
        Price.parse(10**400)


def test_a_wrong_price_is_not_shown_when_it_may_be_a_key() -> None:
    for wrong in ("sk-secret", {"prompt": "sk-secret", "completion": 1}, {"sk-secret": 1}):
        with pytest.raises(ValueError, match="price") as caught:
            Price.parse(wrong)
        assert "sk-secret" not in str(caught.value)
