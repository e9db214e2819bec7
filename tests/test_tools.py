"""Tools: the router chooses the model, the model calls the tool, and the result comes back as context."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import answer, pool, search
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from langgraph_router_r1 import (
    RECORD_KEYS,
    ChatRouterR1,
    ModelDescriptor,
    ModelRegistry,
    RouterContext,
    RunRecord,
    create_router,
)
from langgraph_router_r1.calls import CallCache
from langgraph_router_r1.calls.tools import make_tools
from langgraph_router_r1.engines import EngineUnavailableError
from langgraph_router_r1.replay import replay
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "How warm is it in Lima?")]}


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"{city}: 21 degrees"


@tool
def clock(city: str) -> str:
    """Tell the time in a city."""
    return f"{city}: noon"


class Report(BaseModel):
    """A report on a city."""

    city: str
    degrees: int


def calls(name: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"call-{name}", "type": "tool_call"}])


class Notes(ScriptedChatModel):
    """Remembers which tools it was offered."""

    offered: list[Any] = []  # noqa: RUF012 - a pydantic field

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self.offered.append((kwargs.get("tools"), kwargs.get("tool_choice")))
        return super()._generate(messages, stop, run_manager, **kwargs)

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self.offered.append((kwargs.get("tools"), kwargs.get("tool_choice")))
        return await super()._agenerate(messages, stop, run_manager, **kwargs)


def model(turns: list[str], asked: Any, **settings: Any) -> ChatRouterR1:
    return ChatRouterR1(router=create_router(ScriptedEngine(turns), pool(m=asked), **settings))


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
async def test_the_model_that_is_asked_is_offered_the_tools_and_its_call_is_the_answer(way: str) -> None:
    asked = Notes([calls("weather", city="Lima")])
    bound = model([search("m: How warm is it in Lima?")], asked).bind_tools([weather, clock])
    if way == "invoke":
        reply: Any = bound.invoke("How warm is it in Lima?")
    elif way == "ainvoke":
        reply = await bound.ainvoke("How warm is it in Lima?")
    else:
        chunks = list(bound.stream("How warm is it in Lima?"))
        reply = chunks[0]
        for chunk in chunks[1:]:
            reply += chunk
    assert [(call["name"], call["args"]) for call in reply.tool_calls] == [("weather", {"city": "Lima"})]
    [(tools, choice)] = asked.offered
    assert [one["function"]["name"] for one in tools] == ["weather", "clock"]
    assert choice is None
    routing = reply.response_metadata["routing"]
    assert routing["calls"][0]["tool_calls"][0]["name"] == "weather"
    assert routing["cost_usd"] > 0


def test_the_router_is_told_of_the_tools_and_of_their_results() -> None:
    prompts: list[str] = []

    def write(transcript: Any) -> str:
        prompts.append(transcript[0]["text"])
        return answer("21 degrees")

    bound = ChatRouterR1(router=create_router(ScriptedEngine(write), pool(m="x"))).bind_tools([weather])
    conversation = [
        HumanMessage("How warm is it in Lima?"),
        calls("weather", city="Lima"),
        ToolMessage("Lima: 21 degrees", tool_call_id="call-weather", name="weather"),
    ]
    reply = bound.invoke(conversation)
    assert (reply.text, reply.tool_calls) == ("21 degrees", [])
    assert "- weather: Tell the weather of a city." in prompts[0]
    assert 'Result of the tool weather({"city": "Lima"}): Lima: 21 degrees' in prompts[0]


def test_a_model_sees_the_conversation_with_the_results_and_the_query_if_it_is_another() -> None:
    conversation = [
        HumanMessage("How warm is it in Lima?"),
        calls("weather", city="Lima"),
        ToolMessage("Lima: 21 degrees", tool_call_id="call-weather", name="weather"),
    ]
    for query, last in (("How warm is it in Lima?", "tool"), ("And in Quito?", "human")):
        asked = ScriptedChatModel([calls("weather", city="Quito")])
        model([search(f"m: {query}")], asked).bind_tools([weather]).invoke(conversation)
        assert [message.type for message in asked.calls[0]][:3] == ["human", "ai", "tool"]
        assert asked.calls[0][-1].type == last


def test_without_a_tool_call_the_run_goes_on_as_ever() -> None:
    reply = model([search("m: a?"), answer("warm")], "I have no tool for that.").bind_tools([weather]).invoke("?")
    assert (reply.text, reply.tool_calls) == ("warm", [])


def test_of_several_models_the_first_tool_call_counts_and_all_calls_are_paid() -> None:
    registry = pool(a="text", b=ScriptedChatModel([calls("weather", city="Lima")]), c="text")
    router = create_router(ScriptedEngine([search("a: A?", "b: B?", "c: C?")]), registry)
    reply = ChatRouterR1(router=router).bind_tools([weather]).invoke("?")
    assert [call["name"] for call in reply.tool_calls] == ["weather"]
    costs = [call["cost_usd"] for call in reply.response_metadata["routing"]["calls"]]
    assert reply.response_metadata["routing"]["cost_usd"] == sum(costs)
    assert len(costs) == 3


@pytest.mark.parametrize("choice", ["any", "required", True, "weather", {"function": {"name": "weather"}}])
def test_if_a_tool_must_be_called_an_answer_in_text_is_put_into_its_form(choice: Any) -> None:
    asked = Notes([calls("weather", city="Lima")])
    bound = model([answer("Lima it is")], asked).bind_tools([weather], tool_choice=choice)
    reply = bound.invoke("Which city?")
    assert reply.tool_calls[0]["args"] == {"city": "Lima"}
    [(_, offered)] = asked.offered
    assert offered == ("any" if choice in ("any", "required", True) else "weather")
    assert "The answer is:\n\nLima it is" in asked.calls[0][-1].text
    # Nothing of the text is streamed that is not the answer.
    again = model([answer("Lima it is")], Notes([calls("weather", city="Lima")]))
    chunks = list(again.bind_tools([weather], tool_choice=choice).stream("Which city?"))
    assert "".join(chunk.text for chunk in chunks) == ""


def test_a_model_that_does_not_take_the_form_leaves_the_text() -> None:
    reply = model([answer("Lima")], "I won't.").bind_tools([weather], tool_choice="any").invoke("Which city?")
    assert (reply.text, reply.tool_calls) == ("Lima", [])


def test_no_tools_and_tools_that_must_not_be_called_change_nothing() -> None:
    for tools, choice in (([], None), ([weather], "none"), ([weather], False)):
        asked = Notes(["Lima"])
        bound = model([search("m: a?"), answer("x")], asked).bind_tools(tools, tool_choice=choice)
        assert bound.invoke("?").text == "x"
        assert asked.offered == [(None, None)]


def test_a_tool_that_there_is_not_can_not_be_chosen() -> None:
    with pytest.raises(
        ValueError, match="tool_choice is 'wether'; it must be 'auto', 'any', 'none' or one of 'weather'"
    ):
        model([], "x").bind_tools([weather], tool_choice="wether")


def test_a_model_that_can_not_call_tools_is_a_failed_call() -> None:
    class Plain(ScriptedChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    reply = model([search("m: a?"), answer("x")], Plain(["y"])).bind_tools([weather]).invoke("?")
    [call] = reply.response_metadata["routing"]["calls"]
    assert (call["status"], call["reason"]) == ("error", "m can't call tools")
    assert call["maybe_cost_usd"] == 0


@pytest.mark.parametrize("schema", [Report, Report.model_json_schema()])
def test_structured_output_is_the_routers_answer_in_the_form_of_the_schema(schema: Any) -> None:
    asked = Notes(["It is 21 degrees.", calls("Report", city="Lima", degrees=21)])
    structured = model([search("m: How warm?"), answer("21 degrees in Lima")], asked).with_structured_output(schema)
    expected = {"city": "Lima", "degrees": 21}
    assert structured.invoke("How warm is it in Lima?") == (Report(**expected) if schema is Report else expected)
    # The sub-question is asked without the form, and answered in text.
    assert [tools is None for tools, _ in asked.offered] == [True, False]


def test_a_run_with_tools_is_in_its_record_and_replays() -> None:
    router = create_router(
        ScriptedEngine([search("m: a?")]), pool(m=ScriptedChatModel([calls("weather", city="Lima")]))
    )
    context = RouterContext(tools=make_tools([weather]))
    result = router.invoke(QUESTION, output_keys=[*RECORD_KEYS, "messages"], context=context)
    record = RunRecord.model_validate_json(RunRecord.of(result).model_dump_json())
    assert record.calls[0]["tool_calls"][0]["name"] == "weather"
    played = replay(record).invoke({"messages": [("user", record.question)]})
    assert played["messages"][-1].tool_calls == result["messages"][-1].tool_calls != []


def test_a_resumed_run_still_has_its_tools() -> None:
    asked = Notes([calls("weather", city="Lima")])
    router = create_router(
        ScriptedEngine([search("m: a?")]), pool(m=asked), checkpointer=InMemorySaver(), interrupt_before=["route"]
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    router.invoke(QUESTION, config, context=RouterContext(tools=make_tools([weather])))
    assert router.invoke(None, config)["messages"][-1].tool_calls[0]["name"] == "weather"
    assert asked.offered[0][0] is not None


def test_a_tool_that_the_run_does_not_offer_is_no_reply() -> None:
    router = create_router(
        ScriptedEngine([search("m: a?"), answer("x")]), pool(m=ScriptedChatModel([calls("its_own")]))
    )
    result = router.invoke(QUESTION)
    [call] = result["routing"]["calls"]
    assert (call["status"], call["reason"], call["tool_calls"]) == ("error", "m gave an empty reply", [])
    assert result["messages"][-1].tool_calls == []


class First:
    def rank(self, question: str, *, cost_weight: float) -> list[str]:
        return ["m"]


@pytest.mark.parametrize("choice", [None, "any"])
def test_a_fallbacks_model_may_call_tools_too(choice: Any) -> None:
    def down(_: Any) -> str:
        raise EngineUnavailableError("down")

    asked = ScriptedChatModel([calls("weather", city="Lima")])
    router = create_router(ScriptedEngine(down), pool(m=asked), fallback=First())
    reply = ChatRouterR1(router=router).bind_tools([weather], tool_choice=choice).invoke("?")
    assert [call["name"] for call in reply.tool_calls] == ["weather"]
    assert reply.response_metadata["stop_reason"] == "degraded"


def test_a_relayed_reply_is_not_streamed_if_it_may_be_a_tool_call() -> None:
    turn = '<think> x </think><answer from="m"> How warm? </answer>'
    for choice in (None, "any"):
        asked = ScriptedChatModel([AIMessage("text", tool_calls=calls("weather", city="Lima").tool_calls)])
        bound = model([turn], asked, answer="full").bind_tools([weather], tool_choice=choice)
        chunks = list(bound.stream("How warm?"))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        assert (whole.text, whole.tool_calls[0]["name"]) == ("text", "weather")
        router = create_router(ScriptedEngine([turn]), pool(m=asked), answer="full")
        context = RouterContext(tools=make_tools([weather], choice))
        [message] = [chunk for chunk, _ in router.stream(QUESTION, stream_mode="messages", context=context)]
        assert (message.text, message.tool_calls[0]["name"]) == ("text", "weather")


def test_a_form_keeps_why_the_run_ended() -> None:
    cut = f"<think> x </think><answer> {'Lima ' * 50}"
    bound = model([cut], ScriptedChatModel([calls("weather", city="Lima")]), max_tokens=60)
    reply = bound.bind_tools([weather], tool_choice="any").invoke("?")
    assert (reply.tool_calls[0]["name"], reply.response_metadata["stop_reason"]) == ("weather", "cut_off")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: make_tools([{"type": "web_search_preview"}]), "only functions can be tools here"),
        (lambda: make_tools([weather], {"function": {}}), "tool_choice is"),
    ],
)
def test_what_is_no_tool_is_an_error(wrong: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()


def test_tools_of_a_context_that_are_none_are_an_error() -> None:
    router = create_router(ScriptedEngine([]), pool(m="x"))
    with pytest.raises(TypeError, match="tools is a list; make_tools"):
        router.invoke(QUESTION, context=RouterContext(tools=[weather]))  # type: ignore[arg-type]


def test_a_cache_keeps_no_replies_to_calls_with_tools() -> None:
    asked = ScriptedChatModel([calls("weather", city="Lima"), calls("clock", city="Lima")])
    cache = CallCache(InMemoryCache())
    names = [
        model([search("m: a?")], asked, middleware=[cache]).bind_tools([weather]).invoke("?").tool_calls[0]["name"]
        for _ in range(2)
    ]
    assert names == ["weather", "clock"]


def test_the_tools_count_against_the_budget() -> None:
    @tool
    def long(city: str) -> str:
        """Do something."""
        return city

    long.description = "x" * 100_000
    registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel(["y"]), price=1.0)])
    router = create_router(ScriptedEngine([search("m: a?"), answer("x")]), registry, budget_usd=0.05)
    result = router.invoke(QUESTION, context=RouterContext(tools=make_tools([long])))
    assert [call["status"] for call in result["routing"]["calls"]] == ["over_budget"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_agent_with_two_tools_and_a_response_format_runs_on_the_router(is_async: bool) -> None:
    asked = ScriptedChatModel(
        [calls("weather", city="Lima"), calls("clock", city="Lima"), calls("Report", city="Lima", degrees=21)]
    )
    turns = [search("m: How warm is it in Lima?"), search("m: What time is it there?"), answer("21 degrees at noon")]
    agent: Any = create_agent(model(turns, asked), tools=[weather, clock], response_format=Report)
    if is_async:
        result = await agent.ainvoke(QUESTION)
    else:
        result = agent.invoke(QUESTION)
    assert result["structured_response"] == Report(city="Lima", degrees=21)
    results = [message.text for message in result["messages"] if isinstance(message, ToolMessage)]
    assert results[:2] == ["Lima: 21 degrees", "Lima: noon"]


def test_an_agent_streams_its_tokens_through_the_router() -> None:
    asked = ScriptedChatModel([calls("weather", city="Lima")])
    turns = [search("m: How warm is it in Lima?"), answer("It is 21 degrees.")]
    agent: Any = create_agent(model(turns, asked), tools=[weather])
    texts = [
        chunk.text
        for chunk, metadata in agent.stream(QUESTION, stream_mode="messages")
        if metadata["langgraph_node"] == "model"
    ]
    assert "".join(texts) == "It is 21 degrees."
    assert len([text for text in texts if text]) > 3
