"""The router as a chat model keeps LangChain's own contract."""

from __future__ import annotations

from typing import Any

from conftest import answer, pool, search
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.unit_tests import ChatModelUnitTests

from langgraph_router_r1 import ChatRouterR1, RouterContext, create_router
from langgraph_router_r1.engines import ChatModelEngine
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine


def chat_model(**fields: Any) -> ChatRouterR1:
    def write(transcript: Any) -> str:
        return answer("Lima") if len(transcript) > 1 else search("capitals: Peru?")

    return ChatRouterR1(router=create_router(ScriptedEngine(write), pool(capitals="Lima")), **fields)


class TestLangChainsUnitSuite(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatRouterR1

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"router": chat_model().router}


async def test_a_question_is_routed_and_the_account_is_in_the_metadata() -> None:
    for message in (chat_model().invoke("Peru?"), await chat_model().ainvoke("Peru?")):
        assert message.content == "Lima"
        assert message.response_metadata["routing"]["turns"] == 1
        usage = message.usage_metadata
        assert usage is not None
        assert usage["output_tokens"] == message.response_metadata["routing"]["router_tokens"]["completion_tokens"] > 0


def test_tokens_that_were_read_from_and_written_to_a_cache_are_passed_on() -> None:
    reply = AIMessage(answer("Lima"))
    reply.usage_metadata = {
        "input_tokens": 9, "output_tokens": 1, "total_tokens": 10,
        "input_token_details": {"cache_read": 2, "cache_creation": 4},
    }  # fmt: skip
    router = create_router(ChatModelEngine(ScriptedChatModel([reply])), pool(capitals="Lima"), router_price="free")
    assert ChatRouterR1(router=router).invoke("Peru?").usage_metadata == reply.usage_metadata


def test_a_context_holds_for_every_run() -> None:
    message = chat_model(context=RouterContext(max_turns=0)).invoke("Peru?")
    assert message.response_metadata["routing"]["turns"] == 0


def test_streaming_gives_the_answer() -> None:
    assert "".join(chunk.text for chunk in chat_model().stream("Peru?")) == "Lima"


def test_callbacks_reach_the_models_that_are_asked() -> None:
    class Names(BaseCallbackHandler):
        names: list[str] = []  # noqa: RUF012 - one test, one list

        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            self.names.append(kwargs.get("metadata", {}).get("router_r1_model", ""))

    chat_model().invoke("Peru?", config={"callbacks": [Names()]})
    assert "capitals" in Names.names
