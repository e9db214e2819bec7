"""Every end that a run can come to is the same in blocking and in asynchronous use, with the same events."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from conftest import WAYS, answer, pool, search
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from langgraph_router_r1 import ModelRegistry, Price, RouterContext, build_router, create_router
from langgraph_router_r1.engines import EngineUnavailableError
from langgraph_router_r1.settings import Limits, RouterSettings
from langgraph_router_r1.strategies import RouterLLM
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "?")]}
OUTPUT = ["answer", "routing", "transcript"]


class InOrder:
    """A fallback that asks these models, whatever the question; it remembers what it was asked."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.asked: list[tuple[str, float]] = []

    def rank(self, question: str, *, cost_weight: float) -> Sequence[str]:
        self.asked.append((question, cost_weight))
        return self.names


def dies_after(*turns: str) -> Callable[[Any], str]:
    script = iter(turns)

    def write(_: Any) -> str:
        for turn in script:
            return turn
        raise EngineUnavailableError("the router's server is down")

    return write


async def run(way: str, router: Any, question: Any = QUESTION, config: Any = None, **options: Any) -> Any:
    """Return the events of a run, without what differs from run to run, and the state that it ends with."""
    settings = {"stream_mode": ["custom", "values"], "output_keys": OUTPUT, **options}
    if way == "invoke":
        seen = list(router.stream(question, config, **settings))
    else:
        seen = [event async for event in router.astream(question, config, **settings)]
    events = [comparable(event) for mode, event in seen if mode == "custom"]
    return events, comparable(seen[-1][1] if seen[-1][0] == "values" else [e for m, e in seen if m == "values"][-1])


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items() if key not in {"latency_s", "message_id"}}
    return [comparable(inner) for inner in value] if isinstance(value, list) else value


async def both(fresh: Callable[[], Any], **options: Any) -> tuple[list[Any], Any]:
    """Run a new router in both ways; check that the results are the same, and return one."""
    (events, values), (other_events, other_values) = [await run(way, fresh(), **options) for way in WAYS]
    # Calls of one turn run side by side: which of their events comes first is not promised.
    assert sorted(map(json.dumps, events)) == sorted(map(json.dumps, other_events))
    assert values == other_values
    return events, values


def kinds(events: list[Any]) -> list[str]:
    """Return the types of the events, an answer that came in several pieces once."""
    names = [event["type"].removeprefix("router_r1.") for event in events]
    return [
        name for name, before in zip(names, [None, *names], strict=False) if (name, before) != ("answer_delta",) * 2
    ]


async def test_what_the_router_writes_is_in_the_events_and_why_a_run_ended_is_on_its_message() -> None:
    turns = [search("m: a?"), answer("Lima")]
    for way in WAYS:
        events, values = await run(way, create_router(ScriptedEngine(turns), pool(m="Lima")), output_keys=["messages"])
        assert [event["text"] for event in events if event["type"] == "router_r1.think"] == turns
        assert values["messages"][-1].response_metadata["stop_reason"] == "answered"


async def test_a_router_that_writes_nothing_readable_is_told_how_to_go_on_and_ends_without_an_answer() -> None:
    registry, turns = pool(m="Lima"), ["<think> hm"] * 5
    for way in WAYS:
        _, values = await run(way, create_router(ScriptedEngine(turns), registry))
        said = [segment["text"] for segment in values["transcript"] if segment["kind"] == "observation"]
        assert "could not be read" in said[0]
        assert "Write either a search (name: question) or an answer, in its tags." in said[0]
        assert "Answer now, in answer tags." in said[-1]
        assert (values["answer"], values["routing"]["stop_reason"]) == ("", "no_answer")


async def test_a_run_that_routes_and_answers() -> None:
    def fresh() -> Any:
        return create_router(ScriptedEngine([search("m: a?"), "hm", answer("Lima")]), pool(m="Lima"))

    events, values = await both(fresh)
    assert kinds(events) == ["think", "route", "info", "think", "answer_delta", "think", "done"]
    assert [event["turn"] for event in events if "turn" in event] == [0, 0, 0, 1, 1]
    assert events[1] == {"type": "router_r1.route", "turn": 0, "index": 0, "model": "m", "query": "a?"}
    assert events[2] == {
        "type": "router_r1.info", "turn": 0, "index": 0, "model": "m", "answered_by": "m", "status": "ok",
        "reason": None, "response": "Lima", "usage": values["routing"]["calls"][0]["usage"],
        "cost_usd": pytest.approx(11e-6),
    }  # fmt: skip
    assert events[-1]["answer"] == values["answer"] == "Lima"
    assert events[-1]["routing"] == values["routing"]
    # The turns end at their stop strings: nothing is sampled after the tag that decides.
    assert values["transcript"][1]["text"].endswith("</search>")


