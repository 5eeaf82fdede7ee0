"""Conformance: what a new run and a new message do where the thread has active runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest

from threadloom.errors import (
    ActiveRunError,
    InvalidInputError,
    LeaseLostError,
    RunAlreadyExistsError,
)
from threadloom.models import Message, MessageStatus, Run, RunStatus
from threadloom.records import RunWrite
from threadloom.store import Claim, ThreadStore
from threadloom.testing._stage import (
    LIVE,
    NOT_TEXT,
    PATIENCE,
    TERMINAL,
    Stage,
    Work,
    announced,
    every_event,
    names,
    new_claim,
    new_run,
    new_thread,
    picture,
    say,
    thread_picture,
    working_run,
)

__all__ = ["BusyConformance", "for_every_end", "reply", "superseded", "texts"]


async def _queued(store: ThreadStore) -> Run:
    return await new_run(store)


async def _by_hand(store: ThreadStore) -> Run:
    run = await new_run(store)
    return await store.update_run_status(run.thread_id, run.id, RunStatus.IN_PROGRESS)


async def _at_work(store: ThreadStore) -> Run:
    return (await new_claim(store)).run


async def _waiting(store: ThreadStore) -> Run:
    return await store.write_run((await new_claim(store)).lease, RunWrite(status=RunStatus.REQUIRES_ACTION))


async def _stopping(store: ThreadStore) -> Run:
    run = (await new_claim(store)).run
    return await store.request_cancel(run.thread_id, run.id)


async def _stopping_by_hand(store: ThreadStore) -> Run:
    run = await new_run(store)
    return await store.update_run_status(run.thread_id, run.id, RunStatus.CANCELLING)


# How a run is active, and what it is as soon as it is stopped.
ACTIVE: dict[str, tuple[Callable[[ThreadStore], Awaitable[Run]], RunStatus]] = {
    "queued": (_queued, RunStatus.CANCELLED),
    "by_hand": (_by_hand, RunStatus.CANCELLED),
    "at_work": (_at_work, RunStatus.CANCELLING),
    "waiting_for_tools": (_waiting, RunStatus.CANCELLED),
    "stopping": (_stopping, RunStatus.CANCELLING),
    "stopping_by_hand": (_stopping_by_hand, RunStatus.CANCELLED),
}
# How a run that was asked to stop while a worker is on it is let go.
ENDS: dict[str, Callable[[ThreadStore, Work], Awaitable[object]]] = {
    "its_worker": lambda store, work: store.write_run(work.lease, RunWrite(status=RunStatus.CANCELLED)),
    "by_hand": lambda store, work: store.update_run_status(work.run.thread_id, work.run.id, RunStatus.CANCELLED),
    "by_force": lambda store, work: store.force_update_run_status(work.run.thread_id, work.run.id, RunStatus.FAILED),
}
for_both_ways = pytest.mark.parametrize("way", ["interrupt", "rollback"])
for_every_end = pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)


async def superseded(store: ThreadStore, thread_id: str, way: Any, **options: Any) -> Run:
    """Create a run that stops those that are active."""
    return await store.create_run(thread_id, Run.new(thread_id, model="any"), on_busy=way, **options)


async def reply(store: ThreadStore, claim: Claim | Work, text: str) -> Message:
    """Write a whole message under a lease."""
    message = Message.assistant(claim.run.thread_id, text, run_id=claim.run.id)
    await store.write_run(claim.lease, RunWrite(items=(announced(message), message)))
    return message


async def texts(store: ThreadStore, thread_id: str, **options: Any) -> list[str]:
    """Return the texts of a thread's messages."""
    return [message.text for message in await store.list_messages(thread_id, **options)]


