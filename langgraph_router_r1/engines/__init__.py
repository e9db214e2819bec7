"""Where the router's tokens come from. An engine is imported when it is first used, with what it needs."""

import importlib
from typing import TYPE_CHECKING, Any

from langgraph_router_r1.engines.base import (
    ContextFullError,
    EngineError,
    EngineUnavailableError,
    Fallback,
    Generation,
    RouterEngine,
    UnknownPolicyError,
)

if TYPE_CHECKING:
    from langgraph_router_r1.engines.chat_model import ChatModelEngine
    from langgraph_router_r1.engines.transformers import TransformersEngine
    from langgraph_router_r1.engines.vllm import VLLMEngine

__all__ = [
    "ChatModelEngine",
    "ContextFullError",
    "EngineError",
    "EngineUnavailableError",
    "Fallback",
    "Generation",
    "RouterEngine",
    "TransformersEngine",
    "UnknownPolicyError",
    "VLLMEngine",
]

_MODULES = {"ChatModelEngine": "chat_model", "TransformersEngine": "transformers", "VLLMEngine": "vllm"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
