"""How long a word takes from a handler's ``write`` to the client: the first of a run, on an idle server.

The word is the moment at which it was written, by the monotonic clock that all processes of the machine share, and the
client, in a process of its own, subtracts it from the moment at which it has the frame. Runs come one after the other,
each in a new thread. ``beside`` is a worker in a third process on the same files, so that the server hears of the word
by inotify; otherwise the worker is the server's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from _rounds import CONSOLE, Place, in_turn, quantile
from aiohttp import ClientSession, web
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from threadloom import Assistant, FileStore, MemoryStore, RunContext, RunWorker, ThreadStore
from threadloom.web import create_app

WARM_UP = 10
TO_REACH_MS = 20.0


async def answer(ctx: RunContext) -> None:
    """Say what time it is."""
    async with ctx.message() as message:
        await message.write(str(time.monotonic_ns()))


async def work(root: str) -> None:
    """Be the worker beside the server, until the standard input is closed."""
    async with FileStore(root) as store, RunWorker(store, answer):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def ask(url: str, runs: int) -> None:
    """Be the client: print the seconds that each first word took."""
    async with ClientSession() as session:
        took = [await first_word(session, url) for _ in range(WARM_UP + runs)]
    print(json.dumps(took[WARM_UP:]))


async def first_word(session: ClientSession, url: str) -> float:
    """Return the seconds that the first word of a new run took, having read its stream to the end."""
    asked = {"assistant_id": "asst_clock", "stream": True, "thread": {"messages": [{"role": "user", "content": "?"}]}}
    seconds = []
    async with session.post(f"{url}/threads/runs", json=asked) as response:
        name = b""
        async for line in response.content:
            if line.startswith(b"event: "):
                name = line.removeprefix(b"event: ").strip()
            elif line.startswith(b"data: ") and name == b"thread.message.delta":
                now = time.monotonic_ns()
                word = json.loads(line.removeprefix(b"data: "))["delta"]["content"][0]["text"]["value"]
                seconds.append((now - int(word)) / 1e9)
    (first,) = seconds
    return first


@asynccontextmanager
async def serving(store: ThreadStore, *, has_worker: bool) -> AsyncIterator[str]:
    """Serve the store on loopback, and yield the URL."""
    await store.create_assistant(Assistant.new(model="any", id="asst_clock"))
    app = web.Application()
    app.add_subapp("/v1", create_app(store, handler=answer if has_worker else None))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def measure(store: ThreadStore, runs: int, *, beside: str | None = None) -> list[float]:
    """Return the seconds, with the server here, the client in its own process, and the worker here or beside."""
    async with store, serving(store, has_worker=beside is None) as url:
        if beside is None:
            return await in_process("--client", url, str(runs))
        async with worker_beside(beside):
            return await in_process("--client", url, str(runs))


@asynccontextmanager
async def worker_beside(root: str) -> AsyncIterator[None]:
    """Run a worker on the same files in another process."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--worker", root, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None  # noqa: S101 - it has a pipe
        await process.stdout.readline()
        yield
    finally:
        await process.communicate(b"")  # closes its standard input, at which it ends


async def in_process(*arguments: str) -> list[float]:
    """Run this program with the arguments, and return the list that it prints."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    return [float(second) for second in json.loads(output)]


def first_words(place: Place, rounds: int, runs: int) -> dict[str, Any]:
    """Measure each arrangement in turn, print the table, and return it.

    Every round has a store of its own: the memory store looks through all its runs at every claim, and with some
    hundreds of them this, and not the stream, would be measured.
    """

    def files(root: Path, *, has_worker: bool) -> list[float]:
        return asyncio.run(measure(FileStore(root), runs, beside=None if has_worker else str(root)))

    ways: dict[str, Callable[[Path], list[float]]] = {
        "memory": lambda _: asyncio.run(measure(MemoryStore(), runs)),
        "files": partial(files, has_worker=True),
        "files, worker beside": partial(files, has_worker=False),
    }
    title = f"The first word of a run to a client of the server, by SSE, {place.name}"
    table = RichTable(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("ms p50", "p99", "most", "counted", "p99 to reach"):
        table.add_column(heading, justify="right")
    rows: list[dict[str, Any]] = []
    for name, taken in in_turn(ways, place, rounds).items():
        seconds = [second for some in taken for second in some]
        row = {"p50": statistics.median(seconds), "p99": quantile(seconds, 0.99), "most": max(seconds)}
        met = f"{TO_REACH_MS:g} {'✓' if row['p99'] * 1e3 <= TO_REACH_MS else '✗'}"
        table.add_row(name, *[f"{value * 1e3:.2f}" for value in row.values()], str(len(seconds)), met)
        rows.append({"name": name, **row, "counted": len(seconds)})
    CONSOLE.print(table)
    return {"title": title, "rows": rows}


def main() -> None:
    """Be the client, or the worker beside the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", nargs=2, metavar=("URL", "RUNS"))
    parser.add_argument("--worker", metavar="ROOT")
    options = parser.parse_args()
    if options.client is not None:
        asyncio.run(ask(options.client[0], int(options.client[1])))
    else:
        asyncio.run(work(options.worker))


if __name__ == "__main__":
    main()
