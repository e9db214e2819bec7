"""The server's page as its tests use it: a scripted router and pool, and a reader's way around the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from conftest import answer, search
from playwright.sync_api import Page

from langgraph_router_r1 import ModelDescriptor, ModelRegistry
from langgraph_router_r1.testing import ScriptedChatModel

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


Open = Callable[..., Page]


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


def check(page: Page) -> None:
    """Axe finds nothing, and nothing is wider than the screen."""
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
