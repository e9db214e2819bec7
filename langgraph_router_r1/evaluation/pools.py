"""Recorded answers as chat models, and the recorder that writes them.

    pool = RecordedPool.from_file("nq_six_models.jsonl")
    router = create_router(engine, pool.registry())
    router.invoke({"messages": [("user", task.question)]}, {"metadata": {"task_id": task.id}})

A recorded model replies what that model really said to that *task*, at the price of the record. Which task it is, the
run's metadata say (`task_id`): **whatever sub-question the router writes, the reply is the record of the whole
question.** So a recorded pool can tell whom to ask, and how to make a short answer of a reply; it can't tell
whether a question was well divided.

The file is one JSON object a line, `{"id", "question", "golden_answers", "dataset", "outcomes": {model: {...}}}`, an
outcome holding `response` and what is known of `prompt_tokens`, `completion_tokens`, `cost_usd`, `latency_s`, `score`.
Lines of the same id add up, so `Recorder` can write one line a reply, at once and for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from pydantic import ConfigDict, Field
from typing_extensions import override

from langgraph_router_r1.candidates import build_model
from langgraph_router_r1.engines.chat_model import CHARACTERS_PER_TOKEN
from langgraph_router_r1.evaluation.files import JsonLinesWriter, replace_file
from langgraph_router_r1.evaluation.metrics import contains, without_tags
from langgraph_router_r1.evaluation.tasks import Split, Task, TaskError, as_task, json_lines
from langgraph_router_r1.ledger import PER_MILLION, Price, PriceLike
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.protocol import strip_thought
from langgraph_router_r1.registry import ModelDescriptor, ModelRegistry

TASK_ID = "task_id"
"""The key of a run's metadata that says which task it is about."""

