"""ChatRouterR1 passes LangChain's own integration suite for chat models; what is skipped says why."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import answer, search
from httpx import Response
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langgraph_router_r1 import ChatRouterR1, ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.question import last_question
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine


class FillsForms(ScriptedChatModel):
    """Calls the first tool that has not replied yet, its arguments made of the question; else it replies in text."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        tools = [tool["function"] for tool in kwargs.get("tools") or []]
        called = {call["name"] for message in messages if isinstance(message, AIMessage) for call in message.tool_calls}
        left = [tool for tool in tools if tool["name"] not in called]
        usage: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        reply = AIMessage("It is so.", usage_metadata=usage)
        if left:
            question = messages[last_question(messages)].text
            properties = left[0]["parameters"].get("properties", {})
            arguments = {name: filled(form, question) for name, form in properties.items()}
            calls: Any = [{"name": left[0]["name"], "args": arguments, "id": "call-1", "type": "tool_call"}]
            reply = AIMessage("", tool_calls=calls, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=reply)])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return self._generate(messages, stop, run_manager, **kwargs)


def filled(form: dict[str, Any], question: str) -> Any:
    """A value of the type that a schema wants."""
    if form.get("type") in {"integer", "number"}:
        found = re.search(r"\d+", question)
        return int(found[0]) if found else 3
    return form["enum"][0] if "enum" in form else question


def write(transcript: Any) -> str:
    """Ask the model once, unless a tool has replied; then answer."""
    prompt = transcript[0]["text"]
    if len(transcript) > 1 or "Result of the tool" in prompt:
        return answer("The answer, at some length, so that it comes in more than one piece.")
    question = prompt.rsplit("Question: ", 1)[1].split("\n")[0]
    return search(f"m: {question}")


class TestLangChainsIntegrationSuite(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatRouterR1

    @property
    def chat_model_params(self) -> dict[str, Any]:
        registry = ModelRegistry(
            [ModelDescriptor(name="m", model=FillsForms(), price=1.0, modalities=("text", "image"))]
        )
        return {"router": create_router(ScriptedEngine(write, piece_chars=8), registry)}

    @property
    def supports_model_override(self) -> bool:
        return False  # the router chooses the model

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @pytest.fixture(autouse=True)
    def image_of_the_suite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Serve the image that the suite fetches, without the network."""
        monkeypatch.setattr("httpx.get", lambda *_, **__: Response(200, content=b"an image"))

    @property
    def supports_json_mode(self) -> bool:
        return False  # structured output is a tool's form

    @property
    def has_tool_choice(self) -> bool:
        return True

    # These two count the chat models that a handler is told of, and expect one: a router asks others, and a handler is
    # told of them too. That the output has the right form is tested in test_tools.py.

    @pytest.mark.xfail(reason="a handler is told of the routed models too, and the suite expects one model")
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    def test_structured_output(self, model: BaseChatModel, schema_type: str) -> None:
        super().test_structured_output(model, schema_type)

    @pytest.mark.xfail(reason="a handler is told of the routed models too, and the suite expects one model")
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    async def test_structured_output_async(self, model: BaseChatModel, schema_type: str) -> None:
        await super().test_structured_output_async(model, schema_type)
