"""The account across failures: retries, questions sent again, resumed runs, caches, routers in routers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import WAYS, answer, ask, invoked, pool, search
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ModelAPIError, ModelConnectionError, ModelRateLimitError
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver

from langgraph_router_r1 import ChatRouterR1, ModelDescriptor, ModelRegistry, RouterContext, create_router
from langgraph_router_r1.engines import EngineError, EngineUnavailableError
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

CALL_USD = 11e-6
"""What one reply of one word costs in `conftest.pool`: ten prompt tokens and one completion token, at $1 a million."""

THREAD: Any = {"configurable": {"thread_id": "1"}}


def failing(*turns: str | None) -> Callable[[Any], str]:
    """Write these turns in order; for None, the router LLM does not answer."""
    script = iter(turns)

    def write(transcript: Any) -> str:
        turn = next(script)
        if turn is None:
            raise EngineUnavailableError("the router's server is down")
        return turn

    return write


def asked(text: str = "?") -> Any:
    return {"messages": [("user", text)]}


# A router LLM that fails in the middle of a run


async def test_an_engine_error_carries_the_account_of_the_run_that_it_ended() -> None:
    for way in WAYS:
        router = create_router(ScriptedEngine(failing(search("m: a?"), None)), pool(m="Lima"))
        with pytest.raises(EngineError) as caught:
            await invoked(router, way, asked())
        assert caught.value.routing is not None
        assert caught.value.routing["cost_usd"] == pytest.approx(CALL_USD)
        assert [routed["response"] for routed in caught.value.routing["calls"]] == ["Lima"]


async def test_a_chat_model_with_retries_accounts_for_the_attempts_that_failed() -> None:
    for way in WAYS:
        model = ScriptedChatModel(["Lima"])
        turns = [search("m: a?"), None, search("m: a?"), None, search("m: a?"), answer("Lima")]
        chat = ChatRouterR1(router=create_router(ScriptedEngine(failing(*turns)), pool(m=model)))
        retrying = chat.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
        routing = (await invoked(retrying, way, "?")).response_metadata["routing"]
        assert len(model.calls) == 3
        assert routing["cost_usd"] == pytest.approx(3 * CALL_USD)
        assert (routing["earlier_cost_usd"], len(routing["calls"])) == (pytest.approx(2 * CALL_USD), 1)


def test_when_the_last_retry_fails_too_the_error_accounts_for_all_attempts() -> None:
    chat = ChatRouterR1(router=create_router(ScriptedEngine(failing(*[search("m: a?"), None] * 2)), pool(m="Lima")))
    with pytest.raises(EngineError) as caught:
        chat.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke("?")
    assert caught.value.routing is not None
    assert caught.value.routing["cost_usd"] == pytest.approx(2 * CALL_USD)


def test_two_questions_to_a_retrying_chat_model_have_separate_accounts() -> None:
    turns = [search("m: a?"), None, answer("x"), search("m: b?"), answer("y")]
    chat = ChatRouterR1(router=create_router(ScriptedEngine(failing(*turns)), pool(m="Lima")))
    retrying = chat.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    costs = [retrying.invoke("?").response_metadata["routing"]["cost_usd"] for _ in range(2)]
    assert costs == pytest.approx([CALL_USD, CALL_USD])


def test_a_question_asked_once_more_after_a_failure_is_in_the_total_of_its_thread() -> None:
    turns = [search("m: a?"), None, search("m: a?"), answer("Lima"), answer("easy")]
    router = create_router(ScriptedEngine(failing(*turns)), pool(m="Lima"), checkpointer=InMemorySaver())
    with pytest.raises(EngineError):
        router.invoke(asked(), THREAD)
    again = router.invoke(asked(), THREAD)["routing"]
    assert (again["cost_usd"], again["thread_cost_usd"]) == pytest.approx((CALL_USD, 2 * CALL_USD))
    third = router.invoke(asked("another"), THREAD)["routing"]
    assert (third["cost_usd"], third["thread_cost_usd"]) == pytest.approx((0, 2 * CALL_USD))


def test_a_run_that_goes_on_after_a_failure_pays_nothing_again() -> None:
    model = ScriptedChatModel(["Lima"])
    router = create_router(
        ScriptedEngine(failing(search("m: a?"), None, answer("Lima"))), pool(m=model), checkpointer=InMemorySaver()
    )
    with pytest.raises(EngineError):
        router.invoke(asked(), THREAD)
    routing = router.invoke(None, THREAD)["routing"]
    assert len(model.calls) == 1
    assert (routing["cost_usd"], routing["thread_cost_usd"]) == pytest.approx((CALL_USD, CALL_USD))


def test_calls_in_flight_when_the_question_is_sent_again_may_have_been_billed() -> None:
    replies: Any = iter([KeyboardInterrupt(), "Lima"])

    def reply(_: Any) -> str:
        said = next(replies)
        if isinstance(said, BaseException):
            raise said
        return str(said)

    params = {"max_tokens": 100}
    registry = ModelRegistry([ModelDescriptor(name="m", model=RunnableLambda(reply), price=1.0, params=params)])
    turns = [search("m: a?"), search("m: a?"), answer("Lima")]
    router = create_router(ScriptedEngine(turns), registry, checkpointer=InMemorySaver())
    question: Any = {"messages": [HumanMessage("one", id="1")]}
    with pytest.raises(KeyboardInterrupt):
        router.invoke(question, THREAD)
    routing = router.invoke(question, THREAD)["routing"]
    assert 100e-6 < routing["maybe_cost_usd"] < 300e-6


def killed_at(*calls: int, params: dict[str, Any] | None = None) -> tuple[ModelRegistry, list[Any]]:
    """A pool of one model whose process dies at these of its calls, and what it was asked."""
    asked_for: list[Any] = []

    def reply(messages: Any) -> str:
        asked_for.append(messages)
        if len(asked_for) in calls:
            raise KeyboardInterrupt
        return "Lima"

    model = ModelDescriptor(name="m", model=RunnableLambda(reply), price=1.0, params=params or {})
    return ModelRegistry([model]), asked_for


def test_the_longer_the_question_in_flight_the_more_it_may_have_cost() -> None:
    bounds = []
    for query in ("a?", "a" * 500 + "?"):
        registry, _ = killed_at(1, params={"max_tokens": 100})
        turns = [search(f"m: {query}"), answer("Lima")]
        router = create_router(ScriptedEngine(turns), registry, checkpointer=InMemorySaver())
        question: Any = {"messages": [HumanMessage("one", id="1")]}
        with pytest.raises(KeyboardInterrupt):
            router.invoke(question, THREAD)
        bounds.append(router.invoke(question, THREAD)["routing"]["maybe_cost_usd"])
    assert bounds[1] - bounds[0] == pytest.approx(499e-6)


def test_a_call_in_flight_without_a_bound_may_have_cost_nobody_knows_what() -> None:
    registry, _ = killed_at(1)
    router = create_router(ScriptedEngine([search("m: a?"), answer("x")]), registry, checkpointer=InMemorySaver())
    question: Any = {"messages": [HumanMessage("one", id="1")]}
    with pytest.raises(KeyboardInterrupt):
        router.invoke(question, THREAD)
    assert router.invoke(question, THREAD)["routing"]["maybe_cost_usd"] is None


def test_a_question_sent_again_keeps_what_its_thread_cost_before_it_and_what_its_failed_calls_may_have() -> None:
    replies: Any = iter(["Lima", TimeoutError(), KeyboardInterrupt(), "Quito"])

    def reply(_: Any) -> str:
        said = next(replies)
        if isinstance(said, BaseException):
            raise said
        return str(said)

    params = {"max_tokens": 100}
    model = ModelDescriptor(name="m", model=RunnableLambda(reply), price=1.0, params=params, max_retries=0)
    turns = [search("m: a?"), answer("Lima"), search("m: b?"), search("m: b?"), search("m: b?"), answer("Quito")]
    router = create_router(ScriptedEngine(turns), ModelRegistry([model]), checkpointer=InMemorySaver())
    first = router.invoke(asked("first"), THREAD)["routing"]
    question: Any = {"messages": [HumanMessage("one", id="1")]}
    with pytest.raises(KeyboardInterrupt):
        router.invoke(question, THREAD)
    again = router.invoke(question, THREAD)["routing"]
    worst = 300e-6
    assert worst < again["maybe_cost_usd"] < 2 * worst  # of the one that failed and of the one in flight
    assert again["thread_cost_usd"] == pytest.approx(first["cost_usd"] + again["cost_usd"])
    assert first["cost_usd"] > 0


# Limits of a run that is resumed


def test_a_resumed_run_is_held_to_the_limits_that_its_context_gave_it() -> None:
    turns = [search("m: a?"), search("m: b?") + answer("forced")]
    router = create_router(
        ScriptedEngine(turns), pool(m="x"), checkpointer=InMemorySaver(), interrupt_before=["route"], max_turns=4
    )
    router.invoke(asked(), THREAD, context=RouterContext(max_turns=1))
    routing = router.invoke(None, THREAD)["routing"]
    assert (routing["turns"], routing["stop_reason"]) == (1, "forced_answer")


def test_a_resumed_run_is_held_to_its_budget() -> None:
    turns = [search("m: a?"), search("m: b?") + answer("forced")]
    router = create_router(ScriptedEngine(turns), pool(m="x"), checkpointer=InMemorySaver(), interrupt_before=["route"])
    # The worst case of a call is about 630 millionths: the budget pays for one that costs 11, and then for none.
    router.invoke(asked(), THREAD, context=RouterContext(budget_usd=635e-6))
    routing = router.invoke(None, THREAD)["routing"]
    assert (routing["turns"], routing["stop_reason"]) == (1, "forced_answer")


def test_a_question_sent_again_is_held_to_what_its_calls_in_flight_left_of_its_budget() -> None:
    asked_for: list[Any] = []

    def reply(messages: Any) -> str:
        asked_for.append(messages)
        if len(asked_for) == 1:
            raise KeyboardInterrupt
        return "Lima"

    params = {"max_tokens": 100}
    registry = ModelRegistry([ModelDescriptor(name="m", model=RunnableLambda(reply), price=1.0, params=params)])
    turns = [search("m: a?"), search("m: a?") + answer("forced"), search("m: a?"), answer("y")]
    router = create_router(ScriptedEngine(turns), registry, checkpointer=InMemorySaver())
    same: Any = {"messages": [HumanMessage("one", id="1")]}
    budget = RouterContext(budget_usd=300e-6)  # pays for one call, whose worst case is about 210
    with pytest.raises(KeyboardInterrupt):
        router.invoke(same, THREAD, context=budget)
    again = router.invoke(same, THREAD, context=budget)["routing"]
    assert (again["turns"], len(asked_for)) == (0, 1)
    assert 150e-6 < again["maybe_cost_usd"] < 300e-6
    other = router.invoke(asked("another"), THREAD, context=budget)["routing"]
    assert (other["turns"], len(asked_for)) == (1, 2)


def test_a_context_that_is_given_when_a_run_is_resumed_changes_its_limits() -> None:
    turns = [search("m: a?"), search("m: b?"), answer("x")]
    router = create_router(ScriptedEngine(turns), pool(m="x"), checkpointer=InMemorySaver(), interrupt_before=["route"])
    router.invoke(asked(), THREAD, context=RouterContext(max_turns=1))
    router.invoke(None, THREAD, context=RouterContext(max_turns=2))
    assert router.invoke(None, THREAD, context=RouterContext(max_turns=2))["routing"]["turns"] == 2


def test_the_limits_of_one_question_do_not_hold_for_the_next() -> None:
    engine = ScriptedEngine([answer("x"), search("m: a?"), answer("y")])
    router = create_router(engine, pool(m="x"), checkpointer=InMemorySaver())
    router.invoke(asked("one"), THREAD, context=RouterContext(max_turns=0))
    assert router.invoke(asked("two"), THREAD)["routing"]["turns"] == 1


# Calls that may have been billed without a reply


@pytest.mark.parametrize(
    ("failure", "may_be_billed"),
    [
        (TimeoutError(), True),
        (ModelConnectionError("reset after it was sent"), True),
        (ModelAPIError("502"), True),
        (ValueError("the reply can't be parsed"), True),
        (ModelRateLimitError("429"), False),
        (ConnectionRefusedError(), False),
        (type("ConnectTimeout", (Exception,), {})(), False),  # as httpx calls what never reached a server
    ],
)
def test_a_failed_call_counts_as_possibly_billed_unless_nothing_was_sent_or_it_was_refused(
    failure: Exception, may_be_billed: bool
) -> None:
    registry = pool(m=failure)
    routing = ask([search("m: a?"), answer("x")], registry)["routing"]
    assert routing["cost_usd"] == 0
    assert (routing["maybe_cost_usd"] > 500e-6) == may_be_billed  # 512 tokens at $1 a million, and the prompt
    assert routing["maybe_cost_usd"] == routing["calls"][0]["maybe_cost_usd"] < 1000e-6


async def test_each_attempt_and_each_fallback_that_was_given_up_may_have_been_billed() -> None:
    slow = ScriptedChatModel(["late"], delay_s=0.5)
    registry = ModelRegistry(
        [
            ModelDescriptor(
                name="flaky",
                model=ScriptedChatModel([ModelAPIError("500")]),
                price=1.0,
                max_retries=2,
                fallbacks=("b",),
            ),
            ModelDescriptor(name="b", model=slow, price=1.0, timeout_s=0.05, fallbacks=("c",)),
            ModelDescriptor(name="c", model=ScriptedChatModel(["Lima"]), price=1.0),
        ]
    )
    turns = [search("flaky: a?", "b: a?"), answer("x")]
    for way in WAYS:
        router = create_router(ScriptedEngine(turns), registry)
        first, second = (await invoked(router, way, asked()))["routing"]["calls"]
        assert (first["status"], second["answered_by"]) == ("error", "c")
        one = second["maybe_cost_usd"]
        assert one > 500e-6
        assert first["maybe_cost_usd"] == pytest.approx(4 * one)


def test_what_may_have_been_billed_counts_against_the_budget() -> None:
    model = ScriptedChatModel([TimeoutError(), "Lima"])
    registry = ModelRegistry([ModelDescriptor(name="m", model=model, price=1.0, params={"max_tokens": 400})])
    result = ask([search("m: a?"), search("m: a?") + answer("x")], registry, budget_usd=900e-6)  # one call: 590e-6
    assert (len(model.calls), result["routing"]["calls"][0]["status"]) == (1, "error")
    assert result["routing"]["cost_usd"] + result["routing"]["maybe_cost_usd"] <= 900e-6


def test_a_failed_call_without_an_upper_bound_says_that_none_is_known() -> None:
    registry = pool(m=RunnableLambda(lambda _: 1 / 0))
    routing = ask([search("m: a?"), answer("x")], registry)["routing"]
    assert (routing["maybe_cost_usd"], routing["cost_usd"]) == (None, 0)


# Caches, and routers as routed models


def test_an_answer_from_a_cache_costs_nothing_each_time() -> None:
    engine = ScriptedEngine([search("m: a?"), answer("Lima")])
    chat = ChatRouterR1(router=create_router(engine, pool(m="Lima"), router_price=1.0), cache=InMemoryCache())
    first, *hits = [chat.invoke("?").response_metadata["routing"] for _ in range(3)]
    assert first["cost_usd"] > CALL_USD
    for routing in hits:
        assert (routing["cost_usd"], routing["router_cost_usd"], routing["thread_cost_usd"]) == (0, 0, 0)
        assert [(routed["cost_usd"], routed["list_cost_usd"]) for routed in routing["calls"]] == [
            (0, pytest.approx(CALL_USD))
        ]
        assert [bill["cost_usd"] for bill in routing["by_model"].values()] == [0]
    assert first["cost_usd"] > CALL_USD  # the account that was given out before is left alone


def inner_router(**settings: Any) -> Any:
    engine = ScriptedEngine(failing(*settings.pop("turns", [search("deep: a?"), answer("Lima")])))
    return create_router(engine, pool(deep="Lima"), **{"router_price": 2.0, **settings})


@pytest.mark.parametrize("form", ["chat model", "graph"])
async def test_a_router_as_a_routed_model_passes_its_account_on(form: str) -> None:
    for way in WAYS:
        inner = inner_router()
        model = ChatRouterR1(router=inner) if form == "chat model" else inner
        outer = create_router(
            ScriptedEngine([search("inner: q?"), answer("Lima")]),
            ModelRegistry([ModelDescriptor(name="inner", model=model, price="free")]),
        )
        routing = (await invoked(outer, way, asked()))["routing"]
        routed = routing["calls"][0]
        assert (routed["response"], routed["status"]) == ("Lima", "ok")
        assert routed["inner"]["by_model"]["deep"]["cost_usd"] == pytest.approx(CALL_USD)
        assert routing["cost_usd"] == routed["cost_usd"] == routed["inner"]["cost_usd"] > CALL_USD
        assert routing["by_model"]["inner"]["cost_usd"] == routed["cost_usd"]


def test_a_router_that_breaks_off_as_a_routed_model_is_paid_for_what_it_spent() -> None:
    model = ChatRouterR1(router=inner_router(turns=[search("deep: a?"), None]))
    outer = create_router(
        ScriptedEngine([search("inner: q?"), answer("x")]),
        ModelRegistry([ModelDescriptor(name="inner", model=model, price="free")]),
    )
    routing = outer.invoke(asked())["routing"]
    assert (routing["calls"][0]["status"], routing["cost_usd"] > CALL_USD) == ("error", True)


async def test_what_routers_spent_before_they_broke_off_is_paid_for_whoever_replies_in_the_end() -> None:
    def breaks_off(transcript: Any) -> str:  # calls of one turn come at the same time
        if len(transcript) > 1:
            raise EngineUnavailableError("the router's server is down")
        return search("deep: a?")

    def breaking() -> Any:
        return create_router(ScriptedEngine(breaks_off), pool(deep="Lima"), router_price=2.0)

    for last, status in (("Lima", "ok"), (ValueError("no"), "error")):
        registry = ModelRegistry(
            [
                ModelDescriptor(
                    name="m", model=ScriptedChatModel([ValueError("no")]), price="free", fallbacks=("one",)
                ),
                ModelDescriptor(name="one", model=breaking(), price="free"),
                ModelDescriptor(
                    name="two",
                    model=ChatRouterR1(router=breaking()),
                    price="free",
                    fallbacks=("one", "last"),
                ),
                ModelDescriptor(name="last", model=ScriptedChatModel([last]), price=1.0),
            ]
        )
        for way in WAYS:
            router = create_router(ScriptedEngine([search("m: a?", "two: b?"), answer("x")]), registry)
            routing = (await invoked(router, way, asked()))["routing"]
            as_fallback, two_and_a_reply = routing["calls"]
            broke_off = as_fallback["inner"]["cost_usd"]
            assert broke_off > CALL_USD
            assert as_fallback["cost_usd"] == as_fallback["list_cost_usd"] == pytest.approx(broke_off)
            assert two_and_a_reply["status"] == status
            assert two_and_a_reply["cost_usd"] == pytest.approx(2 * broke_off + (CALL_USD if status == "ok" else 0))
            assert two_and_a_reply["list_cost_usd"] == pytest.approx(two_and_a_reply["cost_usd"])
            assert two_and_a_reply["usage"]["prompt_tokens"] >= 2 * as_fallback["usage"]["prompt_tokens"] > 20
            assert routing["cost_usd"] == pytest.approx(as_fallback["cost_usd"] + two_and_a_reply["cost_usd"])


def test_what_may_have_been_billed_inside_a_router_and_before_it_was_asked_adds_up() -> None:
    inner = create_router(ScriptedEngine([search("deep: a?"), answer("Lima")]), pool(deep=TimeoutError()))
    slow = ScriptedChatModel([TimeoutError()])
    registry = ModelRegistry(
        [
            ModelDescriptor(name="m", model=slow, price=10.0, fallbacks=("inner",)),
            ModelDescriptor(name="inner", model=inner, price="free"),
        ]
    )
    routed = ask([search("m: a?"), answer("x")], registry)["routing"]["calls"][0]
    within = routed["inner"]["maybe_cost_usd"]
    assert (routed["answered_by"], within > 500e-6) == ("inner", True)
    assert routed["maybe_cost_usd"] == pytest.approx(11 * within, rel=0.01)


async def test_a_router_with_retries_as_a_routed_model_passes_on_what_all_of_its_attempts_spent() -> None:
    for way in WAYS:
        turns = [search("deep: a?"), None, search("deep: a?"), answer("Lima")]
        model = ChatRouterR1(router=inner_router(turns=turns, router_price="free"))
        retrying = model.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        outer = create_router(
            ScriptedEngine([search("inner: q?"), answer("Lima")]),
            ModelRegistry([ModelDescriptor(name="inner", model=retrying, price="free")]),
        )
        routing = (await invoked(outer, way, asked()))["routing"]
        assert (routing["calls"][0]["status"], routing["cost_usd"]) == ("ok", pytest.approx(2 * CALL_USD))


def test_an_answer_from_a_cache_costs_nothing_in_the_account_of_a_router_in_a_router_either() -> None:
    outer = create_router(
        ScriptedEngine([search("inner: q?"), answer("Lima")]),
        ModelRegistry([ModelDescriptor(name="inner", model=inner_router(), price="free")]),
    )
    chat = ChatRouterR1(router=outer, cache=InMemoryCache())
    first, hit = [chat.invoke("?").response_metadata["routing"]["calls"][0]["inner"] for _ in range(2)]
    assert first["cost_usd"] > CALL_USD
    assert (hit["cost_usd"], hit["calls"][0]["cost_usd"]) == (0, 0)
    assert hit["calls"][0]["list_cost_usd"] == pytest.approx(CALL_USD)


def test_a_failure_that_is_its_own_cause_is_a_failure_like_others() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    routed = ask([search("m: a?"), answer("x")], pool(m=first))["routing"]["calls"][0]
    assert (routed["status"], routed["maybe_cost_usd"] > 0) == ("error", True)


def test_under_a_budget_a_router_as_a_routed_model_needs_a_budget_of_its_own() -> None:
    for budget, status in ((None, "over_budget"), (0.01, "over_budget"), (0.0008, "ok")):
        model = ChatRouterR1(router=inner_router(router_price="free"), context=RouterContext(budget_usd=budget))
        registry = ModelRegistry(
            [
                ModelDescriptor(name="inner", model=model, price="free"),
                ModelDescriptor(name="m", model=ScriptedChatModel(["x"]), price=0.001),
            ]
        )
        result = ask([search("inner: q?"), answer("x")], registry, budget_usd=0.001)
        assert result["routing"]["calls"][0]["status"] == status
        assert result["routing"]["cost_usd"] <= 0.001
