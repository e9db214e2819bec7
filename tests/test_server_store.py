"""The server's database: budgets that parallel requests can't exceed, and runs that a killed server leaves behind."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool

pytest.importorskip("sqlalchemy", reason="the [serve] extra is not installed")

from langgraph_router_r1 import RECORD_KEYS, RunRecord, create_router
from langgraph_router_r1.accounting import spending
from langgraph_router_r1.serving import store as store_module
from langgraph_router_r1.serving.database import FEEDBACK, open_database, open_existing
from langgraph_router_r1.serving.store import Allowance, OverBudgetError, Store, read_runs
from langgraph_router_r1.testing import ScriptedEngine

ASKED: Any = {"messages": [("user", "Which?")]}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "runs.sqlite")
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
async def servers(url: str) -> AsyncIterator[list[Store]]:
    """Two servers on one database."""
    async with AsyncExitStack() as stack:
        yield [Store((await stack.enter_async_context(open_database(url)))[0]) for _ in range(2)]


@pytest.fixture
def key() -> str:
    """A key of this test's own: PostgreSQL's database is one for all tests of the module."""
    return uuid.uuid4().hex


async def accept(store: Store, key: str, number: int = 0, **options: Any) -> Any:
    return await store.accept(f"{key}-{number}", model="router-r1", question="Which?", key=key, **options)


async def test_parallel_requests_to_two_servers_can_not_reserve_more_than_a_budget(
    servers: list[Store], key: str
) -> None:
    allowance = Allowance(day_usd=1.0, month_usd=10.0)

    attempts = (accept(servers[one % 2], key, one, allowance=allowance, want_usd=0.3) for one in range(20))
    results = await asyncio.gather(*attempts, return_exceptions=True)
    reserved = sorted(run.reserved_usd for run in results if not isinstance(run, OverBudgetError))
    assert reserved == pytest.approx([0.1, 0.3, 0.3, 0.3])
    refused = [error for error in results if isinstance(error, OverBudgetError)]
    assert all(error.reason == "day" and 0 < error.retry_after_s <= 86_400 for error in refused)
    assert await servers[0].spent(key) == pytest.approx({"today": 1.0, "month": 1.0})


@pytest.mark.parametrize(
    ("spent", "charged"),
    [(spending(0.1, 0.0), 0.1), (spending(0.1, 0.05), 0.15), (spending(0.1, None), 0.3)],
    ids=["known", "bounded", "unbounded"],
)
async def test_what_was_spent_takes_the_place_of_what_was_reserved(
    servers: list[Store], key: str, spent: Any, charged: float
) -> None:
    run = await accept(servers[0], key, allowance=Allowance(day_usd=1.0), want_usd=0.3)
    assert (await servers[0].spent(key))["today"] == pytest.approx(0.3)
    assert await servers[0].settle(run, "ended", spent, None)
    assert await servers[1].spent(key) == pytest.approx({"today": charged, "month": charged})
    assert not await servers[0].settle(run, "ended", spending(9.0, 0.0), None), "a run ends once"
    assert (await servers[0].spent(key))["today"] == pytest.approx(charged)


async def test_requests_begin_and_end_at_once_also_on_the_second_day_of_a_month(
    servers: list[Store], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The month's row is now older than the day's: PostgreSQL would lock them in another order than a request does.
    for day in ("2026-11-27", "2026-11-28"):
        monkeypatch.setattr(store_module, "_day", lambda _, day=day: day)
        await accept(servers[0], key, int(day[-2:]), want_usd=0.01)
    allowance = Allowance(month_usd=1000.0)
    begun = [await accept(servers[0], key, 100 + number, allowance=allowance, want_usd=0.01) for number in range(100)]
    ending = (servers[0].settle(run, "ended", spending(0.02, 0.0), None) for run in begun)
    beginning = (accept(servers[1], key, 300 + number, allowance=allowance, want_usd=0.01) for number in range(100))
    assert all(await asyncio.gather(*ending, *beginning))
    assert (await servers[0].spent(key))["today"] == pytest.approx(100 * 0.02 + 101 * 0.01)


async def test_a_used_up_month_is_refused_until_the_next_one(servers: list[Store], key: str) -> None:
    allowance = Allowance(month_usd=0.2)
    run = await accept(servers[0], key, allowance=allowance)
    assert run.reserved_usd == pytest.approx(0.2)
    await servers[0].settle(run, "ended", spending(0.2, 0.0), None)
    with pytest.raises(OverBudgetError) as refused:
        await accept(servers[0], key, 1, allowance=allowance)
    assert refused.value.reason == "month"
    assert time.strftime("%d", time.gmtime(time.time() + refused.value.retry_after_s + 1)) == "01"


async def test_the_rate_of_a_key_holds_for_all_servers_together(servers: list[Store], key: str) -> None:
    allowance = Allowance(requests_per_minute=3)
    results = await asyncio.gather(
        *(accept(servers[number % 2], key, number, allowance=allowance) for number in range(8)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, OverBudgetError)]
    assert len(refused) == 5
    assert all(error.reason == "rate" and 50 < error.retry_after_s <= 60 for error in refused)
    assert len(await servers[0].find(key=key)) == 3, "what is refused has no row"


async def test_a_run_of_a_dead_server_is_taken_once_and_one_of_a_living_server_never(
    servers: list[Store], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = servers
    run = await accept(one, key)
    assert run.id not in [lost.id for lost in await two.take_lost()]
    monkeypatch.setattr(store_module, "LEASE_S", -1.0)  # over at once
    await one.renew([run.id])
    monkeypatch.undo()
    await one.renew([run.id])
    assert run.id not in [lost.id for lost in await two.take_lost()]
    monkeypatch.setattr(store_module, "LEASE_S", -1.0)
    await one.renew([run.id])
    monkeypatch.undo()
    taken = await asyncio.gather(one.take_lost(), two.take_lost())
    assert [lost.id for lost in [*taken[0], *taken[1]]].count(run.id) == 1
    assert run.id not in [lost.id for lost in await two.take_lost()]
    assert await two.settle(run, "lost", spending(0.1, 0.2), None)
    found = await one.get(run.id)
    assert found is not None
    assert (found.status, found.cost_usd, found.maybe_cost_usd) == ("lost", 0.1, 0.2)
    # It was not dead after all: what it knows of its own run counts.
    assert await one.settle(run, "ended", spending(0.5, 0.0), None)
    assert await one.spent(key) == pytest.approx({"today": 0.5, "month": 0.5})


async def test_runs_are_found_by_key_client_id_and_text_the_latest_first(servers: list[Store], key: str) -> None:
    store = servers[0]
    for number, question in enumerate(["Capital of Peru?", "100% of it?", "Capital of Chile?"]):
        await store.accept(f"{key}-{number}", model="m", question=question, key=key, client_id=f"c{number}")
    assert [run.question[-6:] for run in await store.find(key=key)] == ["Chile?", "of it?", " Peru?"]
    assert [run.id[-1] for run in await store.find(key=key, search="capital of p")] == ["0"]
    assert [run.id[-1] for run in await store.find(key=key, search="0%")] == ["1"], "no wildcard"
    assert [run.id[-1] for run in await store.find(key=key, client_id="c2")] == ["2"]
    latest, *_ = await store.find(key=key, limit=1)
    assert [run.id[-1] for run in await store.find(key=key, before=latest.created_at)] == ["1", "0"]
    assert await store.get(f"{key}-0", key="another") is None


async def test_a_null_character_in_what_a_client_wrote_breaks_no_database(servers: list[Store], key: str) -> None:
    store = servers[0]
    await store.accept(f"{key}-0", model="m", question="nul\0nul", key=key)
    [run] = await store.find(key=key, search="nul\0")
    assert run.question == "nul\N{REPLACEMENT CHARACTER}nul"
    assert await store.get("\0") is None
    assert await store.find(key=key, client_id="\0") == []


async def test_the_latest_feedback_on_a_run_counts_whichever_server_it_came_to(servers: list[Store], key: str) -> None:
    run = await accept(servers[0], key)
    assert run.feedback is None
    await servers[0].rate(run.id, 0.0, "nul\0nul")
    given = await servers[1].rate(run.id, 1.0)
    found, [listed] = await servers[0].get(run.id), await servers[0].find(key=key)
    assert found is not None
    assert (found.feedback, found.created_at) == (given, run.created_at)
    assert listed == found
    await asyncio.gather(*(servers[number % 2].rate(run.id, 0.5, "\0") for number in range(8)))
    latest = await servers[0].get(run.id)
    assert latest is not None
    assert latest.feedback is not None
    assert (latest.feedback.score, latest.feedback.comment) == (0.5, "\N{REPLACEMENT CHARACTER}")


async def test_the_runs_with_an_answer_are_read_in_order_beside_a_server(
    servers: list[Store], key: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "READ_AT_ONCE", 2)
    runs = [await accept(servers[0], key, number) for number in range(6)]
    record = RunRecord.of(
        create_router(ScriptedEngine([answer("Lima")]), pool(m="x")).invoke(ASKED, output_keys=RECORD_KEYS)
    )
    for run in runs[:5]:
        await servers[0].settle(run, "failed" if run is runs[1] else "ended", spending(0.1, 0.0), record)
    for number in (2, 4):
        await servers[0].rate(runs[number].id, number / 4)
    with open_existing(url) as engine:
        read = [run for run in read_runs(engine) if run.key == key]
        scored = [run for run in read_runs(engine, scored=True) if run.key == key]
    assert [run.id[-1] for run in read] == ["0", "2", "3", "4"]
    assert all(run.record is not None and run.record.answer == "Lima" for run in read)
    assert [(run.id[-1], run.feedback and run.feedback.score) for run in scored] == [("2", 0.5), ("4", 1.0)]


async def test_a_database_of_before_there_was_feedback_gets_its_table_when_it_is_opened(url: str, key: str) -> None:
    async with open_database(url) as (engine, _):
        run = await accept(Store(engine), key)
        FEEDBACK.drop(engine)
    async with open_database(url) as (engine, _):
        store = Store(engine)
        found = await store.get(run.id)
        assert found is not None
        assert (found.question, found.feedback) == ("Which?", None)
        FEEDBACK.drop(engine)
    with open_existing(url) as engine:
        assert list(read_runs(engine, scored=True)) == []


async def test_another_kind_of_database_is_refused_and_its_password_not_shown() -> None:
    with pytest.raises(ValueError, match="postgresql://") as refused:
        async with open_database("mysql://me:canary@host/db"):
            pass
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("closed", [False, True])
async def test_a_write_of_a_checkpoint_that_is_cancelled_leaves_the_database_unlocked(
    closed: bool, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Any = {"configurable": {"thread_id": key, "checkpoint_ns": "", "checkpoint_id": "1"}}
    url = str(tmp_path / "runs.sqlite")
    async with open_database(url) as (engine, saver):
        commit = saver.conn.commit

        async def slow_commit() -> None:
            await asyncio.sleep(0.2)
            await commit()

        monkeypatch.setattr(saver.conn, "commit", slow_commit)
        write = asyncio.create_task(saver.aput_writes(place, [("channel", "value")], "task"))
        await asyncio.sleep(0.1)
        write.cancel()
        if not closed:
            await asyncio.wait_for(accept(Store(engine), key), 5)
    async with open_database(url) as (engine, _):
        await asyncio.wait_for(accept(Store(engine), key, 1), 5)
