"""Wall time of the pocket planner beside the pocket router's, kNN's and a single model's, through one vLLM.

    python benchmarks/planner_latency.py --questions 32 --at-once 4 --kind compound
    python benchmarks/planner_latency.py --kind two-hop --strategies planner,knn,generalist

So many questions are asked at once, by one strategy after the other, in turns; nothing is cached but vLLM's prefixes,
which all have warmed up. Questions are about countries that neither has seen in training.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from langgraph_router_r1 import RouterContext
from langgraph_router_r1.evaluation.baselines import create_baseline
from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import POCKET_SETS, Task, load_tasks
from langgraph_router_r1.pocket import (
    ADAPTERS,
    PLANNER_ADAPTERS,
    PLANNER_PROFILE_FILE,
    pocket_planner,
    pocket_registry,
    pocket_router,
    pocket_server,
)

WEIGHTS = {"router": 0.0, "planner": 0.3, "knn": 0.3, "generalist": 0.0}
"""At which cost weight each asks the models that know the answer, as in benchmarks/planner.toml."""


async def timed(graph: Any, tasks: list[Task], cost_weight: float) -> tuple[list[float], list[float]]:
    """Ask all at once; return the seconds of each, and whether it is right."""

    async def one(task: Task) -> tuple[float, float]:
        began = time.perf_counter()
        question = {"messages": [("user", task.question)]}
        result = await graph.ainvoke(question, context=RouterContext(cost_weight=cost_weight))
        return time.perf_counter() - began, exact_match(result["answer"], task.golden_answers)

    seconds, right = zip(*await asyncio.gather(*map(one, tasks)), strict=True)
    return list(seconds), list(right)


def strategies(base_url: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the graphs of these strategies, all over models of one server."""
    planning = pocket_registry(base_url, planning=True)
    made: dict[str, Callable[[], Any]] = {
        "router": lambda: pocket_router(base_url),
        "planner": lambda: pocket_planner(base_url),
        "knn": lambda: create_baseline("knn", planning, records=RecordedPool.from_file(PLANNER_PROFILE_FILE)),
        "generalist": lambda: create_baseline("generalist", planning),
    }
    return {name: made[name]() for name in names}


async def measure(
    graphs: dict[str, Any], tasks: list[Task], at_once: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Return the seconds of each question, and whether it was answered right, by who was asked."""
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


def main(
    questions: int = 32,
    at_once: int = 4,
    kind: str = "compound",
    strategies_asked: Annotated[
        str, typer.Option("--strategies", help="The first is what others are compared with.")
    ] = ("router,planner,knn,generalist"),
    seed: int = 0,
) -> None:
    names = strategies_asked.split(",")
    if unknown := set(names) - WEIGHTS.keys():
        raise typer.BadParameter(f"there is no strategy {unknown.pop()!r}; there are: {', '.join(WEIGHTS)}")
    tasks = [task for name in POCKET_SETS for task in load_tasks(name, split="test")]
    of_kind = [task for task in tasks if task.meta["hops"] == kind]
    if len(of_kind) < questions + at_once:
        kinds = ", ".join(sorted({task.meta["hops"] for task in tasks}))
        raise typer.BadParameter(f"there are {len(of_kind)} questions of the kind {kind!r}; the kinds are: {kinds}")
    drawn = random.Random(seed).sample(of_kind, questions + at_once)
    with pocket_server(adapters=(ADAPTERS, PLANNER_ADAPTERS)) as server:
        found = asyncio.run(measure(strategies(server.base_url, names), drawn, at_once))
    title = f"{questions} {kind}, {at_once} at once"
    table = Table("", "s, median", "s, mean", f"mean over {names[0]}'s", "exact match", title=title)
    for name, (seconds, right) in found.items():
        figures = f"{np.median(seconds):.2f}", f"{np.mean(seconds):.2f}", ratio(seconds, found[names[0]][0])
        table.add_row(name, *figures, f"{np.mean(right):.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