_AS_RECORDED = ("prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "alone")
"""What an outcome holds in a file under the same name."""

TEXT_NOT_RECORDED = "(What this model said was not recorded, only how well it did.)"
"""The reply of a model of which only scores are known."""


class NotRecordedError(LookupError):
    """There is no record of that model's reply to that task."""


@dataclass(frozen=True)
class Outcome:
    """What one model did with one task, as far as it is known."""

    response: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    alone: bool | None = None
    """Whether nothing else was asked at the same time, so that the latency is the model's own."""
    score: float | None = None
    """How good the reply was, 0 to 1, as the record's own judges or metrics say."""


@dataclass
class RecordedPool:
    """Recorded answers of some models to some tasks.

    Example:
        >>> pool = RecordedPool.from_rows([{"id": "t1", "question": "Capital of Peru?", "golden_answers": ["Lima"],
        ...     "outcomes": {"small": {"response": "Lima.", "completion_tokens": 2, "cost_usd": 4e-7}}}])
        >>> small = pool.registry()["small"]
        >>> str(small.price), small.model.invoke("?", {"metadata": {"task_id": "t1"}}).content
        ('$0/M in, $0.2/M out', 'Lima.')
    """

    tasks: dict[str, Task] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    """By task id, then by model."""
    source: str = "the records"

    @classmethod
    def from_file(cls, *paths: str | Path) -> RecordedPool:
        """Read files of records; those of several files add up.

        Raises:
            TaskError: A file can't be read, or a line of it is wrong.
        """
        pool = cls(source=", ".join(Path(path).name for path in paths))
        for path in map(Path, paths):
            # The last line may be cut off: a recorder writes the file, or was killed while it did.
            for line, row in json_lines(path, may_be_cut_off=True):
                pool._add(row, f"{path.name}, line {line}", path.stem, line)
        return pool

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], *, source: str = "records") -> RecordedPool:
        """Build from rows such as a file's lines hold."""
        pool = cls(source=source)
        for line, row in enumerate(rows, start=1):
            pool._add(row, f"{source}, row {line}", source, line)
        return pool

    def _add(self, row: Mapping[str, Any], where: str, dataset: str, line: int) -> None:
        task = as_task(row, where, dataset, line)
        known = self.tasks.setdefault(task.id, task)
        if known.question != task.question:
            raise TaskError(f"{where}: task {task.id!r} is another question already, {known.question!r}")
        found = self.outcomes.setdefault(task.id, {})
        for model, outcome in _outcomes(row, where).items():
            found[model] = outcome

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are recorded for any task, in order of appearance."""
        return tuple(dict.fromkeys(model for outcomes in self.outcomes.values() for model in outcomes))

    def outcome(self, task_id: str | None, model: str) -> Outcome:
        """Return what this model did with this task.

        Raises:
            NotRecordedError: That is not recorded.
        """
        if task_id is None:
            msg = (
                f"{model!r} is a recorded model and the run does not say which task it is about: "
                f'give it the metadata {{"{TASK_ID}": ...}}'
            )
            raise NotRecordedError(msg)
        if task_id not in self.outcomes:
            raise NotRecordedError(f"task {task_id!r} is not in {self.source}, which holds {len(self.tasks)} tasks")
        if model not in self.outcomes[task_id]:
            there = ", ".join(map(repr, self.outcomes[task_id]))
            raise NotRecordedError(f"{self.source} has no reply of {model!r} to task {task_id!r}, only of {there}")
        return self.outcomes[task_id][model]

    def complete(self) -> list[Task]:
        """Return the tasks for which every model is recorded."""
        return [task for task in self.tasks.values() if len(self.outcomes[task.id]) == len(self.models)]

    def save(self, path: Path) -> None:
        """Write the records, one line a task."""
        lines = []
        for task in self.tasks.values():
            outcomes = {
                model: {key: value for key, value in asdict(outcome).items() if value is not None}
                for model, outcome in self.outcomes[task.id].items()
            }
            lines.append(json.dumps(_task_row(task) | {"outcomes": outcomes}))
        replace_file(path, "\n".join(lines) + "\n")

    def of_split(self, split: Split) -> RecordedPool:
        """Return the part of it that belongs to a split."""
        tasks = {task.id: task for task in self.tasks.values() if task.split == split}
        return RecordedPool(tasks, {task_id: self.outcomes[task_id] for task_id in tasks}, self.source)

    def registry(
        self, *, prices: Mapping[str, PriceLike] | None = None, descriptions: Mapping[str, str] | None = None
    ) -> ModelRegistry:
        """Return the recorded models as a registry: prices as the records imply, skills as measured on the train split.

        Args:
            prices: Prices of models whose costs are not recorded.
            descriptions: What the router is told of them.

        Raises:
            ValueError: A model's price is neither recorded nor given, or its recorded costs follow no price.
        """
        return ModelRegistry(
            ModelDescriptor(
                name=model,
                model=RecordedChatModel(pool=self, name=model),
                price=(prices or {}).get(model) or self._price(model),
                description=(descriptions or {}).get(model, ""),
                skills=self._skills(model),
                # Nothing is waited for, and what was once said can't be said again in other words.
                max_retries=0,
            )
            for model in self.models
        )

    def _skills(self, model: str) -> dict[str, float]:
        """Return how good a model's replies are, by data set; of the train split, the others are for testing."""
        found: dict[str, list[float]] = {}
        for task in self.of_split("train").tasks.values():
            if model in self.outcomes[task.id]:
                found.setdefault(task.dataset, []).append(quality(task, self.outcomes[task.id][model]))
        return {dataset: round(sum(values) / len(values), 2) for dataset, values in found.items()}

    def _price(self, model: str) -> Price:
        """Return the price per token that explains every recorded cost of a model to within 1 %."""
        import numpy as np

        records = [outcomes[model] for outcomes in self.outcomes.values() if model in outcomes]
        if any(record.cost_usd is None or record.completion_tokens is None for record in records):
            msg = f"{self.source} does not say what {model!r} cost: give its price ('free' if it costs nothing)"
            raise ValueError(msg)
        used = np.array([[record.prompt_tokens or 0, record.completion_tokens] for record in records], dtype=float)
        costs = np.array([record.cost_usd for record in records], dtype=float)
        found = np.linalg.lstsq(used, costs, rcond=None)[0]
        if not np.allclose(used @ found, costs, rtol=0.01, atol=1e-9):
            msg = f"the costs of {model!r} in {self.source} follow no price per token: give its price"
            raise ValueError(msg)
        prompt, completion = (max(0.0, float(f"{dollars / PER_MILLION:.6g}")) for dollars in found)
        return Price(prompt=prompt if used[:, 0].any() else 0.0, completion=completion)


