"""GRPO on the router graph: it learns from what was sampled and nothing else, samples what it learned, and resumes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import answer, search
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from langgraph_router_r1 import ModelDescriptor, ModelRegistry
from langgraph_router_r1.engines import EngineUnavailableError, TransformersEngine, VLLMEngine
from langgraph_router_r1.evaluation.tasks import Task, load_tasks
from langgraph_router_r1.prompts import RouterPrompt
from langgraph_router_r1.record import RunRecord
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
from langgraph_router_r1.transcript import token_ids

pytest.importorskip("torch")
pytest.importorskip("trl", reason="the [train] extra is not installed")

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from training.groups import make_groups
from training.grpo import STATE_FILE, GraphGRPOTrainer, last_checkpoint
from training.logprobs import completion_logprobs
from training.rewards import CostScale, Reward, rewards
from training.rollout import Rollout, require_logprobs, roll_out
from training.settings import settings
from training.sft import LORA_TARGETS, best_examples, read_examples
from training.sync import InProcessSync, Sync, SyncError, Tolerance, VLLMSync
from training.watch import JsonLog, ProgressTable, RolloutLog

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
TASKS = [Task(f"t{number}", f"question {number}?", ("x",), "mine") for number in range(5)]
SHORT = {"prompt": RouterPrompt("$cost_weight $question"), "max_tokens": 8, "router_price": 1.0}
WANTED = range(64)
"""The tokens that the planted reward counts: a quarter of the vocabulary."""


def tokenizer_at(directory: Path) -> Path:
    """A byte-level tokenizer with two control tokens and a chat template of one character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}))
    return directory


def tiny_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None, eos_token_id=257,
            initializer_range=0.2,  # logits far enough apart to have something to move
        )
    )  # fmt: skip


def pool() -> ModelRegistry:
    return ModelRegistry(
        ModelDescriptor(
            name=name, model=ScriptedChatModel(["x"]), price=price, description=f"Knows {name}.", skills={name: 0.9}
        )
        for name, price in (("capitals", 1.0), ("rivers", 2.0), ("kings", 4.0))
    )


def planted(rollouts: Any, scale: CostScale) -> list[Reward]:
    """The share of sampled tokens that are wanted; costs enter the window as they do for the real reward."""
    scored = rewards(rollouts, scale)
    return [
        Reward(None, 0.0, 0.0, 0.0) if rollout.failed is not None else Reward(wanted_share(rollout), 0.0, 0.0, 0.0)
        for rollout, _ in zip(rollouts, scored, strict=True)
    ]


def wanted_share(rollout: Rollout) -> float:
    sampled = [token for token, own in zip(rollout.completion_ids, rollout.env_mask, strict=True) if own]
    return sum(token in WANTED for token in sampled) / len(sampled)


def tiny_trainer(directory: Path, *, steps: int = 4, engine: Any = None, **options: Any) -> GraphGRPOTrainer:
    """A trainer of two groups of four rollouts a step, on a random two-layer model."""
    tokenizer = tokenizer_at(directory / "tokenizer")
    model = options.pop("model", None) or tiny_model()
    if engine is None:
        # All of a step in one batch, and so the same random numbers for the same rollouts each time.
        engine = TransformersEngine(model, tokenizer=tokenizer, temperature=1.0, batch_size=8, wait_s=0.3)
    args = {"per_device_train_batch_size": 8, "num_generations": 4, "learning_rate": 5e-3, "save_strategy": "no"}
    given: dict[str, Any] = {
        "sync": InProcessSync(engine) if isinstance(engine, TransformersEngine) else engine,
        "registry": pool(),
        "groups": make_groups(TASKS, 2 * steps, seed=3),
        "args": settings(directory, **{**args, **options.pop("args", {})}),
        "router_settings": {**SHORT, "max_turns": 0},
        "score": planted,
        "peft_config": LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"),
        "processing_class": PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|im_end|>"
        ),
    }
    return GraphGRPOTrainer(model, **{**given, **options})


def received(trainer: GraphGRPOTrainer) -> dict[str, Any]:
    """What TRL makes of one batch of rollouts: the input of its loss."""
    with trainer.one_loop():
        inputs = trainer._generate_and_score_completions([{"prompt": g} for g in trainer.order[:2] for _ in range(4)])
    trainer._looped = False  # nothing here keeps a connection
    return inputs


