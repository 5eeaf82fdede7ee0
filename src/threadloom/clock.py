"""Time, which a caller may hand in: a test's clock stands still until it is told to move."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What stores and workers ask for the time. ``threadloom.testing.ManualClock`` is the other one."""

    def time_ns(self) -> int:
        """Return the time of day, in nanoseconds since 1970. It may jump, also backwards."""
        ...

    async def sleep(self, delay: timedelta) -> None:
        """Return when ``delay`` has gone by; at once when it is not positive."""
        ...


class SystemClock:
    """The machine's own clock and the event loop's own timer."""

    def time_ns(self) -> int:
        """Return the time of day, in nanoseconds since 1970."""
        return time.time_ns()

    async def sleep(self, delay: timedelta) -> None:
        """Return when ``delay`` has gone by on the loop's monotonic clock."""
        await asyncio.sleep(delay.total_seconds())
