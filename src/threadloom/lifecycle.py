"""The rules of a run's life, once, as pure functions: a store calls them inside its lock or transaction.

Each takes what the store has (a ``RunRecord``, the ``RunLog`` of its events) and returns a ``Change``: all that one act
writes. Nothing here reads or writes anything, or knows the time but from its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
from attrs import frozen

from threadloom.errors import (
    InvalidInputError,
    InvalidTransitionError,
    LeaseLostError,
    RunInTerminalStateError,
    ToolOutputsRefusedError,
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
    StepDetails,
    ToolCall,
    ToolCalls,
    ToolOutput,
    Usage,
    check_metadata,
)

__all__ = [
    "Change",
    "Lease",
    "RunRecord",
    "RunWrite",
    "append_message",
    "append_step",
    "claim",
    "create",
    "force_status",
    "has_past",
    "holds",
    "is_due",
    "is_expired",
    "is_leased",
    "is_overdue",
    "next_in_turn",
    "reclaim",
    "request_cancel",
    "settle",
    "submit_tool_outputs",
    "update_status",
    "update_step",
    "write",
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
    whole one, which is appended to the thread; deltas; checkpoints. Then come the run's own fields. A ``status`` other
    than ``in_progress`` gives the lease back; ``queued`` puts the run back to be taken again, at ``retry_at`` at the
    earliest, and counts an attempt if ``attempt_failed``.
    """

    items: tuple[RunItem, ...] = ()
    status: RunStatus | None = None
    error: RunError | None = None
    incomplete_details: IncompleteDetails | None = None
    required_action: RequiredAction | None = None
    usage: Usage | None = None
    retry_at: int | None = None
    attempt_failed: bool = False


def create(run: Run, *, sequence: int, messages_before: int, now_ns: int) -> Change:
    """Return the first record of ``run``, which may be brought in with any status."""
    run = attrs.evolve(
        run, sequence=sequence, messages_before=messages_before, attempt=1, turn=0, retry_at=None, anew_from=None
    )
    act = _Act(RunRecord(run), RunLog(), now_ns)
    act.emit(EventType.RUN_CREATED, run)
    act.emit(EventType.of_run(run.status), run)
    return act.change(run)


def holds(record: RunRecord, lease: Lease) -> bool:
    """Return whether ``lease`` is live: its token is in the record, and the run is at work or asked to stop."""
    return (
        record.lease is not None
        and record.lease.token == lease.token
        and record.run.status in {RunStatus.IN_PROGRESS, RunStatus.CANCELLING}
    )


def is_leased(record: RunRecord) -> bool:
    """Return whether somebody has a live lease on the run."""
    return record.lease is not None and holds(record, record.lease)


def has_past(record: RunRecord, log: RunLog) -> bool:
    """Return whether somebody worked on the run before, since it was created or last forced to begin anew."""
    anew_from = record.run.anew_from or 0
    return record.run.turn > 0 or log.number // NUMBERS_PER_CLAIM > anew_from // NUMBERS_PER_CLAIM


def is_due(run: Run, now_ns: int) -> bool:
    """Return whether a worker may take the run now."""
    return run.status is RunStatus.QUEUED and (run.retry_at is None or run.retry_at * _SECOND <= now_ns)


def is_expired(run: Run, now_ns: int) -> bool:
    """Return whether the run is past its ``expires_at`` and not settled."""
    return not run.status.is_terminal and run.expires_at is not None and run.expires_at * _SECOND <= now_ns


def is_overdue(record: RunRecord, now_ns: int) -> bool:
    """Return whether anybody may settle the run as ``expired``: nobody works on it who would do so."""
    return is_expired(record.run, now_ns) and not is_leased(record)


def next_in_turn(runs: Iterable[Run]) -> Run | None:
    """Return the queued run whose turn it is among the ``runs`` of a thread, in their order, or none.

    There is none while another run is at work or waits for tool outputs, also where an older one was queued again.
    """
    active = [run for run in runs if not run.status.is_terminal]
    return active[0] if active and all(run.status is RunStatus.QUEUED for run in active) else None


