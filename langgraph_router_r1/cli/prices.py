"""What `router-r1 models --prices` prints: each typed price beside the price list's."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from langgraph_router_r1.ledger import RATES, Price
from langgraph_router_r1.price_list import UnlistedPriceError, list_name, list_price
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.trace import printable


def price_table(registry: ModelRegistry) -> Table:
    """Return the table of the models with their prices, those of the list, and where they differ.

    Raises:
        ModuleNotFoundError: `genai-prices` is not installed.
    """
    table = Table("model", "price", "list price", "difference to the list", title=f"List prices of {list_name()}")
    for model in registry:
        try:
            listed = list_price(model.model, base_url=model.base_url, params=model.params)
        except UnlistedPriceError as error:
            found, differs = "none", str(error)
        else:
            found = f"{listed} ({str(listed.source).partition(': ')[2]})"
            differs = _differences(model.price, listed)
        table.add_row(*(Text(printable(text)) for text in (model.name, str(model.price), found, differs)))
    return table


def _differences(typed: Price, listed: Price) -> str:
    """Return how far each rate is from the list's, in percent of the latter: a line for each tier of either."""
    lines = []
    for above in (0, *sorted({tier.above for price in (typed, listed) for tier in price.tiers})):
        ours, theirs = typed.at(above + 1), listed.at(above + 1)
        found = [
            f"{rate} {_far(getattr(ours, rate), getattr(theirs, rate))}"
            for rate in RATES
            if getattr(ours, rate) != getattr(theirs, rate)
        ]
        if found:
            lines.append((f"above {above:,} prompt tokens: " if above else "") + ", ".join(found))
    return "\n".join(lines) or "none"


def _far(ours: float, theirs: float) -> str:
    return f"{ours / theirs - 1:+.1%}" if theirs else "is free in the list"
