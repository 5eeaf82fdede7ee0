"""The rules of one run: from its state to a change of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from threadloom.copies import evolved
from threadloom.errors import (
    InvalidInputError,
    InvalidTransitionError,
    LeaseLostError,
    RunInTerminalStateError,
    ToolOutputsRefusedError,
)
from threadloom.events import NUMBERS_PER_CLAIM, EventType, RunLog
from threadloom.models import (
    Message,
    MessageStatus,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    StepDetails,
    ToolCall,
    ToolOutput,
)
from threadloom.records import Lease, RunChange, RunRecord, RunState, RunWrite
from threadloom.rules.transaction import (
    SECOND_NS,
    FindStep,
    RunTransaction,
    tool_calls,
    with_status,
    with_step_status,
)

__all__ = [
    "adopt_external",
    "append_message",
    "append_step",
    "claim",
    "create",
    "finalize",
    "force_status",
    "forced_record",
    "has_past",
    "holds",
    "is_by_hand",
    "is_due",
    "is_expired",
    "is_leased",
    "is_overdue",
    "reclaim",
    "request_cancel",
    "roll_back",
    "submit_tool_outputs",
    "update_status",
    "update_step",
    "write",
]

# The fields that say where a run is, rather than what was asked for: not restored where an external writer left them
# out. Every field but these is.
_NOT_RESTORED: Final = frozenset(
    {
        "status",
        "last_error",
        "required_action",
        "incomplete_details",
        "completed_at",
        "failed_at",
        "cancelled_at",
        "retry_at",
    }
)


# Questions


def holds(record: RunRecord, lease: Lease) -> bool:
    """Return whether ``lease`` is live: the record has its token, and the run is at work or asked to stop."""
    return (
        record.lease is not None
        and record.lease.token == lease.token
        and record.run.status in {RunStatus.IN_PROGRESS, RunStatus.CANCELLING}
    )


def is_leased(record: RunRecord) -> bool:
    """Return whether a worker has a live lease on the run."""
    return record.lease is not None and record.run.status in {RunStatus.IN_PROGRESS, RunStatus.CANCELLING}


def is_by_hand(record: RunRecord) -> bool:
    """Return whether somebody drives the run without a worker. A worker that is gone has left its lease."""
    return record.run.status is RunStatus.IN_PROGRESS and record.lease is None


def has_past(state: RunState) -> bool:
    """Return whether somebody worked on the run since it was created, or last forced to begin anew."""
    anew_from = state.run.anew_from or 0
    return (
        state.run.turn > 0
        or is_by_hand(state.record)
        or state.log.number // NUMBERS_PER_CLAIM > anew_from // NUMBERS_PER_CLAIM
    )


def is_due(record: RunRecord, now_ns: int, *, adopt: bool = False) -> bool:
    """Return whether a worker may claim the run now; with ``adopt`` also one that is driven by hand."""
    if record.run.status is not RunStatus.QUEUED:
        return adopt and is_by_hand(record)
    return record.run.retry_at is None or record.run.retry_at * SECOND_NS <= now_ns


def is_expired(run: Run, now_ns: int) -> bool:
    """Return whether the run is past its ``expires_at`` and not terminal."""
    return not run.status.is_terminal and run.expires_at is not None and run.expires_at * SECOND_NS <= now_ns


def is_overdue(record: RunRecord, now_ns: int) -> bool:
    """Return whether anybody may expire the run: it is past its time, and no worker that would do so holds it."""
    return is_expired(record.run, now_ns) and not is_leased(record)


# Changes


def create(run: Run, *, sequence: int, messages_before: int, now_ns: int) -> RunChange:
    """Return the change that creates a run, which may come with any status.

    ``expires_after_seconds`` is dropped where ``expires_at`` is set, since it could never count.
    """
    run = evolved(
        run,
        sequence=sequence,
        messages_before=messages_before,
        attempt=1,
        turn=0,
        retry_at=None,
        anew_from=None,
        expires_after_seconds=run.expires_after_seconds if run.expires_at is None else None,
        spent=None,
        is_rolled_back=False,
    )
    record = RunRecord(run)
    transaction = RunTransaction(RunState(record, RunLog()), now_ns)
    transaction.emit(EventType.RUN_CREATED, run)
    transaction.emit(EventType.of_run(run.status), run)
    return transaction.change(record, is_new=True)


def claim(state: RunState, *, worker_id: str, token: str, liveness_id: str, now_ns: int) -> RunChange:
    """Return the change that gives a worker a lease on a run that is due.

    A run that was driven by hand stays in its attempt, since nothing says that the attempt failed. Open steps and an
    open message end, since their work is done again. A run that was rolled back keeps its messages from now on:
    somebody forced it back.
    """
    run = state.run
    lease = Lease(
        thread_id=run.thread_id,
        run_id=run.id,
        worker_id=worker_id,
        token=token,
        attempt=run.attempt,
        liveness_id=liveness_id,
    )
    transaction = RunTransaction(state, now_ns)
    # Left by somebody who drove the run by hand, or by a worker whose run an external writer queued.
    transaction.abandon(failed=False)
    transaction.skip_ahead()
    expires_at = run.expires_at
    if expires_at is None and run.expires_after_seconds is not None:
        expires_at = transaction.now + run.expires_after_seconds
    run = evolved(
        run,
        status=RunStatus.IN_PROGRESS,
        started_at=transaction.now if run.started_at is None else run.started_at,
        expires_at=expires_at,
        retry_at=None,
        is_rolled_back=False,
    )
    transaction.emit(EventType.RUN_IN_PROGRESS, run)
    return transaction.change(RunRecord(run, lease))


def write(
    state: RunState, lease: Lease, work: RunWrite, *, now_ns: int, find_step: FindStep | None = None
) -> RunChange:
    """Return the change that a worker writes under its lease, or raise ``LeaseLostError``.

    A run that is ``cancelling`` becomes ``cancelled`` and nothing else: ``InvalidTransitionError``.
    """
    if not holds(state.record, lease):
        raise LeaseLostError(lease.run_id, lease.worker_id)
    run = state.run
    if work.status is not None:
        _check_transition(run, work.status)
    transaction = RunTransaction(state, now_ns, find_step)
    for item in work.items:
        transaction.put(item)
    if work.usage is not None:
        run = evolved(run, usage=work.usage)
    if work.spent is not None:
        run = evolved(run, spent=work.spent if work.spent.total_tokens else None)
    if work.status is None or work.status is run.status:
        return transaction.change(state.record if run is state.run else evolved(state.record, run=run))
    if work.status is RunStatus.QUEUED:
        transaction.abandon(failed=work.attempt_failed)
        run = evolved(run, retry_at=work.retry_at, attempt=run.attempt + work.attempt_failed)
    run = with_status(run, work.status, work.error, transaction.now)
    if (run.required_action, run.incomplete_details) != (work.required_action, work.incomplete_details):
        run = evolved(run, required_action=work.required_action, incomplete_details=work.incomplete_details)
    return transaction.come_to(run, lease=None)


def update_status(state: RunState, status: RunStatus, error: RunError | None, *, now_ns: int) -> RunChange:
    """Return the change that brings a run to ``status`` by hand, which revokes the lease.

    A terminal run raises ``RunInTerminalStateError``; one that is ``cancelling`` becomes ``cancelled`` only, else
    ``InvalidTransitionError``.
    """
    _check_transition(state.run, status)
    transaction = _revoking(state, now_ns)
    if is_leased(state.record) and not status.is_terminal:
        transaction.abandon(failed=False)  # the worker's, who loses its lease; work by hand goes on
    return transaction.come_to(with_status(state.run, status, error, transaction.now), lease=None)


def force_status(state: RunState, status: RunStatus, error: RunError | None, *, now_ns: int) -> RunChange:
    """Return the change that brings a run to ``status`` from any other, and revokes its lease.

    ``queued`` starts the run over, at attempt 1: what it did before counts for nothing.
    """
    transaction = _revoking(state, now_ns)
    run = state.run
    if status is RunStatus.QUEUED or (is_leased(state.record) and not status.is_terminal):
        transaction.abandon(failed=False)
    if status is RunStatus.QUEUED:
        run = evolved(
            run,
            attempt=1,
            turn=0,
            retry_at=None,
            started_at=None,
            expires_at=run.expires_at if run.expires_after_seconds is None else None,
            usage=None,
            spent=None,
            is_rolled_back=False,
            anew_from=transaction.log.number + 1,
        )
    return transaction.come_to(with_status(run, status, error, transaction.now), lease=None)


def forced_record(run: Run, status: RunStatus, error: RunError | None, *, now_ns: int) -> Run:
    """Return a run with a status that is forced on its record alone, as an external writer would."""
    run = with_status(run, status, error, now_ns // SECOND_NS)
    if status is not RunStatus.QUEUED:
        return run
    return evolved(run, attempt=1, turn=0, retry_at=None, started_at=None, usage=None, spent=None, is_rolled_back=False)


def request_cancel(state: RunState, *, now_ns: int) -> RunChange | None:
    """Return the change that asks a run to stop, or None if it was asked before.

    ``cancelled`` at once where nobody has a lease, else ``cancelling``, and the lease stays. A terminal run raises
    ``RunInTerminalStateError``.
    """
    if state.run.status is RunStatus.CANCELLING and is_leased(state.record):
        return None
    return _stop(state, now_ns)


def roll_back(state: RunState, *, now_ns: int) -> RunChange:
    """Return the change that asks a run to stop, and keeps none of the messages that it writes from now on.

    A terminal run raises ``RunInTerminalStateError``. The run's events say so even where it was asked to stop before,
    since an external writer may drop it from the record.
    """
    run = evolved(state.run, is_rolled_back=True)
    return _stop(evolved(state, record=evolved(state.record, run=run)), now_ns)


def _stop(state: RunState, now_ns: int) -> RunChange:
    run = state.run
    if run.status.is_terminal:
        raise RunInTerminalStateError(run.id, run.status)
    transaction = _revoking(state, now_ns)
    if not is_leased(state.record):
        return transaction.come_to(with_status(run, RunStatus.CANCELLED, None, transaction.now), lease=None)
    return transaction.come_to(with_status(run, RunStatus.CANCELLING, None, transaction.now), state.record.lease)


def submit_tool_outputs(state: RunState, outputs: Sequence[ToolOutput], *, now_ns: int) -> RunChange:
    """Return the change that gives a run the outputs it waits for, all of them, and queues it for its next turn.

    ``ToolOutputsRefusedError`` where it waits for none; ``InvalidInputError`` unless every call has one output.
    """
    run = state.run
    if run.status is not RunStatus.REQUIRES_ACTION:
        raise ToolOutputsRefusedError(run.id, run.status)
    transaction = RunTransaction(state, now_ns)
    calls = _awaited_calls(run, transaction)
    got = [output.tool_call_id for output in outputs]
    if sorted(calls) != sorted(got):
        raise InvalidInputError(f"Expected tool outputs for call_ids {list(calls)}, got {got}.")
    transaction.answer(run, calls, {output.tool_call_id: output.output for output in outputs})
    run = evolved(with_status(run, RunStatus.QUEUED, None, transaction.now), turn=run.turn + 1, retry_at=None)
    return transaction.come_to(run, lease=None)


def finalize(state: RunState, *, now_ns: int) -> RunChange | None:
    """Return the change that closes what a terminal run left open, or None where nothing is.

    It needs no lease, since it changes no status: it closes open steps, keeps streamed text, and ends the event log of
    a run whose terminal status was written by an external writer.
    """
    if not state.run.status.is_terminal:
        return None
    transaction = RunTransaction(state, now_ns)
    has_ended = state.log.run is not None and state.log.run.status is state.run.status
    if has_ended and not transaction.open_steps and transaction.log.open_message is None:
        return None
    transaction.skip_ahead()
    return transaction.come_to(state.run, lease=None)


def adopt_external(state: RunState, record: RunRecord, *, now_ns: int) -> RunChange:
    """Return the change that takes in ``record``, with which an external writer replaced the run's record.

    The external status stands. Where it or anything else of the run differs from the log, it becomes an event; a
    terminal one also ends the log as ``finalize`` does. A record without ``sequence`` keeps the store's own fields and
    what was asked for, as the log has them, wherever it does not say otherwise. The lease stays only if the record
    still has a live one. A run that has no log yet is given the events of its creation.
    """
    logged = state.log.run
    run = record.run if logged is None or record.run.sequence is not None else _restored(record.run, logged)
    record = RunRecord(run, record.lease)
    if not is_leased(record):
        record = RunRecord(run)
    transaction = RunTransaction(evolved(state, record=RunRecord(run, state.record.lease)), now_ns)
    if logged is None:
        # What such a run left open stays as it is: it may be history, and nothing is known of what it did.
        transaction.emit(EventType.RUN_CREATED, run)
        transaction.emit(EventType.of_run(run.status), run)
        return transaction.change(record)
    if run == logged:
        return transaction.change(record)
    if is_leased(state.record) or logged.status in {RunStatus.IN_PROGRESS, RunStatus.CANCELLING}:
        transaction.skip_ahead()  # a worker may have held it, whether or not its lease is still known
    return transaction.come_to(run, record.lease)


def _restored(run: Run, logged: Run) -> Run:
    """Return a run with the fields of ``logged`` that an external writer left out, which are at their defaults."""
    default: Any = Run(id=run.id, created_at=0, thread_id=run.thread_id, status=run.status)
    names = [field.name for field in attrs.fields(Run) if field.name not in _NOT_RESTORED]
    left_out = [name for name in names if getattr(run, name) == getattr(default, name)]
    return evolved(run, **{name: getattr(logged, name) for name in left_out})


def reclaim(state: RunState, *, max_attempts: int, now_ns: int) -> RunChange | None:
    """Return the change that takes a run from a worker that is gone, or None where no lease is live.

    A run that was asked to stop is ``cancelled``, one past its time ``expired``. Any other has failed one attempt: it
    is ``queued`` for the next one, or ``failed`` if that was the last.
    """
    if not is_leased(state.record):
        return None
    run = state.run
    transaction = _revoking(state, now_ns)
    if run.status is RunStatus.CANCELLING:
        return transaction.come_to(with_status(run, RunStatus.CANCELLED, None, transaction.now), lease=None)
    if is_expired(run, now_ns):
        return transaction.come_to(with_status(run, RunStatus.EXPIRED, None, transaction.now), lease=None)
    if run.attempt >= max_attempts:
        error = RunError("server_error", f"The worker was lost in attempt {run.attempt}, which was the last.")
        return transaction.come_to(with_status(run, RunStatus.FAILED, error, transaction.now), lease=None)
    transaction.abandon(failed=True)
    run = evolved(run, attempt=run.attempt + 1)
    return transaction.come_to(with_status(run, RunStatus.QUEUED, None, transaction.now), lease=None)


def append_step(state: RunState, step: RunStep, *, now_ns: int) -> RunChange:
    """Return the change that adds a new step by hand; a lease stays."""
    transaction = RunTransaction(state, now_ns)
    transaction.put_step(evolved(step, sequence=None), None)
    return transaction.change(state.record)


def update_step(
    state: RunState,
    step: RunStep,
    status: RunStepStatus,
    *,
    details: StepDetails | None,
    error: RunError | None,
    now_ns: int,
) -> RunChange:
    """Return the change that brings ``step`` to ``status`` by hand, with new details where they are given."""
    transaction = RunTransaction(state, now_ns)
    changed = evolved(
        with_step_status(step, status, transaction.now),
        step_details=step.step_details if details is None else details,
        last_error=step.last_error if error is None else error,
    )
    transaction.put_step(changed, step)
    return transaction.change(state.record)


def append_message(state: RunState, message: Message, *, now_ns: int) -> RunChange:
    """Return the change that appends a whole message which names the run; a lease stays."""
    transaction = RunTransaction(state, now_ns)
    transaction.put(evolved(message, status=MessageStatus.IN_PROGRESS, content=(), completed_at=None))
    transaction.end_message(message, keep=True)
    return transaction.change(state.record)


def _revoking(state: RunState, now_ns: int) -> RunTransaction:
    """Return a transaction on a run that a worker may hold: its last deltas may have been read, and lost since."""
    transaction = RunTransaction(state, now_ns)
    if is_leased(state.record):
        transaction.skip_ahead()
    return transaction


def _check_transition(run: Run, status: RunStatus) -> None:
    if run.status.is_terminal:
        raise RunInTerminalStateError(run.id, run.status)
    if run.status is RunStatus.CANCELLING and status not in {RunStatus.CANCELLING, RunStatus.CANCELLED}:
        raise InvalidTransitionError(run.id, run.status, status, RunStatus.CANCELLED)


def _awaited_calls(run: Run, transaction: RunTransaction) -> dict[str, ToolCall]:
    """Return, by id, the calls whose outputs a run waits for: those it names itself, else those of its open steps."""
    if run.required_action is not None:
        return {call.id: call for call in run.required_action.tool_calls}
    calls = (call for step in transaction.open_steps.values() for call in tool_calls(step))
    return {call.id: call for call in calls if call.function.output is None}
