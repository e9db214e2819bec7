"""The picture in docs/studio.md: a run on Studio's server that a person approves, as a client sees it.

make studio                                                   # prints the server's address
python docs/studio_picture.py http://127.0.0.1:2024 [FILE]    # draws docs/studio.svg, or this file
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from langgraph_sdk import get_sync_client
from rich.console import Console

from langgraph_router_r1.trace import ConsoleTrace

GRAPH = "router_r1_approval"
QUESTION = "How do I get a real router?"
DECISIONS = [{"type": "approve"}, {"type": "reject", "message": "The first reply will do."}]


def main(url: str, file: str = str(Path(__file__).with_name("studio.svg"))) -> None:
    """Draw the graph, ask, decide on the calls that wait, and draw what comes of it."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, get_sync_client(url=url) as client:
        console = Console(record=True, width=100, file=nowhere, force_terminal=True, highlight=False)
        trace = ConsoleTrace(console)

        [assistant] = client.assistants.search(graph_id=GRAPH)
        console.print("client.assistants.get_graph(...)", style="bold")
        targets: dict[str, list[str]] = {}
        for edge in client.assistants.get_graph(assistant["assistant_id"])["edges"]:
            targets.setdefault(str(edge["source"]), []).append(str(edge["target"]))
        for source, to in targets.items():
            console.print(f"  {source:9} → {' | '.join(to)}", markup=False)

        thread = client.threads.create()["thread_id"]

        def run(call: str, **what: Any) -> None:
            console.print(f"\n{call}", style="bold")
            for part in client.runs.stream(thread, GRAPH, stream_mode="custom", **what):
                if part.event == "custom":
                    trace.show(part.data)

        run(f'client.runs.stream("{QUESTION}")', input={"messages": [{"role": "user", "content": QUESTION}]})
        [waiting] = client.threads.get_state(thread)["interrupts"]
        for action, decision in zip(waiting["value"]["action_requests"], DECISIONS, strict=True):
            console.print(f"  ‖ {action['description']}", style="yellow", markup=False)
            console.print(f"    {decision['type']} {decision.get('message', '')}", style="dim", markup=False)
        run("client.runs.stream(command=...)", command={"resume": {"decisions": DECISIONS}})
    console.save_svg(file, title="make studio")


if __name__ == "__main__":
    main(*sys.argv[1:])
