"""What a profile measured of each model of a pool: how good its replies are, and what they cost."""

from __future__ import annotations

import logging
import statistics

from typing_extensions import TypedDict

from langgraph_router_r1.registry import ModelRegistry

logger = logging.getLogger(__name__)


class ProfileFigures(TypedDict):
    """The figures of one model."""

    quality: float
    """Mean over its replies, 0 to 1: as judges said, else the share that holds a right answer."""
    cost_usd: float
    """Mean dollars a reply: as recorded, else its tokens at the list price of today."""
    questions: int
    """How many replies there are."""


def profile_figures(registry: ModelRegistry) -> dict[str, ProfileFigures]:
    """Return the figures of the models that the registry's profile has replies of, by name.

    They are empty when the registry has no profile, and when its file can't be read: the log then says why, and
    requests can be served all the same.

    Example:
        >>> profile_figures(ModelRegistry())
        {}
    """
    if registry.profile is None:
        return {}
    # Reads a file of JSON; the extra [eval] is not needed.
    from langgraph_router_r1.evaluation.recorded import RecordedPool, outcome_cost, quality
    from langgraph_router_r1.evaluation.tasks import TaskError

    try:
        recorded = RecordedPool.from_file(registry.profile)
    except TaskError as error:
        logger.warning("the profile can't be read, and no measured quality is shown: %s", error)
        return {}
    figures: dict[str, ProfileFigures] = {}
    for model in registry:
        replies = [
            (task, recorded.outcomes[task.id][model.name])
            for task in recorded.tasks.values()
            if model.name in recorded.outcomes[task.id]
        ]
        if replies:
            figures[model.name] = {
                "quality": statistics.fmean(quality(task, reply) for task, reply in replies),
                "cost_usd": statistics.fmean(outcome_cost(reply, model.price) for _, reply in replies),
                "questions": len(replies),
            }
    return figures
