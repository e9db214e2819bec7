"""A specialist that is a program and not a language model: it says which of two numbers is higher."""

from __future__ import annotations

import re
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from typing_extensions import override

from langgraph_router_r1.ledger import estimated_usage

UNKNOWN = "I can only say which of two numbers is higher."

_COMPARED = re.compile(r"Which is higher, (.{1,200}?) with \+?(\d{1,15}) or (.{1,200}?) with \+?(\d{1,15})\?", re.ASCII)


def higher_of(text: str) -> str:
    """Return whose number is higher, of two that a text tells of; a sentence if it does not ask for that.

    Example:
        >>> higher_of("Which is higher, Peru with +51 or Chile with +56?")
        'Chile'
    """
    match = _COMPARED.search(text)
    if match is None:
        return UNKNOWN
    first, one, second, two = match.groups()
    return "They are equal." if int(one) == int(two) else first if int(one) > int(two) else second


class Numbers(BaseChatModel):
    """Compares two numbers, as a chat model; its tokens are estimates.

    Example:
        >>> Numbers().invoke("Which is higher, Peru with +51 or Chile with +56?").text
        'Chile'
    """

    @property
    @override
    def _llm_type(self) -> str:
        return "numbers"

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        answer = higher_of(messages[-1].text)
        usage = estimated_usage((message.text for message in messages), answer)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer, usage_metadata=usage))])
