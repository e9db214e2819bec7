"""The planner's parts from nothing, in the steps that `training/recipes/r2/cold_start.sh` runs in order.

    python -m training.planner measure      what the planner's pool can do, for the kNN allocator
    python -m training.planner plans        plans that are drawn and scored, for the decomposer
    python -m training.sft ...              the decomposer's adapter, from those
    python -m training.planner check        plans of test countries, beside those that lead to the answer
    python -m training.planner compare ADAPTER ...
                                            reward, exact match and cost of decomposers on the same questions
    python -m training.planner change-pool  the planner before and after a specialist goes and another comes
    python -m training.planner allocations  plans over drawn pools with the best model for each step, for the allocator
    python -m training.sft ...              the allocator's adapter, from those
    python -m training.planner search-compare
                                            how much the grouped search finds and asks, beside the exact one
    python -m training.planner check-allocator ADAPTER
                                            who gets the steps of test countries' plans, in pools that are new

Each prints one line of JSON with what it made or measured.
"""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from langchain_core.messages import HumanMessage

from langgraph_router_r1.engines.base import Generation, RouterEngine
from langgraph_router_r1.engines.precision import fastest_dtype
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.metrics import bootstrap, exact_match, paired_p_value
from langgraph_router_r1.evaluation.profile import profile
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.report import MICRO
from langgraph_router_r1.evaluation.tasks import POCKET_SETS, Split, Task, distinct, draw, load_tasks
from langgraph_router_r1.pocket import (
    DECOMPOSER_NAME,
    MAX_PLAN_TOKENS,
    PLANNER_PROFILE_FILE,
    PROFILE_FILE,
    pocket_registry,
    pocket_server,
)
from langgraph_router_r1.pocket import PLANNER_ADAPTERS as ADAPTERS
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.pocket.world import HIGHER, PocketQuestion, countries, joined_questions, questions
from langgraph_router_r1.prompts import allocation_chat, plan_chat
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.strategies.allocators import TOKENS_A_STEP
from langgraph_router_r1.strategies.plans import MAX_STEPS
from training.allocation_samples import PLANS_PER_POOL, Allocated, compare_searches, draw_allocations, judge_allocations
from training.examples import ended, row_of, write_rows
from training.parts import decomposer as decomposer_part
from training.plan_samples import Solver, best_plan, score
from training.pocket import IN_FLIGHT, report
from training.pool_change import NEWCOMERS, changes, questions_for
from training.pools import simulated_pocket
from training.rewards import CostScale, reward
from training.robustness import ROUTER_PRICE
from training.rollout import Rollout, roll_out

REPLIES_FILE = Path("runs/planner/replies.jsonl")
"""What `measure` has asked so far; it goes on from there when it was stopped."""

KNN = "knn"
"""The allocator that goes by the registry's profile."""

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@cli.command()
def plans(
    output: Annotated[Path, typer.Option(help="File of the examples, a JSON object a line.")] = Path(
        "runs/planner/plans.jsonl"
    ),
    examples: Annotated[int, typer.Option(help="How many, of all kinds of question alike.")] = 1280,
    samples: Annotated[int, typer.Option(help="How many plans are drawn for a question.")] = 64,
    only: Annotated[str, typer.Option(help="Kinds of question, with commas between; by default all.")] = "",
    seed: int = 0,
) -> None:
    """Draw plans for questions about the training countries, and keep the best that leads to the answer of each."""
    choose, solver = random.Random(seed), Solver(countries("train"))
    tokenizer = ChatTokenizer.load(base_model_dir())
    rows, rejected = list[dict[str, Any]](), Counter[str]()
    for asked in sample_of_kinds("train", examples, choose, only=set(filter(None, only.split(",")))):
        best = best_plan(asked, solver, choose, samples=samples)
        if best is None:
            rejected[asked.hops] += 1
            continue
        prompt = tokenizer.render(
            plan_chat([HumanMessage(asked.text)], max_steps=MAX_STEPS, control_tokens=tokenizer.control_tokens)
        )[1]
        completion = ended(tokenizer, best.text)
        rows.append({**row_of(prompt, completion), "question": asked.text, "plan": best.text, "score": best.score})
    tokens = write_rows(output, rows)
    report(examples=len(rows), without_a_right_plan=dict(rejected), mean_tokens=tokens)


