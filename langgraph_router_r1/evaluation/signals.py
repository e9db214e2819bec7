"""What a question and the replies to it say of who is right, as numbers that a forest of trees can learn from.

Some are measured: how long a text is, which option a reply names, whether it doubts. The others are predicted: a
`WordRegression` is a linear model that predicts scores from the words of a text. It learns from the same questions as
the forest does, so what it predicts of each of them comes from a model that did not learn from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langgraph_router_r1.strategies.knn import Matrix

END = 160
"""How many characters of a reply are read, its last ones: the conclusion is there."""

_STATED = re.compile(r"answer(?:\s+is)?\s*:?\s*([^.\n]+)", re.IGNORECASE)
_OPTION = re.compile(r"^\s*\(?([A-Z])[).:]\s(.*)$", re.MULTILINE)
_CHOSEN = re.compile(
    r"\b(?i:answer|option|choice)\b(?:[^A-Za-z\n]|\bis\b|\bare\b|\boption\b|\bchoice\b)*([A-Z])\b(?!')"
    r"|boxed\{\W*(?:\\?text\{\W*)?([A-Z])\b"
)
_NEGATED = re.compile(r"\b(?:not|except|incorrect|false)\b", re.IGNORECASE)
_FORMULA = re.compile(r"[$\\=]")
_DIGIT = re.compile(r"\d")
_DOUBTS = ("closest", "none of the", "however", "approximat")


def stated_answer(reply: str, question: str = "") -> str:
    r"""Return what a reply states as its answer, without punctuation: to be compared with another's.

    Of a question with lettered options it is the letter of the last one that is called the answer, or nothing.

    Example:
        >>> stated_answer("Both mate rarely.\nThe answer is (J).")
        'j'
        >>> stated_answer("So it is $\\boxed{\\text{B}}$", "Which?\n(A) 1\n(B) 2")
        'b'
        >>> stated_answer("Lima")
        'lima'
    """
    options = {letter for letter, _ in _OPTION.findall(question)}
    if len(options) > 1:
        return next((letter.casefold() for letter in reversed(_chosen(reply)) if letter in options), "")
    found = _STATED.findall(reply)
    stated = found[-1] if found else reply.strip().rpartition("\n")[2]
    return "".join(letter for letter in stated.casefold() if letter.isalnum() or letter == " ").strip()


def _chosen(reply: str) -> list[str]:
    """Return the letters that a reply calls the answer, in its order."""
    return [one or other for one, other in _CHOSEN.findall(reply)]


@dataclass(frozen=True)
class Heard:
    """What one model replied to one question."""

    answer: str
    """Stated; empty for a call that failed."""
    completion_tokens: int
    end: str
    """The last characters of the reply."""

    @classmethod
    def of(cls, reply: str, question: str, completion_tokens: int) -> Heard:
        """Return what is heard of a whole reply, or of its end."""
        return cls(stated_answer(reply, question), completion_tokens, reply.strip()[-END:])


NOTHING = Heard("", 0, "")
"""What is heard of a call that failed."""


def of_question(question: str) -> list[float]:
    """Return what is measured of a question and of its options, where it has any."""
    stem, options = question[: _start_of_options(question)], [text for _, text in _OPTION.findall(question)]
    lengths = [len(text) for text in options] or [0]
    return [
        math.log1p(len(question)),
        _share_of_digits(question),
        question.count("\n"),
        len(options),
        math.log1p(float(np.mean(lengths))),
        math.log1p(float(np.std(lengths))),
        sum(bool(_DIGIT.search(text)) for text in options) / max(1, len(options)),
        math.log1p(len(stem)),
        _share_of_digits(stem),
        len(_FORMULA.findall(stem)),
        "_" in stem,
        bool(_NEGATED.search(stem)),
        "?" in stem,
        stem.rstrip().endswith((".", ":")),
    ]


def of_reply(heard: Heard, question: str) -> list[float]:
    """Return what is measured of a reply by itself."""
    options = {letter.casefold(): math.log1p(len(text)) for letter, text in _OPTION.findall(question)}
    tokens, end, chosen = math.log1p(heard.completion_tokens), heard.end.lower(), _chosen(heard.end)
    usual = sum(options.values()) / max(1, len(options))
    return [
        tokens,
        tokens - math.log1p(len(question)),
        not heard.answer,
        ord(heard.answer) if heard.answer in options else -1,
        options.get(heard.answer, usual) - usual,
        len(end),
        bool(_DIGIT.search(end)),
        # A reply that goes on to questions of its own states several answers.
        len(chosen),
        len(set(chosen)),
        *(doubt in end for doubt in _DOUBTS),
    ]


def _start_of_options(question: str) -> int:
    first = _OPTION.search(question)
    return first.start() if first else len(question)


def _share_of_digits(text: str) -> float:
    return sum(map(str.isdigit, text)) / max(1, len(text))


class WordRegression:
    """Predicts scores from the words of a text, by a ridge regression."""

    def __init__(self, texts: Sequence[str], scores: Matrix) -> None:
        """Learn from some texts.

        Args:
            texts: At least two.
            scores: Texts x what is predicted.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import KFold, cross_val_predict
        from sklearn.pipeline import make_pipeline

        # An empty text is a word, too: else there would be nothing to learn from where no text was recorded.
        words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+|^$")  # noqa: S106 - no password
        self._fitted = make_pipeline(words, Ridge(alpha=2.0))
        folds = KFold(min(5, len(texts)), shuffle=True, random_state=0)
        texts = [text.strip() for text in texts]
        found = cross_val_predict(self._fitted, texts, scores, cv=folds)
        self.unseen: Matrix = found.reshape(len(texts), -1)
        """What is predicted of each of these texts by a model that learned from others: texts x predictions."""
        self._fitted.fit(texts, scores)

    def predict(self, text: str) -> Matrix:
        """Return what is predicted of one text."""
        found: Matrix = np.asarray(self._fitted.predict([text.strip()])).reshape(-1)
        return found


def agree(answers: Matrix) -> Matrix:
    """Return who states the same answer as whom, from the answers of each question: questions x models x models."""
    same = (answers[:, :, None] == answers[:, None, :]) & (answers != "")[:, :, None]
    found: Matrix = same | np.eye(answers.shape[1], dtype=bool)
    return found


def pooled(expected: Matrix, answers: Matrix) -> Matrix:
    """Return expected scores (questions x models) that are the same for replies that state the same answer.

    Example:
        >>> pooled(np.array([[0.5, 0.9, 0.6]]), np.array([["a", "b", "a"]]))
        array([[0.55, 0.9 , 0.55]])
    """
    same = agree(answers)
    mean: Matrix = (same * expected[:, None, :]).sum(2) / same.sum(2)
    return mean


def likeliest(expected: Matrix, answers: Matrix) -> NDArray[np.int64]:
    """Return which reply to each question to pass on: of those with the likeliest answer, the likeliest one.

    Replies that state the same answer can differ: one goes on to other questions, another says it clearly.

    Example:
        >>> likeliest(np.array([[0.5, 0.55, 0.7]]), np.array([["a", "b", "a"]]))
        array([2])
    """
    mean = pooled(expected, answers)
    is_best = np.isclose(mean, mean.max(1, keepdims=True), rtol=0, atol=1e-12)
    found: NDArray[np.int64] = np.where(is_best, expected, -np.inf).argmax(1)
    return found
