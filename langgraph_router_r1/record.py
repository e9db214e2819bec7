"""The record of a run, version 1: what was asked, decided, called, paid and answered, in one JSON object.

    result = router.invoke({"messages": [("user", "Which?")]}, output_keys=RECORD_KEYS)
    Path("run.json").write_text(RunRecord.of(result).model_dump_json())

With a checkpointer, `RunRecord.of(router.get_state(config).values)` also reads a run that broke off. `replay.py` runs a
record again without any model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from langgraph_router_r1.accounting import account
from langgraph_router_r1.ledger import Price, PriceNote
from langgraph_router_r1.protocol import encodable
from langgraph_router_r1.question import image_digests, last_question
from langgraph_router_r1.state import DecisionNote, RoutedCall, RunLimits, RunReport, StrategyNote, WarmCache
from langgraph_router_r1.transcript import Segment

RECORD_KEYS = [
    "messages",
    "transcript",
    "decisions",
    "calls",
    "router_usage",
    "turn",
    "limits",
    "strategy",
    "prices",
    "earlier",
    "before",
    "warm",
    "stop_reason",
    "answer",
]
"""What of a router's state a record is made of: give it to `invoke` as `output_keys`."""


class RunRecord(BaseModel):
    """Everything about one run, finished or broken off."""

    # Its schema is built when it is first used: that takes as long as importing half of the package.
    model_config = ConfigDict(ser_json_inf_nan="constants", defer_build=True)

    version: Literal[1] = 1
    question: str
    images: list[str] = []
    """The SHA-256 of each image that the question came with; the images themselves are not in the record."""
    limits: RunLimits
    """What the run was held to."""
    strategy: StrategyNote
    """Who decided: its name, the policy and prompt of a router LLM, and the price of its own tokens."""
    prices: dict[str, PriceNote] = Field(default_factory=dict)
    """What the models of the pool cost, by name, and which price list says so; old records have none."""
    segments: list[Segment]
    """The transcript: prompt, sampled turns and replies, in text and token ids."""
    decisions: list[DecisionNote]
    """What was decided, in order."""
    calls: list[RoutedCall]
    """The routed calls, in call order, with their costs by part."""
    warm: list[WarmCache] = []
    """Prompt caches that were warm when the run began, of which the strategy knew."""
    answer: str
    report: RunReport
    """Turns, tokens, costs and why the run ended; its own `calls` is empty, as the record has them."""

    @field_validator("calls", mode="before")
    @classmethod
    def _calls_of_before(cls, calls: Any) -> Any:
        """Fill in what records of before 2026-11-28 do not have."""
        return _with({"tool_calls": [], "review": None}, calls)

    @field_validator("decisions", mode="before")
    @classmethod
    def _decisions_of_before(cls, decisions: Any) -> Any:
        return _with({"tool_calls": [], "plan": None}, decisions)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Make the record of a run.

        Args:
            state: A router's state, with `RECORD_KEYS` at least.

        Raises:
            KeyError: No run has begun in this state, or a key is missing.
        """
        missing = [key for key in ("messages", "limits", "strategy") if key not in state]
        if missing:
            msg = f"the state has no {', '.join(map(repr, missing))}: invoke the router with output_keys=RECORD_KEYS"
            raise KeyError(msg)
        strategy: StrategyNote = state["strategy"]
        report = account(
            state.get("calls", []),
            turns=state.get("turn", 0),
            router_usage=state.get("router_usage", []),
            router_price=Price.parse(strategy["price"]),
            stop_reason=state.get("stop_reason"),
            earlier=state.get("earlier"),
            before=state.get("before"),
        )
        # After the end of a run the answer is the last message.
        messages = state["messages"]
        return cls(
            question=encodable(messages[last_question(messages)].text),
            images=image_digests(messages),
            limits=state["limits"],
            strategy=strategy,
            prices=state.get("prices", {}),
            segments=state.get("transcript", []),
            decisions=state.get("decisions", []),
            calls=report["calls"],
            warm=state.get("warm", []),
            answer=state.get("answer", ""),
            report={**report, "calls": []},
        )


def _with(defaults: dict[str, Any], items: Any) -> Any:
    """Return the items with defaults for what they do not have; what is no list of tables stays as it is."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return items
    return [{**defaults, **item} for item in items]
