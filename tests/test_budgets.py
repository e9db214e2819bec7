"""Budgets of measurements: as much is done as there is room for, and no more."""

from __future__ import annotations

import asyncio
import math

import pytest

from langgraph_router_r1.evaluation.budgets import RunBudget

Run = tuple[str, float, float]
"""Row, cost and list price of a run, in dollars."""


async def spend(budget: RunBudget, runs: list[Run]) -> tuple[int, int]:
    """Make runs, all at once if the budget lets them; return how many were made, and the most at the same time."""
    running = most = made = 0

    async def one(row: str, cost: float, list_cost: float) -> None:
        nonlocal running, most, made
        if not await budget.begin(row):
            return
        running, made = running + 1, made + 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        await budget.end(row, cost, list_cost)

    await asyncio.gather(*(one(*run) for run in runs))
    return made, most


@pytest.mark.parametrize(
    ("runs", "made"),
    [
        ([("cheap", 0.001, 0.001)] * 50 + [("dear", 0.3, 0.3)] * 50, 53),
        ([("dear", 0.3, 0.3)] * 50, 3),
        # A run whose replies were known before says all the same what the others will cost.
        ([("dear", 0.0, 0.3)] + [("dear", 0.3, 0.3)] * 50, 4),
        ([("unknown", math.inf, 0.1)] * 50, 1),
    ],
)
async def test_runs_are_made_as_long_as_there_is_room_for_them(runs: list[Run], made: int) -> None:
    budget = RunBudget(1.0)
    assert (await spend(budget, runs))[0] == made
    assert budget.spent_usd == math.inf or budget.spent_usd <= 1.0


async def test_many_runs_are_made_at_once_where_the_budget_has_room_and_without_one_all() -> None:
    assert await spend(RunBudget(100.0), [("row", 0.1, 0.1)] * 30) == (30, 29), "the first one alone"
    assert await spend(RunBudget(None), [("row", 0.1, 0.1)] * 30) == (30, 30)


async def test_a_budget_of_nothing_begins_nothing() -> None:
    assert await spend(RunBudget(0.0), [("row", 0.1, 0.1)] * 3) == (0, 0)
