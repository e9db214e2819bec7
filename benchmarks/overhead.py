"""What the package costs besides its models: milliseconds a run, and the time to import it.

    python benchmarks/overhead.py                     # a minute; as a table
    python benchmarks/overhead.py --json > now.json   # the same numbers, and every sample behind them

A run asks three models one after another and then answers: 4 think turns, 3 calls, 8 supersteps. Engine and models
are scripted and reply at once, so all of the time is overhead. Beside each figure stands that of LangGraph by itself:
a graph of the same shape that does nothing, and the import of `langgraph.graph`. The two are measured in turn, in
every round, so that what else the machine does falls on both: trust the ratios more than the milliseconds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Annotated, Any, Literal

import typer
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Send
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typing_extensions import TypedDict

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price, create_router
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
from langgraph_router_r1.transcript import Segment

ROUTES = 3
QUESTION = {"messages": [("user", "What is the capital of the country where the potato was first grown?")]}
HEAVY = ("torch", "transformers", "vllm", "openai")
"""What `import langgraph_router_r1` must leave alone."""

TIME_AN_IMPORT = f"""
import importlib, json, sys, time
started = time.perf_counter()
importlib.import_module(sys.argv[1])
elapsed = time.perf_counter() - started
print(json.dumps([elapsed * 1000, [name for name in {HEAVY} if name in sys.modules]]))
"""

Graph = CompiledStateGraph[Any, Any, Any, Any]


@dataclass
class Measure:
    """One figure of ours beside LangGraph's; samples in milliseconds."""

    what: str
    unit: Literal["ms", "x"]
    """What the target limits: our milliseconds, or our multiple of LangGraph's."""
    target: float
    ours: list[float] = field(default_factory=list)
    langgraph: list[float] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """The medians, in milliseconds, and their ratio."""
        ours, langgraph = statistics.median(self.ours), statistics.median(self.langgraph)
        return {"ours_ms": ours, "langgraph_ms": langgraph, "ratio": ours / langgraph}

    @property
    def met(self) -> bool:
        """Whether the figure that counts is within its target."""
        return self.figures["ratio" if self.unit == "x" else "ours_ms"] <= self.target


def router_graph() -> Graph:
    """Return the router with nothing but scripts behind it."""

    def write(transcript: Sequence[Segment]) -> str:
        asked = sum(segment["kind"] == "policy" for segment in transcript)
        if asked < ROUTES:
            return f"<think> Step {asked} is open. </think>\n<search> small: What is step {asked}? </search>"
        return "<think> That is all. </think>\n<answer> Lima </answer>"

    small = ModelDescriptor(
        name="small", model=ScriptedChatModel(["Peru, as far as is known."]), price=Price.parse(1.0)
    )
    return create_router(ScriptedEngine(write), ModelRegistry([small]))


class BareState(TypedDict, total=False):
    """The router's channels, as far as a run without routing needs them."""

    messages: Annotated[list[AnyMessage], add_messages]
    transcript: Annotated[list[str], operator.add]
    calls: Annotated[list[str], operator.add]
    usage: Annotated[list[int], operator.add]
    turn: int
    answer: str


class BareCall(TypedDict):
    """The payload of a `Send`."""

    query: str


def bare_graph(*, asynchronous: bool) -> Graph:
    """Return a graph of the same shape whose nodes do nothing: the least that LangGraph itself takes.

    Its nodes are of one kind: in an asynchronous run LangGraph would take blocking ones to a thread.
    """

    def think(state: BareState) -> Command[Literal["route", "answer"]]:
        turn = state.get("turn", 0)
        update = {"transcript": ["text"], "usage": [1], "turn": turn + 1}
        if turn < ROUTES:
            return Command(update=update, goto=[Send("route", {"query": "text"})])
        return Command(update={**update, "answer": "Lima"}, goto="answer")

    async def athink(state: BareState) -> Command[Literal["route", "answer"]]:
        return think(state)

    def route(call: BareCall) -> dict[str, list[str]]:
        return {"calls": [call["query"]]}

    async def aroute(call: BareCall) -> dict[str, list[str]]:
        return route(call)

    def answer(state: BareState) -> dict[str, list[AIMessage]]:
        return {"messages": [AIMessage(state["answer"])]}

    async def aanswer(state: BareState) -> dict[str, list[AIMessage]]:
        return answer(state)

    nodes: tuple[Any, Any, Any] = (athink, aroute, aanswer) if asynchronous else (think, route, answer)
    graph = StateGraph(BareState)
    graph.add_node("think", nodes[0])
    graph.add_node("route", nodes[1], input_schema=BareCall)
    graph.add_node("answer", nodes[2])
    graph.add_edge(START, "think")
    graph.add_edge("route", "think")
    graph.add_edge("answer", END)
    return graph.compile()


def invoke_alone(graph: Graph, runs: int) -> list[float]:
    """Return the milliseconds of each of so many blocking runs, one after another."""
    graph.invoke(QUESTION)  # what only a first run has to do
    samples = []
    for _ in range(runs):
        started = time.perf_counter()
        graph.invoke(QUESTION)
        samples.append((time.perf_counter() - started) * 1000)
    return samples


