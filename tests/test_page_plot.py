"""The plot of measured quality and cost on the server's page, in headless Chromium."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect
from router_page import Open, check, model, pool, write
from router_server import Served, serving

from langgraph_router_r1 import ModelRegistry
from langgraph_router_r1.pocket import pocket_registry
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

HOSTILE_NAME = '<img src=x onerror="window.hacked=1">'

PROFILE: dict[str, list[dict[str, Any]]] = {
    "small": [{"response": reply, "prompt_tokens": 100, "completion_tokens": 10} for reply in ("w", "x", "?", "?")],
    "large": [{"response": reply, "prompt_tokens": 100, "completion_tokens": 20} for reply in "wxyz"],
    HOSTILE_NAME: [{"response": reply, "cost_usd": 0.002} for reply in ("w", "?")],
    "local": [{"response": reply, "prompt_tokens": 50, "completion_tokens": 5} for reply in ("?", "?", "?", "z")],
}
"""What the models replied to four questions, whose answers are w, x, y and z."""

FIGURES = {
    "small": {"quality": 0.5, "cost_usd": 21e-6, "questions": 4},  # (100 * 0.15 + 10 * 0.6) / 1e6
    "large": {"quality": 1.0, "cost_usd": 450e-6, "questions": 4},  # (100 * 2.5 + 20 * 10) / 1e6
    HOSTILE_NAME: {"quality": 0.5, "cost_usd": 0.002, "questions": 2},
    "local": {"quality": 0.25, "cost_usd": 0.0, "questions": 4},
}


def write_profile(path: Path) -> Path:
    lines = []
    for place, golden in enumerate("wxyz"):
        outcomes = {name: replies[place] for name, replies in PROFILE.items() if place < len(replies)}
        row = {"id": f"t{place}", "question": f"Question {place}?", "golden_answers": [golden], "outcomes": outcomes}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


def measured_pool(profile: Path) -> ModelRegistry:
    free: Any = "free"
    others = [model(HOSTILE_NAME, "?", {"prompt": 1, "completion": 1}), model("local", "?", free)]
    return ModelRegistry([*pool(), *others], profile=profile)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    models = measured_pool(write_profile(tmp_path / "models.profile.jsonl"))
    with serving(ScriptedEngine(write), models, tmp_path / "runs.sqlite") as server:
        yield server


def figures(server: Served) -> dict[str, Any]:
    """Return what the server says that was measured, by model; without models of which nothing was."""
    models = httpx.get(f"{server.url}/v1/models").json()["data"]
    return {
        one["id"]: one["router_r1"]["profile"] for one in models if one["router_r1"] and one["router_r1"]["profile"]
    }


def points(page: Page) -> dict[str, tuple[float, float]]:
    """Return where the point of each model is, by the start of its title."""
    expect(page.locator("circle").first).to_be_visible()
    read = "all => all.map((one) => [one.textContent, +one.getAttribute('cx'), +one.getAttribute('cy')])"
    return {title.rpartition(":")[0]: (x, y) for title, x, y in page.locator("circle").evaluate_all(read)}


def ticks(page: Page) -> dict[str, tuple[float, float]]:
    """Return where the line of each tick begins, by its text."""
    read = """all => all.map((one) => {
        const line = one.querySelector("line");
        return [one.textContent, +line.getAttribute("x1"), +line.getAttribute("y1")];
    })"""
    found = page.locator(".tick").evaluate_all(read)
    return {" ".join(text.split()): (x, y) for text, x, y in found}


def test_the_server_tells_what_the_profile_measured(served: Served) -> None:
    assert figures(served) == {name: pytest.approx(expected) for name, expected in FIGURES.items()}


def test_the_profile_is_read_with_the_registry_and_not_for_each_request(served: Served, tmp_path: Path) -> None:
    before = figures(served)
    (tmp_path / "models.profile.jsonl").unlink()
    assert figures(served) == before
    served.api.serve(ModelRegistry(pool()))
    assert figures(served) == {}


def test_a_profile_that_can_not_be_read_stops_no_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("not JSON\n{}\n")
    with (
        caplog.at_level(logging.WARNING),
        serving(ScriptedEngine(write), measured_pool(broken), tmp_path / "runs.sqlite") as server,
    ):
        assert figures(server) == {}
    assert "the profile can't be read, and no measured quality is shown: broken.jsonl, line 1" in caplog.text


def test_the_figures_of_the_pocket_pool_are_those_of_its_profile(tmp_path: Path) -> None:
    pytest.importorskip("tomlkit", reason="the [eval] extra is not installed")
    from langgraph_router_r1.evaluation.profile import measure
    from langgraph_router_r1.evaluation.recorded import RecordedPool

    registry = pocket_registry()
    assert registry.profile is not None
    recorded = RecordedPool.from_file(registry.profile)
    with serving(ScriptedEngine(write), registry, tmp_path / "runs.sqlite") as server:
        found = figures(server)
    assert list(found) == list(registry.names)
    for one in registry:
        measured = measure(one, [(task, recorded.outcomes[task.id][one.name]) for task in recorded.tasks.values()])
        assert measured is not None
        assert found[one.name]["cost_usd"] == pytest.approx(measured.cost_usd)
        right = sum(kind.value * kind.questions for kind in measured.accuracy.values())
        assert found[one.name]["quality"] == pytest.approx(right / measured.questions)


def test_each_model_is_a_point_at_its_cost_and_quality(opened: Open) -> None:
    page = opened()
    found, axis = points(page), ticks(page)
    assert found.keys() == FIGURES.keys()
    (cent, _), (dollar, _), (free, _) = axis["$0.01"], axis["$1"], axis["free"]
    bottom, top = axis["0 %"][1], axis["100 %"][1]
    for name, expected in FIGURES.items():
        x, y = found[name]
        cost = 1000 * expected["cost_usd"]  # the axis has the cost of a thousand replies
        on_axis = cent + (math.log10(cost) + 2) / 2 * (dollar - cent) if cost else free
        assert (x, y) == pytest.approx((on_axis, bottom + expected["quality"] * (top - bottom)), abs=0.01)
    assert free < cent, "what costs nothing stands before the logarithmic axis"


def test_the_table_has_the_same_numbers(opened: Open) -> None:
    page = opened()
    page.get_by_text("The same as a table").click()
    rows = page.get_by_role("table").get_by_role("row")
    cells = [rows.nth(place).locator("th, td").all_inner_texts() for place in range(5)]
    assert [[" ".join(cell.split()) for cell in row] for row in cells] == [
        ["Model", "Quality", "Cost of 1,000"],
        ["large", "100 %", "$0.45"],
        ["small", "50 %", "$0.021"],
        [HOSTILE_NAME, "50 %", "$2"],
        ["local", "25 %", "$0"],
    ]
    expect(page.get_by_text("the share of right replies to the 2 to 4 questions")).to_be_visible()


def test_the_table_stays_open_when_the_pool_is_read_again(opened: Open) -> None:
    page = opened()
    page.get_by_text("The same as a table").click()
    with page.expect_response("**/v1/models"):
        page.get_by_label("Question", exact=True).fill("Both?")
        page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("list", name="Pool")).to_contain_text("50 % of 2 calls")
    expect(page.get_by_role("table")).to_be_visible()


def test_names_of_models_are_text(opened: Open) -> None:
    page = opened()
    expect(page.locator(".label", has_text="<img src=x oner…")).to_have_count(1)
    expect(page.get_by_role("list", name="Pool")).to_contain_text(HOSTILE_NAME)
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_without_a_profile_there_is_no_plot(browser: Browser, tmp_path: Path) -> None:
    with serving(ScriptedEngine(write), pool(), tmp_path / "runs.sqlite") as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.get_by_role("list", name="Pool").get_by_role("listitem")).to_have_count(3)
        assert page.locator("figure, figure svg, table").count() == 0
        page.close()


def test_labels_of_models_that_are_close_cover_nothing(browser: Browser, tmp_path: Path) -> None:
    shipped = pocket_registry()
    models = [one.model_copy(update={"model": ScriptedChatModel(["?"])}) for one in shipped]
    registry = ModelRegistry(models, profile=shipped.profile)
    with serving(ScriptedEngine(write), registry, tmp_path / "runs.sqlite") as server:
        page = browser.new_page(viewport={"width": 360, "height": 800})
        page.goto(server.url)
        expect(page.locator("circle")).to_have_count(6)
        read = "all => all.map((one) => (({ x, y, width, height }) => [x, y, width, height])(one.getBBox()))"
        boxes = page.locator(".label text").evaluate_all(read)
        page.close()
    assert len(boxes) == 6
    for (x, y, width, height), (x2, y2, width2, height2) in itertools.combinations(boxes, 2):
        apart = x + width <= x2 or x2 + width2 <= x
        assert apart or abs(y + height / 2 - y2 - height2 / 2) >= 12
    assert all(x >= 0 and x + width <= 300 for x, _, width, _ in boxes)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_axe_finds_nothing_in_plot_and_table(opened: Open, width: int, scheme: str) -> None:
    page = opened(width, scheme=scheme)
    page.get_by_role("img", name="Quality and cost of 4 models").wait_for()
    page.get_by_text("The same as a table").press("Enter")
    expect(page.get_by_role("table")).to_be_visible()
    check(page)
