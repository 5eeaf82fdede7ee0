"""The threads that a backend offers for claims, in memory: ordered, with the moments at which more become due."""

from __future__ import annotations

import heapq

from threadloom.backend import Candidates
from threadloom.rules.queue import Standing

__all__ = ["CandidateQueue"]

_MOST_OVERDUE = 64  # threads returned at once


class CandidateQueue:
    """Keeps the standing of every thread with active runs, and answers ``Backend.candidates`` from it.

    A thread that was returned is withheld until ``update`` or ``offer_again`` is called for it. Entries of the heaps
    that no longer agree with a thread's standing are dropped when they are met.
    """

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._withheld: dict[str, int | None] = {}  # until a moment, or until the next update
        self._ready: list[tuple[int, str]] = []  # by the sequence of the thread's first active run
        self._by_hand: list[tuple[int, str]] = []  # the same, for threads whose turn is a run driven by hand
        self._due: list[tuple[int, str]] = []  # by a moment: a run may be claimed, or must be expired

    def is_withheld(self, thread_id: str) -> bool:
        """Return whether a thread was returned, and waits for an update."""
        return thread_id in self._withheld

    def update(self, thread_id: str, standing: Standing) -> bool:
        """Take in the standing of a thread after a transaction; return whether the queue has something new to offer."""
        old = self._standings.get(thread_id)
        if old == standing and thread_id not in self._withheld:
            return False
        self._withheld.pop(thread_id, None)
        if standing.sequence is None:
            self._standings.pop(thread_id, None)
            return False
        self._standings[thread_id] = standing
        return self._enter(thread_id, standing)

    def offer_again(self, thread_id: str, *, at_ns: int | None = None) -> bool:
        """Offer a thread again that was withheld, at a moment or now; return whether there was one to offer."""
        if thread_id not in self._withheld:
            return False
        if at_ns is not None:
            self._withheld[thread_id] = at_ns
            heapq.heappush(self._due, (at_ns, thread_id))
            return True
        self._withheld.pop(thread_id, None)
        return thread_id in self._standings and self._enter(thread_id, self._standings[thread_id])

    def take(self, limit: int, *, adopt: bool, now_ns: int) -> Candidates:
        """Return what ``Backend.candidates`` returns, and withhold it."""
        overdue: list[str] = []
        while self._due and self._due[0][0] <= now_ns and len(overdue) < _MOST_OVERDUE:
            due_ns, thread_id = heapq.heappop(self._due)
            standing = self._standings.get(thread_id, _NOBODY)
            if thread_id in self._withheld:
                if due_ns == self._withheld[thread_id]:
                    self.offer_again(thread_id)
            elif due_ns == standing.expires_at_ns:
                self._withheld[thread_id] = None
                overdue.append(thread_id)
            elif due_ns == standing.ready_at_ns:
                heapq.heappush(self._ready, (standing.sequence or 0, thread_id))
        if overdue:
            return Candidates(overdue_ids=overdue, next_due_ns=now_ns)
        taken: dict[str, int] = {}
        while len(taken) < limit and (first := self._pop(adopt=adopt)) is not None:
            sequence, thread_id = first
            taken[thread_id] = sequence
        return Candidates(taken, next_due_ns=self._due[0][0] if self._due else None)

    def _enter(self, thread_id: str, standing: Standing) -> bool:
        place = (standing.sequence or 0, thread_id)
        if standing.is_by_hand:
            heapq.heappush(self._by_hand, place)
        if standing.is_ready and standing.ready_at_ns is None:
            heapq.heappush(self._ready, place)
        elif standing.is_ready and standing.ready_at_ns is not None:
            heapq.heappush(self._due, (standing.ready_at_ns, thread_id))
        if standing.expires_at_ns is not None:
            heapq.heappush(self._due, (standing.expires_at_ns, thread_id))
        return standing.is_ready or standing.is_by_hand or standing.expires_at_ns is not None

    def _pop(self, *, adopt: bool) -> tuple[int, str] | None:
        heaps = [heap for heap in ((self._ready, self._by_hand) if adopt else (self._ready,)) if self._has_first(heap)]
        if not heaps:
            return None
        place = heapq.heappop(min(heaps, key=lambda heap: heap[0]))
        self._withheld[place[1]] = None
        return place

    def _has_first(self, heap: list[tuple[int, str]]) -> bool:
        """Drop the entries at the head of a heap that are out of date; return whether one is left."""
        while heap:
            sequence, thread_id = heap[0]
            standing = self._standings.get(thread_id, _NOBODY)
            is_offered = standing.is_by_hand if heap is self._by_hand else standing.is_ready
            if is_offered and standing.sequence == sequence and thread_id not in self._withheld:
                return True
            heapq.heappop(heap)
        return False


_NOBODY = Standing()
