"""What is read of questions and replies, and that nothing which predicts has seen the answer before."""

from __future__ import annotations

import numpy as np

from langgraph_router_r1.evaluation.signals import END, Heard, WordRegression, likeliest, of_question, of_reply, pooled

QUESTION = "Which is it?\n(A) one\n(B) a much longer option\n(C) 3"


def test_scores_of_a_text_come_from_a_model_that_did_not_learn_from_it() -> None:
    texts = [f"word{n} also{n}" for n in range(60)]
    scores = np.array([[float(n % 2)] for n in range(60)])
    model = WordRegression(texts, scores)
    by_heart = [model.predict(text)[0] for text in texts]
    assert np.corrcoef(by_heart, scores[:, 0])[0, 1] > 0.9
    assert abs(model.unseen[:, 0] - 0.5).max() < 0.12


def test_a_regression_learns_words_and_takes_empty_texts() -> None:
    model = WordRegression(["it is sure", "it is perhaps"] * 20, np.array([[1.0, 0.0], [0.0, 0.0]] * 20))
    assert model.predict("sure")[0] > 0.7 > 0.3 > model.predict("perhaps")[0]
    assert model.unseen.shape == (40, 2)
    assert WordRegression([""] * 4, np.array([[1.0], [0.0]] * 2)).predict("anything at all") == 0.5


def test_a_whole_reply_says_what_its_recorded_end_says() -> None:
    whole = "However, first of all, 12. " * 20 + "So it must be the second.\nThe answer is (B).\n"
    end = whole.strip()[-END:]
    assert of_reply(Heard.of(whole, QUESTION, 90), QUESTION) == of_reply(Heard.of(end, QUESTION, 90), QUESTION)


def test_what_a_reply_and_a_question_say_changes_with_them() -> None:
    sure, unsure = (
        of_reply(Heard.of(f"The {word} one it is. The answer is (C).", QUESTION, 9), QUESTION)
        for word in ("perfect", "closest")
    )
    assert sure != unsure
    assert (
        len({tuple(of_reply(Heard.of(f"The answer is ({letter}).", QUESTION, 9), QUESTION)) for letter in "ABCD"}) == 4
    )
    rambling = of_reply(Heard.of("The answer is (B).\n\nThe answer is (C).", QUESTION, 9), QUESTION)
    assert rambling != of_reply(Heard.of("The answer is (C).\n\nThe answer is (C).", QUESTION, 9), QUESTION)
    assert of_question(QUESTION.replace("it", "now")) != of_question(QUESTION.replace("it", "not"))
    assert len(of_question("Capital of Peru?")) == len(of_question(QUESTION))


def test_replies_that_state_the_same_are_equally_likely_and_silence_agrees_with_nobody() -> None:
    expected, answers = np.array([[0.2, 0.6, 0.3, 0.5]]), np.array([["a", "a", "", ""]])
    assert pooled(expected, answers).tolist() == [[0.4, 0.4, 0.3, 0.5]]


def test_of_replies_with_the_likeliest_answer_the_likeliest_one_is_passed_on() -> None:
    expected = np.array([[0.5, 0.55, 0.7], [0.5, 0.9, 0.6], [0.4, 0.4, 0.1]])
    answers = np.array([["a", "b", "a"], ["a", "b", "a"], ["a", "a", "b"]])
    assert likeliest(expected, answers).tolist() == [2, 1, 0]
