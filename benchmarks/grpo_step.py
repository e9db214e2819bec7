"""How long a step of training takes, beside TRL's own on the same tokens.

    python benchmarks/grpo_step.py            # a quarter of an hour; figures: docs/training.md
    python benchmarks/grpo_step.py --json > now.json

Both trainers get the same rollouts, ready made: a scripted router drives the graph over the pocket pool's questions, so
lengths and shared prompts are real and nothing waits for a server. Ours takes them as trajectories with a mask; TRL's
own takes them as single turns. What is timed is a whole step from rewards to optimiser: forward passes for the ratio,
loss, backward, update. Steps of the two alternate; the first of each is not counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from langgraph_router_r1 import create_router
from langgraph_router_r1.engines import TransformersEngine
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.pocket import pocket_registry
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.pocket.world import FORWARD, PocketQuestion, countries, questions
from langgraph_router_r1.testing import ScriptedEngine
from training.groups import Group
from training.grpo import GraphGRPOTrainer
from training.pools import draw_pool
from training.rollout import Rollout, roll_out
from training.settings import settings
from training.sft import LORA_TARGETS
from training.sync import InProcessSync
from training.teacher import Asked, Memory, plan

GROUPS, GENERATIONS = 4, 8
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Keeps the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._began)


async def scripted(steps: int) -> list[list[Rollout]]:
    """Return the rollouts of each step, group by group; a member of a group asks, or answers from memory."""
    choose = random.Random(0)
    world = list(questions(countries("train")))
    pool = draw_pool(choose, plain=1.0)
    known: tuple[Any, ...] = (*FORWARD, "country")
    memory: Memory = {
        (land.iso, key, by): "Peru" for land in countries("train") for key in known for by in (None, *FORWARD)
    }
    tokenizer = ChatTokenizer.load(base_model_dir())

    async def one(question: PocketQuestion) -> Rollout:
        planned = plan(Asked.of(question), choose.choice((0.0, 0.9)), pool, memory, choose)
        assert planned is not None
        turn, _ = planned

        def write(transcript: Sequence[Any]) -> str:
            blocks = [segment["text"].strip() for segment in transcript if segment["kind"] == "observation"]
            return turn([block[len("<information>") : -len("</information>")].strip() for block in blocks])

        router = create_router(ScriptedEngine(write, tokenizer=tokenizer), pool.registry)
        task = Task(question.text, question.text, (question.answer,), "pocket")
        return (await roll_out(router, pool.registry, [(task, 0.3)]))[0]

    return [
        [await one(question) for question in random.Random(step).sample(world, GROUPS) for _ in range(GENERATIONS)]
        for step in range(steps)
    ]


def arguments(directory: str, name: str) -> Any:
    """Return the settings of both."""
    return settings(
        Path(directory, name),
        per_device_train_batch_size=GENERATIONS,
        gradient_accumulation_steps=GROUPS,
        num_generations=GENERATIONS,
        bf16=True,
        save_strategy="no",
        seed=0,
    )


def model_and_tokenizer() -> tuple[Any, Any]:
    """Return the pocket base model, new each time."""
    base = base_model_dir()
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(base)


def ours(batches: list[list[Rollout]], directory: str, watch: Stopwatch) -> GraphGRPOTrainer:
    """Return our trainer, whose graph has made its rollouts already."""
    model, tokenizer = model_and_tokenizer()
    engine = TransformersEngine(model, tokenizer=str(base_model_dir()), temperature=1.0)
    groups = [
        Group(f"{step}-{index}", batch[index * GENERATIONS].task, 0.3)
        for step, batch in enumerate(batches)
        for index in range(GROUPS)
    ]
    left = iter(batches)

    class Replayed(GraphGRPOTrainer):
        async def _sample(self, groups: Any) -> list[Rollout]:
            return next(left)

    sync = InProcessSync(engine)
    sync.proven = True
    return Replayed(
        model,
        sync,
        pocket_registry(),
        groups,
        args=arguments(directory, "ours"),
        peft_config=LORA,
        processing_class=tokenizer,
        callbacks=[watch],
    )


def trls(batches: list[list[Rollout]], directory: str, watch: Stopwatch) -> GRPOTrainer:
    """Return TRL's trainer on the same sequences, each a single turn that was sampled from end to end."""
    model, tokenizer = model_and_tokenizer()
    left = iter(batches)

    def replay(*_: Any) -> dict[str, Any]:
        batch = next(left)
        return {
            "prompt_ids": [rollout.prompt_ids for rollout in batch],
            "completion_ids": [rollout.completion_ids for rollout in batch],
            "logprobs": [rollout.logprobs for rollout in batch],
        }

    def cheapness(completions: Sequence[str], **_: Any) -> list[float]:
        return [-float(len(completion)) for completion in completions]

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[cheapness],
        args=arguments(directory, "trl"),
        train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(len(batches) * GROUPS)]}),
        rollout_func=replay,
        peft_config=LORA,
        processing_class=tokenizer,
        callbacks=[watch],
    )
    # As ours: the log-probabilities of what was sampled are computed again, for the ratio to the sampler.
    trainer.vllm_generation = type("Ready", (), {"sync_weights": lambda _: None})()
    trainer._last_loaded_step = -1
    trainer.use_vllm = True
    trainer.remove_callback(PrinterCallback)  # it prints where the figures go
    return trainer


def main(
    steps: Annotated[int, typer.Option(help="Counted steps of each.")] = 4,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time both, in turn; print seconds a step and their ratio."""
    rounds = 2
    counted = -(-steps // rounds)
    batches = asyncio.run(scripted(rounds * (counted + 1)))
    seconds: dict[str, list[float]] = {"ours": [], "TRL": []}
    for number in range(rounds):
        part = batches[number * (counted + 1) : (number + 1) * (counted + 1)]
        for name, build in (("TRL", trls), ("ours", ours)):
            watch = Stopwatch()
            with tempfile.TemporaryDirectory() as directory:
                build(part, directory, watch).train()
            seconds[name] += watch.seconds[1:]
            typer.echo(f"{name}: {', '.join(f'{second:.1f} s' for second in watch.seconds)}", err=True)
    tokens = [len(r.prompt_ids) + len(r.completion_ids) for batch in batches for r in batch]
    figures = {
        "rollouts_a_step": GROUPS * GENERATIONS,
        "tokens_a_rollout": round(statistics.mean(tokens)),
        "ours_s": round(statistics.mean(seconds["ours"]), 2),
        "trl_s": round(statistics.mean(seconds["TRL"]), 2),
        "ratio": round(sum(seconds["ours"]) / sum(seconds["TRL"]), 3),
    }
    typer.echo(json.dumps(figures) if as_json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    typer.run(main)
