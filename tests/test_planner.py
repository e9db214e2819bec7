"""A planner plans, gives the steps to models, shows the plan, and does what is ready side by side."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import WAYS, invoked, pool
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from rich.console import Console

from langgraph_router_r1 import (
    RECORD_KEYS,
    ModelDescriptor,
    ModelRegistry,
    RouterContext,
    RunRecord,
    create_planner,
    make_tools,
)
from langgraph_router_r1.replay import replay
from langgraph_router_r1.strategies import View
from langgraph_router_r1.strategies.allocators import Allocation, Allocator, read_allocation
from langgraph_router_r1.strategies.planner import Planner
from langgraph_router_r1.strategies.plans import Plan
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
from langgraph_router_r1.trace import ConsoleTrace

QUESTION: Any = {"messages": [("user", "What currency is used in the country whose capital is Lima?")]}
TWO = "1. Which country has the capital Lima?\n2. What currency is used in #1?"
BOTH = "1. Capital of Peru?\n2. Currency of Peru?"
JOIN = f"{BOTH}\n3. Which is longer, #1 or #2?"


def says(*replies: str, price: float = 1.0) -> dict[str, Any]:
    return {"model": ScriptedChatModel(list(replies)), "price": price, "params": {"max_tokens": 32}}


def registry(**models: dict[str, Any]) -> ModelRegistry:
    return ModelRegistry(ModelDescriptor(name=name, **fields) for name, fields in models.items())


def always(name: str) -> Callable[..., str]:
    return lambda *_: name


def asked(result: Any) -> list[tuple[str, str]]:
    return [(call["model"], call["query"]) for call in result["routing"]["calls"]]


@pytest.mark.parametrize("way", WAYS)
async def test_a_later_step_is_given_the_result_of_the_one_before_it(way: str) -> None:
    planner = create_planner(ScriptedEngine([TWO]), registry(small=says("Peru.", "Sol")), allocator=always("small"))
    result = await invoked(planner, way, QUESTION)
    assert result["answer"] == "Sol"
    assert asked(result) == [
        ("small", "Which country has the capital Lima?"),
        ("small", "What currency is used in Peru?"),
    ]
    assert (result["routing"]["turns"], result["routing"]["stop_reason"]) == (2, "answered")


async def test_steps_that_need_no_other_are_asked_side_by_side_and_the_answer_joins_them() -> None:
    pool_of_two = registry(capitals=says("Lima"), currencies=says("Sol"))
    planner = create_planner(
        ScriptedEngine([BOTH]), pool_of_two, allocator=lambda step, _: ["capitals", "currencies"][step.number - 1]
    )
    result = planner.invoke(QUESTION)
    assert result["routing"]["turns"] == 1
    assert result["answer"] == "Lima and Sol"


def test_no_more_steps_are_asked_at_a_time_than_models_may_be() -> None:
    small = says("Lima", "Sol", "Lima")
    planner = create_planner(ScriptedEngine([JOIN]), registry(small=small), allocator=always("small"), max_parallel=1)
    result = planner.invoke(QUESTION)
    assert result["routing"]["turns"] == 3
    assert asked(result)[2] == ("small", "Which is longer, Lima or Sol?")
    assert {call["status"] for call in result["routing"]["calls"]} == {"ok"}


def test_the_plan_and_the_most_that_it_can_cost_are_an_event_before_the_first_call() -> None:
    planner = create_planner(ScriptedEngine([TWO]), registry(small=says("Peru", "Sol")), allocator=always("small"))
    events: list[Any] = list(planner.stream(QUESTION, stream_mode="custom"))
    assert [event["type"].removeprefix("router_r1.") for event in events][:3] == ["plan", "route", "info"]
    plan = events[0]
    assert [(step["text"], step["needs"], step["model"]) for step in plan["steps"]] == [
        ("Which country has the capital Lima?", [], "small"),
        ("What currency is used in #1?", [1], "small"),
    ]
    costs = [event["cost_usd"] for event in events if event["type"] == "router_r1.info"]
    assert plan["worst_case_usd"] == sum(step["worst_case_usd"] for step in plan["steps"])
    assert all(step["worst_case_usd"] >= cost > 0 for step, cost in zip(plan["steps"], costs, strict=True))
    assert plan["reason"] is None


@pytest.mark.parametrize("way", WAYS)
async def test_a_plan_over_the_budget_calls_nothing(way: str) -> None:
    small = ScriptedChatModel(["Peru", "Sol"])
    models = registry(small={"model": small, "price": 1.0, "params": {"max_tokens": 32}})
    planner = create_planner(ScriptedEngine([TWO, TWO]), models, allocator=always("small"))
    [plan] = [event for event in planner.stream(QUESTION, stream_mode="custom") if event["type"] == "router_r1.plan"]
    enough = plan["worst_case_usd"]
    planner = create_planner(ScriptedEngine([TWO, TWO]), models, allocator=always("small"))
    small.calls.clear()
    result = await invoked(planner, way, QUESTION, context=RouterContext(budget_usd=enough * 0.999))
    assert (small.calls, result["routing"]["stop_reason"]) == ([], "budget_exhausted")
    result = await invoked(planner, way, QUESTION, context=RouterContext(budget_usd=enough * 1.001))
    assert result["routing"]["stop_reason"] == "answered"


def test_a_budget_that_does_not_pay_for_a_plan_asks_the_question_whole() -> None:
    engine = ScriptedEngine([TWO])
    planner = create_planner(
        engine, registry(small=says("Sol")), allocator=always("small"), router_price=1e6, budget_usd=1.0
    )
    events: list[Any] = list(planner.stream(QUESTION, stream_mode="custom"))
    assert events[0]["reason"] == "the budget does not pay for a plan"
    assert events[-1]["answer"] == "Sol"
    assert events[-1]["routing"]["router_cost_usd"] == 0


def test_a_text_that_is_no_plan_asks_the_question_whole_and_the_record_says_why() -> None:
    planner = create_planner(ScriptedEngine(["Sorry."]), registry(small=says("Sol")), allocator=always("small"))
    result = planner.invoke(QUESTION, output_keys=RECORD_KEYS)
    record = RunRecord.of(result)
    assert [call["query"] for call in record.calls] == [QUESTION["messages"][0][1]]
    [plan] = [note["plan"] for note in record.decisions if note["plan"]]
    assert plan["reason"] == "it has no numbered step"


def test_a_failed_or_empty_step_is_asked_once_of_the_next_better_model() -> None:
    for faulty in (ScriptedChatModel([RuntimeError("down")]), ScriptedChatModel([""])):
        models = registry(small={"model": faulty, "price": 1.0}, huge=says(price=9.0), large=says("Sol", price=2.0))
        planner = create_planner(ScriptedEngine(["1. Currency of Peru?"]), models, allocator=always("small"))
        events: list[Any] = list(planner.stream(QUESTION, stream_mode="custom"))
        assert events[-1]["answer"] == "Sol"
        assert [call["model"] for call in events[-1]["routing"]["calls"]] == ["small", "large"]
        [thought] = [event["text"] for event in events if event["type"] == "router_r1.think"]
        assert "large is asked" in thought


def test_a_step_that_two_models_did_not_reply_to_ends_the_run_with_the_reason() -> None:
    models = registry(
        small={"model": ScriptedChatModel([RuntimeError("down")]), "price": 1.0},
        large={"model": ScriptedChatModel([""]), "price": 2.0},
        huge=says("Sol", price=9.0),
    )
    planner = create_planner(ScriptedEngine([TWO]), models, allocator=always("small"))
    events: list[Any] = list(planner.stream(QUESTION, stream_mode="custom"))
    assert (events[-1]["answer"], events[-1]["routing"]["stop_reason"]) == ("", "no_answer")
    thoughts = [event["text"] for event in events if event["type"] == "router_r1.think"]
    assert "Step 1 (Which country has the capital Lima?) can't be done: large gave an empty reply." in thoughts[-1]
    assert len(events[-1]["routing"]["calls"]) == 2


@pytest.mark.parametrize(
    ("review", "verdict", "models", "answer"),
    [
        ("never", "no", ["small"], "Dollar"),
        ("always", "Yes.", ["small", "large"], "Dollar"),
        ("always", " No, it is not.", ["small", "large", "large"], "Sol"),
        ("unsure", "no", ["small", "large", "large"], "Sol"),
        ("always", "nothing to say", ["small", "large"], "Dollar"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
async def test_a_review_by_the_next_better_model_decides_whether_it_does_the_step_itself(
    way: str, review: Any, verdict: str, models: list[str], answer: str
) -> None:
    large = ScriptedChatModel([verdict, "Sol"])
    planner = create_planner(
        ScriptedEngine(["1. Currency of Peru?"]),
        registry(small=says("Dollar"), large={"model": large, "price": 2.0}),
        allocator=always("small"),
        review=review,
    )
    result = await invoked(planner, way, QUESTION)
    assert (result["answer"], [call["model"] for call in result["routing"]["calls"]]) == (answer, models)
    if len(models) > 1:
        assert asked(result)[1][1] == (
            "Question: Currency of Peru?\n\nReply: Dollar\n\nIs the reply right? Say yes or no."
        )


def test_a_rejected_reply_is_kept_when_the_better_model_does_not_reply() -> None:
    large = ScriptedChatModel(["no", RuntimeError("down")])
    planner = create_planner(
        ScriptedEngine(["1. Currency of Peru?"]),
        registry(small=says("Dollar"), large={"model": large, "price": 2.0}, huge=says("Sol", price=9.0)),
        allocator=always("small"),
        review="always",
    )
    assert planner.invoke(QUESTION)["answer"] == "Dollar"


@dataclass
class Expects(Allocator):
    """Gives every step to "small", of which it expects this much."""

    accuracy: float

    def allocate(self, plan: Plan, view: View) -> Allocation:
        return Allocation(["small"] * len(plan.steps), [self.accuracy] * len(plan.steps))


@pytest.mark.parametrize(("accuracy", "finish", "calls"), [(0.9, "stop", 1), (0.7, "stop", 2), (0.9, "length", 2)])
def test_only_replies_that_are_cut_off_or_of_a_model_that_is_often_wrong_are_unsure(
    accuracy: float, finish: str, calls: int
) -> None:
    reply = AIMessage("Sol", response_metadata={"finish_reason": finish})
    models = registry(small={"model": ScriptedChatModel([reply]), "price": 1.0}, large=says("yes", price=2.0))
    planner = create_planner(
        ScriptedEngine(["1. Currency of Peru?"]), models, allocator=Expects(accuracy), review="unsure"
    )
    assert len(planner.invoke(QUESTION)["routing"]["calls"]) == calls


# Allocation


@given(st.text(max_size=200), st.integers(1, 8))
def test_any_text_of_an_allocator_names_registered_models_or_is_refused_in_words(text: str, steps: int) -> None:
    models, reason = read_allocation(text, steps, ALLOCATED)
    assert len(models) == steps
    assert set(models) <= {"small", "large"}
    assert reason is not None or len(text) > 5


ALLOCATED = registry(small=says(), large=says(price=9.0))


def test_an_llm_allocator_gives_the_steps_to_models_in_one_turn() -> None:
    models = registry(small=says("Peru"), large=says("Sol", price=9.0))
    planner = create_planner(
        ScriptedEngine([TWO]), models, allocator=ScriptedEngine(["1. small\n2. LARGE: the currency"]), router_price=1.0
    )
    result = planner.invoke(QUESTION, output_keys=[*RECORD_KEYS, "routing"])
    assert [call["model"] for call in result["routing"]["calls"]] == ["small", "large"]
    kinds = [(segment["kind"], segment.get("policy")) for segment in result["transcript"]]
    assert kinds == [("prompt", None), ("policy", "scripted"), ("prompt", None), ("policy", "scripted")]
    assert result["routing"]["router_cost_usd"] > 0
    prompt = result["transcript"][2]["text"]
    assert "small" in prompt
    assert TWO in prompt


def test_a_step_that_is_given_to_nobody_known_goes_to_the_most_expensive_model_and_the_reason_is_recorded() -> None:
    models = registry(small=says("Peru"), large=says("Sol", price=9.0))
    planner = create_planner(ScriptedEngine([TWO]), models, allocator=ScriptedEngine(["1. small\n2. oracle"]))
    result = planner.invoke(QUESTION, output_keys=[*RECORD_KEYS, "routing"])
    assert [call["model"] for call in result["routing"]["calls"]] == ["small", "large"]
    [reason] = {note["notes"]["allocation_reason"] for note in result["decisions"] if "turns" in (note["notes"] or {})}
    assert reason.startswith("step 2: ")
    assert "'oracle'" in reason


def test_a_function_that_names_no_model_is_an_error_that_names_it() -> None:
    planner = create_planner(ScriptedEngine([TWO]), registry(small=says()), allocator=always("oracle"))
    with pytest.raises(ValueError, match="the allocator chose 'oracle'"):
        planner.invoke(QUESTION)


def test_a_setting_that_is_wrong_is_named() -> None:
    models = registry(small=says())
    with pytest.raises(ValueError, match="allocator is 'random'; it must be 'knn', an engine, or a function"):
        create_planner(ScriptedEngine([]), models, allocator="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allocator is 'knn' and the registry has no profile"):
        create_planner(ScriptedEngine([]), models)
    with pytest.raises(ValueError, match="review is 'sometimes'"):
        create_planner(ScriptedEngine([]), models, allocator=always("small"), review="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_steps is 0"):
        create_planner(ScriptedEngine([]), models, allocator=always("small"), max_steps=0)
    with pytest.raises(TypeError, match="max_info_tokens"):
        create_planner(ScriptedEngine([]), models, allocator=always("small"), max_info_tokens=7)


# What every strategy gets from the graph


def approved(**settings: Any) -> tuple[Any, Any, ScriptedChatModel, Any]:
    small = ScriptedChatModel(["Peru", "Sol", "more"])
    models = registry(
        small={"model": small, "price": 1.0, "params": {"max_tokens": 32}}, large=says("Euro", "Euro", price=9.0)
    )
    planner = create_planner(
        ScriptedEngine([TWO]),
        models,
        allocator=always("small"),
        approve="always",
        checkpointer=InMemorySaver(),
        **settings,
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    return planner, config, small, planner.invoke(QUESTION, config)


def test_a_plan_waits_for_approval_and_its_calls_are_then_not_asked_about() -> None:
    planner, config, small, waiting = approved()
    [request] = waiting["__interrupt__"]
    [action] = request.value["action_requests"]
    assert action["name"] == "run_plan"
    assert action["args"]["steps"][1] == {"model": "small", "query": "What currency is used in #1?"}
    assert action["worst_case_usd"] > 0
    assert small.calls == []
    result = planner.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
    assert result["answer"] == "Sol"
    assert "__interrupt__" not in result


def test_a_person_may_edit_the_plan() -> None:
    planner, config, _, _ = approved()
    steps = [
        {"model": "small", "query": "Whose capital is Lima?"},
        {"model": "large", "query": "Currency of\n#1?"},
    ]
    edit = {"type": "edit", "edited_action": {"name": "run_plan", "args": {"steps": steps}}}
    result = planner.invoke(Command(resume={"decisions": [edit]}), config)
    assert asked(result) == [("small", "Whose capital is Lima?"), ("large", "Currency of Peru?")]
    assert result["answer"] == "Euro"


@pytest.mark.parametrize(
    ("decision", "why"),
    [
        ({"type": "edit", "edited_action": {"args": {"steps": [{"model": "oracle", "query": "?"}]}}}, "'oracle'"),
        ({"type": "edit", "edited_action": {"args": {"steps": [{"model": "small", "query": " "}]}}}, "a query that is"),
        (
            {
                "type": "edit",
                "edited_action": {
                    "args": {"steps": [{"model": "small", "query": "#2"}, {"model": "small", "query": "x"}]}
                },
            },
            "uses the result of step 2",
        ),
        ({"type": "edit", "edited_action": {"args": {"steps": []}}}, "it must be"),
        ({"type": "maybe"}, "it must be"),
    ],
)
def test_an_edit_that_cant_be_used_is_asked_for_again_with_the_reason(decision: Any, why: str) -> None:
    planner, config, small, _ = approved()
    again = planner.invoke(Command(resume={"decisions": [decision]}), config)
    [request] = again["__interrupt__"]
    assert why in request.value["error"]
    assert small.calls == []
    assert planner.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)["answer"] == "Sol"


def test_a_rejected_plan_calls_nothing_and_the_run_says_why() -> None:
    planner, config, small, _ = approved()
    reject: Any = Command(resume={"decisions": [{"type": "reject", "message": "too expensive"}]})
    events: list[Any] = list(planner.stream(reject, config, stream_mode="custom"))
    assert small.calls == []
    assert events[-1]["routing"]["stop_reason"] == "no_answer"
    assert "A person did not approve the plan: too expensive." in events[0]["text"]


def test_a_call_that_needs_approval_only_when_its_query_is_known_waits_and_a_rejection_ends_the_run() -> None:
    models = registry(small=says("Peru", "Sol"), large=says("Euro", price=9.0))
    planner = create_planner(
        ScriptedEngine([TWO]),
        models,
        allocator=always("small"),
        approve=lambda call: "Peru" in call.query,
        checkpointer=InMemorySaver(),
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    [request] = planner.invoke(QUESTION, config)["__interrupt__"]
    assert request.value["action_requests"][0]["args"]["query"] == "What currency is used in Peru?"
    result = planner.invoke(Command(resume={"decisions": [{"type": "reject"}]}), config)
    assert [call["status"] for call in result["routing"]["calls"]] == ["ok", "rejected"]
    assert (result["answer"], result["routing"]["stop_reason"]) == ("", "no_answer")


def test_a_model_one_tier_up_was_not_in_the_plan_and_needs_approval_of_its_own() -> None:
    models = registry(small={"model": ScriptedChatModel([""]), "price": 1.0}, large=says("Sol", price=9.0))
    planner = create_planner(
        ScriptedEngine(["1. Currency of Peru?"]),
        models,
        allocator=always("small"),
        approve="always",
        checkpointer=InMemorySaver(),
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    planner.invoke(QUESTION, config)
    approve: Any = Command(resume={"decisions": [{"type": "approve"}]})
    [request] = planner.invoke(approve, config)["__interrupt__"]
    assert [action["args"]["model"] for action in request.value["action_requests"]] == ["large"]
    assert planner.invoke(approve, config)["answer"] == "Sol"


@pytest.mark.parametrize("way", WAYS)
async def test_a_run_that_is_stopped_between_two_steps_goes_on_without_planning_again(way: str) -> None:
    engine = ScriptedEngine([TWO])
    small = ScriptedChatModel(["Peru", "Sol"])
    planner = create_planner(
        engine,
        registry(small={"model": small, "price": 1.0}),
        allocator=always("small"),
        checkpointer=InMemorySaver(),
        interrupt_before=["route"],
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    await invoked(planner, way, QUESTION, config)
    await invoked(planner, way, None, config)
    assert len(small.calls) == 1
    result = await invoked(planner, way, None, config)
    assert (result["answer"], len(small.calls)) == ("Sol", 2)


def test_a_recorded_plan_replays_with_its_event_and_without_any_model() -> None:
    planner = create_planner(
        ScriptedEngine([JOIN]), registry(small=says("Lima", "Sol", "Lima")), allocator=always("small"), router_price=1.0
    )
    record = RunRecord.of(planner.invoke(QUESTION, output_keys=RECORD_KEYS))
    record = RunRecord.model_validate_json(record.model_dump_json())
    events: list[Any] = list(replay(record).stream({"messages": [("user", record.question)]}, stream_mode="custom"))
    assert events[0]["type"] == "router_r1.plan"
    assert events[-1]["answer"] == record.answer == "Lima"
    assert events[-1]["routing"]["cost_usd"] == record.report["cost_usd"]


def test_the_last_step_is_streamed_as_the_answer_while_it_is_written() -> None:
    planner = create_planner(ScriptedEngine([TWO]), registry(small=says("Peru", "Sol")), allocator=always("small"))
    events: list[Any] = list(planner.stream(QUESTION, stream_mode="custom"))
    assert "".join(event["text"] for event in events if event["type"] == "router_r1.answer_delta") == "Sol"
    kinds = [event["type"].removeprefix("router_r1.") for event in events]
    assert kinds == ["plan", "route", "info", "route", "answer_delta", "info", "done"]


def test_with_tools_the_question_is_asked_whole() -> None:
    def price_of(item: str) -> str:
        """Return the price of an item."""
        return item

    planner = create_planner(ScriptedEngine([TWO]), registry(small=says("Sol")), allocator=always("small"))
    tools = make_tools([price_of])
    result = planner.invoke(QUESTION, context=RouterContext(tools=tools))
    assert asked(result) == [("small", QUESTION["messages"][0][1])]


def test_the_sums_of_the_account_hold() -> None:
    planner = create_planner(
        ScriptedEngine([JOIN]), registry(small=says("Lima", "Sol", "Lima")), allocator=always("small"), router_price=1.0
    )
    routing = planner.invoke(QUESTION)["routing"]
    calls = sum(call["cost_usd"] for call in routing["calls"])
    assert routing["cost_usd"] == pytest.approx(calls + routing["router_cost_usd"])
    assert routing["router_cost_usd"] > 0


def test_the_decomposer_of_a_broken_server_is_replaced_by_the_fallback() -> None:
    from langgraph_router_r1.engines import EngineUnavailableError

    def dies(_: Any) -> str:
        raise EngineUnavailableError("down")

    class InOrder:
        def rank(self, question: str, *, cost_weight: float) -> list[str]:
            return ["small"]

    planner = create_planner(
        ScriptedEngine(dies), registry(small=says("Sol")), allocator=always("small"), fallback=InOrder()
    )
    result = planner.invoke(QUESTION)
    assert (result["answer"], result["routing"]["stop_reason"]) == ("Sol", "degraded")


def test_the_record_names_the_policy() -> None:
    assert Planner(ScriptedEngine([]), Expects(0.9)).note()["policy"] == "scripted"


def test_a_pool_without_prices_has_no_better_model() -> None:
    planner = create_planner(ScriptedEngine(["1. a"]), pool(a="", b="x"), allocator=always("a"))
    assert planner.invoke(QUESTION)["routing"]["stop_reason"] == "no_answer"


@pytest.mark.parametrize("way", WAYS)
async def test_a_function_may_write_the_plan(way: str) -> None:
    def decompose(question: str) -> str:
        assert question == QUESTION["messages"][0][1]
        return TWO

    planner = create_planner(decompose, registry(small=says("Peru", "Sol")), allocator=always("small"))
    result = await invoked(planner, way, QUESTION)
    assert (result["answer"], result["routing"]["router_tokens"]["completion_tokens"]) == ("Sol", 0)


def test_a_plan_is_drawn_in_the_terminal_without_what_could_control_it() -> None:
    planner = create_planner(
        ScriptedEngine(["1. Capital of Peru?\x1b[2J"]), registry(small=says("Lima")), allocator=always("small")
    )
    console = Console(record=True, width=80, file=io.StringIO())
    trace = ConsoleTrace(console)
    for event in planner.stream(QUESTION, stream_mode="custom"):
        trace.show(event)
    shown = console.export_text()
    assert "# 1. Capital of Peru?[2J   (small)" in shown
    assert "\x1b" not in shown
