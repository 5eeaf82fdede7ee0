"""Writing what transactions of one thread have decided.

A transaction on a run is committed by one write at the end of the run's log. A new run or thread is committed by the
rename of its directory; messages, edits, the thread's record and its removal by one write or rename each. Whatever can
fail for lack of space is written under temporary names before. Then the projections follow: messages, steps,
``status.json``. They can be written again at any time with the same result, and ``finish`` does so for a process that
died in between.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from attrs import define, field

from threadloom import codec
from threadloom.errors import SerializationError, ThreadAlreadyExistsError
from threadloom.events import MessageDelta, RunEvent, RunLog, StepDelta
from threadloom.models import Message, Run, RunStep, RunStepStatus, Thread
from threadloom.records import Change, Created, RunChange, RunRecord, RunState
from threadloom.stores.files import layout, queue_entry
from threadloom.stores.files.disk import Disk, ExternalWriteError, Placed, append, identity_of
from threadloom.stores.files.journal import Write, checksum
from threadloom.stores.files.keys import KeyFile, write_key
from threadloom.stores.files.linux import fcntl
from threadloom.stores.files.log_lines import repair_tail
from threadloom.stores.files.message_log import edit_line, message_lines, read_edits
from threadloom.stores.files.run_log import Append, Stop, encode, read_entries
from threadloom.stores.files.status_record import REFLECTS_NOTHING, Summary
from threadloom.stores.files.status_record import encode as encode_status
from threadloom.stores.files.thread_files import RunFiles, ThreadFiles, read_step

__all__ = ["Commit", "NewThread", "Written", "finish", "key_writes"]

_logger = logging.getLogger("threadloom")

_MOST_UNREFLECTED_BYTES: Final = 1 << 16
"""How much of a log a record may leave out while only deltas and steps are written: what a cold start reads."""


@define(eq=False)
class _RunPart:
    """What is staged for one run."""

    files: RunFiles
    before: RunRecord
    lines: list[bytes] = field(factory=list)
    start: int = 0
    must_put: bool = False
    record: dict[str, Any] | None = None
    events: list[RunEvent] = field(factory=list)
    steps: dict[str, RunStep] = field(factory=dict)
    status: tuple[str, Placed] | None = None
    step_files: dict[str, tuple[str, Placed]] = field(factory=dict)
    summary: Summary = REFLECTS_NOTHING

    @property
    def data(self) -> bytes:
        return b"".join(self.lines)


class Written(NamedTuple):
    """What a transaction wrote into a run's log: where, and the events it says."""

    inode: int
    start: int
    end: int
    events: Sequence[RunEvent]


