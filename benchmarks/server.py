"""The server under load, with a scripted engine and models that take 50 ms a call.

    python benchmarks/server.py own-time             # milliseconds over the same graph called directly, one client
    python benchmarks/server.py load                 # 10,000 requests of 200 clients, half of them streams
    python benchmarks/server.py leave                # 500 clients that leave in mid-stream
    python benchmarks/server.py kills --kills 100    # SIGKILLs under load: every request is found, no spend forgotten

The server is a process of its own, with SQLite (or `--database postgresql://...`). The exit code is 1 when a request
failed that should not have, something was left behind, or an account is not complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
import uvicorn

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.cli.server import KEEP_ALIVE_S
from langgraph_router_r1.serving.database import open_database
from langgraph_router_r1.serving.keys import Key
from langgraph_router_r1.serving.openai_api import create_app
from langgraph_router_r1.serving.options import ServerSettings
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
from langgraph_router_r1.transcript import Segment

CALL_S = 0.05
KEY = "benchmark-0123456789abcdef"
QUESTION: dict[str, Any] = {"model": "router-r1", "messages": [{"role": "user", "content": "Capital of Peru?"}]}

Database = Annotated[str | None, typer.Option(help="postgresql://...; by default a SQLite file.")]

app = typer.Typer(help=__doc__, no_args_is_help=True)


def write(transcript: Sequence[Segment]) -> str:
    """Ask once, then answer in some hundred pieces."""
    if any(segment["kind"] == "observation" for segment in transcript):
        return f"<think> good </think><answer> {'Lima ' * 20}</answer>"
    return "<think> ask </think><search> small: Capital of Peru? </search>"


class Forgetful(list[Any]):
    """In the place of what the test doubles keep for tests to look at: it would look like a leak of the server."""

    def append(self, item: Any) -> None:
        """Keep nothing."""


def parts(call_s: float, piece_s: float) -> tuple[ScriptedEngine, ModelRegistry]:
    """Return the engine and the pool."""
    small = ScriptedChatModel(["It is Lima."], delay_s=call_s)
    engine = ScriptedEngine(write, delay_s=piece_s)
    engine.prompts, small.calls = Forgetful(), Forgetful()
    return engine, ModelRegistry([ModelDescriptor(name="small", model=small, price=1.0)])


@app.command(hidden=True)
def serve(port: int, database: str, call_s: float, piece_s: float, budget: float = 0.0) -> None:
    """Run the server; the other commands start it."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = (Key(name="benchmark", sha256=digest, day_usd=budget, run_usd=0.001),) if budget else ()
    engine, registry = parts(call_s, piece_s)
    settings = ServerSettings(database=database, keys=keys, max_concurrent=1000)
    uvicorn.run(
        create_app(engine, registry, settings),
        port=port,
        log_level="error",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )


