"""What a run streams: typed events with `stream_mode="custom"`, the answer token by token with "messages".

    for event in router.stream({"messages": [("user", "Which?")]}, stream_mode="custom"):
        if event["type"] == "router_r1.info":
            print(event["answered_by"], event["cost_usd"])

Nothing is made for a run that nobody listens to.
"""

from __future__ import annotations

import contextvars
import threading
import uuid
from typing import Literal, NotRequired, Self

from langchain_core.messages import AIMessageChunk
from langgraph.config import get_config, get_stream_writer
from langgraph.constants import TAG_NOSTREAM
from langgraph.graph.message import push_message
from langgraph.pregel._messages import StreamMessagesHandler
from langgraph.runtime import get_runtime
from typing_extensions import TypedDict

from langgraph_router_r1.ledger import Usage
from langgraph_router_r1.protocol import encodable
from langgraph_router_r1.state import (
    CallStatus,
    PlannedCall,
    PlannedStep,
    PlanNote,
    Review,
    RoutedCall,
    RouterContext,
    RouterState,
    RunReport,
)
from langgraph_router_r1.storable import without_nul

StreamedText = Literal["answer", "thought"]
"""What is streamed while it is written: the answer alone, or what the router LLM thinks as well."""


class ThinkDelta(TypedDict):
    """The router LLM thinks; only with `stream="thought"`."""

    type: Literal["router_r1.think_delta"]
    turn: int
    text: str
    """What is added to its thought."""


class AnswerDelta(TypedDict):
    """The answer comes; all of them together are the answer."""

    type: Literal["router_r1.answer_delta"]
    message_id: str
    """Of the message that the answer becomes. Should the router's server break off in the middle of an answer, the
    fallback's answer has another id, and takes its place."""
    text: str
    """What is added to the answer."""


class ThinkEvent(TypedDict):
    """A turn of the router is complete."""

    type: Literal["router_r1.think"]
    turn: int
    text: str
    """What the router LLM wrote; or that it does not answer, and which models the fallback asks, as a thought."""


class PlanEvent(TypedDict):
    """A plan is made; only of strategies that plan."""

    type: Literal["router_r1.plan"]
    steps: list[PlannedStep]
    worst_case_usd: float | None
    reason: str | None


class RouteEvent(TypedDict):
    """A call is about to be made."""

    type: Literal["router_r1.route"]
    turn: int
    index: int
    model: str
    query: str
    review: NotRequired[Review]
    """What a person decided on it, and what it was before an edit; missing for a call that needed no approval."""


class InfoEvent(TypedDict):
    """A call is over."""

    type: Literal["router_r1.info"]
    turn: int
    index: int
    model: str
    answered_by: str | None
    status: CallStatus
    reason: str | None
    response: str
    usage: Usage
    cost_usd: float
    latency_s: float


class DoneEvent(TypedDict):
    """The run is over."""

    type: Literal["router_r1.done"]
    answer: str
    routing: RunReport


RouterEvent = ThinkDelta | ThinkEvent | PlanEvent | RouteEvent | InfoEvent | AnswerDelta | DoneEvent
"""What `stream_mode="custom"` yields, told apart by `type`."""


def stream_thought(turn: int, text: str) -> None:
    """Stream what a turn thought and decided."""
    event: ThinkEvent = {"type": "router_r1.think", "turn": turn, "text": text}
    get_stream_writer()(event)


def stream_plan(plan: PlanNote) -> None:
    """Stream what a strategy means to do."""
    event: PlanEvent = {"type": "router_r1.plan", **plan}
    get_stream_writer()(event)


def stream_call(call: PlannedCall) -> None:
    """Stream that a call is about to be made."""
    event: RouteEvent = {
        "type": "router_r1.route",
        "turn": call["turn"],
        "index": call["index"],
        "model": call["model"],
        "query": call["query"],
    }
    if "review" in call:
        event["review"] = call["review"]
    get_stream_writer()(event)


def stream_reply(call: RoutedCall) -> None:
    """Stream what came of a call."""
    event: InfoEvent = {
        "type": "router_r1.info",
        "turn": call["turn"],
        "index": call["index"],
        "model": call["model"],
        "answered_by": call["answered_by"],
        "status": call["status"],
        "reason": call["reason"],
        "response": call["response"],
        "usage": call["usage"],
        "cost_usd": call["cost_usd"],
        "latency_s": call["latency_s"],
    }
    get_stream_writer()(event)


def stream_end(answer: str, routing: RunReport) -> None:
    """Stream that the run is over."""
    event: DoneEvent = {"type": "router_r1.done", "answer": answer, "routing": routing}
    get_stream_writer()(event)


