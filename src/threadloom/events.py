"""The events of a run, which are numbered, and what a reader of its log knows after each of them.

The names are those of OpenAI's event stream, except ``threadloom.checkpoint``, which is a handler's own. Numbers rise
strictly, with gaps: each claim of the run begins at the next multiple of ``NUMBERS_PER_CLAIM``, and so does a change
that somebody else makes while a worker holds the run. A number that was read once, and whose event (an unsynced delta)
a power failure then took, is never used again for another event.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from attrs import define, field, frozen, setters

from threadloom.models import (
    IncompleteDetails,
    Message,
    MessageStatus,
    Run,
    RunStatus,
    RunStep,
    RunStepStatus,
    TextContent,
    ToolCall,
)

__all__ = [
    "NUMBERS_PER_CLAIM",
    "Checkpoint",
    "EventType",
    "MessageDelta",
    "RunEvent",
    "RunLog",
    "StepDelta",
]

NUMBERS_PER_CLAIM = 1_000_000


class EventType(StrEnum):
    """The kinds of events."""

    RUN_CREATED = "thread.run.created"
    RUN_QUEUED = "thread.run.queued"
    RUN_IN_PROGRESS = "thread.run.in_progress"
    RUN_REQUIRES_ACTION = "thread.run.requires_action"
    RUN_CANCELLING = "thread.run.cancelling"
    RUN_CANCELLED = "thread.run.cancelled"
    RUN_FAILED = "thread.run.failed"
    RUN_COMPLETED = "thread.run.completed"
    RUN_INCOMPLETE = "thread.run.incomplete"
    RUN_EXPIRED = "thread.run.expired"
    STEP_CREATED = "thread.run.step.created"
    STEP_IN_PROGRESS = "thread.run.step.in_progress"
    STEP_DELTA = "thread.run.step.delta"
    STEP_COMPLETED = "thread.run.step.completed"
    STEP_FAILED = "thread.run.step.failed"
    STEP_CANCELLED = "thread.run.step.cancelled"
    STEP_EXPIRED = "thread.run.step.expired"
    MESSAGE_CREATED = "thread.message.created"
    MESSAGE_IN_PROGRESS = "thread.message.in_progress"
    MESSAGE_DELTA = "thread.message.delta"
    MESSAGE_COMPLETED = "thread.message.completed"
    MESSAGE_INCOMPLETE = "thread.message.incomplete"
    CHECKPOINT = "threadloom.checkpoint"

    @classmethod
    def of_run(cls, status: RunStatus) -> EventType:
        """Return the event of a run that has come to ``status``."""
        return cls(f"thread.run.{status}")

    @classmethod
    def of_step(cls, status: RunStepStatus) -> EventType:
        """Return the event of a step that has come to ``status``."""
        return cls(f"thread.run.step.{status}")

    @classmethod
    def of_message(cls, status: MessageStatus) -> EventType:
        """Return the event of a message that has come to ``status``."""
        return cls(f"thread.message.{status}")


@frozen
class MessageDelta:
    """A piece of text, to append to the message ``id``."""

    id: str
    text: str


@frozen
class StepDelta:
    """A tool call that the step ``id`` now has at ``index``."""

    id: str
    index: int
    tool_call: ToolCall


@frozen
class Checkpoint:
    """A result that a handler keeps for the whole run, under a name. ``result`` is any JSON."""

    name: str
    result: Any


_Pieces = tuple["_Pieces | None", str]
EventData = Run | RunStep | Message | MessageDelta | StepDelta | Checkpoint


@frozen
class RunEvent:
    """One event of a run. ``data`` is the object as it was then, or the piece that was added to it."""

    number: int
    type: EventType
    created_at: int
    data: EventData


def _as_pieces(text: str | _Pieces | None) -> _Pieces | None:
    if isinstance(text, str):
        return (None, text) if text else None
    return text


@define(on_setattr=setters.NO_OP)  # the converter is for the constructor only
class RunLog:
    """What the log of a run says up to some event: the fold of ``apply`` over the events before.

    number: the number of that event, 0 for none.
    run: the run, as in its last event; None before the first.
    open_steps: the steps that are in progress, by id, in the order in which they were begun.
    open_message: the message that is being streamed, as it was announced.
    text: what was streamed into it so far. A backend that restores a log from a summary passes a ``str``.
    """

    number: int = 0
    run: Run | None = None
    open_steps: dict[str, RunStep] = field(factory=dict)
    open_message: Message | None = None
    # A linked list of pieces, newest first, so that a copy of a log costs the same however long the text is.
    _text: _Pieces | None = field(default=None, alias="text", converter=_as_pieces, eq=False, repr=False)

    @property
    def has_ended(self) -> bool:
        """Whether the last event about the run says that it is terminal."""
        return self.run is not None and self.run.status.is_terminal

    @property
    def text(self) -> str:
        """The text that was streamed into the open message so far."""
        pieces: list[str] = []
        link = self._text
        while link is not None:
            link, piece = link
            pieces.append(piece)
        pieces.reverse()
        return "".join(pieces)

    def apply(self, event: RunEvent) -> None:
        """Take in the next event."""
        self.number = max(self.number, event.number)  # the next one is higher, even after damage
        match event.data:
            case MessageDelta(text=text):
                self._text = (self._text, text)
            case Run() as run:
                self.run = run
            case RunStep() as step if step.status is RunStepStatus.IN_PROGRESS:
                self.open_steps[step.id] = step
            case RunStep() as step:
                self.open_steps.pop(step.id, None)
            case Message() as message if message.status is MessageStatus.IN_PROGRESS:
                if self.open_message is None or self.open_message.id != message.id:
                    self._text = None
                self.open_message = message
            case Message():
                self.open_message = None
                self._text = None
            case StepDelta() | Checkpoint():
                pass

    def partial_message(self, reason: str, now: int) -> Message | None:
        """Return the open message with the text streamed into it so far, ended at ``now``; None where none is open."""
        message = self.open_message
        if message is None:
            return None
        text = self.text
        return Message(
            id=message.id,
            created_at=message.created_at,
            thread_id=message.thread_id,
            role=message.role,
            content=(TextContent(text),) if text else (),
            status=MessageStatus.INCOMPLETE,
            assistant_id=message.assistant_id,
            run_id=message.run_id,
            metadata=message.metadata,
            incomplete_at=now,
            incomplete_details=IncompleteDetails(reason),
        )

    def copy(self) -> RunLog:
        """Return a copy that changes independently."""
        return RunLog(self.number, self.run, dict(self.open_steps), self.open_message, self._text)
