"""Ways to hand words from a writer to a reader, in one process or from another one, many runs at once.

A word is its number in its run and the moment before it was written, by the clock that all processes of the machine
share; the reader notes when it has it. All writers of a turn begin when the last of them has started, and each gives
one word after the other. Each run's words must all have come, in order.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Self

from _ours import Durability
from _rounds import Turn
from _script import WorkNotDoneError
from redis.asyncio import Redis

from threadloom import EventType, FileStore, MemoryStore, MessageDelta, Run, RunContext, RunWorker, Thread, ThreadStore

PATIENCE_S = 60.0

Give = Callable[[str], Awaitable[object]]
Words = AsyncIterator[str]


@dataclass(frozen=True)
class Size:
    """How many runs stream at once, and how many words each."""

    runs: int
    words: int


class Stream(ABC):
    """A way, open within its ``async with``. Where the writer is another process, both have one of their own."""

    def __init__(self, *resources: AbstractAsyncContextManager[object]) -> None:
        self._resources = resources
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open it."""
        for resource in self._resources:
            await self._open.enter_async_context(resource)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self._open.aclose()

    @abstractmethod
    def reading(self, size: Size) -> AbstractAsyncContextManager[Sequence[Words]]:
        """Yield the words of each run, when none can be missed any more."""

    @abstractmethod
    def writing(self, size: Size) -> AbstractAsyncContextManager[None]:
        """Have the writers of all runs at work, as long as it is open."""


async def say(size: Size, all_started: asyncio.Barrier, give: Give) -> None:
    """Write the words of a run."""
    await all_started.wait()
    for number in range(size.words):
        await give(f"{number} {time.monotonic_ns()}\n")


class InStore(Stream):
    """``ctx.message()`` of a worker, and ``store.events()``."""

    def __init__(self, store: ThreadStore) -> None:
        super().__init__(store)
        self._store = store

    @asynccontextmanager
    async def reading(self, size: Size) -> AsyncIterator[Sequence[Words]]:
        """Queue the runs, and listen to each."""
        runs = []
        for _ in range(size.runs):
            thread = await self._store.create_thread(Thread.new())
            runs.append(await self._store.create_run(thread.id, Run.new(thread.id, model="any")))
        streams = [self._words(run) for run in runs]
        for stream in streams:
            await anext(stream)
        yield streams

    @asynccontextmanager
    async def writing(self, size: Size) -> AsyncIterator[None]:
        """Run the worker."""
        all_started = asyncio.Barrier(size.runs)

        async def answer(ctx: RunContext) -> None:
            async with ctx.message() as message:
                await say(size, all_started, message.write)

        async with RunWorker(self._store, answer, concurrency=size.runs):
            yield

    async def _words(self, run: Run) -> Words:
        words = []
        async for event in self._store.events(run.thread_id, run.id):
            if event.type is EventType.RUN_CREATED:
                yield "it listens"
            elif isinstance(event.data, MessageDelta):
                words.append(event.data.text)
                yield event.data.text
        (message,) = await self._store.list_messages(run.thread_id)
        if message.text != "".join(words):
            raise WorkNotDoneError(f"{message} is not what was streamed")


def in_files(root: str, durability: Durability) -> Stream:
    """Stream through files."""
    return InStore(FileStore(root, durability=durability))


def in_memory() -> Stream:
    """Stream through a memory store."""
    return InStore(MemoryStore())


