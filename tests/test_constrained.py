"""With `constrain="names"`, a turn can name only models that can be asked, while it is sampled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import answer, pool, search
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from test_engines import PlayedVLLM, completes

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, RouterPrompt, create_router
from langgraph_router_r1.engines import ChatModelEngine, Generation, VLLMEngine
from langgraph_router_r1.pocket import ROUTER_NAME, pocket_registry
from langgraph_router_r1.protocol import Constraint, Invalid, Relay, Route, name_constraints, parse
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

QUESTION = {"messages": [("user", "Capital of Peru?")]}
NAMES = ("small", "small-2", "Llama 3.1 70B", "a/b (new)", "x[1]+$^|{2}*?.\\", "Größe")


class Constrained(ScriptedEngine):
    """A scripted engine that notes its constraints."""

    def __init__(self, *turns: str) -> None:
        super().__init__(turns)
        self.constraints: list[Sequence[Constraint]] = []

    def generate(self, *arguments: Any, constraints: Sequence[Constraint] = (), **options: Any) -> Generation:
        self.constraints.append(constraints)
        return super().generate(*arguments, **options)


def allowed(constraint: Constraint, text: str) -> bool:
    """Whether all that follows the beginning of a constraint may do so."""
    return re.fullmatch(constraint.pattern + re.escape(constraint.end), text, re.ASCII) is not None


@given(st.data())
def test_what_is_allowed_in_a_search_asks_known_models(data: st.DataObject) -> None:
    [in_search] = name_constraints(NAMES)
    body = data.draw(st.from_regex(re.compile(in_search.pattern, re.ASCII), fullmatch=True))
    match parse(f"<search>{body}</search>", NAMES):
        case Route(calls):
            assert all(call.known for call in calls)
        case Invalid(reason):
            assert "is a placeholder" in reason or "is empty" in reason
        case action:
            pytest.fail(str(action))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_can_be_written_and_no_other(name: str) -> None:
    in_search, in_answer = name_constraints(NAMES, replies=2)
    assert allowed(in_search, f" {name}: Capital of Peru? </search>")
    assert allowed(in_search, f"{name}: Capital of Peru?\nsmall: And of Chile?</search>")
    assert not allowed(in_search, f" {name}x: Capital of Peru? </search>")
    assert not allowed(in_search, f" {name}: </search>")
    assert allowed(in_answer, f'{name}">')
    assert not allowed(in_answer, f'{name}x">')
    assert (allowed(in_answer, '2"/>'), allowed(in_answer, '3"/>')) == (True, False)
    assert parse('<answer from="2"/>', NAMES, replies=2) == Relay(2)


def test_the_router_is_held_to_the_models_that_its_budget_pays_for() -> None:
    registry = ModelRegistry(
        ModelDescriptor(name=name, model=ScriptedChatModel(["Lima"]), price=price, params={"max_tokens": 100})
        for name, price in {"small": 1.0, "large": 1000.0}.items()
    ).anonymized()
    for budget, names in ((None, ["large", "small"]), (0.01, ["small"])):
        aliases = {model.name: model.display_name for model in registry}
        engine = Constrained(search(f"{aliases['small']}: Capital of Peru?"), answer("Lima"))
        create_router(engine, registry, constrain="names", budget_usd=budget).invoke(QUESTION)
        expected = name_constraints([aliases[name] for name in aliases if name in names])
        assert engine.constraints == [expected, expected]


def test_a_model_that_rests_can_not_be_named() -> None:
    registry = ModelRegistry(
        ModelDescriptor(name=name, model=ScriptedChatModel([reply]), price=1.0, rest_after=1)
        for name, reply in {"small": ConnectionError("down"), "large": "Lima"}.items()
    )
    engine = Constrained(search("small: Capital of Peru?"), answer("Lima"))
    create_router(engine, registry, constrain="names").invoke(QUESTION)
    assert engine.constraints == [name_constraints(["small", "large"]), name_constraints(["large"])]


def test_with_complete_answers_it_is_held_to_the_replies_that_there_are() -> None:
    engine = Constrained(search("small: Capital of Peru?"), '<think> ok </think><answer from="1"/>')
    create_router(engine, pool(small="Lima"), constrain="names", answer="full").invoke(QUESTION)
    assert engine.constraints == [name_constraints(["small"], replies=number) for number in (0, 1)]


def test_without_it_and_once_no_model_can_be_asked_nothing_is_constrained() -> None:
    for settings in ({}, {"constrain": "names", "max_turns": 0}):
        engine = Constrained(answer("Lima"))
        create_router(engine, pool(small="Lima"), **settings).invoke(QUESTION)
        assert engine.constraints == [()]


def test_an_engine_that_can_not_be_constrained_is_refused() -> None:
    with pytest.raises(ValueError, match=r"constrain is 'names', and ChatModelEngine\(.*\) can't be constrained"):
        create_router(ChatModelEngine(ScriptedChatModel()), pool(small="Lima"), constrain="names", router_price="free")
    with pytest.raises(ValueError, match="constrain is 'grammar'; it must be 'names' or None"):
        create_router(Constrained(), pool(small="Lima"), constrain="grammar")


def test_a_constrained_turn_can_not_be_trained_on(tiny_tokenizer: Path) -> None:
    engine = VLLMEngine("http://127.0.0.1:9/v1", "router", tokenizer=tiny_tokenizer, logprobs=True)
    transcript = [engine.begin([{"role": "user", "content": "Hello?"}])]
    with engine, pytest.raises(ValueError, match="no log-probabilities of the policy"):
        engine.generate(transcript, stop=[], max_tokens=1, constraints=name_constraints(["small"]))


def test_the_server_is_sent_the_constraints_in_its_own_form(tiny_tokenizer: Path) -> None:
    """xgrammar, which vLLM asks what may come next, reads them and allows what they allow."""
    xgrammar = pytest.importorskip("xgrammar", reason="the [pocket] extra is not installed")
    with PlayedVLLM(completes) as played, VLLMEngine(played.url, "router", tokenizer=tiny_tokenizer) as engine:
        transcript = [engine.begin([{"role": "user", "content": "Hello?"}])]
        for constraints in ((), name_constraints(NAMES, replies=1)):
            engine.generate(transcript, stop=["</search>"], max_tokens=4, constraints=constraints)
        plain, constrained = played.bodies[-2:]
    assert "structured_outputs" not in plain
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo([chr(code) for code in range(32, 127)]))
    grammar = compiler.compile_structural_tag(constrained["structured_outputs"]["structural_tag"])
    texts = {
        **{f"<think> hm </think>\n<search> {name}: Capital? </search>": True for name in NAMES},
        **{f'<think> hm </think><answer from="{name}"> Capital? </answer>': True for name in NAMES},
        '<think> hm </think><answer from="1"/>': True,
        "<think> hm </think>\n<answer> Lima </answer>": True,
        "<search> big: Capital?": False,
        "<search> Capital?": False,
        '<answer from="2"': False,
        '<answer from="1"/>': True,
        '<answer from="1"/ >': False,
    }
    assert {text: xgrammar.GrammarMatcher(grammar).accept_string(text) for text in texts} == texts


@pytest.mark.vllm
def test_vllm_samples_no_name_but_those(pocket: Any) -> None:
    """The trained router would ask one of the models that its prompt tells of."""
    registry = pocket_registry(pocket.base_url)
    question = [HumanMessage("Which currency is used in the country whose capital is Lima?")]
    with VLLMEngine(pocket.base_url, ROUTER_NAME) as engine:
        chat = RouterPrompt().render(question, registry, cost_weight=0.0, max_turns=4, control_tokens=[])
        transcript, options = [engine.begin(chat)], {"stop": ["</search>"], "max_tokens": 128}
        free = engine.generate(transcript, **options).segment["text"]
        held = engine.generate(transcript, **options, constraints=name_constraints(["zebra", "quagga"])).segment["text"]
    assert isinstance(asked := parse(free, registry.aliases), Route)
    assert all(call.known for call in asked.calls)
    assert isinstance(asked := parse(held, ["zebra", "quagga"]), Route)
    assert all(call.known for call in asked.calls)
