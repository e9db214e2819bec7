"""Tools: the router chooses the model, and the model that is asked makes the tool call.

With tools, a routed model is sent the whole conversation and the tools. If it calls one, the run ends with that call as
its answer; whoever runs the tool (such as `create_agent`) asks the router again, with the result in the conversation.
If a tool must be called and the router answers in text, one more call puts the answer into the tool's form.
"""

from __future__ import annotations

from dataclasses import replace

from langgraph_router_r1.protocol import Call
from langgraph_router_r1.state import StopReason
from langgraph_router_r1.strategies.base import Answer, Ask, Decision, View

FORM_PROMPT = "The answer is:\n\n{answer}\n\nGive it by calling the tool."
"""What a model is asked that only has to put an answer into a tool's form."""

_FORMED = "formed_answer"
"""The note that says that the latest call was such a one, with the answer that it was about."""


def called_tools(view: View, *, degraded: bool = False) -> Answer | None:
    """Return the end of a run whose latest turn has called tools, or was to do so; None if it goes on.

    Args:
        view: The run so far.
        degraded: Whether the fallback decides.
    """
    if view.tools is None or not view.latest:
        return None
    for call in view.latest:
        if call["status"] == "ok" and call["tool_calls"]:
            formed = view.notes.get(_FORMED)
            reason: StopReason = formed["stop_reason"] if formed else "degraded" if degraded else "answered"
            return Answer(call["response"], tool_calls=call["tool_calls"], stop_reason=reason)
    if (formed := view.notes.get(_FORMED)) is None:
        return None
    return Answer(formed["text"], stop_reason=formed["stop_reason"])


def must_call(view: View) -> bool:
    """Return whether the run must end with a tool call."""
    return view.tools is not None and view.tools["choice"] is not None


def with_form(view: View, decision: Decision) -> Decision:
    """Return the decision; instead of an answer in text that must be a tool call, the call that makes it one."""
    is_formed = _FORMED in view.notes or (isinstance(decision, Answer) and bool(decision.tool_calls))
    if not must_call(view) or is_formed or not isinstance(decision, Answer) or not decision.text:
        return decision
    replied = [call["answered_by"] or call["model"] for call in view.calls if call["status"] == "ok"]
    by_price = sorted(view.registry, key=lambda model: model.price.level)
    model = replied[-1] if replied else by_price[0].name
    notes = {
        **(decision.notes if decision.notes is not None else view.notes),
        _FORMED: {"text": decision.text, "stop_reason": decision.stop_reason},
    }
    query = FORM_PROMPT.format(answer=decision.text)
    return Ask((Call(model, query),), forms=True, **{**decision.common(), "notes": notes})


def without_stream(view: View) -> View:
    """Return the view for a decision whose text is not the answer yet, so that it must not be streamed."""
    return replace(view, stream=None) if must_call(view) else view
