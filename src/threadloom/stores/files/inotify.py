"""How a store learns what other processes write: inotify, read by the event loop.

Only directories with a callback are watched, with one watch each. Where inotify is missing, or has reached its limits,
``watching`` says so, and the caller looks at the files now and then instead.
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

__all__ = ["Callback", "Watcher"]

_logger = logging.getLogger("threadloom")

_MAX_EVENTS: Final = 64  # handled at once, before the loop's other work gets its chance

Callback = Callable[[str | None], None]
"""Called with the name of the file that was written, None if it is unknown or concerns the directory itself."""


@define(eq=False)
class _Watch:
    handle: object
    log: str | None
    callbacks: list[Callback] = field(factory=list)


class Watcher:
    """Watches directories in which other processes write."""

    def __init__(self) -> None:
        self._inotify: asyncinotify.Inotify | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watches: dict[str, _Watch] = {}

    def start(self, missed: Callable[[], None]) -> None:
        """Start if the system allows it. Call ``missed`` whenever the system has dropped notifications."""
        if asyncinotify is None:
            return
        try:
            self._inotify = asyncinotify.Inotify(cache_size=_MAX_EVENTS, sync_timeout=0)
        except OSError as error:
            _logger.warning("inotify is unavailable", exc_info=error)
            return
        os.set_blocking(self._inotify.fd, False)  # asyncinotify 4.4.4 mistakes O_CLOEXEC for O_NONBLOCK
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inotify.fd, self._read, self._inotify, missed)

    def close(self) -> None:
        """Stop. No callback is called afterwards."""
        if self._inotify is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None
        self._watches.clear()

    @contextmanager
    def watching(self, directory: str, callback: Callback, *, log: str | None = None) -> Iterator[bool]:
        """Call ``callback`` for every file that is written in ``directory``; yield whether the directory is watched.

        A file counts as written when its writer closes it or renames it into the directory. ``log`` names a file that
        its writers keep open: each write into it is notified. With a ``log``, so is each deletion in the directory. All
        callers pass the same ``log`` for the same directory.
        """
        watch = self._add(directory, log)
        if watch is None:
            yield False
            return
        watch.callbacks.append(callback)
        try:
            yield True
        finally:
            watch.callbacks.remove(callback)
            if not watch.callbacks:
                self._remove(directory, watch)

    def _add(self, directory: str, log: str | None) -> _Watch | None:
        if self._inotify is None:
            return None
        if directory in self._watches:
            return self._watches[directory]
        mask = asyncinotify.Mask
        kinds = mask.CLOSE_WRITE | mask.MOVED_TO | mask.DELETE_SELF | mask.MOVE_SELF | mask.ONLYDIR
        if log is not None:
            # DELETE, because the kernel does not report the end of a directory while one of its files is still open.
            # MODIFY only here: elsewhere each heartbeat would wake everybody who waits for a store to end, and they
            # would write their own heartbeats in turn.
            kinds |= mask.MODIFY | mask.DELETE
        try:
            handle = self._inotify.add_watch(directory, kinds)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                _logger.warning("inotify cannot watch %s", directory, exc_info=error, extra={"path": directory})
            return None
        self._watches[directory] = _Watch(handle, log)
        return self._watches[directory]

    def _remove(self, directory: str, watch: _Watch) -> None:
        if self._inotify is None or self._watches.get(directory) is not watch:
            return
        del self._watches[directory]
        try:
            self._inotify.rm_watch(watch.handle)  # type: ignore[arg-type]
        except (OSError, ValueError):
            return  # the directory is gone and its watch with it, or the process is ending and inotify is closed

    def _read(self, inotify: asyncinotify.Inotify, missed: Callable[[], None]) -> None:
        # Not the package's own asynchronous reading: if a signal interrupts the loop, it reads twice after one
        # notification, and the second read finds nothing.
        for _ in range(_MAX_EVENTS):
            if self._inotify is not inotify:
                return  # closed, perhaps by a callback
            event = inotify.sync_get()
            if event is None:
                return
            self._notify(event, missed)
        # The package has perhaps read more events already, and the descriptor does not become readable for those.
        asyncio.get_running_loop().call_soon(self._read, inotify, missed)

    def _notify(self, event: asyncinotify.Event, missed: Callable[[], None]) -> None:
        mask = asyncinotify.Mask
        if mask.Q_OVERFLOW in event.mask:
            _logger.warning("The inotify queue overflowed")
            missed()
            return
        directory = None if event.watch is None else str(event.watch.path)
        watch = None if directory is None else self._watches.get(directory)
        if directory is None or watch is None or watch.handle is not event.watch:
            return  # of a watch that was removed while its events were queued
        if mask.IGNORED in event.mask:
            del self._watches[directory]  # the kernel has dropped the watch: the directory is gone
        name = None if event.name is None else str(event.name)
        if mask.MODIFY in event.mask and name != watch.log:
            return  # a record that is being written in place: it is not whole before it is closed
        for callback in tuple(watch.callbacks):
            callback(name)
