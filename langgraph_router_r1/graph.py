"""The state machine: think, route, answer. `build_router` makes the graph, `create_router` compiles it.

    START -> think -> route (one for each call, in parallel) -> think ... -> answer -> END

The nodes are in `machine.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args

from langgraph.cache.base import BaseCache
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from langgraph.types import All, Checkpointer
from typing_extensions import Unpack

from langgraph_router_r1.calls import CallCache, Candidates
from langgraph_router_r1.calls.approval import Approval
from langgraph_router_r1.engines.base import RouterEngine, own_price
from langgraph_router_r1.events import StreamedText
from langgraph_router_r1.ledger import PriceLike
from langgraph_router_r1.machine import RouterMachine
from langgraph_router_r1.prompts import RouterPrompt
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.settings import AnswerStyle, Limits, RouterSettings
from langgraph_router_r1.state import (
    RouterContext,
    RouterInput,
    RouterOutput,
    RouterState,
)
from langgraph_router_r1.strategies import RouterLLM, Strategy
from langgraph_router_r1.strategies.allocators import Allocator, make_allocator
from langgraph_router_r1.strategies.fallback import FallbackPlan
from langgraph_router_r1.strategies.planner import Planner, Review
from langgraph_router_r1.strategies.plans import MAX_STEPS, Step


def build_router(
    engine: RouterEngine | None = None,
    registry: ModelRegistry | None = None,
    *,
    strategy: Strategy | None = None,
    **settings: Unpack[RouterSettings],
) -> StateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    """Return the graph, not compiled, for those who add to it.

    Args:
        engine: Where the router LLM's tokens come from.
        registry: The models that may be asked.
        strategy: Who decides instead of a router LLM; there is no engine then.
        **settings: See `RouterSettings`.

    Raises:
        TypeError: There is neither an engine nor a strategy, or both; or a setting that there is not.
        ValueError: A setting is out of its range, or `router_price` is missing of a chat model, or the registry is
            empty or lacks the profile that "knn" needs.
        ModuleNotFoundError: The `[eval]` extra, which "knn" needs, is not installed.
    """
    return router_machine(engine, registry, strategy=strategy, **settings).graph()


def router_machine(
    engine: RouterEngine | None = None,
    registry: ModelRegistry | None = None,
    *,
    strategy: Strategy | None = None,
    **settings: Unpack[RouterSettings],
) -> RouterMachine:
    """Return the nodes that `build_router` makes the graph of; see there."""
    _check_kinds(engine, registry, strategy, settings)
    if registry is None or not len(registry):
        msg = "the registry is empty: a router needs at least one model to ask"
        raise ValueError(msg)
    given: dict[str, Any] = dict(settings)
    limits = Limits(**{field.name: given.pop(field.name) for field in fields(Limits) if field.name in given})
    fallback = FallbackPlan.of(given.pop("fallback", None), registry)
    stream, approval = given.pop("stream", "answer"), Approval.of(given.pop("approve", "never"))
    checkpointed, clients, cache = given.pop("checkpointed", True), given.pop("clients", None), given.pop("cache", None)
    middleware = [*given.pop("middleware", ()), *([] if cache is None else [CallCache(cache)])]
    style: AnswerStyle = given.pop("answer", "short")
    decides = _router_llm(engine, style, given) if strategy is None else strategy
    if strategy is not None and (engine is not None or given):
        for_engine = ", ".join(["engine"] * (engine is not None) + sorted(given))
        msg = f"{for_engine}: for a router LLM, and the strategy {type(strategy).__name__} decides here"
        raise TypeError(msg)
    candidates = Candidates(registry, decides.count_tokens, middleware, clients, is_brief=style == "short")
    return RouterMachine(
        strategy=decides,
        candidates=candidates,
        limits=limits,
        fallback=fallback,
        checkpointed=checkpointed,
        stream=stream,
        approval=approval,
    )


def create_router(
    engine: RouterEngine | None = None,
    registry: ModelRegistry | None = None,
    *,
    strategy: Strategy | None = None,
    checkpointer: Checkpointer = None,
    store: BaseStore | None = None,
    interrupt_before: All | list[str] | None = None,
    interrupt_after: All | list[str] | None = None,
    debug: bool = False,
    name: str = "router_r1",
    **settings: Unpack[RouterSettings],
) -> CompiledStateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    """Return the router, compiled: a Runnable from `{"messages": [...]}` to messages, answer and routing.

    Engine, registry, strategy and settings are those of `build_router` (see `RouterSettings`); the others are those of
    `StateGraph.compile`.

    Example:
        >>> from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
        >>> from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
        >>> engine = ScriptedEngine(["<think> ask </think><search> small: Capital of Peru? </search>",
        ...                          "<think> good </think><answer> Lima </answer>"])
        >>> small = ModelDescriptor(name="small", model=ScriptedChatModel(["Lima."]), price=1.0)
        >>> result = create_router(engine, ModelRegistry([small])).invoke({"messages": [("user", "Capital of Peru?")]})
        >>> result["answer"], result["routing"]["turns"], f"{result['routing']['cost_usd']:.6f}"
        ('Lima', 1, '0.000011')
    """
    settings.setdefault("checkpointed", checkpointer is not False)
    return build_router(engine, registry, strategy=strategy, **settings).compile(
        checkpointer=checkpointer,
        store=store,
        interrupt_before=interrupt_before,
        interrupt_after=interrupt_after,
        debug=debug,
        name=name,
    )


def create_planner(
    decomposer: RouterEngine | Callable[[str], str],
    registry: ModelRegistry,
    *,
    allocator: RouterEngine | Callable[[Step, ModelRegistry], str] | Literal["knn"] | Allocator = "knn",
    review: Review = "never",
    max_steps: int = MAX_STEPS,
    max_tokens: int = 512,
    router_price: PriceLike | None = None,
    **options: Any,
) -> CompiledStateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    r"""Return a router that plans first, as R2-Reasoner (arXiv 2506.05901) does; see `strategies.planner`.

    Args:
        decomposer: Writes the plan: a trained policy, any chat model as a `ChatModelEngine`, or a function of the
            question that returns numbered steps.
        registry: The models that do the steps.
        allocator: Gives each step to a model: "knn", by the registry's profile; an engine, trained or prompted; or a
            function of a step and the models on offer that returns a name.
        review: Which replies are reviewed by the next better model: "never", "unsure" or "always"; see `Planner`.
        max_steps: Most steps of a plan.
        max_tokens: Most tokens of a plan.
        router_price: Of the tokens of decomposer and allocator, see `RouterSettings`.
        **options: Those of `create_router` that are not for a router LLM. By default `max_turns` is three a step and
            `max_parallel` is `max_steps`.

    Raises:
        ValueError: A setting is out of its range, or the registry is empty or lacks the profile that "knn" needs.
        ModuleNotFoundError: The `[eval]` extra, which "knn" needs, is not installed.

    Example:
        >>> from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_planner
        >>> from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
        >>> plan = "1. Which country has the capital Lima?\n2. What currency is used in #1?"
        >>> small = ModelDescriptor(name="small", model=ScriptedChatModel(["Peru", "Sol"]), price=1.0)
        >>> planner = create_planner(ScriptedEngine([plan]), ModelRegistry([small]), allocator=lambda *_: "small")
        >>> result = planner.invoke({"messages": [("user", "What currency is used where Lima is the capital?")]})
        >>> result["answer"], [call["query"] for call in result["routing"]["calls"]]
        ('Sol', ['Which country has the capital Lima?', 'What currency is used in Peru?'])
    """
    price = own_price(decomposer, router_price)
    strategy = Planner(
        decomposer,
        make_allocator(allocator, registry, price),
        review=review,
        max_steps=max_steps,
        max_tokens=max_tokens,
        price=price,
    )
    return create_router(registry=registry, strategy=strategy, **{**strategy.limits, "name": "planner", **options})


def _check_kinds(engine: Any, registry: Any, strategy: Any, settings: Mapping[str, Any]) -> None:
    """Find what is of another kind than it must be, before a run fails deep inside.

    Raises:
        TypeError: Something is.
    """
    if registry is not None and not isinstance(registry, ModelRegistry):
        raise TypeError(
            f"registry is a {type(registry).__name__}; it must be a ModelRegistry: ModelRegistry.from_file reads a "
            "file, ModelRegistry.from_dict a dict"
        )
    if strategy is not None and not isinstance(strategy, Strategy):
        made = f", such as {strategy.__name__}()" if isinstance(strategy, type) else ""
        raise TypeError(f"strategy is a {type(strategy).__name__}; it must be an instance of a Strategy{made}")
    # Not by `isinstance`: it would look at all of the protocol, and the tokenizer would be loaded for it.
    if engine is not None and not (hasattr(engine, "begin") and hasattr(engine, "agenerate")):
        kinds = "a chat model goes in as ChatModelEngine(chat_model), a vLLM server as VLLMEngine(address, model=...)"
        hint = "a strategy goes in as strategy=" if isinstance(engine, Strategy) else kinds
        # None of these values is shown: addresses and settings may hold keys.
        raise TypeError(f"engine is a {type(engine).__name__}; it must be a RouterEngine: {hint}")
    for name, allowed in (("stream", get_args(StreamedText)), ("answer", get_args(AnswerStyle))):
        if name in settings and settings[name] not in allowed:
            raise ValueError(f"{name} is {settings[name]!r}; it must be {' or '.join(map(repr, allowed))}")
    if not isinstance(settings.get("cache"), BaseCache | None):
        kind = type(settings["cache"]).__name__
        raise TypeError(f"cache is a {kind}; it must be a cache of LangGraph's, such as InMemoryCache()")
    known = RouterSettings.__annotations__
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise TypeError(f"{name!r} is not a setting of a router{meant}")


def _router_llm(engine: RouterEngine | None, style: AnswerStyle, settings: dict[str, Any]) -> RouterLLM:
    if engine is None:
        msg = "a router needs an engine, for its router LLM, or a strategy=, which decides without one"
        raise TypeError(msg)
    prompt = settings.pop("prompt", None) or RouterPrompt.of_style(style)
    price = own_price(engine, settings.pop("router_price", None))
    return RouterLLM(engine, prompt=prompt, price=price, relays=style == "full", **settings)
