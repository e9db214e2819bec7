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
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import get_runtime

from langgraph_router_r1.state import PlannedCall

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

# LangGraph has no public name for what it tells a node of its checkpointer; a test holds that these are still right.
_CHECKPOINTER = "__pregel_checkpointer"
_DURABILITY = "__pregel_durability"

CHANNEL = "router_r1_intent"
"""The name under which notes stand among the pending writes; no channel of the graph, so LangGraph ignores it."""

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
    if _is_noted(stored, call):
        return True
    saver.put_writes(place, [(CHANNEL, call["model"])], _note_id(call))
    return False


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
    if _is_noted(stored, call):
        return True
    await saver.aput_writes(place, [(CHANNEL, call["model"])], _note_id(call))
    return False


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


def _note_id(call: PlannedCall) -> str:
    return f"intent-{call['id']}"


def _is_noted(stored: CheckpointTuple, call: PlannedCall) -> bool:
    return any(write[0] == _note_id(call) for write in stored.pending_writes or ())
