"""Scores by SQuAD's published rules, and statistics that say what they should."""

from __future__ import annotations

import functools
import json
import os
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_router_r1.evaluation import metrics
from langgraph_router_r1.evaluation.metrics import bootstrap, contains, exact_match, f1, last_number, paired_p_value
from langgraph_router_r1.evaluation.recorded import RecordedPool, quality
from langgraph_router_r1.evaluation.tasks import normalise


class Squad:
    """SQuAD's rules as its paper and its evaluation state them, step by step, to hold ours against."""

    @staticmethod
    def normalise(text: str) -> str:
        lowered = text.lower()
        unpunctuated = "".join(character for character in lowered if character not in set(string.punctuation))
        without_articles = re.sub(r"\b(a|an|the)\b", " ", unpunctuated)
        return " ".join(without_articles.split())

    @classmethod
    def f1(cls, answer: str, golden: str) -> float:
        said, wanted = cls.normalise(answer).split(), cls.normalise(golden).split()
        same = sum((Counter(said) & Counter(wanted)).values())
        if not said or not wanted:
            return float(said == wanted)
        if same == 0:
            return 0.0
        precision, recall = same / len(said), same / len(wanted)
        return 2 * precision * recall / (precision + recall)


# answer, golden answers, exact match, f1, contains
HARD = [
    ("The Beatles", ["Beatles"], True, 1.0, True),
    ("the the the", ["Lima"], False, 0.0, False),
    ("A", ["a"], True, 1.0, False),  # an article is nothing, and nothing stands in nothing
    ("", [""], True, 1.0, False),
    ("", ["Lima"], False, 0.0, False),
    ("Lima", [""], False, 0.0, False),
    ("Lima", [], False, 0.0, False),
    ("U.S.A.", ["USA"], True, 1.0, True),
    ("it's", ["its"], True, 1.0, True),
    ("rock-and-roll", ["rock and roll"], False, 0.0, False),  # hyphens vanish, words do not split
    ("3,000", ["3000"], True, 1.0, True),
    ("3.5", ["35"], True, 1.0, True),  # so the rules have it
    ("1990s", ["1990"], False, 0.0, False),
    ("Beyoncé", ["Beyonce"], False, 0.0, False),  # accents count
    ("ÉCOLE", ["école"], True, 1.0, True),
    ("İstanbul", ["i̇stanbul"], True, 1.0, True),  # lower case may take two characters
    ("«Lima»", ["Lima"], False, 0.0, False),  # SQuAD's punctuation is ASCII
    ("Lima\u00a0", ["Lima"], True, 1.0, True),  # any white space
    ("an\tapple  \n pie", ["apple pie"], True, 1.0, True),
    ("theatre", ["atre"], False, 0.0, False),  # an article is a word
    ("Theodore Roosevelt", ["Roosevelt"], False, 2 / 3, True),
    ("Roosevelt, Theodore", ["Theodore Roosevelt"], False, 1.0, False),  # F1 knows no order
    ("to be to be", ["to be"], False, 2 / 3, True),
    ("$16", ["16 dollars"], False, 2 / 3, False),
    ("Limassol", ["Lima"], False, 0.0, False),
    ("Yes.", ["no", "yes"], True, 1.0, True),
]


@pytest.mark.parametrize(("answer", "golden", "em", "overlap", "held"), HARD)
def test_hard_strings_score_as_squads_rules_say(
    answer: str, golden: list[str], em: bool, overlap: float, held: bool
) -> None:
    assert exact_match(answer, golden) is em
    assert f1(answer, golden) == pytest.approx(overlap)
    assert contains(answer, golden) is held
    assert em == any(Squad.normalise(answer) == Squad.normalise(one) for one in golden)
    assert f1(answer, golden) == pytest.approx(max((Squad.f1(answer, one) for one in golden), default=0.0))


@given(st.text(), st.text())
def test_any_two_texts_score_as_squads_rules_say(answer: str, golden: str) -> None:
    assert normalise(answer) == Squad.normalise(answer)
    assert f1(answer, [golden]) == pytest.approx(Squad.f1(answer, golden))
    assert exact_match(answer, [golden]) == (Squad.normalise(answer) == Squad.normalise(golden))


def test_the_last_number_of_a_reply_is_its_answer() -> None:
    assert last_number("16 - 3 - 4 = 9; 9 * $2 = $18.00.", ["18"])
    assert last_number("about 1,250 in all", ["1250"])
    assert not last_number("18, or maybe 20", ["18"])
    assert not last_number("none", ["18"])


# Statistics


