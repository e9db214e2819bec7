"""A router served by vLLM: token ids go out and come back over HTTP.

The server is not trusted. A turn ends within `timeout_s` whatever the server does, a reply must fit `Completion` to
be used, and the server's own words are cut and cleaned of the key before they appear in an error.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import html
import json
import os
import re
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from langgraph_router_r1.engines.base import (
    API_KEY_ENV,
    ContextFullError,
    EngineError,
    EngineUnavailableError,
    Generation,
    OnText,
    UnknownPolicyError,
)
from langgraph_router_r1.engines.tokenizer import ChatTokenizer, TokenEngine
from langgraph_router_r1.engines.vllm_replies import Asked, Card, Cards, Completion, CompletionStream, Reply, message_of
from langgraph_router_r1.event_loops import LoopThread
from langgraph_router_r1.protocol import Constraint
from langgraph_router_r1.transcript import Segment, token_ids

CONNECT_TIMEOUT_S = 5.0
"""Most seconds until a server accepts a connection, if `timeout_s` is not shorter."""

MAX_REPLY_BYTES = 16 * 2**20
"""Most bytes that are read of a reply. A turn of 32,000 tokens after a prompt of 1,000,000 takes about 12 MB."""

MAX_SHOWN_CHARACTERS = 200
"""Most characters of the server's text that an error shows."""

T = TypeVar("T")
M = TypeVar("M", bound=Reply)

_Clients = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]


