"""The report of a check: problems, where they are, and whether they were fixed."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen

__all__ = ["CheckReport", "Problem", "ProblemKind"]


class ProblemKind(StrEnum):
    """What kind of problem it is. A backend reports those kinds that its storage can have."""

    DAMAGED_RECORD = "damaged_record"
    """A thread, run, step or assistant cannot be read."""
    DAMAGED_LINE = "damaged_line"
    """A line in the middle of a log cannot be read."""
    TORN_LOG = "torn_log"
    """The last line or the last transaction of a log has no end."""
    NOT_A_FILE = "not_a_file"
    """A link, a FIFO, a directory or a file lies where something else belongs."""
    MISPLACED = "misplaced"
    """A record or a line says that it belongs somewhere else."""
    MISSING_RECORD = "missing_record"
    """A thread or a run has no record, or the events of a run name a step that is missing."""
    MISSING_MESSAGE = "missing_message"
    """The events of a run have a message that is not in the thread."""
    STALE_RECORD = "stale_record"
    """A record does not say what the log that it is made from says, or the log does not know of another program's."""
    LOST_EVENTS = "lost_events"
    """The events of a run are gone, or their end is."""
    UNORDERED_EVENTS = "unordered_events"
    """The number of an event does not rise."""
    UNFINALIZED_RUN = "unfinalized_run"
    """A terminal run has open steps or an open message, or its events have not ended."""
    DEAD_LEASE = "dead_lease"
    """The worker of a run is gone, and nobody has reclaimed the run."""
    WRONG_INDEX = "wrong_index"
    """The index of the queue disagrees with the runs."""
    LEFT_OVER = "left_over"
    """A process died while it wrote or deleted this."""
    STRANGE_FORMAT = "strange_format"
    """The store has a format that this version does not know."""
    NOT_CHECKED = "not_checked"
    """The system or another process did not let it be read."""


@frozen
class Problem:
    """One problem of a store.

    kind: what kind of problem it is.
    where: the place, as the backend names it: a path from the root of the store, or a thread and a run.
    description: the problem, and what a fix does about it, as a sentence.
    is_fixed: whether a fix has repaired it.
    """

    kind: ProblemKind
    where: str
    description: str
    is_fixed: bool = False


@frozen
class CheckReport:
    """The report of a check.

    problems: in the order in which they were found.
    thread_count: how many threads were checked.
    """

    problems: tuple[Problem, ...]
    thread_count: int

    @property
    def left(self) -> tuple[Problem, ...]:
        """The problems that are not fixed."""
        return tuple(problem for problem in self.problems if not problem.is_fixed)

    @property
    def is_clean(self) -> bool:
        """Whether no problem is left."""
        return not self.left
