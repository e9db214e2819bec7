"""Recorded answers as chat models.

    pool = RecordedPool.from_file("nq_six_models.jsonl")
    router = create_router(engine, pool.registry())
    router.invoke({"messages": [("user", task.question)]}, {"metadata": {"task_id": task.id}})

A recorded model replies what that model really said to that *task*, at the price of the record. Which task it is, the
run's metadata say (`task_id`): **whatever sub-question the router writes, the reply is the record of the whole
question.** So a recorded pool can show which model to call, and how to extract a short answer from a reply; it can't
show whether a question was well decomposed.

The file is one JSON object a line, `{"id", "question", "golden_answers", "dataset", "outcomes": {model: {...}}}`, an
outcome holding `response` and what is known of `prompt_tokens`, `completion_tokens`, `cost_usd`, `latency_s`, `score`.
Lines of the same id add up, so a `Recorder` (recorder.py) can write one line per reply, as it comes.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig, ensure_config
from pydantic import ConfigDict, Field
from typing_extensions import override

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.metrics import contains, without_tags
from langgraph_router_r1.evaluation.tasks import Split, Task, TaskError, as_task, json_lines
from langgraph_router_r1.ledger import CHARACTERS_PER_TOKEN, FREE, PER_MILLION, Price, PriceLike, estimate_tokens
from langgraph_router_r1.registry import ModelRegistry

TASK_ID = "task_id"
"""The key of a run's metadata that says which task it is about."""

