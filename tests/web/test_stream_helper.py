"""Streams of real runs, read by the official client's event handler, which raises where its books do not add up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import openai
import pytest

from tests.support.worker_fixtures import turns, until
from tests.web.stream_fixtures import Server, served
from threadloom import Assistant, FunctionCall, MemoryStore, RunContext
from threadloom.testing import ManualClock
from threadloom.worker import RetryPolicy, RunWorker

pytestmark = pytest.mark.filterwarnings("ignore:The Assistants API is deprecated:DeprecationWarning")

CALLS = [FunctionCall(name="look", arguments='{"at": "sky"}'), FunctionCall(name="ask", arguments="{}")]
BEGUN = ["run.created", "run.queued", "run.in_progress"]
OPENED = ["run.step.created", "run.step.in_progress"]
MESSAGE = [*OPENED, "message.created", "message.in_progress"]
SAID = ["message.completed", "run.step.completed"]


class Books(openai.AsyncAssistantEventHandler):
    """Keeps the names of the events, and what the handler made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.texts: list[str] = []
        self.arguments: list[str] = []
        self.has = asyncio.Event()

    async def on_event(self, event: Any) -> None:
        self.events.append(event.event.removeprefix("thread."))

    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.has.set()

    async def on_text_done(self, text: Any) -> None:
        assert text.annotations == []
        self.texts.append(text.value)

    async def on_tool_call_delta(self, delta: Any, snapshot: Any) -> None:
        assert snapshot.function.output is None
        self.arguments.append(f"{snapshot.function.name} {snapshot.function.arguments}")


class Told:
    """A conversation with a server whose worker has one handler."""

    def __init__(self, store: MemoryStore, server: Server, client: Any, clock: ManualClock) -> None:
        self.store = store
        self.server = server
        self.threads = client.beta.threads
        self.clock = clock

    async def ask(self, during: Callable[[Any, Books], Any] | None = None) -> tuple[Any, Books]:
        """Return the run as the stream of its creation left it, and what was told until then."""
        thread = await self.threads.create(messages=[{"role": "user", "content": "hello"}])
        books = Books()
        stream = self.threads.runs.stream(thread_id=thread.id, assistant_id="asst_1", event_handler=books)
        return await self.read(stream, books, during)

    async def submit(self, run: Any) -> tuple[Any, Books]:
        calls = run.required_action.submit_tool_outputs.tool_calls
        books = Books()
        stream = self.threads.runs.submit_tool_outputs_stream(
            thread_id=run.thread_id,
            run_id=run.id,
            tool_outputs=[{"tool_call_id": call.id, "output": f"{call.function.name}!"} for call in calls],
            event_handler=books,
        )
        return await self.read(stream, books)

    async def read(self, manager: Any, books: Books, during: Any = None) -> tuple[Any, Books]:
        async with asyncio.timeout(10), manager as stream:
            if during is not None:
                reading = asyncio.create_task(stream.until_done())
                await books.has.wait()
                await during(stream.current_run, books)
                await reading
            return await stream.get_final_run(), books


