"""What a trained router must beat: simpler ways to choose among the same models, with the same account.

    knn = create_baseline("knn", registry, records=records, cost_weight=0.3, extractor=extractor)
    knn.invoke({"messages": [("user", "Who wrote Emma?")]})["answer"]

Each is a `Strategy` on the router's own graph, so whatever takes a router takes a baseline. What learns, learns from
the train split of the records only.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from langchain_core.embeddings import Embeddings
from langgraph.config import get_config
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import override

from langgraph_router_r1.calls import CallMiddleware
from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.evaluation.escalation import Escalation
from langgraph_router_r1.evaluation.extractor import Extraction, Extractor
from langgraph_router_r1.evaluation.metrics import normalise
from langgraph_router_r1.evaluation.predictors import ContrastivePredictor, LogisticPredictor, mlp
from langgraph_router_r1.evaluation.recorded import TASK_ID, RecordedPool, outcome_cost, quality, run_metadata
from langgraph_router_r1.graph import create_router
from langgraph_router_r1.ledger import Price, PriceLike, add_usage
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.retrieval.pilots import PilotLibrary
from langgraph_router_r1.state import RoutedCall, RouterContext, RouterInput, RouterOutput
from langgraph_router_r1.strategies import Answer, Ask, AskInOrder, Call, Decision, Strategy, View
from langgraph_router_r1.strategies.knn import KNNStrategy, Matrix, MiniLM, Predictor, embed, observations, utility

Kind = Literal[
    "random",
    "cheapest",
    "most_expensive",
    "best",
    "oracle",
    "majority",
    "cascade",
    "escalation",
    "knn",
    "logistic",
    "mlp",
    "contrastive",
    "pilot-embeddings",
]
"""`best`: the single model that did best on the train split. `oracle`: for each question the cheapest model that was
right, which nobody can know beforehand. `majority`: the answer most models give. `cascade`: by price until a
reply looks right (in the style of FrugalGPT, arXiv 2305.05176). `escalation`: cheap models side by side, and then at
most one more (escalation.py). `knn`, `logistic`, `mlp`, `contrastive`: the model
that does best on questions like this one, by sentence embeddings (the last in the style of RouterDC, arXiv 2409.19886).
`pilot-embeddings`: the model whose pilots are nearest, the centroids of the questions that it answers best at the cost
weight (RouterRetriever's rule, retrieval/pilots.py).
"""

BY_QUESTION = frozenset({"knn", "logistic", "mlp", "contrastive", "pilot-embeddings"})
"""Those that choose by the question's embedding."""

LEARNING = BY_QUESTION | {"best", "oracle", "cascade", "escalation"}
"""Those that need records of what the models said before."""

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(21))
"""Confidences at which a cascade may stop; which, the train split decides."""


def create_baseline(
    kind: str,
    registry: ModelRegistry,
    *,
    records: RecordedPool | None = None,
    extractor: Extractor | None = None,
    cost_weight: float = 0.0,
    extractor_price: PriceLike = "free",
    embeddings: Embeddings | None = None,
    seed: int = 0,
    middleware: Sequence[CallMiddleware] = (),
    clients: Clients | None = None,
) -> CompiledStateGraph[Any, RouterContext, RouterInput, RouterOutput]:
    """Return a baseline, compiled: a Runnable with the router's input and output.

    Args:
        kind: One of `Kind`, or the name of a model of the registry, which is then always asked.
        registry: The models to choose from.
        records: What is known of them: the plans that learn use its train split, the oracle all of it.
        extractor: Makes the short answer of the reply; without it the answer is the whole reply.
        cost_weight: How much money counts against quality, 0 to 1; `RouterContext` may override it.
        extractor_price: Price of the extractor's tokens, which count as the router's.
        embeddings: What turns questions into vectors; by default MiniLM.
        seed: Of whatever is drawn.
        middleware: What stands around each call of a model.
        clients: Those of the models, to share them; by default its own, which rest no model.

    Raises:
        ValueError: There is no baseline of that kind, or it needs records that are not given.

    Example:
        >>> from langgraph_router_r1 import ModelDescriptor
        >>> from langgraph_router_r1.testing import ScriptedChatModel
        >>> small = ModelDescriptor(name="small", model=ScriptedChatModel(["Lima"]), price=1.0)
        >>> create_baseline("cheapest", ModelRegistry([small])).invoke({"messages": [("user", "Capital?")]})["answer"]
        'Lima'
    """
    setting = _Setting(registry, records, embeddings or MiniLM(), extractor, seed)
    if kind in _STRATEGIES:
        strategy = _STRATEGIES[kind](setting)
    elif kind in registry:
        strategy = _always(registry[kind].name)
    else:
        known = ", ".join((*get_args(Kind), *registry.names))
        raise ValueError(f"there is no baseline {kind!r}; there are: {known}")
    if extractor is not None:
        strategy = Shortened(strategy, extractor, Price.parse(extractor_price))
    return create_router(
        strategy=strategy,
        registry=registry,
        cost_weight=cost_weight,
        max_turns=len(registry),
        max_parallel=len(registry),
        middleware=middleware,
        clients=clients or Clients(rests=False),
        name=f"baseline_{kind}",
    )


