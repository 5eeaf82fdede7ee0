"""Carries out what a crash has cut off: the acts that lie in the journals of processes that are gone.

After the death of a process the files are as they were written, but its last acts may be half done. Whoever next takes
the lock of a thread carries them out there first. After a power cut anything that was not synced may be lost, so all
acts of all journals are gone through once more when a store is opened, in the order in which they were made.

Any thread may call what is here; ``in_thread`` is for whoever holds the lock of that thread.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext, suppress

import attrs

from threadloom.errors import NotFoundError, StoreError
from threadloom.stores.files._again import Again, decisive, is_torn_form
from threadloom.stores.files._dead import DeadJournal, Journals, Told
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._journal import Act, add_entries, make_durable
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._lock import Lock, LockedElsewhereError
from threadloom.stores.files._opened import digest
from threadloom.stores.files._owner import holder_of, opened, our_key
from threadloom.stores.files._writes import Make, Put

__all__ = ["Redo"]

_logger = logging.getLogger("threadloom")


class Holding(Lock):
    """The lock of a place: once it is held, nothing is half done there."""

    def __init__(self, redo: Redo, place: str, directory: str) -> None:
        super().__init__(directory)
        self._redo = redo
        self._place = place

    def __enter__(self) -> None:
        super().__enter__()
        try:
            self._redo.in_thread(self._place)
        except BaseException:
            self.release()
            raise


class Redo:
    """The journals of those who are gone, as one store sees them."""

    def __init__(self, layout: Layout, disk: Disk, boot: str, renew_index: Callable[[str], object]) -> None:
        self._layout = layout
        self._disk = disk
        self._boot = boot
        self._renew_index = renew_index
        self._journals = Journals(layout, disk, boot)
        self._again = Again(layout, disk)
        self._mutex = threading.RLock()
        self._open_acts: dict[str, list[tuple[Act, Callable[[Act], object]]]] = {}

    def close(self) -> None:
        with self._mutex:
            self._journals.close()

    # Of processes that were killed

    def holding(self, place: str) -> Holding:
        """Return the lock of a thread, or of another place that has one, in which nothing is half done."""
        return Holding(self, place, self._layout.thread(place))

    def in_thread(self, thread_id: str) -> None:
        """Carry out what was left in a thread, or another place, whose lock is held."""
        with self._mutex:
            while self._open_acts.get(thread_id):
                self._carry_out_own(*self._open_acts[thread_id][0])
            self._open_acts.pop(thread_id, None)
            for journal in self._journals.dead():
                self._finish(journal, thread_id)

    def everywhere(self) -> None:
        """Carry out what was left in any thread, and remove the journals; what cannot be done now is left for later."""
        with self._mutex:
            self._finish_own()
            try:
                for journal in self._journals.dead():
                    self._bury(journal)
            except FileNotFoundError:
                return  # the store is being opened for the first time, or another process was faster
            except OSError as error:
                # Whoever locks the thread in question tries again, and is told.
                _logger.warning("write not finished for a process that is gone", exc_info=error)

    def dead(self) -> list[str]:
        """Return the journals of the dead, those with which ``everywhere`` could not come to an end."""
        with self._mutex:
            return [journal.path for journal in self._journals.dead()]

    def living(self) -> set[str]:
        """Return the names of the stores that are open, in this process and others."""
        with self._mutex:
            return self._journals.living()

    def later(self, act: Act, close: Callable[[Act], object]) -> None:
        """Keep an act of this process that stands half done until its thread is next locked."""
        with self._mutex:
            self._open_acts.setdefault(act.thread_id, []).append((act, close))

    def _finish_own(self) -> None:
        """Finish in the files what this process has half done, so that no reader sees it so; a writer closes it."""
        for thread_id, acts in self._open_acts.items():
            with suppress(LockedElsewhereError, OSError), Lock(self._layout.thread(thread_id)):
                for act, _ in acts:
                    self._again.carry_out(Told.of(act), {}, is_torn=False)

    def _carry_out_own(self, act: Act, close: Callable[[Act], object]) -> None:
        self._again.carry_out(Told.of(act), {}, is_torn=False)
        close(act)
        self._open_acts[act.thread_id].pop(0)
        self._renew_index(act.thread_id)

    def _bury(self, journal: DeadJournal) -> None:
        is_whole = True
        for place in {act.thread_id for act in journal.left()}:
            directory = self._layout.thread(place)
            try:
                # A thread that is not there was deleted, or was about to be made: nobody else has anything to do in it.
                with Lock(directory) if self._disk.exists(directory) else nullcontext():
                    self._finish(journal, place)
            except LockedElsewhereError:
                is_whole = False  # whoever has the lock has carried it out, or is frozen; the others need not wait
        if is_whole:
            self._remove([journal])

    def _finish(self, journal: DeadJournal, place: str) -> None:
        """Carry out what concerns a place whose lock is held."""
        left = self._left(journal, place)
        if not left:
            return
        with ExitStack() as locks:
            others = {act.thread_id for act in left} | {
                os.path.basename(path) for act in left for path in self._threads_of(act)
            }
            for other in sorted(others - {place}):
                with suppress(FileNotFoundError):
                    locks.enter_context(Lock(self._layout.thread(other)))
                # Who had it may have done the same, and deleted a thread that is not to come back.
                left = self._left(self._journals.again(journal), place)
            self._carry_out(journal, left)

    def _left(self, journal: DeadJournal | None, place: str) -> list[Told]:
        acts = [] if journal is None else journal.left()
        return [act for act in acts if act.concerns(place, self._layout.root)]

    def _threads_of(self, act: Told) -> list[str]:
        return [path for path in act.made if os.path.dirname(path) == self._layout.root]

    def _carry_out(self, journal: DeadJournal, left: list[Told]) -> None:
        for act in left:
            self._again.carry_out(act, {}, is_torn=False)
        with suppress(FileNotFoundError):  # another process has done the same, in other threads the rest
            add_entries(journal.path, [{"redone": act.number} for act in left], sync=False)
        journal.redone.update(act.number for act in left)
        for place in {act.thread_id for act in left}:
            with suppress(StoreError, NotFoundError):
                self._renew_index(place)
            ids = {"thread_id": place, "path": journal.path}
            _logger.warning("write finished for a process that is gone", extra=ids)

    # Of before a power cut

    def after_power_cut(self) -> None:
        """Go through all journals of earlier starts of the machine; ``LockedElsewhereError`` while another does."""
        if not self._journals.old():
            return
        with Lock(self._layout.journals), self._mutex:
            journals = [self._journals.read(name) for name in self._journals.old()]
            synced = {mark for journal in journals for mark in journal.synced}
            acts = [act for journal in journals for act in journal.not_durable(synced)]
            foreign = self._foreign(acts)
            older: dict[str, set[str]] = {}
            for act in sorted(acts, key=lambda act: act.at):
                is_made = act.is_done or not any(record.path in foreign for record in decisive(act, self._layout))
                self._again.carry_out(attrs.evolve(act, is_done=is_made), older, is_torn=True)
            for journal in journals:
                # For a start after this one, which may find it once more.
                if journal.acts:
                    add_entries(journal.path, [{"redone": number} for number in journal.acts], sync=False)
            self._remove(journals)

    def _foreign(self, acts: list[Told]) -> set[str]:
        """Return the records in which neither lies what an act has put there, old or new, nor a torn form of it."""
        put: dict[str, list[tuple[str | None, bytes]]] = {}
        made: dict[str, list[tuple[str | None, bytes]]] = {}
        for write in (write for act in acts for write in act.writes):
            match write:
                case Put(path, data, old):
                    put.setdefault(path, []).append((old, data))
                case Make(directory, files):
                    for name, data in files.items():
                        made.setdefault(f"{directory}/{name}", []).append((None, data))
        return {path for path, known in put.items() if not self._is_known(path, known + made.get(path, []))}

    def _is_known(self, path: str, contents: list[tuple[str | None, bytes]]) -> bool:
        try:
            found = self._disk.read(path)
        except FileNotFoundError:
            return True
        seen = digest(found)
        return any(seen in {old, digest(data)} or is_torn_form(found, data) for old, data in contents)

    def clear_up(self) -> None:
        """Remove what was being written by those who left no journal, and the rest of threads that were deleted."""
        written = self._disk.names(self._layout.temporary)
        stores = self._journals.stores()  # looked for later: a journal is written there too
        left = [f"{self._layout.temporary}/{name}" for name in written if name.partition("-")[0] not in stores]
        trash = [f"{self._layout.trash}/{name}" for name in self._disk.names(self._layout.trash)]
        with suppress(OSError):  # whoever is the next to open the store tries again
            for path in (*left, *trash):
                if not self._is_held(path):
                    self._disk.remove_tree(path)

    @staticmethod
    def _is_held(path: str) -> bool:
        """Return whether somebody who lives is making a file that is locked from its beginning."""
        try:
            if our_key(path) is not None:
                return True
            with opened(path, os.O_RDONLY) as fd:
                return holder_of(fd) is not None
        except FileNotFoundError:
            return False

    def _remove(self, journals: Iterable[DeadJournal]) -> None:
        """Remove journals that tell of nothing any more, and what their stores were in the middle of writing."""
        if any(journal.is_durable for journal in journals):
            leaving = {os.path.basename(journal.path): journal.boot for journal in journals}
            make_durable(self._disk, self._layout.journals, self._boot, leaving=leaving)
        for journal in journals:
            store = os.path.basename(journal.path).partition("-")[0]
            for name in self._disk.names(self._layout.temporary):
                if name.startswith(f"{store}-"):
                    self._disk.remove_tree(f"{self._layout.temporary}/{name}")
            if journal.is_damaged:
                aside = f"{self._layout.damaged}/journals-{os.path.basename(journal.path)}-{secrets.token_hex(4)}"
                _logger.warning("journal set aside", extra={"path": journal.path})
                with suppress(FileNotFoundError):
                    self._disk.move(journal.path, aside)
            self._disk.remove(journal.path)
            self._journals.removed(os.path.basename(journal.path))
        for name in self._disk.names(self._layout.trash):
            self._disk.remove_tree(f"{self._layout.trash}/{name}")
        if any(journal.is_durable for journal in journals):
            self._disk.sync(self._layout.journals)