def gradients(trainer: GraphGRPOTrainer, inputs: dict[str, Any]) -> dict[str, Any]:
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, inputs).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def same(one: dict[str, Any], other: dict[str, Any], atol: float = 1e-6) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=atol, rtol=0) for name in one)


def stir(trainer: GraphGRPOTrainer) -> None:
    """Give the adapter something to say: it starts as zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)


def rollout_log(directory: Path) -> RolloutLog:
    tokenizer = tokenizer_at(directory / "tokenizer") / "tokenizer.json"
    return RolloutLog(directory / "rollouts.jsonl", PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)))


def log_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


# What the trainer receives


def test_what_the_trainer_receives_is_what_was_sampled_with_its_mask_and_its_logprobs(tmp_path: Path) -> None:
    """Three sampled turns a rollout, with words of the environment between them."""
    trainer = tiny_trainer(tmp_path, router_settings={**SHORT, "max_turns": 2})
    inputs = received(trainer)
    for row, rollout in enumerate(trainer.rollouts):
        length = len(rollout.completion_ids)
        assert inputs["completion_ids"][row, :length].tolist() == rollout.completion_ids
        assert inputs["tool_mask"][row, :length].tolist() == rollout.env_mask
        assert inputs["completion_mask"][row].sum() == length
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        assert prompt.tolist() == rollout.prompt_ids
        assert 0 < sum(rollout.env_mask) < length
    own = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    apart = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"])[own].abs()
    assert apart.max() < 1e-3
    assert inputs["num_items_in_batch"] == own.sum() == sum(sum(rollout.env_mask) for rollout in trainer.rollouts)


def test_the_target_of_an_inserted_token_changes_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(tmp_path, router_settings={**SHORT, "max_turns": 2})
    stir(trainer)
    inputs = received(trainer)
    row = int(inputs["advantages"].abs().argmax())
    assert inputs["advantages"][row] != 0
    targets = inputs["completion_ids"].clone()

    def plain(model: Any, ids: Any, mask: Any, keep: int, *args: Any, **options: Any) -> Any:
        """Every position of every sequence, as a textbook would, with targets apart from inputs."""
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1]
        distribution = logits.log_softmax(-1)
        entropy = -(distribution.exp() * distribution).sum(-1)
        return distribution.gather(2, targets[:, :, None])[:, :, 0], entropy, None

    ours = gradients(trainer, inputs)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", plain)
    expected = gradients(trainer, inputs)
    assert same(ours, expected), "what sequences share, computed once, has the gradients of the textbook's way"

    inserted = inputs["tool_mask"] == 0
    assert inserted.any()
    targets[inserted] = (targets[inserted] + 7) % 258
    assert same(gradients(trainer, inputs), expected, atol=0)
    targets[row, 0] = (targets[row, 0] + 7) % 258
    assert not same(gradients(trainer, inputs), expected)


def test_rollouts_of_a_question_go_through_the_network_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so their prompt goes through it once, however many micro-batches a step has."""
    prompts: list[set[tuple[int, ...]]] = []

    def watched(network: Any, ids: Any, mask: Any, keep: int, **options: Any) -> Any:
        rows = zip(ids[:, :-keep], mask[:, :-keep], strict=True)
        prompts.append({tuple(row[own.bool()].tolist()) for row, own in rows})
        return completion_logprobs(network, ids, mask, keep, **options)

    monkeypatch.setattr("training.grpo.completion_logprobs", watched)
    trainer = tiny_trainer(tmp_path, steps=2, args={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    learned: list[Any] = []
    prepare = trainer._prepare_inputs
    monkeypatch.setattr(trainer, "_prepare_inputs", lambda batch: learned.append(prepare(batch)) or learned[-1])
    trainer.train()
    assert len(prompts) >= 2 * 2 * 2
    assert all(len(of_a_pass) == 1 for of_a_pass in prompts)
    # Each rollout of the last step once, and none twice.
    completions = [
        tuple(row[own.bool()].tolist())
        for inputs in learned[-2:]
        for row, own in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    ]
    assert Counter(completions) == Counter(tuple(rollout.completion_ids) for rollout in trainer.rollouts)


def test_a_batch_that_is_learned_from_twice_is_sampled_once(tmp_path: Path) -> None:
    twice = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2}
    trainer = tiny_trainer(tmp_path, steps=1, args={**twice, "gradient_accumulation_steps": 4})
    trainer.train()
    assert len(trainer.scales["train"].state_dict()["roots"]) == 8


def test_unscorable_rollouts_change_nothing(tmp_path: Path) -> None:
    """Neither the gradient of the others, nor, when all are, the weights."""

    class Flaky(TransformersEngine):
        asked = 0
        broken = frozenset({0, 4, 5})

        async def agenerate(self, *args: Any, **options: Any) -> Any:
            self.asked += 1
            if self.asked - 1 in self.broken:
                raise EngineUnavailableError("nobody there")
            return await super().agenerate(*args, **options)

    model = tiny_model()
    engine = Flaky(model, tokenizer=tokenizer_at(tmp_path / "tokenizer"), temperature=1.0, batch_size=5, wait_s=0.3)
    after: list[dict[str, Any]] = []

    class Keep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            after.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

    trainer = tiny_trainer(
        tmp_path, engine=engine, model=model, args={"scale_rewards": "group", "max_steps": 2}, callbacks=[Keep()]
    )
    stir(trainer)
    inputs = received(trainer)
    broken = torch.tensor([rollout.failed is not None for rollout in trainer.rollouts])
    assert broken.tolist() == [True, False, False, False, True, True, False, False]
    assert inputs["advantages"][broken].abs().max() == 0
    assert (inputs["completion_mask"] * inputs["tool_mask"])[broken].sum() == 0
    for group in (slice(0, 4), slice(4, 8)):
        totals = torch.tensor([wanted_share(rollout) for rollout in trainer.rollouts[group] if not rollout.failed])
        expected = (totals - totals.mean()) / (totals.std() + 1e-4)
        assert inputs["advantages"][group][~broken[group]].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    without = {name: value[~broken] if value.dim() else value for name, value in inputs.items()}
    # In float64: with other rows in the batch, sums are made in another order, which float32 shows in the sixth digit.
    trainer.model.double()
    assert same(gradients(trainer, inputs), gradients(trainer, without), atol=1e-7)
    trainer.model.float()

    # The optimiser is under way by then, and would go on by itself.
    engine.broken = frozenset(range(16, 24))
    trainer.train()
    assert all(rollout.failed for rollout in trainer.rollouts)
    assert same(after[0], after[1], atol=0)


def test_training_stops_when_nothing_can_be_scored_any_more_and_says_why(tmp_path: Path) -> None:
    class Dead(TransformersEngine):
        async def agenerate(self, *args: Any, **options: Any) -> Any:
            raise EngineUnavailableError("nobody at 127.0.0.1:8000")

    model = tiny_model()
    engine = Dead(model, tokenizer=tokenizer_at(tmp_path / "tokenizer"), temperature=1.0)
    with pytest.raises(RuntimeError, match=r"in 3 steps in a row.*nobody at 127\.0\.0\.1:8000"):
        tiny_trainer(tmp_path, engine=engine, model=model).train()


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 50}, {"mask_truncated_completions": True}]
)
def test_settings_that_train_on_something_else_than_what_was_sampled_are_refused(tmp_path: Path, wrong: Any) -> None:
    [name] = wrong
    with pytest.raises(ValueError, match=rf"args\.{name} is "):
        tiny_trainer(tmp_path, args=wrong)


