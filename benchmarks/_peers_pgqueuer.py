"""pgqueuer: a worker on PostgreSQL, which is told of jobs by NOTIFY and takes ten at once."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from _peer import CONCURRENCY, URL, Client, note, until_cancelled
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries


async def _noop(job: Job) -> None:
    number, queued_ns = json.loads(job.payload)
    note(number, queued_ns, time.monotonic_ns())


async def main() -> None:
    """Be the worker. pgqueuer's own command does the same, but trips over the newest typer."""
    worker = PgQueuer(AsyncpgDriver(await asyncpg.connect(URL)))
    worker.entrypoint("noop", concurrency_limit=CONCURRENCY)(_noop)

    async def endless(job: Job) -> None:
        with worker.qm.get_context(job.id).cancellation:
            await until_cancelled(json.loads(job.payload))

    worker.entrypoint("endless", concurrency_limit=CONCURRENCY)(endless)
    await worker.run(batch_size=CONCURRENCY)


COMMAND = (sys.executable, __file__)


class _Client:
    def __init__(self, connection: asyncpg.Connection, queries: Queries) -> None:
        self._connection = connection
        self._queries = queries
        self._endless: dict[int, list[int]] = {}

    async def put(self, number: int, queued_ns: int) -> None:
        await self._queries.enqueue("noop", json.dumps([number, queued_ns]).encode())

    async def start(self, number: int) -> None:
        self._endless[number] = await self._queries.enqueue("endless", str(number).encode())

    async def cancel(self, number: int) -> None:
        await self._queries.mark_job_as_cancelled(self._endless[number])

    async def done(self) -> int:
        return int(await self._connection.fetchval("SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"))


@asynccontextmanager
async def opened(_runs: int) -> AsyncIterator[Client]:
    """Yield a client, with pgqueuer's tables made."""
    connection = await asyncpg.connect(URL)
    try:
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        yield _Client(connection, queries)
    finally:
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
