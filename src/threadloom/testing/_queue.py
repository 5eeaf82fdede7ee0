"""Conformance: the queue. Which run is taken when, and by how many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import attrs
import pytest

from threadloom.errors import InvalidInputError, StoreClosedError
from threadloom.models import (
    Run,
    RunError,
    RunStatus,
    RunStepStatus,
    Thread,
)
from threadloom.records import RunWrite
from threadloom.store import Claim, ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import (
    PARTS,
    PATIENCE,
    TERMINAL,
    Stage,
    duration_of,
    every_event,
    let_pass,
    names,
    new_claim,
    new_run,
    new_step,
    new_thread,
    still_waiting,
)

__all__ = ["QueueConformance", "claimed"]

ERROR = RunError("server_error", "Something broke.")


async def claimed(store: ThreadStore, worker_id: str = "worker_1") -> str | None:
    """Claim a run if there is one to claim, and return its id."""
    claim = await store.try_claim_run(worker_id)
    return None if claim is None else claim.run.id


async def finish(store: ThreadStore, run: Run) -> None:
    """End a run by hand."""
    await store.force_update_run_status(run.thread_id, run.id, RunStatus.COMPLETED)


class QueueConformance(Stage):
    """Which run is taken when, and by how many."""

    async def test_an_empty_queue_has_nothing_to_claim(self, store: ThreadStore) -> None:
        await new_thread(store)
        async for view in self.views(store):
            assert await view.try_claim_run("worker_1") is None

    async def test_a_claim_brings_the_run_to_work(self, store: ThreadStore, clock: ManualClock) -> None:
        run = await new_run(store)
        clock.advance(timedelta(seconds=5))
        claim = await store.claim_run("worker_1")
        assert claim.run == attrs.evolve(run, status=RunStatus.IN_PROGRESS, started_at=clock.time_ns() // 1_000_000_000)
        lease = claim.lease
        assert (lease.thread_id, lease.run_id, lease.worker_id) == (run.thread_id, run.id, "worker_1")
        assert lease.attempt == claim.run.attempt == 1
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == claim.run
            assert await view.check_lease(lease) == claim.run
            assert await view.try_claim_run("worker_2") is None

    async def test_the_run_that_has_waited_longest_is_claimed_first(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        runs = []
        for n in range(5):
            run = Run.new((await new_thread(store)).id, model="any")
            runs.append(await store.create_run(run.thread_id, attrs.evolve(run, id=f"run_{9 - n}")))
            clock.advance(timedelta(milliseconds=1))
        async with self.fresh(store) as again:
            assert [await claimed(again) for _ in range(6)] == [*(run.id for run in runs), None]

    async def test_g4_runs_of_a_thread_are_claimed_in_the_order_they_were_created(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        thread = await new_thread(store)
        runs = []
        for n in range(4):
            run = attrs.evolve(Run.new(thread.id, model="any"), id=f"run_{9 - n}")
            runs.append(await store.create_run(thread.id, run))
            clock.step_wall_clock(timedelta(hours=-1))
        for run in runs:
            async with self.beside(store) as other:
                assert await claimed(other) == run.id
                assert await claimed(store) is None
            await finish(store, run)
        assert await claimed(store) is None

    async def test_g4_runs_of_many_threads_are_claimed_in_the_order_they_were_created_whatever_the_clock_does(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        threads = [
            await store.create_thread(attrs.evolve(Thread.new(), id=thread_id))
            for thread_id in ("thread_b", "thread_c", "thread_a")
        ]
        runs = []
        for n in range(9):
            runs.append(await new_run(store, threads[n // 2 % 3].id))
            if n % 3 == 2:  # it stands still in between
                clock.step_wall_clock(timedelta(hours=-1))
        taken = []
        async with self.fresh(store) as again:
            while (claim := await again.try_claim_run("worker_1")) is not None:
                taken.append(claim.run.id)
                await again.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        assert taken == [run.id for run in runs]

    @pytest.mark.parametrize("status", [RunStatus.IN_PROGRESS, RunStatus.REQUIRES_ACTION, RunStatus.CANCELLING])
    async def test_a_run_that_is_not_terminal_keeps_its_threads_turn(
        self, store: ThreadStore, status: RunStatus
    ) -> None:
        first = await new_run(store)
        second = await new_run(store, first.thread_id)
        await store.force_update_run_status(first.thread_id, first.id, status)
        async for view in self.views(store):
            assert await claimed(view) is None
        async with self.fresh(store) as again:
            await finish(again, first)
            assert await claimed(again) == second.id

    async def test_a_run_forced_back_to_queued_waits_for_the_one_at_work(self, store: ThreadStore) -> None:
        first = await new_run(store, status=RunStatus.FAILED)
        second = (await new_claim(store, first.thread_id)).run
        await store.force_update_run_status(first.thread_id, first.id, RunStatus.QUEUED)
        async for view in self.views(store):
            assert await claimed(view) is None
        async with self.fresh(store) as again:
            await finish(again, second)
            assert await claimed(again) == first.id

    async def test_a_run_at_work_in_one_thread_holds_up_no_other(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        await new_run(store, claim.run.thread_id)
        other = await new_run(store)
        assert await claimed(store) == other.id
        assert await claimed(store) is None

    async def test_a_run_waiting_for_a_retry_keeps_its_threads_turn_and_is_taken_when_it_is_due(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        claim = await new_claim(store)
        await new_run(store, claim.run.thread_id)
        retry_at = clock.time_ns() // 1_000_000_000 + 10
        run = await store.write_run(
            claim.lease, RunWrite(status=RunStatus.QUEUED, retry_at=retry_at, attempt_failed=True, error=ERROR)
        )
        assert (run.status, run.retry_at, run.attempt, run.last_error) == (RunStatus.QUEUED, retry_at, 2, ERROR)
        clock.advance(timedelta(seconds=9))
        async for view in self.views(store):
            assert await claimed(view) is None
        clock.advance(timedelta(seconds=1))
        async with self.fresh(store) as again:
            claim = await again.claim_run("worker_2")
        assert (claim.run.id, claim.run.retry_at, claim.lease.attempt) == (run.id, None, 2)

    async def test_who_waits_for_a_run_takes_a_retry_as_soon_as_it_is_due(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        claim = await new_claim(store)
        retry_at = clock.time_ns() // 1_000_000_000 + 10
        await store.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED, retry_at=retry_at))
        async with asyncio.timeout(PATIENCE):
            waiting = asyncio.create_task(store.claim_run("worker_2"))
            await still_waiting(waiting)
            clock.advance(timedelta(seconds=10))
            again = await waiting
        assert (again.run.id, again.lease.attempt) == (claim.run.id, 1)

    async def test_a_queued_run_past_its_time_is_expired_and_not_taken(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        expires_at = clock.time_ns() // 1_000_000_000 + 10
        late = await new_run(store, expires_at=expires_at)
        clock.advance(timedelta(milliseconds=1))
        second = await new_run(store, late.thread_id)
        clock.advance(timedelta(seconds=10))
        assert await claimed(store) == second.id
        async for view in self.views(store):
            assert (await view.get_run(late.thread_id, late.id)).status is RunStatus.EXPIRED
            assert names(await every_event(view, late)) == ["run.created", "run.queued", "run.expired"]

    async def test_a_queued_run_is_taken_until_its_time_has_come(self, store: ThreadStore, clock: ManualClock) -> None:
        run = await new_run(store, expires_at=clock.time_ns() // 1_000_000_000 + 10)
        clock.advance(timedelta(seconds=9))
        assert await claimed(store) == run.id

    async def test_g5_twenty_racing_claimers_share_five_runs_without_a_quarrel(self, store: ThreadStore) -> None:
        runs = {(await new_run(store)).id for _ in range(5)}
        async with self.beside(store) as other:
            claims = await asyncio.gather(
                *((store, other)[n % 2].try_claim_run(f"worker_{n}") for n in range(20)),
            )
            leases = [claim.lease for claim in claims if claim is not None]
            assert sorted(lease.run_id for lease in leases) == sorted(runs)
            assert len({lease.token for lease in leases}) == 5
            for view in (store, other):
                assert await view.try_claim_run("worker_20") is None
                for lease in leases:
                    assert (await view.check_lease(lease)).status is RunStatus.IN_PROGRESS

    async def test_g5_twenty_racing_claimers_of_one_thread_take_one_run(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        first, *_ = [await new_run(store, thread.id) for _ in range(5)]
        async with self.beside(store) as other:
            claims = await asyncio.gather(
                *((store, other)[n % 2].try_claim_run(f"worker_{n}") for n in range(20)),
            )
        assert [claim.run.id for claim in claims if claim is not None] == [first.id]

    async def test_a_run_that_is_driven_by_hand_is_taken_by_who_adopts_and_by_nobody_else(
        self, store: ThreadStore
    ) -> None:
        by_hand = await new_run(store)
        queued = await new_run(store, by_hand.thread_id)
        await store.update_run_status(by_hand.thread_id, by_hand.id, RunStatus.IN_PROGRESS)
        done = await new_step(store, by_hand)
        await store.update_step_status(by_hand.thread_id, by_hand.id, done.id, RunStepStatus.COMPLETED)
        left = await new_step(store, by_hand)
        async for view in self.views(store):
            assert await claimed(view) is None
        claim = await store.try_claim_run("worker_2", adopt=True)
        assert claim is not None
        assert (claim.run.id, claim.run.status, claim.has_past) == (by_hand.id, RunStatus.IN_PROGRESS, True)
        assert (claim.run.attempt, claim.lease.attempt, claim.lease.worker_id) == (1, 1, "worker_2")
        assert await store.check_lease(claim.lease) == claim.run
        async with self.beside(store) as other:
            assert await other.try_claim_run("worker_3", adopt=True) is None
        await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        async for view in self.views(store):
            steps = await view.list_steps(left.thread_id, left.run_id)
            assert [step.status for step in steps] == [RunStepStatus.COMPLETED, RunStepStatus.CANCELLED]
        async with self.fresh(store) as again:
            assert await claimed(again) == queued.id

    @pytest.mark.parametrize("status", [RunStatus.REQUIRES_ACTION, RunStatus.CANCELLING, *TERMINAL])
    async def test_who_adopts_takes_nothing_that_waits_or_ends(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store)
        await store.update_run_status(run.thread_id, run.id, status)
        async for view in self.views(store):
            assert await view.try_claim_run("worker_1", adopt=True) is None

    async def test_who_adopts_takes_no_run_from_a_lease(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        await new_run(store, claim.run.thread_id)
        async for view in self.views(store):
            assert await view.try_claim_run("worker_2", adopt=True) is None

    async def test_who_waits_to_adopt_hears_of_a_run_that_is_driven_by_hand(self, store: ThreadStore) -> None:
        run = await new_run(store, status=RunStatus.REQUIRES_ACTION)
        async with asyncio.timeout(PATIENCE):
            waiting = asyncio.create_task(store.claim_run("worker_1", adopt=True))
            await still_waiting(waiting)
            await store.update_run_status(run.thread_id, run.id, RunStatus.IN_PROGRESS)
            assert (await waiting).run.id == run.id

    async def test_g3_who_waits_for_a_run_hears_when_one_is_queued(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        async with asyncio.timeout(PATIENCE), self.beside(store) as other, asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(store.claim_run(f"worker_{n}")) for n in range(3)]
            await still_waiting(*waiting)
            runs = [await new_run(other, thread.id), await new_run(other), await new_run(other)]
        assert {task.result().run.id for task in waiting} == {run.id for run in runs}

    @pytest.mark.parametrize("how", ["ended", "deleted", "given_back", "forced"])
    async def test_g3_who_waits_for_a_run_hears_when_a_thread_is_free_again(self, store: ThreadStore, how: str) -> None:
        claim = await new_claim(store)
        queued = await new_run(store, claim.run.thread_id)
        freeing: dict[str, Callable[[], Awaitable[object]]] = {
            "ended": lambda: store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED)),
            "deleted": lambda: store.delete_thread(claim.run.thread_id, force=True),
            "given_back": lambda: store.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED)),
            "forced": lambda: finish(store, claim.run),
        }
        async with asyncio.timeout(PATIENCE):
            waiting = asyncio.create_task(store.claim_run("worker_2"))
            await still_waiting(waiting)
            await freeing[how]()
            if how == "deleted":
                queued = await new_run(store)
            taken = (await waiting).run.id
        assert taken == (claim.run.id if how == "given_back" else queued.id)

    async def test_claims_made_together_are_those_made_one_after_the_other(self, store: ThreadStore) -> None:
        first = await new_run(store)
        await new_run(store, first.thread_id)
        second, third, fourth = [await new_run(store) for _ in range(3)]
        claims = await store.try_claim_runs("worker_1", 3)
        assert [claim.run.id for claim in claims] == [first.id, second.id, third.id]
        for claim in claims:
            assert await store.check_lease(claim.lease) == claim.run
        async for view in self.views(store):
            (claim,) = await view.try_claim_runs("worker_2", 3)
            assert claim.run.id == fourth.id
            assert await view.try_claim_runs("worker_3", 3) == []
            await view.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED))

    @pytest.mark.parametrize("limit", [0, -1, True, 1.5, "1", None])
    async def test_claims_are_asked_for_in_a_whole_number_from_one_up(self, store: ThreadStore, limit: Any) -> None:
        run = await new_run(store)
        with pytest.raises(InvalidInputError):
            await store.try_claim_runs("worker_1", limit)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run

    async def test_g7_a_claim_that_is_cancelled_leaks_no_lease(self, store: ThreadStore) -> None:
        first = await new_run(store)
        duration = await duration_of(store.claim_run("worker_1"))
        await finish(store, first)
        for part in PARTS:
            run = await new_run(store)
            claiming = asyncio.create_task(store.claim_run("worker_1"))
            await let_pass(part * duration)
            claiming.cancel()
            outcome: Claim | BaseException
            (outcome,) = await asyncio.gather(claiming, return_exceptions=True)
            if isinstance(outcome, asyncio.CancelledError):
                assert (await store.get_run(run.thread_id, run.id)).status is RunStatus.QUEUED
                outcome = await store.claim_run("worker_2")
            assert isinstance(outcome, Claim)
            assert (outcome.run.id, outcome.lease.attempt) == (run.id, 1)
            await store.write_run(outcome.lease, RunWrite(status=RunStatus.COMPLETED))
        async for view in self.views(store):
            assert await view.try_claim_run("worker_3") is None

    async def test_g7_a_claim_that_is_cancelled_while_it_waits_takes_nothing(self, store: ThreadStore) -> None:
        waiting = asyncio.create_task(store.claim_run("worker_1"))
        await still_waiting(waiting)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        run = await new_run(store)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
        async with self.fresh(store) as again:
            assert await claimed(again) == run.id

    async def test_who_waits_for_a_run_hears_that_the_store_is_closed(self, store: ThreadStore) -> None:
        async with asyncio.timeout(PATIENCE):
            waiting = asyncio.create_task(store.claim_run("worker_1"))
            await still_waiting(waiting)
            await store.close()
            with pytest.raises(StoreClosedError):
                await waiting

    async def test_history_is_not_claimed(self, store: ThreadStore) -> None:
        for status in TERMINAL:
            await new_run(store, status=status)
        async for view in self.views(store):
            assert await view.try_claim_run("worker_1") is None
