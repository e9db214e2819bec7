"""How long the first token of an answer takes from the engine to the user, and how many tokens a relayed reply saves.

python benchmarks/streaming.py            # scripted engine, 100 runs a way
python benchmarks/streaming.py --vllm     # the pocket pool's vLLM too, 20 runs a way
python benchmarks/streaming.py --relay    # router tokens for replies of 50 to 2,000 tokens, relayed or written again
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from langgraph_router_r1 import ChatRouterR1, ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.engines import Generation, VLLMEngine
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.scanner import TurnScanner
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION = "What is the capital of Peru?"
TURNS = (
    "<think> I ask. </think>\n<search> capitals: What is the capital of Peru? </search>",
    "<think> I know it. </think>\n<answer> Lima, which lies on the coast. </answer>",
)


class _Timed:
    """Notes when an engine tells of the first text of an answer."""

    first = 0.0

    def _watch(self, on_text: Callable[[str], None] | None) -> Callable[[str], None] | None:
        if on_text is None:
            return None
        scanner = TurnScanner()

        def timed(piece: str) -> None:
            if any(kind == "answer" for kind, _ in scanner.feed(piece)) and not self.first:
                self.first = time.perf_counter()
            on_text(piece)

        return timed


class _TimedScript(_Timed, ScriptedEngine):
    def generate(self, transcript: Any, *, on_text: Any = None, **options: Any) -> Generation:
        return super().generate(transcript, on_text=self._watch(on_text), **options)

    async def agenerate(self, transcript: Any, *, on_text: Any = None, **options: Any) -> Generation:
        return await super().agenerate(transcript, on_text=self._watch(on_text), **options)


class _TimedVLLM(_Timed, VLLMEngine):
    def generate(self, transcript: Any, *, on_text: Any = None, **options: Any) -> Generation:
        return super().generate(transcript, on_text=self._watch(on_text), **options)

    async def agenerate(self, transcript: Any, *, on_text: Any = None, **options: Any) -> Generation:
        return await super().agenerate(transcript, on_text=self._watch(on_text), **options)


async def first_token(engine: _Timed, router: Any, way: str) -> float:
    """Return the milliseconds from the engine's first answer token to the user's."""
    engine.first = 0.0
    question: Any = {"messages": [("user", QUESTION)]}
    got = 0.0
    if way == "stream":
        for chunk, _ in router.stream(question, stream_mode="messages"):
            got = got or (chunk.text and time.perf_counter()) or 0.0
    elif way == "astream":
        async for chunk, _ in router.astream(question, stream_mode="messages"):
            got = got or (chunk.text and time.perf_counter()) or 0.0
    elif way == "chat model, stream":
        for chunk in ChatRouterR1(router=router).stream(QUESTION):
            got = got or (chunk.text and time.perf_counter()) or 0.0
    else:
        async for chunk in ChatRouterR1(router=router).astream(QUESTION):
            got = got or (chunk.text and time.perf_counter()) or 0.0
    return 1000 * (got - engine.first)


WAYS = ("stream", "astream", "chat model, stream", "chat model, astream")


def report(name: str, way: str, times: Sequence[float]) -> None:
    """Print a line of the table."""
    ordered = sorted(times)
    middle, high = statistics.median(ordered), ordered[int(0.95 * len(ordered))]
    print(f"{name:10} {way:22} median {middle:6.2f} ms   95 % {high:6.2f} ms   {len(times)} runs", flush=True)


async def scripted(runs: int) -> None:
    """Measure with a scripted engine, which writes a piece a millisecond."""
    registry = ModelRegistry([ModelDescriptor(name="capitals", model=ScriptedChatModel(["Lima"]), price=1.0)])
    for way in WAYS:
        times = []
        for _ in range(runs):
            engine = _TimedScript(TURNS, delay_s=0.001)
            times.append(await first_token(engine, create_router(engine, registry), way))
        report("scripted", way, times)


async def served(runs: int) -> None:
    """Measure with the pocket pool."""
    from langgraph_router_r1.pocket import ROUTER_NAME, pocket_registry, pocket_server

    with pocket_server() as server:
        for way in WAYS:
            times = []
            with _TimedVLLM(server.base_url, ROUTER_NAME) as engine:
                router = create_router(engine, pocket_registry(server.base_url), max_tokens=256)
                await first_token(engine, router, way)  # builds the clients
                times = [await first_token(engine, router, way) for _ in range(runs)]
            report("vLLM", way, times)


def relay() -> None:
    """Print how many tokens the router samples for a reply, written again or relayed."""
    tokenizer = ChatTokenizer.load(base_model_dir())
    print(f"{'reply':>10} {'written again':>14} {'relayed':>8} {'in its place':>13}   router tokens sampled in the run")
    for size in (50, 200, 500, 1000, 2000):
        text = tokenizer.truncate("Lima is the capital of Peru, and lies on the coast. " * 400, size).strip()
        registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel([text]), price=1.0)])
        ask, think = "<think> I ask m. </think>\n<search> m: What of Lima? </search>", "<think> Good. </think>\n"
        scripts = (
            [ask, f"{think}<answer> {text} </answer>"],
            [ask, f'{think}<answer from="1"/>'],
            ['<think> I ask m. </think>\n<answer from="m"> What of Lima? </answer>'],
        )
        sampled = []
        for turns in scripts:
            engine = ScriptedEngine(turns, tokenizer=tokenizer)
            result = create_router(engine, registry, answer="full", max_tokens=4096).invoke(
                {"messages": [("user", "What of Lima?")]}
            )
            assert result["answer"] == text
            sampled.append(result["routing"]["router_tokens"]["completion_tokens"])
        print(f"{size:>10,} {sampled[0]:>14,} {sampled[1]:>8,} {sampled[2]:>13,}")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--relay", action="store_true")
    arguments = parser.parse_args()
    if arguments.relay:
        relay()
        return
    asyncio.run(served(20) if arguments.vllm else scripted(100))


if __name__ == "__main__":
    main()
