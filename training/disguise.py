"""Pools in which names say nothing and members are missing: so that a router in training reads what is said of a model.

Functions from a registry to another one, the same each time for the same random numbers. Everything but the names, the
order and the set of models stays: descriptions, prices, skills, the models themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from langgraph_router_r1.registry import ModelDescriptor, ModelRegistry

Names = Literal["shuffled", "neutral"]
"""`shuffled`: each model bears the name of one of them. `neutral`: model-1, model-2 and so on."""

Disguise = Callable[[ModelRegistry, random.Random], ModelRegistry]
"""What makes a pool for one group of rollouts."""

FEWEST = 2
"""How many models a pool keeps, whatever is dropped: with fewer there is nothing to choose."""


def anonymise(registry: ModelRegistry, choose: random.Random, *, names: Names = "neutral") -> ModelRegistry:
    """Return the registry with other names, in another order: a place in the list is a name too.

    Raises:
        ValueError: There is no such way to name models.
    """
    if names not in {"shuffled", "neutral"}:
        raise ValueError(f"names is {names!r}; it must be 'shuffled' or 'neutral'")
    models = choose.sample(list(registry), len(registry))
    if names == "shuffled":
        new = choose.sample(registry.names, len(models))
    else:
        new = [f"model-{number}" for number, _ in enumerate(models, start=1)]
    renamed = {model.name: name for model, name in zip(models, new, strict=True)}
    return ModelRegistry(
        model.model_copy(
            update={
                "name": renamed[model.name],
                "fallbacks": tuple(renamed[registry[name].name] for name in model.fallbacks),
            }
        )
        for model in models
    )


def drop(registry: ModelRegistry, choose: random.Random, *, share: float) -> ModelRegistry:
    """Return the registry without some of its models, each gone with this probability; two at least stay.

    Raises:
        ValueError: The probability is none.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share!r}; it must be a probability, 0 or more and less than 1")
    order = choose.sample(registry.names, len(registry))
    gone = {name for name in order[FEWEST:] if choose.random() < share}
    kept = [model for model in registry if model.name not in gone]
    return ModelRegistry(
        model.model_copy(
            update={"fallbacks": tuple(name for name in model.fallbacks if registry[name].name not in gone)}
        )
        for model in kept
    )


def true_names(disguised: ModelRegistry, registry: ModelRegistry) -> dict[str, str]:
    """Return, for each name in a disguised pool, what the model is called in the registry it was made from."""

    def told(model: ModelDescriptor) -> ModelDescriptor:
        return model.model_copy(update={"name": "", "fallbacks": ()})

    left = [(told(model), model.name) for model in registry]
    names = {}
    for model in disguised:
        index = next(index for index, (known, _) in enumerate(left) if known == told(model))
        names[model.name] = left.pop(index)[1]
    return names
