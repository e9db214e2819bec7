"""The command line's application: commands add themselves to `cli`."""

from __future__ import annotations

import importlib.metadata
import io
import sys
from typing import Annotated

import typer

cli = typer.Typer(
    name="router-r1",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"router-r1 {importlib.metadata.version('langgraph-router-r1')}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A router LLM that thinks, asks other models, and answers.

    Without options, every command uses the pocket pool: small real models that vLLM serves on this machine.
    """


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character shows a question mark.
            stream.reconfigure(errors="replace")
    sys.exit(cli())
