"""A router's nodes run by a loop instead of LangGraph: benchmarks over recorded replies make tens of thousands of runs.

LangGraph's own work for a run (tasks, channels, callbacks) takes several times as long as its nodes do when no model is
waited for. The nodes, the reducers of the state and so the record are the same; there are no checkpoints, events,
interrupts or traces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._constants import CONFIG_KEY_RUNTIME
from langgraph.channels import DeltaChannel
from langgraph.graph import StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import Command, Overwrite

from langgraph_router_r1.node import Node
from langgraph_router_r1.state import RouterContext, extend


class PlainRouter:
    """Runs a router's graph, one question at a time and from its start to its end.

    Example:
        >>> from langgraph_router_r1.graph import build_router
        >>> from langgraph_router_r1.strategies import AskInOrder
        >>> builder = build_router(strategy=AskInOrder(lambda view: ["small"]), registry=pool)       # doctest: +SKIP
        >>> asyncio.run(PlainRouter(builder).arun("Which?", context=RouterContext()))["answer"]      # doctest: +SKIP
    """

    def __init__(self, builder: StateGraph[Any, Any, Any, Any]) -> None:
        """Take the nodes of a graph that `build_router` made."""
        self._nodes = {name: cast("Node", node.runnable) for name, node in builder.nodes.items()}
        self._growing = {name for name, channel in builder.channels.items() if isinstance(channel, DeltaChannel)}

    async def arun(
        self, question: str, *, context: RouterContext, metadata: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the state at the end of a run.

        Args:
            question: What is asked.
            context: Of the run.
            metadata: Of the run, as its config would hold it.
        """
        runtime = Runtime(context=context)
        config: RunnableConfig = {"metadata": dict(metadata or {}), "configurable": {CONFIG_KEY_RUNTIME: runtime}}
        token = var_child_runnable_config.set(config)
        try:
            return await self._run({"messages": add_messages([], HumanMessage(question))})
        finally:
            var_child_runnable_config.reset(token)

    async def _run(self, state: dict[str, Any]) -> dict[str, Any]:
        while True:
            step = cast("Command[Any]", await self._nodes["think"].ainvoke(state))
            state = self._updated(state, cast("dict[str, Any]", step.update))
            if step.goto == "answer":
                return self._updated(state, await self._nodes["answer"].ainvoke(state))
            if step.goto != "think":
                calls = [self._nodes["route"].ainvoke(send.arg) for send in cast("list[Any]", step.goto)]
                for update in await asyncio.gather(*calls):
                    state = self._updated(state, update)

    def _updated(self, state: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state after a node, by the same reducers as LangGraph's channels have."""
        after = dict(state)
        for key, value in update.items():
            if isinstance(value, Overwrite):
                after[key] = value.value
            elif key == "messages":
                after[key] = add_messages(state[key], value)
            elif key in self._growing:
                after[key] = extend(state.get(key, []), [value])
            else:
                after[key] = value
        return after
