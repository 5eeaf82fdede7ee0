"""threadloom: a worker on a file store in one process, and another process that queues, each run in its own thread."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _peer import CANCELS, CONCURRENCY, DURABILITY, URL, Client, note, until_cancelled

from threadloom import FileStore, Run, RunContext, RunStatus, RunWorker, Thread

COMMAND = (sys.executable, __file__)


async def noop(ctx: RunContext) -> None:
    """Do nothing."""
    note(int(ctx.run.metadata["number"]), int(ctx.run.metadata["queued_ns"]), time.monotonic_ns())


async def endless(ctx: RunContext) -> None:
    """Go on until it is cancelled."""
    await until_cancelled(int(ctx.run.metadata["number"]))


def open_store() -> FileStore:
    """Return the store of the turn."""
    return FileStore(URL, durability="power" if DURABILITY == "power" else "process")


async def main() -> None:
    """Be the worker."""
    async with open_store() as store:
        await RunWorker(store, endless if CANCELS else noop, concurrency=CONCURRENCY).run_until_stopped()


class _Client:
    def __init__(self, store: FileStore, threads: list[Thread]) -> None:
        self._store = store
        self._threads = threads
        self._runs: list[Run] = []
        self._endless: dict[int, Run] = {}

    async def put(self, number: int, queued_ns: int) -> None:
        thread_id = self._threads[number].id
        run = Run.new(thread_id, model="any", metadata={"number": str(number), "queued_ns": str(queued_ns)})
        self._runs.append(await self._store.create_run(thread_id, run))

    async def start(self, number: int) -> None:
        thread = await self._store.create_thread(Thread.new())
        run = Run.new(thread.id, model="any", metadata={"number": str(number)})
        self._endless[number] = await self._store.create_run(thread.id, run)

    async def cancel(self, number: int) -> None:
        run = self._endless[number]
        await self._store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)

    async def done(self) -> int:
        now = [await self._store.get_run(run.thread_id, run.id) for run in self._runs]
        return sum(run.status is RunStatus.COMPLETED for run in now)


@asynccontextmanager
async def opened(runs: int) -> AsyncIterator[Client]:
    """Yield a client, with a thread made for each run: what is measured is queueing and running it."""
    async with open_store() as store:
        threads = await asyncio.gather(*[store.create_thread(Thread.new()) for _ in range(runs)])
        yield _Client(store, threads)


if __name__ == "__main__":
    asyncio.run(main())
