"""The seam: what every store can do, and what it promises. Backends lie below it, workers and servers above."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from attrs import frozen

from threadloom.checks import KEEP, IdempotencyKey, Keep, MessageOnBusy, MetadataChange, OnBusy
from threadloom.clock import Clock, SystemClock
from threadloom.events import Checkpoint, EventType, RunEvent
from threadloom.lifecycle import Lease, RunWrite
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
from threadloom.pages import Order, Page
from threadloom.report import CheckReport
from threadloom.signals import QUEUE, EventsTopic, Listener, RunTopic, Topic

__all__ = [
    "KEEP",
    "Claim",
    "IdempotencyKey",
    "Keep",
    "Lease",
    "MessageOnBusy",
    "MetadataChange",
    "OnBusy",
    "RunWrite",
    "ThreadStore",
]


@frozen
class Claim:
    """A run that a worker has taken, as it is now, and the lease to write for it.

    ``has_past`` says whether somebody worked on it before: then its steps and checkpoints tell what was done.
    """

    run: Run
    lease: Lease
    has_past: bool = False


class ThreadStore(ABC):
    """Threads, their messages, runs and steps, kept durably.

    What every store promises:

    * **G1 atomic.** A method happens whole or not at all, also when the process or the machine dies in the middle of
      it. (This is about crashes: a reader at that moment may see a finished run's message before its status, never
      after.)
    * **G2 durable.** When a write returns, it survives ``kill -9``, and a power cut too where the store says so.
    * **G3 fresh.** A read that starts after a write returned sees it, from any process on the store.
    * **G4 ordered.** Messages come in the order they were appended, steps and runs of a thread in the order they were
      created, also within one second and across a clock that runs backwards; records without a place of their own come
      first, by ``created_at`` and id. A cursor stays good while others add and delete.
    * **G5 exclusive.** At most one live lease per run. A worker's write without it raises ``LeaseLostError`` and
      changes nothing.
    * **G6 lawful.** A settled run stays settled: ``update_run_status`` on a terminal run raises
      ``RunInTerminalStateError``. Only ``force_update_run_status`` may pass, and what it writes always wins.
    * **G7 cancellable.** Cancelling a caller's task never leaves half a write and never leaks a lease. A write that has
      not begun is withdrawn; one that has is awaited to its end, then the cancellation goes on.
    * **G8 honest.** Damage is never read as "not found" and never silently dropped: it raises an error that names the
      file, or, in a listing, is reported in ``Page.damaged`` and set aside. One damaged record never hides the others.

    Every method raises ``InvalidIdError`` for what is not an id, before anything is looked up; the ``...NotFoundError``
    of what it names and does not find; and a ``StoreError`` where the store itself is at fault. Methods that write
    return the object as written. Methods that list return a ``Page``: all, oldest first, unless ``limit`` (at least 1),
    ``order``, ``after`` and ``before`` (ids, exclusive, in the order asked for) narrow it.

    Methods that create take an idempotency ``key``: where something was created under it, they write nothing and return
    the object as it was made then, or raise ``IdempotencyKeyReusedError`` where the key's fingerprint is another. It is
    kept in the same act as the object, also when processes race.
    """

    clock: Clock

    def __init__(self, *, clock: Clock | None = None) -> None:
        self.clock = SystemClock() if clock is None else clock

    @classmethod
    async def open(cls, *args: Any, **options: Any) -> Self:
        """Return a store that is open, made of the class's own arguments; ``close`` it when done."""
        store = cls(*args, **options)
        await store._open()
        return store

    async def __aenter__(self) -> Self:
        """Open the store, unless it is open."""
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.close()

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the store can be used."""

    @abstractmethod
    async def _open(self) -> None:
        """Make the store ready for use; nothing where it is already."""

    @abstractmethod
    async def close(self) -> None:
        """End what is pending, and give back every thread, task and descriptor; nothing where it is closed."""

    # Assistants

    @abstractmethod
    async def create_assistant(self, assistant: Assistant, *, key: IdempotencyKey | None = None) -> Assistant:
        """Keep a new assistant; ``AssistantAlreadyExistsError`` where the id is taken, and nothing is overwritten."""

    @abstractmethod
    async def get_assistant(self, assistant_id: str) -> Assistant:
        """Return an assistant."""

    @abstractmethod
    async def list_assistants(
        self,
        *,
        tenant: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Assistant]:
        """Return assistants, all or those of a tenant, in the order of ``list_thread_ids``, with any id as a cursor."""

    @abstractmethod
    async def update_assistant(self, assistant_id: str, change: Callable[[Assistant], Assistant]) -> Assistant:
        """Change an assistant to what ``change`` makes of it. Runs that were created before keep what they took of it.

        ``change`` runs under the lock, as with ``MetadataChange``. It raises ``InvalidInputError`` for one that changes
        the id.
        """

    @abstractmethod
    async def delete_assistant(self, assistant_id: str) -> None:
        """Remove an assistant; its threads and runs stay."""

    # Threads

    @abstractmethod
    async def create_thread(
        self, thread: Thread, *, messages: Iterable[Message] = (), key: IdempotencyKey | None = None
    ) -> Thread:
        """Keep a new thread, with its first messages; ``ThreadAlreadyExistsError`` where the id is taken.

        Nothing is overwritten then.
        """

    @abstractmethod
    async def get_thread(self, thread_id: str) -> Thread:
        """Return a thread."""

    @abstractmethod
    async def list_thread_ids(
        self,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[str]:
        """Return the ids of threads, in the order of the ids: for ids made here, the order in which they were made.

        Any id is a cursor, also one of a thread that was deleted.
        """

    @abstractmethod
    async def list_threads(
        self,
        *,
        tenant: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Thread]:
        """Return threads, all or those of a tenant, in the order of ``list_thread_ids``."""

    @abstractmethod
    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: MetadataChange | Keep = KEEP,
        tool_resources: Mapping[str, Any] | Keep | None = KEEP,
    ) -> Thread:
        """Change what is given of a thread; ``InvalidMetadataError`` where metadata breaks the limits."""

    @abstractmethod
    async def delete_thread(self, thread_id: str, *, force: bool = False) -> None:
        """Remove a thread with all that is in it.

        ``ActiveRunError`` while one of its runs is not settled, unless forced: then the workers on them lose their
        leases.
        """

    # Messages

    @abstractmethod
    async def append_message(
        self,
        thread_id: str,
        message: Message,
        *,
        on_busy: MessageOnBusy = "enqueue",
        key: IdempotencyKey | None = None,
    ) -> Message:
        """Add a whole message to the end of a thread.

        Its id is not compared with those of the thread: a message that is appended twice is there twice. With
        ``on_busy="reject"`` an active run of the thread raises ``ActiveRunError``, decided in the same act.
        """

    @abstractmethod
    async def get_message(self, thread_id: str, message_id: str) -> Message:
        """Return a message."""

    @abstractmethod
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
        """Return messages of a thread, in the order they were appended.

        ``run_id`` narrows to those that the run wrote; ``seen_by`` to those that the run's handler is given: what was
        there when the run was created, and what it and the runs before it have written since.
        """

    @abstractmethod
    async def update_message(self, thread_id: str, message_id: str, *, metadata: MetadataChange) -> Message:
        """Change a message's metadata."""

    @abstractmethod
    async def delete_message(self, thread_id: str, message_id: str) -> None:
        """Remove a message from its thread. It still serves as a cursor."""

    # Runs

    @abstractmethod
    async def create_run(
        self,
        thread_id: str,
        run: Run,
        *,
        on_busy: OnBusy = "enqueue",
        messages: Iterable[Message] = (),
        key: IdempotencyKey | None = None,
    ) -> Run:
        """Keep a new run, and queue it if its status is ``queued``. A terminal one is history and is only kept.

        ``messages`` are appended before it, and the run sees them. Where the thread has active runs, ``enqueue`` lets
        the new one wait for its turn; ``reject`` raises ``ActiveRunError``; ``interrupt`` does to all of them what
        ``request_cancel`` does, so that the new one begins when the handler at work has ended or lost its lease;
        ``rollback`` also removes the messages that they wrote, and keeps nothing of what they still write. All of it is
        one act, also when processes race; a terminal run rejects and stops nobody.
        """

    @abstractmethod
    async def get_run(self, thread_id: str, run_id: str) -> Run:
        """Return a run."""

    @abstractmethod
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

    @abstractmethod
    async def update_run(self, thread_id: str, run_id: str, *, metadata: MetadataChange) -> Run:
        """Change a run's metadata; a lease on it stays."""

    @abstractmethod
    async def update_run_status(
        self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None = None
    ) -> Run:
        """Bring a run to ``status`` by hand and set ``last_error`` to ``error``, none clearing it.

        It takes away the lease, if there is one. ``RunInTerminalStateError`` for a settled run;
        ``InvalidTransitionError`` for one that is ``cancelling``, unless it becomes ``cancelled``.
        """

    @abstractmethod
    async def force_update_run_status(
        self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None = None
    ) -> Run:
        """Bring a run to ``status`` from any other, take away its lease, and settle what a worker left open.

        The worker hears of it and cancels its handler. ``queued`` queues the run anew, at attempt 1: its handler finds
        nothing of what it did before but the messages in the thread.
        """

    @abstractmethod
    async def request_cancel(self, thread_id: str, run_id: str) -> Run:
        """Ask a run to stop: ``cancelled`` at once where no worker is on it, else ``cancelling``.

        Asking again changes nothing. ``RunInTerminalStateError`` for a settled run.
        """

    @abstractmethod
    async def submit_tool_outputs(self, thread_id: str, run_id: str, outputs: Iterable[ToolOutput]) -> Run:
        """Give a run in ``requires_action`` the outputs it waits for, and queue it for its next turn, in one act.

        All outputs come at once: ``InvalidInputError``, which names the ids that were expected and got, where one is
        missing, unknown or there twice. ``ToolOutputsRefusedError`` for a run that waits for none. The run keeps the
        turn of its thread, and no attempt is counted.
        """

    async def wait_for_run(self, thread_id: str, run_id: str, *, timeout: timedelta | None = None) -> Run:
        """Return the run once it is settled or in ``requires_action``, whoever brought it there, in any process.

        ``TimeoutError`` when ``timeout`` has gone by; none waits for ever.
        """
        seconds = None if timeout is None else timeout.total_seconds()
        run = await self.get_run(thread_id, run_id)
        if run.status.is_terminal or run.status is RunStatus.REQUIRES_ACTION:
            return run  # also where there is no time at all to wait
        async with asyncio.timeout(seconds), self._listen(RunTopic(thread_id, run_id)) as changes:
            while True:
                run = await self.get_run(thread_id, run_id)
                if run.status.is_terminal or run.status is RunStatus.REQUIRES_ACTION:
                    return run
                await changes.wait()

    # Steps

    @abstractmethod
    async def append_step(self, thread_id: str, run_id: str, step: RunStep) -> RunStep:
        """Keep a new step of a run; ``RunStepAlreadyExistsError`` where the id is taken."""

    @abstractmethod
    async def get_step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        """Return a step."""

    @abstractmethod
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

    @abstractmethod
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
        """Bring a step to ``status`` by hand and set the moment at which it came there.

        ``details`` and ``error`` replace what the step has; none keeps it.
        """

    # Queue

    async def claim_run(self, worker_id: str, *, adopt: bool = False) -> Claim:
        """Take the run that has waited longest among those whose turn it is in their threads; wait until there is one.

        ``adopt`` takes runs over that somebody drives by hand, ``in_progress`` and without a lease, in the attempt that
        they are in. Without it they are left alone, and keep their threads' turns.
        Cancelling the wait leaks no lease: a run that was taken in that moment is put back.
        """
        async with self._listen(QUEUE) as changes:
            while True:
                claim, next_due = await self._take(worker_id, adopt=adopt)
                if claim is not None:
                    return claim
                async with _alarm(self.clock, next_due, changes):
                    await changes.wait()

    async def try_claim_run(self, worker_id: str, *, adopt: bool = False) -> Claim | None:
        """Take a run as ``claim_run`` does, or return none at once where there is none to take."""
        claim, _ = await self._take(worker_id, adopt=adopt)
        return claim

    @abstractmethod
    async def _take(self, worker_id: str, *, adopt: bool) -> tuple[Claim | None, timedelta | None]:
        """Return a claim, or none and how long until one that waits may be taken, if any does.

        A queued run past its ``expires_at`` is settled as ``expired`` instead of being taken.
        """

    @abstractmethod
    async def write_run(self, lease: Lease, work: RunWrite) -> Run:
        """Write for a run under its lease, all in one act, or raise ``LeaseLostError`` and change nothing."""

    @abstractmethod
    async def check_lease(self, lease: Lease) -> Run:
        """Return the run as it is now, or raise ``LeaseLostError`` where the lease is not live."""

    async def wait_for_stop(self, lease: Lease) -> None:
        """Return once the run is asked to stop; raise ``LeaseLostError`` once the lease is lost."""
        async with self._listen(RunTopic(lease.thread_id, lease.run_id)) as changes:
            while (await self.check_lease(lease)).status is not RunStatus.CANCELLING:
                await changes.wait()

    @abstractmethod
    async def settle_run(self, thread_id: str, run_id: str) -> Run:
        """Settle what a terminal run left open: steps, a streamed text, the end of its events.

        It changes no status, needs no lease, and does nothing for a run that is settled or not terminal. It is for a
        terminal status that was written by a program which knows nothing of steps and events.
        """

    # Events

    async def events(self, thread_id: str, run_id: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        """Yield what happens in a run, in order, from the event past number ``after`` to the run's last.

        It follows a live run, whichever process works on it, and holds nobody up: a slow reader reads later.
        Checkpoints are left out; they are the handler's own.
        """
        has_ended = False
        position: Any = None
        status = RunTopic(thread_id, run_id)
        heard: Collection[Topic] | None = None
        async with self._listen(EventsTopic(thread_id, run_id), status) as changes:
            while True:
                events, position, is_all = await self._read_events(thread_id, run_id, position)
                for event in events:
                    if isinstance(event.data, Run):
                        has_ended = event.data.status.is_terminal
                    if event.number > after and event.type is not EventType.CHECKPOINT:
                        yield event
                if not is_all:
                    continue
                if has_ended:
                    return
                may_have_ended = heard is None or status in heard
                if may_have_ended and (await self.get_run(thread_id, run_id)).status.is_terminal:
                    # A program that knows no events wrote the status, and no worker has settled the run yet.
                    await self.settle_run(thread_id, run_id)
                    heard = ()
                    continue
                heard = await changes.wait()

    async def get_checkpoints(self, thread_id: str, run_id: str) -> dict[str, Any]:
        """Return what a run's handler has kept by ``ctx.checkpoint``, by name, since the run last began anew."""
        anew_from = (await self.get_run(thread_id, run_id)).anew_from or 0
        results: dict[str, Any] = {}
        position: Any = None
        while True:
            events, position, is_all = await self._read_events(thread_id, run_id, position)
            for event in events:
                if isinstance(event.data, Checkpoint) and event.number > anew_from:
                    results[event.data.name] = event.data.result
            if is_all:
                return results

    @abstractmethod
    async def _read_events(self, thread_id: str, run_id: str, position: Any) -> tuple[list[RunEvent], Any, bool]:
        """Return events from ``position`` on, none being the beginning, the place behind them, and if they are all."""

    @abstractmethod
    def _listen(self, *topics: Topic) -> AbstractAsyncContextManager[Listener]:
        """Return a context in which a change of one of ``topics`` rings a bell, whichever process makes it."""

    # Upkeep

    @abstractmethod
    async def check(self, *, fix: bool = False, progress: Callable[[int, int], object] | None = None) -> CheckReport:
        """Read everything, and say what is wrong; what is only being written at that moment is not.

        ``fix`` mends what can be mended without guessing, sets aside what is damaged, and deletes nothing; a second
        check then finds only what somebody has to look at. Others go on meanwhile, also in other processes. Between two
        threads ``progress`` is told how many were looked at and how many there are, and a cancelled check ends.
        """


@asynccontextmanager
async def _alarm(clock: Clock, delay: timedelta | None, listener: Listener) -> AsyncIterator[None]:
    """Ring ``listener`` when ``delay`` has gone by within the context; never, if there is none."""

    async def ring_later(delay: timedelta) -> None:
        await clock.sleep(delay)
        listener.ring()

    if delay is None:
        yield
        return
    alarm = asyncio.create_task(ring_later(delay))
    try:
        yield
    finally:
        alarm.cancel()
