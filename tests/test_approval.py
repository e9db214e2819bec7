"""Calls that need a person's approval: none is made without it, none twice, and none is lost."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from langgraph_router_r1 import (
    RECORD_KEYS,
    ChatRouterR1,
    ModelDescriptor,
    ModelRegistry,
    RouterContext,
    RunRecord,
    create_router,
)
from langgraph_router_r1.calls.tools import make_tools
from langgraph_router_r1.replay import replay
from langgraph_router_r1.settings import PendingCall
from langgraph_router_r1.strategies import AskInOrder
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "Which?")]}
CONFIG: Any = {"configurable": {"thread_id": "1"}}
TURNS = [search("a: A?", "b: B?", "c: C?"), answer("done")]

APPROVE: dict[str, Any] = {"type": "approve"}
REJECT: dict[str, Any] = {"type": "reject", "message": "too <answer> expensive"}
EDIT: dict[str, Any] = {
    "type": "edit",
    "edited_action": {"name": "ask_model", "args": {"model": "d", "query": "Edited?"}},
}


def models() -> dict[str, ScriptedChatModel]:
    return {name: ScriptedChatModel([f"from {name}"]) for name in "abcd"}


def router(asked: dict[str, ScriptedChatModel], **settings: Any) -> Any:
    settings = {"approve": "always", "checkpointer": InMemorySaver(), **settings}
    return create_router(ScriptedEngine(TURNS), pool(**asked), **settings)


async def go(way: str, made: Any, what: Any, **options: Any) -> Any:
    if way == "invoke":
        return made.invoke(what, CONFIG, **options)
    return await made.ainvoke(what, CONFIG, **options)


def asked_of(asked: dict[str, ScriptedChatModel]) -> dict[str, list[str]]:
    return {name: [messages[-1].text.split("\n")[-1] for messages in model.calls] for name, model in asked.items()}


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("decisions", list(itertools.product(("approve", "edit", "reject"), repeat=3)), ids="-".join)
async def test_each_of_three_calls_is_made_as_it_was_decided_and_the_others_are_kept(
    way: str, decisions: tuple[str, ...]
) -> None:
    asked = models()
    made = router(asked)
    waiting = await go(way, made, QUESTION)
    [request] = waiting["__interrupt__"]
    assert [action["args"] for action in request.value["action_requests"]] == [
        {"model": name, "query": f"{name.upper()}?"} for name in "abc"
    ]
    assert asked_of(asked) == {"a": [], "b": [], "c": [], "d": []}
    forms = {"approve": APPROVE, "edit": EDIT, "reject": REJECT}
    result = await go(
        way,
        made,
        Command(resume={"decisions": [forms[decision] for decision in decisions]}),
        output_keys=[*RECORD_KEYS, "routing"],
    )
    expected: dict[str, list[str]] = {"a": [], "b": [], "c": [], "d": []}
    for name, decision in zip("abc", decisions, strict=True):
        if decision == "approve":
            expected[name].append(f"{name.upper()}?")
        elif decision == "edit":
            expected["d"].append("Edited?")
    assert asked_of(asked) == expected
    assert result["answer"] == "done"
    told = result["transcript"][2]["text"]
    assert told.count("a person did not approve the call: too (answer) expensive") == decisions.count("reject")
    calls = RunRecord.of(result).calls
    assert [call["review"] and call["review"]["decision"] for call in calls] == list(decisions)
    assert [call["review"] and call["review"]["model"] for call in calls] == ["a", "b", "c"]
    assert result["routing"]["cost_usd"] == sum(call["cost_usd"] for call in calls)


def test_a_decision_that_can_not_be_used_is_asked_for_again_and_nothing_is_called() -> None:
    asked = models()
    made = router(asked)
    made.invoke(QUESTION, CONFIG)
    for response, says in (
        ({"decision": APPROVE}, "there are no decisions"),
        ("yes", "one for each of the 3 calls"),
        ({"decisions": [APPROVE]}, "there are 1 decisions"),
        ({"decisions": [APPROVE, APPROVE, {"type": "maybe"}]}, "its type must be approve, reject or edit"),
        ({"decisions": [APPROVE, APPROVE, 5]}, "its type must be approve, reject or edit"),
        ({"decisions": [APPROVE, APPROVE, {**EDIT, "edited_action": {"args": {"model": "e"}}}]}, "'e'"),
        ({"decisions": [APPROVE, APPROVE, {**EDIT, "edited_action": {"args": {"query": " "}}}]}, "query is ' '"),
    ):
        [request] = made.invoke(Command(resume=response), CONFIG)["__interrupt__"]
        assert says in request.value["error"], response
        assert len(request.value["action_requests"]) == 3
    assert not any(asked_of(asked).values())
    assert made.invoke(Command(resume={"decisions": [APPROVE] * 3}), CONFIG)["answer"] == "done"


def test_only_calls_over_the_limit_wait_and_the_whole_turn_waits_with_them() -> None:
    asked = models()
    registry = ModelRegistry(
        ModelDescriptor(name=name, model=model, price=100.0 if name == "b" else 1.0) for name, model in asked.items()
    )
    made = create_router(ScriptedEngine(TURNS), registry, approve={"over": 0.01}, checkpointer=InMemorySaver())
    [request] = made.invoke(QUESTION, CONFIG)["__interrupt__"]
    [action] = request.value["action_requests"]
    assert action["args"]["model"] == "b"
    assert action["worst_case_usd"] > 0.01
    assert not any(asked_of(asked).values())
    result = made.invoke(Command(resume={"decisions": [REJECT]}), CONFIG)
    assert [call["status"] for call in result["routing"]["calls"]] == ["ok", "rejected", "ok"]
    assert [call["review"] is None for call in result["routing"]["calls"]] == [True, False, True]


def test_a_function_may_say_which_calls_wait() -> None:
    seen: list[PendingCall] = []

    def about_c(call: PendingCall) -> bool:
        seen.append(call)
        return "C" in call.query

    made = router(models(), approve=about_c)
    [request] = made.invoke(QUESTION, CONFIG)["__interrupt__"]
    assert [action["args"]["model"] for action in request.value["action_requests"]] == ["c"]
    assert {call.model.name for call in seen} == {"a", "b", "c"}
    assert all(call.worst_case_usd > 0 for call in seen)


def test_without_approval_there_is_no_such_node_and_a_turn_without_pending_calls_does_not_wait() -> None:
    made = router(models(), approve="never")
    assert "approve" not in made.get_graph().nodes
    assert made.invoke(QUESTION, CONFIG)["answer"] == "done"
    made = router(models(), approve={"over": 1.0})
    assert "approve" in made.get_graph().nodes
    assert made.invoke(QUESTION, CONFIG)["answer"] == "done"


@pytest.mark.parametrize("wrong", ["sometimes", {"under": 1}, {"over": True}, {"over": -1}, {"over": "x"}, {}, 5, None])
def test_what_is_no_rule_of_approval_is_an_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="it must be 'never', 'always'"):
        router(models(), approve=wrong)


def test_an_edit_that_the_budget_does_not_pay_for_is_refused() -> None:
    asked = models()
    registry = ModelRegistry(
        ModelDescriptor(name=name, model=model, price=1e6 if name == "d" else 1.0) for name, model in asked.items()
    )
    made = create_router(
        ScriptedEngine(TURNS), registry, approve="always", checkpointer=InMemorySaver(), budget_usd=1.0
    )
    made.invoke(QUESTION, CONFIG)
    result = made.invoke(Command(resume={"decisions": [APPROVE, EDIT, APPROVE]}), CONFIG)
    assert [call["status"] for call in result["routing"]["calls"]] == ["ok", "over_budget", "ok"]
    assert asked_of(asked)["d"] == []


def test_a_budget_of_the_context_holds_across_the_wait() -> None:
    made = router(models())
    made.invoke(QUESTION, CONFIG, context=RouterContext(budget_usd=0.001))
    # The budget pays for one call, so that two are refused before anybody is asked.
    result = made.invoke(Command(resume={"decisions": [APPROVE]}), CONFIG)
    assert [call["status"] for call in result["routing"]["calls"]] == ["ok", "over_budget", "over_budget"]


def test_a_question_that_is_sent_again_while_it_waits_begins_again_and_owes_nothing() -> None:
    asked = models()
    engine = ScriptedEngine([TURNS[0], *TURNS])
    made = create_router(engine, pool(**asked), approve="always", checkpointer=InMemorySaver())
    made.invoke(QUESTION, CONFIG)
    made.invoke({"messages": [("user", "Another?")]}, CONFIG)
    result = made.invoke(Command(resume={"decisions": [APPROVE] * 3}), CONFIG)
    assert (result["answer"], result["routing"]["maybe_cost_usd"]) == ("done", 0.0)
    assert asked_of(asked) == {"a": ["A?"], "b": ["B?"], "c": ["C?"], "d": []}


def test_a_strategy_without_an_llm_waits_too_and_goes_on_after_a_rejection() -> None:
    made = create_router(
        strategy=AskInOrder(lambda view: ["a", "b"]),
        registry=pool(**models()),
        approve="always",
        checkpointer=InMemorySaver(),
    )
    made.invoke(QUESTION, CONFIG)
    made.invoke(Command(resume={"decisions": [REJECT]}), CONFIG)
    assert made.invoke(Command(resume={"decisions": [APPROVE]}), CONFIG)["answer"] == "from b"


def test_a_reviewed_run_replays_from_its_record() -> None:
    made = router(models())
    made.invoke(QUESTION, CONFIG)
    values = made.invoke(
        Command(resume={"decisions": [APPROVE, EDIT, REJECT]}), CONFIG, output_keys=[*RECORD_KEYS, "routing"]
    )
    record = RunRecord.model_validate_json(RunRecord.of(values).model_dump_json())
    played = replay(record).invoke({"messages": [("user", record.question)]})
    assert played["answer"] == "done"
    assert played["routing"]["calls"] == values["routing"]["calls"]


def test_embedded_in_a_graph_the_request_comes_from_the_outer_graph() -> None:
    asked = models()
    graph = StateGraph(MessagesState)
    graph.add_node("research", router(asked, checkpointer=None))
    graph.add_edge(START, "research")
    graph.add_edge("research", END)
    app = graph.compile(checkpointer=InMemorySaver())
    [request] = app.invoke(QUESTION, CONFIG)["__interrupt__"]
    assert len(request.value["action_requests"]) == 3
    result = app.invoke(Command(resume={"decisions": [REJECT, APPROVE, REJECT]}), CONFIG)
    assert result["messages"][-1].text == "done"
    assert asked_of(asked) == {"a": [], "b": ["B?"], "c": [], "d": []}


def test_what_waits_is_settled_when_it_is_asked_for_whatever_the_rule_says_later() -> None:
    asked, seen = models(), set[str]()

    def first_use(call: PendingCall) -> bool:
        is_new = call.model.name not in seen
        seen.add(call.model.name)
        return is_new

    made = router(asked, approve=first_use)
    made.invoke(QUESTION, CONFIG)
    [request] = made.invoke(Command(resume={"decisions": []}), CONFIG)["__interrupt__"]
    assert "there are 0 decisions" in request.value["error"]
    made.invoke(Command(resume={"decisions": [REJECT] * 3}), CONFIG)
    assert not any(asked_of(asked).values())


def test_a_smaller_budget_that_the_run_goes_on_with_holds() -> None:
    made = router(models(), budget_usd=1.0)
    made.invoke(QUESTION, CONFIG)
    resume: Any = Command(resume={"decisions": [APPROVE] * 3})
    result = made.invoke(resume, CONFIG, context=RouterContext(budget_usd=1e-9))
    assert [call["status"] for call in result["routing"]["calls"]] == ["over_budget"] * 3


def test_calls_with_tools_wait_and_keep_their_conversation() -> None:
    call: Any = {"name": "weather", "args": {}, "id": "1", "type": "tool_call"}
    asked = ScriptedChatModel([AIMessage("", tool_calls=[call])])
    made = create_router(
        ScriptedEngine([search("m: a?")]), pool(m=asked), approve="always", checkpointer=InMemorySaver()
    )
    tools = make_tools([{"name": "weather", "description": "Tell it.", "parameters": {"type": "object"}}])
    made.invoke(QUESTION, CONFIG, context=RouterContext(tools=tools))
    result = made.invoke(Command(resume={"decisions": [APPROVE]}), CONFIG)
    assert result["messages"][-1].tool_calls[0]["name"] == "weather"
    assert [message.text for message in asked.calls[0]] == ["Which?", "a?"]


def test_a_chat_model_of_a_router_that_waits_says_that_it_can_not() -> None:
    def model() -> ChatRouterR1:
        return ChatRouterR1(router=create_router(ScriptedEngine(TURNS), pool(**models()), approve="always"))

    with pytest.raises(RuntimeError, match="a chat model can't wait"):
        model().invoke("Which?")
    with pytest.raises(RuntimeError, match="a chat model can't wait"):
        list(model().stream("Which?"))


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_call_that_an_inner_routers_approval_has_interrupted_was_not_made_before(way: str) -> None:
    asked = models()
    inner = router(asked, checkpointer=None)
    registry = ModelRegistry([ModelDescriptor(name="m", model=inner, price="free")])
    engine = ScriptedEngine([search("m: Which?"), answer("out")])
    outer = create_router(engine, registry, checkpointer=InMemorySaver())
    waiting = await go(way, outer, QUESTION)
    assert len(waiting["__interrupt__"][0].value["action_requests"]) == 3
    result = await go(way, outer, Command(resume={"decisions": [APPROVE] * 3}))
    assert result["answer"] == "out"
    assert (result["routing"]["maybe_billed_twice"], result["routing"]["maybe_cost_usd"]) == (0, 0.0)
    assert asked_of(asked) == {"a": ["A?"], "b": ["B?"], "c": ["C?"], "d": []}


PROGRAM = """
import json, os, sys
from langchain_core.runnables import RunnableLambda
from langchain_core.messages import AIMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.testing import ScriptedEngine

