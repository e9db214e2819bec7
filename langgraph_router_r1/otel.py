"""Traces of runs for OpenTelemetry, by its conventions for generative AI; needs `langgraph-router-r1[otel]`.

A run of the router is a span `invoke_agent`. Below it each turn is a span `think`, each routed call a span `route`, and
each request to a model, the router LLM's own included, a span `chat`. A turn or a call says what it cost, and the run
what it cost in all.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command, Overwrite
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from typing_extensions import override

from langgraph_router_r1.ledger import Price, cost, finish_of
from langgraph_router_r1.machine import NODE_KEY

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult

CONTENT_ENV = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""The environment variable by which OpenTelemetry's instrumentations are told to keep prompts and replies."""

COST = "router_r1.cost_usd"
"""What a turn or a call cost, in dollars, without what a router below it tells of itself. Their sum is the account."""

TOTAL_COST = "router_r1.total_cost_usd"
"""What a run cost, in dollars: its turns and its calls."""


@dataclass
class _Run:
    """A run of LangChain's that has begun."""

    parent: _Run | None
    name: str
    inputs: Any
    metadata: Mapping[str, Any]
    span: Span | None = None
    cost_usd: float = 0.0
    """Of what is below it, as far as it has ended."""

    @property
    def is_node(self) -> bool:
        """Whether it is a node of the router, and not something below one."""
        return self.metadata.get(NODE_KEY) == self.name

    @property
    def above(self) -> _Run | None:
        """The nearest run around it that has a span."""
        run = self.parent
        while run is not None and run.span is None:
            run = run.parent
        return run


