"""The tag grammar rule by rule: which action, which text and which problem, and not only that there is one."""

from __future__ import annotations

import unicodedata

import pytest

from langgraph_router_r1.protocol import (
    Call,
    Invalid,
    Route,
    best_effort_answer,
    check_format,
    fold,
    parse,
    quote,
    sanitize,
    strip_thought,
)

NAMES = ("capitals", "dialling codes")


def searched(body: str) -> object:
    return parse(f"<search>{body}</search>", NAMES)


# Reading a turn


def test_names_are_compared_without_case_and_with_single_blanks() -> None:
    assert fold("  Dialling \t CODES ") == "dialling codes"


def test_an_empty_answer_decides_too() -> None:
    action = parse("<answer> </answer><search>capitals: a?</search>", NAMES)
    assert action == Invalid("the answer is empty")


def test_the_reason_says_whether_a_model_can_still_be_asked() -> None:
    asking, answering = parse("hm", NAMES), parse("hm", NAMES, routing=False)
    assert isinstance(asking, Invalid)
    assert isinstance(answering, Invalid)
    assert "no complete search and no complete answer" in asking.reason
    assert "no complete answer" in answering.reason
    assert "no model can be asked" in answering.reason


def test_blank_lines_before_the_first_name_do_not_count() -> None:
    assert searched("\n  \n capitals : Peru? \n") == Route((Call("capitals", "Peru?"),))


def test_a_name_without_a_colon_asks_nobody() -> None:
    assert searched("capitals: a?\ndialling codes\nb?") == Route((Call("capitals", "a?\ndialling codes\nb?"),))


@pytest.mark.parametrize("body", ["no colon here\ncapitals: a?", ": a?", " : \ncapitals: a?", "capitals\nPeru?"])
def test_text_before_the_first_name_makes_a_search_invalid(body: str) -> None:
    action = searched(body)
    assert isinstance(action, Invalid)
    assert "must start with the name of a model" in action.reason


def test_an_unknown_name_is_kept_with_single_blanks_and_its_query_goes_on_in_the_next_line() -> None:
    assert searched("no \t body: a?\n  and b?") == Route((Call("no body", "a?\nand b?", known=False),))


def test_a_name_alone_in_its_line_has_its_query_below() -> None:
    assert searched("capitals:\nPeru?") == Route((Call("capitals", "Peru?"),))


def test_after_a_known_name_a_line_with_an_unknown_one_is_part_of_the_query() -> None:
    assert searched("capitals: a?\nnobody: b?\ndialling codes: c?") == Route(
        (Call("capitals", "a?\nnobody: b?"), Call("dialling codes", "c?"))
    )


def test_a_query_that_is_empty_is_named_wherever_it_stands() -> None:
    action = searched("capitals: a?\ndialling codes: \n ")
    assert isinstance(action, Invalid)
    assert "query for dialling codes is empty" in action.reason


@pytest.mark.parametrize(
    "query", ["query", "[Your  Query]", "<sub-query>", "{question}", "(your question)", "...", "…"]
)
def test_a_placeholder_is_no_query(query: str) -> None:
    action = searched(f"capitals: {query}")
    assert isinstance(action, Invalid)
    assert "query for capitals is a placeholder" in action.reason


@pytest.mark.parametrize("query", ["query?", "which question", "query\nPeru?", "XqueryX", "/query/"])
def test_what_only_contains_a_placeholder_is_a_query(query: str) -> None:
    assert searched(f"capitals: {query}") == Route((Call("capitals", query),))


# Making text harmless


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("<answer>x</answer>", "(answer)x(/answer)"),
        ("< / Search >x", "(/Search)x"),
        ("<think", "(think)"),
        ("<thinks>", "<thinks>"),
        ("a<|eot_id|>b", "a(eot_id)b"),
        ("[INST] hi [/INST]", "(INST) hi (/INST)"),
        ("<s> hi </s>", "(s) hi (/s)"),
        ("a\ud83db", "a?b"),
        ("x < 5 and | y | > 3", "x < 5 and | y | > 3"),
    ],
)
def test_brackets_become_parentheses_and_the_words_stay(text: str, harmless: str) -> None:
    assert sanitize(text) == harmless


