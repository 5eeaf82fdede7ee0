"""What an attempt that is done again finds of the one before: what was completed is kept, and not written twice."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from tests.support.worker_fixtures import PATIENCE, Stage, WorkerTests
from threadloom import (
    FileStore,
    FunctionCall,
    LeaseLostError,
    Message,
    MessageStatus,
    Run,
    RunStatus,
    RunStepStatus,
    RunWorker,
    Thread,
    ToolCall,
    ToolOutput,
    TruncationStrategy,
)
from threadloom.worker import RetryPolicy

GRAZ = FunctionCall(name="weather", arguments='{"city": "Graz"}')
LINZ = FunctionCall(name="weather", arguments='{"city": "Linz"}')
AT_ONCE = RetryPolicy(max_attempts=9, first_delay=timedelta(), jitter=0)


class Crash(Exception):  # noqa: N818 - stands for what is no error of the handler's
    """Ends an attempt where it is raised."""


async def crash_at(ctx, attempt: int) -> None:
    if ctx.attempt == attempt:
        raise Crash


class TestReplies(WorkerTests):
    async def test_a_reply_is_written_once_and_returned_again(self, stage: Stage):
        replies = []

        async def answer(ctx):
            replies.append(await ctx.reply(f"first of {ctx.attempt}"))
            await crash_at(ctx, 1)
            replies.append(await ctx.reply(f"second of {ctx.attempt}"))
            await crash_at(ctx, 2)
            return f"third of {ctx.attempt}"

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            ended = await stage.ended(run)
        assert (ended.status, ended.attempt) == (RunStatus.COMPLETED, 3)
        assert await stage.texts(run) == ["hello", "first of 1", "second of 2", "third of 3"]
        assert replies == [replies[0], replies[0], replies[2], replies[0], replies[2]]
        assert replies[0] == (await stage.answers(run))[0]
        steps = await stage.steps(run)
        assert [(step.turn, step.position, step.status) for step in steps] == [
            (0, n, RunStepStatus.COMPLETED) for n in (1, 2, 3)
        ]
        events = await stage.events(run)
        assert events.count("message.created") == events.count("message.completed") == 3

    async def test_a_reply_that_somebody_deleted_meanwhile_is_not_written_again(self, stage: Stage):
        async def answer(ctx):
            message = await ctx.reply("gone")
            if ctx.attempt == 1:
                await stage.store.delete_message(ctx.run.thread_id, message.id)
                raise Crash
            assert (message.text, message.status) == ("", MessageStatus.COMPLETED)

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert await stage.texts(run) == ["hello"]

    async def test_an_attempt_sees_no_reply_of_the_one_before_until_it_comes_to_its_place(self, stage: Stage):
        seen = []

        async def answer(ctx):
            async def look():
                texts = [message.text for message in await ctx.list_messages()]
                own = [message.text for message in await ctx.list_messages(run_id=ctx.run.id)]
                newest = [message.text for message in await ctx.list_messages(limit=1, order="desc")]
                chat = [message["content"] for message in await ctx.chat_messages()]
                assert texts == chat
                assert (["hello", *own], texts[-1:]) == (texts, newest)
                return texts

            before = await look()
            await ctx.reply("one")
            between = await look()
            await ctx.reply("two")
            seen.append((before, between, await look()))
            await crash_at(ctx, 1)

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert seen == [(["hello"], ["hello", "one"], ["hello", "one", "two"])] * 2

    async def test_what_is_not_seen_yet_takes_no_place_among_the_newest_messages(self, stage: Stage):
        seen = []

        async def answer(ctx):
            seen.append([message.text for message in await ctx.list_messages()])
            await ctx.reply("one")
            await ctx.reply("two")
            await crash_at(ctx, 1)

        thread = await stage.thread("first", "second")
        strategy = TruncationStrategy(type="last_messages", last_messages=2)
        run = await stage.ask(thread=thread, truncation_strategy=strategy)
        async with stage.worker(answer, retry=AT_ONCE):
            await stage.ended(run)
        assert seen == [["second", "hello"]] * 2

    async def test_what_comes_back_in_another_order_at_the_same_time_is_kept_by_the_order_of_the_calls(
        self, stage: Stage
    ):
        async def answer(ctx):
            await asyncio.gather(*[ctx.reply(f"{n}") for n in range(4)])
            await crash_at(ctx, 1)

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            await stage.ended(run)
        assert await stage.texts(run) == ["hello", "0", "1", "2", "3"]

    async def test_another_kind_of_thing_at_the_place_is_written(self, stage: Stage):
        async def answer(ctx):
            if ctx.attempt == 1:
                async with ctx.step([GRAZ]) as step:
                    step.set_output(step.calls[0], "19")
                raise Crash
            await ctx.reply("no tool this time")

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            await stage.ended(run)
        assert await stage.texts(run) == ["hello", "no tool this time"]
        assert [(step.type, step.position) for step in await stage.steps(run)] == [
            ("tool_calls", 1),
            ("message_creation", 1),
        ]


class TestMessages(WorkerTests):
    async def test_a_streamed_message_is_kept_and_what_is_written_again_is_dropped(self, stage: Stage):
        seen = []

        async def answer(ctx):
            async with ctx.message() as message:
                await message.write(f"of attempt {ctx.attempt}")
                await message.write("!")
            seen.append((message.is_kept, message.id, message.text))
            await crash_at(ctx, 1)

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        (message,) = await stage.answers(run)
        assert seen == [(False, message.id, "of attempt 1!"), (True, message.id, "of attempt 1!")]
        assert (await stage.events(run)).count("message.delta") == 2

    async def test_one_that_was_not_completed_is_in_the_events_and_written_anew_under_another_id(self, stage: Stage):
        ids = []

        async def answer(ctx):
            async with ctx.message() as message:
                ids.append(message.id)
                assert not message.is_kept
                await message.write("half ")
                await crash_at(ctx, 1)
                await message.write("whole")

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            await stage.ended(run)
        assert await stage.texts(run) == ["hello", "half whole"]
        assert len(set(ids)) == 2
        assert [step.status for step in await stage.steps(run)] == [RunStepStatus.FAILED, RunStepStatus.COMPLETED]
        events = await stage.events(run)
        assert (events.count("message.incomplete"), events.count("message.completed")) == (1, 1)

    async def test_what_was_left_of_a_kept_message_does_not_hinder_the_next(self, stage: Stage):
        async def answer(ctx):
            message = ctx.message()
            with suppress(ValueError):
                async with message:
                    await message.write("one")
                    if ctx.attempt == 2:
                        raise ValueError
            await crash_at(ctx, 1)
            await ctx.reply("two")

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            await stage.ended(run)
        assert await stage.texts(run) == ["hello", "one", "two"]

    async def test_a_generator_finds_what_was_kept(self, stage: Stage):
        async def answer(ctx):
            await ctx.reply("Let me see.")
            yield f"of attempt {ctx.attempt}"
            await crash_at(ctx, 1)
            yield "!"

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert await stage.texts(run) == ["hello", "Let me see.", "of attempt 2!"]

    async def test_a_generator_whose_first_words_are_at_a_kept_place_ends_with_what_is_kept(self, stage: Stage):
        async def answer(ctx):
            if ctx.attempt == 1:
                await ctx.reply("kept")
                raise Crash
            yield "other"
            yield " words"

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert await stage.texts(run) == ["hello", "kept"]

    async def test_nothing_is_kept_for_a_handler_that_lost_its_run(self, stage: Stage):
        lost = []

        async def answer(ctx):
            if ctx.attempt == 2:
                with suppress(asyncio.CancelledError):
                    await stage.store.force_update_run_status(ctx.run.thread_id, ctx.run.id, RunStatus.CANCELLED)
                    await asyncio.Event().wait()
                try:
                    await ctx.reply("late")
                finally:
                    lost.append(True)
            await crash_at(ctx, 1)

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            await stage.ended(run)
        assert lost == [True]
        assert await stage.texts(run) == ["hello"]


class TestSteps(WorkerTests):
    async def test_a_step_is_kept_with_its_outputs_whatever_is_called_now(self, stage: Stage):
        done = []

        async def answer(ctx):
            async with ctx.step([GRAZ] if ctx.attempt == 1 else [LINZ, GRAZ]) as step:
                for call in step.calls:
                    if call.function.output is None:
                        done.append(call.function.arguments)
                        step.set_output(call, "19")
            await crash_at(ctx, 1)
            assert step.is_kept
            assert [call.function.output for call in ctx.tool_calls] == ["19"]

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert done == [GRAZ.arguments]
        (step,) = await stage.steps(run)
        assert (await stage.events(run)).count("run.step.completed") == 1
        assert step.status is RunStepStatus.COMPLETED

    async def test_outputs_that_are_set_in_a_kept_step_are_passed_over(self, stage: Stage):
        async def answer(ctx):
            call = ToolCall(id=f"call_{ctx.attempt}", function=GRAZ)
            async with ctx.step([call]) as step:
                step.set_output(call, f"of attempt {ctx.attempt}")
            assert step.calls[0].function.output == "of attempt 1"
            await crash_at(ctx, 1)

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED

    async def test_a_step_that_failed_is_done_again(self, stage: Stage):
        async def answer(ctx):
            async with ctx.step([GRAZ]) as step:
                assert not step.is_kept
                await crash_at(ctx, 1)
                step.set_output(step.calls[0], "19")

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            await stage.ended(run)
        assert [step.status for step in await stage.steps(run)] == [RunStepStatus.FAILED, RunStepStatus.COMPLETED]

    async def test_a_model_that_is_asked_again_is_told_what_it_was_told_then(self, stage: Stage):
        asked = []

        async def answer(ctx):
            for n in range(3):
                asked.append(len(await ctx.chat_messages()))
                async with ctx.step([FunctionCall(name=f"tool_{n}", arguments=f"{ctx.attempt}")]) as step:
                    if not step.is_kept:
                        step.set_output(step.calls[0], f"{n}")
                await crash_at(ctx, n + 1)
            return "done"

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            assert (await stage.ended(run)).attempt == 4
        assert asked == [1, 1, 3, 1, 3, 5, 1, 3, 5]
        assert len(await stage.steps(run)) == 4


class TestTurns(WorkerTests):
    async def test_places_are_counted_anew_in_each_turn(self, stage: Stage):
        attempts = iter(range(1, 9))

        async def answer(ctx):
            attempt = next(attempts)
            await ctx.reply(f"turn {ctx.run.turn}, call {attempt}")
            await crash_at(ctx, 1 + ctx.run.turn)
            if ctx.run.turn < 2:
                await ctx.call_tools([GRAZ])

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            for _ in range(2):
                waiting = await stage.came_to(run, RunStatus.REQUIRES_ACTION)
                assert waiting.required_action is not None
                given = [ToolOutput(call.id, "19") for call in waiting.required_action.tool_calls]
                await stage.store.submit_tool_outputs(run.thread_id, run.id, given)
            ended = await stage.ended(run)
        assert (ended.status, ended.attempt, ended.turn) == (RunStatus.COMPLETED, 4, 2)
        assert await stage.texts(run) == ["hello", "turn 0, call 1", "turn 1, call 3", "turn 2, call 5"]
        places = [(step.turn, step.position) for step in await stage.steps(run)]
        assert places == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]

    async def test_what_a_stop_interrupted_is_kept_although_it_counts_no_attempt(self, stage: Stage):
        run = await stage.ask()

        async def answer(ctx):
            await ctx.reply("one")
            await stage.stuck()

        async with stage.worker(answer, grace=timedelta()):
            await stage.is_stuck.wait()

        async def answer_again(ctx):
            assert ctx.attempt == 1
            await ctx.reply("another")
            return "two"

        async with stage.worker(answer_again):
            await stage.ended(run)
        assert await stage.texts(run) == ["hello", "one", "two"]

    async def test_a_run_that_is_forced_to_begin_anew_keeps_nothing(self, stage: Stage):
        seen = []

        async def answer(ctx):
            seen.append((ctx.tool_calls, ctx.run.turn))
            async with ctx.step([GRAZ]) as step:
                assert not step.is_kept
            await ctx.reply("again")

        run = await stage.ask()
        async with stage.worker(answer):
            await stage.ended(run)
            await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.QUEUED)
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert seen == [((), 0)] * 2
        assert await stage.texts(run) == ["hello", "again", "again"]

    async def test_a_lost_lease_writes_nothing_at_a_kept_place_either(self, stage: Stage):
        kept: list[Any] = []

        async def answer(ctx):
            kept.append(ctx.message())
            await ctx.reply("one")
            await crash_at(ctx, 1)

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            await stage.ended(run)
        for message in kept:
            with pytest.raises(LeaseLostError):
                await message.__aenter__()


async def test_what_was_completed_is_kept_in_the_files(tmp_path):
    async def answer(ctx):
        await ctx.reply(f"reply of {ctx.attempt}")
        async with ctx.message() as message:
            await message.write(f"message of {ctx.attempt}")
        async with ctx.step([GRAZ]) as step:
            step.set_output(step.calls[0], f"output of {ctx.attempt}")
        await crash_at(ctx, 1)
        assert ctx.tool_calls[0].function.output == "output of 1"
        return "done"

    async with FileStore(tmp_path) as store, RunWorker(store, answer, retry=RetryPolicy(first_delay=timedelta(0))):
        thread = await store.create_thread(Thread.new())
        await store.append_message(thread.id, Message.user(thread.id, "hello"))
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        async for event in store.events(thread.id, run.id):
            if isinstance(event.data, Run) and event.data.attempt == 2:
                break
    async with FileStore(tmp_path) as store:
        async with RunWorker(store, answer):
            run = await store.wait_for_run(thread.id, run.id, timeout=PATIENCE)
        assert (run.status, run.attempt) == (RunStatus.COMPLETED, 2)
        texts = [message.text for message in await store.list_messages(thread.id)]
        assert texts == ["hello", "reply of 1", "message of 1", "done"]
        assert len(await store.list_steps(thread.id, run.id)) == 4
