"""Rollouts for training, made by the graph that serves: tasks in, token ids with masks and log-probabilities out.

Many trajectories are in flight, each at its own pace: none waits for the slowest call of a turn. What a router sampled
is in the transcript token for token, so nothing is rendered or encoded again here.

    calls = Calls()
    pool = share_calls(registry, SqliteCache(path="replies.sqlite"), per_model=16, calls=calls)
    rollouts = await roll_out(create_router(engine, pool), pool, tasks)
    print(f"{calls.made} of {calls.asked} routed calls were made")
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.cache.base import BaseCache
from typing_extensions import override

from langgraph_router_r1 import RoutedCall, RouterContext, protocol
from langgraph_router_r1.candidates import build_model
from langgraph_router_r1.engines import EngineError
from langgraph_router_r1.evaluation.cache import remember
from langgraph_router_r1.evaluation.recorded import TASK_ID
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.ledger import PER_MILLION
from langgraph_router_r1.registry import ModelDescriptor, ModelRegistry
from langgraph_router_r1.state import StopReason
from langgraph_router_r1.transcript import Segment, sampled_mask, token_ids

OUTPUT = ["answer", "routing", "transcript"]

NO_TIMEOUT_S = 24 * 3600.0
"""Of a shared model as seen from outside: its own timeout begins when its turn has come."""


@dataclass(frozen=True)
class Rollout:
    """One trajectory, flat: what the trainer learns from, and the facts that its reward is made of.

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
    answer: str
    hops: list[RoutedCall]
    router_cost_usd: float
    completion_cost_usd: float
    """What the routed models' completion tokens cost at list price."""
    format_ok: bool
    turns: int
    stop_reason: StopReason | None
    failed: str | None = None
    """The infrastructure failure because of which it can't be scored; None when it can."""

    @property
    def is_scorable(self) -> bool:
        """Whether it is to learn from: nobody else broke it, and something was sampled (the context was not full)."""
        return self.failed is None and any(self.env_mask)

    def cost_usd(self, basis: Literal["full", "completion"] = "full") -> float:
        """Return what it cost at list price, in dollars: everything, or the completions alone (as the paper counts)."""
        if basis == "completion":
            return self.completion_cost_usd
        return sum(hop["list_cost_usd"] for hop in self.hops) + self.router_cost_usd


async def roll_out(
    router: Runnable[Any, Any],
    registry: ModelRegistry,
    tasks: Sequence[tuple[Task, float]],
    *,
    in_flight: int = 64,
    timeout_s: float = 120.0,
    progress: Callable[[Rollout], object] = lambda _: None,
) -> list[Rollout]:
    """Run the router over tasks, each at its cost weight; return one rollout a task, in order.

    Args:
        router: A compiled router; to learn from its rollouts, its engine has to record log-probabilities.
        registry: Its pool.
        tasks: Tasks with cost weights.
        in_flight: Most trajectories at a time.
        timeout_s: Most seconds for one of them; one that takes longer can't be scored.
        progress: Told of each as it ends.

    Make all rollouts of a training run in one event loop (an `asyncio.Runner`): in a second loop, routed models are
    called by their blocking form, in a thread each.
    """
    gate = asyncio.Semaphore(in_flight)

    async def one(task: Task, cost_weight: float) -> Rollout:
        async with gate:
            rollout = await _one(router, registry, task, cost_weight, timeout_s)
        progress(rollout)
        return rollout

    return list(await asyncio.gather(*(one(task, cost_weight) for task, cost_weight in tasks)))


async def _one(
    router: Runnable[Any, Any], registry: ModelRegistry, task: Task, cost_weight: float, timeout_s: float
) -> Rollout:
    try:
        async with asyncio.timeout(timeout_s):
            result = await router.ainvoke(
                {"messages": [("user", task.question)]},
                {"metadata": {TASK_ID: task.id}},
                context=RouterContext(cost_weight=cost_weight),
                output_keys=OUTPUT,
            )
    except TimeoutError:
        return unscorable(task, cost_weight, f"it took more than {timeout_s:g} s")
    except EngineError as error:
        return unscorable(task, cost_weight, f"the router could not be sampled: {error}")
    return flatten(task, cost_weight, result, registry)


