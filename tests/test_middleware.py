"""Middleware stands around each call: it sees, changes, answers or refuses it, and the account stays right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import answer, search
from langchain_core.exceptions import ModelRateLimitError
from langchain_core.messages import AIMessage

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.calls import CallMiddleware, ModelCall
from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.calls.middleware import AsyncSend, MiddlewareError, Send
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "Capital of Peru?")]}


class Log(CallMiddleware):
    """The middleware of ten lines."""

    def __init__(self, log: list[str], name: str = "") -> None:
        self.log, self.name = log, name

    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        self.log.append(f"{self.name}>{call.model.name}: {call.query}")
        reply = proceed(call)
        self.log.append(f"{self.name}<{reply.text}")
        return reply

    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        self.log.append(f"{self.name}>{call.model.name}: {call.query}")
        reply = await proceed(call)
        self.log.append(f"{self.name}<{reply.text}")
        return reply


class Both(CallMiddleware):
    """For tests: what it does before the call is the same in both forms."""

    def before(self, call: ModelCall) -> ModelCall | AIMessage:
        raise NotImplementedError

    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        made = self.before(call)
        return made if isinstance(made, AIMessage) else proceed(made)

    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        made = self.before(call)
        return made if isinstance(made, AIMessage) else await proceed(made)


def registry(**fields: Any) -> ModelRegistry:
    return ModelRegistry(
        [
            ModelDescriptor(name="small", model=ScriptedChatModel(["from small"]), price=1.0, **fields),
            ModelDescriptor(name="large", model=ScriptedChatModel(["from large"]), price=10.0),
        ]
    )


async def run(way: str, middleware: list[CallMiddleware], pool: ModelRegistry | None = None) -> Any:
    engine = ScriptedEngine([search("small: Capital of Peru?"), answer("Lima")])
    router = create_router(engine, pool or registry(), middleware=middleware)
    result = await router.ainvoke(QUESTION) if way == "ainvoke" else router.invoke(QUESTION)
    [call] = result["routing"]["calls"]
    return call


BOTH_WAYS = pytest.mark.parametrize("way", ["invoke", "ainvoke"])


@BOTH_WAYS
async def test_the_first_of_the_list_is_the_outermost(way: str) -> None:
    log: list[str] = []
    await run(way, [Log(log, "a"), Log(log, "b")])
    asked = "small: Capital of Peru?"
    assert log == [f"a>{asked}", f"b>{asked}", "b<from small", "a<from small"]


@BOTH_WAYS
async def test_a_call_that_middleware_answers_is_not_made_and_counts_with_the_usage_that_it_reports(way: str) -> None:
    class Answers(Both):
        def before(self, call: ModelCall) -> AIMessage:
            return AIMessage(
                "known", usage_metadata={"input_tokens": 1_000_000, "output_tokens": 0, "total_tokens": 1_000_000}
            )

    pool = registry()
    call = await run(way, [Answers()], pool)
    assert (call["response"], call["status"], call["cost_usd"]) == ("known", "ok", 1.0)
    assert pool["small"].model.calls == []  # type: ignore[union-attr]


@BOTH_WAYS
async def test_a_call_that_middleware_sends_to_another_model_is_billed_at_that_models_price(way: str) -> None:
    pool = registry()

    class Redirects(Both):
        def before(self, call: ModelCall) -> ModelCall:
            return replace(call, model=pool["large"], query="The capital of Peru?")

    call = await run(way, [Redirects()], pool)
    assert (call["model"], call["answered_by"], call["response"]) == ("small", "large", "from large")
    tokens = call["usage"]["prompt_tokens"] + call["usage"]["completion_tokens"]
    assert call["cost_usd"] == pytest.approx(10e-6 * tokens)


@BOTH_WAYS
async def test_what_middleware_raises_is_the_failure_of_the_call_and_nothing_is_billed(way: str) -> None:
    class Refuses(Both):
        def before(self, call: ModelCall) -> ModelCall:
            raise PermissionError("sk-secret")

    call = await run(way, [Refuses()])
    assert (call["status"], call["reason"]) == ("error", "small failed (PermissionError)")
    assert (call["cost_usd"], call["maybe_cost_usd"]) == (0.0, 0.0)


@BOTH_WAYS
async def test_a_fallback_of_the_model_passes_through_the_middleware_too(way: str) -> None:
    log: list[str] = []
    pool = registry(fallbacks=("large",))
    pool["small"].model.script[:] = [ValueError("broken")]  # type: ignore[union-attr]
    call = await run(way, [Log(log)], pool)
    assert call["answered_by"] == "large"
    assert [line for line in log if line.startswith(">")] == [
        ">small: Capital of Peru?",
        ">large: Capital of Peru?",
    ]


@BOTH_WAYS
async def test_middleware_of_each_attempt_stands_within_retries_and_other_middleware_around_them(way: str) -> None:
    class Attempts(Log):
        each_attempt = True

    calls: list[str] = []
    attempts: list[str] = []
    pool = registry(max_retries=2)
    pool["small"].model.script[:] = [ModelRateLimitError("wait"), "from small"]  # type: ignore[union-attr]
    call = await run(way, [Attempts(attempts), Log(calls)], pool)
    assert call["status"] == "ok"
    assert len([line for line in attempts if line.startswith(">")]) == 2
    assert len([line for line in calls if line.startswith(">")]) == 1


async def test_middleware_that_is_written_for_one_way_says_so_in_the_other() -> None:
    class Blocking(CallMiddleware):
        def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
            return proceed(call)

    assert (await run("invoke", [Blocking()]))["status"] == "ok"
    with pytest.raises(MiddlewareError, match="Blocking has no awrap_call, which asynchronous runs need"):
        await run("ainvoke", [Blocking()])


@BOTH_WAYS
async def test_a_fallback_that_middleware_answers_is_not_billed_to_the_model_that_failed_before(way: str) -> None:
    class KnowsLarge(Both):
        def before(self, call: ModelCall) -> ModelCall | AIMessage:
            usage = {"input_tokens": 1_000_000, "output_tokens": 0, "total_tokens": 1_000_000}
            return AIMessage("known", usage_metadata=usage) if call.model.name == "large" else call  # type: ignore[arg-type]

    pool = registry(fallbacks=("large",))
    pool["small"].model.script[:] = [ModelRateLimitError("no")]  # type: ignore[union-attr]
    call = await run(way, [KnowsLarge()], pool)
    assert (call["answered_by"], call["response"], call["cost_usd"]) == ("large", "known", pytest.approx(10.0))


class AsksTwice(CallMiddleware):
    """Sends each call twice, and then does with the replies what it is told to."""

    def __init__(self, then: Any) -> None:
        self.then = then

    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        proceed(call)
        return self.then(proceed(call))

    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        await proceed(call)
        return self.then(await proceed(call))


def fails(_: AIMessage) -> AIMessage:
    raise RuntimeError("after the reply")


@BOTH_WAYS
@pytest.mark.parametrize(
    ("then", "status"),
    [
        (lambda reply: reply, "ok"),
        (lambda reply: reply.model_copy(update={"content": "changed"}), "ok"),
        (lambda _: AIMessage("another"), "ok"),
        (fails, "error"),
    ],
)
async def test_every_reply_that_came_is_in_the_account_whatever_middleware_does_with_it(
    way: str, then: Any, status: str
) -> None:
    once = (await run(way, []))["cost_usd"]
    call = await run(way, [AsksTwice(then)])
    assert call["status"] == status
    assert call["cost_usd"] == call["list_cost_usd"] == pytest.approx(2 * once)
    assert call["maybe_cost_usd"] == 0


def test_shared_clients_tell_models_of_one_name_at_two_servers_apart() -> None:
    clients, model = Clients(), ModelDescriptor(name="m", model="openai:x", base_url="http://127.0.0.1:1/v1", price=1.0)
    client = clients.get(model)
    assert clients.get(model.model_copy(update={"description": "In other words.", "price": 2.0})) is client
    for other in ({"base_url": "http://127.0.0.1:2/v1"}, {"timeout_s": 1.0}, {"params": {"seed": 5}}):
        assert clients.get(model.model_copy(update=other)) is not client
