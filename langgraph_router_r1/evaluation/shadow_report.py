"""What a shadow would have cost, taken and answered, against the router whose requests it was given: pair by pair.

with open_existing("router-r1.sqlite") as engine:
    for comparison in compare_shadows(engine):
        print(comparison.name, comparison.pairs, comparison.cost_usd)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Engine, RowMapping, func, select

from langgraph_router_r1.evaluation.metrics import Estimate, bootstrap, exact_match, wilson
from langgraph_router_r1.serving.database import RUNS
from langgraph_router_r1.serving.store import SHADOW, SHADOW_ID

MIN_PAIRS = 2
"""Fewest pairs that have an interval."""


@dataclass(frozen=True)
class Paired:
    """A figure of both routers over the same requests."""

    router: float | None
    """The mean of the router that answered; None without pairs."""
    shadow: float | None
    difference: Estimate | None
    """Shadow minus router, with its 95 % interval; None for fewer than two pairs."""


@dataclass(frozen=True)
class Comparison:
    """A shadow, and the router whose requests it was given."""

    name: str
    pairs: int
    """Requests that both routers ended; all figures but `spent_usd` are of these."""
    cost_usd: Paired
    """Dollars per request."""
    seconds: Paired
    """Seconds per request."""
    equal_answers: Estimate | None
    """The share of pairs with the same answer, both normalised; None for fewer than two pairs."""
    unpaired: dict[str, int]
    """How many runs of the shadow are not in a pair, by why."""
    spent_usd: float
    """What the shadow has spent in all, in dollars, in pairs or not."""

    def as_json(self) -> dict[str, Any]:
        """Return it for `json.dumps`."""
        return asdict(self)


def compare_shadows(engine: Engine) -> list[Comparison]:
    """Return the comparison of each shadow of a server's database, by name; `engine` is one of `open_existing`."""
    found: dict[str, _Pairs] = {}
    for row in _runs(engine):
        found.setdefault(row["account"].removeprefix(SHADOW), _Pairs()).add(row)
    return [pairs.comparison(name) for name, pairs in sorted(found.items())]


class _Pairs:
    """The runs of one shadow, as far as they were read."""

    def __init__(self) -> None:
        self.cost_usd: list[tuple[float, float]] = []
        self.seconds: list[tuple[float, float]] = []
        self.equal = 0
        self.unpaired: Counter[str] = Counter()
        self.spent_usd = 0.0

    def add(self, row: RowMapping) -> None:
        self.spent_usd += row["shadow_cost_usd"]
        if row["shadow_status"] != "ended":
            self.unpaired[row["shadow_error"] or row["shadow_status"]] += 1
        elif row["status"] != "ended":  # its end could not be written
            self.unpaired["the router's run is not recorded"] += 1
        else:
            self.cost_usd.append((row["cost_usd"], row["shadow_cost_usd"]))
            self.seconds.append((row["seconds"], row["shadow_seconds"]))
            self.equal += exact_match(_answer(row["record"]), [_answer(row["shadow_record"])])

    def comparison(self, name: str) -> Comparison:
        pairs = len(self.cost_usd)
        return Comparison(
            name=name,
            pairs=pairs,
            cost_usd=_paired(self.cost_usd),
            seconds=_paired(self.seconds),
            equal_answers=wilson(self.equal, pairs) if pairs >= MIN_PAIRS else None,
            unpaired=dict(self.unpaired.most_common()),
            spent_usd=self.spent_usd,
        )


def _paired(values: list[tuple[float, float]]) -> Paired:
    if not values:
        return Paired(None, None, None)
    router, shadow = np.array(values).T
    difference = bootstrap(shadow - router) if len(values) >= MIN_PAIRS else None
    return Paired(float(router.mean()), float(shadow.mean()), difference)


def _answer(record: str) -> str:
    return str(json.loads(record)["answer"])


def _runs(engine: Engine) -> Iterator[RowMapping]:
    """Yield the runs of shadows, each with the run whose request it was given."""
    shadow, router = RUNS.alias(), RUNS.alias()
    columns = [
        shadow.c.key.label("account"),
        shadow.c.status.label("shadow_status"),
        shadow.c.error.label("shadow_error"),
        shadow.c.cost_usd.label("shadow_cost_usd"),
        (shadow.c.ended_at - shadow.c.created_at).label("shadow_seconds"),
        shadow.c.record.label("shadow_record"),
        router.c.status,
        router.c.cost_usd,
        (router.c.ended_at - router.c.created_at).label("seconds"),
        router.c.record,
    ]
    its_id = func.substr(shadow.c.id, len(SHADOW_ID) + 1)
    found = select(*columns).outerjoin(router, router.c.id == its_id).where(shadow.c.key.startswith(SHADOW))
    with engine.connect() as connection:
        # Records are long: they are read a few at a time.
        yield from connection.execution_options(yield_per=100).execute(found).mappings()
