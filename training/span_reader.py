"""A reader that quotes (`langgraph_router_r1.retrieval.span_reader`), from questions with passages and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from langgraph_router_r1.retrieval.span_reader import encode, untrained


class SpanExample(NamedTuple):
    """A question, a passage, and the words of it that answer the question; empty if it does not."""

    question: str
    passage: str
    answer: str
    after: int = 0
    """From where on the answer is looked for: behind the title."""


def train_reader(
    examples: Sequence[SpanExample],
    output: Path,
    *,
    epochs: float = 3.0,
    learning_rate: float = 1e-3,
    batch_size: int = 16,
    rank: int = 32,
    seed: int = 0,
) -> float:
    """Train a LoRA adapter and the head for spans, write both to `output`, return the mean loss.

    The answer's first occurrence behind the title is the span that is learned. Examples whose answer does not stand in
    what is read of the passage are left out.
    """
    set_seed(seed)
    model, tokenizer = untrained()
    model = get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.1,
            target_modules=["query", "key", "value", "dense"],
            modules_to_save=["qa_outputs"],
        ),
    )
    rows = [row for one in examples if (row := _row(tokenizer, one))]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output.with_name(f"{output.name}.trainer")),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            train_sampling_strategy="group_by_length",
            warmup_steps=0.05,
            weight_decay=0.01,
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            dataloader_pin_memory=False,
            seed=seed,
            data_seed=seed,
            disable_tqdm=False,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    loss = float(trainer.train().training_loss)
    model.save_pretrained(output)
    (output / "README.md").unlink(missing_ok=True)
    return loss


def _row(tokenizer: object, example: SpanExample) -> dict[str, object] | None:
    """Return an example as the trainer takes it; None if its answer is not among the tokens that are read."""
    encoded = encode(tokenizer, [example.question], [example.passage])
    offsets, parts = encoded["offset_mapping"][0].tolist(), encoded.sequence_ids(0)
    span = 0, 0
    if example.answer:
        begin = example.passage.find(example.answer, example.after)
        if begin < 0:
            return None
        end = begin + len(example.answer)
        covered = [
            place for place, (first, last) in enumerate(offsets) if parts[place] == 1 and first < end and last > begin
        ]
        if not covered or offsets[covered[-1]][1] < end:
            return None
        span = covered[0], covered[-1]
    ids = {name: encoded[name][0].tolist() for name in ("input_ids", "token_type_ids", "attention_mask")}
    return {**ids, "start_positions": span[0], "end_positions": span[1]}
