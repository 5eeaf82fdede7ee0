"""Words a second from a handler to a reader, and how long the first word of a run takes to a client of the server.

The reader follows the run's events, in the worker's process or in another one, with one run and with 100 at once. At
"power" a message is synced when it ends; its words are not. The peers:

* ``asyncio.Queue`` is what handing words from task to task costs at the least: it stores nothing, and knows one
  process only.
* Redis streams, by XADD and XREAD with BLOCK, keep the words for whoever reads later, in any process; the log is synced
  each second, as by Redis's defaults. Its publish and subscribe is no peer: a reader that was cut off misses words.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from _first_words import first_words
from _rounds import CONSOLE, Place, Table, Turn, Way, arguments, in_turn, places, write_json
from _servers import MissingError, Redis, redis
from _words import KEEPING, InQueues, Size, Writer, be_writer, in_memory, in_one_process, in_two_processes

SIZES, SIZES_QUICK = (Size(1, 200), Size(100, 10)), (Size(30, 10),)


def ways(size: Size, place: Place, server: Redis | None, writer: Writer | None) -> dict[str, Way]:
    """Return what is compared at a place, in one process or with a writer in another one."""

    def by(name: str, *where: str) -> Turn:
        if writer is not None:
            return in_two_processes(writer, name, where, size)
        return in_one_process(partial(KEEPING[name], *where), size)

    compared: dict[str, Way] = {
        "threadloom": lambda root: by("files", str(root), "process"),
    }
    if not place.is_memory:
        compared['threadloom, "power"'] = lambda root: by("files", str(root), "power")
    if writer is None:
        compared["threadloom, MemoryStore"] = lambda _: in_one_process(in_memory, size)
        compared["asyncio.Queue"] = lambda _: in_one_process(InQueues, size)
    if server is not None:
        compared["Redis streams"] = lambda _: by("redis", server.fresh("process"))
    return compared


def throughput(place: Place, rounds: int, sizes: tuple[Size, ...]) -> Iterator[Table]:
    """Measure and yield the tables of one place."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(redis(place.directory))
        except MissingError as error:
            CONSOLE.print(f"Redis is left out: {error}")
            server = None
        beside = stack.enter_context(Writer.running(__file__))
        for writer, which in ((None, "the same process"), (beside, "another process")):
            for size in sizes:
                runs = "1 run" if size.runs == 1 else f"each of {size.runs} runs at once"
                title = f"{size.words} words of {runs}, to a reader in {which}, {place.name}"
                yield Table(title, in_turn(ways(size, place, server, writer), place, rounds), counted="words")


def main() -> None:
    """Run the benchmark and print its tables, or be the process that writes."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--writer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer:
        asyncio.run(be_writer())
        return
    rounds, sizes = (1, SIZES_QUICK) if options.quick else (options.rounds, SIZES)
    tables: list[dict[str, Any]] = []
    with places(options.directory) as found:
        for place in found[-1:] if options.quick else found:
            for table in throughput(place, rounds, sizes):
                table.show()
                tables.append(table.as_json())
        if not options.quick:
            tables.append(first_words(found[-1], rounds, runs=50))
    CONSOLE.print(f"Medians of {rounds} rounds in turn; ratios of speed with their extremes over the rounds.")
    if options.json is not None:
        write_json(options.json, "streaming", tables, ["aiohttp", "redis"])


if __name__ == "__main__":
    main()