@dataclass
class Shortened(Strategy):
    """Another strategy, whose answers are shortened by an extractor."""

    strategy: Strategy
    extractor: Extractor
    price: Price
    """Of the extractor's tokens."""

    @override
    def decide(self, view: View) -> Decision:
        decision = self.strategy.decide(view)
        if not isinstance(decision, Answer):
            return decision
        return _shortened(decision, self.extractor.extract(view.question, decision.text))

    @override
    async def adecide(self, view: View) -> Decision:
        decision = await self.strategy.adecide(view)
        if not isinstance(decision, Answer):
            return decision
        return _shortened(decision, await self.extractor.aextract(view.question, decision.text))


def _shortened(answer: Answer, short: Extraction) -> Answer:
    usage = add_usage([short.usage] if answer.usage is None else [answer.usage, short.usage])
    return replace(answer, text=short.text, reply=answer.text, usage=usage)


@dataclass
class Majority(Strategy):
    """Asks models side by side; the answer is that of the largest number of them, in short."""

    names: Sequence[str]
    """The models; of equally frequent answers the earlier model's is taken."""
    extractor: Extractor | None

    @override
    def decide(self, view: View) -> Decision:
        if self.extractor is None or not view.replies:
            return self._vote(view, None)
        return self._vote(view, [self.extractor.extract(view.question, reply) for reply in view.replies])

    @override
    async def adecide(self, view: View) -> Decision:
        if self.extractor is None or not view.replies:
            return self._vote(view, None)
        made = (self.extractor.aextract(view.question, reply) for reply in view.replies)
        return self._vote(view, await asyncio.gather(*made))

    def _vote(self, view: View, made: Sequence[Extraction] | None) -> Decision:
        if not view.calls:
            return Ask([Call(name, view.question) for name in self.names])
        if not view.replies:
            return Answer("", stop_reason="no_answer")
        short = [normalise(reply) for reply in view.replies] if made is None else [normalise(one.text) for one in made]
        # Of equals the earlier one's: the counter keeps the order of its first sight.
        votes = Counter(filter(None, short))
        winner = votes.most_common(1)[0][0] if votes else short[0]
        usage = None if made is None else add_usage(one.usage for one in made)
        return Answer(view.replies[short.index(winner)], usage=usage)


@dataclass(frozen=True)
class _Setting:
    """What a strategy is made from."""

    registry: ModelRegistry
    records: RecordedPool | None
    embeddings: Embeddings
    extractor: Extractor | None
    seed: int

    @property
    def train(self) -> RecordedPool:
        """The records of the train split.

        Raises:
            ValueError: There are none.
        """
        if self.records is None:
            raise ValueError(
                "this baseline learns from records of the pool: give it records=RecordedPool.from_file(...)"
            )
        train = self.records.of_split("train")
        if not train.tasks:
            raise ValueError(f"{self.records.source} holds no task of the train split to learn from")
        return train


def _always(model: str) -> Strategy:
    return AskInOrder(lambda _: [model], blocks=False)