class Commit:
    """What the transactions of one thread that wait at the same moment write together, under its lock.

    ``stage`` each change, then ``prepare``, put ``journal_writes`` into the journal, and ``apply``. After an error
    everything that is known of the thread must be forgotten.
    """

    def __init__(self, thread: ThreadFiles) -> None:
        self._thread = thread
        self._disk = thread.disk
        self._runs: dict[str, _RunPart] = {}
        self._message_lines: list[bytes] = []
        self._message_count = 0
        self._is_alone = False
        self._edits: bytes = b""
        self._edits_log: tuple[int, int] | None = None
        self._created: tuple[str, KeyFile] | None = None
        self._thread_record: tuple[Thread, bytes, int] | None = None
        self._old_meta: Placed | None = None
        self._meta_file: tuple[str, Placed] | None = None
        self._new_run: tuple[RunFiles, str, bytes, bytes] | None = None
        self._stops: dict[str, Stop] = {}
        self._is_deleted = False
        self.trash = ""
        self._must_announce = False
        self.changes_queue = False
        self._must_keep_sequence = False
        self._committed: set[str] = set()
        self.needs_sync = False
        self.is_applied = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is staged."""
        return not (self._runs or self._message_lines or self._is_alone)

    # Staging

    def stage(self, change: Change[Any], *, must_put: bool = False) -> bool:
        """Take in a change, or return False where it has to be written by itself, after what is staged."""
        alone = (
            change.thread is not None
            or change.is_deleted
            or change.created is not None
            or bool(change.edits)
            or any(run.is_new for run in change.runs)
        )
        if self._is_alone or (alone and not self.is_empty):
            return False
        self._is_alone = alone
        new = next((run for run in change.runs if run.is_new), None)
        if new is not None:
            self._stage_new_run(change, new)
            self.needs_sync = True
            return True
        if change.messages:
            self._append_messages(change.messages)
            self.needs_sync = True
        for run in change.runs:
            self._stage_run(run, must_put=must_put)
        if change.edits:
            self._edits = b"".join(edit_line(edit) for edit in change.edits)
            self.needs_sync = True
        if change.created is not None:
            self._stage_key(change.created)
        if change.thread is not None:
            self.needs_sync = True
            return self._stage_thread(change.thread)
        if change.is_deleted:
            self._is_deleted = True
            self.needs_sync = True
        return True

    def _stage_thread(self, thread: Thread) -> bool:
        """Stage the thread's record, or return False where another program has written it since it was seen."""
        before = self._thread.thread
        placed, data, is_same = self._thread.read_thread()
        if not is_same or before is None:
            placed.close()
            return False
        raw = codec.load_exactly(data, layout.meta(thread.id))
        new = codec.dump_exactly(codec.patched(raw, codec.to_record(before), codec.to_record(thread)))
        self._thread_record = thread, new, checksum(data)
        self._old_meta = placed
        return True

    def _append_messages(self, messages: Sequence[Message]) -> Append:
        """Stage messages, and return where they belong."""
        log = self._thread.messages
        offset = log.end + sum(map(len, self._message_lines))
        place = log.count + self._message_count
        self._message_lines.append(message_lines(messages, place))
        self._message_count += len(messages)
        return Append(offset, place, tuple(messages))

    def _stage_run(self, change: RunChange, *, must_put: bool = False) -> None:
        files = self._thread.runs[change.record.run.id]
        state = files.state
        if not (must_put or change.events or change.steps or change.messages) and change.record is state.record:
            return
        part = self._runs.get(files.run_id)
        if part is None:
            part = self._runs[files.run_id] = _RunPart(files, state.record, start=files.end)
        # An event of the run is shown once the record reflects it, even one that says what the record said before.
        part.must_put = part.must_put or must_put or any(isinstance(event.data, Run) for event in change.events)
        add = self._append_messages(change.messages) if change.messages else None
        record = None
        if change.record is not state.record:
            record = part.record = codec.to_record(change.record)
            self.changes_queue = True
        lines = encode(change, record, append=add)
        had_message = state.log.open_message
        for event in change.events:
            state.log.apply(event)
        files.note_message(had_message, files.end)
        if record is not None:
            self._note_turn(state.record.run, change.record.run)
        state.record = change.record
        for step in change.steps:
            part.steps[step.id] = files.staged_steps[step.id] = step
            if files.known_steps is not None:
                files.known_steps.add(step.id)
        part.events += change.events
        part.lines.append(lines)
        files.end += len(lines)
        if change.steps or record is not None or not all(map(_is_delta, change.events)):
            self.needs_sync = True  # what is streamed comes again, whole

    def _note_turn(self, before: Run, after: Run) -> None:
        turn = self._thread.turn
        was_in = any(run_id == after.id for _, run_id in turn.active)
        if after.status.is_terminal and was_in:
            turn.active = [entry for entry in turn.active if entry[1] != after.id]
            self._must_announce = True
        elif not after.status.is_terminal and not was_in:
            self._enter_turn(after)
        if after.status is not before.status and after.status.value == "queued":
            self._must_announce = True

    def _enter_turn(self, run: Run) -> None:
        self._thread.turn.name(run.sequence or 0, run.id)
        self._must_announce = True

    def _stage_new_run(self, change: Change[Any], new: RunChange) -> None:
        """Stage a new run: its log carries all that its creation does to the thread, so one rename commits it."""
        run_id = new.record.run.id
        add = self._append_messages((*change.messages, *new.messages)) if change.messages or new.messages else None
        for other in change.runs:
            if other is not new:
                files = self._thread.runs[other.record.run.id]
                start = files.end
                self._stage_run(other)
                part = self._runs.get(files.run_id)
                if part is not None:
                    self._stops[files.run_id] = Stop(start, part.data)
        record = codec.to_record(new.record)
        lines = encode(new, record, append=add, edits=change.edits, stops=self._stops)
        self._edits = b"".join(edit_line(edit) for edit in change.edits)
        log = RunLog()
        for event in new.events:
            log.apply(event)
        # Where more follows than the directory holds, the record does not reflect the log yet.
        is_whole = add is None and not change.edits and not self._stops
        summary = Summary(len(lines), log.number) if is_whole else Summary(0, 0)
        status = encode_status(record, summary)
        self.changes_queue = True
        files = RunFiles(run_id, RunState(new.record, log), None, summary, end=len(lines))
        self._new_run = files, self._disk.temporary(), status, lines
        if not new.record.run.status.is_terminal:
            self._enter_turn(new.record.run)
        else:
            self._thread.turn.last_sequence = max(self._thread.turn.last_sequence, new.record.run.sequence or 0)
            self._must_announce = self._must_keep_sequence = True
        if change.created is not None:
            self._stage_key(change.created)

    def _stage_key(self, created: Created) -> None:
        kind = type(created.value).__name__.lower()
        path = layout.key(self._thread.thread_id, kind, created.key)
        self._created = path, KeyFile(created, is_sure=False, offset=self._thread.messages.end)
        self.needs_sync = True

    # Before the commit

    def prepare(self) -> None:
        """Write under temporary names what the disk may have no space for."""
        try:
            if self._new_run is not None:
                self._prepare_new_run(*self._new_run)
            for part in self._runs.values():
                self._prepare_run(part)
            if self._thread_record is not None:
                self._meta_file = self._disk.write_temporary(self._thread_record[1])
            if self._edits:
                self._edits_log = _open_edits(self._thread)
        except BaseException:
            self.discard()
            raise

    def _prepare_new_run(self, files: RunFiles, temporary: str, status: bytes, lines: bytes) -> None:
        os.mkdir(temporary)
        fd = self._disk.write_new(f"{temporary}/status.json", status)
        files.status = Placed(fd, identity_of(os.fstat(fd)))
        files.log_fd = self._disk.write_new(f"{temporary}/events.jsonl", lines)
        fcntl.fcntl(files.log_fd, fcntl.F_SETFL, os.O_APPEND)
        files.log_inode = os.fstat(files.log_fd).st_ino

    def _prepare_run(self, part: _RunPart) -> None:
        files = part.files
        for step in part.steps.values():
            part.step_files[step.id] = self._disk.write_temporary(self._thread.file_of_step(files, step))
        if part.must_put or part.record is not None or files.end - files.summary.bytes > _MOST_UNREFLECTED_BYTES:
            log = files.state.log
            part.summary = Summary(files.end, log.number, tuple(log.open_steps), files.message_at)
            part.status = self._disk.write_temporary(files.file_of_record(part.summary, part.record))

    def discard(self) -> None:
        """Remove what was prepared."""
        self._close_edits()
        for part in self._runs.values():
            for temporary, placed in (*part.step_files.values(), *filter(None, [part.status])):
                placed.close()
                self._disk.discard(temporary)
        if self._old_meta is not None:
            self._old_meta.close()
        if self._meta_file is not None:
            self._meta_file[1].close()
            self._disk.discard(self._meta_file[0])
        if self._new_run is not None:
            self._new_run[0].close()
            with suppress(OSError):
                self._disk.remove_temporary_tree(self._new_run[1])

    def _close_edits(self) -> None:
        if self._edits_log is not None:
            os.close(self._edits_log[0])
            self._edits_log = None

    def journal_writes(self) -> list[Write]:
        """Return what has to survive a power failure: what is appended, and what appears or is replaced."""
        thread_id = self._thread.thread_id
        writes: list[Write] = []
        if self._created is not None:
            writes += key_writes(self._disk, *self._created)
        if self._new_run is not None:
            files, _, _, lines = self._new_run
            writes.append(Write("log", layout.events(thread_id, files.run_id), 0, lines))
        writes += [
            Write("log", layout.events(thread_id, run_id), part.start, part.data) for run_id, part in self._runs.items()
        ]
        if self._message_lines:
            data = b"".join(self._message_lines)
            writes.append(Write("lines", layout.messages(thread_id), self._thread.messages.end, data))
        if self._edits_log is not None:
            writes.append(Write("lines", layout.edits(thread_id), self._edits_log[1], self._edits))
        if self._thread_record is not None:
            writes.append(Write("put", layout.meta(thread_id), self._thread_record[2], self._thread_record[1]))
        if self._is_deleted:
            writes.append(Write("delete", thread_id, 0, b""))
        return writes

    def written(self) -> Iterator[tuple[str, Written]]:
        """Yield what was written into the logs of runs that were there before, once it is."""
        for run_id, part in self._runs.items():
            yield run_id, Written(part.files.log_inode, part.start, part.start + len(part.data), part.events)

    def failed_writes(self, writes: Sequence[Write]) -> list[Write]:
        """Return those of ``journal_writes`` that have not happened, after an error.

        What the log of a new run says stands as soon as the run is there, and is finished later. A key stands in any
        case: it counts only if what it names was made.
        """
        if self._created is not None:
            writes = [write for write in writes if write.path != self._created[0]]
        if self._new_run is not None:
            is_there = layout.events(self._thread.thread_id, self._new_run[0].run_id) in self._committed
            return [] if is_there else list(writes)
        return [write for write in writes if write.path not in self._committed]

    @property
    def is_begun(self) -> bool:
        """Whether something of it stands already, so that the rest has to be finished."""
        return bool(self._committed)

    # The commit, and what follows

    def apply(self, close_later: list[int]) -> None:
        """Commit, then write the projections. Descriptors whose closing notifies others go into ``close_later``."""
        thread = self._thread
        self.is_applied = True
        thread.begin_write()
        if self._is_deleted:
            self.trash = f"{layout.TRASH}/{self._disk.owner}-{secrets.token_hex(8)}"
            self._disk.move(thread.thread_id, self.trash)
            self._committed.add(thread.thread_id)
            queue_entry.forget(self._disk, thread.thread_id)
            return
        if self._created is not None:
            write_key(self._disk, *self._created)
        self._name_in_index(close_later)
        if self._new_run is not None:
            self._commit_new_run()
        if self._meta_file is not None and self._thread_record is not None:
            self._commit_meta(*self._meta_file)
        for part in self._runs.values():
            self._append_to_log(part)
        if self._message_lines:
            thread.messages.append(b"".join(self._message_lines), self._message_count)
            self._committed.add(layout.messages(thread.thread_id))
        if self._edits_log is not None:
            path = layout.edits(thread.thread_id)
            append(self._edits_log[0], self._edits, self._edits_log[1], self._disk.where(path))
            self._committed.add(path)
            self._close_edits()
        for part in self._runs.values():
            self._project(part)
        if self._must_announce:
            self._write_turn(close_later)

    def _name_in_index(self, close_later: list[int]) -> None:
        """Name runs in the index before the commit that are new, or were terminal.

        So the next process after a crash finds every active run, and every run that is not finished, by name.
        """
        runs = [(part.before.run, part.files.state.run) for part in self._runs.values()]
        if self._new_run is None and not any(before.status.is_terminal for before, _ in runs):
            return  # the index names all of them already
        named = [after for before, after in runs if before.status.is_terminal or after.status.is_terminal]
        if self._new_run is not None:
            named.append(self._new_run[0].state.run)
        thread = self._thread
        turn = queue_entry.Turn(thread.turn.last_sequence, list(thread.turn.active))
        for run in named:
            turn.name(run.sequence or 0, run.id)
        close_later.append(queue_entry.write_turn(self._disk, thread.thread_id, turn, thread.boot))
        self._must_announce = turn != thread.turn

    def _commit_new_run(self) -> None:
        assert self._new_run is not None  # noqa: S101 - the caller asked
        files, temporary, _, _ = self._new_run
        thread = self._thread
        target = layout.run(thread.thread_id, files.run_id)
        try:
            self._disk.move_temporary(temporary, target)
        except FileNotFoundError:
            os.mkdir(self._disk.where(layout.runs(thread.thread_id)))
            self._disk.move_temporary(temporary, target)
        self._committed.add(layout.events(thread.thread_id, files.run_id))
        thread.keep(files)

    def _commit_meta(self, temporary: str, placed: Placed) -> None:
        assert self._thread_record is not None  # noqa: S101 - the caller asked
        thread = self._thread
        assert self._old_meta is not None  # noqa: S101 - the record was read to be changed
        self._disk.exchange(temporary, placed, layout.meta(thread.thread_id), self._old_meta)
        self._committed.add(layout.meta(thread.thread_id))
        thread.put_thread(self._thread_record[0])
        placed.close()
        self._old_meta.close()
        self._meta_file = self._old_meta = None

    def _append_to_log(self, part: _RunPart) -> None:
        files = part.files
        path = layout.events(self._thread.thread_id, files.run_id)
        if files.log_fd < 0:
            files.log_fd, found = self._disk.open_log(path, create=True)
            files.log_inode = found.st_ino
        append(files.log_fd, part.data, part.start, self._disk.where(path))
        self._committed.add(path)

    def _project(self, part: _RunPart) -> None:
        files = part.files
        for step_id, (temporary, placed) in part.step_files.items():
            self._put_step(files, part.steps[step_id], temporary, placed)
        part.step_files.clear()
        files.staged_steps.clear()
        if part.status is None:
            return
        temporary, placed = part.status
        path = layout.status(self._thread.thread_id, files.run_id)
        if files.status is None:
            self._disk.put(temporary, path)
        else:
            try:
                self._disk.exchange(temporary, placed, path, files.status)
            except ExternalWriteError:
                # Our transaction stands before the other program's: its record becomes the run's next event.
                placed.close()
                self._disk.discard(temporary)
                part.status = None
                self._thread.doubt(files.run_id)
                return
            files.status.close()
        part.status = None
        files.status, files.summary = placed, part.summary
        if files.state.run.status.is_terminal:
            self._thread.drop_run(files.run_id)

    def _put_step(self, files: RunFiles, step: RunStep, temporary: str, placed: Placed) -> None:
        path = layout.step(self._thread.thread_id, files.run_id, step.id)
        known = files.steps.pop(step.id, None)
        if known is None:
            self._disk.put(temporary, path)
        else:
            try:
                self._disk.exchange(temporary, placed, path, known)
            except ExternalWriteError:
                _logger.warning("An external writer replaced %s, and its record stands", self._disk.where(path))
                placed.close()
                self._disk.discard(temporary)
                return
            finally:
                known.close()
        if step.status is RunStepStatus.IN_PROGRESS:
            files.steps[step.id] = placed
        else:
            placed.close()

    def _write_turn(self, close_later: list[int]) -> None:
        thread = self._thread
        if thread.turn.active or self._must_keep_sequence:
            close_later.append(queue_entry.write_turn(self._disk, thread.thread_id, thread.turn, thread.boot))
        if not thread.turn.active:
            queue_entry.move_to_idle(self._disk, thread.thread_id)


