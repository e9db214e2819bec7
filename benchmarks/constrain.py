"""How many turns of an untrained router can be read, with names constrained while it samples and without.

python benchmarks/constrain.py                                         # SmolLM2-135M without an adapter
python benchmarks/constrain.py --policy router --temperature 1.3       # the trained router, sampled wildly
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from typing import Any

from langgraph_router_r1 import RECORD_KEYS, ModelRegistry, create_router
from langgraph_router_r1.engines import VLLMEngine
from langgraph_router_r1.evaluation.metrics import wilson
from langgraph_router_r1.evaluation.tasks import load_tasks
from langgraph_router_r1.pocket import BASE_NAME, pocket_registry, pocket_server
from langgraph_router_r1.protocol import Invalid, Route, parse


def kind_of(text: str, registry: ModelRegistry) -> str:
    """Return whether a turn has a search, and whether all its names are known, or what else it is."""
    match parse(text, registry.aliases):
        case Route(calls):
            return "sound search" if all(call.known for call in calls) else "search with an unknown name"
        case Invalid():
            return "search that can't be read" if "<search>" in text else "neither search nor answer"
    return "answer"


async def turns(engine: VLLMEngine, registry: ModelRegistry, questions: list[str], **settings: Any) -> Counter[str]:
    """Return how many turns of each kind the router writes for these questions."""
    router = create_router(engine, registry, max_tokens=128, **settings)
    states = await router.abatch(
        [{"messages": [("user", question)]} for question in questions],
        {"max_concurrency": 8},
        output_keys=RECORD_KEYS,
    )
    sampled = [segment["text"] for state in states for segment in state["transcript"] if segment["kind"] == "policy"]
    return Counter(kind_of(text, registry) for text in sampled)


async def measure(policy: str, sample: int, temperature: float) -> None:
    """Ask the same questions in both ways, and print the turns."""
    questions = [task.question for task in load_tasks("pocket", split="test", sample=sample)]
    with pocket_server() as server:
        registry = pocket_registry(server.base_url)
        for constrain in (None, "names"):
            async with VLLMEngine(server.base_url, policy, temperature=temperature, seed=0, timeout_s=600) as engine:
                kinds = await turns(engine, registry, questions, constrain=constrain)
            total = kinds.total()
            malformed = total - kinds["sound search"] - kinds["answer"]
            print(f"constrain={constrain!r}: {total} turns, malformed {wilson(malformed, total)}")
            for kind, number in kinds.most_common():
                print(f"  {number:4} {kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default=BASE_NAME, help="the base model, or an adapter such as router")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.policy, arguments.questions, arguments.temperature))
