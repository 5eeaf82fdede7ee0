"""A stamp for each thread in memory that all processes share: it tells whether what one of them knows is still valid.

A process writes a new stamp before it changes anything in a thread, under the thread's lock. What another process knows
of the thread is valid while the stamp is the one that it saw last, so a transaction that follows one of its own process
reads nothing again. Stamps are trusted for nothing else: losing them costs time, nothing more. Threads may share a
stamp; then they invalidate each other.
"""

from __future__ import annotations

import mmap
import os
import zlib
from typing import Final

from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk, naming

__all__ = ["Stamps"]

_SLOTS: Final = 1 << 16
_BYTES: Final = _SLOTS * 8


class Stamps:
    """The stamps of one store. For the writing thread, under the lock of the thread that is asked for."""

    def __init__(self, disk: Disk) -> None:
        fd, found = disk.open(layout.STAMPS, os.O_RDWR | os.O_CREAT)
        try:
            with naming(disk.where(layout.STAMPS)):
                if hasattr(os, "posix_fallocate"):
                    # A write into mapped memory for which there is no space would end the process.
                    os.posix_fallocate(fd, 0, _BYTES)
                elif found.st_size < _BYTES:
                    os.ftruncate(fd, _BYTES)
            self._memory = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        self._words = memoryview(self._memory).cast("Q")
        # No two processes ever write the same stamp: the upper half is the process's, the lower half counts.
        self._next = int.from_bytes(os.urandom(4), "big") << 32 | 1

    def close(self) -> None:
        """Unmap the memory."""
        self._words.release()
        self._memory.close()

    @staticmethod
    def slot(thread_id: str) -> int:
        """Return where the stamp of a thread is."""
        return zlib.crc32(thread_id.encode()) % _SLOTS

    def read(self, slot: int) -> int:
        """Return the stamp."""
        return self._words[slot]

    def renew(self, slot: int) -> int:
        """Write a new stamp, and return it."""
        self._next += 1
        self._words[slot] = self._next
        return self._next
