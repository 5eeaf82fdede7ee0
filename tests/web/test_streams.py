"""Streams over real connections: silent ones, slow, broken and many, and what is left of them: nothing."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
from aiohttp import ClientSession

from tests.support.worker_fixtures import SECOND, Stage, turns, until
from tests.web.stream_fixtures import Reader, Server, names, numbers, served
from threadloom import (
    FileStore,
    FunctionCall,
    MemoryStore,
    Message,
    MessageDelta,
    MessageStatus,
    RequiredAction,
    Run,
    RunContext,
    RunStatus,
    RunStep,
    RunWrite,
    Thread,
    ToolCall,
    ToolOutput,
)
from threadloom.testing import ManualClock
from threadloom.web import Limits
from threadloom.web._errors import WireError
from threadloom.web._feeds import events_since_outputs
from threadloom.web._streams import Streams

on_both_loops = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

KEEP_ALIVE = 15 * SECOND
STALL = 60 * SECOND
LARGE = "x" * 1_000_000
MANY = 8  # of them are more than the buffers of a connection hold
END = b"event: done\ndata: [DONE]\n\n"


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    clock = ManualClock()
    async with MemoryStore(clock=clock) as store:
        yield Stage(store, clock)
        assert not clock.sleepers


@pytest.fixture
async def server(stage: Stage) -> AsyncIterator[Server]:
    async with served(stage.store) as server:
        yield server


def path_of(run: Run, after: int = 0) -> str:
    return f"/threads/{run.thread_id}/runs/{run.id}/events?after={after}"


async def read(server: Server, run: Run, after: int = 0) -> bytes:
    return await (await server.get(path_of(run, after))).rest()


def of_streams() -> set[asyncio.Task[Any]]:
    """Return the tasks in which streams are written and watched."""
    return {task for task in asyncio.all_tasks() if "_Stream." in task.get_coro().__qualname__}  # type: ignore[union-attr]


async def wait_on(clock: ManualClock, condition: Callable[[], object], step: timedelta = KEEP_ALIVE) -> timedelta:
    """Move the clock on, step by step, until the condition holds; return how far that was."""
    gone = timedelta()
    async with asyncio.timeout(10):
        while not condition():
            await until(lambda: clock.sleepers or condition())
            clock.advance(step)
            gone += step
            for _ in range(20):
                await asyncio.sleep(0)
    return gone


class Talk:
    """A handler that writes what the test hands it, piece by piece."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()

    async def __call__(self, ctx: RunContext) -> None:
        async with ctx.message() as message:
            while (piece := await self.pieces.get()) is not None:
                await message.write(piece)

    def say(self, *pieces: str | None) -> None:
        for piece in pieces:
            self.pieces.put_nowait(piece)


