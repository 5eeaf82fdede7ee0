"""In which order the event handler of OpenAI's client for Python tells of what happens in a stream."""

from __future__ import annotations

from typing import Any

Order = list[Any]

BEGUN: Order = ["run.created", "run.queued", "run.in_progress"]
ENDED: Order = ["run.completed", ["end"]]


def opened(step: str, message: str) -> Order:
    return [
        "run.step.created",
        ["run step created", step],
        "run.step.in_progress",
        "message.created",
        ["message created", message],
        "message.in_progress",
    ]


def said(message: str, *words: str) -> Order:
    """Return what is seen of a message's words, each of which the helper adds to those before it."""
    order: Order = []
    text = ""
    for word in words:
        text += word
        created = [] if order else [["text created"]]
        order += ["message.delta", *created, ["text delta", word, text], ["message delta", message]]
    return order


def closed(step: str, message: str, text: str, *, message_is: str, step_is: str) -> Order:
    return [
        f"message.{message_is}",
        ["text done", text],
        ["message done", message, message_is],
        f"run.step.{step_is}",
        ["run step done", step, step_is],
    ]


def spoken(step: str, message: str, *words: str, message_is: str = "completed", step_is: str = "completed") -> Order:
    """Return all that is seen of one message."""
    end = closed(step, message, "".join(words), message_is=message_is, step_is=step_is)
    return opened(step, message) + said(message, *words) + end


def carried_out(step: str, city: str, told: Order) -> Order:
    """Return what is seen of a call that the handler carries out itself."""
    return [
        "run.step.created",
        ["run step created", step],
        "run.step.in_progress",
        "run.step.delta",
        *told,
        ["run step delta"],
        "run.step.delta",
        ["tool call delta", city, city],
        ["run step delta"],
        "run.step.completed",
        ["tool call done", "weather", city],
        ["run step done", step, "completed"],
    ]


def call_asked_for(call: str, arguments: str, before: Order) -> Order:
    return [
        "run.step.delta",
        *before,
        ["tool call created", call],
        ["run step delta"],
        "run.step.delta",
        ["tool call delta", arguments, arguments],
        ["run step delta"],
    ]
