"""A model that reads before it answers: it is asked, priced, budgeted and recorded like any other."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import WAYS, answer, invoked, search
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


def registry_of(model: ReadingModel) -> ModelRegistry:
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
