"""GRPO on rollouts of the graph that serves: TRL optimises, PEFT holds the adapter, the graph is the environment.

A group is a task at a cost weight. Of each step's groups the graph makes `num_generations` rollouts each, with the
weights of the step before; each is rewarded; a rollout's advantage is how much better it did than its group.

    engine = TransformersEngine(model, tokenizer=..., temperature=1.0)
    trainer = GraphGRPOTrainer(model, InProcessSync(engine), registry, make_groups(tasks, 400, seed=0),
                               args=settings("runs/mine", per_device_train_batch_size=16), peft_config=LoraConfig(...))
    trainer.train(resume_from_checkpoint=last_checkpoint("runs/mine"))

Deviations from the textbook, all TRL's: the ratio between trainer and sampler corrects the loss (the settings
`vllm_importance_sampling_...`); the loss is a mean over the tokens of the batch (`loss_type="dapo"`). And one of ours,
which changes no value: what the sequences of a batch share is computed once (see logprobs.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from langgraph_router_r1 import ModelRegistry
from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.tasks import Task
from training.groups import Group
from training.logprobs import PLAIN_HEADS, completion_logprobs
from training.parts import ROUTER, Part
from training.pools import Draw
from training.rewards import CostScale, Score, rewards
from training.rollout import Calls, Rollout, require_logprobs, roll_out
from training.settings import check_settings
from training.sft import newest_checkpoint
from training.sync import InProcessSync, Sync
from training.watch import measure

with warnings.catch_warnings():
    # TRL imports vLLM, for a use of it that is not ours and tied to older versions.
    warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|vllm)\.")
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import split_tensor_dict

STATE_FILE = "router_r1.json"
"""What is ours in a checkpoint. Written last: a checkpoint that lacks it was cut off."""

MAX_UNSCORABLE_STEPS = 3
"""After so many steps in which nothing could be scored, training stops: something is down for good."""


class GraphGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO trainer, whose rollouts come from the router graph."""

    _buffered_inputs: Any

    def __init__(
        self,
        model: Any,
        sync: Sync,
        registry: ModelRegistry,
        groups: Sequence[Group],
        *,
        args: GRPOConfig,
        part: Part = ROUTER,
        router_settings: Mapping[str, Any] | None = None,
        score: Score = rewards,
        draw: Draw | None = None,
        eval_groups: Sequence[Group] = (),
        in_flight: int = 64,
        timeout_s: float = 120.0,
        calls: Calls | None = None,
        **options: Any,
    ) -> None:
        """Prepare TRL's trainer on the groups, in their order; one step takes `generation_batch_size` rollouts.

        Args:
            model: A causal language model with a LoRA adapter, or one to put `peft_config` on.
            sync: Brings weights to the engine that samples, at temperature 1.
            registry: The pool.
            groups: What to learn from, once each, in this order.
            args: See `settings`.
            part: What is trained, and in which graph; see parts.py.
            router_settings: Settings of the graph: of `create_router` or `create_planner`.
            score: Rewards a batch.
            draw: Makes the pool of each group from the registry; see pools.py.
            eval_groups: What to evaluate on, with a cost scale of its own.
            in_flight: Most trajectories at a time.
            timeout_s: Most seconds for one of them.
            calls: Of `share_calls`, to log how many routed calls were made.
            options: More options of `GRPOTrainer`: `peft_config`, `processing_class`, `callbacks`.

        Raises:
            ValueError: A setting would train on something else than what was sampled.
        """
        check_settings(args, sync)
        self.sync = sync
        self.registry = registry
        # Groups with pools of their own share the connections to the models.
        self.router_settings = {"clients": Clients(rests=False), **(router_settings or {})}
        self.part = part
        self.score = score
        self.draw = draw
        self.in_flight, self.timeout_s = in_flight, timeout_s
        self.calls = calls
        self.groups = {group.id: group for group in [*groups, *eval_groups]}
        if len(self.groups) != len(groups) + len(eval_groups):
            raise ValueError("two groups have the same id: give make_groups another name for those of evaluation")
        self.order = [group.id for group in groups]
        self.scales = {"train": CostScale(), "eval": CostScale()}
        self.rollouts: list[Rollout] = []
        """Those of the latest batch, of all processes; for rejection sampling, and to look at."""
        self._runner: asyncio.Runner | None = None
        self._looped = False
        self._figures: dict[str, float] = {}
        self._seconds = {"rollout": 0.0, "sync": 0.0, "update": 0.0}
        self._unscorable_steps = 0
        with warnings.catch_warnings():
            # That this interface may change is why TRL is pinned to its minor version.
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            super().__init__(
                model=model,
                reward_funcs=[self.total_reward],
                args=args,
                train_dataset=Dataset.from_dict({"prompt": self.order}),
                eval_dataset=Dataset.from_dict({"prompt": [g.id for g in eval_groups]}) if eval_groups else None,
                rollout_func=self._roll_out,
                **options,
            )
        # TRL asks whoever stands here to bring its weights to the sampler, and then corrects for what differs.
        self.vllm_generation = self
        self._last_loaded_step = -1
        self.use_vllm = True
        self.remove_callback(PrinterCallback)
        self.add_callback(_KeepState(self))
        chat = part.chat(self.groups[self.order[0]], registry, sync.engine.control_tokens, self.router_settings)
        sync.attach(self.accelerator.unwrap_model(self.model), self.logprobs, chat)
        self._router = part.create(sync.engine, registry, **self.router_settings)

    # What the user calls

    def train(self, resume_from_checkpoint: str | Path | None = None, **options: Any) -> Any:
        """Train; from a checkpoint on when one is given (see `last_checkpoint`).

        Raises:
            ValueError: The checkpoint was made with other groups, or another order of them.
            RuntimeError: It is the second time that something is sampled; see `one_loop`.
        """
        if resume_from_checkpoint is not None:
            self._load_state(Path(resume_from_checkpoint))
        with self.one_loop():
            resume = None if resume_from_checkpoint is None else str(resume_from_checkpoint)
            return super().train(resume_from_checkpoint=resume, **options)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Evaluate on the groups for that, as TRL does: sampled, like training. Beside `train`, see `one_loop`."""
        with self.one_loop():
            figures: dict[str, float] = super().evaluate(*args, **options)
            return figures

    @contextmanager
    def one_loop(self) -> Iterator[asyncio.Runner]:
        """Hold one event loop open, around all that samples: connections to models live as long as theirs.

        `train` and `evaluate` each do it for themselves; who calls both does it around both.

        Raises:
            RuntimeError: The loop of this trainer was closed already. Calls to models would fail in another one.

        Example:
            >>> with trainer.one_loop():                                                          # doctest: +SKIP
            ...     trainer.evaluate()
            ...     trainer.train()
        """
        if self._runner is not None:
            yield self._runner
            return
        if self._looped:
            raise RuntimeError(
                "this trainer's event loop is closed, and with it the connections to the models of its pool: "
                "call train() and evaluate() inside of one `with trainer.one_loop():`"
            )
        self._looped = True
        with asyncio.Runner() as self._runner:
            try:
                yield self._runner
            finally:
                close = getattr(self.sync.engine, "aclose", None)
                if close is not None:
                    self._runner.run(close())
                self._runner = None

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Return what the model being trained says of each token of a completion."""
        ids = torch.tensor([[*prompt, *completion]], device=self.accelerator.device)
        with torch.no_grad():
            found, _, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, torch.ones_like(ids), len(completion)
            )
        values: list[float] = found[0].float().tolist()
        return values

    # What TRL calls

    def sync_weights(self) -> None:
        """Bring the weights to the engine; TRL calls this before rollouts with newer weights."""
        with self._timed("sync"):
            self.sync.sync_weights()
        # Where weights are spread over processes, a check takes all of them: they go on checking until each has proof.
        self.sync.proven = all(gather_object([self.sync.proven]))

    def _roll_out(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Return one row a prompt, in order; the prompts are ids of groups."""
        mode = "train" if self.model.training else "eval"
        groups = [self.groups[prompt] for prompt in prompts]
        with self._timed("rollout"), self._sampling(), self.one_loop() as runner:
            own = runner.run(self._sample(groups))
        # Rewards compare costs with a window, and rollouts with their group: both may span processes.
        self.rollouts = gather_object(own)
        scored = self.score(self.rollouts, self.scales[mode])
        generations = self.num_generations if mode == "train" else self.num_generations_eval
        self._figures = measure(self.rollouts, scored, self.registry.names, generations)
        if self.calls is not None:
            self._figures["routed_calls_made"] = self.calls.made_share
        self._stop_when_unscorable(mode)
        start = self.accelerator.process_index * len(own)
        eos = self.processing_class.eos_token_id
        rows = [_row(rollout, eos) for rollout in own]
        return {
            "prompt_ids": [row[0] for row in rows],
            "completion_ids": [row[1] for row in rows],
            "env_mask": [row[2] for row in rows],
            "logprobs": [row[3] for row in rows],
            "total": [
                reward.total if rollout.is_scorable else None
                for rollout, reward in zip(own, scored[start : start + len(own)], strict=True)
            ],
        }

    def total_reward(self, *, total: list[float | None], log_metric: Callable[[str, float], None], **_: Any) -> Any:
        """Return the rewards that came with the rollouts: TRL's own completions hold what others wrote, too."""
        for name, value in self._figures.items():
            log_metric(name, value)
        return total

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Give the next micro-batch; as TRL does, but rollouts of a question stay together, and so share their prompt.

        TRL shuffles them, which changes nothing where a batch makes one update: its gradient is a sum.
        """
        micro_batches = self.args.steps_per_generation
        updates = micro_batches * self.num_iterations // self.args.gradient_accumulation_steps
        if not self.model.training or updates > 1:
            return super()._prepare_inputs(generation_batch)
        if self._step % (micro_batches * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = split_tensor_dict(
                self._generate_and_score_completions(generation_batch), micro_batches
            )
        return self._buffered_inputs[self._step % micro_batches]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **options: Any,
    ) -> Any:
        # Under DDP and FSDP a forward must go through the wrapper, other heads are TRL's business, and layers that
        # compute their activations again keep no cache.
        if (
            self.accelerator.num_processes > 1
            or self.args.gradient_checkpointing
            or self.model.config.model_type not in PLAIN_HEADS
        ):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **options
            )
        network = self.accelerator.unwrap_model(model)
        network = network.get_base_model() if hasattr(network, "get_base_model") else network
        size = batch_size or len(input_ids)
        chunks = []
        for start in range(0, len(input_ids), size):
            with self.accelerator.autocast():
                chunks.append(
                    completion_logprobs(
                        network,
                        input_ids[start : start + size],
                        attention_mask[start : start + size],
                        logits_to_keep,
                        entropy=self._entropy_bonus_enabled,
                    )
                )
        logprobs, entropies = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return logprobs, entropies if compute_entropy else None, None

    def training_step(self, *args: Any, **options: Any) -> Any:
        """Do one micro-batch; what TRL calls `step_time` has the rollouts in it, so the update is timed here."""
        elsewhere = self._seconds["rollout"] + self._seconds["sync"]
        began = time.perf_counter()
        loss = super().training_step(*args, **options)
        if self._unscorable_steps:
            # Gradients of zero would still move the weights: Adam goes on the way it was going.
            self.model.zero_grad(set_to_none=True)
        elsewhere = self._seconds["rollout"] + self._seconds["sync"] - elsewhere
        self._seconds["update"] += time.perf_counter() - began - elsewhere
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the seconds since the last time."""
        logs.update({f"seconds/{what}": round(seconds, 3) for what, seconds in self._seconds.items()})
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        super().log(logs, start_time)

    # Rollouts

    async def _sample(self, groups: Sequence[Group]) -> list[Rollout]:
        if self.draw is None:
            tasks = [(group.task, group.cost_weight) for group in groups]
            return await self._graph(self._router, self.registry, tasks, self.in_flight)
        counts = {group.id: groups.count(group) for group in groups}
        share = max(self.in_flight // len(counts), 1)
        batches = await asyncio.gather(*(self._drawn(self.groups[key], counts[key], share) for key in counts))
        made = {key: iter(batch) for key, batch in zip(counts, batches, strict=True)}
        return [next(made[group.id]) for group in groups]

    async def _drawn(self, group: Group, count: int, in_flight: int) -> list[Rollout]:
        """Roll one group out over a pool of its own."""
        assert self.draw is not None
        pool = self.draw(self.registry, random.Random(f"{self.args.seed} {group.id}"))
        router = self.part.create(self.sync.engine, pool, **self.router_settings)
        return await self._graph(router, pool, [(group.task, group.cost_weight)] * count, in_flight)

    async def _graph(
        self, router: Any, pool: ModelRegistry, tasks: list[tuple[Task, float]], in_flight: int
    ) -> list[Rollout]:
        return await roll_out(
            router,
            pool,
            tasks,
            in_flight=in_flight,
            timeout_s=self.timeout_s,
            policy=self.sync.engine.model,
            part=self.part,
        )

    def _stop_when_unscorable(self, mode: str) -> None:
        is_unscorable = not any(rollout.is_scorable for rollout in self.rollouts)
        if mode == "train":
            self._unscorable_steps = self._unscorable_steps + 1 if is_unscorable else 0
        if self._unscorable_steps >= MAX_UNSCORABLE_STEPS:
            reasons = sorted({str(rollout.failed) for rollout in self.rollouts})[:3]
            raise RuntimeError(
                f"no rollout could be scored in {self._unscorable_steps} steps in a row: {'; '.join(reasons)}"
            )

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """Hold the model in evaluation mode: it may be the one that is sampled."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - began

    # Checkpoints

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        network = self.accelerator.unwrap_model(model or self.model)
        if "ref" in getattr(network, "peft_config", {}):
            # Where a subdirectory holds an adapter, here the reference, transformers passes over the one being trained.
            network.load_adapter(resume_from_checkpoint, "default", is_trainable=True)

    def _save_state(self, checkpoint: Path) -> None:
        """Write what TRL does not know of into a checkpoint, all at once."""
        state: dict[str, Any] = {
            "step": self.state.global_step,
            "groups": self._fingerprint(self.state.global_step),
            "scales": {mode: scale.state_dict() for mode, scale in self.scales.items()},
        }
        if isinstance(self.sync, InProcessSync):
            state["engine"] = bytes(self.sync.engine.random_state.tolist()).hex()
        if self.calls is not None:
            state["calls"] = {"asked": self.calls.asked, "made": self.calls.made}
        if self.accelerator.is_main_process:
            # A checkpoint is whole when this one has written: by then all the others have.
            self.accelerator.wait_for_everyone()
        replace_file(checkpoint / self._state_file(), json.dumps(state))
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()

    def _load_state(self, checkpoint: Path) -> None:
        file = checkpoint / self._state_file()
        if not file.is_file():
            raise ValueError(f"{str(checkpoint)!r} is no whole checkpoint: it has no {file.name}")
        state = json.loads(file.read_text(encoding="utf-8"))
        if state["groups"] != self._fingerprint(state["step"]):
            raise ValueError(
                f"{str(checkpoint)!r} was made with other groups, or in another order: tasks, cost weights, seed and "
                "batch size must be those it was started with"
            )
        self.scales = {mode: CostScale.from_state_dict(kept) for mode, kept in state["scales"].items()}
        if isinstance(self.sync, InProcessSync) and "engine" in state:
            self.sync.engine.random_state = torch.tensor(list(bytes.fromhex(state["engine"])), dtype=torch.uint8)
        if self.calls is not None and "calls" in state:
            self.calls.asked, self.calls.made = state["calls"]["asked"], state["calls"]["made"]

    def _state_file(self) -> str:
        rank = self.accelerator.process_index
        return STATE_FILE if rank == 0 else f"{rank}.{STATE_FILE}"

    def _fingerprint(self, step: int) -> str:
        """Return a hash of the groups of the first steps, in order."""
        steps_a_batch = self.args.steps_per_generation * self.num_iterations // self.args.gradient_accumulation_steps
        used = step // steps_a_batch * self.args.generation_batch_size // self.num_generations
        told = [
            (group.id, group.task.id, group.cost_weight) for group in map(self.groups.__getitem__, self.order[:used])
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


class _KeepState(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: GraphGRPOTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: GRPOConfig, state: Any, control: Any, **_: Any) -> None:
        self.trainer._save_state(Path(args.output_dir, f"checkpoint-{state.global_step}"))


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the newest whole checkpoint of a run, None when there is none."""
    return newest_checkpoint(output_dir, STATE_FILE)


def _row(rollout: Rollout, eos: int) -> tuple[list[int], list[int], list[int], list[float]]:
    """Return prompt, completion, mask and log-probabilities; for what can't be scored, a token that is not learned."""
    if not rollout.is_scorable:
        return [eos], [eos], [0], [0.0]
    require_logprobs(rollout)
    return rollout.prompt_ids, rollout.completion_ids, rollout.env_mask, rollout.logprobs
