"""What requests may name as their model: router or planner at some cost weight, or a model of the pool."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import override

from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.calls.middleware import RateLimit
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines.base import RouterEngine
from langgraph_router_r1.fork import fork
from langgraph_router_r1.graph import create_router
from langgraph_router_r1.ledger import FREE, Price
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.serving.errors import ApiError, invalid
from langgraph_router_r1.serving.profile_figures import profile_figures
from langgraph_router_r1.settings import FOR_ROUTER_LLM, RouterSettings
from langgraph_router_r1.strategies import Answer, Ask, Decision, Strategy, View
from langgraph_router_r1.strategies.planner import Planner

ROUTER = "router-r1"
"""The router's name in requests."""

PLANNER = "planner"
"""The planner's name in requests, where there is one."""

MakePlanner = Callable[[ModelRegistry], Planner]
"""Makes the planner for a registry."""

SHOWN_WEIGHTS = (0.3, 0.6, 0.9)
"""The cost weights whose presets are listed; any other can be named, too."""

_PRESET = re.compile(
    rf"(?P<decider>{ROUTER}|{PLANNER})(@(?P<weight>0(\.\d{{1,6}})?|1(\.0{{1,6}})?))?(?P<trace>\+trace)?"
)

Graph = CompiledStateGraph[Any, Any, Any, Any]


@dataclass(frozen=True)
class Target:
    """What a request named."""

    graph: Graph
    router_price: Price
    """What the own tokens of whoever decides cost."""
    model: str | None = None
    """The model of the pool that is asked directly; None for the router."""
    cost_weight: float | None = None
    trace: bool = False
    kept: frozenset[tuple[int, int]] = frozenset()
    """The calls, by turn and place, that come from the record of the run of which this one is a fork."""
    is_repeatable: bool = False
    """Whether another router can be given the same request: it asked the router LLM, and nobody approves or forks."""


@dataclass
class PassOn(Strategy):
    """Asks one model, and passes its reply on: a model of the pool, through the router's account."""

    model: str

    @override
    def decide(self, view: View) -> Decision:
        if not view.calls:
            return Ask.one(self.model, view.question, relay=True)
        return Answer(view.replies[-1]) if view.replies else Answer("", stop_reason="no_answer")

    @override
    async def adecide(self, view: View) -> Decision:
        return self.decide(view)


class _Decider:
    """Router or planner: its graph, with and without approval."""

    def __init__(self, parts: dict[str, Any], price: Price) -> None:
        self.parts, self.price = parts, price
        self.graph: Graph = create_router(**parts)
        self.approving: Graph = create_router(**{**parts, "approve": "always"})


def permitted_as(name: str) -> str:
    """Return by which name a key permits what a request names: router and planner at every cost weight have one.

    Example:
        >>> permitted_as("router-r1@0.3+trace"), permitted_as("small@2")
        ('router-r1', 'small@2')
    """
    found = _PRESET.fullmatch(name)
    return found["decider"] if found else name


def check_names(registry: ModelRegistry, *, has_planner: bool = False) -> None:
    """Find out whether the models of a registry can be named beside router and planner.

    Raises:
        ValueError: A model has the name of one of them. Where there is no planner, `planner` is free, and
            `planner@0.3` is not: a key for the one would open the other.
    """
    free = set() if has_planner else {PLANNER}
    taken = [name for name in registry.names if _PRESET.fullmatch(name) and name not in free]
    if taken:
        raise ValueError(f"the registry has a model {taken[0]!r}, which is the name of a router here")


