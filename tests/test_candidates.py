"""One routed call: every failure becomes data, whoever answered is billed, and no secret shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from conftest import WAYS, answer, ask, invoked, pool, search
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ModelRateLimitError
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphInterrupt
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteGraph

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.calls.client import MissingKeyError, build_model, is_router
from langgraph_router_r1.calls.tools import make_tools
from langgraph_router_r1.program_model import ProgramModel
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

KEY = "sk-very-secret-0123456789"


def call_of(model: Any, **fields: Any) -> dict[str, Any]:
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0, **fields)])
    return dict(Candidates(registry, count_tokens=lambda text: len(text.split())).ask(CALL))


async def async_call_of(model: Any, **fields: Any) -> dict[str, Any]:
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0, **fields)])
    return dict(await Candidates(registry, count_tokens=lambda text: len(text.split())).aask(CALL))


CALL: Any = {"turn": 0, "index": 0, "model": "m", "query": "Capital of Peru?", "refusal": None}
FIND = {"type": "function", "function": {"name": "find", "description": "", "parameters": {"type": "object"}}}


CALL_WITH_TOOL: Any = {**CALL, "tools": make_tools([FIND]), "context": [HumanMessage("Find it.")]}


def nested(levels: int) -> Any:
    """Return so many lists in one another."""
    return [] if levels == 1 else [nested(levels - 1)]


def openai_model(handler: Callable[[httpx2.Request], httpx2.Response]) -> ChatOpenAI:
    """A real ChatOpenAI with a provider that is played by a function."""
    transport = httpx2.MockTransport(handler)
    return ChatOpenAI(
        model="gpt-x",
        api_key=KEY,
        base_url="http://127.0.0.1:1/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
        http_async_client=httpx2.AsyncClient(transport=transport),
    )


def completion(text: str, **usage: Any) -> httpx2.Response:
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": usage,
    }
    return httpx2.Response(200, json=body)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (429, "m is rate limited (429)"),
        (401, "m refused its key (401)"),
        (403, "m does not permit the request (403)"),
        (404, "m is not there (404)"),
        (400, "m rejected the request (400)"),
        (500, "m had a server error (5xx)"),
        (503, "m had a server error (5xx)"),
    ],
)
async def test_a_providers_failure_becomes_a_routed_call_with_a_short_public_reason(status: int, reason: str) -> None:
    model = openai_model(lambda request: httpx2.Response(status, json={"error": {"message": f"bad key {KEY}"}}))
    for routed in (call_of(model), await async_call_of(model)):
        assert (routed["status"], routed["reason"], routed["cost_usd"]) == ("error", reason, 0)


def refuse(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError(f"no route with {KEY}")


def test_a_reply_from_a_cache_that_reports_no_usage_costs_nothing() -> None:
    model = ScriptedChatModel(["Lima"], usage=False, cache=InMemoryCache())
    candidates = Candidates(ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0)]), count_tokens=len)
    first, second = candidates.ask(CALL), candidates.ask(CALL)
    assert (first["cost_usd"] > 0, second["cost_usd"], second["usage"]["estimated"]) == (True, 0, True)


async def test_no_secret_is_in_calls_events_messages_or_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="langgraph_router_r1")
    registry = pool(
        one=openai_model(lambda request: httpx2.Response(401, json={"error": {"message": f"Incorrect key: {KEY}"}})),
        two=openai_model(refuse),
        three=RunnableLambda(lambda messages: 1 / 0 if KEY else KEY),
    )
    router = create_router(ScriptedEngine([search("one: a?", "two: b?", "three: c?"), answer("x")]), registry)
    question: Any = {"messages": [("user", "?")]}
    stream = list(
        router.stream(question, stream_mode=["custom", "values", "debug"], output_keys=["routing", "transcript"])
    )
    statuses = [event["status"] for mode, event in stream if mode == "custom" and event["type"] == "router_r1.info"]
    assert statuses == ["error"] * 3
    assert KEY not in f"{stream}{registry}{registry['one']!r}{registry.describe()}{caplog.text}"


async def test_prompt_cached_and_completion_tokens_reach_the_bill() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    model = openai_model(lambda request: completion("Lima", **usage))
    price = {"prompt": 1.0, "completion": 10.0, "cached": 0.1}
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=price)])
    for routed in (Candidates(registry, len).ask(CALL), await Candidates(registry, len).aask(CALL)):
        assert routed["usage"] == {
            "prompt_tokens": 100,
            "cached_tokens": 64,
            "cache_write_tokens": 0,
            "completion_tokens": 7,
            "estimated": False,
        }
        assert routed["cost_usd"] == pytest.approx((36 * 1.0 + 64 * 0.1 + 7 * 10.0) / 1e6)


def test_usage_that_is_not_reported_is_estimated_and_flagged() -> None:
    routed = call_of(ScriptedChatModel(["It is Lima"], usage=False))
    asked = len(CALL_PROMPT.format(query=CALL["query"]).split())
    assert routed["usage"] == {
        "prompt_tokens": asked,
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "completion_tokens": 3,
        "estimated": True,
    }
    assert routed["cost_usd"] == pytest.approx((asked + 3) / 1e6)


def test_an_empty_reply_that_reports_no_usage_is_estimated_too() -> None:
    routed = call_of(ScriptedChatModel([""], usage=False))
    assert (routed["reason"], routed["usage"]["estimated"]) == ("m gave an empty reply", True)
    assert (routed["usage"]["prompt_tokens"] > 0, routed["usage"]["completion_tokens"]) == (True, 0)


def test_a_program_is_a_model_whose_reply_keeps_to_max_tokens() -> None:
    call = call_of(ProgramModel(program=str.upper), call_prompt="{query}", params={"max_tokens": 2})
    assert call["response"] == "CAPITAL"
    assert (call["usage"]["prompt_tokens"], call["usage"]["completion_tokens"]) == (4, 2)
    assert (call["finish_reason"], call["cost_usd"]) == ("length", pytest.approx(6e-6))
    whole = call_of(ProgramModel(program=str.upper), call_prompt="{query}")
    assert (whole["response"], whole["finish_reason"]) == ("CAPITAL OF PERU?", "stop")


def test_each_byte_of_a_query_may_be_a_token_in_the_worst_case() -> None:
    candidates = Candidates(ModelRegistry([ModelDescriptor(name="m", model="openai:x", price=1.0)]), count_tokens=len)
    longer = candidates.worst_case("m", "é" * 1000) - candidates.worst_case("m", "")
    assert longer == pytest.approx(2000e-6)


def test_a_failure_without_a_name_of_ours_is_told_by_its_type_and_nothing_else() -> None:
    assert call_of(RunnableLambda(lambda _: 1 / 0))["reason"] == "m failed (ZeroDivisionError)"


def test_a_reply_from_a_cache_costs_nothing_and_keeps_its_list_price() -> None:
    model = ScriptedChatModel(["Lima"], cache=InMemoryCache())
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0)])
    candidates = Candidates(registry, count_tokens=len)
    first, second = candidates.ask(CALL), candidates.ask(CALL)
    assert len(model.calls) == 1
    assert first["cost_usd"] == second["list_cost_usd"] == first["list_cost_usd"] > 0
    assert second["cost_usd"] == 0


@pytest.mark.parametrize("reply", ["", "   ", "<think>only this</think>", AIMessage("")])
def test_an_empty_reply_is_an_error_that_is_billed(reply: Any) -> None:
    routed = call_of(ScriptedChatModel([reply]))
    assert (routed["status"], routed["reason"]) == ("error", "m gave an empty reply")
    assert routed["cost_usd"] > 0


async def test_a_model_that_hangs_is_given_up_in_time_in_both_worlds() -> None:
    model = ScriptedChatModel(["late"], delay_s=2.0)
    started = time.monotonic()
    for routed in (call_of(model, timeout_s=0.2), await async_call_of(model, timeout_s=0.2)):
        assert (routed["status"], routed["reason"]) == ("error", "m gave no reply within 0.2 s")
    assert time.monotonic() - started < 1.5


def test_a_passing_failure_is_retried_as_often_as_the_descriptor_says() -> None:
    model = ScriptedChatModel([ModelRateLimitError("429"), "Lima"])
    assert call_of(model, max_retries=1)["response"] == "Lima"
    assert len(model.calls) == 2
    lasting = ScriptedChatModel([ValueError("no")])
    assert call_of(lasting, max_retries=1)["status"] == "error"
    assert len(lasting.calls) == 1


def test_the_fallback_that_answered_is_billed() -> None:
    registry = ModelRegistry(
        [
            ModelDescriptor(name="m", model=ScriptedChatModel([ValueError("down")]), price=1.0, fallbacks=("other",)),
            ModelDescriptor(name="other", model=ScriptedChatModel(["Lima"]), price=5.0),
        ]
    )
    result = ask([search("m: a?"), answer("x")], registry)
    routed = result["routing"]["calls"][0]
    assert (routed["model"], routed["answered_by"], routed["status"]) == ("m", "other", "ok")
    assert routed["cost_usd"] == pytest.approx(11 * 5.0 / 1e6)
    bills = result["routing"]["by_model"]
    assert {name: (bill["calls"], bill["failed"]) for name, bill in bills.items()} == {"m": (1, 1), "other": (1, 0)}
    assert bills["m"]["cost_usd"] == 0
    assert routed["reason"] == "m failed (ValueError)", "why it was not the model that was asked"
    assert routed["failed"] == ["m"]


def test_every_model_that_was_sent_a_call_and_failed_is_in_the_bill_and_one_that_was_not_sent_it_is_not() -> None:
    broken = {"price": 1.0, "model": ScriptedChatModel([ValueError("down")]), "max_retries": 0}
    registry = ModelRegistry(
        [
            ModelDescriptor(
                name="keyless", model="openai:x", api_key_env="NOT_SET", price=1.0, fallbacks=("b", "c", "d")
            ),
            ModelDescriptor(name="b", **broken),
            ModelDescriptor(name="c", **broken),
            ModelDescriptor(name="d", model=ScriptedChatModel([""]), price=1.0),
        ]
    )
    routing = ask([search("keyless: a?"), answer("x")], registry)["routing"]
    assert routing["calls"][0]["failed"] == ["b", "c"]
    bills = {name: (bill["calls"], bill["failed"]) for name, bill in routing["by_model"].items()}
    assert bills == {"b": (1, 1), "c": (1, 1), "d": (1, 1)}, "the last one gave an empty reply"
    routing = ask([search("b: A?"), answer("x")], ModelRegistry([ModelDescriptor(name="b", **broken)]))["routing"]
    assert (routing["by_model"]["b"]["calls"], routing["by_model"]["b"]["failed"]) == (1, 1), (
        "once where nobody replied"
    )


async def test_a_model_that_hangs_leaves_its_fallback_to_answer_in_both_worlds() -> None:
    hanging = ScriptedChatModel(["x"], delay_s=1.0)
    registry = ModelRegistry(
        [
            ModelDescriptor(name="m", model=hanging, price=1.0, timeout_s=0.1, fallbacks=("other",)),
            ModelDescriptor(name="other", model=ScriptedChatModel(["Lima"]), price=5.0),
        ]
    )
    candidates = Candidates(registry, count_tokens=len)
    for routed in (candidates.ask(CALL), await candidates.aask(CALL)):
        assert (routed["response"], routed["answered_by"]) == ("Lima", "other")


async def test_a_model_that_can_not_be_set_up_stands_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROUTER_R1_TEST_KEY", raising=False)
    keyless = ModelDescriptor(
        name="keyless", model="openai:gpt-x", api_key_env="ROUTER_R1_TEST_KEY", price=1.0, fallbacks=("m",)
    )
    well = ModelDescriptor(name="m", model=ScriptedChatModel(["Lima"]), price=1.0, fallbacks=("keyless",))
    candidates = Candidates(ModelRegistry([keyless, well]), count_tokens=len)
    for name in ("m", "keyless"):
        for routed in (candidates.ask({**CALL, "model": name}), await candidates.aask({**CALL, "model": name})):
            assert (routed["response"], routed["answered_by"]) == ("Lima", "m")


def test_an_interrupt_of_a_model_is_no_failure_that_a_fallback_is_paid_for() -> None:
    def interrupted(_: Any) -> str:
        raise GraphInterrupt

    other = ScriptedChatModel(["Lima"])
    registry = ModelRegistry(
        [
            ModelDescriptor(name="m", model=RunnableLambda(interrupted), price=1.0, fallbacks=("other",)),
            ModelDescriptor(name="other", model=other, price=1.0),
        ]
    )
    with pytest.raises(GraphInterrupt):
        Candidates(registry, count_tokens=len).ask(CALL)
    assert not other.calls


@pytest.mark.parametrize("count", [-(10**9), True, "7"])
def test_usage_that_can_not_be_is_estimated(count: Any) -> None:
    """Less than nothing would pay for other calls."""
    usage: Any = {"input_tokens": count, "output_tokens": 5, "total_tokens": 5}
    reply = AIMessage("It is Lima")
    reply.usage_metadata = usage
    routed = call_of(RunnableLambda(lambda _: reply))
    assert routed["usage"]["estimated"]
    assert routed["cost_usd"] > 0


def test_calls_that_come_together_share_one_rate_limit() -> None:
    model = ModelDescriptor(name="m", model=ScriptedChatModel(["x"]), price=1.0, requests_per_second=10)
    candidates = Candidates(ModelRegistry([model]), count_tokens=len)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        states = [routed["status"] for routed in threads.map(candidates.ask, [CALL] * 8)]
    assert states == ["ok"] * 8
    assert time.monotonic() - started > 0.6


async def test_a_rate_limit_spaces_the_calls_of_a_model_and_of_a_fallback() -> None:
    broken = ModelDescriptor(name="m", model=ScriptedChatModel([ValueError("x")]), price=1.0, fallbacks=("other",))
    limited = ModelDescriptor(name="other", model=ScriptedChatModel(["x"]), price=1.0, requests_per_second=5)
    for ask_once in ("ask", "aask"):
        candidates = Candidates(ModelRegistry([broken, limited]), count_tokens=len)
        started = time.monotonic()
        for _ in range(3):
            routed = getattr(candidates, ask_once)(CALL)
            assert (await routed if ask_once == "aask" else routed)["answered_by"] == "other"
        assert time.monotonic() - started > 0.35


def test_a_missing_key_names_its_variable_and_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROUTER_R1_TEST_KEY", raising=False)
    routed = call_of("openai:gpt-x", api_key_env="ROUTER_R1_TEST_KEY")
    assert routed["status"] == "error"
    assert "the environment variable 'ROUTER_R1_TEST_KEY' is not set" in routed["reason"]
    descriptor = ModelDescriptor(name="m", model="openai:gpt-x", price=1.0, api_key_env="ROUTER_R1_TEST_KEY")
    with pytest.raises(MissingKeyError, match="m: the environment variable 'ROUTER_R1_TEST_KEY' is not set"):
        build_model(descriptor)


@pytest.mark.parametrize("model", [RunnableLambda(lambda messages: {"no": "message"}), "nobody:x"])
def test_a_model_that_is_no_chat_model_ends_no_run(model: Any) -> None:
    assert call_of(model)["status"] == "error"


@pytest.mark.parametrize("reply", ["x" * 100_000, "<answer>" * 12_000, "\ufffd" * 30_000])
def test_a_hundred_kilobytes_of_reply_end_no_run(reply: str) -> None:
    result = ask([search("m: a?"), answer("Lima")], pool(m=reply))
    assert result["answer"] == "Lima"
    assert len(result["transcript"][2]["token_ids"]) < 700


def test_half_a_character_in_a_reply_is_replaced() -> None:
    routed = call_of(ScriptedChatModel(["Lima \ud83d"]))
    assert (routed["response"], routed["status"]) == ("Lima ?", "ok")


def test_a_nul_in_a_reply_which_postgresql_does_not_take_is_replaced() -> None:
    assert call_of(ScriptedChatModel(["Li\0ma"]))["response"] == "Li\ufffdma"
    assert ask([answer("Li\0ma")], pool(small="x"))["answer"] == "Li\ufffdma"


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, float("nan"), float("inf"), nested(65), object()])
def test_a_tool_call_that_no_checkpoint_can_hold_is_a_failed_call_that_is_paid(value: Any) -> None:
    reply = AIMessage("", tool_calls=[{"name": "find", "args": {"of": value}, "id": "1", "type": "tool_call"}])
    registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel([reply]), price=1.0)])
    call = Candidates(registry, count_tokens=len).ask(CALL_WITH_TOOL)
    assert (call["status"], call["tool_calls"], call["cost_usd"] > 0) == ("error", [], True)
    assert "can't be" in str(call["reason"])


def test_a_tool_call_with_half_an_emoji_and_with_much_in_it_is_kept() -> None:
    args = {"of": "Lima \ud83d", "many": [2**64 - 1, -(2**63), 0.5, None, True], "deep": nested(60)}
    reply = AIMessage("", tool_calls=[{"name": "find", "args": args, "id": "1", "type": "tool_call"}])
    registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel([reply]), price=1.0)])
    [kept] = Candidates(registry, count_tokens=len).ask(CALL_WITH_TOOL)["tool_calls"]
    assert kept["args"] == {**args, "of": "Lima ?"}


def test_of_a_call_of_which_nothing_is_heard_every_attempt_with_every_fallback_may_be_billed() -> None:
    models = [
        ModelDescriptor(name="m", model=ScriptedChatModel(["x"]), price=1.0, max_retries=2, fallbacks=("n",)),
        ModelDescriptor(name="n", model=ScriptedChatModel(["x"]), price=10.0, max_retries=1),
    ]
    candidates = Candidates(ModelRegistry(models), len)
    other = candidates.worst_case_of({**CALL, "model": "n"})
    assert candidates.most_billed(CALL) == pytest.approx(3 * other / 10 + 2 * other)
    assert candidates.most_billed({**CALL, "refusal": {"status": "denied", "reason": "no"}}) == 0
    assert candidates.ask(CALL, again=True)["maybe_cost_usd"] == pytest.approx(candidates.most_billed(CALL))


def test_a_run_keeps_what_the_calls_under_way_may_be_billed_with_all_their_attempts() -> None:
    kept = []
    for retries in (0, 2):
        model = ModelDescriptor(name="m", model=ScriptedChatModel(["x"]), price=1.0, max_retries=retries)
        registry = ModelRegistry([model])
        router = create_router(ScriptedEngine([search("m: a?"), answer("x")]), registry)
        kept.append(router.invoke({"messages": [("user", "?")]}, output_keys=["in_flight_usd"])["in_flight_usd"])
    assert kept[1] == pytest.approx(3 * kept[0])
    assert kept[0] > 0


def test_an_account_in_the_reply_of_a_model_that_is_no_router_is_not_believed() -> None:
    reply = AIMessage("Lima", response_metadata={"routing": {"cost_usd": -1e6, "calls": []}})
    routed = call_of(ScriptedChatModel([reply]))
    assert (routed["status"], routed["inner"], routed["cost_usd"] > 0) == ("ok", None, True)


def test_a_users_graph_whose_state_has_calls_and_routing_is_no_router_and_its_account_is_not_believed() -> None:
    class Theirs(MessagesState):
        calls: list[str]
        routing: dict[str, float]

    reply = AIMessage("Lima", response_metadata={"routing": {"cost_usd": -1e6, "calls": []}})
    graph = StateGraph(Theirs)
    graph.add_node("say", lambda state: {"messages": [reply]})
    graph.add_edge(START, "say")
    routed = call_of(graph.compile())
    assert (routed["status"], routed["inner"], routed["cost_usd"] > 0) == ("ok", None, True)


def test_a_graph_on_another_server_is_no_router_of_ours() -> None:
    graph = RemoteGraph("agent", url="http://127.0.0.1:9")
    assert not is_router(ModelDescriptor(name="m", model=graph, price="free"))


@pytest.mark.parametrize(("failure", "may_be_billed"), [(httpx2.ConnectError("refused"), False), (OSError(), True)])
def test_a_request_that_never_left_is_not_billed_when_its_failure_is_wrapped(
    failure: Exception, may_be_billed: bool
) -> None:
    def as_its_cause(_: Any) -> str:
        raise RuntimeError("in the client") from failure

    def as_its_context(_: Any) -> str:
        try:
            raise failure
        finally:
            raise RuntimeError("in the client")

    for model in (as_its_cause, as_its_context):
        routed = call_of(RunnableLambda(model), params={"max_tokens": 100})
        assert (routed["maybe_cost_usd"] > 0) == may_be_billed


async def test_what_a_call_may_have_cost_is_that_of_its_own_query() -> None:
    long = {**CALL, "query": "x" * 5000}
    registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel([OSError()]), price=1.0)])
    candidates = Candidates(registry, count_tokens=len)
    worst = candidates.worst_case("m", long["query"])
    assert worst > 5000e-6
    for again in (False, True):
        for routed in (candidates.ask(long, again=again), await candidates.aask(long, again=again)):
            assert routed["maybe_cost_usd"] == pytest.approx((1 + again) * worst)
            assert routed["maybe_billed_twice"] == again
            assert 0 < routed["latency_s"] < 10
    for routed in (candidates.ask(long), await candidates.aask(long)):
        assert not routed["maybe_billed_twice"]


async def test_a_refused_call_was_not_made_and_bills_nothing() -> None:
    refused = {**CALL, "refusal": {"status": "denied", "reason": "one too many"}}
    candidates = Candidates(ModelRegistry([ModelDescriptor(name="m", model="openai:x", price=1.0)]), count_tokens=len)
    for routed in (candidates.ask(refused), await candidates.aask(refused)):
        assert (routed["maybe_cost_usd"], routed["maybe_billed_twice"], routed["reason"]) == (0, False, "one too many")


async def test_a_trace_tells_which_model_of_the_pool_was_asked() -> None:
    seen: list[Any] = []

    class Tracer(BaseCallbackHandler):
        def on_chain_start(self, *_: Any, **run: Any) -> None:
            if "router_r1_model" in run["metadata"]:
                seen.append((run["name"], run["metadata"]["router_r1_model"]))

    for way in WAYS:
        router = create_router(ScriptedEngine([search("m: a?"), answer("x")]), pool(m=RunnableLambda(lambda _: "Lima")))
        await invoked(router, way, {"messages": [("user", "?")]}, {"callbacks": [Tracer()]})
    assert seen == [("ask m", "m")] * 2


def test_a_plain_runnable_that_gives_a_string_can_be_asked() -> None:
    routed = call_of(RunnableLambda(lambda messages: f"asked: {messages[-1].content}"))
    assert routed["response"].endswith("Capital of Peru?")
    assert routed["usage"]["estimated"]


def test_parameters_reach_the_model() -> None:
    sent: list[bytes] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.content)
        return completion("Lima", prompt_tokens=1, completion_tokens=1, total_tokens=2)

    call_of(openai_model(handler), params={"max_tokens": 33, "temperature": 0.5})
    assert b'"temperature":0.5' in sent[0]
    assert b":33" in sent[0]
