"""What models cost by the price list in the package `genai-prices`: the `price = "auto"` of a registry.

The list is the snapshot that the installed package brings along. Nothing is fetched, also not where a program has
`genai-prices` update itself: a price of a record is to be found again in a release of that package.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langgraph_router_r1.ledger import Price, Tier
from langgraph_router_r1.secret_text import shown

if TYPE_CHECKING:
    from decimal import Decimal

    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

RELEASED = {"0.2.3": "2026-11-10"}
"""When the versions that this package knows were released; they don't say it themselves."""

PROVIDERS = {
    "anthropic": "anthropic",
    "anthropic_bedrock": "aws",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "baseten": "baseten",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "google_anthropic_vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "groq": "groq",
    "meta": "meta",
    "mistralai": "mistral",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "together": "together",
    "xai": "x-ai",
}
"""LangChain's names of providers, and those of the list. The list guesses at names, and takes Azure for OpenAI."""

_RATES = {
    "prompt": "input_mtok",
    "completion": "output_mtok",
    "cached": "cache_read_mtok",
    # For five minutes, as is usual.
    "cache_write": "cache_write_mtok",
}
_NO_RATES = ("requests_kcount", "output_reasoning_mtok", "output_citation_mtok")
"""What a `Price` can't say. Searches, sound and images, which have prices too, are not asked for here."""


class UnlistedPriceError(ValueError):
    """The price list does not say what a model costs."""


def list_name() -> str:
    """Return which price list is installed, and of which date.

    Raises:
        ModuleNotFoundError: None is.
    """
    _snapshot()
    from genai_prices import __version__

    return f"genai-prices {__version__}, {RELEASED.get(__version__, 'of unknown date')}"


def list_price(
    model: Any, *, base_url: str | None = None, params: Mapping[str, Any] | None = None, day: dt.date | None = None
) -> Price:
    """Return what a model costs by the list.

    Where the price depends on the time of day, it is the highest of the day, and its source says so.

    Args:
        model: As in a descriptor.
        base_url: As in a descriptor; it must be None, as other servers have other prices.
        params: As in a descriptor; a `service_tier` may have its own price.
        day: On which day (UTC); by default today.

    Raises:
        UnlistedPriceError: The list does not say what it costs, or the model can't be told.
        ModuleNotFoundError: `genai-prices` is not installed.
    """
    if not isinstance(model, str):
        raise UnlistedPriceError(f"which model a {type(model).__name__} is can't be told")
    if base_url is not None:
        raise UnlistedPriceError(f"what the server at base_url takes for {shown(model)!r} is in no list")
    provider, _, name = model.partition(":")
    if provider not in PROVIDERS:
        raise UnlistedPriceError(
            f"{shown(model)!r} must begin with a provider that the list has: {', '.join(PROVIDERS)}"
        )
    try:
        listed_by, info = _snapshot().find_provider_model(name, None, PROVIDERS[provider], None)
    except LookupError:
        raise UnlistedPriceError(f"{list_name()}, has no {shown(model)!r}") from None
    context = {key: value for key, value in (params or {}).items() if isinstance(value, str)}
    prices = _prices_of_day(info, day or dt.datetime.now(tz=dt.UTC).date(), context)
    varies = any(price != prices[0] for price in prices)
    source = f"{list_name()}: {listed_by.id}/{info.id}{', the highest of the day' if varies else ''}"
    beyond = [key for price in prices for key in _NO_RATES if getattr(price, key) is not None]
    if beyond:
        raise UnlistedPriceError(f"{list_name()}, has a price by {beyond[0]} for {shown(model)!r}")
    rates = {
        ours: max(found, key=_base)
        for ours, theirs in _RATES.items()
        if (found := [rate for price in prices if (rate := getattr(price, theirs)) is not None])
    }
    if not {"prompt", "completion"} <= rates.keys():
        raise UnlistedPriceError(f"{list_name()}, has no price by prompt and completion tokens for {shown(model)!r}")
    starts = sorted({tier.start for rate in rates.values() for tier in getattr(rate, "tiers", ())})
    tiers = (Tier(**_rates_at(rates, start + 1), above=start) for start in starts)
    return Price(**_rates_at(rates, 0), tiers=tuple(tiers), source=source)


@functools.cache
def _snapshot() -> DataSnapshot:
    # Only where it is needed: reading the list takes half a second.
    try:
        from genai_prices.data import providers
        from genai_prices.data_snapshot import DataSnapshot
    except ModuleNotFoundError as error:
        msg = "list prices need the package genai-prices: pip install 'langgraph-router-r1[prices]'"
        raise ModuleNotFoundError(msg, name=error.name) from None
    return DataSnapshot(providers=providers, from_auto_update=False)


def _prices_of_day(info: ModelInfo, day: dt.date, context: Mapping[str, str]) -> list[ModelPrice]:
    """Return the prices at each time of a day at which they may change."""
    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    dated = [] if isinstance(info.prices, ModelPrice) else info.prices
    constraints = [one.constraint for one in (*dated, *(info.price_variants or ()))]
    times = {dt.time(0)}
    for constraint in constraints:
        if isinstance(constraint, TimeOfDateConstraint):
            times |= {constraint.start_time, constraint.end_time}
    return [info.get_prices(dt.datetime.combine(day, time), context) for time in times]


def _rates_at(rates: Mapping[str, Decimal | TieredPrices], prompt_tokens: int) -> dict[str, float]:
    return {name: _rate_at(rate, prompt_tokens) for name, rate in rates.items()}


def _rate_at(rate: Any, prompt_tokens: int) -> float:
    reached = [tier.price for tier in getattr(rate, "tiers", ()) if prompt_tokens > tier.start]
    return float(reached[-1] if reached else _base(rate))


def _base(rate: Any) -> Any:
    return getattr(rate, "base", rate)
