"""The typed events of a run: what `stream_mode="custom"` yields.

for event in router.stream({"messages": [("user", "Which?")]}, stream_mode="custom"):
if event["type"] == "router_r1.info":
print(event["answered_by"], event["cost_usd"])
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from langgraph_router_r1.state import CallStatus, RunReport


class ThinkEvent(TypedDict):
    """A turn of the router is complete."""

    type: Literal["router_r1.think"]
    turn: int
    text: str
    """What the router LLM wrote; or that it does not answer, and whom the fallback asks, as a thought."""


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
