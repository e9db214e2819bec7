"""A trace of a run for OpenTelemetry, with what each turn and each call cost.

python examples/09_tracing.py    # scripted: no network, no weights
"""

from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.otel import COST, TOTAL_COST, OpenTelemetryTracer
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION: Any = {"messages": [("user", "Which has more people, Lima or Quito?")]}
TURNS = [
    "<think> Two numbers. </think><search> small: How many people live in Lima? </search>",
    "<think> One more. </think><search> large: How many people live in Quito? </search>",
    "<think> Lima has more. </think><answer> Lima </answer>",
]


def main() -> None:
    """Run the router once, and print the spans that it made."""
    spans = InMemorySpanExporter()  # a program exports them, for instance with an OTLPSpanExporter
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))

    small = ModelDescriptor(name="small", model=ScriptedChatModel(["10 million"]), price=0.1)
    large = ModelDescriptor(name="large", model=ScriptedChatModel(["2 million"]), price=5.0)
    router = create_router(ScriptedEngine(TURNS), ModelRegistry([small, large]), router_price=0.05)
    result = router.invoke(QUESTION, {"callbacks": [OpenTelemetryTracer(provider)]})

    for span in sorted(spans.get_finished_spans(), key=lambda span: span.start_time or 0):
        told = span.attributes or {}
        cost = told.get(TOTAL_COST, told.get(COST))
        print(f"{span.name:24}" + (f"${cost:.7f}" if cost is not None else ""))
    print(f"{'account':24}${result['routing']['cost_usd']:.7f}")


if __name__ == "__main__":
    main()
