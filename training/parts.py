"""Which part of a router is trained, in which graph, and what of its rollouts it is to learn from.

A router LLM is the whole of Router-R1. A planner has two parts, a decomposer and an allocator (R2-Reasoner,
arXiv 2506.05901); one is trained while the other one stays as it is, in turns:

    trainer = GraphGRPOTrainer(model, sync, registry, groups, part=decomposer(allocator="knn"), args=...)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable

from langgraph_router_r1 import ModelRegistry, create_planner, create_router, protocol
from langgraph_router_r1.engines.base import RouterEngine
from langgraph_router_r1.prompts import RouterPrompt, allocation_chat, plan_chat
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.strategies.plans import MAX_STEPS, Plan

if TYPE_CHECKING:
    from training.groups import Group


@dataclass(frozen=True)
class Part:
    """What is trained: who samples in a graph, and which of its turns can't be used."""

    create: Callable[..., Runnable[Any, Any]]
    """Returns the graph, from the engine that is trained, the pool, and the settings of the graph as keywords."""
    chat: Callable[[Group, ModelRegistry, Collection[str], Mapping[str, Any]], list[dict[str, str]]]
    """Returns a chat that begins a turn, from a group, the pool, the engine's control tokens, and the settings."""
    fault: Callable[[RunRecord, ModelRegistry], str | None]
    """Returns what is wrong with the form of what it wrote in a run; None if nothing is."""


def _router_chat(
    group: Group, registry: ModelRegistry, control_tokens: Collection[str], settings: Mapping[str, Any]
) -> list[dict[str, str]]:
    prompt: RouterPrompt = settings.get("prompt") or RouterPrompt()
    return prompt.render(
        [HumanMessage(group.task.question)],
        registry,
        cost_weight=group.cost_weight,
        max_turns=settings.get("max_turns", Limits.max_turns),
        control_tokens=control_tokens,
    )


def _router_fault(record: RunRecord, registry: ModelRegistry) -> str | None:
    return protocol.check_format([(part["kind"], part["text"]) for part in record.segments], registry.aliases)


ROUTER = Part(create_router, _router_chat, _router_fault)
"""The router LLM of Router-R1."""


def decomposer(allocator: Any = "knn") -> Part:
    """Return the part that plans, while an allocator stays as it is: any of those that `create_planner` takes."""

    def create(engine: RouterEngine, registry: ModelRegistry, **settings: Any) -> Runnable[Any, Any]:
        _tell_apart(engine, allocator)
        return create_planner(engine, registry, allocator=allocator, **settings)

    def chat(
        group: Group, _: ModelRegistry, control_tokens: Collection[str], settings: Mapping[str, Any]
    ) -> list[dict[str, str]]:
        question = HumanMessage(group.task.question)
        return plan_chat([question], max_steps=settings.get("max_steps", MAX_STEPS), control_tokens=control_tokens)

    return Part(create, chat, _plan_fault)


def allocator(decomposer: RouterEngine | Callable[[str], str]) -> Part:
    """Return the part that gives steps to models, while a decomposer stays as it is."""

    def create(engine: RouterEngine, registry: ModelRegistry, **settings: Any) -> Runnable[Any, Any]:
        _tell_apart(engine, decomposer)
        return create_planner(decomposer, registry, allocator=engine, **settings)

    def chat(
        group: Group, registry: ModelRegistry, control_tokens: Collection[str], _: Mapping[str, Any]
    ) -> list[dict[str, str]]:
        plan = Plan.whole(group.task.question).text
        return allocation_chat(plan, registry, cost_weight=group.cost_weight, control_tokens=control_tokens)

    return Part(create, chat, _allocation_fault)


def _tell_apart(trained: RouterEngine, frozen: object) -> None:
    """Refuse two policies of one name: a rollout's tokens are told apart by the name of who wrote them.

    Raises:
        ValueError: They have the same.
    """
    if isinstance(frozen, RouterEngine) and frozen.model == trained.model:
        msg = f"decomposer and allocator are both named {frozen.model!r}: give one of the engines another `model`"
        raise ValueError(msg)


def _plan_fault(record: RunRecord, _: ModelRegistry) -> str | None:
    plans = [note["plan"] for note in record.decisions if note["plan"] is not None]
    return plans[0]["reason"] if plans else "there is no plan"


def _allocation_fault(record: RunRecord, _: ModelRegistry) -> str | None:
    notes = [note["notes"] for note in record.decisions if note["plan"] is not None]
    reason: str | None = (notes[0] or {}).get("allocation_reason") if notes else "there is no plan"
    return reason
