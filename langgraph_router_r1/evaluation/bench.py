"""Any routers on any tasks: a benchmark file in, a file of runs out.

    benchmarks/nq_recorded.toml  ->  runs/bench/nq_recorded/runs.jsonl.zst

Every run is written as it ends, with its whole record, so a benchmark that was stopped or killed continues where it
stopped, and scores can be recomputed from the file. Live and recorded pools differ in `[pool]` only.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from langgraph.graph.state import CompiledStateGraph

from langgraph_router_r1 import protocol
from langgraph_router_r1.evaluation.baselines import BY_QUESTION, LEARNING, Kind, cascade_chain, evidence
from langgraph_router_r1.evaluation.bench_file import ROUTERS, BenchError, BenchSpec, PoolSpec, Row
from langgraph_router_r1.evaluation.bench_routers import open_routers
from langgraph_router_r1.evaluation.bench_store import RunStore
from langgraph_router_r1.evaluation.budgets import RunBudget
from langgraph_router_r1.evaluation.extractor import ADAPTERS, EXTRACTOR_NAME, adapter_version
from langgraph_router_r1.evaluation.forms import Form
from langgraph_router_r1.evaluation.metrics import METRICS
from langgraph_router_r1.evaluation.plain_run import PlainRouter
from langgraph_router_r1.evaluation.recorded import TASK_ID, RecordedPool, quality
from langgraph_router_r1.evaluation.report import Results, score_runs
from langgraph_router_r1.evaluation.tasks import Task, data_dir, distinct, draw, load_tasks, read_tasks
from langgraph_router_r1.record import RECORD_KEYS, RunRecord
from langgraph_router_r1.registry import ModelRegistry, RegistryError, UnknownModelError
from langgraph_router_r1.state import RouterContext

IN_FLIGHT = 32

EMBEDDED_AT_ONCE = 256
"""How many texts are embedded before the next line of progress."""


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
        pool = spec.pool
        if sum((bool(pool.records), pool.registry is not None, pool.pocket, pool.wiki is not None)) != 1:
            raise BenchError("[pool] must have exactly one of 'records', 'registry', 'pocket' and 'wiki'")
        if pool.lengths and not pool.records:
            raise BenchError("[pool] has 'lengths', which are for 'records' only: give other models max_tokens instead")
        known = (*METRICS, *(["score"] if pool.records else []), *(["judge"] if spec.judge else []))
        if not spec.metrics or not set(spec.metrics) <= set(known):
            raise BenchError(f"metrics are {', '.join(spec.metrics) or 'none'}; here they may be {', '.join(known)}")
        self.spec, self.name, self._directory = spec, name, directory
        self._store = RunStore(Path(output), name, self._fingerprint)
        self.records = self._records()
        self.tasks = self._tasks()
        self.names = self.pool_registry().names
        try:
            self.rows = list(self._rows())
            for form, number, _ in self._forms():
                form.of(self.pool_registry(), number)
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

    @property
    def output(self) -> Path:
        """The directory of its runs."""
        return self._store.output

    # What it is made of

    def _check_rows(self) -> None:
        """Find out what is wrong with a row before anything is paid for."""
        known = ("models", *ROUTERS, *get_args(Kind), *self.names)
        for row in self.rows:
            if row.kind not in known:
                raise BenchError(f"a row has router = {row.kind!r}; it may be {', '.join(known)}")
            if row.kind == "prompted" and row.spec.model is None:
                raise BenchError("a row with router = 'prompted' needs a 'model'")
            if row.kind == "prompted" and not row.is_local and row.spec.router_price is None:
                raise BenchError(
                    f"row {row.name!r} routes by {row.spec.model!r}: say with 'router_price' what it costs"
                )
            if row.routes and "score" in self.spec.metrics:
                raise BenchError(f"row {row.name!r} answers in words of its own, which no record has a 'score' for")
            if row.kind in LEARNING and self.records is None:
                raise BenchError(f"row {row.name!r} learns from what models said before: the pool has no profile")
        names = [row.name for row in self.rows]
        if self.spec.reference is not None and self.spec.reference not in names:
            raise BenchError(f"reference is {self.spec.reference!r}; it must be a row: {', '.join(names)}")

    def find(self, name: str) -> Path:
        """Return a file or directory that the benchmark names: beside it, or in the data directory."""
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
            return RecordedPool.from_file(*map(self.find, pool.records)).with_lengths(pool.lengths)
        if pool.profile is not None:
            return RecordedPool.from_file(self.find(pool.profile))
        profile = self.pool_registry().profile
        return None if profile is None else RecordedPool.from_file(profile)

    def pool_registry(self, base_url: str | None = None) -> ModelRegistry:
        """Return the pool as it is; `base_url` is the address of the pocket server, once there is one."""
        from langgraph_router_r1.pocket import NOT_SERVED, pocket_registry

        pool = self.spec.pool
        if pool.registry is not None:
            return ModelRegistry.from_file(self.find(pool.registry))
        if pool.pocket:
            return pocket_registry(base_url or NOT_SERVED, planning=pool.planning)
        if pool.wiki is not None:
            from langgraph_router_r1.wiki import wiki_registry

            return wiki_registry(self.find(pool.wiki), base_url or NOT_SERVED)
        assert self.records is not None
        return self.records.registry(prices=pool.prices, descriptions=pool.descriptions)

    def _tasks(self) -> list[Task]:
        split = None if self.spec.split == "all" else self.spec.split
        if self.spec.tasks:
            tasks = [
                task
                for name in self.spec.tasks
                for task in (
                    draw(read_tasks(self.find(name)), split=split)
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
        tasks = distinct(tasks)
        if self.spec.seen is not None:
            seen = {task.id for task in draw(tasks, sample=self.spec.seen, seed=self.spec.seed)}
            tasks = [task for task in tasks if task.id not in seen]
        chosen = draw(tasks, sample=self.spec.sample, seed=self.spec.seed)
        if not chosen:
            left = "" if self.spec.seen is None else f" beyond the {self.spec.seen} that were seen"
            raise BenchError(f"there is no task in the split {self.spec.split!r}{left}")
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
        forms = list(self._forms()) if self.spec.forms else []
        for spec in self.spec.rows:
            for kind in self.names if spec.router == "models" else (spec.router,):
                family = spec.name or (kind if spec.router != "prompted" else f"prompted {spec.model}")
                for weight in spec.cost_weights:
                    several = len(spec.cost_weights) > 1
                    name = f"{family} {weight:g}" if several else family
                    if not forms:
                        yield Row(name, family, weight, spec, kind)
                    for form, number, label in forms:
                        yield Row(f"{name}, {label}", f"{family}, {label}", weight, spec, kind, form, number)

    def _forms(self) -> Iterator[tuple[Form, int, str]]:
        """Yield form, number and label of every form that the pool is told of in."""
        registry = self.pool_registry()
        for form in self.spec.forms:
            if form.descriptions and not set(form.descriptions) & set(registry.names):
                continue  # other words for models that this pool does not have
            for number in range(form.count(registry)):
                yield form, number, form.label(registry, number)

    # Running it

    def finished(self, *, retry_failed: bool = False) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the runs so far of the benchmark's rows, by row and task id; see `RunStore.finished`."""
        rows = {row.name: row.settings for row in self.rows}
        found = self._store.finished(rows, retry_failed=retry_failed)
        # A row that the file had before may have been taken out of it since.
        return {key: run for key, run in found.items() if key[0] in rows}

    def _fingerprint(self) -> dict[str, Any]:
        """Return what runs depend on but for the rows: those may be added to."""
        # Where adapters lie does not matter: their digests say what they are.
        shown = {"title", "about", "metrics", "reference"}
        spec = self.spec.model_dump(mode="json", exclude={"rows", "adapters", *shown})
        questions = hashlib.sha256("\n".join(f"{task.id} {task.question}" for task in self.tasks).encode()).hexdigest()
        return {"spec": spec, "tasks": questions, "files": self._files(), "adapters": self._adapters()}

    def _files(self) -> dict[str, str]:
        """Return digests of the files that say who may be asked, and what they said."""
        from langgraph_router_r1.pocket import POOL_FILE

        pool, how = self.spec.pool, dict[str, str]()
        found = [self.find(name) for name in (*pool.records, pool.registry, pool.profile) if name is not None]
        if pool.pocket:
            found.append(POOL_FILE)
        if pool.wiki is not None:
            from langgraph_router_r1.wiki import OVERVIEWED, PASSAGES_FILE, SEARCHED, TITLE_WEIGHT

            how = {"search": f"{SEARCHED} and {OVERVIEWED} passages, titles {TITLE_WEIGHT:g} times"}
            found += [self.find(PASSAGES_FILE), self.find(pool.wiki) / "adapter_model.safetensors"]
        if not pool.records and pool.profile is None:
            profile = self.pool_registry().profile
            found += [Path(profile)] if profile is not None else []
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found} | how

    def _adapters(self) -> dict[str, str]:
        """Return the digests of the adapters that runs depend on: extractor, judge, the pool's and the routers'."""
        from langgraph_router_r1 import pocket

        by_default = {"planner": pocket.DECOMPOSER_NAME}
        local = [row for row in self.rows if row.is_local]
        used = {row.spec.model or by_default.get(row.kind, pocket.ROUTER_NAME) for row in local}
        used |= {row.spec.allocator for row in local if row.kind == "planner"}
        used |= {EXTRACTOR_NAME} if any(map(self.spec.extracts, self.rows)) else set()
        used |= set(self.names) if self.spec.pool.pocket else set()
        used |= {self.spec.judge.model} if self.spec.judge and self.spec.judge.registry is None else set()
        directories = [ADAPTERS, pocket.ADAPTERS, pocket.PLANNER_ADAPTERS, *map(self.find, self.spec.adapters)]
        found = (path.parent for place in directories for path in sorted(place.glob("*/adapter_model.safetensors")))
        return {path.name: adapter_version(path) for path in found if path.name in used}

    async def run(
        self,
        progress: Callable[[dict[str, Any]], object] = lambda _: None,
        doing: Callable[[str], object] = lambda _: None,
        *,
        retry_failed: bool = False,
        budget_usd: float | None = None,
    ) -> list[dict[str, Any]]:
        """Make every run that is missing; return all of them, by row and task in the benchmark's order.

        Args:
            progress: Told of each run as it ends.
            doing: Told what takes time before runs end, such as "starting vLLM".
            retry_failed: Make runs again in which a model was asked and failed. Replies of routed models are kept; a
                router LLM behind an API is called again.
            budget_usd: What all of this may cost, in dollars; see `RunBudget`.

        Raises:
            EngineError: A router LLM can't be reached. What was run stays.
            BenchError: The cache of replies can't be used, or the budget ended before the last run. What was run stays.
            TaskError: The file of runs can't be written, or another process writes it. What was run stays.
        """
        done, budget = self.finished(retry_failed=retry_failed), RunBudget(budget_usd)
        if self._missing(done) or not self._store.is_packed:
            with self._store.writer() as file:
                # Again, now that no other process can add to the file.
                done = self.finished(retry_failed=retry_failed)

                def keep(run: dict[str, Any]) -> None:
                    done[run["row"], run["task_id"]] = run
                    file.append(run)
                    progress(run)

                self._store.write_fingerprint()
                if missing := self._missing(done):
                    if retry_failed:
                        # What was never run comes first: else failures that repeat could use a budget up each time.
                        known = self.finished()
                        missing.sort(key=lambda run: (run[0].name, run[1].id) in known)
                    await self._run(missing, keep, doing, budget)
                await asyncio.to_thread(self._store.pack, file)
        if left := self._missing(done):
            raise BenchError(
                f"the budget ends here: up to ${budget.spent_usd:.6f} were spent, and {len(left)} of "
                f"{len(self.rows) * len(self.tasks)} runs are not made; the same command goes on with them"
            )
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

    async def _run(
        self,
        missing: Sequence[tuple[Row, Task]],
        keep: Callable[[dict[str, Any]], None],
        doing: Callable[[str], object],
        budget: RunBudget,
    ) -> None:
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def one(row: Row, task: Task) -> None:
            async with gate:
                if not await budget.begin(row.name):
                    return
                run = await self._one(row, task, await routers.of(row), routers.registry_of(row))
                if routers.judge is not None:
                    verdict = await routers.judge.ajudge(task, run["reply"])
                    run |= {"judge": verdict.score, "judge_cost_usd": verdict.cost_usd}
                    run |= {"judge_failed": True} if verdict.failed else {}
                keep(run)
                await budget.end(row.name, self._most_spent(run), _list_cost(run))

        async with open_routers(self, [row for row, _ in missing], self._store.calls_file, doing) as routers:
            # Together, because one by one they take most of the time of a run over recorded replies.
            texts = self._texts_to_embed(missing)
            for start in range(0, len(texts), EMBEDDED_AT_ONCE):
                doing(f"embedding texts: {start:,} of {len(texts):,}")
                await asyncio.to_thread(routers.embeddings.embed_documents, texts[start : start + EMBEDDED_AT_ONCE])
            if not self.spec.pool.records:
                await routers.build_clients({row.name: row for row, _ in missing}.values())
            try:
                async with asyncio.TaskGroup() as group:
                    for row, task in missing:
                        group.create_task(one(row, task))
            except BaseExceptionGroup as errors:
                # The first one is what went wrong; it ended the others.
                raise errors.exceptions[0] from None

    def _most_spent(self, run: Mapping[str, Any]) -> float:
        """Return what a run cost in dollars, with what may have been billed besides; recorded replies cost nothing."""
        report, judged = run["record"]["report"], run.get("judge_cost_usd", 0.0)
        if self.spec.pool.records:
            return float(report["list_cost_parts"]["router"] + judged)
        maybe = report["maybe_cost_usd"]
        return float(report["cost_usd"] + (math.inf if maybe is None else maybe) + judged)

    def _texts_to_embed(self, missing: Sequence[tuple[Row, Task]]) -> list[str]:
        """Return what baselines that learn will embed: questions, and for a cascade the replies that are recorded."""
        texts = [task.question for row, task in missing if row.kind in BY_QUESTION]
        cascaded = {task.id: task for row, task in missing if row.kind == "cascade"}
        if cascaded and self.spec.pool.records and self.records is not None:
            chain = cascade_chain(self.records.of_split("train"), self.pool_registry())
            for task in cascaded.values():
                outcomes = self.records.outcomes[task.id]
                texts += [
                    evidence(task.question, outcomes[model].response or "") for model in chain if model in outcomes
                ]
        return list(dict.fromkeys(texts))

    async def _one(
        self, row: Row, task: Task, router: CompiledStateGraph[Any, Any, Any, Any], registry: ModelRegistry
    ) -> dict[str, Any]:
        started = time.perf_counter()
        context, metadata = RouterContext(cost_weight=row.cost_weight), {TASK_ID: task.id}
        if self.spec.pool.records:
            result = await PlainRouter(router.builder).arun(task.question, context=context, metadata=metadata)
        else:
            asked = {"messages": [("user", task.question)]}
            result = await router.ainvoke(asked, {"metadata": metadata}, context=context, output_keys=RECORD_KEYS)
        latency_s = time.perf_counter() - started
        record = RunRecord.of(result)
        reply = result["messages"][-1].response_metadata.get("reply", record.answer)
        run: dict[str, Any] = {
            "row": row.name,
            "settings": row.settings,
            "task_id": task.id,
            "dataset": task.dataset,
            "kind": task.kind,
            "golden_answers": list(task.golden_answers),
            "reply": reply,
            "latency_s": round(latency_s, 4),
            "date": datetime.now(UTC).date().isoformat(),
            "record": record.model_dump(mode="json"),
        }
        if self.spec.pool.records:
            run["score"] = self._recorded_score(task, record.calls, reply)
        if row.kind == "planner":
            run["format_problem"] = next(
                (note["plan"]["reason"] for note in record.decisions if note["plan"]), "there is no plan"
            )
        elif row.routes:
            segments = [(segment["kind"], segment["text"]) for segment in record.segments]
            run["format_problem"] = protocol.check_format(segments, registry.aliases)
        return run

    def _recorded_score(self, task: Task, calls: Sequence[Any], reply: str) -> float | None:
        """Return how the record judges the reply that was passed on; None where it can't tell."""
        assert self.records is not None
        # The last one that said so: who escalates passes on where it ends.
        for call in reversed(calls):
            if call["status"] == "ok" and call["response"] == reply:
                return quality(task, self.records.outcome(task.id, call["model"]))
        return None


def _list_cost(run: Mapping[str, Any]) -> float:
    """Return what a run would cost without any reply that was known before, in dollars."""
    return math.fsum(run["record"]["report"]["list_cost_parts"].values()) + float(run.get("judge_cost_usd", 0.0))


def machine() -> str:
    """Return what the runs were made on, in a few words."""
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB, Python {platform.python_version()}"
