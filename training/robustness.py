"""A router over the forms of its pool, with simulated or recorded models behind the descriptors.

    python -m training.robustness runs/pocket/adapters/router
    python -m training.robustness runs/nq/adapters/router --pool pools/nq_six_models.jsonl

`router-r1 bench benchmarks/robustness.toml` asks real models and decides. This asks the same questions in the same
forms, is done in a third of the time, and so serves while a router is in the making: the adapter is merged into the
base model, which vLLM then computes twice as fast on a CPU, and asking a simulated model (`training.pools`) or a
recorded one takes no time. Beside exact match it prints who was asked: for a model that is missing, and for a newcomer
(`training.unseen`).
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from langgraph_router_r1 import create_router
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines import VLLMEngine
from langgraph_router_r1.evaluation.forms import EACH, Form
from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.ledger import PER_MILLION
from langgraph_router_r1.pocket import ADAPTERS, MAX_ROUTER_TOKENS, ROUTER_NAME
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.pocket.world import countries, questions
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.serving.vllm import VLLMServer
from training import unseen
from training.pools import DrawnPool, Member, draw_pool, simulated_pocket
from training.rollout import Rollout, roll_out

FORMS_FILE = Path("benchmarks/robustness.toml")
RECORDED_FORMS_FILE = Path("benchmarks/nq_robustness.toml")

AS_IT_IS = "as it is"
"""The form that is asked at every cost weight."""

WEIGHTS = (0.0, 0.3, 0.6, 0.9)

NEWCOMER = "newcomer"

RIVALS = "rivals"
"""Drawn pools in which two specialists have the same skill, one of them cheaper and less accurate. The share of calls
to the cheaper one is printed beside the share that is due to it by the descriptors, as the teacher chooses."""

RIVAL_POOLS = 20
"""How many of them; each is asked as many questions as fit into the sample."""

ROUTER_PRICE = 0.01
"""Of the router's own tokens, in dollars per million, as in `benchmarks/robustness.toml`."""

IN_FLIGHT = 32


