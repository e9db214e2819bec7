"""Questions of 2WikiMultihopQA that take several look-ups, and the steps that answer them.

    Where was the director of film Blood Street born?       Who is the director of the film Blood Street?
                                                            Where was #1 born?

The questions come from templates, so their steps can be read off them. Which passages hold the answers, nobody has
noted; `reading_examples` in training/wiki_examples.py finds out for the train split.
"""

from __future__ import annotations

import re
from collections.abc import Callable

LOOKED_UP, COMPARED = "search", "dates"
"""Which model of the pool does a step: it looks something up, or compares the results of others."""

Steps = list[tuple[str, str]]
"""Queries, each with the model for it; `#1` stands for the result of the first."""

CHAINS = {
    "paternal grandfather": ("father", "father"),
    "paternal grandmother": ("father", "mother"),
    "maternal grandfather": ("mother", "father"),
    "maternal grandmother": ("mother", "mother"),
    "father-in-law": ("spouse", "father"),
    "mother-in-law": ("spouse", "mother"),
    "stepmother": ("father", "wife"),
    "stepfather": ("mother", "husband"),
}
"""Relations that are two relations, one after the other."""

_SINGLE = (
    "father", "mother", "husband", "wife", "spouse", "uncle", "aunt", "sibling", "child", "director", "composer",
    "performer", "producer", "founder", "editor", "author", "screenwriter",
)  # fmt: skip
_RELATION = "|".join([*CHAINS, *_SINGLE])
_OF = re.compile(rf"(?:the )?(?P<relation>{_RELATION}) of (?:the )?(?:(?P<what>film|song|university) )?(?P<who>.+)")
_POSSESSIVE = re.compile(rf"(?P<who>.+)['’]s (?P<relation>{_RELATION})")

_WON = "(?: (?:won|received|earned|got|was given))?"
_ASKED = (
    (r"Where was (.+) born|What is the place of birth of (.+)", "Where was {} born?"),
    (r"When was (.+) born|What is the date of birth of (.+)|When is (.+)['’]s birthday", "When was {} born?"),
    (r"Where was the place of death of (.+)|Where did (.+) die", "Where did {} die?"),
    (r"What is the date of death of (.+)|When did (.+) die", "When did {} die?"),
    (r"Why did (.+) die|What is the cause of death of (.+)", "Why did {} die?"),
    (r"What nationality is (.+)|Which country (.+?)(?: is)? from", "What nationality is {}?"),
    (r"Where was the place of burial of (.+)|Where (?:is|was) (.+) buried", "Where was {} buried?"),
    (r"Where did (.+) graduate from|Where did (.+) study", "Where did {} study?"),
    (r"Where does (.+) work at", "Where does {} work?"),
    (rf"Which award (.+?){_WON}|What is the award that (.+?){_WON}", "Which award did {} win?"),
)
"""Wordings of a question about a person, and how the last step asks it."""

_SIDES = {
    "older": ("born", "earlier"),
    "older than the other": ("born", "earlier"),
    "younger": ("born", "later"),
    "born first": ("born", "earlier"),
    "born earlier": ("born", "earlier"),
    "born later": ("born", "later"),
    "died first": ("died", "earlier"),
    "died earlier": ("died", "earlier"),
    "died later": ("died", "later"),
    "released first": ("released", "earlier"),
    "released earlier": ("released", "earlier"),
    "released more recently": ("released", "later"),
    "came out first": ("released", "earlier"),
    "came out earlier": ("released", "earlier"),
}
"""What is compared, and which side is asked for, by how a question says it."""

_WHEN = {"born": "When was {} born?", "died": "When did {} die?", "released": "When was {} released?"}

_HOW = "|".join(sorted(_SIDES, key=len, reverse=True))
_OLDEST_MAKER = re.compile(
    rf"Which film (?:has the|whose) (?P<role>director|producer) (?:who )?(?:is |was )?(?P<how>{_HOW}), (?P<pair>.+)\?"
)
_EARLIER_THING = re.compile(rf"Which (?P<what>film|song|album) (?:was )?(?P<how>{_HOW}), (?P<pair>.+)\?")
_EARLIER_PERSON = re.compile(rf"Who (?:is |was )?(?P<how>{_HOW})(?:,| out of) (?P<pair>.+)\?")
_BORN_FIRST = re.compile(r"Was (?P<pair>.+) (?P<how>born first)\?")
_SAME_MAKER = re.compile(
    r"(?:Are|Do) (?:both |the )*(?:directors? of (?:both )?films?:? (?P<pair>.+?) (?:both )?(?:from|share|have) "
    r"|(?:both |films:? )*(?P<other>.+?)(?: films)? have the directors (?:from|that) ).*(?:same|share).*\?"
)
_SAME_THING = re.compile(
    r"(?:Are|Did|Were|Do) (?:both |the )*(?P<what>movies|films),? (?P<pair>.+?),?"
    r" (?:both )?(?:from|originate from) the same country\?"
)
_SAME_PLACE = re.compile(
    r"(?:Are|Did|Were) (?:both |the )*(?:(?:villages|universities|businesses|mountains|airports|bands),? )?"
    r"(?P<pair>.+?),? (?:both )?(?:located in|from|originate from) the same country\?"
)
_SAME_PERSON = re.compile(
    r"(?:Are|Did|Do|Does|Were) (?P<pair>.+?) (?:both )?(?:of|share|have) (?:the )?same nationality"
    r"(?: as (?P<other>.+))?\?"
)