def _random(setting: _Setting) -> Strategy:
    def draw(view: View) -> list[str]:
        return [random.Random(f"{setting.seed} {view.question}").choice(setting.registry.names)]  # noqa: S311 - no secret

    return AskInOrder(draw, blocks=False)


def _by_price(registry: ModelRegistry, records: RecordedPool | None) -> list[str]:
    """Return the names, the cheapest first: by mean cost where that is recorded, else by list price."""

    def cost(name: str) -> tuple[float, float]:
        price = registry[name].price
        costs = (
            []
            if records is None
            else [outcome_cost(outcomes[name], price) for outcomes in records.outcomes.values() if name in outcomes]
        )
        return (float(np.mean(costs)) if costs else price.completion, price.prompt)

    return sorted(registry.names, key=cost)


def _cheapest(setting: _Setting) -> Strategy:
    return _always(_by_price(setting.registry, setting.records and setting.records.of_split("train"))[0])


def _most_expensive(setting: _Setting) -> Strategy:
    return _always(_by_price(setting.registry, setting.records and setting.records.of_split("train"))[-1])


def _best(setting: _Setting) -> Strategy:
    names, scores, costs = _table(setting.train, setting.registry)

    def best(view: View) -> list[str]:
        worth = utility(scores.mean(0, keepdims=True), costs.mean(0), view.limits.cost_weight)[0]
        return [names[int(worth.argmax())]]

    return AskInOrder(best, blocks=False)


def _table(train: RecordedPool, registry: ModelRegistry) -> tuple[tuple[str, ...], Matrix, Matrix]:
    """Return names, quality and cost (questions x models) of the train tasks for which all models are recorded."""
    missing = [name for name in registry.names if name not in train.models]
    if missing:
        raise ValueError(f"{train.source} has no train records of {', '.join(map(repr, missing))}")
    tasks = train.complete()
    scores = [[quality(task, train.outcomes[task.id][name]) for name in registry.names] for task in tasks]
    costs = [[outcome_cost(train.outcomes[task.id][model.name], model.price) for model in registry] for task in tasks]
    return registry.names, np.array(scores), np.array(costs)


def _oracle(setting: _Setting) -> Strategy:
    if setting.records is None:
        raise ValueError("the oracle looks the right model up: give it records=RecordedPool.from_file(...)")
    records = setting.records

    def look_up(_: View) -> list[str]:
        task_id = run_metadata(get_config()).get(TASK_ID)
        outcomes = {name: records.outcome(task_id, name) for name in setting.registry.names}
        assert task_id is not None
        task = records.tasks[task_id]

        def rank(name: str) -> tuple[float, float]:
            return -quality(task, outcomes[name]), outcome_cost(outcomes[name], setting.registry[name].price)

        return [min(outcomes, key=rank)]

    return AskInOrder(look_up, blocks=False)


def _majority(setting: _Setting) -> Strategy:
    by_price = _by_price(setting.registry, setting.records and setting.records.of_split("train"))
    return Majority(by_price[::-1], setting.extractor)


def _cascade(setting: _Setting) -> Strategy:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    names, scores, costs = _table(setting.train, setting.registry)
    train = setting.train
    chain = _efficient(scores.mean(0), costs.mean(0))
    texts = [
        evidence(task.question, train.outcomes[task.id][names[model]].response or "")
        for task in train.complete()
        for model in chain
    ]
    right = scores[:, chain].reshape(-1) >= 0.5
    features = embed(setting.embeddings, texts)
    judge = LogisticRegression(max_iter=1000)
    if right.all() or not right.any():
        raise ValueError(f"{train.source}: a cascade learns from right and wrong replies, and these are all alike")
    # Confidence as on questions it has not seen, or it would look surer than it is.
    groups = np.repeat(np.arange(len(scores)), len(chain))
    folds = GroupKFold(min(5, len(scores)))
    guessed = cross_val_predict(judge, features, right, cv=folds, groups=groups, method="predict_proba")[:, 1]
    judge.fit(features, right)
    confidence = guessed.reshape(len(scores), len(chain))

    @functools.cache
    def threshold(cost_weight: float) -> float:
        return max(
            THRESHOLDS, key=lambda limit: _worth(limit, confidence, scores[:, chain], costs[:, chain], cost_weight)
        )

    def looks_right(view: View, call: RoutedCall) -> bool:
        seen = embed(setting.embeddings, [evidence(view.question, call["response"])])
        return bool(judge.predict_proba(seen)[0, 1] >= threshold(view.limits.cost_weight))

    return AskInOrder(lambda _: [names[model] for model in chain], looks_right)


