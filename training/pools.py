"""Drawn pools: for each group of rollouts other models, in another order, under other names, said in other words.

A router that always sees the same pool memorises positions and names. In a drawn pool the descriptors are the only
thing that tells who will be right, because everything else changes: members, order, names, wording of descriptions,
which skills are told and how precisely, prices (over three orders of magnitude) and latencies.

Behind the descriptors stand simulated models, which cost nothing to ask: each is right as often as it says, at the
price that it says. `redraw` does the same to a pool of real models: it changes only what is said of them.

    pool = draw_pool(random.Random(0))
    print(pool.registry.describe())
"""

from __future__ import annotations

import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.pocket import pocket_registry
from langgraph_router_r1.pocket.numbers import UNKNOWN, higher_of
from langgraph_router_r1.pocket.world import countries, questions
from langgraph_router_r1.prompts import CALL_PROMPT
from langgraph_router_r1.protocol import fold
from langgraph_router_r1.registry import ModelRegistry
from training.kinds import COMPARISON, KINDS, STRANGERS, WORLD, Kind
from training.wordings import (
    CHATS,
    COMPARER_NAMES,
    COMPARERS,
    COMPOSED,
    FAMILIES,
    GENERALISTS,
    OBJECTS,
    OPENINGS,
    SIZES,
    SYLLABLES,
    TAILS,
    TEMPLATES,
    VERBS,
)

Draw = Callable[[ModelRegistry, random.Random], ModelRegistry]
"""What makes the pool of one group of rollouts from that of the whole training; `redraw` is one."""

Role = Literal["specialist", "generalist", "chat"]

RIVALS = 0.5
"""Probability that a kind has a second specialist, cheaper and not as good."""

MOST_TRIES = 20
"""How often a description is drawn again when another model of the pool has it already."""

TWO_HOP = "two-hop"
"""The skill of answering a question about a described country in one call."""

ASSUMED: dict[Role, float] = {"specialist": 0.95, "generalist": 0.85, "chat": 0.25}
"""What a reader of a descriptor takes an accuracy for that is not told."""


@dataclass(frozen=True)
class Member:
    """A model of a drawn pool: its descriptor, and what is true of it."""

    descriptor: ModelDescriptor
    role: Role
    accuracy: Mapping[str, float]
    """How often it is right, by kind."""

    def told(self, kind: str) -> float | None:
        """Return how often it is right by its descriptor; None when that does not speak of the kind."""
        if kind not in self.accuracy:
            return None
        return self.descriptor.skills.get(kind, ASSUMED[self.role])


@dataclass(frozen=True)
class DrawnPool:
    """A pool, and what is true of its members."""

    registry: ModelRegistry
    members: tuple[Member, ...]
    """In the order of the registry."""

    def candidates(self, kind: str) -> list[Member]:
        """Return who can be asked for a kind by what is said of them.

        Chat models only where nobody else can; generalists where nobody speaks of the kind.
        """
        able = [member for member in self.members if member.told(kind) is not None]
        generalists = [member for member in self.members if member.role == "generalist"]
        return [member for member in able if member.role != "chat"] or able or generalists

    def best(self, kind: str, cost_weight: float) -> Member | None:
        """Return the candidate for a kind that is worth most, of several the cheapest; None if there is none."""
        among = self.candidates(kind)
        return max(
            among,
            key=lambda member: (round(worth(member, kind, cost_weight, among), 6), -member.descriptor.price.prompt),
            default=None,
        )

    def contested(self) -> set[str]:
        """Return the kinds for which there are two specialists."""
        kinds = Counter(kind for member in self.members if member.role == "specialist" for kind in member.accuracy)
        return {kind for kind, count in kinds.items() if count > 1}


def draw_pool(choose: random.Random, *, plain: float = 0.2, comparing: bool = False) -> DrawnPool:
    """Draw a pool of simulated models.

    Args:
        choose: Where all choices come from: the same numbers, the same pool.
        plain: Share of pools that are the pocket pool as it is but for their order.
        comparing: Whether models may compare two numbers, too: a step of some plans. No router's question needs it.
    """
    if choose.random() < plain:
        return _as_shipped(choose, comparing)
    kinds = [kind for kind in WORLD if choose.random() < 0.85]
    kinds += choose.sample(STRANGERS, choose.choice((0, 0, 1, 1, 2, 3)))
    return _arranged(_members(choose, kinds, comparing), choose)


