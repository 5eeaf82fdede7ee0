"""Who may ask: keys that are compared in constant time, or a function that says whose request it is."""

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
    """Return what lets a request in or raises, and notes whose it is; none where anybody may ask."""
    if api_keys is None:
        return None if authenticate is None else _by_tenant(authenticate)
    if authenticate is not None:
        raise InvalidInputError("Clients are let in by api_keys or by authenticate, not by both.")
    if isinstance(api_keys, str):
        raise InvalidInputError("api_keys is a collection of keys, not one.")
    keys = [key.strip() for key in api_keys]
    # As a setting that was left empty makes them: it must not open the door.
    if not all(keys) or not keys:
        raise InvalidInputError("api_keys needs at least one key, and no empty one; without api_keys anybody may ask.")
    # Hashes, so that neither the length of a key nor how much of it was right can be told from the time.
    return _by_keys([_hash(key) for key in keys])


def _by_keys(known: list[bytes]) -> Admit:
    async def admit(request: web.Request) -> None:
        offered = _hash(_key_of(request))
        # All are compared, whichever fits.
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
    """Return the key that a request brings, or nothing: as OpenAI's clients send it, or as Azure's do."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.headers.get("api-key", "")


def _refusal(request: web.Request) -> WireError:
    text = "Incorrect API key provided." if _key_of(request) else "You didn't provide an API key."
    return WireError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
