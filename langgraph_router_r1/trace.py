"""A run in a terminal: the stream events drawn as they come, and a table of costs at the end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from langgraph_router_r1.events import RouterEvent
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import RunReport

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)


class ConsoleTrace:
    """Draws the stream events of one run.

    Example:
        >>> trace = ConsoleTrace(Console())
        >>> for event in router.stream(question, stream_mode="custom"):                    # doctest: +SKIP
        ...     trace.show(event)
    """

    def __init__(self, console: Console) -> None:
        """Draw on this console."""
        self.console = console
        self.routing: RunReport | None = None
        """The report of the run, once it has ended."""

    def question(self, text: str) -> None:
        """Draw the question."""
        self.console.print()
        self._line("?", text, "bold")

    def show(self, data: Any) -> None:
        """Draw one `RouterEvent`, as the stream yields it."""
        event: RouterEvent = data
        if event["type"] == "router_r1.think":
            for thought in _THOUGHT.findall(event["text"]):
                self._line("…", thought.strip(), "dim italic")
        elif event["type"] == "router_r1.plan":
            for number, step in enumerate(event["steps"], start=1):
                self._line("#", f"{number}. {step['text']}", "dim", f"   ({printable(step['model'])})")
        elif event["type"] == "router_r1.route":
            self._line("→", f"{event['model']}: {event['query']}", "cyan")
        elif event["type"] == "router_r1.info":
            said = event["response"] if event["status"] == "ok" else event["reason"] or event["status"]
            is_fallback = event["status"] == "ok" and event["reason"] is not None
            why = f"from {event['answered_by']}, for {event['reason']}; " if is_fallback else ""
            facts = printable(f"   ({why}${event['cost_usd']:.8f}, {event['latency_s']:.2f} s)")
            self._line("←", _shorten(said), "green" if event["status"] == "ok" else "yellow", facts)
        elif event["type"] == "router_r1.done":
            routing = self.routing = event["routing"]
            stopped = "" if routing["stop_reason"] == "answered" else f", {routing['stop_reason']}"
            routes = f"{routing['turns']} route{'s' * (routing['turns'] != 1)}"
            facts = f"   ({routes}, ${routing['cost_usd']:.8f}{stopped})"
            self._line("=", event["answer"] or "(no answer)", "bold magenta", facts)

    def _line(self, sign: str, text: str, style: str, facts: str = "") -> None:
        self.console.print(Text(f"  {sign} "), Text(printable(text), style=style), Text(facts, style="dim"), sep="")


def bill_table(routings: Iterable[RunReport], registry: ModelRegistry, *, router_price: Price | None = None) -> Table:
    """Return the table of what each model did in these runs and cost, in millionths of a dollar."""
    routings = list(routings)
    table = Table("model", "price", "calls", "failed", "tokens in", "tokens out", "µ$", title="Cost by model")
    for column in table.columns[2:]:
        column.justify = "right"
    for model in registry:
        bills = [routing["by_model"][model.name] for routing in routings if model.name in routing["by_model"]]
        table.add_row(
            Text(printable(model.name)),
            str(model.price),
            str(sum(bill["calls"] for bill in bills)),
            str(sum(bill["failed"] for bill in bills)),
            str(sum(bill["prompt_tokens"] for bill in bills)),
            str(sum(bill["completion_tokens"] for bill in bills)),
            _millionths(sum(bill["cost_usd"] for bill in bills)),
        )
    tokens = [routing["router_tokens"] for routing in routings]
    table.add_section()
    table.add_row(
        "router",
        "" if router_price is None else str(router_price),
        "",
        "",
        str(sum(usage["prompt_tokens"] for usage in tokens)),
        str(sum(usage["completion_tokens"] for usage in tokens)),
        _millionths(sum(routing["router_cost_usd"] for routing in routings)),
    )
    total = _millionths(sum(routing["cost_usd"] for routing in routings))
    table.add_row("all", "", "", "", "", "", total, style="bold")
    return table


def printable(text: str) -> str:
    """Return text that a terminal only shows: no escape sequence that a model wrote reaches it."""
    return _CONTROL.sub("", text)


def _millionths(dollars: float) -> str:
    return f"{dollars * 1e6:.2f}"


def _shorten(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
