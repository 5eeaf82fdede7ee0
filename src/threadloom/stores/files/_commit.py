"""How an act is made: put into the journal, made safe there with all that wait, and then carried out in the files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from threadloom.stores.files._again import retractions
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._journal import Act, Journal, JournalError
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._log import Logs
from threadloom.stores.files._opened import ForeignWriteError
from threadloom.stores.files._redo import Redo
from threadloom.stores.files._writer import Work
from threadloom.stores.files._writes import Make, NotUndoneError, Unchanged, Write, carry_out

__all__ = ["Committer"]


class Committer:
    """Makes the acts of one store. Whoever calls it holds the lock of the thread until it has ended."""

    def __init__(self, layout: Layout, disk: Disk, logs: Logs, journal: Journal, redo: Redo) -> None:
        self._layout = layout
        self._disk = disk
        self._logs = logs
        self._journal = journal
        self._redo = redo

    @property
    def power(self) -> bool:
        """Whether what was written outlives a power cut."""
        return self._journal.power

    def commit(
        self, thread_id: str, *writes: Write, sync: bool = True, then: Callable[[], object] = lambda: None
    ) -> Work[None]:
        """Write all of them, or none. ``sync=False`` is for what may be lost in a power cut, if nothing comes after it.

        ``then`` is called when all is written, for what goes with it and can be made again, as the queue index can: who
        finishes the act after the death of this process makes it.

        ``ForeignWriteError`` where a foreign program has replaced the record before: what was appended is taken back.
        """
        changes = [write for write in writes if not isinstance(write, Unchanged)]
        if not self.power and len(changes) == 1 and writes[-1] is changes[0] and not isinstance(changes[0], Make):
            # One write to one file is whole by itself as long as the machine goes on. A new directory is more than
            # that: with a run comes the queue index.
            carry_out(self._disk, self._logs, writes)
            then()
            return
        act = Act(thread_id, writes)
        self._journal.note(act, sync=sync)
        yield
        try:
            carry_out(self._disk, self._logs, writes, taken_back=self._keep_as_it_was)
        except ForeignWriteError as error:
            yield from self._take_back(act, error)
            raise
        except NotUndoneError as error:
            self._redo.later(act, self._journal.close_act)
            raise error.reason from None
        except BaseException:
            self._journal.close_act(act, "aborted")
            raise
        try:
            then()
        finally:
            self._journal.close_act(act)
        # It is said to be done before the lock is given back, so that nobody goes on from what may be done once more.
        with suppress(JournalError):
            yield

    def _take_back(self, act: Act, error: ForeignWriteError) -> Work[None]:
        if not error.appended:
            self._journal.close_act(act, "aborted")
            return
        act.retracted_at = error.appended[0][0]
        self._journal.retract(act)
        with suppress(JournalError):  # it is told with the next act
            yield
        try:
            for offset, lines in error.appended:
                edits = retractions(offset, lines)
                self._logs.append(self._layout.edits(act.thread_id), edits)
        except OSError:
            self._redo.later(act, self._journal.close_act)
            raise
        self._journal.close_act(act)

    def _keep_as_it_was(self) -> None:
        """Let what was taken back not come again after a power cut, where it would be taken for a foreign program's."""
        if self.power:
            with suppress(OSError):  # then there is no more to be had: the act has failed in any case
                self._disk.sync_all()

    def make_durable(self) -> None:
        """Let all that is in the files outlive a power cut as it is, if that is promised, whatever the journals say."""
        if self.power:
            self._journal.make_durable()
