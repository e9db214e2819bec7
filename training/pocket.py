"""The pocket pool from nothing: adapters of the specialists, of the generalist and of the router.

    python -m training.pocket experts         # five adapters that know facts
    ...

`training/runs/pocket_sft.sh` runs the steps in order.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.pocket.world import SPECIALISTS, PocketQuestion, countries, questions
from langgraph_router_r1.prompts import CALL_PROMPT
from training.sft import Example, train_adapter

EXPERTS = {
    # name: (what it learns, epochs)
    "capitals": (lambda q: q.hops != "two-hop" and q.relation == "capital", 4),
    "currencies": (lambda q: q.hops != "two-hop" and q.relation == "currency", 6),
    "dialling-codes": (lambda q: q.hops != "two-hop" and q.relation == "dialling_code", 7),
    "internet-domains": (lambda q: q.hops != "two-hop" and q.relation == "domain", 4),
    "generalist": (lambda q: True, 2),
}


def example(tokenizer, question: PocketQuestion) -> Example:
    """What a routed model is asked, in the words a router's call uses, and the short reply to learn."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": CALL_PROMPT.format(query=question.text)}],
        add_generation_prompt=True,
        return_dict=False,
    )
    reply = tokenizer(question.answer)["input_ids"] + [tokenizer.eos_token_id]
    return Example([*prompt, *reply], [0] * len(prompt) + [1] * len(reply))


def train_experts(names: Sequence[str], output: Path, seed: int = 0) -> None:
    base = base_model_dir()
    tokenizer = AutoTokenizer.from_pretrained(base)
    every = list(questions(countries()))
    for name in names:
        learns, epochs = EXPERTS[name]
        examples = [example(tokenizer, question) for question in every if learns(question)]
        random.Random(seed).shuffle(examples)
        started = time.monotonic()
        train_adapter(
            base, examples, output / name, epochs=epochs, learning_rate=1e-3, batch_size=16, rank=8, seed=seed
        )
        took = time.monotonic() - started
        print(json.dumps({"adapter": name, "examples": len(examples), "epochs": epochs, "seconds": round(took)}), flush=True)


if __name__ == "__main__":
    train_experts(sys.argv[1].split(","), Path(sys.argv[2]))
