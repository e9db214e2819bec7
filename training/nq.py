"""The cold start of a router over recorded models: compare descriptors, ask one, look at the reply, answer shortly.

    python -m training.nq transcripts.jsonl      the teacher's runs, from recorded answers (train split)

`training.sft` makes the adapter of them (training/recipes/nq_recorded/train.sh). Each batch has the pool in another
form: another order, other names and words, other prices, accuracies moved within their intervals. The teacher calls the
model that is worth most by its descriptor, so there is nothing else to go by. Where the reply holds no answer, the
learner sees the first turn only: the choice of the model was right all the same. The replies of EVOUNA's five systems
teach the same on other questions and another pool.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.forms import Form
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import Task, TaskError, data_dir
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.registry import ModelRegistry
from training.extractor import answer_in
from training.pocket import report
from training.pools import redraw
from training.rewards import COST_WEIGHTS
from training.teacher import DEMONSTRATIONS_PER_POOL, Demonstration, collect_demonstrations, keep_batches

RECORDED = "nq_six_models.jsonl"
OTHERS = "evouna_nq_triviaqa.jsonl"
PRICES = {"fid": 0.1, "text-davinci-003": 20.0, "gpt-3.5-turbo": 2.0, "gpt-4": 60.0, "bing-chat": 60.0}
"""Of the other pool, dollars per million completion tokens (see benchmarks/evouna.toml)."""

ROUNDS = {RECORDED: 24, OTHERS: 8}
"""How often each task of the train split comes, each time over another form of the pool."""

DESCRIPTIONS = {
    "qwen/qwen2.5-7b-instruct": ("A small model of the Qwen family.", "Seven billion parameters, by Alibaba."),
    "meta/llama-3.1-70b-instruct": ("A large Llama.", "Seventy billion parameters, by Meta; knows a lot."),
    "mistralai/mistral-7b-instruct-v0.3": ("The small Mistral.", "Seven billion parameters, by Mistral AI."),
    "mistralai/mixtral-8x22b-instruct-v0.1": ("A mixture of eight experts.", "A very large model by Mistral AI."),
    "google/gemma-2-27b-it": ("A Gemma of middle size.", "Twenty-seven billion parameters, by Google."),
    "meta/llama-3.1-8b-instruct": ("A small Llama.", "Eight billion parameters, by Meta; quick and cheap."),
}
"""What half of the forms say of the six models, besides accuracy and price."""


def demonstrations(pool: RecordedPool, registry: ModelRegistry, *, rounds: int, seed: int) -> Iterator[Demonstration]:
    """Yield demonstrations on the tasks of the train split, a batch for each form of the pool.

    Args:
        pool: The recorded answers.
        registry: Its models, as they are.
        rounds: How often each task comes.
        seed: Of the forms, of cost weights, and of the order.
    """
    choose = random.Random(seed)
    train = list(pool.of_split("train").tasks.values())
    asked = [task for _ in range(rounds) for task in choose.sample(train, len(train))]
    for block in range(len(asked) // DEMONSTRATIONS_PER_POOL):
        form = told_otherwise(registry, choose)
        for task in asked[block * DEMONSTRATIONS_PER_POOL : (block + 1) * DEMONSTRATIONS_PER_POOL]:
            yield _demonstration(task, pool, form, choose.choice(COST_WEIGHTS), block)


def _demonstration(
    task: Task, pool: RecordedPool, form: ModelRegistry, cost_weight: float, block: int
) -> Demonstration:
    most_expensive = max(model.price.completion for model in form)
    best = max(form, key=lambda model: _worth(model, cost_weight, most_expensive))
    answer = answer_in(pool.outcomes[task.id][best.name].response or "", task)
    thought = f"{'; '.join(_told(model) for model in form)}. Best: {best.display_name}."
    turns = (
        f"<think> {thought} </think>\n<search> {best.display_name}: {task.question} </search>",
        f"<think> It says: {answer}. </think>\n<answer> {answer} </answer>",
    )
    return Demonstration(
        task.question, form, cost_weight, partial(_turn_of, turns), answer, block=block, task_id=task.id
    )


def told_otherwise(registry: ModelRegistry, choose: random.Random) -> ModelRegistry:
    """Return the pool in another order, under other names, at other prices, its accuracies moved in their intervals."""
    form = Form(name="moved", skills="moved").of(registry, choose.randrange(10**9))
    skill = choose.choice(("nq", "questions", "nq_six_models", "open questions"))
    digits = choose.choice((1, 2, 2, 2, 2, 2))
    accuracy = {model.name: round(sum(model.skills.values()) / len(model.skills), digits) for model in form}
    about = choose.random() < 0.5
    return ModelRegistry(
        model.model_copy(
            update={
                "skills": {skill: accuracy[model.name]},
                "description": choose.choice(DESCRIPTIONS[model.name]) if about and model.name in DESCRIPTIONS else "",
            }
        )
        for model in redraw(form, choose, dropped=0.15)
    )


def _worth(model: ModelDescriptor, cost_weight: float, most_expensive: float) -> float:
    """Return what asking a model earns by what is said of it (the gated reward: see rewards.py)."""
    [accuracy] = model.skills.values()
    return accuracy * (1 - cost_weight * model.price.completion / most_expensive)


def _told(model: ModelDescriptor) -> str:
    """Return what a descriptor says of accuracy and price, and whose it is: in the order in which it says so."""
    [(skill, accuracy)] = model.skills.items()
    return f"{skill} {accuracy:.2f}, ${model.price.completion:g}: {model.display_name}"


def _turn_of(turns: Sequence[str], replies: Sequence[str]) -> str:
    return turns[len(replies)]


def first_turn(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run of the teacher up to the end of its first turn: what `collect_demonstrations` returns, cut there."""
    begin = run["mask"].index(1)
    end = run["mask"].index(0, begin)
    return {**run, "token_ids": run["token_ids"][:end], "mask": run["mask"][:end]}


def transcripts(
    output: Annotated[Path, typer.Argument(help="File of the transcripts, a JSON object a line.")], seed: int = 0
) -> None:
    """Let the teacher drive the graph over recorded answers."""
    directory = data_dir()
    if directory is None:
        raise TaskError("the router learns from recorded answers: set ROUTER_R1_DATA to the data directory")
    taught: list[Demonstration] = []
    for name, rounds in ROUNDS.items():
        pool = RecordedPool.from_file(directory / "pools" / name)
        registry = pool.registry(prices=PRICES if name == OTHERS else None)
        first = taught[-1].block + 1 if taught else 0
        own = demonstrations(pool, registry, rounds=rounds, seed=seed)
        taught += [replace(demonstration, block=first + demonstration.block) for demonstration in own]
    runs = asyncio.run(collect_demonstrations(taught, ChatTokenizer.load(base_model_dir())))
    learned = [
        run if demonstration.answer else first_turn(run) for demonstration, run in zip(taught, runs, strict=True)
    ]
    report(demonstrations=len(taught), **keep_batches(learned, output, seed=seed))


if __name__ == "__main__":
    typer.run(transcripts)
