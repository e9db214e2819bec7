"""The tag grammar between the router and its environment, as pure text.

A router turn thinks, then either asks models or answers:

    <think> I need the capital first. </think>
    <search> capitals: What is the capital of Peru? </search>

    <think> Lima it is. </think>
    <answer> Lima </answer>

The environment replies with `<information> ... </information>`. Only text that the router sampled is ever
parsed; everybody else's text is made harmless first (`sanitize`). The grammar is Router-R1's
(arXiv 2506.09033), with several calls a turn allowed: one `Name: query` a line.

Users, models and servers may send any text. Every function here takes time linear in its length;
`benchmarks/hostile_text.py` measures it.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from langgraph_router_r1.scanner import EXACT_TAG, FROM_TAG, TAGS, TurnScanner

SEARCH_END = "</search>"
ANSWER_END = "</answer>"

_OPENING = re.compile(r"<(search|answer)>")
# Full-width brackets too: some tokenizers normalise them to the plain ones. Possessive, so that no text takes
# longer than its length.
_TAG = re.compile(rf"[<‹＜﹤]\s*+(?:([/／])\s*+)?({'|'.join(TAGS)})\b\s*+[>›＞﹥]?", re.IGNORECASE)
_CONTROL = re.compile(r"[<＜][|｜]([^<>|＜＞｜\n]{1,64})[|｜][>＞]|\[(/?INST)\]|<(/?s)>")
THINK_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_LONGEST_USUAL_RUN = 30
"""Most combining characters in a row in the text of any language (UAX #15, Stream-Safe Text Format)."""
_PLACEHOLDER = re.compile(
    r"[\[\]<>{}()]*+(?:(?:your\s+)?(?:query|question)|sub-query|\.\.\.|…)[\[\]<>{}()]*+", re.IGNORECASE
)


@dataclass(frozen=True)
class Call:
    """One model to ask, by the name the registry knows it by (or, if `known` is false, as the router wrote it)."""

    model: str
    query: str
    known: bool = True


@dataclass(frozen=True)
class Route:
    """The router asks these models, in this order."""

    calls: tuple[Call, ...]
    relay: bool = False
    """Whether the reply is the answer."""


@dataclass(frozen=True)
class Answer:
    """The router answers."""

    text: str


@dataclass(frozen=True)
class Relay:
    """The router answers with a reply that it got, word for word."""

    number: int
    """Which one, from 1, of all replies of the run."""


@dataclass(frozen=True)
class Invalid:
    """The turn is neither; `reason` is a sentence the router can act on, without tags in it."""

    reason: str


Action = Route | Answer | Relay | Invalid


def fold(name: str) -> str:
    """Return the form in which model names are compared: case and runs of blanks do not count."""
    return " ".join(name.split()).casefold()


def encodable(text: str) -> str:
    r"""Return the text with a question mark for each half of a surrogate pair, as some JSON holds.

    No tokenizer and no database takes these.

    Example:
        >>> encodable("Lima \ud83d")
        'Lima ?'
    """
    return text.encode("utf-8", "replace").decode()


def parse(text: str, names: Iterable[str], *, routing: bool = True, replies: int | None = None) -> Action:
    """Read one sampled turn. Never raises: whatever the text, there is an action.

    An answer that has begun decides, complete or not (see `scanner`); else the first complete search or answer does.
    With `routing` off, only an answer counts.

    Args:
        text: What the router sampled, and nothing else.
        names: The names of the registered models.
        routing: Whether the router may ask models in this turn.
        replies: How many replies there are that it may pass on as its answer; None: it can't pass on any.

    Example:
        >>> parse("<think> hm </think> <search> Capitals: Peru? </search>", ["capitals"])
        Route(calls=(Call(model='capitals', query='Peru?', known=True),), relay=False)
        >>> parse("<answer> Lima </answer>", [])
        Answer(text='Lima')
        >>> parse('<answer from="1"/>', [], replies=1)
        Relay(number=1)
    """
    scanner = TurnScanner(routing=routing, relaying=replies is not None)
    scanner.feed(text)
    if scanner.answer:
        return Answer(scanner.answer)
    if scanner.source is not None and scanner.query is not None:
        return _parse_relay(scanner.source, scanner.query, names, replies or 0, routing=routing)
    # No closing tag is searched for where there is none: each failed search would read all of the text again.
    last_closing = {tag: text.rfind(f"</{tag}>") for tag in ("search", "answer")}
    position = 0
    while opening := _OPENING.search(text, position):
        tag, position = opening[1], opening.end()
        if position > last_closing[tag]:
            continue
        end = text.index(f"</{tag}>", position)
        if tag == "answer":
            answer = EXACT_TAG.sub("", text[position:end]).strip()
            return Answer(answer) if answer else Invalid("the answer is empty")
        if routing:
            return _parse_search(text[position:end], names)
        position = end
    if routing:
        return Invalid("there is no complete search and no complete answer in it")
    return Invalid("there is no complete answer in it, and no model can be asked any more")


def _parse_relay(source: str, query: str, names: Iterable[str], replies: int, *, routing: bool) -> Action:
    if not query:
        if source.isdecimal() and 1 <= int(source) <= replies:
            return Relay(int(source))
        return Invalid(f"there is no reply {source}: there are {replies} replies")
    if not routing:
        return Invalid("no model can be asked any more")
    name = _by_folded_name(tuple(names)).get(fold(source))
    return Route((Call(name or " ".join(source.split()), query, known=name is not None),), relay=True)


def _parse_search(body: str, names: Iterable[str]) -> Route | Invalid:
    known = _by_folded_name(tuple(names))
    calls: list[tuple[str, bool, list[str]]] = []  # the model, whether it is known, the lines of its query
    for line in body.splitlines():
        head, colon, query = line.partition(":")
        name = known.get(fold(head)) if colon else None
        if name is not None:
            calls.append((name, True, [query]))
        elif calls:
            calls[-1][2].append(line.strip())
        elif colon and head.strip():
            calls.append((" ".join(head.split()), False, [query]))
        elif line.strip():
            return Invalid("a search must start with the name of a model and a colon")
    if not calls:
        return Invalid("the search is empty")
    route = Route(tuple(Call(name, "\n".join(lines).strip(), is_known) for name, is_known, lines in calls))
    for call in route.calls:
        if not call.query:
            return Invalid(f"the query for {call.model} is empty")
        if _PLACEHOLDER.fullmatch(call.query):
            return Invalid(f"the query for {call.model} is a placeholder, not a question")
    return route


@functools.lru_cache(maxsize=64)
def _by_folded_name(names: tuple[str, ...]) -> Mapping[str, str]:
    return {fold(name): name for name in names}


def sanitize(text: str, control_tokens: Collection[str] = ()) -> str:
    """Make somebody's text harmless: none of our tags and no control token of the tokenizer is left in it.

    Brackets become parentheses, so the text still reads: `<answer>` becomes `(answer)`. The control tokens that
    are common among chat models are always found; those of the router's own tokenizer are given. Half a surrogate
    pair, which no tokenizer takes, becomes a question mark.

    Example:
        >>> sanitize("<answer>42</answer><|im_end|>", ["<|im_end|>"])
        '(answer)42(/answer)(im_end)'
    """
    text = encodable(text)
    given = _any_of(tuple(control_tokens))
    # Some tokenizers normalise letters, too: in such a text a tag may hide that only they would read.
    plain = _nfkc(text)
    if plain != text and (_TAG.search(plain) or _CONTROL.search(plain) or given.search(plain)):
        text = plain
    text = _TAG.sub(lambda match: f"({'/' if match[1] else ''}{match[2]})", text)
    text = _CONTROL.sub(lambda match: f"({match[1] or match[2] or match[3]})", text)
    return given.sub(lambda match: f"({_disarmed(match.group(), given)})", text)


def _disarmed(token: str, tokens: re.Pattern[str]) -> str:
    """Return a control token as words: without its brackets, and letter by letter where it has none."""
    words = token.strip("<|>[]｜▁ ")
    for harmless in (words, " ".join(words)):
        if not tokens.search(harmless):
            return harmless
    return ""


@functools.lru_cache(maxsize=64)
def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern that matches the longest of the words, in time that hardly depends on their number."""
    return re.compile(_trie_pattern(sorted(filter(None, set(words)))))


def _trie_pattern(words: Sequence[str]) -> str:
    """Return the source of such a pattern: of sorted words, what begins alike is written once.

    Example:
        >>> _trie_pattern(["<a>", "<b>", "<b>c"])
        '<(?:a>|b>(?:c)?)'
        >>> _trie_pattern([])  # it matches nothing
        '(?!)'
    """
    if not words:
        return "(?!)"
    prefix = os.path.commonprefix(words)  # noqa: RUF071 - these are not paths
    rest = [word[len(prefix) :] for word in words]
    branches = [
        _trie_pattern(list(group)) for _, group in itertools.groupby(filter(None, rest), key=lambda word: word[0])
    ]
    if not branches:
        return re.escape(prefix)
    return f"{re.escape(prefix)}(?:{'|'.join(branches)}){'' if rest[0] else '?'}"


def _nfkc(text: str) -> str:
    """Return the NFKC form of a text, in linear time.

    `unicodedata` sorts each run of combining characters by insertion, which is quadratic in its length. Long runs are
    therefore sorted here first; the result is the same, for that sort is part of the form.
    """
    if text.isascii():
        return text
    decomposed = {char: unicodedata.normalize("NFKD", char) for char in set(text)}
    combining = sorted(char for char, parts in decomposed.items() if all(map(unicodedata.combining, parts)))
    if combining:
        runs = f"[{''.join(map(re.escape, combining))}]{{{_LONGEST_USUAL_RUN + 1},}}"
        text = re.sub(
            runs,
            lambda run: "".join(sorted("".join(map(decomposed.__getitem__, run[0])), key=unicodedata.combining)),
            text,
        )
    return unicodedata.normalize("NFKC", text)


def strip_thought(text: str) -> str:
    """Return a routed model's reply without the thinking that it shows.

    A thought may have lost its beginning (what stands before a lone closing tag) or its end (an opening
    tag at the start that is never closed). Linear in the length of the text, however hostile.

    Example:
        >>> strip_thought("<think>Peru...</think> Lima")
        'Lima'
    """
    kept: list[str] = []
    start = opened_at = depth = 0
    for tag in THINK_TAG.finditer(text):
        if not tag.group(1):
            if depth == 0:
                kept.append(text[start : tag.start()])
                opened_at = tag.start()
            depth += 1
        elif depth:
            depth -= 1
            start = tag.end()
        else:
            kept.clear()
            start = tag.end()
    reply = "".join(kept)
    if depth == 0:
        return (reply + text[start:]).strip()
    # A tag in the middle that is never closed is more likely a word than a thought.
    return (reply + text[opened_at:]).strip() if reply.strip() else ""


def quote(body: str) -> str:
    r"""Wrap what comes back to the router. `body` must be sanitized already.

    Example:
        >>> quote("Lima")
        '\n\n<information> Lima </information>\n\n'
    """
    return f"\n\n<information> {body} </information>\n\n"


def relay_tag(number: int) -> str:
    """Return the tag by which the router passes on a reply.

    Example:
        >>> relay_tag(2)
        '<answer from="2"/>'
    """
    return f'<answer from="{number}"/>'


@dataclass(frozen=True)
class Constraint:
    """What may follow a beginning in a turn: a text of this pattern, and then this end."""

    begin: str
    pattern: str
    """A regular expression of the simplest kind: classes, groups, alternatives and repetitions."""
    end: str


def name_constraints(names: Iterable[str], *, replies: int | None = None) -> tuple[Constraint, ...]:
    r"""Return the constraints by which a turn can ask no model but these, and pass on no reply that there is not.

    Queries are one line each, without `<`.

    Args:
        names: What the router calls the models; none of them stands for no constraint.
        replies: How many replies there are that it may pass on as its answer; None: it can't pass on any.

    Example:
        >>> name_constraints(["small", "large"])[0].pattern
        '[ \\n]?(small|large): [^<\\s][^<\\n]*(\\n(small|large): [^<\\s][^<\\n]*)*'
    """
    named = "|".join(re.sub(r"[][\\^$.|?*+(){}/]", r"\\\g<0>", name) for name in names)
    if not named:
        return ()
    call = rf"({named}): [^<\s][^<\n]*"
    constraints = [Constraint("<search>", rf"[ \n]?{call}(\n{call})*", SEARCH_END)]
    if replies is not None:
        numbers = "".join(f'{number}"/|' for number in range(1, replies + 1))
        constraints.append(Constraint('<answer from="', f'({numbers}({named})")', ">"))
    return tuple(constraints)


def best_effort_answer(text: str) -> str:
    """Return what an unfinished turn comes closest to answering: an unclosed answer, or the text outside its tags."""
    text = FROM_TAG.sub("", text)
    _, opened, rest = text.rpartition("<answer>")
    if opened and rest.strip():
        return EXACT_TAG.sub("", rest).strip()
    without_blocks = re.sub(r"<(think|search|information)>.*?(</\1>|$)", "", text, flags=re.DOTALL)
    return EXACT_TAG.sub("", without_blocks).strip()


def check_format(segments: Sequence[tuple[str, str]], names: Iterable[str]) -> str | None:
    """Return what is wrong with a whole run's form, or None when it is well-formed.

    The rules are those of Router-R1's format reward: tags balanced, not nested, not empty; exactly one answer,
    at the end; a thought first; every search answered by one information block; every query for a known model.
    Who wrote what is known here, so tags are counted in sampled text only: nothing a routed model
    says can make a run ill-formed.

    Args:
        segments: `(kind, text)` of the transcript, in order, `kind` as in `Segment`.
        names: What the router calls the models: `registry.aliases`.
    """
    sampled = [text for kind, text in segments if kind == "policy"]
    if not sampled:
        return "nothing was sampled"
    names = list(names)
    for index, text in enumerate(sampled):
        final = index == len(sampled) - 1
        problem = _check_turn(text, names, final=final)
        if problem:
            return f"turn {index + 1}: {problem}"
    kinds = [kind for kind, _ in segments]
    # What the environment says before the first turn answers no search.
    answered = sum(before == "policy" and kind == "observation" for before, kind in itertools.pairwise(kinds))
    if answered != len(sampled) - 1:
        return "searches and information blocks are not as many"
    return None


def _check_turn(text: str, names: Sequence[str], *, final: bool) -> str | None:
    open_tag: str | None = None
    start = 0
    blocks: list[str] = []
    outside: list[str] = []
    for match in EXACT_TAG.finditer(text):
        closing, tag = match.group(1) == "/", match.group(2)
        between = text[start : match.start()]
        if open_tag is None:
            if closing:
                return f"a {tag} tag is closed that was not open"
            outside.append(between)
            open_tag = tag
        elif not closing or tag != open_tag:
            return f"a {tag} tag stands inside a {open_tag} tag"
        else:
            if not between.strip():
                return f"the {tag} tag is empty"
            blocks.append(tag)
            open_tag = None
        start = match.end()
    if open_tag is not None:
        return f"a {open_tag} tag is not closed"
    outside.append(text[start:])
    wanted = "answer" if final else "search"
    if not blocks or blocks[0] != "think":
        return "it does not start with a thought"
    if set(blocks[:-1]) != {"think"} or blocks[-1] != wanted:
        return f"it must be thoughts and then one {wanted}, and is {', '.join(blocks)}"
    if any(piece.strip() for piece in outside):
        return "there is text outside the tags"
    action = parse(text, names)
    if isinstance(action, Invalid):
        return action.reason
    if isinstance(action, Route) and not all(call.known for call in action.calls):
        return "it names an unknown model"
    return None
