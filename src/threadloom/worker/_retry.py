"""Delays before a retry."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from attrs import field, frozen

from threadloom.errors import InvalidInputError

__all__ = ["STORE_PATIENCE", "RetryPolicy"]


@frozen(kw_only=True)
class RetryPolicy:
    """When to try a failed run again. Each delay is longer than the one before.

    ``retry_at`` of a run is a whole second, so delays are rounded up to one.

    Attributes:
        max_attempts: Maximum number of attempts, including the first and those that ended in a crash. Default 3.

        first_delay: Delay after the first attempt. Default one second.

        factor: Each further delay is this many times as long. Default 2.

        max_delay: Longest delay, before jitter. Default one minute.

        jitter: Largest random share to add to each delay. Default 0.1.

        random: Returns numbers from 0 to 1. Default ``random.random``.
    """

    max_attempts: int = 3
    first_delay: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    max_delay: timedelta = timedelta(seconds=60)
    jitter: float = 0.1
    random: Callable[[], float] = field(default=random.random, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidInputError(f"max_attempts must be at least 1, not {self.max_attempts!r}.")
        if self.first_delay < timedelta() or self.max_delay < timedelta():
            raise InvalidInputError("first_delay and max_delay must not be negative.")
        if self.factor < 1 or self.jitter < 0:
            raise InvalidInputError("factor must be at least 1, and jitter must not be negative.")

    def delay_after(self, attempt: int) -> timedelta:
        """Return the delay after a failed attempt.

        Args:
            attempt: Number of the attempt, starting at 1.
        """
        delay = min(self.first_delay, self.max_delay)
        for _ in range(attempt - 1):
            if delay in {timedelta(), self.max_delay}:
                break
            delay = min(delay * self.factor, self.max_delay)
        return delay * (1 + self.jitter * self.random())


STORE_PATIENCE: Final = RetryPolicy(
    max_attempts=12, first_delay=timedelta(milliseconds=100), max_delay=timedelta(seconds=30), jitter=0
)
"""How a worker retries when the store fails. It gives up after about two minutes, if it gives up at all."""
