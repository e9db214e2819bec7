"""The server's page in headless Chromium: a real server on loopback, a scripted router and a scripted pool."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, search

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright
from router_server import Served, serving

from langgraph_router_r1 import ModelDescriptor, ModelRegistry
from langgraph_router_r1.serving.keys import read_keys
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

CHROMIUM = shutil.which("chromium")
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>'
QUESTION = "Which dialling code reaches the country whose domain is .pe?"


def write(transcript: Any) -> str:
    """Ask one model after the other, then answer; a hostile question gets a hostile answer."""
    replies = sum(segment["kind"] == "observation" for segment in transcript)
    if "Question: Hostile" in transcript[0]["text"]:
        return thinks(HOSTILE, answer(HOSTILE) if replies else search(f"hostile: {HOSTILE}"))
    if "Question: Both" in transcript[0]["text"]:
        return answer("Both.") if replies else search("small: One?", "large: Two?")
    turns = [
        thinks(".pe is the domain of a country. I ask which.", search("small: Which country has the domain .pe?")),
        thinks("Peru. Now its dialling code.", search("large: What is the dialling code of Peru?")),
        thinks("That is all I need.", answer("+51")),
    ]
    return turns[replies]


def thinks(thought: str, turn: str) -> str:
    return re.sub("(?<=<think>).*(?=</think>)", lambda _: f" {thought} ", turn)


def model(name: str, reply: str, price: dict[str, float], **about: Any) -> ModelDescriptor:
    return ModelDescriptor(name=name, model=ScriptedChatModel([reply], delay_s=0.05), price=price, **about)


def pool() -> ModelRegistry:
    about_small: Any = {"description": "Quick; good at everyday facts.", "latency_s": 0.4, "skills": {"nq": 0.41}}
    about_large: Any = {"description": "Slow; knows more.", "latency_s": 1.2, "skills": {"nq": 0.62}}
    return ModelRegistry(
        [
            model("small", "The domain .pe belongs to Peru.", {"prompt": 0.15, "completion": 0.6}, **about_small),
            model("large", "The dialling code of Peru is +51.", {"prompt": 2.5, "completion": 10}, **about_large),
            model("hostile", HOSTILE, {"prompt": 1, "completion": 1}, description=HOSTILE),
        ]
    )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(ScriptedEngine(write), pool(), tmp_path / "runs.sqlite") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("Chromium is not installed: apt install chromium")
    assert CHROMIUM is not None, "Chromium is not installed, and .ci/run must not skip its tests"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox does not run as root
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, served: Served) -> Iterator[Open]:
    """Open the page; at the end, nothing was asked of another server and nothing went wrong in the console."""
    seen: list[str] = []
    pages: list[Page] = []

    def opens(width: int = 1280, *, scheme: Any = "light") -> Page:
        viewport: Any = {"width": width, "height": 900}
        page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", locale="en")
        pages.append(page)
        page.on("request", lambda request: None if request.url.startswith(served.url) else seen.append(request.url))
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.goto(served.url)
        return page

    yield opens
    for page in pages:
        page.context.close()
    assert seen == []


def ask(page: Page, question: str = QUESTION, *, approve: bool = False) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Approve each call").set_checked(approve)
    page.get_by_role("button", name="Ask").click()


def status(page: Page) -> Any:
    return page.locator("p[role=status]")


def steps(page: Page) -> Any:
    return page.get_by_role("list", name="What the router did").get_by_role("listitem")


def answer_of(page: Page) -> Any:
    return page.get_by_role("region", name="Answer").locator("p")


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


def test_a_server_with_keys_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    key = "a-key-of-twenty-characters-or-more"
    keys = read_keys(None, {"ROUTER_R1_SERVER_KEYS": f"alice={key}"})
    with serving(ScriptedEngine(write), pool(), tmp_path / "runs.sqlite", keys=keys) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_label("Key of this server").fill(key)
        page.get_by_role("button", name="Use this key").click()
        ask(page)
        expect(answer_of(page)).to_have_text("+51")
        page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(opened: Open, width: int, scheme: str) -> None:
    page = opened(width, scheme=scheme)

    def check() -> None:
        found = Axe().run(page).response["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width

    check()
    ask(page, approve=True)
    expect(page.get_by_role("button", name="Approve")).to_be_visible()
    check()
    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("group", name="large")).to_be_visible()
    page.get_by_role("button", name="Approve").click()
    expect(answer_of(page)).to_have_text("+51")
    page.get_by_role("button", name="Good answer").click()
    expect(page.get_by_role("group", name="Feedback")).to_contain_text("Score 1")
    check()
    ask(page, f"Hostile? {HOSTILE}{'wide' * 100}")
    expect(answer_of(page)).to_have_text(HOSTILE)
    check()


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
    models = ModelRegistry([model for model in pool() if model.name != "hostile"])
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
