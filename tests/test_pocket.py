"""The pocket pool: its world, and the whole of it on a real vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from langgraph_router_r1 import create_router, protocol
from langgraph_router_r1.calls.client import build_chat_model
from langgraph_router_r1.engines import EngineError, VLLMEngine
from langgraph_router_r1.evaluation.metrics import exact_match
from langgraph_router_r1.pocket import (
    ADAPTERS,
    PLANNER_PROFILE_FILE,
    ROUTER_NAME,
    pocket_planner,
    pocket_registry,
    pocket_router,
    pocket_server,
)
from langgraph_router_r1.pocket.world import countries, joined_questions, questions, true_steps
from langgraph_router_r1.serving.vllm import ServerError, VLLMServer
from langgraph_router_r1.transcript import sampled_mask, token_ids

EVERYTHING = ["messages", "answer", "routing", "transcript"]


# The world


def test_every_question_has_one_answer_and_its_own_id() -> None:
    every = list(questions(countries()))
    assert len({question.text for question in every}) == len({question.id for question in every}) == len(every)
    assert Counter(question.hops for question in every) == {"one-hop": 2064, "reversed": 1032, "two-hop": 6192}


def test_countries_are_split_and_their_questions_with_them() -> None:
    splits = {split: {country.iso for country in countries(split)} for split in ("train", "validation", "test")}
    assert sum(len(isos) for isos in splits.values()) == len(countries()) == 172
    assert not splits["train"] & splits["test"]
    asked_in_training = {question.text for question in questions(countries("train"))}
    assert not asked_in_training & {question.text for question in questions(countries("test"))}


def test_facts_are_those_of_the_source() -> None:
    peru = next(country for country in countries() if country.iso == "PE")
    assert (peru.name, peru.capital, peru.currency, peru.dialling_code, peru.domain) == (
        "Peru",
        "Lima",
        "Sol",
        "+51",
        ".pe",
    )


def test_descriptors_carry_prices_and_measured_figures() -> None:
    registry = pocket_registry()
    assert [(model.name, model.price.prompt, model.price.completion) for model in registry] == [
        ("smol", 0.01, 0.01), ("capitals", 0.1, 0.1), ("currencies", 0.1, 0.1), ("dialling-codes", 0.1, 0.1),
        ("internet-domains", 0.1, 0.1), ("generalist", 1.0, 1.0),
    ]  # fmt: skip
    assert all(model.skills and model.latency_s for model in registry)


@pytest.mark.usefixtures("collected")
def test_the_planners_profile_gives_steps_about_countries_it_never_saw_to_their_specialists() -> None:
    pytest.importorskip("sklearn", reason="the [eval] extra is not installed")
    from langgraph_router_r1.strategies.knn import KNNStrategy

    every = [*questions(countries("test")), *joined_questions(countries("test"))]
    steps = dict(random.Random(0).sample(sorted({step for one in every for step in true_steps(one)}), 200))
    knn = KNNStrategy.from_profile(PLANNER_PROFILE_FILE, pocket_registry(planning=True))
    for weight, least in ((0.0, 0.8), (0.3, 0.95)):
        chosen = [ranking[0] for ranking in knn.rank_all(list(steps), cost_weight=weight)]
        right = sum(name == specialist for name, specialist in zip(chosen, steps.values(), strict=True))
        assert right >= least * len(steps)


# On a real vLLM


def test_a_router_of_ones_own_takes_the_place_of_the_shipped_one() -> None:
    pytest.importorskip("vllm", reason="the [pocket] extra is not installed")
    shipped = pocket_server().adapters
    served = pocket_server(named={ROUTER_NAME: "runs/mine/adapter/router"}).adapters
    assert served == {**shipped, ROUTER_NAME: "runs/mine/adapter/router"}


@pytest.mark.vllm
@pytest.mark.usefixtures("collected")
# The routed models' asynchronous clients are LangChain's, and it has no way to close them; ours is closed below.
@pytest.mark.filterwarnings("ignore:unclosed (transport|<socket):ResourceWarning")
async def test_the_router_answers_questions_about_countries_it_never_saw(pocket: Any) -> None:
    chosen = random.Random(1).sample(list(questions(countries("test"))), 40)
    gate = asyncio.Semaphore(20)

    async with VLLMEngine(pocket.base_url, ROUTER_NAME) as engine:
        router = create_router(engine, pocket_registry(pocket.base_url), max_tokens=256)

        async def run(text: str) -> Any:
            async with gate:
                return await router.ainvoke({"messages": [("user", text)]}, output_keys=EVERYTHING)

        results = await asyncio.gather(*(run(question.text) for question in chosen))
    right = [exact_match(result["answer"], [question.answer]) for result, question in zip(results, chosen, strict=True)]
    names = pocket_registry(pocket.base_url).names
    problems = [
        protocol.check_format([(s["kind"], s["text"]) for s in result["transcript"]], names) for result in results
    ]
    assert sum(right) >= 0.85 * len(chosen)
    assert sum(problem is None for problem in problems) >= 0.95 * len(chosen)
    assert all(result["routing"]["turns"] <= 4 for result in results)
    assert all(result["routing"]["cost_usd"] > 0 for result in results)


@pytest.mark.vllm
def test_two_hop_questions_take_two_routes_and_specialists_know_their_facts(pocket: Any) -> None:
    result = pocket_router(pocket.base_url).invoke(
        {"messages": [("user", "What currency is used in the country whose capital is Lima?")]}
    )
    assert [routed["model"] for routed in result["routing"]["calls"]] == ["capitals", "currencies"]
    assert result["answer"] == "Sol"


@pytest.mark.vllm
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore:unclosed (transport|<socket):ResourceWarning")
async def test_the_planner_answers_questions_about_countries_it_never_saw(pocket: Any) -> None:
    every = [*questions(countries("test")), *joined_questions(countries("test"))]
    chosen = random.Random(1).sample(every, 30)
    gate = asyncio.Semaphore(20)
    planner = pocket_planner(pocket.base_url)

    async def run(text: str) -> Any:
        async with gate:
            return await planner.ainvoke({"messages": [("user", text)]})

    results = await asyncio.gather(*(run(question.text) for question in chosen))
    both = list(zip(results, chosen, strict=True))
    right = [exact_match(result["answer"], list(question.answers)) for result, question in both]
    assert sum(right) >= 0.85 * len(chosen)
    # Both facts of a named country are asked for side by side.
    assert {result["routing"]["turns"] for result, one in both if one.also and not one.through} == {1}
    assert all(result["routing"]["cost_usd"] > 0 for result in results)


@pytest.mark.vllm
def test_tokens_of_a_real_run_align_and_the_prefix_cache_hits(pocket: Any) -> None:
    prompts: list[list[int]] = []

    class Watching(VLLMEngine):
        def generate(self, transcript: Any, **options: Any) -> Any:
            prompts.append(token_ids(transcript))
            return super().generate(transcript, **options)

    engine = Watching(pocket.base_url, ROUTER_NAME, logprobs=True)
    router = create_router(engine, pocket_registry(pocket.base_url), max_tokens=256)
    before = cache_hits(pocket.url)
    question = "Which dialling code reaches the country whose domain is .pe?"
    result = router.invoke({"messages": [("user", question)]}, output_keys=EVERYTHING)
    hits = cache_hits(pocket.url) - before
    transcript = result["transcript"]

    assert len(prompts) == 3
    sampled = [segment for segment in transcript if segment["kind"] == "policy"]
    for earlier, later, written in zip(prompts, prompts[1:], sampled, strict=False):
        assert later[: len(earlier) + len(written["token_ids"])] == earlier + written["token_ids"]
    assert len(token_ids(transcript)) == len(sampled_mask(transcript))
    assert all(len(segment["token_ids"]) == len(segment["logprobs"]) for segment in sampled)
    # Every whole block of 32 tokens of a turn's prompt is found again by the next turn.
    repeated = sum(len(prompt) // 32 * 32 for prompt in prompts[:-1])
    assert hits >= repeated
    assert result["routing"]["router_tokens"]["cached_tokens"] >= repeated
    engine.close()


def cache_hits(url: str) -> float:
    metrics = httpx.get(f"{url}/metrics").text
    return sum(float(value) for value in re.findall(r"^vllm:prefix_cache_hits_total\S* (\S+)$", metrics, re.MULTILINE))


@pytest.mark.vllm
def test_a_server_answers_nobody_without_its_key_and_loads_no_adapter_unless_asked_to(pocket: Any) -> None:
    assert httpx.get(f"{pocket.base_url}/models").status_code == 401
    assert httpx.get(f"{pocket.url}/health").status_code == 200
    with (
        VLLMEngine(pocket.base_url, ROUTER_NAME, api_key="wrong") as engine,
        pytest.raises(EngineError, match=r"refused the key \(401\): ROUTER_R1_API_KEY or api_key"),
    ):
        engine.served_models()
    with VLLMEngine(pocket.base_url, ROUTER_NAME) as engine:
        assert ROUTER_NAME in engine.served_models()
        with pytest.raises(EngineError, match="answered 404"):
            engine.post("load_lora_adapter", {"lora_name": "mine", "lora_path": str(ADAPTERS / ROUTER_NAME)})


# The command that starts a server


@pytest.mark.parametrize(
    ("served", "later", "slots", "rank"),
    [((), 16, "2", "16"), ((12,), 0, "2", "16"), ((12,), 8, "3", "16"), ((4, 4), 30, "4", "32")],
)
def test_a_server_makes_room_for_its_adapters_and_for_later_ones_and_for_no_more(
    tmp_path: Path, served: tuple[int, ...], later: int, slots: str, rank: str
) -> None:
    adapters = {f"adapter{n}": tmp_path / str(n) for n in range(len(served))}
    for directory, its_rank in zip(adapters.values(), served, strict=True):
        directory.mkdir()
        (directory / "adapter_config.json").write_text(json.dumps({"r": its_rank}))
    command = VLLMServer("base", adapters=adapters, lora_rank=later).command()
    assert "--enable-lora" in command
    assert command[command.index("--max-loras") + 1] == slots
    assert command[command.index("--max-lora-rank") + 1] == rank, "the smallest that vLLM has and that all fit in"


@pytest.mark.parametrize("text", ["{}", "[]", '{"r": "x"}', "no JSON", '{"r": null}'])
def test_an_adapter_without_a_rank_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ServerError, match="must be the configuration of a LoRA adapter, with its rank as 'r'"):
        VLLMServer("base", adapters={"mine": tmp_path}).command()


def test_a_pocket_server_of_adapters_that_are_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no directory of adapters"):
        pocket_server(adapters=(ADAPTERS, tmp_path / "nowhere"))


def test_a_server_that_is_never_started_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = VLLMServer("base")
    server.command()
    assert not list(tmp_path.iterdir())
    assert server.log_file == server.log_file
    assert [entry.name for entry in tmp_path.iterdir()] == [server.log_file.parent.name]
    assert VLLMServer("base", log_file="mine.log").log_file == Path("mine.log")


@pytest.mark.parametrize(
    ("processor", "dtype"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ({"architecture": "aarch64"}, "bfloat16"),
    ],
)
def test_a_server_computes_in_what_its_processor_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, Any], dtype: str
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: processor)

    def asked(**options: Any) -> str:
        command = VLLMServer("base", **options).command()
        return command[command.index("--dtype") + 1]

    assert asked(device="cpu") == dtype
    assert asked(device="cuda") == "bfloat16"
    assert asked(device="cpu", dtype="float16") == "float16"


def test_a_server_loads_adapters_while_it_runs_only_when_it_makes_room_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
    allows = [
        VLLMServer("base", adapters={"a": "a"}, lora_rank=rank).environment()["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]
        for rank in (0, 8)
    ]
    assert allows == ["False", "True"]


def test_servers_and_clients_of_a_process_share_a_random_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_R1_API_KEY", "")
    assert pocket_registry()["smol"].api_key_env is None
    servers = [VLLMServer("base"), VLLMServer("base")]
    [key] = {server.api_key for server in servers}
    assert len(key) >= 32
    assert servers[0].environment()["VLLM_API_KEY"] == key
    assert key not in " ".join([*servers[0].command(), repr(servers[0])]), "every user can list processes"
    registry = pocket_registry(servers[0].base_url)
    for model in registry:
        client = build_chat_model(model)
        assert client.openai_api_key.get_secret_value() == key  # type: ignore[attr-defined]
    assert key not in repr(list(registry))

    monkeypatch.setenv("ROUTER_R1_API_KEY", "")
    assert VLLMServer("base").api_key != key


def test_a_key_of_ones_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_R1_API_KEY", "sk-mine")
    assert VLLMServer("base").environment()["VLLM_API_KEY"] == "sk-mine"


def test_a_server_without_adapters_has_no_room_for_any() -> None:
    assert not [argument for argument in VLLMServer("base").command() if "lora" in argument]


# The guard that ends a server with its parent


def test_what_a_guard_started_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "command = ['sh', '-c', 'sleep 300 & echo $! $$; wait']\n"
        "guarded = [sys.executable, '-m', 'langgraph_router_r1.serving.guard', *command]\n"
        "process = subprocess.Popen(guarded, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n"
        "print(process.stdout.readline(), end='', flush=True)\n"
        "time.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it may end while it is looked at
        return False
