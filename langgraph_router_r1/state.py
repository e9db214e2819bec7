"""What travels through the graph: input, state, output, context, and routed calls. All of it JSON-like."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from langchain_core.messages import AnyMessage, MessageLikeRepresentation, ToolCall
from langgraph.channels import DeltaChannel
from langgraph.graph.message import add_messages
from langgraph.types import Overwrite
from typing_extensions import TypedDict

from langgraph_router_r1.ledger import CostParts, FinishReason, PriceNote, Usage
from langgraph_router_r1.question import last_question
from langgraph_router_r1.transcript import Segment

CallStatus = Literal["ok", "error", "unknown_model", "over_budget", "denied", "rejected", "resting"]
"""`ok`: it replied. `error`: it was asked and failed. The others were never asked: no model has that name, or the
one that has it reads no images and the question has one; its worst case is over what is left of the budget; it is one
call too many in its turn; a person rejected it; or the model rests because it keeps failing."""

StopReason = Literal[
    "answered", "forced_answer", "cut_off", "no_answer", "context_full", "budget_exhausted", "degraded"
]
"""`answered`: the router answered by itself. `forced_answer`: it answered when it could not ask any more.
`cut_off`: its answer was longer than the tokens that it may write in a turn, and ends in the middle.
`no_answer`: not even then. `context_full`: its context has no room for another turn.
`budget_exhausted`: not even the router's own next turn can be paid. `degraded`: the router LLM did not answer, and
the models were asked without it, in the order of the `fallback`; the answer is the reply of one of them."""


class Tools(TypedDict):
    """Tools that routed models may call; `calls.tools.make_tools` makes them."""

    tools: list[dict[str, Any]]
    """In OpenAI's form."""
    choice: str | None
    """None: the model decides; "any": it must call one; else the name of the one that it must call."""
    is_form: bool
    """Whether the tool is only the form of the final answer."""


class Review(TypedDict):
    """What a person decided on a call before it was made."""

    decision: Literal["approve", "edit", "reject"]
    message: str | None
    """Why it was rejected."""
    model: str
    """Which model was to be asked, before an edit."""
    query: str
    """What it was to be asked, before an edit."""


class RoutedCall(TypedDict):
    """One routed call: who was asked what, what came back, at what cost."""

    turn: int
    """The route turn it belongs to, from 0."""
    index: int
    """Its place in that turn, from 0."""
    model: str
    """The model that was asked, by its name in the registry."""
    query: str
    response: str
    """The reply, without the thinking that the model shows; empty unless `status` is `ok`."""
    status: CallStatus
    reason: str | None
    """Why it is not `ok`, in words that are fit for anyone to read; None when it is. Where a fallback replied, why the
    model that was asked did not."""
    usage: Usage
    cost_usd: float
    """What was spent: 0 on a cache hit."""
    list_cost_usd: float
    """What the call costs at list price: the sum of `list_cost_parts`."""
    list_cost_parts: CostParts
    """The same by what is paid for."""
    latency_s: float
    answered_by: str | None
    """The model that replied: `model`, or one of its fallbacks."""
    failed: NotRequired[list[str]]
    """The models that were sent the call and failed, in order; missing in calls of before 2026-11-30."""
    finish_reason: FinishReason | None
    """Why the reply ended; None when there is none."""
    maybe_cost_usd: float | None
    """The most that may have been billed beside `cost_usd`: the worst case of each attempt that was given up, or that
    failed after it was sent. None when no upper bound is known."""
    maybe_billed_twice: bool
    """Whether this call may have been made and billed once before: an earlier attempt had begun when its process, or
    the run, was stopped, and left no reply. Its worst case is part of `maybe_cost_usd`."""
    tool_calls: list[ToolCall]
    """The tools that the model called instead of, or besides, replying in text."""
    review: Review | None
    """What a person decided on it; None for a call that needed no approval."""
    inner: RunReport | None
    """The account of the router that replied or broke off, when a model that was asked is itself a router."""


