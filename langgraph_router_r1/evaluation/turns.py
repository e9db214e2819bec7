"""What each turn of a run brought: how good the answer would have been if the run had ended earlier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from langgraph_router_r1.evaluation.metrics import METRICS, without_tags
from langgraph_router_r1.evaluation.report import ON_THE_REPLY, score


def turns_table(runs: Iterable[Mapping[str, Any]], metric: str) -> list[list[str]]:
    """Return a table of the mean metric after each turn, by row and kind of question, heads first.

    After a turn, the last reply so far counts as the answer. A run that has ended by then counts with its own answer.

    Args:
        runs: As a run file has them.
        metric: One of `METRICS`.

    Raises:
        ValueError: The metric can't be computed from an answer alone.

    Example:
        >>> call = {"turn": 0, "status": "ok", "response": "Lima"}
        >>> record = {"calls": [call, {**call, "turn": 1, "response": "Sol"}], "answer": "Sol"}
        >>> run = {"row": "router", "kind": "two-hop", "golden_answers": ["Sol"], "reply": "Sol", "record": record}
        >>> turns_table([run], "em")[1]
        ['router', 'two-hop', '1', '.000', '1.000', '1.000']
    """
    check_metric(metric)
    groups: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for run in runs:
        groups[run["row"], run["kind"]].append(_by_turn(run, metric))
    most = max((len(scores) for group in groups.values() for scores in group), default=1) - 1
    lines = [["router", "kind", "questions", *(f"turn {turn}" for turn in range(1, most + 1)), "as it ended"]]
    for (row, kind), group in groups.items():
        whole = [[*scores, *[scores[-1]] * (most + 1 - len(scores))] for scores in group]
        means = np.mean(whole, axis=0)
        lines.append([row, kind, str(len(group)), *(f"{mean:.3f}".removeprefix("0") for mean in means)])
    return lines


def check_metric(metric: str) -> None:
    """Find out whether a metric can be computed for a reply that was not the answer.

    Raises:
        ValueError: It can't.
    """
    if metric not in METRICS:
        raise ValueError(f"the metric is {metric!r}; after a turn it can be {', '.join(METRICS)}")


def _by_turn(run: Mapping[str, Any], metric: str) -> list[float]:
    """Return the scores after each turn that asked a model, and last the score of the run."""
    calls, golden = run["record"]["calls"], run["golden_answers"]
    latest, scores = "", []
    for turn in range(max((call["turn"] for call in calls), default=-1) + 1):
        replies = [call["response"] for call in calls if call["turn"] == turn and call["status"] == "ok"]
        latest = replies[-1] if replies else latest
        said = without_tags(latest) if metric in ON_THE_REPLY else latest
        scores.append(float(METRICS[metric](said, golden)))
    return [*scores, score(run, metric)]
