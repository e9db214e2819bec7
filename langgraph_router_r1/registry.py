"""The pool: what can be asked, at what price, and how good it is at what.

[models.small]
model = "openai:gpt-4o-mini"            # as for LangChain's init_chat_model
api_key_env = "OPENAI_API_KEY"          # the variable that holds the key
description = "Quick; good at everyday facts."
price = { prompt = 0.15, completion = 0.60 }   # dollars per million tokens; or one number; or "free"
skills = { nq = 0.41 }                  # measured, 0 to 1

`router-r1 profile` measures a pool and writes `skills`, `latency_s` and the details, `measured`, into such a file.
"""

from __future__ import annotations

import datetime as dt
import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableBinding
from langgraph.pregel import Pregel
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from langgraph_router_r1.ledger import Price, PriceLike
from langgraph_router_r1.protocol import fold, sanitize
from langgraph_router_r1.registry_file import read
from langgraph_router_r1.secret_text import SECRET_NAME, SECRET_VALUE, keys_in, walk

DEFAULT_MAX_TOKENS = 512
"""Most tokens a routed model may reply with, unless its `params` say otherwise (as in the paper)."""


_USE_ENVIRONMENT = "a key belongs in the environment, and the name of its variable in api_key_env"
_OTHER_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_new_tokens")
"""What clients take besides `max_tokens`, and prefer to it: a budget would be held against the wrong one."""
_MOST_TOKENS = 10**9


class RegistryError(ValueError):
    """A registry, or the file it stands in, is wrong; the message lists every problem."""


class UnknownModelError(LookupError):
    """No model of that name is registered."""


Count = Annotated[int, Field(strict=True)]
"""A whole number; unlike pydantic's default, no bool and no text."""
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; no bool and no text."""


def _price(value: Any) -> Price:
    try:
        return Price.parse(value)
    except (ValueError, OverflowError, RecursionError):
        pass
    # The value is not shown: it may be a key that was pasted in the wrong place.
    msg = (
        "it must be 'free', a number of dollars per million tokens from 0 to 1e9, or a table with such numbers: "
        "prompt, completion and perhaps cached"
    )
    raise ValueError(msg)


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
    price: Annotated[Price, BeforeValidator(_price)]
    """List price; see `Price.parse` for the forms it may take."""
    description: str = ""
    """What it is good at, in a sentence or two, for the router to read."""
    latency_s: Number | None = Field(default=None, ge=0)
    """Usual seconds a call."""
    context_tokens: Count | None = Field(default=None, gt=0)
    """Length of its context window, in tokens."""
    skills: dict[str, Annotated[Number, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Measured accuracy, 0 to 1, by kind of question."""
    measured: Measured | None = Field(default=None, repr=False)
    """How `skills` and `latency_s` were measured, and what else was."""
    tags: tuple[str, ...] = ()
    """Free labels; nothing here reads them."""
    params: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Parameters of each call: `max_tokens`, `temperature` and whatever else the model takes."""
    base_url: str | None = Field(default=None, repr=False)
    """Address of the server, when `model` is a string and not at its provider's usual place."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    timeout_s: Number = Field(default=60.0, gt=0, le=86_400)
    """Most seconds one attempt may take; at most a day."""
    max_reply_chars: Count = Field(default=100_000, gt=0)
    """Most characters kept of a reply; what is longer is cut before anything counts or stores it."""
    max_retries: Count | None = Field(default=None, ge=0)
    """How often a call that failed for a passing reason (429, 5xx, no connection) is tried again; by default twice for
    a model given as a string, and never for one that is given as an object, which has its own way."""
    requests_per_second: Number | None = Field(default=None, gt=0)
    """Most attempts a second, shared by everybody who uses the same router; waiting is not part of `timeout_s`."""
    alias: str | None = None
    """What the router is told instead of the name, and writes to call it; see `ModelRegistry.neutral`."""
    fallbacks: tuple[str, ...] = ()
    """Models of the same registry to ask, in this order, when this one fails; the one that answers is billed."""

    if TYPE_CHECKING:
        # The forms that a price may be written in are wider than what it becomes.
        def __init__(self, *, name: str, model: Any, price: PriceLike, **fields: Any) -> None: ...

    @field_validator("*", mode="before")
    @classmethod
    def _no_key_in_any_field(cls, value: Any) -> Any:
        if any(isinstance(inner, str) and SECRET_VALUE.search(inner) for inner in walk(value)):
            raise ValueError(f"it holds what looks like a key; {_USE_ENVIRONMENT}")
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
                f"fragment; {_USE_ENVIRONMENT}"
            )
            raise ValueError(msg)
        return url

    @field_validator("params")
    @classmethod
    def _no_keys(cls, params: dict[str, Any]) -> dict[str, Any]:
        for key in keys_in(params):
            if SECRET_NAME.search(key):
                raise ValueError(f"{_shown(key)!r} may carry a secret; {_USE_ENVIRONMENT}")
        for other in _OTHER_LIMITS:
            if other in params:
                msg = f"{other!r} goes by the name of max_tokens here"
                raise ValueError(msg)
        max_tokens = params.get("max_tokens", DEFAULT_MAX_TOKENS)
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or not 1 <= max_tokens <= _MOST_TOKENS:
            raise ValueError(f"max_tokens must be a whole number from 1 to {_MOST_TOKENS:,}")
        return params

    @property
    def display_name(self) -> str:
        """What the router calls it: its alias, else its name."""
        return self.alias or self.name

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

    def describe(self) -> str:
        """Return the line that the router reads: description, measured skills, price, latency, name.

        The name stands last. A language model reads from left to right: at the name, and only there, a small router
        has seen all that the line says of it.
        """
        price = str(self.price).replace("/M", "/M tokens", 1)
        facts = [price] if self.latency_s is None else [price, f"{self.latency_s:.2g} s"]
        skills = ", ".join(f"{skill} {value:.2f}" for skill, value in self.skills.items())
        accuracy = f"Accuracy: {skills}." if skills else ""
        sentences = [self.description.strip(), accuracy, ", ".join(facts) + ".", f"Name: {self.display_name}."]
        return f"- {' '.join(sentence for sentence in sentences if sentence)}"


