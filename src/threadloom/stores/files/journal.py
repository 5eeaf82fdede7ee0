"""The write-ahead journal of a store with ``durability="power"``.

It says what transactions write before they write it, so that one ``fdatasync`` makes all of them durable that wait at
the same moment. In normal work nobody reads it. After a power failure the first store that opens the directory replays
all journals: they say what the files may have lost.

A file, ``.threadloom/journals/<store_id>-<number>``, begins with a JSON line:

* ``boot``: the boot of the machine in which it was written;
* ``settled_ns``: all that any journal of this boot said up to this moment is in the files, and durable there;
* ``replayed``: boots whose journals were replayed: what is left of them counts no more.

Blocks follow: a line with the CRC-32 and the length of what comes next, a JSON line, and the bytes that it tells of.

A store never removes what a journal says without leaving word that it is settled, because journals that others still
have may say what it has overtaken: an old record would come back. Between noting a transaction and having written it,
a store holds a shared lock, so at a moment at which somebody gets the lock alone, all that was noted is written.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import orjson

from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk, naming
from threadloom.stores.files.linux import fcntl

__all__ = ["Journal", "JournalFile", "Write", "checksum", "owner_of", "read_journal", "settle"]

_logger = logging.getLogger("threadloom")

_MOST_BYTES: Final = 1 << 24


class Write(NamedTuple):
    """Something that a transaction writes.

    kind: ``log`` for bytes of a run's log, from its start for a new run; ``lines`` for lines of another log, which
        other programs may append to; ``put`` for a file that is replaced or made; ``delete`` for a file or a thread
        that is removed; ``void`` to say that a write which was noted never happened.
    path: the file or the thread.
    offset: where the bytes of a log begin; for ``put``, the checksum of what it replaces; for ``void``, the moment of
        the block that noted the write.
    data: the bytes.
    """

    kind: str
    path: str
    offset: int
    data: bytes


def checksum(data: bytes) -> int:
    """Return what tells a content from others, 0 for that of a file which is not there."""
    return zlib.crc32(data)


class Journal:
    """The journal of one store. For its writing thread.

    boot: the boot of the machine.
    replayed: boots whose journals are settled once this one is there.
    settled_ns: the moment up to which the journals of this boot are settled, 0 if nobody knows.
    """

    def __init__(self, disk: Disk, boot: str, replayed: Sequence[str] = (), settled_ns: int = 0) -> None:
        self._disk = disk
        self._boot = boot
        self._replayed = list(replayed)
        self._number = 0
        self._fd = -1
        self._size = self._first = 0
        self._paths: list[str] = []
        self._voids: list[Write] = []
        self._is_writing = False
        self._gate = disk.open_directory(layout.OWN)
        try:
            self._begin(settled_ns)
        except BaseException:
            os.close(self._gate)
            raise

    def _begin(self, settled_ns: int) -> None:
        """Begin a new file, durably; the older ones stay."""
        path = f"{layout.JOURNALS}/{self._disk.owner}-{self._number}"
        self._number += 1
        fd, _ = self._disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        try:
            head = {"boot": self._boot, "settled_ns": settled_ns, "replayed": self._replayed}
            line = orjson.dumps(head, option=orjson.OPT_APPEND_NEWLINE)
            with naming(self._disk.where(path)):
                _write_whole(fd, line)
                os.fsync(fd)
                sync_directory(self._disk, layout.JOURNALS)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                self._disk.remove(path)
            raise
        self._close_file()
        self._paths.append(path)
        self._fd = fd
        self._first = self._size = len(line)

    def write(self, writes: Iterable[Write], *, sync: bool) -> int:
        """Note what is going to be written; with ``sync``, return when it and all before it is durable.

        Return the moment that ``void`` needs. Call ``end_batch`` when all of it was written, or failed.
        """
        noted = list(writes)
        if not self._is_writing:
            fcntl.flock(self._gate, fcntl.LOCK_SH)  # an exclusive lock is held for microseconds
            self._is_writing = True
        if self._fd < 0:
            self._begin(0)
        moment = time.monotonic_ns()
        block = _encoded(moment, [*self._voids, *noted])
        try:
            with naming(self._disk.where(self._paths[-1])):
                _write_whole(self._fd, block)
                if sync:
                    os.fdatasync(self._fd)
        except BaseException:
            # What is not known to be durable must not be replayed, and after a failed sync nobody knows what the
            # file holds: the next block goes into a new one, and says so.
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            self._close_file()
            self.void(moment, noted)
            raise
        self._voids.clear()
        self._size += len(block)
        return moment

    def void(self, moment: int, writes: Iterable[Write], instead: Iterable[Write] = ()) -> None:
        """Say that writes which were noted at a moment have failed, and what was written instead.

        ``end_batch`` makes that durable.
        """
        self._voids += [Write("void", write.path, moment, b"") for write in writes]
        self._voids += instead

    def end_batch(self) -> None:
        """Note that all was written or has failed; begin again at nothing once the journal is large."""
        if self._voids:
            try:
                self.write([], sync=True)
            except OSError as error:
                _logger.warning("Could not note a failed write in the journal", exc_info=error)
        if self._is_writing:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
            self._is_writing = False
        if self._size > _MOST_BYTES or len(self._paths) > 1:
            try:
                self.begin_anew()
            except OSError as error:
                _logger.warning("Could not start a new journal", exc_info=error)

    def begin_anew(self) -> None:
        """Make durable what was written, and begin again at nothing, unless another store is writing."""
        settled_ns = None if self._voids else settle(self._disk)
        if settled_ns is None:
            return
        old, self._paths = self._paths, []
        try:
            self._begin(settled_ns)
        finally:
            self._paths[:0] = old
        for path in old:
            self._disk.remove(path)
            self._paths.remove(path)

    def close(self) -> None:
        """Make durable what was written, and remove the journal, or leave word that it is settled."""
        try:
            if self._is_writing:
                fcntl.flock(self._gate, fcntl.LOCK_UN)
            others = [name for name in self._disk.names(layout.JOURNALS) if owner_of(name) != self._disk.owner]
            settled_ns = settle(self._disk)
            if settled_ns is None:
                return  # another store is writing: the next open of the directory removes it
            old, self._paths = self._paths, []
            if others:
                self._begin(settled_ns)
            for path in old:
                self._disk.remove(path)
        finally:
            self._close_file()
            os.close(self._gate)

    @staticmethod
    def read(disk: Disk, name: str) -> JournalFile:
        """Return what a journal says, by the name of its file."""
        return read_journal(disk.read(f"{layout.JOURNALS}/{name}"))

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def settle(disk: Disk) -> int | None:
    """Return a moment up to which all that journals say is in the files, durably; None while a store is writing."""
    gate = disk.open_directory(layout.OWN)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        moment: int | None = time.monotonic_ns()
        fcntl.flock(gate, fcntl.LOCK_UN)
    except BlockingIOError:
        moment = None
    finally:
        os.close(gate)
    disk.sync_all()
    return moment


def sync_directory(disk: Disk, path: str) -> None:
    """Make the names in a directory durable."""
    fd = disk.open_directory(path)
    try:
        with naming(disk.where(path)):
            os.fsync(fd)
    finally:
        os.close(fd)


def owner_of(name: str) -> str:
    """Return the store that wrote a journal, by the name of its file."""
    return name.rpartition("-")[0]


# Reading


class JournalFile(NamedTuple):
    """A journal as it was found.

    blocks: the moment and the writes of each whole block.
    """

    boot: str
    settled_ns: int
    replayed: list[str]
    blocks: list[tuple[int, list[Write]]]


def read_journal(data: bytes) -> JournalFile:
    """Return what a journal says; one whose first line is torn was never used."""
    line, _, _ = data.partition(b"\n")
    try:
        head = orjson.loads(line)
        return JournalFile(head["boot"], head["settled_ns"], head["replayed"], list(_blocks(data, len(line) + 1)))
    except (ValueError, TypeError, KeyError):
        return JournalFile("", 0, [], [])


def _encoded(moment: int, writes: list[Write]) -> bytes:
    head: list[Any] = [[kind, path, offset, len(data)] for kind, path, offset, data in writes]
    body = orjson.dumps([moment, head], option=orjson.OPT_APPEND_NEWLINE)
    body += b"".join(write.data for write in writes)
    return b"%08x %d\n%b" % (zlib.crc32(body), len(body), body)


def _blocks(data: bytes, start: int) -> Iterator[tuple[int, list[Write]]]:
    """Yield whole blocks; what is behind a torn one never happened."""
    while (newline := data.find(b"\n", start)) >= 0:
        try:
            crc, length = data[start:newline].split()
            body = data[newline + 1 : newline + 1 + int(length)]
            if int(crc, 16) != zlib.crc32(body) or len(body) != int(length):
                return
        except ValueError:
            return
        head, _, rest = body.partition(b"\n")
        moment, listed = orjson.loads(head)
        writes: list[Write] = []
        for kind, path, offset, size in listed:
            writes.append(Write(kind, path, offset, rest[:size]))
            rest = rest[size:]
        yield moment, writes
        start = newline + 1 + int(length)


def _write_whole(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):  # a full disk says so with the next write
        written += os.write(fd, memoryview(data)[written:])
