"""PPO learns what it is rewarded for, from what was sampled and from nothing else."""

from __future__ import annotations

import io
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import pool
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from langgraph_router_r1 import create_router
from langgraph_router_r1.engines.tokenizer import ChatTokenizer
from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.prompts import RouterPrompt

pytest.importorskip("trl", reason="the [train] extra is not installed")

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from langgraph_router_r1.engines import TransformersEngine
from training.ppo import PPO, Episode, Settings, gae, train
from training.rewards import Reward
from training.rollout import Rollout, unscorable
from training.sft import LORA_TARGETS

TASK = Task("t1", "Capital of Peru?", ("Lima",), "mine")
LIKED = 128
"""The planted reward is the share of sampled tokens below this one: half of the vocabulary."""


def tiny_policy(seed: int = 0) -> Any:
    """A random two-layer Llama over bytes, with an adapter; its output head is wide enough to have opinions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    torch.nn.init.normal_(network.lm_head.weight, std=0.3)
    return get_peft_model(network, LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS))


def tiny_tokenizer() -> ChatTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return ChatTokenizer(tokenizer, "{% for message in messages %}{{ message['content'] }}{% endfor %}", {})


def sampled_ids(rollout: Rollout) -> list[int]:
    return [token for token, own in zip(rollout.completion_ids, rollout.env_mask, strict=True) if own]


def made(completion: Sequence[int], mask: Sequence[int], policy: Any = None, **fields: Any) -> Rollout:
    """A rollout from ids, with the log-probabilities that the policy gives them."""
    rollout = Rollout(
        TASK, 0.5, [1, 2, 3], list(completion), list(mask), [0.0] * len(mask), "", [], 0.0, 0.0, True, 1, None
    )
    if policy is not None:
        episode = Episode.of(rollout, 0.0, torch.device("cpu"))
        with torch.no_grad():
            logprobs = iter(PPO(policy)._look([episode])[0].tolist())
        rollout.logprobs[:] = [next(logprobs) if own else 0.0 for own in mask]
    return rollout


def gradients(learner: PPO, episode: Episode) -> list[Any]:
    """What one episode adds to the gradient of the adapter and of the critic."""
    logprobs, entropy, values = learner._look([episode])
    weights = [*learner.actor, *learner.critic.parameters()]
    return list(torch.autograd.grad((logprobs + entropy + values).sum(), weights))


async def test_it_learns_a_planted_reward_within_40_steps() -> None:
    """Through the real graph: a random router writes what can't be read, so corrections stand between its turns."""
    policy = tiny_policy()
    engine = TransformersEngine(
        policy.get_base_model(), tokenizer=tiny_tokenizer(), temperature=1.0, batch_size=24, wait_s=0.01
    )
    registry = pool(small="Lima")
    router = create_router(engine, registry, prompt=RouterPrompt("$question"), max_tokens=3, max_turns=1)
    learner = PPO(policy, Settings(actor_lr=1e-2, critic_lr=1e-2, minibatch=24, rows=8))

    def earn(rollouts: Sequence[Rollout]) -> list[Reward]:
        shares = [sum(token < LIKED for token in sampled_ids(rollout)) / sum(rollout.env_mask) for rollout in rollouts]
        return [Reward(share, 0.0, share, 0.0) for share in shares]

    history = []
    async for figures in train(learner, router, registry, itertools.repeat([(TASK, 0.5)] * 24, 40), earn):
        history.append(figures)
        assert figures["sampler_gap"] < 1e-4
    rewarded = [figures["reward"] for figures in history]
    assert rewarded[0] < 0.65
    assert sum(rewarded[-5:]) / 5 > 0.85
    assert history[-1]["value_loss"] < history[0]["value_loss"] / 2


def test_advantages_are_those_computed_by_hand() -> None:
    rewards, values = torch.tensor([0.0, -0.5, 2.0]), torch.tensor([1.0, 0.5, 0.25])
    # λ = γ = 1: what came from here on, less what was expected here.
    assert gae(rewards, values, gamma=1, lam=1).tolist() == pytest.approx([0.5, 1.0, 1.75])
    # λ = 0: one step ahead.  -1 + 0.5·0.5;  -0.5 - 0.5 + 0.5·0.25;  2 - 0.25
    assert gae(rewards, values, gamma=0.5, lam=0).tolist() == pytest.approx([-0.75, -0.875, 1.75])
    # γλ = 0.25: -0.75 + 0.25·(-0.4375);  -0.875 + 0.25·1.75
    assert gae(rewards, values, gamma=0.5, lam=0.5).tolist() == pytest.approx([-0.859375, -0.4375, 1.75])


def test_straying_from_the_reference_costs_and_the_reward_comes_last() -> None:
    policy = tiny_policy()
    learner = PPO(policy, Settings(kl=1.0, gamma=1.0, lam=1.0))
    episode = Episode.of(made([10, 11, 12], [1, 0, 1], policy), 2.0, torch.device("cpu"))
    episode.old_logprobs += 0.5  # surer of its tokens than the reference, by half a nat each
    figures = learner._estimate([episode])
    # A new critic expects nothing: what is to come is the reward, less half a point for each token.
    assert episode.returns.tolist() == pytest.approx([1.0, 1.5], abs=1e-5)
    assert figures["kl"] == pytest.approx(0.5, abs=1e-5)


