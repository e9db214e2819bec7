"""A shadow: a second router that is given a share of the requests, so that the two can be compared.

It is asked after the answer of the first one is there. It has connections, a budget and metrics of its own, and nothing
of it reaches the client.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field, replace
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

from langgraph_router_r1.engines.base import RouterEngine
from langgraph_router_r1.question import question_images
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.serving.errors import ApiError
from langgraph_router_r1.serving.metrics import Metrics
from langgraph_router_r1.serving.options import ServerSettings
from langgraph_router_r1.serving.runs import Run, Runs
from langgraph_router_r1.serving.shadow_file import ShadowSettings
from langgraph_router_r1.serving.store import SHADOW_ID, Store
from langgraph_router_r1.serving.targets import Targets
from langgraph_router_r1.serving.wire import RouterOptions
from langgraph_router_r1.settings import RouterSettings
from langgraph_router_r1.strategies import Strategy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShadowRouter:
    """A second router, and how much of the traffic it is given.

    Example:
        >>> ShadowRouter(settings=ShadowSettings(name="frugal", share=0.1, day_usd=1.0, cost_weight=0.9))
    """

    settings: ShadowSettings
    engine: RouterEngine | Strategy | None = None
    """Who decides; None: whoever does for the server, with the settings of the server's router but its cache."""
    router: RouterSettings = field(default_factory=RouterSettings)
    """The settings of an `engine` of its own."""
    registry: ModelRegistry | None = None
    """The models that may be asked; None: the server's."""


class Shadow:
    """The runs of a shadow."""

    def __init__(
        self,
        settings: ShadowSettings,
        targets: Targets,
        store: Store,
        saver: BaseCheckpointSaver[Any],
        server: ServerSettings,
        metrics: Metrics,
    ) -> None:
        """Give these targets a share of the requests; `serve` replaces them.

        Args:
            settings: How large a share, and for how much money.
            targets: The second router.
            store: The server's.
            saver: The server's.
            server: The settings of the server; of those, the time that a run may take holds here, too.
            metrics: Those of the shadow.
        """
        self._metrics = metrics
        self.runs = Runs(store, saver, targets, server, metrics)
        self._starting: set[asyncio.Task[None]] = set()
        self.serve(settings, targets)

    def serve(self, settings: ShadowSettings, targets: Targets) -> None:
        """Give this router the requests from now on; runs that have begun keep theirs."""
        self._settings, self.runs.targets = settings, targets
        most = settings.max_concurrent
        self.runs.settings = replace(self.runs.settings, max_concurrent=most, run_budget_usd=None)

    def follow(self, run: Run) -> None:
        """Give the shadow the request of a run once that has ended, if the request is drawn."""
        assert run.task is not None
        run.task.add_done_callback(lambda _: self._ended(run))

    def _ended(self, run: Run) -> None:
        if run.error is not None or not run.target.is_repeatable:
            return
        if random.random() >= self._settings.share:  # noqa: S311 - a sample, and no secret
            return
        if run.asked.tools is not None or question_images(run.asked.messages):
            self._metrics.refused("images" if run.asked.tools is None else "tools")
            return
        starting = asyncio.create_task(self._start(run))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)

    async def _start(self, run: Run) -> None:
        options = RouterOptions(
            # The shadow is held to what the first run was held to, or to less.
            budget_usd=run.stored.reserved_usd,
            cost_weight=run.asked.options.cost_weight
            if self._settings.cost_weight is None
            else self._settings.cost_weight,
            trace=False,
        )
        asked = replace(run.asked, options=options, stream=False)
        try:
            target = self.runs.targets.find(asked.model)
            await self.runs.start(asked, target, self._settings.account, run_id=f"{SHADOW_ID}{run.id}")
        except ApiError as error:
            self._metrics.refused(error.code)
        except Exception:  # whatever it is, it must not reach the server
            logger.exception("%s has no shadow", run.id)
            self._metrics.refused("server_failed")

    async def stop(self) -> None:
        """Begin nothing more, break off what runs, and wait until it is recorded."""
        self.runs.is_stopping = True
        await asyncio.gather(*self._starting)
        await self.runs.stop()