async def ainvoke_alone(graph: Graph, runs: int) -> list[float]:
    """Return the milliseconds of each of so many asynchronous runs, one after another."""
    await graph.ainvoke(QUESTION)
    samples = []
    for _ in range(runs):
        started = time.perf_counter()
        await graph.ainvoke(QUESTION)
        samples.append((time.perf_counter() - started) * 1000)
    return samples


async def ainvoke_together(graph: Graph, runs: int) -> float:
    """Return the milliseconds a run when so many are started at once: all of the time over their number."""
    await graph.ainvoke(QUESTION)
    gc.collect()  # what others left lying about
    started = time.perf_counter()
    await asyncio.gather(*(graph.ainvoke(QUESTION) for _ in range(runs)))
    return (time.perf_counter() - started) * 1000 / runs


def import_time(module: str) -> tuple[float, list[str]]:
    """Return the milliseconds that an import takes in a new interpreter, and the heavy modules it brought along."""
    command = [sys.executable, "-c", TIME_AN_IMPORT, module]
    elapsed, heavy = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(elapsed), list(heavy)


def check_shapes() -> None:
    """Make sure that both graphs do what is compared here."""
    result = router_graph().invoke(QUESTION)
    assert (result["answer"], result["routing"]["turns"], len(result["routing"]["calls"])) == ("Lima", ROUTES, ROUTES)
    assert result["routing"]["stop_reason"] == "answered"
    bare = bare_graph(asynchronous=False).invoke(QUESTION)
    assert (bare["answer"], len(bare["transcript"]), len(bare["calls"])) == ("Lima", ROUTES + 1, ROUTES)


def show(measures: Sequence[Measure], heavy: Sequence[str], machine: dict[str, Any]) -> None:
    """Print the medians as a table."""
    table = Table(title="Router and bare LangGraph, a run; import of both (medians)", title_justify="left")
    for header in ("", "ours", "bare", "ratio", "target", ""):
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for measure in measures:
        figures = measure.figures
        table.add_row(
            measure.what,
            f"{figures['ours_ms']:.2f} ms",
            f"{figures['langgraph_ms']:.2f} ms",
            f"{figures['ratio']:.2f}x",
            f"<= {measure.target:g}{' ms' if measure.unit == 'ms' else 'x'}",
            "[green]met[/]" if measure.met else "[red]missed[/]",
        )
    console = Console()
    console.print(table)
    console.print(f"Imported along: {len(heavy)} of {', '.join(HEAVY)}{f' ({heavy})' if heavy else ''}")
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), style="dim", highlight=False)


def main(
    runs: Annotated[int, typer.Option(help="Runs alone in a round.", min=1)] = 30,
    rounds: Annotated[int, typer.Option(help="Rounds that count; one before them warms up.", min=1)] = 7,
    concurrent: Annotated[int, typer.Option(help="Runs that are started at once.", min=1)] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of the table.")] = False,
) -> None:
    """Measure what the router costs besides its models, beside LangGraph alone."""
    os.environ["LANGSMITH_TRACING"] = "false"
    load = os.getloadavg()[0]
    check_shapes()
    alone = Measure("alone, invoke", "ms", 6)
    aalone = Measure("alone, ainvoke", "ms", 6)
    together = Measure(f"{concurrent} at once, ainvoke", "ms", 10)
    importing = Measure("import", "x", 1.3)
    measures = [alone, aalone, together, importing]
    heavy: list[str] = []

    # The bar moves between rounds only: one that refreshes by itself is a thread that takes part in the measurement.
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        for _ in progress.track(range(rounds + 1), description="Measuring"):
            # Scripted parts remember what they were asked: new ones each round keep the heap small.
            router = router_graph()
            alone.ours += invoke_alone(router, runs)
            alone.langgraph += invoke_alone(bare_graph(asynchronous=False), runs)
            bare = bare_graph(asynchronous=True)
            # One event loop for both, as in a server: in a second one, chat models are called in a thread each.
            with asyncio.Runner() as loop:
                aalone.ours += loop.run(ainvoke_alone(router, runs))
                aalone.langgraph += loop.run(ainvoke_alone(bare, runs))
                together.ours.append(loop.run(ainvoke_together(router, concurrent)))
                together.langgraph.append(loop.run(ainvoke_together(bare, concurrent)))
            elapsed, heavy = import_time("langgraph_router_r1")
            importing.ours.append(elapsed)
            importing.langgraph.append(import_time("langgraph.graph")[0])
    for measure in measures:
        counted = rounds * len(measure.ours) // (rounds + 1)
        measure.ours, measure.langgraph = measure.ours[-counted:], measure.langgraph[-counted:]

    machine = {
        "python": platform.python_version(),
        "langgraph": version("langgraph"),
        "cores": os.cpu_count(),
        "load before": round(load, 2),
        "rounds": rounds,
    }
    if as_json:
        rows = [{**asdict(measure), **measure.figures, "met": measure.met} for measure in measures]
        print(json.dumps({"measures": rows, "heavy_modules": heavy, "machine": machine}, indent=2))
    else:
        show(measures, heavy, machine)


if __name__ == "__main__":
    typer.run(main)
