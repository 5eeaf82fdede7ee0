"""The view of a thread that a transaction has under the lock, and the one that a read has without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import attrs

from threadloom import codec
from threadloom.backend import ThreadView
from threadloom.errors import SerializationError, StoreError, StoreIOError
from threadloom.events import RunLog
from threadloom.ids import is_id
from threadloom.models import Message, Run, RunStep, Thread
from threadloom.pages import Page, PageRequest, page_of
from threadloom.records import Created, Lease, RunRecord, RunState
from threadloom.stores.files import layout, message_log
from threadloom.stores.files.commit import Commit
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.keys import KeyFile, read_key
from threadloom.stores.files.message_log import CursorCache
from threadloom.stores.files.queue_entry import read_turn
from threadloom.stores.files.run_log import read_entries
from threadloom.stores.files.status_record import decode, restored
from threadloom.stores.files.thread_files import RunFiles, ThreadFiles, read_step, steps_of

__all__ = ["LockedView", "MissingView", "MustBeAloneError", "ReadView", "read_record", "read_thread"]

Place = tuple[bool, int, int, str]


class MustBeAloneError(Exception):
    """A transaction met a run whose files do not agree: what is staged before it has to be written first."""


class FilesView(ThreadView):
    """What both views read in the same way: the thread's messages, and pages."""

    def __init__(
        self, disk: Disk, thread_id: str, now_ns: int, cursors: CursorCache, is_gone: Callable[[str], bool]
    ) -> None:
        self.thread_id = thread_id
        self.now_ns = now_ns
        self._disk = disk
        self._cursors = cursors
        self._is_gone = is_gone

    def message(self, message_id: str) -> Message | None:
        """Return a message with its edits applied."""
        return message_log.find(self._disk, self.thread_id, message_id)

    def messages_written_by(self, run_ids: Collection[str], since: int) -> Iterable[str]:
        """Return the ids of messages that runs wrote."""
        return message_log.written_by(self._disk, self.thread_id, run_ids, since)

    def is_gone(self, lease: Lease) -> bool:
        """Return whether the process of a lease's worker is dead or hung."""
        return self._is_gone(lease.liveness_id)

    def list_runs(self, page: PageRequest) -> Page[Run]:
        """Return a page of the thread's runs; those off the page are looked at for their place only."""
        damaged: list[StoreError] = []
        places: dict[str, Place] = {}
        for run_id in self._disk.subdirectories(layout.runs(self.thread_id)):
            if not is_id(run_id):
                continue
            place = _glance(self._disk, self.thread_id, run_id)
            if place is None:
                run = self._read_run(run_id, damaged)
                place = None if run is None else (run.sequence is not None, run.sequence or 0, run.created_at, run_id)
            if place is not None:
                places[run_id] = place
        ordered = sorted(places, key=places.__getitem__)
        chosen = page_of(ordered, str, "runs of the thread", **attrs.asdict(attrs.evolve(page, limit=None)))
        from_the_end = page.limit is not None and page.before is not None and page.after is None
        found: list[Run] = []
        has_more = False
        for run_id in reversed(chosen) if from_the_end else chosen:
            run = self._read_run(run_id, damaged)
            if run is None:
                continue  # a damaged one takes no place on the page, so that a page never consists of damage
            if page.limit is not None and len(found) >= page.limit:
                has_more = True
                break
            found.append(run)
        if from_the_end:
            found.reverse()
        return Page(found, has_more, damaged=tuple(damaged))

    def _read_run(self, run_id: str, damaged: list[StoreError]) -> Run | None:
        try:
            record = read_record(self._disk, self.thread_id, run_id)
        except StoreError as error:
            damaged.append(error)
            return None
        except OSError as error:
            damaged.append(StoreIOError(f"read run {run_id!r} of thread {self.thread_id!r}", error))
            return None
        return None if record is None else record.run

    def list_steps(self, run_id: str, page: PageRequest) -> Page[RunStep]:
        """Return a page of a run's steps."""
        damaged: list[StoreError] = []
        steps = steps_of(self._disk, self.thread_id, run_id, damaged)
        found = page_of(steps, lambda step: step.id, "steps of the run", **attrs.asdict(page))
        return attrs.evolve(found, damaged=tuple(damaged))

    def list_messages(self, page: PageRequest, *, run_id: str | None, seen_by: str | None) -> Page[Message]:
        """Return a page of messages."""
        sees = None if seen_by is None else self._sight_of(seen_by)
        return message_log.page(self._disk, self.thread_id, page, run_id=run_id, sees=sees, cursors=self._cursors)

    def _sight_of(self, seen_by: str) -> Callable[[int, str | None], bool]:
        seer = read_record(self._disk, self.thread_id, seen_by)
        assert seer is not None  # noqa: S101 - the rule has looked
        before = seer.run.messages_before
        known: dict[str | None, bool] = {seen_by: True}

        def sees(place: int, written_by: str | None) -> bool:
            if before is None or place < before:
                return True
            if written_by not in known:
                known[written_by] = written_by is not None and self._comes_before(written_by, seer.run)
            return known[written_by]

        return sees

    def _comes_before(self, run_id: str, seer: Run) -> bool:
        try:
            other = read_record(self._disk, self.thread_id, run_id)
        except (StoreError, OSError):
            return False  # a damaged run is no reason to hide the rest
        if other is None:
            return False
        return _place(other.run) < _place(seer)

    def created(self, kind: type[Thread | Message | Run], key: str) -> Created | None:
        """Return what was created under a key, if it was really made."""
        if kind is Thread:
            return None
        name = kind.__name__.lower()
        file = read_key(self._disk, layout.key(self.thread_id, name, key), key, kind)  # type: ignore[type-var]
        if file is None or not (file.is_sure or self._was_made(file)):
            return None
        return file.created

    def _was_made(self, file: KeyFile) -> bool:
        value = file.created.value
        if isinstance(value, Run):
            return self._disk.exists(layout.status(self.thread_id, value.id))
        try:
            fd, found = self._disk.open(layout.messages(self.thread_id))
        except FileNotFoundError:
            return False
        try:
            return message_log.has_line(fd, found.st_size, file.offset, value.id)
        finally:
            os.close(fd)


