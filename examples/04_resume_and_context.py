"""What a long-lived app needs: a run that goes on after a crash, settings of one run, the router as a chat model.

    python examples/04_resume_and_context.py    # scripted: no network, no weights

The router plays the crash itself: its server goes away once, after a model was asked.
"""

from collections.abc import Sequence
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from langgraph_router_r1 import ChatRouterR1, ModelDescriptor, ModelRegistry, RouterContext, create_router
from langgraph_router_r1.engines import EngineError
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "What is the capital of Peru?")]}


class Network:
    """Plays a router whose server goes away once, after it has asked a model."""

    def __init__(self) -> None:
        self.is_down = True

    def __call__(self, transcript: Sequence[Any]) -> str:
        """Write the next turn."""
        if not any(segment["kind"] == "observation" for segment in transcript):
            return "<think> Ask. </think><search> capitals: What is the capital of Peru? </search>"
        if self.is_down:
            self.is_down = False
            raise EngineError("http://127.0.0.1:8000/v1 is down")
        return "<think> Good. </think><answer> Lima </answer>"


def main() -> None:
    model = ScriptedChatModel(["Lima"])
    pool = ModelRegistry([ModelDescriptor(name="capitals", model=model, price=0.1)])

    # A crash between two turns: what was asked is in the checkpoint, and is not asked (and paid for) again.
    router = create_router(ScriptedEngine(Network()), pool, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    try:
        router.invoke(QUESTION, thread)
    except EngineError as error:
        print("crash:", error)
    result = router.invoke(None, thread)
    print("resumed:", result["answer"], "- calls that were made:", len(model.calls))

    # Settings of this run alone; the rest is as `create_router` was told.
    router = create_router(ScriptedEngine(["<think> I know it. </think><answer> Lima </answer>"] * 2), pool)
    result = router.invoke(QUESTION, context=RouterContext(cost_weight=0.9, budget_usd=0.001))
    print("cheap:", result["answer"])

    # Wherever a chat model goes, the router goes; the account comes with the message.
    message = ChatRouterR1(router=router).invoke("What is the capital of Peru?")
    print("as a chat model:", message.text, "- why it stopped:", message.response_metadata["stop_reason"])


if __name__ == "__main__":
    main()
