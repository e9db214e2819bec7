"""Plans as text: numbered steps, each a question of its own, which may use the results of earlier ones.

    1. Which country has the capital Lima?
    2. What currency is used in #1?

A text that can't be used becomes the plan of one step, the question as it is, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from langgraph_router_r1.protocol import sanitize

MAX_STEPS = 8
"""Most steps of a plan, by default."""

MAX_RESULT = 1000
"""Most characters of a result that a later step is given: this bounds what the later step can cost."""

_SHORT_RESULT = 80
"""Up to so many characters a result stands in the place of its reference; a longer one is quoted before the step."""

_NUMBERED = re.compile(r"\s*\**(?:step\s+)?#?(\d{1,3})\s*[.):]\**(?:\s+(.*))?$", re.IGNORECASE | re.ASCII)
_REFERENCE = re.compile(r"#(\d{1,3})\b", re.ASCII)


@dataclass(frozen=True)
class Step:
    """One step of a plan."""

    number: int
    """Its place in the plan, from 1."""
    text: str
    """What is asked; `#1` stands for the result of step 1."""
    needs: tuple[int, ...] = ()
    """The numbers of the steps whose results it uses, in order."""

    def query(self, results: Mapping[int, str]) -> str:
        """Return what a model is asked, given the results of the steps that this one needs.

        Short results take the place of their references. Of longer ones, the first `MAX_RESULT` characters are quoted
        before the step. They can hold none of our tags, and references in them mean nothing.

        Example:
            >>> Step(2, "What currency is used in #1?", (1,)).query({1: "Peru."})
            'What currency is used in Peru?'
        """
        if not self.needs:
            return self.text
        told = {number: sanitize(results[number]).strip()[:MAX_RESULT] for number in self.needs}
        short = {number: result.removesuffix(".") for number, result in told.items() if _is_short(result)}
        text = _REFERENCE.sub(lambda match: short.get(int(match[1]), match[0]), self.text)
        quoted = [f"#{number}: {result}" for number, result in told.items() if number not in short]
        return "\n".join(["Known so far:", *quoted, "", text]) if quoted else text

    def longest_query(self) -> str:
        """Return the longest text, in bytes, that `query` can return: what the step can cost is bounded by it."""
        quoted = "".join(f"#{number}: {'🌍' * MAX_RESULT}\n" for number in self.needs)
        inserted = _REFERENCE.sub("🌍" * _SHORT_RESULT, self.text) if self.needs else self.text
        return f"Known so far:\n{quoted}\n{inserted}" if self.needs else self.text


@dataclass(frozen=True)
class Plan:
    """Steps, in an order in which they can be done."""

    steps: tuple[Step, ...]
    reason: str | None = None
    """Why this is the question as one step, and not what was planned; None for a plan that was."""

    @classmethod
    def whole(cls, question: str, reason: str | None = None) -> Plan:
        """Return the plan of one step: the question as it is."""
        return cls((Step(1, question),), reason)

    @property
    def text(self) -> str:
        """The numbered steps, a line each, as `parse_plan` reads them."""
        return "\n".join(f"{step.number}. {step.text}" for step in self.steps)

    def ready(self, done: Collection[int]) -> list[Step]:
        """Return the steps that are not done and need none that is not done."""
        return [step for step in self.steps if step.number not in done and set(step.needs) <= set(done)]

    @property
    def ends(self) -> list[Step]:
        """The steps whose results no other step uses: together they are the answer."""
        used = {number for step in self.steps for number in step.needs}
        return [step for step in self.steps if step.number not in used]


def parse_plan(text: str, question: str, *, max_steps: int = MAX_STEPS) -> Plan:
    r"""Read a plan. Never raises: a text that can't be used is the plan of one step, with the reason.

    A line without a number goes on with the step before it, up to a blank line; other lines around the steps are left
    out. Thoughts in `<think>` tags are, too.

    Args:
        text: What a decomposer wrote.
        question: What it was to plan.
        max_steps: Most steps.

    Example:
        >>> plan = parse_plan("1. Which country has the capital Lima?\n2. What currency is used in #1?", "?")
        >>> [(step.text, step.needs) for step in plan.steps]
        [('Which country has the capital Lima?', ()), ('What currency is used in #1?', (1,))]
        >>> parse_plan("I don't know.", "Which?")
        Plan(steps=(Step(number=1, text='Which?', needs=()),), reason='it has no numbered step')
    """
    numbers, texts = _numbered(text.rpartition("</think>")[2])
    if reason := _fault(numbers, texts, max_steps):
        return Plan.whole(question, reason)
    if len(texts) == 1:  # a # in it is the question's own
        return Plan((Step(1, texts[0]),))
    return Plan(
        tuple(
            Step(number, text, tuple(sorted({int(found) for found in _REFERENCE.findall(text)})))
            for number, text in enumerate(texts, 1)
        )
    )


def plan_text(steps: Iterable[str]) -> str:
    """Return steps as the text of a plan.

    Example:
        >>> print(plan_text(["Which country has the capital Lima?", "What currency is used in #1?"]))
        1. Which country has the capital Lima?
        2. What currency is used in #1?
    """
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))


def edited_plan(texts: Sequence[str], *, max_steps: int = MAX_STEPS) -> Plan:
    """Return the plan of steps that a person wrote.

    Raises:
        ValueError: They can't be used; the message says why.
    """
    plan = parse_plan(plan_text(" ".join(text.split()) for text in texts), "", max_steps=max_steps)
    if plan.reason is not None:
        msg = f"the plan can't be used: {plan.reason}"
        raise ValueError(msg)
    return plan


def joined(replies: Sequence[str]) -> str:
    """Return several results as one answer.

    Example:
        >>> joined(["Lima", "Sol", "+51."])
        'Lima, Sol and +51'
    """
    if len(replies) < 2:
        return "".join(replies)
    if not all(map(_is_short, replies)):
        return "\n\n".join(reply.strip() for reply in replies)
    *first, last = (reply.strip().removesuffix(".") for reply in replies)
    return f"{', '.join(first)} and {last}"


def _is_short(result: str) -> bool:
    return len(result.strip()) <= _SHORT_RESULT and "\n" not in result.strip()


def _numbered(text: str) -> tuple[list[int], list[str]]:
    """Return the numbers and texts of the numbered lines."""
    numbers, texts, goes_on = list[int](), list[str](), False
    for line in text.splitlines():
        if match := _NUMBERED.match(line):
            numbers.append(int(match[1]))
            texts.append((match[2] or "").strip())
            goes_on = True
        elif not line.strip():
            goes_on = False
        elif goes_on:
            texts[-1] = f"{texts[-1]} {line.strip()}".strip()
    return numbers, texts


def _fault(numbers: Sequence[int], texts: Sequence[str], max_steps: int) -> str | None:
    """Return why the steps can't be used; None if they can."""
    if not numbers:
        return "it has no numbered step"
    if len(numbers) > max_steps:
        return f"it has {len(numbers)} steps; at most {max_steps} are made"
    for place, (number, text) in enumerate(zip(numbers, texts, strict=True), 1):
        if number != place:
            return f"step {place} is numbered {number}"
        if not text:
            return f"step {number} is empty"
        if len(numbers) > 1:
            late = [int(found) for found in _REFERENCE.findall(text) if not 1 <= int(found) < number]
            if late:
                return f"step {number} uses the result of step {late[0]}, which does not come before it"
    return None
