"""A retriever that a router asks like any model: a priced, recorded call whose reply is the passages."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.retrievers import BaseRetriever
from typing_extensions import override

from langgraph_router_r1.program_model import limited_result
from langgraph_router_r1.retrieval.lookup import LookUpModel

NOTHING_FOUND = "No passage was found."


class RetrieverModel(LookUpModel):
    """A retriever as a chat model; `as_model` makes one. The query is the text of the last message."""

    k: int | None = None
    """How many passages a reply has; None for what the retriever returns by itself."""

    @property
    @override
    def _llm_type(self) -> str:
        return "retriever"

    @property
    @override
    def search_options(self) -> dict[str, Any]:
        return {} if self.k is None else {"k": self.k}

    @override
    def reply(
        self, messages: list[BaseMessage], found: list[Document], max_tokens: int | None = None, **_: Any
    ) -> ChatResult:
        return limited_result((message.text for message in messages), passages(found), max_tokens)


def as_model(retriever: BaseRetriever, *, k: int | None = None) -> RetrieverModel:
    r"""Return a retriever as what a `ModelDescriptor` takes for its `model`.

    Its reply is the passages with their titles, cut at the `max_tokens` of the descriptor; tokens are estimates, four
    characters each. Give the descriptor `call_prompt="{query}"`: the default adds a wish for a short answer, which a
    retriever would search for.

    Args:
        retriever: Any LangChain retriever.
        k: How many passages a reply has; the retriever must take a `k`. None for what it returns by itself.

    Example:
        >>> from langgraph_router_r1 import ModelDescriptor
        >>> class Fixed(BaseRetriever):
        ...     def _get_relevant_documents(self, query, *, run_manager):
        ...         return [Document("Emma is a novel by Jane Austen.", metadata={"title": "Emma"})]
        >>> docs = ModelDescriptor(name="docs", model=as_model(Fixed()), price=0.02, call_prompt="{query}")
        >>> docs.model.invoke("Who wrote Emma?").text
        '[1] Emma\nEmma is a novel by Jane Austen.'
    """
    return RetrieverModel(retriever=retriever, k=k)


def passages(documents: list[Document]) -> str:
    """Return documents as numbered passages, each with its title if it has one; a sentence if there are none."""
    blocks = []
    for number, document in enumerate(documents, start=1):
        title = str(document.metadata.get("title", "")).strip()
        blocks.append(
            f"[{number}] {title}\n{document.page_content}" if title else f"[{number}] {document.page_content}"
        )
    return "\n\n".join(blocks) or NOTHING_FOUND
