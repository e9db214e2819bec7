"""Tasks: what files may hold, and splits that can't leak."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_router_r1.evaluation.metrics import normalise
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import QA_SETS, Task, TaskError, draw, load_tasks, read_tasks


def has_data() -> Path:
    directory = os.environ.get("ROUTER_R1_DATA")
    if not directory:
        pytest.skip("ROUTER_R1_DATA is not set: the data sets are not here")
    return Path(directory)


@given(st.text(min_size=1))
def test_a_questions_split_does_not_depend_on_how_it_is_written(question: str) -> None:
    task = Task("1", question, ("x",), "a")
    assert task.split == Task("2", f"  The {question.lower()}? ", ("y",), "b").split


def test_splits_have_their_shares() -> None:
    splits = [Task(str(n), f"question {n}", ("x",), "a").split for n in range(4000)]
    assert splits.count("train") / 4000 == pytest.approx(0.5, abs=0.03)
    assert splits.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.4, abs=0.03)


def test_no_question_is_in_two_splits_of_any_data_set() -> None:
    """PopQA asks what the pocket pool asks, and the recorded answers are to questions of the seven sets."""
    directory = has_data()
    tasks = [task for name in (*QA_SETS, "pocket") for task in load_tasks(name)]
    for file in sorted((directory / "pools").glob("*.jsonl")):
        tasks += RecordedPool.from_file(file).tasks.values()
    splits: dict[str, set[str]] = {}
    for task in tasks:
        splits.setdefault(normalise(task.question), set()).add(task.split)
    assert len(splits) > 6000
    assert {question for question, found in splits.items() if len(found) > 1} == set()


def test_pocket_tasks_keep_countries_apart() -> None:
    train, test = load_tasks("pocket", split="train"), load_tasks("pocket", split="test")
    assert len(train) > 2000
    assert len(test) > 1000
    assert not {task.id.split("-")[1] for task in train} & {task.id.split("-")[1] for task in test}


def test_the_seven_sets_load_with_their_golden_answers() -> None:
    has_data()
    for name in QA_SETS:
        tasks = load_tasks(name)
        assert len(tasks) >= 100
        assert all(task.dataset == name and task.golden_answers for task in tasks)


def test_a_sample_is_the_same_in_whatever_order_tasks_come() -> None:
    tasks = [Task(str(n), f"question {n}", ("x",), "a") for n in range(100)]
    assert draw(tasks, sample=10) == draw(reversed(tasks), sample=10)
    assert draw(tasks, sample=10, seed=1) != draw(tasks, sample=10)
    assert all(task.split == "test" for task in draw(tasks, split="test"))


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Capital of Peru?", "golden_answers": ["Lima"]}\n{"golden_answers": ["x"]}\n')
    with pytest.raises(TaskError, match=r"mine\.jsonl, line 2: 'question' is None"):
        read_tasks(file)
    file.write_text("[1]\n")
    with pytest.raises(TaskError, match=r"line 1: is a list"):
        read_tasks(file)
    file.write_text("{\n")
    with pytest.raises(TaskError, match=r"line 1: is no JSON"):
        read_tasks(file)
    with pytest.raises(TaskError, match="can't be read"):
        read_tasks(tmp_path / "none.jsonl")


def test_public_formats_are_read_alike(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [
        {"id": "a", "question": " Q? ", "golden_answers": ["x", "y"], "dataset": "d", "prop": "p"},
        {"prompt": "P?", "gold": 18.0},
        {"question": "R?", "gold": "z"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_tasks(file) == [
        Task("a", "Q?", ("x", "y"), "d", {"prop": "p"}),
        Task("mine-2", "P?", ("18",), "mine"),
        Task("mine-3", "R?", ("z",), "mine"),
    ]


def test_unknown_sets_and_splits_are_named() -> None:
    with pytest.raises(TaskError, match=r"no tasks 'nqq'; there are: nq, triviaqa"):
        load_tasks("nqq")
    with pytest.raises(TaskError, match="split is 'dev'"):
        load_tasks("pocket", split="dev")  # type: ignore[arg-type]


def test_a_data_directory_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_R1_DATA", "/no/such/place")
    with pytest.raises(TaskError, match=r"ROUTER_R1_DATA is '/no/such/place', which is no directory"):
        load_tasks("nq")
