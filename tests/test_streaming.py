"""Streaming: the answer comes as it is written, and nothing else does."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from test_protocol import HOSTILE, NAMES
from test_router_faults import PATIENT_S, TOKENS, serving

from langgraph_router_r1 import ChatRouterR1, EngineError, RouterContext, create_router
from langgraph_router_r1.engines import ChatModelEngine, EngineUnavailableError, VLLMEngine
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.protocol import Answer, parse
from langgraph_router_r1.scanner import TAGS, TurnScanner, begun_answer
from langgraph_router_r1.strategies import AskInOrder
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "Capital of Peru?")]}
TURNS = [search("m: Capital of Peru?"), answer("Lima, on the coast.\n\nIts <b>name</b> is old.")]
LIMA = "Lima, on the coast.\n\nIts <b>name</b> is old."
ANY_TAG = re.compile(rf"</?({'|'.join(TAGS)})>")


def router(**settings: Any) -> Any:
    return create_router(ScriptedEngine(TURNS, piece_chars=3), pool(m="Lima"), **settings)


# The scanner


@given(HOSTILE, st.lists(st.integers(min_value=0, max_value=60)), st.booleans())
@example("<think> a </think><answer> Lima </answer>", [1, 9, 20, 21, 22, 33, 34], True)
def test_wherever_a_turn_is_cut_the_same_is_shown_and_never_a_tag(text: str, cuts: list[int], routing: bool) -> None:
    bounds = [0, *sorted(cuts), len(text)]
    scanner = TurnScanner(routing=routing)
    deltas = [delta for start, end in itertools.pairwise(bounds) for delta in scanner.feed(text[start:end])]
    shown = "".join(piece for kind, piece in deltas if kind == "answer")
    assert shown == scanner.answer == begun_answer(text, routing=routing)
    assert not ANY_TAG.search(shown)
    assert shown == shown.strip()
    if shown:
        assert parse(text, NAMES, routing=routing) == Answer(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<think> I end with <answer> later </think> <search> m: a", ""),
        ("<search> m: what does <answer> mean", ""),
        ("<answer> a <think> b </think> c", "a  b  c"),
        ("<answer> a < b, <answers> and <b>", "a < b, <answers> and <b>"),
        ("<answer> a </answer> b", "a"),
        ("<answer>  ", ""),
        ("<search> m: a? </search><answer> forged", ""),
    ],
)
def test_an_answer_begins_outside_of_thoughts_and_searches(text: str, shown: str) -> None:
    assert begun_answer(text) == shown


# Through the graph


async def test_messages_are_the_answers_tokens_alone_under_the_id_of_the_final_message() -> None:
    for way in ("sync", "async"):
        made = router(checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}
        if way == "sync":
            streamed = list(made.stream(QUESTION, config, stream_mode="messages"))
        else:
            streamed = [item async for item in made.astream(QUESTION, config, stream_mode="messages")]
        chunks = [chunk for chunk, _ in streamed]
        assert len(chunks) > 3
        assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
        assert "".join(chunk.text for chunk in chunks) == LIMA
        final = made.get_state(config).values["messages"][-1]
        assert {chunk.id for chunk in chunks} == {final.id}
        assert final.text == LIMA
        assert {metadata["langgraph_node"] for _, metadata in streamed} == {"think"}


class Streams(ScriptedChatModel):
    """A routed model that streams its replies, as those of providers do."""

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in ("from ", "m"):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=word))
            if run_manager:
                run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk


async def test_what_routed_models_say_is_not_among_the_messages() -> None:
    asked = create_router(ScriptedEngine(TURNS), pool(m=router()))  # a router, asked by a router
    plain = create_router(ScriptedEngine(TURNS), pool(m=Streams()))
    for made in (asked, plain):
        for subgraphs in (False, True):
            items = made.stream(QUESTION, stream_mode="messages", subgraphs=subgraphs)
            chunks = [(item[1] if subgraphs else item)[0] for item in items]
            assert "from " not in [chunk.text for chunk in chunks]
        made_async = [chunk.text async for chunk, _ in made.astream(QUESTION, stream_mode="messages")]
        assert "from " not in made_async


def test_thoughts_are_streamed_only_if_asked_for_and_as_reasoning() -> None:
    def thoughts(**settings: Any) -> list[str]:
        context = settings.pop("context", None)
        chunks = [chunk for chunk, _ in router(**settings).stream(QUESTION, stream_mode="messages", context=context)]
        assert "".join(chunk.text for chunk in chunks) == LIMA
        reasoning = [block for chunk in chunks for block in chunk.content_blocks if block["type"] == "reasoning"]
        return [block["reasoning"] for block in reasoning]

    assert thoughts() == []
    assert "".join(thoughts(stream="thought")) == "I have to ask.\nI know it."
    assert "".join(thoughts(context=RouterContext(stream="thought"))) == "I have to ask.\nI know it."


def test_what_is_streamed_must_be_the_answer_or_thoughts() -> None:
    with pytest.raises(ValueError, match="stream is 'nope'; it must be 'answer' or 'thought'"):
        list(router(stream="nope").stream(QUESTION, stream_mode="messages"))


def test_the_typed_deltas_add_up_to_the_answer_of_the_end() -> None:
    events: list[Any] = list(router(stream="thought").stream(QUESTION, stream_mode="custom"))
    said = [event["text"] for event in events if event["type"] == "router_r1.answer_delta"]
    assert "".join(said) == events[-1]["answer"] == LIMA
    assert len(said) > 3
    assert {event["turn"] for event in events if event["type"] == "router_r1.think_delta"} == {0, 1}


def test_nobody_is_streamed_to_when_nobody_listens() -> None:
    class Notes(ScriptedEngine):
        def generate(self, transcript: Any, **options: Any) -> Any:
            heard.append("on_text" in options)
            return super().generate(transcript, **options)

    heard: list[bool] = []
    made = create_router(Notes(TURNS), pool(m="Lima"))
    made.invoke(QUESTION)
    assert heard == [False, False]
    heard.clear()
    list(create_router(Notes(TURNS), pool(m="Lima")).stream(QUESTION, stream_mode="updates"))
    assert heard == [False, False]


def test_an_answer_that_no_llm_writes_is_streamed_too() -> None:
    made = create_router(strategy=AskInOrder(lambda view: ["m"]), registry=pool(m="Lima"))
    assert [chunk.text for chunk, _ in made.stream(QUESTION, stream_mode="messages")] == ["Lima"]


def test_an_answer_cut_by_the_limit_of_tokens_is_the_answer_and_says_so() -> None:
    made = create_router(ScriptedEngine([f"<think> x </think><answer> {'Lima ' * 50}"]), pool(m="x"), max_tokens=60)
    texts: list[str] = []
    last: Any = {}
    for mode, item in made.stream(QUESTION, stream_mode=["messages", "values"]):
        if mode == "messages":
            texts.append(item[0].text)
        else:
            last = item
    assert "".join(texts) == last["answer"]
    assert last["answer"].startswith("Lima Lima")
    assert last["routing"]["stop_reason"] == "cut_off"


def test_embedded_in_a_graph_its_tokens_come_from_the_subgraph() -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("research", router())
    graph.add_edge(START, "research")
    graph.add_edge("research", END)
    items = list(graph.compile().stream(QUESTION, stream_mode="messages", subgraphs=True))
    inner = [chunk for namespace, (chunk, _) in items if namespace]
    assert "".join(chunk.text for chunk in inner) == LIMA


# A server that breaks off in mid-answer


class BreaksOff(ScriptedEngine):
    """Breaks off after some of the last turn, as a server does that dies."""

    def generate(self, transcript: Any, *, on_text: Any = None, **options: Any) -> Any:
        made = super().generate(transcript, **options)
        if "<answer>" in made.segment["text"]:
            if on_text is not None:
                on_text("<think> x </think><answer> Lim")
                on_text("a, o")
            raise EngineUnavailableError("the router's server is down")
        return made

    async def agenerate(self, transcript: Any, **options: Any) -> Any:
        return self.generate(transcript, **options)


class First:
    def rank(self, question: str, *, cost_weight: float) -> list[str]:
        return ["m"]


async def test_the_fallbacks_answer_is_another_message_than_the_one_that_broke_off() -> None:
    for is_async in (False, True):
        made = create_router(BreaksOff(TURNS), pool(m="Quito"), fallback=First())
        texts: dict[str, str] = {}
        last: Any = {}
        items = made.stream(QUESTION, stream_mode=["messages", "values"])
        if is_async:
            items = iter([item async for item in made.astream(QUESTION, stream_mode=["messages", "values"])])
        for mode, item in items:
            if mode == "messages":
                texts[item[0].id] = texts.get(item[0].id, "") + item[0].text
            else:
                last = item
        assert list(texts.values()) == ["Lima, o", "Quito"]
        assert texts[last["messages"][-1].id] == last["answer"] == "Quito"


def test_a_chat_model_whose_stream_broke_off_raises_with_the_account() -> None:
    model = ChatRouterR1(router=create_router(BreaksOff(TURNS), pool(m="Quito"), fallback=First()))
    texts: list[str] = []
    with pytest.raises(EngineError, match="the answer that was streamed broke off") as caught:
        texts.extend(chunk.text for chunk in model.stream("Capital of Peru?"))
    assert "".join(texts) == "Lima, o"
    assert caught.value.routing is not None
    assert caught.value.routing["cost_usd"] > 0


async def test_a_reader_that_leaves_ends_the_run() -> None:
    engine = ScriptedEngine(TURNS, delay_s=0.01, piece_chars=3)
    made = create_router(engine, pool(m="Lima"))
    async with asyncio.timeout(5):
        async for _ in made.astream(QUESTION, stream_mode="messages"):
            break
    tasks = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    await asyncio.sleep(0.05)
    assert not {task for task in tasks if not task.done()}


class NeedsAToken(ScriptedEngine):
    """Breaks off in the middle of its answer the first time."""

    broke_off = False

    def generate(self, transcript: Any, *, on_text: Any = None, **options: Any) -> Any:
        if "observation" in [segment["kind"] for segment in transcript] and not self.broke_off:
            self.broke_off = True
            on_text("<answer> Partial tex")
            raise EngineUnavailableError("down")
        return super().generate(transcript, on_text=on_text, **options)


def test_a_run_that_goes_on_after_it_broke_off_in_its_answer_streams_another_message() -> None:
    made = create_router(NeedsAToken(TURNS), pool(m="Lima"), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    texts: dict[str, str] = {}

    def stream(what: Any) -> None:
        for chunk, _ in made.stream(what, config, stream_mode="messages"):
            texts[chunk.id] = texts.get(chunk.id, "") + chunk.text

    with pytest.raises(EngineError):
        stream(QUESTION)
    stream(None)
    assert list(texts.values()) == ["Partial tex", LIMA]


def test_what_a_chat_model_writes_as_the_router_is_no_message_of_the_run() -> None:
    for model in (Streams(), ScriptedChatModel(["<think> SECRET </think><answer> Lima </answer>"])):
        router_model = ChatModelEngine(model)
        made = create_router(router_model, pool(m="x"), router_price="free")
        texts = [chunk.text for chunk, _ in made.stream(QUESTION, stream_mode="messages")]
        assert "SECRET" not in "".join(texts)
        assert "from " not in texts
    assert "".join(texts) == "Lima"


def test_a_chat_model_that_is_asked_streams_none_of_its_events_into_the_outer_run() -> None:
    outer = create_router(ScriptedEngine([search("m: a?"), answer("out")]), pool(m=ChatRouterR1(router=router())))
    events: list[Any] = [
        item for mode, item in outer.stream(QUESTION, stream_mode=["custom", "messages"]) if mode == "custom"
    ]
    assert [event["text"] for event in events if event["type"] == "router_r1.answer_delta"] == ["out"]


def test_hostile_turns_are_scanned_in_linear_time() -> None:
    started = time.process_time()
    assert begun_answer("<answer>" + "<a" * 400_000)
    scanner = TurnScanner()
    scanner.feed("<answer> x")
    for _ in range(40_000):
        scanner.feed(" ")
    assert time.process_time() - started < 5  # what was quadratic took half a minute


# The chat model


async def test_the_chat_model_streams_and_ends_with_its_usage_and_the_account() -> None:
    for is_async in (False, True):
        model = ChatRouterR1(router=router())
        if is_async:
            chunks: Any = [chunk async for chunk in model.astream("Capital of Peru?")]
        else:
            chunks = list(model.stream("Capital of Peru?"))
        assert len(chunks) > 3
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        invoked = ChatRouterR1(router=router()).invoke("Capital of Peru?")
        assert whole.text == invoked.text == LIMA
        assert whole.usage_metadata == invoked.usage_metadata
        assert whole.response_metadata["routing"]["cost_usd"] == invoked.response_metadata["routing"]["cost_usd"]


def test_stop_strings_end_the_answer_streamed_or_not() -> None:
    for text in (
        ChatRouterR1(router=router()).invoke("?", stop=["coast", "("]).text,
        "".join(chunk.text for chunk in ChatRouterR1(router=router()).stream("?", stop=["coast", "("])),
    ):
        assert text == "Lima, on the "


def test_within_a_node_the_chat_models_tokens_come_once_and_its_events_reach_the_graph() -> None:
    model = ChatRouterR1(router=router())

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", node)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    texts: list[str] = []
    events: list[str] = []
    for mode, item in graph.compile().stream(QUESTION, stream_mode=["messages", "custom"]):
        if mode == "messages":
            texts.append(item[0].text)
        else:
            events.append(item["type"])
    assert "".join(texts) == LIMA
    assert len(texts) > 3
    assert events[-1] == "router_r1.done"


# vLLM's events, played by a server on loopback


def events_of(turn: str, size: int, change: Any = None) -> list[bytes]:
    """What vLLM streams: so many tokens an event, then the usage."""
    ids = [TOKENS[letter] for letter in turn]
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    events: list[Any] = [{"choices": [{"token_ids": part, "finish_reason": None}]} for part in parts]
    events[-1]["choices"][0]["finish_reason"] = "stop"
    events.append({"choices": [], "usage": {"prompt_tokens": None, "completion_tokens": len(ids)}})
    if change is not None:
        events = change(events) or events
    return [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]


def streams(turn: str, *, size: int = 3, cut: int = 7, change: Any = None, done: bytes = b"[DONE]") -> Any:
    """Serve a turn as a stream whose bytes are cut anywhere."""

    def serve(connection: Any) -> None:
        request = connection.request()
        assert request["stream"] is True
        body = b"".join(b"data: " + event + b"\n\n" for event in [*events_of(turn, size, change), done])
        body = body.replace(b'"prompt_tokens": null', f'"prompt_tokens": {len(request["prompt"])}'.encode())
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), cut):
            piece = body[start : start + cut]
            connection.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        connection.send(b"0\r\n\r\n")

    return serve


async def stream(serve: Any, tokenizer: Path, **settings: Any) -> tuple[list[str], Any]:
    with serving(serve) as url:
        async with VLLMEngine(url, "router", tokenizer=tokenizer, timeout_s=PATIENT_S) as engine:
            texts: list[str] = []
            last: Any = {}
            made = create_router(engine, pool(m="Lima"), **settings)
            async for mode, item in made.astream(QUESTION, stream_mode=["messages", "values"]):
                if mode == "messages":
                    texts.append(item[0].text)
                else:
                    last = item
            return texts, last


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_vllms_events_become_the_answer_wherever_they_are_cut(tiny_tokenizer: Path, size: int) -> None:
    texts, last = await stream(streams("<think> x </think><answer> Lima, a < b </answer>", size=size), tiny_tokenizer)
    assert "".join(texts) == last["answer"] == "Lima, a < b"
    assert last["routing"]["router_tokens"]["completion_tokens"] > 40


def without_usage(events: list[Any]) -> list[Any]:
    return events[:-1]


def with_a_failure(events: list[Any]) -> list[Any]:
    return [*events[:3], b'{"error": {"message": "out of memory", "code": 500}}']


def with_nonsense(events: list[Any]) -> list[Any]:
    return [*events[:3], b'{"choices": 5}', *events[3:]]


def with_an_unknown_token(events: list[Any]) -> None:
    events[2]["choices"][0]["token_ids"][0] = 258


def with_two_choices(events: list[Any]) -> None:
    events[1]["choices"] *= 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_usage, "usage"),
        (with_a_failure, "answered 500: out of memory"),
        (with_nonsense, "does not answer as vLLM does"),
        (with_an_unknown_token, "the tokenizer does not know"),
        (with_two_choices, "does not answer as vLLM does"),
    ],
)
async def test_a_broken_stream_is_an_engine_error_or_the_fallbacks_turn(
    tiny_tokenizer: Path, change: Any, says: str
) -> None:
    serve = streams("<think> x </think><answer> Lima </answer>", change=change)
    with pytest.raises(EngineError, match=says):
        await stream(serve, tiny_tokenizer)
    texts, last = await stream(serve, tiny_tokenizer, fallback=First())
    assert (last["answer"], last["routing"]["stop_reason"]) == ("Lima", "degraded")
    assert not ANY_TAG.search("".join(texts))


def test_tokens_come_while_the_server_still_writes(tiny_tokenizer: Path) -> None:
    seen = threading.Event()
    waited: list[bool] = []

    def serve(connection: Any) -> None:
        request = connection.request()
        first, second = (
            b"".join(b"data: " + event + b"\n\n" for event in part)
            for part in (events_of("<think> x </think><answer> Li", 50)[:1], events_of("ma </answer>", 50))
        )
        count = len("<think> x </think><answer> Lima </answer>")
        second = second.replace(
            b'null, "completion_tokens": 12', f'{len(request["prompt"])}, "completion_tokens": {count}'.encode()
        )
        first = first.replace(b'"stop"', b"null")
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n" + first)
        waited.append(seen.wait(10))
        connection.send(second)

    with serving(serve) as url, VLLMEngine(url, "router", tokenizer=tiny_tokenizer, timeout_s=PATIENT_S) as engine:
        texts = []
        for chunk, _ in create_router(engine, pool(m="Lima")).stream(QUESTION, stream_mode="messages"):
            texts.append(chunk.text)
            seen.set()
    assert waited == [True]
    assert texts == ["Li", "ma"]


def test_a_tokenizers_pieces_are_the_text(tiny_tokenizer: Path) -> None:
    tokenizer = ChatTokenizer.load(tiny_tokenizer)
    ids = tokenizer.encode("Lima é 🙂 <answer>")
    decode = tokenizer.decoder()
    pieces = [decode(token) for token in ids]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)
