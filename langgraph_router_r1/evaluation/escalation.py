"""Scouts first: cheap models answer side by side, and their replies tell whether to ask one more model, and which.

A cascade asks one model after the other and looks at one reply at a time. Here the replies of several scouts are looked
at together. A forest of random trees predicts, from the question and from what the scouts said of it, how good the
answer will be if the run ends now or after one more model, and what that model would cost. The answer is the reply that
is likeliest to be right, by all replies together: the last one is not always the best (compare cascade routing,
arXiv 2410.10347).
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from typing_extensions import override

from langgraph_router_r1.evaluation.recorded import RecordedPool, outcome_cost, quality
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import RoutedCall
from langgraph_router_r1.strategies import Answer, Ask, Call, Decision, Strategy, View
from langgraph_router_r1.strategies.knn import Matrix

MOST_SCOUTS = 3
"""How many scouts there are at most: each is paid for every question."""

LEAST_GAIN = 0.001
"""By how much a scout has to improve the mean utility of the train split."""

DIRECTIONS = 64
"""To how many numbers the words of a question are reduced."""

TREES = 200
"""Of a forest that decides; those that only compare sets of scouts have a quarter."""

QUESTIONS_A_LEAF = 8
"""How many train questions a leaf of a tree has at least."""

CANDIDATES = 20
"""Of how many features a split of a tree takes the best."""

LEAST_ASKED = 0.01
"""Share of the train questions for which a model has to look worth asking, to be considered after the scouts."""

REMEMBERED = 16384
"""How many predictions are kept: the same question comes again at other cost weights."""

_STATED = re.compile(r"answer(?:\s+is)?\s*:?\s*([^.\n]+)", re.IGNORECASE)
_OPTION = re.compile(r"^\s*\(?([A-Z])[).:]\s", re.MULTILINE)
_CHOSEN = re.compile(
    r"\b(?i:answer|option|choice)\b(?:[^A-Za-z\n]|\bis\b|\bare\b|\boption\b|\bchoice\b)*([A-Z])\b(?!')"
    r"|boxed\{\W*(?:\\?text\{\W*)?([A-Z])\b"
)


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
    options = set(_OPTION.findall(question))
    if len(options) > 1:
        chosen = [one or other for one, other in _CHOSEN.findall(reply)]
        return next((letter.casefold() for letter in reversed(chosen) if letter in options), "")
    found = _STATED.findall(reply)
    stated = found[-1] if found else reply.strip().rpartition("\n")[2]
    return "".join(letter for letter in stated.casefold() if letter.isalnum() or letter == " ").strip()


@dataclass(frozen=True)
class Heard:
    """What one model replied to one question."""

    answer: str
    """Stated; empty for a call that failed."""
    completion_tokens: int


def features(question: str, words: Matrix, heard: Sequence[Heard]) -> Matrix:
    """Return what the predictions are made from: of the question, of each model's reply, and of each pair of them."""
    own = [math.log1p(len(question)), sum(map(str.isdigit, question)) / max(1, len(question)), question.count("\n")]
    for one in heard:
        own += [math.log1p(one.completion_tokens), float(not one.answer)]
    own += [float(bool(one.answer) and one.answer == other.answer) for one, other in itertools.combinations(heard, 2)]
    return np.concatenate([words, own])


Models = tuple[int, ...]
"""Models by their places in the registry."""


@dataclass(frozen=True)
class _Choices:
    """What can be done once the scouts have replied, and the forest that tells what comes of it."""

    more: Models
    """Who can be asked."""
    forest: Any
    """Predicts the score of ending now (with scouts only) and of ending after each of them; then the logarithms of
    what each costs."""


