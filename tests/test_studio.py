"""LangGraph Studio's server as `make studio` starts it, driven over HTTP as Studio drives it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import LEAVES_CLIENTS, answer, search
from langgraph.pregel.remote import RemoteGraph
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from loopback import Connection
from loopback import serving as serving_raw
from openai_server import chat_completion, serving
from test_docs import code_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from langgraph_router_r1 import ChatRouterR1, RouterContext

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "studio"
QUESTION: Any = {"messages": [{"role": "user", "content": "How do I get a real router?"}]}
ANSWER = "Set ROUTER_R1_URL to the address of a router."
EVENTS = ["think", "route", "route", "info", "info", "think", "done"]
"""Of a run, besides those of the answer's pieces."""

pytestmark = LEAVES_CLIENTS  # those of a RemoteGraph


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def studio(folder: Path, **environment: str) -> Iterator[str]:
    """Run `make studio` on a copy of the example, so that its threads stay in this folder; yield its address.

    At the end, nothing blocked its event loop, no node failed, and it connected to nothing beyond this machine.
    """
    installed = "build/studio-venv/.installed"
    if not (ROOT / installed).is_file() and "CI" not in os.environ:
        pytest.skip(f"the environment of Studio's server is not installed: make {installed}")
    subprocess.run(["make", installed], cwd=ROOT, check=True)  # up to date before all but loopback is cut off
    app, port, log = folder / "examples" / "studio", free_port(), folder / "log"
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns(".langgraph_api"))
    url, beyond = f"http://127.0.0.1:{port}", []

    def note(connection: Connection) -> None:
        beyond.append(connection)

    with serving_raw(note) as proxy, log.open("wb") as output:
        proxies = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1"}
        process = subprocess.Popen(
            ["make", "studio", f"STUDIO_APP={app}", f"STUDIO_PORT={port}"],
            cwd=ROOT,
            env={**os.environ, **proxies, "LANGSMITH_API_KEY": "unused", "LANGSMITH_TRACING": "true", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(url, process, log)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
    said = log.read_text(encoding="utf-8")
    assert "BlockingError" not in said
    assert "Traceback" not in said
    assert beyond == []


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(f"{url}/ok").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"make studio does not serve {url}: {log.read_text(encoding='utf-8')[-5000:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with studio(tmp_path_factory.mktemp("studio"), ROUTER_R1_URL="") as url:
        yield url


@pytest.fixture
async def client(server: str) -> AsyncIterator[LangGraphClient]:
    async with get_client(url=server) as opened:
        yield opened


async def new_thread(client: LangGraphClient) -> str:
    return (await client.threads.create())["thread_id"]


def test_the_configuration_installs_this_project() -> None:
    config = json.loads((EXAMPLE / "langgraph.json").read_text(encoding="utf-8"))
    assert [(EXAMPLE / path / "pyproject.toml").is_file() for path in config["dependencies"]] == [True]


async def test_both_graphs_have_a_name_and_schemas_to_make_forms_of(client: LangGraphClient) -> None:
    assistants = await client.assistants.search()
    assert {(made["graph_id"], made["name"]) for made in assistants} == {
        ("router_r1", "router_r1"),
        ("router_r1_approval", "router_r1_approval"),
    }
    for made in assistants:
        schemas: Any = await client.assistants.get_schemas(made["assistant_id"])
        assert set(schemas["input_schema"]["properties"]) == {"messages"}
        assert set(schemas["output_schema"]["properties"]) == {"messages", "answer", "routing"}
        assert {"cost_weight", "budget_usd"} < set(schemas["context_schema"]["properties"])
        graph = await client.assistants.get_graph(made["assistant_id"])
        nodes = {node["id"] for node in graph["nodes"]}
        assert ("approve" in nodes) == (made["graph_id"] == "router_r1_approval")
        assert {"think", "route", "answer"} < nodes


async def test_the_answer_streams_token_by_token_with_the_events_and_the_account_is_kept(
    client: LangGraphClient,
) -> None:
    thread, tokens, events = await new_thread(client), [], []
    async for part in client.runs.stream(
        thread, "router_r1", input=QUESTION, context={"cost_weight": 0.9}, stream_mode=["messages-tuple", "custom"]
    ):
        if part.event == "messages":
            tokens.append(part.data[0]["content"])
        elif part.event == "custom":
            events.append(part.data)
    assert len(tokens) > 5
    assert "".join(tokens) == ANSWER
    kinds = [event["type"].removeprefix("router_r1.") for event in events]
    assert [kind for kind in kinds if kind != "answer_delta"] == EVENTS
    values: Any = (await client.threads.get_state(thread))["values"]
    assert values["limits"]["cost_weight"] == 0.9
    assert values["routing"] == events[-1]["routing"]
    assert {name: bill["calls"] for name, bill in values["routing"]["by_model"].items()} == {"guide": 1, "expert": 1}

    again: Any = await client.runs.wait(thread, "router_r1", input=QUESTION)
    assert again["routing"]["thread_cost_usd"] == pytest.approx(2 * values["routing"]["cost_usd"])


async def test_a_client_that_shows_messages_gets_one_message_that_grows_into_the_answer(
    client: LangGraphClient,
) -> None:
    thread = await new_thread(client)
    streamed = client.runs.stream(thread, "router_r1", input=QUESTION, stream_mode="messages")
    shown = [part.data[0] async for part in streamed if part.event == "messages/partial"]
    values: Any = (await client.threads.get_state(thread))["values"]
    assert len(shown) > 5
    assert {message["id"] for message in shown} == {values["messages"][-1]["id"]}
    assert shown[-1]["content"] == values["messages"][-1]["content"] == ANSWER


APPROVE: Any = {"type": "approve"}
REJECT: Any = {"type": "reject", "message": "One is enough."}
EDIT: Any = {"type": "edit", "edited_action": {"name": "ask_model", "args": {"model": "guide"}}}


@pytest.mark.parametrize(
    ("decisions", "calls"),
    [
        ([APPROVE, APPROVE], [("guide", "ok"), ("expert", "ok")]),
        ([REJECT, EDIT], [("guide", "rejected"), ("guide", "ok")]),
    ],
)
async def test_a_run_waits_for_decisions_and_makes_the_calls_that_were_approved(
    client: LangGraphClient, decisions: list[Any], calls: list[tuple[str, str]]
) -> None:
    thread = await new_thread(client)
    streamed = client.runs.stream(thread, "router_r1_approval", input=QUESTION, stream_mode="custom")
    assert [part.data["type"] async for part in streamed if part.event == "custom"] == ["router_r1.think"]
    state: Any = await client.threads.get_state(thread)
    [waiting] = state["interrupts"]
    assert [action["args"]["model"] for action in waiting["value"]["action_requests"]] == ["guide", "expert"]
    assert state["values"]["routing"]["calls"] == []
    result: Any = await client.runs.wait(thread, "router_r1_approval", command={"resume": {"decisions": decisions}})
    assert [(call["model"], call["status"]) for call in result["routing"]["calls"]] == calls
    assert [call["review"]["decision"] for call in result["routing"]["calls"]] == [made["type"] for made in decisions]
    assert result["answer"] == ANSWER


def run(script: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_graph_of_the_server_is_a_node_of_a_graph_elsewhere(server: str) -> None:
    events, said, cost = run(ROOT / "examples" / "08_remote_graph.py", server).splitlines()
    assert [kind for kind in events.split() if kind != "answer_delta"] == EVENTS
    assert said == ANSWER
    assert cost.startswith("$0.0005")


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_chat_model_runs_on_the_graph_of_the_server(server: str, is_async: bool) -> None:
    model = ChatRouterR1(router=RemoteGraph("router_r1", url=server), context=RouterContext(max_turns=0))
    chunks = [chunk async for chunk in model.astream("How?")] if is_async else list(model.stream("How?"))
    whole = await model.ainvoke("How?") if is_async else model.invoke("How?")
    assert len(chunks) > 5
    assert "".join(chunk.text for chunk in chunks) == whole.text == ANSWER
    assert whole.response_metadata["routing"]["turns"] == 0


def test_the_code_in_the_documentation_works(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"url": server}
    exec(code_of("studio.md"), names)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{ANSWER} 0.0005")
    assert names["app"].invoke(QUESTION)["messages"][-1].text == ANSWER


def test_the_picture_in_the_documentation_shows_what_the_server_does(server: str, tmp_path: Path) -> None:
    run(ROOT / "docs" / "studio_picture.py", server, str(tmp_path / "studio.svg"))
    drawn, published = shown(tmp_path / "studio.svg"), shown(ROOT / "docs" / "studio.svg")
    assert drawn == published
    assert any(ANSWER in line for line in drawn)


def shown(picture: Path) -> list[str]:
    """Return the lines of a picture without times, in an order of their own: calls of a turn end in any order."""
    text = html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", "", picture.read_text(encoding="utf-8"), flags=re.DOTALL))
    lines = text.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    return sorted(re.sub(r"\d+\.\d\d s", "", line) for line in lines if line.strip())


# With a router that runs


def byte_tokenizer(directory: Path) -> Tokenizer:
    """Save a tokenizer whose tokens are bytes, as a model directory holds one."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return tokenizer


async def test_a_running_router_is_asked_without_blocking_the_server_and_not_before_the_first_question(
    tmp_path: Path,
) -> None:
    tokenizer = byte_tokenizer(tmp_path)

    def play_pocket(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/models":
            return {"data": [{"id": "router", "root": str(tmp_path)}]}
        if path == "/v1/chat/completions":
            return chat_completion("Lima", 20, 2)
        assert (path, body["model"]) == ("/v1/completions", "router")
        replied = "<information> Lima" in tokenizer.decode(body["prompt"])
        turn = answer("Lima") if replied else search("capitals: What is the capital of Peru?")
        ids = tokenizer.encode(turn).ids
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return {"choices": [{"index": 0, "text": turn, "token_ids": ids, "finish_reason": "stop"}], "usage": usage}

    with serving(play_pocket) as pocket, studio(tmp_path, ROUTER_R1_URL=pocket.base_url) as url:
        async with get_client(url=url) as client:
            assert pocket.requests == []
            thread = await new_thread(client)
            streamed = client.runs.stream(thread, "router_r1", input=QUESTION, stream_mode=["messages-tuple", "custom"])
            tokens = [part.data[0]["content"] async for part in streamed if part.event == "messages"]
            values: Any = (await client.threads.get_state(thread))["values"]
    assert "".join(tokens) == values["answer"] == "Lima"
    assert [(call["model"], call["status"]) for call in values["routing"]["calls"]] == [("capitals", "ok")]
    assert [body["model"] for body in pocket.requests] == ["router", "capitals", "router"]
