"""Chat models that may be awaited in more than one event loop, and an event loop in a thread of its own.

The asynchronous client of a LangChain chat model keeps connections, and a connection belongs to the event loop it was
opened in. Awaited in a second loop, as by a second `asyncio.run`, the client fails, possibly after the provider has
been asked and has billed the request. LangChain's packages also share one client between chat models with the same
settings, so building another chat model for each loop would not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from typing_extensions import override

T = TypeVar("T")


class AnyLoopModel(Runnable[Any, Any]):
    """A chat model that is awaited in the first event loop that asks it, and called in a thread for all others.

    Example:
        >>> model = AnyLoopModel(ChatOpenAI(model="gpt-4o-mini"))                          # doctest: +SKIP
        >>> for question in questions:                                                     # doctest: +SKIP
        ...     asyncio.run(model.ainvoke(question))
    """

    def __init__(self, model: Runnable[Any, Any]) -> None:
        """Wrap a chat model, or a binding of one."""
        self.model = model
        self._home: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._lock = threading.Lock()

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self.model.invoke(input, config, **kwargs)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if self._is_home(asyncio.get_running_loop()):
            return await self.model.ainvoke(input, config, **kwargs)
        return await asyncio.wrap_future(in_thread(lambda: self.model.invoke(input, config, **kwargs)))

    @override
    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        return self.model.stream(input, config, **kwargs)

    @override
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        if self._is_home(asyncio.get_running_loop()):
            async for piece in self.model.astream(input, config, **kwargs):
                yield piece
            return
        loop, pieces, end = asyncio.get_running_loop(), asyncio.Queue[Any](), object()

        def pump() -> None:
            for piece in self.model.stream(input, config, **kwargs):
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        pumped = asyncio.wrap_future(in_thread(pump))
        pumped.add_done_callback(lambda _: pieces.put_nowait(end))
        while (piece := await pieces.get()) is not end:
            yield piece
        await pumped

    def _is_home(self, loop: asyncio.AbstractEventLoop) -> bool:
        with self._lock:
            if self._home is None:
                self._home = weakref.ref(loop)
            return self._home() is loop


def for_any_loop(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return the model such that it can be awaited in any event loop; other Runnables than chat models as they are."""
    inner = model.bound if isinstance(model, RunnableBinding) else model
    return AnyLoopModel(model) if isinstance(inner, BaseChatModel) else model


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Run a blocking call in a daemon thread of its own; return its future.

    Python can't end a thread. A call that hangs for ever is left behind, and does not delay the end of the program.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on it can't be cancelled, only left behind

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            future.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), daemon=True, name="router-r1-call").start()
    return future


class LoopThread:
    """An event loop in a thread of its own, on which synchronous methods run asynchronous ones.

    An asynchronous request can be ended at any moment. A blocking one can't: the time limit of a blocking socket
    starts again with every byte.
    """

    def __init__(self, at_end: Callable[[asyncio.AbstractEventLoop], Awaitable[None]]) -> None:
        """Start it; `at_end` closes what belongs to the loop, and is awaited in it."""
        self._at_end = at_end
        # Without a factory, it would become the event loop of the thread that makes it, too.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="router-r1-engine")
        self._thread.start()

    def _work(self) -> None:
        with self._runner:
            self._runner.run(self._wait())

    async def _wait(self) -> None:
        await self._stopped.wait()
        await self._at_end(self._loop)

    def is_alive(self) -> bool:
        """Return whether it runs; in a forked process it does not."""
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work on the loop."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # such as Ctrl-C, while it waits
            future.cancel()
            raise

    def stop(self) -> None:
        """End it soon. Called from any thread, this one too, by whoever drops the engine."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._stopped.set)

    def close(self) -> None:
        """End it, and wait until its connections are closed."""
        self.stop()
        self._thread.join()
