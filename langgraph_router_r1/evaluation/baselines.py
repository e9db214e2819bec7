"""What a trained router must beat: simpler ways to choose among the same models, with the same account.

    knn = create_baseline("knn", registry, records=records, cost_weight=0.3, extractor=extractor)
    knn.invoke({"messages": [("user", "Who wrote Emma?")]})["answer"]

Each is a graph with the router's input and output, so whatever takes a router takes a baseline. What learns, learns
from the train split of the records only. A baseline is a *plan*: a generator that yields the models to ask, is sent
what they replied, and returns the answer.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, get_args

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.config import get_config, get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from typing_extensions import TypedDict

from langgraph_router_r1.accounting import account
from langgraph_router_r1.candidates import Candidates
from langgraph_router_r1.engines.chat_model import CHARACTERS_PER_TOKEN
from langgraph_router_r1.evaluation.extractor import Extraction, Extractor
from langgraph_router_r1.evaluation.metrics import normalise
from langgraph_router_r1.evaluation.recorded import TASK_ID, RecordedPool, outcome_cost, quality, run_metadata
from langgraph_router_r1.events import DoneEvent
from langgraph_router_r1.graph import Node, announce_call, announce_hop
from langgraph_router_r1.ledger import Price, PriceLike, Usage, add_usage
from langgraph_router_r1.pilot import Matrix, MiniLM, Pilot, Predictor, embed, observations, utility
from langgraph_router_r1.prompts import last_question
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import PlannedCall, RoutedCall, RouterContext, RouterInput, RouterOutput, RunReport

Kind = Literal[
    "random", "cheapest", "dearest", "best", "oracle", "majority", "cascade", "knn", "logistic", "mlp", "contrastive"
]
"""`best`: the single model that did best on the train split. `oracle`: for each question the cheapest model that was
right, which nobody can know beforehand. `majority`: the answer most models give. `cascade`: by price until a
reply looks right (in the style of FrugalGPT, arXiv 2305.05176). `knn`, `logistic`, `mlp`, `contrastive`: the model
that does best on questions like this one, by sentence embeddings (the last in the style of RouterDC, arXiv 2409.19886).
"""

LEARNING = frozenset({"best", "oracle", "cascade", "knn", "logistic", "mlp", "contrastive"})
"""Those that need records of what the models said before."""

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(21))
"""Confidences at which a cascade may stop; which, the train split decides."""


@dataclass(frozen=True)
class Question:
    """What a plan knows of its run."""

    text: str
    task_id: str | None
    """Of the run's metadata; only the oracle looks."""
    cost_weight: float


@dataclass(frozen=True)
class Ask:
    """A plan's wish: ask these models the question, at the same time. It is sent their hops."""

    models: Sequence[str]


@dataclass(frozen=True)
class Shorten:
    """A plan's wish: the short answers of these replies. It is sent as many texts."""

    replies: Sequence[str]


