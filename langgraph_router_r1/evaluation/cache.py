"""Routed models that are asked the same thing once: a LangGraph cache, such as a SQLite file, keeps their replies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.cache.base import BaseCache
from typing_extensions import override

from langgraph_router_r1.candidates import build_model
from langgraph_router_r1.registry import ModelDescriptor, ModelRegistry

logger = logging.getLogger(__name__)

_Key = tuple[tuple[str, ...], str]


def remember(registry: ModelRegistry, cache: BaseCache[Any]) -> ModelRegistry:
    """Return the registry with models that remember: what one was asked before, in the same words, is not asked again.

    Identical calls that are made at the same time are made once. A reply from the cache says so as LangChain's do, by a
    total cost of 0: it counts at list price and costs nothing.

    Example:
        >>> from langgraph.cache.memory import InMemoryCache
        >>> from langgraph_router_r1.testing import ScriptedChatModel
        >>> once = ScriptedChatModel(["Lima", "Quito"])
        >>> pool = remember(ModelRegistry([ModelDescriptor(name="small", model=once, price=1.0)]), InMemoryCache())
        >>> model = pool["small"].model
        >>> [model.invoke([("user", question)]).content for question in ("Peru?", "Peru?", "Ecuador?")]
        ['Lima', 'Lima', 'Quito']
    """
    return ModelRegistry(
        model.model_copy(
            update={
                "model": _Remembering(model, cache),
                # To whoever bounds its cost it is as bounded as the model within.
                "params": {"max_tokens": model.max_tokens} if model.is_bounded else {},
                "max_retries": model.retries,
            }
        )
        for model in registry
    )


class _Remembering(Runnable[Any, AIMessage]):
    """One model that remembers."""

    def __init__(self, descriptor: ModelDescriptor, cache: BaseCache[Any]) -> None:
        self._descriptor, self._cache = descriptor, cache
        self._model: Runnable[Any, Any] | None = None
        self._building = threading.Lock()
        # Gone as soon as nobody holds or awaits them.
        self._locks: WeakValueDictionary[_Key, Any] = WeakValueDictionary()
        self._async_locks: WeakValueDictionary[tuple[int, _Key], asyncio.Lock] = WeakValueDictionary()
        # Not its address: a local server has another port each time.
        named = descriptor.model if isinstance(descriptor.model, str) else ""
        settings = json.dumps({"model": named, "params": descriptor.params}, sort_keys=True, default=str)
        self._unsaved: dict[_Key, Any] = {}
        """Replies that the cache did not take, because the disk is full for instance: paid for, and tried again."""
        self._namespace = ("call", descriptor.name, hashlib.sha256(settings.encode()).hexdigest())

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        key = self._key(input)
        with self._locks.setdefault(key, threading.Lock()):
            return self._known(key) or self._keep(key, self._built().invoke(input, config, **kwargs))

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        key = self._key(input)
        # Whoever comes while the same is being asked waits for that reply; should it fail, the next one asks.
        async with self._async_locks.setdefault((id(asyncio.get_running_loop()), key), asyncio.Lock()):
            return self._known(key) or self._keep(key, await self._built().ainvoke(input, config, **kwargs))

    def _built(self) -> Runnable[Any, Any]:
        with self._building:
            if self._model is None:
                self._model = build_model(self._descriptor)
            return self._model

    def _key(self, asked: Any) -> _Key:
        messages: Sequence[BaseMessage] = convert_to_messages(asked)
        text = json.dumps([(message.type, message.content) for message in messages])
        return self._namespace, hashlib.sha256(text.encode()).hexdigest()

    def _known(self, key: _Key) -> AIMessage | None:
        found = self._unsaved.get(key) or self._cache.get([key]).get(key)
        if not found:
            return None
        usage = found["usage"]
        return AIMessage(found["text"], usage_metadata=usage and {**usage, "total_cost": 0})

    def _keep(self, key: _Key, reply: Any) -> AIMessage:
        message = AIMessage(reply) if isinstance(reply, str) else reply
        self._unsaved[key] = {"text": message.text, "usage": message.usage_metadata}
        try:
            # The newest first: one that no cache can take does not keep it from being saved.
            for unsaved, value in reversed(list(self._unsaved.items())):
                self._cache.set({unsaved: (value, None)})
                self._unsaved.pop(unsaved, None)
        except Exception as error:  # noqa: BLE001 - any cache, any exception; whoever asked gets the reply all the same
            logger.warning("%d replies can't be saved yet (%s)", len(self._unsaved), type(error).__name__)
        return message
