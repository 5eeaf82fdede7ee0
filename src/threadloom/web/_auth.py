"""Authentication: keys that are compared in constant time, or a function that returns the tenant of a request."""

from __future__ import annotations

import hashlib
import hmac
import inspect
from collections.abc import Iterable

from aiohttp import web

from threadloom.errors import InvalidInputError
from threadloom.web._errors import WireError
from threadloom.web._settings import TENANT, Admit, Authenticate

__all__ = ["admitting"]


def admitting(api_keys: Iterable[str] | None, authenticate: Authenticate | None) -> Admit | None:
    """Return a function that admits a request and records its tenant, or raises. Return None to admit everyone."""
    if api_keys is None:
        return None if authenticate is None else _by_tenant(authenticate)
    if authenticate is not None:
        raise InvalidInputError("Pass api_keys or authenticate, not both.")
    if isinstance(api_keys, str):
        raise InvalidInputError("api_keys must be a collection of keys, not a single str.")
    keys = [key.strip() for key in api_keys]
    # An empty setting produces an empty list or key, and must not open the server.
    if not all(keys) or not keys:
        raise InvalidInputError("api_keys must hold at least one key and no empty one; pass None to admit everyone.")
    # Comparing hashes hides from the timing how long a key is and how much of it was right.
    return _by_keys([_hash(key) for key in keys])


def _by_keys(known: list[bytes]) -> Admit:
    async def admit(request: web.Request) -> None:
        offered = _hash(_key_of(request))
        # Compare with every key, even after a match.
        if not any([hmac.compare_digest(offered, key) for key in known]):  # noqa: C419
            raise _refusal(request)

    return admit


def _by_tenant(authenticate: Authenticate) -> Admit:
    async def admit(request: web.Request) -> None:
        tenant = authenticate(request)
        if inspect.isawaitable(tenant):
            tenant = await tenant
        if tenant is None:
            raise _refusal(request)
        if not isinstance(tenant, str):
            text = f"authenticate must return a tenant or None, not {type(tenant).__name__}"
            raise TypeError(text)
        request[TENANT] = tenant

    return admit


def _key_of(request: web.Request) -> str:
    """Return the key of a request, or an empty string. OpenAI's clients and Azure's send it in different headers."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.headers.get("api-key", "")


def _refusal(request: web.Request) -> WireError:
    text = "Incorrect API key provided." if _key_of(request) else "You didn't provide an API key."
    return WireError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
