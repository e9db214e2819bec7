"""Baselines choose as they say, keep the router's account, and embed like it."""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langgraph.graph import START, MessagesState, StateGraph
from sklearn.neighbors import KNeighborsRegressor

from langgraph_router_r1 import RECORD_KEYS, ModelDescriptor, ModelRegistry, RouterContext, RunRecord
from langgraph_router_r1.evaluation.baselines import create_baseline
from langgraph_router_r1.evaluation.escalation import Escalation
from langgraph_router_r1.evaluation.extractor import Extractor
from langgraph_router_r1.evaluation.plain_run import PlainRouter
from langgraph_router_r1.evaluation.recorded import RecordedPool, quality
from langgraph_router_r1.evaluation.signals import stated_answer
from langgraph_router_r1.strategies.knn import MiniLM, embed
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

LEARNING = ("knn", "logistic", "mlp", "contrastive", "pilot-embeddings", "cascade", "escalation")


class Words(Embeddings):
    """Texts that share words are near."""

    WORDS = ("capital", "currency", "lima", "sol", "sorry", "maybe")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(word in text.lower()) for word in self.WORDS] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def two_specialists(tasks: int = 120) -> RecordedPool:
    """`caps` knows capitals, `money` currencies, `big` both at ten times the price."""

    def outcome(right: bool, answer: str, cost: float) -> dict[str, Any]:
        return {"response": answer if right else "Sorry, maybe?", "completion_tokens": 10, "cost_usd": cost}

    rows = []
    for n in range(tasks):
        capital = n % 2 == 0
        question, golden = (f"capital number {n:03}?", "Lima") if capital else (f"currency number {n:03}?", "Sol")
        outcomes = {
            "caps": outcome(capital, golden, 1e-6),
            "money": outcome(not capital, golden, 1e-6),
            "big": outcome(True, f"It is {golden}.", 1e-5),
        }
        rows.append({"id": f"t{n}", "question": question, "golden_answers": [golden], "outcomes": outcomes})
    return RecordedPool.from_rows(rows)


def runs(kind: str, pool: RecordedPool, weight: float = 0.0, **options: Any) -> list[Any]:
    options = {"records": pool, "embeddings": Words(), **options}
    baseline = create_baseline(kind, pool.registry(), **options)
    return [
        (
            task,
            baseline.invoke(
                {"messages": [("user", task.question)]},
                {"metadata": {"task_id": task.id}},
                context=RouterContext(cost_weight=weight),
            ),
        )
        for task in pool.of_split("test").tasks.values()
    ]


def asked(result: Any) -> list[str]:
    return [routed["model"] for routed in result["routing"]["calls"]]


@pytest.mark.parametrize("kind", LEARNING)
def test_what_learns_finds_the_specialist_that_is_right_and_cheap(kind: str) -> None:
    for task, result in runs(kind, two_specialists(), weight=0.3):
        assert quality_of(task, result) == 1.0
        if kind != "cascade":
            assert asked(result) == ["caps" if "capital" in task.question else "money"]


@pytest.mark.parametrize("kind", LEARNING)
def test_what_learns_takes_the_cheapest_when_only_cost_counts(kind: str) -> None:
    for _, result in runs(kind, two_specialists(), weight=1.0):
        assert asked(result)[-1] in {"caps", "money"}
        assert len(asked(result)) == 1


def quality_of(task: Any, result: Any) -> float:
    return float(any(golden in result["answer"] for golden in task.golden_answers))


def test_what_learns_never_sees_the_test_split() -> None:
    pool = two_specialists()
    poisoned = two_specialists()
    for task in poisoned.of_split("test").tasks.values():
        poisoned.outcomes[task.id] = dict.fromkeys(poisoned.models, poisoned.outcomes[task.id]["big"])
    for kind in LEARNING:
        chosen = [asked(result)[:1] for _, result in runs(kind, pool, weight=0.3)]
        assert [asked(result)[:1] for _, result in runs(kind, pool, weight=0.3, records=poisoned)] == chosen


