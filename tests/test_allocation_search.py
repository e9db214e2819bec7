"""The cheapest models that lead to the right answer are found, and nobody is asked twice or more often than allowed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_router_r1.strategies.plans import Plan, Step, joined, parse_plan
from training.allocation_search import Found, cheapest_right, grouped_search

TWO = parse_plan("1. Which country has the capital Lima?\n2. What currency is used in #1?", "?")


@dataclass
class World:
    """A plan, models, and what each would reply and cost: decided by a seed, the same every time."""

    plan: Plan
    models: list[str]
    seed: int
    right: float
    """Share of the answers that are right."""
    asked: list[tuple[str, str]] = field(default_factory=list)

    def known(self, query: str, model: str) -> tuple[str, float]:
        chance = random.Random(f"{self.seed} {model} {query}")
        return chance.choice(["a", "b", ""]), float(chance.choice([0, 0, 1, 2, 3]))

    def ask(self, query: str, model: str) -> tuple[str, float]:
        self.asked.append((query, model))
        return self.known(query, model)

    def is_right(self, answer: str) -> bool:
        return random.Random(f"{self.seed} {answer}").random() < self.right

    def done(self, models: tuple[str, ...]) -> tuple[bool, float, set[tuple[str, str]]]:
        results, total, calls = dict[int, str](), 0.0, set()
        for step, model in zip(self.plan.steps, models, strict=True):
            results[step.number], cost = self.known(step.query(results), model)
            calls.add((step.query(results), model))
            total += cost
        return self.is_right(joined([results[step.number] for step in self.plan.ends])), total, calls

    def brute_force(self) -> tuple[tuple[str, ...] | None, float | None, int]:
        """The cheapest right assignment, of several the one whose models come first, and how many calls it takes."""
        done = {models: self.done(models) for models in itertools.product(self.models, repeat=len(self.plan.steps))}
        every = set().union(*(calls for _, _, calls in done.values()))
        costs = {models: cost for models, (is_right, cost, _) in done.items() if is_right}
        best = min(costs, key=lambda models: costs[models], default=None)  # products come in the order of the models
        return best, None if best is None else costs[best], len(every)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    steps = []
    for number in range(1, draw(st.integers(1, 3)) + 1):
        needs = tuple(sorted(draw(st.sets(st.integers(1, number - 1))))) if number > 1 else ()
        # Steps that ask the same, side by side, are one question to a model.
        text = draw(st.sampled_from(["ask", f"step {number}"])) + "".join(f" #{need}" for need in needs)
        steps.append(Step(number, text, needs))
    models = [f"m{place}" for place in range(draw(st.integers(1, 6)))]
    return World(Plan(tuple(steps)), models, draw(st.integers(0, 10**9)), draw(st.sampled_from([0.0, 0.1, 0.4, 1.0])))


@given(worlds(), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_search_equals_brute_force_and_asks_no_more(world: World, known: float) -> None:
    models, cost, calls = world.brute_force()
    found = cheapest_right(
        world.plan,
        world.models,
        world.ask,
        world.is_right,
        least_usd=lambda query, model: known * world.known(query, model)[1],
    )
    assert (found.models, found.cost_usd, found.ran_out) == (models, cost, False)
    assert found.calls == len(world.asked) == len(set(world.asked))
    assert found.calls <= calls
    if models is None:
        assert found.calls == calls  # all of it was looked at


@given(worlds(), st.integers(0, 40))
def test_no_search_makes_more_calls_than_allowed_and_it_says_when_it_needed_more(world: World, most: int) -> None:
    unlimited = cheapest_right(world.plan, world.models, world.known, world.is_right)
    found = cheapest_right(world.plan, world.models, world.ask, world.is_right, max_calls=most)
    assert found.calls == len(world.asked) <= most
    assert found.ran_out == (unlimited.calls > most)
    assert found == (Found(None, None, most, ran_out=True) if found.ran_out else unlimited)


@given(worlds(), st.lists(st.floats(0, 1), min_size=3, max_size=3), st.none() | st.integers(0, 40))
def test_what_the_grouped_search_finds_is_right_and_nobody_is_asked_twice(
    world: World, sure: list[float], most: int | None
) -> None:
    found = grouped_search(
        world.plan,
        world.models,
        world.ask,
        world.is_right,
        confidences=sure[: len(world.plan.steps)],
        max_calls=most,
    )
    assert found.calls == len(world.asked) == len(set(world.asked))
    assert most is None or found.calls <= most
    if found.models is None:
        assert found.cost_usd is None
        return
    is_right, cost, _ = world.done(found.models)
    assert is_right
    assert found.cost_usd == cost
    best = cheapest_right(world.plan, world.models, world.known, world.is_right)
    assert best.cost_usd is not None
    assert best.cost_usd <= cost


def of_skill(needed: dict[str, int]) -> Callable[[str, str], tuple[str, float]]:
    """Models m0, m1, ... that cost 1, 2, ... and are right about a query from a certain one on."""

    def ask(query: str, model: str) -> tuple[str, float]:
        place = int(model[1:])
        is_able = place >= next(least for text, least in needed.items() if text in query)
        return ("right" if is_able and "wrong" not in query else "wrong"), 1.0 + place

    return ask


NINE = [f"m{place}" for place in range(9)]


@pytest.mark.parametrize(
    ("needed", "confidences", "models"),
    [
        # Right at once, with the middle models of the small and the large group: both go down as far as they can.
        ({"capital": 0, "currency": 3}, [0.95, 0.2], ("m0", "m3")),
        # Wrong at first: the step that the baseline is least sure of goes up, and nothing goes down again.
        ({"capital": 0, "currency": 6}, [0.95, 0.8], ("m1", "m6")),
        # That step was not to blame: it stays with the most expensive model, and the next one goes up.
        ({"capital": 5, "currency": 0}, [0.95, 0.8], ("m5", "m8")),
    ],
)
def test_the_grouped_search_goes_down_from_a_right_answer_and_up_from_a_wrong_one(
    needed: dict[str, int], confidences: list[float], models: tuple[str, ...]
) -> None:
    found = grouped_search(TWO, NINE, of_skill(needed), lambda answer: answer == "right", confidences=confidences)
    assert found.models == models


def test_calls_that_run_out_leave_the_grouped_search_with_its_last_right_assignment() -> None:
    search = {"ask": of_skill({"capital": 0, "currency": 0}), "is_right": lambda answer: answer == "right"}
    found = grouped_search(TWO, NINE, **search, confidences=[0.8, 0.8], max_calls=3)  # type: ignore[arg-type]
    assert found == Found(("m3", "m4"), 9.0, 3, ran_out=True)


def test_assignments_that_reach_the_same_results_are_one() -> None:
    plan = parse_plan("1. a\n2. b of #1\n3. c of #2", "?")
    judged = []
    found = cheapest_right(plan, NINE, lambda *_: ("same", 1.0), lambda answer: bool(judged.append(answer)))  # type: ignore[func-returns-value]
    assert found == Found(None, None, 27)
    assert judged == ["same"]


def test_an_expensive_model_is_not_asked_where_its_price_alone_is_too_high() -> None:
    asked = []

    def ask(query: str, model: str) -> tuple[str, float]:
        asked.append(model)
        return ("Peru" if "capital" in query else "Sol"), 1.0 if model == "small" else 100.0

    def least(_query: str, model: str) -> float:
        return 1.0 if model == "small" else 90.0

    found = cheapest_right(TWO, ["small", "large"], ask, lambda answer: answer == "Sol", least_usd=least)
    assert found == Found(("small", "small"), 2.0, 2)
    assert asked == ["small", "small"]


def test_a_call_that_costs_less_than_nothing_is_refused_by_name() -> None:
    for cost in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"a call to 'm' cost {cost!r} dollars; it must be 0 or more"):
            cheapest_right(TWO, ["m"], lambda _query, _model, cost=cost: ("", cost), bool)  # type: ignore[misc]


def test_the_grouped_search_wants_one_confidence_for_each_step() -> None:
    with pytest.raises(ValueError, match="there are 1 confidences for 2 steps"):
        grouped_search(TWO, ["m"], lambda *_: ("", 0.0), bool, confidences=[0.5])