class ModelRegistry:
    """An ordered, unchangeable set of descriptors.

    Example:
        >>> registry = ModelRegistry([ModelDescriptor(name="small", model="openai:gpt-4o-mini", price=0.2)])
        >>> registry.names
        ('small',)
        >>> registry.without("small").names
        ()
    """

    profile: Path | None
    """The file with what `router-r1 profile` measured of these models, if there is one."""

    def __init__(self, models: Iterable[ModelDescriptor] = (), *, profile: str | Path | None = None) -> None:
        """Collect the descriptors.

        Raises:
            RegistryError: Two names are the same (case and blanks do not count) or two aliases, or a fallback is not
                registered.
        """
        self.profile = None if profile is None else Path(profile)
        self._models: dict[str, ModelDescriptor] = {}
        self._called: dict[str, ModelDescriptor] = {}
        problems = []
        for model in models:
            if fold(model.name) in self._models:
                problems.append(f"models.{_shown(model.name)}: the name is taken; case and blanks do not matter")
            elif fold(model.display_name) in self._called:
                other = self._called[fold(model.display_name)].name
                problems.append(
                    f"models.{_shown(model.name)}: the alias {_shown(model.display_name)!r} is taken by {other!r}"
                )
            self._models[fold(model.name)] = model
            self._called[fold(model.display_name)] = model
        problems += [
            f"models.{_shown(model.name)}.fallbacks: {_shown(fallback)!r} is not another model of this registry"
            for model in self
            for fallback in model.fallbacks
            if fold(fallback) not in self._models or fold(fallback) == fold(model.name)
        ]
        if problems:
            raise RegistryError(_list_problems("the registry", problems))

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, source: str = "the registry", profile: str | Path | None = None
    ) -> ModelRegistry:
        """Build from `{"models": {name: fields}}`.

        Raises:
            RegistryError: Anything is wrong; the message lists every problem with its key.
        """
        models = data.get("models") if isinstance(data, Mapping) else None
        if not isinstance(models, Mapping) or not models:
            msg = f"{source} has no models: it must hold one table [models.NAME] for each"
            raise RegistryError(msg)
        problems = [f"{_shown(key)}: unknown key; the top level holds 'models'" for key in data if key != "models"]
        descriptors = []
        for name, fields in models.items():
            if not isinstance(fields, Mapping):
                problems.append(f"models.{_shown(name)}: is a {type(fields).__name__} and must be a table of fields")
            elif "name" in fields:
                problems.append(f"models.{_shown(name)}.name: is not a field here: the table's name is the model's")
            else:
                try:
                    descriptors.append(ModelDescriptor.model_validate({**fields, "name": name}))
                except ValidationError as error:
                    problems += [f"models.{_shown(name)}.{_problem(detail)}" for detail in error.errors()]
        if not problems:
            try:
                return cls(descriptors, profile=profile)
            except RegistryError as error:
                problems = str(error).split("\n  ")[1:]
        raise RegistryError(_list_problems(source, problems))

    @classmethod
    def from_file(cls, path: str | Path) -> ModelRegistry:
        """Read a `.toml`, `.yaml` or `.yml` file; its profile is the file `NAME.profile.jsonl` beside it, if any.

        Raises:
            RegistryError: The file can't be read, or anything in it is wrong; the message says where.
        """
        path = Path(path)
        data, problem = read(path)
        if problem:
            raise RegistryError(f"registry file {str(path)!r} {problem}")
        if not isinstance(data, Mapping):
            msg = f"registry file {str(path)!r} holds a {type(data).__name__}; it must hold tables [models.NAME]"
            raise RegistryError(msg)
        profile = path.with_suffix(".profile.jsonl")
        return cls.from_dict(
            data, source=f"registry file {str(path)!r}", profile=profile if profile.is_file() else None
        )

    def with_model(self, model: ModelDescriptor) -> ModelRegistry:
        """Return a registry with this model too, in place of one of the same name."""
        others = [other for other in self if fold(other.name) != fold(model.name)]
        return ModelRegistry([*others, model], profile=self.profile)

    def without(self, *names: str) -> ModelRegistry:
        """Return a registry that lacks these models.

        Raises:
            UnknownModelError: One of them is not in it.
            RegistryError: One of them is a fallback of a model that stays.
        """
        gone = {fold(self[name].name) for name in names}
        return ModelRegistry((model for model in self if fold(model.name) not in gone), profile=self.profile)

    def anonymized(self) -> ModelRegistry:
        """Return the registry with models that the router calls model-1, model-2 and so on; their names stay.

        A router may have memorised the names of the pool that it was trained on; among other models they mislead it.
        With anonymised names it goes by descriptions, if such pools were part of its training. Call it last: a model
        that is added later has its own name, and one that is taken out leaves a gap.

        Example:
            >>> small = ModelDescriptor(name="small", model="openai:gpt-4o-mini", price=0.2)
            >>> pool = ModelRegistry([small]).anonymized()
            >>> pool.describe(), pool.names
            ('- $0.2/M tokens. Name: model-1.', ('small',))
        """
        models = (model.model_copy(update={"alias": f"model-{place}"}) for place, model in enumerate(self, start=1))
        return ModelRegistry(models, profile=self.profile)

    def describe(self) -> str:
        """Return what the router reads of the pool: a line a model."""
        return "\n".join(model.describe() for model in self)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(model.name for model in self)

    @functools.cached_property
    def aliases(self) -> tuple[str, ...]:
        """What the router calls the models, in order: their names, unless they have aliases."""
        return tuple(model.display_name for model in self)

    def by_alias(self, alias: str) -> ModelDescriptor:
        """Return the model that the router calls so.

        Raises:
            UnknownModelError: There is none.
        """
        try:
            return self._called[fold(alias)]
        except KeyError:
            raise UnknownModelError(self.explain_unknown(alias)) from None

    def __getitem__(self, name: str) -> ModelDescriptor:
        try:
            return self._models[fold(name)]
        except KeyError:
            raise UnknownModelError(_explain_unknown(name, self.names)) from None

    def explain_unknown(self, alias: str) -> str:
        """Return the sentence that says to the router that it calls no model so, and which it can call."""
        return _explain_unknown(alias, self.aliases)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and fold(name) in self._models

    def __iter__(self) -> Iterator[ModelDescriptor]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        return f"ModelRegistry({', '.join(self.names)})"


