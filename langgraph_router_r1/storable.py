"""What checkpoints and databases can hold of the data that models and clients send."""

from __future__ import annotations

import math
from typing import Any

from langgraph_router_r1.protocol import encodable

MOST_LEVELS = 64
"""How deep lists and objects may lie in one another."""


def storable(value: Any, *, levels: int = MOST_LEVELS) -> Any:
    r"""Return a copy of JSON data that every checkpointer and database takes; see `encodable` for its texts.

    Raises:
        ValueError: It holds a whole number beyond 64 bits, a number that is not finite, something that is no JSON, or
            lists and objects too deep in one another.

    Example:
        >>> storable({"city": "Lima \ud83d"})
        {'city': 'Lima ?'}
        >>> storable([10**20])
        Traceback (most recent call last):
        ValueError: 100000000000000000000 can't be stored: it has more than 64 bits
    """
    match value:
        case None | bool():
            return value
        case str():
            return encodable(value)
        case int():
            if -(2**63) <= value < 2**64:
                return value
            raise ValueError(f"{str(value)[:40]} can't be stored: it has more than 64 bits")
        case float():
            if math.isfinite(value):
                return value
            raise ValueError(f"{value} can't be stored: it is no finite number")
        case dict() | list() | tuple() if not levels:
            raise ValueError(f"data with more than {MOST_LEVELS} levels can't be stored")
        case dict():
            return {encodable(str(key)): storable(one, levels=levels - 1) for key, one in value.items()}
        case list() | tuple():
            return [storable(one, levels=levels - 1) for one in value]
    raise ValueError(f"a {type(value).__name__} can't be stored")


def without_nul(text: str) -> str:
    """Return the text with a replacement character for each NUL, which PostgreSQL takes in no text."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
