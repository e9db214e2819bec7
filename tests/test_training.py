"""What training makes of transcripts: the same gradient for less work, and a teacher that routes as it should."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router, protocol
from langgraph_router_r1.evaluation.pools import RecordedPool
from langgraph_router_r1.pocket.world import SPECIALISTS, PocketQuestion, countries, questions
from langgraph_router_r1.testing import ByteTokenizer, ScriptedEngine

pytest.importorskip("torch")

import torch

from training import nq, sft
from training.logprobs import shared_start
from training.rewards import COST_WEIGHTS
from training.sft import Example, _SharedPromptTrainer, read_examples
from training.teacher import LESSONS_A_POOL, NOUNS, TOPICS, Lesson, Memory, drive, keep_batches, lessons


def test_computing_a_shared_prompt_once_changes_neither_loss_nor_gradient() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    prompt = torch.randint(3, 50, (1, 20)).expand(3, -1)
    ids = torch.cat([prompt, torch.randint(3, 50, (3, 9))], 1)
    labels = ids.clone()
    labels[:, :22] = -100
    mask = torch.ones_like(ids)
    labels[1, 26:], mask[1, 26:] = -100, 0
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
def everything() -> tuple[list[PocketQuestion], ModelRegistry, Memory]:
    """Questions, a pool that knows everything, and a memory that knows nothing."""
    known = {question.text: question.answer for question in questions(countries("train"))}

    def reply(messages: Any) -> AIMessage:
        return AIMessage(known[messages[-1].text.rpartition("\n\n")[2]])

    registry = ModelRegistry(
        ModelDescriptor(name=name, model=RunnableLambda(reply), price=0.1, description=f"{name} of countries.")
        for name in ("smol", *SPECIALISTS.values(), "generalist")
    )
    memory = {
        (country.iso, fact, relation): "Nowhere"
        for country in countries("train")
        for fact in (*NOUNS, "country")
        for relation in (None, *NOUNS)
    }
    return random.Random(0).sample(list(questions(countries("train"))), 300), registry, memory


@pytest.fixture(scope="module")
def taught(everything: Any) -> list[tuple[Lesson, dict[str, Any]]]:
    """A teacher's lessons, run over that pool."""
    chosen, registry, memory = everything
    found = []
    for lesson in lessons(chosen, registry, memory):

        def write(transcript: Any, lesson: Lesson = lesson) -> str:
            blocks = [segment["text"] for segment in transcript if segment["kind"] == "info"]
            return lesson.turn([block.strip()[len("<information> ") : -len(" </information>")] for block in blocks])

        result = create_router(ScriptedEngine(write), lesson.pool, cost_weight=lesson.cost_weight).invoke(
            {"messages": [("user", lesson.question)]}, output_keys=["answer", "transcript", "routing"]
        )
        found.append((lesson, result))
    return found


def test_every_lesson_is_well_formed_and_ends_in_the_answer_unless_memory_is_part_of_it(taught: Any) -> None:
    for lesson, result in taught:
        if lesson.answer is not None:
            assert result["answer"] == lesson.answer
            segments = [(segment["kind"], segment["text"]) for segment in result["transcript"]]
            assert protocol.check_format(segments, lesson.pool.aliases) is None


def test_lessons_show_every_move_and_lean_from_asking_to_memory_as_money_counts_more(taught: Any) -> None:
    openings = ("Asked for", "First the country", "One model", "I know the country", "I answer from memory")
    asking: dict[float, list[bool]] = {0.0: [], 0.3: [], 0.6: [], 0.9: []}
    seen = set()
    for lesson, _ in taught:
        turn = lesson.turn([])
        opening = next(o for o in openings if turn.startswith(f"<think> {o}"))
        seen.add(opening)
        asking[lesson.cost_weight].append(opening in openings[:3])
    shares = [sum(asked) / len(asked) for asked in asking.values()]
    assert seen == set(openings)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.85
    assert shares[-1] < 0.5


def test_first_lessons_always_ask_and_know_the_real_pool_only(everything: Any) -> None:
    chosen, registry, memory = everything
    for lesson in lessons(chosen[:40], registry, memory, course="asking"):
        assert lesson.pool is registry
        assert lesson.cost_weight == 0
        assert lesson.answer is not None
        assert lesson.turn([]).startswith(("<think> Asked for", "<think> First the country"))


def test_lessons_in_reading_ask_in_other_pools_and_say_what_stands_before_the_name(everything: Any) -> None:
    chosen, registry, memory = everything
    asking = [
        lesson
        for lesson in lessons(chosen[:80], registry, memory, course="reading")
        if lesson.pool is not registry and "<search>" in lesson.turn([])
    ]
    assert len(asking) > 30
    for lesson in asking:
        thought, _, search = lesson.turn([]).partition("</think>")
        name = search.partition("<search> ")[2].partition(":")[0]
        quoted = thought.rpartition(f": {name}.")[0].rpartition(". ")[2]
        assert quoted
        assert lesson.pool.by_alias(name).description.startswith(quoted)


