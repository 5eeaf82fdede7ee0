"""The file system, in one small room: the only calls that read or change files are here (locks and watches apart).

Everything is synchronous and runs in the store's own threads. ``OSError`` goes up as it is.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Final, Self

from attrs import define

from threadloom.stores.files._kept import Kept
from threadloom.stores.files._linux import exchange, rename_to_new, sync_file_system

__all__ = ["Disk", "ForeignWriteError", "Held", "LogFile", "digest", "naming"]

_READ_BYTES: Final = 1 << 16

MOST_KEPT: Final = 128
"""How many descriptors of one kind are kept open for the next time: a process may have 1,024 by default."""

_Identity = tuple[int, int, int, int]


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
        error.filename = error.filename or str(path)
        raise


@define(eq=False)
class Held:
    """A record as it was read, and a descriptor that pins its inode: no other file can come by the same number.

    When it is done with, it is closed or, by a ``Disk`` that holds it, kept for the next time; and so is what was
    ``placed`` in its stead.
    """

    path: str
    _fd: int
    identity: _Identity
    data: bytes
    _keep: Callable[[Held], object] | None = None
    placed: Held | None = None

    @classmethod
    def read(cls, path: str, keep: Callable[[Held], object] | None = None) -> Held:
        """Return what lies at ``path``; ``FileNotFoundError`` where nothing does."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            identity = _identity(os.fstat(fd))
            return cls(path, fd, identity, _read_all(fd, identity[-1]), keep)
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
        self.identity = _identity(stat)
        self.data = os.pread(self._fd, stat.st_size + 1, 0)
        return len(self.data) == stat.st_size  # else somebody is writing into it in this moment

    def is_what_lies_at(self, path: str) -> bool:
        """Return whether the file at ``path`` is still this one, and nobody has written into it since."""
        return _identity_at(path) == self.identity

    def check_untouched(self) -> None:
        """Raise ``ForeignWriteError`` if another file has taken its place, or somebody has written into it."""
        if not self.is_what_lies_at(self.path):
            raise ForeignWriteError

    def place(self, fd: int, identity: _Identity, data: bytes) -> None:
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
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def truncate(self, size: int) -> None:
        """Cut what lies past ``size``: the rest of a write that failed, or a torn line that was set aside."""
        os.ftruncate(self._fd, size)


