"""What the server keeps: a row for each request that was accepted, what each key has spent, and feedback.

A request is accepted in one transaction, before anything is asked: it gets its row, and what it may spend at most is
reserved from the budget of its key. When its run ends, what was spent takes the place of the reservation. A running
server renews the lease of its runs every few seconds; a run whose lease is over was lost with its server.

Checkpoints are in the same database, for as long as a run lasts: from them, another server knows what a lost run spent.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast

from sqlalchemy import Connection, CursorResult, Engine, func, insert, select, text, update

from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.serving.database import FEEDBACK, RUNS, SPENDING
from langgraph_router_r1.state import Spending

LEASE_S = 10.0
"""How long a run counts as running after its server was last heard of."""

P = ParamSpec("P")
R = TypeVar("R")

READ_AT_ONCE = 100
"""How many runs are fetched at a time when all are read: records are large."""

WAIT_S = 86_400.0
"""How long a run waits for a person to decide on its calls."""

SHADOW = "shadow:"
"""How the account of a shadow begins, `shadow:NAME`: no key can be called so."""

SHADOW_ID = "shadow-"
"""How the id of a shadow's run begins; the id of the run whose request it was given follows."""

RunStatus = Literal["running", "waiting", "ended", "cancelled", "failed", "lost"]
"""`waiting`: for a person to decide on its calls. `ended`: it has an answer. `cancelled`: its client left, or the
server was stopped. `failed`: it broke off with an error. `lost`: its server is gone, or nobody decided on its calls."""


@dataclass(frozen=True)
class Feedback:
    """What a user thinks of the answer of a run."""

    score: float
    """0 for a bad answer to 1 for a good one."""
    comment: str | None
    created_at: float
    """In seconds since 1970."""


@dataclass(frozen=True)
class StoredRun:
    """A run as the database has it."""

    id: str
    client_id: str | None
    """The `X-Client-Request-Id` of its request."""
    key: str
    """The name of the key that it was asked with; empty without keys."""
    day: str
    """The day, in UTC, whose budget it is charged to."""
    model: str
    question: str
    status: RunStatus
    error: str | None
    created_at: float
    """In seconds since 1970, as `ended_at`."""
    ended_at: float | None
    reserved_usd: float | None
    """What it was allowed to spend; None for no limit."""
    cost_usd: float
    maybe_cost_usd: float | None
    """The most that may have been billed beside; None: no bound is known."""
    charged_usd: float
    """What counts against the budget: what is reserved, and at the end what was, or may have been, spent."""
    record: RunRecord | None
    feedback: Feedback | None


@dataclass(frozen=True)
class Allowance:
    """What a key may spend and ask; None for no limit."""

    day_usd: float | None = None
    month_usd: float | None = None
    requests_per_minute: int | None = None
    partly: bool = True
    """Whether a run may begin when less is left than it asks for; it is then held to what is left."""


@dataclass(frozen=True)
class Account:
    """Who pays for a run: a key, a shadow, or nobody who has a name."""

    name: str = ""
    allowance: Allowance = Allowance()
    run_usd: float | None = None
    """The most that one run may spend, in dollars; None for no limit."""


NOBODY = Account()
"""Who pays on a server without keys."""


class OverBudgetError(Exception):
    """The budget of a key is used up, or its rate is."""

    def __init__(self, reason: Literal["day", "month", "rate"], retry_after_s: float) -> None:
        """Say which of them, and after how many seconds there is something left."""
        super().__init__(reason)
        self.reason, self.retry_after_s = reason, retry_after_s


def _in_thread(method: Callable[Concatenate[Store, P], R]) -> Callable[Concatenate[Store, P], Awaitable[R]]:
    """Make a method of the store that blocks one that is awaited: a whole transaction is one visit to a thread."""

    @functools.wraps(method)
    def awaited(store: Store, /, *arguments: P.args, **options: P.kwargs) -> Awaitable[R]:
        work = functools.partial(method, store, *arguments, **options)
        return asyncio.get_running_loop().run_in_executor(store.threads, work)

    return awaited


