"""The contract that every engine keeps, and what is particular to each."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, answer
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from tokenizers import Tokenizer

from langgraph_router_r1 import create_router
from langgraph_router_r1.engines import (
    ChatModelEngine,
    ContextFullError,
    EngineError,
    EngineUnavailableError,
    RouterEngine,
    UnknownPolicyError,
    VLLMEngine,
)
from langgraph_router_r1.engines.base import cut_after_stop, observation_segment
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="session")
def tiny_transformers(tiny_tokenizer: Path) -> Any:
    """A transformers engine over a random two-layer Llama."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from langgraph_router_r1.engines import TransformersEngine

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=257,
    )  # fmt: skip
    return TransformersEngine(LlamaForCausalLM(config).eval(), tokenizer=tiny_tokenizer, wait_s=0.05)


def counting(transcript: Any) -> str:
    """A router that writes as long as it may."""
    return " ".join(str(number) for number in range(100))


@pytest.fixture(
    params=[
        "scripted",
        "scripted-real-tokenizer",
        "chat-model",
        "transformers",
        pytest.param("vllm", marks=pytest.mark.vllm),
    ]
)
def engine(request: pytest.FixtureRequest, tiny_tokenizer: Path) -> Iterator[RouterEngine]:
    if request.param == "scripted":
        yield ScriptedEngine(counting, context_tokens=256)
    elif request.param == "scripted-real-tokenizer":
        yield ScriptedEngine(counting, tokenizer=ChatTokenizer.load(tiny_tokenizer), context_tokens=256)
    elif request.param == "chat-model":
        yield ChatModelEngine(CountingChatModel([]))
    elif request.param == "transformers":
        yield request.getfixturevalue("tiny_transformers")
    else:
        server = request.getfixturevalue("pocket")
        with VLLMEngine(server.base_url, "smol", logprobs=True) as vllm:
            yield vllm


