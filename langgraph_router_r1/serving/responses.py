"""Replies in the form of OpenAI's responses API, whole and as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from langgraph_router_r1.ledger import Usage
from langgraph_router_r1.serving.chat import KEEP_ALIVE
from langgraph_router_r1.serving.errors import ApiError
from langgraph_router_r1.serving.reply import Reply, ReplyStream, ToolCallOut
from langgraph_router_r1.serving.runs import Run

Json = dict[str, Any]


def response(run: Run, reply: Reply) -> Json:
    """Return a reply whole."""
    output = [_reasoning(run, reply.reasoning)] if reply.reasoning else []
    if reply.text or not reply.tool_calls:
        output.append(_message(run, reply.text))
    output += [_function_call(run, place, call) for place, call in enumerate(reply.tool_calls)]
    is_whole = reply.finish_reason in ("stop", "tool_calls")
    why = "content_filter" if reply.finish_reason == "content_filter" else "max_output_tokens"
    return {
        **_head(run, "completed" if is_whole else "incomplete"),
        "incomplete_details": None if is_whole else {"reason": why},
        "output": output,
        "usage": _usage(reply.usage),
        "router_r1": reply.bill,
    }


class Events:
    """The events of one response, numbered, with its items in order."""

    def __init__(self, run: Run) -> None:
        """Begin with none."""
        self._run = run
        self._number = -1
        self._items = 0
        self._open: Json | None = None
        self._text = ""

    def event(self, kind: str, **fields: Any) -> bytes:
        """Return an event as it is sent."""
        self._number += 1
        data = {"type": kind, "sequence_number": self._number, **fields}
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()

    def piece(self, item: Json, text: str) -> list[bytes]:
        """Return the events by which a text item grows; it is opened if need be, and another one closed."""
        events = []
        if self._open is None or self._open["id"] != item["id"]:
            events += self.close()
            self._open, self._text = item, ""
            empty = {**item, "content": [], "status": "in_progress"}
            events.append(self.event("response.output_item.added", output_index=self._items, item=empty))
            if item["type"] == "message":
                events.append(self.event("response.content_part.added", **self._place(), part=_output_text("")))
        self._text += text
        more: Json = {"logprobs": []} if item["type"] == "message" else {}
        events.append(self.event(f"response.{_KIND[item['type']]}.delta", **self._place(), delta=text, **more))
        return events

    def close(self) -> list[bytes]:
        """Return the events that end the open text item, if there is one."""
        if self._open is None:
            return []
        item, text = self._open, self._text
        more: Json = {"logprobs": []} if item["type"] == "message" else {}
        events = [self.event(f"response.{_KIND[item['type']]}.done", **self._place(), text=text, **more)]
        if item["type"] == "message":
            events.append(self.event("response.content_part.done", **self._place(), part=_output_text(text)))
            done = _message(self._run, text)
        else:
            done = _reasoning(self._run, text)
        events.append(self.event("response.output_item.done", output_index=self._items, item=done))
        self._open = None
        self._items += 1
        return events

    def function_call(self, item: Json) -> list[bytes]:
        """Return the events of a tool call."""
        place = {"output_index": self._items, "item_id": item["id"]}
        events = [
            self.event(
                "response.output_item.added",
                output_index=self._items,
                item={**item, "arguments": "", "status": "in_progress"},
            ),
            self.event("response.function_call_arguments.delta", **place, delta=item["arguments"]),
            self.event(
                "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
            ),
            self.event("response.output_item.done", output_index=self._items, item=item),
        ]
        self._items += 1
        return events

    def _place(self) -> Json:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._items, "content_index": 0}


_KIND = {"message": "output_text", "reasoning": "reasoning_text"}


async def events(run: Run) -> AsyncIterator[bytes]:
    """Yield a reply while it is written, as events; an error in the middle is an event, too."""
    made, stream = Events(run), ReplyStream(run)
    begun = {**_head(run, "in_progress"), "output": [], "usage": None}
    yield made.event("response.created", response=begun)
    yield made.event("response.in_progress", response=begun)
    try:
        async for piece in stream.pieces():
            match piece.kind:
                case "text":
                    for event in made.piece(_message(run, ""), piece.text):
                        yield event
                case "reasoning":
                    for event in made.piece(_reasoning(run, ""), piece.text):
                        yield event
                case "event":
                    yield made.event("router_r1.event", event=piece.event)
                case "idle":
                    yield KEEP_ALIVE
    except ApiError as error:
        said = error.body["error"]
        failed = {**begun, "status": "failed", "error": {"code": "server_error", "message": said["message"]}}
        yield made.event("response.failed", response={**failed, "router_r1": {"run_id": run.id, "code": error.code}})
        return
    reply = stream.reply
    assert reply is not None
    for event in made.close():
        yield event
    for place, call in enumerate(reply.tool_calls):
        for event in made.function_call(_function_call(run, place, call)):
            yield event
    whole = response(run, reply)
    yield made.event(f"response.{whole['status']}", response=whole)


def _head(run: Run, status: str) -> Json:
    return {
        "id": f"resp_{run.id.removeprefix('run-')}",
        "object": "response",
        "created_at": int(run.created_at),
        "status": status,
        "model": run.asked.model,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": [],
        "router_r1": {"run_id": run.id},
    }


def _message(run: Run, text: str) -> Json:
    item_id = f"msg_{run.id.removeprefix('run-')}"
    content = [_output_text(text)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": content}


def _output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _reasoning(run: Run, text: str) -> Json:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": f"rs_{run.id.removeprefix('run-')}", "type": "reasoning", "summary": [], "content": content}


def _function_call(run: Run, place: int, call: ToolCallOut) -> Json:
    return {
        "id": f"fc_{run.id.removeprefix('run-')}_{place}",
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["cached_tokens"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
    }
