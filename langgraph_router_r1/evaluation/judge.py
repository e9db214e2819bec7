"""A model as judge of long answers, for where exact metrics are too strict.

What it costs is counted. It can be wrong: where people's judgement is recorded, the results say how often it agrees.
"""

from __future__ import annotations

from dataclasses import dataclass

from langgraph_router_r1.calls import Candidates
from langgraph_router_r1.evaluation.metrics import normalise
from langgraph_router_r1.evaluation.tasks import Task

PROMPT = """\
Question: {question}
Right answer: {golden}
Reply: {reply}

Does the reply give the right answer? Say yes or no."""


@dataclass(frozen=True)
class Verdict:
    """What a judge said."""

    score: float | None
    """1 for right, 0 for wrong; None when it said neither, or failed."""
    cost_usd: float
    """Dollars that were spent: nothing for a reply that was known."""
    failed: bool = False
    """Whether it gave no reply."""


class Judge:
    """Asks one model of a registry whether replies are right.

    Example:
        >>> import asyncio
        >>> from langgraph_router_r1 import ModelDescriptor, ModelRegistry
        >>> from langgraph_router_r1.testing import ScriptedChatModel
        >>> registry = ModelRegistry([ModelDescriptor(name="wise", model=ScriptedChatModel(["Yes."]), price=1.0)])
        >>> judge = Judge(Candidates(registry, len), "wise")
        >>> asyncio.run(judge.ajudge(Task("1", "Capital of Peru?", ("Lima",), "x"), "It is Lima.")).score
        1.0
    """

    def __init__(self, candidates: Candidates, model: str) -> None:
        """Name the judge.

        Raises:
            UnknownModelError: The registry has no such model.
        """
        self._candidates, self.model = candidates, candidates.registry[model].name

    async def ajudge(self, task: Task, reply: str) -> Verdict:
        """Return what the judge says of a reply."""
        query = PROMPT.format(question=task.question, golden=" or ".join(task.golden_answers), reply=reply)
        call = await self._candidates.aask(
            {"turn": 0, "index": 0, "model": self.model, "query": query, "refusal": None}
        )
        word = normalise(call["response"]).partition(" ")[0]
        return Verdict({"yes": 1.0, "no": 0.0}.get(word), call["cost_usd"], failed=call["status"] != "ok")
