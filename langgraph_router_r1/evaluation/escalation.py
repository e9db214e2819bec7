"""Scouts first: cheap models answer side by side, and their replies tell whether to ask one more model, and which.

A cascade asks one model after the other and looks at one reply at a time. Here the replies of several scouts are looked
at together: a linear model predicts, from the question and from what the scouts said of it, how likely each model of
the pool is to be right and what it would cost. The run ends with a scout's reply, or with that of one more model,
whichever is worth most at the run's cost weight (compare cascade routing, arXiv 2410.10347).
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
from langchain_core.embeddings import Embeddings
from typing_extensions import override

from langgraph_router_r1.evaluation.recorded import RecordedPool, outcome_cost, quality
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import RoutedCall
from langgraph_router_r1.strategies import Answer, Ask, Call, Decision, Strategy, View
from langgraph_router_r1.strategies.knn import Matrix, embed

MOST_SCOUTS = 3
"""How many scouts there are at most: each is paid for every question."""

LEAST_GAIN = 0.001
"""By how much a scout has to improve the mean utility of the train split."""

DIRECTIONS = 64
"""To how many a question's embedding is reduced: many sets of scouts are tried, and few questions are known."""

FOLDS = 5
"""Each train question is predicted by what was learned from the other four fifths."""

ALPHAS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
"""How much weights are shrunk towards nothing; which, the train questions decide."""

_STATED = re.compile(r"answer(?:\s+is)?\s*:?\s*([^.\n]+)", re.IGNORECASE)


def stated_answer(reply: str) -> str:
    r"""Return what a reply states as its answer, without punctuation: to be compared with another's.

    Example:
        >>> stated_answer("Both mate rarely.\nThe answer is (J).")
        'j'
        >>> stated_answer("Lima")
        'lima'
    """
    found = _STATED.findall(reply)
    stated = found[-1] if found else reply.strip().rpartition("\n")[2]
    return "".join(letter for letter in stated.casefold() if letter.isalnum() or letter == " ").strip()


@dataclass(frozen=True)
class Heard:
    """What one scout replied to one question."""

    answer: str
    """Stated; empty for a call that failed."""
    completion_tokens: int


def features(question: str, embedding: Matrix, heard: Sequence[Heard]) -> Matrix:
    """Return what the predictions are made from: of the question, of each scout's reply, and of each pair of them."""
    own = [math.log1p(len(question)), sum(map(str.isdigit, question)) / max(1, len(question))]
    for one in heard:
        own += [math.log1p(one.completion_tokens), float(not one.answer)]
    own += [float(bool(one.answer) and one.answer == other.answer) for one, other in itertools.combinations(heard, 2)]
    return np.concatenate([embedding, own])


Scouts = tuple[int, ...]
"""Models by their places in the registry, in that order."""


