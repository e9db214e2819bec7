"""GRPO from the command line: any router, pool and tasks. The same command goes on where it was stopped.

    python -m training.train runs/mine --pool pocket --start ADAPTER             # the pocket pool
    python -m training.train runs/mine --part decomposer --pool simulated ...    # one part of a planner
    python -m training.train runs/mine --pool pool.toml --tasks nq --tasks hotpotqa --model Qwen/Qwen2.5-3B-Instruct
    accelerate launch --num_processes 4 -m training.train runs/mine --url http://a:8000/v1 --url http://b:8000/v1 ...

Without `--url`, the server (with the pocket pool, when it is that) is started here and ends with the run. With several
addresses, each process samples from one of them, all turns of a trajectory from the same; each publishes its own copy
of the adapter there, so that processes need not wait for each other.
"""

from __future__ import annotations

import functools
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from accelerate import PartialState  # type: ignore[import-untyped]
from langgraph.cache.sqlite import SqliteCache
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from langgraph_router_r1.engines import TransformersEngine, VLLMEngine
from langgraph_router_r1.engines.base import RouterEngine
from langgraph_router_r1.engines.precision import fastest_dtype
from langgraph_router_r1.evaluation.extractor import adapter_version
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.evaluation.tasks import POCKET_SETS, Task, distinct, draw, load_tasks, read_tasks
from langgraph_router_r1.ledger import Price
from langgraph_router_r1.pocket import (
    ADAPTERS,
    BASE_NAME,
    DECOMPOSER_NAME,
    MAX_PLAN_TOKENS,
    MAX_ROUTER_TOKENS,
    PLANNER_ADAPTERS,
    pocket_registry,
)
from langgraph_router_r1.pocket.base_model import base_model_dir
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.serving.vllm import VLLMServer
from training.groups import make_groups
from training.grpo import GraphGRPOTrainer, last_checkpoint
from training.parts import ROUTER, Part, allocator, decomposer
from training.pools import Draw, draw_pool, redraw, simulated_pocket
from training.rewards import COST_WEIGHTS, Basis, Mode, Score, rewards
from training.rollout import Calls, share_calls
from training.settings import settings
from training.sft import LORA_TARGETS, save_adapter
from training.sync import InProcessSync, Sync, VLLMSync
from training.watch import JsonLog, ProgressTable, RolloutLog

POCKET = "pocket"

SIMULATED = "simulated"
"""The pocket pool with simulated models, which need no server: see pools.py."""

KNN = "knn"
"""The allocator that reads the pool's profile."""

FROZEN = "frozen"
"""How the name of the planner's other part begins in transcripts, and on a server."""

PartName = Literal["router", "decomposer", "allocator"]
"""What is trained: a router LLM, or one of a planner's two parts."""

RECORDED = ".jsonl"
"""How the name of a file with recorded answers or tasks ends."""