class OpenTelemetryTracer(BaseCallbackHandler):
    """A callback handler that makes spans of the router's runs, and of nothing else that it is told of.

    Spans hold prompts, replies and answers only if they are asked for. A failure is told by the type of its error.

    Example:
        >>> tracer = OpenTelemetryTracer()
        >>> router.invoke({"messages": [...]}, {"callbacks": [tracer]})                    # doctest: +SKIP
    """

    run_inline = True
    """In the order of what happens, and where the current span is known."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        *,
        content: bool | None = None,
        mask: Callable[[str], str] = str,
    ) -> None:
        """Make spans with a provider.

        Args:
            tracer_provider: By default OpenTelemetry's global one.
            content: Whether spans hold texts; by default whether the environment variable
                `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` is "true".
            mask: Takes out of a text what must not leave the process.
        """
        self._tracer = trace.get_tracer("langgraph_router_r1", tracer_provider=tracer_provider)
        self._content = os.environ.get(CONTENT_ENV, "").lower() == "true" if content is None else content
        self._mask = mask
        self._runs: dict[UUID, _Run] = {}
        self._adding = threading.Lock()

    # Runs, turns and calls

    @override
    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: dict[str, Any],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        name: str = "",
        **_: Any,
    ) -> None:
        run = self._runs[run_id] = _Run(self._found(parent_run_id), name, inputs, metadata or {})
        if not run.is_node:
            return
        # That a chain is a router is known once one of its nodes begins.
        if run.parent is not None and run.parent.span is None:
            self._begin_router(run.parent, run.metadata.get("thread_id"))
        if name == "think":
            self._begin(run, "think", {"router_r1.turn": inputs.get("turn", 0)})
        elif name == "route":
            told = {f"router_r1.{key}": inputs[key] for key in ("model", "turn", "index")}
            refusal = inputs["refusal"]
            if refusal is not None and refusal["status"] == "unknown_model" and not self._content:
                del told["router_r1.model"]  # whatever the router LLM wrote there
            title = f"route {told.get('router_r1.model', '')}".rstrip()
            self._tell(self._begin(run, title, told), asked=[HumanMessage(inputs["query"])])

    def _begin_router(self, run: _Run, thread: str | None) -> None:
        told = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": run.name}
        if thread is not None:
            told["gen_ai.conversation.id"] = str(thread)
        messages = run.inputs.get("messages", ()) if isinstance(run.inputs, dict) else ()
        self._tell(self._begin(run, f"invoke_agent {run.name}", told), asked=convert_to_messages(messages))

    @override
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        run = self._runs.pop(run_id)
        if run.span is None:
            return
        update = outputs.update if isinstance(outputs, Command) else outputs
        given: Mapping[str, Any] = update if isinstance(update, Mapping) else {}
        if not run.is_node:
            self._end_router(run, run.span, given)
        elif run.name == "think":
            self._end_turn(run, given)
        elif run.name == "route":
            self._end_call(run, run.span, given)
        run.span.end()

    def _end_router(self, run: _Run, span: Span, outputs: Mapping[str, Any]) -> None:
        span.set_attribute(TOTAL_COST, run.cost_usd)
        if routing := outputs.get("routing"):
            _set(span, {key: routing[key] for key in ("stop_reason", "turns", "maybe_cost_usd")})
        self._tell(span, answered=outputs.get("messages", [])[-1:])
        self._add(run, run.cost_usd)

    def _end_turn(self, run: _Run, update: Mapping[str, Any]) -> None:
        decisions = update.get("decisions", [])
        [decision] = decisions.value if isinstance(decisions, Overwrite) else decisions
        strategy = update.get("strategy") or run.inputs["strategy"]
        self._end_paid(run, cost(decision["usage"], Price.parse(strategy["price"])) if decision["usage"] else 0.0)

    def _end_call(self, run: _Run, span: Span, update: Mapping[str, Any]) -> None:
        [call] = update["calls"]
        _set(span, {key: call[key] for key in ("status", "answered_by", "maybe_cost_usd")})
        if call["reason"] is not None and (self._content or call["status"] not in _REASONS_IN_OTHERS_WORDS):
            span.set_attribute("router_r1.reason", self._mask(call["reason"]))
        self._tell(span, answered=[AIMessage(call["response"])])
        self._end_paid(run, call["cost_usd"])

    def _end_paid(self, run: _Run, cost_usd: float) -> None:
        assert run.span is not None
        run.span.set_attribute(COST, cost_usd - run.cost_usd)
        self._add(run, cost_usd)

    def _add(self, run: _Run, cost_usd: float) -> None:
        if run.above is not None:
            with self._adding:  # calls end side by side
                run.above.cost_usd += cost_usd

    # Requests to models

    @override
    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **told: Any
    ) -> None:
        self._begin_chat(run_id, messages[0], **told)

    @override
    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **told: Any) -> None:
        self._begin_chat(run_id, [HumanMessage(prompts[0])], **told)

    def _begin_chat(
        self,
        run_id: UUID,
        messages: Sequence[BaseMessage],
        *,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        name: str | None = None,
        **_: Any,
    ) -> None:
        named = metadata or {}
        model = str(named.get("ls_model_name") or named.get("router_r1_model") or name)
        run = self._runs[run_id] = _Run(self._found(parent_run_id), model, None, named)
        if run.above is None:  # not of a router
            return
        told = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}
        if "ls_provider" in named:
            told["gen_ai.provider.name"] = str(named["ls_provider"])
        self._tell(self._begin(run, f"chat {model}", told, SpanKind.CLIENT), asked=messages)

    @override
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        if (span := self._runs.pop(run_id).span) is None:
            return
        message = getattr(response.generations[0][0], "message", None)
        if isinstance(message, AIMessage):
            span.set_attribute("gen_ai.response.finish_reasons", [finish_of(message.response_metadata)])
            if usage := message.usage_metadata:
                span.set_attribute("gen_ai.usage.input_tokens", usage["input_tokens"])
                span.set_attribute("gen_ai.usage.output_tokens", usage["output_tokens"])
            self._tell(span, answered=[message])
        span.end()

    # What ends in an error

    @override
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        run = self._runs.pop(run_id)
        if run.span is not None and not run.is_node:
            run.span.set_attribute(TOTAL_COST, run.cost_usd)
        self._fail(run, error)

    @override
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._fail(self._runs.pop(run_id), error)

    def _fail(self, run: _Run, error: BaseException) -> None:
        if (span := run.span) is None:
            return
        self._add(run, run.cost_usd)
        if not isinstance(error, GraphBubbleUp):  # an interrupt is no failure
            # Its words may hold keys and prompts.
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", type(error).__qualname__)
        span.end()

    # Spans

    def _found(self, run_id: UUID | None) -> _Run | None:
        return None if run_id is None else self._runs.get(run_id)

    def _begin(self, run: _Run, name: str, told: Mapping[str, Any], kind: SpanKind = SpanKind.INTERNAL) -> Span:
        above = run.above
        # Without one, the span that is current where the program called the router.
        context = None if above is None or above.span is None else trace.set_span_in_context(above.span)
        run.span = self._tracer.start_span(name, context, kind, attributes=told)
        return run.span

    def _tell(
        self, span: Span, *, asked: Sequence[BaseMessage] | None = None, answered: Sequence[BaseMessage] | None = None
    ) -> None:
        """Put texts into a span, if it shall hold any."""
        for key, messages in (("input", asked), ("output", answered)):
            if self._content and messages is not None:
                told = [{"role": _ROLES.get(one.type, one.type), "parts": [self._part(one)]} for one in messages]
                span.set_attribute(f"gen_ai.{key}.messages", json.dumps(told, ensure_ascii=False))

    def _part(self, message: BaseMessage) -> dict[str, str]:
        return {"type": "text", "content": self._mask(message.text)}


_REASONS_IN_OTHERS_WORDS = frozenset({"unknown_model", "rejected"})
"""States of calls whose reason holds what the router LLM or a person wrote."""

_ROLES = {"human": "user", "ai": "assistant"}


def _set(span: Span, told: Mapping[str, Any]) -> None:
    span.set_attributes({f"router_r1.{key}": value for key, value in told.items() if value is not None})
