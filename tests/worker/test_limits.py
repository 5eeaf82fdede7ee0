"""Limits on tokens: they count every attempt, and ``usage`` counts what is done again once."""

import asyncio
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from tests.support.worker_fixtures import Gate, Stage, WorkerTests
from threadloom import (
    FileStore,
    FunctionCall,
    IncompleteDetails,
    MessageStatus,
    Run,
    RunStatus,
    RunStepStatus,
    RunWorker,
    RunWrite,
    StoreError,
    Thread,
    ToolOutput,
    Usage,
)
from threadloom.worker import RetryPolicy

AT_ONCE = RetryPolicy(max_attempts=9, first_delay=timedelta(), jitter=0)
BREW = FunctionCall(name="brew", arguments="{}")
PATIENCE = timedelta(seconds=20)


class TestLimits(WorkerTests):
    @pytest.mark.parametrize(
        ("limits", "used", "reason"),
        [
            ({"max_prompt_tokens": 10}, (10, 99), None),
            ({"max_prompt_tokens": 10}, (11, 0), "max_prompt_tokens"),
            ({"max_completion_tokens": 10}, (99, 10), None),
            ({"max_completion_tokens": 10}, (0, 11), "max_completion_tokens"),
            ({"max_prompt_tokens": 10, "max_completion_tokens": 10}, (11, 11), "max_prompt_tokens"),
            ({"max_prompt_tokens": 10, "max_completion_tokens": 10}, (10, 11), "max_completion_tokens"),
            ({"max_prompt_tokens": 0}, (1, 0), "max_prompt_tokens"),
            ({"max_prompt_tokens": 0}, (0, 1), None),
            ({}, (10**9, 10**9), None),
        ],
    )
    async def test_a_run_that_passes_a_limit_is_incomplete_and_one_that_reaches_it_is_not(
        self, stage: Stage, limits: Any, used: tuple[int, int], reason: str | None
    ):
        prompt, completion = used

        async def answer(ctx):
            ctx.add_usage(prompt_tokens=prompt)
            ctx.add_usage(completion_tokens=completion)
            return "whole"

        run = await stage.ask(**limits)
        async with stage.worker(answer):
            run = await stage.ended(run)
        if reason is None:
            assert (run.status, run.incomplete_details) == (RunStatus.COMPLETED, None)
            assert await stage.texts(run) == ["hello", "whole"]
        else:
            assert (run.status, run.incomplete_details) == (RunStatus.INCOMPLETE, IncompleteDetails(reason))
            assert (run.last_error, await stage.texts(run)) == (None, ["hello"])

    async def test_the_text_that_was_streamed_before_a_limit_was_passed_is_kept(self, stage: Stage):
        async def answer(ctx):
            yield "as far as "
            ctx.add_usage(completion_tokens=4)
            yield "it goes"
            ctx.add_usage(completion_tokens=4)
            yield ", and no further"

        run = await stage.ask(max_completion_tokens=7)
        async with stage.worker(answer, retry=AT_ONCE):
            run = await stage.ended(run)
        (message,) = await stage.answers(run)
        (step,) = await stage.steps(run)
        assert (message.text, message.status) == ("as far as it goes", MessageStatus.INCOMPLETE)
        assert message.incomplete_details == IncompleteDetails("max_tokens")
        assert step.status is RunStepStatus.CANCELLED
        assert (run.attempt, run.usage, run.spent) == (1, Usage(0, 8, 8), None)

    async def test_a_limit_that_was_passed_stands_when_the_handler_does_not_let_it_out(self, stage: Stage):
        async def answer(ctx):
            with suppress(BaseException):
                ctx.add_usage(prompt_tokens=11)
            with suppress(BaseException):
                await ctx.call_tools([BREW])
            return "never"

        run = await stage.ask(max_prompt_tokens=10)
        async with stage.worker(answer):
            run = await stage.ended(run)
        assert run.incomplete_details == IncompleteDetails("max_prompt_tokens")
        assert (run.usage, await stage.texts(run)) == (Usage(11, 0, 11), ["hello"])

    async def test_what_failed_attempts_used_counts_towards_a_limit_and_not_as_usage(self, stage: Stage):
        seen = []

        async def answer(ctx):
            seen.append((ctx.run.spent, ctx.run.usage))
            ctx.add_usage(prompt_tokens=4, completion_tokens=1)
            raise ValueError

        run = await stage.ask(max_prompt_tokens=10)
        async with stage.worker(answer, retry=AT_ONCE):
            run = await stage.ended(run)
        assert seen == [(None, None), (Usage(4, 1, 5), None), (Usage(8, 2, 10), None)]
        assert (run.attempt, run.incomplete_details) == (3, IncompleteDetails("max_prompt_tokens"))
        assert (run.usage, run.spent) == (Usage(4, 1, 5), Usage(8, 2, 10))

    async def test_what_was_spent_is_kept_of_a_run_without_limits_too(self, stage: Stage):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=4)
            if ctx.attempt < 3:
                raise ValueError
            return "third time lucky"

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            run = await stage.ended(run)
        assert (run.usage, run.spent) == (Usage(4, 0, 4), Usage(8, 0, 8))

    async def test_what_an_attempt_used_that_was_stopped_with_its_worker_counts_towards_a_limit(self, stage: Stage):
        async def stuck(ctx):
            ctx.add_usage(prompt_tokens=4)
            await stage.stuck()

        async def answer(ctx):
            ctx.add_usage(prompt_tokens=4)
            return "whole"

        run = await stage.ask(max_prompt_tokens=7)
        async with stage.worker(stuck, grace=timedelta()):
            await stage.is_stuck.wait()
        back = await stage.run(run)
        assert (back.status, back.attempt, back.usage, back.spent) == (RunStatus.QUEUED, 1, None, Usage(4, 0, 4))
        async with stage.worker(answer):
            run = await stage.ended(run)
        assert (run.status, run.usage, run.spent) == (RunStatus.INCOMPLETE, Usage(4, 0, 4), Usage(4, 0, 4))

    async def test_all_turns_count_towards_a_limit(self, stage: Stage):
        seen = []

        async def answer(ctx):
            seen.append((ctx.run.usage, ctx.run.spent))
            ctx.add_usage(prompt_tokens=4)
            if ctx.attempt == 1:
                raise ValueError
            await ctx.call_tools([BREW])

        run = await stage.ask(max_prompt_tokens=12)
        async with stage.worker(answer, retry=AT_ONCE):
            for _ in range(2):
                waiting = await stage.came_to(run, RunStatus.REQUIRES_ACTION)
                assert waiting.required_action is not None
                (call,) = waiting.required_action.tool_calls
                await stage.store.submit_tool_outputs(run.thread_id, run.id, [ToolOutput(call.id, "hot")])
            run = await stage.came_to(run, RunStatus.INCOMPLETE)
        assert seen == [
            (None, None),
            (None, Usage(4, 0, 4)),
            (Usage(4, 0, 4), Usage(4, 0, 4)),
            (Usage(8, 0, 8), Usage(4, 0, 4)),
        ]
        assert (run.usage, run.spent) == (Usage(12, 0, 12), Usage(4, 0, 4))

    async def test_each_act_of_a_run_with_a_limit_tells_what_was_used_and_its_end_takes_that_back(self, stage: Stage):
        told = []

        async def answer(ctx):
            async def tell():
                told.append((await stage.run(run)).spent)

            await ctx.reply("nothing used yet")
            await tell()
            ctx.add_usage(prompt_tokens=3)
            await tell()
            await ctx.checkpoint("plan", lambda: 1)
            await tell()
            ctx.add_usage(completion_tokens=2)
            async with ctx.message() as message:
                await tell()
                ctx.add_usage(prompt_tokens=1)
                await message.write("a piece")
                await ctx.checkpoint("piece", lambda: 2)  # a piece is accepted at once, and written with what follows
                await tell()
            return "done"

        cases: list[dict[str, Any]] = [{"max_prompt_tokens": 100}, {"max_completion_tokens": 100}, {}]
        for limits in cases:
            told.clear()
            run = await stage.ask(**limits)
            async with stage.worker(answer):
                ended = await stage.ended(run)
            assert ended.usage == Usage(4, 2, 6)
            assert ended.spent is None
            if limits:
                assert told == [None, None, Usage(3, 0, 3), Usage(3, 2, 5), Usage(4, 2, 6)]
            else:
                assert set(told) == {None}

    async def test_acts_between_which_nothing_was_used_tell_of_nothing(self, stage: Stage):
        told: list[Usage | None] = []
        write_run = stage.store.write_run

        async def write(lease, work: RunWrite) -> Run:
            told.append(work.spent)
            return await write_run(lease, work)

        stage.store.write_run = write  # type: ignore[method-assign]

        async def answer(ctx):
            for _ in range(2):
                ctx.add_usage(prompt_tokens=1)
                await ctx.reply("used")
                await ctx.reply("not used")

        run = await stage.ask(max_prompt_tokens=100)
        async with stage.worker(answer):
            await stage.ended(run)
        assert told == [Usage(1, 0, 1), None, Usage(2, 0, 2), None, Usage()]

    async def test_what_an_act_that_failed_would_have_told_is_told_by_the_next(self, stage: Stage):
        write_run = stage.store.write_run
        failures = [StoreError("The disk is full.")]

        async def write(lease, work: RunWrite) -> Run:
            if work.items and failures:
                raise failures.pop()
            return await write_run(lease, work)

        stage.store.write_run = write  # type: ignore[method-assign]
        told = []

        async def answer(ctx):
            ctx.add_usage(prompt_tokens=1)
            with suppress(StoreError):
                await ctx.reply("lost")
            told.append((await stage.run(ctx.run)).spent)
            await ctx.reply("kept")
            told.append((await stage.run(ctx.run)).spent)

        run = await stage.ask(max_prompt_tokens=100)
        async with stage.worker(answer):
            run = await stage.ended(run)
        assert told == [None, Usage(1, 0, 1)]
        assert (run.usage, run.spent) == (Usage(1, 0, 1), None)

    @pytest.mark.parametrize("way", ["asked to stop", "expired", "fails"])
    async def test_however_a_run_ends_its_tokens_count_once(self, stage: Stage, way: str):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=5)
            await ctx.reply("told")
            if way == "fails":
                raise ValueError
            await stage.stuck()

        run = await stage.ask(max_prompt_tokens=100, expires_at=stage.now + 60)
        async with stage.worker(answer):
            if way != "fails":
                await stage.is_stuck.wait()
            if way == "asked to stop":
                await stage.store.request_cancel(run.thread_id, run.id)
            elif way == "expired":
                stage.clock.advance(timedelta(minutes=1))
            run = await stage.ended(run)
        assert (run.usage, run.spent) == (Usage(5, 0, 5), None)

    async def test_a_run_that_is_taken_away_has_spent_what_it_told(self, stage: Stage):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=5)
            await ctx.reply("told")
            await stage.stuck()

        run = await stage.ask(max_prompt_tokens=100)
        async with stage.worker(answer):
            await stage.is_stuck.wait()
            run = await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)
        assert (run.usage, run.spent) == (None, Usage(5, 0, 5))

    async def test_a_run_that_is_past_its_limit_when_it_is_claimed_ends_before_its_handler_is_called(
        self, stage: Stage, caplog
    ):
        run = await stage.ask(max_prompt_tokens=10)
        claim = await stage.store.claim_run("worker_gone")
        await stage.store.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED, spent=Usage(11, 0, 11)))
        gate = Gate()
        with caplog.at_level("INFO", "threadloom"):
            async with stage.worker(gate):
                run = await stage.ended(run)
        assert (run.status, run.incomplete_details) == (
            RunStatus.INCOMPLETE,
            IncompleteDetails("max_prompt_tokens"),
        )
        assert (run.usage, run.spent, gate.started) == (None, Usage(11, 0, 11), [])
        assert caplog.text.count("ended as incomplete") == 1
        assert f"Run {run.id} of thread {run.thread_id} started" not in caplog.text

    async def test_a_run_that_comes_back_with_outputs_past_its_limit_is_not_called_again(self, stage: Stage):
        gate = Gate()
        run = await stage.ask(max_completion_tokens=10)
        claim = await stage.store.claim_run("worker_gone")
        work = RunWrite(status=RunStatus.REQUIRES_ACTION, usage=Usage(0, 11, 11))
        await stage.store.write_run(claim.lease, work)
        await stage.store.submit_tool_outputs(run.thread_id, run.id, [])
        async with stage.worker(gate):
            run = await stage.came_to(run, RunStatus.INCOMPLETE)
        assert (run.usage, gate.started) == (Usage(0, 11, 11), [])

    async def test_a_run_past_its_limit_that_is_asked_to_stop_meanwhile_is_cancelled(self, stage: Stage):
        run = await stage.ask(max_prompt_tokens=10)
        claim = await stage.store.claim_run("worker_gone")
        await stage.store.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED, spent=Usage(11, 0, 11)))
        stage.before_write(RunStatus.INCOMPLETE, lambda _: stage.store.request_cancel(run.thread_id, run.id))
        gate = Gate()
        async with stage.worker(gate):
            assert (await stage.ended(run)).status is RunStatus.CANCELLED
        assert gate.started == []

    async def test_a_run_that_is_forced_to_the_queue_begins_with_all_its_tokens(self, stage: Stage):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=11 if len(stops) else 10)
            return "whole"

        stops = [1]
        run = await stage.ask(max_prompt_tokens=10)
        async with stage.worker(answer):
            assert (await stage.ended(run)).status is RunStatus.INCOMPLETE
            stops.clear()
            await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.QUEUED)
            run = await stage.ended(run)
        assert (run.status, run.usage, run.spent) == (RunStatus.COMPLETED, Usage(10, 0, 10), None)


