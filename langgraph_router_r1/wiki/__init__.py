"""A second embedded pool, over real text: 6,119 passages of Wikipedia, and questions that take several of them.

    pool = wiki_registry("runs/wiki/reader", server.base_url)   # a vLLM that serves the pocket pool's base model

Passages and questions come from the data directory (`ROUTER_R1_DATA`); the reader is made by
`training/recipes/wiki/cold_start.sh`. Requires the extras `[pocket]` and `[retrieval]`.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines.base import API_KEY_ENV
from langgraph_router_r1.evaluation.tasks import DATA_VARIABLE, TaskError, data_dir, json_lines
from langgraph_router_r1.pocket import BASE_NAME, NOT_SERVED
from langgraph_router_r1.program_model import ProgramModel
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.wiki.world import COMPARED, LOOKED_UP

if TYPE_CHECKING:
    from langgraph_router_r1.retrieval.span_reader import SpanReader

PASSAGES_FILE = "corpus/2wiki_6119_passages.jsonl"
"""In the data directory."""

SEARCHED, OVERVIEWED = 1, 10
"""How many passages `search` and `library` read."""

TITLE_WEIGHT = 20.0
"""How often a word of a title counts: questions name who or what they are about. Of the single steps of the validation
split, .96 then have their passage in the first place, and .72 with a weight of 1."""

READ_BYTES = 1_000
"""How much of a passage is read: of what train questions ask for second, .94 stands there, and .79 in the first 500."""

MAX_ANSWER_TOKENS = 32

PRICES = {"smol": 0.01, "search": 0.1, "library": 0.5, "dates": 0.01}
"""Dollars per million tokens, declared so that there is something to choose. A reader pays for what it reads."""


def passages() -> tuple[Document, ...]:
    """Return the passages, with their titles.

    Raises:
        TaskError: There is no data directory, or it hasn't the file.
    """
    return passages_in(passages_file())


def word_retriever(k: int, *, title_weight: float = TITLE_WEIGHT) -> BaseRetriever:
    """Return what finds passages by their words; one index, in memory, serves all.

    Args:
        k: How many passages it finds.
        title_weight: How often a word of a title counts.

    Raises:
        TaskError: There are no passages.
        ModuleNotFoundError: The `[retrieval]` extra is not installed.
    """
    from langgraph_router_r1.retrieval import WordRetriever

    return WordRetriever(index=_index_of(passages_file()), k=k, title_weight=title_weight)


def passages_file() -> Path:
    """Return where the passages are.

    Raises:
        TaskError: There is no data directory.
    """
    directory = data_dir()
    if directory is None:
        raise TaskError(f"the wiki pool reads {PASSAGES_FILE}: set {DATA_VARIABLE} to the data directory")
    return directory / PASSAGES_FILE


@functools.cache
def passages_in(file: Path) -> tuple[Document, ...]:
    """Return the passages of a file; they are read once."""
    rows = (row for _, row in json_lines(file))
    return tuple(Document(row["text"], id=row["id"], metadata={"title": row["title"]}) for row in rows)


@functools.cache
def _index_of(file: Path) -> Any:
    from langgraph_router_r1.retrieval import create_index

    return create_index(":memory:", passages_in(file))


class _Reader:
    """The reader of a directory, loaded when it first reads: descriptors are looked at without it."""

    def __init__(self, adapter: Path) -> None:
        self._adapter, self._loading = adapter, threading.Lock()

    def read(self, question: str, texts: Sequence[str]) -> str:
        """See `SpanReader.read`."""
        with self._loading:  # by the first of several threads
            reader = self._loaded
        return reader.read(question, texts)

    @functools.cached_property
    def _loaded(self) -> SpanReader:
        from langgraph_router_r1.retrieval.span_reader import SpanReader

        return SpanReader(self._adapter)


def wiki_registry(reader: str | Path, base_url: str = NOT_SERVED) -> ModelRegistry:
    """Return the pool; `smol` is at a server, and all others are in this process.

    The server's key is read from the environment, as for the pocket pool.

    Args:
        reader: Directory of the reader's adapter; it is loaded when it is first needed.
        base_url: A vLLM that serves the pocket pool's base model.

    Raises:
        TaskError: There are no passages.
        ModuleNotFoundError: The `[retrieval]` extra is not installed.
    """
    from langgraph_router_r1.retrieval.span_reader import QuotingModel
    from langgraph_router_r1.wiki.dates import compared

    def own(name: str, model: Any, description: str) -> ModelDescriptor:
        limits = {"max_tokens": MAX_ANSWER_TOKENS}
        return ModelDescriptor(
            name=name, model=model, description=description, price=PRICES[name], call_prompt="{query}", params=limits
        )

    shared = _Reader(Path(reader))

    def quoting(k: int) -> QuotingModel:
        return QuotingModel(retriever=word_retriever(k), reader=shared, k=k, max_passage_bytes=READ_BYTES)

    smol = ModelDescriptor(
        name=BASE_NAME,
        model=f"openai:{BASE_NAME}",
        base_url=base_url,
        api_key_env=API_KEY_ENV if os.environ.get(API_KEY_ENV) else None,
        description="Small talk and well-known facts, from memory.",
        price=PRICES[BASE_NAME],
        params={"max_tokens": MAX_ANSWER_TOKENS},
    )
    return ModelRegistry(
        [
            smol,
            own(
                LOOKED_UP,
                quoting(SEARCHED),
                "Looks up one fact about a person, a film or a song, in a passage of Wikipedia.",
            ),
            own("library", quoting(OVERVIEWED), "Reads ten passages of Wikipedia about a question."),
            own(
                COMPARED,
                ProgramModel(program=compared),
                "Says which of two dates is earlier, and whether two countries are the same.",
            ),
        ]
    )