class AnswerStream:
    """Passes an answer on to whoever listens to the run, while it is written. May be used from any thread."""

    def __init__(self, turn: int, streamed: StreamedText, message_id: str | None = None) -> None:
        """Begin a turn, in the node that it is of: events need its context.

        Raises:
            ValueError: `streamed` is neither "answer" nor "thought".
        """
        if streamed not in {"answer", "thought"}:
            msg = f"stream is {streamed!r}; it must be 'answer' or 'thought'"
            raise ValueError(msg)
        self.message_id = message_id or _new_id()
        """Of the message that the answer becomes. With thoughts, all turns of a run are one message."""
        self._turn, self._streams_thoughts = turn, streamed == "thought"
        self._thinks = False
        self._shown: list[str] = []
        self._context, self._lock = contextvars.copy_context(), threading.Lock()
        self._pushes = _is_heard_as_messages()

    @classmethod
    def if_heard(cls, streamed: StreamedText, state: RouterState | None) -> Self | None:
        """Return a stream for the turn that begins, if somebody listens to its run: else there is nothing to do.

        Args:
            streamed: What is streamed, unless the context of the run says otherwise.
            state: Of the run; None if it begins here.
        """
        if not _is_heard():
            return None
        context = get_runtime().context
        of_run = context.stream if isinstance(context, RouterContext) else None
        turn = state.get("turn", 0) if state is not None else 0
        # Thoughts of several turns and the answer are one message. Without them a turn begins a new one: some of an
        # answer may have been shown in an attempt at this turn that broke off.
        message_id = state.get("answer_id") if state is not None and (of_run or streamed) == "thought" else None
        return cls(turn, of_run or streamed, message_id)

    @classmethod
    def of_relay(cls, call: PlannedCall) -> Self | None:
        """Return a stream for a reply that is to be the answer, if somebody listens; None for other calls."""
        if "relay_id" not in call or call["refusal"] is not None or not _is_heard():
            return None
        return cls(call["turn"], "answer", call["relay_id"])

    def think(self, text: str) -> None:
        """Show what is added to the thought, if thoughts are shown."""
        if self._streams_thoughts:
            if self._turn and not self._thinks:
                text = f"\n{text}"  # of another turn than the thoughts before
            self._thinks = True
            event: ThinkDelta = {"type": "router_r1.think_delta", "turn": self._turn, "text": text}
            thought = AIMessageChunk(content="", id=self.message_id, additional_kwargs={"reasoning_content": text})
            self._show(event, thought)

    def answer(self, text: str) -> None:
        """Show what is added to the answer."""
        text = without_nul(encodable(text))  # as it will stand in the answer
        self._shown.append(text)
        event: AnswerDelta = {"type": "router_r1.answer_delta", "message_id": self.message_id, "text": text}
        self._show(event, AIMessageChunk(content=text, id=self.message_id))

    def finish(self, answer: str) -> None:
        """Show what is left of the answer; all of it, if none was shown yet."""
        shown = "".join(self._shown)
        if not answer.startswith(shown):  # it is another one after all
            self.abandon()
            shown = ""
        if len(answer) > len(shown):
            self.answer(answer[len(shown) :])

    def abandon(self) -> None:
        """Begin again: what was shown, if anything, becomes no message."""
        if self._shown:
            self.message_id, self._shown = _new_id(), []

    def _show(self, event: RouterEvent, chunk: AIMessageChunk) -> None:
        with self._lock:  # a context can't be entered twice at a time
            self._context.run(self._write, event, chunk)

    def _write(self, event: RouterEvent, chunk: AIMessageChunk) -> None:
        get_stream_writer()(event)
        if self._pushes:
            push_message(chunk, state_key=None)


def _new_id() -> str:
    return f"answer-{uuid.uuid4().hex}"


def _is_heard() -> bool:
    # The writer of a run without "custom" is a function that does nothing and knows of nothing.
    writes = getattr(get_runtime().stream_writer, "__closure__", None) is not None
    return writes or _is_heard_as_messages()


def _is_heard_as_messages() -> bool:
    config = get_config()
    # A router that is asked by another router, or by a node that says so, keeps its answer out of the stream.
    if TAG_NOSTREAM in (config.get("tags") or ()):
        return False
    callbacks = config.get("callbacks")
    handlers = callbacks if isinstance(callbacks, list) else getattr(callbacks, "handlers", ())
    return any(isinstance(handler, StreamMessagesHandler) for handler in handlers)
