"""What a handler takes from its request: the query, the body, whose it is, and the key under which it is sent again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import Any, TypedDict, TypeVar

import orjson
from aiohttp import web

from threadloom.checks import MOST_KEY_CHARACTERS, IdempotencyKey
from threadloom.errors import AssistantNotFoundError, InvalidInputError, ThreadNotFoundError
from threadloom.ids import is_id
from threadloom.models import Assistant
from threadloom.pages import Page
from threadloom.web._errors import WireError
from threadloom.web._reading import read
from threadloom.web._settings import REQUEST_ID, SETTINGS, TENANT, Settings
from threadloom.web._wire import page_to_wire

__all__ = [
    "Listing",
    "answer",
    "answer_page",
    "check_id",
    "check_ids",
    "event_number_of",
    "idempotency_key",
    "listing_of",
    "own_assistant",
    "own_thread",
    "read_body",
    "settings_of",
    "tenant_of",
]

_logger = logging.getLogger("threadloom")

T = TypeVar("T")

_DEFAULT_LIMIT = 20
_MOST_LIMIT = 100
_ID = "an id: 1 to 128 ASCII letters, digits, '_' and '-', beginning with a letter or a digit"


class Listing(TypedDict):
    """How a list is narrowed, as the keywords of the store."""

    limit: int
    order: str
    after: str | None
    before: str | None


def settings_of(request: web.Request) -> Settings:
    """Return what the request is answered by."""
    return request.app[SETTINGS]


def tenant_of(request: web.Request) -> str | None:
    """Return whose request it is, or none where the server has no tenants."""
    return request.get(TENANT)


def answer(value: dict[str, Any], **headers: str) -> web.Response:
    """Return the answer that holds ``value``."""
    return web.Response(body=orjson.dumps(value), content_type="application/json", headers=headers)


def answer_page(request: web.Request, page: Page[Any]) -> web.Response:
    """Return the answer that holds ``page``, and log what damage it had to leave out."""
    for damage in page.damaged:
        _logger.warning("record set aside", exc_info=damage, extra={"request_id": request[REQUEST_ID]})
    return answer(page_to_wire(page))


def check_ids(request: web.Request) -> None:
    """Raise unless every id in the path is one: nothing else is looked at before."""
    for name, value in request.match_info.items():
        check_id(name, value)


def check_id(name: str, value: str) -> None:
    """Raise unless ``value``, which the request calls ``name``, is an id."""
    if not is_id(value):
        raise WireError(400, f"Invalid '{name}': {value[:128]!r}. Expected {_ID}.", param=name)


def listing_of(request: web.Request) -> Listing:
    """Return how the request narrows a list: 20 items, the newest first, unless it says so."""
    query = request.query
    order = query.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise WireError(400, f"Invalid 'order': expected 'asc' or 'desc', not {order[:128]!r}.", param="order")
    cursors = {name: query.get(name) for name in ("after", "before")}
    for name, cursor in cursors.items():
        if cursor is not None:
            check_id(name, cursor)
    limit = _whole_number(request, "limit", _DEFAULT_LIMIT, least=1, most=_MOST_LIMIT)
    return Listing(limit=limit, order=order, after=cursors["after"], before=cursors["before"])


def _whole_number(request: web.Request, name: str, default: int, *, least: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(most)) else -1
    if not least <= number <= most:
        expected = f"expected a whole number from {least} to {most}, not {text[:128]!r}"
        raise WireError(400, f"Invalid '{name}': {expected}.", param=name)
    return number


def event_number_of(request: web.Request) -> int:
    """Return the number of the last event that the reader of a stream has had: what it asks for goes on past it.

    The header goes before the query: a browser sends it when its stream broke, with the address that it began with.
    """
    most = 2**63 - 1
    if last := request.headers.get("Last-Event-ID", "").strip():
        if last.isascii() and last.isdigit() and len(last) <= len(str(most)) and int(last) <= most:
            return int(last)
        raise WireError(400, f"Invalid 'Last-Event-ID': expected the id of an event, not {last[:128]!r}.")
    return _whole_number(request, "after", 0, least=0, most=most)


async def read_body(request: web.Request, shape: type[T]) -> tuple[T, dict[str, Any]]:
    """Return what the request's body says, as ``shape`` and as it was sent."""
    data = await _data_of(request)
    if data.strip() and not request.content_type.endswith("json"):
        # Also what keeps a foreign web page from making a browser post to a server on this machine.
        text = f"The body of the request must be sent as application/json, not {request.content_type}."
        raise WireError(415, text)
    return read(data, shape)


async def _data_of(request: web.Request) -> bytes:
    limits = settings_of(request).limits
    text = f"The body of the request is larger than {limits.body_bytes} bytes."
    if (request.content_length or 0) > limits.body_bytes:
        raise WireError(413, text)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout.total_seconds()):
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > limits.body_bytes:
                    raise WireError(413, text)
    except TimeoutError:
        raise WireError(408, "The body of the request did not come in time.") from None
    except (ConnectionError, web.RequestPayloadError):
        raise WireError(400, "The body of the request broke off, or cannot be unpacked.") from None
    return bytes(data)


def idempotency_key(request: web.Request, body: dict[str, Any]) -> IdempotencyKey | None:
    """Return the key under which this create may be sent again: the client's, told apart by tenant."""
    value = request.headers.get("Idempotency-Key")
    if value is None:
        return None
    if not 1 <= len(value) <= MOST_KEY_CHARACTERS:
        text = f"Invalid 'Idempotency-Key': expected 1 to {MOST_KEY_CHARACTERS} characters, not {len(value)}."
        raise WireError(400, text, param="Idempotency-Key")
    asked = json.dumps([request.path, body], sort_keys=True)
    return IdempotencyKey(_hash(json.dumps([tenant_of(request), value])), _hash(asked))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def own_thread(request: web.Request) -> str:
    """Return the id of the thread in the path; one of another tenant is not there."""
    thread_id = request.match_info["thread_id"]
    tenant = tenant_of(request)
    if tenant is not None and (await settings_of(request).store.get_thread(thread_id)).tenant != tenant:
        raise ThreadNotFoundError(thread_id)
    return thread_id


async def own_assistant(request: web.Request, assistant_id: str) -> Assistant:
    """Return an assistant; one of another tenant is not there."""
    try:
        assistant = await settings_of(request).store.get_assistant(assistant_id)
    except InvalidInputError:
        raise AssistantNotFoundError(assistant_id) from None
    tenant = tenant_of(request)
    if tenant is not None and assistant.tenant != tenant:
        raise AssistantNotFoundError(assistant_id)
    return assistant
