"""Pools in which names say nothing and members are missing: so that a router in training reads what is said of a model.

Functions from a registry to another one, the same each time for the same random numbers. Everything but what the router
calls the models, their order and their set stays: accounts tell them by their own names.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from langgraph_router_r1.registry import ModelRegistry

Names = Literal["shuffled", "neutral"]
"""What the router calls the models. `shuffled`: each by the name of one of them. `neutral`: model-1, model-2 ..."""

Disguise = Callable[[ModelRegistry, random.Random], ModelRegistry]
"""What makes a pool for one group of rollouts."""

FEWEST = 2
"""How many models a pool keeps, whatever is dropped: with fewer there is nothing to choose."""


def anonymise(registry: ModelRegistry, choose: random.Random, *, names: Names = "neutral") -> ModelRegistry:
    """Return the registry in another order, with other names for the router: a place in the list is a name too.

    Raises:
        ValueError: There is no such way to name models.
    """
    if names not in {"shuffled", "neutral"}:
        raise ValueError(f"names is {names!r}; it must be 'shuffled' or 'neutral'")
    mixed = ModelRegistry(choose.sample(list(registry), len(registry)), profile=registry.profile)
    if names == "neutral":
        return mixed.neutral()
    aliases = choose.sample(registry.names, len(registry))
    named = (model.model_copy(update={"alias": alias}) for model, alias in zip(mixed, aliases, strict=True))
    return ModelRegistry(named, profile=registry.profile)


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
    whole = (
        model.model_copy(
            update={"fallbacks": tuple(name for name in model.fallbacks if registry[name].name not in gone)}
        )
        for model in kept
    )
    return ModelRegistry(whole, profile=registry.profile)
