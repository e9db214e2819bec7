"""The router and the pool that a command works on, from its options."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from langgraph_router_r1.calls.client import build_chat_model, build_model
from langgraph_router_r1.cli.output import fail
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines import RouterEngine
from langgraph_router_r1.pocket import ADAPTERS, PLANNER_ADAPTERS, ROUTER_NAME, pocket_registry, pocket_server
from langgraph_router_r1.provider_errors import failure
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.serving.vllm import VLLMServer

RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="File with the models that may be asked (.toml, .yaml).")
]
RouterOption = Annotated[
    str | None,
    typer.Option(
        "--router",
        help="Who routes: the address of a vLLM server (http://127.0.0.1:8000/v1), or a chat model by LangChain's "
        "name for it (openai:gpt-4o-mini), which then routes untrained.",
    ),
]
ModelOption = Annotated[str, typer.Option("--model", help="Name of the router on its vLLM server.")]


def finite(value: float | None) -> float | None:
    """Refuse an option that is infinite or not a number."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value!r} is not a number between its limits.")
    return value


RouterPriceOption = Annotated[
    float | None,
    typer.Option(min=0, callback=finite, help="Price of the router's own tokens, in dollars per million."),
]


@contextmanager
def open_pool(
    registry: Path | None,
    router: str | None,
    model: str,
    console: Console,
    *,
    timeout_s: float = 120.0,
    planning: bool = False,
) -> Iterator[tuple[RouterEngine, ModelRegistry]]:
    """Give the router and its pool: those that were named, or the pocket ones, started for the length of the block.

    With `planning`, the pocket pool has the specialist that only plans need, and its server the decomposer.
    """
    if registry is not None and router is None:
        fail("--registry needs --router: the pocket router knows its own pool only")
    pool = ModelRegistry.from_file(registry) if registry else None
    check_packages(pool or ModelRegistry())
    if is_chat_model(router):
        assert router is not None
        if pool is None:
            fail("--router with a chat model needs --registry, the models it may ask")
        yield chat_model_engine(router, timeout_s=timeout_s), pool
    elif router is not None:
        from langgraph_router_r1.engines import VLLMEngine

        with VLLMEngine(router, model=model, timeout_s=timeout_s) as engine:
            yield engine, pool or pocket_registry(router)
    else:
        adapters = [ADAPTERS, PLANNER_ADAPTERS] if planning else [ADAPTERS]
        with running(pocket_server(adapters=adapters), console) as server:
            yield _pocket_engine(server), pocket_registry(server.base_url, planning=planning)


def chat_model_engine(router: str, *, timeout_s: float = 120.0) -> RouterEngine:
    """Return a router that is a chat model.

    Raises:
        ValueError: It can't be set up, for want of a key, say.
        ImportError: The package of its provider is not installed.
    """
    from langgraph_router_r1.engines import ChatModelEngine

    try:
        descriptor = ModelDescriptor(name="router", model=router, price="free", timeout_s=timeout_s)
        return ChatModelEngine(build_chat_model(descriptor))
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - any provider, any exception; its words may hold a key
        problem = failure(error)
    raise ValueError(f"the chat model {router!r} {problem}")


def _pocket_engine(server: VLLMServer) -> RouterEngine:
    from langgraph_router_r1.engines import VLLMEngine

    return VLLMEngine(server.base_url, model=ROUTER_NAME, tokenizer=server.model)


_ADDRESS = re.compile(r"[\w+.-]*://|localhost\b|[\w.-]+:\d{2,5}(/|$)|[\w-]+(\.[\w-]+)+/|/", re.IGNORECASE)
"""How an address begins, with or without its scheme; LangChain's name of a chat model does not."""


def is_chat_model(router: str | None, option: str = "--router") -> bool:
    """Return whether an option names a chat model, and not the address of a server.

    Raises:
        ValueError: It is neither.
    """
    if router is None or router.startswith(("http://", "https://")):
        return False
    if not router.strip() or _ADDRESS.match(router):
        # Not shown: an address may hold a password.
        msg = (
            f"{option} must be an address that starts with http:// or https://, such as http://localhost:8000/v1, "
            "or a chat model, such as openai:gpt-4o-mini"
        )
        raise ValueError(msg)
    return True


def check_packages(pool: ModelRegistry) -> None:
    """Find out whether the packages of all providers are installed before anything is asked.

    Raises:
        ImportError: One of them is missing.
    """
    providers = {entry.model.partition(":")[0]: entry for entry in pool if isinstance(entry.model, str)}
    for entry in providers.values():
        try:
            build_model(entry)
        except ImportError:
            raise
        except Exception:  # noqa: BLE001, S112 - a missing key, say: that is the problem of whoever asks this model
            continue


@contextmanager
def running(server: VLLMServer, console: Console) -> Iterator[VLLMServer]:
    """Start the server with a progress line, and stop it at the end of the block."""
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
    message = "Starting vLLM; this takes about half a minute"
    if not console.is_terminal:
        console.print(message)
    with console.status(message) as status:
        server.start(lambda waited: status.update(f"{message} ({waited:.0f} s; log: {server.log_file})"))
    with server:
        yield server
