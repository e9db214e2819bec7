"""What a benchmark shows while it runs: the table so far, and what it is busy with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from langgraph_router_r1.evaluation.report import MICRO, score, short
from langgraph_router_r1.trace import printable


class Running:
    """The table while a benchmark runs: what each row has so far."""

    def __init__(self, title: str, rows: Sequence[str], tasks: int, metric: str) -> None:
        """Start with nothing done; `tasks` is the number of questions a row."""
        self.title, self.tasks, self.metric = title, tasks, metric
        self._scores: dict[str, list[float]] = {row: [] for row in rows}
        self._costs: dict[str, list[float]] = {row: [] for row in rows}
        self._doing = ""

    def add(self, run: Mapping[str, Any]) -> None:
        """Take a run that has ended; what it waited for has been done."""
        self._doing = ""
        self._scores[run["row"]].append(score(run, self.metric))
        self._costs[run["row"]].append(math.fsum(run["record"]["report"]["list_cost_parts"].values()))

    def doing(self, what: str) -> None:
        """Say below the table what the benchmark is busy with until the next run ends."""
        self._doing = what

    @property
    def done(self) -> int:
        """Runs so far."""
        return sum(map(len, self._scores.values()))

    @property
    def total(self) -> int:
        """Runs that the benchmark has."""
        return self.tasks * len(self._scores)

    def __rich__(self) -> Table:
        title = f"{self.title}: {self.done} of {self.total} runs"
        table = Table("router", "runs", self.metric, "µ$", title=title, caption=Text(printable(self._doing)))
        for row, scores in self._scores.items():
            if scores:
                cost = f"{np.mean(self._costs[row]) * MICRO:.1f}"
                table.add_row(
                    Text(printable(short(row))), f"{len(scores)}/{self.tasks}", f"{np.mean(scores):.3f}", cost
                )
        return table
