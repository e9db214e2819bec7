"""The scripted teacher of the pocket router's cold start: it shows every move there is, and that money matters.

A move is asking the best model for each step, asking one model for all of it, recalling the country and asking for the
rest, or answering from memory. Which one is drawn by lot, and the lot leans with the cost weight in the prompt. How far
to lean for which question is what reinforcement learning is for: it can only choose among moves that it has seen, and
where the number in the prompt changes nothing yet, it moves all cost weights the same way (LOG.md).

Names are no skills either: most lessons have pools with other names, in another order, with models missing, and with
models for topics that exist in lessons only. Their replies are made-up words: nobody can know them without asking.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from langgraph_router_r1 import create_router
from langgraph_router_r1.engines.tokenizer import Tokenizer
from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.evaluation.pools import TASK_ID
from langgraph_router_r1.pocket.world import (
    DESCRIBED,
    FORWARD,
    REVERSED,
    SPECIALISTS,
    Country,
    PocketQuestion,
    Relation,
)
from langgraph_router_r1.registry import ModelDescriptor, ModelRegistry
from langgraph_router_r1.testing import ScriptedEngine
from langgraph_router_r1.transcript import Segment, sampled_mask, token_ids
from training.disguise import anonymise, drop
from training.rewards import COST_WEIGHTS

Course = Literal["asking", "reading", "weighing"]
"""What lessons teach: to ask the best model for each step, in the pool as it is; the same in pools with other names and
members, where it takes reading; and every move, by the cost weight."""

Move = Literal["ask", "one model", "recall", "answer"]

MOVES: dict[Move, tuple[float, float]] = {
    "ask": (0.94, 0.03),
    "one model": (0.02, 0.02),
    "recall": (0.02, 0.3),
    "answer": (0.02, 0.65),
}
"""How often each is drawn at cost weight 0 and at 1, of those that a question and a pool allow."""

PLAIN_POOLS = 0.4
"""Share of lessons whose pool is the real one, names and all."""

DROPPED = 0.25
"""Probability that a model is missing in another pool."""

LESSONS_A_POOL = 8
"""A batch of training has one pool: what its prompts share is then computed once (see sft.py)."""

SPARE = 2
"""More lessons a pool, for those in which a model was wrong: they are left out."""

NOUNS: dict[Relation, str] = {
    "capital": "capital",
    "currency": "currency",
    "dialling_code": "dialling code",
    "domain": "internet domain",
}
"""What a question asks for, in one word or two."""

TOPICS: dict[str, tuple[str, str]] = {
    "rivers": ("longest river", "Longest rivers of countries."),
    "mountains": ("highest mountain", "Mountains, the highest of each country."),
    "presidents": ("president", "Presidents of countries."),
    "languages": ("official language", "Languages that countries have made official."),
    "religions": ("largest religion", "Religions."),
    "anthems": ("national anthem", "National anthems."),
    "flags": ("flag", "Flags of the world."),
    "dishes": ("national dish", "What people eat: national dishes."),
    "animals": ("national animal", "National animals of countries."),
    "time-zones": ("time zone", "Time zones, by country."),
    "populations": ("population", "Populations of countries."),
    "areas": ("area", "Areas of countries in square kilometres."),
    "airports": ("busiest airport", "Airports."),
    "football": ("football champion", "Football: champions of each country."),
    "newspapers": ("oldest newspaper", "Newspapers, the oldest and the largest."),
    "universities": ("oldest university", "Universities of countries."),
    "holidays": ("national holiday", "National holidays."),
    "islands": ("largest island", "Islands."),
    "lakes": ("deepest lake", "Lakes of the world, and how deep they are."),
    "parliaments": ("parliament", "Parliaments and what they are called."),
    "exports": ("main export", "What countries sell: exports."),
    "poets": ("best known poet", "Poets and writers."),
    "flowers": ("national flower", "National flowers of countries."),
    "kings": ("first king", "Kings and queens."),
}
"""Topics of lessons only: name of the model, what is asked for, description."""

TOPIC_WORDINGS = ("What is the {noun} of {of}?", "Name the {noun} of {of}.", "Which {noun} does {of} have?")

Memory = Mapping[tuple[str, Relation | Literal["country"], Relation | None], str]
"""What a router would say without asking: (ISO code, fact, None), or (ISO code, "country", relation it is known by)."""


@dataclass(frozen=True)
class Asked:
    """A question as the teacher sees it; of a topic when `relation` is the name of one."""

    text: str
    relation: str
    noun: str
    country: Country
    answer: str
    through: Relation | None = None
    is_reversed: bool = False

    @classmethod
    def of(cls, question: PocketQuestion) -> Asked:
        """Take a question of the pocket world."""
        reverse = question.hops == "reversed"
        noun = NOUNS[question.relation]
        return cls(
            question.text,
            question.relation,
            f"country, by its {noun}" if reverse else noun,
            question.country,
            question.answer,
            question.through,
            reverse,
        )


@dataclass(frozen=True)
class Lesson:
    """One run of the graph to learn from."""

    question: str
    pool: ModelRegistry
    cost_weight: float
    turn: Callable[[Sequence[str]], str]
    """From the replies so far to the router's next turn."""
    answer: str | None
    """What must come out of it; None when it is answered from memory, right or wrong."""
    block: int = 0
    """Which pool it has: lessons of a block have the same one."""
    task_id: str | None = None
    """Where replies are recorded: of which task."""


