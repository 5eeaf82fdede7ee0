"""How long to wait before something is tried again."""

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
    """Gives a run that failed another attempt, each after a longer wait than the one before.

    ``max_attempts`` counts the first; attempts that ended in a crash count too. The first wait is ``first_delay``,
    each next one ``factor`` times as long, up to ``max_delay``; to every one a random share of it is added, up to
    ``jitter``. As a run's ``retry_at`` is a whole second, waits are rounded up to one. ``random`` returns numbers
    from 0 to 1.
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
            raise InvalidInputError("factor must be at least 1, and jitter not negative.")

    def delay_after(self, attempt: int) -> timedelta:
        """Return how long to wait after attempt number ``attempt``, from 1 up, has failed."""
        delay = min(self.first_delay, self.max_delay)
        for _ in range(attempt - 1):
            if delay in {timedelta(), self.max_delay}:
                break
            delay = min(delay * self.factor, self.max_delay)
        return delay * (1 + self.jitter * self.random())


STORE_PATIENCE: Final = RetryPolicy(
    max_attempts=12, first_delay=timedelta(milliseconds=100), max_delay=timedelta(seconds=30), jitter=0
)
"""How a worker bears with a store that cannot do its work: about two minutes where it has to give up at all."""
