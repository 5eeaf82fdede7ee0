"""What this process knows of one thread's files, under the thread's lock.

It stays valid while nobody else writes in the thread, which the thread's stamp tells; so a transaction that follows one
of this process reads nothing again. Other programs know no stamps: their files are found by one ``stat`` of each record
that a transaction depends on.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from attrs import define, field

from threadloom import codec
from threadloom.errors import SerializationError, StoreError
from threadloom.events import RunLog
from threadloom.ids import is_id
from threadloom.models import Message, RunStep, RunStepStatus, Thread
from threadloom.records import RunRecord, RunState
from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk, Placed, read_at
from threadloom.stores.files.linux import fcntl
from threadloom.stores.files.message_log import MessageLog, has_line
from threadloom.stores.files.queue_entry import Turn, read_turn
from threadloom.stores.files.run_log import Entry, is_begun, read_entries
from threadloom.stores.files.stamps import Stamps
from threadloom.stores.files.status_record import REFLECTS_NOTHING, Status, Summary, decode, encode, restored

__all__ = [
    "LockedElsewhereError",
    "RunFiles",
    "ThreadFiles",
    "lock_directory",
    "read_step",
    "steps_of",
    "unlogged_steps",
]

_logger = logging.getLogger("threadloom")


class LockedElsewhereError(Exception):
    """Another process or another store has a lock at the moment."""


def lock_directory(fd: int) -> bool:
    """Take the lock on a directory and return True, or return False where somebody else has it. It never waits."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@define(eq=False)
class RunFiles:
    """One run's files.

    state: the run after all transactions of its log, and all that are staged.
    status: ``status.json`` as it was read or placed last, None where there is none.
    summary: how far that reflects the log.
    raw: its JSON and the record it stands for, where another program wrote it: what is not ours is kept.
    log_fd: the log, opened for appending; -1 where there is none yet.
    log_inode: what tells the log from another file, 0 where it was not asked for.
    end: the offset behind the last whole transaction.
    message_at: where the transaction begins that announced the message which is open.
    steps: the files of open steps, as they were read or placed.
    known_steps: the ids of all steps of the run, None where they were not looked at.
    raw_steps: the JSON of steps that another program wrote, each with the step that it stands for.
    staged_steps: steps that are decided, and not yet in their files.
    pending: transactions that the other files do not reflect yet, because their process died.
    external: what another program put in the place of the record, and the log does not know yet.
    """

    run_id: str
    state: RunState
    status: Placed | None = None
    summary: Summary = REFLECTS_NOTHING
    raw: tuple[Mapping[str, Any], RunRecord] | None = None
    log_fd: int = -1
    log_inode: int = 0
    end: int = 0
    message_at: int | None = None
    steps: dict[str, Placed] = field(factory=dict)
    known_steps: set[str] | None = None
    raw_steps: dict[str, tuple[Mapping[str, Any], RunStep]] = field(factory=dict)
    staged_steps: dict[str, RunStep] = field(factory=dict)
    pending: list[Entry] = field(factory=list)
    external: Status | None = None

    def take(self, entry: Entry) -> None:
        """Take in a transaction of the log."""
        had_message = self.state.log.open_message
        for event in entry.events:
            self.state.log.apply(event)
        if entry.record is not None:
            self.state.record = entry.record
        self.note_message(had_message, entry.start)

    def note_message(self, before: Message | None, start: int) -> None:
        """Note where the open message was announced, after a transaction that begins at ``start``."""
        message = self.state.log.open_message
        if message is None:
            self.message_at = None
        elif before is None or before.id != message.id:
            self.message_at = start

    def keep_raw(self, status: Status, record: RunRecord) -> None:
        """Keep what another program wrote, unless it is just what we would write."""
        self.raw = None if status.raw == codec.to_record(record) else (status.raw, record)

    def file_of_record(self, summary: Summary, record: dict[str, Any] | None = None) -> bytes:
        """Return what ``status.json`` is to hold; ``record`` is the record as JSON, if the caller has it."""
        new = codec.to_record(self.state.record) if record is None else record
        if self.raw is not None:
            new = codec.patched(self.raw[0], codec.to_record(self.raw[1]), new)
            self.raw = new, self.state.record
        return encode(new, summary)

    def close(self) -> None:
        """Release all descriptors."""
        for placed in (self.status, *self.steps.values()):
            if placed is not None:
                placed.close()
        fd, self.log_fd = self.log_fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