def sample_of_kinds(
    split: Split, count: int, choose: random.Random, *, only: Iterable[str] = ()
) -> list[PocketQuestion]:
    """Return questions about the countries of a split, of each kind as many, in a mixed order.

    Args:
        split: Of the countries.
        count: How many.
        choose: Draws them.
        only: The kinds (`PocketQuestion.hops`); all by default.
    """
    lands = countries(split)
    of_kind: dict[str, list[PocketQuestion]] = defaultdict(list)
    for asked in (*questions(lands), *joined_questions(lands)):
        if not only or asked.hops in only:
            of_kind[asked.hops].append(asked)
    share = -(-count // len(of_kind))
    drawn = [one for asked in of_kind.values() for one in choose.sample(asked, min(share, len(asked)))]
    choose.shuffle(drawn)
    return drawn[:count]


@cli.command()
def measure(
    profile_file: Path = PLANNER_PROFILE_FILE,
    sample: Annotated[int, typer.Option(help="How many comparisons are asked.")] = 40,
    seed: int = 0,
) -> None:
    """Ask the planner's pool, through vLLM, what the shipped profile lacks of its steps; write its profile."""
    kept = REPLIES_FILE
    kept.parent.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        shutil.copy(PROFILE_FILE, kept)
    # A question of two hops is no step: beside those, a step about a domain or a capital would look too hard for the
    # specialists, and go to the generalist.
    shipped = [task for task in RecordedPool.from_file(PROFILE_FILE).tasks.values() if task.kind != "two-hop"]
    tasks = [*shipped, *_comparisons(sample, random.Random(seed))]
    with pocket_server() as server:
        registry = pocket_registry(server.base_url, planning=True)
        measured = asyncio.run(profile(registry, tasks, path=kept, in_flight=IN_FLIGHT))
    replies = RecordedPool.from_file(kept)
    of_steps = {task.id: replies.outcomes[task.id] for task in tasks}
    RecordedPool({task.id: task for task in tasks}, of_steps).save(profile_file)
    kept.unlink()
    found = {name: figures.accuracy["comparison"] for name, figures in measured.items()}
    report(tasks=len(tasks), comparison={name: round(accuracy.value, 2) for name, accuracy in found.items()})


def _comparisons(count: int, choose: random.Random) -> list[Task]:
    """Return steps that compare the codes of two training countries."""
    lands = [asked for asked in joined_questions(countries("train")) if asked.other is not None]
    tasks = {}
    for asked in choose.sample(lands, 3 * count):
        assert asked.other is not None
        codes = (asked.country.name, asked.country.dialling_code, asked.other.name, asked.other.dialling_code)
        name = f"pocket-{asked.country.iso}-{asked.other.iso}-comparison"
        tasks[name] = Task(name, HIGHER.format(*codes), (asked.answer,), "pocket-joined", {"kind": "comparison"})
    return [*tasks.values()][:count]


@cli.command()
def check(
    decomposer: Annotated[Path, typer.Argument(help="Adapter of the decomposer.")] = ADAPTERS / DECOMPOSER_NAME,
    sample: int = 200,
    split: Split = "test",
    seed: int = 0,
) -> None:
    """Let a decomposer plan questions about countries that it never saw, and do the steps without a mistake."""
    engine = _on_this_machine(decomposer)
    solver = Solver(countries())
    chosen = sample_of_kinds(split, sample, random.Random(seed))
    written = asyncio.run(_written(engine, chosen))
    right: dict[str, list[bool]] = defaultdict(list)
    for asked, generation in zip(chosen, written, strict=True):
        right[asked.hops].append(score(generation.segment["text"], asked, solver).is_right)
    usages = [generation.usage for generation in written]
    tokens = [usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages]
    report(
        decomposer=decomposer.name,
        questions=sum(map(len, right.values())),
        **{f"right {hops}": round(statistics.mean(of), 4) for hops, of in sorted(right.items())},
        mean_tokens=round(statistics.mean(tokens), 1),
    )


def _on_this_machine(adapter: Path, **options: Any) -> RouterEngine:
    """Return an engine that samples an adapter on the CPU, in the type of number that it computes fastest in."""
    import torch

    from langgraph_router_r1.engines.transformers import TransformersEngine

    return TransformersEngine(base_model_dir(), adapter=adapter, dtype=getattr(torch, fastest_dtype("cpu")), **options)


async def _written(engine: RouterEngine, chosen: Iterable[PocketQuestion]) -> list[Generation]:
    """Return what a decomposer writes about each question."""
    chats = (
        plan_chat([HumanMessage(asked.text)], max_steps=MAX_STEPS, control_tokens=engine.control_tokens)
        for asked in chosen
    )
    return await asyncio.gather(
        *(engine.agenerate([engine.begin(chat)], stop=[], max_tokens=MAX_PLAN_TOKENS) for chat in chats)
    )


@cli.command()
def allocations(
    output: Annotated[Path, typer.Option(help="File of the examples, a JSON object a line.")] = Path(
        "runs/planner/allocations.jsonl"
    ),
    pools: Annotated[int, typer.Option(help=f"How many drawn pools, {PLANS_PER_POOL} plans each.")] = 100,
    seed: int = 0,
) -> None:
    """Draw pools, and give the steps of plans about the training countries to the best model by its descriptor."""
    lands = countries("train")
    tokenizer = ChatTokenizer.load(base_model_dir())
    rows = []
    for one in draw_allocations([*questions(lands), *joined_questions(lands)], pools=pools, seed=seed):
        prompt = tokenizer.render(_allocation_chat(one, tokenizer.control_tokens))[1]
        row = row_of(prompt, ended(tokenizer, one.text))
        rows.append({**row, "plan": one.plan.text, "models": one.text, "cost_weight": one.cost_weight})
    report(examples=len(rows), mean_tokens=write_rows(output, rows))


def _allocation_chat(one: Allocated, control_tokens: Collection[str]) -> list[dict[str, str]]:
    return allocation_chat(one.plan.text, one.pool.registry, cost_weight=one.cost_weight, control_tokens=control_tokens)


@cli.command()
def search_compare(
    pools: Annotated[int, typer.Option(help=f"How many drawn pools, {PLANS_PER_POOL} plans each.")] = 100,
    plain: Annotated[float, typer.Option(help="Share of them that are the planner's pool as it ships.")] = 0.2,
    split: Split = "train",
    seed: int = 0,
) -> None:
    """Compare the searches for the cheapest right models, exact and grouped, over drawn pools of simulated models."""
    lands = countries(split)
    drawn = list(draw_allocations([*questions(lands), *joined_questions(lands)], pools=pools, plain=plain, seed=seed))
    models = statistics.mean(len(one.pool.members) for one in drawn)
    report(plans=len(drawn), mean_models=round(models, 1), **compare_searches(drawn))


@cli.command()
def check_allocator(
    allocator: Annotated[Path, typer.Argument(help="Adapter of the allocator.")] = ADAPTERS / "allocator",
    pools: Annotated[int, typer.Option(help=f"How many drawn pools, {PLANS_PER_POOL} plans each.")] = 25,
    split: Split = "test",
    seed: int = 1_000_000,
) -> None:
    """Let an allocator give the steps of plans to models: of countries that it never saw, in pools that are new."""
    engine = _on_this_machine(allocator, batch_size=PLANS_PER_POOL)
    lands = countries(split)
    drawn = list(draw_allocations([*questions(lands), *joined_questions(lands)], pools=pools, seed=seed))
    written = asyncio.run(_allocated(engine, drawn))
    texts = [generation.segment["text"] for generation in written]
    report(allocator=allocator.name, plans=len(drawn), **judge_allocations(drawn, texts))


@cli.command()
def compare(
    adapters: Annotated[
        list[Path], typer.Argument(help="Adapters of decomposers; others are compared with the first.")
    ],
    sample: int = 200,
    cost_weight: float = 0.3,
    split: Split = "test",
    seed: int = 0,
) -> None:
    """Let decomposers plan the same questions about countries that they never saw; the profile gives steps to models.

    The models are simulated, and plans are greedy. Costs are with the tokens of the plan. For the reward, the cost
    scale has seen the costs of all of these decomposers.
    """
    tasks = distinct(task for name in POCKET_SETS for task in load_tasks(name))
    chosen = draw(tasks, split=split, sample=sample, seed=seed)
    pool = simulated_pocket(planning=True)
    rolled = {adapter: _rolled(_on_this_machine(adapter), pool, chosen, cost_weight) for adapter in adapters}
    scale = CostScale(len(adapters) * sample)
    scale.add(one.cost_usd() for rollouts in rolled.values() for one in rollouts)
    scored = {adapter: [reward(one, scale) for one in rollouts] for adapter, rollouts in rolled.items()}
    first = [one.outcome for one in scored[adapters[0]]]
    for adapter, rewarded in scored.items():
        right = [one.outcome for one in rewarded]
        of_kind: dict[str, list[float]] = defaultdict(list)
        for task, outcome in zip(chosen, right, strict=True):
            of_kind[task.meta["hops"]].append(outcome)
        report(
            decomposer=str(adapter),
            questions=len(chosen),
            reward=str(bootstrap([one.total for one in rewarded if one.total is not None])),
            exact_match=str(bootstrap(right)),
            micro_dollars=_micro_dollars(rolled[adapter]),
            malformed=sum(one.format < 0 for one in rewarded),
            without_reward=sum(one.total is None for one in rewarded),
            p_against_first=None if adapter == adapters[0] else round(paired_p_value(right, first), 4),
            by_kind={kind: round(statistics.mean(outcomes), 3) for kind, outcomes in sorted(of_kind.items())},
        )


@cli.command()
def change_pool(
    decomposer: Annotated[Path, typer.Option(help="Adapter of the decomposer.")] = ADAPTERS / DECOMPOSER_NAME,
    allocator: Annotated[str, typer.Option(help="An adapter, or knn: the profile.")] = KNN,
    sample: Annotated[int, typer.Option(help="Questions for each specialist that goes.")] = 40,
    cost_weight: float = 0.3,
    split: Split = "test",
    seed: int = 0,
) -> None:
    """Let one specialist after the other go, and another come in its place; nothing is trained again.

    Asked are questions that need who goes, about countries that nobody was trained on. The models are simulated, and
    costs are with the tokens of decomposer and allocator.
    """
    planning = _on_this_machine(decomposer)
    allocating: Any = KNN if allocator == KNN else _on_this_machine(Path(allocator), model="allocator")
    choose, found = random.Random(seed), defaultdict[str, list[Rollout]](list)
    asked: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as directory:
        for gone, (newcomer, _) in NEWCOMERS.items():
            tasks = questions_for(gone, split=split, sample=sample, choose=choose)
            pools = changes(simulated_pocket(planning=True), gone, Path(directory), profiled=allocator == KNN)
            roles = {gone: "who goes", newcomer: "newcomer", "generalist": "generalist"}
            for form, pool in pools:
                rollouts = _rolled(planning, pool, tasks, cost_weight, allocating)
                found[form] += rollouts
                asked[form].update(roles.get(call["model"], "others") for one in rollouts for call in one.calls)
    for form, rollouts in found.items():
        right = [exact_match(one.answer, one.task.golden_answers) for one in rollouts]
        report(
            pool=form,
            allocator=allocator,
            questions=len(rollouts),
            exact_match=str(bootstrap(right)),
            micro_dollars=_micro_dollars(rollouts),
            calls=dict(asked[form]),
        )


def _micro_dollars(rollouts: Iterable[Rollout]) -> str:
    """Return what rollouts cost on average, in millionths of a dollar, with its interval."""
    cost = bootstrap([one.cost_usd() * MICRO for one in rollouts])
    return f"{cost.mean:.2f} [{cost.low:.2f}, {cost.high:.2f}]"


def _rolled(
    engine: RouterEngine, registry: ModelRegistry, tasks: Sequence[Task], cost_weight: float, allocator: Any = KNN
) -> list[Rollout]:
    """Return what comes of tasks when an engine plans them, greedily."""
    part = decomposer_part(allocator=allocator)
    router = part.create(engine, registry, max_tokens=MAX_PLAN_TOKENS, router_price=ROUTER_PRICE)
    asked = [(task, cost_weight) for task in tasks]
    return asyncio.run(roll_out(router, registry, asked, timeout_s=math.inf, part=part))


async def _allocated(engine: RouterEngine, drawn: Iterable[Allocated]) -> list[Generation]:
    """Return what an allocator writes about each plan."""
    return await asyncio.gather(
        *(
            engine.agenerate(
                [engine.begin(_allocation_chat(one, engine.control_tokens))],
                stop=[],
                max_tokens=TOKENS_A_STEP * len(one.plan.steps),
            )
            for one in drawn
        )
    )


if __name__ == "__main__":
    cli()
