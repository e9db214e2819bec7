"""Scores of an answer against golden answers, by SQuAD's rules (Rajpurkar et al., 2016), and their statistics."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MARKUP = re.compile(r"</?[a-zA-Z]\w*>")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


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


def f1(answer: str, golden_answers: Iterable[str]) -> float:
    """Return the harmonic mean of precision and recall over words, 0 to 1, best over the golden answers.

    An empty text agrees with an empty one only, as in SQuAD 2.0.

    Example:
        >>> round(f1("the Peruvian sol", ["Sol"]), 3)
        0.667
    """
    return max((_f1(normalise(answer).split(), normalise(golden).split()) for golden in golden_answers), default=0.0)


def _f1(answer: Sequence[str], golden: Sequence[str]) -> float:
    if not answer or not golden:
        return float(answer == golden)
    common = sum((Counter(answer) & Counter(golden)).values())
    return 2 * common / (len(answer) + len(golden))


def contains(answer: str, golden_answers: Iterable[str]) -> bool:
    """Return whether a golden answer stands in the answer as whole words, both normalised.

    A golden answer that is nothing once normalised stands in nothing.

    Example:
        >>> contains("The capital of Peru is Lima.", ["Lima"]), contains("Limassol", ["Lima"])
        (True, False)
    """
    said = f" {normalise(answer)} "
    wanted = (normalise(golden) for golden in golden_answers)
    return any(golden and f" {golden} " in said for golden in wanted)


def without_tags(reply: str) -> str:
    """Return a reply without markup such as `<answer>`: once normalised, a tag sticks to the word it touches.

    Example:
        >>> contains("<answer>Lima</answer>", ["Lima"]), contains(without_tags("<answer>Lima</answer>"), ["Lima"])
        (False, True)
    """
    return _MARKUP.sub(" ", reply)


def last_number(answer: str, golden_answers: Iterable[str]) -> bool:
    """Return whether the last number of the answer is a golden one, as is usual for GSM8K.

    Example:
        >>> last_number("18 dollars minus 2 is 16.0", ["16"])
        True
    """
    found = _NUMBER.findall(answer)
    return bool(found) and any(
        _value(found[-1]) == _value(golden[-1]) for golden in map(_NUMBER.findall, golden_answers) if golden
    )


def _value(number: str) -> float:
    return float(number.replace(",", ""))


METRICS: dict[str, Callable[[str, Iterable[str]], float]] = {
    "em": exact_match,
    "f1": f1,
    "contains": contains,
    "number": last_number,
}
"""The metrics by name, as benchmark files name them; each from 0 to 1."""


RESAMPLED_AT_ONCE = 10_000_000
"""Most values of resamples that are in memory at once (eight bytes each)."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Example:
        >>> print(Estimate(0.5, 0.412, 0.588))
        .500 [.412, .588]
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.mean)} [{_short(self.low)}, {_short(self.high)}]"


def _short(share: float) -> str:
    return f"{share:.3f}".removeprefix("0") if 0 <= share < 1 else f"{share:.3f}"


def bootstrap(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Return the mean with its percentile bootstrap interval (9,999 resamples); the same for the same seed.

    Raises:
        ValueError: There are no values.
    """
    import numpy as np
    from scipy import stats

    if not len(values):
        raise ValueError("there are no values to estimate a mean from")
    sample = np.asarray(values, dtype=float)
    mean = float(sample.mean())
    if np.ptp(sample) == 0:  # every resample is the same
        return Estimate(mean, mean, mean)
    found = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, RESAMPLED_AT_ONCE // len(sample)),  # the result is the same for any
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high))


def paired_p_value(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Return how likely a difference of means at least as large is when the two do not differ.

    A two-sided permutation test over pairs: each question's two scores change places at random. Exact up to 13
    questions, 9,999 permutations beyond.

    Raises:
        ValueError: They are not as many.
    """
    import numpy as np
    from scipy import stats

    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores can't be paired: they must be of the same questions")
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    differences = differences[differences != 0]  # a pair that agrees changes nothing by changing places
    if len(differences) < 2:  # one coin always falls as it fell, or the other way round
        return 1.0
    result = stats.permutation_test(
        (differences,),
        lambda sample, axis: np.mean(sample, axis=axis),
        vectorized=True,
        permutation_type="samples",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def wilson(right: float, of: int, *, confidence: float = 0.95) -> Estimate:
    """Return a share with its Wilson score interval: never empty, at 0 and 1 too. `right` of `of` trials."""
    from scipy import stats

    if of < 1:
        raise ValueError(f"{right!r} of {of!r}: a share needs at least one trial")
    interval = stats.binomtest(round(right), of).proportion_ci(confidence_level=confidence, method="wilson")
    return Estimate(right / of, float(interval.low), float(interval.high))