def _task_row(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "question": task.question,
        "golden_answers": list(task.golden_answers),
        "dataset": task.dataset,
        **{key: value for key, value in task.meta.items() if key in {"kind", "hops"}},
    }


def _outcomes(row: Mapping[str, Any], where: str) -> dict[str, Outcome]:
    """Return the outcomes of a row; the public files say `score` or `correct`, of a reply or instead of one."""
    given = row.get("outcomes", row.get("scores", row.get("correct")))
    if not isinstance(given, Mapping) or not given:
        raise TaskError(f"{where}: 'outcomes' is missing; it must be an object with one entry a model")
    outcomes = {}
    for model, value in given.items():
        entry = value if isinstance(value, Mapping) else {"score": value}
        score = entry.get("score", entry.get("correct"))
        if score is not None and not (isinstance(score, int | float) and math.isfinite(score)):
            raise TaskError(f"{where}: the score of {model!r} is {score!r}; it must be a number")
        known = {name: entry.get(name) for name in _AS_RECORDED}
        for name, number in known.items():
            if number is not None and not (isinstance(number, int | float) and number >= 0):
                raise TaskError(f"{where}: {name!r} of {model!r} is {number!r}; it must be a number, 0 or more")
        outcomes[str(model)] = Outcome(
            response=None if entry.get("response") is None else str(entry["response"]),
            score=None if score is None else float(score),
            **known,
        )
    return outcomes


