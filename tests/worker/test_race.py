"""Two thousand runs, each forced to ``cancelled`` at a random moment of its life, while all kinds of handlers work."""

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from tests.support.worker_fixtures import STORES, Stage
from threadloom import (
    Claim,
    FunctionCall,
    Lease,
    Message,
    MessageStatus,
    Run,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWrite,
    ThreadStore,
)
from threadloom.testing import ManualClock
from threadloom.worker import RetryPolicy, RunContext, RunWorker

RUNS = 2_000
# The reference store looks at all it has for every claim; to open a store of files takes longer than to use it.
RUNS_PER_STORE = {"MemoryStore": 8, "FileStoreSomewhere": 200}
LATEST = 14  # moments of a life, of which each claim and each write have two

AFTER = {"thread.run.completed", "thread.run.failed", "thread.run.in_progress", "thread.message.completed"}


async def work(ctx: RunContext, chance: random.Random) -> str | None:  # noqa: C901 - one case a kind of handler
    """Do some of everything, with a chance of being cancelled at each step of it."""
    match chance.randrange(7):
        case 0:
            return "at once"
        case 1:
            raise ValueError
        case 2:
            async with ctx.step([FunctionCall(name="f", arguments="{}")]) as step:
                await rest(chance)
                step.set_output(step.calls[0], "4")
            return "after a step"
        case 3:
            async with ctx.message() as message:
                for word in ("one ", "two ", "three"):
                    await message.write(word)
                    await rest(chance)
        case 4:
            try:
                await rest(chance)
            except asyncio.CancelledError:
                await rest(chance)
            return "in spite of it"
        case 5:
            for word in ("one", "two"):
                await ctx.reply(word)
                await rest(chance)
        case 6:
            try:
                await ctx.reply("one")
                await rest(chance)
            finally:
                await ctx.reply("last words")
    return None


async def rest(chance: random.Random) -> None:
    for _ in range(chance.randrange(4)):
        await asyncio.sleep(0)


class Moments:
    """Counts what a worker does to each run, so that a test can come between."""

    def __init__(self, store: ThreadStore) -> None:
        self._claim_run, self._write_run = store.claim_run, store.write_run
        self._passed: Counter[str] = Counter()
        self._bells: dict[str, asyncio.Event] = {}
        store.claim_run = self._claim  # type: ignore[method-assign]
        store.write_run = self._write  # type: ignore[method-assign]

    async def reach(self, run_id: str, moment: int) -> None:
        """Return when that many moments of the run have passed, or it has ended before."""
        bell = self._bells[run_id] = asyncio.Event()
        while self._passed[run_id] < moment:
            await bell.wait()
            bell.clear()

    async def _claim(self, worker_id: str, **options: Any) -> Claim:
        claim = await self._claim_run(worker_id, **options)
        self._pass(claim.run.id)
        return claim

    async def _write(self, lease: Lease, work: RunWrite) -> Run:
        self._pass(lease.run_id)
        try:
            return await self._write_run(lease, work)
        finally:
            has_ended = work.status not in {None, RunStatus.QUEUED}
            self._pass(lease.run_id, LATEST if has_ended else 1)

    def _pass(self, run_id: str, count: int = 1) -> None:
        self._passed[run_id] += count
        if run_id in self._bells:
            self._bells[run_id].set()


async def force(stage: Stage, run: Run, moments: Moments, chance: random.Random) -> tuple[list[Message], int]:
    """Cancel the run by force, at some moment of its life; return what was there when that returned."""
    await moments.reach(run.id, chance.randrange(LATEST))
    await rest(chance)
    await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)
    messages = await stage.answers(run)
    events = (await stage.store.read_events(run.thread_id, run.id)).events
    return messages, events[-1].number


async def check(stage: Stage, run: Run, messages: list[Message], number: int) -> str:
    """Show that nothing happened to the run after the force but its settlement; say how far it had come."""
    now = await stage.run(run)
    assert now.status is RunStatus.CANCELLED
    added = (await stage.answers(run))[len(messages) :]
    assert len(added) <= 1
    assert all(message.status is MessageStatus.INCOMPLETE for message in added)
    steps: list[RunStep] = await stage.steps(run)
    assert all(step.status is not RunStepStatus.IN_PROGRESS for step in steps)
    later = [event.type async for event in stage.store.events(run.thread_id, run.id, after=number)]
    assert not AFTER.intersection(later)
    names = await stage.events(run)
    assert names[-1] == "run.cancelled"  # the force's own, so that nothing at all has come after it
    assert names.count("run.cancelled") == 1
    assert names.count("message.created") == names.count("message.completed") + names.count("message.incomplete")
    for status in ("completed", "failed"):
        if f"run.{status}" in names:
            return f"was {status}"
    return "was at work" if "run.in_progress" in names else "was queued"


@pytest.mark.parametrize("open_store", STORES)
async def test_a_run_that_was_forced_to_cancelled_is_never_seen_otherwise_again(open_store, caplog):
    caplog.set_level("CRITICAL", "threadloom")  # what the handlers raise
    chance = random.Random(20260826)
    seen: Counter[str] = Counter()
    seeds: dict[str, int] = {}

    async def handler(ctx: RunContext) -> str | None:
        return await work(ctx, random.Random(seeds[ctx.run.id]))

    while seen.total() < RUNS:
        clock = ManualClock()
        store: ThreadStore
        async with open_store(clock) as store:
            stage = Stage(store, clock)
            moments = Moments(store)
            threads = [await stage.thread("hello") for _ in range(RUNS_PER_STORE[type(store).__name__] // 2)]
            retry = RetryPolicy(first_delay=timedelta())
            async with RunWorker(store, handler, concurrency=16, retry=retry), asyncio.TaskGroup() as group:
                forced = []
                for thread in threads * 2:
                    run = Run.new(thread.id, model="any")
                    seeds[run.id] = chance.getrandbits(32)
                    moment = random.Random(f"force {seeds[run.id]}")
                    await store.create_run(thread.id, run)
                    forced.append((run, group.create_task(force(stage, run, moments, moment))))
            for run, task in forced:
                seen[await check(stage, run, *task.result())] += 1
    assert seen.total() == RUNS
    # It is a race only where it is won by either side, and at every stage.
    assert min(seen[stage] for stage in ("was queued", "was at work", "was completed", "was failed")) > RUNS // 100
