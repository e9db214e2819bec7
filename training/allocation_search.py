"""Who does the steps of a plan best, found by asking: the cheapest models that lead to the right answer.

`cheapest_right` is exact: the states of its search are results of the first steps, and the one that cost least so far
is gone on with first (uniform-cost search). So the first right answer that it comes to is the cheapest there is.

`grouped_search` is what R2-Reasoner (arXiv 2506.05901) does where a pool is too large to try everything: it guesses
a group of models for each step from the confidence of a baseline model, and then improves the guess step by step. It
asks less and may miss the cheapest; docs/planning.md has how often.

    found = cheapest_right(plan, ["small", "large"], ask, lambda answer: answer == "Sol")
    found.models                                     # ("small", "large"), a name for each step; None if there is none
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from langgraph_router_r1.strategies.plans import Plan, joined

Ask = Callable[[str, str], tuple[str, float]]
"""Asks a query of a model: from (query, model's name) to (reply, cost in dollars)."""

IsRight = Callable[[str], bool]
"""Says whether the final answer of a plan is right."""

EASY, MEDIUM = 0.9, 0.75
"""From these confidences of the baseline model on, a step is for the small or the medium models. The paper does not
tell its thresholds; these are those of its predecessor's code."""


@dataclass(frozen=True)
class Found:
    """What a search found."""

    models: tuple[str, ...] | None
    """A model for each step; None if no right assignment was found."""
    cost_usd: float | None
    """What the steps cost together when they are done by these models, whoever else was asked before."""
    calls: int
    """How many calls were made: each query of each model once."""
    ran_out: bool = False
    """Whether more calls were needed than allowed. What could still have been found is not known then."""


class _OutOfCallsError(Exception):
    """A search needs more calls than it may make; it never leaves this module."""


class _Calls:
    """Asks each query of each model once."""

    def __init__(self, ask: Ask, most: int | None) -> None:
        self._ask = ask
        self._most = most
        self._made: dict[tuple[str, str], tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def __call__(self, query: str, model: str) -> tuple[str, float]:
        if (query, model) not in self._made:
            if self._most is not None and len(self._made) >= self._most:
                raise _OutOfCallsError
            reply, cost = self._ask(query, model)
            if not cost >= 0:
                msg = f"a call to {model!r} cost {cost!r} dollars; it must be 0 or more"
                raise ValueError(msg)
            self._made[query, model] = reply, cost
        return self._made[query, model]


@dataclass(order=True)
class _Partial:
    """Models for the first steps of a plan; the last of them may not have been asked yet."""

    least_usd: float
    """What the steps cost, or cost at least."""
    chosen: tuple[int, ...]
    """Places of the models."""
    results: dict[int, str] = field(compare=False)
    """Of the steps that were done, those that are still needed."""
    paid_usd: float = field(compare=False)
    """What the steps that were done cost."""
    is_asked: bool = field(compare=False)


def cheapest_right(
    plan: Plan,
    models: Sequence[str],
    ask: Ask,
    is_right: IsRight,
    *,
    least_usd: Callable[[str, str], float] = lambda _query, _model: 0.0,
    max_calls: int | None = None,
) -> Found:
    r"""Return the cheapest models for the steps of a plan that lead to the right answer.

    Assignments that reach the same results are one, the cheapest of them; so a model that is wrong in the same way as
    another costs no further calls. Of several that cost the same, the one whose models come first in `models` is
    returned, compared from the first step on.

    Args:
        plan: Its steps may use results of any earlier ones.
        models: By their names; each step may be done by each.
        ask: Makes a call. The same query of the same model is asked once.
        is_right: Judges the answer: the joined results of the last steps, as a planner answers.
        least_usd: From (query, model's name) to dollars that the call costs at least, such as those for its prompt. The
            better it is known, the fewer expensive models are asked. A bound that is too high may miss the cheapest.
        max_calls: Most calls; None for as many as are needed.

    Raises:
        ValueError: A call costs less than nothing.

    Example:
        >>> from langgraph_router_r1.strategies.plans import parse_plan
        >>> plan = parse_plan("1. Which country has the capital Lima?\n2. What currency is used in #1?", "?")
        >>> replies = {"Which country has the capital Lima?": "Peru", "What currency is used in Peru?": "Sol"}
        >>> def ask(query: str, model: str) -> tuple[str, float]:
        ...     return ("Peru", 1.0) if model == "small" else (replies[query], 9.0)
        >>> cheapest_right(plan, ["small", "large"], ask, lambda answer: answer == "Sol")
        Found(models=('small', 'large'), cost_usd=10.0, calls=4, ran_out=False)
    """
    calls = _Calls(ask, max_calls)
    used = [_used_after(plan, done) for done in range(len(plan.steps) + 1)]
    waiting = [_Partial(0.0, (), {}, 0.0, is_asked=True)]
    seen: set[tuple[int, tuple[str, ...]]] = set()
    while waiting:
        one = heapq.heappop(waiting)
        if not one.is_asked:
            step = plan.steps[len(one.chosen) - 1]
            try:
                reply, cost = calls(step.query(one.results), models[one.chosen[-1]])
            except _OutOfCallsError:
                return Found(None, None, len(calls), ran_out=True)
            results = {**one.results, step.number: reply}
            needed = {number: results[number] for number in used[step.number]}
            paid = one.paid_usd + cost
            heapq.heappush(waiting, _Partial(paid, one.chosen, needed, paid, is_asked=True))
            continue
        state = len(one.chosen), tuple(one.results.values())
        if state in seen:
            continue
        seen.add(state)
        if len(one.chosen) == len(plan.steps):
            if is_right(joined([one.results[step.number] for step in plan.ends])):
                return Found(tuple(models[place] for place in one.chosen), one.paid_usd, len(calls))
            continue
        query = plan.steps[len(one.chosen)].query(one.results)
        for place, model in enumerate(models):
            least = one.paid_usd + least_usd(query, model)
            heapq.heappush(waiting, _Partial(least, (*one.chosen, place), one.results, one.paid_usd, is_asked=False))
    return Found(None, None, len(calls))


def _used_after(plan: Plan, done: int) -> list[int]:
    """Return the steps among the first `done` whose results a later step or the answer uses, in order."""
    used = {number for step in plan.steps[done:] for number in step.needs} | {step.number for step in plan.ends}
    return sorted(number for number in used if number <= done)


def grouped_search(
    plan: Plan,
    models: Sequence[str],
    ask: Ask,
    is_right: IsRight,
    *,
    confidences: Sequence[float],
    easy: float = EASY,
    medium: float = MEDIUM,
    max_calls: int | None = None,
) -> Found:
    """Return models for the steps of a plan that lead to the right answer, found as R2-Reasoner finds them.

    The paper: the pool is in three groups, small, medium and large models; the confidence of a baseline model says
    which group a step is given to. If the answer is right, steps are given to cheaper models, the most confident step
    first (downward allocation); if it is wrong, to more expensive ones, the least confident step first, until it is
    right (upward allocation).

    Ours: the groups are the cheapest third of the models, the next, and the rest. A step begins with the middle model
    of its group. From there it goes one model down, or up, at a time, across the groups. Down, a step stays with the
    last model that led to a right answer, and the next step has its turn; the paper's predecessor ends at the first
    failure of any step. Up, a step goes as far as the most expensive model and stays there when the next one begins.
    What upward allocation has found is not tried downward again.

    Args:
        plan: As for `cheapest_right`.
        models: By their names, the cheapest first.
        ask: As for `cheapest_right`.
        is_right: As for `cheapest_right`.
        confidences: How sure the baseline model is of each step, 0 to 1.
        easy: From this confidence on, a step is for the small models.
        medium: From this confidence on, a step is for the medium models.
        max_calls: Most calls; when they are used up, the last right assignment is returned, if there was one.

    Raises:
        ValueError: There is not one confidence for each step, or a call costs less than nothing.
    """
    if len(confidences) != len(plan.steps):
        msg = f"there are {len(confidences)} confidences for {len(plan.steps)} steps; there must be one for each"
        raise ValueError(msg)
    calls = _Calls(ask, max_calls)
    chosen = {
        step.number: _first_choice(len(models), 0 if confidence >= easy else 1 if confidence >= medium else 2)
        for step, confidence in zip(plan.steps, confidences, strict=True)
    }
    surest_first = sorted(chosen, key=lambda number: -confidences[number - 1])
    right: Found | None = None

    def leads_to_it(places: Mapping[int, int]) -> bool:
        nonlocal right
        answer, cost = _done(plan, {number: models[place] for number, place in places.items()}, calls)
        if is_right(answer):
            right = Found(tuple(models[places[step.number]] for step in plan.steps), cost, len(calls))
            return True
        return False

    try:
        if leads_to_it(chosen):
            for number in surest_first:
                while chosen[number] > 0 and leads_to_it({**chosen, number: chosen[number] - 1}):
                    chosen[number] -= 1
        else:
            for number in reversed(surest_first):
                while right is None and chosen[number] < len(models) - 1:
                    chosen[number] += 1
                    leads_to_it(chosen)
    except _OutOfCallsError:
        ran_out = True
    else:
        ran_out = False
    if right is None:
        return Found(None, None, len(calls), ran_out)
    return Found(right.models, right.cost_usd, len(calls), ran_out)


def _first_choice(models: int, group: int) -> int:
    """Return the place of the middle model of a group (0 small, 1 medium, 2 large) among models in order of price.

    Example:
        >>> [_first_choice(9, group) for group in (0, 1, 2)], [_first_choice(2, group) for group in (0, 1, 2)]
        ([1, 4, 7], [0, 1, 1])
    """
    return min(models * (2 * group + 1) // 6, models - 1)


def _done(plan: Plan, models: Mapping[int, str], calls: _Calls) -> tuple[str, float]:
    """Do a plan; return the answer and what the steps cost together."""
    results, total = dict[int, str](), 0.0
    for step in plan.steps:
        results[step.number], cost = calls(step.query(results), models[step.number])
        total += cost
    return joined([results[step.number] for step in plan.ends]), total
