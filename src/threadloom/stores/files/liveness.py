"""Which stores are alive: each open store has one file, locked by its process, with a counter that it increases.

A store is *gone* if it is dead or hung. It is dead if nobody holds the lock of its file (see ``process_lock``). It is
hung if the observer saw its counter stand still for the length of a lease. Only time during which the observer itself
kept looking counts, by its own monotonic clock: wall clocks decide nothing, and after a sleep the observer starts anew.

The file, ``.threadloom/stores/<store_id>``, has two lines: the counter, of 20 digits, and the identity of the process.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from attrs import define

from threadloom.ids import is_id
from threadloom.stores.files import layout, process_lock
from threadloom.stores.files.disk import Disk, naming

__all__ = ["Peers", "StoreFile", "owners_of_temporaries", "remove_left_overs"]

_COUNTER_DIGITS: Final = 20
_COUNTER_BYTES: Final = _COUNTER_DIGITS + 1
_MAX_BYTES: Final = 128
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class StoreFile:
    """The file of a store that this process has open."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._counter = 0

    @classmethod
    def create(cls, disk: Disk, store_id: str) -> StoreFile:
        """Create the file of a new store, locked, with a first heartbeat in it. It appears by one rename."""
        path = disk.where(f"{layout.STORES}/{store_id}")
        while True:
            temporary = disk.temporary()
            file = cls(os.open(temporary, _CREATE, 0o666), path)
            try:
                process_lock.lock(file._fd)
                file.beat()
                with naming(path):
                    os.pwrite(file._fd, f"{process_lock.this_process()}\n".encode(), _COUNTER_BYTES)
                os.rename(temporary, path)
            except BaseException as error:
                process_lock.unlock(file._fd)
                # Before it was locked, another process may have removed it, taking it for a left-over: try again.
                is_removed = isinstance(error, FileNotFoundError) and not os.path.lexists(temporary)
                disk.discard(temporary)
                if not is_removed:
                    raise
            else:
                return file

    def beat(self) -> None:
        """Show the other processes that this store is not hung."""
        self._counter += 1
        with naming(self._path):
            os.pwrite(self._fd, f"{self._counter:0{_COUNTER_DIGITS}}\n".encode(), 0)

    def close(self) -> None:
        """Remove the file and release its lock. From now on the store is dead for everybody, also if that fails."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if process_lock.is_held_here(fd):  # not in a forked child: the file is its parent's
            try:
                os.unlink(self._path)
            except OSError:
                # Without the identity in it, it does not count as alive although this process goes on.
                with suppress(OSError):
                    os.ftruncate(fd, _COUNTER_BYTES)
        process_lock.unlock(fd)


@define
class _Peer:
    """What was seen of a store that is not dead.

    process_id: the process that has it open, 0 if that process is not visible from here.
    is_here: whether this is a store of this process.
    still_seconds: for how long its counter was seen to stand still.
    """

    process_id: int
    is_here: bool
    counter: bytes
    still_seconds: float = 0.0


class Peers:
    """The stores that are open on one directory, as this process sees them. Call ``look`` again and again."""

    def __init__(self, directory: str, lease_seconds: float) -> None:
        self._directory = directory
        self._lease_seconds = lease_seconds
        self._seen: dict[str, _Peer] = {}
        self._vanished: set[str] = set()
        self._last_look: float | None = None

    def look(self, now: float) -> None:
        """Look at the file of every store. ``now`` is the time in seconds on a monotonic clock.

        A pause of more than a third of a lease counts as a third: the observer slept, and perhaps the others did too.
        """
        passed = 0.0 if self._last_look is None else max(0.0, min(now - self._last_look, self._lease_seconds / 3))
        self._last_look = now
        seen: dict[str, _Peer] = {}
        names = self._names()
        for store_id in names:
            peer = self._look_at(store_id)
            if peer is None:
                continue
            before = self._seen.get(store_id)
            if before is not None and before.counter == peer.counter and not peer.is_here:
                peer.still_seconds = before.still_seconds + passed
            seen[store_id] = peer
        self._vanished |= self._seen.keys() - seen.keys() - set(names)
        self._seen = seen

    def is_gone(self, store_id: str) -> bool:
        """Return whether a store is dead now, or was hung at the last look and has not beaten since.

        This reads the store's file, because the store may have been opened after the last look.
        """
        peer = self._look_at(store_id)
        if peer is None:
            return True
        before = self._seen.get(store_id)
        return (
            before is not None
            and before.counter == peer.counter
            and before.still_seconds >= self._lease_seconds
        )  # fmt: skip

    def is_dead(self, store_id: str) -> bool:
        """Return whether a store is dead, so that it never writes again. A hung one may wake."""
        return self._look_at(store_id) is None

    def gone(self) -> frozenset[str]:
        """Return the stores that are gone and still have a file, or were seen alive and have lost it since.

        They may have left runs under their leases; call ``remove_dead`` for each when those are reclaimed.
        """
        return frozenset(store_id for store_id in {*self._names(), *self._vanished} if self.is_gone(store_id))

    def process_ids(self) -> frozenset[int]:
        """Return the other processes that had a store open at the last look, 0 for those not visible from here."""
        return frozenset(peer.process_id for peer in self._seen.values() if not peer.is_here)

    def remove_dead(self, store_id: str) -> None:
        """Remove the file of a store if it is dead. A hung store keeps its file."""
        if self.is_dead(store_id):
            self._vanished.discard(store_id)
            if is_id(store_id):
                with suppress(FileNotFoundError):
                    os.unlink(f"{self._directory}/{store_id}")

    def _names(self) -> list[str]:
        with os.scandir(self._directory) as entries:
            return [entry.name for entry in entries if is_id(entry.name) and entry.is_file(follow_symlinks=False)]

    def _look_at(self, store_id: str) -> _Peer | None:
        """Return what the file of a store shows now, None if the store is dead."""
        if not is_id(store_id):
            return None
        try:
            holder, is_here, head = process_lock.examine(f"{self._directory}/{store_id}", _MAX_BYTES)
        except FileNotFoundError:
            return None
        counter, _, rest = head.partition(b"\n")
        identity = rest.decode(errors="replace").strip()
        if holder is None and process_lock.is_running(identity):
            holder = int(identity.split()[0])
        return None if holder is None else _Peer(holder, is_here, counter)


def owners_of_temporaries(disk: Disk) -> dict[str, list[str]]:
    """Return the paths of all temporary files and of the trash, by the id of the store that made them.

    They are named ``<store_id>-<number>``. What has another name was made by nobody: it is listed under ''.
    """
    owners: dict[str, list[str]] = {}
    for directory in (layout.TMP, layout.TRASH):
        for name in disk.names(directory):
            owners.setdefault(name.rpartition("-")[0], []).append(f"{directory}/{name}")
    return owners


def remove_left_overs(disk: Disk, peers: Peers) -> None:
    """Remove the temporary files and the trash of dead stores. Links are removed, not followed.

    A hung store keeps what it has: it may wake in the middle of a transaction, between writing a file and renaming it.
    """
    # Listed first, judged afterwards: a store has its file before it makes any other.
    for store_id, paths in owners_of_temporaries(disk).items():
        if not peers.is_dead(store_id):
            continue
        for path in paths:
            with suppress(OSError):  # the next store that opens tries again
                # A store that is about to appear has locked its file, under a temporary name, and no other yet.
                if process_lock.examine(disk.where(path), 0).holder is None:
                    disk.remove_tree(path)
