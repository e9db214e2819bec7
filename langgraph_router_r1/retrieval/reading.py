"""A model that reads before it answers: passages are looked up for its question, and a chat model answers from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from typing_extensions import override

from langgraph_router_r1.retrieval.as_model import passages
from langgraph_router_r1.retrieval.lookup import LookUpModel

PROMPT = "{passages}\n\nQuestion: {question}\nAnswer from these passages, as shortly as possible:"

MAX_PASSAGE_BYTES, MAX_TITLE_BYTES = 500, 100
"""How much of a passage is read, in UTF-8: a budget holds because no token has less than a byte. What an encyclopedia
says of someone first is what is asked most."""


class PassageReader(LookUpModel):
    """A model that reads the start of some passages before it answers."""

    k: int = 5
    """How many of the passages that the retriever returns are read."""
    max_passage_bytes: int = MAX_PASSAGE_BYTES

    @property
    def most_read_bytes(self) -> int:
        """The most that is read beside the question; the worst case of a call has it."""
        return len(PROMPT) + self.k * (self.max_passage_bytes + MAX_TITLE_BYTES + len(f"[{self.k}] \n\n\n"))


class ReadingModel(PassageReader):
    """Looks passages up and lets a chat model answer from them, as a chat model; the usage is that of the reader.

    As a model of a router's pool it is one call, priced by what the reader reads and writes. Give its descriptor
    `call_prompt="{query}"`: the default adds a wish for a short answer, which the retriever would search for.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from langchain_core.retrievers import BaseRetriever
        >>> class Fixed(BaseRetriever):
        ...     def _get_relevant_documents(self, query, *, run_manager):
        ...         return [Document("Emma is a novel by Jane Austen.", metadata={"title": "Emma"})]
        >>> reads = ReadingModel(retriever=Fixed(), reader=FakeListChatModel(responses=["Jane Austen"]))
        >>> reads.invoke("Who wrote Emma?").text
        'Jane Austen'
    """

    reader: BaseChatModel

    @property
    @override
    def _llm_type(self) -> str:
        return "reading"

    @override
    def reply(self, messages: list[BaseMessage], found: list[Document], **options: Any) -> ChatResult:
        return _result(self.reader.invoke(self._chat(messages, found), _SILENT, **options))

    @override
    async def areply(self, messages: list[BaseMessage], found: list[Document], **options: Any) -> ChatResult:
        return _result(await self.reader.ainvoke(self._chat(messages, found), _SILENT, **options))

    def _chat(self, messages: list[BaseMessage], found: Sequence[Document]) -> list[BaseMessage]:
        return reading_chat(messages[-1].text, found[: self.k], self.max_passage_bytes)


_SILENT: Any = {"callbacks": []}
"""The reader's tokens are this model's own: who listens to both would count them twice."""


def reading_chat(
    question: str, found: Sequence[Document], max_passage_bytes: int = MAX_PASSAGE_BYTES
) -> list[BaseMessage]:
    """Return what a reader is sent."""
    shortened = [
        Document(
            cut(one.page_content, max_passage_bytes),
            metadata={"title": cut(str(one.metadata.get("title", "")), MAX_TITLE_BYTES)},
        )
        for one in found
    ]
    return [HumanMessage(PROMPT.format(passages=passages(shortened), question=question))]


def cut(text: str, most_bytes: int) -> str:
    """Return the start of a text, at most so many bytes in UTF-8."""
    return text.encode("utf-8", "replace")[:most_bytes].decode("utf-8", "ignore")


def _result(message: BaseMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])