def test_the_interval_covers_the_mean_and_is_the_same_for_the_same_seed() -> None:
    values = [0.0, 1.0] * 50
    estimate = bootstrap(values)
    assert estimate == bootstrap(values)
    assert estimate.low < estimate.mean == 0.5 < estimate.high
    # The standard error of 100 coin tosses is 0.05.
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.05, abs=0.03)
    assert bootstrap([1.0, 1.0]) == metrics.Estimate(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_the_interval_holds_the_truth_19_times_in_20() -> None:
    draw = np.random.default_rng(0)
    found = [bootstrap(draw.random(60) < 0.4) for _ in range(100)]
    assert 88 <= sum(estimate.low <= 0.4 <= estimate.high for estimate in found) <= 100


def test_paired_differences_are_told_from_chance() -> None:
    draw = np.random.default_rng(0)
    first = (draw.random(200) < 0.5).astype(float)
    better = np.where(draw.random(200) < 0.2, 1.0, first)
    assert paired_p_value(first, first) == 1.0
    assert paired_p_value(better, first) < 0.001
    assert paired_p_value(better, first) == paired_p_value(better, first)
    # Two against none, of four questions: as likely as two coins that fall alike.
    assert paired_p_value([1, 1, 0, 0], [0, 0, 0, 0]) == pytest.approx(0.5)
    assert paired_p_value([1, 0, 0, 0], [0, 0, 0, 0]) == 1.0
    with pytest.raises(ValueError, match="same questions"):
        paired_p_value([1.0], [1.0, 0.0])


# Real data


def records(name: str) -> RecordedPool:
    directory = os.environ.get("ROUTER_R1_DATA")
    if not directory:
        pytest.skip("ROUTER_R1_DATA is not set: the recorded answers are not here")
    return RecordedPool.from_file(Path(directory) / "pools" / f"{name}.jsonl")


def test_the_published_table_of_six_models_is_reproduced_from_the_records() -> None:
    pool = records("nq_six_models")
    published = {
        "meta/llama-3.1-70b-instruct": (0.629, 125.1),
        "meta/llama-3.1-8b-instruct": (0.585, 36.1),
        "mistralai/mixtral-8x22b-instruct-v0.1": (0.417, 78.6),
        "mistralai/mistral-7b-instruct-v0.3": (0.405, 12.3),
        "google/gemma-2-27b-it": (0.368, 29.4),
        "qwen/qwen2.5-7b-instruct": (0.127, 13.6),
    }
    table: dict[str, tuple[float, float]] = {}
    for model in pool.models:
        outcomes = [(task, pool.outcomes[task.id][model]) for task in pool.tasks.values()]
        costs = [outcome.cost_usd or 0.0 for _, outcome in outcomes]
        right = np.mean([contains(outcome.response or "", task.golden_answers) for task, outcome in outcomes])
        table[model] = (round(float(right), 3), round(float(np.mean(costs)) * 1e6, 1))
    assert table == published

    def right_then_cheap(task: Any, outcome: Any) -> tuple[bool, float]:
        return not contains(outcome.response, task.golden_answers), outcome.cost_usd

    chosen = [
        (task, min(pool.outcomes[task.id].values(), key=functools.partial(right_then_cheap, task)))
        for task in pool.tasks.values()
    ]
    assert round(float(np.mean([contains(o.response or "", task.golden_answers) for task, o in chosen])), 3) == 0.720
    assert round(float(np.mean([outcome.cost_usd for _, outcome in chosen])) * 1e6, 1) == 21.0


def test_a_tag_around_an_answer_hides_it_from_no_score_of_a_record() -> None:
    pool = RecordedPool.from_rows(
        [{"id": "t", "question": "Q?", "gold": "Lima", "outcomes": {"a": {"response": "<answer>Lima</answer>"}}}]
    )
    assert quality(pool.tasks["t"], pool.outcomes["t"]["a"]) == 1.0


def test_contains_agrees_with_people_as_far_as_the_documents_say() -> None:
    """docs/evaluation.md has the figures, by system: a share of the 803 questions on which both say the same."""
    pool = records("evouna_nq_triviaqa")
    agreement = {}
    for system in pool.models:
        same = [
            contains(pool.outcomes[task.id][system].response or "", task.golden_answers)
            == bool(pool.outcomes[task.id][system].score)
            for task in pool.tasks.values()
        ]
        agreement[system] = f"{np.mean(same):.3f}".removeprefix("0")
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    for system, share in agreement.items():
        assert f"| {system} | {share} |" in page, json.dumps(agreement)
