"""Transactions of one process: those that wait at the same moment share one journal write, and one lock a thread."""

from __future__ import annotations

import logging
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Any, Final, Literal, TypeVar

from attrs import define, field, frozen

from threadloom.backend import EventBatch, ThreadView
from threadloom.clock import Clock
from threadloom.errors import StoreBusyError, StoreError, StoreIOError, ThreadAlreadyExistsError, ThreadNotFoundError
from threadloom.ids import is_id
from threadloom.models import Thread
from threadloom.records import Change, RunChange
from threadloom.rules import run as run_rules
from threadloom.rules.queue import Standing, standing
from threadloom.stores.files import layout
from threadloom.stores.files.claim_queue import ClaimQueue
from threadloom.stores.files.commit import Commit, NewThread, finish, key_writes
from threadloom.stores.files.disk import Disk, ExternalWriteError
from threadloom.stores.files.event_reader import Position, RecentEvents
from threadloom.stores.files.hop import Operation
from threadloom.stores.files.journal import Journal, Write
from threadloom.stores.files.keys import KeyFile, read_key, write_key
from threadloom.stores.files.message_log import CursorCache
from threadloom.stores.files.queue_entry import forget, move_to_idle, read_turn, write_turn
from threadloom.stores.files.stamps import Stamps
from threadloom.stores.files.status_record import decode, restored
from threadloom.stores.files.thread_files import LockedElsewhereError, RunFiles, ThreadFiles, lock_directory
from threadloom.stores.files.views import LockedView, MissingView, MustBeAloneError

__all__ = ["Transact", "Transactions"]

T = TypeVar("T")

_logger = logging.getLogger("threadloom")

_MOST_ATTEMPTS: Final = 1_000


@frozen
class Transact:
    """A transaction that waits: ``Backend.transact``'s arguments."""

    thread_id: str
    decide: Callable[[ThreadView], Change[Any]]
    key: str | None = None


@define(eq=False)
class _Group:
    """The transactions of one thread that are decided and written together, under its lock."""

    thread: ThreadFiles
    view: LockedView
    commit: Commit
    staged: list[tuple[Operation, Change[Any]]] = field(factory=list)
    writes: list[Write] = field(factory=list)


@define(eq=False)
class _Round:
    """What is written together.

    groups: the transactions, by their threads.
    blocked: threads whose lock is taken elsewhere: what is for them is given again.
    deferred: threads of which something is to be written later, and so all that comes behind it.
    later: what has to be written after this round.
    """

    groups: dict[str, _Group] = field(factory=dict)
    blocked: set[str] = field(factory=set)
    deferred: set[str] = field(factory=set)
    later: list[Operation] = field(factory=list)


@frozen
class _Creation:
    """A thread that is to appear with the round's other writes, and what is written of the key it is created under.

    keys: the key before the thread is there, and afterwards; none without a key.
    """

    operation: Operation
    result: Any
    new: NewThread
    keys: list[Write]

    @property
    def writes(self) -> list[Write]:
        return [*self.new.writes, *self.keys]


