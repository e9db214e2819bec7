"""The routers of a benchmark's rows, each made when its first run comes, and the server and cache that they share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from langgraph_router_r1.calls import CallCache, Candidates
from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.evaluation.baselines import create_baseline
from langgraph_router_r1.evaluation.bench_file import TRUE_STEPS, BenchError, JudgeSpec, Row
from langgraph_router_r1.evaluation.extractor import ADAPTERS, EXTRACTOR_NAME, Extractor, adapter_version
from langgraph_router_r1.evaluation.judge import Judge
from langgraph_router_r1.evaluation.tasks import Split
from langgraph_router_r1.graph import create_planner, create_router
from langgraph_router_r1.ledger import Price, estimate_tokens
from langgraph_router_r1.prompts import RouterPrompt
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.strategies.allocators import Allocator, ProfileAllocator
from langgraph_router_r1.strategies.knn import EmbedOnce, KNNStrategy, MiniLM, observations
from langgraph_router_r1.strategies.plans import Step, plan_text

if TYPE_CHECKING:
    from langgraph.cache.base import BaseCache
    from langgraph.graph.state import CompiledStateGraph

    from langgraph_router_r1.evaluation.bench import Bench
    from langgraph_router_r1.serving.vllm import VLLMServer

    Router = CompiledStateGraph[Any, Any, Any, Any]

MAX_TURN_TOKENS = 256
"""Most tokens of a router's turn: a trained one needs fifty, and a prompted one that rambles gets no further."""

LOCAL_TIMEOUT_S = 600.0
"""Most seconds of a router's turn on the server that a benchmark starts: on two cores, 32 turns at once take minutes,
and one that is not waited for ends the benchmark."""


@contextlib.asynccontextmanager
async def open_routers(
    bench: Bench, rows: Sequence[Row], calls_file: Path, doing: Callable[[str], object] = lambda _: None
) -> AsyncIterator[Routers]:
    """Give the routers of these rows; the server that they need runs until the block ends.

    Args:
        bench: The benchmark.
        rows: The rows that are run.
        calls_file: The cache of routed calls.
        doing: Told what takes time before runs end, such as "starting vLLM".

    Raises:
        BenchError: The cache can't be used.
    """
    from langgraph.cache.sqlite import SqliteCache

    try:
        cache: BaseCache[Any] = SqliteCache(path=str(calls_file))
    except sqlite3.Error as error:
        raise BenchError(f"{str(calls_file)!r} can't be used: {error}") from None
    spec = bench.spec
    local = (
        spec.pool.pocket
        or spec.pool.wiki is not None
        or (spec.judge is not None and spec.judge.registry is None)
        or any(spec.extracts(row) or row.is_local for row in rows)
    )
    async with contextlib.AsyncExitStack() as stack:
        if local:
            doing("starting vLLM")
        server = await _started_server(stack, map(bench.find, spec.adapters)) if local else None
        routers = Routers(bench, cache, server, stack, doing)
        if spec.judge is not None:
            judges = _judges(bench, spec.judge, server)
            clients = Clients(rests=False)  # a judge that rests would leave runs without a verdict
            routers.judge = Judge(Candidates(judges, estimate_tokens, [CallCache(cache)], clients), spec.judge.model)
        yield routers


def _judges(bench: Bench, judge: JudgeSpec, server: VLLMServer | None) -> ModelRegistry:
    from langgraph_router_r1.pocket import pocket_registry

    if judge.registry is not None:
        return ModelRegistry.from_file(bench.find(judge.registry))
    assert server is not None
    return pocket_registry(server.base_url)


async def _started_server(stack: contextlib.AsyncExitStack, more: Iterable[Path]) -> VLLMServer:
    from langgraph_router_r1 import pocket

    of_planner = (pocket.PLANNER_ADAPTERS,) if pocket.PLANNER_ADAPTERS.is_dir() else ()
    server = pocket.pocket_server(adapters=(pocket.ADAPTERS, ADAPTERS, *of_planner, *more))
    await asyncio.to_thread(server.start)
    stack.push_async_callback(asyncio.to_thread, server.stop)
    return server