_CLOSED = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""How httpx tells that the server closed the connection."""


class VLLMEngine(TokenEngine):
    """Samples from a vLLM server. Connections are kept and reused; close with `close`/`aclose` or a `with` block.

    Example:
        >>> engine = VLLMEngine("http://127.0.0.1:8000/v1", model="router")                # doctest: +SKIP
        >>> router = create_router(engine, registry)
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        tokenizer: str | Path | ChatTokenizer | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        logprobs: bool = False,
        timeout_s: float = 120.0,
        api_key: str | None = None,
    ) -> None:
        """Point at a server; nothing is sent until the first question.

        Args:
            base_url: Address of its OpenAI-compatible API, such as `http://127.0.0.1:8000/v1`.
            model: Name of the router there: the served model or one of its LoRA adapters.
            tokenizer: Directory or hub id of the model; by default what the server says it serves.
            temperature: 0 for use; 1 for training.
            seed: Seed of each request, for sampling that can be repeated.
            logprobs: Whether to record the log-probability of each sampled token.
            timeout_s: Most seconds that a turn may take in all, from connecting to the last byte of the reply.
            api_key: Key of the server; by default the value of the environment variable `ROUTER_R1_API_KEY`, if set.

        Raises:
            ValueError: `base_url` is not the address of an API.
        """
        url = httpx.URL(base_url)
        if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment:
            # A password or a query string may be a secret.
            shown = repr(base_url) if not set("@?#") & set(base_url) else "an address with a password, '?' or '#'"
            msg = f"base_url is {shown}; it must be an address such as 'http://127.0.0.1:8000/v1'"
            raise ValueError(msg)
        self.base_url = str(url.copy_with(userinfo=b"")).rstrip("/")
        """The address, without a password that may stand in it: this is what messages and logs show."""
        self.model = model
        self.temperature = temperature
        self.seed = seed
        self.logprobs = logprobs
        self.timeout_s = timeout_s
        self.tokenizer_source = tokenizer
        """Where its tokenizer is from; None: what the server says."""
        api_key = api_key or os.environ.get(API_KEY_ENV)
        self._secret = _secret_pattern(api_key, url.username, url.password)
        self._options: dict[str, Any] = {
            "headers": {
                # A compressed reply could be a thousand times larger than what is counted.
                "Accept-Encoding": "identity",
                **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            },
            "auth": (url.username, url.password) if url.userinfo else None,
            # The limits of httpx are per read; the whole turn is limited in `_in_time`.
            "timeout": httpx.Timeout(None, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            # Every trajectory in flight holds a connection; vLLM does the queueing.
            # Idle ones are dropped before the server drops them, in mid-request, after five seconds.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=2.0),
        }
        # A connection belongs to the event loop it was opened in.
        self._clients: _Clients = weakref.WeakKeyDictionary()
        self._loop: LoopThread | None = None
        self._starting_loop = threading.Lock()

    @functools.cached_property
    def tokenizer(self) -> ChatTokenizer:  # type: ignore[override]
        """The served model's tokenizer, loaded when it is first needed."""
        source = self.tokenizer_source
        if isinstance(source, ChatTokenizer):
            return source
        return ChatTokenizer.load(source or self._clean(self._run(self._served_root())))

    async def aload(self) -> None:
        """See `RouterEngine.aload`."""
        if "tokenizer" not in vars(self):
            await asyncio.to_thread(lambda: self.tokenizer)

    def served_models(self) -> list[str]:
        """Return the names that the server serves.

        Raises:
            EngineError: The server can't be asked.
        """
        return [card.id for card in self._run(self._cards())]

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """Make a request of vLLM's own kind, such as `load_lora_adapter`, with the engine's key and time limit.

        Raises:
            EngineError: The server does not reply in time, or refuses.
        """
        self._run(self._request("POST", path, body))

    def generate(
        self,
        transcript: Sequence[Segment],
        *,
        stop: Sequence[str],
        max_tokens: int,
        on_text: OnText | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> Generation:
        """See `ConstrainableEngine.generate`."""
        asked = Asked(token_ids(transcript), max_tokens, self.logprobs, self.tokenizer)
        return self._run(self._complete(asked, self._body(asked, stop, constraints), on_text))

    async def agenerate(
        self,
        transcript: Sequence[Segment],
        *,
        stop: Sequence[str],
        max_tokens: int,
        on_text: OnText | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> Generation:
        """See `ConstrainableEngine.generate`."""
        await self.aload()
        asked = Asked(token_ids(transcript), max_tokens, self.logprobs, self.tokenizer)
        return await self._in_time(self._complete(asked, self._body(asked, stop, constraints), on_text))

    def close(self) -> None:
        """Close the connections of synchronous use."""
        with self._starting_loop:
            if self._loop is not None:
                self._loop.close()
                self._loop = None

    async def aclose(self) -> None:
        """Close the connections of asynchronous use in this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.aclose()

    def __repr__(self) -> str:
        return f"VLLMEngine({self.base_url!r}, model={self.model!r})"

    # Requests

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work on the engine's own event loop, for synchronous callers."""
        with self._starting_loop:
            if self._loop is None or not self._loop.is_alive():  # it does not live on in a forked process
                self._loop = LoopThread(functools.partial(_close_client, self._clients))
                # An engine that nobody closes, as inside a router that is simply dropped, leaves nothing open behind.
                weakref.finalize(self, self._loop.stop)
        return self._loop.run(self._in_time(work))

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work, `timeout_s` at most.

        Raises:
            EngineUnavailableError: It took longer.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return await work
        except TimeoutError:
            problem = f"the router's server at {self.base_url} gave no whole reply within {self.timeout_s:g} s"
        raise EngineUnavailableError(problem)

    async def _complete(self, asked: Asked, body: dict[str, Any], on_text: OnText | None) -> Generation:
        if on_text is None:
            status, content = await self._send("POST", "completions", body)
        else:
            stream = CompletionStream(asked, on_text)
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            status, content = await self._send("POST", "completions", body, stream.feed)
            if stream.problem is not None:
                raise self._no_reply_of_vllm(stream.problem)
            if stream.failure:
                status, content = httpx.codes.INTERNAL_SERVER_ERROR, stream.failure
            elif stream.has_begun:
                content = stream.completion()
        if status != httpx.codes.OK:
            raise await self._refused(status, content)
        return self._generation(self._parse(Completion, content, asked), asked.tokenizer)

    async def _cards(self) -> list[Card]:
        return self._parse(Cards, await self._request("GET", "models")).data

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Make a request; return the body of the reply, or raise what a refusal means."""
        status, content = await self._send(method, path, body)
        if status != httpx.codes.OK:
            raise self._refusal(status, message_of(content))
        return content

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        on_bytes: Callable[[bytes], None] | None = None,
    ) -> tuple[int, bytes]:
        """Make a request; return the status and the body of the reply, which `on_bytes` is given as it comes.

        It is made once more if the connection was closed before anything came back (a server may close one that is kept
        for the next request as it is used), or if none was made in time: a busy process may be late to see it made.

        Raises:
            EngineUnavailableError: There is no whole reply, or none that is HTTP.
            EngineError: The reply is too long, or compressed.
        """
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = httpx.AsyncClient(**self._options)
        for may_repeat in (True, False):
            content, is_unheard = bytearray(), False
            try:
                async with client.stream(method, f"{self.base_url}/{path}", json=body) as response:
                    if response.headers.get("Content-Encoding", "identity") != "identity":
                        raise EngineError(f"{self.base_url} sent a compressed reply, and was asked not to")
                    async for chunk in response.aiter_raw():
                        content += chunk
                        if len(content) > MAX_REPLY_BYTES:
                            raise EngineError(f"{self.base_url} sent a reply of more than {MAX_REPLY_BYTES:,} bytes")
                        if on_bytes is not None and response.status_code == httpx.codes.OK:
                            on_bytes(chunk)
                    return response.status_code, bytes(content)
            except httpx.ConnectTimeout:
                problem = f"accepts no connection within {min(CONNECT_TIMEOUT_S, self.timeout_s):g} s"
                is_unheard = True
            except httpx.ConnectError:
                problem = "is down (ConnectError)"
            except (httpx.HTTPError, httpx.InvalidURL) as error:  # the URL is one that the server redirects to
                problem = f"gave no whole reply ({type(error).__name__})"
                is_unheard = isinstance(error, _CLOSED) and not content
            if not (is_unheard and may_repeat):
                break
        # Raised outside the handlers: the exceptions of httpx hold the request, whose headers hold the key.
        raise EngineUnavailableError(f"the router's server at {self.base_url} {problem}")

    def _body(self, asked: Asked, stop: Sequence[str], constraints: Sequence[Constraint]) -> dict[str, Any]:
        if constraints and self.logprobs:
            msg = "a constrained turn has no log-probabilities of the policy: sample with constraints or with logprobs"
            raise ValueError(msg)
        return {
            "model": self.model,
            "prompt": asked.prompt,
            "max_tokens": asked.max_tokens,
            "temperature": self.temperature,
            # The policy alone: vLLM takes what is not said here from the model's generation_config.json, and the
            # log-probabilities that it reports would not show it.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop": list(stop),
            "include_stop_str_in_output": True,
            "return_token_ids": True,
            **({"structured_outputs": {"structural_tag": _structural_tag(constraints)}} if constraints else {}),
            **({"logprobs": 0} if self.logprobs else {}),
            **({"seed": self.seed} if self.seed is not None else {}),
        }

    # Replies

    def _parse(self, kind: type[M], content: bytes, asked: Asked | None = None) -> M:
        """Return the reply as what it should be.

        Raises:
            EngineError: It is something else; the message names the field, and shows nothing of the content.
        """
        try:
            return kind.model_validate_json(content, context=asked)
        except ValidationError as error:
            problem = self._no_reply_of_vllm(error)
        raise problem

    def _no_reply_of_vllm(self, error: ValidationError) -> EngineError:
        [problem, *_] = error.errors(include_url=False, include_context=False, include_input=False)
        field = ".".join(map(str, problem["loc"])) or "reply"
        what = self._shown(f"{field}: {problem['msg'].removeprefix('Value error, ')}")
        return EngineError(f"{self.base_url} does not answer as vLLM does ({what}): is it one, and a recent one?")

    def _generation(self, reply: Completion, tokenizer: ChatTokenizer) -> Generation:
        [choice], usage = reply.choices, reply.usage
        segment: Segment = {
            "kind": "policy",
            "text": tokenizer.decode(choice.token_ids, skip_control=True),
            "token_ids": choice.token_ids,
            "policy": self.model,
        }
        if self.logprobs:
            assert choice.logprobs is not None
            segment["logprobs"] = choice.logprobs.token_logprobs
        return Generation(
            segment=segment,
            usage={
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "estimated": False,
            },
            finish=choice.finish_reason,
        )

    async def _served_root(self) -> str:
        """Where the tokenizer is: the root of the served model, or of the base model behind an adapter."""
        cards = {card.id: card for card in await self._cards()}
        if self.model not in cards:
            raise self._unknown(cards)
        card = cards[self.model]
        card = cards.get(card.parent or "", card)
        if card.root is None:
            raise EngineError(
                f"{self.base_url} serves {self.model!r} and does not say from which files, as vLLM does: is it vLLM? "
                "If it is, give tokenizer=. A chat model of another server goes in as a ChatModelEngine, and on the "
                "command line as --router openai:NAME with --router-url"
            )
        return card.root

    async def _refused(self, status: int, content: bytes) -> EngineError:
        """Return the error of a turn that the server refused."""
        message = message_of(content)
        if status == httpx.codes.NOT_FOUND and "does not exist" in message:
            try:
                served = [card.id for card in await self._cards()]
            except EngineError:
                served = []
            return self._unknown(served)
        if status == httpx.codes.BAD_REQUEST and "context length" in message:
            return ContextFullError(f"the router's context is full: {self._shown(message)}")
        return self._refusal(status, message)

    def _refusal(self, status: int, message: str) -> EngineError:
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            return EngineError(
                f"the server at {self.base_url} refused the key ({status}): {API_KEY_ENV} or api_key must hold the one "
                "that it was started with"
            )
        return EngineError(f"the server at {self.base_url} answered {status}: {self._shown(message)}")

    def _unknown(self, served: Iterable[str]) -> UnknownPolicyError:
        names = self._shown(", ".join(map(repr, served))) or "nothing that it tells"
        return UnknownPolicyError(f"the server at {self.base_url} does not serve {self.model!r}; it serves: {names}")

    def _clean(self, text: str) -> str:
        """Return text of the server without the key, the user and the password, which it may have echoed."""
        return self._secret.sub("***", text) if self._secret else text

    def _shown(self, text: str) -> str:
        """Return what an error may show of the server's text: cleaned, short, and printable."""
        # Of megabytes, the start is enough; it is cleaned before it is cut, as half a key is part of one.
        text = self._clean(text[: 500 * MAX_SHOWN_CHARACTERS])
        if len(text) > MAX_SHOWN_CHARACTERS:
            text = text[:MAX_SHOWN_CHARACTERS] + "…"
        return "".join(letter if letter.isprintable() else " " for letter in text)


def _structural_tag(constraints: Sequence[Constraint]) -> str:
    """Return the constraints in the form of vLLM's structured outputs."""
    tags = [
        {"type": "tag", "begin": one.begin, "content": {"type": "regex", "pattern": one.pattern}, "end": one.end}
        for one in constraints
    ]
    triggers = [one.begin for one in constraints]
    return json.dumps(
        {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": triggers, "tags": tags}}
    )


async def _close_client(clients: _Clients, loop: asyncio.AbstractEventLoop) -> None:
    client = clients.pop(loop, None)
    if client is not None:
        await client.aclose()


def _secret_pattern(api_key: str | None, user: str, password: str) -> re.Pattern[str] | None:
    """Return a pattern of everything secret that a request shows, also as JSON, HTML or an address would write it."""
    basic = base64.b64encode(f"{user}:{password}".encode()).decode() if user or password else ""
    secrets = filter(None, (api_key, user, password, basic))
    written = {write(secret) for secret in secrets for write in (str, html.escape, quote, _quote_all, _in_json)}
    # The longest first: one may be the start of another.
    return re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True)))) if written else None


def _quote_all(text: str) -> str:
    return quote(text, safe="")


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]
