"""A turn of the router LLM as a LangChain run of an LLM: callbacks, LangSmith and `get_usage_metadata_callback` see it.

Engines that are no chat models of LangChain's would be missing from every trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import (
    RunnableConfig,
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
)

from langgraph_router_r1.engines.base import Generation, RouterEngine
from langgraph_router_r1.engines.chat_model import ChatModelEngine
from langgraph_router_r1.ledger import Usage
from langgraph_router_r1.transcript import Segment


def generate(engine: RouterEngine, transcript: Sequence[Segment], **options: Any) -> Generation:
    """Sample a turn, as a child of the run that is under way; see `RouterEngine.generate`."""
    # A chat model is a run already.
    if isinstance(engine, ChatModelEngine) or _is_unheard():
        return engine.generate(transcript, **options)
    manager = get_callback_manager_for_config(_config(engine))
    if not manager.handlers:
        return engine.generate(transcript, **options)
    [run] = manager.on_llm_start(_serialized(engine), [_text(transcript)], name="router", **_params(options))
    try:
        generation = engine.generate(transcript, **options)
    except BaseException as error:
        run.on_llm_error(error)
        raise
    run.on_llm_end(_result(engine, generation))
    return generation


async def agenerate(engine: RouterEngine, transcript: Sequence[Segment], **options: Any) -> Generation:
    """Sample a turn without blocking; see `generate`."""
    if isinstance(engine, ChatModelEngine) or _is_unheard():
        return await engine.agenerate(transcript, **options)
    manager = get_async_callback_manager_for_config(_config(engine))
    if not manager.handlers:
        return await engine.agenerate(transcript, **options)
    [run] = await manager.on_llm_start(_serialized(engine), [_text(transcript)], name="router", **_params(options))
    try:
        generation = await engine.agenerate(transcript, **options)
    except BaseException as error:
        await run.on_llm_error(error)
        raise
    await run.on_llm_end(_result(engine, generation))
    return generation


def _is_unheard() -> bool:
    """Return whether this is part of a run that has no callbacks: LangChain settles them when the run begins."""
    callbacks = ensure_config().get("callbacks")
    return isinstance(callbacks, BaseCallbackManager) and not callbacks.handlers


def _config(engine: RouterEngine) -> RunnableConfig:
    config = ensure_config()
    # The names by which LangSmith knows what was asked.
    named = {"ls_provider": type(engine).__name__, "ls_model_name": engine.model, "ls_model_type": "llm"}
    return {**config, "metadata": {**config.get("metadata", {}), **named}}


def _serialized(engine: RouterEngine) -> dict[str, Any]:
    return {"name": type(engine).__name__}


def _params(options: dict[str, Any]) -> dict[str, Any]:
    return {"invocation_params": {"max_tokens": options["max_tokens"], "stop": list(options["stop"])}}


def _text(transcript: Sequence[Segment]) -> str:
    return "".join(segment["text"] for segment in transcript)


def _result(engine: RouterEngine, generation: Generation) -> LLMResult:
    message = AIMessage(
        generation.segment["text"],
        usage_metadata=usage_metadata(generation.usage),
        response_metadata={"model_name": engine.model, "finish_reason": generation.finish},
    )
    return LLMResult(generations=[[ChatGeneration(message=message)]])


def usage_metadata(usage: Usage) -> UsageMetadata:
    """Return token counts as LangChain's messages have them."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        "input_token_details": {
            "cache_read": usage["cached_tokens"],
            "cache_creation": usage.get("cache_write_tokens", 0),
        },
    }
