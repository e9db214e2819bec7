"""How a routed model is called: candidates, the client of one model, and the middleware around each call."""

from langgraph_router_r1.calls.cache import CallCache
from langgraph_router_r1.calls.candidates import Candidates
from langgraph_router_r1.calls.middleware import CallMiddleware, ModelCall

__all__ = ["CallCache", "CallMiddleware", "Candidates", "ModelCall"]
