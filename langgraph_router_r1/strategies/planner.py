"""Plan first: a decomposer cuts the question into steps, an allocator gives each to the cheapest model that can do it.

This is R2-Reasoner (arXiv 2506.05901). The run is

    plan -> allocate -> propose -> ask all steps that are ready, side by side -> ... -> answer

in the same graph as the router LLM's, so calls, budget, checkpoints, events, approval and the record are the same.
Before the first call the plan and the most that it can cost are shown; where calls need approval, a person may edit it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

from langgraph_router_r1.engines import llm_run
from langgraph_router_r1.engines.base import ContextFullError, Generation, RouterEngine
from langgraph_router_r1.ledger import FREE, Price, bound
from langgraph_router_r1.prompts import PLAN_PROMPT, plan_chat
from langgraph_router_r1.protocol import Call
from langgraph_router_r1.state import PlanNote, RoutedCall, StopReason, StrategyNote
from langgraph_router_r1.strategies.allocators import Allocation, Allocator
from langgraph_router_r1.strategies.base import Again, Answer, Ask, Decision, Propose, Strategy, View, affords_turn
from langgraph_router_r1.strategies.plans import MAX_STEPS, Plan, Step, edited_plan, joined, parse_plan
from langgraph_router_r1.transcript import Segment

Review = Literal["never", "unsure", "always"]
"""Which replies are reviewed: see `Planner.review`."""

SURE = 0.8
"""From this expected accuracy on, a reply is taken without a review where only unsure ones are reviewed."""

REVIEW_PROMPT = "Question: {query}\n\nReply: {reply}\n\nIs the reply right? Say yes or no."
"""What the model one tier up is asked about a reply."""

_NO = re.compile(r"\W*no\b", re.IGNORECASE)

TOOLS = "the models may call tools, which takes the whole question"

NO_ROOM = "the question leaves no room for a plan"

MAX_ASKED = 2
"""How many models are asked for a step: the one that it was given to, and one tier up."""


@dataclass
class Planner(Strategy):
    """Plans a question, and lets models do the steps; `create_planner` makes a router of it.

    A step that gets no reply, or whose reply a review rejects, is asked once of the next better model: the cheapest of
    those that cost more. If that gets no reply either, the run ends with `no_answer`, and a thought says why.

    Raises:
        ValueError: A setting is out of its range.
    """

    decomposer: RouterEngine | Callable[[str], str]
    """Writes the plan: a trained policy, any chat model, or a function of the question, for rules of your own."""
    allocator: Allocator
    """Gives the steps to models."""
    review: Review = "never"
    """Which replies the next better model is asked about before they are used: none, those that are `unsure`
    (cut off, or of a model of which less than `SURE` is expected, or nothing is known), or all."""
    max_steps: int = MAX_STEPS
    """Most steps of a plan."""
    max_tokens: int = 512
    """Most tokens of a plan."""
    price: Price = FREE
    """Of the tokens of the decomposer, and of an allocator that is a language model."""

    def __post_init__(self) -> None:
        if self.review not in {"never", "unsure", "always"}:
            msg = f"review is {self.review!r}; it must be 'never', 'unsure' or 'always'"
            raise ValueError(msg)
        if self.max_steps < 1 or self.max_tokens < 1:
            msg = f"max_steps is {self.max_steps!r} and max_tokens {self.max_tokens!r}; both must be 1 or more"
            raise ValueError(msg)
        self._prompt_digest = hashlib.sha256(PLAN_PROMPT.encode()).hexdigest()

    @property
    def limits(self) -> dict[str, int]:
        """The limits of a run that leave room for every step, its review and a second try: settings of its graph."""
        return {"max_turns": 3 * self.max_steps, "max_parallel": self.max_steps}

    @override
    def note(self) -> StrategyNote:
        if not isinstance(self.decomposer, RouterEngine):
            return super().note()
        return {**super().note(), "policy": self.decomposer.model, "prompt_digest": self._prompt_digest}

    @override
    def decide(self, view: View) -> Decision:
        if "steps" not in view.notes:
            if not isinstance(self.decomposer, RouterEngine):
                return self._planned_by_function(view, self.decomposer)
            turn = self._begin(view, self.decomposer)
            if turn.why_not is not None:
                return _planned(Plan.whole(view.question, turn.why_not))
            try:
                return self._read(view, turn, llm_run.generate(self.decomposer, [turn.prompt], **self._options))
            except ContextFullError:
                return _planned(Plan.whole(view.question, NO_ROOM))
        if "models" not in view.notes:
            return self._propose(view, self.allocator.allocate(_plan_of(view.notes), view))
        return self._go_on(view)

    @override
    async def adecide(self, view: View) -> Decision:
        if "steps" not in view.notes:
            if not isinstance(self.decomposer, RouterEngine):
                return self._planned_by_function(view, self.decomposer)
            await self.decomposer.aload()
            turn = self._begin(view, self.decomposer)
            if turn.why_not is not None:
                return _planned(Plan.whole(view.question, turn.why_not))
            try:
                return self._read(view, turn, await llm_run.agenerate(self.decomposer, [turn.prompt], **self._options))
            except ContextFullError:
                return _planned(Plan.whole(view.question, NO_ROOM))
        if "models" not in view.notes:
            return self._propose(view, await self.allocator.aallocate(_plan_of(view.notes), view))
        return self._go_on(view)

    @property
    def _options(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, "stop": []}

    def _planned_by_function(self, view: View, decompose: Callable[[str], str]) -> Decision:
        if _takes_tools(view):
            return _planned(Plan.whole(view.question, TOOLS))
        return _planned(parse_plan(decompose(view.question), view.question, max_steps=self.max_steps))

    def _read(self, view: View, turn: _Turn, generation: Generation) -> Decision:
        """Return the decision that keeps a plan, for the allocator to read."""
        plan = parse_plan(generation.segment["text"], view.question, max_steps=self.max_steps)
        return _planned(plan, segments=[turn.prompt, generation.segment], usage=generation.usage)

    def _begin(self, view: View, engine: RouterEngine) -> _Turn:
        chat = plan_chat(view.messages, max_steps=self.max_steps, control_tokens=engine.control_tokens)
        prompt = engine.begin(chat)
        if _takes_tools(view):
            return _Turn(prompt, TOOLS)
        if not affords_turn(view, prompt, self.max_tokens, self.price):
            return _Turn(prompt, "the budget does not pay for a plan")
        return _Turn(prompt)

    def _propose(self, view: View, allocation: Allocation) -> Decision:
        notes = {
            **view.notes,
            "models": list(allocation.models),
            "expected": list(allocation.expected),
            "turns": [],
        }
        if allocation.reason is not None:
            notes["allocation_reason"] = allocation.reason
        return Propose(plan=_plan_note(view, notes), notes=notes, segments=allocation.segments, usage=allocation.usage)

    # The steps

    def _go_on(self, view: View) -> Decision:
        """Ask for all steps that are ready; answer when all are done, or one can't be."""
        notes, reviewed = view.notes, view.notes.get("reviewed")
        if reviewed is not None and reviewed["decision"] == "reject":
            because = f": {reviewed['message']}" if reviewed["message"] else ""
            return _end("", "no_answer", f"A person did not approve the plan{because}.")
        if reviewed is not None and reviewed["decision"] == "edit" and not notes["turns"]:
            unknown = [None] * len(reviewed["models"])
            edited = _as_notes(edited_plan(reviewed["texts"]))
            notes = {**notes, **edited, "models": reviewed["models"], "expected": unknown}
        plan = _plan_of(notes)
        if not notes["turns"] and (over := _over_budget(view, plan, notes["models"])):
            return _end("", "budget_exhausted", over)
        steps = self._progress(view, plan, notes)
        done = {number: step.text for number, step in steps.items() if step.is_done}
        if len(done) == len(plan.steps):
            return _answer(plan, steps)
        calls, purposes, told = list[Call](), list[tuple[int, str]](), list[str]()
        approved = list[int]()
        for step in plan.ready(done)[: view.limits.max_parallel]:
            progress = steps[step.number]
            if (failed := progress.fails(step)) is not None:
                return _end("", "no_answer", failed)
            purpose, call = progress.next_call(step, done)
            calls.append(call)
            purposes.append((step.number, purpose))
            if (why := progress.why(step)) is not None:
                told.append(why)
            elif reviewed is not None:
                approved.append(len(calls) - 1)
        is_last = len(calls) == 1 and len(done) == len(plan.steps) - 1 and len(plan.ends) == 1
        return Ask(
            calls,
            relay=is_last and purposes[0][1] == "step" and (self.review == "never" or bool(told)),
            approved=approved,
            thought=f"<think> {' '.join(told)} </think>" if told else None,
            notes={**notes, "turns": [*notes["turns"], purposes]},
        )

    def _progress(self, view: View, plan: Plan, notes: Mapping[str, Any]) -> dict[int, _Progress]:
        """Return how far each step is, from the calls that were made for it."""
        steps = {
            step.number: _Progress(view, model, expected)
            for step, model, expected in zip(plan.steps, notes["models"], notes["expected"], strict=True)
        }
        calls = {(call["turn"], call["index"]): call for call in view.calls}
        for turn, purposes in enumerate(notes["turns"]):
            for index, (number, purpose) in enumerate(purposes):
                steps[number].add(purpose, calls[turn, index])
        for step in steps.values():
            step.is_reviewed = self._reviews(step)
        return steps

    def _reviews(self, step: _Progress) -> bool:
        """Return whether the first reply to a step is reviewed."""
        if self.review == "never" or step.better is None:
            return False
        return self.review == "always" or step.expected is None or step.expected < SURE or step.is_cut


