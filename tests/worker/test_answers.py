"""What comes of a handler that does its work: messages, steps, events, times, usage."""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from tests.support.worker_fixtures import SECOND, Gate, Stage, WorkerTests, turns, until
from threadloom import (
    FunctionCall,
    InvalidCursorError,
    InvalidInputError,
    LeaseLostError,
    Message,
    MessageDelta,
    MessageStatus,
    RunError,
    RunStatus,
    RunStepStatus,
    RunStepType,
    ToolCall,
    ToolCalls,
    TruncationStrategy,
    Usage,
)
from threadloom.models import IncompleteDetails, MessageCreation
from threadloom.worker import Handler, RunContext, RunWorker

BEGINNING = ["run.created", "run.queued", "run.in_progress"]
MESSAGE_BEGINNING = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"]
MESSAGE_END = ["message.completed", "run.step.completed"]
A_MESSAGE = [*MESSAGE_BEGINNING, "message.delta", *MESSAGE_END]


class TestAnswers(WorkerTests):
    async def test_a_returned_text_becomes_the_assistants_message_and_its_step(self, stage: Stage):
        async def answer(ctx):
            return f"You said: {(await ctx.list_messages())[-1].text}"

        run = await stage.done_by(answer)

        (message,) = await stage.answers(run)
        (step,) = await stage.steps(run)
        assert await stage.texts(run) == ["hello", "You said: hello"]
        assert (message.role, message.status) == ("assistant", MessageStatus.COMPLETED)
        assert (step.type, step.status) == (RunStepType.MESSAGE_CREATION, RunStepStatus.COMPLETED)
        assert step.step_details == MessageCreation(message.id)
        assert await stage.events(run) == [*BEGINNING, *A_MESSAGE, "run.completed"]

    async def test_a_run_that_returns_a_text_takes_one_claim_and_one_write(self, stage: Stage, monkeypatch):
        writes = []
        write_run = stage.store.write_run

        async def counted(lease, work):
            writes.append(work)
            return await write_run(lease, work)

        async def answer(ctx):
            return "yes"

        monkeypatch.setattr(stage.store, "write_run", counted)
        await stage.done_by(answer)
        assert len(writes) == 1

    async def test_none_completes_the_run_without_a_message(self, stage: Stage):
        async def answer(ctx):
            return None

        run = await stage.done_by(answer)
        assert run.status is RunStatus.COMPLETED
        assert await stage.texts(run) == ["hello"]
        assert await stage.events(run) == [*BEGINNING, "run.completed"]

    async def test_an_empty_text_is_a_message_without_content(self, stage: Stage):
        async def answer(ctx):
            return ""

        run = await stage.done_by(answer)
        (message,) = await stage.answers(run)
        assert message.content == ()
        assert await stage.events(run) == [*BEGINNING, *MESSAGE_BEGINNING, *MESSAGE_END, "run.completed"]

    async def test_a_generators_pieces_are_streamed_as_one_message(self, stage: Stage):
        async def answer(ctx):
            yield "one "
            yield ""
            yield "two"

        run = await stage.done_by(answer)
        deltas = ["message.delta", "message.delta"]
        assert await stage.texts(run) == ["hello", "one two"]
        assert await stage.events(run) == [*BEGINNING, *MESSAGE_BEGINNING, *deltas, *MESSAGE_END, "run.completed"]

    async def test_a_generator_that_yields_nothing_writes_no_message(self, stage: Stage):
        async def answer(ctx):
            if ctx.attempt > 1:
                yield "never"

        run = await stage.done_by(answer)
        assert run.status is RunStatus.COMPLETED
        assert await stage.events(run) == [*BEGINNING, "run.completed"]

    async def test_a_generator_may_call_tools_before_its_first_piece(self, stage: Stage):
        async def answer(ctx):
            async with ctx.step([FunctionCall(name="f", arguments="")]):
                pass
            yield "then text"

        run = await stage.done_by(answer)
        step = ["run.step.created", "run.step.in_progress", "run.step.delta", "run.step.completed"]
        assert await stage.events(run) == [*BEGINNING, *step, *A_MESSAGE, "run.completed"]

    async def test_replies_are_whole_messages_in_the_order_of_the_calls(self, stage: Stage):
        made = []

        async def answer(ctx):
            made.append(await ctx.reply("one"))
            made.append(await ctx.reply("two"))

        run = await stage.done_by(answer)
        assert [message.text for message in made] == ["one", "two"]
        assert await stage.answers(run) == made
        assert await stage.events(run) == [*BEGINNING, *A_MESSAGE, *A_MESSAGE, "run.completed"]

    async def test_a_piece_is_written_whenever_it_comes_although_nothing_follows_it(self, stage: Stage):
        async def answer(ctx: RunContext) -> None:
            number = 0
            for turns_between in range(30):
                async with ctx.message() as message:
                    await message.write("half a ")
                    for _ in range(turns_between):  # until the first piece is being written, is written, and later
                        await asyncio.sleep(0)
                    await message.write("word")
                    text = ""
                    async with asyncio.timeout(10):
                        async for event in stage.store.events(ctx.run.thread_id, ctx.run.id, after=number):
                            number = event.number
                            text += event.data.text if isinstance(event.data, MessageDelta) else ""
                            if text == "half a word":
                                break

        run = await stage.ask()
        async with stage.worker(answer):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED

    async def test_a_streamed_message_is_in_the_thread_only_when_it_is_whole(self, stage: Stage):
        seen = []

        async def answer(ctx):
            async with ctx.message() as message:
                await message.write("one ")
                await message.write("")
                seen.append((message.text, [m.text for m in await ctx.list_messages()]))
                await message.write("two")
            seen.append((message.text, [m.text for m in await ctx.list_messages()]))
            assert message.id == (await ctx.list_messages())[-1].id

        run = await stage.done_by(answer)
        assert run.status is RunStatus.COMPLETED
        assert seen == [("one ", ["hello"]), ("one two", ["hello", "one two"])]
        deltas = ["message.delta", "message.delta"]
        assert await stage.events(run) == [*BEGINNING, *MESSAGE_BEGINNING, *deltas, *MESSAGE_END, "run.completed"]

    async def test_a_step_keeps_its_calls_and_their_outputs(self, stage: Stage):
        given = ToolCall(id="call_given", function=FunctionCall(name="g", arguments="not json"))

        async def answer(ctx):
            async with ctx.step([FunctionCall(name="f", arguments="{}"), given]) as step:
                first, second = step.calls
                step.set_output(first, "4")
                step.set_output("call_given", "5")
                assert [call.function.output for call in step.calls] == ["4", "5"]
                assert second == given

        run = await stage.done_by(answer)
        (step,) = await stage.steps(run)
        assert isinstance(step.step_details, ToolCalls)
        calls = [call.function for call in step.step_details.tool_calls if isinstance(call, ToolCall)]
        assert [(call.name, call.arguments, call.output) for call in calls] == [
            ("f", "{}", "4"),
            ("g", "not json", "5"),
        ]
        deltas = ["run.step.delta", "run.step.delta"]
        steps = ["run.step.created", "run.step.in_progress", *deltas, "run.step.completed"]
        assert await stage.events(run) == [*BEGINNING, *steps, "run.completed"]

    async def test_all_moments_are_those_of_the_stores_clock(self, stage: Stage):
        begun = stage.now

        async def answer(ctx):
            async with ctx.message() as message:
                stage.clock.advance(2 * SECOND)
                await message.write("slow")
                stage.clock.advance(3 * SECOND)
            stage.clock.advance(4 * SECOND)

        run = await stage.done_by(answer)
        (message,) = await stage.answers(run)
        (step,) = await stage.steps(run)
        assert (run.started_at, run.completed_at) == (begun, begun + 9)
        assert (run.failed_at, run.cancelled_at, run.last_error) == (None, None, None)
        assert (message.created_at, message.completed_at) == (begun, begun + 5)
        assert (step.created_at, step.completed_at) == (begun, begun + 5)

    async def test_usage_adds_up_and_is_written_with_the_runs_end(self, stage: Stage):
        seen = []

        async def answer(ctx):
            ctx.add_usage(prompt_tokens=10)
            await ctx.reply("hm")
            seen.append((await stage.run(ctx.run)).usage)
            ctx.add_usage(prompt_tokens=1, completion_tokens=5)
            return "ha"

        run = await stage.done_by(answer)
        assert seen == [None]
        assert run.usage == Usage(11, 5, 16)


