"""The runs that a checkpoint database holds, each as a `RunRecord`.

with SqliteSaver.from_conn_string("runs.sqlite") as saver:
for run in stored_runs(saver):
print(run.thread_id, run.record.question, run.record.report["cost_usd"])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver

from langgraph_router_r1.graph import create_router
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

    Routers that are nodes of a larger graph are left out: their state belongs to that graph.

    Args:
        saver: The database, opened.
        thread_id: The only thread to read; by default all.
    """
    # A graph of any models reads the state: what it holds is in the state itself.
    nobody = ModelRegistry.from_dict({"models": {"nobody": {"model": "openai:none", "price": "free"}}})
    reader = create_router(strategy=AskInOrder(lambda _: []), registry=nobody, checkpointer=saver)
    asked: RunnableConfig | None = None if thread_id is None else {"configurable": {"thread_id": thread_id}}
    configs = [stored.config["configurable"] for stored in saver.list(asked)]
    threads = dict.fromkeys(config["thread_id"] for config in configs if not config.get("checkpoint_ns"))
    for thread in sorted(threads):
        history = reader.get_state_history({"configurable": {"thread_id": thread}})
        ended = [state.values for state in history if not state.next and _is_a_run(state.values)]
        for values in reversed(ended):
            yield StoredRun(thread, RunRecord.of(values))


def _is_a_run(values: dict[str, Any]) -> bool:
    return {"messages", "limits", "strategy", "routing"} <= values.keys() and has_ended(cast("RouterState", values))
