"""PPO as in Router-R1 (arXiv 2506.09033), over the same rollouts as GRPO, so that the two can be held side by side.

A rollout is an episode, and each token that the router sampled an action. What it earned comes with its last action;
with every action comes a penalty for leaving the reference: `kl` times the log of how much likelier it has become.
Where this is not the textbook's PPO, or not that of the paper's code (veRL):

- What the environment put in is no action: it is read, and carries neither loss nor value. Advantages run from one
  sampled token to the next, across it.
- The critic is a linear head on the policy's last hidden states, not a second language model. Its loss stops there:
  the states are the policy's alone, and each of the two has its own learning rate.
- The reference is the policy without its adapter. One that starts from an adapter it should stay near (a warm start)
  has to have that merged into its weights first.
- The old policy is the one that sampled, as it recorded itself, not the trainer's account of it: where the two differ,
  the ratio knows (`sampler_gap` says by how much). So rollouts have to be sampled at temperature 1, from everything.
- Values are not clipped, and there is no learning rate schedule.
- A rollout with an infrastructure failure is left out.
- One process: a comparison needs no more.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from langchain_core.runnables import Runnable
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from langgraph_router_r1.evaluation.tasks import Task
from langgraph_router_r1.registry import ModelRegistry
from training.rewards import Reward
from training.rollout import Rollout, require_logprobs, roll_out


@dataclass(frozen=True)
class Settings:
    """What the paper trained with; `gamma` and `lam` are γ and λ."""

    actor_lr: float = 1e-6
    critic_lr: float = 1e-5
    clip: float = 0.2
    kl: float = 0.001
    entropy: float = 0.001
    gamma: float = 1.0
    lam: float = 1.0
    epochs: int = 1
    """How often a batch is learned from."""
    minibatch: int = 32
    """Rollouts a step of the optimiser; with fewer than were sampled, later steps are a little off-policy."""
    rows: int = 4
    """Rollouts at a time through the network: memory against speed, and nothing else."""
    max_grad_norm: float = 1.0
    seed: int = 0
    """Of the order in which a batch is learned."""


@dataclass
class Episode:
    """One rollout as tensors. `ids` and `sampled` are as long as prompt and completion; the rest as the actions."""

    ids: Tensor
    sampled: Tensor
    old_logprobs: Tensor
    earned: float
    advantages: Tensor
    returns: Tensor

    @classmethod
    def of(cls, rollout: Rollout, earned: float, device: torch.device) -> Episode:
        """Take what there is to learn from a rollout; advantages and returns are not known yet.

        Raises:
            ValueError: Its log-probabilities are missing.
        """
        require_logprobs(rollout)
        sampled = torch.tensor([0] * len(rollout.prompt_ids) + rollout.env_mask, dtype=torch.bool, device=device)
        logprobs = torch.tensor([*[0.0] * len(rollout.prompt_ids), *rollout.logprobs], device=device)[sampled]
        ids = torch.tensor(rollout.prompt_ids + rollout.completion_ids, device=device)
        return cls(ids, sampled, logprobs, earned, torch.zeros_like(logprobs), torch.zeros_like(logprobs))


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Return the advantage of each action of one episode (Schulman et al. 2016, eq. 16).

    Args:
        rewards: What came with each action.
        values: What was expected before each; nothing is after the last.
        gamma: The discount.
        lam: 1 for what really came, 0 for what the next value says.

    Example:
        >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), gamma=1.0, lam=1.0)
        tensor([0.5000, 0.7500])
    """
    errors = rewards + gamma * torch.cat([values[1:], values.new_zeros(1)]) - values
    advantages = torch.zeros_like(errors)
    following = errors.new_zeros(())
    for step in reversed(range(len(errors))):
        following = errors[step] + gamma * lam * following
        advantages[step] = following
    return advantages