def test_fixed_choices_are_what_their_names_say() -> None:
    pool = two_specialists()
    assert {tuple(asked(result)) for _, result in runs("big", pool)} == {("big",)}
    assert {tuple(asked(result)) for _, result in runs("most_expensive", pool)} == {("big",)}
    assert {tuple(asked(result)) for _, result in runs("cheapest", pool)} == {("caps",)}
    assert {tuple(asked(result)) for _, result in runs("best", pool)} == {("big",)}
    assert {asked(result)[0] for _, result in runs("best", pool, weight=0.9)} <= {"caps", "money"}


def test_the_oracle_takes_the_cheapest_right_one_and_the_cheapest_where_none_is() -> None:
    pool = two_specialists()
    for task, result in runs("oracle", pool):
        assert asked(result) == ["caps" if "capital" in task.question else "money"]
    for outcomes in pool.outcomes.values():
        outcomes["caps"] = outcomes["big"] = outcomes["money"]  # every second question has no right answer
    registry, task = two_specialists().registry(), pool.tasks["t0"]
    baseline = create_baseline("oracle", registry, records=pool)
    result = baseline.invoke({"messages": [("user", task.question)]}, {"metadata": {"task_id": task.id}})
    assert asked(result) == ["caps"]


def test_random_choices_are_even_and_repeat_with_their_seed() -> None:
    pool = two_specialists(600)
    chosen = [asked(result)[0] for _, result in runs("random", pool)]
    assert [asked(result)[0] for _, result in runs("random", pool)] == chosen
    assert [asked(result)[0] for _, result in runs("random", pool, seed=1)] != chosen
    assert all(0.2 < chosen.count(model) / len(chosen) < 0.47 for model in pool.models)


def test_the_majority_wins_and_of_equals_the_most_expensive() -> None:
    def model(name: str, reply: str, price: float) -> ModelDescriptor:
        return ModelDescriptor(name=name, model=ScriptedChatModel([reply]), price=price)

    registry = ModelRegistry([model("a", "Lima", 1), model("b", "the lima.", 2), model("c", "Quito", 9)])
    result = create_baseline("majority", registry).invoke({"messages": [("user", "Capital?")]})
    assert result["answer"] == "the lima."
    assert len(result["routing"]["calls"]) == 3
    tied = ModelRegistry([model("a", "Lima", 1), model("c", "Quito", 9)])
    assert create_baseline("majority", tied).invoke({"messages": [("user", "Capital?")]})["answer"] == "Quito"


def test_a_cascade_goes_on_while_replies_look_wrong() -> None:
    results = runs("cascade", two_specialists(), weight=0.0)
    assert all(quality_of(task, result) == 1.0 for task, result in results)
    calls = [len(asked(result)) for _, result in results]
    assert min(calls) == 1
    assert max(calls) > 1


def of_unknown_difficulty(tasks: int = 120) -> RecordedPool:
    """Nothing in a question says whether it is hard; on hard ones the cheap models differ, and `big` alone is right."""

    def outcome(answer: str, golden: str, cost: float) -> dict[str, Any]:
        right = float(answer == golden)
        return {"response": f"The answer is ({answer}).", "completion_tokens": 9, "cost_usd": cost, "score": right}

    rows = []
    for n in range(tasks):
        golden, is_hard = "ABCD"[n % 4], n % 3 == 0
        said = ("ABCD"[(n + 1) % 4], "ABCD"[(n + 2) % 4]) if is_hard else (golden, golden)
        rows.append(
            {
                "id": f"t{n}",
                "question": f"Number {n + 1000} in {('lima', 'capital')[n % 2]}?",
                "golden_answers": [golden],
                "outcomes": {
                    "small": outcome(said[0], golden, 1e-6),
                    "other": outcome(said[1], golden, 1e-6),
                    "big": outcome(golden, golden, 1e-4),
                },
            }
        )
    return RecordedPool.from_rows(rows)


