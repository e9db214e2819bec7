"""Usage into money, and budgets: pure arithmetic, in dollars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from typing_extensions import TypedDict

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
    completion_tokens: int
    estimated: bool
    """Whether any of it was counted here because the provider did not report it."""


class CostParts(TypedDict):
    """Dollars, by what was paid for."""

    prompt: float
    """Prompt tokens, without the cached ones."""
    cached: float
    """Prompt tokens that the provider had in its cache."""
    completion: float
    router: float
    """The own tokens of a router that was asked as a model."""


NO_COST: CostParts = {"prompt": 0.0, "cached": 0.0, "completion": 0.0, "router": 0.0}

NO_USAGE: Usage = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "estimated": False}


@dataclass(frozen=True)
class Price:
    """List price in dollars per million tokens.

    Example:
        >>> Price(prompt=0.1, completion=0.4)              # cached prompt tokens cost as much as others
        Price(prompt=0.1, completion=0.4, cached=0.1)
        >>> Price.parse("free")
        Price(prompt=0.0, completion=0.0, cached=0.0)
        >>> Price.parse(0.2)                               # in and out alike
        Price(prompt=0.2, completion=0.2, cached=0.2)
    """

    prompt: float
    completion: float
    cached: float = math.nan
    """What a prompt token costs that the provider had in its cache; by default as much as any."""

    def __post_init__(self) -> None:
        if isinstance(self.cached, float) and math.isnan(self.cached):
            object.__setattr__(self, "cached", self.prompt)
        for part in ("prompt", "completion", "cached"):
            value = getattr(self, part)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
                msg = f"price.{part} is {_shown(value)}; it must be a number of dollars per million tokens, 0 or more"
                raise ValueError(msg)

    @classmethod
    def parse(cls, value: Any) -> Price:
        """Read a price as it stands in a registry file.

        Args:
            value: `"free"`, one number for prompt and completion alike, or a table with `prompt`, `completion`
                and, if they are cheaper, `cached`.

        Raises:
            ValueError: It is none of these.
        """
        if isinstance(value, Price):
            return value
        if value == "free":
            return cls(0.0, 0.0)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return cls(value, value)
        if isinstance(value, Mapping) and {"prompt", "completion"} <= set(value) <= {"prompt", "completion", "cached"}:
            return cls(**value)
        msg = (
            f"price is {_shown(value)}; it must be 'free', a number of dollars per million tokens, "
            "or a table with prompt, completion and perhaps cached"
        )
        raise ValueError(msg)

    def __str__(self) -> str:
        if not (self.prompt or self.completion or self.cached):
            return "free"
        if self.prompt == self.completion:
            return f"${self.prompt:g}/M"
        return f"${self.prompt:g}/M in, ${self.completion:g}/M out"


def _shown(value: Any) -> str:
    """Return a wrong price as an error may show it: a number as it is; of anything else, which may be a key, its type.

    Example:
        >>> _shown(-1), _shown("sk-secret")
        ('-1', 'a str')
    """
    return repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"


PriceLike = Price | float | str | Mapping[str, float]
"""The forms that `Price.parse` reads."""

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
    details = reported.get("input_token_details")
    cached = details.get("cache_read") if isinstance(details, Mapping) else None
    return {
        "prompt_tokens": prompt,
        "cached_tokens": min(cached, prompt) if _is_count(cached) else 0,
        "completion_tokens": completion,
        "estimated": False,
    }, from_cache


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
_CUT_BY_FILTER = {"content_filter", "content_filtered", "guardrail_intervened", "refusal", "safety"}


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
    fresh = usage["prompt_tokens"] - usage["cached_tokens"]
    return {
        "prompt": PER_MILLION * fresh * price.prompt,
        "cached": PER_MILLION * usage["cached_tokens"] * price.cached,
        "completion": PER_MILLION * usage["completion_tokens"] * price.completion,
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
    """Return the most a call can cost, in dollars: nothing cached, every allowed token produced."""
    return PER_MILLION * (prompt_tokens * max(price.prompt, price.cached) + max_tokens * price.completion)


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, where there is no tokenizer."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def add_usage(usages: Iterable[Usage]) -> Usage:
    """Add up; the sum is `estimated` when any part is."""
    total = NO_USAGE.copy()
    for usage in usages:
        total["prompt_tokens"] += usage["prompt_tokens"]
        total["cached_tokens"] += usage["cached_tokens"]
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
