"""What the store costs, beside the physical limit and beside what one would take instead.

The first tables are of whole runs, from the thread's creation to the end, in eleven operations (``_script.py``): one
after the other, and 64 at once; on tmpfs and on the disk; and at both levels of durability. What is compared writes the
same records and promises as much when an operation returns, and its work is read back each time:

* at "process", nothing is synced: plain ``os`` calls, the same in C, aiofiles as its documentation has it, and SQLite
  with a write-ahead log and synchronous NORMAL, by aiosqlite and by one thread that groups what is pending;
* at "power", the plain calls sync every file and directory, also from as many threads as there are runs at once;
  SQLite has synchronous FULL. aiofiles is missing here, for its documentation knows no way to sync.

The other tables are of every operation of the store alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from _operations import every_operation
from _ours import Durability, with_store
from _plain import compiled, in_c, in_one_thread, in_threads, with_aiofiles
from _rounds import CONSOLE, Place, Table, Way, arguments, in_turn, places, write_json
from _script import SCRIPT
from _sqlite import with_aiosqlite, with_grouped_sqlite

OURS = "threadloom"
PLAIN = "os calls, one thread"
IN_C = "the same in C"
AIOFILES = "aiofiles"
AIOSQLITE = "aiosqlite"
LOCKED = "aiosqlite, a lock a transaction"
GROUPED = "sqlite3, one thread, grouped"
PROCESS = 'threadloom, "process"'

# How many times as fast we want to be, with 64 runs at once. One at a time: half as fast as the plain calls on a disk.
TO_REACH: dict[tuple[Durability, bool], dict[str, float]] = {
    ("process", True): {PLAIN: 0.7, IN_C: 0.4, AIOFILES: 8, AIOSQLITE: 6, LOCKED: 6, GROUPED: 0.8},
    ("process", False): {PLAIN: 1.3, IN_C: 0.5, AIOFILES: 5, AIOSQLITE: 5, LOCKED: 5, GROUPED: 0.5},
    ("power", False): {AIOSQLITE: 4, LOCKED: 4, GROUPED: 1.5, PROCESS: 0.75},
}


def ways(program: Path, durability: Durability, runs: int, at_once: int) -> dict[str, Way]:
    """Return what is compared at a level of durability; what is slower by much does fewer runs."""
    synced = durability == "power"
    few = max(runs // 4, at_once)
    compared: dict[str, Way] = {OURS: partial(with_store, runs=runs, at_once=at_once, durability=durability)}
    if synced:
        compared[PROCESS] = partial(with_store, runs=runs, at_once=at_once, durability="process")
    plain = few if synced else runs
    compared[PLAIN] = partial(in_one_thread, runs=plain, at_once=at_once, synced=synced)
    compared[IN_C] = partial(in_c, program, runs=plain, at_once=at_once, synced=synced)
    if synced and at_once > 1:
        compared[f"os calls, {at_once} threads"] = partial(in_threads, runs=plain, at_once=at_once, synced=synced)
    if not synced:
        compared[AIOFILES] = partial(with_aiofiles, runs=few, at_once=at_once)
    compared[AIOSQLITE] = partial(with_aiosqlite, runs=few, at_once=at_once, synced=synced, locked=False)
    if at_once > 1:
        compared[LOCKED] = partial(with_aiosqlite, runs=few, at_once=at_once, synced=synced, locked=True)
    compared[GROUPED] = partial(with_grouped_sqlite, runs=runs, at_once=at_once, synced=synced)
    return compared


def whole_runs(program: Path, place: Place, rounds: int, *, is_quick: bool) -> Iterator[Table]:
    """Measure and yield the tables of whole runs at one place."""
    for durability in ("process", "power"):
        if is_quick and durability == "power" and place.is_memory:
            continue  # nothing there outlives a power cut, so that this only tells what the journal costs
        for at_once, runs in ((64, 64),) if is_quick else ((1, 40), (64, 128)):
            to_reach = TO_REACH.get((durability, place.is_memory), {}) if at_once > 1 else {}
            if at_once == 1 and durability == "process" and not place.is_memory:
                to_reach = {PLAIN: 0.5}
            taken = in_turn(ways(program, durability, runs, at_once), place, rounds)
            yield Table(
                f'A run of {len(SCRIPT)} operations, {at_once} at once, durability "{durability}", {place.name}',
                taken,
                to_reach,
            )


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__, rounds=3)
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    tables: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory, places(options.directory) as found:
        program = compiled(Path(directory))
        for place in found:
            for table in whole_runs(program, place, rounds, is_quick=options.quick):
                table.show()
                tables.append(table.as_json())
        if not options.quick:
            for place in found:
                operations = every_operation(place, rounds)
                operations.show()
                tables.append(operations.as_json())
    CONSOLE.print(f"Medians of {rounds} rounds in turn; ratios of speed with their extremes over the rounds.")
    if options.json is not None:
        write_json(options.json, "store", tables, ["aiosqlite"])


if __name__ == "__main__":
    main()