def redraw(registry: ModelRegistry, choose: random.Random, *, dropped: float = 0.1) -> ModelRegistry:
    """Return a pool of real models in another form: what the router is told of them changes, and they stay the same.

    Descriptions are reworded where a model's skills are kinds of the pocket world; others keep theirs. Prices are
    changed in the account, too: the reward has to go by what the router was told.

    Args:
        registry: The pool as it is.
        choose: Where all choices come from: the same numbers, the same form.
        dropped: Probability that a model is missing; two at least stay.
    """
    kept = [model for model in registry if choose.random() >= dropped]
    members = [Member(model, _role_of(model), model.skills) for model in (kept if len(kept) > 1 else list(registry))]
    stay = {member.descriptor.name for member in members}
    factor = _price_factor(choose)
    scaled = [replace(member, descriptor=_scaled(member.descriptor, factor, stay)) for member in members]
    return ModelRegistry(_arranged(scaled, choose).registry, profile=registry.profile)


def _role_of(model: ModelDescriptor) -> Role:
    if len(model.skills) > 2:
        return "chat" if max(model.skills.values()) < 0.6 else "generalist"
    return "specialist"


def _scaled(model: ModelDescriptor, factor: float, stay: Container[str]) -> ModelDescriptor:
    price = model.price.with_rates(lambda rate: _two_digits(rate * factor))
    fallbacks = tuple(name for name in model.fallbacks if name in stay)
    return model.model_copy(update={"price": price, "fallbacks": fallbacks})


def _price_factor(choose: random.Random) -> float:
    return float(10 ** choose.uniform(-1.5, 1.5))


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _as_shipped(choose: random.Random, comparing: bool) -> DrawnPool:
    """Return the pocket pool, or the planner's, with simulated models, in any order."""
    members = [Member(model, _role_of(model), model.skills) for model in simulated_pocket(planning=comparing)]
    mixed = choose.sample(members, len(members))
    return DrawnPool(ModelRegistry(member.descriptor for member in mixed), tuple(mixed))


def simulated_pocket(*, planning: bool = False) -> ModelRegistry:
    """Return the pocket pool as it ships, or the planner's, with simulated models behind its descriptors."""

    def stand_in(model: ModelDescriptor) -> ModelDescriptor:
        answers = simulated(model.name, model.skills, others=0.5 * (_role_of(model) == "generalist"))
        return model.model_copy(update={"model": answers, "base_url": None, "params": {}})

    pool = pocket_registry(planning=planning)
    return ModelRegistry(map(stand_in, pool), profile=pool.profile)


def _members(choose: random.Random, kinds: Sequence[Kind], comparing: bool) -> list[Member]:
    """Draw specialists of these kinds, rivals of some, a generalist and a chat model; not yet put into words."""
    factor = _price_factor(choose)
    members: list[Member] = []

    def add(role: Role, accuracy: dict[str, float], price: float) -> None:
        name = f"{role}-{len(members)}"
        descriptor = ModelDescriptor(
            name=name,
            model=simulated(name, accuracy, others=0.5 if role == "generalist" else 0.0),
            description=role,
            price=_two_digits(price * factor),
            skills=accuracy,
            latency_s=round(choose.uniform(0.1, 3.0), 2),
        )
        members.append(Member(descriptor, role, accuracy))

    skills = [kind.name for kind in kinds]
    if comparing and choose.random() < 0.85:
        skills.append(COMPARISON)
    for skill in skills:
        price = 0.1 * 10 ** choose.uniform(-0.4, 0.4)
        best = choose.randint(88, 100) / 100
        add("specialist", {skill: best}, price)
        if choose.random() < RIVALS:  # the same skill for less money, and less of it
            worse = max(0.3, best - choose.choice((0.02, 0.05, 0.1, 0.15, 0.2, 0.3)))
            add("specialist", {skill: round(worse, 2)}, price / choose.choice((2, 3, 5, 10, 20)))
    if choose.random() < 0.85 or not any(kind.relation for kind in kinds):
        at = choose.uniform(0.6, 0.97)
        accuracy = {kind.name: round(min(1.0, max(0.3, at + choose.uniform(-0.1, 0.05))), 2) for kind in WORLD}
        accuracy[TWO_HOP] = round(at, 2)
        if comparing:
            accuracy[COMPARISON] = round(at, 2)
        add("generalist", accuracy, choose.uniform(0.4, 2.5))
    if choose.random() < 0.7:
        # About what a small model without an adapter knows (docs/pocket.md).
        low = {"capital": 0.48, "currency": 0.29, "dialling": 0.0, "domain": 0.03}
        accuracy = {kind: round(max(0.0, value + choose.uniform(-0.1, 0.1)), 2) for kind, value in low.items()}
        add("chat", accuracy, 0.01)
    return members


