"""Conformance: G7, whose callers are cancelled in the middle of everything, and G2, which survives all of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import attrs
import pytest
from attrs import frozen

from threadloom.errors import ThreadNotFoundError
from threadloom.events import MessageDelta
from threadloom.models import Message, Run, RunStatus, RunStep, RunStepStatus, Thread
from threadloom.records import Lease, RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._stage import (
    PARTS,
    Stage,
    announced,
    duration_of,
    let_pass,
    picture,
    thread_picture,
    working_run,
)
from threadloom.validation import IdempotencyKey

__all__ = ["CancellationConformance"]


@frozen
class Scene:
    """A thread with a message and a run at work. Two of them differ in nothing but the ``tag`` in their ids."""

    tag: str
    lease: Lease

    @property
    def thread_id(self) -> str:
        """The thread."""
        return f"thread_{self.tag}"

    @property
    def run_id(self) -> str:
        """The run at work."""
        return f"run_{self.tag}"

    def id(self, name: str) -> str:
        """Return the id of something else in the thread."""
        return f"{name}_{self.tag}"

    def message(self, name: str, text: str) -> Message:
        """Return a message of the run, always the same."""
        message = Message.assistant(self.thread_id, text, run_id=self.run_id)
        return attrs.evolve(message, id=self.id(name), created_at=1, completed_at=1)

    def asked(self, name: str) -> Message:
        """Return a message of nobody's run, always the same."""
        return attrs.evolve(self.message(name, "new"), run_id=None)

    @property
    def key(self) -> IdempotencyKey:
        """An idempotency key."""
        return IdempotencyKey(self.tag, self.tag)

    def step(self, name: str) -> RunStep:
        """Return an open step of the run, always the same."""
        step = RunStep.tool_calls(thread_id=self.thread_id, run_id=self.run_id)
        return attrs.evolve(step, id=self.id(name), created_at=1)

    def run(self, name: str) -> Run:
        """Return a run, always the same."""
        return attrs.evolve(Run.new(self.thread_id, model="any"), id=self.id(name), created_at=1)


async def set_up(store: ThreadStore, tag: str) -> Scene:
    """Create a scene: a message, a run at work with an open step, and an open message with half a text."""
    thread = await store.create_thread(Thread(id=f"thread_{tag}", created_at=1))
    run = attrs.evolve(Run.new(thread.id, model="any"), id=f"run_{tag}", created_at=1)
    await store.create_run(thread.id, run)
    claim = await store.try_claim_run("worker_1")
    assert claim is not None
    scene = Scene(tag, claim.lease)
    await store.append_message(thread.id, scene.message("msg", "whole"))
    streamed = (announced(scene.message("open", "")), MessageDelta(scene.id("open"), "half a "))
    await store.write_run(scene.lease, RunWrite(items=(scene.step("step"), *streamed)))
    return scene


async def show(store: ThreadStore, scene: Scene) -> str:
    """Return all that is in a scene, without what tells it from another one."""
    try:
        shown = repr(await thread_picture(store, scene.thread_id))
    except ThreadNotFoundError:
        return "nothing"
    return re.sub(r"sequence=\d+", "sequence=…", shown.replace(scene.tag, "…"))


WRITES: dict[str, Callable[[ThreadStore, Scene], Awaitable[object]]] = {
    "update_thread": lambda store, scene: store.update_thread(scene.thread_id, metadata={"k": "v"}),
    "update_thread_by_function": lambda store, scene: store.update_thread(
        scene.thread_id, metadata=lambda old: old | {"k": "v"}
    ),
    "delete_thread": lambda store, scene: store.delete_thread(scene.thread_id, force=True),
    "append_message": lambda store, scene: store.append_message(scene.thread_id, scene.asked("new")),
    "append_message_under_a_key": lambda store, scene: store.append_message(
        scene.thread_id, scene.asked("new"), key=scene.key
    ),
    "update_message": lambda store, scene: store.update_message(scene.thread_id, scene.id("msg"), metadata={"k": "v"}),
    "delete_message": lambda store, scene: store.delete_message(scene.thread_id, scene.id("msg")),
    "create_run": lambda store, scene: store.create_run(scene.thread_id, scene.run("new")),
    "create_run_that_interrupts": lambda store, scene: store.create_run(
        scene.thread_id, scene.run("new"), on_busy="interrupt", messages=[scene.asked("new")], key=scene.key
    ),
    "create_run_that_rolls_back": lambda store, scene: store.create_run(
        scene.thread_id, scene.run("new"), on_busy="rollback", messages=[scene.asked("new")], key=scene.key
    ),
    "update_run": lambda store, scene: store.update_run(scene.thread_id, scene.run_id, metadata={"k": "v"}),
    "update_run_status": lambda store, scene: store.update_run_status(scene.thread_id, scene.run_id, RunStatus.FAILED),
    "force_update_run_status": lambda store, scene: store.force_update_run_status(
        scene.thread_id, scene.run_id, RunStatus.CANCELLED
    ),
    "request_cancel": lambda store, scene: store.request_cancel(scene.thread_id, scene.run_id),
    "append_step": lambda store, scene: store.append_step(scene.thread_id, scene.run_id, scene.step("new")),
    "update_step_status": lambda store, scene: store.update_step_status(
        scene.thread_id, scene.run_id, scene.id("step"), RunStepStatus.COMPLETED
    ),
    "write_a_piece": lambda store, scene: store.write_run(
        scene.lease, RunWrite(items=(MessageDelta(scene.id("open"), "word"),))
    ),
    "write_the_end": lambda store, scene: store.write_run(
        scene.lease,
        RunWrite(items=(scene.message("open", "half a word"), scene.step("more")), status=RunStatus.COMPLETED),
    ),
}


