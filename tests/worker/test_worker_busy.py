"""What a worker makes of runs that stop each other, and of runs that expire after they were first taken."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

from tests.support.worker_fixtures import Gate, Stage, WorkerTests, turns, until
from threadloom import Message, MessageStatus, Run, RunContext, RunStatus, RunStepStatus


def supersede(stage: Stage, run: Run, way):
    """Create a run that stops the active ones of the thread, with a message of its own."""
    new = Run.new(run.thread_id, model="any")
    asked = [Message.user(run.thread_id, "never mind")]
    return stage.store.create_run(run.thread_id, new, on_busy=way, messages=asked)


class TestBusyThreads(WorkerTests):
    @pytest.mark.parametrize("way", ["interrupt", "rollback"])
    async def test_a_new_run_begins_when_the_old_handler_has_ended(self, stage: Stage, way):
        cleaned_up, stopped = asyncio.Event(), asyncio.Event()
        seen: dict[str, list[str]] = {}

        async def answer(ctx: RunContext) -> str | None:
            seen[ctx.run.id] = [message.text for message in await ctx.list_messages()]
            if len(seen) == 2:
                return "done"
            await ctx.reply("at once")
            async with ctx.message() as message:
                await message.write("half a ")
                stage.is_stuck.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    stopped.set()
                    await message.write("word")
                    await cleaned_up.wait()
                    raise
            return None

        old = await stage.ask()
        async with stage.worker(answer, concurrency=2):
            await stage.is_stuck.wait()
            new = await supersede(stage, old, way)
            await stopped.wait()
            await turns()
            assert list(seen) == [old.id]
            assert (await stage.run(new)).status is RunStatus.QUEUED
            cleaned_up.set()
            assert (await stage.ended(new)).status is RunStatus.COMPLETED
        assert (await stage.run(old)).status is RunStatus.CANCELLED
        kept = [] if way == "rollback" else ["at once", "half a word"]
        # The half message is whole only after the new one was asked for.
        assert seen[new.id] == ["hello", *kept[:1], "never mind", *kept[1:]]
        assert await stage.texts(old) == [*seen[new.id], "done"]
        assert [step.status for step in await stage.steps(old)] == [RunStepStatus.COMPLETED, RunStepStatus.CANCELLED]
        if kept:
            (_, half) = await stage.answers(old)
            assert half.status is MessageStatus.INCOMPLETE

    async def test_what_a_rolled_back_handler_replies_to_its_cancellation_is_not_kept(self, stage: Stage):
        async def answer(ctx: RunContext) -> str | None:
            if gate.started:
                return await gate(ctx)
            gate.started.append(ctx.run.id)
            with suppress(asyncio.CancelledError):
                await stage.stuck()
            await ctx.reply("good bye")
            return "and a good day"

        gate = Gate()
        gate.opened.set()
        old = await stage.ask()
        async with stage.worker(answer):
            await stage.is_stuck.wait()
            new = await supersede(stage, old, "rollback")
            await stage.ended(new)
        assert await stage.texts(old) == ["hello", "never mind", "done"]
        events = await stage.events(old)
        assert events.count("message.completed") == 1
        assert events[-1] == "run.cancelled"

    async def test_of_many_that_stop_each_other_the_last_one_is_answered(self, stage: Stage):
        gate = Gate()
        run = await stage.ask()
        async with stage.worker(gate, concurrency=4):
            await until(lambda: gate.started)
            runs = [run, *[await supersede(stage, run, "interrupt") for _ in range(5)]]
            gate.opened.set()
            assert (await stage.ended(runs[-1])).status is RunStatus.COMPLETED
        assert [(await stage.run(old)).status for old in runs[:-1]] == [RunStatus.CANCELLED] * 5
        # Those between may have begun, where the one before had ended already.
        assert (gate.started[0], gate.started[-1], gate.most_at_work) == (runs[0].id, runs[-1].id, 1)


class TestExpiryFromTheFirstClaim(WorkerTests):
    async def test_a_run_expires_some_time_after_it_was_first_taken(self, stage: Stage):
        gate = Gate()
        run = await stage.ask(expires_after=timedelta(minutes=1))
        stage.clock.advance(timedelta(hours=1))
        begun = stage.now
        async with stage.worker(gate):
            await until(lambda: gate.started)
            await stage.advance_until(lambda: stage.now >= begun + 59)
            assert (await stage.run(run)).status is RunStatus.IN_PROGRESS
            stage.clock.advance(timedelta(seconds=1))
            run = await stage.ended(run)
        assert (run.status, run.expires_at) == (RunStatus.EXPIRED, begun + 60)

    async def test_a_run_that_was_put_back_has_only_the_time_that_is_left(self, stage: Stage):
        gate = Gate()
        run = await stage.ask(expires_after=timedelta(minutes=1))
        begun = stage.now
        async with stage.worker(gate, grace=timedelta()):
            await until(lambda: gate.started)
        stage.clock.advance(timedelta(seconds=59))
        async with stage.worker(gate):
            await until(lambda: len(gate.started) == 2)
            stage.clock.advance(timedelta(seconds=1))
            run = await stage.ended(run)
        assert (run.status, run.expires_at) == (RunStatus.EXPIRED, begun + 60)
