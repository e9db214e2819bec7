"""What a measurement may spend, shared by all that is asked at the same time."""

from __future__ import annotations

import asyncio
import math


class Purse:
    """A budget that calls reserve their worst case of, and give back what they did not cost."""

    def __init__(self, budget_usd: float | None) -> None:
        """Start with a budget in dollars; None for no limit.

        `spent_usd` is what was spent so far, `dearest_usd` the most that something cost.
        """
        self.spent_usd = self.dearest_usd = 0.0
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
            self.spent_usd += cost
            self.dearest_usd = max(self.dearest_usd, cost)
            self._settled.notify_all()
