"""Questions with golden answers, and splits that cannot leak.

    load_tasks("nq", split="test")      # one of the seven sets of the paper, or "pocket"
    read_tasks("mine.jsonl")            # a file of one's own, a JSON object a line

A question's split is a hash of the question itself, normalised as answers are, so the same question is in the same
split wherever it turns up: in two data sets, twice in one, or in a file of recorded answers. The pocket pool's
questions are split by country too; those for which the two splits differ are no tasks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from langgraph_router_r1.evaluation.metrics import normalise

if TYPE_CHECKING:
    from langgraph_router_r1.pocket.world import PocketQuestion

Split = Literal["train", "validation", "test"]

QA_SETS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
"""The seven data sets of the Router-R1 paper."""

POCKET_SETS = ("pocket", "pocket-joined")
"""Questions of the pocket pool's world: about one fact at a time, and those that join several."""

WIKI_SET = "wiki"
"""Questions of several hops over the passages of the wiki pool, from the data directory."""

HUB_DATASET = "RUC-NLPIR/FlashRAG_datasets"
"""Where the seven sets come from when there is no data directory; a configuration each."""

DATA_VARIABLE = "ROUTER_R1_DATA"
"""The environment variable that names the data directory."""


@dataclass(frozen=True)
class Task:
    """One question, and what counts as right.

    Example:
        >>> Task("nq_1", "Who wrote Emma?", ("Jane Austen",), "nq").split
        'test'
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    dataset: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it; `kind` is the group in which a profile reports it."""

    @property
    def kind(self) -> str:
        """The group in which a profile reports it: by default the data set."""
        return str(self.meta.get("kind", self.dataset))

    @functools.cached_property
    def split(self) -> Split:
        """Its split: about half train, a tenth validation, two fifths test."""
        bucket = int(hashlib.sha256(normalise(self.question).encode()).hexdigest(), 16) % 10
        return "train" if bucket < 5 else "validation" if bucket == 5 else "test"


class TaskError(ValueError):
    """Tasks can't be had, or their file is wrong; the message says which and where."""


def load_tasks(name: str, *, split: Split | None = None, sample: int | None = None, seed: int = 0) -> list[Task]:
    """Return the tasks of a set.

    The seven sets are read from `$ROUTER_R1_DATA/qa`, or fetched from the hub when that is not set.

    Args:
        name: One of `QA_SETS` or `POCKET_SETS`, or `WIKI_SET`.
        split: Only these; None for all.
        sample: At most so many, drawn with `seed`.
        seed: Of the sample.

    Raises:
        TaskError: There is no set of that name, or its data can't be had.
    """
    if split is not None and split not in get_args(Split):
        raise TaskError(f"split is {split!r}; it must be one of {', '.join(get_args(Split))}")
    if name in POCKET_SETS:
        tasks = list(_pocket_tasks(name))
    elif name == WIKI_SET:
        if (directory := data_dir()) is None:
            raise TaskError(f"the tasks {name!r} are in the data directory: set {DATA_VARIABLE}")
        tasks = read_tasks(directory / "corpus" / "2wiki_questions_on_passages.jsonl")
    elif name in QA_SETS:
        directory = data_dir()
        tasks = _from_hub(name) if directory is None else read_tasks(directory / "qa" / f"{name}.jsonl")
    else:
        raise TaskError(f"there are no tasks {name!r}; there are: {', '.join((*QA_SETS, *POCKET_SETS, WIKI_SET))}")
    return draw(tasks, split=split, sample=sample, seed=seed)


def draw(tasks: Iterable[Task], *, split: Split | None = None, sample: int | None = None, seed: int = 0) -> list[Task]:
    """Return the tasks of a split, or a sample of them that is the same in whatever order they come."""
    chosen = [task for task in tasks if split in (None, task.split)]
    if sample is None or sample >= len(chosen):
        return chosen
    return random.Random(seed).sample(sorted(chosen, key=lambda task: task.id), sample)  # noqa: S311 - no secret


def read_tasks(path: str | Path) -> list[Task]:
    """Read a file of tasks, `{"id", "question", "golden_answers", "dataset"}` a line; other keys become `meta`.

    Raises:
        TaskError: The file can't be read, or a line of it is no task.
    """
    path = Path(path)
    return [as_task(row, f"{path.name}, line {line}", path.stem, line) for line, row in json_lines(path)]


