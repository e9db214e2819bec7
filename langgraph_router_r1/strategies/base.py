"""The seam between the graph and whoever decides: a `Strategy` looks at the run so far and asks models, or answers.

    class AskTheCheapest(Strategy):
        def decide(self, view):
            if view.replies:
                return Answer(view.replies[-1])
            cheapest = min(view.offered, key=lambda model: model.price.completion)
            return Ask.one(cheapest.name, view.question)

    router = create_router(strategy=AskTheCheapest(), registry=registry)

The graph makes the calls, holds the budget, stores checkpoints, streams events and keeps the account, whoever decides.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from langchain_core.messages import AnyMessage, ToolCall
from typing_extensions import override

from langgraph_router_r1.events import AnswerStream
from langgraph_router_r1.ledger import FREE, Price, Usage, estimate_tokens, worst_case
from langgraph_router_r1.protocol import Call, sanitize
from langgraph_router_r1.question import last_question
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.state import DecisionNote, PlanNote, RoutedCall, StopReason, StrategyNote, Tools, WarmCache
from langgraph_router_r1.transcript import Segment


@dataclass(frozen=True)
class View:
    """The run so far, read-only."""

    messages: Sequence[AnyMessage]
    registry: ModelRegistry
    """The models that may be asked: all of the router's, or those that read images if the question comes with one."""
    limits: Limits
    """What the run is held to."""
    turn: int = 0
    """Turns so far in which models were asked."""
    calls: Sequence[RoutedCall] = ()
    """All calls so far, in call order."""
    transcript: Sequence[Segment] = ()
    """What earlier decisions put into it."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the latest decision with notes left."""
    decided: int = 0
    """How many decisions were made so far."""
    spent_usd: float = 0.0
    """Dollars that count against the budget: spent, and possibly billed."""
    tools: Tools | None = None
    """What the routed models may call."""
    stream: AnswerStream | None = None
    """Takes the answer while it is written; None when nobody listens. What was not written, the graph adds."""
    worst_case: Callable[[str, str], float] = lambda _model, _query: 0.0
    """The most that asking a model (by name) a query can cost, in dollars; infinity when nothing bounds it."""
    is_resting: Callable[[str], bool] = lambda _model: False
    """Whether a model (by name) is not asked for now, because it keeps failing."""
    warm: Sequence[WarmCache] = ()
    """Prompt caches that were warm when the run began."""

    @property
    def offered(self) -> ModelRegistry:
        """The models to choose from: those that do not rest, or all of them if all rest."""
        return self.registry.only(lambda model: not self.is_resting(model.name)) or self.registry

    @property
    def savings(self) -> dict[str, float]:
        """Dollars that a call costs less because the model's prompt cache is warm, by model."""
        return {cache["model"]: cache["saving_usd"] for cache in self.warm}

    @property
    def question(self) -> str:
        """The text of the last human message, without protocol tags."""
        return sanitize(self.messages[last_question(self.messages)].text).strip()

    @property
    def replies(self) -> list[str]:
        """The replies so far, without the calls that failed."""
        return [call["response"] for call in self.calls if call["status"] == "ok"]

    @property
    def latest(self) -> list[RoutedCall]:
        """The calls of the latest turn."""
        return [call for call in self.calls if call["turn"] == self.turn - 1]

    def affords(self, model: str, query: str) -> bool:
        """Return whether the budget pays for a call, whatever it turns out to cost."""
        budget = self.limits.budget_usd
        return budget is None or self.worst_case(model, query) <= budget - self.spent_usd

    @property
    def least_worst_case_usd(self) -> float:
        """The most that the shortest question to the cheapest model can cost, in dollars."""
        return min(self.worst_case(name, "?") for name in self.registry.names)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a strategy wants next: `Ask`, `Answer` or `Again`."""

    thought: str | None = None
    """What is streamed as a `ThinkEvent`; None for nothing."""
    segments: Sequence[Segment] = ()
    """What is appended to the transcript."""
    usage: Usage | None = None
    """Tokens that the decision took; they cost the strategy's `price`."""
    notes: Mapping[str, Any] | None = None
    """What the strategy wants to find in the next view, JSON-like; None leaves the notes as they are."""

    def show(self, stream: AnswerStream) -> None:
        """Complete what a stream has shown of the decision: an answer; nothing of any other."""
        stream.abandon()

    def common(self) -> dict[str, Any]:
        """Return the fields that every decision has, whatever it decides."""
        return {one.name: getattr(self, one.name) for one in fields(Decision)}

    def note(self) -> DecisionNote:
        """Return the decision for the record of the run."""
        return {
            "kind": "ask" if isinstance(self, Ask) else "answer" if isinstance(self, Answer) else "again",
            "at": time.time(),
            "thought": self.thought,
            "segments": len(self.segments),
            "usage": self.usage,
            "notes": None if self.notes is None else dict(self.notes),
            "calls": [
                {"model": call.model, "query": call.query, "known": call.known}
                for call in (self.calls if isinstance(self, Ask) else ())
            ],
            "text": self.text if isinstance(self, Answer) else "",
            "tool_calls": list(self.tool_calls) if isinstance(self, Answer) else [],
            "stop_reason": self.stop_reason if isinstance(self, Answer) else None,
            "reply": self.reply if isinstance(self, Answer) else None,
            "plan": None,
        }


