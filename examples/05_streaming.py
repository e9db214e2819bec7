"""An answer that comes word by word: from the graph, from the chat model, and with what the router thinks.

python examples/05_streaming.py    # scripted: no network, no weights
"""

from typing import Any

from langgraph_router_r1 import ChatRouterR1, ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "What is the capital of Peru?")]}
TURNS = [
    "<think> The capital is asked for. </think><search> capitals: What is the capital of Peru? </search>",
    "<think> That is it. </think><answer> Lima, on the coast. </answer>",
]


def router() -> Any:
    """Return a router whose turns are scripted; each comes in pieces, as a language model writes it."""
    capitals = ModelDescriptor(name="capitals", model=ScriptedChatModel(["Lima"]), price=0.1)
    return create_router(ScriptedEngine(TURNS, piece_chars=6), ModelRegistry([capitals]), stream="thought")


def main() -> None:
    """Stream three times."""
    print("messages:", end=" ")
    for chunk, _ in router().stream(QUESTION, stream_mode="messages"):
        print(chunk.text, end="|" if chunk.text else "")
    print()

    print("events:", end=" ")
    for event in router().stream(QUESTION, stream_mode="custom"):
        print(event["type"].removeprefix("router_r1."), end=" ")
    print()

    whole = None
    for chunk in ChatRouterR1(router=router()).stream("What is the capital of Peru?"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    print("chat model:", whole.text)
    print("reasoning:", whole.additional_kwargs["reasoning_content"].replace("\n", " / "))
    print("cost:", f"${whole.response_metadata['routing']['cost_usd']:.7f}")


if __name__ == "__main__":
    main()
