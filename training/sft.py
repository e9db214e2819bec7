"""Supervised fine-tuning of LoRA adapters, on token ids as they are: nothing is rendered, cut or re-encoded here.

An example is a list of token ids and a mask that is 1 on the tokens to learn. For a router these are a rollout's
ids and `env_mask`; for a routed model, a prompt and its reply. TRL trains, PEFT holds the adapter.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from datasets.fingerprint import Hasher
from peft import LoraConfig, PeftModel
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from langgraph_router_r1.engines.precision import fastest_dtype
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.transcript import sampled_mask, token_ids
from training.logprobs import hidden_states, shared_start
from training.rewards import Reward
from training.rollout import Rollout

SAVE_EVERY = 20
"""Steps between checkpoints, and between lines of the log."""

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Example:
    """One sequence to learn from; `len(token_ids) == len(mask)`, mask 1 on the tokens that carry loss."""

    token_ids: Sequence[int]
    mask: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.mask):
            msg = (
                f"an example has {len(self.token_ids)} token ids and {len(self.mask)} mask values: they must be as many"
            )
            raise ValueError(msg)


def read_examples(path: Path, *, at_least: float | None = None, per_task: int | None = None) -> list[Example]:
    """Read a file of examples: a teacher's transcripts, what `RolloutLog` wrote, or `router-r1 export-runs`.

    A line of a teacher's file is `{"token_ids": [...], "mask": [...]}`. A line of the others has a `RunRecord`, in
    which the segments of the policy are what is learned. Left out are rollouts that were broken off, which have no
    record, and runs in which no router LLM wrote tokens: one model was asked directly, or a chat model of an API was
    the router.

    Args:
        path: Of the file.
        at_least: The least reward of an example (rejection-sampling fine-tuning), of a run of the server the score of
            its feedback; None for all there is.
        per_task: At most so many of each task at each cost weight, the best of them; None for all.

    Raises:
        ValueError: Examples are to be chosen by their rewards, and have none.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chooses = at_least is not None or per_task is not None
    if chooses and any("reward" not in row for row in rows):
        msg = f"{str(path)!r} has lines without a 'reward': it must be what RolloutLog or export-runs wrote"
        raise ValueError(msg)
    written = [(row, _example(row)) for row in rows if row.get("record", row) is not None]
    written = [(row, example) for row, example in written if any(example.mask)]
    examples = [example for _, example in written]
    if not chooses:
        return examples
    rewards = [((row["task"], row["cost_weight"]), row["reward"]) for row, _ in written]
    return [examples[index] for index in _best(rewards, -math.inf if at_least is None else at_least, per_task)]


def _example(row: dict[str, Any]) -> Example:
    if "record" not in row:
        return Example(row["token_ids"], row["mask"])
    segments = RunRecord.model_validate(row["record"]).segments
    return Example(token_ids(segments), sampled_mask(segments))


def best_examples(
    rollouts: Sequence[Rollout], scored: Sequence[Reward], *, at_least: float, per_task: int | None = None
) -> list[Example]:
    """Return the rollouts that earned enough, to learn from (rejection-sampling fine-tuning).

    Args:
        rollouts: As `training.rollout` makes them; those without a reward teach nothing.
        scored: Their rewards, in the same order.
        at_least: The least total reward of an example.
        per_task: At most so many of each task at each cost weight, the best of them; None for all.

    Raises:
        ValueError: There are not as many rewards as rollouts.
    """
    if len(rollouts) != len(scored):
        raise ValueError(f"there are {len(rollouts)} rollouts and {len(scored)} rewards: they must be as many")
    by_task = [
        ((rollout.task.id, rollout.cost_weight), reward.total if rollout.is_scorable else None)
        for rollout, reward in zip(rollouts, scored, strict=True)
    ]
    return [
        Example(
            [*rollouts[index].prompt_ids, *rollouts[index].completion_ids],
            [0] * len(rollouts[index].prompt_ids) + rollouts[index].env_mask,
        )
        for index in _best(by_task, at_least, per_task)
    ]


def _best(rewards: Sequence[tuple[Any, float | None]], at_least: float, per_task: int | None) -> list[int]:
    """Return the places of those that earned enough, in order; of each task the best."""
    kept: dict[Any, list[tuple[float, int]]] = defaultdict(list)
    for index, (task, reward) in enumerate(rewards):
        if reward is not None and reward >= at_least:
            kept[task].append((-reward, index))
    return sorted(index for of_task in kept.values() for _, index in sorted(of_task)[:per_task])


class _SharedPromptTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, with nothing computed that need not be.

    Two deviations, both exact. The loss is computed on the learned tokens alone: running the 49k-wide output head
    over prompts that are ten times as long takes most of a step on a CPU. And the start that all sequences of a batch
    have in common (the instructions, the pool) goes through the network once, gradients included, not once a sequence.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        causal_lm = self.accelerator.unwrap_model(model).get_base_model()
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        shared = shared_start(ids, int((labels != -100).any(0).int().argmax()))
        hidden = hidden_states(causal_lm, ids, mask, shared)
        targets = labels[:, shared + 1 :]
        learned = targets != -100
        logits = causal_lm.lm_head(hidden[:, :-1][learned]).float()
        return torch.nn.functional.cross_entropy(logits, targets[learned])


