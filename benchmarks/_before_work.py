"""The work that ``before.py`` has done by two versions of threadloom; ``PYTHONPATH`` says by which.

It is a process that takes one turn for each line of its standard input, a list of the turn's name and its arguments as
JSON, and answers each with a line: rows, and for each of them the seconds of the clock and of the processor that one
thing took. Only what both versions have is used, and nothing of what other benchmarks share, so that these may change
with the version of today. Each turn reads back what was done.

What is measured lies between two looks at files that are not there, by which ``before.py`` finds it in the log of
``strace``.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import threadloom
from threadloom import (
    EventType,
    FileStore,
    MemoryStore,
    Message,
    MessageDelta,
    Run,
    RunContext,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWorker,
    Thread,
    ThreadStore,
)

QUESTION = "What is the weather like?"
REPLY = "It is 19 °C."
CONCURRENCY = 10
AT_ONCE = 64
PAGE = 20
SAMPLES = 20
PATIENCE_S = 120.0

Rows = dict[str, tuple[float, float]]
Note = tuple[int, int]


class WorkNotDoneError(Exception):
    """What lies there at the end is not what a turn was to write."""


@dataclass
class Meter:
    """Measures from the first ``begin`` to ``end``: seconds of the clock, and of the processor by all threads."""

    begun: tuple[float, float] | None = None

    def begin(self) -> None:
        """Begin, unless it has."""
        if self.begun is None:
            os.path.exists("/threadloom-bench/begin")  # noqa: PTH110 - one call of the system
            self.begun = (time.perf_counter(), time.process_time())

    def end(self) -> tuple[float, float]:
        """Return what was taken."""
        if self.begun is None:
            raise WorkNotDoneError("nothing has begun")
        wall, cpu = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
        os.path.exists("/threadloom-bench/end")  # noqa: PTH110
        return wall, cpu


def new_store(root: str, durability: str) -> ThreadStore:
    """Return a store of files, or one of memory where ``root`` is empty."""
    return FileStore(root, durability="power" if durability == "power" else "process") if root else MemoryStore()


async def in_tasks(one: Callable[[], Awaitable[object]], count: int, at_once: int) -> None:
    """Await ``one()`` so often, and so many at once."""
    numbers = iter(range(count))

    async def work() -> None:
        for _ in numbers:
            await one()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(work())


# A whole run, as in _ours.py


async def whole(root: str, durability: str, runs: int, at_once: int) -> Rows:
    """Drive runs by hand, from the thread's creation to the end; the store is closed within the time."""
    meter = Meter()
    store = new_store(root, durability)
    async with store:
        gc.collect()
        meter.begin()
        await in_tasks(functools.partial(one_run, store), runs, at_once)
        if not root:
            wall, cpu = meter.end()
            await check_runs(store, runs)
    if root:
        wall, cpu = meter.end()
        async with new_store(root, durability) as store:
            await check_runs(store, runs)
    return {"": (wall / runs, cpu / runs)}


async def one_run(store: ThreadStore) -> None:
    """Bring one run from its thread's creation to its end, by the same calls as ``_ours.one_run``."""
    thread = await store.create_thread(Thread.new())
    run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
    at = (thread.id, run.id)
    await store.append_message(thread.id, Message.user(thread.id, QUESTION))
    await store.update_run_status(*at, RunStatus.IN_PROGRESS)
    tools = await store.append_step(*at, RunStep.tool_calls(thread_id=thread.id, run_id=run.id))
    await store.update_run_status(*at, RunStatus.REQUIRES_ACTION)
    await store.update_run_status(*at, RunStatus.IN_PROGRESS)
    await store.update_step_status(*at, tools.id, RunStepStatus.COMPLETED)
    reply = Message.assistant(thread.id, REPLY, run_id=run.id)
    creation = RunStep.message_creation(thread_id=thread.id, run_id=run.id, message_id=reply.id)
    await store.append_step(*at, creation)
    await store.append_message(thread.id, reply)
    await store.update_step_status(*at, creation.id, RunStepStatus.COMPLETED)
    await store.update_run_status(*at, RunStatus.COMPLETED)


async def check_runs(store: ThreadStore, runs: int) -> None:
    """Raise unless so many whole runs are there."""
    thread_ids = list(await store.list_thread_ids())
    if len(thread_ids) != runs:
        raise WorkNotDoneError(f"{len(thread_ids)} threads instead of {runs}")
    for thread_id in thread_ids:
        texts = [message.text for message in await store.list_messages(thread_id)]
        (run,) = await store.list_runs(thread_id)
        steps = [step.status for step in await store.list_steps(thread_id, run.id)]
        if (texts, run.status, steps) != ([QUESTION, REPLY], RunStatus.COMPLETED, [RunStepStatus.COMPLETED] * 2):
            raise WorkNotDoneError(f"{texts}, {run.status}, {steps} were left")


# A worker