class Store:
    """The runs and the spending of one database, which several servers may share."""

    def __init__(self, engine: Engine) -> None:
        """Use an engine of `open_database`, in as many threads as it has connections."""
        self._engine = engine
        self.threads = ThreadPoolExecutor(engine.pool.size(), "router-r1-store")  # type: ignore[attr-defined]

    @_in_thread
    def accept(
        self,
        run_id: str,
        *,
        model: str,
        question: str,
        key: str = "",
        client_id: str | None = None,
        allowance: Allowance = Allowance(),
        want_usd: float | None = None,
    ) -> StoredRun:
        """Write the row of a run that begins, and reserve what it may spend: at most `want_usd`, and what is left.

        Raises:
            OverBudgetError: Nothing is left of a budget, or the key has asked too often.
        """
        now = time.time()
        day = _day(now)
        with self._engine.begin() as connection:
            # These rows are locked from here on: requests of one key are accepted one after the other.
            connection.execute(_COUNT_RUN, {"key": key, "day": day, "month": day[:7]})
            self._check_rate(connection, key, allowance, now)
            reserved = self._reserve(connection, key, day, allowance, want_usd, now)
            row: dict[str, Any] = {
                "id": run_id,
                "client_id": client_id,
                "key": key,
                "day": day,
                "model": model,
                "question": _text(question),
                "status": "running",
                "created_at": now,
                "reserved_usd": reserved,
                "cost_usd": 0.0,
                "maybe_cost_usd": 0.0,
                "charged_usd": reserved or 0.0,
                "lease_until": now + LEASE_S,
            }
            connection.execute(insert(RUNS).values(row))
        return _stored({**row, "error": None, "ended_at": None, "record": None, "score": None})

    def _check_rate(self, connection: Connection, key: str, allowance: Allowance, now: float) -> None:
        if (most := allowance.requests_per_minute) is None:
            return
        recent = select(RUNS.c.created_at).where(RUNS.c.key == key, RUNS.c.created_at > now - 60)
        found = (connection.execute(recent.order_by(RUNS.c.created_at.desc()).limit(most))).scalars().all()
        if len(found) >= most:
            raise OverBudgetError("rate", min(found[-1] + 60 - now, 60.0))

    def _reserve(
        self,
        connection: Connection,
        key: str,
        day: str,
        allowance: Allowance,
        want_usd: float | None,
        now: float,
    ) -> float | None:
        if allowance.day_usd is None and allowance.month_usd is None:
            self._charge(connection, key, day, want_usd or 0.0)
            return want_usd
        charged = self._charged(connection, key, day)
        reserved = float("inf") if want_usd is None else want_usd
        for reason, most, spent in (
            ("month", allowance.month_usd, charged[day[:7]]),
            ("day", allowance.day_usd, charged[day]),
        ):
            if most is None:
                continue
            wanted = 0.0 if allowance.partly or want_usd is None else want_usd
            # Sums of dollars are off by a bit, and by no more than this.
            if spent >= most or spent + wanted > most * (1 + 1e-9):
                raise OverBudgetError(cast("Literal['day', 'month']", reason), _until_next(reason, now))
            reserved = min(reserved, most - spent)
        self._charge(connection, key, day, reserved)
        return reserved

    @_in_thread
    def settle(
        self, run: StoredRun, status: RunStatus, spent: Spending, record: RunRecord | None, error: str | None = None
    ) -> bool:
        """Write how a run ended and what it spent; return False if another server has done so.

        What may have been billed counts against the budget, and if nothing bounds it, all that was reserved. A server
        that was taken for lost may still correct what another one wrote in its place.
        """
        open_states = ("running", "waiting") if status == "lost" else ("running", "lost")
        cost, maybe = spent["cost_usd"], spent["maybe_cost_usd"]
        charged = max(cost, run.reserved_usd or 0.0) if maybe is None else cost + maybe
        ended: dict[str, Any] = {
            "status": status,
            "error": error,
            "ended_at": time.time(),
            "cost_usd": cost,
            "maybe_cost_usd": maybe,
            "charged_usd": charged,
            "record": None if record is None else record.model_dump_json(),
        }
        while run.status in open_states:
            with self._engine.begin() as connection:
                as_known = (RUNS.c.id == run.id) & (RUNS.c.status == run.status)
                if _count(connection.execute(update(RUNS).where(as_known).values(ended))):
                    self._charge(connection, run.key, run.day, charged - run.charged_usd)
                    return True
            latest = self._get(run.id)  # another server has changed it
            if latest is None or latest.status == run.status:
                break
            run = latest
        return False

    @_in_thread
    def pause(self, run_id: str, spent: Spending, record: RunRecord) -> None:
        """Write that a run waits for a person; what it may spend stays reserved."""
        paused = {
            "status": "waiting",
            "cost_usd": spent["cost_usd"],
            "maybe_cost_usd": spent["maybe_cost_usd"],
            "record": record.model_dump_json(),
            "lease_until": time.time() + WAIT_S,
        }
        with self._engine.begin() as connection:
            mine = (RUNS.c.id == run_id) & (RUNS.c.status == "running")
            connection.execute(update(RUNS).where(mine).values(paused))

    @_in_thread
    def resume(self, run_id: str) -> StoredRun | None:
        """Write that a run that waits goes on; return None if it does not wait, or another server was faster."""
        with self._engine.begin() as connection:
            waits = update(RUNS).where(RUNS.c.id == run_id, RUNS.c.status == "waiting")
            resumed = waits.values(status="running", lease_until=time.time() + LEASE_S)
            is_mine = _count(connection.execute(resumed))
        return self._get(run_id) if is_mine else None

    @_in_thread
    def renew(self, run_ids: Sequence[str]) -> None:
        """Tell other servers that these runs still run."""
        with self._engine.begin() as connection:
            mine = (RUNS.c.status == "running") & RUNS.c.id.in_(run_ids)
            connection.execute(update(RUNS).where(mine).values(lease_until=time.time() + LEASE_S))

    @_in_thread
    def take_lost(self) -> list[StoredRun]:
        """Return the runs whose server is gone, or that waited too long; the caller has to settle them."""
        now = time.time()
        over = RUNS.c.status.in_(("running", "waiting")) & (RUNS.c.lease_until < now)
        with self._engine.connect() as connection:
            found = (connection.execute(select(RUNS.c.id).where(over))).scalars().all()
        taken = []
        for run_id in found:
            with self._engine.begin() as connection:
                mine = update(RUNS).where(RUNS.c.id == run_id, over).values(lease_until=now + LEASE_S)
                is_mine = _count(connection.execute(mine))
            if is_mine and (run := self._get(run_id)) is not None:
                taken.append(run)
        return taken

    @_in_thread
    def ended_with_checkpoints(self) -> list[str]:
        """Return the ids of runs that are over and still have checkpoints, which nobody needs any more."""
        with self._engine.connect() as connection:
            return list((connection.execute(_ENDED_WITH_CHECKPOINTS)).scalars())

    @_in_thread
    def get(self, run_id: str, key: str | None = None) -> StoredRun | None:
        """Return a run; None if there is none, or if it is of another key than the one named."""
        run = self._get(run_id)
        return None if run is None or key not in (None, run.key) else run

    def _get(self, run_id: str) -> StoredRun | None:
        with self._engine.connect() as connection:
            row = connection.execute(_RATED_RUNS.where(RUNS.c.id == _text(run_id))).mappings().one_or_none()
        return None if row is None else _stored(row)

    @_in_thread
    def find(
        self,
        *,
        key: str | None = None,
        client_id: str | None = None,
        search: str | None = None,
        before: float | None = None,
        limit: int = 50,
    ) -> Sequence[StoredRun]:
        """Return runs without their records, the latest first; not those of shadows.

        Args:
            key: Only those of the key of this name.
            client_id: Only those whose request had this `X-Client-Request-Id`.
            search: Only those whose question holds this text; case does not matter for ASCII letters.
            before: Only those that began before this time, in seconds since 1970: how one turns pages.
            limit: Most runs to return.
        """
        columns = [column for column in _RATED_RUNS.selected_columns if column.name != "record"]
        wanted = _RATED_RUNS.with_only_columns(*columns).order_by(RUNS.c.created_at.desc(), RUNS.c.id).limit(limit)
        wanted = wanted.where(_NO_SHADOW if key is None else RUNS.c.key == key)
        if client_id is not None:
            wanted = wanted.where(RUNS.c.client_id == _text(client_id))
        if search:
            wanted = wanted.where(func.lower(RUNS.c.question).contains(_text(search).lower(), autoescape=True))
        if before is not None:
            wanted = wanted.where(RUNS.c.created_at < before)
        with self._engine.connect() as connection:
            rows = (connection.execute(wanted)).mappings().all()
        return [_stored({**row, "record": None}) for row in rows]

    @_in_thread
    def rate(self, run_id: str, score: float, comment: str | None = None) -> Feedback:
        """Keep what a user thinks of a run that is there; it takes the place of what was said of it before."""
        feedback = Feedback(score, None if comment is None else _text(comment), time.time())
        with self._engine.begin() as connection:
            connection.execute(_RATE_RUN, {"run_id": run_id, **asdict(feedback)})
        return feedback

    @_in_thread
    def spent(self, key: str = "") -> dict[str, float]:
        """Return what a key was charged `today` and in this `month`, in dollars, with what is reserved now."""
        day = _day(time.time())
        with self._engine.connect() as connection:
            charged = self._charged(connection, key, day)
        return {"today": charged[day], "month": charged[day[:7]]}

    @_in_thread
    def ping(self) -> None:
        """Raise an error of SQLAlchemy's if the database does not answer."""
        with self._engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def _charged(self, connection: Connection, key: str, day: str) -> dict[str, float]:
        mine = select(SPENDING.c.period, SPENDING.c.charged_usd).where(
            SPENDING.c.key == key, SPENDING.c.period.in_((day, day[:7]))
        )
        found = {row.period: row.charged_usd for row in connection.execute(mine)}
        return {day: 0.0, day[:7]: 0.0, **found}

    def _charge(self, connection: Connection, key: str, day: str, usd: float) -> None:
        if not usd:
            return
        # One after the other, in the order of `_COUNT_RUN`: transactions that lock them in different orders deadlock.
        for period in (day, day[:7]):
            of_run = (SPENDING.c.key == key) & (SPENDING.c.period == period)
            connection.execute(update(SPENDING).where(of_run).values(charged_usd=SPENDING.c.charged_usd + usd))


