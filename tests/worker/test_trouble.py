"""What the worker does when its store cannot do its work."""

import asyncio
import itertools
from datetime import timedelta

import pytest

from tests.support.worker_fixtures import SECOND, Gate, Stage, WorkerTests, until
from threadloom import (
    RunStatus,
    StoreIOError,
)


class TestStoreTrouble(WorkerTests):
    async def test_the_end_of_a_run_is_written_again_when_the_store_could_not(self, stage: Stage, monkeypatch, caplog):
        tries = []
        write_run = stage.store.write_run

        async def full(lease, work):
            tries.append(work)
            if len(tries) < 4:
                raise StoreIOError("write the run", OSError(28, "No space left on device", "status.json"))
            return await write_run(lease, work)

        async def answer(ctx):
            return "at last"

        monkeypatch.setattr(stage.store, "write_run", full)
        run = await stage.ask()
        async with stage.worker(answer):
            await stage.advance_until(lambda: len(tries) == 4)
            run = await stage.ended(run)
        assert run.status is RunStatus.COMPLETED
        assert await stage.texts(run) == ["hello", "at last"]
        assert caplog.text.count("Could not write run") == 3

    async def test_a_run_whose_end_cannot_be_written_is_given_up_and_the_worker_goes_on(
        self, stage: Stage, monkeypatch, caplog
    ):
        first = await stage.ask()
        write_run = stage.store.write_run

        async def broken(lease, work):
            if lease.run_id == first.id:
                raise StoreIOError("write the run", OSError(5, "Input/output error", "status.json"))
            return await write_run(lease, work)

        async def answer(ctx):
            return "text"

        monkeypatch.setattr(stage.store, "write_run", broken)
        async with stage.worker(answer, concurrency=1):
            await stage.advance_until(lambda: "Gave up run" in caplog.text, 30 * SECOND)
            second = await stage.ended(await stage.ask())
        assert second.status is RunStatus.COMPLETED
        assert (await stage.run(first)).status is RunStatus.IN_PROGRESS

    async def test_a_claim_that_fails_is_tried_again_more_and_more_slowly(self, stage: Stage, monkeypatch, caplog):
        tries = []
        claim_run = stage.store.claim_run

        async def damaged(worker_id, **options):
            tries.append(stage.clock.time_ns())
            if len(tries) == 1:
                raise RuntimeError("a bug")
            if len(tries) < 6:
                raise StoreIOError("read the queue", OSError(5, "Input/output error", "queue"))
            return await claim_run(worker_id, **options)

        async def answer(ctx):
            return None

        monkeypatch.setattr(stage.store, "claim_run", damaged)
        run = await stage.ask()
        async with stage.worker(answer):
            await stage.advance_until(lambda: len(tries) >= 6, timedelta(milliseconds=100))
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        waits = [later - earlier for earlier, later in itertools.pairwise(tries[:6])]
        assert waits == sorted(waits)
        assert waits[-1] > 8 * waits[0]
        assert caplog.text.count("could not claim a run") == 5

    async def test_claims_that_fail_together_cost_no_slot(self, stage: Stage, monkeypatch, caplog):
        try_claim_runs = stage.store.try_claim_runs
        fails = iter([True, False])

        async def damaged(worker_id, limit, **options):
            if next(fails):
                raise StoreIOError("claim a run", OSError(5, "Input/output error", "queue"))
            return await try_claim_runs(worker_id, limit, **options)

        monkeypatch.setattr(stage.store, "try_claim_runs", damaged)
        gate = Gate()
        runs = [await stage.ask() for _ in range(4)]
        async with stage.worker(gate, concurrency=4, grace=0 * SECOND):
            await until(lambda: "could not claim a run" in caplog.text)
            await stage.advance_until(lambda: len(gate.started) == 4)
        assert gate.started == [run.id for run in runs]

    async def test_a_run_whose_watch_fails_is_watched_again(self, stage: Stage, monkeypatch, caplog):
        check_lease = stage.store.check_lease
        tries = []

        async def damaged(lease):
            tries.append(lease)
            if len(tries) < 3:
                raise StoreIOError("read the run", OSError(5, "Input/output error", "status.json"))
            return await check_lease(lease)

        monkeypatch.setattr(stage.store, "check_lease", damaged)
        gate = Gate()
        run = await stage.ask()
        async with stage.worker(gate):
            await stage.advance_until(lambda: len(tries) >= 3)
            await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)
            await until(lambda: not gate.at_work)
        assert caplog.text.count("Could not watch run") == 2

    async def test_a_failed_write_of_a_piece_raises_in_the_next_call_and_the_piece_goes_with_that(
        self, stage: Stage, monkeypatch
    ):
        write_run = stage.store.write_run
        failed = asyncio.Event()

        async def full(lease, work):
            if not failed.is_set() and [getattr(item, "text", None) for item in work.items] == ["late "]:
                failed.set()
                raise StoreIOError("write the run", OSError(28, "No space left on device", "events.jsonl"))
            return await write_run(lease, work)

        async def answer(ctx):
            async with ctx.message() as message:
                await message.write("late ")
                await failed.wait()
                for _ in range(10):  # until the task that writes has ended
                    await asyncio.sleep(0)
                with pytest.raises(StoreIOError):
                    await message.write("never")
                await message.write("but whole")

        monkeypatch.setattr(stage.store, "write_run", full)
        run = await stage.done_by(answer)
        assert await stage.texts(run) == ["hello", "late but whole"]
