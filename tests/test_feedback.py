"""Feedback on runs of the server, and the records that come of it: what training and the kNN strategy learn from."""

from __future__ import annotations

import functools
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import LEAVES_CLIENTS, answer, pool, search
from langchain_core.embeddings import DeterministicFakeEmbedding
from typer.testing import CliRunner

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("openai", reason="the [openai] extra is not installed")

import openai
from router_server import Served, serving

from langgraph_router_r1 import ModelRegistry, create_router
from langgraph_router_r1.cli import cli
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.serving import export as exporting
from langgraph_router_r1.serving.keys import Key
from langgraph_router_r1.strategies.knn import KNNStrategy, nearest_neighbours
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

pytestmark = LEAVES_CLIENTS

CAPITAL, CURRENCY = "What is the capital of Peru?", "What currency is used in Peru?"
PIXEL = "data:image/png;base64,iVBORw0KGgo="
"""An image, as far as anything here looks at it."""


def write(transcript: Any) -> str:
    """Ask what the question names: the question itself, a part of it, or two models; then answer."""
    asked = transcript[0]["text"]
    if any(segment["kind"] == "observation" for segment in transcript):
        return answer("Lima")
    if "Part?" in asked:
        return search("small: Capital of Peru?")
    if "Both?" in asked:
        return search("small: Both?", "large: Both?")
    return search("broken: Whole?", "small: Whole?")


def models() -> Any:
    made = pool(small="It is Lima.", large="Lima, of course.", broken=ScriptedChatModel([ValueError("no")]))
    return ModelRegistry(model.model_copy(update={"modalities": ("text", "image")}) for model in made)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.sqlite"


@pytest.fixture
def served(database: Path) -> Iterator[Served]:
    with serving(ScriptedEngine(write), models(), database) as server:
        yield server


def client(server: Served, secret: str = "none") -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)


def ask(server: Served, question: Any, model: str = "router-r1", secret: str = "none", **options: Any) -> str:
    """Ask a question; return the id of its run."""
    messages: Any = [{"role": "user", "content": question}]
    reply = client(server, secret).chat.completions.create(model=model, messages=messages, **options)
    return str(reply._request_id)


def rate(server: Served, secret: str = "none", **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.post(f"{server.url}/v1/feedback", json=body, headers=headers)


def feedback(server: Served, run_id: str) -> Any:
    return httpx.get(f"{server.url}/v1/runs/{run_id}").json()["feedback"]


def export(database: Path | str, *options: str) -> list[dict[str, Any]]:
    """Return the rows that the command prints."""
    printed = CliRunner().invoke(cli, ["export-runs", "--database", str(database), *options])
    assert printed.exit_code == 0, printed.output
    return [json.loads(line) for line in printed.stdout.splitlines()]


def test_feedback_stands_beside_its_run_and_the_latest_word_counts(served: Served) -> None:
    run_id = ask(served, "Whole?")
    assert feedback(served, run_id) is None
    given = client(served).post("/feedback", cast_to=dict, body={"run_id": run_id, "score": 0.25, "comment": "Hm."})
    assert (given["object"], given["run_id"], given["score"]) == ("router_r1.feedback", run_id, 0.25)
    kept = feedback(served, run_id)
    assert (kept["score"], kept["comment"], kept["created_at"]) == (0.25, "Hm.", given["created_at"])
    assert rate(served, run_id=run_id, score=1).status_code == 200
    assert (feedback(served, run_id)["score"], feedback(served, run_id)["comment"]) == (1.0, None)
    [listed] = httpx.get(f"{served.url}/v1/runs").json()["data"]
    assert listed["feedback"] == feedback(served, run_id)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"score": 1.1}, "score: Input should be less than or equal to 1"),
        ({"score": -0.1}, "score: Input should be greater than or equal to 0"),
        ({"score": float("nan")}, "score: Input should be a finite number"),
        ({"score": "1"}, "score: Input should be a valid number"),
        ({"score": True}, "score: Input should be a valid number"),
        ({}, "score: Field required"),
        ({"score": 1, "comment": "x" * 2001}, "comment: String should have at most 2000 characters"),
        ({"score": 1, "coment": "x"}, "coment: Extra inputs are not permitted"),
    ],
)
def test_feedback_that_can_not_be_understood_is_refused_and_says_why(served: Served, body: Any, says: str) -> None:
    run_id = ask(served, "Whole?")
    content = json.dumps({"run_id": run_id, **body})
    refused = httpx.post(f"{served.url}/v1/feedback", content=content, headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, says)
    assert feedback(served, run_id) is None