async def drive(taught: Iterable[Lesson], tokenizer: Tokenizer, *, in_flight: int = 32) -> list[dict[str, Any]]:
    """Let the teacher drive the graph, the models of each lesson's pool behind it.

    Returns:
        For each lesson `token_ids`, `mask` (1 on the teacher's own tokens), `right` and `block`, in order.
    """
    gate = asyncio.Semaphore(in_flight)

    async def one(lesson: Lesson) -> dict[str, Any]:
        def write(transcript: Sequence[Segment]) -> str:
            blocks = [segment["text"].strip() for segment in transcript if segment["kind"] == "info"]
            return lesson.turn([text[len("<information>") : -len("</information>")].strip() for text in blocks])

        router = create_router(ScriptedEngine(write, tokenizer=tokenizer), lesson.pool, cost_weight=lesson.cost_weight)
        async with gate:
            result = await router.ainvoke(
                {"messages": [("user", lesson.question)]},
                {"metadata": {TASK_ID: lesson.task_id}},
                output_keys=["answer", "transcript"],
            )
        return {
            "token_ids": token_ids(result["transcript"]),
            "mask": sampled_mask(result["transcript"]),
            "right": lesson.answer is None or exact_match(result["answer"], [lesson.answer]),
            "block": lesson.block,
        }

    return await asyncio.gather(*map(one, taught))


def keep_batches(runs: Iterable[dict[str, Any]], path: Path, *, seed: int) -> dict[str, int]:
    """Write the runs that went as they should, a batch of one pool after the other; return how many there are of what.

    Args:
        runs: As `drive` returns them.
        path: Of the file, a JSON object a line.
        seed: Of the order of the batches.
    """
    blocks: dict[int, list[dict[str, Any]]] = defaultdict(list)
    wrong = 0
    for run in runs:
        wrong += not run["right"]
        if run["right"] and len(blocks[run["block"]]) < LESSONS_A_POOL:
            blocks[run["block"]].append(run)
    whole = [block for block in blocks.values() if len(block) == LESSONS_A_POOL]
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


