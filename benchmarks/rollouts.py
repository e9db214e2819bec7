"""How fast rollouts are made: beside a barrier each turn, and beside what vLLM gives at its best.

    python benchmarks/rollouts.py             # simulated waiting: six minutes, most of them asleep
    python benchmarks/rollouts.py --vllm      # the pocket pool on a real vLLM
    python benchmarks/rollouts.py --json > now.json

The barrier is how Router-R1's released code makes them: the whole batch samples a turn, ten threads make that turn's
calls, all wait for the slowest, on to the next turn; what was asked before is asked again. Ours is `roll_out`: each
trajectory at its own pace, every call made or (`share_calls`) what is known or being asked already not made again.
All ways get the same work in turn, in every round: trust the ratios more than the seconds, and those over all rounds
more than those of one, in which a single slow call weighs much.

Simulated: 64 trajectories, eight to a question, each asks once a turn for four turns and then answers. A turn takes the
scripted engine 50 ms; routed models take log-normal time, median 1 s, 1 % over 15 s, and the n-th asking of a query
takes as long in each way. Which of four wordings a member of a group asks in is drawn: how much is asked twice is
an assumption, and so the figure without sharing stands beside. Clocks run `--speed-up` times as fast as told. A token
is a byte there.

With vLLM: 64 trajectories, four to a question, the shipped router and the pocket models on one server. At its best:
the very prompts and lengths that rollouts had (models that answer at once keep the server for the router), sent again
as single requests, as many at a time, with nothing between them. These come second, so the server has seen their
prompts before. The shipped router samples at temperature 1, as in training: what it asks differs from run to run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import httpx
import typer
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.cache.memory import InMemoryCache
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typing_extensions import override

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router, protocol
from langgraph_router_r1.calls import CallMiddleware, Candidates
from langgraph_router_r1.engines import RouterEngine, VLLMEngine
from langgraph_router_r1.engines.base import API_KEY_ENV, observation_segment
from langgraph_router_r1.evaluation.tasks import Task, load_tasks
from langgraph_router_r1.prompts import RouterPrompt
from langgraph_router_r1.state import PlannedCall
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
from langgraph_router_r1.transcript import Segment
from training.rollout import Calls, Rollout, roll_out, share_calls

TRAJECTORIES = 64
TURNS = 4
THREADS = 10
MAX_TOKENS = 256
TURN_S = 0.05
SIGMA = 1.164
"""Of the log of the latencies: with a median of 1 s, 1 % take longer than 15 s."""
WORDINGS = 4
BARRIER, ALONE, SHARED = f"barrier, {THREADS} threads", "roll_out, every call", "roll_out, shared calls"
ROLLOUTS, RAW = "roll_out", "raw vLLM"

Batch = Sequence[tuple[Task, float]]
Tick = Callable[..., object]
Way = Callable[[Batch, Calls, Tick], Awaitable[int]]
"""Makes the rollouts of a batch and counts their calls; gives the number of sampled tokens."""


@dataclass
class Pace:
    """What one way did, a sample a round."""

    way: str
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens a second, over all rounds."""
        return sum(self.tokens) / sum(self.seconds)

    def rates(self) -> list[float]:
        """Sampled tokens a second, by round."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]

    def times(self, other: Pace) -> tuple[float, float, float]:
        """Return how many times as fast as another this was: over all, and in its worst and its best round."""
        by_round = [mine / its for mine, its in zip(self.rates(), other.rates(), strict=True)]
        return self.tokens_per_s / other.tokens_per_s, min(by_round), max(by_round)


# The ways


async def with_barrier(engine: RouterEngine, registry: ModelRegistry, batch: Batch, calls: Calls, tick: Tick) -> int:
    """All sample a turn, then ten threads make its calls, then all go on; as Router-R1's released code does it."""
    candidates, prompt = Candidates(registry, engine.count_tokens), RouterPrompt()
    await engine.aload()
    active = []
    for task, weight in batch:
        chat = prompt.render([HumanMessage(task.question)], registry, cost_weight=weight, max_turns=TURNS)
        active.append([engine.begin(chat)])
    tokens = 0
    with ThreadPoolExecutor(THREADS) as threads:
        for turn in range(TURNS + 1):
            routing = turn < TURNS
            stop = [protocol.SEARCH_END, protocol.ANSWER_END] if routing else [protocol.ANSWER_END]
            generations = await asyncio.gather(
                *(engine.agenerate(transcript, stop=stop, max_tokens=MAX_TOKENS) for transcript in active)
            )
            asking: list[tuple[list[Segment], list[PlannedCall]]] = []
            for transcript, generation in zip(active, generations, strict=True):
                tokens += generation.usage["completion_tokens"]
                action = protocol.parse(generation.segment["text"], registry.names, routing=routing)
                if isinstance(action, protocol.Route):
                    asking.append(([*transcript, generation.segment], [_call(registry, c) for c in action.calls]))
                else:
                    tick()
            flat = [call for _, asked in asking for call in asked]
            calls.asked += len(flat)
            calls.made += len(flat)
            # Nothing else is to be done meanwhile: blocking the loop is the barrier.
            routed_calls = iter(list(threads.map(candidates.ask, flat)))
            for transcript, asked in asking:
                said = "\n".join(next(routed_calls)["response"] for _ in asked)
                last = "" if turn + 1 < TURNS else "\nNo model can be asked any more. Answer now."
                transcript.append(observation_segment(engine, protocol.quote(protocol.sanitize(said) + last)))
            active = [transcript for transcript, _ in asking]
            if not active:
                break
    return tokens


