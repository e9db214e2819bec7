"""The wiki pool: questions of several hops, the steps that answer them, and what its parts learn from."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.cache.memory import InMemoryCache
from typer.testing import CliRunner

from langgraph_router_r1.evaluation.bench import Bench
from langgraph_router_r1.evaluation.bench_file import BenchSpec
from langgraph_router_r1.evaluation.bench_routers import Routers
from langgraph_router_r1.evaluation.tasks import DATA_VARIABLE, Task, TaskError, load_tasks
from langgraph_router_r1.strategies.plans import parse_plan, plan_text
from langgraph_router_r1.testing import ByteTokenizer
from langgraph_router_r1.wiki import PASSAGES_FILE, TITLE_WEIGHT, passages, wiki_registry, word_retriever
from langgraph_router_r1.wiki.dates import UNKNOWN, compared, date_of
from langgraph_router_r1.wiki.world import true_model, true_steps

pytest.importorskip("apsw", reason="the [retrieval] extra is not installed")

PAGES = {
    "Blood Street": "Blood Street is a 1988 film directed by Leo Fong. It stars Fong as a private detective.",
    "Leo Fong (director)": "Leo Fong (23 November 1928 - 18 February 2022) was a director who was born in Canton.",
    "Night Street": "Night Street is a 1990 film directed by Ann Lee.",
    "Ann Lee": "Ann Lee (born 3 May 1950) is an American director. She was born in Lima.",
}
QUESTIONS = [
    ("Where was the director of film Blood Street born?", "Canton", "bridge"),
    ("Which film has the director who is older, Blood Street or Night Street?", "Blood Street", "comparison"),
    ("Where was the director of film Night Street born?", "Lima", "bridge"),
]

READ = {
    "Who is the director of the film Blood Street?": "Leo Fong",
    "Who is the director of the film Night Street?": "Ann Lee",
    "When was Leo Fong born?": "23 November 1928",
    "When was Ann Lee born?": "3 May 1950",
    "Where was Leo Fong born?": "Canton",
}
"""What a perfect reader reads in these passages."""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with a handful of passages."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [{"id": f"p{n}", "title": title, "text": text} for n, (title, text) in enumerate(PAGES.items())]
    (tmp_path / PASSAGES_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = [
        {"id": f"q{n}", "question": text, "golden_answers": [answer], "dataset": "2wiki_corpus", "kind": kind}
        for n, (text, answer, kind) in enumerate(QUESTIONS)
    ]
    file = corpus / "2wiki_questions_on_passages.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def training(data: Path) -> Any:
    """What the pool's parts learn from, over these passages."""
    pytest.importorskip("trl", reason="the [train] extra is not installed")
    from training import wiki_examples

    return wiki_examples


STEPS = {
    "Where was the director of film Blood Street born?": [
        "Who is the director of the film Blood Street?",
        "Where was #1 born?",
    ],
    "Who is Ann Lee's maternal grandmother?": ["Who is the mother of Ann Lee?", "Who is the mother of #1?"],
    "Which award the performer of song Why earned?": [
        "Who is the performer of the song Why?",
        "Which award did #1 win?",
    ],
    "What is the date of death of the father of the director of film Why?": [
        "Who is the director of the film Why?",
        "Who is the father of #1?",
        "When did #2 die?",
    ],
    "Which film whose director is younger, Up or Down?": [
        "Who is the director of the film Up?",
        "Who is the director of the film Down?",
        "When was #1 born?",
        "When was #2 born?",
        "Which date is later: (A) Up = #3 (B) Down = #4?",
    ],
    "Which film was released more recently, Up or Down?": [
        "When was the film Up released?",
        "When was the film Down released?",
        "Which date is later: (A) Up = #1 (B) Down = #2?",
    ],
    "Was Ann Lee or Bo Li born first?": [
        "When was Ann Lee born?",
        "When was Bo Li born?",
        "Which date is earlier: (A) Ann Lee = #1 (B) Bo Li = #2?",
    ],
    "Do director of film Up and director of film Down share the same nationality?": [
        "Who is the director of the film Up?",
        "Who is the director of the film Down?",
        "What nationality is #1?",
        "What nationality is #2?",
        "Are these the same country: (A) #3 (B) #4?",
    ],
    "Are both mountains, Big Hill and Old Hill, located in the same country?": [
        "Which country is Big Hill from?",
        "Which country is Old Hill from?",
        "Are these the same country: (A) #1 (B) #2?",
    ],
    "Does Ann Lee have the same nationality as Bo Li?": [
        "What nationality is Ann Lee?",
        "What nationality is Bo Li?",
        "Are these the same country: (A) #1 (B) #2?",
    ],
    "Who is the stepmother of Ann Lee?": ["Who is the father of Ann Lee?", "Who is the wife of #1?"],
    "Where was Ann Lee born?": [],  # one step by itself
    "Who wrote Emma?": [],
}


