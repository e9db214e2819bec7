"""The planner on the server's page: it is chosen, its plan is shown, edited, approved and denied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect
from router_page import HOSTILE, Open, answer_of, ask, check, model, pool, status, steps, write
from router_server import Served, serving
from test_server_planner import make_planner

from langgraph_router_r1 import ModelRegistry
from langgraph_router_r1.testing import ScriptedEngine

PLAN = "1. Which country has the capital Lima? (small)\n2. What currency is used in #1? (small)"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    small = model("small", "Peru", {"prompt": 0.15, "completion": 0.6}, params={"max_tokens": 32})
    large = model("large", "Sol", {"prompt": 2.5, "completion": 10}, params={"max_tokens": 32})
    hostile = model(HOSTILE, "hostile", {"prompt": 1, "completion": 1})
    with serving(
        ScriptedEngine(write),
        ModelRegistry([small, large, hostile]),
        tmp_path / "runs.sqlite",
        make_planner=make_planner,
    ) as server:
        yield server


def plans(page: Page, *, approve: bool = False) -> None:
    page.get_by_label("Who decides").select_option("planner")
    ask(page, "What currency is used in the country whose capital is Lima?", approve=approve)


def test_a_planner_is_chosen_and_its_plan_is_shown_before_its_calls(opened: Open) -> None:
    page = opened()
    plans(page)
    expect(answer_of(page)).to_have_text("Peru")
    expect(steps(page)).to_have_count(3)
    expect(steps(page).nth(0)).to_contain_text("at most $0.0")
    expect(steps(page).nth(0).locator("p")).to_have_text(PLAN)
    expect(steps(page).nth(2)).to_contain_text("What currency is used in Peru?")
    check(page)
    page.get_by_role("button", name="Replay").click()  # the record has the plan, too
    expect(steps(page).nth(0).locator("p")).to_have_text(PLAN)


def test_a_plan_waits_and_is_followed_when_it_is_approved(opened: Open) -> None:
    page = opened(360)
    plans(page, approve=True)
    expect(status(page)).to_have_text("Waiting for your decision on the plan.")
    expect(page.get_by_role("group", name="Plan, at most $0.0")).to_contain_text("2. What currency is used in #1?")
    check(page)
    page.get_by_role("button", name="Approve").click()
    expect(answer_of(page)).to_have_text("Peru")


def test_a_denied_plan_asks_nobody(opened: Open, served: Served) -> None:
    page = opened()
    plans(page, approve=True)
    page.get_by_label("Reason to deny the plan").fill("too expensive")
    page.get_by_role("button", name="Deny").click()
    expect(steps(page).nth(1)).to_contain_text("A person did not approve the plan: too expensive.")
    assert served.api.runs.targets.registry["small"].model.calls == []


def test_an_edited_plan_is_followed_and_a_step_without_a_query_is_left_out(opened: Open) -> None:
    page = opened()
    plans(page, approve=True)
    group = page.get_by_role("group", name="Plan")
    group.get_by_role("button", name="Edit").click()
    group.get_by_label("Query of step 1").fill("What currency is used in Peru?")
    group.get_by_label("Model of step 1").select_option("large")
    group.get_by_label("Query of step 2").fill("")
    check(page)
    group.get_by_role("button", name="Follow the edited plan").click()
    expect(answer_of(page)).to_have_text("Sol")
    expect(steps(page)).to_have_count(2)
    expect(steps(page).nth(1)).to_contain_text("What currency is used in Peru?")


def test_a_plan_that_cant_be_used_is_asked_for_again_with_what_was_written(opened: Open) -> None:
    page = opened()
    plans(page, approve=True)
    group = page.get_by_role("group", name="Plan")
    group.get_by_role("button", name="Edit").click()
    group.get_by_label("Query of step 1").fill("Where is #2?")
    group.get_by_role("button", name="Follow the edited plan").click()
    expect(status(page)).to_contain_text("step 1 uses the result of step 2")
    expect(group.get_by_label("Query of step 1")).to_have_value("Where is #2?")


def test_without_a_planner_there_is_nothing_to_choose(browser: Browser, tmp_path: Path) -> None:
    with serving(ScriptedEngine(write), pool(), tmp_path / "other.sqlite") as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.get_by_role("heading", name="Pool")).to_be_visible()
        expect(page.get_by_label("Who decides")).to_be_hidden()
        page.context.close()
