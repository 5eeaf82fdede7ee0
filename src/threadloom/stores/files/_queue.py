"""Whose turn it is in each thread, and which threads have anything for a worker: an index beside the runs.

* ``turns/<thread_id>.json`` has the last sequence number given to a run of the thread, and its active runs in order. It
  names every active run, and may name runs that are settled or were never made: each is looked at before it counts.
* ``queue/<thread_id>`` is an empty file, there while the thread has active runs. It is opened anew whenever there may
  be something to take, so that whoever watches the directory hears of it.

Both can be thrown away: they are made again from the runs, which are the truth.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable, Iterable

import orjson
from attrs import define, field

from threadloom import codec
from threadloom.models import Run
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._run_files import Seen

__all__ = ["Candidates", "Turn", "TurnBook"]


@define
class Turn:
    """The runs of one thread that are not settled, as (sequence, run id), and the last number that was given."""

    last_sequence: int = 0
    active: list[tuple[int, str]] = field(factory=list)

    @classmethod
    def of(cls, active: Iterable[Run], *, last_sequence: int) -> Turn:
        """Return the turn of a thread with these active runs. Those without a number come first, in their own order."""
        ordered = sorted(active, key=lambda run: (run.sequence or 0, run.created_at, run.id))
        return cls(last_sequence, [(run.sequence or 0, run.id) for run in ordered])


class TurnBook:
    """The turns on disk. Changes are made under the lock of the thread."""

    def __init__(self, layout: Layout, disk: Disk, seen: Callable[[str], Seen], boot: str) -> None:
        self._layout = layout
        self._disk = disk
        self._seen = seen
        self.boot = boot

    def read(self, thread_id: str) -> Turn:
        """Return the turn of a thread, made again from its runs where it is missing or torn."""
        return self.peek(thread_id) or self.rebuild(thread_id)

    def peek(self, thread_id: str) -> Turn | None:
        """Return the turn of a thread as it lies there, or none; needs no lock."""
        turn, boot = self._load(thread_id)
        return turn if boot == self.boot else None  # never synced: after a start of the machine it may be an old one

    def first_sequence(self, thread_id: str) -> int:
        """Return the number of the first active run, 0 where none can be told, also from a turn that does not count."""
        turn, _ = self._load(thread_id)
        return turn.active[0][0] if turn is not None and turn.active else 0

    def _load(self, thread_id: str) -> tuple[Turn | None, str]:
        try:
            record = orjson.loads(self._disk.read(self._layout.turn(thread_id)))
            active = [(sequence, run_id) for sequence, run_id in record["active"]]
            return Turn(record["sequence"], active), record["boot"]
        except (OSError, KeyError, TypeError, ValueError):
            return None, ""

    def rebuild(self, thread_id: str) -> Turn:
        """Return the turn that the thread's runs say, and write it down."""
        seen = self._seen(thread_id)
        turn = Turn.of(seen.active, last_sequence=seen.last_sequence)
        if seen.has_runs:
            self.keep(thread_id, turn)
        return turn

    def keep(self, thread_id: str, turn: Turn) -> None:
        """Write down a turn, and tell the workers of it if there is anything for them."""
        self._write(thread_id, turn)
        if turn.active:
            self.announce(thread_id)
        else:
            self._disk.remove(self._layout.marker(thread_id))

    def enter(self, thread_id: str, turn: Turn, sequence: int, run_id: str) -> None:
        """Put a run among the active ones of its thread, in its place."""
        if (sequence, run_id) not in turn.active:
            # Once, also where an act that gave it another number came to nothing.
            turn.active = [entry for entry in turn.active if entry[1] != run_id]
            insort(turn.active, (sequence, run_id), key=lambda entry: entry[0])
        turn.last_sequence = max(turn.last_sequence, sequence)
        self._write(thread_id, turn)
        # In silence: whoever looks now finds the thread locked. It is announced when there is something to take.
        self._disk.make_empty(self._layout.marker(thread_id))

    def leave(self, thread_id: str, turn: Turn, run_id: str) -> None:
        """Take a settled run out, and let the next one have its turn."""
        turn.active = [entry for entry in turn.active if entry[1] != run_id]
        self.keep(thread_id, turn)

    def note(self, thread_id: str, turn: Turn, sequence: int) -> None:
        """Write down that a number was given to a run that was never active."""
        turn.last_sequence = max(turn.last_sequence, sequence)
        self._write(thread_id, turn)

    def announce(self, thread_id: str) -> None:
        """Let the workers of all processes look at the thread."""
        self._disk.touch(self._layout.marker(thread_id))

    def forget(self, thread_id: str) -> None:
        """Remove what is known of a thread that was deleted."""
        self._disk.remove(self._layout.marker(thread_id))
        self._disk.remove(self._layout.turn(thread_id))

    def announced(self) -> list[str]:
        """Return the threads that have active runs, in any order."""
        return self._disk.names(self._layout.queue)

    def _write(self, thread_id: str, turn: Turn) -> None:
        record = {"boot": self.boot, "sequence": turn.last_sequence, "active": turn.active}
        self._disk.overwrite(self._layout.turn(thread_id), codec.dump_line(record))


class Candidates:
    """The threads in which this process may find a run to take, those whose first run is oldest first.

    ``look_at`` and ``must_look_at_all`` are for the event loop; all else runs in the writing thread.
    """

    def __init__(self, book: TurnBook) -> None:
        self._book = book
        self._to_look_at: dict[str, None] = {}
        self._heap: list[tuple[int, str]] = []
        self._heads: dict[str, int] = {}
        self.must_look_at_all = True

    def look_at(self, thread_id: str) -> None:
        """Note that something may have changed in a thread."""
        self._to_look_at[thread_id] = None

    def first(self) -> tuple[str, int] | None:
        """Return the thread to try first, and the place that it has by its first run; none where there is none.

        It is taken from the candidates.
        """
        if self.must_look_at_all:
            self.must_look_at_all = False
            self._to_look_at.update((name, None) for name in self._book.announced() if name not in self._heads)
        while self._to_look_at:
            self._refresh(self._to_look_at.popitem()[0])
        while self._heap:
            sequence, thread_id = heapq.heappop(self._heap)
            if self._heads.get(thread_id) == sequence:
                del self._heads[thread_id]
                return thread_id, sequence
        return None

    def _refresh(self, thread_id: str) -> None:
        turn = self._book.peek(thread_id)
        if turn is not None and not turn.active:
            self._heads.pop(thread_id, None)
            return
        # A turn that cannot be read is made again by whoever tries the thread, under its lock.
        sequence = turn.active[0][0] if turn is not None else self._book.first_sequence(thread_id)
        if self._heads.get(thread_id) != sequence:
            self._heads[thread_id] = sequence
            heapq.heappush(self._heap, (sequence, thread_id))
