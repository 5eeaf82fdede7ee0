"""What a run's log says, read from its start, line by line, past whatever is damaged in it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator
from itertools import pairwise
from typing import Any

from attrs import define, field

from threadloom.check_report import ProblemKind
from threadloom.errors import SerializationError
from threadloom.events import RunEvent, RunLog
from threadloom.models import Message, Run, RunStep, RunStepStatus
from threadloom.records import RunRecord
from threadloom.stores.files import layout
from threadloom.stores.files.check.finding import Look, Stage
from threadloom.stores.files.check.repairs import Span
from threadloom.stores.files.run_log import Append, Entry, Stop, entry_of, event_of

__all__ = ["Told", "read_told"]


@define
class Told:
    """What the whole transactions of a log say.

    log: the fold of the events.
    record: the run's record, as far as it can be read; None where there is no log.
    is_sure: whether nothing is damaged behind the record, which might have changed it.
    record_end: the offset behind the last transaction that changed the record.
    steps: the steps, each as it was written last, and the offset behind that transaction.
    unsure_steps: the ids of steps that may have been written again since, in a line that is damaged.
    open_at_end: what was open when the run came to its end.
    appends: the messages that it appended.
    deleted: the ids of messages that it deleted.
    stops: what it wrote into the logs of other runs.
    line_ends: the offsets behind its whole lines.
    end: the offset behind its last whole transaction.
    open_end: what is behind that, without damage.
    is_of_another: whether it is the log of another run.
    """

    log: RunLog = field(factory=RunLog)
    record: RunRecord | None = None
    is_sure: bool = True
    record_end: int = 0
    steps: dict[str, tuple[RunStep, int]] = field(factory=dict)
    unsure_steps: set[str] = field(factory=set)
    open_at_end: set[str] = field(factory=set)
    appends: list[Append] = field(factory=list)
    deleted: list[str] = field(factory=list)
    stops: dict[str, Stop] = field(factory=dict)
    line_ends: set[int] = field(factory=lambda: {0})
    end: int = 0
    size: int = 0
    is_of_another: bool = False
    _is_gapped: bool = False

    def take(self, entry: Entry) -> None:
        """Take in a transaction."""
        for event in entry.events:
            self.log.apply(event)
            if isinstance(event.data, Run):
                message = self.log.open_message
                is_over = event.data.status.is_terminal
                self.open_at_end = {*self.log.open_steps, *([message.id] if message else [])} if is_over else set()
        if entry.record is not None:
            self.record, self.record_end, self.is_sure = entry.record, entry.end, True
        self.steps.update((step.id, (step, entry.end)) for step in entry.steps)
        if self._is_gapped:
            self.unsure_steps.update(step.id for step in entry.steps if step.status is RunStepStatus.IN_PROGRESS)
        else:
            self.unsure_steps.difference_update(step.id for step in entry.steps)
        self._is_gapped = False
        if entry.append is not None:
            self.appends.append(entry.append)
        self.deleted += [edit.message_id for edit in entry.edits if edit.metadata is None]
        self.stops.update(entry.stops)

    def miss(self, *, is_within: bool) -> None:
        """Note that there was something which cannot be read, within a transaction that has begun or between two."""
        self._is_gapped = self._is_gapped or is_within
        self.is_sure = False
        self.unsure_steps.update(self.log.open_steps)


def read_told(look: Look, thread_id: str, run_id: str) -> Generator[None, None, Told]:
    """Read a run's log, and note damaged, misplaced and unordered lines. Its end is left to the caller to judge."""
    path = layout.events(thread_id, run_id)
    told = Told()
    begun: list[tuple[int, dict[str, Any]]] = []
    numbers: dict[int, tuple[int, Span]] = {}
    misplaced: list[Span] = []
    is_own = False
    for span, record in look.lines(path, is_events=True):
        yield from look.pause()
        told.size = span.offset + len(span.data) + 1
        told.line_ends.add(told.size)
        event = None if record is None else _event(told, look, span, record)
        if record is None:
            told.miss(is_within=bool(begun))
        elif event is not None and not _is_of(event, thread_id, run_id):
            misplaced.append(span)
        else:
            if event is not None:
                is_own = is_own or isinstance(event.data, Run | RunStep | Message)
                numbers[span.offset] = event.number, span
            begun.append((span.offset, record))
            if not record.get("more"):
                told.take(_entry(told, look, begun, told.end, span))
                begun = []
        if not begun:
            told.end = told.size
    if misplaced and not is_own:
        return Told(is_of_another=True)
    for span in misplaced:
        look.add_line(ProblemKind.MISPLACED, span, "This event is of another run")
    for offset in sorted(_not_rising([(number, offset) for offset, (number, _) in numbers.items()])):
        wrong = "The number of this event does not rise"
        look.add_line(ProblemKind.UNORDERED_EVENTS, numbers[offset][1], wrong, Stage.LOGS)
    return told


def _event(told: Told, look: Look, span: Span, record: dict[str, Any]) -> RunEvent | None:
    if "event" not in record:
        return None
    try:
        return event_of(record, span.path, span.offset)
    except SerializationError as error:
        look.add_line(ProblemKind.DAMAGED_LINE, span, error.reason)
        told.miss(is_within=True)
        return None


def _entry(told: Told, look: Look, begun: list[tuple[int, dict[str, Any]]], start: int, last: Span) -> Entry:
    end = last.offset + len(last.data) + 1
    try:
        return entry_of(begun, start, end, last.path)
    except SerializationError as error:
        look.add_line(ProblemKind.DAMAGED_LINE, last, error.reason)
        told.miss(is_within=True)
        return entry_of([(offset, {**record, "commit": None}) for offset, record in begun], start, end, last.path)


def _is_of(event: RunEvent, thread_id: str, run_id: str) -> bool:
    match event.data:
        case Run(id=id_, thread_id=thread):
            return (thread, id_) == (thread_id, run_id)
        case RunStep() | Message():
            return (event.data.thread_id, event.data.run_id) == (thread_id, run_id)
    return True


def _not_rising(places: list[tuple[int, int]]) -> set[int]:
    """Return the offsets of the fewest lines without which the numbers rise."""
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
    for length, (number, offset) in zip(reversed(lengths), reversed(places), strict=True):
        if length == wanted and (following is None or number < following):
            wanted -= 1
            following = number
        else:
            left.add(offset)
    return left
