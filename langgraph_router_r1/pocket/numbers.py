"""A specialist that is a program and not a language model: it says which of two numbers is higher."""

from __future__ import annotations

import re

UNKNOWN = "I can only say which of two numbers is higher."

_COMPARED = re.compile(r"Which is higher, (.{1,200}?) with \+?(\d{1,15}) or (.{1,200}?) with \+?(\d{1,15})\?", re.ASCII)


def higher_of(text: str) -> str:
    """Return whose number is higher, of two that a text tells of; a sentence if it does not ask for that.

    Example:
        >>> higher_of("Which is higher, Peru with +51 or Chile with +56?")
        'Chile'
    """
    match = _COMPARED.search(text)
    if match is None:
        return UNKNOWN
    first, one, second, two = match.groups()
    return "They are equal." if int(one) == int(two) else first if int(one) > int(two) else second
