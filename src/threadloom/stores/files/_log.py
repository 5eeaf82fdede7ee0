"""Logs of JSON lines: appending whole lines, reading them from either end, and judging what a crash left behind.

A reader ignores an unterminated last line, for a writer may be in the middle of it. Only who holds the thread's lock
and is about to append judges it: whole JSON is given its newline, anything else is moved aside. A line in the middle
that is no JSON object is handed to the reader as the error that names it, and never repaired.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.stores.files._disk import Disk, LogFile

__all__ = ["Line", "append_lines", "dumped_lines", "end_of_lines", "lines", "lines_backward", "parsed"]

_BLOCK_BYTES = 1 << 16

Line = tuple[int, bytes]
"""Where a line begins in its file, and the line without its newline."""


def append_lines(disk: Disk, path: Path, data: bytes, damaged: Path, *, durable: bool = True) -> int:
    """Append whole lines to the log at ``path``, and return where they begin.

    A torn last line that is found there is moved to a file of its own in ``damaged`` first.
    """
    with LogFile(path, writable=True) as log:
        start = log.size
        if start and log.read_at(start - 1, 1) != b"\n":
            begin = end_of_lines(log)
            tail = log.read_at(begin, start - begin)
            if _is_json_object(tail):
                data = b"\n" + data
                start += 1
            else:
                disk.create(damaged / f"{path.parent.name}-{path.name}-{begin}-{secrets.token_hex(4)}", tail)
                log.truncate(begin)
                start = begin
        log.append(data)
    if durable:
        disk.appended(path, is_new=start == 0)
    return start


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


def parsed(path: Path, line: Line) -> dict[str, Any] | SerializationError | None:
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


def end_of_lines(log: LogFile) -> int:
    """Return the offset past the last whole line."""
    stop = log.size
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
