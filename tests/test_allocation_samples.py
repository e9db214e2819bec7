"""What an allocator learns from: plans that lead to the answer, and the best model for each step by its descriptor."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.pocket import pocket_registry
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.pocket.world import HIGHER, countries, joined_questions, questions
from langgraph_router_r1.strategies.allocators import TOKENS_A_STEP, read_allocation
from langgraph_router_r1.strategies.plans import joined, parse_plan
from training.allocation_samples import (
    PLANS_PER_POOL,
    Allocated,
    allocate,
    asking,
    compare_searches,
    confidences,
    draw_allocations,
    judge_allocations,
)
from training.allocation_search import cheapest_right
from training.kinds import COMPARISON
from training.planner import cli
from training.pools import draw_pool, simulated

LANDS = countries("train")
QUESTIONS = [*questions(LANDS), *joined_questions(LANDS)]
DRAWN = list(draw_allocations(QUESTIONS, pools=60, seed=3))


def test_plans_of_all_kinds_come_in_batches_that_share_a_pool() -> None:
    batches = [DRAWN[start : start + PLANS_PER_POOL] for start in range(0, len(DRAWN), PLANS_PER_POOL)]
    assert len(batches) == 60
    for batch in batches:
        assert len({id(one.pool) for one in batch}) == 1
    assert len({id(one.pool) for one in DRAWN}) == 60
    lengths = Counter(len(one.plan.steps) for one in DRAWN)
    assert min(lengths[1], lengths[2], lengths[3]) > 0.15 * len(DRAWN)
    kinds = Counter(kind for one in DRAWN for kind in one.kinds)
    assert {"capital", "currency", "dialling", "domain", COMPARISON} < set(kinds)
    assert {one.cost_weight for one in DRAWN} == {0.0, 0.3, 0.6, 0.9}


def test_the_same_seed_draws_the_same_plans_and_models() -> None:
    again = draw_allocations(QUESTIONS, pools=3, seed=3)
    assert [(one.plan.text, one.text) for one in again] == [(one.plan.text, one.text) for one in DRAWN[:24]]


def test_models_that_know_what_each_step_asks_for_come_to_the_answer() -> None:
    for one in DRAWN:
        results = dict[int, str]()
        for step, kind in zip(one.plan.steps, one.kinds, strict=True):
            results[step.number] = simulated("sure", {kind: 1.0}).invoke(step.query(results)).text
        assert exact_match(joined([results[step.number] for step in one.plan.ends]), one.answers)


def test_what_an_allocator_shall_write_is_read_as_the_best_models() -> None:
    for one in DRAWN:
        names, reason = read_allocation(one.text, len(one.plan.steps), one.pool.registry)
        assert reason is None
        assert names == [member.descriptor.name for member in one.best]


def test_at_cost_weight_0_the_labels_are_what_the_search_finds_where_only_the_most_accurate_are_right() -> None:
    at_0 = [one for one in DRAWN if one.cost_weight == 0]
    assert len(at_0) > 50
    for one in at_0:
        queries = [step.query(dict.fromkeys(step.needs, "x")) for step in one.plan.steps]
        able: dict[str, set[str]] = {}
        for query, kind in zip(queries, one.kinds, strict=True):
            told = {member.descriptor.name: member.told(kind) or 0.0 for member in one.pool.candidates(kind)}
            able[query] = {name for name, value in told.items() if value == max(told.values())}

        def ask(query: str, name: str, one: Allocated = one, able: dict[str, set[str]] = able) -> tuple[str, float]:
            return "x" if name in able.get(query, ()) else "wrong", one.pool.registry[name].price.prompt

        right = joined(["x"] * len(one.plan.ends))
        names = [member.descriptor.name for member in one.pool.members]
        found = cheapest_right(one.plan, names, ask, lambda answer, right=right: answer == right)  # type: ignore[misc]
        assert found.cost_usd == pytest.approx(sum(member.descriptor.price.prompt for member in one.best))


def test_the_more_cost_counts_the_cheaper_the_labels() -> None:
    for one in DRAWN:
        steps = [(step.text, kind) for step, kind in zip(one.plan.steps, one.kinds, strict=True)]
        labels = [allocate(steps, one.answers, one.pool, weight) for weight in (0.0, 0.3, 0.6, 0.9)]
        costs = [[member.descriptor.price.prompt for member in label.best] for label in labels if label]
        assert all(costs[place] >= costs[place + 1] for place in range(3) if len(costs[0]) == 1)
    cheaper = [one for one in DRAWN if one.cost_weight > 0 and one.best != _at_0(one)]
    assert cheaper


def _at_0(one: Allocated) -> object:
    steps = [(step.text, kind) for step, kind in zip(one.plan.steps, one.kinds, strict=True)]
    label = allocate(steps, one.answers, one.pool, 0.0)
    assert label is not None
    return label.best


def test_a_pool_without_anybody_for_a_step_makes_no_example() -> None:
    pool = draw_pool(random.Random(0), plain=1.0)  # without a model that compares numbers, but with a generalist
    alone = type(pool)(pool.registry, tuple(member for member in pool.members if member.role == "specialist"))
    assert allocate([("Which is higher?", COMPARISON)], ("",), pool, 0.0) is not None
    assert allocate([("Which is higher?", COMPARISON)], ("",), alone, 0.0) is None


def test_pools_for_plans_may_have_models_that_compare_numbers_and_these_do() -> None:
    pools = [draw_pool(random.Random(seed), comparing=True) for seed in range(200)]
    comparers = [[member for member in pool.members if set(member.accuracy) == {COMPARISON}] for pool in pools]
    assert {len(found) for found in comparers} == {0, 1, 2}
    assert len({member.descriptor.description for found in comparers for member in found}) > 10
    generalists = [member for pool in pools for member in pool.members if member.role == "generalist"]
    assert any(COMPARISON in member.accuracy for member in generalists)
    shipped = draw_pool(random.Random(0), plain=1.0, comparing=True).registry
    assert set(shipped.describe().splitlines()) == set(pocket_registry(planning=True).describe().splitlines())
    model = simulated("sure", {COMPARISON: 1.0})
    assert model.invoke(HIGHER.format("Peru", "+51", "Cuba", "+53")).text == "Cuba"
    assert model.invoke(HIGHER.format("Peru", "Lima", "Cuba", "+53")).text == "I do not know."
    assert simulated("wrong", {COMPARISON: 0.0}).invoke(HIGHER.format("Peru", "+51", "Cuba", "+53")).text == "Neither."
    assert model.invoke(HIGHER.format("Peru", "+5", "Cuba", "+5")).text == "They are equal."


def test_a_compared_search_counts_what_a_small_world_has() -> None:
    pool = draw_pool(random.Random(0), plain=1.0)
    plan = parse_plan("1. What is the capital of Peru?", "?")
    best = pool.best("capital", 0.0)
    assert best is not None
    one = Allocated(plan, ("Lima",), ("capital",), pool, 0.0, (best,))
    assert confidences(one) == [0.93]  # of the generalist
    assert asking(pool)("What is the capital of Peru?", "capitals")[0] == "Lima"
    figures = compare_searches([one])
    assert figures["calls, brute force"] == 6
    assert figures["solvable"] == figures["grouped right"] == 1


def test_an_allocator_is_judged_by_the_steps_that_it_gives_to_the_best_model() -> None:
    perfect = judge_allocations(DRAWN, [one.text for one in DRAWN])
    assert perfect["right"] == perfect["a candidate"] == perfect["plans read whole"] == 1
    assert perfect["steps"] == sum(len(one.plan.steps) for one in DRAWN)
    assert perfect["right, one candidate"] == perfect["right, several candidates"] == 1
    at_0 = judge_allocations(DRAWN, ["1. nobody" if one.cost_weight else one.text for one in DRAWN])
    assert at_0["right, cost weight 0"] == 1
    assert at_0["right, cost weights above 0"] < 0.3
    assert at_0["right"] < at_0["a candidate"] < 1
    assert at_0["plans read whole"] == round(sum(one.cost_weight == 0 for one in DRAWN) / len(DRAWN), 3)


def test_a_file_of_examples_has_the_prompt_that_an_allocator_gets_and_masks_it(tmp_path: Path) -> None:
    file = tmp_path / "allocations.jsonl"
    result = CliRunner().invoke(cli, ["allocations", "--output", str(file), "--pools", "2"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert json.loads(result.stdout)["examples"] == len(rows) == 16
    tokenizer = ChatTokenizer.load(base_model_dir())
    for row in rows:
        learned = row["mask"].index(1)
        assert set(row["mask"][:learned]) == {0}
        assert set(row["mask"][learned:]) == {1}
        assert tokenizer.decode(row["token_ids"][learned:-1]) == row["models"]
        assert row["token_ids"][-1] == tokenizer.eos_token_id
        prompt = tokenizer.decode(row["token_ids"][:learned])
        assert row["plan"] in prompt
        assert f"Cost weight: {row['cost_weight']:g} of 1." in prompt
        thoughts, names = (part.strip().splitlines() for part in row["models"].split("</think>"))
        assert all(f"Name: {line.partition('. ')[2]}." in prompt for line in names)
        for thought, line in zip(thoughts[1:], names, strict=True):
            assert thought.startswith(f"{line.partition(' ')[0]} Needed: ")
            assert thought.endswith(f"Best: {line.partition('. ')[2]}.")
        assert sum(row["mask"]) <= TOKENS_A_STEP * len(names)
    for batch in (rows[:8], rows[8:]):  # what a batch shares is computed once: nearly all of its prompts
        starts = [tokenizer.decode(row["token_ids"]).partition("Plan:")[0] for row in batch]
        assert len(set(starts)) == 1
