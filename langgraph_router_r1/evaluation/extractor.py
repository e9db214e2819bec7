"""The short answer out of a long reply: routed models answer in sentences, and exact match wants the span.

A small model reads question and reply and writes the span. It is the same for every router of a benchmark that passes
on what a model said, so that rows differ in routing only, and it has a row of its own in the results.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langgraph_router_r1.adapters import shipped_adapters
from langgraph_router_r1.engines.base import ContextFullError, RouterEngine
from langgraph_router_r1.ledger import NO_USAGE, Usage
from langgraph_router_r1.protocol import sanitize
from langgraph_router_r1.transcript import Segment

if TYPE_CHECKING:
    from langgraph.cache.base import BaseCache

EXTRACTOR_NAME = "extractor"
"""The shipped extractor's name on a server."""

ADAPTERS = shipped_adapters("evaluation")
"""Where its adapter is, in a directory of that name; its base is the pocket pool's."""

PROMPT = "Question: {question}\n\nReply: {reply}\n\nThe short answer that this reply gives:"

HEAD_TOKENS, TAIL_TOKENS = 96, 48
"""What is read of a long reply: answers stand at its start, or at its end after the reasons."""

MAX_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Extraction:
    """The short answer, and what it took."""

    text: str
    usage: Usage


class Extractor:
    """Makes short answers with an engine; with a cache, each question and reply once.

    Example:
        >>> extractor = Extractor(VLLMEngine(server.base_url, EXTRACTOR_NAME))               # doctest: +SKIP
        >>> extractor.extract("Capital of Peru?", "The capital of Peru is Lima.").text       # doctest: +SKIP
        'Lima'
    """

    def __init__(self, engine: RouterEngine, *, cache: BaseCache[Any] | None = None, version: str = "") -> None:
        """Keep the engine; `version` tells the cached answers of one extractor from those of the next."""
        self.engine = engine
        self._cache = cache
        self._namespace = ("extract", engine.model, version)

    def extract(self, question: str, reply: str) -> Extraction:
        """Return the short answer that a reply gives to a question; nothing for an empty reply.

        Raises:
            EngineError: The engine can't be reached.
        """
        if not reply.strip():
            return Extraction("", NO_USAGE.copy())
        key = self._key(question, reply)
        if self._cache is not None and (found := self._cache.get([key])):
            return Extraction(**found[key])
        try:
            made = self.engine.generate([self.prompt(question, reply)], stop=["\n"], max_tokens=MAX_ANSWER_TOKENS)
        except ContextFullError:  # a question as long as a book
            return Extraction("", NO_USAGE.copy())
        extraction = Extraction(made.segment["text"].strip(), made.usage)
        self._keep(key, extraction)
        return extraction

    async def aextract(self, question: str, reply: str) -> Extraction:
        """Return the short answer without blocking; see `extract`."""
        if not reply.strip():
            return Extraction("", NO_USAGE.copy())
        key = self._key(question, reply)
        if self._cache is not None and (found := self._cache.get([key])):
            return Extraction(**found[key])
        await self.engine.aload()
        try:
            made = await self.engine.agenerate(
                [self.prompt(question, reply)], stop=["\n"], max_tokens=MAX_ANSWER_TOKENS
            )
        except ContextFullError:
            return Extraction("", NO_USAGE.copy())
        extraction = Extraction(made.segment["text"].strip(), made.usage)
        self._keep(key, extraction)
        return extraction

    def prompt(self, question: str, reply: str) -> Segment:
        """Return what the extractor reads; training examples start with the same tokens."""
        return self.engine.begin(
            [{"role": "user", "content": PROMPT.format(question=question, reply=self._cut(reply))}]
        )

    def _cut(self, reply: str) -> str:
        reply = sanitize(reply, self.engine.control_tokens).strip()
        if self.engine.count_tokens(reply) <= HEAD_TOKENS + TAIL_TOKENS:
            return reply
        # Engines cut at the end only: three characters a token keep the tail within its share.
        return f"{self.engine.truncate(reply, HEAD_TOKENS)} ... {reply[-3 * TAIL_TOKENS :]}"

    def _key(self, question: str, reply: str) -> tuple[tuple[str, ...], str]:
        return self._namespace, hashlib.sha256(f"{question}\0{reply}".encode("utf-8", "replace")).hexdigest()

    def _keep(self, key: tuple[tuple[str, ...], str], extraction: Extraction) -> None:
        if self._cache is not None:
            self._cache.set({key: ({"text": extraction.text, "usage": extraction.usage}, None)})


def adapter_version(adapter: Path) -> str:
    """Return a short digest of an adapter's weights."""
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()[:12]
