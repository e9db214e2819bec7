"""Runs into figures: scores with intervals, tables, and the frontier of quality against cost.

A `Results` is what a benchmark has to say, small enough to be kept in a repository: for each row the scores and costs
of each run, without the texts. Tables and plots are made from it alone, so that figures in documents can be reproduced.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.metrics import METRICS, Estimate, bootstrap, paired_p_value, wilson, without_tags
from langgraph_router_r1.evaluation.tasks import TaskError, json_lines
from langgraph_router_r1.trace import printable

COST_PARTS = ("prompt", "cached", "completion", "router")
ON_THE_REPLY = frozenset({"contains", "number"})
"""Metrics of the whole reply; the others look at the short answer."""

COST_COLUMN = "prompt + cached + completion + router"
SHARE_COLUMN = "most asked (entropy, bits)"
MIXTURE_COLUMN = "single models mixed, at that cost"

MICRO = 1e6
"""Costs are shown in millionths of a dollar."""


@dataclass(frozen=True)
class Scores:
    """One row: a router with a cost weight, and what each of its runs scored, in the order of the tasks."""

    row: str
    family: str
    cost_weight: float
    metrics: dict[str, list[float]]
    cost_usd: dict[str, list[float]]
    """Dollars, by part: routed prompts, cached prompts, completions, the router's own tokens."""
    calls: dict[str, int]
    """How often each model answered."""
    turns: list[int]
    latency_s: list[float | None]
    """Seconds of each run; None where a reply was known from before, and so was not waited for. Empty in
    published results of recorded models."""
    failures: dict[str, int]
    """Runs without an answer of their own by stop reason, failed calls by status, malformed runs."""
    form: str = ""
    """In which form the router was told of the pool, where a benchmark has several (see forms.py)."""

    @functools.cached_property
    def costs(self) -> list[float]:
        """Dollars a run."""
        return [math.fsum(parts) for parts in zip(*(self.cost_usd[part] for part in COST_PARTS), strict=True)]

    def estimate(self, metric: str) -> Estimate:
        """Return the mean of a metric with its 95 % bootstrap interval; Wilson's where all are right or all wrong."""
        scores = self.metrics[metric]
        if set(scores) in ({0.0}, {1.0}):
            return wilson(sum(scores), len(scores))
        return bootstrap(scores)

    @property
    def median_s(self) -> float | None:
        """Seconds of the median run; None when any was answered from what was known, or none is kept."""
        waited = [seconds for seconds in self.latency_s if seconds is not None]
        return float(np.median(waited)) if waited and len(waited) == len(self.latency_s) else None

    @property
    def entropy_bits(self) -> float:
        """How evenly calls are spread over models: 0 when all go to one."""
        total = sum(self.calls.values())
        return -math.fsum(n / total * math.log2(n / total) for n in self.calls.values() if n) + 0.0 if total else 0.0


