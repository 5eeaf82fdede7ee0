"""Compares one run's record, its steps and its end with its log."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from functools import partial
from typing import Final

from threadloom import codec
from threadloom.check_report import ProblemKind
from threadloom.ids import is_id
from threadloom.models import Message, Run, RunStep, RunStepStatus
from threadloom.records import RunRecord
from threadloom.rules.run import is_leased
from threadloom.stores.files import layout
from threadloom.stores.files.check.finding import Finding, Look, Repair, Stage
from threadloom.stores.files.check.repairs import Repairs
from threadloom.stores.files.check.told import Told, read_told
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.status_record import Status, decode, restored

__all__ = ["RunCheck"]

_FROM_LOG: Final = "writes it again from the run's log"


class RunCheck:
    """Looks at one run: call ``look``, then ``compare`` with what the thread has.

    told: what its log says.
    run: the run as its record says, None where that cannot be read.
    """

    def __init__(self, disk: Disk, is_dead: Callable[[str], bool], thread_id: str, run_id: str) -> None:
        self.thread_id = thread_id
        self.run_id = run_id
        self.told = Told()
        self.run: Run | None = None
        self._look = Look(disk)
        self._is_dead = is_dead
        self._status_path = layout.status(thread_id, run_id)
        self._events_path = layout.events(thread_id, run_id)
        self._status: Status | None = None
        self._steps: dict[str, RunStep] = {}

    @property
    def found(self) -> list[Finding]:
        """The problems."""
        return self._look.found

    def look(self) -> Generator[None, None, None]:
        """Read all of the run."""
        look = self._look
        self._status = look.record(self._status_path, decode, lambda status: self._is_this(status.record.run))
        unread: set[str] = set()
        for name in look.names(layout.steps(self.thread_id, self.run_id)):
            yield from look.pause()
            step_id = name.removesuffix(".json")
            if step_id == name or not is_id(step_id):
                continue
            step = look.record(
                f"{layout.steps(self.thread_id, self.run_id)}/{name}", RunStep, partial(self._is_step, step_id)
            )
            if step is None:
                unread.add(step_id)
            else:
                self._steps[step_id] = step
        self.told = yield from read_told(look, self.thread_id, self.run_id)
        if not self.told.is_of_another:
            self._judge_torn_end()
        if self._status is None:
            self._judge_without_record()
            return
        self.run = self._status.record.run
        if self.told.is_of_another:
            remedy = "moves it to .threadloom/damaged"
            repair = Repair(Stage.DAMAGE, remedy, lambda repairs: repairs.quarantine(self._events_path))
            look.add(ProblemKind.MISPLACED, self._events_path, "It is the log of another run", repair)
            return
        if not look.is_unread(layout.steps(self.thread_id, self.run_id)):
            self._judge_steps(unread)

    def _is_this(self, run: Run) -> bool:
        return (run.thread_id, run.id) == (self.thread_id, self.run_id)

    def _is_step(self, step_id: str, step: RunStep) -> bool:
        return (step.thread_id, step.run_id, step.id) == (self.thread_id, self.run_id, step_id)

    def _judge_without_record(self) -> None:
        """Judge a run that has no record which can be read: its log says what it was."""
        found = self.found
        if self._look.is_unread(self._status_path) or self._look.is_unread(self._events_path):
            return
        wrong = "The run's directory is there without it"
        missing = Finding(ProblemKind.MISSING_RECORD, self._status_path, wrong)
        first = next((finding for finding in found if finding.path == self._status_path), missing)
        if self.told.record is None or not self.told.is_sure:
            directory = os.path.dirname(self._status_path)
            remedy = "moves the run's directory to .threadloom/damaged, because no log says what the run was"
            repair = Repair(Stage.DAMAGE, remedy, lambda repairs: repairs.quarantine(directory))
            found[:] = [Finding(first.kind, first.path, first.wrong, repair)]
        elif first is missing:
            repair = Repair(Stage.RECORDS, _FROM_LOG, self._make_run)
            self._look.add(missing.kind, missing.path, missing.wrong, repair)

    def _make_run(self, repairs: Repairs) -> None:
        repairs.make_run(self.run_id)

    def _judge_torn_end(self) -> None:
        told = self.told
        span = self._look.torn_end(self._events_path)
        summary = self._status.summary if self._status is not None else None
        begin = told.end
        if summary is not None and summary.bytes > told.end:
            # What the record reflects did happen, whatever became of the last line of it.
            begin = told.size if span is None else span.offset
        if span is None and begin == told.size:
            return
        self._look.add(
            ProblemKind.TORN_LOG,
            self._events_path,
            f"Byte {begin}: The last transaction has no end, so it never happened",
            Repair(
                Stage.DAMAGE,
                "moves what is there of it to .threadloom/damaged",
                lambda repairs: repairs.cut_off(self._events_path, begin),
            ),
        )

    def _judge_steps(self, unread: set[str]) -> None:
        """Compare the files of steps with what the log says of them."""
        summary = self._status.summary if self._status is not None else None
        reflected = 0 if summary is None else summary.bytes
        for step_id, (step, end) in self.told.steps.items():
            lying = self._steps.get(step_id)
            repair = Repair(Stage.RECORDS, _FROM_LOG, partial(Repairs.make_step, step=step))
            path = layout.step(self.thread_id, self.run_id, step_id)
            if lying is None and step_id not in unread and step_id not in self.told.unsure_steps:
                wrong = "The run's log tells of this step, which is not here"
                self._look.add(ProblemKind.MISSING_RECORD, path, wrong, repair)
            # Another program may have rewritten a step that is open in the log too: its record stands.
            elif _is_open(lying) and lying != step and (not _is_open(step) or end > reflected > 0):
                self._look.add(ProblemKind.STALE_RECORD, path, "The run's log says more of this step", repair)

    @property
    def is_new(self) -> bool:
        """Whether the record reflects nothing of the log yet, so that the next reader of the log does what it says."""
        summary = self._status.summary if self._status is not None else None
        return summary is not None and summary.bytes == 0

    # With what the thread has

    def compare(self, messages: dict[str, Message]) -> None:
        """Compare the record and the end of the run with its log; ``messages`` are those asked for by ``open_ids``."""
        status, told = self._status, self.told
        if status is None or told.is_of_another or self._look.is_unread(self._events_path):
            return
        summary = status.summary
        record = restored(status, None if told.log.run is None else told.log.run, self._status_path)
        if summary is not None and summary.bytes <= told.size and summary.bytes not in told.line_ends:
            wrong = f"It reflects its log up to byte {summary.bytes}, where no line ends"
            repair = Repair(Stage.RECORDS, _FROM_LOG, self._make_run)
            self._look.add(ProblemKind.STALE_RECORD, self._status_path, wrong, repair)
            return
        is_same = told.record is not None and codec.to_record(told.record) == codec.to_record(record)
        lags = summary is not None and told.record_end > summary.bytes and not is_same
        lost = self._lost(messages)
        past = max((step.sequence or 0 for step in self._steps.values()), default=0)
        is_lost = bool(lost) or past > told.log.number or (told.record is None and record.run.sequence is not None)
        if summary is not None and not lags:
            is_lost = is_lost or summary.bytes > told.size or not is_same
        if lags:
            wrong = "The run's log says more than it does"
            repair = Repair(Stage.RUNS, _FROM_LOG, self._agree)
            self._look.add(ProblemKind.STALE_RECORD, self._status_path, wrong, repair)
        elif self._has_dead_lease(record):
            wrong = "The worker that holds the run is gone"
            remedy = "takes the run from it, as any worker does that notices"
            repair = Repair(Stage.RUNS, remedy, partial(Repairs.reclaim, run_id=self.run_id))
            self._look.add(ProblemKind.DEAD_LEASE, self._status_path, wrong, repair)
        elif is_lost:
            remedy = "lets the log go on with how the run is now"
            repair = Repair(Stage.RUNS, remedy, lambda repairs: repairs.restate(self.run_id, lost, past))
            self._look.add(ProblemKind.LOST_EVENTS, self._events_path, "Events of the run are gone", repair)
        else:
            self._judge_end(record, is_same=is_same)

    def _agree(self, repairs: Repairs) -> None:
        repairs.agree(self.run_id)

    @property
    def open_message_id(self) -> str | None:
        """The message that the log has left open."""
        message = self.told.log.open_message
        return None if message is None else message.id

    def _lost(self, messages: dict[str, Message]) -> list[RunStep | Message]:
        """Return the steps and messages that have ended, and the log does not say so."""
        message = messages.get(self.open_message_id or "")
        lost: list[RunStep | Message] = [] if message is None else [message]
        for step in self._steps.values():
            is_told = step.id in self.told.steps
            is_open = step.id in self.told.log.open_steps
            is_closed = step.status is not RunStepStatus.IN_PROGRESS
            if (not is_told and step.sequence is not None) or (is_closed and is_open):
                lost.append(step)
        return lost

    def _has_dead_lease(self, record: RunRecord) -> bool:
        return record.lease is not None and is_leased(record) and self._is_dead(record.lease.liveness_id)

    def _judge_end(self, record: RunRecord, *, is_same: bool) -> None:
        run, log = record.run, self.told.log
        if run.status.is_terminal:
            unlogged = {step.id for step in self._steps.values() if step.id not in self.told.steps}
            is_open = {step_id for step_id in unlogged if self._steps[step_id].status is RunStepStatus.IN_PROGRESS}
            still = {*log.open_steps, *filter(None, [self.open_message_id])} - self.told.unsure_steps
            if is_open or still & self.told.open_at_end or (log.run is not None and log.run.status is not run.status):
                wrong = f"The run is {run.status}, and what was open in it is not closed"
                repair = Repair(Stage.RUNS, "closes it", lambda repairs: repairs.finalize(self.run_id))
                self._look.add(ProblemKind.UNFINALIZED_RUN, self._status_path, wrong, repair)
                return
        if not is_same and self.told.record is not None:
            wrong = "Another program has changed it, and the run's log does not tell of that"
            repair = Repair(Stage.RUNS, "adds it to the log as the run's next event", self._agree)
            self._look.add(ProblemKind.STALE_RECORD, self._status_path, wrong, repair)


def _is_open(step: RunStep | None) -> bool:
    return step is not None and step.status is RunStepStatus.IN_PROGRESS
