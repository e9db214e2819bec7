"""The scripted teacher of the pocket router's cold start, over drawn pools of simulated models (pools.py).

Each demonstration is a run of the graph. The teacher's thought names the skill that a step needs, tells of each
candidate what its descriptor says of that skill and of its price, and names the best. These are reasons that follow
from the descriptors alone, and so they are right in every pool.

A cost weight above 0 moves the choice to cheaper candidates (`training.pools.worth`), and to memory: what the base
model knows is not asked for. Where two calls are needed all the same, a weight above one half gives up questions for
codes (dialling codes and internet domains), and one above 0.8 all of them: they are answered from memory, known or not.
One call is always made. So the cost falls in steps, and each step gives up the questions that cost most for a right
answer. How far to lean for which question is what reinforcement learning is for: it can only choose among moves that it
has seen.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from langgraph_router_r1 import create_router
from langgraph_router_r1.calls import CallMiddleware
from langgraph_router_r1.engines.tokenizer import Tokenizer
from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.evaluation.recorded import TASK_ID
from langgraph_router_r1.pocket.world import DESCRIBED, REVERSED, Country, PocketQuestion, Relation
from langgraph_router_r1.prompts import RouterPrompt
from langgraph_router_r1.protocol import fold
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.testing import ScriptedEngine
from langgraph_router_r1.transcript import Segment, sampled_mask, token_ids
from training.kinds import KINDS, STRANGERS, Kind
from training.pools import TWO_HOP, DrawnPool, Member, draw_pool

WEIGHTS = (0.0, 0.0, 0.0, 0.3, 0.3, 0.6, 0.6, 0.9)
"""Cost weights of demonstrations, each as often as another: at 0 there is most to learn."""

DEMONSTRATIONS_PER_POOL = 8
"""A batch of training has one pool: what its prompts share is then computed once (see sft.py)."""

SPARE = 5
"""More demonstrations a pool, for those in which a model was wrong: they are left out."""

CODES = ("dialling", "domain")
"""Kinds that hardly anybody remembers, so that they take the most calls."""

TWO_HOPS = 0.5
"""Share of pools that are asked questions of two hops."""

CONTESTED = 0.6
"""Share of the demonstrations that ask for a skill which two specialists of the pool have, where there are such."""

Memory = Mapping[tuple[str, Relation | Literal["country"], Relation | None], str]
"""What a router would say without asking: (ISO code, fact, None), or (ISO code, "country", relation it is known by)."""


@dataclass(frozen=True)
class Asked:
    """A question as the teacher sees it."""

    text: str
    kind: Kind
    country: Country
    answer: str
    through: Kind | None = None
    """What the country is described by, in a question of two hops."""
    is_reversed: bool = False

    @classmethod
    def of(cls, question: PocketQuestion) -> Asked:
        """Take a question of the pocket world."""
        kinds = {kind.relation: kind for kind in KINDS.values() if kind.relation}
        through = kinds[question.through] if question.through else None
        is_reversed = question.hops == "reversed"
        return cls(question.text, kinds[question.relation], question.country, question.answer, through, is_reversed)


@dataclass(frozen=True)
class Demonstration:
    """One run of the graph to learn from."""

    question: str
    pool: ModelRegistry
    cost_weight: float
    turn: Callable[[Sequence[str]], str]
    """From the replies so far to the router's next turn."""
    answer: str | None
    """What must come out of it; None when it is answered from memory, right or wrong."""
    block: int = 0
    """Which pool it has: demonstrations of a block have the same one."""
    task_id: str | None = None
    """Where replies are recorded: of which task."""


