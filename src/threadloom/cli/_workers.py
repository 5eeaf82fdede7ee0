"""Worker processes of a server: started, replaced if they die, and stopped in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from threadloom.cli._keys import KEYS_VARIABLE
from threadloom.cli._worker import STOP_PATIENCE, Durability
from threadloom.tasks import finish
from threadloom.worker import RetryPolicy

__all__ = ["WorkerOptions", "WorkerProcesses"]

logger = logging.getLogger("threadloom")

_PAUSES = RetryPolicy(first_delay=timedelta(milliseconds=100), max_delay=timedelta(minutes=1))
_LONG_LIFE_SECONDS = 60  # a process that ran longer is restarted after the first, shortest pause
_HURRY = timedelta(seconds=3)


@frozen(kw_only=True)
class WorkerOptions:
    """Options of every worker process.

    Attributes:
        root: Directory of the store.

        handler: Name of the handler.

        durability: What a write survives.

        concurrency: Maximum number of runs at a time.
    """

    root: Path
    handler: str
    durability: Durability
    concurrency: int

    def command(self, server: int) -> list[str]:
        """Return the command line of a process that lives until the pipe ``server`` is closed."""
        safe_path = ["-P"] if sys.flags.safe_path else []
        told = [str(server), str(self.root), self.handler, self.durability, str(self.concurrency)]
        return [sys.executable, *safe_path, "-m", "threadloom.cli._worker", *told]


class WorkerProcesses:
    """Processes that each run a worker on a store of their own.

    They run inside ``async with``, and a process that dies is replaced. ``stop`` and ``close`` do the same as those of
    ``RunWorker``. A process that does not stop is killed, and the next worker on the store reclaims its runs.

    Args:
        options: Options of every process.

        count: Number of processes.
    """

    def __init__(self, options: WorkerOptions, count: int) -> None:
        self._options = options
        self._count = count
        self._keepers: list[asyncio.Task[None]] = []
        self._living: set[asyncio.subprocess.Process] = set()
        self._is_stopping = asyncio.Event()
        self._killing: asyncio.TimerHandle | None = None
        self._pipe: tuple[int, int] | None = None

    async def __aenter__(self) -> Self:
        """Start the processes."""
        # Nobody writes to the pipe. The kernel closes it when this process dies, and the others read its end.
        self._pipe = os.pipe()
        self._keepers = [asyncio.create_task(self._keep(self._pipe[0])) for _ in range(self._count)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, as ``close`` does."""
        await self.close()

    def stop(self) -> None:
        """Ask all processes to stop, without waiting."""
        if not self._is_stopping.is_set():
            self._is_stopping.set()
            self._ask(signal.SIGTERM, kill_after=STOP_PATIENCE)

    async def close(self) -> None:
        """Stop, and return when all processes have ended."""
        self.stop()
        cancelled = await finish(*self._keepers, when_cancelled=self._hurry)
        if self._killing is not None:
            self._killing.cancel()
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
            self._pipe = None
        if cancelled is not None:
            raise cancelled
        for keeper in self._keepers:
            keeper.result()

    async def _keep(self, pipe: int) -> None:
        """Start one process, and start it again whenever it ends."""
        failures = 0
        while not self._is_stopping.is_set():
            started = time.monotonic()
            try:
                status: int | str = await self._live(pipe)
            except OSError as error:
                status = str(error)
            if self._is_stopping.is_set():
                return
            failures = failures + 1 if time.monotonic() - started < _LONG_LIFE_SECONDS else 1
            logger.warning("A worker process ended with exit status %s", status, extra={"exit_status": status})
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSES.delay_after(failures).total_seconds()):
                    await self._is_stopping.wait()

    async def _live(self, pipe: int) -> int:
        """Start a process, and return its exit status, or minus the signal that killed it."""
        environment = {name: value for name, value in os.environ.items() if name != KEYS_VARIABLE}
        # In its own process group: Ctrl-C on a terminal reaches only the server, which passes it on once.
        process = await asyncio.create_subprocess_exec(
            *self._options.command(pipe), stdin=DEVNULL, pass_fds=(pipe,), process_group=0, env=environment
        )
        self._living.add(process)
        if self._is_stopping.is_set():
            process.terminate()
        try:
            return await process.wait()
        finally:
            self._living.remove(process)

    def _hurry(self) -> None:
        """End the grace period with a different signal: two signals of one kind may arrive as one."""
        self._ask(signal.SIGINT, kill_after=_HURRY)

    def _ask(self, number: signal.Signals, *, kill_after: timedelta) -> None:
        self._signal(number)
        if self._killing is not None:
            self._killing.cancel()
        loop = asyncio.get_running_loop()
        self._killing = loop.call_later(kill_after.total_seconds(), self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._living:
            with suppress(ProcessLookupError):
                process.send_signal(number)
