"""How a waiting task hears that something changed: a topic is rung, and whoever listens to it looks again.

Bells carry no content. A listener that was rung between two looks finds its bell still ringing, so nothing is missed
between reading and waiting; one that is rung twice looks once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from attrs import frozen

__all__ = ["QUEUE", "EventsTopic", "Listener", "RunTopic", "Signals", "Topic"]


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
    """What is there for workers to take."""


QUEUE: Final = QueueTopic()
Topic = RunTopic | EventsTopic | QueueTopic


class Listener:
    """One task's bell."""

    def __init__(self, slow_look: timedelta | None = None) -> None:
        self._rung = asyncio.Event()
        self._topics: set[Topic] = set()
        self._is_any = False
        self._slow_look = None if slow_look is None else slow_look.total_seconds()

    def ring(self, topic: Topic | None = None) -> None:
        """Let ``wait`` return, now or when it is called next, with the topic, or for any where there is none."""
        if topic is None:
            self._is_any = True
        else:
            self._topics.add(topic)
        self._rung.set()

    async def wait(self) -> frozenset[Topic] | None:
        """Return for which topics the bell was rung since the last return, or none where it may have been for any.

        So it is when it is time for a look all the same.
        """
        try:
            async with asyncio.timeout(self._slow_look):
                await self._rung.wait()
        except TimeoutError:
            return None
        self._rung.clear()
        topics = None if self._is_any else frozenset(self._topics)
        self._topics.clear()
        self._is_any = False
        return topics


class Signals:
    """The bells of one store in one process, by topic."""

    def __init__(self) -> None:
        self._listeners: dict[Topic, set[Listener]] = {}

    def ring(self, topic: Topic) -> None:
        """Ring the bells of all who listen to ``topic``."""
        for listener in self._listeners.get(topic, ()):
            listener.ring(topic)

    def ring_all(self) -> None:
        """Ring every bell: something was missed, or the store is closing."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.ring()

    @contextmanager
    def listening(self, *topics: Topic, slow_look: timedelta | None = None) -> Iterator[Listener]:
        """Yield one listener to all of ``topics``."""
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
