"""`router-r1 serve`: the router as a server that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langgraph_router_r1.cli.app import cli
from langgraph_router_r1.cli.output import errors, fail, failing_clearly, results_console
from langgraph_router_r1.cli.pool import (
    ModelOption,
    RegistryOption,
    RouterOption,
    RouterPriceOption,
    RouterUrlOption,
    check_price,
    finite,
    open_pool,
    read_price,
)
from langgraph_router_r1.engines import RouterEngine
from langgraph_router_r1.ledger import FREE, Price
from langgraph_router_r1.pocket import (
    DECOMPOSER_NAME,
    MAX_PLAN_TOKENS,
    MAX_ROUTER_TOKENS,
    PLANNER_ADAPTERS,
    ROUTER_NAME,
)
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.settings import AnswerStyle, RouterSettings
from langgraph_router_r1.strategies import Strategy
from langgraph_router_r1.strategies.allocators import make_allocator
from langgraph_router_r1.strategies.planner import Planner

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

    from langgraph_router_r1.serving.shadow import ShadowRouter
    from langgraph_router_r1.serving.targets import MakePlanner

logger = logging.getLogger(__name__)

GRACE_S = 20
"""How long requests have to end when the server is stopped; then they are broken off, and what they spent is kept."""

LAST_WORDS_S = 5
"""How long they have then to tell their clients."""

KEEP_ALIVE_S = 125
"""How long an idle connection is kept: longer than clients and proxies keep it (httpx 5 s, aiohttp 15 s, nginx 60 s,
Go and Traefik 90 s, Caddy 120 s), for a request that is sent while the server closes its connection is lost."""

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@cli.command()
def serve(
    registry: RegistryOption = None,
    router: RouterOption = None,
    router_url: RouterUrlOption = None,
    model: ModelOption = ROUTER_NAME,
    host: Annotated[str, typer.Option(help="Address to listen on. Any but loopback needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8787,
    database: Annotated[
        str, typer.Option(help="Where runs and spending are kept: a SQLite file, or postgresql://...")
    ] = "router-r1.sqlite",
    keys: Annotated[
        Path | None,
        typer.Option(help="File with hashes of keys, budgets and rates (.toml); ROUTER_R1_SERVER_KEYS adds others."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on other addresses than loopback without keys.")
    ] = False,
    run_budget: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="The most that one run may cost, in dollars.")
    ] = None,
    router_price: RouterPriceOption = None,
    answer: Annotated[
        AnswerStyle, typer.Option(help="How long answers shall be; the pocket router gives short ones.")
    ] = "short",
    max_concurrent: Annotated[int, typer.Option(min=1, help="Most runs at a time; more are refused (429).")] = 256,
    timeout: Annotated[float, typer.Option(min=1, callback=finite, help="Most seconds that a run may take.")] = 300.0,
    decomposer: Annotated[
        str | None,
        typer.Option(
            help="Name of a planner's decomposer on the router's vLLM server: requests can then name 'planner'. The "
            "registry needs a profile. The pocket pool has one."
        ),
    ] = None,
    shadow: Annotated[
        Path | None,
        typer.Option(
            help="File with a second router that is given a share of the requests (.toml), unseen by clients."
        ),
    ] = None,
) -> None:
    """Serve the router by OpenAI's API, until Ctrl-C.

    Without options, it starts the pocket pool and serves it on this machine. SIGHUP reads the files of the registry, of
    the keys and of the shadow again.
    """
    with failing_clearly():
        from langgraph_router_r1.cli.shadow import open_shadow
        from langgraph_router_r1.serving.keys import read_keys
        from langgraph_router_r1.serving.openai_api import create_app
        from langgraph_router_r1.serving.options import ServerSettings

        known = read_keys(keys)
        is_loopback = _is_loopback(host)
        if not is_loopback and not known and not insecure:
            fail(
                f"--host is {host!r}, which others can reach, and there are no keys: give --keys, set "
                "ROUTER_R1_SERVER_KEYS, or say --insecure"
            )
        _check_port(host, port)
        own = read_price(router_price) or FREE
        check_price(router, read_price(router_price))
        asyncio.run(_check_database(database))

        def read_shadow() -> ShadowRouter | None:
            return None if shadow is None else open_shadow(shadow, router=router, model=model, answer=answer)

        second = read_shadow()
        settings = ServerSettings(
            database=database,
            keys=known,
            run_budget_usd=run_budget,
            max_concurrent=max_concurrent,
            run_timeout_s=timeout,
            allowed_hosts=LOOPBACK_HOSTS if is_loopback else ("*",),
        )
        planning = router is None and registry is None and PLANNER_ADAPTERS.is_dir()
        with open_pool(registry, router, model, errors, router_url=router_url, planning=planning) as (engine, pool):
            make_planner = _planner_maker(engine, DECOMPOSER_NAME if planning else decomposer, own)
            if make_planner is not None and not _can_allocate(pool, is_needed=not planning):
                make_planner = None
            tokens = MAX_ROUTER_TOKENS if router is None else 1024
            for_router: RouterSettings = {"answer": answer}
            if not isinstance(engine, Strategy):
                for_router |= {"max_tokens": tokens, "router_price": own}
            app = create_app(
                engine,
                pool,
                settings,
                make_planner=make_planner,
                shadow=second,
                **for_router,
            )
            for one in pool:
                if one.api_key_env is not None and not os.environ.get(one.api_key_env):
                    problem = f"the environment variable {one.api_key_env!r} is not set: {one.name} can't be asked"
                    errors.print(f"Warning: {problem}", style="yellow", markup=False, highlight=False)
            names = ", ".join(["router-r1", *(["planner"] if make_planner else []), *pool.names])
            results_console().print(f"http://{host}:{port}/v1  serves: {names}", markup=False)
            if second is not None:
                given = second.settings
                about = f"{given.share:g} of the requests, at most ${given.day_usd:g} a day"
                results_console().print(f"shadow: {given.name}, {about}", markup=False)

            def reload() -> None:
                again = pool if registry is None else ModelRegistry.from_file(registry)
                app.state.api.serve(again, read_shadow(), None if keys is None else read_keys(keys))

            has_files = registry is not None or shadow is not None or keys is not None
            asyncio.run(_serve(app, host, port, reload if has_files else None))


def _planner_maker(engine: RouterEngine | Strategy, decomposer: str | None, own: Price) -> MakePlanner | None:
    """Return what makes the planner for a registry; None where there is no decomposer."""
    from langgraph_router_r1.engines import VLLMEngine

    if decomposer is None:
        return None
    if not isinstance(engine, VLLMEngine):
        fail("--decomposer names a model on the router's vLLM server, and --router is none")
    written = VLLMEngine(engine.base_url, model=decomposer, tokenizer=engine.tokenizer_source)

    def make(registry: ModelRegistry) -> Planner:
        return Planner(written, make_allocator("knn", registry, own), max_tokens=MAX_PLAN_TOKENS, price=own)

    return make


def _can_allocate(pool: ModelRegistry, *, is_needed: bool) -> bool:
    """Return whether a pool has what the planner's allocator needs; where that was asked for, fail if not."""
    try:
        make_allocator("knn", pool, FREE)
    except ModuleNotFoundError as error:
        if is_needed:
            raise
        logger.warning("the planner is not served: %s", error)
        return False
    return True


