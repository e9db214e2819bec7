"""A model that keeps failing is rested: it gets no requests and is not offered, until one trial has shown it well."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import WAYS, answer, invoked, pool, search
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.exceptions import ModelAPIError
from provider import Provider

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Strategy, create_router
from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.calls.health import Health, RestingError
from langgraph_router_r1.engines.base import EngineUnavailableError
from langgraph_router_r1.evaluation.baselines import create_baseline
from langgraph_router_r1.evaluation.profile import profile
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.strategies.fallback import FallbackPlan
from langgraph_router_r1.strategies.knn import KNNStrategy, Observation
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "Capital of Peru?")]}
CALL: Any = {"turn": 0, "index": 0, "model": "m", "query": "Capital of Peru?", "refusal": None}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("circuitbreaker.monotonic", clock)
    return clock


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def model(provider: Provider, name: str = "m", **fields: Any) -> ModelDescriptor:
    settings: dict[str, Any] = {"max_retries": 0, "rest_after": 3, "rest_s": 30.0, **fields}
    return ModelDescriptor(name=name, model="openai:x", base_url=provider.base_url, price=1.0, **settings)


def candidates(*models: ModelDescriptor, **options: Any) -> Candidates:
    return Candidates(ModelRegistry(models), len, **options)


async def call(asked: Candidates, way: str = "invoke", name: str = "m") -> Any:
    planned = {**CALL, "model": name}
    return await asked.aask(planned) if way == "ainvoke" else asked.ask(planned)


@pytest.mark.parametrize("way", WAYS)
async def test_no_request_reaches_a_resting_model_and_one_trial_decides_after_the_rest(
    provider: Provider, clock: Clock, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="langgraph_router_r1.calls.health")
    asked = candidates(model(provider))
    provider.status = 500
    reasons = [(await call(asked, way))["reason"] for _ in range(5)]
    assert reasons == ["m had a server error (5xx)"] * 3 + ["m is resting after 3 failures in a row"] * 2
    clock.now += 29.9
    assert (await call(asked, way))["status"] == "resting"
    assert len(provider.requests) == 3

    clock.now += 0.1
    assert not asked.is_resting("m")
    assert (await call(asked, way))["status"] == "error", "a failed trial"
    assert (await call(asked, way))["status"] == "resting"
    assert len(provider.requests) == 4

    clock.now += 30
    provider.status = 200
    assert [(await call(asked, way))["status"] for _ in range(2)] == ["ok", "ok"]
    provider.status = 500
    assert [(await call(asked, way))["status"] for _ in range(2)] == ["error"] * 2, "counted from 0 again"
    assert caplog.messages == [
        "m rests for 30 s after 3 failures in a row",
        "m rests for 30 s after 4 failures in a row",
        "m is back from its rest",
    ]


@pytest.mark.parametrize("way", WAYS)
async def test_of_many_calls_at_the_end_of_a_rest_one_is_made(provider: Provider, clock: Clock, way: str) -> None:
    asked = candidates(model(provider))
    provider.status = 500
    for _ in range(3):
        asked.ask(CALL)
    clock.now += 30
    provider.status, provider.delay_s = 200, 0.3
    if way == "ainvoke":
        results = await asyncio.gather(*(asked.aask(CALL) for _ in range(20)))
    else:
        with ThreadPoolExecutor(20) as threads:
            results = list(threads.map(asked.ask, [CALL] * 20))
    assert sorted(result["status"] for result in results) == ["ok"] + ["resting"] * 19
    assert len(provider.requests) == 4
    assert asked.ask(CALL)["status"] == "ok"


@given(st.lists(st.sampled_from(["ok", "fail", "refuse", "cancel", 5.0, 10.0])))
def test_whatever_happens_requests_pass_as_the_rules_say(steps: list[Any]) -> None:
    clock, breaker = Clock(), Health(ModelDescriptor(name="m", model="openai:x", price=1, rest_after=2, rest_s=10))
    failures, rests_until = 0, 0.0
    raised = {"fail": ModelAPIError(), "refuse": ValueError(), "cancel": asyncio.CancelledError()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuitbreaker.monotonic", clock)
        for step in steps:
            if isinstance(step, float):
                clock.now += step
                continue
            passed = False
            with contextlib.suppress(*(type(error) for error in raised.values()), RestingError), breaker.watching():
                passed = True
                if step in raised:
                    raise raised[step]
            assert passed is (clock.now >= rests_until)
            if passed and step != "cancel":
                failures = failures + 1 if step == "fail" else 0
                if failures >= 2:
                    rests_until = clock.now + 10


@pytest.mark.parametrize(
    ("status", "counts"), [(500, True), (503, True), (429, False), (400, False), (401, False), (404, False)]
)
def test_only_failures_that_tell_of_the_models_health_count(provider: Provider, status: int, counts: bool) -> None:
    asked = candidates(model(provider))
    provider.status = status
    for _ in range(3):
        asked.ask(CALL)
    assert asked.is_resting("m") is counts


@pytest.mark.parametrize("way", WAYS)
async def test_a_timeout_and_a_server_that_is_gone_count(way: str) -> None:
    with Provider(delay_s=0.3) as provider:
        asked = candidates(model(provider, rest_after=1, timeout_s=0.1), model(provider, "gone", rest_after=1))
        assert (await call(asked, way))["reason"] == "m gave no reply within 0.1 s"
    assert (await call(asked, way, "gone"))["reason"] == "gone can't be reached"
    assert [asked.is_resting(name) for name in ("m", "gone")] == [True, True]
    assert (await call(asked, way))["reason"] == "m is resting after a failure"


@pytest.mark.parametrize("failure", [ConnectionResetError(), EngineUnavailableError(), ValueError()])
def test_a_failed_connection_of_any_client_counts_and_so_does_a_routers_server(failure: Exception) -> None:
    fails = ScriptedChatModel([failure])
    asked = candidates(ModelDescriptor(name="m", model=fails, price=1.0, rest_after=1))
    assert asked.ask(CALL)["status"] == "error"
    assert asked.is_resting("m") is not isinstance(failure, ValueError)


def test_a_failure_between_two_replies_rests_nobody(provider: Provider) -> None:
    asked = candidates(model(provider))
    for status in (500, 500, 200, 500, 500):
        provider.status = status
        asked.ask(CALL)
    assert not asked.is_resting("m")


def test_a_missing_key_rests_nobody(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    asked = candidates(model(provider, rest_after=1, api_key_env="NO_SUCH_KEY"))
    assert [asked.ask(CALL)["status"] for _ in range(2)] == ["error"] * 2
    assert not asked.is_resting("m")


async def test_measurements_ask_a_failing_model_every_time(tmp_path: Path) -> None:
    fails = ScriptedChatModel([ModelAPIError("down")])
    registry = ModelRegistry([ModelDescriptor(name="m", model=fails, price=1.0, rest_after=1)])
    baseline = create_baseline("m", registry)
    runs = [baseline.invoke(QUESTION)["routing"]["calls"][0]["status"] for _ in range(3)]
    assert runs == ["error"] * 3
    asked = len(fails.calls)
    tasks = [Task(f"a-{number}", f"{number}?", ("right",), "a") for number in range(3)]
    await profile(registry, tasks, path=tmp_path / "p.jsonl")
    assert len(fails.calls) - asked >= 3


def test_retries_end_when_the_model_rests(provider: Provider) -> None:
    asked = candidates(model(provider, max_retries=9, rest_after=2))
    provider.status = 500
    routed = asked.ask(CALL)
    assert (len(provider.requests), routed["status"]) == (2, "error"), "it was asked, so it is no mere refusal"
    assert asked.ask(CALL)["status"] == "resting"


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_to_a_resting_model_goes_straight_to_its_fallback(provider: Provider, way: str) -> None:
    with Provider(status=500) as broken:
        asked = candidates(model(broken, fallbacks=["other"]), model(provider, "other"))
        results = [await call(asked, way) for _ in range(5)]
    assert [routed["answered_by"] for routed in results] == ["other"] * 5
    assert len(broken.requests) == 3


async def test_what_began_before_the_rest_neither_ends_it_nor_makes_it_longer(clock: Clock) -> None:
    health = Health(ModelDescriptor(name="m", model="openai:x", price=1, rest_after=1, rest_s=10))
    late, later = contextlib.ExitStack(), contextlib.ExitStack()
    for stack in (late, later):
        stack.enter_context(health.watching())
    with contextlib.suppress(TimeoutError), health.watching():
        raise TimeoutError
    late.close()
    assert health.is_resting
    clock.now += 9
    with contextlib.suppress(TimeoutError), later:
        raise TimeoutError
    clock.now += 1
    assert not health.is_resting


async def test_a_trial_that_is_cancelled_leaves_the_trial_to_the_next(provider: Provider, clock: Clock) -> None:
    asked = candidates(model(provider, rest_after=1))
    provider.status = 500
    asked.ask(CALL)
    clock.now += 30
    provider.status, provider.delay_s = 200, 0.5
    trial = asyncio.create_task(asked.aask(CALL))
    await asyncio.to_thread(provider.wait_for, 2)
    assert asked.is_resting("m"), "while the trial runs"
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    assert (await asked.aask(CALL))["status"] == "ok"


def test_routers_that_share_clients_share_what_they_know_of_a_models_health(provider: Provider) -> None:
    clients = Clients()
    one, other = (candidates(model(provider), clients=clients) for _ in range(2))
    alone = candidates(model(provider))
    provider.status = 500
    for _ in range(3):
        one.ask(CALL)
    assert [asked.is_resting("m") for asked in (one, other, alone)] == [True, True, False]


@pytest.mark.parametrize(("rest_after", "rests"), [(0, True), (1, False)])
def test_resting_can_be_turned_off_for_a_model_and_for_a_measurement(
    provider: Provider, rest_after: int, rests: bool
) -> None:
    asked = candidates(model(provider, rest_after=rest_after), clients=Clients(rests=rests))
    provider.status = 500
    assert [asked.ask(CALL)["status"] for _ in range(9)] == ["error"] * 9
    assert len(provider.requests) == 9


# In a run


class Failing:
    """A pool of a broken and a good model, and a router over it."""

    def __init__(self, turns: list[str], names: tuple[str, ...] = ("small", "large"), **settings: Any) -> None:
        self.broken = ScriptedChatModel([ModelAPIError("down")] * 9)
        models = {"small": self.broken, "large": ScriptedChatModel(["Lima"])}
        registry = ModelRegistry(
            ModelDescriptor(name=name, model=models[name], price=1.0, rest_after=1, alias=f"model-{name}")
            for name in names
        )
        self.engine = ScriptedEngine(turns)
        self.router = create_router(self.engine, registry, **settings)

    async def run(self, way: str = "invoke") -> dict[str, Any]:
        keys = ["answer", "routing", "transcript", "calls"]
        result: dict[str, Any] = await invoked(self.router, way, QUESTION, output_keys=keys)
        return result


@pytest.mark.parametrize("way", WAYS)
async def test_a_running_router_is_told_why_a_resting_model_is_not_asked(way: str) -> None:
    asks = search("model-small: Capital of Peru?")
    run = await Failing([asks, asks, answer("Lima")]).run(way)
    first, second = run["calls"]
    assert (first["status"], second["status"]) == ("error", "resting")
    assert "No reply: model-small is resting after a failure." in run["transcript"][-2]["text"]
    assert run["routing"]["by_model"]["small"]["failed"] == 1, "a call that was not made is no failed one"
    assert run["transcript"][0]["text"].count("Name: model-small") == 1, "the prompt of a run stays as it is"


@pytest.mark.parametrize("way", WAYS)
async def test_a_resting_model_is_not_offered_and_nothing_else_of_the_prompt_changes(way: str) -> None:
    turns = [search("model-small: Capital of Peru?"), answer("Lima")]
    failing = Failing([*turns, answer("Lima")])
    healthy, resting = [(await failing.run(way))["transcript"][0]["text"] for _ in range(2)]
    line = next(line for line in healthy.splitlines(keepends=True) if "Name: model-small" in line)
    assert resting == healthy.replace(line, "")
    only_large = Failing([answer("Lima")], names=("large",))
    assert resting == (await only_large.run(way))["transcript"][0]["text"]


async def test_an_unknown_name_is_answered_with_the_names_on_offer() -> None:
    failing = Failing([search("model-small: Capital?"), answer("x"), search("nobody: Capital?"), answer("x")])
    await failing.run()
    [call] = (await failing.run())["calls"]
    assert "it has: 'model-large'" in call["reason"]


async def test_when_all_models_rest_all_are_offered_and_the_run_ends_with_the_reasons() -> None:
    asks = search("model-small: Capital of Peru?")
    failing = Failing([asks, answer("x"), asks, answer("x")], names=("small",))
    first, second = [await failing.run() for _ in range(2)]
    assert first["transcript"][0]["text"] == second["transcript"][0]["text"]
    assert [call["status"] for call in second["calls"]] == ["resting"]
    assert second["routing"]["stop_reason"] == "answered"


class Rank:
    def rank(self, question: str, *, cost_weight: float) -> list[str]:
        return ["small", "large"]


@pytest.mark.parametrize("kind", ["fallback", "knn"])
def test_strategies_without_an_llm_choose_among_the_models_on_offer(kind: str) -> None:
    models = {"small": ScriptedChatModel([ModelAPIError("down")]), "large": ScriptedChatModel(["Lima"])}
    registry = ModelRegistry(
        ModelDescriptor(name=name, model=model, price=1.0, rest_after=1) for name, model in models.items()
    )
    known = [Observation("x", {"small": 1.0, "large": 0.5}, {})]
    strategy: Strategy = (
        FallbackPlan(Rank())
        if kind == "fallback"
        else KNNStrategy(registry, known, embeddings=DeterministicFakeEmbedding(size=8))
    )
    router = create_router(strategy=strategy, registry=registry)
    calls = [[call["model"] for call in router.invoke(QUESTION)["routing"]["calls"]] for _ in range(2)]
    assert calls == [["small", "large"], ["large"]]


def test_a_registry_of_which_all_models_are_kept_is_the_same_one() -> None:
    registry = pool(a="x", b="y")
    assert registry.only(lambda model: True) is registry
    fallbacks = ModelRegistry([registry["a"].model_copy(update={"fallbacks": ("b",)}), registry["b"]])
    assert fallbacks.only(lambda model: model.name == "a")["a"].fallbacks == ()


def test_many_threads_see_one_count(clock: Clock) -> None:
    health = Health(ModelDescriptor(name="m", model="openai:x", price=1, rest_after=200, rest_s=10))
    start = threading.Barrier(20)

    def fail(_: int) -> None:
        start.wait()
        for _ in range(10):
            with contextlib.suppress(TimeoutError, RestingError), health.watching():
                raise TimeoutError

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(fail, range(20)))
    assert health.is_resting
