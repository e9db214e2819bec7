"""The specialist that the router never met: nothing in training tells of it, and being asked is counted honestly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import answer, pool, search

from langgraph_router_r1 import create_router
from langgraph_router_r1.pocket.world import DESCRIBED, countries
from langgraph_router_r1.testing import ScriptedEngine

pytest.importorskip("torch")

from training.kinds import KINDS
from training.rollout import roll_out
from training.unseen import KIND, NAME, figures, tasks


def test_questions_for_the_newcomer_are_about_countries_that_the_router_was_not_trained_on() -> None:
    asked = tasks("test")
    trained_on = {country.iso for country in countries("train")}
    assert not trained_on & {task.id.split("-")[1] for task in asked}
    assert {task.meta["hops"] for task in asked} == {"one-hop", "two-hop"}
    assert len({task.id for task in asked}) == len(asked)
    # A described country goes by one of its facts, and so needs two models.
    for task in asked:
        named = any(country.name in task.question for country in countries("test"))
        assert named or task.meta["hops"] == "two-hop", task.question
    assert len(asked) == 3 * len(list(countries("test"))) * (1 + len(DESCRIBED))


def test_no_lesson_tells_of_the_newcomer() -> None:
    told = [*KINDS, *(word for kind in KINDS.values() for word in (*kind.nouns, *kind.plurals, *kind.descriptions))]
    assert not [words for words in told if KIND in words.lower()]


def test_asked_means_that_the_newcomer_replied() -> None:
    registry = pool(continents="Africa", currencies="Peso")
    one_hop = [task for task in tasks("test") if task.meta["hops"] == "one-hop"][:3]
    [two_hop] = [task for task in tasks("test") if task.meta["hops"] == "two-hop"][:1]

    def write(transcript: Sequence[Any]) -> str:
        if any(segment["kind"] == "observation" for segment in transcript):
            return answer("Africa")
        return search("currencies: What?" if two_hop.question in transcript[0]["text"] else f"{NAME}: What?")

    router = create_router(ScriptedEngine(write), registry)
    rollouts = asyncio.run(roll_out(router, registry, [(task, 0.0) for task in [*one_hop, two_hop]]))
    found = figures(rollouts)
    assert (found["questions"], found["asked"].split()[0]) == (4, ".750")
    assert (found["asked, one-hop"], found["asked, two-hop"]) == (1.0, 0.0)