@dataclass
class Escalation(Strategy):
    """Asks scouts side by side, and then at most one more model; learned from recorded answers.

    Which models are the scouts depends on the cost weight: one is added as long as that improves the mean utility of
    the train questions. Where none does, one model is chosen by the question alone.

    Example:
        >>> strategy = Escalation(records.of_split("train"), registry, MiniLM())           # doctest: +SKIP
        >>> router = create_router(strategy=strategy, registry=registry, cost_weight=0.1)  # doctest: +SKIP
    """

    records: RecordedPool
    """What it learns from: those of its tasks for which all models are recorded."""
    registry: ModelRegistry
    embeddings: Embeddings
    _learned: dict[Scouts, Any] = field(default_factory=dict, init=False, repr=False)
    _chosen: dict[float, Scouts] = field(default_factory=dict, init=False, repr=False)
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False)

    @override
    def decide(self, view: View) -> Decision:
        names, weight = self.registry.names, view.limits.cost_weight
        scouts = self.scouts(weight)
        if not view.turn and scouts:
            return Ask([Call(names[scout], view.question) for scout in scouts])
        replies = {call["model"]: call["response"] for call in view.calls if call["status"] == "ok"}
        if view.turn > bool(scouts) and view.latest[0]["status"] == "ok":
            return Answer(view.latest[0]["response"])
        said = {call["model"]: call for call in view.calls}
        heard = [_heard(said[names[scout]]) for scout in scouts]
        vector = self._known.reduction.transform(embed(self.embeddings, [view.question]))[0]
        question = features(view.question, vector, heard)
        expected, costs = self._split(self._predictor(scouts).predict(question[None]))
        paid = np.array([math.fsum(call["list_cost_usd"] for call in view.calls)])
        worth = self._worth(expected, costs, paid, scouts, weight)[0]
        for place in np.argsort(-worth):
            if names[place] in replies:
                return Answer(replies[names[place]])
            if names[place] not in said and names[place] in view.offered and view.turn <= bool(scouts):
                return Ask.one(names[place], view.question)
        return Answer("", stop_reason="no_answer")

    def scouts(self, cost_weight: float) -> Scouts:
        """Return the scouts for a cost weight."""
        with self._lock:
            if cost_weight not in self._chosen:
                self._chosen[cost_weight] = self._choose(cost_weight)
            return self._chosen[cost_weight]

    def _choose(self, cost_weight: float) -> Scouts:
        chosen: Scouts = ()
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

    def _utility(self, scouts: Scouts, cost_weight: float) -> float:
        """Return the mean utility of the train questions, each predicted by what was learned from others."""
        known = self._known
        expected, costs = self._split(self._out_of_fold(scouts))
        paid = known.costs[:, list(scouts)].sum(1)
        choice = self._worth(expected, costs, paid, scouts, cost_weight).argmax(1)
        rows = np.arange(len(paid))
        spent = paid + np.where(np.isin(choice, scouts), 0.0, known.costs[rows, choice])
        cheap = 1 - self._relative(spent)
        return float(np.mean((1 - cost_weight) * known.scores[rows, choice] + cost_weight * cheap))

    def _worth(self, expected: Matrix, costs: Matrix, paid: Matrix, scouts: Scouts, cost_weight: float) -> Matrix:
        """Return what ending with each model's reply is worth, questions x models: a scout's is paid for already."""
        spent = np.repeat(paid[:, None], expected.shape[1], axis=1)
        others = [place for place in range(expected.shape[1]) if place not in scouts]
        spent[:, others] += costs[:, others]
        return (1 - cost_weight) * expected + cost_weight * (1 - self._relative(spent))

    def _relative(self, dollars: Matrix) -> Matrix:
        """Return costs beside that of the most expensive model's mean, as square roots: as the reward counts them."""
        relative: Matrix = np.sqrt(dollars / max(self._known.costs.mean(0).max(), 1e-12))
        return relative

    # What is learned

    @functools.cached_property
    def _known(self) -> _Known:
        return _Known.of(self.records, self.registry, self.embeddings)

    def _predictor(self, scouts: Scouts) -> Any:
        """Return the predictor of scores and costs from what these scouts said."""
        with self._lock:
            if scouts not in self._learned:
                self._learned[scouts] = _ridge().fit(self._known.features(scouts), self._known.targets)
            return self._learned[scouts]

    @functools.cached_property
    def _out_of_fold(self) -> Callable[[Scouts], Matrix]:
        from sklearn.model_selection import KFold, cross_val_predict

        folds = KFold(min(FOLDS, len(self._known.scores)), shuffle=True, random_state=0)

        @functools.cache
        def predicted(scouts: Scouts) -> Matrix:
            return np.asarray(cross_val_predict(_ridge(), self._known.features(scouts), self._known.targets, cv=folds))

        return predicted

    def _split(self, predicted: Matrix) -> tuple[Matrix, Matrix]:
        """Return the scores and the dollars of a prediction, questions x models each."""
        models = len(self.registry)
        return predicted[:, :models], np.exp(predicted[:, models:])


def _heard(call: RoutedCall) -> Heard:
    if call["status"] != "ok":
        return Heard("", 0)
    return Heard(stated_answer(call["response"]), call["usage"]["completion_tokens"])


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(ALPHAS, alpha_per_target=True))


@dataclass(frozen=True)
class _Known:
    """The records as arrays."""

    questions: Sequence[str]
    vectors: Matrix
    """Embeddings of the questions, reduced."""
    reduction: Any
    heard: Sequence[Sequence[Heard]]
    """By question, then by model."""
    scores: Matrix
    """Questions x models, as the costs."""
    costs: Matrix
    """Dollars."""

    @classmethod
    def of(cls, records: RecordedPool, registry: ModelRegistry, embeddings: Embeddings) -> _Known:
        """Return the records of tasks that all models did.

        Raises:
            ValueError: There are fewer than two.
        """
        from sklearn.decomposition import PCA

        tasks = [task for task in records.complete() if set(registry.names) <= set(records.outcomes[task.id])]
        if len(tasks) < 2:
            msg = f"{records.source} has {len(tasks)} tasks with a reply of each model; it takes 2 to learn from"
            raise ValueError(msg)
        vectors = embed(embeddings, [task.question for task in tasks])
        reduction = PCA(min(DIRECTIONS, *vectors.shape), random_state=0).fit(vectors)
        rows = [[(task, records.outcomes[task.id][model.name], model.price) for model in registry] for task in tasks]
        return cls(
            [task.question for task in tasks],
            reduction.transform(vectors),
            reduction,
            [
                [Heard(stated_answer(done.response or ""), done.completion_tokens or 0) for _, done, _ in row]
                for row in rows
            ],
            np.array([[quality(task, done) for task, done, _ in row] for row in rows]),
            np.array([[outcome_cost(done, price) for _, done, price in row] for row in rows]),
        )

    @property
    def targets(self) -> Matrix:
        """Scores and logarithms of dollars, questions x twice the models."""
        return np.concatenate([self.scores, np.log(np.maximum(self.costs, 1e-12))], axis=1)

    def features(self, scouts: Scouts) -> Matrix:
        """Return the features of all questions, as if these scouts had been asked."""
        return np.array(
            [
                features(question, vector, [heard[scout] for scout in scouts])
                for question, vector, heard in zip(self.questions, self.vectors, self.heard, strict=True)
            ]
        )
