"""What is done to threads and their messages: the synchronous work of each operation.

Methods that write run in the writing thread, hold the thread's lock, and are carried on by it (``Work``); methods that
read run in the reading thread and hold none, for every record is replaced whole and every log is only appended to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import islice
from types import TracebackType
from typing import Any

import attrs
from attrs import define, field

from threadloom import codec
from threadloom.checks import IdempotencyKey, MetadataChange, new_metadata
from threadloom.errors import (
    InvalidCursorError,
    MessageNotFoundError,
    SerializationError,
    StoreError,
    ThreadAlreadyExistsError,
    ThreadNotFoundError,
)
from threadloom.ids import is_id
from threadloom.models import Message, Thread
from threadloom.pages import Order, Page, check_page, page_of_ids
from threadloom.stores.files import _log as log
from threadloom.stores.files._commit import Committer
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._keys import Keys
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._lock import Lock
from threadloom.stores.files._opened import LogFile
from threadloom.stores.files._pages import PageRequest, page_of_records
from threadloom.stores.files._records import (
    dumped,
    read_record,
    rewritten,
    starting_over_after_foreign_writes,
)
from threadloom.stores.files._redo import Redo
from threadloom.stores.files._writer import Work
from threadloom.stores.files._writes import Append, Make, Put

__all__ = ["Sight", "Threads"]

_REMEMBERED_CURSORS = 4_096

Sight = Callable[[int, str | None], bool]
"""Whether a message is seen, by where its line begins and the run that wrote it."""


@define
class _Edits:
    """What was changed of messages since they were appended."""

    deleted: set[str] = field(factory=set)
    retracted: set[int] = field(factory=set)
    metadata: dict[str, dict[str, Any]] = field(factory=dict)
    damaged: list[StoreError] = field(factory=list)


class _Locked:
    """The lock of a thread, and that the thread is there from then on until it is given back."""

    def __init__(self, threads: Threads, thread_id: str, lock: Lock) -> None:
        self._threads = threads
        self._thread_id = thread_id
        self._lock = lock

    def __enter__(self) -> None:
        try:
            self._lock.__enter__()
        except FileNotFoundError as error:
            self._threads.check_not_gone(self._thread_id, error)
            raise
        try:
            self._threads.check_exists(self._thread_id)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
        if isinstance(error, FileNotFoundError):
            self._threads.check_not_gone(self._thread_id, error)


class Threads:
    """Threads and messages on disk."""

    def __init__(
        self, layout: Layout, disk: Disk, committer: Committer, redo: Redo, *, logs: log.Logs, keys: Keys
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._logs = logs
        self._committer = committer
        self._redo = redo
        self._keys = keys
        # Where messages lie that were first or last on a page: the next page begins there. Reading thread only.
        self._cursors: OrderedDict[tuple[str, str], int] = OrderedDict()

    # Threads

    def create(self, thread: Thread, messages: Sequence[Message], key: IdempotencyKey | None) -> Work[Thread]:
        if key is None:
            return (yield from self._create(thread.id, thread, messages))
        path = self._keys.of_thread(key)
        with self._keys.locked_for_thread(key):
            created = self._keys.made_before(path, key, Thread)
            if created is not None:
                return created
            # The key first: who sees the thread finds nothing half done.
            put = self._keys.putting(path, key, thread)
            return (yield from self._create(self._keys.place_of_thread(key), thread, messages, *put))

    def _create(self, place: str, thread: Thread, messages: Sequence[Message], *first: Put) -> Work[Thread]:
        path = self._layout.thread(thread.id)
        if self._disk.exists(path):
            raise ThreadAlreadyExistsError(thread.id)
        files = {"meta.json": dumped(thread)}
        kept = codec.decode(files["meta.json"], Thread, path)  # nothing is written that could not be read again
        if messages:
            files["messages.jsonl"] = log.dumped_lines(messages)
        # Its lock is there before it is seen: nobody deletes it before the journal has it as done.
        with ExitStack() as held:
            try:
                yield from self._committer.commit(place, *first, Make(path, files, held))
            except FileExistsError:
                raise ThreadAlreadyExistsError(thread.id) from None
        return kept

    def get(self, thread_id: str) -> Thread:
        path = self._layout.meta(thread_id)
        try:
            return read_record(self._disk, path, Thread)
        except FileNotFoundError:
            raise self.missing(thread_id) from None

    def ids(self) -> list[str]:
        return [name for name in self._disk.subdirectories(self._layout.root) if is_id(name)]

    def page_of_ids(self, request: PageRequest) -> Page[str]:
        return page_of_ids(self.ids(), **request.options)

    def page(self, request: PageRequest, tenant: str | None) -> Page[Thread]:
        return page_of_records(self.ids(), request, self.get, lambda thread: tenant is None or thread.tenant == tenant)

    def update(self, thread_id: str, change: Callable[[Thread], Thread]) -> Work[Thread]:
        path = self._layout.meta(thread_id)

        def act() -> Work[Thread]:
            with self._disk.hold(path) as held:
                old = codec.decode(held.data, Thread, path)
                new = change(old)
                put = Put.over(held, rewritten(held, old, new))
                kept = codec.decode(put.data, Thread, path)
                yield from self._committer.commit(thread_id, put)
                return kept

        with self.locked(thread_id):
            return (yield from starting_over_after_foreign_writes(path, act))

    def locked(self, thread_id: str) -> AbstractContextManager[None]:
        """Return the lock of a thread that is there and has its record, and in which nothing is half done."""
        return _Locked(self, thread_id, self._redo.holding(thread_id))

    def check_exists(self, thread_id: str) -> None:
        """Raise ``ThreadNotFoundError`` unless the thread is there, ``SerializationError`` if its record is not."""
        if not self._disk.exists(self._layout.meta(thread_id)):
            raise self.missing(thread_id)

    def check_not_gone(self, thread_id: str, error: FileNotFoundError) -> None:
        """Raise ``ThreadNotFoundError`` where that is why something else was not found."""
        if not self._disk.exists(self._layout.thread(thread_id)):
            raise ThreadNotFoundError(thread_id) from error

    def missing(self, thread_id: str) -> Exception:
        """Return the error for a thread whose record was not there."""
        if self._disk.exists(self._layout.thread(thread_id)) and not self._disk.exists(self._layout.meta(thread_id)):
            return SerializationError(self._layout.meta(thread_id), "the thread's directory is there without it")
        # Where both are there by now, the thread was made between the two looks; when it was asked for, it was not.
        return ThreadNotFoundError(thread_id)

    # Messages

    def appending(self, thread_id: str, *messages: Message) -> Append:
        """Return what adds messages to the end of a thread whose lock is held."""
        path = self._layout.messages(thread_id)
        lines = log.dumped_lines(messages)
        return Append(path, self._logs.end(path), lines)

    def deleting(self, thread_id: str, begun: Mapping[str, int]) -> tuple[Append, ...]:
        """Return what deletes the messages that runs wrote, each from a place on; nothing where there are none."""
        if not begun:
            return ()
        path = self._layout.messages(thread_id)
        edits = self._edits(thread_id)
        found: list[str] = []
        with suppress(FileNotFoundError), LogFile(path) as file:
            for line in log.lines(file, min(begun.values()), log.end_of_lines(file)):
                with suppress(SerializationError):  # damaged: who lists the thread is told
                    message = self._message(path, line, edits)
                    if message is not None and line[0] >= begun.get(message.run_id or "", line[0] + 1):
                        found.append(message.id)
        lines = [
            codec.dump_line({"object": "thread.message.deleted", "message_id": id_}) for id_ in dict.fromkeys(found)
        ]
        return (self._editing(thread_id, b"".join(lines)),) if lines else ()

    def end_of_messages(self, thread_id: str) -> int:
        """Return the offset past the last whole line of the thread's log."""
        try:
            with LogFile(self._layout.messages(thread_id)) as file:
                return log.end_of_lines(file)
        except FileNotFoundError:
            return 0

    def get_message(self, thread_id: str, message_id: str) -> Message:
        self.check_exists(thread_id)
        edits = self._edits(thread_id)
        if message_id not in edits.deleted:
            try:
                with LogFile(self._layout.messages(thread_id)) as file:
                    line = self._find(file, message_id)
            except FileNotFoundError:
                line = None
            message = None if line is None else self._message(self._layout.messages(thread_id), line, edits)
            if message is not None:
                return message
        raise MessageNotFoundError(thread_id, message_id)

    def update_message(self, thread_id: str, message_id: str, change: MetadataChange) -> Work[Message]:
        with self.locked(thread_id):
            old = self.get_message(thread_id, message_id)
            new = attrs.evolve(old, metadata=new_metadata(old.metadata, change))
            edit = {"object": "thread.message.edited", "message_id": message_id, "metadata": new.metadata}
            yield from self._edit(thread_id, edit)
            return new

    def delete_message(self, thread_id: str, message_id: str) -> Work[None]:
        with self.locked(thread_id):
            self.get_message(thread_id, message_id)
            yield from self._edit(thread_id, {"object": "thread.message.deleted", "message_id": message_id})

    def page_of_messages(
        self, thread_id: str, request: PageRequest, run_id: str | None, sight: Sight | None
    ) -> Page[Message]:
        check_page(request.limit, request.order)
        self.check_exists(thread_id)
        path = self._layout.messages(thread_id)
        try:
            with LogFile(path) as file:
                return self._page_of(thread_id, file, request, run_id, sight)
        except FileNotFoundError:
            for cursor in (request.after, request.before):
                if cursor is not None:
                    raise InvalidCursorError(cursor, "messages of the thread") from None
            return Page(())

    def _page_of(
        self, thread_id: str, file: LogFile, request: PageRequest, run_id: str | None, sight: Sight | None
    ) -> Page[Message]:
        low, high = (request.after, request.before)
        if request.order == Order.DESC:
            low, high = high, low
        start = 0 if low is None else self._line_of(thread_id, file, low, past=True)
        stop = log.end_of_lines(file) if high is None else self._line_of(thread_id, file, high, past=False)
        backward = (request.order == Order.DESC) is not request.is_from_the_end
        edits = self._edits(thread_id)
        damaged = edits.damaged

        def wanted() -> Iterator[tuple[int, Message]]:
            for line in (log.lines_backward if backward else log.lines)(file, start, stop):
                try:
                    message = self._message(file.path, line, edits)
                except SerializationError as error:
                    damaged.append(error)
                    continue
                if (
                    message is not None
                    and (run_id is None or message.run_id == run_id)
                    and (sight is None or sight(line[0], message.run_id))
                ):
                    yield line[0], message

        most = None if request.limit is None else request.limit + 1
        found = list(islice(wanted(), most))
        has_more = request.limit is not None and len(found) > request.limit
        found = found[: request.limit]
        if request.is_from_the_end:
            found.reverse()
        for offset, message in (found[:1] + found[-1:]) if request.limit else ():
            self._remember(thread_id, message.id, offset)
        return Page([message for _, message in found], has_more, damaged=tuple(damaged))

    def _message(self, path: str, line: log.Line, edits: _Edits) -> Message | None:
        """Return the message on a line as it is now, or none where the line is blank or its message taken away."""
        if line[0] in edits.retracted:
            return None
        record = log.parsed(path, line)
        if record is None:
            return None
        if isinstance(record, SerializationError):
            raise record
        message = codec.from_record(record, Message, path, offset=line[0])
        if message.id in edits.deleted:
            return None
        if message.id in edits.metadata:
            return attrs.evolve(message, metadata=edits.metadata[message.id])
        return message

    def _line_of(self, thread_id: str, file: LogFile, message_id: str, *, past: bool) -> int:
        """Return where the line of a message begins, or the offset past it."""
        line = self._remembered(thread_id, file, message_id) or self._find(file, message_id)
        if line is None:
            raise InvalidCursorError(message_id, "messages of the thread")
        return line[0] + (len(line[1]) + 1 if past else 0)

    def _find(self, file: LogFile, message_id: str) -> log.Line | None:
        for line in log.lines_with(file, f'"{message_id}"'.encode(), log.end_of_lines(file)):
            record = log.parsed(file.path, line)
            if isinstance(record, SerializationError):
                raise record
            if record is not None and record.get("id") == message_id:
                return line
        return None

    def _remembered(self, thread_id: str, file: LogFile, message_id: str) -> log.Line | None:
        offset = self._cursors.get((thread_id, message_id))
        if offset is None:
            return None
        # The thread may have been deleted and another be in its place: what lies there decides.
        line = next(log.lines(file, offset, file.size), None)
        record = None if line is None else log.parsed(file.path, line)
        return line if isinstance(record, dict) and record.get("id") == message_id else None

    def _remember(self, thread_id: str, message_id: str, offset: int) -> None:
        self._cursors[thread_id, message_id] = offset
        self._cursors.move_to_end((thread_id, message_id))
        if len(self._cursors) > _REMEMBERED_CURSORS:
            self._cursors.popitem(last=False)

    def _edit(self, thread_id: str, edit: dict[str, Any]) -> Work[None]:
        yield from self._committer.commit(thread_id, self._editing(thread_id, codec.dump_line(edit)))

    def _editing(self, thread_id: str, lines: bytes) -> Append:
        path = self._layout.edits(thread_id)
        return Append(path, self._logs.end(path), lines)

    def _edits(self, thread_id: str) -> _Edits:
        edits = _Edits()
        path = self._layout.edits(thread_id)
        try:
            file = LogFile(path)
        except FileNotFoundError:
            return edits
        with file:
            for line in log.lines(file, 0, log.end_of_lines(file)):
                match log.parsed(path, line):
                    case {"object": "thread.message.deleted", "message_id": str(message_id)}:
                        edits.deleted.add(message_id)
                    case {"object": "thread.message.retracted", "offset": int(offset)}:
                        edits.retracted.add(offset)
                    case {"object": "thread.message.edited", "message_id": str(message_id), "metadata": metadata}:
                        edits.metadata[message_id] = metadata
                    case None:
                        continue
                    case SerializationError() as error:
                        edits.damaged.append(error)
                    case _:
                        edits.damaged.append(SerializationError(path, "no edit that is known", offset=line[0]))
        return edits
