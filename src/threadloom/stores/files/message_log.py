"""The messages of one thread: ``messages.jsonl``, which is only appended to, and ``edits.jsonl``, which changes them.

A message's *place* is its number in the thread, counted from 0; deleted messages and blank lines count too. The lines
that threadloom writes carry their place as ``sequence``. The lines of other programs do not: their place follows from
the nearest numbered line before them and the lines between, or from the beginning of the file if no line is numbered.
So a place is found without reading the whole file, except in a file that no threadloom has written to yet.

The functions that read take no lock: both files only grow, and an unterminated last line is ignored.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count as count_from
from itertools import islice
from threading import Lock
from typing import Any, Final

import attrs
from attrs import define, field

from threadloom import codec
from threadloom.errors import InvalidCursorError, SerializationError, StoreError
from threadloom.models import Message
from threadloom.pages import Order, Page, PageRequest, check_page
from threadloom.records import MessageEdit
from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk, append
from threadloom.stores.files.log_lines import (
    Line,
    count_lines,
    end_of_lines,
    lines,
    lines_backward,
    lines_with,
    parsed,
    repair_tail,
)

__all__ = [
    "CursorCache",
    "Edits",
    "MessageLog",
    "edit_line",
    "find",
    "has_line",
    "message_lines",
    "next_place",
    "page",
    "read_edits",
    "written_by",
]

_REMEMBERED_CURSORS: Final = 4_096

Sees = Callable[[int, str | None], bool]
"""Whether a message is shown, by its place and the run that wrote it."""


# Writing


class MessageLog:
    """The messages of a thread as a writer sees them, with the log's descriptor kept from one transaction to the next.

    Call ``refresh`` first in each transaction. The caller holds the thread's lock. Nothing is opened before.

    end: the size of the log, which ends with a whole line; 0 where there is no log yet.
    count: how many messages were ever appended, which is the place of the next one.
    """

    __slots__ = ("_disk", "_fd", "_inode", "_path", "_where", "count", "end")

    def __init__(self, disk: Disk, thread_id: str) -> None:
        self._disk = disk
        self._path = layout.messages(thread_id)
        self._where = disk.where(self._path)
        self._fd = -1
        self._inode = 0
        self.end = -1
        self.count = 0

    def refresh(self) -> None:
        """Learn what other processes and programs appended. This costs one ``stat`` while nobody did.

        An unterminated last line is repaired, as ``repair_tail`` says.
        """
        try:
            found = os.stat(self._where, follow_symlinks=False)
            if self._fd < 0 or found.st_ino != self._inode:
                self.close()
                self._fd, found = self._disk.open_log(self._path, create=False)
                self._inode = found.st_ino
        except FileNotFoundError:
            self.close()
            self.end = self.count = 0
            return
        if found.st_size != self.end:
            self.end = -1  # unknown, should the repair fail
            end = repair_tail(self._disk, self._fd, self._path, found.st_size)
            self.count = next_place(self._fd, end)
            self.end = end

    def lines_for(self, messages: Sequence[Message]) -> bytes:
        """Return the lines that append ``messages`` with their places. Encode those of a transaction together."""
        return message_lines(messages, self.count)

    def append(self, data: bytes, count: int) -> None:
        """Append ``data``, which is ``count`` whole lines, in one write: all of it or, where the disk fails, none."""
        if self._fd < 0:
            self._fd, found = self._disk.open_log(self._path, create=True)
            self._inode = found.st_ino
            self.end = found.st_size
        append(self._fd, data, self.end, self._where)
        self.end += len(data)
        self.count += count

    def close(self) -> None:
        """Close the descriptor. ``refresh`` opens it again."""
        fd, self._fd = self._fd, -1
        self.end = -1
        if fd >= 0:
            os.close(fd)


def message_lines(messages: Sequence[Message], first_place: int) -> bytes:
    """Return the lines of messages whose places count from ``first_place``."""
    return b"".join(
        codec.dump_line({**codec.to_record(message), "sequence": place})
        for message, place in zip(messages, count_from(first_place), strict=False)
    )


def edit_line(edit: MessageEdit) -> bytes:
    """Return the line of ``edits.jsonl`` for an edit."""
    if edit.metadata is None:
        return codec.dump_line({"object": "thread.message.deleted", "message_id": edit.message_id})
    return codec.dump_line(
        {"object": "thread.message.edited", "message_id": edit.message_id, "metadata": edit.metadata}
    )


# Places


def next_place(fd: int, end: int) -> int:
    """Return the place of a message whose line begins at ``end``, which is 0 or behind a newline.

    This reads the last few kilobytes if the last line is numbered, otherwise as far back as the last numbered line.
    """
    for offset, line in lines_with(fd, b'"sequence"', end):
        place = _numbered(parsed("", (offset, line)))
        if place is not None:
            return place + count_lines(fd, offset, end)
    return count_lines(fd, 0, end)


def _numbered(record: dict[str, Any] | SerializationError | None) -> int | None:
    match record:
        case {"sequence": int(place)} if place >= 0 and not isinstance(place, bool):
            return place
    return None


@define
class _Found:
    """A line of the messages, and what is on it.

    offset: where the line begins.
    place: the message's place, -1 if it was not asked for.
    record: the JSON object, None for a blank line, an error for a damaged one.
    """

    offset: int
    place: int
    record: dict[str, Any] | SerializationError | None


def _found_lines(fd: int, where: str, start: int, stop: int, *, backward: bool, with_places: bool) -> Iterator[_Found]:
    expected = -1  # the place of the next line if that has no number
    for offset, data in (lines_backward if backward else lines)(fd, start, stop):
        record = parsed(where, (offset, data))
        place = -1
        if with_places:
            numbered = _numbered(record)
            if numbered is not None:
                place = numbered
            else:
                place = next_place(fd, offset + len(data) + 1) - 1 if expected < 0 else expected
            if not backward:
                expected = place + 1
            elif numbered is None:
                expected = place - 1
            else:
                expected = -1  # lines without a number count from the one before them, not from the one behind
        yield _Found(offset, place, record)


# Reading


@define
class Edits:
    """What happened to messages since they were appended.

    deleted: ids of deleted messages.
    metadata: the newest metadata of messages whose metadata changed, by id.
    damaged: lines of ``edits.jsonl`` that cannot be read.
    """

    deleted: set[str] = field(factory=set)
    metadata: dict[str, dict[str, Any]] = field(factory=dict)
    damaged: list[StoreError] = field(factory=list)


class CursorCache:
    """Where messages lie that were first or last on a page: the next page begins there. It may be used in any thread.

    An offset is a hint. It may be that of a deleted thread with the same id, so look what lies there.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._offsets: OrderedDict[tuple[str, str], int] = OrderedDict()

    def get(self, thread_id: str, message_id: str) -> int | None:
        """Return the offset that was remembered for a message."""
        return self._offsets.get((thread_id, message_id))

    def put(self, thread_id: str, message_id: str, offset: int) -> None:
        """Remember an offset, and forget the oldest one if there are too many."""
        with self._lock:
            self._offsets[thread_id, message_id] = offset
            self._offsets.move_to_end((thread_id, message_id))
            if len(self._offsets) > _REMEMBERED_CURSORS:
                self._offsets.popitem(last=False)


