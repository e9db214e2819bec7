"""Scouts first: cheap models answer side by side, and their replies tell whether to ask one more model, and which.

A cascade asks one model after the other and looks at one reply at a time. Here the replies of several scouts are looked
at together (signals.py). A forest of random trees, the judge, says of all replies together how likely each is to be
right; the best one is the answer, which is not always the last one (compare cascade routing, arXiv 2410.10347). Other
forests predict, from the question and from what the scouts said of it, what one more model would gain and cost.

What a model gains is learned from the judge, not from scores: it is by how much the judge expects the best reply to be
better once the model was asked. That is nothing where the replies agree, and less noisy than right and wrong.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from langgraph_router_r1.evaluation.recorded import RecordedPool, outcome_cost, quality
from langgraph_router_r1.evaluation.signals import (
    NOTHING,
    Heard,
    WordRegression,
    agree,
    likeliest,
    of_question,
    of_reply,
    pooled,
)
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import RoutedCall
from langgraph_router_r1.strategies import Answer, Ask, Call, Decision, Strategy, View
from langgraph_router_r1.strategies.knn import Matrix

MOST_SCOUTS = 3
"""How many scouts there are at most: each is paid for every question."""

LEAST_GAIN = 0.001
"""By how much each scout has to improve the mean utility of the train split."""

TREES = 300
"""Of a forest that decides."""

TREES_TO_COMPARE = 50
"""Of a forest that only compares sets of scouts."""

QUESTIONS_A_LEAF = 8
"""How many train questions a leaf of a tree has at least."""

CANDIDATES = 20
"""Of how many features a split of a tree takes the best."""

LEAST_ASKED = 0.01
"""Share of the train questions for which a model has to look worth asking, to be considered after the scouts."""

REMEMBERED = 16384
"""How many predictions are kept: the same question comes again at other cost weights."""

Models = tuple[int, ...]
"""Models by their places in the registry."""


@dataclass(frozen=True)
class _Plan:
    """Who is asked first, and the forests that tell what comes of asking one more."""

    scouts: Models
    more: Models
    """Who can be asked after the scouts."""
    gains: Any
    """Predicts what each of them adds to the expected score."""
    costs: Any
    """Predicts the logarithm of what each of them costs."""
    scores: Matrix
    """Of the train questions: of the run that ends with the scouts (if there are any), or after each of the others."""

    @property
    def ends_early(self) -> int:
        """1 where the run can end once the scouts have replied, 0 where there are none."""
        return int(bool(self.scouts))

    def worth(self, gains: Matrix, costs: Matrix, cost_weight: float, scale: float) -> Matrix:
        """Return what each choice adds to the worth of a run: first to end now, where there are scouts."""
        worth = (1 - cost_weight) * gains - cost_weight * np.exp(costs) / scale
        return np.concatenate([np.zeros((len(worth), self.ends_early)), worth], axis=1)


@dataclass
class Escalation(Strategy):
    """Asks scouts side by side, and then at most one more model; learned from recorded answers.

    What a run is worth is `(1 - w) score - w cost / c`, where `w` is the cost weight and `c` the mean cost of the most
    expensive model. Which models are the scouts depends on the cost weight: of the sets that look best for their size,
    the one with which the train questions are worth most. Without scouts, one model is chosen by the question alone.

    Each forest predicts a train question by those of its trees that did not see it, so what is learned from these
    predictions is not learned from memory.

    Example:
        >>> strategy = Escalation(records.of_split("train"), registry)                     # doctest: +SKIP
        >>> router = create_router(strategy=strategy, registry=registry, cost_weight=0.1)  # doctest: +SKIP
    """

    records: RecordedPool
    """What it learns from: those of its tasks for which all models are recorded."""
    registry: ModelRegistry
    _plan_at: dict[float, _Plan] = field(default_factory=dict, init=False, repr=False)
    _plans: dict[tuple[Models, Models], _Plan] = field(default_factory=dict, init=False, repr=False)
    _judges: dict[Models, Any] = field(default_factory=dict, init=False, repr=False)
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False)

    @override
    def decide(self, view: View) -> Decision:
        names, weight = self.registry.names, view.limits.cost_weight
        plan = self.plan(weight)
        if not view.turn and plan.scouts:
            return Ask([Call(names[scout], view.question) for scout in plan.scouts])
        said = {names.index(call["model"]): call for call in view.calls}
        replies = {place: call["response"] for place, call in said.items() if call["status"] == "ok"}
        if view.turn > plan.ends_early:
            return self._answer(view, said, replies)
        heard = tuple(_heard(said[one], view) for one in plan.scouts)
        gains, costs = (
            self._predict(forest, view.question, plan.scouts, heard)[None] for forest in (plan.gains, plan.costs)
        )
        [worth] = plan.worth(gains, costs, weight, self._known.scale)
        for choice in np.argsort(-worth, kind="stable"):
            if plan.scouts and not choice:
                if replies:
                    return self._answer(view, said, replies)
                continue
            name = names[plan.more[choice - plan.ends_early]]
            if name in view.offered:
                return Ask.one(name, view.question)
        return self._answer(view, said, replies)

    def _answer(self, view: View, said: dict[int, RoutedCall], replies: dict[int, str]) -> Decision:
        """End with the reply that is likeliest to be right, as all that were asked let expect."""
        if not replies:
            return Answer("", stop_reason="no_answer")
        if len(replies) == 1:
            return Answer(next(iter(replies.values())))
        asked = tuple(sorted(said))
        heard = tuple(_heard(said[place], view) for place in asked)
        expected = self._predict(self._judge(asked), view.question, asked, heard)
        stated = {place: one.answer for place, one in zip(asked, heard, strict=True) if place in replies}
        [best] = likeliest(expected[None, list(stated)], np.array([list(stated.values())]))
        return Answer(replies[list(stated)[best]])

    # Which models are the scouts

    def scouts(self, cost_weight: float) -> Models:
        """Return the scouts for a cost weight, by their places in the registry."""
        return self.plan(cost_weight).scouts

    def plan(self, cost_weight: float) -> _Plan:
        """Return the plan for a cost weight; the first time, this takes minutes for thousands of questions."""
        with self._lock:
            if cost_weight not in self._plan_at:
                plans = [self._plan(scouts, cost_weight) for scouts in self._shortlist(cost_weight)]
                self._plan_at[cost_weight] = max(plans, key=lambda plan: self._utility(plan, cost_weight))
            return self._plan_at[cost_weight]

    def _shortlist(self, cost_weight: float) -> list[Models]:
        """Return the sets of scouts that look best: none, one, two, and these with one more; never all models."""
        models = range(len(self.registry))
        found: list[Models] = [()]
        for size in range(1, min(MOST_SCOUTS, len(models) - 1) + 1):
            # Not from one to two: one reply may say nothing where two do, by being the same or not.
            kept = found[-1] if size > 2 else ()
            sets = [scouts for scouts in itertools.combinations(models, size) if set(kept) <= set(scouts)]
            found.append(max(sets, key=lambda scouts: self._simple_utility(scouts, cost_weight)))
        return found

    def _simple_utility(self, scouts: Models, cost_weight: float) -> float:
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

    def _utility(self, plan: _Plan, cost_weight: float) -> float:
        """Return the mean worth of the train questions, less what each scout has to improve it by."""
        known, gains, costs = self._known, _unseen(plan.gains), _unseen(plan.costs)
        choice = plan.worth(gains, costs, cost_weight, known.scale).argmax(1)
        paid = np.concatenate([np.zeros((len(choice), plan.ends_early)), known.costs[:, list(plan.more)]], axis=1)
        rows, scouts = np.arange(len(choice)), known.costs[:, list(plan.scouts)].sum(1)
        spent = np.mean(scouts + paid[rows, choice]) / known.scale
        score = np.mean(plan.scores[rows, choice])
        return float((1 - cost_weight) * score - cost_weight * spent) - LEAST_GAIN * len(plan.scouts)

    # What is learned

    @functools.cached_property
    def _known(self) -> _Known:
        return _Known.of(self.records, self.registry)

    @functools.cached_property
    def _expected(self) -> Callable[[Models], Matrix]:
        """All models' scores and logarithms of costs, expected of each train question from some models' replies."""

        @functools.cache
        def expected(asked: Models) -> Matrix:
            known = self._known
            targets = np.concatenate([known.scores, known.log_costs], axis=1)
            return _unseen(_forest(known.features(asked), targets, TREES_TO_COMPARE))

        return expected

    def _judge(self, asked: Models) -> Any:
        """Return a forest that predicts all models' scores from the replies of these."""
        with self._lock:
            if asked not in self._judges:
                self._judges[asked] = _forest(self._known.features(asked), self._known.scores, TREES)
            return self._judges[asked]

    def _judged(self, asked: Models) -> tuple[Matrix, NDArray[np.int64]]:
        """Return how likely the judge finds these models' answers to the train questions to be right, and whose is."""
        answers = self._known.answers[:, list(asked)]
        alone = len(asked) == 1
        expected = np.zeros(answers.shape) if alone else _unseen(self._judge(asked))[:, list(asked)]
        return pooled(expected, answers), np.array(asked)[likeliest(expected, answers)]

    def _plan(self, scouts: Models, cost_weight: float) -> _Plan:
        """Return the plan with these scouts, and with whom else it can be worth asking at this cost weight."""
        share = np.bincount(self._simple_choice(scouts, cost_weight), minlength=len(self.registry))
        others = [place for place in range(len(self.registry)) if place not in scouts]
        least = LEAST_ASKED * len(self._known.scores)
        more = tuple(place for place in others if share[place] >= least) or (max(others, key=lambda one: share[one]),)
        if (scouts, more) not in self._plans:
            self._plans[scouts, more] = self._learned(scouts, more)
        return self._plans[scouts, more]

    def _learned(self, scouts: Models, more: Models) -> _Plan:
        known, rows = self._known, np.arange(len(self._known.scores))
        gains = known.scores[:, list(more)]
        scores = gains
        if scouts:
            _, best = self._judged(scouts)
            gains, scores = np.empty_like(gains), np.stack([known.scores[rows, best], *scores.T], axis=1)
            for place, one in enumerate(more):
                asked = tuple(sorted((*scouts, one)))
                judged, winner = self._judged(asked)
                gains[:, place] = judged.max(1) - judged[rows, np.searchsorted(asked, best)]
                scores[:, place + 1] = known.scores[rows, winner]
        features, costs = known.features(scouts), known.log_costs[:, list(more)]
        return _Plan(scouts, more, _forest(features, gains, TREES), _forest(features, costs, TREES), scores)

    @functools.cached_property
    def _predict(self) -> Callable[[Any, str, Models, tuple[Heard, ...]], Matrix]:
        """What a forest predicts of a question and what was heard of it."""

        @functools.lru_cache(maxsize=REMEMBERED)
        def predict(forest: Any, question: str, asked: Models, heard: tuple[Heard, ...]) -> Matrix:
            row = self._known.features_of(question, asked, heard).astype(np.float32)
            # For one question, what `forest.predict` does around its trees takes ten times as long as they do.
            mean: Matrix = np.mean([tree.tree_.predict(row).reshape(-1) for tree in forest.estimators_], axis=0)
            return mean

        return predict


