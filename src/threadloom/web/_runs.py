"""Operations on runs and their steps."""

from __future__ import annotations

from typing import Any

import attrs
from aiohttp import web

from threadloom.errors import RunInTerminalStateError
from threadloom.models import Message, Run, Thread, ToolOutput, TruncationStrategy
from threadloom.tasks import carried_out
from threadloom.validation import IdempotencyKey
from threadloom.web._calls import (
    answer,
    answer_page,
    event_number_of,
    idempotency_key,
    listing_of,
    own_assistant,
    own_thread,
    read_body,
    settings_of,
    tenant_of,
)
from threadloom.web._contents import check_tools, messages_of
from threadloom.web._errors import WireError
from threadloom.web._feeds import events_past, events_since_outputs, events_until_stop
from threadloom.web._requests import MetadataRequest, RunRequest, SubmitRequest, ThreadAndRunRequest, ThreadRequest
from threadloom.web._wire import to_wire

__all__ = ["routes"]

_SHORTEST_POLL_MS = 100
_LONGEST_POLL_MS = 1_000
_POLLS_IN_AN_AGE = 10  # a run that is ten seconds old is polled every second


async def create_run(request: web.Request) -> web.StreamResponse:
    asked, body = await read_body(request, RunRequest)
    thread_id = await own_thread(request)
    run = await _run_of(request, thread_id, asked)
    if asked.additional_instructions is not None:
        run = attrs.evolve(run, instructions=_joined(run.instructions, asked.additional_instructions))
    messages = messages_of(request, thread_id, asked.additional_messages, "additional_messages")
    settings = settings_of(request)
    on_busy = asked.on_busy or settings.on_busy
    key = idempotency_key(request, body)
    if not asked.stream:
        return answer(
            to_wire(await settings.store.create_run(thread_id, run, on_busy=on_busy, messages=messages, key=key))
        )
    with settings.streams.place():
        run = await settings.store.create_run(thread_id, run, on_busy=on_busy, messages=messages, key=key)
        return await settings.streams.send(request, events_until_stop(settings.store, run))


async def create_thread_and_run(request: web.Request) -> web.StreamResponse:
    asked, body = await read_body(request, ThreadAndRunRequest)
    wanted = asked.thread or ThreadRequest()
    thread = Thread.new(metadata=wanted.metadata, tool_resources=wanted.tool_resources, tenant=tenant_of(request))
    run = await _run_of(request, thread.id, asked)
    messages = messages_of(request, thread.id, wanted.messages, "thread.messages")
    settings = settings_of(request)
    key = idempotency_key(request, body)
    if not asked.stream:
        return answer(to_wire((await _create_both(request, thread, messages, run, key))[1]))
    with settings.streams.place():
        thread, run = await _create_both(request, thread, messages, run, key)
        return await settings.streams.send(request, events_until_stop(settings.store, run, created=thread))


async def _create_both(
    request: web.Request, thread: Thread, messages: list[Message], run: Run, key: IdempotencyKey | None
) -> tuple[Thread, Run]:
    """Create a thread and its run. Both are created even if the client disconnects between the two.

    If a request with the same key was interrupted between the two, create only the run.
    """
    store = settings_of(request).store

    async def create() -> tuple[Thread, Run]:
        made = await store.create_thread(thread, messages=messages, key=key)
        return made, await store.create_run(made.id, attrs.evolve(run, thread_id=made.id), key=key)

    return await carried_out(create())


async def list_runs(request: web.Request) -> web.StreamResponse:
    listing = listing_of(request)
    thread_id = await own_thread(request)
    return answer_page(request, await settings_of(request).store.list_runs(thread_id, **listing))


