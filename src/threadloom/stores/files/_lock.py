"""The lock on a thread: ``flock`` on its directory, which the kernel frees when a process dies."""

from __future__ import annotations

import os
from types import TracebackType

from threadloom.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock", "LockedElsewhereError", "check_locks_exist"]


class LockedElsewhereError(Exception):
    """Another process, or another store in this one, has the lock at the moment."""


def check_locks_exist() -> None:
    """Raise ``StoreError`` where the system has no ``flock``."""
    if fcntl is None:
        raise StoreError("FileStore needs flock, which this system does not have; it runs on Linux and macOS.")


class Lock:
    """Holds the lock on ``directory``; ``LockedElsewhereError`` if it is not free, ``FileNotFoundError`` if it is gone.

    It never waits: whoever waits in the store's only writing thread holds up all the others.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> None:
        self._fd = _open_locked(self._directory)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give it back."""
        # Unlocked by hand: a child that was forked in this moment has a copy of the descriptor, which would keep it.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


def _open_locked(directory: str) -> int:
    while True:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The directory may have been deleted, and another made in its place, between the open and the lock.
            if os.path.samestat(os.fstat(fd), os.stat(directory)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise LockedElsewhereError from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