@pytest.mark.parametrize("question", STEPS)
def test_the_steps_of_a_question_are_read_off_its_words(question: str) -> None:
    assert [query for query, _ in true_steps(question)] == STEPS[question]


def test_true_steps_are_a_plan_as_the_planner_reads_it_and_each_has_its_model() -> None:
    for question, queries in STEPS.items():
        if queries:
            plan = parse_plan(plan_text(queries), question)
            assert plan.reason is None
            assert [step.text for step in plan.steps] == queries
            assert [true_model(query) for query in queries] == [model for _, model in true_steps(question)]


@pytest.mark.skipif(DATA_VARIABLE not in os.environ, reason=f"{DATA_VARIABLE} is not set")
def test_nearly_all_real_questions_have_steps() -> None:
    tasks = load_tasks("wiki")
    assert len(tasks) == 904
    assert sum(bool(true_steps(task.question)) for task in tasks) >= 0.97 * len(tasks)


@given(st.text(max_size=300))
def test_no_text_breaks_the_reading_of_steps_or_the_comparison(text: str) -> None:
    true_steps(text)
    compared(text)
    date_of(text)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which date is earlier: (A) Up = 22 January 1794 (B) Down = February 22, 1720?", "Down"),
        ("Which date is later: (A) Up = 1949 (B) Down = 3 May 1950?", "Down"),
        ("Which date is earlier: (A) Up = 4 May 1950 (B) Down = 3 May 1950?", "Down"),
        ("Which date is earlier: (A) A = B = 1950 (B) Down (B) = 1951?", "A"),
        ("Which date is earlier: (A) Up = Lima (B) Down = 3 May 1950?", UNKNOWN),
        ("Are these the same country: (A) American (B) the United States?", "yes"),
        ("Are these the same country: (A) Italian (B) Italy?", "yes"),
        ("Are these the same country: (A) French (B) British?", "no"),
        ("Are these the same country: (A) Dutch (B) Dutchess County?", "no"),
        ("Who wrote Emma?", UNKNOWN),
    ],
)
def test_two_dates_and_two_countries_are_compared(question: str, answer: str) -> None:
    assert compared(question) == answer


@pytest.mark.usefixtures("data")
def test_each_model_of_the_pool_reads_as_many_passages_as_it_says() -> None:
    registry = wiki_registry("nowhere")  # no reader is needed to look at descriptors
    assert registry.names == ("smol", "search", "library", "dates")
    assert [registry[name].model.k for name in ("search", "library")] == [1, 10]
    assert {registry[name].model.retriever.title_weight for name in ("search", "library")} == {TITLE_WEIGHT}
    assert len(word_retriever(2).invoke("Who is the director of the film Blood Street?")) == 2
    assert [passage.metadata["title"] for passage in passages()] == list(PAGES)


def test_without_a_data_directory_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    for needs in (passages, lambda: load_tasks("wiki")):
        with pytest.raises(TaskError, match=DATA_VARIABLE):
            needs()


def test_the_benchmark_tells_runs_with_other_passages_apart(data: Path, tmp_path: Path) -> None:
    (tmp_path / "reader").mkdir()
    (tmp_path / "reader" / "adapter_model.safetensors").write_bytes(b"weights")
    pool = {"wiki": "reader"}
    spec = BenchSpec(title="t", pool=pool, tasks=("wiki",), split="all", rows=({"router": "search"},), metrics=("em",))
    before = Bench(spec, tmp_path / "runs", name="wiki", directory=tmp_path)._fingerprint()["files"]
    (data / PASSAGES_FILE).write_text(json.dumps({"id": "p0", "title": "Up", "text": "Up."}) + "\n", encoding="utf-8")
    assert Bench(spec, tmp_path / "more", name="wiki", directory=tmp_path)._fingerprint()["files"] != before


