"""Benchmarks: the table is right, the same for the same seed, and no crash costs a run."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import pool
from test_files import full_disk
from typer.testing import CliRunner

from langgraph_router_r1.cli import cli
from langgraph_router_r1.evaluation import report
from langgraph_router_r1.evaluation.bench import Bench
from langgraph_router_r1.evaluation.bench_file import BenchError
from langgraph_router_r1.evaluation.bench_routers import Routers
from langgraph_router_r1.evaluation.bench_store import PACKED_FILE, RUNS_FILE, read_runs
from langgraph_router_r1.evaluation.files import JsonLinesWriter
from langgraph_router_r1.evaluation.page import publish, results_page
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.report import COST_PARTS, Results, Scores, frontier, frontier_areas
from langgraph_router_r1.evaluation.tasks import TaskError, json_lines
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.strategies.allocators import ProfileAllocator

ROOT = Path(__file__).parent.parent
KINDS = ("models", "random", "cheapest", "most_expensive", "best", "majority", "oracle")


def recorded(directory: Path, rows: str = "", questions: int = 60, head: str = "", forms: str = "") -> Path:
    """A benchmark file over recorded answers: `good` knows three of four answers, `poor` every third."""
    with (directory / "records.jsonl").open("w") as file:
        for n in range(questions):
            outcomes = {
                name: {
                    "response": f"It is right{n}." if knows else "No.",
                    "completion_tokens": 4,
                    "cost_usd": price * 4e-6,
                }
                for name, knows, price in (("good", n % 4 != 0, 1.0), ("poor", n % 3 == 0, 0.1))
            }
            row = {"id": f"t{n}", "question": f"question {n}?", "golden_answers": [f"right{n}"], "outcomes": outcomes}
            file.write(json.dumps(row) + "\n")
    rows = rows or "".join(f'[[rows]]\nrouter = "{kind}"\n' for kind in KINDS)
    file_name = directory / "small.toml"
    file_name.write_text(
        f'title = "Small"\nmetrics = ["contains", "em", "score"]\n'
        f'{head if "reference" in head else f"""reference = "best"{chr(10)}{head}"""}'
        f'[pool]\nrecords = ["records.jsonl"]\n{rows}{forms}'
    )
    return file_name


def run(bench: Bench) -> Results:
    return bench.results(asyncio.run(bench.run()))


def figures(results: Results) -> Any:
    """All that is in the table: not the time runs took."""
    return [(row.row, row.metrics, row.cost_usd, row.calls, row.turns, row.failures) for row in results.rows]


def test_every_row_is_scored_on_the_same_questions_and_as_by_hand(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    results = run(bench)
    numbers = [int(task.removeprefix("t")) for task in results.tasks]
    assert all(task.split == "test" for task in bench.tasks)
    assert results["good"].metrics["contains"] == [float(n % 4 != 0) for n in numbers]
    assert results["poor"].metrics["contains"] == [float(n % 3 == 0) for n in numbers]
    assert results["oracle"].metrics["contains"] == [float(n % 4 != 0 or n % 3 == 0) for n in numbers]
    assert results["good"].metrics["em"] == [0.0] * len(numbers)  # a sentence is no short answer
    for row in results.rows:
        assert row.metrics["score"] == row.metrics["contains"]
    assert results["good"].costs == pytest.approx([4e-6] * len(numbers))
    assert results["majority"].calls == {"good": len(numbers), "poor": len(numbers)}
    assert results["most_expensive"].calls == results["best"].calls == {"good": len(numbers)}
    assert results["majority"].entropy_bits == pytest.approx(1.0)
    assert results["good"].entropy_bits == 0.0


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(tmp_path: Path) -> None:
    first = run(Bench.from_file(recorded(tmp_path), tmp_path / "a"))
    assert figures(run(Bench.from_file(recorded(tmp_path), tmp_path / "b"))) == figures(first)
    other = run(Bench.from_file(recorded(tmp_path, head="seed = 1\n"), tmp_path / "c"))
    assert other["random"].calls != first["random"].calls or other["random"].metrics != first["random"].metrics


def test_the_page_of_results_is_of_ones_own_benchmarks_beside_whose_files_a_registry_may_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path, rows='[[rows]]\nrouter = "cheapest"\n[[rows]]\nrouter = "best"\n')
    Path("models.toml").write_text('[models.a]\nmodel = "openai:x"\nprice = 1\n')
    page = results_page(Path(), Path("mine"))
    assert "`router-r1 bench small.toml --publish mine`" in page
    assert "from the files in `mine/`" in page


def test_questions_that_were_seen_are_left_out_and_no_others(tmp_path: Path) -> None:
    def ids(head: str) -> set[str]:
        return {task.id for task in Bench.from_file(recorded(tmp_path, head=head), tmp_path / "runs").tasks}

    every, seen = ids(""), ids("sample = 5\n")
    assert ids("seen = 5\n") == every - seen
    assert len(seen) == 5
    assert len(ids("seen = 5\nsample = 3\n") - seen) == 3
    with pytest.raises(BenchError, match="there is no task in the split 'test' beyond the 60 that were seen"):
        ids("seen = 60\n")


def test_what_was_run_is_not_run_again_and_rows_can_be_added(tmp_path: Path) -> None:
    file = recorded(tmp_path, rows='[[rows]]\nrouter = "cheapest"\n[[rows]]\nrouter = "best"\n')
    run(Bench.from_file(file, tmp_path / "runs"))
    before = read_runs(tmp_path / "runs")
    ended: list[Any] = []
    asyncio.run(Bench.from_file(recorded(tmp_path), tmp_path / "runs").run(ended.append))
    assert before
    assert read_runs(tmp_path / "runs").items() >= before.items()
    assert {run["row"] for run in ended} == {"good", "poor", "random", "most_expensive", "majority", "oracle"}


def test_a_benchmark_says_what_takes_time_before_its_first_run_ends(tmp_path: Path) -> None:
    bench = Bench.from_file(
        recorded(tmp_path, rows='[[rows]]\nrouter = "knn"\n[[rows]]\nrouter = "best"\n'), tmp_path / "runs"
    )
    told: list[str] = []
    asyncio.run(bench.run(lambda _: told.append("a run"), told.append))
    before = told[: told.index("a run")]
    assert before[0].startswith("embedding texts: 0 of ")
    assert "preparing knn" in before


def test_only_replies_that_a_cascade_may_read_are_embedded_beforehand(tmp_path: Path) -> None:
    file = recorded(tmp_path, rows='[[rows]]\nrouter = "best"\n[[rows]]\nrouter = "cascade"\n')
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    for row in records:  # a model that is dearer than a better one
        row["outcomes"]["worse"] = {"response": "Perhaps.", "completion_tokens": 4, "cost_usd": 1e-5}
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    bench = Bench.from_file(file, tmp_path / "runs")
    texts = bench._texts_to_embed(bench._missing({}))
    assert {text.split("\n")[1].split()[0] for text in texts} == {"It", "No."}
    assert not any("Perhaps." in text for text in texts)


def test_runs_of_a_row_that_was_taken_out_of_the_file_are_left_out(tmp_path: Path) -> None:
    run(Bench.from_file(recorded(tmp_path), tmp_path / "runs"))
    fewer = Bench.from_file(recorded(tmp_path, rows='[[rows]]\nrouter = "best"\n'), tmp_path / "runs")
    assert {row for row, _ in fewer.finished()} == {"best"}
    assert {row for row, _ in read_runs(tmp_path / "runs")} > {"best"}


def test_runs_of_another_benchmark_are_not_mixed_in(tmp_path: Path) -> None:
    run(Bench.from_file(recorded(tmp_path), tmp_path / "runs"))
    changed = Bench.from_file(recorded(tmp_path, head="seed = 1\n"), tmp_path / "runs")
    with pytest.raises(BenchError, match=r"holds runs of another version of 'small'"):
        changed.finished()


def test_a_row_that_became_another_one_is_not_taken_for_done(tmp_path: Path) -> None:
    def rows(weight: float) -> str:
        return f'[[rows]]\nrouter = "best"\ncost_weights = [{weight}]\n'

    run(Bench.from_file(recorded(tmp_path, rows=rows(0.9)), tmp_path / "runs"))
    with pytest.raises(BenchError, match=r"holds runs of another row 'best'"):
        Bench.from_file(recorded(tmp_path, rows=rows(0.0)), tmp_path / "runs").finished()


def test_other_records_are_another_benchmark_and_a_cut_off_fingerprint_is_named(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    run(Bench.from_file(file, tmp_path / "runs"))
    records = tmp_path / "records.jsonl"
    records.write_text(records.read_text().replace("It is right3.", "It is wrong."))
    with pytest.raises(BenchError, match="its files differ"):
        Bench.from_file(file, tmp_path / "runs").finished()
    (tmp_path / "runs" / "benchmark.json").write_text('{"spec": ')
    with pytest.raises(BenchError, match=r"benchmark\.json can't be read"):
        Bench.from_file(file, tmp_path / "runs").finished()


def test_two_sets_may_use_the_same_ids(tmp_path: Path) -> None:
    for name in ("one", "two"):
        rows = ({"id": f"t{n}", "question": f"{name} {n}?", "golden_answers": ["x"]} for n in range(20))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pool.toml").write_text('[models.m]\nmodel = "openai:m"\nprice = 1\n')
    file = tmp_path / "b.toml"
    file.write_text(
        'title = "Two"\ntasks = ["one.jsonl", "two.jsonl"]\nsplit = "all"\n'
        '[pool]\nregistry = "pool.toml"\n[[rows]]\nrouter = "m"\n'
    )
    assert {task.id for task in Bench.from_file(file, tmp_path / "runs").tasks} >= {"one/t1", "two/t1"}


def test_runs_of_ones_own_adapters_are_not_mixed_with_those_of_newer_ones(tmp_path: Path) -> None:
    best, own = '[[rows]]\nrouter = "best"\n', '[[rows]]\nrouter = "router"\nmodel = "own"\n'

    def bench(rows: str, head: str = 'adapters = ["mine"]\n') -> Bench:
        file = recorded(tmp_path, head=head, rows=rows)
        file.write_text(file.read_text().replace(', "score"]', "]"))
        return Bench.from_file(file, tmp_path / "runs")

    with pytest.raises(BenchError, match="needs 'mine'"):
        run(bench(best))
    for name in ("own", "unused"):
        weights = tmp_path / "mine" / name / "adapter_model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"one")
    run(bench(best, head=""))
    assert bench(best + own).finished(), "a directory that was added changes no run"
    kept = tmp_path / "runs" / "benchmark.json"
    fingerprint = json.loads(kept.read_text())

    def finished_after(**adapters: str) -> int:
        kept.write_text(json.dumps({**fingerprint, "adapters": adapters}))
        return len(bench(best + own).finished())

    # A row that was added brings its adapter; one that no row uses may be what it likes.
    assert finished_after() == finished_after(unused="older") > 0
    with pytest.raises(BenchError, match="the adapter 'own' differs"):
        finished_after(own="older")
    # A row that is gone may come back, and its adapter is known.
    kept.write_text(json.dumps({**fingerprint, "adapters": {"own": "older"}}))
    run(bench(best + '[[rows]]\nrouter = "random"\n'))
    assert json.loads(kept.read_text())["adapters"] == {"own": "older"}


def test_a_line_that_a_crash_cut_off_is_run_again(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    whole = run(bench)
    file = unpacked(tmp_path / "runs")
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    assert figures(run(bench)) == figures(whole)


def test_finished_runs_are_compressed_and_each_holds_its_whole_record(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    run(bench)
    assert (tmp_path / "runs" / RUNS_FILE).stat().st_size == 0
    runs = read_runs(tmp_path / "runs")
    assert runs == bench.finished()
    assert (tmp_path / "runs" / PACKED_FILE).stat().st_size < len(json.dumps(list(runs.values()))) / 10
    for (row, task), one in runs.items():
        record = RunRecord.model_validate(one["record"])
        assert record.question == f"question {task.removeprefix('t')}?"
        if row == "best":
            assert one["reply"] == record.calls[-1]["response"]


def test_a_benchmark_killed_while_its_runs_are_compressed_loses_and_doubles_none(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    whole = run(bench)
    runs = (tmp_path / "runs" / PACKED_FILE).read_bytes()
    unpacked(tmp_path / "runs")
    (tmp_path / "runs" / PACKED_FILE).write_bytes(runs)  # written, and the other file not yet emptied
    (tmp_path / "runs" / f".{PACKED_FILE}.partial").write_bytes(runs[:100])
    assert figures(run(bench)) == figures(whole)
    assert (tmp_path / "runs" / RUNS_FILE).stat().st_size == 0
    assert len(list(json_lines(tmp_path / "runs" / PACKED_FILE))) == len(whole.rows) * len(whole.tasks)


def test_a_benchmark_killed_before_its_runs_were_compressed_asks_nobody_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    whole = run(bench)
    unpacked(tmp_path / "runs")
    monkeypatch.setattr("langgraph_router_r1.evaluation.bench.open_routers", None)  # would start a server
    assert figures(run(bench)) == figures(whole)
    assert (tmp_path / "runs" / RUNS_FILE).stat().st_size == 0


def test_what_was_never_run_comes_before_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else failures that repeat would use up each budget, and a benchmark would never end."""
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    run(bench)
    file = unpacked(tmp_path / "runs")
    failed, *others, never_run = map(json.loads, file.read_text().splitlines())
    failed["record"]["calls"][0]["status"] = "error"
    file.write_text("".join(json.dumps(one) + "\n" for one in (failed, *others)))
    order: list[tuple[str, str]] = []

    async def note(_: Bench, missing: Any, *__: Any) -> None:
        order.extend((row.name, task.id) for row, task in missing)

    monkeypatch.setattr(Bench, "_run", note)
    with pytest.raises(BenchError, match="2 of 160 runs are not made"):
        asyncio.run(bench.run(retry_failed=True))
    assert order == [(one["row"], one["task_id"]) for one in (never_run, failed)]


