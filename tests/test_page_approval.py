"""Calls that a person approves, denies and edits on the server's page, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect
from router_page import HOSTILE, Open, answer_of, ask, check, pool, status, steps, write
from router_server import Served, serving

from langgraph_router_r1 import ModelRegistry
from langgraph_router_r1.testing import ScriptedEngine


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(ScriptedEngine(write), pool(), tmp_path / "runs.sqlite") as server:
        yield server


def test_an_approved_call_is_made(opened: Open) -> None:
    page = opened()
    ask(page, approve=True)
    expect(status(page)).to_have_text("Waiting for your decision on a call.")
    expect(page.get_by_role("group", name="small, at most $0.000")).to_contain_text("Which country has the domain .pe?")
    expect(steps(page)).to_have_count(1)
    page.get_by_role("button", name="Approve").click()
    expect(steps(page).nth(1)).to_contain_text("belongs to Peru.")
    waiting = page.get_by_role("group", name="large, at most $0.00")
    expect(waiting).to_be_visible()
    page.reload()  # the run waits on the server, whatever happens to the page
    expect(waiting).to_be_visible()
    page.get_by_role("button", name="Approve").click()
    expect(answer_of(page)).to_have_text("+51")


def test_a_denied_call_is_not_made_and_the_router_is_told(opened: Open, served: Served) -> None:
    page = opened()
    ask(page, approve=True)
    page.get_by_label("Reason to deny the call of small").fill("ask a larger one")
    page.get_by_role("button", name="Deny").click()
    expect(steps(page).nth(1)).to_contain_text("a person did not approve the call: ask a larger one")
    expect(steps(page).nth(1)).to_contain_text("not asked, no cost")
    page.get_by_role("button", name="Approve").click()
    expect(answer_of(page)).to_have_text("+51")
    small = served.api.runs.targets.registry["small"].model
    assert small.calls == []


def test_calls_of_one_turn_are_decided_on_together(opened: Open, served: Served) -> None:
    page = opened()
    ask(page, "Both?", approve=True)
    page.get_by_role("group", name="small").get_by_role("button", name="Deny").click()
    expect(status(page)).to_have_text("Waiting for your decision on 2 calls.")
    page.get_by_role("group", name="small").get_by_role("button", name="Approve").click()
    page.get_by_role("group", name="large").get_by_role("button", name="Deny").click()
    expect(answer_of(page)).to_have_text("Both.")
    assert [len(served.api.runs.targets.registry[name].model.calls) for name in ("small", "large")] == [1, 0]


def edit(page: Page, name: str = "small") -> Any:
    """Open the form in which the waiting call of a model is edited; return the group that it is in."""
    group = page.get_by_role("group", name=name)
    group.get_by_role("button", name="Edit").click()
    return group


def choose(group: Any, *, model: str | None = None, query: str | None = None) -> None:
    if model is not None:
        group.get_by_role("combobox", name="Model").select_option(model)
    if query is not None:
        group.get_by_label("Query").fill(query)
    group.get_by_role("button", name="Make the edited call").click()


def asked(server: Served, name: str) -> list[str]:
    """Return what a model was asked, the last message of each call."""
    return [call[-1].text for call in server.api.runs.targets.registry[name].model.calls]


def calls(page: Page) -> Any:
    """Return the calls of the run that is shown, as its record has them."""
    base, _, run_id = page.url.partition("#")
    return page.request.get(f"{base}v1/runs/{run_id}").json()["record"]["calls"]


def test_an_edited_call_is_asked_and_recorded_as_edited(opened: Open, served: Served) -> None:
    page = opened()
    ask(page, approve=True)
    group = edit(page)
    expect(group.get_by_text("$0.15 in, $0.6 out")).to_be_visible()
    expect(group.get_by_role("button", name="Approve")).to_be_hidden()
    expect(group.get_by_label("Query")).to_have_value("Which country has the domain .pe?")
    choose(group, model="large", query=f" Whose is .pe? {HOSTILE} ")
    page.get_by_role("group", name="large").get_by_role("button", name="Approve").click()
    expect(answer_of(page)).to_have_text("+51")
    first, second = calls(page)
    assert (first["model"], first["query"]) == ("large", f"Whose is .pe? {HOSTILE}")
    before = {"decision": "edit", "message": None, "model": "small", "query": "Which country has the domain .pe?"}
    assert (first["review"], second["review"]["decision"]) == (before, "approve")
    assert (asked(served, "small"), [HOSTILE in text for text in asked(served, "large")]) == ([], [True, False])
    for _ in ("while it runs", "from its record"):
        expect(steps(page).nth(1)).to_contain_text(f"Whose is .pe? {HOSTILE}")
        expect(steps(page).nth(1)).to_contain_text("The router wrote: small: Which country has the domain .pe?")
        expect(steps(page).nth(3)).not_to_contain_text("The router wrote")
        page.reload()
    assert page.evaluate("window.hacked") is None


def test_only_what_was_changed_is_an_edit(opened: Open) -> None:
    page = opened()
    ask(page, approve=True)
    choose(edit(page))
    choose(edit(page, "large"), query="The code of Peru?")
    expect(answer_of(page)).to_have_text("+51")
    reviews = [(call["model"], call["query"], call["review"]["decision"]) for call in calls(page)]
    assert reviews == [
        ("small", "Which country has the domain .pe?", "approve"),
        ("large", "The code of Peru?", "edit"),
    ]


def test_an_edit_without_a_query_is_not_sent(opened: Open) -> None:
    page = opened()
    ask(page, approve=True)
    group = edit(page)
    choose(group, query="  ")
    assert group.get_by_label("Query").evaluate("field => field.validationMessage") != ""
    expect(status(page)).to_have_text("Waiting for your decision on a call.")
    choose(group, query="Whose is .pe?")
    expect(page.get_by_role("group", name="large")).to_be_visible()


def test_what_stands_in_the_fields_when_all_is_decided_counts(opened: Open) -> None:
    page = opened()
    ask(page, "Both?", approve=True)
    small, large = (page.get_by_role("group", name=name) for name in ("small", "large"))
    choose(edit(page), query="Too early?")
    small.get_by_label("Query").fill("One, edited?")
    large.get_by_role("button", name="Approve").click()
    expect(answer_of(page)).to_have_text("Both.")
    assert [call["query"] for call in calls(page)] == ["One, edited?", "Two?"]


def test_an_edit_that_is_cancelled_decides_nothing(opened: Open) -> None:
    page = opened()
    ask(page, "Both?", approve=True)
    small, large = (page.get_by_role("group", name=name) for name in ("small", "large"))
    choose(edit(page), query="One, edited?")
    small.get_by_role("button", name="Cancel").click()
    large.get_by_role("button", name="Approve").click()
    expect(small.get_by_role("button", name="Approve")).to_be_visible()
    small.get_by_role("button", name="Approve").click()
    expect(answer_of(page)).to_have_text("Both.")
    assert [call["query"] for call in calls(page)] == ["One?", "Two?"]


def test_decisions_that_can_not_be_used_are_asked_again_with_what_was_written(opened: Open, served: Served) -> None:
    page = opened()
    ask(page, "Both?", approve=True)
    edit(page)
    served.api.serve(ModelRegistry(one for one in pool() if one.name != "hostile"))  # it was in the list
    small = page.get_by_role("group", name="small")
    choose(small, model="hostile", query="One, edited?")
    page.get_by_label("Reason to deny the call of large").fill("too expensive")
    page.get_by_role("group", name="large").get_by_role("button", name="Deny").click()
    expect(status(page)).to_contain_text("'hostile'")
    expect(page.get_by_label("Reason to deny the call of large")).to_have_value("too expensive")
    expect(small.get_by_label("Query")).to_have_value("One, edited?")
    choose(small, model="small")
    page.get_by_role("group", name="large").get_by_role("button", name="Deny").click()
    expect(answer_of(page)).to_have_text("Both.")
    expect(page.get_by_role("button", name="Replay")).to_be_visible()  # only then the record is kept
    found = [(call["query"], call["status"]) for call in calls(page)]
    assert found == [("One, edited?", "ok"), ("Two?", "rejected")]


def test_decisions_that_do_not_reach_the_server_can_be_sent_again(browser: Browser, served: Served) -> None:
    page = browser.new_page()
    page.goto(served.url)
    ask(page, approve=True)
    group = edit(page)
    page.route("**/decisions", lambda route: route.abort(), times=1)
    choose(group, query="Whose is .pe?")
    expect(page.get_by_role("alert")).to_have_text("The server does not answer. Is it running?")
    choose(group)
    expect(steps(page).nth(1)).to_contain_text("Whose is .pe?")
    page.close()


def test_a_call_is_edited_by_keyboard(opened: Open) -> None:
    page = opened()
    ask(page, approve=True)
    expect(page.get_by_role("heading", name="The router asks for your approval")).to_be_focused()
    group = page.get_by_role("group", name="small")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for key in ("Escape", "Tab"):
        expect(group.get_by_role("button", name="Edit")).to_be_focused()
        page.keyboard.press("Enter")
        expect(group.get_by_role("combobox", name="Model")).to_be_focused()
        page.keyboard.press(key)
    expect(group.get_by_label("Query")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("large")
    page.keyboard.press("Tab")
    expect(group.get_by_label("Query")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("Whose is .pe?")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("group", name="large")).to_be_visible()
    assert (calls(page)[0]["model"], calls(page)[0]["query"]) == ("large", "Whose is .pe?")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_axe_finds_nothing_while_a_call_is_edited(opened: Open, width: int, scheme: str) -> None:
    page = opened(width, scheme=scheme)
    ask(page, "Both?", approve=True)
    group = edit(page)
    choose(group, query=f"{HOSTILE}{'wide' * 100}")
    check(page)
    page.get_by_role("group", name="large").get_by_role("button", name="Deny").click()
    expect(answer_of(page)).to_have_text("Both.")
    check(page)
