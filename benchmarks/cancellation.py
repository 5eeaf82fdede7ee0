"""How long a handler goes on after its run was cancelled in another process, and what an idle worker costs.

The time begins before the call of ``force_update_run_status`` and ends with the handler's ``CancelledError``, by the
clock that all processes of the machine share. One run is cancelled after another while so many are active, and each is
replaced by a new one. The processor time of the idle worker is what the kernel has counted for all its threads.

The peers are those that can cancel what is running, each in the way that it documents: arq by ``abort``, with a worker
that has ``allow_abort_jobs``; SAQ by ``abort``; procrastinate by ``cancel_job_by_id_async(abort=True)``; pgqueuer by
``mark_job_as_cancelled``, in the job's scope; DBOS by ``cancel_workflow``, in a preemptible step.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _rounds import CONSOLE, Ratio, Turn, arguments, file_system, quantile, write_json
from _servers import Durability
from _turns import Fresh, Peer, address, is_installed, missing, servers, take_turn
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from threadloom import FileStore, Run, Thread

TO_REACH_MS = 10.0
IDLE_TO_REACH = 0.001
SAMPLES = 100
COMPARED_AT = 100  # active runs

OURS = Peer("threadloom")
PEERS = (
    Peer("arq", "redis"),
    Peer("arq", "redis", poll_s="0.01"),
    Peer("saq", "redis"),
    Peer("procrastinate", "postgresql", packages=["psycopg"]),
    Peer("pgqueuer", "postgresql", packages=["asyncpg"]),
    Peer("dbos", "postgresql", poll_s="0.01"),
)


@dataclass
class Row:
    """What the turns of a peer came to, with so many active runs."""

    peer: Peer
    durability: Durability
    active: int
    turns: list[Turn] = field(default_factory=list)
    left_out: str = ""

    @property
    def name(self) -> str:
        """The row's name."""
        return f'{self.peer.name}, "{self.durability}", {self.active} active'

    def as_json(self, to: Row | None) -> dict[str, Any]:
        """Return the figures, times in seconds, and how many times as fast ``to`` is."""
        if self.left_out:
            return {"name": self.name, "left_out": self.left_out}
        seconds = [second for turn in self.turns for second in turn.latencies]
        ratio = None if to is None or to.left_out else Ratio.of(to.turns, self.turns)
        return {
            "name": self.name,
            "p50": statistics.median(seconds),
            "p99": quantile(seconds, 0.99),
            "most": max(seconds),
            "counted": len(seconds),
            "ratio": ratio,
        }


def measure(rows: list[Row], found: dict[str, Fresh | str], places: Path, rounds: int) -> None:
    """Give each row its turns, all in turn."""
    for row in rows:
        row.left_out = missing(row.peer, found.get(row.peer.server, lambda _: ""), row.durability)
    for number in range(rounds):
        first = number % len(rows)
        for row in rows[first:] + rows[:first]:
            if row.left_out:
                continue
            place = Path(tempfile.mkdtemp(dir=places))
            settings = {
                "BENCH_URL": address(row.peer, found, place, row.durability),
                "BENCH_DURABILITY": row.durability,
                "BENCH_CONCURRENCY": str(row.active + 1),
                "BENCH_CANCELS": "yes",
            }
            try:
                seconds = take_turn("_cancel_turn.py", row.peer, [row.active, SAMPLES], place, **settings)
            except RuntimeError as error:
                row.left_out = str(error)
            else:
                row.turns.append(Turn(statistics.median(seconds), seconds))


async def idle_share(place: Path, seconds: float) -> float:
    """Return the share of a processor that a worker takes that has done a run and has nothing more to do."""
    notes = place / "notes"
    notes.touch()
    about = {"BENCH_URL": str(place / "store"), "BENCH_NOTES": str(notes)}
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "--",
        sys.executable,
        str(Path(__file__).with_name("_peers_threadloom.py")),
    ]
    async with FileStore(place / "store", durability="process") as store:
        thread = await store.create_thread(Thread.new())
        run = Run.new(thread.id, model="any", metadata={"number": "0", "queued_ns": "0"})
        await store.create_run(thread.id, run)
        with subprocess.Popen(command, env={**os.environ, **about}) as worker:
            try:
                await store.wait_for_run(thread.id, run.id)
                await asyncio.sleep(1)
                begun, busy = time.monotonic_ns(), busy_ns(worker.pid)
                await asyncio.sleep(seconds)
                return (busy_ns(worker.pid) - busy) / (time.monotonic_ns() - begun)
            finally:
                worker.kill()


def busy_ns(process: int) -> int:
    """Return the nanoseconds for which a process had a processor."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{process}/task").glob("*/schedstat"))


def compare(options: argparse.Namespace, directory: Path, found: dict[str, Fresh | str]) -> dict[str, Any]:
    """Measure in turn, print the table, and return it."""
    rows = [Row(OURS, "process", active) for active in ([COMPARED_AT] if options.quick else [1, COMPARED_AT, 1000])]
    if not options.quick:
        rows += [Row(OURS, "power", 1000), *(Row(peer, "process", COMPARED_AT) for peer in PEERS)]
    measure(rows, found, directory, 1 if options.quick else options.rounds)
    share = asyncio.run(idle_share(Path(tempfile.mkdtemp(dir=directory)), 2 if options.quick else 10))
    title = f"Cancellation from another process, {file_system(directory)}"
    table = RichTable(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in ("ms p50", "p99", "most", "counted", "p99 to reach", "threadloom: times as fast"):
        table.add_column(heading, justify="right")
    (base,) = [row for row in rows if (row.peer, row.durability, row.active) == (OURS, "process", COMPARED_AT)]
    figures = [row.as_json(None if row.peer is OURS else base) for row in rows]
    for row, told in zip(rows, figures, strict=True):
        if row.left_out:
            CONSOLE.print(f"{row.name} is left out: {escape(row.left_out)}")
            continue
        met = "✓" if told["p99"] * 1e3 <= TO_REACH_MS else "✗"
        times = [f"{told[key] * 1e3:.2f}" for key in ("p50", "p99", "most")]
        to_reach = f"{TO_REACH_MS:g} {met}" if row.peer is OURS else ""
        table.add_row(row.name, *times, str(told["counted"]), to_reach, str(told["ratio"] or ""))
    CONSOLE.print(table)
    met = "✓" if share <= IDLE_TO_REACH else "✗"
    CONSOLE.print(f"An idle worker takes {share:.3%} of a processor; to reach: {IDLE_TO_REACH:.1%} {met}")
    as_json = [told | ({"ratio": vars(told["ratio"])} if told.get("ratio") else {}) for told in figures]
    return {"title": title, "rows": as_json, "idle_share": share}


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__, rounds=2).parse_args()
    directory = options.directory.resolve()
    with ExitStack() as stack:
        found = {} if options.quick else stack.enter_context(servers(directory))
        place = stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix="bench-"))
        table = compare(options, Path(place), found)
    if options.json:
        packages = {name for peer in PEERS for name in (peer.module, *peer.packages)}
        write_json(options.json, "cancellation", [table], sorted(name for name in packages if is_installed(name)))


if __name__ == "__main__":
    main()