# Learning


def test_a_planted_reward_is_learned_within_40_steps(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        tmp_path,
        steps=40,
        args={"learning_rate": 1e-2, "num_generations": 8, "per_device_train_batch_size": 16, "beta": 0.001},
        callbacks=[JsonLog(tmp_path / "log.jsonl")],
    )
    trainer.sync.engine.batch_size = 16
    trainer.train()
    log = log_of(tmp_path)
    assert [line["step"] for line in log] == list(range(1, 41))
    first = sum(line["reward"] for line in log[:5]) / 5
    last = sum(line["reward"] for line in log[-5:]) / 5
    assert first < 0.4
    assert last > first + 0.3
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-3 for line in log)
    assert all(line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3) for line in log)
    assert log[-1]["kl"] > 0


def nameless(registry: ModelRegistry, choose: random.Random) -> ModelRegistry:
    """The pool in another order, its names taken away."""
    return ModelRegistry(choose.sample(list(registry), len(registry))).anonymized()


def test_a_step_tells_what_came_of_it_by_models_true_names(tmp_path: Path) -> None:
    """With a scripted router that finds the one who knows rivers by its description, under whatever name."""

    def write(transcript: Any) -> str:
        if any(segment["kind"] == "observation" for segment in transcript):
            return answer("x")
        name = re.search(r"- Knows rivers\. .*Name: ([\w-]+)\.", transcript[0]["text"])
        assert name, "the pool is told of in the prompt"
        assert name[1] not in {"capitals", "rivers", "kings"}
        return search(f"{name[1]}: Which?")

    engine: Any = ScriptedEngine(write)
    engine.temperature = 1.0
    sync = Sync(engine, Tolerance(99.0, 99.0))
    sync.publish = lambda: None  # type: ignore[method-assign]
    sync.check = lambda: None  # type: ignore[method-assign]
    trainer = tiny_trainer(
        tmp_path,
        steps=2,
        engine=sync,
        score=rewards,
        draw=nameless,
        router_settings={"prompt": RouterPrompt("$models $question")},
        callbacks=[JsonLog(tmp_path / "log.jsonl")],
    )
    trainer.train()
    line = log_of(tmp_path)[-1]
    assert {name: line[f"calls/{name}"] for name in ("capitals", "rivers", "kings")} == {
        "capitals": 0, "rivers": 1, "kings": 0,
    }  # fmt: skip
    assert (line["em"], line["well_formed"], line["turns"], line["unscorable"]) == (1, 1, 1, 0)
    # Ten prompt tokens and one of completion, at the price of the one that answered.
    assert line["cost_usd"] == pytest.approx(11 * 2e-6)
    assert line["groups_without_signal"] == 1
    assert {"seconds/rollout", "seconds/update", "seconds/sync", "reward/cost", "call_entropy"} <= line.keys()


