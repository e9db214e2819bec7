"""What SIGKILL does to runs: replies lost, answers changed, calls made twice, and whether the run says so.

    python benchmarks/kills.py --kills 300
    python benchmarks/kills.py --kills 300 --strategy planner

A run makes three calls in parallel and then three in series, to a provider on loopback that counts what it is asked.
A router decides on them in four turns, a planner in one plan.
Each run is a process of its own that is killed after a random time, resumed from its SQLite checkpoint, killed again,
and so on until it ends. Half of the kills hit synchronous runs, half asynchronous ones. The exit code is 1 when a
reply was lost, an answer differs from that of an undisturbed run, or a call was made twice and the run does not report
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import typer
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import StateSnapshot
from pydantic import SecretStr
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_planner, create_router
from langgraph_router_r1.state import RunReport
from langgraph_router_r1.testing import ScriptedEngine

Way = Literal["sync", "async"]
StrategyName = Literal["router", "planner"]

REPLY_S = 0.02
"""How long the provider takes for a reply, at most."""

PARALLEL, SERIAL = 3, 3

LONGEST_LIFE = 1.25
"""How long a process may live before it is killed, at most, as a multiple of an undisturbed run."""


# The provider, in a process of its own


def provide(pipe: Connection) -> None:
    """Serve chat completions and count them by question; send the counts when asked for them."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            question = json.loads(body)["messages"][-1]["content"].splitlines()[-1]
            asked[question] += 1
            time.sleep(random.uniform(0, REPLY_S))
            message = {"role": "assistant", "content": f"reply to {question}"}
            reply = {
                "id": "1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }  # fmt: skip
            content = json.dumps(reply).encode()
            with contextlib.suppress(OSError):  # whoever asked was killed
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # connections of killed processes

    server = Server(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while pipe.recv() == "counts":
        pipe.send(dict(asked))


# One run, in a process of its own


def write(transcript: Sequence[Any]) -> str:
    """Play the router: three calls at once, three one after another, and an answer that holds all replies."""
    turn = sum(segment["kind"] == "policy" for segment in transcript)
    name = transcript[0]["text"].split("Question: ")[1].split()[0]
    if turn == 0:
        calls = "\n".join(f"m: {name} parallel {number}" for number in range(PARALLEL))
    elif turn <= SERIAL:
        calls = f"m: {name} serial {turn}"
    else:
        heard = "".join(segment["text"] for segment in transcript if segment["kind"] == "observation")
        replies = sorted(word for line in heard.splitlines() for word in line.split("reply to ")[1:])
        return (
            f"<think> done </think><answer> {' | '.join(reply.split(' <')[0].strip() for reply in replies)} </answer>"
        )
    return f"<think> ask </think><search> {calls} </search>"


def plan(question: str) -> str:
    """Play the decomposer: three steps that need no other, and three that each need the one before."""
    name = question.split()[0]
    steps = [f"{name} parallel {number}" for number in range(PARALLEL)]
    steps += [f"{name} serial {number} after #{PARALLEL - 1 + number}" for number in range(1, SERIAL + 1)]
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))


def create(strategy: StrategyName, registry: ModelRegistry, checkpointer: Any) -> Any:
    """Return the router or planner of the runs."""
    if strategy == "planner":
        return create_planner(plan, registry, allocator=lambda *_: "m", checkpointer=checkpointer)
    return create_router(ScriptedEngine(write), registry, checkpointer=checkpointer, max_turns=SERIAL + 1)


def take_part(strategy: StrategyName, way: Way, url: str, database: Path, name: str, result: Connection) -> None:
    """Begin the run of this name, or resume it; send its answer and account when it ends."""
    registry = ModelRegistry([ModelDescriptor(name="m", model="openai:m", base_url=url, price=1.0, max_retries=0)])
    config: Any = {"configurable": {"thread_id": name}}
    question: Any = {"messages": [("user", f"{name} ?")]}

    def rest(saved: Any) -> Any:
        """Return what to invoke with: nothing when there is a checkpoint to go on from."""
        return None if saved is not None else question

    if way == "sync":
        with SqliteSaver.from_conn_string(str(database)) as saver:
            router = create(strategy, registry, saver)
            if not _ended(router.get_state(config)):
                router.invoke(rest(saver.get_tuple(config)), config)
            values = router.get_state(config).values
    else:

        async def run() -> Any:
            async with AsyncSqliteSaver.from_conn_string(str(database)) as saver:
                router = create(strategy, registry, saver)
                if not _ended(await router.aget_state(config)):
                    await router.ainvoke(rest(await saver.aget_tuple(config)), config)
                return (await router.aget_state(config)).values

        values = asyncio.run(run())
    result.send((values["answer"], values["routing"]))


def _ended(state: StateSnapshot) -> bool:
    # A node that has ended leaves its answer before its step is stored: such a run has a node to run next.
    return bool(state.values.get("answer")) and not state.next


# The harness


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    name: str
    """The first word of its question and of all of its calls."""
    answer: str
    routing: RunReport


