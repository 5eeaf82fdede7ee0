"""Compares one thread with the logs of its runs: its messages, its edits, its keys and its place in the queue."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

from attrs import define, field

from threadloom import codec
from threadloom.check_report import ProblemKind
from threadloom.errors import SerializationError
from threadloom.models import Message, Run, Thread
from threadloom.records import MessageEdit
from threadloom.stores.files import layout
from threadloom.stores.files.check.finding import Finding, Look, Repair, Stage
from threadloom.stores.files.check.own_check import check_keys
from threadloom.stores.files.check.repairs import Repairs, Span
from threadloom.stores.files.check.run_check import RunCheck
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.message_log import edit_line, message_lines
from threadloom.stores.files.queue_entry import read_turn

__all__ = ["ThreadCheck"]


@define
class _Messages:
    """What was read of a thread's messages.

    wanted: the ids of messages to keep.
    kept: those that were found.
    ids: the ids of all that were found.
    oldest: the earliest ``created_at``.
    damaged: lines that cannot be read, by their offsets.
    """

    wanted: set[str | None]
    kept: dict[str, Message] = field(factory=dict)
    ids: set[str] = field(factory=set)
    oldest: int | None = None
    damaged: dict[int, Span] = field(factory=dict)


class ThreadCheck:
    """Looks at one thread.

    Without the thread's lock, a write that is under way looks like a problem. What it finds is true under the lock.
    """

    def __init__(self, disk: Disk, is_dead: Callable[[str], bool], boot: str, thread_id: str) -> None:
        self.thread_id = thread_id
        self._disk = disk
        self._is_dead = is_dead
        self._boot = boot
        self._look = Look(disk)
        self._messages_path = layout.messages(thread_id)

    @property
    def found(self) -> list[Finding]:
        """The problems. The list is complete when ``look`` has ended."""
        return self._look.found

    def look(self) -> Generator[None, None, None]:
        """Read all of the thread; others may go on whenever it yields."""
        thread_id = self.thread_id
        path = layout.meta(thread_id)
        thread = self._look.record(path, Thread, lambda thread: thread.id == thread_id)
        runs: list[RunCheck] = []
        for run_id in self._look.directories(layout.runs(thread_id)):
            run = RunCheck(self._disk, self._is_dead, thread_id, run_id)
            yield from run.look()
            yield
            runs.append(run)
        messages = _Messages({run.open_message_id for run in runs})
        yield from self._read_messages(messages)
        if not self._look.is_unread(self._messages_path):
            self._judge_messages(runs, messages)
        for run in runs:
            run.compare(messages.kept)
            self.found.extend(run.found)
        deleted = yield from self._read_edits()
        if not self._look.is_unread(layout.edits(thread_id)):
            self._judge_edits(runs, deleted)
        yield from check_keys(self._look, f"{thread_id}/keys")
        self._judge_stops(runs)
        readable = [run.run for run in runs if run.run is not None]
        self._judge_index(readable)
        if thread is None:
            self._judge_without_record(readable, messages)

    def _judge_without_record(self, runs: list[Run], messages: _Messages) -> None:
        """Judge a thread that has no record which can be read: the name of its directory is its id."""
        path = layout.meta(self.thread_id)
        missing = Finding(ProblemKind.MISSING_RECORD, path, "The thread's directory is there without it")
        first = next((finding for finding in self.found if finding.path == path), missing)
        if self._look.is_unread(path):
            return
        moments = [run.created_at for run in runs]
        if messages.oldest is not None:
            moments.append(messages.oldest)
        if not moments:
            remedy = "moves the directory to .threadloom/damaged, because nothing in it says that it is a thread"
            repair = Repair(Stage.DAMAGE, remedy, lambda repairs: repairs.quarantine(self.thread_id))
            self.found[:] = [Finding(first.kind, path, first.wrong, repair)]
        elif first is missing:
            remedy = "writes one without metadata, as old as the oldest thing in the thread"
            repair = Repair(Stage.RECORDS, remedy, lambda repairs: repairs.make_thread(min(moments)))
            self._look.add(missing.kind, path, missing.wrong, repair)

    # Messages

    def _read_messages(self, messages: _Messages) -> Generator[None, None, None]:
        path = self._messages_path
        for span, record in self._look.lines(path):
            yield from self._look.pause()
            if record is None:
                messages.damaged[span.offset] = span
                continue
            try:
                message = codec.from_record(record, Message, path, offset=span.offset)
            except SerializationError as error:
                self._look.add_line(ProblemKind.DAMAGED_LINE, span, error.reason)
                messages.damaged[span.offset] = span
                continue
            if message.thread_id != self.thread_id:
                self._look.add_line(ProblemKind.MISPLACED, span, "This message is of another thread")
                continue
            messages.ids.add(message.id)
            if message.id in messages.wanted:
                messages.kept[message.id] = message
            messages.oldest = min(messages.oldest or message.created_at, message.created_at)
        self._judge_torn_end(path)

    def _judge_torn_end(self, path: str) -> None:
        span = self._look.torn_end(path) if self._disk.exists(path) else None
        if span is None:
            return
        try:
            is_whole = isinstance(codec.load(span.data, path), dict)
        except SerializationError:
            is_whole = False
        cut_off = partial(Repairs.cut_off, path=path, begin=span.offset)
        repair = Repair(
            Stage.DAMAGE,
            "gives it its newline" if is_whole else "moves it to .threadloom/damaged",
            partial(Repairs.end_line, span=span) if is_whole else cut_off,
        )
        self._look.add(ProblemKind.TORN_LOG, path, f"Byte {span.offset}: The last line has no end", repair)

    def _judge_messages(self, runs: list[RunCheck], messages: _Messages) -> None:
        """Find the messages that the logs of runs have and the thread has not."""
        for run in sorted(runs, key=lambda run: 0 if run.run is None else run.run.sequence or 0):
            for add in run.told.appends:
                offset = add.offset
                for place, message in enumerate(add.messages, add.place):
                    line = message_lines((message,), place)
                    if message.id not in messages.ids:
                        self._judge_missing(run, message, line[:-1], messages.damaged.get(offset))
                    offset += len(line)

    def _judge_missing(self, run: RunCheck, message: Message, line: bytes, damaged: Span | None) -> None:
        if damaged is not None and len(damaged.data) == len(line):
            remedy = "copies the line to .threadloom/damaged, and puts the message of the run's log in its place"
            repair = Repair(Stage.DAMAGE, remedy, lambda repairs: repairs.rewrite(damaged, line))
            about = f"Byte {damaged.offset}:"
            for index, finding in enumerate(self.found):
                if finding.path == damaged.path and finding.wrong.startswith(about):
                    self.found[index] = Finding(finding.kind, finding.path, finding.wrong, repair)
                    return
            self._look.add(ProblemKind.DAMAGED_LINE, damaged.path, f"{about} This line was a message", repair)
            return
        wrong = f"The log of run {run.run_id!r} has message {message.id!r}, which is not here"
        repair = Repair(Stage.LOGS, "appends it", lambda repairs: repairs.append_message(message))
        self._look.add(ProblemKind.MISSING_MESSAGE, self._messages_path, wrong, repair)

    # Edits

    def _read_edits(self) -> Generator[None, None, set[str]]:
        path = layout.edits(self.thread_id)
        deleted: set[str] = set()
        for span, record in self._look.lines(path):
            yield from self._look.pause()
            match record:
                case None:
                    continue
                case {"object": "thread.message.deleted", "message_id": str(message_id)}:
                    deleted.add(message_id)
                case {"object": "thread.message.edited", "message_id": str(), "metadata": dict()}:
                    continue
                case _:
                    self._look.add_line(ProblemKind.DAMAGED_LINE, span, "This edit is not known")
        self._judge_torn_end(path)
        return deleted

    def _judge_edits(self, runs: list[RunCheck], deleted: set[str]) -> None:
        path = layout.edits(self.thread_id)
        for run in runs:
            for message_id in run.told.deleted:
                if message_id not in deleted:
                    wrong = f"The log of run {run.run_id!r} deletes message {message_id!r}, which is not deleted here"
                    line = edit_line(MessageEdit(message_id, None))
                    repair = Repair(Stage.LOGS, "appends that", partial(Repairs.append_edit, line=line))
                    self._look.add(ProblemKind.STALE_RECORD, path, wrong, repair)

    # Other runs, and the queue

    def _judge_stops(self, runs: list[RunCheck]) -> None:
        """Find what the creation of a run has written into its own log, and not yet into the logs of others."""
        sizes = {run.run_id: run.told.size for run in runs if not run.told.is_of_another}
        for run in runs:
            if not run.is_new:
                continue
            for other_id, stop in run.told.stops.items():
                if sizes.get(other_id, stop.offset + 1) <= stop.offset:
                    path = layout.events(self.thread_id, other_id)
                    wrong = f"The log of run {run.run_id!r} stops this run, and that is not here"
                    repair = Repair(Stage.RUNS, "appends it", partial(Repairs.agree, run_id=run.run_id))
                    self._look.add(ProblemKind.LOST_EVENTS, path, wrong, repair)

    def _judge_index(self, runs: list[Run]) -> None:
        entry, idle = layout.queue_entry(self.thread_id), layout.idle_entry(self.thread_id)
        is_queued, is_idle = self._look.is_file(entry), self._look.is_file(idle)
        if any(finding.path in {entry, idle} for finding in self.found):
            return
        active = {run.id for run in runs if not run.status.is_terminal}
        repair = Repair(Stage.INDEX, "makes it again from the runs", Repairs.index)
        if active and not is_queued:
            wrong = "The thread has active runs, and the queue does not name it"
            self._look.add(ProblemKind.WRONG_INDEX, entry, wrong, repair)
        elif self._boot and (active or is_idle):
            turn = read_turn(self._disk, self.thread_id, self._boot)
            known = set() if turn is None else {run_id for _, run_id in turn.active}
            last = max((run.sequence or 0 for run in runs), default=0)
            if active - known:
                wrong = "It does not name all active runs of the thread"
                self._look.add(ProblemKind.WRONG_INDEX, entry, wrong, repair)
            elif turn is not None and turn.last_sequence < last:
                wrong = f"It says that {turn.last_sequence} is the highest sequence of a run, and that is {last}"
                self._look.add(ProblemKind.WRONG_INDEX, entry if is_queued else idle, wrong, repair)
