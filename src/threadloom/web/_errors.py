"""Errors as OpenAI's clients expect them. This module alone decides the status and text of each error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from threadloom.errors import (
    ActiveRunError,
    AssistantNotFoundError,
    ConflictError,
    IdempotencyKeyReusedError,
    InvalidInputError,
    InvalidMetadataError,
    InvalidTransitionError,
    MessageNotFoundError,
    NotFoundError,
    RunInTerminalStateError,
    RunNotFoundError,
    RunStepNotFoundError,
    StoreBusyError,
    StoreClosedError,
    ThreadNotFoundError,
    ToolOutputsRefusedError,
)

__all__ = ["NO_RETRY", "WireError", "as_wire_error", "error_body"]

# OpenAI's clients retry after 409 and 5xx unless this header tells them that a retry is useless or harmful.
NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}

_MOST_CHARACTERS = 1_000


class WireError(Exception):
    """An error answer. Raise it anywhere in a request handler; the client gets it in the form it expects."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the name in the API
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def error_body(error: WireError) -> dict[str, Any]:
    """Return the JSON object for an error. It is valid even if the message repeats arbitrary bytes of the client."""
    message = error.message.encode(errors="backslashreplace").decode()
    if len(message) > _MOST_CHARACTERS:
        message = f"{message[:_MOST_CHARACTERS]}…"
    return {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}


def as_wire_error(error: Exception, request: web.Request) -> WireError:  # noqa: PLR0911 - one for each kind
    """Return the answer for ``error``. An unexpected error becomes a server error that reveals no internals."""
    match error:
        case WireError():
            return error
        case web.HTTPException():
            return _of_http(error, request)
        case NotFoundError():
            return _of_missing(error)
        case ConflictError():
            return _of_conflict(error)
        case InvalidMetadataError():
            return WireError(400, str(error), param="metadata")
        case InvalidInputError():
            return WireError(400, str(error))
        case StoreBusyError() | StoreClosedError():
            # Nothing was written, so the client may retry.
            text = "The server is temporarily unavailable. Try again."
            return WireError(503, text, type="server_error", headers={"retry-after": "1"})
    return _of_server(request)


def _of_http(error: web.HTTPException, request: web.Request) -> WireError:
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            text = f"{request.method} is not allowed for {request.path}; use {allowed}."
            return WireError(405, text, code="method_not_supported", headers={"Allow": allowed})
        case web.HTTPNotFound():
            return WireError(404, f"Unknown request URL: {request.method} {request.path}.", code="unknown_url")
        case web.HTTPServerError():
            return _of_server(request)
    return WireError(error.status, f"{error.reason}.")


def _of_server(request: web.Request) -> WireError:
    headers = {} if request.method in {"GET", "HEAD"} else NO_RETRY
    text = "The server had an error while processing your request. Its log has details under the x-request-id."
    return WireError(500, text, type="server_error", headers=headers)


def _of_missing(error: NotFoundError) -> WireError:
    match error:
        case AssistantNotFoundError():
            what = f"assistant found with id '{error.assistant_id}'"
        case ThreadNotFoundError():
            what = f"thread found with id '{error.thread_id}'"
        case MessageNotFoundError():
            what = f"message found with id '{error.message_id}'"
        case RunNotFoundError():
            what = f"run found with id '{error.run_id}'"
        case RunStepNotFoundError():
            what = f"run step found with id '{error.step_id}'"
        case _:
            what = "such object"
    return WireError(404, f"No {what}.")


def _of_conflict(error: ConflictError) -> WireError:
    """Return a 400 where the real API does: clients retry after a 409, which would not help."""
    match error:
        case ActiveRunError():
            return WireError(400, f"Thread {error.thread_id} already has an active run {error.run_id}.")
        case RunInTerminalStateError():
            return WireError(400, f"Run {error.run_id} is already {error.status}.")
        case ToolOutputsRefusedError() | InvalidTransitionError():
            return WireError(400, str(error))
        case IdempotencyKeyReusedError():
            text = "This Idempotency-Key was already used for a different request. Use a new key."
            return WireError(409, text, type="idempotency_error", headers=NO_RETRY)
    return WireError(409, str(error), headers=NO_RETRY)
