"""What the wiki pool's parts learn from: single facts for the reader, and questions with other names in them for plans.

The files of 2WikiMultihopQA that are used say neither which passages a question needs nor what comes out in between.
For the train split both are found out: the passage that is named like the one who is asked about must name another
passage, which holds the golden answer; its title is the result of the first step. Beside these, single facts are taken
out of passages by patterns ("directed by ..."), but for those of questions of the other splits.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from langchain_core.documents import Document

from langgraph_router_r1.evaluation.metrics import normalise
from langgraph_router_r1.evaluation.tasks import WIKI_SET, Task, as_task, json_lines, load_tasks
from langgraph_router_r1.retrieval.span_reader import passage_text
from langgraph_router_r1.wiki import passages, passages_file, passages_in, word_retriever
from langgraph_router_r1.wiki.world import LOOKED_UP, true_steps
from training.extractor import answer_in
from training.span_reader import SpanExample

MOST_TRIES = 20
"""Most tries to put other names into a question, for each that is asked for: not every name fits every template."""

MOST_OF_A_PATTERN = 120
"""Most facts that one pattern gives."""

LEARNED_BYTES = 700
"""How much of a passage is learned from: less than is read later, since time grows with it."""

OTHER_QUESTIONS = ("nq_oracle_500", "popqa_300")
"""Questions about single facts that people asked, or that were made of a database, with passages that answer them."""


class Reading(NamedTuple):
    """A question, the passage that answers it, and the words in which it does."""

    source: str
    question: str
    passage: Document
    answer: str

    def examples(self, *, other: bool) -> Iterator[SpanExample]:
        """Yield what is learned: the answer and, with `other`, that another passage which is found has none."""
        text = passage_text(self.passage, LEARNED_BYTES)
        yield SpanExample(self.question, text, self.answer, len(passage_text(self.passage, 0)))
        # The most similar one by all of its words: where titles count more, most others have little to do with it.
        for passage in word_retriever(2, title_weight=1.0).invoke(self.question) if other else ():
            text = passage_text(passage, LEARNED_BYTES)
            if passage.id != self.passage.id and self.answer not in text:
                yield SpanExample(self.question, text, "")
                break


def title_of(passage: Document) -> str:
    """Return a passage's title without what tells it from others, `Henry Edwards (actor)`."""
    return re.sub(r" \([^()]*\)$", "", str(passage.metadata["title"]))


@functools.cache
def _by_title(file: Path) -> dict[str, Document]:
    """Return the passages of a file by their titles in small letters."""
    return {str(passage.metadata["title"]).casefold(): passage for passage in reversed(passages_in(file))}


@functools.cache
def _normalised(file: Path) -> list[tuple[Document, str]]:
    """Return the passages of a file with their texts as answers are compared."""
    return [(passage, f" {normalise(passage.page_content)} ") for passage in passages_in(file)]


_SUBJECT = re.compile(
    r"(?:Who is the [\w-]+ of|When was|When did|What nationality is|Which country is) "
    r"(?:the (?:film|song|album|university) )?(.+?)(?: born| released| die| from)?\?"
)


def subject(query: str) -> Document | None:
    """Return the passage that is named like what the first step of a plan asks about."""
    match = _SUBJECT.fullmatch(query)
    return _by_title(passages_file()).get(match[1].casefold()) if match else None