class TestHandlers(WorkerTests):
    async def test_a_bound_method_a_partial_and_a_callable_object_are_handlers(self, stage: Stage):
        class Bot:
            async def answer(self, ctx):
                return "method"

            async def __call__(self, ctx):
                return "object"

            async def stream(self, ctx):
                yield "stream"

        async def named(name, ctx):
            return name

        async def streamed(ctx):
            yield "awaited"

        by_hand = functools.partial(named, "partial")
        handlers: list[Handler] = [Bot().answer, Bot(), Bot().stream, by_hand, lambda ctx: passed_on(streamed(ctx))]
        runs = [await stage.done_by(handler) for handler in handlers]
        texts = [(await stage.texts(run))[-1] for run in runs]
        assert texts == ["method", "object", "stream", "partial", "awaited"]

    @pytest.mark.parametrize("returned", [7, b"text", ["text"]])
    async def test_what_is_neither_text_nor_none_fails_the_run(self, stage: Stage, returned, caplog):
        async def answer(ctx):
            return returned

        run = await stage.done_by(answer)
        assert run.status is RunStatus.FAILED
        assert run.last_error is not None
        assert run.last_error.message == "The handler raised InvalidInputError."
        assert f"The handler returned {type(returned).__name__}" in caplog.text

    async def test_a_plain_function_fails_the_run_with_advice(self, stage: Stage, caplog):
        run = await stage.done_by(lambda ctx: "text")  # type: ignore[arg-type, return-value]
        assert run.status is RunStatus.FAILED
        assert "make it 'async def'" in caplog.text

    async def test_a_text_that_cannot_be_kept_fails_the_run(self, stage: Stage):
        async def answer(ctx):
            return "\ud800"

        run = await stage.done_by(answer)
        assert run.status is RunStatus.FAILED
        assert await stage.texts(run) == ["hello"]

    async def test_a_generator_that_yields_something_else_fails_the_run(self, stage: Stage):
        async def answer(ctx):
            yield "one"
            yield 2

        run = await stage.done_by(answer)
        (message,) = await stage.answers(run)
        assert run.status is RunStatus.FAILED
        assert (message.text, message.status) == ("one", MessageStatus.INCOMPLETE)
        assert message.incomplete_details == IncompleteDetails("run_failed")

    def test_what_cannot_be_a_handler_is_refused_at_once(self, store):
        def plain_generator(ctx):
            yield "text"

        async def no_argument():
            return "text"

        wrong: list[Any] = ["text", None, plain_generator, no_argument]
        for handler in wrong:
            with pytest.raises(InvalidInputError):
                RunWorker(store, handler)

    @pytest.mark.parametrize(
        "options",
        [
            {"concurrency": 0},
            {"concurrency": 1.5},
            {"run_timeout": 0 * SECOND},
            {"grace": -SECOND},
            {"worker_id": "../x"},
        ],
    )
    def test_options_that_make_no_sense_are_refused_at_once(self, store, options):
        async def answer(ctx):
            return None

        with pytest.raises(InvalidInputError):
            RunWorker(store, answer, **options)