def test_a_key_rates_its_own_runs_only_and_learns_nothing_of_others(database: Path) -> None:
    secrets = {name: f"the-secret-of-{name}-0123" for name in ("alice", "bob")}
    keys = [Key(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest()) for name, secret in secrets.items()]
    with serving(ScriptedEngine(write), models(), database, keys=tuple(keys)) as server:
        run_id = ask(server, "Whole?", secret=secrets["alice"])
        there = rate(server, secrets["bob"], run_id=run_id, score=0)
        missing = rate(server, secrets["bob"], run_id="run-0", score=0)
        assert (there.status_code, there.json()) == (missing.status_code, missing.json()) == (404, missing.json())
        assert rate(server, "unknown", run_id=run_id, score=0).status_code == 401
        assert rate(server, secrets["alice"], run_id=run_id, score=1).status_code == 200
        assert rate(server, secrets["bob"], run_id=run_id, score=0).status_code == 404
    assert [row["reward"] for row in export(database)] == [1.0]


def test_only_a_run_with_an_answer_is_rated(served: Served) -> None:
    waiting = httpx.post(f"{served.url}/v1/runs", json={"question": "Whole?", "approve": True})
    run_id = json.loads(waiting.text.split("\n\n")[0].removeprefix("data: "))["run_id"]
    refused = rate(served, run_id=run_id, score=1)
    assert refused.status_code == 409
    assert refused.json()["error"]["message"] == "the run is waiting: only a run that has an answer can be rated"


# The export


