"""Checking ids and making new ones.

An id becomes the name of a directory or file, so a malformed id is refused before any path is built from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final

import uuid_utils

from threadloom.errors import InvalidIdError

__all__ = [
    "check_id",
    "is_id",
    "new_assistant_id",
    "new_call_id",
    "new_message_id",
    "new_run_id",
    "new_step_id",
    "new_thread_id",
]

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def is_id(value: object) -> bool:
    """Return whether ``value`` is a valid id. No prefix is required."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def check_id(*values: object) -> None:
    """Raise ``InvalidIdError`` for the first of ``values`` that is not a valid id."""
    for value in values:
        if not is_id(value):
            raise InvalidIdError(value)


def _new(prefix: str) -> str:
    return prefix + uuid_utils.uuid7().hex


# A version 7 UUID starts with the time, so ids sort in the order of their creation.
new_assistant_id: Callable[[], str] = partial(_new, "asst_")
new_thread_id: Callable[[], str] = partial(_new, "thread_")
new_message_id: Callable[[], str] = partial(_new, "msg_")
new_run_id: Callable[[], str] = partial(_new, "run_")
new_step_id: Callable[[], str] = partial(_new, "step_")
new_call_id: Callable[[], str] = partial(_new, "call_")
