"""The settings of a server, and where request handlers find them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from aiohttp import web
from attrs import field, frozen, validators

from threadloom.store import OnBusy, ThreadStore
from threadloom.web._streams import Streams

__all__ = ["REQUEST_ID", "SETTINGS", "STORE", "TENANT", "Admit", "Authenticate", "Limits", "Settings"]

Authenticate = Callable[[web.Request], Awaitable[str | None] | str | None]
"""Returns the tenant of a request, or None to refuse the request. It may be async."""

Admit = Callable[[web.Request], Awaitable[None]]
"""Admits a request and records its tenant, or raises."""

_at_least_one = validators.ge(1)


@frozen(kw_only=True)
class Limits:
    """Limits for the requests of a client. The server rejects a request that exceeds one, and does nothing of it.

    Attributes:
        body_bytes: Maximum size of a request body, in bytes. Default 8 MiB.

        body_timeout: Maximum time for a request body to arrive. Default 30 seconds.

        messages_per_request: Maximum number of messages in one request. Default 100.

        message_characters: Maximum number of characters in the text of a message. Default 256,000.

        tools: Maximum number of tools of an assistant or run. Default 128.

        streams: Maximum number of open streams. Default 1,000.

        stalled_stream: Time after which a reader that reads nothing is disconnected. Default 60 seconds.
    """

    body_bytes: int = field(default=8 * 1024 * 1024, validator=_at_least_one)
    body_timeout: timedelta = timedelta(seconds=30)
    messages_per_request: int = field(default=100, validator=_at_least_one)
    message_characters: int = field(default=256_000, validator=_at_least_one)
    tools: int = field(default=128, validator=_at_least_one)
    streams: int = field(default=1_000, validator=_at_least_one)
    stalled_stream: timedelta = timedelta(seconds=60)


@frozen(kw_only=True)
class Settings:
    """The settings of a server.

    Attributes:
        store: Store to serve.

        admit: Admits or refuses a request. None to admit everyone.

        on_busy: What to do with a new run if its thread has an active one.

        run_expiry: Time from the first claim after which a run expires. None for never.

        limits: Limits for requests.

        streams: The open streams.
    """

    store: ThreadStore
    admit: Admit | None
    on_busy: OnBusy
    run_expiry: timedelta | None
    limits: Limits
    streams: Streams


SETTINGS: Final = web.AppKey("SETTINGS", Settings)
STORE: Final = web.AppKey("STORE", ThreadStore)
"""Key of the store in the application, for other code in the same server."""

REQUEST_ID: Final = web.RequestKey("REQUEST_ID", str)
TENANT: Final = web.RequestKey("TENANT", str)
