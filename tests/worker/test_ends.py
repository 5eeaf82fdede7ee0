"""How a run ends that does not simply complete: failures, retries, limits of time."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

from tests.support.worker_fixtures import SECOND, Gate, Stage, WorkerTests, turns, until
from threadloom import (
    FunctionCall,
    InvalidInputError,
    LeaseLostError,
    MessageStatus,
    RunError,
    RunStatus,
    RunStepStatus,
    Usage,
)
from threadloom.models import IncompleteDetails
from threadloom.worker import RetryPolicy

BEGINNING = ["run.created", "run.queued", "run.in_progress"]
MESSAGE_BEGINNING = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"]
STEADY = RetryPolicy(max_attempts=3, first_delay=10 * SECOND, jitter=0)


class TestFailures(WorkerTests):
    async def test_an_exception_fails_the_run_with_its_class_only_and_logs_the_traceback(self, stage: Stage, caplog):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=3)
            raise ValueError("the key is secret")

        run = await stage.done_by(answer)
        assert (run.status, run.failed_at) == (RunStatus.FAILED, stage.now)
        assert run.last_error == RunError("server_error", "The handler raised ValueError.")
        assert run.usage == Usage(3, 0, 3)
        assert await stage.events(run) == [*BEGINNING, "run.failed"]
        (record,) = [record for record in caplog.records if "The handler failed" in record.message]
        assert record.exc_info[0] is ValueError
        assert (record.name, record.run_id, record.thread_id, record.attempt) == (
            "threadloom",
            run.id,
            run.thread_id,
            1,
        )

    async def test_a_failure_closes_what_was_open_and_keeps_the_text_that_was_streamed(self, stage: Stage):
        async def answer(ctx):
            async with ctx.message() as message:
                await message.write("half")
                raise ValueError

        run = await stage.done_by(answer)
        (message,) = await stage.answers(run)
        (step,) = await stage.steps(run)
        assert (message.text, message.status) == ("half", MessageStatus.INCOMPLETE)
        assert message.incomplete_details == IncompleteDetails("run_failed")
        assert (step.status, step.last_error) == (RunStepStatus.FAILED, run.last_error)
        end = ["message.delta", "message.incomplete", "run.step.failed", "run.failed"]
        assert await stage.events(run) == [*BEGINNING, *MESSAGE_BEGINNING, *end]

    async def test_a_worker_outlives_what_its_handlers_raise(self, stage: Stage):
        async def answer(ctx):
            raise (SystemExit, RecursionError, BaseException, LeaseLostError("run_other", "worker_other"))[number]

        async with stage.worker(answer):
            for number in range(4):  # noqa: B007 - the handler uses it
                run = await stage.ended(await stage.ask())
                assert run.status is RunStatus.FAILED

    async def test_a_handler_that_is_cancelled_from_within_has_failed(self, stage: Stage):
        async def raises(ctx):
            raise asyncio.CancelledError

        async def cancels(ctx):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        for handler in (raises, cancels):
            run = await stage.done_by(handler)
            assert run.status is RunStatus.FAILED
            assert run.last_error == RunError("server_error", "The handler cancelled itself.")

    async def test_a_handler_can_fail_its_run_with_its_own_words_and_without_a_retry(self, stage: Stage):
        async def answer(ctx):
            async with ctx.step([FunctionCall(name="f", arguments="")]):
                ctx.fail("rate_limit_exceeded", "Come back later.")

        run = await stage.done_by(answer, retry=STEADY)
        (step,) = await stage.steps(run)
        assert (run.status, run.attempt) == (RunStatus.FAILED, 1)
        assert run.last_error == RunError("rate_limit_exceeded", "Come back later.")
        assert (step.status, step.last_error) == (RunStepStatus.FAILED, run.last_error)

    async def test_a_handler_can_end_its_run_incomplete(self, stage: Stage):
        async def answer(ctx):
            ctx.add_usage(completion_tokens=9)
            async with ctx.message() as message:
                await message.write("as far as it")
                ctx.incomplete("max_completion_tokens")

        run = await stage.done_by(answer)
        (message,) = await stage.answers(run)
        assert (run.status, run.last_error, run.usage) == (RunStatus.INCOMPLETE, None, Usage(0, 9, 9))
        assert run.incomplete_details == IncompleteDetails("max_completion_tokens")
        assert message.incomplete_details == IncompleteDetails("max_tokens")

    async def test_a_decision_passes_except_exception_and_stands_when_it_is_swallowed(self, stage: Stage):
        async def passes(ctx):
            try:
                ctx.fail("server_error", "decided")
            except Exception:  # noqa: BLE001 - what it must pass
                return "never"

        async def swallows(ctx):
            for code in ("server_error", "invalid_prompt"):
                with suppress(BaseException):
                    ctx.fail(code, "decided")
            return "never"

        async def grouped(ctx):
            async def child():
                ctx.fail("server_error", "decided")

            async with asyncio.TaskGroup() as group:
                group.create_task(child())

        for handler in (passes, swallows, grouped):
            run = await stage.done_by(handler)
            assert (run.status, run.last_error) == (RunStatus.FAILED, RunError("server_error", "decided"))
            assert await stage.texts(run) == ["hello"]


class TestRetries(WorkerTests):
    async def test_a_run_that_failed_is_tried_again_after_longer_and_longer_waits(self, stage: Stage):
        begun = stage.now
        attempts = []

        async def answer(ctx):
            attempts.append((ctx.attempt, stage.now - begun))
            if ctx.attempt < 3:
                raise ValueError
            return "third time lucky"

        run = await stage.ask()
        async with stage.worker(answer, retry=STEADY):
            await stage.advance_until(lambda: len(attempts) == 3)
            run = await stage.ended(run)
        assert [attempt for attempt, _ in attempts] == [1, 2, 3]
        first, second, third = (moment for _, moment in attempts)
        assert second - first in {10, 11}  # the clock moves by seconds, and a wait may end a little late
        assert third - second in {20, 21}
        assert (run.status, run.attempt, run.retry_at, run.last_error) == (RunStatus.COMPLETED, 3, None, None)
        assert await stage.texts(run) == ["hello", "third time lucky"]

    async def test_a_run_fails_when_its_attempts_are_used_up(self, stage: Stage):
        attempts = []

        async def answer(ctx):
            attempts.append(ctx.attempt)
            raise ValueError

        run = await stage.ask()
        async with stage.worker(answer, retry=STEADY):
            await stage.advance_until(lambda: len(attempts) == 3, 10 * SECOND)
            run = await stage.ended(run)
        assert attempts == [1, 2, 3]
        assert run.last_error == RunError("server_error", "The handler raised ValueError.")
        again = ["run.queued", "run.in_progress"]
        assert await stage.events(run) == [*BEGINNING, *again, *again, "run.failed"]

    async def test_a_run_that_waits_for_a_retry_says_until_when_in_whole_seconds(self, stage: Stage):
        async def answer(ctx):
            raise ValueError

        retry = RetryPolicy(first_delay=timedelta(milliseconds=1200), jitter=0.5, random=lambda: 1.0)
        run = await stage.ask()
        async with stage.worker(answer, retry=retry):
            await stage.came_to(run, RunStatus.QUEUED)
            await until(lambda: stage.clock.sleepers)
            waiting = await stage.run(run)
        assert (waiting.attempt, waiting.retry_at) == (2, stage.now + 2)

    async def test_what_a_failed_attempt_streamed_stays_in_the_events_only(self, stage: Stage):
        async def answer(ctx):
            yield "half" if ctx.attempt == 1 else "whole"
            if ctx.attempt == 1:
                raise ValueError

        run = await stage.ask()
        async with stage.worker(answer, retry=STEADY):
            await stage.came_to(run, RunStatus.QUEUED)
            await until(lambda: stage.clock.sleepers)
            stage.clock.advance(11 * SECOND)
            run = await stage.ended(run)
        assert await stage.texts(run) == ["hello", "whole"]
        half = [*MESSAGE_BEGINNING, "message.delta", "message.incomplete", "run.step.failed"]
        whole = [*MESSAGE_BEGINNING, "message.delta", "message.completed", "run.step.completed"]
        again = ["run.queued", "run.in_progress"]
        assert await stage.events(run) == [*BEGINNING, *half, *again, *whole, "run.completed"]

    async def test_what_an_attempt_used_that_is_done_again_counts_once(self, stage: Stage):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=100)
            await ctx.reply(f"attempt {ctx.attempt}")
            if ctx.attempt == 1:
                raise ValueError

        run = await stage.ask()
        async with stage.worker(answer, retry=RetryPolicy(first_delay=0 * SECOND)):
            run = await stage.ended(run)
        assert (run.attempt, run.usage) == (2, Usage(100, 0, 100))

    async def test_a_run_that_waits_for_a_retry_can_be_cancelled(self, stage: Stage):
        async def answer(ctx):
            raise ValueError

        run = await stage.ask()
        async with stage.worker(answer, retry=STEADY):
            await until(lambda: stage.clock.sleepers)
            cancelled = await stage.store.request_cancel(run.thread_id, run.id)
            stage.clock.advance(100 * SECOND)
            await turns()
        assert cancelled.status is RunStatus.CANCELLED
        assert await stage.run(run) == cancelled

    def test_waits_grow_by_the_factor_up_to_the_longest_and_by_a_share_at_random(self):
        policy = RetryPolicy(first_delay=SECOND, factor=3, max_delay=20 * SECOND, jitter=0)
        assert [policy.delay_after(n) // SECOND for n in (1, 2, 3, 4, 1000)] == [1, 3, 9, 20, 20]
        jittery = RetryPolicy(first_delay=10 * SECOND, jitter=0.1, random=lambda: 0.5)
        assert jittery.delay_after(1) == 10.5 * SECOND
        assert 10 * SECOND <= RetryPolicy(first_delay=10 * SECOND).delay_after(1) <= 11 * SECOND

    @pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"factor": 0.5}, {"jitter": -1}, {"max_delay": -SECOND}])
    def test_a_policy_that_makes_no_sense_is_refused(self, wrong):
        with pytest.raises(InvalidInputError):
            RetryPolicy(**wrong)


class TestTime(WorkerTests):
    async def test_a_run_past_its_expiry_is_expired_and_its_handler_cancelled(self, stage: Stage):
        async def answer(ctx):
            yield "half"
            await stage.stuck()

        run = await stage.ask(expires_at=stage.now + 60)
        async with stage.worker(answer, retry=STEADY):
            await stage.came_to(run, RunStatus.IN_PROGRESS)
            await stage.advance_until(lambda: stage.now >= (run.expires_at or 0) - 1)
            assert (await stage.run(run)).status is RunStatus.IN_PROGRESS
            stage.clock.advance(SECOND)
            run = await stage.ended(run)
        (message,) = await stage.answers(run)
        (step,) = await stage.steps(run)
        assert (run.status, run.last_error, run.attempt) == (RunStatus.EXPIRED, None, 1)
        assert message.incomplete_details == IncompleteDetails("run_expired")
        assert (step.status, step.expired_at) == (RunStepStatus.EXPIRED, stage.now)

    async def test_a_run_that_expired_in_the_queue_never_starts(self, stage: Stage):
        gate = Gate()
        run = await stage.ask(expires_at=stage.now)
        async with stage.worker(gate):
            assert (await stage.ended(run)).status is RunStatus.EXPIRED
        assert gate.started == []

    async def test_a_handler_that_takes_longer_than_allowed_ends_as_expired(self, stage: Stage):
        gate = Gate()
        run = await stage.ask()
        async with stage.worker(gate, run_timeout=5 * SECOND):
            await until(lambda: gate.started)
            stage.clock.advance(4 * SECOND)
            await turns()
            assert (await stage.run(run)).status is RunStatus.IN_PROGRESS
            stage.clock.advance(SECOND)
            run = await stage.ended(run)
        assert (run.status, run.last_error, gate.at_work) == (RunStatus.EXPIRED, None, 0)

    async def test_every_attempt_has_the_whole_time_to_itself(self, stage: Stage):
        async def answer(ctx):
            stage.clock.advance(4 * SECOND)
            if ctx.attempt == 1:
                raise ValueError
            return "in time"

        run = await stage.ask()
        async with stage.worker(answer, run_timeout=5 * SECOND, retry=RetryPolicy(first_delay=0 * SECOND)):
            run = await stage.ended(run)
        assert (run.status, run.attempt) == (RunStatus.COMPLETED, 2)

    async def test_a_text_returned_after_the_time_was_up_is_not_kept(self, stage: Stage):
        async def answer(ctx):
            try:
                await stage.stuck()
            except asyncio.CancelledError:
                return "too late"

        run = await stage.ask()
        async with stage.worker(answer, run_timeout=SECOND):
            await until(lambda: stage.clock.sleepers)
            stage.clock.advance(SECOND)
            run = await stage.ended(run)
        assert run.status is RunStatus.EXPIRED
        assert await stage.texts(run) == ["hello"]

    async def test_an_expiry_holds_by_the_time_of_day_when_that_is_set_back(self, stage: Stage):
        gate = Gate()
        run = await stage.ask(expires_at=stage.now + 10)
        async with stage.worker(gate):
            await until(lambda: stage.clock.sleepers)
            stage.clock.step_wall_clock(-5 * SECOND)
            stage.clock.advance(10 * SECOND)
            await turns()
            assert (await stage.run(run)).status is RunStatus.IN_PROGRESS
            await stage.advance_until(lambda: not gate.at_work)
            assert (await stage.ended(run)).status is RunStatus.EXPIRED