def finish(thread: ThreadFiles, files: RunFiles) -> None:
    """Write the projections of transactions that a run's log has, and its other files do not reflect.

    After an error everything that is known of the thread must be forgotten.
    """
    disk = thread.disk
    entries, files.pending = files.pending, []
    # Where nothing is missing and the record says it all, that it reflects more of the log is no reason to write it.
    must_put = any(entry.record is not None or entry.stops or entry.edits for entry in entries)
    thread.begin_write()
    for entry in entries:
        for run_id, stop in entry.stops.items():
            _finish_stop(thread, run_id, stop)
        if entry.append is not None:
            must_put = _finish_append(thread, entry.append) or must_put
        if entry.edits:
            deleted = read_edits(disk, thread.thread_id).deleted
            missing = [edit_line(edit) for edit in entry.edits if edit.message_id not in deleted]
            if missing:
                _finish_edits(thread, b"".join(missing))
    for step in {step.id: step for entry in entries for step in entry.steps}.values():
        lying = _lying_step(thread, files.run_id, step.id)
        if lying is None or (lying.status is RunStepStatus.IN_PROGRESS and lying != step):
            must_put = True
            temporary, placed = disk.write_temporary(codec.dump(codec.to_record(step)))
            placed.close()
            try:
                disk.put(temporary, layout.step(thread.thread_id, files.run_id, step.id))
            except BaseException:
                disk.discard(temporary)
                raise
    if files.external is None and must_put:
        write_status(thread, files)