def test_groups_have_ids_of_their_own_and_the_same_order_for_the_same_seed() -> None:
    groups = make_groups(TASKS, 12, seed=1)
    assert len({group.id for group in groups}) == 12
    assert groups == make_groups(TASKS, 12, seed=1) != make_groups(TASKS, 12, seed=2)
    assert {group.task.id for group in groups[:5]} == {group.task.id for group in groups[5:10]} == {t.id for t in TASKS}
    weights = [group.cost_weight for group in make_groups(TASKS, 100)]
    # Each once before any comes again.
    assert all(set(weights[start : start + 4]) == {0.0, 0.3, 0.6, 0.9} for start in range(0, 100, 4))
    with pytest.raises(ValueError, match=r"cost weights are \[1\.5\]"):
        make_groups(TASKS, 3, cost_weights=[1.5])


def test_evaluation_has_a_cost_scale_of_its_own_and_is_nothing_to_learn_from(tmp_path: Path) -> None:
    log = rollout_log(tmp_path)
    trainer = tiny_trainer(
        tmp_path,
        steps=1,
        eval_groups=make_groups(TASKS, 4, name="eval"),
        args={"per_device_eval_batch_size": 4, "num_generations_eval": 1},
        score=log.watching(planted),
        callbacks=[JsonLog(tmp_path / "log.jsonl"), log],
    )
    with trainer.one_loop():
        trainer.train()
        figures = trainer.evaluate()
    assert 0 <= figures["eval_reward"] <= 1
    assert len(trainer.scales["train"].state_dict()["roots"]) == 8
    assert len(trainer.scales["eval"].state_dict()["roots"]) == 4
    assert log_of(tmp_path)[-1]["eval_em"] == 0
    assert len(read_examples(log.path)) == 8, "rollouts of the evaluation are in the file"
    # Another loop would find the connections of this one, closed.
    with pytest.raises(RuntimeError, match="event loop is closed"):
        trainer.evaluate()


def test_rollouts_without_logprobs_are_refused(tmp_path: Path) -> None:
    """They would pass for tokens that the sampler was certain of."""
    trainer = tiny_trainer(tmp_path)
    [made] = asyncio.run(roll_out(trainer._router, pool(), [(TASKS[0], 0.3)]))
    require_logprobs(made)
    silent: list[float] = [math.nan if own else 0.0 for own in made.env_mask]
    with pytest.raises(ValueError, match="its engine must record them"):
        require_logprobs(replace(made, logprobs=silent))


