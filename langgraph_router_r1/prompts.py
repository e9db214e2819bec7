"""The texts that models read: the router's prompt, and what a routed model is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)

from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.protocol import fold, sanitize
from langgraph_router_r1.question import count_images, images_in, in_words, last_question, question_images
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.state import Tools

CALL_PROMPT = "Answer briefly and on topic; say so if you cannot.\n\n{query}"
"""What a routed model is asked, as one user message, when answers shall be short."""

FULL_CALL_PROMPT = "{query}"
"""The same when they shall be complete."""

ROUTER_PROMPT = """\
Answer the question below. Whenever you get something new, first think: <think> ... </think>.
To ask a model, write <search> name: sub-question </search>; its reply follows in <information> ... </information>. \
You may do so in up to $max_turns turns, and ask several models at once, one a line.
When you know the answer, end with <answer> the answer alone, as short as possible </answer>.

Models:
$models

Question: $question

Cost weight: $cost_weight of 1. $cost_words"""

FULL_ROUTER_PROMPT = ROUTER_PROMPT.replace(
    "end with <answer> the answer alone, as short as possible </answer>.",
    "end with <answer> a complete reply to the user </answer>. To pass on reply 2 as it is, end with "
    '<answer from="2"/>. To let a model answer in your place, end with <answer from="its name"> what it is asked '
    "</answer>.",
)
"""The same for complete replies, which may be those of other models."""

PLAN_PROMPT = """\
Plan how to answer the question: at most $max_steps steps, one a line, each a question for one model. \
#1 stands for the answer to step 1. A question that one model can answer is one step.

Question: $question"""
"""What a decomposer is asked."""

ALLOCATION_PROMPT = """\
Give each step of the plan to the cheapest model that can do it. Write one line a step: its number and the model's name.

Models:
$models

Plan:
$plan

Cost weight: $cost_weight of 1. $cost_words"""
"""What an allocator is asked."""

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

    With `weights`, the router is told of these cost weights only, and any other is a mixture: each question is told one
    of the two around it, chosen by a hash of the question, so often that the mean is what was asked for. What a reward
    that is linear in the weight teaches changes in jumps; a mixture reaches all between (so RouterBench draws its
    frontiers, arXiv 2403.12031). A question goes over to the higher weight once, and stays there.

    Example:
        >>> RouterPrompt("Pool: $names. $question").template
        'Pool: $names. $question'
        >>> prompt = RouterPrompt(weights=(0.0, 0.9))
        >>> [prompt.prompted_weight(0.3, question) for question in ("Peru?", "Chile?", "Cuba?")]
        [0.0, 0.9, 0.9]
    """

    def __init__(self, template: str = ROUTER_PROMPT, *, weights: Sequence[float] = ()) -> None:
        """Check and keep the template.

        Raises:
            ValueError: It lacks `$question`, has a placeholder that is not known, or a dollar sign that is not doubled;
                or the weights do not rise from 0 or more to 1 or less.
        """
        if list(weights) != sorted(set(weights)) or not all(0 <= weight <= 1 for weight in weights):
            msg = f"weights are {list(weights)!r}; they must rise, between 0 (quality only) and 1 (cost only)"
            raise ValueError(msg)
        self.weights = tuple(weights)
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
    def of_style(cls, style: str) -> RouterPrompt:
        """Return the prompt for a style of answers, "short" or "full".

        Raises:
            ValueError: It is neither.
        """
        if style not in {"short", "full"}:
            msg = f"answer is {style!r}; it must be 'short' or 'full'"
            raise ValueError(msg)
        return cls(ROUTER_PROMPT if style == "short" else FULL_ROUTER_PROMPT)

    @classmethod
    def from_file(cls, path: str | Path) -> RouterPrompt:
        """Read a template from a text file, for a router that was trained with another prompt."""
        return cls(Path(path).read_text(encoding="utf-8"))

    def prompted_weight(self, cost_weight: float, question: str) -> float:
        """Return the cost weight that the prompt tells of for this question."""
        if not self.weights:
            return cost_weight
        low = max((weight for weight in self.weights if weight <= cost_weight), default=self.weights[0])
        high = min((weight for weight in self.weights if weight >= cost_weight), default=self.weights[-1])
        if low >= high:  # one of them, or beyond the last
            return min(max(cost_weight, self.weights[0]), self.weights[-1])
        digest = hashlib.sha256(fold(question).encode("utf-8", "replace")).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return high if share < (cost_weight - low) / (high - low) else low

    def render(
        self,
        messages: Sequence[AnyMessage],
        registry: ModelRegistry,
        *,
        cost_weight: float,
        max_turns: int,
        control_tokens: Collection[str] = (),
        tools: Tools | None = None,
        savings: Mapping[str, float] | None = None,
    ) -> list[dict[str, str]]:
        """Return the router's chat: all other messages in their order as context, then the question in the template.

        What users wrote is sanitized: it can become neither one of our tags nor a control token. Of images, the router
        is only told how many there are. Results of tools are context, too, also those that follow the question; of a
        message that calls a tool, only its text is.

        `savings` are dollars that a call costs less because a model's prompt cache is warm, by model.

        Raises:
            ValueError: There is no human message, the last one has no text, or a message holds something else.
        """
        last = messages[last_question(messages)]
        question = sanitize(last.text, control_tokens).strip()
        told = self.prompted_weight(cost_weight, question)
        content = Template(self.template).substitute(
            question=question + _tell_of(images_in(last)),
            models=sanitize(registry.describe(savings) + _describe(tools), control_tokens),
            names=", ".join(registry.aliases),
            cost_weight=f"{told:g}",
            cost_words=cost_words(told),
            max_turns=max_turns,
        )
        return [*context_chat(messages, control_tokens), {"role": "user", "content": content}]

    def __repr__(self) -> str:
        return f"RouterPrompt({self.template!r}{f', weights={self.weights}' if self.weights else ''})"


