"""The server's page in headless Chromium: a real server on loopback, a scripted router and a scripted pool."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from PIL import Image
from playwright.sync_api import Browser, Error, Route, expect
from router_page import HOSTILE, QUESTION, Open, answer_of, ask, check, pool, status, steps, write
from router_server import Served, serving

from langgraph_router_r1 import ModelRegistry
from langgraph_router_r1.serving.keys import read_keys
from langgraph_router_r1.testing import ScriptedEngine


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(ScriptedEngine(write), pool(), tmp_path / "runs.sqlite") as server:
        yield server


def test_a_question_shows_thoughts_calls_answer_and_bill(opened: Open) -> None:
    page = opened()
    page.get_by_label("Cost weight").fill("0.6")
    page.get_by_label("Budget in dollars").fill("0.05")
    ask(page)
    expect(answer_of(page)).to_have_text("+51")
    expect(steps(page)).to_have_count(5)
    expect(steps(page).nth(0)).to_have_text(".pe is the domain of a country. I ask which.")
    call = steps(page).nth(1)
    for part in ("small", "$0.15 in, $0.6 out", "Which country", "10 + 6 tokens, $0.0000051", "belongs to Peru."):
        expect(call).to_contain_text(part)
    bill = page.get_by_role("region", name="Bill")
    # small: 10 + 6 tokens, large: 10 + 7; all of them at the price of large: 20 * 2.5 + 13 * 10 millionths.
    expect(bill.locator("#spent")).to_have_text("$0.0001")
    expect(bill.locator("#alone-name")).to_have_text("large alone")
    expect(bill.locator("#alone")).to_have_text("$0.00018")
    run = page.request.get(f"{page.url.partition('#')[0]}v1/runs/{page.url.partition('#')[2]}").json()
    assert (run["record"]["limits"]["cost_weight"], run["budget_usd"]) == (0.6, 0.05)
    expect(page.get_by_role("list", name="Pool").get_by_role("listitem").nth(0)).to_contain_text("50 % of 2 calls")


def test_a_past_run_is_found_and_replayed_without_any_call(opened: Open, served: Served) -> None:
    page = opened()
    ask(page)
    expect(answer_of(page)).to_have_text("+51")
    shown = steps(page).all_text_contents()
    ask(page, "Hostile?")
    expect(answer_of(page)).to_have_text(HOSTILE)
    page.get_by_label("Search questions").fill("dialling")
    runs = page.get_by_role("list", name="Past runs").get_by_role("listitem")
    expect(runs).to_have_count(1)
    runs.get_by_role("button").click()
    expect(answer_of(page)).to_have_text("+51")
    page.emulate_media(reduced_motion="no-preference")  # without it, a replay takes no time
    page.clock.install()
    page.clock.pause_at(datetime.now(tz=UTC) + timedelta(minutes=1))
    page.get_by_role("button", name="Replay").click()
    expect(steps(page)).to_have_count(0)
    page.clock.run_for(600)
    expect(steps(page)).to_have_text(shown[:1])
    page.clock.run_for(10_000)
    expect(steps(page)).to_have_text(shown)
    expect(answer_of(page)).to_have_text("+51")
    assert [len(model.model.calls) for model in served.api.runs.targets.registry] == [1, 1, 1]


def test_a_fork_asks_another_model_at_one_call(opened: Open, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    settle = served.api.runs._settle

    async def settle_late(*arguments: Any) -> None:
        await asyncio.sleep(0.3)
        await settle(*arguments)

    monkeypatch.setattr(served.api.runs, "_settle", settle_late)  # no fork is offered before there is a record
    page = opened()
    ask(page)
    call = steps(page).nth(3)
    call.get_by_label("Model to ask in place of large").select_option("small")
    call.get_by_role("button", name="Fork here").click()
    expect(steps(page).nth(3)).to_contain_text("small")
    expect(answer_of(page)).to_have_text("+51")
    expect(page.get_by_role("list", name="Past runs").get_by_role("listitem")).to_have_count(2)
    # The call before it came from the record.
    assert [len(served.api.runs.targets.registry[name].model.calls) for name in ("small", "large")] == [2, 1]


def test_an_answer_is_rated_and_the_rating_is_there_when_the_run_is_opened_again(opened: Open) -> None:
    page = opened()
    feedback = page.get_by_role("group", name="Feedback")
    ask(page, "Both?", approve=True)
    expect(page.get_by_role("button", name="Approve").first).to_be_visible()
    expect(feedback).to_be_hidden()
    for model in ("small", "large"):
        page.get_by_role("group", name=model).get_by_role("button", name="Approve").click()
    expect(feedback).to_contain_text("Not rated yet")
    good, bad = (feedback.get_by_role("button", name=name) for name in ("Good answer", "Bad answer"))
    good.focus()
    page.keyboard.press("Enter")
    expect(status(page)).to_have_text("The rating is kept.")
    expect(feedback).to_contain_text("Score 1, from 0 for bad to 1 for good")
    feedback.get_by_label("Comment").fill(HOSTILE)
    bad.click()
    expect(feedback).to_contain_text("Score 0")
    for _ in range(2):
        expect(good).to_have_attribute("aria-pressed", "false")
        expect(bad).to_have_attribute("aria-pressed", "true")
        expect(feedback.get_by_label("Comment")).to_have_value(HOSTILE)
        page.reload()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b, body script").count() == 0
    ask(page, "Both?")
    expect(feedback).to_contain_text("Not rated yet")
    expect(feedback.get_by_label("Comment")).to_have_value("")


def test_a_rating_that_another_program_gave_is_shown(opened: Open, served: Served) -> None:
    page = opened()
    ask(page)
    expect(answer_of(page)).to_have_text("+51")
    feedback = page.get_by_role("group", name="Feedback")
    expect(feedback).to_be_visible()
    run_id = page.url.partition("#")[2]
    given = {"run_id": run_id, "score": 0.7, "comment": "Nearly."}
    assert page.request.post(f"{served.url}/v1/feedback", data=given).ok
    page.reload()
    expect(feedback).to_contain_text("Score 0.7")
    expect(feedback.get_by_label("Comment")).to_have_value("Nearly.")
    expect(feedback.locator("[aria-pressed=true]")).to_have_count(0)


def test_what_models_write_is_text(opened: Open) -> None:
    page = opened()
    ask(page, f"Hostile? {HOSTILE}")
    expect(answer_of(page)).to_have_text(HOSTILE)
    for shown in (steps(page).nth(0), steps(page).nth(1), page.get_by_role("heading", level=2).first):
        expect(shown).to_contain_text("<img src=x")
    expect(page.get_by_role("list", name="Pool")).to_contain_text("<img src=x")
    page.reload()
    expect(answer_of(page)).to_have_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b, body script").count() == 0


def test_the_browser_runs_and_asks_nothing_that_is_not_of_the_server(browser: Browser, served: Served) -> None:
    page = browser.new_page()
    page.goto(served.url)
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    added = "const s = document.createElement('script'); s.textContent = 'hacked = 1'; document.body.append(s)"
    with pytest.raises(Error, match="TrustedScript"):
        page.evaluate(added)
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate("fetch('http://127.0.0.1:9/')")
    page.close()


def test_a_run_that_is_stopped_says_so_and_is_cancelled(browser: Browser, tmp_path: Path) -> None:
    slow = ScriptedEngine(write, delay_s=0.2)
    with serving(slow, pool(), tmp_path / "runs.sqlite") as server:
        page = browser.new_page()
        page.goto(server.url)
        ask(page)
        expect(steps(page)).to_have_count(1)
        page.get_by_role("button", name="Stop").click()
        expect(status(page)).to_have_text("Stopped. What was spent is recorded.")
        runs = page.get_by_role("list", name="Past runs").get_by_role("listitem")
        page.get_by_label("Search questions").fill("dialling")
        expect(runs).to_contain_text(re.compile("cancelled|running"))
        page.close()


def test_a_server_that_is_gone_is_said_so(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    with serving(ScriptedEngine(write), pool(), tmp_path / "runs.sqlite") as server:
        page.goto(server.url)
        expect(page.get_by_role("list", name="Pool").get_by_role("listitem")).to_have_count(3)
    ask(page)
    expect(page.get_by_role("alert")).to_have_text("The server does not answer. Is it running?")
    page.close()


def test_what_takes_long_says_that_it_goes_on(opened: Open) -> None:
    page = opened()
    runs = page.get_by_role("region", name="Past runs")
    expect(runs).to_contain_text("No run yet.")
    held: list[Route] = []

    def hold(pattern: str, begin: Callable[[], None], shown: Any, text: str) -> None:
        page.route(pattern, lambda route: held.append(route), times=1)
        begin()
        expect(shown).to_have_text(text)
        held.pop().continue_()

    elapsed = page.locator("#elapsed")
    hold("**/v1/runs", lambda: ask(page), elapsed, "1 s")
    expect(answer_of(page)).to_have_text("+51")
    expect(elapsed).to_be_hidden()
    note = page.locator("#runs-note")
    hold("**/v1/runs?*", lambda: page.get_by_label("Search questions").fill("nothing"), note, "Loading.")
    expect(note).to_have_text("No run found.")
    page.get_by_label("Search questions").fill("")
    hold("**/v1/runs/run-*", lambda: runs.get_by_role("button").click(), note, "Loading the run.")
    expect(note).to_be_empty()


def test_a_run_that_is_asked_while_another_is_loaded_stays(opened: Open) -> None:
    page = opened()
    ask(page)
    expect(answer_of(page)).to_have_text("+51")
    held: list[Route] = []
    page.route("**/v1/runs/run-*", lambda route: held.append(route), times=1)
    page.get_by_role("region", name="Past runs").get_by_role("button").click()
    expect(page.locator("#runs-note")).to_have_text("Loading the run.")
    ask(page, "Both?")
    with page.expect_response("**/v1/runs/run-*"):
        held.pop().continue_()
    expect(answer_of(page)).to_have_text("Both.")
    expect(page.locator("#run-title")).to_have_text("Both?")


def test_a_server_with_keys_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    key = "a-key-of-twenty-characters-or-more"
    keys = read_keys(None, {"ROUTER_R1_SERVER_KEYS": f"alice={key}"})
    with serving(ScriptedEngine(write), pool(), tmp_path / "runs.sqlite", keys=keys) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.get_by_label("Key of this server")).to_be_focused()
        expect(page.get_by_role("alert")).to_be_hidden()
        page.get_by_label("Key of this server").fill(f"not-{key}")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("alert")).to_have_text("The server does not know this key.")
        page.get_by_label("Key of this server").fill(key)
        page.get_by_role("button", name="Use this key").click()
        ask(page)
        expect(answer_of(page)).to_have_text("+51")
        page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(opened: Open, width: int, scheme: str) -> None:
    page = opened(width, scheme=scheme)

    check(page)
    ask(page, approve=True)
    expect(page.get_by_role("button", name="Approve")).to_be_visible()
    check(page)
    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("group", name="large")).to_be_visible()
    page.get_by_role("button", name="Approve").click()
    expect(answer_of(page)).to_have_text("+51")
    page.get_by_role("button", name="Good answer").click()
    expect(page.get_by_role("group", name="Feedback")).to_contain_text("Score 1")
    check(page)
    ask(page, f"Hostile? {HOSTILE}{'wide' * 100}")
    expect(answer_of(page)).to_have_text(HOSTILE)
    check(page)


def test_everything_is_reached_by_keyboard(opened: Open) -> None:
    page = opened()
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.get_by_label("Approve each call").focus()
    page.keyboard.press("Space")
    page.get_by_label("Question", exact=True).press("Control+Enter")
    for text in ("belongs to Peru.", "is +51."):
        expect(page.get_by_role("heading", name="The router asks for your approval")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(steps(page).filter(has_text=text)).to_have_count(1)
    expect(answer_of(page)).to_have_text("+51")
    buttons = page.locator("button:visible, a[href]:visible, input:visible, select:visible, textarea:visible")
    assert buttons.evaluate_all("all => all.filter((one) => one.tabIndex < 0).length") == 0


def test_the_picture_of_the_documentation_is_small(browser: Browser, tmp_path: Path) -> None:
    """`make page-picture` keeps it."""
    picture = Path(os.environ.get("ROUTER_R1_PICTURES", tmp_path)) / "page.png"
    rows = [
        {
            "id": f"{place}",
            "question": f"{place}?",
            "golden_answers": ["?"],
            "outcomes": {
                "small": {"score": float(place < 41), "cost_usd": 0.00003},
                "large": {"score": float(place < 62), "cost_usd": 0.0008},
            },
        }
        for place in range(100)
    ]
    profile = tmp_path / "models.profile.jsonl"
    profile.write_text("\n".join(map(json.dumps, rows)))
    models = ModelRegistry([model for model in pool() if model.name != "hostile"], profile=profile)
    with serving(ScriptedEngine(write), models, tmp_path / "runs.sqlite") as server:
        page = browser.new_page(viewport={"width": 1000, "height": 600}, reduced_motion="reduce", locale="en")
        page.goto(server.url)
        page.get_by_label("Cost weight").fill("0.6")
        page.get_by_label("Budget in dollars").fill("0.01")
        ask(page)
        expect(page.get_by_role("list", name="Pool")).to_contain_text("50 % of 2 calls")
        page.get_by_role("heading", level=1).click()
        page.screenshot(path=picture, full_page=True)
        page.close()
    Image.open(picture).quantize(64).save(picture, optimize=True)
    assert picture.stat().st_size < 150_000