async def at_their_own_pace(
    engine: RouterEngine, registry: ModelRegistry, batch: Batch, calls: Calls, tick: Tick, *, shared: bool
) -> int:
    """`roll_out`, with or without shared calls."""
    middleware = share_calls(registry, InMemoryCache(), calls=calls) if shared else []
    rollouts = await rolled_out(engine, registry, batch, tick, middleware)
    if not shared:
        asked = sum(routed["status"] in {"ok", "error"} for rollout in rollouts for routed in rollout.calls)
        calls.asked += asked
        calls.made += asked
    return sum(sum(rollout.env_mask) for rollout in rollouts)


async def rolled_out(
    engine: RouterEngine, registry: ModelRegistry, batch: Batch, tick: Tick, middleware: Sequence[CallMiddleware] = ()
) -> list[Rollout]:
    router = create_router(engine, registry, max_turns=TURNS, max_tokens=MAX_TOKENS, middleware=middleware)
    rollouts = await roll_out(
        router, registry, batch, in_flight=TRAJECTORIES, timeout_s=3600, progress=lambda _: tick()
    )
    broken = [rollout.failed for rollout in rollouts if not rollout.completion_ids]
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(rollouts)} rollouts failed, the first because {broken[0]}")
    return rollouts


def ways(make: Callable[[], tuple[RouterEngine, ModelRegistry]]) -> dict[str, Way]:
    """Return the three ways, each of which gets new parts in every round."""

    async def barrier(batch: Batch, calls: Calls, tick: Tick) -> int:
        return await with_barrier(*make(), batch, calls, tick)

    async def ours(batch: Batch, calls: Calls, tick: Tick, *, shared: bool) -> int:
        return await at_their_own_pace(*make(), batch, calls, tick, shared=shared)

    return {BARRIER: barrier, ALONE: partial(ours, shared=False), SHARED: partial(ours, shared=True)}


def _call(registry: ModelRegistry, call: protocol.Call) -> PlannedCall:
    unknown = registry.explain_unknown(call.model)
    return {
        "turn": 0,
        "index": 0,
        "model": call.model,
        "query": call.query,
        "refusal": None if call.known else {"status": "unknown_model", "reason": unknown},
    }


# Simulated


class SlowModel(Runnable[Any, AIMessage]):
    """Replies after a time that the query, and how often it was asked before, decide."""

    def __init__(self, seed: int, speed_up: float) -> None:
        self._seed, self._speed_up = seed, speed_up
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        time.sleep(self._latency(input))
        return self._reply()

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        await asyncio.sleep(self._latency(input))
        return self._reply()

    def _latency(self, messages: Any) -> float:
        query = messages[-1].text
        with self._lock:
            self._asked[query] += 1
            draw = random.Random(f"{self._seed} {query} {self._asked[query]}")
        return draw.lognormvariate(0, SIGMA) / self._speed_up

    def _reply(self) -> AIMessage:
        return AIMessage("That is so.", usage_metadata={"input_tokens": 20, "output_tokens": 4, "total_tokens": 24})


def simulated_parts(seed: int, speed_up: float) -> tuple[RouterEngine, ModelRegistry]:
    """Return a scripted engine and a slow model."""

    def write(transcript: Sequence[Segment]) -> str:
        turn = sum(segment["kind"] == "policy" for segment in transcript)
        if turn == TURNS:
            return "<think> That is all there is to know. </think>\n<answer> Lima </answer>"
        question, _, member = transcript[0]["text"].rpartition("Question: ")[2].split("?")[0].rpartition(" as ")
        wording = random.Random(f"{question} {member} {turn}").randrange(WORDINGS)
        query = f"What is step {turn} of {question}, in wording {wording}?"
        return f"<think> Step {turn} is still open. </think>\n<search> slow: {query} </search>"

    slow = ModelDescriptor(name="slow", model=SlowModel(seed, speed_up), price=1.0, timeout_s=3600)
    return ScriptedEngine(write, delay_s=TURN_S / speed_up), ModelRegistry([slow])


