"""What the server tells about its runs and its models, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict, Field

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.serving.profile_figures import ProfileFigures
from langgraph_router_r1.serving.store import StoredRun
from langgraph_router_r1.serving.wire import Wire

MAX_RUNS = 200

MAX_COMMENT_CHARS = 2000


class RunsQuery(Wire):
    """The query of `GET /v1/runs`."""

    search: str | None = Field(default=None, max_length=500)
    """A text that the question must hold."""
    client_request_id: str | None = None
    before: float | None = None
    """Only runs that began before this time, in seconds since 1970: how one turns pages."""
    limit: int = Field(default=50, ge=1, le=MAX_RUNS)


class FeedbackRequest(Wire):
    """The body of `POST /v1/feedback`."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = Field(max_length=64)
    score: float = Field(ge=0, le=1, strict=True)
    """0 for a bad answer to 1 for a good one: the scale of accuracies, rewards and recorded outcomes."""
    comment: str | None = Field(default=None, max_length=MAX_COMMENT_CHARS)


def run_page(run: StoredRun, *, with_record: bool = False) -> dict[str, Any]:
    """Return a run as JSON."""
    page: dict[str, Any] = {
        "id": run.id,
        "object": "router_r1.run",
        "client_request_id": run.client_id,
        "model": run.model,
        "question": run.question,
        "status": run.status,
        "error": run.error,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
        "budget_usd": run.reserved_usd,
        "cost_usd": run.cost_usd,
        "maybe_cost_usd": run.maybe_cost_usd,
        "feedback": None if run.feedback is None else asdict(run.feedback),
    }
    if with_record:
        page["record"] = None if run.record is None else run.record.model_dump(mode="json")
    return page


def model_page(
    model: ModelDescriptor, *, is_resting: bool, calls: Mapping[str, int], figures: ProfileFigures | None
) -> dict[str, Any]:
    """Return what may be told of a model of the pool: nothing of where it is and how it is reached.

    Args:
        model: The model.
        is_resting: Whether it is not asked now, because it keeps failing.
        calls: How many calls it was sent since the server started, by status.
        figures: What the registry's profile says of it, if it does.
    """
    return {
        "is_resting": is_resting,
        "calls": dict(calls),
        "description": model.description,
        "price": {"prompt": model.price.prompt, "completion": model.price.completion},
        "latency_s": model.latency_s,
        "skills": model.skills,
        "modalities": list(model.modalities),
        "profile": figures,
    }
