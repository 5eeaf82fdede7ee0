"""Runs of workers that are gone are taken back: by real processes that are killed, frozen and woken."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest

from threadloom import (
    Claim,
    FileStore,
    LeaseLostError,
    Message,
    Run,
    RunError,
    RunStatus,
    RunStepStatus,
    RunWorker,
    RunWrite,
    Thread,
)
from threadloom.testing import ManualClock

PATIENCE = 20

# All that a worker can write for its run, by the names that it goes by below.
TRIED = ["status", "back", "message", "streamed", "step", "old step", "delta", "checkpoint", "usage", "all"]

WORKER = """
import asyncio, os, sys
from datetime import timedelta
from pathlib import Path
import attrs
from threadloom import *

ROOT, MODE = sys.argv[1:]

async def main():
    async with FileStore(ROOT, durability="process") as store:
        claim = await store.claim_run("the_other")
        if MODE == "forked" and os.fork() == 0:
            sys.stdin.read()  # outlives its parent, with copies of all its descriptors
            os._exit(0)
        if MODE == "copying":  # as a backup within the process does, which takes the POSIX locks along
            for path in Path(ROOT).rglob("*"):
                path.is_file() and path.read_bytes()
        if MODE == "cancelling":
            await store.request_cancel(claim.run.thread_id, claim.run.id)
        step = RunStep.tool_calls(thread_id=claim.run.thread_id, run_id=claim.run.id)
        await store.write_run(claim.lease, RunWrite(items=(step,)))
        print("at work", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        ids = {"thread_id": claim.run.thread_id, "run_id": claim.run.id}
        reply = Message.assistant(claim.run.thread_id, "too late", run_id=claim.run.id)
        opened = attrs.evolve(reply, status=MessageStatus.IN_PROGRESS, content=(), completed_at=None)
        works = {
            "status": RunWrite(status=RunStatus.COMPLETED),
            "back": RunWrite(status=RunStatus.QUEUED),
            "message": RunWrite(items=(reply,)),
            "streamed": RunWrite(items=(opened, MessageDelta(reply.id, "too"))),
            "step": RunWrite(items=(RunStep.tool_calls(**ids),)),
            "old step": RunWrite(items=(attrs.evolve(step, status=RunStepStatus.COMPLETED),)),
            "delta": RunWrite(items=(StepDelta(step.id, 0, ToolCall.new(FunctionCall(name="f", arguments=""))),)),
            "checkpoint": RunWrite(items=(Checkpoint("late", 1),)),
            "usage": RunWrite(usage=Usage(1, 1, 2)),
            "all": RunWrite(items=(reply, Checkpoint("late", 1)), status=RunStatus.COMPLETED),
        }
        for name, work in works.items():
            try:
                await store.write_run(claim.lease, work)
            except LeaseLostError:
                print(name, "lost", flush=True)
        print("done", flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        yield store


@pytest.fixture
async def run(store):
    thread = await store.create_thread(Thread.new())
    return await store.create_run(thread.id, Run.new(thread.id, model="m"))


class Other:
    """A worker's process that has taken the one run there is."""

    def __init__(self, store, mode="plain"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(store.root), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def at_work(self):
        assert await self.line() == "at work"

    async def line(self):
        assert self.process.stdout is not None
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    async def lost(self):
        """Yield what it could not write, until it has tried all that a worker can."""
        while (line := await self.line()) != "done":
            yield line.removesuffix(" lost")

    def go_on(self):
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def other(store):
    others = []

    def start(mode="plain"):
        others.append(Other(store, mode))
        return others[-1]

    yield start
    for started in others:
        started.process.kill()
        started.process.communicate()


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def claimed(store) -> Claim:
    async with asyncio.timeout(PATIENCE):
        claim = await store.claim_run("worker")
    assert isinstance(claim, Claim)
    return claim


async def looked(store):
    """Wait until a store has looked at the others again, and found nobody gone."""
    backend = store._backend
    backend._searched = None
    backend._abandoned_wake.set()
    async with asyncio.timeout(PATIENCE):
        while backend._searched is None:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def came_to(store, run, status):
    async with asyncio.timeout(PATIENCE):
        while (now := await store.get_run(run.thread_id, run.id)).status is not status:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return now


@pytest.mark.parametrize("mode", ["plain", "forked", "copying"])
async def test_a_run_of_a_process_that_was_killed_is_put_back_and_counts_an_attempt(store, run, other, mode):
    dying = other(mode)
    await dying.at_work()
    waiting = asyncio.create_task(claimed(store))
    await store.get_run(run.thread_id, run.id)
    dying.process.send_signal(signal.SIGKILL)

    claim = await waiting
    assert (claim.run.id, claim.run.attempt, claim.lease.attempt) == (run.id, 2, 2)
    [step] = await store.list_steps(run.thread_id, run.id)
    assert step.status is RunStepStatus.FAILED


async def test_a_process_that_has_read_its_own_files_is_not_taken_for_dead(store, run, other):
    copying = other("copying")
    await copying.at_work()

    assert await store.try_claim_run("worker") is None
    async with asyncio.timeout(PATIENCE):
        while store._backend._searched is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert await asyncio.to_thread(store._backend._peers.gone) == frozenset()
    copying.go_on()
    ended = await store.wait_for_run(run.thread_id, run.id, timeout=timedelta(seconds=PATIENCE))
    assert (ended.status, ended.attempt) == (RunStatus.COMPLETED, 1)


async def test_a_run_left_by_a_process_that_died_before_any_other_came_is_taken_back(store, run, other):
    dying = other()
    await dying.at_work()
    dying.process.kill()
    await asyncio.to_thread(dying.process.wait)

    async with FileStore(store.root, durability="process") as later:
        assert (await claimed(later)).run.attempt == 2


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, None], ids=["finished", "at-work"])
async def test_a_process_that_is_frozen_past_its_lease_loses_its_run_and_writes_nothing_when_it_wakes(
    store, run, other, status
):
    frozen = other()
    await frozen.at_work()
    frozen.process.send_signal(signal.SIGSTOP)

    # Only here is anybody taken for hung so soon: a busy machine makes everybody seem so.
    async with FileStore(store.root, durability="process", lease_duration=timedelta(seconds=1)) as impatient:
        claim = await claimed(impatient)
        reply = Message.assistant(run.thread_id, "in time", run_id=run.id)
        await impatient.write_run(claim.lease, RunWrite(items=(reply,), status=status))
        left = contents(store.thread_dir(run.thread_id))
        frozen.process.send_signal(signal.SIGCONT)
        frozen.go_on()

        assert [name async for name in frozen.lost()] == TRIED
        assert contents(store.thread_dir(run.thread_id)) == left, "not a byte of it got in"
        assert [message.text for message in await store.list_messages(run.thread_id)] == ["in time"]
        assert (await store.get_run(run.thread_id, run.id)).status is (status or RunStatus.IN_PROGRESS)


async def test_a_run_is_failed_when_its_last_attempt_is_lost(tmp_path, other, store, run):
    dying = other()
    await dying.at_work()
    async with FileStore(store.root, durability="process", max_attempts=1) as strict:
        assert await strict.try_claim_run("worker") is None
        dying.process.kill()
        ended = await strict.wait_for_run(run.thread_id, run.id, timeout=timedelta(seconds=PATIENCE))
    assert ended.status is RunStatus.FAILED
    assert ended.last_error == RunError("server_error", "The worker was lost in attempt 1, which was the last.")


async def test_a_run_that_was_asked_to_stop_is_cancelled_and_not_revived(store, run, other):
    dying = other("cancelling")
    await dying.at_work()
    assert await store.try_claim_run("worker") is None
    dying.process.kill()

    ended = await store.wait_for_run(run.thread_id, run.id, timeout=timedelta(seconds=PATIENCE))
    assert ended.status is RunStatus.CANCELLED
    events = [event.type async for event in store.events(run.thread_id, run.id)]
    assert events[-1] == "thread.run.cancelled"
    assert [step.status for step in await store.list_steps(run.thread_id, run.id)] == [RunStepStatus.CANCELLED]


async def test_a_run_that_somebody_drives_by_hand_is_left_alone(store, run):
    await store.update_run_status(run.thread_id, run.id, RunStatus.IN_PROGRESS)
    async with FileStore(store.root, durability="process") as later:
        assert await later.try_claim_run("worker") is None
        await looked(later)
        assert (await later.get_run(run.thread_id, run.id)).status is RunStatus.IN_PROGRESS


async def test_a_run_that_a_closed_store_did_not_give_back_is_taken_by_one_that_is_open(store, run):
    async with FileStore(store.root, durability="process") as closing:
        left = await claimed(closing)
        waiting = asyncio.create_task(claimed(store))
        await store.get_run(run.thread_id, run.id)
    claim = await waiting

    assert (claim.run.id, claim.run.attempt) == (run.id, 2)
    with pytest.raises(LeaseLostError):
        await store.write_run(left.lease, RunWrite())


async def test_stores_of_one_process_do_not_take_each_other_for_dead(store, run):
    async with FileStore(store.root, durability="process", lease_duration=timedelta(milliseconds=30)) as second:
        claim = await claimed(store)
        assert await second.try_claim_run("worker") is None
        for _ in range(3):
            await looked(second)
        await store.check_lease(claim.lease)


async def test_what_the_dead_leave_is_cleared_away(store, run, other):
    dying = other()
    await dying.at_work()
    dying.process.kill()
    await claimed(store)
    stores = store.root / ".threadloom" / "stores"
    async with asyncio.timeout(PATIENCE):
        while len(list(stores.iterdir())) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_worker_goes_on_with_the_runs_of_one_that_was_killed(store, run, other):
    dying = other()
    await dying.at_work()

    async def answer(ctx):
        return f"attempt {ctx.attempt}"

    async with RunWorker(store, answer):
        dying.process.kill()
        await store.wait_for_run(run.thread_id, run.id, timeout=timedelta(seconds=PATIENCE))
    assert [message.text for message in await store.list_messages(run.thread_id)] == ["attempt 2"]


async def test_a_run_that_waits_past_its_time_expires_while_a_worker_lives(store, run):
    expires_at = int(store.clock.time_ns() // 1_000_000_000) + 1
    waiting = await store.create_run(
        run.thread_id, Run.new(run.thread_id, model="m", status=RunStatus.REQUIRES_ACTION, expires_at=expires_at)
    )
    await store.update_run_status(run.thread_id, run.id, RunStatus.COMPLETED)
    claiming = asyncio.create_task(store.claim_run("worker"))
    ended = await came_to(store, waiting, RunStatus.EXPIRED)
    claiming.cancel()
    assert ended.last_error is None


async def test_a_run_of_a_worker_that_is_gone_is_not_adopted_but_taken_back(store, run, other):
    dying = other()
    await dying.at_work()
    assert await store.try_claim_run("worker", adopt=True) is None, "it has a lease, and a live one"
    await store.close()
    dying.process.kill()
    await asyncio.to_thread(dying.process.wait)

    async with FileStore(store.root, durability="process") as later, asyncio.timeout(PATIENCE):
        claim = await later.claim_run("worker", adopt=True)
    assert (claim.run.id, claim.run.attempt) == (run.id, 2), "the attempt counts as lost"


@pytest.mark.parametrize("jump", [timedelta(days=400), timedelta(days=-400)])
async def test_a_wall_clock_that_is_set_takes_no_lease_from_anybody(tmp_path, jump):
    clock = ManualClock()
    async with FileStore(tmp_path, clock=clock) as store, FileStore(tmp_path, clock=clock) as other:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
        claim = await claimed(store)
        assert await other.try_claim_run("worker") is None
        clock.step_wall_clock(jump)
        for each in (store, other):
            await looked(each)
        await other.check_lease(claim.lease)
        ended = await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
    assert (ended.id, ended.attempt) == (run.id, 1)


LEFT_HALF_DONE = """
import asyncio, os, signal, sys
from threadloom import *
from threadloom.stores.files.commit import Commit

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with FileStore(sys.argv[1], durability="process") as store:
        for name in ("t1", "t2"):
            await store.create_thread(Thread(id=name, created_at=1))
            await store.create_run(name, Run(id="r", created_at=1, thread_id=name, status=RunStatus.QUEUED, model="m"))
        Commit._project = killed
        await asyncio.gather(*(store.update_run_status(name, "r", RunStatus.COMPLETED) for name in ("t1", "t2")))

asyncio.run(main())
"""


@pytest.mark.parametrize("locked", ["t1", "t2"])
async def test_a_lock_on_one_thread_hides_nothing_that_was_left_half_done_in_another(tmp_path, locked):
    command = [sys.executable, "-c", LEFT_HALF_DONE, str(tmp_path)]
    await asyncio.to_thread(subprocess.run, command, check=False)
    finished = RunStatus.COMPLETED if (tmp_path / "t1/runs/r/events.jsonl").read_bytes().count(b"completed") else None
    lock = os.open(tmp_path / locked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        async with FileStore(tmp_path, durability="process") as store:
            if locked == "t2":
                assert (await store.get_run("t1", "r")).status is finished
    finally:
        os.close(lock)
    async with FileStore(tmp_path, durability="process") as store:
        assert (await store.get_run("t1", "r")).status is RunStatus.COMPLETED
        # The process died before it came to the second thread, whose log says nothing of an end.
        assert (await store.get_run("t2", "r")).status is RunStatus.QUEUED
