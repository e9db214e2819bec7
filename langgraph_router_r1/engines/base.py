"""The protocol that every engine keeps: a transcript in, one sampled segment out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard, runtime_checkable

from langgraph_router_r1.ledger import FREE, Price, PriceLike, Usage
from langgraph_router_r1.protocol import Constraint
from langgraph_router_r1.transcript import Segment

if TYPE_CHECKING:
    from langgraph_router_r1.state import RunReport


API_KEY_ENV = "ROUTER_R1_API_KEY"
"""The environment variable with the key of the router's server; servers that we start take their key from it too."""


OnText = Callable[[str], None]
"""Is given the text of a turn piece by piece, while it is sampled; possibly in another thread."""


class EngineError(RuntimeError):
    """The router's tokens can't be had; the message says from where, and why."""

    routing: RunReport | None = None
    """The account of the run that this error ended, so far; None outside of a run."""


class EngineUnavailableError(EngineError):
    """Nobody answers at the engine's address, or not in time."""


class UnknownPolicyError(EngineError):
    """The server does not serve a model of that name."""


class ContextFullError(EngineError):
    """The transcript leaves no room for another turn."""


@dataclass(frozen=True)
class Generation:
    """One turn, as sampled."""

    segment: Segment
    """Of kind `policy`; its `token_ids` are the truth, and may go past a stop string by the rest of its last token."""
    usage: Usage
    finish: Literal["stop", "length"]
    """`stop`: at a stop string or by the model's own end token. `length`: cut at `max_tokens`."""


@runtime_checkable
class RouterEngine(Protocol):
    """A router LLM behind some interface. Engines may be shared between threads and between event loops."""

    model: str
    """Name of the policy: what a transcript records as having sampled its segments."""

    @property
    def control_tokens(self) -> Collection[str]:
        """The tokenizer's control tokens, as they would look in somebody's text."""

    async def aload(self) -> None:
        """Load what the first turn needs, off the event loop; at once when it is loaded. Called before each turn."""

    def begin(self, messages: Sequence[Mapping[str, str]]) -> Segment:
        """Render the chat template, once, up to where the router starts to write. Contents become plain characters."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of plain text, none of them a control token; empty for engines that know text only."""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, or an estimate for engines that know text only."""

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the start of a text, at most so many tokens long."""

    def generate(
        self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int, on_text: OnText | None = None
    ) -> Generation:
        """Sample one turn.

        Args:
            transcript: Everything so far.
            stop: Strings that end the turn; the one that did is part of it.
            max_tokens: Most tokens to sample.
            on_text: Is told of the text as it comes, when somebody waits for it; what it was told may go past a stop
                string, or lack it.

        Raises:
            ContextFullError: There is no room for a turn.
            EngineError: It can't be sampled for another reason.
        """

    async def agenerate(
        self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int, on_text: OnText | None = None
    ) -> Generation:
        """Sample one turn without blocking; see `generate`."""


class ConstrainableEngine(RouterEngine, Protocol):
    """An engine that can be held to what may follow a beginning in a turn."""

    def generate(
        self,
        transcript: Sequence[Segment],
        *,
        stop: Sequence[str],
        max_tokens: int,
        on_text: OnText | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> Generation:
        """Sample one turn in which these constraints hold; see `RouterEngine.generate`."""

    async def agenerate(
        self,
        transcript: Sequence[Segment],
        *,
        stop: Sequence[str],
        max_tokens: int,
        on_text: OnText | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> Generation:
        """Sample one such turn without blocking."""


@runtime_checkable
class Fallback(Protocol):
    """Chooses which models to call when the router LLM does not answer. May be called from several threads at once."""

    def rank(self, question: str, *, cost_weight: float) -> Sequence[str]:
        """Return names of the registry, the best choice first; `cost_weight` is that of the run. It may block."""


def is_billed(engine: object) -> bool:
    """Return whether a provider bills the tokens of an engine."""
    return bool(getattr(engine, "is_billed", False))


def own_price(engine: object, price: PriceLike | None) -> Price:
    """Return the price of a router LLM's own tokens.

    Args:
        engine: What they come from; a function that plans has none.
        price: In any form that `Price.parse` reads. None: they are free, as on a server of one's own.

    Raises:
        ValueError: The engine is a chat model, which a provider bills, and no price is given.
    """
    if price is not None:
        try:
            return Price.parse(price)
        except ValueError as error:  # its words hide what may be a key
            raise ValueError(f"router_price: {error}") from None
    if is_billed(engine):
        msg = (
            f"router_price is missing: the tokens of {engine!r} are paid for. Give dollars per million tokens, such as "
            "0.6 or {'prompt': 0.15, 'completion': 0.6}, or 'free'"
        )
        raise ValueError(msg)
    return FREE


def can_be_constrained(engine: RouterEngine) -> TypeGuard[ConstrainableEngine]:
    """Return whether an engine is a `ConstrainableEngine`."""
    return "constraints" in inspect.signature(engine.generate).parameters


def observation_segment(engine: RouterEngine, text: str) -> Segment:
    """Return a segment that the environment puts in."""
    return {"kind": "observation", "text": text, "token_ids": engine.encode(text)}


def cut_after_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text up to and with the first stop string in it, or whole.

    Example:
        >>> cut_after_stop("a</b>c", ["</b>"])
        'a</b>'
    """
    match = re.search("|".join(re.escape(string) for string in stop), text) if stop else None
    return text[: match.end()] if match else text
