"""What happens to a run that is cancelled, or taken away from its worker, at every moment of its life."""

import asyncio
from contextlib import suppress

import pytest

from tests.support.worker_fixtures import SECOND, Gate, Stage, WorkerTests, turns, until
from threadloom import (
    FunctionCall,
    LeaseLostError,
    MessageStatus,
    RunStatus,
    RunStepStatus,
    ThreadNotFoundError,
)
from threadloom.models import IncompleteDetails
from threadloom.worker import RetryPolicy

BEGINNING = ["run.created", "run.queued", "run.in_progress"]
MESSAGE_BEGINNING = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"]
STEADY = RetryPolicy(max_attempts=3, first_delay=10 * SECOND, jitter=0)


def by_force(stage):
    return lambda run: stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)


def by_request(stage):
    return lambda run: stage.store.request_cancel(run.thread_id, run.id)


@pytest.mark.parametrize("way", [by_force, by_request])
class TestCancellation(WorkerTests):
    async def test_the_handler_is_cancelled_its_steps_too_and_its_text_kept(self, stage: Stage, way):
        streamed = asyncio.Event()

        async def answer(ctx):
            async with ctx.message() as message:
                await message.write("half")
                streamed.set()
                await stage.stuck()

        run = await stage.ask()
        async with stage.worker(answer):
            await streamed.wait()
            await way(stage)(run)
            run = await stage.ended(run)
        (message,) = await stage.answers(run)
        (step,) = await stage.steps(run)
        assert (run.status, run.cancelled_at, run.last_error) == (RunStatus.CANCELLED, stage.now, None)
        assert (message.text, message.status) == ("half", MessageStatus.INCOMPLETE)
        assert message.incomplete_details == IncompleteDetails("run_cancelled")
        assert (step.status, step.cancelled_at) == (RunStepStatus.CANCELLED, stage.now)
        asked = [] if way is by_force else ["run.cancelling"]
        end = ["message.incomplete", "run.step.cancelled", "run.cancelled"]
        assert await stage.events(run) == [*BEGINNING, *MESSAGE_BEGINNING, "message.delta", *asked, *end]

    async def test_a_step_that_was_open_keeps_its_calls(self, stage: Stage, way):
        at_work = asyncio.Event()

        async def answer(ctx):
            async with ctx.step([FunctionCall(name="f", arguments="{}")]):
                at_work.set()
                await stage.stuck()

        run = await stage.ask()
        async with stage.worker(answer):
            await at_work.wait()
            await way(stage)(run)
            run = await stage.ended(run)
        (step,) = await stage.steps(run)
        assert step.status is RunStepStatus.CANCELLED
        assert step.step_details.tool_calls[0].function.name == "f"  # type: ignore[union-attr]
        assert await stage.answers(run) == []

    async def test_before_the_handlers_first_step(self, stage: Stage, way):
        async def answer(ctx):
            return "never"

        stage.after_claim(lambda claim: way(stage)(claim.run))
        run = await stage.done_by(answer)
        assert run.status is RunStatus.CANCELLED
        await turns()
        assert await stage.texts(run) == ["hello"]
        assert (await stage.events(run))[-1] == "run.cancelled"

    async def test_in_the_tick_in_which_it_completes(self, stage: Stage, way):
        async def answer(ctx):
            return "never"

        async def cancel(work):
            await way(stage)(run)

        run = await stage.ask()
        stage.before_write(RunStatus.COMPLETED, cancel)
        async with stage.worker(answer):
            await stage.ended(run)
        assert (await stage.run(run)).status is RunStatus.CANCELLED
        assert await stage.texts(run) == ["hello"]
        assert await stage.steps(run) == []
        assert (await stage.events(run))[-1] == "run.cancelled"

    async def test_in_the_tick_in_which_a_streamed_message_completes(self, stage: Stage, way):
        async def answer(ctx):
            yield "all of it"

        async def cancel(work):
            await way(stage)(run)

        run = await stage.ask()
        stage.before_write(RunStatus.COMPLETED, cancel)
        async with stage.worker(answer):
            await stage.ended(run)
        (message,) = await stage.answers(run)
        assert (await stage.run(run)).status is RunStatus.CANCELLED
        assert message.incomplete_details == IncompleteDetails("run_cancelled")

    @pytest.mark.parametrize("retry", [None, STEADY])
    async def test_in_the_tick_in_which_it_fails(self, stage: Stage, way, retry):
        async def answer(ctx):
            raise ValueError

        async def cancel(work):
            await way(stage)(run)

        run = await stage.ask()
        stage.before_write(RunStatus.FAILED if retry is None else RunStatus.QUEUED, cancel)
        async with stage.worker(answer, retry=retry):
            await stage.ended(run)
        run = await stage.run(run)
        assert (run.status, run.attempt, run.last_error) == (RunStatus.CANCELLED, 1, None)

    async def test_while_the_handler_raises(self, stage: Stage, way, caplog):
        async def answer(ctx):
            try:
                await stage.stuck()
            finally:
                raise ValueError("in the clean-up")

        run = await stage.ask()
        async with stage.worker(answer, retry=STEADY):
            await stage.is_stuck.wait()
            await way(stage)(run)
            run = await stage.ended(run)
            await until(lambda: "The handler failed in run" in caplog.text)
        assert (run.status, run.last_error) == (RunStatus.CANCELLED, None)
        assert "in the clean-up" in caplog.text

    async def test_a_handler_that_ignores_it_is_waited_for_and_cancelled_again(self, stage: Stage, way, caplog):
        cancellations = 0

        async def stubborn(ctx):
            nonlocal cancellations
            while cancellations < 3:
                try:
                    await stage.stuck()
                except asyncio.CancelledError:
                    cancellations += 1
            return "never"

        run, next_run = await stage.ask(), await stage.ask()
        async with stage.worker(stubborn, concurrency=1, grace=5 * SECOND):
            await stage.is_stuck.wait()
            await way(stage)(run)
            await until(lambda: cancellations == 1)
            await turns()
            assert (await stage.run(next_run)).status is RunStatus.QUEUED
            stage.clock.advance(5 * SECOND)
            await until(lambda: cancellations == 2)
            stage.clock.advance(5 * SECOND)
            await stage.ended(run)
            await stage.ended(next_run)
        ignored = [record for record in caplog.records if "ignored its cancellation" in record.message]
        assert [record.run_id for record in ignored] == [run.id, run.id]
        assert (await stage.run(run)).status is RunStatus.CANCELLED
        assert (await stage.run(next_run)).status is RunStatus.COMPLETED
        assert await stage.texts(run) == ["hello"]

    async def test_a_text_returned_after_it_is_not_kept(self, stage: Stage, way):
        async def answer(ctx):
            try:
                await stage.stuck()
            except asyncio.CancelledError:
                return "never"

        run = await stage.ask()
        async with stage.worker(answer):
            await stage.is_stuck.wait()
            await way(stage)(run)
            await stage.ended(run)
        assert (await stage.run(run)).status is RunStatus.CANCELLED
        assert await stage.texts(run) == ["hello"]

    async def test_while_the_worker_is_stopping(self, stage: Stage, way):
        gate = Gate("never")
        run = await stage.ask()
        async with stage.worker(gate, grace=5 * SECOND) as worker:
            await until(lambda: gate.started)
            worker.stop()
            await turns()
            await way(stage)(run)
            await worker.close()
        assert (await stage.run(run)).status is RunStatus.CANCELLED
        assert await stage.texts(run) == ["hello"]

    async def test_in_the_tick_in_which_the_run_is_put_back(self, stage: Stage, way):
        async def cancel(work):
            await way(stage)(run)

        gate = Gate()
        run = await stage.ask()
        stage.before_write(RunStatus.QUEUED, cancel)
        async with stage.worker(gate, grace=0 * SECOND):
            await until(lambda: gate.started)
        assert (await stage.run(run)).status is RunStatus.CANCELLED

    async def test_twice(self, stage: Stage, way):
        go = asyncio.Event()

        async def answer(ctx):
            try:
                await stage.stuck()
            finally:
                await go.wait()

        run = await stage.ask()
        async with stage.worker(answer):
            await stage.is_stuck.wait()
            first = await way(stage)(run)
            await turns()
            assert (await way(stage)(run)).status is first.status
            go.set()
            await stage.ended(run)
        assert (await stage.run(run)).status is RunStatus.CANCELLED

    async def test_a_generator_is_closed_where_it_stands(self, stage: Stage, way):
        closed = []

        async def answer(ctx):
            try:
                while True:
                    yield "on and on "
                    stage.is_stuck.set()
            finally:
                closed.append(ctx.run.id)

        run = await stage.ask()
        async with stage.worker(answer):
            await stage.is_stuck.wait()
            await way(stage)(run)
            await stage.ended(run)
            await until(lambda: closed)
        assert (await stage.run(run)).status is RunStatus.CANCELLED


