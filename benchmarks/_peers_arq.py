"""arq: a worker on Redis, which looks for jobs every half second unless it is told otherwise."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from _peer import CANCELS, CONCURRENCY, POLL_S, URL, Client, note, program, until_cancelled
from arq import ArqRedis, create_pool
from arq.connections import RedisSettings
from arq.jobs import Job


async def noop(_ctx: dict[str, Any], number: int, queued_ns: int) -> None:
    """Do nothing."""
    note(number, queued_ns, time.monotonic_ns())


async def endless(_ctx: dict[str, Any], number: int) -> None:
    """Go on until it is cancelled."""
    await until_cancelled(number)


class WorkerSettings:
    """What arq's command reads."""

    functions = (noop, endless)
    redis_settings = RedisSettings.from_dsn(URL)
    max_jobs = CONCURRENCY
    allow_abort_jobs = CANCELS
    poll_delay = float(POLL_S or 0.5)


COMMAND = (program("arq"), "_peers_arq.WorkerSettings")


class _Client:
    def __init__(self, pool: ArqRedis) -> None:
        self._pool = pool
        self._endless: dict[int, Job] = {}

    async def put(self, number: int, queued_ns: int) -> None:
        await self._pool.enqueue_job("noop", number, queued_ns)

    async def start(self, number: int) -> None:
        self._endless[number] = await self._pool.enqueue_job("endless", number)

    async def cancel(self, number: int) -> None:
        await self._endless[number].abort(poll_delay=0.01)

    async def done(self) -> int:
        return sum(result.success for result in await self._pool.all_job_results())


@asynccontextmanager
async def opened(_runs: int) -> AsyncIterator[Client]:
    """Yield a client."""
    pool = await create_pool(RedisSettings.from_dsn(URL))
    try:
        yield _Client(pool)
    finally:
        await pool.aclose()