def test_escalation_asks_scouts_side_by_side_and_the_big_model_where_they_differ() -> None:
    results = runs("escalation", of_unknown_difficulty(), weight=0.2)
    assert len(results) > 30
    for task, result in results:
        calls = result["routing"]["calls"]
        is_hard = int(task.id[1:]) % 3 == 0
        assert [call["model"] for call in calls] == ["small", "other", *(["big"] if is_hard else [])]
        assert [call["turn"] for call in calls] == [0, 0, *([1] if is_hard else [])]
        assert f"({task.golden_answers[0]})" in result["answer"]


def test_escalation_pays_for_no_scout_that_changes_nothing_and_for_no_big_model_when_only_money_counts() -> None:
    assert {tuple(asked(result)) for _, result in runs("escalation", of_unknown_difficulty(), weight=0.0)} == {("big",)}
    for _, result in runs("escalation", of_unknown_difficulty(), weight=1.0):
        assert asked(result) in (["small"], ["other"])


@pytest.mark.parametrize("names", [["big"], ["small", "big"], ["small", "other", "big"]])
def test_escalation_asks_no_model_twice_in_a_pool_of_any_size(names: list[str]) -> None:
    pool = of_unknown_difficulty()
    registry = pool.registry()
    for name in set(registry.names) - set(names):
        registry = registry.without(name)
    strategy = Escalation(pool.of_split("train"), registry)
    for weight in (0.0, 0.2, 1.0):
        for scouts in strategy._shortlist(weight):
            more = strategy._plan(scouts, weight).more
            assert more
            assert not set(more) & set(scouts)


def test_pilots_are_those_of_the_models_that_are_worth_most_at_the_cost_weight() -> None:
    asked_for_quality = {
        asked(result)[0] for _, result in runs("pilot-embeddings", of_unknown_difficulty(), weight=0.0)
    }
    assert "big" in asked_for_quality
    for _, result in runs("pilot-embeddings", of_unknown_difficulty(), weight=1.0):
        assert asked(result) in (["small"], ["other"])


def test_escalation_passes_on_a_scouts_reply_when_the_big_model_fails() -> None:
    pool = of_unknown_difficulty()
    broken = pool.registry()["big"].model_copy(update={"model": ScriptedChatModel([RuntimeError("down")] * 99)})
    registry = ModelRegistry([*pool.registry().without("big"), broken])
    router = create_baseline("escalation", registry, records=pool, embeddings=Words(), cost_weight=0.2)
    hard = next(task for task in pool.of_split("test").tasks.values() if int(task.id[1:]) % 3 == 0)
    given = {"messages": [("user", hard.question)]}, {"metadata": {"task_id": hard.id}}
    result = router.invoke(*given)
    assert [call["status"] for call in result["routing"]["calls"]] == ["ok", "ok", "error"]
    assert result["answer"] in [call["response"] for call in result["routing"]["calls"][:2]]


def test_escalation_asks_the_big_model_where_the_words_of_a_reply_show_doubt() -> None:
    rows = []
    for n in range(150):
        golden, doubts = "ABC"[n % 3], n % 4 == 0
        said = "ABC"[(n + 1) % 3] if doubts else golden
        end = "I am unsure. " if doubts else "I am secure. "
        outcomes = {
            name: {
                "response": f"{text}The answer is ({letter}).",
                "completion_tokens": 9,
                "cost_usd": cost,
                "score": float(letter == golden),
            }
            for name, text, letter, cost in (("small", end, said, 1e-6), ("big", "Yes. ", golden, 1e-4))
        }
        question = f"Number {n + 1000}?\n(A) one\n(B) two\n(C) three"
        rows.append({"id": f"t{n}", "question": question, "golden_answers": [golden], "outcomes": outcomes})
    for task, result in runs("escalation", RecordedPool.from_rows(rows), weight=0.2):
        assert asked(result) == ["small", *(["big"] if int(task.id[1:]) % 4 == 0 else [])]
        assert f"({task.golden_answers[0]})" in result["answer"]


