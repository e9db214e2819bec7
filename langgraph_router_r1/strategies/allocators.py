"""Who gives the steps of a plan to models: a profile, a function, or a language model.

An allocator names a model of the registry for each step. One that names another is refused in words.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from langgraph_router_r1.engines import llm_run
from langgraph_router_r1.engines.base import ContextFullError, Generation, RouterEngine
from langgraph_router_r1.ledger import FREE, Price, Usage
from langgraph_router_r1.prompts import allocation_chat
from langgraph_router_r1.registry import ModelRegistry, UnknownModelError
from langgraph_router_r1.strategies.base import View, affords_turn
from langgraph_router_r1.strategies.fallback import knn_of
from langgraph_router_r1.strategies.plans import Plan, Step
from langgraph_router_r1.transcript import Segment

if TYPE_CHECKING:
    from langgraph_router_r1.strategies.knn import KNNStrategy

TOKENS_A_STEP = 160
"""Most tokens that an allocator writes for a step, a thought about it included."""

_LINE = re.compile(r"\s*(?:step\s+)?#?(\d{1,3})\s*[.):]?\s+(.*?)\s*$", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Allocation:
    """Which model does each step of a plan."""

    models: Sequence[str]
    """By their names in the registry, one for each step."""
    expected: Sequence[float | None]
    """How likely each is expected to be right, 0 to 1; None where nothing says it."""
    segments: Sequence[Segment] = ()
    """What a language model was asked, and wrote."""
    usage: Usage | None = None
    """The tokens that it took."""
    reason: str | None = None
    """What of it could not be used."""


class Allocator(ABC):
    """Gives the steps of plans to models. One object serves many runs at once."""

    @abstractmethod
    def allocate(self, plan: Plan, view: View) -> Allocation:
        """Return who does each step, of the models on offer. It may block.

        Raises:
            EngineError: The language model that allocates does not answer.
            ValueError: A function names a model that there is not.
        """

    async def aallocate(self, plan: Plan, view: View) -> Allocation:
        """Allocate without blocking; by default in a thread."""
        return await asyncio.to_thread(self.allocate, plan, view)


@dataclass
class ProfileAllocator(Allocator):
    """Gives each step to the model that a profile expects most of, at the cost weight of the run."""

    knn: KNNStrategy

    @override
    def allocate(self, plan: Plan, view: View) -> Allocation:
        texts, names = [step.text for step in plan.steps], self.knn.registry.names
        expected = self.knn.expected_quality(texts)
        models, qualities = [], []
        rankings = self.knn.rank_all(texts, cost_weight=view.limits.cost_weight)
        for ranking, quality in zip(rankings, expected, strict=True):
            best = next(name for name in [*ranking, *view.offered.names] if name in view.offered)
            models.append(best)
            qualities.append(float(quality[names.index(best)]) if best in names else None)
        return Allocation(models, qualities)


@dataclass
class FunctionAllocator(Allocator):
    """Gives each step to the model that a function names."""

    choose: Callable[[Step, ModelRegistry], str]

    @override
    def allocate(self, plan: Plan, view: View) -> Allocation:
        chosen = [self.choose(step, view.offered) for step in plan.steps]
        for name in chosen:
            if name not in view.offered:
                msg = f"the allocator chose {name!r}: {view.offered.explain_unknown(str(name))}"
                raise ValueError(msg)
        return Allocation([view.offered[name].name for name in chosen], [None] * len(chosen))


def make_allocator(
    allocator: RouterEngine | Callable[[Step, ModelRegistry], str] | str | Allocator,
    registry: ModelRegistry,
    price: Price,
) -> Allocator:
    """Return the allocator for a planner's setting.

    Args:
        allocator: "knn", an engine, a function, or an allocator.
        registry: The models.
        price: Of an engine's tokens.

    Raises:
        ValueError: It is none of these, or "knn" and the registry has no profile.
        ModuleNotFoundError: The `[eval]` extra, which "knn" needs, is not installed.
    """
    if isinstance(allocator, Allocator):
        return allocator
    if isinstance(allocator, RouterEngine):
        return LLMAllocator(allocator, price)
    if allocator == "knn":
        return ProfileAllocator(knn_of(registry, "allocator"))
    if callable(allocator):
        return FunctionAllocator(allocator)
    msg = f"allocator is {allocator!r}; it must be 'knn', an engine, or a function of a step and a registry"
    raise ValueError(msg)


@dataclass
class LLMAllocator(Allocator):
    """Lets a language model, trained or prompted, give the steps to models, all in one turn.

    A step that it gives to nobody on offer goes to the most expensive model, and the reason is recorded.
    """

    engine: RouterEngine
    price: Price = FREE
    """Of its tokens."""

    @override
    def allocate(self, plan: Plan, view: View) -> Allocation:
        prompt = self._prompt(plan, view)
        if not self._is_affordable(prompt, plan, view):
            return self._read(plan, view, prompt, None)
        try:
            return self._read(plan, view, prompt, llm_run.generate(self.engine, [prompt], **self._options(plan)))
        except ContextFullError:
            return self._read(plan, view, prompt, None)

    @override
    async def aallocate(self, plan: Plan, view: View) -> Allocation:
        await self.engine.aload()
        prompt = self._prompt(plan, view)
        if not self._is_affordable(prompt, plan, view):
            return self._read(plan, view, prompt, None)
        try:
            generation = await llm_run.agenerate(self.engine, [prompt], **self._options(plan))
        except ContextFullError:
            return self._read(plan, view, prompt, None)
        return self._read(plan, view, prompt, generation)

    def _prompt(self, plan: Plan, view: View) -> Segment:
        return self.engine.begin(
            allocation_chat(
                plan.text,
                view.offered,
                cost_weight=view.limits.cost_weight,
                control_tokens=self.engine.control_tokens,
            )
        )

    def _is_affordable(self, prompt: Segment, plan: Plan, view: View) -> bool:
        return affords_turn(view, prompt, self._options(plan)["max_tokens"], self.price)

    def _options(self, plan: Plan) -> dict[str, Any]:
        return {"max_tokens": TOKENS_A_STEP * len(plan.steps), "stop": []}

    def _read(self, plan: Plan, view: View, prompt: Segment, generation: Generation | None) -> Allocation:
        text = generation.segment["text"] if generation else ""
        models, reason = read_allocation(text, len(plan.steps), view.offered)
        segments = [prompt, generation.segment] if generation else []
        usage = generation.usage if generation else None
        return Allocation(models, [None] * len(models), segments, usage, reason)


def read_allocation(text: str, steps: int, registry: ModelRegistry) -> tuple[list[str], str | None]:
    """Return the model of each step that a language model wrote, and what of it can't be used.

    Never raises: a step without a usable name goes to the most expensive model.

    Args:
        text: Lines with a number and a name, as the language model knows the models.
        steps: How many steps there are.
        registry: The models.

    Example:
        >>> from langgraph_router_r1 import ModelDescriptor
        >>> from langgraph_router_r1.testing import ScriptedChatModel
        >>> pool = ModelRegistry(ModelDescriptor(name=name, model=ScriptedChatModel([]), price=price)
        ...                      for name, price in (("small", 1.0), ("large", 9.0)))
        >>> read_allocation("1. small", 2, pool)
        (['small', 'large'], 'step 2 was given to no model')
    """
    found: dict[int, str] = {}
    for line in text.rpartition("</think>")[2].splitlines():
        if match := _LINE.match(line):
            found.setdefault(int(match[1]), match[2].strip("*`'\" ."))
    best = max(registry, key=lambda model: model.price.level).name
    models, reason = list[str](), None
    for number in range(1, steps + 1):
        if number not in found:
            models.append(best)
            reason = reason or f"step {number} was given to no model"
            continue
        try:
            models.append(registry.by_alias(_name_in(found[number], registry)).name)
        except UnknownModelError as error:
            models.append(best)
            reason = reason or f"step {number}: {error}"
    return models, reason


def _name_in(text: str, registry: ModelRegistry) -> str:
    """Return the name that a text is, or begins with; else the text."""
    known = map(re.escape, sorted(registry.aliases, key=len, reverse=True))
    match = re.match(rf"(?:{'|'.join(known)})(?!\w)", text, re.IGNORECASE)
    return match[0] if match else text
