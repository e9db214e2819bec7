"""Checkpoints hold what was added and give back the whole, at every durability, in history and in forks."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, RunRecord, create_router
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

TURNS = [search("small: A?"), search("small: B?"), answer("Lima")]
CONFIG: Any = {"configurable": {"thread_id": "1"}}


def lengths(values: Any) -> tuple[int, ...]:
    return tuple(len(values.get(key, ())) for key in ("transcript", "calls", "router_usage", "decisions"))


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("saver", ["memory", "sqlite"])
def test_what_a_checkpoint_gives_back_is_the_whole_of_the_latest_question(
    durability: Any, saver: str, tmp_path: Path
) -> None:
    with (
        SqliteSaver.from_conn_string(str(tmp_path / "c.sqlite"))
        if saver == "sqlite"
        else contextlib.nullcontext(InMemorySaver())
    ) as checkpointer:
        router = create_router(ScriptedEngine(TURNS * 2), pool(small="x"), checkpointer=checkpointer)
        for question in ("first?", "second?"):
            result = router.invoke({"messages": [("user", question)]}, CONFIG, durability=durability)
            values = router.get_state(CONFIG).values
            assert lengths(values) == (6, 2, 3, 3)
            assert values["routing"] == result["routing"]
            assert RunRecord.of(values).question == question


def test_history_shows_each_step_as_it_was_and_a_fork_goes_on_from_there() -> None:
    router = create_router(ScriptedEngine([*TURNS, *TURNS[1:]]), pool(small="x"), checkpointer=InMemorySaver())
    whole = router.invoke({"messages": [("user", "Q?")]}, CONFIG)
    history = list(router.get_state_history(CONFIG))
    assert [lengths(step.values)[1] for step in reversed(history)] == [0, 0, 0, 1, 1, 2, 2, 2]
    [after_first] = [step for step in history if step.next == ("think",) and lengths(step.values)[1] == 1]
    assert router.invoke(None, after_first.config)["answer"] == whole["answer"]
    assert lengths(router.get_state(CONFIG).values) == (6, 2, 3, 3)


def test_a_run_of_a_hundred_turns_writes_no_more_than_five_megabytes_of_checkpoints(tmp_path: Path) -> None:
    small = ModelDescriptor(name="small", model=ScriptedChatModel(["word " * 250]), price=1.0)
    turns = [search("small: Capital of Peru?")] * 100 + [answer("Lima")]
    path = tmp_path / "checkpoints.sqlite"
    config: Any = {"configurable": {"thread_id": "1"}, "recursion_limit": 300}
    with SqliteSaver.from_conn_string(str(path)) as saver:
        router = create_router(ScriptedEngine(turns), ModelRegistry([small]), max_turns=100, checkpointer=saver)
        result = router.invoke({"messages": [("user", "?")]}, config)
        assert result["routing"]["turns"] == 100
        state = router.get_state(config).values
        assert (len(state["calls"]), len(state["transcript"])) == (100, 202)
    assert path.stat().st_size < 5e6