def test_advantages_are_divided_by_the_spread_of_the_batch_and_the_sampler_is_corrected_for(tmp_path: Path) -> None:
    """What `settings` says of itself."""
    trainer = tiny_trainer(tmp_path)
    sample = trainer._sample

    async def shifted(groups: Any) -> list[Rollout]:
        """As if the sampler had been surer of the first rollout's tokens, and less sure of the second's."""
        one, other, *rest = await sample(groups)
        return [
            replace(one, logprobs=[logprob + math.log(1.25) for logprob in one.logprobs]),
            replace(other, logprobs=[logprob - math.log(8.0) for logprob in other.logprobs]),
            *rest,
        ]

    trainer._sample = shifted  # type: ignore[method-assign]
    inputs = received(trainer)
    earned = torch.tensor([wanted_share(rollout) for rollout in trainer.rollouts])
    centred = (earned.view(2, 4) - earned.view(2, 4).mean(1, keepdim=True)).flatten()
    assert torch.allclose(inputs["advantages"], centred / (earned.std() + 1e-4), atol=1e-4)
    mask = inputs["completion_mask"].bool() & inputs["tool_mask"].bool()
    ratio = inputs["importance_sampling_ratio"]
    assert torch.allclose(ratio[0][mask[0]], torch.tensor(0.8), atol=1e-3)
    assert torch.allclose(ratio[1][mask[1]], torch.tensor(2.0), atol=1e-3), "truncated at 2"
    assert torch.allclose(ratio[2:][mask[2:]], torch.tensor(1.0), atol=1e-3)


def test_progress_is_a_line_a_step_where_there_is_no_terminal(tmp_path: Path) -> None:
    shown = io.StringIO()
    tiny_trainer(tmp_path, steps=2, callbacks=[ProgressTable(Console(file=shown, width=80))]).train()
    assert [line.split("  ")[0] for line in shown.getvalue().splitlines()] == ["step 1/2", "step 2/2"]
    assert "calls: capitals 0%, kings 0%, rivers 0%" in shown.getvalue()
    drawn = io.StringIO()
    tiny_trainer(
        tmp_path, steps=2, callbacks=[ProgressTable(Console(file=drawn, width=200, force_terminal=True))]
    ).train()
    assert "no signal" in drawn.getvalue()


# Sync


def test_trainer_and_engine_agree_within_a_thousandth_before_and_after_a_sync(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, steps=3)
    trainer.sync_weights()
    assert trainer.sync.agreement is not None
    assert trainer.sync.agreement.most < 1e-3
    assert not trainer.sync.proven, "an adapter of zeros says what the base model says: nothing is proved yet"
    trainer.train()
    assert trainer.sync.proven
    trainer.sync.check()
    assert trainer.sync.agreement.most < 1e-3


def test_an_engine_that_samples_from_other_weights_is_found_out(tmp_path: Path) -> None:
    base = tiny_model()
    trainer = tiny_trainer(tmp_path)
    stir(trainer)
    trainer.sync.publish = lambda: setattr(trainer.sync.engine, "network", base)  # type: ignore[method-assign]
    with pytest.raises(SyncError, match="samples from the base model: the adapter was not loaded"):
        trainer.sync_weights()
    with torch.no_grad():
        base.lm_head.weight.normal_()
    with pytest.raises(SyncError, match="from neither the trainer's weights nor the base model's"):
        trainer.sync_weights()


