"""How a worker starts and stops, and what it leaves behind: nothing."""

import asyncio
import os
import signal
from datetime import timedelta

import pytest

from tests.support.worker_fixtures import SECOND, Gate, Stage, WorkerTests, turns, until
from threadloom import ConflictError, MemoryStore, MessageStatus, RunStatus, RunStepStatus, StoreIOError, Usage
from threadloom.testing import ManualClock
from threadloom.worker import RetryPolicy


class TestStop(WorkerTests):
    async def test_runs_that_were_queued_before_the_start_are_taken(self, stage: Stage):
        run = await stage.ask()
        async with stage.worker(Gate(), grace=0 * SECOND) as worker:
            taken = await stage.came_to(run, RunStatus.IN_PROGRESS)
        assert taken.started_at is not None
        assert worker.worker_id is not None

    async def test_a_handler_that_ends_within_the_grace_completes_its_run(self, stage: Stage):
        gate = Gate("in time")
        run, waiting = await stage.ask(), await stage.ask()
        async with stage.worker(gate, concurrency=1, grace=10 * SECOND) as worker:
            await until(lambda: gate.started)
            worker.stop()
            stage.clock.advance(9 * SECOND)
            await turns()
            assert gate.at_work == 1
            gate.opened.set()
        assert (await stage.run(run)).status is RunStatus.COMPLETED
        assert (await stage.run(waiting)).status is RunStatus.QUEUED
        assert gate.started == [run.id]

    async def test_a_handler_that_does_not_is_cancelled_and_its_run_put_back(self, stage: Stage):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=5)
            yield "half"
            await stage.stuck()

        async def answer_again(ctx):
            ctx.add_usage(prompt_tokens=5)
            yield "whole"

        run = await stage.ask()
        async with stage.worker(answer, grace=10 * SECOND, retry=RetryPolicy()) as worker:
            await stage.is_stuck.wait()
            worker.stop()
            await turns()
            stage.clock.advance(10 * SECOND)
        back = await stage.run(run)
        assert (back.status, back.attempt, back.retry_at, back.usage) == (RunStatus.QUEUED, 1, None, None)
        assert [step.status for step in await stage.steps(run)] == [RunStepStatus.CANCELLED]
        assert await stage.texts(run) == ["hello"]

        async with stage.worker(answer_again):
            run = await stage.ended(run)
        assert (run.status, run.attempt, run.usage) == (RunStatus.COMPLETED, 1, Usage(5, 0, 5))
        assert await stage.texts(run) == ["hello", "whole"]

    @pytest.mark.parametrize("answer", ["returns", "raises"])
    async def test_what_a_handler_answers_to_the_cancellation_is_not_kept(self, stage: Stage, answer):
        started = asyncio.Event()

        async def stubborn(ctx):
            started.set()
            try:
                await stage.stuck()
            except asyncio.CancelledError:
                if answer == "raises":
                    raise ValueError from None
                return "never"

        run = await stage.ask()
        async with stage.worker(stubborn, grace=0 * SECOND):
            await started.wait()
        assert (await stage.run(run)).status is RunStatus.QUEUED
        assert (await stage.run(run)).attempt == 1
        assert await stage.texts(run) == ["hello"]

    async def test_what_a_handler_had_decided_before_it_is_kept(self, stage: Stage):
        cleaning_up = asyncio.Event()

        async def answer(ctx):
            try:
                ctx.fail("invalid_prompt", "No.")
            finally:
                cleaning_up.set()
                await stage.stuck()

        run = await stage.ask()
        async with stage.worker(answer, grace=0 * SECOND):
            await cleaning_up.wait()
        assert (await stage.run(run)).status is RunStatus.FAILED

    async def test_a_handler_that_ignores_the_cancellation_is_waited_for(self, stage: Stage):
        cancellations = 0

        async def stubborn(ctx):
            nonlocal cancellations
            while cancellations < 2:
                try:
                    await stage.stuck()
                except asyncio.CancelledError:
                    cancellations += 1

        run = await stage.ask()
        async with stage.worker(stubborn, grace=2 * SECOND) as worker:
            await stage.is_stuck.wait()
            closing = asyncio.create_task(worker.close())
            await stage.advance_until(closing.done)
            await closing
        assert (await stage.run(run)).status is RunStatus.QUEUED
        assert cancellations == 2

    async def test_a_claim_that_arrives_while_the_worker_is_stopping_is_put_back(self, stage: Stage, monkeypatch):
        claim_run = stage.store.claim_run
        waiting, go = asyncio.Event(), asyncio.Event()

        async def in_hand(worker_id, **options):
            claim = await claim_run(worker_id, **options)
            waiting.set()
            try:
                await go.wait()
            except asyncio.CancelledError:
                await turns()
            return claim

        monkeypatch.setattr(stage.store, "claim_run", in_hand)
        gate = Gate()
        run = await stage.ask()
        async with stage.worker(gate):
            await waiting.wait()
        assert gate.started == []
        assert (await stage.run(run)).status is RunStatus.QUEUED

    async def test_a_claim_in_the_tick_of_the_stop_is_put_back_or_done(self, stage: Stage):
        gate = Gate()
        for ticks in range(8):
            run = await stage.ask()
            async with stage.worker(gate, grace=0 * SECOND):
                await turns(ticks)
            assert (await stage.run(run)).status is RunStatus.QUEUED
            await stage.store.request_cancel(run.thread_id, run.id)

    async def test_stop_and_close_may_be_called_again_and_before_the_start(self, stage: Stage):
        worker = stage.worker(Gate())
        worker.stop()
        await worker.close()
        async with worker:
            worker.stop()
            worker.stop()
            await asyncio.gather(worker.close(), worker.close())
        await worker.close()

    async def test_a_worker_starts_once_at_a_time_and_under_a_new_id_each_time(self, stage: Stage):
        gate = Gate()
        gate.opened.set()
        worker = stage.worker(gate)
        ids = []
        for _ in range(2):
            async with worker:
                ids.append(worker.worker_id)
                with pytest.raises(ConflictError):
                    await worker.__aenter__()
                assert (await stage.ended(await stage.ask())).status is RunStatus.COMPLETED
        assert len(set(ids)) == 2
        assert stage.worker(gate, worker_id="worker_mine").worker_id == "worker_mine"

    async def test_an_exception_in_the_body_stops_the_worker_and_goes_on(self, stage: Stage):
        gate = Gate()
        run = await stage.ask()
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the worker is what it passes through
            async with stage.worker(gate, grace=0 * SECOND):
                await until(lambda: gate.started)
                raise ZeroDivisionError
        assert gate.at_work == 0
        assert (await stage.run(run)).status is RunStatus.QUEUED

    async def test_cancelling_the_task_around_a_worker_stops_it_in_order_and_goes_on(self, stage: Stage):
        gate = Gate("in time")
        run = await stage.ask()

        async def work():
            async with stage.worker(gate):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await until(lambda: gate.started)
        task.cancel()
        await turns()
        assert not task.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await stage.run(run)).status is RunStatus.COMPLETED

    async def test_cancelling_the_stop_ends_the_grace_but_waits_for_the_handlers(self, stage: Stage):
        cleaned_up, go = [], asyncio.Event()

        async def answer(ctx):
            try:
                yield "half"
                await stage.stuck()
            finally:
                await go.wait()
                cleaned_up.append(ctx.run.id)

        run = await stage.ask()

        async def work():
            async with stage.worker(answer):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await stage.is_stuck.wait()
        for _ in range(3):
            task.cancel()
            await turns()
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned_up == [run.id]
        assert (await stage.run(run)).status is RunStatus.QUEUED

    async def test_a_worker_that_is_stopping_gives_up_soon_on_a_store_that_cannot_write(
        self, stage: Stage, monkeypatch, caplog
    ):
        async def broken(lease, work):
            raise StoreIOError("write the run", OSError(28, "No space left on device", "status.json"))

        async def answer(ctx):
            return "text"

        monkeypatch.setattr(stage.store, "write_run", broken)
        await stage.ask()
        async with stage.worker(answer, grace=0 * SECOND) as worker:
            await until(lambda: "Could not write run" in caplog.text)
            closing = asyncio.create_task(worker.close())
            # Only then may time go on: a try that was made in the meantime would count too.
            await until(lambda: all(keeper._is_hurried for keeper in worker._keepers.values()))
            await stage.advance_until(closing.done, timedelta(milliseconds=100))
            await closing
        assert caplog.text.count("Could not write run") == 3
        assert "Gave up run" in caplog.text

    def test_a_loop_that_ends_without_closing_its_worker_puts_the_runs_back(self):
        stages = []

        async def forgetful():
            clock = ManualClock()
            stage = Stage(await MemoryStore.open(clock=clock), clock)
            gate = Gate()
            run = await stage.ask()
            await stage.worker(gate).__aenter__()
            await until(lambda: gate.started)
            stages.append((stage, run))

        asyncio.run(forgetful())
        ((stage, run),) = stages

        async def look():
            await stage.store.close()  # it was opened in the loop that has ended
            async with stage.store:
                return await stage.run(run)

        assert asyncio.run(look()).status is RunStatus.QUEUED


