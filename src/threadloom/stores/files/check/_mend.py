"""How a fix mends what a check has found: without guessing, and without deleting anything.

What is damaged goes to ``.threadloom/damaged/<random>/``, where it has the path that it had below the root. A line of a
log is copied there, and spaces are put in its place: cursors and ``messages_before`` are places in the log, so nothing
behind it may move. All of it is done by the writing thread, which holds the lock of the thread.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import partial

from attrs import frozen

from threadloom import codec, lifecycle
from threadloom.errors import SerializationError
from threadloom.events import RunLog
from threadloom.lifecycle import Change, Lease, RunRecord
from threadloom.models import Message, Run, RunStep, Thread
from threadloom.stores.files import _log as log
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._opened import LogFile
from threadloom.stores.files._records import dumped
from threadloom.stores.files._runs import Runs
from threadloom.stores.files._writer import Work

__all__ = ["Mend", "Mender", "Span", "Stage"]


class Stage(IntEnum):
    """What is mended first: all that comes later is judged anew, by what lies there then."""

    DAMAGE = 0
    RECORDS = 1
    LOGS = 2
    RUNS = 3
    INDEX = 4


@frozen
class Span:
    """A line of a log: where it begins, and its bytes without the newline."""

    path: str
    offset: int
    data: bytes


@frozen
class Mend:
    """What a fix does: ``remedy`` says it. A line that is only set aside is named by ``span``, to go with others."""

    stage: Stage
    remedy: str
    do: Callable[[], object]
    span: Span | None = None


class Mender:
    """Knows the ways of mending; what each method returns is done only when it is asked for."""

    def __init__(self, layout: Layout, disk: Disk, runs: Runs, *, max_attempts: int, now_ns: Callable[[], int]) -> None:
        self._layout = layout
        self._disk = disk
        self._runs = runs
        self._max_attempts = max_attempts
        self._now = now_ns

    # What is damaged

    def aside(self, path: str, seen: bytes | None = None, remedy: str = "moves it aside") -> Mend:
        """Move a file or directory to where damage is kept; a file only while it holds what was ``seen`` in it."""
        return Mend(Stage.DAMAGE, remedy, partial(self._set_aside, path, seen))

    def line_aside(self, span: Span, stage: Stage = Stage.DAMAGE) -> Mend:
        """Copy a line to where damage is kept, and blank it."""
        return Mend(stage, "copies the line aside and blanks it", partial(self.blank, (span,)), span)

    def line_again(self, span: Span, data: bytes) -> Mend:
        """Copy a line to where damage is kept, and write over it what it was."""
        remedy = "copies the line aside and writes it anew from the run's events"
        return Mend(Stage.DAMAGE, remedy, partial(self._write_over, span, data))

    def tail(self, path: str) -> Mend:
        """Give a whole last line its newline, and move a torn one to where damage is kept."""
        return Mend(Stage.DAMAGE, "ends it if it is whole, else moves it aside", partial(self._end, path))

    def blank(self, spans: Iterable[Span]) -> None:
        """Set lines of one log aside, those that follow each other in one file."""
        pieces: list[Span] = []
        for span in sorted(spans, key=lambda span: span.offset):
            last = pieces[-1] if pieces else None
            if last is not None and last.offset + len(last.data) + 1 == span.offset:
                pieces[-1] = Span(last.path, last.offset, last.data + b"\n" + span.data)
            else:
                pieces.append(span)
        for piece in pieces:
            self._write_over(piece, b"\n".join(b" " * len(line) for line in piece.data.split(b"\n")))

    def _set_aside(self, path: str, seen: bytes | None) -> None:
        target = self._place_for(path)
        self._disk.move(path, target)
        if seen is not None and self._disk.read(target) != seen:
            # A program that does not lock has replaced it since: what it wrote stands.
            self._disk.move(target, path)

    def _write_over(self, span: Span, data: bytes) -> None:
        self._keep(span.path, span.offset, span.data + b"\n")
        self._disk.write_at(span.path, span.offset, data)

    def _end(self, path: str) -> None:
        with LogFile(path, writable=True) as file:
            begin = log.end_of_lines(file)
            tail = file.read_at(begin, file.size - begin)
            try:
                is_whole = isinstance(codec.load(tail, path), dict)
            except SerializationError:
                is_whole = False
            if is_whole:
                file.append(b"\n", file.size)
            else:
                self._keep(path, begin, tail)
                file.truncate(begin)

    def _keep(self, path: str, offset: int, data: bytes) -> None:
        self._disk.create(self._place_for(f"{path}-{offset}"), data)

    def _place_for(self, path: str) -> str:
        place = f"{self._layout.damaged}/{secrets.token_hex(8)}/{self._layout.place(path)}"
        self._disk.make_directories(os.path.dirname(place))
        return place

    # What is missing

    def thread(self, thread: Thread) -> Mend:
        """Make a thread's record."""
        make = partial(self._put, self._layout.meta(thread.id), thread)
        return Mend(Stage.RECORDS, "makes it anew, without metadata, as old as the oldest thing in the thread", make)

    def run(self, run: Run, *, is_at_work: bool) -> Mend:
        """Make a run's record. Where a worker was on it, it does not hold it any more."""
        # A lease that nobody lives by: what is done next is to take the run back.
        lease = Lease(
            thread_id=run.thread_id,
            run_id=run.id,
            worker_id="lost",
            token=secrets.token_hex(16),
            attempt=run.attempt,
        )
        record = RunRecord(run, lease if is_at_work else None)
        make = partial(self._put, self._layout.status(run.thread_id, run.id), record)
        return Mend(Stage.RECORDS, "makes it anew from the run's last event", make)

    def step(self, step: RunStep) -> Mend:
        """Make a step's record."""
        make = partial(self._put, self._layout.step(step.thread_id, step.run_id, step.id), step)
        return Mend(Stage.RECORDS, "makes it anew from the run's events", make)

    def message(self, run: Run, message: Message) -> Mend:
        """Append a message to its thread."""

        def decide(record: RunRecord, _: RunLog) -> Change:
            return Change(record, messages=(message,))

        return Mend(Stage.LOGS, "appends it as the run's events have it", partial(self._act, run, decide))

    def restated(self, run: Run, items: list[RunStep | Message], past: int) -> Mend:
        """Let the events say what became of ``items``, and where the run is."""

        def decide(record: RunRecord, known: RunLog) -> Change:
            return lifecycle.restate(record, known, items, past=past, now_ns=self._now())

        return Mend(Stage.LOGS, "lets them go on with how the run is now", partial(self._act, run, decide))

    # What is not finished

    def settled(self, run: Run) -> Mend:
        """Settle a terminal run."""
        return Mend(Stage.RUNS, "settles it", partial(self._act, run, self._runs.settling))

    def reclaimed(self, run: Run, is_gone: Callable[[str], bool]) -> Mend:
        """Take a run from a worker that is gone."""

        def decide(record: RunRecord, known: RunLog) -> Change | None:
            if record.lease is None or not is_gone(record.lease.life):
                return None
            steps = self._runs.open_steps(run.thread_id, run.id)
            return lifecycle.reclaim(
                record, known, max_attempts=self._max_attempts, open_steps=steps, now_ns=self._now()
            )

        return Mend(Stage.RUNS, "takes it back, as recovery does", partial(self._act, run, decide))

    def indexed(self, thread_id: str) -> Mend:
        """Make the turn of a thread from its runs."""
        return Mend(Stage.INDEX, "makes it anew from the runs", partial(self._runs.turns.rebuild, thread_id))

    def _act(self, run: Run, decide: Callable[[RunRecord, RunLog], Change | None]) -> Work[Run]:
        return self._runs.act_locked(run.thread_id, run.id, decide)

    def _put(self, path: str, record: Thread | RunRecord | RunStep) -> None:
        self._disk.make_directories(os.path.dirname(path))
        self._disk.create(path, dumped(record))