class LockedView(FilesView):
    """What a transaction sees.

    reconcile: called with a run whose files do not agree, before it is shown.
    commit: what is staged in the thread already.
    """

    def __init__(
        self,
        thread: ThreadFiles,
        now_ns: int,
        cursors: CursorCache,
        is_gone: Callable[[str], bool],
        *,
        reconcile: Callable[[LockedView, RunFiles], None],
        commit: Commit,
    ) -> None:
        super().__init__(thread.disk, thread.thread_id, now_ns, cursors, is_gone)
        self.files = thread
        self.commit = commit
        self._reconcile = reconcile

    @property
    def thread(self) -> Thread | None:
        """The thread's record."""
        return self.files.thread

    @property
    def active_runs(self) -> Sequence[RunState]:
        """The runs that are not terminal."""
        found: list[RunState] = []
        for _, run_id in tuple(self.files.turn.active):
            try:
                state = self.run(run_id)
            except SerializationError:
                continue  # a call that asks for it gets the error; it never holds up the others
            if state is not None and not (state.run.status.is_terminal and state.log.has_ended):
                found.append(state)
        return found

    @property
    def last_sequence(self) -> int:
        """The highest sequence that was given."""
        return self.files.turn.last_sequence

    @property
    def message_count(self) -> int:
        """How many messages were ever appended."""
        return self.files.messages.count

    def run(self, run_id: str) -> RunState | None:
        """Return a run."""
        files = self.files.run(run_id)
        while files is not None and (files.pending or files.external is not None):
            self._reconcile(self, files)
            # What another program wrote since then comes after what is decided now: else one that writes faster than
            # this disk could hold up the thread for ever.
            if self.files.trust(files):
                break
            files = self.files.run(run_id)
        return None if files is None else files.state

    def step(self, run_id: str, step_id: str) -> RunStep | None:
        """Return a step."""
        files = self.files.runs.get(run_id)
        return None if files is None else self.files.step(files, step_id)


