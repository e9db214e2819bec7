"""Tools that routed models may call, in one form for all providers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.runnables import RunnableBinding
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langgraph_router_r1.state import Tools

ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool


class ToolsNotSupportedError(NotImplementedError):
    """A chat model can't call tools."""


def make_tools(tools: Sequence[ToolLike], choice: Any = None, *, is_form: bool = False) -> Tools | None:
    """Return tools as a run's context takes them; None if there are none or none may be called.

    Args:
        tools: In any form that LangChain takes.
        choice: None or "auto": the model decides; "any", "required" or True: it must call one; a tool's name, or
            OpenAI's form of it: it must call that one; "none" or False: it must not.
        is_form: Whether the tool is only the form of the final answer: then it is not offered while the router asks.

    Example:
        >>> def add(a: int, b: int) -> int:
        ...     '''Add.'''
        ...     return a + b
        >>> made = make_tools([add], "add")
        >>> made["choice"], made["tools"][0]["function"]["name"]
        ('add', 'add')
    """
    if not tools or choice in ("none", False):
        return None
    given = choice
    if isinstance(choice, dict):
        choice = (choice.get("function") or choice).get("name") or choice.get("type") or str(given)
    named = None if choice in (None, "auto") else "any" if choice in ("any", "required", True) else str(choice)
    made = [convert_to_openai_tool(tool) for tool in tools]
    if any("function" not in tool for tool in made):
        msg = "only functions can be tools here: what a provider runs itself belongs in the params of a model"
        raise ValueError(msg)
    names = [tool["function"]["name"] for tool in made]
    if named not in (None, "any", *names):
        msg = f"tool_choice is {given!r}; it must be 'auto', 'any', 'none' or one of {', '.join(map(repr, names))}"
        raise ValueError(msg)
    return {"tools": made, "choice": named, "is_form": is_form}


def tool_options(model: Any, tools: Tools) -> dict[str, Any]:
    """Return the options of a request by which a chat model is offered tools, in its provider's own form.

    Raises:
        ToolsNotSupportedError: The model can't call tools.
    """
    bind = getattr(model, "bind_tools", None)
    if bind is None:  # a graph or another Runnable, which has tools of its own
        return {}
    choice = {} if tools["choice"] is None else {"tool_choice": tools["choice"]}
    try:
        bound = bind(tools["tools"], **choice)
    except NotImplementedError:
        bound = None
    if not isinstance(bound, RunnableBinding):
        raise ToolsNotSupportedError(f"{type(model).__name__} can't call tools")
    return dict(bound.kwargs)
