"""A router in this process, by transformers: for tests, and for training without a server."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from langgraph_router_r1.engines.base import ContextFullError, EngineError, Generation, OnText
from langgraph_router_r1.engines.tokenizer import ChatTokenizer, TokenEngine
from langgraph_router_r1.transcript import Segment, token_ids

logger = logging.getLogger(__name__)


@dataclass
class _Request:
    prompt: list[int]
    stop: Sequence[str]
    max_tokens: int
    on_text: OnText | None
    result: Future[tuple[list[int], list[float], bool]] = field(default_factory=Future)


class TransformersEngine(TokenEngine):
    """Samples with a transformers model. Requests that arrive close together are sampled as one batch.

    Example:
        >>> engine = TransformersEngine("path/or/hub-id", temperature=1.0)                 # doctest: +SKIP
    """

    def __init__(
        self,
        model_or_path: str | Path | PreTrainedModel,
        *,
        model: str = "router",
        tokenizer: str | Path | ChatTokenizer | None = None,
        adapter: str | Path | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 32,
        wait_s: float = 0.005,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Load a model, or share one that a trainer holds.

        Args:
            model_or_path: A directory, a hub id, or a loaded model.
            model: Name of the policy in transcripts.
            tokenizer: Directory or hub id of the tokenizer; by default that of the model.
            adapter: Directory of a LoRA adapter to put on the model.
            temperature: 0 for the likeliest token; 1 for training.
            seed: Seed of the sampling.
            batch_size: Most requests in a batch.
            wait_s: How long a batch waits for more requests.
            dtype: Type of the weights, when they are loaded here.
        """
        if isinstance(model_or_path, PreTrainedModel):
            self.network: Any = model_or_path
            """The model that is sampled; a trainer may put its own here."""
            source = tokenizer or model_or_path.name_or_path
        else:
            self.network = AutoModelForCausalLM.from_pretrained(model_or_path, dtype=dtype)
            source = tokenizer or model_or_path
        if adapter is not None:
            from peft import PeftModel

            self.network = PeftModel.from_pretrained(self.network, str(adapter))
        self.model = model
        self.tokenizer: ChatTokenizer = source if isinstance(source, ChatTokenizer) else ChatTokenizer.load(source)
        self.temperature = temperature
        self.batch_size = batch_size
        self.wait_s = wait_s
        self.context_tokens = int(self.network.config.max_position_embeddings)
        self.random_state = torch.Generator(self.network.device).manual_seed(seed).get_state()
        """The place in the stream of random numbers: kept in a checkpoint, sampling goes on as it would have."""
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()

    def generate(
        self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int, on_text: OnText | None = None
    ) -> Generation:
        """See `RouterEngine.generate`."""
        request = self._submit(transcript, stop, max_tokens, on_text)
        return self._read(request, request.result.result())

    async def agenerate(
        self, transcript: Sequence[Segment], *, stop: Sequence[str], max_tokens: int, on_text: OnText | None = None
    ) -> Generation:
        """See `RouterEngine.agenerate`."""
        request = self._submit(transcript, stop, max_tokens, on_text)
        return self._read(request, await asyncio.wrap_future(request.result))

    def __repr__(self) -> str:
        return f"TransformersEngine({self.network.name_or_path!r}, model={self.model!r})"

    def _submit(
        self, transcript: Sequence[Segment], stop: Sequence[str], max_tokens: int, on_text: OnText | None
    ) -> _Request:
        prompt = token_ids(transcript)
        if len(prompt) + max_tokens > self.context_tokens:
            msg = (
                f"the router's context is full: {len(prompt)} prompt tokens and {max_tokens} new ones "
                f"are more than the maximum context length of {self.context_tokens}"
            )
            raise ContextFullError(msg)
        request = _Request(prompt, stop, max_tokens, on_text)
        with self._lock:
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, daemon=True, name="router-r1-sampler")
                self._worker.start()
        self._requests.put(request)
        return request

    def _read(self, request: _Request, result: tuple[list[int], list[float], bool]) -> Generation:
        ids, logprobs, stopped = result
        return Generation(
            segment={
                "kind": "policy",
                "text": self.tokenizer.decode(ids, skip_control=True),
                "token_ids": ids,
                "logprobs": logprobs,
                "policy": self.model,
            },
            usage={
                "prompt_tokens": len(request.prompt),
                "cached_tokens": 0,
                "completion_tokens": len(ids),
                "estimated": False,
            },
            finish="stop" if stopped else "length",
        )

    def _work(self) -> None:
        while True:
            batch = [self._requests.get()]
            until = time.monotonic() + self.wait_s
            while len(batch) < self.batch_size and (left := until - time.monotonic()) > 0:
                try:
                    batch.append(self._requests.get(timeout=left))
                except queue.Empty:
                    break
            # Nobody waits any more for a request that was cancelled.
            batch = [request for request in batch if request.result.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                results = self._sample(batch)
            except Exception as error:  # noqa: BLE001 - raised in every request of the batch
                failure = EngineError(f"{self!r} failed ({type(error).__name__}: {error})")
                for request in batch:
                    request.result.set_exception(failure)
            else:
                for request, result in zip(batch, results, strict=True):
                    request.result.set_result(result)

    @torch.no_grad()
    def _sample(self, batch: list[_Request]) -> list[tuple[list[int], list[float], bool]]:
        """Sample a left-padded batch; return each row's tokens, log-probabilities, and whether it stopped by itself."""
        device = self.network.device
        longest = max(len(request.prompt) for request in batch)
        eos = self.tokenizer.eos_token_id
        pad = eos if eos is not None else 0
        ids = torch.tensor([[pad] * (longest - len(r.prompt)) + r.prompt for r in batch], device=device)
        mask = torch.tensor([[0] * (longest - len(r.prompt)) + [1] * len(r.prompt) for r in batch], device=device)
        rows = _Rows(batch, self.tokenizer, longest)
        # The stream is that of the device; CUDA's was not run here.
        on_cuda = device.type == "cuda"
        get_state = partial(torch.cuda.get_rng_state, device) if on_cuda else torch.get_rng_state
        set_state = partial(torch.cuda.set_rng_state, device=device) if on_cuda else torch.set_rng_state
        state = get_state()
        try:
            # generate() draws from the global generator; our place in its stream is kept between batches.
            set_state(self.random_state)
            output = self.network.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(request.max_tokens for request in batch),
                do_sample=self.temperature > 0,
                temperature=self.temperature or None,
                # The policy alone, whatever the model's generation_config.json would have besides.
                top_p=None,
                top_k=0 if self.temperature > 0 else None,
                min_p=None,
                repetition_penalty=1.0,
                pad_token_id=pad,
                eos_token_id=eos,
                stopping_criteria=StoppingCriteriaList([rows]),
                return_dict_in_generate=True,
                output_logits=True,
            )
            self.random_state = get_state()
        finally:
            set_state(state)
        results = []
        for row, request in enumerate(batch):
            sampled: list[int] = output.sequences[row, longest:].tolist()
            length = rows.length[row] or min(len(sampled), request.max_tokens)
            if eos is not None and eos in sampled[:length]:
                length = sampled.index(eos) + 1
            stopped = rows.stopped[row] or (eos is not None and sampled[length - 1] == eos)
            logits = torch.stack([step[row] for step in output.logits[:length]]).float() / (self.temperature or 1.0)
            chosen = torch.tensor(sampled[:length], device=logits.device)
            logprobs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
            results.append((sampled[:length], logprobs, stopped))
        return results