def read_edits(disk: Disk, thread_id: str) -> Edits:
    """Return all edits of a thread's messages, none where there is no such file."""
    edits = Edits()
    path = layout.edits(thread_id)
    where = disk.where(path)
    try:
        with _opened(disk, path) as (fd, end):
            for line in lines(fd, 0, end):
                match parsed(where, line):
                    case {"object": "thread.message.deleted", "message_id": str(message_id)}:
                        edits.deleted.add(message_id)
                    case {"object": "thread.message.edited", "message_id": str(message_id), "metadata": dict(metadata)}:
                        edits.metadata[message_id] = metadata
                    case None:
                        continue
                    case SerializationError() as error:
                        edits.damaged.append(error)
                    case _:
                        edits.damaged.append(SerializationError(where, "this edit is not known", offset=line[0]))
    except FileNotFoundError:
        pass
    return edits


def find(disk: Disk, thread_id: str, message_id: str) -> Message | None:
    """Return a message with its edits applied, None where there is none or it is deleted.

    Raise ``SerializationError`` if its line is damaged, or if a damaged line that contains its id is all there is.
    """
    edits = read_edits(disk, thread_id)
    if message_id in edits.deleted:
        return None
    path = layout.messages(thread_id)
    where = disk.where(path)
    try:
        with _opened(disk, path) as (fd, end):
            line = _line_with_id(fd, end, where, message_id)
    except FileNotFoundError:
        return None
    return None if line is None else _message(where, line[0], parsed(where, line), edits)


def page(
    disk: Disk,
    thread_id: str,
    request: PageRequest,
    *,
    run_id: str | None,
    sees: Sees | None,
    cursors: CursorCache,
) -> Page[Message]:
    """Return a page of messages with their edits applied: those of ``run_id`` only, and those that ``sees`` accepts.

    Deleted messages, and those that are not shown, are cursors all the same. Damaged lines take no place on the page.
    """
    check_page(request.limit, request.order)
    limit, descending = request.limit, request.order == Order.DESC
    # With `before` alone, the page holds the messages nearest to it: they are found from there on, away from the end.
    from_the_end = limit is not None and request.before is not None and request.after is None
    low, high = (request.before, request.after) if descending else (request.after, request.before)
    path = layout.messages(thread_id)
    try:
        with _opened(disk, path) as (fd, end):
            start, stop = 0, end
            if low is not None:
                offset, data = _cursor_line(disk, fd, end, thread_id=thread_id, message_id=low, cursors=cursors)
                start = offset + len(data) + 1
            if high is not None:
                stop, _ = _cursor_line(disk, fd, end, thread_id=thread_id, message_id=high, cursors=cursors)
            edits = read_edits(disk, thread_id)
            backward = descending is not from_the_end
            found_lines = _found_lines(
                fd, disk.where(path), start, stop, backward=backward, with_places=sees is not None
            )
            wanted = _wanted(found_lines, disk.where(path), edits, run_id, sees)
            found = list(islice(wanted, None if limit is None else limit + 1))
    except FileNotFoundError:
        for cursor in (request.after, request.before):
            if cursor is not None:
                raise InvalidCursorError(cursor, "messages of the thread") from None
        return Page(())
    has_more = limit is not None and len(found) > limit
    found = found[:limit]
    if from_the_end:
        found.reverse()
    if limit is not None:
        for offset, message in found[:1] + found[-1:]:
            cursors.put(thread_id, message.id, offset)
    return Page([message for _, message in found], has_more, damaged=edits.damaged)