def _own(kind: Kind) -> str:
    """Return the name of the pocket pool's specialist for a kind, or one like it."""
    return kind.plurals[0].replace(" ", "-")


def _arranged(members: Sequence[Member], choose: random.Random) -> DrawnPool:
    """Put members into an order, and give them names and words."""
    names = choose.choices(("own", "mixed", "invented", "neutral", "swapped"), (0.26, 0.2, 0.26, 0.16, 0.12))[0]
    told = choose.choices(("all", "rounded", "some", "none"), (0.46, 0.1, 0.14, 0.3))[0]
    shows_latency = choose.random() < 0.8
    worded: list[Member] = []
    for member in choose.sample(members, len(members)):
        said = {other.descriptor.description for other in worded}
        for _ in range(MOST_TRIES):  # two of one kind are told apart by what is said of them
            one = _worded(member, choose, told, shows_latency)
            if one.descriptor.description not in said:
                break
        worded.append(one)
    aliases = _aliases(worded, names, choose)
    named = [
        replace(member, descriptor=member.descriptor.model_copy(update={"alias": alias}))
        for member, alias in zip(worded, aliases, strict=True)
    ]
    return DrawnPool(ModelRegistry(member.descriptor for member in named), tuple(named))


def _worded(member: Member, choose: random.Random, told: str, shows_latency: bool) -> Member:
    model = member.descriptor
    skills = dict(model.skills)
    if told == "none" or (told == "some" and choose.random() < 0.5):
        skills = {}
    elif told == "rounded":
        skills = {skill: round(value, 1) for skill, value in skills.items()}
    fields = {
        "description": _description(member, choose),
        "skills": skills,
        "latency_s": model.latency_s if shows_latency else None,
    }
    return replace(member, descriptor=model.model_copy(update=fields))


def _has_words(member: Member) -> bool:
    """Say whether there are words for what a member knows; a real pool may have other skills."""
    return bool(member.accuracy) and set(member.accuracy) <= {*KINDS, TWO_HOP, COMPARISON}


def _description(member: Member, choose: random.Random) -> str:
    if not _has_words(member):
        return member.descriptor.description
    if member.role == "chat":
        return choose.choice(CHATS)
    kinds = [KINDS[name] for name in member.accuracy if name in KINDS]
    if member.role == "generalist":
        plurals = ", ".join(kind.plurals[0] for kind in choose.sample(kinds, len(kinds)))
        text = choose.choice(GENERALISTS).format(plurals=plurals)
        return text[:1].upper() + text[1:]
    if COMPARISON in member.accuracy:
        return choose.choice(COMPARERS)
    kind = kinds[0]
    if kind.descriptions and choose.random() < 0.35:
        return choose.choice(kind.descriptions)
    which = choose.randrange(len(kind.nouns)) if choose.random() < 0.7 else 0
    noun, plural = kind.nouns[which], kind.plurals[which]
    template = choose.choice(TEMPLATES)
    if choose.random() < COMPOSED:
        parts = (choose.choice(OPENINGS), choose.choice(VERBS), choose.choice(OBJECTS) + choose.choice(TAILS))
        template = f"{' '.join(parts)}."
    return template.format(
        noun=noun, plural=plural, Noun=noun[:1].upper() + noun[1:], Plural=plural[:1].upper() + plural[1:]
    )


