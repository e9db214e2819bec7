"""The file of a shadow: a second router, the share of the requests that it is given, and what it may spend.

name = "candidate"
share = 0.1                                # of the requests
day_usd = 1.00                             # the most that it may spend in a day (UTC)
router = "http://127.0.0.1:8001/v1"        # as --router; by default the server's
model = "candidate"                        # as --model
registry = "candidates.toml"               # beside this file; by default the server's
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from langgraph_router_r1.registry_file import read
from langgraph_router_r1.secret_text import shown
from langgraph_router_r1.serving.keys import DEFAULT_RUN_USD, Dollars
from langgraph_router_r1.serving.store import SHADOW, Account, Allowance


class ShadowError(ValueError):
    """The file of a shadow is not as it must be; no message shows a text of it, which may be a key."""


class ShadowSettings(BaseModel):
    """How much of the traffic a shadow is given, and what it may spend."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[\w.@-]{1,57}$")
    """What accounts and the report call it: one name for each router that is tried."""
    share: float = Field(ge=0, le=1, strict=True)
    """Which share of the requests it is given, drawn at random."""
    day_usd: Dollars
    """The most that it may spend in a day (UTC), in dollars."""
    run_usd: Dollars = DEFAULT_RUN_USD
    """The most that one of its runs may spend, in dollars; reserved as a whole before the run begins."""
    max_concurrent: int = Field(default=4, ge=1, strict=True)
    """Most runs at a time; requests that come meanwhile are not given to it."""
    cost_weight: float | None = Field(default=None, ge=0, le=1)
    """How much money counts; None: as the request says."""

    @model_validator(mode="after")
    def _pays_for_a_run(self) -> Self:
        if self.run_usd > self.day_usd:
            msg = f"run_usd is {self.run_usd!r}, more than day_usd ({self.day_usd!r}): no run could begin"
            raise ValueError(msg)
        return self

    @property
    def account(self) -> Account:
        """What its runs are charged to."""
        return Account(f"{SHADOW}{self.name}", Allowance(day_usd=self.day_usd, partly=False), self.run_usd)


class ShadowFile(ShadowSettings):
    """A shadow as its file describes it: what is not said of its router is as the server's."""

    router: str | None = None
    """Who routes: the address of a vLLM server, or a chat model by LangChain's name."""
    model: str | None = None
    """The name of the router on its vLLM server."""
    router_price: float | None = Field(default=None, ge=0)
    """Price of the router's own tokens, in dollars per million."""
    strategy: Literal["knn"] | None = None
    """Decides instead of a router LLM: "knn" by the profile beside the registry."""
    registry: Path | None = None
    """The file of the models that may be asked."""

    @model_validator(mode="after")
    def _has_one_router(self) -> Self:
        if self.router_price is not None and self.router is None and self.model is None and self.strategy is None:
            msg = "router_price needs router or model: without them the router is the server's, and so is its price"
            raise ValueError(msg)
        if self.strategy is not None:
            if self.router is not None or self.model is not None or self.router_price is not None:
                msg = "router, model and router_price describe a router LLM, and strategy decides without one"
                raise ValueError(msg)
            if self.registry is None:
                msg = "strategy = 'knn' needs a registry, with its profile beside it"
                raise ValueError(msg)
        return self


def read_shadow(file: Path) -> ShadowFile:
    """Return what a file describes; the path of its registry is made one from here.

    Raises:
        ShadowError: It can't be read, or something in it is wrong.
    """
    source = f"the file of the shadow {str(file)!r}"
    data, problem = read(file)
    if problem:
        raise ShadowError(f"{source} {problem}")
    if not isinstance(data, Mapping):
        raise ShadowError(f"{source} must hold fields such as name, share and day_usd")
    try:
        described = ShadowFile.model_validate(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(shown, one['loc']))}: {one['msg']}".removeprefix(": ")
            for one in error.errors(include_input=False)
        ]
        raise ShadowError(f"{source}: {'; '.join(problems).replace('Value error, ', '')}") from None
    if described.registry is None:
        return described
    return described.model_copy(update={"registry": file.parent / described.registry})
