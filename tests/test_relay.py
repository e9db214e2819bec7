"""Complete answers: the router's own, or a model's, passed on word for word, also while the model writes it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import pool, search
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.exceptions import ModelAPIError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGenerationChunk
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from test_protocol import HOSTILE, NAMES

from langgraph_router_r1 import (
    RECORD_KEYS,
    ChatRouterR1,
    ModelDescriptor,
    ModelRegistry,
    RegistryError,
    RouterContext,
    RunRecord,
    create_router,
)
from langgraph_router_r1.calls import CallCache
from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.engines import ChatModelEngine
from langgraph_router_r1.protocol import Answer, Call, Invalid, Relay, Route, parse
from langgraph_router_r1.replay import replay
from langgraph_router_r1.scanner import TurnScanner
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "Tell me of Peru.")]}
LONG = "Peru, in short:\n\n- <b>Lima</b> is its capital,\n- it has <answer>llamas</answer>.\n" * 20
DELEGATE = '<think> That is for m. </think>\n<answer from="m"> Tell me of Peru. </answer>'


def router(*turns: str, registry: ModelRegistry | None = None, **settings: Any) -> Any:
    return create_router(ScriptedEngine(turns), registry or pool(m=LONG), **{"answer": "full", **settings})


# The grammar


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('<answer from="1"/>', Relay(1)),
        ('<think> x </think> <answer from="2" /> more', Relay(2)),
        ('<answer from="3"/>', Invalid("there is no reply 3: there are 2 replies")),
        ('<answer from="capitals"/>', Invalid("there is no reply capitals: there are 2 replies")),
        ('<answer from="Capitals"> Peru? </answer>', Route((Call("capitals", "Peru?"),), relay=True)),
        ('<answer from="x"> Peru? </answer>', Route((Call("x", "Peru?", known=False),), relay=True)),
        ('<answer from="capitals"> Peru?', Invalid("there is no complete search and no complete answer in it")),
        ('<think> <answer from="1"/> </think> <answer> own </answer>', Answer("own")),
        ('<answer> own <answer from="1"/> </answer>', Answer("own")),
    ],
)
def test_an_answer_may_be_a_reply_or_a_models(text: str, action: Any) -> None:
    assert parse(text, NAMES, replies=2) == action


def test_with_routing_off_no_model_answers_in_its_place() -> None:
    assert isinstance(parse('<answer from="capitals"> Peru? </answer>', NAMES, routing=False, replies=1), Invalid)
    assert parse('<answer from="1"/>', NAMES, routing=False, replies=1) == Relay(1)


def test_without_relaying_the_tag_is_no_tag() -> None:
    assert isinstance(parse('<answer from="1"/>', NAMES), Invalid)
    assert parse('<answer from="1"/> <answer> x </answer>', NAMES) == Answer("x")


RELAYING = st.lists(st.sampled_from(['<answer from="1"/>', '<answer from="', '"/>', '<answer from="capitals">', '"']))


@given(HOSTILE, RELAYING, st.lists(st.integers(min_value=0, max_value=60)), st.booleans())
def test_wherever_such_a_turn_is_cut_the_same_is_read(
    text: str, pieces: list[str], cuts: list[int], routing: bool
) -> None:
    text = "".join([text, *pieces, "</answer>"])
    bounds = [0, *sorted(cuts), len(text)]
    cut, whole = (TurnScanner(routing=routing, relaying=True) for _ in range(2))
    deltas = [delta for start, end in itertools.pairwise(bounds) for delta in cut.feed(text[start:end])]
    whole.feed(text)
    assert (cut.answer, cut.source, cut.query) == (whole.answer, whole.source, whole.query)
    assert "".join(piece for kind, piece in deltas if kind == "answer") == whole.answer
    parse(text, NAMES, routing=routing, replies=1)


# Replies that are passed on


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_relayed_reply_is_the_routed_one_byte_for_byte(way: str) -> None:
    made = router(search("m: Peru?"), '<think> good </think>\n<answer from="1"/> never written')
    keys = [*RECORD_KEYS, "routing", "messages"]
    if way == "invoke":
        result = made.invoke(QUESTION, output_keys=keys)
    else:
        result = await made.ainvoke(QUESTION, output_keys=keys)
    [call] = result["routing"]["calls"]
    assert result["answer"].encode() == call["response"].encode() == LONG.strip().encode()
    assert result["messages"][-1].text == result["answer"]
    assert result["routing"]["stop_reason"] == "answered"
    # The turn ends at the tag: the router writes no more than it.
    assert result["transcript"][-1]["text"].endswith('<answer from="1"/>')
    assert "(reply 1) " in result["transcript"][2]["text"]
    record = RunRecord.model_validate_json(RunRecord.of(result).model_dump_json())
    assert replay(record).invoke({"messages": [("user", record.question)]})["answer"] == result["answer"]


def test_replies_are_numbered_over_the_whole_run_without_those_that_failed() -> None:
    registry = pool(a="from a", b=ValueError("no"), c="from c")
    made = router(search("a: A?", "b: B?"), search("c: C?"), '<think> x </think><answer from="2"/>', registry=registry)
    result = made.invoke(QUESTION, output_keys=["answer", "transcript"])
    assert result["answer"] == "from c"
    observations = [segment["text"] for segment in result["transcript"] if segment["kind"] == "observation"]
    assert "a: (reply 1) from a" in observations[0]
    assert "(reply 2) from c" in observations[1]


def test_a_reply_that_is_not_there_is_corrected() -> None:
    made = router('<think> x </think><answer from="1"/>', "<think> x </think><answer> own </answer>")
    assert made.invoke(QUESTION)["answer"] == "own"


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_model_that_answers_in_the_routers_place_takes_one_turn(way: str) -> None:
    model = ScriptedChatModel([LONG])
    made = router(DELEGATE, registry=pool(m=model))
    keys = ["answer", "routing", "transcript"]
    if way == "invoke":
        result = made.invoke(QUESTION, output_keys=keys)
    else:
        result = await made.ainvoke(QUESTION, output_keys=keys)
    assert result["answer"] == LONG.strip()
    assert (result["routing"]["turns"], result["routing"]["stop_reason"]) == (1, "answered")
    assert [segment["kind"] for segment in result["transcript"]] == ["prompt", "policy"]


def test_a_model_that_fails_in_the_routers_place_is_told_and_the_run_goes_on() -> None:
    made = router(DELEGATE, "<think> then I </think><answer> myself </answer>", registry=pool(m=ValueError("no")))
    result = made.invoke(QUESTION, output_keys=["answer", "transcript"])
    assert result["answer"] == "myself"
    assert "No reply: m failed (ValueError)" in result["transcript"][2]["text"]


def test_such_a_call_waits_for_approval_too() -> None:
    made = router(DELEGATE, registry=pool(m="from m"), approve="always", checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    assert made.invoke(QUESTION, config)["__interrupt__"]
    assert made.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)["answer"] == "from m"


# While it runs


class Writes(ScriptedChatModel):
    """Streams its pieces; before the last one it waits until the test has seen the others."""

    pieces: list[str]
    seen: Any = None
    waited: list[bool] = []  # noqa: RUF012 - a pydantic field
    fails: int = 0

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        for place, piece in enumerate(self.pieces):
            if place == len(self.pieces) - 1:
                if self.fails:
                    self.fails -= 1
                    raise ModelAPIError("broke off")
                if self.seen is not None:
                    self.waited.append(self.seen.wait(10))
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        for piece in self._stream(messages):
            yield piece


def test_the_reply_is_streamed_while_the_model_writes_it() -> None:
    seen = threading.Event()
    model = Writes(pieces=["Lima ", "is ", "it.", "\n"], seen=seen)
    texts = []
    for chunk, _ in router(DELEGATE, registry=pool(m=model)).stream(QUESTION, stream_mode="messages"):
        texts.append(chunk.text)
        seen.set()
    assert model.waited == [True]
    assert texts == ["Lima", " is", " it."]


async def test_streamed_and_awaited_it_is_one_message_and_the_answer() -> None:
    made = router(DELEGATE, registry=pool(m=Writes(pieces=["Lima ", "is it.", " "])))
    ids, texts, last = set(), [], None
    async for mode, item in made.astream(QUESTION, stream_mode=["messages", "values"]):
        if mode == "messages":
            ids.add(item[0].id)
            texts.append(item[0].text)
        else:
            last = item
    assert last is not None
    assert "".join(texts) == last["answer"] == "Lima is it."
    assert ids == {last["messages"][-1].id}
    chunks = ChatRouterR1(router=router(DELEGATE, registry=pool(m=Writes(pieces=["Lima ", "is it."])))).stream("?")
    assert "".join(chunk.text for chunk in chunks) == "Lima is it."


def test_what_the_model_thinks_aloud_is_not_shown() -> None:
    for pieces in (
        ["<thi", "nk> hm </think>", " Lima ", "it is."],
        ["  <think>a</think>Lima it is."],
        ["Lima it", " is."],
    ):
        made = router(DELEGATE, registry=pool(m=Writes(pieces=pieces)))
        texts = [chunk.text for chunk, _ in made.stream(QUESTION, stream_mode="messages")]
        assert "".join(texts) == "Lima it is."


def test_an_attempt_that_broke_off_is_another_message() -> None:
    model = Writes(pieces=["Lima ", "is it."], fails=1)
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0, max_retries=1)])
    texts: dict[str, str] = {}
    last: Any = None
    for mode, item in router(DELEGATE, registry=registry).stream(QUESTION, stream_mode=["messages", "values"]):
        if mode == "messages":
            texts[item[0].id] = texts.get(item[0].id, "") + item[0].text
        else:
            last = item
    assert list(texts.values()) == ["Lima", "Lima is it."]
    assert texts[last["messages"][-1].id] == last["answer"] == "Lima is it."


def test_a_cached_reply_is_streamed_whole() -> None:
    cache = CallCache(InMemoryCache())
    for _ in range(2):
        made = router(DELEGATE, registry=pool(m="from m"), middleware=[cache])
        assert "".join(chunk.text for chunk, _ in made.stream(QUESTION, stream_mode="messages")) == "from m"


@pytest.mark.parametrize("finish", ["length", "content_filter", "stop"])
@pytest.mark.parametrize("usage", [True, False])
def test_a_reply_from_the_cache_costs_nothing_and_says_why_it_ended_as_the_first_time(finish: str, usage: bool) -> None:
    reply = AIMessage("Lima is a city and", response_metadata={"finish_reason": finish})
    registry, cache = pool(m=ScriptedChatModel([reply], usage=usage)), CallCache(InMemoryCache())
    calls = []
    for _ in range(2):
        made = router(DELEGATE, registry=registry, middleware=[cache])
        calls += made.invoke(QUESTION)["routing"]["calls"]
    assert calls[0]["cost_usd"] > 0 == calls[1]["cost_usd"]
    for same in ("finish_reason", "response", "usage", "list_cost_usd"):
        assert calls[0][same] == calls[1][same]


def test_a_second_question_of_the_thread_is_streamed_too() -> None:
    made = router(
        DELEGATE, "<think> x </think><answer> own </answer>", registry=pool(m="from m"), checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    for expected in ("from m", "own"):
        question: Any = {"messages": [("user", expected)]}
        texts = [chunk.text for chunk, _ in made.stream(question, config, stream_mode="messages")]
        assert "".join(texts) == expected


class Hangs(Writes):
    """Writes on, long after nobody waits for it."""

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        for piece in self.pieces:
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
            time.sleep(0.1)


def test_a_model_that_timed_out_writes_nothing_into_the_reply_of_the_next() -> None:
    slow = ModelDescriptor(
        name="m", model=Hangs(pieces=["late "] * 9), price=1.0, timeout_s=0.25, fallbacks=("next",), max_retries=0
    )
    good = ModelDescriptor(name="next", model=Hangs(pieces=["good ", "reply "]), price=1.0)
    texts: dict[str, str] = {}
    last: Any = None
    for mode, item in router(DELEGATE, registry=ModelRegistry([slow, good])).stream(
        QUESTION, stream_mode=["messages", "values"]
    ):
        if mode == "messages":
            texts[item[0].id] = texts.get(item[0].id, "") + item[0].text
        else:
            last = item
    assert texts[last["messages"][-1].id] == last["answer"] == "good reply"
    assert all("late" not in text or "good" not in text for text in texts.values())


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["<THINK> a </THINK> Lima"], ["Lima"]),
        (["<think>a</think> <thinking> b </thinking>", " Lima"], ["Lima"]),
        (["<think>a <think> b </think> c </think> Lima"], ["Lima"]),
        (["Lima <think> sure ", "</think>is it"], ["Lima is it"]),
        (["Lima <think>", " is a tag"], ["Lima <think> is a tag"]),
        (["Lima <", "b> is <t", "h>"], ["Lima <b> is <th>"]),
        # Known at the closing tag only: what was shown becomes no message.
        (["secret ", "thought </thi", "nk> Lima"], ["secret thought", "Lima"]),
    ],
)
def test_what_is_shown_of_a_reply_is_what_is_left_without_its_thoughts(pieces: list[str], shown: list[str]) -> None:
    made = router(DELEGATE, registry=pool(m=Writes(pieces=pieces)))
    texts: dict[str, str] = {}
    last: Any = None
    for mode, item in made.stream(QUESTION, stream_mode=["messages", "values"]):
        if mode == "messages":
            texts[item[0].id] = texts.get(item[0].id, "") + item[0].text
        else:
            last = item
    assert list(texts.values()) == shown
    assert texts[last["messages"][-1].id] == last["answer"]


def test_a_relayed_reply_that_is_too_long_is_cut_streamed_or_not_and_says_so() -> None:
    writes = Writes(["Lima " * 9], pieces=["Lima " * 3] * 3)
    model = ModelDescriptor(name="m", model=writes, price=1.0, max_reply_chars=20)
    chunks = list(ChatRouterR1(router=router(DELEGATE, registry=ModelRegistry([model]))).stream("?"))
    assert "".join(chunk.text for chunk in chunks) == ("Lima " * 4).strip()
    result = router(DELEGATE, registry=ModelRegistry([model])).invoke(QUESTION)
    assert (result["answer"], result["routing"]["stop_reason"]) == (("Lima " * 4).strip(), "cut_off")


def test_routers_that_share_clients_keep_their_own_limit_of_a_reply() -> None:
    clients, writes = Clients(), Writes(pieces=["Lima " * 3] * 3)
    for limit in (20, 10):  # the reply's cut ends in a space, which is trimmed
        registry = ModelRegistry([ModelDescriptor(name="m", model=writes, price=1.0, max_reply_chars=limit)])
        made = router(DELEGATE, registry=registry, clients=clients)
        shown = "".join(chunk.text for chunk, _ in made.stream(QUESTION, stream_mode="messages"))
        assert len(shown) == limit - 1


def test_a_stream_of_many_pieces_is_read_in_linear_time() -> None:
    started = time.process_time()
    made = router(
        DELEGATE, registry=pool(m=Writes(pieces=["<think>", *["a "] * 10_000, "</think> Lima", *[" "] * 10_000]))
    )
    assert "".join(chunk.text for chunk, _ in made.stream(QUESTION, stream_mode="messages")) == "Lima"
    assert time.process_time() - started < 30


def test_a_chat_model_as_the_router_lets_a_model_answer_though_its_provider_leaves_out_the_stop_string() -> None:
    engine = ChatModelEngine(ScriptedChatModel([DELEGATE.removesuffix(" </answer>")]))
    made = create_router(engine, pool(m="from m"), answer="full", router_price="free")
    assert made.invoke(QUESTION)["answer"] == "from m"


def test_a_chat_model_as_the_router_may_speak_of_the_tag() -> None:
    turn = '<think> I could write <answer from="1"/> here. </think><answer> Own. </answer>'
    engine = ChatModelEngine(ScriptedChatModel([search("m: a?"), turn]))
    made = create_router(engine, pool(m="from m"), answer="full", router_price="free")
    assert made.invoke(QUESTION)["answer"] == "Own."


# The style, and what routed models see of the run


def test_the_style_decides_what_the_router_and_the_models_are_told() -> None:
    def told(style: Any) -> tuple[str, str]:
        model = ScriptedChatModel(["x"])
        made = create_router(ScriptedEngine([search("m: Peru?"), "<answer> y </answer>"]), pool(m=model), answer=style)
        prompt = made.invoke(QUESTION, output_keys=["transcript"])["transcript"][0]["text"]
        return prompt, model.calls[0][-1].text

    assert "as short as possible" in told("short")[0]
    assert told("short")[1] == "Answer briefly and on topic; say so if you cannot.\n\nPeru?"
    prompt, call = told("full")
    assert "as short as possible" not in prompt
    assert '<answer from="2"/>' in prompt
    assert call == "Peru?"
    with pytest.raises(ValueError, match="answer is 'long'; it must be 'short' or 'full'"):
        told("long")


CONVERSATION: Any = {
    "messages": [
        SystemMessage("Speak like a pirate."),
        HumanMessage("I am in Lima."),
        AIMessage("Ahoy!"),
        HumanMessage("What now?"),
    ]
}


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, ["human: Where?"]),
        ({"call_prompt": "Q {x}: {query}"}, ["human: Q {x}: Where?"]),
        ({"system": "Be kind."}, ["system: Be kind.", "human: Where?"]),
        ({"share_context": "system"}, ["system: Speak like a pirate.", "human: Where?"]),
        (
            {"share_context": "conversation", "system": "Be kind."},
            [
                "system: Be kind.\n\nSpeak like a pirate.",
                "human: I am in Lima.",
                "ai: Ahoy!",
                "human: What now?",
                "human: Where?",
            ],
        ),
    ],
)
@pytest.mark.parametrize("query", ["Where?", "What now?"])
def test_a_model_sees_of_the_run_what_its_descriptor_says(fields: Any, sent: list[str], query: str) -> None:
    model = ScriptedChatModel(["x"])
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0, **fields)])
    turns = [search(f"m: {query}"), "<think> x </think><answer> y </answer>"]
    router(*turns, registry=registry).invoke(CONVERSATION)
    expected = [line.replace("Where?", query) for line in sent]
    if query == "What now?" and fields.get("share_context") == "conversation":
        expected.pop()  # the question itself is not said twice
    assert [f"{message.type}: {message.text}" for message in model.calls[0]] == expected


def test_a_budget_counts_the_conversation_that_a_model_is_sent() -> None:
    long: Any = {"messages": [HumanMessage("x" * 100_000), AIMessage("y"), HumanMessage("Where?")]}
    for share, made_calls in (("none", ["ok"]), ("conversation", [])):  # not even the shortest question is paid for
        registry = ModelRegistry(
            [ModelDescriptor(name="m", model=ScriptedChatModel(["x"]), price=1.0, share_context=share)]
        )
        made = router(search("m: Where?"), "<think> x </think><answer> y </answer>", registry=registry)
        result = made.invoke(long, context=RouterContext(budget_usd=0.05))
        assert [call["status"] for call in result["routing"]["calls"]] == made_calls


def test_a_run_with_a_shared_conversation_goes_on_from_its_checkpoint() -> None:
    model = ScriptedChatModel(["x"])
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0, share_context="conversation")])
    turns = [search("m: Where?"), "<think> x </think><answer> y </answer>"]
    made = router(*turns, registry=registry, checkpointer=InMemorySaver(), interrupt_before=["route"])
    config: Any = {"configurable": {"thread_id": "1"}}
    made.invoke(CONVERSATION, config)
    assert made.invoke(None, config)["answer"] == "y"
    assert len(model.calls[0]) == 5


def test_a_call_prompt_without_a_place_for_the_query_is_refused() -> None:
    with pytest.raises(RegistryError, match=r"call_prompt: it must hold \{query\}"):
        ModelRegistry.from_dict({"models": {"m": {"model": "openai:x", "price": 1, "call_prompt": "Hello"}}})
