"""The router as a chat model: for everything that takes a LangChain `BaseChatModel`."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, Generation
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.pregel._messages import StreamMessagesHandler
from langgraph.pregel.protocol import PregelProtocol
from langgraph.types import StreamMode, StreamWriter
from pydantic import ConfigDict, PrivateAttr
from typing_extensions import override

from langgraph_router_r1.accounting import from_cache, spending, with_earlier
from langgraph_router_r1.calls.client import asked_by_a_router
from langgraph_router_r1.calls.tools import ToolLike, make_tools
from langgraph_router_r1.engines.base import EngineError
from langgraph_router_r1.engines.llm_run import usage_metadata
from langgraph_router_r1.events import RouterEvent
from langgraph_router_r1.state import RouterContext, RouterInput, RouterOutput, RouterState, Spending, Tools

_Manager = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun


class ChatRouterR1(BaseChatModel):
    """A compiled router behind LangChain's chat model interface.

    The message's `usage_metadata` counts the tokens of the router LLM itself; the account of the run, with the models
    that were asked, is in `response_metadata["routing"]`. With `with_retry`, the account includes the attempts that
    failed; an answer from a cache has an account of zero dollars. The answer is streamed as the router writes it.

    Example:
        >>> from langgraph_router_r1 import ChatRouterR1, ModelDescriptor, ModelRegistry, create_router
        >>> from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
        >>> pool = ModelRegistry([ModelDescriptor(name="small", model=ScriptedChatModel(["Lima"]), price="free")])
        >>> router = create_router(ScriptedEngine(["<think> easy </think><answer> Lima </answer>"]), pool)
        >>> ChatRouterR1(router=router).invoke("What is the capital of Peru?").content
        'Lima'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    router: PregelProtocol[RouterState, RouterContext, RouterInput, RouterOutput]
    """What `create_router` returns, without a checkpointer: a chat model is given the whole conversation each time. Or
    the `RemoteGraph` of such a router on a LangGraph server; a run that fails there has no account here."""

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
        *,
        tools: Tools | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._accounting():
            output = self.router.invoke(**self._run(messages, run_manager, tools))
        return ChatResult(generations=[ChatGeneration(message=self._message(output, stop))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        tools: Tools | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._accounting():
            output = await self.router.ainvoke(**self._run(messages, run_manager, tools))
        return ChatResult(generations=[ChatGeneration(message=self._message(output, stop))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        tools: Tools | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        pieces = _Pieces(stop)
        with self._accounting():
            for event in self.router.stream(**self._run(messages, run_manager, tools), stream_mode=pieces.modes):
                for chunk in pieces.of(event):
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        yield pieces.last(self._message(pieces.output, stop))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        tools: Tools | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        pieces = _Pieces(stop)
        with self._accounting():
            async for event in self.router.astream(**self._run(messages, run_manager, tools), stream_mode=pieces.modes):
                for chunk in pieces.of(event):
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        yield pieces.last(self._message(pieces.output, stop))

    @override
    def bind_tools(
        self, tools: Sequence[ToolLike], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools: the router chooses the model, and the model that is chosen calls the tool.

        `with_structured_output` works by it: once the router has its answer, a model puts it into the form.
        """
        made = make_tools(tools, tool_choice, is_form="ls_structured_output_format" in kwargs)
        return self.bind(tools=made, **kwargs)

    @override
    def with_retry(self, **options: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with retries; see `Runnable.with_retry`. The account includes what failed attempts spent."""
        return _Retrying(self, options)

    def _run(self, messages: list[BaseMessage], manager: _Manager | None, tools: Tools | None) -> dict[str, Any]:
        """Return what the graph is invoked with."""
        context = self.context if tools is None else replace(self.context or RouterContext(), tools=tools)
        return {"input": {"messages": list(messages)}, "config": _below(manager), "context": context}

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

    def _message(self, output: Mapping[str, Any], stop: list[str] | None) -> AIMessage:
        """Return the answer of a run, up to the first of the stop strings, with its usage and its account."""
        [message] = convert_to_messages(output["messages"][-1:])  # a remote graph's are JSON
        if not isinstance(message, AIMessage):
            msg = (
                "the run was interrupted, as by approve=..., and a chat model can't wait: use the router itself, with "
                "a checkpointer, or one without approval"
            )
            raise RuntimeError(msg)  # noqa: TRY004 - not the caller's type is wrong, but what the router is
        routing = output["routing"] if self._earlier is None else with_earlier(output["routing"], self._earlier)
        message.response_metadata |= {"routing": routing, "model_name": self.model_name}
        message.usage_metadata = usage_metadata(routing["router_tokens"])
        if stop:
            message.content = re.split("|".join(map(re.escape, stop)), message.text, maxsplit=1)[0]
        return message

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


class _Pieces:
    """Turns what a run streams into the chunks of one message."""

    modes: ClassVar[list[StreamMode]] = ["custom", "values"]

    def __init__(self, stop: list[str] | None) -> None:
        self.output: dict[str, Any] = {}
        """The run's output so far."""
        self._waits = bool(stop)  # what stands before a stop string is known at the end only
        self._text, self._message_id = "", ""
        self._write: StreamWriter | None = None  # of a graph around this model
        if not asked_by_a_router.get():
            with contextlib.suppress(RuntimeError, KeyError):  # there is none
                self._write = get_stream_writer()

    def of(self, streamed: Any) -> Iterator[ChatGenerationChunk]:
        """Yield what a streamed item adds to the message."""
        mode, item, *_ = streamed  # a remote graph adds an id
        if mode == "values":
            self.output = item
            return
        if self._write is not None:
            self._write(item)
        event: RouterEvent = item
        if event["type"] == "router_r1.think_delta":
            yield _chunk("", additional_kwargs={"reasoning_content": event["text"]})
        elif event["type"] == "router_r1.answer_delta" and not self._waits:
            if self._text and event["message_id"] != self._message_id:
                return  # another answer takes the place of this one: `last` tells
            self._message_id = event["message_id"]
            self._text += event["text"]
            yield _chunk(event["text"])

    def last(self, message: AIMessage) -> ChatGenerationChunk:
        """Return the last chunk, with the usage and the account.

        Raises:
            EngineError: The router's server broke off in the middle of the answer, and the fallback gave another one.
        """
        if not message.text.startswith(self._text):
            msg = "the answer that was streamed broke off, and another one took its place; ask again"
            error = EngineError(msg)
            error.routing = message.response_metadata["routing"]
            raise error
        return _chunk(
            message.text[len(self._text) :],
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
            tool_call_chunks=[
                tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
                for index, call in enumerate(message.tool_calls)
            ],
            chunk_position="last",
        )


def _chunk(text: str, **fields: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text, **fields))


def _below(manager: _Manager | None) -> RunnableConfig:
    """Return the config that makes the router's own runs children of this one: model runs expect no children."""
    if manager is None:
        return {}
    # Who streams the messages of a graph around us streams this model's chunks, and not the same again from within.
    inherited = [handler for handler in manager.inheritable_handlers if not isinstance(handler, StreamMessagesHandler)]
    kind = AsyncCallbackManager if isinstance(manager, AsyncCallbackManagerForLLMRun) else CallbackManager
    callbacks = kind(
        handlers=inherited,
        inheritable_handlers=inherited,
        parent_run_id=manager.run_id,
        tags=manager.inheritable_tags,
        inheritable_tags=manager.inheritable_tags,
        metadata=manager.inheritable_metadata,
        inheritable_metadata=manager.inheritable_metadata,
    )
    return {"callbacks": callbacks}
