"""The extractor: from question and reply to the short answer, learned from the train split of recorded answers.

    python -m training.extractor data       count the examples, print some
    python -m training.extractor train      the adapter (an hour on two busy cores)

Examples come from what real models said (`nq_six_models`, EVOUNA) and from passages that hold an answer (`corpus/`).
The target is a golden answer as it stands in the reply; where a wrong reply marks its answer by tags, the target is
what it marks: the extractor's work is to find what the reply says, right or wrong.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.extractor import ADAPTERS, EXTRACTOR_NAME, Extractor
from langgraph_router_r1.evaluation.metrics import contains, normalise
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import Split, Task, TaskError, as_task, data_dir, json_lines
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.testing import ScriptedEngine
from training.pocket import report
from training.sft import Example, train_adapter

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

RECORDS = ("nq_six_models", "evouna_nq_triviaqa")
CORPORA = ("nq_oracle_500", "popqa_300", "hotpotqa_200", "2wikimultihopqa_200")
MOST_WORDS = 12
"""Of a target: what is longer is no short answer."""

PASSAGE_WORDS = 80

_MARKED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


class Pair(NamedTuple):
    """One example in words."""

    source: str
    question: str
    reply: str
    target: str


def pairs(split: Split) -> Iterator[Pair]:
    """Yield the examples of a split."""
    directory = data_dir()
    if directory is None:
        raise TaskError("the extractor learns from recorded answers: set ROUTER_R1_DATA to the data directory")
    for name in RECORDS:
        pool = RecordedPool.from_file(directory / "pools" / f"{name}.jsonl")
        for task in pool.tasks.values():
            if task.split != split:
                continue
            for outcome in pool.outcomes[task.id].values():
                if outcome.response and (target := answer_in(outcome.response, task)):
                    yield Pair(name, task.question, outcome.response, target)
    for name in CORPORA:
        path = directory / "corpus" / f"{name}.jsonl"
        for line, row in json_lines(path):
            task = as_task(row, f"{path.name}, line {line}", path.stem, line)
            passages = [
                passage["text"] for passage in row["passages"] if contains(passage["text"], task.golden_answers)
            ]
            if task.split == split and passages:
                passage = around(passages[0], task)
                if target := answer_in(passage, task):
                    yield Pair(name, task.question, passage, target)


def answer_in(reply: str, task: Task) -> str | None:
    """Return the answer as the reply puts it: the longest golden one in it, else what it marks as its answer."""
    golden = [answer for answer in task.golden_answers if contains(reply, [answer])]
    if golden:
        longest = max(golden, key=len)
        found = re.search(re.escape(longest.strip()), reply, re.IGNORECASE)
        target = found.group() if found else longest
    else:
        marked = _MARKED.findall(reply)
        target = marked[-1] if marked else ""
    target = " ".join(target.split()).strip(" .")
    return target if normalise(target) and len(target.split()) <= MOST_WORDS else None


def around(passage: str, task: Task) -> str:
    """Return the part of a passage that holds the answer."""
    words = passage.split()
    for start in range(0, max(1, len(words)), PASSAGE_WORDS // 2):
        part = " ".join(words[start : start + PASSAGE_WORDS])
        if contains(part, task.golden_answers):
            return part
    return " ".join(words[:PASSAGE_WORDS])


@cli.command()
def data(show: int = 12, seed: int = 0) -> None:
    """Count the examples of the train split, and print some."""
    found = list(pairs("train"))
    for pair in random.Random(seed).sample(found, show):
        print(pair)
    report(examples=len(found), **Counter(pair.source for pair in found))


@cli.command()
def train(
    output: Path = ADAPTERS / EXTRACTOR_NAME, epochs: float = 2.0, learning_rate: float = 1e-3, seed: int = 0
) -> None:
    """Train the adapter."""
    tokenizer = ChatTokenizer.load(base_model_dir())
    eos = tokenizer.eos_token_id
    assert eos is not None
    extractor = Extractor(ScriptedEngine([], tokenizer=tokenizer))
    examples = []
    for pair in pairs("train"):
        prompt = extractor.prompt(pair.question, pair.reply)["token_ids"]
        reply = [*tokenizer.encode(pair.target), eos]
        examples.append(Example([*prompt, *reply], [0] * len(prompt) + [1] * len(reply)))
    random.Random(seed).shuffle(examples)
    started = time.monotonic()
    loss = train_adapter(
        base_model_dir(), examples, output, epochs=epochs, learning_rate=learning_rate, batch_size=16, seed=seed
    )
    seconds = round(time.monotonic() - started)
    report(adapter=EXTRACTOR_NAME, examples=len(examples), epochs=epochs, seconds=seconds, mean_loss=round(loss, 4))


if __name__ == "__main__":
    cli()
