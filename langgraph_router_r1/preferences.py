"""What people decided on calls, as preference pairs that TRL trains on.

An edit says that another call would have been better, a rejection that a call should not have been made: the turn that
the router wrote is the rejected completion, and the turn with the calls as they were decided on the chosen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import TypedDict

from langgraph_router_r1.protocol import SEARCH_END, fold
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.state import RoutedCall

_OPENING = SEARCH_END.replace("/", "")


class Preference(TypedDict):
    """One pair, in TRL's form (https://huggingface.co/docs/trl, "preference")."""

    prompt: str
    """All that the router had read and written before the turn."""
    chosen: str
    rejected: str


def preferences(record: RunRecord) -> list[Preference]:
    """Return a pair for each turn whose calls a person changed.

    A turn of which no call is left says what is wrong and not what is right: it gives no pair. Nor does one that was
    written under aliases, which a record does not hold: the chosen turn would name models that the prompt does not.

    Example:
        >>> preferences(RunRecord.model_validate_json(text))                               # doctest: +SKIP
        [{'prompt': '...', 'chosen': '<search> small: Peru? </search>', 'rejected': '<search> large: Peru? </search>'}]
    """
    pairs, first, turn = list[Preference](), 0, 0
    for note in record.decisions:
        segments = record.segments[first : first + note["segments"]]
        place = first + len(segments) - 1
        first += note["segments"]
        if note["kind"] != "ask":
            continue
        calls = [call for call in record.calls if call["turn"] == turn]
        turn += 1
        kept = [call for call in calls if not _was(call, "reject")]
        is_changed = any(_was(call, "edit") or _was(call, "reject") for call in calls)
        if not is_changed or not kept or not segments or segments[-1]["kind"] != "policy":
            continue
        wrote = segments[-1]["text"]
        before, opened, rest = wrote.partition(_OPENING)
        if not opened or _has_aliases(calls, rest.partition(SEARCH_END)[0]):
            continue
        asked = "\n".join(f"{call['model']}: {call['query']}" for call in kept)
        prompt = "".join(segment["text"] for segment in record.segments[:place])
        pairs.append({"prompt": prompt, "chosen": f"{before}{_OPENING} {asked} {SEARCH_END}", "rejected": wrote})
    return pairs


def _has_aliases(calls: Sequence[RoutedCall], asked: str) -> bool:
    """Return whether the router called a model otherwise than the record does, which does not know these names."""
    written = {fold(line.partition(":")[0]) for line in asked.splitlines()}
    return any(fold(call["review"]["model"] if call["review"] else call["model"]) not in written for call in calls)


def _was(call: RoutedCall, decision: str) -> bool:
    review: Any = call["review"]
    return review is not None and review["decision"] == decision
