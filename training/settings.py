"""TRL's settings for rollouts of the graph, and those that must be as they are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from training.sync import Sync

with warnings.catch_warnings():
    # TRL imports vLLM, for a use of it that is not ours and tied to older versions.
    warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|vllm)\.")
    from trl import GRPOConfig


def settings(output_dir: str | Path, **options: Any) -> GRPOConfig:
    """Return TRL's settings with what rollouts of a graph need; `options` are those of `GRPOConfig`.

    Two defaults are not TRL's. The way to correct for the sampler is `token_truncate` at 2: `sequence_mask` zeroes
    whole trajectories when they are long. And advantages are divided by the spread of rewards in the batch: by that of
    their group, questions that nobody could answer count as much as those that asking got right; all that differs in
    them is what was spent, and so they teach not to ask, at every cost weight.
    """
    ours: dict[str, Any] = {
        "shuffle_dataset": False,
        "disable_dropout": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 2.0,
        "scale_rewards": "batch",
        "max_completion_length": None,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "num_train_epochs": 1,
    }
    return GRPOConfig(output_dir=str(output_dir), **{**ours, **options})


def check_settings(args: GRPOConfig, sync: Sync) -> None:
    """Refuse what would train on something else than what was sampled.

    Raises:
        ValueError: A setting is another one than it must be.
    """
    wanted = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "mask_truncated_completions": False,
        "shuffle_dataset": False,
        "use_vllm": False,
    }
    for name, value in wanted.items():
        if getattr(args, name) != value:
            raise ValueError(f"args.{name} is {getattr(args, name)!r}; it must be {value!r}: see training.settings")
    if sync.engine.temperature != 1.0:
        raise ValueError(f"{sync.engine!r} samples at temperature {sync.engine.temperature!r}; it must be 1.0")
    if args.save_total_limit == 1:
        raise ValueError("args.save_total_limit is 1; it must be 2 or more, or None: the older checkpoint goes first")
    updates = args.steps_per_generation * args.num_iterations
    steps_a_batch, rest = divmod(updates, args.gradient_accumulation_steps)
    if rest:
        raise ValueError(
            f"a batch of rollouts makes {updates} micro-batches (steps_per_generation x num_iterations), which "
            f"{args.gradient_accumulation_steps} (gradient_accumulation_steps) does not divide"
        )
    if args.save_strategy == "steps" and args.save_steps % steps_a_batch:
        raise ValueError(f"args.save_steps is {args.save_steps!r}; it must be a multiple of {steps_a_batch}")