@dataclass(frozen=True)
class Results:
    """What a benchmark measured, where and when."""

    name: str
    title: str
    metrics: tuple[str, ...]
    """The first one decides."""
    tasks: tuple[str, ...]
    """Ids, in the order of every column of scores."""
    rows: tuple[Scores, ...]
    reference: str | None = None
    """The row that others are compared with."""
    live: bool = False
    """Whether real models were asked: what recorded ones take says nothing."""
    facts: dict[str, str] = field(default_factory=dict)
    """Date, machine, command, seed."""

    def __getitem__(self, row: str) -> Scores:
        for scores in self.rows:
            if scores.row == row:
                return scores
        names = ", ".join(repr(scores.row) for scores in self.rows)
        raise ValueError(f"{self.name} has no row {row!r}; it has: {names}")

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self.metrics[0]

    def p_value(self, first: str, second: str) -> float:
        """Return how likely two rows differ so much by chance, paired by task."""
        return paired_p_value(self[first].metrics[self.metric], self[second].metrics[self.metric])

    def difference(self, first: str, second: str) -> Estimate:
        """Return by how much the first of two rows is better, in the metric that decides, paired by task."""
        pairs = zip(self[first].metrics[self.metric], self[second].metrics[self.metric], strict=True)
        return bootstrap([one - other for one, other in pairs])

    def save(self, path: Path) -> None:
        """Write a file: a line of facts, then a line a row. All or nothing."""
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        # How long recorded models took to be looked up is nobody's figure, and a quarter of the file.
        rows = [asdict(row if self.live else replace(row, latency_s=[])) for row in self.rows]
        lines = [json.dumps(line, separators=(",", ":")) for line in (head, *map(_rounded, rows))]
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read such a file.

        Raises:
            TaskError: It can't be read, or is something else.
        """
        try:
            (_, head), *rows = json_lines(path)
            head |= {"metrics": tuple(head["metrics"]), "tasks": tuple(head["tasks"])}
            return cls(**head, rows=tuple(Scores(**row) for _, row in rows))
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(f"{str(path)!r} holds no results: {error}") from None


def _rounded(value: Any) -> Any:
    """Return it with numbers as short as they may be for every figure to stay: whole ones without a fraction."""
    if isinstance(value, float):
        short = float(f"{value:.6g}")
        return int(short) if short.is_integer() else short
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def score(run: Mapping[str, Any], metric: str) -> float:
    """Return one score of a run as it stands in a run file."""
    if metric in {"score", "judge"}:  # judged elsewhere; no verdict counts as wrong
        return float(run.get(metric) or 0.0)
    said = without_tags(run["reply"]) if metric in ON_THE_REPLY else run["record"]["answer"]
    return float(METRICS[metric](said, run["golden_answers"]))


def score_runs(
    runs: Sequence[Mapping[str, Any]],
    rows: Sequence[tuple[str, str, float]],
    *,
    metrics: Sequence[str],
    forms: Mapping[str, str] | None = None,
    **about: Any,
) -> Results:
    """Return the results of runs, which may come in any order.

    Args:
        runs: Lines of a run file.
        rows: Row, family and cost weight of each row, in the order of the table.
        metrics: Names of metrics.
        forms: By row, the form in which its router was told of the pool.
        about: Other fields of `Results`.
    """
    by_row: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run in runs:
        by_row.setdefault(run["row"], {})[run["task_id"]] = run
    tasks = tuple(by_row[rows[0][0]])
    scored = []
    for name, family, weight in rows:
        of_row = [by_row[name][task] for task in tasks]
        records = [run["record"] for run in of_row]
        scored.append(
            Scores(
                row=name,
                family=family,
                cost_weight=weight,
                metrics={metric: [score(run, metric) for run in of_row] for metric in metrics},
                cost_usd={
                    part: [record["report"]["list_cost_parts"][part] for record in records] for part in COST_PARTS
                },
                calls=dict(
                    Counter(
                        call["answered_by"] for record in records for call in record["calls"] if call["answered_by"]
                    ).most_common()
                ),
                turns=[record["report"]["turns"] for record in records],
                latency_s=[
                    None if any(map(_was_known, run["record"]["calls"])) else run["latency_s"] for run in of_row
                ],
                failures=_failures(of_row),
                form=(forms or {}).get(name, ""),
            )
        )
    return Results(metrics=tuple(metrics), tasks=tasks, rows=tuple(scored), **about)


def _was_known(call: Mapping[str, Any]) -> bool:
    return bool(call["cost_usd"] == 0 < call["list_cost_usd"])


def _failures(runs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    records = [run["record"] for run in runs]
    reasons = [record["report"]["stop_reason"] for record in records]
    counted = Counter(reason for reason in reasons if reason != "answered")
    counted.update(f"call {call['status']}" for record in records for call in record["calls"] if call["status"] != "ok")
    malformed = sum(run.get("format_problem") is not None for run in runs)
    return dict(counted) | ({"malformed": malformed} if malformed else {})


def agreement(results: Results, metric: str, other: str) -> dict[str, float]:
    """Return for each row the share of runs on which two metrics say the same of right and wrong."""
    return {
        row.row: float(np.mean((np.array(row.metrics[metric]) >= 0.5) == (np.array(row.metrics[other]) >= 0.5)))
        for row in results.rows
    }


# Tables


def columns(results: Results) -> list[str]:
    """Return the heads of the table."""
    return [
        "router",
        *(f"{metric} [95 %]" for metric in results.metrics),
        "µ$ a question",
        *([MIXTURE_COLUMN] if single_models(results) else []),
        COST_COLUMN,
        "calls",
        "turns",
        *(["s, median"] if results.live else []),
        SHARE_COLUMN,
        "failures",
        *([f"p against {results.reference}"] if results.reference else []),
    ]


def cells(results: Results, row: Scores) -> list[str]:
    """Return one line of the table."""
    asked = sum(row.calls.values())
    most = max(row.calls.items(), key=lambda item: item[1], default=("", 0))
    share = f"{short(most[0])} {most[1] / asked:.0%} ({row.entropy_bits:.2f})" if asked else "none"
    cost = bootstrap([dollars * MICRO for dollars in row.costs])
    parts = " + ".join(f"{np.mean(row.cost_usd[part]) * MICRO:.1f}" for part in COST_PARTS)
    failures = ", ".join(f"{reason} {count}" for reason, count in sorted(row.failures.items()))
    line = [
        short(row.row),
        *(str(row.estimate(metric)) for metric in results.metrics),
        f"{cost.mean:.1f} [{cost.low:.1f}, {cost.high:.1f}]",
        *([_mixed(results, row)] if single_models(results) else []),
        parts,
        f"{asked / len(row.turns):.2f}",
        f"{np.mean(row.turns):.2f}",
        *(["" if row.median_s is None else f"{row.median_s:.2f}"] if results.live else []),
        share,
        failures or "none",
    ]
    if results.reference:
        same = row.row == results.reference
        p_value = 1.0 if same else results.p_value(row.row, results.reference)
        line.append("" if same else "<.001" if p_value < 0.001 else f"{p_value:.3f}")
    return line


def _mixed(results: Results, row: Scores) -> str:
    return "" if _is_single(row) else f"{mixture(results, float(np.mean(row.costs))):.3f}"


def terminal_table(results: Results, console: Console) -> Table:
    """Return the table for a terminal: where it is too narrow for all columns, without those that matter least."""
    kept = columns(results)
    spare = [
        COST_COLUMN,
        "failures",
        "turns",
        MIXTURE_COLUMN,
        *(f"{metric} [95 %]" for metric in results.metrics[:0:-1]),
    ]
    spare += [SHARE_COLUMN, "s, median", "calls"]
    rows = [dict(zip(kept, cells(results, row), strict=True)) for row in results.rows]
    left_out: list[str] = []
    unbounded = console.options.update(max_width=10**6)
    while True:
        caption = f"no room here for: {'; '.join(left_out)}" if left_out else None
        names = [column.replace(" against ", " against\n") for column in kept]
        table = Table(*names, title=f"{results.title} ({len(results.tasks)} questions)", caption=caption)
        for row in rows:
            table.add_row(*(Text(printable(row[column])) for column in kept))
        if not spare or Measurement.get(console, unbounded, table).maximum <= console.width:
            return table
        if (column := spare.pop(0)) in kept:
            kept.remove(column)
            left_out.append(column)


def markdown_table(results: Results) -> str:
    """Return the table for a page."""
    lines = [columns(results), ["---"] * len(columns(results)), *(cells(results, row) for row in results.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread_table(results: Results) -> list[list[str]]:
    """Return the spread over the forms that a pool was told of in, heads first; nothing where there are no forms.

    A line a form and cost weight: mean, lowest and highest of the metric that decides over the forms drawn, the same
    of the cost, and the models that were asked most, with the lowest and highest share of their calls.
    """
    groups: dict[tuple[str, str, float], list[Scores]] = {}
    for row in results.rows:
        if row.form:
            groups.setdefault((row.family.partition(",")[0], row.form, row.cost_weight), []).append(row)
    if not groups:
        return []
    lines = [["router", "form", "forms", f"{results.metric}, mean", "lowest", "highest", "µ$", "share of the calls"]]
    for (family, form, weight), rows in groups.items():
        values = [row.estimate(results.metric).mean for row in rows]
        costs = [float(np.mean(row.costs)) * MICRO for row in rows]
        several = len(rows) > 1
        lines.append(
            [
                f"{family} {weight:g}",
                form,
                str(len(rows)),
                *(f"{value:.3f}" for value in (float(np.mean(values)), min(values), max(values))),
                f"{min(costs):.1f} to {max(costs):.1f}" if several else f"{costs[0]:.1f}",
                ", ".join(_shares(rows)[:4]),
            ]
        )
    return lines


def text_table(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """Return a table for a terminal, of lines with the heads first."""
    table = Table(*lines[0], title=title)
    for line in lines[1:]:
        table.add_row(*(Text(printable(cell)) for cell in line))
    return table


def _shares(rows: Sequence[Scores]) -> list[str]:
    """Return how much of the calls went to whom, most asked first: the range over rows."""
    asked: dict[str, list[float]] = {}
    for model in dict.fromkeys(model for row in rows for model in row.calls):
        asked[model] = [row.calls.get(model, 0) / max(1, sum(row.calls.values())) for row in rows]
    ranked = sorted(asked.items(), key=lambda item: -float(np.mean(item[1])))
    return [
        f"{short(model)} {min(shares):.0%}" + (f" to {max(shares):.0%}" if max(shares) > min(shares) else "")
        for model, shares in ranked
    ]


def short(name: str) -> str:
    """Return a model's name without its maker's."""
    return name.split("/")[-1]


# The frontier


def families(results: Results) -> dict[str, list[Scores]]:
    """Return the rows by family, in order."""
    found: dict[str, list[Scores]] = {}
    for row in results.rows:
        found.setdefault(row.family, []).append(row)
    return found


def frontier_areas(results: Results, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Return for each family of several cost weights its mean quality over all budgets, with a bootstrap interval.

    A budget lies between nothing and what the most expensive row costs. A router may be mixed of a family's settings,
    and of giving no answer at no cost, so its frontier is their upper convex hull; the measure is the area under it
    over the range (as RouterBench's AIQ, arXiv 2403.12031, from nothing on). Tasks are resampled for all rows alike.
    """
    draws = np.random.default_rng(seed).integers(len(results.tasks), size=(resamples, len(results.tasks)))
    everything = np.arange(len(results.tasks))[None]
    budget = max(float(np.mean(row.costs)) for row in results.rows)
    areas = {}
    for family, rows in families(results).items():
        if len(rows) < 2 or budget == 0:
            continue

        def area(picked: Any, rows: Sequence[Scores] = rows) -> Any:
            costs = np.array([np.asarray(row.costs)[picked].mean(1) for row in rows]).T
            quality = np.array([np.asarray(row.metrics[results.metric])[picked].mean(1) for row in rows]).T
            return np.array(
                [_area(list(zip(*points, strict=True)), budget) for points in zip(costs, quality, strict=True)]
            )

        spread = area(draws)
        low, high = np.quantile(spread, [0.025, 0.975])
        areas[family] = Estimate(float(area(everything)[0]), float(low), float(high))
    return areas


