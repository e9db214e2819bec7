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
from training.teacher import DEMONSTRATIONS_PER_POOL, Demonstration

DESCRIPTIONS: Mapping[str, tuple[str, ...]] = {
    "smol": (
        "Small talk and well-known facts, from memory.",
        "A tiny chat model that looks nothing up.",
        "General chat; knows little.",
    ),
    "search": (
        "Looks up one fact about a person, a film or a song, in a passage of Wikipedia.",
        "Finds a single fact in an encyclopedia: who, when or where.",
        "One fact at a time, quoted from Wikipedia.",
        "Reads an article and quotes the fact that is asked for.",
    ),
    "library": (
        "Reads ten passages of Wikipedia about a question.",
        "Goes through ten articles for one question; slow and expensive.",
        "A broad search over ten pages.",
    ),
    "dates": (
        "Says which of two dates is earlier, and whether two countries are the same.",
        "Compares two dates or two countries.",
        "Earlier or later, same country or not: it compares what it is given.",
        "A comparison of two dates, or of two nationalities.",
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
    """Return the pool in another order, in other words, and under neutral names in half of the cases."""
    prefix, numbers = choose.choice(NAMES), choose.sample(range(1, 100), len(pool))
    is_neutral = choose.random() < 0.5
    models = [
        model.model_copy(
            update={
                "description": choose.choice(DESCRIPTIONS[model.name]),
                "alias": f"{prefix}-{number}" if is_neutral else None,
            }
        )
        for model, number in zip(pool, numbers, strict=True)
    ]
    return ModelRegistry(choose.sample(models, len(models)))


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
