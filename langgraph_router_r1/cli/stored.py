"""`router-r1 replay | export-preferences | export-runs | usage`: runs that were kept, in a file or in a database."""

from __future__ import annotations

import datetime as dt
import json
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from langgraph_router_r1.cli.app import cli
from langgraph_router_r1.cli.output import errors, fail, failing_clearly, results_console
from langgraph_router_r1.cli.pool import (
    RegistryOption,
    RouterOption,
    RouterPriceOption,
    RouterUrlOption,
    decides,
    open_pool,
    read_price,
)
from langgraph_router_r1.fork import ForkError, fork
from langgraph_router_r1.ledger import sum_of
from langgraph_router_r1.pocket import MAX_ROUTER_TOKENS, ROUTER_NAME
from langgraph_router_r1.preferences import preferences
from langgraph_router_r1.record import RECORD_KEYS, RunRecord
from langgraph_router_r1.registry import UnknownModelError
from langgraph_router_r1.replay import ReplayError
from langgraph_router_r1.replay import replay as replay_of
from langgraph_router_r1.stored_runs import StoredRun, stored_runs
from langgraph_router_r1.trace import ConsoleTrace, printable

if TYPE_CHECKING:
    from sqlalchemy import Engine

DatabaseOption = Annotated[
    str, typer.Option(help="Where `router-r1 serve` keeps its runs: a SQLite file, or postgresql://...")
]
ThreadOption = Annotated[str | None, typer.Option(help="The thread of the database to read.")]


