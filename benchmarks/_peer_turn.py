"""One turn of the worker benchmark, a process of its own: queues runs for a peer's worker, and prints what came of it.

First all of a batch are queued, then the worker is started: so fast can it go. Then so many are in flight as it may run
at once: so long does a run wait under load. Then it has one at a time, after a pause of random length. Every run leaves
a note, and at the end the peer's own books must say that all were done.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from _peer import CONCURRENCY, NOTE, NOTES, Client, Peer

PATIENCE_S = 40.0
LOOK_S = 0.0005
IDLE_S = 3.0  # all of the single runs together, for a peer that only looks now and then


async def turn(peer: Peer, batch: int, fed: int, single: int) -> dict[str, list[float] | float]:
    """Return the runs a second of a batch, and the seconds from queued to started under load and idle."""
    notes = Path(NOTES)
    notes.touch()
    async with peer.opened(batch + fed + single) as client:
        for number in range(batch):
            await client.put(number, time.monotonic_ns())
        with worker(peer) as process:
            await until_noted(notes, batch, process)
            await feed(client, notes, range(batch, batch + fed), process)
            count = await one_by_one(client, notes, range(batch + fed, batch + fed + single), process)
            await until_done(client, count, process)
    taken = read(notes, count)
    starts = sorted(started for _, started in taken[:batch])
    waited = [(started - queued) / 1e9 for queued, started in taken]
    return {
        "rate": (batch - 1) / (starts[-1] - starts[0]) * 1e9,
        "load": waited[batch : batch + fed],
        "idle": waited[batch + fed :],
    }


async def feed(client: Client, notes: Path, numbers: range, process: subprocess.Popen[bytes]) -> None:
    """Queue runs such that as many as the worker may run at once are waiting or at work."""
    for number in numbers:
        await until_noted(notes, number - CONCURRENCY + 1, process)
        await client.put(number, time.monotonic_ns())
    await until_noted(notes, numbers.stop, process)


async def one_by_one(client: Client, notes: Path, numbers: range, process: subprocess.Popen[bytes]) -> int:
    """Queue a run when the worker has been idle for a while, and another; return the number of the next."""
    until = time.monotonic() + IDLE_S
    for number in numbers:
        if time.monotonic() > until:
            return number
        await asyncio.sleep(random.uniform(0.02, 0.06))  # noqa: S311 - out of step with a peer that looks now and then
        await client.put(number, time.monotonic_ns())
        await until_noted(notes, number + 1, process)
    return numbers.stop


async def until_noted(notes: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Return when so many runs have left their note."""
    until = time.monotonic() + PATIENCE_S
    while notes.stat().st_size < count * NOTE.size:
        check(process, until, f"{notes.stat().st_size // NOTE.size} of {count} runs were started")
        await asyncio.sleep(LOOK_S)


async def until_done(client: Client, count: int, process: subprocess.Popen[bytes]) -> None:
    """Return when the peer's books say that so many are done."""
    until = time.monotonic() + PATIENCE_S
    while (done := await client.done()) != count:
        check(process, until, f"{done} of {count} runs are done")
        await asyncio.sleep(0.2)


def check(process: subprocess.Popen[bytes], until: float, found: str) -> None:
    """End the turn where there is nothing more to wait for."""
    if process.poll() is not None:
        raise SystemExit(f"the worker ended by itself, {found}")
    if time.monotonic() > until:
        raise SystemExit(f"after {PATIENCE_S:g} s {found}")


def read(notes: Path, count: int) -> list[tuple[int, int]]:
    """Return when each run was queued and started, in the order of their numbers; each must be there once."""
    noted = {number: (queued, started) for number, queued, started in NOTE.iter_unpack(notes.read_bytes())}
    if sorted(noted) != list(range(count)) or notes.stat().st_size != count * NOTE.size:
        raise SystemExit(f"{count} runs were queued, and {notes.stat().st_size // NOTE.size} calls noted")
    return [noted[number] for number in range(count)]


@contextmanager
def worker(peer: Peer) -> Iterator[subprocess.Popen[bytes]]:
    """Run the peer's worker, and kill it at the end."""
    log = Path(f"{NOTES}.log")
    with log.open("wb") as output:
        command = ["setpriv", "--pdeathsig=KILL", "--", *peer.COMMAND]
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # all that it did was read: some would take seconds to stop
        process.wait()


if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    print(json.dumps(asyncio.run(turn(cast("Peer", importlib.import_module(name)), *map(int, sizes)))))
