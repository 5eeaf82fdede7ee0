"""Conformance: runs that expire some time after they were first taken."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import pytest

from threadloom.errors import InvalidInputError
from threadloom.lifecycle import RunWrite
from threadloom.models import Run, RunStatus
from threadloom.store import ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import Stage, new_claim, new_run, new_thread

__all__ = ["ExpiryConformance"]

MINUTE = timedelta(minutes=1)


def second(clock: ManualClock) -> int:
    """Return the second that it is."""
    return clock.time_ns() // 1_000_000_000


class ExpiryConformance(Stage):
    """What ``expires_after`` says of a run, and when."""

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