class TestContext(WorkerTests):
    async def test_a_handler_is_given_its_run_its_thread_and_its_attempt(self, stage: Stage):
        seen = []

        async def answer(ctx: RunContext):
            seen.append((ctx.run, await ctx.get_thread(), ctx.attempt))

        run = await stage.done_by(answer)
        ((given, thread, attempt),) = seen
        assert (given.id, given.status, given.started_at) == (run.id, RunStatus.IN_PROGRESS, run.started_at)
        assert thread == await stage.store.get_thread(run.thread_id)
        assert attempt == 1

    async def test_a_handler_sees_what_was_there_when_its_run_was_created_and_the_replies_of_runs_before(
        self, stage: Stage
    ):
        seen = []

        async def answer(ctx):
            seen.append([message.text for message in await ctx.list_messages()])
            return f"answer {len(seen)}"

        thread = await stage.thread()
        await stage.ask("one", thread=thread)
        last = await stage.ask("two", thread=thread)
        await stage.store.append_message(thread.id, Message.user(thread.id, "too late"))
        async with stage.worker(answer):
            await stage.ended(last)
        assert seen == [["one"], ["one", "two", "answer 1"]]

    async def test_messages_are_paged_and_truncated(self, stage: Stage):
        seen = {}

        async def answer(ctx):
            await ctx.reply("six")
            page = await ctx.list_messages()
            seen["all"] = texts(page)
            seen["desc"] = texts(await ctx.list_messages(order="desc", limit=2))
            seen["after"] = texts(await ctx.list_messages(after=page[0].id, limit=1))
            seen["before"] = texts(await ctx.list_messages(before=page[1].id))
            seen["own"] = texts(await ctx.list_messages(run_id=ctx.run.id))
            with pytest.raises(InvalidCursorError):
                await ctx.list_messages(after=first.id)

        thread = await stage.thread("one", "two", "three", "four")
        first = (await stage.store.list_messages(thread.id, limit=1))[0]
        strategy = TruncationStrategy(type="last_messages", last_messages=3)
        run = await stage.ask("five", thread=thread, truncation_strategy=strategy)
        async with stage.worker(answer):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert seen == {
            "all": ["four", "five", "six"],
            "desc": ["six", "five"],
            "after": ["five"],
            "before": ["four"],
            "own": ["six"],
        }

    async def test_one_message_or_step_is_open_at_a_time(self, stage: Stage):
        refused = []

        async def answer(ctx):
            async with ctx.message() as message:
                await message.write("one")
                for second in (ctx.message(), ctx.step([])):
                    with pytest.raises(InvalidInputError) as caught:
                        await second.__aenter__()
                    refused.append(str(caught.value))
                with pytest.raises(InvalidInputError):
                    await ctx.reply("no")
                await message.write(" two")
            with pytest.raises(InvalidInputError):
                await message.write("too late")
            with pytest.raises(InvalidInputError):
                await message.__aenter__()

        run = await stage.done_by(answer)
        assert run.status is RunStatus.COMPLETED
        assert await stage.texts(run) == ["hello", "one two"]
        assert refused == ["A message of the run is still open: end it before you start another."] * 2

    async def test_a_message_left_by_an_exception_ends_incomplete_when_the_handler_goes_on(self, stage: Stage):
        async def answer(ctx):
            with suppress(ValueError):
                async with ctx.message() as message:
                    await message.write("half")
                    raise ValueError
            return "whole"

        run = await stage.done_by(answer)
        half, whole = await stage.answers(run)
        assert run.status is RunStatus.COMPLETED
        assert (half.text, half.status, half.incomplete_at) == ("half", MessageStatus.INCOMPLETE, stage.now)
        assert half.incomplete_details == IncompleteDetails("run_failed")
        assert (whole.text, whole.status) == ("whole", MessageStatus.COMPLETED)
        assert [step.status for step in await stage.steps(run)] == [RunStepStatus.FAILED, RunStepStatus.COMPLETED]
        left = [*MESSAGE_BEGINNING, "message.delta", "message.incomplete", "run.step.failed"]
        assert await stage.events(run) == [*BEGINNING, *left, *A_MESSAGE, "run.completed"]

    async def test_a_message_left_before_a_word_was_said_is_in_the_events_only(self, stage: Stage):
        async def answer(ctx):
            with suppress(ValueError):
                async with ctx.message():
                    raise ValueError
            async with ctx.step([]):
                pass

        run = await stage.done_by(answer)
        assert run.status is RunStatus.COMPLETED
        assert await stage.answers(run) == []
        left = [*MESSAGE_BEGINNING, "message.incomplete", "run.step.failed"]
        step = ["run.step.created", "run.step.in_progress", "run.step.completed"]
        assert await stage.events(run) == [*BEGINNING, *left, *step, "run.completed"]

    async def test_a_part_that_is_never_left_ends_as_failed_with_a_completed_run(self, stage: Stage):
        async def answer(ctx):
            message = ctx.message()
            await message.__aenter__()
            await message.write("half")

        run = await stage.done_by(answer)
        (message,) = await stage.answers(run)
        assert (run.status, message.status) == (RunStatus.COMPLETED, MessageStatus.INCOMPLETE)

    async def test_a_step_left_by_an_exception_is_failed_at_once(self, stage: Stage):
        seen: list[Any] = []

        async def answer(ctx):
            with suppress(ValueError):
                async with ctx.step([FunctionCall(name="f", arguments="")]) as step:
                    step.set_output(step.calls[0], "kept")
                    raise ValueError
            seen.extend(await stage.steps(ctx.run))

        run = await stage.done_by(answer)
        (step,) = seen
        assert run.status is RunStatus.COMPLETED
        assert (step.status, step.failed_at) == (RunStepStatus.FAILED, stage.now)
        assert step.last_error == RunError("server_error", "The handler raised ValueError.")
        assert step.step_details.tool_calls[0].function.output == "kept"

    async def test_a_step_that_its_handlers_own_timeout_cut_ends_failed_when_the_handler_goes_on(self, stage: Stage):
        async def answer(ctx):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0), ctx.step([]):
                    await asyncio.Event().wait()
            return "slow tool"

        run = await stage.done_by(answer)
        assert run.status is RunStatus.COMPLETED
        assert [step.status for step in await stage.steps(run)] == [RunStepStatus.FAILED, RunStepStatus.COMPLETED]

    async def test_wrong_input_is_refused_and_nothing_is_written(self, stage: Stage):
        async def answer(ctx):
            async with ctx.message() as message:
                with pytest.raises(InvalidInputError):
                    await message.write(7)
            with pytest.raises(InvalidInputError):
                await ctx.reply(None)
            with pytest.raises(InvalidInputError):
                ctx.step(["f"])
            async with ctx.step([FunctionCall(name="f", arguments="")]) as step:
                with pytest.raises(InvalidInputError, match="not a call of this step"):
                    step.set_output("call_other", "x")
                with pytest.raises(InvalidInputError):
                    step.set_output(step.calls[0], 7)
            for tokens in (-1, 1.5, True):
                with pytest.raises(InvalidInputError):
                    ctx.add_usage(prompt_tokens=tokens)
            with pytest.raises(InvalidInputError):
                ctx.fail("", "message")

        run = await stage.done_by(answer)
        assert (run.status, run.usage) == (RunStatus.COMPLETED, None)

    async def test_tasks_of_one_handler_write_one_after_the_other(self, stage: Stage):
        async def answer(ctx):
            async with ctx.message() as message, asyncio.TaskGroup() as group:
                for word in ("one ", "two ", "three"):
                    group.create_task(message.write(word))

        run = await stage.done_by(answer)
        assert await stage.texts(run) == ["hello", "one two three"]

    async def test_a_context_is_of_no_use_after_its_handler_has_ended(self, stage: Stage):
        kept: list[RunContext] = []

        async def answer(ctx):
            kept.append(ctx)
            return "done"

        run = await stage.done_by(answer)
        with pytest.raises(LeaseLostError):
            await kept[0].reply("late")
        with pytest.raises(LeaseLostError):
            kept[0].add_usage(prompt_tokens=1)
        with pytest.raises(LeaseLostError):
            kept[0].fail("server_error", "late")
        assert await stage.texts(run) == ["hello", "done"]

    async def test_a_task_that_the_handler_left_behind_writes_nothing_after_the_end(self, stage: Stage):
        tasks = []
        go = asyncio.Event()

        async def late(ctx):
            await go.wait()
            await ctx.reply("late")

        async def answer(ctx):
            tasks.append(asyncio.create_task(late(ctx)))
            return "done"

        run = await stage.done_by(answer)
        go.set()
        with pytest.raises(LeaseLostError):
            await tasks[0]
        assert await stage.texts(run) == ["hello", "done"]

    async def test_an_act_that_has_begun_is_carried_out_before_a_cancellation_goes_on(self, stage: Stage, monkeypatch):
        write_run = stage.store.write_run
        begun, go = asyncio.Event(), asyncio.Event()
        go.set()

        async def slow(lease, work):
            if work.status is None and not go.is_set():
                begun.set()
                await go.wait()
            return await write_run(lease, work)

        async def cut(work):
            begun.clear()
            go.clear()
            child = asyncio.create_task(work)
            await begun.wait()
            child.cancel()
            await turns()
            assert not child.done()
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await child

        async def answer(ctx):
            await cut(ctx.reply("once"))
            await cut(ctx.message().__aenter__())
            async with ctx.message() as message:
                begun.clear()
                go.clear()
                await message.write("twice")  # accepted, and written although the caller may be cancelled now
                await begun.wait()
                go.set()
            return "thrice"

        monkeypatch.setattr(stage.store, "write_run", slow)
        run = await stage.done_by(answer)
        assert await stage.texts(run) == ["hello", "once", "twice", "thrice"]
        assert "message.incomplete" in await stage.events(run)