def _lying_step(thread: ThreadFiles, run_id: str, step_id: str) -> RunStep | None:
    try:
        return read_step(thread.disk, thread.thread_id, run_id, step_id)
    except SerializationError:
        return None  # torn by a power failure: the log has it


def write_status(thread: ThreadFiles, files: RunFiles) -> None:
    """Let ``status.json`` reflect the whole log."""
    log = files.state.log
    summary = Summary(files.end, log.number, tuple(log.open_steps), files.message_at)
    temporary, placed = thread.disk.write_temporary(files.file_of_record(summary))
    path = layout.status(thread.thread_id, files.run_id)
    if files.status is None:
        thread.disk.put(temporary, path)
    else:
        try:
            thread.disk.exchange(temporary, placed, path, files.status)
        except BaseException as error:
            placed.close()
            thread.disk.discard(temporary)
            if isinstance(error, ExternalWriteError):
                thread.doubt(files.run_id)
                return
            raise
        files.status.close()
    files.status, files.summary = placed, summary


def _open_edits(thread: ThreadFiles) -> tuple[int, int]:
    """Open the log of edits, and return its descriptor and its end."""
    path = layout.edits(thread.thread_id)
    fd, found = thread.disk.open_log(path, create=True)
    try:
        return fd, repair_tail(thread.disk, fd, path, found.st_size)
    except BaseException:
        os.close(fd)
        raise


