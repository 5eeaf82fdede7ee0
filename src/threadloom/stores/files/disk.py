"""The file system below one root: the only module that opens, reads and changes the files of a store.

Paths are text, relative to the root. Nothing but regular files is opened, and no link is followed, wherever it leads.
Everything is synchronous and raises ``OSError``; nothing is synced, except by ``sync_all``.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from threadloom.errors import SerializationError
from threadloom.stores.files.linux import exchange, open_beneath, rename_to_new, sync_file_system

__all__ = [
    "OUT_OF_DESCRIPTORS",
    "Disk",
    "ExternalWriteError",
    "Identity",
    "Placed",
    "append",
    "identity_of",
    "make_directories",
    "naming",
    "read_at",
]

T = TypeVar("T")

OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
_BLOCK_BYTES: Final = 1 << 16
_READ: Final = os.O_RDONLY
_APPEND: Final = os.O_RDWR | os.O_APPEND  # O_RDWR, because a FIFO that is opened for writing only would be an error
_CREATE_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

Identity = tuple[int, int, int]
"""What tells a file from any other and from its own earlier content: inode, time of the last write, and size.

It holds while a descriptor of the file is open: until then no other file gets the inode.
"""


class ExternalWriteError(Exception):
    """Another program has replaced a record since it was read. Its file stands; nothing of ours was put over it."""


class Placed:
    """A record's file as it was read or placed, pinned by an open descriptor."""

    __slots__ = ("fd", "identity")

    def __init__(self, fd: int, identity: Identity) -> None:
        self.fd = fd
        self.identity = identity

    def close(self) -> None:
        """Release the inode. The descriptor is gone even where the system reports an error."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


class Disk:
    """Opens, reads and changes files below ``root``.

    Where too many files are open, ``close_spare`` is called, which closes some and returns whether it did.

    What is being written has a name in ``.threadloom/tmp`` until it is whole. It begins with ``owner``, so that
    a process that opens the store after a crash knows whose it was.
    """

    def __init__(self, root: str, owner: str) -> None:
        self.root = root
        self.owner = owner
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._temporary = f"{root}/.threadloom/tmp/{owner}-"
        self._numbers = itertools.count()
        self.close_spare: Callable[[], bool] = lambda: False

    def close(self) -> None:
        """Close the root. Files that are open stay open."""
        os.close(self.fd)

    def where(self, path: str) -> str:
        """Return a path for an error to name."""
        return f"{self.root}/{path}"

    # Opening and reading

    def open(self, path: str, flags: int = _READ) -> tuple[int, os.stat_result]:
        """Open a regular file, and return its descriptor and what the system says of it.

        ``FileNotFoundError`` where there is none; ``SerializationError`` where a link, a directory or anything else
        lies in the place of a file.
        """
        try:
            fd = self._retried(lambda: open_beneath(self.fd, path, flags))
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EXDEV}:
                raise self._not_a_file(path) from None
            if error.errno == errno.ENOTDIR:
                raise self._not_a_file(path) from None
            error.filename = self.where(path)
            raise
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise self._not_a_file(path)
        return fd, found

    def open_log(self, path: str, *, create: bool) -> tuple[int, os.stat_result]:
        """Open a log for appending and reading."""
        return self.open(path, _APPEND | (os.O_CREAT if create else 0))

    def open_directory(self, path: str) -> int:
        """Open a directory and return its descriptor; ``SerializationError`` where it is a link or a file."""
        try:
            return self._retried(lambda: open_beneath(self.fd, path, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise self._not_a_directory(path) from None
            error.filename = self.where(path)
            raise

    def _not_a_file(self, path: str) -> SerializationError:
        parts = path.split("/")
        for count in range(1, len(parts)):
            if os.path.islink(self.where("/".join(parts[:count]))):
                return self._not_a_directory("/".join(parts[:count]))
        what = "it is a symbolic link, and links are not followed" if os.path.islink(self.where(path)) else ""
        return SerializationError(self.where(path), what or "a regular file is expected here, and this is none")

    def _not_a_directory(self, path: str) -> SerializationError:
        if os.path.islink(self.where(path)):
            reason = (
                "it is a symbolic link, and links are not followed: move the directory itself here, "
                "or open a store where it lies"
            )
            return SerializationError(self.where(path), reason)
        return SerializationError(self.where(path), "a directory is expected here, and this is none")

    def read(self, path: str) -> bytes:
        """Return what a file holds."""
        fd, found = self.open(path)
        try:
            return read_whole(fd, found.st_size)
        finally:
            os.close(fd)

    def read_placed(self, path: str) -> tuple[Placed, bytes]:
        """Return a record's file, pinned, and what it holds."""
        fd, found = self.open(path)
        try:
            return Placed(fd, identity_of(found)), read_whole(fd, found.st_size)
        except BaseException:
            os.close(fd)
            raise

    def identity(self, path: str) -> Identity | None:
        """Return the identity of the file that has this name now, None where there is none."""
        try:
            return identity_of(os.stat(f"{self.root}/{path}", follow_symlinks=False))
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        """Return whether anything has this name; other errors than a missing name are raised."""
        try:
            os.lstat(f"{self.root}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, none where there is no directory."""
        try:
            fd = self.open_directory(path)
        except FileNotFoundError:
            return []
        try:
            return self._retried(lambda: os.listdir(fd))
        finally:
            os.close(fd)

    def subdirectories(self, path: str) -> Iterator[str]:
        """Yield the names of the directories in a directory; links are none. It stays open until all are yielded."""
        try:
            fd = self.open_directory(path)
        except FileNotFoundError:
            return
        try:
            with self._retried(lambda: os.scandir(fd)) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) or entry.is_symlink():
                        yield entry.name
        finally:
            os.close(fd)

    # Changing

    def temporary(self) -> str:
        """Return an absolute path for what is being written."""
        return f"{self._temporary}{next(self._numbers)}"

    def write_temporary(self, data: bytes) -> tuple[str, Placed]:
        """Write a new file under a temporary name; return its absolute path, and the file, pinned."""
        path = self.temporary()
        fd = self.write_new(path, data)
        try:
            return path, Placed(fd, identity_of(os.fstat(fd)))
        except BaseException:
            os.close(fd)
            raise

    def write_new(self, path: str, data: bytes) -> int:
        """Make a file at an absolute path, and return its descriptor; nothing is left of it where that fails."""
        return self._retried(lambda: _write_new(path, data))

    def _retried(self, function: Callable[[], T]) -> T:
        """Call a function, and call it again if too many files were open and some could be closed."""
        try:
            return function()
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS or not self.close_spare():
                raise
            return function()

    def make_directories(self, path: str) -> None:
        """Make a directory and its missing parents below the root, unless it is there."""
        make_directories(self.where(path))

    def create(self, path: str, data: bytes) -> None:
        """Make a new file, whole, and its directory if need be; ``FileExistsError`` where there is one."""
        temporary = self.temporary()
        try:
            os.close(self.write_new(temporary, data))
            try:
                rename_to_new(temporary, self.where(path))
            except FileNotFoundError:
                make_directories(os.path.dirname(self.where(path)))
                rename_to_new(temporary, self.where(path))
        except BaseException:
            self.discard(temporary)
            raise

    def replace(self, path: str, data: bytes) -> None:
        """Put a whole file at ``path``, whatever lies there, for who knows that no other program writes it."""
        temporary = self.temporary()
        try:
            os.close(self.write_new(temporary, data))
            self.put(temporary, path)
        except BaseException:
            self.discard(temporary)
            raise

    def put(self, temporary: str, path: str) -> None:
        """Give a temporary file its name, and make the directory if need be; a link in its place is not followed."""
        parent = path.rpartition("/")[0]
        if os.path.islink(self.where(parent)):
            raise self._not_a_directory(parent)
        try:
            os.rename(temporary, self.where(path))
        except FileNotFoundError:
            os.mkdir(os.path.dirname(self.where(path)))
            os.rename(temporary, self.where(path))

    def exchange(self, temporary: str, ours: Placed, path: str, expected: Placed) -> None:
        """Put ``ours`` in the place of ``expected``, or raise ``ExternalWriteError`` and leave another's file standing.

        The two files change places, and then the displaced one is looked at: another program's goes back. While it was
        away a third may have come, and so on; each exchange leaves in hand either the file that was expected, or one
        that we put back, and then the newest file of the other program stands.
        """
        target = f"{self.root}/{path}"
        if not exchange(temporary, target):
            # Not on this file system: a look before, and a plain rename. docs/guarantees.md says what that means.
            if self.identity(path) != expected.identity:
                raise ExternalWriteError
            os.rename(temporary, target)
            return
        in_place = ours.identity
        pinned: list[int] = []
        try:
            while True:
                displaced = identity_of(os.stat(temporary, follow_symlinks=False))
                if displaced == expected.identity and in_place == ours.identity:
                    self.discard(temporary)
                    return
                # Pinned, so that no later file is taken for this one.
                with suppress(OSError):
                    pinned.append(os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
                exchange(temporary, target)
                if identity_of(os.stat(temporary, follow_symlinks=False)) == in_place:
                    raise ExternalWriteError
                in_place = displaced
        finally:
            for fd in pinned:
                os.close(fd)

    def move(self, source: str, target: str) -> None:
        """Rename to a name that is not taken."""
        rename_to_new(self.where(source), self.where(target))

    def remove(self, path: str) -> None:
        """Remove a file, unless it is gone."""
        with suppress(FileNotFoundError):
            os.unlink(self.where(path))

    def move_temporary(self, temporary: str, path: str) -> None:
        """Give a temporary directory its name; ``FileExistsError`` where it is taken. Follows no linked parent."""
        parent = path.rpartition("/")[0]
        if parent and os.path.islink(self.where(parent)):
            raise self._not_a_directory(parent)
        rename_to_new(temporary, self.where(path))

    def remove_temporary_tree(self, temporary: str) -> None:
        """Remove a temporary directory with what is in it."""
        _remove_tree(temporary)

    def discard(self, temporary: str) -> None:
        """Remove what was written under a temporary name; where that fails, the next store to open removes it."""
        with suppress(OSError):
            os.unlink(temporary)

    def remove_tree(self, path: str) -> None:
        """Remove a file or directory with all that is in it, even as others do so. Links are removed, not entered."""
        _remove_tree(self.where(path))

    def sync_all(self) -> None:
        """Make durable all that anybody has written on the file system."""
        with naming(self.root):
            sync_file_system(self.fd)


def make_directories(path: str, *, sync: bool = False) -> None:
    """Make a directory and its missing parents, unless it is there; with ``sync``, they survive a power failure."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent, sync=sync)
    with suppress(FileExistsError):  # made by another process in this moment
        os.mkdir(path)
    if sync:
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with naming(parent):
                os.fsync(fd)
        finally:
            os.close(fd)


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Return up to ``length`` bytes from ``offset``, fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    if len(data) in {0, length}:
        return data
    parts = [data]
    missing = length - len(data)
    offset += len(data)
    while missing > 0 and (part := os.pread(fd, missing, offset)):
        parts.append(part)
        offset += len(part)
        missing -= len(part)
    return b"".join(parts)


def append(fd: int, data: bytes, end: int, path: str) -> None:
    """Append ``data`` to a log of ``end`` bytes in one write: all of it or, where the disk fails, none."""
    with naming(path):
        try:
            written = os.write(fd, data)
        except OSError:
            os.ftruncate(fd, end)
            raise
        if written != len(data):
            os.ftruncate(fd, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def read_whole(fd: int, expected: int) -> bytes:
    """Return what a file holds. A read that comes short has met the end; one of all that was expected need not have."""
    data = os.read(fd, expected + 1)
    if len(data) <= expected:
        return data
    parts = [data]
    while part := os.read(fd, _BLOCK_BYTES):
        parts.append(part)
    return b"".join(parts)


def identity_of(found: os.stat_result) -> Identity:
    """Return the identity of a file. The time of the last write and the size tell of a program that writes in place."""
    return found.st_ino, found.st_mtime_ns, found.st_size


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Let an ``OSError`` name ``path`` where the system knew a descriptor only."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


def _write_new(path: str, data: bytes) -> int:
    fd = os.open(path, _CREATE_NEW, 0o666)
    try:
        written = os.write(fd, data)
        while written < len(data):  # a full disk says so with the next write
            written += os.write(fd, memoryview(data)[written:])
    except OSError as error:
        os.close(fd)
        with suppress(OSError):
            os.unlink(path)
        error.filename = path
        raise
    return fd


def _remove_tree(path: str) -> None:
    try:
        entries = [] if os.path.islink(path) else list(os.scandir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        entries = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(entry.path)
        else:
            with suppress(FileNotFoundError):
                os.unlink(entry.path)
    with suppress(FileNotFoundError):
        try:
            os.rmdir(path)
        except NotADirectoryError:
            os.unlink(path)
