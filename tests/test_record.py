"""The record of a run holds everything about it, and runs again without any model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import answer, pool, search
from langgraph.checkpoint.memory import InMemorySaver

from langgraph_router_r1 import EngineError, ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.ledger import sum_of
from langgraph_router_r1.record import RECORD_KEYS, RunRecord
from langgraph_router_r1.replay import ReplayError, replay
from langgraph_router_r1.strategies import Answer, Ask, Call, Strategy, View
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "What currency is used in the country whose capital is Lima?")]}


def router(*turns: str, **settings: Any) -> Any:
    registry = ModelRegistry(
        [
            ModelDescriptor(name="small", model=ScriptedChatModel(["Peru", "Sol"]), price=0.3),
            ModelDescriptor(name="broken", model=ScriptedChatModel([ValueError("gone")]), price=1.0, max_retries=0),
        ]
    )
    return create_router(ScriptedEngine(turns), registry, router_price=0.01, **settings)


TURNS = {
    "two calls, one after the other": (search("small: Whose capital is Lima?"), search("small: Money?"), answer("Sol")),
    "a turn of several calls": (search("small: A?", "broken: B?", "nobody: C?", "small: D?"), answer("Sol")),
    "a turn that could not be read": ("I do not know.", search("small: A?"), answer("Sol")),
    "an answer at once": (answer("Sol"),),
}  # fmt: skip


def same(record: RunRecord) -> dict[str, Any]:
    """Return what a replay has to repeat: all but the times, and who decided."""
    fields = record.model_dump(exclude={"strategy": True, "decisions": {"__all__": {"at"}}, "limits": True})
    return {**fields, "price": record.strategy["price"]}


def test_a_result_without_the_keys_of_a_record_says_how_to_get_them() -> None:
    with pytest.raises(KeyError, match="no 'limits', 'strategy': invoke the router with output_keys=RECORD_KEYS"):
        RunRecord.of(router(answer("Sol")).invoke(QUESTION))


@pytest.mark.parametrize("question", ["Who?\n", "  Who? <answer> me </answer>", "Who\u0000?", "Who \ud83d?"])
def test_a_question_of_whatever_characters_replays(question: str) -> None:
    asked: Any = {"messages": [("user", question)]}
    record = RunRecord.of(router(answer("Sol")).invoke(asked, output_keys=RECORD_KEYS))
    assert replay(record).invoke({"messages": [("user", record.question)]})["answer"] == "Sol"


def test_a_replay_answers_the_question_of_its_record_and_no_other() -> None:
    record = RunRecord.of(router(answer("Sol")).invoke(QUESTION, output_keys=RECORD_KEYS))
    with pytest.raises(ReplayError, match=r"the record is of the question 'What currency .*', and not of 'Who\?'"):
        replay(record).invoke({"messages": [("user", "Who?")]})


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_finished_run_replays_from_its_record_token_for_token_and_cent_for_cent(
    turns: tuple[str, ...], is_async: bool
) -> None:
    result = router(*turns, max_parallel=3).invoke(QUESTION, output_keys=RECORD_KEYS)
    record = RunRecord.of(result)
    read = RunRecord.model_validate_json(record.model_dump_json())
    assert read == record
    again = replay(read)
    asked: Any = {"messages": [("user", read.question)]}
    played = (
        await again.ainvoke(asked, output_keys=RECORD_KEYS)
        if is_async
        else again.invoke(asked, output_keys=RECORD_KEYS)
    )
    assert same(RunRecord.of(played)) == same(record)
    assert played["transcript"] == result["transcript"]


def test_a_record_says_what_was_asked_decided_called_paid_and_answered() -> None:
    turns = TURNS["two calls, one after the other"]
    record = RunRecord.of(router(*turns, cost_weight=0.3).invoke(QUESTION, output_keys=RECORD_KEYS))
    assert record.question == QUESTION["messages"][0][1]
    assert record.limits["cost_weight"] == 0.3
    assert (record.strategy["name"], record.strategy["policy"]) == ("RouterLLM", "scripted")
    assert [decision["kind"] for decision in record.decisions] == ["ask", "ask", "answer"]
    assert [call["response"] for call in record.calls] == ["Peru", "Sol"]
    assert [segment["kind"] for segment in record.segments] == [
        "prompt",
        "policy",
        "observation",
        "policy",
        "observation",
        "policy",
    ]
    assert (record.answer, record.report["stop_reason"]) == ("Sol", "answered")
    spent = sum(call["cost_usd"] for call in record.calls) + record.report["router_cost_usd"]
    assert record.report["cost_usd"] == pytest.approx(spent)
    for call in record.calls:
        assert sum_of(call["list_cost_parts"]) == call["list_cost_usd"] > 0


def test_the_events_of_a_replay_are_those_of_the_run() -> None:
    run = router(*TURNS["a turn of several calls"])
    events: list[Any] = []
    values: Any = {}
    for mode, chunk in run.stream(QUESTION, stream_mode=["custom", "values"], output_keys=RECORD_KEYS):
        if mode == "custom":
            events.append(chunk)
        else:
            values = chunk
    record = RunRecord.of(values)
    replayed = list(replay(record).stream({"messages": [("user", record.question)]}, stream_mode="custom"))
    for event in [*events, *replayed]:
        event.pop("message_id", None)  # each run's own
    in_order = [sorted(map(str, stream)) for stream in (events, replayed)]  # calls of a turn end in any order
    assert in_order[0] == in_order[1]


def test_a_run_of_a_strategy_without_an_llm_replays_too() -> None:
    class AskAll(Strategy):
        def decide(self, view: View) -> Any:
            if view.calls:
                return Answer(" ".join(view.replies), reply="whole")
            return Ask([Call(name, view.question) for name in view.registry.names])

    run = create_router(strategy=AskAll(), registry=pool(a="x", b="y"))
    record = RunRecord.of(run.invoke(QUESTION, output_keys=RECORD_KEYS))
    assert record.strategy["name"] == "AskAll"
    played = replay(record).invoke({"messages": [("user", record.question)]})
    assert played["answer"] == "x y"
    assert played["messages"][-1].response_metadata["reply"] == "whole"


def test_a_run_that_broke_off_has_a_record_of_what_it_spent_and_its_replay_ends_where_it_did() -> None:
    class Dies(Strategy):
        def decide(self, view: View) -> Any:
            if view.calls:
                raise EngineError("gone")
            return Ask.one("a", view.question)

    run = create_router(strategy=Dies(), registry=pool(a="x"), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(EngineError):
        run.invoke(QUESTION, config)
    record = RunRecord.of(run.get_state(config).values)
    assert [call["response"] for call in record.calls] == ["x"]
    assert record.report["cost_usd"] == record.calls[0]["cost_usd"] > 0
    assert record.report["stop_reason"] is None
    with pytest.raises(ReplayError, match="the record has 1 decisions, and no answer after them"):
        replay(record).invoke({"messages": [("user", record.question)]})


def test_the_record_of_a_thread_is_that_of_its_latest_question() -> None:
    run = router(answer("one"), search("small: A?"), answer("two"), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    for text in ("first?", "second?"):
        run.invoke({"messages": [("user", text)]}, config)
    record = RunRecord.of(run.get_state(config).values)
    assert (record.question, record.answer) == ("second?", "two")
    assert [decision["kind"] for decision in record.decisions] == ["ask", "answer"]


def test_another_version_of_the_record_is_refused() -> None:
    record = RunRecord.of(router(answer("Sol")).invoke(QUESTION, output_keys=RECORD_KEYS))
    with pytest.raises(ValueError, match="version"):
        RunRecord.model_validate({**record.model_dump(), "version": 2})


def test_a_record_of_before_there_were_tools_and_approval_is_read_and_replays() -> None:
    record = RunRecord.of(router(*TURNS["a turn of several calls"]).invoke(QUESTION, output_keys=RECORD_KEYS))
    old = json.loads(record.model_dump_json())
    for call in old["calls"]:
        del call["tool_calls"], call["review"]
    for decision in old["decisions"]:
        del decision["tool_calls"]
    read = RunRecord.model_validate_json(json.dumps(old))
    assert read == record
    assert replay(read).invoke({"messages": [("user", read.question)]})["answer"] == record.answer
