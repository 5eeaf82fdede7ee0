"""After a power failure: writes what the journals say, and the files have lost.

It runs once a boot, before the first store is open, and only where journals are left. What other programs wrote stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

import orjson
from attrs import define, field

from threadloom import codec
from threadloom.errors import SerializationError, StoreError
from threadloom.ids import is_id
from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk, naming, read_at
from threadloom.stores.files.journal import JournalFile, Write, checksum
from threadloom.stores.files.log_lines import repair_tail
from threadloom.stores.files.run_log import read_entries
from threadloom.stores.files.status_record import Status, Summary, decode, encode

__all__ = ["replay"]

_logger = logging.getLogger("threadloom")


@define
class _Put:
    """A file that is replaced: the checksums of all that it held by our hand, and what it is to hold."""

    known: set[int] = field(factory=set)
    data: bytes | None = None


@define
class _Plan:
    """What is to be in the files in the end.

    removed: threads that were removed, be they made again or not.
    """

    removed: set[str] = field(factory=set)
    puts: dict[str, _Put] = field(factory=dict)
    logs: dict[str, list[Write]] = field(factory=dict)
    lines: dict[str, list[Write]] = field(factory=dict)

    def take(self, write: Write) -> None:
        match write.kind:
            case "put":
                put = self.puts.setdefault(write.path, _Put())
                put.known |= {write.offset, checksum(write.data)}
                put.data = write.data
            case "log":
                self.logs.setdefault(write.path, []).append(write)
            case "lines":
                self.lines.setdefault(write.path, []).append(write)
            case "delete" if write.path in self.puts or write.path.startswith(layout.OWN):
                put = self.puts.setdefault(write.path, _Put())
                put.known.add(write.offset)
                put.data = None
            case "delete":
                self.removed.add(write.path)
                for writes in (self.puts, self.logs, self.lines):
                    for path in [path for path in writes if path.startswith(f"{write.path}/")]:
                        del writes[path]

    def thread_ids(self) -> set[str]:
        """Return the threads in which something is to be written."""
        return {path.split("/")[0] for writes in (self.puts, self.logs, self.lines) for path in writes} - {layout.OWN}


def replay(disk: Disk, journals: Sequence[JournalFile]) -> list[str]:
    """Write what the journals of an earlier boot say; return the threads in which something was written."""
    plan = _Plan()
    for write in _standing(journals):
        if _is_below_root(write.path):
            plan.take(write)
        else:
            _logger.warning("Skipped a write to %s in a journal, which is no path of a store", write.path)
    for thread_id in plan.removed:
        disk.remove_tree(thread_id)
    for path, put in plan.puts.items():
        _put(disk, path, put)
    # A thread that another program has removed since does not come back in parts.
    thread_ids = {thread_id for thread_id in plan.thread_ids() if disk.exists(layout.meta(thread_id))}
    for path, writes in plan.lines.items():
        if path.split("/")[0] in thread_ids:
            _write_lines(disk, path, writes)
    for path, writes in plan.logs.items():
        if path.split("/")[0] in thread_ids:
            _write_log(disk, path, writes)
            _restore_status(disk, path.removesuffix("/events.jsonl"))
    _logger.info("Replayed %s journals after a restart of the machine", len(journals))
    return sorted(thread_ids)


def _is_below_root(path: str) -> bool:
    first, *others = path.split("/")
    return (first == layout.OWN or is_id(first)) and not {"", ".", ".."} & set(others)


def _standing(journals: Sequence[JournalFile]) -> Iterator[Write]:
    """Yield the writes that count, in the order in which they were made."""
    settled: dict[str, int] = {}
    for journal in journals:
        settled[journal.boot] = max(settled.get(journal.boot, 0), journal.settled_ns)
    blocks = sorted(
        (block for journal in journals for block in journal.blocks if block[0] > settled[journal.boot]),
        key=lambda block: block[0],
    )
    void = {(write.offset, write.path) for _, writes in blocks for write in writes if write.kind == "void"}
    for moment, writes in blocks:
        yield from (write for write in writes if write.kind != "void" and (moment, write.path) not in void)


def _put(disk: Disk, path: str, put: _Put) -> None:
    """Let a file hold what it is to hold, unless another program has written it."""
    try:
        lying = disk.read(path)
    except FileNotFoundError:
        lying = None
    except SerializationError:
        return  # a link or a directory, which we never made
    if lying == put.data:
        return
    if lying is not None and checksum(lying) not in put.known and _is_json(lying):
        return
    if put.data is None:
        disk.remove(path)
    else:
        disk.make_directories(os.path.dirname(path))
        disk.replace(path, put.data)


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(orjson.loads(data), dict)
    except orjson.JSONDecodeError:
        return False  # torn


def _write_lines(disk: Disk, path: str, writes: Sequence[Write]) -> None:
    """Write lines into a log that other programs append to as well, each at its place unless that is taken."""
    fd, found = disk.open_log(path, create=True)
    try:
        data = bytearray(read_at(fd, 0, found.st_size))
        claimed = {write.offset for write in writes if _lies_at(data, write.offset, write.data)}
        for write in writes:
            if write.offset in claimed and _lies_at(data, write.offset, write.data):
                continue
            place = -1 if _is_torn_at(data, write) else data.find(write.data, write.offset)
            while place in claimed:
                place = data.find(write.data, place + 1)
            if place < 0:  # else lines of another program came before it
                place = _place_for(disk, path, fd, data, write)
                _overwrite(disk, path, data, write.data, place)
            claimed.add(place)
        _fill_holes(disk, path, fd, data)
    finally:
        os.close(fd)


def _lies_at(data: bytearray, offset: int, part: bytes) -> bool:
    return data[offset : offset + len(part)] == part


def _is_torn_at(data: bytearray, write: Write) -> bool:
    """Return whether the beginning of a write is at its place."""
    rest = data[write.offset : write.offset + len(write.data)].rstrip(b"\0")
    return bool(rest) and write.data.startswith(rest)


def _place_for(disk: Disk, path: str, fd: int, data: bytearray, write: Write) -> int:
    """Return where to write lines that are missing: their own place, or the end if something else is there."""
    # A torn write has left their beginning, or NULs, or nothing.
    if write.data.startswith(data[write.offset : write.offset + len(write.data)].rstrip(b"\0")):
        return write.offset
    end = repair_tail(disk, fd, path, len(data))
    data[:] = read_at(fd, 0, end)
    return end


def _fill_holes(disk: Disk, path: str, fd: int, data: bytearray) -> None:
    """Make a blank line of each hole, whose bytes were lost and are not ours, so that it hides no line behind it."""
    while (start := data.find(b"\0")) >= 0:
        end = len(data) - len(data[start:].lstrip(b"\0"))
        if end == len(data):
            with naming(disk.where(path)):
                os.ftruncate(fd, start)
            return
        _overwrite(disk, path, data, b" " * (end - start - 1) + b"\n", start)


def _write_log(disk: Disk, path: str, writes: Sequence[Write]) -> None:
    """Write a run's log."""
    disk.make_directories(os.path.dirname(path))
    fd, found = disk.open_log(path, create=True)
    try:
        data = bytearray(read_at(fd, 0, found.st_size))
        for write in writes:
            if not _lies_at(data, write.offset, write.data):
                _overwrite(disk, path, data, write.data, write.offset)
    finally:
        os.close(fd)