@dataclass
class Tally:
    """What came out."""

    kills: int = 0
    runs: int = 0
    calls: int = 0
    twice: int = 0
    """Calls that the provider was asked more than once."""
    unreported: list[str] = field(default_factory=list)
    """Those of them that the run does not report."""
    false_alarms: int = 0
    """Calls that were reported and made once: they were killed between the note and the request."""
    lost: list[str] = field(default_factory=list)
    """Calls without their reply at the end."""
    different: list[str] = field(default_factory=list)
    """Runs whose answer is not that of an undisturbed run."""

    def add(self, run: Run, undisturbed: Run, asked: dict[str, int]) -> None:
        """Compare one run with an undisturbed one, and with what the provider counted."""
        name, answer, routing = run.name, run.answer, run.routing
        expected = [call["query"].replace(undisturbed.name, name) for call in undisturbed.routing["calls"]]
        routed_calls = {routed["query"]: routed for routed in routing["calls"]}
        self.runs += 1
        if answer != undisturbed.answer.replace(undisturbed.name, name):
            self.different.append(f"{name}: {answer!r}")
        for question in expected:
            self.calls += 1
            routed = routed_calls.get(question)
            asked_last = question.splitlines()[-1]  # what a planner quotes of earlier results stands before
            if routed is None or routed["response"] != f"reply to {asked_last}":
                self.lost.append(question)
                continue
            self.twice += asked[asked_last] > 1
            if asked[asked_last] > 1 and not routed["maybe_billed_twice"]:
                self.unreported.append(question)
            self.false_alarms += asked[asked_last] == 1 and routed["maybe_billed_twice"]


def run_once(
    context: Any,
    strategy: StrategyName,
    way: Way,
    url: str,
    database: Path,
    name: str,
    lives: Callable[[], float | None],
    tally: Tally,
) -> Run:
    """Start the run and resume it until it ends; kill each process after the seconds that `lives` gives."""
    while True:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=take_part, args=(strategy, way, url, database, name, theirs))
        process.start()
        theirs.close()
        life = lives()
        process.join(life)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            tally.kills += 1
        if ours.poll():
            try:
                return Run(name, *ours.recv())
            except EOFError:
                continue
        if process.exitcode not in (0, -signal.SIGKILL):
            raise SystemExit(f"{name}: a resumed run ended with exit code {process.exitcode}")


def main(kills: int = 300, strategy: StrategyName = "router", seed: int = 0) -> None:
    draw = random.Random(seed)
    # Processes are forked from one that has imported everything, and has no threads yet. OpenAI's package imports
    # the rest of itself with its first client.
    ChatOpenAI(model="m", base_url="http://127.0.0.1:9/v1", api_key=SecretStr("none"))
    context = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe()
    provider = context.Process(target=provide, args=(theirs,), daemon=True)
    provider.start()
    url = f"http://127.0.0.1:{pipe.recv()}/v1"
    tallies: dict[Way, Tally] = {"sync": Tally(), "async": Tally()}
    with tempfile.TemporaryDirectory() as folder:
        lengths: dict[Way, float] = {}
        undisturbed: dict[Way, Run] = {}
        for way in tallies:
            started = time.monotonic()
            database = Path(folder) / f"{way}.sqlite"
            undisturbed[way] = run_once(
                context, strategy, way, url, database, f"{way}-undisturbed", lambda: None, Tally()
            )
            lengths[way] = time.monotonic() - started
            if len(undisturbed[way].routing["calls"]) != PARALLEL + SERIAL:
                raise SystemExit(f"an undisturbed run made other calls: {undisturbed[way]}")
        # A thread of the progress bar would be forked along.
        progress = Progress(console=Console(stderr=True), auto_refresh=False)
        bar = progress.add_task("kills", total=kills)
        number = 0
        while (done := sum(tally.kills for tally in tallies.values())) < kills:
            way = min(tallies, key=lambda way: tallies[way].kills)
            name = f"{way}-{number}"
            number += 1
            life = functools.partial(draw.uniform, 0, LONGEST_LIFE * lengths[way])
            run = run_once(context, strategy, way, url, Path(folder) / f"{way}.sqlite", name, life, tallies[way])
            pipe.send("counts")
            tallies[way].add(run, undisturbed[way], pipe.recv())
            progress.update(bar, completed=done)
            progress.refresh()
        progress.update(bar, completed=kills)
        progress.refresh()
    pipe.send("end")
    provider.terminate()
    raise typer.Exit(report(tallies))


def report(tallies: dict[Way, Tally]) -> int:
    """Print what came out; return the exit code."""
    table = Table("", *tallies, title="Runs killed with SIGKILL and resumed")
    for words, value in (
        ("kills", lambda tally: tally.kills),
        ("runs", lambda tally: tally.runs),
        ("calls", lambda tally: tally.calls),
        ("calls made twice", lambda tally: f"{tally.twice} ({tally.twice / tally.calls:.1%})"),
        ("... of which not reported", lambda tally: len(tally.unreported)),
        ("reported, but made once", lambda tally: tally.false_alarms),
        ("replies lost", lambda tally: len(tally.lost)),
        ("different answers", lambda tally: len(tally.different)),
    ):
        table.add_row(words, *(str(value(tally)) for tally in tallies.values()))
    Console().print(table)
    broken = [line for tally in tallies.values() for line in (*tally.unreported, *tally.lost, *tally.different)]
    for line in broken[:20]:
        print(line, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    typer.run(main)