class ThreadFiles:
    """A thread's directory, its lock, and what is known of what lies in it."""

    def __init__(self, disk: Disk, stamps: Stamps, boot: str, thread_id: str) -> None:
        self.disk = disk
        self.thread_id = thread_id
        self._messages = MessageLog(disk, thread_id)
        self._has_looked_at_messages = False
        self.runs: dict[str, RunFiles] = {}
        self._stamps = stamps
        self._slot = stamps.slot(thread_id)
        self._stamp = 0
        self.boot = boot
        self._fd = disk.open_directory(thread_id)
        self._thread: Thread | None = None
        self._turn: Turn | None = None
        self._verified: set[str] = set()
        self.doubted: list[str] = []
        self.is_cold = True

    # The lock

    def lock(self) -> bool:
        """Take the thread's lock and return True, or return False where another process or store has it."""
        if not lock_directory(self._fd):
            return False
        try:
            stamp = self._stamps.read(self._slot)
            if stamp != self._stamp:
                self.forget()
                self._require_in_place()
                self._stamp = stamp
        except BaseException:
            self.unlock()
            raise
        self._verified.clear()
        self.doubted.clear()
        self._has_looked_at_messages = False
        return True

    def _require_in_place(self) -> None:
        # The directory may have been deleted, and another made in its place, since it was opened.
        if not os.path.samestat(os.fstat(self._fd), os.lstat(self.disk.where(self.thread_id))):
            raise FileNotFoundError

    def unlock(self) -> None:
        """Release the lock."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    @property
    def is_current(self) -> bool:
        """Whether what is known of the thread is valid, as far as other stores go."""
        return self._stamps.read(self._slot) == self._stamp

    @property
    def has_vanished(self) -> bool:
        """Whether the directory was removed since it was opened."""
        return os.fstat(self._fd).st_nlink == 0

    def begin_write(self) -> None:
        """Let everybody else read again what they know of the thread."""
        self._stamp = self._stamps.renew(self._slot)

    def forget(self) -> None:
        """Forget what is known, so that it is read again."""
        for run in self.runs.values():
            run.close()
        self.runs.clear()
        self._verified.clear()
        self._messages.close()
        self._thread = None
        self._turn = None
        self._stamp = 0
        self.is_cold = True

    def close(self) -> None:
        """Release all descriptors."""
        self.forget()
        # Unlocked by hand: a child that was forked in this moment has a copy of the descriptor, which keeps the lock.
        fd, self._fd = self._fd, -1
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def know_new(self, thread: Thread, stamp: int) -> None:
        """Note all that there is to know of a thread that was created after ``stamp`` had been written."""
        self._thread, self._turn, self._stamp = thread, Turn(), stamp
        self.is_cold = False

    # The thread

    @property
    def thread(self) -> Thread | None:
        """The thread's record; ``SerializationError`` where the directory holds something, and no record."""
        if self._thread is None:
            path = layout.meta(self.thread_id)
            try:
                data = self.disk.read(path)
            except FileNotFoundError:
                if os.listdir(self._fd):
                    raise SerializationError(
                        self.disk.where(path), "the thread's directory is there without it"
                    ) from None
                return None  # an empty directory holds nothing
            self._thread = codec.decode(data, Thread, self.disk.where(path))
        return self._thread

    def read_thread(self) -> tuple[Placed, bytes, bool]:
        """Read the thread's record to replace it; return its file, its data, and if it is what was seen before."""
        seen = self._thread
        path = layout.meta(self.thread_id)
        placed, data = self.disk.read_placed(path)
        try:
            self._thread = codec.decode(data, Thread, self.disk.where(path))
        except BaseException:
            placed.close()
            raise
        return placed, data, self._thread == seen

    def put_thread(self, thread: Thread) -> None:
        """Note the record that was put."""
        self._thread = thread

    @property
    def messages(self) -> MessageLog:
        """The thread's messages, as they are in this transaction."""
        if not self._has_looked_at_messages:
            self._messages.refresh()
            self._has_looked_at_messages = True
        return self._messages

    def has_message(self, offset: int, message_id: str) -> bool:
        """Return whether a message's line lies at an offset of ``messages.jsonl`` or behind it."""
        try:
            fd, found = self.disk.open(layout.messages(self.thread_id))
        except FileNotFoundError:
            return False
        try:
            return has_line(fd, found.st_size, offset, message_id)
        finally:
            os.close(fd)

    @property
    def turn(self) -> Turn:
        """The thread's active runs. Made again from the runs where the index says nothing that counts."""
        if self._turn is None:
            turn = read_turn(self.disk, self.thread_id, self.boot)
            self._turn = self._turn_of_runs() if turn is None else turn
        return self._turn

    def reindex(self) -> None:
        """Make the turn again from the runs."""
        self._turn = self._turn_of_runs()

    def _turn_of_runs(self) -> Turn:
        turn = Turn()
        found: list[tuple[int, int, str]] = []
        for run_id in self.run_ids():
            try:
                run = self._read_status(run_id).record.run
            except (StoreError, FileNotFoundError):
                continue  # damaged: nobody can work on it
            turn.last_sequence = max(turn.last_sequence, run.sequence or 0)
            if not run.status.is_terminal:
                found.append((run.sequence or 0, run.created_at, run_id))
        turn.active = [(sequence, run_id) for sequence, _, run_id in sorted(found)]
        return turn

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, in no order."""
        return [name for name in self.disk.subdirectories(layout.runs(self.thread_id)) if is_id(name)]

    def _read_status(self, run_id: str) -> Status:
        path = layout.status(self.thread_id, run_id)
        return decode(self.disk.read(path), self.disk.where(path))

    # Runs

    def run(self, run_id: str) -> RunFiles | None:
        """Return a run as it is now, None where there is none.

        What it has in ``pending`` or ``external`` has to be dealt with before anything is decided.
        """
        run = self.runs.get(run_id)
        if run_id in self._verified:
            return run
        if run is not None:
            run = self._verify(run)
        if run is None:
            run = self._load(run_id)
        if run is not None:
            self.runs[run_id] = run
            self._verified.add(run_id)
        return run

    def keep(self, run: RunFiles) -> None:
        """Note a run that was created."""
        run.known_steps = set()
        run.state.unlogged_steps = unlogged_steps(self.disk, self.thread_id, run)
        self.runs[run.run_id] = run
        self._verified.add(run.run_id)

    def doubt(self, run_id: str) -> None:
        """Note that another program has replaced the record of a run in this moment."""
        self._verified.discard(run_id)
        self.doubted.append(run_id)

    def trust(self, run: RunFiles) -> bool:
        """Take a run as it is known, until the next lock, whatever another program wrote; return whether it is kept.

        No record is ever put in the place of one that is not known: see ``Disk.exchange``.
        """
        if self.runs.get(run.run_id) is not run:
            return False  # it has ended
        self._verified.add(run.run_id)
        return True

    def drop_run(self, run_id: str) -> None:
        """Keep nothing of a run that has ended."""
        run = self.runs.pop(run_id, None)
        self._verified.discard(run_id)
        if run is not None:
            run.close()

    def step(self, run: RunFiles, step_id: str) -> RunStep | None:
        """Return a step of a run as it lies there, None where there is none."""
        if step_id in run.staged_steps:
            return run.staged_steps[step_id]
        if run.known_steps is not None and step_id not in run.known_steps:
            return run.state.log.open_steps.get(step_id)
        path = layout.step(self.thread_id, run.run_id, step_id)
        known = run.steps.get(step_id)
        if known is not None and step_id in run.state.log.open_steps and self.disk.identity(path) == known.identity:
            return run.state.log.open_steps[step_id]
        try:
            placed, data = self.disk.read_placed(path)
        except FileNotFoundError:
            return run.state.log.open_steps.get(step_id)
        if known is not None:
            run.steps.pop(step_id).close()
        try:
            step = codec.decode(data, RunStep, self.disk.where(path))
        except BaseException:
            placed.close()
            raise
        self._keep_raw_step(run, step, data)
        if step.status is RunStepStatus.IN_PROGRESS:
            run.steps[step_id] = placed
        else:
            placed.close()
        return step

    def _keep_raw_step(self, run: RunFiles, step: RunStep, data: bytes) -> None:
        raw = codec.load_exactly(data, step.id)
        if raw == codec.to_record(step):
            run.raw_steps.pop(step.id, None)
        else:
            run.raw_steps[step.id] = raw, step

    def file_of_step(self, run: RunFiles, step: RunStep) -> bytes:
        """Return what the file of a step is to hold: what another program wrote there, and we do not know, is kept."""
        if run.known_steps is None and step.id not in run.steps and step.id not in run.raw_steps:
            with suppress(FileNotFoundError, SerializationError):
                path = layout.step(self.thread_id, run.run_id, step.id)
                data = self.disk.read(path)
                self._keep_raw_step(run, codec.decode(data, RunStep, self.disk.where(path)), data)
        known = run.raw_steps.pop(step.id, None)
        if known is None:
            return codec.dump(codec.to_record(step))
        raw = codec.patched(known[0], codec.to_record(known[1]), codec.to_record(step))
        run.raw_steps[step.id] = raw, step
        return codec.dump_exactly(raw)

    def _verify(self, run: RunFiles) -> RunFiles | None:
        """Look whether another program has replaced the record."""
        path = layout.status(self.thread_id, run.run_id)
        identity = self.disk.identity(path)
        if run.status is not None and identity == run.status.identity:
            return run
        if identity is None:
            self.runs.pop(run.run_id).close()
            return None
        placed, data = self.disk.read_placed(path)
        try:
            status = decode(data, self.disk.where(path))
        except BaseException:
            placed.close()
            raise
        if run.status is not None:
            run.status.close()
        run.status = placed
        record = restored(status, run.state.log.run, self.disk.where(path))
        if codec.to_record(record) == codec.to_record(run.state.record):
            run.keep_raw(status, record)
        else:
            run.external = status
        return run

    def _load(self, run_id: str) -> RunFiles | None:
        """Read a run: its record, and of its log what the record does not reflect."""
        path = layout.status(self.thread_id, run_id)
        where = self.disk.where(path)
        try:
            placed, data = self.disk.read_placed(path)
        except FileNotFoundError:
            if self.disk.names(layout.run(self.thread_id, run_id)):
                raise SerializationError(where, "the run's directory is there without it") from None
            return None
        try:
            status = decode(data, where)
        except BaseException:
            placed.close()
            raise
        return self.load_from(run_id, placed, status)

    def load_from(self, run_id: str, placed: Placed | None, status: Status | None) -> RunFiles:
        """Return a run whose record was read as ``status``, or is to be made again from its log where that is None."""
        where = self.disk.where(layout.events(self.thread_id, run_id))
        summary = None if status is None else status.summary
        record = None if status is None or summary is None or not summary.bytes else status.record
        run = RunFiles(run_id, RunState(record, RunLog()), placed, summary or Summary(0, 0))  # type: ignore[arg-type]
        try:
            size = self._open_log(run)
            begin = run.summary.bytes
            if 0 < begin <= size and read_at(run.log_fd, begin - 1, 1) != b"\n":
                # Somebody has changed the log in place: nothing is known of where its lines begin.
                summary, run.summary, run.state.record = None, Summary(0, 0), None  # type: ignore[assignment]
                record = None
            if record is not None and summary is not None:
                self._restore_log(run, record, summary, where)
            entries, run.end = read_entries(run.log_fd, run.summary.bytes, size, where)
            if run.end < size:
                self._cut(run, size)
            for entry in entries:
                run.take(entry)
            run.pending = [entry for entry in entries if not entry.is_projected]
            if summary is not None and summary.bytes > size:
                _logger.warning("The end of %s is lost, and the record of run %s stands", where, run_id)
                run.end = size
            self._compare(run, status)
        except BaseException:
            run.close()
            raise
        run.state.unlogged_steps = unlogged_steps(self.disk, self.thread_id, run)
        return run

    def _cut(self, run: RunFiles, size: int) -> None:
        """Cut what lies behind the last whole transaction: a torn one never happened. Damage is kept elsewhere (G8)."""
        path = layout.events(self.thread_id, run.run_id)
        tail = read_at(run.log_fd, run.end, size - run.end)
        if any(not is_begun(line) for line in tail.split(b"\n")[:-1]):
            kept = f"{layout.DAMAGED}/{secrets.token_hex(8)}/{path}-{run.end}"
            self.disk.create(kept, tail)
            _logger.warning(
                "Moved the damaged end of the log of run %s of thread %s to %s",
                run.run_id,
                self.thread_id,
                kept,
                extra={"thread_id": self.thread_id, "run_id": run.run_id},
            )
        os.ftruncate(run.log_fd, run.end)

    def _open_log(self, run: RunFiles) -> int:
        try:
            run.log_fd, found = self.disk.open_log(layout.events(self.thread_id, run.run_id), create=False)
            run.log_inode = found.st_ino
        except FileNotFoundError:
            return 0
        return found.st_size

    def _restore_log(self, run: RunFiles, record: RunRecord, summary: Summary, where: str) -> None:
        """Restore the fold of the log up to the summary, without reading the log from its start."""
        log = RunLog(summary.number, record.run)
        for step_id in summary.open_steps:
            step = read_step(self.disk, self.thread_id, run.run_id, step_id)
            if step is not None:
                log.open_steps[step_id] = step
        run.state.log = log
        if summary.message_at is not None and run.log_fd >= 0:
            # Only the message that is being streamed: its text is nowhere else.
            text = RunLog()
            for entry in read_entries(run.log_fd, summary.message_at, summary.bytes, where)[0]:
                for event in entry.events:
                    text.apply(event)
            run.state.log = RunLog(log.number, log.run, log.open_steps, text.open_message, text.text)
            run.message_at = summary.message_at

    def _compare(self, run: RunFiles, status: Status | None) -> None:
        """Find out whether what lies in the place of the record is ours, or another program's."""
        if status is None:
            return
        if status.summary is not None and run.state.record is not None:
            run.keep_raw(status, status.record)  # what is not ours was kept, and is kept on
            return
        if run.state.record is None:
            run.state.record = status.record  # the seed's layout: there is no log
            run.external = status
            return
        where = self.disk.where(layout.status(self.thread_id, run.run_id))
        record = restored(status, run.state.log.run, where)
        if codec.to_record(record) == codec.to_record(run.state.record):
            run.keep_raw(status, record)
        else:
            run.external = status


