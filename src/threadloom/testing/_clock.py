"""A clock that stands still until it is told to move."""

from __future__ import annotations

import asyncio
from datetime import timedelta

__all__ = ["ManualClock"]

_MICROSECOND = 1_000


class ManualClock:
    """A ``Clock`` whose time of day and whose sleepers move only when a test says so."""

    def __init__(self, start_ns: int = 1_800_000_000_000_000_000) -> None:
        self._wall_ns = start_ns
        self._slept = timedelta()
        self._sleepers: list[tuple[timedelta, asyncio.Future[None]]] = []

    def time_ns(self) -> int:
        """Return the time of day as it was set, in nanoseconds since 1970."""
        return self._wall_ns

    async def sleep(self, delay: timedelta) -> None:
        """Return once ``advance`` has moved the clock by ``delay`` in all."""
        if delay <= timedelta():
            await asyncio.sleep(0)
            return
        sleeper = (self._slept + delay, asyncio.get_running_loop().create_future())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1]
        finally:
            self._sleepers.remove(sleeper)

    @property
    def sleepers(self) -> int:
        """How many tasks sleep on this clock."""
        return len(self._sleepers)

    def advance(self, delay: timedelta) -> None:
        """Move on by ``delay``: the time of day, and all who sleep."""
        self._wall_ns += delay // timedelta(microseconds=1) * _MICROSECOND
        self._slept += delay
        for due, future in self._sleepers:
            if due <= self._slept and not future.done():
                future.set_result(None)

    def step_wall_clock(self, delay: timedelta) -> None:
        """Set the time of day on by ``delay``, or back where it is negative, as a person would: nobody wakes."""
        self._wall_ns += delay // timedelta(microseconds=1) * _MICROSECOND
