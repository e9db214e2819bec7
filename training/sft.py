"""Supervised fine-tuning of LoRA adapters, on token ids as they are: nothing is rendered, cut or re-encoded here.

An example is a list of token ids and a mask that is 1 on the tokens to learn. For a router these are a rollout's
ids and `env_mask`; for a routed model, a prompt and its reply. TRL trains, PEFT holds the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

PIECE = 4
"""Sequences in one forward and backward pass."""

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


class _MaskedSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the loss computed on the learned tokens alone.

    A prompt is ten times as long as what is learned after it; running the 49k-wide output head over all of it,
    as TRL does, takes most of a step on a CPU.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        causal_lm = self.accelerator.unwrap_model(model).get_base_model()
        hidden = causal_lm.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0]
        targets = inputs["labels"][:, 1:]
        learned = targets != -100
        logits = causal_lm.lm_head(hidden[:, :-1][learned]).float()
        # Divided by the learned tokens of the whole batch, however many pieces it is computed in.
        return torch.nn.functional.cross_entropy(logits, targets[learned], reduction="sum") / num_items_in_batch


def train_adapter(
    base_model: str | Path,
    examples: Sequence[Example],
    output_dir: Path,
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    rank: int = 8,
    seed: int = 0,
) -> float:
    """Train a LoRA adapter on all linear layers, write it to `output_dir` in bfloat16, return the last loss.

    The base model stays in bfloat16 while the adapter trains in float32: bfloat16 updates of the
    size that matter here would round to nothing.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.bfloat16)
    trainer = _MaskedSFTTrainer(
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
        peft_config=LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM", bias="none"
        ),
        args=SFTConfig(
            output_dir=str(output_dir.with_name(output_dir.name + ".trainer")),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            # In pieces of four: a batch of long transcripts at once takes memory that a laptop does not have.
            per_device_train_batch_size=min(batch_size, PIECE),
            gradient_accumulation_steps=max(batch_size // PIECE, 1),
            train_sampling_strategy="group_by_length",
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            bf16=True,
            gradient_checkpointing=False,
            max_length=None,
            seed=seed,
            data_seed=seed,
            disable_tqdm=False,
        ),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    loss = trainer.train().training_loss
    save_adapter(trainer.model, output_dir)
    return float(loss)


def save_adapter(model: PeftModel, output_dir: Path) -> None:
    """Write the adapter alone, in bfloat16: half the size, and what vLLM computes with anyway."""
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items() if "lora_" in name}
    model.save_pretrained(output_dir, state_dict=state, safe_serialization=True)
    (output_dir / "README.md").unlink(missing_ok=True)
