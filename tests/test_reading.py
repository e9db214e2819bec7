"""Models that read before they answer: they are asked, priced, budgeted and recorded like any others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WAYS, answer, invoked, search
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from langgraph_router_r1 import RECORD_KEYS, ModelDescriptor, ModelRegistry, RouterContext, RunRecord, create_router
from langgraph_router_r1.replay import replay
from langgraph_router_r1.retrieval import ReadingModel, RetrievalIndexError, SqliteIndex, WordRetriever, create_index
from langgraph_router_r1.retrieval.index import MAX_QUERY_CHARS
from langgraph_router_r1.retrieval.span_reader import (
    MAX_ANSWER_TOKENS,
    QuotingModel,
    ReaderError,
    SpanReader,
    best_span,
    passage_text,
)
from langgraph_router_r1.testing import ScriptedEngine

pytest.importorskip("apsw", reason="the [retrieval] extra is not installed")

PAGES = [
    Document("Emma is a novel by Jane Austen, published in 1815.", metadata={"title": "Emma"}),
    Document("Lima is the capital and the largest city of Peru. " + "é" * 5_000, metadata={"title": "Lima"}),
]
QUESTION: Any = {"messages": [("user", "Who wrote Emma?")]}
USAGE = {"input_tokens": 60, "output_tokens": 2, "total_tokens": 62}


class Reader(GenericFakeChatModel):
    """Says a name, and keeps what it was sent."""

    messages: Any = ()
    sent: list[str] = Field(default_factory=list)

    def _generate(self, messages: Any, *_: Any, **__: Any) -> ChatResult:
        self.sent.append(messages[-1].text)
        message = AIMessage("Jane Austen", usage_metadata=USAGE, response_metadata={"model_name": "reader"})
        return ChatResult(generations=[ChatGeneration(message=message)])


def reading(**fields: Any) -> ReadingModel:
    return ReadingModel(retriever=WordRetriever(index=create_index(":memory:", PAGES)), reader=Reader(), **fields)


def registry_of(model: ReadingModel | QuotingModel) -> ModelRegistry:
    return ModelRegistry([ModelDescriptor(name="books", model=model, price=2.0, call_prompt="{query}")])


@pytest.mark.parametrize("way", WAYS)
async def test_a_router_asks_a_model_that_reads_and_pays_for_what_the_reader_read(way: str) -> None:
    model = reading()
    router = create_router(ScriptedEngine([search("books: Who wrote Emma?"), answer("Austen")]), registry_of(model))
    result = await invoked(router, way, QUESTION, output_keys=RECORD_KEYS)
    record = RunRecord.of(result)
    [call] = record.calls
    assert call["response"] == "Jane Austen"
    assert (call["usage"]["prompt_tokens"], call["usage"]["completion_tokens"]) == (60, 2)
    assert call["cost_usd"] == pytest.approx(62 * 2e-6)
    assert "[1] Emma\nEmma is a novel by Jane Austen" in model.reader.sent[0]  # type: ignore[attr-defined]
    assert replay(record).invoke(QUESTION)["answer"] == "Austen"


def test_a_budget_counts_what_is_looked_up() -> None:
    model = reading(k=1)

    def asked(budget_usd: float) -> list[str]:
        engine = ScriptedEngine([search("books: Who wrote Emma?"), answer("x")])
        router = create_router(engine, registry_of(model))
        calls = router.invoke(QUESTION, context=RouterContext(budget_usd=budget_usd))["routing"]["calls"]
        return [call["response"] for call in calls if call["status"] == "ok"]

    # A question and a reply of 512 tokens alone would be less.
    assert model.most_read_bytes > 600
    assert asked(2e-6 * (512 + 300)) == []
    assert asked(2e-6 * (512 + 300 + model.most_read_bytes)) == ["Jane Austen"]


@pytest.mark.parametrize("k", [1, 2])
def test_what_is_read_is_no_more_than_the_worst_case_says(k: int) -> None:
    model = reading(k=k)
    model.invoke("Lima, Peru, Emma?")
    [sent] = model.reader.sent  # type: ignore[attr-defined]
    assert ("[2]" in sent) == (k == 2)
    assert len(sent.encode()) <= model.most_read_bytes + len("Lima, Peru, Emma?")
    assert sent.count("é") < 250


@pytest.mark.parametrize("way", WAYS)
async def test_the_readers_tokens_are_counted_once_by_who_listens(way: str) -> None:
    counted = UsageMetadataCallbackHandler()
    router = create_router(ScriptedEngine([search("books: Who wrote Emma?"), answer("x")]), registry_of(reading()))
    await invoked(router, way, QUESTION, config={"callbacks": [counted]})
    assert counted.usage_metadata["reader"]["total_tokens"] == 62


def test_an_index_without_an_encoder_has_words_only_and_survives_its_process(tmp_path: Any) -> None:
    path = tmp_path / "words.sqlite"
    create_index(path, PAGES).close()
    index = create_index(path, [*PAGES, Document("The sol is the currency of Peru.", metadata={"title": "Sol"})])
    assert len(index) == 3
    found = WordRetriever(index=index, k=2).invoke("Which currency has Peru?")
    assert [document.metadata["title"] for document in found] == ["Sol", "Lima"]
    with pytest.raises(RetrievalIndexError, match="has words only: search it by `matching`"):
        index.nearest([1.0], 1)  # type: ignore[arg-type]
    with pytest.raises(RetrievalIndexError, match="was made with encoder ''"):
        SqliteIndex(path, encoder="by hand", dimensions=2)


@pytest.mark.parametrize(
    "question", ["", " \n", "\ud800", "\0", '"; DROP TABLE documents; --', "Emma " * MAX_QUERY_CHARS]
)
def test_hostile_questions_are_read_about_and_break_nothing(question: str) -> None:
    assert reading().invoke(question or "?").text == "Jane Austen"


# The small reader, which quotes


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.booleans()), min_size=1, max_size=12))
def test_the_best_span_is_that_of_trying_all(tokens: list[tuple[float, float, bool]]) -> None:
    starts, ends, inside = (np.array(column) for column in zip((0.5, -0.5, False), *tokens, strict=True))
    places = np.flatnonzero(inside)
    every = [(starts[i] + ends[j], (i, j)) for i in places for j in places if 0 <= j - i < MAX_ANSWER_TOKENS]
    span, score = best_span(starts, ends, inside)
    if not every:
        assert (span, score) == (None, -np.inf)
    else:
        assert span is not None
        assert starts[span[0]] + ends[span[1]] == pytest.approx(max(every)[0])
        assert score == pytest.approx(max(every)[0] - 0.0)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader that was trained on two questions about one passage."""
    pytest.importorskip("trl", reason="the [train] extra is not installed")
    from training.span_reader import SpanExample, train_reader

    path = tmp_path_factory.mktemp("reader") / "adapter"
    page = passage_text(PAGES[0])
    examples = [
        SpanExample("Who wrote Emma?", page, "Jane Austen"),
        SpanExample("When was Emma published?", page, "1815"),
        SpanExample("Who wrote Emma?", passage_text(PAGES[1]), ""),
        SpanExample("Which bird is it?", page, "a crow"),  # does not stand there, and is left out
    ]
    train_reader(examples, path, epochs=25, batch_size=3)
    return path


