"""A process that is frozen (SIGSTOP) in the middle of a write, with the lock on its thread, holds up nobody else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.files.fork_server import PATIENCE, Child, ForkServer
from tests.files.killable import text_of
from tests.files.test_kills import check_files
from threadloom import FileStore, Message, Run, RunStatus, Thread

PROCESSES = 16  # that are frozen, at moments all over the act


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
    """A process that took a run, and was stopped at some moment of the act that finishes it."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.thread_id = self.run_id = self.outcome = ""

    async def stop(self) -> None:
        self.thread_id, self.run_id = (await self.child.said(1))[0].split()
        assert (await self.child.said(2))[1] == "held up"
        self.child.send(signal.SIGSTOP)

    async def wake(self) -> None:
        self.child.send(signal.SIGCONT)
        self.child.tell("go on")
        self.outcome = (await self.child.said(3))[2].split()[0]

    async def check(self, store: FileStore) -> None:
        """Show that the run was forced for good, and that the act was made whole before that, or not at all."""
        assert (await store.get_run(self.thread_id, self.run_id)).status is RunStatus.CANCELLED
        # Who reads the events settles what the run's worker left open.
        events = [event.type async for event in store.events(self.thread_id, self.run_id)]
        assert events[-1] == "thread.run.cancelled"
        messages = await store.list_messages(self.thread_id, run_id=self.run_id)
        [step] = await store.list_steps(self.thread_id, self.run_id)
        assert messages.damaged == ()
        if self.outcome == "completed":
            assert [message.text for message in messages] == [text_of(self.run_id)]
            assert step.status == "completed"
        else:
            assert (self.outcome, list(messages), step.status) == ("lost", [], "cancelled")
        check_files(store.thread_dir(self.thread_id))


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_a_force_gets_past_a_process_that_is_frozen_in_a_write_and_is_not_undone_when_it_wakes(
    server, tmp_path, durability
):
    root: Path = tmp_path / "store"
    # Nobody waits for a lock to the end of this test.
    async with FileStore(root, durability=durability, lock_timeout=timedelta(seconds=2 * PATIENCE)) as store:
        await ask(store)
        whole = server.fork("finish", str(root), durability, None)
        moments = int((await whole.said(2))[1].split()[1])
        frozen: list[Frozen] = []
        # The last moments first: each process that is there has the next ones look at it before they begin.
        for moment in range(moments, 0, -(moments // PROCESSES)):
            await ask(store)
            frozen.append(Frozen(server.fork("finish", str(root), durability, moment)))
            await frozen[-1].stop()

        async with asyncio.timeout(PATIENCE):
            other = await ask(store)
            await store.update_run_status(other.thread_id, other.id, RunStatus.COMPLETED)
            forces = (store.force_update_run_status(p.thread_id, p.run_id, RunStatus.CANCELLED) for p in frozen)
            assert {run.status for run in await asyncio.gather(*forces)} == {RunStatus.CANCELLED}

        for process in frozen:
            await process.wake()
        for process in frozen:
            await process.check(store)
        assert {process.outcome for process in frozen} == {"lost", "completed"}

    for child in [whole, *(process.child for process in frozen)]:
        child.send(signal.SIGKILL)
        await child.killed()
    async with FileStore(root, durability=durability) as store:
        for process in frozen:
            await process.check(store)
