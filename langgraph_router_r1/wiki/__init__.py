"""A second embedded pool, over real text: 6,119 passages of Wikipedia, and questions that take several of them.

    wiki = wiki_registry(server.base_url)                   # a vLLM that serves the base model and the `reader`

Passages and questions come from the data directory (`ROUTER_R1_DATA`); the reader's adapter is made by
`training/recipes/wiki/cold_start.sh`. Requires the extras `[pocket]` and `[retrieval]`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from langgraph_router_r1.calls.client import build_chat_model
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines.base import API_KEY_ENV
from langgraph_router_r1.evaluation.tasks import DATA_VARIABLE, TaskError, data_dir, json_lines
from langgraph_router_r1.pocket import BASE_NAME, NOT_SERVED
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.wiki.world import COMPARED, LOOKED_UP

PASSAGES_FILE = "corpus/2wiki_6119_passages.jsonl"
"""In the data directory."""

READER_NAME = "reader"
"""The reader's name on the server."""

SEARCHED, OVERVIEWED = 2, 10
"""How many passages `search` and `library` read."""

MAX_ANSWER_TOKENS = 32

PRICES = {"smol": 0.01, "search": 0.1, "library": 0.5, "dates": 0.01}
"""Dollars per million tokens, declared so that there is something to choose. A reader pays for what it reads."""


def passages() -> tuple[Document, ...]:
    """Return the passages, with their titles.

    Raises:
        TaskError: There is no data directory, or it hasn't the file.
    """
    return _passages_in(_file())


def word_retriever(k: int) -> BaseRetriever:
    """Return what finds passages by their words; one index, in memory, serves all.

    Raises:
        TaskError: There are no passages.
        ModuleNotFoundError: The `[retrieval]` extra is not installed.
    """
    from langgraph_router_r1.retrieval import WordRetriever

    return WordRetriever(index=_index_of(_file()), k=k)


def _file() -> Path:
    directory = data_dir()
    if directory is None:
        raise TaskError(f"the wiki pool reads {PASSAGES_FILE}: set {DATA_VARIABLE} to the data directory")
    return directory / PASSAGES_FILE


@functools.cache
def _passages_in(file: Path) -> tuple[Document, ...]:
    rows = (row for _, row in json_lines(file))
    return tuple(Document(row["text"], id=row["id"], metadata={"title": row["title"]}) for row in rows)


@functools.cache
def _index_of(file: Path) -> Any:
    from langgraph_router_r1.retrieval import create_index

    return create_index(":memory:", _passages_in(file))


def wiki_registry(base_url: str = NOT_SERVED) -> ModelRegistry:
    """Return the pool, each model at this server; without one, to read its descriptors.

    The server's key is read from the environment, as for the pocket pool.

    Raises:
        TaskError: There are no passages.
        ModuleNotFoundError: The `[retrieval]` extra is not installed.
    """
    from langgraph_router_r1.retrieval import ReadingModel
    from langgraph_router_r1.wiki.dates import Dates

    key = API_KEY_ENV if os.environ.get(API_KEY_ENV) else None
    served = functools.partial(ModelDescriptor, base_url=base_url, api_key_env=key, params={"max_tokens": 32})
    reader = build_chat_model(served(name=READER_NAME, model=f"openai:{READER_NAME}", price=PRICES[LOOKED_UP]))

    def own(name: str, model: Any, description: str, **fields: Any) -> ModelDescriptor:
        return ModelDescriptor(
            name=name,
            model=model,
            description=description,
            price=PRICES[name],
            call_prompt="{query}",
            params={"max_tokens": MAX_ANSWER_TOKENS},
            **fields,
        )

    return ModelRegistry(
        [
            served(
                name=BASE_NAME,
                model=f"openai:{BASE_NAME}",
                description="Small talk and well-known facts, from memory.",
                price=PRICES[BASE_NAME],
            ),
            own(
                LOOKED_UP,
                ReadingModel(retriever=word_retriever(SEARCHED), reader=reader, k=SEARCHED),
                "Looks up one fact about a person, a film or a song, in two passages of Wikipedia.",
            ),
            own(
                "library",
                ReadingModel(retriever=word_retriever(OVERVIEWED), reader=reader, k=OVERVIEWED),
                "Reads ten passages of Wikipedia about a question.",
            ),
            own(COMPARED, Dates(), "Says which of two dates is earlier, and whether two countries are the same."),
        ]
    )
