"""The router LLM as a strategy: it writes a turn, which is read as calls, an answer, or something that can't be read.

This is Router-R1 (arXiv 2506.09033). The transcript is the prompt of the next turn, token for token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import override

from langgraph_router_r1 import protocol
from langgraph_router_r1.engines import llm_run
from langgraph_router_r1.engines.base import (
    ContextFullError,
    Generation,
    RouterEngine,
    can_be_constrained,
    observation_segment,
)
from langgraph_router_r1.ledger import FREE, PER_MILLION, Price, cost, worst_case
from langgraph_router_r1.prompts import RouterPrompt
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.scanner import TurnScanner
from langgraph_router_r1.settings import Limits
from langgraph_router_r1.state import RoutedCall, StopReason, StrategyNote
from langgraph_router_r1.strategies.base import Again, Answer, Ask, Decision, Strategy, View
from langgraph_router_r1.transcript import Segment, token_ids

MAX_CORRECTIONS = 2
"""How many malformed turns of a run are answered with a correction; the next one forces the answer."""

MAX_RELAY_STOPS = 16
"""Of how many replies, the latest, the tag that passes one on ends the turn; servers take only so many stop strings."""

QUOTE_OVERHEAD_TOKENS = 64
"""Room for the tags around replies and for a notice, in what is reserved for the answer."""


@dataclass
class RouterLLM(Strategy):
    """Lets a router LLM decide, trained or prompted.

    Raises:
        ValueError: A number of tokens is below 1, or the engine can't be constrained and shall be.
    """

    engine: RouterEngine
    """Where the router's tokens come from."""
    prompt: RouterPrompt = field(default_factory=RouterPrompt)
    """The template that states the task to the router."""
    max_tokens: int = 1024
    """Most tokens that the router writes in a turn."""
    max_info_tokens: int = 600
    """Most tokens of what comes back to it after a turn."""
    price: Price = FREE
    """Of the router's own tokens."""
    relays: bool = False
    """Whether it may pass on a reply as its answer; the prompt must say how."""
    constrain: Literal["names"] | None = None
    """Whether it can name only models that can be asked, while it samples."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.max_info_tokens < 1:
            msg = (
                f"max_tokens is {self.max_tokens!r} and max_info_tokens {self.max_info_tokens!r}; "
                "both must be 1 or more"
            )
            raise ValueError(msg)
        if self.constrain not in {None, "names"}:
            msg = f"constrain is {self.constrain!r}; it must be 'names' or None"
            raise ValueError(msg)
        if self.constrain is not None and not can_be_constrained(self.engine):
            msg = f"constrain is {self.constrain!r}, and {self.engine!r} can't be constrained; a VLLMEngine can"
            raise ValueError(msg)
        self._has_tokenizer = False
        self._prompt_digest = hashlib.sha256(self.prompt.template.encode()).hexdigest()

    @override
    def count_tokens(self, text: str) -> int:
        # A reply that was paid for must neither be lost to a tokenizer that a dead server should have sent, nor wait
        # for it: until a turn was sampled, the number is an estimate.
        return self.engine.count_tokens(text) if self._has_tokenizer else super().count_tokens(text)

    @override
    def note(self) -> StrategyNote:
        return {**super().note(), "policy": self.engine.model, "prompt_digest": self._prompt_digest}

    @override
    def decide(self, view: View) -> Decision:
        if (relayed := _relayed(view)) is not None:
            return relayed
        turn = self._prepare(view)
        if turn.max_tokens < 1:
            return _finish(turn, "budget_exhausted")
        try:
            generation = llm_run.generate(self.engine, turn.transcript, **self._options(turn))
        except ContextFullError:
            return _finish(turn, "context_full")
        return self._read(turn, generation)

    @override
    async def adecide(self, view: View) -> Decision:
        if (relayed := _relayed(view)) is not None:
            return relayed
        await self.engine.aload()
        turn = self._prepare(view)
        if turn.max_tokens < 1:
            return _finish(turn, "budget_exhausted")
        try:
            generation = await llm_run.agenerate(self.engine, turn.transcript, **self._options(turn))
        except ContextFullError:
            return _finish(turn, "context_full")
        return self._read(turn, generation)

    def _prepare(self, view: View) -> _Turn:
        limits, transcript = view.limits, list(view.transcript)
        added: list[Segment] = []
        if not transcript:
            chat = self.prompt.render(
                view.messages,
                view.offered,
                cost_weight=limits.cost_weight,
                max_turns=limits.max_turns,
                control_tokens=self.engine.control_tokens,
                tools=view.tools,
                savings=view.savings,
            )
            added.append(self.engine.begin(chat))
            may_ask = limits.max_turns > 0 and self._can_ask(view, view.spent_usd, added)
            if not may_ask:
                added.append(observation_segment(self.engine, self._quote(view, [], may_ask=False)))
        else:
            may_ask = (
                not view.notes.get("must_answer", False)
                and view.turn < limits.max_turns
                and self._can_ask(view, view.spent_usd, transcript)
            )
            if transcript[-1]["kind"] == "policy":
                added.append(observation_segment(self.engine, self._quote(view, view.latest, may_ask=may_ask)))
        transcript += added
        return _Turn(view, added, transcript, may_ask, self._affordable_tokens(limits, view.spent_usd, transcript))

    def _options(self, turn: _Turn) -> dict[str, Any]:
        """Return how long the turn may be, what ends it, and what is told of its text if somebody listens."""
        stop = [protocol.SEARCH_END, protocol.ANSWER_END] if turn.may_ask else [protocol.ANSWER_END]
        if self.relays:
            last = len(turn.view.replies)
            stop += [protocol.relay_tag(number) for number in range(max(1, last - MAX_RELAY_STOPS + 1), last + 1)]
        stream = turn.view.stream
        options: dict[str, Any] = {"max_tokens": turn.max_tokens, "stop": stop}
        if self.constrain == "names" and turn.may_ask:
            options["constraints"] = self._constraints(turn.view)
        if stream is None:
            return options
        scanner = TurnScanner(routing=turn.may_ask, relaying=self.relays)

        def on_text(piece: str) -> None:
            for kind, text in scanner.feed(piece):
                (stream.answer if kind == "answer" else stream.think)(text)

        return {**options, "on_text": on_text}

    def _constraints(self, view: View) -> tuple[protocol.Constraint, ...]:
        """Return the constraints by which the router can name only models that it can ask."""
        names = [model.display_name for model in view.offered if view.affords(model.name, "?")]
        return protocol.name_constraints(names, replies=len(view.replies) if self.relays else None)

    def _read(self, turn: _Turn, generation: Generation) -> Decision:
        self._has_tokenizer = True  # no turn is sampled without it
        view, segment = turn.view, generation.segment
        wrote: dict[str, Any] = {
            "thought": segment["text"],
            "segments": [*turn.added, segment],
            "usage": generation.usage,
        }
        replies = len(view.replies) if self.relays else None
        match protocol.parse(segment["text"], view.registry.aliases, routing=turn.may_ask, replies=replies):
            case protocol.Answer(text):
                is_cut = generation.finish == "length" and protocol.ANSWER_END not in segment["text"]
                ended: StopReason = "cut_off" if is_cut else "answered" if turn.may_ask else "forced_answer"
                return Answer(text, stop_reason=ended, **wrote)
            case protocol.Relay(number):
                call = [call for call in view.calls if call["status"] == "ok"][number - 1]
                ended = _cut_or("answered" if turn.may_ask else "forced_answer", call)
                return Answer(call["response"], stop_reason=ended, **wrote)
            case protocol.Route(calls, relay):
                if relay:
                    wrote["notes"] = {**view.notes, "relay": view.turn}
                named = [_by_name(call, view.registry) for call in calls]
                prompt_tokens = _prompt_tokens([*turn.transcript, segment])
                return Ask(named, keep_usd=self._answer_usd(prompt_tokens), relay=relay, **wrote)
            case protocol.Invalid(reason):
                if not turn.may_ask:
                    return _finish(turn, "no_answer", segment["text"], **wrote)
                return self._correct(turn, generation, reason, wrote)

    def _correct(self, turn: _Turn, generation: Generation, reason: str, wrote: dict[str, Any]) -> Decision:
        """Tell the router why its turn could not be read, and let it write another one."""
        corrections = turn.view.notes.get("corrections", 0)
        if generation.finish == "length":
            reason = f"it was cut off after {generation.usage['completion_tokens']} tokens"
        spent = turn.view.spent_usd + cost(generation.usage, self.price)
        may_ask = corrections < MAX_CORRECTIONS and self._can_ask(
            turn.view, spent, [*turn.transcript, generation.segment]
        )
        words = self._harmless(_correction(reason, may_ask=may_ask))
        wrote["segments"] = [*wrote["segments"], observation_segment(self.engine, protocol.quote(words))]
        return Again(**wrote, notes={"corrections": corrections + 1, "must_answer": not may_ask})

    # What the router reads

    def _quote(self, view: View, calls: Sequence[RoutedCall], *, may_ask: bool) -> str:
        """Return what the calls of a turn brought back as one block, in call order, cut to `max_info_tokens`."""
        denied = [call for call in calls if call["status"] == "denied"]
        number = len(view.replies) - sum(call["status"] == "ok" for call in calls)
        lines = []
        for call in calls:
            if call["status"] == "denied":
                continue
            said = _said(call) if call["status"] == "ok" else f"No reply: {_sentence(_reason(call, view.registry))}"
            if self.relays and call["status"] == "ok":
                number += 1
                said = f"(reply {number}) {said}"
            lines.append(self._harmless(said if len(calls) == 1 else f"{_called(call, view.registry)}: {said}"))
        lines = self._share_out(lines, self.max_info_tokens)
        if denied:
            lines.append(f"{len(denied)} more not asked: {denied[0]['reason']}.")
        if not may_ask:
            lines.append("No model can be asked any more. Answer now.")
        return protocol.quote("\n".join(lines))

    def _share_out(self, lines: list[str], tokens: int) -> list[str]:
        """Return the lines cut to so many tokens together: what short ones leave goes to long ones."""
        cut = list(lines)
        lengths = [self.engine.count_tokens(line) for line in lines]
        for place, index in enumerate(sorted(range(len(lines)), key=lengths.__getitem__)):
            share = tokens // (len(lines) - place)
            if lengths[index] > share:
                cut[index] = self.engine.truncate(lines[index], share)
            tokens -= min(lengths[index], share)
        return cut

    def _harmless(self, text: str) -> str:
        return protocol.sanitize(text, self.engine.control_tokens)

    # What the router's own tokens may cost

    def _affordable_tokens(self, limits: Limits, spent: float, transcript: list[Segment]) -> int:
        """Return how many tokens the router may sample: fewer than its limit when the budget pays for fewer."""
        if limits.budget_usd is None or self.price == FREE:
            return self.max_tokens
        prompt_tokens = _prompt_tokens(transcript)
        left = limits.budget_usd - spent - worst_case(prompt_tokens, 0, self.price)
        if left < 0:
            return 0
        per_token = self.price.at(prompt_tokens).completion * PER_MILLION
        return min(self.max_tokens, int(left / per_token)) if per_token else self.max_tokens

    def _answer_usd(self, prompt_tokens: int) -> float:
        """Return what a turn may cost that reads the replies to calls made after a prompt of this length."""
        prompt_tokens += self.max_info_tokens + QUOTE_OVERHEAD_TOKENS
        return worst_case(prompt_tokens, self.max_tokens, self.price)

    def _can_ask(self, view: View, spent: float, transcript: list[Segment]) -> bool:
        """Return whether the budget pays for a turn, the shortest question to the cheapest model, and the answer."""
        if view.limits.budget_usd is None:
            return True
        prompt_tokens = _prompt_tokens(transcript)
        spent += worst_case(prompt_tokens, self.max_tokens, self.price)
        left = view.limits.budget_usd - spent - self._answer_usd(prompt_tokens + self.max_tokens)
        return view.least_worst_case_usd <= left


@dataclass
class _Turn:
    """What is known before the router writes."""

    view: View
    added: list[Segment]
    """Segments put in before the turn: the prompt, or what the calls brought back."""
    transcript: list[Segment]
    """The whole of it, `added` included."""
    may_ask: bool
    max_tokens: int


def _relayed(view: View) -> Answer | None:
    """Return the answer if the router has let a model answer in its place, and the model did."""
    if view.calls and view.notes.get("relay") == view.turn - 1 and view.latest[0]["status"] == "ok":
        return Answer(view.latest[0]["response"], stop_reason=_cut_or("answered", view.latest[0]))
    return None


def _cut_or(reason: StopReason, call: RoutedCall) -> StopReason:
    """Return why a run ended whose answer is the reply to this call."""
    return reason if call["finish_reason"] in {None, "stop"} else "cut_off"


def _finish(turn: _Turn, stop_reason: StopReason, text: str = "", **wrote: Any) -> Answer:
    """End without an answer tag: with the best text there is."""
    replies = turn.view.replies
    best = protocol.best_effort_answer(text) or (replies[-1] if replies else "")
    return Answer(best, stop_reason=stop_reason, **({"segments": turn.added} | wrote))


def _by_name(call: protocol.Call, registry: ModelRegistry) -> protocol.Call:
    """Return the call with the model's name in the registry, where the router wrote the name that it was shown."""
    return protocol.Call(registry.by_alias(call.model).name, call.query) if call.known else call


