"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from langgraph_router_r1.serving.keys import Key

DEFAULT_DATABASE = "router-r1.sqlite"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server is run, and what a request may take."""

    database: str | Path = DEFAULT_DATABASE
    """A file of SQLite's, or an address `postgresql://...`."""
    keys: tuple[Key, ...] = ()
    """Who may ask; if it is empty, everybody who reaches the server."""
    run_budget_usd: float | None = None
    """The most that one run may spend, in dollars; None for no limit, unless its key has a budget."""
    max_body_bytes: int = 8_000_000
    """Most bytes of a request."""
    max_concurrent: int = 256
    """Most runs at a time; more are refused with 429."""
    run_timeout_s: float = 300.0
    """Most seconds that a run may take."""
    allowed_hosts: tuple[str, ...] = field(default=("*",))
    """The values of the header `Host` that are answered. On loopback it should be loopback's names: a page of another
    site, whose name was made to point here, has its own name in it."""