@on_both_loops
class TestReading:
    async def test_a_frame_comes_as_soon_as_there_is_its_event(self, stage, server):
        run, talk = await stage.ask(), Talk()
        async with stage.worker(talk, grace=0 * SECOND):
            reader = await server.get(path_of(run))
            for word in ("one", "two"):
                talk.say(word)
                assert names(await reader.until(f'"{word}"'.encode()))[-1] == "message.delta"
            talk.say(None)
            assert (await reader.rest()).endswith(END)

    async def test_the_headers_come_before_there_is_an_event(self, stage, server):
        run = await stage.ask()
        head = (await server.get(path_of(run, after=99))).head.lower()
        assert head.startswith("http/1.0 200 ok\r\n")
        for line in ("content-type: text/event-stream", "cache-control: no-cache", "x-accel-buffering: no"):
            assert f"\r\n{line}\r\n" in head

    async def test_all_readers_of_a_run_get_the_same_bytes(self, stage, server):
        run, talk = await stage.ask(), Talk()
        readers = [await server.get(path_of(run)) for _ in range(20)]
        async with stage.worker(talk, grace=0 * SECOND):
            talk.say("one")
            await readers[0].until(b'"one"')
            readers += [await server.get(path_of(run)) for _ in range(20)]
            talk.say("two", None)
            await stage.ended(run)
        rests = await asyncio.gather(*(reader.rest() for reader in readers))
        whole = await read(server, run)
        assert set(rests[1:]) == {whole}
        assert whole.endswith(rests[0])
        assert numbers(whole) == [event.number async for event in stage.store.events(run.thread_id, run.id)]

    async def test_one_that_goes_on_past_a_number_gets_exactly_the_rest(self, stage, server):
        async def answer(ctx: RunContext):
            async with ctx.step([FunctionCall(name="look", arguments="{}")] * 2) as step:
                for call in step.calls:
                    step.set_output(call, "blue")
            if ctx.attempt == 1:
                raise ValueError
            return "blue"

        run = await stage.ask()
        async with stage.worker(answer):
            ended = asyncio.create_task(stage.ended(run))
            await stage.advance_until(ended.done)
            await ended
        whole = await read(server, run)
        assert whole.endswith(END)
        for number in numbers(whole):
            known, rest = whole.split(f"id: {number}\n\n".encode())
            assert known
            assert await read(server, run, number) == rest

    async def test_the_last_id_that_came_goes_before_the_address_that_the_stream_began_with(self, stage, server):
        run = await stage.ask()
        await stage.store.request_cancel(run.thread_id, run.id)
        first, second, last = numbers(await read(server, run))
        async with ClientSession() as browser:
            for after, came, left in ((first, second, [last]), (second, first, [second, last]), (second, "", [last])):
                headers = {"Last-Event-ID": str(came)}
                async with browser.get(f"{server.url}{path_of(run, after)}", headers=headers) as answer:
                    assert numbers(await answer.read()) == left

    async def test_it_ends_where_the_run_waits_for_outputs_and_goes_on_past_that(self, stage, server):
        async def answer(ctx: RunContext):
            if not ctx.tool_calls:
                await ctx.call_tools([FunctionCall(name="look", arguments="{}")])
            return ctx.tool_calls[0].function.output

        run = await stage.ask()
        async with stage.worker(answer):
            first = await read(server, run)
            assert names(first)[-2:] == ["run.requires_action", "done"]
            later = await server.get(path_of(run, numbers(first)[-1]))
            call = (await stage.run(run)).required_action.tool_calls[0]
            await stage.store.submit_tool_outputs(run.thread_id, run.id, [ToolOutput(call.id, "blue")])
            rest = await later.rest()
        assert names(rest)[:2] == ["run.step.completed", "run.queued"]
        assert names(rest)[-2:] == ["run.completed", "done"]
        assert await read(server, run) == first.removesuffix(END) + rest

    async def test_a_thread_that_is_deleted_meanwhile_is_an_error_and_no_end(self, stage, server):
        run = await stage.ask()
        reader = await server.get(path_of(run))
        await reader.until(b"thread.run.queued")
        await stage.store.delete_thread(run.thread_id, force=True)
        rest = await reader.rest()
        assert names(rest) == ["error"]
        assert f"No thread found with id '{run.thread_id}'." in rest.decode()


@on_both_loops
class TestSilence:
    async def test_a_comment_comes_when_nothing_else_has_for_the_time(self, stage, server):
        run, talk = await stage.ask(), Talk()
        async with stage.worker(talk, grace=0 * SECOND):
            reader = await server.get(path_of(run))
            await reader.until(b"thread.message.in_progress")
            await reader.until(b"\n\n")
            await until(lambda: stage.clock.sleepers)
            stage.clock.advance(10 * SECOND)
            talk.say("one")
            await reader.until(b"\n\n")
            stage.clock.advance(5 * SECOND)  # the fifteenth since the stream began, the fifth since the last frame
            await turns()
            stage.clock.advance(9 * SECOND)
            await turns()
            talk.say("two")
            assert b": keep-alive" not in await reader.until(b'"two"')
            await reader.until(b"\n\n")
            for _ in range(3):
                await wait_for_comment(stage.clock, reader)
            talk.say(None)
            assert b"keep-alive" not in await reader.rest()

    async def test_a_comment_is_one_line_and_ends_no_event(self, stage, server):
        run = await stage.ask()
        reader = await server.get(path_of(run))
        await reader.until(b"thread.run.queued")
        await reader.until(b"\n\n")
        await until(lambda: stage.clock.sleepers)
        stage.clock.advance(KEEP_ALIVE)
        assert await reader.until(b"\n") == b": keep-alive\n"
        await stage.store.request_cancel(run.thread_id, run.id)
        assert (await reader.rest()).startswith(b"event: thread.run.cancelled\n")