def _finish_edits(thread: ThreadFiles, lines: bytes) -> None:
    fd, end = _open_edits(thread)
    try:
        append(fd, lines, end, thread.disk.where(layout.edits(thread.thread_id)))
    finally:
        os.close(fd)


def _is_delta(event: RunEvent) -> bool:
    return isinstance(event.data, MessageDelta | StepDelta)


def _finish_append(thread: ThreadFiles, add: Append) -> bool:
    """Append messages that are missing, and return whether there are any."""
    log = thread.messages
    is_missing = False
    for place, message in enumerate(add.messages, add.place):
        if not thread.has_message(add.offset, message.id):
            # With the place that was committed, whatever another program appended since: a run sees what is before it.
            log.append(message_lines([message], place), 1)
            is_missing = True
    return is_missing


def _finish_stop(thread: ThreadFiles, run_id: str, stop: Stop) -> None:
    files = thread.run(run_id)
    if files is None:
        return
    if files.end > stop.offset:  # it is in the log, and perhaps not in the record
        if files.pending:
            finish(thread, files)
        return
    path = layout.events(thread.thread_id, run_id)
    if files.log_fd < 0:
        files.log_fd, _ = thread.disk.open_log(path, create=True)
    append(files.log_fd, stop.lines, files.end, thread.disk.where(path))
    entries, files.end = read_entries(files.log_fd, files.end, files.end + len(stop.lines), thread.disk.where(path))
    for entry in entries:
        files.take(entry)
    files.pending += entries
    finish(thread, files)