def test_text_is_normalised_only_where_that_uncovers_something() -> None:
    assert sanitize("½ of ﬁve ①") == "½ of ﬁve ①"
    assert sanitize("① ‹𝐚nswer>") == "1 (answer)"
    assert sanitize("① ﹤|eot|﹥") == "1 (eot)"
    assert sanitize("① ［EOS］") == "① ［EOS］"
    assert sanitize("① ［EOS］", ["[PAD]", "[EOS]"]) == "1 (EOS)"


@pytest.mark.parametrize(
    "accented",
    ["a" + "\u0301\u0316" * 20, "X\u0301\u0316" * 20, "\u0344\u0f73" * 20],
    ids=["one letter", "many letters", "accents of several parts"],
)
def test_a_text_in_which_a_tag_hid_keeps_its_accents_in_their_normal_form(accented: str) -> None:
    normal = unicodedata.normalize("NFKC", accented)
    assert sanitize(f"{accented} ＜ａnswer＞") == f"{normal} (answer)"


def test_the_longest_control_token_is_taken_first_and_only_its_brackets_go() -> None:
    assert sanitize("a [E]OS b", ["[E]", "[E]OS"]) == "a (E]OS) b"
    assert sanitize("<a.b> <aXb>", ["<a.b>"]) == "(a.b) <aXb>"
    assert sanitize("x▁<EOS>▁y", ["▁<EOS>▁"]) == "x(EOS)y"
    assert sanitize("x｜X EOS｜y", ["｜X EOS｜"]) == "x(X EOS)y"


# Thoughts of routed models


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("a secret thought</think> Lima", "Lima"),
        ("x<think>y</think>z</think>Lima", "Lima"),
        ("lost</think>Lima <think>sure</think>is it.", "Lima is it."),
        ("a<think>b<think>c</think>d</think>e", "ae"),
        ("<think>a</think>b<thinking>c</thinking>d", "bd"),
        ("  <think>never ends", ""),
        ("<think>a</think>  <think>never ends", ""),
        ("Lima <think>is", "Lima <think>is"),
        ("<think>a</think>Lima <think>is", "Lima <think>is"),
        ("Lima <think>a<think>b</think>c", "Lima <think>a<think>b</think>c"),
        ("<think>a<think>b</think>c", ""),
        (" \n Lima \n ", "Lima"),
    ],
)
def test_what_is_kept_of_a_reply_with_thoughts(reply: str, kept: str) -> None:
    assert strip_thought(reply) == kept


# What goes back, and what an unfinished turn is worth


def test_what_comes_back_is_wrapped_in_information_tags() -> None:
    assert quote("Lima") == "\n\n<information> Lima </information>\n\n"


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("<answer> a <answer> b </think>", "b"),
        ("It is Lima. <answer> ", "It is Lima."),
        ("<think>a\nb</think>\nIt is\nLima.<search>capitals:\nx?</search>", "It is\nLima."),
        ("Lima <information>forged\n", "Lima"),
        ("Lima</think> it is<answer>", "Lima it is"),
        ("<think>a</search>b", ""),
        ("", ""),
    ],
)
def test_the_best_text_of_an_unfinished_turn(text: str, best: str) -> None:
    assert best_effort_answer(text) == best


# The form of a whole run

ASKS = "<think> hm </think> <search> capitals: Peru? </search>"
ANSWERS = "<think> ok </think> <answer> Lima </answer>"
INFO = ("observation", quote("Lima"))


def problem(*turns: str) -> str | None:
    segments = [("prompt", "")]
    for turn in turns:
        segments += [("policy", turn), INFO]
    return check_format(segments[:-1] if turns else segments, iter(NAMES))


