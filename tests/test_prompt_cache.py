"""In a conversation, the model whose prompt cache is warm costs less: the router is told, and the record says so."""

from __future__ import annotations

import time
from typing import Any

import pytest
from conftest import WAYS, answer, invoked, search
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver

from langgraph_router_r1 import (
    RECORD_KEYS,
    ModelDescriptor,
    ModelRegistry,
    RouterContext,
    RunRecord,
    create_router,
    make_tools,
)
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.strategies.knn import KNNStrategy, Observation
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

LONG = "What does this contract say? " + "The seller delivers." * 400
"""About 2,000 tokens, and 8,029 bytes: a scripted engine's tokens."""
USED = {"input_tokens": 2000, "output_tokens": 5, "total_tokens": 2005}
TOLD = ", prompt cache warm: about $0.0054 less a call"
CACHED = Price(prompt=3.0, completion=15.0, cached=0.3)


def model(name: str = "m", price: Any = CACHED, used: Any = USED, **fields: Any) -> ModelDescriptor:
    reply = AIMessage("It sells.", usage_metadata=used)
    settings = {"share_context": "conversation", **fields}
    return ModelDescriptor(name=name, model=ScriptedChatModel([reply]), price=price, **settings)


class Thread:
    """Two questions on one thread."""

    def __init__(self, *models: ModelDescriptor, **settings: Any) -> None:
        engine = ScriptedEngine([search(f"{models[0].name}: What does it say?"), answer("It sells."), answer("Done")])
        decides = {"strategy": settings.pop("strategy")} if "strategy" in settings else {"engine": engine}
        registry = ModelRegistry(models)
        self.router = create_router(registry=registry, checkpointer=InMemorySaver(), **decides, **settings)

    async def ask(self, question: Any, way: str = "invoke", thread: str = "1") -> RunRecord:
        messages = question if isinstance(question, list) else [("user", question)]
        config = {"configurable": {"thread_id": thread}}
        result = await invoked(self.router, way, {"messages": messages}, config, output_keys=RECORD_KEYS)
        return RunRecord.of(result)

    async def second_prompt(self, question: Any = "And who buys?", **second: Any) -> tuple[str, RunRecord]:
        await self.ask(LONG)
        record = await self.ask(question, **second)
        return record.segments[0]["text"], record


@pytest.mark.parametrize("way", WAYS)
async def test_the_next_question_of_a_thread_is_told_what_the_warm_cache_saves(way: str) -> None:
    thread = Thread(model(), model("other"))
    first = (await thread.ask(LONG, way)).segments[0]["text"]
    record = await thread.ask("And who buys?", way)
    prompt = record.segments[0]["text"]
    assert f"- $3/M tokens in, $15/M out{TOLD}. Name: m." in prompt
    assert "- $3/M tokens in, $15/M out. Name: other." in prompt
    assert record.warm == [{"model": "m", "tokens": 2000, "saving_usd": pytest.approx(0.0054)}]
    assert "cache" not in first
    # A run without a call leaves nothing in a cache.
    assert (await thread.ask("Thanks", way)).warm == []


async def test_only_what_the_next_prompt_begins_with_counts() -> None:
    shares_nothing = model(share_context="none", system="Be kind. " * 200)
    _, record = await Thread(shares_nothing).second_prompt()
    assert [cache["tokens"] for cache in record.warm] == [len("Be kind. " * 200)]


@pytest.mark.parametrize(
    "fields",
    [
        {"price": Price(3.0, 15.0)},
        {"price": "free"},
        {"used": {**USED, "input_tokens": 1023}},
        {"share_context": "none"},
    ],
    ids=["no lower price", "free", "too short for a cache", "nothing shared"],
)
async def test_a_cache_that_saves_nothing_is_not_told(fields: Any) -> None:
    prompt, record = await Thread(model(**fields)).second_prompt()
    assert record.warm == []
    assert "cache" not in prompt


async def test_a_cache_counts_for_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()

    def it_is(seconds: float) -> None:
        monkeypatch.setattr("langgraph_router_r1.calls.prompt_cache.time.time", lambda: now + seconds)

    for passed, is_warm in ((299, True), (301, False)):
        thread = Thread(model())
        it_is(0)
        await thread.ask(LONG)
        it_is(passed)
        assert bool((await thread.ask("And who buys?")).warm) is is_warm


async def test_a_conversation_that_begins_otherwise_is_in_no_cache() -> None:
    thread = Thread(model())
    await thread.ask([HumanMessage(LONG, id="long")])
    assert (await thread.ask([RemoveMessage("long"), HumanMessage("And who buys?")])).warm == []
    thread = Thread(model())
    await thread.ask([HumanMessage(LONG, id="long")])
    assert (await thread.ask([HumanMessage(LONG.upper(), id="long"), HumanMessage("And who buys?")])).warm == []


async def test_another_thread_has_no_warm_cache() -> None:
    assert (await Thread(model()).second_prompt(thread="2"))[1].warm == []


async def test_a_reply_from_a_cache_of_replies_warms_no_prompt_cache() -> None:
    kept, cache = model(), InMemoryCache[Any]()
    assert [bool((await Thread(kept, cache=cache).second_prompt())[1].warm) for _ in range(2)] == [True, False]


async def test_after_a_run_with_tools_nothing_counts_for_they_stand_before_the_messages() -> None:
    thread = Thread(model())
    config: Any = {"configurable": {"thread_id": "1"}}
    tools = make_tools([{"name": "look_up", "description": "", "parameters": {"type": "object", "properties": {}}}])
    thread.router.invoke({"messages": [("user", LONG)]}, config, context=RouterContext(tools=tools))
    assert (await thread.ask("And who buys?")).warm == []


async def test_a_router_that_is_asked_as_a_model_has_no_prompt_cache() -> None:
    engine = ScriptedEngine([answer("It sells.")] * 2)
    inner = create_router(engine, ModelRegistry([model()]), router_price=CACHED)
    routed = ModelDescriptor(name="inner", model=inner, price=CACHED, share_context="conversation")
    assert (await Thread(routed).second_prompt())[1].warm == []


@pytest.mark.parametrize(("price", "chosen"), [(2.5, "warm"), (0.1, "cold")])
async def test_the_knn_strategy_asks_the_warm_model_if_the_saving_outweighs_its_price_and_says_so(
    price: float, chosen: str
) -> None:
    models = [model("warm"), model("cold", Price(price, 15.0))]
    costs = {"warm": 2e-4, "cold": 1e-4}
    known = [
        *[Observation(LONG, {"warm": 1.0, "cold": 0.0}, costs)] * 20,
        *[Observation("And who buys?", {"warm": 1.0, "cold": 1.0}, costs)] * 20,
    ]
    strategy = KNNStrategy(ModelRegistry(models), known, embeddings=DeterministicFakeEmbedding(size=8))
    thread = Thread(*models, strategy=strategy)
    alone = await thread.ask("And who buys?", thread="2")
    assert ([call["model"] for call in alone.calls], alone.decisions[0]["thought"]) == (["cold"], None)
    assert [call["model"] for call in (await thread.ask(LONG)).calls] == ["warm"]
    record = await thread.ask("And who buys?")
    assert [call["model"] for call in record.calls] == [chosen]
    said = "<think> Warm prompt caches count: warm (about $0.0054 less a call). </think>"
    assert [decision["thought"] for decision in record.decisions] == [said, None]