class Targets:
    """The router and its pool, for as long as a registry is served."""

    def __init__(
        self,
        engine: RouterEngine | Strategy,
        registry: ModelRegistry,
        saver: BaseCheckpointSaver[Any],
        clients: Clients,
        settings: RouterSettings,
        make_planner: MakePlanner | None = None,
    ) -> None:
        """Build the router.

        Args:
            engine: Where the router LLM's tokens come from, or the strategy that decides without one.
            registry: The models that may be asked.
            saver: Keeps the checkpoints of runs.
            clients: The connections of the models, kept from one registry to the next.
            settings: Of the router; those that do not concern its LLM are the planner's, too.
            make_planner: Makes the planner; None for a server without one.

        Raises:
            ValueError: A model has the name of router or planner, or a setting can't be served.
        """
        if settings.get("approve", "never") != "never":
            msg = "approve: clients of OpenAI's API can't approve calls; `POST /v1/runs` takes approve for each run"
            raise ValueError(msg)
        check_names(registry, has_planner=make_planner is not None)
        self.registry = registry
        self.figures = profile_figures(registry)
        self._saver, self._clients = saver, clients
        strategy = engine if isinstance(engine, Strategy) else None
        # However a model is asked, it has one rate.
        self._rate = RateLimit()
        middleware = (self._rate, *settings.get("middleware", ()))
        shared = {"registry": registry, "clients": clients, "checkpointer": saver, "middleware": middleware}
        price = strategy.price if strategy is not None else Price.parse(settings.get("router_price", FREE))
        router = {**settings, **shared, "engine": None if strategy is not None else engine, "strategy": strategy}
        self._deciders = {ROUTER: _Decider(router, price)}
        if make_planner is not None:
            planner = make_planner(registry)
            common = {name: value for name, value in settings.items() if name not in FOR_ROUTER_LLM}
            parts = {**common, **planner.limits, **shared, "strategy": planner}
            self._deciders[PLANNER] = _Decider(parts, planner.price)
        self._direct: dict[str, Graph] = {}

    @property
    def reader(self) -> Graph:
        """A graph that can read the checkpoints of all."""
        return self._deciders[ROUTER].approving  # has all nodes

    @property
    def names(self) -> list[str]:
        """The names that are listed."""
        presets = [[name, *(f"{name}@{weight:g}" for weight in SHOWN_WEIGHTS)] for name in self._deciders]
        return [*itertools.chain(*presets), *self.registry.names]

    def price_of(self, name: str) -> Price:
        """Return what the own tokens cost of whoever decides for what a request named."""
        decider = self._decider(name)
        return FREE if decider is None else decider.price

    def is_resting(self, model: ModelDescriptor) -> bool:
        """Return whether a model is not asked now, because it keeps failing."""
        return self._clients.is_resting(model)

    def fork(self, record: RunRecord, *, asked: str, turn: int, index: int, model: str) -> Target:
        """Return a run of the router's, or the planner's, with one call made to another model.

        Args:
            record: The run.
            asked: What it named as its model.
            turn: The route turn of the call.
            index: Its place in the turn.
            model: Who is asked instead.

        Raises:
            ForkError: The record has no such call, or the call was never made.
            UnknownModelError: The registry has no such model.
        """
        decider = self._decider(asked)
        assert decider is not None
        graph = fork(record, turn=turn, index=index, model=model, **decider.parts)
        before = {(call["turn"], call["index"]) for call in record.calls if call["turn"] <= turn} - {(turn, index)}
        return Target(graph, decider.price, kept=frozenset(before))

    def _decider(self, name: str) -> _Decider | None:
        """Return who decides for what a request named; None if it is not router or planner."""
        found = _PRESET.fullmatch(name)
        return self._deciders.get(found["decider"]) if found else None

    def find(self, name: str, *, approve: bool = False, max_tokens: int | None = None) -> Target:
        """Return what a request names.

        Args:
            name: The name.
            approve: Whether its calls wait until a person has decided on them.
            max_tokens: Most tokens of a reply, of a model that is asked directly; None for what the registry says.

        Raises:
            ApiError: There is no such model, or it is a model of the pool, which needs no approval.
        """
        found, decider = _PRESET.fullmatch(name), self._decider(name)
        if found and decider:
            weight = found["weight"]
            return Target(
                decider.approving if approve else decider.graph,
                decider.price,
                cost_weight=None if weight is None else float(weight),
                trace=found["trace"] is not None,
                is_repeatable=not approve and found["decider"] == ROUTER,
            )
        if name not in self.registry:
            known = ", ".join(map(repr, self.names))
            raise ApiError(
                404, f"there is no model {name!r} here; there are: {known}", "model_not_found", param="model"
            )
        if approve:
            raise invalid(f"{name!r} would be asked directly; only calls of the router are approved", "approve")
        model = self.registry[name].name
        if max_tokens not in {None, self.registry[name].max_tokens}:
            return Target(self._asking(model, max_tokens), FREE, model=model)
        if model not in self._direct:
            self._direct[model] = self._asking(model)
        return Target(self._direct[model], FREE, model=model)

    def _asking(self, model: str, max_tokens: int | None = None) -> Graph:
        """Return the graph that asks a model, or its fallbacks, which may reply with so many tokens."""
        length = {} if max_tokens is None else {"max_tokens": max_tokens}
        # Who asks a model directly sends it the whole conversation. What is no chat model keeps to no length.
        open_ones = (
            one.model_copy(
                update={"share_context": "conversation", "params": one.params | (length if one.is_bounded else {})}
            )
            for one in self.registry
        )
        return create_router(
            strategy=PassOn(model),
            registry=ModelRegistry(open_ones),
            checkpointer=self._saver,
            clients=self._clients,
            middleware=[self._rate],
            answer="full",
        )
