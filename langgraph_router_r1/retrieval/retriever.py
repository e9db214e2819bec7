"""A retriever that sends each question through the expert whose pilots are nearest (RouterRetriever, arXiv 2409.02685).

    encoder = ExpertEncoder()
    index = create_index("docs.sqlite", documents, encoder)
    retriever = create_retriever(index, "experts", encoder=encoder, k=5)
    retriever.invoke("Who wrote Emma?")                     # LangChain documents, the best first

A question is encoded once by the base, to choose the expert, and once more by the expert: at most two passes, however
many experts there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field
from typing_extensions import override

from langgraph_router_r1.retrieval.encoder import BASE, ExpertEncoder, ExpertError, document_text
from langgraph_router_r1.retrieval.index import Index, RetrievalIndexError, SqliteIndex, checked_k
from langgraph_router_r1.retrieval.pilots import PilotLibrary
from langgraph_router_r1.retrieval.scoring import Vectors

PILOTS_FILE = "pilots.npz"
"""The pilot library in a directory of experts; each expert is a directory beside it."""

ENCODED_AT_ONCE = 256
"""How many documents are encoded, and then stored, before the next ones: what a kill loses of a long indexing."""


class RouterRetriever(BaseRetriever):
    """Finds documents by the vectors of the expert that a question is routed to; `create_retriever` makes one.

    Documents have `expert` and `score` (the cosine, -1 to 1) in their metadata.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: Any
    """An `Index`."""
    encoder: Any
    """The `ExpertEncoder` that the index was made with."""
    pilots: Any = None
    """A `PilotLibrary` of the encoder's experts; None for the base encoder alone."""
    k: int = Field(default=5)
    """How many documents are returned; `invoke(query, k=...)` may say otherwise."""

    def model_post_init(self, context: Any, /) -> None:
        """Check that the parts belong together; pydantic makes a `ValidationError` of what is wrong."""
        super().model_post_init(context)
        _check(self.index, self.encoder, self.pilots, self.k)

    def embed(self, query: str) -> tuple[str, Vectors]:
        """Return the expert that a question is routed to, and the question's vector by it: at most two passes."""
        vectors = self.encoder.encode_queries([query])
        if self.pilots is None or not self.pilots.pilots:
            return BASE, vectors[0]
        [expert] = self.pilots.route(vectors)
        if expert != BASE:
            vectors = self.encoder.encode_queries([query], expert)
        return expert, vectors[0]

    def embed_all(self, queries: Sequence[str]) -> tuple[list[str], Vectors]:
        """Return experts and vectors (questions x dimensions) of many questions, each in at most two passes."""
        vectors = self.encoder.encode_queries(queries)
        if self.pilots is None or not self.pilots.pilots or not queries:
            return [BASE] * len(queries), vectors
        experts = self.pilots.route(vectors)
        for expert in set(experts) - {BASE}:
            rows = [row for row, name in enumerate(experts) if name == expert]
            vectors[rows] = self.encoder.encode_queries([queries[row] for row in rows], expert)
        return experts, vectors

    @override
    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        k = checked_k(self.k if k is None else k)
        if not query.strip():
            return []
        expert, vector = self.embed(query)
        found = self.index.nearest(vector, k)
        for document, score in found:
            document.metadata.update(expert=expert, score=float(score))
        return [document for document, _ in found]

    @override
    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        # LangChain's own way into a thread would lose `k`.
        return await asyncio.to_thread(self._get_relevant_documents, query, run_manager=run_manager.get_sync(), k=k)


class WordRetriever(BaseRetriever):
    """Finds documents by their words (BM25), without an encoder; any text is a query.

    Example:
        >>> index = create_index(":memory:", [Document("Emma is a novel."), Document("Lima is a city.")])
        >>> WordRetriever(index=index, k=1).invoke("Which novels are there?")[0].page_content
        'Emma is a novel.'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: Any
    """An `Index`."""
    k: int = Field(default=5)
    """How many documents are returned; `invoke(query, k=...)` may say otherwise."""
    title_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How often a word of a title counts, where one of the text counts once: more where questions name titles."""

    @override
    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        found = self.index.matching(query, self.k if k is None else k, title_weight=self.title_weight)
        return [document for document, _ in found]


