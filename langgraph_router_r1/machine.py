"""The nodes of the state machine: think, approve, route, answer.

`think` lets a strategy decide, by default the router LLM; each model that it asks is a `Send("route", call)`, so calls
run side by side and each finished one is in the checkpoint by itself; `approve`, if there is one, waits for a person;
`answer` writes the answer and the account. What holds for every strategy stands here: limits, budget, checkpoints,
events, and what a run that broke off had spent.

When the router LLM does not answer and there is a `fallback`, the fallback decides for the rest of the run.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Command, Overwrite, Send

from langgraph_router_r1 import intents
from langgraph_router_r1.accounting import (
    account,
    add_spending,
    at_most,
    empty_account,
    in_call_order,
    refuse_expensive,
    router_cost_usd,
    spending,
    total_spent,
)
from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.calls.approval import Approval
from langgraph_router_r1.calls.planning import pending_calls, worst_cases
from langgraph_router_r1.calls.prompt_cache import beginning
from langgraph_router_r1.engines.base import EngineError
from langgraph_router_r1.events import (
    AnswerStream,
    StreamedText,
    stream_call,
    stream_end,
    stream_plan,
    stream_reply,
    stream_thought,
)
from langgraph_router_r1.ledger import PriceNote, add_bounds, bound
from langgraph_router_r1.node import Node
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.state import (
    PlannedCall,
    PlanNote,
    RoutedCall,
    RouterContext,
    RouterInput,
    RouterOutput,
    RouterState,
    RunReport,
    Spending,
    calls_are_missing,
    has_ended,
    is_degraded,
    is_fresh,
    nothing_yet,
    question_of,
    tools_of,
)
from langgraph_router_r1.storable import without_nul
from langgraph_router_r1.strategies import Again, Answer, Ask, Decision, Propose, Strategy, View
from langgraph_router_r1.strategies.fallback import FallbackPlan
from langgraph_router_r1.strategies.tool_calls import called_tools, with_form, without_stream

logger = logging.getLogger(__name__)

NODE_KEY = "router_r1_node"
"""In the metadata of a node's run, and of all runs below it: the node's name, by which traces tell it."""

Next = Command[Literal["route", "approve", "answer", "think"]]


@dataclass(frozen=True, kw_only=True)
class RouterMachine:
    """The nodes, each in a blocking and an asynchronous form around the same pure halves."""

    strategy: Strategy
    candidates: Candidates
    limits: Limits
    fallback: FallbackPlan | None = None
    checkpointed: bool = True
    stream: StreamedText = "answer"
    approval: Approval | None = None

    def graph(self) -> StateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
        """Return the graph of the nodes, not compiled."""
        graph = StateGraph(
            RouterState, context_schema=RouterContext, input_schema=RouterInput, output_schema=RouterOutput
        )
        next_ones = ["route", "think", "answer"]

        def add(name: str, node: Node, **options: Any) -> None:
            graph.add_node(name, node, metadata={NODE_KEY: name}, **options)

        if self.approval is not None:
            next_ones.append("approve")
            add("approve", Node(self._approve, self._aapprove), destinations=("route", "think"))
        add("think", Node(self._think, self._athink), destinations=tuple(next_ones))
        add("route", Node(self._route, self._aroute), input_schema=PlannedCall)
        add("answer", Node(self._answer, self._aanswer))
        graph.add_edge(START, "think")
        graph.add_edge("route", "think")
        graph.add_edge("answer", END)
        return graph

    # think

    def _think(self, state: RouterState) -> Next:
        view, degraded = self._view(state), is_degraded(state) and self.fallback is not None
        if (ended := called_tools(view, degraded=degraded)) is not None:
            return self._follow(state, view, ended, degraded=degraded)
        if degraded and self.fallback is not None:
            return self._follow(state, view, self.fallback.decide(view), degraded=True)
        try:
            decision = self.strategy.decide(without_stream(view))
        except EngineError as error:
            fallback, view = self._take_over(state, error), replace(view, notes={})
            return self._follow(state, view, fallback.decide(view), degraded=True)
        return self._follow(state, view, decision)

    async def _athink(self, state: RouterState) -> Next:
        view, degraded = self._view(state), is_degraded(state) and self.fallback is not None
        if (ended := called_tools(view, degraded=degraded)) is not None:
            return self._follow(state, view, ended, degraded=degraded)
        if degraded and self.fallback is not None:
            return self._follow(state, view, await self.fallback.adecide(view), degraded=True)
        try:
            decision = await self.strategy.adecide(without_stream(view))
        except EngineError as error:
            fallback, view = self._take_over(state, error), replace(view, notes={})
            return self._follow(state, view, await fallback.adecide(view), degraded=True)
        return self._follow(state, view, decision)

    def _view(self, state: RouterState) -> View:
        started = not is_fresh(state)
        return View(
            messages=state["messages"],
            registry=self.candidates.offered(state["messages"]),
            limits=self._limits(state),
            turn=state.get("turn", 0) if started else 0,
            calls=in_call_order(state.get("calls", [])) if started else (),
            transcript=state.get("transcript", []) if started else (),
            notes=state.get("notes", {}) if started else {},
            decided=len(state.get("decisions", [])) if started else 0,
            spent_usd=self._spent(state),
            tools=state.get("tools") if started else tools_of(get_runtime().context),
            stream=AnswerStream.if_heard(self.stream, state if started else None),
            worst_case=functools.partial(self.candidates.worst_case, conversation=state["messages"]),
            is_resting=self.candidates.is_resting,
            warm=state.get("warm", ()) if started else self.candidates.warm_caches(state),
        )

    def _take_over(self, state: RouterState, error: EngineError) -> FallbackPlan:
        """Return the fallback that decides from here on; without one, raise the error with what the run has cost."""
        if self.fallback is None:
            begun = {**state, **self._new_run(state), "calls": [], "router_usage": []} if is_fresh(state) else state
            error.routing = self._account(cast("RouterState", begun))
            raise error
        logger.warning("the router LLM does not answer, and the fallback takes its place: %s", error)
        return self.fallback

    def _follow(self, state: RouterState, view: View, decision: Decision, *, degraded: bool = False) -> Next:
        """Return the state update and the way that a decision means."""
        _check_decision(self.strategy, decision)
        if isinstance(decision, Ask) and not degraded and view.turn >= view.limits.max_turns:
            best = view.replies[-1] if view.replies else ""
            decision = Answer(best, stop_reason="forced_answer", **decision.common())
        decision = with_form(view, decision)
        fresh = is_fresh(state)
        update: dict[str, Any] = {**self._new_run(state), "warm": list(view.warm)} if fresh else {}
        if degraded:
            update["degraded"] = True
        if fresh or decision.segments:
            segments = list(decision.segments)
            update["transcript"] = Overwrite(segments) if fresh else segments
        if decision.usage is not None:
            update["router_usage"] = Overwrite([decision.usage]) if fresh else [decision.usage]
        if decision.notes is not None:
            update["notes"] = dict(decision.notes)
        update["decisions"] = Overwrite([decision.note()]) if fresh else [decision.note()]
        if view.stream is not None and (fresh or not state.get("relayed")):
            decision.show(view.stream)
            update["answer_id"] = view.stream.message_id
        if decision.thought is not None:
            stream_thought(view.turn, decision.thought)
        match decision:
            case Ask():
                pending = pending_calls(decision, view, self.candidates, self.strategy)
                update["turn"] = view.turn + 1
                if self.approval is None or not self.approval.mark(pending, self.candidates, decision.approved):
                    return self._send(pending["calls"], update)
                return Command(update={**update, "pending": pending, "in_flight_usd": 0.0}, goto="approve")
            case Propose(plan=plan):
                return self._show(plan, update)
            case Again():
                return Command(update=update, goto="think")
        assert isinstance(decision, Answer), decision
        update |= {"answer": without_nul(decision.text), "stop_reason": decision.stop_reason}
        update["reply"] = decision.reply and without_nul(decision.reply)
        update["tool_calls"] = list(decision.tool_calls)
        return Command(update=update, goto="answer")

    def _show(self, plan: PlanNote, update: dict[str, Any]) -> Next:
        """Show a plan; return the way to whoever has to approve it, or on."""
        stream_plan(plan)
        if self.approval is not None and self.approval.is_needed(plan, self.candidates.registry):
            return Command(update={**update, "proposed": plan}, goto="approve")
        return Command(update=update, goto="think")

    def _send(self, calls: list[PlannedCall], update: dict[str, Any]) -> Next:
        """Return the way to the routed models."""
        # Kept in the state, should the run break off while models are asked.
        update["in_flight_usd"] = add_bounds(*(bound(self.candidates.most_billed(call)) for call in calls))
        return Command(update=update, goto=[Send("route", call) for call in calls])

    # approve

    def _approve(self, state: RouterState) -> Next:
        assert self.approval is not None
        if (plan := state.get("proposed")) is not None:
            reviewed = self.approval.review_plan(plan, self.candidates.offered(state["messages"]))
            notes = {**state.get("notes", {}), "reviewed": reviewed}
            return Command(update={"proposed": None, "notes": notes}, goto="think")
        pending = state["pending"]
        assert pending is not None
        calls, left = self.approval.review(pending, self.candidates, state["messages"]), pending["left_usd"]
        budget = Limits(**state["limits"]).with_context(get_runtime().context).budget_usd
        if budget is not None:  # that of a context with which the run goes on may be a smaller one
            left = min(math.inf if left is None else left, budget - self._spent(state))
        if left is not None:  # an edit may have made them more expensive
            refuse_expensive(calls, worst_cases(calls, self.candidates), left)
        return self._send(calls, {"pending": None})

    async def _aapprove(self, state: RouterState) -> Next:
        return self._approve(state)

    # route

    def _route(self, call: PlannedCall) -> dict[str, Any]:
        stream_call(call)
        stream = AnswerStream.of_relay(call)
        with intents.making(call, checkpointed=self.checkpointed) as again:
            return self._replied(self.candidates.ask(call, again=again, stream=stream), stream)

    async def _aroute(self, call: PlannedCall) -> dict[str, Any]:
        stream_call(call)
        stream = AnswerStream.of_relay(call)
        async with intents.amaking(call, checkpointed=self.checkpointed) as again:
            return self._replied(await self.candidates.aask(call, again=again, stream=stream), stream)

    def _replied(self, routed: RoutedCall, stream: AnswerStream | None) -> dict[str, Any]:
        stream_reply(routed)
        if stream is None:
            return {"calls": [routed]}
        stream.finish(routed["response"])
        return {"calls": [routed], "answer_id": stream.message_id, "relayed": routed["status"] == "ok"}

    # answer

    def _answer(self, state: RouterState) -> dict[str, Any]:
        answer = state.get("answer", "")
        routing = self._account({**state, "stop_reason": state.get("stop_reason") or "no_answer"})
        stream_end(answer, routing)
        metadata: dict[str, Any] = {"stop_reason": routing["stop_reason"]}
        if state.get("reply") is not None:
            metadata["reply"] = state["reply"]
        called = state.get("tool_calls", [])
        message = AIMessage(answer, id=state.get("answer_id"), tool_calls=called, response_metadata=metadata)
        # Without the mark of an open run, the same question asked again is a new run.
        return {"messages": [message], "answer": answer, "routing": routing, "question_id": None}

    async def _aanswer(self, state: RouterState) -> dict[str, Any]:
        return self._answer(state)

    # What a run is held to, and what it has spent

    def _account(self, state: RouterState) -> RunReport:
        return account(
            state.get("calls", []),
            turns=state.get("turn", 0),
            router_usage=state.get("router_usage", []),
            router_price=self.strategy.price,
            stop_reason=state.get("stop_reason"),
            earlier=state.get("earlier"),
            before=state.get("before"),
        )

    def _new_run(self, state: RouterState) -> dict[str, Any]:
        """Return the update that begins a run: limits settled, what was spent before carried over, the rest cleared."""
        left = self._left_behind(state)
        if state.get("question_id") == question_of(state).id:  # the same question, sent again after it broke off
            earlier, before = left, state.get("before")
        else:
            earlier, before = None, add_spending(state.get("before"), left)
        return {
            "question_id": question_of(state).id,
            "limits": self._limits(state).as_state(),
            "strategy": self.strategy.note(),
            "prices": self._prices,
            **nothing_yet(),
            "began_with": beginning(state["messages"]),
            "tools": tools_of(get_runtime().context),
            "earlier": add_spending(earlier),
            "before": add_spending(before),
            "routing": empty_account(earlier, before),
        }

    @functools.cached_property
    def _prices(self) -> dict[str, PriceNote]:
        """What each model costs, for the record of a run."""
        return {model.name: model.price.note() for model in self.candidates.registry}

    def _left_behind(self, state: RouterState) -> Spending:
        """Return what the run spent that the state holds, with what its calls in flight may have cost."""
        spent = self._spent_by(state)
        in_flight = state.get("in_flight_usd", 0.0) if not has_ended(state) and calls_are_missing(state) else 0.0
        return spending(spent["cost_usd"], add_bounds(spent["maybe_cost_usd"], in_flight))

    def _limits(self, state: RouterState) -> Limits:
        """Return what the run is held to: as it was built or, once it runs, as it began; a context has precedence."""
        begun = state.get("limits")
        limits = self.limits if begun is None or is_fresh(state) else Limits(**begun)
        return limits.with_context(get_runtime().context)

    def _spent(self, state: RouterState) -> float:
        """Return the dollars that count against the budget so far: spent for sure, and possibly billed."""
        if is_fresh(state):
            again = state.get("question_id") == question_of(state).id
            spent = self._left_behind(state) if again else spending(0.0, 0.0)
        else:
            spent = self._spent_by(state)
        return at_most(spent)

    def _spent_by(self, state: RouterState) -> Spending:
        """Return what the run spent that the state holds: the sums of its account alone."""
        router_cost = router_cost_usd(state.get("router_usage", []), self.strategy.price)
        return total_spent(in_call_order(state.get("calls", [])), router_cost, add_spending(state.get("earlier")))


def _check_decision(strategy: Strategy, decision: object) -> None:
    """Find out whether a strategy, which users write, has decided at all.

    Raises:
        TypeError: It returned something else.
    """
    if not isinstance(decision, Decision):
        who = type(strategy).__name__
        msg = f"{who} decided {decision!r}; it must be a Decision, such as Ask.one(model, query) or Answer(text)"
        raise TypeError(msg)
