"""Waiting for tasks until they are done, even if the caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["carried_out", "finish", "until_done"]

T = TypeVar("T")


async def finish(
    *tasks: asyncio.Future[Any], when_cancelled: Callable[[], object] | None = None
) -> asyncio.CancelledError | None:
    """Wait until all ``tasks`` are done, even if the caller is cancelled, once or repeatedly.

    The tasks keep their results and exceptions.

    Args:
        tasks: The tasks to wait for.

        when_cancelled: Called each time the caller is cancelled. None, the default, to do nothing.

    Returns:
        The last cancellation, which the caller must raise after its cleanup, or None.
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
    """Wait until all ``tasks`` are done. A cancellation of the caller is raised afterwards.

    Args:
        tasks: The tasks to wait for.
    """
    cancelled = await finish(*tasks)
    if cancelled is not None:
        raise cancelled


async def carried_out(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end and return its result. A cancellation of the caller is raised afterwards.

    Code inside ``work`` therefore knows whether a write succeeded. A caller that is cancelled during a store's write
    does not.

    Args:
        work: The coroutine to run.
    """
    task = asyncio.create_task(work)
    cancelled = await finish(task)
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # retrieved so that asyncio does not log it; the cancellation takes precedence
    raise cancelled
