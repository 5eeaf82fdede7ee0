"""What is done to runs and their steps: the synchronous work of each operation.

Every change of a run is one act under the lock of its thread: read the record and what its event log says, let the
rules of ``lifecycle`` decide, write all that they say: messages, record, steps, events, in the order in which readers
may see them. Against foreign programs the record decides: where it was replaced, the act is not made.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import attrs
from attrs import define, frozen

from threadloom import codec, lifecycle
from threadloom.checks import IdempotencyKey, MessageOnBusy, MetadataChange, new_metadata
from threadloom.errors import (
    ActiveRunError,
    LeaseLostError,
    NotFoundError,
    RunNotFoundError,
    RunStepAlreadyExistsError,
    RunStepNotFoundError,
    StoreError,
)
from threadloom.events import EventType, RunEvent, RunLog
from threadloom.lifecycle import Change, Lease, RunRecord, RunWrite
from threadloom.models import Message, Run, RunError, RunStatus, RunStep
from threadloom.stores.files import _log as log
from threadloom.stores.files._commit import Committer
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._keys import Keys
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._opened import Held
from threadloom.stores.files._queue import Turn, TurnBook
from threadloom.stores.files._records import dumped, rewritten, starting_over_after_foreign_writes
from threadloom.stores.files._run_files import RunFiles
from threadloom.stores.files._threads import Threads
from threadloom.stores.files._writer import Work
from threadloom.stores.files._writes import Append, Put, Unchanged

__all__ = ["Planned", "Runs"]

_logger = logging.getLogger("threadloom")

_MOST_KNOWN_LOGS = 4_096
_DELTAS = frozenset({EventType.MESSAGE_DELTA, EventType.STEP_DELTA})

Decide = Callable[[RunRecord, RunLog], Change | None]


@define
class _KnownLog:
    """What this process knows of an event log: what it says up to ``size`` bytes."""

    inode: int
    size: int
    log: RunLog


@frozen
class Planned:
    """What a change of a run writes, but for the messages, which with those of other runs go into one append."""

    old: Run
    change: Change
    record: tuple[Put | Unchanged, ...]
    steps: tuple[Put, ...]
    events: tuple[Append, ...]

    @property
    def run(self) -> Run:
        """The run as it is then."""
        return self.change.record.run

    @property
    def is_end(self) -> bool:
        """Whether it brings the run to its end."""
        return self.run.status.is_terminal and any(isinstance(write, Put) for write in self.record)


class Runs(RunFiles):
    """Runs, steps and events on disk, and how they are changed."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        committer: Committer,
        threads: Threads,
        *,
        logs: log.Logs,
        keys: Keys,
        turns: TurnBook,
        time_ns: Callable[[], int],
    ) -> None:
        super().__init__(layout, disk, threads)
        self._committer = committer
        self._logs = logs
        self._keys = keys
        self._now = time_ns
        self.turns = turns
        self._known_logs: OrderedDict[tuple[str, str], _KnownLog] = OrderedDict()

    # Runs

    def update(self, thread_id: str, run_id: str, change: MetadataChange) -> Work[Run]:
        path = self._layout.status(thread_id, run_id)

        def act() -> Work[Run]:
            with self.held(thread_id, run_id) as held:
                old = self.decoded(thread_id, run_id, held.data)
                run = attrs.evolve(old.run, metadata=new_metadata(old.run.metadata, change))
                new = rewritten(held, old, attrs.evolve(old, run=run))
                yield from self._committer.commit(thread_id, Put.over(held, new))
                return run

        with self._threads.locked(thread_id):
            return (yield from starting_over_after_foreign_writes(path, act))

    def act(
        self, thread_id: str, run_id: str, decide: Callable[[RunRecord, RunLog, Iterable[RunStep]], Change | None]
    ) -> Work[Run]:
        """Return the run after the change that ``decide`` makes of it, with the open steps that lie on disk."""

        def decide_with_steps(record: RunRecord, known: RunLog) -> Change | None:
            return decide(record, known, self.open_steps(thread_id, run_id))

        return self._act(thread_id, run_id, decide_with_steps)

    def force_past_lock(self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None) -> Work[Run]:
        """Replace a run's record as a program would that does not lock: what its worker left open stays open.

        For a force that may not wait. Whoever gets the lock next finds the run ended, and settles it.
        """
        path = self._layout.status(thread_id, run_id)

        def act() -> Work[Run]:
            with self.held(thread_id, run_id) as held:
                old = self.decoded(thread_id, run_id, held.data)
                new = lifecycle.force_status(old, RunLog(), status, error, now_ns=self._now()).record
                yield from self._committer.commit(thread_id, Put.over(held, rewritten(held, old, new)))
                return new.run

        return starting_over_after_foreign_writes(path, act)

    def write(self, lease: Lease, work: RunWrite) -> Work[Run]:
        try:
            return (
                yield from self._act(
                    lease.thread_id,
                    lease.run_id,
                    lambda record, known: lifecycle.write(record, known, lease, work, now_ns=self._now()),
                )
            )
        except NotFoundError:
            raise LeaseLostError(lease.run_id, lease.worker_id) from None

    def append_message(
        self, thread_id: str, message: Message, on_busy: MessageOnBusy, key: IdempotencyKey | None
    ) -> Work[Message]:
        """Append a message; one that names a run is told of in the run's events, where the run is there."""
        path = self._keys.within(thread_id, "message", key)
        with self._threads.locked(thread_id):
            created = self._keys.made_before(path, key, Message)
            if created is not None:
                return created
            if on_busy == "reject":
                yield from self.check_not_busy(thread_id)
            put = self._keys.putting(path, key, message)
            if message.run_id is not None and self._disk.exists(self._layout.run(thread_id, message.run_id)):
                yield from self.act_locked(
                    thread_id,
                    message.run_id,
                    lambda record, known: lifecycle.append_message(record, known, message, now_ns=self._now()),
                    *put,
                )
            else:
                yield from self._committer.commit(thread_id, self._threads.appending(thread_id, message), *put)
        return message

    def delete_thread(self, thread_id: str, *, force: bool) -> Work[list[str]]:
        """Remove a thread; return the ids of the runs that went with it."""
        trash = f"{self._layout.trash}/{thread_id}-{secrets.token_hex(8)}"
        with self._threads.locked(thread_id):
            if not force:
                yield from self.check_not_busy(thread_id)
            run_ids = self.run_ids(thread_id)
            # No journal is to tell of it when it is gone, or another has taken its place.
            self._committer.make_durable()
            self._disk.move(self._layout.thread(thread_id), trash)
            if self._committer.power:
                self._disk.sync(self._layout.root)
                self._disk.sync(self._layout.trash)
            self.turns.forget(thread_id)
            self._drop(self._layout.thread(thread_id))
            # The lock goes with the directory, and says that somebody is at it.
            self._disk.remove_tree(trash)
        return run_ids

    # Steps

    def append_step(self, thread_id: str, run_id: str, step: RunStep) -> Work[RunStep]:
        def decide(record: RunRecord, known: RunLog) -> Change:
            if self._disk.exists(self._layout.step(thread_id, run_id, step.id)):
                raise RunStepAlreadyExistsError(run_id, step.id)
            return lifecycle.append_step(record, known, step, now_ns=self._now())

        return self._act_on_step(thread_id, run_id, decide)

    def update_step(
        self, thread_id: str, run_id: str, step_id: str, decide: Callable[[RunRecord, RunLog, RunStep], Change]
    ) -> Work[RunStep]:
        def decide_on_step(record: RunRecord, known: RunLog) -> Change:
            return decide(record, known, self._step_before(thread_id, run_id, step_id))

        return self._act_on_step(thread_id, run_id, decide_on_step)

    def _act_on_step(self, thread_id: str, run_id: str, decide: Callable[[RunRecord, RunLog], Change]) -> Work[RunStep]:
        changed: list[RunStep] = []

        def decide_and_note(record: RunRecord, known: RunLog) -> Change:
            change = decide(record, known)
            changed[:] = change.steps
            return change

        yield from self._act(thread_id, run_id, decide_and_note)
        # A copy: the log that is kept in memory has the other, and what is handed out may be changed by who has it.
        return attrs.evolve(changed[0], metadata=dict(changed[0].metadata))

    def _step_before(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        path = self._layout.step(thread_id, run_id, step_id)
        try:
            with self._disk.hold(path) as held:
                return codec.decode(held.data, RunStep, path)
        except FileNotFoundError:
            raise RunStepNotFoundError(run_id, step_id) from None

    def check_not_busy(self, thread_id: str) -> Work[None]:
        """Raise ``ActiveRunError`` where a run of the thread is not settled."""
        active = yield from self.active_records(thread_id, self.turns.read(thread_id))
        if active:
            raise ActiveRunError(thread_id, active[0].run.id)

    def active_records(self, thread_id: str, turn: Turn) -> Work[list[RunRecord]]:
        """Return the runs of a thread that are not settled, in order, and drop from its turn those that are.

        A damaged one is passed over: nobody can work on it, and it must not hold up the others (G8).
        """
        records: list[RunRecord] = []
        for _, run_id in tuple(turn.active):
            try:
                with self.held(thread_id, run_id) as held:
                    record = self.decoded(thread_id, run_id, held.data)
            except RunNotFoundError:
                self.turns.leave(thread_id, turn, run_id)
                continue
            except StoreError as error:
                _logger.warning("run set aside", extra={"thread_id": thread_id, "run_id": run_id}, exc_info=error)
                continue
            if record.run.status.is_terminal:
                # Written by a program that knows nothing of turns, nor of what there is to settle.
                yield from self.act_locked(thread_id, run_id, self.settling)
                self.turns.leave(thread_id, turn, run_id)
                continue
            records.append(record)
        return records

    def settling(self, record: RunRecord, known: RunLog) -> Change | None:
        """Return what there is to settle of a run, for ``act_locked``."""
        steps = self.open_steps(record.run.thread_id, record.run.id)
        return lifecycle.settle(record, known, open_steps=steps, now_ns=self._now())

    # Events

    # One act

    def _act(self, thread_id: str, run_id: str, decide: Decide) -> Work[Run]:
        with self._threads.locked(thread_id):
            return (yield from self.act_locked(thread_id, run_id, decide))

    def act_locked(self, thread_id: str, run_id: str, decide: Decide, *others: Put) -> Work[Run]:
        """Return the run after the change that ``decide`` makes of it, in a thread whose lock is held.

        ``others`` are new files that come with the change.
        """

        def act() -> Work[Run]:
            with self.held(thread_id, run_id) as held:
                record = self.decoded(thread_id, run_id, held.data)
                change = decide(record, self.known_log(thread_id, run_id, record.run.sequence))
                if change is None:
                    return record.run
                yield from self._commit(self.planned(held, record, change), others)
                return change.record.run

        return starting_over_after_foreign_writes(self._layout.status(thread_id, run_id), act)

    def planned(self, held: Held, old: RunRecord, change: Change) -> Planned:
        """Return what a change writes, all in bytes: what cannot be kept as JSON has changed nothing."""
        run = change.record.run
        record: tuple[Put | Unchanged, ...] = ()
        # Also where another program dropped the keys that were found again in the events: once, not at each reading.
        is_bare = old.run.sequence is not None and b'"sequence"' not in held.data
        if change.record != old or is_bare:
            record = (Put.over(held, rewritten(held, old, change.record)),)
        elif change.messages or change.steps or change.events:
            # Also under a lock: it may be forced past one whose process was frozen (and woke up here).
            record = (Unchanged.of(held),)
        steps = tuple(self._putting(step) for step in change.steps)
        return Planned(old.run, change, record, steps, self._appending(run, change.events) if change.events else ())

    def _commit(self, plan: Planned, others: Sequence[Put]) -> Work[None]:
        run = plan.run
        messages = plan.change.messages
        appended = (self._threads.appending(run.thread_id, *messages),) if messages else ()
        writes = [*appended, *plan.record, *plan.steps, *others, *plan.events]
        if not writes:
            return
        if plan.old.status.is_terminal and not run.status.is_terminal:
            # The index first, as it may name too many runs, but not too few.
            self.turns.enter(run.thread_id, self.turns.read(run.thread_id), run.sequence or 0, run.id)
        is_lasting = bool(plan.steps or others) or any(event.type not in _DELTAS for event in plan.change.events)
        then = self.before(plan)
        yield from self._committer.commit(run.thread_id, *writes, sync=is_lasting, then=then)
        yield from self.settle_what_came_past(plan)

    def before(self, plan: Planned) -> Callable[[], None]:
        """Forget what is known of a run that is about to change; return what is to be called when it has."""
        # After a failure the file is read again and says how far it came.
        known = self._known_logs.pop((plan.run.thread_id, plan.run.id), None)

        def then() -> None:
            self._learn(plan, known)
            self._requeue(plan.old, plan.run)
            if plan.run.status.is_terminal:
                self._drop(self._layout.run(plan.run.thread_id, plan.run.id))
                for write in plan.record:
                    if write.held is not None:
                        write.held.let_go()

        return then

    def _drop(self, directory: str) -> None:
        """Let go of what is kept open below a directory in which there is no more to do."""
        self._disk.drop(f"{directory}/")
        self._logs.drop(f"{directory}/")

    def settle_what_came_past(self, plan: Planned) -> Work[None]:
        """Let a run that was forced past our lock, after its record and before its events, end as it was forced to."""
        run = plan.run
        if not plan.is_end or all(isinstance(write, Put) and write.is_what_lies_there for write in plan.record):
            return
        try:
            status = self.record(run.thread_id, run.id).run.status
        except (NotFoundError, StoreError, OSError):
            return  # the act is made all the same, and who reads the run next is told
        if status is not run.status:
            yield from self.act_locked(run.thread_id, run.id, self.settling)

    def _putting(self, step: RunStep) -> Put:
        path = self._layout.step(step.thread_id, step.run_id, step.id)

        def merged(held: Held) -> bytes:
            return rewritten(held, codec.decode(held.data, RunStep, path), step)

        try:
            with self._disk.hold(path) as held:
                put = Put.over(held, merged(held))
        except FileNotFoundError:
            put = Put(path, dumped(step))
        return attrs.evolve(put, held=None, merged=merged)

    def _appending(self, run: Run, events: Iterable[RunEvent]) -> tuple[Append]:
        path = self._layout.events(run.thread_id, run.id)
        known = self._known_logs.get((run.thread_id, run.id))  # from this very act
        return (Append(path, self._logs.end(path) if known is None else known.size, log.dumped_lines(events)),)

    def _learn(self, plan: Planned, known: _KnownLog | None) -> None:
        """Take in what was appended to the log of a run that goes on."""
        if known is None or plan.run.status.is_terminal or not plan.events or known.size != plan.events[0].offset:
            return
        for event in plan.change.events:
            known.log.apply(_detached(event))
        known.size += len(plan.events[0].data)
        self._known_logs[plan.run.thread_id, plan.run.id] = known

    def _requeue(self, old: Run, run: Run) -> None:
        if run.status.is_terminal:
            turn = self.turns.read(run.thread_id)
            # Also one whose terminal status another program wrote: the next in turn is announced now.
            if any(run_id == run.id for _, run_id in turn.active):
                self.turns.leave(run.thread_id, turn, run.id)
        elif run.status is RunStatus.QUEUED and old.status is not RunStatus.QUEUED:
            self.turns.announce(run.thread_id)

    def known_log(self, thread_id: str, run_id: str, sequence: int | None) -> RunLog:
        known = self._known_logs.get((thread_id, run_id))
        if known is not None and known.log.run is not None and known.log.run.sequence != sequence:
            known = None  # of a run that was deleted: another has its id, and its log may have the same inode
        path = self._layout.events(thread_id, run_id)
        inode, end = self._logs.tail(path)
        if known is None or known.inode != inode or known.size > end:
            known = _KnownLog(inode, 0, RunLog())
        if known.size < end:
            events, known.size = self.parsed_events(self._logs.kept(path), known.size, end)
            for event in events:
                known.log.apply(event)
        self._known_logs[thread_id, run_id] = known
        self._known_logs.move_to_end((thread_id, run_id))
        if len(self._known_logs) > _MOST_KNOWN_LOGS:
            self._known_logs.popitem(last=False)
        return known.log


def _detached(event: RunEvent) -> RunEvent:
    """Return the event with a copy of what a worker handed in, which it may change afterwards."""
    # What was created is in progress by the next event.
    if event.type in {EventType.STEP_IN_PROGRESS, EventType.MESSAGE_IN_PROGRESS}:
        data = event.data
        assert isinstance(data, RunStep | Message)  # noqa: S101 - by its type
        return RunEvent(event.number, event.type, event.created_at, attrs.evolve(data, metadata=dict(data.metadata)))
    return event
