"""The command line: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from rich.console import Console
from typer.testing import CliRunner

from langgraph_router_r1 import RECORD_KEYS, ModelRegistry, RunRecord, create_router
from langgraph_router_r1.cli import cli
from langgraph_router_r1.cli.output import EXTRAS
from langgraph_router_r1.replay import replay
from langgraph_router_r1.testing import ScriptedEngine
from langgraph_router_r1.trace import ConsoleTrace, bill_table, printable

run = CliRunner()
ROOT = Path(__file__).parent.parent

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


def test_replay_shows_a_recorded_run_again_and_names_a_file_that_is_none(tmp_path: Path) -> None:
    turns = [search("small: Capital of Peru?"), answer("Lima")]
    router = create_router(ScriptedEngine(turns), pool(small="It is Lima."))
    record = RunRecord.of(router.invoke({"messages": [("user", "Capital of Peru?")]}, output_keys=RECORD_KEYS))
    path = tmp_path / "run.json"
    path.write_text(record.model_dump_json())
    shown = run.invoke(cli, ["replay", str(path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for text in ("? Capital of Peru?", "→ small: Capital of Peru?", "← It is Lima.", "= Lima", "(1 route, $"):
        assert text in shown.stdout
    for content, reason in (("{}", "question: Field required"), ("no json", "Invalid JSON"), (None, "No such file")):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        result = run.invoke(cli, ["replay", str(path)])
        assert result.exit_code == 1
        assert "is no record of a run" in " ".join(result.stderr.split())
        assert reason in " ".join(result.stderr.split())


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
    assert "OPENAI_API_KEY set in the environment?" in " ".join(result.stderr.split())


def test_cost_weight_and_budget_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine([search("m: a?") + answer("Lima")])
    monkeypatch.setattr(
        "langgraph_router_r1.cli.ask.open_pool", lambda *_, **__: contextlib.nullcontext((engine, pool(m="x")))
    )
    result = run.invoke(cli, ["ask", "Which?", "--cost-weight", "1", "--budget", "0", "--json"])
    assert RunRecord.model_validate_json(result.stdout).report["stop_reason"] == "forced_answer"
    assert "Cost weight: 1 of 1" in bytes(engine.prompts[0]).decode()


def test_a_question_without_an_answer_exits_with_1_and_its_record_is_printed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = ScriptedEngine(["<answer> </answer>"])
    monkeypatch.setattr(
        "langgraph_router_r1.cli.ask.open_pool", lambda *_, **__: contextlib.nullcontext((engine, pool(m="x")))
    )
    result = run.invoke(cli, ["ask", "Which?", "--json"])
    assert (result.exit_code, RunRecord.model_validate_json(result.stdout).answer) == (1, "")


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


def hostile_files(directory: Path) -> None:
    """Files that a command may be pointed at by mistake or by malice, by what is wrong with them."""
    (directory / "models.toml").write_text(REGISTRY)
    (directory / "models.json").write_text("{}")
    (directory / "directory.toml").mkdir()
    (directory / "directory.jsonl").mkdir()
    (directory / "empty.toml").write_text("")
    (directory / "empty.jsonl").write_text("")
    (directory / "binary.toml").write_bytes(bytes(range(256)))
    (directory / "binary.jsonl").write_bytes(bytes(range(256)))
    (directory / "deep.toml").write_text("a = " + "[" * 5000)
    (directory / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (directory / "number.toml").write_text("a = " + "1" * 5000)
    (directory / "list.jsonl").write_text("[]\n")
    (directory / "wrong.jsonl").write_text('{"question": 1}\n')
    (directory / "tasks.jsonl").write_text('{"id": "1", "question": "Who?", "golden_answers": ["x"]}\n')
    (directory / "key.toml").write_text('title = "x"\napi_key = "sk-canary"\n')
    (directory / "locked.toml").write_text(REGISTRY)
    (directory / "locked.toml").chmod(0)
    (directory / "adapter").mkdir()
    (directory / "none").mkdir()
    (directory / "nobody").write_text("")
    (directory / "models.profile.jsonl").write_text("not mine\n")


WRONG_COMMAND_LINES = [
    # No such thing
    ("nonesuch", 2, "No such command 'nonesuch'"),
    ("ask", 2, "Missing argument"),
    ("ask Which? --nonesuch", 2, "No such option: --nonesuch"),
    ("graph extra", 2, "unexpected extra argument"),
    # Registries
    ("models --registry absent.toml", 1, "'absent.toml' can't be read: No such file"),
    ("models --registry directory.toml", 1, "is not a regular file"),
    ("models --registry empty.toml", 1, "has no models"),
    ("models --registry binary.toml", 1, "it is not UTF-8 text"),
    ("models --registry deep.toml", 1, "nested too deep"),
    ("models --registry models.json", 1, "must end in .toml, .yaml or .yml"),
    ("models --registry \udcff.toml", 1, "can't be read"),
    ("ask Which? --router http://127.0.0.1:9/v1 --registry absent.toml", 1, "can't be read"),
    # Routers
    ("ask Which? --router localhost:8000", 1, "starts with http:// or https://"),
    ("ask Which? --router 127.0.0.1:8000/v1", 1, "starts with http:// or https://"),
    ("ask Which? --router router.example/v1", 1, "starts with http:// or https://"),
    ("ask Which? --router ftp://user:canary@router.example", 1, "starts with http:// or https://"),
    ("ask Which? --router ''", 1, "starts with http:// or https://"),
    ("ask Which? --router http://", 1, "it must be an address"),
    ("ask Which? --router http://127.0.0.1:9/v1", 1, "is down"),
    ("ask Which? --router http://127.0.0.1:99999/v1", 1, ""),
    ("ask Which? --router openai:gpt-x", 1, "with --router-price"),
    ("ask Which? --router openai:gpt-x --router-price 1", 1, "needs --registry"),
    ("ask Which? --router nobody:x --router-price 1 --registry models.toml", 1, "names no provider that LangChain"),
    ("ask Which? --router mine --router-price 1 --registry models.toml", 1, "a name is PROVIDER:MODEL"),
    ("ask Which? --router knn --registry models.toml", 1, "models.profile.jsonl, line 1: is no JSON"),
    ("ask Which? --router knn", 1, "needs --registry"),
    ("ask Which? --router-url http://127.0.0.1:9/v1 --registry models.toml --router knn", 1, "--router names none"),
    ("check --registry absent.toml", 1, "can't be read: No such file"),
    ("ask Which? --record absent/run.json", 1, "its directory is not there"),
    ("ask Which? --router-price 1,2,3", 2, "'1,2,3' is no price"),
    ("ask Which? --router-price -1", 2, "'-1' is no price"),
    ("ask Which? --registry models.toml", 1, "--registry needs --router"),
    ("check --router localhost:8000", 1, "starts with http:// or https://"),
    ("check --router http://127.0.0.1:9/v1 --registry models.toml", 1, "is down"),
    ("check --router http://127.0.0.1:9/v1 --timeout 0", 2, "--timeout"),
    ("check --router http://127.0.0.1:9/v1 --timeout nan", 2, "--timeout"),
    # Numbers
    ("ask Which? --cost-weight 2", 2, "--cost-weight"),
    ("ask Which? --cost-weight nan", 2, "--cost-weight"),
    ("ask Which? --cost-weight much", 2, "--cost-weight"),
    ("ask Which? --budget -1", 2, "--budget"),
    ("ask Which? --budget inf", 2, "--budget"),
    ("ask Which? --router-price nan", 2, "'nan' is no price"),
    # Questions
    ("ask ''", 1, "the question is empty"),
    ("ask \udcff\udcfe", 1, "not UTF-8 text"),
    # Profiles
    ("profile", 1, "--output"),
    ("profile models.toml", 1, "--tasks"),
    ("profile absent.toml --tasks tasks.jsonl", 1, "can't be read"),
    ("profile models.json --tasks tasks.jsonl", 1, "is not a .toml file"),
    ("profile deep.toml --tasks tasks.jsonl", 1, "nested too deep"),
    ("profile models.toml --tasks nonesuch", 1, "there are no tasks 'nonesuch'"),
    ("profile models.toml --tasks absent.jsonl", 1, "can't be read: No such file"),
    ("profile models.toml --tasks directory.jsonl", 1, "can't be read: Is a directory"),
    ("profile models.toml --tasks empty.jsonl", 1, "there are no tasks to ask"),
    ("profile models.toml --tasks binary.jsonl", 1, "it is not UTF-8 text"),
    ("profile models.toml --tasks deep.jsonl", 1, "nested too deeply"),
    ("profile models.toml --tasks list.jsonl", 1, "it must be an object"),
    ("profile models.toml --tasks wrong.jsonl", 1, "'question' is 1; it must be a text"),
    ("profile models.toml --tasks tasks.jsonl", 1, "models.profile.jsonl, line 1: is no JSON"),
    ("profile models.toml --tasks tasks.jsonl --output directory.toml", 1, "is a directory"),
    ("profile models.toml --tasks tasks.jsonl --output nobody/x.toml", 1, "can't be written"),
    ("profile models.toml --tasks tasks.jsonl --sample 0", 2, "--sample"),
    ("profile models.toml --tasks tasks.jsonl --in-flight 0", 2, "--in-flight"),
    ("profile models.toml --tasks tasks.jsonl --budget nan", 2, "--budget"),
    ("profile models.toml --tasks tasks.jsonl --split nonesuch", 2, "--split"),
    ("profile models.toml --tasks tasks.jsonl --seed x", 2, "--seed"),
    # Servers
    ("serve-router --port 99999", 2, "--port"),
    ("serve-router --port -1", 2, "--port"),
    ("serve-router --port http", 2, "--port"),
    ("serve-router --model /nonexistent", 1, "is no directory"),
    ("serve-router --model models.toml", 1, "is no directory"),
    ("serve-router --model ./none", 1, "holds no model"),
    ("serve-router --model 'no such/model here'", 1, "Repo id"),
    ("serve-router --adapter router", 1, "must be NAME=DIRECTORY"),
    ("serve-router --adapter =adapter", 1, "must be NAME=DIRECTORY"),
    ("serve-router --adapter router=models.toml", 1, "must be NAME=DIRECTORY"),
    ("serve-router --adapter router=adapter", 1, "holds no adapter"),
    ("serve --port 0", 2, "--port"),
    ("serve --host 0.0.0.0", 1, "there are no keys"),
    ("serve --host example.com", 1, "there are no keys"),
    ("serve --keys absent.toml", 1, "can't be read: No such file"),
    ("serve --keys key.toml", 1, "must hold tables [keys.NAME]"),
    ("serve --shadow absent.toml", 1, "can't be read: No such file"),
    ("serve --shadow key.toml", 1, "Extra inputs are not permitted"),
    ("shadow-report --database absent.sqlite", 1, "the database 'absent.sqlite' is no file"),
    ("shadow-report --database mysql://me:canary@host/db", 1, "postgresql://"),
    ("serve --database mysql://me:canary@host/db", 1, "postgresql://"),
    ("serve --database /nonexistent/x.sqlite", 1, "'/nonexistent' is no directory"),
    # Benchmarks
    ("bench", 2, "Missing argument"),
    ("bench absent.toml", 1, "can't be read: No such file"),
    ("bench directory.toml", 1, "can't be read: Is a directory"),
    ("bench empty.toml", 1, "title: field required"),
    ("bench binary.toml", 1, "it is not UTF-8 text"),
    ("bench deep.toml", 1, "nested too deeply"),
    ("bench number.toml", 1, "can't be read"),
    ("bench key.toml", 1, "api_key: extra inputs are not permitted"),
    ("bench empty.toml --output nobody", 1, "'nobody' is a file"),
    ("bench empty.toml --publish nobody", 1, "'nobody' is a file"),
    ("bench empty.toml --compare one", 1, "needs two rows"),
    # The page of results
    ("results", 1, "run this in a clone of the repository"),
    ("results --benchmarks absent", 1, "run this in a clone of the repository"),
    ("results --page /nonexistent/x.md", 1, "a file in a directory that exists"),
    ("results --page none", 1, "a file in a directory that exists"),
]


@pytest.mark.parametrize(
    ("line", "code", "message"), WRONG_COMMAND_LINES, ids=[case[0] for case in WRONG_COMMAND_LINES]
)
def test_a_wrong_command_line_is_one_clear_error(
    line: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile_files(tmp_path)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    result = run.invoke(cli, shlex.split(line), env={"COLUMNS": "300"})
    assert isinstance(result.exception, SystemExit), result.exception
    said = " ".join((result.stderr + result.stdout).split())
    assert (result.exit_code, message in said) == (code, True), said
    assert "Traceback" not in said
    assert "canary" not in said
    assert len(said) < 1500, "one paragraph"


def test_version_prints_the_installed_version() -> None:
    result = run.invoke(cli, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"router-r1 {importlib.metadata.version('langgraph-router-r1')}\n")


@pytest.fixture
def hung() -> Iterator[int]:
    """The port of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_check_gives_up_a_hung_router_and_a_hung_model_in_the_time_that_it_is_given(tmp_path: Path, hung: int) -> None:
    file = tmp_path / "models.toml"
    # Retries and a fallback would hide that the first one does not answer.
    file.write_text(
        f'[models.first]\nmodel = "openai:x"\nbase_url = "http://127.0.0.1:{hung}/v1"\nprice = 1\n'
        'fallbacks = ["second"]\n'
        f'[models.second]\nmodel = "openai:x"\nbase_url = "http://127.0.0.1:{hung}/v1"\nprice = 1\n'
    )
    started = time.monotonic()
    arguments = ["check", "--router", f"http://127.0.0.1:{hung}/v1", "--registry", str(file), "--timeout", "0.5"]
    result = run.invoke(cli, arguments, env={"COLUMNS": "200", "OPENAI_API_KEY": "none"})
    assert time.monotonic() - started < 15
    assert (result.exit_code, result.stdout.count("✗")) == (1, 3), result.output
    for who in ("the router", "first", "second"):
        assert f"asking {who}" in result.stderr, "it says what it waits for"