@pytest.fixture
async def tell() -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts a worker with a handler, and returns who may ask it."""
    clock = ManualClock()
    async with MemoryStore(clock=clock) as store, served(store) as server:
        await store.create_assistant(Assistant.new(model="any", id="asst_1"))
        client = openai.AsyncOpenAI(base_url=server.url, api_key="any", max_retries=0, _strict_response_validation=True)
        workers: list[RunWorker] = []

        async def start(handler: Any) -> Told:
            worker = RunWorker(store, handler, retry=RetryPolicy(max_attempts=2, first_delay=timedelta()))
            workers.append(await worker.__aenter__())
            return Told(store, server, client, clock)

        yield start
        await client.close()
        for worker in workers:
            await worker.close()


class TestRuns:
    async def test_a_text_in_pieces(self, tell):
        async def answer(ctx: RunContext):
            yield "Hel"
            yield "lo"

        run, books = await (await tell(answer)).ask()
        assert run.status == "completed"
        assert books.events == [*BEGUN, *MESSAGE, "message.delta", "message.delta", *SAID, "run.completed"]
        assert books.texts == ["Hello"]

    async def test_two_tools_at_once_and_then_an_answer(self, tell):
        async def answer(ctx: RunContext):
            if not ctx.tool_calls:
                await ctx.call_tools(CALLS)
            return " ".join(call.function.output or "" for call in ctx.tool_calls)

        told = await tell(answer)
        run, books = await told.ask()
        assert run.status == "requires_action"
        assert books.events == [*BEGUN, *OPENED, *["run.step.delta"] * 4, "run.requires_action"]
        assert books.arguments == ['look {"at": "sky"}', "ask {}"]
        run, books = await told.submit(run)
        assert run.status == "completed"
        resumed = ["run.step.completed", "run.queued", "run.in_progress"]
        assert books.events == [*resumed, *MESSAGE, "message.delta", *SAID, "run.completed"]
        assert books.texts == ["look! ask!"]

    async def test_outputs_asked_for_twice(self, tell):
        async def answer(ctx: RunContext):
            if len(ctx.tool_calls) < 2:
                await ctx.call_tools(CALLS[:1])
            return "done"

        told = await tell(answer)
        run, books = await told.ask()
        first = [*OPENED, "run.step.delta", "run.step.delta", "run.requires_action"]
        assert books.events == [*BEGUN, *first]
        run, books = await told.submit(run)
        assert (run.status, books.events) == (
            "requires_action",
            ["run.step.completed", "run.queued", "run.in_progress", *first],
        )
        run, books = await told.submit(run)
        assert run.status == "completed"
        assert books.events[:3] == ["run.step.completed", "run.queued", "run.in_progress"]

    async def test_a_tool_of_the_handlers_own(self, tell):
        async def answer(ctx: RunContext):
            async with ctx.step(CALLS[:1]) as step:
                step.set_output(step.calls[0], "blue")
            return "blue"

        run, books = await (await tell(answer)).ask()
        assert run.status == "completed"
        own = [*OPENED, "run.step.delta", "run.step.delta", "run.step.completed"]
        assert books.events == [*BEGUN, *own, *MESSAGE, "message.delta", *SAID, "run.completed"]

    async def test_a_failure_in_the_middle_of_a_second_message(self, tell):
        async def answer(ctx: RunContext):
            await ctx.reply("one")
            async with ctx.message():
                ctx.fail("rate_limit_exceeded", "Too much.")

        run, books = await (await tell(answer)).ask()
        assert (run.status, run.last_error.code) == ("failed", "rate_limit_exceeded")
        cut = [*MESSAGE, "message.incomplete", "run.step.failed", "run.failed"]
        assert books.events == [*BEGUN, *MESSAGE, "message.delta", *SAID, *cut]

    async def test_a_run_that_is_incomplete(self, tell):
        async def answer(ctx: RunContext):
            yield "half"
            ctx.incomplete("max_completion_tokens")

        run, books = await (await tell(answer)).ask()
        assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
        assert books.events[-3:] == ["message.incomplete", "run.step.cancelled", "run.incomplete"]
        assert books.texts == ["half"]

    async def test_one_that_is_cancelled_while_it_streams(self, tell):
        async def answer(ctx: RunContext):
            yield "half"
            await asyncio.Event().wait()

        told = await tell(answer)

        async def cancel(run: Any, books: Books) -> None:
            await told.threads.runs.cancel(run.id, thread_id=run.thread_id)

        run, books = await told.ask(cancel)
        assert run.status == "cancelled"
        end = ["run.cancelling", "message.incomplete", "run.step.cancelled", "run.cancelled"]
        assert books.events == [*BEGUN, *MESSAGE, "message.delta", *end]

    async def test_a_silence_that_is_filled_with_comments(self, tell):
        goes_on = asyncio.Event()

        async def answer(ctx: RunContext):
            yield "Hel"
            await goes_on.wait()
            yield "lo"

        told = await tell(answer)

        async def wait(run: Any, books: Books) -> None:
            for _ in range(4):
                told.clock.advance(timedelta(seconds=15))
                await turns()
            goes_on.set()

        run, books = await told.ask(wait)
        assert run.status == "completed"
        assert books.events == [*BEGUN, *MESSAGE, "message.delta", "message.delta", *SAID, "run.completed"]

    async def test_one_that_expires_while_it_streams(self, tell):
        async def answer(ctx: RunContext):
            yield "half"
            await asyncio.Event().wait()

        told = await tell(answer)

        async def wait_too_long(run: Any, books: Books) -> None:
            while "run.expired" not in books.events:
                await until(lambda: told.clock.sleepers or "run.expired" in books.events)
                told.clock.advance(timedelta(minutes=1))
                await asyncio.sleep(0)

        run, books = await told.ask(wait_too_long)
        assert run.status == "expired"
        assert books.events[-3:] == ["message.incomplete", "run.step.expired", "run.expired"]

    async def test_an_attempt_that_is_done_again(self, tell):
        async def answer(ctx: RunContext):
            async with ctx.message() as message:
                await message.write("once")
                if ctx.attempt == 1:
                    raise ValueError

        run, books = await (await tell(answer)).ask()
        assert run.status == "completed"
        cut = [*MESSAGE, "message.delta", "message.incomplete", "run.step.failed"]
        again = ["run.queued", "run.in_progress", *MESSAGE, "message.delta", *SAID, "run.completed"]
        assert books.events == [*BEGUN, *cut, *again]
        assert books.texts == ["once", "once"]

    async def test_a_thread_that_is_created_with_its_run(self, tell):
        async def answer(ctx: RunContext):
            return "hello"

        told, books = await tell(answer), Books()
        stream = told.threads.create_and_run_stream(assistant_id="asst_1", event_handler=books)
        run, _ = await told.read(stream, books)
        assert run.status == "completed"
        assert books.events == ["created", *BEGUN, *MESSAGE, "message.delta", *SAID, "run.completed"]

    async def test_a_thread_that_is_deleted_while_it_streams_is_an_error(self, tell):
        async def answer(ctx: RunContext):
            yield "half"
            await asyncio.Event().wait()

        told = await tell(answer)

        async def delete(run: Any, books: Books) -> None:
            await told.threads.delete(run.thread_id)

        with pytest.raises(openai.APIError, match="No thread found"):
            await told.ask(delete)