def test_the_score_of_a_run_is_that_of_a_model_only_if_it_alone_replied_to_the_question(
    served: Served, database: Path
) -> None:
    image = [{"type": "text", "text": "Whole?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    asked = {
        "direct": ask(served, CAPITAL, "large"),
        "tags": ask(served, "<b> <answer> Capital?", "large"),
        "whole": ask(served, "Whole?"),
        "part": ask(served, "Part?"),
        "both": ask(served, "Both?"),
        "image": ask(served, image, "large"),
        "unrated": ask(served, CAPITAL, "small"),
    }
    for name, run_id in asked.items():
        if name != "unrated":
            assert rate(served, run_id=run_id, score=0.5).status_code == 200
    rows = {row["id"]: row for row in export(database)}
    of_models = {name: list(rows[run_id]["outcomes"]) for name, run_id in asked.items()}
    assert of_models == {
        "direct": ["large"],
        "tags": ["large"],
        "whole": ["small"],  # another model failed, and had no part in the answer
        "part": [],
        "both": [],
        "image": [],  # the question alone is not what was asked
        "unrated": [],
    }
    outcome = rows[asked["direct"]]["outcomes"]["large"]
    assert (outcome["response"], outcome["score"]) == ("Lima, of course.", 0.5)
    assert outcome["prompt_tokens"] > 0 < outcome["completion_tokens"]
    assert (rows[asked["unrated"]]["reward"], len(export(database, "--scored"))) == (None, 6)


def test_the_knn_strategy_routes_by_what_users_said_of_the_models(
    served: Served, database: Path, tmp_path: Path
) -> None:
    for question, scores in ((CAPITAL, {"small": 1, "large": 0}), (CURRENCY, {"small": 0, "large": 0.9})):
        for model, score in scores.items():
            assert rate(served, run_id=ask(served, question, model), score=score).status_code == 200
    assert rate(served, run_id=ask(served, "Both?"), score=1).status_code == 200
    file = tmp_path / "scored.jsonl"
    assert export(database, "--scored", "--output", str(file)) == []
    registry = models()
    embeddings = DeterministicFakeEmbedding(size=16)  # the same text has the same vector
    nearest = functools.partial(nearest_neighbours, 2)
    knn = KNNStrategy.from_profile(file, registry, embeddings=embeddings, predictor=nearest)
    assert len(knn.observations) == 4
    assert [knn.rank(question)[0] for question in (CAPITAL, CURRENCY)] == ["small", "large"]
    assert all(cost > 0 for observation in knn.observations for cost in observation.cost_usd.values())
    result = create_router(strategy=knn, registry=registry).invoke({"messages": [("user", CURRENCY)]})
    assert [call["model"] for call in result["routing"]["calls"]] == ["large"]
    assert "record" not in next(iter(RecordedPool.from_file(file).tasks.values())).meta, "it would fill the memory"


def test_supervised_training_takes_the_runs_that_users_liked(
    served: Served, database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl", reason="the [train] extra is not installed")
    from test_grpo import tiny_model, tokenizer_at

    from training import sft

    runs = {score: ask(served, question) for score, question in ((1.0, "Whole?"), (0.2, "Part?"), (0.9, "Both?"))}
    runs[0.95] = ask(served, "Both?", "small")  # no router LLM wrote anything in it
    for score, run_id in runs.items():
        assert rate(served, run_id=run_id, score=score).status_code == 200
    ask(served, "Part?")
    file = tmp_path / "runs.jsonl"
    export(database, "--output", str(file))
    assert len(sft.read_examples(file)) == 4
    assert len(sft.read_examples(file, at_least=0.9)) == 2
    [best, _, _] = sft.read_examples(file, per_task=1)
    record = httpx.get(f"{served.url}/v1/runs/{runs[1.0]}").json()["record"]
    learned = [token for token, is_learned in zip(best.token_ids, best.mask, strict=True) if is_learned]
    written = [segment["token_ids"] for segment in record["segments"] if segment["kind"] == "policy"]
    assert learned == [token for turn in written for token in turn]

    base = tokenizer_at(tmp_path / "base")
    tiny_model().save_pretrained(base)
    sft.main(file, tmp_path / "adapter", model=str(base), at_least=0.9)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["examples"] == 2
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_an_export_that_breaks_off_leaves_the_file_as_it_was(
    served: Served, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        ask(served, "Whole?")
    file = tmp_path / "runs.jsonl"
    export(database, "--output", str(file))
    before, row_of = file.read_bytes(), exporting.export_row
    assert before.count(b"\n") == 2
    rows = iter([row_of])
    monkeypatch.setattr(exporting, "export_row", lambda run: next(rows)(run))  # the second is one too many
    printed = CliRunner().invoke(cli, ["export-runs", "--database", str(database), "--output", str(file)])
    assert printed.exit_code == 1
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir() if "runs.jsonl" in path.name} == {"runs.jsonl"}


def test_a_database_of_before_there_was_feedback_is_served_and_exported(database: Path) -> None:
    with serving(ScriptedEngine(write), models(), database) as server:
        run_id = ask(server, "Whole?")
    for use in ("export", "serve"):
        with sqlite3.connect(database) as connection:
            connection.execute("DROP TABLE router_r1_feedback")
        connection.close()
        if use == "export":
            assert [row["reward"] for row in export(database)] == [None]
    with serving(ScriptedEngine(write), models(), database) as server:
        assert feedback(server, run_id) is None
        assert rate(server, run_id=run_id, score=1).status_code == 200
        assert [row["reward"] for row in export(database, "--scored")] == [1.0], "the server may run meanwhile"


def test_what_is_no_database_of_a_server_is_said_and_left_alone(tmp_path: Path, served: Served, database: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other.sqlite"
    text.write_text("no database, " * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for name, says in (
        (str(tmp_path / "none"), "is no file"),
        (str(text), "--database can't be read (DatabaseError)"),
        (str(other), "the database has no table 'router_r1_runs'"),
        ("mysql://me:canary@host/db", "begins with postgresql://"),
        ("postgresql://me:canary@127.0.0.1:1/db", "--database can't be read (OperationalError)"),
    ):
        printed = CliRunner().invoke(cli, ["export-runs", "--database", name])
        assert (printed.exit_code, printed.stdout) == (1, "")
        assert says in printed.stderr.replace("\n", " ")
        assert "canary" not in printed.stderr
    with sqlite3.connect(other) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    connection.close()
    assert tables == ["mine"]
    printed = CliRunner().invoke(cli, ["export-runs", "--database", str(database), "--output", str(database)])
    assert (printed.exit_code, "which is a database" in printed.stderr) == (1, True)