@pytest.fixture
def lora_server() -> Iterator[Any]:
    """What of vLLM's interface has to do with adapters; `served` is what it serves, `said` what it was told."""

    class Handler(BaseHTTPRequestHandler):
        served: ClassVar[dict[str, str]] = {}
        said: ClassVar[list[tuple[str, str]]] = []
        url: ClassVar[str] = ""

        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": name, "root": name} for name in self.served]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            what, name = self.path.rpartition("/")[2], body["lora_name"]
            if (name in self.served) == (what == "load_lora_adapter"):
                self.reply(400, {"error": {"message": f"no such thing as {name}"}})
                return
            self.said.append((what, name))
            if what == "load_lora_adapter":
                assert Path(body["lora_path"], "adapter_model.safetensors").is_file()
                self.served[name] = body["lora_path"]
            else:
                del self.served[name]
            self.reply(200, {})

        def reply(self, status: int, payload: Any) -> None:
            data = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    Handler.served, Handler.said = {"smol": "", "router": ""}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    Handler.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_adapters_are_published_under_new_names_and_older_ones_are_unloaded(tmp_path: Path, lora_server: Any) -> None:
    trainer = tiny_trainer(tmp_path / "run")
    with VLLMEngine(lora_server.url, "smol", temperature=1.0, logprobs=True) as engine:

        def attached() -> VLLMSync:
            sync = VLLMSync(engine, tmp_path / "adapters", dtype=torch.float32)
            sync.attach(trainer.model, trainer.logprobs, [])
            return sync

        sync = attached()
        sync.publish()
        assert engine.model == "router-v1"
        sync.publish()
        assert engine.model == "router-v2"
        assert set(lora_server.served) == {"smol", "router", "router-v2"}
        assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["router-v2"]
        load, unload = "load_lora_adapter", "unload_lora_adapter"
        assert lora_server.said == [(load, "router-v1"), (load, "router-v2"), (unload, "router-v1")]

        # After a restart of both, the name is still a new one: its prefix cache would be the old one's.
        del lora_server.served["router-v2"]
        attached().publish()
        assert engine.model == "router-v3"
        state = (tmp_path / "adapters/router-v3/adapter_model.safetensors").stat().st_size
        assert state > 4 * sum(p.numel() for p in trainer.model.parameters() if p.requires_grad), "in float32"

        lora_server.served["router-v4"] = lora_server.served["router-v3"]
        sync.engine.served_models = lambda: ["smol"]  # type: ignore[method-assign]
        with pytest.raises(
            SyncError, match=r"load_lora_adapter failed: .*answered 400: no such thing.*router-v4.*lora_rank"
        ):
            sync.publish()


def test_a_sampler_that_repeats_itself_or_keeps_no_logprobs_is_refused(tmp_path: Path) -> None:
    for options in ({"logprobs": True, "seed": 1}, {"logprobs": False}):
        with (
            VLLMEngine("http://127.0.0.1:9/v1", "router", temperature=1.0, **options) as engine,  # type: ignore[arg-type]
            pytest.raises(ValueError, match="training takes logprobs=True, and seed=None"),
        ):
            VLLMSync(engine, tmp_path)


# Checkpoints

KILLED_AFTER = 4
STEPS = 6


