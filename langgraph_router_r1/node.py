"""A node of a LangGraph graph that is written twice: blocking and asynchronous."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from typing_extensions import override


class Node(Runnable[Any, Any]):
    """A node with a blocking and an asynchronous body, and nothing around them.

    `RunnableLambda` would trace each node a second time and read its signature on every call.
    """

    def __init__(self, body: Callable[[Any], Any], abody: Callable[[Any], Awaitable[Any]]) -> None:
        self._body, self._abody = body, abody

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._body(input)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._abody(input)
