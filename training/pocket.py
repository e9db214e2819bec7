"""The pocket pool from nothing, in the steps that `training/recipes/pocket/cold_start.sh` runs in order.

    python -m training.pocket experts       adapters of the specialists and of the generalist
    python -m training.pocket describe      measure every routed model through vLLM, write pool.toml
    python -m training.pocket keep FILE     a sample of what router-r1 profile recorded, for the kNN fallback
    python -m training.pocket recall        what the base model knows without a call
    python -m training.pocket transcripts   let a scripted teacher drive the graph over drawn pools of simulated models
    python -m training.sft ...              the router's adapter, from those transcripts
    python -m training.pocket evaluate      the router, through vLLM, on countries it never saw

Each prints one line of JSON with what it made or measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from langgraph_router_r1 import protocol
from langgraph_router_r1.calls.client import build_model
from langgraph_router_r1.descriptor import Measured, ModelDescriptor
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.metrics import contains, exact_match
from langgraph_router_r1.evaluation.profile import profile, sample_by_kind, set_fields
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.pocket import (
    ADAPTERS,
    POOL_FILE,
    PROFILE_FILE,
    ROUTER_NAME,
    pocket_registry,
    pocket_router,
    pocket_server,
)
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.pocket.world import (
    FORWARD,
    REVERSED,
    PocketQuestion,
    countries,
    questions,
)
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.registry import ModelRegistry
from training.teacher import CONTESTED, TWO_HOPS, Memory, collect_demonstrations, demonstrations, keep_batches

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

IN_FLIGHT = 32
"""Requests at a time; more gains nothing on two cores."""

SKILLS = ("capital", "currency", "dialling", "domain", "two-hop")
"""The kinds of question that descriptors speak of: `PocketQuestion.skill`."""

MOST_QUESTIONS = 600
"""Of each kind, when a model is measured: an accuracy near 0.95 is then known to within two points."""

ONE_HOP_SKILLS = SKILLS[:-1]

EXPERTS: dict[str, tuple[tuple[str, ...], float]] = {
    "capitals": (("capital",), 4),
    "currencies": (("currency",), 6),
    "dialling-codes": (("dialling",), 7),
    "internet-domains": (("domain",), 4),
    "generalist": (SKILLS, 1.5),
}
"""What each adapter learns, and in how many epochs."""

MEMORY_FILE = Path("runs/pocket/memory.jsonl")

Output = Annotated[Path, typer.Option(help="Directory of the adapters.")]


def report(**figures: Any) -> None:
    """Print what was measured."""
    print(json.dumps(figures), flush=True)


@cli.command()
def experts(output: Output = ADAPTERS, only: str = "", seed: int = 0) -> None:
    """Train the specialists and the generalist."""
    from training.sft import Example, train_adapter

    tokenizer = ChatTokenizer.load(base_model_dir())
    eos = tokenizer.eos_token_id
    assert eos is not None
    every = list(questions(countries()))
    for name, (skills, epochs) in EXPERTS.items():
        if only and name not in only.split(","):
            continue
        examples = []
        for question in every:
            if question.skill in skills:
                # In the words a router's call uses, and with the short reply to learn.
                prompt = tokenizer.render([{"role": "user", "content": CALL_PROMPT.format(query=question.text)}])[1]
                reply = [*tokenizer.encode(question.answer), eos]
                examples.append(Example([*prompt, *reply], [0] * len(prompt) + [1] * len(reply)))
        random.Random(seed).shuffle(examples)
        started = time.monotonic()
        loss = train_adapter(
            base_model_dir(),
            examples,
            output / name,
            epochs=epochs,
            learning_rate=1e-3,
            batch_size=16,
            seed=seed,
        )
        seconds = round(time.monotonic() - started)
        report(adapter=name, examples=len(examples), epochs=epochs, seconds=seconds, mean_loss=round(loss, 4))


@cli.command()
def describe(adapters: Output = ADAPTERS, pool_file: Path = POOL_FILE) -> None:
    """Ask every routed model questions of its kinds, and write what comes out into the pool's file."""
    with pocket_server(adapters=adapters) as server:
        served = {server.served_name, *server.adapters}
        models = [model for model in pocket_registry(server.base_url) if model.name in served]
        measured = asyncio.run(_measure(models))
    # The router was trained with the text that these make: no more than they, and these kinds only.
    fields = {
        name: {
            "latency_s": round(figures.latency_p50_s, 2),
            "skills": {kind: round(figures.accuracy[kind].value, 2) for kind in skills_of(name)},
        }
        for name, figures in measured.items()
        if figures.latency_p50_s is not None
    }
    set_fields(pool_file, fields)


