"""What models have in common that look passages up before they reply."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.retrievers import BaseRetriever
from typing_extensions import override


class LookUpModel(BaseChatModel):
    """A chat model that searches for the text of the last message, and replies with what was found."""

    retriever: BaseRetriever

    @property
    def search_options(self) -> dict[str, Any]:
        """What the retriever is told besides the query."""
        return {}

    @abstractmethod
    def reply(self, messages: list[BaseMessage], found: list[Document], **options: Any) -> ChatResult:
        """Return the reply to messages, for whose last one this was found."""

    async def areply(self, messages: list[BaseMessage], found: list[Document], **options: Any) -> ChatResult:
        """Return the reply without blocking; see `reply`."""
        return await asyncio.to_thread(self.reply, messages, found, **options)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        found = self.retriever.invoke(messages[-1].text, **self.search_options)
        return self.reply(messages, found, stop=stop, **options)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        found = await self.retriever.ainvoke(messages[-1].text, **self.search_options)
        return await self.areply(messages, found, stop=stop, **options)