class InRedis(Stream):
    """A Redis stream for each run: XADD, and XREAD that blocks from the last one that was read."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, decode_responses=True)
        super().__init__(self._redis)

    @asynccontextmanager
    async def reading(self, size: Size) -> AsyncIterator[Sequence[Words]]:
        """Read from the beginnings."""
        yield [self._words(f"run{number}") for number in range(size.runs)]

    @asynccontextmanager
    async def writing(self, size: Size) -> AsyncIterator[None]:
        """Write to all of them."""
        all_started = asyncio.Barrier(size.runs)

        async def answer(key: str) -> None:
            await say(size, all_started, lambda word: self._redis.xadd(key, {"word": word}))
            await self._redis.xadd(key, {"end": "completed"})

        async with asyncio.TaskGroup() as tasks:
            for number in range(size.runs):
                tasks.create_task(answer(f"run{number}"))
            yield

    async def _words(self, key: str) -> Words:
        last = "0"
        while True:
            for _, entries in await self._redis.xread({key: last}, block=0):
                for last, entry in entries:  # noqa: B007 - the last one is where to read on
                    if "end" in entry:
                        return
                    yield entry["word"]


class InQueues(Stream):
    """An ``asyncio.Queue`` with one place for each run: no store, and each word handed over by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._queues: list[asyncio.Queue[str | None]] = []

    @asynccontextmanager
    async def reading(self, size: Size) -> AsyncIterator[Sequence[Words]]:
        """Make the queues."""
        self._queues = [asyncio.Queue(1) for _ in range(size.runs)]
        yield [self._words(queue) for queue in self._queues]

    @asynccontextmanager
    async def writing(self, size: Size) -> AsyncIterator[None]:
        """Write to all of them."""
        all_started = asyncio.Barrier(size.runs)

        async def answer(queue: asyncio.Queue[str | None]) -> None:
            await say(size, all_started, queue.put)
            await queue.put(None)

        async with asyncio.TaskGroup() as tasks:
            for queue in self._queues:
                tasks.create_task(answer(queue))
            yield

    async def _words(self, queue: asyncio.Queue[str | None]) -> Words:
        while (word := await queue.get()) is not None:
            yield word


KEEPING: dict[str, Callable[..., Stream]] = {"files": in_files, "redis": InRedis}


class Writer:
    """A process that writes what it is told to, one turn after another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextmanager
    def running(cls, program: str) -> Iterator[Self]:
        """Run it: ``program`` is to call ``be_writer``."""
        pipe = subprocess.PIPE
        command = ["setpriv", "--pdeathsig=KILL", "--", sys.executable, program, "--writer"]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield cls(process)
            finally:
                process.kill()

    @contextmanager
    def writing(self, name: str, where: Sequence[str], size: Size) -> Iterator[None]:
        """Have it write."""
        self._tell(json.dumps([name, where, size.runs, size.words]))
        yield
        self._tell("enough")
        if self._process.stdout is None or not self._process.stdout.readline():
            raise WorkNotDoneError("the writing process has ended")

    def _tell(self, line: str) -> None:
        print(line, file=self._process.stdin, flush=True)


async def be_writer() -> None:
    """Be that process."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, where, runs, words = json.loads(line)
        size = Size(runs, words)
        async with KEEPING[name](*where) as stream, stream.writing(size):
            await asyncio.to_thread(sys.stdin.readline)
        print("done", flush=True)


def in_one_process(opened: Callable[[], Stream], size: Size) -> Turn:
    """Write and read in this process."""

    async def turn() -> Turn:
        async with opened() as stream, stream.reading(size) as words, stream.writing(size):
            return await read_all(words, size)

    return asyncio.run(turn())


def in_two_processes(writer: Writer, name: str, where: Sequence[str], size: Size) -> Turn:
    """Read what another process writes."""

    async def turn() -> Turn:
        async with KEEPING[name](*where) as stream, stream.reading(size) as words:
            with writer.writing(name, where, size):
                return await read_all(words, size)

    return asyncio.run(turn())


async def read_all(streams: Sequence[Words], size: Size) -> Turn:
    """Return what it took, from the first word's writing to the last one's reading."""
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read(stream, size.words)) for stream in streams]
    noted = [note for reader in readers for note in reader.result()]
    took = max(has for _, has in noted) - min(written for written, _ in noted)
    return Turn(took / len(noted) / 1e9, [(has - written) / 1e9 for written, has in noted])


async def read(stream: Words, words: int) -> list[tuple[int, int]]:
    """Return when each word of a run was written, and when it was read."""
    noted: list[tuple[int, int]] = []
    async for word in stream:
        now = time.monotonic_ns()
        number, written = map(int, word.split())
        if number != len(noted):
            raise WorkNotDoneError(f"word {number} came in place of {len(noted)}")
        noted.append((written, now))
    if len(noted) != words:
        raise WorkNotDoneError(f"{len(noted)} words came, of {words}")
    return noted
