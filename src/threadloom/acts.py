"""One act on a run: what it writes, gathered in order, beside the log as it will be after it.

The rules that decide what is done are in ``lifecycle``; here is how it is put into steps, messages and events, so that
a reader of the events finds at most one message open, every step closed, and the end of a run last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
from attrs import frozen

from threadloom.errors import (
    InvalidInputError,
)
from threadloom.events import (
    NUMBERS_PER_CLAIM,
    Checkpoint,
    EventData,
    EventType,
    MessageDelta,
    RunEvent,
    RunLog,
    StepDelta,
)
from threadloom.ids import check_id
from threadloom.models import (
    IncompleteDetails,
    Message,
    MessageStatus,
    RequiredAction,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    ToolCall,
    ToolCalls,
    Usage,
    check_metadata,
)

__all__ = [
    "Act",
    "Change",
    "Lease",
    "RunItem",
    "RunRecord",
    "RunWrite",
    "check_item",
    "tool_calls",
    "with_status",
    "with_step_status",
]

_SECOND = 1_000_000_000

# Why a message that was still open is not whole, by the status its run was given. A run that was forced to
# ``completed`` in the middle of a message was stopped by somebody, as a cancelled one is.
_REASON = {
    RunStatus.FAILED: "run_failed",
    RunStatus.EXPIRED: "run_expired",
    RunStatus.CANCELLED: "run_cancelled",
    RunStatus.COMPLETED: "run_cancelled",
    RunStatus.INCOMPLETE: "max_tokens",
}

# Steps have no ``incomplete``: what such a run left open was stopped.
_STEP_STATUS = {
    RunStatus.FAILED: RunStepStatus.FAILED,
    RunStatus.EXPIRED: RunStepStatus.EXPIRED,
    RunStatus.CANCELLED: RunStepStatus.CANCELLED,
    RunStatus.COMPLETED: RunStepStatus.COMPLETED,
    RunStatus.INCOMPLETE: RunStepStatus.CANCELLED,
}


@frozen(kw_only=True)
class Lease:
    """The right of one worker to write for one run. The token is random: who does not have it cannot write.

    ``life`` is what a store sees the worker live by, such as the name of a file that its process keeps locked.
    """

    thread_id: str
    run_id: str
    worker_id: str
    token: str
    attempt: int
    life: str = ""


@frozen
class RunRecord:
    """A run, and the lease on it while it has one."""

    run: Run
    lease: Lease | None = None


@frozen
class Change:
    """All that one act writes: the run's record, steps whole, messages for the end of the thread's log, events."""

    record: RunRecord
    steps: tuple[RunStep, ...] = ()
    messages: tuple[Message, ...] = ()
    events: tuple[RunEvent, ...] = ()


RunItem = RunStep | Message | MessageDelta | StepDelta | Checkpoint


@frozen(kw_only=True)
class RunWrite:
    """What a worker writes for its run in one act.

    ``items`` are taken in their order: a step, new or changed; a message ``in_progress``, which is only announced; a
    whole one, which is appended to the thread; deltas; checkpoints. Then come the run's own fields, of which none
    leaves ``usage`` and ``spent`` as they are; ``spent`` without a token clears it. A ``status`` other than
    ``in_progress`` gives the lease back; ``queued`` puts the run back to be taken again, at ``retry_at`` at the
    earliest, and counts an attempt if ``attempt_failed``.
    """

    items: tuple[RunItem, ...] = ()
    status: RunStatus | None = None
    error: RunError | None = None
    incomplete_details: IncompleteDetails | None = None
    required_action: RequiredAction | None = None
    usage: Usage | None = None
    spent: Usage | None = None
    retry_at: int | None = None
    attempt_failed: bool = False


class Act:
    """Gathers the change of one act, in order, beside the log as it will be after it."""

    def __init__(self, record: RunRecord, log: RunLog, now_ns: int, open_steps: Iterable[RunStep] = ()) -> None:
        self.now = now_ns // _SECOND
        self.log = log.copy()
        self._lying_open = open_steps
        # Its events say so too, where a foreign program has dropped it from the record.
        said = log.run is not None and log.run.is_rolled_back and not log.has_ended
        self._is_rolled_back = record.run.is_rolled_back or said
        self._steps: dict[str, RunStep] = {}
        self._messages: list[Message] = []
        self._events: list[RunEvent] = []

    @property
    def open_steps(self) -> dict[str, RunStep]:
        """The steps that are open: as the log has them, and those that lie open without it, which costs a look."""
        for step in self._lying_open:
            self.log.open_steps.setdefault(step.id, step)
        self._lying_open = ()
        return self.log.open_steps

    def emit(self, kind: EventType, data: EventData) -> None:
        """Say that something happened."""
        event = RunEvent(self.log.number + 1, kind, self.now, data)
        self.log.apply(event)
        self._events.append(event)

    def skip_ahead(self) -> None:
        """Let the next event have a number that nobody has seen: a power cut may have taken events that were read."""
        self.log.number = (self.log.number // NUMBERS_PER_CLAIM + 1) * NUMBERS_PER_CLAIM

    def put(self, item: RunItem, old: RunStep | None = None) -> None:
        """Take in what is written for the run; ``old`` is the step as it lies there, where the log has it closed."""
        match item:
            case RunStep():
                self._put_step(item, old or self.open_steps.get(item.id))
            case Message() if item.status is MessageStatus.IN_PROGRESS:
                if self.log.open_message is not None:
                    message = (
                        f"Message {self.log.open_message.id!r} of the run is still open: end it before the next one."
                    )
                    raise InvalidInputError(message)
                self.emit(EventType.MESSAGE_CREATED, item)
                self.emit(EventType.MESSAGE_IN_PROGRESS, item)
            case Message():
                # As where the run's end ends it: one that ended before a word was said stays in the events only.
                is_kept = bool(item.content) or item.status is MessageStatus.COMPLETED
                self.end(item, keep=is_kept and not self._is_rolled_back)
            case MessageDelta():
                _check_open(item, self.log.open_message is not None and self.log.open_message.id == item.id)
                self.emit(EventType.MESSAGE_DELTA, item)
            case StepDelta():
                _check_open(item, item.id in self.open_steps)
                self.emit(EventType.STEP_DELTA, item)
            case Checkpoint():
                self.emit(EventType.CHECKPOINT, item)

    def _put_step(self, step: RunStep, old: RunStep | None) -> None:
        if old is None:
            if step.id in self.log.closed_steps:
                message = f"Step {step.id!r} of the run is closed, and stays as it is."
                raise InvalidInputError(message)
            step = attrs.evolve(step, sequence=self.log.number + 1)
            old = attrs.evolve(step, status=RunStepStatus.IN_PROGRESS, completed_at=None, failed_at=None)
            self.emit(EventType.STEP_CREATED, old)
            self.emit(EventType.STEP_IN_PROGRESS, old)
        else:
            step = attrs.evolve(step, sequence=old.sequence)
        # An open step that has only new details is told of too: the log is asked for them when the step is closed.
        if step.status is not old.status or (step.status is RunStepStatus.IN_PROGRESS and step != old):
            self.emit(EventType.of_step(step.status), step)
        self._steps[step.id] = step

    def answer(self, run: Run, asked: Mapping[str, ToolCall], outputs: Mapping[str, str]) -> None:
        """Complete the steps that hold the calls, with their outputs."""
        left = dict(asked)
        for step in tuple(self.open_steps.values()):
            held = tool_calls(step)
            if not any(call.id in left for call in held):
                continue
            for call in held:
                left.pop(call.id, None)
            self._put_step(self._answered(step, outputs), step)
        if left:
            # Asked for by a program that knows no steps: the outputs must lie somewhere all the same.
            step = RunStep(
                id=f"step_{self.log.number + 1}",
                created_at=self.now,
                run_id=run.id,
                thread_id=run.thread_id,
                type=RunStepType.TOOL_CALLS,
                status=RunStepStatus.IN_PROGRESS,
                step_details=ToolCalls(tuple(left.values())),
                assistant_id=run.assistant_id,
                turn=run.turn,
            )
            self._put_step(self._answered(step, outputs), None)

    def _answered(self, step: RunStep, outputs: Mapping[str, str]) -> RunStep:
        details = step.step_details
        assert isinstance(details, ToolCalls)  # noqa: S101 - it holds a call
        calls = tuple(
            attrs.evolve(call, function=attrs.evolve(call.function, output=outputs[call.id]))
            if isinstance(call, ToolCall) and call.id in outputs
            else call
            for call in details.tool_calls
        )
        return attrs.evolve(with_step_status(step, RunStepStatus.COMPLETED, self.now), step_details=ToolCalls(calls))

    def come_to(self, run: Run, lease: Lease | None) -> Change:
        """Settle what is open if ``run`` is terminal, then let its own event be the last."""
        if run.status.is_terminal:
            run = attrs.evolve(run, is_rolled_back=self._is_rolled_back)
            self._end_message(_REASON[run.status], keep=not self._is_rolled_back)
            self._close_steps(_STEP_STATUS[run.status], run.last_error)
        self.emit(EventType.of_run(run.status), run)
        return self.change(run, lease)

    def abandon(self, *, failed: bool) -> None:
        """End what is open, as the work is going to be done again: a text that was begun stays in the events only."""
        self._end_message("run_failed" if failed else "run_cancelled", keep=False)
        self._close_steps(RunStepStatus.FAILED if failed else RunStepStatus.CANCELLED, None)

    def _end_message(self, reason: str, *, keep: bool) -> None:
        message = self.log.partial_message(reason, self.now)
        if message is None:
            return
        self.end(message, keep=keep and bool(message.content))

    def end(self, message: Message, *, keep: bool) -> None:
        """End a message, and append it to the thread if it is kept."""
        if keep:
            self._messages.append(message)
        self.emit(EventType.of_message(message.status), message)

    def _close_steps(self, status: RunStepStatus, error: RunError | None) -> None:
        for step in tuple(self.open_steps.values()):
            closed = with_step_status(step, status, self.now)
            if status is RunStepStatus.FAILED and error is not None:
                closed = attrs.evolve(closed, last_error=error)
            self._put_step(closed, step)

    def change(self, run: Run, lease: Lease | None = None) -> Change:
        """Return all that was gathered, with the run as it is then."""
        return Change(RunRecord(run, lease), tuple(self._steps.values()), tuple(self._messages), tuple(self._events))


def tool_calls(step: RunStep) -> list[ToolCall]:
    """Return the calls of functions that a step has."""
    details = step.step_details
    if not isinstance(details, ToolCalls):
        return []
    return [call for call in details.tool_calls if isinstance(call, ToolCall)]


def check_item(run: Run, item: RunItem) -> None:
    """Raise unless a worker may write ``item`` for the run: it has an id, and says that it is the run's."""
    if isinstance(item, Checkpoint):
        if not isinstance(item.name, str):
            message = f"The name of a checkpoint is a str, not {type(item.name).__name__}."
            raise InvalidInputError(message)
        return
    check_id(item.id)
    if not isinstance(item, RunStep | Message):
        return
    if (item.thread_id, item.run_id) != (run.thread_id, run.id):
        message = f"{item.id!r} belongs to run {item.run_id!r} of thread {item.thread_id!r}, not to run {run.id!r}."
        raise InvalidInputError(message)
    check_metadata(item.metadata)


