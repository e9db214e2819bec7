"""The OpenAI-compatible server: OpenAI's own client and LangChain's, against a real server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import LEAVES_CLIENTS, answer, pool, search
from langchain_core.messages import AIMessage
from pydantic import BaseModel, Field

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("openai", reason="the [openai] extra is not installed")

import openai
from langchain_openai import ChatOpenAI
from router_server import Served, serving

from langgraph_router_r1 import ModelRegistry
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

pytestmark = LEAVES_CLIENTS

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell how warm it is in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL: Any = {"name": "weather", "args": {"city": "Lima"}, "id": "call_1", "type": "tool_call"}
FORM_CALL: Any = {"name": "Capital", "args": {"city": "Lima"}, "id": "call_2", "type": "tool_call"}


class Capital(BaseModel):
    city: str


def write(transcript: Any) -> str:
    """Ask `small` once, then answer with what it said."""
    replied = [segment["text"] for segment in transcript if segment["kind"] == "observation"]
    if not replied:
        return search("small: Capital of Peru?")
    return answer("Lima")


def models() -> Any:
    return pool(small="It is Lima.", tools=ScriptedChatModel([AIMessage("", tool_calls=[CALL])]))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(ScriptedEngine(write), models(), tmp_path / "runs.sqlite") as server:
        yield server


def client(server: Served, **options: Any) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **options)


ASKED: Any = [{"role": "user", "content": "Capital of Peru?"}]


def test_chat_gives_answer_usage_and_bill(served: Served) -> None:
    reply = client(served).chat.completions.create(model="router-r1", messages=ASKED)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Lima", "stop")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 100
    bill = reply.router_r1
    assert [(call["model"], call["status"]) for call in bill["calls"]] == [("small", "ok")]
    assert bill["cost_usd"] == pytest.approx(13e-6)
    found = httpx.get(f"{served.url}/v1/runs/{bill['run_id']}").json()
    assert (found["status"], found["question"], found["cost_usd"]) == ("ended", "Capital of Peru?", bill["cost_usd"])
    assert found["record"]["answer"] == "Lima"


def test_a_stream_is_the_answer_in_pieces_with_usage_and_bill_at_the_end(served: Served) -> None:
    stream = client(served).chat.completions.create(
        model="router-r1@0.6", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Lima"
    assert chunks[-1].usage.total_tokens > 100
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-2].router_r1["cost_usd"] == pytest.approx(13e-6)
    record = httpx.get(f"{served.url}/v1/runs/{chunks[0].router_r1['run_id']}").json()["record"]
    assert record["limits"]["cost_weight"] == 0.6


def test_thoughts_calls_and_replies_are_reasoning_if_asked_for(served: Served) -> None:
    asked = {"model": "router-r1+trace", "messages": ASKED}
    whole = client(served).chat.completions.create(**asked).choices[0].message
    for part in ("I have to ask.", "→ small: Capital of Peru?", "← small ($0.000013, ", "It is Lima."):
        assert part in whole.reasoning_content
    chunks = client(served).chat.completions.create(**{**asked, "stream": True})
    deltas = [chunk.choices[0].delta.model_extra.get("reasoning_content", "") for chunk in chunks]
    assert "→ small: Capital of Peru?" in "".join(deltas)
    plain = client(served).chat.completions.create(model="router-r1", messages=ASKED).choices[0].message
    assert "reasoning_content" not in plain.model_extra


def test_events_are_in_a_stream_if_asked_for(served: Served) -> None:
    chunks = client(served).chat.completions.create(
        model="router-r1", messages=ASKED, stream=True, extra_body={"router_r1": {"events": True}}
    )
    events = [chunk.router_r1["event"]["type"] for chunk in chunks if not chunk.choices]
    assert [event for event in events if "delta" not in event] == [
        f"router_r1.{kind}" for kind in ("think", "route", "info", "think", "done")
    ]


def test_a_tool_is_called_by_the_model_that_the_router_chose_and_its_result_is_read(tmp_path: Path) -> None:
    engine = ScriptedEngine([search("tools: How warm is Lima?"), answer("21 degrees")])
    with serving(engine, models(), tmp_path / "runs.sqlite") as server:
        messages = [{"role": "user", "content": "How warm is it in Lima?"}]
        asked: Any = {"model": "router-r1", "tools": [WEATHER]}
        [choice] = client(server).chat.completions.create(messages=messages, **asked).choices
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Lima"})
        result = {"role": "tool", "tool_call_id": call.id, "content": "It has 21."}
        messages += [choice.message.model_dump(exclude_none=True), result]
        reply = client(server).chat.completions.create(messages=messages, **asked)
        assert reply.choices[0].message.content == "21 degrees"
        assert 'Result of the tool weather({"city": "Lima"}): It has 21.' in bytes(engine.prompts[-1]).decode()


def test_tool_calls_are_streamed(tmp_path: Path) -> None:
    with serving(ScriptedEngine([search("tools: How warm?")]), models(), tmp_path / "runs.sqlite") as server:
        chunks = client(server).chat.completions.create(model="router-r1", messages=ASKED, tools=[WEATHER], stream=True)
        deltas = [chunk.choices[0].delta for chunk in chunks]
    [call] = [call for delta in deltas for call in delta.tool_calls or []]
    assert (call.index, call.function.name, call.function.arguments) == (0, "weather", '{"city": "Lima"}')


def test_structured_output_is_json_in_the_form_that_was_asked_for(tmp_path: Path) -> None:
    registry = pool(small=ScriptedChatModel(["It is Lima.", AIMessage("", tool_calls=[FORM_CALL])]))
    with serving(ScriptedEngine(write), registry, tmp_path / "runs.sqlite") as server:
        reply = client(server).chat.completions.parse(model="router-r1", messages=ASKED, response_format=Capital)
        assert reply.choices[0].message.parsed == Capital(city="Lima")
        chunks = client(server).chat.completions.create(
            model="router-r1",
            messages=ASKED,
            stream=True,
            response_format={"type": "json_schema", "json_schema": {"name": "Capital", "schema": {"type": "object"}}},
        )
        assert json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == {"city": "Lima"}


def test_a_model_of_the_pool_is_asked_directly_through_the_same_account(tmp_path: Path) -> None:
    small = ScriptedChatModel(["It is Lima."])
    with serving(ScriptedEngine(write), pool(small=small), tmp_path / "runs.sqlite") as server:
        messages = [{"role": "system", "content": "Be kind."}, *ASKED, {"role": "assistant", "content": "Hm."}, *ASKED]
        reply = client(server).chat.completions.create(model="small", messages=messages)
        assert reply.choices[0].message.content == "It is Lima."
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10, 3)
        assert reply.router_r1["cost_usd"] == pytest.approx(13e-6)
        assert [message.text for message in small.calls[0]] == [
            "Be kind.",
            "Capital of Peru?",
            "Hm.",
            "Capital of Peru?",
        ]
        chunks = client(server).chat.completions.create(model="small", messages=ASKED, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "It is Lima."


class NotesLengths(ScriptedChatModel):
    """Keeps how long each reply might have been."""

    lengths: list[Any] = Field(default_factory=list)

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        self.lengths.append(kwargs.get("max_tokens"))
        return await super()._agenerate(*args, **kwargs)


def test_a_client_says_how_long_the_reply_of_a_model_may_be_that_it_asks_directly(tmp_path: Path) -> None:
    small = NotesLengths(["It is Lima."])
    with serving(ScriptedEngine(write), pool(small=small), tmp_path / "runs.sqlite") as server:
        asks = client(server).chat.completions.create
        for length in ({}, {"max_tokens": 3000}, {"max_completion_tokens": 7}, {"max_tokens": 512}):
            asks(model="small", messages=ASKED, **length)
        client(server).responses.create(model="small", input="Capital of Peru?", max_output_tokens=11)
        with pytest.raises(openai.RateLimitError):  # 30,000 tokens may cost 0.03 dollars
            asks(model="small", messages=ASKED, max_tokens=30_000, extra_body={"router_r1": {"budget_usd": 0.01}})
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            asks(model="small", messages=ASKED, max_tokens=0)
        assert len(server.api.runs.targets._clients._built) == 1, "lengths share one client, and its connections"
    assert small.lengths == [512, 3000, 7, 512, 11]


def test_however_a_client_asks_a_model_directly_it_has_one_rate(tmp_path: Path) -> None:
    [model] = pool(small="It is Lima.")
    registry = ModelRegistry([model.model_copy(update={"requests_per_second": 2.0})])
    with serving(ScriptedEngine(write), registry, tmp_path / "runs.sqlite") as server:
        lengths = [{}, {"max_tokens": 100}, {"max_tokens": 101}, {"max_tokens": 102}]
        asks = client(server).chat.completions.create
        started = time.monotonic()
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda length: asks(model="small", messages=ASKED, **length), lengths))
        assert time.monotonic() - started > 1.4


def test_arguments_of_a_tool_call_that_can_not_be_stored_are_refused_or_end_the_call_and_its_cost_is_kept(
    tmp_path: Path,
) -> None:
    big = AIMessage("", tool_calls=[{**CALL, "args": {"city": 10**20}}])
    with serving(ScriptedEngine(write), pool(small=ScriptedChatModel([big] * 9)), tmp_path / "runs.sqlite") as server:
        with pytest.raises(openai.InternalServerError, match="more than 64 bits"):
            client(server).chat.completions.create(model="small", messages=ASKED, tools=[WEATHER])
        [run] = httpx.get(f"{server.url}/v1/runs").json()["data"]
        assert (run["error"], run["cost_usd"] > 0) == ("model_failed", True)
        said = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": NaN}'}}
        history = [*ASKED, {"role": "assistant", "tool_calls": [said]}, *ASKED]
        enormous = {**WEATHER, "function": {**WEATHER["function"], "parameters": {"maximum": 10**20}}}
        for body in ({"messages": history}, {"messages": ASKED, "tools": [enormous]}):
            with pytest.raises(openai.BadRequestError, match="can't be stored"):
                client(server).chat.completions.create(model="small", **body)
        assert len(httpx.get(f"{server.url}/v1/runs").json()["data"]) == 1


def test_a_model_that_was_asked_directly_and_did_not_reply_is_a_run_that_failed(tmp_path: Path) -> None:
    broken = ScriptedChatModel([ValueError("no")])
    with serving(ScriptedEngine(write), pool(small=broken), tmp_path / "runs.sqlite") as server:
        with pytest.raises(openai.InternalServerError, match="small failed"):
            client(server).chat.completions.create(model="small", messages=ASKED)
        [run] = httpx.get(f"{server.url}/v1/runs").json()["data"]
        assert (run["status"], run["error"]) == ("failed", "model_failed")
        assert 'router_r1_runs_total{status="failed",target="small"} 1.0' in httpx.get(f"{server.url}/metrics").text


def test_half_an_emoji_in_a_question_is_refused_before_anything_is_paid(served: Served) -> None:
    # OpenAI's client does not send it; clients that escape all that is not ASCII do.
    body = json.dumps({"model": "router-r1", "messages": [{"role": "user", "content": "Who \ud83d?"}]})
    headers = {"content-type": "application/json"}
    reply = httpx.post(f"{served.url}/v1/chat/completions", content=body, headers=headers)
    assert reply.status_code == 400
    assert "hex escape" in reply.json()["error"]["message"]
    assert httpx.get(f"{served.url}/v1/runs").json()["data"] == []


def test_the_models_are_the_presets_and_the_pool(served: Served) -> None:
    names = [model.id for model in client(served).models.list()]
    assert names == ["router-r1", "router-r1@0.3", "router-r1@0.6", "router-r1@0.9", "small", "tools"]
    assert client(served).models.retrieve("small").router_r1["price"] == {"prompt": 1.0, "completion": 1.0}
    assert client(served).models.retrieve("router-r1@0.25").id == "router-r1@0.25"


def test_langchains_client_asks_and_streams_and_binds(tmp_path: Path) -> None:
    turns = [search("small: a?"), answer("Lima"), search("small: a?"), answer("Lima"), search("tools: a?")]
    with serving(ScriptedEngine(turns), models(), tmp_path / "runs.sqlite") as server:
        model = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="router-r1", max_retries=0)
        assert model.invoke("Capital of Peru?").text == "Lima"
        assert "".join(chunk.text for chunk in model.stream("Capital of Peru?")) == "Lima"
        assert model.bind_tools([WEATHER]).invoke("How warm?").tool_calls == [CALL]


def test_responses_are_whole_streamed_with_tools_and_in_a_form(tmp_path: Path) -> None:
    form = ScriptedChatModel(["It is Lima.", AIMessage("", tool_calls=[FORM_CALL])])
    asks = [search("small: a?"), answer("Lima")]
    engine = ScriptedEngine(
        [*asks, *asks, search("tools: a?"), answer("21"), search("tools: a?"), search("form: a?"), answer("Lima")]
    )
    registry = pool(small="It is Lima.", tools=ScriptedChatModel([AIMessage("", tool_calls=[CALL])]), form=form)
    tool = {"type": "function", **WEATHER["function"], "strict": False}
    with serving(engine, registry, tmp_path / "runs.sqlite") as server:
        responses = client(server).responses
        whole = responses.create(model="router-r1", input="Capital of Peru?", instructions="Be kind.")
        assert (whole.output_text, whole.status) == ("Lima", "completed")
        assert whole.usage.total_tokens > 100
        assert whole.router_r1["cost_usd"] == pytest.approx(13e-6)

        with responses.stream(model="router-r1+trace", input=ASKED) as stream:
            kinds = [event.type for event in stream]
            last = stream.get_final_response()
        assert last.output_text == "Lima"
        assert "→ small: a?" in last.output[0].content[0].text
        assert [kind for kind in kinds if not kind.endswith(".delta")] == [
            f"response.{kind}"
            for kind in (
                "created", "in_progress", "output_item.added", "reasoning_text.done", "output_item.done",
                "output_item.added", "content_part.added", "output_text.done", "content_part.done",
                "output_item.done", "completed",
            )
        ]  # fmt: skip

        [called] = responses.create(model="router-r1", input="How warm?", tools=[tool]).output
        assert (called.type, called.name, json.loads(called.arguments)) == (
            "function_call",
            "weather",
            {"city": "Lima"},
        )
        result = {"type": "function_call_output", "call_id": called.call_id, "output": "It has 21."}
        asked = [{"role": "user", "content": "How warm?"}, called.model_dump(), result]
        assert responses.create(model="router-r1", input=asked, tools=[tool]).output_text == "21"
        assert "It has 21." in bytes(engine.prompts[-1]).decode()

        with responses.stream(model="router-r1", input="How warm?", tools=[tool]) as stream:
            [streamed] = stream.get_final_response().output
        assert streamed.arguments == called.arguments

        assert responses.parse(model="router-r1", input=ASKED, text_format=Capital).output_parsed == Capital(
            city="Lima"
        )


NODE_MODULES = Path(__file__).parent.parent / "build" / "node_modules"


@pytest.mark.skipif(
    not (NODE_MODULES / "openai").is_dir() or shutil.which("node") is None,
    reason="OpenAI's JavaScript client is not installed: make build/node_modules/openai",
)
def test_openais_javascript_client_makes_ten_calls(tmp_path: Path) -> None:
    form = ScriptedChatModel(["It is Lima.", AIMessage("", tool_calls=[FORM_CALL])])
    registry = pool(small="It is Lima.", tools=ScriptedChatModel([AIMessage("", tool_calls=[CALL])]), form=form)
    with serving(ScriptedEngine(write), registry, tmp_path / "runs.sqlite") as server:
        script = str(Path(__file__).with_name("openai_client.cjs"))
        environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
        ran = subprocess.run(
            ["node", script, f"{server.url}/v1"], capture_output=True, text=True, env=environment, timeout=60
        )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said.pop("tokens") > 100
    assert said == {
        "chat": "Lima",
        "bill": pytest.approx(13e-6),
        "stream": "Lima",
        "tool": {"name": "weather", "arguments": '{"city": "Lima"}'},
        "form": {"city": "Lima"},
        "direct": "It is Lima.",
        "response": "Lima",
        "responseStream": "Lima",
        "responseTool": '{"city": "Lima"}',
        "models": ["router-r1", "router-r1@0.3", "router-r1@0.6", "router-r1@0.9", "small", "tools", "form"],
        "error": [404, "model_not_found"],
    }
