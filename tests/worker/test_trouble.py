"""What the worker does when its store cannot do its work."""

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
        assert caplog.text.count("write failed") == 3

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
            await stage.advance_until(lambda: "run given up" in caplog.text, 30 * SECOND)
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
        assert caplog.text.count("claim failed") == 5

    async def test_of_claims_made_at_once_one_that_takes_its_time_holds_up_no_other(self, stage: Stage, monkeypatch):
        try_claim_run = stage.store.try_claim_run

        async def slow(worker_id, **options):
            claim = await try_claim_run(worker_id, **options)
            if claim is None:
                await stage.stuck()  # as while the index is being made: there may be more to take
            return claim

        monkeypatch.setattr(stage.store, "try_claim_run", slow)
        gate = Gate()
        runs = [await stage.ask() for _ in range(2)]
        async with stage.worker(gate, concurrency=3, grace=0 * SECOND):
            await until(lambda: len(gate.started) == 2)
            await stage.is_stuck.wait()
        assert gate.started == [run.id for run in runs]

    async def test_of_claims_made_at_once_one_that_fails_costs_no_other_and_no_slot(
        self, stage: Stage, monkeypatch, caplog
    ):
        try_claim_run = stage.store.try_claim_run
        fails = iter([False, True])

        async def damaged(worker_id, **options):
            if next(fails):
                raise StoreIOError("take a run", OSError(5, "Input/output error", "queue"))
            return await try_claim_run(worker_id, **options)

        monkeypatch.setattr(stage.store, "try_claim_run", damaged)
        gate = Gate()
        runs = [await stage.ask() for _ in range(3)]
        async with stage.worker(gate, concurrency=3, grace=0 * SECOND):
            await until(lambda: "claim failed" in caplog.text)
            await until(lambda: len(gate.started) == 2)
            await stage.advance_until(lambda: len(gate.started) == 3)
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
        assert caplog.text.count("watch failed") == 2

    async def test_a_write_that_fails_in_the_handler_is_its_exception_and_is_not_in_the_text(
        self, stage: Stage, monkeypatch
    ):
        write_run = stage.store.write_run

        async def full(lease, work):
            if any(getattr(item, "text", None) == "lost" for item in work.items) and len(work.items) == 1:
                raise StoreIOError("write the run", OSError(28, "No space left on device", "events.jsonl"))
            return await write_run(lease, work)

        async def answer(ctx):
            async with ctx.message() as message:
                with pytest.raises(StoreIOError):
                    await message.write("lost")
                await message.write("kept")

        monkeypatch.setattr(stage.store, "write_run", full)
        run = await stage.done_by(answer)
        assert await stage.texts(run) == ["hello", "kept"]
