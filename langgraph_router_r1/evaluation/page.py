"""The page of results: every benchmark file, with the figures of its results file or the word that it was not run."""

from __future__ import annotations

import tomllib
from pathlib import Path

from langgraph_router_r1.evaluation.bench_file import BenchError, BenchSpec
from langgraph_router_r1.evaluation.plots import draw_plots
from langgraph_router_r1.evaluation.report import (
    Results,
    agreement,
    frontier_areas,
    markdown_table,
    short,
    spread_table,
)

PAGE_HEAD = """\
# Results

Made by `router-r1 results` from the files in `{results}/`, which `router-r1 bench FILE --publish {results}`
writes; nothing here is written by hand. Intervals are 95 % bootstrap intervals over questions (9,999 resamples, seed
0), Wilson's where all are right or all wrong; *p* is a two-sided permutation test over pairs, not corrected for the
number of rows. Costs are list prices in millionths of a dollar. Seconds are those of a run among up to 32 at a time,
and stand only where real models were asked and no reply of a row was known from a row above. An area is that of the
best settings on the very questions: a family with more of them has more to choose from.
"""


def results_page(benchmarks: Path, results: Path) -> str:
    """Return the page: every benchmark file of a directory, with its results where there are any.

    Args:
        benchmarks: Directory of benchmark files.
        results: Directory of result files, the plots among them.

    Raises:
        BenchError: There are no benchmark files in that directory, or one of them is wrong.
        TaskError: A result file is wrong.
    """
    parts = [PAGE_HEAD.format(results=_shown(results))]
    files = sorted(path for path in benchmarks.glob("*.toml") if _is_benchmark(path))
    if not files:
        raise BenchError(
            f"{str(benchmarks)!r} is no directory with benchmark files (.toml): "
            "run this in a clone of the repository, or name the directory"
        )
    for path in files:
        spec = BenchSpec.from_file(path)
        file = results / f"{path.stem}.jsonl"
        command = f"router-r1 bench {_shown(path)} --publish {_shown(results)}"
        parts.append(f"## {spec.title}\n")
        if spec.about:
            parts.append(f"{spec.about.strip()}\n")
        if file.exists():
            parts += _section(Results.load(file), results.name, command)
        else:
            why = " (its models are behind keys)" if spec.needs_keys else ""
            parts.append(f"**Not run**{why}. Command: `{command}`\n")
    return "\n".join(parts)


def _shown(path: Path) -> str:
    """Return a path as one writes it here."""
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def _is_benchmark(path: Path) -> bool:
    """Return whether a TOML file is meant as a benchmark: beside them stand registries."""
    try:
        return "models" not in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # what is wrong with it is said when it is read


def _section(results: Results, directory: str, command: str) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in results.facts.items())
    parts = [f"`{command}`: {len(results.tasks)} questions, {facts}.\n", markdown_table(results), ""]
    if "score" in results.metrics:
        models = {model for row in results.rows for model in row.calls}
        for metric in sorted({"contains", "judge"} & set(results.metrics)):
            same = {row: share for row, share in agreement(results, metric, "score").items() if row in models}
            listed = ", ".join(f"{short(row)} {share:.3f}".replace(" 0.", " .") for row, share in same.items())
            parts.append(f"`{metric}` agrees with the recorded score on these shares of the questions: {listed}.\n")
    spread = spread_table(results)
    if spread:
        lines = [spread[0], ["---"] * len(spread[0]), *spread[1:]]
        parts += ["Over the forms of the pool:\n", *("| " + " | ".join(line) + " |" for line in lines), ""]
    areas = {} if spread else frontier_areas(results)
    if areas:
        ranked = sorted(areas.items(), key=lambda item: -item[1].mean)
        listed = ", ".join(f"{family} {estimate}" for family, estimate in ranked)
        parts.append(f"Mean {results.metric} over all budgets (area under the frontier): {listed}.\n")
    pictures = ["frontier", "weights", "shares"] if areas else ["forms" if spread else "frontier", "shares"]
    parts += [f"![{name}]({directory}/{results.name}-{name}.svg)\n" for name in pictures]
    return parts


def publish(results: Results, directory: Path) -> None:
    """Write a benchmark's results and plots where the page of results finds them."""
    results.save(directory / f"{results.name}.jsonl")
    draw_plots(Results.load(directory / f"{results.name}.jsonl"), directory)