def resumable(directory: Path, score: Any = planted) -> GraphGRPOTrainer:
    return tiny_trainer(
        directory,
        steps=STEPS,
        score=score,
        args={"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2},
        callbacks=[JsonLog(directory / "log.jsonl")],
    )


def run_until_killed(directory: str) -> None:
    """What the process that gets killed runs: it dies in the second step after its last checkpoint."""
    calls = 0

    def score(rollouts: Any, scale: CostScale) -> Any:
        nonlocal calls
        calls += 1
        if calls > KILLED_AFTER + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return planted(rollouts, scale)

    resumable(Path(directory), score).train()


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Same groups, same costs in the window, same losses as a run that nobody killed."""
    seen: dict[str, list[tuple[str, float]]] = {"whole": [], "resumed": []}

    def watching(name: str) -> Any:
        def score(rollouts: Any, scale: CostScale) -> Any:
            seen[name] += [(rollout.task.id, rollout.cost_weight) for rollout in rollouts]
            return planted(rollouts, scale)

        return score

    whole = resumable(tmp_path / "whole", watching("whole"))
    whole.train()

    broken = tmp_path / "broken"
    script = f"import test_grpo; test_grpo.run_until_killed({str(broken)!r})"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    killed = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [line["step"] for line in log_of(broken)] == [1, 2, 3, 4, 5]
    (broken / "checkpoint-5").mkdir()  # one that was cut off
    checkpoint = last_checkpoint(broken)
    assert checkpoint == broken / "checkpoint-4"

    resumed = resumable(broken, watching("resumed"))
    resumed.train(resume_from_checkpoint=checkpoint)
    assert seen["resumed"] == seen["whole"][8 * KILLED_AFTER :]
    assert resumed.scales["train"].state_dict() == whole.scales["train"].state_dict()
    expected, got = log_of(tmp_path / "whole"), log_of(broken)
    assert [line["step"] for line in got] == list(range(1, STEPS + 1))
    for name in ("loss", "reward", "grad_norm", "learning_rate"):
        assert [line[name] for line in got] == pytest.approx([line[name] for line in expected], abs=1e-4)
    assert same(resumed.model.state_dict(), whole.model.state_dict(), atol=1e-5)


def test_a_checkpoint_of_other_groups_is_refused(tmp_path: Path) -> None:
    resumable(tmp_path).train()
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    other = tiny_trainer(tmp_path, steps=STEPS, groups=make_groups(TASKS, 2 * STEPS, seed=4))
    with pytest.raises(ValueError, match="made with other groups, or in another order"):
        other.train(resume_from_checkpoint=checkpoint)
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(ValueError, match=f"no whole checkpoint: it has no {STATE_FILE}"):
        other.train(resume_from_checkpoint=checkpoint)


def test_a_run_from_an_adapter_with_a_reference_resumes_both(tmp_path: Path) -> None:
    """transformers alone would restore the reference, and go on training the adapter of the start."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, task_type="CAUSAL_LM", init_lora_weights=False)

    def again() -> GraphGRPOTrainer:
        torch.manual_seed(7)
        started = get_peft_model(tiny_model(), config)
        engine = TransformersEngine(
            started.get_base_model(), tokenizer=tokenizer_at(tmp_path / "tokenizer"), temperature=1.0, batch_size=8
        )
        args = {"save_strategy": "steps", "save_steps": 1, "beta": 0.1}
        return tiny_trainer(tmp_path, steps=2, model=started, engine=engine, peft_config=None, args=args)

    trained = again()
    start = {name: value.clone() for name, value in trained.model.state_dict().items()}
    trained.train()
    resumed = again()
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert same(resumed.model.state_dict(), trained.model.state_dict(), atol=0)
    moved = {name.split(".")[-2] for name, value in resumed.model.state_dict().items() if not value.equal(start[name])}
    assert moved == {"default"}


# Rejection sampling


def test_rollouts_that_earned_enough_become_examples_the_best_of_each_task() -> None:
    def rolled(task: Task, token: int, **fields: Any) -> Rollout:
        given: dict[str, Any] = {
            "task": task, "cost_weight": 0.0, "prompt_ids": [1, 2], "completion_ids": [token, 9], "env_mask": [1, 0],
            "logprobs": [-1.0, 0.0], "record": None, "format_ok": True,
        }  # fmt: skip
        return Rollout(**{**given, **fields})

    rollouts = [rolled(TASKS[0], 3), rolled(TASKS[0], 4), rolled(TASKS[1], 5), rolled(TASKS[1], 6, failed="down")]
    scored = [Reward(total, 0.0, 0.0, 0.0) for total in (0.6, 0.9, 0.5, None)]
    examples = best_examples(rollouts, scored, at_least=0.5, per_task=1)
    assert [example.token_ids for example in examples] == [[1, 2, 4, 9], [1, 2, 5, 9]]
    assert [example.mask for example in examples] == [[0, 0, 1, 0]] * 2
    assert len(best_examples(rollouts, scored, at_least=0.5)) == 3
    assert len(best_examples(rollouts, scored, at_least=0.7)) == 1
    with pytest.raises(ValueError, match="4 rollouts and 1 rewards"):
        best_examples(rollouts, scored[:1], at_least=0.5)


def test_what_a_run_wrote_down_can_be_learned_from_and_names_its_steps(tmp_path: Path) -> None:
    log = rollout_log(tmp_path)
    path = log.path
    earned = iter([0.1, 0.9, 0.4, 0.6, 0.2, 0.8, 0.3, 0.7] * 3)

    def score(rollouts: Any, scale: CostScale) -> list[Reward]:
        return [Reward(next(earned), 0.0, 0.0, 0.0) for _ in rollouts]

    trainer = tiny_trainer(tmp_path, steps=2, score=log.watching(score), callbacks=[log])
    trainer.train()
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in told] == [1] * 8 + [2] * 8
    assert all(row["wrote"] for row in told)
    records = [RunRecord.model_validate(row["record"]) for row in told]
    examples = read_examples(path)
    assert [example.token_ids for example in examples] == [token_ids(record.segments) for record in records]
    assert all(any(example.mask) for example in examples)
    broken_off = tmp_path / "broken_off.jsonl"
    broken_off.write_text(json.dumps({**told[0], "record": None}) + "\n" + json.dumps(told[1]) + "\n")
    assert read_examples(broken_off) == [examples[1]], "a rollout that broke off has nothing to learn from"
    best = read_examples(path, at_least=0.7, per_task=1)
    assert best == [examples[place] for place in (1, 5, 9, 13)]
    assert len(read_examples(path, per_task=1)) == 4, "the best of each task, whatever they earned"
    latest = trainer.rollouts[1]
    assert best[2].token_ids == [*latest.prompt_ids, *latest.completion_ids]
    assert best[2].mask == [0] * len(latest.prompt_ids) + latest.env_mask

    trainer.state.global_step = 1
    log.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert len(path.read_text().splitlines()) == 8, "steps that will be done again are taken back"