def _wanted(
    found_lines: Iterable[_Found], where: str, edits: Edits, run_id: str | None, sees: Sees | None
) -> Iterator[tuple[int, Message]]:
    """Yield the messages to list, each with the offset of its line. Damaged lines are added to those of ``edits``."""
    for line in found_lines:
        try:
            message = _message(where, line.offset, line.record, edits)
        except SerializationError as error:
            edits.damaged.append(error)
            continue
        if message is None or (run_id is not None and message.run_id != run_id):
            continue
        if sees is None or sees(line.place, message.run_id):
            yield line.offset, message


def written_by(disk: Disk, thread_id: str, run_ids: Collection[str], since_place: int) -> list[str]:
    """Return the ids of messages from ``since_place`` on that these runs wrote and that are not deleted, in order.

    Damaged lines are left out: a listing of the thread reports them.
    """
    path = layout.messages(thread_id)
    where = disk.where(path)
    edits = read_edits(disk, thread_id)
    found: list[str] = []
    try:
        with _opened(disk, path) as (fd, end):
            for line in _found_lines(fd, where, 0, end, backward=True, with_places=True):
                if line.place < since_place:
                    break
                run_id = line.record.get("run_id") if isinstance(line.record, dict) else None
                if not isinstance(run_id, str) or run_id not in run_ids:
                    continue
                try:
                    message = _message(where, line.offset, line.record, edits)
                except SerializationError:
                    continue
                if message is not None:
                    found.append(message.id)
    except FileNotFoundError:
        return []
    return list(dict.fromkeys(reversed(found)))


def has_line(fd: int, size: int, offset: int, message_id: str) -> bool:
    """Return whether a whole line with this message begins at or after ``offset``, where a line begins or the log ends.

    With this an interrupted projection finds out which of its messages were appended.
    """
    text = f'"{message_id}"'.encode()
    for line in lines(fd, offset, end_of_lines(fd, size)):
        if text in line[1]:
            record = parsed("", line)
            if isinstance(record, dict) and record.get("id") == message_id:
                return True
    return False


@contextmanager
def _opened(disk: Disk, path: str) -> Iterator[tuple[int, int]]:
    """Open a log for reading, and yield its descriptor and the end of its last whole line."""
    fd, found = disk.open(path)
    try:
        yield fd, end_of_lines(fd, found.st_size)
    except OSError as error:
        error.filename = error.filename or disk.where(path)
        raise
    finally:
        os.close(fd)


def _message(
    where: str, offset: int, record: dict[str, Any] | SerializationError | None, edits: Edits
) -> Message | None:
    """Return the message of a line as it is now, None if the line is blank or the message deleted."""
    if record is None:
        return None
    if isinstance(record, SerializationError):
        raise record
    message = codec.from_record(record, Message, where, offset=offset)
    if message.id in edits.deleted:
        return None
    metadata = edits.metadata.get(message.id)
    return message if metadata is None else attrs.evolve(message, metadata=metadata)


def _line_with_id(fd: int, end: int, where: str, message_id: str) -> Line | None:
    """Return the last line with a message, None for none, or raise the damage of a line that may have been it."""
    damage: SerializationError | None = None
    for line in lines_with(fd, f'"{message_id}"'.encode(), end):
        record = parsed(where, line)
        if isinstance(record, SerializationError):
            damage = damage or record  # it may only mention the message, whose own line is further up
        elif record is not None and record.get("id") == message_id:
            return line
    if damage is not None:
        raise damage
    return None


def _cursor_line(disk: Disk, fd: int, end: int, *, thread_id: str, message_id: str, cursors: CursorCache) -> Line:
    """Return the line of a cursor, or raise ``InvalidCursorError``."""
    where = disk.where(layout.messages(thread_id))
    offset = cursors.get(thread_id, message_id)
    if offset is not None:
        line = next(lines(fd, offset, end), None)
        record = None if line is None else parsed(where, line)
        if line is not None and isinstance(record, dict) and record.get("id") == message_id:
            return line
    line = _line_with_id(fd, end, where, message_id)
    if line is None:
        raise InvalidCursorError(message_id, "messages of the thread")
    return line
