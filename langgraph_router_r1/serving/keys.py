"""The keys of a server: who may ask which models, how often, and at what cost.

A file holds the SHA-256 of each key, and no key:

[keys.alice]
sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
day_usd = 1.00
month_usd = 10.00
requests_per_minute = 60
models = ["router-r1", "small"]      # by default all
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from langgraph_router_r1.protocol import fold
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.registry_file import read
from langgraph_router_r1.secret_text import shown
from langgraph_router_r1.serving.errors import ApiError
from langgraph_router_r1.serving.store import Account, Allowance
from langgraph_router_r1.serving.targets import PLANNER, ROUTER, permitted_as

KEYS_ENV = "ROUTER_R1_SERVER_KEYS"
"""The environment variable with keys as `name=key`, separated by commas."""

MIN_KEY_CHARS = 20
"""Fewest characters of a key: hashes of short ones can be turned back."""

DEFAULT_RUN_USD = 0.10
"""What one run of a key with a budget may spend, if nothing else is said, in dollars."""

Dollars = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class KeysError(ValueError):
    """The keys of a server are not as they must be; no message shows a key or its hash."""


class Key(BaseModel):
    """Who may ask."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    """What accounts and logs call it."""
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$", repr=False)
    """The SHA-256 of the key."""
    day_usd: Dollars | None = None
    """Its budget a day (UTC), in dollars; None for no limit."""
    month_usd: Dollars | None = None
    run_usd: Dollars | None = None
    """The most that one run may spend; 0.10 if it has a budget."""
    requests_per_minute: int | None = Field(default=None, gt=0)
    models: tuple[str, ...] | None = None
    """What it may ask for; `router-r1` stands for the router at every cost weight. None: everything."""

    @field_validator("sha256", mode="before")
    @classmethod
    def _as_sha256sum_prints_it(cls, value: Any) -> Any:
        return value.removesuffix("-").strip() if isinstance(value, str) else value

    @property
    def allowance(self) -> Allowance:
        """What it may spend and ask."""
        return Allowance(self.day_usd, self.month_usd, self.requests_per_minute)

    @property
    def account(self) -> Account:
        """What its runs are charged to."""
        has_budget = self.day_usd is not None or self.month_usd is not None
        run_usd = DEFAULT_RUN_USD if self.run_usd is None and has_budget else self.run_usd
        return Account(self.name, self.allowance, run_usd)

    def may_use(self, name: str) -> bool:
        """Return whether it may ask for a model, by the name that is in the request."""
        return self.models is None or fold(permitted_as(name)) in map(fold, self.models)


def check_models(keys: Iterable[Key], registry: ModelRegistry, *, has_planner: bool = False) -> None:
    """Find out whether what keys may ask for is served: a wrong name locks its user out.

    Raises:
        KeysError: A key names something else.
    """
    served = [ROUTER, *([PLANNER] if has_planner else []), *registry.names]
    for key in keys:
        for name in key.models or ():
            if fold(name) not in map(fold, served):
                known = ", ".join(map(repr, served))
                msg = f"the key {key.name!r} may ask for {name!r}, which is not served; it can be: {known}"
                raise KeysError(msg)


class Keys:
    """Tells whose key a request has."""

    def __init__(self, keys: Sequence[Key]) -> None:
        """Take the keys.

        Raises:
            KeysError: Two have the same name, or the same hash.
        """
        for what, values in (("name", [key.name for key in keys]), ("hash", [key.sha256.lower() for key in keys])):
            if len(set(values)) < len(values):
                raise KeysError(f"two keys have the same {what}")
        self._keys = [(key, bytes.fromhex(key.sha256)) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def all(self) -> list[Key]:
        """All keys."""
        return [key for key, _ in self._keys]

    def of(self, authorization: str | None) -> Key | None:
        """Return the key of a request by its header `Authorization`; None when the server has no keys.

        Raises:
            ApiError: It has none, or one that is not known.
        """
        if not self._keys:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, each in constant time: how long it takes says nothing of the key.
        found = [key for key, known in self._keys if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not found:
            message = "the key is missing or not known: the request needs the header 'Authorization: Bearer KEY'"
            raise ApiError(401, message, "invalid_api_key")
        return found[0]


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[Key, ...]:
    """Return the keys of a file, and those of `ROUTER_R1_SERVER_KEYS`.

    Raises:
        KeysError: Something is wrong with them.
    """
    named = [entry.strip() for entry in environment.get(KEYS_ENV, "").split(",") if entry.strip()]
    return (*(() if file is None else _of_file(file)), *(_of_entry(entry) for entry in named))


def _of_entry(entry: str) -> Key:
    name, equals, secret = entry.partition("=")
    if not equals or len(secret) < MIN_KEY_CHARS:
        msg = f"{KEYS_ENV} must hold name=key, separated by commas, each key of {MIN_KEY_CHARS} characters or more"
        raise KeysError(msg)
    return _key(KEYS_ENV, {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest()})


def _of_file(file: Path) -> list[Key]:
    source = f"the file of keys {str(file)!r}"
    data, problem = read(file)
    if problem:
        raise KeysError(f"{source} {problem}")
    tables = data.get("keys") if isinstance(data, Mapping) and set(data) == {"keys"} else None
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise KeysError(f"{source} must hold tables [keys.NAME], and nothing else")
    return [_key(source, {**table, "name": name}) for name, table in tables.items()]


def _key(source: str, fields: dict[str, Any]) -> Key:
    try:
        return Key.model_validate(fields)
    except ValidationError as error:
        problems = [f"{'.'.join(map(shown, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)]
        if any(one["type"] == "extra_forbidden" for one in error.errors(include_input=False)):
            problems.append(f"a key has {', '.join(name for name in Key.model_fields if name != 'name')}")
        raise KeysError(f"{source}: the key {shown(fields['name'])!r}: {'; '.join(problems)}") from None
