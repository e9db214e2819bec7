"""The runs that a checkpoint database holds, each as a `RunRecord`.

    with SqliteSaver.from_conn_string("runs.sqlite") as saver:
        for run in stored_runs(saver):
            print(run.thread_id, run.record.question, run.record.report["cost_usd"])

Runs of routers within larger graphs are among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, MessagesState, StateGraph

from langgraph_router_r1.graph import build_router
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import RouterState, has_ended
from langgraph_router_r1.strategies import AskInOrder


class StoredRun(NamedTuple):
    """A finished run of a thread."""

    thread_id: str
    record: RunRecord


def stored_runs(saver: BaseCheckpointSaver[Any], thread_id: str | None = None) -> Iterator[StoredRun]:
    """Yield the finished runs of a database, thread by thread, each thread's from the first question on.

    Among them are those of routers that are nodes of a larger graph. Runs of a router that another router asked are
    part of that one's, and left out.

    Args:
        saver: The database, opened.
        thread_id: The only thread to read; by default all.
    """
    asked: RunnableConfig | None = None if thread_id is None else {"configurable": {"thread_id": thread_id}}
    places: dict[str, set[str]] = defaultdict(set)
    for stored in saver.list(asked):
        configured = stored.config["configurable"]
        places[configured["thread_id"]].add(configured.get("checkpoint_ns", ""))
    for thread in sorted(places):
        routers: list[str] = []
        found: list[tuple[str, RunRecord]] = []
        for namespace in sorted(places[thread]):  # a graph before those within it
            if any(_is_within(namespace, router) for router in routers):
                continue
            ended = list(_ended(saver, thread, namespace))
            found += ended
            routers += [namespace] * bool(ended)
        yield from (StoredRun(thread, record) for _, record in sorted(found, key=lambda run: run[0]))


_WITHIN = "|"
"""What LangGraph puts between the names of graphs, in the namespace of one within another, and before the number of a
graph that is not the first that a node calls."""


def _is_within(namespace: str, router: str) -> bool:
    """Return whether a namespace is of a graph that the router of another one has called."""
    if not router:
        return bool(namespace)
    inner = namespace.removeprefix(f"{router}{_WITHIN}")
    return inner != namespace and not inner.partition(_WITHIN)[0].isdigit()  # that is another call of the same node


def _ended(saver: BaseCheckpointSaver[Any], thread: str, namespace: str) -> Iterator[tuple[str, RunRecord]]:
    """Yield when each finished run of a graph in a thread ended, and its record."""
    # A graph of any models reads the state: what it holds is in the state itself.
    nobody = ModelRegistry.from_dict({"models": {"nobody": {"model": "openai:none", "price": "free"}}})
    graph: Any = build_router(strategy=AskInOrder(lambda _: []), registry=nobody)
    # LangGraph finds the graph of a namespace by the names of the nodes that lead to it.
    for part in reversed([part for part in namespace.split(_WITHIN) if part and not part.isdigit()]):
        around = StateGraph(MessagesState)
        around.add_node(name := part.partition(":")[0], graph.compile())
        graph = around.add_edge(START, name)
    configured = {"thread_id": thread, "checkpoint_ns": namespace}
    for state in graph.compile(checkpointer=saver).get_state_history({"configurable": configured}):
        if not state.next and _is_a_run(state.values):
            yield state.created_at or "", RunRecord.of(state.values)


def _is_a_run(values: dict[str, Any]) -> bool:
    return {"messages", "limits", "strategy", "routing"} <= values.keys() and has_ended(cast("RouterState", values))