class Server:
    """The server, in a process that can be killed."""

    def __init__(
        self, database: str | None, *, call_s: float = CALL_S, piece_s: float = 0.0, budget: float = 0.0
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="router-r1-server-")
        self._database = database or str(Path(self._directory.name, "runs.sqlite"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._options = [str(call_s), str(piece_s), "--budget", str(budget)]
        self.process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it takes requests."""
        command = [sys.executable, __file__, "serve", str(self.port), self._database, *self._options]
        self.process = subprocess.Popen(command)
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz").is_success:
                    return
            time.sleep(0.1)
        raise RuntimeError("the server does not start")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal, and wait until it has ended."""
        self.process.send_signal(number)
        self.process.wait()

    @property
    def megabytes(self) -> float:
        """The memory that it has."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    def metric(self, name: str) -> float:
        """Return the sum of its metrics whose lines begin so."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def running(database: str | None, **options: float) -> Iterator[Server]:
    server = Server(database, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def ask(client: httpx.AsyncClient, url: str, *, stream: bool) -> bool:
    """Ask once; return whether the answer came whole."""
    try:
        reply = await client.post(f"{url}/v1/chat/completions", json={**QUESTION, "stream": stream})
    except httpx.HTTPError as error:
        print(repr(error))
        return False
    if stream:
        return reply.status_code == 200 and reply.text.endswith("data: [DONE]\n\n")
    return reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"].startswith("Lima Lima")


def clients(many: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=many, max_keepalive_connections=many)
    return httpx.AsyncClient(limits=limits, timeout=120)


@app.command()
def own_time(runs: int = 300, database: Database = None) -> None:
    """Time one client's requests beside runs of the same graph, called directly with the same kind of saver."""

    async def direct(checkpointed: bool) -> list[float]:
        engine, registry = parts(0.0, 0.0)
        with tempfile.TemporaryDirectory() as directory:
            async with open_database(database or str(Path(directory, "runs.sqlite"))) as (_, saver):
                router = create_router(engine, registry, checkpointer=saver if checkpointed else None)
                times = []
                for run in range(runs):
                    begun = time.perf_counter()
                    config: Any = {"configurable": {"thread_id": f"direct-{run}-{begun}"}}
                    asked: Any = {"messages": [("user", "Capital of Peru?")]}
                    async for _ in router.astream(asked, config, stream_mode=["custom", "values"]):
                        pass
                    times.append(time.perf_counter() - begun)
                return times

    def served(port: int, method: str, path: str, body: dict[str, Any] | None) -> list[float]:
        # The standard library's client: httpx would add two milliseconds of its own.
        client, times = http.client.HTTPConnection("127.0.0.1", port), []
        for _ in range(runs):
            begun = time.perf_counter()
            client.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            reply = client.getresponse()
            assert reply.read()
            assert reply.status == 200
            times.append(time.perf_counter() - begun)
        return times

    with running(database, call_s=0.0) as server:
        streamed = {**QUESTION, "stream": True}
        # In turn, so that what else the machine does falls on all.
        figures: dict[str, list[float]] = {}
        for _ in range(3):
            for name, times in (
                ("the graph alone", asyncio.run(direct(checkpointed=False))),
                ("the graph with checkpoints", asyncio.run(direct(checkpointed=True))),
                ("the server", served(server.port, "POST", "/v1/chat/completions", QUESTION)),
                ("the server, streaming", served(server.port, "POST", "/v1/chat/completions", streamed)),
                ("the server without a run", served(server.port, "GET", "/healthz", None)),
            ):
                figures.setdefault(name, []).extend(times)
    for name, times in figures.items():
        ordered = sorted(times)
        middle, high = 1e3 * statistics.median(ordered), 1e3 * ordered[int(len(ordered) * 0.95)]
        print(f"{name}: p50 {middle:.1f} ms, p95 {high:.1f} ms")


@app.command()
def load(requests: int = 10_000, many: int = 200, database: Database = None) -> None:
    """Ask so often by so many clients, every other time as a stream; watch errors and memory."""
    with running(database) as server:
        failed, done, marks = 0, 0, list[tuple[int, float]]()

        async def one(client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
            nonlocal failed, done
            for number in numbers:
                is_whole = await ask(client, server.url, stream=number % 2 == 1)
                failed += not is_whole
                done += 1
                if done % 1000 == 0:
                    marks.append((done, server.megabytes))

        async def all_of_them() -> None:
            numbers = iter(range(requests))
            async with clients(many) as client:
                await asyncio.gather(*(one(client, numbers) for _ in range(many)))

        begun = time.perf_counter()
        asyncio.run(all_of_them())
        seconds = time.perf_counter() - begun
        left = server.metric("router_r1_running ")
    print(f"{requests} requests of {many} clients: {failed} failed, {requests / seconds:.0f} a second")
    print("memory, MB after so many requests:", ", ".join(f"{count}: {size:.0f}" for count, size in marks))
    raise typer.Exit(int(failed > 0 or left > 0))


@app.command()
def leave(many: int = 500, database: Database = None) -> None:
    """Let so many clients leave in the middle of their streams; see what is left of them after a second."""
    with running(database, piece_s=0.05) as server:
        process = psutil.Process(server.process.pid)
        before = len(process.net_connections())

        async def one(client: httpx.AsyncClient) -> None:
            async with client.stream(
                "POST", f"{server.url}/v1/chat/completions", json={**QUESTION, "stream": True}
            ) as reply:
                pieces = 0
                async for _ in reply.aiter_lines():
                    pieces += 1
                    if pieces > random.randint(2, 10):
                        return

        async def all_of_them() -> None:
            async with clients(many) as client:
                await asyncio.gather(*(one(client) for _ in range(many)))

        asyncio.run(all_of_them())
        time.sleep(1.0)
        connections = len(process.net_connections()) - before  # before those that ask for the metrics
        still = server.metric("router_r1_running ")
        ended, cancelled = (
            server.metric(f'router_r1_runs_total{{status="{status}"') for status in ("ended", "cancelled")
        )
    print(f"{many} clients left: {cancelled:.0f} runs were cancelled and {ended:.0f} ended;", end=" ")
    print(f"after 1 s {still:.0f} runs and {connections} connections are left")
    raise typer.Exit(int(still > 0 or connections > 0 or ended + cancelled != many))


async def _ask_until_killed(url: str, stop: asyncio.Event, asked: dict[str, str]) -> None:
    """Ask again and again, each time with an id of the client's own; note what the client saw."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with clients(50) as client:
        while not stop.is_set():
            name = os.urandom(8).hex()
            asked[name] = "sent"
            try:
                own = {**headers, "X-Client-Request-Id": name}
                reply = await client.post(f"{url}/v1/chat/completions", json=QUESTION, headers=own)
                asked[name] = str(reply.status_code)
            except httpx.HTTPError:
                asked[name] = "no reply"
                await asyncio.sleep(0.05)


@app.command()
def kills(kills: int = 100, many: int = 16, seed: int = 0, database: Database = None) -> None:
    """Kill the server so often under load; then look every request up, and add up what was spent."""
    chance = random.Random(seed)
    server = Server(database, budget=1.0)
    asked: dict[str, str] = {}

    async def until_killed() -> None:
        stop = asyncio.Event()
        first = os.urandom(8).hex()
        asked[first] = "sent"
        own = {"Authorization": f"Bearer {KEY}", "X-Client-Request-Id": first}
        async with clients(1) as client:  # what a server does but once takes longer than many a life
            reply = await client.post(f"{server.url}/v1/chat/completions", json=QUESTION, headers=own)
        asked[first] = str(reply.status_code)
        tasks = [asyncio.create_task(_ask_until_killed(server.url, stop, asked)) for _ in range(many)]
        await asyncio.sleep(chance.uniform(0.05, 1.0))
        server.process.send_signal(signal.SIGKILL)
        stop.set()
        await asyncio.gather(*tasks)

    for _ in range(kills):
        server.start()
        asyncio.run(until_killed())
        server.process.wait()
    server.start()
    time.sleep(14)  # until the leases of the last server are over
    problems, found, spent = Counter[str](), Counter[str](), 0.0
    headers = {"Authorization": f"Bearer {KEY}"}
    for name, seen in asked.items():
        query = {"client_request_id": name}
        data = httpx.get(f"{server.url}/v1/runs", params=query, headers=headers).json()["data"]
        if not data:
            # It may have been killed before it had accepted the request; then the client had no reply.
            found["not accepted"] += 1
            problems["answered, and not found"] += seen == "200"
            continue
        [run] = data
        found[run["status"]] += 1
        problems["still running"] += run["status"] == "running"
        problems["answered, and not ended"] += seen == "200" and run["status"] != "ended"
        problems["over its budget"] += run["cost_usd"] + (run["maybe_cost_usd"] or 0) > run["budget_usd"] + 1e-12
        problems["no bound"] += run["maybe_cost_usd"] is None
        spent += run["cost_usd"] + (run["maybe_cost_usd"] or 0)
    charged = httpx.get(f"{server.url}/v1/usage", headers=headers).json()["today_usd"]
    problems["charged and spent differ"] += abs(charged - spent) > 1e-9
    server.stop()
    print(f"{kills} kills, {len(asked)} requests: {dict(found)}")
    print(f"spent {spent:.6f} dollars, charged {charged:.6f}; problems: {dict(+problems)}")
    raise typer.Exit(int(bool(+problems)))


if __name__ == "__main__":
    app()