def merge(adapter: Path, output: Path) -> None:
    """Write the base model with an adapter merged into it, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base_model_dir(), dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(output)
    AutoTokenizer.from_pretrained(base_model_dir()).save_pretrained(output)


def forms(path: Path) -> list[Form]:
    """Return the forms of a benchmark file."""
    return [Form.model_validate(form) for form in tomllib.loads(path.read_text(encoding="utf-8"))["forms"]]


def tasks() -> list[Task]:
    """Return the questions about test countries, with the facts that each takes."""
    return [
        Task(question.id, question.text, (question.answer,), "pocket", {"needs": [question.relation, question.through]})
        for question in questions(countries("test"))
    ]


def needs(task: Task) -> set[str]:
    """Return the skills that a question takes."""
    return {relation.removesuffix("_code") for relation in task.meta["needs"] if relation}


class Rivals(NamedTuple):
    """A drawn pool, and two specialists of one skill in it."""

    pool: DrawnPool
    kind: str
    cheaper: Member
    other: Member


def main(
    router: Annotated[Path, typer.Argument(help="Adapter of the router.")] = ADAPTERS / ROUTER_NAME,
    sample: Annotated[int, typer.Option(help="Questions of each form.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 7,
    only: Annotated[str, typer.Option(help="Forms whose names begin so, separated by commas; by default all.")] = "",
    pool: Annotated[Path | None, typer.Option(help="File of recorded answers; by default the pocket pool.")] = None,
) -> None:
    """Ask the router test questions in every form of its pool; print a line of JSON for each."""
    recorded = None if pool is None else RecordedPool.from_file(pool).of_split("test")
    every = tasks() if recorded is None else list(recorded.tasks.values())
    asked = random.Random(seed).sample(every, min(sample, len(every)))
    with tempfile.TemporaryDirectory() as directory:
        merge(router, Path(directory))
        with VLLMServer(directory, served_name=ROUTER_NAME, dtype="float32") as server:
            prefixes = tuple(only.split(",")) if only else ("",)
            asyncio.run(_ask(server.base_url, asked, prefixes, seed, recorded))


async def _ask(
    base_url: str, sample: Sequence[Task], only: tuple[str, ...], seed: int, recorded: RecordedPool | None
) -> None:
    pool = simulated_pocket() if recorded is None else recorded.registry()
    max_turns = 4 if recorded is None else 2  # as the router was trained
    engine = VLLMEngine(base_url, model=ROUTER_NAME)

    async def ask(form: ModelRegistry, asked: Sequence[Task], cost_weight: float) -> list[Rollout]:
        router = create_router(
            engine, form, max_tokens=MAX_ROUTER_TOKENS, router_price=ROUTER_PRICE, max_turns=max_turns
        )
        return await roll_out(router, form, [(task, cost_weight) for task in asked], in_flight=IN_FLIGHT)

    for form in forms(FORMS_FILE if recorded is None else RECORDED_FORMS_FILE):
        if not form.name.startswith(only):
            continue
        for number in range(form.count(pool)):
            registry = form.of(pool, number)
            asked = sample
            missing = pool.names[number] if form.without == EACH else None
            if missing:
                asked = [task for task in sample if pool[missing].skills.keys() & needs(task)]
            for weight in WEIGHTS if form.name == AS_IT_IS else WEIGHTS[:1]:
                runs = await ask(registry, asked, weight)
                fields = {"generalist_asked": _share(runs, "generalist")} if missing else {}
                _print(form.label(pool, number), weight, runs, **fields)
    if recorded is None and RIVALS.startswith(only):
        for weight in WEIGHTS:
            runs, cheaper, due = [], [], []
            for rivals, asked in _rivals(sample_size=len(sample)):
                made = await ask(rivals.pool.registry, asked, weight)
                runs += made
                names = [member.descriptor.name for member in (rivals.cheaper, rivals.other)]
                called = [call["answered_by"] for run in made for call in run.calls if call["answered_by"] in names]
                cheaper += [name == names[0] for name in called]
                due += [rivals.pool.best(rivals.kind, weight) is rivals.cheaper] * len(called)
            shares = {"cheaper_share": _mean(cheaper), "due_share": _mean(due)}
            _print(RIVALS, weight, runs, **shares, rivals=len(cheaper))
    if recorded is None and NEWCOMER.startswith(only):
        asked = random.Random(seed).sample(unseen.tasks("test"), len(sample))
        for of_whom, newcomer in _newcomers(pool):
            runs = await ask(ModelRegistry([*pool, newcomer]), asked, 0.0)
            _print(f"{NEWCOMER}, described as {of_whom}", 0.0, runs, newcomer_asked=_share(runs, unseen.NAME))
    await engine.aclose()


def _rivals(sample_size: int) -> Iterator[tuple[Rivals, list[Task]]]:
    """Yield drawn pools with two specialists of one skill, whose accuracies are told, and questions for them."""
    one_hop = [task for task in tasks() if needs(task) and task.meta["needs"][1] is None]
    number = 0
    for _ in range(RIVAL_POOLS):
        found: list[Rivals] = []
        while not found:
            number += 1
            choose = random.Random(f"{RIVALS} {number}")
            drawn = draw_pool(choose, plain=0.0)
            for kind in sorted(drawn.contested()):
                two = [member for member in drawn.candidates(kind) if member.role == "specialist"]
                if all(kind in member.descriptor.skills for member in two) and any(kind in needs(t) for t in one_hop):
                    found.append(Rivals(drawn, kind, *sorted(two, key=lambda one: one.descriptor.price.prompt)))
        rivals = choose.choice(found)
        of_skill = [task for task in one_hop if rivals.kind in needs(task)]
        yield rivals, choose.sample(of_skill, max(1, sample_size // RIVAL_POOLS))


def _newcomers(pool: ModelRegistry) -> Iterator[tuple[str, ModelDescriptor]]:
    """Yield the specialist for continents with its own description and accuracy, and with another specialist's."""
    continent = unseen.continents()
    # The longest first: "Guinea" is part of three names.
    lands = sorted(countries(), key=lambda country: -len(country.name))

    def reply(messages: Any) -> AIMessage:
        query = messages[-1].text.removeprefix(CALL_PROMPT.format(query=""))
        asked = next((country for country in lands if country.name in query), None)
        return AIMessage(continent[asked.iso] if asked else "I do not know.")

    stranger = pool[unseen.STRANGER]
    own = stranger.model_copy(
        update={
            "name": unseen.NAME,
            "model": RunnableLambda(reply),
            "description": unseen.DESCRIPTION,
            "skills": {unseen.KIND: 0.97},
        }
    )
    yield unseen.NAME, own
    yield unseen.STRANGER, own.model_copy(update={"description": stranger.description, "skills": stranger.skills})


def _share(runs: Sequence[Rollout], model: str) -> float:
    """Return in which share of the runs a model was asked."""
    return _mean([any(call["answered_by"] == model for call in run.calls) for run in runs])


def _mean(values: Sequence[float]) -> float:
    return round(statistics.mean(values or [0]), 4)


def _print(name: str, cost_weight: float, runs: Sequence[Rollout], **fields: float) -> None:
    calls = [call["answered_by"] for run in runs for call in run.calls]
    figures = {
        "form": name,
        "cost_weight": cost_weight,
        "questions": len(runs),
        "exact_match": round(statistics.mean(exact_match(run.answer, run.task.golden_answers) for run in runs), 4),
        **fields,
        "micro_usd": round(1e6 * statistics.mean(run.cost_usd() for run in runs), 2),
        "router_tokens": round(statistics.mean(run.cost_parts["router"] for run in runs) / ROUTER_PRICE / PER_MILLION),
        "turns": round(statistics.mean(run.turns for run in runs), 3),
        "calls": {model: calls.count(model) for model in sorted(set(map(str, calls)))},
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    typer.run(main)
