"""How a store hears of what other processes change: inotify, read by the event loop.

Only directories that somebody listens to are watched, one watch each. Where there is no inotify, or its limits are
reached, listeners look at the files now and then instead.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field

try:
    import asyncinotify
except ImportError:  # only on Linux
    asyncinotify = None  # type: ignore[assignment]

__all__ = ["Watch"]

_logger = logging.getLogger("threadloom")

_MOST_AT_ONCE: Final = 64  # events, before all else that the loop has to do

Heard = Callable[[str | None], None]
"""Called with the name of what was written, or none where that is unknown."""


@define(eq=False)
class _Watched:
    handle: object
    log: str | None
    heard: list[Heard] = field(factory=list)


class Watch:
    """Directories whose files other processes write."""

    def __init__(self) -> None:
        self._inotify: asyncinotify.Inotify | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: dict[str, _Watched] = {}

    def start(self, missed: Callable[[], None]) -> None:
        """Begin to hear, where the system lets us; call ``missed`` when it has lost count."""
        if asyncinotify is None:
            return
        try:
            self._inotify = asyncinotify.Inotify(cache_size=_MOST_AT_ONCE, sync_timeout=0)
        except OSError as error:
            _logger.warning("inotify unavailable", exc_info=error)
            return
        os.set_blocking(self._inotify.fd, False)  # asyncinotify 4.4.4 takes O_CLOEXEC for O_NONBLOCK
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inotify.fd, self._read, self._inotify, missed)

    def close(self) -> None:
        """Stop hearing."""
        if self._inotify is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None
        self._watched.clear()

    @contextmanager
    def watching(self, directory: str, heard: Heard, *, log: str | None = None) -> Iterator[bool]:
        """Call ``heard`` for what is written in ``directory``; yield whether that can be heard at all.

        Where it has a ``log``, also for each write into that, as its writer may keep it open, and for what is deleted.
        """
        watched = self._add(directory, log)
        if watched is None:
            yield False
            return
        watched.heard.append(heard)
        try:
            yield True
        finally:
            watched.heard.remove(heard)
            if not watched.heard:
                self._remove(directory, watched)

    def _add(self, directory: str, log: str | None) -> _Watched | None:
        if self._inotify is None:
            return None
        if directory in self._watched:
            return self._watched[directory]
        mask = asyncinotify.Mask
        kinds = mask.CLOSE_WRITE | mask.MOVED_TO | mask.DELETE_SELF | mask.MOVE_SELF | mask.ONLYDIR
        if log is not None:
            # For as long as anybody has a file open that was in it, the directory itself is not said to be gone.
            # Not elsewhere: the beat of a life would wake all who listen for its end, and they would beat in turn.
            kinds |= mask.MODIFY | mask.DELETE
        try:
            handle = self._inotify.add_watch(directory, kinds)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                _logger.warning("inotify limit reached", extra={"path": directory}, exc_info=error)
            return None
        self._watched[directory] = _Watched(handle, log)
        return self._watched[directory]

    def _remove(self, directory: str, watched: _Watched) -> None:
        if self._inotify is None or self._watched.get(directory) is not watched:
            return
        del self._watched[directory]
        try:
            self._inotify.rm_watch(watched.handle)  # type: ignore[arg-type]
        except (OSError, ValueError):
            return  # the directory is gone, and its watch with it; or the whole of inotify, at the end of a process

    def _read(self, inotify: asyncinotify.Inotify, missed: Callable[[], None]) -> None:
        # Not by the package's own waiting: where the loop is interrupted, as by a signal that ends a server, that reads
        # twice for what was said to be there once.
        for _ in range(_MOST_AT_ONCE):
            event = inotify.sync_get()
            if event is None:
                return
            self._hear(event, missed)

    def _hear(self, event: asyncinotify.Event, missed: Callable[[], None]) -> None:
        mask = asyncinotify.Mask
        if mask.Q_OVERFLOW in event.mask:
            _logger.warning("inotify queue overflowed")
            missed()
            return
        directory = None if event.watch is None else str(event.watch.path)
        watched = None if directory is None else self._watched.get(directory)
        if directory is None or watched is None or watched.handle is not event.watch:
            return
        if mask.IGNORED in event.mask:
            del self._watched[directory]
        name = None if event.name is None else str(event.name)
        if mask.MODIFY in event.mask and name != watched.log:
            return  # a record that is written in place, and is not whole before it is closed
        for heard in tuple(watched.heard):
            heard(name)
