"""The examples do what they say: each runs as it stands, offline, and against servers that are played here."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from openai_server import chat_completion, serving

from langgraph_router_r1 import ModelRegistry, create_router
from langgraph_router_r1.testing import ScriptedEngine

EXAMPLES = Path(__file__).parent.parent / "examples"

OFFLINE = """
import runpy, sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
        if host not in ("127.0.0.1", "localhost"):
            raise OSError(f"not offline: {host}")

sys.addaudithook(refuse)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the script that follows, cut off from all but this machine."""


def run(script: str, *arguments: str, **environment: str) -> str:
    """Run an example by itself; return what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "LANG"))}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**clean, "PYTHONIOENCODING": "utf-8", "COLUMNS": "200", "NO_PROXY": "127.0.0.1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# 01: the quickstart


def test_the_quickstart_answers_offline_and_shows_calls_cost_and_events() -> None:
    printed = run("01_quickstart.py")
    assert "Answer: Sol" in printed
    assert "capitals was asked 'Which country has the capital Lima?', said 'Peru': $0.00000110" in printed
    # Two replies, each of ten prompt tokens and one completion token, at $0.1 per million.
    assert "Cost: $0.00000220" in printed
    events = [line.split()[0] for line in printed.partition("as it happens:\n")[2].splitlines()]
    assert events == ["think", "route", "info", "think", "route", "info", "think", "done"]


# 02: OpenAI-compatible endpoints


