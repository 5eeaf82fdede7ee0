"""Reading a run's events without a lock."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Final

from attrs import frozen

from threadloom.backend import EventBatch
from threadloom.errors import SerializationError
from threadloom.models import RunStep, RunStepStatus
from threadloom.stores.files import layout
from threadloom.stores.files.commit import Written
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.run_log import Entry, read_entries
from threadloom.stores.files.status_record import decode
from threadloom.stores.files.thread_files import read_step

__all__ = ["Position", "Reading", "RecentEvents", "read_events"]

_MOST_BYTES: Final = 1 << 20
_MOST_RECENT: Final = 64  # transactions of a run
_MOST_RUNS: Final = 256


@frozen
class Position:
    """Where a reader is in a log: which file it is, and the offset."""

    inode: int
    offset: int


@frozen
class Reading:
    """What a look at a log found.

    is_held_back: whether there are events that nobody may see yet, because the records do not show them.
    """

    batch: EventBatch
    is_held_back: bool = False


class RecentEvents:
    """What this process wrote of late into the logs of runs that somebody in it follows.

    So their readers need not read it from the disk. Written to in the writing thread, read on the event loop.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[str, str], tuple[Written, ...]] = OrderedDict()

    def add(self, thread_id: str, run_id: str, written: Written) -> None:
        """Note what was written."""
        key = (thread_id, run_id)
        known = self._runs.get(key, ())
        if known and (known[-1].end != written.start or known[-1].inode != written.inode):
            known = ()  # somebody else wrote in between
        self._runs[key] = (*known[-_MOST_RECENT:], written)
        self._runs.move_to_end(key)
        if len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)

    def read(self, thread_id: str, run_id: str, position: Position) -> EventBatch | None:
        """Return what was written from a position on, None where it is not known."""
        known = self._runs.get((thread_id, run_id), ())
        if not known or known[-1].inode != position.inode:
            return None
        if known[-1].end == position.offset:
            return EventBatch((), position)
        for count, written in enumerate(known):
            if written.start == position.offset:
                events = [event for later in known[count:] for event in later.events]
                return EventBatch(events, Position(position.inode, known[-1].end))
        return None


def read_events(disk: Disk, thread_id: str, run_id: str, position: Position | None) -> Reading | None:
    """Return the events from a position on, None where there is no log.

    A transaction that changes records is shown once the records show it, so that nobody reads of an end and then finds
    the run at work. It is written within the same lock.
    """
    path = layout.events(thread_id, run_id)
    try:
        fd, found = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        start = 0 if position is None else position.offset
        if position is None or position.inode != found.st_ino or start > found.st_size:
            start = 0  # another log has taken its place
        stop = min(found.st_size, start + _MOST_BYTES)
        entries, end = read_entries(fd, start, stop, disk.where(path))
        if not entries and stop < found.st_size:
            stop = found.st_size  # a transaction that is longer than one read
            entries, end = read_entries(fd, start, stop, disk.where(path))
    finally:
        os.close(fd)
    shown = _shown(disk, thread_id, run_id, entries)
    is_held_back = len(shown) < len(entries)
    if is_held_back:
        end = entries[len(shown)].start
    events = [event for entry in shown for event in entry.events]
    batch = EventBatch(events, Position(found.st_ino, end), not is_held_back and stop == found.st_size)
    return Reading(batch, is_held_back)


def _shown(disk: Disk, thread_id: str, run_id: str, entries: list[Entry]) -> list[Entry]:
    """Return the transactions up to the first one that the records do not show yet."""
    last = next((entry for entry in reversed(entries) if not entry.is_projected), None)
    if last is None or last.start == 0:
        return entries  # a run appears with its first transaction
    path = layout.status(thread_id, run_id)
    try:
        summary = decode(disk.read(path), disk.where(path)).summary
    except (FileNotFoundError, SerializationError):
        return entries  # damaged, or being written in place by another program: the log is the truth
    if summary is None:
        return entries  # another program's record: whatever it says, the log says what came before
    for count, entry in enumerate(entries):
        if (
            entry.end > summary.bytes
            and entry.start
            and not entry.is_projected
            and not _is_shown(disk, thread_id, run_id, entry)
        ):
            return entries[:count]
    return entries


def _is_shown(disk: Disk, thread_id: str, run_id: str, entry: Entry) -> bool:
    if entry.record is not None or entry.stops or entry.edits:
        return False
    if entry.append is not None and not _has_bytes(disk, thread_id, entry.append.offset):
        return False
    return all(_has_step(disk, thread_id, run_id, step) for step in entry.steps)


def _has_bytes(disk: Disk, thread_id: str, offset: int) -> bool:
    identity = disk.identity(layout.messages(thread_id))
    return identity is not None and identity[2] > offset


def _has_step(disk: Disk, thread_id: str, run_id: str, step: RunStep) -> bool:
    lying = read_step(disk, thread_id, run_id, step.id)
    return lying is not None and (lying.status is not RunStepStatus.IN_PROGRESS or step.status is lying.status)
