"""The scripted teacher of the wiki pool's router: it asks the true steps of a question, turn by turn.

Each demonstration is a run of the graph, and the replies in it are those that the pool really gives. The teacher's
first thought is the plan; after that it says what came out, and asks all steps that are ready at once. Every pool is
drawn (its order, the names of its models, the words that describe them), so the router has to read who does what.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping, Sequence

from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.strategies.plans import Plan, parse_plan, plan_text
from langgraph_router_r1.wiki.world import true_steps
from training.pools import invented_name
from training.teacher import DEMONSTRATIONS_PER_POOL, Demonstration

DESCRIPTIONS: Mapping[str, tuple[str, ...]] = {
    "smol": (
        "Small talk and well-known facts, from memory.",
        "A tiny chat model that looks nothing up.",
        "General chat; knows little.",
        "Talks about anything and has no books to look into.",
        "The smallest language model here: friendly, quick, often wrong.",
        "Greetings, jokes and talk.",
        "An assistant for conversation. It was not taught anything in particular.",
        "Made for a talk between friends; do not trust its facts.",
        "Conversation",
        "It answers at once, out of its head.",
        "Whoever is bored can talk to this one.",
        "Hello! I like to talk.",
    ),
    "search": (
        "Looks up one fact about a person, a film or a song, in a passage of Wikipedia.",
        "Finds a single fact in an encyclopedia: who, when or where.",
        "One fact at a time, quoted from Wikipedia.",
        "Reads an article and quotes the fact that is asked for.",
        "Ask it who directed, wrote or married, when somebody was born, where somebody died.",
        "It opens the page of a person or a work and copies a name, a place or a date.",
        "Lookups in an encyclopedia.",
        "A retriever with a small reader behind it: from a short question to a short quotation.",
        "Directors, composers, parents, spouses, birthplaces, days of death: one of them for each question.",
        "Encyclopedia",
        "If a question is about one name, this model reads about that name and replies.",
        "Want to know something about somebody? Here it is written!",
        "Names, dates and places out of the article about whatever you name.",
        "For questions with one step, such as who made a film or when its maker died.",
    ),
    "library": (
        "Reads ten passages of Wikipedia about a question.",
        "Goes through ten articles for one question; slow and expensive.",
        "A broad search over ten pages.",
        "Takes the whole question and reads everything that looks like it; costs the most.",
        "Many articles at once, at many times the price of one.",
        "A patient reader: it works through a pile of pages before it says a word.",
        "Wide reading",
        "The dear one: ten texts are read for every reply.",
        "Where one page is not enough, it takes ten.",
        "A long list of articles, read from the first to the last.",
        "Hand it a question and it reads a stack of pages about it. It takes its time.",
        "All that is in the archive on your question!",
    ),
    "dates": (
        "Says which of two dates is earlier, and whether two countries are the same.",
        "Compares two dates or two countries.",
        "Earlier or later, same country or not: it compares what it is given.",
        "A comparison of two dates, or of two nationalities.",
        "Give it two dates and it names the first of them; give it two countries and it says yes or no.",
        "Looks nothing up: it only puts two dates in order, or says whether two places are one country.",
        "Sorts dates and matches countries.",
        "A calculator for calendars and nationalities.",
        "Comparison",
        "Before or after? Equal or different? It can tell, if both sides are given.",
        "The last step of a question about two things: which came before, or whether both are alike.",
        "It weighs two given values against each other, days or lands.",
        "Which is the older date? Are these the same nation? That is all it answers.",
    ),
}
"""In what words the pool's models are described in training."""

NAMES = ("agent", "expert", "helper", "llm", "model", "node", "tool", "unit")
"""Beginnings of neutral names."""

UNCLEAR = "unknown"
"""The answer where replies can't be told apart."""


def wiki_demonstrations(questions: Sequence[str], pool: ModelRegistry, *, seed: int = 0) -> Iterator[Demonstration]:
    """Yield one demonstration for each question, pool after pool.

    Args:
        questions: Those whose steps are known, in the order in which they are shown.
        pool: The wiki pool as it ships.
        seed: Of the drawn pools.
    """
    choose = random.Random(seed)
    for block, start in enumerate(range(0, len(questions), DEMONSTRATIONS_PER_POOL)):
        drawn = drawn_pool(pool, choose)
        for question in questions[start : start + DEMONSTRATIONS_PER_POOL]:
            steps = true_steps(question)
            plan = parse_plan(plan_text(query for query, _ in steps), question)
            names = {number: drawn[model].display_name for number, (_, model) in enumerate(steps, start=1)}
            yield Demonstration(question, drawn, 0.0, functools.partial(turn, plan, names), None, block)


def drawn_pool(pool: ModelRegistry, choose: random.Random) -> ModelRegistry:
    """Return the pool in another order and in other words, a third each under its own, neutral and invented names."""
    models = [
        model.model_copy(update={"description": choose.choice(DESCRIPTIONS[model.name]), "alias": alias})
        for model, alias in zip(pool, _aliases(len(pool), choose), strict=True)
    ]
    return ModelRegistry(choose.sample(models, len(models)))


def _aliases(count: int, choose: random.Random) -> Sequence[str | None]:
    """Return what the router calls the models; None where it calls one by its own name."""
    style = choose.choice(("own", "neutral", "invented"))
    if style == "own":
        return [None] * count
    if style == "neutral":
        prefix = choose.choice(NAMES)
        return [f"{prefix}-{number}" for number in choose.sample(range(1, 100), count)]
    names: dict[str, None] = {}
    while len(names) < count:
        names[invented_name(choose)] = None
    return list(names)


def turn(plan: Plan, names: Mapping[int, str], blocks: Sequence[str]) -> str:
    r"""Return the teacher's next turn.

    Args:
        plan: The true steps.
        names: What the router calls the model for each step, by the step's number.
        blocks: What came back so far, a block for each turn.

    Example:
        >>> plan = parse_plan("1. Who directed Jaws?\n2. When was #1 born?", "?")
        >>> print(turn(plan, {1: "search", 2: "search"}, ["Steven Spielberg"]))
        <think> #1 is Steven Spielberg. </think>
        <search> search: When was Steven Spielberg born? </search>
    """
    results: dict[int, str] = {}
    thought = plan.text
    for block in blocks:
        asked = plan.ready(results)
        replies = [block] if len(asked) == 1 else [line.partition(": ")[2] for line in block.splitlines()]
        if len(replies) != len(asked):
            return _final("The replies are not clear.", UNCLEAR)
        latest = {step.number: " ".join(reply.split()) for step, reply in zip(asked, replies, strict=True)}
        thought = " ".join(f"#{number} is {reply.removesuffix('.')}." for number, reply in latest.items())
        results |= latest
    if ready := plan.ready(results):
        calls = "\n".join(f"{names[step.number]}: {step.query(results)}" for step in ready)
        return f"<think> {thought} </think>\n<search> {calls} </search>"
    return _final(thought, results[plan.ends[-1].number].removesuffix("."))


def _final(thought: str, answer: str) -> str:
    return f"<think> {thought} </think>\n<answer> {answer} </answer>"
