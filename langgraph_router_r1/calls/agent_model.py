"""A LangGraph agent, or any graph whose state has `messages`, as a routed model: messages in, one message out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import Runnable, RunnableConfig
from typing_extensions import override


class AgentModel(Runnable[Any, AIMessage]):
    """Runs a compiled graph on messages and returns its last message.

    The message reports the tokens of all model calls that the graph made and left in its messages. If the graph is a
    router, the message carries the router's account, as the message of a `ChatRouterR1` does.

    Example:
        >>> agent = AgentModel(create_agent("openai:gpt-4o-mini", tools=[...]))            # doctest: +SKIP
        >>> agent.invoke([HumanMessage("Capital of Peru?")]).text                          # doctest: +SKIP
        'Lima'
    """

    def __init__(self, graph: Runnable[Any, Any]) -> None:
        """Wrap a compiled graph."""
        self.graph = graph

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        return _last_message(input, self.graph.invoke({"messages": input}, config))

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        return _last_message(input, await self.graph.ainvoke({"messages": input}, config))


def _last_message(asked: Sequence[BaseMessage], output: Any) -> AIMessage:
    messages = output.get("messages") if isinstance(output, Mapping) else None
    if not messages or not isinstance(messages[-1], AIMessage):
        msg = "a graph must return a state whose 'messages' end with an AIMessage"
        raise TypeError(msg)
    known = {message.id for message in asked if message.id}
    written = [message for message in messages if isinstance(message, AIMessage) and message.id not in known]
    usage: UsageMetadata | None = None
    for message in written:
        usage = add_usage(usage, message.usage_metadata)
    last = messages[-1]
    account = {"routing": output["routing"]} if "routing" in output else {}
    return last.model_copy(
        update={
            "usage_metadata": usage if any(message.usage_metadata for message in written) else None,
            "response_metadata": {**last.response_metadata, **account},
        }
    )
