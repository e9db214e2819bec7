"""Where the router's tokens come from. Nothing heavy is imported until an engine that needs it is used."""

from typing import TYPE_CHECKING, Any

from langgraph_router_r1.engines.base import (
    ContextFullError,
    EngineError,
    EngineUnavailableError,
    Generation,
    RouterEngine,
    UnknownPolicyError,
)
from langgraph_router_r1.engines.chat_model import ChatModelEngine
from langgraph_router_r1.engines.vllm import VLLMEngine

if TYPE_CHECKING:
    from langgraph_router_r1.engines.transformers import TransformersEngine

__all__ = [
    "ChatModelEngine",
    "ContextFullError",
    "EngineError",
    "EngineUnavailableError",
    "Generation",
    "RouterEngine",
    "TransformersEngine",
    "UnknownPolicyError",
    "VLLMEngine",
]


def __getattr__(name: str) -> Any:
    if name == "TransformersEngine":
        from langgraph_router_r1.engines.transformers import TransformersEngine

        return TransformersEngine
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
