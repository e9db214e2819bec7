"""The picture in the README: a real run of the pocket router, as the terminal shows it (`make picture`)."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from langgraph_router_r1.pocket import pocket_registry, pocket_router, pocket_server
from langgraph_router_r1.trace import ConsoleTrace, bill_table

QUESTION = "What currency is used in the country whose capital is Lima?"


def main() -> None:
    """Ask one question of two hops, and write what the terminal shows to docs/picture.svg."""
    with pocket_server() as server, Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=100, file=nowhere, force_terminal=True)
        trace = ConsoleTrace(console)
        trace.question(QUESTION)
        for event in pocket_router(server.base_url).stream({"messages": [("user", QUESTION)]}, stream_mode="custom"):
            trace.show(event)
        assert trace.routing is not None
        console.print(bill_table([trace.routing], pocket_registry(server.base_url)))
    console.save_svg(str(Path(__file__).with_name("picture.svg")), title=f'router-r1 ask "{QUESTION}"')


if __name__ == "__main__":
    main()
