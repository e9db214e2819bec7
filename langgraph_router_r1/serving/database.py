"""The tables of the server's database, and how it is opened: SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)

metadata = MetaData()
RUNS = Table(
    "router_r1_runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("client_id", String(128)),
    Column("key", String(64), nullable=False),
    Column("day", String(10), nullable=False),
    Column("model", String(256), nullable=False),
    Column("question", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("error", Text),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("reserved_usd", Float),
    Column("cost_usd", Float, nullable=False),
    Column("maybe_cost_usd", Float),
    Column("charged_usd", Float, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("record", Text),
    Index("router_r1_runs_by_time", "created_at"),
    Index("router_r1_runs_by_key", "key", "created_at"),
    Index("router_r1_runs_by_client_id", "client_id"),
    Index("router_r1_runs_open", "status", "lease_until"),
)
SPENDING = Table(
    "router_r1_spending",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("period", String(10), primary_key=True),  # a day, 2026-11-28, or a month, 2026-11
    Column("charged_usd", Float, nullable=False),
    Column("runs", Integer, nullable=False),
)
FEEDBACK = Table(  # a table of its own, which databases of before it get when they are opened
    "router_r1_feedback",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("score", Float, nullable=False),
    Column("comment", Text),
    Column("created_at", Float, nullable=False),
)


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[tuple[Engine, BaseCheckpointSaver[Any]]]:
    """Open a database, and make its tables if need be; give its engine, and a saver of checkpoints.

    Args:
        url: A file of SQLite's, or `postgresql://...`.

    Raises:
        ValueError: It is the address of another kind of database, or a file in a directory that does not exist.
        ImportError: The package for it is not installed.
    """
    is_postgres = _is_postgres(url)
    if not is_postgres and not Path(url).parent.is_dir():
        raise ValueError(f"the database can't be made: {str(Path(url).parent)!r} is no directory")
    opened = _postgres(url) if is_postgres else _sqlite(url)
    async with opened as pair:
        yield pair


@contextmanager
def open_existing(url: str) -> Iterator[Engine]:
    """Open the database of a server to read it, while the server runs or when it does not; give its engine.

    Args:
        url: A file of SQLite's, or `postgresql://...`.

    Raises:
        ValueError: It is the address of another kind of database, no file, or not the database of a server.
        ImportError: The package for it is not installed.
    """
    is_postgres = _is_postgres(url)
    if not is_postgres and not Path(url).is_file():
        raise ValueError(f"the database {url!r} is no file")
    engine = create_engine(_postgres_address(url) if is_postgres else f"sqlite:///{url}", hide_parameters=True)
    try:
        if not inspect(engine).has_table(RUNS.name):
            msg = f"the database has no table {RUNS.name!r}: it must be one that 'router-r1 serve' has written"
            raise ValueError(msg)
        with engine.begin() as connection:
            _make_tables(connection)  # those that are newer than the server that wrote it
        yield engine
    finally:
        engine.dispose()


def _is_postgres(url: str) -> bool:
    """Return whether it is an address of PostgreSQL's, and not a file of SQLite's.

    Raises:
        ValueError: It is neither.
    """
    is_postgres = url.startswith(("postgresql://", "postgres://"))
    if "://" in url and not is_postgres:
        # Not shown: it may hold a password.
        msg = "the database must be a file, for SQLite, or an address that begins with postgresql://"
        raise ValueError(msg)
    return is_postgres


def _postgres_address(url: str) -> URL:
    return make_url(url).set(drivername="postgresql+psycopg")


def _make_tables(connection: Connection) -> None:
    """Make the tables that are missing."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(8787)"))  # servers may start together
    metadata.create_all(connection)


@asynccontextmanager
async def _sqlite(path: str) -> AsyncIterator[tuple[Engine, Any]]:
    from langgraph_router_r1.serving.sqlite_saver import UncancelledSaver

    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": 30, "check_same_thread": False},
        # SQLite has one writer at a time, and several would wait for one another in steps of milliseconds.
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        # Killed processes lose nothing in this mode; a machine that loses its power, the last moments at most.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    try:
        async with UncancelledSaver.from_conn_string(path) as saver:
            await saver.setup()
            for pragma in ("busy_timeout=30000", "synchronous=NORMAL"):
                await saver.conn.execute(f"PRAGMA {pragma}")
            with engine.begin() as connection:
                _make_tables(connection)
            try:
                yield engine, saver
            finally:
                async with saver.lock:  # until what is being written is committed
                    pass
    finally:
        engine.dispose()


@asynccontextmanager
async def _postgres(url: str) -> AsyncIterator[tuple[Engine, Any]]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg.rows import dict_row
    from psycopg_pool import AsyncConnectionPool

    engine = create_engine(_postgres_address(url), pool_size=10, hide_parameters=True)
    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    try:
        async with AsyncConnectionPool(url, kwargs=options, min_size=1, max_size=10) as pool:
            saver = AsyncPostgresSaver(cast("Any", pool))
            with engine.begin() as connection:
                _make_tables(connection)
                await saver.setup()
            yield engine, saver
    finally:
        engine.dispose()
