"""Judges one thread: its record, its runs, its messages and what was changed of them, and its place in the queue.

It may look without the lock of the thread, and then takes a write that is under way for a problem: what it says is true
only where the lock was held. Events are read before messages, and runs before the queue, so that a finished write is
never seen half.
"""

from __future__ import annotations

import os
from typing import Any, Final

from attrs import define, field

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.models import Message, Run, Thread
from threadloom.report import ProblemKind
from threadloom.stores.files._log import dumped_lines
from threadloom.stores.files.check._judge_keys import judge_keys
from threadloom.stores.files.check._judge_run import RunJudge
from threadloom.stores.files.check._look import Finding, Pause, Reader, Tools
from threadloom.stores.files.check._mend import Span, Stage

__all__ = ["ThreadJudge"]

_MOST_DIFFERENT: Final = 0.1  # of the bytes of a line that is still taken for the message that it was


@define
class _Lines:
    """What was read of a thread's messages."""

    wanted: set[str | None]
    found: dict[str, Message] = field(factory=dict)
    ids: set[str] = field(factory=set)
    offsets: set[int] = field(factory=set)
    damaged: list[Span] = field(factory=list)
    oldest: int | None = None


class ThreadJudge:
    """Looks at one thread. What it finds is complete when ``look`` has come to its end."""

    def __init__(self, tools: Tools, thread_id: str) -> None:
        self._tools = tools
        self._layout = tools.layout
        self._mender = tools.mender
        self._thread_id = thread_id
        self._reader = Reader(tools)

    @property
    def found(self) -> list[Finding]:
        """What is wrong."""
        return self._reader.found

    def look(self) -> Pause:
        """Read all of the thread, and judge it."""
        thread_id = self._thread_id
        meta = self._layout.meta(thread_id)
        thread = self._reader.record(meta, Thread, lambda thread: thread.id == thread_id)
        runs: list[Run] = []
        unended: list[RunJudge] = []
        told: dict[str, tuple[Run, Message]] = {}
        for run_id in self._reader.ids(self._layout.runs(thread_id)):
            judge = RunJudge(self._tools, thread_id, run_id)
            yield from judge.look()
            yield
            if judge.open_message_id is None:
                judge.judge_end()
                self.found.extend(judge.found)
            else:
                unended.append(judge)
            if judge.run is not None:
                runs.append(judge.run)
                told.update((id_, (judge.run, message)) for id_, message in judge.messages.items())
        lines = _Lines(wanted={judge.open_message_id for judge in unended})
        yield from self._judge_messages(told, lines)
        for judge in unended:
            judge.judge_end(lines.found.get(judge.open_message_id or ""))
            self.found.extend(judge.found)
        yield from self._judge_edits(lines, lines.ids | told.keys())
        yield from judge_keys(self._reader, self._tools, self._layout.keys_in(thread_id))
        if thread is None:
            self._judge_without_record([run.created_at for run in runs], lines)
        self._judge_index(runs)

    def _judge_without_record(self, moments: list[int], lines: _Lines) -> None:
        """Judge a thread that has no record that could be read: its directory says its id."""
        meta = self._layout.meta(self._thread_id)
        missing = Finding(ProblemKind.MISSING_RECORD, meta, "the thread's directory is there without it", None)
        first = next((finding for finding in self.found if finding.path == meta), missing)
        if lines.oldest is not None:
            moments.append(lines.oldest)
        if not moments:
            remedy = "moves the thread's directory aside, for nothing in it says that it is this thread's"
            mend = self._mender.aside(os.path.dirname(meta), remedy=remedy)
            self.found[:] = [Finding(first.kind, first.path, first.wrong, mend)]
        elif first is missing:
            mend = self._mender.thread(Thread(id=self._thread_id, created_at=min(moments), metadata={}))
            self._reader.add(missing.kind, missing.path, missing.wrong, mend)

    # Messages

    def _judge_messages(self, told: dict[str, tuple[Run, Message]], lines: _Lines) -> Pause:
        path = self._layout.messages(self._thread_id)
        for span, message in self._reader.lines(
            path, lambda record, offset: codec.from_record(record, Message, path, offset=offset)
        ):
            yield from self._reader.pause()
            lines.offsets.add(span.offset)
            if message is None:
                if span.data.strip():
                    lines.damaged.append(span)
            elif message.thread_id != self._thread_id:
                self._reader.add_line(ProblemKind.MISPLACED, span, "this message is of another thread")
            else:
                lines.ids.add(message.id)
                if message.id in lines.wanted:
                    lines.found[message.id] = message
                lines.oldest = min(lines.oldest or message.created_at, message.created_at)
        for id_, (run, message) in sorted(told.items(), key=lambda item: item[1][0].sequence or 0):
            if id_ not in lines.ids and not self._is_found_again(message, lines):
                wrong = f"message {id_!r} is not there, and the events of its run have it"
                self._reader.add(ProblemKind.MISSING_MESSAGE, path, wrong, self._mender.message(run, message))

    def _is_found_again(self, message: Message, lines: _Lines) -> bool:
        """Return whether a damaged line is clearly this message: then it is mended where it is."""
        data = dumped_lines((message,))[:-1]
        for span in lines.damaged:
            if len(span.data) != len(data):
                continue
            different = sum(one != other for one, other in zip(span.data, data, strict=True))
            if different <= len(data) * _MOST_DIFFERENT:
                index = next(i for i, finding in enumerate(self.found) if _is_about(finding, span))
                old = self.found[index]
                self.found[index] = Finding(old.kind, old.path, old.wrong, self._mender.line_again(span, data))
                lines.damaged.remove(span)
                return True
        return False

    def _judge_edits(self, lines: _Lines, ids: set[str]) -> Pause:
        path = self._layout.edits(self._thread_id)

        def read(record: dict[str, Any], offset: int) -> str | int:
            match record:
                case {"object": "thread.message.deleted", "message_id": str(message_id)}:
                    return message_id
                case {"object": "thread.message.edited", "message_id": str(message_id), "metadata": dict()}:
                    return message_id
                case {"object": "thread.message.retracted", "offset": int(place)}:
                    return place
            raise SerializationError(path, "no edit that is known", offset=offset)

        for span, edited in self._reader.lines(path, read):
            yield from self._reader.pause()
            if isinstance(edited, str) and edited not in ids:
                wrong = f"it names message {edited!r}, which is not in the thread"
                self._reader.add_line(ProblemKind.STRAY_EDIT, span, wrong, Stage.RUNS)
            elif isinstance(edited, int) and edited not in lines.offsets:
                wrong = f"it takes back the message at byte {edited}, where none begins"
                self._reader.add_line(ProblemKind.STRAY_EDIT, span, wrong, Stage.RUNS)

    # The queue

    def _judge_index(self, runs: list[Run]) -> None:
        turn = self._tools.turns.peek(self._thread_id)
        active = {run.id for run in runs if not run.status.is_terminal}
        known = set() if turn is None else {run_id for _, run_id in turn.active}
        path = self._layout.turn(self._thread_id)
        last = max((run.sequence or 0 for run in runs), default=0)
        mend = self._mender.indexed(self._thread_id)
        if active - known or (turn is not None and turn.last_sequence < last):
            self._reader.add(ProblemKind.WRONG_INDEX, path, "it does not have all runs of the thread", mend)
        elif active and not self._tools.disk.exists(self._layout.marker(self._thread_id)):
            wrong = "it is not there, and the thread has runs that are not settled"
            self._reader.add(ProblemKind.WRONG_INDEX, self._layout.marker(self._thread_id), wrong, mend)


def _is_about(finding: Finding, span: Span) -> bool:
    return finding.mend is not None and finding.mend.span == span
