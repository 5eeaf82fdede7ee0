"""How a waiting task learns that something changed: a change notifies a topic, and its listeners wake and look again.

A notification carries no content. A listener that is notified between two waits returns from the next one at once, so
nothing is missed between reading and waiting. Two notifications before a wait are one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from attrs import frozen

__all__ = ["QUEUE", "EventsTopic", "Listener", "Notifier", "RunTopic", "Topic"]


@frozen
class RunTopic:
    """The status, lease or metadata of one run."""

    thread_id: str
    run_id: str


@frozen
class EventsTopic:
    """The event log of one run."""

    thread_id: str
    run_id: str


@frozen
class QueueTopic:
    """The runs that workers may claim."""


QUEUE: Final = QueueTopic()
Topic = RunTopic | EventsTopic | QueueTopic


class Listener:
    """Waits for notifications of some topics. For one task."""

    def __init__(self, slow_look: timedelta | None = None) -> None:
        self._notified = asyncio.Event()
        self._topics: set[Topic] = set()
        self._is_any = False
        self._slow_look = None if slow_look is None else slow_look.total_seconds()

    def wake(self, topic: Topic | None = None) -> None:
        """Let ``wait`` return ``topic``, now or at its next call; without a topic any of them may have changed."""
        if topic is None:
            self._is_any = True
        else:
            self._topics.add(topic)
        self._notified.set()

    async def wait(self, timeout: float | None = None) -> frozenset[Topic] | None:
        """Return the topics that were notified since the last return, or None where any of them may have changed.

        timeout: seconds after which it returns None without a notification; None waits for the listener's slow look,
            or for ever where it has none.
        """
        try:
            async with asyncio.timeout(self._slow_look if timeout is None else timeout):
                await self._notified.wait()
        except TimeoutError:
            return None
        self._notified.clear()
        topics = None if self._is_any else frozenset(self._topics)
        self._topics.clear()
        self._is_any = False
        return topics


class Notifier:
    """The listeners of one store in one process, by topic."""

    def __init__(self) -> None:
        self._listeners: dict[Topic, set[Listener]] = {}

    @property
    def is_listened_to(self) -> bool:
        """Whether there is any listener."""
        return bool(self._listeners)

    def has_listener(self, topic: Topic) -> bool:
        """Return whether anybody listens to a topic."""
        return topic in self._listeners

    def notify(self, *topics: Topic) -> None:
        """Wake the listeners to ``topics``."""
        for topic in topics:
            for listener in self._listeners.get(topic, ()):
                listener.wake(topic)

    def notify_all(self) -> None:
        """Wake every listener: a notification may have been missed, or the store is closing."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.wake()

    @contextmanager
    def listening(self, *topics: Topic, slow_look: timedelta | None = None) -> Iterator[Listener]:
        """Yield a listener to ``topics``.

        slow_look: how long a wait may go without a notification before it returns all the same; None for ever.
        """
        listener = Listener(slow_look)
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)
        try:
            yield listener
        finally:
            for topic in topics:
                self._listeners[topic].discard(listener)
                if not self._listeners[topic]:
                    del self._listeners[topic]
