"""Usage into money, and budgets: pure arithmetic, in dollars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NotRequired, TypeGuard, cast

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from langchain_core.messages.ai import UsageMetadata

PER_MILLION = 1e-6

CHARACTERS_PER_TOKEN = 4
"""Of English text, by rule of thumb."""

FinishReason = Literal["stop", "length", "filtered", "too_long"]
"""`stop`: the reply is complete. `length`: the provider's limit of tokens cut it. `filtered`: the provider's content
filter cut it. `too_long`: it had more than the descriptor's `max_reply_chars` characters and was cut here."""


class Usage(TypedDict):
    """Tokens of one call, or of several added up."""

    prompt_tokens: int
    """All prompt tokens, cached ones included."""
    cached_tokens: int
    """Those of the prompt tokens that the provider had in its cache."""
    cache_write_tokens: NotRequired[int]
    """Those of the prompt tokens that the provider wrote to its cache; none where it is missing, as in old records."""
    completion_tokens: int
    estimated: bool
    """Whether any of it was counted here because the provider did not report it."""


class CostParts(TypedDict):
    """Dollars, by what was paid for."""

    prompt: float
    """Prompt tokens without the cached ones, at the price of a cache write where they were written to the cache."""
    cached: float
    """Prompt tokens that the provider had in its cache."""
    completion: float
    router: float
    """The own tokens of a router that was asked as a model."""


NO_COST: CostParts = {"prompt": 0.0, "cached": 0.0, "completion": 0.0, "router": 0.0}

NO_USAGE: Usage = {
    "prompt_tokens": 0,
    "cached_tokens": 0,
    "cache_write_tokens": 0,
    "completion_tokens": 0,
    "estimated": False,
}


RATES = ("prompt", "completion", "cached", "cache_write")


@dataclass(frozen=True)
class Rates:
    """Dollars per million tokens, by kind of token."""

    prompt: float
    completion: float
    cached: float = math.nan
    """What a prompt token costs that the provider had in its cache; by default as much as any."""
    cache_write: float = math.nan
    """What a prompt token costs that the provider writes to its cache; by default as much as any."""

    _key: ClassVar[str] = "price"

    def __post_init__(self) -> None:
        for rate in ("cached", "cache_write"):
            value = getattr(self, rate)
            if isinstance(value, float) and math.isnan(value):
                object.__setattr__(self, rate, self.prompt)
        for rate in RATES:
            value = getattr(self, rate)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
                must = "it must be a number of dollars per million tokens, 0 or more"
                raise ValueError(f"{self._key}.{rate} is {_shown(value)}; {must}")


@dataclass(frozen=True)
class Tier(Rates):
    """Rates of all tokens of a call whose prompt has more than `above` tokens."""

    above: int = field(kw_only=True)

    _key: ClassVar[str] = "price.tiers"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_count(self.above):
            msg = f"price.tiers.above is {_shown(self.above)}; it must be a number of prompt tokens"
            raise ValueError(msg)


class TierNote(TypedDict):
    """A `Tier` in JSON."""

    prompt: float
    completion: float
    cached: float
    cache_write: float
    above: int


class PriceNote(TypedDict):
    """A `Price` in JSON, as `Price.parse` reads it; old records have the first three keys only."""

    prompt: float
    completion: float
    cached: float
    cache_write: NotRequired[float]
    tiers: NotRequired[list[TierNote]]
    source: NotRequired[str | None]


