"""The file system, in one small room: the only calls that read or change files are here (locks and watches apart).

Everything is synchronous and runs in the store's own threads. ``OSError`` goes up as it is.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import secrets
import shutil
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["Disk", "ForeignWriteError", "Held", "LogFile"]

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_UNSUPPORTED: Final = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_READ_BYTES: Final = 1 << 16


class ForeignWriteError(Exception):
    """A program that does not lock has written the record since we read it; what it wrote stands."""


class Held:
    """A record as it was read, and a descriptor that pins its inode: no other file can come by the same number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.identity = _identity(os.fstat(self._fd))
            self.data = _read_all(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def is_what_lies_at(self, path: Path) -> bool:
        """Return whether the file at ``path`` is still this one, and nobody has written into it since."""
        return _identity_at(path) == self.identity

    def check_untouched(self) -> None:
        """Raise ``ForeignWriteError`` if another file has taken its place, or somebody has written into it."""
        if not self.is_what_lies_at(self.path):
            raise ForeignWriteError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)


class LogFile:
    """A file of lines, only ever appended to."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if writable else os.O_RDONLY
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @property
    def size(self) -> int:
        """How many bytes the file has now."""
        return os.fstat(self._fd).st_size

    @property
    def inode(self) -> int:
        """What tells this file from another at the same path."""
        return os.fstat(self._fd).st_ino

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``, fewer only at the end of the file."""
        parts: list[bytes] = []
        while length > 0 and (part := os.pread(self._fd, length, offset)):
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def append(self, data: bytes) -> None:
        """Add ``data`` in one write, all of it or, where the disk is full, none."""
        before = self.size
        try:
            written = os.write(self._fd, data)
        except OSError:
            self.truncate(before)
            raise
        if written != len(data):
            self.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def truncate(self, size: int) -> None:
        """Cut what lies past ``size``: the rest of a write that failed, or a torn line that was set aside."""
        os.ftruncate(self._fd, size)


