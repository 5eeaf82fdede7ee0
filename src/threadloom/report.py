"""What a check of a store has found, and what a fix has made of it."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen

__all__ = ["CheckReport", "Problem", "ProblemKind"]


class ProblemKind(StrEnum):
    """What kind of thing is wrong."""

    DAMAGED_RECORD = "damaged_record"
    """A thread, run or step that cannot be read."""
    DAMAGED_LINE = "damaged_line"
    """A line in the middle of a log that cannot be read."""
    TORN_LOG = "torn_log"
    """A log whose last line has no end."""
    MISPLACED = "misplaced"
    """A record or line that says it belongs somewhere else."""
    MISSING_RECORD = "missing_record"
    """A thread or run without its record, or a step of which only the events tell."""
    MISSING_MESSAGE = "missing_message"
    """A message that a run has written, as its events tell, and that is not in the thread."""
    STRAY_EDIT = "stray_edit"
    """A changed or deleted message that is not in the thread."""
    LOST_EVENTS = "lost_events"
    """A run whose events are gone, or their end."""
    UNORDERED_EVENTS = "unordered_events"
    """An event whose number does not rise."""
    UNSETTLED_RUN = "unsettled_run"
    """A terminal run with open steps, or whose events do not end."""
    DEAD_LEASE = "dead_lease"
    """A run whose worker is gone, and that nobody has taken back."""
    WRONG_INDEX = "wrong_index"
    """The queue knows less than the runs say, or knows of a thread that is gone."""
    LEFT_OVER = "left_over"
    """What was being written or deleted when its process died."""
    DEAD_JOURNAL = "dead_journal"
    """What a process had promised to write when it died, and nobody has carried out."""
    STRANGE_FORMAT = "strange_format"
    """A store of a format that is not known here."""
    NOT_CHECKED = "not_checked"
    """The system or another process did not let it be looked at."""


@frozen
class Problem:
    """One thing that is wrong.

    ``path`` is where, from the root of the store on; a store that keeps no files names its objects in the same way.
    ``description`` says what is wrong, and what a fix does about it.
    """

    kind: ProblemKind
    path: str
    description: str
    is_fixed: bool = False


@frozen
class CheckReport:
    """The problems of a store, in the order in which they were found, and how many threads were looked at."""

    problems: tuple[Problem, ...]
    thread_count: int

    @property
    def left(self) -> tuple[Problem, ...]:
        """The problems that are not fixed."""
        return tuple(problem for problem in self.problems if not problem.is_fixed)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong with the store any more."""
        return not self.left
