"""A run that is recorded, run again without a model, and run again with one call made to another model.

python examples/10_replay_and_fork.py    # scripted: no network, no weights
"""

from typing import Any

from langgraph_router_r1 import RECORD_KEYS, ModelDescriptor, ModelRegistry, RunRecord, create_router
from langgraph_router_r1.fork import fork
from langgraph_router_r1.replay import replay
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "How many people live in Lima?")]}
ASK = "<think> A number. </think><search> small: How many people live in Lima? </search>"


def answer(text: str) -> str:
    """Return a turn that ends the run."""
    return f"<think> That is the number. </think><answer> {text} </answer>"


def main() -> None:
    """Record a run; replay it; fork it at its first call."""
    small = ModelDescriptor(name="small", model=ScriptedChatModel(["8 million"]), price=0.1)
    large = ModelDescriptor(name="large", model=ScriptedChatModel(["10 million"]), price=5.0)
    registry = ModelRegistry([small, large])
    router = create_router(ScriptedEngine([ASK, answer("8 million")]), registry)
    record = RunRecord.of(router.invoke(QUESTION, output_keys=RECORD_KEYS))
    show("recorded", record)

    again = replay(record).invoke(QUESTION, output_keys=RECORD_KEYS)
    show("replayed", RunRecord.of(again))

    # The router goes on by itself from the reply of the other model.
    engine = ScriptedEngine([answer("10 million")])
    forked = fork(record, turn=0, model="large", engine=engine, registry=registry)
    show("forked", RunRecord.of(forked.invoke(QUESTION, output_keys=RECORD_KEYS)))


def show(name: str, record: RunRecord) -> None:
    """Print what a run asked, answered and cost."""
    asked = ", ".join(str(call["answered_by"]) for call in record.calls)
    print(f"{name:9} {asked:6} {record.answer:11} ${record.report['cost_usd']:.7f}")


if __name__ == "__main__":
    main()