def test_escalation_answers_with_the_likeliest_of_all_replies_not_with_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def outcome(letter: str, right: str, cost: float) -> dict[str, Any]:
        reply = f"The answer is ({letter})."
        return {"response": reply, "completion_tokens": 10, "cost_usd": cost, "score": float(letter == right)}

    rows = []
    for n in range(150):
        # The big model agrees with who is right; in each fifth question with nobody, and then the small one is right.
        right, said = ("A", "C") if n % 5 == 0 else ("A", "A") if n % 2 else ("B", "B")
        outcomes = {
            "small": outcome("A", right, 1e-6),
            "other": outcome("B", right, 1e-6),
            "big": outcome(said, right, 5e-6),
        }
        question = f"Which is it, {n:03}?\n(A) one\n(B) two\n(C) three"
        rows.append({"id": f"t{n}", "question": question, "golden_answers": [right], "outcomes": outcomes})
    pool = RecordedPool.from_rows(rows)
    places = tuple(pool.registry().names.index(name) for name in ("small", "other"))
    monkeypatch.setattr(Escalation, "_shortlist", lambda *_: [places])
    last = 0
    for task, result in runs("escalation", pool, weight=0.05):
        assert asked(result) == ["small", "other", "big"]
        assert f"({task.golden_answers[0]})" in result["answer"]
        last += result["answer"] == result["routing"]["calls"][-1]["response"]
    assert last < len(pool.of_split("test").tasks)


def test_replies_are_compared_by_what_they_state_as_the_answer() -> None:
    assert stated_answer("No.\nThe answer is (C).") == stated_answer("Answer: c") == "c"
    assert stated_answer("It is\n**Lima**") == stated_answer("lima")
    assert stated_answer("The answer is (A). No: the answer is (B).") == "b"
    options = "Which?\n(A) one\n(B) two"
    for reply in (
        "Answer: B",
        "the answer is option **B**",
        "$\\boxed{\\text{(B)}}$",
        "The answer is A. No, the answer is B",
    ):
        assert stated_answer(reply, options) == "b"
    for reply in ("A Tale of Two Cities", "The answer is a matter of taste.", "The answer is (C).", ""):
        assert stated_answer(reply, options) == ""


def test_sync_and_async_agree() -> None:
    pool = two_specialists(40)
    for kind in (*LEARNING, "majority", "oracle"):
        baseline = create_baseline(kind, pool.registry(), records=pool, embeddings=Words())
        task = next(iter(pool.of_split("test").tasks.values()))
        given = {"messages": [("user", task.question)]}, {"metadata": {"task_id": task.id}}
        first, second = baseline.invoke(*given), asyncio.run(baseline.ainvoke(*given))
        assert first["answer"] == second["answer"]
        for result in (first, second):
            for routed in result["routing"]["calls"]:
                routed["latency_s"] = 0.0
        assert first["routing"] == second["routing"]


@pytest.mark.parametrize("kind", ["random", "most_expensive", "oracle", "majority", "cascade", "knn"])
async def test_a_run_without_langgraph_has_the_same_record(kind: str) -> None:
    pool = two_specialists(30)
    graph = create_baseline(kind, pool.registry(), records=pool, embeddings=Words())
    plain, context = PlainRouter(graph.builder), RouterContext(cost_weight=0.3)

    def same(state: Any) -> dict[str, Any]:
        record = RunRecord.of(state)
        calls = [{**call, "latency_s": 0.0} for call in record.calls]
        return {**record.model_dump(exclude={"decisions": {"__all__": {"at"}}}), "calls": calls}

    for task in pool.of_split("test").tasks.values():
        metadata = {"task_id": task.id}
        state = await graph.ainvoke(
            {"messages": [("user", task.question)]}, {"metadata": metadata}, context=context, output_keys=RECORD_KEYS
        )
        again = await plain.arun(task.question, context=context, metadata=metadata)
        assert same(again) == same(state)
        assert again["messages"][-1].response_metadata == state["messages"][-1].response_metadata