def skills_of(model: str) -> tuple[str, ...]:
    """Return the kinds of question that a routed model is measured with."""
    return EXPERTS[model][0] if model in EXPERTS else ONE_HOP_SKILLS


async def _measure(models: Iterable[ModelDescriptor]) -> dict[str, Measured]:
    every = [
        Task(question.id, question.text, (question.answer,), "pocket", {"kind": question.skill})
        for question in questions(countries())
    ]
    measured: dict[str, Measured] = {}
    # Not kept: the next adapters of the same names will say something else.
    with tempfile.TemporaryDirectory() as directory:
        for model in models:
            of_kinds = [task for task in every if task.kind in skills_of(model.name)]
            asked = sample_by_kind(of_kinds, sample=MOST_QUESTIONS)
            path = Path(directory, f"{model.name}.jsonl")
            measured |= await profile(ModelRegistry([model]), asked, path=path, in_flight=IN_FLIGHT)
            figures = measured[model.name]
            report(model=model.name, **figures.model_dump(mode="json"))
            if figures.failure_rate:
                raise RuntimeError(f"{model.name} failed at {figures.failure_rate:.1%} of its questions")
    return measured


@cli.command()
def keep(replies: Path, output: Path = PROFILE_FILE, sample: int = 40, seed: int = 0) -> None:
    """Keep a sample of what `router-r1 profile` recorded, for the kNN fallback that ships."""
    whole = RecordedPool.from_file(replies)
    tasks = sample_by_kind(whole.complete(), split="train", sample=sample, seed=seed)
    RecordedPool({task.id: task for task in tasks}, {task.id: whole.outcomes[task.id] for task in tasks}).save(output)
    report(tasks=len(tasks), models=len(whole.models))


@cli.command()
def recall(
    adapters: Output = ADAPTERS,
    output: Annotated[Path, typer.Option(help="File of what the base model knows.")] = MEMORY_FILE,
    seed: int = 0,
) -> None:
    """Ask the base model what it has memorised of the training countries: the router will know as much."""
    with pocket_server(adapters=adapters) as server:
        memory = asyncio.run(_memory(build_model(pocket_registry(server.base_url)["smol"]), seed))
    rows = [{"iso": iso, "asked": asked, "by": by, "says": says} for (iso, asked, by), says in memory.items()]
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, "".join(json.dumps(row) + "\n" for row in rows))


@cli.command()
def transcripts(
    output: Annotated[Path, typer.Option(help="File of the transcripts, a JSON object a line.")] = Path(
        "runs/pocket/transcripts.jsonl"
    ),
    memory: Annotated[Path, typer.Option(help="File that `recall` wrote.")] = MEMORY_FILE,
    pools: Annotated[int, typer.Option(help="How many drawn pools, eight transcripts each.")] = 250,
    contested: Annotated[
        float, typer.Option(help="Share of transcripts that need a skill of two specialists, where a pool has such.")
    ] = CONTESTED,
    two_hops: Annotated[float, typer.Option(help="Share of pools that are asked questions of two hops.")] = TWO_HOPS,
    seed: int = 0,
) -> None:
    """Let the teacher drive the graph over the training countries, and keep the runs that went as they should."""
    if not memory.exists():
        raise typer.BadParameter(f"{str(memory)!r} is missing: `python -m training.pocket recall` writes it")
    rows = map(json.loads, memory.read_text(encoding="utf-8").splitlines())
    known: Memory = {(row["iso"], row["asked"], row["by"]): row["says"] for row in rows}
    chosen = list(sample_for_router(seed))
    taught = demonstrations(chosen, known, blocks=pools, seed=seed, contested=contested, two_hops=two_hops)
    runs = asyncio.run(collect_demonstrations(taught, ChatTokenizer.load(base_model_dir())))
    report(**keep_batches(runs, output, seed=seed))


def sample_for_router(seed: int) -> Iterable[PocketQuestion]:
    """Yield, for each training country, every kind of question once or (for two-hop ones) once for each path."""
    choose = random.Random(seed)
    kinds: dict[tuple[Any, ...], list[PocketQuestion]] = defaultdict(list)
    for question in questions(countries("train")):
        kinds[question.country.iso, question.hops, question.relation, question.through].append(question)
    return (choose.choice(of_kind) for of_kind in kinds.values())