def claim(record: RunRecord, log: RunLog, *, worker_id: str, token: str, life: str = "", now_ns: int) -> Change:
    """Return the change that gives ``worker_id`` a lease on a run that is due."""
    run = record.run
    lease = Lease(
        thread_id=run.thread_id, run_id=run.id, worker_id=worker_id, token=token, attempt=run.attempt, life=life
    )
    act = _Act(record, log, now_ns)
    # Left by a worker that is gone, or whose run another program queued: it is done again.
    act.abandon(failed=False)
    act.begin_claim()
    started_at = act.now if run.started_at is None else run.started_at
    run = attrs.evolve(run, status=RunStatus.IN_PROGRESS, started_at=started_at, retry_at=None)
    act.emit(EventType.RUN_IN_PROGRESS, run)
    return act.change(run, lease)


def write(record: RunRecord, log: RunLog, lease: Lease, work: RunWrite, *, now_ns: int) -> Change:
    """Return the change that a worker makes under its lease, or raise ``LeaseLostError``.

    A run that is ``cancelling`` becomes ``cancelled`` and nothing else: ``InvalidTransitionError``.
    """
    if not holds(record, lease):
        raise LeaseLostError(lease.run_id, lease.worker_id)
    run = record.run
    if work.status is not None:
        _check_transition(run, work.status)
    act = _Act(record, log, now_ns)
    for item in work.items:
        _check_item(run, item)
        act.put(item)
    if work.usage is not None:
        run = attrs.evolve(run, usage=work.usage)
    if work.status is None or work.status is run.status:
        return act.change(run, lease)
    if work.status is RunStatus.QUEUED:
        act.abandon(failed=work.attempt_failed)
        run = attrs.evolve(run, retry_at=work.retry_at, attempt=run.attempt + work.attempt_failed)
    run = _with_status(run, work.status, work.error, act.now)
    run = attrs.evolve(run, required_action=work.required_action, incomplete_details=work.incomplete_details)
    return act.come_to(run, lease=None)


def update_status(
    record: RunRecord,
    log: RunLog,
    status: RunStatus,
    error: RunError | None,
    *,
    open_steps: Iterable[RunStep] = (),
    now_ns: int,
) -> Change:
    """Return the change that brings a run to ``status`` by hand, which takes the lease away.

    A terminal run raises ``RunInTerminalStateError``; one that is ``cancelling`` becomes ``cancelled`` only, else
    ``InvalidTransitionError``.
    """
    _check_transition(record.run, status)
    act = _Act(record, log, now_ns, open_steps)
    if is_leased(record) and not status.is_terminal:
        act.abandon(failed=False)  # the worker's, who goes; what is driven by hand stays as it is
    return act.come_to(_with_status(record.run, status, error, act.now), lease=None)


def force_status(
    record: RunRecord,
    log: RunLog,
    status: RunStatus,
    error: RunError | None,
    *,
    open_steps: Iterable[RunStep] = (),
    now_ns: int,
) -> Change:
    """Return the change that brings a run to ``status`` from any other, takes the lease away, and settles it.

    ``queued`` queues the run anew, at attempt 1 and without what it came to before: what it did until then counts for
    nothing.
    """
    act = _Act(record, log, now_ns, open_steps)
    run = record.run
    if status is RunStatus.QUEUED or (is_leased(record) and not status.is_terminal):
        act.abandon(failed=False)
    if status is RunStatus.QUEUED:
        run = attrs.evolve(
            run, attempt=1, turn=0, retry_at=None, started_at=None, usage=None, anew_from=act.log.number + 1
        )
    return act.come_to(_with_status(run, status, error, act.now), lease=None)


def request_cancel(record: RunRecord, log: RunLog, *, open_steps: Iterable[RunStep] = (), now_ns: int) -> Change | None:
    """Return the change that asks a run to stop, or none if it was asked before.

    ``cancelled`` at once where nobody has a lease, else ``cancelling``, and the lease stays. A terminal run raises
    ``RunInTerminalStateError``.
    """
    run = record.run
    if run.status.is_terminal:
        raise RunInTerminalStateError(run.id, run.status)
    act = _Act(record, log, now_ns, open_steps)
    if not is_leased(record):
        return act.come_to(_with_status(run, RunStatus.CANCELLED, None, act.now), lease=None)
    if run.status is RunStatus.CANCELLING:
        return None
    return act.come_to(_with_status(run, RunStatus.CANCELLING, None, act.now), record.lease)


