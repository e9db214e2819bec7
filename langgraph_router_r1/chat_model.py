"""The router as a chat model: for everything that takes a LangChain `BaseChatModel`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseRunManager,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult, Generation
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from pydantic import ConfigDict, PrivateAttr
from typing_extensions import override

from langgraph_router_r1.accounting import from_cache, spending, with_earlier
from langgraph_router_r1.engines.base import EngineError
from langgraph_router_r1.state import RouterContext, RouterInput, RouterOutput, RouterState, Spending


class ChatRouterR1(BaseChatModel):
    """A compiled router behind LangChain's chat model interface.

    The account of the run is in the message's `response_metadata["routing"]`. The message carries no
    `usage_metadata`: the models that were asked report their own, and money is counted once. With `with_retry`, the
    account includes the attempts that failed; an answer from a cache has an account of zero dollars.

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

    _earlier: Spending | None = PrivateAttr(default=None)
    """What failed attempts at the question at hand spent; None when attempts are not repeated."""

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
        with self._accounting():
            output = self.router.invoke({"messages": list(messages)}, config, context=self.context)
        return self._result(output)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        config: RunnableConfig = {"callbacks": AsyncCallbackManager(**_heirs(run_manager))} if run_manager else {}
        with self._accounting():
            output = await self.router.ainvoke({"messages": list(messages)}, config, context=self.context)
        return self._result(output)

    @override
    def with_retry(self, **options: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with retries; see `Runnable.with_retry`. The account includes what failed attempts spent."""
        return _Retrying(self, options)

    @contextmanager
    def _accounting(self) -> Iterator[None]:
        """Let the account on an error include earlier attempts, and keep it for the next one."""
        try:
            yield
        except EngineError as error:
            if self._earlier is not None and error.routing is not None:
                error.routing = with_earlier(error.routing, self._earlier)
                self._earlier = spending(error.routing["cost_usd"], error.routing["maybe_cost_usd"])
            raise

    def _result(self, output: dict[str, Any]) -> ChatResult:
        message = output["messages"][-1]
        routing = output["routing"] if self._earlier is None else with_earlier(output["routing"], self._earlier)
        message.response_metadata |= {"routing": routing, "model_name": self.model_name}
        return ChatResult(generations=[ChatGeneration(message=message)])

    @override
    def _convert_cached_generations(self, cache_val: list[Generation]) -> list[ChatGeneration]:
        generations = super()._convert_cached_generations(cache_val)
        for generation in generations:
            metadata = generation.message.response_metadata
            if "routing" in metadata:
                metadata = {**metadata, "routing": from_cache(metadata["routing"])}
                generation.message = generation.message.model_copy(update={"response_metadata": metadata})
        return generations


class _Retrying(Runnable[LanguageModelInput, AIMessage]):
    """A router with retries: for each question a copy that remembers what its failed attempts spent."""

    def __init__(self, model: ChatRouterR1, options: dict[str, Any]) -> None:
        self.bound, self._options = model, options

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        return self._attempts().invoke(input, config, **kwargs)

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        return await self._attempts().ainvoke(input, config, **kwargs)

    def _attempts(self) -> Runnable[LanguageModelInput, AIMessage]:
        model = self.bound.model_copy()
        model._earlier = spending(0.0, 0.0)
        return BaseChatModel.with_retry(model, **self._options)


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
