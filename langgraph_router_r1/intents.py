"""A durable note before each routed call, so that a resumed run knows which calls may have been made before.

LangGraph stores the result of a call when its task has ended. When the process is killed while a call is in flight,
the checkpoint only says that the call was planned, and a resumed run makes it again. The provider may have been asked
and may have billed the first attempt. Therefore the `route` node calls `begin` before it makes a call:

1. It waits until the checkpoint that plans the call is stored. From then on, a killed run is resumed with this very
   call, and not with another turn of the router.
2. It stores a note among the pending writes of that checkpoint.

If the note is there already, an earlier attempt has begun and left no result.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.errors import GraphInterrupt
from langgraph.runtime import get_runtime

from langgraph_router_r1.state import PlannedCall

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

# LangGraph has no public name for what it tells a node of its checkpointer; a test holds that these are still right.
_CHECKPOINTER = "__pregel_checkpointer"
_DURABILITY = "__pregel_durability"

CHANNEL = "router_r1_intent"
"""The name under which notes stand among the pending writes; no channel of the graph, so LangGraph ignores it."""

_INTERRUPTED = "-interrupted"
"""What the id of a note ends with that says that the call was interrupted."""

STORED_WITHIN_S = 30.0
"""How long to wait until the checkpoint that plans a call is stored."""


class NotStoredError(RuntimeError):
    """The checkpoint that plans a call was not stored in time, so the call was not made."""


def begin(call: PlannedCall) -> bool:
    """Note that a call begins; return whether an earlier attempt at it had begun and left no result.

    Without a checkpointer, or when checkpoints are stored at the end of a run only, there is nothing to resume from:
    nothing is noted.

    Raises:
        NotStoredError: The checkpoint that plans the call was not stored in time.
    """
    saver = _saver()
    if saver is None or "id" not in call:
        return False
    place = _place()
    for pause in _pauses():
        stored = saver.get_tuple(place)
        if stored is not None:
            break
        time.sleep(pause)
    else:
        raise NotStoredError(_NOT_STORED)
    note, is_noted = _latest(stored, call)
    if not is_noted:
        saver.put_writes(place, [(CHANNEL, call["model"])], note)
    return is_noted


async def abegin(call: PlannedCall) -> bool:
    """Note that a call begins without blocking; see `begin`."""
    saver = _saver()
    if saver is None or "id" not in call:
        return False
    place = _place()
    for pause in _pauses():
        stored = await saver.aget_tuple(place)
        if stored is not None:
            break
        await asyncio.sleep(pause)
    else:
        raise NotStoredError(_NOT_STORED)
    note, is_noted = _latest(stored, call)
    if not is_noted:
        await saver.aput_writes(place, [(CHANNEL, call["model"])], note)
    return is_noted


@contextlib.contextmanager
def making(call: PlannedCall, *, checkpointed: bool) -> Iterator[bool]:
    """Note the call that is made within; what is bound says whether it may have been made before, see `begin`.

    A call that is interrupted, because the model is a router that waits for a person, is not in flight any more.
    """
    if not checkpointed or call["refusal"] is not None:
        yield False
        return
    again = begin(call)
    try:
        yield again
    except GraphInterrupt:
        if (saver := _saver()) is not None and (stored := saver.get_tuple(_place())) is not None:
            note, _ = _latest(stored, call)
            saver.put_writes(_place(), [(CHANNEL, call["model"])], f"{note}{_INTERRUPTED}")
        raise


@contextlib.asynccontextmanager
async def amaking(call: PlannedCall, *, checkpointed: bool) -> AsyncIterator[bool]:
    """Note the call that is made within, without blocking; see `making`."""
    if not checkpointed or call["refusal"] is not None:
        yield False
        return
    again = await abegin(call)
    try:
        yield again
    except GraphInterrupt:
        if (saver := _saver()) is not None and (stored := await saver.aget_tuple(_place())) is not None:
            note, _ = _latest(stored, call)
            await saver.aput_writes(_place(), [(CHANNEL, call["model"])], f"{note}{_INTERRUPTED}")
        raise


_NOT_STORED = (
    f"the checkpoint was not stored within {STORED_WITHIN_S:g} s, and no model was asked; if this router shall not be "
    "checkpointed inside a graph that is, give build_router(..., checkpointed=False)"
)


def _saver() -> BaseCheckpointSaver[Any] | None:
    configurable = get_config().get("configurable", {})
    saver: BaseCheckpointSaver[Any] | None = configurable.get(_CHECKPOINTER)
    return None if configurable.get(_DURABILITY) == "exit" else saver


def _place() -> RunnableConfig:
    """Return where the checkpoint is that plans the call: in the namespace of the graph, not of its `route` task."""
    info = get_runtime().execution_info
    assert info is not None
    namespace, _, _ = info.checkpoint_ns.rpartition("|")
    return {
        "configurable": {
            "thread_id": info.thread_id,
            "checkpoint_ns": namespace,
            "checkpoint_id": info.checkpoint_id,
        }
    }


def _pauses() -> Iterator[float]:
    """Yield how many seconds to wait between two looks, until `STORED_WITHIN_S` is over."""
    until, pause = time.monotonic() + STORED_WITHIN_S, 0.0005
    while time.monotonic() < until:
        yield pause
        pause = min(2 * pause, 0.25)


def _latest(stored: CheckpointTuple, call: PlannedCall) -> tuple[str, bool]:
    """Return the id of the call's latest note that counts, and whether that is among the pending writes.

    One whose call was interrupted does not count: the next attempt has a note of its own.
    """
    ids = {write[0] for write in stored.pending_writes or ()}
    note = f"intent-{call['id']}"
    while f"{note}{_INTERRUPTED}" in ids:
        note = f"{note}-again"
    return note, note in ids
