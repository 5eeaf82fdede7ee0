"""System calls of Linux that Python does not have, and what stands in for them elsewhere."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Final

try:
    import fcntl
except ImportError:  # Windows: FileStore refuses to be made there
    fcntl = None  # type: ignore[assignment]

__all__ = ["exchange", "fcntl", "open_beneath", "rename_to_new", "sync_file_system"]

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
_SYS_OPENAT2: Final = 437  # the same number on every architecture
_RESOLVE_NO_SYMLINKS_BENEATH: Final = 0x04 | 0x08
_ALWAYS: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_renameat2 = getattr(_libc, "renameat2", None)
_syncfs = getattr(_libc, "syncfs", None)
_syscall = getattr(_libc, "syscall", None)
_open_how = struct.Struct("QQQ")
_has_openat2 = _syscall is not None


def open_beneath(root: int, path: str, flags: int, mode: int = 0o666) -> int:
    """Open a relative ``path`` below the directory ``root`` and return a descriptor; no link is ever followed.

    It never waits for the other end of a FIFO. ``OSError`` with ``ELOOP`` where a link is in the way.
    """
    global _has_openat2  # noqa: PLW0603 - asked once a process
    if _has_openat2 and _syscall is not None:
        how = _open_how.pack(flags | _ALWAYS, mode if flags & os.O_CREAT else 0, _RESOLVE_NO_SYMLINKS_BENEATH)
        while (fd := _syscall(_SYS_OPENAT2, root, path.encode(), how, len(how))) < 0:
            number = ctypes.get_errno()
            if number in {errno.EINTR, errno.EAGAIN}:
                continue
            if number not in {errno.ENOSYS, errno.EPERM}:
                raise OSError(number, os.strerror(number), path)
            _has_openat2 = False  # an old kernel, or a container's filter that does not know the call
            return _open_step_by_step(root, path, flags, mode)
        return int(fd)
    return _open_step_by_step(root, path, flags, mode)


def _open_step_by_step(root: int, path: str, flags: int, mode: int) -> int:
    *directories, name = path.split("/")
    directory = root
    try:
        for part in directories:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _ALWAYS, dir_fd=directory)
            if directory != root:
                os.close(directory)
            directory = inner
        return os.open(name, flags | _ALWAYS, mode, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ENOTDIR and os.path.islink(error.filename or ""):
            error.errno = errno.ELOOP
        error.filename = path
        raise
    finally:
        if directory != root:
            os.close(directory)


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
    raise OSError(number, os.strerror(number), source, None, target)


def exchange(one: str, other: str) -> bool:
    """Let two files change places; return whether this file system can do that."""
    return _rename_with(_RENAME_EXCHANGE, one, other)


def rename_to_new(source: str, target: str) -> None:
    """Rename a file or directory; ``FileExistsError`` where the new name is taken."""
    if _rename_with(_RENAME_NOREPLACE, source, target):
        return
    # Where the system cannot refuse to replace, look first; the caller holds a lock against our own processes.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(source, target)
