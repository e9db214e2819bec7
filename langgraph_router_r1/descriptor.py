"""One model of the pool: how to reach it, at what price, and what the router is told about it."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableBinding
from langgraph.pregel import Pregel
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from langgraph_router_r1.ledger import RATES, Price, PriceLike
from langgraph_router_r1.price_list import UnlistedPriceError, list_price
from langgraph_router_r1.protocol import sanitize
from langgraph_router_r1.secret_text import SECRET_NAME, SECRET_VALUE, keys_in, shown, walk

DEFAULT_MAX_TOKENS = 512
"""Most tokens a routed model may reply with, unless its `params` say otherwise (as in the paper)."""


USE_ENVIRONMENT = "a key belongs in the environment, and the name of its variable in api_key_env"
_OTHER_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_new_tokens")
"""What clients take besides `max_tokens`, and prefer to it: a budget would be held against the wrong one."""
MOST_TOKENS = 10**9


Count = Annotated[int, Field(strict=True)]
"""A whole number; unlike pydantic's default, no bool and no text."""
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; no bool and no text."""


class Accuracy(BaseModel):
    """The share of right replies to one kind of question, with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    value: Number = Field(ge=0, le=1)
    low: Number = Field(ge=0, le=1)
    high: Number = Field(ge=0, le=1)
    questions: Count = Field(ge=1)
    """How many were replied to."""