def _check_open(delta: MessageDelta | StepDelta, is_open: bool) -> None:  # noqa: FBT001 - says what is checked
    if not is_open:
        message = f"A piece has come for {delta.id!r}, which is not open in the run."
        raise InvalidInputError(message)


def with_status(run: Run, status: RunStatus, error: RunError | None, now: int) -> Run:
    """Return the run with a status, and the moments and reasons that belong to it."""
    started_at = now if status is RunStatus.IN_PROGRESS and run.started_at is None else run.started_at
    return attrs.evolve(
        run,
        status=status,
        last_error=error,
        started_at=started_at,
        required_action=run.required_action if status is RunStatus.REQUIRES_ACTION else None,
        incomplete_details=run.incomplete_details if status is RunStatus.INCOMPLETE else None,
        # One moment at the most says how the run ended; a run that was forced on has not ended.
        completed_at=now if status is RunStatus.COMPLETED else None,
        failed_at=now if status is RunStatus.FAILED else None,
        cancelled_at=now if status is RunStatus.CANCELLED else None,
    )


def with_step_status(step: RunStep, status: RunStepStatus, now: int) -> RunStep:
    """Return the step with a status, and the moment that belongs to it."""
    return attrs.evolve(
        step,
        status=status,
        completed_at=now if status is RunStepStatus.COMPLETED else step.completed_at,
        failed_at=now if status is RunStepStatus.FAILED else step.failed_at,
        cancelled_at=now if status is RunStepStatus.CANCELLED else step.cancelled_at,
        expired_at=now if status is RunStepStatus.EXPIRED else step.expired_at,
    )