async def test_a_run_whose_budget_does_not_pay_for_the_router() -> None:
    def fresh() -> Any:
        return create_router(ScriptedEngine([answer("x")]), pool(m="x"), budget_usd=1e-9, router_price=1.0)

    events, values = await both(fresh)
    assert (kinds(events), values["routing"]["stop_reason"], values["answer"]) == (["done"], "budget_exhausted", "")
    assert [segment["kind"] for segment in values["transcript"]] == ["prompt", "observation"]


async def test_a_run_whose_budget_pays_for_one_token_of_the_router() -> None:
    prompt = len(ScriptedEngine([]).begin([{"role": "user", "content": ""}])["token_ids"])
    assert prompt > 0
    lengths = []
    for budget in (1.0, None):
        engine = ScriptedEngine([answer("x")] * 2)
        create_router(engine, pool(m="x"), max_turns=0, router_price=1.0, budget_usd=budget).invoke(QUESTION)
        lengths.append(len(engine.prompts[0]))
    assert lengths[0] == lengths[1]

    def fresh() -> Any:
        budget = (lengths[0] + 1.5) * 1e-6  # the prompt, and one token
        return create_router(
            ScriptedEngine([answer("x")]), pool(m="x"), max_turns=0, router_price=1.0, budget_usd=budget
        )

    _, values = await both(fresh)
    assert values["routing"]["router_tokens"]["completion_tokens"] == 1
    assert values["routing"]["stop_reason"] == "no_answer"


async def test_a_run_whose_context_is_full() -> None:
    def fresh() -> Any:
        engine = ScriptedEngine([search("m: a?"), answer("x")], context_tokens=2100)
        return create_router(engine, pool(m="Lima" + "!" * 500))

    events, values = await both(fresh)
    assert kinds(events) == ["think", "route", "info", "answer_delta", "done"]
    assert (values["routing"]["stop_reason"], values["answer"][:5]) == ("context_full", "Lima!")


async def test_a_question_that_does_not_fit_at_all() -> None:
    def fresh() -> Any:
        return create_router(ScriptedEngine([answer("x")], context_tokens=100), pool(m="x"))

    _, values = await both(fresh)
    assert (values["routing"]["stop_reason"], values["answer"]) == ("context_full", "")


async def test_a_second_question_that_does_not_fit_is_not_answered_with_a_reply_to_the_first() -> None:
    for way in WAYS:
        engine = ScriptedEngine([search("m: a?"), answer("Lima")], context_tokens=4000)
        router = create_router(engine, pool(m="Lima"), checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}
        await run(way, router, config=config)
        _, values = await run(way, router, {"messages": [("user", "long " * 1000)]}, config)
        assert (values["routing"]["stop_reason"], values["answer"]) == ("context_full", "")


async def test_a_second_question_without_the_router_llm_keeps_nothing_of_the_first() -> None:
    for way in WAYS:
        engine = ScriptedEngine(dies_after(search("a: x?"), answer("Lima")))
        router = create_router(engine, pool(a="Lima"), fallback=InOrder("a"), checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}
        await run(way, router, config=config)
        events, values = await run(way, router, {"messages": [("user", "another")]}, config)
        assert (events[0]["turn"], values["transcript"], len(values["routing"]["calls"])) == (0, [], 1)


async def test_with_routing_off_a_turn_does_not_end_at_a_search() -> None:
    def fresh() -> Any:
        turns = [search("m: a?") + answer("Lima")]
        return create_router(ScriptedEngine(turns), pool(m="x"), max_turns=0)

    _, values = await both(fresh)
    assert (values["answer"], values["routing"]["stop_reason"]) == ("Lima", "forced_answer")