@dataclass(frozen=True)
class Ask(Decision):
    """Make these calls, side by side."""

    calls: Sequence[Call]
    keep_usd: float = field(default=0.0, kw_only=True)
    """Dollars of the budget that the calls must leave, for what the strategy itself still has to pay."""
    forms: bool = field(default=False, kw_only=True)
    """Whether the calls only put an answer into the form of a tool."""
    approved: Collection[int] = field(default=(), kw_only=True)
    """The places of the calls that a person has approved with the plan."""
    relay: bool = field(default=False, kw_only=True)
    """Whether the reply to the first call is to be the answer: then it is streamed while the model writes it."""

    @classmethod
    def one(cls, model: str, query: str, **fields: Any) -> Ask:
        """Ask one model, by its name in the registry."""
        return cls((Call(model, query),), **fields)


@dataclass(frozen=True)
class Answer(Decision):
    """End the run with this answer."""

    text: str
    stop_reason: StopReason = field(default="answered", kw_only=True)
    tool_calls: Sequence[ToolCall] = field(default=(), kw_only=True)
    """Calls of tools that the run ends with."""
    reply: str | None = field(default=None, kw_only=True)
    """The whole reply that the answer was taken from, when it is not the answer itself."""

    @override
    def show(self, stream: AnswerStream) -> None:
        if not self.tool_calls:  # a message with tool calls is shown whole
            stream.finish(self.text)


@dataclass(frozen=True)
class Again(Decision):
    """Decide once more, with what this decision added to the transcript and the notes.

    LangGraph's recursion limit ends a run that never comes to an answer.
    """


@dataclass(frozen=True)
class Propose(Again):
    """Decide once more, when the plan was shown.

    Where calls need approval, a person may edit or reject it first. The notes of the next view then have `reviewed`:
    a `ReviewedPlan`.
    """

    plan: PlanNote
    """What is meant to be done."""

    @override
    def note(self) -> DecisionNote:
        return {**super().note(), "plan": self.plan}


class Strategy(ABC):
    """Decides what a run does next. One object serves many runs at once: what belongs to a run is in its view."""

    price: Price = FREE
    """Of the tokens that its decisions take."""

    @abstractmethod
    def decide(self, view: View) -> Decision:
        """Return what to do next. It may block.

        Raises:
            EngineError: It can't decide, because a model that it needs does not answer. A fallback then takes over.
        """

    async def adecide(self, view: View) -> Decision:
        """Decide without blocking; by default `decide` in a thread."""
        return await asyncio.to_thread(self.decide, view)

    def note(self) -> StrategyNote:
        """Return who decides, for the record of a run."""
        return {
            "name": type(self).__name__,
            "policy": None,
            "prompt_digest": None,
            "price": self.price.note(),
        }

    def count_tokens(self, text: str) -> int:
        """Return about how many tokens a text has, for models that do not report their usage."""
        return estimate_tokens(text)


def affords_turn(view: View, prompt: Segment, max_tokens: int, price: Price) -> bool:
    """Return whether the budget pays for a turn of a language model that decides.

    Args:
        view: The run so far.
        prompt: What the model reads.
        max_tokens: Most tokens that it writes.
        price: Of its tokens.
    """
    budget = view.limits.budget_usd
    # Engines without token ids count characters: a token has at least one byte.
    tokens = len(prompt["token_ids"]) or len(prompt["text"].encode())
    return budget is None or worst_case(tokens, max_tokens, price) <= budget - view.spent_usd
