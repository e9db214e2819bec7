"""Keys in every place that a user may put one, and nowhere else afterwards.

Each test puts canaries where keys belong, or where somebody may put one by mistake, lets everything fail that can, and
looks for them in all that is kept or shown: state, checkpoint files, events, logs at DEBUG, exceptions with their
causes, what the command line prints, profiles, benchmark runs and caches.
"""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import LEAVES_CLIENTS, WAYS, answer, invoked, search
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from provider import Provider
from pydantic import ValidationError
from typer.testing import CliRunner

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, RegistryError, create_router
from langgraph_router_r1.cli import cli
from langgraph_router_r1.engines import ChatModelEngine, EngineError, VLLMEngine
from langgraph_router_r1.testing import ScriptedEngine

pytestmark = LEAVES_CLIENTS

KEY = "sk-canary-4f9a1c77e2b0"
PASSWORD = "hunter2-canary-81d3"
CANARIES = (KEY, PASSWORD, base64.b64encode(f"me:{PASSWORD}".encode()).decode())

QUESTION: Any = {"messages": [("user", "?")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}


def assert_clean(**places: Any) -> None:
    """Fail when a canary is in one of these texts; say in which."""
    found = [place for place, text in places.items() for canary in CANARIES if canary in str(text)]
    assert not found, f"a key is in: {found}"


def shown(error: BaseException) -> str:
    """Everything that may be shown of an exception: itself, its causes and contexts, and the traceback."""
    texts = ["".join(traceback.format_exception(error))]
    while error is not None:
        texts += [str(error), repr(error), repr(getattr(error, "__dict__", {}))]
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return "\n".join(texts)


def stored_in(folder: Path) -> str:
    """All files below a folder, as text."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file()).decode(errors="replace")


@pytest.fixture(params=[400, 401, 404, 500])
def echo(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that refuses every request and echoes its headers, as a proxy in debug mode does."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply()

        def reply(self) -> None:
            content = json.dumps({"error": {"message": f"bad request: {dict(self.headers)}"}}).encode()
            self.send_response(request.param)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


async def test_a_router_server_that_echoes_headers_gets_no_key_into_anything(
    echo: str, tiny_tokenizer: Path, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    addresses = [(echo, KEY), (echo.replace("://", f"://me:{PASSWORD}@"), None)]
    registry = ModelRegistry([ModelDescriptor(name="m", model="openai:x", price=1.0, base_url=echo)])
    for number, (address, key) in enumerate(addresses):
        for way in WAYS:
            engine = VLLMEngine(address, "router", tokenizer=tiny_tokenizer, api_key=key)
            file = tmp_path / f"{number}-{way}.sqlite"
            async with AsyncSqliteSaver.from_conn_string(str(file)) as saver:
                with SqliteSaver.from_conn_string(str(file)) as blocking:
                    mine: Any = saver if way == "ainvoke" else blocking
                    router = create_router(engine, registry, checkpointer=mine)
                    with pytest.raises(EngineError) as caught:
                        await invoked(router, way, QUESTION, THREAD)
            await engine.aclose()
            engine.close()
            assert_clean(error=shown(caught.value), engine=repr(engine), checkpoint=stored_in(tmp_path))
    assert_clean(logs=logs.text)


async def test_providers_that_echo_headers_get_no_key_into_anything(
    echo: str, tmp_path: Path, logs: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    given: Any = {"model": "gpt-x", "base_url": echo, "max_retries": 0}
    registry = ModelRegistry(
        [
            ModelDescriptor(
                name="a", model="openai:x", price=1.0, base_url=echo, api_key_env="CANARY_KEY", max_retries=0
            ),
            ModelDescriptor(name="b", model=ChatOpenAI(api_key=KEY, **given), price=1.0),
            ModelDescriptor(name="c", model=ChatOpenAI(**given).bind(user="me"), price=1.0),
        ]
    )
    for way in WAYS:
        file = tmp_path / f"{way}.sqlite"
        async with AsyncSqliteSaver.from_conn_string(str(file)) as saver:
            with SqliteSaver.from_conn_string(str(file)) as blocking:
                mine: Any = saver if way == "ainvoke" else blocking
                engine = ScriptedEngine([search("a: ?", "b: ?", "c: ?"), answer("x")])
                router = create_router(engine, registry, checkpointer=mine)
                stream: Any = router.stream if way == "invoke" else router.astream
                modes: Any = ["values", "updates", "custom", "debug", "messages"]
                events = stream(QUESTION, THREAD, stream_mode=modes)
                seen = [event async for event in events] if way == "ainvoke" else list(events)
                state = await router.aget_state(THREAD) if way == "ainvoke" else router.get_state(THREAD)
        routed_calls = state.values["routing"]["calls"]
        assert [routed["status"] for routed in routed_calls] == ["error"] * 3
        assert_clean(
            events=seen, state=state, checkpoint=stored_in(tmp_path), registry=f"{registry!r}{list(registry)!r}"
        )
    assert_clean(logs=logs.text)


def test_a_chat_model_that_routes_and_fails_shows_no_key(echo: str, logs: pytest.LogCaptureFixture) -> None:
    model = ChatOpenAI(model="gpt-x", base_url=echo, api_key=KEY, max_retries=0)  # type: ignore[arg-type]
    registry = ModelRegistry([ModelDescriptor(name="m", model="openai:x", price=1.0, base_url=echo)])
    engine = ChatModelEngine(model)
    with pytest.raises(EngineError) as caught:
        create_router(engine, registry, router_price=1.0).invoke(QUESTION)
    assert_clean(error=str(caught.value), traceback="".join(traceback.format_exception(caught.value)))
    assert_clean(engine=repr(engine), logs=logs.text)


@pytest.mark.parametrize(
    "fields",
    [
        {"price": KEY},
        {"price": {"prompt": KEY, "completion": 1}},
        {"price": {KEY: 1}},
        {"api_key_env": KEY},
        {"api_key": KEY},
        {"latency_s": KEY},
        {"timeout_s": KEY},
        {"max_retries": KEY},
        {"requests_per_second": KEY},
        {"max_reply_chars": KEY},
        {"context_tokens": KEY},
        {"skills": {"nq": KEY}},
        {"skills": KEY},
        {"tags": 5, "description": [KEY]},
        {"measured": {"date": KEY}},
        {"fallbacks": KEY},
        {"params": {"api_key": KEY}},
        {"params": {"max_tokens": KEY}},
        {"params": {"default_headers": {"X-Auth": KEY}}},
        {"params": {"extra_headers": {"Authorization": f"Bearer {KEY}"}}},
        {"params": {"default_query": {"key": KEY}}},
        {"params": KEY},
        {"base_url": f"http://me:{PASSWORD}@127.0.0.1/v1"},
        {"base_url": f"http://127.0.0.1/v1?key={KEY}"},
        {"base_url": f"http://127.0.0.1/v1#{KEY}"},
        {"model": {"key": KEY}},
        {"model": [KEY]},
    ],
)
def test_a_key_in_the_wrong_field_of_a_model_is_refused_and_not_shown(fields: dict[str, Any], tmp_path: Path) -> None:
    whole = {"model": "openai:x", "price": 1.0, **fields}
    with pytest.raises((ValidationError, ValueError, TypeError)) as caught:
        ModelDescriptor(name="m", **whole)
    assert_clean(descriptor=str(caught.value), representation=repr(caught.value))
    with pytest.raises(RegistryError) as refused:
        ModelRegistry.from_dict({"models": {"m": whole}})
    assert_clean(registry=shown(refused.value))
    import tomlkit

    file = tmp_path / "models.toml"
    file.write_text(tomlkit.dumps({"models": {"m": whole}}))
    printed = CliRunner().invoke(cli, ["models", "--registry", str(file)])
    assert printed.exit_code == 1
    assert_clean(stdout=printed.stdout, stderr=printed.stderr)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("models.toml", f'[models.m]\nmodel = "openai:x"\nprice = 1\napi_key = "{KEY}\n'),
        ("models.toml", f"[models.m]\nprice = {KEY}\n"),
        ("models.yaml", f"models:\n  m:\n    model: openai:x\n    price: 1\n    api_key: '{KEY}\n"),
        ("models.yaml", f"models:\n  m: {{model: openai:x, price: 1, api_key: {KEY}\n"),
        ("models.yaml", f"models:\n  m:\n    price: &a {KEY}\n    description: *b\n"),
        ("models.yaml", f"models:\n  m:\n    price: !!python/object:{KEY} 1\n"),
        ("models.yaml", f"models:\n  m:\n    {KEY}: 1\n    {KEY}: 2\n"),
    ],
)
def test_a_registry_file_that_can_not_be_parsed_is_not_shown(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RegistryError) as caught:
        ModelRegistry.from_file(tmp_path / name)
    assert_clean(error=shown(caught.value))


def test_what_the_command_line_prints_of_failing_models_and_routers_shows_no_key(
    echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    file = tmp_path / "models.toml"
    file.write_text(
        f'[models.m]\nmodel = "openai:x"\nbase_url = "{echo}"\napi_key_env = "CANARY_KEY"\nprice = 1\nmax_retries = 0\n'
    )
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"id": "1", "question": "?", "golden_answers": ["x"], "dataset": "mine"}) + "\n")
    with_router = ["--registry", str(file), "--router", echo.replace("://", f"://me:{PASSWORD}@")]
    chat = ["--registry", str(file), "--router", "openai:gpt-x", "--router-price", "1"]
    for arguments in (
        ["ask", "?", *with_router, "--json"],
        ["ask", "?", *chat, "--json"],
        ["check", *with_router],
        ["models", "--registry", str(file)],
        ["profile", str(file), "--tasks", str(tasks), "--split", "train"],
        ["profile", str(file), "--tasks", str(tasks), "--split", "test"],
    ):
        printed = CliRunner().invoke(cli, arguments)
        assert_clean(stdout=printed.stdout, stderr=printed.stderr, exception=repr(printed.exception))
    assert_clean(files=stored_in(tmp_path))


def test_the_files_of_a_benchmark_hold_no_key(echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", KEY)
    with Provider(reply=lambda _: "x") as provider:
        (tmp_path / "models.toml").write_text(
            "".join(
                f'[models.{name}]\nmodel = "openai:x"\nbase_url = "{url}"\napi_key_env = "CANARY_KEY"\n'
                "price = 1\nmax_retries = 0\n"
                for name, url in (("broken", echo), ("well", provider.base_url))
            )
        )
        (tmp_path / "tasks.jsonl").write_text(
            json.dumps({"id": "1", "question": "?", "golden_answers": ["x"], "dataset": "mine"}) + "\n"
        )
        (tmp_path / "mine.toml").write_text(
            'title = "Mine"\ntasks = ["tasks.jsonl"]\nsplit = "all"\nmetrics = ["em"]\n'
            'rows = [{ router = "models" }]\n[pool]\nregistry = "models.toml"\n'
        )
        printed = CliRunner().invoke(cli, ["bench", str(tmp_path / "mine.toml"), "--output", str(tmp_path / "runs")])
        assert printed.exit_code == 0, printed.output
        assert len(provider.requests) == 1
        assert provider.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert {path.name for path in (tmp_path / "runs").iterdir()} >= {"runs.jsonl", "calls.sqlite"}
    assert_clean(stdout=printed.stdout, stderr=printed.stderr, files=stored_in(tmp_path))
