"""A run of a hundred turns: how much it writes into SQLite checkpoints, and how long our own part of a turn takes.

    .venv/bin/python benchmarks/long_run.py

The router LLM and the model that it calls are scripted and answer at once, so what takes time is the graph, the saver
and this package. The same run without a checkpointer is timed beside it.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite import SqliteSaver

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

TURNS = 100

REPLY = " ".join(["word"] * 250)
"""About 1,250 characters, as a paragraph has."""


def run(checkpointer: Any) -> float:
    """Return the seconds that a run of `TURNS` turns takes."""
    ask = "<think> I need to ask something about it. </think><search> small: Capital of Peru? </search>"
    small = ModelDescriptor(name="small", model=ScriptedChatModel([REPLY]), price=1.0)
    router = create_router(
        ScriptedEngine([ask] * TURNS + ["<answer> Lima </answer>"]),
        ModelRegistry([small]),
        max_turns=TURNS,
        checkpointer=checkpointer,
    )
    started = time.perf_counter()
    result = router.invoke(
        {"messages": [("user", "Capital?")]}, {"configurable": {"thread_id": "1"}, "recursion_limit": 3 * TURNS}
    )
    assert result["routing"]["turns"] == TURNS
    return time.perf_counter() - started


def main() -> None:
    """Print one line of JSON."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "checkpoints.sqlite")
        run(None)  # imports, and first times of everything
        bare = run(None)
        with SqliteSaver.from_conn_string(str(file)) as saver:
            stored = run(saver)
        megabytes = file.stat().st_size / 1e6
    print(
        json.dumps(
            {
                "turns": TURNS,
                "megabytes": round(megabytes, 2),
                "ms_a_turn": round(1e3 * bare / TURNS, 2),
                "ms_a_turn_with_sqlite": round(1e3 * stored / TURNS, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
