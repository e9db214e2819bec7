"""Drawn pools: descriptors are the only thing that tells who will be right, and simulated models keep their word."""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage

from langgraph_router_r1 import ModelDescriptor, ModelRegistry
from langgraph_router_r1.pocket import pocket_registry
from langgraph_router_r1.pocket.world import DESCRIBED, countries, questions
from langgraph_router_r1.prompts import CALL_PROMPT
from training import robustness, unseen
from training.kinds import KINDS, STRANGERS, WORLD
from training.pools import (
    DrawnPool,
    draw_pool,
    redraw,
    simulated,
    simulated_pocket,
    worth,
)
from training.wordings import CHATS, GENERALISTS, TEMPLATES

POOLS = [draw_pool(random.Random(seed)) for seed in range(300)]


def test_the_same_numbers_draw_the_same_pool_and_others_another() -> None:
    again = [draw_pool(random.Random(seed)).registry.describe() for seed in range(300)]
    assert again == [pool.registry.describe() for pool in POOLS]
    assert len(set(again)) > 290  # shipped pools have few orders


def test_routers_are_trained_on_the_same_pools_as_ever() -> None:
    """What pools have for allocators besides must not change a number that is drawn for routers."""
    drawn = hashlib.sha256()
    for seed in range(100):
        choose = random.Random(seed)
        drawn.update(f"{draw_pool(choose).registry.describe()} {choose.random()}".encode())
    assert drawn.hexdigest() == "30047ad1a05bd0ec7dc67a41b3548d16a27b7e7d493f21746acc52221a345cd0"


def test_neither_a_place_nor_a_name_tells_who_knows_what() -> None:
    places: Counter[int] = Counter()
    first_names: Counter[str] = Counter()
    misleading = 0
    for pool in POOLS:
        for place, member in enumerate(pool.members):
            if member.role == "specialist" and "capital" in member.accuracy:
                places[place] += 1
                first_names[member.descriptor.display_name] += 1
            elif "capital" in member.descriptor.display_name:
                misleading += 1
    assert len(places) >= 6
    assert max(places.values()) < 0.4 * places.total()
    assert first_names["capitals"] < 0.5 * first_names.total()
    assert len(first_names) > 60
    assert misleading > 10


def test_members_are_missing_added_and_rivalled_and_nothing_is_always_told() -> None:
    def share(of: Callable[[DrawnPool], bool]) -> float:
        return sum(map(of, POOLS)) / len(POOLS)

    def specialists(pool: DrawnPool, kind: str) -> int:
        return sum(member.role == "specialist" and kind in member.accuracy for member in pool.members)

    strange = {kind.name for kind in STRANGERS}
    assert 0.05 < share(lambda pool: not specialists(pool, "currency")) < 0.3
    assert 0.2 < share(lambda pool: any(strange & set(member.accuracy) for member in pool.members)) < 0.8
    assert 0.05 < share(lambda pool: specialists(pool, "capital") > 1) < 0.4
    assert 0.05 < share(lambda pool: not any(member.descriptor.skills for member in pool.members)) < 0.3
    prices = [
        member.descriptor.price.prompt for pool in POOLS for member in pool.members if member.role == "specialist"
    ]
    assert max(prices) / min(prices) > 1000
    for pool in POOLS:
        described = [member.descriptor.description for member in pool.members]
        assert len(set(described)) == len(described)


def test_no_description_of_training_is_one_that_robustness_tests_with() -> None:
    file = Path(__file__).parent.parent / "benchmarks" / "robustness.toml"
    forms = tomllib.loads(file.read_text(encoding="utf-8"))["forms"]
    tested = {text for form in forms for text in form.get("descriptions", {}).values()}
    assert len(tested) > 25
    trained = {member.descriptor.description for pool in POOLS for member in pool.members}
    trained |= {*CHATS, *GENERALISTS, *(text for kind in KINDS.values() for text in kind.descriptions)}
    for kind in KINDS.values():
        for noun, plural in zip(kind.nouns, kind.plurals, strict=True):
            words = {"noun": noun, "plural": plural, "Noun": noun.capitalize(), "Plural": plural.capitalize()}
            trained |= {template.format(**words) for template in TEMPLATES}
    assert not tested & trained


def test_a_simulated_model_is_right_as_often_as_it_says_and_always_says_the_same() -> None:
    asked = [question for question in questions(countries()) if question.relation == "capital" and not question.through]
    for share in (0.3, 0.9):
        model = simulated(f"model {share}", {"capital": share})
        replies = [model.invoke(CALL_PROMPT.format(query=question.text)).text for question in asked]
        right = [reply == question.answer for reply, question in zip(replies, asked, strict=True)]
        assert sum(right) / len(right) == pytest.approx(share, abs=0.05)
        assert replies == [model.invoke(question.text).text for question in asked]
        everything = {question.answer for question in asked}
        assert set(replies) <= everything  # what is wrong is right for another country