@dataclass(frozen=True)
class Price(Rates):
    """List price in dollars per million tokens.

    Example:
        >>> Price(prompt=0.1, completion=0.4)              # cached prompt tokens cost as much as others
        Price(prompt=0.1, completion=0.4, cached=0.1, cache_write=0.1, tiers=())
        >>> Price.parse("free") == Price(0, 0), Price.parse(0.2) == Price(0.2, 0.2)
        (True, True)
        >>> sonnet = Price(3, 15, tiers=(Tier(6, 22.5, above=200_000),))
        >>> sonnet.at(200_000).prompt, sonnet.at(200_001).prompt
        (3, 6)
    """

    tiers: tuple[Tier, ...] = ()
    """What long prompts cost, in rising order."""
    source: str | None = field(default=None, compare=False, repr=False)
    """Which price list it is from, and of which date; None for a price that was typed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lower: Rates = self
        for tier in self.tiers:
            # A worst case is computed from the most tokens that a prompt may have.
            cheaper = any(getattr(tier, rate) < getattr(lower, rate) for rate in RATES)
            if cheaper or (isinstance(lower, Tier) and tier.above <= lower.above):
                msg = f"price.tiers must rise, and the one above {tier.above:,} tokens is out of order or cheaper"
                raise ValueError(msg)
            lower = tier

    @classmethod
    def parse(cls, value: Any) -> Price:
        """Read a price as it stands in a registry file.

        Args:
            value: `"free"`, one number for prompt and completion alike, or a table with `prompt`, `completion`
                and, where they differ from `prompt`, `cached` and `cache_write`; with `tiers`, a list of such tables
                with `above`, and with `source`. `"auto"` is for models of a registry.

        Raises:
            ValueError: It is none of these.
        """
        if isinstance(value, Price):
            return value
        if value == "free":
            return cls(0.0, 0.0)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return cls(value, value)
        if _is_table(value, "tiers", "source") and isinstance(value.get("source"), str | None):
            tiers = value.get("tiers", ())
            if isinstance(tiers, list | tuple) and all(_is_table(tier, must=["above"]) for tier in tiers):
                return cls(**{**value, "tiers": tuple(Tier(**tier) for tier in tiers)})
        msg = (
            f"price is {_shown(value)}; it must be 'free', a number of dollars per million tokens, "
            "or a table with prompt, completion and perhaps cached, cache_write and tiers"
        )
        raise ValueError(msg)

    @property
    def level(self) -> float:
        """The rates of prompt and completion tokens together, by which models are put in the order of their prices."""
        return self.prompt + self.completion

    def at(self, prompt_tokens: int) -> Rates:
        """Return what each token of a call costs whose prompt has so many tokens.

        A tier holds for the whole prompt and for the completion, as providers with tiers charge it.
        """
        reached = [tier for tier in self.tiers if prompt_tokens > tier.above]
        return reached[-1] if reached else self

    def with_rates(self, change: Callable[[float], float]) -> Price:
        """Return a price with each of its rates changed, which is from no price list any more."""

        def changed(rates: Rates) -> dict[str, Any]:
            return {rate: change(getattr(rates, rate)) for rate in RATES}

        tiers = tuple(replace(tier, **changed(tier)) for tier in self.tiers)
        return replace(self, **changed(self), tiers=tiers, source=None)

    def note(self) -> PriceNote:
        """Return it in JSON."""
        return cast("PriceNote", {**asdict(self), "tiers": [asdict(tier) for tier in self.tiers]})

    def __str__(self) -> str:
        if not (self.prompt or self.completion or self.cached):
            return "free"
        if self.prompt == self.completion:
            return f"${self.prompt:g}/M"
        return f"${self.prompt:g}/M in, ${self.completion:g}/M out"


def _is_table(value: Any, *more: str, must: Iterable[str] = ()) -> TypeGuard[Mapping[str, Any]]:
    """Return whether it is a table of rates that may have these keys besides, and must have those."""
    return isinstance(value, Mapping) and {"prompt", "completion", *must} <= set(value) <= {*RATES, *more, *must}


def _shown(value: Any) -> str:
    """Return a wrong price as an error may show it: a number as it is; of anything else, which may be a key, its type.

    Example:
        >>> _shown(-1), _shown("sk-secret")
        ('-1', 'a str')
    """
    return repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"


PriceLike = Price | float | str | Mapping[str, Any]
"""The forms that `Price.parse` reads; `"auto"` is for models of a registry only."""

FREE = Price(0.0, 0.0)


MAX_COUNT = 10**9
"""The largest number of tokens that is believed of one call."""


def reported_usage(metadata: Any) -> tuple[Usage | None, bool]:
    """Return the tokens that a reply reports, None when it reports nothing usable; and whether it came from a cache.

    Args:
        metadata: The `usage_metadata` of the reply, as the provider's package filled it in. LangChain gives a reply
            from its cache a total cost of 0.

    Example:
        >>> reported_usage({"input_tokens": 10, "output_tokens": -5, "total_tokens": 5})
        (None, False)
    """
    reported = metadata if isinstance(metadata, Mapping) else {}
    from_cache = reported.get("total_cost") == 0
    prompt, completion = reported.get("input_tokens"), reported.get("output_tokens")
    if not _is_count(prompt) or not _is_count(completion):
        return None, from_cache
    cached = min(_counted(reported, "cache_read"), prompt)
    return {
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "cache_write_tokens": min(_counted(reported, *_CACHE_WRITES), prompt - cached),
        "completion_tokens": completion,
        "estimated": False,
    }, from_cache


_CACHE_WRITES = ("cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
"""Where cache writes are reported; LangChain's package for Anthropic gives them by lifetime, and not twice."""


def _counted(reported: Mapping[str, Any], *endings: str) -> int:
    """Return the tokens of a kind; LangChain's package for OpenAI puts the service tier before its name."""
    details = reported.get("input_token_details")
    items = details.items() if isinstance(details, Mapping) else ()
    return sum(count for key, count in items if str(key).endswith(endings) and _is_count(count))


FROM_CACHE = "router_r1_from_cache"
"""In the `response_metadata` of a reply that a cache of ours gave: nobody was paid for it."""


