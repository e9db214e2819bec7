"""A registry whose replies are written down: what `recorded.py` reads, and what `router-r1 profile` measures with.

with Recorder("answers.jsonl", registry, tasks) as recorder:
router = create_router(engine, recorder.registry)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langchain_core.messages import AIMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from typing_extensions import override

from langgraph_router_r1.candidates import build_model
from langgraph_router_r1.evaluation.files import JsonLinesWriter
from langgraph_router_r1.evaluation.recorded import (
    TASK_ID,
    NotRecordedError,
    RecordedPool,
    as_message,
    run_metadata,
    task_row,
)
from langgraph_router_r1.evaluation.tasks import Task, TaskError
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.protocol import strip_thought
from langgraph_router_r1.registry import ModelDescriptor, ModelRegistry


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
        row = task_row(task) | {"outcomes": {model: dict(outcome)}}
        with self._lock:
            self.pool.add_row(row, self.path.name, self.path.stem, 0)
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
