"""Judges one run: its record, its steps and its events, each by itself and against the others."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Generator
from itertools import pairwise
from typing import Any

from attrs import define, field

from threadloom import codec, lifecycle
from threadloom.errors import SerializationError
from threadloom.events import Checkpoint, RunEvent, RunLog
from threadloom.evidence import Evidence
from threadloom.ids import is_id
from threadloom.lifecycle import RunRecord
from threadloom.models import Message, Run, RunStep, RunStepStatus
from threadloom.report import ProblemKind
from threadloom.stores.files.check._look import Finding, Pause, Reader, Tools
from threadloom.stores.files.check._mend import Span, Stage

__all__ = ["RunJudge"]


@define
class _Events:
    """What was read of the events of a run."""

    log: RunLog = field(factory=RunLog)
    evidence: Evidence = field(factory=Evidence)
    places: list[tuple[int, int]] = field(factory=list)
    """The number of each event, and where its line begins."""
    are_of_another: bool = False


class RunJudge:
    """Looks at one run. What it finds is complete when ``look`` has come to its end.

    Records are read before the events that tell of them, so that a finished write is never seen half.
    """

    def __init__(self, tools: Tools, thread_id: str, run_id: str) -> None:
        self._disk = tools.disk
        self._mender = tools.mender
        self._is_gone = tools.is_gone
        self._thread_id = thread_id
        self._run_id = run_id
        self._status = tools.layout.status(thread_id, run_id)
        self._steps = tools.layout.steps(thread_id, run_id)
        self._events = tools.layout.events(thread_id, run_id)
        self._reader = Reader(tools)
        self._record: RunRecord | None = None
        self._steps_seen: list[RunStep] = []
        self._events_seen = _Events()
        self.run: Run | None = None
        self.messages: dict[str, Message] = {}
        """What the thread must have, by what the run's events say."""

    @property
    def found(self) -> list[Finding]:
        """What is wrong."""
        return self._reader.found

    @property
    def open_message_id(self) -> str | None:
        """The message that is still open by what the events say: then ``judge_end`` must be told of it."""
        message = self._events_seen.log.open_message
        return None if message is None else message.id

    def look(self) -> Pause:
        """Read all of the run, and judge it."""
        record = self._reader.record(self._status, RunRecord, lambda record: self._is_this(record.run))
        steps: list[RunStep] = []
        for name in sorted(self._disk.names(self._steps)):
            yield from self._reader.pause()
            step = self._step(name)
            steps += [] if step is None else [step]
        events = yield from self._read_events()
        if record is None:
            self._judge_without_record(events)
            return
        self._record, self._steps_seen, self._events_seen = record, steps, events
        self.run = record.run
        self.messages = events.evidence.messages
        self._judge_steps(steps, events)
        if record.lease is not None and lifecycle.is_leased(record) and self._is_gone(record.lease.life):
            wrong = f"the worker {record.lease.worker_id!r} that has the run is gone"
            mend = self._mender.reclaimed(record.run, self._is_gone)
            self._reader.add(ProblemKind.DEAD_LEASE, self._status, wrong, mend)

    def _is_this(self, run: Run) -> bool:
        return (run.thread_id, run.id) == (self._thread_id, self._run_id)

    def _is_of_this(self, item: Any) -> bool:
        match item:
            case Run():
                return self._is_this(item)
            case RunStep() | Message():
                return (item.thread_id, item.run_id) == (self._thread_id, self._run_id)
        return True

    def _step(self, name: str) -> RunStep | None:
        step_id = name.removesuffix(".json")
        if step_id == name or not is_id(step_id):
            return None
        path = f"{self._steps}/{name}"
        return self._reader.record(path, RunStep, lambda step: step.id == step_id and self._is_of_this(step))

    def _read_events(self) -> Generator[None, None, _Events]:
        path = self._events
        events = _Events()
        is_own = False
        misplaced: list[Span] = []
        for span, event in self._reader.lines(path, self._event):
            yield from self._reader.pause()
            if event is None or not self._is_of_this(event.data):
                events.evidence.miss()
                if event is not None:
                    misplaced.append(span)
                continue
            is_own = is_own or isinstance(event.data, Run | RunStep | Message)
            events.places.append((event.number, span.offset))
            events.log.apply(event)
            events.evidence.apply(event)
        if misplaced and not is_own:
            self.found[:] = [finding for finding in self.found if finding.path != path]
            self._reader.add(ProblemKind.MISPLACED, path, "it is the log of another run", self._mender.aside(path))
            return _Events(are_of_another=True)
        for span in misplaced:
            self._reader.add_line(ProblemKind.MISPLACED, span, "this event is of another run")
        wrong = _not_rising(events.places)
        for span in self._reader.spans(path) if wrong else ():
            if span.offset in wrong:
                says = "the number of this event does not rise"
                self._reader.add_line(ProblemKind.UNORDERED_EVENTS, span, says, Stage.LOGS)
        return events

    def _event(self, record: dict[str, Any], offset: int) -> RunEvent:
        event = codec.from_record(record, RunEvent, self._events, offset=offset)
        if not isinstance(event.data, Checkpoint) and not is_id(event.data.id):
            raise SerializationError(self._events, f"{event.data.id!r} is no id", offset=offset)
        return event

    def _judge_without_record(self, events: _Events) -> None:
        """Judge a run that has no record that could be read: its last event has it too."""
        missing = Finding(ProblemKind.MISSING_RECORD, self._status, "the run's directory is there without it", None)
        first = next((finding for finding in self.found if finding.path == self._status), missing)
        run = events.evidence.run
        if run is None:
            # All of it, so that what can be read keeps its place beside what cannot.
            remedy = "moves the run's directory aside, for its events do not say what it was"
            self.found[:] = [
                Finding(
                    first.kind,
                    first.path,
                    first.wrong,
                    self._mender.aside(os.path.dirname(self._status), remedy=remedy),
                )
            ]
        elif first is missing:
            mend = self._mender.run(run, is_at_work=events.evidence.is_at_work)
            self._reader.add(missing.kind, missing.path, missing.wrong, mend)

    def _judge_steps(self, steps: list[RunStep], events: _Events) -> None:
        known = {step.id for step in steps} | {
            os.path.basename(finding.path).removesuffix(".json") for finding in self.found
        }
        for step in events.evidence.steps.values():
            if step.id not in known:
                wrong = "the run's events tell of this step, and it is not there"
                path = f"{self._steps}/{step.id}.json"
                self._reader.add(ProblemKind.MISSING_RECORD, path, wrong, self._mender.step(step))

    def judge_end(self, message: Message | None = None) -> None:
        """Judge whether the run's events say all, and end where it has ended.

        ``message`` is what the thread has of ``open_message_id``.
        """
        record, steps, events = self._record, self._steps_seen, self._events_seen
        if record is None or events.are_of_another:
            return
        run = record.run
        lost: list[RunStep | Message] = [] if message is None else [message]
        lost += [step for step in steps if not _is_told(step, events)]
        past = max((step.sequence or 0 for step in steps), default=0)
        if (run.sequence is not None and events.log.run is None) or lost or past > events.log.number:
            mend = self._mender.restated(run, lost, past)
            self._reader.add(ProblemKind.LOST_EVENTS, self._events, "events of the run are gone", mend)
            return
        if events.log.run is None and all(step.status is not RunStepStatus.IN_PROGRESS for step in steps):
            return  # another program's, of which there are no events
        if events.evidence.is_left_open(run, events.log, steps):
            wrong = f"the run is {run.status}, and what was open in it is not closed"
            self._reader.add(ProblemKind.UNSETTLED_RUN, self._status, wrong, self._mender.settled(run))


def _is_told(step: RunStep, events: _Events) -> bool:
    """Return whether the events say of a step what its record says; those of other programs have no events."""
    if step.sequence is None and step.id not in events.evidence.steps:
        return True
    if step.status is RunStepStatus.IN_PROGRESS:
        return step.id in events.log.open_steps
    return step.id in events.log.closed_steps and step.id not in events.log.open_steps


def _not_rising(places: list[tuple[int, int]]) -> set[int]:
    """Return where the fewest lines are without which the numbers rise."""
    if all(one[0] < other[0] for one, other in pairwise(places)):
        return set()
    tails: list[int] = []  # the smallest number at which a rising row of each length can end
    lengths: list[int] = []
    for number, _ in places:
        length = bisect_left(tails, number)
        tails[length : length + 1] = [number]
        lengths.append(length)
    wanted = len(tails) - 1
    following: int | None = None
    left: set[int] = set()
    for length, (number, place) in zip(reversed(lengths), reversed(places), strict=True):
        if length == wanted and (following is None or number < following):
            wanted -= 1
            following = number
        else:
            left.add(place)
    return left
