"""Groups of rollouts: a task at a cost weight, asked several times."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from langgraph_router_r1.evaluation.tasks import Task
from training.rewards import COST_WEIGHTS


@dataclass(frozen=True)
class Group:
    """What a group of rollouts has in common."""

    id: str
    """Unique in a run."""
    task: Task
    cost_weight: float


def make_groups(
    tasks: Sequence[Task], count: int, *, cost_weights: Sequence[float] = COST_WEIGHTS, seed: int = 0, name: str = "g"
) -> list[Group]:
    """Return so many groups: the tasks over and over, each time in another order, at cost weights likewise.

    Raises:
        ValueError: There are no tasks, or no cost weights, or one that is not between 0 and 1.
    """
    if not tasks or not cost_weights or not all(0 <= weight <= 1 for weight in cost_weights):
        raise ValueError(
            f"there are {len(tasks)} tasks and the cost weights are {list(cost_weights)}; there must be a task, and "
            "cost weights between 0 (quality only) and 1 (cost only)"
        )
    choose = random.Random(seed)
    order: list[Task] = []
    while len(order) < count:
        order += choose.sample(list(tasks), len(tasks))
    # Each weight once before any comes again: a step that lacked one would pull all of them the same way.
    weights: list[float] = []
    while len(weights) < count:
        weights += choose.sample(list(cost_weights), len(cost_weights))
    return [
        Group(f"{name}{number}", task, weight)
        for number, (task, weight) in enumerate(zip(order[:count], weights, strict=False))
    ]
