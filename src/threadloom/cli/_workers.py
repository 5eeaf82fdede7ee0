"""Worker processes beside a server: started, replaced when they die, and stopped in order."""

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
_LONG_LIFE_SECONDS = 60  # after which a death says nothing about the next life
_HURRY = timedelta(seconds=3)


@frozen(kw_only=True)
class WorkerOptions:
    """What every worker process is told."""

    root: Path
    handler: str
    durability: Durability
    concurrency: int

    def command(self, server: int) -> list[str]:
        """Return the command line of a process that lives as long as nobody closes the pipe ``server``."""
        safe_path = ["-P"] if sys.flags.safe_path else []
        told = [str(server), str(self.root), self.handler, self.durability, str(self.concurrency)]
        return [sys.executable, *safe_path, "-m", "threadloom.cli._worker", *told]


class WorkerProcesses:
    """So many processes that each run a worker on a store of their own.

    Within ``async with`` they are at work, and one that dies is replaced. ``stop`` and ``close`` are those of
    ``RunWorker``. A process that does not end is killed, and whoever works on the store next takes its runs back.
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
        # Nobody writes to it. The system ends it with this process, however that dies, and the others read the end.
        self._pipe = os.pipe()
        self._keepers = [asyncio.create_task(self._keep(self._pipe[0])) for _ in range(self._count)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, as ``close`` does."""
        await self.close()

    def stop(self) -> None:
        """Ask all processes to stop, without waiting for it."""
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
        """Keep one process alive."""
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
            logger.warning("worker process died", extra={"exit_status": status})
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSES.delay_after(failures).total_seconds()):
                    await self._is_stopping.wait()

    async def _live(self, pipe: int) -> int:
        """Start a process, and return its exit status, or minus the signal that it died of."""
        environment = {name: value for name, value in os.environ.items() if name != KEYS_VARIABLE}
        # In a group of its own, so that Ctrl-C on a terminal reaches this process only, which passes it on once.
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
        """End the grace of handlers, by another signal than the first: two of one kind may arrive as one."""
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
