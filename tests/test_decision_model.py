"""The router as a decision model: LangChain's middleware lets it choose the model of an agent."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import answer, pool, search
from langchain.agents import create_agent
from langchain.agents.middleware import ModelChoice, ModelRouterMiddleware
from langchain_core.decisions import Choice, Noul
from langchain_core.messages import AIMessage, HumanMessage

from langgraph_router_r1 import ModelDescriptor, ModelRegistry
from langgraph_router_r1.decision_model import RouterDecisionModel
from langgraph_router_r1.strategies import AskInOrder, RouterLLM
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine


def registry() -> ModelRegistry:
    prices = {"small": 1.0, "large": 9.0, "tiny": 0.1}
    return ModelRegistry(
        ModelDescriptor(name=name, model=ScriptedChatModel([f"from {name}"]), price=price, description=f"It is {name}.")
        for name, price in prices.items()
    )


def choice(*names: str) -> Choice:
    return Choice(instructions="Which model?", criteria=dict.fromkeys(names))


def choose(decides: RouterDecisionModel, state: Any, question: Any) -> Any:
    return decides.invoke({"state": state, "questions": {"model": question}})


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_model_that_the_router_asks_first_is_chosen(is_async: bool) -> None:
    engine = ScriptedEngine([search("Large: Capital of Peru?", "small: And of Chile?")])
    decides = RouterDecisionModel(strategy=RouterLLM(engine), registry=registry())
    request: Any = {"state": "Capital of Peru?", "questions": {"model": choice("small", "large")}}
    response = await decides.ainvoke(request) if is_async else decides.invoke(request)
    chosen = response.choices["model"]
    assert (chosen.choice, chosen.confidence, chosen.probabilities) == ("large", 1.0, {"small": 0.0, "large": 1.0})
    assert response.usage["input_tokens"] == len(engine.prompts[0])
    prompt = bytes(engine.prompts[0]).decode()
    assert "It is large." in prompt
    assert "It is tiny." not in prompt, "the choice does not name it"


def test_a_turn_that_can_not_be_read_is_corrected_and_one_that_asks_nobody_takes_the_cheapest() -> None:
    engine = ScriptedEngine(["Hm.", search("small: Capital of Peru?"), answer("Lima"), *["Hm."] * 4])
    decides = RouterDecisionModel(strategy=RouterLLM(engine), registry=registry())
    chosen = [choose(decides, "Capital?", choice("large", "small")).choices["model"] for _ in range(3)]
    assert [(one.choice, one.confidence) for one in chosen] == [("small", 1.0), ("small", 0.0), ("small", 0.0)]
    assert "That turn could not be read" in bytes(engine.prompts[1]).decode()
    assert bytes(engine.prompts[-1]).decode().count("That turn could not be read") == 3
    assert "Answer now, in answer tags." in bytes(engine.prompts[-1]).decode()


def test_any_strategy_decides_by_the_cost_weight() -> None:
    plan = AskInOrder(lambda view: ["tiny"] if view.limits.cost_weight == 0.5 else ["small"])
    for weight, expected in ((0.0, "small"), (0.5, "tiny")):
        decides = RouterDecisionModel(strategy=plan, registry=registry(), cost_weight=weight)
        assert choose(decides, "Capital?", choice("small", "tiny")).choices["model"].choice == expected


@pytest.mark.parametrize(
    ("state", "question", "problem"),
    [
        ("Capital?", choice("small", "huge"), "offers 'huge', and the registry has no such model; it has 'small'"),
        ("Capital?", Noul(instructions="Is it hard?"), "'model' is a Noul; a router answers a Choice among 'small'"),
        ({"text": "Capital?"}, choice("small"), "the state is a dict; a router reads text, a message"),
        ([AIMessage("Capital?")], choice("small"), "there is no question"),
    ],
)
def test_what_a_router_can_not_decide_is_refused(state: Any, question: Any, problem: str) -> None:
    decides = RouterDecisionModel(strategy=AskInOrder(lambda view: ["small"]), registry=registry())
    with pytest.raises(ValueError, match=problem):
        choose(decides, state, question)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
async def test_it_chooses_the_model_of_an_agent() -> None:
    models = registry()
    decides = RouterDecisionModel(strategy=RouterLLM(ScriptedEngine([search("large: ?!")] * 2)), registry=models)
    middleware = ModelRouterMiddleware(
        choices={model.name: ModelChoice(model=model.model, criteria=model.description) for model in models},
        instructions="Choose the model.",
        classifier=decides,
    )
    agent = create_agent(pool(other="from other")["other"].model, middleware=[middleware])
    question: Any = {"messages": [HumanMessage("Capital of Peru?")]}
    for result in (agent.invoke(question), await agent.ainvoke(question)):
        assert result["messages"][-1].text == "from large"
