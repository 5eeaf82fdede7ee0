"""The threads in which this process may find a run to claim, with what it learns of other processes' threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

import attrs

from threadloom.backend import Candidates
from threadloom.candidates import CandidateQueue
from threadloom.rules.queue import Standing
from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.queue_entry import read_first_sequence

__all__ = ["ClaimQueue"]

_MOST_UNKNOWN: Final = 64  # threads that are looked at together


class ClaimQueue(CandidateQueue):
    """Offers threads. For the writing thread, except for ``look_at``, ``look_at_all`` and ``set_aside``.

    What other processes did is learned from the names of the index's entries, and of an entry no more than its place:
    a transaction on the thread finds out the rest. ``is_current`` says whether this process wrote in a thread last,
    ``expiry_of`` when the first of its active runs has to be expired.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.is_current: Callable[[str], bool] = lambda _: False
        self.expiry_of: Callable[[str], int | None] = lambda _: None
        self._disk = disk
        self._changed: dict[str, None] = {}
        self._known: set[str] = set()
        self._set_aside: deque[str] = deque()
        self._guessed: set[str] = set()
        self._unknown: dict[str, None] = {}  # those of them that nobody has looked at yet
        self._must_look_at_all = True

    def look_at(self, thread_id: str) -> None:
        """Note that another process changed something in a thread."""
        self._changed[thread_id] = None

    def look_at_all(self) -> None:
        """Note that nobody knows what has changed."""
        self._must_look_at_all = True

    def set_aside(self, thread_id: str) -> None:
        """Note that a transaction has failed. If the thread was returned, it is not returned before it is looked at."""
        self._set_aside.append(thread_id)

    def is_wanted(self, thread_id: str) -> bool:
        """Return whether the queue waits for the standing of a thread, whatever a transaction did in it."""
        return thread_id in self._guessed or self.is_withheld(thread_id)

    def update(self, thread_id: str, standing: Standing) -> bool:
        """Take in the standing of a thread after a transaction."""
        self._unknown.pop(thread_id, None)
        self._guessed.discard(thread_id)
        if standing.sequence is None:
            self._known.discard(thread_id)
        else:
            self._known.add(thread_id)
        return super().update(thread_id, standing)

    def take(self, limit: int, *, adopt: bool, now_ns: int) -> Candidates:
        """Return threads to try, after a look at what has changed in the index."""
        while self._set_aside:
            thread_id = self._set_aside.popleft()
            if self.is_withheld(thread_id):
                super().update(thread_id, Standing())
                self._guessed.add(thread_id)
        if self._must_look_at_all:
            self._must_look_at_all = False
            self._changed.update((name, None) for name in self._disk.names(layout.QUEUE) if name not in self._known)
        while self._changed:
            thread_id, _ = self._changed.popitem()
            if self.is_withheld(thread_id):
                continue  # the transaction that is under way finds out
            if thread_id in self._known and thread_id not in self._guessed and self.is_current(thread_id):
                continue  # it was our own change
            sequence = read_first_sequence(self._disk, thread_id)
            self.update(thread_id, Standing(sequence=sequence, is_ready=sequence is not None))
            if sequence is not None:
                self._unknown[thread_id] = None
                self._guessed.add(thread_id)
        found = super().take(limit, adopt=adopt, now_ns=now_ns)
        if limit or found.overdue_ids:
            return found
        self._look_for_overdue()
        return super().take(0, adopt=adopt, now_ns=now_ns)

    def _look_for_overdue(self) -> None:
        # Nobody asks for a run, and some of these may be overdue. No lock is taken to find out: others may claim them.
        for thread_id in list(islice(self._unknown, _MOST_UNKNOWN)):
            del self._unknown[thread_id]
            expires_at_ns = self.expiry_of(thread_id)
            guess = self._standings.get(thread_id)
            if guess is not None and expires_at_ns is not None and not self.is_withheld(thread_id):
                super().update(thread_id, attrs.evolve(guess, expires_at_ns=expires_at_ns))
