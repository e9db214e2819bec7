"""Broken router servers on loopback: a run ends with an answer, a stated reason or an `EngineError`, and in time.

Each row of `FAULTS` is a kind of broken server: its name, what it does to a connection, and how the run ends. Each kind
is run synchronously and asynchronously, without a fallback and with one.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import html
import json
import logging
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
from conftest import pool
from langgraph.checkpoint.memory import InMemorySaver
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

from langgraph_router_r1 import create_router
from langgraph_router_r1.engines import EngineError, VLLMEngine
from langgraph_router_r1.engines.vllm import MAX_REPLY_BYTES

TIMEOUT_S = 0.3
"""The engine's time limit against servers that would take longer."""

PATIENT_S = 20.0
"""Its limit against all others, so that a busy machine does not turn their fault into a timeout."""

GRACE_S = 5.0
"""What a run may take beyond the engine's time limit."""

MAX_TOKENS = 64
TURN = "<think>I know.</think><answer>Lima</answer>"


# What broken servers do


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def good(request: dict[str, Any]) -> dict[str, Any]:
    """What vLLM would reply: one byte of text is one token of the test's tokenizer, which knows 258."""
    ids = [TOKENS[letter] for letter in TURN]
    return {
        "choices": [
            {
                "token_ids": ids,
                "logprobs": {"token_logprobs": [-0.5] * len(ids)},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": len(request["prompt"]),
            "completion_tokens": len(ids),
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


def _byte_tokens() -> dict[str, int]:
    from tokenizers import pre_tokenizers

    return {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {
        " ": sorted(pre_tokenizers.ByteLevel.alphabet()).index("Ġ")
    }


TOKENS = _byte_tokens()


def replies(change: Callable[[dict[str, Any]], Any], *headers: str) -> Serve:
    """Reply as vLLM would, but for a change; what the change returns takes the place of all of it."""

    def serve(connection: Connection) -> None:
        reply = good(connection.request())
        replaced = change(reply)
        connection.send(http(200, json.dumps(reply if replaced is None else replaced), *headers))

    return serve


MISSING = object()


def field(path: str, value: Any) -> Serve:
    """Reply as vLLM would, but with this value at a path such as `usage.prompt_tokens`."""

    def change(reply: Any) -> None:
        *way, last = ["choices", 0, *path.split(".")[1:]] if path.startswith("choice.") else path.split(".")
        for key in way:
            reply = reply[key]
        if value is MISSING:
            del reply[last]
        else:
            reply[last] = value(reply[last]) if callable(value) else value

    return replies(change)


def hints_first(connection: Connection) -> None:
    reply = good(connection.request())
    connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + http(200, json.dumps(reply)))


def text(body: bytes | str) -> Serve:
    """Reply 200 with this text."""
    return sends(http(200, body))


def models(status: int, body: str, then: Serve | None = None) -> Serve:
    """Say of each turn that the model does not exist, and give this as the list of models."""

    def serve(connection: Connection) -> None:
        connection.request()
        if connection.path.endswith("/completions"):
            connection.send(http(404, json.dumps({"error": {"message": "The model `router` does not exist."}})))
        elif then is not None:
            then(connection)
        else:
            connection.send(http(status, body))

    return serve


# The table


class Fault(NamedTuple):
    name: str
    serve: Serve | None
    ends: str
    """Part of the `EngineError`'s message; or how the run ends without one: `ANSWER` or the `stop_reason`."""
    timeout_s: float = PATIENT_S


ANSWER = "answered"
CONTEXT_FULL = "context_full"
NO_REPLY = "gave no whole reply"
LATE = rf"gave no whole reply within {TIMEOUT_S:g} s"
NO_VLLM = "does not answer as vLLM does"


def fewer(values: list[Any]) -> list[Any]:
    return values[1:]


def more(values: list[Any]) -> list[Any]:
    return values + values[:1]


def lower(count: int) -> int:
    return count - 1


def higher(count: int) -> int:
    return count + 1


def wrong(path: str, *values: Any, says: str | None = None) -> list[Fault]:
    """One kind for each value that a field of the reply must not have."""
    in_message = path.replace("choice.", "choices.0.")
    return [
        Fault(
            f"{path} is {'missing' if value is MISSING else getattr(value, '__name__', repr(value)[:40])}",
            field(path, value),
            rf"{NO_VLLM} \(.*{says or in_message}",
        )
        for value in values
    ]


NOT_A_COUNT = (MISSING, None, -1, float("nan"), float("inf"), 1.5, "12", True, 10**400, [], {})

BODIES = (
    *("", "{}", "[]", "null", "true", "5", '"text"', "NaN", "Infinity", "{", "{} {}", "{'choices': []}", "<html>"),
    *("9" * 5000, "[" * 200_000, '{"a":' * 200_000, '{"choices": [{"token_ids": [' + "-1," * 1_000_000 + "0]}]}"),
    *("\ufeff{}", b"\0" * 100, b"\xff\xfe{\0}\0", b'{"choices": "\xff"}', '{"id": "\\ud800"}'),
)
"""Texts that are not the JSON of a completion."""

NOT_A_LOGPROB = (None, float("nan"), float("inf"), -float("inf"), 0.5, "-1", True, -(10**400))

FAULTS = [
    Fault("none", replies(lambda reply: None), ANSWER),
    # The connection
    Fault("refuses connections", None, r"is down \(ConnectError\)"),
    Fault("never accepts", never_accepts, LATE, TIMEOUT_S),
    Fault("closes at once", closes_at_once, NO_REPLY),
    Fault("resets at once", resets_at_once, f"{NO_REPLY}|is down"),
    Fault("closes after the request", sends(), NO_REPLY),
    Fault("resets after the request", sends(then=resets_at_once), NO_REPLY),
    Fault("closes in mid-headers", sends(HEAD), NO_REPLY),
    Fault("resets in mid-headers", sends(HEAD, then=resets_at_once), NO_REPLY),
    Fault("closes in mid-body", sends(http(200, '{"cho', length=900)), NO_REPLY),
    Fault("resets in mid-body", sends(http(200, '{"cho', length=900), then=resets_at_once), NO_REPLY),
    # Time
    Fault("never reads", hangs, LATE, TIMEOUT_S),
    Fault("hangs after the request", sends(then=hangs), LATE, TIMEOUT_S),
    Fault("hangs in mid-headers", sends(HEAD, then=hangs), LATE, TIMEOUT_S),
    Fault("hangs before the body", sends(HEAD + b"Content-Length: 9\r\n\r\n", then=hangs), LATE, TIMEOUT_S),
    Fault("hangs in mid-body", sends(http(200, '{"cho', length=900), then=hangs), LATE, TIMEOUT_S),
    Fault("never says where the body ends", sends(HEAD + b"\r\n{}", then=hangs), LATE, TIMEOUT_S),
    Fault("drips the status line", drips(b"", b"H"), LATE, TIMEOUT_S),
    Fault("drips a header", drips(HEAD + b"X: ", b"x"), LATE, TIMEOUT_S),
    Fault("drips headers", drips(HEAD, b"X: y\r\n"), LATE, TIMEOUT_S),
    Fault("drips a body", drips(HEAD + b"Content-Length: 9999\r\n\r\n", b" "), LATE, TIMEOUT_S),
    Fault("drips chunks", drips(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"), LATE, TIMEOUT_S),
    Fault("drips informational replies", drips(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), LATE, TIMEOUT_S),
    Fault("floods with informational replies", floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), LATE, TIMEOUT_S),
    # HTTP
    Fault("writes no HTTP", sends(b"220 mail.example.org ESMTP\r\n"), NO_REPLY),
    Fault("writes HTTP/0.9", sends(b"<html>hello</html>"), NO_REPLY),
    Fault("writes HTTP/9.9", sends(b"HTTP/9.9 200 OK\r\n\r\n{}"), f"{NO_REPLY}|{NO_VLLM}"),
    Fault("writes bytes", sends(bytes(range(256)) * 8), NO_REPLY),
    Fault("speaks TLS", sends(b"\x15\x03\x01\x00\x02\x02\x46"), NO_REPLY),
    *(Fault(f"status {status}", sends(http(status, "{}")), NO_REPLY) for status in ("99", "1000", "-200", "two")),
    Fault("status 600", sends(http(600, "{}")), "answered 600"),
    Fault("a header without a colon", sends(http(200, "{}", "Nonsense")), NO_REPLY),
    Fault("a header with NUL", sends(http(200, "{}", "X: \0")), NO_REPLY),
    Fault("a header of 1 MB", sends(http(200, "{}", "X: " + "x" * 1_000_000)), NO_REPLY),
    Fault("headers without end", floods(HEAD, b"X: y\r\n" * 1000), NO_REPLY),
    Fault("odd headers around a good reply", replies(lambda _: None, "X: \xe9\xff", "Set-Cookie: =;;\xff"), ANSWER),
    Fault("Content-Length too short", sends(http(200, '{"choices": []}', length=5)), f"{NO_VLLM} .*JSON"),
    *(
        Fault(f"Content-Length {length[:9]}", sends(http(200, "{}", length=length)), NO_REPLY)
        for length in ("-1", "two", "1, 2", "9" * 5000, "")
    ),
    Fault("two Content-Lengths", sends(http(200, "{}", "Content-Length: 2", "Content-Length: 3")), NO_REPLY),
    *(
        Fault(f"chunk size {size[:9]!r}", sends(http(200, size + b"\r\n{}", "Transfer-Encoding: chunked")), NO_REPLY)
        for size in (b"x", b"-2", b"", b"F" * 100, b"2;" + b"x" * 200_000)
    ),
    Fault("chunks without an end", sends(http(200, b"2\r\n{}\r\n", "Transfer-Encoding: chunked")), NO_REPLY),
    Fault("an unknown transfer coding", sends(http(200, "{}", "Transfer-Encoding: gzip, chunked")), NO_REPLY),
    *(
        Fault(f"compressed: {name}", sends(http(200, body, f"Content-Encoding: {coding}")), "compressed reply")
        for name, coding, body in (
            ("gzip", "gzip", gzip.compress(b"{}")),
            ("what is no gzip", "gzip", b"{}"),
            ("a bomb", "gzip", gzip.compress(b"[" * 5_000_000)),
            ("a bomb in a bomb", "deflate, gzip", gzip.compress(zlib.compress(b"[" * 5_000_000))),
            ("an unknown coding", "nonsense", b"{}"),
        )
    ),
    Fault("a body without end", floods(HEAD + b"\r\n", b" " * 65536), f"more than {MAX_REPLY_BYTES:,} bytes"),
    Fault("an early hint, then a good reply", hints_first, ANSWER),
    Fault("switches protocols", sends(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n{}"), "answered 101|" + NO_REPLY),
    Fault("204", sends(b"HTTP/1.1 204 No Content\r\n\r\n"), "answered 204"),
    Fault("205 with a body", sends(http(205, "{}")), "answered 205"),
    Fault("206 with a part", sends(http(206, '{"choices')), "answered 206"),
    Fault("304", sends(b"HTTP/1.1 304 Not Modified\r\n\r\n"), "answered 304"),
    *(
        Fault(
            f"{status} to {place!r}",
            sends(http(status, "", f"Location: {place}")),
            f"answered {status}|{NO_REPLY}",
        )
        for status in (301, 307)
        for place in (
            "/v1/completions",
            "http://127.0.0.1:9/",
            "http://[",
            "\xff",
            "//",
            "http://a:b@c:99999/",
            "x:y",
            "",
        )
    ),
    Fault("302 without a place", sends(http(302)), "answered 302"),
    # Refusals
    *(
        Fault(f"{status}: {body[:25]!r}", sends(http(status, body)), f"answered {status}")
        for status, body in (
            (400, '{"error": {"message": 5}}'),
            (402, b"\xff\xfe\x00"),
            (404, "<html>Not here</html>"),
            (405, '{"detail": "Method Not Allowed"}'),
            (408, ""),
            (409, "null"),
            (413, "[" * 200_000),
            (418, '{"error": {"message": {"message": "no"}}}'),
            (422, '{"error": [[1]]}'),
            (429, "x" * 1_000_000),
            (500, '{"error": null}'),
            (501, "[1, 2]"),
            (502, "\x1b[2J\x00\r\nX: forged"),
            (503, "9" * 5000),
            (504, '"late"'),
            (599, '{"message": "\\ud800"}'),
        )
    ),
    Fault("401", sends(http(401, '{"error": "Unauthorized"}')), r"refused the key \(401\)"),
    Fault("403", sends(http(403, "\xff")), r"refused the key \(403\)"),
    Fault("400: the context is full", sends(http(400, '{"message": "maximum context length"}')), CONTEXT_FULL),
    # A model that is not served, and what is served instead
    Fault("404, and others", models(200, '{"data": [{"id": "a"}, {"id": "b"}]}'), "it serves: 'a', 'b'"),
    Fault("404, and many others", models(200, json.dumps({"data": [{"id": "abc"}] * 10_000})), "it serves: 'abc'"),
    *(
        Fault(f"404, and models are {status} {body[:20]!r}", models(status, body), "does not serve 'router'")
        for status, body in (
            (500, "boom"),
            (302, ""),
            (404, '{"message": "does not exist"}'),
            (200, ""),
            (200, "null"),
            (200, "[" * 200_000),
            (200, '{"data": {}}'),
            (200, '{"data": [1]}'),
            (200, '{"data": [{"id": 5}]}'),
        )
    ),
    Fault("404, and models never come", models(200, "", then=hangs), LATE, TIMEOUT_S),
    Fault("404, and models drip", models(200, "", then=lambda c: c.drip([b"H"] * 9999)), LATE, TIMEOUT_S),
    # JSON
    *(Fault(f"200: {body[:25]!r}", text(body), rf"{NO_VLLM} \(") for body in BODIES),
    Fault("fields that are not known", replies(lambda reply: {**reply, "x": [[{}]], "y": 10**400}), ANSWER),
    Fault("token_ids twice", text('{"choices": [{"token_ids": [1], "token_ids": [2]}]}'), NO_VLLM),
    # Fields
    *wrong("choices", MISSING, None, {}, "x", [], [5], [None], more),
    *wrong("choice.token_ids", MISSING, None, "x", {}, [], 5),
    *wrong("choice.token_ids", [-1], [2**31], [2**40], [10**400], [1.0], ["1"], [True], [None], [[1]], [float("nan")]),
    Fault("a token that is not in the vocabulary", field("choice.token_ids", [258]), "the tokenizer does not know"),
    Fault(
        "more tokens than were asked for",
        field("choice.token_ids", [1] * 24 * MAX_TOKENS),
        f"{24 * MAX_TOKENS} tokens, and at most {MAX_TOKENS} were asked for",
    ),
    *wrong("choice.logprobs", MISSING, None, says="logprobs has 0 values"),
    *wrong("choice.logprobs", [], 5, {}, {"token_logprobs": None}),
    *wrong("choice.logprobs.token_logprobs", [], [-1.0], fewer, more, says="logprobs has"),
    *wrong("choice.logprobs.token_logprobs", *([value] * len(TURN) for value in NOT_A_LOGPROB)),
    *wrong("choice.finish_reason", MISSING, None, "abort", "", 5, ["stop"]),
    *wrong("usage", MISSING, None, [], "x", 5, {}),
    *wrong("usage.prompt_tokens", *NOT_A_COUNT, lower, higher, 0),
    *wrong("usage.completion_tokens", *NOT_A_COUNT, lower, higher, 0),
    *wrong("usage.prompt_tokens_details", [], [1], "x", 5),
    *wrong("usage.prompt_tokens_details.cached_tokens", -1, float("nan"), 1.5, "1", True, 10**400, []),
    *wrong("usage.prompt_tokens_details.cached_tokens", 100_000, says="100000 cached tokens"),
]


# The runs


class First:
    """A fallback that ranks the only model first."""

    def rank(self, question: str, *, cost_weight: float) -> Sequence[str]:
        return ["m"]


async def run(engine: VLLMEngine, mode: str, **settings: Any) -> dict[str, Any]:
    """Ask a router with this engine one question; the run must end in time."""
    router = create_router(engine, pool(m="from m"), max_tokens=MAX_TOKENS, **settings)
    question: Any = {"messages": [("user", "Which?")]}
    started = time.monotonic()
    try:
        if mode == "sync":
            return await asyncio.to_thread(router.invoke, question)
        if mode == "streamed":
            events = router.astream(question, stream_mode=["messages", "values"])
            *_, last = [value async for kind, value in events if kind == "values"]
            return last
        return await router.ainvoke(question)
    finally:
        assert time.monotonic() - started < engine.timeout_s + GRACE_S


async def ends_well(engine: VLLMEngine, mode: str, fault: Fault) -> None:
    """Run it without a fallback and with one; it ends as the fault's row says."""
    if fault.ends in {ANSWER, CONTEXT_FULL}:
        result = await run(engine, mode)
        assert result["routing"]["stop_reason"] == fault.ends
        assert result["answer"] == ("Lima" if fault.ends == ANSWER else "")
        return
    with pytest.raises(EngineError, match=fault.ends) as caught:
        await run(engine, mode)
    message = str(caught.value)
    assert engine.base_url in message
    assert len(message) < 500
    assert message.isprintable()
    result = await run(engine, mode, fallback=First())
    assert (result["routing"]["stop_reason"], result["answer"]) == ("degraded", "from m")


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
async def test_a_broken_server_is_an_engine_error_in_time_or_the_fallbacks_turn(
    tiny_tokenizer: Path, fault: Fault
) -> None:
    with serving(fault.serve) as url:
        async with VLLMEngine(
            url, "router", tokenizer=tiny_tokenizer, logprobs=True, timeout_s=fault.timeout_s
        ) as engine:
            await asyncio.gather(*(ends_well(engine, mode, fault) for mode in ("sync", "async", "streamed")))


async def test_a_connection_that_is_closed_before_a_reply_is_tried_once_more(tiny_tokenizer: Path) -> None:
    seen: list[str] = []

    def closes_every_other_time(connection: Connection) -> None:
        seen.append("request")
        if len(seen) % 2:
            connection.request()
            connection.reset()
        else:
            replies(lambda _: None)(connection)

    with serving(closes_every_other_time) as url:
        async with VLLMEngine(url, "router", tokenizer=tiny_tokenizer, logprobs=True, timeout_s=PATIENT_S) as engine:
            for mode in ("sync", "async", "streamed"):
                assert (await run(engine, mode))["answer"] == "Lima"
    assert len(seen) == 6


async def test_a_connection_that_is_not_made_in_time_is_tried_once_more(
    tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [True, False]
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def late_once(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if late.pop(0):
            raise httpx.ConnectTimeout("as in a process that is too busy to see its connection made")
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", late_once)
    with serving(replies(lambda _: None)) as url:
        async with VLLMEngine(url, "router", tokenizer=tiny_tokenizer, logprobs=True, timeout_s=PATIENT_S) as engine:
            assert (await run(engine, "async"))["answer"] == "Lima"
            late[:] = [True, True]
            with pytest.raises(EngineError, match="accepts no connection within 5 s"):
                await run(engine, "async")
    assert not late


def test_there_are_at_least_fifty_kinds_each_with_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 50


# Secrets

KEY = "sk-canary/0123456789+abc=="
USER, PASSWORD = "canaryuser", 'canary"p&ss w/rd'
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def echoes(status: int, write: Callable[[str], str]) -> Serve:
    """Refuse with the request's Authorization header and the secrets themselves in the text, as some proxies do."""

    def serve(connection: Connection) -> None:
        connection.request()
        said = f"Authorization: Bearer {KEY}, Basic {BASIC}, {KEY}, {USER}:{PASSWORD}"
        # Before the part of it that is shown, in it, and at its end.
        connection.send(http(status, write(said * 4 + " " * 150 + said)))

    return serve


ECHOES = {
    "as text": str,
    "as HTML": html.escape,
    "as an address": quote,
    "as vLLM's error": lambda said: json.dumps({"error": {"message": said}}),
    "as JSON": lambda said: json.dumps({"headers": said}),
    "as a field of the wrong type": lambda said: json.dumps({"choices": said, "data": said}),
    "as the name of a field": lambda said: json.dumps({"choices": [{said: 1}], "data": [{said: 1}]}),
    "as served models": lambda said: json.dumps({"message": "does not exist", "data": [{"id": said}]}),
    "as a path": lambda said: json.dumps({"data": [{"id": "router", "root": said}]}),
}


def everything_shown(error: BaseException) -> Iterator[str]:
    """What a traceback, a log or a debugger shows of an error, and of all the errors that it came from."""
    yield from traceback.format_exception(error)
    seen: BaseException | None = error
    while seen is not None:
        yield from (str(seen), repr(seen), repr(vars(seen)), *getattr(seen, "__notes__", []))
        yield repr(getattr(seen, "request", None) and seen.request.headers.raw)  # type: ignore[attr-defined]
        seen = seen.__cause__ or seen.__context__


@pytest.mark.parametrize("status", [200, 400, 404])
@pytest.mark.parametrize("write", ECHOES.values(), ids=ECHOES)
async def test_a_key_that_the_server_echoes_is_shown_nowhere(
    tiny_tokenizer: Path, caplog: pytest.LogCaptureFixture, write: Callable[[str], str], status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    with serving(echoes(status, write)) as url:
        url = url.replace("http://", f"http://{USER}:{quote(PASSWORD, safe='')}@")
        for tokenizer in (tiny_tokenizer, None):  # None: the server is asked for it
            async with VLLMEngine(url, "router", tokenizer=tokenizer, api_key=KEY, timeout_s=PATIENT_S) as engine:
                shown.append(repr(engine))
                for mode in ("sync", "async"):
                    with pytest.raises(EngineError) as caught:
                        await run(engine, mode)
                    shown += everything_shown(caught.value)
                saver = InMemorySaver()
                router = create_router(engine, pool(m="from m"), fallback=First(), checkpointer=saver)
                config: Any = {"configurable": {"thread_id": "1"}}
                shown.append(repr(await router.ainvoke({"messages": [("user", "?")]}, config)))
                shown += map(repr, saver.list(None))
                try:
                    engine.post("load_lora_adapter", {})
                except EngineError as error:
                    shown += everything_shown(error)
    found = "\n".join([*shown, caplog.text])
    parts = (KEY, KEY.split("/")[1], BASIC, USER, PASSWORD, PASSWORD.split("&")[1])
    assert not [secret for secret in parts if secret in found]


def test_an_unreachable_server_shows_no_key_either(tiny_tokenizer: Path) -> None:
    for serve in (None, closes_at_once, hangs):
        with (
            serving(serve) as url,
            VLLMEngine(url, "router", tokenizer=tiny_tokenizer, api_key=KEY, timeout_s=TIMEOUT_S) as engine,
        ):
            with pytest.raises(EngineError) as caught:
                engine.generate([engine.begin([{"role": "user", "content": "?"}])], stop=[], max_tokens=9)
            assert KEY not in "\n".join(everything_shown(caught.value))