def evidence(question: str, reply: str) -> str:
    """Return the text that a cascade embeds to judge a reply: its start tells, and the rest takes time to embed."""
    return f"{question}\n{reply[:300]}"


def cascade_chain(train: RecordedPool, registry: ModelRegistry) -> list[str]:
    """Return the models that a cascade asks, in this order: those that are better than every cheaper one.

    Args:
        train: Records of the train split.
        registry: The models.

    Raises:
        ValueError: A model of the registry has no records.
    """
    names, scores, costs = _table(train, registry)
    return [names[model] for model in _efficient(scores.mean(0), costs.mean(0))]


def _efficient(scores: Matrix, costs: Matrix) -> list[int]:
    """Return the models, the cheapest first, that are better than every cheaper one."""
    chain: list[int] = []
    for model in np.argsort(costs, kind="stable"):
        if not chain or scores[model] > scores[chain[-1]]:
            chain.append(int(model))
    return chain


def _worth(limit: float, confidence: Matrix, scores: Matrix, costs: Matrix, cost_weight: float) -> float:
    """Return the mean utility of a cascade that stops at this confidence; all questions x models of the chain."""
    stops = np.argmax(np.concatenate([confidence[:, :-1] >= limit, np.ones((len(scores), 1), bool)], axis=1), axis=1)
    rows = np.arange(len(scores))
    paid = np.cumsum(costs, axis=1)
    relative = np.sqrt(paid[rows, stops] / paid[:, -1].max())
    return float(np.mean((1 - cost_weight) * scores[rows, stops] + cost_weight * (1 - relative)))


def _by_prediction(setting: _Setting, predictor: Callable[[], Predictor] | None = None) -> Strategy:
    knn = KNNStrategy(
        setting.registry,
        observations(setting.train, setting.registry),
        predictor=predictor,
        embeddings=setting.embeddings,
    )
    return AskInOrder(lambda view: knn.rank(view.question, cost_weight=view.limits.cost_weight)[:1])


def _pilot_embeddings(setting: _Setting) -> Strategy:
    names, scores, costs = _table(setting.train, setting.registry)
    tasks = setting.train.complete()
    questions = embed(setting.embeddings, [task.question for task in tasks])
    kinds = np.array([task.kind for task in tasks])
    # Of models that are worth the same, the one with the first column gets the question: the cheapest.
    by_cost = np.argsort(costs.mean(0), kind="stable")

    @functools.cache
    def pilots(cost_weight: float) -> PilotLibrary:
        worth = utility(scores, costs.mean(0), cost_weight)
        library = PilotLibrary()
        for kind in dict.fromkeys(kinds):
            rows = kinds == kind
            library = library.with_domain(
                str(kind), questions[rows], {names[model]: worth[rows, model] for model in by_cost}
            )
        return library

    def nearest(view: View) -> list[str]:
        return pilots(view.limits.cost_weight).route(embed(setting.embeddings, [view.question]))

    return AskInOrder(nearest)


_STRATEGIES: dict[str, Callable[[_Setting], Strategy]] = {
    "random": _random,
    "cheapest": _cheapest,
    "most_expensive": _most_expensive,
    "best": _best,
    "oracle": _oracle,
    "majority": _majority,
    "cascade": _cascade,
    "escalation": lambda setting: Escalation(setting.train, setting.registry),
    "knn": _by_prediction,
    "logistic": lambda setting: _by_prediction(setting, LogisticPredictor),
    "mlp": lambda setting: _by_prediction(setting, functools.partial(mlp, setting.seed)),
    "contrastive": lambda setting: _by_prediction(setting, functools.partial(ContrastivePredictor, seed=setting.seed)),
    "pilot-embeddings": _pilot_embeddings,
}
