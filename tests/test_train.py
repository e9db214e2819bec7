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
import typer
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from provider import Provider
from safetensors.torch import load_file
from test_grpo import log_of, tiny_model, tiny_trainer, tokenizer_at, wanted_share

from training.sft import LORA_TARGETS, save_adapter
from training.train import train
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
    state = PartialState(cpu=True)
    process = state.process_index
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
    state.destroy_process_group()  # as training.train does: its threads may abort a process that ends with them


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


def written_setting(directory: Path, provider: str = "http://127.0.0.1:9/v1") -> dict[str, str]:
    """Write a tiny base model, tasks, and a pool at this provider; return what tells the scripts of them."""
    model = directory / "model"
    tokenizer_at(model)
    tiny_model().save_pretrained(model)
    tasks = directory / "tasks.jsonl"
    rows = (
        {"id": f"t{n}", "question": f"question {n}?", "golden_answers": ["x"], "dataset": "mine"} for n in range(99)
    )
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = directory / "pool.toml"
    pool.write_text(f'[models.small]\nmodel = "openai:none"\nbase_url = "{provider}"\nprice = 0.1\n')
    return {
        "LAUNCH": "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no",
        "OUTPUT": str(directory / "run"),
        "MODEL": str(model),
        "TASKS": str(tasks),
        "POOL": str(pool),
        "STEPS": "2",
        "OPENAI_API_KEY": "none",
    }


TINY = ("--in-process", "--groups", "2", "--generations", "2", "--micro-batch", "4", "--max-tokens", "8")


def has_learned(adapter: Path) -> bool:
    weights = load_file(adapter / "adapter_model.safetensors")
    return any(weight.any() for name, weight in weights.items() if "lora_B" in name)


def test_the_script_of_the_papers_setting_trains_a_tiny_model(tmp_path: Path) -> None:
    said = run(ROOT / "training/recipes/qwen2.5-3b/train.sh", *TINY, **written_setting(tmp_path))
    assert json.loads(said.splitlines()[-1])["steps"] == 2
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2]
    assert has_learned(tmp_path / "run/adapter/router"), "a new adapter says nothing"
    told = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert len(told) == 2 * 4
    assert {rollout["cost_weight"] for rollout in told} <= {0, 0.3, 0.6, 0.9}
    assert all(rollout["record"]["question"].startswith("question") for rollout in told)
    assert all(rollout["reward"] is not None for rollout in told)


def test_the_script_of_the_planners_setting_trains_both_parts_each_beside_the_other(tmp_path: Path) -> None:
    start = get_peft_model(tiny_model(), LoraConfig(r=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"))
    save_adapter(start, tmp_path / "start")
    with Provider() as provider:
        said = run(
            ROOT / "training/recipes/r2/qwen2.5-7b_gpu.sh",
            *TINY,
            **written_setting(tmp_path, provider.base_url),
            DECOMPOSER=str(tmp_path / "start"),
            ALLOCATOR=str(tmp_path / "start"),
            ROUNDS="1",
        )
    ended = [json.loads(line) for line in said.splitlines() if line.startswith('{"adapter"')]
    assert [one["steps"] for one in ended] == [2, 2]
    for part, other in (("decomposer", "allocator"), ("allocator", "decomposer")):
        of_part = tmp_path / "run/round1" / part
        assert has_learned(of_part / "adapter/router")
        told = [json.loads(line) for line in (of_part / "rollouts.jsonl").read_text().splitlines()]
        wrote = {segment.get("policy") for rollout in told for segment in rollout["record"]["segments"]} - {None}
        assert wrote == {"router", "frozen"}, f"the {part} is trained, the {other} is frozen"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"frozen": "knn"}, "a router has no other part"),
        ({"part": "allocator", "frozen": "knn"}, "a decomposer writes plans"),
        ({"part": "decomposer", "drawn": 0.5}, "a drawn pool has no profile"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_before_anything_is_loaded(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(typer.BadParameter, match=problem):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