class TestOrder(WorkerTests):
    async def test_runs_of_a_thread_are_done_one_after_the_other_in_order(self, stage: Stage):
        at_work = 0
        order = []

        async def answer(ctx):
            nonlocal at_work
            at_work += 1
            assert at_work == 1
            await turns(3)
            order.append(ctx.run.id)
            at_work -= 1

        thread = await stage.thread()
        runs = [await stage.ask(thread=thread) for _ in range(10)]
        async with stage.worker(answer, concurrency=4):
            await stage.ended(runs[-1])
        assert order == [run.id for run in runs]

    async def test_the_run_that_has_waited_longest_is_taken_first(self, stage: Stage):
        order = []

        async def answer(ctx):
            order.append(ctx.run.id)

        runs = []
        for _ in range(10):
            runs.append(await stage.ask())
            stage.clock.advance(SECOND)
        async with stage.worker(answer, concurrency=1):
            await stage.ended(runs[-1])
        assert order == [run.id for run in runs]

    @pytest.mark.parametrize("concurrency", [1, 3])
    async def test_as_many_runs_are_at_work_as_allowed_and_no_more(self, stage: Stage, concurrency):
        gate = Gate()
        runs = [await stage.ask() for _ in range(12)]
        async with stage.worker(gate, concurrency=concurrency):
            await until(lambda: gate.at_work == concurrency)
            await turns(50)
            gate.opened.set()
            for run in runs:
                await stage.ended(run)
        assert gate.most_at_work == concurrency

    async def test_two_workers_never_take_the_same_run(self, stage: Stage):
        order = []

        async def answer(ctx):
            order.append(ctx.run.id)
            await turns(2)

        runs = [await stage.ask() for _ in range(20)]
        async with stage.worker(answer), stage.worker(answer):
            for run in runs:
                await stage.ended(run)
        assert sorted(order) == sorted(run.id for run in runs)

    async def test_a_reader_follows_the_events_while_the_handler_is_at_work(self, stage: Stage):
        go = asyncio.Event()
        seen = []

        async def answer(ctx) -> AsyncIterator[str]:
            yield "one"
            await go.wait()
            yield "two"

        async def follow(run):
            async for event in stage.store.events(run.thread_id, run.id):
                seen.append(event.type.removeprefix("thread."))  # noqa: PERF401 - it is looked at meanwhile

        run = await stage.ask()
        async with stage.worker(answer), asyncio.TaskGroup() as group:
            group.create_task(follow(run))
            await until(lambda: "message.delta" in seen)
            assert seen == [*BEGINNING, *MESSAGE_BEGINNING, "message.delta"]
            go.set()
        assert seen[-4:] == ["message.delta", *MESSAGE_END, "run.completed"]


async def passed_on(pieces):
    async for piece in pieces:
        yield piece


def texts(messages):
    return [message.text for message in messages]
