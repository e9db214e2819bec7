"""`router-r1 bench | results`: measures routers, and writes the page of published results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from langgraph_router_r1.cli.app import cli
from langgraph_router_r1.cli.output import INTERRUPTED, errors, fail, failing_clearly, results_console
from langgraph_router_r1.cli.pool import finite

if TYPE_CHECKING:
    from langgraph_router_r1.evaluation.report import Results


@cli.command()
def bench(
    file: Annotated[
        Path, typer.Argument(help="The benchmark file (.toml), or the name of one of ours; see benchmarks/.")
    ],
    registry: Annotated[
        Path | None, typer.Option(help="A registry file, in the place of the benchmark's pool.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Tasks or a .jsonl file of tasks, in place of its own.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="The vLLM of a trained router of your own.")] = None,
    model: Annotated[str | None, typer.Option(help="That router's name there.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory of the runs, runs/bench/NAME by default; what it has is not run again."),
    ] = None,
    publish: Annotated[
        Path | None, typer.Option(help="Write scores and plots into this directory too, for the page of results.")
    ] = None,
    compare: Annotated[list[str] | None, typer.Option(help="Two rows to compare, pair by pair: give it twice.")] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Make runs again in which a model, or the judge, was asked and failed."),
    ] = False,
    by_turn: Annotated[
        bool,
        typer.Option(
            "--by-turn", help="Also show the score that each row would have if its runs had ended after each turn."
        ),
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            help="What this command may spend, in dollars; each run may cost as much as the most expensive of its row.",
        ),
    ] = None,
) -> None:
    """Run routers and baselines on the same questions: one table with intervals, costs and call shares."""
    if compare and len(compare) != 2:
        fail("--compare needs two rows: give it twice")
    for directory in (output, publish):
        if directory is not None and directory.exists() and not directory.is_dir():
            fail(f"{str(directory)!r} is a file, and must be a directory")
    console = results_console()
    with failing_clearly():
        from langgraph_router_r1.evaluation import report
        from langgraph_router_r1.evaluation.bench import Bench
        from langgraph_router_r1.evaluation.bench_file import find_benchmark
        from langgraph_router_r1.evaluation.page import publish as write_results
        from langgraph_router_r1.evaluation.running import Running
        from langgraph_router_r1.evaluation.turns import check_metric, turns_table

        benchmark = Bench.from_file(
            find_benchmark(file),
            output or Path("runs/bench") / file.stem,
            registry=registry,
            tasks=tasks or (),
            url=url,
            model=model,
        )
        for row in compare or []:
            if row not in (known := [row.name for row in benchmark.rows]):
                fail(f"--compare {row!r}: {benchmark.name} has no such row; it has: {', '.join(known)}")
        if by_turn:
            check_metric(benchmark.spec.metrics[0])
        running = Running(
            benchmark.spec.title, [row.name for row in benchmark.rows], len(benchmark.tasks), benchmark.spec.metrics[0]
        )
        seen = "" if benchmark.spec.seen is None else f", without {benchmark.spec.seen} that were seen"
        errors.print(f"{len(benchmark.tasks)} questions: split {benchmark.spec.split!r}{seen}", highlight=False)
        for run in benchmark.finished(retry_failed=retry_failed).values():
            running.add(run)
        with Live(running, console=errors, refresh_per_second=2, transient=True):
            try:
                runs = asyncio.run(
                    benchmark.run(running.add, running.doing, retry_failed=retry_failed, budget_usd=budget)
                )
            except KeyboardInterrupt:
                fail(f"stopped; the runs so far are in {benchmark.output}, and the same command continues", INTERRUPTED)
        results = benchmark.results(runs)
        _print(console, results, compare or ())
        if by_turn:
            console.print(report.text_table("After each turn", turns_table(runs, results.metric)))
        write_results(results, publish or benchmark.output)
        console.print(f"plots: {publish or benchmark.output}", markup=False)


def _print(console: Console, results: Results, compare: Sequence[str]) -> None:
    """Print what came out, with two rows compared if there are two to compare."""
    from langgraph_router_r1.evaluation import report

    console.print(report.terminal_table(results, console))
    if compare:
        first, second = compare
        found, p_value = results.difference(first, second), results.p_value(first, second)
        by = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        console.print(f"{first} - {second}: {results.metric} {by}, p = {p_value:.4f}", markup=False)
    if (spread := report.spread_table(results))[1:]:
        console.print(report.text_table("Over the forms of the pool", spread))
        return
    for family, area in report.frontier_areas(results).items():
        console.print(f"mean {results.metric} over all budgets, {family}: {area}", markup=False)


@cli.command()
def results(
    benchmarks: Annotated[Path, typer.Option(help="Directory of the benchmark files.")] = Path("benchmarks"),
    published: Annotated[Path, typer.Option(help="Directory that `bench --publish` wrote to.")] = Path("docs/results"),
    page: Annotated[Path, typer.Option(help="The page to write.")] = Path("docs/results.md"),
) -> None:
    """Write the page of results from what was published. Run it in a clone of the repository."""
    with failing_clearly():
        from langgraph_router_r1.evaluation.files import replace_file
        from langgraph_router_r1.evaluation.page import results_page

        if page.is_dir() or not page.parent.is_dir():
            fail(f"--page is {str(page)!r}; it must be a file in a directory that exists")
        replace_file(page, results_page(benchmarks, published))
    typer.echo(f"{page}: written")