class Disk:
    """Changes to files, and what is still to be made durable of them.

    ``power`` says whether a change must outlive a power cut. Then a new file's content is synced before it gets its
    name, and directories and logs are noted, to be synced once for many changes by ``sync``.
    """

    def __init__(self, temporary: Path, *, power: bool) -> None:
        self._temporary = temporary
        self._power = power
        self._names = itertools.count()
        self.prefix = secrets.token_hex(8)  # of all temporary files that are made here
        self._unsynced: dict[Path, None] = {}

    # Reading

    def read(self, path: Path) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read_all(fd)
        finally:
            os.close(fd)

    def exists(self, path: Path) -> bool:
        """Return whether there is anything at ``path``. Only a missing name counts as no: other errors are raised."""
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def names(self, directory: Path) -> list[str]:
        """Return the names in a directory, none where there is no directory."""
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []

    def subdirectories(self, directory: Path) -> list[str]:
        """Return the names of the directories in a directory, none where there is no directory."""
        try:
            with os.scandir(directory) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return []

    def size(self, path: Path) -> int:
        """Return a file's size in bytes, 0 where there is no file."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return 0

    # Changing

    def create(self, path: Path, data: bytes) -> None:
        """Make a new file, whole; ``FileExistsError`` where there is one."""
        temporary = self._write_temporary(data)
        try:
            _rename_to_new(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        self._changed(path.parent)

    def create_directory(self, path: Path, files: dict[str, bytes]) -> None:
        """Make a new directory with ``files`` in it, all at once; ``FileExistsError`` where there is something."""
        temporary = self._temporary / self._name()
        os.mkdir(temporary)
        try:
            for name, data in files.items():
                self._write(temporary / name, data)
            if self._power:
                _sync(temporary)
            _rename_to_new(temporary, path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._changed(path.parent)

    def make_directories(self, path: Path) -> None:
        """Make a directory and its missing parents, unless it is there."""
        if os.path.isdir(path):
            return
        self.make_directories(path.parent)
        with suppress(FileExistsError):  # made by another process in this moment
            os.mkdir(path)
        self._changed(path.parent)

    def rewrite(self, held: Held, data: bytes) -> None:
        """Replace the record that was read as ``held``, or raise ``ForeignWriteError`` and leave the other's standing.

        The new file and the old exchange places, and then the old one is looked at: had another file taken its place
        in the meantime, it goes back. While it was away a third may have come, and so on; each exchange leaves in hand
        either what was last put there by us, and then the newest foreign file stands, or a still newer one to put back.
        """
        temporary = self._temporary / self._name()
        try:
            # Open until the end, so that the inode of what we place cannot come back for another file either.
            with closing(_Descriptor(self._write_open(temporary, data))) as ours:
                self._exchange(temporary, _identity(os.fstat(ours.fd)), held)
        finally:
            self.remove(temporary)
        self._changed(held.path.parent)

    def _exchange(self, temporary: Path, ours: _Identity, held: Held) -> None:
        held.check_untouched()
        if not _exchange(temporary, held.path):
            # No exchange on this file system: a look before, and a plain rename. docs/guarantees.md says so.
            held.check_untouched()
            os.rename(temporary, held.path)
            return
        if held.is_what_lies_at(temporary):
            return
        placed = ours
        with ExitStack() as opened:
            while True:
                foreign = opened.enter_context(Held(temporary))
                _exchange(temporary, held.path)
                if _identity_at(temporary) == placed:
                    raise ForeignWriteError
                placed = foreign.identity

    def overwrite(self, path: Path, data: bytes) -> None:
        """Write a file in place. For what can be rebuilt: a crash may leave it torn, and it is never synced."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)

    def make_file(self, path: Path, data: bytes) -> None:
        """Make a file unless it is there, whoever else makes it at the same time."""
        with suppress(FileExistsError):
            self.create(path, data)

    def make_empty(self, path: Path) -> None:
        """Make an empty file unless there is one; nobody who watches for writes hears of it."""
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))

    def touch(self, path: Path) -> None:
        """Make an empty file or open the one there is: either way who watches the directory hears of it."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))

    def appended(self, path: Path, *, is_new: bool) -> None:
        """Note that a log was appended to, so that ``sync`` makes it durable, and its name too if it is new."""
        self._changed(path)
        if is_new:
            self._changed(path.parent)

    def move(self, source: Path, target: Path) -> None:
        """Give a file or directory a name that is not taken."""
        _rename_to_new(source, target)
        self._changed(source.parent)
        self._changed(target.parent)

    def write_over(self, path: Path, offset: int, data: bytes) -> None:
        """Replace what stands in a log by as many bytes: all that lies behind it keeps its place."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)
        self._changed(path)

    def remove(self, path: Path) -> None:
        """Remove a file, unless it is gone."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def remove_temporary(self, path: Path) -> None:
        """Remove a file or directory that was being written, unless it is gone."""
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            self.remove(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and all that is in it."""
        shutil.rmtree(path)

    def sync(self) -> None:
        """Make durable what has been changed since the last time; what fails here is not tried again."""
        unsynced, self._unsynced = self._unsynced, {}
        for path in unsynced:
            with suppress(FileNotFoundError):  # removed since, and its directory is in the list
                _sync(path)

    def _changed(self, path: Path) -> None:
        if self._power:
            self._unsynced[path] = None

    def _name(self) -> str:
        return f"{self.prefix}-{next(self._names)}"

    def _write_temporary(self, data: bytes) -> Path:
        path = self._temporary / self._name()
        try:
            self._write(path, data)
        except OSError:
            self.remove(path)
            raise
        return path

    def _write(self, path: Path, data: bytes) -> None:
        os.close(self._write_open(path, data))

    def _write_open(self, path: Path, data: bytes) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if self._power:
                os.fsync(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd


_Identity = tuple[int, int, int, int]


class _Descriptor:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)


def _identity_at(path: Path) -> _Identity | None:
    try:
        return _identity(os.stat(path))
    except FileNotFoundError:
        return None


def _identity(stat: os.stat_result) -> _Identity:
    # The time of the last write and the size tell of a program that writes into the file in place.
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read_all(fd: int) -> bytes:
    parts: list[bytes] = []
    while part := os.read(fd, _READ_BYTES):
        parts.append(part)
    return b"".join(parts)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None


def _rename_with(flag: int, source: Path, target: Path) -> bool:
    """Rename with a flag of Linux's own; return whether there is such a call here."""
    if _renameat2 is None:
        return False
    if _renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


def _exchange(one: Path, other: Path) -> bool:
    return _rename_with(_RENAME_EXCHANGE, one, other)


def _rename_to_new(source: Path, target: Path) -> None:
    if _rename_with(_RENAME_NOREPLACE, source, target):
        return
    # Where the system cannot refuse to replace, the look before it has to do; callers hold a lock against our own.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)