@dataclass
class _Turn:
    """What is known before a plan is written."""

    prompt: Segment
    why_not: str | None = None
    """Why no plan is written; None if one is."""


@dataclass
class _Progress:
    """How far one step is."""

    view: View
    model: str
    """Whom it was given to, or asked of last."""
    expected: float | None
    asked: int = 0
    is_reviewed: bool = False
    """Whether the first reply is to be reviewed."""
    reply: RoutedCall | None = None
    """The latest call with a reply."""
    failed: RoutedCall | None = None
    """The latest call, if it brought none."""
    verdict: bool | None = None
    """What the review said; None before it."""

    def add(self, purpose: str, call: RoutedCall) -> None:
        """Take in a call that was made for the step."""
        if purpose == "review":
            self.verdict = not (call["status"] == "ok" and _NO.match(call["response"]))
            return
        self.asked += 1
        self.model = call["model"]
        if call["status"] == "ok":
            self.reply, self.failed = call, None
        else:
            self.failed = call

    @property
    def text(self) -> str:
        return self.reply["response"] if self.reply else ""

    @property
    def is_cut(self) -> bool:
        return self.reply is not None and self.reply["finish_reason"] not in {None, "stop"}

    @property
    def better(self) -> str | None:
        """The next better model: the cheapest of those on offer that cost more; None if there is none."""
        registry = self.view.registry
        level = registry[self.model].price.level if self.model in registry else -1.0  # the file may have changed
        dearer = [model for model in self.view.offered if model.price.level > level]
        return min(dearer, key=lambda model: model.price.level).name if dearer else None

    @property
    def is_done(self) -> bool:
        if self.reply is None:
            return False
        if self.asked >= MAX_ASKED or self.better is None:
            return True
        return not self.is_reviewed or self.verdict is True

    def fails(self, step: Step) -> str | None:
        """Return why the run ends at this step; None if it goes on."""
        if self.reply is not None or self.failed is None:
            return None
        final = self.failed["status"] in {"over_budget", "rejected"}  # a more expensive model would be no help
        if not final and self.asked < MAX_ASKED and self.better is not None:
            return None
        return f"Step {step.number} ({step.text}) can't be done: {_why_no_reply(self.failed)}."

    def next_call(self, step: Step, results: Mapping[int, str]) -> tuple[str, Call]:
        """Return what the next call is for, "step" or "review", and the call."""
        query = step.query(results)
        if self.asked == 0:
            return "step", Call(self.model, query)
        assert self.better is not None
        if self.reply is not None and self.verdict is None:
            return "review", Call(self.better, REVIEW_PROMPT.format(query=query, reply=self.text.strip()))
        return "step", Call(self.better, query)

    def why(self, step: Step) -> str | None:
        """Return why the next call is not the first for the step; None if it is."""
        if self.asked == 0:
            return None
        if self.failed is not None:
            return f"Step {step.number}: {_why_no_reply(self.failed)}. {self.better} is asked."
        if self.verdict is None:
            return f"Step {step.number}: {self.better} reviews the reply of {self.model}."
        return f"Step {step.number}: the reply of {self.model} was rejected. {self.better} is asked."