class PPO:
    """A policy with an adapter to train, its critic, and their optimiser."""

    def __init__(self, policy: PeftModel, settings: Settings | None = None) -> None:
        """Put a critic that expects nothing yet beside a policy.

        Raises:
            ValueError: No weight of the policy is to be trained.
        """
        self.policy, self.settings = policy, settings or Settings()
        # Dropout would make the policy that learns another than the one that sampled.
        self.policy.eval()
        self.actor = [weight for weight in policy.parameters() if weight.requires_grad]
        if not self.actor:
            raise ValueError("no weight of the policy requires a gradient; load its adapter with is_trainable=True")
        self.critic = torch.nn.Linear(policy.config.hidden_size, 1, device=self.actor[0].device)
        torch.nn.init.zeros_(self.critic.weight)
        torch.nn.init.zeros_(self.critic.bias)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": self.actor, "lr": self.settings.actor_lr},
                {"params": list(self.critic.parameters()), "lr": self.settings.critic_lr},
            ]
        )
        self._order = random.Random(self.settings.seed)

    def step(self, rollouts: Sequence[Rollout], earned: Sequence[float | None]) -> dict[str, float]:
        """Learn from a batch of rollouts; return what happened, each figure a mean over the sampled tokens.

        Args:
            rollouts: From the policy as it is now.
            earned: The reward of each; None for one that can't be scored.
        """
        device = self.actor[0].device
        episodes = [
            Episode.of(rollout, reward, device)
            for rollout, reward in zip(rollouts, earned, strict=True)
            if reward is not None and rollout.is_scorable
        ]
        figures: dict[str, float] = {"episodes": len(episodes), "unscorable": len(rollouts) - len(episodes)}
        if not episodes:
            return figures
        figures |= self._estimate(episodes)
        sums: defaultdict[str, float] = defaultdict(float)
        for _ in range(self.settings.epochs):
            self._order.shuffle(episodes)
            for minibatch in _chunks(episodes, self.settings.minibatch):
                self._update(minibatch, sums)
        actions = sums.pop("actions")
        return figures | {name: value / actions for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        trained = {name: weight for name, weight in self.policy.named_parameters() if weight.requires_grad}
        return {
            "policy": {name: weight.detach() for name, weight in trained.items()},
            "critic": self.critic.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "order": self._order.getstate(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: It is of another policy.
        """
        unknown = self.policy.load_state_dict(state["policy"], strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"the checkpoint has {unknown[0]!r}, which is no weight of this policy: it is of another")
        self.critic.load_state_dict(state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._order.setstate(state["order"])

    @torch.no_grad()
    def _estimate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Write advantages and returns into the episodes, by the critic as it is before it learns from them."""
        settings, penalties, gaps, errors, returns = self.settings, [], [], [], []
        for chunk in _chunks(episodes, settings.rows):
            logprobs, _, values = self._look(chunk)
            with self.policy.disable_adapter():
                reference, _, _ = self._look(chunk)
            lengths = [len(episode.old_logprobs) for episode in chunk]
            parts = zip(chunk, *(torch.split(of, lengths) for of in (logprobs, reference, values)), strict=True)
            for episode, now, without, expected in parts:
                penalty = episode.old_logprobs - without
                came = -settings.kl * penalty
                came[-1] += episode.earned
                episode.advantages = gae(came, expected, gamma=settings.gamma, lam=settings.lam)
                episode.returns = episode.advantages + expected
                penalties.append(penalty)
                gaps.append((episode.old_logprobs - now).abs())
                errors.append(episode.advantages)
                returns.append(episode.returns)
        every = torch.cat(errors)
        mean, spread = every.mean(), every.std(correction=0)
        for episode in episodes:
            episode.advantages = (episode.advantages - mean) / (spread + 1e-8)
        return {
            "reward": sum(episode.earned for episode in episodes) / len(episodes),
            "kl": float(torch.cat(penalties).mean()),
            "sampler_gap": float(torch.cat(gaps).mean()),
            # How much of the returns the critic foresaw: 1 all, 0 nothing, below 0 worse than their mean.
            "explained": float(1 - every.var(correction=0) / (torch.cat(returns).var(correction=0) + 1e-8)),
        }

    def _update(self, minibatch: Sequence[Episode], sums: defaultdict[str, float]) -> None:
        """Take one step of the optimiser, and add up what it was made of."""
        settings = self.settings
        actions = sum(len(episode.old_logprobs) for episode in minibatch)
        for chunk in _chunks(minibatch, settings.rows):
            logprobs, entropy, values = self._look(chunk)
            old, advantages, returns = (
                torch.cat([getattr(episode, name) for episode in chunk])
                for name in ("old_logprobs", "advantages", "returns")
            )
            ratio = (logprobs - old).exp()
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            gain = torch.minimum(ratio * advantages, clipped * advantages)
            value_loss = (values - returns).square() / 2
            loss = (value_loss - gain - settings.entropy * entropy).sum() / actions
            torch.autograd.backward(loss)
            parts = {"gain": gain, "value_loss": value_loss, "entropy": entropy, "ratio": ratio}
            for name, part in {**parts, "clipped": (clipped != ratio).float()}.items():
                sums[name] += float(part.detach().sum())
        sums["actions"] += actions
        for weights in (self.actor, list(self.critic.parameters())):
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _look(self, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-probability of each action, the entropy and the value before it, one episode after another."""
        network = self.policy.get_base_model()
        ids, sampled, there = (
            pad_sequence(rows, batch_first=True)
            for rows in (
                [episode.ids for episode in episodes],
                [episode.sampled for episode in episodes],
                [torch.ones_like(episode.ids) for episode in episodes],
            )
        )
        hidden = network.model(input_ids=ids, attention_mask=there, use_cache=False).last_hidden_state
        # The output head, which is most of the work, sees no place without a target.
        states = hidden[:, :-1][sampled[:, 1:]]
        every = network.lm_head(states).float().log_softmax(-1)
        logprobs = every.gather(1, ids[:, 1:][sampled[:, 1:]][:, None])[:, 0]
        return logprobs, -(every.exp() * every).sum(-1), self.critic(states.detach().float())[:, 0]


async def train(
    learner: PPO,
    router: Runnable[Any, Any],
    registry: ModelRegistry,
    batches: Iterable[Sequence[tuple[Task, float]]],
    earn: Callable[[Sequence[Rollout]], Sequence[Reward]],
    *,
    publish: Callable[[PeftModel], object] = lambda _: None,
    **options: Any,
) -> AsyncIterator[dict[str, float]]:
    """Roll out a batch, learn from it, and so on; yield the figures of each step.

    Args:
        learner: Whose policy the router samples from, at temperature 1.
        router: A compiled router whose engine records log-probabilities.
        registry: Its pool.
        batches: Tasks with cost weights, a batch a step.
        earn: Gives the rewards of a batch, such as `partial(rewards, scale=CostScale())`.
        publish: Makes the new weights those that are sampled; nothing, when the engine holds the very same model.
        options: Those of `roll_out`.
    """
    for batch in batches:
        rollouts = await roll_out(router, registry, batch, **options)
        figures = learner.step(rollouts, [reward.total for reward in earn(rollouts)])
        publish(learner.policy)
        yield figures


def _chunks(episodes: Sequence[Episode], size: int) -> Iterable[Sequence[Episode]]:
    return (episodes[start : start + size] for start in range(0, len(episodes), size))