class ReadView(FilesView):
    """What a read sees: each record as it lies there. Nothing needs the lock, for every record is replaced whole."""

    def __init__(
        self,
        disk: Disk,
        thread_id: str,
        now_ns: int,
        cursors: CursorCache,
        is_gone: Callable[[str], bool],
        *,
        boot: str,
    ) -> None:
        super().__init__(disk, thread_id, now_ns, cursors, is_gone)
        self._boot = boot

    @property
    def thread(self) -> Thread | None:
        """The thread's record."""
        return read_thread(self._disk, self.thread_id)

    @property
    def active_runs(self) -> Sequence[RunState]:
        """The runs that are not terminal."""
        turn = read_turn(self._disk, self.thread_id, self._boot)
        if turn is None:
            ids = [name for name in self._disk.subdirectories(layout.runs(self.thread_id)) if is_id(name)]
        else:
            ids = [run_id for _, run_id in turn.active]
        found = [state for run_id in ids if (state := self.run(run_id)) is not None]
        active = [state for state in found if not state.run.status.is_terminal]
        return sorted(active, key=lambda state: _place(state.run))

    @property
    def last_sequence(self) -> int:
        """The highest sequence that was given."""
        turn = read_turn(self._disk, self.thread_id, self._boot)
        return 0 if turn is None else turn.last_sequence

    @property
    def message_count(self) -> int:
        """How many messages were ever appended."""
        try:
            fd, found = self._disk.open(layout.messages(self.thread_id))
        except FileNotFoundError:
            return 0
        try:
            return message_log.next_place(fd, found.st_size)
        finally:
            os.close(fd)

    def run(self, run_id: str) -> RunState | None:
        """Return a run; of its log no more than that it is not known."""
        record = read_record(self._disk, self.thread_id, run_id)
        if record is None:
            return None
        return RunState(record, RunLog(run=record.run))

    def step(self, run_id: str, step_id: str) -> RunStep | None:
        """Return a step."""
        return read_step(self._disk, self.thread_id, run_id, step_id)


class MissingView(FilesView):
    """The view of a thread that is not there."""

    thread = None
    active_runs: Sequence[RunState] = ()
    last_sequence = 0
    message_count = 0

    def __init__(self, *arguments: Any, created: Created | None = None) -> None:
        super().__init__(*arguments)
        self._created = created

    def run(self, run_id: str) -> RunState | None:
        """Return None."""

    def step(self, run_id: str, step_id: str) -> RunStep | None:
        """Return None."""

    def created(self, kind: type[Thread | Message | Run], key: str) -> Created | None:
        """Return the thread that was created under the key."""
        return self._created if kind is Thread and self._created is not None and self._created.key == key else None


def read_thread(disk: Disk, thread_id: str) -> Thread | None:
    """Return a thread's record, None where there is none; damage where there is anything else."""
    path = layout.meta(thread_id)
    try:
        return codec.decode(disk.read(path), Thread, disk.where(path))
    except FileNotFoundError:
        if disk.names(thread_id) and not disk.exists(path):
            raise SerializationError(disk.where(path), "the thread's directory is there without it") from None
        return None


def read_record(disk: Disk, thread_id: str, run_id: str) -> RunRecord | None:
    """Return a run's record as it lies there, None where there is none."""
    path = layout.status(thread_id, run_id)
    where = disk.where(path)
    try:
        status = decode(disk.read(path), where)
    except FileNotFoundError:
        if disk.names(layout.run(thread_id, run_id)) and not disk.exists(path):
            raise SerializationError(where, "the run's directory is there without it") from None
        return None
    if status.record.run.sequence is not None:
        return status.record
    return restored(status, _last_run(disk, thread_id, run_id), where)


def _last_run(disk: Disk, thread_id: str, run_id: str) -> Run | None:
    path = layout.events(thread_id, run_id)
    try:
        fd, found = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        entries, _ = read_entries(fd, 0, found.st_size, disk.where(path))
    finally:
        os.close(fd)
    return next((entry.record.run for entry in reversed(entries) if entry.record is not None), None)


def _glance(disk: Disk, thread_id: str, run_id: str) -> Place | None:
    """Return a run's place in its thread by its record alone, None where the whole of it has to be read."""
    try:
        record = codec.load(disk.read(layout.status(thread_id, run_id)), run_id)
        sequence, created_at = record["sequence"], record["created_at"]
    except (StoreError, OSError, KeyError, TypeError):
        return None
    if type(sequence) is not int or type(created_at) is not int:
        return None
    return True, sequence, created_at, run_id


def _place(run: Run) -> Place:
    return run.sequence is not None, run.sequence or 0, run.created_at, run.id
