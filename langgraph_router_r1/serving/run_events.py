"""The router's own events as a stream: what the page watches a run by, and how it asks, decides and forks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

from langchain_core.messages import HumanMessage
from pydantic import ConfigDict, Field, model_validator

from langgraph_router_r1.serving.chat import KEEP_ALIVE, sse
from langgraph_router_r1.serving.errors import ApiError
from langgraph_router_r1.serving.reply import IDLE_S
from langgraph_router_r1.serving.runs import Run
from langgraph_router_r1.serving.targets import ROUTER
from langgraph_router_r1.serving.wire import Asked, Message, RouterOptions, Wire, checked


class RunRequest(Wire):
    """The body of `POST /v1/runs`."""

    model_config = ConfigDict(extra="forbid")

    question: str | None = None
    """What is asked; or, with what was said before, `messages`."""
    messages: list[Message] | None = None
    model: str = Field(default=ROUTER, max_length=256)
    cost_weight: float | None = Field(default=None, ge=0, le=1)
    budget_usd: float | None = Field(default=None, ge=0)
    approve: bool = False
    """Whether each call waits until a person has decided on it."""

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if (self.question is None) == (self.messages is None):
            msg = "give either a question or messages"
            raise ValueError(msg)
        return self

    def asked(self) -> Asked:
        """Return what is asked.

        Raises:
            ApiError: There is no question in the messages.
        """
        given = [Message(role="user", content=self.question)] if self.messages is None else self.messages
        return Asked(
            model=self.model,
            messages=checked([message.as_langchain(place) for place, message in enumerate(given)]),
            tools=None,
            options=_watched(cost_weight=self.cost_weight, budget_usd=self.budget_usd),
            stream=True,
        )


class ForkRequest(Wire):
    """The body of `POST /v1/runs/{run_id}/fork`: which call is made to which model instead."""

    model_config = ConfigDict(extra="forbid")

    turn: int = Field(ge=0)
    index: int = Field(default=0, ge=0)
    model: str = Field(max_length=256)


class Decisions(Wire):
    """The body of `POST /v1/runs/{run_id}/decisions`, as LangChain's `HumanInTheLoopMiddleware` takes them."""

    model_config = ConfigDict(extra="forbid")

    decisions: list[dict[str, Any]] = Field(max_length=100)

    def edited_models(self) -> list[str]:
        """Return the models that edits name; what is not in the form of an edit is refused when the run goes on."""
        found: list[str] = []
        for decision in self.decisions:
            match decision:
                case {"type": "edit", "edited_action": {"args": {**args}}}:
                    steps = args.get("steps")
                    edited = [args, *(steps if isinstance(steps, list) else ())]
                    found += [str(one["model"]) for one in edited if isinstance(one, dict) and "model" in one]
        return found


def events_of(model: str, question: str, *, budget_usd: float | None = None) -> Asked:
    """Return what a recorded run asked, to be asked or continued as events."""
    options = _watched(budget_usd=budget_usd)
    return Asked(model=model, messages=[HumanMessage(question)], tools=None, options=options, stream=True)


async def run_events(run: Run) -> AsyncIterator[bytes]:
    """Yield the events of a run: its id, what it does, and last whether it waits for approval or broke off."""
    yield sse({"type": "router_r1.run", "run_id": run.id})
    async for event in run.events(IDLE_S):
        yield KEEP_ALIVE if event is None else sse(dict(event))
    try:
        await run.result()
    except ApiError as error:
        yield sse({"type": "router_r1.error", **error.body})
        return
    if run.approval is not None:
        yield sse({"type": "router_r1.approval", "run_id": run.id, "request": run.approval})


def _watched(**options: Any) -> RouterOptions:
    return RouterOptions(trace=True, events=True, **options)
