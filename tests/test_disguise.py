"""Pools in disguise: what the router is told of models, and nothing else, changes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from langgraph_router_r1 import ModelDescriptor, ModelRegistry
from training.disguise import FEWEST, anonymise, drop


def priced() -> ModelRegistry:
    """Four models that differ in what is said of them; one falls back on another."""
    names = ("capitals", "rivers", "kings", "spare")
    return ModelRegistry(
        (
            ModelDescriptor(name=name, model="openai:x", price=price, fallbacks=("kings",) * (name == "spare"))
            for price, name in enumerate(names, start=1)
        ),
        profile="pool.profile.jsonl",
    )


@pytest.mark.parametrize("names", ["neutral", "shuffled"])
def test_anonymous_models_keep_what_is_said_of_them_and_lose_name_and_place(names: Any) -> None:
    registry = priced()
    disguised = anonymise(registry, random.Random(1), names=names)
    assert sorted(disguised.names) == sorted(registry.names)
    for model in disguised:
        original = registry[model.name]
        assert model.describe().partition(": ")[2] == original.describe().partition(": ")[2]
        assert model.model_copy(update={"alias": None}) == original
    assert disguised.names != registry.names
    expected = {f"model-{number}" for number in range(1, 5)} if names == "neutral" else set(registry.names)
    assert set(disguised.aliases) == expected
    assert disguised.aliases != disguised.names
    assert disguised.describe() == anonymise(registry, random.Random(1), names=names).describe()
    assert disguised.describe() != anonymise(registry, random.Random(2), names=names).describe()


def test_dropping_keeps_two_models_at_least_and_the_same_ones_for_the_same_seed() -> None:
    registry = priced()
    kept = [drop(registry, random.Random(seed), share=0.7) for seed in range(50)]
    assert {len(some) for some in kept} == {2, 3, 4}
    assert min(len(some) for some in kept) == FEWEST
    assert {name for some in kept for name in some.names} == set(registry.names)
    assert [some.names for some in kept] == [drop(registry, random.Random(n), share=0.7).names for n in range(50)]
    assert drop(registry, random.Random(0), share=0.0).names == registry.names
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match="must be a probability"):
            drop(registry, random.Random(0), share=wrong)


def test_what_was_measured_of_a_pool_is_known_in_disguise_too() -> None:
    for names in ("neutral", "shuffled"):
        disguised = anonymise(drop(priced(), random.Random(0), share=0.5), random.Random(0), names=names)
        assert disguised.profile == Path("pool.profile.jsonl")