def simulated_batch(seed: int, group: int = 8) -> Batch:
    return [
        (Task(f"{n}", f"question {seed}-{n // group} as {n % group}?", ("Lima",), "simulated"), 0.5)
        for n in range(TRAJECTORIES)
    ]


async def simulate(rounds: int, speed_up: float, progress: Progress) -> list[Pace]:
    paces: dict[str, Pace] = {}
    for seed in range(rounds):
        three = ways(partial(simulated_parts, seed, speed_up))
        await measure_ways(three, simulated_batch(seed), seed, paces, progress)
    for pace in paces.values():
        pace.seconds = [seconds * speed_up for seconds in pace.seconds]
    return list(paces.values())


async def measure_ways(of: dict[str, Way], batch: Batch, seed: int, paces: dict[str, Pace], progress: Progress) -> None:
    """Let each way make the rollouts of a batch; who comes first changes with the round."""
    names = list(of)
    for name in names[seed % len(names) :] + names[: seed % len(names)]:
        calls = paces.setdefault(name, Pace(name)).calls
        await measure(name, partial(of[name], batch, calls), len(batch), seed, paces, progress)


async def measure(
    name: str,
    run: Callable[[Tick], Awaitable[int]],
    total: int,
    seed: int,
    paces: dict[str, Pace],
    progress: Progress,
) -> None:
    """Take the time of what samples so many tokens, with a bar for it."""
    bar = progress.add_task(f"round {seed + 1}: {name}", total=total)
    started = time.perf_counter()
    tokens = await run(partial(progress.update, bar, advance=1, refresh=True))
    pace = paces.setdefault(name, Pace(name))
    pace.seconds.append(time.perf_counter() - started)
    pace.tokens.append(tokens)


# With vLLM


def real_parts(base_url: str) -> tuple[RouterEngine, ModelRegistry]:
    from langgraph_router_r1.pocket import ROUTER_NAME, pocket_registry

    return VLLMEngine(base_url, ROUTER_NAME, temperature=1.0, logprobs=True, timeout_s=600), pocket_registry(base_url)