def play_untrained_router_and_pool(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Answer for all models; like most chat APIs, leave the stop string out of what the router says."""
    assert path == "/v1/chat/completions"
    if body["model"] != "untrained":
        return chat_completion(*{"gpt-4o-mini": ("Lima.", 1000, 200), "gpt-4o": ("Sol.", 400, 100)}[body["model"]])
    assert "</answer>" in body["stop"]
    if len(body["messages"]) == 1:
        turn = search("quick: What is the capital of Peru?", "strong: What currency is used in Peru?")
        return chat_completion(turn.removesuffix("</search>"), 500, 50)
    assert "quick: Lima." in body["messages"][-1]["content"]
    return chat_completion(answer("Lima, Sol").removesuffix("</answer>"), 500, 50)


REGISTRY = """
[models.quick]
model = "openai:gpt-4o-mini"
base_url = "{base_url}"
price = {{ prompt = 0.5, completion = 1.5 }}

[models.strong]
model = "openai:gpt-4o"
base_url = "{base_url}"
price = {{ prompt = 2, completion = 8 }}
"""


def test_a_pool_of_openai_endpoints_answers_and_costs_usage_times_price(tmp_path: Path) -> None:
    with serving(play_untrained_router_and_pool) as server:
        registry = tmp_path / "models.toml"
        registry.write_text(REGISTRY.format(base_url=server.base_url))
        printed = run(
            "02_openai_pool.py",
            *("--registry", str(registry), "--router", "openai:untrained", "--router-price", "1"),
            "Capital and currency of Peru?",
            OPENAI_BASE_URL=server.base_url,
            OPENAI_API_KEY="unused",
        )
    assert "\nLima, Sol\n" in printed
    costs = {cells[0]: cells[-1] for line in printed.splitlines() if (cells := line.strip("│ ").split())}
    assert costs["quick"] == "800.00"  # 1000 x $0.5 + 200 x $1.5 per million
    assert costs["strong"] == "1600.00"  # 400 x $2 + 100 x $8 per million
    assert costs["router"] == "1100.00"  # two turns of 500 + 50 tokens, $1 per million
    assert costs["all"] == "3500.00"


def test_the_registry_of_the_examples_is_used_by_default_and_works_as_it_stands() -> None:
    with serving(play_untrained_router_and_pool) as server:
        printed = run(
            "02_openai_pool.py",
            *("--router", "openai:untrained", "Capital and currency of Peru?"),
            OPENAI_BASE_URL=server.base_url,
            OPENAI_API_KEY="unused",
        )
    assert "\nLima, Sol\n" in printed
    assert {body["model"] for body in server.requests} == {"untrained", "gpt-4o-mini", "gpt-4o"}


def test_the_registry_of_the_examples_claims_no_skill_that_nobody_measured() -> None:
    registry = ModelRegistry.from_file(EXAMPLES / "models.toml")
    assert len(registry) == 3
    assert not any(model.skills or model.latency_s for model in registry)


# 03: a node of a larger graph


@pytest.fixture
def embedding() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "03_embed_as_node.py"))


def test_the_embeddings_run_offline() -> None:
    printed = run("03_embed_as_node.py").splitlines()
    assert printed[:3] == [
        "human: What is the capital of Peru?",
        "ai: Lima",
        "our own keys: {'user': 'Ada', 'turn': 1}",
    ]
    assert printed[3].startswith("quiz card: {'question': 'What is the capital of Peru?', 'answer': 'Lima'")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_parent_with_messages_shares_those_and_nothing_else(
    embedding: dict[str, Any], asynchronous: bool
) -> None:
    graph = embedding["chat_graph"](embedding["scripted_router"]())
    before = [SystemMessage("Be kind.", id="s"), HumanMessage("What is the capital of Peru?", id="q")]
    given = {"messages": before, "user": "Ada", "turn": 41}
    after = await graph.ainvoke(given) if asynchronous else graph.invoke(given)
    assert set(after) == {"messages", "user", "turn"}
    assert (after["user"], after["turn"]) == ("Ada", 42)
    *same, reply = after["messages"]
    assert same == before
    assert isinstance(reply, AIMessage)
    assert reply.text == "Lima"


def test_a_second_question_to_an_embedded_router_adds_one_answer_of_its_own(embedding: dict[str, Any]) -> None:
    turns = [search("a: Capital?"), answer("Lima"), search("a: Currency?"), answer("Sol")]
    graph = embedding["chat_graph"](create_router(ScriptedEngine(turns), pool(a="A fact.")))
    state = graph.invoke({"messages": [("user", "Capital?")], "user": "Ada", "turn": 0})
    state = graph.invoke({**state, "messages": [*state["messages"], HumanMessage("Currency?")]})
    said = [(message.type, message.text) for message in state["messages"]]
    assert said == [("human", "Capital?"), ("ai", "Lima"), ("human", "Currency?"), ("ai", "Sol")]
    assert len({message.id for message in state["messages"]}) == 4
    assert state["turn"] == 2


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_parent_with_another_state_gets_what_its_node_takes_and_keeps_the_rest(
    embedding: dict[str, Any], asynchronous: bool
) -> None:
    graph = embedding["quiz_graph"](embedding["scripted_router"]())
    given = {"question": "What is the capital of Peru?", "points": 3}
    card = await graph.ainvoke(given) if asynchronous else graph.invoke(given)
    # One reply of ten prompt tokens and one completion token at $0.1 per million.
    assert card == {**given, "answer": "Lima", "spent_usd": pytest.approx(1.1e-6)}


# 04: what a long-lived app needs


def test_a_run_is_resumed_and_its_call_is_not_made_twice() -> None:
    assert run("04_resume_and_context.py").splitlines() == [
        "crash: http://127.0.0.1:8000/v1 is down",
        "resumed: Lima - calls that were made: 1",
        "cheap: Lima",
        "as a chat model: Lima - why it stopped: answered",
    ]


# 05 to 07: streaming, approval, an agent with tools


def test_an_answer_comes_in_pieces_and_thoughts_are_marked_as_reasoning() -> None:
    assert run("05_streaming.py").splitlines() == [
        "messages: Lima,| on th|e coas|t.|",
        "events: "
        + "think_delta " * 5
        + "think route info "
        + "think_delta " * 3
        + "answer_delta " * 4
        + "think done ",
        "chat model: Lima, on the coast.",
        "reasoning: The capital is asked for. / That is it.",
        "cost: $0.0000011",
    ]


def test_of_two_calls_that_wait_one_is_edited_and_one_is_rejected() -> None:
    assert run("06_approval.py").splitlines() == [
        "Ask expert (at most $0.02): How warm is it in Lima?",
        "Ask expert (at most $0.02): How warm is it in Quito?",
        "student | ok | about 20 degrees",
        "expert | rejected | a person did not approve the call: One city is enough.",
        "In Lima, I think.",
    ]


def test_an_agent_runs_on_the_router() -> None:
    assert run("07_agent_with_tools.py").splitlines() == [
        "human: How warm is it in Lima?",
        "ai: calls weather",
        "tool: Lima: 21 degrees",
        "ai: calls Report",
        "tool: Returning structured response: city='Lima' degrees=21",
        "Report(city='Lima', degrees=21)",
    ]


# 09 and 10: traces; replay and fork


def test_a_trace_tells_what_each_turn_and_call_cost_and_their_sum_is_the_account() -> None:
    lines = [line.split("$") for line in run("09_tracing.py").splitlines()]
    assert [name.strip() for name, *_ in lines] == [
        "invoke_agent router_r1",
        *("think", "chat scripted", "route small", "chat small"),
        *("think", "chat scripted", "route large", "chat large"),
        *("think", "chat scripted"),
        "account",
    ]
    costs = {name.strip(): float(cost) for name, *costs in lines for cost in costs if not name.startswith("think")}
    thinking = sum(float(cost) for name, *costs in lines for cost in costs if name.startswith("think"))
    assert costs["invoke_agent router_r1"] == costs["account"]
    assert thinking + costs["route small"] + costs["route large"] == pytest.approx(costs["account"], abs=2e-7)


def test_a_recorded_run_is_replayed_and_forked() -> None:
    assert [line.split() for line in run("10_replay_and_fork.py").splitlines()] == [
        ["recorded", "small", "8", "million", "$0.0000012"],
        ["replayed", "small", "8", "million", "$0.0000012"],
        ["forked", "large", "10", "million", "$0.0000600"],
    ]
