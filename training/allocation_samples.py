"""Plans whose steps are given to models, over drawn pools: what an allocator learns from.

R2-Reasoner (arXiv 2506.05901) takes for each plan the cheapest models that led to the right answer when they were asked
(`training.allocation_search` finds them). One reply is a matter of luck, though: a model that is right on every second
question of a kind is the label of every second step, and nothing in the prompt tells which. Simulated models are right
as often as their descriptors say, so the label here is what is best in expectation: for each step the candidate that is
worth most by its descriptor (`training.pools.worth`), the most accurate at cost weight 0, and of several the cheapest.
A plan is right when all its steps are, and costs what they cost together, so each step can be labelled on its own.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.ledger import PER_MILLION, estimate_tokens
from langgraph_router_r1.pocket.world import DESCRIBED, REVERSED, SPECIALISTS, Country, PocketQuestion, true_steps
from langgraph_router_r1.strategies.allocators import read_allocation
from langgraph_router_r1.strategies.plans import Plan, parse_plan, plan_text
from training.allocation_search import Ask, cheapest_right, grouped_search
from training.kinds import COMPARISON, KINDS, Kind
from training.plan_samples import reworded
from training.pools import DrawnPool, Member, draw_pool
from training.teacher import WEIGHTS, reasons

PLANS_PER_POOL = 8
"""A batch of training has one pool: what its prompts share is then computed once (see sft.py)."""

STRANGE = 0.25
"""Share of the plans that ask for a kind which is not of the pocket world, in pools that have one."""

KIND_OF_SPECIALIST: Mapping[str, str] = {
    "numbers": COMPARISON,
    **{name: relation.removesuffix("_code") for relation, name in SPECIALISTS.items()},
}
"""What the specialists of `true_steps` know, as descriptors tell it."""


@dataclass(frozen=True)
class Allocated:
    """A plan, the pool it is to be done with, and the best model for each step."""

    plan: Plan
    answers: tuple[str, ...]
    """The answer that it leads to, in all its forms."""
    kinds: tuple[str, ...]
    """What each step asks for."""
    pool: DrawnPool
    cost_weight: float
    best: tuple[Member, ...]
    """For each step."""

    @property
    def text(self) -> str:
        """What an allocator shall write: for each step the reasons that the router's teacher has, then a line a step.

        A line has the number of the step and the name that the prompt has for the model.
        """
        thoughts = [reasons(self.pool, kind, self.cost_weight, _in_words(kind)) for kind in self.kinds]
        names = [one.descriptor.display_name for one in self.best]
        return f"<think>\n{_numbered(thoughts)}\n</think>\n{_numbered(names)}"


def _in_words(kind: str) -> str:
    return kind if kind == COMPARISON else KINDS[kind].noun


def _numbered(lines: Iterable[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def draw_allocations(
    questions: Iterable[PocketQuestion], *, pools: int, plain: float = 0.2, seed: int = 0
) -> Iterator[Allocated]:
    """Yield plans with their models, `PLANS_PER_POOL` for each pool, one pool after the other.

    Args:
        questions: Whose true steps are the plans; each way to build a question (`hops`) is taken as often as another.
        pools: How many.
        plain: Share of them that are the planner's pool as it ships.
        seed: Of pools, questions, wordings and cost weights.
    """
    choose = random.Random(seed)
    of_hops: dict[str, list[PocketQuestion]] = defaultdict(list)
    for asked in questions:
        of_hops[asked.hops].append(asked)
    lands = list({asked.country.iso: asked.country for of in of_hops.values() for asked in of}.values())
    for _ in range(pools):
        pool = draw_pool(choose, plain=plain, comparing=True)
        known = sorted({kind for member in pool.members for kind in member.accuracy if kind in KINDS})
        strangers = [KINDS[kind] for kind in known if not KINDS[kind].relation]
        left = PLANS_PER_POOL
        while left:
            if strangers and choose.random() < STRANGE:
                kind, country = choose.choice(strangers), choose.choice(lands)
                steps, answers = _about_stranger(kind, country, choose), [kind.fact(country)]
            else:
                asked = choose.choice(of_hops[choose.choice(list(of_hops))])
                steps, answers = steps_of(asked, choose), list(asked.answers)
            if allocated := allocate(steps, answers, pool, choose.choice(WEIGHTS)):
                yield allocated
                left -= 1


def steps_of(asked: PocketQuestion, choose: random.Random) -> list[tuple[str, str]]:
    """Return the true steps of a question in any wording, each with what it asks for."""
    return [(reworded(text, choose), KIND_OF_SPECIALIST[specialist]) for text, specialist in true_steps(asked)]


def _about_stranger(kind: Kind, country: Country, choose: random.Random) -> list[tuple[str, str]]:
    wording = choose.choice(kind.wordings)
    if choose.random() < 0.5:
        return [(wording.format(country.name), kind.name)]
    through = choose.choice(list(DESCRIBED))
    described = choose.choice(REVERSED[through]).format(country.fact(through))
    return [(described, through), (wording.format("#1"), kind.name)]


def allocate(
    steps: Sequence[tuple[str, str]], answers: Sequence[str], pool: DrawnPool, cost_weight: float
) -> Allocated | None:
    """Return a plan with the best model for each step; None when the pool has nobody for one of them.

    Args:
        steps: The text of each, and what it asks for.
        answers: The answer that they lead to, in all its forms.
        pool: Who can be asked.
        cost_weight: How much a low cost counts, 0 to 1.
    """
    best = [member for _, kind in steps if (member := pool.best(kind, cost_weight)) is not None]
    if len(best) < len(steps):
        return None
    plan = parse_plan(plan_text(text for text, _ in steps), steps[0][0])
    return Allocated(plan, tuple(answers), tuple(kind for _, kind in steps), pool, cost_weight, tuple(best))


def asking(pool: DrawnPool) -> Ask:
    """Return how a simulated pool is asked: from a query and a model's name to its reply and what it costs.

    Example:
        >>> ask = asking(draw_pool(random.Random(0), plain=1.0))
        >>> reply, dollars = ask("What is the capital of Peru?", "capitals")
        >>> reply, round(dollars * 1e6, 6)
        ('Lima', 0.8)
    """

    def ask(query: str, name: str) -> tuple[str, float]:
        model = pool.registry[name]
        reply = str(model.model.invoke(query).text)
        return reply, prompt_usd(pool, query, name) + PER_MILLION * estimate_tokens(reply) * model.price.completion

    return ask


def prompt_usd(pool: DrawnPool, query: str, name: str) -> float:
    """Return what the prompt of a call costs, in dollars: the least that the call can cost."""
    return PER_MILLION * estimate_tokens(query) * pool.registry[name].price.prompt


def confidences(allocated: Allocated) -> list[float]:
    """Return how sure a baseline model is of each step: the pool's most expensive one, which knows how good it is."""
    baseline = max(allocated.pool.members, key=lambda member: member.descriptor.price.level)
    return [baseline.accuracy.get(kind, 0.0) for kind in allocated.kinds]


