"""What a profile or a benchmark may spend, shared by all that is asked at the same time."""

from __future__ import annotations

import asyncio
import math
from collections import Counter


class CallBudget:
    """A budget for calls whose worst case is known: each reserves it, and gives back what it did not cost."""

    def __init__(self, budget_usd: float | None) -> None:
        """Start with a budget in dollars; None for no limit."""
        self._left = math.inf if budget_usd is None else budget_usd
        self._reserved: list[float] = []
        self._settled = asyncio.Condition()

    async def reserve(self, worst: float) -> bool:
        """Reserve so much, when others give back enough of theirs if need be; False if it will never fit."""
        async with self._settled:
            await self._settled.wait_for(lambda: worst > self._left or sum(self._reserved) + worst <= self._left)
            fits = worst <= self._left
            if fits:
                self._reserved.append(worst)
            return fits

    async def settle(self, worst: float, cost: float) -> None:
        """Replace what was reserved by what it cost."""
        async with self._settled:
            self._reserved.remove(worst)
            self._left -= cost
            self._settled.notify_all()


class RunBudget:
    """A budget for runs whose cost is known when they end.

    Until then, each counts as much as the most expensive one of its row has cost. The first run of a row is made while
    no other one of it is, so that it is known what its runs cost.
    """

    def __init__(self, budget_usd: float | None) -> None:
        """Start with a budget in dollars; None for no limit."""
        self.spent_usd = 0.0
        self._budget = budget_usd
        self._most_expensive: dict[str, float] = {}
        self._running: Counter[str] = Counter()
        self._ended = asyncio.Condition()

    async def begin(self, row: str) -> bool:
        """Wait until there is room for a run of a row; False if there will be none."""
        if self._budget is None:
            return True
        async with self._ended:
            await self._ended.wait_for(lambda: self._fits(row) or not self._running.total())
            if not self._fits(row):
                return False
            self._running[row] += 1
            return True

    async def end(self, row: str, cost: float, list_cost: float) -> None:
        """Take a run that has ended.

        Args:
            row: Its row.
            cost: What it may have cost, in dollars.
            list_cost: What it would have cost if no reply had been known before.
        """
        self.spent_usd += cost
        if self._budget is None:
            return
        async with self._ended:
            self._running[row] -= 1
            self._most_expensive[row] = max(self._most_expensive.get(row, 0.0), cost, list_cost)
            self._ended.notify_all()

    def _fits(self, row: str) -> bool:
        assert self._budget is not None
        if row not in self._most_expensive and self._running[row]:
            return False
        begun = [*self._running.elements(), row]
        at_most = self.spent_usd + sum(map(self._estimate, begun))
        return at_most <= self._budget and self.spent_usd < self._budget

    def _estimate(self, row: str) -> float:
        """Return what a run of a row may cost: of a row without any, as much as a run of any other."""
        return self._most_expensive.get(row, max(self._most_expensive.values(), default=0.0))
