"""Runs of the server: each in a task of its own, which writes how it ended whatever happens to its client."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command

from langgraph_router_r1.accounting import spending
from langgraph_router_r1.engines.base import EngineError
from langgraph_router_r1.events import RouterEvent
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.question import question_images
from langgraph_router_r1.record import RECORD_KEYS, RunRecord
from langgraph_router_r1.serving.broken_off import broken_off, is_known
from langgraph_router_r1.serving.errors import ApiError, invalid
from langgraph_router_r1.serving.metrics import Metrics
from langgraph_router_r1.serving.options import ServerSettings
from langgraph_router_r1.serving.store import (
    LEASE_S,
    NOBODY,
    SHADOW,
    Account,
    OverBudgetError,
    RunStatus,
    Store,
    StoredRun,
)
from langgraph_router_r1.serving.targets import ROUTER, Target, Targets
from langgraph_router_r1.serving.wire import Asked
from langgraph_router_r1.state import RouterContext, RunReport

logger = logging.getLogger(__name__)

INTERRUPT = "__interrupt__"
"""LangGraph's key for what a run waits for."""

RETRY_AFTER_S = 1.0
"""When a request can be tried again that came when the server was full."""


class Run:
    """A run that was accepted: its events while it runs, and its record at the end."""

    def __init__(self, run_id: str, asked: Asked, target: Target) -> None:
        """Describe it; `Runs.start` starts it."""
        self.id, self.asked, self.target = run_id, asked, target
        self.created_at = time.time()
        self.stored: StoredRun
        """Its row, as it was accepted."""
        self.task: asyncio.Task[None] | None = None
        self.values: dict[str, Any] = {}
        """The state of the graph, with its `RECORD_KEYS` and `routing`, as far as it came."""
        self.error: ApiError | None = None
        """Why it broke off."""
        self.approval: dict[str, Any] | None = None
        """The request to decide on its calls, in the form of LangChain's `HumanInTheLoopMiddleware`: it waits."""
        self.has_ended = False
        """Whether its graph came to its end, with an answer or without one."""
        self.is_over = False
        """Whether it only has to be recorded."""
        self._recorded = asyncio.Event()
        self._events: asyncio.Queue[RouterEvent | None] = asyncio.Queue()

    @property
    def traces(self) -> bool:
        """Whether its client is to see thoughts, calls and replies."""
        return self.target.trace if self.asked.options.trace is None else self.asked.options.trace

    @property
    def is_heard(self) -> bool:
        """Whether its events are wanted, and not only its end."""
        return self.asked.stream or self.traces

    async def events(self, wait_s: float) -> AsyncIterator[RouterEvent | None]:
        """Yield its events until it is over; None whenever there was none for so many seconds."""
        while True:
            if self._events.empty():
                try:
                    event = await asyncio.wait_for(self._events.get(), wait_s)
                except TimeoutError:
                    yield None
                    continue
            else:
                event = self._events.get_nowait()
            if event is None:
                return
            yield event

    def take(self, event: RouterEvent | None) -> None:
        """Pass an event on; None ends them, when the run is recorded."""
        self._events.put_nowait(event)
        if event is None:
            self._recorded.set()

    async def result(self) -> dict[str, Any]:
        """Wait for its end; return `values`.

        Raises:
            ApiError: It broke off.
        """
        await self._recorded.wait()
        if self.error is not None:
            raise self.error
        return self.values

    def cancel(self) -> None:
        """Break it off, with its routed calls; what it has spent is recorded."""
        if self.task is not None and not self.is_over:
            self.task.cancel()


