"""Calls that a person approves, edits or rejects before they are made.

python examples/06_approval.py    # scripted: no network, no weights
"""

from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "Where is it warmer, in Lima or in Quito?")]}
CONFIG: Any = {"configurable": {"thread_id": "1"}}
TURNS = [
    "<think> I need both. </think><search> expert: How warm is it in Lima?\nexpert: How warm is it in Quito? </search>",
    "<think> One is enough. </think><answer> In Lima, I think. </answer>",
]


def main() -> None:
    """Ask, decide, go on."""
    registry = ModelRegistry(
        [
            ModelDescriptor(name="expert", model=ScriptedChatModel(["21 degrees"]), price=30.0),
            ModelDescriptor(name="student", model=ScriptedChatModel(["about 20 degrees"]), price=0.1),
        ]
    )
    router = create_router(ScriptedEngine(TURNS), registry, approve={"over": 0.001}, checkpointer=InMemorySaver())
    [request] = router.invoke(QUESTION, CONFIG)["__interrupt__"]
    for action in request.value["action_requests"]:
        print(action["description"])

    # The first call goes to a cheaper model, and the second is not made.
    edited = {"name": "ask_model", "args": {"model": "student"}}
    decisions = [{"type": "edit", "edited_action": edited}, {"type": "reject", "message": "One city is enough."}]
    result = router.invoke(Command(resume={"decisions": decisions}), CONFIG)
    for call in result["routing"]["calls"]:
        print(call["model"], call["status"], call["response"] or call["reason"], sep=" | ")
    print(result["answer"])


if __name__ == "__main__":
    main()