_COUNT_RUN = text(
    "INSERT INTO router_r1_spending (key, period, charged_usd, runs) VALUES (:key, :day, 0, 1), (:key, :month, 0, 1) "
    "ON CONFLICT (key, period) DO UPDATE SET runs = router_r1_spending.runs + 1"
)


_RATE_RUN = text(
    "INSERT INTO router_r1_feedback (run_id, score, comment, created_at) "
    "VALUES (:run_id, :score, :comment, :created_at) "
    "ON CONFLICT (run_id) DO UPDATE "
    "SET score = excluded.score, comment = excluded.comment, created_at = excluded.created_at"
)


_RATED_RUNS = select(
    RUNS, FEEDBACK.c.score, FEEDBACK.c.comment, FEEDBACK.c.created_at.label("rated_at")
).outerjoin_from(RUNS, FEEDBACK, FEEDBACK.c.run_id == RUNS.c.id)
"""The runs, with what users think of them."""


_NO_SHADOW = ~RUNS.c.key.startswith(SHADOW)


# LangGraph's savers have this table in both kinds of database. It holds little: runs that are over leave it soon.
_ENDED_WITH_CHECKPOINTS = text(
    "SELECT DISTINCT thread_id FROM checkpoints JOIN router_r1_runs ON id = thread_id "
    "WHERE status NOT IN ('running', 'waiting')"
)


