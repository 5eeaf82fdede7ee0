"""SAQ: a worker on Redis, which waits in a blocking move."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from _peer import CONCURRENCY, URL, Client, note, program, until_cancelled
from redis.asyncio import Redis
from saq import Job, Status
from saq.queue.redis import RedisQueue

queue = RedisQueue(Redis.from_url(URL))


async def noop(_ctx: dict[str, Any], *, number: int, queued_ns: int) -> None:
    """Do nothing."""
    note(number, queued_ns, time.monotonic_ns())


async def endless(_ctx: dict[str, Any], *, number: int) -> None:
    """Go on until it is cancelled."""
    await until_cancelled(number)


settings = {"queue": queue, "functions": [noop, endless], "concurrency": CONCURRENCY}

COMMAND = (program("saq"), "_peers_saq.settings")


class _Client:
    def __init__(self) -> None:
        self._keys: list[str] = []
        self._endless: dict[int, Job] = {}

    async def put(self, number: int, queued_ns: int) -> None:
        self._keys.append((await queue.enqueue("noop", number=number, queued_ns=queued_ns)).key)

    async def start(self, number: int) -> None:
        self._endless[number] = await queue.enqueue("endless", number=number, timeout=0)

    async def cancel(self, number: int) -> None:
        await self._endless[number].abort("enough")

    async def done(self) -> int:
        return sum(job.status is Status.COMPLETE for job in await queue.jobs(self._keys))


@asynccontextmanager
async def opened(_runs: int) -> AsyncIterator[Client]:
    """Yield a client."""
    await queue.connect()
    try:
        await (
            queue.sweep()
        )  # the minute's, which at a worker's start aborts jobs that it is just starting (SAQ issue 277)
        yield _Client()
    finally:
        await queue.disconnect()
