"""What is done to runs and their steps: the synchronous work of each operation.

Every change of a run is one act under the lock of its thread: read the record and what its event log says, let the
rules of ``lifecycle`` decide, write all that they say: messages, record, steps, events, in the order in which readers
may see them. Against foreign programs the record decides: where it was replaced, the act is not made.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
from attrs import define

from threadloom import codec, lifecycle
from threadloom.checks import MetadataChange, OnBusy, new_metadata
from threadloom.errors import (
    ActiveRunError,
    LeaseLostError,
    NotFoundError,
    RunAlreadyExistsError,
    RunNotFoundError,
    RunStepAlreadyExistsError,
    RunStepNotFoundError,
    SerializationError,
    StoreError,
)
from threadloom.events import Checkpoint, EventType, RunEvent, RunLog
from threadloom.ids import is_id
from threadloom.lifecycle import Change, Lease, RunRecord, RunWrite
from threadloom.models import Message, MessageStatus, Run, RunError, RunStatus, RunStep, RunStepStatus
from threadloom.pages import Page, page_of
from threadloom.stores.files import _log as log
from threadloom.stores.files._commit import Committer
from threadloom.stores.files._disk import Disk, Held, LogFile
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._queue import Turn, TurnBook
from threadloom.stores.files._records import (
    dumped,
    read_record,
    rewritten,
    setting_aside,
    starting_over_after_foreign_writes,
)
from threadloom.stores.files._threads import PageRequest, Sight, Threads
from threadloom.stores.files._writer import Work
from threadloom.stores.files._writes import Append, Make, Put, Unchanged, Write

__all__ = ["Runs"]

_logger = logging.getLogger("threadloom")

_MOST_KNOWN_LOGS = 4_096
_MOST_EVENT_BYTES_A_READ = 1 << 20
_DELTAS = frozenset({EventType.MESSAGE_DELTA, EventType.STEP_DELTA})

Decide = Callable[[RunRecord, RunLog], Change | None]

# What says where a run is, not what was asked for: never taken from its events when another program left it out.
_NOT_RESTORED = frozenset(
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


@define
class _KnownLog:
    """What this process knows of an event log: what it says up to ``size`` bytes."""

    inode: int
    size: int
    log: RunLog


class Runs:
    """Runs, steps and events on disk."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        committer: Committer,
        threads: Threads,
        *,
        turns: TurnBook,
        time_ns: Callable[[], int],
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._committer = committer
        self._threads = threads
        self._now = time_ns
        self.turns = turns
        self._known_logs: OrderedDict[tuple[str, str], _KnownLog] = OrderedDict()
        self._last_sequence = 0

    # Runs

    def create(self, thread_id: str, run: Run, on_busy: OnBusy) -> Work[Run]:
        with self._threads.locked(thread_id):
            if self._disk.exists(self._layout.run(thread_id, run.id)):
                raise RunAlreadyExistsError(thread_id, run.id)
            turn = self.turns.read(thread_id)
            if on_busy == "reject" and not run.status.is_terminal:
                yield from self._check_not_busy(thread_id, turn)
            now_ns = self._now()
            # By the clock between processes; rising strictly in a thread, and in a process, whatever the clock does.
            sequence = max(now_ns // 1_000, turn.last_sequence + 1, self._last_sequence + 1)
            self._last_sequence = sequence
            change = lifecycle.create(
                run,
                sequence=sequence,
                messages_before=self._threads.end_of_messages(thread_id),
                now_ns=now_ns,
            )
            files = {"status.json": dumped(change.record), "events.jsonl": log.dumped_lines(change.events)}
            if run.status.is_terminal:
                self.turns.note(thread_id, turn, sequence)
            else:
                # The index first: it may name a run that was never made, but must not miss one that was.
                self.turns.enter(thread_id, turn, sequence, run.id)

            def then() -> None:
                if run.status is RunStatus.QUEUED:
                    self.turns.announce(thread_id)

            made = Make(self._layout.run(thread_id, run.id), files)
            yield from self._committer.commit(thread_id, made, then=then)
            return change.record.run

    def _check_not_busy(self, thread_id: str, turn: Turn) -> Work[None]:
        active = yield from self.active_records(thread_id, turn)
        if active:
            raise ActiveRunError(thread_id, active[0].run.id)

    def get(self, thread_id: str, run_id: str) -> Run:
        return self.record(thread_id, run_id).run

    def page(self, thread_id: str, request: PageRequest) -> Page[Run]:
        self._threads.check_exists(thread_id)
        damaged: list[StoreError] = []
        runs = list(self._all_runs(thread_id, damaged))
        return attrs.evolve(page_of(runs, _id, "runs of the thread", **request.options), damaged=tuple(damaged))

    def update(self, thread_id: str, run_id: str, change: MetadataChange) -> Work[Run]:
        path = self._layout.status(thread_id, run_id)

        def act() -> Work[Run]:
            with self._held(thread_id, run_id) as held:
                old = self._record(thread_id, run_id, held.data)
                run = attrs.evolve(old.run, metadata=new_metadata(old.run.metadata, change))
                new = rewritten(held, old, attrs.evolve(old, run=run))
                yield from self._committer.commit(thread_id, Put.over(held, new))
                return run

        with self._threads.locked(thread_id):
            return (yield from starting_over_after_foreign_writes(path, act))

    def act(
        self, thread_id: str, run_id: str, decide: Callable[[RunRecord, RunLog, list[RunStep]], Change | None]
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
            with self._held(thread_id, run_id) as held:
                old = self._record(thread_id, run_id, held.data)
                new = lifecycle.force_status(old, RunLog(), status, error, now_ns=self._now()).record
                yield from self._committer.commit(thread_id, Put.over(held, rewritten(held, old, new)))
                return new.run

        return starting_over_after_foreign_writes(path, act)

    def open_steps(self, thread_id: str, run_id: str) -> list[RunStep]:
        """Return the steps that are not closed, as they lie there."""
        steps = self._all_steps(thread_id, run_id, [])
        return [step for step in steps if step.status is RunStepStatus.IN_PROGRESS]

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

    def check_lease(self, lease: Lease) -> Run:
        try:
            record = self.record(lease.thread_id, lease.run_id)
        except NotFoundError:
            raise LeaseLostError(lease.run_id, lease.worker_id) from None
        if not lifecycle.holds(record, lease):
            raise LeaseLostError(lease.run_id, lease.worker_id)
        return record.run

    def append_message(self, thread_id: str, run_id: str, message: Message) -> Work[None]:
        """Append a message that names a run, and say so in the run's events where the run is there."""
        try:
            yield from self._act(
                thread_id,
                run_id,
                lambda record, known: lifecycle.append_message(record, known, message, now_ns=self._now()),
            )
        except RunNotFoundError:
            yield from self._threads.append_one(thread_id, message)

    def delete_thread(self, thread_id: str, *, force: bool) -> Work[list[str]]:
        """Remove a thread; return the ids of the runs that went with it."""
        trash = self._layout.trash / f"{thread_id}-{secrets.token_hex(8)}"
        with self._threads.locked(thread_id):
            if not force:
                yield from self._check_not_busy(thread_id, self.turns.read(thread_id))
            run_ids = self._run_ids(thread_id)
            # No journal is to tell of it when it is gone, or another has taken its place.
            self._committer.make_durable()
            self._disk.move(self._layout.thread(thread_id), trash)
            if self._committer.power:
                self._disk.sync(self._layout.root)
                self._disk.sync(self._layout.trash)
            self.turns.forget(thread_id)
            # The lock goes with the directory, and says that somebody is at it.
            self._disk.remove_tree(trash)
        return run_ids

    def sight_of(self, thread_id: str, run_id: str) -> Sight:
        """Return which messages the handler of a run is given."""
        run = self.record(thread_id, run_id).run
        before = run.messages_before
        is_earlier: dict[str | None, bool] = {run_id: True}

        def sees(offset: int, written_by: str | None) -> bool:
            if before is None or offset < before:
                return True
            if written_by not in is_earlier:
                is_earlier[written_by] = written_by is not None and self._comes_before(thread_id, written_by, run)
            return is_earlier[written_by]

        return sees

    def _comes_before(self, thread_id: str, run_id: str, run: Run) -> bool:
        try:
            other = self.record(thread_id, run_id).run
        except (NotFoundError, StoreError, OSError):
            return False  # a run of another store or a damaged one is no reason to hide the rest
        return _place(other) < _place(run)

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
            return decide(record, known, self._read_step(thread_id, run_id, step_id))

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

    def get_step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        self.record(thread_id, run_id)
        return self._read_step(thread_id, run_id, step_id)

    def page_of_steps(self, thread_id: str, run_id: str, request: PageRequest) -> Page[RunStep]:
        self.record(thread_id, run_id)
        damaged: list[StoreError] = []
        steps = self._all_steps(thread_id, run_id, damaged)
        return attrs.evolve(page_of(steps, _id, "steps of the run", **request.options), damaged=tuple(damaged))

    def _read_step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        try:
            return read_record(self._disk, self._layout.step(thread_id, run_id, step_id), RunStep)
        except FileNotFoundError:
            raise RunStepNotFoundError(run_id, step_id) from None

    def _all_steps(self, thread_id: str, run_id: str, damaged: list[StoreError]) -> list[RunStep]:
        steps: list[RunStep] = []
        for name in self._disk.names(self._layout.steps(thread_id, run_id)):
            step_id = name.removesuffix(".json")
            if step_id == name or not is_id(step_id):
                continue
            with setting_aside(damaged, f"read step {step_id!r}"):
                steps.append(self._read_step(thread_id, run_id, step_id))
        return sorted(steps, key=_place)

    def active_records(self, thread_id: str, turn: Turn) -> Work[list[RunRecord]]:
        """Return the runs of a thread that are not settled, in order, and drop from its turn those that are.

        A damaged one is passed over: nobody can work on it, and it must not hold up the others (G8).
        """
        records: list[RunRecord] = []
        for _, run_id in tuple(turn.active):
            try:
                record = self.record(thread_id, run_id)
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

    def read_events(
        self, thread_id: str, run_id: str, position: tuple[int, int] | None
    ) -> tuple[list[RunEvent], tuple[int, int] | None]:
        path = self._layout.events(thread_id, run_id)
        try:
            with LogFile(path) as file:
                inode, start = position or (file.inode, 0)
                if inode != file.inode or start > file.size:
                    start = 0  # another log is in its place, or another program has cut it
                stop = min(log.end_of_lines(file), start + _MOST_EVENT_BYTES_A_READ)
                events, end = self._parsed_events(file, start, stop, at_least_one=stop < file.size)
                return events, (file.inode, end)
        except FileNotFoundError:
            self.record(thread_id, run_id)
            return [], None

    def _parsed_events(
        self, file: LogFile, start: int, stop: int, *, at_least_one: bool = False
    ) -> tuple[list[RunEvent], int]:
        events: list[RunEvent] = []
        position = start
        for offset, line in log.lines(file, start, stop):
            position = offset + len(line) + 1
            # Before a NUL stood pieces of a streamed text, which a power cut may take, and leave a hole in the log.
            record = log.parsed(file.path, (offset, line.rpartition(b"\0")[2]))
            if record is None:
                continue
            try:
                events.append(_event(record, file.path, offset))
            except SerializationError as error:
                _logger.warning("event set aside", extra={"path": str(file.path)}, exc_info=error)
        if position == start and at_least_one and stop > start:
            # A line longer than one read: take as much more as it needs.
            return self._parsed_events(file, start, log.end_of_lines(file))
        return events, position

    # One act

    def _act(self, thread_id: str, run_id: str, decide: Decide) -> Work[Run]:
        with self._threads.locked(thread_id):
            return (yield from self.act_locked(thread_id, run_id, decide))

    def act_locked(self, thread_id: str, run_id: str, decide: Decide) -> Work[Run]:
        """Return the run after the change that ``decide`` makes of it, in a thread whose lock is held."""

        def act() -> Work[Run]:
            with self._held(thread_id, run_id) as held:
                record = self._record(thread_id, run_id, held.data)
                change = decide(record, self._known_log(thread_id, run_id, record.run.sequence))
                if change is None:
                    return record.run
                yield from self._commit(held, record, change)
                return change.record.run

        return starting_over_after_foreign_writes(self._layout.status(thread_id, run_id), act)

    def _commit(self, held: Held, old: RunRecord, change: Change) -> Work[None]:
        run = change.record.run
        # All is put into bytes before the first of them is written: what cannot be kept as JSON changes nothing.
        writes: list[Write] = []
        if change.messages:
            writes.append(self._threads.appending(run.thread_id, *change.messages))
        # Also where another program dropped the keys that were found again in the events: once, not at each reading.
        is_bare = old.run.sequence is not None and b'"sequence"' not in held.data
        if change.record != old or is_bare:
            writes.append(Put.over(held, rewritten(held, old, change.record)))
        elif change.messages or change.steps or change.events:
            # Also under a lock: it may be forced past one whose process was frozen (and woke up here).
            writes.append(Unchanged.of(held))
        writes += [self._putting(step) for step in change.steps]
        if change.events:
            writes.append(self._appending(run, change.events))
        if not writes:
            return
        if old.run.status.is_terminal and not run.status.is_terminal:
            # The index first, as it may name too many runs, but not too few.
            self.turns.enter(run.thread_id, self.turns.read(run.thread_id), run.sequence or 0, run.id)
        is_lasting = bool(change.steps) or any(event.type not in _DELTAS for event in change.events)
        # Forgotten until all is written: after a failure the file is read again and says how far it came.
        known = self._known_logs.pop((run.thread_id, run.id), None)

        def then() -> None:
            self._learn(run, known, change.events, writes[-1])
            self._requeue(old.run, run)

        yield from self._committer.commit(run.thread_id, *writes, sync=is_lasting, then=then)
        if run.status.is_terminal and change.record != old:
            yield from self._settle_what_came_past(run)

    def _settle_what_came_past(self, run: Run) -> Work[None]:
        """Let a run that was forced past our lock, after its record and before its events, end as it was forced to."""
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
            with Held(path) as held:
                put = Put.over(held, merged(held))
        except FileNotFoundError:
            put = Put(path, dumped(step))
        return attrs.evolve(put, held=None, merged=merged)

    def _appending(self, run: Run, events: tuple[RunEvent, ...]) -> Append:
        path = self._layout.events(run.thread_id, run.id)
        return Append(path, log.mended_end(self._disk, path, self._layout.damaged), log.dumped_lines(events))

    def _learn(self, run: Run, known: _KnownLog | None, events: tuple[RunEvent, ...], last: Write) -> None:
        """Take in what was appended to the log of a run that goes on."""
        if known is None or run.status.is_terminal or not isinstance(last, Append) or known.size != last.offset:
            return
        for event in events:
            known.log.apply(_detached(event))
        known.size += len(last.data)
        self._known_logs[run.thread_id, run.id] = known

    def _requeue(self, old: Run, run: Run) -> None:
        if run.status.is_terminal:
            turn = self.turns.read(run.thread_id)
            # Also one whose terminal status another program wrote: the next in turn is announced now.
            if any(run_id == run.id for _, run_id in turn.active):
                self.turns.leave(run.thread_id, turn, run.id)
        elif run.status is RunStatus.QUEUED and old.status is not RunStatus.QUEUED:
            self.turns.announce(run.thread_id)

    # What lies there

    def _held(self, thread_id: str, run_id: str) -> Held:
        try:
            return Held(self._layout.status(thread_id, run_id))
        except FileNotFoundError:
            raise self._missing(thread_id, run_id) from None

    def record(self, thread_id: str, run_id: str) -> RunRecord:
        """Return the record of a run as it lies there."""
        try:
            data = self._disk.read(self._layout.status(thread_id, run_id))
        except FileNotFoundError:
            raise self._missing(thread_id, run_id) from None
        return self._record(thread_id, run_id, data)

    def _missing(self, thread_id: str, run_id: str) -> Exception:
        try:
            self._threads.check_exists(thread_id)
        except (NotFoundError, StoreError) as error:
            return error
        status = self._layout.status(thread_id, run_id)
        if self._disk.exists(status.parent) and not self._disk.exists(status):
            return SerializationError(status, "the run's directory is there without it")
        # Where both are there by now, the run was made between the two looks; when it was asked for, it was not.
        return RunNotFoundError(thread_id, run_id)

    def _record(self, thread_id: str, run_id: str, data: bytes) -> RunRecord:
        """Return the record that ``data`` holds, with what another program dropped of it when it wrote it anew."""
        path = self._layout.status(thread_id, run_id)
        raw = codec.load(data, path)
        record = codec.from_record(raw, RunRecord, path)
        if record.run.sequence is not None:
            return record
        known = RunLog()
        try:
            with LogFile(self._layout.events(thread_id, run_id)) as file:
                for event in self._parsed_events(file, 0, log.end_of_lines(file))[0]:
                    known.apply(event)
        except FileNotFoundError:
            return record
        if known.run is None or known.run.sequence is None:
            return record
        kept = {key: value for key, value in codec.to_record(known.run).items() if key not in _NOT_RESTORED}
        return codec.from_record(kept | raw, RunRecord, path)

    def _known_log(self, thread_id: str, run_id: str, sequence: int | None) -> RunLog:
        known = self._known_logs.get((thread_id, run_id))
        if known is not None and known.log.run is not None and known.log.run.sequence != sequence:
            known = None  # of a run that was deleted: another has its id, and its log may have the same inode
        try:
            file = LogFile(self._layout.events(thread_id, run_id))
        except FileNotFoundError:
            return RunLog()
        with file:
            if known is None or known.inode != file.inode or known.size > file.size:
                known = _KnownLog(file.inode, 0, RunLog())
            if known.size < file.size:
                events, known.size = self._parsed_events(file, known.size, log.end_of_lines(file))
                for event in events:
                    known.log.apply(event)
        self._known_logs[thread_id, run_id] = known
        self._known_logs.move_to_end((thread_id, run_id))
        if len(self._known_logs) > _MOST_KNOWN_LOGS:
            self._known_logs.popitem(last=False)
        return known.log

    def _run_ids(self, thread_id: str) -> list[str]:
        return [name for name in self._disk.subdirectories(self._layout.runs(thread_id)) if is_id(name)]

    def _all_runs(self, thread_id: str, damaged: list[StoreError]) -> Iterator[Run]:
        runs: list[Run] = []
        for run_id in self._run_ids(thread_id):
            with setting_aside(damaged, f"read run {run_id!r}"):
                runs.append(self.record(thread_id, run_id).run)
        yield from sorted(runs, key=_place)

    def readable(self, thread_id: str) -> Iterator[Run]:
        """Yield the runs of a thread in their order, without those that are damaged."""
        return self._all_runs(thread_id, [])


def _event(record: dict[str, Any] | SerializationError, path: Path, offset: int) -> RunEvent:
    if isinstance(record, SerializationError):
        raise record
    event = codec.from_record(record, RunEvent, path, offset=offset)
    # A step's id becomes the name of its file.
    if not isinstance(event.data, Checkpoint) and not is_id(event.data.id):
        raise SerializationError(path, f"{event.data.id!r} is no id", offset=offset)
    return event


def _detached(event: RunEvent) -> RunEvent:
    """Return the event with a copy of what a worker handed in, which it may change afterwards."""
    match event.data:
        case (RunStep(status=RunStepStatus.IN_PROGRESS) | Message(status=MessageStatus.IN_PROGRESS)) as data:
            return attrs.evolve(event, data=attrs.evolve(data, metadata=dict(data.metadata)))
    return event


def _id(item: Run | RunStep) -> str:
    return item.id


def _place(item: Run | RunStep) -> tuple[bool, int, int, str]:
    return item.sequence is not None, item.sequence or 0, item.created_at, item.id
