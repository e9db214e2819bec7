"""What each key of a server was charged, day by day: what `router-r1 usage` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Engine, select

from langgraph_router_r1.serving.database import SPENDING


class Usage(NamedTuple):
    """What a key was charged in a day or a month, in UTC; what its open runs have reserved is part of it."""

    key: str
    """Its name; empty for runs without a key, `shadow:NAME` for those of a shadow."""
    period: str
    """A month, `2026-11`, or a day of it, `2026-11-28`."""
    runs: int
    charged_usd: float


def read_usage(engine: Engine, month: str) -> Sequence[Usage]:
    """Return what the keys were charged in a month: for each key the month, and then each day on which it asked.

    Args:
        engine: Of `open_existing`.
        month: As `2026-11`.
    """
    columns = (SPENDING.c.key, SPENDING.c.period, SPENDING.c.runs, SPENDING.c.charged_usd)
    wanted = select(*columns).where(SPENDING.c.period.startswith(month)).order_by(SPENDING.c.key, SPENDING.c.period)
    with engine.connect() as connection:
        return [Usage(*row) for row in connection.execute(wanted)]