@dataclass
class Escalation(Strategy):
    """Asks scouts side by side, and then at most one more model; learned from recorded answers.

    What a run is worth is `(1 - w) score - w cost / c`, where `w` is the cost weight and `c` the mean cost of the most
    expensive model. Which models are the scouts depends on the cost weight: one or two are added as long as that
    improves the mean worth of the train questions. Where none does, one model is chosen by the question alone.

    Each forest predicts a train question by those of its trees that did not see it, so what is learned from these
    predictions is not learned from memory.

    Example:
        >>> strategy = Escalation(records.of_split("train"), registry)                     # doctest: +SKIP
        >>> router = create_router(strategy=strategy, registry=registry, cost_weight=0.1)  # doctest: +SKIP
    """

    records: RecordedPool
    """What it learns from: those of its tasks for which all models are recorded."""
    registry: ModelRegistry
    _scouts_at: dict[float, Models] = field(default_factory=dict, init=False, repr=False)
    _choices_at: dict[float, _Choices] = field(default_factory=dict, init=False, repr=False)
    _judges: dict[Models, Any] = field(default_factory=dict, init=False, repr=False)
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False)

    @override
    def decide(self, view: View) -> Decision:
        names, weight = self.registry.names, view.limits.cost_weight
        scouts = self.scouts(weight)
        if not view.turn and scouts:
            return Ask([Call(names[scout], view.question) for scout in scouts])
        said = {names.index(call["model"]): call for call in view.calls}
        replies = {place: call["response"] for place, call in said.items() if call["status"] == "ok"}
        if view.turn > bool(scouts):
            return self._answer(view, said, replies)
        choices = self._choices(scouts, weight)
        predicted = self._predict(choices.forest, view.question, tuple(_heard(said[one], view) for one in scouts))
        worth = self._worth(predicted, scouts, choices.more, weight)
        for place in np.argsort(-worth):
            if scouts and not place:
                if replies:
                    return self._answer(view, said, replies)
                continue
            name = names[choices.more[place - bool(scouts)]]
            if name in view.offered:
                return Ask.one(name, view.question)
        return self._answer(view, said, replies)

    def _answer(self, view: View, said: dict[int, RoutedCall], replies: dict[int, str]) -> Decision:
        """End with the reply that is likeliest to be right, as all that were asked let expect."""
        if not replies:
            return Answer("", stop_reason="no_answer")
        asked = tuple(sorted(said))
        if len(replies) == 1:
            return Answer(next(iter(replies.values())))
        heard = tuple(_heard(said[place], view) for place in asked)
        expected = self._predict(self._judge(asked), view.question, heard)
        return Answer(replies[max(replies, key=lambda place: expected[place])])

    def scouts(self, cost_weight: float) -> Models:
        """Return the scouts for a cost weight; the first time, this takes minutes for thousands of questions."""
        with self._lock:
            if cost_weight not in self._scouts_at:
                self._scouts_at[cost_weight] = self._choose(cost_weight)
            return self._scouts_at[cost_weight]

    def _choose(self, cost_weight: float) -> Models:
        chosen: Models = ()
        best = self._utility(chosen, cost_weight)
        while len(chosen) < min(MOST_SCOUTS, len(self.registry)):
            left = [place for place in range(len(self.registry)) if place not in chosen]
            # One reply may say nothing where two do, by being the same or not.
            more = [*itertools.combinations(left, 1), *itertools.combinations(left, 2)]
            sets = [tuple(sorted((*chosen, *new))) for new in more if len(chosen) + len(new) <= MOST_SCOUTS]
            utility, found = max((self._utility(scouts, cost_weight), scouts) for scouts in sets)
            if utility < best + LEAST_GAIN:
                break
            best, chosen = utility, found
        return chosen

    def _utility(self, scouts: Models, cost_weight: float) -> float:
        """Return the mean worth of the train questions, where one reply ends each run, of a scout or of one more."""
        known, rows = self._known, np.arange(len(self._known.scores))
        choice = self._simple_choice(scouts, cost_weight)
        spent = known.costs[:, list(scouts)].sum(1) + np.where(np.isin(choice, scouts), 0.0, known.costs[rows, choice])
        score = known.scores[rows, choice]
        return float(np.mean((1 - cost_weight) * score - cost_weight * spent / known.scale))

    def _simple_choice(self, scouts: Models, cost_weight: float) -> Matrix:
        """Return whose reply looks worth most for each train question, as its scouts let expect."""
        models = len(self.registry)
        expected = self._expected(scouts)
        costs = np.exp(expected[:, models:])
        costs[:, list(scouts)] = 0.0
        worth = (1 - cost_weight) * expected[:, :models] - cost_weight * costs / self._known.scale
        choice: Matrix = worth.argmax(1)
        return choice

    def _choices(self, scouts: Models, cost_weight: float) -> _Choices:
        """Return what can be done once these scouts have replied."""
        with self._lock:
            if cost_weight not in self._choices_at:
                share = np.bincount(self._simple_choice(scouts, cost_weight), minlength=len(self.registry))
                worthy = [place for place in np.flatnonzero(share >= LEAST_ASKED * share.sum()) if place not in scouts]
                more = tuple(map(int, worthy)) or (() if scouts else (int(share.argmax()),))
                self._choices_at[cost_weight] = _Choices(more, self._comes_of(scouts, more))
            return self._choices_at[cost_weight]

    def _worth(self, predicted: Matrix, scouts: Models, more: Models, cost_weight: float) -> Matrix:
        """Return what each choice is worth beyond what is paid: first to end now, where there are scouts."""
        ends = bool(scouts) + len(more)
        costs = np.concatenate([np.zeros(int(bool(scouts))), np.exp(predicted[ends:])])
        worth: Matrix = (1 - cost_weight) * predicted[:ends] - cost_weight * costs / self._known.scale
        return worth

    # What is learned

    @functools.cached_property
    def _known(self) -> _Known:
        return _Known.of(self.records, self.registry)

    @functools.cached_property
    def _expected(self) -> Callable[[Models], Matrix]:
        """All models' scores and logarithms of costs, expected of each train question from some models' replies."""

        @functools.cache
        def expected(asked: Models) -> Matrix:
            found: Matrix = _forest(self._known.features(asked), self._known.targets, TREES // 4).oob_prediction_
            return found

        return expected

    def _judge(self, asked: Models) -> Any:
        """Return a forest that predicts all models' scores from the replies of these."""
        with self._lock:
            if asked not in self._judges:
                self._judges[asked] = _forest(self._known.features(asked), self._known.scores, TREES)
            return self._judges[asked]

    def _comes_of(self, scouts: Models, more: Models) -> Any:
        """Return a forest that predicts, from the replies of scouts, what comes of each choice (see `_Choices`)."""
        ends = [scouts, *(tuple(sorted((*scouts, one))) for one in more)]
        scores = [self._ended(asked) for asked in ends if asked]
        costs = [np.log(np.maximum(self._known.costs[:, one], 1e-12)) for one in more]
        return _forest(self._known.features(scouts), np.stack([*scores, *costs], axis=1), TREES)

    def _ended(self, asked: Models) -> Matrix:
        """Return the score of each train question that ends once these were asked."""
        scores = self._known.scores[:, list(asked)]
        if len(asked) == 1:
            return scores[:, 0]
        expected = self._judge(asked).oob_prediction_[:, list(asked)]
        ended: Matrix = scores[np.arange(len(scores)), expected.argmax(1)]
        return ended

    @functools.cached_property
    def _predict(self) -> Callable[[Any, str, tuple[Heard, ...]], Matrix]:
        """What a forest predicts of a question and what was heard of it."""

        @functools.lru_cache(maxsize=REMEMBERED)
        def predict(forest: Any, question: str, heard: tuple[Heard, ...]) -> Matrix:
            row = features(question, self._known.words_of(question), heard)[None].astype(np.float32)
            # For one question, what `forest.predict` does around its trees takes ten times as long as they do.
            mean: Matrix = np.mean([tree.tree_.predict(row).reshape(-1) for tree in forest.estimators_], axis=0)
            return mean

        return predict


def _forest(known: Matrix, targets: Matrix, trees: int) -> Any:
    """Return a fitted forest of random trees; `oob_prediction_` is what it predicts of its own questions."""
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(
        trees,
        min_samples_leaf=min(QUESTIONS_A_LEAF, max(1, len(targets) // 10)),
        max_features=min(CANDIDATES, known.shape[1]),
        bootstrap=True,
        oob_score=True,
        random_state=0,
        n_jobs=-1,
    )
    return forest.fit(known, targets if targets.shape[1] > 1 else targets[:, 0])


def _heard(call: RoutedCall, view: View) -> Heard:
    if call["status"] != "ok":
        return Heard("", 0)
    return Heard(stated_answer(call["response"], view.question), call["usage"]["completion_tokens"])


@dataclass(frozen=True)
class _Known:
    """The records as arrays."""

    questions: Sequence[str]
    words: Matrix
    """Of the questions: questions x directions."""
    reduction: Any
    """From texts to their words."""
    heard: Sequence[Sequence[Heard]]
    """By question, then by model."""
    scores: Matrix
    """Questions x models, as the costs."""
    costs: Matrix
    """Dollars."""

    @classmethod
    def of(cls, records: RecordedPool, registry: ModelRegistry) -> _Known:
        """Return the records of tasks that all models did.

        Raises:
            ValueError: There are fewer than two.
        """
        tasks = [task for task in records.complete() if set(registry.names) <= set(records.outcomes[task.id])]
        if len(tasks) < 2:
            msg = f"{records.source} has {len(tasks)} tasks with a reply of each model; it takes 2 to learn from"
            raise ValueError(msg)
        questions = [task.question for task in tasks]
        reduction = _reduction(questions)
        rows = [[(task, records.outcomes[task.id][model.name], model.price) for model in registry] for task in tasks]
        return cls(
            questions,
            reduction.transform(questions),
            reduction,
            [
                [
                    Heard(stated_answer(done.response or "", task.question), done.completion_tokens or 0)
                    for task, done, _ in row
                ]
                for row in rows
            ],
            np.array([[quality(task, done) for task, done, _ in row] for row in rows]),
            np.array([[outcome_cost(done, price) for _, done, price in row] for row in rows]),
        )

    @functools.cached_property
    def scale(self) -> float:
        """The mean cost of the most expensive model, in dollars."""
        return float(max(self.costs.mean(0).max(), 1e-12))

    @property
    def targets(self) -> Matrix:
        """Scores and logarithms of dollars, questions x twice the models."""
        return np.concatenate([self.scores, np.log(np.maximum(self.costs, 1e-12))], axis=1)

    def words_of(self, question: str) -> Matrix:
        """Return the words of one question, reduced."""
        row: Matrix = self.reduction.transform([question])[0]
        return row

    def features(self, asked: Models) -> Matrix:
        """Return the features of all questions, as if these models had been asked."""
        return np.array(
            [
                features(question, words, [heard[place] for place in asked])
                for question, words, heard in zip(self.questions, self.words, self.heard, strict=True)
            ]
        )


def _reduction(questions: Sequence[str]) -> Any:
    """Return what reduces the words of a question to a few numbers (latent semantic analysis), fitted on these."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+")  # noqa: S106 - no password
    directions = min(DIRECTIONS, *words.fit_transform(questions).shape, max(1, len(questions) // QUESTIONS_A_LEAF))
    return make_pipeline(words, TruncatedSVD(directions, random_state=0)).fit(questions)
