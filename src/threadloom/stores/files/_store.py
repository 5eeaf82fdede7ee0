"""FileStore: the seam of ``store.py`` in plain files, on aiofiles.

Every method checks what it was handed, then gives one synchronous function to the writing or the reading thread. What
other tasks and processes have to hear of is rung afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from threadloom import lifecycle
from threadloom.checks import (
    KEEP,
    IdempotencyKey,
    Keep,
    MessageOnBusy,
    MetadataChange,
    OnBusy,
    as_status,
    changed_thread,
    check_assistant,
    check_key,
    check_lease,
    check_message,
    check_messages,
    check_on_busy,
    check_run,
    check_step,
    check_thread,
    check_tool_outputs,
)
from threadloom.clock import Clock
from threadloom.errors import (
    InvalidInputError,
    StoreBusyError,
    StoreClosedError,
    StoreIOError,
)
from threadloom.events import RunEvent, RunLog
from threadloom.ids import check_id
from threadloom.lifecycle import Change, Lease, RunRecord, RunWrite
from threadloom.models import (
    Assistant,
    Message,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    StepDetails,
    Thread,
    ToolOutput,
)
from threadloom.pages import Order, Page, check_page
from threadloom.report import CheckReport
from threadloom.signals import QUEUE, EventsTopic, Listener, QueueTopic, RunTopic, Signals, Topic
from threadloom.store import Claim, ThreadStore
from threadloom.stores.files._claims import Taken, Taking
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._lock import check_locks_exist
from threadloom.stores.files._new_runs import Wish
from threadloom.stores.files._pages import PageRequest
from threadloom.stores.files._parts import SLOW_LOOK, Options, Parts
from threadloom.stores.files._writer import Work
from threadloom.tasks import carried_out, until_done

__all__ = ["FileStore"]

T = TypeVar("T")

_logger = logging.getLogger("threadloom")

_SLOW_LOOK_WITHOUT_INOTIFY = timedelta(seconds=1)
_FORCE_PATIENCE = timedelta(seconds=2)
_FIRST_LOCK_RETRY_SECONDS = 0.0005  # who announces a run holds its thread for a moment longer
_LAST_LOCK_RETRY_SECONDS = 1.0


class FileStore(ThreadStore):
    """Keeps everything below one directory, in files that a person can read (``docs/format.md``).

    Any number of tasks, stores and processes of one machine may use the directory at the same time, and programs that
    know nothing of threadloom may replace its files. Parents that are missing are made.

    ``durability="power"`` lets a write return once it outlives a power cut; ``"process"`` once it outlives the
    process, which is faster. ``lock_timeout`` is how long a write waits for another process that holds its thread's
    lock, before it raises ``StoreBusyError``.

    A store that takes runs also takes back those of workers that are gone, in any process on the directory: dead, or
    hung for ``lease_duration``, in which the event loop of their process did nothing. Such a run is queued again, or
    ``failed`` if that was attempt number ``max_attempts``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        durability: Literal["power", "process"] = "power",
        lock_timeout: timedelta = timedelta(seconds=10),
        lease_duration: timedelta = timedelta(seconds=30),
        max_attempts: int = 3,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(clock=clock)
        if durability not in {"power", "process"}:
            raise InvalidInputError(f"durability must be 'power' or 'process', not {durability!r}.")
        if lease_duration <= timedelta() or max_attempts < 1:
            raise InvalidInputError(
                f"lease_duration and max_attempts must be positive, not {lease_duration!r} and {max_attempts!r}."
            )
        self.root = Path(root)
        self.durability = durability
        self._options = Options(
            durability=durability,
            lock_timeout=lock_timeout,
            lease_duration=lease_duration,
            max_attempts=max_attempts,
            clock=self.clock,
        )
        # Where it is now, wherever the process goes afterwards.
        self._layout = Layout(str(self.root if self.root.is_absolute() else Path.cwd() / self.root))
        self._signals = Signals()
        self._opened: Parts | None = None
        self._gate = asyncio.Lock()  # opening and closing, one at a time
        self._lock_pause = _FIRST_LOCK_RETRY_SECONDS

    # Where things lie

    def thread_dir(self, thread_id: str) -> Path:
        """Return where a thread lies, whether or not it is there."""
        check_id(thread_id)
        return Path(self._layout.thread(thread_id))

    def run_dir(self, thread_id: str, run_id: str) -> Path:
        """Return where a run lies, whether or not it is there."""
        check_id(thread_id, run_id)
        return Path(self._layout.run(thread_id, run_id))

    def steps_dir(self, thread_id: str, run_id: str) -> Path:
        """Return where the steps of a run lie, whether or not there are any."""
        check_id(thread_id, run_id)
        return Path(self._layout.steps(thread_id, run_id))

    # Assistants

    async def create_assistant(self, assistant: Assistant, *, key: IdempotencyKey | None = None) -> Assistant:
        """Keep a new assistant."""
        check_assistant(assistant)
        check_key(key)
        assistants = self._parts.assistants
        return await self._write(assistants.place, "create an assistant", assistants.create, assistant, key)

    async def get_assistant(self, assistant_id: str) -> Assistant:
        """Return an assistant."""
        check_id(assistant_id)
        return await self._read("read an assistant", self._parts.assistants.get, assistant_id)

    async def list_assistants(
        self,
        *,
        tenant: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Assistant]:
        """Return assistants, in the order of their ids."""
        request = _page_request(limit, order, after, before)
        return await self._read("list the assistants", self._parts.assistants.page, request, tenant)

    async def update_assistant(self, assistant_id: str, change: Callable[[Assistant], Assistant]) -> Assistant:
        """Change an assistant to what ``change`` makes of it."""
        check_id(assistant_id)
        assistants = self._parts.assistants
        return await self._write(assistants.place, "update an assistant", assistants.update, assistant_id, change)

    async def delete_assistant(self, assistant_id: str) -> None:
        """Remove an assistant."""
        check_id(assistant_id)
        parts = self._parts
        delete = parts.writer.run(parts.assistants.delete, assistant_id, key=parts.assistants.place)
        await self._reporting("delete an assistant", delete)

    # Threads

    async def create_thread(
        self, thread: Thread, *, messages: Iterable[Message] = (), key: IdempotencyKey | None = None
    ) -> Thread:
        """Keep a new thread, with its first messages."""
        check_thread(thread)
        given = check_messages(thread.id, messages)
        check_key(key)
        parts = self._parts
        place = thread.id if key is None else parts.keys.place_of_thread(key)
        return await self._write(place, "create a thread", parts.threads.create, thread, given, key)

    async def get_thread(self, thread_id: str) -> Thread:
        """Return a thread."""
        check_id(thread_id)
        return await self._read("read a thread", self._parts.threads.get, thread_id)

    async def list_thread_ids(
        self,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[str]:
        """Return the ids of threads, in their own order."""
        request = _page_request(limit, order, after, before)
        return await self._read("list the threads", self._parts.threads.page_of_ids, request)

    async def list_threads(
        self,
        *,
        tenant: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Thread]:
        """Return threads, in the order of their ids."""
        request = _page_request(limit, order, after, before)
        return await self._read("list the threads", self._parts.threads.page, request, tenant)

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: MetadataChange | Keep = KEEP,
        tool_resources: Mapping[str, Any] | Keep | None = KEEP,
    ) -> Thread:
        """Change what is given of a thread."""
        check_id(thread_id)

        def change(old: Thread) -> Thread:
            return changed_thread(old, metadata, tool_resources)

        return await self._write(thread_id, "update a thread", self._parts.threads.update, thread_id, change)

    async def delete_thread(self, thread_id: str, *, force: bool = False) -> None:
        """Remove a thread with all that is in it."""
        check_id(thread_id)
        parts = self._parts
        run_ids = await self._write(
            thread_id, "delete a thread", partial(parts.runs.delete_thread, thread_id, force=force)
        )
        for run_id in run_ids:
            self._ring_run(thread_id, run_id)

    # Messages

    async def append_message(
        self,
        thread_id: str,
        message: Message,
        *,
        on_busy: MessageOnBusy = "enqueue",
        key: IdempotencyKey | None = None,
    ) -> Message:
        """Add a whole message to the end of a thread."""
        check_message(thread_id, message)
        check_on_busy(on_busy, MessageOnBusy)
        check_key(key)
        append = self._parts.runs.append_message
        appended = await self._write(thread_id, "append a message", append, thread_id, message, on_busy, key)
        if message.run_id is not None:
            self._signals.ring(EventsTopic(thread_id, message.run_id))
        return appended

    async def get_message(self, thread_id: str, message_id: str) -> Message:
        """Return a message."""
        check_id(thread_id, message_id)
        return await self._read("read a message", self._parts.threads.get_message, thread_id, message_id)

    async def list_messages(
        self,
        thread_id: str,
        *,
        run_id: str | None = None,
        seen_by: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Message]:
        """Return messages of a thread, in the order they were appended."""
        check_id(thread_id, *(id_ for id_ in (run_id, seen_by) if id_ is not None))
        request = _page_request(limit, order, after, before)
        parts = self._parts

        def list_messages() -> Page[Message]:
            sight = None if seen_by is None else parts.runs.sight_of(thread_id, seen_by)
            return parts.threads.page_of_messages(thread_id, request, run_id, sight)

        return await self._read("list messages", list_messages)

    async def update_message(self, thread_id: str, message_id: str, *, metadata: MetadataChange) -> Message:
        """Change a message's metadata."""
        check_id(thread_id, message_id)
        return await self._write(
            thread_id,
            "update a message",
            self._parts.threads.update_message,
            thread_id,
            message_id,
            metadata,
        )

    async def delete_message(self, thread_id: str, message_id: str) -> None:
        """Remove a message from its thread."""
        check_id(thread_id, message_id)
        await self._write(thread_id, "delete a message", self._parts.threads.delete_message, thread_id, message_id)

    # Runs

    async def create_run(
        self,
        thread_id: str,
        run: Run,
        *,
        on_busy: OnBusy = "enqueue",
        messages: Iterable[Message] = (),
        key: IdempotencyKey | None = None,
    ) -> Run:
        """Keep a new run, and queue it if its status is ``queued``."""
        check_run(thread_id, run)
        check_on_busy(on_busy)
        check_key(key)
        wish = Wish(run=run, on_busy=on_busy, messages=check_messages(thread_id, messages), key=key)
        created = await self._write(thread_id, "create a run", self._parts.new_runs.create, wish)
        for run_id in created.stopped:
            self._ring_run(thread_id, run_id)
        self._ring_queue(thread_id)
        return created.run

    async def get_run(self, thread_id: str, run_id: str) -> Run:
        """Return a run."""
        check_id(thread_id, run_id)
        return await self._read("read a run", self._parts.runs.get, thread_id, run_id)

    async def list_runs(
        self,
        thread_id: str,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Run]:
        """Return runs of a thread, in the order they were created."""
        check_id(thread_id)
        request = _page_request(limit, order, after, before)
        return await self._read("list runs", self._parts.runs.page, thread_id, request)

    async def update_run(self, thread_id: str, run_id: str, *, metadata: MetadataChange) -> Run:
        """Change a run's metadata; a lease on it stays."""
        check_id(thread_id, run_id)
        run = await self._write(thread_id, "update a run", self._parts.runs.update, thread_id, run_id, metadata)
        self._signals.ring(RunTopic(thread_id, run_id))
        return run

    async def update_run_status(
        self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None = None
    ) -> Run:
        """Bring a run to ``status`` by hand."""
        status = as_status(RunStatus, status)
        return await self._act(
            thread_id,
            run_id,
            lambda record, known, steps: lifecycle.update_status(
                record, known, status, error, open_steps=steps, now_ns=self.clock.time_ns()
            ),
        )

    async def force_update_run_status(
        self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None = None
    ) -> Run:
        """Bring a run to ``status`` from any other.

        Where another process holds the thread's lock for two seconds, as one that was frozen does, the status is
        written past it, and what the run's worker left open is settled by whoever has the lock next.
        """
        status = as_status(RunStatus, status)

        def decide(record: RunRecord, known: RunLog, steps: Iterable[RunStep]) -> Change:
            return lifecycle.force_status(record, known, status, error, open_steps=steps, now_ns=self.clock.time_ns())

        try:
            return await self._act(thread_id, run_id, decide, patience=min(_FORCE_PATIENCE, self._options.lock_timeout))
        except StoreBusyError:
            force = self._parts.runs.force_past_lock
            run = await self._write(None, "force a run", force, thread_id, run_id, status, error)
        self._ring_run(thread_id, run_id)
        return run

    async def request_cancel(self, thread_id: str, run_id: str) -> Run:
        """Ask a run to stop."""
        return await self._act(
            thread_id,
            run_id,
            lambda record, known, steps: lifecycle.request_cancel(
                record, known, open_steps=steps, now_ns=self.clock.time_ns()
            ),
        )

    async def submit_tool_outputs(self, thread_id: str, run_id: str, outputs: Iterable[ToolOutput]) -> Run:
        """Give a run the outputs it waits for, and queue it for its next turn."""
        given = check_tool_outputs(outputs)
        return await self._act(
            thread_id,
            run_id,
            lambda record, known, steps: lifecycle.submit_tool_outputs(
                record, known, given, open_steps=steps, now_ns=self.clock.time_ns()
            ),
        )

    # Steps

    async def append_step(self, thread_id: str, run_id: str, step: RunStep) -> RunStep:
        """Keep a new step of a run."""
        check_step(thread_id, run_id, step)
        kept = await self._write(thread_id, "append a step", self._parts.runs.append_step, thread_id, run_id, step)
        self._signals.ring(EventsTopic(thread_id, run_id))
        return kept

    async def get_step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        """Return a step."""
        check_id(thread_id, run_id, step_id)
        return await self._read("read a step", self._parts.runs.get_step, thread_id, run_id, step_id)

    async def list_steps(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[RunStep]:
        """Return steps of a run, in the order they were created."""
        check_id(thread_id, run_id)
        request = _page_request(limit, order, after, before)
        return await self._read("list steps", self._parts.runs.page_of_steps, thread_id, run_id, request)

    async def update_step_status(
        self,
        thread_id: str,
        run_id: str,
        step_id: str,
        status: RunStepStatus,
        *,
        details: StepDetails | None = None,
        error: RunError | None = None,
    ) -> RunStep:
        """Bring a step to ``status`` by hand."""
        check_id(thread_id, run_id, step_id)
        status = as_status(RunStepStatus, status)
        time_ns = self.clock.time_ns

        def decide(record: RunRecord, known: RunLog, step: RunStep) -> Change:
            return lifecycle.update_step(record, known, step, status, details=details, error=error, now_ns=time_ns())

        step = await self._write(
            thread_id, "update a step", self._parts.runs.update_step, thread_id, run_id, step_id, decide
        )
        self._signals.ring(EventsTopic(thread_id, run_id))
        return step

    # Queue

    async def _take(self, worker_id: str, *, adopt: bool) -> tuple[Claim | None, timedelta | None]:
        check_id(worker_id)
        parts = self._parts
        with self._signals.listening(QUEUE) as changes:
            taken = await self._try_to_take(worker_id, adopt=adopt)
            parts.recovery.start()
            parts.sweep.want()
            while taken.claim is None and parts.sweep.is_indexing:
                # The index is being made from the runs: there is nothing to take only when it says so in the end.
                await changes.wait()
                taken = await self._try_to_take(worker_id, adopt=adopt)
        if taken.met_a_lock and taken.claim is None:
            # Another process is at a thread in this moment: look again soon, later each time that it still is.
            asyncio.get_running_loop().call_later(self._lock_pause, self._signals.ring, QUEUE)
            self._lock_pause = min(self._lock_pause * 2, _LAST_LOCK_RETRY_SECONDS)
        else:
            self._lock_pause = _FIRST_LOCK_RETRY_SECONDS
        return taken.claim, taken.next_due

    async def _try_to_take(self, worker_id: str, *, adopt: bool) -> Taken:
        parts = self._parts
        if parts.is_time_to_look():
            parts.claims.candidates.must_look_at_all = True
        taking = Taking(worker_id, adopt)
        parts.takings.add(taking)
        try:
            taken = await self._reporting("take a run", parts.writer.run(parts.take, taking))
        except BaseException:
            # Cancelled, or a sync has failed: the run may be taken all the same, and nobody is going to work on it.
            if taking.claim is not None:
                await self._put_back(parts, taking.claim)
            raise
        finally:
            parts.takings.discard(taking)
            taking.is_over.set()
        for run in taken.settled:
            self._ring_run(run.thread_id, run.id)
        return taken

    async def _put_back(self, parts: Parts, claim: Claim) -> None:
        """Give back a run that was taken for somebody who does not wait for it any more."""
        answer = parts.writer.start(
            parts.runs.write, claim.lease, RunWrite(status=RunStatus.QUEUED), key=claim.run.thread_id
        )
        try:
            await until_done(answer)
        finally:
            error = answer.exception()
            if error is not None:
                ids = {"thread_id": claim.run.thread_id, "run_id": claim.run.id}
                _logger.warning("claim not put back", extra=ids, exc_info=error)
            if self._opened is parts:
                self._ring_run(claim.run.thread_id, claim.run.id)

    async def write_run(self, lease: Lease, work: RunWrite) -> Run:
        """Write for a run under its lease."""
        check_lease(lease)
        run = await self._write(lease.thread_id, "write for a run", self._parts.runs.write, lease, work)
        if work.status is not None:
            self._ring_run(lease.thread_id, lease.run_id)
        else:
            self._signals.ring(EventsTopic(lease.thread_id, lease.run_id))
        return run

    async def check_lease(self, lease: Lease) -> Run:
        """Return the run, or raise ``LeaseLostError``."""
        check_lease(lease)
        return await self._read("look at a lease", self._parts.runs.check_lease, lease)

    async def settle_run(self, thread_id: str, run_id: str) -> Run:
        """Settle what a terminal run left open."""
        return await self._act(
            thread_id,
            run_id,
            lambda record, known, steps: lifecycle.settle(record, known, open_steps=steps, now_ns=self.clock.time_ns()),
        )

    # Events

    async def _read_events(self, thread_id: str, run_id: str, position: Any) -> tuple[list[RunEvent], Any, bool]:
        check_id(thread_id, run_id)
        return await self._read("read events", self._parts.runs.read_events, thread_id, run_id, position)

    @asynccontextmanager
    async def _listen(self, *topics: Topic) -> AsyncIterator[Listener]:
        with ExitStack() as stack:
            is_heard = all([self._watch(stack, topic) for topic in topics])  # noqa: C419 - all are to be watched
            slow_look = SLOW_LOOK if is_heard else _SLOW_LOOK_WITHOUT_INOTIFY
            yield stack.enter_context(self._signals.listening(*topics, slow_look=slow_look))

    def _watch(self, stack: ExitStack, topic: Topic) -> bool:
        parts = self._parts
        if isinstance(topic, QueueTopic):
            return parts.is_queue_watched
        check_id(topic.thread_id, topic.run_id)
        heard = partial(self._heard_of_run, topic.thread_id, topic.run_id)
        return stack.enter_context(
            parts.watch.watching(self._layout.run(topic.thread_id, topic.run_id), heard, log="events.jsonl")
        )

    def _heard_of_run(self, thread_id: str, run_id: str, name: str | None) -> None:
        if name != "events.jsonl":
            self._signals.ring(RunTopic(thread_id, run_id))
        if name != "status.json":
            self._signals.ring(EventsTopic(thread_id, run_id))

    def _heard_of_queue(self, name: str | None) -> None:
        if name is not None:
            self._ring_queue(name)

    def _heard_of_nothing(self) -> None:
        """Look at everything: inotify's queue overflowed, and nobody knows what was missed."""
        self._parts.claims.candidates.must_look_at_all = True
        self._signals.ring_all()

    def _ring_run(self, thread_id: str, run_id: str) -> None:
        self._signals.ring(RunTopic(thread_id, run_id))
        self._signals.ring(EventsTopic(thread_id, run_id))
        self._ring_queue(thread_id)

    def _ring_queue(self, thread_id: str | None) -> None:
        if thread_id is not None and self._opened is not None:  # what was under way when it was closed rings, too
            self._opened.claims.candidates.look_at(thread_id)
        self._signals.ring(QUEUE)

    # Upkeep

    async def check(self, *, fix: bool = False, progress: Callable[[int, int], object] | None = None) -> CheckReport:
        """Read everything, and say what is wrong.

        What is damaged is moved to ``.threadloom/damaged`` by a fix, and never deleted (``docs/format.md``).
        """
        from threadloom.stores.files.check import Check  # noqa: PLC0415 - rarely asked for, and slow to import

        parts = self._parts
        await parts.sweep.indexed.wait()
        check = Check(self._layout, parts, max_attempts=self._options.max_attempts, now_ns=self.clock.time_ns, fix=fix)
        try:
            return await self._reporting("check the store", check.run(progress))
        finally:
            for thread_id, run_ids in check.changed:
                for run_id in run_ids:
                    self._ring_run(thread_id, run_id)

    # Hops

    async def _act(
        self,
        thread_id: str,
        run_id: str,
        decide: Callable[[RunRecord, RunLog, Iterable[RunStep]], Change | None],
        *,
        patience: timedelta | None = None,
    ) -> Run:
        check_id(thread_id, run_id)
        act = self._parts.runs.act
        run = await self._write(thread_id, "change a run", act, thread_id, run_id, decide, patience=patience)
        self._ring_run(thread_id, run_id)
        return run

    async def _write(
        self,
        thread_id: str | None,
        doing: str,
        function: Callable[..., Work[T]],
        *args: Any,
        patience: timedelta | None = None,
    ) -> T:
        writer = self._parts.writer
        return await self._reporting(doing, writer.run(function, *args, key=thread_id, patience=patience))

    async def _read(self, doing: str, function: Callable[..., T], *args: Any) -> T:
        return await self._reporting(doing, self._parts.reader.run(function, *args))

    async def _reporting(self, doing: str, work: Awaitable[T]) -> T:
        try:
            return await work
        except OSError as error:
            raise StoreIOError(doing, error) from error

    # Opening and closing

    @property
    def _parts(self) -> Parts:
        if self._opened is None:
            raise StoreClosedError
        return self._opened

    @property
    def is_open(self) -> bool:
        """Whether the store can be used."""
        return self._opened is not None

    async def _open(self) -> None:
        async with self._gate:
            if self._opened is None:
                await self._open_parts()

    async def _open_parts(self) -> None:
        check_locks_exist()
        parts = Parts(self._layout, self._options, lambda run: self._ring_run(run.thread_id, run.id))
        try:
            is_indexed = await self._reporting(
                "open the store", parts.writer.run(parts.prepare, key=self._layout.journals)
            )
        except BaseException:
            await carried_out(parts.close())
            raise
        self._opened = parts
        parts.watch.start(self._heard_of_nothing)
        parts.watch_queue(self._heard_of_queue)
        parts.sweep.start(self._ring_queue, is_indexed=is_indexed, note_boot=parts.note_boot)

    async def close(self) -> None:
        """End what is pending, and give back every thread, task and descriptor."""
        async with self._gate:
            parts, self._opened = self._opened, None
            if parts is not None:
                self._signals.ring_all()
                await carried_out(parts.close())


def _page_request(limit: int | None, order: str, after: str | None, before: str | None) -> PageRequest:
    check_page(limit, order)
    check_id(*(cursor for cursor in (after, before) if cursor is not None))
    return PageRequest(limit=limit, order=order, after=after, before=before)
