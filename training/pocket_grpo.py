"""GRPO on the pocket pool, from the shipped router on, through vLLM: one command, which goes on where it was stopped.

    python -m training.pocket_grpo runs/pocket_grpo/seed0 --seed 0

The server, with the pool and each new router adapter, is started here and ends with the run.
"""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from langgraph.cache.sqlite import SqliteCache
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from langgraph_router_r1.engines import VLLMEngine
from langgraph_router_r1.evaluation.tasks import load_tasks
from langgraph_router_r1.pocket import ADAPTERS, MAX_ROUTER_TOKENS, pocket_registry, pocket_server
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.registry import ModelRegistry
from training.disguise import Disguise, Names, anonymise, drop
from training.grpo import COST_WEIGHTS, GraphGRPOTrainer, last_checkpoint, make_groups, settings
from training.rewards import Mode, rewards
from training.rollout import Calls, share_calls
from training.sft import save_adapter
from training.sync import VLLMSync
from training.watch import JsonLog, ProgressTable

CALLS_PER_MODEL = 16
"""Routed calls in flight to one model; the router shares the server with them."""


def train(
    output: Annotated[Path, typer.Argument(help="Directory of the run: checkpoints, log, adapters.")],
    router: Annotated[Path, typer.Option(help="Adapter to start from.")] = ADAPTERS / "router",
    steps: int = 60,
    groups: Annotated[int, typer.Option(help="Questions a step.")] = 8,
    generations: Annotated[int, typer.Option(help="Rollouts a question.")] = 8,
    micro_batch: Annotated[
        int, typer.Option(help="Rollouts in one forward pass; those of one question share their prompt.")
    ] = 8,
    learning_rate: float = 2e-4,
    cost_weights: Annotated[str, typer.Option(help="Drawn for each question.")] = ",".join(map(str, COST_WEIGHTS)),
    mode: Annotated[Mode, typer.Option(help="How the reward's parts add up.")] = "paper",
    metric: Annotated[str, typer.Option(help="The outcome: em, f1, contains or number.")] = "em",
    beta: Annotated[float, typer.Option(help="Weight of the KL divergence from the router it starts from.")] = 0.0,
    entropy: Annotated[float, typer.Option(help="Weight of the entropy bonus.")] = 0.0,
    ratio: Annotated[str, typer.Option(help="What corrects for the sampler; TRL's name.")] = "token_truncate",
    anonymous: Annotated[
        str, typer.Option("--anonymise", help="Names in a disguised pool: neutral, shuffled, or empty for their own.")
    ] = "neutral",
    dropped: Annotated[
        float, typer.Option("--drop", help="Probability that a model is missing in a disguised pool.")
    ] = 0.25,
    disguised: Annotated[float, typer.Option(help="Share of questions whose pool is disguised.")] = 0.5,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 5,
    tensorboard: bool = False,
    seed: int = 0,
) -> None:
    """Train the pocket router; the same command resumes a run that was stopped."""
    base = base_model_dir()
    tasks = load_tasks("pocket", split="train")
    weights = [float(weight) for weight in cost_weights.split(",")]
    with pocket_server(log_file=output / "vllm.log") as server:
        calls = Calls()
        pool = share_calls(
            pocket_registry(server.base_url),
            SqliteCache(path=str(output / "replies.sqlite")),
            per_model=CALLS_PER_MODEL,
            calls=calls,
        )
        engine = VLLMEngine(server.base_url, server.served_name, temperature=1.0, logprobs=True)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        trainer = GraphGRPOTrainer(
            # PEFT takes the adapter in float32: updates of this size would round to nothing in bfloat16.
            PeftModel.from_pretrained(model, str(router), is_trainable=True),
            VLLMSync(engine, output / "adapters", dtype=torch.bfloat16),
            pool,
            make_groups(tasks, steps * groups, cost_weights=weights, seed=seed),
            args=settings(
                output,
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=groups * generations // micro_batch,
                num_generations=generations,
                learning_rate=learning_rate,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=3,
                beta=beta,
                entropy_coef=entropy,
                vllm_importance_sampling_mode=ratio,
                bf16=True,
                save_steps=save_every,
                save_total_limit=2,
                report_to=["tensorboard"] if tensorboard else [],
                seed=seed,
            ),
            # The router is as large as the smallest model, and on the same server: its tokens cost the same.
            router={"max_tokens": MAX_ROUTER_TOKENS, "router_price": pool["smol"].price},
            score=functools.partial(rewards, mode=mode, metric=metric),
            disguise=disguise_of(anonymous, dropped, disguised),
            in_flight=groups * generations,
            calls=calls,
            processing_class=AutoTokenizer.from_pretrained(base),
            callbacks=[JsonLog(output / "log.jsonl"), ProgressTable()],
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(output))
        engine.close()
    save_adapter(trainer.model, output / "adapter" / "router")
    print(json.dumps({"adapter": str(output / "adapter" / "router"), "steps": trainer.state.global_step, "seed": seed}))


def disguise_of(anonymous: str, dropped: float, share: float) -> Disguise | None:
    """Return what the options make of a pool; None when they leave it as it is."""
    if not share or not (anonymous or dropped):
        return None

    def disguise(registry: ModelRegistry, choose: random.Random) -> ModelRegistry:
        if choose.random() >= share:
            return registry
        smaller = drop(registry, choose, share=dropped)
        return anonymise(smaller, choose, names=cast("Names", anonymous)) if anonymous else smaller

    return disguise


if __name__ == "__main__":
    typer.run(train)