class Transactions:
    """Decides and writes. Everything runs in the writing thread."""

    def __init__(
        self,
        disk: Disk,
        *,
        boot: str,
        clock: Clock,
        queue: ClaimQueue,
        cursors: CursorCache,
        is_gone: Callable[[str], bool],
    ) -> None:
        self._disk = disk
        self._stamps = Stamps(disk)
        self.journal: Journal | None = None
        self._boot = boot
        self._clock = clock
        self._queue = queue
        queue.is_current = self.is_current
        self._cursors = cursors
        self._is_gone = is_gone
        self._threads: OrderedDict[str, ThreadFiles] = OrderedDict()
        # A thread keeps four descriptors and more open: a quarter of what the process may have.
        self._most_threads = max(8, min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))
        disk.close_spare = self.close_spare
        self._creations: list[_Creation] = []
        self._key_locks: dict[str, int] = {}
        self._ident = 0
        self._in_use: set[str] = set()
        self._close_later: list[int] = []
        self.is_followed: Callable[[str, str], bool] = lambda *_: False
        self._recent = RecentEvents()
        self._changed: set[tuple[str, str]] = set()
        self._deleted: list[str] = []
        self.unfinished: dict[str, None] = {}
        """Threads in which a transaction stands, and the disk failed before all of it was written."""
        self.trash: list[str] = []
        """What deleted threads have left, for somebody to remove."""

    def close(self) -> None:
        """Release all files."""
        while self._threads:
            self._threads.popitem()[1].close()
        self._stamps.close()

    def is_current(self, thread_id: str) -> bool:
        """Return whether nobody else has written in a thread since this process did."""
        thread = self._threads.get(thread_id)
        return thread is not None and thread.is_current

    def recent_events(self, thread_id: str, run_id: str, position: Position) -> EventBatch | None:
        """Return the events from a position on without a look at the disk, None where that cannot be done.

        It can where this process wrote them, and nobody else has written in the thread since. For the event loop.
        """
        thread = self._threads.get(thread_id)
        batch = self._recent.read(thread_id, run_id, position)
        return batch if batch is not None and thread is not None and thread.is_current else None

    def take_changed(self) -> tuple[set[tuple[str, str]], list[str]]:
        """Return the runs changed since the last call, by thread and id, and the threads that were deleted."""
        changed, self._changed = self._changed, set()
        deleted, self._deleted = self._deleted, []
        return changed, deleted

    def reindex(self, thread_id: str, *, finishes: bool = False) -> None:
        """Make a thread's queue entry again from its runs.

        finishes: whether to finish what was cut off in any of them, too.
        """
        self._finish(thread_id, of_all_runs=finishes, only_index=not finishes)
        self._queue.look_at(thread_id)

    def finish_all(self) -> None:
        """Finish what stores that died have left half done in any thread.

        The index names every run in which something may be left.
        """
        for thread_id in self._disk.names(layout.QUEUE):
            if is_id(thread_id) and self._may_be_half_done(thread_id):
                self._try_to_finish(thread_id)

    def finish_unfinished(self) -> None:
        """Finish what a failing disk has left half done, where it works again."""
        for thread_id in tuple(self.unfinished):
            self._try_to_finish(thread_id)

    def _try_to_finish(self, thread_id: str) -> None:
        try:
            self._finish(thread_id)
        except LockedElsewhereError:
            self.unfinished.pop(thread_id, None)  # the holder of the lock has finished it first
        except (OSError, StoreError) as error:
            _logger.warning(
                "Could not complete the files of thread %s", thread_id, exc_info=error, extra={"thread_id": thread_id}
            )

    def _may_be_half_done(self, thread_id: str) -> bool:
        turn = read_turn(self._disk, thread_id, self._boot)
        if turn is None:
            return True
        for _, run_id in turn.active:
            path = layout.status(thread_id, run_id)
            try:
                status = decode(self._disk.read(path), self._disk.where(path))
                log = self._disk.identity(layout.events(thread_id, run_id))
            except (OSError, StoreError):
                continue  # never made, or damaged
            if (
                status.summary is None
                or log is None
                or log[2] > status.summary.bytes
                or status.record.run.status.is_terminal
            ):
                return True
        return False

    def _finish(self, thread_id: str, *, of_all_runs: bool = False, only_index: bool = False) -> None:
        thread = self._lock(thread_id)
        if thread is None:
            self.unfinished.pop(thread_id, None)
            forget(self._disk, thread_id)
            return
        if thread is False:
            raise LockedElsewhereError
        assert isinstance(thread, ThreadFiles)  # noqa: S101 - neither of the two
        try:
            group = self._group(thread)
            if only_index:
                thread.reindex()
            else:
                thread.is_cold = True
                self._finish_last(group)
            if of_all_runs:
                for run_id in thread.run_ids():
                    self._look_at(group, run_id)
                thread.reindex()
            self._write_turn(thread)  # a crash may have torn it
        except BaseException:
            thread.forget()
            raise
        finally:
            thread.unlock()

    def with_thread(self, thread_id: str, function: Callable[[LockedView], T]) -> T | None:
        """Return what a function returns for the view of a thread, under its lock; None where there is no thread.

        Nothing that was known of the thread counts, and nothing of it is kept.
        """
        thread = self._lock(thread_id)
        if thread is None:
            return None
        if thread is False:
            raise LockedElsewhereError
        assert isinstance(thread, ThreadFiles)  # noqa: S101 - neither of the two
        try:
            thread.forget()
            return function(self._group(thread).view)
        finally:
            thread.forget()
            thread.unlock()
            self._release()
            self._queue.look_at(thread_id)

    def write_run(self, view: LockedView, change: RunChange) -> None:
        """Write the change of one run by itself, under its thread's lock."""
        commit = Commit(view.files)
        commit.stage(Change(result=None, runs=(change,)), must_put=True)
        writes: list[Write] = []
        moment = 0
        try:
            commit.prepare()
            if self.journal is not None:
                writes = commit.journal_writes()
                moment = self.journal.write(writes, sync=True)
            commit.apply(self._close_later)
        except BaseException:
            if self.journal is not None and moment:
                self.journal.void(moment, commit.failed_writes(writes))
            commit.discard()
            raise
        self._note(view.thread_id, Change(result=None, runs=(change,)))

    def empty_journal(self) -> None:
        """Make durable what this process has written, so that its journal says nothing more about it."""
        if self.journal is not None:
            self.journal.begin_anew()

    def _release(self) -> None:
        for fd in self._close_later:
            os.close(fd)
        self._close_later.clear()

    # A batch

    def process(self, operations: list[Operation]) -> None:
        """Carry out what waits: transactions, and plain functions, which are called as they are."""
        waiting = operations
        self._ident = get_ident()
        while waiting:
            waiting = self._round(waiting)
        self._in_use.clear()
        while len(self._threads) > self._most_threads:
            self._threads.popitem(last=False)[1].close()
        if self.journal is not None:
            self.journal.end_batch()

    def _round(self, operations: list[Operation]) -> list[Operation]:
        """Carry out what may be written together, and return what has to be written after it."""
        round_ = _Round()
        self._in_use.clear()
        try:
            for operation in operations:
                self._begin(operation, round_)
            creations, self._creations = self._creations, []
            self._write(list(round_.groups.values()), creations, round_.later)
        finally:
            for group in round_.groups.values():
                group.thread.unlock()
            while self._key_locks:
                os.close(self._key_locks.popitem()[1])
            self._release()
        return round_.later

    def _begin(self, operation: Operation, round_: _Round) -> None:
        work = operation.work
        if not isinstance(work, Transact):
            self._call(operation, work, round_)
            return
        thread_id = work.thread_id
        if thread_id in round_.blocked:
            return
        if thread_id in round_.deferred:
            round_.later.append(operation)
            return
        if work.key is not None:
            if thread_id in round_.groups:
                round_.later.append(operation)
            else:
                self._with_key(operation, work, round_.later)
                round_.deferred.add(thread_id)
            return
        self._join(operation, work, round_)

    def _call(self, operation: Operation, function: Callable[[], Any], round_: _Round) -> None:
        if operation.key in round_.groups or (operation.key is None and round_.groups):
            round_.later.append(operation)  # it may take the lock of a thread that is being written
            return
        try:
            operation.succeed(function())
        except LockedElsewhereError:
            return  # it is given again
        except Exception as error:  # noqa: BLE001 - raised to its caller
            operation.fail(error)

    def _join(self, operation: Operation, work: Transact, round_: _Round) -> None:
        """Decide a transaction together with the others of its thread, if there is such a thread."""
        thread_id = work.thread_id
        group = round_.groups.get(thread_id)
        try:
            if group is None:
                thread = self._lock_or_create(operation, work, round_)
                if thread is None:
                    return
                group = self._group(thread)
                if not self._open(operation, work, group, round_):
                    return
            if not self._decide(operation, work, group):
                round_.later.append(operation)
                round_.deferred.add(thread_id)  # whatever comes behind it in the thread stays behind it
        except OSError as error:
            operation.fail(self._named(error, thread_id))
        except Exception as error:  # noqa: BLE001 - raised to its caller
            group = round_.groups.get(thread_id)
            if group is not None and not group.staged and group.thread.has_vanished:
                # Another program has removed it, so what is known of it was wrong.
                del round_.groups[thread_id]
                self._drop(thread_id)
                round_.later.append(operation)
                round_.deferred.add(thread_id)
                return
            operation.fail(error)

    def _lock_or_create(self, operation: Operation, work: Transact, round_: _Round) -> ThreadFiles | None:
        """Return the thread with its lock held, None where that is taken elsewhere or the thread was not there."""
        thread_id = work.thread_id
        thread = self._lock(thread_id)
        if thread is None:
            self._queue.update(thread_id, Standing())
            self._create_missing(operation, work, round_)
            return None
        if thread is False:
            round_.blocked.add(thread_id)
            return None
        return thread

    def _open(self, operation: Operation, work: Transact, group: _Group, round_: _Round) -> bool:
        """Make a group the one of its locked thread; return False where the thread was not there."""
        thread, thread_id = group.thread, work.thread_id
        try:
            if thread.thread is None:  # an empty directory, which holds nothing
                self._drop(thread_id)
                self._create_missing(operation, work, round_)
                return False
            self._finish_last(group)
        except BaseException:
            thread.forget()
            thread.unlock()
            raise
        round_.groups[thread_id] = group
        return True

    def _create_missing(self, operation: Operation, work: Transact, round_: _Round) -> None:
        self._create(operation, MissingView(*self._view_arguments(work.thread_id)), work)
        round_.deferred.add(work.thread_id)

    def _group(self, thread: ThreadFiles) -> _Group:
        commit = Commit(thread)
        now_ns, reconcile = self._clock.time_ns(), self._reconcile
        view = LockedView(thread, now_ns, self._cursors, self._is_gone, reconcile=reconcile, commit=commit)
        return _Group(thread, view, commit)

    def _finish_last(self, group: _Group) -> None:
        """Finish what a process that died, or a disk that failed, has left half done, before anything else is done."""
        thread = group.thread
        if not thread.is_cold:
            return
        if thread.thread is not None and thread.turn.active:
            # The newest first: its log says what its creation does to the others.
            ended = [entry for entry in reversed(thread.turn.active) if not self._look_at(group, entry[1])]
            if ended:
                thread.turn.active = [entry for entry in thread.turn.active if entry not in ended]
                self._write_turn(thread)
        thread.is_cold = False
        self.unfinished.pop(thread.thread_id, None)

    def _look_at(self, group: _Group, run_id: str) -> bool:
        """Let a run's files agree, and return whether it may still be active."""
        try:
            state = group.view.run(run_id)
        except StoreError as error:
            _log_unreadable(group.thread.thread_id, run_id, error)
            return True
        return state is not None and not (state.run.status.is_terminal and state.log.has_ended)

    def _write_turn(self, thread: ThreadFiles) -> None:
        if thread.turn.active:
            os.close(write_turn(self._disk, thread.thread_id, thread.turn, self._boot))
        else:
            move_to_idle(self._disk, thread.thread_id)

    def _decide(self, operation: Operation, work: Transact, group: _Group) -> bool:
        """Decide and stage one transaction; return False where it has to be written by itself, later."""
        try:
            change = work.decide(group.view)
            if not change.is_empty and not group.commit.stage(change):
                return False
        except MustBeAloneError:
            return False
        group.staged.append((operation, change))
        return True

    def _write(self, groups: list[_Group], creations: list[_Creation], later: list[Operation]) -> None:
        ready = [group for group in groups if self._prepare(group)]
        moment = self._note_in_journal(ready, creations)
        if moment is None:
            return
        self._create_all(creations, moment)
        for group in ready:
            try:
                self._apply(group)
            except Exception as error:  # noqa: BLE001 - raised to the callers
                if self.journal is not None:
                    self.journal.void(moment, group.commit.failed_writes(group.writes))
                if isinstance(error, ExternalWriteError):
                    # Another program has replaced the thread's record meanwhile: decide again on what it wrote.
                    group.commit.discard()
                    group.thread.forget()
                    later += [operation for operation, _ in group.staged]
                else:
                    self._fail(group, error)

    def _prepare(self, group: _Group) -> bool:
        """Write under temporary names what the disk may have no space for; return whether that worked."""
        try:
            if not group.commit.is_empty:
                group.commit.prepare()
                if self.journal is not None:
                    group.writes = group.commit.journal_writes()
        except Exception as error:  # noqa: BLE001 - raised to the callers
            self._fail(group, error)
            return False
        return True

    def _note_in_journal(self, groups: list[_Group], creations: list[_Creation]) -> int | None:
        """Note what all are to write, and return the moment, 0 if there is nothing to note; None if that failed."""
        writes = [write for group in groups for write in group.writes]
        writes += [write for creation in creations for write in creation.writes]
        if self.journal is None or not writes:
            return 0
        try:
            return self.journal.write(writes, sync=bool(creations) or any(group.commit.needs_sync for group in groups))
        except OSError as error:
            for group in groups:
                self._fail(group, error)
            for creation in creations:
                creation.new.discard()
                creation.operation.fail(self._named(error, creation.new.thread.id))
            return None

    def _apply(self, group: _Group) -> None:
        if not group.commit.is_empty:
            group.commit.apply(self._close_later)
            # It is written: runs whose record another program has replaced meanwhile can be looked at again.
            for run_id in tuple(group.thread.doubted):
                self._look_at(group, run_id)
        deleted = False
        for run_id, written in group.commit.written():
            if self.is_followed(group.thread.thread_id, run_id):
                self._recent.add(group.thread.thread_id, run_id, written)
        for operation, change in group.staged:
            self._note(group.thread.thread_id, change)
            deleted = deleted or change.is_deleted
            operation.succeed(change.result)
        if deleted:
            self._deleted.append(group.thread.thread_id)
            self.trash.append(group.commit.trash)
            self._queue.update(group.thread.thread_id, Standing())
            self._drop(group.thread.thread_id)
        else:
            self._update_queue(group)

    def _update_queue(self, group: _Group) -> None:
        thread_id = group.thread.thread_id
        if not self._queue.is_wanted(thread_id) and not group.commit.changes_queue:
            return
        try:
            self._queue.update(thread_id, standing(group.view.active_runs))
        except (OSError, StoreError) as error:
            _logger.warning(
                "Could not queue the runs of thread %s", thread_id, exc_info=error, extra={"thread_id": thread_id}
            )
            self._queue.set_aside(thread_id)
            if isinstance(error, OSError):
                self._queue.look_at(thread_id)

    def _note(self, thread_id: str, change: Change[Any]) -> None:
        for run in change.runs:
            self._changed.add((thread_id, run.record.run.id))

    def _fail(self, group: _Group, error: Exception) -> None:
        """Raise an error to all whose transactions were to be written, and forget what was staged."""
        thread_id = group.thread.thread_id
        group.commit.discard()
        if group.commit.is_begun:
            self.unfinished[thread_id] = None
        for operation, _ in group.staged:
            operation.fail(self._named(error, thread_id) if isinstance(error, OSError) else error)
        group.thread.forget()

    def _named(self, error: OSError, thread_id: str) -> Exception:
        if isinstance(error, FileNotFoundError) and not self._disk.exists(layout.meta(thread_id)):
            self._drop(thread_id)
            found = ThreadNotFoundError(thread_id)
        else:
            found = StoreIOError(f"write in thread {thread_id!r}", error)  # type: ignore[assignment]
        found.__cause__ = error
        return found

    # Threads

    def _lock(self, thread_id: str) -> ThreadFiles | Literal[False] | None:
        """Return a thread with its lock held, False where that is taken elsewhere, None where there is no thread."""
        self._in_use.add(thread_id)
        for _ in range(_MOST_ATTEMPTS):
            thread = self._threads.get(thread_id)
            try:
                if thread is None:
                    thread = self._opened(thread_id)
                    self._threads[thread_id] = thread
                if not thread.lock():
                    return False
            except FileNotFoundError:
                if thread is None:
                    return None
                self._drop(thread_id)  # deleted since it was opened; there may be another now
                continue
            self._threads.move_to_end(thread_id)
            return thread
        raise StoreBusyError(f"Thread {thread_id!r} is deleted and made again all the time.")

    def _opened(self, thread_id: str) -> ThreadFiles:
        return ThreadFiles(self._disk, self._stamps, self._boot, thread_id)

    def close_spare(self) -> bool:
        """Close the files of all threads that are not in use, and return whether there were any."""
        if get_ident() != self._ident:
            return False  # they belong to the writing thread
        spare = [thread_id for thread_id in self._threads if thread_id not in self._in_use]
        for thread_id in spare:
            self._drop(thread_id)
        return bool(spare)

    def _drop(self, thread_id: str) -> None:
        thread = self._threads.pop(thread_id, None)
        if thread is not None:
            thread.close()

    def _view_arguments(self, thread_id: str) -> tuple[Any, ...]:
        return self._disk, thread_id, self._clock.time_ns(), self._cursors, self._is_gone

    def _with_key(self, operation: Operation, work: Transact, later: list[Operation]) -> None:
        """Create a thread under an idempotency key, while nobody else looks at the key."""
        assert work.key is not None  # noqa: S101 - the caller asked
        digest = layout.key_digest(work.key)
        directory = layout.thread_key_directory(digest)
        if directory in self._key_locks:
            later.append(operation)
            return
        try:
            self._disk.make_directories(directory)
            fd = self._disk.open_directory(directory)
            self._key_locks[directory] = fd  # until the round ends
            if lock_directory(fd):
                self._create_with_key(operation, work, layout.thread_key(digest))
        except OSError as error:
            operation.fail(self._named(error, work.thread_id))
        except Exception as error:  # noqa: BLE001 - raised to its caller
            operation.fail(error)

    def _create_with_key(self, operation: Operation, work: Transact, path: str) -> None:
        assert work.key is not None  # noqa: S101 - the caller asked
        file = read_key(self._disk, path, work.key, Thread)
        if file is not None and not file.is_sure:
            # Its process died in between; what it named was made if it is there.
            if self._disk.exists(layout.meta(file.created.value.id)):
                file = KeyFile(file.created, is_sure=True)
                write_key(self._disk, path, file)
            else:
                file = None
        created = None if file is None else file.created
        self._create(operation, MissingView(*self._view_arguments(work.thread_id), created=created), work, path)

    def _create(self, operation: Operation, view: MissingView, work: Transact, key_path: str | None = None) -> None:
        change = work.decide(view)
        if change.thread is None:
            operation.succeed(change.result)
            return
        created = None if key_path is None else change.created
        if self._disk.exists(layout.meta(change.thread.id)):
            raise ThreadAlreadyExistsError(change.thread.id)
        keys: list[Write] = []
        if created is not None and key_path is not None:
            keys = key_writes(self._disk, key_path, *(KeyFile(created, is_sure=is_sure) for is_sure in (False, True)))
        new = NewThread(self._disk, change.thread, change.messages)
        self._creations.append(_Creation(operation, change.result, new, keys))

    def _create_all(self, creations: list[_Creation], moment: int) -> None:
        """Make the threads of a round, whose journal entry is written."""
        for creation in creations:
            thread, keys = creation.new.thread, creation.keys
            try:
                stamp = self._stamps.renew(self._stamps.slot(thread.id))
                try:
                    if keys:
                        self._disk.replace(keys[0].path, keys[0].data)
                    creation.new.commit()
                except BaseException:
                    if keys:
                        self._disk.remove(keys[0].path)  # it would count, should another thread have this id
                    if self.journal is not None:
                        self.journal.void(moment, creation.writes)
                    raise
                self._keep_new(thread, stamp)
                creation.operation.succeed(creation.result)
                if keys:
                    # Where that fails it counts as long as the thread is there, and becomes sure when it is asked for.
                    with suppress(OSError):
                        self._disk.replace(keys[1].path, keys[1].data)
            except OSError as error:
                creation.operation.fail(self._named(error, thread.id))
            except Exception as error:  # noqa: BLE001 - raised to its caller
                creation.operation.fail(error)

    def _keep_new(self, thread: Thread, stamp: int) -> None:
        """Keep the files of a thread that was created, of which all is known while nobody else writes in it."""
        self._drop(thread.id)
        try:
            files = self._opened(thread.id)
        except OSError:
            return  # it is opened when it is needed
        files.know_new(thread, stamp)
        self._threads[thread.id] = files

    # Agreement of a run's files

    def _reconcile(self, view: LockedView, run: RunFiles) -> None:
        """Finish what a process that died had begun, and take in what another program wrote."""
        thread = view.files
        if not (view.commit.is_empty or view.commit.is_applied):
            raise MustBeAloneError
        try:
            self._let_agree(view, run)
        except BaseException:
            thread.forget()  # so that the next look finds what is left to do
            self.unfinished[thread.thread_id] = None
            raise

    def _let_agree(self, view: LockedView, run: RunFiles) -> None:
        thread = view.files
        if run.pending:
            finish(thread, run)
            self._changed.add((thread.thread_id, run.run_id))
        if run.external is None:
            return
        status, run.external = run.external, None
        where = self._disk.where(layout.status(thread.thread_id, run.run_id))
        record = restored(status, run.state.log.run, where)
        change = run_rules.adopt_external(run.state, record, now_ns=view.now_ns)
        run.keep_raw(status, record)
        self.write_run(view, change)


def _log_unreadable(thread_id: str, run_id: str, error: StoreError) -> None:
    _logger.warning(
        "Could not read run %s of thread %s",
        run_id,
        thread_id,
        exc_info=error,
        extra={"thread_id": thread_id, "run_id": run_id},
    )