class BusyConformance(Stage):
    """How a store decides between a run that is active and what comes after it."""

    @pytest.mark.parametrize("status", LIVE)
    async def test_a_message_is_rejected_while_a_run_is_active(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store)
        await store.force_update_run_status(run.thread_id, run.id, status)
        before = await picture(store)
        message = Message.user(run.thread_id, "hello")
        async for view in self.views(store):
            with pytest.raises(ActiveRunError) as caught:
                await view.append_message(run.thread_id, message, on_busy="reject")
            assert (caught.value.thread_id, caught.value.run_id) == (run.thread_id, run.id)
            assert await picture(view) == before
        await store.append_message(run.thread_id, message)
        async for view in self.views(store):
            assert await texts(view, run.thread_id) == ["hello"]

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_a_terminal_run_rejects_no_message(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store, status=status)
        await new_run(store)  # in another thread
        await store.append_message(run.thread_id, Message.user(run.thread_id, "hello"), on_busy="reject")
        async for view in self.views(store):
            assert await texts(view, run.thread_id) == ["hello"]

    @pytest.mark.parametrize("on_busy", ["interrupt", "rollback", "wait", "", None])
    async def test_a_message_knows_two_ways_only(self, store: ThreadStore, on_busy: Any) -> None:
        thread = await new_thread(store)
        with pytest.raises(InvalidInputError, match="on_busy"):
            await store.append_message(thread.id, Message.user(thread.id, "hello"), on_busy=on_busy)
        async for view in self.views(store):
            assert await texts(view, thread.id) == []

    async def test_g1_messages_of_a_new_run_are_appended_before_it_and_seen_by_it(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        older = await new_run(store, thread.id)
        await say(store, thread.id, "one")
        given = (Message.user(thread.id, text) for text in ("two", "three"))
        run = await superseded(store, thread.id, "enqueue", messages=given)
        await say(store, thread.id, "four")
        async for view in self.views(store):
            assert await texts(view, thread.id) == ["one", "two", "three", "four"]
            assert await texts(view, thread.id, seen_by=run.id) == ["one", "two", "three"]
            assert await texts(view, thread.id, seen_by=older.id) == []

    @pytest.mark.parametrize("way", ["interrupt", "rollback"])
    async def test_g1_a_run_that_could_not_be_read_again_stops_nobody(self, store: ThreadStore, way: Any) -> None:
        claim = await new_claim(store)
        await reply(store, claim, "an answer")
        before = await picture(store)
        many: Any = "many"
        bad = attrs.evolve(Run.new(claim.run.thread_id, model="any"), max_prompt_tokens=many)
        with pytest.raises(InvalidInputError):
            await store.create_run(claim.run.thread_id, bad, on_busy=way)
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_g1_a_run_that_is_history_brings_its_messages_too(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        run = Run.new(thread.id, model="any", status=RunStatus.COMPLETED)
        await store.create_run(thread.id, run, messages=[Message.user(thread.id, "one")])
        async for view in self.views(store):
            assert await texts(view, thread.id) == ["one"]

    @pytest.mark.parametrize("way", ["enqueue", "reject", "interrupt", "rollback"])
    async def test_g1_a_run_that_is_refused_stops_nobody_and_appends_nothing(
        self, store: ThreadStore, way: Any
    ) -> None:
        work = await working_run(store, "half a ")
        thread_id = work.run.thread_id
        await store.write_run(work.lease, RunWrite())
        await say(store, thread_id, "hello")
        elsewhere = await new_thread(store)
        good = Message.user(thread_id, "good")
        before = await picture(store)
        bad_messages: list[Any] = [
            attrs.evolve(good, id="../bad"),
            attrs.evolve(good, thread_id=elsewhere.id),
            attrs.evolve(good, run_id=work.run.id),
            attrs.evolve(good, status=MessageStatus.IN_PROGRESS),
            attrs.evolve(good, metadata={"k": 1}),
            Message.user(thread_id, NOT_TEXT),
        ]
        refused = (InvalidInputError, ActiveRunError) if way == "reject" else InvalidInputError
        for bad in bad_messages:
            with pytest.raises(refused):
                await superseded(store, thread_id, way, messages=[good, bad])
        for changes in ({"instructions": NOT_TEXT}, {"metadata": {"k": 1}}, {"id": "../bad"}):
            run = attrs.evolve(Run.new(thread_id, model="any"), **changes)
            with pytest.raises(refused):
                await store.create_run(thread_id, run, on_busy=way, messages=[good])
        with pytest.raises(RunAlreadyExistsError):
            await store.create_run(thread_id, work.run, on_busy=way, messages=[good])
        if way == "reject":
            with pytest.raises(ActiveRunError):
                await superseded(store, thread_id, way, messages=[good])
        async for view in self.views(store):
            assert await picture(view) == before
        assert (await store.check_lease(work.lease)).status is RunStatus.IN_PROGRESS

    @for_both_ways
    @pytest.mark.parametrize("active", ACTIVE.values(), ids=ACTIVE)
    async def test_a_new_run_stops_one_that_is_active(
        self, store: ThreadStore, way: Any, active: tuple[Callable[[ThreadStore], Awaitable[Run]], RunStatus]
    ) -> None:
        make, becomes = active
        old = await make(store)
        asked = [Message.user(old.thread_id, "never mind")]
        run = await superseded(store, old.thread_id, way, messages=asked)
        assert run.status is RunStatus.QUEUED
        async for view in self.views(store):
            stopped = await view.get_run(old.thread_id, old.id)
            assert (stopped.status, stopped.is_rolled_back) == (becomes, way == "rollback")
            assert (await view.get_run(run.thread_id, run.id)) == run
            assert await texts(view, old.thread_id, seen_by=run.id) == ["never mind"]
            assert names(await every_event(view, old))[-1] == f"run.{becomes}"
        claim = await store.try_claim_run("worker_2")
        assert (claim is None) is (becomes is RunStatus.CANCELLING)
        assert claim is None or claim.run.id == run.id

    @for_both_ways
    async def test_a_new_run_stops_all_that_are_active_and_no_other(self, store: ThreadStore, way: Any) -> None:
        work = await working_run(store, "half a ")
        thread_id = work.run.thread_id
        waiting = [await new_run(store, thread_id) for _ in range(2)]
        ended = [await new_run(store, thread_id, status=status) for status in TERMINAL]
        elsewhere = await new_run(store)
        run = await superseded(store, thread_id, way)
        async for view in self.views(store):
            assert [(old.id, old.status) for old in await view.list_runs(thread_id)] == [
                (work.run.id, RunStatus.CANCELLING),
                *((old.id, RunStatus.CANCELLED) for old in waiting),
                *((old.id, old.status) for old in ended),
                (run.id, RunStatus.QUEUED),
            ]
            for old in ended:
                assert await view.get_run(thread_id, old.id) == old
            assert await view.get_run(elsewhere.thread_id, elsewhere.id) == elsewhere

    @for_both_ways
    @for_every_end
    async def test_g5_a_new_run_begins_when_the_old_one_has_ended_or_lost_its_lease(
        self, store: ThreadStore, way: Any, end: Callable[[ThreadStore, Work], Awaitable[object]]
    ) -> None:
        work = await working_run(store, "half a ")
        run = await superseded(store, work.run.thread_id, way)
        async with asyncio.timeout(PATIENCE):
            await store.wait_for_stop(work.lease)
        async with self.beside(store) as other:
            assert await other.try_claim_run("worker_2") is None
            assert await other.try_claim_run("worker_2", adopt=True) is None
            await end(store, work)
            with pytest.raises(LeaseLostError):
                await store.check_lease(work.lease)
            claim = await other.try_claim_run("worker_2")
        assert claim is not None
        assert claim.run.id == run.id
        async for view in self.views(store):
            kept = [] if way == "rollback" else ["half a "]
            assert await texts(view, run.thread_id) == kept
            assert await texts(view, run.thread_id, seen_by=run.id) == kept

    @for_both_ways
    @pytest.mark.parametrize("status", TERMINAL)
    async def test_a_run_that_is_history_stops_nobody(self, store: ThreadStore, way: Any, status: RunStatus) -> None:
        work = await working_run(store, "half a ")
        thread_id = work.run.thread_id
        await new_run(store, thread_id)
        before = await thread_picture(store, thread_id)
        history = Run.new(thread_id, model="any", status=status)
        await store.create_run(thread_id, history, on_busy=way)
        async for view in self.views(store):
            after = await thread_picture(view, thread_id)
            assert [run for run in after.runs if run.id != history.id] == list(before.runs)
            assert after.messages == before.messages

    @for_both_ways
    async def test_where_nothing_is_active_a_new_run_is_like_any_other(self, store: ThreadStore, way: Any) -> None:
        claim = await new_claim(store)
        await reply(store, claim, "done")
        await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        run = await superseded(store, claim.run.thread_id, way)
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, claim.run.id)).status is RunStatus.COMPLETED
            assert await texts(view, run.thread_id, seen_by=run.id) == ["done"]

    @for_both_ways
    async def test_g1_of_ten_that_stop_each_other_one_is_left(self, store: ThreadStore, way: Any) -> None:
        thread = await new_thread(store)
        async with self.beside(store) as other:
            runs = [Run.new(thread.id, model="any") for _ in range(10)]
            await asyncio.gather(
                *(
                    (store, other)[n % 2].create_run(
                        thread.id, run, on_busy=way, messages=[Message.user(thread.id, run.id)]
                    )
                    for n, run in enumerate(runs)
                )
            )
        async for view in self.views(store):
            kept = await view.list_runs(thread.id)
            assert [run.status for run in kept] == [RunStatus.CANCELLED] * 9 + [RunStatus.QUEUED]
            assert await texts(view, thread.id) == [run.id for run in kept]

    async def test_g1_of_ten_messages_and_a_run_none_is_rejected_before_the_run_is_there(
        self, store: ThreadStore
    ) -> None:
        thread = await new_thread(store)
        run = Run.new(thread.id, model="any")
        async with self.beside(store) as other:
            *appended, _ = await asyncio.gather(
                *(
                    other.append_message(thread.id, Message.user(thread.id, str(n)), on_busy="reject")
                    for n in range(10)
                ),
                store.create_run(thread.id, run),
                return_exceptions=True,
            )
        made = [message for message in appended if isinstance(message, Message)]
        assert all(isinstance(result, Message | ActiveRunError) for result in appended)
        async for view in self.views(store):
            # All that was let in was there before the run, and so it is seen by it.
            seen = await view.list_messages(thread.id, seen_by=run.id)
            assert sorted(seen, key=lambda message: message.id) == sorted(made, key=lambda message: message.id)
