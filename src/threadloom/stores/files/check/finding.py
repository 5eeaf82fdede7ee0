"""What a check finds wrong, how a fix repairs it, and how records and logs are read so that damage hides nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Final, TypeVar

from attrs import field, frozen

from threadloom import codec
from threadloom.check_report import Problem, ProblemKind
from threadloom.errors import SerializationError
from threadloom.ids import is_id
from threadloom.stores.files.check.repairs import Span, set_aside
from threadloom.stores.files.disk import Disk, read_at
from threadloom.stores.files.log_lines import end_of_lines, lines, parsed

__all__ = ["Finding", "Look", "Repair", "Stage"]

T = TypeVar("T")

_LINES_PER_SLICE: Final = 256
_EVENT_LEVELS: Final = codec.MOST_LEVELS + 8  # an event has a record in it


class Stage(IntEnum):
    """What is repaired first. Whatever comes later is looked at again before."""

    DAMAGE = 0
    RECORDS = 1
    LOGS = 2
    RUNS = 3
    INDEX = 4


@frozen
class Repair:
    """What a fix does.

    stage: when, compared with the other repairs of a thread.
    remedy: what it does, as the end of the sentence "A fix …".
    do: does it, with the ``Repairs`` of a thread under its lock; with None for what is in no thread.
    """

    stage: Stage
    remedy: str
    do: Callable[[Any], object]


@frozen
class Finding:
    """Something wrong.

    kind: what kind of problem it is.
    path: where, relative to the root.
    wrong: the problem, as a sentence without its end.
    repair: how a fix repairs it; None where somebody has to look at it.
    """

    kind: ProblemKind
    path: str
    wrong: str
    repair: Repair | None = field(default=None, eq=False)

    def problem(self, *, is_fixed: bool = False, error: Exception | None = None) -> Problem:
        """Return what the report says of it."""
        remedy = "Somebody has to look at it."
        if error is not None:
            remedy = f"It could not be repaired: {str(error).rstrip('.')}."
        elif self.repair is not None:
            remedy = f"A fix {self.repair.remedy}."
        return Problem(self.kind, self.path, f"{self.wrong}. {remedy}", is_fixed)


class Look:
    """Reads what lies below the root, and gathers its problems in ``found``."""

    def __init__(self, disk: Disk) -> None:
        self.found: list[Finding] = []
        self._disk = disk
        self._lines_read = 0

    def add(self, kind: ProblemKind, path: str, wrong: str, repair: Repair | None = None) -> None:
        """Note that something is wrong."""
        self.found.append(Finding(kind, path, wrong, repair))

    def is_unread(self, path: str) -> bool:
        """Return whether what lies at ``path`` could not be read, so that nobody knows what is in it."""
        unread = {ProblemKind.NOT_A_FILE, ProblemKind.NOT_CHECKED}
        return any(finding.path == path and finding.kind in unread for finding in self.found)

    def add_line(self, kind: ProblemKind, span: Span, wrong: str, stage: Stage = Stage.DAMAGE) -> None:
        """Note that something is wrong with a line."""
        remedy = "copies the line to .threadloom/damaged, and puts spaces in its place"
        repair = Repair(stage, remedy, lambda repairs: repairs.blank(span))
        self.add(kind, span.path, f"Byte {span.offset}: {wrong}", repair)

    def pause(self) -> Iterator[None]:
        """Let others go on once in a while."""
        self._lines_read += 1
        if self._lines_read % _LINES_PER_SLICE == 0:
            yield

    def is_file(self, path: str) -> bool:
        """Return whether a regular file lies at ``path``; note what else does."""
        return self._is(path, stat.S_ISREG, "file")

    def is_directory(self, path: str) -> bool:
        """Return whether a directory lies at ``path``; note what else does."""
        return self._is(path, stat.S_ISDIR, "directory")

    def _is(self, path: str, is_right: Callable[[int], bool], right: str) -> bool:
        try:
            mode = os.lstat(self._disk.where(path)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._not_read(path, error)
            return False
        if is_right(mode):
            return True
        advice = f"Move it away, or put a {right} here"
        if stat.S_ISLNK(mode):
            advice = f"Links are not followed: move the {right} itself here"
        self.add(ProblemKind.NOT_A_FILE, path, f"A {right} belongs here, and this is {_name_of(mode)}. {advice}")
        return False

    def _not_read(self, path: str, error: OSError) -> None:
        self.add(ProblemKind.NOT_CHECKED, path, f"It cannot be read: {error.strerror or error}")

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted; none where there is no directory."""
        if not self.is_directory(path):
            return []
        try:
            return sorted(self._disk.names(path))
        except OSError as error:
            self._not_read(path, error)
            return []

    def directories(self, path: str) -> list[str]:
        """Return the directories in a directory whose names are ids, and note links in the place of one."""
        return [name for name in self.names(path) if is_id(name) and self._is_directory_or_link(path, name)]

    def _is_directory_or_link(self, path: str, name: str) -> bool:
        where = f"{path}/{name}".removeprefix("./")
        if os.path.isfile(self._disk.where(where)) and not os.path.islink(self._disk.where(where)):
            return False  # a file beside the directories is none of ours
        return self.is_directory(where)

    def read(self, path: str) -> bytes | None:
        """Return what a file holds, None where there is none or it cannot be read."""
        if not self.is_file(path):
            return None
        try:
            return self._disk.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._not_read(path, error)
            return None

    def record(self, path: str, kind: type[T] | Callable[[bytes, str], T], belongs: Callable[[T], bool]) -> T | None:
        """Return the record at ``path``, None where it is missing, damaged, or that of another place.

        ``kind`` is its model, or a function that decodes it.
        """
        data = self.read(path)
        if data is None:
            return None
        remedy = "moves it to .threadloom/damaged"
        repair = Repair(Stage.DAMAGE, remedy, lambda _: set_aside(self._disk, path, data))
        try:
            record = codec.decode(data, kind, path) if isinstance(kind, type) else kind(data, path)
        except SerializationError as error:
            self.add(ProblemKind.DAMAGED_RECORD, path, _sentence(error.reason), repair)
            return None
        if not belongs(record):
            self.add(ProblemKind.MISPLACED, path, "Its ids are those of another place", repair)
            return None
        return record

    def lines(self, path: str, *, is_events: bool = False) -> Iterator[tuple[Span, dict[str, Any] | None]]:
        """Yield the whole lines of a log but empty ones, each with its object, None where it is damaged or all spaces.

        In those of ``is_events``, NULs in front of a line are passed over: a power failure may leave them.
        """
        if not self.is_file(path):
            return
        try:
            fd, found = self._disk.open(path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._not_read(path, error)
            return
        try:
            for offset, data in lines(fd, 0, end_of_lines(fd, found.st_size)):
                text = data.rpartition(b"\0")[2] if is_events else data
                if not text:
                    continue
                span = Span(path, offset, data)
                record = parsed(path, (offset, text), _EVENT_LEVELS if is_events else codec.MOST_LEVELS)
                if isinstance(record, SerializationError):
                    self.add_line(ProblemKind.DAMAGED_LINE, span, _sentence(record.reason))
                    record = None
                yield span, record
        finally:
            os.close(fd)

    def torn_end(self, path: str) -> Span | None:
        """Return the last line of a log where it has no end."""
        try:
            fd, found = self._disk.open(path)
        except (OSError, SerializationError):
            return None
        try:
            end = end_of_lines(fd, found.st_size)
            return Span(path, end, read_at(fd, end, found.st_size - end)) if end < found.st_size else None
        finally:
            os.close(fd)


def _name_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISREG(mode):
        return "a file"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device or a socket"


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:].rstrip(".")
