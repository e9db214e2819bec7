"""What Prometheus is told: runs, calls, tokens, dollars and latencies by model, and refusals by reason.

Labels are names of the registry and words of this package, never anything that a client or a model wrote.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.registry import ModelRegistry

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

NOT_ASKED = frozenset({"unknown_model", "over_budget", "denied", "rejected", "resting"})
"""States of calls that were never made; their model may be a name that a router LLM made up."""


class Metrics:
    """The metrics of one server, or of its shadow."""

    def __init__(self, prefix: str = "router_r1", registry: CollectorRegistry | None = None) -> None:
        """Begin at zero.

        Args:
            prefix: How the names of the metrics begin.
            registry: Where they are shown; by default in a registry of their own.
        """
        self._registry = registry or CollectorRegistry()
        self._prefix = prefix

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"{prefix}_{name}", what, labels, registry=self._registry)

        self._runs = counter("runs", "Runs, by how they ended.", "target", "status")
        self._calls = counter("calls", "Routed calls that were made.", "model", "status")
        self._tokens = counter("tokens", "Tokens of routed calls and of the router.", "model", "kind")
        self._dollars = counter("dollars", "Dollars spent on routed calls and on the router.", "model")
        self._refusals = counter("refusals", "Requests that were refused before a run began.", "reason")
        self.running = Gauge(f"{prefix}_running", "Runs that are running.", registry=self._registry)
        self._run_seconds = Histogram(
            f"{prefix}_run_seconds", "Seconds of a run.", ["target"], buckets=_SECONDS, registry=self._registry
        )
        self._call_seconds = Histogram(
            f"{prefix}_call_seconds", "Seconds of a routed call.", ["model"], buckets=_SECONDS, registry=self._registry
        )

    def of_shadow(self) -> Metrics:
        """Return the same metrics of the shadow, on the same page: `router_r1_shadow_runs` and so on."""
        return Metrics(f"{self._prefix}_shadow", self._registry)

    def refused(self, reason: str) -> None:
        """Count a request that was refused."""
        self._refusals.labels(reason).inc()

    def ended(self, target: str, status: str, seconds: float, record: RunRecord | None, pool: ModelRegistry) -> None:
        """Count a run, and the calls in its record."""
        self._runs.labels(target, status).inc()
        self._run_seconds.labels(target).observe(seconds)
        if record is None:
            return
        own = record.report["router_tokens"]
        self._tokens.labels("router", "prompt").inc(own["prompt_tokens"])
        self._tokens.labels("router", "completion").inc(own["completion_tokens"])
        self._dollars.labels("router").inc(record.report["router_cost_usd"])
        for call in record.calls:
            model = call["answered_by"] or call["model"]
            if call["status"] in NOT_ASKED or model not in pool:
                continue
            self._calls.labels(model, call["status"]).inc()
            self._tokens.labels(model, "prompt").inc(call["usage"]["prompt_tokens"])
            self._tokens.labels(model, "completion").inc(call["usage"]["completion_tokens"])
            self._dollars.labels(model).inc(call["cost_usd"])
            self._call_seconds.labels(model).observe(call["latency_s"])

    def calls(self) -> dict[str, dict[str, int]]:
        """Return how many calls each model was sent since the server started, by status."""
        counts: dict[str, dict[str, int]] = {}
        for sample in next(iter(self._calls.collect())).samples:
            if sample.name.endswith("_total"):
                counts.setdefault(sample.labels["model"], {})[sample.labels["status"]] = int(sample.value)
        return counts

    def text(self) -> bytes:
        """Return all in Prometheus's text format."""
        return generate_latest(self._registry)
