"""What the chapters of the conformance suite share: the store under test, ways to look at it, words for setting up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import attrs
import pytest
import pytest_asyncio
from attrs import frozen

from threadloom.check_report import ProblemKind
from threadloom.events import EventType, MessageDelta, RunEvent
from threadloom.models import Message, MessageStatus, Run, RunStatus, RunStep, Thread
from threadloom.pages import Page
from threadloom.records import Lease, RunWrite
from threadloom.store import Claim, ThreadStore
from threadloom.testing._clock import ManualClock

__all__ = [
    "LIVE",
    "NOT_IDS",
    "NOT_TEXT",
    "PARTS",
    "PATIENCE",
    "TERMINAL",
    "TEXTS",
    "Stage",
    "ThreadPicture",
    "Work",
    "announced",
    "check_is_clean",
    "duration_of",
    "events_until",
    "every_event",
    "follow",
    "let_pass",
    "names",
    "new_claim",
    "new_run",
    "new_step",
    "new_thread",
    "picture",
    "say",
    "scribble",
    "still_waiting",
    "thread_picture",
    "until",
    "working_run",
]

PATIENCE: Final = 30.0  # seconds after which a test that waits for something has failed
A_MOMENT: Final = 0.02  # seconds for which a test makes sure that nothing happens
PARTS: Final = tuple(n / 8 for n in range(13))  # of the time that a write takes: when to cancel it
TERMINAL: Final = tuple(status for status in RunStatus if status.is_terminal)
LIVE: Final = tuple(status for status in RunStatus if not status.is_terminal)

NOT_IDS: Final[dict[str, Any]] = {
    "dots": "..",
    "slash": "a/b",
    "absolute": "/etc/passwd",
    "backslash": "a\\b",
    "empty": "",
    "too_long": "a" * 129,
    "far_too_long": "a" * 300,
    "nul": "a\0b",
    "newline_last": "a\n",
    "leading_dot": ".hidden",
    "leading_dash": "-rf",
    "space": "a b",
    "non_ascii": "thread_ä",
    "non_ascii_digit": "thread_٣",
    "none": None,
    "number": 7,
    "bytes": b"thread",
}

TEXTS: Final = {
    "empty": "",
    "newlines": "one\ntwo\r\nthree\r\n\n",
    "separators": "a\u2028b\u2029c\x85d\x0be",
    "nul": "a\0b",
    "emoji": "☕👩🏽‍💻🇦🇶",
    "quotes": '"quoted" \\ {"json": "[1]"}',
    "beyond_bmp": "𝄞\U0010ffff\ufeff",
    "long": "äöü" * 50_000,
}

NOT_TEXT: Final = "a lone surrogate: \ud83d"


class Stage:
    """Opens the store under test, and shows it from two sides."""

    async def open_store(self, clock: ManualClock) -> ThreadStore:
        """Return a new, empty store on ``clock``, open."""
        raise NotImplementedError

    @asynccontextmanager
    async def fresh(self, store: ThreadStore) -> AsyncIterator[ThreadStore]:
        """Yield the data of ``store`` through a store that was just opened: here, the same one, closed and opened."""
        await store.close()
        yield await store.__aenter__()

    @asynccontextmanager
    async def beside(self, store: ThreadStore) -> AsyncIterator[ThreadStore]:
        """Yield a second store on the data of ``store``, which stays open: here, ``store`` itself."""
        yield store

    async def views(self, store: ThreadStore) -> AsyncIterator[ThreadStore]:
        """Yield the open store, then one that was just opened on the same data."""
        yield store
        async with self.fresh(store) as again:
            yield again

    @pytest.fixture
    def clock(self) -> ManualClock:
        """Return the clock of the store under test."""
        return ManualClock()

    @pytest_asyncio.fixture
    async def store(self, clock: ManualClock) -> AsyncIterator[ThreadStore]:
        """Yield the store under test, open and empty."""
        async with await self.open_store(clock) as store:
            yield store
            await store.__aenter__()  # a test may have closed it
            await check_is_clean(store)


async def check_is_clean(store: ThreadStore) -> None:
    """Require that nothing is wrong with a store, but for leases of one that was closed on the same data."""
    report = await store.check()
    assert [problem for problem in report.problems if problem.kind is not ProblemKind.DEAD_LEASE] == []


async def new_thread(store: ThreadStore, **options: Any) -> Thread:
    """Create a thread."""
    return await store.create_thread(Thread.new(**options))


async def say(store: ThreadStore, thread_id: str, *texts: str) -> list[Message]:
    """Append a user's messages to a thread."""
    return [await store.append_message(thread_id, Message.user(thread_id, text)) for text in texts]


