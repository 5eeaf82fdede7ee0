"""The file system, in one small room: what reads and changes files by their names (locks and watches apart).

Everything is synchronous and runs in the store's own threads. ``OSError`` goes up as it is.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from typing import Final

from attrs import define

from threadloom.stores.files._kept import Kept
from threadloom.stores.files._linux import exchange, rename_to_new, sync_file_system
from threadloom.stores.files._opened import (
    ForeignWriteError,
    Held,
    Identity,
    LogFile,
    identity_at,
    identity_of,
    naming,
    read_all,
)

__all__ = ["MOST_KEPT", "Disk", "Rewrite"]

_READ_BYTES: Final = 1 << 16

MOST_KEPT: Final = 128
"""How many descriptors of one kind are kept open for the next time: a process may have 1,024 by default."""


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
            return read_all(fd, _READ_BYTES)
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
                placed = identity_of(os.fstat(fd))
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

    def _exchange(self, temporary: str, ours: Identity, held: Held) -> bool:
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
                if identity_at(temporary) == placed:
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
    _placed: Identity
    _temporary: str
    _is_exchanged: bool

    def undo(self) -> None:
        """Put the old record back, unless another has come since."""
        held = self._held
        if identity_at(held.path) == self._placed:
            if self._is_exchanged:
                exchange(self._temporary, held.path)
            else:
                self._disk.replace(held.path, held.data)
        held.displace()

    def clear(self) -> None:
        """Remove the old file."""
        self._disk.discard(self._temporary)


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
