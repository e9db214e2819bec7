"""A model that keeps failing is rested: a circuit breaker for each model, shared by all who share its client.

After `rest_after` failures in a row (see `ModelDescriptor`) no request is sent to the model for `rest_s` seconds. The
first request after that is a trial: if it fails as well, the model rests again. Others are refused until it has ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from circuitbreaker import CircuitBreaker
from langchain_core.exceptions import ModelAPIError, ModelConnectionError, ModelTimeoutError

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines.base import EngineUnavailableError

logger = logging.getLogger(__name__)

UNHEALTHY = (
    ModelAPIError,
    ModelConnectionError,
    ModelTimeoutError,
    TimeoutError,
    ConnectionError,
    EngineUnavailableError,
)
"""The failures that count: server errors, no connection, no reply in time; the last is of a router that is asked as a
model. Any other failure shows that the model is there, as a reply does. A rate limit does, too: a burst of calls meets
it all at once, and waiting a second helps."""


class RestingError(RuntimeError):
    """The model is resting, so the request was not sent."""


class _UnhealthyError(Exception):
    """Stands for a failure: the breaker keeps the last one, and a provider's would keep all that its frames hold."""


class Health:
    """Whether a model may be asked. May be used from any thread and event loop."""

    def __init__(self, model: ModelDescriptor) -> None:
        """Begin in good health."""
        self._model = model
        self._breaker = CircuitBreaker(model.rest_after, model.rest_s, _UnhealthyError)
        self._on_trial = False
        # The breaker has no lock, and lets any number of requests through at the end of a rest.
        self._lock = threading.Lock()

    @property
    def is_resting(self) -> bool:
        """Whether a request would be refused now."""
        return bool(self._breaker.opened or self._on_trial)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Let a request pass, and learn from how it ends.

        Raises:
            RestingError: The model is resting.
        """
        with self._lock:
            if self.is_resting:
                raise RestingError(f"{self._model.name} is resting after {self._failures}")
            is_trial = self._on_trial = not self._breaker.closed
        try:
            yield
        except Exception as error:
            self._note(is_healthy=not isinstance(error, UNHEALTHY), is_trial=is_trial)
            raise
        else:
            self._note(is_healthy=True, is_trial=is_trial)
        finally:
            if is_trial:  # also of one that was cancelled, which says nothing: the next request is the trial then
                self._on_trial = False

    def _note(self, *, is_healthy: bool, is_trial: bool) -> None:
        with self._lock:
            if not (is_trial or self._breaker.closed):
                return  # it had begun before the rest, which it neither ends nor makes longer
            with contextlib.suppress(_UnhealthyError), self._breaker:
                if not is_healthy:
                    raise _UnhealthyError
            if self._breaker.opened:
                logger.warning("%s rests for %g s after %s", self._model.name, self._model.rest_s, self._failures)
            elif is_trial:
                logger.info("%s is back from its rest", self._model.name)

    @property
    def _failures(self) -> str:
        count = self._breaker.failure_count
        return "a failure" if count == 1 else f"{count} failures in a row"
