"""What an open store is made of, and the order in which it is put together and taken apart."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from attrs import frozen

from threadloom.clock import Clock
from threadloom.errors import SerializationError
from threadloom.models import Run
from threadloom.stores.files._assistants import Assistants
from threadloom.stores.files._claims import Claims, Taken, Taking
from threadloom.stores.files._commit import Committer
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._journal import Journal
from threadloom.stores.files._keys import Keys
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._log import Logs
from threadloom.stores.files._new_runs import NewRuns
from threadloom.stores.files._queue import TurnBook
from threadloom.stores.files._recovery import Recovery
from threadloom.stores.files._redo import Redo
from threadloom.stores.files._runs import Runs
from threadloom.stores.files._sweep import Sweep
from threadloom.stores.files._threads import Threads
from threadloom.stores.files._watch import Watch
from threadloom.stores.files._writer import Hop, Work
from threadloom.tasks import until_done

__all__ = ["FORMAT", "SLOW_LOOK", "Options", "Parts"]

_logger = logging.getLogger("threadloom")

SLOW_LOOK: Final = timedelta(seconds=15)
"""How often to look at all there is, whatever was heard, as a safety net."""

FORMAT: Final = b"1\n"
"""What the file says that names the format."""


def _boot_id() -> bytes | None:
    """Return what tells this start of the machine from every other one, or none where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except FileNotFoundError:
        return None


_BOOT: Final = _boot_id()


@frozen(kw_only=True)
class Options:
    """What the user of a store has chosen."""

    durability: Literal["power", "process"]
    lock_timeout: timedelta
    lease_duration: timedelta
    max_attempts: int
    clock: Clock


