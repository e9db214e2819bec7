"""Forms of a pool: what the router is told changes, the models behind it stay, and every row is run in every form."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import pytest
from test_bench import ROOT, figures, recorded, run
from typer.testing import CliRunner

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price
from langgraph_router_r1.cli import cli
from langgraph_router_r1.descriptor import Accuracy, Measured
from langgraph_router_r1.evaluation.bench import Bench
from langgraph_router_r1.evaluation.bench_file import BenchError, find_benchmark
from langgraph_router_r1.evaluation.forms import ASSUMED_QUESTIONS, Form
from langgraph_router_r1.evaluation.metrics import wilson
from langgraph_router_r1.evaluation.page import publish, results_page
from langgraph_router_r1.evaluation.report import spread_table
from langgraph_router_r1.ledger import Tier
from langgraph_router_r1.pocket import pocket_registry

FORMS = """
[[forms]]
name = "as it is"

[[forms]]
name = "shuffled"
order = "shuffled"
draws = 2

[[forms]]
name = "without"
without = "each"

[[forms]]
name = "reworded"
descriptions = { somebody-else = "Not in this pool." }
"""


def pool() -> ModelRegistry:
    """Three models; one falls back on another, and one was measured."""
    measured = Measured(
        date="2026-01-01",  # type: ignore[arg-type]
        questions=10,
        failure_rate=0.0,
        accuracy={"capital": Accuracy(value=0.5, low=0.4, high=0.45, questions=10)},
    )
    return ModelRegistry(
        [
            ModelDescriptor(name="a", model="openai:x", price=1.0, description="A.", skills={"capital": 0.9}),
            ModelDescriptor(name="b", model="openai:y", price=2.0, description="B.", fallbacks=("a", "c")),
            ModelDescriptor(
                name="c",
                model="openai:z",
                price={
                    "prompt": 1,
                    "completion": 4,
                    "cached": 0.5,
                    "tiers": [{"above": 9, "prompt": 2, "completion": 4}],
                },
                skills={"capital": 0.5},
                measured=measured,
            ),
        ],
        profile="pool.profile.jsonl",
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"order": "shuffled"},
        {"order": "reversed"},
        {"names": "neutral"},
        {"names": "invented"},
        {"skills": "none"},
        {"skills": "moved"},
        {"descriptions": {"a": "Another."}},
        {"prices": 10.0},
    ],
    ids=str,
)
def test_a_form_changes_what_is_told_and_not_which_model_is_behind_it(changed: dict[str, Any]) -> None:
    form = Form(name="form", **changed)
    told = form.of(pool())
    assert sorted(told.names) == sorted(pool().names)
    assert told.describe() != pool().describe()
    assert {model.name: model.model for model in told} == {model.name: model.model for model in pool()}
    assert told.profile == Path("pool.profile.jsonl")
    assert form.of(pool(), 3).describe() == form.of(pool(), 3).describe()


def test_draws_differ_and_a_shuffled_pool_never_has_its_own_order() -> None:
    form = Form(name="shuffled", order="shuffled", draws=30)
    orders = [form.of(pool(), draw).names for draw in range(form.count(pool()))]
    assert len(orders) == 30
    assert len(set(orders)) == 5  # of three models there are six orders
    assert pool().names not in orders
    invented = Form(name="invented", names="invented", draws=2)
    assert not set(invented.of(pool(), 0).aliases) & {*pool().names, "model-1"}
    assert invented.of(pool(), 0).aliases != invented.of(pool(), 1).aliases


def test_accuracies_move_within_their_interval() -> None:
    form = Form(name="moved", skills="moved", draws=40)
    low, high = (getattr(wilson(0.9 * ASSUMED_QUESTIONS, ASSUMED_QUESTIONS), end) for end in ("low", "high"))
    drawn = [form.of(pool(), draw) for draw in range(40)]
    unmeasured = {told["a"].skills["capital"] for told in drawn}
    assert len(unmeasured) > 3
    assert all(low - 0.005 <= value <= high + 0.005 for value in unmeasured)
    assert {told["c"].skills["capital"] for told in drawn} <= {0.4, 0.41, 0.42, 0.43, 0.44, 0.45}


def test_prices_are_multiplied_by_part() -> None:
    price = Form(name="tenfold", prices=10.0).of(pool())["c"].price
    assert price == Price(10, 40, 5, 10, tiers=(Tier(20, 40, above=9),))


def test_a_member_may_be_missing_and_nobody_falls_back_on_it() -> None:
    each = Form(name="without", without="each")
    assert each.count(pool()) == 3
    assert [each.label(pool(), draw) for draw in range(3)] == ["without a", "without b", "without c"]
    assert each.of(pool(), 0).names == ("b", "c")
    assert each.of(pool(), 0)["b"].fallbacks == ("c",)


def test_a_newcomer_has_its_own_descriptor_and_another_ones_model() -> None:
    fields = {"like": "b", "description": "New.", "skills": {"river": 0.9}}
    told = Form(name="more", newcomers={"new": fields}).of(pool())
    assert told.names == ("a", "b", "c", "new")
    assert (told["new"].model, told["new"].price, told["new"].description) == ("openai:y", pool()["b"].price, "New.")
    own = {"model": "openai:w", "price": 3.0}
    assert Form(name="more", newcomers={"new": own}).of(pool())["new"].model == "openai:w"


def test_every_row_is_run_in_every_form_and_the_spread_is_told(tmp_path: Path) -> None:
    rows = '[[rows]]\nrouter = "best"\n[[rows]]\nrouter = "cheapest"\n'
    bench = Bench.from_file(recorded(tmp_path, rows=rows, head='reference = "best, as it is"\n', forms=FORMS), tmp_path)
    labels = ("as it is", "shuffled 1", "shuffled 2", "without good", "without poor")
    assert [row.name for row in bench.rows] == [
        f"{router}, {label}" for router in ("best", "cheapest") for label in labels
    ]
    results = run(bench)
    assert results["best, shuffled 1"].calls == results["best, as it is"].calls == {"good": len(results.tasks)}
    assert results["best, without good"].calls == {"poor": len(results.tasks)}
    heads, *lines = spread_table(results)
    found = {(line[0], line[1]): dict(zip(heads, line, strict=True)) for line in lines}
    good, poor = (f"{results[f'{name}, as it is'].estimate('contains').mean:.3f}" for name in ("best", "cheapest"))
    assert good != poor
    without = found["best 0", "without"]
    assert (without["forms"], without["lowest"], without["highest"]) == ("2", poor, good)
    assert without["share of the calls"] == "poor 0% to 100%, good 0% to 100%"
    assert found["cheapest 0", "shuffled"]["lowest"] == found["cheapest 0", "shuffled"]["highest"] == poor


def test_runs_in_forms_go_on_where_they_were_and_no_form_is_taken_for_another(tmp_path: Path) -> None:
    rows = '[[rows]]\nrouter = "best"\n'
    head = 'reference = "best, as it is"\n'
    file = recorded(tmp_path, rows=rows, head=head, forms=FORMS)
    first = figures(run(Bench.from_file(file, tmp_path / "runs")))
    ended: list[Any] = []
    again = Bench.from_file(file, tmp_path / "runs")
    assert figures(again.results(asyncio.run(again.run(ended.append)))) == first
    assert not ended
    other = recorded(tmp_path, rows=rows, head=head, forms=FORMS.replace('order = "shuffled"', 'order = "reversed"'))
    with pytest.raises(BenchError, match="holds runs of another"):
        Bench.from_file(other, tmp_path / "runs").finished()


def test_the_page_shows_the_spread_and_a_picture_of_it(tmp_path: Path) -> None:
    rows = '[[rows]]\nrouter = "best"\n'
    file = recorded(tmp_path, rows=rows, head='reference = "best, as it is"\n', forms=FORMS)
    publish(run(Bench.from_file(file, tmp_path / "runs")), tmp_path / "published")
    page = results_page(tmp_path, tmp_path / "published")
    assert "| best 0 | without | 2 |" in page
    assert "![forms](published/small-forms.svg)" in page
    assert (tmp_path / "published" / "small-forms.svg").read_text().count("shuffled") == 1


@pytest.mark.parametrize(
    ("forms", "message"),
    [
        ('[[forms]]\nname = "x"\norder = "backwards"\n', "'as it is', 'reversed' or 'shuffled'"),
        ('[[forms]]\nname = "x"\nwithout = ["nobody"]\n', "forms.*'nobody'"),
        ('[[forms]]\nname = "x"\n[forms.newcomers.new]\nprice = 1\n', r"forms.*models\.new\.model"),
        ('[[forms]]\nname = "x"\n[forms.newcomers.new]\nlike = "nobody"\n', "forms.*'nobody'"),
        ('[[forms]]\nname = "x"\n[[forms]]\nname = "x"\n', "same name"),
        ('[[forms]]\nname = "x"\nprices = 0\n', "greater than 0"),
    ],
    ids=["order", "missing", "newcomer", "like", "twice", "price"],
)
def test_a_wrong_form_is_a_clear_error_before_anything_runs(tmp_path: Path, forms: str, message: str) -> None:
    with pytest.raises(BenchError, match=f"(?s){message}"):
        Bench.from_file(recorded(tmp_path, head='reference = "best, x"\n', forms=forms), tmp_path / "runs")


def test_the_forms_of_robustness_fit_the_pocket_pool_and_pools_of_users() -> None:
    file = find_benchmark("robustness")
    forms = [Form(**fields) for fields in tomllib.loads(file.read_text(encoding="utf-8"))["forms"]]
    registry = pocket_registry("http://127.0.0.1:1/v1")
    reworded = [form for form in forms if form.descriptions]
    assert len(reworded) == 5
    assert all(set(form.descriptions) == set(registry.names) for form in reworded)
    assert sum(form.draws for form in forms if form.order == "shuffled" and form.names == "own") == 10
    for form in forms:
        for draw in range(form.count(registry)):
            assert len(form.of(registry, draw)) >= len(registry) - 1


def test_a_benchmark_takes_a_pool_a_router_and_tasks_of_ones_own(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.mine]\nmodel = "openai:m"\nprice = 1\n[models.other]\nmodel = "openai:o"\nprice = 2\n')
    tasks = tmp_path / "mine.jsonl"
    tasks.write_text("".join(f'{{"id": "{n}", "question": "q{n}?", "golden_answers": ["{n}"]}}\n' for n in range(20)))
    bench = Bench.from_file(
        find_benchmark("robustness"),
        tmp_path / "runs",
        registry=models,
        tasks=[str(tasks)],
        url="http://127.0.0.1:1/v1",
        model="mine",
    )
    assert bench.names == ("mine", "other")
    names = [row.name for row in bench.rows]
    assert "router, without other" in names
    assert not [name for name in names if "reworded" in name]
    assert {(row.spec.url, row.spec.model) for row in bench.rows} == {("http://127.0.0.1:1/v1", "mine")}
    with pytest.raises(BenchError, match="say with --tasks"):
        Bench.from_file(find_benchmark("robustness"), tmp_path / "runs", registry=models)


def test_a_benchmark_that_does_not_exist_is_a_clear_error() -> None:
    result = CliRunner().invoke(cli, ["bench", "nothing-like-it"])
    assert result.exit_code == 1
    assert "there is no benchmark 'nothing-like-it'" in result.output + str(result.stderr)
    assert find_benchmark("robustness").samefile(ROOT / "benchmarks" / "robustness.toml")
