"""What training makes of transcripts: the same gradient for less work, and a teacher that routes as it should."""

from __future__ import annotations

import asyncio
import math
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langgraph_router_r1 import create_router, protocol
from langgraph_router_r1.evaluation.recorded import RecordedPool
from langgraph_router_r1.pocket.world import countries, questions
from langgraph_router_r1.testing import ByteTokenizer, ScriptedEngine

pytest.importorskip("torch")

import torch

from training import nq, sft
from training.kinds import STRANGERS, WORLD
from training.logprobs import shared_start
from training.pools import draw_pool, worth
from training.sft import LORA_TARGETS, Example, _SharedPromptTrainer, read_examples, save_adapter
from training.teacher import (
    DEMONSTRATIONS_PER_POOL,
    Demonstration,
    collect_demonstrations,
    demonstrations,
    keep_batches,
)


@pytest.mark.parametrize("ends", [(29, 26, 29), (26, 29, 24, 28, 25, 27, 23, 29, 24), (27, 24, 26, 23, 25, 24)])
def test_computing_a_shared_prompt_once_changes_neither_loss_nor_gradient(ends: tuple[int, ...]) -> None:
    """Nor does it to take rows of about the same length together, or a batch that is padded further than its rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    prompt = torch.randint(3, 50, (1, 20)).expand(len(ends), -1)
    ids = torch.cat([prompt, torch.randint(3, 50, (len(ends), 9))], 1)
    labels = ids.clone()
    labels[:, :22] = -100
    mask = torch.ones_like(ids)
    for row, end in enumerate(ends):
        labels[row, end:], mask[row, end:] = -100, 0
    assert shared_start(ids, 22) == 20

    def gradient(loss: Any) -> dict[str, Any]:
        network.zero_grad()
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}

    causal_lm = SimpleNamespace(get_base_model=lambda: network)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(unwrap_model=lambda model: causal_lm))
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    ours = _SharedPromptTrainer.compute_loss(trainer, None, inputs)
    plain = network(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    expected, got = gradient(plain), gradient(ours)
    assert all(torch.allclose(got[name], expected[name], atol=1e-6) for name in expected)


@pytest.mark.parametrize(
    ("ids", "learned_from", "shared"),
    [
        ([[1, 2, 3, 4]], 2, 1),
        ([[1, 2, 3, 4], [1, 9, 3, 4]], 3, 1),
        ([[1, 2], [3, 2]], 1, 0),
        ([[1, 2]], 0, 0),
    ],
)
def test_the_shared_start_ends_before_anything_is_learned(ids: Any, learned_from: int, shared: int) -> None:
    assert shared_start(torch.tensor(ids), learned_from) == shared


def test_an_adapter_that_cannot_be_written_leaves_the_one_before_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model
    from test_grpo import tiny_model

    model = get_peft_model(tiny_model(), LoraConfig(r=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"))
    save_adapter(model, tmp_path / "adapter")
    before = {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}
    assert sorted(before) == ["adapter_config.json", "adapter_model.safetensors"]

    def cut_off(directory: Path, **_: Any) -> None:
        (directory / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(model, "save_pretrained", cut_off)
    with pytest.raises(OSError, match="no space left"):
        save_adapter(model, tmp_path / "adapter")
    assert {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()} == before


def test_an_example_whose_mask_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 token ids and 2 mask values"):
        Example([1, 2, 3], [0, 1])


def test_supervised_training_that_was_stopped_goes_on_and_begins_anew_with_other_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file
    from test_grpo import tiny_model, tokenizer_at

    base = tokenizer_at(tmp_path / "base")
    tiny_model().save_pretrained(base)
    examples = [Example([65, 66, 67 + n % 20, 90 - n % 20], [0, 0, 1, 1]) for n in range(20)]
    monkeypatch.setattr(sft, "SAVE_EVERY", 2)
    steps: list[int] = []
    compute_loss = _SharedPromptTrainer.compute_loss

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        steps.append(self.state.global_step)
        if steps[-1] == stop_at:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **options)

    monkeypatch.setattr(_SharedPromptTrainer, "compute_loss", counted)

    def train(name: str, examples: list[Example]) -> float:
        steps.clear()
        return sft.train_adapter(base, examples, tmp_path / name, epochs=1, learning_rate=1e-2, batch_size=2)

    stop_at = None
    loss = train("whole", examples)
    stop_at = 7
    for name in ("stopped", "other"):
        with pytest.raises(KeyboardInterrupt):
            train(name, examples)
    stop_at = None
    assert train("stopped", examples) == pytest.approx(loss, rel=1e-3)
    assert steps == [6, 7, 8, 9]
    whole, stopped = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.allclose(stopped[name].float(), value.float(), atol=1e-3) for name, value in whole.items())
    train("other", examples[:-2])
    assert steps == list(range(9))
    assert not list(tmp_path.glob("stopped.*")), "checkpoints go when the adapter is there"


@pytest.fixture(scope="module")
def taught() -> list[tuple[Demonstration, dict[str, Any]]]:
    """A teacher's demonstrations, run over their pools; memory knows every other country."""
    lands = countries("train")
    memory: dict[Any, str] = {}
    for place, land in enumerate(lands):
        for kind in WORLD:
            assert kind.relation
            memory[land.iso, kind.relation, None] = "Nowhere" if place % 2 else kind.fact(land)
            memory[land.iso, "country", kind.relation] = "Nowhere" if place % 2 else land.name
    found = []
    for demo in demonstrations(list(questions(lands)), memory, blocks=40, seed=1):

        def write(transcript: Any, demo: Demonstration = demo) -> str:
            blocks = [segment["text"] for segment in transcript if segment["kind"] == "observation"]
            return demo.turn([block.strip()[len("<information> ") : -len(" </information>")] for block in blocks])

        result = create_router(ScriptedEngine(write), demo.pool, cost_weight=demo.cost_weight).invoke(
            {"messages": [("user", demo.question)]}, output_keys=["answer", "transcript", "routing"]
        )
        found.append((demo, result))
    return found