def read_step(disk: Disk, thread_id: str, run_id: str, step_id: str) -> RunStep | None:
    """Return a step as it lies there, None where there is none."""
    path = layout.step(thread_id, run_id, step_id)
    try:
        data = disk.read(path)
    except FileNotFoundError:
        return None
    return codec.decode(data, RunStep, disk.where(path))


def steps_of(disk: Disk, thread_id: str, run_id: str, damaged: list[StoreError]) -> list[RunStep]:
    """Return all steps of a run in their order; what is damaged goes into ``damaged``."""
    steps: list[RunStep] = []
    for step_id in step_ids(disk, thread_id, run_id):
        try:
            step = read_step(disk, thread_id, run_id, step_id)
        except StoreError as error:
            damaged.append(error)
        else:
            if step is not None:
                steps.append(step)
    return sorted(steps, key=_place)


class unlogged_steps:  # noqa: N801 - an iterable that reads nothing unless somebody asks
    """Iterates over the open steps of a run that its log does not know, and that nobody is about to write."""

    def __init__(self, disk: Disk, thread_id: str, run: RunFiles) -> None:
        self._disk = disk
        self._thread_id = thread_id
        self._run = run

    def __iter__(self) -> Iterator[RunStep]:
        known = self._run.known_steps or ()
        for step_id in step_ids(self._disk, self._thread_id, self._run.run_id):
            if step_id in known or step_id in self._run.staged_steps or step_id in self._run.state.log.open_steps:
                continue
            try:
                step = read_step(self._disk, self._thread_id, self._run.run_id, step_id)
            except StoreError:
                continue  # damaged: a check reports it
            if step is not None and step.status is RunStepStatus.IN_PROGRESS:
                yield step


def step_ids(disk: Disk, thread_id: str, run_id: str) -> list[str]:
    """Return the ids of all steps of a run, in no order."""
    try:
        names = os.listdir(disk.where(layout.steps(thread_id, run_id)))  # names only: to read one follows no link
    except FileNotFoundError:
        return []
    return [name[:-5] for name in names if name.endswith(".json") and is_id(name[:-5])]


def _place(step: RunStep) -> tuple[bool, int, int, str]:
    return step.sequence is not None, step.sequence or 0, step.created_at, step.id
