"""Any routers on any tasks: a benchmark file in, a file of runs out.

    benchmarks/nq_recorded.toml  ->  runs/bench/nq_recorded/runs.jsonl

Every run is written as it ends, so a benchmark that was stopped, however rudely, goes on where it was, and scores can
be computed anew from the file. Live and recorded pools differ in `[pool]` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import sqlite3
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langgraph_router_r1 import protocol
from langgraph_router_r1.candidates import Candidates
from langgraph_router_r1.evaluation.baselines import LEARNING, Kind, create_baseline, estimate_tokens
from langgraph_router_r1.evaluation.cache import remember
from langgraph_router_r1.evaluation.extractor import ADAPTERS, EXTRACTOR_NAME, Extractor, adapter_version
from langgraph_router_r1.evaluation.files import JsonLinesWriter, replace_file
from langgraph_router_r1.evaluation.forms import Form
from langgraph_router_r1.evaluation.judge import Judge
from langgraph_router_r1.evaluation.metrics import METRICS
from langgraph_router_r1.evaluation.pools import TASK_ID, RecordedPool, quality
from langgraph_router_r1.evaluation.report import Results, score_runs
from langgraph_router_r1.evaluation.tasks import (
    Split,
    Task,
    data_dir,
    distinct,
    draw,
    json_lines,
    load_tasks,
    read_tasks,
)
from langgraph_router_r1.graph import create_router
from langgraph_router_r1.ledger import PER_MILLION, Price
from langgraph_router_r1.pilot import MiniLM
from langgraph_router_r1.prompts import RouterPrompt
from langgraph_router_r1.registry import ModelRegistry, RegistryError, UnknownModelError
from langgraph_router_r1.state import Hop, RouterContext

if TYPE_CHECKING:
    from langgraph.cache.base import BaseCache

    from langgraph_router_r1.serving.vllm import VLLMServer

RUNS_FILE = "runs.jsonl"
SPEC_FILE = "benchmark.json"
CALLS_FILE = "calls.sqlite"
IN_FLIGHT = 32

MAX_TURN_TOKENS = 256
"""Most tokens of a router's turn: a trained one needs fifty, and a prompted one that rambles gets no further."""


class BenchError(ValueError):
    """A benchmark can't be run, or its file is wrong; the message says why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PoolSpec(_Strict):
    """Who may be asked: exactly one of `records`, `registry` and `pocket`."""

    records: tuple[str, ...] = ()
    """Files of recorded answers, in the data directory or beside the benchmark file."""
    registry: str | None = None
    """A registry file: real models are asked."""
    pocket: bool = False
    """The pocket pool, on a vLLM that is started for it."""
    profile: str | None = None
    """For real models: recorded answers of theirs that baselines learn from; by default the registry's profile."""
    prices: dict[str, Any] = Field(default_factory=dict)
    """Prices of recorded models whose costs were not recorded."""
    descriptions: dict[str, str] = Field(default_factory=dict)
    """What the router is told of recorded models."""


class RowSpec(_Strict):
    """One router, or with several cost weights one row for each."""

    router: str
    """`"models"` (a row for each model), a kind of baseline, the name of a model, `"router"` (the trained one) or
    `"prompted"` (a chat model that routes untrained)."""
    name: str | None = None
    cost_weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0,), min_length=1)
    extract: bool | None = None
    """Whether the extractor makes a short answer of the reply; by default for baselines, when there is one."""
    model: str | None = None
    """Of a prompted router: which chat model, by LangChain's name or by its name on the pocket server. Of a trained
    one: its name on its server."""
    url: str | None = None
    """Of a trained router: the vLLM that serves it; by default the pocket server, started for the benchmark."""
    router_price: float | None = Field(default=None, ge=0)
    """Of this row's own tokens, in place of the benchmark's; a chat model of a provider must have it."""
    weights: tuple[float, ...] = ()
    """The cost weights that a trained router is told of, others being mixed (see `RouterPrompt`); by default any."""
    max_turns: int = 4


class JudgeSpec(_Strict):
    """Who judges the replies, for the metric `judge`."""

    model: str
    registry: str | None = None
    """The registry file that has it; by default the pocket pool has."""