def plan_chat(
    messages: Sequence[AnyMessage], *, max_steps: int, control_tokens: Collection[str]
) -> list[dict[str, str]]:
    """Return the chat that asks a decomposer for a plan, sanitized as the router's is; see `RouterPrompt.render`."""
    last = messages[last_question(messages)]
    question = sanitize(last.text, control_tokens).strip() + _tell_of(images_in(last))
    content = Template(PLAN_PROMPT).substitute(max_steps=max_steps, question=question)
    return [*context_chat(messages, control_tokens), {"role": "user", "content": content}]


def allocation_chat(
    plan: str, registry: ModelRegistry, *, cost_weight: float, control_tokens: Collection[str]
) -> list[dict[str, str]]:
    """Return the chat that asks an allocator which model shall do each step of a plan."""
    content = Template(ALLOCATION_PROMPT).substitute(
        models=sanitize(registry.describe(), control_tokens),
        plan=sanitize(plan, control_tokens),
        cost_weight=f"{cost_weight:g}",
        cost_words=cost_words(cost_weight),
    )
    return [{"role": "user", "content": content}]


def cost_words(cost_weight: float) -> str:
    """Return what a cost weight means, in words."""
    return next(words for most, words in COST_WORDS.items() if cost_weight <= most)


def context_chat(messages: Sequence[AnyMessage], control_tokens: Collection[str]) -> list[dict[str, str]]:
    """Return all messages but the question, in their order, as context; what users wrote is sanitized."""
    last = last_question(messages)
    made: dict[str | None, ToolCall] = {}
    told = []
    for place, message in enumerate(messages):
        if isinstance(message, AIMessage):  # a provider may use an id again: the latest call of it is meant
            made |= {call["id"]: call for call in message.tool_calls}
        if place != last and (text := sanitize(_context(message, made), control_tokens).strip()):
            told.append({"role": _role(message), "content": text})
    return told


def _tell_of(images: Sequence[Any]) -> str:
    """Return what the router is told of the images of the question."""
    if not images:
        return ""
    them = "it" if len(images) == 1 else "them"
    return (
        f"\nThe question comes with {count_images(images)}. Only the models listed can see {them}: "
        f"each sub-question is sent with {them}."
    )


