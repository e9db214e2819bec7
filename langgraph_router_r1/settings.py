"""The settings of a router, each declared once: what `create_router` takes besides engine and pool."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from typing_extensions import TypedDict

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.state import RouterContext, RunLimits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langgraph.cache.base import BaseCache

    from langgraph_router_r1.calls.client import Clients
    from langgraph_router_r1.calls.middleware import CallMiddleware
    from langgraph_router_r1.engines.base import Fallback
    from langgraph_router_r1.events import StreamedText
    from langgraph_router_r1.ledger import PriceLike
    from langgraph_router_r1.prompts import RouterPrompt


AnswerStyle = Literal["short", "full"]
"""How long answers shall be: see `RouterSettings.answer`."""


@dataclass(frozen=True)
class PendingCall:
    """A call that waits to be made."""

    model: ModelDescriptor
    query: str
    worst_case_usd: float
    """The most that it can cost, in dollars; infinity when nothing bounds it."""


Approve = Literal["never", "always"] | dict[Literal["over"], float] | Callable[[PendingCall], bool]
"""Which calls need a person's approval: see `RouterSettings.approve`."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run is held to: the router's settings with the run's context over them."""

    max_turns: int = 4
    """Most turns in which models may be asked; then the router must answer."""
    max_parallel: int = 4
    """Most models that may be asked in one turn."""
    cost_weight: float = 0.0
    """How much money counts against quality, 0 to 1 (α in the paper); written into the router's prompt."""
    budget_usd: float | None = None
    """The most that a run may spend, in dollars; None for no limit."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_count = getattr(self, field.name), field.name.startswith("max_")
            if value is None and field.name == "budget_usd":
                continue
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number or (is_count and not float(value).is_integer()):
                raise TypeError(f"{field.name} is {value!r}; it must be a {'whole ' * is_count}number")
            object.__setattr__(self, field.name, int(value) if is_count else float(value))
        if self.max_turns < 0:
            msg = f"max_turns is {self.max_turns!r}; it must be 0 (never ask) or more"
            raise ValueError(msg)
        if self.max_parallel < 1:
            msg = f"max_parallel is {self.max_parallel!r}; it must be 1 or more"
            raise ValueError(msg)
        if not 0 <= self.cost_weight <= 1:
            msg = f"cost_weight is {self.cost_weight!r}; it must lie between 0 (quality only) and 1 (cost only)"
            raise ValueError(msg)
        if self.budget_usd is not None and not 0 <= self.budget_usd < float("inf"):
            msg = f"budget_usd is {self.budget_usd!r}; it must be 0 or more dollars, or None for no budget"
            raise ValueError(msg)

    def with_context(self, context: Any) -> Limits:
        """Return the limits with those that a run's context sets."""
        # Inside a larger graph the context is the parent's, of whatever type.
        if not isinstance(context, RouterContext):
            return self
        given = {field.name: getattr(context, field.name) for field in fields(self)}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def as_state(self) -> RunLimits:
        """Return them as they stand in the state."""
        return cast("RunLimits", asdict(self))


FOR_ROUTER_LLM = frozenset({"prompt", "constrain", "max_tokens", "max_info_tokens", "router_price"})
"""The settings that only a router LLM takes, and no other strategy."""


class RouterSettings(TypedDict, total=False):
    """The settings of a router, as keywords of `create_router` and `build_router`.

    Those that stand in `Limits` may be set for each run, by a `RouterContext`.
    """

    max_turns: int
    """See `Limits`, as for the next three."""
    max_parallel: int
    cost_weight: float
    budget_usd: float | None
    answer: AnswerStyle
    """How long answers shall be: "short" (the default: the answer alone, for questions and for training) or "full"
    (complete replies, for people). With "full", the router may also pass on a model's reply, word for word."""
    approve: Approve
    """Which calls wait until a person has approved them ("never"): "always", {"over": dollars} for those whose worst
    case is higher, or a function of a `PendingCall`. The run needs a checkpointer, and is interrupted."""
    stream: StreamedText
    """What is streamed while it is written, if somebody listens: "answer", or "thought" for what the router LLM thinks
    as well. Thoughts are marked as reasoning."""
    prompt: RouterPrompt | None
    """The template that states the task to the router LLM."""
    constrain: Literal["names"] | None
    """"names": while it samples, the router LLM can write only names of models that can be asked, where it names a
    model. The engine must be a `VLLMEngine`. Not for training: the tokens are not the policy's own choice then."""
    max_tokens: int
    """Most tokens that the router LLM writes in a turn (1024)."""
    max_info_tokens: int
    """Most tokens of what comes back to it after a turn (600)."""
    router_price: PriceLike
    """Price of its own tokens, in any form that `Price.parse` reads ("free"; with a `ChatModelEngine`, whose tokens a
    provider bills, it must be given)."""
    fallback: Fallback | Literal["knn"] | None
    """Chooses models when the router LLM does not answer: "knn", for a `KNNStrategy` on the registry's profile, or
    anything with its `rank`. The models are then asked the whole question in that order, at most three, until one
    replies; the run ends `degraded`. Should the fallback fail too, the cheapest are asked. None: such a run ends with
    the engine's `EngineError`. The first ranking of "knn" loads its embeddings, which takes seconds."""
    middleware: Sequence[CallMiddleware]
    """What stands around each call of a model, the outermost first: see `CallMiddleware`."""
    cache: BaseCache[Any] | None
    """Keeps the replies of routed models, in any cache of LangGraph's, such as a SQLite file: see `CallCache`."""
    clients: Clients | None
    """Built models that several routers share, with their connections; by default each router builds its own."""
    checkpointed: bool
    """Whether checkpoints of the graph are stored whenever it has a checkpointer (True). False only for a graph that is
    compiled with `checkpointer=False` and embedded in a graph that has one: then no call is noted."""