class BenchSpec(_Strict):
    """A benchmark file."""

    title: str
    about: str = ""
    pool: PoolSpec
    rows: tuple[RowSpec, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = ()
    """Task sets, or `.jsonl` files of tasks; by default what the pool's records hold."""
    split: Split | Literal["all"] = "test"
    sample: int | None = Field(default=None, ge=1)
    seed: int = 0
    metrics: tuple[str, ...] = ("em", "f1", "contains")
    """The first one decides."""
    extract: bool = False
    """Whether baselines answer through the extractor."""
    router_price: float = Field(default=0.0, ge=0)
    """Dollars per million tokens of the router's (and the extractor's) own."""
    judge: JudgeSpec | None = None
    reference: str | None = None
    """The row that others are compared with."""
    needs_keys: bool = False
    """Whether its models are behind keys."""
    forms: tuple[Form, ...] = ()
    """Ways in which the router is told of the pool; each row is run in each of them."""
    adapters: tuple[str, ...] = ()
    """Directories of more adapters for the server, one in each subdirectory: routers of one's own, for rows whose
    `model` is the name of one."""

    @classmethod
    def from_file(cls, path: str | Path) -> BenchSpec:
        """Read a benchmark file.

        Raises:
            BenchError: It can't be read, or anything in it is wrong; the message says where.
        """
        path = Path(path)
        try:
            return cls(**tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise BenchError(f"benchmark file {str(path)!r} can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise BenchError(f"benchmark file {str(path)!r} can't be read: it is not UTF-8 text") from None
        except RecursionError:
            raise BenchError(f"benchmark file {str(path)!r} can't be read: it is nested too deeply") from None
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, detail['loc']))}: {detail['msg'].lower()}"
                # Text is not shown: a key may stand in the wrong place.
                + (f", and is {detail['input']!r}" if isinstance(detail["input"], int | float) else "")
                for detail in error.errors()
            ]
            raise BenchError("\n  ".join([f"benchmark file {str(path)!r} is wrong:", *problems])) from None
        except ValueError as error:  # no TOML, or a number with too many digits
            raise BenchError(f"benchmark file {str(path)!r} can't be read: {error}") from None


@dataclass(frozen=True)
class Row:
    """One line of the table: a router with a cost weight."""

    name: str
    family: str
    """What the rows of one router at several cost weights have in common."""
    cost_weight: float
    spec: RowSpec
    kind: str
    form: Form | None = None
    number: int = 0
    """Which of the forms that are drawn."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its runs depend on, and what they are called does not tell."""
        kept = self.spec.model_dump(mode="json", exclude={"router", "name", "cost_weights"})
        form = {"form": self.form.model_dump(mode="json"), "number": self.number} if self.form else {}
        return {"kind": self.kind, "cost_weight": self.cost_weight, **kept, **form}


def find_benchmark(name: str | Path) -> Path:
    """Return a benchmark's file: `"robustness"` stands for the file of that name in `benchmarks/`, or for our own.

    Raises:
        BenchError: There is none.
    """
    path = Path(name)
    if path.suffix or path.exists():
        return path
    shipped = Path(__file__).parent
    places = [Path("benchmarks"), shipped / "benchmarks", shipped.parent.parent / "benchmarks"]
    for place in places:
        if (file := place / f"{path}.toml").is_file():
            return file
    raise BenchError(f"there is no benchmark {str(name)!r}: give the path of a .toml file")


