"""The router in LangGraph Studio: `make studio` starts the server that Studio shows, offline and without a key.

There are two graphs: `router_r1`, and `router_r1_approval`, whose calls wait until a person has approved, edited or
rejected them. Neither has a checkpointer: the platform brings its own.

The pocket router answers when `ROUTER_R1_URL` and `ROUTER_R1_API_KEY` hold the address and the key that this prints:

    router-r1 serve-router

Otherwise a script plays its part, so that the graphs can be seen and run anywhere.
"""

import os
from collections.abc import Sequence

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.engines import RouterEngine, VLLMEngine
from langgraph_router_r1.pocket import MAX_ROUTER_TOKENS, ROUTER_NAME, pocket_registry
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
from langgraph_router_r1.transcript import Segment


def pocket(url: str) -> tuple[RouterEngine, ModelRegistry]:
    """Return the pocket router and its pool, both at this address."""
    return VLLMEngine(url, model=ROUTER_NAME), pocket_registry(url)


def scripted() -> tuple[RouterEngine, ModelRegistry]:
    """Return a router that asks two models and passes their replies on, whatever the question is."""

    def write(transcript: Sequence[Segment]) -> str:
        if transcript[-1]["kind"] == "prompt":
            return (
                "<think> I am a script. </think>"
                "<search> guide: How do I get a real router?\nexpert: Where do I put its address? </search>"
            )
        return "<think> Now I know. </think><answer> Set ROUTER_R1_URL to the address of a router. </answer>"

    guide = ScriptedChatModel(["Run router-r1 serve-router."])
    expert = ScriptedChatModel(["Set ROUTER_R1_URL to the address that it prints."])
    models = [
        ModelDescriptor(name="guide", model=guide, price=0.1),
        ModelDescriptor(name="expert", model=expert, price=30.0),
    ]
    return ScriptedEngine(write), ModelRegistry(models)


url = os.environ.get("ROUTER_R1_URL")
engine, registry = pocket(url) if url else scripted()
graph = create_router(engine, registry, max_tokens=MAX_ROUTER_TOKENS)
approval_graph = create_router(
    engine, registry, max_tokens=MAX_ROUTER_TOKENS, approve="always", name="router_r1_approval"
)
