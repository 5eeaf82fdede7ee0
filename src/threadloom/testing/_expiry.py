"""Conformance: runs that expire, at a moment or some time after they were first claimed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import attrs
import pytest

from threadloom.errors import ConflictError, InvalidInputError, RunInTerminalStateError, ToolOutputsRefusedError
from threadloom.models import Message, Run, RunStatus
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import PATIENCE, Stage, every_event, names, new_claim, new_run, new_thread

__all__ = ["ExpiryConformance"]

MINUTE = timedelta(minutes=1)


def second(clock: ManualClock) -> int:
    """Return the second that it is."""
    return clock.time_ns() // 1_000_000_000


async def overdue_run(store: ThreadStore, clock: ManualClock, wait: RunStatus) -> Run:
    """Create a run that waits in a status until it is past its time."""
    run = await new_run(store, expires_at=second(clock) + 10)
    if wait is not RunStatus.QUEUED:
        await store.update_run_status(run.thread_id, run.id, wait)
    clock.advance(timedelta(seconds=10))
    return run


async def tolerant(work: Awaitable[object]) -> None:
    """Await ``work``, whether or not the state of the run refuses it."""
    with suppress(ConflictError):
        await work


Meeting = Callable[[ThreadStore, Run], Awaitable[object]]
# The transactions that meet a run, as it is and where it is overdue.
MEETINGS: dict[str, Meeting] = {
    "create_run": lambda store, run: store.create_run(run.thread_id, Run.new(run.thread_id, model="any")),
    "append_message": lambda store, run: store.append_message(run.thread_id, Message.user(run.thread_id, "hello")),
    "submit_tool_outputs": lambda store, run: tolerant(store.submit_tool_outputs(run.thread_id, run.id, [])),
    "request_cancel": lambda store, run: tolerant(store.request_cancel(run.thread_id, run.id)),
    "try_claim_run": lambda store, _: store.try_claim_run("worker_2"),
}
for_every_wait = pytest.mark.parametrize(
    "wait", [RunStatus.QUEUED, RunStatus.IN_PROGRESS, RunStatus.REQUIRES_ACTION, RunStatus.CANCELLING]
)


class ExpiryConformance(Stage):
    """When a run expires, and by whom it is expired."""

    async def test_a_run_that_was_never_taken_does_not_expire(self, store: ThreadStore, clock: ManualClock) -> None:
        run = await new_run(store, expires_after=MINUTE)
        assert (run.expires_at, run.expires_after_seconds) == (None, 60)
        clock.advance(60 * MINUTE)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
        claim = await store.try_claim_run("worker_1")
        assert claim is not None
        assert (claim.run.id, claim.run.expires_at) == (run.id, second(clock) + 60)
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, run.id)).expires_at == second(clock) + 60

    async def test_it_is_the_first_claim_that_counts(self, store: ThreadStore, clock: ManualClock) -> None:
        claim = await new_claim(store, expires_after=10 * MINUTE)
        expires_at = second(clock) + 600
        for status in (RunStatus.QUEUED, RunStatus.REQUIRES_ACTION):
            clock.advance(MINUTE)
            await store.write_run(claim.lease, RunWrite(status=status))
            clock.advance(MINUTE)
            if status is RunStatus.REQUIRES_ACTION:
                await store.submit_tool_outputs(claim.run.thread_id, claim.run.id, [])
            again = await store.try_claim_run("worker_2")
            assert again is not None
            claim = again
            assert claim.run.expires_at == expires_at
        async for view in self.views(store):
            assert (await view.get_run(claim.run.thread_id, claim.run.id)).expires_at == expires_at

    async def test_a_run_that_waits_past_its_time_is_expired_by_who_looks_for_work(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        claim = await new_claim(store, expires_after=MINUTE)
        await store.write_run(claim.lease, RunWrite(status=RunStatus.REQUIRES_ACTION))
        clock.advance(MINUTE - timedelta(seconds=1))
        assert await store.try_claim_run("worker_2") is None
        assert (await store.get_run(claim.run.thread_id, claim.run.id)).status is RunStatus.REQUIRES_ACTION
        clock.advance(timedelta(seconds=1))
        assert await store.try_claim_run("worker_2") is None
        async for view in self.views(store):
            assert (await view.get_run(claim.run.thread_id, claim.run.id)).status is RunStatus.EXPIRED

    @for_every_wait
    @pytest.mark.parametrize("way", MEETINGS.values(), ids=MEETINGS)
    async def test_an_overdue_run_is_expired_by_any_transaction_that_meets_it(
        self, store: ThreadStore, clock: ManualClock, wait: RunStatus, way: Meeting
    ) -> None:
        run = await overdue_run(store, clock, wait)
        async with self.beside(store) as other:
            await way(other, run)
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, run.id)).status is RunStatus.EXPIRED
            assert names(await every_event(view, run))[-1] == "run.expired"

    async def test_an_overdue_run_is_not_in_the_way_of_what_is_rejected_while_one_is_active(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        run = await overdue_run(store, clock, RunStatus.REQUIRES_ACTION)
        await store.append_message(run.thread_id, Message.user(run.thread_id, "hello"), on_busy="reject")
        run = await overdue_run(store, clock, RunStatus.QUEUED)
        await store.create_run(run.thread_id, Run.new(run.thread_id, model="any"), on_busy="reject")
        run = await overdue_run(store, clock, RunStatus.QUEUED)
        await store.delete_thread(run.thread_id)
        async for view in self.views(store):
            assert run.thread_id not in list(await view.list_thread_ids())

    async def test_an_overdue_run_takes_no_tool_outputs(self, store: ThreadStore, clock: ManualClock) -> None:
        run = await overdue_run(store, clock, RunStatus.REQUIRES_ACTION)
        with pytest.raises(ToolOutputsRefusedError) as caught:
            await store.submit_tool_outputs(run.thread_id, run.id, [])
        assert caught.value.status == RunStatus.EXPIRED
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, run.id)).status is RunStatus.EXPIRED

    async def test_an_overdue_run_is_not_cancelled_any_more(self, store: ThreadStore, clock: ManualClock) -> None:
        run = await overdue_run(store, clock, RunStatus.QUEUED)
        with pytest.raises(RunInTerminalStateError) as caught:
            await store.request_cancel(run.thread_id, run.id)
        assert caught.value.status == RunStatus.EXPIRED
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, run.id)).status is RunStatus.EXPIRED

    @pytest.mark.parametrize("way", MEETINGS.values(), ids=MEETINGS)
    async def test_a_run_that_a_worker_holds_is_left_to_the_worker(
        self, store: ThreadStore, clock: ManualClock, way: Meeting
    ) -> None:
        claim = await new_claim(store, expires_at=second(clock) + 10)
        clock.advance(MINUTE)
        await way(store, claim.run)
        async for view in self.views(store):
            assert (await view.check_lease(claim.lease)).status in {RunStatus.IN_PROGRESS, RunStatus.CANCELLING}

    @for_every_wait
    async def test_an_overdue_run_is_expired_even_while_no_worker_looks_for_work(
        self, store: ThreadStore, clock: ManualClock, wait: RunStatus
    ) -> None:
        await new_claim(store)  # by a worker that has no slot for another
        run = await overdue_run(store, clock, wait)
        ended = await store.wait_for_run(run.thread_id, run.id, timeout=PATIENCE)
        if wait is RunStatus.REQUIRES_ACTION:  # in which a run is not waited for either
            async with asyncio.timeout(PATIENCE):
                events = [event async for event in store.events(run.thread_id, run.id)]
            assert names(events)[-1] == "run.expired"
        else:
            assert ended.status is RunStatus.EXPIRED

    async def test_an_expiry_that_was_set_stands(self, store: ThreadStore, clock: ManualClock) -> None:
        expires_at = second(clock) + 1_000
        claim = await new_claim(store, expires_at=expires_at, expires_after=MINUTE)
        run = claim.run
        assert run.expires_at == expires_at
        await store.force_update_run_status(run.thread_id, run.id, RunStatus.QUEUED)
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, run.id)).expires_at == expires_at
        again = await store.try_claim_run("worker_2")
        assert again is not None
        assert again.run.expires_at == expires_at

    async def test_a_run_that_is_forced_to_the_queue_has_all_its_time_again(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        run = (await new_claim(store, expires_after=MINUTE)).run
        clock.advance(60 * MINUTE)
        forced = await store.force_update_run_status(run.thread_id, run.id, RunStatus.QUEUED)
        assert forced.expires_at is None
        clock.advance(60 * MINUTE)
        claim = await store.try_claim_run("worker_2")
        assert claim is not None
        assert claim.run.expires_at == second(clock) + 60
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, run.id)).expires_at == second(clock) + 60

    async def test_a_run_that_is_adopted_is_taken_for_the_first_time(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        run = await new_run(store, expires_after=MINUTE)
        await store.update_run_status(run.thread_id, run.id, RunStatus.IN_PROGRESS)
        clock.advance(60 * MINUTE)
        claim = await store.try_claim_run("worker_1", adopt=True)
        assert claim is not None
        assert claim.run.expires_at == second(clock) + 60

    @pytest.mark.parametrize("seconds", [0, -1, 1.5, True, 2**63, "60"])
    async def test_what_is_no_time_to_expire_after_is_refused(self, store: ThreadStore, seconds: Any) -> None:
        thread = await new_thread(store)
        run = attrs.evolve(Run.new(thread.id, model="any"), expires_after_seconds=seconds)
        with pytest.raises(InvalidInputError, match="second"):
            await store.create_run(thread.id, run)
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == []

    async def test_the_longest_time_to_expire_after_stands_in_nobodys_way(self, store: ThreadStore) -> None:
        first = await new_run(store, expires_after=timedelta(days=999_999_999))
        claim = await store.try_claim_run("worker_1")
        assert claim is not None
        assert claim.run.id == first.id
        second_run = await new_run(store)
        claim = await store.try_claim_run("worker_1")
        assert claim is not None
        assert claim.run.id == second_run.id
