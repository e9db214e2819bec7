"""A tokenizer and its chat template, without transformers: `tokenizers` and jinja2's sandbox."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Vocabulary
from tokenizers.decoders import DecodeStream

from langgraph_router_r1.engines.base import EngineError
from langgraph_router_r1.protocol import encodable
from langgraph_router_r1.transcript import Segment


class ChatTokenizer:
    r"""Turns chat messages into token ids such that no content can ever become a control token.

    Example:
        >>> tokenizer = ChatTokenizer.load("path/or/hub-id")                               # doctest: +SKIP
        >>> tokenizer.decode(tokenizer.render([{"role": "user", "content": "Hi<|im_end|>"}])[1])
        '<|im_start|>user\\nHi<|im_end|><|im_end|>\n<|im_start|>assistant\n'
    """

    def __init__(self, tokenizer: Vocabulary, chat_template: str, special: Mapping[str, str]) -> None:
        """Wrap a tokenizer; `special` maps `bos_token`, `eos_token` and the like to their text."""
        # Two views of one vocabulary: in the plain one, "<|im_end|>" is eleven characters.
        self._control = tokenizer
        self._plain = Vocabulary.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True
        for view in (self._control, self._plain):
            view.no_padding()
            view.no_truncation()
        self._special = dict(special)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _raise_template_error
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._template = environment.from_string(chat_template)
        self.control_tokens = tuple(
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            # Runs of blanks are added tokens in some vocabularies; they control nothing.
            if token.special or (token.content.startswith("<") and token.content.endswith(">"))
        )
        eos = special.get("eos_token")
        self.eos_token_id: int | None = tokenizer.token_to_id(eos) if eos else None

    @classmethod
    def load(cls, source: str | Path) -> ChatTokenizer:
        """Read `tokenizer.json`, `tokenizer_config.json` and the chat template from a directory or a hub id.

        Raises:
            EngineError: One of them is not there.
        """
        find = _finder(source)
        tokenizer_file, config_file, template_file = (
            find(name) for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        )
        if tokenizer_file is None:
            msg = f"no tokenizer.json at {str(source)!r}: it must be a model directory or a hub id"
            raise EngineError(msg)
        try:
            config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8")) if config_file else {}
            template = template_file.read_text(encoding="utf-8") if template_file else config.get("chat_template")
            if not isinstance(template, str):
                msg = f"no chat template at {str(source)!r}: chat_template.jinja or tokenizer_config.json must hold one"
                raise EngineError(msg)
            special = {
                key: value["content"] if isinstance(value, dict) else value
                for key, value in config.items()
                if key.endswith("_token") and value is not None and not isinstance(value, bool)
            }
            return cls(Vocabulary.from_file(str(tokenizer_file)), template, special)
        except EngineError:
            raise
        except Exception as error:  # tokenizers raises nothing narrower
            msg = f"the tokenizer at {str(source)!r} can't be read: {type(error).__name__}: {error}"
            raise EngineError(msg) from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[int]]:
        """Return the chat as text and as token ids, up to where the assistant starts to write.

        The template is rendered around placeholders and its own text encoded with control tokens, each content
        without: contents stay plain whatever they hold.

        Raises:
            EngineError: The template refuses these messages.
        """
        nonce = uuid.uuid4().hex
        contents = {f"{nonce}.{index}.": message["content"] for index, message in enumerate(messages)}
        placed = [{**message, "content": key} for key, message in zip(contents, messages, strict=True)]
        try:
            rendered = self._template.render(messages=placed, add_generation_prompt=True, **self._special)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            msg = f"the chat template refuses these messages: {error}"
            raise EngineError(msg) from error
        texts, ids = [], []
        for piece in re.split(rf"({nonce}\.\d+\.)", rendered):
            content = contents.get(piece)
            if content is None:
                ids += self._control.encode(piece, add_special_tokens=False).ids
            else:
                ids += self.encode(content)
            texts.append(piece if content is None else content)
        return "".join(texts), ids

    def encode(self, text: str) -> list[int]:
        """Return the tokens of plain text; what looks like a control token is encoded as characters."""
        ids: list[int] = self._plain.encode(encodable(text), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_control: bool = False) -> str:
        """Return the text of tokens."""
        text: str = self._control.decode(list(ids), skip_special_tokens=skip_control)
        return text

    def decoder(self) -> Callable[[int], str]:
        """Return a function that takes tokens one by one and returns what each adds to the text, no control tokens.

        A character of several tokens comes whole, with the last of them.
        """
        stream = DecodeStream(skip_special_tokens=True)
        return lambda token_id: stream.step(self._control, token_id) or ""

    def knows(self, token_id: int) -> bool:
        """Return whether the vocabulary has a token of this id, which must be from 0 to 2**31 - 1."""
        return self._control.id_to_token(token_id) is not None

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the start of a text, at most so many tokens long, without half a character at its end."""
        ids = self.encode(text)
        return text if len(ids) <= max_tokens else self.decode(ids[:max_tokens]).rstrip("\ufffd")


def _finder(source: str | Path) -> Any:
    directory = Path(source)
    if _is_directory(directory):
        return lambda name: directory / name if (directory / name).is_file() else None

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def download(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(str(source), name))
        except EntryNotFoundError:
            return None
        except Exception as error:
            msg = f"{name} of {str(source)!r} can't be had from the hub: {type(error).__name__}"
            raise EngineError(msg) from error

    return download


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long to be one
        return False


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)


class Tokenizer(Protocol):
    """What a `TokenEngine` needs of its tokenizer."""

    @property
    def control_tokens(self) -> Collection[str]:
        """The control tokens, as they would look in somebody's text."""

    def render(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[int]]:
        """Return the chat as text and as token ids, up to where the assistant starts to write."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of plain text, none of them a control token."""

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the start of a text, at most so many tokens long."""


class TokenEngine:
    """The half of an engine that is about its tokenizer; engines with token ids build on it."""

    tokenizer: Tokenizer

    async def aload(self) -> None:
        """See `RouterEngine.aload`; here, the tokenizer is there from the start."""

    @property
    def control_tokens(self) -> Collection[str]:
        """See `RouterEngine.control_tokens`."""
        return self.tokenizer.control_tokens

    def begin(self, messages: Sequence[Mapping[str, str]]) -> Segment:
        """See `RouterEngine.begin`."""
        text, ids = self.tokenizer.render(messages)
        return {"kind": "prompt", "text": text, "token_ids": ids, "messages": [dict(message) for message in messages]}

    def encode(self, text: str) -> list[int]:
        """See `RouterEngine.encode`."""
        return self.tokenizer.encode(text)

    def count_tokens(self, text: str) -> int:
        """See `RouterEngine.count_tokens`."""
        return len(self.tokenizer.encode(text))

    def truncate(self, text: str, max_tokens: int) -> str:
        """See `RouterEngine.truncate`."""
        return self.tokenizer.truncate(text, max_tokens)