def real_batch(seed: int, trajectories: int, group: int) -> Batch:
    tasks = load_tasks("pocket", split="train", sample=trajectories // group, seed=seed)
    return [(task, 0.5) for task in tasks for _ in range(group)]


async def with_vllm(rounds: int, progress: Progress) -> tuple[list[Pace], list[Pace]]:
    """Return the paces of the three ways, and those of rollouts and of raw vLLM on the same prompts and lengths."""
    from langgraph_router_r1.pocket import pocket_server

    paces: dict[str, Pace] = {}
    best: dict[str, Pace] = {}
    server = pocket_server()
    bar = progress.add_task("vLLM starts", total=None)
    await asyncio.to_thread(server.start)
    try:
        progress.update(bar, total=1, completed=1, refresh=True)
        parts = real_parts(server.base_url)
        three = ways(lambda: parts)
        for way in three.values():  # what only first requests have to do
            await way(real_batch(10_000, 8, 1), Calls(), lambda **_: None)
        for seed in range(rounds):
            await measure_ways(three, real_batch(seed, TRAJECTORIES, 4), seed, paces, progress)
        for seed in range(rounds):
            await beside_raw(*parts, server.base_url, seed, best, progress)
    finally:
        await asyncio.to_thread(server.stop)
    return list(paces.values()), list(best.values())


async def beside_raw(
    engine: RouterEngine, registry: ModelRegistry, base_url: str, seed: int, paces: dict[str, Pace], progress: Progress
) -> None:
    """Make rollouts that have the server to themselves, and then send all their turns again as single requests."""
    instant = ModelRegistry(
        model.model_copy(update={"model": ScriptedChatModel(["Peru"]), "params": {}}) for model in registry
    )
    batch = real_batch(1000 + seed, 4 * TRAJECTORIES, 4)
    made: list[Rollout] = []
    requests: list[tuple[list[int], int]] = []

    async def rollouts(tick: Tick) -> int:
        made.extend(await rolled_out(engine, instant, batch, tick))
        return sum(sum(rollout.env_mask) for rollout in made)

    await measure(ROLLOUTS, rollouts, len(batch), seed, paces, progress)
    # All first turns, then all second ones, as rollouts send them.
    for row in itertools.zip_longest(*map(turns, made)):
        requests += filter(None, row)
    raw = partial(raw_completions, base_url, requests)
    await measure(RAW, raw, len(requests), seed, paces, progress)


def turns(rollout: Rollout) -> list[tuple[list[int], int]]:
    """Return the prompt of each turn of a rollout, and how many tokens were sampled after it."""
    ids, start, found = rollout.prompt_ids + rollout.completion_ids, len(rollout.prompt_ids), []
    for own, run in itertools.groupby(rollout.env_mask):
        length = len(list(run))
        if own:
            found.append((ids[:start], length))
        start += length
    return found


async def raw_completions(base_url: str, requests: Sequence[tuple[list[int], int]], tick: Tick) -> int:
    """Send prompts, as many at a time as trajectories; return how many tokens came back."""
    from langgraph_router_r1.pocket import ROUTER_NAME

    gate = asyncio.Semaphore(TRAJECTORIES)
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
    headers = {"Authorization": f"Bearer {os.environ[API_KEY_ENV]}"}
    async with httpx.AsyncClient(timeout=600, limits=limits, headers=headers) as client:

        async def one(prompt: list[int], length: int) -> int:
            body = {"model": ROUTER_NAME, "prompt": prompt, "max_tokens": length, "ignore_eos": True}
            async with gate:
                response = await client.post(
                    f"{base_url}/completions",
                    json={**body, "temperature": 1.0, "logprobs": 0, "return_token_ids": True},
                )
            response.raise_for_status()
            tick()
            return int(response.json()["usage"]["completion_tokens"])

        return sum(await asyncio.gather(*(one(prompt, length) for prompt, length in requests)))


# Shown


def show(console: Console, title: str, paces: Sequence[Pace], base: Pace, aims: dict[str, float]) -> None:
    """Print paces as a table, and how much their ratios differ between rounds."""
    table = Table(title=title, title_justify="left")
    for header in ("", "s", "tokens/s", "made/asked", "ratio", "aim"):
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for pace in paces:
        ratio, aim = pace.times(base)[0], aims.get(pace.way)
        table.add_row(
            pace.way,
            f"{statistics.mean(pace.seconds):.0f}",
            f"{pace.tokens_per_s:.0f}",
            f"{pace.calls.made_share:.2f}" if pace.calls.asked else "",
            f"{ratio:.2f}x",
            "" if aim is None else f">= {aim:g}x {'[green]met[/]' if ratio >= aim else '[red]missed[/]'}",
        )
    console.print(table)
    for pace in paces:
        if pace is not base:
            _, low, high = pace.times(base)
            console.print(f"{pace.way}: {low:.2f}x to {high:.2f}x by round", style="dim", highlight=False)


def as_dict(pace: Pace, base: Pace) -> dict[str, Any]:
    return {
        "way": pace.way,
        "seconds": pace.seconds,
        "tokens": pace.tokens,
        "asked": pace.calls.asked,
        "made": pace.calls.made,
        "ratio": pace.times(base)[0],
        "lowest_and_highest_ratio": pace.times(base)[1:],
    }


def main(
    vllm: Annotated[bool, typer.Option("--vllm", help="Measure the pocket pool on a real vLLM instead.")] = False,
    rounds: Annotated[
        int | None, typer.Option(help="How often each way is measured; 20 times by default, 3 with vLLM.", min=1)
    ] = None,
    speed_up: Annotated[float, typer.Option(help="How many times as fast simulated clocks run.", min=1)] = 10.0,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of tables.")] = False,
) -> None:
    """Measure how fast rollouts are made, as ratios."""
    os.environ["LANGSMITH_TRACING"] = "false"
    load = os.getloadavg()[0]
    rounds = rounds or (3 if vllm else 20)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    best: list[Pace] = []
    # The bar moves when something ends only: one that refreshes by itself is a thread that takes part.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        if vllm:
            paces, best = asyncio.run(with_vllm(rounds, progress))
        else:
            paces = asyncio.run(simulate(rounds, speed_up, progress))
    paces.sort(key=lambda pace: [BARRIER, ALONE, SHARED].index(pace.way))
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load before": round(load, 2),
        "rounds": rounds,
        "speed-up": 1 if vllm else speed_up,
    }
    if json_:
        measures = [as_dict(pace, paces[0]) for pace in paces] + [as_dict(pace, best[1]) for pace in best]
        print(json.dumps({"measures": measures, "machine": machine}, indent=2))
        return
    console = Console()
    if vllm:
        # What the ratio is with a real router is reported; it has an aim where waiting is all that is measured.
        show(console, f"{TRAJECTORIES} trajectories, the pocket pool on vLLM", paces, paces[0], {})
        title = f"{4 * TRAJECTORIES} trajectories, {TRAJECTORIES} at a time, models that answer at once"
        show(console, title, best, best[1], {ROLLOUTS: 0.85})
    else:
        show(console, f"{TRAJECTORIES} trajectories, simulated waiting", paces, paces[0], {SHARED: 3.0})
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), style="dim", highlight=False)


if __name__ == "__main__":
    typer.run(main)
