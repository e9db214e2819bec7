"""The router as a chat model: for everything that takes a LangChain `BaseChatModel`."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseRunManager,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from pydantic import ConfigDict

from langgraph_router_r1.state import RouterContext, RouterInput, RouterOutput, RouterState


class ChatRouterR1(BaseChatModel):
    """A compiled router behind LangChain's chat model interface.

    The account of the run is in the message's `response_metadata["routing"]`. The message carries no
    `usage_metadata`: the models that were asked report their own, and money is counted once.

    Example:
        >>> from langgraph_router_r1 import ChatRouterR1, ModelDescriptor, ModelRegistry, create_router
        >>> from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
        >>> pool = ModelRegistry([ModelDescriptor(name="small", model=ScriptedChatModel(["Lima"]), price="free")])
        >>> router = create_router(ScriptedEngine(["<think> easy </think><answer> Lima </answer>"]), pool)
        >>> ChatRouterR1(router=router).invoke("What is the capital of Peru?").content
        'Lima'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    router: CompiledStateGraph[RouterState, RouterContext, RouterInput, RouterOutput]
    """What `create_router` returns, without a checkpointer: a chat model is given the whole conversation each time."""

    context: RouterContext | None = None
    """Overrides for every run, as for `invoke(..., context=...)`."""

    model_name: str = "router-r1"
    """What traces call it."""

    @property
    def _llm_type(self) -> str:
        return "router-r1"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # Keys of a cache: two routers must not share its entries, and a graph has nothing else to tell it by.
        return {"model_name": self.model_name, "router": id(self.router), "context": repr(self.context)}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        config: RunnableConfig = {"callbacks": CallbackManager(**_heirs(run_manager))} if run_manager else {}
        return self._result(self.router.invoke({"messages": list(messages)}, config, context=self.context))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        config: RunnableConfig = {"callbacks": AsyncCallbackManager(**_heirs(run_manager))} if run_manager else {}
        return self._result(await self.router.ainvoke({"messages": list(messages)}, config, context=self.context))

    def _result(self, output: dict[str, Any]) -> ChatResult:
        message = output["messages"][-1]
        message.response_metadata |= {"routing": output["routing"], "model_name": self.model_name}
        return ChatResult(generations=[ChatGeneration(message=message)])


def _heirs(manager: BaseRunManager) -> dict[str, Any]:
    """Return what makes the router's own runs children of this one: LangChain's model runs expect no children."""
    return {
        "handlers": manager.inheritable_handlers,
        "inheritable_handlers": manager.inheritable_handlers,
        "parent_run_id": manager.run_id,
        "tags": manager.inheritable_tags,
        "inheritable_tags": manager.inheritable_tags,
        "metadata": manager.inheritable_metadata,
        "inheritable_metadata": manager.inheritable_metadata,
    }