class Runs:
    """Starts runs, and keeps what came of them."""

    def __init__(
        self,
        store: Store,
        saver: BaseCheckpointSaver[Any],
        targets: Targets,
        settings: ServerSettings,
        metrics: Metrics,
    ) -> None:
        """Serve these targets; `targets` and `settings` may be replaced at any time, for the runs that begin then."""
        self.targets, self.settings = targets, settings
        self.store, self.metrics = store, metrics
        self._saver = saver
        self._open: dict[str, Run] = {}
        self.is_stopping = False
        """Whether it accepts nothing more."""

    async def start(
        self,
        asked: Asked,
        target: Target,
        account: Account = NOBODY,
        *,
        client_id: str | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Accept a request: from here on it has a row, and its run goes on until it ends, waits or is cancelled.

        Args:
            asked: What is asked.
            target: Who is asked.
            account: Who pays.
            client_id: The `X-Client-Request-Id` of the request.
            run_id: The id of the run, if it has one already.

        Raises:
            ApiError: It is refused.
        """
        self._check_images(asked)
        self._check_room()
        run = Run(run_id or f"run-{uuid.uuid4().hex}", asked, target)
        self._open[run.id] = run
        try:
            run.stored = await self.store.accept(
                run.id,
                model=asked.model,
                question=asked.question,
                key=account.name,
                client_id=client_id,
                allowance=account.allowance,
                want_usd=_smallest(asked.options.budget_usd, self.settings.run_budget_usd, account.run_usd),
            )
        except BaseException as error:
            del self._open[run.id]
            if isinstance(error, OverBudgetError):
                raise _over_budget(error) from None
            raise
        context = RouterContext(
            cost_weight=_first(asked.options.cost_weight, target.cost_weight),
            budget_usd=run.stored.reserved_usd,
            tools=asked.tools,
            stream="thought" if run.traces else "answer",
        )
        await self._begin(run, {"messages": asked.messages}, context)
        return run

    async def resume(self, asked: Asked, target: Target, run_id: str, decisions: list[dict[str, Any]]) -> Run:
        """Go on with a run that waits, by what was decided on its calls. Decisions that can't be used are asked again.

        Raises:
            ApiError: It does not wait, or there is no room for it now.
        """
        self._check_room()
        if (stored := await self.store.resume(run_id)) is None:
            raise ApiError(409, "the run does not wait for decisions", "not_waiting")
        run = Run(run_id, asked, target)
        run.stored = stored
        self._open[run.id] = run
        # Its limits are in its state.
        await self._begin(run, Command(resume={"decisions": decisions}), RouterContext(stream="thought"))
        return run

    async def approval(self, run_id: str) -> dict[str, Any] | None:
        """Return what a run that waits asks for; None if it does not wait."""
        state = await self.targets.reader.aget_state(_config(run_id))
        return state.interrupts[0].value if state.interrupts else None

    def _check_room(self) -> None:
        if self.is_stopping:
            raise ApiError(503, "the server is stopping", "stopping", retry_after_s=RETRY_AFTER_S)
        if len(self._open) >= self.settings.max_concurrent:
            message = f"{self.settings.max_concurrent} runs are running, and that is the limit; try again"
            raise ApiError(429, message, "too_many_runs", retry_after_s=RETRY_AFTER_S)

    async def _begin(self, run: Run, given: Any, context: RouterContext) -> None:
        self.metrics.running.inc()
        run.task = asyncio.create_task(self._work(run, given, context), name=run.id)
        await asyncio.sleep(0)  # a task that is cancelled before it begins would write nothing

    async def _work(self, run: Run, given: Any, context: RouterContext) -> None:
        status: RunStatus = "ended"
        try:
            async with asyncio.timeout(self.settings.run_timeout_s):
                async for mode, item in run.target.graph.astream(
                    given,
                    _config(run.id),
                    context=context,
                    stream_mode=["custom", "values"] if run.is_heard else ["values"],
                    output_keys=[*RECORD_KEYS, "routing", "in_flight_usd"],
                    # Each step waits for its checkpoint: a killed server then knows of every step that was taken.
                    durability="sync",
                ):
                    if mode == "custom":
                        run.take(cast("RouterEvent", item))
                    elif INTERRUPT in item:
                        [interrupt] = cast("dict[str, Any]", item)[INTERRUPT]
                        run.approval, status = interrupt.value, "waiting"
                    else:
                        run.values = cast("dict[str, Any]", item)
            run.has_ended = status == "ended"
            if run.has_ended and (problem := without_answer(run)) is not None:
                status, run.error = "failed", problem
        except asyncio.CancelledError:
            status = "cancelled"
            run.error = ApiError(503, "the run was cancelled", "cancelled", run_id=run.id)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run is over and has spent something
            status = "failed"
            run.error = self._explained(error, run.id)
        run.is_over = True
        try:
            await self._settle(run, status)
        finally:
            run.take(None)
            del self._open[run.id]
            self.metrics.running.dec()

    async def _settle(self, run: Run, status: RunStatus) -> None:
        record: RunRecord | None
        try:
            if run.has_ended or status == "waiting":
                record = RunRecord.of(run.values)
                spent = spending(record.report["cost_usd"], record.report["maybe_cost_usd"])
            else:
                # A run that was resumed has no values until its first step.
                values = run.values if run.values and is_known(run.values) else await self._checkpoint(run.id)
                spent, record = broken_off(values, run.target.router_price)
            if status == "waiting":
                assert record is not None
                await self.store.pause(run.id, spent, record)
                return
            error = None if run.error is None else run.error.code
            await self.store.settle(run.stored, status, spent, record, error)
        except Exception:
            # Its lease ends, and `look_after` settles it from its checkpoints.
            logger.exception("%s could not be recorded", run.id)
            return
        if record is not None:
            made = [call for call in record.calls if (call["turn"], call["index"]) not in run.target.kept]
            record = record.model_copy(update={"calls": made})
        seconds = time.time() - run.created_at
        self.metrics.ended(run.target.model or ROUTER, status, seconds, record, self.targets.registry)

    async def _checkpoint(self, run_id: str) -> dict[str, Any]:
        """Return the state of a run from its latest checkpoint, with the replies that came since."""
        values: dict[str, Any] = (await self.targets.reader.aget_state(_config(run_id))).values
        return values

    def _router_price(self, lost: StoredRun, values: dict[str, Any]) -> Price | None:
        """Return what the own tokens of the router of a lost run cost; None if nobody knows."""
        if "strategy" in values:
            return Price.parse(values["strategy"]["price"])
        # Nothing was decided yet: it was this server's router, or that of a shadow, which may have been another one.
        return None if lost.key.startswith(SHADOW) else self.targets.price_of(lost.model)

    def _explained(self, error: Exception, run_id: str) -> ApiError:
        """Return what a client is told; the words of an error may hold addresses, and go into the log."""
        match error:
            case TimeoutError():
                message = f"the run took longer than {self.settings.run_timeout_s:g} s, and was broken off"
                return ApiError(504, message, "timeout", run_id=run_id)
            case EngineError():
                logger.error("%s: %s", run_id, error)
                return ApiError(502, "the router LLM does not answer", "router_unavailable", run_id=run_id)
            case _:
                logger.error("%s failed", run_id, exc_info=error)
                return ApiError(500, "the run failed; the server's log says why", "run_failed", run_id=run_id)

    def _check_images(self, asked: Asked) -> None:
        if question_images(asked.messages) and not any(model.reads_images for model in self.targets.registry):
            raise invalid("the question has an image, and no model here reads images", "messages")

    async def look_after(self) -> None:
        """Renew the leases of open runs, and settle those that a dead server, or a broken database, left behind.

        It runs until it is cancelled.
        """
        while True:
            try:
                await self.store.renew(list(self._open))
                for lost in await self.store.take_lost():
                    values = await self._checkpoint(lost.id)
                    spent, record = broken_off(values, self._router_price(lost, values))
                    await self.store.settle(lost, "lost", spent, record, "lost")
                    logger.warning("%s was lost", lost.id)
                for run_id in await self.store.ended_with_checkpoints():
                    await self._saver.adelete_thread(run_id)  # the record has everything
            except Exception:
                logger.exception("the database can't be used")
            await asyncio.sleep(LEASE_S / 5)

    async def stop(self) -> None:
        """Accept nothing more, break off what runs, and wait until it is recorded."""
        self.is_stopping = True
        open_runs = list(self._open.values())
        for run in open_runs:
            run.cancel()
        await asyncio.gather(*(run.task for run in open_runs if run.task is not None), return_exceptions=True)


def without_answer(run: Run) -> ApiError | None:
    """Return why a run that came to its end has no answer that its client can use; None if it has one."""
    routing: RunReport = run.values["routing"]
    if run.target.model is not None:
        call = routing["calls"][-1]
        if call["status"] == "ok":
            return None
        if call["status"] == "over_budget":
            return ApiError(429, f"{call['reason']}", "insufficient_quota", run_id=run.id)
        return ApiError(502, f"{call['reason']}", "model_failed", run_id=run.id)
    may_spend, decisions = run.stored.reserved_usd, run.values["decisions"]
    if may_spend is None:
        return None
    if routing["stop_reason"] == "budget_exhausted" and not run.values["answer"]:
        thought = re.sub(r"</?think>", "", decisions[-1]["thought"] or "").strip()  # the planner's says why
        why = thought or "that does not pay for the worst case of the router's turn"
    elif (
        # The router LLM had to answer in its first turn, and had not used up its turns or its tries. What was streamed
        # can't be taken back. Who asks for a run of no dollars gets what the router LLM knows.
        routing["stop_reason"] == "forced_answer"
        and len(decisions) == 1
        and run.values["limits"]["max_turns"] > 0
        and may_spend > 0
        and not run.is_heard
    ):
        why = "that does not pay for the worst case of a call to any model and of the router's answer after it"
    else:
        return None
    return ApiError(429, f"the run may spend ${may_spend:.6f}: {why}", "insufficient_quota", run_id=run.id)


def _config(run_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": run_id}}


def _smallest(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _over_budget(error: OverBudgetError) -> ApiError:
    if error.reason == "rate":
        message = "the key has asked as often as it may in a minute"
        return ApiError(429, message, "rate_limit_exceeded", retry_after_s=error.retry_after_s)
    resets = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=error.retry_after_s)
    message = f"the key has spent its budget of this {error.reason}; the next one begins at {resets:%Y-%m-%d %H:%M} UTC"
    return ApiError(429, message, "insufficient_quota", retry_after_s=error.retry_after_s)
