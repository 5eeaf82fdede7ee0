"""Operations on assistants."""

from __future__ import annotations

from typing import Any

import attrs
from aiohttp import web

from threadloom.models import Assistant
from threadloom.web._calls import (
    answer,
    answer_page,
    idempotency_key,
    listing_of,
    own_assistant,
    read_body,
    settings_of,
    tenant_of,
)
from threadloom.web._contents import check_tools
from threadloom.web._requests import AssistantChanges, AssistantRequest
from threadloom.web._wire import deleted, to_wire

__all__ = ["routes"]


async def create_assistant(request: web.Request) -> web.Response:
    asked, body = await read_body(request, AssistantRequest)
    check_tools(request, asked.tools)
    assistant = Assistant.new(**_fields(asked, {**body, "model": asked.model}), tenant=tenant_of(request))
    store = settings_of(request).store
    return answer(to_wire(await store.create_assistant(assistant, key=idempotency_key(request, body))))


async def list_assistants(request: web.Request) -> web.Response:
    listing = listing_of(request)
    return answer_page(request, await settings_of(request).store.list_assistants(tenant=tenant_of(request), **listing))


async def get_assistant(request: web.Request) -> web.Response:
    return answer(to_wire(await own_assistant(request, request.match_info["assistant_id"])))


async def update_assistant(request: web.Request) -> web.Response:
    asked, body = await read_body(request, AssistantChanges)
    check_tools(request, asked.tools)
    assistant = await own_assistant(request, request.match_info["assistant_id"])
    changes = _fields(asked, body)

    def changed(old: Assistant) -> Assistant:
        return attrs.evolve(old, **changes)

    return answer(to_wire(await settings_of(request).store.update_assistant(assistant.id, changed)))


async def delete_assistant(request: web.Request) -> web.Response:
    assistant = await own_assistant(request, request.match_info["assistant_id"])
    await settings_of(request).store.delete_assistant(assistant.id)
    return answer(deleted(assistant.id, "assistant"))


def _fields(asked: AssistantChanges, body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an assistant that the request names. A null clears a field that may be empty."""
    fields = {name: value for name, value in attrs.asdict(asked, recurse=False).items() if name in body}
    if fields.get("model", "") is None:
        del fields["model"]
    if "tools" in fields:
        fields["tools"] = tuple(fields["tools"] or ())
    if "metadata" in fields:
        fields["metadata"] = fields["metadata"] or {}
    return fields


routes = [
    web.post("/assistants", create_assistant),
    web.get("/assistants", list_assistants),
    web.get("/assistants/{assistant_id}", get_assistant),
    web.post("/assistants/{assistant_id}", update_assistant),
    web.delete("/assistants/{assistant_id}", delete_assistant),
]