async def _memory(smol: Any, seed: int) -> Memory:
    """Return what a router of this size says from memory: right where the base model is, else another country's fact.

    Not the facts themselves: the router would memorise them, for the training countries only.
    """
    choose = random.Random(seed)
    lands = countries("train")
    asked: dict[Any, tuple[str, str, list[str]]] = {}
    for land in lands:
        for relation, wordings in FORWARD.items():
            others = [other.fact(relation) for other in lands]
            asked[land.iso, relation, None] = (wordings[0].format(land.name), land.fact(relation), others)
        for relation, wordings in REVERSED.items():
            query = wordings[0].format(land.fact(relation))
            asked[land.iso, "country", relation] = (query, land.name, [other.name for other in lands])
    prompts = [CALL_PROMPT.format(query=query) for query, _, _ in asked.values()]
    replies = await smol.abatch(prompts, {"max_concurrency": IN_FLIGHT})
    knows = [contains(reply.text, [truth]) for reply, (_, truth, _) in zip(replies, asked.values(), strict=True)]
    report(memory=len(asked), right=round(statistics.mean(knows), 4))
    return {
        key: truth if known else choose.choice(others)
        for (key, (_, truth, others)), known in zip(asked.items(), knows, strict=True)
    }


@cli.command()
def evaluate(
    router: Annotated[Path, typer.Option(help="Adapter of the router.")] = ADAPTERS / ROUTER_NAME,
    split: str = "test",
    sample: int = 200,
    seed: int = 0,
    cost_weight: float = 0.0,
    runs: Annotated[Path | None, typer.Option(help="File for every run, a JSON object a line.")] = None,
) -> None:
    """Ask the router questions about countries it never saw."""
    every = list(questions(countries(split)))  # type: ignore[arg-type]
    chosen = random.Random(seed).sample(every, min(sample, len(every)))
    with pocket_server(named={ROUTER_NAME: router}) as server:
        results = asyncio.run(_routed_runs(server.base_url, chosen, cost_weight))
    if runs:
        runs.parent.mkdir(parents=True, exist_ok=True)
        replace_file(runs, "".join(json.dumps(result) + "\n" for result in results))
    report(cost_weight=cost_weight, **summarise(results))


async def _routed_runs(base_url: str, chosen: Sequence[PocketQuestion], cost_weight: float) -> list[dict[str, Any]]:
    router = pocket_router(base_url, cost_weight=cost_weight)
    names = pocket_registry(base_url).names
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(question: PocketQuestion) -> dict[str, Any]:
        async with gate:
            result = await router.ainvoke(
                {"messages": [("user", question.text)]}, output_keys=["answer", "transcript", "routing"]
            )
        transcript = result["transcript"]
        return {
            "id": question.id,
            "hops": question.hops,
            "question": question.text,
            "golden": question.answer,
            "answer": result["answer"],
            "right": exact_match(result["answer"], [question.answer]),
            "format_problem": protocol.check_format([(s["kind"], s["text"]) for s in transcript], names),
            "turns": result["routing"]["turns"],
            "cost_usd": result["routing"]["cost_usd"],
            "router_tokens": result["routing"]["router_tokens"],
            "calls": [(routed["model"], routed["query"], routed["response"]) for routed in result["routing"]["calls"]],
        }

    return await asyncio.gather(*(one(question) for question in chosen))


def summarise(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a set of runs."""
    results = list(results)
    by_hops: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        by_hops[result["hops"]].append(result["right"])
    return {
        "questions": len(results),
        "exact_match": round(statistics.mean(result["right"] for result in results), 4),
        **{hops: round(statistics.mean(right), 4) for hops, right in sorted(by_hops.items())},
        "well_formed": round(statistics.mean(result["format_problem"] is None for result in results), 4),
        "most_turns": max(result["turns"] for result in results),
        "router_prompt_tokens": sum(result["router_tokens"]["prompt_tokens"] for result in results),
        "of_them_cached": sum(result["router_tokens"]["cached_tokens"] for result in results),
        "mean_cost_usd": statistics.mean(result["cost_usd"] for result in results),
    }


if __name__ == "__main__":
    cli()
