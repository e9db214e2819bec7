"""Examples for `training.sft`, as a file of token ids and masks."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.files import replace_file


def ended(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """Return the tokens of a text, with the one that ends a turn."""
    assert tokenizer.eos_token_id is not None
    return [*tokenizer.encode(text), tokenizer.eos_token_id]


def row_of(prompt: Sequence[int], completion: Sequence[int]) -> dict[str, Any]:
    """Return an example as `training.sft` reads it: the completion is learned."""
    return {"token_ids": [*prompt, *completion], "mask": [0] * len(prompt) + [1] * len(completion)}


def write_rows(output: Path, rows: Sequence[dict[str, Any]]) -> float:
    """Write examples, a JSON object a line; return how many tokens one has on average."""
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, "".join(json.dumps(row) + "\n" for row in rows))
    return round(statistics.mean(len(row["token_ids"]) for row in rows), 1)
