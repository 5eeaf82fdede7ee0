"""The rules of the queue: whose turn it is in a thread, what a worker may claim, and what has been left behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from threadloom.backend import ThreadView
from threadloom.models import Run, RunStatus
from threadloom.records import Change, Claim, RunChange, RunRecord, RunState
from threadloom.rules import run as rules
from threadloom.rules.transaction import SECOND_NS

__all__ = ["Standing", "claim_next", "expire", "next_in_turn", "overdue_changes", "reclaim", "standing"]


@frozen(kw_only=True)
class Standing:
    """What a backend needs to know of the active runs of a thread to offer the thread as a candidate.

    sequence: of its first active run, 0 where that has none; None where the thread has no active run.
    is_ready: whether a worker may claim a run, at ``ready_at_ns`` at the earliest.
    ready_at_ns: the moment from which on a run may be claimed, None for now.
    expires_at_ns: the moment from which on somebody has to expire a run that no worker holds, or to finalize one that
        an external writer ended (then it is 0); None where there is none.
    is_by_hand: whether a worker that adopts may claim a run that is driven by hand.
    leases: the ``liveness_id`` of every live lease.
    """

    sequence: int | None = None
    is_ready: bool = False
    ready_at_ns: int | None = None
    expires_at_ns: int | None = None
    is_by_hand: bool = False
    leases: tuple[str, ...] = ()


def standing(active: Sequence[RunState]) -> Standing:
    """Return the standing of a thread with these active runs, in their order."""
    if not active:
        return Standing()
    records = [state.record for state in active]
    first = next_in_turn(records)
    moments = [_expires_at_ns(record) for record in records]
    return Standing(
        sequence=records[0].run.sequence or 0,
        is_ready=first is not None,
        ready_at_ns=None if first is None or first.run.retry_at is None else first.run.retry_at * SECOND_NS,
        expires_at_ns=min([moment for moment in moments if moment is not None], default=None),
        is_by_hand=first is None and next_in_turn(records, adopt=True) is not None,
        leases=tuple([record.lease.liveness_id for record in records if record.lease and rules.is_leased(record)]),
    )


def _expires_at_ns(record: RunRecord) -> int | None:
    if record.run.status.is_terminal:
        return 0
    if record.run.expires_at is None or rules.is_leased(record):
        return None
    return record.run.expires_at * SECOND_NS


def next_in_turn(records: Iterable[RunRecord], *, adopt: bool = False) -> RunRecord | None:
    """Return the run of a thread whose turn it is to be claimed, among ``records`` in their order, or None.

    There is none while another run is at work or waits for tool outputs, even where an older one was queued again. A
    run that is driven by hand is at work, so it has the turn: a worker that adopts claims it before the queued ones.
    """
    active = [record for record in records if not record.run.status.is_terminal]
    at_work = [record for record in active if record.run.status is not RunStatus.QUEUED]
    if not at_work:
        return active[0] if active else None
    return at_work[0] if adopt and all(rules.is_by_hand(record) for record in at_work) else None


def claim_next(
    view: ThreadView, place: int, *, worker_id: str, token: str, liveness_id: str, adopt: bool
) -> Change[Claim | None]:
    """Return the change by which a worker claims the next run of a thread, if one is due.

    The thread was chosen by ``place``, the ``sequence`` of its first active run at that time. Where that run has ended,
    or is expired now, nothing is claimed: by its next run, the thread may have to wait behind others.
    """
    active = view.active_runs
    changes = overdue_changes(view)
    ended = {change.record.run.id for change in changes}
    left = [state for state in active if state.run.id not in ended]
    record = next_in_turn([state.record for state in left], adopt=adopt)
    has_place = bool(left) and left[0] is active[0] and (left[0].run.sequence or 0) <= place
    if record is None or not has_place or not rules.is_due(record, view.now_ns, adopt=adopt):
        return Change(result=None, runs=changes)
    state = next(state for state in left if state.record is record)
    change = rules.claim(state, worker_id=worker_id, token=token, liveness_id=liveness_id, now_ns=view.now_ns)
    assert change.record.lease is not None  # noqa: S101 - a claim gives one
    claimed = Claim(change.record.run, change.record.lease, rules.has_past(state))
    return Change(result=claimed, runs=(*changes, change))


def expire(view: ThreadView) -> Change[tuple[Run, ...]]:
    """Return the change that expires the overdue runs of a thread, and finalizes those that were ended externally."""
    changes = overdue_changes(view)
    return Change(result=tuple([change.record.run for change in changes]), runs=changes)


def overdue_changes(view: ThreadView, *, but: str | None = None) -> tuple[RunChange, ...]:
    """Return the changes that every transaction makes which meets the active runs of a thread, except to run ``but``.

    They expire runs that are overdue, and finalize runs that an external writer ended.
    """
    changes: list[RunChange] = []
    for state in view.active_runs:
        if state.run.id == but:
            continue
        if state.run.status.is_terminal:
            finalized = rules.finalize(state, now_ns=view.now_ns)
            if finalized is not None:
                changes.append(finalized)
        elif rules.is_overdue(state.record, view.now_ns):
            changes.append(rules.force_status(state, RunStatus.EXPIRED, None, now_ns=view.now_ns))
    return tuple(changes)


def reclaim(view: ThreadView, *, max_attempts: int) -> Change[tuple[Run, ...]]:
    """Return the change that takes the runs of a thread from workers that are gone."""
    changes = [
        rules.reclaim(state, max_attempts=max_attempts, now_ns=view.now_ns)
        for state in view.active_runs
        if state.record.lease is not None and rules.is_leased(state.record) and view.is_gone(state.record.lease)
    ]
    made = tuple([change for change in changes if change is not None])
    return Change(result=tuple([change.record.run for change in made]), runs=made)
