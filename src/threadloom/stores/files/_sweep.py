"""Finds what the queue index does not say, for the runs are the truth: a walk past all, in slices, at two paces.

At full pace when the index cannot be trusted, as after a start of the machine. Else with a budget, again and again in
every process that takes runs, for what other programs queue without a word. Such a walk reads no record that has not
changed since the last one began: the system notes when a file was written, or renamed into its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
from attrs import frozen

from threadloom import codec
from threadloom.errors import NotFoundError, StoreBusyError, StoreError
from threadloom.ids import is_id
from threadloom.models import Run
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._queue import Turn
from threadloom.stores.files._run_files import Seen
from threadloom.stores.files._runs import Runs
from threadloom.stores.files._threads import Threads
from threadloom.stores.files._writer import Hop
from threadloom.tasks import until_done

__all__ = ["Found", "Mark", "Slice", "Sweep", "Walk"]

_logger = logging.getLogger("threadloom")

_SLICE_SECONDS: Final = 0.003
_STEPS_A_LOOK: Final = 16  # at the clock, which is a call of the system
_BUDGET: Final = 0.0003  # of one processor: an idle worker needs about as much again for all else
_FIRST_PAUSE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 15.0
_SLACK_NS: Final = 2_000_000_000  # by which the system's note of a change may lag behind


@frozen
class Mark:
    """When a walk that came to its end had begun, on the monotonic clock, and the least by which the wall's was ahead.

    Files bear the time of the wall's clock, which may be set back; so what changed since is not told by that alone.
    """

    began: int
    ahead: int


@frozen
class Found:
    """Active runs of a thread that its turn does not name; with the whole turn where there is none that counts."""

    thread_id: str
    run_ids: tuple[str, ...]
    turn: Turn | None = None


@frozen
class Slice:
    """What came of one slice of a walk, and the processor's time that it took."""

    seconds: float
    found: tuple[Found, ...]
    is_last: bool


class Walk:
    """One look at all runs that changed since ``last``, or at all there are where it is none; in the reading thread."""

    def __init__(self, layout: Layout, disk: Disk, runs: Runs, last: Mark | None) -> None:
        self._layout = layout
        self._disk = disk
        self._runs = runs
        self._last = last
        self._began = time.monotonic_ns()
        self._ahead = _ahead()
        self._least_ahead = self._ahead if last is None else min(last.ahead, self._ahead)
        self._steps = self._go()

    def slice(self, seconds: float = _SLICE_SECONDS) -> Slice:
        """Go on for about so long, in time of the processor."""
        ahead = _ahead()
        self._ahead, self._least_ahead = min(self._ahead, ahead), min(self._least_ahead, ahead)
        started = time.thread_time()
        found: list[Found] = []
        for count, step in enumerate(self._steps):
            if step is not None:
                found.append(step)
            if count % _STEPS_A_LOOK == 0 and (used := time.thread_time() - started) >= seconds:
                return Slice(used, tuple(found), is_last=False)
        return Slice(time.thread_time() - started, tuple(found), is_last=True)

    def close(self) -> None:
        """Give back what it has open."""
        self._steps.close()

    @property
    def mark(self) -> Mark:
        """What the next walk needs to know of this one."""
        return Mark(self._began, self._ahead)

    def _has_changed(self, ctime_ns: int | None) -> bool:
        if self._last is None or ctime_ns is None:
            return ctime_ns is not None
        return ctime_ns >= self._last.began + self._least_ahead - _SLACK_NS

    def _go(self) -> Any:
        """Yield what was found, and none wherever the walk may rest."""
        for thread_id in self._disk.each_subdirectory(self._layout.root):
            yield None
            if not is_id(thread_id):
                continue
            try:
                # Its own directory has changed also when it was moved here, with runs in it that are older.
                is_new = self._has_changed(self._disk.changed_ns(self._layout.thread(thread_id)))
                yield from self._look_at(thread_id, all_runs=is_new)
            except OSError:
                continue  # whoever asks for it is told

    def _look_at(self, thread_id: str, *, all_runs: bool) -> Iterator[Found | None]:
        all_runs = all_runs or self._last is None
        seen = Seen()
        for run_id in self._changed_runs(thread_id, all_runs=all_runs):
            yield None
            if run_id is not None:
                self._runs.see(seen, thread_id, run_id)
        if not seen.has_runs or not (all_runs or seen.active):
            return
        turn = self._runs.turns.peek(thread_id)
        if turn is None and not all_runs:
            yield from self._look_at(thread_id, all_runs=True)
        elif turn is None:
            yield Found(
                thread_id, tuple(run.id for run in seen.active), Turn.of(seen.active, last_sequence=seen.last_sequence)
            )
        else:
            named = {run_id for _, run_id in turn.active}
            missing = tuple(run.id for run in seen.active if run.id not in named)
            if missing:
                yield Found(thread_id, missing)

    def _changed_runs(self, thread_id: str, *, all_runs: bool) -> Iterator[str | None]:
        """Yield the runs that changed, and none for each that did not."""
        runs = self._layout.runs(thread_id)
        # A run that is moved here, whole, bears the time of the move on its directory only.
        is_joined = not all_runs and self._has_changed(self._disk.changed_ns(runs))
        for run_id in self._disk.each_subdirectory(runs):
            is_changed = (
                all_runs
                or self._has_changed(self._disk.changed_ns(self._layout.status(thread_id, run_id)))
                or (is_joined and self._has_changed(self._disk.changed_ns(self._layout.run(thread_id, run_id))))
            )
            yield run_id if is_changed and is_id(run_id) else None