class Parts:
    """What an open store is made of."""

    def __init__(self, layout: Layout, options: Options, ring: Callable[[Run], None]) -> None:
        self._layout = layout
        self._loop = asyncio.get_running_loop()
        self._stack = ExitStack()
        boot = (_BOOT or b"").decode().strip()
        power = options.durability == "power"
        name = secrets.token_hex(8)
        self.disk = Disk(layout.temporary, name)
        turns = TurnBook(layout, self.disk, lambda thread_id: self.runs.seen(thread_id), boot)  # noqa: PLW0108 - made below
        self.redo = Redo(layout, self.disk, boot, turns.rebuild)
        self.journal = Journal(layout.journals, layout.root, self.disk, name, boot=boot, power=power)
        self._logs = logs = Logs(self.disk, layout.damaged)
        self.committer = Committer(layout, self.disk, logs, self.journal, self.redo)
        self.keys = keys = Keys(layout, self.disk, self.redo)
        self.assistants = Assistants(layout, self.disk, self.committer, self.redo, keys)
        self.threads = Threads(layout, self.disk, self.committer, self.redo, logs=logs, keys=keys)
        self.runs = Runs(
            layout,
            self.disk,
            self.committer,
            self.threads,
            logs=logs,
            keys=keys,
            turns=turns,
            time_ns=options.clock.time_ns,
        )
        self.new_runs = NewRuns(
            layout, self.disk, self.committer, self.threads, self.runs, keys=keys, time_ns=options.clock.time_ns
        )
        self._executor = ThreadPoolExecutor(3, thread_name_prefix="threadloom")
        self.writer = Hop(
            self._executor,
            begin=self.redo.everywhere,
            finish=self.journal.flush,
            end=self._end_batch,
            lock_patience=options.lock_timeout,
        )
        self.reader = Hop(self._executor, begin=self.redo.everywhere)
        self._retiring: asyncio.Task[None] | None = None
        self.watch = Watch()
        life = f"life_{secrets.token_hex(16)}"
        self.claims = Claims(self.threads, self.runs, options.clock.time_ns, options.max_attempts, life)
        self.recovery = Recovery(
            layout,
            self.disk,
            self.claims,
            writer=self.writer,
            watch=self.watch,
            lease=options.lease_duration,
            ring=ring,
        )
        self.sweep = Sweep(layout, self.disk, self.threads, self.runs, reader=self.reader, writer=self.writer)
        self.is_queue_watched = False
        self._next_look = 0.0
        self.takings: set[Taking] = set()

    def prepare(self) -> bool:
        """Make the store's own directories, and whole what a crash has cut off; return whether its index is right."""
        made = [self.disk.make_directories(directory) for directory in self._layout.own_directories]
        is_indexed = self._is_indexed()
        # From now on what is being written is known to belong to somebody who lives.
        self.journal.begin()
        if is_indexed is None:
            self._write_format()
        if self.journal.power:
            for directory in dict.fromkeys(path for paths in made for path in paths):
                self.disk.sync(directory)
        self.redo.after_power_cut()
        self.redo.clear_up()
        return bool(is_indexed)

    def _is_indexed(self) -> bool | None:
        """Return whether the index can be trusted, or none where there is no store yet."""
        try:
            found = self.disk.read(self._layout.format)
        except FileNotFoundError:
            found = b""
        if not found.strip(b"\0"):  # new, or what a power cut has left of it
            return None
        if found != FORMAT:
            raise SerializationError(self._layout.format, f"it names format {found[:20]!r}, and this is format 1")
        try:
            return _BOOT is not None and self.disk.read(self._layout.boot) == _BOOT
        except FileNotFoundError:
            return False

    def _write_format(self) -> None:
        self.disk.replace(self._layout.format, FORMAT)
        if self.journal.power:
            self.disk.sync(self._layout.format)
            self.disk.sync(self._layout.own)

    def note_boot(self) -> None:
        """Write down that the index is right for this start of the machine: unsynced, it is for no later one."""
        if _BOOT is not None:
            self.disk.overwrite(self._layout.boot, _BOOT)

    def take(self, taking: Taking) -> Work[Taken]:
        """Take a run for a worker of this store, which counts as alive from now on."""
        self.recovery.join()
        return self.claims.take(taking)

    def _end_batch(self) -> None:
        if self.journal.end_batch() and self._retiring is None:
            self._loop.call_soon_threadsafe(self._retire)

    def _retire(self) -> None:
        """Make the files of full journals durable, beside the work that goes on in a new one."""
        if self._retiring is None:
            self._retiring = self._loop.create_task(self._retire_journals(), name="threadloom journals")

    async def _retire_journals(self) -> None:
        try:
            await self._loop.run_in_executor(self._executor, self.journal.retire)
        except OSError as error:
            _logger.warning("files not made durable", exc_info=error)  # the journals stay; with the next one, again
        finally:
            self._retiring = None

    def watch_queue(self, heard: Callable[[str | None], None]) -> None:
        self.is_queue_watched = self._stack.enter_context(self.watch.watching(self._layout.queue, heard))

    def is_time_to_look(self) -> bool:
        """Return whether to look at the whole index, whatever was heard: always where nothing can be heard."""
        now = asyncio.get_running_loop().time()
        if self.is_queue_watched and now < self._next_look:
            return False
        self._next_look = now + SLOW_LOOK.total_seconds()
        return True

    async def close(self) -> None:
        """End what is pending, in the order in which one part needs the other."""
        self._stack.close()
        await self.sweep.close()
        await self.recovery.close()
        self.watch.close()
        for taking in tuple(self.takings):  # one that is being cancelled may have a run to put back
            await taking.is_over.wait()
        await self.writer.close()
        await self.reader.close()
        if self._retiring is not None:
            await asyncio.wait([self._retiring])
        await until_done(self._loop.run_in_executor(self._executor, self._end))
        await _shut_down(self._executor)

    def _end(self) -> None:
        self.recovery.end()
        self.journal.end()
        self.redo.close()
        self._logs.close()
        self.disk.close()


async def _shut_down(executor: ThreadPoolExecutor) -> None:
    """Return when the threads of ``executor`` have ended, joined from another thread, for to join is to block."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def join() -> None:
        executor.shutdown(wait=True)
        loop.call_soon_threadsafe(ended.set_result, None)

    threading.Thread(target=join, name="closing a store").start()
    await until_done(ended)
