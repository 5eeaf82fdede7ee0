"""huey on files: threads that look for jobs, ever more seldom up to ten seconds, under one lock for all processes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _peer import CONCURRENCY, POLL_S, URL, Client, note, program
from huey import FileHuey

huey = FileHuey("bench", path=URL)


def _noop(number: int, queued_ns: int) -> int:
    note(number, queued_ns, time.monotonic_ns())
    return number  # a result of None is not kept, and could not be counted


noop = huey.task(name="noop")(_noop)

COMMAND = (
    *(program("huey_consumer"), "_peers_huey.huey", "--workers", str(CONCURRENCY), "--worker-type", "thread"),
    *(("--delay", POLL_S, "--max-delay", POLL_S) if POLL_S else ()),
)


class _Client:
    async def put(self, number: int, queued_ns: int) -> None:
        noop(number, queued_ns)

    async def done(self) -> int:
        return int(huey.result_count())


@asynccontextmanager
async def opened(_runs: int) -> AsyncIterator[Client]:
    """Yield a client."""
    yield _Client()
