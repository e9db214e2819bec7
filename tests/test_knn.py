"""The kNN strategy, and what a run becomes without the router LLM: whom it asks, what it spends, what it survives."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import Field
from rich.console import Console

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, RouterContext, build_router, create_router
from langgraph_router_r1.engines import EngineUnavailableError, VLLMEngine
from langgraph_router_r1.strategies.knn import KNNStrategy, Observation, nearest_neighbours, observations
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
from langgraph_router_r1.trace import ConsoleTrace

DOWN = RuntimeError("down")
QUESTION: Any = {"messages": [("user", "Capital of Peru?")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}


class Mortal(ScriptedEngine):
    """Writes so many turns; then its server is down, until it is given more lives."""

    def __init__(self, script: Any, *, lives: int) -> None:
        super().__init__(script)
        self.lives = lives
        self.tried = 0

    def generate(self, transcript: Any, **options: Any) -> Any:
        self.tried += 1
        if self.tried > self.lives:
            raise EngineUnavailableError("the router's server is down")
        return super().generate(transcript, **options)

    async def agenerate(self, transcript: Any, **options: Any) -> Any:
        return self.generate(transcript, **options)


class NeverThere(ScriptedEngine):
    """Even its tokenizer would come from a server that is down."""

    def __init__(self) -> None:
        super().__init__([])
        self.tried = 0

    def _down(self, *_: Any) -> Any:
        self.tried += 1
        raise EngineUnavailableError("the router's server is down")

    async def aload(self) -> None:
        self._down()

    control_tokens = property(_down)
    begin = encode = count_tokens = truncate = _down


class Order:
    """A fallback that always says the same; an exception is raised."""

    def __init__(self, *names: Any, delay_s: float = 0.0) -> None:
        self.names, self.delay_s = names, delay_s
        self.asked: list[tuple[str, float]] = []

    def rank(self, question: str, *, cost_weight: float) -> Sequence[str]:
        self.asked.append((question, cost_weight))
        time.sleep(self.delay_s)
        if isinstance(self.names[0], Exception):
            raise self.names[0]
        return self.names


def tried(result: Any) -> list[tuple[str, str]]:
    return [(routed["model"], routed["status"]) for routed in result["routing"]["calls"]]


def ended(result: Any) -> tuple[str, str]:
    return result["answer"], result["routing"]["stop_reason"]


# A run without the router LLM


def test_a_router_that_is_down_from_the_start_is_replaced_and_the_whole_question_asked() -> None:
    fallback = Order("large", "small")
    router = create_router(
        Mortal([], lives=0), pool(small="x", large="Lima"), cost_weight=0.3, fallback=fallback, max_turns=0
    )
    result = router.invoke(QUESTION, output_keys=["messages", "answer", "routing", "transcript"])
    assert ended(result) == ("Lima", "degraded")
    assert result["messages"][-1].content == "Lima"
    assert result["messages"][-1].response_metadata == {"stop_reason": "degraded"}
    (routed,) = result["routing"]["calls"]
    assert (routed["model"], routed["query"], routed["turn"], routed["status"]) == (
        "large",
        "Capital of Peru?",
        0,
        "ok",
    )
    assert fallback.asked == [("Capital of Peru?", 0.3)]
    assert result["routing"]["cost_usd"] == routed["cost_usd"] > 0
    assert result["transcript"] == []


def test_a_router_that_dies_in_mid_run_leaves_what_it_found_out_in_the_account() -> None:
    engine = Mortal([search("small: Which country?", "large: Which?")], lives=1)
    router = create_router(engine, pool(small="Peru", large="Lima"), fallback=Order("large"), router_price=1.0)
    result = router.invoke(QUESTION, output_keys=["answer", "routing", "transcript"])
    assert ended(result) == ("Lima", "degraded")
    routing = result["routing"]
    assert [(routed["turn"], routed["index"], routed["model"]) for routed in routing["calls"]] == [
        (0, 0, "small"),
        (0, 1, "large"),
        (1, 0, "large"),
    ]
    assert routing["turns"] == 2
    assert routing["router_cost_usd"] > 0
    assert routing["cost_usd"] == pytest.approx(
        routing["router_cost_usd"] + sum(routed["cost_usd"] for routed in routing["calls"])
    )
    assert [segment["kind"] for segment in result["transcript"]] == ["prompt", "policy"]


@pytest.mark.parametrize("lives", [0, 1])
async def test_without_a_fallback_the_engines_error_is_raised(lives: int) -> None:
    def router() -> Any:
        return create_router(Mortal([search("m: a?")], lives=lives), pool(m="x"))

    with pytest.raises(EngineUnavailableError, match="is down"):
        router().invoke(QUESTION)
    with pytest.raises(EngineUnavailableError, match="is down"):
        await router().ainvoke(QUESTION)


async def test_a_tokenizer_that_can_not_be_had_loses_neither_question_nor_paid_reply_and_is_not_tried_again() -> None:
    unpriced = ScriptedChatModel(["two words"], usage=False)
    for form in ("invoke", "ainvoke"):
        engine = NeverThere()
        router = create_router(engine, pool(m=unpriced), fallback=Order("m"))
        result = router.invoke(QUESTION) if form == "invoke" else await router.ainvoke(QUESTION)
        assert ended(result) == ("two words", "degraded")
        assert result["routing"]["candidate_tokens"]["estimated"]
        assert result["routing"]["cost_usd"] > 0
        assert engine.tried == 1


def test_a_full_context_is_no_outage() -> None:
    engine = ScriptedEngine([search("m: a?"), answer("x")], context_tokens=2100)
    fallback = Order("m")
    result = create_router(engine, pool(m="Lima" + "!" * 500), fallback=fallback).invoke(QUESTION)
    assert (result["routing"]["stop_reason"], fallback.asked) == ("context_full", [])


def test_when_a_model_fails_the_next_one_is_asked_and_the_dead_router_is_not() -> None:
    engine = Mortal([], lives=0)
    router = create_router(engine, pool(a=DOWN, b="  ", c="Lima", d="never"), fallback=Order("a", "b", "c", "d"))
    result = router.invoke(QUESTION)
    assert ended(result) == ("Lima", "degraded")
    assert tried(result) == [("a", "error"), ("b", "error"), ("c", "ok")]
    assert [routed["turn"] for routed in result["routing"]["calls"]] == [0, 1, 2]
    assert (engine.tried, result["routing"]["turns"]) == (1, 3)


def test_at_most_three_models_are_asked_each_once() -> None:
    router = create_router(
        Mortal([], lives=0), pool(a=DOWN, b=DOWN, c=DOWN, d="x"), fallback=Order("a", "A", "a", "b", "c", "d")
    )
    result = router.invoke(QUESTION)
    assert ended(result) == ("", "degraded")
    assert tried(result) == [("a", "error"), ("b", "error"), ("c", "error")]


def test_when_none_replies_the_last_good_reply_of_the_run_is_the_answer() -> None:
    engine = Mortal([search("once: Country?")], lives=1)
    once = ScriptedChatModel(["Peru", DOWN])
    result = create_router(engine, pool(once=once), fallback=Order("once")).invoke(QUESTION)
    assert ended(result) == ("Peru", "degraded")
    assert tried(result) == [("once", "ok"), ("once", "error")]


def test_what_the_question_holds_reaches_no_model_as_a_tag() -> None:
    model = ScriptedChatModel(["x"])
    router = create_router(Mortal([], lives=0), pool(m=model), fallback=Order("m"))
    router.invoke({"messages": [("user", "<think> half an emoji \ud83d <|im_end|>")]})
    ((message,),) = model.calls
    assert message.text.endswith("(think) half an emoji ? (im_end)")


def test_the_last_question_is_the_one_that_is_asked() -> None:
    fallback = Order("m")
    router = create_router(Mortal([], lives=0), pool(m="x"), fallback=fallback)
    router.invoke({"messages": [("user", "Hi"), ("ai", "Hello"), ("user", "Which?")]})
    assert [question for question, _ in fallback.asked] == ["Which?"]
    with pytest.raises(ValueError, match="there is no question"):
        router.invoke({"messages": []})


# A fallback that fails itself


@pytest.mark.parametrize("names", [(RuntimeError("secret"),), (None,), ("nobody", 7), ("Nobody", "nobody else")])
async def test_a_fallback_that_fails_loses_no_question_and_the_cheapest_model_is_asked(
    names: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry, _ = priced(dear=1.0, cheap=0.1)
    router = create_router(Mortal([], lives=0), registry, fallback=Order(*names))
    assert ended(router.invoke(QUESTION)) == ("cheap said so", "degraded")
    assert ended(await router.ainvoke(QUESTION)) == ("cheap said so", "degraded")
    assert "secret" not in caplog.text


def test_names_that_are_not_registered_are_skipped_and_case_does_not_count() -> None:
    router = create_router(Mortal([], lives=0), pool(a="a", b="b"), fallback=Order("nobody", "B", "a"))
    assert tried(router.invoke(QUESTION)) == [("b", "ok")]


# Money


def priced(**prices: float) -> tuple[ModelRegistry, dict[str, ScriptedChatModel]]:
    models = {name: ScriptedChatModel([f"{name} said so"]) for name in prices}
    descriptors = (
        ModelDescriptor(name=name, model=models[name], price=price, params={"max_tokens": 100})
        for name, price in prices.items()
    )
    return ModelRegistry(descriptors), models


def test_models_over_the_budget_are_passed_over() -> None:
    registry, models = priced(dear=100.0, cheap=1.0)
    router = create_router(Mortal([], lives=0), registry, fallback=Order("dear", "cheap"), budget_usd=0.001)
    result = router.invoke(QUESTION)
    assert (result["answer"], tried(result)) == ("cheap said so", [("cheap", "ok")])
    assert models["dear"].calls == []
    broke = router.invoke(QUESTION, context=RouterContext(budget_usd=0.0))
    assert (ended(broke), tried(broke)) == (("", "degraded"), [])


def test_what_was_kept_aside_for_the_router_pays_for_calls_once_it_is_gone() -> None:
    registry, _ = priced(m=1.0)
    budget: Any = {"budget_usd": 0.0005, "router_price": 10.0, "max_tokens": 30}
    alive = create_router(ScriptedEngine([search("m: a?"), answer("x")]), registry, **budget)
    assert tried(alive.invoke(QUESTION)) == []
    gone = create_router(NeverThere(), registry, fallback=Order("m"), **budget)
    assert tried(gone.invoke(QUESTION)) == [("m", "ok")]


@given(
    budget=st.floats(0, 0.005),
    lives=st.integers(0, 3),
    replies=st.lists(st.sampled_from(["", "w " * 50, DOWN]), min_size=1, max_size=4),
    prices=st.lists(st.floats(0.01, 20), min_size=3, max_size=3),
    router_price=st.sampled_from(["free", 0.5]),
)
@settings(max_examples=60)
def test_a_run_that_degrades_keeps_to_its_budget_too(
    budget: float, lives: int, replies: list[Any], prices: list[float], router_price: Any
) -> None:
    registry = ModelRegistry(
        ModelDescriptor(name=f"m{index}", model=ScriptedChatModel(replies), price=price, params={"max_tokens": 100})
        for index, price in enumerate(prices)
    )
    engine = Mortal([search("m0: a?", "m1: b?")] * 3, lives=lives)
    router = create_router(
        engine, registry, fallback=Order("m2", "m1", "m0"), budget_usd=budget, router_price=router_price, max_tokens=100
    )
    routing = router.invoke(QUESTION)["routing"]
    assert routing["cost_usd"] <= budget
    assert sum(routed["turn"] >= lives for routed in routing["calls"]) <= 3


# Sync and async, threads, crashes


@pytest.mark.parametrize("lives", [0, 1])
async def test_sync_async_and_stream_agree_on_a_degraded_run(lives: int) -> None:
    def fresh() -> Any:
        engine = Mortal([search("a: x?", "b: y?")], lives=lives)
        return create_router(engine, pool(a=ScriptedChatModel(["a"]), b=DOWN), fallback=Order("b", "a"))

    def comparable(result: Any) -> Any:
        routed_calls = [{**routed, "latency_s": 0} for routed in result["routing"]["calls"]]
        return result["answer"], {**result["routing"], "calls": routed_calls}

    context = RouterContext(cost_weight=0.5)
    results = [
        fresh().invoke(QUESTION, context=context),
        await fresh().ainvoke(QUESTION, context=context),
        list(fresh().stream(QUESTION, stream_mode="values", context=context))[-1],
        [chunk async for chunk in fresh().astream(QUESTION, stream_mode="values", context=context)][-1],
    ]
    assert ended(results[0]) == ("a", "degraded")
    assert all(comparable(result) == comparable(results[0]) for result in results)
    events = list(fresh().stream(QUESTION, stream_mode="custom"))
    async_events = [event async for event in fresh().astream(QUESTION, stream_mode="custom")]
    # Calls of one turn run side by side: which of their events comes first is not promised.
    assert sorted(event["type"] for event in events) == sorted(event["type"] for event in async_events)


async def test_the_ranking_does_not_hold_up_the_event_loop_and_knows_the_runs_own_settings() -> None:
    fallback = Order("m", delay_s=0.3)
    router = create_router(Mortal([], lives=0), pool(m="x"), fallback=fallback)
    runs = [router.ainvoke(QUESTION, context=RouterContext(cost_weight=0.1 * index)) for index in range(3)]
    async with asyncio.timeout(0.8):  # one after another would take 0.9 seconds
        results = await asyncio.gather(*runs)
    assert [ended(result) for result in results] == [("x", "degraded")] * 3
    assert sorted(weight for _, weight in fallback.asked) == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("lives", [0, 13, 30])
async def test_an_outage_under_load_loses_no_question(lives: int) -> None:
    def write(transcript: Any) -> str:
        return search("capitals: Capital?") if len(transcript) == 1 else answer("Lima")

    questions: list[Any] = [{"messages": [("user", f"Question {index}?")]} for index in range(24)]
    echo = RunnableLambda(lambda messages: "Lima")

    def fresh() -> Any:
        return create_router(Mortal(write, lives=lives), pool(capitals=echo), fallback=Order("capitals"))

    for results in (fresh().batch(questions), await fresh().abatch(questions)):
        assert [result["answer"] for result in results] == ["Lima"] * 24
        assert any(result["routing"]["stop_reason"] == "degraded" for result in results)


def test_a_degraded_run_is_plain_json_in_its_checkpoints_and_goes_on_from_them() -> None:
    model, fallback, saver = ScriptedChatModel([DOWN, "Lima"]), Order("a", "b"), InMemorySaver()
    engine = Mortal([], lives=0)

    def router() -> Any:
        return create_router(
            engine, pool(a=model, b=model), fallback=fallback, checkpointer=saver, interrupt_after=["think", "route"]
        )

    router().invoke(QUESTION, THREAD)
    for _ in range(6):
        values = router().get_state(THREAD).values
        without_messages = {key: value for key, value in values.items() if key != "messages"}
        assert json.loads(json.dumps(without_messages)) == without_messages
        router().invoke(None, THREAD)
    values = router().get_state(THREAD).values
    assert (values["answer"], values["routing"]["stop_reason"]) == ("Lima", "degraded")
    # Each router was a new one, as after a crash: nobody was asked twice.
    assert (len(model.calls), len(fallback.asked), engine.tried) == (2, 1, 1)


def test_the_next_question_of_a_thread_returns_to_the_router_once_it_is_back() -> None:
    engine = Mortal([search("m: a?"), answer("two")], lives=0)
    router = create_router(engine, pool(m="Lima"), fallback=Order("m"), checkpointer=InMemorySaver())
    assert ended(router.invoke(QUESTION, THREAD)) == ("Lima", "degraded")
    assert ended(router.invoke(QUESTION, THREAD)) == ("Lima", "degraded")
    engine.lives = 10
    result = router.invoke({"messages": [("user", "two")]}, THREAD)
    assert ended(result) == ("two", "answered")
    assert (result["routing"]["turns"], len(result["routing"]["calls"])) == (1, 1)
    assert [type(message) for message in result["messages"]] == [HumanMessage, AIMessage] * 3
    engine.lives = 0
    result = router.invoke({"messages": [("user", "three")]}, THREAD)
    assert (ended(result), result["routing"]["turns"]) == (("Lima", "degraded"), 1)


# What one sees


def test_the_trace_says_that_the_router_is_gone_and_who_is_asked_instead() -> None:
    console = Console(record=True, width=120)
    trace = ConsoleTrace(console)
    router = create_router(Mortal([], lives=0), pool(a=DOWN, b="Lima", c="x"), fallback=Order("a", "b", "c"))
    for event in router.stream(QUESTION, stream_mode="custom"):
        trace.show(event)
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert lines[0] == "… The router LLM does not answer: the fallback asks a, then b, then c."
    assert [line[0] for line in lines] == ["…", "→", "←", "→", "←", "="]
    assert "degraded" in lines[-1]


def test_why_the_router_is_gone_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    create_router(Mortal([], lives=0), pool(m="x"), fallback=Order("m")).invoke(QUESTION)
    assert "the router's server is down" in caplog.text


# The strategy


class Counting(DeterministicFakeEmbedding):
    """The same text has the same vector; others have nothing in common."""

    texts: list[str] = Field(default_factory=list)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts.extend(texts)
        return super().embed_documents(texts)


CAPITAL, CURRENCY = "What is the capital of Peru?", "What currency is used in Peru?"
PROFILE = [
    *[Observation(CAPITAL, {"capitals": 1.0, "generalist": 0.9}, {"capitals": 1e-6, "generalist": 9e-6})] * 20,
    *[Observation(CURRENCY, {"capitals": 0.0, "generalist": 0.8}, {"capitals": 1e-6, "generalist": 9e-6})] * 20,
]
POOL = ModelRegistry(
    [
        ModelDescriptor(name="capitals", model=ScriptedChatModel(["Lima"]), price=0.1),
        ModelDescriptor(name="generalist", model=ScriptedChatModel(["Lima, I think"]), price=1.0),
    ]
)


def knn(registry: ModelRegistry = POOL, known: Sequence[Observation] = PROFILE) -> KNNStrategy:
    return KNNStrategy(registry, known, embeddings=Counting(size=16))


def test_the_ranking_follows_the_nearest_questions() -> None:
    assert knn().rank_all([CAPITAL, CURRENCY]) == [["capitals", "generalist"], ["generalist", "capitals"]]
    assert knn().expected_quality([CURRENCY]).tolist() == [[0.0, pytest.approx(0.8)]]


def test_near_is_meant_by_angle() -> None:
    predictor = nearest_neighbours(2, k=1)
    predictor.fit([[1.0, 0.0], [0.0, 0.1]], [[1.0], [0.0]])
    assert predictor.predict([[0.3, 3.0]]).tolist() == [[0.0]]


def test_the_more_cost_counts_the_cheaper_the_choice() -> None:
    assert knn().rank(CURRENCY, cost_weight=0.0) == ["generalist", "capitals"]
    assert knn().rank(CURRENCY, cost_weight=1.0) == ["capitals", "generalist"]


def test_the_same_question_at_another_weight_is_predicted_once() -> None:
    strategy = knn()
    rankings = [strategy.rank(CURRENCY, cost_weight=weight) for weight in (0.0, 1.0)]
    embeddings = strategy._embeddings
    assert isinstance(embeddings, Counting)
    assert embeddings.texts == [*(known.question for known in PROFILE), CURRENCY]
    assert strategy.rank(CAPITAL) == ["capitals", "generalist"]
    assert [strategy.rank(CURRENCY, cost_weight=weight) for weight in (0.0, 1.0)] == rankings
    assert strategy.rank(CURRENCY, cost_weight=1.0) == strategy.rank_all([CURRENCY], cost_weight=1.0)[0]


def test_of_equals_the_cheaper_one_comes_first() -> None:
    known = [Observation(CAPITAL, {"capitals": 1.0, "generalist": 1.0}, {"capitals": 1e-6, "generalist": 9e-6})]
    assert knn(POOL, known).rank(CAPITAL) == ["capitals", "generalist"]


@pytest.mark.parametrize(
    ("skills", "place"), [({"capitals": 0.97, "other": 0.93}, 1), ({"capitals": 0.5, "other": 0.1}, 2), ({}, 2)]
)
def test_a_model_that_was_not_profiled_is_judged_by_its_skills(skills: dict[str, float], place: int) -> None:
    newcomer = ModelDescriptor(name="newcomer", model=ScriptedChatModel(["x"]), price=0.5, skills=skills)
    ranking = knn().refit(POOL.with_model(newcomer)).rank(CAPITAL)
    assert ranking.index("newcomer") == place
    assert set(ranking) == {"capitals", "generalist", "newcomer"}


def test_a_newcomer_is_asked_for_the_kinds_of_question_that_its_skills_name_and_for_no_others() -> None:
    known = [replace(one, kind="capital" if one.question == CAPITAL else "currency") for one in PROFILE]
    newcomer = ModelDescriptor(name="new", model=ScriptedChatModel(["x"]), price=0.5, skills={"currency": 0.95})
    strategy = knn(POOL.with_model(newcomer), known)
    assert strategy.expected_quality([CAPITAL, CURRENCY])[:, 2].tolist() == [0.0, pytest.approx(0.95)]
    assert [ranking[0] for ranking in strategy.rank_all([CAPITAL, CURRENCY])] == ["capitals", "new"]


def test_a_model_that_was_not_profiled_costs_what_its_price_suggests() -> None:
    for price, place in {0.1: 0, 1.0: 1, 10.0: 2}.items():
        newcomer = ModelDescriptor(
            name="newcomer", model=ScriptedChatModel(["x"]), price={"prompt": price, "completion": 0}
        )
        ranking = knn().refit(POOL.with_model(newcomer)).rank(CAPITAL, cost_weight=1.0)
        assert ranking.index("newcomer") == place


def test_a_pool_that_has_changed_embeds_nothing_again() -> None:
    first = knn()
    first.rank(CURRENCY)
    embeddings = first._embeddings
    assert isinstance(embeddings, Counting)
    assert len(embeddings.texts) == len(PROFILE) + 1
    smaller = first.refit(POOL.without("generalist"))
    assert smaller.rank(CURRENCY) == ["capitals"]
    assert len(embeddings.texts) == len(PROFILE) + 2
    assert first.rank(CURRENCY) == ["generalist", "capitals"]


def test_many_first_questions_embed_the_profile_once() -> None:
    class Slow(Counting):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            time.sleep(0.02)
            return super().embed_documents(texts)

    shared = KNNStrategy(POOL, PROFILE, embeddings=Slow(size=16))
    threads = [threading.Thread(target=shared.rank, args=(CAPITAL,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(shared._embeddings, Counting)
    # The question is embedded by each thread that comes before the first has finished.
    assert len(PROFILE) + 1 <= len(shared._embeddings.texts) <= len(PROFILE) + 8


def test_the_knn_strategy_needs_something_to_go_by() -> None:
    with pytest.raises(ValueError, match="run 'router-r1 profile'"):
        knn(POOL, [])


# The strategy of a registry


def write_profile(path: Path, *names: str) -> Path:
    rows = [
        {
            "id": f"t{index}",
            "question": CAPITAL if index % 2 else CURRENCY,
            "golden_answers": ["Lima" if index % 2 else "Sol"],
            "outcomes": {
                names[0]: {"response": "Lima", "prompt_tokens": 20, "completion_tokens": 5},
                names[1]: {"response": "Sol", "prompt_tokens": 20, "completion_tokens": 5},
            },
        }
        for index in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_profile_says_how_good_and_how_dear_each_model_was(tmp_path: Path) -> None:
    # Case does not count: the records may spell a name otherwise, and may know models that are not in the pool.
    path = write_profile(tmp_path / "p.jsonl", "Capitals", "gone")
    from langgraph_router_r1.evaluation.recorded import RecordedPool

    right, wrong = observations(RecordedPool.from_file(path), POOL)[1::-1]
    assert (right.quality, wrong.quality) == ({"capitals": 1.0}, {"capitals": 0.0})
    assert right.cost_usd == {"capitals": pytest.approx(25 * 0.1e-6)}
    with pytest.raises(ValueError, match="a kNN strategy needs observations"):
        KNNStrategy.from_profile(path, POOL.without("capitals"), embeddings=Counting(size=16))


TOML = """
[models.capitals]
model = "openai:small"
price = 0.1
[models.currencies]
model = "openai:small"
price = 0.1
"""


def test_a_registry_file_finds_the_profile_beside_it_and_keeps_it(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(TOML)
    assert ModelRegistry.from_file(file).profile is None
    profile = write_profile(tmp_path / "models.profile.jsonl", "capitals", "currencies")
    registry = ModelRegistry.from_file(str(file))
    assert registry.profile == profile
    assert registry.without("capitals").profile == registry.with_model(registry["capitals"]).profile == profile
    assert ModelRegistry.from_dict({"models": {"m": {"model": "a:b", "price": 1}}}, profile="p.jsonl").profile == Path(
        "p.jsonl"
    )


async def test_the_knn_strategy_of_a_registrys_profile_asks_who_did_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langgraph_router_r1.strategies.knn.MiniLM", lambda: Counting(size=16))
    profile = write_profile(tmp_path / "models.profile.jsonl", "capitals", "currencies")
    registry = ModelRegistry(pool(capitals="Lima", currencies="Sol"), profile=profile)
    router = create_router(Mortal([], lives=0), registry, fallback="knn")
    assert tried(router.invoke({"messages": [("user", CURRENCY)]})) == [("currencies", "ok")]
    assert tried(await router.ainvoke({"messages": [("user", CAPITAL)]})) == [("capitals", "ok")]


def test_a_knn_fallback_without_a_profile_is_refused_when_the_router_is_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run 'router-r1 profile'"):
        create_router(ScriptedEngine([]), pool(m="x"), fallback="knn")
    missing = ModelRegistry(pool(m="x"), profile=tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="can't be read"):
        create_router(ScriptedEngine([]), missing, fallback="knn")
    with pytest.raises(ValueError, match="fallback is 'knnn'; it must be 'knn'"):
        build_router(ScriptedEngine([]), pool(m="x"), fallback="knnn")


def test_without_the_extra_a_knn_fallback_is_refused_when_the_router_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = write_profile(tmp_path / "models.profile.jsonl", "capitals", "currencies")
    registry = ModelRegistry(pool(capitals="Lima", currencies="Sol"), profile=profile)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"langgraph-router-r1\[eval\]"):
        create_router(ScriptedEngine([]), registry, fallback="knn")
    monkeypatch.setitem(sys.modules, "langgraph_router_r1.strategies.knn", None)
    with pytest.raises(ModuleNotFoundError, match=r"langgraph-router-r1\[eval\]"):
        create_router(ScriptedEngine([]), registry, fallback="knn")


# On a real vLLM


@pytest.mark.vllm
async def test_killing_the_server_under_load_loses_no_question_and_is_an_error_without_a_fallback() -> None:
    pytest.importorskip("vllm", reason="the [pocket] extra is not installed")
    from langgraph_router_r1.pocket import ROUTER_NAME, pocket_registry, pocket_server

    killing = threading.Lock()
    with pocket_server() as server:

        def reply(messages: Any) -> str:
            with killing:
                server.stop()  # the first reply kills it; whoever gets one meets a dead server in the next turn
            return "Peru"

        registry = ModelRegistry(
            ModelDescriptor(name=name, model=RunnableLambda(reply), price=1.0, params={"max_tokens": 64})
            for name in pocket_registry(server.base_url).names
        )
        known = [Observation(CAPITAL, {"generalist": 1.0}, {"generalist": 1e-6})]
        fallback = KNNStrategy(registry, known, embeddings=Counting(size=16))
        countries = [
            "Peru", "Kenya", "Japan", "Chile", "Norway", "Egypt", "Spain", "Cuba", "Nepal", "Ghana", "Fiji", "Oman",
        ]  # fmt: skip
        questions: list[Any] = [{"messages": [("user", f"What is the capital of {name}?")]} for name in countries]
        async with VLLMEngine(server.base_url, ROUTER_NAME, timeout_s=20) as engine:
            router = create_router(engine, registry, max_tokens=256, fallback=fallback)
            bare = create_router(engine, registry, max_tokens=256)
            started = time.monotonic()
            *results, error = await asyncio.gather(
                *map(router.ainvoke, questions), asyncio.to_thread(bare.invoke, questions[0]), return_exceptions=True
            )
            assert time.monotonic() - started < 40
    assert all(result["answer"] for result in results)
    assert "degraded" in {result["routing"]["stop_reason"] for result in results}
    assert isinstance(error, EngineUnavailableError)
    assert server.base_url in str(error)