async def test_runs_without_langgraph_do_not_see_each_others_context() -> None:
    pool = two_specialists(30)
    plain = PlainRouter(create_baseline("oracle", pool.registry(), records=pool).builder)
    tasks = list(pool.tasks.values())
    states = await asyncio.gather(
        *(plain.arun(task.question, context=RouterContext(), metadata={"task_id": task.id}) for task in tasks)
    )
    for task, state in zip(tasks, states, strict=True):
        assert quality_of(task, state) == 1.0


def test_a_baseline_embeds_as_a_node_and_streams_like_the_router() -> None:
    small = ModelDescriptor(name="small", model=ScriptedChatModel(["Lima"]), price=1.0)
    baseline = create_baseline("cheapest", ModelRegistry([small]))
    parent = StateGraph(MessagesState).add_node("ask", baseline).add_edge(START, "ask").compile()
    result = parent.invoke({"messages": [("user", "Capital of Peru?")]})
    assert [message.text for message in result["messages"]] == ["Capital of Peru?", "Lima"]
    events = list(baseline.stream({"messages": [("user", "Capital of Peru?")]}, stream_mode="custom"))
    kinds = ["router_r1.route", "router_r1.info", "router_r1.answer_delta", "router_r1.done"]
    assert [event["type"] for event in events] == kinds


def test_the_extractors_answer_counts_and_its_tokens_are_paid() -> None:
    pool = two_specialists(20)
    extractor = Extractor(ScriptedEngine(lambda _: "Lima\n and more"))
    baseline = create_baseline("big", pool.registry(), extractor=extractor, extractor_price=1.0)
    task = next(task for task in pool.tasks.values() if "capital" in task.question)
    result = baseline.invoke({"messages": [("user", task.question)]}, {"metadata": {"task_id": task.id}})
    assert result["answer"] == "Lima"
    assert result["messages"][-1].response_metadata["reply"] == "It is Lima."
    assert result["routing"]["router_cost_usd"] > 0
    assert math.isclose(
        result["routing"]["cost_usd"], result["routing"]["router_cost_usd"] + result["routing"]["calls"][0]["cost_usd"]
    )


def test_what_is_missing_is_named() -> None:
    registry = two_specialists().registry()
    with pytest.raises(ValueError, match=r"no baseline 'best1'; there are: random, cheapest.*caps, money, big"):
        create_baseline("best1", registry)
    with pytest.raises(ValueError, match="learns from records"):
        create_baseline("knn", registry)
    with pytest.raises(ValueError, match="the oracle looks"):
        create_baseline("oracle", registry)


def test_knn_on_real_scores_is_scikit_learns_and_lies_between_random_and_oracle() -> None:
    directory = os.environ.get("ROUTER_R1_DATA")
    if not directory:
        pytest.skip("ROUTER_R1_DATA is not set: the recorded scores are not here")
    pool = RecordedPool.from_file(Path(directory) / "pools" / "llmrouter_nq_tq_scores.jsonl")
    registry = pool.registry(prices=dict.fromkeys(pool.models, 1.0))
    embeddings = MiniLM()
    train, test = list(pool.of_split("train").tasks.values()), list(pool.of_split("test").tasks.values())

    def scores(tasks: Any) -> Any:
        return np.array([[quality(task, pool.outcomes[task.id][name]) for name in registry.names] for task in tasks])

    neighbours = KNeighborsRegressor(n_neighbors=20)
    neighbours.fit(embed(embeddings, [task.question for task in train]), scores(train))
    expected = neighbours.predict(embed(embeddings, [task.question for task in test])).argmax(1)

    def chosen(kind: str) -> list[str]:
        baseline = create_baseline(kind, registry, records=pool, embeddings=embeddings)
        return [
            baseline.invoke({"messages": [("user", task.question)]}, {"metadata": {"task_id": task.id}})["routing"][
                "calls"
            ][0]["model"]
            for task in test
        ]

    def mean_score(names: list[str]) -> float:
        return float(np.mean([pool.outcomes[t.id][name].score for t, name in zip(test, names, strict=True)]))

    knn = chosen("knn")
    assert knn == [registry.names[index] for index in expected]
    assert mean_score(chosen("random")) < mean_score(knn) < mean_score(chosen("oracle"))