directory, action, dies = sys.argv[1:]
config = {"configurable": {"thread_id": "1"}}

def model(name):
    def reply(messages):
        with open(f"{directory}/calls", "a") as file:
            file.write(f"{name} begins\\n")
        if name == dies:
            os._exit(9)
        with open(f"{directory}/calls", "a") as file:
            file.write(f"{name} ends\\n")
        return AIMessage(f"from {name}")
    return RunnableLambda(reply)

def write(transcript):
    turns = json.loads(os.environ["TURNS"])
    return turns[sum(segment["kind"] == "policy" for segment in transcript)]

with SqliteSaver.from_conn_string(f"{directory}/runs.sqlite") as saver:
    pool = ModelRegistry(ModelDescriptor(name=name, model=model(name), price="free") for name in "abcd")
    router = create_router(ScriptedEngine(write), pool, approve="always", checkpointer=saver)
    what = {"begin": {"messages": [("user", "Which?")]}, "go on": None}.get(action)
    if action.startswith("["):
        what = Command(resume={"decisions": json.loads(action)})
    result = router.invoke(what, config)
    print(json.dumps([result.get("answer", ""), len(result.get("__interrupt__", ()))]))
"""


def test_through_kills_no_call_is_made_without_consent_none_that_replied_again_and_none_is_lost(tmp_path: Path) -> None:
    def process(action: str, dies: str = "") -> Any:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), action, dies],
            capture_output=True,
            text=True,
            check=False,
            env={"TURNS": json.dumps(TURNS), "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)},
        )
        return json.loads(done.stdout) if done.returncode == 0 else done.returncode

    calls = tmp_path / "calls"
    assert process("begin") == ["", 1]
    assert not calls.exists()
    assert process("go on") == ["", 1]  # nobody has decided: it waits on
    assert not calls.exists()
    decisions = json.dumps([APPROVE, REJECT, EDIT])
    assert process(decisions, dies="d") == 9
    assert process("go on") == ["done", 0]
    lines = calls.read_text().splitlines()
    assert sorted(set(lines)) == ["a begins", "a ends", "d begins", "d ends"]
    # What had replied is not asked again; the call that was in flight is.
    assert lines.count("d begins") == 2
    assert lines.count("d ends") == 1
    assert lines.count("a ends") <= 2