def test_every_lesson_is_well_formed_and_nearly_all_end_in_the_answer_unless_memory_is_part_of_it(taught: Any) -> None:
    right = []
    for demo, result in taught:
        segments = [(segment["kind"], segment["text"]) for segment in result["transcript"]]
        assert protocol.check_format(segments, demo.pool.aliases) is None
        if demo.answer is not None:
            right.append(result["answer"] == demo.answer)
    assert 0.75 < sum(right) / len(right) < 1  # simulated models are wrong as often as they say


def test_demonstrations_always_ask_at_cost_weight_0_and_ask_less_the_more_cost_counts(taught: Any) -> None:
    asking: dict[float, list[bool]] = {0.0: [], 0.3: [], 0.6: [], 0.9: []}
    for demo, result in taught:
        asking[demo.cost_weight].append(bool(result["routing"]["calls"]))
    shares = [sum(asked) / len(asked) for asked in asking.values()]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] < shares[1] < 1


RANKED = re.compile(
    r"\. Most accurate: (?P<accuracy>[^,]+), (?P<accurate>\S+)\. Cheapest: \$(?P<price>[\d.]+), (?P<cheapest>\S+)$"
)


def test_a_thought_names_the_skill_compares_the_candidates_by_what_is_said_of_them_and_names_one(taught: Any) -> None:
    compared = ranked = apart = 0
    for demo, _ in taught:
        thought, _, search = demo.turn([]).partition("</think>")
        if "<search>" not in search:
            continue
        needed, _, rest = thought.partition("Needed: ")[2].partition(". ")
        assert needed
        candidates, _, best = rest.strip().removesuffix(".").rpartition(". Best: ")
        assert best == search.partition("<search> ")[2].partition(":")[0]
        names, prices, told = [], [], []
        ranking = RANKED.search(candidates)
        for candidate in RANKED.sub("", candidates).split("; "):
            said, _, name = candidate.rpartition(": ")
            line = demo.pool.by_alias(name).describe()
            of_skill, price = said.split(", ")
            assert price in line
            if of_skill.endswith(" only") or of_skill == "anything":  # no accuracy is told
                assert f"{of_skill.removesuffix(' only')} " not in line.partition("Accuracy: ")[2]
                told.append(math.nan)
            else:  # nothing that the descriptor does not say
                assert of_skill in line
                told.append(float(of_skill.rpartition(" ")[2]))
            names.append(name)
            prices.append(demo.pool.by_alias(name).price.prompt)
        assert best in names
        compared += len(names) > 1
        if ranking is not None:
            accurate, cheapest = names.index(ranking["accurate"]), names.index(ranking["cheapest"])
            assert prices[cheapest] == min(prices) < prices[accurate]
            assert demo.cost_weight > 0 or best == ranking["accurate"]
            assert float(ranking["price"]) == min(prices)
            if not math.isnan(told[accurate]):
                assert float(ranking["accuracy"]) == told[accurate]
                apart += 1
            ranked += 1
    assert compared > 100
    assert ranked > 50
    assert apart > 25


def test_the_cheaper_of_two_specialists_is_asked_more_often_the_more_cost_counts() -> None:
    asked: dict[float, list[bool]] = {0.0: [], 0.3: [], 0.6: [], 0.9: []}
    for seed in range(100):
        pool = draw_pool(random.Random(seed), plain=0.0)
        for kind in sorted(pool.contested()):
            among = pool.candidates(kind)
            cheapest = min(among, key=lambda member: member.descriptor.price.prompt)
            for weight, cheaper in asked.items():
                chosen = max(among, key=lambda member: worth(member, kind, weight, among))
                cheaper.append(chosen is cheapest)
    shares = [sum(cheaper) / len(cheaper) for cheaper in asked.values()]
    assert shares[0] < shares[1] < shares[2] < shares[3]
    assert shares[3] > 0.6 > 0.4 > shares[0]