async def collect_demonstrations(
    taught: Iterable[Demonstration],
    tokenizer: Tokenizer,
    *,
    prompt: RouterPrompt | None = None,
    in_flight: int = 32,
    middleware: Sequence[CallMiddleware] = (),
) -> list[dict[str, Any]]:
    """Let the teacher drive the graph, the models of each demonstration's pool behind it.

    Args:
        taught: What is shown.
        tokenizer: Of the router.
        prompt: As for `create_router`.
        in_flight: Most runs at the same time.
        middleware: Around each call; a `CallCache` where the same is asked several times.

    Returns:
        For each demonstration `token_ids`, `mask` (1 on the teacher's own tokens), `right` and `block`, in order.
    """
    gate = asyncio.Semaphore(in_flight)

    async def one(demonstration: Demonstration) -> dict[str, Any]:
        def write(transcript: Sequence[Segment]) -> str:
            blocks = [segment["text"].strip() for segment in transcript if segment["kind"] == "observation"]
            return demonstration.turn([text[len("<information>") : -len("</information>")].strip() for text in blocks])

        engine = ScriptedEngine(write, tokenizer=tokenizer)
        router = create_router(
            engine, demonstration.pool, cost_weight=demonstration.cost_weight, prompt=prompt, middleware=middleware
        )
        async with gate:
            result = await router.ainvoke(
                {"messages": [("user", demonstration.question)]},
                {"metadata": {TASK_ID: demonstration.task_id}},
                output_keys=["answer", "transcript"],
            )
        return {
            "token_ids": token_ids(result["transcript"]),
            "mask": sampled_mask(result["transcript"]),
            "right": demonstration.answer is None or exact_match(result["answer"], [demonstration.answer]),
            "block": demonstration.block,
        }

    return await asyncio.gather(*map(one, taught))


def keep_batches(runs: Iterable[dict[str, Any]], path: Path, *, seed: int) -> dict[str, int]:
    """Write the runs that went as they should, a batch of one pool after the other; return how many there are of what.

    Args:
        runs: As `collect_demonstrations` returns them.
        path: Of the file, a JSON object a line.
        seed: Of the order of the batches.
    """
    blocks: dict[int, list[dict[str, Any]]] = defaultdict(list)
    wrong = 0
    for run in runs:
        wrong += not run["right"]
        if run["right"] and len(blocks[run["block"]]) < DEMONSTRATIONS_PER_POOL:
            blocks[run["block"]].append(run)
    whole = [block for block in blocks.values() if len(block) == DEMONSTRATIONS_PER_POOL]
    random.Random(seed).shuffle(whole)
    kept = [run for block in whole for run in block]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"token_ids": run["token_ids"], "mask": run["mask"]}) + "\n" for run in kept)
    replace_file(path, "".join(lines))
    return {
        "transcripts": len(kept),
        "batches": len(whole),
        "wrong": wrong,
        "tokens": sum(len(run["token_ids"]) for run in kept),
    }


def demonstrations(
    questions: Sequence[PocketQuestion],
    memory: Memory,
    *,
    blocks: int,
    seed: int = 0,
    contested: float = CONTESTED,
    two_hops: float = TWO_HOPS,
) -> Iterator[Demonstration]:
    """Yield demonstrations, block by block, each with a pool of its own.

    Args:
        questions: Of the pocket world, drawn from; questions for other kinds are about their countries.
        memory: What is answered without asking.
        blocks: How many pools.
        seed: Of pools, questions, wordings, moves and cost weights.
        contested: Share of the demonstrations that ask for a skill of two specialists, where a pool has such.
        two_hops: Share of pools that are asked questions of two hops.
    """
    choose = random.Random(seed)
    asked = [Asked.of(question) for question in questions]
    lands = list({question.country.iso: question.country for question in questions}.values())
    for block in range(blocks):
        pool = draw_pool(choose)
        others = [KINDS[kind] for member in pool.members for kind in member.accuracy if kind in KINDS]
        strangers = [kind for kind in others if not kind.relation]
        left = DEMONSTRATIONS_PER_POOL + SPARE
        of_two = pool.contested()
        is_long = choose.random() < two_hops  # a batch is padded to its longest: questions of two hops stand together
        while left:
            known = strangers if strangers and choose.random() < 0.9 else STRANGERS
            is_strange = choose.random() < (0.4 if strangers else 0.1)
            one = _about_stranger(choose.choice(known), lands, choose) if is_strange else choose.choice(asked)
            if (one.through is not None) != is_long:
                continue
            is_contested = bool({one.kind.name, one.through and one.through.name} & of_two)
            if of_two and not is_contested and choose.random() < contested:
                continue
            weight = choose.choice(WEIGHTS)
            planned = plan(one, weight, pool, memory, choose)
            if planned is None:
                continue
            turn, from_memory = planned
            left -= 1
            yield Demonstration(one.text, pool.registry, weight, turn, None if from_memory else one.answer, block)


