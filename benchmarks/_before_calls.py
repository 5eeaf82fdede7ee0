"""How many calls of the system both versions make for one thing done.

Each thing is done so many times, and then more times: the difference is divided, so that neither the start of Python
nor the opening and closing of the store counts. ``strace`` names the calls, and makes each of them slow, by which more
or less may be done together; ``perf``, where the kernel lets it count, slows nothing, and knows only their sum.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _before_program import Program, Trees, Work
from _rounds import CONSOLE, Place
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

ALL, BY_PERF, OF_FILES = "all", "all, by perf", "of the store's files"
LEAST = 0.05  # for a thing done, below which a call gets no row
BEGIN, END = "/threadloom-bench/begin", "/threadloom-bench/end"
CALL = re.compile(r"\d+ +(\w+)\(")
EVENT = "raw_syscalls:sys_enter"

Calls = dict[str, float]


@dataclass(frozen=True)
class Counting:
    """Two sizes of a work, with how often each does the thing that is counted."""

    name: str
    few: tuple[int, Work]
    many: tuple[int, Work]

    @property
    def units(self) -> int:
        """How much more often the larger one does it."""
        return self.many[0] - self.few[0]

    def count(self, version: str, tree: Path, place: Place) -> Calls:
        """Return the calls for each, of all kinds."""
        with tempfile.TemporaryDirectory(dir=place.directory) as directory:
            calls = self._by_strace(version, tree, Path(directory))
            if may_count():
                few, many = (self._by_perf(version, tree, Path(directory), work) for _, work in (self.few, self.many))
                calls[BY_PERF] = (many - few) / self.units
        return calls

    def _by_strace(self, version: str, tree: Path, directory: Path) -> Calls:
        log, root = directory / "strace", directory / "root"
        root.mkdir()
        with Program.running(version, tree, "strace", "-f", "-y", "-o", str(log)) as program:
            for number, (_, work) in enumerate((self.few, self.few, self.many)):
                work.by(program, root / str(number))
        _, few, many = windows(log, str(root))  # the first one warms up
        return {name: (many[name] - few[name]) / self.units for name in few | many}

    def _by_perf(self, version: str, tree: Path, directory: Path, work: Work) -> int:
        with tempfile.TemporaryDirectory(dir=directory) as inner:
            output, root = Path(inner) / "perf", Path(inner) / "root"
            with Program.running(version, tree, *perf(output)) as program:
                work.by(program, root)
            return counted(output)


def windows(log: Path, root: str) -> Iterator[Counter[str]]:
    """Yield the calls in each turn of a log, in which ``root`` is the store's; a turn may be of two processes."""
    calls: Counter[str] = Counter()
    open_ends = 0
    with log.open(errors="replace") as lines:
        for line in lines:
            if BEGIN in line:
                open_ends += 1
            elif END in line:
                open_ends -= 1
                if not open_ends:
                    yield calls
                    calls = Counter()
            elif open_ends and (call := CALL.match(line)):
                calls[call[1]] += 1
                calls[ALL] += 1
                calls[OF_FILES] += root in line


def perf(output: Path) -> list[str]:
    """Return the command that counts all calls of another one."""
    return ["perf", "stat", "-x", ",", "-e", EVENT, "-o", str(output), "--"]


def counted(output: Path) -> int:
    """Return what it has counted."""
    (line,) = (line for line in output.read_text().splitlines() if EVENT in line)
    return int(line.partition(",")[0])


def may_count() -> bool:
    """Whether ``perf`` is here, and may count calls."""
    if shutil.which("perf") is None:
        return False
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "perf"
        done = subprocess.run([*perf(output), "true"], check=False, capture_output=True)
        return done.returncode == 0 and "<not" not in output.read_text()


@dataclass(frozen=True)
class CallsTable:
    """The calls of both versions, for each thing that is counted."""

    title: str
    calls: dict[str, dict[str, Calls]]

    @classmethod
    def of(cls, title: str, countings: Sequence[tuple[Counting, Place]], trees: Trees) -> CallsTable:
        """Count."""
        return cls(
            title,
            {
                counting.name: {version: counting.count(version, tree, place) for version, tree in trees.items()}
                for counting, place in countings
            },
        )

    def names(self) -> list[str]:
        """Return the calls that are often made, sums first."""
        most: Counter[str] = Counter()
        for versions in self.calls.values():
            for calls in versions.values():
                for name, number in calls.items():
                    most[name] = max(most[name], number)  # type: ignore[assignment] # a part of a call
        sums = [name for name in (ALL, BY_PERF, OF_FILES) if name in most]
        return sums + [name for name, number in most.most_common() if number >= LEAST and name not in sums]

    def show(self) -> None:
        """Print the table."""
        table = RichTable(title=escape(self.title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("", no_wrap=True)
        for what, versions in self.calls.items():
            for number, version in enumerate(versions):
                table.add_column(f"{what}\n{version}" if not number else f"\n{version}", justify="right")
        for name in self.names():
            figures = [calls.get(name, 0.0) for versions in self.calls.values() for calls in versions.values()]
            table.add_row(name, *(f"{figure:.1f}" if abs(figure) >= LEAST else "" for figure in figures))
        CONSOLE.print(table)

    def as_json(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        return {"title": self.title, "calls": self.calls}