def compare_searches(drawn: Iterable[Allocated]) -> dict[str, Any]:
    """Return how often the grouped search finds a right assignment, and the cheapest, and how much each search asks.

    Args:
        drawn: Plans with pools of simulated models; one reply of each is right or not, as its accuracy has it.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for one in drawn:
        by_price = sorted(one.pool.members, key=lambda member: member.descriptor.price.level)
        names, ask = [member.descriptor.name for member in by_price], asking(one.pool)
        is_right = functools.partial(exact_match, golden_answers=one.answers)
        exact = cheapest_right(one.plan, names, ask, is_right, least_usd=functools.partial(prompt_usd, one.pool))
        grouped = grouped_search(one.plan, names, ask, is_right, confidences=confidences(one))
        everything = cheapest_right(one.plan, names, ask, lambda _: False)
        found["solvable"].append(exact.models is not None)
        found["calls, brute force"].append(everything.calls)
        found["calls, exact"].append(exact.calls)
        found["calls, exact without prices"].append(cheapest_right(one.plan, names, ask, is_right).calls)
        found["calls, grouped"].append(grouped.calls)
        if exact.models is None or exact.cost_usd is None:
            continue
        steps = f"{len(one.plan.steps)} steps"
        is_cheapest = grouped.cost_usd is not None and math.isclose(grouped.cost_usd, exact.cost_usd)
        for name, value in (("grouped right", grouped.models is not None), ("grouped cheapest", is_cheapest)):
            found[name].append(value)
            found[f"{name}, {steps}"].append(value)
        if grouped.cost_usd is not None:
            found["cost of grouped, cheapest = 1"].append(grouped.cost_usd / exact.cost_usd)
        if one.cost_weight == 0:
            found["exact = label at cost weight 0"] += [
                name == best.descriptor.name for name, best in zip(exact.models, one.best, strict=True)
            ]
    return {name: round(statistics.mean(values), 3) for name, values in sorted(found.items())}


def judge_allocations(drawn: Iterable[Allocated], texts: Iterable[str]) -> dict[str, float]:
    """Return for which share of the steps an allocator named the best model, and one that can do it at all.

    Beside them stands what would be right by chance or by a simple rule: the cheapest of those that can do a step, and
    the best at cost weight 0, whatever the weight.

    Args:
        drawn: Plans with pools.
        texts: What the allocator wrote for each.
    """
    found: dict[str, list[bool]] = defaultdict(list)
    for one, text in zip(drawn, texts, strict=True):
        names, reason = read_allocation(text, len(one.plan.steps), one.pool.registry)
        found["plans read whole"].append(reason is None)
        for name, kind, best in zip(names, one.kinds, one.best, strict=True):
            able = one.pool.candidates(kind)
            choice = "one candidate" if len(able) == 1 else "several candidates"
            weight = "cost weight 0" if one.cost_weight == 0 else "cost weights above 0"
            for group in ("right", f"right, {choice}", f"right, {weight}"):
                found[group].append(name == best.descriptor.name)
            found["a candidate"].append(name in {member.descriptor.name for member in able})
            found["cheapest candidate would be right"].append(
                best is min(able, key=lambda member: member.descriptor.price.prompt)
            )
            found["best at cost weight 0 would be right"].append(best is one.pool.best(kind, 0.0))
    return {"steps": len(found["right"]), **{name: round(statistics.mean(of), 3) for name, of in sorted(found.items())}}