Plan = Generator[Ask | Shorten, Any, str]
Planner = Callable[[Question], Plan]


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

    Raises:
        ValueError: There is no baseline of that kind, or it needs records that are not given.

    Example:
        >>> from langgraph_router_r1 import ModelDescriptor
        >>> from langgraph_router_r1.testing import ScriptedChatModel
        >>> small = ModelDescriptor(name="small", model=ScriptedChatModel(["Lima"]), price=1.0)
        >>> create_baseline("cheapest", ModelRegistry([small])).invoke({"messages": [("user", "Capital?")]})["answer"]
        'Lima'
    """
    setting = _Setting(registry, records, embeddings or MiniLM(), extractor, cost_weight, seed)
    if kind in _PLANNERS:
        planner = _PLANNERS[kind](setting)
    elif kind in registry:
        planner = functools.partial(_ask_one, registry[kind].name)
    else:
        known = ", ".join((*get_args(Kind), *registry.names))
        raise ValueError(f"there is no baseline {kind!r}; there are: {known}")
    driver = _Driver(
        planner, Candidates(registry, estimate_tokens), extractor, cost_weight, Price.parse(extractor_price)
    )
    graph = StateGraph(_State, context_schema=RouterContext, input_schema=RouterInput, output_schema=RouterOutput)
    graph.add_node("route", Node(driver.run, driver.arun))
    graph.add_edge(START, "route")
    graph.add_edge("route", END)
    return graph.compile(name=f"baseline_{kind}")


class _State(TypedDict):
    """What a baseline knows: what it was asked, and at the end what it answers."""

    messages: Annotated[list[AnyMessage], add_messages]
    answer: NotRequired[str]
    routing: NotRequired[RunReport]


class _Tally(TypedDict):
    hops: list[RoutedCall]
    usages: list[Usage]
    turns: int


@dataclass(frozen=True)
class _Driver:
    """Runs a plan: makes its calls, keeps its account."""

    planner: Planner
    candidates: Candidates
    extractor: Extractor | None
    cost_weight: float
    extractor_price: Price

    def run(self, state: Any) -> dict[str, Any]:
        plan, question, tally = self._begin(state)
        step: Callable[[], Any] = functools.partial(next, plan)
        while not isinstance(wish := _step(step), _Returned):
            if isinstance(wish, Ask):
                hops = []
                for call in self._calls(wish, question, tally):
                    announce_call(call)
                    hops.append(self.candidates.ask(call))
                    announce_hop(hops[-1])
                step = functools.partial(plan.send, self._asked(hops, tally))
            else:
                made = [self._extract(question, reply) for reply in wish.replies]
                step = functools.partial(plan.send, [self._shortened(extraction, tally) for extraction in made])
        return self._end(wish.reply, self._shortened(self._extract(question, wish.reply), tally), tally)

    async def arun(self, state: Any) -> dict[str, Any]:
        plan, question, tally = self._begin(state)
        step: Callable[[], Any] = functools.partial(next, plan)
        # A plan may embed its question: not on the event loop.
        while not isinstance(wish := await asyncio.to_thread(_step, step), _Returned):
            if isinstance(wish, Ask):
                calls = self._calls(wish, question, tally)
                for call in calls:
                    announce_call(call)
                hops = list(await asyncio.gather(*(self.candidates.aask(call) for call in calls)))
                for hop in hops:
                    announce_hop(hop)
                step = functools.partial(plan.send, self._asked(hops, tally))
            else:
                made = await asyncio.gather(*(self._aextract(question, reply) for reply in wish.replies))
                step = functools.partial(plan.send, [self._shortened(extraction, tally) for extraction in made])
        return self._end(wish.reply, self._shortened(await self._aextract(question, wish.reply), tally), tally)

    def _begin(self, state: Any) -> tuple[Plan, Question, _Tally]:
        context = get_runtime().context
        given = context.cost_weight if isinstance(context, RouterContext) else None
        text = state["messages"][last_question(state["messages"])].text
        weight = self.cost_weight if given is None else given
        question = Question(text, run_metadata(get_config()).get(TASK_ID), weight)
        return self.planner(question), question, {"hops": [], "usages": [], "turns": 0}

    def _calls(self, wish: Ask, question: Question, tally: _Tally) -> list[PlannedCall]:
        turn, tally["turns"] = tally["turns"], tally["turns"] + 1
        return [
            {"turn": turn, "index": index, "model": model, "query": question.text, "refusal": None}
            for index, model in enumerate(wish.models)
        ]

    def _asked(self, hops: list[RoutedCall], tally: _Tally) -> list[RoutedCall]:
        tally["hops"] += hops
        return hops

    def _extract(self, question: Question, reply: str) -> Extraction | str:
        return reply if self.extractor is None else self.extractor.extract(question.text, reply)

    async def _aextract(self, question: Question, reply: str) -> Extraction | str:
        return reply if self.extractor is None else await self.extractor.aextract(question.text, reply)

    def _shortened(self, made: Extraction | str, tally: _Tally) -> str:
        if isinstance(made, str):
            return made
        tally["usages"].append(made.usage)
        return made.text

    def _end(self, reply: str, answer: str, tally: _Tally) -> dict[str, Any]:
        routing = account(
            tally["hops"],
            turns=tally["turns"],
            router_tokens=add_usage(tally["usages"]),
            router_price=self.extractor_price,
            stop_reason="answered" if reply.strip() else "no_answer",
        )
        event: DoneEvent = {"type": "router_r1.done", "answer": answer, "routing": routing}
        get_stream_writer()(event)
        metadata = {"stop_reason": routing["stop_reason"], "reply": reply}
        return {"messages": [AIMessage(answer, response_metadata=metadata)], "answer": answer, "routing": routing}


@dataclass(frozen=True)
class _Returned:
    """A plan that is over, with what it returned: no exception may leave a thread as `StopIteration`."""

    reply: str


def _step(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except StopIteration as end:
        return _Returned(str(end.value))


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, for models that do not report their usage."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


# The plans


@dataclass(frozen=True)
class _Setting:
    """What a planner is made from."""

    registry: ModelRegistry
    records: RecordedPool | None
    embeddings: Embeddings
    extractor: Extractor | None
    cost_weight: float
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


def _ask_one(model: str, _: Question) -> Plan:
    hops = yield Ask([model])
    return _reply(hops)


def _reply(hops: Iterable[RoutedCall]) -> str:
    """Return the first reply there is."""
    return next((hop["response"] for hop in hops if hop["status"] == "ok"), "")


def _random(setting: _Setting) -> Planner:
    def plan(question: Question) -> Plan:
        draw = random.Random(f"{setting.seed} {question.text}")  # noqa: S311 - no secret
        hops = yield Ask([draw.choice(setting.registry.names)])
        return _reply(hops)

    return plan


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


def _cheapest(setting: _Setting) -> Planner:
    records = setting.records and setting.records.of_split("train")
    return functools.partial(_ask_one, _by_price(setting.registry, records)[0])


def _dearest(setting: _Setting) -> Planner:
    records = setting.records and setting.records.of_split("train")
    return functools.partial(_ask_one, _by_price(setting.registry, records)[-1])


def _best(setting: _Setting) -> Planner:
    names, scores, costs = _table(setting)

    def plan(question: Question) -> Plan:
        worth = utility(scores.mean(0, keepdims=True), costs.mean(0), question.cost_weight)[0]
        return (yield from _ask_one(names[int(worth.argmax())], question))

    return plan


def _table(setting: _Setting) -> tuple[tuple[str, ...], Matrix, Matrix]:
    """Return names, quality and cost (questions x models) of the train tasks for which all models are recorded."""
    train, registry = setting.train, setting.registry
    missing = [name for name in registry.names if name not in train.models]
    if missing:
        raise ValueError(f"{train.source} has no train records of {', '.join(map(repr, missing))}")
    tasks = train.complete()
    scores = [[quality(task, train.outcomes[task.id][name]) for name in registry.names] for task in tasks]
    costs = [[outcome_cost(train.outcomes[task.id][model.name], model.price) for model in registry] for task in tasks]
    return registry.names, np.array(scores), np.array(costs)


def _oracle(setting: _Setting) -> Planner:
    if setting.records is None:
        raise ValueError("the oracle looks the right model up: give it records=RecordedPool.from_file(...)")
    records = setting.records

    def plan(question: Question) -> Plan:
        outcomes = {name: records.outcome(question.task_id, name) for name in setting.registry.names}
        assert question.task_id is not None
        task = records.tasks[question.task_id]

        def rank(name: str) -> tuple[float, float]:
            return -quality(task, outcomes[name]), outcome_cost(outcomes[name], setting.registry[name].price)

        return (yield from _ask_one(min(outcomes, key=rank), question))

    return plan


def _majority(setting: _Setting) -> Planner:
    dearest_first = _by_price(setting.registry, setting.records and setting.records.of_split("train"))[::-1]

    def plan(_: Question) -> Plan:
        hops = yield Ask(dearest_first)
        replies = [hop["response"] for hop in hops if hop["status"] == "ok"]
        if not replies:
            return ""
        answers = yield Shorten(replies)
        votes = Counter(normalise(answer) for answer in answers if normalise(answer))
        # Of equals the dearest model's: the counter keeps the order of its first sight.
        winner = votes.most_common(1)[0][0] if votes else normalise(answers[0])
        return str(next(reply for reply, answer in zip(replies, answers, strict=True) if normalise(answer) == winner))

    return plan


def _cascade(setting: _Setting) -> Planner:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    names, scores, costs = _table(setting)
    train = setting.train
    chain = _efficient(scores.mean(0), costs.mean(0))
    texts = [
        _evidence(task.question, train.outcomes[task.id][names[model]].response or "")
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

    def plan(question: Question) -> Plan:
        limit = threshold(question.cost_weight)
        reply = ""
        for model in chain:
            hops = yield Ask([names[model]])
            reply = _reply(hops) or reply
            seen = embed(setting.embeddings, [_evidence(question.text, reply)])
            if hops[0]["status"] == "ok" and judge.predict_proba(seen)[0, 1] >= limit:
                break
        return reply

    return plan


def _evidence(question: str, reply: str) -> str:
    """Return what a cascade judges a reply by: its start tells, and the rest takes time to embed."""
    return f"{question}\n{reply[:300]}"


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


def _by_prediction(setting: _Setting, predictor: Callable[[], Predictor] | None = None) -> Planner:
    pilot = Pilot(
        setting.registry,
        observations(setting.train, setting.registry),
        predictor=predictor,
        embeddings=setting.embeddings,
    )

    def plan(question: Question) -> Plan:
        best = pilot.rank(question.text, cost_weight=question.cost_weight)[0]
        return (yield from _ask_one(best, question))

    return plan


class LogisticPredictor:
    """A logistic regression a model: how likely its reply is right."""

    def fit(self, embeddings: Matrix, quality: Matrix) -> None:
        """See `Predictor.fit`."""
        from sklearn.dummy import DummyClassifier
        from sklearn.linear_model import LogisticRegression

        self._models = []
        for column in (quality >= 0.5).T:
            # A model that was always right, or never, teaches nothing but that.
            model = (
                DummyClassifier(strategy="prior")
                if column.all() or not column.any()
                else LogisticRegression(max_iter=1000)
            )
            self._models.append(model.fit(embeddings, column))

    def predict(self, embeddings: Matrix) -> Matrix:
        """See `Predictor.predict`."""
        return np.stack(
            [
                model.predict_proba(embeddings)[:, list(model.classes_).index(True)]
                if True in model.classes_
                else np.zeros(len(embeddings))
                for model in self._models
            ],
            axis=1,
        )


def _mlp(seed: int) -> Predictor:
    from sklearn.neural_network import MLPRegressor

    network: Predictor = MLPRegressor(
        hidden_layer_sizes=(64,), alpha=1e-2, early_stopping=True, max_iter=500, random_state=seed
    )
    return network


class ContrastivePredictor:
    """RouterDC's idea on frozen embeddings: questions and models in one space, right pairs near, wrong pairs far.

    The loss is its sample-LLM contrastive loss (arXiv 2409.19886, eq. 4): each model that was right on a question
    against all that were wrong on it. The query encoder is a linear layer over MiniLM, where theirs is fine-tuned.
    """

    def __init__(self, *, dimensions: int = 64, epochs: int = 200, temperature: float = 0.1, seed: int = 0) -> None:
        self.dimensions, self.epochs, self.temperature, self.seed = dimensions, epochs, temperature, seed

    def fit(self, embeddings: Matrix, quality: Matrix) -> None:
        """See `Predictor.fit`."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoder = torch.nn.Linear(embeddings.shape[1], self.dimensions)
            models = torch.nn.Parameter(torch.randn(quality.shape[1], self.dimensions))
        questions = torch.tensor(embeddings, dtype=torch.float32)
        right = torch.tensor(quality >= 0.5)
        optimiser = torch.optim.AdamW([*encoder.parameters(), models], lr=1e-2, weight_decay=1e-2)
        for _ in range(self.epochs):
            near = torch.nn.functional.cosine_similarity(encoder(questions)[:, None], models[None], dim=-1)
            near = near / self.temperature
            wrong = near.masked_fill(right, -torch.inf).logsumexp(dim=1, keepdim=True)
            # A question that all got right, or none, tells models apart by nothing.
            tells = right & torch.isfinite(wrong)
            if not tells.any():
                break
            loss = (torch.logaddexp(near, wrong) - near)[tells].mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        self._encoder, self._models = encoder, models

    def predict(self, embeddings: Matrix) -> Matrix:
        """Return the similarity of questions and models, 0 to 1."""
        import torch

        with torch.no_grad():
            encoded = self._encoder(torch.tensor(embeddings, dtype=torch.float32))
            near = torch.nn.functional.cosine_similarity(encoded[:, None], self._models[None], dim=-1)
        similarity: Matrix = (near.double().numpy() + 1) / 2
        return similarity


_PLANNERS: dict[str, Callable[[_Setting], Planner]] = {
    "random": _random,
    "cheapest": _cheapest,
    "dearest": _dearest,
    "best": _best,
    "oracle": _oracle,
    "majority": _majority,
    "cascade": _cascade,
    "knn": _by_prediction,
    "logistic": lambda setting: _by_prediction(setting, LogisticPredictor),
    "mlp": lambda setting: _by_prediction(setting, functools.partial(_mlp, setting.seed)),
    "contrastive": lambda setting: _by_prediction(setting, functools.partial(ContrastivePredictor, seed=setting.seed)),
}
