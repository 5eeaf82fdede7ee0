"""How a run is created: one act, also where messages come with it, and others are stopped for it.

The record of each run that is stopped decides, as in any change of a run: where a foreign program has replaced one in
the meantime, all of it starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

import attrs
from attrs import frozen

from threadloom import codec, lifecycle
from threadloom.checks import IdempotencyKey, OnBusy
from threadloom.errors import ActiveRunError, RunAlreadyExistsError, RunNotFoundError
from threadloom.lifecycle import RunRecord
from threadloom.models import Message, Run, RunStatus
from threadloom.stores.files import _log as log
from threadloom.stores.files._commit import Committer
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._keys import Keys
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._records import dumped, starting_over_after_foreign_writes
from threadloom.stores.files._runs import Planned, Runs
from threadloom.stores.files._threads import Threads
from threadloom.stores.files._writer import Work
from threadloom.stores.files._writes import Append, Make, Write

__all__ = ["NewRun", "NewRuns", "Wish"]

_MOST_PINNED: Final = 64  # records, each by a descriptor; of others time and size must tell


@frozen(kw_only=True)
class Wish:
    """What is to be created, and how."""

    run: Run
    on_busy: OnBusy
    messages: Sequence[Message]
    key: IdempotencyKey | None

    @property
    def stops(self) -> bool:
        """Whether active runs are stopped for it."""
        return self.on_busy in {"interrupt", "rollback"} and not self.run.status.is_terminal


@frozen
class NewRun:
    """A run that was created, and the ids of those that were stopped for it."""

    run: Run
    stopped: tuple[str, ...] = ()


class NewRuns:
    """Creates runs on disk."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        committer: Committer,
        threads: Threads,
        runs: Runs,
        *,
        keys: Keys,
        time_ns: Callable[[], int],
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._committer = committer
        self._threads = threads
        self._runs = runs
        self._keys = keys
        self._now = time_ns
        self._last_sequence = 0

    def create(self, wish: Wish) -> Work[NewRun]:
        thread_id = wish.run.thread_id
        with self._threads.locked(thread_id):
            created = self._keys.made_before(self._keys.within(thread_id, "run", wish.key), wish.key, Run)
            if created is not None:
                return NewRun(created)
            path = self._layout.run(thread_id, wish.run.id)
            if self._disk.exists(path):
                raise RunAlreadyExistsError(thread_id, wish.run.id)
            return (yield from starting_over_after_foreign_writes(path, lambda: self._create(wish)))

    def _create(self, wish: Wish) -> Work[NewRun]:
        thread_id, turns = wish.run.thread_id, self._runs.turns
        turn = turns.read(thread_id)
        active: list[RunRecord] = []
        if wish.on_busy != "enqueue" and not wish.run.status.is_terminal:
            active = yield from self._runs.active_records(thread_id, turn)
        if active and not wish.stops:
            raise ActiveRunError(thread_id, active[0].run.id)
        # By the clock between processes; rising strictly in a thread, and in a process, whatever the clock does.
        sequence = max(self._now() // 1_000, turn.last_sequence + 1, self._last_sequence + 1)
        self._last_sequence = sequence
        with ExitStack() as pinned:
            stops = self._stops(wish, active, pinned)
            appended = self._appending(wish, stops)
            before = appended[0].end if appended else self._threads.end_of_messages(thread_id)
            change = lifecycle.create(wish.run, sequence=sequence, messages_before=before, now_ns=self._now())
            path, record = self._layout.run(thread_id, wish.run.id), dumped(change.record)
            run = codec.decode(record, RunRecord, path).run  # nobody is stopped for one that could not be read again
            files = {"status.json": record, "events.jsonl": log.dumped_lines(change.events)}
            writes: list[Write] = [*appended]
            # All that a foreign program may forbid comes before what cannot be taken back without a trace.
            writes += [write for plan in stops for write in plan.record]
            writes += [write for plan in stops for write in plan.steps]
            writes += [Make(path, files)]
            writes += self._deleting(wish, stops)
            writes += self._keys.putting(self._keys.within(thread_id, "run", wish.key), wish.key, run)
            writes += [write for plan in stops for write in plan.events]
            if run.status.is_terminal:
                turns.note(thread_id, turn, sequence)
            else:
                # The index first: it may name a run that was never made, but must not miss one that was.
                turns.enter(thread_id, turn, sequence, run.id)
            then = [self._runs.before(plan) for plan in stops]

            def finish() -> None:
                for finish_one in then:
                    finish_one()
                if run.status is RunStatus.QUEUED:
                    turns.announce(thread_id)

            yield from self._committer.commit(thread_id, *writes, then=finish)
        for plan in stops:
            yield from self._runs.settle_what_came_past(plan)
        return NewRun(run, tuple(plan.run.id for plan in stops))

    def _stops(self, wish: Wish, active: Sequence[RunRecord], pinned: ExitStack) -> list[Planned]:
        """Return what stops the active runs. Their records are held until ``pinned`` is closed."""
        decide = lifecycle.roll_back if wish.on_busy == "rollback" else lifecycle.request_cancel
        plans: list[Planned] = []
        for thread_id, run_id in ((old.run.thread_id, old.run.id) for old in active):
            try:
                held = self._runs.held(thread_id, run_id)
            except RunNotFoundError:
                continue
            with ExitStack() as briefly:
                if len(plans) < _MOST_PINNED:
                    pinned.enter_context(held)
                else:
                    held.let_go()  # what is planned still names it: nobody else is to take it up
                    briefly.enter_context(held)
                record = self._runs.decoded(thread_id, run_id, held.data)
                if record.run.status.is_terminal:
                    continue  # ended by a foreign program since
                known = self._runs.known_log(thread_id, run_id, record.run.sequence)
                steps = self._runs.open_steps(thread_id, run_id)
                change = decide(record, known, open_steps=steps, now_ns=self._now())
                if change is not None:
                    plans.append(self._runs.planned(held, record, change))
        return plans

    def _appending(self, wish: Wish, stops: Sequence[Planned]) -> tuple[Append, ...]:
        messages = [message for plan in stops for message in plan.change.messages] + list(wish.messages)
        if not messages:
            return ()
        append = self._threads.appending(wish.run.thread_id, *messages)
        return (attrs.evolve(append, is_exact=True),)  # for the run is told where they end

    def _deleting(self, wish: Wish, stops: Sequence[Planned]) -> tuple[Append, ...]:
        if wish.on_busy != "rollback":
            return ()
        begun = {plan.run.id: plan.old.messages_before or 0 for plan in stops}
        return self._threads.deleting(wish.run.thread_id, begun)