class Measured(BaseModel):
    """What `router-r1 profile` found out about a model; the router reads `skills` and `latency_s` only."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    date: dt.date
    questions: Count = Field(ge=1)
    """How many it was asked."""
    failure_rate: Number = Field(ge=0, le=1)
    """The share of them to which it gave no reply, or an empty one."""
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    """By kind of question, over the replies."""
    latency_p50_s: Number | None = Field(default=None, ge=0)
    """Median of the seconds a call, one call at a time."""
    latency_p95_s: Number | None = Field(default=None, ge=0)
    prompt_tokens: Number | None = Field(default=None, ge=0)
    """Mean over the replies, as the next two."""
    completion_tokens: Number | None = Field(default=None, ge=0)
    cost_usd: Number | None = Field(default=None, ge=0)
    """Dollars a reply, at list price."""


class ModelDescriptor(BaseModel):
    """One model of the pool: how to reach it, and what the router is told about it.

    Example:
        >>> ModelDescriptor(name="small", model="openai:gpt-4o-mini", price=0.2, description="Quick.").describe()
        '- Quick. $0.2/M tokens. Name: small.'
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        # Built when the first one is made: that takes as long as importing half of the package.
        defer_build=True,
        # What stands in the wrong place may be a key.
        hide_input_in_errors=True,
    )

    name: str
    """What it is called: in files, accounts and events, and by the router, unless there is an alias."""
    model: Any = Field(repr=False)
    """A LangChain chat model, any Runnable from messages to a message, or a string for `init_chat_model`."""
    base_url: str | None = Field(default=None, repr=False)
    """Address of the server, when `model` is a string and not at its provider's usual place."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    params: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Parameters of each call: `max_tokens`, `temperature` and whatever else the model takes."""
    price: Price  # behind what tells "auto" which model it is
    """List price; see `Price.parse` for the forms it may take. `"auto"` takes it from the package `genai-prices`."""
    description: str = ""
    """What it is good at, in a sentence or two, for the router to read."""
    latency_s: Number | None = Field(default=None, ge=0)
    """Usual seconds a call."""
    context_tokens: Count | None = Field(default=None, gt=0)
    """Length of its context window, in tokens."""
    modalities: tuple[Literal["text", "image"], ...] = ("text",)
    """What it reads; a question with an image goes only to models that read "image" too."""
    image_tokens: Count | None = Field(default=None, gt=0)
    """Most tokens that one image is billed as. Without it, nothing bounds the cost of a call with an image."""
    skills: dict[str, Annotated[Number, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Measured accuracy, 0 to 1, by kind of question."""
    measured: Measured | None = Field(default=None, repr=False)
    """How `skills` and `latency_s` were measured, and what else was."""
    tags: tuple[str, ...] = ()
    """Free labels; nothing here reads them."""
    call_prompt: str | None = None
    """What it is asked, with `{query}` in it; by default the query, and that the answer shall be short if that is the
    router's style."""
    system: str | None = None
    """What it is told first, as a system message."""
    share_context: Literal["none", "system", "conversation"] = "none"
    """What it sees of the run besides the query: nothing, the system messages, or the whole conversation."""
    timeout_s: Number = Field(default=60.0, gt=0, le=86_400)
    """Most seconds one attempt may take; at most a day."""
    max_reply_chars: Count = Field(default=100_000, gt=0)
    """Most characters kept of a reply; what is longer is cut before anything counts or stores it."""
    max_retries: Count | None = Field(default=None, ge=0)
    """How often a call that failed for a passing reason (429, 5xx, no connection) is tried again; by default twice for
    a model given as a string, and never for one that is given as an object, which has its own way."""
    requests_per_second: Number | None = Field(default=None, gt=0)
    """Most attempts a second, shared by everybody who uses the same router; waiting is not part of `timeout_s`."""
    rest_after: Count = Field(default=5, ge=0)
    """After how many failures in a row it is not asked for a while; 0 for never. Timeouts, failed connections and
    server errors count, in each attempt of a call; rate limits do not."""
    rest_s: Number = Field(default=30.0, gt=0, le=86_400)
    """For how many seconds; then one request is made as a trial."""
    alias: str | None = None
    """What the router is told instead of the name, and writes to call it; see `ModelRegistry.anonymized`."""
    fallbacks: tuple[str, ...] = ()
    """Models of the same registry to ask, in this order, when this one fails; the one that answers is billed."""

    if TYPE_CHECKING:
        # The forms that a price may be written in are wider than what it becomes.
        def __init__(self, *, name: str, model: Any, price: PriceLike, **fields: Any) -> None: ...

    @field_validator("*", mode="before")
    @classmethod
    def _no_key_in_any_field(cls, value: Any) -> Any:
        if any(isinstance(inner, str) and SECRET_VALUE.search(inner) for inner in walk(value)):
            raise ValueError(f"it holds what looks like a key; {USE_ENVIRONMENT}")
        return value

    @field_validator("name", "alias")
    @classmethod
    def _callable_name(cls, name: str | None) -> str | None:
        if name is None:
            return None
        if not name.strip() or ":" in name or name.splitlines() != [name] or sanitize(name) != name:
            msg = "it can't be called so: a name is one line, not blank, without a colon and without tags"
            raise ValueError(msg)
        return " ".join(name.split())

    @field_validator("model")
    @classmethod
    def _a_model(cls, model: Any) -> Any:
        graph = _unbound(model)
        if isinstance(graph, Pregel) and "messages" not in graph.channels:
            msg = "a graph must have 'messages' in its state to be asked as a model, as agents of create_agent do"
            raise ValueError(msg)
        if isinstance(model, Runnable) or (isinstance(model, str) and model.strip()):
            return model
        msg = f"a {type(model).__name__} is no chat model, no Runnable, and no string such as 'openai:gpt-4o-mini'"
        raise ValueError(msg)

    @field_validator("price", mode="before")
    @classmethod
    def _a_price(cls, value: Any, info: ValidationInfo) -> Price:
        if isinstance(value, str) and value == "auto":
            told = {key: info.data.get(key) for key in ("base_url", "params")}
            try:
                return list_price(info.data.get("model", ""), **told)
            except UnlistedPriceError as error:
                raise ValueError(f"'auto' finds none: {error}; write it in dollars per million tokens") from None
        try:
            return Price.parse(value)
        except (ValueError, OverflowError, RecursionError):
            pass
        # The value is not shown: it may be a key that was pasted in the wrong place. Names of rates are no secret.
        known = (*RATES, "tiers", "source")
        if isinstance(value, dict) and (wrong := [shown(key) for key in value if key not in known]):
            raise ValueError(f"{wrong[0]!r} is not part of a price; there are {', '.join(known)}")
        msg = (
            "it must be 'free', 'auto', a number of dollars per million tokens from 0 to 1e9, or a table with such "
            "numbers: prompt, completion and perhaps cached, cache_write and tiers"
        )
        raise ValueError(msg)

    @field_validator("call_prompt")
    @classmethod
    def _with_a_query(cls, prompt: str | None) -> str | None:
        if prompt is not None and "{query}" not in prompt:
            msg = "it must hold {query}, where the question is put"
            raise ValueError(msg)
        return prompt

    @field_validator("modalities")
    @classmethod
    def _with_text(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        if "text" not in modalities:
            msg = "it must hold 'text': each query has some"
            raise ValueError(msg)
        return modalities

    @field_validator("api_key_env")
    @classmethod
    def _a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            # Not shown: it may well be the key itself.
            msg = "it must be the name of an environment variable, such as OPENAI_API_KEY, and not the key"
            raise ValueError(msg)
        return name

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str | None) -> str | None:
        if url is not None and not _is_plain_address(url):
            # Not shown: it may hold a password. Clients log the address of each request as it is.
            msg = (
                "it must be an address such as http://127.0.0.1:8001/v1, without user name, password, query string and "
                f"fragment; {USE_ENVIRONMENT}"
            )
            raise ValueError(msg)
        return url

    @field_validator("params")
    @classmethod
    def _no_keys(cls, params: dict[str, Any]) -> dict[str, Any]:
        for key in keys_in(params):
            if SECRET_NAME.search(key):
                raise ValueError(f"{shown(key)!r} may carry a secret; {USE_ENVIRONMENT}")
        for other in _OTHER_LIMITS:
            if other in params:
                msg = f"{other!r} goes by the name of max_tokens here"
                raise ValueError(msg)
        max_tokens = params.get("max_tokens", DEFAULT_MAX_TOKENS)
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or not 1 <= max_tokens <= MOST_TOKENS:
            raise ValueError(f"max_tokens must be a whole number from 1 to {MOST_TOKENS:,}")
        return params

    @property
    def display_name(self) -> str:
        """What the router calls it: its alias, else its name."""
        return self.alias or self.name

    @property
    def reads_images(self) -> bool:
        """Whether images can be sent to it; see `modalities`."""
        return "image" in self.modalities

    @property
    def max_tokens(self) -> int:
        """Most tokens it may reply with: by its `params`, by its own setting, or 512."""
        own = getattr(self.model, "max_tokens", None)
        given = self.params.get("max_tokens", own)
        return given if isinstance(given, int) and given > 0 else DEFAULT_MAX_TOKENS

    @property
    def retries(self) -> int:
        """How often a call that failed for a passing reason is tried again; see `max_retries`."""
        return 2 * isinstance(self.model, str) if self.max_retries is None else self.max_retries

    @property
    def is_bounded(self) -> bool:
        """Whether it keeps to `max_tokens`: other Runnables and graphs can't be told; `params` may vouch."""
        return isinstance(_unbound(self.model), str | BaseChatModel) or "max_tokens" in self.params

    def describe(self, saving_usd: float = 0.0) -> str:
        """Return the line that the router reads: description, measured skills, price, latency, name.

        With a saving in dollars, it says that the model's prompt cache is warm and what a call costs less for it.

        The name stands last. A language model reads from left to right: at the name, and only there, a small router
        has seen all that the line says of it.
        """
        price = str(self.price).replace("/M", "/M tokens", 1)
        warm = [f"prompt cache warm: about ${saving_usd:.2g} less a call"] if saving_usd else []
        facts = [price, *warm, *([] if self.latency_s is None else [f"{self.latency_s:.2g} s"])]
        skills = ", ".join(f"{skill} {value:.2f}" for skill, value in self.skills.items())
        accuracy = f"Accuracy: {skills}." if skills else ""
        sentences = [self.description.strip(), accuracy, ", ".join(facts) + ".", f"Name: {self.display_name}."]
        return f"- {' '.join(sentence for sentence in sentences if sentence)}"


def _unbound(model: Any) -> Any:
    return model.bound if isinstance(model, RunnableBinding) else model


def _is_plain_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and port != 0
        and not set(url) & set("?#\\")
        and "@" not in parts.netloc
        and url.isprintable()
        and " " not in url
    )
