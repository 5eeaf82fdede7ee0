"""What one transaction writes for one run: steps, messages and events, gathered in order.

A reader of the events finds at most one message open, every step closed, and the end of a run last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from threadloom.copies import evolved
from threadloom.errors import InvalidInputError
from threadloom.events import (
    NUMBERS_PER_CLAIM,
    Checkpoint,
    EventData,
    EventType,
    MessageDelta,
    RunEvent,
    StepDelta,
)
from threadloom.models import (
    Message,
    MessageStatus,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    ToolCall,
    ToolCalls,
)
from threadloom.records import Lease, RunChange, RunItem, RunRecord, RunState

__all__ = ["SECOND_NS", "FindStep", "RunTransaction", "tool_calls", "with_status", "with_step_status"]

SECOND_NS = 1_000_000_000

# Why a message that was still open is not whole, by the status that its run came to. Somebody who forces a run to
# ``completed`` in the middle of a message stops it, as somebody who cancels it does.
_REASON = {
    RunStatus.FAILED: "run_failed",
    RunStatus.EXPIRED: "run_expired",
    RunStatus.CANCELLED: "run_cancelled",
    RunStatus.COMPLETED: "run_cancelled",
    RunStatus.INCOMPLETE: "max_tokens",
}

# Steps have no ``incomplete``: a run that ends so has stopped the ones that it left open.
_STEP_STATUS = {
    RunStatus.FAILED: RunStepStatus.FAILED,
    RunStatus.EXPIRED: RunStepStatus.EXPIRED,
    RunStatus.CANCELLED: RunStepStatus.CANCELLED,
    RunStatus.COMPLETED: RunStepStatus.COMPLETED,
    RunStatus.INCOMPLETE: RunStepStatus.CANCELLED,
}

FindStep = Callable[[str], RunStep | None]


class RunTransaction:
    """Gathers the change of one run, and keeps the log as it will be afterwards.

    find_step: returns a step of the run by id, as it was before the transaction.
    """

    def __init__(self, state: RunState, now_ns: int, find_step: FindStep | None = None) -> None:
        self.now = now_ns // SECOND_NS
        self.log = state.log.copy()
        self._unlogged_steps = state.unlogged_steps
        self._find_step = find_step
        # The events say so too, where an external writer dropped it from the record.
        log_says_so = state.log.run is not None and state.log.run.is_rolled_back and not state.log.has_ended
        self._is_rolled_back = state.run.is_rolled_back or log_says_so
        self._steps: dict[str, RunStep] = {}
        self._messages: list[Message] = []
        self._events: list[RunEvent] = []

    @property
    def open_steps(self) -> dict[str, RunStep]:
        """The open steps: those of the log, and those that it does not know, which may have to be read."""
        if self._unlogged_steps:
            for step in self._unlogged_steps:
                self.log.open_steps.setdefault(step.id, step)
            self._unlogged_steps = ()
        return self.log.open_steps

    def emit(self, kind: EventType, data: EventData) -> None:
        """Add an event."""
        event = RunEvent(self.log.number + 1, kind, self.now, data)
        self.log.apply(event)
        self._events.append(event)

    def skip_ahead(self) -> None:
        """Give the next event a number that nobody has read: a power failure may have taken events that were read."""
        self.log.number = (self.log.number // NUMBERS_PER_CLAIM + 1) * NUMBERS_PER_CLAIM

    def put(self, item: RunItem) -> None:
        """Add one item that a worker writes."""
        match item:
            case MessageDelta():
                _check_open(item.id, is_open=self.log.open_message is not None and self.log.open_message.id == item.id)
                self.emit(EventType.MESSAGE_DELTA, item)
            case RunStep():
                self.put_step(item, self.open_steps.get(item.id))
            case Message() if item.status is MessageStatus.IN_PROGRESS:
                if self.log.open_message is not None:
                    raise InvalidInputError(
                        f"Message {self.log.open_message.id!r} of the run is still open: end it before the next one."
                    )
                self.emit(EventType.MESSAGE_CREATED, item)
                self.emit(EventType.MESSAGE_IN_PROGRESS, item)
            case Message():
                # As at the end of a run: a message that ended early and without a word is kept in the events only.
                is_kept = bool(item.content) or item.status is MessageStatus.COMPLETED
                self.end_message(item, keep=is_kept and not self._is_rolled_back)
            case StepDelta():
                _check_open(item.id, is_open=item.id in self.open_steps)
                self.emit(EventType.STEP_DELTA, item)
            case Checkpoint():
                self.emit(EventType.CHECKPOINT, item)

    def put_step(self, step: RunStep, old: RunStep | None) -> None:
        """Add a step, new where ``old`` is None; ``old`` is the step as it was, if it may be changed."""
        if old is None:
            if step.id in self._steps or (self._find_step is not None and self._find_step(step.id) is not None):
                raise InvalidInputError(f"Step {step.id!r} of the run is closed, and stays as it is.")
            step = evolved(step, sequence=self.log.number + 1)
            old = evolved(step, status=RunStepStatus.IN_PROGRESS, completed_at=None, failed_at=None)
            self.emit(EventType.STEP_CREATED, old)
            self.emit(EventType.STEP_IN_PROGRESS, old)
        elif step.sequence != old.sequence:
            step = evolved(step, sequence=old.sequence)
        # New details of a step that stays open are an event too: the log is asked for them when the step is closed.
        if step.status is not old.status or (step.status is RunStepStatus.IN_PROGRESS and step != old):
            self.emit(EventType.of_step(step.status), step)
        self._steps[step.id] = step

    def answer(self, run: Run, calls: Mapping[str, ToolCall], outputs: Mapping[str, str]) -> None:
        """Complete the steps that hold ``calls``, with their outputs."""
        left = dict(calls)
        for step in tuple(self.open_steps.values()):
            held = tool_calls(step)
            if any(call.id in left for call in held):
                for call in held:
                    left.pop(call.id, None)
                self.put_step(self._answered(step, outputs), step)
        if left:
            # An external writer that knows no steps asked for these; their outputs need a step to be kept in.
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
            self.put_step(self._answered(step, outputs), None)

    def _answered(self, step: RunStep, outputs: Mapping[str, str]) -> RunStep:
        details = step.step_details
        assert isinstance(details, ToolCalls)  # noqa: S101 - it holds a call
        calls = tuple(
            evolved(call, function=evolved(call.function, output=outputs[call.id]))
            if isinstance(call, ToolCall) and call.id in outputs
            else call
            for call in details.tool_calls
        )
        return evolved(with_step_status(step, RunStepStatus.COMPLETED, self.now), step_details=ToolCalls(calls))

    def end_message(self, message: Message, *, keep: bool) -> None:
        """End a message; append it to the thread if it is kept."""
        if keep:
            self._messages.append(message)
        self.emit(EventType.of_message(message.status), message)

    def abandon(self, *, failed: bool) -> None:
        """End what is open, since the work is going to be done again: a text that was begun is kept in events only."""
        self._end_open_message("run_failed" if failed else "run_cancelled", keep=False)
        self._close_steps(RunStepStatus.FAILED if failed else RunStepStatus.CANCELLED, None)

    def come_to(self, run: Run, lease: Lease | None) -> RunChange:
        """Return the change to a run with a new status: its own event is the last, after what a terminal one ends."""
        if run.status.is_terminal:
            if run.is_rolled_back is not self._is_rolled_back:
                run = evolved(run, is_rolled_back=self._is_rolled_back)
            self._end_open_message(_REASON[run.status], keep=not self._is_rolled_back)
            self._close_steps(_STEP_STATUS[run.status], run.last_error)
        self.emit(EventType.of_run(run.status), run)
        return self.change(RunRecord(run, lease))

    def change(self, record: RunRecord, *, is_new: bool = False) -> RunChange:
        """Return the gathered change, with the run's record afterwards."""
        return RunChange(record, tuple(self._steps.values()), tuple(self._messages), tuple(self._events), is_new=is_new)

    def _end_open_message(self, reason: str, *, keep: bool) -> None:
        message = self.log.partial_message(reason, self.now)
        if message is not None:
            self.end_message(message, keep=keep and bool(message.content))

    def _close_steps(self, status: RunStepStatus, error: RunError | None) -> None:
        for step in tuple(self.open_steps.values()):
            closed = with_step_status(step, status, self.now)
            if status is RunStepStatus.FAILED and error is not None:
                closed = evolved(closed, last_error=error)
            self.put_step(closed, step)


