"""What a fix does. It guesses nothing and deletes nothing.

What is damaged goes to ``.threadloom/damaged/<random>/``, under the path that it had below the root. A line of a log is
copied there and replaced by spaces: cursors and ``messages_before`` are places in the log, so nothing behind it moves.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from attrs import frozen

from threadloom import codec
from threadloom.events import EventType
from threadloom.models import Message, RunStep, Thread
from threadloom.records import RunChange, RunState
from threadloom.rules import run as rules
from threadloom.rules.transaction import RunTransaction
from threadloom.stores.files import layout
from threadloom.stores.files.commit import finish
from threadloom.stores.files.disk import Disk, Placed, append, naming, read_at
from threadloom.stores.files.message_log import message_lines
from threadloom.stores.files.queue_entry import move_to_idle, write_turn
from threadloom.stores.files.transactions import Transactions
from threadloom.stores.files.views import LockedView

__all__ = ["Repairs", "Span", "set_aside"]


@frozen
class Span:
    """A line of a log: where it begins, and its bytes without the newline."""

    path: str
    offset: int
    data: bytes


class Repairs:
    """Repairs one thread, under its lock."""

    def __init__(self, disk: Disk, transactions: Transactions, view: LockedView, max_attempts: int) -> None:
        self._disk = disk
        self._transactions = transactions
        self._view = view
        self._max_attempts = max_attempts

    # Damage

    def quarantine(self, path: str) -> None:
        """Move a file or directory to ``.threadloom/damaged``."""
        set_aside(self._disk, path)

    def blank(self, span: Span) -> None:
        """Copy a line to ``.threadloom/damaged``, and put spaces in its place."""
        self.rewrite(span, b" " * len(span.data))

    def rewrite(self, span: Span, data: bytes) -> None:
        """Copy a line to ``.threadloom/damaged``, and write another of the same length in its place."""
        self._keep(span)
        fd, _ = self._disk.open(span.path, os.O_RDWR)
        try:
            with naming(self._disk.where(span.path)):
                os.pwrite(fd, data, span.offset)
        finally:
            os.close(fd)

    def end_line(self, span: Span) -> None:
        """Give a last line its newline."""
        fd, found = self._disk.open_log(span.path, create=False)
        try:
            append(fd, b"\n", found.st_size, self._disk.where(span.path))
        finally:
            os.close(fd)

    def cut_off(self, path: str, begin: int) -> None:
        """Move the end of a log to ``.threadloom/damaged``."""
        fd, found = self._disk.open_log(path, create=False)
        try:
            self._disk.create(_place_for(f"{path}-{begin}"), read_at(fd, begin, found.st_size - begin))
            os.ftruncate(fd, begin)
        finally:
            os.close(fd)

    def _keep(self, span: Span) -> None:
        self._disk.create(_place_for(f"{span.path}-{span.offset}"), span.data + b"\n")

    # Records and lines that are made again

    def make_thread(self, created_at: int) -> None:
        """Make the thread's record."""
        thread = Thread(id=self._view.thread_id, created_at=created_at, metadata={})
        self._disk.create(layout.meta(thread.id), codec.dump(codec.to_record(thread)))

    def make_run(self, run_id: str) -> None:
        """Make a run's record from its log, and whatever else the log says."""
        files = self._view.files
        run = files.runs[run_id] = files.load_from(run_id, self._placed(run_id), None)
        finish(files, run)

    def _placed(self, run_id: str) -> Placed | None:
        try:
            return self._disk.read_placed(layout.status(self._view.thread_id, run_id))[0]
        except FileNotFoundError:
            return None

    def make_step(self, step: RunStep) -> None:
        """Make a step's record."""
        path = layout.step(step.thread_id, step.run_id, step.id)
        os.makedirs(os.path.dirname(self._disk.where(path)), exist_ok=True)
        self._disk.replace(path, codec.dump(codec.to_record(step)))

    def append_message(self, message: Message) -> None:
        """Append a message."""
        log = self._view.files.messages
        log.append(message_lines((message,), log.count), 1)

    def append_edit(self, line: bytes) -> None:
        """Append a line to the thread's edits."""
        path = layout.edits(self._view.thread_id)
        fd, found = self._disk.open_log(path, create=True)
        try:
            append(fd, line, found.st_size, self._disk.where(path))
        finally:
            os.close(fd)

    # Runs

    def agree(self, run_id: str) -> None:
        """Write what the run's log says, or take another program's record into the log."""
        self._run(run_id)

    def restate(self, run_id: str, items: Sequence[RunStep | Message], past: int) -> None:
        """Let the log go on with what became of ``items`` and with how the run is now, after the number ``past``."""
        state = self._run(run_id)
        transaction = RunTransaction(state, self._view.now_ns)
        transaction.log.number = max(transaction.log.number, past)
        transaction.skip_ahead()
        for item in items:
            kind = EventType.of_step(item.status) if isinstance(item, RunStep) else EventType.of_message(item.status)
            transaction.emit(kind, item)
        self._write(transaction.come_to(state.run, state.record.lease))

    def finalize(self, run_id: str) -> None:
        """Close what a terminal run left open, and end its log."""
        self._write(rules.finalize(self._run(run_id), now_ns=self._view.now_ns))

    def reclaim(self, run_id: str) -> None:
        """Take a run from a worker that is gone."""
        state = self._run(run_id)
        if state.record.lease is not None and self._view.is_gone(state.record.lease):
            self._write(rules.reclaim(state, max_attempts=self._max_attempts, now_ns=self._view.now_ns))

    def _run(self, run_id: str) -> RunState:
        state = self._view.run(run_id)
        if state is None:
            raise FileNotFoundError(run_id)
        return state

    def _write(self, change: RunChange | None) -> None:
        if change is not None:
            self._transactions.write_run(self._view, change)

    # The index

    def index(self) -> None:
        """Make the thread's queue entry from its runs."""
        files = self._view.files
        files.reindex()
        os.close(write_turn(self._disk, files.thread_id, files.turn, files.boot))
        if not files.turn.active:
            move_to_idle(self._disk, files.thread_id)


def set_aside(disk: Disk, path: str, seen: bytes | None = None) -> None:
    """Move a file or directory to ``.threadloom/damaged``; a file only while it holds what was ``seen`` in it."""
    target = _place_for(path)
    os.makedirs(os.path.dirname(disk.where(target)), exist_ok=True)
    disk.move(path, target)
    if seen is not None and disk.read(target) != seen:
        disk.move(target, path)  # another program has replaced it since: its record stands


def _place_for(path: str) -> str:
    return f"{layout.DAMAGED}/{secrets.token_hex(8)}/{path}"
