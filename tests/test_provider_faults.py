"""Broken providers on loopback: each run ends with the router's answer, and the account says what came of the call.

Each row of `FAULTS` is a kind of broken OpenAI-compatible server: its name, what it does to a connection, and what the
routed says: its reply, or its reason. Each kind is run synchronously and asynchronously.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from conftest import LEAVES_CLIENTS, answer, search
from loopback import (
    Connection,
    Serve,
    closes_at_once,
    drips,
    floods,
    hangs,
    http,
    never_accepts,
    resets_at_once,
    sends,
    serving,
)

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.testing import ScriptedEngine

pytestmark = LEAVES_CLIENTS

KEY = "sk-canary-0123456789abcdef"
TIMEOUT_S = 0.5
"""The model's time limit against servers that would take longer."""
PATIENT_S = 20.0
"""Its limit against all others, so that a busy machine does not turn their fault into a timeout."""
GRACE_S = 1.0
"""What a run may take beyond the model's time limit."""

LIMA = "reply: Lima"
EMPTY = "m gave an empty reply"
LATE = f"m gave no reply within {TIMEOUT_S:g} s"
UNREACHED = "m can't be reached"


EITHER = "either"
"""What the account says depends on the client's leniency: a reply, or any reason."""
ANY_REASON = (
    r"m (failed \(\w+\)|can't be reached|had a server error \(5xx\)|gave an empty reply|rejected the request \(400\))"
)


class Fault(NamedTuple):
    name: str
    serve: Serve | None
    says: str
    """`reply: ` and the call's response, or a pattern of its reason."""
    timeout_s: float = PATIENT_S


MISSING = object()
JSON = "Content-Type: application/json"


def completion() -> dict[str, Any]:
    message = {"role": "assistant", "content": "Lima"}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-x",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
    }


def body(content: bytes | str, *headers: str, status: int = 200) -> Serve:
    return sends(http(status, content, *(headers or (JSON,))))


def field(path: str, value: Any) -> Serve:
    """Reply as a provider would, but with this value at a path such as `choices.0.message.content`."""
    reply: Any = completion()
    *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = reply
    for key in way:
        inner = inner[key]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return body(json.dumps(reply))


def statuses(says: dict[int, str]) -> list[Fault]:
    error = json.dumps({"error": {"message": f"Incorrect API key: {KEY}", "code": KEY, "param": KEY, "type": KEY}})
    return [Fault(f"status {status}", body(error, status=status), reason) for status, reason in says.items()]


def echoes_headers(connection: Connection) -> None:
    """Repeat the key in a header and in the body, as proxies do."""
    connection.request()
    connection.send(http(502, f"<pre>Authorization: Bearer {KEY}</pre>", f"X-Echo: {KEY}", "Content-Type: text/html"))


def redirects_to_itself(connection: Connection) -> None:
    connection.request()
    connection.send(http(307, b"", f"Location: {connection.path}"))


