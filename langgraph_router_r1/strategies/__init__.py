"""Who decides what a run does next: the router LLM, a fixed plan, or a strategy of your own."""

from langgraph_router_r1.protocol import Call
from langgraph_router_r1.strategies.base import Again, Answer, Ask, Decision, Propose, Strategy, View
from langgraph_router_r1.strategies.in_order import AskInOrder
from langgraph_router_r1.strategies.router_llm import RouterLLM

__all__ = ["Again", "Answer", "Ask", "AskInOrder", "Call", "Decision", "Propose", "RouterLLM", "Strategy", "View"]
