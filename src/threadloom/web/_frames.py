"""Converts the events of a run to the frames of a stream, in the order that OpenAI's clients accept.

Their stream helpers track state, and the one for Node throws if the frames do not fit: at most one step and one message
are open at a time, each is opened once, and no frame refers to a step or message that is not open, except for one that
ends a step. The log allows more: a program that drives a run by hand may open several steps, and a new step already
contains its calls.

Frames are a fold over the events, and the number of an event is on its last frame. So every reader gets the same frames
after a number, at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from threadloom.events import EventType, MessageDelta, RunEvent, StepDelta
from threadloom.models import (
    IncompleteDetails,
    Message,
    MessageStatus,
    Run,
    RunStep,
    RunStepStatus,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
    UnknownObject,
)
from threadloom.web._wire import to_wire

__all__ = ["DONE", "KEEP_ALIVE", "FrameWriter", "error_frame", "thread_frame"]

DONE = b"event: done\ndata: [DONE]\n\n"
# Without an empty line, which would end an event: after an id, OpenAI's Python client would yield an empty one.
KEEP_ALIVE = b": keep-alive\n"

_Telling = tuple[str, Any]


def thread_frame(thread: Thread) -> bytes:
    """Return the frame for a thread that was created together with the run."""
    return _frame("thread.created", to_wire(thread))


def error_frame(body: Mapping[str, Any]) -> bytes:
    """Return the frame for an error of the stream itself. A failed run has an event of its own."""
    return _frame("error", body)


class FrameWriter:
    """Writes the frames of one stream. Pass it the events in order."""

    def __init__(self) -> None:
        self._open_step: str | None = None
        self._is_step_begun = False
        self._told_calls: set[int] = set()
        # Steps opened while another one was open. They wait in order, each in its latest state.
        self._waiting_steps: dict[str, RunStep] = {}
        self._open_message: Message | None = None
        self._is_message_begun = False
        self._is_text_told = False
        self._ended: set[str] = set()

    def frames(self, event: RunEvent) -> bytes:
        """Return the frames for an event, possibly none."""
        tellings = [(kind, data if isinstance(data, dict) else to_wire(data)) for kind, data in self._tell(event)]
        last = len(tellings) - 1
        return b"".join(
            _frame(kind, data, event.number if index == last else None) for index, (kind, data) in enumerate(tellings)
        )

    def pass_over(self, event: RunEvent) -> None:
        """Take in an event that the reader already knows."""
        for _ in self._tell(event):
            pass

    def _tell(self, event: RunEvent) -> Iterator[_Telling]:
        match event.data:
            case Run() as run:
                yield event.type, run
            case RunStep() as step if step.id not in self._ended:
                yield from self._tell_step(step, begins=event.type is not EventType.STEP_CREATED)
            case StepDelta(id=id_, index=index, tool_call=call) if id_ == self._open_step:
                yield from self._tell_call(id_, index, call)
            case Message() as message if message.id not in self._ended:
                yield from self._tell_message(event, message)
            case MessageDelta(id=id_, text=text) if self._open_message is not None and id_ == self._open_message.id:
                yield self._text_delta(id_, text)

    def _tell_step(self, step: RunStep, *, begins: bool) -> Iterator[_Telling]:
        if self._open_step is not None and step.id != self._open_step:
            self._waiting_steps[step.id] = step
            return
        if step.status is RunStepStatus.IN_PROGRESS:
            yield from self._progress(step, begins=begins)
            return
        if step.id == self._open_step:
            yield from self._tell_calls(step)
        yield from self._end_step(step)
        while self._open_step is None and self._waiting_steps:
            step = self._waiting_steps.pop(next(iter(self._waiting_steps)))
            yield from self._progress(_as_it_began(step), begins=True)
            if step.status is not RunStepStatus.IN_PROGRESS:
                yield from self._end_step(step)

    def _progress(self, step: RunStep, *, begins: bool) -> Iterator[_Telling]:
        bare = attrs.evolve(step, step_details=ToolCalls(())) if _calls(step) else step
        if self._open_step is None:
            self._open_step = step.id
            self._is_step_begun = False
            self._told_calls = set()
            yield EventType.STEP_CREATED, bare
        if not begins:
            return
        if not self._is_step_begun:
            self._is_step_begun = True
            yield EventType.STEP_IN_PROGRESS, bare
        yield from self._tell_calls(step)

    def _end_step(self, step: RunStep) -> Iterator[_Telling]:
        self._open_step = None
        self._ended.add(step.id)
        yield EventType.of_step(step.status), step

    def _tell_calls(self, step: RunStep) -> Iterator[_Telling]:
        for index, call in enumerate(_calls(step)):
            yield from self._tell_call(step.id, index, call)

    def _tell_call(self, id_: str, index: int, call: ToolCall | UnknownObject) -> Iterator[_Telling]:
        if index in self._told_calls:
            return
        self._told_calls.add(index)
        if isinstance(call, UnknownObject):
            yield _step_delta(id_, {**call.data, "index": index})
            return
        function = call.function
        begun = {"name": function.name, "arguments": "", "output": function.output}
        yield _step_delta(id_, {"index": index, "id": call.id, "type": "function", "function": begun})
        yield _step_delta(id_, {"index": index, "type": "function", "function": {"arguments": function.arguments}})

    def _tell_message(self, event: RunEvent, message: Message) -> Iterator[_Telling]:
        bare = _as_it_was_announced(message)
        if self._open_message is None or self._open_message.id != message.id:
            if self._open_message is not None:  # the event that ended it is lost
                yield from self._end_message(_cut_off(self._open_message, event.created_at))
            self._open_message = bare
            self._is_message_begun = False
            self._is_text_told = False
            yield EventType.MESSAGE_CREATED, bare
        if event.type is not EventType.MESSAGE_CREATED and not self._is_message_begun:
            self._is_message_begun = True
            yield EventType.MESSAGE_IN_PROGRESS, bare
        if message.status is not MessageStatus.IN_PROGRESS:
            yield from self._end_message(message)

    def _end_message(self, message: Message) -> Iterator[_Telling]:
        match message.content:
            case (TextContent(text=text), *_) if text and not self._is_text_told:
                yield self._text_delta(message.id, text)  # it has no deltas, and some readers read only deltas
            case ():
                # Once any message had a delta, the Python helper reads the first block of a message that ended.
                message = attrs.evolve(message, content=(TextContent(""),))
        self._open_message = None
        self._ended.add(message.id)
        yield EventType.of_message(message.status), message

    def _text_delta(self, id_: str, text: str) -> _Telling:
        told: dict[str, Any] = {"value": text} if self._is_text_told else {"value": text, "annotations": []}
        self._is_text_told = True
        content = [{"index": 0, "type": "text", "text": told}]
        return EventType.MESSAGE_DELTA, {"id": id_, "object": "thread.message.delta", "delta": {"content": content}}


def _as_it_began(step: RunStep) -> RunStep:
    return attrs.evolve(
        step,
        status=RunStepStatus.IN_PROGRESS,
        completed_at=None,
        failed_at=None,
        cancelled_at=None,
        expired_at=None,
        last_error=None,
    )


def _as_it_was_announced(message: Message) -> Message:
    return attrs.evolve(
        message,
        status=MessageStatus.IN_PROGRESS,
        content=(),
        completed_at=None,
        incomplete_at=None,
        incomplete_details=None,
    )


def _cut_off(message: Message, now: int) -> Message:
    reason = IncompleteDetails("run_failed")
    return attrs.evolve(message, status=MessageStatus.INCOMPLETE, incomplete_at=now, incomplete_details=reason)


def _calls(step: RunStep) -> tuple[ToolCall | UnknownObject, ...]:
    return step.step_details.tool_calls if isinstance(step.step_details, ToolCalls) else ()


def _step_delta(id_: str, call: dict[str, Any]) -> _Telling:
    delta = {"step_details": {"type": "tool_calls", "tool_calls": [call]}}
    return EventType.STEP_DELTA, {"id": id_, "object": "thread.run.step.delta", "delta": delta}


def _frame(kind: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    # ASCII only, so no client can split a character between two lines or chunks.
    text = json.dumps(data, separators=(",", ":"))
    numbered = "" if number is None else f"id: {number}\n"
    return f"event: {kind}\ndata: {text}\n{numbered}\n".encode("ascii")