class Bench:
    """A benchmark, ready to run.

    Example:
        >>> bench = Bench.from_file("benchmarks/nq_recorded.toml", "runs/bench/nq_recorded")  # doctest: +SKIP
        >>> asyncio.run(bench.run())                                                          # doctest: +SKIP
    """

    def __init__(self, spec: BenchSpec, output: str | Path, *, name: str, directory: Path = Path()) -> None:
        """Read what the benchmark needs; nothing is asked yet.

        Args:
            spec: What to run.
            output: The directory of its runs; what is in it already is not run again.
            name: The benchmark's name.
            directory: Where files that it names are looked for.

        Raises:
            BenchError: Something in it can't be had, or `output` holds runs of another benchmark.
        """
        known = (*METRICS, *(["score"] if spec.pool.records else []), *(["judge"] if spec.judge else []))
        if not spec.metrics or not set(spec.metrics) <= set(known):
            raise BenchError(f"metrics are {', '.join(spec.metrics) or 'none'}; here they may be {', '.join(known)}")
        if sum((bool(spec.pool.records), spec.pool.registry is not None, spec.pool.pocket)) != 1:
            raise BenchError("[pool] must have exactly one of 'records', 'registry' and 'pocket'")
        self.spec, self.name, self.output, self._directory = spec, name, Path(output), directory
        self.records = self._records()
        self.tasks = self._tasks()
        self.names = self._pool_registry("http://127.0.0.1/v1").names
        try:
            self.rows = list(self._rows())
            for form, number, _ in self._forms():
                form.of(self._pool_registry("http://127.0.0.1/v1"), number)
        except (RegistryError, UnknownModelError) as error:
            raise BenchError(f"[[forms]]: {error}") from None
        if len({form.name for form in spec.forms}) != len(spec.forms):
            raise BenchError("two forms have the same name")
        if len({row.name for row in self.rows}) != len(self.rows):
            raise BenchError("two rows have the same name: give one of them a 'name' of its own")
        self._check_rows()

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        output: str | Path,
        *,
        registry: Path | None = None,
        tasks: Sequence[str] = (),
        url: str | None = None,
        model: str | None = None,
    ) -> Bench:
        """Read a benchmark file, perhaps for a pool and a router of one's own; see `Bench` and `BenchSpec.from_file`.

        Args:
            path: Of the file.
            output: The directory of its runs.
            registry: A registry file in the place of the benchmark's pool.
            tasks: Task sets, or files of tasks, in the place of the benchmark's.
            url: The vLLM that serves the trained router.
            model: The trained router's name there.

        Raises:
            BenchError: It asks for another pool, and does not say with which tasks.
        """
        path, spec = Path(path), BenchSpec.from_file(path)
        changed: dict[str, Any] = {}
        if registry is not None:
            if not tasks:
                raise BenchError("another pool needs tasks of its own: say with --tasks what to ask it")
            changed["pool"] = PoolSpec(registry=str(registry.resolve()))
        if tasks:
            named = (str(Path(name).resolve()) if name.endswith(".jsonl") else name for name in tasks)
            changed["tasks"] = tuple(named)
        if url is not None or model is not None:
            own = {"url": url, "model": model}
            changed["rows"] = tuple(row.model_copy(update=own) if row.router == "router" else row for row in spec.rows)
        return cls(spec.model_copy(update=changed), output, name=path.stem, directory=path.parent)

    # What it is made of

    def _check_rows(self) -> None:
        """Find out what is wrong with a row before anything is paid for."""
        known = ("models", *_ROUTERS, *get_args(Kind), *self.names)
        for row in self.rows:
            if row.kind not in known:
                raise BenchError(f"a row has router = {row.kind!r}; it may be {', '.join(known)}")
            if row.kind == "prompted" and row.spec.model is None:
                raise BenchError("a row with router = 'prompted' needs a 'model'")
            if row.kind == "prompted" and not _is_local(row) and row.spec.router_price is None:
                raise BenchError(
                    f"row {row.name!r} routes by {row.spec.model!r}: say with 'router_price' what it costs"
                )
            if row.kind in _ROUTERS and "score" in self.spec.metrics:
                raise BenchError(f"row {row.name!r} answers in words of its own, which no record has a 'score' for")
            if row.kind in LEARNING and self.records is None:
                raise BenchError(f"row {row.name!r} learns from what models said before: the pool has no profile")
        names = [row.name for row in self.rows]
        if self.spec.reference is not None and self.spec.reference not in names:
            raise BenchError(f"reference is {self.spec.reference!r}; it must be a row: {', '.join(names)}")

    def _find(self, name: str) -> Path:
        places = [self._directory / name]
        data = data_dir()
        if data is not None:
            places.append(data / name)
        for place in places:
            if place.exists():
                return place
        hint = "" if data else "; is ROUTER_R1_DATA set to the data directory?"
        raise BenchError(f"{self.name} needs {name!r}, which is neither beside the benchmark nor in the data{hint}")

    def _records(self) -> RecordedPool | None:
        """Return what is recorded of the pool's models."""
        pool = self.spec.pool
        if pool.records:
            return RecordedPool.from_file(*map(self._find, pool.records))
        if pool.profile is not None:
            return RecordedPool.from_file(self._find(pool.profile))
        profile = self._pool_registry("http://127.0.0.1/v1").profile
        return None if profile is None else RecordedPool.from_file(profile)

    def _pool_registry(self, base_url: str) -> ModelRegistry:
        from langgraph_router_r1.pocket import pocket_registry

        pool = self.spec.pool
        if pool.registry is not None:
            return ModelRegistry.from_file(self._find(pool.registry))
        if pool.pocket:
            return pocket_registry(base_url)
        assert self.records is not None
        return self.records.registry(prices=pool.prices, descriptions=pool.descriptions)

    def _tasks(self) -> list[Task]:
        split = None if self.spec.split == "all" else self.spec.split
        if self.spec.tasks:
            tasks = [
                task
                for name in self.spec.tasks
                for task in (
                    draw(read_tasks(self._find(name)), split=split)
                    if name.endswith(".jsonl")
                    else load_tasks(name, split=split)
                )
            ]
        elif self.spec.pool.records:
            assert self.records is not None
            # A task that some model was not asked would compare them on different questions.
            tasks = draw(self.records.complete(), split=split)
        else:
            raise BenchError("'tasks' is missing: a benchmark of real models must say what to ask them")
        chosen = draw(distinct(tasks), sample=self.spec.sample, seed=self.spec.seed)
        if not chosen:
            raise BenchError(f"there is no task in the split {self.spec.split!r}")
        if self.spec.pool.records:
            assert self.records is not None
            for task in chosen:
                if task.id not in self.records.tasks:
                    raise BenchError(f"task {task.id!r} is not in {self.records.source}: nobody's answer is recorded")
        if self.spec.metrics != ("score",):
            for task in chosen:
                if not task.golden_answers:
                    raise BenchError(f"task {task.id!r} ({task.question!r}) has no golden answers to be scored by")
        return chosen

    def _rows(self) -> Iterator[Row]:
        for spec in self.spec.rows:
            for kind in self.names if spec.router == "models" else (spec.router,):
                family = spec.name or (kind if spec.router != "prompted" else f"prompted {spec.model}")
                for weight in spec.cost_weights:
                    several = len(spec.cost_weights) > 1
                    name = f"{family} {weight:g}" if several else family
                    if not self.spec.forms:
                        yield Row(name, family, weight, spec, kind)
                    for form, number, label in self._forms():
                        yield Row(f"{name}, {label}", f"{family}, {label}", weight, spec, kind, form, number)

    def _forms(self) -> Iterator[tuple[Form, int, str]]:
        """Yield form, number and label of every form that the pool is told of in."""
        registry = self._pool_registry("http://127.0.0.1/v1")
        for form in self.spec.forms:
            if form.descriptions and not set(form.descriptions) & set(registry.names):
                continue  # other words for models that this pool does not have
            for number in range(form.count(registry)):
                yield form, number, form.label(registry, number)

    # Running it

    def finished(self, *, retry_failed: bool = False) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the runs so far, by row and task id.

        Args:
            retry_failed: Leave out runs in which a model was asked and failed.

        Raises:
            BenchError: The directory holds runs of another benchmark, or of a row that is another one now.
        """
        file = self.output / RUNS_FILE
        # A run that has just started has created the file, and no fingerprint yet.
        has_runs = file.exists() and file.stat().st_size > 0
        if not has_runs and not (self.output / CALLS_FILE).exists():
            return {}
        if (changed := self._changed()) is not None:
            raise BenchError(
                f"{str(self.output)!r} holds runs of another version of {self.name!r} ({changed}): "
                "remove it, or give another --output"
            )
        # Where there are two of a task, the later one is a second try.
        lines = json_lines(file, may_be_cut_off=True) if file.exists() else ()
        try:
            runs = {(run["row"], run["task_id"]): run for _, run in lines}
        except (KeyError, TypeError):
            raise BenchError(f"{str(file)!r} holds something else than runs: give another --output") from None
        rows = {row.name: row.settings for row in self.rows}
        for (name, _), run in runs.items():
            if name in rows and run.get("settings") != rows[name]:
                raise BenchError(
                    f"{str(file)!r} holds runs of another row {name!r} ({run.get('settings')} instead of "
                    f"{rows[name]}): "
                    "give this one a 'name' of its own, or remove the lines of that one"
                )
        if retry_failed:
            runs = {key: run for key, run in runs.items() if all(hop["status"] != "error" for hop in run["hops"])}
        return runs

    def _changed(self) -> str | None:
        """Return what is not as it was when the first run was made, None when all is."""
        file = self.output / SPEC_FILE
        try:
            then, now = json.loads(file.read_text(encoding="utf-8")), self._fingerprint()
        except OSError as error:
            return f"{SPEC_FILE} can't be read: {error.strerror}"
        except (ValueError, RecursionError) as error:
            return f"{SPEC_FILE} can't be read: {error}"
        if not isinstance(then, dict):
            return f"{SPEC_FILE} holds a {type(then).__name__} and must hold an object"
        for part in ("spec", "tasks", "files"):
            if then.get(part) != now[part]:
                return f"its {part} differ"
        # A row that was added may bring an adapter.
        known = then.get("adapters", {})
        newer = [name for name, digest in now["adapters"].items() if known.get(name, digest) != digest]
        return f"the adapter {newer[0]!r} differs" if newer else None

    def _fingerprint(self) -> dict[str, Any]:
        """Return what runs depend on but for the rows: those may be added to."""
        # Where adapters lie does not matter: their digests say what they are.
        shown = {"title", "about", "metrics", "reference"}
        spec = self.spec.model_dump(mode="json", exclude={"rows", "adapters", *shown})
        questions = hashlib.sha256("\n".join(f"{task.id} {task.question}" for task in self.tasks).encode()).hexdigest()
        return {"spec": spec, "tasks": questions, "files": self._files(), "adapters": self._adapters()}

    def _fingerprint_to_keep(self) -> dict[str, Any]:
        """Return it with the adapters of rows that are gone: their runs stay, and the rows may come back."""
        now, kept = self._fingerprint(), self.output / SPEC_FILE
        known = json.loads(kept.read_text(encoding="utf-8")).get("adapters", {}) if kept.exists() else {}
        return {**now, "adapters": {**known, **now["adapters"]}}

    def _files(self) -> dict[str, str]:
        """Return digests of the files that say who may be asked, and what they said."""
        from langgraph_router_r1.pocket import POOL_FILE

        pool = self.spec.pool
        found = [self._find(name) for name in (*pool.records, pool.registry, pool.profile) if name is not None]
        if pool.pocket:
            found.append(POOL_FILE)
        if not pool.records and pool.profile is None:
            profile = self._pool_registry("http://127.0.0.1/v1").profile
            found += [Path(profile)] if profile is not None else []
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    def _adapters(self) -> dict[str, str]:
        """Return the digests of the adapters that runs depend on: extractor, judge, the pool's and the routers'."""
        from langgraph_router_r1 import pocket

        used = {row.spec.model or pocket.ROUTER_NAME for row in self.rows if _is_local(row)}
        used |= {EXTRACTOR_NAME} if any(map(self._extracts, self.rows)) else set()
        used |= set(self.names) if self.spec.pool.pocket else set()
        used |= {self.spec.judge.model} if self.spec.judge and self.spec.judge.registry is None else set()
        directories = [ADAPTERS, pocket.ADAPTERS, *map(self._find, self.spec.adapters)]
        found = (path.parent for place in directories for path in sorted(place.glob("*/adapter_model.safetensors")))
        return {path.name: adapter_version(path) for path in found if path.name in used}

    async def run(
        self, progress: Callable[[dict[str, Any]], object] = lambda _: None, *, retry_failed: bool = False
    ) -> list[dict[str, Any]]:
        """Make every run that is missing; return all of them, by row and task in the benchmark's order.

        Args:
            progress: Told of each run as it ends.
            retry_failed: Make runs again in which a model was asked and failed. Replies of routed models are kept; a
                router LLM behind an API is asked anew.

        Raises:
            EngineError: A router LLM can't be reached. What was run stays.
            BenchError: The cache of replies can't be used.
            TaskError: The file of runs can't be written, or another process writes it. What was run stays.
        """
        done = self.finished(retry_failed=retry_failed)
        if self._missing(done):
            # Not synced: a run that a power failure took is made again, with the replies in the cache.
            with JsonLinesWriter(self.output / RUNS_FILE, sync=False) as file:
                # Again, now that no other process can add to the file.
                done = self.finished(retry_failed=retry_failed)

                def keep(run: dict[str, Any]) -> None:
                    done[run["row"], run["task_id"]] = run
                    file.append(run)
                    progress(run)

                fingerprint = json.dumps(self._fingerprint_to_keep(), indent=2)
                replace_file(self.output / SPEC_FILE, fingerprint)
                await self._run(self._missing(done), keep)
        return [done[row.name, task.id] for row in self.rows for task in self.tasks]

    def _missing(self, done: Container[tuple[str, str]]) -> list[tuple[Row, Task]]:
        return [(row, task) for row in self.rows for task in self.tasks if (row.name, task.id) not in done]

    def results(self, runs: Sequence[dict[str, Any]]) -> Results:
        """Return what the runs say, with what it takes to make them again."""
        latest = max((run["date"] for run in runs), default="")
        return score_runs(
            runs,
            [(row.name, row.family, row.cost_weight) for row in self.rows],
            forms={row.name: row.form.name for row in self.rows if row.form},
            metrics=self.spec.metrics,
            name=self.name,
            title=self.spec.title,
            reference=self.spec.reference,
            live=not self.spec.pool.records,
            facts={
                "split": self.spec.split,
                "date": latest,
                "seed": str(self.spec.seed),
                "machine": machine(),
                **self._judged(runs),
            },
        )

    def _judged(self, runs: Sequence[dict[str, Any]]) -> dict[str, str]:
        if self.spec.judge is None:
            return {}
        spent = sum(run["judge_cost_usd"] for run in runs)
        silent = sum(run["judge"] is None for run in runs)
        return {"judge": f"{self.spec.judge.model} (${spent:.2g}; no verdict on {silent} of {len(runs)} replies)"}

    async def _run(self, missing: Sequence[tuple[Row, Task]], keep: Callable[[dict[str, Any]], None]) -> None:
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def one(row: Row, task: Task) -> None:
            async with gate:
                run = await self._one(row, task, await routers.of(row), routers.registry_of(row))
                if routers.judge is not None:
                    verdict = await routers.judge.ajudge(task, run["reply"])
                    run |= {"judge": verdict.score, "judge_cost_usd": verdict.cost_usd}
                keep(run)

        async with self._routers([row for row, _ in missing]) as routers:
            try:
                async with asyncio.TaskGroup() as group:
                    for row, task in missing:
                        group.create_task(one(row, task))
            except BaseExceptionGroup as errors:
                # The first one is what went wrong; it ended the others.
                raise errors.exceptions[0] from None

    @contextlib.asynccontextmanager
    async def _routers(self, rows: Sequence[Row]) -> AsyncIterator[_Routers]:
        """Give the routers of these rows; the server that they need is up for the length of the block."""
        from langgraph.cache.sqlite import SqliteCache

        try:
            cache: BaseCache[Any] = SqliteCache(path=str(self.output / CALLS_FILE))
        except sqlite3.Error as error:
            raise BenchError(f"{str(self.output / CALLS_FILE)!r} can't be used: {error}") from None
        judge = self.spec.judge
        local = (
            self.spec.pool.pocket
            or (judge is not None and judge.registry is None)
            or any(self._extracts(row) or _is_local(row) for row in rows)
        )
        async with contextlib.AsyncExitStack() as stack:
            server = await _started_server(stack, map(self._find, self.spec.adapters)) if local else None
            routers = _Routers(self, cache, server, stack)
            if judge is not None:
                judges = self._judges(judge, server)
                routers.judge = Judge(Candidates(remember(judges, cache), estimate_tokens), judge.model)
            yield routers

    def _judges(self, judge: JudgeSpec, server: VLLMServer | None) -> ModelRegistry:
        from langgraph_router_r1.pocket import pocket_registry

        if judge.registry is not None:
            return ModelRegistry.from_file(self._find(judge.registry))
        assert server is not None
        return pocket_registry(server.base_url)

    def _extracts(self, row: Row) -> bool:
        answers_itself = row.kind in {"router", "prompted"}
        return row.spec.extract if row.spec.extract is not None else self.spec.extract and not answers_itself

    async def _one(self, row: Row, task: Task, router: Runnable[Any, Any], registry: ModelRegistry) -> dict[str, Any]:
        started = time.perf_counter()
        result = await router.ainvoke(
            {"messages": [("user", task.question)]},
            {"metadata": {TASK_ID: task.id}},
            context=RouterContext(cost_weight=row.cost_weight),
            **({"output_keys": ["messages", "answer", "routing", "transcript"]} if row.kind in _ROUTERS else {}),
        )
        latency_s = time.perf_counter() - started
        routing = result["routing"]
        reply = result["messages"][-1].response_metadata.get("reply", result["answer"])
        run: dict[str, Any] = {
            "row": row.name,
            "settings": row.settings,
            "task_id": task.id,
            "dataset": task.dataset,
            "kind": task.kind,
            "question": task.question,
            "golden_answers": list(task.golden_answers),
            "answer": result["answer"],
            "reply": reply,
            "stop_reason": routing["stop_reason"],
            "turns": routing["turns"],
            "hops": routing["hops"],
            "router_tokens": routing["router_tokens"],
            "cost_usd": {**_cost_parts(routing["hops"], registry), "router": routing["router_cost_usd"]},
            "latency_s": round(latency_s, 4),
            "date": datetime.now(UTC).date().isoformat(),
        }
        if self.spec.pool.records:
            run["score"] = self._recorded_score(task, routing["hops"], reply)
        if "transcript" in result:
            segments = [(segment["kind"], segment["text"]) for segment in result["transcript"]]
            run["format_problem"] = protocol.check_format(segments, registry.aliases)
        return run

    def _recorded_score(self, task: Task, hops: Sequence[Any], reply: str) -> float | None:
        """Return how the record judges the reply that was passed on; None where it can't tell."""
        assert self.records is not None
        # The last one that said so: who escalates passes on where it ends.
        for hop in reversed(hops):
            if hop["status"] == "ok" and hop["response"] == reply:
                return quality(task, self.records.outcome(task.id, hop["model"]))
        return None


