"""A strategy without an LLM: models are asked the whole question in an order, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from typing_extensions import override

from langgraph_router_r1.state import RoutedCall
from langgraph_router_r1.strategies.base import Answer, Ask, Decision, Strategy, View


@dataclass
class AskInOrder(Strategy):
    """Asks one model after the other until a reply is good enough; the last reply is the answer.

    Example:
        >>> from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
        >>> from langgraph_router_r1.testing import ScriptedChatModel
        >>> pool = ModelRegistry([ModelDescriptor(name="small", model=ScriptedChatModel(["Lima"]), price=1.0)])
        >>> router = create_router(strategy=AskInOrder(lambda view: ["small"]), registry=pool)
        >>> router.invoke({"messages": [("user", "Capital of Peru?")]})["answer"]
        'Lima'
    """

    rank: Callable[[View], Sequence[str]]
    """Returns the names of the models to ask, in order."""
    accept: Callable[[View, RoutedCall], bool] | None = None
    """Whether a reply is good enough to stop there; None: any reply is."""
    blocks: bool = True
    """Whether these take time; then a run that is awaited calls them in a thread."""

    @override
    def decide(self, view: View) -> Decision:
        names = view.notes["names"] if "names" in view.notes else list(self.rank(view))
        latest = view.calls[-1] if view.calls else None
        is_good = latest is not None and latest["status"] == "ok" and (self.accept is None or self.accept(view, latest))
        if is_good or view.turn >= len(names):
            return _last_reply(view)
        return Ask.one(names[view.turn], view.question, notes={"names": names})

    @override
    async def adecide(self, view: View) -> Decision:
        return await super().adecide(view) if self.blocks else self.decide(view)


def _last_reply(view: View) -> Answer:
    return Answer(view.replies[-1]) if view.replies else Answer("", stop_reason="no_answer")
