"""A router served by vLLM: token ids out, token ids back, over HTTP."""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from langgraph_router_r1.engines.base import (
    ContextFullError,
    EngineError,
    EngineUnavailableError,
    Generation,
    UnknownPolicyError,
)
from langgraph_router_r1.engines.tokenizer import ChatTokenizer, TokenEngine
from langgraph_router_r1.transcript import Segment, token_ids


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
            timeout_s: Most seconds a turn may take.
            api_key: Key of the server, if it was started with one.
        """
        url = httpx.URL(base_url)
        if url.scheme not in {"http", "https"} or not url.host:
            shown = "an address with a password" if "@" in base_url else repr(base_url)
            msg = f"base_url is {shown}; it must be an address such as 'http://127.0.0.1:8000/v1'"
            raise ValueError(msg)
        self.base_url = str(url.copy_with(userinfo=b"")).rstrip("/")
        """The address, without a password that may stand in it: this is what messages and logs show."""
        self.model = model
        self.temperature = temperature
        self.seed = seed
        self.logprobs = logprobs
        self.timeout_s = timeout_s
        self._tokenizer_source = tokenizer
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._options: dict[str, Any] = {
            "headers": headers,
            "auth": (url.username, url.password) if url.userinfo else None,
            "timeout": httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)),
            # Every trajectory in flight holds a connection; vLLM does the queueing.
            # Idle ones are dropped before the server drops them, in mid-request, after five seconds.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=2.0),
        }
        self._client = httpx.Client(**self._options)
        # An engine that nobody closes, as inside a router that is simply dropped, leaves no open connection behind.
        weakref.finalize(self, self._client.close)
        # A connection belongs to the event loop it was opened in.
        self._async_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    @functools.cached_property
    def tokenizer(self) -> ChatTokenizer:  # type: ignore[override]
        """The served model's tokenizer, loaded when it is first needed."""
        source = self._tokenizer_source
        if isinstance(source, ChatTokenizer):
            return source
        return ChatTokenizer.load(source or self._served_source())

    async def aload(self) -> None:
        """See `RouterEngine.aload`."""
        if "tokenizer" not in vars(self):
            await asyncio.to_thread(lambda: self.tokenizer)

    def served_models(self) -> list[str]:
        """Return the names that the server serves.

        Raises:
            EngineError: The server can't be asked.
        """
        return [card["id"] for card in self._cards()]

    def generate(self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int) -> Generation:
        """See `RouterEngine.generate`."""
        body = self._body(transcript, stop, max_tokens)
        try:
            response = self._client.post(f"{self.base_url}/completions", json=body)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        return self._read(response)

    async def agenerate(self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int) -> Generation:
        """See `RouterEngine.agenerate`."""
        body = self._body(transcript, stop, max_tokens)
        loop = asyncio.get_running_loop()
        client = self._async_clients.get(loop)
        if client is None:
            client = self._async_clients[loop] = httpx.AsyncClient(**self._options)
        try:
            response = await client.post(f"{self.base_url}/completions", json=body)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        return self._read(response)

    def close(self) -> None:
        """Close the connections of synchronous use."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the connections of asynchronous use in this event loop."""
        client = self._async_clients.pop(asyncio.get_running_loop(), None)
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

    def _body(self, transcript: Sequence[Segment], stop: Sequence[str], max_tokens: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": token_ids(transcript),
            "max_tokens": max_tokens,
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
            **({"logprobs": 0} if self.logprobs else {}),
            **({"seed": self.seed} if self.seed is not None else {}),
        }

    def _read(self, response: httpx.Response) -> Generation:
        if response.is_error:
            raise self._refused(response)
        try:
            return self._generation(response.json())
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._no_vllm(error) from error

    def _generation(self, payload: dict[str, Any]) -> Generation:
        choice = payload["choices"][0]
        ids: list[int] = choice["token_ids"]
        segment: Segment = {
            "kind": "model",
            "text": self.tokenizer.decode(ids, skip_control=True),
            "token_ids": ids,
            "policy": self.model,
        }
        if self.logprobs:
            segment["logprobs"] = choice["logprobs"]["token_logprobs"]
        usage = payload["usage"]
        details: Mapping[str, Any] = usage.get("prompt_tokens_details") or {}
        return Generation(
            segment=segment,
            usage={
                "prompt_tokens": usage["prompt_tokens"],
                "cached_tokens": details.get("cached_tokens") or 0,
                "completion_tokens": usage["completion_tokens"],
                "estimated": False,
            },
            finish="length" if choice["finish_reason"] == "length" else "stop",
        )

    def _cards(self) -> list[dict[str, Any]]:
        try:
            response = self._client.get(f"{self.base_url}/models")
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        if response.is_error:
            raise self._refused(response)
        try:
            return [{"root": card["id"], **card} for card in response.json()["data"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._no_vllm(error) from error

    def _served_source(self) -> str:
        """Where the tokenizer is: the root of the served model, or of the base model behind an adapter."""
        cards = {card["id"]: card for card in self._cards()}
        if self.model not in cards:
            raise UnknownPolicyError(self._unknown(cards))
        card = cards[self.model]
        return str(cards.get(card.get("parent") or "", card)["root"])

    def _unavailable(self, error: httpx.HTTPError) -> EngineUnavailableError:
        why = f"gave no reply within {self.timeout_s:g} s" if isinstance(error, httpx.TimeoutException) else "is down"
        msg = f"the router's server at {self.base_url} {why} ({type(error).__name__})"
        return EngineUnavailableError(msg)

    def _no_vllm(self, error: Exception) -> EngineError:
        msg = f"{self.base_url} does not answer as vLLM does ({type(error).__name__}): is it one, and a recent one?"
        return EngineError(msg)

    def _unknown(self, served: Sequence[str] | Mapping[str, Any]) -> str:
        names = ", ".join(repr(name) for name in served)
        return f"the server at {self.base_url} does not serve {self.model!r}; it serves: {names}"

    def _refused(self, response: httpx.Response) -> EngineError:
        try:
            payload = response.json()
            detail = str(payload.get("error", payload).get("message", payload))
        except (ValueError, AttributeError):
            detail = response.text[:200]
        if response.status_code == 404 and "does not exist" in detail:
            return UnknownPolicyError(self._unknown(self.served_models()))
        if response.status_code == 400 and "context length" in detail:
            return ContextFullError(f"the router's context is full: {detail}")
        if response.status_code in (401, 403):
            return EngineError(f"the server at {self.base_url} refused the key ({response.status_code})")
        return EngineError(f"the server at {self.base_url} answered {response.status_code}: {detail}")
