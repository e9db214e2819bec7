"""The code in the documentation runs as it stands."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from langchain_core.messages import AIMessage
from typer.cli import get_docs_for_click
from typer.main import get_command

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.cli import cli
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

DOCS = Path(__file__).parent.parent / "docs"


def code_of(page: str) -> str:
    """Return the Python code of a page, its blocks one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL))


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_strategy_and_the_middleware_of_the_documentation_work(
    is_async: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"registry": pool(small="Lima")}
    exec(code_of("extending.md"), names)
    question = {"messages": [("user", "Capital of Peru?")]}
    router = names["router"]
    result = await router.ainvoke(question) if is_async else router.invoke(question)
    assert result["answer"] == "Lima"
    assert result["routing"]["cost_usd"] > 0
    assert capsys.readouterr().out == "small was asked 'Capital of Peru?' and said 'Lima'\n"


@pytest.mark.parametrize("page", ["index.md", "embedding.md", "budgets.md"])
def test_the_code_of_a_page_works_with_a_router(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [search("small: Capital of Peru?"), answer("Lima")] * 2
    small = ScriptedChatModel(["It is Lima."])
    registry = ModelRegistry([ModelDescriptor(name="small", model=small, price=1.0, modalities=("text", "image"))])
    names: dict[str, Any] = {"router": create_router(ScriptedEngine(turns), registry)}
    exec(code_of(page), names)
    if page == "index.md":
        kinds = ["think", "route", "info", "answer_delta", "think", "done"]
        assert capsys.readouterr().out.split() == [f"router_r1.{kind}" for kind in kinds]


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_the_code_about_streaming_approval_and_tools_works(capsys: pytest.CaptureFixture[str]) -> None:
    turns = [search("small: Capital of Peru?"), answer("Lima")]
    exec(code_of("streaming.md"), {"router": create_router(ScriptedEngine(turns), pool(small="It is Lima."))})
    assert capsys.readouterr().out == "Lima"
    names: dict[str, Any] = {
        "engine": ScriptedEngine(turns),
        "registry": pool(small="x"),
        "create_router": create_router,
    }
    exec(code_of("approval.md"), names)
    assert capsys.readouterr().out == "Ask small (at most $0.00064): Capital of Peru?\n"
    assert names["result"]["answer"] == "Lima"
    call: Any = {"name": "weather", "args": {"city": "Lima"}, "id": "1", "type": "tool_call"}
    small = ScriptedChatModel([AIMessage("", tool_calls=[call])])
    registry = pool(small=small)
    names = {
        "router": create_router(ScriptedEngine(turns), registry),
        "engine": ScriptedEngine(turns),
        "registry": registry,
        "chat_models": {"small": small},
    }
    exec(code_of("tools.md"), names)
    assert names["weather"].invoke({"city": "Lima"}) == "Lima: 21 degrees"


def test_the_page_of_commands_is_the_help_of_the_commands() -> None:
    """`make docs` writes it."""
    command = get_command(cli)
    context = command.make_context("router-r1", [], resilient_parsing=True)
    made = get_docs_for_click(obj=command, ctx=context, name="router-r1", title="Commands")
    # Typer's own command escapes what it writes.
    assert html.unescape((DOCS / "cli.md").read_text(encoding="utf-8")).strip() == html.unescape(made).strip()


def test_the_notebook_prints_what_it_says_that_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((DOCS.parent / "examples" / "offline.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            said = "".join(text for output in cell["outputs"] for text in output["text"])
            assert capsys.readouterr().out == said


def test_every_page_of_the_site_is_in_its_menu_and_the_other_way_round() -> None:
    menu = set(re.findall(r"[\w/-]+\.md", (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")))
    assert menu == {path.name for path in DOCS.glob("*.md")}