def test_runs_of_an_older_format_and_damaged_ones_are_named(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    run(bench)
    packed, about = tmp_path / "runs" / PACKED_FILE, tmp_path / "runs" / "benchmark.json"
    fingerprint = json.loads(about.read_text())
    about.write_text(json.dumps({key: value for key, value in fingerprint.items() if key != "format"}))
    with pytest.raises(BenchError, match=r"another version of 'small' .*format is 1 and must be 2"):
        run(bench)
    about.write_text(json.dumps(fingerprint))
    whole = packed.read_bytes()
    for damaged in (b"no frame" + whole, whole[:-5], whole[:40], whole[: len(whole) // 2]):
        packed.write_bytes(damaged)
        with pytest.raises(TaskError, match=r"runs\.jsonl\.zst' can't be decompressed"):
            run(bench)
        assert packed.read_bytes() == damaged
    packed.write_bytes(whole)
    assert len(run(bench).tasks) == len(bench.tasks)


def test_looking_at_the_runs_changes_no_file(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    run(bench)
    file = unpacked(tmp_path / "runs")
    file.write_bytes(half := file.read_bytes()[:-20])
    assert len(bench.finished()) == half.count(b"\n")
    assert file.read_bytes() == half, "another process may be writing that line"


def test_a_benchmark_on_a_full_disk_is_a_clear_error_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    whole = run(Bench.from_file(file, tmp_path / "whole"))
    bench = Bench.from_file(file, tmp_path / "runs")
    with full_disk(40_000), pytest.raises(TaskError, match=r"runs\.jsonl' can't be written: File too large"):
        run(bench)
    lines = (tmp_path / "runs" / RUNS_FILE).read_text().split("\n")
    assert len(lines) > 2
    assert all(json.loads(line) for line in lines[:-1])
    assert not lines[-1]
    assert figures(run(bench)) == figures(whole)


def test_a_benchmark_that_another_process_is_running_is_not_run_a_second_time(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    with (
        JsonLinesWriter(tmp_path / "runs" / RUNS_FILE),
        pytest.raises(TaskError, match=r"runs\.jsonl' is being written by"),
    ):
        run(bench)
    run(bench)
    assert not [entry for entry in (tmp_path / "runs").iterdir() if "partial" in entry.name]


def test_a_file_of_replies_that_is_no_cache_is_a_clear_error(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    run(bench)
    (tmp_path / "runs" / "calls.sqlite").write_text("no database" * 100)
    (tmp_path / "runs" / PACKED_FILE).unlink()
    with pytest.raises(BenchError, match=r"calls\.sqlite' can't be used: file is not a database"):
        run(bench)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5000, "is nested too deeply"),
        ("a = " + "1" * 5000, "can't be read: "),
        ('title = "x"\napi_key = "sk-canary"', "api_key: extra inputs are not permitted"),
        ("router_price = inf", "router_price: input should be a finite number"),
        ("router_price = -1", "router_price: .* and is -1"),
    ],
)
def test_a_hostile_benchmark_file_is_a_clear_error_without_secrets(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(BenchError, match=message) as raised:
        Bench.from_file(tmp_path / "b.toml", tmp_path / "runs")
    assert "canary" not in str(raised.value)


def test_runs_can_be_scored_anew_from_their_file(tmp_path: Path) -> None:
    bench = Bench.from_file(recorded(tmp_path), tmp_path / "runs")
    results = run(bench)
    lines = read_runs(tmp_path / "runs").values()
    again = report.score_runs(
        sorted(lines, key=lambda line: (line["row"], results.tasks.index(line["task_id"]))),
        [(row.name, row.family, row.cost_weight) for row in bench.rows],
        metrics=["contains", "f1"],
        name="small",
        title="Small",
    )
    assert again["good"].metrics["contains"] == results["good"].metrics["contains"]
    assert max(again["good"].metrics["f1"]) == pytest.approx(0.5)  # "it is right1" against "right1"


def test_lengths_are_candidates_of_a_benchmark(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    file.write_text(file.read_text().replace("records = [", "lengths = { short = 1 }\nrecords = ["))
    names = Bench.from_file(file, tmp_path / "runs").names
    assert [name for name in names if name.endswith(" (short)")] == [
        f"{name} (short)" for name in names[: len(names) // 2]
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title", "titel"), r"titel: extra inputs are not permitted"),
        (('"contains"', '"rouge"'), r"metrics are rouge, em, score; here they may be em, f1"),
        (("records = [", "pocket = true\nrecords = ["), r"exactly one of 'records', 'registry', 'pocket' and 'wiki'"),
        (
            ('records = ["records.jsonl"]', "pocket = true\nlengths = {short = 9}"),
            r"'lengths', which are for 'records' only",
        ),
        (("records.jsonl", "others.jsonl"), r"needs 'others.jsonl', which is neither beside"),
        (('router = "random"', 'router = "cheapest"'), r"two rows have the same name"),
        (('router = "random"', 'router = "rndom"'), r"a row has router = 'rndom'; it may be models, router, prompted"),
        (('router = "random"', 'router = "prompted"'), r"router = 'prompted' needs a 'model'"),
        (('router = "random"', 'router = "prompted"\nmodel = "openai:x"'), r"say with 'router_price' what it costs"),
        (('router = "random"', 'router = "router"'), r"row 'router' answers in words of its own"),
        (('router = "random"', 'router = "random"\ncost_weights = []'), r"cost_weights: tuple should have at least 1"),
        (('reference = "best"', 'reference = "bst"'), r"reference is 'bst'; it must be a row: good, poor"),
    ],
)
def test_what_is_wrong_with_a_benchmark_file_is_said_before_anything_runs(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    file = recorded(tmp_path)
    file.write_text(file.read_text().replace(*change, 1))
    with pytest.raises(BenchError, match=message):
        Bench.from_file(file, tmp_path / "runs")


# Reports


def test_results_survive_their_file_and_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    results = run(Bench.from_file(recorded(tmp_path), tmp_path / "runs"))
    results.save(tmp_path / "small.jsonl")
    loaded = Results.load(tmp_path / "small.jsonl")
    assert figures(loaded)[0][0] == "good"
    assert report.markdown_table(loaded) == report.markdown_table(results)
    with pytest.raises(TaskError, match="holds no results"):
        Results.load(tmp_path / "records.jsonl")


def test_published_results_keep_how_long_real_models_took_and_not_how_long_records_took_to_look_up(
    tmp_path: Path,
) -> None:
    row = Scores(
        "a", "a", 0.0, {"em": [1.0, 0.0]}, {part: [0.0, 0.0] for part in COST_PARTS}, {}, [1, 1], [0.5, 1.5], {}
    )
    recorded = Results("small", "Small", ("em",), ("t0", "t1"), (row,))
    for results, seconds in ((recorded, None), (replace(recorded, live=True), 1.0)):
        results.save(tmp_path / "small.jsonl")
        assert Results.load(tmp_path / "small.jsonl")["a"].median_s == seconds


def test_the_frontier_is_the_upper_hull_and_its_area_the_mean_over_budgets(tmp_path: Path) -> None:
    assert frontier([(2.0, 0.3), (1.0, 0.5), (2.0, 0.6), (3.0, 0.9)]) == [(0.0, 0.0), (1.0, 0.5), (3.0, 0.9)]
    assert report._area([(1.0, 0.5)], 2.0) == pytest.approx((0.5 * 0.5 + 0.5) / 2)
    rows = '[[rows]]\nrouter = "best"\ncost_weights = [0, 1]\n[[rows]]\nrouter = "most_expensive"\n'
    head = 'reference = "most_expensive"\n'
    file = recorded(tmp_path, rows=rows)
    file.write_text(file.read_text().replace('reference = "best"\n', head))
    results = run(Bench.from_file(file, tmp_path / "runs"))
    [(family, area)] = frontier_areas(results).items()
    cheap, dear = (results[f"best {weight}"].estimate("contains").mean for weight in (1, 0))
    by_hand = 0.5 * cheap * 0.1 + 0.5 * (cheap + dear) * 0.9  # the cheap one costs a tenth of the dear one
    assert family == "best"
    assert area.mean == pytest.approx(by_hand)
    assert area.low < area.mean < area.high


def test_rows_are_told_what_mixing_single_models_at_their_cost_would_score(tmp_path: Path) -> None:
    rows = '[[rows]]\nrouter = "models"\n[[rows]]\nrouter = "random"\n'
    file = recorded(tmp_path, rows=rows)
    file.write_text(file.read_text().replace('reference = "best"\n', ""))
    results = run(Bench.from_file(file, tmp_path / "runs"))
    assert [row.row for row in report.single_models(results)] == ["good", "poor"]
    (cheap, cheap_cost), (dear, dear_cost) = sorted(
        (results[name].estimate("contains").mean, sum(results[name].costs) / len(results.tasks))
        for name in ("good", "poor")
    )
    assert cheap_cost < dear_cost
    half = report.mixture(results, (cheap_cost + dear_cost) / 2)
    assert half == pytest.approx((cheap + dear) / 2)
    assert report.mixture(results, 9 * dear_cost) == pytest.approx(dear)
    line = dict(zip(report.columns(results), report.cells(results, results["random"]), strict=True))
    cost = sum(results["random"].costs) / len(results.tasks)
    assert line[report.MIXTURE_COLUMN] == f"{report.mixture(results, cost):.3f}"
    alone = dict(zip(report.columns(results), report.cells(results, results["good"]), strict=True))
    assert alone[report.MIXTURE_COLUMN] == ""


def test_a_page_is_made_from_result_files_and_says_what_was_not_run(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    results = run(Bench.from_file(file, tmp_path / "runs"))
    publish(results, tmp_path / "results")
    page = results_page(tmp_path, tmp_path / "results")
    assert f"| good | {results['good'].estimate('contains')} |" in page
    assert "![frontier](results/small-frontier.svg)" in page
    drawn = (tmp_path / "results" / "small-frontier.svg").read_text()
    publish(results, tmp_path / "results")
    assert (tmp_path / "results" / "small-frontier.svg").read_text() == drawn
    (tmp_path / "results" / "small.jsonl").unlink()
    assert "**Not run**" in results_page(tmp_path, tmp_path / "results")


def test_the_page_of_results_in_the_documents_is_what_its_files_say() -> None:
    page = results_page(ROOT / "benchmarks", ROOT / "docs" / "results")
    assert (ROOT / "docs" / "results.md").read_text() == page
    assert len(list((ROOT / "docs" / "results").glob("*.jsonl"))) >= 5


def test_the_command_prints_the_table_and_compares_rows(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    command = ["bench", str(file), "--output", str(tmp_path / "runs")]
    result = CliRunner().invoke(cli, [*command, "--compare", "good", "--compare", "poor"], env={"COLUMNS": "250"})
    assert result.exit_code == 0
    assert "majority" in result.stdout
    assert re.search(r"good - poor: contains \+0\.\d{4} \[[+-]\d\.\d{4}, \+\d\.\d{4}\], p = 0\.\d{4}", result.stdout)
    assert (tmp_path / "runs" / "small.jsonl").exists()

    narrow = CliRunner().invoke(cli, command, env={"COLUMNS": "80"}).stdout
    table = narrow[: narrow.index("no room here for")]
    assert "prompt + cached" in result.stdout
    assert "prompt + cached" not in table
    assert "…" not in narrow, "a narrow terminal shows fewer columns, and no value that is cut"
    row = next(line for line in table.splitlines() if "majority" in line)
    assert row.count("]") == 2, "quality and cost, with their intervals, are what is left"
    piped = CliRunner().invoke(cli, command).stdout
    assert "prompt + cached" in piped, "a pipe is as wide as the table"
    assert "no room" not in piped

    wrong = CliRunner().invoke(cli, [*command, "--compare", "good", "--compare", "none"])
    assert wrong.exit_code == 1
    assert "has no such row; it has: good, poor" in " ".join(wrong.stderr.split())


@pytest.mark.vllm
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings(r"ignore:unclosed (transport|<socket):ResourceWarning")
def test_a_router_may_be_on_a_server_of_its_own_and_then_no_other_is_started(
    tmp_path: Path, pocket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langgraph_router_r1.evaluation.bench_routers._started_server", None)
    row = f'[[rows]]\nrouter = "router"\nname = "mine"\nmodel = "router"\nurl = "{pocket.base_url}"\n'
    file = recorded(tmp_path, head="sample = 3\n", rows=row + '[[rows]]\nrouter = "best"\n')
    file.write_text(file.read_text().replace(', "score"', ""))
    results = run(Bench.from_file(file, tmp_path / "runs"))
    assert len(results["mine"].metrics["em"]) == 3
    mine = [run for (row, _), run in read_runs(tmp_path / "runs").items() if row == "mine"]
    assert all(run["record"]["report"]["router_tokens"]["completion_tokens"] for run in mine)


def unpacked(output: Path) -> Path:
    """Return the file of runs as it was before the last of them ended."""
    runs = read_runs(output).values()
    (output / PACKED_FILE).unlink()
    (output / RUNS_FILE).write_text("".join(json.dumps(run) + "\n" for run in runs))
    return output / RUNS_FILE


def test_the_planners_knn_learns_from_no_question_of_the_benchmark() -> None:
    rows = [
        {"id": str(n), "question": f"question {n}?", "golden_answers": ["x"], "outcomes": {"m": {"response": "x"}}}
        for n in range(40)
    ]
    records = RecordedPool.from_rows(rows)
    asked = list(records.tasks.values())[:15]
    routers = object.__new__(Routers)
    routers._bench = cast("Bench", SimpleNamespace(records=records, tasks=asked))
    routers.embeddings = cast("Any", None)
    allocator = routers._knn_allocator(pool(m="x"))
    assert isinstance(allocator, ProfileAllocator)
    assert {one.question for one in allocator.knn.observations} == {f"question {n}?" for n in range(15, 40)}
