"""How long a handler goes on after its run was forced to an end in another process, and what an idle worker costs.

The time begins before the call of ``force_update_run_status`` and ends with the handler's ``CancelledError``, by the
clock that all processes of the machine share. One run is forced after another while so many are active, and each is
replaced by a new one. The processor time of the idle worker is what the kernel has counted for all its threads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _peer import DURABILITY, NOTE, URL, note
from _rounds import arguments, file_system, quantile, write_json
from _servers import Durability
from rich import box
from rich import print as rich_print
from rich.table import Table as RichTable

from threadloom import FileStore, Run, RunContext, RunStatus, RunWorker, Thread

TO_REACH_MS = 10.0
IDLE_TO_REACH = 0.001
PATIENCE_S = 60.0
STARTED, CANCELLED = range(2)


async def wait_for_ever(ctx: RunContext) -> None:
    """Say when the run is started, and when it is cancelled."""
    number = int(ctx.run.metadata["number"])
    note(number, STARTED, time.monotonic_ns())
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note(number, CANCELLED, time.monotonic_ns())
        raise


async def work(concurrency: int) -> None:
    """Be the worker."""
    async with FileStore(URL, durability="power" if DURABILITY == "power" else "process") as store:
        await RunWorker(store, wait_for_ever, concurrency=concurrency).run_until_stopped()


@dataclass
class Beside:
    """A worker in another process, and the notes that it leaves."""

    notes: Path
    process: subprocess.Popen[bytes]

    async def until_noted(self, count: int) -> list[tuple[int, ...]]:
        """Return so many notes, when they are there."""
        async with asyncio.timeout(PATIENCE_S):
            while self.notes.stat().st_size < count * NOTE.size and self.process.poll() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.0005)
        return list(NOTE.iter_unpack(self.notes.read_bytes()))

    def busy_ns(self) -> int:
        """Return the nanoseconds for which the process had a processor."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[0]) for file in threads)


@asynccontextmanager
async def worker_beside(place: Path, durability: Durability, concurrency: int) -> AsyncIterator[Beside]:
    """Run a worker in another process."""
    notes = place / "notes"
    notes.touch()
    about = {"BENCH_URL": str(place / "store"), "BENCH_NOTES": str(notes), "BENCH_DURABILITY": durability}
    command = [sys.executable, __file__, "--worker", str(concurrency)]
    process = subprocess.Popen(["setpriv", "--pdeathsig=KILL", "--", *command], env={**os.environ, **about})
    try:
        yield Beside(notes, process)
    finally:
        process.kill()
        process.wait()


async def measure(place: Path, durability: Durability, active: int, samples: int) -> list[float]:
    """Return the seconds that each of so many cancellations took with so many active runs."""
    async with FileStore(place / "store", durability=durability) as store:
        runs: list[Run] = []

        async def start() -> None:
            thread = await store.create_thread(Thread.new())
            run = Run.new(thread.id, model="any", metadata={"number": str(len(runs))})
            runs.append(run)
            await store.create_run(thread.id, run)

        forced: dict[int, int] = {}
        async with worker_beside(place, durability, active + 1) as beside:
            await asyncio.gather(*[start() for _ in range(active)])
            await beside.until_noted(active)
            alive = list(range(active))
            for count in range(1, samples + 1):
                await asyncio.sleep(random.uniform(0.005, 0.02))  # noqa: S311 - out of step with whatever has a step
                number = alive.pop(random.randrange(len(alive)))  # noqa: S311
                run = runs[number]
                forced[number] = time.monotonic_ns()
                await store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)
                alive.append(len(runs))
                await start()
                noted = await beside.until_noted(active + 2 * count)
    ended = {number: at for number, kind, at in noted if kind == CANCELLED}
    if ended.keys() != forced.keys():
        raise SystemExit(f"{len(forced)} runs were forced, and {len(ended)} handlers cancelled")
    return [(ended[number] - begun) / 1e9 for number, begun in forced.items()]


async def idle(place: Path, durability: Durability, seconds: float) -> float:
    """Return the share of a processor that a worker takes that has nothing to do."""
    opened = FileStore(place / "store", durability=durability)
    async with opened as store, worker_beside(place, durability, 10) as beside:
        thread = await store.create_thread(Thread.new())
        await store.create_run(thread.id, run := Run.new(thread.id, model="any", metadata={"number": "0"}))
        await beside.until_noted(1)
        await store.force_update_run_status(thread.id, run.id, RunStatus.CANCELLED)
        await beside.until_noted(2)
        await asyncio.sleep(1)
        begun, busy = time.monotonic_ns(), beside.busy_ns()
        await asyncio.sleep(seconds)
        return (beside.busy_ns() - busy) / (time.monotonic_ns() - begun)


def compare(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Measure in turn, print the table, and return it."""
    rounds, samples = (1, 50) if options.quick else (options.rounds, 200)
    durabilities: tuple[Durability, ...] = ("process", "power")
    took: dict[tuple[Durability, int], list[float]] = {}
    for _ in range(rounds):
        for active in (1, 100, 1000):
            for durability in durabilities:
                place = Path(tempfile.mkdtemp(dir=directory))
                took.setdefault((durability, active), []).extend(
                    asyncio.run(measure(place, durability, active, samples))
                )
    share = asyncio.run(idle(Path(tempfile.mkdtemp(dir=directory)), "process", 5 if options.quick else 20))
    title = f"Cancellation from another process, {file_system(directory)}"
    table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("ms p50", "p99", "most", "counted", "p99 to reach"):
        table.add_column(heading, justify="right")
    rows = []
    for (durability, active), seconds in took.items():
        row = {"name": f'"{durability}", {active} active', "p50": statistics.median(seconds), "counted": len(seconds)}
        row |= {"p99": quantile(seconds, 0.99), "most": max(seconds)}
        met = f"{TO_REACH_MS:g} {'✓' if quantile(seconds, 0.99) * 1e3 <= TO_REACH_MS else '✗'}"
        times = [f"{value * 1e3:.2f}" for value in (statistics.median(seconds), quantile(seconds, 0.99), max(seconds))]
        table.add_row(str(row["name"]), *times, str(len(seconds)), met)
        rows.append(row)
    rich_print(table)
    met = "✓" if share <= IDLE_TO_REACH else "✗"
    rich_print(f"An idle worker takes {share:.3%} of a processor; to reach: {IDLE_TO_REACH:.1%} {met}")
    return {"title": title, "rows": rows, "idle_share": share}


def main() -> None:
    """Run the benchmark, or be its worker."""
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--worker", type=int, metavar="CONCURRENCY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        asyncio.run(work(options.worker))
        return
    directory = options.directory.resolve()
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as place:
        table = compare(options, Path(place))
    if options.json:
        write_json(options.json, "cancellation", [table], [])


if __name__ == "__main__":
    main()