async def wait_for_comment(clock: ManualClock, reader: Reader) -> None:
    comment = asyncio.create_task(reader.until(b": keep-alive\n"))
    gone = await wait_on(clock, comment.done, SECOND)
    assert await comment == b": keep-alive\n"
    assert 14 * SECOND <= gone <= 16 * SECOND


@on_both_loops
class TestLeaving:
    @pytest.mark.parametrize("at_once", [False, True], ids=["with_the_next_comment", "at_once"])
    async def test_a_reader_that_leaves_ends_its_stream_and_nothing_else(self, stage, at_once):
        run, talk = await stage.ask(), Talk()
        async with served(stage.store, handler_cancellation=at_once) as server, stage.worker(talk, grace=0 * SECOND):
            stays, leaves = await server.get(path_of(run)), await server.get(path_of(run))
            talk.say("one")
            for reader in (stays, leaves):
                await reader.until(b'"one"')
            assert len(of_streams()) == 4
            leaves.leave()
            if not at_once:
                await turns()
                await wait_on(stage.clock, lambda: len(of_streams()) == 2)
            await until(lambda: len(of_streams()) == 2)
            talk.say("two", None)
            assert names(await stays.rest())[-1] == "done"
            assert (await stage.ended(run)).status is RunStatus.COMPLETED

    async def test_one_that_leaves_before_its_run_was_taken_leaves_the_run(self, stage, server):
        async with ClientSession() as session, session.post(f"{server.url}/assistants", json={"model": "m"}) as made:
            assistant = (await made.json())["id"]
        thread = await stage.thread("hello")
        body = f'{{"assistant_id": "{assistant}", "stream": true}}'
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            f"POST /v1/threads/{thread.id}/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        await until(of_streams)
        writer.transport.abort()
        (run,) = await stage.store.list_runs(thread.id)
        async with stage.worker(lambda ctx: say("done")):
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
        await until(lambda: not of_streams())

    async def test_one_that_reads_nothing_holds_nobody_up_and_is_cut_off(self, stage, server):
        run, talk = await stage.ask(), Talk()
        async with stage.worker(talk, grace=0 * SECOND):
            await server.get(path_of(run), is_read=False)
            reading = asyncio.create_task((await server.get(path_of(run))).rest())
            talk.say(*[LARGE] * MANY, None)
            assert (await stage.ended(run)).status is RunStatus.COMPLETED
            assert len(await reading) > MANY * len(LARGE)
        assert len(of_streams()) == 2
        assert 0 < server.bytes_lying < len(LARGE) * 2
        gone = await wait_on(stage.clock, lambda: not of_streams())
        assert STALL <= gone <= STALL + 2 * KEEP_ALIVE

    async def test_one_that_reads_slowly_gets_everything(self, stage, server):
        run, talk = await stage.ask(), Talk()
        async with stage.worker(talk, grace=0 * SECOND):
            slow = await server.get(path_of(run), is_read=False)
            talk.say(*[LARGE] * MANY, None)
            await stage.ended(run)
        for _ in range(MANY):
            await slow.until(b"event: thread.message.delta\n")
            await wait_on_twice(stage.clock)
        assert (await slow.rest()).endswith(END)

    async def test_many_that_come_and_go_leave_no_task_and_no_descriptor(self, stage, server):
        process = psutil.Process()
        run, talk = await stage.ask(), Talk()
        async with stage.worker(talk, grace=0 * SECOND):
            stays = await server.get(path_of(run))
            await stays.until(b"message.in_progress")
            tasks, descriptors = len(asyncio.all_tasks()), process.num_fds()
            for _ in range(10):
                readers = [await server.get(path_of(run), is_read=number % 2 == 0) for number in range(20)]
                for reader in readers:
                    reader.leave()
            await wait_on(stage.clock, lambda: len(of_streams()) == 2)
            await until(lambda: len(asyncio.all_tasks()) <= tasks and process.num_fds() <= descriptors)
            talk.say(None)
            assert (await stays.rest()).endswith(END)


