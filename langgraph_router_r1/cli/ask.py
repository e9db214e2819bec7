"""`router-r1 demo | ask | models | check | graph`: one question, or a look at the pool."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table
from rich.text import Text

from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.cli.app import cli
from langgraph_router_r1.cli.output import errors, fail, failing_clearly, results_console, telling
from langgraph_router_r1.cli.pool import (
    ModelOption,
    RegistryOption,
    RouterOption,
    RouterPriceOption,
    RouterUrlOption,
    check_price,
    decides,
    finite,
    open_pool,
    read_price,
    running,
)
from langgraph_router_r1.cli.prices import price_table
from langgraph_router_r1.engines import EngineError, RouterEngine
from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.graph import build_router, create_router
from langgraph_router_r1.ledger import FREE, estimate_tokens
from langgraph_router_r1.pocket import MAX_ROUTER_TOKENS, ROUTER_NAME, pocket_registry, pocket_router, pocket_server
from langgraph_router_r1.record import RECORD_KEYS, RunRecord
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.strategies import Strategy
from langgraph_router_r1.trace import ConsoleTrace, bill_table, printable

DEMO_QUESTIONS = (
    "What is the capital of Kenya?",
    "What currency is used in Thailand?",
    "Which dialling code reaches Portugal?",
    "Which country has the capital Quito?",
    "Which country does the domain .th belong to?",
    "What currency is used in the country whose capital is Lima?",
    "Which dialling code reaches the country whose domain is .pe?",
    "What is the capital of the country with the internet domain .kr?",
)

CHECK_TIMEOUT_S = 15.0


@cli.command()
def demo() -> None:
    """Start the pocket pool, ask it eight questions, show what happens and what it costs, and stop it."""
    console = results_console()
    with failing_clearly(), running(pocket_server(), console) as server:
        registry = pocket_registry(server.base_url)
        router = pocket_router(server.base_url)
        routings = []
        for question in DEMO_QUESTIONS:
            trace = ConsoleTrace(console)
            trace.question(question)
            for event in router.stream({"messages": [("user", question)]}, stream_mode="custom"):
                trace.show(event)
            routings.append(trace.routing)
        console.print(bill_table([routing for routing in routings if routing], registry))


@cli.command()
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    registry: RegistryOption = None,
    router: RouterOption = None,
    router_url: RouterUrlOption = None,
    model: ModelOption = ROUTER_NAME,
    cost_weight: Annotated[
        float,
        typer.Option(min=0, max=1, callback=finite, help="How much money counts: 0 quality only, 1 cost only."),
    ] = 0.0,
    budget: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="The most this question may cost, in dollars.")
    ] = None,
    router_price: RouterPriceOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record of the run, one JSON object, and nothing else.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Write the record of the run into this JSON file, also when it breaks off.")
    ] = None,
) -> None:
    """Ask one question, with a live trace. Exits with 1 when there is no answer."""
    console = results_console()
    if not question.strip():
        fail("the question is empty")
    if not _is_text(question):
        fail("the question is not UTF-8 text")
    if record is not None and not record.absolute().parent.is_dir():
        fail(f"--record is {str(record)!r}, and its directory is not there")
    own = read_price(router_price) or FREE
    with failing_clearly():
        check_price(router, read_price(router_price))
    with failing_clearly(), open_pool(registry, router, model, errors, router_url=router_url) as (engine, pool):
        tokens = MAX_ROUTER_TOKENS if router is None else 1024
        graph = create_router(
            registry=pool,
            cost_weight=cost_weight,
            budget_usd=budget,
            **decides(engine, max_tokens=tokens, router_price=own),
        )
        trace = ConsoleTrace(console)
        if not as_json:
            trace.question(question)
        state: dict[str, Any] = {}
        try:
            for mode, chunk in graph.stream(
                {"messages": [("user", question)]}, stream_mode=["custom", "values"], output_keys=RECORD_KEYS
            ):
                if mode == "values":
                    state = cast("dict[str, Any]", chunk)
                elif not as_json:
                    trace.show(chunk)
        finally:
            if record is not None and "decisions" in state:
                replace_file(record, RunRecord.of(state).model_dump_json(indent=2) + "\n")
        if as_json:
            typer.echo(RunRecord.of(state).model_dump_json())
        elif trace.routing:
            console.print(bill_table([trace.routing], pool, router_price=own))
    if not state.get("answer"):
        raise typer.Exit(1)


@cli.command()
def models(
    registry: RegistryOption = None,
    prices: Annotated[
        bool, typer.Option("--prices", help="Compare their prices with the list prices of the package genai-prices.")
    ] = False,
) -> None:
    """List the models that may be asked, as the router is told about them."""
    with failing_clearly():
        pool = ModelRegistry.from_file(registry) if registry else pocket_registry()
        if prices:
            results_console().print(price_table(pool))
            return
    table = Table("model", "price", "seconds", "accuracy", "description")
    for entry in pool:
        skills = ", ".join(f"{skill} {value:.2f}" for skill, value in entry.skills.items())
        seconds = "" if entry.latency_s is None else f"{entry.latency_s:.2f}"
        texts = [Text(printable(text)) for text in (entry.display_name, skills, entry.description)]
        table.add_row(texts[0], str(entry.price), seconds, *texts[1:])
    results_console().print(table)


@cli.command()
def check(
    registry: RegistryOption = None,
    router: RouterOption = None,
    router_url: RouterUrlOption = None,
    model: ModelOption = ROUTER_NAME,
    timeout: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="The most seconds to wait for each of them.")
    ] = CHECK_TIMEOUT_S,
) -> None:
    """Ask the router and every model for a few tokens, and say what is wrong. Exits with 1 when anything is.

    With a registry and without a router, the models alone are asked.
    """
    console = results_console()
    healthy = True

    def opened() -> AbstractContextManager[tuple[RouterEngine | Strategy | None, ModelRegistry]]:
        if registry is not None and router is None:
            return nullcontext((None, ModelRegistry.from_file(registry)))
        return open_pool(registry, router, model, errors, router_url=router_url, timeout_s=timeout)

    with failing_clearly(), opened() as (engine, pool):
        table = Table("", "who", "which", "result")
        if engine is not None and not isinstance(engine, Strategy):
            try:
                with telling("asking the router"):
                    begun = engine.begin([{"role": "user", "content": "Hello"}])
                    engine.generate([begun], stop=[], max_tokens=4)
                table.add_row("✓", "router", Text(printable(repr(engine))), "")
            except EngineError as error:
                healthy = False
                table.add_row("✗", "router", Text(printable(repr(engine))), Text(printable(str(error))))
        # Each model for itself, and once: neither a fallback nor a retry may hide what is wrong.
        alone = {"fallbacks": (), "max_retries": 0}
        candidates = Candidates(
            ModelRegistry(
                entry.model_copy(update={**alone, "timeout_s": min(timeout, entry.timeout_s)}) for entry in pool
            ),
            estimate_tokens,
        )
        for entry in pool:
            call = {"turn": 0, "index": 0, "model": entry.name, "query": "Say: yes", "refusal": None}
            with telling(f"asking {entry.name}"):
                routed = candidates.ask(call)  # type: ignore[arg-type]
            healthy = healthy and routed["status"] == "ok"
            result = (
                f"{routed['latency_s']:.2f} s, ${routed['cost_usd']:.2g}"
                if routed["status"] == "ok"
                else routed["reason"]
            )
            mark = "✓" if routed["status"] == "ok" else "✗"
            which = entry.model if isinstance(entry.model, str) else type(entry.model).__name__
            where = f"{which} at {entry.base_url}" if entry.base_url else which
            table.add_row(mark, Text(printable(entry.name)), Text(printable(where)), Text(printable(result or "")))
        console.print(table)
    if not healthy:
        raise typer.Exit(1)


@cli.command()
def graph() -> None:
    """Print the state machine as a Mermaid diagram."""
    from langgraph_router_r1.testing import ScriptedEngine

    drawn = build_router(ScriptedEngine([]), pocket_registry()).compile().get_graph()
    typer.echo(drawn.draw_mermaid())


def _is_text(value: str) -> bool:
    """Return whether an argument was UTF-8: other bytes become lone surrogates."""
    return not re.search("[\ud800-\udfff]", value)