async def noops(root: str, durability: str, runs: int) -> Rows:
    """Have a worker in this process go through queued runs that do nothing, ten at once, to the last one's end."""
    queued: list[Run] = []
    started: list[str] = []
    all_started = asyncio.Event()
    meter = Meter()

    async def queue_one() -> None:
        thread = await store.create_thread(Thread.new())
        queued.append(await store.create_run(thread.id, Run.new(thread.id, model="any")))

    async def noop(ctx: RunContext) -> None:
        started.append(ctx.run.id)
        if len(started) == runs:
            all_started.set()

    async with new_store(root, durability) as store:
        await in_tasks(queue_one, runs, AT_ONCE)
    async with new_store(root, durability) as store:
        gc.collect()
        meter.begin()
        async with RunWorker(store, noop, concurrency=CONCURRENCY):
            await all_started.wait()
            ids = {run.id: run for run in queued}
            for run_id in started[-2 * CONCURRENCY :]:
                await store.wait_for_run(ids[run_id].thread_id, run_id)
        wall, cpu = meter.end()
        ended = [(await store.get_run(run.thread_id, run.id)).status for run in queued]
    if sorted(started) != sorted(ids) or ended != [RunStatus.COMPLETED] * runs:
        raise WorkNotDoneError(f"{len(started)} of {runs} were started, {ended.count(RunStatus.COMPLETED)} completed")
    return {"": (wall / runs, cpu / runs)}


# Streaming, as in _words.py


async def words(root: str, durability: str, runs: int, count: int, *, beside: bool) -> Rows:
    """Stream so many words a run, to readers here, from the first one's writing to the last one's reading.

    The processor's time is that of both processes where the writer is ``beside``.
    """
    meter = Meter()
    async with new_store(root, durability) as store:
        streams = [stream_words(store, await queue_run(store)) for _ in range(runs)]
        for stream in streams:
            await anext(stream)
        gc.collect()
        writing = write_beside(root, durability, runs, count) if beside else write_words(store, runs, count, meter)
        async with writing as of_writer:
            if beside:
                meter.begin()
            async with asyncio.TaskGroup() as tasks:
                readers = [tasks.create_task(read_words(stream, count)) for stream in streams]
            _, cpu = meter.end()
    noted = [note for reader in readers for note in reader.result()]
    wall = (max(has for _, has in noted) - min(written for written, _ in noted)) / 1e9
    return {"": (wall / len(noted), (cpu + sum(of_writer)) / len(noted))}


async def queue_run(store: ThreadStore) -> Run:
    """Queue a run in a new thread."""
    thread = await store.create_thread(Thread.new())
    return await store.create_run(thread.id, Run.new(thread.id, model="any"))


@asynccontextmanager
async def write_words(store: ThreadStore, runs: int, count: int, meter: Meter) -> AsyncIterator[list[float]]:
    """Run a worker that gives the words of all runs, from when the last of them has started."""
    all_started = asyncio.Barrier(runs)

    async def answer(ctx: RunContext) -> None:
        async with ctx.message() as message:
            await all_started.wait()
            meter.begin()
            for number in range(count):
                await message.write(f"{number} {time.monotonic_ns()}\n")

    async with RunWorker(store, answer, concurrency=runs):
        yield []


@asynccontextmanager
async def write_beside(root: str, durability: str, runs: int, count: int) -> AsyncIterator[list[float]]:
    """Have the process that writes do so; at the end, the list gets the seconds of the processor that it took."""
    process = writer()
    taken: list[float] = []
    tell(process, json.dumps(["write", root, durability, runs, count]))
    yield taken
    tell(process, "enough")
    assert process.stdout is not None  # noqa: S101 - it has a pipe
    answer = await asyncio.to_thread(process.stdout.readline)
    if not answer:
        raise WorkNotDoneError("the writing process has ended")
    taken.append(json.loads(answer)[""][1])


@functools.cache
def writer() -> subprocess.Popen[str]:
    """Start the process that writes, which ends with this one: then its standard input does."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None  # noqa: S101 - it has a pipe
    process.stdout.readline()  # where it has its threadloom from
    return process


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Send a line to the process that writes."""
    print(line, file=process.stdin, flush=True)


async def write(root: str, durability: str, runs: int, count: int) -> Rows:
    """Be the process that writes, until it is told to stop."""
    meter = Meter()
    async with new_store(root, durability) as store, write_words(store, runs, count, meter):
        await asyncio.to_thread(sys.stdin.readline)
        return {"": meter.end()}


async def stream_words(store: ThreadStore, run: Run) -> AsyncIterator[str]:
    """Yield that it listens, and then the words of a run; at its end, the message must have all of them."""
    pieces: list[str] = []
    async for event in store.events(run.thread_id, run.id):
        if event.type is EventType.RUN_CREATED:
            yield "it listens"
        elif isinstance(event.data, MessageDelta):
            pieces.append(event.data.text)
            yield event.data.text
    (message,) = await store.list_messages(run.thread_id)
    if message.text != "".join(pieces):
        raise WorkNotDoneError(f"{message} is not what was streamed")