GOOD = json.dumps(completion())
FAULTS = [
    # The connection
    Fault("refuses connections", None, UNREACHED),
    Fault("never accepts", never_accepts, LATE, TIMEOUT_S),
    Fault("closes at once", closes_at_once, UNREACHED),
    Fault("resets at once", resets_at_once, UNREACHED),
    Fault("hangs", hangs, LATE, TIMEOUT_S),
    Fault("reads and closes", sends(), UNREACHED),
    Fault("reads and resets", sends(then=resets_at_once), UNREACHED),
    Fault("reads and hangs", sends(then=hangs), LATE, TIMEOUT_S),
    Fault("hangs in the headers", sends(b"HTTP/1.1 200 OK\r\nX: ", then=hangs), LATE, TIMEOUT_S),
    Fault("hangs in the body", sends(http(200, GOOD[:50], JSON, length=len(GOOD)), then=hangs), LATE, TIMEOUT_S),
    Fault("drips headers", drips(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), LATE, TIMEOUT_S),
    Fault("drips blanks", drips(http(200, b"", JSON, length=10**6), b" "), LATE, TIMEOUT_S),
    Fault("drips a body", drips(http(200, b'"', JSON, length=10**6), b"x"), LATE, TIMEOUT_S),
    Fault("floods headers", floods(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000), ANY_REASON),
    # HTTP
    Fault("speaks no HTTP", sends(b"220 mail.example ESMTP\r\n"), UNREACHED),
    Fault("random bytes", sends(bytes(range(256))), UNREACHED),
    Fault("cut in the headers", sends(b"HTTP/1.1 200 OK\r\nContent-"), UNREACHED),
    Fault("cut in the body", sends(http(200, GOOD[:50], JSON, length=len(GOOD))), ANY_REASON),
    Fault("too long a body", sends(http(200, GOOD + "trailing", JSON, length=len(GOOD))), LIMA),
    Fault("negative length", sends(http(200, GOOD, JSON, length=-1)), ANY_REASON),
    Fault("length of words", sends(http(200, GOOD, JSON, length="many")), ANY_REASON),
    Fault("no length", sends(f"HTTP/1.1 200 OK\r\n{JSON}\r\n\r\n{GOOD}".encode()), LIMA),
    Fault("broken chunks", body("zz\r\n" + GOOD, JSON, "Transfer-Encoding: chunked"), ANY_REASON),
    Fault("no such encoding", body(GOOD, JSON, "Content-Encoding: nonsense"), LIMA),
    Fault("not gzip", body(GOOD, JSON, "Content-Encoding: gzip"), ANY_REASON),
    Fault("cut gzip", body(gzip.compress(GOOD.encode())[:40], JSON, "Content-Encoding: gzip"), ANY_REASON),
    Fault("gzip", body(gzip.compress(GOOD.encode()), JSON, "Content-Encoding: gzip"), LIMA),
    Fault("redirects to itself", redirects_to_itself, ANY_REASON),
    Fault("redirects to nowhere", body("", "Location: http://127.0.0.1:1/", status=307), ANY_REASON),
    Fault("repeats the key", echoes_headers, r"m had a server error \(5xx\)"),
    Fault("early hints", sends(b"HTTP/1.1 103 Early Hints\r\n\r\n" + http(200, GOOD, JSON)), LIMA),
    # Statuses
    *statuses(
        {
            400: r"m rejected the request \(400\)",
            401: r"m refused its key \(401\)",
            403: r"m does not permit the request \(403\)",
            404: r"m is not there \(404\)",
            408: ANY_REASON,
            409: ANY_REASON,
            418: ANY_REASON,
            422: ANY_REASON,
            429: r"m is rate limited \(429\)",
            451: ANY_REASON,
            500: r"m had a server error \(5xx\)",
            502: r"m had a server error \(5xx\)",
            503: r"m had a server error \(5xx\)",
            504: r"m had a server error \(5xx\)",
            529: r"m had a server error \(5xx\)",
            599: r"m had a server error \(5xx\)",
        }
    ),
    Fault("retry in an hour", body("{}", "Retry-After: 3600", status=429), r"m is rate limited \(429\)"),
    Fault("no content", body("", status=204), ANY_REASON),
    # Bodies that are no completion
    Fault("empty body", body(""), ANY_REASON),
    Fault("HTML", body("<html>Log in</html>", "Content-Type: text/html"), ANY_REASON),
    Fault("text", body("Lima", "Content-Type: text/plain"), ANY_REASON),
    Fault("no JSON", body("{"), ANY_REASON),
    Fault("cut JSON", body(GOOD[:-1]), ANY_REASON),
    Fault("not UTF-8", body(b'{"choices": "\xff\xfe"}'), ANY_REASON),
    Fault("deep JSON", body("[" * 200_000), ANY_REASON),
    Fault("null", body("null"), ANY_REASON),
    Fault("a number", body("1"), ANY_REASON),
    Fault("a string", body('"Lima"'), ANY_REASON),
    Fault("a list", body("[]"), ANY_REASON),
    Fault("an empty object", body("{}"), ANY_REASON),
    Fault("an error with status 200", body(json.dumps({"error": {"message": f"bad {KEY}"}})), ANY_REASON),
    Fault("events instead of JSON", body(f"data: {GOOD}\n\n", "Content-Type: text/event-stream"), ANY_REASON),
    # Completions that are wrong
    Fault("no choices", field("choices", MISSING), ANY_REASON),
    Fault("choices: null", field("choices", None), ANY_REASON),
    Fault("choices: empty", field("choices", []), ANY_REASON),
    Fault("choices: a string", field("choices", "Lima"), ANY_REASON),
    Fault("choices: numbers", field("choices", [1]), ANY_REASON),
    Fault("choice: null", field("choices.0", None), ANY_REASON),
    Fault("no message", field("choices.0.message", MISSING), ANY_REASON),
    Fault("message: null", field("choices.0.message", None), ANY_REASON),
    Fault("message: a string", field("choices.0.message", "Lima"), ANY_REASON),
    Fault("no role", field("choices.0.message.role", MISSING), EITHER),
    Fault("unknown role", field("choices.0.message.role", "oracle"), EITHER),
    Fault("role: a number", field("choices.0.message.role", 7), EITHER),
    Fault("no content", field("choices.0.message.content", MISSING), EMPTY),
    Fault("content: null", field("choices.0.message.content", None), EMPTY),
    Fault("content: blank", field("choices.0.message.content", " \n "), EMPTY),
    Fault("content: a number", field("choices.0.message.content", 7), EITHER),
    Fault("content: an object", field("choices.0.message.content", {"text": "Lima"}), EITHER),
    Fault("content: blocks", field("choices.0.message.content", [{"type": "text", "text": "Lima"}]), EITHER),
    Fault("content: unknown blocks", field("choices.0.message.content", [{"type": "x"}, 7, None]), EITHER),
    Fault("content: half an emoji", field("choices.0.message.content", "Lima \ud83d"), "reply: Lima ?"),
    Fault("content: a null character", field("choices.0.message.content", "Li\0ma"), "reply: Li\ufffdma"),
    Fault("content: a thought", field("choices.0.message.content", "<think>x"), EMPTY),
    Fault("tool calls", field("choices.0.message.tool_calls", [{"id": 1, "function": None}]), EITHER),
    Fault("tool calls: a number", field("choices.0.message.tool_calls", 7), EITHER),
    Fault("refusal: an object", field("choices.0.message.refusal", {"x": 1}), EITHER),
    Fault("finish_reason: a number", field("choices.0.finish_reason", 7), EITHER),
    Fault("finish_reason: content_filter", field("choices.0.finish_reason", "content_filter"), LIMA),
    Fault("usage: null", field("usage", None), LIMA),
    Fault("usage: a string", field("usage", "much"), EITHER),
    Fault("usage: a list", field("usage", [1]), EITHER),
    Fault("usage: empty", field("usage", {}), EITHER),
    Fault("usage: negative", field("usage.completion_tokens", -5), LIMA),
    Fault("usage: text", field("usage.prompt_tokens", "ten"), EITHER),
    Fault("usage: no whole number", field("usage.prompt_tokens", 1.5), EITHER),
    Fault("usage: NaN", body(GOOD.replace('"prompt_tokens": 10', '"prompt_tokens": NaN')), EITHER),
    Fault("usage: no end", body(GOOD.replace('"prompt_tokens": 10', '"prompt_tokens": 1e999')), EITHER),
    Fault("usage: 400 digits", body(GOOD.replace(": 10,", f": {'9' * 400},")), EITHER),
    Fault("usage: 5,000 digits", body(GOOD.replace(": 10,", f": {'9' * 5000},")), ANY_REASON),
    Fault("usage: details of numbers", field("usage.prompt_tokens_details", [1]), EITHER),
    Fault("usage: cached text", field("usage.prompt_tokens_details", {"cached_tokens": "x"}), EITHER),
    Fault("model: null", field("model", None), EITHER),
    Fault("id: an object", field("id", {"x": 1}), EITHER),
]


