"""The sub-application: its routes, its middleware, and the objects that live as long as it does."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import timedelta

import orjson
import uuid_utils
from aiohttp import web
from aiohttp.typedefs import Handler as Handle

from threadloom.store import OnBusy, ThreadStore
from threadloom.validation import check_on_busy
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
    """Return a sub-application that serves the Assistants API over ``store``.

    Mount it with ``app.add_subapp("/v1", create_app(store))``, or serve it on its own. If the store is not open, the
    application opens it on startup and closes it on cleanup.

    Args:
        store: Store to serve.

        handler: Handler of a worker that runs in the application. None, the default, to leave the runs to a worker
            elsewhere, in any process.

        concurrency: Maximum number of runs that this worker executes at a time. Default 8.

        api_keys: Keys that clients may send, at least one. None, the default, admits everyone who can reach the server.

        authenticate: Function that admits a request by returning its tenant. Tenants cannot see each other's objects.
            Use it instead of ``api_keys``.

        on_busy: What to do with a new run if its thread has an active one, unless the request says it
            (``docs/wire.md``). Default ``"reject"``.

        run_expiry: Time from the first claim after which a run expires. None for never. Default ten minutes.

        keep_alive: Time without an event after which a stream sends a comment. Default 15 seconds.

        limits: Limits for requests. None, the default, for the default limits.
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
    # The routes of runs come first: "runs" would also match as the id of a thread.
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
    """Authenticate the request, and turn every error into an answer that OpenAI's clients understand."""
    told = {"request_id": _id_of(request), "method": request.method, "path": request.path}
    try:
        admit = settings_of(request).admit
        if admit is not None:
            await admit(request)
        check_ids(request)
        response = await handler(request)
    except Exception as error:
        wire = as_wire_error(error, request)
        if wire.status >= 500:  # noqa: PLR2004 - the first status of a server error
            _logger.exception("Request %s failed", told["request_id"], extra=told)
        response = web.Response(
            status=wire.status,
            body=orjson.dumps(error_body(wire)),
            content_type="application/json",
            headers=wire.headers,
        )
    _logger.info(
        "Request %s was answered with status %s",
        told["request_id"],
        response.status,
        extra=told | {"status": response.status},
    )
    return response


async def _name_request(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-request-id"] = _id_of(request)


def _id_of(request: web.Request) -> str:
    """Return the id of a request. It also has one if another middleware answers it first."""
    if REQUEST_ID not in request:
        request[REQUEST_ID] = f"req_{uuid_utils.uuid7().hex}"
    return request[REQUEST_ID]
