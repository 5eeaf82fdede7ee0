"""Who is alive: a file for each store that takes runs, locked by its process and beaten by its event loop.

What lies in the file is a counter. Its workers are dead when nobody has the lock (``_owner``); they are hung when the
counter was seen to stand still for the length of a lease, in time that the onlooker spent looking: wall clocks decide
nothing, and an onlooker that slept itself has seen nothing.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from typing import Final

from attrs import define

from threadloom.ids import is_id
from threadloom.stores.files._opened import naming
from threadloom.stores.files._owner import disown, holder_of, lives, our_key, own, this_process

__all__ = ["Life", "Peer", "Peers"]

_COUNTER_DIGITS: Final = 20
_COUNTER_BYTES: Final = _COUNTER_DIGITS + 1
_MOST_BYTES: Final = 128
# Not for writing where that can be had: whoever watches the directory would take the end of each look for a death.
_LOOK: Final = os.O_RDONLY if sys.platform == "linux" else os.O_RDWR


class Life:
    """The file of one store of this process."""

    def __init__(self, temporary: str, path: str) -> None:
        self._path = path
        self._beats = 0
        self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        own(self._fd)
        try:
            self.beat()
            with naming(path):
                os.pwrite(self._fd, f"{this_process()}\n".encode(), _COUNTER_BYTES)
            os.rename(temporary, path)
        except BaseException:
            disown(self._fd)
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def beat(self) -> None:
        """Say that the process still does what its event loop asks of it."""
        self._beats += 1
        with naming(self._path):
            os.pwrite(self._fd, f"{self._beats:0{_COUNTER_DIGITS}}\n".encode(), 0)

    def end(self) -> None:
        """Give the claim to be alive up. The file stays, and tells the others to look for what was left."""
        with suppress(OSError):  # the lock is given up all the same
            os.ftruncate(self._fd, _COUNTER_BYTES)  # the process may go on without it
        disown(self._fd)


@define
class Peer:
    """What was seen of a file: who has its lock, and for how long its counter stands still."""

    process_id: int
    counter: bytes
    is_ours: bool = False
    still_seconds: float = 0.0


class Peers:
    """The lives on one directory, as one process sees them: ``look`` is called again and again."""

    def __init__(self, directory: str, lease_seconds: float) -> None:
        self._directory = directory
        self._lease_seconds = lease_seconds
        self._seen: dict[str, Peer] = {}
        self._last_look: float | None = None

    def look(self, now: float) -> None:
        """Look at every file once more, at ``now`` on a monotonic clock.

        A pause since the last look that is longer than a third of a lease counts as no longer: the onlooker slept.
        """
        passed = 0.0 if self._last_look is None else min(now - self._last_look, self._lease_seconds / 3)
        self._last_look = now
        seen: dict[str, Peer] = {}
        for life in self.names():
            peer = self._look_at(f"{self._directory}/{life}")
            if peer is None:
                continue
            old = self._seen.get(life)
            if old is not None and old.counter == peer.counter:
                peer.still_seconds = old.still_seconds + passed
            seen[life] = peer
        self._seen = seen

    def is_gone(self, life: str) -> bool:
        """Return whether it is dead at this moment, or was hung at the last look and still is. One never seen is dead.

        It may have begun since the last look, so the file itself is asked.
        """
        now = self._look_at(f"{self._directory}/{life}") if is_id(life) else None
        if now is None:
            return True
        seen = self._seen.get(life)
        return seen is not None and seen.counter == now.counter and seen.still_seconds >= self._lease_seconds

    @property
    def process_ids(self) -> set[int]:
        """The other processes that were seen alive, 0 for one that cannot be told from here."""
        return {peer.process_id for peer in self._seen.values() if not peer.is_ours}

    def gone(self) -> frozenset[str]:
        """Return the lives that have a file and are gone."""
        return frozenset(life for life in self.names() if self.is_gone(life))

    def names(self) -> list[str]:
        """Return all lives that have a file, alive or not."""
        return [name for name in os.listdir(self._directory) if is_id(name)]

    def bury(self, life: str) -> None:
        """Remove the file of a life whose runs were taken back, if it is dead; a hung one may wake."""
        path = f"{self._directory}/{life}"
        if self._look_at(path) is None:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _look_at(self, path: str) -> Peer | None:
        try:
            if our_key(path) is not None:
                # Whether it is hung is for others to say: who looks is not.
                return Peer(os.getpid(), secrets.token_bytes(8), is_ours=True)
            fd = os.open(path, _LOOK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            holder = holder_of(fd)
            counter, _, process = os.pread(fd, _MOST_BYTES, 0).partition(b"\n")
            if holder is None and lives(process.decode(errors="replace").strip()):
                holder = int(process.split()[0])
            return None if holder is None else Peer(holder, counter)
        finally:
            os.close(fd)
