"""What lies on disk of runs, their steps and events, read: by whoever asks, and by who is about to change it.

Nothing here needs a lock, for every record is replaced whole and every log is only appended to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

import attrs
import orjson
from attrs import define, field, frozen

from threadloom import codec, lifecycle
from threadloom.errors import (
    LeaseLostError,
    NotFoundError,
    RunNotFoundError,
    RunStepNotFoundError,
    SerializationError,
    StoreError,
)
from threadloom.events import Checkpoint, RunEvent, RunLog
from threadloom.ids import is_id
from threadloom.lifecycle import Lease, RunRecord
from threadloom.models import Run, RunStatus, RunStep, RunStepStatus
from threadloom.pages import Page, page_of
from threadloom.stores.files import _log as log
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._opened import Held, LogFile
from threadloom.stores.files._pages import PageRequest, filled_page
from threadloom.stores.files._records import read_record, setting_aside
from threadloom.stores.files._threads import Sight, Threads

__all__ = ["RunFiles", "Seen"]

_logger = logging.getLogger("threadloom")

_MOST_EVENT_BYTES_A_READ = 1 << 20
_TERMINAL: Final = tuple(status.value for status in RunStatus if status.is_terminal)

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


_Place = tuple[bool, int, int, str]


@frozen
class _Glance:
    """What a record says of itself where nothing else of it is looked at, nor whether all of it is right."""

    place: _Place
    is_terminal: bool


@define
class Seen:
    """What was found of the runs of one thread: the active ones, and what tells a new one its number."""

    last_sequence: int = 0
    has_runs: bool = False
    active: list[Run] = field(factory=list)


class RunFiles:
    """Runs, steps and events as they lie there."""

    def __init__(self, layout: Layout, disk: Disk, threads: Threads) -> None:
        self._layout = layout
        self._disk = disk
        self._threads = threads

    # Runs

    def get(self, thread_id: str, run_id: str) -> Run:
        return self.record(thread_id, run_id).run

    def page(self, thread_id: str, request: PageRequest) -> Page[Run]:
        self._threads.check_exists(thread_id)
        damaged: list[StoreError] = []
        places: dict[str, _Place] = {}
        for run_id in self.run_ids(thread_id):
            if (glance := self._glance(thread_id, run_id)) is not None:
                places[run_id] = glance.place
                continue
            with setting_aside(damaged, f"read run {run_id!r}"):
                places[run_id] = _place(self.get(thread_id, run_id))
        ordered = sorted(places, key=places.__getitem__)
        chosen = page_of(ordered, str, "runs of the thread", **attrs.evolve(request, limit=None).options)
        return filled_page(chosen, request, partial(self.get, thread_id), damaged)

    def check_lease(self, lease: Lease) -> Run:
        try:
            record = self.record(lease.thread_id, lease.run_id)
        except NotFoundError:
            raise LeaseLostError(lease.run_id, lease.worker_id) from None
        if not lifecycle.holds(record, lease):
            raise LeaseLostError(lease.run_id, lease.worker_id)
        return record.run

    def record(self, thread_id: str, run_id: str) -> RunRecord:
        """Return the record of a run as it lies there."""
        try:
            data = self._disk.read(self._layout.status(thread_id, run_id))
        except FileNotFoundError:
            raise self._missing(thread_id, run_id) from None
        return self.decoded(thread_id, run_id, data)

    def held(self, thread_id: str, run_id: str) -> Held:
        """Return the record of a run as it is before a change."""
        try:
            return self._disk.hold(self._layout.status(thread_id, run_id))
        except FileNotFoundError:
            raise self._missing(thread_id, run_id) from None

    def decoded(self, thread_id: str, run_id: str, data: bytes) -> RunRecord:
        """Return the record that ``data`` holds, with what another program dropped of it when it wrote it anew."""
        path = self._layout.status(thread_id, run_id)
        raw = codec.load(data, path)
        record = codec.from_record(raw, RunRecord, path)
        if record.run.sequence is not None:
            return record
        known = RunLog()
        try:
            with LogFile(self._layout.events(thread_id, run_id)) as file:
                for event in self.parsed_events(file, 0, log.end_of_lines(file))[0]:
                    known.apply(event)
        except FileNotFoundError:
            return record
        if known.run is None or known.run.sequence is None:
            return record
        kept = {key: value for key, value in codec.to_record(known.run).items() if key not in _NOT_RESTORED}
        return codec.from_record(kept | raw, RunRecord, path)

    def _missing(self, thread_id: str, run_id: str) -> Exception:
        try:
            self._threads.check_exists(thread_id)
        except (NotFoundError, StoreError) as error:
            return error
        status = self._layout.status(thread_id, run_id)
        if self._disk.exists(self._layout.run(thread_id, run_id)) and not self._disk.exists(status):
            return SerializationError(status, "the run's directory is there without it")
        # Where both are there by now, the run was made between the two looks; when it was asked for, it was not.
        return RunNotFoundError(thread_id, run_id)

    def run_ids(self, thread_id: str) -> list[str]:
        return [name for name in self._disk.subdirectories(self._layout.runs(thread_id)) if is_id(name)]

    def seen(self, thread_id: str) -> Seen:
        """Return what is found of a thread's runs; those that are damaged are passed over."""
        seen = Seen()
        for run_id in self.run_ids(thread_id):
            with suppress(OSError):
                self.see(seen, thread_id, run_id)
        return seen

    def see(self, seen: Seen, thread_id: str, run_id: str) -> None:
        """Take a run in. Of one that has ended, as nearly all have, no more is read than that it has."""
        seen.has_runs = True
        glance = self._glance(thread_id, run_id)
        if glance is not None and glance.is_terminal:
            seen.last_sequence = max(seen.last_sequence, glance.place[1])
            return
        try:
            run = self.get(thread_id, run_id)
        except (NotFoundError, StoreError):
            return  # damaged: nobody can work on it
        seen.last_sequence = max(seen.last_sequence, run.sequence or 0)
        if not run.status.is_terminal:
            seen.active.append(run)

    def _glance(self, thread_id: str, run_id: str) -> _Glance | None:
        """Return what a run's record says of itself, or none where only the whole of it can tell."""
        try:
            record = orjson.loads(self._disk.read(self._layout.status(thread_id, run_id)))
            sequence, created_at, status = record["sequence"], record["created_at"], record["status"]
        except (OSError, KeyError, TypeError, ValueError):
            return None
        if type(sequence) is not int or type(created_at) is not int:
            return None
        return _Glance((True, sequence, created_at, run_id), status in _TERMINAL)

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

    def get_step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        self.record(thread_id, run_id)
        return self.read_step(thread_id, run_id, step_id)

    def page_of_steps(self, thread_id: str, run_id: str, request: PageRequest) -> Page[RunStep]:
        self.record(thread_id, run_id)
        damaged: list[StoreError] = []
        steps = self.all_steps(thread_id, run_id, damaged)
        return attrs.evolve(page_of(steps, _id, "steps of the run", **request.options), damaged=tuple(damaged))

    def open_steps(self, thread_id: str, run_id: str) -> Iterator[RunStep]:
        """Yield the steps that are not closed, as they lie there: nothing is read unless somebody asks."""
        for step in self.all_steps(thread_id, run_id, []):
            if step.status is RunStepStatus.IN_PROGRESS:
                yield step

    def read_step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        try:
            return read_record(self._disk, self._layout.step(thread_id, run_id, step_id), RunStep)
        except FileNotFoundError:
            raise RunStepNotFoundError(run_id, step_id) from None

    def all_steps(self, thread_id: str, run_id: str, damaged: list[StoreError]) -> list[RunStep]:
        steps: list[RunStep] = []
        for name in self._disk.names(self._layout.steps(thread_id, run_id)):
            step_id = name.removesuffix(".json")
            if step_id == name or not is_id(step_id):
                continue
            with setting_aside(damaged, f"read step {step_id!r}"):
                steps.append(self.read_step(thread_id, run_id, step_id))
        return sorted(steps, key=_place)

    # Events

    def read_events(
        self, thread_id: str, run_id: str, position: tuple[int, int] | None
    ) -> tuple[list[RunEvent], tuple[int, int] | None, bool]:
        path = self._layout.events(thread_id, run_id)
        try:
            with LogFile(path) as file:
                inode, start = position or (file.inode, 0)
                if inode != file.inode or start > file.size:
                    start = 0  # another log is in its place, or another program has cut it
                whole = log.end_of_lines(file)
                stop = min(whole, start + _MOST_EVENT_BYTES_A_READ)
                events, end = self.parsed_events(file, start, stop, at_least_one=stop < whole)
                return events, (file.inode, end), end >= whole
        except FileNotFoundError:
            self.record(thread_id, run_id)
            return [], None, True

    def parsed_events(
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
                _logger.warning("event set aside", extra={"path": file.path}, exc_info=error)
        if position == start and at_least_one and stop > start:
            # A line longer than one read: take as much more as it needs.
            return self.parsed_events(file, start, log.end_of_lines(file))
        return events, position


def _event(record: dict[str, Any] | SerializationError, path: str, offset: int) -> RunEvent:
    if isinstance(record, SerializationError):
        raise record
    event = codec.from_record(record, RunEvent, path, offset=offset)
    # A step's id becomes the name of its file.
    if not isinstance(event.data, Checkpoint) and not is_id(event.data.id):
        raise SerializationError(path, f"{event.data.id!r} is no id", offset=offset)
    return event


def _id(item: Run | RunStep) -> str:
    return item.id


def _place(item: Run | RunStep) -> _Place:
    return item.sequence is not None, item.sequence or 0, item.created_at, item.id
