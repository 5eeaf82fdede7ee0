"""Conformance: the statuses of runs, as callers change them and wait for them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from threadloom.errors import (
    InvalidTransitionError,
    RunInTerminalStateError,
    ThreadNotFoundError,
)
from threadloom.models import Run, RunError, RunStatus
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import (
    PATIENCE,
    TERMINAL,
    Stage,
    new_claim,
    new_run,
    picture,
    still_waiting,
    working_run,
)

__all__ = ["StatusConformance"]

ERROR = RunError("server_error", "Something broke.")
MOMENTS = {
    RunStatus.COMPLETED: "completed_at",
    RunStatus.FAILED: "failed_at",
    RunStatus.CANCELLED: "cancelled_at",
}


def ended_at(run: Run) -> dict[str, int]:
    """Return the moments at which a run came to its end, by the names of their fields."""
    moments = {name: getattr(run, name) for name in MOMENTS.values()}
    return {name: moment for name, moment in moments.items() if moment is not None}


class StatusConformance(Stage):
    """How callers bring runs from status to status, and wait for them."""

    @pytest.mark.parametrize("status", RunStatus)
    async def test_a_queued_run_may_be_brought_to_any_status_by_hand(
        self, store: ThreadStore, clock: ManualClock, status: RunStatus
    ) -> None:
        run = await new_run(store)
        written = await store.update_run_status(run.thread_id, run.id, status, ERROR)
        now = clock.time_ns() // 1_000_000_000
        assert (written.status, written.last_error) == (status, ERROR)
        assert ended_at(written) == ({MOMENTS[status]: now} if status in MOMENTS else {})
        assert written.started_at == (now if status is RunStatus.IN_PROGRESS else None)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == written

    async def test_a_status_without_an_error_clears_the_last_one(self, store: ThreadStore) -> None:
        run = await new_run(store)
        await store.update_run_status(run.thread_id, run.id, RunStatus.QUEUED, ERROR)
        await store.update_run_status(run.thread_id, run.id, RunStatus.IN_PROGRESS)
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, run.id)).last_error is None

    async def test_a_run_that_is_asked_to_stop_may_only_become_cancelled(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        run = await store.request_cancel(claim.run.thread_id, claim.run.id)
        for status in set(RunStatus) - {RunStatus.CANCELLING, RunStatus.CANCELLED}:
            with pytest.raises(InvalidTransitionError) as caught:
                await store.update_run_status(run.thread_id, run.id, status)
            assert (caught.value.run_id, caught.value.status, caught.value.asked) == (run.id, "cancelling", status)
            assert await store.check_lease(claim.lease) == run
        written = await store.update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == written

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_g6_a_terminal_run_stays_terminal(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store)
        await store.update_run_status(run.thread_id, run.id, status, ERROR)
        before = await picture(store)
        for asked in RunStatus:
            for error in (None, ERROR):
                with pytest.raises(RunInTerminalStateError) as caught:
                    await store.update_run_status(run.thread_id, run.id, asked, error)
                assert (caught.value.run_id, caught.value.status) == (run.id, status)
        with pytest.raises(RunInTerminalStateError):
            await store.request_cancel(run.thread_id, run.id)
        async for view in self.views(store):
            assert await picture(view) == before

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_g6_a_terminal_run_is_forced_again_and_again(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store, status=status)
        for forced in (*RunStatus, *reversed(RunStatus)):
            for error in (ERROR, None):
                written = await store.force_update_run_status(run.thread_id, run.id, forced, error)
                assert (written.status, written.last_error) == (forced, error)
                assert set(ended_at(written)) == ({MOMENTS[forced]} if forced in MOMENTS else set())
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == written

    async def test_g6_a_force_wins_over_what_the_worker_writes_at_the_same_moment(self, store: ThreadStore) -> None:
        for n in range(20):
            work = await working_run(store, "half a ")
            thread_id, run_id = work.run.thread_id, work.run.id
            writes = [
                store.write_run(work.lease, RunWrite(status=RunStatus.COMPLETED)),
                store.force_update_run_status(thread_id, run_id, RunStatus.CANCELLED),
            ]
            await asyncio.gather(*(writes if n % 2 else reversed(writes)), return_exceptions=True)
            assert (await store.get_run(thread_id, run_id)).status is RunStatus.CANCELLED
        async for view in self.views(store):
            for thread_id in await view.list_thread_ids():
                assert [run.status for run in await view.list_runs(thread_id)] == [RunStatus.CANCELLED]

    async def test_forcing_a_run_to_queued_queues_it_anew_at_attempt_1(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        claim = await new_claim(store)
        later = clock.time_ns() // 1_000_000_000 + 3_600
        retry = RunWrite(status=RunStatus.QUEUED, retry_at=later, attempt_failed=True, error=ERROR)
        assert (await store.write_run(claim.lease, retry)).attempt == 2
        run = await store.force_update_run_status(claim.run.thread_id, claim.run.id, RunStatus.QUEUED)
        assert (run.attempt, run.retry_at, run.started_at, run.last_error) == (1, None, None, None)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
        async with self.fresh(store) as again:
            anew = await again.try_claim_run("worker_2")
            assert anew is not None
            assert (anew.run.id, anew.lease.attempt) == (run.id, 1)

    async def test_a_terminal_run_that_is_forced_to_queued_is_taken_again(self, store: ThreadStore) -> None:
        run = await new_run(store, status=RunStatus.FAILED)
        await store.force_update_run_status(run.thread_id, run.id, RunStatus.QUEUED)
        async with self.fresh(store) as again:
            claim = await again.try_claim_run("worker_1")
            assert claim is not None
            assert claim.run.id == run.id

    @pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.IN_PROGRESS, RunStatus.REQUIRES_ACTION])
    async def test_a_run_that_no_worker_has_is_cancelled_at_once(
        self, store: ThreadStore, clock: ManualClock, status: RunStatus
    ) -> None:
        run = await new_run(store)
        await store.update_run_status(run.thread_id, run.id, status, ERROR)
        cancelled = await store.request_cancel(run.thread_id, run.id)
        assert (cancelled.status, cancelled.last_error) == (RunStatus.CANCELLED, None)
        assert ended_at(cancelled) == {"cancelled_at": clock.time_ns() // 1_000_000_000}
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == cancelled
            assert await view.try_claim_run("worker_1") is None

    async def test_a_run_that_a_worker_has_is_asked_to_stop_and_keeps_its_lease(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        asked = await store.request_cancel(claim.run.thread_id, claim.run.id)
        assert asked.status is RunStatus.CANCELLING
        before = await picture(store)
        assert await store.request_cancel(claim.run.thread_id, claim.run.id) == asked
        async for view in self.views(store):
            assert await picture(view) == before
            assert await view.check_lease(claim.lease) == asked

    async def test_a_run_in_cancelling_without_a_worker_is_cancelled_when_asked_again(self, store: ThreadStore) -> None:
        run = await new_run(store)
        await store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLING)
        cancelled = await store.request_cancel(run.thread_id, run.id)
        assert cancelled.status is RunStatus.CANCELLED
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == cancelled

    @pytest.mark.parametrize("status", [*TERMINAL, RunStatus.REQUIRES_ACTION])
    async def test_waiting_for_a_run_that_is_there_already_returns_at_once(
        self, store: ThreadStore, status: RunStatus
    ) -> None:
        run = await new_run(store)
        written = await store.force_update_run_status(run.thread_id, run.id, status)
        async for view in self.views(store):
            assert await view.wait_for_run(run.thread_id, run.id) == written
            assert await view.wait_for_run(run.thread_id, run.id, timeout=timedelta(minutes=1)) == written
            assert await view.wait_for_run(run.thread_id, run.id, timeout=0) == written

    @pytest.mark.parametrize("status", [*TERMINAL, RunStatus.REQUIRES_ACTION])
    @pytest.mark.parametrize("by_force", [False, True], ids=["update", "force"])
    async def test_g3_who_waits_for_a_run_hears_of_its_end(
        self, store: ThreadStore, status: RunStatus, *, by_force: bool
    ) -> None:
        run = await new_run(store)
        async with asyncio.timeout(PATIENCE), self.beside(store) as other, asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(store.wait_for_run(run.thread_id, run.id)) for _ in range(3)]
            await other.update_run_status(run.thread_id, run.id, RunStatus.IN_PROGRESS)
            await other.update_run(run.thread_id, run.id, metadata={"still": "going"})
            await still_waiting(*waiting)
            change = other.force_update_run_status if by_force else other.update_run_status
            written = await change(run.thread_id, run.id, status)
        assert [task.result() for task in waiting] == [written] * 3

    async def test_waiting_for_a_run_ends_at_the_deadline(self, store: ThreadStore) -> None:
        run = await new_run(store)
        async for view in self.views(store):
            begun = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError, match=f"{run.id}.*queued"):
                await view.wait_for_run(run.thread_id, run.id, timeout=timedelta(milliseconds=10))
            with pytest.raises(TimeoutError, match=f"{run.id}.*queued"):
                await view.wait_for_run(run.thread_id, run.id, timeout=0.01)
            assert 0.019 <= asyncio.get_running_loop().time() - begun < PATIENCE
            assert (await view.get_run(run.thread_id, run.id)) == run

    async def test_who_waits_for_a_run_hears_that_its_thread_is_deleted(self, store: ThreadStore) -> None:
        run = await new_run(store)
        async with asyncio.timeout(PATIENCE), self.beside(store) as other:
            waiting = asyncio.create_task(store.wait_for_run(run.thread_id, run.id))
            await still_waiting(waiting)
            await other.delete_thread(run.thread_id, force=True)
            with pytest.raises(ThreadNotFoundError):
                await waiting
