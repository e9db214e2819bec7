"""Recorded answers: a model that is recorded says what it said, at what it cost, and never anything else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, search
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.cache.memory import InMemoryCache

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price, create_router
from langgraph_router_r1.calls import CallCache, ModelCall
from langgraph_router_r1.calls.client import Client
from langgraph_router_r1.evaluation.recorded import (
    TEXT_NOT_RECORDED,
    NotRecordedError,
    Outcome,
    RecordedPool,
    outcome_cost,
)
from langgraph_router_r1.evaluation.recorder import Recorder
from langgraph_router_r1.evaluation.tasks import Task, TaskError
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

RUN: Any = {"metadata": {"task_id": "t1"}}


def pool() -> RecordedPool:
    def outcome(text: str, prompt: int, completion: int) -> dict[str, Any]:
        cost = (2 * prompt + 5 * completion) * 1e-6
        return {"response": text, "prompt_tokens": prompt, "completion_tokens": completion, "cost_usd": cost}

    rows = [
        {"id": "t1", "question": "Capital of Peru?", "golden_answers": ["Lima"],
         "outcomes": {"small": outcome("It is\nLima.", 10, 4)}},
        {"id": "t2", "question": "Capital of Chile?", "golden_answers": ["Santiago"],
         "outcomes": {"small": outcome("No idea.", 11, 2)}},
    ]  # fmt: skip
    return RecordedPool.from_rows(rows)


def test_a_recorded_model_says_what_it_said_at_the_price_of_the_record() -> None:
    small = pool().registry()["small"]
    assert small.price == Price(prompt=2.0, completion=5.0)
    reply = small.model.invoke("whatever", RUN)
    assert reply.text == "It is\nLima."
    assert reply.usage_metadata == {"input_tokens": 10, "output_tokens": 4, "total_tokens": 14}


def test_a_reply_to_a_long_prompt_whose_cost_was_not_recorded_costs_what_its_tier_says() -> None:
    price = Price.parse({"prompt": 2, "completion": 5, "tiers": [{"above": 100, "prompt": 4, "completion": 7}]})
    assert outcome_cost(Outcome("Lima", prompt_tokens=101, completion_tokens=3), price) == pytest.approx(425e-6)


def test_a_length_makes_a_candidate_whose_replies_are_cut_and_cost_what_is_left() -> None:
    short = pool().with_lengths({"short": 3})
    assert short.models == ("small", "small (short)")
    assert short.outcomes["t1"]["small"] == pool().outcomes["t1"]["small"]
    cut = short.outcome("t1", "small (short)")
    assert (cut.response, cut.completion_tokens, cut.cost_usd) == ("It is\nL", 3, pytest.approx(35e-6))
    assert short.outcome("t2", "small (short)") == pool().outcome("t2", "small")  # it was short enough
    limited = short.registry()["small (short)"]
    assert limited.max_tokens == 3
    assert limited.price == Price(prompt=2.0, completion=5.0)
    assert limited.model.invoke("whatever", RUN).usage_metadata["output_tokens"] == 3
    assert short.registry()["small"].params == {}


def test_a_reply_that_was_cut_keeps_no_score_of_the_whole_one() -> None:
    scored = {"completion_tokens": 9, "cost_usd": 9e-6, "score": 1.0}
    rows = [{"id": "t1", "question": "?", "golden_answers": [], "outcomes": {"small": scored}}]
    limited = RecordedPool.from_rows(rows).with_lengths({"short": 8, "long": 9})
    assert limited.outcome("t1", "small (short)").score == 0
    assert limited.outcome("t1", "small (long)").score == 1


def test_lengths_need_a_record_of_how_long_replies_are_and_names_of_their_own() -> None:
    rows = [{"id": "t1", "question": "?", "golden_answers": [], "outcomes": {"small": {"score": 1.0}}}]
    with pytest.raises(ValueError, match="does not say how many tokens each reply of 'small' has"):
        RecordedPool.from_rows(rows).with_lengths({"short": 8})
    with pytest.raises(
        ValueError, match=r"has a model 'small \(short\)' already: give the length 'short' another name"
    ):
        pool().with_lengths({"short": 3}).with_lengths({"short": 2})


def test_a_length_has_the_price_and_the_words_of_its_model_and_says_how_long_it_is() -> None:
    rows = [{"id": "t1", "question": "?", "golden_answers": [], "outcomes": {"small": {"completion_tokens": 9}}}]
    given: Any = {"prices": {"small": 2.0}, "descriptions": {"small": "Quick."}}
    limited = RecordedPool.from_rows(rows).with_lengths({"short": 8}).registry(**given)["small (short)"]
    assert limited.price == Price.parse(2.0)
    assert limited.describe().startswith("- Quick. Replies of at most 8 tokens. ")


def test_a_router_asks_for_a_length_by_name_and_gets_so_much() -> None:
    turns = [search("small (short): Capital of Peru?"), answer("Lima")]
    router = create_router(ScriptedEngine(turns), pool().with_lengths({"short": 3}).registry())
    result = router.invoke({"messages": [("user", "Capital of Peru?")]}, RUN)
    (routed,) = result["routing"]["calls"]
    assert (routed["model"], routed["response"]) == ("small (short)", "It is\nL")
    assert routed["cost_usd"] == pytest.approx(35e-6)


def test_a_recorded_models_skills_are_measured_on_the_train_split_alone() -> None:
    def rows(right: Any) -> list[dict[str, Any]]:
        paid = {"completion_tokens": 1, "cost_usd": 1e-6}
        return [
            {"id": f"t{n}", "question": f"question {n}?", "golden_answers": ["yes"], "dataset": "mine",
             "outcomes": {"small": {"response": "Yes." if right(n) else "No.", **paid}}}
            for n in range(60)
        ]  # fmt: skip

    blank = RecordedPool.from_rows(rows(lambda n: False))
    train = {int(task.id[1:]) for task in blank.tasks.values() if task.split == "train"}
    recorded = RecordedPool.from_rows(rows(lambda n: n not in train or n % 2))
    expected = sum(n % 2 for n in train) / len(train)
    assert recorded.registry()["small"].skills == {"mine": pytest.approx(expected, abs=0.005)}


def test_through_the_router_the_reply_is_the_tasks_whatever_is_asked() -> None:
    turns = [search("small: Something else entirely?"), answer("Lima")]
    for run in (
        lambda router: router.invoke({"messages": [("user", "Capital of Peru?")]}, RUN),
        lambda router: asyncio.run(router.ainvoke({"messages": [("user", "Capital of Peru?")]}, RUN)),
    ):
        [routed] = run(create_router(ScriptedEngine(turns), pool().registry()))["routing"]["calls"]
        assert (routed["response"], routed["status"]) == ("It is\nLima.", "ok")
        assert routed["cost_usd"] == pytest.approx(40e-6)


def test_a_recorded_model_streams_its_reply_with_its_usage() -> None:
    model = pool().registry()["small"].model

    async def streamed() -> list[Any]:
        return [chunk async for chunk in model.astream("?", RUN)]

    for chunks in (list(model.stream("?", RUN)), asyncio.run(streamed())):
        assert len(chunks) > 2
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        assert whole.text == "It is\nLima."
        assert whole.usage_metadata["output_tokens"] == 4


def test_what_is_not_recorded_is_an_error_and_no_reply() -> None:
    model = pool().registry()["small"].model
    with pytest.raises(NotRecordedError, match="does not say which task"):
        model.invoke("?")
    with pytest.raises(NotRecordedError, match=r"task 't3' is not in records, which holds 2 tasks"):
        model.invoke("?", {"metadata": {"task_id": "t3"}})
    with pytest.raises(NotRecordedError, match=r"no reply of 'large' to task 't1', only of 'small'"):
        pool().outcome("t1", "large")


def test_scores_alone_make_a_pool_whose_replies_say_so() -> None:
    scores = RecordedPool.from_rows([{"id": "t1", "question": "Q?", "gold": "x", "scores": {"a": 0.5, "b": 1}}])
    assert scores.outcomes["t1"]["a"].score == 0.5
    with pytest.raises(ValueError, match=r"does not say what 'a' cost: give its price"):
        scores.registry()
    registry = scores.registry(prices={"a": 1.0, "b": "free"})
    assert registry["a"].model.invoke("?", RUN).text == TEXT_NOT_RECORDED


def test_costs_that_follow_no_price_are_refused() -> None:
    rows = [
        {
            "id": str(n),
            "question": f"{n}?",
            "outcomes": {"a": {"response": "x", "completion_tokens": 10, "cost_usd": n}},
        }
        for n in (1, 2)
    ]
    with pytest.raises(ValueError, match=r"the costs of 'a' in records follow no price per token"):
        RecordedPool.from_rows(rows).registry()


def test_wrong_records_are_named() -> None:
    with pytest.raises(TaskError, match="row 1: 'outcomes' is missing"):
        RecordedPool.from_rows([{"question": "Q?"}])
    with pytest.raises(TaskError, match=r"the score of 'a' is 'good'; it must be a number"):
        RecordedPool.from_rows([{"question": "Q?", "scores": {"a": "good"}}])


def test_what_a_recorder_wrote_a_recorded_pool_replays(tmp_path: Path) -> None:
    # Of the test split: no skill is learned from it.
    task = Task("t1", "What is the capital of Peru?", ("Lima",), "mine")
    real = ModelRegistry([ModelDescriptor(name="small", model=ScriptedChatModel(["It is Lima."]), price=1.0)])
    turns = [search(f"small: {task.question}"), answer("Lima")]
    with Recorder(tmp_path / "answers.jsonl", [task]) as recorder:
        live = create_router(ScriptedEngine(turns), real, middleware=[recorder]).invoke(
            {"messages": [("user", task.question)]}, RUN
        )
    recorded = RecordedPool.from_file(tmp_path / "answers.jsonl")
    replayed = create_router(ScriptedEngine(turns), recorded.registry(prices={"small": 1.0})).invoke(
        {"messages": [("user", task.question)]}, RUN
    )
    for result in (live, replayed):
        result["routing"]["calls"][0]["latency_s"] = 0.0
    assert live["routing"] == replayed["routing"]
    assert json.loads((tmp_path / "answers.jsonl").read_text())["golden_answers"] == ["Lima"]


def test_what_a_model_says_to_a_part_of_a_task_is_not_what_it_says_to_the_task(tmp_path: Path) -> None:
    task = Task("t1", "What currency is used in the country whose capital is Lima?", ("Sol",), "mine")
    model = ScriptedChatModel(["Peru", "Sol"])
    real = ModelRegistry([ModelDescriptor(name="small", model=model, price=1.0)])
    turns = [search("small: Whose capital is Lima?"), search("small: What currency is used in Peru?"), answer("Sol")]
    with Recorder(tmp_path / "answers.jsonl", [task]) as recorder:
        result = create_router(ScriptedEngine(turns), real, middleware=[recorder]).invoke(
            {"messages": [("user", task.question)]}, RUN
        )
    assert [routed["response"] for routed in result["routing"]["calls"]] == ["Peru", "Sol"]
    assert not (tmp_path / "answers.jsonl").read_text()


def test_an_id_belongs_to_one_question() -> None:
    row = {"id": "1", "question": "A?", "golden_answers": ["x"], "outcomes": {"a": {"response": "x"}}}
    with pytest.raises(TaskError, match=r"task '1' is another question already, 'A\?'"):
        RecordedPool.from_rows([row, {**row, "question": "B?"}])


@pytest.mark.parametrize("wrong", [{"completion_tokens": "12"}, {"cost_usd": -1.0}, {"score": float("nan")}])
def test_a_record_that_is_no_number_is_refused(wrong: dict[str, Any]) -> None:
    row = {"id": "1", "question": "A?", "golden_answers": ["x"], "outcomes": {"a": {"response": "x", **wrong}}}
    with pytest.raises(TaskError, match=f"{next(iter(wrong))!r} of 'a' is|the score of 'a' is"):
        RecordedPool.from_rows([row])


# Remembering


def test_the_same_question_to_the_same_model_is_asked_once_and_listed_at_its_price() -> None:
    model = ScriptedChatModel(["Lima", "Quito"])
    registry = ModelRegistry([ModelDescriptor(name="small", model=model, price=1.0)])
    turns = [search("small: Peru?"), search("small: Peru?"), answer("Lima")]
    router = create_router(ScriptedEngine(turns), registry, middleware=[CallCache(InMemoryCache())])
    routing = router.invoke({"messages": [("user", "Peru?")]})["routing"]
    first, second = routing["calls"]
    assert len(model.calls) == 1
    assert first["response"] == second["response"] == "Lima"
    assert first["cost_usd"] == first["list_cost_usd"] == second["list_cost_usd"] > second["cost_usd"] == 0


async def test_identical_calls_in_flight_are_made_once_and_a_failed_one_is_made_again() -> None:
    calls = 0

    async def slow(_: Any) -> AIMessage:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.02)
        if calls == 1:
            raise ConnectionError("gone")
        return AIMessage("Lima")

    model = ModelDescriptor(name="small", model=RunnableLambda(slow), price=1.0)
    cache, client = CallCache(InMemoryCache()), Client(model)
    results = await asyncio.gather(
        *(cache.awrap_call(ModelCall(model, "Peru?"), client.asend) for _ in range(8)), return_exceptions=True
    )
    assert calls == 2
    assert [type(result) for result in results].count(ConnectionError) == 1
    assert [result.text for result in results if isinstance(result, AIMessage)] == ["Lima"] * 7
