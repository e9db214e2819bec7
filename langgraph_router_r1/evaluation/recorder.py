"""Replies of a pool, written down: what `recorded.py` reads, and what `router-r1 profile` measures with.

with Recorder("answers.jsonl", tasks) as recorder:
    router = create_router(engine, registry, middleware=[recorder])
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langchain_core.messages import AIMessage
from typing_extensions import override

from langgraph_router_r1.calls.middleware import AsyncSend, CallMiddleware, ModelCall, Send
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
from langgraph_router_r1.protocol import encodable, strip_thought


class Recorder(CallMiddleware):
    """Writes each reply to a task down; the models answer as before.

    The file is what `RecordedPool` reads. A reply that the file holds already is not asked for again, so a run that was
    killed continues where it stopped. A sub-question that a router made up is asked and not written, because the
    reply to it is not a reply to the task.

    Only one process at a time can write a file. When a reply can't be written, because the disk is full for instance,
    the caller still gets it, and the recorder keeps it in memory. Until it is written, calls that are not recorded yet
    fail before the model is asked.

    Example:
        >>> with Recorder("answers.jsonl", tasks) as recorder:                               # doctest: +SKIP
        ...     router = create_router(engine, registry, middleware=[recorder])
        ...     router.invoke({"messages": [("user", task.question)]}, {"metadata": {"task_id": task.id}})
    """

    each_attempt = True
    """What is timed is one request, without the waits between attempts."""

    def __init__(self, path: str | Path, tasks: Iterable[Task]) -> None:
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

    @override
    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        task_id = self._task_id()
        if not self._is_whole(task_id, call):
            return proceed(call)
        if (known := self._known(task_id, call)) is not None:
            return known
        with self._timed() as timing:
            reply = proceed(call)
        return self._write(task_id, call, reply, timing)

    @override
    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        task_id = self._task_id()
        if not self._is_whole(task_id, call):
            return await proceed(call)
        if (known := self._known(task_id, call)) is not None:
            return known
        with self._timed() as timing:
            reply = await proceed(call)
        return self._write(task_id, call, reply, timing)

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
    def _timed(self) -> Iterator[_Timing]:
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

    def _task_id(self) -> str:
        task_id = run_metadata(None).get(TASK_ID)
        if task_id not in self.tasks:
            msg = f"the run's metadata have {TASK_ID!r} {task_id!r}, which is none of the recorder's tasks"
            raise NotRecordedError(msg)
        return str(task_id)

    def _is_whole(self, task_id: str, call: ModelCall) -> bool:
        """Return whether the model is asked the task's question, and not a part of it in other words."""
        return call.query.strip() == self.tasks[task_id].question.strip()

    def _known(self, task_id: str, call: ModelCall) -> AIMessage | None:
        outcome = self.pool.outcomes.get(task_id, {}).get(call.model.name)
        if outcome is None:
            # A reply that could not be kept would be paid for and asked for again.
            self.check_writable()
            return None
        return as_message(outcome)

    def _write(self, task_id: str, call: ModelCall, message: AIMessage, timing: _Timing) -> AIMessage:
        usage: Mapping[str, Any] = message.usage_metadata or {}
        self.write(
            task_id,
            call.model.name,
            {
                # As whoever asks reads it: without the thinking, which may name many a golden answer.
                "response": strip_thought(encodable(message.text)),
                "prompt_tokens": usage.get("input_tokens"),
                "completion_tokens": usage.get("output_tokens"),
                "latency_s": round(timing.latency_s, 4),
                "alone": timing.alone,
            },
        )
        return message

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
