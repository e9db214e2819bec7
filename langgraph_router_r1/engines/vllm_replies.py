"""What a vLLM server replies, held against what it was asked: it is not trusted, and its numbers are paid for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import from_json

from langgraph_router_r1.engines.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Asked:
    """What a turn was asked for, to hold the reply against."""

    prompt: list[int]
    max_tokens: int
    logprobs: bool
    tokenizer: ChatTokenizer


class Reply(BaseModel):
    """JSON from the server. The types are strict: `true` and `"1"` are no numbers, and NaN is none either."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


_Count = Annotated[int, Field(ge=0, lt=2**53)]
_TokenId = Annotated[int, Field(ge=0, lt=2**31)]
# vLLM computes (logit - greatest logit) - log(sum of exponentials), in float32: neither part is ever above 0.
_LogProb = Annotated[float, Field(le=0)]


class _CachedTokens(Reply):
    cached_tokens: _Count | None = None


class _Usage(Reply):
    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: _CachedTokens | None = None

    @property
    def cached_tokens(self) -> int:
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0


class _LogProbs(Reply):
    # FailFast: a list of a million wrong items makes one error, not a million.
    token_logprobs: Annotated[list[_LogProb], FailFast()]


class _Choice(Reply):
    token_ids: Annotated[list[_TokenId], FailFast(), Field(min_length=1)]
    logprobs: _LogProbs | None = None
    finish_reason: Literal["stop", "length"]


class Completion(Reply):
    """The reply to one turn. It is bought, recorded and trained on, so its numbers must fit what was asked."""

    choices: Annotated[list[_Choice], FailFast(), Field(min_length=1, max_length=1)]
    usage: _Usage

    @model_validator(mode="after")
    def _fits_what_was_asked(self, info: ValidationInfo) -> Self:
        asked = info.context
        assert isinstance(asked, Asked)
        [choice], usage = self.choices, self.usage
        sampled, sent = len(choice.token_ids), len(asked.prompt)
        if sampled > asked.max_tokens:
            raise ValueError(f"token_ids has {sampled} tokens, and at most {asked.max_tokens} were asked for")
        if unknown := [token for token in choice.token_ids if not asked.tokenizer.knows(token)]:
            raise ValueError(f"token_ids has {unknown[0]}, which the tokenizer does not know")
        if asked.logprobs and (choice.logprobs is None or len(choice.logprobs.token_logprobs) != sampled):
            found = 0 if choice.logprobs is None else len(choice.logprobs.token_logprobs)
            raise ValueError(f"logprobs has {found} values for {sampled} tokens")
        # The token that ends a turn is among the ids, and is counted.
        if usage.completion_tokens != sampled:
            raise ValueError(f"usage.completion_tokens is {usage.completion_tokens} for {sampled} tokens")
        if usage.prompt_tokens != sent:
            raise ValueError(f"usage.prompt_tokens is {usage.prompt_tokens} for a prompt of {sent} tokens")
        if usage.cached_tokens > sent:
            raise ValueError(f"usage has {usage.cached_tokens} cached tokens of a prompt of {sent}")
        return self


class _StreamedChoice(Reply):
    token_ids: Annotated[list[_TokenId], FailFast()] = []
    logprobs: _LogProbs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class _Event(Reply):
    """One event of a streamed completion: the next tokens, or the usage at the end."""

    choices: Annotated[list[_StreamedChoice], FailFast(), Field(max_length=1)] = []
    usage: _Usage | None = None


class CompletionStream:
    """Puts server-sent events together to the completion that they are, and tells of its text as it comes."""

    def __init__(self, asked: Asked, on_text: Callable[[str], None]) -> None:
        """Expect the completion of what was asked."""
        self._on_text, self._asked = on_text, asked
        self._decode = asked.tokenizer.decoder()
        self._line = bytearray()
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._finish_reason: str | None = None
        self._usage: _Usage | None = None
        self.failure = b""
        """The event with which the server broke off."""
        self.problem: ValidationError | None = None
        """Why an event can't be part of a completion; those after it are not read."""
        self.has_begun = False
        """Whether an event came: a server may ignore that a stream was asked for."""

    def feed(self, content: bytes) -> None:
        """Take the next bytes of the body."""
        *ended, rest = content.split(b"\n")
        for piece in ended:
            line, self._line = bytes(self._line + piece), bytearray()
            if line.startswith(b"data:") and (data := line.removeprefix(b"data:").strip()) != b"[DONE]":
                self._take(data)
        self._line += rest

    def completion(self) -> bytes:
        """Return all of it, as the server would have sent it at once."""
        choice = {
            "token_ids": self._token_ids,
            "logprobs": {"token_logprobs": self._logprobs} if self._asked.logprobs else None,
            "finish_reason": self._finish_reason,
        }
        usage = self._usage and self._usage.model_dump()
        return json.dumps({"choices": [choice], "usage": usage}).encode()

    def _take(self, data: bytes) -> None:
        self.has_begun = True
        if self.problem is not None:
            return
        if self.failure or data.startswith(b'{"error"'):
            self.failure = self.failure or data
            return
        try:
            event = _Event.model_validate_json(data)
        except ValidationError as error:
            self.problem = self.problem or error
            return
        self._usage = event.usage or self._usage
        for choice in event.choices:
            self._token_ids += choice.token_ids
            self._finish_reason = choice.finish_reason or self._finish_reason
            if choice.logprobs is not None:
                self._logprobs += choice.logprobs.token_logprobs
            known = [token for token in choice.token_ids if self._asked.tokenizer.knows(token)]
            if text := "".join(map(self._decode, known)):
                self._on_text(text)


_Name = Annotated[str, Field(max_length=1000)]


class Card(Reply):
    """A served model, as `/models` describes it."""

    id: _Name
    root: _Name | None = None
    parent: _Name | None = None


class Cards(Reply):
    """The served models."""

    data: Annotated[list[Card], FailFast()]


def message_of(content: bytes) -> str:
    """Return the message of an error reply, wherever in it this server's version puts it; else all of its text."""
    text = content.decode(errors="replace")
    try:
        payload = from_json(content)
    except ValueError:
        return text
    inner = payload.get("error", payload) if isinstance(payload, dict) else payload
    message = inner.get("message") if isinstance(inner, dict) else inner
    return message if isinstance(message, str) else text
