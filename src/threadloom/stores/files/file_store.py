"""FileStore: a ``ThreadStore`` over files that a person can read."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Literal

from threadloom.clock import Clock, SystemClock
from threadloom.errors import InvalidInputError, StoreError
from threadloom.ids import check_id
from threadloom.store import ThreadStore
from threadloom.stores.files import layout
from threadloom.stores.files.file_backend import FileBackend
from threadloom.stores.files.linux import fcntl

__all__ = ["FileStore"]


class FileStore(ThreadStore):
    """Keeps everything below one directory, in files that a person can read (``docs/format.md``).

    Any number of tasks, stores and processes of one machine may use the directory at the same time, and programs that
    know nothing of threadloom may replace its records.

    root: the directory; it is created, with its parents, when the store is opened.
    durability: ``power`` lets a write return once it survives a power failure; ``process`` once it survives the end of
        the process, which is faster.
    lock_timeout: how long a write waits for another process that holds its thread's lock, before it raises
        ``StoreBusyError``; a timedelta or seconds.
    lease_duration: how long the event loop of a worker's process may do nothing before its runs are reclaimed; a
        timedelta or seconds. A process that is dead is noticed at once.
    max_attempts: how often a run is attempted in all, before the loss of another worker makes it ``failed``.
    clock: the clock that moments and expiry are judged by; tests pass a ``ManualClock``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        durability: Literal["power", "process"] = "power",
        lock_timeout: timedelta | float = 10.0,
        lease_duration: timedelta | float = 30.0,
        max_attempts: int = 3,
        clock: Clock | None = None,
    ) -> None:
        if fcntl is None:
            raise StoreError("FileStore needs flock, which this system does not have; it runs on Linux and macOS.")
        if durability not in {"power", "process"}:
            raise InvalidInputError(f"durability must be 'power' or 'process', not {durability!r}.")
        lease, patience = _seconds(lease_duration), _seconds(lock_timeout)
        if lease <= 0 or max_attempts < 1:
            raise InvalidInputError(
                f"lease_duration and max_attempts must be positive, not {lease_duration!r} and {max_attempts!r}."
            )
        self.root = Path(root)
        self.durability = durability
        backend = FileBackend(
            # Where it is now, wherever the process goes afterwards.
            str(self.root if self.root.is_absolute() else Path.cwd() / self.root),
            durability=durability,
            lock_timeout=patience,
            lease_duration=lease,
            max_attempts=max_attempts,
            clock=SystemClock() if clock is None else clock,
        )
        super().__init__(backend, max_attempts=max_attempts)

    def thread_dir(self, thread_id: str) -> Path:
        """Return where a thread lies, whether or not it is there."""
        check_id(thread_id)
        return self.root / thread_id

    def run_dir(self, thread_id: str, run_id: str) -> Path:
        """Return where a run lies, whether or not it is there."""
        check_id(thread_id, run_id)
        return self.root / layout.run(thread_id, run_id)

    def steps_dir(self, thread_id: str, run_id: str) -> Path:
        """Return where the steps of a run lie, whether or not there are any."""
        check_id(thread_id, run_id)
        return self.root / layout.steps(thread_id, run_id)


def _seconds(duration: timedelta | float) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
