"""What the owner of a server has chosen, and where the handlers of requests find it."""

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
"""Returns the tenant that a request is from, or none where it is to be refused. It may be async."""

Admit = Callable[[web.Request], Awaitable[None]]
"""Lets a request in and notes whose it is, or raises."""

_at_least_one = validators.ge(1)


@frozen(kw_only=True)
class Limits:
    """How much a client may ask for. A request beyond one of them is refused, and nothing of it is done."""

    body_bytes: int = field(default=8 * 1024 * 1024, validator=_at_least_one)
    body_timeout: timedelta = timedelta(seconds=30)
    messages_per_request: int = field(default=100, validator=_at_least_one)
    message_characters: int = field(default=256_000, validator=_at_least_one)
    tools: int = field(default=128, validator=_at_least_one)
    streams: int = field(default=1_000, validator=_at_least_one)
    stalled_stream: timedelta = timedelta(seconds=60)


@frozen(kw_only=True)
class Settings:
    """What a request is answered by."""

    store: ThreadStore
    admit: Admit | None
    on_busy: OnBusy
    run_expiry: timedelta | None
    limits: Limits
    streams: Streams


SETTINGS: Final = web.AppKey("SETTINGS", Settings)
STORE: Final = web.AppKey("STORE", ThreadStore)
"""Where the application keeps its store, for what is beside it in the same server."""

REQUEST_ID: Final = web.RequestKey("REQUEST_ID", str)
TENANT: Final = web.RequestKey("TENANT", str)
