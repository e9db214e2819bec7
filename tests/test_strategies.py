"""Whoever decides, the graph makes the calls, holds the limits, stores checkpoints and keeps the account."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from langgraph_router_r1 import EngineError, ModelDescriptor, ModelRegistry, RouterContext, create_router
from langgraph_router_r1.strategies import Again, Answer, Ask, AskInOrder, Call, Decision, Strategy, View
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION = {"messages": [("user", "Capital of Peru?")]}


class AskTheCheapest(Strategy):
    def decide(self, view: View) -> Decision:
        if view.replies:
            return Answer(view.replies[-1])
        cheapest = min(view.registry, key=lambda model: model.price.completion)
        return Ask.one(cheapest.name, view.question)


class AskAll(Strategy):
    def decide(self, view: View) -> Decision:
        if view.calls:
            return Answer(" ".join(view.replies))
        return Ask([Call(name, view.question) for name in view.registry.names])


def pool(**prices: float) -> ModelRegistry:
    return ModelRegistry(
        ModelDescriptor(name=name, model=ScriptedChatModel([f"from {name}"] * 9), price=price)
        for name, price in prices.items()
    )


def test_a_strategy_that_decides_nothing_is_named() -> None:
    class Says(Strategy):
        def decide(self, view: View) -> Any:
            return "Lima"

    with pytest.raises(TypeError, match=r"Says decided 'Lima'; it must be a Decision, such as Ask\.one"):
        create_router(strategy=Says(), registry=pool(a=1.0)).invoke(QUESTION)


def test_a_strategy_of_ten_lines_gets_calls_events_and_the_account_from_the_graph() -> None:
    router = create_router(strategy=AskTheCheapest(), registry=pool(large=9.0, small=1.0))
    events: list[Any] = []
    result: Any = None
    for mode, chunk in router.stream(QUESTION, stream_mode=["custom", "values"]):
        if mode == "custom":
            events.append(chunk)
        else:
            result = chunk
    assert result["answer"] == "from small"
    kinds = ["router_r1.route", "router_r1.info", "router_r1.answer_delta", "router_r1.done"]
    assert [event["type"] for event in events] == kinds
    [call] = result["routing"]["calls"]
    assert (call["model"], call["query"]) == ("small", "Capital of Peru?")
    assert result["routing"]["cost_usd"] == call["cost_usd"] > 0
    assert result["routing"]["stop_reason"] == "answered"


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_strategy_is_stopped_before_its_call_and_goes_on_from_the_checkpoint(is_async: bool) -> None:
    small = ScriptedChatModel(["Lima"])
    registry = ModelRegistry([ModelDescriptor(name="small", model=small, price=1.0)])
    router = create_router(
        strategy=AskTheCheapest(), registry=registry, checkpointer=InMemorySaver(), interrupt_before=["route"]
    )
    config: Any = {"configurable": {"thread_id": "1"}}

    async def run(given: Any) -> Any:
        return await router.ainvoke(given, config) if is_async else router.invoke(given, config)

    stopped = await run(QUESTION)
    assert "answer" not in stopped or not stopped["answer"]
    assert small.calls == []
    assert (await run(None))["answer"] == "Lima"
    assert len(small.calls) == 1


def test_the_budget_holds_for_every_strategy() -> None:
    router = create_router(strategy=AskAll(), registry=pool(a=1.0, b=1.0), budget_usd=1e-12)
    result = router.invoke(QUESTION)
    assert [call["status"] for call in result["routing"]["calls"]] == ["over_budget", "over_budget"]
    assert result["routing"]["cost_usd"] == 0


def test_what_a_strategy_keeps_for_itself_is_not_spent_on_calls() -> None:
    class Keeps(AskAll):
        def decide(self, view: View) -> Decision:
            decision = super().decide(view)
            return Ask(decision.calls, keep_usd=0.9) if isinstance(decision, Ask) else decision

    registry = pool(a=1.0)
    for strategy, status in ((AskAll(), "ok"), (Keeps(), "over_budget")):
        result = create_router(strategy=strategy, registry=registry, budget_usd=0.9).invoke(QUESTION)
        assert [call["status"] for call in result["routing"]["calls"]] == [status]


def test_the_limit_of_calls_a_turn_holds_for_every_strategy() -> None:
    result = create_router(strategy=AskAll(), registry=pool(a=1.0, b=1.0, c=1.0), max_parallel=2).invoke(QUESTION)
    assert [call["status"] for call in result["routing"]["calls"]] == ["ok", "ok", "denied"]


def test_a_strategy_that_never_answers_is_ended_after_its_turns_with_the_last_reply() -> None:
    class AsksForEver(Strategy):
        def decide(self, view: View) -> Decision:
            return Ask.one("a", view.question)

    router = create_router(strategy=AsksForEver(), registry=pool(a=1.0), max_turns=3)
    result = router.invoke(QUESTION)
    assert (result["routing"]["turns"], result["routing"]["stop_reason"]) == (3, "forced_answer")
    assert result["answer"] == "from a"
    result = router.invoke(QUESTION, context=RouterContext(max_turns=1))
    assert result["routing"]["turns"] == 1


def test_a_model_that_there_is_not_is_told_as_such() -> None:
    class AsksNobodyKnown(AskAll):
        def decide(self, view: View) -> Decision:
            return Answer("none") if view.calls else Ask.one("oracle", view.question)

    result = create_router(strategy=AsksNobodyKnown(), registry=pool(a=1.0)).invoke(QUESTION)
    assert [call["status"] for call in result["routing"]["calls"]] == ["unknown_model"]


def test_asking_no_model_at_all_is_an_error_that_names_the_strategy() -> None:
    class AsksNobody(Strategy):
        def decide(self, view: View) -> Decision:
            return Ask([])

    with pytest.raises(ValueError, match="AsksNobody decided to ask, and names no model"):
        create_router(strategy=AsksNobody(), registry=pool(a=1.0)).invoke(QUESTION)


def test_notes_and_own_tokens_of_a_strategy_travel_in_the_state_and_the_account() -> None:
    usage: Any = {"prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 5, "estimated": False}

    class Counts(Strategy):
        from langgraph_router_r1 import Price

        price = Price(1.0, 1.0)

        def decide(self, view: View) -> Decision:
            seen = view.notes.get("seen", 0)
            if seen < 2:
                return Again(notes={"seen": seen + 1}, usage=usage, thought=f"thought {seen}")
            return Answer(str(seen), usage=usage)

    router = create_router(strategy=Counts(), registry=pool(a=1.0), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    for _ in range(2):  # the notes of a run are not those of the next
        result = router.invoke(QUESTION, config)
        assert result["answer"] == "2"
        assert result["routing"]["router_tokens"]["completion_tokens"] == 15
        assert result["routing"]["router_cost_usd"] == pytest.approx(45e-6)


def test_a_fallback_takes_over_from_any_strategy_whose_model_does_not_answer() -> None:
    class Breaks(Strategy):
        def decide(self, view: View) -> Decision:
            raise EngineError("nobody there")

    class First:
        def rank(self, question: str, *, cost_weight: float) -> list[str]:
            return ["a"]

    with pytest.raises(EngineError):
        create_router(strategy=Breaks(), registry=pool(a=1.0)).invoke(QUESTION)
    result = create_router(strategy=Breaks(), registry=pool(a=1.0), fallback=First()).invoke(QUESTION)
    assert (result["answer"], result["routing"]["stop_reason"]) == ("from a", "degraded")


@pytest.mark.parametrize(("accept", "asked"), [(None, ["a"]), (lambda view, call: call["model"] == "b", ["a", "b"])])
def test_models_in_an_order_are_asked_until_a_reply_is_accepted(accept: Any, asked: list[str]) -> None:
    ranked: list[str] = []

    def rank(view: View) -> list[str]:
        ranked.append(view.question)
        return ["a", "b", "c"]

    router = create_router(strategy=AskInOrder(rank, accept), registry=pool(a=1.0, b=1.0, c=1.0))
    result = router.invoke(QUESTION)
    assert [call["model"] for call in result["routing"]["calls"]] == asked
    assert len(ranked) == 1


def test_settings_of_a_router_llm_are_refused_for_another_strategy() -> None:
    with pytest.raises(TypeError, match="max_tokens: for a router LLM, and the strategy AskAll decides here"):
        create_router(strategy=AskAll(), registry=pool(a=1.0), max_tokens=5)
    with pytest.raises(TypeError, match="engine: for a router LLM"):
        create_router(ScriptedEngine([]), pool(a=1.0), strategy=AskAll())
    with pytest.raises(TypeError, match="a router needs an engine"):
        create_router(registry=pool(a=1.0))


@pytest.mark.parametrize("blocks", [True, False])
async def test_only_an_order_that_takes_time_is_made_in_a_thread(blocks: bool) -> None:
    threads: list[threading.Thread] = []

    def rank(view: View) -> list[str]:
        threads.append(threading.current_thread())
        return ["m"]

    registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel(["Lima"]), price=1.0)])
    router = create_router(strategy=AskInOrder(rank, blocks=blocks), registry=registry)
    assert (await router.ainvoke({"messages": [("user", "Capital of Peru?")]}))["answer"] == "Lima"
    assert [thread is threading.current_thread() for thread in threads] == [not blocks]
