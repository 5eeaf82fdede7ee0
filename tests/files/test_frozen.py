"""A process that is frozen (SIGSTOP) in the middle of a write keeps the lock on its thread, and holds up no other."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.files.fork_server import PATIENCE, Child, ForkServer
from tests.files.killable import text_of
from tests.files.test_kills import check_files
from threadloom import FileStore, LeaseLostError, Message, Run, RunStatus, StoreBusyError, Thread
from threadloom.testing._stage import every_event

PROCESSES = 9  # that are frozen, at moments all over the transaction


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer("tests.files.killable")
    yield server
    server.close()


async def ask(store: FileStore) -> Run:
    thread = await store.create_thread(Thread.new())
    await store.append_message(thread.id, Message.user(thread.id, "hello"))
    return await store.create_run(thread.id, Run.new(thread.id, model="m"))


class Frozen:
    """A process that claimed a run, and was stopped at some moment of the transaction that finishes it."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.thread_id = self.run_id = self.outcome = ""
        self.is_busy = False

    async def stop(self) -> None:
        self.thread_id, self.run_id = (await self.child.said(1))[0].split()
        assert (await self.child.said(2))[1] == "held up"
        self.child.send(signal.SIGSTOP)

    async def force(self, store: FileStore) -> None:
        """Cancel the run, whether or not the process has the lock on the thread."""
        try:
            await store.finalize_run(self.thread_id, self.run_id)
        except StoreBusyError:
            self.is_busy = True
        run = await store.force_update_run_status(self.thread_id, self.run_id, RunStatus.CANCELLED)
        assert run.status is RunStatus.CANCELLED

    async def wake(self) -> None:
        self.child.send(signal.SIGCONT)
        self.child.tell("go on")
        self.outcome = (await self.child.said(3))[2].split()[0]

    async def kill(self) -> None:
        self.child.send(signal.SIGKILL)
        await self.child.killed()
        self.outcome = "killed"

    async def check(self, store: FileStore) -> None:
        """Show that the run is forced for good, and that what the process wrote before that is whole."""
        run = await store.get_run(self.thread_id, self.run_id)
        assert run.status is RunStatus.CANCELLED
        assert (await every_event(store, run))[-1].type == "thread.run.cancelled"
        messages = await store.list_messages(self.thread_id, run_id=self.run_id)
        [step] = await store.list_steps(self.thread_id, self.run_id)
        assert messages.damaged == ()
        if self.outcome == "completed" or (self.outcome == "killed" and messages):
            assert [message.text for message in messages] == [text_of(self.run_id)]
            assert step.status == "completed"
        else:
            assert (list(messages), step.status) == ([], "cancelled")
        check_files(store.thread_dir(self.thread_id))


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_a_frozen_process_holds_up_its_own_thread_only_and_a_force_wins_all_the_same(
    server, tmp_path, durability
):
    root: Path = tmp_path / "store"
    lock_timeout = timedelta(seconds=PATIENCE)
    async with FileStore(root, durability=durability, lock_timeout=lock_timeout) as store:
        await ask(store)
        whole = server.fork("finish", str(root), durability, None)
        moments = int((await whole.said(2))[1].split()[1])
        frozen: list[Frozen] = []
        for moment in [*range(moments, 1, -(moments // PROCESSES or 1)), 1]:
            await ask(store)
            frozen.append(Frozen(server.fork("finish", str(root), durability, moment)))
            await frozen[-1].stop()

        async with asyncio.timeout(PATIENCE):
            other = await ask(store)
            await store.update_run_status(other.thread_id, other.id, RunStatus.COMPLETED)
            async with FileStore(root, durability=durability, lock_timeout=0.05) as impatient:
                await asyncio.gather(*(process.force(impatient) for process in frozen))
        assert {process.is_busy for process in frozen} == {True, False}

        for number, process in enumerate(frozen):
            await (process.kill() if number % 3 == 2 and process.is_busy else process.wake())
        for process in frozen:
            await process.force(store)
            await process.check(store)
        assert {"completed", "killed"} <= {process.outcome for process in frozen}

    for child in [whole, *(process.child for process in frozen if process.outcome != "killed")]:
        child.send(signal.SIGKILL)
        await child.killed()
    async with FileStore(root, durability=durability) as store:
        for process in frozen:
            await process.check(store)


async def test_a_force_wins_although_a_frozen_process_keeps_the_thread_locked(tmp_path):
    async with FileStore(tmp_path, durability="process", lock_timeout=0.05) as store:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        claim = await store.claim_run("worker")
        lock = os.open(store.thread_dir(thread.id), os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreBusyError):
            await store.request_cancel(thread.id, run.id)

        forced = await store.force_update_run_status(thread.id, run.id, RunStatus.CANCELLED)

        assert forced.status is RunStatus.CANCELLED
        assert (await store.get_run(thread.id, run.id)).status is RunStatus.CANCELLED
        with pytest.raises(LeaseLostError):
            await store.check_lease(claim.lease)
        os.close(lock)
        events = [event async for event in store.events(thread.id, run.id)]
        assert events[-1].type == "thread.run.cancelled"
        assert (await store.check()).is_clean
