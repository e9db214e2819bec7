"""Replies in the form of OpenAI's chat completions, whole and as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from langgraph_router_r1.ledger import Usage
from langgraph_router_r1.serving.errors import ApiError
from langgraph_router_r1.serving.reply import Reply, ReplyStream, ToolCallOut
from langgraph_router_r1.serving.runs import Run

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment in a stream, which clients skip."""


def completion(run: Run, reply: Reply) -> dict[str, Any]:
    """Return a reply whole."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None if reply.tool_calls else reply.text}
    if reply.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in reply.tool_calls]
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    return {
        **_head(run, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}],
        "usage": _usage(reply.usage),
        "router_r1": reply.bill,
    }


async def chunks(run: Run, *, include_usage: bool) -> AsyncIterator[bytes]:
    """Yield a reply while it is written, as events; an error in the middle is an event, too."""
    head = _head(run, "chat.completion.chunk")
    stream = ReplyStream(run)

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**head, "choices": [choice], **more})

    yield chunk({"role": "assistant", "content": ""}, router_r1={"run_id": run.id})
    try:
        async for piece in stream.pieces():
            match piece.kind:
                case "text":
                    yield chunk({"content": piece.text})
                case "reasoning":
                    yield chunk({"reasoning_content": piece.text})
                case "event":
                    yield sse({**head, "choices": [], "router_r1": {"run_id": run.id, "event": piece.event}})
                case "idle":
                    yield KEEP_ALIVE
    except ApiError as error:
        yield sse(error.body)
        return
    reply = stream.reply
    assert reply is not None
    if reply.tool_calls:
        yield chunk({"tool_calls": [{"index": at, **_tool_call(call)} for at, call in enumerate(reply.tool_calls)]})
    yield chunk({}, reply.finish_reason, router_r1=reply.bill)
    if include_usage:
        yield sse({**head, "choices": [], "usage": _usage(reply.usage)})
    yield b"data: [DONE]\n\n"


def sse(data: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


def _head(run: Run, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{run.id.removeprefix('run-')}",
        "object": kind,
        "created": int(run.created_at),
        "model": run.asked.model,
    }


def _tool_call(call: ToolCallOut) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        "prompt_tokens_details": {"cached_tokens": usage["cached_tokens"]},
    }
