"""How fast a worker gets through runs that do nothing, and how long one waits to be started, beside other job queues.

One worker process with a concurrency of ten, and one process that queues. The peers take turns, each with an empty
store, as their own documentation says to use them; those that only look for work now and then also with a shorter pause
than they have by themselves. "power" is PostgreSQL with ``synchronous_commit`` and Redis with a log synced at each
command; "process" is PostgreSQL without, and Redis with a log synced each second. huey's files are never synced.
A run has waited from the moment before it was given to the queue until its handler was called, by the clock that all
processes of the machine share.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _rounds import CONSOLE, Place, Ratio, Turn, arguments, places, quantile, write_json
from _servers import Durability, commits, syncs
from _turns import Fresh, Peer, address, is_installed, missing, servers, take_turn
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

IDLE_P50_MS, IDLE_P99_MS = 3.0, 10.0
DURABILITIES: tuple[Durability, ...] = ("process", "power")


PEERS = (
    Peer("threadloom"),
    Peer("arq", "redis", share=0.5, is_everywhere=False, to_reach=1),
    Peer("arq", "redis", poll_s="0.01", to_reach=1),
    Peer("saq", "redis", to_reach=1),
    Peer("taskiq", "redis", packages=["taskiq-redis"], is_everywhere=False),
    Peer("procrastinate", "postgresql", packages=["psycopg"], share=0.5, to_reach=5),
    Peer("pgqueuer", "postgresql", packages=["asyncpg"], to_reach=1),
    Peer("dbos", "postgresql", share=0.03, is_everywhere=False, to_reach=5),
    Peer("dbos", "postgresql", poll_s="0.01", share=0.3, is_everywhere=False, to_reach=5),
    Peer("huey", has_power=False, share=0.2, is_everywhere=False),
    Peer("huey", poll_s="0.01", has_power=False, share=0.2),
)
SIZES, SIZES_QUICK = (600, 200, 30), (200, 100, 15)


@dataclass
class Row:
    """What a peer's turns came to."""

    peer: Peer
    turns: list[dict[str, Any]] = field(default_factory=list)
    left_out: str = ""

    def waited(self, how: str) -> tuple[float, float]:
        """Return the milliseconds that half of the runs, and all but one in a hundred, waited at most."""
        seconds = [second for turn in self.turns for second in turn[how]]
        return statistics.median(seconds) * 1e3, quantile(seconds, 0.99) * 1e3

    def as_turns(self) -> list[Turn]:
        """Return the turns of the batches, as ratios are made of them."""
        return [Turn(each=1 / turn["rate"], latencies=()) for turn in self.turns]


def measure(
    options: argparse.Namespace, durability: Durability, place: Place, found: dict[str, Fresh | str], *, has_all: bool
) -> list[Row]:
    """Return a row for each peer, all in turn; without those that would take long unless it ``has_all``."""
    peers = [peer for peer in PEERS if has_all or peer.is_everywhere]
    rows = [Row(peer) for peer in peers if options.only is None or peer.module in {"threadloom", *options.only}]
    rounds, (*many, single) = (1, SIZES_QUICK) if options.quick else (options.rounds, SIZES)
    for row in rows:
        row.left_out = missing(row.peer, found.get(row.peer.server, lambda _: ""), durability)
    for number in range(rounds):
        first = number % len(rows)
        for row in rows[first:] + rows[:first]:
            if row.left_out:
                continue
            directory = Path(tempfile.mkdtemp(dir=place.directory))
            url = address(row.peer, found, directory, durability)
            counted = [max(20, round(size * row.peer.share)) for size in many]
            try:
                settings = {"BENCH_URL": url, "BENCH_DURABILITY": durability}
                row.turns.append(take_turn("_peer_turn.py", row.peer, [*counted, single], directory, **settings))
            except RuntimeError as error:
                row.left_out = str(error)
    return rows


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    table = RichTable(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    headings = ("runs a second", "speed of threadloom to it", "to reach")
    for heading in (*headings, "under load: ms p50", "p99", "idle: ms p50", "p99"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.left_out:
            continue
        rates = [turn["rate"] for turn in row.turns]
        ratio, to_reach = ratio_to(rows[0], row), row.peer.to_reach
        met = "" if ratio is None or to_reach is None else f"{to_reach:g} {'✓' if ratio.median >= to_reach else '✗'}"
        waited = [f"{milliseconds:.2f}" for how in ("load", "idle") for milliseconds in row.waited(how)]
        rate = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
        table.add_row(row.peer.name, rate, "" if ratio is None else str(ratio), met, *waited)
    CONSOLE.print(table)
    for row in rows:
        if row.left_out:
            CONSOLE.print(f"{row.peer.name} is left out: {escape(row.left_out)}")
    if not rows[0].left_out:
        p50, p99 = rows[0].waited("idle")
        met = "✓" if p50 <= IDLE_P50_MS and p99 <= IDLE_P99_MS else "✗"
        CONSOLE.print(f"Idle, to reach: p50 under {IDLE_P50_MS:g} ms and p99 under {IDLE_P99_MS:g} ms {met}")


def ratio_to(ours: Row, row: Row) -> Ratio | None:
    """Return how many times as fast we are; none for ourselves, or where one is left out."""
    if row is ours or ours.left_out or row.left_out:
        return None
    return Ratio.of(ours.as_turns(), row.as_turns())


def as_json(title: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures for the JSON file, times in seconds."""
    told = []
    for row in rows:
        entry: dict[str, Any] = {"name": row.peer.name, "to_reach": row.peer.to_reach}
        if row.left_out:
            entry["left_out"] = row.left_out
        else:
            entry["rates"] = [turn["rate"] for turn in row.turns]
            for how in ("load", "idle"):
                entry[f"{how}_p50"], entry[f"{how}_p99"] = (milliseconds / 1e3 for milliseconds in row.waited(how))
            ratio = ratio_to(rows[0], row)
            entry["ratio"] = None if ratio is None else vars(ratio)
        told.append(entry)
    return {"title": title, "rows": told}


def main() -> None:
    """Print a table for each durability."""
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--only", nargs="+", metavar="PEER", help="only these beside threadloom")
    options = parser.parse_args()
    tables = []
    with places(options.directory.resolve()) as found:
        for place in found[-1:] if options.quick else found:
            with servers(place.directory.parent) as running:  # the place itself is closed to their user
                for durability in DURABILITIES:
                    if durability == "power" and (place.is_memory or options.quick):
                        continue  # nothing there outlives a power cut
                    has_all = durability == "process" and not place.is_memory and not options.quick
                    rows = measure(options, durability, place, running, has_all=has_all)
                    title = (
                        f'Worker, runs that do nothing, "{durability}", {place.name}: PostgreSQL with'
                        f" synchronous_commit={commits(durability)}, Redis with appendfsync={syncs(durability)}"
                    )
                    show(title, rows)
                    tables.append(as_json(title, rows))
    if options.json:
        packages = {name for peer in PEERS for name in (peer.module, *peer.packages)}
        write_json(options.json, "worker", tables, sorted(name for name in packages if is_installed(name)))


if __name__ == "__main__":
    main()
