"""What keeps a server without keys to those who are on its machine."""

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
    """Raise ``CannotStartError`` where others than this machine could reach ``host``."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise CannotStartError(
            f"--host {host!r} is not known here: give a name or an address of this machine."
        ) from None
    if not all(ipaddress.ip_address(address).is_loopback for address in found):
        raise CannotStartError(
            f"--host {host} can be reached from other machines, and without keys anyone there could use the server: "
            f"{HOW_TO_SET_KEYS}."
        )


@web.middleware
async def only_local(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse what a page of the web sends by way of a browser on this machine."""
    addresses = [f"//{request.headers.get('Host', 'localhost')}", request.headers.get("Origin", "//localhost")]
    if all(_is_local(address) for address in addresses):
        return await handler(request)
    text = "Without keys, only programs on the server's own machine are served, and pages that come from it."
    error = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=403)


def _is_local(address: str) -> bool:
    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
