"""Measure a pool: ask every model a sample of tasks, and write what came out into the registry's file.

    tasks = sample_by_kind(load_tasks("nq"), split="train", sample=200)
    measured = await profile(registry, tasks, path="models.profile.jsonl", budget_usd=0.50)
    write_profile("models.toml", measured)

Every reply is kept in `path` as it comes. A run that was stopped goes on where it was; `KNNStrategy` routes by that
file.

Latency is that of calls made one at a time over the whole pool: the first `TIMED` tasks of each model. Many calls at a
time wait for each other, so the rest, which are, count for everything else. All go task by task and not model by
model: wherever a budget ends, the models that it could pay were measured on the same tasks, give or take a few.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import itertools
import math
import random
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
from langchain_core.runnables import RunnableLambda
from tomlkit.items import InlineTable, Table

from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.descriptor import Accuracy, Measured, ModelDescriptor
from langgraph_router_r1.evaluation.budgets import CallBudget
from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.metrics import wilson
from langgraph_router_r1.evaluation.recorded import TASK_ID, Outcome, outcome_cost, quality
from langgraph_router_r1.evaluation.recorder import Recorder
from langgraph_router_r1.evaluation.tasks import Split, Task, TaskError, draw
from langgraph_router_r1.ledger import estimate_tokens
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.protocol import fold
from langgraph_router_r1.registry import ModelRegistry, RegistryError
from langgraph_router_r1.state import PlannedCall, RoutedCall

TIMED = 20
"""Tasks of each model that are asked with nothing else in flight, for its latency."""

MAX_FAILURES_WITHOUT_REPLY = 5
"""A model that has failed so often and never replied is not asked any more."""


@dataclass
class ProfileProgress:
    """How far a model is."""

    model: str
    of: int
    """Tasks it is to be asked."""
    done: int = 0
    """Those it was asked, in this run or, when there is a reply, in an earlier one."""
    failed: int = 0
    """Those of them to which it gave no reply, or an empty one."""
    spent_usd: float = 0.0
    """In this run."""
    last_failure: str | None = None
    stopped: str | None = None
    """Why it is not asked any more, before all its tasks are done."""


def sample_by_kind(
    tasks: Iterable[Task], *, split: Split | None = None, sample: int | None = None, seed: int = 0
) -> list[Task]:
    """Return at most `sample` tasks of each kind, the kinds mixed; the same for the same seed."""
    by_kind: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_kind[task.kind].append(task)
    drawn = [task for kind in sorted(by_kind) for task in draw(by_kind[kind], split=split, sample=sample, seed=seed)]
    return random.Random(seed).sample(sorted(drawn, key=lambda task: task.id), len(drawn))  # noqa: S311 - no secret


async def profile(
    registry: ModelRegistry,
    tasks: Sequence[Task],
    *,
    path: str | Path,
    in_flight: int = 32,
    budget_usd: float | None = None,
    progress: Callable[[ProfileProgress], None] | None = None,
) -> dict[str, Measured]:
    """Ask every model every task, and return what was measured, by model.

    Models are measured without their fallbacks. One that was not asked anything is missing in what is returned.

    Args:
        registry: The pool.
        tasks: What to ask; see `sample_by_kind`.
        path: File of the replies, a JSON object a line. What it holds already is not asked again.
        in_flight: Most calls at the same time; a model's `requests_per_second` holds besides.
        budget_usd: The most this run may spend, in dollars; a call that could exceed it is not made.
        progress: Told of each model at the start, and again whenever it is a task further.

    Raises:
        TaskError: There are no tasks, or one has no golden answers, or the file can't be written or is none of recorded
            answers.
        ValueError: `in_flight` is less than 1.
    """
    if not tasks:
        raise TaskError("there are no tasks to ask")
    for task in tasks:
        if not task.golden_answers:
            raise TaskError(
                f"task {task.id!r} ({task.question!r}) has no golden answers to be scored by: a line of a file "
                "of tasks has 'golden_answers', a list of texts"
            )
    if in_flight < 1:
        raise ValueError(f"in_flight is {in_flight!r}; it must be 1 or more")
    alone = ModelRegistry(model.model_copy(update={"fallbacks": ()}) for model in registry)
    with Recorder(path, tasks) as recorder:
        run = _Run(alone, recorder, budget_usd, progress or (lambda _: None))
        await run.ask_one_at_a_time()
        try:
            await run.ask_the_rest(in_flight)
        except ExceptionGroup as group:  # of one: the first error ends the others
            raise group.exceptions[0] from None
    return {model.name: measured for model in registry if (measured := run.measured(model))}


class _Run:
    def __init__(
        self,
        registry: ModelRegistry,
        recorder: Recorder,
        budget_usd: float | None,
        progress: Callable[[ProfileProgress], None],
    ) -> None:
        self._tasks = list(recorder.tasks.values())
        self._recorded = recorder.pool.outcomes
        self._candidates = Candidates(registry, estimate_tokens, [recorder], Clients(rests=False))
        # Gives the call a run, whose metadata tell the recorder the task.
        self._ask = RunnableLambda(self._candidates.aask)
        self._budget = CallBudget(budget_usd)
        self._progress = progress
        self._unanswered: dict[str, set[str]] = {name: set() for name in registry.names}
        self._standings: dict[str, ProfileProgress] = {}
        for name in registry.names:
            known = [outcome for task in self._tasks if (outcome := self._outcome(task, name))]
            self._standings[name] = ProfileProgress(name, len(self._tasks), len(known), sum(map(_is_empty, known)))
            progress(self._standings[name])

    def _outcome(self, task: Task, model: str) -> Outcome | None:
        return self._recorded.get(task.id, {}).get(model)

    def _open(self, model: str) -> list[Task]:
        return [task for task in self._tasks if not self._outcome(task, model)]

    async def ask_one_at_a_time(self) -> None:
        lanes = []
        for name in self._standings:
            timed = [outcome for task in self._tasks if (outcome := self._outcome(task, name)) and outcome.alone]
            lanes.append([(task, name) for task in self._open(name)[: max(0, TIMED - len(timed))]])
        for calls in itertools.zip_longest(*lanes):
            for call in filter(None, calls):
                await self._ask_one(*call)

    async def ask_the_rest(self, in_flight: int) -> None:
        """Ask what is open, by so many workers that share one list."""
        rest = {name: {task.id for task in self._open(name)} - self._unanswered[name] for name in self._standings}
        calls = iter([(task, name) for task in self._tasks for name in self._standings if task.id in rest[name]])

        async def work() -> None:
            for task, name in calls:
                await self._ask_one(task, name)

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())

    async def _ask_one(self, task: Task, name: str) -> None:
        standing = self._standings[name]
        if standing.stopped:
            return
        worst = self._candidates.worst_case(name, task.question)
        if not await self._budget.reserve(worst):
            standing.stopped = f"{name} is not asked any more: the budget has no room for a call of up to ${worst:.2g}"
            self._progress(standing)
            return
        call: PlannedCall = {"turn": 0, "index": 0, "model": name, "query": task.question, "refusal": None}
        routed: RoutedCall = await self._ask.ainvoke(call, {"metadata": {TASK_ID: task.id}})
        maybe = routed["maybe_cost_usd"]
        await self._budget.settle(worst, routed["cost_usd"] + (math.inf if maybe is None else maybe))
        standing.done += 1
        standing.spent_usd += routed["cost_usd"]
        if routed["status"] != "ok":
            standing.failed += 1
            standing.last_failure = routed["reason"]
            if not self._outcome(task, name):
                self._unanswered[name].add(task.id)
            if standing.failed == standing.done >= MAX_FAILURES_WITHOUT_REPLY:
                standing.stopped = f"{name} is not asked any more: it failed {standing.failed} times and never replied"
        self._progress(standing)

    def measured(self, model: ModelDescriptor) -> Measured | None:
        outcomes = [(task, outcome) for task in self._tasks if (outcome := self._outcome(task, model.name))]
        return measure(model, outcomes, unanswered=len(self._unanswered[model.name]))


def measure(
    model: ModelDescriptor, outcomes: Sequence[tuple[Task, Outcome]], *, unanswered: int = 0
) -> Measured | None:
    """Return the figures of one model: its replies, and how many tasks it did not reply to. None if there is neither.

    Tokens that were not reported are estimated at four characters each.
    """
    asked = len(outcomes) + unanswered
    if not asked:
        return None
    replies = [(task, _with_usage(task, outcome)) for task, outcome in outcomes]
    by_kind: dict[str, list[float]] = defaultdict(list)
    for task, reply in replies:
        by_kind[task.kind].append(quality(task, reply))
    waits = [reply.latency_s for _, reply in replies if reply.alone and reply.latency_s is not None]
    return Measured(
        date=dt.datetime.now(tz=dt.UTC).date(),
        questions=asked,
        failure_rate=(unanswered + sum(_is_empty(reply) for _, reply in replies)) / asked,
        accuracy={kind: _accuracy(by_kind[kind]) for kind in sorted(by_kind)},
        latency_p50_s=_percentile(waits, 50),
        latency_p95_s=_percentile(waits, 95),
        prompt_tokens=_mean(reply.prompt_tokens or 0 for _, reply in replies),
        completion_tokens=_mean(reply.completion_tokens or 0 for _, reply in replies),
        cost_usd=_mean(outcome_cost(reply, model.price) for _, reply in replies),
    )


def _with_usage(task: Task, outcome: Outcome) -> Outcome:
    prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
    return dataclasses.replace(
        outcome,
        prompt_tokens=estimate_tokens(CALL_PROMPT.format(query=task.question)) if prompt is None else prompt,
        completion_tokens=estimate_tokens(outcome.response or "") if completion is None else completion,
    )


def _is_empty(outcome: Outcome) -> bool:
    return outcome.response is not None and not outcome.response.strip()


def _accuracy(scores: Sequence[float]) -> Accuracy:
    found = wilson(sum(scores), len(scores))
    return Accuracy(value=found.mean, low=found.low, high=found.high, questions=len(scores))


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None


def never_replied(figures: Measured) -> bool:
    """Return whether a model was asked and nothing came of it: that says nothing of how good it is."""
    return figures.failure_rate == 1


def require_toml(path: str | Path) -> None:
    """Check that a registry file is one that `write_profile` can write.

    Raises:
        RegistryError: It is not.
    """
    if Path(path).suffix != ".toml":
        raise RegistryError(f"{str(path)!r} is not a .toml file: profile writes what it measures as TOML, and only so")


def write_profile(path: str | Path, measured: Mapping[str, Measured], *, output: str | Path | None = None) -> None:
    """Write what was measured into a registry's file, or with `output` into a copy of it.

    That is `measured`, and for the router to read `skills` (of these kinds; others stay) and `latency_s`. What stands
    there of a model that never replied stays.

    Raises:
        RegistryError: The file is no registry in TOML.
    """
    require_toml(path)
    registry = ModelRegistry.from_file(path)
    fields: dict[str, dict[str, Any]] = {}
    for name, figures in measured.items():
        if name not in registry:  # any more: the file may have changed since
            continue
        if never_replied(figures):
            continue
        found = {kind: round(accuracy.value, 2) for kind, accuracy in figures.accuracy.items()}
        fields[name] = {"skills": {**registry[name].skills, **found}} if found else {}
        if figures.latency_p50_s is not None:
            fields[name]["latency_s"] = round(figures.latency_p50_s, 2)
        fields[name]["measured"] = _short(figures.model_dump(exclude_none=True))
    set_fields(path, fields, output=output)


def set_fields(path: str | Path, fields: Mapping[str, Mapping[str, Any]], *, output: str | Path | None = None) -> None:
    """Set fields of models, by name, in a registry's TOML file; everything else in it stays, comments too.

    The file is replaced as a whole: whoever reads it sees the old one or the new one.

    Raises:
        RegistryError: The file is laid out in a way that this can't edit.
    """
    text = Path(path).read_bytes().decode()
    document, expected = tomlkit.parse(text), tomllib.loads(text)
    for key in expected["models"]:
        if new := next((new for name, new in fields.items() if fold(name) == fold(key)), None):
            expected["models"][key] |= new
            table: Any = document["models"]
            _update(table[key], new)
    edited = tomlkit.dumps(document)
    if tomllib.loads(edited) != expected:
        raise RegistryError(f"{str(path)!r} can't be edited: write each model as one table [models.NAME]")
    replace_file(output or path, edited, mode_of=Path(path))


def _update(table: Any, new: Mapping[str, Any]) -> None:
    # What stands at the end of a table, a comment perhaps, speaks of the table that follows: it stays at the end.
    end = _last_table(table).value.body if isinstance(table, Table) else []
    tail: list[Any] = []
    while end and end[-1][0] is None:
        tail.append(end.pop()[1])
    for key, value in new.items():
        _set(table, key, value)
    for item in reversed(tail):
        _last_table(table).add(item)


def _last_table(table: Table) -> Table:
    body = table.value.body
    return _last_table(body[-1][1]) if body and isinstance(body[-1][1], Table) else table


def _set(table: Any, key: str, value: Any) -> None:
    old = table.get(key)
    if isinstance(value, Mapping) and isinstance(old, Table | InlineTable):
        for gone in set(old) - set(value):
            del old[gone]
        for inner, new in value.items():
            _set(old, inner, new)
    elif old != value:
        table[key] = _item(value, table)


def _item(value: Any, parent: Any) -> Any:
    """Return a value as TOML: a table that holds tables gets a header of its own, where that is possible."""
    if not isinstance(value, Mapping):
        return value
    is_deep = any(isinstance(inner, Mapping) for inner in value.values())
    table = tomlkit.table() if is_deep and isinstance(parent, Table) else tomlkit.inline_table()
    for key, inner in value.items():
        table[key] = _item(inner, table)
    return table


def _short(value: Any) -> Any:
    """Return the same with four significant digits."""
    if isinstance(value, Mapping):
        return {key: _short(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
