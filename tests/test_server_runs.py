"""Runs of the server as the page has them: the router's own events, approval, forks."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import LEAVES_CLIENTS, answer, pool, search

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")

from router_server import Served, serving

from langgraph_router_r1.serving import store as store_module
from langgraph_router_r1.serving.keys import Key
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

pytestmark = LEAVES_CLIENTS


def write(transcript: Any) -> str:
    """Ask both models in the first turn, `large` in the second, then answer."""
    turns = [search("small: Capital of Peru?", "large: Of Chile?"), search("large: Both?"), answer("Lima, Santiago")]
    return turns[sum(segment["kind"] == "observation" for segment in transcript)]


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    """Starts a server on one and the same database."""

    def started(*keys: Key, delay_s: float = 0.0) -> Any:
        models = pool(small=ScriptedChatModel(["Lima."], delay_s=delay_s), large="Santiago.")
        return serving(ScriptedEngine(write), models, tmp_path / "runs.sqlite", keys=keys)

    return started


@pytest.fixture
def served(start: Any) -> Iterator[Served]:
    with start() as server:
        yield server


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


Events = list[dict[str, Any]]


def post(server: Served, path: str, secret: str = "none", **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.post(f"{server.url}/v1/runs{path}", json=body, headers=headers, timeout=30)


def events(response: httpx.Response) -> Events:
    assert response.status_code == 200, response.text
    return [json.loads(block[6:]) for block in response.text.split("\n\n") if block.startswith("data: ")]


def kinds(seen: Events) -> list[str]:
    return [event["type"].removeprefix("router_r1.") for event in seen if "delta" not in event["type"]]


def problem(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def run(server: Served, run_id: str, secret: str = "none") -> Any:
    return httpx.get(f"{server.url}/v1/runs/{run_id}", headers={"Authorization": f"Bearer {secret}"}).json()


def run_when_not(server: Served, status: str, run_id: str, secret: str = "none") -> Any:
    """Return a run once it does not have this status any more."""
    for _ in range(200):
        if (found := run(server, run_id, secret))["status"] != status:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def asked(server: Served) -> list[int]:
    """Return how many calls each model was sent."""
    return [len(model.model.calls) for model in server.api.runs.targets.registry]


APPROVE, REJECT = {"type": "approve"}, {"type": "reject", "message": "too expensive"}


def edit(**args: str) -> Any:
    return {"type": "edit", "edited_action": {"name": "ask_model", "args": args}}


def test_a_run_streams_its_id_and_the_routers_own_events(served: Served) -> None:
    seen = events(post(served, "", question="Which?", cost_weight=0.6, budget_usd=0.5))
    assert kinds(seen) == ["run", "think", *["route"] * 2, *["info"] * 2, "think", "route", "info", "think", "done"]
    assert "".join(event["text"] for event in seen if event["type"] == "router_r1.answer_delta") == "Lima, Santiago"
    found = run(served, seen[0]["run_id"])
    assert (found["status"], found["record"]["answer"]) == ("ended", "Lima, Santiago")
    assert (found["record"]["limits"]["cost_weight"], found["record"]["limits"]["budget_usd"]) == (0.6, 0.5)
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "?"}]
    assert (
        kinds(events(post(served, "", messages=[*conversation, {"role": "user", "content": "Which?"}])))[-1] == "done"
    )


def test_a_request_that_says_nothing_or_too_much_is_refused(served: Served) -> None:
    for body in ({}, {"question": "a", "messages": []}):
        assert problem(post(served, "", **body)) == (400, "the body: Value error, give either a question or messages")
    assert post(served, "", question="a", url="http://127.0.0.1").status_code == 400
    assert problem(post(served, "", question="a", model="small", approve=True))[1].startswith("'small' would be asked")


def test_calls_wait_for_approval_and_go_on_as_was_decided(served: Served) -> None:
    seen = events(post(served, "", question="Which?", approve=True))
    run_id = seen[0]["run_id"]
    assert kinds(seen) == ["run", "think", "approval"]
    assert [action["args"]["model"] for action in seen[-1]["request"]["action_requests"]] == ["small", "large"]
    waiting = run(served, run_id)
    assert (waiting["status"], waiting["approval"], asked(served)) == ("waiting", seen[-1]["request"], [0, 0])

    seen = events(post(served, f"/{run_id}/decisions", decisions=[APPROVE, REJECT]))
    assert {event["model"]: event["status"] for event in seen if event["type"] == "router_r1.info"} == {
        "small": "ok",
        "large": "rejected",
    }
    assert (kinds(seen)[-1], asked(served)) == ("approval", [1, 0])
    again = events(post(served, f"/{run_id}/decisions", decisions=[]))
    assert "there are 0 decisions" in again[-1]["request"]["error"], "what can't be used is asked again"
    seen = events(post(served, f"/{run_id}/decisions", decisions=[APPROVE]))
    assert (kinds(seen)[-1], run(served, run_id)["status"], asked(served)) == ("done", "ended", [1, 1])
    assert problem(post(served, f"/{run_id}/decisions", decisions=[APPROVE])) == (
        409,
        "the run does not wait for decisions",
    )


def test_an_edited_call_is_the_one_that_is_made(served: Served) -> None:
    run_id = events(post(served, "", question="Which?", approve=True))[0]["run_id"]
    decisions = [edit(model="large", query="Of Peru?"), APPROVE]
    seen = events(post(served, f"/{run_id}/decisions", decisions=decisions))
    first, second = (event for event in seen if event["type"] == "router_r1.route")
    assert (first["model"], first["query"], asked(served)) == ("large", "Of Peru?", [0, 2])
    before = {"decision": "edit", "message": None, "model": "small", "query": "Capital of Peru?"}
    assert (first["review"], second["review"]["decision"]) == (before, "approve")
    call = run(served, run_id)["record"]["calls"][0]
    assert (call["model"], call["query"], call["review"]) == ("large", "Of Peru?", before)
    again = events(post(served, f"/{run_id}/decisions", decisions=[edit(model="other")]))
    assert "'other'" in again[-1]["request"]["error"], "an edit that can't be used is asked again"


def test_an_edit_and_a_fork_name_only_models_that_the_key_may_ask_for(start: Any) -> None:
    secret = "the-secret-of-alice-0123"
    with start(Key(name="alice", sha256=sha256(secret), models=("router-r1", "small"))) as server:
        run_id = events(post(server, "", secret, question="Which?", approve=True))[0]["run_id"]
        for decision in (edit(model="large"), edit(model="Large", query="Of Peru?")):
            refused = post(server, f"/{run_id}/decisions", secret, decisions=[APPROVE, decision])
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        decisions = [edit(query="Of Peru?"), edit(model="small")]
        events(post(server, f"/{run_id}/decisions", secret, decisions=decisions))
        assert asked(server) == [2, 0]
        assert kinds(events(post(server, f"/{run_id}/decisions", secret, decisions=[edit(query="?")])))[-1] == "done"
        assert post(server, f"/{run_id}/fork", secret, turn=0, model="large").status_code == 403
        assert post(server, f"/{run_id}/fork", secret, turn=1, model="small").status_code == 200


def test_a_run_waits_across_a_restart_with_its_budget_and_its_spending(start: Any) -> None:
    with start() as server:
        run_id = events(post(server, "", question="Which?", approve=True, budget_usd=0.5))[0]["run_id"]
        events(post(server, f"/{run_id}/decisions", decisions=[APPROVE, APPROVE]))
        before = run(server, run_id)["cost_usd"]
        assert before > 0
    with start() as server:
        assert run(server, run_id)["status"] == "waiting"
        events(post(server, f"/{run_id}/decisions", decisions=[APPROVE]))
        found = run(server, run_id)
        assert (found["status"], found["record"]["limits"]["budget_usd"]) == ("ended", 0.5)
        assert (found["cost_usd"] > before, asked(server)) == (True, [0, 1]), "no call is made twice"


def test_a_run_that_nobody_decides_on_is_settled_and_its_reservation_ends(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "the-secret-of-alice-0123"
    question: Any = {"question": "Which?", "approve": True}
    with start(Key(name="alice", sha256=sha256(secret), day_usd=0.05)) as server:
        monkeypatch.setattr(store_module, "WAIT_S", 0.5)
        run_id = events(post(server, "", secret, **question))[0]["run_id"]
        assert problem(post(server, "", secret, **question))[0] == 429, "its budget is reserved while it waits"
        found = run_when_not(server, "waiting", run_id, secret)
        assert (found["status"], found["cost_usd"]) == ("lost", 0.0)
        assert post(server, f"/{run_id}/decisions", secret, decisions=[APPROVE]).status_code == 409
        assert post(server, "", secret, **question).status_code == 200


def test_a_fork_asks_another_model_and_pays_for_nothing_that_came_before(served: Served) -> None:
    seen = events(post(served, "", question="Which?"))
    run_id, cost = seen[0]["run_id"], seen[-1]["routing"]["cost_usd"]
    forked = events(post(served, f"/{run_id}/fork", turn=1, model="small"))
    calls = [(call["model"], call["cost_usd"] > 0) for call in forked[-1]["routing"]["calls"]]
    assert calls == [("small", False), ("large", False), ("small", True)]
    assert (kinds(forked)[-1], asked(served)) == ("done", [2, 2])
    found = run(served, forked[0]["run_id"])
    assert (found["status"], 0 < found["cost_usd"] < cost) == ("ended", True)
    models = {model["id"]: model["router_r1"] for model in httpx.get(f"{served.url}/v1/models").json()["data"]}
    assert [models[name]["calls"] for name in ("small", "large")] == [{"ok": 2}, {"ok": 2}], "only calls that were made"


def test_what_can_not_be_forked_is_said(served: Served) -> None:
    run_id = events(post(served, "", question="Which?"))[0]["run_id"]
    assert problem(post(served, f"/{run_id}/fork", turn=3, model="small"))[1].startswith("the record has no call 3.0")
    assert "'other' is not in the registry" in problem(post(served, f"/{run_id}/fork", turn=0, model="other"))[1]
    assert problem(post(served, "/run-0/fork", turn=0, model="small")) == (404, "there is no such run")
    direct = events(post(served, "", question="Which?", model="large"))[0]["run_id"]
    assert "asked one model directly" in problem(post(served, f"/{direct}/fork", turn=0, model="small"))[1]
    waiting = events(post(served, "", question="Which?", approve=True))[0]["run_id"]
    assert post(served, f"/{waiting}/fork", turn=0, model="small").status_code == 409


def test_a_key_decides_on_and_forks_its_own_runs_only(start: Any) -> None:
    secrets = {name: f"the-secret-of-{name}-0123" for name in ("alice", "bob")}
    keys = [Key(name=name, sha256=sha256(secret)) for name, secret in secrets.items()]
    with start(*keys) as server:
        run_id = events(post(server, "", secrets["alice"], question="Which?", approve=True))[0]["run_id"]
        for path, body in (("decisions", {"decisions": [APPROVE]}), ("fork", {"turn": 0, "model": "small"})):
            assert post(server, f"/{run_id}/{path}", secrets["bob"], **body).status_code == 404
            assert post(server, f"/{run_id}/{path}", "unknown", **body).status_code == 401


@pytest.mark.parametrize("path", ["decisions", "fork"])
def test_a_client_that_leaves_cancels_its_run_and_what_it_spent_is_known(path: str, start: Any) -> None:
    with start() as server:
        done = events(post(server, "", question="Which?"))[0]["run_id"]
    with start(delay_s=30) as server:
        waiting = events(post(server, "", question="Which?", approve=True))[0]["run_id"]
        body: Any = {"decisions": [APPROVE, APPROVE]} if path == "decisions" else {"turn": 1, "model": "small"}
        url = f"{server.url}/v1/runs/{waiting if path == 'decisions' else done}/{path}"
        with httpx.stream("POST", url, json=body) as response:
            lines = response.iter_lines()
            run_id = json.loads(next(lines)[6:])["run_id"]
            next(line for line in lines if '"router_r1.info"' in line)
            time.sleep(0.2)
        found = run_when_not(server, "running", run_id)
        assert (found["status"], found["maybe_cost_usd"] > 0) == ("cancelled", True)


def test_what_a_run_spent_before_it_waited_is_kept_if_it_is_cancelled_at_once(served: Served) -> None:
    run_id = events(post(served, "", question="Which?", approve=True))[0]["run_id"]
    events(post(served, f"/{run_id}/decisions", decisions=[APPROVE, APPROVE]))
    before = run(served, run_id)["cost_usd"]
    with httpx.stream("POST", f"{served.url}/v1/runs/{run_id}/decisions", json={"decisions": [APPROVE]}):
        pass
    found = run_when_not(served, "running", run_id)
    assert found["status"] in {"cancelled", "ended"}  # a scripted run may be faster
    assert found["cost_usd"] >= before > 0


def test_the_page_is_served_with_a_strict_policy(served: Served) -> None:
    scripts = [(f"{name}.js", "text/javascript") for name in ("app", "api", "approval", "dom", "plot")]
    for path, kind in (("", "text/html"), *scripts, ("style.css", "text/css")):
        response = httpx.get(f"{served.url}/{path}")
        assert response.headers["content-type"] == f"{kind}; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
    page = httpx.get(f"{served.url}/").text
    assert not any(part in page for part in ("http:", "https:", "<style", " style=", " onclick="))
