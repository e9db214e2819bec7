"""Requests of OpenAI's responses API, as far as the router knows them: text, images, tools and a form of the answer.

Each response is a run of its own: a client sends the conversation each time, and `previous_response_id` is refused.
"""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import Field

from langgraph_router_r1.serving.errors import invalid
from langgraph_router_r1.serving.wire import (
    Asked,
    JsonSchema,
    ReplyTokens,
    RouterOptions,
    Wire,
    checked,
    form_or_tools,
    image_block,
    tool_call,
)


class ItemPart(Wire):
    """A part of a message's content."""

    type: Literal["input_text", "output_text", "text", "input_image"]
    text: str = ""
    image_url: str | None = None


class Item(Wire):
    """An item of the input: a message, a tool call of an earlier response, its result, or what it thought."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: str | list[ItemPart] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[ItemPart] = ""

    def add_to(self, messages: list[AnyMessage], place: int) -> None:
        """Add it to the conversation; `place` is its place in the input, for errors."""
        match self.type:
            case "message":
                messages.append(self._message(_content(self.content, f"input.{place}.content")))
            case "function_call_output":
                content = _content(self.output, f"input.{place}.output")
                messages.append(ToolMessage(content, tool_call_id=self.call_id))
            case "function_call":
                call: Any = tool_call(self.call_id, self.name, self.arguments, f"input.{place}.arguments")
                last = messages[-1] if messages else None
                # Providers want all calls of a turn in one message.
                if isinstance(last, AIMessage):
                    messages[-1] = AIMessage(last.content, tool_calls=[*last.tool_calls, call])
                else:
                    messages.append(AIMessage("", tool_calls=[call]))

    def _message(self, content: Any) -> AnyMessage:
        match self.role:
            case "user":
                return HumanMessage(content)
            case "assistant":
                return AIMessage(content)
            case _:
                return SystemMessage(content)


def _content(content: str | list[ItemPart] | None, param: str) -> Any:
    if not isinstance(content, list):
        return content or ""
    if all(part.type != "input_image" for part in content):
        return "".join(part.text for part in content)
    return [
        image_block(part.image_url or "", param) if part.type == "input_image" else {"type": "text", "text": part.text}
        for part in content
    ]


class TextFormat(JsonSchema):
    """How the answer shall look."""

    type: Literal["text", "json_schema"] = "text"


class TextOptions(Wire):
    """Options of the text."""

    format: TextFormat = Field(default_factory=TextFormat)


class ResponsesRequest(Wire):
    """The body of `POST /v1/responses`."""

    model: str = Field(max_length=256)
    input: str | list[Item]
    instructions: str | None = None
    stream: bool = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: TextOptions | None = None
    previous_response_id: str | None = None
    background: Literal[False] | None = None
    max_output_tokens: ReplyTokens = None
    router_r1: RouterOptions = Field(default_factory=RouterOptions)

    def asked(self) -> Asked:
        """Return what the request asks.

        Raises:
            ApiError: It can't be asked.
        """
        if self.previous_response_id is not None:
            raise invalid("responses are not continued here: send the whole conversation", "previous_response_id")
        messages: list[AnyMessage] = [SystemMessage(self.instructions)] if self.instructions else []
        items = [Item(content=self.input)] if isinstance(self.input, str) else self.input
        for place, item in enumerate(items):
            item.add_to(messages, place)
        form = self.text.format if self.text is not None and self.text.format.type == "json_schema" else None
        return Asked(
            model=self.model,
            messages=checked(messages),
            tools=form_or_tools(form, [_nested(tool) for tool in self.tools or []], self.tool_choice),
            options=self.router_r1,
            stream=self.stream,
            max_tokens=self.max_output_tokens,
        )


def _nested(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool in the form that chat completions have."""
    return {"type": tool.get("type"), "function": {name: value for name, value in tool.items() if name != "type"}}
