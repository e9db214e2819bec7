"""The router in one minute: ask, look at the answer, at who was asked what, and at what it cost.

    python examples/01_quickstart.py             # scripted: no network, no weights
    python examples/01_quickstart.py --pocket    # the same with real small models, on this machine's CPU

A router is a compiled LangGraph: what you know of `invoke`, `stream` and their async twins holds here too.
"""

import argparse
from typing import Any

from langchain_core.runnables import Runnable

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price, create_router
from langgraph_router_r1.pocket import pocket_router, pocket_server
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION = "What currency is used in the country whose capital is Lima?"


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the router one question, twice.")
    parser.add_argument("--pocket", action="store_true", help="use the pocket pool (half a minute to start)")
    if parser.parse_args().pocket:
        with pocket_server() as server:
            ask(pocket_router(server.base_url))
    else:
        ask(scripted_router())


def scripted_router() -> Runnable[Any, Any]:
    """Return a router whose turns, and whose models' replies, are written down here."""
    turns = [
        "<think> Which country is that? </think><search> capitals: Which country has the capital Lima? </search>",
        "<think> Peru. And its currency? </think><search> currencies: What currency is used in Peru? </search>",
        "<think> That is all I need. </think><answer> Sol </answer>",
    ]
    pool = ModelRegistry(
        [
            ModelDescriptor(name="capitals", model=ScriptedChatModel(["Peru"]), price=Price(0.1, 0.1)),
            ModelDescriptor(name="currencies", model=ScriptedChatModel(["Sol"]), price=Price(0.1, 0.1)),
        ]
    )
    return create_router(ScriptedEngine(turns * 2), pool)  # the question is asked twice below


def ask(router: Runnable[Any, Any]) -> None:
    """Ask with `invoke`, which returns when all is over, and with `stream`, which tells what happens meanwhile."""
    question = {"messages": [("user", QUESTION)]}

    result = router.invoke(question)
    print(QUESTION)
    print("Answer:", result["answer"])  # also the text of result["messages"][-1]
    for call in result["routing"]["calls"]:
        print(f"  {call['model']} was asked {call['query']!r}, said {call['response']!r}: ${call['cost_usd']:.8f}")
    print(f"Cost: ${result['routing']['cost_usd']:.8f}")

    print("\nThe same, as it happens:")
    for event in router.stream(question, stream_mode="custom"):
        match event["type"]:
            case "router_r1.think":
                print("  think", event["text"])
            case "router_r1.route":
                print("  route", event["model"], "<-", event["query"])
            case "router_r1.info":
                print("  info ", event["model"], "->", event["response"])
            case "router_r1.done":
                print("  done ", event["answer"])


if __name__ == "__main__":
    main()