async def _check_database(database: str) -> None:
    """Find out what is wrong with the database before the router is started."""
    from langgraph_router_r1.serving.database import open_database

    try:
        async with open_database(database):
            pass
    except (ImportError, ValueError):
        raise
    except Exception as error:  # noqa: BLE001 - of several packages; their words may hold the address
        fail(f"--database can't be opened ({type(error).__name__}): is it there, and may it be written?")


async def _serve(app: FastAPI, host: str, port: int, reload: Callable[[], None] | None) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S + LAST_WORDS_S,
    )
    if reload is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reread, app, reload)
    gc.collect()
    gc.freeze()  # what was imported stays: the collector of cycles need not look at it while requests wait
    server = uvicorn.Server(config)
    ending = asyncio.create_task(_break_off(server, app))
    await server.serve()
    ending.cancel()


async def _break_off(server: Server, app: FastAPI) -> None:
    """Break off the runs that have not ended in time after the server was told to stop.

    Their clients are told so then; uvicorn, which waits a little longer, would only drop them.
    """
    while not server.should_exit:  # noqa: ASYNC110 - uvicorn has a flag, and no event
        await asyncio.sleep(0.1)
    await asyncio.sleep(GRACE_S)
    await app.state.api.runs.stop()


def _check_port(host: str, port: int) -> None:
    """Find out whether an address can be listened on, before anything is started for it.

    Raises:
        ValueError: It can't.
    """
    problem = ""
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                with socket.create_server(address[:2], family=family):
                    return
            except OSError as error:
                problem = problem or str(error.strerror)
    except OSError as error:
        problem = str(error.strerror)
    raise ValueError(f"--host {host!r} --port {port}: can't be listened on ({problem})")


def _reread(app: FastAPI, reload: Callable[[], None]) -> None:
    """Read the files again; if anything in them is wrong, nothing changes."""
    try:
        reload()
    except (ValueError, ImportError) as error:  # of which kinds the errors of these files are
        logger.error("what is served stays: %s", error)  # noqa: TRY400 - its words say all
    else:
        logger.warning("the registry is read again; it has: %s", ", ".join(app.state.api.runs.targets.registry.names))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
