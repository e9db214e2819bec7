"""Test doubles for those who build on the router: a scripted router and a scripted chat model. No network, no weights.

engine = ScriptedEngine(["<think> ask </think><search> small: Capital of Peru? </search>",
                         "<think> good </think><answer> Lima </answer>"])
small = ScriptedChatModel(["Lima"])
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import override

from langgraph_router_r1.engines.base import ContextFullError, Generation, OnText, cut_after_stop
from langgraph_router_r1.engines.tokenizer import TokenEngine, Tokenizer
from langgraph_router_r1.protocol import encodable
from langgraph_router_r1.transcript import Segment, token_ids

Script = Iterable[str] | Callable[[Sequence[Segment]], str]


class ByteTokenizer:
    """A tokenizer whose tokens are the bytes of the text, so that every token can be checked by eye."""

    control_tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")

    def render(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[int]]:
        """Render as `role: content` lines."""
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "
        return text, self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Return the bytes of the text."""
        return list(text.encode())

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the start of the text, at most so many bytes long."""
        return text.encode()[:max_tokens].decode(errors="ignore")


class ScriptedEngine(TokenEngine):
    """Writes what it was told to: the given turns in order, or what a function makes of the transcript.

    Turns end at stop strings as real ones do. With a real tokenizer, a script makes transcripts to train on.

    Example:
        >>> engine = ScriptedEngine(["<answer> Lima </answer>"])
        >>> engine.generate([], stop=["</answer>"], max_tokens=100).segment["text"]
        '<answer> Lima </answer>'
    """

    def __init__(
        self,
        script: Script,
        *,
        model: str = "scripted",
        tokenizer: Tokenizer | None = None,
        context_tokens: int = 1_000_000,
        delay_s: float = 0.0,
        piece_chars: int = 4,
    ) -> None:
        """Keep the script; a function must be safe to call from several threads.

        When somebody listens, a turn comes in pieces of `piece_chars` characters, `delay_s` before each.
        """
        self.model = model
        self.tokenizer = tokenizer or ByteTokenizer()
        self.context_tokens = context_tokens
        self.delay_s = delay_s
        self.piece_chars = piece_chars
        self.prompts: list[list[int]] = []
        """The token ids of each prompt so far, for tests to look at."""
        if callable(script):
            self._write: Callable[[Sequence[Segment]], str] = script
        else:
            turns = iter(script)
            self._write = lambda _: next(turns, "")

    def generate(
        self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int, on_text: OnText | None = None
    ) -> Generation:
        """Write the next turn."""
        if on_text is None:
            if self.delay_s:
                time.sleep(self.delay_s)
            return self._next(transcript, stop, max_tokens)
        generation = self._next(transcript, stop, max_tokens)
        for piece in self._pieces(generation):
            time.sleep(self.delay_s)
            on_text(piece)
        return generation

    async def agenerate(
        self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int, on_text: OnText | None = None
    ) -> Generation:
        """Write the next turn."""
        if on_text is None:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            return self._next(transcript, stop, max_tokens)
        generation = self._next(transcript, stop, max_tokens)
        for piece in self._pieces(generation):
            await asyncio.sleep(self.delay_s)
            on_text(piece)
        return generation

    def _pieces(self, generation: Generation) -> list[str]:
        text = generation.segment["text"]
        return [text[start : start + self.piece_chars] for start in range(0, len(text), self.piece_chars)]

    def _next(self, transcript: Sequence[Segment], stop: Sequence[str], max_tokens: int) -> Generation:
        prompt = token_ids(transcript)
        if len(prompt) + max_tokens > self.context_tokens:
            msg = f"the router's context is full: {len(prompt)} + {max_tokens} tokens are over {self.context_tokens}"
            raise ContextFullError(msg)
        self.prompts.append(prompt)
        # What is no Unicode, no tokenizer could have sampled.
        whole = cut_after_stop(encodable(self._write(transcript)), stop)
        text = self.truncate(whole, max_tokens)
        ids = self.encode(text)
        return Generation(
            segment={
                "kind": "policy",
                "text": text,
                "token_ids": ids,
                "logprobs": [0.0] * len(ids),
                "policy": self.model,
            },
            usage={
                "prompt_tokens": len(prompt),
                "cached_tokens": 0,
                "completion_tokens": len(ids),
                "estimated": False,
            },
            finish="length" if len(text) < len(whole) else "stop",
        )


class ScriptedChatModel(BaseChatModel):
    """Replies what it was told to, in order, over and over; an exception in the script is raised.

    Each reply reports ten prompt tokens and one completion token for each word, or nothing with `usage=False`.

    Example:
        >>> ScriptedChatModel(["Lima"]).invoke("Capital of Peru?").content
        'Lima'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    script: list[Any] = Field(default_factory=list)
    usage: bool = True
    delay_s: float = 0.0
    calls: list[list[BaseMessage]] = Field(default_factory=list)
    """What it was asked so far, for tests to look at."""
    _next: int = PrivateAttr(default=0)

    def __init__(self, script: Iterable[str | AIMessage | Exception] = (), **fields: Any) -> None:
        """Keep the script."""
        super().__init__(**{"script": list(script), **fields})

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self.delay_s:
            time.sleep(self.delay_s)
        return self._reply(messages)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return self._reply(messages)

    @override
    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Offer tools; a tool call in the script is an `AIMessage` with `tool_calls`."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs)

    def _reply(self, messages: list[BaseMessage]) -> ChatResult:
        self.calls.append(messages)
        scripted = self.script[self._next % len(self.script)] if self.script else ""
        self._next += 1
        if isinstance(scripted, Exception):
            raise scripted
        reply = scripted.model_copy() if isinstance(scripted, AIMessage) else AIMessage(scripted)
        if self.usage and reply.usage_metadata is None:
            words = len(reply.text.split())
            reply.usage_metadata = {"input_tokens": 10, "output_tokens": words, "total_tokens": 10 + words}
        return ChatResult(generations=[ChatGeneration(message=reply)])
