"""What all benchmarks share: ways that take turns in rounds of one run, the tables of them, and the JSON file.

A machine's speed drifts by a factor of two from minute to minute. So the ways of a table take turns, each round begins
with another of them, and ratios are those of neighbours: one ratio a round, of which the median and the extremes are
told. The first round warms up and is not counted.

Every turn has a new directory, and begins with a ``sync`` and a collection of garbage outside of what is timed, so that
none pays for what the one before it has left. On a disk the directories are removed at the very end: ext4 makes new
files slowly for seconds after others were deleted. On tmpfs, which is memory, they are removed after each turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

TMPFS = Path("/dev/shm")  # noqa: S108 - where Linux has its tmpfs; what is made there has a random name
CONSOLE = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Turn:
    """What one way took in one round: seconds of the clock for each thing done, and how long each took by itself.

    The two differ where many are done at once.
    """

    each: float
    latencies: Sequence[float]


Way = Callable[[Path], Turn]

N = TypeVar("N", bound=str)
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where the files go: a name for the tables, and a directory of the benchmark's own."""

    name: str
    directory: Path

    @property
    def is_memory(self) -> bool:
        """Whether nothing here reaches a disk."""
        return file_system(self.directory) == "tmpfs"


@contextmanager
def places(disk: Path) -> Iterator[list[Place]]:
    """Yield the tmpfs, where there is one, and the disk that ``disk`` is on; remove what was written, at the end."""
    with tempfile.TemporaryDirectory(dir=disk, prefix="bench-") as on_disk:
        found = [Place(f"disk ({file_system(disk)})", Path(on_disk))]
        if file_system(TMPFS) != "tmpfs":
            yield found
            return
        with tempfile.TemporaryDirectory(dir=TMPFS, prefix="bench-") as in_memory:
            yield [Place("tmpfs", Path(in_memory)), *found]


def file_system(path: Path) -> str:
    """Return what kind of file system ``path`` is on."""
    path = path.resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(mount), kind) for mount, kind in mounts if path.is_relative_to(mount)]
    return max(above, default=(0, "unknown"))[1]


def in_turn(ways: Mapping[N, Callable[[Path], T]], place: Place, rounds: int) -> dict[N, list[T]]:
    """Return what each way took in each round, after one that warms up."""
    taken: dict[N, list[T]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            root = Path(tempfile.mkdtemp(dir=place.directory))
            os.sync()
            gc.collect()
            turn = ways[name](root)
            if number:
                taken[name].append(turn)
            if place.is_memory:
                shutil.rmtree(root)
    return taken


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest of ``values`` that is at least as large as ``share`` of them."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one way is as another: the median of the rounds, and the extremes."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ours: Sequence[Turn], theirs: Sequence[Turn]) -> Ratio:
        """Compare turns of the same rounds."""
        ratios = [their.each / our.each for our, their in zip(ours, theirs, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


@dataclass(frozen=True)
class Table:
    """Rows that took turns; the first is ours, and is compared with each of the others.

    ``to_reach`` are the ratios that we want, by row. What is ``counted`` is told by the second, in place of its time.
    """

    title: str
    taken: Mapping[str, Sequence[Turn]]
    to_reach: Mapping[str, float] = field(default_factory=dict)
    counted: str = ""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the figures of each row, times in seconds."""
        ours = next(iter(self.taken))
        for name, turns in self.taken.items():
            latencies = [latency for turn in turns for latency in turn.latencies]
            row = {
                "name": name,
                "each": statistics.median(turn.each for turn in turns),
                "p50": statistics.median(latencies),
                "p99": quantile(latencies, 0.99),
                "counted": len(latencies),
            }
            if name != ours:
                row["ratio"] = Ratio.of(self.taken[ours], turns)
                row["to_reach"] = self.to_reach.get(name)
            yield row

    def show(self) -> None:
        """Print the table."""
        ours = next(iter(self.taken))
        table = RichTable(title=escape(self.title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("")
        speed = f"{self.counted} a second" if self.counted else "µs each"
        for heading in (speed, "one takes: ms", "p99", f"{ours}: times as fast", "to reach"):
            table.add_column(heading, justify="right")
        for row in self.rows():
            ratio, to_reach = row.get("ratio"), row.get("to_reach")
            met = (
                "" if ratio is None or to_reach is None else f"{to_reach:g} {'✓' if ratio.median >= to_reach else '✗'}"
            )
            each = 1 / row["each"] if self.counted else row["each"] * 1e6
            times = (f"{each:.0f}", f"{row['p50'] * 1e3:.2f}", f"{row['p99'] * 1e3:.2f}")
            table.add_row(escape(row["name"]), *times, "" if ratio is None else str(ratio), met)
        CONSOLE.print(table)

    def as_json(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        return {
            "title": self.title,
            "rows": [row | ({"ratio": vars(row["ratio"])} if "ratio" in row else {}) for row in self.rows()],
        }


def arguments(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="the disk to write on (default: here)")
    parser.add_argument("--rounds", type=int, default=rounds, help="in turn, after one that warms up (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few rounds, and of the main tables only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, beside those of others")
    return parser


def write_json(file: Path, benchmark: str, tables: Iterable[Mapping[str, Any]], packages: Iterable[str]) -> None:
    """Write one benchmark's figures, with the machine and the versions; those of other benchmarks in the file stay."""
    document = json.loads(file.read_text()) if file.exists() else {}
    document[benchmark] = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(packages),
        "tables": list(tables),
    }
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "system": platform.platform(),
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, SQLite and the packages."""
    names = ["threadloom", "aiofiles", "attrs", "cattrs", "orjson", *packages]
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in names},
    }
