"""The transcript: an append-only list of segments, each saying who wrote it, in text and in token ids.

The router's next prompt is the concatenation of all `token_ids`. What was sampled is never decoded
and encoded again, so serving, replay and training see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict


class Segment(TypedDict):
    """A run of text by one author."""

    kind: Literal["prompt", "policy", "observation"]
    """`prompt`: the rendered chat template. `policy`: sampled by the router LLM. `observation`: put in by the
    environment, such as the replies of routed models."""
    text: str
    token_ids: list[int]
    """The tokens of `text` in the router's vocabulary; empty for engines that know text only."""
    logprobs: NotRequired[list[float]]
    """One natural logarithm for each token of a `policy` segment, when the engine was asked for them."""
    policy: NotRequired[str]
    """Name of the router model (and so of its weights' version) that sampled a `policy` segment."""
    messages: NotRequired[list[dict[str, str]]]
    """The chat messages behind a `prompt` segment, as `{"role", "content"}`."""


Transcript = list[Segment]


def trajectories(segments: Sequence[Segment]) -> list[Transcript]:
    """Return the conversations that a run consists of: each begins with a prompt.

    A router LLM has one; a planner has one of its decomposer, and one of an allocator that is a language model.

    Example:
        >>> prompt, turn = {"kind": "prompt", "text": "?"}, {"kind": "policy", "text": "!"}
        >>> [len(one) for one in trajectories([prompt, turn, turn, prompt, turn])]
        [3, 2]
    """
    found: list[Transcript] = []
    for segment in segments:
        if segment["kind"] == "prompt" or not found:
            found.append([])
        found[-1].append(segment)
    return found


def trajectory_of(policy: str, segments: Sequence[Segment]) -> Transcript:
    """Return the conversation in which this policy wrote; empty if it wrote in none."""
    for one in trajectories(segments):
        if any(segment.get("policy") == policy for segment in one):
            return one
    return []


def token_ids(transcript: Sequence[Segment]) -> list[int]:
    """Return every token so far: the prompt of the next turn."""
    return [token for segment in transcript for token in segment["token_ids"]]


def sampled_mask(transcript: Sequence[Segment]) -> list[int]:
    """Return 1 for each token the router sampled and 0 for each other one; as long as `token_ids(transcript)`.

    Example:
        >>> sampled_mask([{"kind": "prompt", "text": "ab", "token_ids": [1, 2]},
        ...               {"kind": "policy", "text": "c", "token_ids": [3]}])
        [0, 0, 1]
    """
    return [int(segment["kind"] == "policy") for segment in transcript for _ in segment["token_ids"]]
