"""What the wiki pool needs from nothing, in the steps that `training/recipes/wiki/cold_start.sh` runs in order.

    python -m training.wiki reader       the reader, from questions with passages and the words that answer them
    python -m training.wiki check        how many single steps of the test split it reads right
    python -m training.wiki measure      what each model makes of whole questions, for kNN
    python -m training.wiki plans        plans of the train split's questions, for the decomposer
    python -m training.sft ...           the decomposer's adapter, from those
    python -m training.wiki transcripts  what a teacher asks and gets of the pool, for the router
    python -m training.sft ...           the router's adapter, from those

What is learned from is found in wiki_examples.py; the router's teacher is wiki_teacher.py.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated

import typer
from langchain_core.messages import HumanMessage
from langgraph.cache.memory import InMemoryCache

from langgraph_router_r1.calls import CallCache
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.evaluation.profile import profile
from langgraph_router_r1.evaluation.tasks import WIKI_SET, Split, draw, load_tasks
from langgraph_router_r1.pocket import pocket_server
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.prompts import plan_chat
from langgraph_router_r1.retrieval.span_reader import SpanReader, passage_text
from langgraph_router_r1.strategies.plans import MAX_STEPS, plan_text
from langgraph_router_r1.wiki import (
    READ_BYTES,
    SEARCHED,
    wiki_registry,
    word_retriever,
)
from langgraph_router_r1.wiki.world import true_steps
from training.examples import ended, row_of, write_rows
from training.pocket import report
from training.span_reader import train_reader
from training.teacher import collect_demonstrations, keep_batches
from training.wiki_examples import (
    facts,
    kept_away,
    other_questions,
    questions_to_learn,
    reading_examples,
    title_of,
)
from training.wiki_teacher import wiki_demonstrations

WITHOUT_ANSWER_EVERY = 2
"""For one in so many questions, a passage without the answer is learned from, too."""

Examples = Annotated[
    int, typer.Option(help="How many; beyond the questions that there are, the same with other names in them.")
]

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@cli.command()
def reader(
    output: Annotated[Path, typer.Option(help="Directory of the adapter.")] = Path("runs/wiki/reader"),
    show: Annotated[int, typer.Option(help="How many examples are printed.")] = 0,
    epochs: float = 2.0,
    seed: int = 0,
) -> None:
    """Train the reader on the train split, and say how many questions of the validation split it reads right."""
    choose, started = random.Random(seed), time.monotonic()
    away = kept_away()
    found = [*reading_examples(load_tasks(WIKI_SET, split="train")), *facts(away, choose), *other_questions(away)]
    for one in choose.sample(found, min(show, len(found))):
        typer.echo(f"{one.source}: {one.question} {title_of(one.passage)} -> {one.answer}")
    choose.shuffle(found)
    examples = [
        example
        for number, one in enumerate(found)
        for example in one.examples(other=number % WITHOUT_ANSWER_EVERY == 0)
    ]
    loss = train_reader(examples, output, epochs=epochs, seed=seed)
    report(
        examples=len(examples),
        **Counter(one.source for one in found),
        mean_loss=round(loss, 3),
        right={source: f"{right:.3f} of {of}" for source, (right, of) in read_right(output, "validation").items()},
        seconds=round(time.monotonic() - started),
    )


@cli.command()
def check(
    adapter: Annotated[Path, typer.Argument(help="Directory of the reader's adapter.")] = Path("runs/wiki/reader"),
    split: Split = "test",
) -> None:
    """Say how many single steps of a split the reader reads right, in the passages that are found for them."""
    right = read_right(adapter, split)
    report(split=split, right={source: f"{share:.3f} of {of}" for source, (share, of) in right.items()})


def read_right(adapter: Path, split: Split) -> dict[str, tuple[float, int]]:
    """Return the share of questions that are read right, and how many there are, by what kind they are."""
    span_reader, of_source = SpanReader(adapter), defaultdict[str, list[bool]](list)
    for one in reading_examples(load_tasks(WIKI_SET, split=split)):
        texts = [passage_text(passage, READ_BYTES) for passage in word_retriever(SEARCHED).invoke(one.question)]
        of_source[one.source].append(exact_match(span_reader.read(one.question, texts), [one.answer]))
    return {source: (statistics.mean(right), len(right)) for source, right in of_source.items()}


@cli.command()
def plans(
    output: Annotated[Path, typer.Option(help="File of the examples, a JSON object a line.")] = Path(
        "runs/wiki/plans.jsonl"
    ),
    examples: Examples = 447,
    seed: int = 0,
) -> None:
    """Write down the true plans of questions of the train split, and of the same questions about others."""
    tokenizer, rows = ChatTokenizer.load(base_model_dir()), []
    for question in questions_to_learn(examples, random.Random(seed)):
        plan = plan_text(query for query, _ in true_steps(question))
        chat = plan_chat([HumanMessage(question)], max_steps=MAX_STEPS, control_tokens=tokenizer.control_tokens)
        rows.append({**row_of(tokenizer.render(chat)[1], ended(tokenizer, plan)), "question": question, "plan": plan})
    report(examples=len(rows), mean_tokens=write_rows(output, rows))


@cli.command()
def transcripts(
    adapter: Annotated[Path, typer.Argument(help="Directory of the reader's adapter.")] = Path("runs/wiki/reader"),
    output: Annotated[Path, typer.Option(help="File of the transcripts, a JSON object a line.")] = Path(
        "runs/wiki/transcripts.jsonl"
    ),
    examples: Examples = 447,
    seed: int = 0,
) -> None:
    """Let a teacher ask the real pool the true steps of the train split's questions, and of the same about others."""
    tokenizer, pool = ChatTokenizer.load(base_model_dir()), wiki_registry(adapter)
    shown = wiki_demonstrations(questions_to_learn(examples, random.Random(seed)), pool, seed=seed)
    runs = asyncio.run(collect_demonstrations(shown, tokenizer, middleware=[CallCache(InMemoryCache())]))
    report(**keep_batches(runs, output, seed=seed))


@cli.command()
def measure(
    adapter: Annotated[Path, typer.Argument(help="Directory of the reader's adapter.")] = Path("runs/wiki/reader"),
    output: Annotated[Path, typer.Option(help="File of the replies, a JSON object a line.")] = Path(
        "runs/wiki/profile.jsonl"
    ),
    sample: Annotated[int, typer.Option(help="How many questions each model is asked.")] = 100,
    seed: int = 0,
) -> None:
    """Ask every model, through vLLM, questions of the train split as they are: what kNN learns from."""
    tasks = draw(load_tasks(WIKI_SET, split="train"), sample=sample, seed=seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with pocket_server() as server:
        measured = asyncio.run(profile(wiki_registry(adapter, server.base_url), tasks, path=output, in_flight=2))
    right = {
        name: {kind: round(accuracy.value, 3) for kind, accuracy in figures.accuracy.items()}
        for name, figures in measured.items()
    }
    report(questions=len(tasks), right=right)


if __name__ == "__main__":
    cli()
