"""A trace tells what each turn and call cost, and no text that it was not asked for; engines' turns are LLM runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from conftest import answer, pool, search
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from langgraph_router_r1 import ChatRouterR1, EngineError, ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.engines import ChatModelEngine
from langgraph_router_r1.otel import CONTENT_ENV, COST, TOTAL_COST, OpenTelemetryTracer
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION = {"messages": [("user", "Which capital has more people?")]}
TURNS = (search("small: Capital of Peru?", "large: Capital of Chile?", "broken: Capital of Cuba?"), answer("Lima"))


class Traced:
    """A tracer with its spans, that fails loudly."""

    def __init__(self, **options: Any) -> None:
        self.exporter, self.provider = InMemorySpanExporter(), TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = OpenTelemetryTracer(self.provider, **options)
        self.tracer.raise_error = True
        self.config: Any = {"callbacks": [self.tracer]}

    def spans(self, start: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(start)]

    def costs(self) -> float:
        return math.fsum(_told(span).get(COST, 0.0) for span in self.spans())


def _told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def router(*turns: str, **settings: Any) -> Any:
    registry = settings.pop("registry", None) or pool(small="Lima", large="Santiago", broken=RuntimeError("sk-secret"))
    return create_router(ScriptedEngine(turns), registry, router_price=2.0, **settings)


async def run(made: Any, given: Any, config: Any, way: str, context: Any = None) -> Any:
    if way == "invoke":
        return made.invoke(given, config, context=context)
    if way == "ainvoke":
        return await made.ainvoke(given, config, context=context)
    if way == "stream":
        return list(made.stream(given, config, context=context, stream_mode=["values", "messages"]))[-1][1]
    return [item async for item in made.astream(given, config, context=context, stream_mode="values")][-1]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_the_costs_of_the_spans_are_the_runs_and_the_account(way: str) -> None:
    traced = Traced()
    result = await run(router(*TURNS), QUESTION, traced.config, way)
    [whole] = traced.spans("invoke_agent")
    assert result["routing"]["cost_usd"] > 0
    assert _told(whole)[TOTAL_COST] == pytest.approx(result["routing"]["cost_usd"], rel=1e-12)
    assert traced.costs() == pytest.approx(result["routing"]["cost_usd"], rel=1e-12)
    assert {span.name: _told(span)[COST] for span in traced.spans("route")} == pytest.approx(
        {f"route {call['model']}": call["cost_usd"] for call in result["routing"]["calls"]}
    )
    assert not traced.tracer._runs, "nothing is kept of a run that is over"


async def test_spans_lie_below_the_run_and_the_run_below_what_called_it() -> None:
    traced = Traced()
    with traced.provider.get_tracer("program").start_as_current_span("program"):
        await router(*TURNS).ainvoke(QUESTION, traced.config)
    names = {span.context.span_id: span.name for span in traced.spans()}
    parents = {span.name: span.parent and names[span.parent.span_id] for span in traced.spans()}
    assert parents == {
        "program": None,
        "invoke_agent router_r1": "program",
        "think": "invoke_agent router_r1",
        "chat scripted": "think",
        **{f"route {model}": "invoke_agent router_r1" for model in ("small", "large", "broken")},
        **{f"chat {model}": f"route {model}" for model in ("small", "large", "broken")},
    }
    assert len(traced.spans("think")) == len(traced.spans("chat scripted")) == len(TURNS)
    assert all(span.start_time <= span.end_time for span in traced.spans())


def inner_router(kind: str) -> Any:
    made = router(search("small: Capital of Peru?"), answer("Lima"), registry=pool(small="Lima"))
    return made if kind == "graph" else ChatRouterR1(router=made)


@pytest.mark.parametrize("kind", ["graph", "chat model"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_what_a_router_below_a_router_spends_is_told_once(kind: str, way: str) -> None:
    traced = Traced()
    registry = ModelRegistry(
        [
            ModelDescriptor(name="inner", model=inner_router(kind), price=1.0),
            ModelDescriptor(name="small", model=ScriptedChatModel(["Lima"]), price=1.0),
        ]
    )
    made = router(search("inner: Capital of Peru?", "small: And?"), answer("Lima"), registry=registry)
    result = await run(made, QUESTION, traced.config, way)
    inside, outside = sorted(traced.spans("invoke_agent"), key=lambda span: span.parent is None)
    assert traced.costs() == pytest.approx(result["routing"]["cost_usd"], rel=1e-12)
    assert _told(outside)[TOTAL_COST] == pytest.approx(result["routing"]["cost_usd"], rel=1e-12)
    assert 0 < _told(inside)[TOTAL_COST] == pytest.approx(result["routing"]["calls"][0]["cost_usd"], rel=1e-12)


def test_a_run_in_two_parts_is_two_traces_that_add_up() -> None:
    traced = Traced()
    made = router(*TURNS, approve="always", checkpointer=InMemorySaver())
    config = {**traced.config, "configurable": {"thread_id": "7"}}
    asked = made.invoke(QUESTION, config)["__interrupt__"][0].value["action_requests"]
    result = made.invoke(Command(resume={"decisions": [{"type": "approve"}] * len(asked)}), config)
    first, second = traced.spans("invoke_agent")
    assert {_told(span)["gen_ai.conversation.id"] for span in (first, second)} == {"7"}
    assert first.status.is_unset, "waiting for a person is no failure"
    total = _told(first)[TOTAL_COST] + _told(second)[TOTAL_COST]
    assert min(_told(first)[TOTAL_COST], _told(second)[TOTAL_COST]) > 0
    assert total == pytest.approx(result["routing"]["cost_usd"], rel=1e-12)
    assert traced.costs() == pytest.approx(total, rel=1e-12)


def test_spans_hold_no_text_unless_asked_and_then_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(**options: Any) -> str:
        traced = Traced(**options)
        router(*TURNS).invoke(QUESTION, traced.config)
        return "".join(span.to_json() for span in traced.spans())

    texts = ("Which capital has", "Capital of Peru?", "Santiago", "I have to ask")
    assert not [text for text in texts if text in written()]
    assert not [text for text in texts if text not in written(content=True)]
    masked = written(content=True, mask=lambda text: text.replace("Peru", "[country]"))
    assert "Peru" not in masked
    assert "Capital of [country]?" in masked
    monkeypatch.setenv(CONTENT_ENV, "true")
    assert "Santiago" in written()
    assert "Santiago" not in written(content=False)
    assert "sk-secret" not in written(), "a provider's words may hold a key"


def test_what_the_router_or_a_person_wrote_in_a_refused_call_is_text_too() -> None:
    def written(**options: Any) -> str:
        traced = Traced(**options)
        turns = [search("Secret-Name: Capital of Peru?", "small: And of Chile?"), answer("Lima")]
        made = router(*turns, approve="always", checkpointer=InMemorySaver())
        config = {**traced.config, "configurable": {"thread_id": "7"}}
        made.invoke(QUESTION, config)
        made.invoke(Command(resume={"decisions": [{"type": "reject", "message": "secret-reason"}]}), config)
        assert len(traced.spans("route")) == 2
        return "".join(span.to_json() for span in traced.spans())

    assert not [text for text in ("Secret-Name", "secret-reason") if text in written()]
    assert not [text for text in ("Secret-Name", "secret-reason") if text not in written(content=True)]


def test_texts_have_the_form_of_the_convention() -> None:
    traced = Traced(content=True)
    router(*TURNS).invoke(QUESTION, traced.config)
    [whole] = traced.spans("invoke_agent")
    asked, answered = (json.loads(_told(whole)[f"gen_ai.{key}.messages"]) for key in ("input", "output"))
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": QUESTION["messages"][0][1]}]}]
    assert answered == [{"role": "assistant", "parts": [{"type": "text", "content": "Lima"}]}]


def test_a_request_tells_its_model_tokens_and_end() -> None:
    traced = Traced()
    result = router(*TURNS).invoke(QUESTION, traced.config)
    for span in traced.spans("chat"):
        assert _told(span)["gen_ai.operation.name"] == "chat"
        assert span.kind is trace.SpanKind.CLIENT
    turns = [_told(span) for span in traced.spans("chat scripted")]
    tokens = result["routing"]["router_tokens"]
    assert sum(turn["gen_ai.usage.input_tokens"] for turn in turns) == tokens["prompt_tokens"]
    assert sum(turn["gen_ai.usage.output_tokens"] for turn in turns) == tokens["completion_tokens"]
    assert {turn["gen_ai.request.model"] for turn in turns} == {"scripted"}
    [broken] = traced.spans("chat broken")
    assert (broken.status.is_ok, _told(broken)["error.type"]) == (False, "RuntimeError")
    [call] = traced.spans("route broken")
    assert (_told(call)["router_r1.status"], call.status.is_unset) == ("error", True)


def breaks_off() -> Any:
    """A router whose server is down after the first turn."""

    def write(transcript: Any) -> str:
        if transcript[-1]["kind"] == "prompt":
            return TURNS[0]
        msg = "the router's server is down"
        raise EngineError(msg)

    registry = pool(small="Lima", large="Santiago", broken="?")
    return create_router(ScriptedEngine(write), registry, router_price=2.0)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_run_that_an_engine_ends_tells_what_it_had_spent(way: str) -> None:
    traced = Traced()
    with pytest.raises(EngineError) as raised:
        await run(breaks_off(), QUESTION, traced.config, way)
    [whole] = traced.spans("invoke_agent")
    assert raised.value.routing is not None
    assert _told(whole)[TOTAL_COST] == pytest.approx(raised.value.routing["cost_usd"], rel=1e-12)
    assert _told(whole)["error.type"] == "EngineError"
    assert [_told(span).get("error.type") for span in traced.spans("chat scripted")] == [None, "EngineError"]
    assert not traced.tracer._runs


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_router_below_a_router_that_breaks_off_is_told_once(way: str) -> None:
    traced = Traced()
    registry = ModelRegistry([ModelDescriptor(name="inner", model=breaks_off(), price=1.0)])
    made = router(search("inner: Capital of Peru?"), answer("Lima"), registry=registry)
    result = await run(made, QUESTION, traced.config, way)
    assert result["routing"]["calls"][0]["cost_usd"] > 0
    assert traced.costs() == pytest.approx(result["routing"]["cost_usd"], rel=1e-12)


def test_other_runs_become_no_spans() -> None:
    traced = Traced()
    model = ScriptedChatModel(["Hello."])
    RunnableLambda(lambda _: model.invoke("Hello?")).invoke({}, traced.config)
    assert traced.spans() == []
    assert not traced.tracer._runs


# Turns of engines as LLM runs

ENGINES: dict[str, Callable[[], Any]] = {
    "an engine": lambda: ScriptedEngine(TURNS),
    "a chat model as an engine": lambda: ChatModelEngine(ScriptedChatModel(TURNS, usage=True), model="scripted"),
}


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
async def test_each_turn_is_one_run_of_an_llm(kind: str, way: str) -> None:
    traced = Traced()
    made = create_router(ENGINES[kind](), pool(small="Lima", large="Santiago", broken="Havana"), router_price="free")
    await run(made, QUESTION, traced.config, way)
    turns = {span.context.span_id for span in traced.spans("think")}
    assert len([span for span in traced.spans("chat") if span.parent and span.parent.span_id in turns]) == len(TURNS)


async def test_callbacks_count_the_routers_own_tokens() -> None:
    for way in ("invoke", "ainvoke"):
        usage = UsageMetadataCallbackHandler()
        result = await run(router(*TURNS), QUESTION, {"callbacks": [usage]}, way)
        tokens = result["routing"]["router_tokens"]
        counted = usage.usage_metadata["scripted"]
        assert counted["input_tokens"] == tokens["prompt_tokens"] > 0
        assert counted["output_tokens"] == tokens["completion_tokens"]
