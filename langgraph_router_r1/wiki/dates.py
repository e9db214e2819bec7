"""A specialist that is a program: which of two dates is the earlier one, and whether two countries are the same."""

from __future__ import annotations

import re

from langgraph_router_r1.evaluation.metrics import normalise

UNKNOWN = "I can only compare two dates or two countries."

MAX_CHARS = 2_000
"""How many characters of a question are read."""

_WHICH = re.compile(r"Which date is (earlier|later): \(A\) (.+?) = (.+?) \(B\) (.+) = (.+?)\?")
_SAME = re.compile(r"Are these the same country: \(A\) (.+?) \(B\) (.+?)\?")

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_DAY = re.compile(r"(?<!\d)(\d{1,2})(?!\d)")
_YEAR = re.compile(r"(?<!\d)(\d{3,4})(?!\d)", re.ASCII)

_ALIKE = {
    "america": "us", "american": "us", "united states": "us", "united states of america": "us", "usa": "us",
    "us": "us", "u s": "us", "british": "uk", "britain": "uk", "great britain": "uk", "united kingdom": "uk",
    "uk": "uk", "england": "uk", "english": "uk", "scottish": "uk", "scotland": "uk", "welsh": "uk", "wales": "uk",
    "france": "fr", "french": "fr", "german": "de", "germany": "de", "dutch": "nl", "netherlands": "nl",
    "spain": "es", "spanish": "es", "filipino": "ph", "philippines": "ph", "swiss": "ch", "switzerland": "ch",
    "denmark": "dk", "danish": "dk", "poland": "pl", "polish": "pl", "turkey": "tr", "turkish": "tr",
}  # fmt: skip
"""Countries and nationalities that don't begin alike, or have several names."""


def date_of(text: str) -> tuple[int, int, int] | None:
    """Return year, month and day of a date, 0 for what it does not tell; None if it has no year.

    Example:
        >>> date_of("February 22, 1720"), date_of("22 January 1794"), date_of("1949"), date_of("Lima")
        ((1720, 2, 22), (1794, 1, 22), (1949, 0, 0), None)
    """
    year = _YEAR.search(text)
    if year is None:
        return None
    lower = text.lower()
    month = next((number for number, name in enumerate(_MONTHS, start=1) if name[:3] in lower), 0)
    day = _DAY.search(text)
    return int(year[1]), month, int(day[1]) if day and month else 0


def same_country(one: str, two: str) -> bool:
    """Return whether two names of countries or nationalities mean the same country, as far as their letters tell.

    Example:
        >>> same_country("American", "United States"), same_country("Italian", "Italy"), same_country("Iran", "Iraq")
        (True, True, False)
    """
    first, second = (normalise(name) for name in (one, two))
    known = _ALIKE.get(first), _ALIKE.get(second)
    return known[0] == known[1] if any(known) else first[:4] == second[:4]


def compared(text: str) -> str:
    """Return the answer to one of the two questions that this knows; a sentence if it is another.

    Example:
        >>> compared("Which date is earlier: (A) Ann Lee = 3 May 1950 (B) Bo Li = 1953?")
        'Ann Lee'
        >>> compared("Are these the same country: (A) Italian (B) Peru?")
        'no'
    """
    text = text[:MAX_CHARS]
    if match := _WHICH.search(text):
        side, first, one, second, two = match.groups()
        dates = date_of(one), date_of(two)
        if dates[0] is None or dates[1] is None:
            return UNKNOWN
        return first if (dates[0] <= dates[1]) == (side == "earlier") else second
    if match := _SAME.search(text):
        return "yes" if same_country(match[1], match[2]) else "no"
    return UNKNOWN