@cli.command()
def replay(
    file: Annotated[
        Path, typer.Argument(help="A record that `router-r1 ask --record` wrote, or a SQLite file of checkpoints.")
    ],
    thread: ThreadOption = None,
    fork_at: Annotated[
        str | None,
        typer.Option("--fork", metavar="TURN.CALL", help="Then make this call to another model, and go on from there."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The other model.")] = None,
    registry: RegistryOption = None,
    router: RouterOption = None,
    router_url: RouterUrlOption = None,
    router_name: Annotated[str, typer.Option(help="Name of the router on its vLLM server.")] = ROUTER_NAME,
    router_price: RouterPriceOption = None,
) -> None:
    """Show a recorded run again, event by event, without asking any model; or with one call made to another."""
    if (fork_at is None) != (model is None):
        fail("--fork and --model belong together: which call, and which model instead")
    place = re.fullmatch(r"(\d+)\.(\d+)", fork_at or "0.0")
    if place is None:
        fail(f"--fork is {fork_at!r}; it must be a turn and a call of it, both from 0, such as 0.0")
    console = results_console()
    with failing_clearly():
        record = _record(file, thread)
        trace = ConsoleTrace(console)
        trace.question(record.question)
        try:
            for event in replay_of(record).stream({"messages": [("user", record.question)]}, stream_mode="custom"):
                trace.show(event)
        except ReplayError as error:
            fail(str(error))
        if model is None:
            return
        own = {} if router_price is None else {"router_price": read_price(router_price)}
        with open_pool(registry, router, router_name, errors, router_url=router_url) as (engine, pool):
            tokens = MAX_ROUTER_TOKENS if router is None else 1024
            try:
                forked = fork(
                    record,
                    turn=int(place[1]),
                    index=int(place[2]),
                    model=model,
                    registry=pool,
                    **decides(engine, max_tokens=tokens, **own),
                )
            except (ForkError, UnknownModelError) as error:
                fail(str(error))
            trace.question(f"{record.question}  (call {place[1]}.{place[2]} to {model})")
            state: dict[str, Any] = {}
            for mode, chunk in forked.stream(
                {"messages": [("user", record.question)]}, stream_mode=["custom", "values"], output_keys=RECORD_KEYS
            ):
                if mode == "values":
                    state = cast("dict[str, Any]", chunk)
                else:
                    trace.show(chunk)
        console.print(_side_by_side(record, RunRecord.of(state)))


@cli.command("export-preferences")
def export_preferences(
    database: Annotated[Path, typer.Argument(help="A SQLite file of checkpoints, as `SqliteSaver` writes it.")],
    thread: ThreadOption = None,
) -> None:
    """Print what people decided on calls as preference pairs for TRL, one JSON object per line."""
    finished = pairs = 0
    with failing_clearly(), _runs_of(database, thread) as runs:
        for run in runs:
            finished += 1
            for pair in preferences(run.record):
                typer.echo(json.dumps(pair))
                pairs += 1
    errors.print(f"{pairs} pairs of {finished} finished runs", highlight=False)


@cli.command("export-runs")
def export_runs(
    database: DatabaseOption = "router-r1.sqlite",
    scored: Annotated[bool, typer.Option("--scored", help="Only runs that a user has rated.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="File to write, as a whole or not at all; by default standard output.")
    ] = None,
) -> None:
    """Print the runs of a server that have an answer, one JSON object per line, the oldest first.

    `python -m training.sft FILE` learns from what the router wrote in them, and with --at-least from the runs that
    users liked; `KNNStrategy.from_profile(FILE, registry)` from how good the replies of the models were.
    """
    with failing_clearly():
        from langgraph_router_r1.evaluation.files import replacing
        from langgraph_router_r1.serving.export import export_row
        from langgraph_router_r1.serving.store import read_runs

        if output is not None and _is_database(output):
            fail(f"--output is {str(output)!r}, which is a database: name another file")
        runs = rated = of_models = 0
        writes = nullcontext(sys.stdout.buffer) if output is None else replacing(output)
        with reading(database) as engine, writes as file:
            for run in read_runs(engine, scored=scored):
                row = export_row(run)
                file.write((json.dumps(row) + "\n").encode("ascii"))
                runs += 1
                rated += row["reward"] is not None
                of_models += bool(row["outcomes"])
    counts = f"{runs} runs, {rated} of them rated, {of_models} with a score that is one model's."
    errors.print(counts, markup=False, highlight=False)


@cli.command()
def usage(
    database: DatabaseOption = "router-r1.sqlite",
    month: Annotated[str | None, typer.Option(help="Which month in UTC, such as 2026-11; by default this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each line of the table.")] = False,
) -> None:
    """Show what each key of a server was charged in a month, and on each of its days."""
    month = month or f"{dt.datetime.now(dt.UTC):%Y-%m}"
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        fail(f"--month is {month!r}; it must be a month such as 2026-11")
    with failing_clearly():
        from langgraph_router_r1.serving.usage import read_usage

        with reading(database) as engine:
            found = read_usage(engine, month)
    if as_json:
        for one in found:
            typer.echo(json.dumps(one._asdict()))
        return
    table = Table("key", "in", "runs", "charged, $", title=f"What keys were charged in {month} (UTC)")
    for one in found:
        is_month = one.period == month
        key = Text(printable(one.key or "(without a key)") if is_month else "")
        period = "the month" if is_month else one.period
        table.add_row(key, period, str(one.runs), f"{one.charged_usd:.6f}", style="bold" if is_month else "")
    results_console().print(table)


@contextmanager
def reading(database: str) -> Iterator[Engine]:
    """Give the engine of a server's database; one that can't be read is one clear error."""
    from sqlalchemy.exc import SQLAlchemyError

    from langgraph_router_r1.serving.database import open_existing

    try:
        with open_existing(database) as engine:
            yield engine
    except SQLAlchemyError as error:  # its words may hold the address
        fail(f"--database can't be read ({type(error).__name__}): is it there, and is it a server's?")


def _record(file: Path, thread: str | None) -> RunRecord:
    """Return the record of a file, or of the latest run of a database or of one of its threads."""
    if _is_database(file):
        with _runs_of(file, None) as runs:
            every = list(runs)
        threads = sorted({run.thread_id for run in every})
        found = [run for run in every if thread in (None, run.thread_id)]
        if not found or (thread is None and len(threads) > 1):
            wrong = f" and none of {thread!r}" if thread is not None else ""
            fail(f"{str(file)!r} has finished runs of the threads {threads!r}{wrong}: name one of them with --thread")
        return found[-1].record
    if thread is not None:
        fail(f"--thread is of a database, and {str(file)!r} is the record of one run")
    try:
        return RunRecord.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        return fail(f"{str(file)!r} is no record of a run: {_first_line(error)}")


def _first_line(error: OSError | ValidationError) -> str:
    """Return what is wrong in a few words; the rest of such an error repeats the file."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def _is_database(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


@contextmanager
def _runs_of(database: Path, thread: str | None) -> Iterator[Iterator[StoredRun]]:
    from langgraph.checkpoint.sqlite import SqliteSaver  # of the [eval] extra

    if not database.is_file():
        fail(f"{str(database)!r} is no file")
    try:
        with SqliteSaver.from_conn_string(str(database)) as saver:
            yield stored_runs(saver, thread)
    except sqlite3.DatabaseError as error:
        fail(f"{str(database)!r} is no SQLite file of checkpoints: {error}")


def _side_by_side(recorded: RunRecord, forked: RunRecord) -> Table:
    table = Table("", "recorded", "forked")
    names = ("answer", "calls", "cost at list price", "spent", "ended")
    for name, *facts in zip(names, _facts(recorded), _facts(forked), strict=True):
        table.add_row(name, *(Text(printable(fact)) for fact in facts))
    return table


def _facts(record: RunRecord) -> list[str]:
    report = record.report
    return [
        record.answer or "(no answer)",
        ", ".join(call["model"] for call in record.calls) or "none",
        f"${sum_of(report['list_cost_parts']):.8f}",
        f"${report['cost_usd']:.8f}",
        str(report["stop_reason"]),
    ]