def test_who_is_asked_follows_from_the_descriptors(taught: Any) -> None:
    """No model is asked for a kind when another one that costs no more is said to be better at it."""
    checked = 0
    for demo, result in taught:
        for routed in result["routing"]["calls"]:
            chosen = demo.pool[routed["model"]]
            if len(chosen.skills) != 1:
                continue
            [(skill, value)] = chosen.skills.items()
            for other in demo.pool:
                if other.price.prompt <= chosen.price.prompt and other.skills.get(skill, 0) > value:
                    pytest.fail(f"{other.describe()} is better than {chosen.describe()}")
            checked += 1
    assert checked > 50


def test_demonstrations_know_pools_in_which_nobody_speaks_of_what_is_asked_for(taught: Any) -> None:
    names = {kind.noun for kind in STRANGERS}
    asked = [(demo, result) for demo, result in taught if any(noun in demo.question for noun in names)]
    assert len(asked) > 20
    by_others = [
        demo.pool[result["routing"]["calls"][-1]["model"]]
        for demo, result in asked
        if not any(noun in str(demo.pool.describe()) for noun in names if noun in demo.question)
    ]
    assert all(len(model.skills) != 1 for model in by_others)


def recorded_pair(count: int) -> RecordedPool:
    """Return answers of two models: the dear one is right, the cheap one only on every other task."""

    def row(number: int) -> dict[str, Any]:
        replies = {"dear": "<answer>Lima</answer>", "cheap": "<answer> Quito </answer>" if number % 2 else "I pass."}
        said = {
            name: {"response": text, "completion_tokens": 4, "cost_usd": cost}
            for (name, text), cost in zip(replies.items(), (4e-6, 1e-6), strict=True)
        }
        return {
            "id": f"t{number}",
            "question": f"question {number}?",
            "golden_answers": ["Lima", "Quito"],
            "outcomes": said,
        }

    return RecordedPool.from_rows([row(number) for number in range(count)])


def test_over_recorded_models_the_teacher_asks_who_is_worth_most_by_what_each_form_says() -> None:
    recorded = recorded_pair(80)
    taught = list(nq.demonstrations(recorded, recorded.registry(), rounds=4, seed=0))
    assert {recorded.tasks[str(demo.task_id)].split for demo in taught} == {"train"}
    assert len({demo.pool.describe() for demo in taught}) == len(taught) // DEMONSTRATIONS_PER_POOL
    asked = []
    for demo in taught:
        best = demo.pool.by_alias(demo.turn([]).partition("<search> ")[2].partition(":")[0])
        most_expensive = max(model.price.completion for model in demo.pool)
        worth = {
            model.name: sum(model.skills.values()) * (1 - demo.cost_weight * model.price.completion / most_expensive)
            for model in demo.pool
        }
        assert worth[best.name] == max(worth.values())
        asked.append((demo.cost_weight, best.name))
    assert {name for weight, name in asked if weight == 0} == {"dear"}  # always right, and told to be
    assert {name for _, name in asked} == {"dear", "cheap"}


def test_a_run_teaches_to_read_the_reply_or_ends_with_the_first_turn_where_there_is_nothing_to_read() -> None:
    recorded = recorded_pair(80)
    taught = list(nq.demonstrations(recorded, recorded.registry(), rounds=4, seed=0))
    runs = asyncio.run(collect_demonstrations(taught, ByteTokenizer()))
    seen = set()
    for demo, run in zip(taught, runs, strict=True):
        assert run["right"]
        kept = run if demo.answer else nq.first_turn(run)
        learned = [token for token, is_learned in zip(kept["token_ids"], kept["mask"], strict=True) if is_learned]
        first = demo.turn([]).strip()
        text = bytes(learned).decode()
        assert text.startswith(first)
        assert text.removeprefix(first).strip() == (demo.turn(["reply"]).strip() if demo.answer else "")
        seen.add(demo.answer)
    assert seen == {"Lima", "Quito", None}


def test_only_whole_batches_of_one_pool_are_kept_and_nothing_that_went_wrong(tmp_path: Path) -> None:
    runs = [
        {"token_ids": [block, number], "mask": [0, 1], "right": (block, number) != (0, 3), "block": block}
        for block, size in enumerate(
            (DEMONSTRATIONS_PER_POOL + 1, DEMONSTRATIONS_PER_POOL - 1, DEMONSTRATIONS_PER_POOL + 2)
        )
        for number in range(size)
    ]
    kept = keep_batches(runs, tmp_path / "new" / "kept.jsonl", seed=0)
    assert (kept["transcripts"], kept["batches"], kept["wrong"]) == (2 * DEMONSTRATIONS_PER_POOL, 2, 1)
    examples = read_examples(tmp_path / "new" / "kept.jsonl")
    for start in (0, DEMONSTRATIONS_PER_POOL):
        assert len({example.token_ids[0] for example in examples[start : start + DEMONSTRATIONS_PER_POOL]}) == 1
    assert [0, 3] not in [example.token_ids for example in examples]
