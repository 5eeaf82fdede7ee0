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
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession, web

from threadloom import Assistant, FileStore, MemoryStore, RunContext, RunWorker, ThreadStore
from threadloom.web import create_app

WARM_UP = 20
LIMIT_MS = 20.0


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
    """Be the client: print the milliseconds that each first word took."""
    async with ClientSession() as session:
        took = [await first_word(session, url) for _ in range(WARM_UP + runs)]
    print(json.dumps(took[WARM_UP:]))


async def first_word(session: ClientSession, url: str) -> float:
    """Return the milliseconds that the first word of a new run took, having read its stream to the end."""
    asked = {"assistant_id": "asst_clock", "stream": True, "thread": {"messages": [{"role": "user", "content": "?"}]}}
    milliseconds = []
    async with session.post(f"{url}/threads/runs", json=asked) as response:
        name = b""
        async for line in response.content:
            if line.startswith(b"event: "):
                name = line.removeprefix(b"event: ").strip()
            elif line.startswith(b"data: ") and name == b"thread.message.delta":
                now = time.monotonic_ns()
                word = json.loads(line.removeprefix(b"data: "))["delta"]["content"][0]["text"]["value"]
                milliseconds.append((now - int(word)) / 1e6)
    (first,) = milliseconds
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
    """Return the milliseconds, with the server here, the client in its own process, and the worker here or beside."""
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
    return [float(milliseconds) for milliseconds in json.loads(output)]


def tell(name: str, took: Iterable[float]) -> bool:
    """Print a line of figures; return whether the slowest word but one in a hundred was within the limit."""
    ordered = sorted(took)
    p99 = ordered[-(-99 * len(ordered) // 100) - 1]
    print(f"{name:28} {statistics.median(ordered):8.2f} {p99:8.2f} {ordered[-1]:8.2f} {len(ordered):6}")
    return p99 <= LIMIT_MS


async def compare(directory: Path, runs: int, rounds: int) -> bool:
    """Measure each arrangement, and return whether all were within the limit.

    Every round has a store of its own: the memory store looks through all its runs at every claim, and with some
    hundreds of them this, and not the stream, would be measured.
    """
    took: dict[str, list[float]] = {"memory": [], "files": [], "files, worker beside": []}
    for _ in range(rounds):
        took["memory"] += await measure(MemoryStore(), runs)
        for name in ("files", "files, worker beside"):
            with tempfile.TemporaryDirectory(dir=directory) as root:
                took[name] += await measure(FileStore(root), runs, beside=None if name == "files" else root)
    print(f"{'milliseconds':28} {'p50':>8} {'p99':>8} {'most':>8} {'runs':>6}")
    return all([tell(name, milliseconds) for name, milliseconds in took.items()])  # noqa: C419 - all are told


def main() -> None:
    """Run the benchmark, or the part of it that is a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="on the disk that is measured")
    parser.add_argument("--client", nargs=2, metavar=("URL", "RUNS"), help=argparse.SUPPRESS)
    parser.add_argument("--worker", metavar="ROOT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client is not None:
        asyncio.run(ask(arguments.client[0], int(arguments.client[1])))
    elif arguments.worker is not None:
        asyncio.run(work(arguments.worker))
    elif not asyncio.run(compare(arguments.directory, arguments.runs, arguments.rounds)):
        sys.exit(f"A first word in a hundred took longer than {LIMIT_MS:g} ms.")


if __name__ == "__main__":
    main()