def test_the_loss_is_clipped_as_the_paper_clips_and_rewards_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()

    def gradient(advantage: float, entropy: float) -> list[Any]:
        learner = PPO(policy, Settings(entropy=entropy, clip=0.2, max_grad_norm=1e9))
        monkeypatch.setattr(learner.optimiser, "step", lambda: None)
        monkeypatch.setattr(learner.optimiser, "zero_grad", lambda: None)
        policy.zero_grad()
        episode = Episode.of(made([10, 11], [1, 1], policy), 0.0, torch.device("cpu"))
        episode.old_logprobs += 0.5  # so the ratio is exp(-0.5) = 0.61, below 1 - 0.2
        episode.advantages += advantage
        learner._update([episode], defaultdict(float))
        return [weight.grad.clone() for weight in learner.actor]

    def is_zero(gradients: list[Any]) -> bool:
        return not any(gradient.any() for gradient in gradients)

    assert is_zero(gradient(-1.0, 0.0)), "what became less likely already is not pushed on"
    assert not is_zero(gradient(1.0, 0.0))
    learner = PPO(policy)
    episode = Episode.of(made([10, 11], [1, 1], policy), 0.0, torch.device("cpu"))
    rising = torch.autograd.grad(learner._look([episode])[1].mean(), learner.actor)
    for found, up in zip(gradient(0.0, 1.0), rising, strict=True):
        assert torch.allclose(found, -up, atol=1e-7)


def test_changing_the_target_of_an_inserted_token_changes_no_gradient() -> None:
    """The router still reads what it read; only what it could have been held to differs."""
    learner = PPO(tiny_policy())
    rollout = made([10, 11, 20, 21, 12, 22], [1, 1, 0, 0, 1, 0])
    read = torch.tensor([rollout.prompt_ids + rollout.completion_ids])

    def as_read(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "input_ids": read}

    learner.policy.get_base_model().model.register_forward_pre_hook(as_read, with_kwargs=True)
    episode = Episode.of(rollout, 1.0, torch.device("cpu"))
    before = gradients(learner, episode)
    for place in (5, 6, 8):
        episode.ids[place] = 99
    assert all(torch.equal(one, other) for one, other in zip(before, gradients(learner, episode), strict=True))
    episode.ids[4] = 99
    assert not all(torch.equal(one, other) for one, other in zip(before, gradients(learner, episode), strict=True))


def test_the_output_head_sees_sampled_tokens_alone() -> None:
    learner = PPO(tiny_policy())
    seen: list[int] = []
    head = learner.policy.get_base_model().lm_head
    head.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    episodes = [
        Episode.of(made(*rollout), 1.0, torch.device("cpu"))
        for rollout in (([10, 20, 11], [1, 0, 1]), ([10, 11, 12, 13, 20], [1, 1, 1, 1, 0]))
    ]
    assert [len(part) for part in learner._look(episodes)] == [6, 6, 6]
    assert seen == [6]


def test_rows_together_are_what_each_is_alone() -> None:
    policy = tiny_policy()
    episodes = [
        Episode.of(made(ids, mask), 1.0, torch.device("cpu"))
        for ids, mask in (([10, 20, 11], [1, 0, 1]), ([10, 11, 12, 13, 20], [1, 1, 1, 1, 0]))
    ]
    learner = PPO(policy)
    together = learner._look(episodes)
    alone = [torch.cat(parts) for parts in zip(*(learner._look([episode]) for episode in episodes), strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_reference_is_the_policy_without_its_adapter() -> None:
    policy = tiny_policy()
    learner = PPO(policy, Settings(actor_lr=1e-2))
    rollouts = [made([10, 11], [1, 1], policy), made([12, 13], [1, 1], policy)]
    assert learner.step(rollouts, [1.0, 0.0])["kl"] == pytest.approx(0, abs=1e-6)
    again = [made([10, 11], [1, 1], policy), made([12, 13], [1, 1], policy)]
    assert abs(learner.step(again, [1.0, 0.0])["kl"]) > 1e-4


def test_what_cannot_be_scored_is_left_out() -> None:
    policy = tiny_policy()
    good, other = made([10, 11], [1, 1], policy), made([12, 13], [1, 1], policy)
    one, two = PPO(policy), PPO(tiny_policy())
    figures = one.step([good, unscorable(TASK, 0.5, "down"), other], [1.0, None, 0.0])
    two.step([good, other], [1.0, 0.0])
    assert (figures["episodes"], figures["unscorable"]) == (2, 1)
    assert all(torch.equal(mine, its) for mine, its in zip(one.actor, two.actor, strict=True))
    assert two.step([unscorable(TASK, 0.5, "down")], [None]) == {"episodes": 0, "unscorable": 1}


def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been() -> None:
    def rollouts(policy: Any) -> list[Rollout]:
        return [made([first, 20, 11], [1, 0, 1], policy) for first in range(10, 18)]

    settings, earned = Settings(actor_lr=1e-2, critic_lr=1e-2, minibatch=2), [float(n % 2) for n in range(8)]
    whole = PPO(tiny_policy(), settings)
    whole.step(rollouts(whole.policy), earned)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    resumed = PPO(tiny_policy(), settings)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    first = whole.step(rollouts(whole.policy), earned)
    second = resumed.step(rollouts(resumed.policy), earned)
    assert second == pytest.approx(first, abs=1e-6)
    for one, other in zip(whole.actor, resumed.actor, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_policy_that_cannot_learn_is_refused() -> None:
    policy = tiny_policy()
    policy.requires_grad_(False)
    with pytest.raises(ValueError, match="is_trainable=True"):
        PPO(policy)