def test_check_does_not_take_a_fallback_that_answers_for_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ModelRegistry([*pool(first=ConnectionError("gone")), *pool(second="yes")])
    models = models.with_model(models["first"].model_copy(update={"fallbacks": ("second",)}))
    engine = ScriptedEngine([answer("yes")])
    monkeypatch.setattr(
        "langgraph_router_r1.cli.ask.open_pool", lambda *_, **__: contextlib.nullcontext((engine, models))
    )
    result = run.invoke(cli, ["check"], env={"COLUMNS": "200"})
    rows = {
        line.split("│")[2].strip(): line.split("│")[1].strip() for line in result.stdout.splitlines() if "│" in line
    }
    assert rows == {"router": "✓", "first": "✗", "second": "✓"}


def test_a_port_that_another_program_holds_is_named_before_vllm_is_started(hung: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    arguments = ["serve-router", "--model", str(tmp_path), "--port", str(hung)]
    result = run.invoke(cli, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert f"port {hung} of 127.0.0.1 can't be used: Address already in use" in result.stderr


# Real processes

WITHOUT = """
import signal
import sys

# As in a terminal: a process that is started in the background of a shell inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
missing = sys.argv.pop(1).split(",")

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from langgraph_router_r1.cli import main
main()
"""


def router_r1(*arguments: str, without: str = "", cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own, in which some modules are not installed."""
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT, without, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


NOT_IN_THE_BASE = ",".join({module.partition(".")[0] for module in EXTRAS} - {"langgraph"})


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["demo"], "pocket"),
        (["ask", "Which?"], "pocket"),
        (["check"], "pocket"),
        (["serve-router"], "pocket"),
        (["serve"], "serve"),
        (["shadow-report"], "eval"),
        (["profile"], "eval"),
        (["bench", "b.toml"], "eval"),
        (["results"], "eval"),
        (["ask", "Which?", "--router", "http://127.0.0.1:9/v1", "--registry", "models.toml"], "openai"),
        (["check", "--router", "http://127.0.0.1:9/v1", "--registry", "models.toml"], "openai"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_base_install_names_the_extra_that_a_command_needs(
    arguments: list[str], extra: str, tmp_path: Path, registry: str
) -> None:
    process = router_r1(*arguments, without=NOT_IN_THE_BASE, cwd=tmp_path, OPENAI_API_KEY="none")
    printed, said = process.communicate(timeout=120)
    assert (process.returncode, printed) == (1, "")
    assert f"is not installed: it comes with the extra [{extra}]" in said, said
    assert said.endswith(f"has the command, pip install 'langgraph-router-r1[{extra}] @ ...'\n"), said
    assert ("langgraph-router-r1-adapters" in said) == (extra in {"pocket", "eval"})
    assert said.startswith("Error: ")
    if arguments in (["ask", "Which?"], ["check"]):
        assert "without --registry and --router the pocket pool is asked" in said


def test_every_extra_that_is_named_exists() -> None:
    provided = importlib.metadata.metadata("langgraph-router-r1").get_all("Provides-Extra")
    assert set(EXTRAS.values()) <= set(provided or [])


def test_ctrl_c_ends_a_command_without_a_traceback(hung: int) -> None:
    process = router_r1("check", "--router", f"http://127.0.0.1:{hung}/v1", "--timeout", "60")
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == "asking the router\n"
        time.sleep(0.5)  # until it waits for the reply
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in printed + said


def test_a_reader_who_has_read_enough_ends_a_command_without_a_traceback() -> None:
    process = router_r1("models")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in (said := process.stderr.read())
    assert "Exception" not in said
    assert process.wait() in (0, 1)
    process.stderr.close()


def test_a_terminal_that_knows_ascii_only_shows_question_marks_for_everything_else(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(REGISTRY.replace("Quick.", "Café."), encoding="utf-8")
    process = router_r1("models", "--registry", str(file), PYTHONIOENCODING="ascii")
    printed, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "")
    assert "Caf?." in printed


def traced(*turns: str, **replies: Any) -> tuple[str, ConsoleTrace]:
    registry = pool(**replies)
    console = Console(record=True, width=200, file=io.StringIO())
    trace = ConsoleTrace(console)
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
    assert trace.routing is not None
    assert trace.routing["stop_reason"] == "answered"


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
def test_ask_json_prints_one_object_and_nothing_else_and_keeps_the_record(pocket: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    ask = ["ask", "What currency is used in Thailand?", "--router", pocket.base_url, "--json", "--record", str(path)]
    result = run.invoke(cli, ask)
    assert result.exit_code == 0, result.output
    record = RunRecord.model_validate_json(path.read_text())
    played = replay(record).invoke({"messages": [("user", record.question)]}, output_keys=["transcript"])
    assert played["transcript"] == record.segments
    assert RunRecord.model_validate_json(result.stdout) == record
    assert record.report["turns"] >= 1


@pytest.mark.vllm
def test_check_finds_the_pocket_pool_well(pocket: Any) -> None:
    result = run.invoke(cli, ["check", "--router", pocket.base_url], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert result.stdout.count("✓") == 7
