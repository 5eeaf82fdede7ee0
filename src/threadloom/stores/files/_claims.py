"""Who works on which run: taking what is due, and taking back what a worker that is gone has left."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from datetime import timedelta

from attrs import define, field, frozen

from threadloom import lifecycle
from threadloom.errors import NotFoundError, StoreError, ThreadNotFoundError
from threadloom.events import RunLog
from threadloom.lifecycle import Change, Lease, RunRecord
from threadloom.models import Run, RunStatus
from threadloom.store import Claim
from threadloom.stores.files._journal import JournalError
from threadloom.stores.files._lock import LockedElsewhereError
from threadloom.stores.files._queue import Candidates
from threadloom.stores.files._runs import Runs
from threadloom.stores.files._threads import Threads
from threadloom.stores.files._writer import Work

__all__ = ["Claims", "Reclaimed", "Taken", "Taking"]

_logger = logging.getLogger("threadloom")

_SECOND_NS = 1_000_000_000
_LONGEST_WAIT_MICROSECONDS = 24 * 3_600 * 1_000_000  # then one looks again


@define(eq=False)
class Taking:
    """One attempt to take a run, and the claim that came of it: it stands whether or not anybody hears of it."""

    worker_id: str
    adopt: bool = False
    claim: Claim | None = None
    is_over: asyncio.Event = field(factory=asyncio.Event)


@frozen
class Taken:
    """What came of looking for a run to take."""

    claim: Claim | None = None
    next_due: timedelta | None = None
    settled: tuple[Run, ...] = ()
    met_a_lock: bool = False


@define
class Reclaimed:
    """What came of looking for runs whose workers are gone."""

    runs: list[Run] = field(factory=list)
    is_complete: bool = True


class Claims:
    """The queue as one process works on it. Everything here runs in the writing thread."""

    def __init__(self, threads: Threads, runs: Runs, time_ns: Callable[[], int], max_attempts: int, life: str) -> None:
        self._threads = threads
        self._runs = runs
        self._now = time_ns
        self._max_attempts = max_attempts
        self.life = life
        self.candidates = Candidates(runs.turns)
        # When to look again at a thread in which nothing changes by itself until then.
        self._delayed: dict[str, int] = {}
        # Threads in which there was nothing but for those who adopt.
        self._by_hand: set[str] = set()

    def take(self, taking: Taking) -> Work[Taken]:
        """Take the oldest run that is due, which is noted in ``taking`` too, or say when there is one next."""
        now_ns = self._now()
        self._look_again(now_ns, adopt=taking.adopt)
        settled: list[Run] = []
        locked: list[str] = []
        claim: Claim | None = None
        while claim is None and (first := self.candidates.first()) is not None:
            thread_id, place = first
            try:
                claim = taking.claim = yield from self._take_from(thread_id, place, taking, now_ns, settled)
            except LockedElsewhereError:
                locked.append(thread_id)
            except ThreadNotFoundError:
                self._runs.turns.forget(thread_id)
            except JournalError:
                for left_id in (*locked, thread_id):
                    self.candidates.look_at(left_id)
                raise
            except (StoreError, OSError) as error:
                # Of one thread only: the others go on. It is looked at again when something changes in it.
                _logger.warning("thread set aside", extra={"thread_id": thread_id}, exc_info=error)
        for locked_id in locked:
            self.candidates.look_at(locked_id)
        return Taken(claim, self._next_due(now_ns), tuple(settled), bool(locked))

    def _look_again(self, now_ns: int, *, adopt: bool) -> None:
        for thread_id, due_ns in list(self._delayed.items()):
            if due_ns <= now_ns:
                del self._delayed[thread_id]
                self.candidates.look_at(thread_id)
        while adopt and self._by_hand:
            self.candidates.look_at(self._by_hand.pop())

    def _next_due(self, now_ns: int) -> timedelta | None:
        waits = min(self._delayed.values(), default=None)
        if waits is None:
            return None
        return timedelta(microseconds=min(-((now_ns - waits) // 1_000), _LONGEST_WAIT_MICROSECONDS))

    def _take_from(
        self, thread_id: str, place: int, taking: Taking, now_ns: int, settled: list[Run]
    ) -> Work[Claim | None]:
        with self._threads.locked(thread_id):
            turn = self._runs.turns.read(thread_id)
            records = yield from self._runs.active_records(thread_id, turn)
            overdue = [record for record in records if lifecycle.is_overdue(record, now_ns)]
            for record in overdue:
                settled.append((yield from self._runs.act_locked(thread_id, record.run.id, self._expiring)))
                records.remove(record)
            if overdue:
                turn = self._runs.turns.read(thread_id)
            if turn.active and turn.active[0][0] > place:
                # The run by which it was chosen has ended: by the next one, it may be another thread's turn.
                self.candidates.look_at(thread_id)
                return None
            first = lifecycle.next_in_turn(records, adopt=taking.adopt)
            if first is not None and lifecycle.is_due(first, now_ns, adopt=taking.adopt):
                return (yield from self._claim(first.run, taking))
            moments = [record.run.expires_at for record in records if record.run.expires_at is not None]
            if first is not None and first.run.retry_at is not None:
                moments.append(first.run.retry_at)
            if any(lifecycle.is_by_hand(record) for record in records):
                self._by_hand.add(thread_id)
            if moments:
                self._delayed[thread_id] = min(moments) * _SECOND_NS
        return None

    def _expiring(self, record: RunRecord, known: RunLog) -> Change | None:
        if not lifecycle.is_overdue(record, self._now()):
            return None
        steps = self._runs.open_steps(record.run.thread_id, record.run.id)
        return lifecycle.force_status(record, known, RunStatus.EXPIRED, None, open_steps=steps, now_ns=self._now())

    def _claim(self, run: Run, taking: Taking) -> Work[Claim | None]:
        leases: list[tuple[Lease | None, bool]] = []

        def decide(record: RunRecord, known: RunLog) -> Change | None:
            leases.clear()
            if not lifecycle.is_due(record, self._now(), adopt=taking.adopt):
                return None
            # A hand may have left steps that the events know nothing of.
            is_by_hand = lifecycle.is_by_hand(record)
            change = lifecycle.claim(
                record,
                known,
                worker_id=taking.worker_id,
                token=secrets.token_hex(16),
                life=self.life,
                open_steps=self._runs.open_steps(run.thread_id, run.id) if is_by_hand else (),
                now_ns=self._now(),
            )
            leases.append((change.record.lease, lifecycle.has_past(record, known)))
            return change

        try:
            claimed = yield from self._runs.act_locked(run.thread_id, run.id, decide)
        except OSError:
            # Where what was written could not be taken back either, the claim stands.
            record = self._runs.record(run.thread_id, run.id)
            if not leases or leases[0][0] is None or not lifecycle.holds(record, leases[0][0]):
                raise
            claimed = record.run
        lease, has_past = next(iter(leases), (None, False))
        return None if lease is None else Claim(claimed, lease, has_past)

    # Workers that are gone

    def reclaim(self, is_gone: Callable[[str], bool]) -> Work[Reclaimed]:
        """Take every run back whose lease names a worker that is gone, and settle what foreign programs have ended.

        It is not complete where a thread was locked by another process at the moment: try again.
        """
        reclaimed = Reclaimed()
        for thread_id in self._runs.turns.announced():
            turn = self._runs.turns.peek(thread_id)
            for _, run_id in () if turn is None else turn.active:
                try:
                    yield from self._reclaim_one(thread_id, run_id, is_gone, reclaimed)
                except LockedElsewhereError:
                    reclaimed.is_complete = False
                except NotFoundError:
                    continue
                except (StoreError, OSError) as error:
                    ids = {"thread_id": thread_id, "run_id": run_id}
                    _logger.warning("run set aside", extra=ids, exc_info=error)
        return reclaimed

    def _reclaim_one(
        self, thread_id: str, run_id: str, is_gone: Callable[[str], bool], reclaimed: Reclaimed
    ) -> Work[None]:
        record = self._runs.record(thread_id, run_id)
        if record.run.status.is_terminal:
            with self._threads.locked(thread_id):
                yield from self._runs.active_records(thread_id, self._runs.turns.read(thread_id))
            reclaimed.runs.append(record.run)
            return
        if not self._is_left(record, is_gone):
            return

        def decide(record: RunRecord, known: RunLog) -> Change | None:
            if not self._is_left(record, is_gone):
                return None
            steps = self._runs.open_steps(thread_id, run_id)
            return lifecycle.reclaim(
                record, known, max_attempts=self._max_attempts, open_steps=steps, now_ns=self._now()
            )

        with self._threads.locked(thread_id):
            run = yield from self._runs.act_locked(thread_id, run_id, decide)
        reclaimed.runs.append(run)
        worker_id = record.lease.worker_id if record.lease is not None else None
        ids = {"thread_id": thread_id, "run_id": run_id, "worker_id": worker_id, "status": run.status}
        _logger.warning("run reclaimed", extra=ids)

    @staticmethod
    def _is_left(record: RunRecord, is_gone: Callable[[str], bool]) -> bool:
        return lifecycle.is_leased(record) and record.lease is not None and is_gone(record.lease.life)
