"""Waiting for tasks to their end, also while the one who waits is being cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["carried_out", "finish", "until_done"]

T = TypeVar("T")


async def finish(
    *tasks: asyncio.Future[Any], when_cancelled: Callable[[], object] | None = None
) -> asyncio.CancelledError | None:
    """Wait until all ``tasks`` are done, however often the caller is cancelled meanwhile.

    The last such cancellation is returned, for the caller to raise once it has cleaned up; ``when_cancelled`` is
    called at each. What the tasks return or raise is left in them.
    """
    cancelled = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
            if when_cancelled is not None:
                when_cancelled()
    return cancelled


async def until_done(*tasks: asyncio.Future[Any]) -> None:
    """Return when all ``tasks`` are done; a cancellation of the caller goes on then, and not before."""
    cancelled = await finish(*tasks)
    if cancelled is not None:
        raise cancelled


async def carried_out(work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns. A cancellation of the caller goes on only after ``work`` has come to its end.

    So whoever keeps books within ``work`` knows whether a write was made; a store alone cannot tell one who was
    cancelled in the middle of it.
    """
    task = asyncio.create_task(work)
    cancelled = await finish(task)
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not report it: the cancellation goes first
    raise cancelled
