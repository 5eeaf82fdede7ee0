"""Files that tell whether the process which made them lives: it holds a POSIX lock on each.

The kernel drops the lock with the process, also when that had forked children: a child has copies of the descriptors,
but not the locks (a ``flock`` it would keep). A POSIX lock has two traps, for which ``_OURS`` is kept: it does not
exclude within its own process, and it is dropped when the process closes any descriptor of the file. So a process never
opens a file of its own a second time: ``opened`` lends the descriptor that there is. Others may do it all the same, as
who copies the tree within the process does; so the file also says which process it is of (``this_process``), and only
that of a process which cannot be found either counts as left.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # Windows, where no FileStore opens
    fcntl = None  # type: ignore[assignment]

__all__ = ["Key", "disown", "holder_of", "is_our_key", "lives", "opened", "our_key", "own", "this_process"]

_FLOCK: Final = "hhqqi4x"  # struct flock of Linux: type, whence, start, length, process
Key = tuple[int, int]
"""What a file is known by, whatever its name is."""

# Where in what follows the state of a process in its line: its flags, when it was started in ticks, and where its stack
# begins, which is another place for each program that it runs.
_FLAGS: Final = 5
_STARTED: Final = 18
_STACK: Final = 24
_IS_EXITING: Final = 4

_OURS: dict[Key, tuple[int, int]] = {}
"""The process that holds the lock of each file that was locked here, and its descriptor; a child finds its parent's."""
_LENDING = threading.Lock()


def _begin_anew() -> None:
    global _LENDING  # noqa: PLW0603 - a child that was forked while a thread held it would never get it
    _LENDING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def own(fd: int) -> None:
    """Lock a new file, before others can see it, until ``disown`` or the end of the process."""
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _OURS[_key(os.fstat(fd))] = os.getpid(), fd


def disown(fd: int) -> None:
    """Close a file that was locked, which frees it."""
    with _LENDING:
        _OURS.pop(_key(os.fstat(fd)), None)
        os.close(fd)


def is_our_key(key: Key) -> bool:
    """Return whether this process has the lock of the file that is known by ``key``."""
    return _OURS.get(key, (0, 0))[0] == os.getpid()


def our_key(path: str) -> Key | None:
    """Return what a file is known by if this process has its lock, else none; ``FileNotFoundError`` where none is."""
    key = _key(os.stat(path))
    return key if is_our_key(key) else None


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """Yield a descriptor of a file, opened with ``flags``; where the file is ours, the one that holds its lock."""
    with _LENDING:
        process_id, fd = _OURS.get(_key(os.stat(path)), (0, 0))
        if process_id == os.getpid():
            yield fd
            return
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def holder_of(fd: int) -> int | None:
    """Return the process that has the lock of a file which is not ours, or none where nobody has it.

    It is 0 where the process cannot be seen from here.
    """
    if sys.platform == "linux":
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, holder = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else holder
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return 0
    return None


def this_process() -> str:
    """Return what tells this process from every other one of this start of the machine; empty where nothing does."""
    return _told(os.getpid())


def lives(process: str) -> bool:
    """Return whether the process of which ``this_process`` said so is another one, is found here, and has not ended."""
    process_id = process.partition(" ")[0]
    return process_id.isdigit() and int(process_id) != os.getpid() and process == _told(int(process_id))


def _told(process_id: int) -> str:
    try:
        stat = Path(f"/proc/{process_id}/stat").read_bytes()
    except OSError:
        return ""
    state, *fields = stat[stat.rindex(b")") + 2 :].decode().split()  # behind the name, which may be anything
    # One that is ending has lost its locks before it is called dead.
    is_over = state in {"Z", "X"} or int(fields[_FLAGS]) & _IS_EXITING
    return "" if is_over else f"{process_id} {fields[_STARTED]} {fields[_STACK]}"


def _key(stat: os.stat_result) -> Key:
    return stat.st_dev, stat.st_ino