def _aliases(members: Sequence[Member], style: str, choose: random.Random) -> list[str]:
    """Return what the router calls the models, all different."""
    if style == "neutral":
        start = choose.choice((1, 1, 1, 0, 2, 11))
        word = choose.choice(("model", "model", "llm", "expert", "m"))
        return [f"{word}-{start + place}" for place in range(len(members))]
    taken: set[str] = set()
    aliases = []
    for member in members:
        alias = ""
        while not alias or fold(alias) in taken:
            own = style in {"own", "swapped"} or (style == "mixed" and choose.random() < 0.5)
            alias = _topical_name(member, choose) if own else invented_name(choose)
            if fold(alias) in taken:
                alias = f"{alias}-{choose.randint(2, 9)}"
        taken.add(fold(alias))
        aliases.append(alias)
    return choose.sample(aliases, len(aliases)) if style == "swapped" else aliases


def _topical_name(member: Member, choose: random.Random) -> str:
    if not _has_words(member):
        return member.descriptor.name
    if member.role != "specialist":
        words = {"generalist": ("generalist", "all-round", "general", "big", "know-it-all"), "chat": ("smol", "chat")}
        return choose.choice(words[member.role])
    if COMPARISON in member.accuracy:
        return choose.choice(COMPARER_NAMES)
    kind = KINDS[next(iter(member.accuracy))]
    if choose.random() < 0.5:
        return _own(kind)
    which = choose.randrange(len(kind.nouns))
    form = choose.choice(
        ("{plural}", "{noun}", "{noun}-expert", "{noun}-model", "{plural}-small", "my-{noun}", "{noun}-lora")
    )
    return form.format(noun=kind.nouns[which], plural=kind.plurals[which]).replace(" ", choose.choice(("-", "_")))


def invented_name(choose: random.Random) -> str:
    """Return a name that tells nothing, such as those that models have."""
    if choose.random() < 0.4:
        return f"{choose.choice(FAMILIES)}-{choose.choice(SIZES)}"
    word = "".join(choose.sample(SYLLABLES, choose.randint(2, 3)))
    return word + choose.choice(("", "", "", "-2", "-pro", "-xl", "-v3", "-mini"))


def simulated(
    name: str, accuracy: Mapping[str, float], *, others: float = 0.0
) -> RunnableLambda[list[AIMessage], AIMessage]:
    """Return a model that is right as often as said: about these kinds, and about all others (0: it does not know).

    Whether it is right is decided by its name and the question: asked again, it says the same. A wrong answer is the
    right one for another country.

    Example:
        >>> simulated("sure", {"capital": 1.0}).invoke("What is the capital of Peru?").text
        'Lima'
    """

    def reply(messages: object) -> AIMessage:
        text = messages if isinstance(messages, str) else messages[-1].text  # type: ignore[index]
        query = text.removeprefix(CALL_PROMPT.format(query=""))
        found = _answers().get(fold(query)) or _comparison(query)
        if found is None or (found[0] not in accuracy and not others):
            return AIMessage("I do not know.")
        kind, answer, facts = found
        chance = random.Random(f"{name} {fold(query)}")
        is_right = chance.random() < accuracy.get(kind, others)
        return AIMessage(answer if is_right else chance.choice([fact for fact in facts if fact != answer]))

    return RunnableLambda(reply)


def _comparison(query: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Return kind, answer and all answers of a comparison of two numbers."""
    higher = higher_of(query)
    return None if higher == UNKNOWN else (COMPARISON, higher, (higher, "Neither."))


@functools.cache
def _answers() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return kind, answer and other countries' answers by question."""
    lands = countries()
    facts = {kind.name: tuple(kind.fact(land) for land in lands) for kind in KINDS.values()}
    names = tuple(land.name for land in lands)
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for question in questions(lands):
        others = names if question.hops == "reversed" else facts[question.relation.removesuffix("_code")]
        found[fold(question.text)] = (question.skill, question.answer, others)
    for kind in STRANGERS:
        for place, land in enumerate(lands):
            for wording in kind.wordings:
                found[fold(wording.format(land.name))] = (kind.name, facts[kind.name][place], facts[kind.name])
    return found


def worth(member: Member, kind: str, cost_weight: float, among: Iterable[Member]) -> float:
    """Return what asking a candidate is worth by what is said of it: accuracy, less what a tenfold price costs.

    At cost weight 0 only the accuracy counts; at 1 a tenfold price has to be worth 40 points of accuracy.
    """
    cheapest = min(candidate.descriptor.price.prompt for candidate in among)
    price_ratio = math.log10(max(member.descriptor.price.prompt, 1e-9) / max(cheapest, 1e-9))
    return (member.told(kind) or 0.0) - 0.4 * cost_weight * price_ratio
