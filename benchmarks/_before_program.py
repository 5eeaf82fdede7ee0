"""Processes of ``_before_work.py``, each with one version of threadloom, and the table of what they took in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from _rounds import CONSOLE, Place, Ratio, Turn, in_turn
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

COMMIT = "ea744ed"
NOW = "now"
WORK = Path(__file__).with_name("_before_work.py")

Figures = dict[str, tuple[float, float]]
Trees = Mapping[str, Path]


class Program:
    """A process that takes one turn after another."""

    def __init__(self, version: str, process: subprocess.Popen[str]) -> None:
        self.version = version
        self._process = process

    @classmethod
    @contextmanager
    def running(cls, version: str, tree: Path, *under: str) -> Iterator[Self]:
        """Run it with the threadloom of a tree, ``under`` another program if one is named; it ends with its input."""
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        command = [*under, sys.executable, str(WORK)]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            program = cls(version, process)
            found = program.answer()
            if not Path(found).is_relative_to(tree):
                raise RuntimeError(f"{found} is not the threadloom of {tree}")
            yield program

    def take(self, turn: str, *about: str | int) -> Figures:
        """Have it take a turn; return the seconds of the clock, and those of the processor, for each of its rows."""
        print(json.dumps([turn, *about]), file=self._process.stdin, flush=True)
        return {row: (wall, cpu) for row, (wall, cpu) in self.answer().items()}

    def answer(self) -> Any:
        """Return its next line."""
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise RuntimeError("a turn failed, and has said above why")
        return json.loads(line)


@dataclass(frozen=True)
class Work:
    """A turn of ``_before_work.py`` and its arguments, under the name of its row; it may have rows of its own.

    Where it ``keeps``, each version finds what it has made in the round before.
    """

    name: str
    turn: str
    about: Sequence[str | int]
    in_memory: bool = False
    keeps: bool = False

    def by(self, program: Program, root: Path) -> Figures:
        """Have it done."""
        if self.keeps:
            root = root.parents[1] / f"kept-{program.version}"
        return program.take(self.turn, "" if self.in_memory else str(root), *self.about)

    def afresh(self, version: str, tree: Path, root: Path) -> Figures:
        """Have it done by a new process, once to warm up and a second time to be counted.

        Of one that stays for all rounds, what chance gave it at its start would be taken for the version's.
        """
        with Program.running(version, tree) as program:
            self.by(program, root / "warm")
            os.sync()
            return self.by(program, root / "counted")


@dataclass
class Comparison:
    """A table of what both versions took in turn; what is ``counted`` is given per second, in place of its time."""

    title: str
    counted: str = ""
    taken: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)

    def add(self, works: Iterable[Work], trees: Trees, place: Place, rounds: int) -> None:
        """Measure rows."""
        for work in works:
            ways = {version: partial(work.afresh, version, tree) for version, tree in trees.items()}
            for version, turns in in_turn(ways, place, rounds).items():
                for row in turns[0]:
                    taken = self.taken.setdefault(row or work.name, {})
                    taken[version] = [figures[row] for figures in turns]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the figures of each row, times in seconds."""
        for name, taken in self.taken.items():
            row: dict[str, Any] = {"name": name}
            for which, kind in enumerate(("wall", "cpu")):
                turns = {version: [Turn(figures[which], ()) for figures in rounds] for version, rounds in taken.items()}
                row[kind] = {version: statistics.median(turn.each for turn in of) for version, of in turns.items()}
                row[f"{kind}_ratio"] = Ratio.of(turns[NOW], turns[COMMIT])
            yield row

    def show(self) -> None:
        """Print the table."""
        table = RichTable(title=escape(self.title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("", no_wrap=True)
        unit = f"{self.counted}/s" if self.counted else "µs each"
        for above, ratio in ((unit, "times as fast"), ("CPU, µs", "times as little")):
            for heading in (f"{above}\n{NOW}", f"\n{COMMIT}", f"\n{ratio}"):
                table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows():
            walls = [f"{1 / wall if self.counted else wall * 1e6:,.0f}" for wall in row["wall"].values()]
            cpus = [f"{cpu * 1e6:,.0f}" for cpu in row["cpu"].values()]
            table.add_row(escape(row["name"]), *walls, str(row["wall_ratio"]), *cpus, str(row["cpu_ratio"]))
        CONSOLE.print(table)

    def as_json(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        rows = [row | {key: vars(row[key]) for key in ("wall_ratio", "cpu_ratio")} for row in self.rows()]
        return {"title": self.title, "rows": rows}