def flatten(task: Task, cost_weight: float, result: dict[str, Any], registry: ModelRegistry) -> Rollout:
    """Return a run of the graph as a rollout.

    Args:
        task: What was asked.
        cost_weight: At which weight.
        result: Answer, routing and transcript of the run.
        registry: The pool it could ask.
    """
    transcript: list[Segment] = result["transcript"]
    prompt, *rest = transcript
    logprobs: list[float] = []
    for segment in rest:
        unknown = math.nan if segment["kind"] == "model" else 0.0
        logprobs += segment.get("logprobs", [unknown] * len(segment["token_ids"]))
    hops: list[RoutedCall] = result["routing"]["hops"]
    segments = [(segment["kind"], segment["text"]) for segment in transcript]
    broken = [hop["reason"] for hop in hops if hop["status"] == "error"]
    return Rollout(
        task=task,
        cost_weight=cost_weight,
        prompt_ids=list(prompt["token_ids"]),
        completion_ids=token_ids(rest),
        env_mask=sampled_mask(rest),
        logprobs=logprobs,
        answer=result["answer"],
        hops=hops,
        router_cost_usd=result["routing"]["router_cost_usd"],
        completion_cost_usd=sum(
            PER_MILLION * registry[hop["answered_by"]].price.completion * hop["usage"]["completion_tokens"]
            for hop in hops
            if hop["answered_by"] is not None
        ),
        format_ok=protocol.check_format(segments, registry.aliases) is None,
        turns=result["routing"]["turns"],
        stop_reason=result["routing"]["stop_reason"],
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
    return Rollout(task, cost_weight, [], [], [], [], "", [], 0.0, 0.0, False, 0, None, reason)


@dataclass
class Calls:
    """What a pool was asked, and what of it had to be made: the rest was known, or being asked already."""

    asked: int = 0
    made: int = 0

    @property
    def made_share(self) -> float:
        """Calls made for each call asked, 0 to 1; 0 when nothing was asked."""
        return self.made / self.asked if self.asked else 0.0

    def ask(self) -> None:
        """Count a call that somebody wants the reply of."""
        self.asked += 1

    def make(self) -> None:
        """Count a call that goes out."""
        self.made += 1


def share_calls(
    registry: ModelRegistry, cache: BaseCache[Any], *, per_model: int | None = None, calls: Calls | None = None
) -> ModelRegistry:
    """Return the registry as many trajectories share it: see `remember`, with so many calls to a model at a time.

    A known reply, or one that is being waited for, takes nobody's turn and counts against no rate limit. Waiting for
    one's turn is not part of a model's timeout. Calls that block are remembered and counted, and neither wait for
    others nor time out here: `roll_out` makes none.

    Args:
        registry: The pool.
        cache: Keeps the replies; one on disk keeps them across epochs.
        per_model: Most calls in flight to one model; None for no limit.
        calls: Where calls are counted; attempts, when a model is tried again.

    Raises:
        ValueError: `per_model` is less than 1.
    """
    if per_model is not None and per_model < 1:
        raise ValueError(f"per_model is {per_model!r}; it must be 1 or more calls at a time, or None for no limit")
    counted = Calls() if calls is None else calls
    made = ModelRegistry(_stand_in(model, _Shared(model, counted.make, per_model)) for model in registry)
    asked = (_stand_in(model, _Shared(model, counted.ask)) for model in remember(made, cache))
    return ModelRegistry(asked, profile=registry.profile)


class _Shared(Runnable[Any, Any]):
    """One model whose calls are counted, and wait while too many are in flight or it is not their time yet."""

    def __init__(self, descriptor: ModelDescriptor, count: Callable[[], None], at_once: int | None = None) -> None:
        self._descriptor, self._count, self._at_once = descriptor, count, at_once
        rate = descriptor.requests_per_second
        self._limiter = InMemoryRateLimiter(requests_per_second=rate, max_bucket_size=1) if rate else None
        self._model: Runnable[Any, Any] | None = None
        # A semaphore belongs to the event loop it was first waited for in.
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if self._limiter:
            self._limiter.acquire()
        self._count()
        return self._built().invoke(input, config, **kwargs)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if self._at_once is None:
            return await self._timed(input, config, **kwargs)
        loop = asyncio.get_running_loop()
        async with self._turns.setdefault(loop, asyncio.Semaphore(self._at_once)):
            return await self._timed(input, config, **kwargs)

    async def _timed(self, messages: Any, config: RunnableConfig | None, **kwargs: Any) -> Any:
        if self._limiter:
            await self._limiter.aacquire()
        self._count()
        try:
            async with asyncio.timeout(self._descriptor.timeout_s):
                return await self._built().ainvoke(messages, config, **kwargs)
        except TimeoutError:
            raise NoReplyInTimeError(f"no reply within {self._descriptor.timeout_s:g} s") from None

    def _built(self) -> Runnable[Any, Any]:
        if self._model is None:
            self._model = build_model(self._descriptor)
        return self._model


class NoReplyInTimeError(RuntimeError):
    """A model did not reply within its timeout, counted from when its turn had come."""


def _stand_in(model: ModelDescriptor, runnable: Runnable[Any, Any]) -> ModelDescriptor:
    """Return the descriptor with this Runnable in place of the model, and else as it was to all who read it."""
    # What it was is part of the key under which replies are kept: another model of the same name has others.
    named = {"model": model.model} if isinstance(model.model, str) else {}
    bound = {"max_tokens": model.max_tokens} if model.is_bounded else {}
    return model.model_copy(
        update={
            "model": runnable,
            "params": {**model.params, **named, **bound},
            "max_retries": model.retries,
            "timeout_s": NO_TIMEOUT_S,
            "requests_per_second": None,
        }
    )
