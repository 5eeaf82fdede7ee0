"""Files that prove that the process which made them is alive: it holds a POSIX lock on each.

The kernel releases such a lock when its process ends, even if children of the process live on: a forked child inherits
the descriptor but not the lock. (It would inherit a ``flock``.) POSIX locks have two traps:

* They do not exclude within one process, so a process cannot ask the kernel about a lock of its own.
* A process loses its lock as soon as it closes *any* descriptor of the file.

So this module remembers the files that the process has locked, and never opens one of them a second time. Other code in
the process may still do that, for example by copying the whole tree. Therefore each file also contains the identity of
its process (``this_process``), and a file counts as abandoned only if nobody holds its lock and no process with that
identity is running.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import threading
from typing import Final, NamedTuple

from threadloom.stores.files.linux import fcntl

__all__ = ["Examined", "examine", "is_held_here", "is_running", "lock", "this_process", "unlock"]

_STRUCT_FLOCK: Final = "hhqqi4x"  # Linux, 64 bits: type, whence, start, length, process
# Read-only where that is enough: a watcher of the directory would take the close of a writable descriptor for a death.
_EXAMINE: Final = (os.O_RDONLY if sys.platform == "linux" else os.O_RDWR) | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

# Fields of /proc/<pid>/stat, counted from the one after the state: the flags of the process, the clock tick in which it
# started, and the address at which its stack starts, which changes when the process executes another program.
_FLAGS: Final = 5
_START_TICK: Final = 18
_STACK_START: Final = 24
_FLAG_EXITING: Final = 4

_Key = tuple[int, int]  # device and inode, which identify a file whatever its name is

_locked: dict[_Key, tuple[int, int]] = {}
"""Locked files, each with the id of the process that locked it and its descriptor. A forked child has its parent's."""
_guard = threading.Lock()


def _renew_guard() -> None:
    global _guard  # noqa: PLW0603 - if another thread held it during the fork, the child could never acquire it
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_renew_guard)


class Examined(NamedTuple):
    """What ``examine`` found.

    holder: the id of the process that holds the lock, 0 if that process is not visible from here, None if nobody does.
    is_here: whether this process holds the lock.
    head: the first bytes of the file.
    """

    holder: int | None
    is_here: bool
    head: bytes


def lock(fd: int) -> None:
    """Lock a new file until ``unlock`` or the end of the process. Call it before others look for the file."""
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _locked[_key(os.fstat(fd))] = os.getpid(), fd


def unlock(fd: int) -> None:
    """Close a locked file, which releases the lock."""
    with _guard:
        _locked.pop(_key(os.fstat(fd)), None)
        os.close(fd)


def is_held_here(fd: int) -> bool:
    """Return whether this process holds the lock of a file. A child of the process that locked it does not."""
    return _locked.get(_key(os.fstat(fd)), (0, -1))[0] == os.getpid()


def examine(path: str, length: int) -> Examined:
    """Return who holds the lock of a file, and its first ``length`` bytes, without endangering a lock of this process.

    Raise ``FileNotFoundError`` if there is no such file. A link or a directory is held by nobody.
    """
    with _guard:  # or another thread could close the descriptor while this one reads from it
        found = os.lstat(path)
        process_id, fd = _locked.get(_key(found), (0, -1))
        if process_id == os.getpid():
            return Examined(process_id, is_here=True, head=os.pread(fd, length, 0))
    if not stat.S_ISREG(found.st_mode):
        return Examined(None, is_here=False, head=b"")
    fd = os.open(path, _EXAMINE)
    try:
        # The holder first: if it ends in between, its identity is no longer that of a running process.
        return Examined(_holder(fd), is_here=False, head=os.pread(fd, length, 0))
    finally:
        os.close(fd)


def this_process() -> str:
    """Return an identity that no other process has until the machine restarts, '' if the system offers none."""
    return _identity(os.getpid())


def is_running(identity: str) -> bool:
    """Return whether ``this_process`` returned ``identity`` in another process that has not ended."""
    process_id = identity.partition(" ")[0]
    return process_id.isdecimal() and int(process_id) != os.getpid() and identity == _identity(int(process_id))


def _holder(fd: int) -> int | None:
    if sys.platform == "linux":
        question = struct.pack(_STRUCT_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, holder = struct.unpack(_STRUCT_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, question))
        return None if kind == fcntl.F_UNLCK else holder
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return 0
    return None


def _identity(process_id: int) -> str:
    try:
        with open(f"/proc/{process_id}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return ""
    state, *fields = line[line.rindex(b")") + 2 :].decode().split()  # after the name, which may contain anything
    # An exiting process has already lost its locks although its state does not show it yet.
    is_over = state in {"Z", "X"} or int(fields[_FLAGS]) & _FLAG_EXITING
    return "" if is_over else f"{process_id} {fields[_START_TICK]} {fields[_STACK_START]}"


def _key(found: os.stat_result) -> _Key:
    return found.st_dev, found.st_ino