def _describe(tools: Tools | None) -> str:
    """Return what the router is told of the tools that the models can call."""
    if tools is None or tools["is_form"]:
        return ""
    functions = [tool["function"] for tool in tools["tools"]]
    lines = [f"- {function['name']}: {function.get('description', '')}" for function in functions]
    return "\nThese models can call tools when they are asked for what needs them:\n" + "\n".join(lines)


def call_messages(
    model: ModelDescriptor, query: str, conversation: Sequence[AnyMessage] = (), *, is_brief: bool = True
) -> list[BaseMessage]:
    """Return what a routed model is sent: as much of the conversation as its descriptor says, then the query.

    The images of the question stand before the query, unless the question itself is sent.

    Args:
        model: Whom it is sent to.
        query: What the router asks.
        conversation: The messages of the run, with the question.
        is_brief: Whether answers shall be short; a `call_prompt` of the model has precedence.
    """
    template = model.call_prompt or (CALL_PROMPT if is_brief else FULL_CALL_PROMPT)
    context, images = context_messages(model, conversation), question_images(conversation)
    if context and isinstance(context[-1], HumanMessage) and context[-1].text.strip() == query.strip():
        context.pop()  # the query is the question itself
    elif model.share_context == "conversation":
        images = []  # they are part of the conversation
    # The query may hold braces: no format string.
    asked = template.replace("{query}", query)
    content: list[str | dict[Any, Any]] = [*images, {"type": "text", "text": asked}]
    return [*context, HumanMessage(content if images else asked)]


def context_messages(model: ModelDescriptor, conversation: Sequence[AnyMessage]) -> list[BaseMessage]:
    """Return what a routed model is sent before the query, whatever that is."""
    instructions = [model.system] if model.system else []
    shared: list[BaseMessage] = []
    if model.share_context != "none":
        instructions += [message.text for message in conversation if isinstance(message, SystemMessage)]
    if model.share_context == "conversation":
        shared = [message for message in conversation if not isinstance(message, SystemMessage)]
    system = [SystemMessage("\n\n".join(instructions))] if instructions else []
    return [*system, *_readable(model, shared)]


def tool_messages(model: ModelDescriptor, query: str, conversation: Sequence[AnyMessage]) -> list[BaseMessage]:
    """Return what a routed model is sent that may call tools: the conversation with their results, then the query."""
    instructions = [model.system] if model.system else []
    instructions += [message.text for message in conversation if isinstance(message, SystemMessage)]
    system = [SystemMessage("\n\n".join(instructions))] if instructions else []
    shared = [message for message in conversation if not isinstance(message, SystemMessage)]
    is_asked = query.strip() == conversation[last_question(conversation)].text.strip()
    return [*system, *_readable(model, shared), *([] if is_asked else [HumanMessage(query)])]


def _readable(model: ModelDescriptor, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the messages; for a model that does not read images, with a note in the place of each one's images."""
    if model.reads_images:
        return list(messages)
    return [
        message.model_copy(update={"content": in_words(message)}) if images_in(message) else message
        for message in messages
    ]


def _context(message: AnyMessage, made: Mapping[str | None, ToolCall]) -> str:
    """Return what a message other than the question says to the router; `made` are the tool calls by their ids."""
    if isinstance(message, ToolMessage | FunctionMessage) and message.text.strip():
        # Of two calls of one tool, what each was asked tells their results apart.
        call = made.get(message.tool_call_id) if isinstance(message, ToolMessage) else None
        name = message.name or (call["name"] if call else "call")
        asked = json.dumps(call["args"], ensure_ascii=False, default=str) if call and call["args"] else ""
        return f"Result of the tool {name}{f'({asked})' if asked else ''}: {message.text}"
    return in_words(message)


def _role(message: AnyMessage) -> str:
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, AIMessage):
        return "assistant"
    # Chat templates know no common role for the result of a tool.
    return "user"
