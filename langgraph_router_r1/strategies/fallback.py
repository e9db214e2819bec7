"""What decides for the rest of a run when the router LLM does not answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from langgraph_router_r1.engines.base import Fallback
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.strategies.base import Answer, Ask, Decision, Strategy, View

if TYPE_CHECKING:
    from langgraph_router_r1.strategies.knn import KNNStrategy

logger = logging.getLogger(__name__)

MAX_FALLBACK_CALLS = 3
"""How many models are asked without the router LLM, one after another, before a run ends without a reply."""


@dataclass
class FallbackPlan(Strategy):
    """Takes over when the router LLM does not answer: asks the models in the order of a `Fallback` until one replies.

    At most `MAX_FALLBACK_CALLS` models are asked, and only those that the budget pays for. Should the fallback fail,
    the cheapest are asked. The run ends `degraded`.
    """

    fallback: Fallback

    @classmethod
    def of(cls, fallback: Fallback | str | None, registry: ModelRegistry) -> Self | None:
        """Return the plan for a router's setting `fallback`.

        Raises:
            ValueError: It is no fallback, or "knn" and the registry has no profile.
            ModuleNotFoundError: The `[eval]` extra, which "knn" needs, is not installed.
        """
        if fallback is None:
            return None
        if isinstance(fallback, Fallback):
            return cls(fallback)
        if fallback != "knn":
            msg = f"fallback is {fallback!r}; it must be 'knn', None, or have a method rank(question, *, cost_weight)"
            raise ValueError(msg)
        return cls(knn_of(registry, "fallback"))

    @override
    def decide(self, view: View) -> Decision:
        if "order" not in view.notes:
            order = [name for name in self._rank(view) if view.affords(name, view.question)][:MAX_FALLBACK_CALLS]
            asks = f"the fallback asks {', then '.join(order)}" if order else "the budget pays for no call without it"
            return self._ask(view, order, f"<think> The router LLM does not answer: {asks}. </think>")
        if view.calls[-1]["status"] == "ok":
            return self._ask(view, [])
        return self._ask(view, [name for name in view.notes["order"] if view.affords(name, view.question)])

    def _ask(self, view: View, order: Sequence[str], thought: str | None = None) -> Decision:
        """Ask the first of these models; end with the last reply when there is none."""
        if not order:
            return Answer(view.replies[-1] if view.replies else "", stop_reason="degraded", thought=thought)
        return Ask.one(order[0], view.question, notes={"order": list(order[1:])}, thought=thought)

    def _rank(self, view: View) -> list[str]:
        """Return the pool in the order in which to ask it; from the cheapest on when the fallback fails too."""
        registry, names = view.offered, list[str]()
        try:
            ranking = self.fallback.rank(view.question, cost_weight=view.limits.cost_weight)
            names = [registry[name].name for name in ranking if name in registry]
        except Exception as error:  # noqa: BLE001 - whatever it is, the question is not lost
            # Its own words may hold a key.
            logger.warning("the fallback failed (%s): the cheapest models are asked", type(error).__name__)
        by_price = sorted(registry, key=lambda model: model.price.level)
        return list(dict.fromkeys(names)) or [model.name for model in by_price]


def knn_of(registry: ModelRegistry, setting: str) -> KNNStrategy:
    """Return the kNN strategy on the registry's profile, which a setting of this name asks for.

    Raises:
        ValueError: The registry has no profile.
        ModuleNotFoundError: The `[eval]` extra is not installed.
    """
    if registry.profile is None:
        msg = (
            f"{setting} is 'knn' and the registry has no profile: run 'router-r1 profile', which writes one beside "
            "the registry's file, or give the registry the path of one as profile="
        )
        raise ValueError(msg)
    try:
        from langgraph_router_r1.strategies.knn import KNNStrategy
    except ModuleNotFoundError:
        msg = f"{setting}='knn' needs the [eval] extra: pip install 'langgraph-router-r1[eval]'"
        raise ModuleNotFoundError(msg) from None
    return KNNStrategy.from_profile(registry.profile, registry)