def _about_stranger(kind: Kind, lands: Sequence[Country], choose: random.Random) -> Asked:
    country, wording = choose.choice(lands), choose.choice(kind.wordings)
    if choose.random() < 0.5:
        return Asked(wording.format(country.name), kind, country, kind.fact(country))
    through = choose.choice(list(DESCRIBED))
    described = choose.choice(DESCRIBED[through]).format(country.fact(through))
    of = next(known for known in KINDS.values() if known.relation == through)
    return Asked(wording.format(described), kind, country, kind.fact(country), of)


def plan(
    asked: Asked, cost_weight: float, pool: DrawnPool, memory: Memory, choose: random.Random
) -> tuple[Callable[[Sequence[str]], str], bool] | None:
    """Return the turns for a question, and whether memory has a part in them; None when the pool can't answer it.

    Example:
        >>> from langgraph_router_r1.pocket.world import countries, questions
        >>> [asked] = [Asked.of(q) for q in questions(countries()) if q.text == "What is the capital of Peru?"]
        >>> turn, from_memory = plan(asked, 0.0, draw_pool(random.Random(0), plain=1.0), {}, random.Random(0))
        >>> print(turn([]).splitlines()[1])
        <search> capitals: What is the capital of Peru? </search>
    """
    knows, finds = _recalled(asked, memory)
    if (knows and finds and cost_weight > 0) or _given_up(asked, cost_weight, knows or finds):
        return partial(_turn, [], _final("I answer from memory.", memory[_key(asked)])), True

    best = pool.best(asked.kind.name, cost_weight)
    if best is None:
        return None
    needed = f"country, by its {asked.kind.noun}" if asked.is_reversed else asked.kind.noun
    thought = reasons(pool, asked.kind.name, cost_weight, needed)
    if asked.through is None:
        steps = [_search(thought, best, asked.text)]
        return partial(_turn, steps, _final("The answer is {}.", "{}")), False

    wording = choose.choice(asked.kind.wordings)
    if cost_weight > 0 and finds:
        country = asked.country.name
        steps = [_search(f"I know the country: {country}. {thought}", best, wording.format(country))]
        return partial(_turn, steps, _final("The answer is {}.", "{}")), True
    finder = pool.best(asked.through.name, cost_weight)
    if finder is None:
        return None
    if (
        finder is best and best.told(TWO_HOP) is not None and asked.kind.relation
    ):  # who is the best for both steps can do them at once
        thought = reasons(pool, asked.kind.name, cost_weight, f"{asked.kind.noun}, in one call")
        steps = [_search(thought, best, asked.text)]
        return partial(_turn, steps, _final("The answer is {}.", "{}")), False
    assert asked.through.relation
    described = choose.choice(REVERSED[asked.through.relation]).format(asked.country.fact(asked.through.relation))
    first = reasons(pool, asked.through.name, cost_weight, f"country, by its {asked.through.noun}")
    find = _search(f"First the country. {first}", finder, described)
    if cost_weight > 0 and knows:
        recalled = _final(f"The country is {{}}. I know its {asked.kind.noun}.", asked.answer)
        return partial(_turn_knowing, find, asked.country.name, recalled), False
    steps = [find, _search(f"The country is {{}}. {thought}", best, wording)]
    return partial(_turn, steps, _final("The answer is {}.", "{}")), False


def _key(asked: Asked) -> tuple[str, Any, Any]:
    if asked.is_reversed:
        return asked.country.iso, "country", asked.kind.relation
    return asked.country.iso, asked.kind.relation, None