def tool_calls(step: RunStep) -> list[ToolCall]:
    """Return the calls of functions that a step has."""
    details = step.step_details
    if not isinstance(details, ToolCalls):
        return []
    return [call for call in details.tool_calls if isinstance(call, ToolCall)]


def with_status(run: Run, status: RunStatus, error: RunError | None, now: int) -> Run:
    """Return the run with a status, and the moments and reasons that belong to it."""
    return evolved(
        run,
        status=status,
        last_error=error,
        started_at=now if status is RunStatus.IN_PROGRESS and run.started_at is None else run.started_at,
        required_action=run.required_action if status is RunStatus.REQUIRES_ACTION else None,
        incomplete_details=run.incomplete_details if status is RunStatus.INCOMPLETE else None,
        # At most one moment says how the run ended; a run that was forced back has not ended.
        completed_at=now if status is RunStatus.COMPLETED else None,
        failed_at=now if status is RunStatus.FAILED else None,
        cancelled_at=now if status is RunStatus.CANCELLED else None,
    )


def with_step_status(step: RunStep, status: RunStepStatus, now: int) -> RunStep:
    """Return the step with a status, and the moment that belongs to it."""
    return evolved(
        step,
        status=status,
        completed_at=now if status is RunStepStatus.COMPLETED else step.completed_at,
        failed_at=now if status is RunStepStatus.FAILED else step.failed_at,
        cancelled_at=now if status is RunStepStatus.CANCELLED else step.cancelled_at,
        expired_at=now if status is RunStepStatus.EXPIRED else step.expired_at,
    )


def _check_open(item_id: str, *, is_open: bool) -> None:
    if not is_open:
        raise InvalidInputError(f"A delta has come for {item_id!r}, which is not open in the run.")
