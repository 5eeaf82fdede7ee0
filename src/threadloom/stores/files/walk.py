"""A walk past all threads that finds active runs which the queue does not name, in slices of a few milliseconds.

It reads only what changed since the last complete walk began: the kernel notes when a file or directory was written or
renamed (ctime), and no program can set that time.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

import orjson

from threadloom.errors import StoreError
from threadloom.ids import is_id
from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk

__all__ = ["Mark", "Slice", "Walk"]

_ACTIVE: Final = frozenset({"queued", "in_progress", "requires_action", "cancelling"})
_SLICE_SECONDS: Final = 0.003
_STEPS_PER_CLOCK_READ: Final = 16  # reading the processor time is a system call
_SLACK_NS: Final = 2_000_000_000  # the clock that ctime is taken from is coarse


class Mark(NamedTuple):
    """When a complete walk began.

    Files carry wall-clock times, and the wall clock may be set back, so its time alone would not tell what changed
    since. ``began_ns`` is on the monotonic clock; ``ahead_ns`` is the least by which the wall clock was ahead of that.
    """

    began_ns: int
    ahead_ns: int


class Slice(NamedTuple):
    """The result of a slice: the processor time it used, the threads it found, and whether the walk is complete."""

    seconds: float
    thread_ids: list[str]
    is_last: bool


class _Directories(Iterator[os.DirEntry[str]], Protocol):
    def close(self) -> None: ...


class Walk:
    """One walk past all threads. It reads the runs that changed since ``last``, all of them if that is None.

    A thread is found if one of these runs is active and missing in the thread's queue entry.
    """

    def __init__(self, disk: Disk, last: Mark | None) -> None:
        self._disk = disk
        self._last = last
        self._began_ns = time.monotonic_ns()
        self._ahead_ns = _ahead_ns()
        self._threads: _Directories | None = None
        self._thread_id = ""
        self._run_ids: Iterator[str] | None = None  # of that thread, None if it is done
        self._is_thread_changed = False
        self._are_runs_changed = False
        self._active: set[str] = set()

    @property
    def mark(self) -> Mark:
        """What the next walk needs to know of this one."""
        return Mark(self._began_ns, self._ahead_ns)

    def slice(self, seconds: float = _SLICE_SECONDS) -> Slice:
        """Go on for about that much processor time. This runs in the reading thread."""
        started = time.thread_time()
        self._ahead_ns = min(self._ahead_ns, _ahead_ns())
        found: list[str] = []
        is_last = False
        steps = 0
        while not is_last:
            if self._run_ids is None:
                is_last = not self._begin_next_thread()
            elif (run_id := next(self._run_ids, None)) is not None:
                self._look_at_run(run_id)
            else:
                self._run_ids = None
                # The queue entry is read after the runs, because that is the order in which they are written.
                if not self._active <= self._queued():
                    found.append(self._thread_id)
            if steps % _STEPS_PER_CLOCK_READ == 0 and time.thread_time() - started >= seconds:
                break
            steps += 1
        return Slice(time.thread_time() - started, found, is_last)

    def close(self) -> None:
        """Close the directory that it has open."""
        if self._threads is not None:
            self._threads.close()

    def _begin_next_thread(self) -> bool:
        """Return whether there is another thread. If its runs cannot be listed, it is passed by."""
        if self._threads is None:
            self._threads = os.scandir(self._disk.root)
        entry = next(self._threads, None)
        if entry is None:
            return False
        with suppress(OSError):
            if is_id(entry.name) and entry.is_dir(follow_symlinks=False):
                path = self._disk.where(layout.runs(entry.name))
                runs = os.lstat(path)
                if stat.S_ISDIR(runs.st_mode):
                    self._is_thread_changed = self._has_changed(os.lstat(entry.path))
                    self._are_runs_changed = self._has_changed(runs)
                    self._run_ids = iter(os.listdir(path))
                    self._thread_id, self._active = entry.name, set()
        return True

    def _look_at_run(self, run_id: str) -> None:
        path = layout.status(self._thread_id, run_id)
        # Damage in one run, or its removal at this moment, does not hide the others.
        with suppress(OSError, StoreError, ValueError):
            if (
                # A thread that was moved here with its runs shows the time of that on its own directory only;
                self._is_thread_changed
                # a run that was created or replaced, or written in place, on its record;
                or self._has_changed(os.lstat(self._disk.where(path)))
                # a run that was moved here with its record, on its directory and on that of all runs.
                or (
                    self._are_runs_changed
                    and self._has_changed(os.lstat(self._disk.where(layout.run(self._thread_id, run_id))))
                )
            ):
                record = orjson.loads(self._disk.read(path))
                status = record.get("status") if isinstance(record, dict) else None
                if isinstance(status, str) and status in _ACTIVE and is_id(run_id):
                    self._active.add(run_id)

    def _queued(self) -> set[str]:
        """Return the runs that the thread's queue entry names, none if it is missing or damaged."""
        if not self._active:
            return set()
        try:
            entry = orjson.loads(self._disk.read(layout.queue_entry(self._thread_id)))
            return {run_id for _, run_id in entry["active"]}
        except (OSError, StoreError, KeyError, TypeError, ValueError):
            return set()

    def _has_changed(self, found: os.stat_result) -> bool:
        if self._last is None:
            return True
        return found.st_ctime_ns >= self._last.began_ns + min(self._last.ahead_ns, self._ahead_ns) - _SLACK_NS


def _ahead_ns() -> int:
    # The system's own clocks, whatever clock the store was given: files carry the time of these.
    return time.time_ns() - time.monotonic_ns()
