"""A router on a LangGraph server, as a node of a graph that runs here: its events, its answer and its report.

make studio                          # starts a server, with a scripted router
python examples/08_remote_graph.py   # or with the address of another server behind it
"""

import sys
from collections.abc import Iterator
from typing import Any

from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel.remote import RemoteGraph

from langgraph_router_r1 import RunReport

QUESTION: Any = {"messages": [("user", "How do I get a real router?")]}


class Chat(MessagesState):
    """A conversation, and what the router reports of its last run."""

    routing: RunReport


def chat_graph(url: str) -> CompiledStateGraph[Chat]:
    """Return a graph whose only node runs on this server."""
    graph = StateGraph(Chat)
    graph.add_node("router", RemoteGraph("router_r1", url=url))
    graph.add_edge(START, "router")
    graph.add_edge("router", END)
    return graph.compile()


def main(url: str = "http://127.0.0.1:2024") -> None:
    """Ask, show the events as they come, then the answer and its cost."""
    result: Any = {}
    streamed: Iterator[Any] = chat_graph(url).stream(QUESTION, stream_mode=["custom", "values"], subgraphs=True)
    for namespace, mode, data in streamed:
        if mode == "custom":
            print(data["type"].removeprefix("router_r1."), end=" ")
        elif not namespace:  # the state of the outer graph
            result = data
    print(f"\n{result['messages'][-1].text}\n${result['routing']['cost_usd']:.7f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
