"""The cold start of a router over recorded models: ask one of them, look at the reply, ask another or answer shortly.

    python -m training.nq reading.jsonl                       the teacher's runs, from recorded answers (train split)
    python -m training.nq weighing.jsonl --course weighing    the first turns of such runs

`training.sft` makes the adapter of them (training/runs/nq_recorded.sh), in two courses: "reading" has whole runs,
"weighing" their first turns alone, because whom to ask at which cost weight is a few of a run's tokens, and gets lost.

Whom to ask is drawn by lot, and the lot leans with the cost weight, as on the pocket pool (teacher.py): whom to ask for
which question is left to reinforcement learning. What the replies of EVOUNA's five systems teach is reading: their
questions are others, and so are the names in their pool.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.metrics import contains, without_tags
from langgraph_router_r1.evaluation.pools import RecordedPool
from langgraph_router_r1.evaluation.tasks import Task, TaskError, data_dir
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.registry import ModelRegistry
from training.extractor import answer_in
from training.pocket import report
from training.rewards import COST_WEIGHTS
from training.teacher import LESSONS_A_POOL, Lesson, drive, keep_batches

RECORDED = "nq_six_models.jsonl"
OTHERS = "evouna_nq_triviaqa.jsonl"
PRICES = {"fid": 0.1, "text-davinci-003": 20.0, "gpt-3.5-turbo": 2.0, "gpt-4": 60.0, "bing-chat": 60.0}
"""Of the other pool, dollars per million completion tokens (see benchmarks/evouna.toml)."""

SECOND_CALLS = 96
"""Lessons in which the first reply is of no use, and another model is asked."""

Course = Literal["reading", "weighing"]
"""What transcripts teach: to ask, look at the reply and answer; or only whom to ask."""

LEAN: dict[Course, float] = {"reading": 16.0, "weighing": 48.0}
"""How far the lot leans to the model of the best trade-off: the exponent of e for a whole right answer that is free."""


def reading(pool: RecordedPool, registry: ModelRegistry, *, seconds: int, most: int, seed: int) -> list[Lesson]:
    """Return lessons that ask, read and answer, on the tasks of the train split, each at every cost weight.

    Args:
        pool: The recorded answers.
        registry: Its models.
        seconds: Most lessons that ask a second model.
        most: Most lessons that ask one.
        seed: Of the models asked, and of the order.
    """
    choose = random.Random(seed)
    shares = leaning(pool, registry, LEAN["reading"])
    once: list[Lesson] = []
    twice: list[Lesson] = []
    for task in pool.of_split("train").tasks.values():
        replies = {model: outcome.response or "" for model, outcome in pool.outcomes[task.id].items()}
        targets = {model: target for model, reply in replies.items() if (target := answer_in(reply, task))}
        knowing = [model for model, reply in replies.items() if contains(without_tags(reply), task.golden_answers)]
        for weight, of_models in zip(COST_WEIGHTS, shares, strict=True):

            def draw(models: Iterable[str], of_models: Mapping[str, float] = of_models) -> str:
                among = list(models)
                return choose.choices(among, [of_models[model] for model in among])[0]

            if targets:
                model = draw(targets)
                once.append(_lesson(task, registry, weight, [model], targets[model]))
            # Two calls are for those to whom quality matters more than cost.
            if weight < 0.5 and (poor := replies.keys() - knowing) and (good := targets.keys() & set(knowing)):
                model = draw(sorted(good))
                twice.append(_lesson(task, registry, weight, [draw(sorted(poor)), model], targets[model]))
    return choose.sample(once, min(most, len(once))) + choose.sample(twice, min(seconds, len(twice)))


def weighing(pool: RecordedPool, registry: ModelRegistry, *, seed: int) -> list[Lesson]:
    """Return lessons on all tasks of the train split, each at every cost weight, for their first turns.

    Whom they ask may have been wrong: at which weight whom to ask is a matter of the whole pool, not of one question.
    """
    choose = random.Random(seed)
    shares = leaning(pool, registry, LEAN["weighing"])
    found = []
    for task in pool.of_split("train").tasks.values():
        models = list(pool.outcomes[task.id])
        for weight, of_models in zip(COST_WEIGHTS, shares, strict=True):
            model = choose.choices(models, [of_models[model] for model in models])[0]
            found.append(_lesson(task, registry, weight, [model], task.golden_answers[0]))
    return found


def first_turn(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run of the teacher up to the end of its first turn: what `drive` returns, cut there."""
    begin = run["mask"].index(1)
    end = run["mask"].index(0, begin)
    return {**run, "token_ids": run["token_ids"][:end], "mask": run["mask"][:end]}