async def test_a_router_llm_that_is_down_from_the_start_and_a_fallback() -> None:
    fallbacks: list[InOrder] = []

    def fresh() -> Any:
        fallbacks.append(InOrder("b", "a"))
        return create_router(
            ScriptedEngine(dies_after()), pool(a="Lima", b=""), fallback=fallbacks[-1], cost_weight=0.25
        )

    events, values = await both(fresh)
    assert kinds(events) == ["think", "route", "info", "route", "info", "answer_delta", "done"]
    assert events[0]["turn"] == 0
    assert "the fallback asks b, then a" in events[0]["text"]
    assert (values["answer"], values["routing"]["stop_reason"]) == ("Lima", "degraded")
    assert [(routed["turn"], routed["index"], routed["model"]) for routed in values["routing"]["calls"]] == [
        (0, 0, "b"),
        (1, 0, "a"),
    ]
    assert values["transcript"] == []
    assert [fallback.asked for fallback in fallbacks] == [[("?", 0.25)]] * 2


async def test_a_router_llm_that_dies_after_a_turn_and_a_fallback() -> None:
    def fresh() -> Any:
        return create_router(
            ScriptedEngine(dies_after(search("a: x?"))), pool(a="Lima", b="Quito"), fallback=InOrder("b")
        )

    events, values = await both(fresh)
    assert [(event["type"], event["turn"]) for event in events if "turn" in event][3] == ("router_r1.think", 1)
    assert (values["answer"], values["routing"]["turns"]) == ("Quito", 2)
    # The transcript is as it was before the turn that failed.
    assert [segment["kind"] for segment in values["transcript"]] == ["prompt", "policy"]


async def test_a_fallback_that_the_budget_does_not_pay_for() -> None:
    def fresh() -> Any:
        return create_router(ScriptedEngine(dies_after()), pool(a="Lima"), fallback=InOrder("a"), budget_usd=1e-9)

    events, values = await both(fresh)
    assert "the budget pays for no call" in events[0]["text"]
    assert (kinds(events), values["answer"], values["routing"]["stop_reason"]) == (["think", "done"], "", "degraded")


async def test_a_router_llm_that_is_down_and_no_fallback() -> None:
    for way in WAYS:
        for turns, routed_calls in (((), 0), ((search("m: a?"),), 1)):
            router = create_router(ScriptedEngine(dies_after(*turns)), pool(m="Lima"), checkpointer=InMemorySaver())
            with pytest.raises(EngineUnavailableError) as caught:
                await run(way, router, config={"configurable": {"thread_id": "1"}})
            assert caught.value.routing is not None
            assert len(caught.value.routing["calls"]) == routed_calls
            assert caught.value.routing["stop_reason"] is None
            assert caught.value.routing["turns"] == routed_calls


async def test_the_account_on_an_error_is_that_of_its_own_question() -> None:
    for way in WAYS:
        engine = ScriptedEngine(dies_after(search("m: a?"), answer("Lima")))
        router = create_router(engine, pool(m="Lima"), checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}
        await run(way, router, config=config)
        with pytest.raises(EngineUnavailableError) as caught:
            await run(way, router, {"messages": [("user", "another")]}, config)
        assert caught.value.routing is not None
        assert (caught.value.routing["calls"], caught.value.routing["cost_usd"]) == ([], 0)
        assert caught.value.routing["thread_cost_usd"] == pytest.approx(11e-6)


async def test_refused_calls_with_a_checkpointer() -> None:
    """No note is stored of a call that is not made."""

    def fresh() -> Any:
        turns = [search("m: a?", "m: b?"), search("nobody: c?"), answer("x")]
        return create_router(ScriptedEngine(turns), pool(m="Lima"), max_parallel=1, checkpointer=InMemorySaver())

    _, values = await both(fresh, config={"configurable": {"thread_id": "1"}})
    assert [routed["status"] for routed in values["routing"]["calls"]] == ["ok", "denied", "unknown_model"]
    assert [routed["maybe_cost_usd"] for routed in values["routing"]["calls"]] == [0, 0, 0]


async def test_limits_of_a_context() -> None:
    def fresh() -> Any:
        return create_router(ScriptedEngine([search("m: a?") + answer("Lima")] * 3), pool(m="x"))

    _, values = await both(fresh, context=RouterContext(max_turns=1))
    assert (values["routing"]["turns"], values["routing"]["stop_reason"]) == (1, "forced_answer")


