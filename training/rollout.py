"""Rollouts for training, made by the graph that serves: tasks in, token ids with masks and log-probabilities out.

Many trajectories are in flight, each at its own pace: none waits for the slowest call of a turn. What a router sampled
is in the transcript token for token, so nothing is rendered or encoded again here.

    calls = Calls()
    shared = share_calls(registry, SqliteCache(path="replies.sqlite"), per_model=16, calls=calls)
    rollouts = await roll_out(create_router(engine, registry, middleware=shared), registry, tasks)
    print(f"{calls.made} of {calls.asked} routed calls were made")
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langgraph.cache.base import BaseCache
from typing_extensions import override

from langgraph_router_r1 import RoutedCall, RouterContext
from langgraph_router_r1.calls import CallCache, CallMiddleware, ModelCall
from langgraph_router_r1.calls.middleware import AsyncSend, RateLimit, Send
from langgraph_router_r1.engines import EngineError
from langgraph_router_r1.evaluation.recorded import TASK_ID
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.ledger import NO_COST, CostParts, sum_of
from langgraph_router_r1.record import RECORD_KEYS, RunRecord
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.transcript import sampled_mask, token_ids, trajectory_of
from training.parts import ROUTER, Part


@dataclass(frozen=True)
class Rollout:
    """One trajectory: the record of its run, and its tokens laid out for the trainer.

    `len(completion_ids) == len(env_mask) == len(logprobs)`; `env_mask` is 1 exactly on what the router sampled.
    """

    task: Task
    cost_weight: float
    """What its prompt said of money, 0 to 1."""
    prompt_ids: list[int]
    completion_ids: list[int]
    """Everything after the prompt: the router's turns, and what the environment put between them."""
    env_mask: list[int]
    logprobs: list[float]
    """Of the sampled tokens as they were sampled, not a number where the engine recorded none; 0 elsewhere."""
    record: RunRecord | None
    """What was called, paid and answered; None when the run was broken off."""
    format_ok: bool
    failed: str | None = None
    """The infrastructure failure because of which it can't be scored; None when it can."""

    @property
    def answer(self) -> str:
        """The answer; empty when there is none."""
        return self.record.answer if self.record else ""

    @property
    def calls(self) -> list[RoutedCall]:
        """The routed calls."""
        return self.record.calls if self.record else []

    @property
    def turns(self) -> int:
        """Route turns."""
        return self.record.report["turns"] if self.record else 0

    @property
    def cost_parts(self) -> CostParts:
        """What it cost at list price, in dollars, by part."""
        return self.record.report["list_cost_parts"] if self.record else NO_COST

    @property
    def is_scorable(self) -> bool:
        """Whether it is to learn from: nobody else broke it, and something was sampled (the context was not full)."""
        return self.failed is None and any(self.env_mask)

    def cost_usd(self, basis: Literal["full", "completion"] = "full") -> float:
        """Return what it cost at list price, in dollars: everything, or the completions alone (as the paper counts)."""
        return self.cost_parts["completion"] if basis == "completion" else sum_of(self.cost_parts)


async def roll_out(
    router: Runnable[Any, Any],
    registry: ModelRegistry,
    tasks: Sequence[tuple[Task, float]],
    *,
    in_flight: int = 64,
    timeout_s: float = 120.0,
    policy: str | None = None,
    part: Part = ROUTER,
    progress: Callable[[Rollout], object] = lambda _: None,
) -> list[Rollout]:
    """Run the router over tasks, each at its cost weight; return one rollout a task, in order.

    Args:
        router: A compiled router; to learn from its rollouts, its engine has to record log-probabilities.
        registry: Its pool.
        tasks: Tasks with cost weights.
        in_flight: Most trajectories at a time.
        timeout_s: Most seconds for one of them; one that takes longer can't be scored.
        policy: Whose tokens are to learn from, by its engine's name; by default of whoever wrote first.
        part: Which part of the router that is.
        progress: Told of each as it ends.

    Make all rollouts of a training run in one event loop (an `asyncio.Runner`): in a second loop, routed models are
    called by their blocking form, in a thread each.
    """
    gate = asyncio.Semaphore(in_flight)

    async def one(task: Task, cost_weight: float) -> Rollout:
        async with gate:
            record = await _one(router, task, cost_weight, timeout_s)
            rollout = (
                unscorable(task, cost_weight, record)
                if isinstance(record, str)
                else flatten(task, cost_weight, record, registry, policy=policy, part=part)
            )
        progress(rollout)
        return rollout

    return list(await asyncio.gather(*(one(task, cost_weight) for task, cost_weight in tasks)))


async def _one(router: Runnable[Any, Any], task: Task, cost_weight: float, timeout_s: float) -> RunRecord | str:
    """Return the record of a run, or why there is none."""
    try:
        async with asyncio.timeout(timeout_s):
            result = await router.ainvoke(
                {"messages": [("user", task.question)]},
                {"metadata": {TASK_ID: task.id}},
                context=RouterContext(cost_weight=cost_weight),
                output_keys=RECORD_KEYS,
            )
    except TimeoutError:
        return f"it took more than {timeout_s:g} s"
    except EngineError as error:
        return f"the router could not be sampled: {error}"
    return RunRecord.of(result)


