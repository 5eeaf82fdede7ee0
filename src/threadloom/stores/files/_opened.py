"""Files by their descriptors: a record as it was read, whose inode is pinned, and a log that is appended to."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from attrs import define

__all__ = [
    "ForeignWriteError",
    "Held",
    "Identity",
    "LogFile",
    "digest",
    "identity_at",
    "identity_of",
    "naming",
    "read_all",
]

_READ_BYTES: Final = 1 << 16

Identity = tuple[int, int, int, int]
"""What tells a file from others: device, inode, time of the last write, and size."""


class ForeignWriteError(Exception):
    """A program that does not lock has written the record since we read it; what it wrote stands.

    ``appended`` are the places and lines that the act had added to logs by then.
    """

    appended: tuple[tuple[int, bytes], ...] = ()


def digest(data: bytes) -> str:
    """Return what tells one content of a record from another."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Let an error tell of ``path`` where the system did not: it knows descriptors only by their numbers."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


@define(eq=False)
class Held:
    """A record as it was read, and a descriptor that pins its inode: no other file can come by the same number.

    When it is done with, it is closed or, by a ``Disk`` that holds it, kept for the next time; and so is what was
    ``placed`` in its stead.
    """

    path: str
    _fd: int
    identity: Identity
    data: bytes
    _keep: Callable[[Held], object] | None = None
    placed: Held | None = None

    @classmethod
    def read(cls, path: str, keep: Callable[[Held], object] | None = None) -> Held:
        """Return what lies at ``path``; ``FileNotFoundError`` where nothing does."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            identity = identity_of(os.fstat(fd))
            return cls(path, fd, identity, read_all(fd, identity[-1]), keep)
        except BaseException:
            os.close(fd)
            raise

    @property
    def digest(self) -> str:
        """What tells its content from another."""
        return digest(self.data)

    def read_again(self) -> bool:
        """Return whether it is still the file at its path, with what that holds by now."""
        stat = os.stat(self.path)
        if (stat.st_dev, stat.st_ino) != self.identity[:2]:
            return False
        self.identity = identity_of(stat)
        self.data = os.pread(self._fd, stat.st_size + 1, 0)
        return len(self.data) == stat.st_size  # else somebody is writing into it in this moment

    def is_what_lies_at(self, path: str) -> bool:
        """Return whether the file at ``path`` is still this one, and nobody has written into it since."""
        return identity_at(path) == self.identity

    def check_untouched(self) -> None:
        """Raise ``ForeignWriteError`` if another file has taken its place, or somebody has written into it."""
        if not self.is_what_lies_at(self.path):
            raise ForeignWriteError

    def place(self, fd: int, identity: Identity, data: bytes) -> None:
        """Note what was put in its stead, by a descriptor that is closed with it, or at once where it is closed."""
        if self._fd < 0:
            os.close(fd)
        else:
            self.placed = Held(self.path, fd, identity, data, self._keep)

    def displace(self) -> None:
        """Note that it is back in its place."""
        if self.placed is not None:
            self.placed.close()
            self.placed = None

    def let_go(self) -> None:
        """Keep neither this one nor what was placed in its stead."""
        self._keep = None
        if self.placed is not None:
            self.placed.let_go()

    def close(self) -> None:
        """Let go of the inode."""
        fd, self._fd = self._fd, -1  # its number may soon be that of another file
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        last, self.placed = self.placed or self, None
        try:
            if last is not self:
                self.close()
        finally:
            (self._keep or Held.close)(last)


class LogFile:
    """A file of lines, only ever appended to."""

    def __init__(self, path: str, *, writable: bool = False, create: bool = True) -> None:
        self.path = path
        flags = (os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0)) if writable else os.O_RDONLY
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its descriptor."""
        os.close(self._fd)

    def stat(self) -> os.stat_result:
        """Return what the system says of the file now."""
        return os.fstat(self._fd)

    @property
    def size(self) -> int:
        """How many bytes the file has now."""
        return self.stat().st_size

    @property
    def inode(self) -> int:
        """What tells this file from another at the same path."""
        return self.stat().st_ino

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``, fewer only at the end of the file."""
        parts: list[bytes] = []
        while length > 0 and (part := os.pread(self._fd, length, offset)):
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def append(self, data: bytes, size: int) -> None:
        """Add ``data`` to the ``size`` bytes there are, in one write: all of it or, where the disk fails, none."""
        try:
            written = os.write(self._fd, data)
        except OSError:
            self.truncate(size)
            raise
        if written != len(data):
            self.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def truncate(self, size: int) -> None:
        """Cut what lies past ``size``: the rest of a write that failed, or a torn line that was set aside."""
        os.ftruncate(self._fd, size)


def identity_at(path: str) -> Identity | None:
    """Return what tells the file at ``path`` from others, or none where there is none."""
    try:
        return identity_of(os.stat(path))
    except FileNotFoundError:
        return None


def identity_of(stat: os.stat_result) -> Identity:
    """Return what tells a file from others, and from what it was before somebody wrote into it."""
    # The time of the last write and the size tell of a program that writes into the file in place.
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def read_all(fd: int, expected: int) -> bytes:
    """Return what a file holds. A read that comes short has met its end; one of all that was expected need not have."""
    data = os.read(fd, expected + 1)
    if len(data) <= expected:
        return data
    parts = [data]
    while part := os.read(fd, _READ_BYTES):
        parts.append(part)
    return b"".join(parts)