class Sweep:
    """Begins when the store is opened where the index cannot be trusted, else with the first claim."""

    def __init__(self, layout: Layout, disk: Disk, threads: Threads, runs: Runs, *, reader: Hop, writer: Hop) -> None:
        self._layout = layout
        self._disk = disk
        self._threads = threads
        self._runs = runs
        self._reader = reader
        self._writer = writer
        self._mark: Mark | None = None
        self._is_wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.indexed = asyncio.Event()

    @property
    def is_indexing(self) -> bool:
        """Whether the index is being made, so that there may be more to take than it says."""
        return not self.indexed.is_set()

    # On the loop

    def start(self, ring: Callable[[str | None], None], *, is_indexed: bool, note_boot: Callable[[], None]) -> None:
        """Make the index unless it is there; call ``ring`` with each thread that has news, and in the end with none."""
        self._ring = ring
        self._note_boot = note_boot
        if is_indexed:
            self.indexed.set()
        self._task = asyncio.get_running_loop().create_task(self._go_on(), name="threadloom sweep")

    def want(self) -> None:
        """Go on for as long as the store is open: it takes runs."""
        self._is_wanted.set()

    async def close(self) -> None:
        """Stop walking."""
        if self._task is not None:
            self._task.cancel()
            await until_done(self._task)
        self.indexed.set()  # nobody is to wait for it any more

    async def _go_on(self) -> None:
        try:
            if self.is_indexing:
                await self._walk(None, budget=None)
        finally:
            self.indexed.set()
            self._ring(None)
        await self._is_wanted.wait()
        await self._rest(_FIRST_PAUSE_SECONDS)
        while True:
            await self._walk(await self._reader.run(self._last_mark), budget=_BUDGET)
            await self._rest(_PAUSE_SECONDS)

    async def _walk(self, last: Mark | None, *, budget: float | None) -> None:
        walk = Walk(self._layout, self._disk, self._runs, last)
        try:
            is_whole = True
            while True:
                part = await self._reader.run(walk.slice)
                # Those of one slice share a hop.
                entered = await asyncio.gather(*(self._enter(found) for found in part.found))
                is_whole = is_whole and all(entered)
                if budget is not None:
                    await self._rest(part.seconds / budget)
                if part.is_last:
                    break
            if is_whole:
                await self._writer.run(self._finish, walk.mark)
        except Exception as error:
            # The next one begins where this one did.
            _logger.warning("sweep failed", exc_info=error)
        finally:
            await self._reader.run(walk.close)

    async def _rest(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _enter(self, found: Found) -> bool:
        """Correct the turn of a thread; return whether there is nothing left to correct."""
        try:
            await self._writer.run(self._correct, found, key=found.thread_id)
        except NotFoundError:
            return True
        except StoreBusyError:
            return False
        except (StoreError, OSError) as error:
            _logger.warning("thread set aside", extra={"thread_id": found.thread_id}, exc_info=error)
            return True
        if found.run_ids:
            self._ring(found.thread_id)
        return True

    # In the hops

    def _correct(self, found: Found) -> None:
        with self._threads.locked(found.thread_id):
            turn = self._runs.turns.peek(found.thread_id) or found.turn
            if turn is None:  # torn in the meantime
                self._runs.turns.rebuild(found.thread_id)
                return
            named = {run_id for _, run_id in turn.active}
            missing = [run for run_id in found.run_ids if run_id not in named and (run := self._active(found, run_id))]
            turn.active += [(run.sequence or 0, run.id) for run in missing]
            turn.last_sequence = max(turn.last_sequence, *(run.sequence or 0 for run in missing), 0)
            turn.active.sort(key=lambda entry: self._place(found, *entry))
            self._runs.turns.keep(found.thread_id, turn)

    def _active(self, found: Found, run_id: str) -> Run | None:
        try:
            run = self._runs.record(found.thread_id, run_id).run
        except (NotFoundError, StoreError):
            return None
        return None if run.status.is_terminal else run

    def _place(self, found: Found, sequence: int, run_id: str) -> tuple[int, int, str]:
        """Return the place of a run in its turn: those without a number come first, by ``created_at`` and id."""
        run = None if sequence else self._active(found, run_id)
        return sequence, 0 if run is None else run.created_at, run_id

    def _finish(self, mark: Mark) -> None:
        self._mark = mark
        self._note_boot()
        record = {"boot": self._runs.turns.boot, "began": mark.began, "ahead": mark.ahead}
        self._disk.overwrite(self._layout.swept, codec.dump_line(record))

    def _last_mark(self) -> Mark | None:
        """Return the mark of the last walk that any process has brought to its end since the machine was started."""
        try:
            record = orjson.loads(self._disk.read(self._layout.swept))
            mark = Mark(int(record["began"]), int(record["ahead"]))
        except (OSError, KeyError, TypeError, ValueError):
            return self._mark
        if not self._runs.turns.boot or record["boot"] != self._runs.turns.boot:
            return self._mark
        return mark if self._mark is None or mark.began > self._mark.began else self._mark


def _ahead() -> int:
    # The system's own clocks, whatever clock the store was given: they are what files bear the time of.
    return time.time_ns() - time.monotonic_ns()