class TestProcess(WorkerTests):
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_a_signal_stops_the_process_in_order(self, stage: Stage, number):
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        gate = Gate("in time")
        run = await stage.ask()
        task = asyncio.create_task(stage.worker(gate).run_until_stopped())
        await until(lambda: gate.started)
        assert signal.getsignal(number) != before[number]
        os.kill(os.getpid(), number)
        await until(lambda: stage.clock.sleepers)
        assert not task.done()
        gate.opened.set()
        await task
        assert (await stage.run(run)).status is RunStatus.COMPLETED
        assert {number: signal.getsignal(number) for number in before} == before

    async def test_a_second_signal_ends_the_grace(self, stage: Stage):
        gate = Gate()
        run = await stage.ask()
        task = asyncio.create_task(stage.worker(gate).run_until_stopped())
        await until(lambda: gate.started)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: stage.clock.sleepers)
        os.kill(os.getpid(), signal.SIGTERM)
        await task
        assert (await stage.run(run)).status is RunStatus.QUEUED

    async def test_it_returns_when_it_is_told_to_stop(self, stage: Stage):
        worker = stage.worker(Gate())
        task = asyncio.create_task(worker.run_until_stopped())
        await turns()
        worker.stop()
        await task

    async def test_cancelling_it_stops_in_order_and_goes_on(self, stage: Stage):
        before = signal.getsignal(signal.SIGTERM)
        gate = Gate()
        run = await stage.ask()
        task = asyncio.create_task(stage.worker(gate, grace=0 * SECOND).run_until_stopped())
        await until(lambda: gate.started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await stage.run(run)).status is RunStatus.QUEUED
        assert signal.getsignal(signal.SIGTERM) is before


