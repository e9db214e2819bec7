"""Forms of a pool: the same models, told to the router in another order, under other names or in other words.

A router that reads descriptors does as well in every form; one that has memorised positions and names does not.
A benchmark file lists forms (`benchmarks/robustness.toml`), and each of its rows is run in each of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.registry import ModelRegistry

ASSUMED_QUESTIONS = 200
"""How many questions an accuracy is taken to be measured with, where the registry does not say."""

EACH = "each"

_ONSETS = ("br", "cl", "d", "f", "gr", "h", "k", "l", "m", "n", "p", "qu", "st", "t", "v", "w", "z")
_RIMES = ("ane", "ell", "iro", "ock", "une", "ardo", "eth", "iva", "olm", "ux", "ynn", "asto")


class Form(BaseModel):
    """One way to tell of a pool; what is not set stays as it is.

    Example:
        >>> pool = ModelRegistry(ModelDescriptor(name=name, model="openai:x", price=1.0) for name in ("a", "b", "c"))
        >>> Form(name="reversed", order="reversed").of(pool).names
        ('c', 'b', 'a')
        >>> Form(name="nameless", names="neutral", without=("b",)).of(pool).aliases
        ('model-1', 'model-2')
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    """What its rows are called."""
    order: Literal["as it is", "reversed", "shuffled"] = "as it is"
    names: Literal["own", "neutral", "invented"] = "own"
    """What the router calls the models: `neutral` is model-1, model-2 ...; `invented` are words without meaning."""
    descriptions: dict[str, str] = Field(default_factory=dict)
    """Other descriptions, by model. Those of models that the pool does not have are left out."""
    skills: Literal["told", "moved", "none"] = "told"
    """`moved`: each accuracy is drawn at random within its 95 % interval. `none`: no accuracy is told."""
    without: tuple[str, ...] | Literal["each"] = ()
    """Models that are missing; `"each"` makes one form for each model."""
    newcomers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """More models, by name, with their fields as in a registry file; `like` names a model of the pool ("any": the
    first) whose fields it has otherwise, and which answers in its place."""
    prices: Annotated[float, Field(gt=0)] = 1.0
    """What prices are multiplied by, in the account too."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many forms are drawn, each with random numbers of its own."""

    def of(self, registry: ModelRegistry, number: int = 0) -> ModelRegistry:
        """Return a registry in this form.

        Args:
            registry: The pool as it is.
            number: Which of the forms that are drawn: the same number, the same form.

        Raises:
            RegistryError: A newcomer is wrong.
            UnknownModelError: A model that is to be missing isn't there.
        """
        choose = random.Random(f"{self.name} {number}")  # noqa: S311 - no secret
        missing = (registry.names[number],) if self.without == EACH else tuple(self.without)
        models = [self._told(model, choose) for model in _without(registry, missing)]
        models += self._new(registry)
        if self.order == "reversed":
            models.reverse()
        elif self.order == "shuffled":
            models = _shuffled(models, choose)
        if self.names == "invented":
            names = _invented_names(choose)
            models = [model.model_copy(update={"alias": next(names)}) for model in models]
        whole = ModelRegistry(models, profile=registry.profile)
        return whole.anonymized() if self.names == "neutral" else whole

    def count(self, registry: ModelRegistry) -> int:
        """Return how many forms of a pool this makes."""
        return len(registry) if self.without == EACH else self.draws

    def label(self, registry: ModelRegistry, number: int) -> str:
        """Return what one of them is called."""
        if self.without == EACH:
            return f"{self.name} {registry.names[number]}"
        return f"{self.name} {number + 1}" if self.draws > 1 else self.name

    def _new(self, registry: ModelRegistry) -> list[ModelDescriptor]:
        whole = {}
        for name, fields in self.newcomers.items():
            own = dict(fields)
            if (like := own.pop("like", None)) is not None:
                other = next(iter(registry)) if like == "any" else registry[like]
                given = other.model_dump(exclude={"name", "alias", "measured", "fallbacks"}, exclude_unset=True)
                own = {**given, "model": other.model, **own}
            whole[name] = own
        source = f"form {self.name!r}"
        return list(ModelRegistry.from_dict({"models": whole}, source=source)) if whole else []

    def _told(self, model: ModelDescriptor, choose: random.Random) -> ModelDescriptor:
        changed: dict[str, Any] = {}
        if model.name in self.descriptions:
            changed["description"] = self.descriptions[model.name]
        if self.skills == "none":
            changed["skills"] = {}
        elif self.skills == "moved":
            changed["skills"] = {skill: _moved(model, skill, choose) for skill in model.skills}
        if self.prices != 1.0:
            changed["price"] = model.price.with_rates(lambda rate: rate * self.prices)
        return model.model_copy(update=changed)


def _without(registry: ModelRegistry, missing: Iterable[str]) -> Iterator[ModelDescriptor]:
    """Yield the models that stay, their fallbacks among those that stay."""
    gone = {registry[name].name for name in missing}
    for model in registry:
        if model.name not in gone:
            kept = tuple(name for name in model.fallbacks if registry[name].name not in gone)
            yield model.model_copy(update={"fallbacks": kept})


def _shuffled(models: list[ModelDescriptor], choose: random.Random) -> list[ModelDescriptor]:
    """Return them in another order than they have, if there is another."""
    mixed = choose.sample(models, len(models))
    while mixed == models and len(models) > 1:
        mixed = choose.sample(models, len(models))
    return mixed


def _moved(model: ModelDescriptor, skill: str, choose: random.Random) -> float:
    """Draw an accuracy within its 95 % interval, with two digits as it is told."""
    from langgraph_router_r1.evaluation.metrics import wilson

    value = model.skills[skill]
    known: Mapping[str, Any] = model.measured.accuracy if model.measured else {}
    interval = known[skill] if skill in known else wilson(value * ASSUMED_QUESTIONS, ASSUMED_QUESTIONS)
    return round(choose.uniform(interval.low, interval.high), 2)


def _invented_names(choose: random.Random) -> Iterator[str]:
    taken = set()
    while True:
        word = choose.choice(_ONSETS) + choose.choice(_RIMES) + choose.choice(("", "-7", "-lite", "-b"))
        if word not in taken:
            taken.add(word)
            yield word