class CancellationConformance(Stage):
    """What is left when the task that called a store is cancelled, or the store is closed."""

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    async def test_g7_a_write_that_is_cancelled_happens_whole_or_not_at_all(
        self, store: ThreadStore, write: Callable[[ThreadStore, Scene], Awaitable[object]]
    ) -> None:
        model = await set_up(store, "tag00")
        nothing = await show(store, model)
        duration = await duration_of(write(store, model))
        whole = await show(store, model)
        scenes = [model]
        for n, part in enumerate(PARTS, start=1):
            scene = await set_up(store, f"tag{n:02}")
            scenes.append(scene)
            writing = asyncio.ensure_future(write(store, scene))
            await let_pass(part * duration)
            writing.cancel()
            await asyncio.wait([writing])
            left = await show(store, scene)
            assert left == whole or (left == nothing and writing.cancelled())
            if left == nothing:
                await write(store, scene)
        async for view in self.views(store):
            assert [await show(view, scene) for scene in scenes] == [whole] * len(scenes)

    async def test_g7_a_cancelled_creation_happens_whole_or_not_at_all(self, store: ThreadStore) -> None:
        duration = await duration_of(store.create_thread(Thread.new(id="thread_model")))
        for n, part in enumerate(PARTS):
            thread = Thread.new(id=f"thread_{n}", metadata={"k": "v"})
            writing = asyncio.create_task(store.create_thread(thread))
            await let_pass(part * duration)
            writing.cancel()
            await asyncio.wait([writing])
            if thread.id in list(await store.list_thread_ids()):
                assert await store.get_thread(thread.id) == thread
            else:
                assert writing.cancelled()
                await store.create_thread(thread)
        async for view in self.views(store):
            assert len(await view.list_threads()) == len(PARTS) + 1

    async def test_g7_cancelling_one_of_many_writers_disturbs_no_other(self, store: ThreadStore) -> None:
        thread = await store.create_thread(Thread.new())
        duration = await duration_of(store.append_message(thread.id, Message.user(thread.id, "first")))
        for part in PARTS:
            writers = [
                asyncio.create_task(store.append_message(thread.id, Message.user(thread.id, f"{part} {n}")))
                for n in range(10)
            ]
            await let_pass(part * duration)
            for writer in writers[::2]:
                writer.cancel()
            await asyncio.wait(writers)
            assert not any(writer.cancelled() for writer in writers[1::2])
        async for view in self.views(store):
            said = [message.text for message in await view.list_messages(thread.id)]
            assert {f"{part} {n}" for part in PARTS for n in range(1, 10, 2)} <= set(said)
            assert len(set(said)) == len(said)

    async def test_g7_cancelled_reads_disturb_nobody(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        thread_id, run_id = work.run.thread_id, work.run.id
        before = await picture(store)
        duration = await duration_of(store.list_messages(thread_id, seen_by=run_id))
        for part in PARTS:
            reads = [
                asyncio.ensure_future(read)
                for read in (
                    store.list_threads(),
                    store.get_thread(thread_id),
                    store.list_messages(thread_id, seen_by=run_id),
                    store.get_run(thread_id, run_id),
                    store.list_runs(thread_id),
                    store.list_steps(thread_id, run_id),
                    store.wait_for_run(thread_id, run_id),
                    store.wait_for_stop(work.lease),
                )
            ]
            await let_pass(part * duration)
            for reading in reads:
                reading.cancel()
            await asyncio.wait(reads)
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_g2_all_that_was_written_is_there_when_the_store_is_opened_again(self, store: ThreadStore) -> None:
        for n, write in enumerate(WRITES.values()):
            await write(store, await set_up(store, f"tag{n:02}"))
        written = await picture(store)
        assert len(written) == len(WRITES) - 1
        async with self.fresh(store) as again:
            assert await picture(again) == written
        async with self.fresh(store) as again:
            assert await picture(again) == written

    async def test_g3_a_read_after_a_write_has_returned_sees_it(self, store: ThreadStore) -> None:
        async with self.beside(store) as other:
            thread = await store.create_thread(Thread.new())
            for n in range(20):
                writer, reader = (store, other)[:: 1 if n % 2 else -1]
                await writer.append_message(thread.id, Message.user(thread.id, str(n)))
                assert (await reader.list_messages(thread.id, order="desc", limit=1))[0].text == str(n)
                await writer.update_thread(thread.id, metadata={"n": str(n)})
                assert (await reader.get_thread(thread.id)).metadata == {"n": str(n)}
                run = await writer.create_run(thread.id, Run.new(thread.id, model=str(n)))
                assert await reader.get_run(thread.id, run.id) == run
                run = await reader.request_cancel(thread.id, run.id)
                assert await writer.get_run(thread.id, run.id) == run
