"""New weights for the engine that samples: after each optimiser step it samples what was just learned.

    InProcessSync(TransformersEngine(...))                    # samples the trainer's own model: nothing is copied
    VLLMSync(VLLMEngine(...), "runs/mine/adapters")           # publishes each adapter under a new name

Weights that do not arrive raise no error by themselves: vLLM ignores an adapter that fits no module, and serves the
base model under its name. So a short sample is compared with the trainer after the first sync, and after each later
one until the adapter differs from the base model: before that, agreement proves nothing.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from langgraph_router_r1.engines import EngineError, TransformersEngine, VLLMEngine
from training.sft import save_adapter

PROBE_TOKENS = 48
"""How many sampled tokens of an engine are compared with the trainer."""


@dataclass(frozen=True)
class Tolerance:
    """How far the log-probabilities of an engine may be from the trainer's; both are natural logarithms."""

    most: float
    """Of any token."""
    mean: float
    """Mean of the absolute differences."""


TOLERANCES = {torch.float32: Tolerance(1e-3, 1e-3), torch.bfloat16: Tolerance(1.5, 0.1)}
"""By the less precise of the two sides.

In bfloat16 the pocket router, sampled by transformers, was 0.59 at most and 0.030 on average from the trainer's forward
on the worst of six probes (rare tokens are furthest), and the base model 8.6 and 1.8 on the nearest: what is told apart
there is another adapter, not an older version of the same one."""


