"""Plans to learn from: several are drawn for each question, scored, and the best that leads to the answer is kept.

R2-Reasoner (arXiv 2506.05901) chooses its decomposer's examples by conciseness, practicality and coherence, and says of
the three what they mean, but not how they are computed. These are our definitions:

- conciseness: how many steps the plan has;
- practicality: how many tokens the steps and their results have, when one fixed model does all of them;
- coherence: how many neighbouring steps have nothing to do with each other: the second does not use the result of the
  first, and no third step or the answer takes both.

The score is `CONCISENESS * steps + PRACTICALITY * tokens + COHERENCE * broken pairs`; the lowest is the best. A plan
whose steps do not lead to the right answer is rejected, whatever its score.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.ledger import estimate_tokens
from langgraph_router_r1.pocket.numbers import UNKNOWN as NO_NUMBERS
from langgraph_router_r1.pocket.numbers import higher_of
from langgraph_router_r1.pocket.world import (
    FORWARD,
    REVERSED,
    Country,
    PocketQuestion,
    Relation,
    questions,
    true_steps,
)
from langgraph_router_r1.strategies.plans import Plan, joined, parse_plan, plan_text

CONCISENESS, PRACTICALITY, COHERENCE = 1.0, 0.01, 1.0
"""Weights of the score; the paper does not tell its own. A step weighs as much as 100 tokens."""

UNKNOWN = "I don't know."


class Solver:
    """The one fixed model that does the steps: it knows every fact of the world, and does one thing at a time.

    Example:
        >>> from langgraph_router_r1.pocket.world import countries
        >>> solver = Solver(countries())
        >>> solver.reply("What is the capital of Peru?")
        'Lima'
        >>> solver.reply("Which is higher, Peru with +51 or Cuba with +53?")
        'Cuba'
        >>> solver.reply("What currency is used in the country whose capital is Lima?")
        "I don't know."
    """

    def __init__(self, lands: Iterable[Country]) -> None:
        """Learn the facts of these countries."""
        self._answers = {asked.text: asked.answer for asked in questions(lands) if asked.hops != "two-hop"}

    def reply(self, query: str) -> str:
        """Return the answer to a question about one fact, or to which of two numbers is higher."""
        if (higher := higher_of(query)) != NO_NUMBERS:
            return higher
        return self._answers.get(query, UNKNOWN)

    def solve(self, plan: Plan) -> tuple[str, int]:
        """Do a plan; return the answer, and how many tokens queries and results had."""
        results: dict[int, str] = {}
        tokens = 0
        for step in plan.steps:
            query = step.query(results)
            results[step.number] = self.reply(query)
            tokens += estimate_tokens(query) + estimate_tokens(results[step.number])
        return joined([results[step.number] for step in plan.ends]), tokens


@dataclass(frozen=True)
class Scored:
    """A plan, and how good it is."""

    text: str
    score: float
    """The lower the better."""
    is_right: bool
    """Whether it leads to the right answer."""


def score(text: str, asked: PocketQuestion, solver: Solver) -> Scored:
    """Return the score of a plan for a question."""
    plan = parse_plan(text, asked.text)
    answer, tokens = solver.solve(plan)
    total = CONCISENESS * len(plan.steps) + PRACTICALITY * tokens + COHERENCE * broken_pairs(plan)
    return Scored(text, total, plan.reason is None and exact_match(answer, list(asked.answers)))


def broken_pairs(plan: Plan) -> int:
    r"""Return how many neighbouring steps have nothing to do with each other.

    Example:
        >>> broken_pairs(parse_plan("1. Capital of Peru?\n2. Currency of Chile?\n3. Where is #2 used?", "?"))
        1
        >>> broken_pairs(parse_plan("1. Code of Peru?\n2. Code of Chile?\n3. Is #1 above #2?", "?"))
        0
    """
    users: Mapping[int, set[int]] = {
        step.number: {other.number for other in plan.steps if step.number in other.needs} or {0} for step in plan.steps
    }
    pairs = zip(plan.steps, plan.steps[1:], strict=False)
    return sum(
        first.number not in second.needs and not users[first.number] & users[second.number] for first, second in pairs
    )


def draw_plans(asked: PocketQuestion, choose: random.Random, count: int) -> list[str]:
    """Return plans for a question as a decomposer might write them, good ones and bad ones.

    They stand in for samples of a large model: the true steps in any wording, the question as it is, a step too many,
    a step without its reference, steps in a wrong order.
    """
    return [_drawn(asked, choose) for _ in range(count)]


def _drawn(asked: PocketQuestion, choose: random.Random) -> str:
    texts = [reworded(text, choose) for text, _ in true_steps(asked)]
    fault = choose.choice(["none", "none", "none", "whole", "more", "no reference", "order"])
    if fault == "whole" or len(texts) == 1:
        texts = [asked.text]
    if fault == "more":
        texts.append(choose.choice(FORWARD[choose.choice(list(FORWARD))]).format(asked.country.name))
    elif fault == "no reference":
        texts[-1] = re.sub(r"#\d", "that", texts[-1])
    elif fault == "order":
        texts.reverse()
    return plan_text(texts)


def reworded(text: str, choose: random.Random) -> str:
    """Return a step in another wording of its kind."""
    wordings: Sequence[tuple[Relation, tuple[str, ...]]] = [*FORWARD.items(), *REVERSED.items()]
    for _, of_kind in wordings:
        if match := re.fullmatch(re.escape(of_kind[0]).replace(re.escape("{}"), "(.+)"), text):
            return choose.choice(of_kind).format(match[1])
    return text


def best_plan(asked: PocketQuestion, solver: Solver, choose: random.Random, *, samples: int = 64) -> Scored | None:
    """Return the best of several plans that lead to the answer; None if none does.

    Args:
        asked: The question.
        solver: Who does the steps.
        choose: Draws the plans.
        samples: How many are drawn.
    """
    scored = (score(text, asked, solver) for text in draw_plans(asked, choose, samples))
    return min((one for one in scored if one.is_right), key=lambda one: one.score, default=None)
