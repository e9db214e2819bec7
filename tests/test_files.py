"""Files: full disks, kills and second writers cost no line, and leave nothing to repair by hand."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.cache.sqlite import SqliteCache

from langgraph_router_r1 import ModelDescriptor, ModelRegistry
from langgraph_router_r1.calls import CallCache, ModelCall
from langgraph_router_r1.calls.client import Client
from langgraph_router_r1.evaluation.files import JsonLinesWriter, replace_file
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.recorder import Recorder
from langgraph_router_r1.evaluation.tasks import Task, TaskError
from langgraph_router_r1.testing import ScriptedChatModel

TASKS = [Task(f"t{n}", f"Question {n}?", ("x",), "mine") for n in range(4)]


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: a write up to there is cut short, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


class Asked:
    """Asks a model through a recorder, in a run that says which task it is."""

    def __init__(self, registry: ModelRegistry) -> None:
        self.model, self.client = registry["small"], Client(registry["small"])

    def __call__(self, recorder: Recorder, number: int) -> str:
        task = TASKS[number]
        call = ModelCall(self.model, task.question)
        run = RunnableLambda(lambda _: recorder.wrap_call(call, self.client.send))
        return run.invoke(None, {"metadata": {"task_id": task.id}}).text


@pytest.fixture
def ask(registry: ModelRegistry) -> Asked:
    return Asked(registry)


@pytest.fixture
def model() -> ScriptedChatModel:
    return ScriptedChatModel([f"Reply {n}." for n in range(4)])


@pytest.fixture
def registry(model: ScriptedChatModel) -> ModelRegistry:
    return ModelRegistry([ModelDescriptor(name="small", model=model, price=1.0)])


def test_a_reply_that_a_full_disk_does_not_take_reaches_the_caller_and_the_file_when_there_is_room(
    tmp_path: Path, ask: Asked, model: ScriptedChatModel
) -> None:
    path = tmp_path / "answers.jsonl"
    with Recorder(path, TASKS) as recorder:
        assert ask(recorder, 0) == "Reply 0."
        with full_disk(path.stat().st_size + 40):
            assert ask(recorder, 1) == "Reply 1."
            assert ids(path) == ["t0"], "no half line stays in the file"
            with pytest.raises(TaskError, match=r"answers\.jsonl' can't be written: File too large"):
                ask(recorder, 2)
            assert ask(recorder, 1) == "Reply 1."
        assert len(model.calls) == 2, "nothing is asked for that can't be kept"
        assert ask(recorder, 2) == "Reply 2."
    assert ids(path) == ["t0", "t1", "t2"]
    assert RecordedPool.from_file(path).outcomes["t1"]["small"].response == "Reply 1."


def test_a_recorder_that_is_closed_on_a_full_disk_says_what_it_lost_and_its_file_can_be_continued(
    tmp_path: Path, ask: Asked
) -> None:
    path = tmp_path / "answers.jsonl"
    recorder = Recorder(path, TASKS)
    ask(recorder, 0)
    with full_disk(path.stat().st_size + 40):
        ask(recorder, 1)
        with pytest.raises(TaskError, match="File too large; the last 1 of its lines could not be saved"):
            recorder.close()
    with Recorder(path, TASKS) as recorder:
        ask(recorder, 2)
    assert ids(path) == ["t0", "t2"]


def test_a_file_has_one_writer_at_a_time_and_the_second_one_is_told_who_has_it(tmp_path: Path, ask: Asked) -> None:
    path = tmp_path / "answers.jsonl"
    holder = python(
        "import sys, time\n"
        "from langgraph_router_r1.evaluation.files import JsonLinesWriter\n"
        "with JsonLinesWriter(sys.argv[1]):\n"
        "    print('open', flush=True)\n"
        "    time.sleep(600)\n",
        path,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"open\n"
    who = f"process {holder.pid}" if Path("/proc/locks").exists() else "another process"
    with pytest.raises(TaskError, match=rf"answers\.jsonl' is being written by {who}: wait until it ends"):
        Recorder(path, TASKS)
    kill(holder)
    with Recorder(path, TASKS) as recorder:
        ask(recorder, 0)
        with pytest.raises(TaskError, match="is being written by"):
            JsonLinesWriter(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["answers.jsonl"], "no lock file stays"


def test_a_killed_writer_loses_no_line_and_the_next_one_goes_on(tmp_path: Path) -> None:
    path, moments = tmp_path / "lines.jsonl", random.Random(0)
    acknowledged: list[str] = []
    for _ in range(5):
        writer = python(
            "import itertools, sys\n"
            "from langgraph_router_r1.evaluation.files import JsonLinesWriter\n"
            "with JsonLinesWriter(sys.argv[1], sync=False) as file:\n"
            "    for n in itertools.count(int(sys.argv[2])):\n"
            "        file.append({'id': str(n), 'text': 'x' * 100_000})\n"
            "        print(n, flush=True)\n",
            path,
            len(acknowledged) + 1_000_000,
        )
        assert writer.stdout is not None
        acknowledged.append(writer.stdout.readline().decode().strip())
        time.sleep(moments.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.stdout.read().decode().split()
        kill(writer)
        with JsonLinesWriter(path):
            pass
        assert ids(path)[: len(acknowledged)] == acknowledged
        acknowledged = ids(path)  # a line may be written and not acknowledged
    assert len(acknowledged) > 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["lines.jsonl"]


def test_what_a_reader_finds_after_a_kill_is_every_whole_line(tmp_path: Path, ask: Asked) -> None:
    path = tmp_path / "answers.jsonl"
    with Recorder(path, TASKS) as recorder:
        ask(recorder, 0)
    with path.open("a") as file:
        file.write('{"id": "t1", "quest')
    before = path.read_bytes()
    assert list(RecordedPool.from_file(path).tasks) == ["t0"]
    assert path.read_bytes() == before, "a reader changes nothing: somebody may be writing"


def test_the_next_writer_removes_half_a_line_and_keeps_a_whole_one_without_its_line_break(
    tmp_path: Path, ask: Asked, model: ScriptedChatModel
) -> None:
    path = tmp_path / "answers.jsonl"
    with Recorder(path, TASKS) as recorder:
        ask(recorder, 0)
        ask(recorder, 1)
    whole = path.read_bytes()
    for damaged, expected in ((whole[:-1], whole), (whole + b'{"id": "t2', whole), (whole[:-2], whole.split(b"\n")[0])):
        path.write_bytes(damaged)
        with JsonLinesWriter(path):
            pass
        assert path.read_bytes() == expected.rstrip(b"\n") + b"\n"
    path.write_bytes(whole[:-1])
    with Recorder(path, TASKS) as recorder:
        ask(recorder, 1)
        ask(recorder, 2)
    assert ids(path) == ["t0", "t1", "t2"]
    assert len(model.calls) == 3


def test_a_line_that_is_wrong_in_the_middle_is_named_and_nothing_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nof today\n")
    with pytest.raises(TaskError, match=r"notes\.txt, line 1: is no JSON"):
        Recorder(path, TASKS)
    assert path.read_text() == "my notes\nof today\n"


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": ' + "1" * 5000 + "}", "\x00", "1"])
def test_a_hostile_line_is_a_clear_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TaskError, match=r"x\.jsonl, line 1: is (no JSON|a int)"):
        RecordedPool.from_file(path)


def test_any_text_can_be_written_and_is_read_as_it_was(tmp_path: Path) -> None:
    text = 'a\u2028b\x85c\ud800d\r\n"\x00 \U0001f600'
    with JsonLinesWriter(tmp_path / "x.jsonl") as file:
        file.append({"text": text})
        file.append({"text": ""})
    first, _ = (tmp_path / "x.jsonl").read_bytes().split(b"\n")[:-1]
    assert json.loads(first)["text"] == text


def test_a_killed_replacement_leaves_the_old_file_and_nothing_that_piles_up(tmp_path: Path) -> None:
    path, moments = tmp_path / "page.md", random.Random(0)
    for _ in range(3):
        writer = python(
            "import sys\n"
            "from langgraph_router_r1.evaluation.files import replace_file\n"
            "while True:\n"
            "    for letter in 'ab':\n"
            "        replace_file(sys.argv[1], letter * 3_000_000)\n"
            "        print(letter, flush=True)\n",
            path,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(moments.uniform(0, 0.05))
        kill(writer)
        text = path.read_text()
        assert (len(text), len(set(text))) == (3_000_000, 1)
        assert {entry.name for entry in tmp_path.iterdir()} <= {"page.md", ".page.md.partial"}
    (tmp_path / ".page.md.partial").write_text("left by a killed writer")
    replace_file(path, "new")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("page.md", "new")]


def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    replace_file(path, "old")
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        replace_file(path, "x" * 2000)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("page.md", "old")]


def test_a_reply_that_the_cache_does_not_take_reaches_the_caller_and_the_cache_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def reply(messages: Any) -> AIMessage:
        asked.append(messages[-1].text[-1])
        return AIMessage("long " * 2000)

    descriptor = ModelDescriptor(name="small", model=RunnableLambda(reply), price=1.0)
    client = Client(descriptor)

    def remembering() -> Any:
        cache = CallCache(SqliteCache(path=str(tmp_path / "calls.sqlite")))
        return lambda question: cache.wrap_call(ModelCall(descriptor, question), client.send)

    model = remembering()
    with full_disk(20_000):
        replies = [model(question).text for question in "abcab"]
    assert asked == ["a", "b", "c"]
    assert set(replies) == {"long " * 2000}
    assert "can't be saved yet" in caplog.text
    model("d")
    del model
    again = remembering()
    for question in "abcd":
        again(question)
    assert asked == ["a", "b", "c", "d"], "everything is in the file now"


def test_the_base_model_is_converted_once_for_all_who_ask_and_what_a_killed_one_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model = pytest.importorskip("langgraph_router_r1.pocket.base_model")
    pytest.importorskip("transformers")
    monkeypatch.setenv("ROUTER_R1_CACHE", str(tmp_path))
    converted: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        converted.append(target)
        time.sleep(0.1)
        target.mkdir()
        (target / "model.safetensors").write_text("")

    monkeypatch.setattr(base_model, "_gguf_path", lambda: tmp_path / "no.gguf")
    left = tmp_path / f"{base_model.BASE_MODEL_NAME}.partial"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    with pytest.raises(OSError, match=r"no\.gguf|tmp"):
        base_model.base_model_dir()
    assert [entry.suffix for entry in tmp_path.iterdir()] == [".lock"]

    monkeypatch.setattr(base_model, "_convert", convert)
    threads = [threading.Thread(target=base_model.base_model_dir) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
