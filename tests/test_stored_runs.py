"""What a checkpoint database holds: its runs as records, and what people decided as preference pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from provider import Provider
from typer.testing import CliRunner

from langgraph_router_r1 import (
    RECORD_KEYS,
    ModelDescriptor,
    ModelRegistry,
    RunRecord,
    UnknownModelError,
    create_router,
)
from langgraph_router_r1.cli import cli
from langgraph_router_r1.engines import ChatModelEngine
from langgraph_router_r1.fork import ForkError, fork
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.preferences import preferences
from langgraph_router_r1.stored_runs import stored_runs
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

APPROVE: Any = {"type": "approve"}
REJECT: Any = {"type": "reject", "message": "no"}
EDIT: Any = {"type": "edit", "edited_action": {"name": "ask_model", "args": {"model": "d", "query": "Edited?"}}}


def config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


def reviewed(saver: Any, thread: str, *decisions: Any, question: str = "Which?") -> None:
    engine = ScriptedEngine([search("a: A?", "b: B?", "c: C?"), answer("done")])
    router = create_router(engine, pool(a="x", b="x", c="x", d="x"), approve="always", checkpointer=saver)
    router.invoke({"messages": [("user", question)]}, config(thread))
    router.invoke(Command(resume={"decisions": list(decisions)}), config(thread))


def test_the_finished_runs_of_a_database_are_records_in_order(tmp_path: Path) -> None:
    with SqliteSaver.from_conn_string(str(tmp_path / "runs.sqlite")) as saver:
        for thread, question in (("2", "one"), ("1", "two"), ("2", "three")):
            reviewed(saver, thread, APPROVE, APPROVE, APPROVE, question=question)
        waiting = create_router(ScriptedEngine([search("a: A?")]), pool(a="x"), approve="always", checkpointer=saver)
        waiting.invoke({"messages": [("user", "waits")]}, config("3"))
        found = [(run.thread_id, run.record.question, run.record.answer) for run in stored_runs(saver)]
        assert found == [("1", "two", "done"), ("2", "one", "done"), ("2", "three", "done")]
        assert [run.record.question for run in stored_runs(saver, "2")] == ["one", "three"]
        assert all(run.record.report["cost_usd"] > 0 for run in stored_runs(saver))


def around(inner: Any, name: str) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node(name, inner)
    graph.add_edge(START, name)
    graph.add_edge(name, END)
    return graph


def test_runs_of_routers_within_larger_graphs_are_found_in_order_and_other_graphs_are_left_out() -> None:
    saver = InMemorySaver()
    router = create_router(ScriptedEngine([answer(f"answer {n}") for n in range(3)]), pool(a="x"))
    near = around(router, "research").compile(checkpointer=saver)
    far = around(around(router, "research").compile(), "team").compile(checkpointer=saver)
    for graph, thread, question in ((near, "1", "one"), (near, "1", "two"), (far, "2", "three")):
        graph.invoke({"messages": [("user", question)]}, config(thread))
    around(lambda _: {"messages": [("ai", "x")]}, "other").compile(checkpointer=saver).invoke(
        {"messages": [("user", "?")]}, config("3")
    )
    found = [(run.thread_id, run.record.question, run.record.answer) for run in stored_runs(saver)]
    assert found == [("1", "one", "answer 0"), ("1", "two", "answer 1"), ("2", "three", "answer 2")]


def test_a_node_may_call_several_graphs_and_none_of_their_runs_is_lost() -> None:
    saver = InMemorySaver()
    router = create_router(ScriptedEngine([answer(f"answer {n}") for n in range(3)]), pool(a="x"))
    other = around(lambda _: {"messages": [("ai", "x")]}, "other").compile()

    def twice(state: Any) -> Any:
        router.invoke({"messages": [("user", "one")]})
        router.invoke({"messages": [("user", "two")]})

    def after_another(state: Any) -> Any:
        other.invoke({"messages": [("user", "?")]})
        router.invoke({"messages": [("user", "three")]})

    for node, thread in ((twice, "1"), (after_another, "2")):
        around(node, "research").compile(checkpointer=saver).invoke({"messages": [("user", "?")]}, config(thread))
    found = [(run.thread_id, run.record.question) for run in stored_runs(saver)]
    assert found == [("1", "one"), ("1", "two"), ("2", "three")]


def test_a_router_that_another_one_asked_is_part_of_that_ones_run() -> None:
    saver = InMemorySaver()
    inner = create_router(ScriptedEngine([answer("inner")]), pool(a="x"))
    registry = ModelRegistry([ModelDescriptor(name="r", model=inner, price="free")])
    outer = create_router(ScriptedEngine([search("r: Which?"), answer("outer")]), registry, checkpointer=saver)
    outer.invoke({"messages": [("user", "?")]}, config("1"))
    around(create_router(ScriptedEngine([search("r: Which?"), answer("outer")]), registry), "research").compile(
        checkpointer=saver
    ).invoke({"messages": [("user", "?")]}, config("2"))
    assert [(run.thread_id, run.record.answer) for run in stored_runs(saver)] == [("1", "outer"), ("2", "outer")]


def test_a_turn_that_was_written_under_aliases_gives_no_pair() -> None:
    for registry, count in ((pool(a="x", b="x", c="x", d="x"), 1), (pool(a="x", b="x", c="x", d="x").anonymized(), 0)):
        saver, names = InMemorySaver(), registry.aliases
        engine = ScriptedEngine([search(f"{names[0]}: A?", f"{names[1]}: B?", f"{names[2]}: C?"), answer("done")])
        router = create_router(engine, registry, approve="always", checkpointer=saver)
        router.invoke({"messages": [("user", "?")]}, config("1"))
        router.invoke(Command(resume={"decisions": [APPROVE, EDIT, APPROVE]}), config("1"))
        [run] = stored_runs(saver)
        assert len(preferences(run.record)) == count


@pytest.mark.parametrize(
    ("decisions", "chosen"),
    [
        ([APPROVE, APPROVE, APPROVE], None),
        ([REJECT, REJECT, REJECT], None),
        ([APPROVE, EDIT, APPROVE], "a: A?\nd: Edited?\nc: C?"),
        ([REJECT, APPROVE, APPROVE], "b: B?\nc: C?"),
    ],
)
def test_a_changed_turn_is_a_pair_of_what_was_written_and_what_was_decided(decisions: Any, chosen: str | None) -> None:
    saver = InMemorySaver()
    reviewed(saver, "1", *decisions)
    [run] = stored_runs(saver)
    pairs = preferences(run.record)
    if chosen is None:
        assert pairs == []
        return
    [pair] = pairs
    assert pair["rejected"] == search("a: A?", "b: B?", "c: C?")
    assert pair["chosen"] == f"<think> I have to ask. </think>\n<search> {chosen} </search>"
    assert pair["prompt"] == run.record.segments[0]["text"]


def test_the_command_prints_the_pairs_of_a_database_and_names_what_is_none(tmp_path: Path) -> None:
    file = tmp_path / "runs.sqlite"
    with SqliteSaver.from_conn_string(str(file)) as saver:
        reviewed(saver, "1", EDIT, APPROVE, APPROVE)
        reviewed(saver, "2", APPROVE, EDIT, APPROVE)
    printed = CliRunner().invoke(cli, ["export-preferences", str(file)])
    assert printed.exit_code == 0, printed.output
    pairs = [json.loads(line) for line in printed.stdout.splitlines()]
    assert [set(pair) for pair in pairs] == [{"prompt", "chosen", "rejected"}] * 2
    printed = CliRunner().invoke(cli, ["export-preferences", str(file), "--thread", "2"])
    assert len(printed.stdout.splitlines()) == 1
    text = tmp_path / "text"
    text.write_text("no database, " * 100)
    for path, says in ((tmp_path / "none", "is no file"), (text, "is no SQLite file of checkpoints")):
        printed = CliRunner().invoke(cli, ["export-preferences", str(path)])
        assert printed.exit_code == 1
        assert says in printed.stderr.replace("\n", " ")


def test_a_cache_of_langgraphs_keeps_the_replies_of_a_routers_models() -> None:
    model, cache = ScriptedChatModel(["Lima"]), InMemoryCache[Any]()
    for cost in (11e-6, 0.0):
        router = create_router(ScriptedEngine([search("m: a?"), answer("x")]), pool(m=model), cache=cache)
        result = router.invoke({"messages": [("user", "?")]})
        assert result["routing"]["cost_usd"] == pytest.approx(cost)
    assert len(model.calls) == 1


# Forks


TURNS = [search("a: A?", "b: B?"), search("c: C?"), answer("recorded")]


def recorded() -> RunRecord:
    router = create_router(ScriptedEngine(TURNS), pool(a="from a", b="from b", c="from c"))
    return RunRecord.of(router.invoke({"messages": [("user", "Which?")]}, output_keys=RECORD_KEYS))


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_fork_repeats_the_run_up_to_the_call_and_goes_on_by_itself(way: str) -> None:
    record = recorded()
    others = {name: ScriptedChatModel([f"now {name}"]) for name in "abcd"}
    engine = ScriptedEngine([answer("forked")])
    forked = fork(record, turn=0, index=1, model="d", engine=engine, registry=pool(**others))
    question: Any = {"messages": [("user", "Which?")]}
    if way == "invoke":
        result = forked.invoke(question, output_keys=[*RECORD_KEYS, "routing"])
    else:
        result = await forked.ainvoke(question, output_keys=[*RECORD_KEYS, "routing"])
    assert result["answer"] == "forked"
    assert [(call["model"], call["response"]) for call in result["calls"]] == [("a", "from a"), ("d", "now d")]
    # Only the forked call is made and paid.
    assert {name: len(model.calls) for name, model in others.items()} == {"a": 0, "b": 0, "c": 0, "d": 1}
    kept, made = result["routing"]["calls"]
    assert (kept["cost_usd"], made["cost_usd"]) == (0.0, result["routing"]["cost_usd"])
    assert kept["list_cost_usd"] > 0
    # The prompt of the live turn is the recorded transcript, with the new reply in it.
    assert result["transcript"][1]["text"] == record.segments[1]["text"]
    assert "d: now d" in result["transcript"][2]["text"]


def test_a_fork_of_a_later_turn_keeps_all_before_it() -> None:
    registry = pool(a="x", b="x", c="x", d="now d")
    forked = fork(recorded(), turn=1, model="d", engine=ScriptedEngine([answer("forked")]), registry=registry)
    result = forked.invoke({"messages": [("user", "Which?")]})
    assert [call["response"] for call in result["routing"]["calls"]] == ["from a", "from b", "now d"]


def test_a_fork_pays_for_the_routers_tokens_what_the_run_paid() -> None:
    record, registry = recorded(), pool(a="x", b="x", c="x", d="now d")
    note = {**record.strategy, "price": Price.parse(2.0).note()}
    record = record.model_copy(update={"strategy": note})
    costs = []
    for more in ({}, {"router_price": 4.0}):
        forked = fork(record, turn=1, model="d", engine=ScriptedEngine([answer("x")]), registry=registry, **more)
        costs.append(forked.invoke({"messages": [("user", "Which?")]})["routing"]["router_cost_usd"])
    assert 0 < costs[0] == pytest.approx(costs[1] / 2)
    other = ChatModelEngine(ScriptedChatModel([answer("x")]))
    with pytest.raises(ValueError, match="router_price is missing"):
        fork(record, turn=1, model="d", engine=other, registry=registry)


def test_a_fork_is_asked_the_question_of_its_run() -> None:
    forked = fork(
        recorded(), turn=1, model="a", engine=ScriptedEngine([answer("x")]), registry=pool(a="x", b="x", c="x")
    )
    with pytest.raises(ForkError, match="and not of 'Who"):
        forked.invoke({"messages": [("user", "Who?")]})


def test_what_can_not_be_forked_is_named() -> None:
    engine, registry = ScriptedEngine([]), pool(a="x")
    with pytest.raises(ForkError, match=r"the record has no call 2\.0 that was made; it has 0\.0, 0\.1, 1\.0"):
        fork(recorded(), turn=2, model="a", engine=engine, registry=registry)
    with pytest.raises(UnknownModelError, match="'z'"):
        fork(recorded(), turn=0, model="z", engine=engine, registry=registry)


def test_the_command_replays_a_database_and_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "runs.sqlite"
    with SqliteSaver.from_conn_string(str(file)) as saver:
        reviewed(saver, "1", APPROVE, APPROVE, APPROVE)
        reviewed(saver, "2", APPROVE, APPROVE, APPROVE)
    run = CliRunner().invoke
    printed = run(cli, ["replay", str(file)])
    assert (printed.exit_code, "name one of them with --thread" in printed.stderr) == (1, True)
    printed = run(cli, ["replay", str(file), "--thread", "1"])
    assert printed.exit_code == 0, printed.output
    assert "= done" in printed.stdout
    with Provider(reply=lambda request: "<answer> forked" if "tags" in str(request.body) else "from d") as provider:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        models = tmp_path / "models.toml"
        models.write_text("".join(f'[models.{name}]\nmodel = "openai:x"\nprice = 1\n' for name in "abcd"))
        arguments = ["replay", str(file), "--thread", "1", "--fork", "0.2", "--model", "d"]
        printed = run(cli, [*arguments, "--registry", str(models), "--router", "openai:gpt-x", "--router-price", "1"])
    assert printed.exit_code == 0, printed.output
    assert "recorded" in printed.stdout
    assert "a, b, d" in printed.stdout
    for wrong, says in (
        (["--fork", "0.2"], "--fork and --model belong together"),
        (["--fork", "x", "--model", "d"], "--fork is 'x'"),
    ):
        printed = run(cli, ["replay", str(file), *wrong])
        assert printed.exit_code == 1
        assert says in printed.stderr.replace("\n", " ")
