"""What the tests of the worker share: the stores they run on, a clock that stands still, and a stage for a worker."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from threadloom import Claim, FileStore, MemoryStore, Message, Run, RunStatus, RunStep, RunWrite, Thread, ThreadStore
from threadloom.testing import ManualClock
from threadloom.worker import Handler, RunContext, RunWorker

SECOND = timedelta(seconds=1)
PATIENCE = timedelta(seconds=10)  # of the test's own; nothing here takes that long unless it is broken

OpenStore = Callable[[ManualClock], ThreadStore]


class FileStoreSomewhere(FileStore):
    """A store in a directory of its own, which goes with it."""

    def __init__(self, clock: ManualClock) -> None:
        # In memory where there is such a place: these tests are of what is done, not of how it lasts.
        self._directory = tempfile.TemporaryDirectory(dir=next(filter(os.path.isdir, ["/dev/shm"]), None))  # noqa: S108
        super().__init__(self._directory.name, durability="process", clock=clock)

    async def close(self) -> None:
        await super().close()
        await asyncio.to_thread(self._directory.cleanup)


STORES: list[Any] = [
    pytest.param(lambda clock: MemoryStore(clock=clock), id="memory"),
    pytest.param(FileStoreSomewhere, id="files"),
]


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until the condition holds."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        while not condition():  # noqa: ASYNC110 - what it waits for may have no event
            await asyncio.sleep(0)


async def turns(count: int = 20) -> None:
    """Let the event loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


def _is_the_workers(task: asyncio.Task[Any]) -> bool:
    """Whether the worker started it, and not a store, which ends what it has begun when it is closed."""
    file = task.get_coro().cr_code.co_filename  # type: ignore[union-attr]
    return file.endswith("_clock.py") or "/worker/" in file


class Stage:
    """A store with a clock, and short words for what every test does on it."""

    def __init__(self, store: ThreadStore, clock: ManualClock) -> None:
        self.store = store
        self.clock = clock
        self.is_stuck = asyncio.Event()

    async def stuck(self) -> None:
        """For a handler: say that it has come here, and wait for ever."""
        self.is_stuck.set()
        await asyncio.Event().wait()

    @property
    def now(self) -> int:
        return self.clock.time_ns() // 1_000_000_000

    def worker(self, handler: Handler, **options: Any) -> RunWorker:
        return RunWorker(self.store, handler, **options)

    async def thread(self, *texts: str) -> Thread:
        thread = await self.store.create_thread(Thread.new())
        for text in texts:
            await self.store.append_message(thread.id, Message.user(thread.id, text))
        return thread

    async def ask(self, text: str = "hello", *, thread: Thread | None = None, **options: Any) -> Run:
        """Queue a run behind a user's message, in a thread of its own unless one is given."""
        thread = thread or await self.thread()
        await self.store.append_message(thread.id, Message.user(thread.id, text))
        return await self.store.create_run(thread.id, Run.new(thread.id, model="any", **options))

    async def run(self, run: Run) -> Run:
        return await self.store.get_run(run.thread_id, run.id)

    async def ended(self, run: Run) -> Run:
        return await self.store.wait_for_run(run.thread_id, run.id, timeout=PATIENCE)

    async def came_to(self, run: Run, status: RunStatus) -> Run:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while (now := await self.run(run)).status is not status:  # noqa: ASYNC110 - also what nobody announces
                await asyncio.sleep(0)
        return now

    async def texts(self, run: Run) -> list[str]:
        return [message.text for message in await self.store.list_messages(run.thread_id)]

    async def answers(self, run: Run) -> list[Message]:
        return list(await self.store.list_messages(run.thread_id, run_id=run.id))

    async def steps(self, run: Run) -> list[RunStep]:
        return list(await self.store.list_steps(run.thread_id, run.id))

    async def events(self, run: Run) -> list[str]:
        """Return the names of the run's events without ``thread.``, having seen that their numbers rise."""
        async with asyncio.timeout(PATIENCE.total_seconds()):
            events = [event async for event in self.store.events(run.thread_id, run.id)]
        numbers = [event.number for event in events]
        assert numbers == sorted(set(numbers))
        return [event.type.removeprefix("thread.") for event in events]

    async def done_by(self, handler: Handler, **options: Any) -> Run:
        """Let a worker bring one new run to its end, and return it as it is then."""
        run = await self.ask()
        async with self.worker(handler, **options):
            return await self.ended(run)

    async def advance_until(self, condition: Callable[[], object], step: timedelta = SECOND) -> None:
        """Move the clock, whenever somebody sleeps on it, until the condition holds."""
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while not condition():
                await turns()
                if not condition() and self.clock.sleepers:
                    self.clock.advance(step)

    def before_write(self, status: RunStatus, act: Callable[[RunWrite], Awaitable[object]]) -> None:
        """Let ``act`` happen, once, right before a worker's write with that status reaches the store."""
        write_run = self.store.write_run
        acts = [act]

        async def write(lease: Any, work: RunWrite) -> Run:
            if work.status is status and acts:
                await acts.pop()(work)
            return await write_run(lease, work)

        self.store.write_run = write  # type: ignore[method-assign]

    def after_claim(self, act: Callable[[Claim], Awaitable[object]]) -> None:
        """Let ``act`` happen, once, right after a claim, before the worker hears of it."""
        claim_run = self.store.claim_run
        acts = [act]

        async def claim(worker_id: str, **options: Any) -> Claim:
            claim = await claim_run(worker_id, **options)
            if acts:
                await acts.pop()(claim)
            return claim

        self.store.claim_run = claim  # type: ignore[method-assign]


class Gate:
    """A handler that says when it is at work, and waits there until it is let go."""

    def __init__(self, answer: str | None = "done") -> None:
        self.answer = answer
        self.started: list[str] = []
        self.at_work = 0
        self.most_at_work = 0
        self.opened = asyncio.Event()

    async def __call__(self, ctx: RunContext) -> str | None:
        self.started.append(ctx.run.id)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await self.opened.wait()
        finally:
            self.at_work -= 1
        return self.answer


class WorkerTests:
    """Gives every test a stage, on each store, and shows after it that the worker has left no task."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture(params=STORES)
    async def store(self, request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[ThreadStore]:
        async with request.param(clock) as store:
            yield store

    @pytest.fixture
    async def stage(self, store: ThreadStore, clock: ManualClock) -> AsyncIterator[Stage]:
        before = asyncio.all_tasks()
        yield Stage(store, clock)
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        assert not [task for task in left if _is_the_workers(task)], "the worker left tasks"
        assert not clock.sleepers