async def get_run(request: web.Request) -> web.StreamResponse:
    run = await _own_run(request)
    age = settings_of(request).store.clock.time_ns() // 1_000_000 - run.created_at * 1_000
    after = min(max(age // _POLLS_IN_AN_AGE, _SHORTEST_POLL_MS), _LONGEST_POLL_MS)
    return answer(to_wire(run), **{"openai-poll-after-ms": str(after)})


async def update_run(request: web.Request) -> web.StreamResponse:
    asked, body = await read_body(request, MetadataRequest)
    run = await _own_run(request)
    if "metadata" in body:
        run = await settings_of(request).store.update_run(run.thread_id, run.id, metadata=asked.metadata)
    return answer(to_wire(run))


async def cancel_run(request: web.Request) -> web.StreamResponse:
    thread_id, run_id = await own_thread(request), request.match_info["run_id"]
    try:
        return answer(to_wire(await settings_of(request).store.request_cancel(thread_id, run_id)))
    except RunInTerminalStateError as error:
        raise WireError(400, f"Cannot cancel run with status '{error.status}'.") from None


async def submit_tool_outputs(request: web.Request) -> web.StreamResponse:
    asked, _ = await read_body(request, SubmitRequest)
    thread_id, run_id = await own_thread(request), request.match_info["run_id"]
    outputs = [ToolOutput(output.tool_call_id, output.output) for output in asked.tool_outputs]
    settings = settings_of(request)
    if not asked.stream:
        return answer(to_wire(await settings.store.submit_tool_outputs(thread_id, run_id, outputs)))
    with settings.streams.place():
        run = await settings.store.submit_tool_outputs(thread_id, run_id, outputs)
        return await settings.streams.send(request, events_since_outputs(settings.store, run))


async def stream_events(request: web.Request) -> web.StreamResponse:
    after = event_number_of(request)
    run = await _own_run(request)
    settings = settings_of(request)
    with settings.streams.place():
        return await settings.streams.send(request, events_past(settings.store, run, after))


async def list_steps(request: web.Request) -> web.StreamResponse:
    listing = listing_of(request)
    thread_id, run_id = await own_thread(request), request.match_info["run_id"]
    return answer_page(request, await settings_of(request).store.list_steps(thread_id, run_id, **listing))


async def get_step(request: web.Request) -> web.StreamResponse:
    thread_id, run_id = await own_thread(request), request.match_info["run_id"]
    return answer(to_wire(await settings_of(request).store.get_step(thread_id, run_id, request.match_info["step_id"])))


async def _own_run(request: web.Request) -> Run:
    return await settings_of(request).store.get_run(await own_thread(request), request.match_info["run_id"])


async def _run_of(request: web.Request, thread_id: str, asked: RunRequest | ThreadAndRunRequest) -> Run:
    """Return the requested run. The assistant provides the settings that the request omits."""
    check_tools(request, asked.tools)
    assistant = await own_assistant(request, asked.assistant_id)
    return Run.new(
        thread_id,
        model=asked.model or assistant.model,
        assistant_id=assistant.id,
        instructions=_first(asked.instructions, assistant.instructions, ""),
        tools=_first(asked.tools, assistant.tools),
        tool_resources=_first(asked.tool_resources, assistant.tool_resources),
        metadata=asked.metadata,
        expires_after=settings_of(request).run_expiry,
        temperature=_first(asked.temperature, assistant.temperature),
        top_p=_first(asked.top_p, assistant.top_p),
        max_prompt_tokens=asked.max_prompt_tokens,
        max_completion_tokens=asked.max_completion_tokens,
        truncation_strategy=_truncation_of(asked),
        tool_choice=asked.tool_choice,
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        response_format=_first(asked.response_format, assistant.response_format),
        reasoning_effort=_first(asked.reasoning_effort, assistant.reasoning_effort),
    )


def _truncation_of(asked: RunRequest | ThreadAndRunRequest) -> TruncationStrategy | None:
    strategy = asked.truncation_strategy
    if strategy is None:
        return None
    if strategy.type == "auto":
        return TruncationStrategy()
    if strategy.last_messages is None:
        name = "truncation_strategy.last_messages"
        raise WireError(400, f"Invalid '{name}': it is required if the type is 'last_messages'.", param=name)
    return TruncationStrategy(type=strategy.type, last_messages=strategy.last_messages)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _joined(instructions: str, more: str) -> str:
    return f"{instructions}\n\n{more}" if instructions else more


routes = [
    web.post("/threads/runs", create_thread_and_run),
    web.post("/threads/{thread_id}/runs", create_run),
    web.get("/threads/{thread_id}/runs", list_runs),
    web.get("/threads/{thread_id}/runs/{run_id}", get_run),
    web.post("/threads/{thread_id}/runs/{run_id}", update_run),
    web.post("/threads/{thread_id}/runs/{run_id}/cancel", cancel_run),
    web.post("/threads/{thread_id}/runs/{run_id}/submit_tool_outputs", submit_tool_outputs),
    web.get("/threads/{thread_id}/runs/{run_id}/events", stream_events, allow_head=False),
    web.get("/threads/{thread_id}/runs/{run_id}/steps", list_steps),
    web.get("/threads/{thread_id}/runs/{run_id}/steps/{step_id}", get_step),
]
