"""What each turn of a run brought."""

from __future__ import annotations

from typing import Any

import pytest

from langgraph_router_r1.evaluation.turns import turns_table


def run(answer: str, *turns: list[str], kind: str = "two-hop") -> dict[str, Any]:
    """A run of which each turn has these replies; an empty one stands for a call that failed."""
    calls = [
        {"turn": turn, "status": "ok" if reply else "error", "response": reply}
        for turn, replies in enumerate(turns)
        for reply in replies
    ]
    record = {"calls": calls, "answer": answer}
    return {"row": "router", "kind": kind, "golden_answers": ["Sol"], "reply": answer, "record": record}


def test_a_run_counts_after_each_turn_with_its_last_reply_and_once_it_has_ended_with_its_answer() -> None:
    runs = [
        run("Sol", ["Peru", "Lima"], ["Sol"], [""]),
        run("Lima", ["Sol"]),
        run("Sol"),
        run("Sol", ["Lima"], ["Sol"], kind="one-hop"),
    ]
    assert turns_table(runs, "em") == [
        ["router", "kind", "questions", "turn 1", "turn 2", "turn 3", "as it ended"],
        ["router", "two-hop", "3", ".667", ".667", ".667", ".667"],
        ["router", "one-hop", "1", ".000", "1.000", "1.000", "1.000"],
    ]
    assert turns_table(runs[:1], "em")[1][3:] == [".000", "1.000", "1.000", "1.000"]
    assert turns_table(runs[1:2], "em")[1][3:] == ["1.000", ".000"]


def test_a_metric_that_was_judged_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="'score'; after a turn it can be em, f1"):
        turns_table([], "score")