def _explain_unknown(name: str, known: Sequence[str]) -> str:
    folded = {fold(other): other for other in known}
    close = difflib.get_close_matches(fold(name), folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    return f"{name!r} is not in the registry; it has: {', '.join(map(repr, known)) or 'no models'}.{hint}"


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


def _shown(name: Any) -> str:
    """Return a name as an error may show it: short, as printable text, and nothing that looks like a key."""
    text = str(name) if isinstance(name, str) else type(name).__name__
    text = text.encode("utf-8", "replace").decode()
    if SECRET_VALUE.search(text):
        return "(not shown)"
    return text if len(text) <= 64 else f"{text[:64]}..."


def _problem(detail: Any) -> str:
    key = ".".join(str(part) if isinstance(part, int) else _shown(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return f"{key}: is missing" + (' (use price = "free" for a model that costs nothing)' if key == "price" else "")
    if detail["type"] == "extra_forbidden":
        return f"{key}: is not a field of a model" + (f"; {_USE_ENVIRONMENT}" if "key" in key else "")
    message = str(detail["msg"]).removeprefix("Value error, ")
    # Numbers are shown; text and tables may hold a key that stands in the wrong place.
    value = detail["input"]
    is_short = isinstance(value, float) or (isinstance(value, int) and abs(value) <= _MOST_TOKENS)
    return f"{key}: {message}{f', and is {value!r}' if is_short else ''}"


def _list_problems(source: str, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{source} has {count}:", *problems])
