"""Who is asked when something fails, in which order, how often, and whose words count in the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from conftest import answer, pool, search
from langchain_core.exceptions import ModelRateLimitError
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.engines import EngineUnavailableError
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.strategies import View
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "Capital of Peru?")]}
CALL: Any = {"turn": 3, "index": 2, "model": "m", "query": "Capital of Peru?", "refusal": None}


# Models with fallbacks of their own


def with_fallbacks(*models: Any, **fields: Any) -> Candidates:
    """A model `m` and its fallbacks `f1`, `f2`, ... in this order."""
    names = ["m", *(f"f{place}" for place in range(1, len(models)))]
    registry = ModelRegistry(
        ModelDescriptor(name=name, model=model, price=1.0, fallbacks=tuple(names[1:]) if name == "m" else (), **fields)
        for name, model in zip(names, models, strict=True)
    )
    return Candidates(registry, count_tokens=len)


async def routed_calls(*models: Any, **fields: Any) -> list[Any]:
    """What comes of the call when it is made blocking, and when it is not."""
    candidates = with_fallbacks(*models, **fields)
    return [candidates.ask(CALL), await candidates.aask(CALL)]


async def test_fallbacks_are_asked_in_order_until_one_replies() -> None:
    asked: list[str] = []

    def failing(name: str) -> RunnableLambda[Any, Any]:
        def reply(_: Any) -> str:
            asked.append(name)
            raise ValueError(name)

        return RunnableLambda(reply)

    never = ScriptedChatModel(["never"])
    for routed in await routed_calls(failing("m"), failing("f1"), ScriptedChatModel(["Lima"]), never):
        assert (routed["status"], routed["response"], routed["answered_by"], routed["model"]) == (
            "ok",
            "Lima",
            "f2",
            "m",
        )
    assert asked == ["m", "f1"] * 2
    assert never.calls == []


async def test_when_all_fail_the_call_says_why_the_model_itself_failed() -> None:
    """The router asked for this one: what its last fallback said tells it nothing."""
    limited, broken = ScriptedChatModel([ModelRateLimitError("429")]), ScriptedChatModel([ValueError("x")])
    for routed in await routed_calls(limited, broken, broken):
        assert (routed["status"], routed["reason"]) == ("error", "m is rate limited (429)")
        assert (routed["answered_by"], routed["cost_usd"], routed["response"]) == (None, 0, "")
        assert routed["latency_s"] > 0


def test_the_worst_case_of_a_call_is_that_of_the_most_expensive_model_that_may_answer() -> None:
    registry = ModelRegistry(
        [
            ModelDescriptor(name="cheap", model=ScriptedChatModel(["x"]), price=1.0, fallbacks=("expensive",)),
            ModelDescriptor(name="expensive", model=ScriptedChatModel(["x"]), price=50.0),
            ModelDescriptor(name="unlimited", model=RunnableLambda(lambda _: "x"), price=0.1),
            ModelDescriptor(name="free", model=ScriptedChatModel(["x"]), price="free", fallbacks=("unlimited",)),
        ]
    )
    candidates = Candidates(registry, count_tokens=len)
    assert candidates.worst_case("cheap", "a?") == candidates.worst_case("expensive", "a?") > 0
    assert candidates.worst_case("unlimited", "a?") == candidates.worst_case("free", "a?") == float("inf")
    view = View([], registry, Limits(), worst_case=candidates.worst_case)
    assert view.least_worst_case_usd == candidates.worst_case("cheap", "?")


async def test_a_routed_call_carries_the_place_and_the_query_of_its_call() -> None:
    for routed in [
        *await routed_calls(ScriptedChatModel(["Lima"])),
        *await routed_calls(ScriptedChatModel([ValueError("x")])),
    ]:
        assert (routed["turn"], routed["index"], routed["model"], routed["query"]) == (3, 2, "m", "Capital of Peru?")


async def test_a_call_that_was_refused_is_not_made() -> None:
    model = ScriptedChatModel(["Lima"])
    candidates = with_fallbacks(model)
    refused = {**CALL, "refusal": {"status": "denied", "reason": "one too many"}}
    for routed in (candidates.ask(refused), await candidates.aask(refused)):
        assert (routed["status"], routed["reason"], routed["cost_usd"], routed["latency_s"]) == (
            "denied",
            "one too many",
            0,
            0,
        )
    assert model.calls == []


async def test_the_query_is_all_that_a_model_is_told_and_its_call_is_named_in_traces() -> None:
    model = ScriptedChatModel(["Lima"])
    candidates = with_fallbacks(model)
    candidates.ask(CALL)
    await candidates.aask(CALL)
    for [message] in model.calls:
        assert message.type == "human"
        assert message.text.endswith("\n\nCapital of Peru?")


# How often a provider is asked


@contextmanager
def provider(*statuses: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A provider on loopback that replies with these statuses in turn, and its requests so far."""
    requests: list[dict[str, Any]] = []
    body = {
        "id": "1", "object": "chat.completion", "created": 1, "model": "x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Lima"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({**sent, "key": self.headers["Authorization"], "path": self.path})
            status = statuses[(len(requests) - 1) % len(statuses)]
            reply = json.dumps(body if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hosted(url: str, **fields: Any) -> ModelDescriptor:
    return ModelDescriptor(name="m", model="openai:x", base_url=url, price=1.0, **fields)


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.usefixtures("collected")
async def test_a_provider_is_asked_as_often_as_the_descriptor_says_and_never_more(retries: int) -> None:
    """A client that tries again by itself makes calls that are paid for and in no account."""
    with provider(500) as (url, requests):
        candidates = Candidates(ModelRegistry([hosted(url, max_retries=retries)]), count_tokens=len)
        for routed in (candidates.ask(CALL), await candidates.aask(CALL)):
            assert (routed["status"], routed["reason"]) == ("error", "m had a server error (5xx)")
        assert len(requests) == 2 * (retries + 1)


@pytest.mark.usefixtures("collected")
def test_a_model_given_by_a_string_is_set_up_as_its_descriptor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_R1_TEST_KEY", "a key")
    with provider(200) as (url, requests):
        for fields in ({}, {"params": {"max_tokens": 33, "temperature": 0.5}, "api_key_env": "ROUTER_R1_TEST_KEY"}):
            routed = Candidates(ModelRegistry([hosted(url, **fields)]), count_tokens=len).ask(CALL)
            assert (routed["status"], routed["response"]) == ("ok", "Lima")
    plain, set_up = requests
    assert (plain["path"], plain["model"], plain["key"]) == ("/v1/chat/completions", "x", "Bearer none")
    assert (plain["temperature"], plain["max_completion_tokens"]) == (0, 512)
    assert (set_up["temperature"], set_up["max_completion_tokens"]) == (0.5, 33)
    assert set_up["key"] == "Bearer a key"


async def test_a_retry_is_made_for_each_passing_failure_up_to_the_limit_and_then_a_fallback_is_asked() -> None:
    busy = ScriptedChatModel([ModelRateLimitError("429")])
    candidates = with_fallbacks(busy, ScriptedChatModel(["Lima"]), max_retries=1)
    assert candidates.ask(CALL)["answered_by"] == "f1"
    assert len(busy.calls) == 2


# Without the router LLM


class Order:
    """A fallback that always gives the same order, or fails."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.weights: list[float] = []

    def rank(self, question: str, *, cost_weight: float) -> Sequence[str]:
        self.weights.append(cost_weight)
        if not self.names:
            raise RuntimeError("no order")
        return self.names


def dies_after(turns: Sequence[str]) -> ScriptedEngine:
    def write(transcript: Any) -> str:
        done = sum(segment["kind"] == "policy" for segment in transcript)
        if done == len(turns):
            raise EngineUnavailableError("down")
        return turns[done]

    return ScriptedEngine(write)


async def degraded(turns: Sequence[str], registry: ModelRegistry, fallback: Any, **settings: Any) -> list[Any]:
    """What comes of a run whose router dies after these turns, blocking and not."""
    make = lambda: create_router(dies_after(turns), registry, fallback=fallback, **settings)  # noqa: E731
    return [make().invoke(QUESTION), await make().ainvoke(QUESTION)]


def asked(result: Any) -> list[tuple[str, str]]:
    return [(routed["model"], routed["status"]) for routed in result["routing"]["calls"]]


async def test_a_fallback_that_fails_leaves_the_cheapest_to_be_asked_first() -> None:
    registry = ModelRegistry(
        [
            ModelDescriptor(name="middle", model=ScriptedChatModel([ValueError("x")]), price=2.0),
            ModelDescriptor(name="most", model=ScriptedChatModel(["never"]), price={"prompt": 0.1, "completion": 9.0}),
            ModelDescriptor(name="least", model=ScriptedChatModel([ValueError("x")]), price=0.5),
            ModelDescriptor(name="third", model=ScriptedChatModel(["Lima"]), price={"prompt": 3.0, "completion": 2.0}),
        ]
    )
    for result in await degraded([], registry, Order()):
        assert asked(result) == [("least", "error"), ("middle", "error"), ("third", "ok")]
        assert (result["answer"], result["routing"]["stop_reason"]) == ("Lima", "degraded")


async def test_the_order_of_the_fallback_is_kept_and_at_most_three_are_asked() -> None:
    registry = pool(a=ValueError("x"), b=ValueError("x"), c=ValueError("x"), d="never")
    fallback = Order("c", "nobody", "A", "c", "b", "d")
    for result in await degraded([], registry, fallback, cost_weight=0.7):
        assert asked(result) == [("c", "error"), ("a", "error"), ("b", "error")]
        assert (result["answer"], result["routing"]["stop_reason"], result["routing"]["turns"]) == ("", "degraded", 3)
    assert fallback.weights == [0.7, 0.7]


async def test_a_fallback_that_knows_none_of_the_models_leaves_the_pool_in_order_of_price() -> None:
    for result in await degraded([], pool(a="Lima"), Order("somebody else")):
        assert (asked(result), result["answer"]) == ([("a", "ok")], "Lima")


async def test_the_fallback_asks_the_whole_question_until_one_replies() -> None:
    first, second, third = ScriptedChatModel([""]), ScriptedChatModel(["Lima"]), ScriptedChatModel(["never"])
    for result in await degraded([], pool(a=first, b=second, c=third), Order("a", "b", "c")):
        assert asked(result) == [("a", "error"), ("b", "ok")]
        assert [routed["query"] for routed in result["routing"]["calls"]] == ["Capital of Peru?"] * 2
        assert [routed["turn"] for routed in result["routing"]["calls"]] == [0, 1]
    assert third.calls == []


async def test_when_the_fallback_gets_no_reply_the_last_good_one_of_before_is_the_answer() -> None:
    turns = [search("a: one?"), search("b: two?", "c: three?")]
    for result in await degraded(turns, pool(a="first", b="second", c=ValueError("x")), Order("c")):
        assert asked(result) == [("a", "ok"), ("b", "ok"), ("c", "error"), ("c", "error")]
        assert (result["answer"], result["routing"]["stop_reason"]) == ("second", "degraded")


async def test_the_fallback_asks_what_the_budget_pays_for_to_the_last_cent() -> None:
    registry = ModelRegistry(
        ModelDescriptor(name=name, model=ScriptedChatModel([name]), price=price, params={"max_tokens": 50})
        for name, price in (("expensive", 9.0), ("cheap", 1.0))
    )
    worst = Candidates(registry, len).worst_case("cheap", "Capital of Peru?")
    for result in await degraded([], registry, Order("expensive", "cheap"), budget_usd=worst):
        assert (asked(result), result["answer"]) == ([("cheap", "ok")], "cheap")
    for result in await degraded([], registry, Order("expensive", "cheap"), budget_usd=worst * 0.999):
        assert (asked(result), result["answer"], result["routing"]["stop_reason"]) == ([], "", "degraded")
    free = ModelRegistry([ModelDescriptor(name="free", model=ScriptedChatModel(["Lima"]), price="free")])
    for result in await degraded([], free, Order("free"), budget_usd=0.0):
        assert result["answer"] == "Lima"


async def test_what_was_spent_before_the_router_died_is_not_spent_again() -> None:
    registry = ModelRegistry(
        [ModelDescriptor(name="m", model=ScriptedChatModel(["word " * 50]), price=1.0, params={"max_tokens": 50})]
    )
    worst = Candidates(registry, len).worst_case("m", "Capital of Peru?")
    for result in await degraded([search("m: a?")], registry, Order("m"), budget_usd=1.2 * worst):
        assert asked(result) == [("m", "ok")]
        assert (result["answer"].split(), result["routing"]["cost_usd"] < 1.2 * worst) == (["word"] * 50, True)


async def test_a_fallback_is_asked_for_nothing_while_the_router_answers() -> None:
    fallback = Order()
    result = create_router(ScriptedEngine([answer("Lima")]), pool(a="x"), fallback=fallback).invoke(QUESTION)
    assert (result["answer"], result["routing"]["stop_reason"], fallback.weights) == ("Lima", "answered", [])


def test_after_a_degraded_run_the_next_question_is_the_routers_again() -> None:
    turns = iter([EngineUnavailableError("down"), answer("two")])

    def write(_: Any) -> str:
        turn = next(turns)
        if isinstance(turn, Exception):
            raise turn
        return turn

    router = create_router(ScriptedEngine(write), pool(a="one"), fallback=Order("a"), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    assert router.invoke({"messages": [("user", "first?")]}, config)["routing"]["stop_reason"] == "degraded"
    second = router.invoke({"messages": [("user", "second?")]}, config)
    assert (second["answer"], second["routing"]["stop_reason"], asked(second)) == ("two", "answered", [])


# Runs that end without an answer of the router's


@pytest.mark.parametrize("last", [search("a: more?"), "hm"])
def test_a_router_that_never_answers_leaves_the_last_good_reply(last: str) -> None:
    turns = [search("a: one?"), search("b: two?", "c: three?"), "<think> hm </think>" if last == "hm" else last]
    router = create_router(ScriptedEngine(turns), pool(a="first", b="second", c=ValueError("x")), max_turns=2)
    result = router.invoke(QUESTION)
    assert (result["answer"], result["routing"]["stop_reason"]) == ("second", "no_answer")


# Corrections


def test_corrections_of_one_question_are_not_counted_against_the_next() -> None:
    """Each run may be corrected twice and goes on asking; the third time it must answer."""
    first = ["hm", "hm", answer("one")]
    second = [search("m: a?"), "hm", "hm", search("m: b?"), answer("two")]
    model = ScriptedChatModel(["x"])
    router = create_router(ScriptedEngine([*first, *second]), pool(m=model), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    assert router.invoke({"messages": [("user", "first?")]}, config)["answer"] == "one"
    result = router.invoke({"messages": [("user", "second?")]}, config)
    assert (result["answer"], result["routing"]["turns"]) == ("two", 2)
    assert len(model.calls) == 2


def test_a_router_that_had_to_answer_may_ask_again_for_the_next_question() -> None:
    first = ["hm", "hm", "hm", answer("one")]
    second = [search("m: a?"), search("m: b?"), answer("two")]
    router = create_router(ScriptedEngine([*first, *second]), pool(m="x"), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    one = router.invoke({"messages": [("user", "first?")]}, config)
    assert (one["answer"], one["routing"]["stop_reason"]) == ("one", "forced_answer")
    two = router.invoke({"messages": [("user", "second?")]}, config)
    assert (two["answer"], two["routing"]["turns"], two["routing"]["stop_reason"]) == ("two", 2, "answered")