class ModelBill(TypedDict):
    """What one routed model did in a run."""

    calls: int
    failed: int
    cost_usd: float
    prompt_tokens: int
    completion_tokens: int


class RunReport(TypedDict):
    """The account of a run."""

    turns: int
    """Turns in which models were asked."""
    calls: list[RoutedCall]
    cost_usd: float
    """All that was spent on the question, as far as it is known: calls, router, and `earlier_cost_usd`."""
    router_cost_usd: float
    list_cost_parts: CostParts
    """What this run costs at list price by what is paid for, cache hits included; `router` holds its own tokens too."""
    earlier_cost_usd: float
    """What attempts at the same question cost that broke off before this one; their calls are not in `calls`."""
    maybe_cost_usd: float | None
    """The most that may have been billed beside `cost_usd`, as in `RoutedCall`. None: no bound is known."""
    maybe_billed_twice: int
    """How many of the calls may have been billed twice; see `RoutedCall.maybe_billed_twice`."""
    thread_cost_usd: float
    """What all questions of the thread cost so far, this one included; `cost_usd` when there is no checkpointer."""
    by_model: dict[str, ModelBill]
    router_tokens: Usage
    candidate_tokens: Usage
    stop_reason: StopReason | None
    """None while it runs."""


class Spending(TypedDict):
    """Dollars spent, and the most that may have been billed beside them (None: no bound is known)."""

    cost_usd: float
    maybe_cost_usd: float | None


class RunLimits(TypedDict):
    """What one run is held to; kept in the state, so that a resumed run is held to the same."""

    max_turns: int
    max_parallel: int
    cost_weight: float
    budget_usd: float | None


class RouterInput(TypedDict):
    """What a run starts from."""

    messages: Annotated[list[MessageLikeRepresentation], add_messages]
    """The last human message is the question; earlier ones are context; system messages are kept."""


class RouterOutput(TypedDict):
    """What a run gives back."""

    messages: Annotated[list[AnyMessage], add_messages]
    """The messages with the answer behind them, as an `AIMessage`."""
    answer: str
    routing: RunReport


class CallNote(TypedDict):
    """A call as a strategy decided it."""

    model: str
    query: str
    known: bool


class DecisionNote(TypedDict):
    """One decision of a strategy, for the record; what it put into the transcript stands there."""

    kind: Literal["ask", "answer", "again"]
    at: float
    """When, in seconds since 1970."""
    thought: str | None
    segments: int
    """How many segments it added to the transcript."""
    usage: Usage | None
    """The tokens that it took."""
    notes: dict[str, Any] | None
    calls: list[CallNote]
    text: str
    """The answer; empty for other kinds."""
    tool_calls: list[ToolCall]
    """The tool calls that the run ends with."""
    stop_reason: StopReason | None
    reply: str | None
    plan: PlanNote | None
    """What it means to do, if the decision was to show that."""


class PlannedStep(TypedDict):
    """One step of a plan."""

    text: str
    """What is asked; `#1` stands for the result of step 1."""
    needs: list[int]
    """The numbers of the steps whose results it uses."""
    model: str
    """Who is asked."""
    worst_case_usd: float | None
    """The most that it can cost; None when nothing bounds it."""


class PlanNote(TypedDict):
    """What a strategy means to do, before it does it."""

    steps: list[PlannedStep]
    worst_case_usd: float | None
    """The most that the steps can cost together, each asked once; None when nothing bounds it."""
    reason: str | None
    """Why it is the question as one step, and not what was planned; None for a plan that was."""


class ReviewedPlan(TypedDict):
    """What a person decided on a plan."""

    decision: Literal["approve", "edit", "reject"]
    message: str | None
    """Why it was rejected."""
    texts: list[str]
    """What is asked in each step."""
    models: list[str]
    """Who is asked."""


