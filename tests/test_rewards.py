"""Rewards: a rollout earns what its form, its answer and its cost deserve."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.ledger import NO_COST
from langgraph_router_r1.record import RunRecord

pytest.importorskip("numpy", reason="the [train] extra is not installed")

from training.rewards import FORMAT_FAILURE, CostScale, Reward, reward, rewards
from training.rollout import Rollout, unscorable

TASK = Task("t1", "Capital of Peru?", ("Lima",), "mine")


def recorded(answer: str, cost: float = 1e-5, of_completions: float = 0.0) -> RunRecord:
    """A record of a run that answered this, for so much in all and so much for completions."""
    parts = {**NO_COST, "completion": of_completions, "router": cost - of_completions}
    return RunRecord.model_construct(answer=answer, calls=[], report={"turns": 1, "list_cost_parts": parts})


def made(*, correct: bool = True, cost: float = 1e-5, weight: float = 0.5, **fields: Any) -> Rollout:
    given: dict[str, Any] = {
        "task": TASK, "cost_weight": weight, "prompt_ids": [1], "completion_ids": [2], "env_mask": [1],
        "logprobs": [0.0], "record": recorded("Lima" if correct else "Quito", cost, cost), "format_ok": True,
    }  # fmt: skip
    return Rollout(**{**given, **fields})


def scale(*costs: float) -> CostScale:
    made_of = CostScale()
    made_of.add(costs or [1e-6 * n for n in range(1, 101)])
    return made_of


def test_the_papers_equation_and_its_codes() -> None:
    """α = 0.5, a cost in the middle of the window: the parts by hand."""
    window = CostScale()
    window.add([0.0, 4e-6] * 50)
    right, wrong = made(cost=1e-6), made(cost=1e-6, correct=False)
    assert reward(right, window).total == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert reward(wrong, window).total == pytest.approx(0.5 * 0 + 0.5 * 0.5)
    assert reward(right, window, mode="gated").total == pytest.approx(0.5 + 0.5 * 0.5)
    assert reward(wrong, window, mode="gated").total == 0.0


costs = st.floats(min_value=0, max_value=1e-2, allow_nan=False)
weights = st.floats(min_value=0, max_value=1)
modes = st.sampled_from(["paper", "gated"])


@given(st.booleans(), costs, weights, modes)
def test_a_format_failure_zeroes_the_rest(correct: bool, cost: float, weight: float, mode: Any) -> None:
    rollout = made(correct=correct, cost=cost, weight=weight, format_ok=False)
    assert reward(rollout, scale(), mode=mode).total == FORMAT_FAILURE
    assert (reward(made(correct=correct, cost=cost, weight=weight), scale(), mode=mode).total or 0.0) >= FORMAT_FAILURE


@given(st.booleans(), costs, costs, weights, modes, st.lists(costs, max_size=50))
def test_at_equal_correctness_cheaper_is_never_worse(
    correct: bool, one: float, other: float, weight: float, mode: Any, seen: list[float]
) -> None:
    cheap, dear = sorted((one, other))
    window = scale(*seen)
    first = reward(made(correct=correct, cost=cheap, weight=weight), window, mode=mode).total
    second = reward(made(correct=correct, cost=dear, weight=weight), window, mode=mode).total
    assert first is not None
    assert second is not None
    assert first >= second


@given(costs, costs, modes)
def test_at_no_cost_weight_only_the_answer_counts(one: float, other: float, mode: Any) -> None:
    assert reward(made(cost=one, weight=0.0), scale(), mode=mode).total == 1.0
    assert reward(made(cost=other, weight=0.0, correct=False), scale(), mode=mode).total == 0.0


def test_a_window_forgets_and_a_flat_one_says_nothing() -> None:
    window = CostScale(window=10)
    window.add([1.0] * 10)
    assert window.reward(1.0) == window.reward(0.0) == 0.5
    window.add([1e-6, 4e-6] * 5)
    assert window.reward(1e-6) == 1.0
    assert window.reward(1.0) == 0.0
    restored = CostScale.from_state_dict(window.state_dict())
    assert restored.state_dict() == window.state_dict()
    assert restored.reward(2e-6) == window.reward(2e-6)
    with pytest.raises(ValueError, match="must be 0 or more"):
        window.add([-1.0])


def test_a_batch_is_held_against_one_window_without_what_cannot_be_scored() -> None:
    window = CostScale()
    batch = [made(cost=1e-6), unscorable(TASK, 0.5, "down"), made(cost=9e-6)]
    scored = rewards(batch, window)
    assert len(window.state_dict()["roots"]) == 2
    assert scored[1].total is None
    assert (scored[0].cost, scored[2].cost) == (1.0, 0.0)


def test_unknown_modes_and_metrics_are_named() -> None:
    with pytest.raises(ValueError, match="mode is 'papers'"):
        reward(made(), scale(), mode="papers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric is 'rouge'"):
        reward(made(), scale(), metric="rouge")


# One part at a time


def squares(*roots: float) -> CostScale:
    """A window of costs whose square roots are these, so that what a cost earns can be read off."""
    window = CostScale()
    window.add(root**2 for root in roots)
    return window


@pytest.mark.parametrize(("root", "earned"), [(4, 1), (5, 1), (6, 1 - 1 / 90), (50, 0.5), (94, 1 / 90), (95, 0)])
def test_cheap_and_expensive_are_the_5th_and_the_95th_percentile_of_the_roots_of_the_costs(
    root: float, earned: float
) -> None:
    assert squares(*range(101)).reward(root**2) == pytest.approx(earned)


def test_costs_that_differ_by_less_than_a_cent_are_told_apart_and_equal_ones_are_not() -> None:
    assert squares(*(0.001 * n for n in range(101))).reward(0.05**2) == pytest.approx(0.5)
    assert squares(*(0.001 * n for n in range(101))).reward(0.006**2) == pytest.approx(1 - 1 / 90)
    assert squares(7, 7, 7).reward(0.0) == 0.5
    assert CostScale().reward(0.0) == 0.5


def test_the_window_holds_the_latest_thousand_costs() -> None:
    window = squares(*[1000.0] * 1000)
    window.add([0.0])
    assert len(window.state_dict()["roots"]) == 1000
    window.add([1.0] * 999)
    assert 1000.0 not in window.state_dict()["roots"]


def test_a_restored_window_forgets_as_the_one_that_was_saved() -> None:
    window = CostScale(window=3)
    window.add([1.0, 4.0])
    restored = CostScale.from_state_dict(window.state_dict())
    restored.add([9.0, 16.0])
    assert restored.state_dict() == {"window": 3, "roots": [2.0, 3.0, 4.0]}


def test_a_cost_of_nothing_is_taken_and_one_that_is_no_number_is_not() -> None:
    window = CostScale()
    window.add([0.0, 4.0])
    assert window.state_dict()["roots"] == [0.0, 2.0]
    for wrong in (-1e-9, float("nan")):
        with pytest.raises(ValueError, match=rf"costs are \[1.0, {wrong!r}\]"):
            window.add([1.0, wrong])
    assert window.state_dict()["roots"] == [0.0, 2.0], "a batch is taken whole or not at all"


def test_the_parts_of_a_reward_say_what_it_is_made_of() -> None:
    window = squares(*range(101))
    assert reward(made(cost=50.0**2, weight=0.25), window) == Reward(
        pytest.approx(0.75 + 0.125), 0.0, 1.0, pytest.approx(0.5)
    )
    assert reward(made(format_ok=False), window) == Reward(-1.0, -1.0, 0.0, 0.0)
    assert reward(unscorable(TASK, 0.5, "down"), window) == Reward(None, 0.0, 0.0, 0.0)
    assert reward(made(env_mask=[0]), window) == Reward(None, 0.0, 0.0, 0.0)


def test_the_cost_weight_moves_the_reward_from_the_answer_to_the_cost() -> None:
    window = squares(*range(101))
    for weight in (0.0, 0.25, 1.0):
        cheap_and_wrong = made(cost=0.0, weight=weight, correct=False)
        expensive_and_right = made(cost=1e4, weight=weight)
        assert reward(cheap_and_wrong, window).total == pytest.approx(weight)
        assert reward(expensive_and_right, window).total == pytest.approx(1 - weight)
        assert reward(cheap_and_wrong, window, mode="gated").total == 0.0
        assert reward(expensive_and_right, window, mode="gated").total == pytest.approx(1 - weight)


@pytest.mark.parametrize(("basis", "earned"), [("full", 0.0), ("completion", 1.0), (None, 0.0)])
def test_the_basis_says_which_cost_is_paid(basis: Any, earned: float) -> None:
    """Its completions are cheap and everything together is expensive."""
    rollout = made(record=recorded("Lima", 1e4, 0.0), weight=1.0)
    options = {} if basis is None else {"basis": basis}
    assert reward(rollout, squares(*range(101)), **options).total == pytest.approx(earned)


@pytest.mark.parametrize(
    ("metric", "answer", "earned"),
    [
        (None, "It is Lima", 0.0),
        ("em", "It is Lima", 0.0),
        ("em", "the Lima", 1.0),
        ("contains", "It is Lima", 1.0),
        ("f1", "It is Lima", 0.5),
    ],
)
def test_the_metric_says_what_a_right_answer_is(metric: Any, answer: str, earned: float) -> None:
    rollout = made(record=recorded(answer), weight=0.0)
    options = {} if metric is None else {"metric": metric}
    assert reward(rollout, scale(), **options).outcome == pytest.approx(earned)
    assert rewards([rollout], CostScale(), **options)[0].outcome == pytest.approx(earned)


def test_a_batch_is_scored_by_the_mode_the_metric_and_the_basis_that_were_asked_for() -> None:
    """Right by `contains` only, and cheap by its completions only."""
    batch = [
        made(record=recorded("It is Lima", 0.0, 9.0)),
        made(record=recorded("It is Lima", 9.0, 0.0)),
        made(record=recorded("Quito", 9.0, 0.0)),
    ]

    def totals(**options: Any) -> list[float | None]:
        return [scored.total for scored in rewards(batch, CostScale(), **options)]

    assert totals() == pytest.approx([0.5, 0.0, 0.0])
    assert totals(metric="contains") == pytest.approx([1.0, 0.5, 0.0])
    assert totals(metric="contains", basis="completion") == pytest.approx([0.5, 1.0, 0.5])
    assert totals(metric="contains", basis="completion", mode="gated") == pytest.approx([0.5, 1.0, 0.0])


def test_the_costs_of_a_batch_enter_the_window_by_the_basis_and_before_it_is_scored() -> None:
    window = CostScale()
    batch = [made(record=recorded("Lima", 16.0, 4.0)), made(record=recorded("Lima", 9.0, 1.0), format_ok=False)]
    rewards(batch, window, basis="completion")
    assert window.state_dict()["roots"] == [2.0, 1.0]
    rewards(batch, window)
    assert window.state_dict()["roots"] == [2.0, 1.0, 4.0, 3.0]
