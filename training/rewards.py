"""The reward of a rollout: format, outcome and cost, weighted as in Router-R1 (arXiv 2506.09033, section 3.3).

Pure functions of a rollout's parsed facts. Deviations from the paper: cost counts prompts, cached prompts, completions
and the router's own tokens (`basis="completion"` is the paper's); rollouts with an infrastructure failure
have no reward, where the paper's code punishes the router for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from langgraph_router_r1.evaluation.metrics import METRICS
from training.rollout import Rollout

Mode = Literal["paper", "gated"]
"""How the parts add up. `paper`: its equation, (1 - α) outcome + α cost. `gated`: its released code, in which cost is
paid only when the answer is right: (1 - α) + α cost, else 0."""

Basis = Literal["full", "completion"]
"""What a rollout costs: everything at list price, or the routed models' completion tokens alone."""

COST_WEIGHTS = (0.0, 0.3, 0.6, 0.9)
"""What prompts say in training, by default; each as often as another."""

WINDOW = 1000
"""How many of the latest costs the cost reward is normalised over."""

FORMAT_FAILURE = -1.0
"""The whole reward of a rollout that is not well-formed."""


class CostScale:
    """Turns dollars into a reward between 0 (expensive) and 1 (cheap), relative to the latest costs.

    Square roots, scaled between the 5th and the 95th percentile of the last 1000 costs, inverted; 0.5 for all while
    these are the same. `add` first, `reward` then: all rollouts of a batch are compared with the same window.

    Example:
        >>> scale = CostScale()
        >>> scale.add([0.0, 1e-6, 4e-6])
        >>> scale.reward(0.0) > scale.reward(1e-6) > scale.reward(4e-6)
        True
    """

    def __init__(self, window: int = WINDOW) -> None:
        """Start with nothing seen."""
        self._roots: deque[float] = deque(maxlen=window)

    def add(self, costs_usd: Iterable[float]) -> None:
        """Take costs into the window.

        Raises:
            ValueError: One is negative.
        """
        costs = list(costs_usd)
        if any(not cost >= 0 for cost in costs):
            raise ValueError(f"costs are {costs!r}; they must be 0 or more dollars")
        self._roots.extend(float(np.sqrt(cost)) for cost in costs)

    def reward(self, cost_usd: float) -> float:
        """Return how cheap that is, 0 to 1."""
        if not self._roots:
            return 0.5
        low, high = np.percentile(self._roots, [5, 95])
        if high - low < 1e-8:
            return 0.5
        return float(1 - np.clip((np.sqrt(cost_usd) - low) / (high - low), 0, 1))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"window": self._roots.maxlen, "roots": list(self._roots)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> CostScale:
        """Restore what `state_dict` gave."""
        scale = cls(state["window"])
        scale._roots.extend(state["roots"])
        return scale


@dataclass(frozen=True)
class Reward:
    """One rollout's reward, and its parts."""

    total: float | None
    """None for a rollout that can't be scored."""
    format: float
    """0, or -1 when it is not well-formed."""
    outcome: float
    """0 to 1."""
    cost: float
    """0 (expensive) to 1 (cheap)."""


Score = Callable[[Sequence[Rollout], CostScale], Sequence[Reward]]
"""From a batch of rollouts to their rewards; their costs enter the scale's window."""


def reward(
    rollout: Rollout, scale: CostScale, *, mode: Mode = "paper", metric: str = "em", basis: Basis = "full"
) -> Reward:
    """Return the reward of a rollout at its own cost weight.

    Args:
        rollout: Whose cost is in the scale's window already.
        scale: Of training, or of evaluation; never one for both.
        mode: See `Mode`.
        metric: The outcome: `em`, `f1`, `contains` or `number`.
        basis: See `Basis`.

    Raises:
        ValueError: There is no such mode or metric.
    """
    if mode not in {"paper", "gated"}:
        raise ValueError(f"mode is {mode!r}; it must be 'paper' or 'gated'")
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; it must be one of {', '.join(METRICS)}")
    if not rollout.is_scorable:
        return Reward(None, 0.0, 0.0, 0.0)
    if not rollout.format_ok:
        return Reward(FORMAT_FAILURE, FORMAT_FAILURE, 0.0, 0.0)
    outcome = float(METRICS[metric](rollout.answer, rollout.task.golden_answers))
    cheap = scale.reward(rollout.cost_usd(basis))
    weight = rollout.cost_weight
    paid = cheap * outcome if mode == "gated" else cheap
    return Reward((1 - weight) * outcome + weight * paid, 0.0, outcome, cheap)


def rewards(
    rollouts: Sequence[Rollout], scale: CostScale, *, mode: Mode = "paper", metric: str = "em", basis: Basis = "full"
) -> list[Reward]:
    """Return what each rollout of a batch earns; the costs of those that can be scored enter the window first."""
    scale.add(rollout.cost_usd(basis) for rollout in rollouts if rollout.is_scorable)
    return [reward(rollout, scale, mode=mode, metric=metric, basis=basis) for rollout in rollouts]
