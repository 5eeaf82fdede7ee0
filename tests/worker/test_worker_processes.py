"""Several workers, each in a process of its own, on one directory."""

import asyncio
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest

from threadloom import FileStore, Run, RunStatus, Thread

PROCESSES = 4
CONCURRENCY = 8
THREADS = 200
RUNS = 2_000

WORKER = """
import asyncio, sys
from threadloom import *

handled = []

async def answer(ctx):
    handled.append((ctx.run.id, ctx.attempt))
    return "done"

async def main():
    async with FileStore(sys.argv[1], durability="process") as store:
        print("ready", flush=True)
        sys.stdin.readline()
        async with RunWorker(store, answer, concurrency=int(sys.argv[2])):
            await asyncio.to_thread(sys.stdin.readline)
    for run_id, attempt in handled:
        print(run_id, attempt)

asyncio.run(main())
"""


@pytest.fixture
def root():
    # In memory where there is such a place: this is of what is done, not of how it lasts.
    with tempfile.TemporaryDirectory(dir=next(filter(os.path.isdir, ["/dev/shm"]), None)) as root:  # noqa: S108
        yield Path(root)


@pytest.fixture
def processes(root):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(root), str(CONCURRENCY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


async def test_each_run_is_handled_exactly_once_and_in_its_order(root, processes):
    async with FileStore(root, durability="process") as store:
        threads = [await store.create_thread(Thread.new()) for _ in range(THREADS)]
        runs = [
            await store.create_run(threads[n % THREADS].id, Run.new(threads[n % THREADS].id, model="m"))
            for n in range(RUNS)
        ]
        for process in processes:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        for process in processes:
            say(process)
        for run in runs[-THREADS:]:
            ended = await store.wait_for_run(run.thread_id, run.id, timeout=timedelta(seconds=100))
            assert ended.status is RunStatus.COMPLETED
        outputs = [(await asyncio.to_thread(process.communicate, "end\n"))[0] for process in processes]
        answers = [[message.run_id for message in await store.list_messages(thread.id)] for thread in threads]

    handled = [[line.split() for line in output.splitlines()] for output in outputs]
    assert {attempt for lines in handled for _, attempt in lines} == {"1"}
    assert all(handled), "all processes had a share"
    place = {run.id: n for n, run in enumerate(runs)}
    taken = [[place[run_id] for run_id, _ in lines] for lines in handled]
    assert sorted(n for places in taken for n in places) == list(range(RUNS)), "each once, none left out"
    in_order = [[run.id for run in runs[n::THREADS]] for n in range(THREADS)]
    assert answers == in_order, "within a thread, whichever process was at it"

    for places in taken:
        # Between threads, one may be passed over only where another process was at it in that moment.
        for i, n in enumerate(places):
            assert sum(earlier > n for earlier in places[:i]) <= PROCESSES * CONCURRENCY
