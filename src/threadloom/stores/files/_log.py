"""Logs of JSON lines: appending whole lines, reading them from either end, and judging what a crash left behind.

A reader ignores an unterminated last line, for a writer may be in the middle of it. Only who holds the thread's lock
and is about to append judges it: whole JSON is given its newline, anything else is moved aside. A line in the middle
that is no JSON object is handed to the reader as the error that names it, and never repaired.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.stores.files._disk import MOST_KEPT, Disk
from threadloom.stores.files._kept import Kept
from threadloom.stores.files._opened import LogFile

__all__ = [
    "Line",
    "Logs",
    "append_lines",
    "dumped_lines",
    "end_of_lines",
    "lines",
    "lines_backward",
    "lines_with",
    "parsed",
]

_BLOCK_BYTES = 1 << 16

Line = tuple[int, bytes]
"""Where a line begins in its file, and the line without its newline."""


class Logs:
    """The logs that one store appends to, those of late with their descriptors. For the writing thread.

    Whoever calls it holds the lock of the log's thread.
    """

    def __init__(self, disk: Disk, damaged: str) -> None:
        self._disk = disk
        self._damaged = damaged
        self._kept: Kept[_OpenLog] = Kept(MOST_KEPT)

    def close(self) -> None:
        """Let go of those that are kept."""
        self._kept.close()

    def drop(self, directory: str) -> None:
        """Let go of those below a directory."""
        self._kept.drop(directory)

    def end(self, path: str) -> int:
        """Return where the next line of a log is going to begin, once what is unterminated at its end has been judged.

        Whole JSON is given its newline; a torn line is moved to a file of its own in ``damaged``.
        """
        return self.tail(path)[1]

    def tail(self, path: str) -> tuple[int, int]:
        """Return the inode of the log at ``path``, 0 where there is none, and its ``end``."""
        try:
            log, size = self._opened(path, create=False)
        except FileNotFoundError:
            return 0, 0
        with self._keeping(log):
            return log.known_inode, self._mended(log, size)

    def kept(self, path: str) -> LogFile:
        """Return the log whose ``tail`` was just asked for, to be read from at once."""
        return self._kept.look(path)

    def append(self, path: str, data: bytes) -> int:
        """Append whole lines to the log at ``path``, and return where they begin, once its end has been judged."""
        log, size = self._opened(path, create=True)
        with self._keeping(log):
            start = self._mended(log, size)
            log.whole_end = -1
            log.append(data, start)
            log.whole_end = start + len(data)
        return start

    def cut(self, path: str, size: int, data: bytes) -> None:
        """Take back ``data`` that was appended at ``size``, unless more was appended since."""
        kept = self._kept.take(path)
        if kept is not None:
            kept.close()  # what it knows of the end does not hold, whoever appends next
        self._disk.cut(path, size, data)

    def _opened(self, path: str, *, create: bool) -> tuple[_OpenLog, int]:
        """Return the log that lies at ``path``, and its size."""
        log = self._kept.take(path)
        if log is not None:
            try:
                stat = os.stat(path)
                if stat.st_ino == log.known_inode:
                    return log, stat.st_size
            except FileNotFoundError:
                pass
            except BaseException:
                log.close()
                raise
            log.close()
        log = _OpenLog(path, create=create)
        return log, log.first_size

    @contextmanager
    def _keeping(self, log: _OpenLog) -> Iterator[None]:
        try:
            yield
        except BaseException:
            log.close()
            raise
        self._kept.put(log)

    def _mended(self, log: _OpenLog, size: int) -> int:
        if log.whole_end != size:
            log.whole_end = _mend(self._disk, log, size, self._damaged)
        return log.whole_end


class _OpenLog(LogFile):
    """A log that is kept open, and where it was last known to end with a whole line."""

    def __init__(self, path: str, *, create: bool) -> None:
        super().__init__(path, writable=True, create=create)
        self.whole_end = -1
        try:
            stat = self.stat()
        except BaseException:
            self.close()
            raise
        self.known_inode = stat.st_ino
        self.first_size = stat.st_size


def append_lines(disk: Disk, path: str, data: bytes, damaged: str) -> int:
    """Do what ``Logs.append`` does, once, in any thread."""
    with LogFile(path, writable=True) as log:
        start = _mend(disk, log, log.size, damaged)
        log.append(data, start)
    return start


def _mend(disk: Disk, log: LogFile, size: int, damaged: str) -> int:
    if not size or log.read_at(size - 1, 1) == b"\n":
        return size
    begin = end_of_lines(log)
    tail = log.read_at(begin, size - begin)
    if _is_json_object(tail):
        log.append(b"\n", size)
        return size + 1
    disk.create(f"{damaged}/{'-'.join(log.path.split('/')[-2:])}-{begin}-{secrets.token_hex(4)}", tail)
    log.truncate(begin)
    return begin


def lines(log: LogFile, start: int, stop: int) -> Iterator[Line]:
    """Yield the lines from ``start`` to ``stop``, both at the beginning of a line or the end of the last."""
    begun: list[bytes] = []  # of a line that goes on beyond its block: joined once, however long it is
    offset = start
    for block_start in range(start, stop, _BLOCK_BYTES):
        first, *others = log.read_at(block_start, min(_BLOCK_BYTES, stop - block_start)).split(b"\n")
        begun.append(first)
        for other in others:
            line = b"".join(begun)
            yield offset, line
            offset += len(line) + 1
            begun = [other]


def lines_backward(log: LogFile, start: int, stop: int) -> Iterator[Line]:
    """Yield the lines from ``stop`` back to ``start``, both at the beginning of a line or the end of the last."""
    begun: list[bytes] = []  # last piece first
    end = stop
    block_stop = max(start, stop - 1)  # without the last newline
    while block_stop > start:
        block_start = max(start, block_stop - _BLOCK_BYTES)
        *others, last = log.read_at(block_start, block_stop - block_start).split(b"\n")
        begun.append(last)
        for other in reversed(others):
            line = b"".join(reversed(begun))
            end -= len(line) + 1
            yield end, line
            begun = [other]
        block_stop = block_start
    if stop > start:
        yield start, b"".join(reversed(begun))


def lines_with(log: LogFile, text: bytes, stop: int) -> Iterator[Line]:
    """Yield the lines before ``stop`` in which ``text`` stands, which is in one line, the last first."""
    end = stop
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        found = log.read_at(start, end - start).rfind(text)
        if found >= 0:
            begin = end = end_of_lines(log, start + found)
            yield begin, next(lines(log, begin, stop))[1]
        else:
            # It may go on in the block behind.
            end = start + len(text) - 1 if start else 0


def parsed(path: str, line: Line) -> dict[str, Any] | SerializationError | None:
    """Return the object on a line, the error that names it where it is none, or None where it is blank."""
    offset, data = line
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError:
        if not data.strip():
            return None
        return SerializationError(path, f"this line is not JSON: {data[:40]!r}", offset=offset)
    if not isinstance(record, dict):
        return SerializationError(path, f"this line is no JSON object: {data[:40]!r}", offset=offset)
    return record


def dumped_lines(values: Iterable[object]) -> bytes:
    """Return the lines that say what ``values`` are."""
    return b"".join(codec.dump_line(codec.to_record(value)) for value in values)


def end_of_lines(log: LogFile, stop: int | None = None) -> int:
    """Return the offset past the last whole line, or the last before ``stop``."""
    stop = log.size if stop is None else stop
    while stop:
        start = max(0, stop - _BLOCK_BYTES)
        newline = log.read_at(start, stop - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        stop = start
    return 0


def _is_json_object(data: bytes) -> bool:
    try:
        return isinstance(orjson.loads(data), dict)
    except orjson.JSONDecodeError:
        return False
