"""Conformance: the events of a run."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import attrs
import pytest

from threadloom.errors import StoreClosedError, ThreadNotFoundError
from threadloom.events import Checkpoint, EventType, MessageDelta, RunEvent
from threadloom.models import MessageStatus, Run, RunStatus, TextContent
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._stage import (
    PATIENCE,
    TERMINAL,
    TEXTS,
    Stage,
    Work,
    events_until,
    every_event,
    follow,
    names,
    new_claim,
    new_run,
    picture,
    still_waiting,
    working_run,
)

__all__ = ["EventConformance"]


async def all_events(store: ThreadStore, run: Run, after: int = 0) -> list[RunEvent]:
    """Read the events of a run to its last."""
    async with asyncio.timeout(PATIENCE):
        return [event async for event in store.events(run.thread_id, run.id, after=after)]


async def stream(store: ThreadStore, work: Work, pieces: list[str]) -> Run:
    """Write ``pieces`` one by one, then end the run with the whole message."""
    for piece in pieces:
        await store.write_run(work.lease, RunWrite(items=(MessageDelta(work.message.id, piece),)))
    whole = attrs.evolve(
        work.message, content=(TextContent("".join(pieces)),), status=MessageStatus.COMPLETED, completed_at=1
    )
    return await store.write_run(work.lease, RunWrite(items=(whole,), status=RunStatus.COMPLETED))


class EventConformance(Stage):
    """What a store tells of a run."""

    async def test_events_say_what_happened_in_order_with_the_objects_as_they_were(self, store: ThreadStore) -> None:
        created = await new_run(store)
        claim = await store.claim_run("worker_1")
        ended = await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        async for view in self.views(store):
            events = await all_events(view, created)
            assert [(event.type, event.data) for event in events] == [
                (EventType.RUN_CREATED, created),
                (EventType.RUN_QUEUED, created),
                (EventType.RUN_IN_PROGRESS, claim.run),
                (EventType.RUN_COMPLETED, ended),
            ]

    async def test_g4_numbers_rise_strictly_over_a_runs_life(self, store: ThreadStore) -> None:
        run = await new_run(store)
        for _ in range(3):
            claim = await store.claim_run("worker_1")
            await store.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED, attempt_failed=True))
        await store.force_update_run_status(run.thread_id, run.id, RunStatus.QUEUED)
        await store.update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)
        async for view in self.views(store):
            numbers = [event.number for event in await all_events(view, run)]
            assert numbers[0] >= 1
            assert all(earlier < later for earlier, later in pairwise(numbers))

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_history_has_events_that_end(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store, status=status)
        async for view in self.views(store):
            assert names(await all_events(view, run)) == ["run.created", f"run.{status}"]

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_the_event_of_its_end_is_a_runs_last(self, store: ThreadStore, status: RunStatus) -> None:
        work = await working_run(store, "half a ")
        await store.force_update_run_status(work.run.thread_id, work.run.id, status)
        async for view in self.views(store):
            assert names(await all_events(view, work.run))[-1] == f"run.{status}"

    async def test_events_are_read_from_any_point(self, store: ThreadStore) -> None:
        work = await working_run(store)
        run = await stream(store, work, ["one ", "two ", "three"])
        events = await all_events(store, run)
        assert len(events) == 13
        async for view in self.views(store):
            for place, event in enumerate(events):
                assert await all_events(view, run, after=event.number) == events[place + 1 :]
                assert await all_events(view, run, after=event.number - 1) == events[place:]
            assert await all_events(view, run, after=events[-1].number + 5) == []

    @pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
    async def test_any_text_comes_back_from_a_stream(self, store: ThreadStore, text: str) -> None:
        work = await working_run(store, "", text, "|", text)
        await store.force_update_run_status(work.run.thread_id, work.run.id, RunStatus.CANCELLED)
        async for view in self.views(store):
            deltas = [event.data for event in await all_events(view, work.run) if event.type == "thread.message.delta"]
            assert deltas == [MessageDelta(work.message.id, piece) for piece in ("", text, "|", text)]
            (message,) = await view.list_messages(work.run.thread_id)
            assert message.text == f"{text}|{text}"

    async def test_g3_several_readers_follow_a_run_to_its_end(self, store: ThreadStore) -> None:
        run = await new_run(store)
        async with asyncio.timeout(PATIENCE), self.beside(store) as other, asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(all_events((store, other)[n % 2], run)) for n in range(4)]
            await still_waiting(*readers)
            claim = await store.claim_run("worker_1")
            readers.append(tasks.create_task(all_events(other, run)))
            await still_waiting(*readers)
            await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        expected = ["run.created", "run.queued", "run.in_progress", "run.completed"]
        assert [names(reader.result()) for reader in readers] == [expected] * 5

    async def test_g3_a_follower_hears_each_piece_before_the_next_is_written(self, store: ThreadStore) -> None:
        work = await working_run(store)
        async with (
            asyncio.timeout(PATIENCE),
            self.beside(store) as other,
            aclosing(follow(other, work.run)) as following,
        ):
            while (await anext(following)).type is not EventType.MESSAGE_IN_PROGRESS:
                pass
            for piece in ("one", "two", "three"):
                delta = MessageDelta(work.message.id, piece)
                await store.write_run(work.lease, RunWrite(items=(delta,)))
                assert (await anext(following)).data == delta

    async def test_a_reader_that_leaves_changes_nothing(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        before = await picture(store)
        for last in (EventType.RUN_CREATED, EventType.MESSAGE_DELTA):
            await events_until(store, work.run, last)
        reading = asyncio.create_task(all_events(store, work.run))
        await still_waiting(reading)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async for view in self.views(store):
            assert await picture(view) == before
        async with self.fresh(store) as again:
            await stream(again, work, ["word"])

    async def test_a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice(self, store: ThreadStore) -> None:
        work = await working_run(store)
        first = await events_until(store, work.run, EventType.MESSAGE_IN_PROGRESS)
        run = await stream(store, work, ["one ", "two"])
        async for view in self.views(store):
            rest = await all_events(view, run, after=first[-1].number)
            assert names(rest) == [
                *("message.delta", "message.delta", "message.completed", "run.step.completed", "run.completed")
            ]
            assert first + rest == await all_events(view, run)

    async def test_a_reader_goes_on_through_a_run_that_waits_for_an_action(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        async with asyncio.timeout(PATIENCE):
            reading = asyncio.create_task(all_events(store, claim.run))
            await store.write_run(claim.lease, RunWrite(status=RunStatus.REQUIRES_ACTION))
            await still_waiting(reading)
            await store.update_run_status(claim.run.thread_id, claim.run.id, RunStatus.QUEUED)
            await still_waiting(reading)
            await store.request_cancel(claim.run.thread_id, claim.run.id)
            assert names(await reading) == [
                *("run.created", "run.queued", "run.in_progress"),
                *("run.requires_action", "run.queued", "run.cancelled"),
            ]

    async def test_a_reader_hears_that_the_thread_is_deleted(self, store: ThreadStore) -> None:
        run = await new_run(store)
        async with asyncio.timeout(PATIENCE), self.beside(store) as other:
            reading = asyncio.create_task(all_events(store, run))
            await still_waiting(reading)
            await other.delete_thread(run.thread_id, force=True)
            with pytest.raises(ThreadNotFoundError):
                await reading

    async def test_a_reader_hears_that_the_store_is_closed(self, store: ThreadStore) -> None:
        run = await new_run(store)
        async with asyncio.timeout(PATIENCE):
            reading = asyncio.create_task(all_events(store, run))
            await still_waiting(reading)
            await store.close()
            with pytest.raises(StoreClosedError):
                await reading

    async def test_events_are_read_batch_by_batch_without_waiting(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        thread_id, run_id = claim.run.thread_id, claim.run.id
        first = await every_event(store, claim.run)
        position = (await store.read_events(thread_id, run_id)).position
        nothing = await store.read_events(thread_id, run_id, position=position)
        assert (list(nothing.events), nothing.is_all) == ([], True)
        await store.write_run(claim.lease, RunWrite(items=(Checkpoint("plan", [1]),), status=RunStatus.COMPLETED))
        later = await store.read_events(thread_id, run_id, position=nothing.position)
        assert [event.type for event in later.events] == [EventType.CHECKPOINT, EventType.RUN_COMPLETED]
        async for view in self.views(store):
            assert await every_event(view, claim.run) == [*first, *later.events]

    async def test_a_slow_reader_holds_up_no_writer(self, store: ThreadStore) -> None:
        work = await working_run(store)
        async with asyncio.timeout(PATIENCE), aclosing(follow(store, work.run)) as slow:
            await anext(slow)
            run = await stream(store, work, ["piece "] * 100)
            assert run.status is RunStatus.COMPLETED
            rest = [event async for event in slow]
        async for view in self.views(store):
            assert rest == (await every_event(view, run))[1:]

    async def test_the_events_of_one_run_are_not_those_of_another(self, store: ThreadStore) -> None:
        work = await working_run(store, "here")
        other = await new_run(store, work.run.thread_id)
        async for view in self.views(store):
            assert names(await every_event(view, other)) == ["run.created", "run.queued"]