class _Rows(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own stop strings and its own length, and tells of its text as it comes."""

    def __init__(self, batch: list[_Request], tokenizer: ChatTokenizer, start: int) -> None:
        self.batch = batch
        self.tokenizer = tokenizer
        self.start = start
        self.length = [0] * len(batch)
        self.stopped = [False] * len(batch)
        self.decode = [tokenizer.decoder() for _ in batch]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        sampled = input_ids[:, self.start :].tolist()
        for row, request in enumerate(self.batch):
            if self.length[row]:
                continue
            ids = sampled[row]
            if request.on_text is not None and (text := self.decode[row](ids[-1])):
                try:
                    request.on_text(text)
                except Exception as error:  # noqa: BLE001 - whoever listens to one row must not fail the others
                    logger.warning("a turn is not streamed on: its listener failed (%s)", type(error).__name__)
                    request.on_text = None
            # A stop string is no longer than its characters are tokens.
            reach = max((len(string) for string in request.stop), default=0)
            tail = self.tokenizer.decode(ids[-reach:]) if reach else ""
            self.stopped[row] = any(string in tail for string in request.stop)
            if self.stopped[row] or len(ids) >= request.max_tokens:
                self.length[row] = len(ids)
        return torch.tensor([bool(length) for length in self.length], device=input_ids.device)