async def test_the_true_plan_gives_each_step_to_its_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langgraph_router_r1.wiki._Reader.read", lambda _, question, texts: READ[question])
    (data / "reader").mkdir()
    (data / "reader" / "adapter_model.safetensors").write_bytes(b"weights")
    row = {"router": "planner", "name": "true plan", "model": "true-steps", "allocator": "true-steps"}
    spec = BenchSpec(title="t", pool={"wiki": "reader"}, tasks=("wiki",), split="all", rows=(row,), metrics=("em",))
    bench = Bench(spec, tmp_path / "runs", name="wiki", directory=data)
    async with contextlib.AsyncExitStack() as stack:
        planner = await Routers(bench, InMemoryCache(), None, stack, lambda _: None).of(bench.rows[0])
        result = await planner.ainvoke({"messages": [("user", QUESTIONS[1][0])]})
    assert result["answer"] == QUESTIONS[1][1]
    assert [call["model"] for call in result["routing"]["calls"]] == ["search"] * 4 + ["dates"]


# What its parts learn from


def test_the_result_of_the_first_step_is_found_in_the_passages(training: Any) -> None:
    found = {one.question: one.answer for one in training.reading_examples(load_tasks("wiki"))}
    assert found["Who is the director of the film Blood Street?"] == "Leo Fong"
    assert found["Where was Leo Fong born?"] == "Canton"


def test_a_passage_without_the_answer_is_learned_from_too_and_says_so(training: Any) -> None:
    [one] = [one for one in training.reading_examples(load_tasks("wiki")) if one.question == "Where was Leo Fong born?"]
    with_answer, without = one.examples(other=True)
    assert with_answer.answer == "Canton"
    assert with_answer.passage.startswith("Leo Fong (director). Leo Fong (23 November 1928")
    assert without.answer == ""
    assert "Canton" not in without.passage
    assert list(one.examples(other=False)) == [with_answer]


def test_patterns_take_nothing_from_passages_that_questions_of_other_splits_are_about(training: Any) -> None:
    splits = {task.question: task.split for task in load_tasks("wiki")}
    assert [splits[question] for question, _, _ in QUESTIONS] == ["train", "train", "test"]
    away = training.kept_away()
    assert away == {"night street", "ann lee"}
    everything, taken = (list(training.facts(titles, random.Random(0))) for titles in (set[str](), away))
    assert "Ann Lee" in {one.answer for one in everything}
    assert {one.answer for one in taken} == {"Leo Fong", "1988", "23 November 1928", "18 February 2022", "Canton"}


def test_other_sets_add_questions_of_the_train_split_about_nobody_who_is_kept_away(data: Path, training: Any) -> None:
    rows = [
        {"question": f"Who lives in house {n}?", "golden_answers": ["Bo Li"],
         "passages": [{"title": "Nobody", "text": "Empty."}, {"title": f"House {n}", "text": "Bo Li lives here."}]}
        for n in range(40)
    ]  # fmt: skip
    for name in training.OTHER_QUESTIONS:
        file = data / "corpus" / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = list(training.other_questions(set()))
    train = {str(row["question"]) for row in rows if Task("t", str(row["question"]), (), "d").split == "train"}
    assert 5 < len(train) < 35
    assert {one.question for one in found} == train
    assert {one.answer for one in found} == {"Bo Li"}
    titles = {f"house {n}" for n in range(40)}
    assert not list(training.other_questions(titles))


