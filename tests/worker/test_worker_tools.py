"""Tools that the client carries out, what a model is told of them, and what is found out once per run."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import attrs
import pytest

from tests.support.worker_fixtures import PATIENCE, Gate, Stage, WorkerTests, until
from threadloom import (
    EventType,
    FileStore,
    FunctionCall,
    ImageFileContent,
    ImageUrlContent,
    InvalidInputError,
    LeaseLostError,
    Message,
    MessageStatus,
    Run,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWorker,
    StoreIOError,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
    ToolOutput,
    ToolOutputsRefusedError,
    TruncationStrategy,
    UnknownObject,
    Usage,
)
from threadloom.worker import RetryPolicy
from threadloom.worker._writer import RunEnding

BEGINNING = ["run.created", "run.queued", "run.in_progress"]
CALLING = ["run.step.created", "run.step.in_progress", "run.step.delta", "run.requires_action"]
GRAZ = FunctionCall(name="weather", arguments='{"city": "Graz"}')
LINZ = FunctionCall(name="weather", arguments="no { json")
AT_ONCE = RetryPolicy(first_delay=timedelta(), jitter=0)


def outputs(run: Run, *texts: str) -> list[ToolOutput]:
    assert run.required_action is not None
    return [ToolOutput(call.id, text) for call, text in zip(run.required_action.tool_calls, texts, strict=True)]


async def submit(stage: Stage, run: Run, *texts: str) -> Run:
    waiting = await stage.came_to(run, RunStatus.REQUIRES_ACTION)
    return await stage.store.submit_tool_outputs(run.thread_id, run.id, outputs(waiting, *texts))


def called(ctx) -> list[tuple[str, str | None]]:
    return [(call.function.name, call.function.output) for call in ctx.tool_calls]


class TestCallingTools(WorkerTests):
    async def test_a_run_waits_for_the_client_and_is_called_again_with_the_outputs(self, stage: Stage):
        seen = []

        async def answer(ctx):
            seen.append(called(ctx))
            if not ctx.tool_calls:
                await ctx.call_tools([GRAZ, LINZ])
            return "19 and 17"

        run = await stage.ask()
        async with stage.worker(answer):
            async for event in stage.store.events(run.thread_id, run.id):
                if event.type is EventType.RUN_REQUIRES_ACTION:  # the last that is written of the act
                    break
            waiting = await stage.ended(run)
            (step,) = await stage.steps(run)
            assert (waiting.status, step.status) == (RunStatus.REQUIRES_ACTION, RunStepStatus.IN_PROGRESS)
            assert waiting.required_action is not None
            calls = waiting.required_action.tool_calls
            assert [call.function for call in calls] == [GRAZ, LINZ]
            assert step.step_details == ToolCalls(calls)
            queued = await stage.store.submit_tool_outputs(run.thread_id, run.id, outputs(waiting, "19", "17"))
            assert (queued.status, queued.turn, queued.attempt) == (RunStatus.QUEUED, 1, 1)
            ended = await stage.ended(run)
        assert (ended.status, ended.attempt, ended.required_action) == (RunStatus.COMPLETED, 1, None)
        assert seen == [[], [("weather", "19"), ("weather", "17")]]
        assert await stage.texts(run) == ["hello", "19 and 17"]
        assert (await stage.events(run))[: len(BEGINNING) + 8] == [
            *BEGINNING,
            *(*CALLING[:3], *CALLING[2:]),
            *("run.step.completed", "run.queued", "run.in_progress"),
        ]

    async def test_turns_add_up(self, stage: Stage):
        seen = []

        async def answer(ctx):
            seen.append(called(ctx))
            ctx.add_usage(prompt_tokens=1)
            if len(ctx.tool_calls) < 3:
                await ctx.call_tools([FunctionCall(name=f"tool_{len(ctx.tool_calls)}", arguments="")])

        run = await stage.ask()
        async with stage.worker(answer):
            for n in range(3):
                await submit(stage, run, f"output {n}")
            ended = await stage.ended(run)
        assert seen[-1] == [("tool_0", "output 0"), ("tool_1", "output 1"), ("tool_2", "output 2")]
        assert (ended.turn, ended.usage) == (3, Usage(4, 0, 4))
        assert [(step.turn, step.position) for step in await stage.steps(run)] == [(0, 1), (1, 1), (2, 1)]

    async def test_tools_of_the_handler_and_of_the_client_stand_in_one_row(self, stage: Stage):
        seen = []

        async def answer(ctx):
            if not ctx.tool_calls:
                async with ctx.step([GRAZ]) as step:
                    assert ctx.tool_calls == ()
                    step.set_output(step.calls[0], "mine")
                seen.append(called(ctx))
                await ctx.call_tools([LINZ])
            async with ctx.step([FunctionCall(name="last", arguments="")]):
                pass
            seen.append(called(ctx))

        run = await stage.ask()
        async with stage.worker(answer):
            await submit(stage, run, "theirs")
            await stage.ended(run)
        assert seen == [[("weather", "mine")], [("weather", "mine"), ("weather", "theirs"), ("last", None)]]

    async def test_the_slot_is_free_while_a_run_waits_and_the_thread_is_not(self, stage: Stage):
        begun = []

        async def answer(ctx):
            begun.append(ctx.run.id)
            if ctx.run.metadata.get("tools") and not ctx.tool_calls:
                await ctx.call_tools([GRAZ])
            return "done"

        thread = await stage.thread()
        first = await stage.ask(thread=thread, metadata={"tools": "yes"})
        behind = await stage.ask(thread=thread)
        elsewhere = await stage.ask()
        async with stage.worker(answer, concurrency=1):
            await stage.came_to(first, RunStatus.REQUIRES_ACTION)
            await stage.ended(elsewhere)
            assert (await stage.run(behind)).status is RunStatus.QUEUED
            await submit(stage, first, "19")
            await stage.ended(behind)
        assert begun == [first.id, elsewhere.id, first.id, behind.id]

    async def test_nothing_after_the_call_runs_and_what_cleans_up_is_waited_for(self, stage: Stage):
        done = []

        async def answer(ctx):
            try:
                await ctx.call_tools([GRAZ])
            except Exception:  # noqa: BLE001 - as a careless handler does
                done.append("caught")
            finally:
                await asyncio.sleep(0)
                done.append((await stage.run(ctx.run)).status)
            done.append("went on")

        run = await stage.ask()
        async with stage.worker(answer):
            assert (await stage.ended(run)).status is RunStatus.REQUIRES_ACTION
        assert done == [RunStatus.IN_PROGRESS]

    async def test_a_handler_that_swallows_it_writes_nothing_more(self, stage: Stage):
        left = []

        async def answer(ctx):
            for act in (
                lambda: ctx.call_tools([GRAZ]),
                lambda: ctx.reply("late"),
                lambda: ctx.message().__aenter__(),
                lambda: ctx.step([LINZ]).__aenter__(),
                lambda: ctx.call_tools([LINZ]),
                lambda: ctx.checkpoint("late", lambda: 1),
            ):
                try:
                    await act()
                except RunEnding:
                    left.append(True)
            with suppress(RunEnding):
                ctx.fail("server_error", "late")
            return "late"

        run = await stage.ask()
        async with stage.worker(answer):
            waiting = await stage.ended(run)
        assert len(left) == 6
        assert waiting.required_action is not None
        assert [call.function for call in waiting.required_action.tool_calls] == [GRAZ]
        assert (await stage.texts(run), len(await stage.steps(run))) == (["hello"], 1)
        assert await stage.store.get_checkpoints(run.thread_id, run.id) == {}

    async def test_the_first_decision_stands(self, stage: Stage):
        async def answer(ctx):
            with suppress(BaseException):
                ctx.incomplete("max_prompt_tokens")
            await ctx.call_tools([GRAZ])

        assert (await stage.done_by(answer)).status is RunStatus.INCOMPLETE

    @pytest.mark.parametrize("calls", [[], ["weather"], [GRAZ, "weather"]], ids=repr)
    async def test_what_are_no_calls_is_refused_and_the_handler_goes_on(self, stage: Stage, calls):
        await self.refused(stage, calls)

    @pytest.mark.parametrize(
        "call",
        [
            attrs.evolve(GRAZ, arguments={"city": "Graz"}),  # type: ignore[arg-type]
            attrs.evolve(GRAZ, name=None),  # type: ignore[arg-type]
            attrs.evolve(GRAZ, output="known already"),
            attrs.evolve(GRAZ, arguments="\ud83d"),
        ],
        ids=repr,
    )
    async def test_a_call_that_cannot_be_made_is_refused_and_the_handler_goes_on(self, stage: Stage, call):
        await self.refused(stage, [call])

    async def test_two_calls_under_one_id_are_refused(self, stage: Stage):
        await self.refused(stage, [ToolCall(id="call_1", function=GRAZ)] * 2)

    async def refused(self, stage: Stage, calls: list[Any]) -> None:
        async def answer(ctx):
            with pytest.raises(InvalidInputError):
                await ctx.call_tools(calls)
            return "went on"

        run = await stage.done_by(answer)
        assert (run.status, await stage.steps(run) != []) == (RunStatus.COMPLETED, True)
        assert await stage.texts(run) == ["hello", "went on"]

    async def test_an_open_message_has_to_be_ended_first(self, stage: Stage):
        async def answer(ctx):
            async with ctx.message() as message:
                await message.write("Let me ")
                with pytest.raises(InvalidInputError, match="message of the run is still open"):
                    await ctx.call_tools([GRAZ])
                await message.write("see.")
            await ctx.call_tools([GRAZ])

        run = await stage.ask()
        async with stage.worker(answer):
            assert (await stage.ended(run)).status is RunStatus.REQUIRES_ACTION
        assert await stage.texts(run) == ["hello", "Let me see."]

    async def test_a_part_that_was_left_is_ended_before_the_step(self, stage: Stage):
        async def answer(ctx):
            with suppress(ValueError):
                async with ctx.message() as message:
                    await message.write("half")
                    raise ValueError
            await ctx.call_tools([GRAZ])

        run = await stage.ask()
        async with stage.worker(answer):
            await stage.ended(run)
        assert [message.status for message in await stage.answers(run)] == [MessageStatus.INCOMPLETE]
        await stage.store.request_cancel(run.thread_id, run.id)
        assert (await stage.events(run))[7:] == [
            *("message.delta", "message.incomplete", "run.step.failed"),
            *(*CALLING, "run.step.cancelled", "run.cancelled"),
        ]

    async def test_names_ids_arguments_and_outputs_are_any_strings(self, stage: Stage):
        odd = "ä\0\u2028'\"\n{"
        call = ToolCall(id=odd, function=FunctionCall(name=odd, arguments=odd))
        seen = []

        async def answer(ctx):
            if not ctx.tool_calls:
                await ctx.call_tools([call])
            seen.extend(ctx.tool_calls)

        run = await stage.ask()
        async with stage.worker(answer):
            await submit(stage, run, odd)
            await stage.ended(run)
        assert seen == [attrs.evolve(call, function=attrs.evolve(call.function, output=odd))]

    async def test_a_run_that_was_asked_to_stop_in_the_last_moment_is_cancelled(self, stage: Stage):
        async def answer(ctx):
            await ctx.call_tools([GRAZ])

        run = await stage.ask()

        async def cancel(_):
            await stage.store.request_cancel(run.thread_id, run.id)

        stage.before_write(RunStatus.REQUIRES_ACTION, cancel)
        async with stage.worker(answer):
            assert (await stage.ended(run)).status is RunStatus.CANCELLED
        assert await stage.steps(run) == []

    async def test_a_run_that_was_lost_in_the_last_moment_calls_nobody(self, stage: Stage):
        async def answer(ctx):
            await ctx.call_tools([GRAZ])

        run = await stage.ask()

        async def force(_):
            await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.FAILED)

        stage.before_write(RunStatus.REQUIRES_ACTION, force)
        async with stage.worker(answer):
            assert (await stage.ended(run)).status is RunStatus.FAILED
        assert await stage.steps(run) == []

    async def test_outputs_are_refused_while_the_handler_is_at_work(self, stage: Stage):
        gate = Gate()
        run = await stage.ask()
        async with stage.worker(gate):
            await until(lambda: gate.started)
            with pytest.raises(ToolOutputsRefusedError):
                await stage.store.submit_tool_outputs(run.thread_id, run.id, [])
            gate.opened.set()
            await stage.ended(run)

    async def test_a_task_that_the_handler_left_behind_writes_nothing_while_the_run_waits(self, stage: Stage):
        kept: list[Any] = []

        async def answer(ctx):
            kept.append(ctx)
            await ctx.call_tools([GRAZ])

        run = await stage.ask()
        async with stage.worker(answer):
            await stage.ended(run)
            with pytest.raises(LeaseLostError):
                await kept[0].reply("late")
        assert await stage.texts(run) == ["hello"]

    async def test_the_log_says_that_a_run_waits(self, stage: Stage, caplog):
        async def answer(ctx):
            await ctx.call_tools([GRAZ])

        caplog.set_level("INFO", "threadloom")
        run = await stage.ask()
        async with stage.worker(answer):
            await stage.ended(run)
        started, waits = [record.message for record in caplog.records if getattr(record, "run_id", None) == run.id]
        assert started.startswith(f"Run {run.id} of thread {run.thread_id} started")
        assert waits == f"Run {run.id} of thread {run.thread_id} waits for tool outputs"

    async def test_a_first_claim_reads_nothing_and_a_later_one_reads_once(self, stage: Stage):
        reads = []
        list_steps = stage.store.list_steps

        async def counted(*args: Any, **options: Any):
            reads.append(args)
            return await list_steps(*args, **options)

        stage.store.list_steps = counted  # type: ignore[method-assign]

        async def answer(ctx):
            if not ctx.tool_calls:
                assert reads == []
                await ctx.call_tools([GRAZ])

        run = await stage.ask()
        async with stage.worker(answer):
            await submit(stage, run, "19")
            await stage.ended(run)
        assert len(reads) == 1

    async def test_a_store_that_cannot_be_read_for_a_while_holds_the_handler_up_and_fails_nothing(self, stage: Stage):
        failures = [StoreIOError("list steps", OSError(5, "I/O error"))] * 3
        list_steps = stage.store.list_steps

        async def failing(*args: Any, **options: Any):
            if failures:
                raise failures.pop()
            return await list_steps(*args, **options)

        async def answer(ctx):
            if not ctx.tool_calls:
                await ctx.call_tools([GRAZ])
            called_again.set()
            return ctx.tool_calls[0].function.output

        called_again = asyncio.Event()
        run = await stage.ask()
        async with stage.worker(answer):
            await stage.came_to(run, RunStatus.REQUIRES_ACTION)
            stage.store.list_steps = failing  # type: ignore[method-assign]
            await submit(stage, run, "19")
            await stage.advance_until(called_again.is_set)
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert await stage.texts(run) == ["hello", "19"]


async def test_waiting_outlives_store_and_worker(tmp_path):
    async def answer(ctx):
        if not ctx.tool_calls:
            await ctx.checkpoint("who", lambda: "the first")
            await ctx.reply("Let me see.")
            await ctx.call_tools([GRAZ])
        return f"{await ctx.checkpoint('who', lambda: 'the second')}: {ctx.tool_calls[0].function.output}"

    async with FileStore(tmp_path) as store, RunWorker(store, answer):
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        run = await store.wait_for_run(thread.id, run.id, timeout=PATIENCE)
    async with FileStore(tmp_path) as store:
        assert await store.get_run(thread.id, run.id) == run
        await store.submit_tool_outputs(thread.id, run.id, outputs(run, "19"))
    async with FileStore(tmp_path) as store, RunWorker(store, answer):
        run = await store.wait_for_run(thread.id, run.id, timeout=PATIENCE)
        assert (run.status, run.attempt) == (RunStatus.COMPLETED, 1)
        texts = [message.text for message in await store.list_messages(thread.id)]
        assert texts == ["Let me see.", "the first: 19"]


class TestChatMessages(WorkerTests):
    async def test_a_model_is_told_all_in_order(self, stage: Stage):
        chats: list[list[dict[str, Any]]] = []

        async def answer(ctx):
            if not ctx.tool_calls:
                await ctx.reply("Let me see.")
                async with ctx.step([GRAZ]) as step:
                    step.set_output(step.calls[0], "19")
                await ctx.call_tools([ToolCall(id="call_2", function=LINZ), ToolCall(id="call_3", function=GRAZ)])
            async with ctx.message() as message:
                await message.write("Nearly.")
            chats.append(await ctx.chat_messages())

        thread = await stage.thread("first")
        await stage.store.append_message(thread.id, Message.assistant(thread.id, "yes?"))
        run = await stage.ask("second", thread=thread, instructions="Be brief.")
        async with stage.worker(answer):
            await stage.came_to(run, RunStatus.REQUIRES_ACTION)
            await stage.store.append_message(thread.id, Message.user(thread.id, "too late"))
            await submit(stage, run, "17", "")
            await stage.ended(run)
        (chat,) = chats
        one = chat[5]["tool_calls"][0]["id"]
        assert chat == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "yes?"},
            {"role": "user", "content": "second"},
            {"role": "assistant", "content": "Let me see."},
            {"role": "assistant", "content": None, "tool_calls": [self.call(one, GRAZ)]},
            {"role": "tool", "tool_call_id": one, "content": "19"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [self.call("call_2", LINZ), self.call("call_3", GRAZ)],
            },
            {"role": "tool", "tool_call_id": "call_2", "content": "17"},
            {"role": "tool", "tool_call_id": "call_3", "content": ""},
            {"role": "assistant", "content": "Nearly."},
        ]

    def call(self, id_: str, function: FunctionCall) -> dict[str, Any]:
        return {
            "id": id_,
            "type": "function",
            "function": {"name": function.name, "arguments": function.arguments},
        }

    async def chat_of(self, stage: Stage, thread: Thread, **options: Any) -> list[dict[str, Any]]:
        chats: list[list[dict[str, Any]]] = []

        async def answer(ctx):
            chats.append(await ctx.chat_messages())

        run = await stage.ask(thread=thread, **options)
        async with stage.worker(answer):
            await stage.ended(run)
        return chats[0]

    async def test_without_instructions_there_is_no_system_message(self, stage: Stage):
        assert await self.chat_of(stage, await stage.thread()) == [{"role": "user", "content": "hello"}]

    async def test_pictures_and_what_is_not_known_are_parts(self, stage: Stage):
        thread = await stage.thread()
        content: list[Any] = [
            TextContent("Look: "),
            ImageUrlContent("https://example.org/cat.png", "low"),
            ImageUrlContent("https://example.org/dog.png"),
            ImageFileContent("file_1"),
            UnknownObject({"type": "sound", "sound": "meow"}),
        ]
        await stage.store.append_message(thread.id, Message.user(thread.id, content))
        chat = await self.chat_of(stage, thread)
        assert chat[0] == {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look: "},
                {"type": "image_url", "image_url": {"url": "https://example.org/cat.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.org/dog.png"}},
                {"type": "image_file", "image_file": {"file_id": "file_1"}},
                {"type": "sound", "sound": "meow"},
            ],
        }

    async def test_texts_of_one_message_are_joined(self, stage: Stage):
        thread = await stage.thread()
        content = [TextContent("one "), TextContent("two")]
        await stage.store.append_message(thread.id, Message.user(thread.id, content))
        assert (await self.chat_of(stage, thread))[0] == {"role": "user", "content": "one two"}

    async def test_it_is_truncated_as_the_messages_are(self, stage: Stage):
        thread = await stage.thread("one", "two")
        strategy = TruncationStrategy(type="last_messages", last_messages=2)
        chat = await self.chat_of(stage, thread, truncation_strategy=strategy)
        assert [message["content"] for message in chat] == ["two", "hello"]

    async def test_tool_calls_of_earlier_runs_are_not_told_of_but_their_messages_are(self, stage: Stage):
        async def answer(ctx):
            async with ctx.step([GRAZ]) as step:
                step.set_output(step.calls[0], "19")
            return "It is 19."

        thread = await stage.thread()
        run = await stage.ask(thread=thread)
        async with stage.worker(answer):
            await stage.ended(run)
        chat = await self.chat_of(stage, thread)
        assert [message["content"] for message in chat] == ["hello", "It is 19.", "hello"]

    async def test_a_step_that_failed_is_not_told_of(self, stage: Stage):
        chats: list[list[dict[str, Any]]] = []

        async def answer(ctx):
            with suppress(ValueError):
                async with ctx.step([GRAZ]):
                    raise ValueError
            assert ctx.tool_calls == ()
            chats.append(await ctx.chat_messages())

        assert (await stage.done_by(answer)).status is RunStatus.COMPLETED
        assert chats == [[{"role": "user", "content": "hello"}]]

    async def test_what_was_added_to_the_run_by_hand_is_told_of_too(self, stage: Stage):
        chats: list[list[dict[str, Any]]] = []

        async def answer(ctx):
            if ctx.run.turn == 0:
                await ctx.call_tools([GRAZ])
            chats.append(await ctx.chat_messages())

        run = await stage.ask()
        async with stage.worker(answer):
            await stage.came_to(run, RunStatus.REQUIRES_ACTION)
            note = Message.assistant(run.thread_id, "by hand", run_id=run.id)
            await stage.store.append_message(run.thread_id, note)
            call = ToolCall(id="call_1", function=attrs.evolve(LINZ, output="17"))
            step = RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id, calls=[call])
            await stage.store.append_step(
                run.thread_id, run.id, attrs.evolve(step, status=RunStepStatus.COMPLETED, completed_at=stage.now)
            )
            await submit(stage, run, "19")
            await stage.ended(run)
        contents = [message["content"] for message in chats[0]]
        assert contents == ["hello", "by hand", None, "19", None, "17"]


class TestCheckpoints(WorkerTests):
    async def test_a_function_runs_once_for_all_turns_and_attempts(self, stage: Stage):
        calls = []

        async def find_out():
            calls.append(True)
            await asyncio.sleep(0)
            return {"n": [1, 2.5, None, True, "ä"]}

        results = []

        async def answer(ctx):
            results.append(await ctx.checkpoint("plan", find_out))
            if ctx.run.turn == 0:
                await ctx.call_tools([GRAZ])
            if ctx.attempt == 1:
                raise ValueError
            return "done"

        run = await stage.ask()
        async with stage.worker(answer, retry=AT_ONCE):
            await submit(stage, run, "19")
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        assert calls == [True]
        assert results == [{"n": [1, 2.5, None, True, "ä"]}] * 3
        assert "threadloom.checkpoint" not in await stage.events(run)

    @pytest.mark.parametrize("result", [None, False, 0, "", [], {}, {"": [[{}]]}, 1.5, -(2**63)], ids=repr)
    async def test_any_json_is_kept(self, stage: Stage, result):
        results = []

        async def answer(ctx):
            results.append(await ctx.checkpoint("", lambda: result))
            results.append(await ctx.checkpoint("", lambda: "another"))

        run = await stage.done_by(answer)
        assert run.status is RunStatus.COMPLETED
        assert results == [result, result]
        assert await stage.store.get_checkpoints(run.thread_id, run.id) == {"": result}

    async def test_what_is_handed_out_is_not_what_is_kept(self, stage: Stage):
        mine: dict[str, Any] = {"list": [1], "pair": (1, 2)}
        results = []

        async def answer(ctx):
            for _ in range(2):
                result = await ctx.checkpoint("plan", lambda: mine)
                results.append({name: list(value) for name, value in result.items()})
                result["list"].append(2)
                mine["list"].append(3)

        await stage.done_by(answer)
        assert results == [{"list": [1], "pair": [1, 2]}] * 2

    @pytest.mark.parametrize(
        "result",
        [
            {1},
            {1: 2},
            NotImplemented,
            float("nan"),
            [float("inf")],
            timedelta(1),
            b"bytes",
            "\ud83d",
            2**70,
            {"a": {"b": {1}}},
        ],
        ids=repr,
    )
    async def test_what_is_not_json_is_refused_and_not_kept(self, stage: Stage, result):
        async def answer(ctx):
            with pytest.raises(InvalidInputError):
                await ctx.checkpoint("plan", lambda: result)
            return str(await ctx.checkpoint("plan", lambda: "good"))

        run = await stage.done_by(answer)
        assert await stage.texts(run) == ["hello", "good"]

    async def test_what_has_itself_in_it_is_refused(self, stage: Stage):
        endless: list[Any] = []
        endless.append(endless)

        async def answer(ctx):
            with pytest.raises(InvalidInputError, match="nested"):
                await ctx.checkpoint("plan", lambda: endless)

        assert (await stage.done_by(answer)).status is RunStatus.COMPLETED

    @pytest.mark.parametrize(("name", "function"), [(7, int), (None, int), ("plan", 7)])
    async def test_a_name_is_a_string_and_a_function_is_called(self, stage: Stage, name, function):
        async def answer(ctx):
            with pytest.raises(InvalidInputError):
                await ctx.checkpoint(name, function)

        assert (await stage.done_by(answer)).status is RunStatus.COMPLETED

    async def test_a_function_that_raises_keeps_nothing(self, stage: Stage):
        async def answer(ctx):
            with pytest.raises(ZeroDivisionError):
                await ctx.checkpoint("plan", lambda: 1 // 0)
            return str(await ctx.checkpoint("plan", lambda: "good"))

        run = await stage.done_by(answer)
        assert await stage.store.get_checkpoints(run.thread_id, run.id) == {"plan": "good"}

    async def test_two_at_the_same_time_run_the_function_once(self, stage: Stage):
        calls = []

        async def find_out():
            calls.append(True)
            await asyncio.sleep(0)
            return len(calls)

        async def answer(ctx):
            results = await asyncio.gather(*[ctx.checkpoint(name, find_out) for name in ("a", "a", "b", "a")])
            assert results[0] == results[1] == results[3]
            assert results[2] != results[0] or len(calls) == 2

        assert (await stage.done_by(answer)).status is RunStatus.COMPLETED
        assert len(calls) == 2

    async def test_one_that_waits_for_another_that_raises_runs_its_own(self, stage: Stage):
        async def fail():
            await asyncio.sleep(0)
            raise ValueError

        async def answer(ctx):
            results = await asyncio.gather(
                ctx.checkpoint("a", fail), ctx.checkpoint("a", lambda: 1), return_exceptions=True
            )
            assert isinstance(results[0], ValueError)
            assert results[1] == 1

        assert (await stage.done_by(answer)).status is RunStatus.COMPLETED

    async def test_one_within_itself_is_refused_and_within_another_is_fine(self, stage: Stage):
        async def answer(ctx):
            async def inner():
                return await ctx.checkpoint("inner", lambda: 1)

            async def itself():
                return await ctx.checkpoint("itself", lambda: 1)

            assert await ctx.checkpoint("outer", inner) == 1
            with pytest.raises(InvalidInputError, match="asks for the same checkpoint"):
                await ctx.checkpoint("itself", itself)

        assert (await stage.done_by(answer)).status is RunStatus.COMPLETED

    async def test_it_is_kept_while_a_message_is_open(self, stage: Stage):
        async def answer(ctx):
            async with ctx.message() as message:
                await message.write(await ctx.checkpoint("word", lambda: "hello"))

        run = await stage.done_by(answer)
        assert await stage.texts(run) == ["hello", "hello"]

    async def test_one_that_is_cancelled_keeps_nothing_and_the_next_attempt_finds_it_out(self, stage: Stage):
        run = await stage.ask()

        async def answer(ctx):
            return await ctx.checkpoint("plan", stage.stuck)

        async with stage.worker(answer, grace=timedelta()):
            await stage.is_stuck.wait()

        async def answer_again(ctx):
            return await ctx.checkpoint("plan", lambda: "found")

        async with stage.worker(answer_again):
            await stage.ended(run)
        assert await stage.texts(run) == ["hello", "found"]

    async def test_a_lost_lease_keeps_nothing(self, stage: Stage):
        run = await stage.ask()

        async def answer(ctx):
            async def find_out():
                await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.CANCELLED)
                return 1

            with pytest.raises(LeaseLostError):
                await ctx.checkpoint("plan", find_out)

        async with stage.worker(answer):
            await stage.ended(run)
        assert await stage.store.get_checkpoints(run.thread_id, run.id) == {}

    async def test_nothing_is_read_for_a_run_without_a_past(self, stage: Stage):
        stage.store.get_checkpoints = None  # type: ignore[assignment, method-assign]

        async def answer(ctx):
            return await ctx.checkpoint("plan", lambda: "found")

        assert (await stage.done_by(answer)).status is RunStatus.COMPLETED

    async def test_a_run_that_is_forced_to_begin_anew_finds_it_out_anew(self, stage: Stage):
        numbers = iter((1, 2))

        async def answer(ctx):
            return str(await ctx.checkpoint("plan", lambda: next(numbers)))

        run = await stage.ask()
        async with stage.worker(answer):
            await stage.ended(run)
            await stage.store.force_update_run_status(run.thread_id, run.id, RunStatus.QUEUED)
            await stage.ended(run)
        assert await stage.texts(run) == ["hello", "1", "2"]