class StrategyNote(TypedDict):
    """Who decided, for the record."""

    name: str
    policy: str | None
    """The router LLM's name on its server; None for other strategies."""
    prompt_digest: str | None
    """SHA-256 of the router LLM's prompt template."""
    price: PriceNote
    """Of the strategy's own tokens, in dollars per million."""


class Beginning(TypedDict):
    """The messages that a run began with."""

    messages: int
    """How many."""
    digest: str
    """SHA-256 of what they say."""


class WarmCache(TypedDict):
    """A model whose provider is likely to have the beginning of its next prompt in its cache; an estimate."""

    model: str
    tokens: int
    """How many prompt tokens that are."""
    saving_usd: float
    """Dollars that a call costs less for it."""


def extend(state: list[Any], writes: Sequence[list[Any]]) -> list[Any]:
    """Return the list with each written list behind it: the reducer of what only grows."""
    return [*state, *(item for write in writes for item in write)]


class RouterState(TypedDict):
    """Everything a run knows between two steps."""

    messages: Annotated[list[AnyMessage], add_messages]
    question_id: NotRequired[str | None]
    """Id of the message that this run answers; another one at the end of `messages` starts a new run."""
    # A checkpoint holds what was added, not the whole again: a run of 100 turns would write 43 MB.
    transcript: NotRequired[Annotated[list[Segment], DeltaChannel(extend)]]
    calls: NotRequired[Annotated[list[RoutedCall], DeltaChannel(extend)]]
    router_usage: NotRequired[Annotated[list[Usage], DeltaChannel(extend)]]
    """One entry for each decision that took tokens."""
    turn: NotRequired[int]
    """Route turns so far."""
    decisions: NotRequired[Annotated[list[DecisionNote], DeltaChannel(extend)]]
    strategy: NotRequired[StrategyNote]
    prices: NotRequired[dict[str, PriceNote]]
    """What the models of the pool cost in this run, by name."""
    notes: NotRequired[dict[str, Any]]
    """What the strategy keeps between its decisions, such as how many turns of a router LLM could not be read."""
    degraded: NotRequired[bool]
    """Whether the fallback decides, because the router LLM does not answer."""
    limits: NotRequired[RunLimits]
    """The limits of the run, settled in its first turn."""
    began_with: NotRequired[Beginning]
    """The messages of the run as it began."""
    warm: NotRequired[list[WarmCache]]
    """Prompt caches that were warm when the run began, from the run before it on the thread."""
    pending: NotRequired[PendingCalls | None]
    """The calls of the latest route turn, while a person has to decide on them."""
    proposed: NotRequired[PlanNote | None]
    """A plan, while a person has to decide on it."""
    in_flight_usd: NotRequired[float | None]
    """The most that the calls of the latest route turn can cost together; None: no bound is known."""
    earlier: NotRequired[Spending]
    """Spent by attempts at this question that broke off."""
    before: NotRequired[Spending]
    """Spent on this thread before this question."""
    stop_reason: NotRequired[StopReason | None]
    answer: NotRequired[str]
    answer_id: NotRequired[str | None]
    """Of the message that was streamed while it was written; None for one that was not."""
    tool_calls: NotRequired[list[ToolCall]]
    """The tool calls that the run ends with, in place of a text."""
    tools: NotRequired[Tools | None]
    """What the routed models of the run may call."""
    relayed: NotRequired[bool]
    """Whether the reply that is the answer was streamed already."""
    reply: NotRequired[str | None]
    """The whole reply that the answer was taken from; None when it is the answer itself."""
    routing: NotRequired[RunReport]


def nothing_yet() -> dict[str, Any]:
    """Return the update that clears what an earlier run on the thread left."""
    return {
        "calls": Overwrite([]),
        "router_usage": Overwrite([]),
        "turn": 0,
        "notes": {},
        "degraded": False,
        "pending": None,
        "proposed": None,
        "in_flight_usd": 0.0,
        "stop_reason": None,
        "answer": "",
        "answer_id": None,
        "relayed": False,
        "tool_calls": [],
        "reply": None,
    }


