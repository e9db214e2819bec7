"""The command line: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from rich.console import Console
from typer.testing import CliRunner

from langgraph_router_r1 import create_router
from langgraph_router_r1.cli import cli
from langgraph_router_r1.testing import ScriptedEngine
from langgraph_router_r1.trace import Trace, bill_table, printable

run = CliRunner()

REGISTRY = """
[models.small]
model = "openai:gpt-x"
base_url = "http://127.0.0.1:9/v1"
description = "Quick."
price = 0.5
max_retries = 0
"""


@pytest.fixture
def registry(tmp_path: Path) -> str:
    path = tmp_path / "models.toml"
    path.write_text(REGISTRY)
    return str(path)


def test_graph_prints_the_diagram_of_the_state_machine() -> None:
    result = run.invoke(cli, ["graph"])
    assert result.exit_code == 0
    assert "think -.-> route" in result.stdout


def test_models_lists_the_pocket_pool_by_default_and_a_registry_when_named(registry: str) -> None:
    shown = run.invoke(cli, ["models"], env={"COLUMNS": "200"}).stdout
    assert all(name in shown for name in ("smol", "capitals", "generalist", "$0.01/M"))
    shown = run.invoke(cli, ["models", "--registry", registry]).stdout
    assert "small" in shown
    assert "smol" not in shown


def test_a_bad_registry_is_one_clear_error_and_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[models.a]\nmodel = "openai:x"\n')
    result = run.invoke(cli, ["models", "--registry", str(path)])
    assert result.exit_code == 1
    assert "models.a.price: is missing" in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_registry_without_a_router_says_what_is_missing(registry: str) -> None:
    result = run.invoke(cli, ["ask", "Which?", "--registry", registry])
    assert result.exit_code == 1
    assert "--registry needs --router" in result.stderr


def test_a_chat_model_as_router_needs_its_price_and_its_key(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    arguments = ["ask", "Which?", "--registry", registry, "--router", "openai:gpt-x"]
    result = run.invoke(cli, arguments)
    assert (result.exit_code, "--router-price" in result.stderr) == (1, True)
    result = run.invoke(cli, [*arguments, "--router-price", "1"])
    assert result.exit_code == 1
    assert "is its key in the environment?" in " ".join(result.stderr.split())


def test_cost_weight_and_budget_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    engine = ScriptedEngine([search("m: a?") + answer("Lima")])
    monkeypatch.setattr("langgraph_router_r1.cli._pool", lambda *_: contextlib.nullcontext((engine, pool(m="x"))))
    result = run.invoke(cli, ["ask", "Which?", "--cost-weight", "1", "--budget", "0", "--json"])
    assert json.loads(result.stdout)["routing"]["stop_reason"] == "forced_answer"
    assert "Cost weight: 0.9" in bytes(engine.prompts[0]).decode()


def test_a_router_that_is_down_is_named_and_nothing_stands_on_stdout(registry: str) -> None:
    arguments = ["ask", "Which?", "--registry", registry, "--router", "http://127.0.0.1:9/v1", "--json"]
    result = run.invoke(cli, arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "http://127.0.0.1:9/v1" in result.stderr


def test_check_says_of_each_part_what_is_wrong(registry: str) -> None:
    arguments = ["check", "--registry", registry, "--router", "http://127.0.0.1:9/v1"]
    result = run.invoke(cli, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "is down" in result.stdout


def test_what_a_registry_says_is_shown_and_not_taken_for_markup(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        '[models."a[/x]"]\nmodel = "openai:x"\nprice = 1\n'
        'description = "[link=http://evil.example]click[/link] [/INST]"\n'
    )
    result = run.invoke(cli, ["models", "--registry", str(file)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "[link=http://evil.example]click[/link] [/INST]" in result.stdout


def test_an_adapter_that_is_no_directory_is_refused() -> None:
    result = run.invoke(cli, ["serve-router", "--adapter", "router=/nowhere"])
    assert result.exit_code == 1
    assert "must be NAME=DIRECTORY" in result.stderr


def traced(*turns: str, **replies: Any) -> tuple[str, Trace]:
    registry = pool(**replies)
    console = Console(record=True, width=200, file=io.StringIO())
    trace = Trace(console)
    trace.question("Which?")
    router = create_router(ScriptedEngine(turns), registry)
    for event in router.stream({"messages": [("user", "Which?")]}, stream_mode="custom"):
        trace.show(event)
    assert trace.routing is not None
    console.print(bill_table([trace.routing], registry))
    return console.export_text(), trace


def test_the_trace_shows_thought_route_reply_answer_and_bill() -> None:
    shown, trace = traced(search("capitals: Peru?"), answer("Lima"), capitals="Lima it is")
    for part in (
        "? Which?",
        "… I have to ask.",
        "→ capitals: Peru?",
        "← Lima it is",
        "= Lima",
        "$0.00001300",
        "router",
    ):
        assert part in shown
    assert trace.answer == "Lima"


def test_the_trace_shows_why_a_call_failed() -> None:
    shown, _ = traced(search("capitals: Peru?"), answer("Lima"), capitals=ValueError("x"))
    assert "← capitals failed (ValueError)" in shown


def test_no_escape_sequence_and_no_markup_of_a_model_reaches_the_terminal() -> None:
    shown, _ = traced(
        search("capitals: Peru?"), answer("Lima"), capitals="\x1b[2J\x1b]0;owned\x07[bold]loud[/bold]\x9b31m"
    )
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "[bold]loud[/bold]" in shown
    assert printable("a\nb\tc\rd\x00") == "a\nb\tcd"


@pytest.mark.vllm
def test_ask_json_prints_one_object_and_nothing_else(pocket: Any) -> None:
    result = run.invoke(cli, ["ask", "What currency is used in Thailand?", "--router", pocket.base_url, "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert set(printed) == {"question", "answer", "routing"}
    assert printed["routing"]["turns"] >= 1


@pytest.mark.vllm
def test_check_finds_the_pocket_pool_well(pocket: Any) -> None:
    result = run.invoke(cli, ["check", "--router", pocket.base_url], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert result.stdout.count("✓") == 7