class TestTakenAway(WorkerTests):
    @pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.EXPIRED, RunStatus.INCOMPLETE])
    async def test_a_run_stays_what_it_was_forced_to(self, stage: Stage, status):
        gate = Gate("never")
        run = await stage.ask()
        async with stage.worker(gate):
            await until(lambda: gate.started)
            forced = await stage.store.force_update_run_status(run.thread_id, run.id, status)
            await until(lambda: not gate.at_work)
        assert await stage.run(run) == forced
        assert await stage.texts(run) == ["hello"]

    async def test_a_status_written_by_hand_takes_the_run_from_the_worker(self, stage: Stage):
        gate = Gate("never")
        run = await stage.ask()
        async with stage.worker(gate):
            await until(lambda: gate.started)
            done = await stage.store.update_run_status(run.thread_id, run.id, RunStatus.COMPLETED)
            await until(lambda: not gate.at_work)
        assert await stage.run(run) == done

    @pytest.mark.parametrize("by", ["update_run_status", "force_update_run_status"])
    async def test_a_run_that_is_queued_anew_is_done_anew(self, stage: Stage, by):
        streamed, go = asyncio.Event(), asyncio.Event()

        async def answer(ctx):
            async with ctx.message() as message:
                await message.write("half" if not streamed.is_set() else "whole")
                streamed.set()
                await go.wait()

        run = await stage.ask()
        async with stage.worker(answer):
            await streamed.wait()
            streamed.set()
            await getattr(stage.store, by)(run.thread_id, run.id, RunStatus.QUEUED)
            await turns()
            go.set()
            run = await stage.ended(run)
        assert (run.status, run.attempt) == (RunStatus.COMPLETED, 1)
        assert await stage.texts(run) == ["hello", "whole"]

    async def test_a_thread_deleted_by_force_stops_its_run(self, stage: Stage, caplog):
        async def answer(ctx):
            yield "half"
            await stage.stuck()

        run = await stage.ask()
        async with stage.worker(answer, concurrency=1):
            await stage.is_stuck.wait()
            await stage.store.delete_thread(run.thread_id, force=True)
            other = await stage.ask()
            await stage.came_to(other, RunStatus.IN_PROGRESS)
            with pytest.raises(ThreadNotFoundError):
                await stage.run(run)
            await stage.store.force_update_run_status(other.thread_id, other.id, RunStatus.CANCELLED)
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    async def test_a_write_after_the_run_was_taken_away_raises_in_the_handler(self, stage: Stage):
        raised = []
        open_ = asyncio.Event()

        async def answer(ctx):
            async with ctx.message() as message:
                open_.set()
                with suppress(asyncio.CancelledError):
                    await stage.stuck()
                try:
                    while True:  # the error of a write is raised by the next one
                        await message.write("never")
                except LeaseLostError as error:
                    raised.append(error)
                    raise

        run = await stage.ask()
        async with stage.worker(answer):
            await open_.wait()
            await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)
            await until(lambda: raised)
        assert (await stage.run(run)).status is RunStatus.CANCELLED
        assert await stage.answers(run) == []