def test_before_the_first_turn_tokens_are_estimated_without_the_engine() -> None:
    """A reply that was paid for is not lost to a tokenizer that a dead server should have sent."""

    class NoTokenizer(ScriptedEngine):
        def count_tokens(self, text: str) -> int:
            raise EngineUnavailableError("the tokenizer can't be had")

    registry = ModelRegistry(
        model.model_copy(update={"model": ScriptedChatModel(["x" * 399], usage=False)}) for model in pool(m="")
    )
    router = create_router(NoTokenizer(dies_after()), registry, fallback=InOrder("m"))
    routed = router.invoke(QUESTION)["routing"]["calls"][0]
    assert (routed["status"], routed["usage"]["completion_tokens"], routed["usage"]["estimated"]) == ("ok", 100, True)


def test_once_a_turn_is_sampled_tokens_are_counted_with_the_routers_tokenizer() -> None:
    registry = ModelRegistry(
        model.model_copy(update={"model": ScriptedChatModel(["x" * 399], usage=False)}) for model in pool(m="")
    )
    routed = create_router(ScriptedEngine([search("m: a?"), answer("x")]), registry).invoke(QUESTION)["routing"][
        "calls"
    ][0]
    assert routed["usage"]["completion_tokens"] == 399  # the tokens of the scripted router are bytes


def test_the_compiled_graph_has_the_name_store_interrupts_and_debugging_that_were_asked_for() -> None:
    store = InMemoryStore()
    router = create_router(
        ScriptedEngine([]), pool(m="x"), store=store, interrupt_after=["think"], debug=True, name="mine"
    )
    assert (router.name, router.store, router.interrupt_after_nodes, router.debug) == ("mine", store, ["think"], True)
    plain = create_router(ScriptedEngine([]), pool(m="x"))
    assert (plain.name, plain.store, plain.debug) == ("router_r1", None, False)


def test_a_token_is_enough_and_the_bounds_of_limits_may_be_reached() -> None:
    for settings in ({"max_tokens": 1}, {"max_info_tokens": 1}, {"cost_weight": 1.0}, {"budget_usd": 0.0}):
        create_router(ScriptedEngine([]), pool(m="x"), **settings)
    for settings in ({"max_tokens": 0}, {"max_info_tokens": 0}, {"cost_weight": 1.01}, {"budget_usd": math.inf}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            create_router(ScriptedEngine([]), pool(m="x"), **settings)


def test_the_settings_of_a_router_have_the_documented_defaults_and_no_others_are_taken() -> None:
    limits = {"max_turns": 4, "max_parallel": 4, "cost_weight": 0.0, "budget_usd": None}
    assert asdict(Limits()) == limits
    router_llm = RouterLLM(ScriptedEngine([]))
    assert (router_llm.max_tokens, router_llm.max_info_tokens, router_llm.price) == (1024, 600, Price.parse("free"))
    others = {
        "constrain",
        "answer",
        "cache",
        "approve",
        "stream",
        "prompt",
        "max_tokens",
        "max_info_tokens",
        "router_price",
        "fallback",
        "checkpointed",
        "middleware",
        "clients",
    }
    assert RouterSettings.__annotations__.keys() == limits.keys() | others
    for build in (build_router, create_router):
        with pytest.raises(TypeError, match="max_turn'"):
            build(ScriptedEngine([]), pool(m="x"), max_turn=1)  # type: ignore[operator]


def test_the_graph_tells_studio_its_context_its_input_and_its_output() -> None:
    graph = build_router(ScriptedEngine([]), pool(m="x"))
    assert graph.context_schema is RouterContext
    assert set(graph.compile().get_input_jsonschema()["properties"]) == {"messages"}
    assert set(graph.compile().get_output_jsonschema()["properties"]) >= {"messages", "answer", "routing"}


def test_a_turn_that_may_ask_stops_after_a_search_or_an_answer_and_a_forced_one_after_an_answer_only() -> None:
    class Noting(ScriptedEngine):
        def generate(self, transcript: Any, *, stop: Any, max_tokens: int) -> Any:
            stops.append(list(stop))
            return super().generate(transcript, stop=stop, max_tokens=max_tokens)

    stops: list[list[str]] = []
    create_router(Noting([search("m: a?"), answer("x")]), pool(m="x"), max_turns=1).invoke(QUESTION)
    assert stops == [["</search>", "</answer>"], ["</answer>"]]


def test_the_router_is_told_how_many_turns_it_has() -> None:
    engine = ScriptedEngine([answer("x")])
    create_router(engine, pool(m="x"), max_turns=3).invoke(QUESTION)
    assert "in up to 3 turns" in bytes(engine.prompts[0]).decode()
