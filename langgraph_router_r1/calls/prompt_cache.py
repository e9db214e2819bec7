"""Which models have the beginning of a conversation in their provider's prompt cache, and what that saves.

The next prompt of a model on a thread begins as its last one did: with the system message, and with the conversation if
the model shares it. Providers keep such a beginning for some minutes and bill it at a lower price.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence

from langchain_core.messages import AnyMessage

from langgraph_router_r1.accounting import in_call_order
from langgraph_router_r1.ledger import PER_MILLION
from langgraph_router_r1.prompts import context_messages
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import Beginning, RouterState, WarmCache

CACHE_LIFETIME_S = 300.0
"""For how long a cache counts as warm: Anthropic keeps a prompt 5 minutes after its last use, OpenAI 5 to 10 (both in
their guides to prompt caching, November 2026)."""

MIN_CACHED_TOKENS = 1024
"""The shortest beginning that OpenAI caches, and most of Anthropic's models."""


def beginning(messages: Sequence[AnyMessage]) -> Beginning:
    """Return how many messages there are, and a digest of what they say."""
    said = json.dumps([[message.type, message.content] for message in messages], default=str)
    return {"messages": len(messages), "digest": hashlib.sha256(said.encode()).hexdigest()}


def warm_caches(state: RouterState, registry: ModelRegistry, count_tokens: Callable[[str], int]) -> list[WarmCache]:
    """Return the warm caches for a run that begins: those of models that replied in the latest run of the thread.

    Args:
        state: What the latest run left, with the messages of the new one.
        registry: The models; those without a lower price for cached tokens have no saving.
        count_tokens: Estimates the tokens of a text.
    """
    began = state.get("began_with")
    if began is None or state.get("tools"):  # tools stand before the messages in a prompt
        return []
    before = state["messages"][: began["messages"]]
    if beginning(before) != began:  # some were taken out or changed since
        return []
    asked_at = [decision["at"] for decision in state.get("decisions", []) if decision["kind"] == "ask"]
    warm: dict[str, WarmCache] = {}
    for call in in_call_order(state.get("calls", [])):
        name = call["answered_by"]
        # What cost nothing was not sent: it came from a cache of replies.
        if name is None or name not in registry or call["inner"] is not None or call["cost_usd"] == 0:
            continue
        if time.time() - asked_at[call["turn"]] > CACHE_LIFETIME_S:
            continue
        shared = sum(count_tokens(message.text) for message in context_messages(registry[name], before))
        rates = registry[name].price.at(call["usage"]["prompt_tokens"])
        tokens = min(shared, call["usage"]["prompt_tokens"])
        saving_usd = PER_MILLION * tokens * (rates.prompt - rates.cached)
        if tokens >= MIN_CACHED_TOKENS and saving_usd > 0:
            warm[name] = {"model": name, "tokens": tokens, "saving_usd": saving_usd}
    return list(warm.values())