def names(text: str, name: str) -> bool:
    """Return whether a text names somebody in just these letters."""
    return bool(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def in_between(task: Task) -> Document | None:
    """Return the passage that leads from a question of two steps to its answer; None where none or several may."""
    first = subject(true_steps(task.question)[0][0])
    if first is None:
        return None
    golden = [f" {normalise(answer)} " for answer in task.golden_answers]
    found = [
        passage
        for passage, text in _normalised(passages_file())
        if passage is not first
        and any(answer in text for answer in golden)
        and names(first.page_content, title_of(passage))
    ]
    return found[0] if len(found) == 1 else None


def reading_examples(tasks: Sequence[Task]) -> Iterator[Reading]:
    """Yield what can be learned from questions: their single steps where these are known, and the questions whole."""
    for task in tasks:
        steps = [query for query, model in true_steps(task.question) if model == LOOKED_UP]
        if len(true_steps(task.question)) != 2 or len(steps) != 2:
            continue
        first, second = subject(steps[0]), in_between(task)
        if first is None or second is None or (answer := answer_in(second.page_content, task)) is None:
            continue
        name = title_of(second)
        yield Reading("first step", steps[0], first, name)
        yield Reading("second step", steps[1].replace("#1", name), second, answer)
        yield Reading("whole", task.question, second, answer)


_NAME = r"([A-Z][\w.'’-]+(?: (?:de|da|del|di|van|von|der|la|le|[A-Z][\w.'’-]*)){1,4})"
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = rf"((?:\d{{1,2}} )?(?:{_MONTH}) ?(?:\d{{1,2}}, )?\d{{4}}|\d{{4}})"
_PLACE = r"([A-Z][\w'’-]+(?:[ -][A-Z][\w'’-]+){0,2})"

FACTS = {
    "Who is the director of the film {}?": rf"\bfilm\b.*?\bdirected by {_NAME}",
    "Who is the composer of the film {}?": rf"\bfilm\b.*?\b(?:music|score)[\w ]* (?:was )?(?:composed )?by {_NAME}",
    "Who is the performer of the song {}?": rf"\b(?:song|single)\b.*?\b(?:by|singer|artist|duo|band|group) {_NAME}",
    "Who is the father of {}?": rf"\b(?:son|daughter) of {_NAME}",
    "Who is the mother of {}?": rf"\b(?:son|daughter) of [^.]*?\band (?:his wife |his first wife )?{_NAME}",
    "Who is the spouse of {}?": rf"\b(?:married|wife of|husband of) {_NAME}",
    "When was {} born?": rf"^[^.]{{0,120}}?\((?:[^()]*?\bborn )?{_DATE}",
    "When did {} die?": rf"^[^.]{{0,120}}?\([^()]*?\d{{4}} ?[–-] ?{_DATE}",
    "Where was {} born?": rf"\bborn (?:on [\w, ]+? )?in {_PLACE}",
    "Where did {} die?": rf"\b(?:died|death) (?:on [\w, ]+? )?(?:in|at) {_PLACE}",
    "What nationality is {}?": r"^[^.]*?\b(?:is|was) an? (?:[a-z]+ )?([A-Z][a-z]+(?:[ -][A-Z][a-z]+)?) [a-z]",
    "Which country is the film {} from?": r"\bis an? (?:\d{4} )?([A-Z][a-z]+) (?:[\w-]+ )*?film\b",
    "When was the film {} released?": r"\bis an? (\d{4}) [\w -]*film\b",
    "Where did {} study?": (
        r"\b(?:graduated from|studied at|educated at|attended)(?: the)? ([A-Z][\w'’]+(?: (?:of|[A-Z][\w'’]+))*)"
    ),
}
"""Questions about a single fact, and where an article says it: the patterns read what the first lines often say."""


def facts(kept_away: set[str], choose: random.Random) -> Iterator[Reading]:
    """Yield single facts that patterns find in passages.

    Args:
        kept_away: Titles, in small letters, of passages that questions of other splits are about.
        choose: Draws the passages, and which names are written as the questions write them, with capitals throughout.
    """
    free = [passage for passage in passages() if str(passage.metadata["title"]).casefold() not in kept_away]
    choose.shuffle(free)
    for question, pattern in FACTS.items():
        finds, count = re.compile(pattern), 0
        for passage in free:
            text = passage.page_content[:LEARNED_BYTES]
            is_work = re.search(r"\b(?:film|song|single|album)\b", text[:200]) is not None
            if is_work != ("the film" in question or "the song" in question) or (match := finds.search(text)) is None:
                continue
            name = str(passage.metadata["title"])
            # A sentence that ends after the name is not part of it, but the point of an initial is.
            answer = re.split(r"(?<=[a-z]{2})\. ", match[1])[0].rstrip(".")
            yield Reading("pattern", question.format(choose.choice([name, name.title()])), passage, answer)
            count += 1
            if count == MOST_OF_A_PATTERN:
                break


def other_questions(kept_away: set[str]) -> Iterator[Reading]:
    """Yield questions of the train split that other sets have, with the first passage of theirs that answers each.

    Args:
        kept_away: As for `facts`.
    """
    directory = passages_file().parent
    for name in OTHER_QUESTIONS:
        for line, row in json_lines(directory / f"{name}.jsonl"):
            task = as_task(row, f"{name}.jsonl, line {line}", name, line)
            for passage in row["passages"] if task.split == "train" else ():
                answer = answer_in(passage["text"], task)
                if answer and answer in passage["text"] and str(passage["title"]).casefold() not in kept_away:
                    document = Document(passage["text"], metadata={"title": passage["title"]})
                    yield Reading(name, task.question, document, answer)
                    break


def kept_away() -> set[str]:
    """Return the titles, in small letters, of the passages that questions of validation and test are about."""
    found: set[str] = set()
    for task in (*load_tasks(WIKI_SET, split="validation"), *load_tasks(WIKI_SET, split="test")):
        steps = true_steps(task.question)
        about = [subject(query) for query, _ in steps if "#" not in query]
        if len(steps) == 2:
            about.append(in_between(task))
        found |= {str(passage.metadata["title"]).casefold() for passage in about if passage is not None}
    return found


def renamed(question: str, films: Sequence[str], people: Sequence[str], choose: random.Random) -> str | None:
    """Return a question with other names in it, whose steps are the same but for the names; None where that fails.

    Args:
        question: One whose steps are known.
        films: Names that a film may get.
        people: Names that anybody else may get.
        choose: Draws them.
    """
    steps = true_steps(question)
    found = {match[1]: query for query, _ in steps if (match := _SUBJECT.fullmatch(query)) and "#" not in query}
    of_film = {name: "film" in query for name, query in found.items()}
    count = sum(of_film.values())
    if not found or count > len(films) or len(found) - count > len(people):
        return None
    drawn = {True: iter(choose.sample(films, count)), False: iter(choose.sample(people, len(found) - count))}
    names = {name: next(drawn[is_film]) for name, is_film in of_film.items()}
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    def exchanged(text: str) -> str:
        return pattern.sub(lambda match: names[match[0]], text)

    changed = exchanged(question)
    return changed if true_steps(changed) == [(exchanged(query), model) for query, model in steps] else None


def names_to_draw() -> tuple[list[str], list[str]]:
    """Return the titles of films, and those of people, but for what questions of the other splits are about."""
    films, people = list[str](), list[str]()
    away = kept_away()
    for passage in passages():
        start = passage.page_content[:200]
        if str(passage.metadata["title"]).casefold() in away:
            continue
        if re.search(r"\bis an? [\w -]*\bfilm\b(?! [\w-]*(?:or|er|ress|ist|ic)\b)", start):
            films.append(title_of(passage))
        elif re.search(r"\bborn\b|\b\d{4} ?[–-] ?", start[:120]):
            people.append(title_of(passage))
    return films, people


def questions_to_learn(count: int, choose: random.Random) -> list[str]:
    """Return questions of the train split whose steps are known; beyond these, the same about others.

    Args:
        count: How many; fewer are returned where names are too few.
        choose: Of the questions, names and their order.
    """
    known = [task.question for task in load_tasks(WIKI_SET, split="train") if true_steps(task.question)]
    asked, (films, people) = choose.sample(known, min(count, len(known))), names_to_draw()
    for _ in range(MOST_TRIES * count):
        if len(asked) >= count:
            break
        if changed := renamed(choose.choice(known), films, people, choose):
            asked.append(changed)
    choose.shuffle(asked)
    return asked