def test_lessons_have_other_names_and_topics_that_only_a_descriptor_tells_of(taught: Any) -> None:
    pools = {lesson.block: lesson.pool for lesson, _ in taught}
    assert any("model-1" in pool.aliases for pool in pools.values())
    plain = [pool for pool in pools.values() if pool.aliases == ("smol", *SPECIALISTS.values(), "generalist")]
    assert 0.1 < len(plain) / len(pools) < 0.7
    of_topics = [
        (lesson, result)
        for lesson, result in taught
        if any(noun in lesson.question for noun, _ in TOPICS.values()) and result["routing"]["hops"]
    ]
    for lesson, result in of_topics:
        said = lesson.pool[result["routing"]["hops"][-1]["model"]].description
        [expected] = {text for noun, text in TOPICS.values() if noun in lesson.question}
        assert said == expected
    assert len(of_topics) > 20


def test_over_recorded_models_the_teacher_asks_as_the_lot_leans_and_never_about_a_test_task() -> None:
    replies = {"dear": "<answer>Lima</answer>", "cheap": "<answer> Quito </answer>"}
    said = {
        name: {"response": text, "completion_tokens": 4, "cost_usd": cost}
        for (name, text), cost in zip(replies.items(), (4e-6, 1e-6), strict=True)
    }
    # The cheap one is right on every other question.
    rows = [
        {
            "id": f"t{n}",
            "question": f"question {n}?",
            "golden_answers": ["Lima", "Quito"] if n % 2 else ["Lima"],
            "outcomes": said,
        }
        for n in range(800)
    ]
    recorded = RecordedPool.from_rows(rows)
    taught = nq.reading(recorded, recorded.registry(), seconds=5, most=10**6, seed=0)
    assert {recorded.tasks[str(lesson.task_id)].split for lesson in taught} == {"train"}
    asked: dict[float, list[str]] = {0.0: [], 0.3: [], 0.6: [], 0.9: []}
    for lesson in taught[:-5]:
        asked[lesson.cost_weight].append(lesson.turn([]).partition("<search> ")[2].partition(":")[0])
    shares = [of_models["dear"] for of_models in nq.leaning(recorded, recorded.registry(), nq.LEAN["reading"])]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9 > 0.1 > shares[-1]
    for models, share in zip(asked.values(), shares, strict=True):
        assert models.count("dear") / len(models) == pytest.approx(share, abs=0.1)
    # Only a reply that is wrong, tags or not, is called one; and who is asked then is right.
    for lesson in taught[-5:]:
        assert lesson.answer == "Lima"
        assert not int(str(lesson.task_id)[1:]) % 2
        assert "<search> cheap: " in lesson.turn([])
        assert "<search> dear: " in lesson.turn(["<answer> Quito </answer>"])
    runs = asyncio.run(drive(taught[-20:], ByteTokenizer()))
    assert all(run["right"] and len(run["token_ids"]) == len(run["mask"]) for run in runs)


def test_the_course_that_weighs_teaches_whom_to_ask_and_nothing_that_comes_after() -> None:
    replies = {"dear": "<answer>Lima</answer>", "cheap": "Quito"}
    rows = [
        {
            "id": f"t{n}",
            "question": f"question {n}?",
            "golden_answers": ["Lima"],
            "outcomes": {
                name: {"response": text, "completion_tokens": 4, "cost_usd": cost}
                for (name, text), cost in zip(replies.items(), (4e-6, 1e-6), strict=True)
            },
        }
        for n in range(40)
    ]
    recorded = RecordedPool.from_rows(rows)
    taught = nq.weighing(recorded, recorded.registry(), seed=0)
    assert len(taught) == len(COST_WEIGHTS) * len(recorded.of_split("train").tasks)
    assert {recorded.tasks[str(lesson.task_id)].split for lesson in taught} == {"train"}
    whole = asyncio.run(drive(taught, ByteTokenizer()))
    for lesson, run in zip(taught, map(nq.first_turn, whole), strict=True):
        learned = bytes(token for token, is_learned in zip(run["token_ids"], run["mask"], strict=True) if is_learned)
        assert run["right"]
        assert learned.decode().strip() == lesson.turn([])
        assert run["mask"][-1] == 1


def test_only_whole_batches_of_one_pool_are_kept_and_nothing_that_went_wrong(tmp_path: Path) -> None:
    runs = [
        {"token_ids": [block, number], "mask": [0, 1], "right": (block, number) != (0, 3), "block": block}
        for block, size in enumerate((LESSONS_A_POOL + 1, LESSONS_A_POOL - 1, LESSONS_A_POOL + 2))
        for number in range(size)
    ]
    kept = keep_batches(runs, tmp_path / "new" / "kept.jsonl", seed=0)
    assert (kept["transcripts"], kept["batches"], kept["wrong"]) == (2 * LESSONS_A_POOL, 2, 1)
    examples = read_examples(tmp_path / "new" / "kept.jsonl")
    for start in (0, LESSONS_A_POOL):
        assert len({example.token_ids[0] for example in examples[start : start + LESSONS_A_POOL]}) == 1
    assert [0, 3] not in [example.token_ids for example in examples]