async def say(text: str) -> str:
    return text


async def wait_on_twice(clock: ManualClock) -> None:
    for _ in range(2):
        clock.advance(KEEP_ALIVE)
        await turns()


@on_both_loops
class TestStopping:
    async def test_a_server_that_stops_tells_its_readers_and_leaves_the_run(self, stage):
        run, talk = await stage.ask(), Talk()
        async with stage.worker(talk, grace=0 * SECOND):
            async with served(stage.store) as server:
                readers = [await server.get(path_of(run)) for _ in range(5)]
                talk.say("one")
                known = [await reader.until(b'"one"') + await reader.until(b"\n\n") for reader in readers]
                await server.stop()
                rests = [await reader.rest() for reader in readers]
                assert {tuple(names(rest)) for rest in rests} == {("error",)}
                assert b"The server is stopping." in rests[0]
                assert not of_streams()
            talk.say("two", None)
            await stage.ended(run)
        async with served(stage.store) as server:
            assert known[0] + await read(server, run, numbers(known[0])[-1]) == await read(server, run)

    async def test_a_reader_that_is_stuck_does_not_hold_it_up(self, stage):
        run, talk = await stage.ask(), Talk()
        async with stage.worker(talk, grace=0 * SECOND), served(stage.store) as server:
            await server.get(path_of(run), is_read=False)
            talk.say(*[LARGE] * MANY, None)
            await stage.ended(run)
            await server.stop()
            assert not of_streams()

    async def test_one_that_comes_then_is_refused(self):
        streams = Streams(ManualClock(), keep_alive=KEEP_ALIVE, stall=STALL, most_streams=1)
        await streams.close()
        with pytest.raises(WireError, match="The server is stopping") as refusal, streams.place():
            pass
        assert refusal.value.status == 503


class TestPlaces:
    async def test_a_stream_too_many_is_refused_before_there_is_a_run(self, stage):
        async with served(stage.store, limits=Limits(streams=1)) as server, ClientSession() as session:
            run = await stage.ask()
            reader = await server.get(path_of(run))
            async with session.post(f"{server.url}/assistants", json={"model": "m"}) as made:
                asked = {"assistant_id": (await made.json())["id"], "stream": True}
            async with session.post(f"{server.url}/threads/runs", json=asked) as answer:
                assert answer.status == 429
                assert (await answer.json())["error"]["code"] == "rate_limit_exceeded"
            assert len(await stage.store.list_threads()) == 1
            await stage.store.request_cancel(run.thread_id, run.id)
            await reader.rest()
            async with session.get(f"{server.url}{path_of(run)}") as answer:
                assert answer.status == 200


async def test_a_stream_of_outputs_holds_nothing_of_the_text_of_earlier_turns(tmp_path: Path):
    async with FileStore(tmp_path, durability="process") as store:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        claim = await store.try_claim_run("worker")
        assert claim is not None
        said = Message.assistant(thread.id, "short", run_id=run.id)
        begun = attrs.evolve(said, status=MessageStatus.IN_PROGRESS, content=(), completed_at=None)
        await store.write_run(claim.lease, RunWrite(items=(begun,)))
        for _ in range(200):
            await store.write_run(claim.lease, RunWrite(items=(MessageDelta(said.id, LARGE[:100_000]),)))
        await store.write_run(claim.lease, RunWrite(items=(said,)))
        call = ToolCall(id="call_1", function=FunctionCall(name="look", arguments="{}"))
        step = RunStep.tool_calls(thread_id=thread.id, run_id=run.id, calls=[call])
        asked = RequiredAction((call,))
        await store.write_run(
            claim.lease, RunWrite(items=(step,), status=RunStatus.REQUIRES_ACTION, required_action=asked)
        )
        run = await store.submit_tool_outputs(thread.id, run.id, [ToolOutput(call.id, "blue")])
        await store.request_cancel(thread.id, run.id)
        tracemalloc.start()
        try:
            frames = b"".join([frame async for frame in events_since_outputs(store, run)])
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert names(frames) == ["run.step.completed", "run.queued", "run.cancelled", "done"]
    assert most < 10 * len(LARGE)
