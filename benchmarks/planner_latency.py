"""Wall time of the pocket planner beside the pocket router's, on questions that join several facts, through one vLLM.

    python benchmarks/planner_latency.py --questions 32 --at-once 4 --kind compound

So many questions are asked at once, first by the one, then by the other, in turns; nothing is cached but vLLM's
prefixes, which both have warmed up. Questions are about countries that neither has seen in training.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from langgraph_router_r1 import RouterContext
from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.evaluation.tasks import POCKET_SETS, Task, load_tasks
from langgraph_router_r1.pocket import ADAPTERS, PLANNER_ADAPTERS, pocket_planner, pocket_router, pocket_server

WEIGHTS = {"router": 0.0, "planner": 0.3}
"""At which cost weight each asks the models that know the answer."""


async def timed(graph: Any, tasks: list[Task], cost_weight: float) -> tuple[list[float], list[float]]:
    """Ask all at once; return the seconds of each, and whether it is right."""

    async def one(task: Task) -> tuple[float, float]:
        began = time.perf_counter()
        question = {"messages": [("user", task.question)]}
        result = await graph.ainvoke(question, context=RouterContext(cost_weight=cost_weight))
        return time.perf_counter() - began, exact_match(result["answer"], task.golden_answers)

    seconds, right = zip(*await asyncio.gather(*map(one, tasks)), strict=True)
    return list(seconds), list(right)


async def measure(base_url: str, tasks: list[Task], at_once: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return the seconds of each question, and whether it was answered right, by who was asked."""
    graphs = {"router": pocket_router(base_url), "planner": pocket_planner(base_url)}
    warm, tasks = tasks[:at_once], tasks[at_once:]
    for name, graph in graphs.items():
        await timed(graph, warm, WEIGHTS[name])
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in graphs}
    for number, start in enumerate(track(range(0, len(tasks), at_once), console=Console(stderr=True))):
        batch = tasks[start : start + at_once]
        for name in list(graphs)[:: 1 if number % 2 else -1]:
            seconds, right = await timed(graphs[name], batch, WEIGHTS[name])
            found[name][0].extend(seconds)
            found[name][1].extend(right)
    return found


def ratio(first: list[float], second: list[float]) -> str:
    """Return the ratio of the means of two lists of the same questions, with a 95 % bootstrap interval."""
    one, other = np.array(first), np.array(second)
    picked = np.random.default_rng(0).integers(len(one), size=(9999, len(one)))
    low, high = np.quantile(one[picked].mean(1) / other[picked].mean(1), [0.025, 0.975])
    return f"{one.mean() / other.mean():.2f} [{low:.2f}, {high:.2f}]"


def main(questions: int = 32, at_once: int = 4, kind: str = "compound", seed: int = 0) -> None:
    tasks = [task for name in POCKET_SETS for task in load_tasks(name, split="test")]
    of_kind = [task for task in tasks if task.meta["hops"] == kind]
    if len(of_kind) < questions + at_once:
        kinds = ", ".join(sorted({task.meta["hops"] for task in tasks}))
        raise typer.BadParameter(f"there are {len(of_kind)} questions of the kind {kind!r}; the kinds are: {kinds}")
    drawn = random.Random(seed).sample(of_kind, questions + at_once)
    with pocket_server(adapters=(ADAPTERS, PLANNER_ADAPTERS)) as server:
        found = asyncio.run(measure(server.base_url, drawn, at_once))
    table = Table("", "s, median", "s, mean", "exact match", title=f"{questions} {kind}, {at_once} at once")
    for name, (seconds, right) in found.items():
        table.add_row(name, f"{np.median(seconds):.2f}", f"{np.mean(seconds):.2f}", f"{np.mean(right):.3f}")
    Console().print(table)
    Console().print(f"planner's time over the router's: {ratio(found['planner'][0], found['router'][0])}")


if __name__ == "__main__":
    typer.run(main)
