"""`router-r1 export-preferences`: what people decided on calls, out of a checkpoint database."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Annotated

import typer

from langgraph_router_r1.cli.app import cli
from langgraph_router_r1.cli.output import fail, failing_clearly
from langgraph_router_r1.preferences import preferences
from langgraph_router_r1.stored_runs import stored_runs


@cli.command("export-preferences")
def export_preferences(
    database: Annotated[Path, typer.Argument(help="A SQLite file of checkpoints, as `SqliteSaver` writes it.")],
    thread: Annotated[str | None, typer.Option(help="The only thread to read.")] = None,
) -> None:
    """Print what people decided on calls as preference pairs for TRL, one JSON object per line."""
    if not database.is_file():
        fail(f"{str(database)!r} is no file")
    with failing_clearly():
        from langgraph.checkpoint.sqlite import SqliteSaver  # of the [eval] extra

        try:
            with SqliteSaver.from_conn_string(str(database)) as saver:
                for run in stored_runs(saver, thread):
                    for pair in preferences(run.record):
                        typer.echo(json.dumps(pair))
        except sqlite3.DatabaseError as error:
            fail(f"{str(database)!r} is no SQLite file of checkpoints: {error}")