def finish_of(metadata: Mapping[str, Any]) -> FinishReason:
    """Return why a reply ended, from its `response_metadata`; each provider says it in its own way.

    Example:
        >>> finish_of({"finish_reason": "length"}), finish_of({"stop_reason": "max_tokens"}), finish_of({})
        ('length', 'length', 'stop')
    """
    said = {str(metadata.get(key)).lower() for key in _FINISH_KEYS}
    return "length" if said & _CUT_BY_LENGTH else "filtered" if said & _CUT_BY_FILTER else "stop"


_FINISH_KEYS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status")
_CUT_BY_LENGTH = {"length", "max_tokens", "model_length", "incomplete"}
_CUT_BY_FILTER = {"filtered", "content_filter", "content_filtered", "guardrail_intervened", "refusal", "safety"}


def _is_count(value: Any) -> TypeGuard[int]:
    # A negative count would make other calls cheaper, and a number of 400 digits is no cost that can be computed.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def cost(usage: Usage, price: Price) -> float:
    """Return what this usage costs at this price, in dollars.

    Example:
        >>> cost({"prompt_tokens": 1000, "cached_tokens": 0, "completion_tokens": 500, "estimated": False}, Price(1, 2))
        0.002
    """
    return sum_of(cost_parts(usage, price))


def cost_parts(usage: Usage, price: Price) -> CostParts:
    """Return what this usage costs at this price, by what is paid for."""
    rates = price.at(usage["prompt_tokens"])
    written = usage.get("cache_write_tokens", 0)
    fresh = usage["prompt_tokens"] - usage["cached_tokens"] - written
    return {
        "prompt": PER_MILLION * fresh * rates.prompt + PER_MILLION * written * rates.cache_write,
        "cached": PER_MILLION * usage["cached_tokens"] * rates.cached,
        "completion": PER_MILLION * usage["completion_tokens"] * rates.completion,
        "router": 0.0,
    }


def sum_of(parts: CostParts) -> float:
    """Return the dollars of all parts together."""
    return parts["prompt"] + parts["cached"] + parts["completion"] + parts["router"]


def add_cost_parts(parts: Iterable[CostParts]) -> CostParts:
    """Add up, part by part."""
    total = NO_COST.copy()
    for one in parts:
        total["prompt"] += one["prompt"]
        total["cached"] += one["cached"]
        total["completion"] += one["completion"]
        total["router"] += one["router"]
    return total


def worst_case(prompt_tokens: int, max_tokens: int, price: Price) -> float:
    """Return the most a call can cost, in dollars: the prompt at its most expensive, every allowed token produced."""
    rates = price.at(prompt_tokens)  # tiers rise: a shorter prompt costs no more
    per_prompt_token = max(rates.prompt, rates.cached, rates.cache_write)
    return PER_MILLION * (prompt_tokens * per_prompt_token + max_tokens * rates.completion)


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, where there is no tokenizer."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def estimated_usage(prompts: Iterable[str], reply: str) -> UsageMetadata:
    """Return the usage, as LangChain tells it, of a model that is a program and has no tokens.

    Example:
        >>> estimated_usage(["What is #1?"], "Lima")
        {'input_tokens': 3, 'output_tokens': 1, 'total_tokens': 4}
    """
    read, written = sum(map(estimate_tokens, prompts)), estimate_tokens(reply)
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def add_usage(usages: Iterable[Usage]) -> Usage:
    """Add up; the sum is `estimated` when any part is."""
    total = NO_USAGE.copy()
    for usage in usages:
        total["prompt_tokens"] += usage["prompt_tokens"]
        total["cached_tokens"] += usage["cached_tokens"]
        total["cache_write_tokens"] += usage.get("cache_write_tokens", 0)
        total["completion_tokens"] += usage["completion_tokens"]
        total["estimated"] = total["estimated"] or usage["estimated"]
    return total


def bound(usd: float) -> float | None:
    """Return a worst case as an upper bound that JSON can hold: None for infinity."""
    return usd if math.isfinite(usd) else None


def add_bounds(*bounds: float | None) -> float | None:
    """Add up upper bounds in dollars; None stands for "no bound is known", and so is a sum that it is part of.

    Example:
        >>> add_bounds(0.25, 0.5), add_bounds(0.25, None)
        (0.75, None)
    """
    total = 0.0
    for bound in bounds:
        if bound is None:
            return None
        total += bound
    return total


def affordable(worst_cases: Sequence[float], left: float | None) -> list[bool]:
    """Reserve calls against what is left of a budget, together and in order; say which fit.

    Calls of one turn run at the same time, so each is checked against what the earlier ones may still cost.

    Example:
        >>> affordable([0.4, 0.9, 0.5], left=1.0)
        [True, False, True]
        >>> affordable([7.0], left=None)      # no budget
        [True]
    """
    if left is None:
        return [True] * len(worst_cases)
    fits = []
    for worst in worst_cases:
        fits.append(worst <= left)
        if fits[-1]:
            left -= worst
    return fits
