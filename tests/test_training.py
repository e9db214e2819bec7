"""What training makes of transcripts: the same gradient for less work, and a teacher that routes as it should."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import pool

from langgraph_router_r1 import create_router, protocol
from langgraph_router_r1.pocket.world import SPECIALISTS, countries, questions
from langgraph_router_r1.testing import ScriptedEngine

torch = pytest.importorskip("torch")

from training.pocket import teach  # noqa: E402
from training.sft import Example, _SharedPromptTrainer, shared_start  # noqa: E402


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
    assert shared_start(ids, labels) == 20

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
    ("ids", "labels", "shared"),
    [
        ([[1, 2, 3, 4]], [[-100, -100, 3, 4]], 1),
        ([[1, 2, 3, 4], [1, 9, 3, 4]], [[-100, -100, -100, 4]] * 2, 1),
        ([[1, 2], [3, 2]], [[-100, 2], [-100, 2]], 0),
        ([[1, 2]], [[1, 2]], 0),
    ],
)
def test_the_shared_start_ends_before_anything_is_learned(ids: Any, labels: Any, shared: int) -> None:
    assert shared_start(torch.tensor(ids), torch.tensor(labels)) == shared


def test_an_example_whose_mask_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 token ids and 2 mask values"):
        Example([1, 2, 3], [0, 1])


def test_the_teacher_asks_specialists_only_and_takes_two_routes_for_two_hops() -> None:
    names = list(SPECIALISTS.values())
    registry = pool(**{name.replace("-", "_"): "Peru" for name in names})
    for question in random.Random(0).sample(list(questions(countries("train"))), 60):

        def write(transcript: Any, question: Any = question) -> str:
            replies = ["Peru" for segment in transcript if segment["kind"] == "info"]
            return teach(question, replies, random.Random(0))

        result = create_router(ScriptedEngine(write), registry).invoke(
            {"messages": [("user", question.text)]}, output_keys=["transcript", "routing"]
        )
        hops = result["routing"]["hops"]
        assert [hop["model"] for hop in hops][-1:] == [SPECIALISTS[question.relation]]
        assert len(hops) == (2 if question.hops == "two-hop" else 1)
        segments = [(segment["kind"], segment["text"]) for segment in result["transcript"]]
        assert protocol.check_format(segments, names) is None