def _check(index: Index, encoder: ExpertEncoder, pilots: PilotLibrary | None, k: int) -> None:
    """Check that the parts of a retriever belong together.

    Raises:
        RetrievalIndexError: The index was made by another encoder, or `k` is out of range.
        ExpertError: A pilot is of an expert that the encoder doesn't have.
    """
    checked_k(k)
    if index.encoder != encoder.name:
        raise RetrievalIndexError(
            f"the index was made with the encoder {index.encoder!r}; the retriever has {encoder.name!r}"
        )
    missing = set(() if pilots is None else pilots.experts) - {BASE, *encoder.experts}
    if missing:
        known = ", ".join(map(repr, encoder.experts)) or "none"
        raise ExpertError(f"pilots lead to {', '.join(map(repr, sorted(missing)))}; the encoder has: {known}")


def create_index(
    path: str | Path, documents: Iterable[Document], encoder: ExpertEncoder | None = None, *, batch_size: int = 32
) -> SqliteIndex:
    """Open an index, or make one, and add documents; what is stored word for word already is not encoded again.

    Args:
        path: The file; ":memory:" for none.
        documents: Their `metadata["title"]`, if there is one, is searched too.
        encoder: Its base makes the vectors; without one, documents are found by their words only.
        batch_size: How many documents go through the encoder at once.

    Raises:
        RetrievalIndexError: The file is no index or one of another encoder, or a document can't be stored.
    """
    if encoder is None:
        index = SqliteIndex(path)
        index.add(index.new(documents))
        return index
    index = SqliteIndex(path, encoder=encoder.name, dimensions=encoder.dimensions)
    new = index.new(documents)
    for start in range(0, len(new), ENCODED_AT_ONCE):
        some = new[start : start + ENCODED_AT_ONCE]
        texts = [document_text(str(one.metadata.get("title", "")), one.page_content) for one in some]
        index.add(some, encoder.encode_documents(texts, batch_size=batch_size))
    return index


def create_retriever(
    index: Index | str | Path,
    experts: str | Path | None = None,
    *,
    encoder: ExpertEncoder | None = None,
    pilots: PilotLibrary | None = None,
    k: int = 5,
) -> RouterRetriever:
    """Return a LangChain retriever over an index.

    Args:
        index: An index, or the file of one.
        experts: A directory that `python -m training.experts` wrote: one directory for each expert, and `pilots.npz`.
        encoder: By default MiniLM. Experts of the directory that it doesn't have are loaded into it.
        pilots: Instead of those of the directory.
        k: How many documents are returned.

    Raises:
        ModuleNotFoundError: The `[retrieval]` extra is not installed.
        RetrievalIndexError: The index can't be used, or `k` is out of range.
        ExpertError: An expert can't be loaded, or pilots lead to one that isn't there.
        ValueError: The pilots can't be read.

    Example:
        >>> encoder = ExpertEncoder()
        >>> index = create_index(":memory:", [Document("Emma is a novel."), Document("Lima is a city.")], encoder)
        >>> create_retriever(index, encoder=encoder, k=1).invoke("Which book is it?")[0].page_content
        'Emma is a novel.'
    """
    encoder = encoder or ExpertEncoder()
    if experts is not None:
        directory = Path(experts)
        if pilots is None:
            pilots = PilotLibrary.load(directory / PILOTS_FILE)
        for name in pilots.experts:
            if name != BASE and name not in encoder.experts:
                encoder.load_expert(name, directory / name)
    if isinstance(index, str | Path):
        if not Path(index).is_file():
            raise RetrievalIndexError(
                f"{str(index)!r} is no file: create_index(path, documents, encoder) makes an index"
            )
        index = SqliteIndex(index, encoder=encoder.name, dimensions=encoder.dimensions)
    _check(index, encoder, pilots, k)
    return RouterRetriever(index=index, encoder=encoder, pilots=pilots, k=k)