class Disk:
    """Reads and changes files. Nothing here is synced, but by ``sync`` and ``sync_all``.

    What is being written has a name in ``temporary`` that begins with ``name``, the store's own, until it is whole.
    """

    def __init__(self, temporary: str, name: str) -> None:
        self._temporary = temporary
        self._prefix = name
        self._names = itertools.count()
        self._held: Kept[Held] = Kept(MOST_KEPT)

    def close(self) -> None:
        """Let go of the records that are kept."""
        self._held.close()

    def drop(self, directory: str) -> None:
        """Let go of the records that are kept below a directory."""
        self._held.drop(directory)

    def hold(self, path: str) -> Held:
        """Return the record at ``path`` as it is before a change; ``FileNotFoundError`` where there is none.

        For the writing thread: its descriptor is kept, so that what is changed often is not opened each time.
        """
        kept = self._held.take(path)
        if kept is not None:
            try:
                if kept.read_again():
                    return kept
            except FileNotFoundError:
                pass
            except BaseException:
                kept.close()
                raise
            kept.close()
        return Held.read(path, self._keep)

    def _keep(self, held: Held) -> None:
        held.data = b""  # read anew when it is taken up, however large it is
        self._held.put(held)

    # Reading

    def read(self, path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read_all(fd, _READ_BYTES)
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Return whether there is anything at ``path``. Only a missing name counts as no: other errors are raised."""
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, none where there is no directory."""
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []

    def subdirectories(self, directory: str) -> list[str]:
        """Return the names of the directories in a directory, none where there is no directory."""
        return list(self.each_subdirectory(directory))

    def each_subdirectory(self, directory: str) -> Generator[str]:
        """Yield the names of the directories in a directory, which is kept open until all are, or it is closed."""
        with suppress(FileNotFoundError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield entry.name

    def changed_ns(self, path: str) -> int | None:
        """Return when it was last written, or renamed into its place, in nanoseconds; none where there is nothing.

        It is the system's own note, by the wall clock, and no program can set it.
        """
        try:
            return os.stat(path).st_ctime_ns
        except FileNotFoundError:
            return None

    def size(self, path: str) -> int:
        """Return a file's size in bytes, 0 where there is no file."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return 0

    # Changing

    def create(self, path: str, data: bytes) -> None:
        """Make a new file, whole, and the directory that it is in unless that is there.

        ``FileExistsError`` where there is a file.
        """
        temporary = self.temporary_path()
        try:
            os.close(_write_new(temporary, data))
            try:
                rename_to_new(temporary, path)
            except FileNotFoundError:
                self.make_directories(os.path.dirname(path))
                rename_to_new(temporary, path)
        except BaseException:
            self.discard(temporary)
            raise

    def create_directory(
        self, path: str, files: dict[str, bytes], *, before: Callable[[str], object] = lambda _: None
    ) -> None:
        """Make a new directory with ``files`` in it, all at once; ``FileExistsError`` where there is something.

        ``before`` is called with the place where it is made, before others can see it.
        """
        temporary = self.temporary_path()
        os.mkdir(temporary)
        try:
            for name, data in files.items():
                os.close(_write_new(f"{temporary}/{name}", data))
            before(temporary)
            rename_to_new(temporary, path)
        except BaseException:
            with suppress(OSError):
                self.remove_tree(temporary)
            raise

    def make_directories(self, path: str) -> list[str]:
        """Make a directory and its missing parents, unless it is there; return the parents of those that were made."""
        if os.path.isdir(path):
            return []
        parent = os.path.dirname(path)
        changed = self.make_directories(parent)
        with suppress(FileExistsError):  # made by another process in this moment
            os.mkdir(path)
        return [*changed, parent]

    def rewrite(self, held: Held, data: bytes) -> Rewrite:
        """Replace the record that was read as ``held``, or raise ``ForeignWriteError`` and leave the other's standing.

        The new file and the old exchange places, and then the old one is looked at: had another file taken its place
        in the meantime, it goes back. While it was away a third may have come, and so on; each exchange leaves in hand
        either what was last put there by us, and then the newest foreign file stands, or a still newer one to put back.
        """
        temporary = self.temporary_path()
        try:
            fd = _write_new(temporary, data)
            try:
                placed = _identity(os.fstat(fd))
                is_exchanged = self._exchange(temporary, placed, held)
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            self.discard(temporary)
            raise
        # Open for as long as it is held, so that the inode of what we place cannot come back for another file either.
        held.place(fd, placed, data)
        return Rewrite(self, held, placed, temporary, is_exchanged)

    def _exchange(self, temporary: str, ours: _Identity, held: Held) -> bool:
        """Put what was written in the place of ``held``; return whether that has its name now."""
        held.check_untouched()
        if not exchange(temporary, held.path):
            # No exchange on this file system: a look before, and a plain rename. docs/guarantees.md says so.
            held.check_untouched()
            os.rename(temporary, held.path)
            return False
        placed = ours
        with ExitStack() as opened:
            while True:
                try:
                    if placed == ours and held.is_what_lies_at(temporary):
                        return True
                    foreign = opened.enter_context(Held.read(temporary))
                except OSError:
                    exchange(temporary, held.path)  # unseen: whatever it is, it goes before ours
                    raise
                exchange(temporary, held.path)
                if _identity_at(temporary) == placed:
                    raise ForeignWriteError
                placed = foreign.identity

    def replace(self, path: str, data: bytes) -> None:
        """Put a whole file at ``path``, whatever lies there. For who knows that nobody else writes it."""
        temporary = self.temporary_path()
        try:
            os.close(_write_new(temporary, data))
            os.rename(temporary, path)
        except BaseException:
            self.discard(temporary)
            raise

    def overwrite(self, path: str, data: bytes) -> None:
        """Write a file in place. For what can be rebuilt: a crash may leave it torn, and it is never synced."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with naming(path):
                os.pwrite(fd, data, 0)
                os.ftruncate(fd, len(data))
        finally:
            os.close(fd)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """Write into a log at a place that is known, for who carries out what a crash has cut off."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view = view[written:]
                offset += written
        finally:
            os.close(fd)

    def make_file(self, path: str, data: bytes) -> None:
        """Make a file unless it is there, whoever else makes it at the same time."""
        with suppress(FileExistsError):
            self.create(path, data)

    def make_empty(self, path: str) -> None:
        """Make an empty file unless there is one; nobody who watches for writes hears of it."""
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))

    def touch(self, path: str) -> None:
        """Make an empty file or open the one there is: either way who watches the directory hears of it."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))

    def move(self, source: str, target: str) -> None:
        """Give a file or directory a name that is not taken."""
        rename_to_new(source, target)

    def remove(self, path: str) -> None:
        """Remove a file, unless it is gone."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def discard(self, path: str) -> None:
        """Remove what was written of a file that is not wanted; where that fails it stays until its store is dead."""
        with suppress(OSError):
            os.unlink(path)

    def remove_tree(self, path: str) -> None:
        """Remove a file, or a directory and all that is in it, also while others do the same."""
        try:
            with os.scandir(path) as found:
                entries = list(found)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            self.remove(path)
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                self.remove_tree(entry.path)
            else:
                self.remove(entry.path)
        with suppress(FileNotFoundError):
            os.rmdir(path)

    def cut(self, path: str, size: int, data: bytes) -> None:
        """Take back ``data`` that was appended at ``size``, unless more was appended since."""
        with LogFile(path, writable=True) as log:
            if log.size == size + len(data):
                log.truncate(size)

    def sync(self, path: str) -> None:
        """Make durable what a file holds, or which names a directory has."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with naming(path):
                os.fsync(fd)
        finally:
            os.close(fd)

    def sync_all(self) -> None:
        """Make durable all that anybody has written on the file system."""
        fd = os.open(self._temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with naming(self._temporary):
                sync_file_system(fd)
        finally:
            os.close(fd)

    def temporary_path(self) -> str:
        """Return a name for what is being written."""
        return f"{self._temporary}/{self._prefix}-{next(self._names)}"


@define(eq=False)
class Rewrite:
    """A record that was replaced. The old file is kept until ``clear``, so that to ``undo`` it needs no space."""

    _disk: Disk
    _held: Held
    _placed: _Identity
    _temporary: str
    _is_exchanged: bool

    def undo(self) -> None:
        """Put the old record back, unless another has come since."""
        held = self._held
        if _identity_at(held.path) == self._placed:
            if self._is_exchanged:
                exchange(self._temporary, held.path)
            else:
                self._disk.replace(held.path, held.data)
        held.displace()

    def clear(self) -> None:
        """Remove the old file."""
        self._disk.discard(self._temporary)


def _identity_at(path: str) -> _Identity | None:
    try:
        return _identity(os.stat(path))
    except FileNotFoundError:
        return None


def _identity(stat: os.stat_result) -> _Identity:
    # The time of the last write and the size tell of a program that writes into the file in place.
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read_all(fd: int, expected: int) -> bytes:
    """Return what a file holds. A read that comes short has met its end; one of all that was expected need not have."""
    data = os.read(fd, expected + 1)
    if len(data) <= expected:
        return data
    parts = [data]
    while part := os.read(fd, _READ_BYTES):
        parts.append(part)
    return b"".join(parts)


def _write_new(path: str, data: bytes) -> int:
    """Make a file that holds ``data``, and return its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        with naming(path):
            while view:
                view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd
