"""What request handlers read from a request: query, body, tenant, and idempotency key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import Any, TypedDict, TypeVar

import orjson
from aiohttp import web

from threadloom.errors import AssistantNotFoundError, InvalidInputError, ThreadNotFoundError
from threadloom.ids import is_id
from threadloom.models import Assistant
from threadloom.pages import Page
from threadloom.validation import MOST_KEY_CHARACTERS, IdempotencyKey
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
_ID = "1 to 128 ASCII letters, digits, '_' and '-', starting with a letter or a digit"


class Listing(TypedDict):
    """How a request narrows a list, as keyword arguments of the store.

    Attributes:
        limit: Maximum number of items.

        order: ``asc`` or ``desc``.

        after: Id of the item before the page. None to start at the beginning.

        before: Id of the item after the page. None to continue to the end.
    """

    limit: int
    order: str
    after: str | None
    before: str | None


def settings_of(request: web.Request) -> Settings:
    """Return the settings of the server."""
    return request.app[SETTINGS]


def tenant_of(request: web.Request) -> str | None:
    """Return the tenant of the request, or None if the server has no tenants."""
    return request.get(TENANT)


def answer(value: dict[str, Any], **headers: str) -> web.Response:
    """Return an answer with ``value`` as its JSON body."""
    return web.Response(body=orjson.dumps(value), content_type="application/json", headers=headers)


def answer_page(request: web.Request, page: Page[Any]) -> web.Response:
    """Return an answer with ``page`` as its JSON body, and log the damaged records that it leaves out."""
    for damage in page.damaged:
        _logger.warning(
            "Skipped a damaged record in the answer to request %s",
            request[REQUEST_ID],
            exc_info=damage,
            extra={"request_id": request[REQUEST_ID]},
        )
    return answer(page_to_wire(page))


def check_ids(request: web.Request) -> None:
    """Raise unless every id in the path is valid. Call this before anything else."""
    for name, value in request.match_info.items():
        check_id(name, value)


def check_id(name: str, value: str) -> None:
    """Raise unless ``value`` is a valid id. ``name`` is its name in the request."""
    if not is_id(value):
        raise WireError(400, f"Invalid '{name}': {value[:128]!r}. Expected {_ID}.", param=name)


def listing_of(request: web.Request) -> Listing:
    """Return how the request narrows a list. By default, 20 items with the newest first."""
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
        expected = f"expected an integer from {least} to {most}, not {text[:128]!r}"
        raise WireError(400, f"Invalid '{name}': {expected}.", param=name)
    return number


def event_number_of(request: web.Request) -> int:
    """Return the number of the last event that the reader has. Its stream continues after that event.

    The header wins over the query: a browser sends it when its stream breaks, with the address of the first request.
    """
    most = 2**63 - 1
    if last := request.headers.get("Last-Event-ID", "").strip():
        if last.isascii() and last.isdigit() and len(last) <= len(str(most)) and int(last) <= most:
            return int(last)
        raise WireError(400, f"Invalid 'Last-Event-ID': expected the id of an event, not {last[:128]!r}.")
    return _whole_number(request, "after", 0, least=0, most=most)


async def read_body(request: web.Request, shape: type[T]) -> tuple[T, dict[str, Any]]:
    """Return the body of the request, as ``shape`` and as the client sent it."""
    data = await _data_of(request)
    if data.strip() and not request.content_type.endswith("json"):
        # This also stops a foreign web page from making a browser post to a server on this machine.
        text = f"The request body must be sent as application/json, not {request.content_type}."
        raise WireError(415, text)
    return read(data, shape)


async def _data_of(request: web.Request) -> bytes:
    limits = settings_of(request).limits
    text = f"The request body is larger than {limits.body_bytes} bytes."
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
        raise WireError(408, "The request body did not arrive in time.") from None
    except (ConnectionError, web.RequestPayloadError):
        raise WireError(400, "The request body broke off or could not be decompressed.") from None
    return bytes(data)


def idempotency_key(request: web.Request, body: dict[str, Any]) -> IdempotencyKey | None:
    """Return the idempotency key of the request, or None. The same key of two tenants is two keys."""
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
    """Return the id of the thread in the path. Raise if the thread belongs to another tenant."""
    thread_id = request.match_info["thread_id"]
    tenant = tenant_of(request)
    if tenant is not None and (await settings_of(request).store.get_thread(thread_id)).tenant != tenant:
        raise ThreadNotFoundError(thread_id)
    return thread_id


async def own_assistant(request: web.Request, assistant_id: str) -> Assistant:
    """Return an assistant. Raise if it belongs to another tenant."""
    try:
        assistant = await settings_of(request).store.get_assistant(assistant_id)
    except InvalidInputError:
        raise AssistantNotFoundError(assistant_id) from None
    tenant = tenant_of(request)
    if tenant is not None and assistant.tenant != tenant:
        raise AssistantNotFoundError(assistant_id)
    return assistant