# On a real vLLM, in float32


@pytest.mark.vllm
# The base model is loaded from safetensors, whose own reader leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
# LangChain's clients keep connections that nobody closes.
@pytest.mark.filterwarnings("ignore:unclosed (transport|<socket):ResourceWarning")
@pytest.mark.usefixtures("collected")
def test_what_vllm_samples_is_the_trainers_policy_token_for_token(tmp_path: Path) -> None:
    """Rollouts with replies of real models in them, before and after a sync; and a wrong adapter is found out."""
    pytest.importorskip("vllm", reason="the [pocket] extra is not installed")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from langgraph_router_r1.engines.tokenizer import ChatTokenizer
    from langgraph_router_r1.pocket import ADAPTERS, MAX_ROUTER_TOKENS, pocket_registry, pocket_server
    from langgraph_router_r1.pocket.base_model import base_model_dir

    base = base_model_dir()
    tokenizer = ChatTokenizer.load(base)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(network, str(ADAPTERS / "router"), is_trainable=True)
    # What another model's own settings would do to what is sampled, if we let them.
    unwanted = ["--override-generation-config", '{"top_p": 0.5, "top_k": 3, "repetition_penalty": 3.0}']
    with (
        pocket_server(
            dtype="float32", lora_rank=8, extra_args=["--logprobs-mode", "processed_logprobs", *unwanted]
        ) as server,
        VLLMEngine(server.base_url, "smol", tokenizer=tokenizer, temperature=1.0, logprobs=True) as engine,
        contextlib.ExitStack() as stack,
    ):
        sync = VLLMSync(engine, tmp_path / "adapters", dtype=torch.float32)
        registry = pocket_registry(server.base_url)
        tasks = [task for task in load_tasks("pocket", split="train") if task.meta["hops"] == "two-hop"]
        trainer = tiny_trainer(
            tmp_path,
            engine=sync,
            model=model,
            registry=registry,
            groups=make_groups(tasks, 4, seed=0),
            router_settings={"max_tokens": MAX_ROUTER_TOKENS},
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=None,
        )

        runner = stack.enter_context(trainer.one_loop())

        def rolled_out_as_the_trainer_says() -> None:
            rollouts = runner.run(trainer._sample([trainer.groups[key] for key in trainer.order]))
            assert [rollout.failed for rollout in rollouts] == [None] * 4
            assert any(rollout.calls for rollout in rollouts)
            for rollout in rollouts:
                parts = zip(rollout.completion_ids, rollout.env_mask, rollout.logprobs, strict=True)
                said = trainer.logprobs(rollout.prompt_ids, rollout.completion_ids)
                apart = [abs(mine - its) for (_, own, its), mine in zip(parts, said, strict=True) if own]
                assert max(apart) < 1e-3
                inserted = [
                    token for token, own in zip(rollout.completion_ids, rollout.env_mask, strict=True) if not own
                ]
                told = tokenizer.decode(inserted)
                assert all(str(routed["response"]) in told for routed in rollout.calls if routed["status"] == "ok")

        trainer.sync_weights()
        assert engine.model == "router-v1"
        assert sync.proven
        rolled_out_as_the_trainer_says()
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        trainer.sync_weights()
        assert set(engine.served_models()) & {"router-v1", "router-v2"} == {"router-v2"}
        rolled_out_as_the_trainer_says()
        sync.check()
        assert sync.agreement is not None
        assert sync.agreement.most < 1e-3

        engine.model = "smol"
        with pytest.raises(SyncError, match="samples from the base model"):
            sync.check()
        # An adapter whose modules the model does not have: vLLM loads it, and serves the base model.
        save = sync._save

        def save_wrong(path: Path) -> None:
            from safetensors.torch import load_file, save_file

            save(path)
            file = path / "adapter_model.safetensors"
            save_file({name.replace("layers.", "strata."): value for name, value in load_file(file).items()}, file)

        sync._save = save_wrong  # type: ignore[method-assign]
        sync.proven = False
        with pytest.raises(SyncError):
            sync.sync_weights()
