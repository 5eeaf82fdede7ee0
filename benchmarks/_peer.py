"""What the worker benchmark and every peer's module share: how a peer is used, and the note that each run leaves.

A peer's module is imported both by the peer's worker, which runs its no-op, and by the turn that queues runs for it. It
has ``COMMAND``, with which its documentation starts a worker, and ``opened``, which yields a ``Client``
for so many runs.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

CONCURRENCY = 10

URL = os.environ.get("BENCH_URL", "")  # of the server, or the directory
DURABILITY = os.environ.get("BENCH_DURABILITY", "process")
POLL_S = os.environ.get("BENCH_POLL_S", "")  # in place of the pause that the peer makes when it is not told of work
NOTES = os.environ.get("BENCH_NOTES", "")

NOTE = struct.Struct("=qqq")


class Client(Protocol):
    """Queues runs, and knows from the peer's own books how many were done."""

    async def put(self, number: int, queued_ns: int) -> None:
        """Queue a run."""

    async def done(self) -> int:
        """Return how many runs ended well."""


class Peer(Protocol):
    """A peer's module."""

    COMMAND: tuple[str, ...]

    @staticmethod
    def opened(runs: int) -> AbstractAsyncContextManager[Client]:
        """Yield a client that may queue so many runs."""


def note(number: int, queued_ns: int, started_ns: int) -> None:
    """Leave the note of a run: its number, when it was queued and when its handler was called."""
    os.write(_notes(), NOTE.pack(number, queued_ns, started_ns))


@functools.cache
def _notes() -> int:
    return os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def program(name: str) -> str:
    """Return a command that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))
