"""What a run says to its client, piece by piece or whole, before it is put into the form of an API."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from langchain_core.messages import AIMessage

from langgraph_router_r1.events import RouterEvent
from langgraph_router_r1.ledger import Usage
from langgraph_router_r1.serving.errors import ApiError
from langgraph_router_r1.serving.runs import Run
from langgraph_router_r1.state import RunReport

IDLE_S = 15.0
"""After so many seconds without a piece a stream says that it is alive: proxies cut what is silent."""

MAX_TRACED_CHARS = 500
"""Most characters of a routed model's reply in a trace."""

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ToolCallOut(NamedTuple):
    """A tool call that a run ended with."""

    id: str
    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True)
class Reply:
    """The end of a run."""

    text: str
    tool_calls: list[ToolCallOut]
    finish_reason: FinishReason
    usage: Usage
    """The router's own tokens; of a model that was asked directly, the model's."""
    bill: dict[str, Any]
    """The field `router_r1`: what the run did and cost."""
    reasoning: str = ""
    """The trace, if it was asked for."""

    @classmethod
    def of(cls, run: Run, values: dict[str, Any]) -> Reply:
        """Return the reply of a run that ended.

        Raises:
            ApiError: No model put the answer into its form.
        """
        message, routing = values["messages"][-1], values["routing"]
        assert isinstance(message, AIMessage)
        calls = [ToolCallOut(call["id"] or "", call["name"], json.dumps(call["args"])) for call in message.tool_calls]
        text = str(message.text)
        if run.asked.tools is not None and run.asked.tools["is_form"]:
            if not calls:
                raise ApiError(502, "no model put the answer into its form", "no_form", run_id=run.id)
            text, calls = calls[0].arguments, []
        if run.asked.stop:
            text = re.split("|".join(map(re.escape, run.asked.stop)), text, maxsplit=1)[0]
        return cls(
            text=text,
            tool_calls=calls,
            finish_reason="tool_calls" if calls else _finish(run, routing),
            usage=routing["candidate_tokens" if run.target.model else "router_tokens"],
            bill=bill(run.id, routing),
        )


class Piece(NamedTuple):
    """What a stream carries."""

    kind: Literal["text", "reasoning", "event", "idle"]
    text: str = ""
    event: RouterEvent | None = None


class ReplyStream:
    """The pieces of a reply while its run goes on, and then the whole."""

    def __init__(self, run: Run) -> None:
        """Listen to a run."""
        self.reply: Reply | None = None
        """The whole, when all pieces are there."""
        self._run = run
        self._sent, self._trace, self._message_id = "", "", ""
        # What stands before a stop string, and in a form, is known at the end only.
        self._waits = bool(run.asked.stop) or bool(run.asked.tools and run.asked.tools["is_form"])
        self._thought_turn = -1

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces.

        Raises:
            ApiError: The run broke off, or another answer took the place of the one whose pieces were sent.
        """
        run = self._run
        async for event in run.events(IDLE_S):
            if event is None:
                yield Piece("idle")
                continue
            if run.asked.options.events:
                yield Piece("event", event=event)
            if run.traces and (traced := self._traced(event)):
                self._trace += traced
                yield Piece("reasoning", traced)
            if text := self._answered(event):
                self._sent += text
                yield Piece("text", text)
        self.reply = replace(Reply.of(run, await run.result()), reasoning=self._trace)
        if not self.reply.text.startswith(self._sent):
            message = "the answer that was sent broke off, and another one took its place"
            raise ApiError(502, message, "answer_replaced", run_id=run.id)
        if rest := self.reply.text[len(self._sent) :]:
            yield Piece("text", rest)

    def _answered(self, event: RouterEvent) -> str:
        if event["type"] != "router_r1.answer_delta" or self._waits:
            return ""
        if self._sent and event["message_id"] != self._message_id:
            return ""  # of another answer: `pieces` says so at the end
        self._message_id = event["message_id"]
        return event["text"]

    def _traced(self, event: RouterEvent) -> str:
        """Return what an event adds to the trace."""
        match event["type"]:
            case "router_r1.think_delta":
                self._thought_turn = event["turn"]
                return event["text"]
            case "router_r1.think" if self._thought_turn != event["turn"]:
                return f"{event['text']}\n"
            case "router_r1.plan":
                steps = [f"{place}. {step['text']} ({step['model']})" for place, step in enumerate(event["steps"], 1)]
                most = [] if event["worst_case_usd"] is None else [f"at most ${event['worst_case_usd']:.6f}"]
                return "\n".join([*steps, *most, ""])
            case "router_r1.route":
                return f"\n→ {event['model']}: {event['query']}\n"
            case "router_r1.info":
                said = event["response"] if event["status"] == "ok" else event["reason"] or event["status"]
                cut = said if len(said) <= MAX_TRACED_CHARS else f"{said[:MAX_TRACED_CHARS]}..."
                who = event["answered_by"] or event["model"]
                return f"← {who} (${event['cost_usd']:.6f}, {event['latency_s']:.2f} s): {cut}\n"
        return ""


async def whole_reply(run: Run) -> Reply:
    """Wait for the end of a run; return its reply.

    Raises:
        ApiError: It broke off.
    """
    stream = ReplyStream(run)
    async for _ in stream.pieces():
        pass
    assert stream.reply is not None
    return stream.reply


def bill(run_id: str, routing: RunReport) -> dict[str, Any]:
    """Return what a run did and cost, without the texts."""
    shown = ("turn", "index", "model", "answered_by", "status", "reason", "cost_usd", "maybe_cost_usd", "latency_s")
    return {
        "run_id": run_id,
        "stop_reason": routing["stop_reason"],
        "turns": routing["turns"],
        "cost_usd": routing["cost_usd"],
        "router_cost_usd": routing["router_cost_usd"],
        "maybe_cost_usd": routing["maybe_cost_usd"],
        "router_tokens": routing["router_tokens"],
        "candidate_tokens": routing["candidate_tokens"],
        "calls": [{key: call[key] for key in shown} for call in routing["calls"]],  # type: ignore[literal-required]
    }


def _finish(run: Run, routing: RunReport) -> FinishReason:
    if routing["stop_reason"] in ("cut_off", "context_full"):
        return "length"
    if run.target.model is not None:
        match routing["calls"][-1]["finish_reason"]:
            case "length" | "too_long":
                return "length"
            case "filtered":
                return "content_filter"
    return "stop"