def leaning(pool: RecordedPool, registry: ModelRegistry, lean: float) -> list[dict[str, float]]:
    """Return for each cost weight how often each model is to be asked: a softmax of what asking it earns.

    That is its skill, less the part of the cost weight that its cost takes (the gated reward: see rewards.py). Cost is
    price times length of replies, both of the train split, as a share of the dearest model's.

    Args:
        pool: The recorded answers.
        registry: Its models.
        lean: How far the shares lean to the model that earns most; 0 is not at all.
    """
    train = pool.of_split("train").outcomes.values()
    costs, skills = {}, {}
    for model in registry:
        lengths = [len(outcomes[model.name].response or "") for outcomes in train if model.name in outcomes]
        costs[model.name] = model.price.completion * sum(lengths) / len(lengths)
        skills[model.name] = sum(model.skills.values()) / len(model.skills)
    dearest = max(costs.values())
    found = []
    for weight in COST_WEIGHTS:
        odds = {name: math.exp(lean * skills[name] * (1 - weight * costs[name] / dearest)) for name in costs}
        found.append({name: value / sum(odds.values()) for name, value in odds.items()})
    return found


def _lesson(task: Task, registry: ModelRegistry, weight: float, models: Sequence[str], answer: str) -> Lesson:
    first, *more = models
    turns = [f"<think> I ask {first}. </think>\n<search> {first}: {task.question} </search>"]
    turns += [
        f"<think> That does not answer it. I ask {model}. </think>\n<search> {model}: {task.question} </search>"
        for model in more
    ]
    turns.append(f"<think> It says: {answer}. </think>\n<answer> {answer} </answer>")

    def turn(replies: Sequence[str]) -> str:
        return turns[len(replies)]

    return Lesson(task.question, registry, weight, turn, answer, task_id=task.id)


def in_batches(taught: Sequence[Lesson], first: int, choose: random.Random) -> Iterator[Lesson]:
    """Yield the lessons of one pool in random order, so numbered that a batch is full of them."""
    for index, lesson in enumerate(choose.sample(taught, len(taught))):
        yield replace(lesson, block=first + index // LESSONS_A_POOL)


def transcripts(
    output: Annotated[Path, typer.Argument(help="File of the transcripts, a JSON object a line.")],
    course: Annotated[Course, typer.Option(help="What they teach.")] = "reading",
    seed: int = 0,
) -> None:
    """Let the teacher drive the graph over recorded answers."""
    directory = data_dir()
    if directory is None:
        raise TaskError("the router learns from recorded answers: set ROUTER_R1_DATA to the data directory")
    six = RecordedPool.from_file(directory / "pools" / RECORDED)
    choose = random.Random(seed)
    if course == "weighing":
        taught = list(in_batches(weighing(six, six.registry(), seed=seed), 0, choose))
    else:
        others = RecordedPool.from_file(directory / "pools" / OTHERS)
        own = reading(six, six.registry(), seconds=SECOND_CALLS, most=10**6, seed=seed)
        foreign = reading(others, others.registry(prices=PRICES), seconds=0, most=112, seed=seed)
        taught = [*in_batches(own, 0, choose), *in_batches(foreign, len(own), choose)]
    runs = asyncio.run(drive(taught, ChatTokenizer.load(base_model_dir())))
    if course == "weighing":
        runs = [first_turn(run) for run in runs]
    report(course=course, lessons=len(taught), **keep_batches(runs, output, seed=seed))


if __name__ == "__main__":
    typer.run(transcripts)
