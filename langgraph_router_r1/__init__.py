"""A router LLM as a LangGraph plugin: it thinks, asks other models, and answers; every call is priced.

from langgraph_router_r1 import ModelRegistry, create_router
from langgraph_router_r1.engines import VLLMEngine

router = create_router(VLLMEngine("http://127.0.0.1:8000/v1", model="router"), ModelRegistry.from_file("models.toml"))
result = router.invoke({"messages": [("user", "Who wrote the novel that Blade Runner is based on?")]})
result["messages"][-1].content, result["routing"]["cost_usd"]
"""

from langgraph_router_r1.calls.middleware import CallMiddleware
from langgraph_router_r1.calls.tools import make_tools
from langgraph_router_r1.chat_model import ChatRouterR1
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines.base import EngineError, Fallback
from langgraph_router_r1.events import (
    AnswerDelta,
    DoneEvent,
    InfoEvent,
    PlanEvent,
    RouteEvent,
    RouterEvent,
    ThinkDelta,
    ThinkEvent,
)
from langgraph_router_r1.graph import build_router, create_planner, create_router
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.prompts import RouterPrompt
from langgraph_router_r1.record import RECORD_KEYS, RunRecord
from langgraph_router_r1.registry import ModelRegistry, RegistryError, UnknownModelError
from langgraph_router_r1.settings import PendingCall
from langgraph_router_r1.state import RoutedCall, RouterContext, RouterInput, RouterOutput, RouterState, RunReport
from langgraph_router_r1.strategies.base import Strategy

__all__ = [
    "RECORD_KEYS",
    "AnswerDelta",
    "CallMiddleware",
    "ChatRouterR1",
    "DoneEvent",
    "EngineError",
    "Fallback",
    "InfoEvent",
    "ModelDescriptor",
    "ModelRegistry",
    "PendingCall",
    "PlanEvent",
    "Price",
    "RegistryError",
    "RouteEvent",
    "RoutedCall",
    "RouterContext",
    "RouterEvent",
    "RouterInput",
    "RouterOutput",
    "RouterPrompt",
    "RouterState",
    "RunRecord",
    "RunReport",
    "Strategy",
    "ThinkDelta",
    "ThinkEvent",
    "UnknownModelError",
    "build_router",
    "create_planner",
    "create_router",
    "make_tools",
]
