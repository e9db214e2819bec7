"""Rollouts and rewards: what the trainer learns from is what was sampled, and earns what it should."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import answer, pool, search
from hypothesis import given
from hypothesis import strategies as st

from langgraph_router_r1 import create_router
from langgraph_router_r1.engines import EngineUnavailableError
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

pytest.importorskip("trl", reason="the [train] extra is not installed")

from training.rewards import FORMAT_FAILURE, CostScale, reward, rewards
from training.rollout import Rollout, roll_out, unscorable

TASK = Task("t1", "Capital of Peru?", ("Lima",), "mine")


def rolled(turns: Any, registry: Any, **options: Any) -> Rollout:
    router = create_router(ScriptedEngine(turns), registry)
    [rollout] = asyncio.run(roll_out(router, registry, [(TASK, 0.3)], **options))
    return rollout


def made(*, correct: bool = True, cost: float = 1e-5, weight: float = 0.5, **fields: Any) -> Rollout:
    given: dict[str, Any] = {
        "task": TASK, "cost_weight": weight, "prompt_ids": [1], "completion_ids": [2], "env_mask": [1],
        "logprobs": [0.0], "answer": "Lima" if correct else "Quito", "hops": [], "router_cost_usd": cost,
        "completion_cost_usd": cost, "format_ok": True, "turns": 1, "stop_reason": "answered",
    }  # fmt: skip
    return Rollout(**{**given, **fields})


def scale(*costs: float) -> CostScale:
    made_of = CostScale()
    made_of.add(costs or [1e-6 * n for n in range(1, 101)])
    return made_of


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
    [hop] = rollout.hops
    assert rollout.cost_usd() == hop["list_cost_usd"] == pytest.approx(13e-6)
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
        if any(segment["kind"] == "info" for segment in transcript):
            return answer("x")
        return search("slow: q?" if "question 0?" in transcript[0]["text"] else "quick: q?")

    ended: list[str] = []
    router = create_router(ScriptedEngine(write), registry)
    rollouts = asyncio.run(roll_out(router, registry, tasks, progress=lambda rollout: ended.append(rollout.task.id)))
    assert ended[-1] == "0"
    assert [rollout.task.id for rollout in rollouts] == [str(n) for n in range(8)]


# Rewards


def test_the_papers_equation_and_its_codes() -> None:
    """α = 0.5, a cost in the middle of the window: the parts by hand."""
    window = CostScale()
    window.add([0.0, 4e-6] * 50)
    right, wrong = made(cost=1e-6), made(cost=1e-6, correct=False)
    assert reward(right, window).total == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert reward(wrong, window).total == pytest.approx(0.5 * 0 + 0.5 * 0.5)
    assert reward(right, window, mode="gated").total == pytest.approx(0.5 + 0.5 * 0.5)
    assert reward(wrong, window, mode="gated").total == 0.0


costs = st.floats(min_value=0, max_value=1e-2, allow_nan=False)
weights = st.floats(min_value=0, max_value=1)
modes = st.sampled_from(["paper", "gated"])


@given(st.booleans(), costs, weights, modes)
def test_a_format_failure_zeroes_the_rest(correct: bool, cost: float, weight: float, mode: Any) -> None:
    rollout = made(correct=correct, cost=cost, weight=weight, format_ok=False)
    assert reward(rollout, scale(), mode=mode).total == FORMAT_FAILURE
    assert (reward(made(correct=correct, cost=cost, weight=weight), scale(), mode=mode).total or 0.0) >= FORMAT_FAILURE


@given(st.booleans(), costs, costs, weights, modes, st.lists(costs, max_size=50))
def test_at_equal_correctness_cheaper_is_never_worse(
    correct: bool, one: float, other: float, weight: float, mode: Any, seen: list[float]
) -> None:
    cheap, dear = sorted((one, other))
    window = scale(*seen)
    first = reward(made(correct=correct, cost=cheap, weight=weight), window, mode=mode).total
    second = reward(made(correct=correct, cost=dear, weight=weight), window, mode=mode).total
    assert first is not None
    assert second is not None
    assert first >= second


@given(costs, costs, modes)
def test_at_no_cost_weight_only_the_answer_counts(one: float, other: float, mode: Any) -> None:
    assert reward(made(cost=one, weight=0.0), scale(), mode=mode).total == 1.0
    assert reward(made(cost=other, weight=0.0, correct=False), scale(), mode=mode).total == 0.0


@given(st.text(max_size=200))
def test_nothing_a_routed_model_writes_changes_the_format_reward(reply: str) -> None:
    rollout = rolled([search("small: Capital of Peru?"), answer("Lima")], pool(small=f"Lima. {reply}"))
    assert rollout.format_ok
    assert reward(rollout, scale()).format == 0.0


def test_a_window_forgets_and_a_flat_one_says_nothing() -> None:
    window = CostScale(window=10)
    window.add([1.0] * 10)
    assert window.reward(1.0) == window.reward(0.0) == 0.5
    window.add([1e-6, 4e-6] * 5)
    assert window.reward(1e-6) == 1.0
    assert window.reward(1.0) == 0.0
    restored = CostScale.from_state_dict(window.state_dict())
    assert restored.state_dict() == window.state_dict()
    assert restored.reward(2e-6) == window.reward(2e-6)
    with pytest.raises(ValueError, match="must be 0 or more"):
        window.add([-1.0])


def test_a_batch_is_held_against_one_window_without_what_cannot_be_scored() -> None:
    window = CostScale()
    batch = [made(cost=1e-6), unscorable(TASK, 0.5, "down"), made(cost=9e-6)]
    scored = rewards(batch, window)
    assert len(window.state_dict()["roots"]) == 2
    assert scored[1].total is None
    assert (scored[0].cost, scored[2].cost) == (1.0, 0.0)


def test_unknown_modes_and_metrics_are_named() -> None:
    with pytest.raises(ValueError, match="mode is 'papers'"):
        reward(made(), scale(), mode="papers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric is 'rouge'"):
        reward(made(), scale(), metric="rouge")
