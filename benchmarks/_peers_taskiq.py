"""taskiq: a worker on a Redis stream, which acknowledges what it has done, with results in Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from _peer import CONCURRENCY, URL, Client, note, program
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = RedisStreamBroker(URL).with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600))


async def _noop(number: int, queued_ns: int) -> None:
    note(number, queued_ns, time.monotonic_ns())


noop = broker.task(task_name="noop")(_noop)

COMMAND = (
    *(program("taskiq"), "worker", "_peers_taskiq:broker"),
    *("--workers", "1", "--max-async-tasks", str(CONCURRENCY)),
)


class _Client:
    def __init__(self) -> None:
        self._tasks: list[Any] = []

    async def put(self, number: int, queued_ns: int) -> None:
        self._tasks.append(await noop.kiq(number, queued_ns))

    async def done(self) -> int:
        ready = [task for task in self._tasks if await task.is_ready()]
        return sum([not (await task.get_result()).is_err for task in ready])


@asynccontextmanager
async def opened(_runs: int) -> AsyncIterator[Client]:
    """Yield a client."""
    await broker.startup()
    try:
        yield _Client()
    finally:
        await broker.shutdown()