async def new_run(store: ThreadStore, thread_id: str | None = None, **options: Any) -> Run:
    """Create a run, in a new thread unless one is named."""
    if thread_id is None:
        thread_id = (await new_thread(store)).id
    return await store.create_run(thread_id, Run.new(thread_id, model="any", **options))


async def new_claim(store: ThreadStore, thread_id: str | None = None, **options: Any) -> Claim:
    """Create a run and claim it; no other run may be waiting."""
    run = await new_run(store, thread_id, **options)
    claim = await store.try_claim_run("worker_1")
    assert claim is not None
    assert claim.run.id == run.id
    return claim


@frozen
class Work:
    """A run that a worker is in the middle of: an open step, and a message that is being streamed into it."""

    run: Run
    lease: Lease
    step: RunStep
    message: Message


async def working_run(store: ThreadStore, *pieces: str) -> Work:
    """Create a run, claim it, open a step and a message, and stream ``pieces`` into it."""
    claim = await new_claim(store)
    thread_id, run_id = claim.run.thread_id, claim.run.id
    message = announced(Message.assistant(thread_id, "", run_id=run_id))
    step = RunStep.message_creation(thread_id=thread_id, run_id=run_id, message_id=message.id)
    deltas = tuple(MessageDelta(message.id, piece) for piece in pieces)
    run = await store.write_run(claim.lease, RunWrite(items=(step, message, *deltas)))
    step = await store.get_step(thread_id, run_id, step.id)
    return Work(run, claim.lease, step, message)


def announced(message: Message) -> Message:
    """Return ``message`` as it is announced before its text is there."""
    return attrs.evolve(message, status=MessageStatus.IN_PROGRESS, content=(), completed_at=None)


async def new_step(store: ThreadStore, run: Run, **changes: Any) -> RunStep:
    """Append an open step to a run."""
    step = RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id)
    return await store.append_step(run.thread_id, run.id, attrs.evolve(step, **changes))


async def every_event(store: ThreadStore, run: Run) -> list[RunEvent]:
    """Return the events of a run so far, also of one that goes on."""
    events: list[RunEvent] = []
    position: Any = None
    while True:
        batch = await store.read_events(run.thread_id, run.id, position=position)
        position = batch.position
        events += batch.events
        if batch.is_all:
            return events


async def events_until(store: ThreadStore, run: Run, last: EventType, *, after: int = 0) -> list[RunEvent]:
    """Follow a run from event ``after`` on until ``last`` comes, and return the events."""
    events: list[RunEvent] = []
    async with asyncio.timeout(PATIENCE), aclosing(follow(store, run, after=after)) as following:
        async for event in following:
            events.append(event)
            if event.type is last:
                break
    return events


def follow(store: ThreadStore, run: Run, *, after: int = 0) -> AsyncGenerator[RunEvent]:
    """Return the events of a run as a generator that can be closed."""
    return store.events(run.thread_id, run.id, after=after)


def names(events: Iterable[RunEvent]) -> list[str]:
    """Return the names of events, without the word that all of them begin with."""
    return [event.type.value.removeprefix("thread.") for event in events]


@frozen
class ThreadPicture:
    """All that a store shows of one thread."""

    thread: Thread
    messages: Page[Message]
    runs: Page[Run]
    steps: tuple[Page[RunStep], ...]
    events: tuple[tuple[RunEvent, ...], ...]


async def thread_picture(store: ThreadStore, thread_id: str) -> ThreadPicture:
    """Return all that a store shows of a thread."""
    runs = await store.list_runs(thread_id)
    return ThreadPicture(
        await store.get_thread(thread_id),
        await store.list_messages(thread_id),
        runs,
        tuple([await store.list_steps(thread_id, run.id) for run in runs]),
        tuple([tuple(await every_event(store, run)) for run in runs]),
    )


async def picture(store: ThreadStore) -> list[ThreadPicture]:
    """Return all that a store shows: what was refused has changed nothing in it."""
    return [await thread_picture(store, thread_id) for thread_id in await store.list_thread_ids()]


def scribble(*handed_out: Any) -> None:
    """Change mappings that a store has handed out: they are read-only by their type, but callers do it all the same."""
    for mapping in handed_out:
        mapping["changed"] = "out"


async def still_waiting(*tasks: asyncio.Task[Any]) -> None:
    """Require that tasks go on waiting: none of them ends within a moment."""
    done, _ = await asyncio.wait(tasks, timeout=A_MOMENT)
    assert not done


async def duration_of(work: Awaitable[object]) -> float:
    """Return how many seconds ``work`` takes."""
    begun = asyncio.get_running_loop().time()
    await work
    return asyncio.get_running_loop().time() - begun


async def let_pass(seconds: float) -> None:
    """Let the other tasks go on for some time, exactly: a timer of the loop may be a millisecond late."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - nothing happens at that time
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for is no event of ours
            await asyncio.sleep(0)