def submit_tool_outputs(
    record: RunRecord,
    log: RunLog,
    outputs: Sequence[ToolOutput],
    *,
    open_steps: Iterable[RunStep] = (),
    now_ns: int,
) -> Change:
    """Return the change that gives a run the outputs it waits for, all of them, and queues it for its next turn.

    ``ToolOutputsRefusedError`` where it waits for none; ``InvalidInputError`` unless every call has one output.
    """
    run = record.run
    if run.status is not RunStatus.REQUIRES_ACTION:
        raise ToolOutputsRefusedError(run.id, run.status)
    act = _Act(record, log, now_ns, open_steps)
    asked = _calls_that_wait(run, act.log)
    got = [output.tool_call_id for output in outputs]
    if sorted(asked) != sorted(got):
        message = f"Expected tool outputs for call_ids {list(asked)}, got {got}."
        raise InvalidInputError(message)
    act.answer(run, asked, {output.tool_call_id: output.output for output in outputs})
    run = attrs.evolve(_with_status(run, RunStatus.QUEUED, None, act.now), turn=run.turn + 1, retry_at=None)
    return act.come_to(run, lease=None)


def settle(record: RunRecord, log: RunLog, *, open_steps: Iterable[RunStep] = (), now_ns: int) -> Change | None:
    """Return the change that settles what a terminal run left open, or none where nothing is.

    It needs no lease, for it changes no status: it closes open steps, keeps streamed text, and ends the event log of a
    run whose terminal status was written by a program that knows none of these.
    """
    if not record.run.status.is_terminal:
        return None
    act = _Act(record, log, now_ns, open_steps)
    if log.has_ended and not act.log.open_steps and act.log.open_message is None:
        return None
    return act.come_to(record.run, lease=None)


def reclaim(
    record: RunRecord, log: RunLog, *, max_attempts: int, open_steps: Iterable[RunStep] = (), now_ns: int
) -> Change | None:
    """Return the change that takes a run from a worker that is gone, or none where no lease is live.

    A run that was asked to stop is ``cancelled``. Any other has failed one attempt more: it is ``queued`` for the next
    one, or ``failed`` if that was the last.
    """
    if not is_leased(record):
        return None
    run = record.run
    act = _Act(record, log, now_ns, open_steps)
    if run.status is RunStatus.CANCELLING:
        return act.come_to(_with_status(run, RunStatus.CANCELLED, None, act.now), lease=None)
    if run.attempt >= max_attempts:
        error = RunError("server_error", f"The worker was lost in attempt {run.attempt}, and no other is made.")
        return act.come_to(_with_status(run, RunStatus.FAILED, error, act.now), lease=None)
    act.abandon(failed=True)
    run = attrs.evolve(run, attempt=run.attempt + 1)
    return act.come_to(_with_status(run, RunStatus.QUEUED, None, act.now), lease=None)


def append_step(record: RunRecord, log: RunLog, step: RunStep, *, now_ns: int) -> Change:
    """Return the change that adds a step by hand; the lease, if any, stays."""
    act = _Act(record, log, now_ns)
    act.put(attrs.evolve(step, sequence=None))
    return act.change(record.run, record.lease)


def update_step(
    record: RunRecord,
    log: RunLog,
    step: RunStep,
    status: RunStepStatus,
    *,
    details: StepDetails | None,
    error: RunError | None,
    now_ns: int,
) -> Change:
    """Return the change that brings ``step`` to ``status`` by hand, with new details where they are given."""
    act = _Act(record, log, now_ns)
    changed = attrs.evolve(
        _step_with_status(step, status, act.now),
        step_details=step.step_details if details is None else details,
        last_error=step.last_error if error is None else error,
    )
    act.put(changed, old=step)
    return act.change(record.run, record.lease)


def append_message(record: RunRecord, log: RunLog, message: Message, *, now_ns: int) -> Change:
    """Return the change that appends a whole message which names the run; the lease, if any, stays."""
    act = _Act(record, log, now_ns)
    act.put(attrs.evolve(message, status=MessageStatus.IN_PROGRESS, content=(), completed_at=None))
    act.end(message, keep=True)
    return act.change(record.run, record.lease)


