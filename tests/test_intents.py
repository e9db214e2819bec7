"""A resumed run knows which calls may have been made, and billed, before it was stopped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import LEAVES_CLIENTS, answer, pool, search
from langchain_core.caches import InMemoryCache
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import MessagesState, StateGraph
from provider import Provider

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router, intents
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

pytestmark = LEAVES_CLIENTS

THREAD: Any = {"configurable": {"thread_id": "1"}}
QUESTION: Any = {"messages": [("user", "?")]}

PROGRAM = textwrap.dedent(
    """
    import asyncio, os, sys
    from langchain_core.runnables import RunnableLambda
    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
    from langgraph_router_r1.testing import ScriptedEngine

    folder, way, crash, approval = sys.argv[1], sys.argv[2], sys.argv[3] == "crash", sys.argv[4] == "approval"

    def reply(messages):
        with open(f"{folder}/calls.txt", "a") as file:
            print("asked", file=file)
        if crash:
            os._exit(9)
        return "Lima"

    def write(transcript):
        models = sum(segment["kind"] == "policy" for segment in transcript)
        return ["<think>a</think><search>m: a?</search>", "<think>b</think><answer>done</answer>"][models]

    def router(saver):
        model = ModelDescriptor(name="m", model=RunnableLambda(reply), price=1.0, params={"max_tokens": 100})
        before = ["route"] if approval else None
        return create_router(
            ScriptedEngine(write), ModelRegistry([model]), checkpointer=saver, interrupt_before=before
        )

    question = {"messages": [("user", "?")]} if sys.argv[5] == "first" else None
    config = {"configurable": {"thread_id": "1"}}
    if way == "async":
        async def run():
            async with AsyncSqliteSaver.from_conn_string(f"{folder}/checkpoints.sqlite") as saver:
                return await router(saver).ainvoke(question, config)
        result = asyncio.run(run())
    else:
        with SqliteSaver.from_conn_string(f"{folder}/checkpoints.sqlite") as saver:
            result = router(saver).invoke(question, config)
    routing = result["routing"]
    routed_calls = len(routing["calls"])
    print(result["answer"] or "none", routed_calls, routing["maybe_billed_twice"], routing["maybe_cost_usd"] > 100e-6)
    """
)


def process(folder: Path, way: str, *, crash: bool = False, approval: bool = False, first: bool = False) -> list[str]:
    """Run the program in a process of its own; return what it printed, or ["killed"]."""
    words = ["crash" if crash else "well", "approval" if approval else "straight", "first" if first else "resumed"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), way, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == (9 if crash else 0), done.stderr
    return ["killed"] if crash else done.stdout.split()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_call_that_a_killed_process_had_begun_is_reported_as_possibly_billed_twice(tmp_path: Path, way: str) -> None:
    process(tmp_path, way, crash=True, first=True)
    assert process(tmp_path, way) == ["done", "1", "1", "True"]
    assert (tmp_path / "calls.txt").read_text().split() == ["asked", "asked"]


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_call_that_waited_for_approval_is_not_reported(tmp_path: Path, way: str) -> None:
    assert process(tmp_path, way, approval=True, first=True) == ["none", "0", "0", "False"]
    assert process(tmp_path, way, approval=True) == ["done", "1", "0", "False"]
    assert (tmp_path / "calls.txt").read_text().split() == ["asked"]


def interrupted_once() -> RunnableLambda[Any, str]:
    interrupts = iter([KeyboardInterrupt()])

    def reply(_: Any) -> str:
        for error in interrupts:
            raise error
        return "Lima"

    return RunnableLambda(reply)


def test_a_run_that_was_stopped_and_resumed_in_one_process_reports_it_too() -> None:
    registry = pool(m=interrupted_once(), n="Quito")
    engine = ScriptedEngine([search("m: a?", "n: b?"), answer("x")])
    router = create_router(engine, registry, checkpointer=InMemorySaver())
    with pytest.raises(KeyboardInterrupt):
        router.invoke(QUESTION, THREAD)
    routed_calls = router.invoke(None, THREAD)["routing"]["calls"]
    assert (routed_calls[0]["response"], routed_calls[0]["maybe_billed_twice"]) == ("Lima", True)


def embedded(router: Any) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("ask", router)
    graph.set_entry_point("ask")
    return graph.compile(checkpointer=InMemorySaver())


def test_a_router_inside_a_checkpointed_graph_reports_it_too() -> None:
    router = create_router(ScriptedEngine([search("m: a?"), answer("x")]), pool(m=interrupted_once()))
    app = embedded(router)
    with pytest.raises(KeyboardInterrupt):
        app.invoke(QUESTION, THREAD)
    events = list(app.stream(None, THREAD, stream_mode="custom", subgraphs=True))
    assert events[-1][1]["routing"]["maybe_billed_twice"] == 1


def test_a_router_that_is_not_checkpointed_inside_a_graph_that_is_works_without_notes() -> None:
    engine = ScriptedEngine([search("m: a?"), answer("x")])
    app = embedded(create_router(engine, pool(m="Lima"), checkpointer=False))
    assert app.invoke(QUESTION, THREAD)["messages"][-1].text == "x"


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_notes_hold_nobody_up_whenever_checkpoints_are_stored(durability: Any, tmp_path: Path) -> None:
    def fresh(saver: Any) -> Any:
        return create_router(ScriptedEngine([search("m: a?"), answer("x")]), pool(m="Lima"), checkpointer=saver)

    with SqliteSaver.from_conn_string(str(tmp_path / "sync.sqlite")) as saver:
        result = fresh(saver).invoke(QUESTION, THREAD, durability=durability)
        assert result["routing"]["maybe_billed_twice"] == 0
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "async.sqlite")) as async_saver:
        result = await fresh(async_saver).ainvoke(QUESTION, THREAD, durability=durability)
        assert result["routing"]["maybe_billed_twice"] == 0


def test_a_call_is_not_made_before_the_checkpoint_that_plans_it_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedChatModel(["Lima"])

    class Forgetful(InMemorySaver):
        def get_tuple(self, config: Any) -> Any:
            return None if config["configurable"].get("checkpoint_id") else super().get_tuple(config)

    monkeypatch.setattr(intents, "STORED_WITHIN_S", 0.2)
    router = create_router(ScriptedEngine([search("m: a?")]), pool(m=model), checkpointer=Forgetful())
    with pytest.raises(intents.NotStoredError, match="the checkpoint was not stored"):
        router.invoke(QUESTION, THREAD)
    assert not model.calls


def test_the_names_by_which_langgraph_tells_a_node_of_its_checkpointer_are_still_right() -> None:
    from langgraph._internal import _constants

    assert intents._CHECKPOINTER == _constants.CONFIG_KEY_CHECKPOINTER
    assert intents._DURABILITY == _constants.CONFIG_KEY_DURABILITY


async def test_a_call_that_is_made_again_carries_the_idempotency_key_of_the_first() -> None:
    with Provider(delay_s=0.2) as provider:
        model = ChatOpenAI(model="gpt-x", base_url=provider.base_url, api_key="k", max_retries=0)
        registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0)])
        engine = ScriptedEngine([search("m: a?", "m: b?"), answer("x")])
        router = create_router(engine, registry, checkpointer=InMemorySaver())
        running = asyncio.create_task(router.ainvoke(QUESTION, THREAD))
        await asyncio.to_thread(provider.wait_for, 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        routing = (await router.ainvoke(None, THREAD))["routing"]
    keys: dict[str, set[str]] = {}
    for request in provider.requests:
        keys.setdefault(request.question, set()).add(request.headers["idempotency-key"])
    assert len(provider.requests) == 4
    assert [len(of_one_call) for of_one_call in keys.values()] == [1, 1]
    assert len(set.union(*keys.values())) == 2
    assert routing["maybe_billed_twice"] == 2


@pytest.mark.parametrize("given", ["bound", "model_kwargs"])
def test_an_idempotency_key_leaves_the_headers_alone_that_a_model_sends_already(given: str) -> None:
    headers = {"extra_headers": {"X-Team": "blue"}}
    with Provider() as provider:
        settings: Any = {"model_kwargs": headers} if given == "model_kwargs" else {}
        model: Any = ChatOpenAI(model="gpt-x", base_url=provider.base_url, api_key="k", max_retries=0, **settings)
        if given == "bound":
            model = model.bind(**headers)
        registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0)])
        create_router(ScriptedEngine([search("m: a?"), answer("x")]), registry).invoke(QUESTION)
        (request,) = provider.requests
    assert (request.headers["x-team"], "idempotency-key" in request.headers) == ("blue", True)


def test_an_idempotency_key_stands_in_no_caches_way() -> None:
    with Provider() as provider:
        cache = InMemoryCache()
        model = ChatOpenAI(model="gpt-x", base_url=provider.base_url, api_key="k", max_retries=0, cache=cache)
        registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0)])
        for _ in range(2):
            create_router(ScriptedEngine([search("m: a?"), answer("x")]), registry).invoke(QUESTION)
        assert len(provider.requests) == 1