WORKER = """
import asyncio, sys
from threadloom import *

async def answer(ctx):
    ctx.add_usage(prompt_tokens=6)
    await ctx.reply("told")
    ctx.add_usage(prompt_tokens=1)
    print("at work", flush=True)
    await asyncio.Event().wait()

async def main():
    async with FileStore(sys.argv[1], durability="process") as store, RunWorker(store, answer):
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_what_a_killed_worker_had_used_by_its_last_act_counts_towards_the_limit(tmp_path):
    async def answer(ctx):
        ctx.add_usage(prompt_tokens=4)
        await ctx.reply("told")
        ctx.add_usage(prompt_tokens=1)
        return "never"

    async with FileStore(tmp_path, durability="process") as store:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="m", max_prompt_tokens=10))
        worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert worker.stdout is not None
            assert await asyncio.to_thread(worker.stdout.readline) == "at work\n"
        finally:
            worker.kill()
            worker.communicate()
        async with RunWorker(store, answer):
            run = await store.wait_for_run(thread.id, run.id, timeout=PATIENCE)
        assert (run.status, run.attempt) == (RunStatus.INCOMPLETE, 2)
        assert run.incomplete_details == IncompleteDetails("max_prompt_tokens")
        assert (run.usage, run.spent) == (Usage(5, 0, 5), Usage(6, 0, 6))
        assert [message.text for message in await store.list_messages(thread.id)] == ["told"]
