"""A planner whose pool changes, and nobody trains anything: a specialist goes, and another comes in its place.

    for name, pool in changes(simulated_pocket(planning=True), "capitals", directory):
        planner = create_planner(decomposer, pool, allocator="knn")

The newcomer knows the same kind of fact, a little less often and at another price, under a name that says nothing and
in words that no training had. `training.planner change-pool` asks the planner in each of these pools.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from langgraph_router_r1.evaluation.profile import profile
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import Split, Task
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.pocket.world import PocketQuestion, countries, joined_questions, questions, true_steps
from langgraph_router_r1.registry import ModelRegistry
from training.pools import simulated

ACCURACY = 0.95
"""How often a newcomer is right."""

PRICE = 0.15
"""Of a newcomer, in dollars per million tokens: one and a half times that of who was there before it."""

NEWCOMERS = {
    "capitals": ("arvo", "Whichever city is a country's capital, this model has it; also from capital to country."),
    "currencies": ("belin", "Whatever money a country uses."),
    "dialling-codes": ("corda", "Dialling abroad: the digits that reach a country."),
    "internet-domains": ("denis", "The two-letter ending of a country's websites, and the country for an ending."),
}
"""Name and description of who comes in the place of a specialist."""


def changes(pool: ModelRegistry, gone: str, directory: Path, *, profiled: bool) -> Iterator[tuple[str, ModelRegistry]]:
    """Yield a pool as it is, without a specialist, and with a newcomer in its place.

    Args:
        pool: The planner's pool, of simulated models.
        gone: The specialist that is taken out.
        directory: Where profiles go.
        profiled: Whether the pool comes once more, after the newcomer was asked the questions of the profile.
    """
    [skill] = pool[gone].skills
    name, description = NEWCOMERS[gone]
    newcomer = pool[gone].model_copy(
        update={
            "name": name,
            "alias": None,
            "model": simulated(name, {skill: ACCURACY}),
            "description": description,
            "skills": {skill: ACCURACY},
            "price": Price.parse(PRICE),
        }
    )
    rest = [model for model in pool if model.name != gone]
    yield "as it is", pool
    yield "one out", ModelRegistry(rest, profile=pool.profile)
    yield "another in", ModelRegistry([*rest, newcomer], profile=pool.profile)
    if profiled and pool.profile is not None:
        measured = directory / f"{name}.profile.jsonl"
        shutil.copy(pool.profile, measured)
        tasks = list(RecordedPool.from_file(measured).tasks.values())
        asyncio.run(profile(ModelRegistry([newcomer]), tasks, path=measured))
        yield "another in, profiled", ModelRegistry([*rest, newcomer], profile=measured)


def questions_for(specialist: str, *, split: Split, sample: int, choose: random.Random) -> list[Task]:
    """Return questions about the countries of a split that have a step for a specialist, of all kinds.

    Example:
        >>> asked = questions_for("capitals", split="test", sample=5, choose=random.Random(0))
        >>> len(asked)
        5
    """
    lands = countries(split)
    asked = (*questions(lands), *joined_questions(lands))
    needing = [one for one in asked if any(who == specialist for _, who in true_steps(one))]
    return [_task(one) for one in choose.sample(needing, sample)]


def _task(asked: PocketQuestion) -> Task:
    return Task(asked.id, asked.text, asked.answers, "pocket", {"kind": asked.skill, "hops": asked.hops})
