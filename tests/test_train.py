"""Training from the command line, and in several processes: what GPUs would run, with a model of two layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="the [train] extra is not installed")

import torch
from accelerate import PartialState
from safetensors.torch import load_file
from test_grpo import log_of, tiny_model, tiny_trainer, tokenizer_at, wanted_share

from training.watch import JsonLog

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **environment: str) -> str:
    """Run a command with the tests importable; fail with what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
            "PYTHON": sys.executable,
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def train_as_one_of_several(directory: str) -> None:
    """What each process runs; it leaves what it sampled and the weights that it ends with."""
    process = PartialState(cpu=True).process_index
    trainer = tiny_trainer(
        Path(directory, str(process)),
        steps=2,
        args={"per_device_train_batch_size": 4, "seed": 0},
        callbacks=[JsonLog(Path(directory, "log.jsonl"))],
    )
    own: list[Any] = []
    sample = trainer._sample

    async def keeping(groups: Any) -> Any:
        rollouts = await sample(groups)
        own.extend(rollout.completion_ids for rollout in rollouts)
        wanted.extend(map(wanted_share, rollouts))
        assert len(rollouts) == 4
        return rollouts

    trainer._sample = keeping  # type: ignore[method-assign]
    wanted: list[float] = []
    earned: list[float] = []
    reward = trainer.reward_funcs[0]

    def noting(*, total: list[float], **options: Any) -> Any:
        earned.extend(total)
        return reward(total=total, **options)

    trainer.reward_funcs[0] = noting
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.train()
    weights = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    moved = max(float((one - other).abs().max()) for one, other in zip(weights, before, strict=True))
    torch.save([weight.detach() for weight in weights], Path(directory, f"weights-{process}.pt"))
    told = {"own": own, "gathered": len(trainer.rollouts), "moved": moved, "wanted": wanted, "earned": earned}
    Path(directory, f"told-{process}.json").write_text(json.dumps(told))


def test_two_processes_make_rollouts_of_their_own_and_end_with_the_same_weights(tmp_path: Path) -> None:
    tokenizer_at(tmp_path / "tokenizer")
    script = f"import test_train; test_train.train_as_one_of_several({str(tmp_path)!r})"
    # What `accelerate launch` starts for GPUs; for CPUs it would want MPI.
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python")
    run(*launch, sys.executable, "-c", script)
    told = [json.loads((tmp_path / f"told-{process}.json").read_text()) for process in (0, 1)]
    weights = [torch.load(tmp_path / f"weights-{process}.pt") for process in (0, 1)]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    assert told[0]["own"] != told[1]["own"]
    for one in told:
        assert one["earned"] == one["wanted"], "rewards are those of another process"
    assert [one["gathered"] for one in told] == [8, 8]
    assert told[0]["moved"] > 0
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2]


def test_the_script_of_the_papers_setting_trains_a_tiny_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tokenizer_at(model)
    tiny_model().save_pretrained(model)
    tasks = tmp_path / "tasks.jsonl"
    rows = (
        {"id": f"t{n}", "question": f"question {n}?", "golden_answers": ["x"], "dataset": "mine"} for n in range(99)
    )
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = tmp_path / "pool.toml"
    pool.write_text('[models.small]\nmodel = "openai:none"\nbase_url = "http://127.0.0.1:9/v1"\nprice = 0.1\n')
    said = run(
        ROOT / "training/recipes/qwen2.5-3b/train.sh",
        *("--in-process", "--groups", "2", "--generations", "2", "--micro-batch", "4", "--max-tokens", "8"),
        LAUNCH="--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no",
        OUTPUT=str(tmp_path / "run"),
        MODEL=str(model),
        TASKS=str(tasks),
        POOL=str(pool),
        STEPS="2",
        OPENAI_API_KEY="none",
    )
    assert json.loads(said.splitlines()[-1])["steps"] == 2
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2]
    weights = load_file(tmp_path / "run/adapter/router/adapter_model.safetensors")
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name), "a new adapter says nothing"
    told = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert len(told) == 2 * 4
    assert {rollout["cost_weight"] for rollout in told} <= {0, 0.3, 0.6, 0.9}
    assert all(rollout["record"]["question"].startswith("question") for rollout in told)
    assert all(rollout["reward"] is not None for rollout in told)