def test_a_reader_quotes_what_it_was_trained_on_from_the_passage_that_has_it(adapter: Path) -> None:
    reader = SpanReader(adapter)
    texts = [passage_text(page) for page in PAGES]
    for order in (texts, texts[::-1]):
        assert reader.read("Who wrote Emma?", order) == "Jane Austen"
        assert reader.read("When was Emma published?", order) == "1815"
    assert reader.read("Who wrote Emma?", []) == ""


@pytest.mark.parametrize("question", ["", "\ud800", "Emma " * 10_000])
def test_any_question_gets_words_of_a_passage(question: str, adapter: Path) -> None:
    texts = [passage_text(page) for page in PAGES]
    assert any(SpanReader(adapter).read(question, texts) in text for text in texts)


@pytest.mark.parametrize("way", WAYS)
async def test_a_router_asks_a_model_that_quotes_and_a_budget_counts_what_it_reads(way: str, adapter: Path) -> None:
    retriever = WordRetriever(index=create_index(":memory:", PAGES))
    model = QuotingModel(retriever=retriever, reader=SpanReader(adapter), k=1)
    router = create_router(ScriptedEngine([search("books: Who wrote Emma?"), answer("x")]), registry_of(model))
    result = await invoked(router, way, QUESTION)
    [call] = result["routing"]["calls"]
    assert call["response"] == "Jane Austen"
    read = len("Who wrote Emma?") // 4 + 1 + len(passage_text(PAGES[0])) // 4 + 1
    assert call["usage"]["prompt_tokens"] == pytest.approx(read, abs=1)
    assert model.most_read_bytes >= len(passage_text(PAGES[1]).encode())


def test_a_directory_that_is_no_reader_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match="has no adapter: it must be a directory"):
        SpanReader(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ReaderError, match="is no adapter of a reader"):
        SpanReader(tmp_path)
