"""The server of ``coffee_bar_wire.py``, and how what it tells of its store is read with the official client."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from _coffee_process import another, given
from _coffee_recording import Dialog
from _coffee_worker import Assistant
from aiohttp import web
from openai import AsyncOpenAI, AsyncStream
from openai.pagination import AsyncCursorPage
from openai.types import beta
from openai.types.beta import threads
from openai.types.beta.threads import runs

from threadloom import (
    EventType,
    FileStore,
    FunctionCall,
    IncompleteDetails,
    Message,
    MessageCreation,
    MessageDelta,
    MessageRole,
    MessageStatus,
    Page,
    Run,
    RunContext,
    RunError,
    RunEvent,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
)
from threadloom.web import create_app

PATIENCE = timedelta(minutes=1)
PAGE = 3  # objects, so that there are many pages


# The process that serves


class ToolsElsewhere(Assistant):
    """Does what the assistant did, and leaves the tools to the client.

    It asks for one call at a time, as most of them quote what the one before has brought.
    """

    async def use_tools(self, ctx: RunContext, calls: tuple[FunctionCall, ...]) -> None:
        """Ask for the next call, unless all outputs are in; they must be those of the recording."""
        done = tuple(call.function for call in ctx.tool_calls)
        if done != calls[: len(done)]:
            ctx.fail("server_error", "The tools said something else in the recording.")
        for call in calls[len(done) : len(done) + 1]:
            await ctx.call_tools([FunctionCall(name=call.name, arguments=call.arguments)])


async def serve(options: argparse.Namespace, dialogs: dict[str, Dialog]) -> None:
    """Be the server, say at which port, and go on until the input ends."""
    store = FileStore(options.serve_in, durability=options.durability)
    assistant = ToolsElsewhere(dialogs, lambda *_: None)
    app = web.Application()
    app.add_subapp("/v1", create_app(store, handler=assistant.answer, concurrency=options.concurrency))
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def served(options: argparse.Namespace, root: object) -> AsyncIterator[AsyncOpenAI]:
    """Keep a server of that directory going, and yield a client of it."""
    said: list[str] = []
    arguments = given(options, "data", "durability", "concurrency")
    async with another([f"--serve-in={root}", *arguments], said.extend) as server:
        await server.is_heard.wait()
        if not said:
            raise SystemExit("The server has not come up.")
        base_url = f"http://127.0.0.1:{said[0]}/v1"
        # A request that has to be made again would be a difference, too.
        async with AsyncOpenAI(
            base_url=base_url, api_key="none is needed", timeout=PATIENCE.total_seconds(), max_retries=0
        ) as client:
            yield client


# What it tells of its store


@dataclass(frozen=True)
class Transcripts:
    """All that the server tells, page by page, in the library's words, so that it is compared as a store is."""

    client: AsyncOpenAI

    async def list_threads(self) -> Page[Thread]:
        """Return all threads. The client has no call of its own for this."""
        pages = self.client.get_api_list(
            "/threads", model=beta.Thread, page=AsyncCursorPage[beta.Thread], options={"params": {"order": "asc"}}
        )
        return Page([Thread(id=t.id, created_at=t.created_at, metadata=t.metadata or {}) async for t in pages])

    async def list_messages(self, thread_id: str) -> Page[Message]:
        """Return all messages of a thread."""
        pages = self.client.beta.threads.messages.list(thread_id, order="asc", limit=PAGE)
        return Page([as_message(message) async for message in pages])

    async def list_runs(self, thread_id: str) -> Page[Run]:
        """Return all runs of a thread."""
        pages = self.client.beta.threads.runs.list(thread_id, order="asc", limit=PAGE)
        return Page([as_run(run) async for run in pages])

    async def list_steps(self, thread_id: str, run_id: str) -> Page[RunStep]:
        """Return all steps of a run."""
        pages = self.client.beta.threads.runs.steps.list(run_id, thread_id=thread_id, order="asc", limit=PAGE)
        return Page([as_step(step) async for step in pages])

    async def events(self, thread_id: str, run_id: str) -> AsyncIterator[RunEvent]:
        """Yield the words of a run once more. The client has no call of its own for this, either."""
        stream = await self.client.get(
            f"/threads/{thread_id}/runs/{run_id}/events",
            cast_to=cast("type[Any]", beta.AssistantStreamEvent),
            stream=True,
            stream_cls=AsyncStream[beta.AssistantStreamEvent],
        )
        async with stream:
            number = 0
            async for event in stream:
                number += 1
                if event.event == "thread.message.delta":
                    for word in as_words(event.data):
                        delta = MessageDelta(event.data.id, word)
                        yield RunEvent(number=number, type=EventType.MESSAGE_DELTA, created_at=0, data=delta)


def as_words(event: threads.MessageDeltaEvent) -> list[str]:
    """Return the pieces of text in an event."""
    blocks = event.delta.content or []
    return [block.text.value or "" for block in blocks if block.type == "text" and block.text]


def as_message(told: threads.Message) -> Message:
    """Return a message."""
    return Message(
        id=told.id,
        created_at=told.created_at,
        thread_id=told.thread_id,
        role=MessageRole(told.role),
        content=tuple(TextContent(block.text.value) for block in told.content if block.type == "text"),
        status=MessageStatus(told.status),
        run_id=told.run_id,
        completed_at=told.completed_at,
        incomplete_at=told.incomplete_at,
        incomplete_details=IncompleteDetails(told.incomplete_details.reason) if told.incomplete_details else None,
    )


def as_run(told: threads.Run) -> Run:
    """Return a run."""
    return Run(
        id=told.id,
        created_at=told.created_at,
        thread_id=told.thread_id,
        status=RunStatus(told.status),
        metadata=told.metadata or {},
        last_error=RunError(told.last_error.code, told.last_error.message) if told.last_error else None,
        started_at=told.started_at,
        completed_at=told.completed_at,
        cancelled_at=told.cancelled_at,
        failed_at=told.failed_at,
    )


def as_step(told: runs.RunStep) -> RunStep:
    """Return a step."""
    did = told.step_details
    return RunStep(
        id=told.id,
        created_at=told.created_at,
        run_id=told.run_id,
        thread_id=told.thread_id,
        type=RunStepType(told.type),
        status=RunStepStatus(told.status),
        step_details=MessageCreation(did.message_creation.message_id)
        if did.type == "message_creation"
        else ToolCalls(tuple(as_call(call) for call in did.tool_calls if call.type == "function")),
        completed_at=told.completed_at,
        cancelled_at=told.cancelled_at,
        failed_at=told.failed_at,
    )


def as_call(told: runs.FunctionToolCall) -> ToolCall:
    """Return a call of a tool."""
    function = told.function
    return ToolCall(
        id=told.id, function=FunctionCall(name=function.name, arguments=function.arguments, output=function.output)
    )