def train_adapter(
    base_model: str | Path,
    examples: Sequence[Example],
    output_dir: Path,
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    rank: int = 8,
    start: Path | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> float:
    """Train a LoRA adapter on all linear layers, write it to `output_dir` in bfloat16, return the mean loss.

    `start` is an adapter to go on from, of whatever rank. `shuffle=False` takes the examples in their order: for
    batches that were put together to share a prompt.

    The base model is in bfloat16 where that is fast, the adapter in float32: bfloat16 updates of the
    size that matter here would round to nothing.

    If a call is stopped, one with the same arguments continues from its last checkpoint. Checkpoints are written beside
    `output_dir`, and removed when the adapter is written.
    """
    begun = (start / "adapter_model.safetensors").read_bytes() if start else rank
    learned = [(list(example.token_ids), list(example.mask)) for example in examples]
    asked = [str(base_model), begun, learned, epochs, learning_rate, batch_size, shuffle, seed]
    checkpoints = output_dir.with_name(f"{output_dir.name}.{Hasher.hash(asked)}.trainer")
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    precision = fastest_dtype("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=precision)
    if start is not None:
        model = PeftModel.from_pretrained(model, str(start), is_trainable=True)
    new = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM", bias="none")
    trainer = _SharedPromptTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [
                {
                    "input_ids": list(example.token_ids),
                    "labels": [t if m else -100 for t, m in zip(example.token_ids, example.mask, strict=True)],
                }
                for example in examples
            ]
        ),
        peft_config=None if start else new,
        args=SFTConfig(
            output_dir=str(checkpoints),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            per_device_train_batch_size=batch_size,
            logging_steps=SAVE_EVERY,
            save_steps=SAVE_EVERY,
            save_total_limit=1,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            bf16=precision == "bfloat16",
            gradient_checkpointing=False,
            max_length=None,
            seed=seed,
            data_seed=seed,
            train_sampling_strategy="random" if shuffle else "sequential",
            disable_tqdm=False,
        ),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    checkpoint = newest_checkpoint(checkpoints)
    loss = trainer.train(resume_from_checkpoint=checkpoint).training_loss
    if checkpoint:  # that was the mean since then
        before, steps = int(checkpoint.name.partition("-")[2]), trainer.state.global_step
        logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        loss = (sum(logged[: before // SAVE_EVERY]) * SAVE_EVERY + loss * (steps - before)) / steps
    save_adapter(trainer.model, output_dir)
    shutil.rmtree(checkpoints)
    return float(loss)


def newest_checkpoint(run: str | Path, written_last: str = TRAINER_STATE_NAME) -> Path | None:
    """Return the newest whole checkpoint of a run, None when there is none: one without `written_last` was cut off."""
    whole = [path.parent for path in Path(run).glob(f"checkpoint-*/{written_last}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def save_adapter(model: PeftModel, output_dir: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the adapter alone; by default in bfloat16, which is half the size and what vLLM mostly computes with.

    One that is there already is replaced once the new one is whole.
    """
    with _gathered(model):
        state = {name: _whole(value).to(dtype) for name, value in model.state_dict().items() if "lora_" in name}
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".writing-") as name:
        written = Path(name)
        # Reinforcement learning keeps a second adapter, the reference, in the same model.
        model.save_pretrained(
            written,
            state_dict=state,
            selected_adapters=["default"],
            safe_serialization=True,
            save_embedding_layers=False,  # to find out whether there are new ones, PEFT would ask the hub
        )
        (written / "README.md").unlink(missing_ok=True)
        config_file = written / "adapter_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        # The model's name, not where it lay on this machine; and a set in the same order every time.
        config["base_model_name_or_path"] = Path(config["base_model_name_or_path"] or "").name
        config["target_modules"] = sorted(config["target_modules"])
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for file in sorted(written.iterdir()):
            file.replace(output_dir / file.name)


@contextmanager
def _gathered(model: PeftModel) -> Iterator[None]:
    """Hold the adapter together where DeepSpeed's ZeRO-3 spreads it over processes. Not run here: no GPU."""
    spread = [parameter for parameter in model.parameters() if parameter.requires_grad and hasattr(parameter, "ds_id")]
    if not spread:
        yield
        return
    from deepspeed.zero import GatheredParameters  # type: ignore[import-not-found]

    with GatheredParameters(spread):
        yield


def _whole(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor that FSDP2 may hold a part of only; all processes must ask. Not run here: no GPU."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def main(
    transcripts: Annotated[Path, typer.Argument(help="File of them, batch after batch of one pool.")],
    output: Annotated[Path, typer.Argument(help="Directory of the adapter.")],
    model: Annotated[str, typer.Option(help="Base model: directory or hub id; by default the pocket one.")] = "",
    start: Annotated[Path | None, typer.Option(help="Adapter to go on from; by default a new one.")] = None,
    at_least: Annotated[float | None, typer.Option(help="Of rollouts or runs: the least reward of an example.")] = None,
    per_task: Annotated[int | None, typer.Option(help="The best so many of each task and cost weight.")] = None,
    epochs: float = 1.0,
    learning_rate: float = 8e-4,
    batch_size: Annotated[int, typer.Option(help="As many as of one pool stand together.")] = 8,
    seed: int = 0,
) -> None:
    """Train a router's adapter on a teacher's transcripts, or on rollouts or runs that were good enough.

    It prints a line of JSON.
    """
    examples = read_examples(transcripts, at_least=at_least, per_task=per_task)
    if not examples:
        raise typer.BadParameter(f"{str(transcripts)!r} has no example with a reward of {at_least} or more")
    began = time.monotonic()
    loss = train_adapter(
        model or base_model_dir(),
        examples,
        output,
        start=start,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        shuffle=False,
        seed=seed,
    )
    seconds = round(time.monotonic() - began)
    print(json.dumps({"adapter": output.name, "examples": len(examples), "epochs": epochs, "seconds": seconds,
                      "mean_loss": round(loss, 4)}))  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
