"""Operations on threads and their messages."""

from __future__ import annotations

from aiohttp import web

from threadloom.errors import ActiveRunError
from threadloom.models import Thread
from threadloom.store import KEEP
from threadloom.web._calls import (
    answer,
    answer_page,
    check_id,
    idempotency_key,
    listing_of,
    own_thread,
    read_body,
    settings_of,
    tenant_of,
)
from threadloom.web._contents import message_of, messages_of
from threadloom.web._errors import WireError
from threadloom.web._requests import MessageRequest, MetadataRequest, ThreadRequest
from threadloom.web._wire import deleted, to_wire

__all__ = ["routes"]


async def create_thread(request: web.Request) -> web.Response:
    asked, body = await read_body(request, ThreadRequest)
    thread = Thread.new(metadata=asked.metadata, tool_resources=asked.tool_resources, tenant=tenant_of(request))
    messages = messages_of(request, thread.id, asked.messages, "messages")
    store = settings_of(request).store
    return answer(to_wire(await store.create_thread(thread, messages=messages, key=idempotency_key(request, body))))


async def list_threads(request: web.Request) -> web.Response:
    listing = listing_of(request)
    return answer_page(request, await settings_of(request).store.list_threads(tenant=tenant_of(request), **listing))


async def get_thread(request: web.Request) -> web.Response:
    return answer(to_wire(await settings_of(request).store.get_thread(await own_thread(request))))


async def update_thread(request: web.Request) -> web.Response:
    asked, body = await read_body(request, ThreadRequest)
    thread = await settings_of(request).store.update_thread(
        await own_thread(request),
        metadata=asked.metadata if "metadata" in body else KEEP,
        tool_resources=asked.tool_resources if "tool_resources" in body else KEEP,
    )
    return answer(to_wire(thread))


async def delete_thread(request: web.Request) -> web.Response:
    thread_id = await own_thread(request)
    # As in the real API, this stops the active runs of the thread.
    await settings_of(request).store.delete_thread(thread_id, force=True)
    return answer(deleted(thread_id, "thread"))


async def create_message(request: web.Request) -> web.Response:
    asked, body = await read_body(request, MessageRequest)
    settings = settings_of(request)
    thread_id = await own_thread(request)
    message = message_of(request, thread_id, asked)
    key = idempotency_key(request, body)
    try:
        # Only "reject" locks the thread. The other policies accept messages while a run is active.
        is_locked = (asked.on_busy or settings.on_busy) == "reject"
        kept = await settings.store.append_message(
            thread_id, message, on_busy="reject" if is_locked else "enqueue", key=key
        )
    except ActiveRunError as error:
        text = f"Can't add messages to {thread_id} while a run {error.run_id} is active."
        raise WireError(400, text) from None
    return answer(to_wire(kept))


async def list_messages(request: web.Request) -> web.Response:
    listing = listing_of(request)
    run_id = request.query.get("run_id")
    if run_id is not None:
        check_id("run_id", run_id)
    thread_id = await own_thread(request)
    return answer_page(request, await settings_of(request).store.list_messages(thread_id, run_id=run_id, **listing))


async def get_message(request: web.Request) -> web.Response:
    thread_id = await own_thread(request)
    message_id = request.match_info["message_id"]
    return answer(to_wire(await settings_of(request).store.get_message(thread_id, message_id)))


async def update_message(request: web.Request) -> web.Response:
    asked, body = await read_body(request, MetadataRequest)
    thread_id, message_id = await own_thread(request), request.match_info["message_id"]
    store = settings_of(request).store
    if "metadata" in body:
        message = await store.update_message(thread_id, message_id, metadata=asked.metadata)
    else:
        message = await store.get_message(thread_id, message_id)
    return answer(to_wire(message))


async def delete_message(request: web.Request) -> web.Response:
    thread_id, message_id = await own_thread(request), request.match_info["message_id"]
    await settings_of(request).store.delete_message(thread_id, message_id)
    return answer(deleted(message_id, "thread.message"))


routes = [
    web.post("/threads", create_thread),
    web.get("/threads", list_threads),
    web.get("/threads/{thread_id}", get_thread),
    web.post("/threads/{thread_id}", update_thread),
    web.delete("/threads/{thread_id}", delete_thread),
    web.post("/threads/{thread_id}/messages", create_message),
    web.get("/threads/{thread_id}/messages", list_messages),
    web.get("/threads/{thread_id}/messages/{message_id}", get_message),
    web.post("/threads/{thread_id}/messages/{message_id}", update_message),
    web.delete("/threads/{thread_id}/messages/{message_id}", delete_message),
]
