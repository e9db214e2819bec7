"""The router embedded in a larger graph: every state, context, checkpointer, stream mode, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from conftest import answer, pool, search
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from langgraph_router_r1 import RouterContext, create_router
from langgraph_router_r1.testing import ScriptedEngine

QUESTION: Any = {"messages": [("user", "Capital of Peru?")]}


class Typed(TypedDict):
    messages: Annotated[list[Any], add_messages]
    notes: str


class Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    messages: Annotated[list[Any], add_messages] = []
    notes: str = ""


@dataclass
class Own:
    """The context of an outer graph that knows nothing of routers."""

    user: str = "me"


STATES: dict[str, Any] = {"MessagesState": MessagesState, "TypedDict": Typed, "pydantic": Model}
CONTEXTS: dict[str, Any] = {"no context": None, "its own": Own(), "the router's": RouterContext(cost_weight=0.5)}
MODES = ["invoke", "values", "updates", "messages", "custom"]


@pytest.fixture
async def savers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A function that opens a saver by its name, for blocking or asynchronous use."""
    async with AsyncExitStack() as stack:

        async def opened(name: str, *, is_async: bool) -> Any:
            if name == "none":
                return None
            if name == "memory":
                return InMemorySaver()
            if name == "sqlite":
                path = str(tmp_path / "runs.sqlite")
                if is_async:
                    return await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(path))
                return stack.enter_context(SqliteSaver.from_conn_string(path))
            address = request.getfixturevalue("postgres")
            if is_async:
                saver: Any = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(address))
                await saver.setup()
            else:
                saver = stack.enter_context(PostgresSaver.from_conn_string(address))
                await asyncio.to_thread(saver.setup)
            return saver

        yield opened


def outer(state: Any, context: Any, saver: Any, **settings: Any) -> Any:
    engine = ScriptedEngine([search("m: Capital of Peru?", "m: And of Chile?"), answer("Lima it is")])
    graph = StateGraph(state, context_schema=type(context) if context is not None else None)
    graph.add_node("research", create_router(engine, pool(m="Lima"), **settings))
    graph.add_edge(START, "research")
    graph.add_edge("research", END)
    return graph.compile(checkpointer=saver)


def messages_of(values: Any) -> list[Any]:
    return values.messages if isinstance(values, BaseModel) else values["messages"]


async def events(app: Any, config: Any, context: Any, mode: str, *, is_async: bool) -> list[Any]:
    options: Any = {"context": context, "stream_mode": mode, "subgraphs": True}
    if is_async:
        return [event async for event in app.astream(QUESTION, config, **options)]
    return await asyncio.to_thread(lambda: list(app.stream(QUESTION, config, **options)))


# 3 states, 3 contexts, 4 savers, 2 ways: each with one of the five stream modes in turn, so that every pair is there.
CELLS = [
    (state, context, saver, is_async, MODES[number % len(MODES)])
    for number, (state, context, saver, is_async) in enumerate(
        itertools.product(STATES, CONTEXTS, ["none", "memory", "sqlite", "postgres"], [False, True])
    )
]


@pytest.mark.parametrize(
    ("state", "context", "saver", "is_async", "mode"),
    CELLS,
    ids=[f"{c[0]}-{c[1]}-{c[2]}-{'async' if c[3] else 'sync'}-{c[4]}" for c in CELLS],
)
async def test_the_router_is_a_node_of_any_graph(
    savers: Any, state: str, context: str, saver: str, is_async: bool, mode: str
) -> None:
    given = CONTEXTS[context]
    checkpointer = await savers(saver, is_async=is_async)
    app = outer(STATES[state], given, checkpointer)
    config: Any = {"configurable": {"thread_id": uuid.uuid4().hex}}
    if mode == "invoke":
        if is_async:
            result = await app.ainvoke(QUESTION, config, context=given)
        else:
            result = await asyncio.to_thread(app.invoke, QUESTION, config, context=given)
        assert messages_of(result)[-1].text == "Lima it is"
    else:
        found = await events(app, config, given, mode, is_async=is_async)
        if mode == "custom":
            said = [event["text"] for _, event in found if event["type"] == "router_r1.answer_delta"]
            assert "".join(said) == "Lima it is"
            assert found[-1][1]["type"] == "router_r1.done"
        elif mode == "messages":
            said = [message.text for namespace, (message, _) in found if namespace]
            assert "".join(said) == "Lima it is"
        elif mode == "updates":
            [update] = [update["research"] for namespace, update in found if not namespace]
            assert messages_of(update)[-1].text == "Lima it is"
        else:
            assert messages_of([values for namespace, values in found if not namespace][-1])[-1].text == "Lima it is"
    if checkpointer is not None:
        stored = await app.aget_state(config) if is_async else await asyncio.to_thread(app.get_state, config)
        assert messages_of(stored.values)[-1].text == "Lima it is"


@pytest.mark.parametrize("saver", ["memory", "sqlite", "postgres"])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_call_that_waits_for_approval_goes_on_from_any_saver(savers: Any, saver: str, is_async: bool) -> None:
    app = outer(MessagesState, None, await savers(saver, is_async=is_async), approve="always")
    config: Any = {"configurable": {"thread_id": uuid.uuid4().hex}}
    resume: Any = Command(resume={"decisions": [{"type": "reject"}, {"type": "approve"}]})
    if is_async:
        waiting = await app.ainvoke(QUESTION, config)
        result = await app.ainvoke(resume, config)
    else:
        waiting = await asyncio.to_thread(app.invoke, QUESTION, config)
        result = await asyncio.to_thread(app.invoke, resume, config)
    assert len(waiting["__interrupt__"][0].value["action_requests"]) == 2
    assert result["messages"][-1].text == "Lima it is"


def test_the_matrix_has_at_least_sixty_cells_and_every_pair_of_mode_and_saver() -> None:
    assert len(CELLS) >= 60
    assert {(cell[2], cell[4]) for cell in CELLS} == set(
        itertools.product(["none", "memory", "sqlite", "postgres"], MODES)
    )