def lessons(
    questions: Sequence[PocketQuestion],
    registry: ModelRegistry,
    memory: Memory,
    *,
    course: Course = "weighing",
    seed: int = 0,
) -> Iterator[Lesson]:
    """Yield lessons, block by block, until every question had its turn.

    Args:
        questions: In the order in which they come.
        registry: The pocket pool.
        memory: What is answered without asking.
        course: What they teach; cost weights other than 0 come when they mean something.
        seed: Of moves, pools, wordings and cost weights.
    """
    choose = random.Random(seed)
    left = [Asked.of(question) for question in questions]
    lands = list({question.country.iso: question.country for question in questions}.values())
    block = 0
    while left:
        is_plain = course == "asking" or choose.random() < PLAIN_POOLS
        topics = None if is_plain else choose.sample(list(TOPICS), choose.randint(0, 3))
        pool = _pool(registry, topics, choose)
        size = LESSONS_A_POOL + SPARE
        of_topics = [_about_topic(choose.choice(topics), lands, choose) for _ in range(size * 3 // 8)] if topics else []
        asked = of_topics + [left.pop() for _ in range(min(size - len(of_topics), len(left)))]
        for one in choose.sample(asked, len(asked)):
            weighs = course == "weighing"
            weight = choose.choice(COST_WEIGHTS) if weighs else 0.0
            turn, from_memory = _plan(one, weight, pool, memory, choose, surely=not weighs)
            yield Lesson(one.text, pool, weight, turn, None if from_memory else one.answer, block)
        block += 1


def _pool(registry: ModelRegistry, topics: Sequence[str] | None, choose: random.Random) -> ModelRegistry:
    """Return a pool with these topics in disguise; `topics` None is the real pool."""
    if topics is None:
        return registry
    smaller = drop(registry, choose, share=DROPPED)
    whole = ModelRegistry([*smaller, *(_topic_model(topic, choose) for topic in topics)])
    return anonymise(whole, choose, names=choose.choice(("neutral", "shuffled")))


def _topic_model(topic: str, choose: random.Random) -> ModelDescriptor:
    noun, description = TOPICS[topic]
    return ModelDescriptor(
        name=topic,
        model=RunnableLambda(lambda messages: AIMessage(made_up(messages[-1].text.rpartition("\n\n")[2]))),
        description=description,
        price=choose.choice((0.05, 0.1, 0.2, 0.3)),
        skills={noun.rpartition(" ")[2]: choose.randint(85, 100) / 100},
        latency_s=choose.randint(20, 60) / 100,
    )


def made_up(text: str) -> str:
    """Return a word that stands for the answer to a question of a topic: always the same one, and none there is.

    Example:
        >>> made_up("What is the longest river of Peru?") == made_up("What is the longest river of Peru?")
        True
    """
    choose = random.Random(zlib.crc32(text.encode()))
    return "".join(
        choose.choice("bdfgklmnprstvz") + choose.choice("aeiou") for _ in range(choose.randint(2, 4))
    ).title()


def _about_topic(topic: str, lands: Sequence[Country], choose: random.Random) -> Asked:
    country, noun = choose.choice(lands), TOPICS[topic][0]
    wording = choose.choice(TOPIC_WORDINGS)
    if choose.random() < 0.5:
        text = wording.format(noun=noun, of=country.name)
        return Asked(text, topic, noun, country, made_up(text))
    through = choose.choice(list(DESCRIBED))
    described = choose.choice(DESCRIBED[through]).format(country.fact(through))
    # The one to ask hears of the country by its name.
    answer = made_up(_topic_query(topic, country.name))
    return Asked(wording.format(noun=noun, of=described), topic, noun, country, answer, through)


def _topic_query(topic: str, country: str) -> str:
    return TOPIC_WORDINGS[0].format(noun=TOPICS[topic][0], of=country)


def _plan(
    asked: Asked,
    cost_weight: float,
    pool: ModelRegistry,
    memory: Memory,
    choose: random.Random,
    *,
    surely: bool,
) -> tuple[Callable[[Sequence[str]], str], bool]:
    """Draw a move that question and pool allow; return its turns, and whether memory has a part in it."""
    is_topic = asked.relation in TOPICS
    fact = cast("Relation", asked.relation)
    called = dict(zip(pool.names, pool.aliases, strict=True))
    knows = called.get(asked.relation if is_topic else SPECIALISTS[fact])
    finds = called.get(SPECIALISTS[asked.through]) if asked.through else None
    all_in_one = None if is_topic else called.get("generalist")
    allowed = {
        "ask": knows and (finds or not asked.through),
        "one model": all_in_one,
        "recall": knows and asked.through,
        "answer": not is_topic,
    }
    moves: list[Move] = [move for move in MOVES if allowed[move]]
    # Where a specialist is missing, one model for all of it is what asking the best is elsewhere.
    ends = [MOVES["ask" if move == "one model" and not allowed["ask"] else move] for move in moves]
    odds = [(1 - cost_weight) * careful + cost_weight * thrifty for careful, thrifty in ends]
    move = moves[0] if surely else choose.choices(moves, odds)[0]

    if move == "answer":
        key = "country" if asked.is_reversed else fact
        recalled = memory[asked.country.iso, key, fact if asked.is_reversed else None]
        return partial(_turn, [], _final("I answer from memory.", recalled)), True

    def best(name: str | None) -> str:
        return f"{_in_short(pool.by_alias(name).description)}: {name}." if name else ""

    fits = f"Asked for: {asked.noun}. {best(knows)}"
    wording = TOPIC_WORDINGS[0].format(noun=asked.noun, of="{}") if is_topic else choose.choice(FORWARD[fact])
    if move == "one model":
        steps = [_search(f"One model for all of it. {best(all_in_one)}", all_in_one, asked.text)]
    elif not asked.through:
        steps = [_search(fits, knows, asked.text)]
    elif move == "recall":
        country = memory[asked.country.iso, "country", asked.through]
        steps = [_search(f"I know the country: {country}. {fits}", knows, wording.format(country))]
    else:
        described = choose.choice(REVERSED[asked.through]).format(asked.country.fact(asked.through))
        first = f"First the country, by its {NOUNS[asked.through]}. {best(finds)}"
        steps = [_search(first, finds, described), _search(f"The country is {{}}. {fits}", knows, wording)]
    return partial(_turn, steps, _final("The answer is {}.", "{}")), move == "recall"


def _in_short(description: str) -> str:
    """Return the first words of a description: read aloud, they lead a small router to the name before them."""
    return re.split(r"[,.:(]", description, maxsplit=1)[0].strip()


def _turn(steps: Sequence[str], last: str, replies: Sequence[str]) -> str:
    """Return the next turn; `{}` in it is what the latest reply said."""
    turn = [*steps, last][len(replies)]
    return turn.replace("{}", replies[-1]) if replies else turn


def _search(thought: str, model: str | None, query: str) -> str:
    return f"<think> {thought} </think>\n<search> {model}: {query} </search>"


def _final(thought: str, answer: str) -> str:
    return f"<think> {thought} </think>\n<answer> {answer} </answer>"
