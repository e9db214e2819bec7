"""Benchmarks of models behind HTTP: no kill, budget or failure costs a run, or a call twice."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_bench import figures, run

from langgraph_router_r1.evaluation import report
from langgraph_router_r1.evaluation.bench import Bench
from langgraph_router_r1.evaluation.bench_store import RUNS_FILE, read_runs
from langgraph_router_r1.evaluation.report import Results
from langgraph_router_r1.evaluation.tasks import json_lines


class Pool(ThreadingHTTPServer):
    """Two models behind HTTP, and a book of every call: what was asked of whom, from when to when."""

    daemon_threads = True
    request_queue_size = 128  # as many as knock at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[tuple[str, float]] = []
        self.down: set[str] = set()
        self.judge_fails = 0
        """How many of the next questions to the judge are refused."""


class Handler(BaseHTTPRequestHandler):
    server: Pool
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        started = time.time()
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = asked["messages"][-1]["content"].rpartition("\n\n")[2]
        is_down = asked["model"] in self.server.down
        if asked["model"] == "judge":
            is_down, text = self.server.judge_fails > 0, "Yes."
            self.server.judge_fails -= 1
        else:
            number = int(question.split()[-1].strip("?"))
            knows = number % 4 != 0 if asked["model"] == "good" else number % 3 == 0
            text = f"right{number}" if knows else "No."
        time.sleep(0.03)
        if is_down:
            self.send_error(503)
            return
        reply = {
            "id": "x", "object": "chat.completion", "created": 0, "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop",
                         "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14},
        }  # fmt: skip
        body = json.dumps(reply).encode()
        with contextlib.suppress(OSError):  # the one who asked was killed
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        self.server.calls.append((f"{asked['model']}: {question}", started))

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # between two requests of one who was killed
            super().handle()


@pytest.fixture
def live() -> Iterator[Pool]:
    with Pool() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def live_benchmark(directory: Path, server: Pool) -> Path:
    """A benchmark of real calls: every row asks the same questions of the same two models."""
    registry = "".join(
        f'[models.{name}]\nmodel = "openai:{name}"\nbase_url = "http://127.0.0.1:{server.server_address[1]}/v1"\n'
        f"price = {price}\nmax_retries = 0\n"
        for name, price in (("poor", 0.1), ("good", 1.0))
    )
    (directory / "pool.toml").write_text(registry)
    rows = "".join(f'[[rows]]\nrouter = "{kind}"\n' for kind in ("models", "random", "majority", "most_expensive"))
    (directory / "questions.jsonl").write_text(
        "".join(
            json.dumps({"id": f"t{n}", "question": f"question {n}?", "golden_answers": [f"right{n}"]}) + "\n"
            for n in range(160)
        )
    )
    file = directory / "live.toml"
    file.write_text(f'title = "Live"\ntasks = ["questions.jsonl"]\n[pool]\nregistry = "pool.toml"\n{rows}')
    return file


def test_what_was_known_from_before_took_no_time_that_says_anything(tmp_path: Path, live: Pool) -> None:
    results = run(Bench.from_file(live_benchmark(tmp_path, live), tmp_path / "runs"))
    assert results["good"].median_s is not None
    assert results["most_expensive"].median_s is None


def test_ten_kills_change_no_figure_and_no_reply_is_paid_for_twice(tmp_path: Path, live: Pool) -> None:
    file = live_benchmark(tmp_path, live)
    undisturbed = bench_in_a_process(file, tmp_path / "whole")
    assert undisturbed.wait(timeout=120) == 0
    assert not any(row.failures for row in Results.load(tmp_path / "whole" / "live.jsonl").rows)
    assert "s, median" in report.columns(Results.load(tmp_path / "whole" / "live.jsonl"))
    asked = {call for call, _ in live.calls}
    assert len(live.calls) == len(asked)  # not even by rows that ask the same at the same time
    started = [when for _, when in live.calls]
    longest = max(0.12, 0.3 * (max(started) - min(started)))  # a slow machine has to get somewhere, too
    live.calls.clear()

    moments = random.Random(0)
    kills: list[tuple[float, set[str]]] = []
    """When, and the calls of the runs that were written by then."""
    while len(kills) < 10:
        process = bench_in_a_process(file, tmp_path / "killed")
        seen = len(live.calls)
        # At a random moment of its work, which starts with its first call.
        deadline = time.monotonic() + 60
        while len(live.calls) == seen and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        killed = time.time()
        process.wait()
        kills.append((killed, calls_of(tmp_path / "killed")))
        written_out = tmp_path / "killed" / RUNS_FILE
        lines = list(json_lines(written_out, may_be_cut_off=True)) if written_out.exists() else []
        assert len({(run["row"], run["task_id"]) for _, run in lines}) == len(lines)
    assert bench_in_a_process(file, tmp_path / "killed").wait(timeout=120) == 0

    assert figures(Results.load(tmp_path / "killed" / "live.jsonl")) == figures(
        Results.load(tmp_path / "whole" / "live.jsonl")
    )
    # What is part of a run that was written is not asked again: not by that row, and not by another one.
    assert {call for call, _ in live.calls} == asked
    assert kills[-1][1]
    for killed, written in kills:
        assert not written & {call for call, started in live.calls if started > killed}


def test_a_budget_ends_a_benchmark_in_time_and_the_same_command_goes_on(tmp_path: Path, live: Pool) -> None:
    file, output, budget = live_benchmark(tmp_path, live), tmp_path / "runs", 4e-4
    exits = list[int]()
    while exits[-1:] != [0] and len(exits) < 9:
        before = len(live.calls)
        exits.append(bench_in_a_process(file, output, "--budget", str(budget)).wait(timeout=120))
        calls = [call for run in read_runs(output).values() for call in run["record"]["calls"]]
        per_call = {call["model"]: call["list_cost_usd"] for call in calls}
        spent = sum(per_call[call.partition(":")[0]] for call, _ in live.calls[before:])
        assert spent <= budget
        assert exits[-1] == 0 or spent > budget / 2, "as much as there is room for"
    assert exits == [1] * (len(exits) - 1) + [0]
    assert len(exits) > 2
    assert len(live.calls) == len({call for call, _ in live.calls}), "nothing is paid for twice"
    questions = {run["task_id"] for run in read_runs(output).values()}
    assert len(read_runs(output)) == 5 * len(questions)
    assert len(live.calls) == 2 * len(questions)


def test_runs_in_which_a_model_failed_are_made_again_when_asked_for_and_only_they(tmp_path: Path, live: Pool) -> None:
    file = live_benchmark(tmp_path, live)

    def bench(name: str, *options: str) -> Results:
        live.calls.clear()
        assert bench_in_a_process(file, tmp_path / name, *options).wait(timeout=120) == 0
        return Results.load(tmp_path / name / "live.jsonl")

    def asked() -> set[str]:
        return {call.partition(":")[0] for call, _ in live.calls}

    expected = figures(bench("undisturbed"))
    live.down = {"poor"}
    failed = bench("runs")
    assert failed["poor"].failures
    assert asked() == {"good"}
    live.down = set()
    assert figures(bench("runs")) == figures(failed)
    assert asked() == set()
    assert figures(bench("runs", "--retry-failed")) == expected
    assert asked() == {"poor"}
    assert figures(bench("runs")) == expected


def test_a_judge_that_fails_for_a_while_is_asked_again_when_asked_for_and_never_rests(
    tmp_path: Path, live: Pool
) -> None:
    file = live_benchmark(tmp_path, live)
    text = file.read_text().replace(
        'tasks = ["questions.jsonl"]\n', 'tasks = ["questions.jsonl"]\nmetrics = ["judge"]\n'
    )
    file.write_text(
        text.partition("[[rows]]")[0]
        + '[judge]\nmodel = "judge"\nregistry = "judge.toml"\n[[rows]]\nrouter = "most_expensive"\n'
    )
    (tmp_path / "judge.toml").write_text((tmp_path / "pool.toml").read_text().replace("good", "judge"))

    def unjudged(*options: str) -> int:
        assert bench_in_a_process(file, tmp_path / "runs", *options).wait(timeout=120) == 0
        return sum(run["judge"] is None for run in read_runs(tmp_path / "runs").values())

    live.judge_fails = 8
    assert unjudged() == 8
    assert unjudged() == 8
    assert unjudged("--retry-failed") == 0


def calls_of(output: Path) -> set[str]:
    """The calls of all runs whose line is whole."""
    runs = read_runs(output).values()
    return {f"{routed['model']}: {routed['query']}" for run in runs for routed in run["record"]["calls"]}


def bench_in_a_process(file: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "langgraph_router_r1.cli", "bench", str(file), "--output", str(output), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