_AS_RECORDED = ("prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "alone")
"""What an outcome holds in a file under the same name."""

TEXT_NOT_RECORDED = "(What this model said was not recorded, only how well it did.)"
"""The reply of a model of which only scores are known."""


class NotRecordedError(LookupError):
    """There is no record of that model's reply to that task."""


@dataclass(frozen=True)
class Outcome:
    """What one model did with one task, as far as it is known."""

    response: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    alone: bool | None = None
    """Whether nothing else was asked at the same time, so that the latency is the model's own."""
    score: float | None = None
    """How good the reply was, 0 to 1, as the record's own judges or metrics say."""


@dataclass
class RecordedPool:
    """Recorded answers of some models to some tasks.

    Example:
        >>> pool = RecordedPool.from_rows([{"id": "t1", "question": "Capital of Peru?", "golden_answers": ["Lima"],
        ...     "outcomes": {"small": {"response": "Lima.", "completion_tokens": 2, "cost_usd": 4e-7}}}])
        >>> small = pool.registry()["small"]
        >>> str(small.price), small.model.invoke("?", {"metadata": {"task_id": "t1"}}).content
        ('$0/M in, $0.2/M out', 'Lima.')
    """

    tasks: dict[str, Task] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    """By task id, then by model."""
    source: str = "the records"
    limited: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Models with a length: which model each was made from, and most tokens of its reply; see `with_lengths`."""

    @classmethod
    def from_file(cls, *paths: str | Path) -> RecordedPool:
        """Read files of records; those of several files add up.

        Raises:
            TaskError: A file can't be read, or a line of it is wrong.
        """
        pool = cls(source=", ".join(Path(path).name for path in paths))
        for path in map(Path, paths):
            # The last line may be cut off: a recorder writes the file, or was killed while it did.
            for line, row in json_lines(path, may_be_cut_off=True):
                pool.add_row(row, f"{path.name}, line {line}", path.stem, line)
        return pool

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], *, source: str = "records") -> RecordedPool:
        """Build from rows such as a file's lines hold."""
        pool = cls(source=source)
        for line, row in enumerate(rows, start=1):
            pool.add_row(row, f"{source}, row {line}", source, line)
        return pool

    def add_row(self, row: Mapping[str, Any], where: str, dataset: str, line: int) -> None:
        """Add one line of a file.

        Args:
            row: The line.
            where: File and line, for error messages.
            dataset: Of tasks that do not say which data set they are from.
            line: Its number; part of the id of tasks that have none.

        Raises:
            TaskError: The line is wrong, or its task has another question elsewhere.
        """
        task = as_task(row, where, dataset, line)
        known = self.tasks.setdefault(task.id, task)
        if known.question != task.question:
            raise TaskError(f"{where}: task {task.id!r} is another question already, {known.question!r}")
        found = self.outcomes.setdefault(task.id, {})
        for model, outcome in _outcomes(row, where).items():
            found[model] = outcome

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are recorded for any task, in order of appearance."""
        return tuple(dict.fromkeys(model for outcomes in self.outcomes.values() for model in outcomes))

    def outcome(self, task_id: str | None, model: str) -> Outcome:
        """Return what this model did with this task.

        Raises:
            NotRecordedError: That is not recorded.
        """
        if task_id is None:
            msg = (
                f"{model!r} is a recorded model and the run does not say which task it is about: "
                f'give it the metadata {{"{TASK_ID}": ...}}'
            )
            raise NotRecordedError(msg)
        if task_id not in self.outcomes:
            raise NotRecordedError(f"task {task_id!r} is not in {self.source}, which holds {len(self.tasks)} tasks")
        if model not in self.outcomes[task_id]:
            there = ", ".join(map(repr, self.outcomes[task_id]))
            raise NotRecordedError(f"{self.source} has no reply of {model!r} to task {task_id!r}, only of {there}")
        return self.outcomes[task_id][model]

    def complete(self) -> list[Task]:
        """Return the tasks for which every model is recorded."""
        models = len(self.models)  # it looks at all outcomes: once, not for each task
        return [task for task in self.tasks.values() if len(self.outcomes[task.id]) == models]

    def save(self, path: Path) -> None:
        """Write the records, one line a task."""
        lines = []
        for task in self.tasks.values():
            outcomes = {
                model: {key: value for key, value in asdict(outcome).items() if value is not None}
                for model, outcome in self.outcomes[task.id].items()
            }
            lines.append(json.dumps(task_row(task) | {"outcomes": outcomes}))
        replace_file(path, "\n".join(lines) + "\n")

    def of_split(self, split: Split) -> RecordedPool:
        """Return the part of it that belongs to a split."""
        tasks = {task.id: task for task in self.tasks.values() if task.split == split}
        return RecordedPool(tasks, {task_id: self.outcomes[task_id] for task_id in tasks}, self.source, self.limited)

    def with_lengths(self, lengths: Mapping[str, int]) -> RecordedPool:
        """Return the pool with each model once more for each length, as a candidate whose replies are cut there.

        A reply that was longer is worth nothing where the record has a score for it: its judge saw all of it. Elsewhere
        it is judged by the words that are left. A real model that is told to be brief may well do better.

        Args:
            lengths: Most tokens of a reply, by what the length is called.

        Raises:
            ValueError: It is not recorded how long a reply is, or a model is called so already.

        Example:
            >>> pool = RecordedPool.from_rows([{"id": "t1", "question": "Capital of Peru?", "golden_answers": ["Lima"],
            ...     "outcomes": {"small": {"response": "Well, in Lima.", "completion_tokens": 5, "cost_usd": 1e-6}}}])
            >>> short = pool.with_lengths({"short": 4}).outcome("t1", "small (short)")
            >>> short.response, short.completion_tokens, short.cost_usd
            ('Well, in L', 4, 8e-07)
        """
        outcomes, limited = {task_id: dict(of) for task_id, of in self.outcomes.items()}, dict(self.limited)
        models = self.models
        for model in models if lengths else ():
            recorded = {task_id: of[model] for task_id, of in self.outcomes.items() if model in of}
            if any(outcome.completion_tokens is None for outcome in recorded.values()):
                msg = f"{self.source} does not say how many tokens each reply of {model!r} has: they can't be cut"
                raise ValueError(msg)
            has_costs = any(outcome.cost_usd is not None for outcome in recorded.values())
            price = self._price(model) if has_costs else FREE
            for label, most in lengths.items():
                name = f"{model} ({label})"
                if name in models:
                    msg = f"{self.source} has a model {name!r} already: give the length {label!r} another name"
                    raise ValueError(msg)
                limited[name] = model, most
                for task_id, outcome in recorded.items():
                    outcomes[task_id][name] = _cut(outcome, most, price)
        return RecordedPool(self.tasks, outcomes, self.source, limited)

    def registry(
        self, *, prices: Mapping[str, PriceLike] | None = None, descriptions: Mapping[str, str] | None = None
    ) -> ModelRegistry:
        """Return the recorded models as a registry: prices as the records imply, skills as measured on the train split.

        Args:
            prices: Prices of models whose costs are not recorded.
            descriptions: What the router is told of them.

        Raises:
            ValueError: A model's price is neither recorded nor given, or its recorded costs follow no price.
        """
        return ModelRegistry(
            self._descriptor(model, prices=prices or {}, descriptions=descriptions or {}) for model in self.models
        )

    def _descriptor(
        self, model: str, *, prices: Mapping[str, PriceLike], descriptions: Mapping[str, str]
    ) -> ModelDescriptor:
        whole, most = self.limited.get(model, (model, None))
        told = descriptions.get(model, descriptions.get(whole, ""))
        return ModelDescriptor(
            name=model,
            model=RecordedChatModel(pool=self, name=model),
            price=prices.get(model) or prices.get(whole) or self._price(whole),
            description=told if most is None else f"{told} Replies of at most {most} tokens.".strip(),
            params={} if most is None else {"max_tokens": most},
            skills=self._skills(model),
            # Nothing is waited for, and what was once said can't be said again in other words.
            max_retries=0,
        )

    def _skills(self, model: str) -> dict[str, float]:
        """Return how good a model's replies are, by data set; of the train split, the others are for testing."""
        found: dict[str, list[float]] = {}
        for task in self.of_split("train").tasks.values():
            if model in self.outcomes[task.id]:
                found.setdefault(task.dataset, []).append(quality(task, self.outcomes[task.id][model]))
        return {dataset: round(sum(values) / len(values), 2) for dataset, values in found.items()}

    def _price(self, model: str) -> Price:
        """Return the price per token that explains every recorded cost of a model to within 1 %."""
        import numpy as np

        records = [outcomes[model] for outcomes in self.outcomes.values() if model in outcomes]
        if any(record.cost_usd is None or record.completion_tokens is None for record in records):
            msg = f"{self.source} does not say what {model!r} cost: give its price ('free' if it costs nothing)"
            raise ValueError(msg)
        used = np.array([[record.prompt_tokens or 0, record.completion_tokens] for record in records], dtype=float)
        costs = np.array([record.cost_usd for record in records], dtype=float)
        found = np.linalg.lstsq(used, costs, rcond=None)[0]
        if not np.allclose(used @ found, costs, rtol=0.01, atol=1e-9):
            msg = f"the costs of {model!r} in {self.source} follow no price per token: give its price"
            raise ValueError(msg)
        prompt, completion = (max(0.0, float(f"{dollars / PER_MILLION:.6g}")) for dollars in found)
        return Price(prompt=prompt if used[:, 0].any() else 0.0, completion=completion)


def _cut(outcome: Outcome, most: int, price: Price) -> Outcome:
    """Return what would be recorded if the reply had been cut after so many tokens."""
    over = (outcome.completion_tokens or 0) - most
    if over <= 0:
        return outcome
    rates = price.at(outcome.prompt_tokens or 0)
    return replace(
        outcome,
        # From the end: some files hold only the end of long replies.
        response=None if outcome.response is None else outcome.response[: -over * CHARACTERS_PER_TOKEN],
        completion_tokens=most,
        cost_usd=None if outcome.cost_usd is None else outcome.cost_usd - PER_MILLION * over * rates.completion,
        score=None if outcome.score is None else 0.0,
    )


def task_row(task: Task) -> dict[str, Any]:
    """Return what a file's line says of a task."""
    return {
        "id": task.id,
        "question": task.question,
        "golden_answers": list(task.golden_answers),
        "dataset": task.dataset,
        **{key: value for key, value in task.meta.items() if key in {"kind", "hops"}},
    }


def _outcomes(row: Mapping[str, Any], where: str) -> dict[str, Outcome]:
    """Return the outcomes of a row, if any; public files say `score` or `correct`, of a reply or instead of one."""
    given = row.get("outcomes", row.get("scores", row.get("correct")))
    if not isinstance(given, Mapping):
        raise TaskError(f"{where}: 'outcomes' is missing; it must be an object with one entry a model")
    outcomes = {}
    for model, value in given.items():
        entry = value if isinstance(value, Mapping) else {"score": value}
        score = entry.get("score", entry.get("correct"))
        if score is not None and not (isinstance(score, int | float) and math.isfinite(score)):
            raise TaskError(f"{where}: the score of {model!r} is {score!r}; it must be a number")
        known = {name: entry.get(name) for name in _AS_RECORDED}
        for name, number in known.items():
            if number is not None and not (isinstance(number, int | float) and number >= 0):
                raise TaskError(f"{where}: {name!r} of {model!r} is {number!r}; it must be a number, 0 or more")
        outcomes[str(model)] = Outcome(
            response=None if entry.get("response") is None else str(entry["response"]),
            score=None if score is None else float(score),
            **known,
        )
    return outcomes


class RecordedChatModel(BaseChatModel):
    """One model of a `RecordedPool`. Knows the task by the run's metadata; what was asked in words, it ignores."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    pool: RecordedPool = Field(repr=False, exclude=True)
    name: str | None = None

    @property
    def _llm_type(self) -> str:
        return "recorded"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.name, "source": self.pool.source}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._recorded(run_manager))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._recorded(run_manager))])

    # Streams are not told of the run they belong to: its task comes along as a parameter.
    @override
    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[AIMessageChunk]:
        return super().stream(input, config, **{TASK_ID: run_metadata(config).get(TASK_ID), **kwargs})

    @override
    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        async for chunk in super().astream(input, config, **{TASK_ID: run_metadata(config).get(TASK_ID), **kwargs}):
            yield chunk

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        message = as_message(self.pool.outcome(kwargs.get(TASK_ID), str(self.name)))
        for line in message.text.splitlines(keepends=True):
            yield ChatGenerationChunk(message=AIMessageChunk(content=line))
        yield ChatGenerationChunk(message=AIMessageChunk(content="", usage_metadata=message.usage_metadata))

    def _recorded(self, run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> AIMessage:
        task_id = run_manager.metadata.get(TASK_ID) if run_manager else None
        return as_message(self.pool.outcome(task_id, str(self.name)))


def as_message(outcome: Outcome) -> AIMessage:
    """Return a recorded reply as a model gives it, with its usage as far as it is known."""
    usage: UsageMetadata | None = None
    if outcome.completion_tokens is not None:
        prompt, completion = outcome.prompt_tokens or 0, outcome.completion_tokens
        usage = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
    return AIMessage(TEXT_NOT_RECORDED if outcome.response is None else outcome.response, usage_metadata=usage)


def quality(task: Task, outcome: Outcome) -> float:
    """Return how good a recorded reply is, 0 to 1: as its judges said, else whether it holds a golden answer."""
    if outcome.score is not None:
        return outcome.score
    return float(outcome.response is not None and contains(without_tags(outcome.response), task.golden_answers))


def outcome_cost(outcome: Outcome, price: Price) -> float:
    """Return what a recorded reply cost in dollars: as recorded, else its tokens at this price.

    Where not even the tokens are recorded, they are estimated from the reply at four characters a token.
    """
    if outcome.cost_usd is not None:
        return outcome.cost_usd
    completion = outcome.completion_tokens
    if completion is None:
        completion = estimate_tokens(outcome.response or TEXT_NOT_RECORDED)
    rates = price.at(outcome.prompt_tokens or 0)
    return PER_MILLION * ((outcome.prompt_tokens or 0) * rates.prompt + completion * rates.completion)


def run_metadata(config: RunnableConfig | None) -> dict[str, Any]:
    """Return the metadata of the run that a call belongs to, its own and those it inherits."""
    config = ensure_config(config)
    inherited = getattr(config.get("callbacks"), "inheritable_metadata", None) or {}
    return {**inherited, **config.get("metadata", {})}
