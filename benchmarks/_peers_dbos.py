"""DBOS: a worker on PostgreSQL, whose queues look for work every second unless they are told otherwise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _peer import CONCURRENCY, POLL_S, URL, Client, note, program, until_cancelled
from dbos import DBOS, DBOSClient

COMMAND = (sys.executable, __file__)


async def noop(number: int, queued_ns: int) -> None:
    """Do nothing."""
    note(number, queued_ns, time.monotonic_ns())


def main() -> None:
    """Be the worker."""
    DBOS(config={"name": "bench", "system_database_url": URL, "run_admin_server": False})
    DBOS.workflow(name="noop")(noop)
    DBOS.workflow(name="endless")(DBOS.step(preemptible=True)(until_cancelled))
    DBOS.launch()
    DBOS.register_queue("bench", worker_concurrency=CONCURRENCY, polling_interval_sec=float(POLL_S or 1))
    threading.Event().wait()


class _Client:
    def __init__(self, client: DBOSClient) -> None:
        self._client = client
        self._endless: dict[int, str] = {}

    async def put(self, number: int, queued_ns: int) -> None:
        await self._client.enqueue_async({"queue_name": "bench", "workflow_name": "noop"}, number, queued_ns)

    async def start(self, number: int) -> None:
        handle = await self._client.enqueue_async({"queue_name": "bench", "workflow_name": "endless"}, number)
        self._endless[number] = handle.workflow_id

    async def cancel(self, number: int) -> None:
        await self._client.cancel_workflow_async(self._endless[number])

    async def done(self) -> int:
        return len(await self._client.list_workflows_async(status="SUCCESS", load_input=False))


@asynccontextmanager
async def opened(_runs: int) -> AsyncIterator[Client]:
    """Yield a client, with DBOS's tables made."""
    migrate = [program("dbos"), "migrate", "--sys-db-url", URL]
    await asyncio.to_thread(subprocess.run, migrate, check=True, capture_output=True)
    client = await asyncio.to_thread(DBOSClient, system_database_url=URL)
    try:
        yield _Client(client)
    finally:
        client.destroy()


if __name__ == "__main__":
    main()
