"""Reads a router's turn while it is written: what is thought, and what is answer, without any tag.

An answer that has begun is the answer of the run, however the turn ends: what was shown to a user can't be taken back.
`protocol.parse` holds to the same rule, by the same scanner.
"""

from __future__ import annotations

import re
from typing import Literal

TAGS = ("think", "search", "information", "answer")
EXACT_TAG = re.compile(rf"<(/?)({'|'.join(TAGS)})>")
_ALL_TAGS = tuple(f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/"))
_LONGEST = max(map(len, _ALL_TAGS))

FROM_TAG = re.compile(r'<answer from="([^"<>\n]{1,100})"\s?(/?)>')
_LONGEST_FROM = 120

Delta = tuple[Literal["thought", "answer"], str]
"""A piece of a turn, and what it is part of."""


class Trimmed:
    """Passes a text on, piece by piece, without the blanks around the whole of it.

    Example:
        >>> trimmed = Trimmed()
        >>> [trimmed.take(piece) for piece in ("  a", " ", "b ", " ")]
        ['a', '', ' b', '']
    """

    def __init__(self) -> None:
        """Begin a text."""
        self._blanks: list[str] = []  # they count only if something follows
        self._has_begun = False

    def take(self, piece: str) -> str:
        """Return what a piece adds to the text so far."""
        shown = piece.rstrip()
        if not shown:
            self._blanks.append(piece)
            return ""
        before, self._blanks = "".join(self._blanks), [piece[len(shown) :]]
        shown = before + shown if self._has_begun else shown.lstrip()
        self._has_begun = True
        return shown


class TurnScanner:
    r"""Takes a turn in pieces, cut anywhere, and returns what may be shown of each.

    An answer begins at `<answer>` outside of a thought and of a search, and ends at `</answer>`. Other tags within it
    are left out, and so are blanks around it. Time is linear in the length of the turn.

    With `relaying`, an answer may be somebody else's: `<answer from="2"/>` is reply 2, and
    `<answer from="large"> question </answer>` what the model replies to that. Of these nothing is shown.

    Example:
        >>> scanner = TurnScanner()
        >>> [scanner.feed(piece) for piece in ("<think> Peru", " it is </thi", "nk><answ", "er> Li", "ma </answer>")]
        [[('thought', 'Peru')], [('thought', ' it is')], [], [('answer', 'Li')], [('answer', 'ma')]]
    """

    def __init__(self, *, routing: bool = True, relaying: bool = False) -> None:
        """Begin a turn; with `routing` off, searches in it do not count."""
        self._routing, self._relaying = routing, relaying
        self.source: str | None = None
        """Whose reply the answer is: a number or a model's name; None if the router writes it itself."""
        self._place: str | None = None  # the tag that is open, if it matters
        self._held = ""  # what may turn out to be a tag
        self._trimmed = Trimmed()
        self._answer: list[str] = []
        self._asked: list[str] = []
        self._ended = False

    @property
    def answer(self) -> str:
        """The answer so far; empty while none has begun."""
        return "".join(self._answer)

    @property
    def query(self) -> str | None:
        """What the model is asked that answers; None while that is not complete."""
        return "".join(self._asked).strip() if self.source is not None and self._ended else None

    def feed(self, piece: str) -> list[Delta]:
        """Return what the piece adds to the thought and to the answer."""
        text, self._held = self._held + piece, ""
        deltas: list[tuple[Literal["thought", "answer"], list[str]]] = []
        start = 0
        while not self._ended:
            at = text.find("<", start)
            self._show(text[start : at if at >= 0 else None], deltas)
            if at < 0:
                break
            if found := EXACT_TAG.match(text, at):
                self._turn_to(found[2], closing=found[1] == "/")
                start = found.end()
            elif self._relaying and (found := FROM_TAG.match(text, at)):
                self._take_source(found[1], is_whole=found[2] == "/")
                start = found.end()
            elif self._may_become_a_tag(text, at):
                self._held = text[at:]
                break
            else:
                self._show("<", deltas)
                start = at + 1
        return [(kind, "".join(pieces)) for kind, pieces in deltas]

    def _turn_to(self, tag: str, *, closing: bool) -> None:
        if self._place is None:
            if not closing and tag != "information":
                self._place, self._trimmed = tag, Trimmed()
        elif closing and tag == self._place:
            self._ended = tag == "answer" or (tag == "search" and self._routing)
            self._place = None
        elif closing and tag == "answer" and self._place == "relay":
            self._ended = True

    def _take_source(self, source: str, *, is_whole: bool) -> None:
        if self._place is None:
            self.source, self._ended = source, is_whole
            self._place = None if is_whole else "relay"

    def _may_become_a_tag(self, text: str, at: int) -> bool:
        rest = text[at : at + _LONGEST_FROM]
        if len(text) - at < _LONGEST and any(tag.startswith(rest) for tag in _ALL_TAGS):
            return True
        begins = rest.startswith("<answer ") or "<answer ".startswith(rest)
        return self._relaying and begins and len(text) - at < _LONGEST_FROM and ">" not in rest and "\n" not in rest

    def _show(self, text: str, deltas: list[tuple[Literal["thought", "answer"], list[str]]]) -> None:
        if self._place == "relay":
            self._asked.append(text)
        if self._place not in {"think", "answer"}:
            return
        if not (shown := self._trimmed.take(text)):
            return
        kind: Literal["thought", "answer"] = "thought" if self._place == "think" else "answer"
        if kind == "answer":
            self._answer.append(shown)
        if not deltas or deltas[-1][0] != kind:
            deltas.append((kind, []))
        deltas[-1][1].append(shown)


def begun_answer(text: str, *, routing: bool = True) -> str:
    """Return the answer that has begun in a turn, complete or not; empty if none has.

    Example:
        >>> begun_answer("<think> I write <answer> soon </think> <answer> Li")
        'Li'
        >>> begun_answer("<search> small: Peru? </search>")
        ''
    """
    scanner = TurnScanner(routing=routing)
    scanner.feed(text)
    return scanner.answer