_ROUTERS = ("router", "prompted")
"""What writes turns of its own."""


def _is_local(row: Row) -> bool:
    """Return whether a row's router LLM is on the pocket server."""
    if row.kind == "prompted":
        return ":" not in (row.spec.model or "")
    return row.kind == "router" and row.spec.url is None


class _Routers:
    """The routers of a benchmark's rows, each made when its first run comes; rows of one family share theirs."""

    def __init__(
        self, bench: Bench, cache: BaseCache[Any], server: VLLMServer | None, stack: contextlib.AsyncExitStack
    ) -> None:
        self._bench, self._cache, self._server, self._stack = bench, cache, server, stack
        self._registries: dict[tuple[str, int], ModelRegistry] = {}
        self._made: dict[tuple[Any, ...], asyncio.Task[Runnable[Any, Any]]] = {}
        self._embeddings = MiniLM()
        self._extractor: Extractor | None = None
        self.judge: Judge | None = None

    def registry_of(self, row: Row) -> ModelRegistry:
        """Return the pool as the row's router is told of it; all forms of a model share its replies."""
        key = (row.form.name if row.form else "", row.number)
        if key not in self._registries:
            registry = self._bench._pool_registry(self._server.base_url if self._server else "http://127.0.0.1/v1")
            if row.form:
                registry = row.form.of(registry, row.number)
            self._registries[key] = registry if self._bench.spec.pool.records else remember(registry, self._cache)
        return self._registries[key]

    async def of(self, row: Row) -> Runnable[Any, Any]:
        same = row.spec
        own = (same.model, same.url, same.max_turns, same.router_price, same.weights)
        key = (row.kind, *own, self._bench._extracts(row), row.form.name if row.form else "", row.number)
        if key not in self._made:
            self._made[key] = asyncio.create_task(self._make(row))
        return await self._made[key]

    async def _make(self, row: Row) -> Runnable[Any, Any]:
        spec = self._bench.spec
        own = spec.router_price if row.spec.router_price is None else row.spec.router_price
        price = Price.parse(own or "free")
        if row.kind in _ROUTERS:
            engine = await self._engine(row)
            return create_router(
                engine,
                self.registry_of(row),
                prompt=RouterPrompt(weights=row.spec.weights),
                max_turns=row.spec.max_turns,
                max_tokens=MAX_TURN_TOKENS,
                router_price=price,
            )
        extractor = await self._shared_extractor() if self._bench._extracts(row) else None
        return await asyncio.to_thread(
            create_baseline,
            row.kind,
            self.registry_of(row),
            records=self._bench.records,
            extractor=extractor,
            extractor_price=price,
            embeddings=self._embeddings,
            seed=spec.seed,
        )

    async def _shared_extractor(self) -> Extractor:
        if self._extractor is None:
            self._extractor = Extractor(
                await self._vllm(EXTRACTOR_NAME),
                cache=self._cache,
                version=adapter_version(ADAPTERS / EXTRACTOR_NAME),
            )
        return self._extractor

    async def _engine(self, row: Row) -> Any:
        from langgraph_router_r1.engines import ChatModelEngine
        from langgraph_router_r1.pocket import ROUTER_NAME

        if row.kind == "router":
            return await self._vllm(row.spec.model or ROUTER_NAME, row.spec.url)
        from langchain.chat_models import init_chat_model

        assert row.spec.model is not None
        if not _is_local(row):
            return ChatModelEngine(init_chat_model(row.spec.model, temperature=0))
        assert self._server is not None
        return ChatModelEngine(
            init_chat_model(
                f"openai:{row.spec.model}",
                base_url=self._server.base_url,
                api_key=self._server.api_key,
                temperature=0,
            )
        )

    async def _vllm(self, model: str, url: str | None = None) -> Any:
        from langgraph_router_r1.engines import VLLMEngine

        if url is None:
            assert self._server is not None
            engine = VLLMEngine(self._server.base_url, model=model, tokenizer=self._server.model)
        else:
            engine = VLLMEngine(url, model=model)
        self._stack.push_async_callback(engine.aclose)
        return engine


def _cost_parts(hops: Sequence[Hop], registry: ModelRegistry) -> dict[str, float]:
    """Return what the calls of a run cost at list price, in dollars, by what was paid for."""
    parts = {"prompt": 0.0, "cached": 0.0, "completion": 0.0}
    for hop in hops:
        if hop["answered_by"] is None:
            continue
        usage, price = hop["usage"], registry[hop["answered_by"]].price
        parts["prompt"] += PER_MILLION * price.prompt * (usage["prompt_tokens"] - usage["cached_tokens"])
        parts["cached"] += PER_MILLION * price.cached * usage["cached_tokens"]
        parts["completion"] += PER_MILLION * price.completion * usage["completion_tokens"]
    return parts


def machine() -> str:
    """Return what the runs were made on, in a few words."""
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB, Python {platform.python_version()}"


async def _started_server(stack: contextlib.AsyncExitStack, more: Iterable[Path]) -> VLLMServer:
    from langgraph_router_r1 import pocket

    server = pocket.pocket_server(adapters=(pocket.ADAPTERS, ADAPTERS, *more))
    await asyncio.to_thread(server.start)
    stack.push_async_callback(asyncio.to_thread, server.stop)
    return server
