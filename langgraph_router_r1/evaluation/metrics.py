"""Scores of an answer against golden answers, by SQuAD's rules (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return the form in which answers are compared: lower case, no punctuation, no articles, single spaces.

    Example:
        >>> normalise("The  Dr. of +51!")
        'dr of 51'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golden_answers: Iterable[str]) -> bool:
    """Return whether the answer equals one of the golden answers, both normalised.

    Example:
        >>> exact_match("the Sol.", ["Sol", "Peruvian sol"])
        True
    """
    return normalise(answer) in {normalise(golden) for golden in golden_answers}