def _planned(plan: Plan, **wrote: Any) -> Decision:
    return Again(notes=_as_notes(plan), **wrote)


def _takes_tools(view: View) -> bool:
    """Return whether the models may call tools: then they are sent the whole conversation, not steps of a plan."""
    return view.tools is not None and not view.tools["is_form"]


def _as_notes(plan: Plan) -> dict[str, Any]:
    steps = [{"text": step.text, "needs": list(step.needs)} for step in plan.steps]
    return {"steps": steps, "plan_reason": plan.reason}


def _plan_of(notes: Mapping[str, Any]) -> Plan:
    steps = (Step(number, step["text"], tuple(step["needs"])) for number, step in enumerate(notes["steps"], start=1))
    return Plan(tuple(steps), notes["plan_reason"])


def _plan_note(view: View, notes: Mapping[str, Any]) -> PlanNote:
    worst = _worst_cases(view, _plan_of(notes), notes["models"])
    return {
        "steps": [
            {"text": step.text, "needs": list(step.needs), "model": model, "worst_case_usd": bound(most)}
            for step, model, most in zip(_plan_of(notes).steps, notes["models"], worst, strict=True)
        ],
        "worst_case_usd": bound(sum(worst)),
        "reason": notes["plan_reason"],
    }


def _worst_cases(view: View, plan: Plan, models: Sequence[str]) -> list[float]:
    """Return the most that each step can cost, in dollars, whatever the results of the steps before it are."""
    return [
        # A model that is not there any more is not asked.
        view.worst_case(model, step.longest_query()) if model in view.registry else 0.0
        for step, model in zip(plan.steps, models, strict=True)
    ]


def _over_budget(view: View, plan: Plan, models: Sequence[str]) -> str | None:
    """Return why the budget does not pay for the plan; None if it does."""
    if view.limits.budget_usd is None:
        return None
    most, left = sum(_worst_cases(view, plan, models)), view.limits.budget_usd - view.spent_usd
    if most <= left:
        return None
    costs = f"may cost ${most:.2g}" if math.isfinite(most) else "has no upper bound of its cost"
    return f"The plan {costs}, and the budget has ${max(left, 0):.2g} left: nothing is asked."


def _answer(plan: Plan, steps: Mapping[int, _Progress]) -> Answer:
    ends = [steps[step.number] for step in plan.ends]
    cut: StopReason = "cut_off" if any(step.is_cut for step in ends) else "answered"
    return Answer(joined([step.text for step in ends]), stop_reason=cut)


def _end(text: str, reason: StopReason, why: str) -> Answer:
    return Answer(text, stop_reason=reason, thought=f"<think> {why} </think>")


def _why_no_reply(call: RoutedCall) -> str:
    return (call["reason"] or call["status"]).removesuffix(".")
