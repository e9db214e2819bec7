"""What a run had spent that broke off, from its latest checkpoint."""

from __future__ import annotations

from langgraph.types import StateSnapshot

from langgraph_router_r1.accounting import spending
from langgraph_router_r1.ledger import FREE, Price, add_bounds
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.state import Spending


def broken_off(snapshot: StateSnapshot, router_price: Price) -> tuple[Spending, RunRecord | None]:
    """Return what a run has spent and may have been billed for, and its record so far; None if nothing was decided.

    Args:
        snapshot: The state of its thread.
        router_price: What the own tokens of the router cost: those of the turn that was under way are not known.
    """
    values = snapshot.values
    is_deciding = bool({"think", "__start__"} & set(snapshot.next))
    unknown = None if is_deciding and router_price != FREE else 0.0
    if "limits" not in values:
        return spending(0.0, unknown), None
    record = RunRecord.of(values)
    in_flight: float | None = 0.0
    if "route" in snapshot.next:
        # The calls of the turn could cost so much together; those that replied have cost what they have.
        in_flight, turn = values.get("in_flight_usd"), values["turn"] - 1
        if in_flight is not None:
            paid = sum(call["list_cost_usd"] for call in record.calls if call["turn"] == turn)
            in_flight = max(in_flight - paid, 0.0)
    maybe = add_bounds(record.report["maybe_cost_usd"], in_flight, unknown)
    record = record.model_copy(update={"report": {**record.report, "maybe_cost_usd": maybe}})
    return spending(record.report["cost_usd"], maybe), record
