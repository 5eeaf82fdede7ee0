"""``ThreadStore``: what every store does and promises, written once over a ``Backend``."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import attrs

from threadloom.backend import AssistantView, Backend, EventBatch, ThreadView
from threadloom.check_report import CheckReport
from threadloom.clock import Clock
from threadloom.copies import detached
from threadloom.errors import (
    AssistantNotFoundError,
    InvalidInputError,
    LeaseLostError,
    NotFoundError,
    SerializationError,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    StoreIOError,
    ThreadloomError,
)
from threadloom.events import Checkpoint, EventType, RunEvent
from threadloom.ids import check_id
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
from threadloom.notifications import QUEUE, EventsTopic, Listener, RunTopic, Topic
from threadloom.pages import Order, Page, PageRequest
from threadloom.records import AssistantChange, Change, Claim, Lease, RunWrite
from threadloom.rules import queue as queue_rules
from threadloom.rules import run as run_rules
from threadloom.rules import thread as thread_rules
from threadloom.tasks import finish
from threadloom.validation import (
    KEEP,
    IdempotencyKey,
    Keep,
    MessageOnBusy,
    MetadataChange,
    OnBusy,
    as_status,
    check_key,
    check_lease,
    check_on_busy,
    owned_assistant,
    owned_details,
    owned_error,
    owned_message,
    owned_messages,
    owned_run,
    owned_step,
    owned_thread,
    owned_work,
    page_request,
    seconds_of,
    tool_outputs,
)

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

T = TypeVar("T")
R = TypeVar("R", Thread, Assistant)

logger = logging.getLogger("threadloom")

_SLOW_LOOK: Final = 1.0  # seconds; how often a reader looks for events that a backend holds back
_UPKEEP_PAUSE: Final = 1.0  # seconds; how often a store with a worker looks for overdue runs
_READ_TOGETHER: Final = 64  # records that a list reads concurrently
_LONGEST_ALARM: Final = timedelta(hours=24)


class ThreadStore:
    """Threads with their messages, runs and steps, and assistants, kept durably.

    Open a store with ``async with``, or with ``open`` and ``close``. What every store promises:

    * **G1 atomic.** A method takes effect completely or not at all, even if the process or the machine dies while it
      runs. (This is about crashes: a concurrent reader may see the message of a run that ends before its status, never
      after it.)
    * **G2 durable.** When a write returns, it survives ``kill -9``, and a power failure too where the store says so.
    * **G3 fresh.** A read that starts after a write returned sees that write, from any process.
    * **G4 ordered.** Messages are ordered by append, runs of a thread and steps of a run by creation, even within one
      second and whatever the clock does. Records of external writers, which have no place of their own, come first, by
      ``created_at`` and id. Cursors stay valid while others add and delete.
    * **G5 exclusive.** A run has at most one live lease. A worker's write without it raises ``LeaseLostError`` and
      changes nothing.
    * **G6 lawful.** A terminal run stays terminal. Only ``force_update_run_status`` may override, and it always wins.
    * **G7 cancellable.** Cancelling a caller never leaves a half-finished write or a leaked lease. A write that has not
      begun is withdrawn; one that has begun is finished before the cancellation goes on.
    * **G8 honest.** Damage is never reported as "not found" and never silently dropped: it raises an error that says
      where it is, or, in a list, is reported in ``Page.damaged``. One damaged record never hides the others.

    Every method raises ``InvalidIdError`` for an argument that is not an id, before anything is looked up; a
    ``...NotFoundError`` for an object that does not exist; ``StoreClosedError`` while the store is not open, and
    another ``StoreError`` where the storage fails. Methods that write return the object as written. Objects that are
    passed in or returned share nothing with the store.

    Methods that list return a ``Page``: everything, oldest first, unless narrowed by these parameters:

    * ``limit``: the most items to return, at least 1; None for all.
    * ``order``: ``"asc"`` for oldest first, ``"desc"`` for newest first.
    * ``after``, ``before``: return the items after and before those with these ids, in the order asked for. A list of
      messages, runs or steps raises ``InvalidCursorError`` for an id that is not in it. With ``before`` alone, the page
      has the items nearest before it.

    Methods that create take an idempotency ``key``: where an object was created under it before, they write nothing and
    return that object as it was then, or raise ``IdempotencyKeyReusedError`` if the fingerprint differs. The key is
    kept in the same transaction as the object, even when processes race.

    backend: keeps everything.
    max_attempts: how many attempts at a run may be lost with their workers before the run fails; at least 1, 3 by
        default.
    """

    def __init__(self, backend: Backend, *, max_attempts: int = 3) -> None:
        self._backend = backend
        self._max_attempts = max_attempts
        self._is_open = False
        self._sequence = 0
        self._liveness_id: str | None = None
        self._registration = asyncio.Lock()
        self._upkeep: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._claims = _UnderWay()
        self._lifecycle: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    @classmethod
    async def open(cls, *args: Any, **options: Any) -> Self:
        """Return an open store, constructed from the arguments of the class; ``close`` it when done."""
        store = cls(*args, **options)
        return await store.__aenter__()

    async def __aenter__(self) -> Self:
        """Open the store, unless it is open."""
        async with self._one_at_a_time():
            if self._is_open:
                self._check()
                return self
            opening = asyncio.create_task(self._backend.open())
            cancelled = await finish(opening)
            if cancelled is not None:
                if not opening.cancelled() and opening.exception() is None:
                    await self._close_backend()
                raise cancelled
            opening.result()
            self._loop = asyncio.get_running_loop()
            self._is_open = True
            self._registration = asyncio.Lock()
            self._claims = _UnderWay()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.close()

    async def close(self) -> None:
        """Finish pending writes, and release every task, thread and descriptor; does nothing on a closed store."""
        async with self._one_at_a_time():
            if not self._is_open:
                return
            if self._loop is not None and self._loop.is_closed():
                self._claims = _UnderWay()  # whatever was under way there is over
                self._upkeep.clear()
            else:
                self._check()
            self._is_open = False
            self._liveness_id = None
            for task in self._upkeep:
                task.cancel()
            # One that is under way may have to put a run back.
            claims = asyncio.create_task(self._claims.wait_for_none())
            cancelled = await finish(*self._upkeep, claims)
            self._upkeep.clear()
            await self._close_backend()
            if cancelled is not None:
                raise cancelled

    async def _close_backend(self) -> None:
        closing = asyncio.create_task(self._backend.close())
        cancelled = await finish(closing)
        if cancelled is not None:
            raise cancelled
        closing.result()

    def _one_at_a_time(self) -> asyncio.Lock:
        """Return the lock under which the store is opened or closed; an event loop that is over may have left one."""
        loop = asyncio.get_running_loop()
        if self._lifecycle is None or self._lifecycle[0] is not loop:
            self._lifecycle = loop, asyncio.Lock()
        return self._lifecycle[1]

    @property
    def is_open(self) -> bool:
        """Whether the store can be used."""
        return self._is_open

    @property
    def clock(self) -> Clock:
        """The clock of the store."""
        return self._backend.clock

    # Assistants

    async def create_assistant(self, assistant: Assistant, *, key: IdempotencyKey | None = None) -> Assistant:
        """Keep a new assistant.

        assistant: raises ``AssistantAlreadyExistsError`` if its id is taken; nothing is overwritten.
        key: an idempotency key, None for none.
        """
        owned = owned_assistant(assistant)
        check_key(key)
        decide = partial(thread_rules.create_assistant, assistant=owned, key=key)
        return await self._transact_assistant(owned.id, decide, key=key)

    async def get_assistant(self, assistant_id: str) -> Assistant:
        """Return an assistant."""
        self._check(assistant_id)
        assistant = await self._backend.read_assistant(assistant_id)
        if assistant is None:
            raise AssistantNotFoundError(assistant_id)
        return detached(assistant)

    async def list_assistants(
        self,
        *,
        tenant: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Assistant]:
        """Return assistants in the order of their ids. Any id is a cursor.

        tenant: return only the assistants of this tenant; None for all.
        """
        page = page_request(limit, order, after, before)
        return await self._filled(page, self._backend.list_assistant_ids, self.get_assistant, tenant)

    async def update_assistant(self, assistant_id: str, change: Callable[[Assistant], Assistant]) -> Assistant:
        """Change an assistant. Runs that were created before keep what they took from it.

        change: from the old assistant to the new one, called as a ``MetadataChange`` is. It raises
            ``InvalidInputError`` if the new one has another id.
        """
        decide = partial(thread_rules.update_assistant, assistant_id=assistant_id, change=change)
        return await self._transact_assistant(assistant_id, decide)

    async def delete_assistant(self, assistant_id: str) -> None:
        """Remove an assistant. Its threads and runs stay."""
        await self._transact_assistant(assistant_id, partial(thread_rules.delete_assistant, assistant_id=assistant_id))

    # Threads

    async def create_thread(
        self, thread: Thread, *, messages: Iterable[Message] = (), key: IdempotencyKey | None = None
    ) -> Thread:
        """Keep a new thread, with its first messages.

        thread: raises ``ThreadAlreadyExistsError`` if its id is taken; nothing is overwritten.
        messages: whole messages that belong to no run.
        key: an idempotency key, None for none.
        """
        owned = owned_thread(thread)
        given = owned_messages(owned.id, messages)
        check_key(key)
        decide = partial(thread_rules.create_thread, thread=owned, messages=given, key=key)
        return await self._transact(owned.id, decide, key=key)

    async def get_thread(self, thread_id: str) -> Thread:
        """Return a thread."""
        return await self._read(thread_id, thread_rules.get_thread)

    async def list_thread_ids(
        self,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[str]:
        """Return the ids of threads in their own order: for ids made here, the order in which they were made.

        Any id is a cursor, even one of a thread that was deleted.
        """
        page = page_request(limit, order, after, before)
        self._check()
        return await self._backend.list_thread_ids(page)

    async def list_threads(
        self,
        *,
        tenant: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Thread]:
        """Return threads in the order of ``list_thread_ids``.

        tenant: return only the threads of this tenant; None for all.
        """
        page = page_request(limit, order, after, before)
        return await self._filled(page, self._backend.list_thread_ids, self.get_thread, tenant)

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: MetadataChange | Keep = KEEP,
        tool_resources: Mapping[str, Any] | Keep | None = KEEP,
    ) -> Thread:
        """Change a thread.

        metadata: new metadata, or a function from the old to the new; raises ``InvalidMetadataError`` if it breaks the
            limits. ``KEEP`` keeps it.
        tool_resources: new tool resources, None to clear them. ``KEEP`` keeps them.
        """
        decide = partial(thread_rules.update_thread, metadata=metadata, tool_resources=tool_resources)
        return await self._transact(thread_id, decide)

    async def delete_thread(self, thread_id: str, *, force: bool = False) -> None:
        """Remove a thread with everything in it.

        force: remove it even while one of its runs is active, which raises ``ActiveRunError`` otherwise. The workers
            lose their leases.
        """
        await self._transact(thread_id, partial(thread_rules.delete_thread, force=force))

    # Messages

    async def append_message(
        self,
        thread_id: str,
        message: Message,
        *,
        on_busy: MessageOnBusy = "enqueue",
        key: IdempotencyKey | None = None,
    ) -> Message:
        """Append a whole message to a thread.

        message: its id is not compared with those in the thread; a message that is appended twice is there twice.
        on_busy: ``"reject"`` raises ``ActiveRunError`` if a run of the thread is active, decided in the same
            transaction; ``"enqueue"`` appends all the same.
        key: an idempotency key, None for none.
        """
        owned = owned_message(thread_id, message)
        check_on_busy(on_busy, MessageOnBusy)
        check_key(key)
        decide = partial(thread_rules.append_message, message=owned, rejects=on_busy == "reject", key=key)
        return await self._transact(thread_id, decide)

    async def get_message(self, thread_id: str, message_id: str) -> Message:
        """Return a message."""
        check_id(message_id)
        return await self._read(thread_id, partial(thread_rules.get_message, message_id=message_id))

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
        """Return messages of a thread, in the order in which they were appended.

        run_id: return only the messages that this run wrote; None for all.
        seen_by: return only the messages that the handler of this run is given: those that were in the thread when the
            run was created, and those that it and the runs before it have written since; None for all.
        """
        page = page_request(limit, order, after, before)
        check_id(*[id_ for id_ in (run_id, seen_by) if id_ is not None])
        look = partial(thread_rules.list_messages, page=page, run_id=run_id, seen_by=seen_by)
        return await self._read(thread_id, look)

    async def update_message(self, thread_id: str, message_id: str, *, metadata: MetadataChange) -> Message:
        """Change the metadata of a message.

        metadata: new metadata, or a function from the old to the new; raises ``InvalidMetadataError`` if it breaks the
            limits.
        """
        check_id(message_id)
        decide = partial(thread_rules.update_message, message_id=message_id, metadata=metadata)
        return await self._transact(thread_id, decide)

    async def delete_message(self, thread_id: str, message_id: str) -> None:
        """Remove a message from its thread. It still serves as a cursor."""
        check_id(message_id)
        await self._transact(thread_id, partial(thread_rules.delete_message, message_id=message_id))

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
        """Keep a new run. It is queued if its status is ``queued``; a terminal one is history, and is only kept.

        run: raises ``RunAlreadyExistsError`` if its id is taken in the thread; nothing is overwritten.
        on_busy: what to do where the thread has active runs. ``"enqueue"`` lets the new run wait for its turn.
            ``"reject"`` raises ``ActiveRunError``. ``"interrupt"`` does to all of them what ``request_cancel`` does, so
            the new run begins once the handler at work has ended or has lost its lease. ``"rollback"`` also removes the
            messages that they wrote, and keeps none that they still write. A terminal run rejects and stops nobody.
        messages: whole messages that belong to no run, appended before the run, which sees them.
        key: an idempotency key, None for none.
        """
        owned = owned_run(thread_id, run)
        check_on_busy(on_busy)
        given = owned_messages(thread_id, messages)
        check_key(key)
        # Runs of different threads are claimed in this order, even while the clock stands still or goes back.
        self._sequence = max(self.clock.time_ns() // 1_000, self._sequence + 1)
        decide = partial(
            thread_rules.create_run, run=owned, messages=given, on_busy=on_busy, sequence=self._sequence, key=key
        )
        return await self._transact(thread_id, decide)

    async def get_run(self, thread_id: str, run_id: str) -> Run:
        """Return a run."""
        check_id(run_id)
        return await self._read(thread_id, partial(thread_rules.get_run, run_id=run_id))

    async def list_runs(
        self,
        thread_id: str,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Run]:
        """Return runs of a thread, in the order in which they were created."""
        page = page_request(limit, order, after, before)
        return await self._read(thread_id, partial(thread_rules.list_runs, page=page))

    async def update_run(self, thread_id: str, run_id: str, *, metadata: MetadataChange) -> Run:
        """Change the metadata of a run; a lease on it stays.

        metadata: new metadata, or a function from the old to the new; raises ``InvalidMetadataError`` if it breaks the
            limits.
        """
        check_id(run_id)
        return await self._transact(thread_id, partial(thread_rules.update_run, run_id=run_id, metadata=metadata))

    async def update_run_status(
        self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None = None
    ) -> Run:
        """Bring a run to a status by hand, which revokes its lease.

        status: raises ``RunInTerminalStateError`` if the run is terminal, and ``InvalidTransitionError`` if it is
            ``cancelling`` and this is neither ``cancelling`` nor ``cancelled``.
        error: the run's new ``last_error``, None to clear it.
        """
        check_id(run_id)
        new = as_status(RunStatus, status)
        decide = partial(thread_rules.update_run_status, run_id=run_id, status=new, error=owned_error(error))
        return await self._transact(thread_id, decide)

    async def force_update_run_status(
        self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None = None
    ) -> Run:
        """Bring a run to a status from any other, revoke its lease, and close what its worker left open.

        The worker cancels its handler.

        status: ``queued`` starts the run over, at attempt 1: its handler finds nothing of what it did before except the
            messages in the thread.
        error: the run's new ``last_error``, None to clear it.
        """
        check_id(run_id)
        new = as_status(RunStatus, status)
        reason = owned_error(error)
        decide = partial(thread_rules.force_run_status, run_id=run_id, status=new, error=reason)
        try:
            return await self._transact(thread_id, decide)
        except StoreBusyError:
            # A process that is frozen keeps the thread locked. A force wins all the same.
            change = partial(run_rules.forced_record, status=new, error=reason, now_ns=self.clock.time_ns())
            run = await self._backend.override(thread_id, run_id, change)
            if run is None:
                raise
            return detached(run)

    async def request_cancel(self, thread_id: str, run_id: str) -> Run:
        """Ask a run to stop: it is ``cancelled`` at once where no worker holds it, else ``cancelling``.

        Asking again changes nothing. A terminal run raises ``RunInTerminalStateError``.
        """
        check_id(run_id)
        return await self._transact(thread_id, partial(thread_rules.cancel_run, run_id=run_id))

    async def submit_tool_outputs(self, thread_id: str, run_id: str, outputs: Iterable[ToolOutput]) -> Run:
        """Give a run in ``requires_action`` the outputs it waits for, and queue it for its next turn.

        The run keeps its place in the thread, and no attempt is counted. A run that waits for no outputs raises
        ``ToolOutputsRefusedError``.

        outputs: one for each call. ``InvalidInputError`` names the expected and the given ids if one is missing,
            unknown or there twice.
        """
        check_id(run_id)
        given = tool_outputs(outputs)
        return await self._transact(thread_id, partial(thread_rules.submit_tool_outputs, run_id=run_id, outputs=given))

    async def wait_for_run(self, thread_id: str, run_id: str, *, timeout: timedelta | float | None = None) -> Run:
        """Return the run once it is terminal or in ``requires_action``, whichever process brings it there.

        timeout: a ``timedelta`` or seconds, after which ``TimeoutError`` names the run and its status; None waits for
            ever.
        """
        run = await self.get_run(thread_id, run_id)
        if _is_at_rest(run):
            return run  # even without any time to wait
        try:
            async with (
                asyncio.timeout(seconds_of(timeout)),
                self._backend.listen(RunTopic(thread_id, run_id)) as changes,
            ):
                while not _is_at_rest(run := await self.get_run(thread_id, run_id)):
                    await changes.wait()
        except TimeoutError:
            waited = f"{seconds_of(timeout)} seconds"
            raise TimeoutError(f"Run {run_id!r} of thread {thread_id!r} is {run.status} after {waited}.") from None
        return run

    # Steps

    async def append_step(self, thread_id: str, run_id: str, step: RunStep) -> RunStep:
        """Keep a new step of a run, by hand; a lease on the run stays.

        step: raises ``RunStepAlreadyExistsError`` if its id is taken in the run.
        """
        owned = owned_step(thread_id, run_id, step)
        return await self._transact(thread_id, partial(thread_rules.append_step, run_id=run_id, step=owned))

    async def get_step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        """Return a step."""
        check_id(run_id, step_id)
        return await self._read(thread_id, partial(thread_rules.get_step, run_id=run_id, step_id=step_id))

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
        """Return steps of a run, in the order in which they were created."""
        page = page_request(limit, order, after, before)
        check_id(run_id)
        return await self._read(thread_id, partial(thread_rules.list_steps, run_id=run_id, page=page))

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
        """Bring a step to a status by hand, and set the moment that belongs to it.

        details: replaces the step's details; None keeps them.
        error: replaces the step's ``last_error``; None keeps it.
        """
        check_id(run_id, step_id)
        decide = partial(
            thread_rules.update_step_status,
            run_id=run_id,
            step_id=step_id,
            status=as_status(RunStepStatus, status),
            details=owned_details(details),
            error=owned_error(error),
        )
        return await self._transact(thread_id, decide)

    # Workers

    async def claim_run(self, worker_id: str, *, adopt: bool = False) -> Claim:
        """Claim the run that has waited longest among those whose turn it is in their threads; wait until there is one.

        Cancelling the wait leaks no lease: a run that was claimed at that moment is put back.

        worker_id: an id for the worker; kept with the lease.
        adopt: also claim runs that somebody drives by hand, ``in_progress`` without a lease, in the attempt they are
            in. Otherwise they are left alone, and keep their thread's turn.
        """
        self._check(worker_id)
        claims: list[Claim] = []
        try:
            async with self._backend.listen(QUEUE) as changes:
                while not claims:
                    claims, next_due_ns = await self._claim(worker_id, 1, adopt=adopt)
                    if not claims:
                        async with _alarm(self.clock, next_due_ns, changes):
                            await changes.wait()
        except BaseException:
            await self._put_back(claims)
            raise
        return claims[0]

    async def try_claim_run(self, worker_id: str, *, adopt: bool = False) -> Claim | None:
        """Claim a run as ``claim_run`` does, or return None at once where there is none to claim."""
        claims, _ = await self._claim(worker_id, 1, adopt=adopt)
        return claims[0] if claims else None

    async def try_claim_runs(self, worker_id: str, limit: int, *, adopt: bool = False) -> list[Claim]:
        """Claim several runs as ``claim_run`` does, at most one in each thread, and return those there are at once.

        limit: the most runs to claim, at least 1; while other processes claim too, there may be fewer. Claiming many
            together costs less than one after the other.
        """
        if type(limit) is not int or limit < 1:
            raise InvalidInputError(f"limit must be a whole number from 1 up, not {limit!r}.")
        claims, _ = await self._claim(worker_id, limit, adopt=adopt)
        return claims

    async def write_run(self, lease: Lease, work: RunWrite) -> Run:
        """Write for a run under its lease, in one transaction, or raise ``LeaseLostError`` and change nothing.

        work: steps, messages, deltas and checkpoints of the run, its tokens, and its new status if it gets one.
        """
        owned = owned_work(lease, work)
        return await self._transact(lease.thread_id, partial(thread_rules.write_run, lease=lease, work=owned))

    async def check_lease(self, lease: Lease) -> Run:
        """Return the run as it is now, or raise ``LeaseLostError`` if the lease is not live."""
        check_lease(lease)
        return await self._read(lease.thread_id, partial(thread_rules.check_lease, lease=lease))

    async def wait_for_stop(self, lease: Lease) -> None:
        """Return once the run is asked to stop; raise ``LeaseLostError`` once the lease is lost."""
        self._check(lease.thread_id, lease.run_id)
        async with self._backend.listen(RunTopic(lease.thread_id, lease.run_id)) as changes:
            while (await self.check_lease(lease)).status is not RunStatus.CANCELLING:
                await changes.wait()

    async def finalize_run(self, thread_id: str, run_id: str) -> Run:
        """Close what a terminal run left open: its steps, a streamed text, its events.

        It changes no status, needs no lease, and does nothing for a run that is finalized or not terminal. It is for a
        terminal status that an external writer set, who knows nothing of steps and events.
        """
        check_id(run_id)
        return await self._transact(thread_id, partial(thread_rules.finalize_run, run_id=run_id))

    # Events

    async def read_events(self, thread_id: str, run_id: str, *, position: Any = None) -> EventBatch:
        """Return the next events of a run, checkpoints included, without waiting for more.

        position: the ``position`` of the batch before; None begins with the first event.
        """
        self._check(thread_id, run_id)
        batch = await self._backend.read_events(thread_id, run_id, position)
        return EventBatch([detached(event) for event in batch.events], batch.position, batch.is_all)

    async def events(self, thread_id: str, run_id: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        """Yield the events of a run in order, to its last, and follow a live run in any process.

        A slow reader holds nobody up. Checkpoints are left out, since they are the handler's own.

        after: yield only events with a higher number; 0 for all.
        """
        self._check(thread_id, run_id)
        status = RunTopic(thread_id, run_id)
        position: Any = None
        has_ended = False
        woken: Collection[Topic] | None = None  # None: any topic may have changed
        async with self._backend.listen(EventsTopic(thread_id, run_id), status) as changes:
            while True:
                batch = await self.read_events(thread_id, run_id, position=position)
                position = batch.position
                for event in batch.events:
                    if isinstance(event.data, Run):
                        has_ended = event.data.status.is_terminal
                    if event.number > after and event.type is not EventType.CHECKPOINT:
                        yield event
                if batch.events and not batch.is_all:
                    continue
                if not batch.is_all:
                    # The run's record lags behind these events: a transaction on it brings it up to date.
                    if await changes.wait(_SLOW_LOOK) is None:
                        await self.finalize_run(thread_id, run_id)
                    continue
                if has_ended:
                    return
                may_have_ended = woken is None or status in woken
                if may_have_ended and (await self.get_run(thread_id, run_id)).status.is_terminal:
                    # An external writer ended the run, and its log does not say so yet.
                    await self.finalize_run(thread_id, run_id)
                    woken = ()
                    continue
                woken = await changes.wait()

    async def get_checkpoints(self, thread_id: str, run_id: str) -> dict[str, Any]:
        """Return the results that a run's handler has kept with ``ctx.checkpoint``, since the run last began anew."""
        anew_from = (await self.get_run(thread_id, run_id)).anew_from or 0
        results: dict[str, Any] = {}
        position: Any = None
        while True:
            batch = await self.read_events(thread_id, run_id, position=position)
            position = batch.position
            for event in batch.events:
                if isinstance(event.data, Checkpoint) and event.number > anew_from:
                    results[event.data.name] = event.data.result
            if batch.is_all or not batch.events:
                return results

    # Upkeep

    async def check(self, *, fix: bool = False, progress: Callable[[int, int], object] | None = None) -> CheckReport:
        """Read everything, and report what is damaged; a write that is under way is no damage.

        Others may use the store meanwhile, in other processes too. Cancelling a check ends it.

        fix: repair what can be repaired without guessing, quarantine what is damaged, and delete nothing. A second
            check then finds only what somebody has to look at.
        progress: called before each thread and at the end, with the number of threads checked so far and of all.
        """
        self._check()
        return await self._backend.check(fix=fix, progress=progress or _ignore_progress)

    # How it is done

    def _check(self, *ids: str) -> None:
        if not self._is_open:
            raise StoreClosedError
        if self._loop is not asyncio.get_running_loop():
            raise StoreError(
                "The store was opened in another event loop, as by an earlier asyncio.run, and cannot be used in this "
                "one: open it, use it and close it within one asyncio.run."
            )
        check_id(*ids)

    async def _read(self, thread_id: str, look: Callable[[ThreadView], T]) -> T:
        self._check(thread_id)
        return detached(await self._backend.read(thread_id, look))

    async def _transact(
        self,
        thread_id: str,
        decide: Callable[[ThreadView], Change[T | ThreadloomError]],
        *,
        key: IdempotencyKey | None = None,
    ) -> T:
        self._check(thread_id)
        result = await self._backend.transact(thread_id, decide, key=None if key is None else key.value)
        if isinstance(result, ThreadloomError):
            raise result
        return detached(result)

    async def _transact_assistant(
        self,
        assistant_id: str,
        decide: Callable[[AssistantView], AssistantChange[T]],
        *,
        key: IdempotencyKey | None = None,
    ) -> T:
        self._check(assistant_id)
        value = None if key is None else key.value
        return detached(await self._backend.transact_assistant(assistant_id, decide, key=value))

    async def _filled(
        self,
        request: PageRequest,
        list_ids: Callable[[PageRequest], Awaitable[Page[str]]],
        get: Callable[[str], Awaitable[R]],
        tenant: str | None,
    ) -> Page[R]:
        """Return a page of records, without those of other tenants and those that are deleted meanwhile."""
        self._check()
        limit = request.limit
        # With ``before`` alone, the page is nearest before it: walk from there in the other direction.
        is_backwards = limit is not None and request.before is not None and request.after is None
        walk = request
        if is_backwards:
            order = Order.DESC if request.order == Order.ASC else Order.ASC
            walk = PageRequest(limit, order, after=request.before)
        if limit is not None:
            walk = attrs.evolve(walk, limit=limit + 1 if tenant is None else max(limit + 1, _READ_TOGETHER))
        items: list[R] = []
        damaged: list[StoreError] = []
        async with aclosing(_records(walk, list_ids, get, damaged)) as records:
            async for record in records:
                if tenant is None or record.tenant == tenant:
                    items.append(record)
                if limit is not None and len(items) > limit:
                    break
        page = items[:limit]
        return Page(reversed(page) if is_backwards else page, len(items) > len(page), damaged=damaged)

    # Claims

    async def _claim(self, worker_id: str, limit: int, *, adopt: bool) -> tuple[list[Claim], int | None]:
        """Return at most ``limit`` claims, and when there may be more. One that the caller cannot take is put back."""
        self._check(worker_id)
        # Not cancelled halfway: only a transaction that has ended says whether there is a lease.
        task = asyncio.create_task(self._claim_candidates(worker_id, limit, adopt=adopt))
        self._claims.enter()
        try:
            cancelled = await finish(task)
            self._start_upkeep()
            if cancelled is None:
                return task.result()
            if not task.cancelled() and task.exception() is None:
                await self._put_back(task.result()[0])
            raise cancelled
        finally:
            self._claims.leave()

    async def _claim_candidates(self, worker_id: str, limit: int, *, adopt: bool) -> tuple[list[Claim], int | None]:
        liveness_id = await self._begin_work()
        claim_next = partial(queue_rules.claim_next, worker_id=worker_id, liveness_id=liveness_id, adopt=adopt)
        while True:
            self._check()
            found = await self._backend.candidates(limit, adopt=adopt)
            if not found.places and not found.overdue_ids:
                return [], found.next_due_ns
            await self._expire_overdue(found.overdue_ids)
            tries = {
                thread_id: partial(claim_next, place=place, token=secrets.token_hex(16))
                for thread_id, place in found.places.items()
            }
            made = await self._each("claim a run", tries, waits=False)
            claims = [detached(claim) for claim in made if claim is not None]
            if claims:
                return claims, None  # however few: while the caller waits for more, nobody works on these

    async def _put_back(self, claims: Iterable[Claim]) -> None:
        """Queue runs that were claimed for a caller who is gone; their attempts do not count."""
        for claim in claims:
            decide = partial(thread_rules.write_run, lease=claim.lease, work=RunWrite(status=RunStatus.QUEUED))
            task = asyncio.create_task(
                self._backend.transact(claim.lease.thread_id, decide)
            )  # also as the store closes
            await finish(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, LeaseLostError):  # forced or deleted meanwhile
                ids = {"thread_id": claim.run.thread_id, "run_id": claim.run.id, "worker_id": claim.lease.worker_id}
                logger.error(
                    "Could not requeue run %s of thread %s, whose claim was cancelled",
                    claim.run.id,
                    claim.run.thread_id,
                    exc_info=error,
                    extra=ids,
                )

    async def _begin_work(self) -> str:
        """Prove this store's liveness from the first claim on."""
        async with self._registration:
            if self._liveness_id is None:
                self._liveness_id = await self._backend.register_worker()
                self._check()
            return self._liveness_id

    def _start_upkeep(self) -> None:
        """Look after the runs of others, from the end of the first claim on."""
        if self._is_open and not self._upkeep:
            loops = (self._reclaim_abandoned, self._expire_in_time)
            self._upkeep = [asyncio.create_task(_repeat(loop)) for loop in loops]

    async def _reclaim_abandoned(self) -> None:
        """Take runs from workers that are gone, once, when there are some."""
        thread_ids = await self._backend.abandoned()
        decide = partial(queue_rules.reclaim, max_attempts=self._max_attempts)
        for runs in await self._each("reclaim a run", dict.fromkeys(thread_ids, decide)):
            for run in runs or ():
                logger.warning(
                    "Reclaimed run %s of thread %s, which is now %s",
                    run.id,
                    run.thread_id,
                    run.status,
                    extra={"thread_id": run.thread_id, "run_id": run.id, "status": run.status},
                )

    async def _expire_in_time(self) -> None:
        """Expire what is overdue, whether or not a worker has a free slot; then pause."""
        await self._expire_overdue((await self._backend.candidates(0, adopt=False)).overdue_ids)
        await asyncio.sleep(_UPKEEP_PAUSE)

    async def _expire_overdue(self, thread_ids: Collection[str]) -> None:
        if thread_ids:
            await self._each("expire a run", dict.fromkeys(thread_ids, queue_rules.expire))

    async def _each(
        self, doing: str, transactions: Mapping[str, Callable[[ThreadView], Change[T]]], *, waits: bool = True
    ) -> list[T | None]:
        """Return the results of concurrent transactions on threads; log a failure, and go on with the others.

        waits: whether to wait for threads that somebody else has locked; if not, they are passed over in silence.
        """

        async def transact(thread_id: str) -> T | None:
            try:
                return await self._backend.transact(thread_id, transactions[thread_id], waits=waits)
            except StoreClosedError:
                raise
            except StoreError as error:
                if isinstance(error, StoreBusyError) and not waits:
                    return None
                logger.warning(
                    "Could not %s in thread %s", doing, thread_id, exc_info=error, extra={"thread_id": thread_id}
                )
                return None

        if len(transactions) == 1:
            return [await transact(thread_id) for thread_id in transactions]
        return await asyncio.gather(*map(transact, transactions))


