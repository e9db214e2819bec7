"""A shadow: a second router on a share of the requests, within its budget, that no client ever notices."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import LEAVES_CLIENTS, answer, pool, search
from typer.testing import CliRunner

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("scipy", reason="the [eval] extra is not installed")

from langgraph.cache.memory import InMemoryCache
from router_server import Served, serving
from sqlalchemy import update

from langgraph_router_r1 import ModelDescriptor, ModelRegistry
from langgraph_router_r1.cli import cli
from langgraph_router_r1.cli.shadow import open_shadow
from langgraph_router_r1.evaluation.shadow_report import Comparison, compare_shadows
from langgraph_router_r1.serving import shadow as shadow_module
from langgraph_router_r1.serving import store as store_module
from langgraph_router_r1.serving.database import RUNS, open_database, open_existing
from langgraph_router_r1.serving.keys import Key
from langgraph_router_r1.serving.shadow import ShadowRouter
from langgraph_router_r1.serving.shadow_file import ShadowSettings, read_shadow
from langgraph_router_r1.serving.store import Account, Allowance
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

pytestmark = LEAVES_CLIENTS

SECRET = "the-secret-of-alice-0123"
ALICE = Key(name="alice", sha256=hashlib.sha256(SECRET.encode()).hexdigest(), day_usd=1.0)
QUESTION = "Capital of Peru?"
COST, SHADOW_COST = 13e-6, 12e-6
"""Dollars of a run: ten tokens asked and three or two replied, at a dollar per million."""


def write(transcript: Any) -> str:
    """Ask `small` once, then answer with what it said."""
    replied = [segment for segment in transcript if segment["kind"] == "observation"]
    return answer("Lima") if replied else search("small: Capital of Peru?")


def write_as_shadow(transcript: Any) -> str:
    replied = [segment for segment in transcript if segment["kind"] == "observation"]
    return answer("The Lima!") if replied else search("large: Capital of Peru?")


class Held(ScriptedChatModel):
    """A model that replies when it is let."""

    async def _agenerate(self, *arguments: Any, **options: Any) -> Any:
        while not LET.is_set():  # noqa: ASYNC110 - the test that lets it is in another thread
            await asyncio.sleep(0.01)
        return await super()._agenerate(*arguments, **options)


class HeldEngine(ScriptedEngine):
    """An engine that writes when it is let."""

    async def agenerate(self, *arguments: Any, **options: Any) -> Any:
        while not LET.is_set():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        return await super().agenerate(*arguments, **options)


LET = threading.Event()


@pytest.fixture(autouse=True)
def held() -> Iterator[None]:
    LET.clear()
    yield
    LET.set()


def shadow(large: Any = "Lima here.", engine: Any = None, **settings: Any) -> ShadowRouter:
    return ShadowRouter(
        settings=ShadowSettings(**{"name": "candidate", "share": 1.0, "day_usd": 1.0, **settings}),
        engine=engine or ScriptedEngine(write_as_shadow),
        registry=pool(large=large),
    )


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "runs.sqlite")


@pytest.fixture
def start(database: str) -> Callable[..., Any]:
    """Starts a server on one and the same database."""

    def started(second: ShadowRouter | None, *keys: Key, **options: Any) -> Any:
        small = ScriptedChatModel(["It is Lima."])
        return serving(ScriptedEngine(write), pool(small=small), database, keys=keys, shadow=second, **options)

    return started


def ask(server: Served, **fields: Any) -> httpx.Response:
    body = {"model": "router-r1", "messages": [{"role": "user", "content": QUESTION}], **fields}
    headers = {"Authorization": f"Bearer {SECRET}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def asked(server: Served, **fields: Any) -> str:
    """Ask; return the id of the run, which has answered as the first router does."""
    reply = ask(server, **fields)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "Lima"
    assert reply.json()["router_r1"]["cost_usd"] == pytest.approx(COST)
    return str(reply.json()["router_r1"]["run_id"])


def metric(server: Served, name: str) -> float:
    """Return a metric, zero if it is not there yet."""
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"router_r1_{name}"))


def wait_for(what: Callable[[], Any]) -> Any:
    for _ in range(1500):
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come about")


def settled(server: Served, many: int) -> None:
    """Wait until so many requests have had their shadow, or were refused one."""
    wait_for(lambda: metric(server, "shadow_runs_total") + metric(server, "shadow_refusals_total") >= many)


def stored(server: Served, run_id: str) -> Any:
    return server.api.runs.store._get(run_id)


def spent(server: Served) -> float:
    """Return what the shadow was charged today."""
    store, today = server.api.runs.store, store_module._day(time.time())
    with store._engine.connect() as connection:
        return store._charged(connection, "shadow:candidate", today)[today]


# What clients see


def test_every_request_of_a_whole_share_has_a_run_of_the_shadow_beside_its_own(start: Any) -> None:
    with start(shadow(), ALICE) as server:
        ids = [asked(server), asked(server, model="router-r1@0.6"), asked(server, router_r1={"budget_usd": 0.01})]
        settled(server, 3)
        for run_id in ids:
            run = stored(server, f"shadow-{run_id}")
            assert (run.status, run.question, run.key) == ("ended", QUESTION, "shadow:candidate")
            assert (run.record.answer, run.cost_usd) == ("The Lima!", pytest.approx(SHADOW_COST))
        limits = [stored(server, f"shadow-{run_id}").record.limits for run_id in ids]
        assert [(one["cost_weight"], one["budget_usd"]) for one in limits] == [(0.0, 0.1), (0.6, 0.1), (0.0, 0.01)]
        assert metric(server, 'shadow_runs_total{status="ended",target="router-r1"}') == 3
        assert metric(server, 'shadow_dollars_total{model="large"}') == pytest.approx(3 * SHADOW_COST)
        assert metric(server, "runs_total") == 3, "the metrics of the server are of its own runs"


def test_no_request_of_an_empty_share_has_one(start: Any) -> None:
    with start(shadow(share=0.0)) as server:
        run_id = asked(server)
        assert stored(server, f"shadow-{run_id}") is None
    with start(None) as server:
        assert (stored(server, f"shadow-{run_id}"), metric(server, "shadow")) == (None, 0)


def test_a_share_is_drawn_at_random(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([0.29, 0.3, 0.9, 0.0])
    monkeypatch.setattr(shadow_module, "random", SimpleNamespace(random=lambda: next(drawn)))
    with start(shadow(share=0.3)) as server:
        ids = [asked(server) for _ in range(4)]
        settled(server, 2)
        assert [stored(server, f"shadow-{run_id}") is not None for run_id in ids] == [True, False, False, True]


@pytest.mark.parametrize("keys", [(), (ALICE,)], ids=["without keys", "with keys"])
def test_no_list_and_no_account_of_a_client_holds_the_shadow(start: Any, keys: Any) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    with start(shadow(), *keys) as server:
        run_id = asked(server)
        settled(server, 1)
        listed = httpx.get(f"{server.url}/v1/runs", headers=headers).json()["data"]
        assert [run["id"] for run in listed] == [run_id]
        usage = httpx.get(f"{server.url}/v1/usage", headers=headers).json()
        assert usage["today_usd"] == pytest.approx(COST)
        names = [model["id"] for model in httpx.get(f"{server.url}/v1/models", headers=headers).json()["data"]]
        assert "large" not in names
        found = httpx.get(f"{server.url}/v1/runs/shadow-{run_id}", headers=headers)
        assert found.status_code == (404 if keys else 200), "who may see everything sees this, too"


def test_runs_to_learn_from_are_not_those_of_the_shadow(start: Any, database: str) -> None:
    with start(shadow()) as server:
        run_id = asked(server)
        settled(server, 1)
    exported = CliRunner().invoke(cli, ["export-runs", "--database", database]).stdout.splitlines()
    assert [json.loads(line)["id"] for line in exported] == [run_id]


def test_requests_that_can_not_be_repeated_have_no_shadow(start: Any) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    with start(shadow()) as server:
        ask(server, model="small")
        httpx.post(f"{server.url}/v1/runs", json={"question": QUESTION, "approve": True}, timeout=30)
        run_id = asked(server)
        fork = {"turn": 0, "index": 0, "model": "small"}
        assert httpx.post(f"{server.url}/v1/runs/{run_id}/fork", json=fork, timeout=30).status_code == 200
        ask(server, tools=[tool])
        settled(server, 2)
        assert metric(server, "shadow_runs_total") == 1, "the plain question"
        assert metric(server, 'shadow_refusals_total{reason="tools"}') == 1
        asked(server)
        settled(server, 3)


def test_a_question_with_an_image_has_no_shadow(database: str) -> None:
    sees = ModelDescriptor(name="small", model=ScriptedChatModel(["Lima."]), price=1.0, modalities=("text", "image"))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with serving(ScriptedEngine(write), ModelRegistry([sees]), database, shadow=shadow()) as server:
        messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}]
        assert ask(server, messages=messages).status_code == 200
        settled(server, 1)
        assert metric(server, 'shadow_refusals_total{reason="images"}') == 1


def test_the_shadow_pays_for_its_calls_where_the_server_keeps_replies(database: str) -> None:
    second = ShadowRouter(settings=ShadowSettings(name="candidate", share=1.0, day_usd=1.0))
    router = {"cache": InMemoryCache()}
    small = pool(small="It is Lima.")
    with serving(ScriptedEngine(write), small, database, shadow=second, router=router) as server:
        run_id = asked(server)
        settled(server, 1)
        assert stored(server, f"shadow-{run_id}").cost_usd == pytest.approx(COST)


# What goes wrong


def test_a_shadow_that_hangs_keeps_no_client_waiting_and_is_not_queued_for(start: Any) -> None:
    with start(shadow(Held(["Lima here."]), max_concurrent=2)) as server:
        ids = [asked(server) for _ in range(2)]
        wait_for(lambda: metric(server, "shadow_running") == 2)
        asked(server)
        asked(server, stream=False)
        settled(server, 2)
        assert metric(server, 'shadow_refusals_total{reason="too_many_runs"}') == 2
        assert [stored(server, f"shadow-{run_id}").status for run_id in ids] == ["running"] * 2
        LET.set()
        settled(server, 4)
        assert [stored(server, f"shadow-{run_id}").status for run_id in ids] == ["ended"] * 2


def test_a_shadow_that_hangs_is_cancelled_when_the_server_stops_and_what_it_spent_is_known(start: Any) -> None:
    with start(shadow(Held(["Lima here."]))) as server:
        run_id = asked(server)
        wait_for(lambda: metric(server, "shadow_running") == 1)
    with start(None) as server:
        run = stored(server, f"shadow-{run_id}")
        assert (run.status, run.cost_usd, 0 < run.maybe_cost_usd < 0.1) == ("cancelled", 0.0, True)
        assert spent(server) == pytest.approx(run.maybe_cost_usd)


def test_a_shadow_that_raises_is_counted_and_answers_are_as_they_were(
    start: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(_: Any) -> str:
        raise RuntimeError("canary")

    with start(shadow(engine=ScriptedEngine(raises))) as server:
        run_id = asked(server)
        settled(server, 1)
        run = stored(server, f"shadow-{run_id}")
        assert (run.status, run.error) == ("failed", "run_failed")
        assert metric(server, 'shadow_runs_total{status="failed"') == 1
        assert server.api.shadow is not None
        # And where nothing should ever fail:
        monkeypatch.setattr(server.api.shadow.runs, "start", raises)
        asked(server)
        settled(server, 2)
        assert metric(server, 'shadow_refusals_total{reason="server_failed"}') == 1
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert "has no shadow" in caplog.text


def test_a_model_that_fails_for_the_shadow_does_not_rest_for_the_server(database: str) -> None:
    # The server's run has the first reply, and the shadow's the second.
    model = ScriptedChatModel(["It is Lima.", ConnectionError("down")])
    small = ModelDescriptor(name="small", model=model, price=1.0, max_retries=0, rest_after=1)
    second = ShadowRouter(settings=ShadowSettings(name="candidate", share=1.0, day_usd=1.0, cost_weight=0.9))
    with serving(ScriptedEngine(write), ModelRegistry([small]), database, shadow=second) as server:
        run_id = asked(server)
        settled(server, 1)
        record = stored(server, f"shadow-{run_id}").record
        assert [call["status"] for call in record.calls] == ["error"]
        assert record.limits["cost_weight"] == 0.9, "the server's own router, told another cost weight"
        assert server.api.shadow is not None
        assert server.api.shadow.runs.targets.is_resting(small)
        about = httpx.get(f"{server.url}/v1/models/small").json()["router_r1"]
        assert (about["is_resting"], about["calls"]) == (False, {"ok": 1})


# The cap


async def ask_at_once(servers: list[Served], many: int) -> list[httpx.Response]:
    body = {"model": "router-r1", "messages": [{"role": "user", "content": QUESTION}]}
    async with httpx.AsyncClient(timeout=120) as client:
        urls = [f"{servers[one % len(servers)].url}/v1/chat/completions" for one in range(many)]
        return await asyncio.gather(*(client.post(url, json=body) for url in urls))


def test_fifty_requests_at_once_do_not_exceed_the_cap(start: Any) -> None:
    with start(shadow(Held(["Lima here."]), day_usd=0.55, run_usd=0.1, max_concurrent=50)) as server:
        replies = asyncio.run(ask_at_once([server], 50))
        assert [reply.json()["choices"][0]["message"]["content"] for reply in replies] == ["Lima"] * 50
        wait_for(lambda: metric(server, 'shadow_refusals_total{reason="insufficient_quota"}') == 45)
        assert (metric(server, "shadow_running"), spent(server)) == (5, pytest.approx(0.5))
        LET.set()
        settled(server, 50)
        assert spent(server) == pytest.approx(5 * SHADOW_COST), "what was spent takes the place of what was reserved"


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, database: str) -> str:
    return database if request.param == "sqlite" else str(request.getfixturevalue("postgres"))


def test_two_servers_on_one_database_share_the_cap_and_one_report(either: str) -> None:
    held = [shadow(Held(["Lima here."]), day_usd=0.35, run_usd=0.1, max_concurrent=20) for _ in range(2)]
    small = pool(small=ScriptedChatModel(["It is Lima."]))
    with (
        serving(ScriptedEngine(write), small, either, shadow=held[0]) as one,
        serving(ScriptedEngine(write), small, either, shadow=held[1]) as two,
    ):
        assert {reply.status_code for reply in asyncio.run(ask_at_once([one, two], 20))} == {200}
        both = (one, two)
        wait_for(lambda: sum(metric(server, "shadow_refusals_total") for server in both) == 17)
        assert (sum(metric(server, "shadow_running") for server in both), spent(one)) == (3, pytest.approx(0.3))
        LET.set()
        wait_for(lambda: sum(metric(server, "shadow_runs_total") for server in both) == 3)
        comparison = report(either)
        assert (comparison.pairs, comparison.spent_usd) == (3, pytest.approx(3 * SHADOW_COST))
        assert comparison.cost_usd.router == pytest.approx(COST)
        assert len(httpx.get(f"{one.url}/v1/runs").json()["data"]) == 20


def test_a_server_that_is_killed_and_started_again_forgets_no_spending(
    start: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: Any = {"day_usd": 0.15, "run_usd": 0.1}
    monkeypatch.setattr(store_module, "LEASE_S", 600.0)
    with start(shadow(Held(["Lima here."]), **limits)) as server:
        run_id = asked(server)
        wait_for(lambda: metric(server, "shadow_running") == 1)
        assert server.api.shadow is not None
        monkeypatch.setattr(server.api.shadow.runs, "_settle", lambda *_: asyncio.sleep(0))  # as if it were killed
    LET.set()
    with start(shadow(**limits)) as server:
        asked(server)
        wait_for(lambda: metric(server, 'shadow_refusals_total{reason="insufficient_quota"}') == 1)
        assert spent(server) == pytest.approx(0.1)
        asyncio.run(change(database, f"shadow-{run_id}", lease_until=0.0))
        run = wait_for(lambda: (found := stored(server, f"shadow-{run_id}")).status != "running" and found)
        assert (run.status, 0 < run.maybe_cost_usd < 0.1) == ("lost", True)
        assert spent(server) == pytest.approx(run.maybe_cost_usd)
        asked(server)
        wait_for(lambda: metric(server, 'shadow_runs_total{status="ended"') == 1)


def test_a_shadow_that_was_killed_before_it_decided_is_charged_all_that_was_reserved(
    start: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = shadow(engine=HeldEngine(write_as_shadow), run_usd=0.1)
    second.router["router_price"] = 1.0
    with start(second) as server:
        run_id = asked(server)
        wait_for(lambda: metric(server, "shadow_running") == 1)
        assert server.api.shadow is not None
        monkeypatch.setattr(server.api.shadow.runs, "_settle", lambda *_: asyncio.sleep(0))
    asyncio.run(change(database, f"shadow-{run_id}", lease_until=0.0))
    with start(None) as server:  # whose own router is free
        run = wait_for(lambda: (found := stored(server, f"shadow-{run_id}")).status != "running" and found)
        assert (run.status, run.maybe_cost_usd, run.charged_usd) == ("lost", None, 0.1)
        assert spent(server) == pytest.approx(0.1)


# The report


def report(database: str) -> Comparison:
    with open_existing(database) as engine:
        [comparison] = compare_shadows(engine)
    return comparison


async def change(database: str, run_id: str, **values: Any) -> None:
    async with open_database(database) as (engine, _):
        with engine.begin() as connection:
            connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(**values))


def test_the_report_is_what_one_calculates_by_hand(start: Any, database: str) -> None:
    with start(shadow()) as server:
        ids = [asked(server) for _ in range(6)]
        settled(server, 6)
    costs = [(4e-6, 1e-6), (6e-6, 9e-6), (2e-6, 1e-6), (8e-6, 2e-6)]
    seconds = [(1.0, 2.0), (3.0, 2.5), (2.0, 4.0), (1.0, 1.5)]
    answers = ["The Lima!", "lima", "Quito", ""]
    for run_id, (cost, other), (took, longer), said in zip(ids, costs, seconds, answers, strict=False):
        record = json.dumps({"answer": said})
        asyncio.run(change(database, run_id, cost_usd=cost, created_at=100.0, ended_at=100.0 + took))
        times = {"created_at": 200.0, "ended_at": 200.0 + longer}
        asyncio.run(change(database, f"shadow-{run_id}", cost_usd=other, record=record, **times))
    asyncio.run(change(database, f"shadow-{ids[4]}", status="failed", error="router_unavailable", cost_usd=5e-6))
    asyncio.run(change(database, ids[5], status="lost"))

    found = report(database)
    assert (found.name, found.pairs) == ("candidate", 4)
    assert found.unpaired == {"router_unavailable": 1, "the router's run is not recorded": 1}
    assert found.spent_usd == pytest.approx(13e-6 + 5e-6 + SHADOW_COST)
    assert (found.cost_usd.router, found.cost_usd.shadow) == (pytest.approx(5e-6), pytest.approx(3.25e-6))
    assert (found.seconds.router, found.seconds.shadow) == (pytest.approx(1.75), pytest.approx(2.5))
    assert found.cost_usd.difference is not None
    assert found.seconds.difference is not None
    assert found.equal_answers is not None
    assert found.cost_usd.difference.mean == pytest.approx((-3 + 3 - 1 - 6) / 4 * 1e-6)
    assert found.seconds.difference.mean == pytest.approx((1 - 0.5 + 2 + 0.5) / 4)
    # The means of all 256 samples of four of the four differences: 95 % of them lie in the interval.
    differences = np.array([1.0, -0.5, 2.0, 0.5])
    means = differences[np.indices((4,) * 4).reshape(4, -1)].mean(axis=0)
    expected = np.percentile(means, [2.5, 97.5])
    assert (found.seconds.difference.low, found.seconds.difference.high) == pytest.approx(tuple(expected), abs=0.13)
    assert found.equal_answers.mean == 0.5, "'Lima' is 'lima' and 'The Lima!' once normalised"
    # Wilson's formula for two of four, with z = 1.96.
    half = 1.96 / (1 + 1.96**2 / 4) * (0.25 / 4 + 1.96**2 / (4 * 16)) ** 0.5
    assert (found.equal_answers.low, found.equal_answers.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)


def test_fewer_than_two_pairs_have_no_interval_and_the_report_says_so(start: Any, database: str) -> None:
    command = ["shadow-report", "--database", database]
    with start(None):
        pass
    nothing = CliRunner().invoke(cli, command)
    assert (nothing.exit_code, nothing.stdout) == (0, "no request was given to a shadow yet\n")
    with start(shadow()) as server:
        asked(server)
        settled(server, 1)
        [one] = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
        assert (one["pairs"], one["cost_usd"]["difference"], one["equal_answers"]) == (1, None, None)
        assert one["cost_usd"]["shadow"] == pytest.approx(SHADOW_COST)
        assert "there is no interval, which needs two pairs" in CliRunner().invoke(cli, command).stdout
        asked(server)
        settled(server, 2)
        [two] = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
        assert two["cost_usd"]["difference"]["mean"] == pytest.approx(SHADOW_COST - COST)
        assert two["equal_answers"]["mean"] == 1.0
        table = CliRunner().invoke(cli, command).stdout
    assert "candidate, pairs: 2" in table
    assert "-1.000 [-1.000, -1.000]" in table
    assert "no interval" not in table


def test_a_report_on_no_database_makes_none(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["shadow-report", "--database", str(tmp_path / "absent.sqlite")])
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []


# Its file


def test_another_shadow_takes_the_place_of_the_first_without_dropping_its_runs(start: Any) -> None:
    with start(shadow(Held(["Lima here."]))) as server:
        held = asked(server)
        wait_for(lambda: metric(server, "shadow_running") == 1)
        wrong = ShadowRouter(settings=shadow().settings, registry=pool(**{"router-r1@0.5": "x"}))
        with pytest.raises(ValueError, match="the name of a router here"):
            server.api.serve(pool(other="x"), wrong)
        assert server.api.runs.targets.registry.names == ("small",), "all or nothing"
        server.api.serve(pool(small="It is Lima."), shadow("Lima there.", name="other"))
        run_id = asked(server)
        settled(server, 1)
        assert stored(server, f"shadow-{run_id}").key == "shadow:other"
        LET.set()
        settled(server, 2)
        assert (stored(server, f"shadow-{held}").status, stored(server, f"shadow-{held}").key) == (
            "ended",
            "shadow:candidate",
        )


FILE = 'name = "candidate"\nshare = 0.1\nday_usd = 1.0\n'
MODEL = '[models.one]\nmodel = "openai:x"\nprice = 1\n'
CANARY = "canary-0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "name: Field required; share: Field required; day_usd: Field required"),
        ("share = ", "can't be parsed"),
        (FILE.replace("0.1", "1.5"), "share: Input should be less than or equal to 1"),
        (FILE.replace("0.1", "-0.1"), "share: Input should be greater than or equal to 0"),
        (FILE.replace("0.1", "nan"), "share: Input should be"),
        (FILE.replace("0.1", f'"{CANARY}"'), "share: Input should be a valid number"),
        (FILE.replace("1.0", "0"), "day_usd: Input should be greater than 0"),
        (FILE.replace("1.0", "inf"), "day_usd: Input should be a finite number"),
        (FILE.replace("1.0", "0.05"), "run_usd is 0.1, more than day_usd (0.05): no run could begin"),
        (FILE.replace("candidate", "shadow:x"), "name: String should match pattern"),
        (f"{FILE}max_concurrent = 0", "max_concurrent: Input should be greater than or equal to 1"),
        (f"{FILE}cost_weight = 2", "cost_weight: Input should be less than or equal to 1"),
        (f'{FILE}api_key = "{CANARY}"', "api_key: Extra inputs are not permitted"),
        (f'{FILE}router = "{CANARY}.example/v1"', "router must be an address that starts with http://"),
        (f'{FILE}router = "http://me:{CANARY}@host/v1#x"', "base_url is an address with a password"),
        (f'{FILE}router = "openai:x"', "give the price of its tokens as router_price"),
        (f'{FILE}router = "openai:x"\nmodel = "y"', "model is the name of a router on a vLLM server"),
        (f'{FILE}model = "y"', "model needs router"),
        (f"{FILE}router_price = 1", "router_price needs router or model"),
        (f'{FILE}strategy = "best"', "strategy: Input should be 'knn'"),
        (f'{FILE}strategy = "knn"', "strategy = 'knn' needs a registry"),
        (f'{FILE}strategy = "knn"\nrouter = "openai:x"', "strategy decides without one"),
        (f'{FILE}strategy = "knn"\nregistry = "models.toml"', "'knn' goes by the registry's profile, and it has none"),
        (f'{FILE}registry = "absent.toml"', "can't be read: No such file"),
    ],
)
def test_a_wrong_file_is_one_clear_error_before_the_server_starts(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "shadow.toml").write_text(text)
    (tmp_path / "models.toml").write_text(MODEL)
    arguments = ["serve", "--database", str(tmp_path / "runs.sqlite"), "--shadow", str(tmp_path / "shadow.toml")]
    result = CliRunner().invoke(cli, arguments, env={"COLUMNS": "300"})
    said = " ".join((result.stderr + result.stdout).split())
    assert (result.exit_code, problem in said) == (1, True), said
    assert "Traceback" not in said
    assert CANARY not in said


def test_the_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "server.md").read_text(encoding="utf-8")
    [text] = [block for block in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if "share" in block]
    (tmp_path / "shadow.toml").write_text(text)
    described = read_shadow(tmp_path / "shadow.toml")
    assert described.account == Account("shadow:router-v2", Allowance(day_usd=1.0, partly=False), 0.05)
    assert (described.max_concurrent, described.registry) == (4, tmp_path / "candidates.toml")


def test_a_file_describes_a_router_and_what_it_leaves_out_is_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    file = tmp_path / "shadow.toml"
    (tmp_path / "models.toml").write_text(MODEL)

    def opened(text: str) -> ShadowRouter:
        file.write_text(FILE + text)
        return open_shadow(file, router="http://127.0.0.1:9/v1", model="router", answer="full")

    same = opened("cost_weight = 0.9")
    assert (same.engine, same.registry, same.settings.cost_weight) == (None, None, 0.9)
    assert (same.settings.share, same.settings.day_usd, same.settings.run_usd) == (0.1, 1.0, 0.1)
    adapter = opened('model = "router-v2"')
    assert repr(adapter.engine) == "VLLMEngine('http://127.0.0.1:9/v1', model='router-v2')"
    assert adapter.router == {"answer": "full", "router_price": "free"}
    assert (
        repr(opened('router = "http://127.0.0.1:8/v1"').engine) == "VLLMEngine('http://127.0.0.1:8/v1', model='router')"
    )
    chat = opened('router = "openai:x"\nrouter_price = 2.5\nregistry = "models.toml"')
    assert chat.registry is not None
    assert (chat.registry.names, chat.router["router_price"]) == (("one",), 2.5)
