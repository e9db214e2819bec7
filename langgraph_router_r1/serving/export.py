"""Runs of the server as records to learn from: one JSON object per run, which two readers take as it is.

`training.sft` reads `record` (what the router LLM wrote) and `reward`; `KNNStrategy.from_profile` reads `question` and
`outcomes` (how good which model's reply was).
"""

from __future__ import annotations

from typing import Any

from langgraph_router_r1.protocol import sanitize
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.serving.store import StoredRun


def export_row(run: StoredRun) -> dict[str, Any]:
    """Return a run that has an answer as a record to learn from.

    `reward` is the score of its feedback, None without; `task` the question: `training.sft --per-task` takes the best
    runs of each. `outcomes` says how good the reply of a model was, by model, if the score of the run says so.
    """
    assert run.record is not None
    feedback = run.feedback
    return {
        "id": run.id,
        "question": run.question,
        "model": run.model,
        "created_at": run.created_at,
        "task": run.question,
        "cost_weight": run.record.limits["cost_weight"],
        "reward": None if feedback is None else feedback.score,
        "comment": None if feedback is None else feedback.comment,
        "outcomes": {} if feedback is None else _outcomes(run.record, feedback.score),
        "record": run.record.model_dump(mode="json"),
    }


def _outcomes(record: RunRecord, score: float) -> dict[str, Any]:
    """Return the score of a run as that of a model: only if one model replied, and was sent the question itself.

    That is what `KNNStrategy` does with a question. Where several models replied, or the router LLM asked for a part of
    the question or in other words, the score is that of the router. A question with images is not known by its text.
    """
    replies = [call for call in record.calls if call["status"] == "ok"]
    if len(replies) != 1 or record.images:
        return {}
    [call] = replies
    if call["query"].strip() != sanitize(record.question).strip():
        return {}
    outcome = {
        "response": call["response"],
        "prompt_tokens": call["usage"]["prompt_tokens"],
        "completion_tokens": call["usage"]["completion_tokens"],
        "latency_s": call["latency_s"],
        "score": score,
    }
    return {call["answered_by"] or call["model"]: outcome}
