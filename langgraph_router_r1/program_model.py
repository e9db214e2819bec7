"""A program as a model of the pool: what needs no language model, such as a comparison or a look-up in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from typing_extensions import override

from langgraph_router_r1.ledger import CHARACTERS_PER_TOKEN, estimated_usage


class ProgramModel(BaseChatModel):
    """A function from a question to an answer, as a chat model; its tokens are estimates, four characters each.

    Example:
        >>> ProgramModel(program=str.upper).invoke("Lima").text
        'LIMA'
    """

    program: Callable[[str], str]

    @property
    @override
    def _llm_type(self) -> str:
        return "program"

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        max_tokens: int | None = None,
        **_: Any,
    ) -> ChatResult:
        return limited_result((one.text for one in messages), self.program(messages[-1].text), max_tokens)


def limited_result(read: Iterable[str], whole: str, max_tokens: int | None) -> ChatResult:
    """Return the reply of a model that has no tokens, with estimates of them.

    Args:
        read: What it read.
        whole: What it has to say.
        max_tokens: Where the reply is cut. The worst case of a call, which a budget is held to, counts so many.
    """
    text = whole if max_tokens is None else whole[: max_tokens * CHARACTERS_PER_TOKEN]
    message = AIMessage(
        text,
        usage_metadata=estimated_usage(read, text),
        response_metadata={"finish_reason": "stop" if text == whole else "length"},
    )
    return ChatResult(generations=[ChatGeneration(message=message)])
