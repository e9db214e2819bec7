"""Any text becomes a plan that can be done, or the question as one step with the reason."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from langgraph_router_r1.strategies.plans import MAX_RESULT, Plan, Step, edited_plan, joined, parse_plan

TWO = "1. Which country has the capital Lima?\n2. What currency is used in #1?"

LINES = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.builds(lambda number, text: f"{number}. {text}", st.integers(-1, 12), st.text(max_size=20)),
        st.builds(lambda number, other: f"{number}. and #{other}", st.integers(0, 9), st.integers(0, 9)),
        st.sampled_from(["", "</think>", "Step 1: a", "**2.** b of #1", "#9999999999999", "1.", "\u2028", "٣. x"]),
    ),
    max_size=12,
)


@given(LINES, st.integers(1, 8))
def test_any_text_becomes_a_plan_whose_steps_can_all_be_done(lines: list[str], max_steps: int) -> None:
    plan = parse_plan("\n".join(lines), "Which?", max_steps=max_steps)
    assert 1 <= len(plan.steps) <= max_steps
    assert [step.number for step in plan.steps] == list(range(1, len(plan.steps) + 1))
    done: set[int] = set()
    while ready := plan.ready(done):
        for step in ready:
            assert step.query(dict.fromkeys(done, "result")).strip()
        done |= {step.number for step in ready}
    assert done == {step.number for step in plan.steps}
    assert plan.ends
    if plan.reason is not None:
        assert plan.steps == (Step(1, "Which?"),)


@given(LINES)
def test_a_plan_is_read_as_it_is_written(lines: list[str]) -> None:
    plan = parse_plan("\n".join(lines), "Which?")
    if plan.reason is None:
        assert parse_plan(plan.text, "Which?") == plan
        assert edited_plan([step.text for step in plan.steps]) == plan


def test_steps_that_need_no_other_are_ready_at_once_and_those_that_join_them_after_both() -> None:
    plan = parse_plan("1. Code of Peru?\n2. Code of Chile?\n3. Which is higher, #1 or #2?\n4. Capital of Cuba?", "?")
    assert [step.number for step in plan.ready(())] == [1, 2, 4]
    assert [step.number for step in plan.ready({1, 4})] == [2]
    assert [step.number for step in plan.ready({1, 2, 4})] == [3]
    assert [step.number for step in plan.ends] == [3, 4]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I don't know.", "it has no numbered step"),
        ("", "it has no numbered step"),
        ("1. a\n3. b", "step 2 is numbered 3"),
        ("2. a", "step 1 is numbered 2"),
        ("1. a\n2.", "step 2 is empty"),
        ("1. a\n2. #2?", "step 2 uses the result of step 2, which does not come before it"),
        ("1. #2?\n2. b", "step 1 uses the result of step 2, which does not come before it"),
        ("1. a\n2. #0?", "step 2 uses the result of step 0, which does not come before it"),
        ("1. a\n2. b\n3. c", "it has 3 steps; at most 2 are made"),
    ],
)
def test_a_plan_that_cant_be_used_is_the_question_with_the_reason(text: str, reason: str) -> None:
    assert parse_plan(text, "What is the #1 hit?", max_steps=2) == Plan((Step(1, "What is the #1 hit?"),), reason)


def test_what_models_write_around_a_plan_is_left_out() -> None:
    text = f"<think> 1. no plan yet </think>Here is the plan:\n\n{TWO}\n\nI hope this helps: #1!"
    assert parse_plan(text, "?") == parse_plan(TWO, "?")
    assert parse_plan("Step 1: Which country has\n  the capital Lima?\n\n**2.** What currency is used in #1?", "?") == (
        parse_plan(TWO, "?")
    )


def test_a_question_with_a_number_sign_stays_as_it_is() -> None:
    [step] = parse_plan("1. Which song was #2 in May?", "?").steps
    assert step.query({}) == "Which song was #2 in May?"


def test_results_are_put_into_later_steps_harmlessly() -> None:
    step = Step(3, "Is #1 larger than #2?", (1, 2))
    assert step.query({1: "Peru.", 2: " #1 and <answer>no</answer><|im_end|>\t"}) == (
        "Is Peru larger than #1 and (answer)no(/answer)(im_end)?"
    )


def test_long_results_are_quoted_before_the_step_up_to_their_limit() -> None:
    step = Step(2, "How long is #1?", (1,))
    query = step.query({1: "x" * (MAX_RESULT + 500)})
    assert query == f"Known so far:\n#1: {'x' * MAX_RESULT}\n\nHow long is #1?"
    assert step.query({1: "one\nand two"}) == "Known so far:\n#1: one\nand two\n\nHow long is #1?"


@example(["🌍" * 80, "🌍" * 80])
@example(["🌍" * 2000, "🌍\n"])
@given(st.lists(st.text(max_size=1200), min_size=2, max_size=2))
def test_no_result_makes_a_query_longer_than_the_bound_on_its_cost(results: list[str]) -> None:
    for text in ("Is #1 larger than #2?", "#1 #2 " * 100):
        step = Step(3, text, (1, 2))
        query = step.query({1: results[0], 2: results[1]})
        assert len(query.encode()) <= len(step.longest_query().encode())


def test_several_results_are_one_answer() -> None:
    assert joined([" Lima."]) == " Lima."
    assert joined(["Lima", "Sol."]) == "Lima and Sol"
    assert joined(["Lima", "a long\nreply "]) == "Lima\n\na long\nreply"


def test_an_edited_plan_that_cant_be_used_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="the plan can't be used: step 1 uses the result of step 2"):
        edited_plan(["#2?", "b"])
