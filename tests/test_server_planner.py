"""The planner of the server: named like the router, on the same database, with the plan among its events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")

from conftest import answer
from router_server import Served, serving

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price
from langgraph_router_r1.serving import store as store_module
from langgraph_router_r1.serving.keys import read_keys
from langgraph_router_r1.serving.openai_api import create_app
from langgraph_router_r1.strategies.allocators import FunctionAllocator
from langgraph_router_r1.strategies.planner import Planner
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

PLAN = "1. Which country has the capital Lima?\n2. What currency is used in #1?"
QUESTION = "What currency is used in the country whose capital is Lima?"


def pool() -> ModelRegistry:
    return ModelRegistry(
        [
            ModelDescriptor(
                name="small", model=ScriptedChatModel(["Peru", "Sol"] * 9), price=1.0, params={"max_tokens": 32}
            ),
            ModelDescriptor(name="large", model=ScriptedChatModel(["Chile"] * 9), price=9.0),
        ]
    )


def make_planner(registry: ModelRegistry) -> Planner:
    engine = ScriptedEngine(lambda _: PLAN)
    return Planner(engine, FunctionAllocator(lambda _step, pool: next(iter(pool)).name), price=Price(1.0, 1.0))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    engine = ScriptedEngine(lambda _: answer("from the router"))
    with serving(engine, pool(), tmp_path / "runs.sqlite", make_planner=make_planner) as server:
        yield server


def events(url: str, path: str, body: dict[str, Any], **options: Any) -> list[Any]:
    reply = httpx.post(f"{url}{path}", json=body, timeout=30, **options)
    assert reply.status_code == 200, reply.text
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]


def test_the_planner_is_listed_and_answers_by_openais_api_with_all_tokens_on_the_bill(served: Served) -> None:
    names = [model["id"] for model in httpx.get(f"{served.url}/v1/models").json()["data"]]
    assert {"router-r1", "planner", "planner@0.3", "small"} <= set(names)
    for name in ("planner", "planner@0.6"):
        body = {"model": name, "messages": [{"role": "user", "content": QUESTION}]}
        reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=30).json()
        assert reply["choices"][0]["message"]["content"] == "Sol"
        calls = reply["router_r1"]["calls"]
        assert [call["model"] for call in calls] == ["small", "small"]
        assert reply["router_r1"]["cost_usd"] > sum(call["cost_usd"] for call in calls) > 0
    body = {"model": "router-r1", "messages": [{"role": "user", "content": QUESTION}]}
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=30).json()
    assert reply["choices"][0]["message"]["content"] == "from the router"


def test_the_trace_of_a_planner_begins_with_its_plan_and_the_most_that_it_costs(served: Served) -> None:
    body = {"model": "planner+trace", "messages": [{"role": "user", "content": QUESTION}]}
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=30).json()
    first, second, most, *rest = reply["choices"][0]["message"]["reasoning_content"].splitlines()
    assert [first, second] == [f"{step} (small)" for step in PLAN.splitlines()]
    assert most.startswith("at most $0.00")
    assert "→ small: What currency is used in Peru?" in rest


def test_a_server_without_a_planner_knows_no_such_name_and_a_model_may_have_it(tmp_path: Path) -> None:
    own = ModelRegistry([ModelDescriptor(name="planner", model=ScriptedChatModel(["a model"]), price="free")])
    with serving(ScriptedEngine(lambda _: answer("x")), own, tmp_path / "runs.sqlite") as server:
        body = {"model": "planner", "messages": [{"role": "user", "content": "?"}]}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).json()
        assert reply["choices"][0]["message"]["content"] == "a model"
        body["model"] = "planner@0.3"
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).status_code == 404
    twin = ModelDescriptor(name="planner@0.3", model=ScriptedChatModel([]), price="free")
    with pytest.raises(ValueError, match=r"'planner@0\.3'"):  # a key for the other one would open it
        create_app(ScriptedEngine(lambda _: answer("x")), ModelRegistry([*own, twin]))


def test_a_model_that_has_the_planners_name_is_refused_where_there_is_a_planner(served: Served) -> None:
    own = ModelRegistry([ModelDescriptor(name="planner", model=ScriptedChatModel([]), price="free")])
    with pytest.raises(ValueError, match="a model 'planner', which is the name of a router here"):
        served.api.serve(own)


def test_a_plan_is_an_event_and_waits_for_approval_and_may_be_edited(served: Served) -> None:
    body = {"question": QUESTION, "model": "planner", "approve": True}
    seen = events(served.url, "/v1/runs", body)
    assert [event["type"].removeprefix("router_r1.") for event in seen] == ["run", "plan", "approval"]
    [action] = seen[-1]["request"]["action_requests"]
    assert action["name"] == "run_plan"
    steps = [{"model": "large", "query": "Whose capital is Lima?"}, {"model": "small", "query": "Currency of #1?"}]
    edit = {"type": "edit", "edited_action": {"name": "run_plan", "args": {"steps": steps}}}
    seen = events(served.url, f"/v1/runs/{seen[0]['run_id']}/decisions", {"decisions": [edit]})
    asked = [(event["model"], event["query"]) for event in seen if event["type"] == "router_r1.route"]
    assert asked == [("large", "Whose capital is Lima?"), ("small", "Currency of Chile?")]


def test_a_run_of_the_planner_is_forked_by_the_planner(served: Served) -> None:
    seen = events(served.url, "/v1/runs", {"question": QUESTION, "model": "planner"})
    fork = {"turn": 0, "index": 0, "model": "large"}
    seen = events(served.url, f"/v1/runs/{seen[0]['run_id']}/fork", fork)
    asked = [(event["model"], event["query"]) for event in seen if event["type"] == "router_r1.route"]
    assert asked == [
        ("large", "Which country has the capital Lima?"),
        ("small", "What currency is used in Chile?"),
    ]


def test_an_edited_plan_names_only_models_that_the_key_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        '[keys.alice]\nsha256 = "'
        + __import__("hashlib").sha256(b"secret").hexdigest()
        + '"\nmodels = ["planner", "small"]\n'
    )
    monkeypatch.delenv("ROUTER_R1_SERVER_KEYS", raising=False)
    as_alice = {"headers": {"Authorization": "Bearer secret"}}
    engine = ScriptedEngine(lambda _: answer("x"))
    with serving(engine, pool(), tmp_path / "runs.sqlite", make_planner=make_planner, keys=read_keys(keys)) as server:
        body = {"question": QUESTION, "model": "planner", "approve": True}
        run_id = events(server.url, "/v1/runs", body, **as_alice)[0]["run_id"]
        steps = [{"model": "small", "query": "?"}, {"model": "large", "query": "?"}]
        for args in ({"steps": steps}, {"model": "small", "steps": steps}):
            edit = {"type": "edit", "edited_action": {"args": args}}
            refused = httpx.post(f"{server.url}/v1/runs/{run_id}/decisions", json={"decisions": [edit]}, **as_alice)
            assert refused.status_code == 403
            assert "large" in refused.json()["error"]["message"]


def test_a_plan_that_nobody_decides_on_is_charged_what_it_cost_and_not_what_was_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "WAIT_S", 0.0)
    monkeypatch.setattr(store_module, "LEASE_S", 0.5)
    options = {"make_planner": make_planner, "run_budget_usd": 0.5}
    with serving(ScriptedEngine([]), pool(), tmp_path / "runs.sqlite", **options) as server:
        body = {"question": QUESTION, "model": "planner", "approve": True}
        run_id = events(server.url, "/v1/runs", body)[0]["run_id"]
        while (run := httpx.get(f"{server.url}/v1/runs/{run_id}").json())["status"] != "lost":
            time.sleep(0.05)
        assert run["maybe_cost_usd"] == 0
        assert httpx.get(f"{server.url}/v1/usage").json()["today_usd"] == pytest.approx(run["cost_usd"])
        assert 0 < run["cost_usd"] < 0.01


def test_a_shadow_is_given_requests_of_the_router_and_none_of_the_planner(served: Served) -> None:
    targets = served.api.runs.targets
    assert targets.find("router-r1@0.3").is_repeatable
    assert not targets.find("planner").is_repeatable  # a shadow has no planner
