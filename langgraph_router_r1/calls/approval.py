"""Calls that a person approves, edits or rejects before they are made.

All calls of a turn that need approval are in one interrupt. Its form is that of LangChain's
`HumanInTheLoopMiddleware`, which approval pages such as Agent Inbox know:

    router = create_router(engine, registry, approve={"over": 0.01}, checkpointer=saver)
    result = router.invoke(question, config)
    [request] = result["__interrupt__"]
    request.value["action_requests"]  # [{"name": "ask_model", "args": {"model": "large", "query": "..."}, ...}]
    router.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.messages import AnyMessage
from langgraph.types import interrupt

from langgraph_router_r1.calls.candidates import Candidates
from langgraph_router_r1.calls.planning import worst_cases
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.settings import Approve, PendingCall
from langgraph_router_r1.state import PendingCalls, PlannedCall, PlannedStep, PlanNote, Review, ReviewedPlan
from langgraph_router_r1.strategies.plans import edited_plan

ACTION = "ask_model"
"""What approval pages call the action that is reviewed."""

PLAN_ACTION = "run_plan"
"""The same for a whole plan."""


@dataclass(frozen=True)
class Approval:
    """Which calls need approval, and how it is asked for."""

    needs: Callable[[PendingCall], bool]
    """Whether a call does."""

    @classmethod
    def of(cls, setting: Approve) -> Approval | None:
        """Return the approval for a router's setting `approve`; None when no call needs any.

        Raises:
            ValueError: It is none of the forms.
        """
        match setting:
            case "never":
                return None
            case "always":
                return cls(lambda _: True)
            case {"over": int() | float() as limit, **others} if not others and limit is not True and limit >= 0:
                return cls(lambda call: call.worst_case_usd > limit)
            case _ if callable(setting):
                return cls(setting)
        msg = (
            f"approve is {setting!r}; it must be 'never', 'always', {{'over': dollars}} or a function of a PendingCall"
        )
        raise ValueError(msg)

    def mark(self, turn: PendingCalls, candidates: Candidates, approved: Collection[int] = ()) -> bool:
        """Mark the calls of a turn that need approval, but for those approved already; return whether there are any."""
        asked = _askable(turn["calls"], candidates)
        turn["needs_approval"] = [index for index, call in asked.items() if index not in approved and self.needs(call)]
        return bool(turn["needs_approval"])

    def is_needed(self, plan: PlanNote, registry: ModelRegistry) -> bool:
        """Return whether a plan needs approval: whether a call for one of its steps would."""
        return any(self.needs(_step_call(step, registry)) for step in plan["steps"])

    def review_plan(self, plan: PlanNote, offered: ModelRegistry) -> ReviewedPlan:
        """Interrupt the run until a person has decided on a plan.

        A decision that can't be used is asked for again, with the reason in the request.
        """
        request = _plan_request(plan)
        while True:
            response = interrupt(request)
            try:
                return _plan_decision(response, plan, offered)
            except ValueError as error:
                request = {**request, "error": str(error)}

    def review(
        self, waiting: PendingCalls, candidates: Candidates, conversation: Sequence[AnyMessage]
    ) -> list[PlannedCall]:
        """Interrupt the run until a person has decided on the calls that need approval; return the reviewed calls.

        Decisions that can't be used are asked for again, with the reason in the request.

        Args:
            waiting: The calls of the turn. Which of them need approval was settled when they were planned: whoever
                decides has seen those, whatever the rule or the prices say by now.
            candidates: The models.
            conversation: The messages of the run.
        """
        calls = waiting["calls"]
        pending = {
            index: call for index, call in _askable(calls, candidates).items() if index in waiting["needs_approval"]
        }
        request = _request(pending)
        while True:
            response = interrupt(request)
            try:
                decisions = _decisions(response, list(pending.values()), candidates.offered(conversation))
            except ValueError as error:
                request = {**request, "error": str(error)}
                continue
            reviewed = dict(zip(pending, decisions, strict=True))
            after = [_reviewed(call, reviewed.get(call["index"])) for call in calls]
            for call in after:
                # Another model may see more or less of the conversation; with tools, each sees all of it.
                if call["refusal"] is None and "tools" not in call:
                    call["context"] = candidates.context_of(call["model"], conversation)
            return after


def _step_call(step: PlannedStep, registry: ModelRegistry) -> PendingCall:
    worst = step["worst_case_usd"]
    return PendingCall(registry[step["model"]], step["text"], math.inf if worst is None else worst)


def _plan_request(plan: PlanNote) -> dict[str, Any]:
    worst = math.inf if plan["worst_case_usd"] is None else plan["worst_case_usd"]
    steps = [{"model": step["model"], "query": step["text"]} for step in plan["steps"]]
    lines = "\n".join(f"{number}. {step['model']}: {step['query']}" for number, step in enumerate(steps, start=1))
    action = {"name": PLAN_ACTION, "args": {"steps": steps}, "description": f"Plan ({_at_most(worst)}):\n{lines}"}
    return {
        "action_requests": [{**action, "worst_case_usd": plan["worst_case_usd"]}],
        "review_configs": [{"action_name": PLAN_ACTION, "allowed_decisions": ["approve", "edit", "reject"]}],
    }


def _plan_decision(response: Any, plan: PlanNote, offered: ModelRegistry) -> ReviewedPlan:
    """Return what was decided on a plan.

    Raises:
        ValueError: The response does not say it.
    """
    reviewed: ReviewedPlan = {
        "decision": "approve",
        "message": None,
        "texts": [step["text"] for step in plan["steps"]],
        "models": [step["model"] for step in plan["steps"]],
    }
    match response:
        case {"decisions": [{"type": "approve"}]}:
            return reviewed
        case {"decisions": [{"type": "reject"} as decision]}:
            message = decision.get("message")
            return {**reviewed, "decision": "reject", "message": str(message) if message else None}
        case {"decisions": [{"type": "edit", "edited_action": {"args": {"steps": [_, *_] as steps}}}]}:
            texts, models = zip(*(_edited_step(step, offered) for step in steps), strict=True)
            edited_plan(texts)
            return {**reviewed, "decision": "edit", "texts": list(texts), "models": list(models)}
    msg = (
        f"the response is {response!r}; it must be {{'decisions': [...]}} with one decision, whose type is approve, "
        "reject or edit (with edited_action, whose args have steps)"
    )
    raise ValueError(msg)


def _edited_step(step: Any, offered: ModelRegistry) -> tuple[str, str]:
    match step:
        case {"model": str() as model, "query": str() as query} if query.strip():
            if model not in offered:
                raise ValueError(offered.explain_unknown(model))
            return " ".join(query.split()), offered[model].name
    msg = f"a step is {step!r}; it must have a model and a query that is not empty"
    raise ValueError(msg)


def _askable(calls: Sequence[PlannedCall], candidates: Candidates) -> dict[int, PendingCall]:
    return {
        call["index"]: PendingCall(candidates.registry[call["model"]], call["query"], worst)
        for call, worst in zip(calls, worst_cases(calls, candidates), strict=True)
        if call["refusal"] is None
    }


def _request(pending: Mapping[int, PendingCall]) -> dict[str, Any]:
    return {
        "action_requests": [
            {
                "name": ACTION,
                "args": {"model": call.model.name, "query": call.query},
                "description": f"Ask {call.model.name} ({_at_most(call.worst_case_usd)}): {call.query}",
                "worst_case_usd": call.worst_case_usd if math.isfinite(call.worst_case_usd) else None,
            }
            for call in pending.values()
        ],
        "review_configs": [{"action_name": ACTION, "allowed_decisions": ["approve", "edit", "reject"]}],
    }


def _at_most(dollars: float) -> str:
    return f"at most ${dollars:.2g}" if math.isfinite(dollars) else "its cost has no upper bound"


def _decisions(response: Any, pending: Sequence[PendingCall], offered: ModelRegistry) -> list[Review]:
    """Return what was decided on each pending call.

    Raises:
        ValueError: The response does not say it.
    """
    decisions = response.get("decisions") if isinstance(response, Mapping) else None
    if not isinstance(decisions, list) or len(decisions) != len(pending):
        found = len(decisions) if isinstance(decisions, list) else "no"
        msg = (
            f'resume with {{"decisions": [...]}}, one for each of the {len(pending)} calls; there are {found} decisions'
        )
        raise ValueError(msg)
    return [_decision(decision, call, offered) for decision, call in zip(decisions, pending, strict=True)]


def _decision(decision: Any, call: PendingCall, offered: ModelRegistry) -> Review:
    review: Review = {"decision": "approve", "message": None, "model": call.model.name, "query": call.query}
    match decision:
        case {"type": "approve"}:
            return review
        case {"type": "reject"}:
            message = decision.get("message")
            return {**review, "decision": "reject", "message": str(message) if message else None}
        case {"type": "edit", "edited_action": {"args": {**args}}}:
            model, query = str(args.get("model", call.model.name)), args.get("query", call.query)
            if model not in offered:
                raise ValueError(offered.explain_unknown(model))
            if not isinstance(query, str) or not query.strip():
                msg = f"query is {query!r}; it must be a text that is not empty"
                raise ValueError(msg)
            edited: Literal["edit"] = "edit"
            return {**review, "decision": edited, "model": offered[model].name, "query": query.strip()}
    msg = f"a decision is {decision!r}; its type must be approve, reject or edit (with edited_action and its args)"
    raise ValueError(msg)


def _reviewed(call: PlannedCall, review: Review | None) -> PlannedCall:
    """Return the call as it was decided on; what it was before is in its review."""
    if review is None:
        return call
    before: Review = {**review, "model": call["model"], "query": call["query"]}
    if review["decision"] == "reject":
        why = f": {review['message']}" if review["message"] else ""
        return {
            **call,
            "refusal": {"status": "rejected", "reason": f"a person did not approve the call{why}"},
            "review": before,
        }
    return {**call, "model": review["model"], "query": review["query"], "review": before}