class Routers:
    """The routers of a benchmark's rows, each made when its first run comes; rows of one family share theirs."""

    def __init__(
        self,
        bench: Bench,
        cache: BaseCache[Any],
        server: VLLMServer | None,
        stack: contextlib.AsyncExitStack,
        doing: Callable[[str], object],
    ) -> None:
        """Make nothing yet; `open_routers` is the way to get one."""
        self._bench, self._cache, self._server, self._stack, self._doing = bench, cache, server, stack, doing
        # What is recorded need not be kept again.
        self._middleware = () if bench.spec.pool.records else (CallCache(cache),)
        self._clients = Clients(rests=False)
        """Shared by all rows, with their connections."""
        self._registries: dict[tuple[str, int], ModelRegistry] = {}
        self._made: dict[tuple[Any, ...], asyncio.Task[Router]] = {}
        self.embeddings = EmbedOnce(MiniLM())
        """Of questions and replies, shared by all rows."""
        self._extractor: Extractor | None = None
        self.judge: Judge | None = None

    def registry_of(self, row: Row) -> ModelRegistry:
        """Return the pool as the row's router is told of it; all forms of a model share its replies."""
        key = (row.form.name if row.form else "", row.number)
        if key not in self._registries:
            bench = self._bench
            registry = bench.pool_registry(self._server.base_url if self._server else None)
            if row.form:
                registry = row.form.of(registry, row.number)
            self._registries[key] = registry
        return self._registries[key]

    async def build_clients(self, rows: Iterable[Row]) -> None:
        """Build the clients of all models: this takes seconds, which else were those of the first runs."""
        for model in itertools.chain.from_iterable(map(self.registry_of, rows)):
            with contextlib.suppress(Exception):  # what is wrong with a model is said when it is asked
                await self._clients.aget(model)

    async def of(self, row: Row) -> Router:
        """Return the row's router."""
        same = row.spec
        own = (same.model, same.url, same.max_turns, same.router_price, same.weights, same.allocator, same.review)
        key = (row.kind, *own, self._bench.spec.extracts(row), row.form.name if row.form else "", row.number)
        if key not in self._made:
            self._made[key] = asyncio.create_task(self._make(row))
        return await self._made[key]

    async def _make(self, row: Row) -> Router:
        spec = self._bench.spec
        own = spec.router_price if row.spec.router_price is None else row.spec.router_price
        price = Price.parse(own or "free")
        if row.kind == "planner":
            return await self._planner(row, price)
        if row.routes:
            engine = await self._engine(row)
            return create_router(
                engine,
                self.registry_of(row),
                prompt=RouterPrompt(weights=row.spec.weights),
                max_turns=row.spec.max_turns,
                max_tokens=MAX_TURN_TOKENS,
                router_price=price,
                middleware=self._middleware,
                clients=self._clients,
            )
        extractor = await self._shared_extractor() if self._bench.spec.extracts(row) else None
        self._doing(f"preparing {row.name}")
        return await asyncio.to_thread(
            create_baseline,
            row.kind,
            self.registry_of(row),
            records=self._bench.records,
            extractor=extractor,
            extractor_price=price,
            embeddings=self.embeddings,
            seed=spec.seed,
            middleware=self._middleware,
            clients=self._clients,
        )

    async def _planner(self, row: Row, price: Price) -> Router:
        from langgraph_router_r1.pocket import DECOMPOSER_NAME, MAX_PLAN_TOKENS

        model, allocator = row.spec.model or DECOMPOSER_NAME, row.spec.allocator
        true_plan, true_model = (
            (_true_wiki_plan, _true_wiki_model)
            if self._bench.spec.pool.wiki is not None
            else (_true_plan, _true_models)
        )
        return create_planner(
            true_plan if model == TRUE_STEPS else await self._vllm(model),
            self.registry_of(row),
            allocator=true_model
            if allocator == TRUE_STEPS
            else (self._knn_allocator(self.registry_of(row)) if allocator == "knn" else await self._vllm(allocator)),
            review=row.spec.review,
            max_tokens=MAX_PLAN_TOKENS,
            router_price=price,
            middleware=self._middleware,
            clients=self._clients,
        )

    def _knn_allocator(self, registry: ModelRegistry) -> Allocator | Literal["knn"]:
        """Return the allocator that learns from the profile, but for the questions of this benchmark."""
        if self._bench.records is None:
            return "knn"  # the planner explains what is missing
        asked = {task.question for task in self._bench.tasks}
        known = [one for one in observations(self._bench.records, registry) if one.question not in asked]
        return ProfileAllocator(KNNStrategy(registry, known, embeddings=self.embeddings))

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
        if not row.is_local:
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
            own = self._server
            engine = VLLMEngine(own.base_url, model=model, tokenizer=own.model, timeout_s=LOCAL_TIMEOUT_S)
        else:
            engine = VLLMEngine(url, model=model)
        self._stack.push_async_callback(engine.aclose)
        return engine


@functools.cache
def _true_steps() -> dict[str, list[tuple[str, str]]]:
    """Return the steps that lead to the answer of each question of the pocket world, with their specialists."""
    from langgraph_router_r1.pocket.world import countries, joined_questions, questions, true_steps

    splits: tuple[Split, ...] = get_args(Split)
    asked = (one for split in splits for of in (questions, joined_questions) for one in of(countries(split)))
    return {one.text: true_steps(one) for one in asked}


@functools.cache
def _true_specialists() -> dict[str, str]:
    return dict(step for steps in _true_steps().values() for step in steps)


def _true_plan(question: str) -> str:
    return plan_text(text for text, _ in _true_steps()[question])


def _true_models(step: Step, _: ModelRegistry) -> str:
    return _true_specialists()[step.text]


def _true_wiki_plan(question: str) -> str:
    from langgraph_router_r1.wiki.world import true_steps

    return plan_text(query for query, _ in true_steps(question))


def _true_wiki_model(step: Step, _: ModelRegistry) -> str:
    from langgraph_router_r1.wiki.world import true_model

    return true_model(step.text)
