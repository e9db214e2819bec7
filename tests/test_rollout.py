"""Rollouts: what the trainer learns from is what was sampled."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.cache.memory import InMemoryCache
from test_protocol import HOSTILE
from test_rewards import scale

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.calls import CallMiddleware, client
from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.engines import EngineUnavailableError
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

pytest.importorskip("trl", reason="the [train] extra is not installed")

from training.rewards import FORMAT_FAILURE, reward, rewards
from training.rollout import Calls, Rollout, roll_out, share_calls

TASK = Task("t1", "Capital of Peru?", ("Lima",), "mine")


def rolled(turns: Any, registry: Any, **options: Any) -> Rollout:
    settings = {name: options.pop(name) for name in ("middleware", "clients") if name in options}
    router = create_router(ScriptedEngine(turns), registry, **settings)
    [rollout] = asyncio.run(roll_out(router, registry, [(TASK, 0.3)], **options))
    return rollout


# Rollouts


def test_ids_mask_and_logprobs_align_and_the_mask_is_one_on_what_was_sampled() -> None:
    turns = [search("small: Capital of Peru?"), answer("Lima")]
    rollout = rolled(turns, pool(small="Lima."))
    assert len(rollout.completion_ids) == len(rollout.env_mask) == len(rollout.logprobs)
    sampled = bytes(i for i, own in zip(rollout.completion_ids, rollout.env_mask, strict=True) if own).decode()
    inserted = bytes(i for i, own in zip(rollout.completion_ids, rollout.env_mask, strict=True) if not own).decode()
    assert sampled == "".join(turns)
    assert inserted == "\n\n<information> Lima. </information>\n\n"
    assert bytes(rollout.prompt_ids).decode().endswith("assistant: ")
    assert (rollout.answer, rollout.format_ok, rollout.turns, rollout.failed) == ("Lima", True, 1, None)


def test_costs_count_everything_or_completions_alone() -> None:
    rollout = rolled([search("small: Capital of Peru?"), answer("Lima")], pool(small="Lima it is."))
    [routed] = rollout.calls
    assert rollout.cost_usd() == routed["list_cost_usd"] == pytest.approx(13e-6)
    assert rollout.cost_usd("completion") == pytest.approx(3e-6)


def test_somebody_elses_fault_makes_a_rollout_unscorable_and_never_bad() -> None:
    down = rolled([search("small: Capital?"), answer("Quito")], pool(small=ConnectionError("no")))
    assert down.failed is not None
    assert "small" in down.failed

    class Dead(ScriptedEngine):
        async def agenerate(self, *args: Any, **options: Any) -> Any:
            raise EngineUnavailableError("nobody there")

    registry = pool(small="Lima")
    [dead] = asyncio.run(roll_out(create_router(Dead([]), registry), registry, [(TASK, 0.0)]))
    slow = rolled(
        [search("small: Capital?"), answer("Lima")], pool(small=ScriptedChatModel(["Lima"], delay_s=5)), timeout_s=0.05
    )
    for rollout in (down, dead, slow):
        assert reward(rollout, scale()).total is None


def test_an_unknown_model_is_the_routers_own_fault() -> None:
    rollout = rolled([search("nobody: Capital?"), answer("Lima")], pool(small="Lima"))
    assert rollout.failed is None
    assert not rollout.format_ok
    assert reward(rollout, scale()).total == FORMAT_FAILURE


def test_no_trajectory_waits_for_another() -> None:
    """A slow call holds up its own trajectory only: the others end before it."""
    tasks = [(Task(str(n), f"question {n}?", ("x",), "mine"), 0.0) for n in range(8)]
    registry = pool(slow=ScriptedChatModel(["x"], delay_s=0.3), quick="x")

    def write(transcript: Any) -> str:
        if any(segment["kind"] == "observation" for segment in transcript):
            return answer("x")
        return search("slow: q?" if "question 0?" in transcript[0]["text"] else "quick: q?")

    ended: list[str] = []
    router = create_router(ScriptedEngine(write), registry)
    rollouts = asyncio.run(roll_out(router, registry, tasks, progress=lambda rollout: ended.append(rollout.task.id)))
    assert ended[-1] == "0"
    assert [rollout.task.id for rollout in rollouts] == [str(n) for n in range(8)]


# Sharing calls


class Busy:
    """A routed model that knows how many calls it is in, and how many it was in at most."""

    def __init__(self, delay_s: float = 0.02) -> None:
        self.delay_s, self.now, self.most, self.calls = delay_s, 0, 0, 0

    async def reply(self, _: Any) -> AIMessage:
        self.calls, self.now = self.calls + 1, self.now + 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.delay_s)
        self.now -= 1
        return AIMessage("Lima", usage_metadata={"input_tokens": 10, "output_tokens": 1, "total_tokens": 11})

    def registry(self, **fields: Any) -> ModelRegistry:
        return ModelRegistry([ModelDescriptor(name="small", model=RunnableLambda(self.reply), price=1.0, **fields)])


def ask_once(*, same: bool) -> Any:
    """A router that asks one thing, its own or the same as everybody, and answers."""

    def write(transcript: Any) -> str:
        if any(segment["kind"] == "observation" for segment in transcript):
            return answer("Lima")
        question = transcript[0]["text"].rpartition("Question: ")[2].split("?")[0]
        return search("small: Capital of Peru?" if same else f"small: {question}?")

    return write


def batch(
    registry: ModelRegistry, *middleware: CallMiddleware, same: bool, size: int = 12, **options: Any
) -> list[Rollout]:
    tasks = [(Task(str(n), f"question {n}?", ("Lima",), "mine"), 0.5) for n in range(size)]
    router = create_router(ScriptedEngine(ask_once(same=same)), registry, middleware=middleware)
    return asyncio.run(roll_out(router, registry, tasks, **options))


def test_no_more_calls_to_a_model_are_in_flight_than_allowed() -> None:
    free, held = Busy(), Busy()
    batch(free.registry(), *share_calls(free.registry(), InMemoryCache()), same=False)
    batch(held.registry(), *share_calls(held.registry(), InMemoryCache(), per_model=3), same=False)
    assert (free.most, free.calls) == (12, 12)
    assert (held.most, held.calls) == (3, 12)


def test_each_model_has_turns_of_its_own() -> None:
    both = Busy()
    models = [ModelDescriptor(name=name, model=RunnableLambda(both.reply), price=1.0) for name in ("one", "other")]
    registry = ModelRegistry(models)
    shared = share_calls(registry, InMemoryCache(), per_model=1)
    asked = [f"{name}: Capital of {land}?" for name in ("one", "other") for land in ("Peru", "Chile")]
    assert len(rolled([search(*asked), answer("Lima")], registry, middleware=shared).calls) == 4
    assert (both.most, both.calls) == (2, 4)


def test_known_replies_count_against_no_rate_limit() -> None:
    busy = Busy()
    registry = busy.registry(requests_per_second=2.0)
    shared = share_calls(registry, InMemoryCache())
    began = time.monotonic()
    batch(registry, *shared, same=True, size=1)
    first = time.monotonic() - began
    rollouts = batch(registry, *shared, same=True, size=12)
    assert (busy.calls, len(rollouts)) == (1, 12)
    # Had each to wait for its turn, it would take six seconds.
    assert time.monotonic() - began - first < 3


def test_waiting_for_a_turn_is_not_part_of_a_models_timeout() -> None:
    busy = Busy(delay_s=0.2)  # 2.4 s in all: the last one waits for longer than the timeout
    registry = busy.registry(timeout_s=1.5)
    rollouts = batch(registry, *share_calls(registry, InMemoryCache(), per_model=1), same=False)
    assert [rollout.failed for rollout in rollouts] == [None] * 12
    slow = Busy(delay_s=5)
    registry = slow.registry(timeout_s=0.05)
    [rollout] = batch(registry, *share_calls(registry, InMemoryCache(), per_model=1), same=False, size=1)
    assert rollout.failed == "small gave no reply within 0.05 s"


def test_identical_calls_in_flight_are_made_once_across_trajectories_and_take_one_turn() -> None:
    busy, calls = Busy(), Calls()
    registry = busy.registry()
    rollouts = batch(registry, *share_calls(registry, InMemoryCache(), per_model=1, calls=calls), same=True)
    assert busy.calls == 1
    assert (calls.asked, calls.made) == (12, 1)
    assert calls.made_share == pytest.approx(1 / 12)
    assert {rollout.calls[0]["response"] for rollout in rollouts} == {"Lima"}


def test_replies_survive_an_epoch_on_disk_and_the_reward_sees_list_price_either_way(tmp_path: Path) -> None:
    from langgraph.cache.sqlite import SqliteCache

    busy, calls = Busy(), Calls()
    epochs = []
    for _ in range(2):
        cache = SqliteCache(path=str(tmp_path / "replies.sqlite"))
        registry = busy.registry()
        shared = share_calls(registry, cache, per_model=4, calls=calls)
        epochs.append(batch(registry, *shared, same=False, size=3))
        cache._conn.close()
    assert (busy.calls, calls.asked, calls.made) == (3, 6, 3)
    first, second = epochs
    assert [rollout.calls[0]["cost_usd"] for rollout in second] == [0.0] * 3
    assert [rollout.cost_usd() for rollout in first] == [rollout.cost_usd() for rollout in second]
    assert first[0].cost_usd() == pytest.approx(11e-6)
    assert [reward.total for reward in rewards(first, scale())] == [reward.total for reward in rewards(second, scale())]


def test_a_model_of_a_drawn_pool_is_not_answered_for_by_one_of_the_same_name() -> None:
    registry, drawn = pool(small="Quito"), pool(small="Lima")
    shared = share_calls(registry, InMemoryCache())
    for models, said in ((registry, "Quito"), (drawn, "Lima"), (registry, "Quito")):
        rollout = rolled([search("small: Capital of Peru?"), answer("Lima")], models, middleware=shared)
        assert rollout.calls[0]["response"] == said


def test_another_model_of_the_same_name_is_not_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = InMemoryCache[Any]()
    replies = {"openai:old": "Quito", "openai:new": "Lima"}
    monkeypatch.setattr(client, "build_model", lambda model: ScriptedChatModel([replies[model.model]]))
    for model, said in replies.items():
        registry = ModelRegistry([ModelDescriptor(name="small", model=model, price=1.0)])
        shared = share_calls(registry, cache)
        rollout = rolled([search("small: Capital of Peru?"), answer("Lima")], registry, middleware=shared)
        assert rollout.calls[0]["response"] == said


def test_routers_that_share_a_limit_and_clients_ask_no_faster_together() -> None:
    busy, clients = Busy(delay_s=0), Clients()
    registry = busy.registry(requests_per_second=10.0)
    shared = share_calls(registry, InMemoryCache())
    began = time.monotonic()
    for number in range(4):
        turns = [search(f"small: Question {number}?"), answer("Lima")]
        rolled(turns, registry, middleware=shared, clients=clients)
    assert busy.calls == 4
    assert time.monotonic() - began >= 0.3


def test_blocking_runs_share_calls_too() -> None:
    calls = Calls()
    registry = pool(small="Lima")
    shared = share_calls(registry, InMemoryCache(), per_model=1, calls=calls)
    turns = [search("small: Capital of Peru?"), search("small: Capital of Peru?"), answer("Lima")]
    router = create_router(ScriptedEngine(turns), registry, middleware=shared)
    result = router.invoke({"messages": [("user", "Capital of Peru?")]})
    assert result["answer"] == "Lima"
    assert (calls.asked, calls.made) == (2, 1)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="per_model is 0; it must be 1 or more"):
        share_calls(pool(small="Lima"), InMemoryCache(), per_model=0)


@given(HOSTILE, st.sampled_from(["Lima. ", ""]))
def test_nothing_a_routed_model_writes_changes_the_format_reward(reply: str, before: str) -> None:
    rollout = rolled([search("small: Capital of Peru?"), answer("Lima")], pool(small=before + reply))
    assert rollout.format_ok
    assert reward(rollout, scale()).format == 0.0