class RecordedChatModel(BaseChatModel):
    """One model of a `RecordedPool`. Knows the task by the run's metadata; what was asked in words, it ignores."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    pool: RecordedPool = Field(repr=False, exclude=True)
    name: str | None = None

    @property
    def _llm_type(self) -> str:
        return "recorded"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.name, "source": self.pool.source}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._recorded(run_manager))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._recorded(run_manager))])

    # Streams are not told of the run they belong to: its task comes along as a parameter.
    @override
    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[AIMessageChunk]:
        return super().stream(input, config, **{TASK_ID: run_metadata(config).get(TASK_ID), **kwargs})

    @override
    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        async for chunk in super().astream(input, config, **{TASK_ID: run_metadata(config).get(TASK_ID), **kwargs}):
            yield chunk

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        message = as_message(self.pool.outcome(kwargs.get(TASK_ID), str(self.name)))
        for line in message.text.splitlines(keepends=True):
            yield ChatGenerationChunk(message=AIMessageChunk(content=line))
        yield ChatGenerationChunk(message=AIMessageChunk(content="", usage_metadata=message.usage_metadata))

    def _recorded(self, run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> AIMessage:
        task_id = run_manager.metadata.get(TASK_ID) if run_manager else None
        return as_message(self.pool.outcome(task_id, str(self.name)))


class Recorder:
    """Wraps a registry: its models answer as before, and each reply to a task is written down.

    The file is what `RecordedPool` reads. A reply that the file holds already is not asked for again, so a run that was
    killed continues where it stopped. A sub-question that a router made up is asked and not written, because the
    reply to it is not a reply to the task.

    Only one process at a time can write a file. When a reply can't be written, because the disk is full for instance,
    the caller still gets it, and the recorder keeps it in memory. Until it is written, calls that are not recorded yet
    fail before the model is asked.

    Example:
        >>> with Recorder("answers.jsonl", registry, tasks) as recorder:                     # doctest: +SKIP
        ...     router = create_router(engine, recorder.registry)
        ...     router.invoke({"messages": [("user", task.question)]}, {"metadata": {"task_id": task.id}})
    """

    def __init__(self, path: str | Path, registry: ModelRegistry, tasks: Iterable[Task]) -> None:
        """Open the file, with what an earlier run wrote; a last line that was cut off by a crash is dropped.

        Raises:
            TaskError: The file can't be written, another process is writing it, it holds something else, or two
                questions have the same id.
        """
        self.path = Path(path)
        self.tasks: dict[str, Task] = {}
        for task in tasks:
            self._check_question(self.tasks.setdefault(task.id, task), task, "another task")
        self._file = JsonLinesWriter(self.path)
        try:
            self.pool = RecordedPool.from_file(self.path)
            for task in self.tasks.values():
                self._check_question(self.pool.tasks.get(task.id, task), task, str(self.path))
        except TaskError:
            self._file.close()
            raise
        self._lock = threading.Lock()
        self._running = self._started = 0
        self.registry = ModelRegistry(
            # Retries stay on the outside, where a model given as a string has them by default.
            model.model_copy(
                update={
                    "model": _Recording(self, model),
                    # To whoever bounds its cost it is as bounded as the model within.
                    "params": {"max_tokens": model.max_tokens} if model.is_bounded else {},
                    "max_retries": model.retries,
                }
            )
            for model in registry
        )

    @staticmethod
    def _check_question(known: Task, task: Task, where: str) -> None:
        if known.question.strip() != task.question.strip():
            raise TaskError(f"task {task.id!r} has another question in {where}: {known.question!r}")

    def write(self, task_id: str, model: str, outcome: Mapping[str, Any]) -> None:
        """Append one outcome. It is on the disk when this returns, or in memory if the disk does not take it."""
        task = self.tasks[task_id]
        row = _task_row(task) | {"outcomes": {model: dict(outcome)}}
        with self._lock:
            self.pool._add(row, self.path.name, self.path.stem, 0)
            with contextlib.suppress(TaskError):  # `check_writable` raises it before the next call
                self._file.append(row)

    def check_writable(self) -> None:
        """Try again to write the replies that wait in memory, if there are any.

        Raises:
            TaskError: The file still can't be written.
        """
        with self._lock:
            self._file.flush()

    @contextlib.contextmanager
    def timing(self) -> Iterator[_Timing]:
        """Time the block; what came of it stands in what this gives, once the block is over."""
        timing = _Timing()
        with self._lock:
            self._running += 1
            self._started += 1
            number, alone = self._started, self._running == 1
        started = time.perf_counter()
        try:
            yield timing
        finally:
            timing.latency_s = time.perf_counter() - started
            with self._lock:
                self._running -= 1
                timing.alone = alone and self._started == number

    def close(self) -> None:
        """Write what waits in memory, and close the file.

        Raises:
            TaskError: Some replies could not be written; the message says how many.
        """
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class _Timing:
    latency_s: float = 0.0
    alone: bool = False


class _Recording(Runnable[Any, AIMessage]):
    """One model of a recorder: the record when there is one, else the real model, written down."""

    def __init__(self, recorder: Recorder, descriptor: ModelDescriptor) -> None:
        self._recorder, self._descriptor = recorder, descriptor
        self._model: Runnable[Any, Any] | None = None
        self._building = threading.Lock()

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        task_id = self._task(config)
        if not self._is_whole(task_id, input):
            return _message(self._built().invoke(input, config, **kwargs))
        if (known := self._known(task_id)) is not None:
            return known
        model = self._built()
        with self._recorder.timing() as timing:
            reply = model.invoke(input, config, **kwargs)
        return self._write(task_id, reply, timing)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        task_id = self._task(config)
        whole = self._is_whole(task_id, input)
        if whole and (known := self._known(task_id)) is not None:
            return known
        # Building a client imports its package and reads certificates: not on the event loop.
        model = await asyncio.to_thread(self._built) if self._model is None else self._model
        if not whole:
            return _message(await model.ainvoke(input, config, **kwargs))
        with self._recorder.timing() as timing:
            reply = await model.ainvoke(input, config, **kwargs)
        return self._write(task_id, reply, timing)

    def _built(self) -> Runnable[Any, Any]:
        with self._building:
            if self._model is None:
                self._model = build_model(self._descriptor)
            return self._model

    def _task(self, config: RunnableConfig | None) -> str:
        task_id = run_metadata(config).get(TASK_ID)
        if task_id not in self._recorder.tasks:
            msg = f"the run's metadata have {TASK_ID!r} {task_id!r}, which is none of the recorder's tasks"
            raise NotRecordedError(msg)
        return str(task_id)

    def _is_whole(self, task_id: str, asked: Any) -> bool:
        """Return whether the model is asked the task's question, and not a part of it in other words."""
        question = self._recorder.tasks[task_id].question
        text = convert_to_messages(asked)[-1].text if isinstance(asked, list) else str(asked)
        return text.strip() in {question.strip(), CALL_PROMPT.format(query=question).strip()}

    def _known(self, task_id: str) -> AIMessage | None:
        outcome = self._recorder.pool.outcomes.get(task_id, {}).get(self._descriptor.name)
        if outcome is None:
            # A reply that could not be kept would be paid for and asked for again.
            self._recorder.check_writable()
            return None
        return as_message(outcome)

    def _write(self, task_id: str, reply: Any, timing: _Timing) -> AIMessage:
        message = _message(reply)
        usage: Mapping[str, Any] = message.usage_metadata or {}
        self._recorder.write(
            task_id,
            self._descriptor.name,
            {
                # As whoever asks reads it: without the thinking, which may name many a golden answer.
                "response": strip_thought(message.text.encode("utf-8", "replace").decode()),
                "prompt_tokens": usage.get("input_tokens"),
                "completion_tokens": usage.get("output_tokens"),
                "latency_s": round(timing.latency_s, 4),
                "alone": timing.alone,
            },
        )
        return message