COMPARE = "Which date is {}: (A) {} = {} (B) {} = {}?"
"""How two dates are compared; whoever the right one belongs to is the result."""

SAME = "Are these the same country: (A) {} (B) {}?"
"""How two countries or nationalities are compared."""


def true_steps(question: str) -> Steps:
    """Return the steps that answer a question, each with the model for it; none for a question of another form.

    Example:
        >>> true_steps("Who is the paternal grandfather of Edward II?")
        [('Who is the father of Edward II?', 'search'), ('Who is the father of #1?', 'search')]
        >>> [query for query, _ in true_steps("Who is older, Ann Lee or Bo Li?")][-1]
        'Which date is earlier: (A) Ann Lee = #1 (B) Bo Li = #2?'
        >>> true_steps("Why?")
        []
    """
    return _comparison(question) or _about_one(question)


def _about_one(question: str) -> Steps:
    queries: list[str] = []
    for wordings, last in _ASKED:
        if match := re.fullmatch(rf"(?:{wordings})\?", question):
            name = _named(next(filter(None, match.groups())), queries)
            if queries:
                queries.append(last.format(name))
            return [(query, LOOKED_UP) for query in queries]
    if match := re.fullmatch(r"Who is (.+)\?", question):
        _named(match[1], queries)
    return [(query, LOOKED_UP) for query in queries]


def _named(phrase: str, queries: list[str]) -> str:
    """Add the queries that find out who a phrase speaks of; return the reference to the last, or a name as it is."""
    match = _OF.fullmatch(phrase) or _POSSESSIVE.fullmatch(phrase)
    if match is None:
        return phrase
    what = match.groupdict().get("what")
    name = f"the {what} {match['who']}" if what else _named(match["who"], queries)
    for relation in CHAINS.get(match["relation"], (match["relation"],)):
        queries.append(f"Who is the {relation} of {name}?")
        name = f"#{len(queries)}"
    return name


def _comparison(question: str) -> Steps:
    if match := _OLDEST_MAKER.fullmatch(question):
        return _by_date(match, lambda name: f"the film {name}", match["role"])
    if match := _EARLIER_THING.fullmatch(question):
        what = match["what"]
        return _by_date(match, lambda name: f"the {what} {name}")
    if match := _EARLIER_PERSON.fullmatch(question) or _BORN_FIRST.fullmatch(question):
        return _by_date(match, str)
    if match := _SAME_MAKER.fullmatch(question):
        pair = (match["pair"] or match["other"]).replace(" and director of film ", " and ")
        queries = [f"Who is the director of the film {name}?" for name in _pair(pair)]
        return _compared([*queries, "What nationality is #1?", "What nationality is #2?"], SAME.format("#3", "#4"))
    if match := _SAME_THING.fullmatch(question):
        queries = [f"Which country is the film {name} from?" for name in _pair(match["pair"])]
        return _compared(queries, SAME.format("#1", "#2"))
    if match := _SAME_PLACE.fullmatch(question):
        queries = [f"Which country is {name} from?" for name in _pair(match["pair"])]
        return _compared(queries, SAME.format("#1", "#2"))
    if match := _SAME_PERSON.fullmatch(question):
        pair = f"{match['pair'].removesuffix(' the')} and {match['other']}" if match["other"] else match["pair"]
        return _compared([f"What nationality is {name}?" for name in _pair(pair)], SAME.format("#1", "#2"))
    return []


def _by_date(match: re.Match[str], named: Callable[[str], str], role: str | None = None) -> Steps:
    """Return the steps of a question of which of two was earlier or later, or whose director, say, was."""
    (what, side), pair = _SIDES[match["how"]], _pair(match["pair"])
    if len(pair) < 2:
        return []
    queries = [f"Who is the {role} of {named(name)}?" for name in pair] if role else []
    asked = ("#1", "#2") if role else map(named, pair)
    queries += [_WHEN[what].format(name) for name in asked]
    first, second = (f"#{number}" for number in (len(queries) - 1, len(queries)))
    return _compared(queries, COMPARE.format(side, pair[0], first, pair[1], second))


def _compared(queries: list[str], comparison: str) -> Steps:
    if len(queries) < 2:
        return []
    return [*((query, LOOKED_UP) for query in queries), (comparison, COMPARED)]


def _pair(text: str) -> list[str]:
    """Return the two that a text names, `A or B` or `A and B`; nothing if it does not name two."""
    for joint in (" or ", " and "):
        first, found, second = text.rpartition(joint)
        if found:
            return [first, second]
    return []


def true_model(query: str) -> str:
    """Return who does a step.

    Example:
        >>> true_model("Who is the father of #1?"), true_model("Are these the same country: (A) #1 (B) #2?")
        ('search', 'dates')
    """
    return COMPARED if query.startswith(("Which date is ", "Are these the same country: ")) else LOOKED_UP
