"""What a router is made of: parts of the wrong kind are named when it is made, and none of their values is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import pool

from langgraph_router_r1 import ModelRegistry, create_planner, create_router
from langgraph_router_r1.engines import ChatModelEngine
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.strategies import AskInOrder
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine


def two_hop_pool() -> ModelRegistry:
    return pool(capitals="Peru", currencies="Sol")


@pytest.mark.parametrize(
    ("made", "error", "says"),
    [
        (lambda: create_router(ScriptedChatModel(["x"]), two_hop_pool()), TypeError, "goes in as ChatModelEngine"),
        (lambda: create_router("openai:x", two_hop_pool()), TypeError, "engine is a str; .* ChatModelEngine"),
        (lambda: create_router(AskInOrder(lambda _: []), two_hop_pool()), TypeError, "goes in as strategy="),
        (lambda: create_router(strategy=AskInOrder, registry=two_hop_pool()), TypeError, r"such as AskInOrder\(\)"),
        (lambda: create_router(ScriptedEngine([]), "models.toml"), TypeError, "registry is a str; .* reads a file"),
        (lambda: create_router(ScriptedEngine([]), two_hop_pool(), budget=1), TypeError, "did you mean 'budget_usd'"),
        (lambda: create_router(ScriptedEngine([]), two_hop_pool(), budget_usd="1"), TypeError, "budget_usd is '1'"),
        (lambda: create_router(ScriptedEngine([]), two_hop_pool(), max_turns=1.5), TypeError, "be a whole number"),
        (lambda: create_router(ScriptedEngine([]), two_hop_pool(), cost_weight=True), TypeError, "cost_weight is True"),
        (lambda: create_router(ScriptedEngine([]), two_hop_pool(), router_price="auto"), ValueError, "router_price: "),
        (lambda: create_router(ScriptedEngine([]), two_hop_pool(), stream="all"), ValueError, "'answer' or 'thought'"),
        (lambda: create_router(ScriptedEngine([]), two_hop_pool(), answer="long"), ValueError, "'short' or 'full'"),
        (lambda: create_router(ScriptedEngine([]), two_hop_pool(), cache=True), TypeError, "such as InMemoryCache"),
        (lambda: ModelRegistry({"models": {}}), ValueError, "ModelRegistry.from_dict reads a dict"),
        (lambda: ChatModelEngine("openai:x"), TypeError, "init_chat_model makes one of its name"),
    ],
)  # fmt: skip
def test_a_part_of_the_wrong_kind_is_named_when_the_router_is_made(made: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        made()


@pytest.mark.parametrize("secret", ["sk-0123456789abcdef", "http://me:hunter2@host/v1"])
def test_what_is_of_the_wrong_kind_is_not_shown_for_it_may_be_a_key(secret: str) -> None:
    made: Any = create_router
    engine: Any = ChatModelEngine
    for wrong in (
        lambda: made(secret, two_hop_pool()),
        lambda: made(ScriptedEngine([]), {"api_key": secret}),
        lambda: made(ScriptedEngine([]), two_hop_pool(), cache=secret),
        lambda: made(ScriptedEngine([]), two_hop_pool(), router_price=secret),
        lambda: engine(secret),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            wrong()
        assert secret not in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_numbers_of_other_kinds_are_numbers() -> None:
    for whole, part in ((np.int64(3), np.float32(0.5)), (3.0, 1)):
        limits = Limits(max_turns=whole, cost_weight=part, budget_usd=part)
        assert [type(value) for value in (limits.max_turns, limits.cost_weight, limits.budget_usd)] == [
            int,
            float,
            float,
        ]


def test_the_tokens_of_a_chat_model_that_routes_have_a_price_free_or_not() -> None:
    engine = ChatModelEngine(ScriptedChatModel(["<answer> Lima </answer>"] * 2))
    with pytest.raises(ValueError, match="router_price is missing"):
        create_router(engine, two_hop_pool())
    with pytest.raises(ValueError, match="router_price is missing"):
        create_planner(engine, two_hop_pool(), allocator=lambda *_: "capitals")
    spent = []
    for price in ("free", 1.0):
        result = create_router(engine, two_hop_pool(), router_price=price).invoke({"messages": [("user", "Which?")]})
        spent.append(result["routing"]["router_cost_usd"])
    assert spent[0] == 0 < spent[1]