def _overwrite(disk: Disk, path: str, data: bytearray, part: bytes, offset: int) -> None:
    """Write bytes into a file and into ``data``, which is what it holds; a gap before them becomes a blank line."""
    if offset > len(data):
        part = b" " * (offset - len(data) - 1) + b"\n" + part
        offset = len(data)
    fd, _ = disk.open(path, os.O_RDWR)
    try:
        with naming(disk.where(path)):
            written = 0
            while written < len(part):
                written += os.pwrite(fd, memoryview(part)[written:], offset + written)
    finally:
        os.close(fd)
    data[offset : offset + len(part)] = part


def _restore_status(disk: Disk, run: str) -> None:
    """Let a run's record reflect nothing of its log, so that the next holder of the lock writes all of it again.

    The record may be newer than the steps and messages that it speaks of, which the power failure has taken.
    """
    path = f"{run}/status.json"
    status: Status | None = None
    with suppress(FileNotFoundError, StoreError):
        status = decode(disk.read(path), path)
    if status is None:
        fd, found = disk.open(f"{run}/events.jsonl")
        try:
            entries, _ = read_entries(fd, 0, found.st_size, disk.where(f"{run}/events.jsonl"))
        finally:
            os.close(fd)
        record = next((entry.record for entry in entries if entry.record is not None), None)
        if record is not None:
            disk.replace(path, encode(codec.to_record(record), Summary(0, 0)))
    elif status.summary is not None:
        disk.replace(path, encode(dict(status.raw), Summary(0, 0)))