class _UnderWay:
    """Counts what is under way."""

    def __init__(self) -> None:
        self._count = 0
        self._is_none = asyncio.Event()
        self._is_none.set()

    def enter(self) -> None:
        self._count += 1
        self._is_none.clear()

    def leave(self) -> None:
        self._count -= 1
        if not self._count:
            self._is_none.set()

    async def wait_for_none(self) -> None:
        await self._is_none.wait()


async def _records(
    page: PageRequest,
    list_ids: Callable[[PageRequest], Awaitable[Page[str]]],
    get: Callable[[str], Awaitable[R]],
    damaged: list[StoreError],
) -> AsyncGenerator[R, None]:
    """Yield the records of all ids from a page on, many read concurrently; note in ``damaged`` those that are."""
    while True:
        ids = await list_ids(page)
        damaged += ids.damaged
        for first in range(0, len(ids), _READ_TOGETHER):
            chunk = ids[first : first + _READ_TOGETHER]
            for record in await asyncio.gather(*map(get, chunk), return_exceptions=True):
                if isinstance(record, SerializationError | StoreIOError):
                    damaged.append(record)
                elif not isinstance(record, BaseException):
                    yield record
                elif not isinstance(record, NotFoundError):  # deleted meanwhile
                    raise record
        if not ids.has_more:
            return
        page = attrs.evolve(page, after=ids[-1])


async def _repeat(work: Callable[[], Awaitable[None]]) -> None:
    """Call ``work`` until cancelled; whatever it raises is logged, and it is called again after a pause."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("A periodic task of the store failed")
            await asyncio.sleep(_UPKEEP_PAUSE)


@asynccontextmanager
async def _alarm(clock: Clock, due_ns: int | None, listener: Listener) -> AsyncIterator[None]:
    """Wake ``listener`` when the moment comes within the context; never, if it is None."""
    if due_ns is None:
        yield
        return
    delay = min(timedelta(microseconds=-((clock.time_ns() - due_ns) // 1_000)), _LONGEST_ALARM)

    async def wake_later() -> None:
        await clock.sleep(delay)
        listener.wake()

    alarm = asyncio.create_task(wake_later())
    try:
        yield
    finally:
        alarm.cancel()


def _is_at_rest(run: Run) -> bool:
    return run.status.is_terminal or run.status is RunStatus.REQUIRES_ACTION


def _ignore_progress(done: int, total: int) -> None:
    del done, total
