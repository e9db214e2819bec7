"""`router-r1 shadow-report`, and the second router that `serve --shadow` describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from langgraph_router_r1.cli.app import cli
from langgraph_router_r1.cli.output import failing_clearly, results_console
from langgraph_router_r1.cli.pool import KNN, chat_model_engine, check_packages, is_chat_model, knn
from langgraph_router_r1.cli.stored import DatabaseOption, reading
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.settings import AnswerStyle, RouterSettings
from langgraph_router_r1.trace import printable

if TYPE_CHECKING:
    from langgraph_router_r1.engines import RouterEngine
    from langgraph_router_r1.evaluation.metrics import Estimate
    from langgraph_router_r1.evaluation.shadow_report import Comparison
    from langgraph_router_r1.serving.shadow import ShadowRouter
    from langgraph_router_r1.serving.shadow_file import ShadowFile
    from langgraph_router_r1.strategies import Strategy


def open_shadow(file: Path, *, router: str | None, model: str, answer: AnswerStyle) -> ShadowRouter:
    """Return the router that a file describes; nothing is asked yet.

    Args:
        file: The file.
        router: `--router` of the server, which holds where the file says nothing; so do the next two.
        model: `--model`.
        answer: `--answer`.

    Raises:
        ValueError: Something in the file, or in its registry, is wrong.
        ImportError: A package that it needs is not installed.
    """
    from langgraph_router_r1.serving.shadow import ShadowRouter
    from langgraph_router_r1.serving.shadow_file import read_shadow

    described = read_shadow(file)
    registry = None if described.registry is None else ModelRegistry.from_file(described.registry)
    check_packages(registry or ModelRegistry())
    try:
        engine = _engine(described, registry, router, model)
    except ValueError as error:
        raise ValueError(f"the file of the shadow {str(file)!r}: {error}") from None
    settings: RouterSettings = {"answer": answer}
    if described.strategy is None:
        settings["router_price"] = described.router_price or "free"
    return ShadowRouter(settings=described, engine=engine, router=settings, registry=registry)


def _engine(
    described: ShadowFile, registry: ModelRegistry | None, router: str | None, model: str
) -> RouterEngine | Strategy | None:
    """Return who decides; None if it is whoever decides for the server."""
    if described.strategy is not None:
        assert registry is not None
        return knn(registry)
    if described.router is None and described.model is None:
        return None
    address = described.router or router
    if address is None:
        raise ValueError("model needs router, the address of its server: the pocket server has one router")
    if address == KNN:
        raise ValueError("router can't be 'knn' here: strategy = \"knn\" says so")
    if not is_chat_model(address, "router"):
        from langgraph_router_r1.engines import VLLMEngine

        return VLLMEngine(address, model=described.model or model)
    if described.model is not None:
        raise ValueError("model is the name of a router on a vLLM server, and router is a chat model")
    if described.router_price is None:
        raise ValueError("router is a chat model: give the price of its tokens as router_price, in dollars per million")
    return chat_model_engine(address)


@cli.command("shadow-report")
def shadow_report(
    database: DatabaseOption = "router-r1.sqlite",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array with an object for each shadow.")] = False,
) -> None:
    """Compare each shadow of a server with the router that answered: costs, seconds and answers, request by request."""
    with failing_clearly():
        from langgraph_router_r1.evaluation.shadow_report import compare_shadows

        with reading(database) as engine:
            found = compare_shadows(engine)
    if as_json:
        typer.echo(json.dumps([comparison.as_json() for comparison in found]))
        return
    if not found:
        typer.echo("no request was given to a shadow yet")
    console = results_console()
    for comparison in found:
        console.print(_table(comparison))


def _table(comparison: Comparison) -> Table:
    without = ", ".join(f"{reason} {count}" for reason, count in comparison.unpaired.items()) or "none"
    caption = f"runs of the shadow without a pair: {without}; it spent ${comparison.spent_usd:.6f} in all"
    if comparison.pairs < 2:
        caption += "; there is no interval, which needs two pairs"
    title = Text(printable(f"{comparison.name}, pairs: {comparison.pairs}"))
    table = Table("", "router", "shadow", "shadow - router [95 %]", title=title, caption=Text(printable(caption)))
    for unit, paired, scale in (("µ$ a request", comparison.cost_usd, 1e6), ("seconds", comparison.seconds, 1.0)):
        cells = ("" if mean is None else f"{mean * scale:.3f}" for mean in (paired.router, paired.shadow))
        table.add_row(unit, *cells, _interval(paired.difference, scale, "+"))
    table.add_row("equal answers", "", "", _interval(comparison.equal_answers, 1.0))
    return table


def _interval(estimate: Estimate | None, scale: float, sign: str = "") -> Text:
    if estimate is None:
        return Text("")
    mean, low, high = (f"{value * scale:{sign}.3f}" for value in (estimate.mean, estimate.low, estimate.high))
    return Text(f"{mean} [{low}, {high}]")