def flatten(
    task: Task,
    cost_weight: float,
    record: RunRecord,
    registry: ModelRegistry,
    *,
    policy: str | None = None,
    part: Part = ROUTER,
) -> Rollout:
    """Return a run of the graph as a rollout.

    Args:
        task: What was asked.
        cost_weight: At which weight.
        record: The record of the run.
        registry: The pool it could ask.
        policy: Whose tokens are to learn from, by its engine's name; by default of whoever wrote first.
        part: Which part of the router that is.
    """
    own = record.segments if policy is None else trajectory_of(policy, record.segments)
    prompt, rest = (own[0]["token_ids"], own[1:]) if own else ([], [])
    logprobs: list[float] = []
    for segment in rest:
        unknown = math.nan if segment["kind"] == "policy" else 0.0
        logprobs += segment.get("logprobs", [unknown] * len(segment["token_ids"]))
    broken = [call["reason"] for call in record.calls if call["status"] in {"error", "resting"}]
    return Rollout(
        task=task,
        cost_weight=cost_weight,
        prompt_ids=list(prompt),
        completion_ids=token_ids(rest),
        env_mask=sampled_mask(rest),
        logprobs=logprobs,
        record=record,
        format_ok=part.fault(record, registry) is None,
        failed=str(broken[0]) if broken else None,
    )


def require_logprobs(rollout: Rollout) -> None:
    """Refuse a rollout whose sampler did not say how probable its tokens were: it would count as certain of each.

    Raises:
        ValueError: Log-probabilities are missing.
    """
    if any(map(math.isnan, rollout.logprobs)):
        raise ValueError(
            f"the rollout of task {rollout.task.id!r} has no log-probabilities: its engine must record them "
            "(VLLMEngine: logprobs=True)"
        )


def unscorable(task: Task, cost_weight: float, reason: str) -> Rollout:
    """Return the rollout that stands for a trajectory with an infrastructure failure."""
    return Rollout(task, cost_weight, [], [], [], [], record=None, format_ok=False, failed=reason)


@dataclass
class Calls:
    """What a pool was asked, and what of it had to be made: the rest was known, or being asked already."""

    asked: int = 0
    made: int = 0

    @property
    def made_share(self) -> float:
        """Calls made for each call asked, 0 to 1; 0 when nothing was asked."""
        return self.made / self.asked if self.asked else 0.0


def share_calls(
    registry: ModelRegistry, cache: BaseCache[Any], *, per_model: int | None = None, calls: Calls | None = None
) -> list[CallMiddleware]:
    """Return the middleware by which many trajectories share a pool: a cache, and so many calls to a model at a time.

    A known reply, or one that is being waited for, takes nobody's turn and counts against no rate limit. Waiting for
    one's turn is not part of a model's timeout. Calls that block are remembered and counted, and don't wait for others:
    `roll_out` makes none.

    Args:
        registry: The pool. Calls to others than its models, as a drawn pool has them, are counted and not remembered.
        cache: Keeps the replies; one on disk keeps them across epochs.
        per_model: Most calls in flight to one model; None for no limit.
        calls: Where calls are counted; attempts, when a model is tried again.

    Raises:
        ValueError: `per_model` is less than 1.
    """
    if per_model is not None and per_model < 1:
        raise ValueError(f"per_model is {per_model!r}; it must be 1 or more calls at a time, or None for no limit")
    counted = Calls() if calls is None else calls
    return [_Asked(counted), _PoolCache(registry, cache), _InTurn(per_model), RateLimit(), _Made(counted)]


class _Asked(CallMiddleware):
    """Counts the calls that somebody wants the reply of."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @override
    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        self._count()
        return proceed(call)

    @override
    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        self._count()
        return await proceed(call)

    def _count(self) -> None:
        self._calls.asked += 1


class _Made(_Asked):
    """Counts the calls that go out."""

    each_attempt = True

    @override
    def _count(self) -> None:
        self._calls.made += 1


class _PoolCache(CallCache):
    """Keeps the replies of the models of one pool, whatever a descriptor says of them."""

    def __init__(self, registry: ModelRegistry, cache: BaseCache[Any]) -> None:
        super().__init__(cache)
        self._models = {model.name: model.model for model in registry}

    @override
    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        return super().wrap_call(call, proceed) if self._is_of_pool(call) else proceed(call)

    @override
    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        return await (super().awrap_call(call, proceed) if self._is_of_pool(call) else proceed(call))

    def _is_of_pool(self, call: ModelCall) -> bool:
        return bool(self._models.get(call.model.name) == call.model.model)


class _InTurn(CallMiddleware):
    """Lets at most so many calls to a model be in flight at a time."""

    def __init__(self, at_once: int | None) -> None:
        self._at_once = at_once
        # A semaphore belongs to the event loop it was first waited for in.
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]] = WeakKeyDictionary()

    @override
    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        return proceed(call)

    @override
    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        if self._at_once is None:
            return await proceed(call)
        of_loop = self._turns.setdefault(asyncio.get_running_loop(), {})
        async with of_loop.setdefault(call.model.name, asyncio.Semaphore(self._at_once)):
            return await proceed(call)