class _Act:
    """Gathers the change of one act, in order, beside the log as it will be after it."""

    def __init__(self, record: RunRecord, log: RunLog, now_ns: int, open_steps: Iterable[RunStep] = ()) -> None:
        self.now = now_ns // _SECOND
        self.log = log.copy()
        for step in open_steps:
            self.log.open_steps.setdefault(step.id, step)
        self._record = record
        self._steps: dict[str, RunStep] = {}
        self._messages: list[Message] = []
        self._events: list[RunEvent] = []

    def emit(self, kind: EventType, data: EventData) -> None:
        event = RunEvent(self.log.number + 1, kind, self.now, data)
        self.log.apply(event)
        self._events.append(event)

    def begin_claim(self) -> None:
        self.log.number = (self.log.number // NUMBERS_PER_CLAIM + 1) * NUMBERS_PER_CLAIM

    def put(self, item: RunItem, old: RunStep | None = None) -> None:
        match item:
            case RunStep():
                self._put_step(item, old or self.log.open_steps.get(item.id))
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
                self.end(item, keep=bool(item.content) or item.status is MessageStatus.COMPLETED)
            case MessageDelta():
                _check_open(item, self.log.open_message is not None and self.log.open_message.id == item.id)
                self.emit(EventType.MESSAGE_DELTA, item)
            case StepDelta():
                _check_open(item, item.id in self.log.open_steps)
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
        for step in tuple(self.log.open_steps.values()):
            held = _tool_calls(step)
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
        return attrs.evolve(_step_with_status(step, RunStepStatus.COMPLETED, self.now), step_details=ToolCalls(calls))

    def come_to(self, run: Run, lease: Lease | None) -> Change:
        """Settle what is open if ``run`` is terminal, then let its own event be the last."""
        if run.status.is_terminal:
            self._end_message(_REASON[run.status], keep=True)
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
        if keep:
            self._messages.append(message)
        self.emit(EventType.of_message(message.status), message)

    def _close_steps(self, status: RunStepStatus, error: RunError | None) -> None:
        for step in tuple(self.log.open_steps.values()):
            closed = _step_with_status(step, status, self.now)
            if status is RunStepStatus.FAILED and error is not None:
                closed = attrs.evolve(closed, last_error=error)
            self._put_step(closed, step)

    def change(self, run: Run, lease: Lease | None = None) -> Change:
        return Change(RunRecord(run, lease), tuple(self._steps.values()), tuple(self._messages), tuple(self._events))


def _check_transition(run: Run, status: RunStatus) -> None:
    if run.status.is_terminal:
        raise RunInTerminalStateError(run.id, run.status)
    if run.status is RunStatus.CANCELLING and status not in {RunStatus.CANCELLING, RunStatus.CANCELLED}:
        raise InvalidTransitionError(run.id, run.status, status, RunStatus.CANCELLED)


def _calls_that_wait(run: Run, log: RunLog) -> dict[str, ToolCall]:
    """Return, by id, the calls for whose outputs a run waits: what it says itself, else what its open steps say."""
    if run.required_action is not None:
        return {call.id: call for call in run.required_action.tool_calls}
    calls = (call for step in log.open_steps.values() for call in _tool_calls(step))
    return {call.id: call for call in calls if call.function.output is None}


def _tool_calls(step: RunStep) -> list[ToolCall]:
    details = step.step_details
    if not isinstance(details, ToolCalls):
        return []
    return [call for call in details.tool_calls if isinstance(call, ToolCall)]


def _check_item(run: Run, item: RunItem) -> None:
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


def _with_status(run: Run, status: RunStatus, error: RunError | None, now: int) -> Run:
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


def _step_with_status(step: RunStep, status: RunStepStatus, now: int) -> RunStep:
    return attrs.evolve(
        step,
        status=status,
        completed_at=now if status is RunStepStatus.COMPLETED else step.completed_at,
        failed_at=now if status is RunStepStatus.FAILED else step.failed_at,
        cancelled_at=now if status is RunStepStatus.CANCELLED else step.cancelled_at,
        expired_at=now if status is RunStepStatus.EXPIRED else step.expired_at,
    )
