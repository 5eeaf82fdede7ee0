"""The backend of ``FileStore``: one directory, shared by any number of processes on one machine."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final, Literal, TypeVar

import attrs

from threadloom import codec
from threadloom.backend import AssistantView, Backend, Candidates, EventBatch, ThreadView
from threadloom.check_report import CheckReport
from threadloom.clock import Clock
from threadloom.errors import (
    NotFoundError,
    RunNotFoundError,
    SerializationError,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    StoreIOError,
    ThreadNotFoundError,
)
from threadloom.events import RunLog
from threadloom.ids import is_id
from threadloom.models import Assistant, Run
from threadloom.notifications import QUEUE, EventsTopic, Listener, Notifier, RunTopic, Topic
from threadloom.pages import Page, PageRequest, page_of_ids
from threadloom.records import AssistantChange, Change, RunState
from threadloom.rules.queue import standing
from threadloom.stores.files import layout
from threadloom.stores.files.assistant_files import list_assistant_ids, read_assistant, transact_assistant
from threadloom.stores.files.boot import boot_id, check_format, store_boot, stored_boot
from threadloom.stores.files.claim_queue import ClaimQueue
from threadloom.stores.files.disk import OUT_OF_DESCRIPTORS, Disk, ExternalWriteError, make_directories
from threadloom.stores.files.event_reader import Reading, read_events
from threadloom.stores.files.external_runs import Scan
from threadloom.stores.files.hop import Hop, Operation
from threadloom.stores.files.inotify import Watcher
from threadloom.stores.files.journal import Journal, owner_of, settle
from threadloom.stores.files.linux import fcntl
from threadloom.stores.files.liveness import Peers, StoreFile, remove_left_overs
from threadloom.stores.files.message_log import CursorCache
from threadloom.stores.files.queue_entry import read_turn
from threadloom.stores.files.replay import replay
from threadloom.stores.files.status_record import decode
from threadloom.stores.files.thread_files import LockedElsewhereError
from threadloom.stores.files.transactions import Transact, Transactions
from threadloom.stores.files.views import ReadView, read_record, read_thread
from threadloom.tasks import until_done

__all__ = ["FileBackend"]

T = TypeVar("T")

_logger = logging.getLogger("threadloom")

_SLOW_LOOK: Final = timedelta(seconds=15)
_SLOW_LOOK_WITHOUT_INOTIFY: Final = timedelta(seconds=1)
_STORE_PREFIX: Final = "store_"
_BEATS_PER_LEASE: Final = 6
_LOOK_AT_UNWATCHED_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.002
_LAST_PAUSE_SECONDS: Final = 1.0
_HELD_BACK_LOOKS: Final = 20
_HELD_BACK_SECONDS: Final = 0.001
_REPLAY_PAUSE_SECONDS: Final = 0.005
_FIRST_FINISH_SECONDS: Final = 0.05
_LAST_FINISH_SECONDS: Final = 5.0


class FileBackend(Backend):
    """Keeps threads below one directory."""

    def __init__(
        self,
        root: str,
        *,
        durability: Literal["power", "process"],
        lock_timeout: float,
        lease_duration: float,
        max_attempts: int = 3,
        clock: Clock,
    ) -> None:
        super().__init__(clock)
        self._root = root
        self._durability = durability
        self._lock_timeout = lock_timeout
        self._lease_duration = lease_duration
        self._max_attempts = max_attempts
        self._notifier = Notifier()
        self._store_id = ""
        self._is_registered = False
        self._journal: Journal | None = None

    # Opening and closing

    async def open(self) -> None:
        """Open the directory, which is made if need be; finish what a power failure or a dead process has cut off."""
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="threadloom")
        self._store_id = f"{_STORE_PREFIX}{secrets.token_hex(12)}"
        self._is_registered = False
        self._stack = ExitStack()
        self._opened = ExitStack()
        self._journal = None
        try:
            is_indexed = await self._in_thread(self._prepare)
        except BaseException as error:
            await self._shut_down()
            if isinstance(error, OSError):
                raise StoreIOError("open the store", error) from error
            raise
        self._writer = Hop(self._executor, self._transactions.process, self._notify)
        self._reader = Hop(self._executor, _call_each)
        self._event_reads: dict[Any, asyncio.Task[Reading | None]] = {}
        self._transactions.is_followed = lambda *ids: self._notifier.has_listener(EventsTopic(*ids))
        self._watcher = Watcher()
        self._watcher.start(self._missed_notifications)
        self._is_queue_watched = self._stack.enter_context(
            self._watcher.watching(f"{self._root}/{layout.QUEUE}", self._notified_of_queue)
        )
        self._next_full_look = 0.0
        self._pauses: dict[str, float] = {}
        self._scan = Scan(self._disk, self._boot)
        if not is_indexed:
            self._scan.walk_all()
        self._scan_task = self._loop.create_task(self._scan_runs(), name="threadloom scan")
        self._finish_task: asyncio.Task[None] | None = None
        self._abandoned_wake = asyncio.Event()
        self._watched_processes: dict[int, int] = {}
        self._searched: frozenset[str] | None = None

    def _prepare(self) -> bool:
        """Open all files, and return whether the index names every active run."""
        try:
            return self._open_files()
        except BaseException:
            self._opened.close()
            raise

    def _open_files(self) -> bool:
        is_power = self._durability == "power"
        make_directories(f"{self._root}/{layout.OWN}", sync=is_power)
        self._disk = Disk(self._root, self._store_id)
        self._opened.callback(self._disk.close)
        check_format(self._disk)
        for directory in layout.OWN_DIRECTORIES:
            make_directories(f"{self._root}/{directory}", sync=is_power)
        self._store_file = StoreFile.create(self._disk, self._store_id)
        self._opened.callback(self._store_file.close)
        self._boot = boot_id()
        self._peers = Peers(f"{self._root}/{layout.STORES}", self._lease_duration)
        self._cursors = CursorCache()
        self._queue = ClaimQueue(self._disk)
        self._queue.expiry_of = self._expiry_of
        fd = self._disk.open_directory(layout.JOURNALS)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # one process recovers; those that open meanwhile wait for it
            self._recover()
        finally:
            os.close(fd)
        remove_left_overs(self._disk, self._peers)
        return bool(self._boot) and stored_boot(self._disk) == self._boot

    def _recover(self) -> None:
        """Replay journals that a power failure has left, and finish what dead stores have begun."""
        self._transactions = Transactions(
            self._disk,
            boot=self._boot,
            clock=self.clock,
            queue=self._queue,
            cursors=self._cursors,
            is_gone=self._peers.is_gone,
        )
        self._opened.callback(self._transactions.close)
        found = {
            name: Journal.read(self._disk, name)
            for name in self._disk.names(layout.JOURNALS)
            if name.startswith(_STORE_PREFIX)
        }
        left = {name: journal for name, journal in found.items() if self._peers.is_dead(owner_of(name))}
        older = {name: journal for name, journal in left.items() if journal.boot != self._boot or not self._boot}
        if older:
            replayed = {boot for journal in found.values() for boot in journal.replayed}
            for thread_id in replay(
                self._disk, [journal for journal in older.values() if journal.boot not in replayed]
            ):
                self._finish_replayed(thread_id)
        if self._peers.gone():
            self._transactions.finish_all()
        settled_ns = None
        if left:
            settled_ns = settle(self._disk)
        journal = None
        if left or self._durability == "power":
            journal = Journal(self._disk, self._boot, [each.boot for each in older.values()], settled_ns or 0)
        # What the others say is in the files now, durably, and the new journal says so.
        for name in older if settled_ns is None else left:
            self._disk.remove(f"{layout.JOURNALS}/{name}")
        if journal is not None and self._durability == "power":
            self._opened.callback(journal.close)
            self._transactions.journal = self._journal = journal
        elif journal is not None:
            journal.close()

    def _finish_replayed(self, thread_id: str) -> None:
        deadline = time.monotonic() + self._lock_timeout
        while True:
            try:
                self._transactions.reindex(thread_id, finishes=True)
            except LockedElsewhereError:
                if time.monotonic() >= deadline:
                    raise StoreBusyError(f"Another program holds the lock on {thread_id!r}.") from None
                time.sleep(_REPLAY_PAUSE_SECONDS)
            except StoreError as error:
                _logger.warning("Could not read thread %s", thread_id, exc_info=error, extra={"thread_id": thread_id})
                return
            else:
                return

    async def close(self) -> None:
        """Finish what has begun and release everything."""
        if self._loop.is_closed():
            await self._close_without_loop()
            return
        self._scan_task.cancel()
        await until_done(self._scan_task)
        if self._finish_task is not None:
            self._finish_task.cancel()
            await until_done(self._finish_task)
        self._watch_processes(frozenset())
        self._stack.close()
        self._watcher.close()
        self._notifier.notify_all()
        await self._writer.close()
        await self._reader.close()
        try:
            await self._in_thread(self._release)
        except OSError as error:
            raise StoreIOError("close the store", error) from error
        finally:
            await self._shut_down()

    async def _close_without_loop(self) -> None:
        """Release all though the event loop of ``open`` is over, with its tasks; what had begun is finished."""
        self._loop = asyncio.get_running_loop()
        self._watch_processes(frozenset())
        self._stack.close()
        self._watcher.close()
        await self._shut_down()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="threadloom")
        try:
            await self._in_thread(self._release)
        finally:
            await self._shut_down()

    def _release(self) -> None:
        try:
            self._transactions.finish_unfinished()
        finally:
            self._opened.close()

    async def _in_thread(self, function: Callable[[], T]) -> T:
        future = self._loop.run_in_executor(self._executor, function)
        await until_done(future)
        return future.result()

    async def _shut_down(self) -> None:
        """Return when the threads have ended, joined from another one, because joining blocks."""
        ended = self._loop.create_future()

        def join() -> None:
            self._executor.shutdown(wait=True)
            self._loop.call_soon_threadsafe(ended.set_result, None)

        threading.Thread(target=join, name="closing a store").start()
        await until_done(ended)

    # Hops

    def _finish_soon(self) -> None:
        if self._finish_task is None or self._finish_task.done():
            self._finish_task = self._loop.create_task(self._finish_unfinished(), name="threadloom finish")

    async def _finish_unfinished(self) -> None:
        """Try again to finish what a failing disk has cut off, until it works."""
        pause = _FIRST_FINISH_SECONDS
        while self._transactions.unfinished:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_FINISH_SECONDS)
            await self._writer.run(self._transactions.finish_unfinished)

    def _notify(self) -> None:
        """Wake who listens to what the last batch changed."""
        if self._transactions.unfinished:
            self._finish_soon()
        changed, deleted = self._transactions.take_changed()
        if deleted:
            self._notifier.notify_all()
        elif changed and self._notifier.is_listened_to:
            for thread_id, run_id in changed:
                self._notifier.notify(EventsTopic(thread_id, run_id), RunTopic(thread_id, run_id))
            self._notifier.notify(QUEUE)

    async def _write(self, doing: str, work: Any, *, key: str | None = None, patience: float | None = None) -> Any:
        try:
            return await self._writer.run(work, key=key, patience=self._lock_timeout if patience is None else patience)
        except OSError as error:
            raise StoreIOError(doing, error) from error

    async def _read(self, doing: str, function: Callable[[], T]) -> T:
        try:
            try:
                return await self._reader.run(function)  # type: ignore[no-any-return]
            except OSError as error:
                # What is kept open belongs to the writing thread.
                if error.errno not in OUT_OF_DESCRIPTORS or not await self._writer.run(self._transactions.close_spare):
                    raise
                return await self._reader.run(function)  # type: ignore[no-any-return]
        except OSError as error:
            raise StoreIOError(doing, error) from error

    # Threads

    async def transact(
        self, thread_id: str, decide: Callable[[ThreadView], Change[T]], *, key: str | None = None, waits: bool = True
    ) -> T:
        """Decide under the thread's lock, and commit in the run's log."""
        work = Transact(thread_id, decide, key)
        patience = self._lock_timeout if waits else 0.0
        try:
            result = await self._writer.run(work, key=thread_id if key is None else None, patience=patience)
        except BaseException as error:
            self._offer_again(thread_id, error)
            raise
        self._pauses.pop(thread_id, None)
        if self._transactions.trash:
            await self._read("remove a deleted thread", self._empty_trash)
        return result  # type: ignore[no-any-return]

    def _offer_again(self, thread_id: str, error: BaseException) -> None:
        """Let workers look at a thread again in a while; at a damaged one only when something changes in it."""
        self._queue.set_aside(thread_id)
        if isinstance(error, SerializationError | NotFoundError | StoreClosedError):
            return
        pause = _LAST_PAUSE_SECONDS
        if isinstance(error, StoreBusyError | asyncio.CancelledError):
            pause = self._pauses.get(thread_id, _FIRST_PAUSE_SECONDS)
            self._pauses[thread_id] = min(2 * pause, _LAST_PAUSE_SECONDS)
        self._loop.call_later(pause, self._notified_of_queue, thread_id)

    async def override(self, thread_id: str, run_id: str, change: Callable[[Run], Run]) -> Run | None:
        """Replace a run's record without the lock, as a program that does not know the library would."""
        run = await self._read(f"write run {run_id!r}", partial(self._override, thread_id, run_id, change))
        self._notifier.notify(RunTopic(thread_id, run_id), EventsTopic(thread_id, run_id))
        return run

    def _override(self, thread_id: str, run_id: str, change: Callable[[Run], Run]) -> Run:
        path = layout.status(thread_id, run_id)
        while True:
            placed, data = self._disk.read_placed(path)
            try:
                status = decode(data, self._disk.where(path))
                run = change(status.record.run)
                old, new = codec.to_record(status.record), codec.to_record(run)
                temporary, ours = self._disk.write_temporary(codec.dump_exactly(codec.patched(status.raw, old, new)))
                try:
                    self._disk.exchange(temporary, ours, path, placed)
                except BaseException:
                    self._disk.discard(temporary)
                    raise
                finally:
                    ours.close()
            except ExternalWriteError:
                continue  # it was replaced meanwhile
            finally:
                placed.close()
            return run

    def _empty_trash(self) -> None:
        while self._transactions.trash:
            self._disk.remove_tree(self._transactions.trash.pop())

    async def read(self, thread_id: str, look: Callable[[ThreadView], T]) -> T:
        """Read without a lock: every record is replaced whole, and every log is only appended to."""
        now_ns, is_gone = self.clock.time_ns(), self._peers.is_gone
        view = ReadView(self._disk, thread_id, now_ns, self._cursors, is_gone, boot=self._boot)
        return await self._read(f"read thread {thread_id!r}", partial(look, view))

    async def list_thread_ids(self, page: PageRequest) -> Page[str]:
        """Return a page of the names of the directories below the root that hold a thread."""
        return await self._read("list the threads", partial(self._list_thread_ids, page))

    def _list_thread_ids(self, page: PageRequest) -> Page[str]:
        ids = filter(is_id, self._disk.subdirectories("."))
        chosen = page_of_ids(ids, **attrs.asdict(attrs.evolve(page, limit=None)))
        if page.limit is None:
            return Page([thread_id for thread_id in chosen if not self._is_empty(thread_id)])
        from_the_end = page.before is not None and page.after is None
        found: list[str] = []
        for thread_id in reversed(chosen) if from_the_end else chosen:
            if self._is_empty(thread_id):
                continue
            if len(found) == page.limit:
                return Page(reversed(found) if from_the_end else found, has_more=True)
            found.append(thread_id)
        return Page(reversed(found) if from_the_end else found)

    def _is_empty(self, thread_id: str) -> bool:
        """Return whether a directory holds nothing, so that it is no thread."""
        if self._disk.exists(layout.meta(thread_id)):
            return False
        try:
            with os.scandir(self._disk.where(thread_id)) as entries:
                return next(entries, None) is None
        except OSError:
            return not self._disk.exists(thread_id)

    async def read_events(self, thread_id: str, run_id: str, position: Any = None) -> EventBatch:
        """Read a run's log; a transaction is shown once the records show it."""
        if position is not None:
            known = self._transactions.recent_events(thread_id, run_id, position)
            if known is not None:
                return known
        batch = EventBatch(())
        for _ in range(_HELD_BACK_LOOKS):
            reading = await self._read_events_together(thread_id, run_id, position)
            if reading is None:
                return await self._read(f"read run {run_id!r}", partial(self._no_events, thread_id, run_id))
            batch = reading.batch
            if not reading.is_held_back or batch.events:
                break
            await asyncio.sleep(_HELD_BACK_SECONDS)  # its writer is between the commit and the records
        return batch

    async def _read_events_together(self, thread_id: str, run_id: str, position: Any) -> Reading | None:
        """Read a run's log once for all readers that want the same of it before the read begins."""
        key = (thread_id, run_id, position)
        shared = self._event_reads.get(key)
        if shared is None:

            def look() -> Reading | None:
                self._event_reads.pop(key, None)  # who comes later may want what is written from now on
                return read_events(self._disk, thread_id, run_id, position)

            work = self._read(f"read events of run {run_id!r}", look)
            shared = self._event_reads[key] = self._loop.create_task(work)
            shared.add_done_callback(
                lambda _: self._event_reads.pop(key, None) if self._event_reads.get(key) is shared else None
            )
        return await asyncio.shield(shared)

    def _no_events(self, thread_id: str, run_id: str) -> EventBatch:
        """Return no events of a run that another program made; raise where there is no such run."""
        if read_record(self._disk, thread_id, run_id) is not None:
            return EventBatch(())
        if read_thread(self._disk, thread_id) is None:
            raise ThreadNotFoundError(thread_id)
        raise RunNotFoundError(thread_id, run_id)

    # Assistants

    async def transact_assistant(
        self, assistant_id: str, decide: Callable[[AssistantView], AssistantChange[T]], *, key: str | None = None
    ) -> T:
        """Decide under the lock of all assistants."""
        work = partial(transact_assistant, self._disk, self._journal, assistant_id, decide, key)
        return await self._write(f"write assistant {assistant_id!r}", work, key=layout.ASSISTANTS)  # type: ignore[no-any-return]

    async def read_assistant(self, assistant_id: str) -> Assistant | None:
        """Read an assistant's record."""
        return await self._read(f"read assistant {assistant_id!r}", partial(read_assistant, self._disk, assistant_id))

    async def list_assistant_ids(self, page: PageRequest) -> Page[str]:
        """List the records of assistants."""
        return await self._read("list the assistants", partial(list_assistant_ids, self._disk, page))

    # Work

    async def candidates(self, limit: int, *, adopt: bool) -> Candidates:
        """Return threads that the index names, those that wait longest first."""
        self._scan.repeat()
        found = await self._candidates(limit, adopt=adopt)
        while not found.places and not found.overdue_ids and not self._scan.walked.is_set():
            # The index is being made from the runs: there is nothing to claim only when it says so in the end.
            await self._scan.walked.wait()
            found = await self._candidates(limit, adopt=adopt)
        return found

    async def _candidates(self, limit: int, *, adopt: bool) -> Candidates:
        now = self._loop.time()
        if not self._is_queue_watched or now >= self._next_full_look:
            self._next_full_look = now + _SLOW_LOOK.total_seconds()
            self._queue.look_at_all()
        take = partial(self._queue.take, limit, adopt=adopt, now_ns=self.clock.time_ns())
        return await self._write("look for runs", take)  # type: ignore[no-any-return]

    def _expiry_of(self, thread_id: str) -> int | None:
        """Return the moment at which the first run of a thread has to be expired, None for none or a damaged one."""
        try:
            turn = read_turn(self._disk, thread_id, self._boot)
            records = [read_record(self._disk, thread_id, run_id) for _, run_id in turn.active] if turn else []
        except (OSError, StoreError):
            return None
        # One that is terminal, and in the index, was ended by another program: it has to be finalized.
        return standing([RunState(record, RunLog()) for record in records if record is not None]).expires_at_ns

    async def register_worker(self) -> str:
        """Return the name of this store's file, whose lock and heartbeat prove that its process is alive."""
        self._is_registered = True
        return self._store_id

    async def abandoned(self) -> Sequence[str]:
        """Wait until another store is found dead or hung; return the threads with runs under its leases."""
        interval = self._lease_duration / _BEATS_PER_LEASE
        directory = f"{self._root}/{layout.STORES}"
        with self._watcher.watching(directory, lambda _: self._abandoned_wake.set()):
            while True:
                self._abandoned_wake.clear()
                thread_ids, processes = await self._write("look at the other stores", self._look_at_peers)
                unwatched = self._watch_processes(processes)
                if thread_ids:
                    return thread_ids  # type: ignore[no-any-return]
                pause = min(interval, _LOOK_AT_UNWATCHED_SECONDS) if unwatched else interval
                try:
                    async with asyncio.timeout(pause):
                        await self._abandoned_wake.wait()
                except TimeoutError:
                    continue

    def _look_at_peers(self) -> tuple[list[str], frozenset[int]]:
        self._store_file.beat()
        self._peers.look(self._loop.time())
        gone = self._peers.gone()
        thread_ids: list[str] = []
        if gone != self._searched:
            self._transactions.finish_all()
            thread_ids = self._threads_of_gone_workers()
            if not thread_ids:
                # All that they held was reclaimed.
                for store_id in gone:
                    self._peers.remove_dead(store_id)
                self._searched = gone & self._peers.gone()
        return thread_ids, self._peers.process_ids()

    def _threads_of_gone_workers(self) -> list[str]:
        """Return the threads that have a run under the lease of a worker that is gone."""
        return [thread_id for thread_id in self._disk.names(layout.QUEUE) if self._has_gone_worker(thread_id)]

    def _has_gone_worker(self, thread_id: str) -> bool:
        turn = read_turn(self._disk, thread_id, self._boot)
        if turn is None:
            return True  # the next holder of its lock makes the entry again
        for _, run_id in turn.active:
            path = layout.status(thread_id, run_id)
            try:
                lease = decode(self._disk.read(path), self._disk.where(path)).record.lease
            except (OSError, StoreError):
                continue
            if lease is not None and self._peers.is_gone(lease.liveness_id):
                return True
        return False

    def _watch_processes(self, process_ids: frozenset[int]) -> bool:
        """Be woken by the end of these processes and no others; return whether some cannot be watched."""
        for process_id in self._watched_processes.keys() - process_ids:
            fd = self._watched_processes.pop(process_id)
            self._loop.remove_reader(fd)
            os.close(fd)
        for process_id in process_ids - self._watched_processes.keys() - {0}:
            try:
                fd = os.pidfd_open(process_id)
            except (AttributeError, OSError):
                continue
            self._watched_processes[process_id] = fd
            self._loop.add_reader(fd, self._process_ended, process_id)
        return bool(process_ids - self._watched_processes.keys())

    def _process_ended(self, process_id: int) -> None:
        fd = self._watched_processes.pop(process_id)
        self._loop.remove_reader(fd)
        os.close(fd)
        self._abandoned_wake.set()

    async def _scan_runs(self) -> None:
        noting = self._loop.create_task(self._note_boot())
        try:
            await self._scan.run_forever(self._reader.run, self._found_external_run)
        except Exception:
            _logger.exception("Unexpected error in the scan for external runs")
        finally:
            noting.cancel()
            await until_done(noting)

    async def _note_boot(self) -> None:
        """Note that the index names every active run, once that is so; it is unsynced, and counts in this boot only."""
        await self._scan.walked.wait()
        self._notifier.notify(QUEUE)
        if self._scan.is_complete and self._boot:
            await self._reader.run(partial(store_boot, self._disk, self._boot))

    async def _found_external_run(self, thread_id: str) -> None:
        await self._write(f"index thread {thread_id!r}", partial(self._transactions.reindex, thread_id), key=thread_id)
        self._notifier.notify(QUEUE)

    # Notifications

    @asynccontextmanager
    async def _listening(self, topics: Iterable[Topic]) -> AsyncIterator[Listener]:
        with ExitStack() as stack:
            topics = tuple(topics)
            is_watched = all([self._watch(stack, topic) for topic in topics])  # noqa: C419 - each one is to be watched
            slow_look = _SLOW_LOOK if is_watched else _SLOW_LOOK_WITHOUT_INOTIFY
            yield stack.enter_context(self._notifier.listening(*topics, slow_look=slow_look))

    def listen(self, *topics: Topic) -> Any:
        """Watch the directories of runs, and the queue, for what other processes write."""
        return self._listening(topics)

    def _watch(self, stack: ExitStack, topic: Topic) -> bool:
        if topic is QUEUE or not isinstance(topic, RunTopic | EventsTopic):
            return self._is_queue_watched
        callback = partial(self._notified_of_run, topic.thread_id, topic.run_id)
        directory = f"{self._root}/{layout.run(topic.thread_id, topic.run_id)}"
        return stack.enter_context(self._watcher.watching(directory, callback, log="events.jsonl"))

    def _notified_of_run(self, thread_id: str, run_id: str, name: str | None) -> None:
        if name != "events.jsonl":
            self._notifier.notify(RunTopic(thread_id, run_id))
        self._notifier.notify(EventsTopic(thread_id, run_id))

    def _notified_of_queue(self, name: str | None) -> None:
        if name is None:
            self._queue.look_at_all()
        elif is_id(name):
            self._queue.look_at(name)
        self._notifier.notify(QUEUE)

    def _missed_notifications(self) -> None:
        """Look at everything: nobody knows what was missed."""
        self._queue.look_at_all()
        self._notifier.notify_all()

    # Upkeep

    async def check(self, *, fix: bool, progress: Callable[[int, int], object]) -> CheckReport:
        """Compare the records with the logs, and look for damage."""
        from threadloom.stores.files.check import check_store  # noqa: PLC0415 - rarely asked for, and slow to import

        await self._scan.walked.wait()
        return await check_store(self, fix=fix, progress=progress)


def _call_each(operations: list[Operation]) -> None:
    for operation in operations:
        try:
            operation.succeed(operation.work())
        except Exception as error:  # noqa: BLE001 - raised to its caller
            operation.fail(error)
