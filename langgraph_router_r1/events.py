"""The typed events of a run: what `stream_mode="custom"` yields.

for event in router.stream({"messages": [("user", "Which?")]}, stream_mode="custom"):
if event["type"] == "router_r1.info":
print(event["answered_by"], event["cost_usd"])
"""

from __future__ import annotations

from typing import Literal

from langgraph.config import get_stream_writer
from typing_extensions import TypedDict

from langgraph_router_r1.state import CallStatus, PlannedCall, RoutedCall, RunReport


class ThinkEvent(TypedDict):
    """A turn of the router is complete."""

    type: Literal["router_r1.think"]
    turn: int
    text: str
    """What the router LLM wrote; or that it does not answer, and which models the fallback asks, as a thought."""


class RouteEvent(TypedDict):
    """A call is about to be made."""

    type: Literal["router_r1.route"]
    turn: int
    index: int
    model: str
    query: str


class InfoEvent(TypedDict):
    """A call is over."""

    type: Literal["router_r1.info"]
    turn: int
    index: int
    model: str
    answered_by: str | None
    status: CallStatus
    reason: str | None
    response: str
    cost_usd: float
    latency_s: float


class DoneEvent(TypedDict):
    """The run is over."""

    type: Literal["router_r1.done"]
    answer: str
    routing: RunReport


RouterEvent = ThinkEvent | RouteEvent | InfoEvent | DoneEvent
"""What `stream_mode="custom"` yields, told apart by `type`."""


def stream_call(call: PlannedCall) -> None:
    """Stream that a call is about to be made."""
    event: RouteEvent = {
        "type": "router_r1.route",
        "turn": call["turn"],
        "index": call["index"],
        "model": call["model"],
        "query": call["query"],
    }
    get_stream_writer()(event)


def stream_reply(call: RoutedCall) -> None:
    """Stream what came of a call."""
    event: InfoEvent = {
        "type": "router_r1.info",
        "turn": call["turn"],
        "index": call["index"],
        "model": call["model"],
        "answered_by": call["answered_by"],
        "status": call["status"],
        "reason": call["reason"],
        "response": call["response"],
        "cost_usd": call["cost_usd"],
        "latency_s": call["latency_s"],
    }
    get_stream_writer()(event)