def test_a_run_that_thinks_asks_twice_and_answers_is_well_formed() -> None:
    assert problem(ASKS, ASKS, ANSWERS) is None
    assert problem("<think> a </think> <think> b </think> <answer> Lima </answer>") is None


@pytest.mark.parametrize(
    ("segments", "well_formed"),
    [
        ([("policy", ASKS), INFO, ("policy", ANSWERS)], True),
        ([INFO, ("policy", ASKS), INFO, ("policy", ANSWERS)], True),
        ([("policy", ASKS), ("policy", ANSWERS)], False),
        ([INFO, ("policy", ASKS), ("policy", ANSWERS)], False),
        ([("policy", ASKS), INFO, ("policy", ANSWERS), INFO], False),
        ([("policy", ASKS), INFO, ("policy", ASKS), ("policy", ANSWERS)], False),
    ],
)
def test_every_search_is_answered_by_one_information_block(segments: list[tuple[str, str]], well_formed: bool) -> None:
    found = check_format([("prompt", ""), *segments], NAMES)
    assert (found is None) == well_formed
    if found is not None:
        assert "information blocks" in found


def test_a_run_without_a_turn_says_so() -> None:
    assert check_format([("prompt", ANSWERS)], NAMES) == "nothing was sampled"


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ("</think><answer> Lima </answer>", "a think tag is closed that was not open"),
        ("<think> a </think></search><answer> Lima </answer>", "a search tag is closed that was not open"),
        ("<think> a <search> b </search></think><answer> c </answer>", "a search tag stands inside a think tag"),
        ("<think> a </answer> b </think>", "answer tag stands inside a think tag"),
        ("<think> a <think> b </think><answer> c </answer>", "a think tag stands inside a think tag"),
        ("<think> \n </think><answer> Lima </answer>", "the think tag is empty"),
        ("<think> a </think><answer> Lima", "answer tag is not closed"),
        ("<answer> Lima </answer>", "does not start with a thought"),
        ("Lima", "does not start with a thought"),
        ("<answer> Lima </answer><think> a </think>", "does not start with a thought"),
        ("<think> a </think>", "one answer, and is think"),
        ("<think> a </think><search> capitals: b? </search>", "one answer, and is think, search"),
        ("<think> a </think><answer> b </answer><think> c </think>", "one answer, and is think, answer, think"),
        ("<think> a </think><search> b </search><answer> c </answer>", "one answer, and is think, search, answer"),
        ("before <think> a </think><answer> Lima </answer>", "text outside the tags"),
        (".<think> a </think><answer> Lima </answer>", "text outside the tags"),
        ("<think> a </think>.<answer> Lima </answer>", "text outside the tags"),
        ("<think> a </think><answer> Lima </answer>.", "text outside the tags"),
        ("<think> a </think> between <answer> Lima </answer>", "text outside the tags"),
        ("<think> a </think><answer> Lima </answer> after", "text outside the tags"),
    ],
)
def test_what_is_wrong_with_an_answer_turn_is_told_with_its_place(turn: str, says: str) -> None:
    for found, place in ((problem(turn), "turn 1: "), (problem(ASKS, turn), "turn 2: ")):
        assert found is not None
        assert found.startswith(place)
        assert says in found


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        (ANSWERS, "one search, and is think, answer"),
        ("<think> a </think><search> nobody: b? </search>", "unknown model"),
        ("<think> a </think><search> capitals: </search>", "query for capitals is empty"),
        ("<think> a </think><search> capitals: query </search>", "placeholder"),
        ("<think> a </think><search> no colon </search>", "name of a model"),
    ],
)
def test_what_is_wrong_with_a_turn_that_asks_is_told_with_its_place(turn: str, says: str) -> None:
    found = problem(ASKS, turn, ANSWERS)
    assert found is not None
    assert found.startswith("turn 2: ")
    assert says in found
