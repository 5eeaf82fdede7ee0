"""Restricts a server without keys to its own machine."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from threadloom.cli._errors import CannotStartError
from threadloom.cli._keys import HOW_TO_SET_KEYS

__all__ = ["check_host_is_local", "only_local"]


def check_host_is_local(host: str) -> None:
    """Raise ``CannotStartError`` if other machines can reach ``host``."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise CannotStartError(f"--host {host!r} is unknown: use a name or an address of this machine.") from None
    if not all(ipaddress.ip_address(address).is_loopback for address in found):
        raise CannotStartError(
            f"Other machines can reach --host {host}, and without keys anyone there could use the server: "
            f"{HOW_TO_SET_KEYS}."
        )


@web.middleware
async def only_local(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse requests that a foreign web page sends through a browser on this machine."""
    addresses = [f"//{request.headers.get('Host', 'localhost')}", request.headers.get("Origin", "//localhost")]
    if all(_is_local(address) for address in addresses):
        return await handler(request)
    text = "Without API keys, the server accepts only programs and web pages on its own machine."
    error = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=403)


def _is_local(address: str) -> bool:
    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