def _area(points: Sequence[tuple[float, float]], budget: float) -> float:
    """Return the mean height of the frontier of these points (cost, quality) from 0 to the budget."""
    hull = frontier(points)
    if hull[-1][0] < budget:
        hull.append((budget, hull[-1][1]))
    costs, quality = zip(*hull, strict=True)
    grid = np.union1d(np.asarray([cost for cost in costs if cost <= budget]), [budget])
    return float(np.trapezoid(np.interp(grid, costs, quality), grid) / budget)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the upper convex hull of points (cost, quality) from nothing at no cost to the best of them.

    Example:
        >>> frontier([(1.0, 0.5), (2.0, 0.6), (3.0, 0.9), (4.0, 0.8)])
        [(0.0, 0.0), (1.0, 0.5), (3.0, 0.9)]
    """
    hull: list[tuple[float, float]] = [(0.0, 0.0)]
    for cost, quality in sorted(points):
        if quality <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], (cost, quality)) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append((float(cost), float(quality)))
    return hull


def single_models(results: Results) -> list[Scores]:
    """Return the rows that ask the model they are named after, and no other."""
    return [row for row in results.rows if _is_single(row)]


def _is_single(row: Scores) -> bool:
    return set(row.calls) == {row.row}


def mixture(results: Results, cost_usd: float) -> float:
    """Return what asking single models at random scores on average at this cost, with the best shares.

    It needs no knowledge of a question, so a router that is not above it has learned nothing about questions. The
    shares are chosen on the questions that are reported, which favours the mixture. Nobody asked at no cost scores 0.
    """
    singles = single_models(results)
    hull = frontier([(float(np.mean(row.costs)), float(np.mean(row.metrics[results.metric]))) for row in singles])
    costs, quality = zip(*hull, strict=True)
    return float(np.interp(cost_usd, costs, quality))


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0]) if end[0] > start[0] else math.inf
