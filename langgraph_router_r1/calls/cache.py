"""Routed models that are asked the same thing once: a LangGraph cache, such as a SQLite file, keeps their replies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from langchain_core.messages import AIMessage
from typing_extensions import override

from langgraph_router_r1.calls.middleware import AsyncSend, CallMiddleware, ModelCall, Send
from langgraph_router_r1.ledger import FROM_CACHE, finish_of

if TYPE_CHECKING:
    from langgraph.cache.base import BaseCache

logger = logging.getLogger(__name__)

_Key = tuple[tuple[str, ...], str]


class CallCache(CallMiddleware):
    """Keeps replies: what a model was asked before, in the same words, is not asked again.

    Identical calls that are made at the same time are made once. A reply from the cache says so in its metadata: it
    counts at list price and costs nothing.

    Example:
        >>> from langgraph.cache.memory import InMemoryCache
        >>> from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
        >>> from langgraph_router_r1.strategies import AskInOrder
        >>> from langgraph_router_r1.testing import ScriptedChatModel
        >>> small = ModelDescriptor(name="small", model=ScriptedChatModel(["Lima", "Quito"]), price=1.0)
        >>> router = create_router(
        ...     strategy=AskInOrder(lambda view: ["small"]),
        ...     registry=ModelRegistry([small]),
        ...     middleware=[CallCache(InMemoryCache())],
        ... )
        >>> [router.invoke({"messages": [("user", question)]})["answer"] for question in ("Peru?", "Peru?", "Ecuador?")]
        ['Lima', 'Lima', 'Quito']
    """

    def __init__(self, cache: BaseCache[Any]) -> None:
        """Keep the cache; one on disk keeps replies from one process to the next."""
        self._cache = cache
        # Gone as soon as nobody holds or awaits them.
        self._locks: WeakValueDictionary[_Key, Any] = WeakValueDictionary()
        self._async_locks: WeakValueDictionary[tuple[int, _Key], asyncio.Lock] = WeakValueDictionary()
        self._unsaved: dict[_Key, Any] = {}
        """Replies that the cache did not take, because the disk is full for instance: paid for, and tried again."""

    @override
    def wrap_call(self, call: ModelCall, proceed: Send) -> AIMessage:
        if call.tools is not None:  # a reply's tool calls are not kept
            return proceed(call)
        key = _key(call)
        with self._locks.setdefault(key, threading.Lock()):
            return self._known(key) or self._keep(key, proceed(call))

    @override
    async def awrap_call(self, call: ModelCall, proceed: AsyncSend) -> AIMessage:
        if call.tools is not None:
            return await proceed(call)
        key = _key(call)
        # Whoever comes while the same is being asked waits for that reply; should it fail, the next one asks.
        async with self._async_locks.setdefault((id(asyncio.get_running_loop()), key), asyncio.Lock()):
            return self._known(key) or self._keep(key, await proceed(call))

    def _known(self, key: _Key) -> AIMessage | None:
        found = self._unsaved.get(key) or self._cache.get([key]).get(key)
        if not found:
            return None
        return AIMessage(
            found["text"],
            usage_metadata=found["usage"],
            # Caches of before kept no reason.
            response_metadata={FROM_CACHE: True, "finish_reason": found.get("finish_reason", "stop")},
        )

    def _keep(self, key: _Key, reply: AIMessage) -> AIMessage:
        self._unsaved[key] = {
            "text": reply.text,
            "usage": reply.usage_metadata,
            "finish_reason": finish_of(reply.response_metadata),
        }
        try:
            # The newest first: one that no cache can take does not keep it from being saved.
            for unsaved, value in reversed(list(self._unsaved.items())):
                self._cache.set({unsaved: (value, None)})
                self._unsaved.pop(unsaved, None)
        except Exception as error:  # noqa: BLE001 - any cache, any exception; whoever asked gets the reply all the same
            logger.warning("%d replies can't be saved yet (%s)", len(self._unsaved), type(error).__name__)
        return reply


def _key(call: ModelCall) -> _Key:
    """Return under what a reply is kept: the model with its settings, and what it is sent."""
    model = call.model
    # Not its address: a local server has another port each time.
    named = model.model if isinstance(model.model, str) else ""
    settings = json.dumps({"model": named, "params": model.params}, sort_keys=True, default=str)
    text = json.dumps([(message.type, message.content) for message in call.messages])
    namespace = ("call", model.name, hashlib.sha256(settings.encode()).hexdigest())
    return namespace, hashlib.sha256(text.encode()).hexdigest()
