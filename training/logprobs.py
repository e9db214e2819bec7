"""Log-probabilities of completions, with the start that all sequences of a batch share computed once.

A router's prompts are long (instructions, the pool) and much the same, its completions short. What TRL computes for a
padded batch is computed here for the tokens alone: the shared start goes through the network once, gradients included,
padding as little as possible, and the output head runs over completions only.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import DynamicCache

PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Types of model whose logits are the output head's, neither scaled nor capped."""

ROWS_TOGETHER = 4
"""How many rows of about the same length go through the network together on a CPU; on a GPU all do.

On a CPU the time goes with the number of tokens, padding included: a step of eight transcripts of the wiki pool takes
8.7 s with all together, and 6.6 s like this (two cores). On a GPU, few rows would leave most of it idle.
"""


def completion_logprobs(
    causal_lm: Any, ids: torch.Tensor, mask: torch.Tensor, completion_length: int, *, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probability and entropy of each completion token, 0 on padding; in nats.

    Args:
        causal_lm: A model of one of the types in `PLAIN_HEADS`.
        ids: Prompts, padded on the left, and completions, padded on the right; batch x length.
        mask: 1 on what is no padding.
        completion_length: How many of the columns are completions.
        entropy: Whether gradients flow through the entropies too.
    """
    prompt_lengths = mask[:, :-completion_length].sum(1)
    lengths = mask.sum(1)
    rows = torch.nn.utils.rnn.pad_sequence(
        [row[own.bool()] for row, own in zip(ids, mask, strict=True)], batch_first=True
    )
    places = torch.arange(rows.size(1), device=rows.device)
    present = (places < lengths[:, None]).long()
    shared = shared_start(rows, int(prompt_lengths.min()))
    hidden = hidden_states(causal_lm, rows, present, shared)

    # What stands at a place is predicted by the hidden state one place before.
    scored = ((places >= prompt_lengths[:, None]) & present.bool())[:, shared + 1 :]
    targets = rows[:, shared + 1 :][scored]
    distribution = causal_lm.lm_head(hidden[:, :-1][scored]).float().log_softmax(-1)
    chosen = distribution.gather(1, targets[:, None])[:, 0]
    with torch.set_grad_enabled(entropy and torch.is_grad_enabled()):
        spread = -(distribution.exp() * distribution).sum(-1)
    # Completions are padded on the right, in these rows as in the batch: their tokens come in the same order.
    slots = mask[:, -completion_length:].bool()
    empty = chosen.new_zeros(slots.shape)
    return empty.masked_scatter(slots, chosen), empty.masked_scatter(slots, spread)


def hidden_states(causal_lm: Any, rows: torch.Tensor, mask: torch.Tensor, shared: int) -> torch.Tensor:
    """Return the last hidden states of what follows the shared start: batch x (length - shared) x width.

    Args:
        causal_lm: The model; with a LoRA adapter or without.
        rows: Token ids, batch x length, padded on the right.
        mask: 1 on what is no padding, of the same shape; on padding the result is not defined.
        shared: How many leading tokens are the same in all rows: they go through the network once, gradients included.
    """
    start = DynamicCache(config=causal_lm.config)
    lengths = mask.sum(1)
    together = len(rows) if rows.is_cuda else ROWS_TOGETHER
    found: dict[int, torch.Tensor] = {}
    # Under autocast an adapter's inputs are cast anyway: to float32 and back would change nothing but the time.
    with disable_input_dtype_casting(causal_lm, active=torch.is_autocast_enabled(rows.device.type)):
        if shared:
            causal_lm.model(input_ids=rows[:1, :shared], past_key_values=start, use_cache=True)
        for group in torch.split(lengths.argsort(), together):
            cache = _copy(start)
            if shared:
                cache.batch_repeat_interleave(len(group))
            length = int(lengths[group].max())
            output = causal_lm.model(
                input_ids=rows[group, shared:length],
                attention_mask=mask[group, :length],
                past_key_values=cache,
                use_cache=True,
            )
            found.update(zip(group.tolist(), output.last_hidden_state, strict=True))
    hidden = torch.nn.utils.rnn.pad_sequence([found[row] for row in range(len(rows))], batch_first=True)
    return torch.nn.functional.pad(hidden, (0, 0, 0, rows.size(1) - shared - hidden.size(1)))


def _copy(cache: DynamicCache) -> DynamicCache:
    """Return a cache that can grow without the other one; what both hold is there once."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def shared_start(rows: torch.Tensor, learned_from: int) -> int:
    """Return how many leading tokens all rows share, short of the place that predicts the first learned token.

    Args:
        rows: Token ids, batch x length, padded on the right.
        learned_from: Where the first learned token of any row stands.
    """
    same = int((rows == rows[0]).all(0).int().cumprod(0).sum())
    return max(min(same, learned_from - 1), 0)