@dataclass(frozen=True)
class Agreement:
    """How far an engine was from the trainer on a probe."""

    tokens: int
    most: float
    mean: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
        """Compare two lists of log-probabilities of the same tokens."""
        apart = [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
        return cls(len(apart), max(apart), math.fsum(apart) / len(apart))

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the two may be called the same; not, when anything is no number."""
        return self.most <= tolerance.most and self.mean <= tolerance.mean

    def __str__(self) -> str:
        return f"{self.most:.2g} at most and {self.mean:.2g} on average over {self.tokens} tokens"


class SyncError(RuntimeError):
    """The engine does not sample from the trainer's weights; the message says what it does instead."""


LogProbs = Callable[[Sequence[int], Sequence[int]], list[float]]
"""From prompt and completion to the log-probability of each token of the completion."""


class Sync:
    """What all syncs share: publish, then check until the check has proved something.

    `GraphGRPOTrainer` attaches itself; TRL calls `sync_weights` before it asks for rollouts with newer weights.
    """

    def __init__(self, engine: TransformersEngine | VLLMEngine, tolerance: Tolerance) -> None:
        """Keep the engine, which must sample at temperature 1 and record log-probabilities."""
        self.engine = engine
        self.tolerance = tolerance
        self.proven = False
        """Whether the engine was seen to sample from an adapter that differs from the base model."""
        self.agreement: Agreement | None = None
        """What the latest check found."""
        self._model: Any = None
        self._probe: Sequence[Mapping[str, str]] = ()
        self._logprobs: LogProbs | None = None

    def attach(self, model: Any, logprobs: LogProbs, probe: Sequence[Mapping[str, str]]) -> None:
        """Take the trainer's side.

        Args:
            model: The trainer's model, unwrapped.
            logprobs: What the trainer says of sampled tokens.
            probe: The chat that the check samples a turn for: one on which the router has something to say.
        """
        self._model, self._logprobs, self._probe = model, logprobs, probe

    def sync_weights(self) -> None:
        """Give the engine the trainer's weights.

        Raises:
            SyncError: They did not arrive.
        """
        if self._logprobs is None:
            raise SyncError(f"{type(self).__name__} is attached to no trainer: call attach first")
        self.publish()
        if not self.proven:
            self.check()

    def publish(self) -> None:
        """Bring the weights to the engine."""
        raise NotImplementedError

    def check(self) -> None:
        """Hold the engine against the trainer on a short sample.

        Raises:
            SyncError: They differ by more than the tolerance.
        """
        assert self._logprobs is not None
        prompt = self.engine.begin(self._probe)
        segment = self.engine.generate([prompt], stop=[], max_tokens=PROBE_TOKENS).segment
        sampled, said = segment["token_ids"], segment["logprobs"]
        self.agreement = Agreement.of(said, self._logprobs(prompt["token_ids"], sampled))
        with self._without_adapter():
            base = Agreement.of(said, self._logprobs(prompt["token_ids"], sampled))
        if not self.agreement.within(self.tolerance):
            instead = (
                "It samples from the base model: the adapter was not loaded, or fits none of its modules."
                if base.within(self.tolerance)
                else "It samples from neither the trainer's weights nor the base model's: from other weights, or at "
                "other settings than temperature 1."
            )
            raise SyncError(
                f"{self.engine!r} does not sample from the trainer's weights: log-probabilities differ by "
                f"{self.agreement}, and may by {self.tolerance.most:g} and {self.tolerance.mean:g}. {instead}"
            )
        self.proven = not self._has_adapter() or not base.within(self.tolerance)

    def _has_adapter(self) -> bool:
        return hasattr(self._model, "disable_adapter")

    def _without_adapter(self) -> Any:
        return self._model.disable_adapter() if self._has_adapter() else nullcontext()


class InProcessSync(Sync):
    """The engine samples from the trainer's own model."""

    engine: TransformersEngine

    def __init__(self, engine: TransformersEngine, *, tolerance: Tolerance | None = None) -> None:
        """Keep the engine; its model is replaced by the trainer's."""
        super().__init__(engine, tolerance or TOLERANCES[_precision(engine.network.dtype)])

    def publish(self) -> None:
        """See `Sync.publish`."""
        self.engine.network = self._model

    def check(self) -> None:
        """See `Sync.check`; what is sampled later does not depend on whether there was a check."""
        state = self.engine.random_state
        try:
            super().check()
        finally:
            self.engine.random_state = state


class VLLMSync(Sync):
    """Publishes the trainer's adapter to a vLLM server as `router-v1`, `router-v2` and so on, each in a new directory.

    A new name and a new directory each time, never `load_inplace`: vLLM's prefix cache goes by these two, and would
    serve what older weights made of a prompt.
    """

    engine: VLLMEngine

    def __init__(
        self,
        engine: VLLMEngine,
        directory: str | Path,
        *,
        dtype: torch.dtype = torch.bfloat16,
        tolerance: Tolerance | None = None,
        name: str = "router",
    ) -> None:
        """Say where adapters are written; nothing is sent yet.

        Args:
            engine: On a server that loads adapters while it runs, as one with `VLLMServer(lora_rank=...)` does, and
                that reads the same files. Adapters are loaded with the engine's key and time limit.
            directory: Of the adapters; only the one in use stays there.
            dtype: What the server computes in; adapters are written in it.
            tolerance: By default what `dtype` allows.
            name: What the names of the adapters start with.

        Raises:
            ValueError: The engine records no log-probabilities, or repeats itself.
        """
        if not engine.logprobs or engine.seed is not None:
            raise ValueError(
                f"{engine!r} has logprobs={engine.logprobs!r} and seed={engine.seed!r}; training takes logprobs=True, "
                "and seed=None: with a seed, all rollouts of a group would be the same"
            )
        super().__init__(engine, tolerance or TOLERANCES[_precision(dtype)])
        self.directory = Path(directory).absolute()
        self.dtype = dtype
        self.name = name

    def publish(self) -> None:
        """See `Sync.publish`: write, load, point the engine at it, unload what came before."""
        served = [name for name in self.engine.served_models() if self._version(name)]
        # The directory outlives a trainer that is killed: a name is not used again after a restart.
        written = [path.name for path in self.directory.glob(f"{self.name}-v*") if self._version(path.name)]
        version = 1 + max(map(self._version, [*served, *written]), default=0)
        new = f"{self.name}-v{version}"
        self._save(self.directory / new)
        self._post("load_lora_adapter", {"lora_name": new, "lora_path": str(self.directory / new)})
        self.engine.model = new
        for old in served:
            self._post("unload_lora_adapter", {"lora_name": old})
        for old in written:
            shutil.rmtree(self.directory / old)

    def _version(self, name: str) -> int:
        """Return the number in a name of ours, 0 for any other name."""
        start, _, number = name.rpartition("-v")
        return int(number) if start == self.name and number.isdecimal() else 0

    def _save(self, path: Path) -> None:
        if not self._has_adapter():
            raise SyncError(f"the trainer's model is a {type(self._model).__name__}; to vLLM go LoRA adapters only")
        save_adapter(self._model, path, dtype=self.dtype)

    def _post(self, what: str, body: dict[str, str]) -> None:
        try:
            self.engine.post(what, body)
        except EngineError as error:
            hint = (
                "; it loads adapters while it runs only when it is started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True "
                "and LoRA, as by VLLMServer(lora_rank=...)"
                if what.startswith("load")
                else ""
            )
            raise SyncError(f"{what} failed: {error}; it was asked for with {body}{hint}") from error


def _precision(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in {torch.float32, torch.float64} else torch.bfloat16
