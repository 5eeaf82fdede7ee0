"""Whole lines of a JSONL file, read from either end, and the repair of its last line after a crash.

A file is given as a descriptor and an offset up to which to read. A reader ignores an unterminated last line, because
somebody may be writing it at that moment. Only a writer that holds the thread's lock repairs it. A damaged line in the
middle becomes an error that names it; it is never changed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any, Final

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.stores.files.disk import Disk, append, naming, read_at
from threadloom.stores.files.layout import DAMAGED

__all__ = [
    "Line",
    "count_lines",
    "end_of_lines",
    "lines",
    "lines_backward",
    "lines_with",
    "parsed",
    "repair_tail",
]

_BLOCK_BYTES: Final = 1 << 16
_TAIL_BYTES: Final = 1 << 12  # what is asked of the end of a file is mostly in its last lines

Line = tuple[int, bytes]
"""The offset at which a line begins, and the line without its newline."""


def lines(fd: int, start: int, stop: int) -> Iterator[Line]:
    """Yield the lines from ``start`` to ``stop``. Both are offsets at which a line begins, or the end of the last."""
    begun: list[bytes] = []  # parts of a line longer than its block, joined only once, however long it is
    offset = start
    for block_start in range(start, stop, _BLOCK_BYTES):
        first, *others = read_at(fd, block_start, min(_BLOCK_BYTES, stop - block_start)).split(b"\n")
        begun.append(first)
        for other in others:
            line = b"".join(begun)
            yield offset, line
            offset += len(line) + 1
            begun = [other]


def lines_backward(fd: int, start: int, stop: int) -> Iterator[Line]:
    """Yield the lines from ``stop`` back to ``start``. Both are offsets as for ``lines``."""
    begun: list[bytes] = []  # the last part first
    end = stop
    block_stop = max(start, stop - 1)  # without the last newline
    length = _TAIL_BYTES
    while block_stop > start:
        block_start = max(start, block_stop - length)
        *others, last = read_at(fd, block_start, block_stop - block_start).split(b"\n")
        begun.append(last)
        for other in reversed(others):
            line = b"".join(reversed(begun))
            end -= len(line) + 1
            yield end, line
            begun = [other]
        block_stop = block_start
        length = _BLOCK_BYTES
    if stop > start:
        yield start, b"".join(reversed(begun))


def lines_with(fd: int, text: bytes, stop: int) -> Iterator[Line]:
    """Yield the lines before ``stop`` that contain ``text``, the last one first. ``text`` has no newline in it."""
    end = stop
    length = max(_TAIL_BYTES, 2 * len(text))
    while end > 0:
        start = max(0, end - length)
        block = read_at(fd, start, end - start)
        length = max(_BLOCK_BYTES, length)
        found = block.rfind(text)
        if found < 0:
            end = start + len(text) - 1 if start else 0  # the text may begin in the block before
            continue
        newline = block.rfind(b"\n", 0, found)
        begin = end_of_lines(fd, start) if newline < 0 else start + newline + 1
        newline = block.find(b"\n", found)
        if begin >= start and newline >= 0:
            yield begin, block[begin - start : newline]
        else:
            yield next(lines(fd, begin, stop))
        end = begin


def end_of_lines(fd: int, stop: int) -> int:
    """Return the offset behind the last newline before ``stop``, 0 for none."""
    length = _TAIL_BYTES
    while stop:
        start = max(0, stop - length)
        newline = read_at(fd, start, stop - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        stop = start
        length = _BLOCK_BYTES
    return 0


def count_lines(fd: int, start: int, stop: int) -> int:
    """Return the number of lines that end between two offsets."""
    return sum(
        read_at(fd, block_start, min(_BLOCK_BYTES, stop - block_start)).count(b"\n")
        for block_start in range(start, stop, _BLOCK_BYTES)
    )


def parsed(where: str, line: Line, levels: int = codec.MOST_LEVELS) -> dict[str, Any] | SerializationError | None:
    """Return the JSON object on a line, None for a blank line, or the error that names ``where`` and the line.

    The error is returned and not raised, because a damaged line must not keep anybody from reading the others.
    """
    offset, data = line
    try:
        record = codec.load(data, where, offset=offset, levels=levels)
    except SerializationError as error:
        if not data.strip():
            return None
        return error
    if not isinstance(record, dict):
        return SerializationError(where, f"this line is not a JSON object: {data[:40]!r}", offset=offset)
    return record


def repair_tail(disk: Disk, fd: int, path: str, size: int) -> int:
    """Make a log of ``size`` bytes end with a whole line, and return its new size. The caller holds the thread's lock.

    A last line that is a whole JSON object gets its newline. Any other unterminated line is moved to a file in
    ``.threadloom/damaged``. ``fd`` is open for appending.
    """
    if not size or read_at(fd, size - 1, 1) == b"\n":
        return size
    begin = end_of_lines(fd, size)
    tail = read_at(fd, begin, size - begin)
    if isinstance(parsed(path, (begin, tail)), dict):
        append(fd, b"\n", size, disk.where(path))
        return size + 1
    name = "-".join(path.split("/")[-2:])
    disk.create(f"{DAMAGED}/{name}-{begin}-{secrets.token_hex(4)}", tail)
    with naming(disk.where(path)):
        os.ftruncate(fd, begin)
    return begin
