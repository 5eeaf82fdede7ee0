"""Reads records and logs whole, and notes what is wrong: what the judges of threads and runs have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from attrs import frozen

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.ids import is_id
from threadloom.report import ProblemKind
from threadloom.stores.files import _log as log
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._opened import LogFile
from threadloom.stores.files._queue import TurnBook
from threadloom.stores.files.check._mend import Mend, Mender, Span, Stage

__all__ = ["Finding", "Pause", "Reader", "Tools"]

Pause = Generator[None, None, None]
"""Goes on for a little while with each step, so that whoever drives it may do something else in between."""

_LINES_BEFORE_A_PAUSE = 256

T = TypeVar("T")


@frozen
class Finding:
    """A problem, and how it is mended, if it can be."""

    kind: ProblemKind
    path: str
    wrong: str
    mend: Mend | None


@frozen
class Tools:
    """What a judge works with. ``is_gone`` says of the life that a worker lives by whether it is over."""

    layout: Layout
    disk: Disk
    turns: TurnBook
    mender: Mender
    is_gone: Callable[[str], bool]


class Reader:
    """Reads, and gathers in ``found`` what is wrong."""

    def __init__(self, tools: Tools) -> None:
        self.found: list[Finding] = []
        self._disk = tools.disk
        self._mender = tools.mender
        self._lines_read = 0

    def add(self, kind: ProblemKind, path: str, wrong: str, mend: Mend | None) -> None:
        """Note that something is wrong."""
        self.found.append(Finding(kind, path, wrong, mend))

    def add_line(self, kind: ProblemKind, span: Span, wrong: str, stage: Stage = Stage.DAMAGE) -> None:
        """Note that something is wrong with a line."""
        self.add(kind, span.path, f"byte {span.offset}: {wrong}", self._mender.line_aside(span, stage))

    def ids(self, directory: str) -> list[str]:
        """Return the directories in a directory whose names are ids."""
        return sorted(name for name in self._disk.subdirectories(directory) if is_id(name))

    def record(self, path: str, model: type[T], belongs: Callable[[T], bool]) -> T | None:
        """Return the record at ``path``, or none where it is missing, damaged, or that of another place."""
        try:
            data = self._disk.read(path)
        except FileNotFoundError:
            return None
        try:
            record = codec.decode(data, model, path)
        except SerializationError as error:
            self.add(ProblemKind.DAMAGED_RECORD, path, error.reason, self._mender.aside(path, data))
            return None
        if not belongs(record):
            wrong = "it is the record of another place"
            self.add(ProblemKind.MISPLACED, path, wrong, self._mender.aside(path, data))
            return None
        return record

    def lines(self, path: str, read: Callable[[dict[str, Any], int], T]) -> Iterator[tuple[Span, T | None]]:
        """Yield the lines of a log with what ``read`` makes of each, none where there is something that says nothing.

        An empty line was never anything. One of spaces was something once, and so was a last line without its end.
        """
        try:
            file = LogFile(path)
        except FileNotFoundError:
            return
        with file:
            size = file.size  # as it is now: others may append while the lines are read
            is_torn = size > 0 and file.read_at(size - 1, 1) != b"\n"
            end = log.end_of_lines(file)
            for offset, line in log.lines(file, 0, end):
                if line:
                    span = Span(path, offset, line)
                    yield span, self._item(span, read)
            if is_torn:
                self.add(ProblemKind.TORN_LOG, path, f"byte {end}: the last line has no end", self._mender.tail(path))
                yield Span(path, end, b""), None

    def spans(self, path: str) -> Iterator[Span]:
        """Yield the whole lines of a log once more."""
        with LogFile(path) as file:
            for offset, line in log.lines(file, 0, log.end_of_lines(file)):
                yield Span(path, offset, line)

    def _item(self, span: Span, read: Callable[[dict[str, Any], int], T]) -> T | None:
        record = log.parsed(span.path, (span.offset, span.data))
        if record is None:
            return None
        try:
            if isinstance(record, SerializationError):
                raise record
            return read(record, span.offset)
        except SerializationError as error:
            self.add_line(ProblemKind.DAMAGED_LINE, span, error.reason)
            return None

    def pause(self) -> Pause:
        """Let whoever drives this do something else, once in a while."""
        self._lines_read += 1
        if self._lines_read % _LINES_BEFORE_A_PAUSE == 0:
            yield