def tools_of(context: Any) -> Tools | None:
    """Return the tools of a run's context, of whatever type that is.

    Raises:
        TypeError: They are not from `make_tools`.
    """
    tools = context.tools if isinstance(context, RouterContext) else None
    if tools is not None and not (isinstance(tools, dict) and tools.keys() == Tools.__annotations__.keys()):
        msg = f"tools is a {type(tools).__name__}; make_tools of langgraph_router_r1.calls.tools makes what it must be"
        raise TypeError(msg)
    return tools


def question_of(state: RouterState) -> AnyMessage:
    """Return the message that a run answers."""
    return state["messages"][last_question(state["messages"])]


def is_fresh(state: RouterState) -> bool:
    """Return whether a run starts here: with another question, or with one that broke off while models were asked."""
    # Whoever sends a question again, instead of resuming, drops the calls in flight.
    return state.get("question_id") != question_of(state).id or calls_are_missing(state)


def is_degraded(state: RouterState) -> bool:
    """Return whether the fallback decides in the run that goes on here."""
    return state.get("degraded", False) and not is_fresh(state)


def calls_are_missing(state: RouterState) -> bool:
    """Return whether the calls of the latest route turn have left nothing in the state."""
    last = state.get("turn", 0) - 1
    return last >= 0 and not any(call["turn"] == last for call in state.get("calls", []))


def has_ended(state: RouterState) -> bool:
    """Return whether the run that the state holds, if any, came to its end."""
    return state.get("question_id") is None


class Refusal(TypedDict):
    """Why a call is not made."""

    status: CallStatus
    reason: str


class PlannedCall(TypedDict):
    """The payload of one `Send("route", ...)`."""

    id: NotRequired[str]
    """Unique to the call and kept in the checkpoint: a resumed run makes the call under the same id."""
    turn: int
    index: int
    model: str
    query: str
    refusal: Refusal | None
    """Set when the call must not be made: `route` then only records it."""
    review: NotRequired[Review]
    context: NotRequired[list[AnyMessage]]
    """The messages of the run, if the model shares them; else the question, if it has images."""
    tools: NotRequired[Tools]
    """What the model may call."""
    relay_id: NotRequired[str]
    """The reply is to be the answer, and is streamed as the message of this id."""


class PendingCalls(TypedDict):
    """The calls of a turn that a person has to decide on."""

    calls: list[PlannedCall]
    left_usd: float | None
    """Dollars that they may cost together; None for no limit."""
    needs_approval: list[int]
    """The places in the turn of those that a person has to decide on."""


def planned_call(turn: int, index: int, model: str, query: str, refusal: Refusal | None = None) -> PlannedCall:
    """Return a call with an id of its own."""
    call_id = uuid.uuid4().hex
    return {"id": call_id, "turn": turn, "index": index, "model": model, "query": query, "refusal": refusal}


@dataclass(kw_only=True)
class RouterContext:
    """Overrides for one run; what is None is as it was built.

    A run keeps its limits in its state, so an interrupted run is resumed with the limits that it had. A context that is
    given when it is resumed changes them from there on.

    Example:
        >>> RouterContext(cost_weight=0.9, budget_usd=0.001)  # doctest: +ELLIPSIS
        RouterContext(cost_weight=0.9, budget_usd=0.001, ...)
    """

    cost_weight: float | None = None
    """How much money counts against quality, 0 to 1 (α in the paper); written into the router's prompt."""
    budget_usd: float | None = None
    """The most this run may spend, in dollars."""
    max_turns: int | None = None
    max_parallel: int | None = None
    stream: Literal["answer", "thought"] | None = None
    """What is streamed while it is written."""
    tools: Tools | None = None
    """What the routed models may call, from `calls.tools.make_tools`; settled when the run begins."""