class NewThread:
    """A thread with its first messages, written under a temporary name; one rename commits it."""

    def __init__(self, disk: Disk, thread: Thread, messages: Sequence[Message]) -> None:
        self.thread = thread
        self._disk = disk
        self.writes = [Write("put", layout.meta(thread.id), 0, codec.dump(codec.to_record(thread)))]
        if messages:
            self.writes.append(Write("lines", layout.messages(thread.id), 0, message_lines(messages, 0)))
        self._temporary = disk.temporary()
        os.mkdir(self._temporary)
        try:
            for write in self.writes:
                os.close(disk.write_new(f"{self._temporary}/{write.path.rpartition('/')[2]}", write.data))
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Give the thread its name; ``ThreadAlreadyExistsError`` where another process was faster."""
        try:
            try:
                self._disk.move_temporary(self._temporary, self.thread.id)
            except FileExistsError:
                os.rmdir(self._disk.where(self.thread.id))  # an empty directory is no thread
                self._disk.move_temporary(self._temporary, self.thread.id)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError) and self._disk.exists(layout.meta(self.thread.id)):
                raise ThreadAlreadyExistsError(self.thread.id) from None
            raise

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(OSError):
            self._disk.remove_temporary_tree(self._temporary)


def key_writes(disk: Disk, path: str, *files: KeyFile) -> list[Write]:
    """Return what the journal says of a key that is about to be kept as one of ``files`` after the other."""
    try:
        before = checksum(disk.read(path))
    except FileNotFoundError:
        before = 0
    writes: list[Write] = []
    for file in files:
        writes.append(Write("put", path, before, codec.dump(file.to_record())))
        before = checksum(writes[-1].data)
    return writes
