"""The rules of a run's life, once, as pure functions: a store calls them inside its lock or transaction.

Each takes what the store has (a ``RunRecord``, the ``RunLog`` of its events) and returns a ``Change``: all that one act
writes. Nothing here reads or writes anything, or knows the time but from its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from threadloom.acts import (
    Act,
    Change,
    Lease,
    RunRecord,
    RunWrite,
    check_item,
    tool_calls,
    with_status,
    with_step_status,
)
from threadloom.errors import (
    InvalidInputError,
    InvalidTransitionError,
    LeaseLostError,
    RunInTerminalStateError,
    ToolOutputsRefusedError,
)
from threadloom.events import (
    NUMBERS_PER_CLAIM,
    EventType,
    RunLog,
)
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
    "is_by_hand",
    "is_due",
    "is_expired",
    "is_leased",
    "is_overdue",
    "next_in_turn",
    "reclaim",
    "request_cancel",
    "restate",
    "roll_back",
    "settle",
    "submit_tool_outputs",
    "update_status",
    "update_step",
    "write",
]

_SECOND = 1_000_000_000


def create(run: Run, *, sequence: int, messages_before: int, now_ns: int) -> Change:
    """Return the first record of ``run``, which may be brought in with any status.

    Where ``expires_at`` is set there is nothing that ``expires_after_seconds`` could ever say.
    """
    run = attrs.evolve(
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
    act = Act(RunRecord(run), RunLog(), now_ns)
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


def is_by_hand(record: RunRecord) -> bool:
    """Return whether somebody drives the run by hand. A worker that is gone has left its lease: its runs are not."""
    return record.run.status is RunStatus.IN_PROGRESS and record.lease is None


def has_past(record: RunRecord, log: RunLog) -> bool:
    """Return whether somebody worked on the run before, since it was created or last forced to begin anew."""
    anew_from = record.run.anew_from or 0
    return record.run.turn > 0 or is_by_hand(record) or log.number // NUMBERS_PER_CLAIM > anew_from // NUMBERS_PER_CLAIM


def is_due(record: RunRecord, now_ns: int, *, adopt: bool = False) -> bool:
    """Return whether a worker may take the run now; one that adopts takes what is driven by hand, too."""
    if record.run.status is not RunStatus.QUEUED:
        return adopt and is_by_hand(record)
    return record.run.retry_at is None or record.run.retry_at * _SECOND <= now_ns


def is_expired(run: Run, now_ns: int) -> bool:
    """Return whether the run is past its ``expires_at`` and not settled."""
    return not run.status.is_terminal and run.expires_at is not None and run.expires_at * _SECOND <= now_ns


def is_overdue(record: RunRecord, now_ns: int) -> bool:
    """Return whether anybody may settle the run as ``expired``: nobody works on it who would do so."""
    return is_expired(record.run, now_ns) and not is_leased(record)


def next_in_turn(records: Iterable[RunRecord], *, adopt: bool = False) -> RunRecord | None:
    """Return the run whose turn it is to be taken among those of a thread, in their order, or none.

    There is none while another run is at work or waits for tool outputs, also where an older one was queued again. A
    run that is driven by hand is at work, and has the turn: who adopts takes it, and before those that are queued.
    """
    active = [record for record in records if not record.run.status.is_terminal]
    at_work = [record for record in active if record.run.status is not RunStatus.QUEUED]
    if not at_work:
        return active[0] if active else None
    return at_work[0] if adopt and all(is_by_hand(record) for record in at_work) else None


def claim(
    record: RunRecord,
    log: RunLog,
    *,
    worker_id: str,
    token: str,
    life: str = "",
    open_steps: Iterable[RunStep] = (),
    now_ns: int,
) -> Change:
    """Return the change that gives ``worker_id`` a lease on a run that is due.

    One that was driven by hand goes on with the attempt it is in, for nothing says that it failed. What is open in it
    is done again, from the top. One that was rolled back was given back its life by a force or a foreign program.
    """
    run = record.run
    lease = Lease(
        thread_id=run.thread_id, run_id=run.id, worker_id=worker_id, token=token, attempt=run.attempt, life=life
    )
    act = Act(record, log, now_ns, open_steps)
    # Left by a worker that is gone, by a hand, or by one whose run another program queued: it is done again.
    act.abandon(failed=False)
    act.skip_ahead()
    started_at = act.now if run.started_at is None else run.started_at
    expires_at = run.expires_at
    if expires_at is None and run.expires_after_seconds is not None:
        expires_at = act.now + run.expires_after_seconds
    run = attrs.evolve(
        run,
        status=RunStatus.IN_PROGRESS,
        started_at=started_at,
        expires_at=expires_at,
        retry_at=None,
        is_rolled_back=False,
    )
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
    act = Act(record, log, now_ns)
    for item in work.items:
        check_item(run, item)
        act.put(item)
    if work.usage is not None:
        run = attrs.evolve(run, usage=work.usage)
    if work.spent is not None:
        run = attrs.evolve(run, spent=work.spent if work.spent.total_tokens else None)
    if work.status is None or work.status is run.status:
        return act.change(run, lease)
    if work.status is RunStatus.QUEUED:
        act.abandon(failed=work.attempt_failed)
        run = attrs.evolve(run, retry_at=work.retry_at, attempt=run.attempt + work.attempt_failed)
    run = with_status(run, work.status, work.error, act.now)
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
    act = _taking_over(record, log, now_ns, open_steps)
    if is_leased(record) and not status.is_terminal:
        act.abandon(failed=False)  # the worker's, who goes; what is driven by hand stays as it is
    return act.come_to(with_status(record.run, status, error, act.now), lease=None)


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
    act = _taking_over(record, log, now_ns, open_steps)
    run = record.run
    if status is RunStatus.QUEUED or (is_leased(record) and not status.is_terminal):
        act.abandon(failed=False)
    if status is RunStatus.QUEUED:
        run = attrs.evolve(
            run,
            attempt=1,
            turn=0,
            retry_at=None,
            started_at=None,
            expires_at=run.expires_at if run.expires_after_seconds is None else None,
            usage=None,
            spent=None,
            is_rolled_back=False,
            anew_from=act.log.number + 1,
        )
    return act.come_to(with_status(run, status, error, act.now), lease=None)


def request_cancel(record: RunRecord, log: RunLog, *, open_steps: Iterable[RunStep] = (), now_ns: int) -> Change | None:
    """Return the change that asks a run to stop, or none if it was asked before.

    ``cancelled`` at once where nobody has a lease, else ``cancelling``, and the lease stays. A terminal run raises
    ``RunInTerminalStateError``.
    """
    if record.run.status is RunStatus.CANCELLING and is_leased(record):
        return None
    return _stop(record, log, open_steps, now_ns)


def roll_back(record: RunRecord, log: RunLog, *, open_steps: Iterable[RunStep] = (), now_ns: int) -> Change:
    """Return the change that asks a run to stop, and lets no message be kept that it writes from now on.

    A terminal run raises ``RunInTerminalStateError``. It says so in the run's events also where the run was asked
    before: a foreign program may drop it from the record.
    """
    run = attrs.evolve(record.run, is_rolled_back=True)
    return _stop(attrs.evolve(record, run=run), log, open_steps, now_ns)


def _stop(record: RunRecord, log: RunLog, open_steps: Iterable[RunStep], now_ns: int) -> Change:
    run = record.run
    if run.status.is_terminal:
        raise RunInTerminalStateError(run.id, run.status)
    act = _taking_over(record, log, now_ns, open_steps)
    if not is_leased(record):
        return act.come_to(with_status(run, RunStatus.CANCELLED, None, act.now), lease=None)
    return act.come_to(with_status(run, RunStatus.CANCELLING, None, act.now), record.lease)


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
    act = Act(record, log, now_ns, open_steps)
    asked = _calls_that_wait(run, act)
    got = [output.tool_call_id for output in outputs]
    if sorted(asked) != sorted(got):
        message = f"Expected tool outputs for call_ids {list(asked)}, got {got}."
        raise InvalidInputError(message)
    act.answer(run, asked, {output.tool_call_id: output.output for output in outputs})
    run = attrs.evolve(with_status(run, RunStatus.QUEUED, None, act.now), turn=run.turn + 1, retry_at=None)
    return act.come_to(run, lease=None)


def settle(record: RunRecord, log: RunLog, *, open_steps: Iterable[RunStep] = (), now_ns: int) -> Change | None:
    """Return the change that settles what a terminal run left open, or none where nothing is.

    It needs no lease, for it changes no status: it closes open steps, keeps streamed text, and ends the event log of a
    run whose terminal status was written by a program that knows none of these, or past a lock.
    """
    if not record.run.status.is_terminal:
        return None
    act = Act(record, log, now_ns, open_steps)
    has_ended = log.run is not None and log.run.status is record.run.status
    if has_ended and not act.open_steps and act.log.open_message is None:
        return None
    act.skip_ahead()
    return act.come_to(record.run, lease=None)


def restate(record: RunRecord, log: RunLog, items: Iterable[RunStep | Message], *, past: int, now_ns: int) -> Change:
    """Return the change that tells again of a run whose events were lost: what became of ``items``, and where it is.

    The events go on past every number that was given; ``past`` is the highest that is known from elsewhere.
    """
    act = Act(record, log, now_ns)
    act.log.number = max(log.number, past)
    act.skip_ahead()
    for item in items:
        kind = EventType.of_step(item.status) if isinstance(item, RunStep) else EventType.of_message(item.status)
        act.emit(kind, item)
    act.emit(EventType.of_run(record.run.status), record.run)
    return act.change(record.run, record.lease)


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
    act = _taking_over(record, log, now_ns, open_steps)
    if run.status is RunStatus.CANCELLING:
        return act.come_to(with_status(run, RunStatus.CANCELLED, None, act.now), lease=None)
    if run.attempt >= max_attempts:
        error = RunError("server_error", f"The worker was lost in attempt {run.attempt}, and no other is made.")
        return act.come_to(with_status(run, RunStatus.FAILED, error, act.now), lease=None)
    act.abandon(failed=True)
    run = attrs.evolve(run, attempt=run.attempt + 1)
    return act.come_to(with_status(run, RunStatus.QUEUED, None, act.now), lease=None)


def append_step(record: RunRecord, log: RunLog, step: RunStep, *, now_ns: int) -> Change:
    """Return the change that adds a step by hand; the lease, if any, stays."""
    act = Act(record, log, now_ns)
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
    act = Act(record, log, now_ns)
    changed = attrs.evolve(
        with_step_status(step, status, act.now),
        step_details=step.step_details if details is None else details,
        last_error=step.last_error if error is None else error,
    )
    act.put(changed, old=step)
    return act.change(record.run, record.lease)


def append_message(record: RunRecord, log: RunLog, message: Message, *, now_ns: int) -> Change:
    """Return the change that appends a whole message which names the run; the lease, if any, stays."""
    act = Act(record, log, now_ns)
    act.put(attrs.evolve(message, status=MessageStatus.IN_PROGRESS, content=(), completed_at=None))
    act.end(message, keep=True)
    return act.change(record.run, record.lease)


def _taking_over(record: RunRecord, log: RunLog, now_ns: int, open_steps: Iterable[RunStep]) -> Act:
    """Return an act on a run that a worker may be on: what it streamed last may have been read, and lost since."""
    act = Act(record, log, now_ns, open_steps)
    if is_leased(record):
        act.skip_ahead()
    return act


def _check_transition(run: Run, status: RunStatus) -> None:
    if run.status.is_terminal:
        raise RunInTerminalStateError(run.id, run.status)
    if run.status is RunStatus.CANCELLING and status not in {RunStatus.CANCELLING, RunStatus.CANCELLED}:
        raise InvalidTransitionError(run.id, run.status, status, RunStatus.CANCELLED)


def _calls_that_wait(run: Run, act: Act) -> dict[str, ToolCall]:
    """Return, by id, the calls for whose outputs a run waits: what it says itself, else what its open steps say."""
    if run.required_action is not None:
        return {call.id: call for call in run.required_action.tool_calls}
    calls = (call for step in act.open_steps.values() for call in tool_calls(step))
    return {call.id: call for call in calls if call.function.output is None}
