"""What looks like a key: names of parameters that carry secrets, and the forms of the usual providers' keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from langgraph_router_r1.protocol import encodable

MAX_DEPTH = 32
"""Most tables and lists inside one another, and most parts of a dotted key in a registry file."""

SECRET_NAME = re.compile(
    r"(api|access|private|subscription)[-_]?key|secret|passw|(^|[-_])auth($|[-_])|authorization|bearer|credential|cookie"
    r"|(^|access|auth|refresh|session|[-_])token$|header|(^|[-_])query$|(^|[-_])prox(y|ies)$|http_(async_)?client",
    re.IGNORECASE,
)
"""Names of parameters that carry a secret, or may: headers, query strings, proxies, HTTP clients."""
SECRET_VALUE = re.compile(
    r"\b(sk|rk|pk)[-_][\w-]{16}|\b(nvapi|gsk|xai|pplx|xox[abp])[-_][\w-]{16}|\b(hf|gh[opsu]|github_pat|glpat)[-_]\w{16}"
    r"|\b(AIza|AKIA|eyJ)[\w-]{16}|\bBearer\s+\S{8}|://[^/\s@]+@"
)
"""The forms of the usual providers' keys, and of an address with a password in it; other keys are not recognised."""

MAX_VALUES = 10_000
"""Most values in one field of a model: a few shared tables can stand for billions."""


def walk(value: Any) -> Iterator[Any]:
    """Yield a value, and all keys and values in it.

    Raises:
        ValueError: It is nested too deep, as a table that holds itself is, or holds too much.
    """
    to_do = [(value, 0)]
    count = 0
    while to_do:
        value, depth = to_do.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            msg = f"it holds more than {MAX_VALUES:,} values, or tables and lists more than {MAX_DEPTH} deep"
            raise ValueError(msg)
        yield value
        if isinstance(value, Mapping):
            to_do += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple | set | frozenset):
            to_do += [(inner, depth + 1) for inner in value]


def keys_in(value: Any) -> Iterator[str]:
    """Yield the keys of all tables in a value."""
    return (str(key) for inner in walk(value) if isinstance(inner, Mapping) for key in inner)


def shown(name: Any) -> str:
    """Return a name as an error may show it: short, as printable text, and nothing that looks like a key."""
    text = encodable(name) if isinstance(name, str) else type(name).__name__
    if SECRET_VALUE.search(text):
        return "(not shown)"
    return text if len(text) <= 64 else f"{text[:64]}..."
