"""The router and the pool that a command works on, from its options."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from langgraph_router_r1.calls.client import build_chat_model, build_model
from langgraph_router_r1.cli.output import fail, what_to_install
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines import RouterEngine
from langgraph_router_r1.engines.base import API_KEY_ENV
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.pocket import ADAPTERS, PLANNER_ADAPTERS, ROUTER_NAME, pocket_registry, pocket_server
from langgraph_router_r1.provider_errors import failure
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.serving.vllm import VLLMServer
from langgraph_router_r1.strategies import Strategy

RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="File with the models that may be asked (.toml, .yaml).")
]
RouterOption = Annotated[
    str | None,
    typer.Option(
        "--router",
        help="Who routes: the address of a vLLM server (http://127.0.0.1:8000/v1); a chat model by LangChain's name "
        "for it (openai:gpt-4o-mini), which then routes untrained; or knn, which goes by the registry's profile.",
    ),
]
RouterUrlOption = Annotated[
    str | None,
    typer.Option(
        "--router-url",
        metavar="ADDRESS",
        help="Where --router's chat model is, if not at its provider: any OpenAI-compatible server. Its key, if it "
        "needs one, is the value of ROUTER_R1_API_KEY.",
    ),
]
ModelOption = Annotated[str, typer.Option("--model", help="Name of the router on its vLLM server.")]


def finite(value: float | None) -> float | None:
    """Refuse an option that is infinite or not a number."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value!r} is not a number between its limits.")
    return value


def read_price(value: str | None) -> Price | None:
    """Read the price of a router's own tokens: "0.6", "0.15,0.60" or "free".

    Raises:
        typer.BadParameter: It is none of these.
    """
    if value is None:
        return None
    try:
        rates = [float(rate) for rate in value.split(",")] if value != "free" else [0.0]
        if len(rates) <= 2 and all(math.isfinite(rate) and rate >= 0 for rate in rates):
            return Price(rates[0], rates[-1])
    except ValueError:
        pass
    raise typer.BadParameter(
        f"{value!r} is no price: give dollars per million tokens, such as 0.6, or 0.15,0.60 for prompt and completion, "
        "or free"
    )


RouterPriceOption = Annotated[
    str | None,
    typer.Option(
        metavar="PRICE",
        help="Price of the router's own tokens in dollars per million, such as 0.6, or 0.15,0.60 for prompt and "
        "completion.",
    ),
]

KNN = "knn"
"""As `--router`: `KNNStrategy` on the registry's profile decides, and no LLM."""


def decides(engine: RouterEngine | Strategy, **for_llm: Any) -> dict[str, Any]:
    """Return who decides as the arguments of `create_router`; those for a router LLM only where there is one."""
    return {"strategy": engine} if isinstance(engine, Strategy) else {"engine": engine, **for_llm}


def check_price(router: str | None, price: Price | None) -> None:
    """Fail where the tokens of a router are paid for, and their price is not given."""
    if is_chat_model(router) and price is None:
        fail("--router is a chat model: give the price of its tokens with --router-price, in dollars per million")


def knn(registry: ModelRegistry) -> Strategy:
    """Return the strategy that goes by a registry's profile.

    Raises:
        ValueError: It has none.
    """
    from langgraph_router_r1.strategies.knn import KNNStrategy

    if registry.profile is None:
        raise ValueError("'knn' goes by the registry's profile, and it has none: run 'router-r1 profile' on it")
    return KNNStrategy.from_profile(registry.profile, registry)


@contextmanager
def open_pool(
    registry: Path | None,
    router: str | None,
    model: str,
    console: Console,
    *,
    router_url: str | None = None,
    timeout_s: float = 120.0,
    planning: bool = False,
) -> Iterator[tuple[RouterEngine | Strategy, ModelRegistry]]:
    """Give who decides and the pool: those that were named, or the pocket ones, started for the length of the block.

    With `planning`, the pocket pool has the specialist that only plans need, and its server the decomposer.
    """
    if registry is not None and router is None:
        fail("--registry needs --router, who routes over its models: a server's address, a chat model, or knn")
    if router_url is not None and not is_chat_model(router):
        fail("--router-url is where a chat model is, and --router names none: give --router openai:NAME")
    pool = ModelRegistry.from_file(registry) if registry else None
    check_packages(pool or ModelRegistry())
    if router == KNN or is_chat_model(router):
        assert router is not None
        if pool is None:
            fail(f"--router {router} needs --registry, the models it may ask")
        yield knn(pool) if router == KNN else chat_model_engine(router, router_url, timeout_s=timeout_s), pool
    elif router is not None:
        from langgraph_router_r1.engines import VLLMEngine

        with VLLMEngine(router, model=model, timeout_s=timeout_s) as engine:
            yield engine, pool or pocket_registry(router)
    else:
        adapters = [ADAPTERS, PLANNER_ADAPTERS] if planning else [ADAPTERS]
        try:
            server = pocket_server(adapters=adapters)
        except ImportError as error:
            fail(f"without --registry and --router the pocket pool is asked. {what_to_install(error)}")
        with running(server, console):
            yield _pocket_engine(server), pocket_registry(server.base_url, planning=planning)


def chat_model_engine(router: str, url: str | None = None, *, timeout_s: float = 120.0) -> RouterEngine:
    """Return a router that is a chat model.

    Args:
        router: LangChain's name of it.
        url: Where it is, if not at its provider.
        timeout_s: Most seconds that a turn may take.

    Raises:
        ValueError: It can't be set up, for want of a key, say.
        ImportError: The package of its provider is not installed.
    """
    from langgraph_router_r1.engines import ChatModelEngine

    try:
        key = API_KEY_ENV if url is not None and os.environ.get(API_KEY_ENV) else None
        descriptor = ModelDescriptor(
            name="router", model=router, base_url=url, api_key_env=key, price="free", timeout_s=timeout_s
        )
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
    if router is None or router == KNN or router.startswith(("http://", "https://")):
        return False
    if not router.strip() or _ADDRESS.match(router):
        # Not shown: an address may hold a password.
        msg = (
            f"{option} must be an address that starts with http:// or https://, such as http://localhost:8000/v1, "
            "a chat model, such as openai:gpt-4o-mini, or knn"
        )
        raise ValueError(msg)
    return True


def check_packages(pool: ModelRegistry, *, keys: bool = False) -> None:
    """Find out whether the packages of all providers are installed, and with `keys` all keys set, before it costs.

    Raises:
        ImportError: One of them is missing.
        ValueError: The variable of a key is not set.
    """
    for entry in pool if keys else ():
        if entry.api_key_env is not None and not os.environ.get(entry.api_key_env):
            raise ValueError(f"{entry.name} has no key: the environment variable {entry.api_key_env!r} is not set")
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