def _text(text: str) -> str:
    """Return a text that a client wrote as every database takes it: PostgreSQL's texts hold no null character."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _stored(row: Any) -> StoredRun:
    kept = {name: row[name] for name in StoredRun.__dataclass_fields__.keys() - {"record", "feedback"}}
    record = None if row["record"] is None else RunRecord(**json.loads(row["record"]))
    feedback = None if row["score"] is None else Feedback(row["score"], row["comment"], row["rated_at"])
    return StoredRun(**kept, record=record, feedback=feedback)


def read_runs(engine: Engine, *, scored: bool = False) -> Iterator[StoredRun]:
    """Yield the runs that have an answer, with their records, the first one first; not those of shadows.

    Args:
        engine: Of `open_existing`.
        scored: Only those with feedback.
    """
    wanted = _RATED_RUNS.where(RUNS.c.status == "ended", _NO_SHADOW).order_by(RUNS.c.created_at, RUNS.c.id)
    if scored:
        wanted = wanted.where(FEEDBACK.c.score.is_not(None))
    with engine.connect() as connection:
        for row in connection.execution_options(yield_per=READ_AT_ONCE).execute(wanted).mappings():
            yield _stored(row)


def _count(result: Any) -> int:
    return cast("CursorResult[Any]", result).rowcount


def _day(now: float) -> str:
    return dt.datetime.fromtimestamp(now, dt.UTC).date().isoformat()


def _until_next(period: str, now: float) -> float:
    """Return the seconds until the next day or month begins, in UTC."""
    today = dt.datetime.fromtimestamp(now, dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return (today + dt.timedelta(days=1)).timestamp() - now
    in_next_month = today.replace(day=1) + dt.timedelta(days=32)
    return in_next_month.replace(day=1).timestamp() - now
