"""The router as a decision model of LangChain's: it chooses the model that another agent works with.

    chooses = RouterDecisionModel(strategy=RouterLLM(engine), registry=registry)
    choices = {model.name: ModelChoice(model=..., criteria=model.description) for model in registry}
    middleware = ModelRouterMiddleware(choices=choices, instructions="Choose the model.", classifier=chooses)
    agent = create_agent(..., middleware=[middleware])

Nothing is asked of the chosen model here. LangChain calls decision models beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from langchain_core.decisions import BaseDecisionModel, Choice, ChoiceAnswer, ClassifierResponse
from langchain_core.decisions.types import Answer as AnyAnswer
from langchain_core.decisions.types import Question, State
from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage
from pydantic import ConfigDict, Field
from typing_extensions import override

from langgraph_router_r1.engines.llm_run import usage_metadata
from langgraph_router_r1.ledger import Usage, add_usage
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.strategies import Again, Ask, Strategy, View

MAX_DECISIONS = 4
"""How often a strategy is asked that does not decide."""


class RouterDecisionModel(BaseDecisionModel):
    """Answers a `Choice` whose labels are names of a registry by the model that the router would ask first.

    The registry's descriptors count, not the criteria of the choice. If the router would ask no model, as when it knows
    the answer itself, the cheapest one is chosen, with confidence 0; else the confidence is 1.

    Example:
        >>> from langgraph_router_r1.decision_model import RouterDecisionModel
        >>> from langgraph_router_r1.strategies import RouterLLM
        >>> chooses = RouterDecisionModel(strategy=RouterLLM(engine), registry=registry)        # doctest: +SKIP
        >>> choice = Choice(instructions="Which model?", criteria=dict.fromkeys(registry.names))  # doctest: +SKIP
        >>> request = {"state": "Capital of Peru?", "questions": {"model": choice}}             # doctest: +SKIP
        >>> chooses.invoke(request).choices["model"].choice                                     # doctest: +SKIP
        'small'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str = "router-r1"
    strategy: Strategy
    """Who decides: a `RouterLLM`, a `KNNStrategy`, or any other."""
    registry: ModelRegistry
    """The models; those that a choice does not name are not offered."""
    cost_weight: float = Field(default=0.0, ge=0, le=1)
    """How much money counts against quality, 0 to 1."""

    @property
    @override
    def _provider(self) -> str:
        return "langgraph_router_r1"

    @override
    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        answers, used = dict[str, AnyAnswer](), list[Usage]()
        for key, question in questions.items():
            view = self._view(state, key, question)
            chosen = self._first_asked(view, used)
            choice = chosen or min(view.registry, key=lambda model: model.price.level).name
            answers[key] = ChoiceAnswer(
                type="choice",
                choice=choice,
                probabilities={name: float(name == choice) for name in view.registry.names},
                confidence=float(chosen is not None),
            )
        return ClassifierResponse(model=self.model, answers=answers, usage=usage_metadata(add_usage(used)))

    def _view(self, state: State, key: str, question: Question) -> View:
        """Return what the strategy sees: the conversation, and the models that the choice names.

        Raises:
            ValueError: It is no choice among models of the registry, or the state is no conversation.
        """
        known = ", ".join(map(repr, self.registry.names))
        if not isinstance(question, Choice):
            msg = f"question {key!r} is a {type(question).__name__}; a router answers a Choice among {known}"
            raise ValueError(msg)  # noqa: TRY004 - the type is one that decision models take
        if unknown := [label for label in question.criteria if label not in self.registry]:
            msg = f"question {key!r} offers {unknown[0]!r}, and the registry has no such model; it has {known}"
            raise ValueError(msg)
        offered = {self.registry[label].name for label in question.criteria}
        return View(
            messages=_messages(state),
            registry=self.registry.without(*(name for name in self.registry.names if name not in offered)),
            limits=Limits(max_turns=1, max_parallel=1, cost_weight=self.cost_weight),
        )

    def _first_asked(self, view: View, used: list[Usage]) -> str | None:
        """Return which model of those on offer the strategy would ask first; None if it would ask none."""
        while view.decided < MAX_DECISIONS:
            decision = self.strategy.decide(view)
            used += [] if decision.usage is None else [decision.usage]
            if not isinstance(decision, Again):
                asked = [call.model for call in decision.calls] if isinstance(decision, Ask) else []
                return next((view.registry[name].name for name in asked if name in view.registry), None)
            view = replace(
                view,
                transcript=[*view.transcript, *decision.segments],
                notes=view.notes if decision.notes is None else decision.notes,
                decided=view.decided + 1,
            )
        return None


def _messages(state: State) -> Sequence[AnyMessage]:
    """Return the conversation that a state is.

    Raises:
        ValueError: It is neither text nor messages.
    """
    if isinstance(state, str | BaseMessage):
        state = [HumanMessage(state) if isinstance(state, str) else state]
    if not isinstance(state, Sequence) or not all(isinstance(item, BaseMessage) for item in state):
        msg = f"the state is a {type(state).__name__}; a router reads text, a message, or a list of messages"
        raise ValueError(msg)
    return cast("Sequence[AnyMessage]", state)
