"""The sub-application: its routes, what stands before each of them, and what lives as long as it does."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import timedelta

import orjson
import uuid_utils
from aiohttp import web
from aiohttp.typedefs import Handler as Handle

from threadloom.checks import check_on_busy
from threadloom.store import OnBusy, ThreadStore
from threadloom.web import _assistants, _runs, _threads
from threadloom.web._auth import admitting
from threadloom.web._calls import check_ids, settings_of
from threadloom.web._errors import as_wire_error, error_body
from threadloom.web._settings import REQUEST_ID, SETTINGS, STORE, Authenticate, Limits, Settings
from threadloom.web._streams import Streams
from threadloom.worker import Handler, RunWorker

__all__ = ["create_app"]

_logger = logging.getLogger("threadloom")


def create_app(
    store: ThreadStore,
    *,
    handler: Handler | None = None,
    concurrency: int = 8,
    api_keys: Iterable[str] | None = None,
    authenticate: Authenticate | None = None,
    on_busy: OnBusy = "reject",
    run_expiry: timedelta | None = timedelta(minutes=10),
    keep_alive: timedelta = timedelta(seconds=15),
    limits: Limits | None = None,
) -> web.Application:
    """Return a sub-application that speaks the Assistants API over ``store``.

    It is mounted by ``app.add_subapp("/v1", create_app(store))``, and can stand alone. It opens the store when it
    starts, if it is not open, and closes it then in the end. With a ``handler`` it has a worker too, ``concurrency``
    runs at a time; else the runs wait for a worker of somebody else's, in any process.

    ``api_keys`` are the keys that clients may send; ``authenticate`` decides instead and returns the tenant whose
    request it is: what a tenant makes is there for no other one. With neither, anybody who reaches the server may do
    everything. ``on_busy`` says what becomes of a new run where the thread has an active one, unless the request does
    (``docs/wire.md``). A run expires ``run_expiry`` after a worker has first taken it. A stream in which nothing has
    happened for ``keep_alive`` is told so.
    """
    check_on_busy(on_busy)
    limits = Limits() if limits is None else limits
    streams = Streams(store.clock, keep_alive=keep_alive, stall=limits.stalled_stream, most_streams=limits.streams)
    app = web.Application(middlewares=[_answering])
    app[STORE] = store
    app[SETTINGS] = Settings(
        store=store,
        admit=admitting(api_keys, authenticate),
        on_busy=on_busy,
        run_expiry=run_expiry,
        limits=limits,
        streams=streams,
    )
    # Before the ids of threads, of which "runs" could be one.
    for routes in (_runs.routes, _threads.routes, _assistants.routes):
        app.add_routes(routes)

    async def open_parts(_: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if not store.is_open:
                await stack.enter_async_context(store)
            if handler is not None:
                await stack.enter_async_context(RunWorker(store, handler, concurrency=concurrency))
            yield

    async def end_streams(_: web.Application) -> None:
        await streams.close()

    app.cleanup_ctx.append(open_parts)
    app.on_shutdown.append(end_streams)
    app.on_response_prepare.append(_name_request)
    return app


@web.middleware
async def _answering(request: web.Request, handler: Handle) -> web.StreamResponse:
    """Let in whoever may ask, and turn every error into an answer that OpenAI's clients understand."""
    told = {"request_id": _id_of(request), "method": request.method, "path": request.path}
    try:
        admit = settings_of(request).admit
        if admit is not None:
            await admit(request)
        check_ids(request)
        response = await handler(request)
    except Exception as error:
        wire = as_wire_error(error, request)
        if wire.status >= 500:  # noqa: PLR2004 - where server errors begin
            _logger.exception("request failed", extra=told)
        response = web.Response(
            status=wire.status,
            body=orjson.dumps(error_body(wire)),
            content_type="application/json",
            headers=wire.headers,
        )
    _logger.info("request answered", extra=told | {"status": response.status})
    return response


async def _name_request(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-request-id"] = _id_of(request)


def _id_of(request: web.Request) -> str:
    """Return the id of a request, which has one also where somebody else answers it before us."""
    if REQUEST_ID not in request:
        request[REQUEST_ID] = f"req_{uuid_utils.uuid7().hex}"
    return request[REQUEST_ID]
