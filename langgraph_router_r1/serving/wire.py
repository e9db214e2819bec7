"""Requests of OpenAI's chat completions, as far as the router knows them, and what they ask.

Other fields, such as `temperature` and `max_tokens`, are ignored: what a model is called with stands in the registry.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel, ConfigDict, Field

from langgraph_router_r1.calls.tools import make_tools
from langgraph_router_r1.descriptor import MOST_TOKENS
from langgraph_router_r1.question import last_question
from langgraph_router_r1.serving.errors import invalid
from langgraph_router_r1.state import Tools
from langgraph_router_r1.storable import storable

FORM_NAME = "answer"
"""The name of a form that has none."""


class Wire(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, allow_inf_nan=False)


class RouterOptions(Wire):
    """The field `router_r1` of a request: what the router takes and OpenAI's API has no field for."""

    model_config = ConfigDict(extra="forbid")

    budget_usd: float | None = Field(default=None, ge=0)
    """The most that the run may spend, in dollars."""
    cost_weight: float | None = Field(default=None, ge=0, le=1)
    """How much money counts; overrides that of the preset."""
    trace: bool | None = None
    """Whether thoughts, calls and replies are sent as reasoning."""
    events: bool = False
    """Whether a stream also carries the router's events, each in a chunk without choices."""


class ImageUrl(Wire):
    """Where an image is."""

    url: str


class Part(Wire):
    """A part of a message's content."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None


class Function(Wire):
    """A call of a function."""

    name: str
    arguments: str


class ToolCallPart(Wire):
    """A tool call in an earlier reply."""

    id: str
    function: Function


class Message(Wire):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCallPart] = Field(default_factory=list)
    tool_call_id: str | None = None

    def as_langchain(self, place: int) -> AnyMessage:
        """Return it for the graph; `place` is its place in the conversation, for errors."""
        content = self._content(place)
        match self.role:
            case "user":
                return HumanMessage(content)
            case "assistant":
                return AIMessage(content, tool_calls=[_tool_call(call, place) for call in self.tool_calls])
            case "tool":
                if self.tool_call_id is None:
                    raise invalid("a message of the role 'tool' needs a tool_call_id", f"messages.{place}.tool_call_id")
                return ToolMessage(content, tool_call_id=self.tool_call_id)
            case _:
                return SystemMessage(content)

    def _content(self, place: int) -> Any:
        if not isinstance(self.content, list):
            return self.content or ""
        if all(part.type == "text" for part in self.content):
            return "".join(part.text for part in self.content)
        return [_block(part, f"messages.{place}.content") for part in self.content]


def _block(part: Part, param: str) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    return image_block(part.image_url.url if part.image_url else "", param)


def image_block(url: str, param: str) -> dict[str, Any]:
    """Return an image for the graph.

    Raises:
        ApiError: It is not given as data. Whoever fetched an address would do so from within the server's network.
    """
    if not url.startswith("data:image/"):
        raise invalid("an image must be given as data: 'data:image/png;base64,...'; addresses are not fetched", param)
    return {"type": "image_url", "image_url": {"url": url}}


def _tool_call(call: ToolCallPart, place: int) -> Any:
    return tool_call(call.id, call.function.name, call.function.arguments, f"messages.{place}.tool_calls")


def tool_call(call_id: str, name: str, arguments: str, param: str) -> dict[str, Any]:
    """Return a tool call of the conversation for the graph.

    Raises:
        ApiError: Its arguments are no JSON object, or can't be stored.
    """
    try:
        args = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        args = None
    if not isinstance(args, dict):
        raise invalid("the arguments of a tool call must be a JSON object, as text", param)
    try:
        return {"name": name, "args": storable(args), "id": call_id, "type": "tool_call"}
    except ValueError as error:
        raise invalid(f"the arguments of a tool call: {error}", param) from None


class JsonSchema(Wire):
    """The form of an answer."""

    name: str = FORM_NAME
    description: str = ""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")

    def as_tools(self) -> Tools | None:
        """Return the tool by which a model puts the answer into this form."""
        parameters = {"type": "object", "properties": {}, **self.schema_}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return tools_of([{"type": "function", "function": function}], self.name, is_form=True)


class ResponseFormat(Wire):
    """How the answer shall look."""

    type: Literal["text", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Wire):
    """Options of a stream."""

    include_usage: bool = False


Stop = Annotated[list[str], Field(max_length=4)]

ReplyTokens = Annotated[int | None, Field(ge=1, le=MOST_TOKENS)]


class ChatRequest(Wire):
    """The body of `POST /v1/chat/completions`."""

    model: str = Field(max_length=256)
    messages: list[Message]
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    stop: str | Stop | None = None
    n: Literal[1] | None = None
    max_tokens: ReplyTokens = None
    max_completion_tokens: ReplyTokens = None
    router_r1: RouterOptions = Field(default_factory=RouterOptions)

    def asked(self) -> Asked:
        """Return what the request asks.

        Raises:
            ApiError: It can't be asked.
        """
        form = None if self.response_format is None else self.response_format.json_schema
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Asked(
            model=self.model,
            messages=checked([message.as_langchain(place) for place, message in enumerate(self.messages)]),
            tools=form_or_tools(form, self.tools, self.tool_choice),
            options=self.router_r1,
            stream=self.stream,
            stop=tuple(text for text in stop if text),
            max_tokens=self.max_completion_tokens or self.max_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks, by whichever API it came."""

    model: str
    messages: list[AnyMessage]
    tools: Tools | None
    options: RouterOptions
    stream: bool
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    """Most tokens of the reply, of a model that is asked directly; None for what the registry says."""

    @property
    def question(self) -> str:
        """The text of the last message of the user."""
        return self.messages[last_question(self.messages)].text


def checked(messages: list[AnyMessage]) -> list[AnyMessage]:
    """Return the messages.

    Raises:
        ApiError: There is no question in them.
    """
    try:
        last_question(messages)
    except ValueError as error:
        raise invalid(str(error), "messages") from None
    return messages


def form_or_tools(form: JsonSchema | None, tools: list[dict[str, Any]] | None, choice: Any) -> Tools | None:
    """Return the tools of a run: those that were offered, or the form of the answer.

    Raises:
        ApiError: There are both, or they are not as they must be.
    """
    if form is None:
        return tools_of(tools or [], choice, is_form=False)
    if tools:
        raise invalid("tools and a JSON schema for the answer can't be combined in one request", "tools")
    return form.as_tools()


def tools_of(tools: list[dict[str, Any]], choice: Any, *, is_form: bool) -> Tools | None:
    """Return what `make_tools` makes of tools in OpenAI's form; its errors are those of the request."""
    try:
        for tool in tools:
            if tool.get("type") != "function" or not isinstance(tool["function"]["name"], str):
                raise ValueError("each tool must be a function with a name")
        return make_tools(storable(tools), choice, is_form=is_form)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = str(error) if isinstance(error, ValueError) else "each tool must be a function with a name"
        raise invalid(message, "tools") from None
