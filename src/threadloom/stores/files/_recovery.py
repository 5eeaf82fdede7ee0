"""Keeps the workers of this process alive in the eyes of the others, and takes back what those left who are gone."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Final

from attrs import frozen

from threadloom.models import Run
from threadloom.stores.files._claims import Claims
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._life import Life, Peers
from threadloom.stores.files._watch import Watch
from threadloom.stores.files._writer import Hop, Work
from threadloom.tasks import until_done

__all__ = ["Recovery"]

_logger = logging.getLogger("threadloom")

_BEATS_PER_LEASE: Final = 6
_LOOK_AT_THE_UNSEEN_SECONDS: Final = 1.0


@frozen
class _Round:
    """What came of one round: runs that changed, the processes to watch, and whether the next round is to be soon."""

    runs: tuple[Run, ...]
    process_ids: frozenset[int]
    is_soon: bool


class Recovery:
    """Begins with the first claim of the store, and goes on until the store is closed.

    The end of another process is heard of at once: by the kernel's word on the process (``pidfd``), or by the closing
    of its file. Where neither can be had, its lock is looked at every second.
    """

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        claims: Claims,
        *,
        writer: Hop,
        watch: Watch,
        lease: timedelta,
        ring: Callable[[Run], None],
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._claims = claims
        self._writer = writer
        self._watch = watch
        self._interval = lease.total_seconds() / _BEATS_PER_LEASE
        self._ring = ring
        self._peers = Peers(layout.lives, lease.total_seconds())
        self._life: Life | None = None
        self._searched: frozenset[str] | None = None
        self._heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._watched: dict[int, int] = {}

    # On the loop

    def start(self) -> None:
        """Begin, unless it has begun, or is over: a claim may have been under way when the store was closed."""
        if self._task is None and not self._is_closed:
            self._task = asyncio.get_running_loop().create_task(self._go_on(), name="threadloom recovery")

    async def close(self) -> None:
        """Stop looking."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await until_done(self._task)

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            stack.enter_context(self._watch.watching(self._layout.lives, lambda _: self._heard.set()))
            stack.callback(self._watch_processes, frozenset())
            while True:
                self._heard.clear()
                try:
                    turn = await self._writer.run(self._round, loop.time())
                except Exception as error:
                    _logger.warning("recovery failed", exc_info=error)
                    turn = _Round((), frozenset(self._watched), is_soon=True)
                for run in turn.runs:
                    self._ring(run)
                unseen = self._watch_processes(turn.process_ids)
                is_soon = turn.is_soon or unseen
                await self._pause(min(self._interval, _LOOK_AT_THE_UNSEEN_SECONDS) if is_soon else self._interval)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return

    def _watch_processes(self, process_ids: frozenset[int]) -> bool:
        """Watch these processes and no others; return whether there are some that cannot be watched."""
        loop = asyncio.get_running_loop()
        for process_id in self._watched.keys() - process_ids:
            fd = self._watched.pop(process_id)
            loop.remove_reader(fd)
            os.close(fd)
        for process_id in process_ids - self._watched.keys() - {0}:
            try:
                fd = os.pidfd_open(process_id)
            except (AttributeError, OSError):
                continue
            self._watched[process_id] = fd
            loop.add_reader(fd, self._hear_of_end, process_id)
        return bool(process_ids - self._watched.keys())

    def _hear_of_end(self, process_id: int) -> None:
        fd = self._watched.pop(process_id)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._heard.set()

    # In the writing thread

    def join(self) -> None:
        """Let this process count as alive on the store, before it takes its first run."""
        if self._life is None:
            self._life = Life(self._disk.temporary_path(), f"{self._layout.lives}/{self._claims.life}")

    def end(self) -> None:
        """Let it count as dead: what its workers did not give back is taken by others."""
        if self._life is not None:
            self._life.end()
            self._life = None

    def _round(self, now: float) -> Work[_Round]:
        if self._life is not None:
            self._life.beat()
        self._peers.look(now)
        gone = self._peers.gone()
        runs: tuple[Run, ...] = ()
        is_complete = True
        if gone != self._searched:
            reclaimed = yield from self._claims.reclaim(self._peers.is_gone)
            runs, is_complete = tuple(reclaimed.runs), reclaimed.is_complete
            if is_complete:
                for life in gone:
                    self._peers.bury(life)
                # Of those only: one that died in the meantime has not been searched for.
                self._searched = gone & self._peers.gone()
        return _Round(runs, frozenset(self._peers.process_ids), is_soon=not is_complete)