def _recalled(asked: Asked, memory: Memory) -> tuple[bool, bool]:
    """Return whether memory is right about what is asked for, and about the described country."""
    iso, knows, finds = asked.country.iso, False, True
    if asked.kind.relation:
        truth = asked.country.name if asked.is_reversed else asked.country.fact(asked.kind.relation)
        knows = memory.get(_key(asked)) == truth
    if asked.through:
        finds = memory.get((iso, "country", asked.through.relation)) == asked.country.name
    return knows, finds


def _given_up(asked: Asked, cost_weight: float, knows_a_step: bool) -> bool:
    """Say whether two calls are not worth their cost, so that a guess from memory has to do."""
    if asked.through is None or asked.kind.relation is None or knows_a_step:
        return False  # one call at most, or nothing to guess from
    return cost_weight > (0.5 if asked.kind.name in CODES else 0.8)


def reasons(pool: DrawnPool, kind: str, cost_weight: float, needed: str) -> str:
    """Return the thought that leads from the descriptors to a name.

    Args:
        pool: One that has somebody for the kind.
        kind: What is asked for.
        cost_weight: How much a low cost counts, 0 to 1.
        needed: The same in words.
    """
    best = pool.best(kind, cost_weight)
    assert best is not None
    among = pool.candidates(kind)
    compared = "; ".join(_told(member, kind) for member in among)
    ranked = _ranked(among, kind)
    return f"Needed: {needed}. {compared}. {ranked}Best: {best.descriptor.display_name}."


def _ranked(among: Sequence[Member], kind: str) -> str:
    """Return who is the most accurate and who the cheapest; nothing where one is both.

    A small model does not weigh two numbers against two others in one step. Here each comparison is a step of its own,
    and a number comes before the name that it leads to.
    """

    def accuracy(member: Member) -> float:
        return member.told(kind) or 0.0

    def price(member: Member) -> float:
        return member.descriptor.price.prompt

    better = max(among, key=lambda member: (accuracy(member), -price(member)))
    cheaper = min(among, key=lambda member: (price(member), -accuracy(member)))
    if better is cheaper:
        return ""
    return (
        f"Most accurate: {_accuracy(better, kind)}, {better.descriptor.display_name}. "
        f"Cheapest: {_price(cheaper)}, {cheaper.descriptor.display_name}. "
    )


def _told(member: Member, kind: str) -> str:
    """Return what a descriptor says of a kind, of the price, and whose it is: in the order in which it says so."""
    is_told = kind in member.descriptor.skills
    said = f"{kind} {_accuracy(member, kind)}" if is_told else _accuracy(member, kind)
    return f"{said}, {_price(member)}: {member.descriptor.display_name}"


def _accuracy(member: Member, kind: str) -> str:
    """Return the accuracy that is told; where none is, whether the description speaks of this kind alone."""
    accuracy = member.descriptor.skills.get(kind)
    if accuracy is None:
        return f"{kind} only" if member.role == "specialist" else "anything"
    return f"{accuracy:.2f}"


def _price(member: Member) -> str:
    return str(member.descriptor.price).removesuffix("/M")


def _turn(steps: Sequence[str], last: str, replies: Sequence[str]) -> str:
    """Return the next turn; `{}` in it is what the latest reply said."""
    turn = [*steps, last][len(replies)]
    return turn.replace("{}", replies[-1]) if replies else turn


def _turn_knowing(find: str, country: str, recalled: str, replies: Sequence[str]) -> str:
    """Return the next turn where the second fact is known once the country is; a wrong country is what is answered."""
    if not replies:
        return find
    if fold(replies[-1]) != fold(country):
        return _final("The answer is {}.", "{}").replace("{}", replies[-1])
    return recalled.replace("{}", replies[-1])


def _search(thought: str, model: Member, query: str) -> str:
    return f"<think> {thought} </think>\n<search> {model.descriptor.display_name}: {query} </search>"


def _final(thought: str, answer: str) -> str:
    return f"<think> {thought} </think>\n<answer> {answer} </answer>"