async def read_words(stream: AsyncIterator[str], count: int) -> list[Note]:
    """Return when each word was written, and when it was read; a delta may have more than one."""
    noted: list[Note] = []
    async for piece in stream:
        now = time.monotonic_ns()
        for line in piece.splitlines():
            number, written = map(int, line.split())
            if number != len(noted):
                raise WorkNotDoneError(f"word {number} came in place of {len(noted)}")
            noted.append((written, now))
    if len(noted) != count:
        raise WorkNotDoneError(f"{len(noted)} words came, of {count}")
    return noted


# Growth


@dataclass
class Grown:
    """A store with so many threads; one of them has as many messages, and one as many ended runs."""

    root: str
    count: int
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    async def build(self) -> tuple[str, str]:
        """Write it where it is not there; return the threads with the many messages and with the many runs."""
        ids = Path(f"{self.root}.ids")
        if not ids.exists():
            async with new_store(self.root, "process") as store:
                await in_tasks(lambda: store.create_thread(Thread.new()), self.count, AT_ONCE)
                of_messages, of_runs = [(await store.create_thread(Thread.new())).id for _ in range(2)]
                one = functools.partial(self._message, store, of_messages)
                await in_tasks(one, self.count, AT_ONCE)
                await in_tasks(functools.partial(self._run, store, of_runs), self.count, AT_ONCE)
            ids.write_text(f"{of_messages} {of_runs}")
        of_messages, of_runs = ids.read_text().split()
        return of_messages, of_runs

    async def _message(self, store: ThreadStore, thread_id: str) -> None:
        await store.append_message(thread_id, Message.user(thread_id, QUESTION))

    async def _run(self, store: ThreadStore, thread_id: str) -> None:
        run = await store.create_run(thread_id, Run.new(thread_id, model="any"))
        await store.update_run_status(thread_id, run.id, RunStatus.IN_PROGRESS)
        await store.update_run_status(thread_id, run.id, RunStatus.COMPLETED)

    async def sample(self, row: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Measure one call, and return what it does."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = await call()
        self.samples.setdefault(row, []).append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    async def pages(self, store: ThreadStore, of_messages: str, of_runs: str) -> None:
        """Measure what reads."""
        await self.page("threads: newest page", lambda: store.list_threads(limit=PAGE, order="desc"))
        messages = functools.partial(store.list_messages, of_messages, limit=PAGE)
        await self.page("messages: last page", lambda: messages(order="desc"))
        await self.page("messages: first page", messages)
        runs = functools.partial(store.list_runs, of_runs, limit=PAGE, order="desc")
        await self.page("runs of one: newest page", runs)
        await self.sample("a thread", lambda: store.get_thread(of_runs))

    async def page(self, row: str, call: Callable[[], Awaitable[Iterable[Any]]]) -> None:
        """Measure a page, which must be full."""
        found = len({item.id for item in await self.sample(row, call)})
        if found != PAGE:
            raise WorkNotDoneError(f"{row}: {found} instead of {PAGE}")

    async def work(self, store: ThreadStore, thread_id: str) -> None:
        """Measure a run's creation, its taking, and its end."""
        run = Run.new(thread_id, model="any")
        await self.sample("create a run among many", lambda: store.create_run(thread_id, run))
        claim = await self.sample("take queued work", lambda: store.try_claim_run("bench"))
        end = functools.partial(store.update_run_status, thread_id, run.id, RunStatus.COMPLETED)
        ended = await self.sample("update a run among many", end)
        if claim is None or (claim.run.id, ended.status) != (run.id, RunStatus.COMPLETED):
            raise WorkNotDoneError(f"{claim} was taken, and not {run.id}")


async def growth(root: str, count: int) -> Rows:
    """Measure single calls where much is kept; the medians of some, of the processor the mean."""
    grown = Grown(root, count)
    of_messages, of_runs = await grown.build()

    async def open_and_close() -> None:
        async with new_store(root, "process"):
            pass

    gc.collect()
    for _ in range(SAMPLES // 4):
        await grown.sample("open and close the store", open_and_close)
    async with new_store(root, "process") as store:
        for _ in range(SAMPLES):
            await grown.work(store, of_runs)
            await grown.pages(store, of_messages, of_runs)
        threads = await grown.sample("threads: all ids", store.list_thread_ids)
        if len(list(threads)) != count + 2:
            raise WorkNotDoneError(f"{len(list(threads))} threads instead of {count + 2}")
    return {
        row: (statistics.median(wall for wall, _ in taken), statistics.mean(cpu for _, cpu in taken))
        for row, taken in grown.samples.items()
    }


TURNS: dict[str, Callable[..., Awaitable[Rows]]] = {
    "whole": whole,
    "noops": noops,
    "words": functools.partial(words, beside=False),
    "beside": functools.partial(words, beside=True),
    "write": write,
    "growth": growth,
}


async def take(name: str, arguments: Sequence[Any]) -> Rows:
    """Take one turn."""
    async with asyncio.timeout(PATIENCE_S):
        return await TURNS[name](*arguments)


def main() -> None:
    """Tell where threadloom comes from, and take turns until the standard input ends."""
    print(json.dumps(threadloom.__file__), flush=True)
    while line := sys.stdin.readline():
        name, *arguments = json.loads(line)
        print(json.dumps(asyncio.run(take(name, arguments))), flush=True)


if __name__ == "__main__":
    main()