@pytest.fixture(scope="module", autouse=True)
def built_before() -> None:
    """Import the provider's package once, so that no run is timed with it."""
    import langchain_openai  # noqa: F401


def router_over(url: str, timeout_s: float) -> Any:
    """A scripted router whose only model is served at this address."""
    model = ModelDescriptor(
        name="m",
        model="openai:gpt-x",
        price=1.0,
        base_url=url,
        api_key_env="CANARY_KEY",
        timeout_s=timeout_s,
        max_retries=0,
    )

    def write(transcript: Sequence[Any]) -> str:
        return search("m: Capital of Peru?") if len(transcript) == 1 else answer("the end")

    return create_router(ScriptedEngine(write), ModelRegistry([model]))


QUESTION: Any = {"messages": [("user", "Which?")]}
OUTPUTS = ["answer", "routing", "calls", "transcript", "messages"]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
async def test_a_broken_provider_is_data_in_the_call_and_the_run_ends_in_time(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CANARY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    started = time.monotonic()

    def serve(connection: Connection) -> None:
        nonlocal started
        if not connected:  # to build the first client takes long on a busy machine, and no model's time
            started = time.monotonic()
        connected.append(connection)
        assert fault.serve is not None
        fault.serve(connection)

    connected: list[Connection] = []
    with serving(fault.serve if fault.serve in {None, never_accepts} else serve) as url:
        router = router_over(url, fault.timeout_s)
        results = await asyncio.gather(
            asyncio.to_thread(router.invoke, QUESTION, output_keys=OUTPUTS),
            router.ainvoke(QUESTION, output_keys=OUTPUTS),
        )
    assert time.monotonic() - started < fault.timeout_s + GRACE_S
    for result in results:
        (routed,) = result["calls"]
        assert (result["answer"], result["routing"]["stop_reason"]) == ("the end", "answered")
        assert 0 <= routed["cost_usd"] == pytest.approx(result["routing"]["cost_usd"])
        if routed["status"] == "ok":
            assert fault.says in {EITHER, f"reply: {routed['response']}"}
        else:
            assert re.fullmatch(ANY_REASON if fault.says == EITHER else fault.says, routed["reason"])
    # HTTP clients log the headers that a server sent, even where it repeats the key.
    logs = [record.getMessage() for record in caplog.records if not record.name.startswith("httpcore")]
    assert KEY not in f"{results}{logs}"


def test_there_are_at_least_fifty_kinds_each_with_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) >= 50
