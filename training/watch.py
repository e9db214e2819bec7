"""What one sees of a run: a line of JSON a step in a file, a table on the screen, and what every rollout did."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from transformers import TrainerCallback

from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.metrics import METRICS
from training.rewards import CostScale, Reward, Score
from training.rollout import Rollout

COLUMNS = {
    "reward": "reward",
    "format": "reward/format",
    "outcome": "reward/outcome",
    "cheap": "reward/cost",
    "EM": "em",
    "$": "cost_usd",
    "turns": "turns",
    "formed": "well_formed",
    "H(calls)": "call_entropy",
    "ratio": "sampling/importance_sampling_ratio/mean",
    "gap": "sampling/sampling_logp_difference/mean",
    "no signal": "groups_without_signal",
    "KL": "kl",
    "s roll": "seconds/rollout",
    "s upd": "seconds/update",
}
"""What the table shows, and what that is called in the log."""

ROWS = 12
"""How many steps the table shows: the latest."""


class _Steps(TrainerCallback):  # type: ignore[misc]
    """A file of JSON objects, a line each, that say which step they belong to."""

    def __init__(self, path: str | Path) -> None:
        """Keep the path; a run that is resumed goes on in the same file."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take back the steps after the checkpoint: they will be done again."""
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
        replace_file(self.path, "".join(kept if state.global_step else []))


class JsonLog(_Steps):
    """Writes one JSON object a step; evaluations have keys that start with `eval_`."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write a line."""
        if not state.is_world_process_zero or not logs or not _is_step(logs):
            return
        line = {"step": state.global_step, **{name: _finite(value) for name, value in logs.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class ProgressTable(TrainerCallback):  # type: ignore[misc]
    """Shows the latest steps: as a live table on a terminal, a line a step elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        """Draw on a console; by default on standard output."""
        self._console = console or Console()
        self._rows: deque[list[str]] = deque(maxlen=ROWS)
        self._live: Live | None = None
        self._steps = 0
        self._calls = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to draw."""
        self._steps = state.max_steps
        if state.is_world_process_zero and self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show a step."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        cells = [_short(logs.get(key)) for key in COLUMNS.values()]
        shares = {key.removeprefix("calls/"): value for key, value in logs.items() if key.startswith("calls/")}
        self._calls = "calls: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        self._rows.append([str(state.global_step), *cells])
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        told = "  ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True) if cell)
        told += f"  {self._calls}"
        self._console.print(f"step {state.global_step}/{state.max_steps}  {told}", soft_wrap=True, highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the table as it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self) -> Table:
        table = Table("step", *COLUMNS, title=f"GRPO, {self._steps} steps", caption=self._calls)
        for row in self._rows:
            table.add_row(*row)
        return table


class RolloutLog(_Steps):
    """Writes a line for each rollout of training: its reward and its `RunRecord`; `training.sft` learns from them.

    Those of an evaluation are not written: nobody should learn from them by accident.

    Example:
        >>> log = RolloutLog("runs/mine/rollouts.jsonl", tokenizer)                                   # doctest: +SKIP
        >>> trainer = GraphGRPOTrainer(..., score=log.watching(rewards), callbacks=[log])             # doctest: +SKIP
    """

    def __init__(self, path: str | Path, tokenizer: Any) -> None:
        """Keep the path; a run that is resumed goes on in the same file."""
        super().__init__(path)
        self._tokenizer = tokenizer
        self._step: int | None = None
        """None between steps, and in all processes but the first."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember which step it is."""
        self._step = state.global_step + 1 if state.is_world_process_zero else None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget it: what is rolled out now is not of a step."""
        self._step = None

    def watching(self, score: Score) -> Score:
        """Return the score, with what it scores written down."""

        def scored(rollouts: Sequence[Rollout], scale: CostScale) -> Sequence[Reward]:
            rewards = score(rollouts, scale)
            if self._step is None:
                return rewards
            with self.path.open("a", encoding="utf-8") as file:
                for rollout, reward in zip(rollouts, rewards, strict=True):
                    file.write(json.dumps(self._told(rollout, reward)) + "\n")
            return rewards

        return scored

    def _told(self, rollout: Rollout, reward: Reward) -> dict[str, Any]:
        return {
            "step": self._step,
            "task": rollout.task.id,
            "golden_answers": rollout.task.golden_answers,
            "cost_weight": rollout.cost_weight,
            "format_ok": rollout.format_ok,
            "reward": reward.total,
            "failed": rollout.failed,
            "wrote": self._tokenizer.decode(rollout.completion_ids),
            "record": rollout.record and rollout.record.model_dump(mode="json"),
        }


def _is_step(logs: dict[str, Any]) -> bool:
    """Whether this is a step or an evaluation, and not the summary at the end."""
    return "loss" in logs or any(name.startswith("eval_") for name in logs)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def measure(
    rollouts: Sequence[Rollout], scored: Sequence[Reward], names: Sequence[str], generations: int
) -> dict[str, float]:
    """Return what a log says of a batch; means are over the rollouts that could be scored.

    Args:
        rollouts: The batch, group by group.
        scored: Their rewards.
        names: Of the pool.
        generations: How many rollouts a group has.
    """
    both = [(rollout, reward) for rollout, reward in zip(rollouts, scored, strict=True) if rollout.is_scorable]
    groups = [
        {
            reward.total
            for rollout, reward in zip(
                rollouts[start : start + generations], scored[start : start + generations], strict=True
            )
            if rollout.is_scorable
        }
        for start in range(0, len(rollouts), generations)
    ]
    asked = [
        call["answered_by"] or call["model"] for rollout, _ in both for call in rollout.calls if call["status"] == "ok"
    ]
    shares = {name: asked.count(name) / len(asked) if asked else 0.0 for name in names}
    right = [float(METRICS["em"](rollout.answer, rollout.task.golden_answers)) for rollout, _ in both]
    figures = {
        "reward/format": _mean([reward.format for _, reward in both]),
        "reward/outcome": _mean([reward.outcome for _, reward in both]),
        "reward/cost": _mean([reward.cost for _, reward in both]),
        "em": _mean(right),
        "cost_usd": _mean([rollout.cost_usd() for rollout, _ in both]),
        "turns": _mean([rollout.turns for rollout, _ in both]),
        "well_formed": _mean([rollout.format_ok for rollout, _ in both]),
        "unscorable": 1 - len(both) / len(rollouts),
        "groups_without_signal": _mean([len(totals) < 2 for totals in groups]),
        "calls_a_rollout": _mean([len(rollout.calls) for rollout, _ in both]),
        "call_entropy": -sum(share * float(torch.tensor(share).log()) for share in shares.values() if share),
        **{f"calls/{name}": share for name, share in shares.items()},
    }
    for weight in sorted({rollout.cost_weight for rollout, _ in both}):
        at_weight = [index for index, (rollout, _) in enumerate(both) if rollout.cost_weight == weight]
        figures[f"em/at_{weight:g}"] = _mean([right[index] for index in at_weight])
        figures[f"cost_usd/at_{weight:g}"] = _mean([both[index][0].cost_usd() for index in at_weight])
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
