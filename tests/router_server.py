"""The server of the router, real and on loopback, in a thread: what its tests ask."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from langgraph_router_r1 import ModelRegistry
from langgraph_router_r1.serving.openai_api import Api, create_app
from langgraph_router_r1.serving.options import ServerSettings


class Served:
    """A running server."""

    def __init__(self, server: uvicorn.Server, api: Api, port: int) -> None:
        self.server, self.api, self.port = server, api, port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(
    engine: Any,
    registry: ModelRegistry,
    database: Path | str,
    *,
    grace_s: int = 5,
    router: Any = None,
    make_planner: Any = None,
    shadow: Any = None,
    **settings: Any,
) -> Iterator[Served]:
    given = ServerSettings(database=database, **settings)
    app = create_app(engine, registry, given, make_planner=make_planner, shadow=shadow, **(router or {}))
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=grace_s, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield Served(server, app.state.api, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
