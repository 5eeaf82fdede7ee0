"""Calls of Linux that Python does not have, and what stands in for them elsewhere."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

__all__ = ["exchange", "rename_to_new", "sync_file_system"]

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_UNSUPPORTED: Final = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_renameat2 = getattr(_libc, "renameat2", None)
_syncfs = getattr(_libc, "syncfs", None)


def sync_file_system(fd: int) -> None:
    """Make durable what was written on the file system of ``fd``."""
    if _syncfs is None:
        os.sync()
    elif _syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _rename_with(flag: int, source: str, target: str) -> bool:
    """Rename with a flag of Linux's own; return whether there is such a call here."""
    if _renameat2 is None:
        return False
    if _renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


def exchange(one: str, other: str) -> bool:
    """Let two files change places, or return that it cannot be done here."""
    return _rename_with(_RENAME_EXCHANGE, one, other)


def rename_to_new(source: str, target: str) -> None:
    """Give a file or directory a name; ``FileExistsError`` where it is taken."""
    if _rename_with(_RENAME_NOREPLACE, source, target):
        return
    # Where the system cannot refuse to replace, the look before it has to do; callers hold a lock against our own.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)
