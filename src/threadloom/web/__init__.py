"""The Assistants API over HTTP, as an aiohttp sub-application (extra ``web``)."""

from threadloom.web._app import create_app
from threadloom.web._settings import STORE, Authenticate, Limits

__all__ = ["STORE", "Authenticate", "Limits", "create_app"]
