"""The router as one node of a larger graph, in two ways. Scripted: no network, no weights.

    python examples/03_embed_as_node.py

Your state has `messages`: add the compiled router as a node; `messages` is all that the two share
(unless you also ask for its `answer` or `routing` by having keys of these names).
Your state has other keys: write a node that calls the router, and say there what is what.
"""

from typing import Any

from langchain_core.runnables import Runnable
from langgraph.graph import END, START, MessagesState, StateGraph
from typing_extensions import TypedDict

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price, create_router
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine


def scripted_router() -> Runnable[Any, Any]:
    """Return a stand-in for a real router, good for one question."""
    engine = ScriptedEngine(
        [
            "<think> Ask. </think><search> capitals: What is the capital of Peru? </search>",
            "<think> Good. </think><answer> Lima </answer>",
        ]
    )
    capitals = ModelDescriptor(name="capitals", model=ScriptedChatModel(["Lima"]), price=Price(0.1, 0.1))
    return create_router(engine, ModelRegistry([capitals]))


# The same `messages`: the router is the node.


class Chat(MessagesState):
    """A conversation. The router reads and extends `messages`, and never sees the rest."""

    user: str
    turn: int
    """Ours: that the router counts its own turns under this name does not matter."""


def chat_graph(router: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return a graph with the router as a node of its own."""

    def count(state: Chat) -> dict[str, int]:
        return {"turn": state["turn"] + 1}

    graph = StateGraph(Chat)
    graph.add_node("count", count)
    graph.add_node("router", router)
    graph.add_edge(START, "count")
    graph.add_edge("count", "router")
    graph.add_edge("router", END)
    return graph.compile()


# Another state: a node calls the router.


class Quiz(TypedDict, total=False):
    """A quiz card. The router knows none of these keys."""

    question: str
    answer: str
    points: int
    spent_usd: float


def quiz_graph(router: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return a graph that puts its question to the router as a message, and takes what it wants of the result."""

    def solve(state: Quiz) -> Quiz:
        result = router.invoke({"messages": [("user", state["question"])]})
        return {"answer": result["answer"], "spent_usd": result["routing"]["cost_usd"]}

    graph = StateGraph(Quiz)
    graph.add_node("solve", solve)
    graph.add_edge(START, "solve")
    graph.add_edge("solve", END)
    return graph.compile()


def main() -> None:
    question = "What is the capital of Peru?"

    chat = chat_graph(scripted_router()).invoke({"messages": [("user", question)], "user": "Ada", "turn": 0})
    for message in chat.pop("messages"):
        print(f"{message.type}: {message.text}")
    print("our own keys:", chat)

    card = quiz_graph(scripted_router()).invoke({"question": question, "points": 3})
    print("quiz card:", card)


if __name__ == "__main__":
    main()
