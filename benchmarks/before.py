"""What threadloom is now, beside what it was at commit ea744ed, which is taken out of git into a temporary directory.

Both versions do the work of ``_before_work.py``, each turn in a new process: now, before, before, now, and so on.
Each row has the medians of the rounds, and the ratios of neighbours, median and extremes: above 1, today's is faster,
or takes less of the processor. What is measured, by ``--rows``:

* store: whole runs of eleven operations from files, as in ``store.py``; memory: the same from a ``MemoryStore``;
* worker: runs that do nothing, queued before, by a worker; and as in ``worker.py``, beside other queues;
* streaming: words from ``ctx.message()`` to a reader, as in ``streaming.py``;
* calls: of the system, for a whole run and for a streamed word;
* growth: single calls in a store of some thousands, made by the version that is measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _before_calls import CallsTable, Counting
from _before_program import COMMIT, NOW, Comparison, Trees, Work
from _rounds import CONSOLE, Place, Table, Turn, Way, arguments, in_turn, places, write_json
from _turns import Fresh, Peer, address, missing, servers, take_turn
from rich.markup import escape
from worker import PEERS

HERE = Path(__file__).resolve().parent
BESIDE = ("arq", "saq", "pgqueuer")
ROWS = ("store", "memory", "worker", "streaming", "calls", "growth")

Found = Mapping[str, Fresh | str]
AnyTable = Comparison | CallsTable | Table


@dataclass(frozen=True)
class Bench:
    """What is compared, and where; each method measures the tables of that name."""

    trees: Trees
    places: Sequence[Place]
    rounds: int
    is_quick: bool

    def store(self) -> Iterator[AnyTable]:
        """Measure whole runs from files."""
        table = Comparison("A run of 11 operations, FileStore")
        for place in self.places:
            for durability in ("process", "power"):
                if durability == "power" and place.is_memory and self.is_quick:
                    continue  # nothing there outlives a power cut
                table.add(self._whole_runs(durability, place.name), self.trees, place, self.rounds)
        yield table

    def memory(self) -> Iterator[AnyTable]:
        """Measure whole runs from memory."""
        table = Comparison("A run of 11 operations, MemoryStore")
        table.add(self._whole_runs("", ""), self.trees, self.places[0], self.rounds)
        yield table

    def _whole_runs(self, durability: str, where: str) -> Iterator[Work]:
        for at_once, runs in ((64, 64), (1, 20)) if self.is_quick else ((64, 128), (1, 40)):
            name = ", ".join(filter(None, (f"{at_once} at once", durability, where)))
            yield Work(name, "whole", (durability, runs, at_once), in_memory=not durability)

    def worker(self) -> Iterator[AnyTable]:
        """Measure a worker, alone and beside others."""
        table = Comparison("A worker, ten at once, runs that do nothing and were queued before", "runs")
        runs = 200 if self.is_quick else 600
        for place in self.places:
            for durability in ("process",) if place.is_memory else ("process", "power"):
                work = Work(f"{durability}, {place.name}", "noops", (durability, runs))
                table.add([work], self.trees, place, self.rounds)
        yield table
        place = self.places[0]
        with servers(place.directory.parent) as found:  # the place itself is closed to their user
            taken = in_turn(self._queues(found, 200 if self.is_quick else 600), place, max(1, self.rounds // 2))
        title = f'A worker, ten at once, runs that do nothing, queued by another process, "process", {place.name}'
        yield Table(title, taken, counted="runs")

    def _queues(self, found: Found, runs: int) -> dict[str, Way]:
        ways: dict[str, Way] = {
            version: partial(one_queue, Peer("threadloom"), found, runs, PYTHONPATH=f"{tree}/src{os.pathsep}{HERE}")
            for version, tree in self.trees.items()
        }
        for peer in (peer for peer in PEERS if peer.is_everywhere and peer.module in BESIDE):
            if why := missing(peer, found[peer.server], "process"):
                CONSOLE.print(f"{peer.name} is left out: {escape(why)}")
            else:
                ways[peer.name] = partial(one_queue, peer, found, runs)
        return ways

    def streaming(self) -> Iterator[AnyTable]:
        """Measure words a second."""
        for place in self.places[:1] if self.is_quick else self.places:
            for durability in ("process",) if place.is_memory else ("process", "power"):
                table = Comparison(f'Words through ctx.message() to a reader, "{durability}", {place.name}', "words")
                table.add(self._streams(durability), self.trees, place, self.rounds)
                yield table
        table = Comparison("Words through ctx.message() to a reader, MemoryStore", "words")
        table.add(self._streams(""), self.trees, self.places[0], self.rounds)
        yield table

    def _streams(self, durability: str) -> Iterator[Work]:
        sizes = ((1, 100), (30, 10)) if self.is_quick else ((1, 400), (100, 20))
        for turn, where in STREAMS if durability else STREAMS[:1]:
            for runs, words in sizes:
                name = f"{runs} at once, {where} process"
                yield Work(name, turn, (durability, runs, words), in_memory=not durability)

    def calls(self) -> Iterator[AnyTable]:
        """Count calls of the system."""
        if shutil.which("strace") is None:
            CONSOLE.print("Calls are left out: strace is not installed (on Debian: apt-get install strace)")
            return
        memory, disk = self.places[0], self.places[-1]
        many = 64 if self.is_quick else 128
        runs = [
            (whole_runs("64 at once", "process", 64, many), memory),
            (whole_runs("one at a time", "process", 1, 20), memory),
            (whole_runs('64 at once, "power"', "power", 64, many), disk),
        ]
        yield CallsTable.of("Calls of the system for a run of 11 operations", runs, self.trees)
        words = [(streamed(f"reader in {where} process", turn), memory) for turn, where in STREAMS]
        yield CallsTable.of("Calls of the system for a streamed word, written and read", words, self.trees)

    def growth(self) -> Iterator[AnyTable]:
        """Measure single calls where much is kept."""
        count, place = 300 if self.is_quick else 3_000, self.places[0]
        table = Comparison(f"With {count:,} threads, as many messages in one, and ended runs in another, {place.name}")
        table.add([Work("", "growth", (count,), keeps=True)], self.trees, place, self.rounds)
        yield table


STREAMS = (("words", "the same"), ("beside", "another"))


def whole_runs(name: str, durability: str, at_once: int, runs: int) -> Counting:
    """Return what counts the calls of a whole run."""
    few, many = (Work(name, "whole", (durability, count, at_once)) for count in (runs, 2 * runs))
    return Counting(name, (runs, few), (2 * runs, many))


def streamed(name: str, turn: str) -> Counting:
    """Return what counts the calls of a streamed word, of one run alone."""
    few, many = (Work(name, turn, ("process", 1, count)) for count in (100, 300))
    return Counting(name, (100, few), (300, many))


def one_queue(peer: Peer, found: Found, runs: int, root: Path, **settings: str) -> Turn:
    """Take a turn of ``worker.py``."""
    settings |= {"BENCH_URL": address(peer, dict(found), root, "process"), "BENCH_DURABILITY": "process"}
    result = take_turn("_peer_turn.py", peer, [round(runs * peer.share), 40, 5], root, **settings)
    return Turn(1 / result["rate"], result["load"])


@contextmanager
def both_trees(this: Path) -> Iterator[Trees]:
    """Yield the tree of today, and the one of the commit in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="threadloom-before-") as directory:
        archive = subprocess.run(["git", "-C", str(HERE.parent), "archive", COMMIT], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
        yield {NOW: this, COMMIT: Path(directory)}


def chosen(text: str) -> list[str]:
    """Return the rows that ``--rows`` names."""
    names = text.split(",")
    if unknown := set(names) - set(ROWS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(ROWS)}")
    return names


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--this", type=Path, default=HERE.parent, help="the tree that is compared (default: this one)")
    parser.add_argument("--rows", type=chosen, default=list(ROWS), help=f"some of {','.join(ROWS)} (default: all)")
    options = parser.parse_args()
    rounds = min(3, options.rounds) if options.quick else options.rounds
    tables: list[dict[str, Any]] = []
    with places(options.directory) as found, both_trees(options.this.resolve()) as trees:
        bench = Bench(trees, found, rounds, options.quick)
        for name in options.rows:
            for table in getattr(bench, name)():
                table.show()
                tables.append(table.as_json())
    CONSOLE.print(f"Medians of {rounds} rounds in turn; ratios of {NOW} to {COMMIT}, with their extremes.")
    CONSOLE.print(
        f"The machine's load was {os.getloadavg()[0]:.1f} at the end: much above 1, others were at work on it."
    )
    if options.json is not None:
        write_json(options.json, "before", tables, [])


if __name__ == "__main__":
    main()
