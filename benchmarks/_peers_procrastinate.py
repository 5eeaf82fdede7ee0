"""procrastinate: a worker on PostgreSQL, which is told of jobs by NOTIFY."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _peer import CONCURRENCY, URL, Client, note, program, until_cancelled
from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=URL))


async def _noop(number: int, queued_ns: int) -> None:
    note(number, queued_ns, time.monotonic_ns())


noop = app.task(name="noop")(_noop)
endless = app.task(name="endless")(until_cancelled)

COMMAND = (program("procrastinate"), "--app=_peers_procrastinate.app", "worker", "--concurrency", str(CONCURRENCY))


class _Client:
    def __init__(self) -> None:
        self._endless: dict[int, int] = {}

    async def put(self, number: int, queued_ns: int) -> None:
        await noop.defer_async(number=number, queued_ns=queued_ns)

    async def start(self, number: int) -> None:
        self._endless[number] = await endless.defer_async(number=number)

    async def cancel(self, number: int) -> None:
        await app.job_manager.cancel_job_by_id_async(self._endless[number], abort=True)

    async def done(self) -> int:
        return len(list(await app.job_manager.list_jobs_async(status="succeeded")))


@asynccontextmanager
async def opened(_runs: int) -> AsyncIterator[Client]:
    """Yield a client, with procrastinate's tables made."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield _Client()
