"""What happened in a run, as numbered events, and what a reader of its log knows after each of them.

The names are those of OpenAI's event stream, but for ``threadloom.checkpoint``, which is the handler's own. Numbers
rise strictly over a run's life, with gaps: each claim of the run begins at the next multiple of ``NUMBERS_PER_CLAIM``,
and so does what others do to a run that a worker is on, so that a number which was seen once, and then lost with an
unsynced delta in a power cut, never comes again with another meaning.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from attrs import define, field, frozen

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
    """What kind of thing happened."""

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
        """Return the event that says a run has come to ``status``."""
        return cls(f"thread.run.{status}")

    @classmethod
    def of_step(cls, status: RunStepStatus) -> EventType:
        """Return the event that says a step has come to ``status``."""
        return cls(f"thread.run.step.{status}")

    @classmethod
    def of_message(cls, status: MessageStatus) -> EventType:
        """Return the event that says a message has come to ``status``."""
        return cls(f"thread.message.{status}")


@frozen
class MessageDelta:
    """A piece of text, to be put after what the message ``id`` has so far."""

    id: str
    text: str


@frozen
class StepDelta:
    """A tool call that the step ``id`` has now at place ``index``."""

    id: str
    index: int
    tool_call: ToolCall


@frozen
class Checkpoint:
    """What a handler has found out once for the whole run, and under which name. ``result`` is any JSON."""

    name: str
    result: Any


_Pieces = tuple["_Pieces | None", str]
EventData = Run | RunStep | Message | MessageDelta | StepDelta | Checkpoint


@frozen
class RunEvent:
    """One thing that happened in a run. ``data`` is the object as it was then, or the piece that came to it."""

    number: int
    type: EventType
    created_at: int
    data: EventData


@define
class RunLog:
    """What the log of a run says up to some event: the fold of ``apply`` over the events before."""

    number: int = 0
    run: Run | None = None
    open_steps: dict[str, RunStep] = field(factory=dict)
    closed_steps: frozenset[str] = frozenset()
    open_message: Message | None = None
    # A linked list of the pieces, newest first: a copy of the log costs the same however long the text has grown.
    _text: _Pieces | None = field(default=None, eq=False, repr=False)

    @property
    def has_ended(self) -> bool:
        """Whether the last thing that was said of the run is that it is settled."""
        return self.run is not None and self.run.status.is_terminal

    def apply(self, event: RunEvent) -> None:
        """Take in the next event."""
        self.number = max(self.number, event.number)  # the next one rises, also after damage
        match event.data:
            case Run() as run:
                self.run = run
            case RunStep() as step if step.status is RunStepStatus.IN_PROGRESS:
                self.open_steps[step.id] = step
            case RunStep() as step:
                self.open_steps.pop(step.id, None)
                self.closed_steps |= {step.id}
            case Message() as message if message.status is MessageStatus.IN_PROGRESS:
                if self.open_message is None or self.open_message.id != message.id:
                    self._text = None
                self.open_message = message
            case Message():
                self.open_message = None
                self._text = None
            case MessageDelta(text=text):
                self._text = (self._text, text)
            case StepDelta() | Checkpoint():
                pass

    def partial_message(self, reason: str, now: int) -> Message | None:
        """Return the open message with the text streamed into it so far, ended now, or none where none is open."""
        message = self.open_message
        if message is None:
            return None
        text = self._joined_text()
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
        """Return a log that goes its own way from here."""
        return RunLog(self.number, self.run, dict(self.open_steps), self.closed_steps, self.open_message, self._text)

    def _joined_text(self) -> str:
        pieces: list[str] = []
        link = self._text
        while link is not None:
            link, piece = link
            pieces.append(piece)
        return "".join(reversed(pieces))
