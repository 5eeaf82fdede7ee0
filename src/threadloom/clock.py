"""Clocks. Pass one to a store to control time in a test."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """The time as stores and workers see it.

    ``SystemClock`` is the default. ``threadloom.testing.ManualClock`` stands still until a test advances it.
    """

    def time_ns(self) -> int:
        """Return the wall clock time in nanoseconds since 1970. It may jump in either direction."""
        ...

    async def sleep(self, delay: timedelta) -> None:
        """Sleep.

        Args:
            delay: Time to sleep. Zero or less returns at once.
        """
        ...


class SystemClock:
    """The wall clock of the machine and the timer of the event loop."""

    def time_ns(self) -> int:
        """Return the wall clock time in nanoseconds since 1970."""
        return time.time_ns()

    async def sleep(self, delay: timedelta) -> None:
        """Sleep on the loop's monotonic clock.

        Args:
            delay: Time to sleep. Zero or less returns at once.
        """
        await asyncio.sleep(delay.total_seconds())