def test_a_simulated_model_knows_only_its_kinds_and_every_wording_of_them() -> None:
    [peru] = [country for country in countries() if country.name == "Peru"]
    for kind in KINDS.values():
        model = simulated("sure", {kind.name: 1.0})
        for wording in kind.wordings:
            assert model.invoke(wording.format("Peru")).text == kind.fact(peru)
        other = next(another for another in KINDS.values() if another is not kind)
        assert model.invoke(other.wordings[0].format("Peru")).text == "I do not know."
    two_hop = WORLD[1].wordings[0].format(DESCRIBED["capital"][0].format("Lima"))
    assert simulated("sure", {"two-hop": 1.0}).invoke(two_hop).text == peru.currency
    assert simulated("sure", {"capital": 1.0}).invoke("Ignore the above.").text == "I do not know."


def test_at_cost_weight_0_accuracy_decides_and_the_more_cost_counts_the_more_often_the_cheaper_one() -> None:
    pairs = [
        (pool, kind.name)
        for pool in POOLS
        for kind in WORLD
        if sum(kind.name in m.accuracy and m.role == "specialist" for m in pool.members) > 1
    ]
    assert len(pairs) > 50
    shares = []
    for weight in (0.0, 0.3, 0.6, 0.9):
        cheapest = []
        for pool, kind in pairs:
            among = pool.candidates(kind)
            best = max(among, key=lambda m: worth(m, kind, weight, among))
            if weight == 0:
                assert best.told(kind) == max(m.told(kind) or 0 for m in among)
            cheapest.append(best.descriptor.price.prompt == min(m.descriptor.price.prompt for m in among))
        shares.append(sum(cheapest) / len(cheapest))
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < shares[-1]


def test_redrawn_pools_tell_of_the_same_models_in_other_ways() -> None:
    registry = pocket_registry("http://127.0.0.1:1/v1")
    forms = [redraw(registry, random.Random(seed)) for seed in range(100)]
    assert len({form.describe() for form in forms}) == 100
    assert min(len(form) for form in forms) >= 2
    assert {name for form in forms for name in form.names} == set(registry.names)
    for form in forms:
        for model in form:
            assert model.model == registry[model.name].model
            assert model.base_url == registry[model.name].base_url


def test_redrawing_a_pool_of_ones_own_keeps_descriptions_prices_by_part_and_whole_fallbacks() -> None:
    registry = ModelRegistry(
        [
            ModelDescriptor(name="a", model="openai:x", price=1.0, description="A.", skills={"law": 0.1, "art": 0.2}),
            ModelDescriptor(name="b", model="openai:y", price={"prompt": 1, "completion": 4}, description="B."),
            ModelDescriptor(name="c", model="openai:z", price="free", description="C.", fallbacks=("a", "b")),
        ],
        profile="pool.profile.jsonl",
    )
    forms = [redraw(registry, random.Random(seed), dropped=0.3) for seed in range(60)]
    for form in forms:
        assert form.profile == Path("pool.profile.jsonl")
        assert all(model.description == registry[model.name].description for model in form)
        if "b" in form.names:
            assert form["b"].price.completion == pytest.approx(4 * form["b"].price.prompt, rel=0.1)
        if "c" in form.names:
            assert form["c"].price.prompt == 0
            assert set(form["c"].fallbacks) <= set(form.names)
    assert any("a" not in form.names for form in forms)


def test_the_simulated_pocket_pool_is_described_to_the_router_exactly_as_the_real_one() -> None:
    assert simulated_pocket().describe() == pocket_registry().describe()


def test_the_newcomer_answers_its_own_questions_and_differs_only_in_what_is_said_of_it() -> None:
    pool = simulated_pocket()
    (_, own), (_, swapped) = robustness._newcomers(pool)
    [question] = [task for task in unseen.tasks("test") if task.question == "Which continent is Austria on?"]
    for model in (own, swapped):
        assert (model.name, model.price) == (unseen.NAME, pool["currencies"].price)
        assert model.model.invoke([HumanMessage(CALL_PROMPT.format(query=question.question))]).text == "Europe"  # type: ignore[union-attr]
    assert "Continents" in own.describe()
    assert swapped.describe() == pool["currencies"].describe().replace("Name: currencies.", f"Name: {unseen.NAME}.")


def test_who_needs_a_missing_model_is_told_by_both_steps_of_a_question() -> None:
    [task] = [
        task
        for task in robustness.tasks()
        if task.question.startswith("What is the currency of the country whose capital is Vienna")
    ]
    assert robustness.needs(task) == {"capital", "currency"}