def as_task(row: Mapping[str, Any], where: str, dataset: str, line: int) -> Task:
    """Return the task that a row of a file holds, whichever of the public formats it is in.

    `golden_answers` may be called `gold` and be a single one; `question` may be called `prompt`.

    Raises:
        TaskError: It has no question or no golden answers.
    """
    question = row.get("question", row.get("prompt"))
    if not isinstance(question, str) or not question.strip():
        raise TaskError(f"{where}: 'question' is {question!r}; it must be a text")
    golden = row.get("golden_answers", row.get("gold", []))
    golden = [golden] if isinstance(golden, str | int | float) else golden
    if not isinstance(golden, Sequence):
        raise TaskError(f"{where}: 'golden_answers' is {golden!r}; it must be a list of texts")
    known = {"id", "question", "prompt", "golden_answers", "gold", "dataset"}
    known |= {"record"}  # of runs of the server: large, and about how it was answered
    outcomes = {"outcomes", "scores", "correct"}  # of recorded answers: see pools.py
    return Task(
        id=str(row.get("id", f"{dataset}-{line}")),
        question=question.strip(),
        golden_answers=tuple(f"{answer:g}" if isinstance(answer, float) else str(answer) for answer in golden),
        dataset=str(row.get("dataset", dataset)),
        meta={key: value for key, value in row.items() if key not in known | outcomes},
    )


def distinct(tasks: Iterable[Task]) -> list[Task]:
    """Return the tasks with an id of its own for each question: where sets share an id, the set's name comes in front.

    Example:
        >>> [task.id for task in distinct([Task("1", "A?", ("x",), "one"), Task("1", "B?", ("y",), "two")])]
        ['one/1', 'two/1']

    Raises:
        TaskError: One set has two questions of the same id.
    """
    tasks = list(tasks)
    questions: dict[str, set[str]] = {}
    for task in tasks:
        questions.setdefault(task.id, set()).add(task.question)
    found: dict[str, Task] = {}
    for task in tasks:
        name = f"{task.dataset}/{task.id}" if len(questions[task.id]) > 1 else task.id
        if found.setdefault(name, replace(task, id=name)).question != task.question:
            raise TaskError(f"{task.dataset!r} has two questions of the id {task.id!r}: give each one of its own")
    return list(found.values())


def json_lines(path: Path, *, may_be_cut_off: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON-lines file with their line numbers, from 1.

    Args:
        path: The file; one whose name ends in `.zst` is decompressed.
        may_be_cut_off: Leave out a last line without a line break that is no JSON: its writer was killed, or writes.

    Raises:
        TaskError: The file can't be read, or a line is no JSON object.
    """
    try:
        # Not splitlines: other line separators may stand inside a string.
        lines = _contents(path).decode("utf-8").split("\n")
    except OSError as error:
        raise TaskError(f"{str(path)!r} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TaskError(f"{str(path)!r} can't be read: it is not UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if may_be_cut_off and number == len(lines):
                return
            too = "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"
            reason = error.msg if isinstance(error, json.JSONDecodeError) else too
            raise TaskError(f"{path.name}, line {number}: is no JSON ({reason})") from None
        if not isinstance(row, dict):
            raise TaskError(f"{path.name}, line {number}: is a {type(row).__name__}; it must be an object")
        yield number, row


def _contents(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        OSError: It can't be read.
        TaskError: It can't be decompressed, or its end is missing.
    """
    if path.suffix != ".zst":
        return path.read_bytes()
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
    try:
        content = reader.decompress(path.read_bytes())
    except zstandard.ZstdError as error:
        raise TaskError(f"{str(path)!r} can't be decompressed: {error}") from None
    if not reader.eof:
        raise TaskError(f"{str(path)!r} can't be decompressed: its end is missing")
    return content


def data_dir() -> Path | None:
    """Return the data directory, None when `ROUTER_R1_DATA` is not set.

    Raises:
        TaskError: It is set to something that is no directory.
    """
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        return None
    if not Path(value).is_dir():
        raise TaskError(f"{DATA_VARIABLE} is {value!r}, which is no directory")
    return Path(value)


def _from_hub(name: str) -> list[Task]:
    """Fetch a set from the hub: its test split, or where it has none its development split."""
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ModuleNotFoundError:
        raise TaskError(
            f"tasks {name!r}: set {DATA_VARIABLE} to a data directory, or pip install 'langgraph-router-r1[eval]' "
            "to fetch them from the hub"
        ) from None
    try:
        available = get_dataset_split_names(HUB_DATASET, name)
        rows = load_dataset(HUB_DATASET, name, split="test" if "test" in available else "dev")
    except Exception as error:
        raise TaskError(
            f"tasks {name!r} can't be fetched from the hub ({type(error).__name__}): "
            f"is there a network? A data directory in {DATA_VARIABLE} does without"
        ) from error
    return [as_task({**row, "dataset": name}, f"{name} {line}", name, line) for line, row in enumerate(rows, start=1)]


@functools.cache
def _pocket_tasks(name: str) -> tuple[Task, ...]:
    from langgraph_router_r1.pocket import world

    questions = world.questions if name == "pocket" else world.joined_questions
    # A comparison is of two countries of one split.
    tasks = (
        (split, Task(question.id, question.text, question.answers, name, _pocket_meta(question)))
        for split in get_args(Split)
        for question in questions(world.countries(split))
    )
    return tuple(task for split, task in tasks if task.split == split)


def _pocket_meta(question: PocketQuestion) -> dict[str, Any]:
    return {"kind": question.skill, "hops": question.hops}