def _forest(known: Matrix, targets: Matrix, trees: int) -> Any:
    """Return a fitted forest of random trees."""
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


def _unseen(forest: Any) -> Matrix:
    """Return what a forest predicts of its own questions, by the trees that did not see them: questions x targets."""
    found: Matrix = forest.oob_prediction_.reshape(len(forest.oob_prediction_), -1)
    return found


def _heard(call: RoutedCall, view: View) -> Heard:
    if call["status"] != "ok":
        return NOTHING
    return Heard.of(call["response"], view.question, call["usage"]["completion_tokens"])


@dataclass(frozen=True)
class _Known:
    """The records as arrays."""

    question_words: WordRegression
    """Of questions: what each model will score."""
    reply_words: Sequence[WordRegression]
    """By model: what its reply scores."""
    questions: Matrix
    """What is measured and predicted of the questions, questions x features."""
    replies: Matrix
    """The same of the replies: questions x models x features."""
    answers: Matrix
    """Stated: questions x models, as scores and costs."""
    scores: Matrix
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
        rows = [[(task, records.outcomes[task.id][model.name], model.price) for model in registry] for task in tasks]
        scores = np.array([[quality(task, done) for task, done, _ in row] for row in rows])
        heard = [
            [Heard.of(done.response or "", task.question, done.completion_tokens or 0) for task, done, _ in row]
            for row in rows
        ]
        question_words = WordRegression([task.question for task in tasks], scores)
        reply_words = [
            WordRegression([row[place].end for row in heard], scores[:, [place]]) for place in range(len(registry))
        ]
        measured = [[of_reply(one, task.question) for one in row] for task, row in zip(tasks, heard, strict=True)]
        read = np.stack([one.unseen for one in reply_words], axis=1)
        return cls(
            question_words,
            reply_words,
            np.concatenate([[of_question(task.question) for task in tasks], question_words.unseen], axis=1),
            np.concatenate([measured, read], axis=2),
            np.array([[one.answer for one in row] for row in heard]),
            scores,
            np.array([[outcome_cost(done, price) for _, done, price in row] for row in rows]),
        )

    @functools.cached_property
    def scale(self) -> float:
        """The mean cost of the most expensive model, in dollars."""
        return float(max(self.costs.mean(0).max(), 1e-12))

    @property
    def log_costs(self) -> Matrix:
        """Logarithms of dollars, questions x models."""
        found: Matrix = np.log(np.maximum(self.costs, 1e-12))
        return found

    def features(self, asked: Models) -> Matrix:
        """Return the features of all questions, as if these models had been asked."""
        return _features(self.questions, self.replies[:, list(asked)], self.answers[:, list(asked)])

    def features_of(self, question: str, asked: Models, heard: Sequence[Heard]) -> Matrix:
        """Return the features of one question, of which this was heard from these models."""
        replies = [
            [*of_reply(one, question), *self.reply_words[place].predict(one.end)]
            for place, one in zip(asked, heard, strict=True)
        ]
        return _features(
            np.array([[*of_question(question), *self.question_words.predict(question)]]),
            np.array(replies, dtype=float)[None],
            np.array([[one.answer for one in heard]], dtype=str),
        )


def _features(questions: Matrix, replies: Matrix, answers: Matrix) -> Matrix:
    """Return what the predictions are made from: of the question, of each model's reply, and of each pair of them."""
    same = agree(answers)
    pairs = [same[:, one, other] for one, other in itertools.combinations(range(answers.shape[1]), 2)]
    found: Matrix = np.column_stack([questions, replies.reshape(len(replies), -1), *pairs]).astype(float)
    return found