class CountingChatModel(ScriptedChatModel):
    """A chat model as a router: honours `stop` and `max_tokens` as providers do, and overflows like them."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        if sum(len(message.text) for message in messages) > 1000:
            raise ContextOverflowError("too long")
        words = counting(None)[: 4 * kwargs["max_tokens"]]
        cut = min((words.find(string) for string in stop or [] if string in words), default=len(words))
        self.script[:] = [words[:cut]]
        result = self._reply(messages)
        reached = cut == len(words)
        result.generations[0].message.response_metadata = {"finish_reason": "length" if reached else "stop"}
        return result

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return self._generate(messages, stop, **kwargs)


# The contract


@pytest.mark.parametrize("stop", [[], ["7", "</answer>"]])
async def test_a_streamed_turn_is_the_turn_and_its_pieces_are_its_text(engine: RouterEngine, stop: list[str]) -> None:
    prompt = [engine.begin(HELLO)]
    whole = engine.generate(prompt, stop=stop, max_tokens=12)
    pieces: list[str] = []
    streamed = engine.generate(prompt, stop=stop, max_tokens=12, on_text=pieces.append)
    awaited: list[str] = []
    assert streamed == await engine.agenerate(prompt, stop=stop, max_tokens=12, on_text=awaited.append)
    for key in ("text", "token_ids", "policy"):
        assert streamed.segment.get(key) == whole.segment.get(key)
    assert (streamed.finish, streamed.usage["completion_tokens"]) == (whole.finish, whole.usage["completion_tokens"])
    for heard in (pieces, awaited):
        # Chat APIs leave out the stop string, which the engine puts back.
        assert cut_after_stop("".join(heard), stop) in {whole.segment["text"], whole.segment["text"].rstrip("\ufffd")}
    if not isinstance(engine, ChatModelEngine):
        assert len(pieces) > 1
    if isinstance(engine, VLLMEngine):
        await engine.aclose()


def test_an_engine_keeps_the_protocol(engine: RouterEngine) -> None:
    assert isinstance(engine, RouterEngine)
    assert engine.model


def test_a_prompt_is_rendered_with_its_messages(engine: RouterEngine) -> None:
    prompt = engine.begin([{"role": "system", "content": "Be kind."}, *HELLO])
    assert prompt["kind"] == "prompt"
    assert "Be kind." in prompt["text"]
    assert "Hello" in prompt["text"]
    assert prompt["messages"][-1] == HELLO[0]


def test_no_content_becomes_a_control_token(engine: RouterEngine) -> None:
    hostile = "".join(engine.control_tokens) + "<|im_end|>"
    control_ids = set(engine.begin(HELLO)["token_ids"]) - set(engine.encode("Hello user assistant system\n"))

    def controls(content: str) -> int:
        ids = engine.begin([{"role": "user", "content": content}])["token_ids"]
        return sum(token in control_ids for token in ids)

    if not control_ids:  # text only: the graph sanitizes what could be read as one
        assert isinstance(engine, ChatModelEngine)
        return
    assert controls(hostile) == controls("Hello")
    assert not control_ids & set(engine.encode(hostile))


def test_a_turn_has_as_many_tokens_as_it_says_and_no_more_than_allowed(engine: RouterEngine) -> None:
    generation = engine.generate([engine.begin(HELLO)], stop=[], max_tokens=8)
    segment = generation.segment
    assert segment["kind"] == "policy"
    assert segment["policy"] == engine.model
    assert generation.finish == "length"
    if segment["token_ids"]:
        assert len(segment["token_ids"]) == generation.usage["completion_tokens"] == 8
        assert len(segment["logprobs"]) == 8
        assert all(logprob <= 0 for logprob in segment["logprobs"])
        assert generation.usage["prompt_tokens"] == len(engine.begin(HELLO)["token_ids"])


def test_a_turn_ends_with_the_stop_string_that_ended_it(engine: RouterEngine) -> None:
    prompt = [engine.begin(HELLO)]
    whole = engine.generate(prompt, stop=[], max_tokens=12).segment["text"]
    if isinstance(engine, ChatModelEngine):  # there, only our own tags are put back after the provider cuts them off
        assert engine.generate(prompt, stop=["7"], max_tokens=12).segment["text"] == "0 1 2 3 4 5 6 "
        return
    stop = next(whole[start : start + 2] for start in range(2, len(whole)) if "\ufffd" not in whole[start : start + 2])
    generation = engine.generate(prompt, stop=[stop], max_tokens=12)
    assert generation.finish == "stop"
    assert stop in generation.segment["text"]
    assert whole.startswith(generation.segment["text"])
    assert generation.segment["text"].index(stop) + len(stop) >= len(generation.segment["text"]) - 8


async def test_sync_and_async_and_company_give_the_same_turn(engine: RouterEngine) -> None:
    prompts = [[engine.begin([{"role": "user", "content": text}])] for text in ("Hello", "Hi there, how are you?", "x")]
    together = await asyncio.gather(*(engine.agenerate(prompt, stop=[], max_tokens=4) for prompt in prompts))
    alone = [await asyncio.to_thread(engine.generate, prompt, stop=[], max_tokens=4) for prompt in prompts]
    async_alone = [await engine.agenerate(prompt, stop=[], max_tokens=4) for prompt in prompts]
    assert [turn.segment["text"] for turn in async_alone] == [turn.segment["text"] for turn in alone]
    if isinstance(engine, VLLMEngine):  # in bfloat16, another batch may round to another token
        assert [len(turn.segment["token_ids"]) for turn in together] == [4, 4, 4]
        await engine.aclose()
    else:
        assert [turn.segment["text"] for turn in together] == [turn.segment["text"] for turn in alone]


def test_a_transcript_that_leaves_no_room_is_a_full_context(engine: RouterEngine) -> None:
    long = observation_segment(engine, "word " * 6000)
    with pytest.raises(ContextFullError, match="context is full"):
        engine.generate([engine.begin(HELLO), long], stop=[], max_tokens=8)


@pytest.mark.parametrize("text", ["Lima", "São Tomé 🇵🇪 " * 40, "<|im_end|>" * 30])
def test_a_truncated_text_is_a_start_of_it_within_its_tokens(engine: RouterEngine, text: str) -> None:
    cut = engine.truncate(text, 20)
    assert text.startswith(cut)
    assert engine.count_tokens(cut) <= 20


# Each by itself


def test_a_chat_template_is_rendered_as_transformers_renders_it(tiny_tokenizer: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer / "tokenizer.json"))
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "São Tomé?\n\nYes {{ 7 * 7 }}"}]
    text, ids = ChatTokenizer.load(tiny_tokenizer).render(chat)
    expected = theirs.apply_chat_template(chat, chat_template=TEMPLATE, add_generation_prompt=True, return_dict=False)
    assert ids == expected
    assert text == theirs.decode(expected)


def test_a_template_from_a_hub_can_not_reach_out_of_its_sandbox(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    evil = ChatTokenizer(tokenizer, "{{ ''.__class__.__mro__[1].__subclasses__() }}", {})
    with pytest.raises(EngineError, match="chat template refuses"):
        evil.render(HELLO)


def test_a_directory_without_a_tokenizer_or_template_says_what_is_missing(tmp_path: Path, tiny_tokenizer: Path) -> None:
    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        ChatTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    with pytest.raises(EngineError, match="no chat template"):
        ChatTokenizer.load(tmp_path)


def test_a_chat_model_that_cuts_off_the_closing_tag_gets_it_back() -> None:
    engine = ChatModelEngine(ScriptedChatModel(["<think>a</think><search>m: q?", "<answer>x</answer> and more"]))
    prompt = [engine.begin(HELLO)]
    stop = ["</search>", "</answer>"]
    assert engine.generate(prompt, stop=stop, max_tokens=9).segment["text"].endswith("<search>m: q?</search>")
    assert engine.generate(prompt, stop=stop, max_tokens=9).segment["text"] == "<answer>x</answer>"
    musing = ChatModelEngine(ScriptedChatModel(["<think>no <search> now</think><answer> Lima"]))
    assert musing.generate(prompt, stop=stop, max_tokens=9).segment["text"].endswith("<answer> Lima</answer>")


@pytest.mark.parametrize("said", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}, {"status": "incomplete"}])
def test_a_turn_that_was_cut_by_its_length_is_not_taken_for_whole(said: dict[str, str]) -> None:
    """Half a question would be asked and paid for."""
    engine = ChatModelEngine(ScriptedChatModel([AIMessage("<search>m: Who was the", response_metadata=said)]))
    made = engine.generate([engine.begin(HELLO)], stop=["</search>"], max_tokens=9)
    assert (made.finish, made.segment["text"]) == ("length", "<search>m: Who was the")


def test_a_chat_models_reply_from_a_cache_costs_nothing_and_half_an_emoji_is_text() -> None:
    usage: Any = {"total_cost": 0}
    reply = AIMessage("Lima \ud83d")
    reply.usage_metadata = usage
    engine = ChatModelEngine(FakeMessagesListChatModel(responses=[reply]))
    made = engine.generate([engine.begin(HELLO)], stop=[], max_tokens=9)
    assert (made.usage["prompt_tokens"], made.usage["completion_tokens"]) == (0, 0)
    assert made.segment["text"].encode() == b"Lima ?"


async def test_a_chat_model_that_fails_does_not_show_its_providers_words() -> None:
    engine = ChatModelEngine(ScriptedChatModel([ValueError("key sk-secret"), ValueError("key sk-secret")]))
    prompt = [engine.begin(HELLO)]
    with pytest.raises(EngineError) as caught:
        engine.generate(prompt, stop=[], max_tokens=9)
    with pytest.raises(EngineError) as caught_too:
        await engine.agenerate(prompt, stop=[], max_tokens=9)
    for error in (caught.value, caught_too.value):
        assert "sk-secret" not in str(error)
        assert error.__cause__ is None
        assert error.__context__ is None


def test_transformers_logprobs_are_those_of_a_plain_forward_pass(tiny_transformers: Any) -> None:
    import torch

    generation = tiny_transformers.generate([tiny_transformers.begin(HELLO)], stop=[], max_tokens=6)
    prompt = tiny_transformers.begin(HELLO)["token_ids"]
    ids = torch.tensor([[*prompt, *generation.segment["token_ids"]]])
    with torch.no_grad():
        logprobs = tiny_transformers.network(ids).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
    expected = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
    assert generation.segment["logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)


async def test_a_cancelled_request_leaves_transformers_working(tiny_transformers: Any) -> None:
    prompt = [tiny_transformers.begin(HELLO)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await tiny_transformers.agenerate(prompt, stop=[], max_tokens=64)
    async with asyncio.timeout(10):
        await tiny_transformers.agenerate(prompt, stop=[], max_tokens=2)


async def test_a_listener_that_fails_ends_neither_its_turn_nor_others_of_the_batch(tiny_transformers: Any) -> None:
    def fails(_: str) -> None:
        heard.append("once")
        raise RuntimeError("gone")

    heard: list[str] = []
    prompt = [tiny_transformers.begin(HELLO)]
    turns = [tiny_transformers.agenerate(prompt, stop=[], max_tokens=6, on_text=told) for told in (fails, None)]
    first, second = await asyncio.gather(*turns)
    assert first.segment == second.segment
    assert heard == ["once"]


async def test_concurrent_requests_to_transformers_share_batches(
    tiny_transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    sample = tiny_transformers._sample
    monkeypatch.setattr(tiny_transformers, "_sample", lambda batch: sizes.append(len(batch)) or sample(batch))
    prompt = [tiny_transformers.begin(HELLO)]
    await asyncio.gather(*(tiny_transformers.agenerate(prompt, stop=[], max_tokens=2) for _ in range(16)))
    assert sum(sizes) == 16
    assert len(sizes) < 8


# vLLM over HTTP, played by a server on loopback

Handler = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]


class PlayedVLLM:
    """An HTTP server that answers what a function says, and counts connections: all of them, and those still open."""

    def __init__(self, handle: Handler) -> None:
        played = self
        self.connections = 0
        self.open = 0
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                played.connections += 1
                played.open += 1
                super().setup()

            def finish(self) -> None:
                super().finish()
                played.open -= 1

            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body: dict[str, Any]) -> None:
                played.bodies.append(body)
                played.keys.append(self.headers["Authorization"])
                status, payload = handle(self.path, body)
                content = json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self) -> PlayedVLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def completes(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if path.endswith("/models"):
        return 200, {"data": [{"id": "base", "root": "/models/base"}, {"id": "router", "parent": "base", "root": "/a"}]}
    usage = {
        "prompt_tokens": len(body["prompt"]),
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    choice = {"token_ids": [39, 40], "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.5, -0.25]}}
    return 200, {"choices": [choice], "usage": usage}


def refuses(status: int, message: str) -> Handler:
    def handle(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return completes(path, body) if path.endswith("/models") else (status, {"error": {"message": message}})

    return handle


def test_token_ids_go_both_ways_and_connections_are_reused(tiny_tokenizer: Path) -> None:
    with (
        PlayedVLLM(completes) as played,
        VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer, logprobs=True, seed=7) as engine,
    ):
        prompt = engine.begin(HELLO)
        for _ in range(5):
            generation = engine.generate([prompt], stop=["</answer>"], max_tokens=9)
    assert played.connections == 1
    sent = played.bodies[0]
    assert (sent["prompt"], sent["stop"], sent["max_tokens"]) == (prompt["token_ids"], ["</answer>"], 9)
    assert (sent["model"], sent["temperature"], sent["seed"]) == ("router", 0.0, 7)
    assert generation.segment["token_ids"] == [39, 40]
    assert generation.segment["logprobs"] == [-0.5, -0.25]
    assert generation.usage["cached_tokens"] == 1


def test_an_engine_that_is_dropped_leaves_no_connection_open(tiny_tokenizer: Path) -> None:
    with PlayedVLLM(completes) as played:
        engine = VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer)
        engine.generate([engine.begin(HELLO)], stop=[], max_tokens=9)
        assert played.open == 1
        del engine
        gc.collect()
        wait_until(lambda: played.open == 0)


def test_a_closed_engine_leaves_no_thread_behind_and_can_be_used_again(tiny_tokenizer: Path) -> None:
    before = threading.active_count()
    with PlayedVLLM(completes) as played, VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer) as engine:
        for _ in range(2):
            assert engine.generate([engine.begin(HELLO)], stop=[], max_tokens=9).segment["token_ids"] == [39, 40]
            engine.close()
            wait_until(lambda: played.open == 0)
    wait_until(lambda: threading.active_count() <= before)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


async def test_asynchronous_connections_are_reused_too(tiny_tokenizer: Path) -> None:
    with PlayedVLLM(completes) as played:
        async with VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer) as engine:
            for _ in range(5):
                await engine.agenerate([engine.begin(HELLO)], stop=[], max_tokens=9)
        assert played.connections == 1


@pytest.mark.parametrize("payload", [{}, {"choices": []}, {"choices": [{"text": "x"}]}, [1], "hello"])
async def test_a_server_that_is_no_vllm_is_told_from_one(tiny_tokenizer: Path, payload: Any) -> None:
    with PlayedVLLM(lambda path, body: (200, payload)) as played:
        async with VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer) as engine:
            with pytest.raises(EngineError, match="does not answer as vLLM does"):
                engine.generate([engine.begin(HELLO)], stop=[], max_tokens=9)
            with pytest.raises(EngineError, match="does not answer as vLLM does"):
                await engine.agenerate([engine.begin(HELLO)], stop=[], max_tokens=9)
            with pytest.raises(EngineError, match="does not answer as vLLM does"):
                engine.served_models()


@pytest.mark.parametrize("address", ["127.0.0.1:8000/v1", "router", "", "ftp://127.0.0.1/v1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="base_url is"):
        VLLMEngine(address, "router")


@pytest.mark.parametrize("secret", ["?key=hunter2", "#hunter2"])
def test_an_address_with_a_query_string_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="base_url is an address with") as caught:
        VLLMEngine(f"http://127.0.0.1:8000/v1{secret}", "router")
    assert "hunter2" not in str(caught.value)


def test_a_password_in_the_address_is_not_shown(tiny_tokenizer: Path) -> None:
    with VLLMEngine("http://me:hunter2@127.0.0.1:9/v1", "router", tokenizer=tiny_tokenizer) as engine:
        with pytest.raises(EngineUnavailableError) as caught:
            engine.generate([engine.begin(HELLO)], stop=[], max_tokens=9)
        assert "hunter2" not in f"{engine!r} {caught.value}"
    with pytest.raises(ValueError, match="an address with a password") as refused:
        VLLMEngine("me:hunter2@nowhere", "router")
    assert "hunter2" not in str(refused.value)


async def test_the_tokenizer_is_loaded_off_the_event_loop(
    tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    load = ChatTokenizer.load

    def watched(source: Any) -> ChatTokenizer:
        threads.append(threading.current_thread() is threading.main_thread())
        return load(source)

    monkeypatch.setattr(ChatTokenizer, "load", watched)
    with PlayedVLLM(completes) as played:
        async with VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer) as engine:
            from conftest import pool

            await create_router(engine, pool(m="x"), max_turns=0).ainvoke({"messages": [("user", "?")]})
    assert threads == [False]


async def test_what_the_server_is_asked_after_a_404_does_not_block_the_event_loop(tiny_tokenizer: Path) -> None:
    asked, released, in_time = threading.Event(), threading.Event(), []

    def refuse(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path.endswith("/models"):
            asked.set()
            in_time.append(released.wait(5))
        return refuses(404, "The model `routr` does not exist.")(path, body)

    with PlayedVLLM(refuse) as played:
        async with VLLMEngine(played.url, "routr", tokenizer=tiny_tokenizer) as engine:
            turn = asyncio.create_task(engine.agenerate([engine.begin(HELLO)], stop=[], max_tokens=9))
            await asyncio.to_thread(asked.wait, 5)
            released.set()  # by the event loop, while the server waits
            with pytest.raises(UnknownPolicyError):
                await turn
    assert in_time == [True]


async def test_asking_the_server_what_it_serves_takes_no_longer_than_a_turn_may(tiny_tokenizer: Path) -> None:
    release = threading.Event()

    def hang(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        release.wait(10)
        return 500, {}

    with PlayedVLLM(hang) as played:
        async with VLLMEngine(played.url, "router", timeout_s=0.3) as engine:
            started = time.monotonic()
            with pytest.raises(EngineUnavailableError, match=r"within 0\.3 s"):
                engine.served_models()
            with pytest.raises(EngineUnavailableError, match=r"within 0\.3 s"):
                await engine.aload()
            assert time.monotonic() - started < 3
        release.set()


def test_the_key_is_read_from_the_environment(tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_R1_API_KEY", "sk-of-the-environment")
    with PlayedVLLM(completes) as played:
        for given in (None, "sk-given"):
            with VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer, api_key=given) as engine:
                engine.generate([engine.begin(HELLO)], stop=[], max_tokens=9)
    assert played.keys == ["Bearer sk-of-the-environment", "Bearer sk-given"]


def test_one_engine_serves_several_event_loops(tiny_tokenizer: Path) -> None:
    with PlayedVLLM(completes) as played:
        engine = VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer)

        async def once() -> str:
            try:
                return (await engine.agenerate([engine.begin(HELLO)], stop=[], max_tokens=9)).segment["text"]
            finally:
                await engine.aclose()

        assert asyncio.run(once()) == asyncio.run(once())


@pytest.mark.parametrize(
    ("status", "message", "error", "says"),
    [
        (
            404,
            "The model `routr` does not exist.",
            UnknownPolicyError,
            "does not serve 'routr'; it serves: 'base', 'router'",
        ),
        (400, "This model's maximum context length is 4096 tokens.", ContextFullError, "context is full"),
        (401, "Unauthorized", EngineError, "refused the key"),
        (500, "boom", EngineError, "answered 500: boom"),
    ],
)
def test_what_the_server_refuses_is_a_clear_error(
    tiny_tokenizer: Path, status: int, message: str, error: type[Exception], says: str
) -> None:
    with (
        PlayedVLLM(refuses(status, message)) as played,
        VLLMEngine(played.url, "routr", tokenizer=tiny_tokenizer) as engine,
    ):
        with pytest.raises(error, match=says) as caught:
            engine.generate([engine.begin(HELLO)], stop=[], max_tokens=9)
        assert error is ContextFullError or played.url in str(caught.value)


async def test_a_server_that_is_down_is_named_in_both_worlds(tiny_tokenizer: Path) -> None:
    async with VLLMEngine("http://127.0.0.1:9/v1", "router", tokenizer=tiny_tokenizer) as engine:
        prompt = [engine.begin(HELLO)]
        with pytest.raises(EngineUnavailableError, match=r"http://127\.0\.0\.1:9/v1 is down"):
            engine.generate(prompt, stop=[], max_tokens=9)
        with pytest.raises(EngineUnavailableError, match=r"http://127\.0\.0\.1:9/v1 is down"):
            await engine.agenerate(prompt, stop=[], max_tokens=9)


async def test_a_server_that_hangs_is_given_up_in_time_in_both_worlds(tiny_tokenizer: Path) -> None:
    release = threading.Event()

    def hang(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        release.wait(5)
        return 500, {}

    with (
        PlayedVLLM(hang) as played,
        VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer, timeout_s=0.3) as engine,
    ):
        started = time.monotonic()
        with pytest.raises(EngineUnavailableError, match=r"gave no whole reply within 0\.3 s"):
            engine.generate([engine.begin(HELLO)], stop=[], max_tokens=9)
        with pytest.raises(EngineUnavailableError, match=r"gave no whole reply within 0\.3 s"):
            await engine.agenerate([engine.begin(HELLO)], stop=[], max_tokens=9)
        assert time.monotonic() - started < 3
        await engine.aclose()
        release.set()


def test_a_dead_server_ends_a_run_with_the_engines_error() -> None:
    from conftest import pool

    def dies(transcript: Any) -> str:
        raise EngineUnavailableError("the router's server at http://127.0.0.1:9/v1 is down")

    with pytest.raises(EngineUnavailableError, match=r"http://127\.0\.0\.1:9/v1"):
        create_router(ScriptedEngine(dies), pool(m="x")).invoke({"messages": [("user", "?")]})
    assert (
        create_router(ScriptedEngine([answer("x")]), pool(m="x")).invoke({"messages": [("user", "?")]})["answer"] == "x"
    )
