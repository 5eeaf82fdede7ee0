"""Finds runs that an external program queued by writing ``status.json``, without touching the queue directory.

A scan walks past all threads again and again, in slices, on a small budget of processor time. A complete walk leaves a
mark for the next one, in this process or another, which then reads only what changed since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, TypeVar

import orjson

from threadloom.errors import NotFoundError, StoreBusyError, StoreError
from threadloom.stores.files import layout
from threadloom.stores.files.boot import store_boot
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.walk import Mark, Walk

__all__ = ["Read", "Scan"]

T = TypeVar("T")

_logger = logging.getLogger("threadloom")

_SCANNED: Final = f"{layout.OWN}/scanned"
_BUDGET: Final = 0.0003  # of one processor: about what an idle worker needs for everything else
_FIRST_PAUSE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 15.0


class Read(Protocol):
    """Calls a function in the reading thread, in order. If cancelled, it still waits for a call that has begun."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Return what ``function`` returns."""
        ...


class Scan:
    """Walks again and again. It belongs to the event loop; only what is handed to ``read`` runs elsewhere.

    walked: set unless a walk past everything was asked for and has not ended, so that the index may lack runs.
    is_complete: whether the last such walk succeeded, so that the boot may be recorded.
    """

    def __init__(self, disk: Disk, boot: str) -> None:
        self.walked = asyncio.Event()
        self.walked.set()
        self.is_complete = False
        self._disk = disk
        self._boot = boot
        self._mark: Mark | None = None
        self._is_repeating = asyncio.Event()

    def walk_all(self) -> None:
        """Begin with one walk past everything, at full speed. Call it before ``run_forever``."""
        self.walked.clear()

    def repeat(self) -> None:
        """Walk again and again from now on, because this store claims runs."""
        self._is_repeating.set()

    async def run_forever(
        self,
        read: Read,
        found: Callable[[str], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Call ``found`` with every thread that has an active run which its queue entry does not name.

        ``found`` corrects the entry. If it raises ``StoreBusyError``, the next walk reads the thread again.
        """
        try:
            if not self.walked.is_set():
                self.is_complete = await self._walk(read, found, None, None)
                if self.is_complete and self._boot:
                    with suppress(OSError):  # the next store to open walks past everything again
                        await read(partial(store_boot, self._disk, self._boot))
        finally:
            self.walked.set()  # even if it failed: nobody may wait for it any longer
        await self._is_repeating.wait()
        await sleep(_FIRST_PAUSE_SECONDS)
        while True:
            await self._walk(read, found, await read(self._last_mark), sleep)
            await sleep(_PAUSE_SECONDS)

    async def _walk(
        self,
        read: Read,
        found: Callable[[str], Awaitable[None]],
        last: Mark | None,
        sleep: Callable[[float], Awaitable[None]] | None,
    ) -> bool:
        """Walk past everything once, on the budget if there is a ``sleep``; return whether nothing was left out."""
        walk = Walk(self._disk, last)
        is_complete = True
        try:
            while True:
                part = await read(walk.slice)
                # Together, so that they can share one transaction's way to the disk.
                reported = await asyncio.gather(*(_report(found, thread_id) for thread_id in part.thread_ids))
                is_complete = is_complete and all(reported)
                if sleep is not None:
                    await sleep(part.seconds / _BUDGET)
                if part.is_last:
                    break
            if is_complete:
                self._mark = walk.mark
                await read(partial(self._store_mark, walk.mark))
        except Exception as error:
            _logger.warning("The scan for external runs failed", exc_info=error)
            return False  # the next walk begins where this one did
        else:
            return is_complete
        finally:
            await read(walk.close)

    def _last_mark(self) -> Mark | None:
        """Return the mark of the last complete walk since the machine started, whichever process made it."""
        try:
            record = orjson.loads(self._disk.read(_SCANNED))
            mark = Mark(int(record["began_ns"]), int(record["ahead_ns"]))
            is_valid = bool(self._boot) and record["boot"] == self._boot
        except (OSError, StoreError, KeyError, TypeError, ValueError):
            return self._mark
        return mark if is_valid and (self._mark is None or mark > self._mark) else self._mark

    def _store_mark(self, mark: Mark) -> None:
        record = {"boot": self._boot, "began_ns": mark.began_ns, "ahead_ns": mark.ahead_ns}
        with suppress(OSError):  # the others then read more than they need
            self._disk.replace(_SCANNED, orjson.dumps(record) + b"\n")


async def _report(found: Callable[[str], Awaitable[None]], thread_id: str) -> bool:
    """Return whether nothing of the thread is left to do, because it was corrected or cannot be."""
    try:
        await found(thread_id)
    except StoreBusyError:
        return False
    except NotFoundError:
        return True
    except (StoreError, OSError) as error:
        _logger.warning(
            "Could not queue the external runs of thread %s", thread_id, exc_info=error, extra={"thread_id": thread_id}
        )
    return True
