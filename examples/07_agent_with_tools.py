"""An agent of LangChain on the router: the router chooses the model, and the model calls the tools.

python examples/07_agent_with_tools.py    # scripted: no network, no weights
"""

from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from langgraph_router_r1 import ChatRouterR1, ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine


@tool
def weather(city: str) -> str:
    """Tell how warm it is in a city."""
    return f"{city}: 21 degrees"


class Report(BaseModel):
    """How warm it is in a city."""

    city: str
    degrees: int


def calls(name: str, **arguments: Any) -> AIMessage:
    """Return a message that calls a tool, as a language model writes it."""
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": name, "type": "tool_call"}])


def main() -> None:
    """Run the agent."""
    small = ScriptedChatModel([calls("weather", city="Lima"), calls("Report", city="Lima", degrees=21)])
    turns = [
        "<think> It can look that up. </think><search> small: How warm is it in Lima? </search>",
        "<think> The tool says it. </think><answer> 21 degrees in Lima. </answer>",
    ]
    registry = ModelRegistry([ModelDescriptor(name="small", model=small, price=0.1)])
    model = ChatRouterR1(router=create_router(ScriptedEngine(turns), registry))
    agent: Any = create_agent(model, tools=[weather], response_format=Report)

    result = agent.invoke({"messages": [("user", "How warm is it in Lima?")]})
    for message in result["messages"]:
        called = [call["name"] for call in getattr(message, "tool_calls", [])]
        print(message.type, message.text or f"calls {called[0]}", sep=": ")
    print(repr(result["structured_response"]))


if __name__ == "__main__":
    main()
