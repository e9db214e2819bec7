"""What a run had spent that broke off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph_router_r1.accounting import spending
from langgraph_router_r1.ledger import FREE, Price, add_bounds
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.state import Spending


def is_known(values: Mapping[str, Any]) -> bool:
    """Return whether the state of a run, as it streamed it last, tells all: no reply of a turn has come since.

    Where several calls were under way, those that have replied are in the latest checkpoint only.
    """
    asked = values["decisions"][-1]["calls"] if values.get("decisions") else []
    return len(asked) <= 1 or not _are_in_flight(values)


def broken_off(values: Mapping[str, Any], router_price: Price | None) -> tuple[Spending, RunRecord | None]:
    """Return what a run has spent and may have been billed for, and its record so far; None if nothing was decided.

    Args:
        values: The state of its graph, with `RECORD_KEYS` and `in_flight_usd`.
        router_price: What the own tokens of the router cost: those of the turn that was under way are not known. None:
            nor is their price.
    """
    in_flight = _are_in_flight(values)
    # A run that waits for a person has no turn under way.
    is_waiting = values.get("proposed") is not None or values.get("pending") is not None
    unknown = None if router_price != FREE and not in_flight and not is_waiting else 0.0
    if "limits" not in values:
        return spending(0.0, unknown), None
    record = RunRecord.of(values)
    left: float | None = 0.0
    if in_flight:
        # The calls of the turn could cost so much together; those that replied have cost what they have.
        left, turn = values.get("in_flight_usd"), values["turn"] - 1
        if left is not None:
            paid = sum(call["list_cost_usd"] for call in record.calls if call["turn"] == turn)
            left = max(left - paid, 0.0)
    maybe = add_bounds(record.report["maybe_cost_usd"], left, unknown)
    record = record.model_copy(update={"report": {**record.report, "maybe_cost_usd": maybe}})
    return spending(record.report["cost_usd"], maybe), record


def _are_in_flight(values: Mapping[str, Any]) -> bool:
    """Return whether calls of the latest turn have not replied."""
    if not values.get("decisions") or values["decisions"][-1]["kind"] != "ask":
        return False
    replied = sum(call["turn"] == values["turn"] - 1 for call in values.get("calls", ()))
    return bool(replied < len(values["decisions"][-1]["calls"]))
