"""The router in LangGraph Studio: run `langgraph dev` in this directory (pip install 'langgraph-cli[inmem]').

With the pocket router behind it, when `ROUTER_R1_URL` and `ROUTER_R1_API_KEY` hold the address and the key that this
prints:

    router-r1 serve-router

Without, a script plays its part, so that the graph can be seen and run anywhere. There is no checkpointer here:
the platform brings its own.
"""

import os
from collections.abc import Sequence

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price, create_router
from langgraph_router_r1.engines import RouterEngine, VLLMEngine
from langgraph_router_r1.pocket import MAX_ROUTER_TOKENS, ROUTER_NAME, pocket_registry
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
from langgraph_router_r1.transcript import Segment


def pocket(url: str) -> tuple[RouterEngine, ModelRegistry]:
    """Return the pocket router and its pool, both at this address."""
    return VLLMEngine(url, model=ROUTER_NAME), pocket_registry(url)


def scripted() -> tuple[RouterEngine, ModelRegistry]:
    """Return a router that asks one question and passes the reply on, whatever it is asked."""

    def write(transcript: Sequence[Segment]) -> str:
        if transcript[-1]["kind"] == "prompt":
            return "<think> I am a script. </think><search> helper: How do I get a real router? </search>"
        return "<think> Now I know. </think><answer> Set ROUTER_R1_URL to the address of a router. </answer>"

    helper = ScriptedChatModel(["Run router-r1 serve-router, and set ROUTER_R1_URL to the address that it prints."])
    return ScriptedEngine(write), ModelRegistry([ModelDescriptor(name="helper", model=helper, price=Price(0, 0))])


url = os.environ.get("ROUTER_R1_URL")
engine, registry = pocket(url) if url else scripted()
graph = create_router(engine, registry, max_tokens=MAX_ROUTER_TOKENS)