def _message(reply: Any) -> AIMessage:
    return AIMessage(reply) if isinstance(reply, str) else reply


def as_message(outcome: Outcome) -> AIMessage:
    """Return a recorded reply as a model gives it, with its usage as far as it is known."""
    usage: UsageMetadata | None = None
    if outcome.completion_tokens is not None:
        prompt, completion = outcome.prompt_tokens or 0, outcome.completion_tokens
        usage = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
    return AIMessage(TEXT_NOT_RECORDED if outcome.response is None else outcome.response, usage_metadata=usage)


def quality(task: Task, outcome: Outcome) -> float:
    """Return how good a recorded reply is, 0 to 1: as its judges said, else whether it holds a golden answer."""
    if outcome.score is not None:
        return outcome.score
    return float(outcome.response is not None and contains(without_tags(outcome.response), task.golden_answers))


def outcome_cost(outcome: Outcome, price: Price) -> float:
    """Return what a recorded reply cost in dollars: as recorded, else its tokens at this price.

    Where not even the tokens are recorded, they are estimated from the reply at four characters a token.
    """
    if outcome.cost_usd is not None:
        return outcome.cost_usd
    completion = outcome.completion_tokens
    if completion is None:
        completion = -(-len(outcome.response or TEXT_NOT_RECORDED) // CHARACTERS_PER_TOKEN)
    return PER_MILLION * ((outcome.prompt_tokens or 0) * price.prompt + completion * price.completion)


def run_metadata(config: RunnableConfig | None) -> dict[str, Any]:
    """Return the metadata of the run that a call belongs to, its own and those it inherits."""
    config = ensure_config(config)
    inherited = getattr(config.get("callbacks"), "inheritable_metadata", None) or {}
    return {**inherited, **config.get("metadata", {})}
