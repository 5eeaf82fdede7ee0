"""A check while others work on the store, in this process and in others."""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest

from tests.files.check_damage import a_damaged_message, a_dead_lease
from tests.support.check_fixtures import MESSAGES, THREAD, append, fill, found, full_store
from threadloom import FileStore, Message, Run, RunStatus, StoreClosedError, Thread
from threadloom.testing import ManualClock

PATIENCE = 20


@pytest.fixture
async def store(tmp_path):
    async with full_store(tmp_path / "store") as store:
        yield store


WORKER = """
import asyncio, sys
from threadloom import *

async def main():
    async with FileStore(sys.argv[1], durability="process") as store:
        claim = await store.claim_run("worker_of_another")
        print(claim.run.id, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


async def test_the_lease_of_a_living_process_is_no_problem_and_that_of_a_killed_one_is(store):
    await store.create_thread(Thread.new(id="thread_c"))
    run = await store.create_run("thread_c", Run.new("thread_c", model="any"))
    arguments = [sys.executable, "-c", WORKER, str(store.root)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert await asyncio.to_thread(worker.stdout.readline) == f"{run.id}\n"
        assert (await store.check(fix=True)).problems == ()
        worker.kill()
        worker.wait()

    assert found(await store.check()) == [("dead_lease", f"thread_c/runs/{run.id}/status.json")]
    assert (await store.check(fix=True)).is_clean
    assert (await store.get_run("thread_c", run.id)).attempt == 2
    assert (await store.check()).problems == ()


WRITER = """
import asyncio, sys
from threadloom import *

async def answer(ctx):
    async with ctx.message() as message:
        for piece in "so it goes on":
            await message.write(piece)

async def main():
    async with FileStore(sys.argv[1], durability="process") as store, RunWorker(store, answer, concurrency=4):
        print("ready", flush=True)
        while True:
            thread = await store.create_thread(Thread.new())
            await store.append_message(thread.id, Message.user(thread.id, "go"))
            run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
            await store.wait_for_run(thread.id, run.id)
            await store.update_message(thread.id, (await store.list_messages(thread.id))[0].id, metadata={"a": "b"})
            await store.delete_thread(thread.id)

asyncio.run(main())
"""


async def test_what_others_are_just_writing_is_no_problem(store):
    arguments = [sys.executable, "-c", WRITER, str(store.root)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        try:
            assert await asyncio.to_thread(writer.stdout.readline) == "ready\n"
            problems = [problem for _ in range(100) for problem in (await store.check()).problems]
            assert writer.poll() is None
        finally:
            writer.kill()
    assert problems == []


async def test_a_sound_thread_is_checked_while_another_holds_its_lock_and_a_suspect_is_named(tmp_path):
    patience = timedelta()
    async with FileStore(tmp_path / "store", durability="process", lock_timeout=patience, clock=ManualClock()) as store:
        await fill(store, THREAD)
        fd = os.open(store.root / THREAD, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert (await store.check(fix=True)).problems == ()
        a_damaged_message(store.root)
        report = await store.check(fix=True)
        assert found(report) == [("not_checked", THREAD)]
        os.close(fd)
        assert (await store.check(fix=True)).is_clean


async def test_writes_go_on_between_the_pieces_of_a_check(store):
    lines = [
        json.dumps({"id": f"msg_{n}", "created_at": 1, "thread_id": THREAD, "role": "user", "content": []})
        for n in range(20_000)
    ]
    append(store.root / MESSAGES, "".join(f"{line}\n" for line in lines).encode())
    begun = asyncio.Event()
    checking = asyncio.create_task(store.check(progress=lambda done, total: begun.set()))
    await begun.wait()

    for number in range(10):
        await store.append_message(THREAD, Message.user(THREAD, f"{number}"))
        await store.get_message(THREAD, "msg_0")
        assert not checking.done()

    assert (await checking).problems == ()


async def test_progress_is_told_between_threads_and_a_check_is_cancelled_there(store):
    told = []
    await store.check(progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]

    def cancel(done, total):
        if done == 1:
            checking.cancel()

    checking: asyncio.Task = asyncio.create_task(store.check(progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert (await store.check()).problems == ()


async def test_a_fix_is_heard_of(store):
    a_dead_lease(store.root)
    claiming = asyncio.create_task(store.wait_for_run(THREAD, "run_hand"))
    await asyncio.sleep(0)
    await store.check(fix=True)
    assert (await store.get_run(THREAD, "run_hand")).status is RunStatus.QUEUED
    await store.request_cancel(THREAD, "run_hand")
    async with asyncio.timeout(PATIENCE):
        await claiming


async def test_a_closed_store_is_not_checked(store):
    await store.close()
    with pytest.raises(StoreClosedError):
        await store.check()
