"""The texts that models read: the router's prompt, and what a routed model is asked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from string import Template

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage

from langgraph_router_r1.protocol import neutralise
from langgraph_router_r1.registry import ModelRegistry

CALL_PROMPT = "Answer briefly and on topic; say so if you cannot.\n\n{query}"
"""What a routed model is asked, as one user message."""

ROUTER_PROMPT = """\
Answer the question below. Whenever you get something new, first think: <think> ... </think>.
To ask a model, write <search> name: sub-question </search>; its reply follows in <information> ... </information>. \
You may do so in up to $max_turns turns, and ask several models at once, one a line.
When you know the answer, end with <answer> the answer alone, as short as possible </answer>.

Models:
$models

Question: $question

Cost weight: $cost_weight of 1. $cost_words"""

COST_WORDS = {
    0.15: "Only a right answer counts.",
    0.45: "A right answer counts more than a low cost.",
    0.75: "A low cost counts more than a right answer.",
    1.0: "Hardly anything but a low cost counts.",
}
"""What a cost weight means in words, each up to its number: a small router does not see much in a digit."""


class RouterPrompt:
    """The user message that states the task to the router: a template with `$` placeholders.

    `$question` must be in it; `$models` (the descriptions, a line a model), `$names` (the names alone),
    `$cost_weight`, `$cost_words` (what it means) and `$max_turns` may be. `$$` is a dollar sign.

    Example:
        >>> RouterPrompt("Pool: $names. $question").template
        'Pool: $names. $question'
    """

    def __init__(self, template: str = ROUTER_PROMPT) -> None:
        """Check and keep the template.

        Raises:
            ValueError: It lacks `$question`, has a placeholder that is not known, or a dollar sign that is not doubled.
        """
        if not Template(template).is_valid():
            msg = "the router prompt has a '$' that starts no placeholder; write '$$' for a dollar sign"
            raise ValueError(msg)
        found = set(Template(template).get_identifiers())
        known = {"question", "models", "names", "cost_weight", "cost_words", "max_turns"}
        if "question" not in found or not found <= known:
            placeholders = ", ".join(f"${name}" for name in sorted(found))
            msg = (
                f"the router prompt has the placeholders {placeholders or 'none'}; it must have $question "
                f"and may have {', '.join(f'${name}' for name in sorted(known - {'question'}))}"
            )
            raise ValueError(msg)
        self.template = template

    @classmethod
    def from_file(cls, path: str | Path) -> RouterPrompt:
        """Read a template from a text file, for a router that was trained with another prompt."""
        return cls(Path(path).read_text(encoding="utf-8"))

    def render(
        self,
        messages: Sequence[AnyMessage],
        registry: ModelRegistry,
        *,
        cost_weight: float,
        max_turns: int,
        control_tokens: Collection[str] = (),
    ) -> list[dict[str, str]]:
        """Return the router's chat: system messages and earlier turns as they are, then the question in the template.

        What users wrote is neutralised: it can become neither one of our tags nor a control token.

        Raises:
            ValueError: There is no human message, or the last one has no text.
        """
        last = last_question(messages)
        chat = []
        for message in messages[:last]:
            role = _role(message)
            text = neutralise(message.text, control_tokens).strip()
            if role and text:
                chat.append({"role": role, "content": text})
        question = neutralise(messages[last].text, control_tokens).strip()
        content = Template(self.template).substitute(
            question=question,
            models=neutralise(registry.describe(), control_tokens),
            names=", ".join(registry.names),
            cost_weight=f"{cost_weight:g}",
            cost_words=next(words for most, words in COST_WORDS.items() if cost_weight <= most),
            max_turns=max_turns,
        )
        return [*chat, {"role": "user", "content": content}]

    def __repr__(self) -> str:
        return f"RouterPrompt({self.template!r})"


def last_question(messages: Sequence[AnyMessage]) -> int:
    """Return the place of the last human message.

    Raises:
        ValueError: There is none, or it has no text.
    """
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], HumanMessage):
            if not messages[index].text.strip():
                break
            return index
    msg = 'there is no question: the router needs a human message with text, as in {"messages": [("user", "...")]}'
    raise ValueError(msg)


def _role(message: AnyMessage) -> str | None:
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, HumanMessage):
        return "user"
    # Tool calls and their results are another agent's business; what it said in words is context.
    return "assistant" if isinstance(message, AIMessage) else None