def _prompt_tokens(transcript: Sequence[Segment]) -> int:
    # Engines without token ids count characters: a token has at least one.
    return len(token_ids(transcript)) or sum(len(segment["text"].encode()) for segment in transcript)


def _said(call: RoutedCall) -> str:
    """Return a reply as the router reads it: one that was cut says so first, where no later cut can lose it."""
    complete = call["finish_reason"] in {None, "stop"}
    return call["response"] if complete else f"(This reply was cut off.) {call['response']}"


def _reason(call: RoutedCall, registry: ModelRegistry) -> str:
    """Return why there is no reply; the account tells of models by name, and the router knows aliases only."""
    name, reason = call["answered_by"] or call["model"], str(call["reason"])
    if call["status"] in {"error", "resting"} and name in registry and reason.startswith(f"{name} "):
        return registry[name].display_name + reason.removeprefix(name)
    return reason


def _called(call: RoutedCall, registry: ModelRegistry) -> str:
    """Return what the router calls the model of a call, or what it called one that there is not."""
    unknown = call["status"] == "unknown_model" or call["model"] not in registry
    return call["model"] if unknown else registry[call["model"]].display_name


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _correction(reason: str, *, may_ask: bool) -> str:
    how = (
        "Write either a search (name: question) or an answer, in its tags."
        if may_ask
        else "Answer now, in answer tags."
    )
    return f"That turn could not be read: {reason}. {how}"