class TestLog(WorkerTests):
    async def test_what_happens_is_logged_by_one_logger_with_ids(self, stage: Stage, caplog):
        async def answer(ctx):
            return "text"

        with caplog.at_level("INFO", "threadloom"):
            run = await stage.ask()
            async with stage.worker(answer) as worker:
                await stage.ended(run)
                await until(lambda: "ended as completed" in caplog.text)
        name, named = worker.worker_id, f"Run {run.id} of thread {run.thread_id}"
        assert [record.message for record in caplog.records if record.name == "threadloom"] == [
            f"Worker {name} started",
            f"{named} started on worker {name}, attempt 1",
            f"{named} ended as completed",
            f"Worker {name} is stopping",
            f"Worker {name} stopped",
        ]
        assert {getattr(record, "worker_id", None) for record in caplog.records} == {worker.worker_id}
        ended = caplog.records[2].__dict__
        assert (ended["run_id"], ended["thread_id"], ended["status"]) == (run.id, run.thread_id, "completed")

    async def test_a_message_of_a_run_that_was_lost_is_settled_and_logged(self, stage: Stage, caplog):
        async def answer(ctx):
            yield "half"
            await stage.stuck()

        run = await stage.ask()
        with caplog.at_level("INFO", "threadloom"):
            async with stage.worker(answer):
                await stage.is_stuck.wait()
                await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.FAILED)
                await until(lambda: f"lost run {run.id} of thread" in caplog.text)
        (message,) = await stage.answers(run)
        assert message.status is MessageStatus.INCOMPLETE
