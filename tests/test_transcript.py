"""The transcript: who wrote which tokens."""

from __future__ import annotations

from langgraph_router_r1.transcript import Transcript, sampled_mask, token_ids

TRANSCRIPT: Transcript = [
    {"kind": "prompt", "text": "ab", "token_ids": [1, 2]},
    {"kind": "policy", "text": "c", "token_ids": [3]},
    {"kind": "observation", "text": "de", "token_ids": [4, 5]},
    {"kind": "policy", "text": "", "token_ids": []},
    {"kind": "policy", "text": "fg", "token_ids": [6, 7]},
]


def test_the_next_prompt_is_every_token_so_far_in_order() -> None:
    assert token_ids(TRANSCRIPT) == [1, 2, 3, 4, 5, 6, 7]
    assert token_ids([]) == []


def test_the_mask_is_one_on_what_the_router_sampled_and_on_nothing_else() -> None:
    assert sampled_mask(TRANSCRIPT) == [0, 0, 1, 0, 0, 1, 1]
    assert sampled_mask([]) == []