def train(
    output: Annotated[Path, typer.Argument(help="Directory of the run: checkpoints, log, adapters.")],
    pool: Annotated[
        str, typer.Option(help="'pocket', 'simulated', a registry file, or a .jsonl file of recorded answers.")
    ] = POCKET,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="A task set or a .jsonl file; may be given several times; by default those of the pool."),
    ] = None,
    part: Annotated[PartName, typer.Option(help="What is trained: a router, or one part of a planner.")] = "router",
    frozen: Annotated[
        str,
        typer.Option(
            help="The planner's other part, which stays as it is: 'knn' as allocator, the directory of an adapter, or "
            "the name of a model on the server. By default 'knn', and the decomposer that ships."
        ),
    ] = "",
    model: Annotated[str, typer.Option(help="Base model: directory or hub id; by default the pocket one.")] = "",
    start: Annotated[Path | None, typer.Option(help="Adapter to go on from; by default a new one.")] = None,
    rank: Annotated[int, typer.Option(help="Of a new adapter.")] = 8,
    url: Annotated[
        list[str] | None, typer.Option(help="A vLLM that serves the base model; at most one a process.")
    ] = None,
    in_process: Annotated[bool, typer.Option(help="Sample with transformers, without vLLM.")] = False,
    steps: int = 60,
    groups: Annotated[int, typer.Option(help="Questions a step.")] = 8,
    generations: Annotated[int, typer.Option(help="Rollouts a question.")] = 8,
    micro_batch: Annotated[
        int, typer.Option(help="Rollouts in one forward pass; those of one question share their prompt.")
    ] = 8,
    learning_rate: float = 2e-4,
    cost_weights: Annotated[str, typer.Option(help="Drawn for each question.")] = ",".join(map(str, COST_WEIGHTS)),
    mode: Annotated[Mode, typer.Option(help="How the reward's parts add up.")] = "paper",
    metric: Annotated[str, typer.Option(help="The outcome: em, f1, contains or number.")] = "em",
    basis: Annotated[Basis, typer.Option(help="What counts as cost.")] = "full",
    router_price: Annotated[float, typer.Option(help="Of the router's own tokens, $ per million.")] = 0.0,
    beta: Annotated[float, typer.Option(help="Weight of the KL divergence from the router it starts from.")] = 0.0,
    scale: Annotated[
        str,
        typer.Option(help="What divides advantages: the spread of rewards in the group, in the batch, or none."),
    ] = "batch",
    entropy: Annotated[float, typer.Option(help="Weight of the entropy bonus.")] = 0.0,
    ratio: Annotated[str, typer.Option(help="What corrects for the sampler; TRL's name.")] = "token_truncate",
    drawn: Annotated[
        float, typer.Option(help="Share of questions with a drawn pool: other order, names, words, members.")
    ] = 0.0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a turn, or of a plan; by default what the pocket's take.")
    ] = None,
    max_turns: Annotated[int, typer.Option(help="Most turns of a router that ask models.")] = 4,
    timeout: Annotated[
        float, typer.Option(help="Most seconds of a rollout; one that takes longer isn't scored.")
    ] = 120.0,
    calls_per_model: Annotated[int, typer.Option(help="Routed calls in flight to one model.")] = 16,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 5,
    tensorboard: bool = False,
    seed: int = 0,
) -> None:
    """Train a router; the same command resumes a run that was stopped."""
    state = PartialState(cpu=not torch.cuda.is_available())
    process, processes = state.process_index, state.num_processes
    passes, rest = divmod(groups * generations, micro_batch * processes)
    if rest:
        raise typer.BadParameter(
            f"{groups} questions of {generations} rollouts are no whole number of passes of {micro_batch} rollouts in "
            f"{processes} processes"
        )
    if len(url or []) > processes:
        raise typer.BadParameter(f"there are {len(url or [])} servers (--url) for {processes} processes: each uses one")
    plans = part != "router"
    frozen = _other_part(part, frozen, draws=bool(drawn))
    base = model or str(base_model_dir())
    output.mkdir(parents=True, exist_ok=True)
    calls = Calls()
    set_seed(seed)  # a new adapter begins with random numbers
    tokenizer = AutoTokenizer.from_pretrained(base)
    dtype = fastest_dtype(state.device.type)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    policy = _policy(network, start, rank)
    rank = policy.peft_config["default"].r
    adapters = {path.parent.name: path.parent for path in ADAPTERS.glob("*/adapter_config.json")}
    adapters = adapters if pool == POCKET else {}
    server = VLLMServer(base, served_name=BASE_NAME, adapters=adapters, lora_rank=rank, log_file=output / "vllm.log")
    with _address(server, url or [], state, needed=not in_process or pool == POCKET) as base_url:
        registry, own_tasks = _pool(pool, base_url, planning=plans)
        chosen = distinct(task for name in tasks or () for task in _tasks(name)) or own_tasks
        sync: Sync
        if in_process:
            network.to(state.device)  # the engine's random numbers are those of the device that it samples on
            # Processes that sample the same prompts are to sample different things.
            stream, size = seed * processes + process, groups * generations
            sync = InProcessSync(
                TransformersEngine(network, tokenizer=base, temperature=1.0, seed=stream, batch_size=size)
            )
        else:
            engine = VLLMEngine(base_url, BASE_NAME, tokenizer=base, temperature=1.0, logprobs=True)
            sync = VLLMSync(engine, output / "adapters" / str(process), name=f"router-p{process}")
        own: dict[str, object] = {"max_tokens": max_tokens or (MAX_PLAN_TOKENS if plans else MAX_ROUTER_TOKENS)}
        trained = ROUTER
        if plans:
            trained = _planner_part(part, _frozen(frozen, base, "" if in_process else base_url, state.device))
        else:
            own["max_turns"] = max_turns
        log = RolloutLog(output / "rollouts.jsonl", tokenizer)
        score: Score = functools.partial(rewards, mode=mode, metric=metric, basis=basis)
        trainer = GraphGRPOTrainer(
            policy,
            sync,
            registry,
            make_groups(chosen, steps * groups, cost_weights=[*map(float, cost_weights.split(","))], seed=seed),
            args=settings(
                output,
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=passes,
                num_generations=generations,
                learning_rate=learning_rate,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=3,
                beta=beta,
                scale_rewards=scale,
                entropy_coef=entropy,
                vllm_importance_sampling_mode=ratio,
                bf16=dtype == "bfloat16",
                save_steps=save_every,
                save_total_limit=2,
                report_to=["tensorboard"] if tensorboard else [],
                seed=seed,
            ),
            part=trained,
            router_settings={
                **own,
                "router_price": Price.parse(router_price),
                # A recorded reply belongs to a task, not to what was asked in words; and it costs nothing to ask again.
                "middleware": ()
                if pool.endswith(RECORDED)
                else share_calls(
                    registry,
                    SqliteCache(path=str(output / f"replies-{process}.sqlite")),
                    per_model=calls_per_model,
                    calls=calls,
                ),
            },
            score=score if process else log.watching(score),
            draw=draw_of(drawn, pool, planning=plans),
            in_flight=groups * generations,
            timeout_s=timeout,
            calls=None if pool.endswith(RECORDED) else calls,
            processing_class=tokenizer,
            callbacks=[JsonLog(output / "log.jsonl"), log, ProgressTable()],
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(output))
    # All of them: where weights are spread over processes, it takes all to put them together.
    adapter = output / "adapter" / (f"router-{process}" if process else "router")
    save_adapter(trainer.accelerator.unwrap_model(trainer.model), adapter)
    if process == 0:
        print(json.dumps({"adapter": str(adapter), "steps": trainer.state.global_step, "seed": seed}))
    state.destroy_process_group()  # its threads may abort a process that ends with them


