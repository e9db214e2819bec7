"""`router-r1 profile`: measures the models of a registry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from langgraph_router_r1.cli.app import cli
from langgraph_router_r1.cli.output import INTERRUPTED, errors, fail, failing_clearly, results_console
from langgraph_router_r1.cli.pool import check_packages, finite, running
from langgraph_router_r1.descriptor import Measured
from langgraph_router_r1.pocket import POOL_FILE, pocket_registry, pocket_server
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.trace import printable

if TYPE_CHECKING:
    from langgraph_router_r1.evaluation.profile import ProfileProgress
    from langgraph_router_r1.evaluation.tasks import Task


@cli.command()
def profile(
    registry: Annotated[
        Path | None, typer.Argument(help="File with the models to measure (.toml); by default the pocket pool.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="What to ask: nq, triviaqa, popqa, hotpotqa, 2wikimultihopqa, musique, bamboogle, pocket, or a file "
            "of your own questions (.jsonl); may be given several times."
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="The most questions of each kind.")] = 200,
    split: Annotated[
        Literal["train", "validation", "test", "all"],
        typer.Option(help="Which of the questions; those that a router is tested on should stay unseen."),
    ] = "train",
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    in_flight: Annotated[
        int, typer.Option(min=1, help="The most calls at the same time; the first 20 of a model go one by one.")
    ] = 32,
    budget: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="The most that may be spent, in dollars.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write a measured copy there (.toml), and leave the registry's file alone.")
    ] = None,
) -> None:
    """Measure every model, and write accuracy, latency, cost and failures into the registry's file.

    The replies are kept beside it, in NAME.profile.jsonl, as they come: after a stop, the same command continues from
    there. Delete that file to measure again from the start.
    """
    with failing_clearly():
        from langgraph_router_r1.evaluation import profile as profiling
        from langgraph_router_r1.evaluation.tasks import distinct

        if registry is None and output is None:
            fail("the pocket pool's own file is part of the package: say with --output where to write")
        if registry is not None and not tasks:
            fail("say with --tasks what to ask, for instance --tasks nq")
        source = registry or POOL_FILE
        target = output or source
        profiling.require_toml(source)
        profiling.require_toml(target)
        if target.is_dir():
            fail(f"{str(target)!r} is a directory: name a file (.toml) with --output")
        pool = ModelRegistry.from_file(source)
        check_packages(pool, keys=True)
        every = distinct(_tasks(tasks or ["pocket"]))
        of_split = None if split == "all" else split
        asked = profiling.sample_by_kind(every, split=of_split, sample=sample, seed=seed)
        errors.print(
            f"{len(asked)} of {len(every)} questions: split {split!r}, {sample} of a kind at most", highlight=False
        )
        replies = target.with_suffix(".profile.jsonl")
        with (
            nullcontext() if registry else running(pocket_server(), errors) as server,
            _bars(pool) as (show, standings),
        ):
            if server is not None:
                pool = pocket_registry(server.base_url)
            try:
                measured = asyncio.run(
                    profiling.profile(pool, asked, path=replies, in_flight=in_flight, budget_usd=budget, progress=show)
                )
            except KeyboardInterrupt:
                fail(f"stopped; the replies so far are in {replies}, and the same command continues", INTERRUPTED)
        profiling.write_profile(source, measured, output=target)
    console = results_console()
    console.print(_profile_table(measured))
    for standing in standings.values():
        for note in (standing.stopped, standing.last_failure):
            if note:
                errors.print(printable(note), style="yellow", markup=False, highlight=False)
    spent = sum(standing.spent_usd for standing in standings.values())
    figures = f"${spent:.6f} spent. Figures: {target}. Replies: {replies}."
    console.print(figures, markup=False, highlight=False, soft_wrap=True)
    if silent := [name for name, figures in measured.items() if profiling.never_replied(figures)]:
        fail(f"no reply at all of {', '.join(silent)}: what the registry says of them stays as it was")


def _tasks(names: list[str]) -> Iterator[Task]:
    from langgraph_router_r1.evaluation.tasks import load_tasks, read_tasks

    for name in names:
        yield from read_tasks(name) if name.endswith(".jsonl") else load_tasks(name)


@contextmanager
def _bars(pool: ModelRegistry) -> Iterator[tuple[Callable[[ProfileProgress], None], Mapping[str, ProfileProgress]]]:
    """Give what shows how far each model is, and what it was shown last."""
    standings: dict[str, ProfileProgress] = {}
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("${task.fields[spent]:.6f}", justify="right"),
        TextColumn("{task.fields[failed]}", style="red"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        bars = {name: progress.add_task(printable(name), spent=0.0, failed="", total=None) for name in pool.names}

        def show(standing: ProfileProgress) -> None:
            standings[standing.model] = standing
            failed = f"{standing.failed} failed" if standing.failed else ""
            progress.update(
                bars[standing.model],
                total=standing.of,
                completed=standing.done,
                spent=standing.spent_usd,
                failed=failed,
            )

        yield show, standings


def _profile_table(measured: Mapping[str, Measured]) -> Table:
    table = Table("model", "accuracy [95 %]", "p50, p95 s", "tokens in, out", "$ a question", "failed", "questions")
    for name, figures in measured.items():
        accuracy = "\n".join(
            f"{kind} {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]" for kind, share in figures.accuracy.items()
        )
        table.add_row(
            Text(printable(name)),
            Text(printable(accuracy)),
            _figures(".2f", figures.latency_p50_s, figures.latency_p95_s),
            _figures(".0f", figures.prompt_tokens, figures.completion_tokens),
            _figures(".2g", figures.cost_usd),
            f"{figures.failure_rate:.1%}",
            str(figures.questions),
        )
    return table


def _figures(form: str, *values: float | None) -> str:
    return ", ".join("" if value is None else f"{value:{form}}" for value in values)
