"""What the benchmarks of workers and every peer's module share: how a peer is used, and the notes that runs leave.

A peer's module is imported both by the peer's worker, which runs its no-op, and by the turn that queues runs for it. It
has ``COMMAND``, with which its documentation starts a worker, and ``opened``, which yields a ``Client``
for so many runs.
"""

from __future__ import annotations

import asyncio
import functools
import os
import struct
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "10"))
CANCELS = bool(os.environ.get("BENCH_CANCELS"))  # whether running jobs are to be cancelled, for whom this is a setting

URL = os.environ.get("BENCH_URL", "")  # of the server, or the directory
DURABILITY = os.environ.get("BENCH_DURABILITY", "process")
POLL_S = os.environ.get("BENCH_POLL_S", "")  # in place of the pause that the peer makes when it is not told of work
NOTES = os.environ.get("BENCH_NOTES", "")

NOTE = struct.Struct("=qqq")
STARTED, CANCELLED = range(2)


class Client(Protocol):
    """Queues runs, and knows from the peer's own books how many were done."""

    async def put(self, number: int, queued_ns: int) -> None:
        """Queue a run."""

    async def done(self) -> int:
        """Return how many runs ended well."""


class Canceller(Protocol):
    """The same of a peer that can cancel what is running."""

    async def start(self, number: int) -> None:
        """Queue a run that goes on until it is cancelled."""

    async def cancel(self, number: int) -> None:
        """Cancel it, as the peer's documentation says to."""


class Peer(Protocol):
    """A peer's module."""

    COMMAND: tuple[str, ...]

    @staticmethod
    def opened(runs: int) -> AbstractAsyncContextManager[Client]:
        """Yield a client that may queue so many runs."""


def note(number: int, queued_ns: int, started_ns: int) -> None:
    """Leave the note of a run: its number, when it was queued and when its handler was called."""
    os.write(_notes(), NOTE.pack(number, queued_ns, started_ns))


async def until_cancelled(number: int) -> None:
    """Note when a run is started, and when it is cancelled: so do those that go on until then."""
    note(number, STARTED, time.monotonic_ns())
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note(number, CANCELLED, time.monotonic_ns())
        raise


@functools.cache
def _notes() -> int:
    return os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def program(name: str) -> str:
    """Return a command that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))