@contextmanager
def _address(server: VLLMServer, urls: list[str], state: PartialState, *, needed: bool) -> Iterator[str]:
    """Give the address of the server for this process; start this one when there is none."""
    if urls or not needed:
        yield urls[state.process_index % len(urls)] if urls else ""
        return
    if state.num_processes > 1:
        raise typer.BadParameter("several processes need a server that is up already: give its address with --url")
    with server:
        yield server.base_url


def _policy(network: Any, start: Path | None, rank: int) -> Any:
    """Return the network with the adapter that is trained: one to go on from, or a new one of this rank."""
    # PEFT takes the adapter in float32: updates of this size would round to nothing in bfloat16. ZeRO-3 can't have two
    # types in one model (github.com/huggingface/trl/issues/6089); not run here.
    in_float32 = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") != "3"
    if start:
        return PeftModel.from_pretrained(network, str(start), is_trainable=True, autocast_adapter_dtype=in_float32)
    new = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(network, new, autocast_adapter_dtype=in_float32)


def _other_part(part: PartName, frozen: str, *, draws: bool) -> str:
    """Return which part of a planner stays as it is, "" for a router.

    Raises:
        typer.BadParameter: There is no such part here.
    """
    if part == "router":
        if frozen:
            raise typer.BadParameter(f"--frozen is {frozen!r}, but a router has no other part: give --part too")
        return ""
    frozen = frozen or (KNN if part == "decomposer" else str(PLANNER_ADAPTERS / DECOMPOSER_NAME))
    if frozen == KNN and (part == "allocator" or draws):
        why = "a drawn pool has no profile to read" if draws else "a decomposer writes plans"
        raise typer.BadParameter(f"--frozen is {KNN!r}, but {why}: give the directory of an adapter")
    return frozen


def _planner_part(part: PartName, other: RouterEngine | Literal["knn"]) -> Part:
    """Return the part of a planner that is trained, beside the one that stays as it is."""
    if part == "decomposer":
        return decomposer(other)
    assert not isinstance(other, str)  # `_other_part` refuses it
    return allocator(other)


def _frozen(frozen: str, base: str, base_url: str, device: torch.device) -> RouterEngine | Literal["knn"]:
    """Return the part of a planner that stays as it is, on the server if there is one.

    Raises:
        EngineError: The server can't load its adapter.
    """
    if frozen == KNN:
        return "knn"
    if not base_url:
        dtype = getattr(torch, fastest_dtype(device.type))
        network = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device)
        return TransformersEngine(network, model=FROZEN, tokenizer=base, adapter=frozen)
    adapter = Path(frozen).absolute()
    if not adapter.is_dir():
        return VLLMEngine(base_url, frozen, tokenizer=base)
    # Another adapter gets another name: vLLM keeps what it made of a prompt by that.
    engine = VLLMEngine(base_url, f"{FROZEN}-{adapter_version(adapter)}", tokenizer=base)
    if engine.model not in engine.served_models():
        engine.post("load_lora_adapter", {"lora_name": engine.model, "lora_path": str(adapter)})
    return engine


def _pool(pool: str, base_url: str, *, planning: bool) -> tuple[ModelRegistry, list[Task]]:
    """Return a pool, and the tasks that come with it; with `planning`, those of a planner."""
    if pool in {POCKET, SIMULATED}:
        sets = POCKET_SETS if planning else (POCKET,)
        tasks = [task for name in sets for task in load_tasks(name, split="train")]
        if pool == POCKET:
            return pocket_registry(base_url, planning=planning), tasks
        return simulated_pocket(planning=planning), tasks
    if pool.endswith(RECORDED):
        recorded = RecordedPool.from_file(pool)
        return recorded.registry(), draw(recorded.complete(), split="train")
    return ModelRegistry.from_file(pool), []


def _tasks(name: str) -> list[Task]:
    """Return the tasks to train on: never those of validation or test."""
    return draw(read_tasks(name), split="train") if name.endswith(RECORDED) else load_tasks(name, split="train")


def draw_of(share: float, pool: str, *, planning: bool = False) -> Draw | None:
    """Return what makes the pool of a group; None where all have the pool as it is.

    Simulated models are drawn at random; the descriptors of real ones are reworded; the pocket pool has half of each.
    """
    if not share:
        return None
    simulated = {POCKET: 0.5, SIMULATED: 1.0}.get(pool, 0.0)

    def draw(registry: ModelRegistry, choose: random.Random) -> ModelRegistry:
        if choose.random() >= share:
            return registry
        if choose.random() < simulated:
            return draw_pool(choose, comparing=planning).registry
        return redraw(registry, choose)

    return draw


if __name__ == "__main__":
    typer.run(train)