async def test_the_router_learns_from_runs_of_the_graph_that_come_to_the_answer(
    data: Path, training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.teacher import collect_demonstrations
    from training.wiki_teacher import wiki_demonstrations

    monkeypatch.setattr("langgraph_router_r1.wiki._Reader.read", lambda _, question, texts: READ[question])
    asked = training.questions_to_learn(2, random.Random(1))
    shown = list(wiki_demonstrations(asked, wiki_registry(data / "reader"), seed=1))
    assert {one.question for one in shown} == {QUESTIONS[0][0], QUESTIONS[1][0]}
    for one, run in zip(shown, await collect_demonstrations(shown, ByteTokenizer()), strict=True):
        written = bytes(token for token, own in zip(run["token_ids"], run["mask"], strict=True) if own).decode()
        golden = {question: answer for question, answer, _ in QUESTIONS}[one.question]
        assert f"<answer> {golden} </answer>" in written
        assert "Leo Fong" in written.partition("</search>")[2]  # what came back is what is asked about next
        told = bytes(run["token_ids"]).decode()
        assert all(f"Name: {name}." in told for name in one.pool.aliases)


def test_pools_are_drawn_in_all_orders_and_all_words_a_third_each_under_own_neutral_and_invented_names(
    training: Any,
) -> None:
    from training.wiki_teacher import DESCRIPTIONS, NAMES, drawn_pool

    pool, choose = wiki_registry("reader"), random.Random(0)
    drawn = [drawn_pool(pool, choose) for _ in range(300)]
    assert len({one.names for one in drawn}) == 24
    renamed = [one for one in drawn if one.aliases != one.names]
    assert all(not set(one.aliases) & set(one.names) for one in renamed)
    neutral = [one for one in renamed if all(re.fullmatch(rf"({'|'.join(NAMES)})-\d+", alias) for alias in one.aliases)]
    for count in (len(drawn) - len(renamed), len(neutral), len(renamed) - len(neutral)):
        assert 70 < count < 130
    assert len({alias for one in renamed if one not in neutral for alias in one.aliases}) > 250
    for model in pool:
        assert {one[model.name].description for one in drawn} == set(DESCRIPTIONS[model.name])
        assert model.description in DESCRIPTIONS[model.name]


def test_replies_that_cannot_be_told_apart_end_the_teachers_run(training: Any) -> None:
    from training.wiki_teacher import turn

    plan = parse_plan("1. Who directed Up?\n2. Who directed Down?\n3. Which date is earlier: #1 or #2?", "?")
    names = {1: "search", 2: "search", 3: "dates"}
    assert "<search> search: Who directed Up?\nsearch: Who directed Down? </search>" in turn(plan, names, [])
    assert "dates: Which date is earlier: Al or Bo?" in turn(plan, names, ["search: Al\nsearch: Bo"])
    assert turn(plan, names, ["search: Al"]).endswith("<answer> unknown </answer>")


def test_a_question_about_others_has_the_same_steps_about_others(training: Any) -> None:
    films, people = ["Old Film", "New Film"], ["Zo Ra", "Ti Mu"]
    for question, steps in STEPS.items():
        changed = training.renamed(question, films, people, random.Random(1))
        if not steps:
            assert changed is None
        elif changed is not None:
            new = [query for query, _ in true_steps(changed)]
            assert len(new) == len(steps)
            assert not any(name in changed for name in ("Ann Lee", "Bo Li", "Blood Street", "Up", "Down"))
    changed = training.renamed("Which film whose director is younger, Up or Down?", films, people, random.Random(2))
    assert changed in {
        f"Which film whose director is younger, {one}?" for one in ("Old Film or New Film", "New Film or Old Film")
    }
    assert training.renamed("Who is older, Ann Lee or Bo Li?", films, ["Zo Ra"], random.Random(1)) is None
    unclear = ["Zo or Ra", "Ti or Mu"]  # where the first name ends can't be told
    assert training.renamed("Who is older, Ann Lee or Bo Li?", films, unclear, random.Random(1)) is None


def test_plans_beyond_the_questions_are_about_others_and_nobody_of_the_other_splits(
    data: Path, training: Any, tmp_path: Path
) -> None:
    from training.wiki import cli

    film, person = training.names_to_draw()
    assert (film, person) == (["Blood Street"], ["Leo Fong"])  # the others are what a test question is about
    file = tmp_path / "plans.jsonl"
    result = CliRunner().invoke(cli, ["plans", "--output", str(file), "--examples", "6"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == json.loads(result.stdout)["examples"] == 6
    for row in rows:
        assert row["plan"] == plan_text(query for query, _ in true_steps(row["question"]))
    assert {row["question"] for row in rows} == {question for question, _, _ in QUESTIONS[:2]}


@pytest.mark.usefixtures("training")
def test_no_description_of_training_is_one_that_the_forms_of_the_pool_are_tested_with() -> None:
    from training.wiki_teacher import DESCRIPTIONS

    file = Path(__file__).parent.parent / "benchmarks" / "wiki_robustness.toml"
    forms = tomllib.loads(file.read_text(encoding="utf-8"))["forms"]
    tested = {text for form in forms for text in form.get("descriptions", {}).values()}
    assert len(tested) == 20
    assert not tested & {text for texts in DESCRIPTIONS.values() for text in texts}
