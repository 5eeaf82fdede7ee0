"""The seam: what a backend does for ``ThreadStore``. A backend stores; it decides nothing about threads or runs.

What a transaction decides (statuses, order, busy policies, expiry, claims, keys) is a pure function in ``rules``.
A backend gives such a function a view, and applies the change it returns, completely or not at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from attrs import field, frozen

from threadloom.check_report import CheckReport
from threadloom.clock import Clock
from threadloom.events import RunEvent
from threadloom.models import Assistant, Message, Run, RunStep, Thread
from threadloom.notifications import Listener, Topic
from threadloom.pages import Page, PageRequest
from threadloom.records import AssistantChange, Change, Created, Lease, RunState

__all__ = ["AssistantView", "Backend", "Candidates", "EventBatch", "ThreadView"]

T = TypeVar("T")


class ThreadView(ABC):
    """A consistent view of one thread, as a transaction or a read sees it. Everything is synchronous.

    thread_id: the thread that was asked for, whether or not there is one.
    now_ns: the store's time, in nanoseconds since 1970.
    """

    thread_id: str
    now_ns: int

    @property
    @abstractmethod
    def thread(self) -> Thread | None:
        """The thread's record, None where there is no such thread."""

    @property
    @abstractmethod
    def active_runs(self) -> Sequence[RunState]:
        """The runs that are not terminal, or whose log has not ended, in their order."""

    @property
    @abstractmethod
    def last_sequence(self) -> int:
        """The highest ``sequence`` that a run of the thread was given, 0 for none."""

    @property
    @abstractmethod
    def message_count(self) -> int:
        """How many messages were ever appended, deleted ones included: the place of the next one, counted from 0."""

    @abstractmethod
    def run(self, run_id: str) -> RunState | None:
        """Return a run, None where there is none."""

    @abstractmethod
    def step(self, run_id: str, step_id: str) -> RunStep | None:
        """Return a step, None where there is none."""

    @abstractmethod
    def message(self, message_id: str) -> Message | None:
        """Return a message with its edits applied, None where there is none or it is deleted."""

    @abstractmethod
    def messages_written_by(self, run_ids: Collection[str], since: int) -> Iterable[str]:
        """Return the ids of messages from place ``since`` on that these runs wrote and that are not deleted."""

    @abstractmethod
    def created(self, kind: type[Thread | Message | Run], key: str) -> Created | None:
        """Return what was created under an idempotency key; threads share one namespace, the others have one a thread.

        For ``Thread`` only the key that ``Backend.transact`` was given may be asked for.
        """

    @abstractmethod
    def is_gone(self, lease: Lease) -> bool:
        """Return whether the worker that holds a lease is dead or hung."""

    @abstractmethod
    def list_runs(self, page: PageRequest) -> Page[Run]:
        """Return a page of the thread's runs in their order: those without ``sequence`` first, by time and id."""

    @abstractmethod
    def list_steps(self, run_id: str, page: PageRequest) -> Page[RunStep]:
        """Return a page of a run's steps in their order."""

    @abstractmethod
    def list_messages(self, page: PageRequest, *, run_id: str | None, seen_by: str | None) -> Page[Message]:
        """Return a page of messages in their order, those of ``run_id`` only, or those that run ``seen_by`` is given.

        A run is given what is before its ``messages_before``, and what it and the runs before it wrote.
        """


class AssistantView(ABC):
    """An assistant, as a transaction sees it."""

    @property
    @abstractmethod
    def assistant(self) -> Assistant | None:
        """The assistant's record, None where there is no such assistant."""

    @abstractmethod
    def created(self, key: str) -> Created | None:
        """Return the assistant that was created under an idempotency key."""


@frozen
class Candidates:
    """Threads in which there may be a run to claim, or to expire.

    places: threads to try for a claim, each with the ``sequence`` of its first active run as the backend knows it, 0
        for none; the lowest come first. Where that run has ended meanwhile, nothing is claimed: by its next run, the
        thread may have to wait behind others.
    overdue_ids: threads with a run past its ``expires_at`` that no worker holds. Where there are any, ``places`` may be
        empty: the caller expires these first, and asks again.
    next_due_ns: the store's time at which there may be more without any notification, None if no moment is known.
    """

    places: Mapping[str, int] = field(factory=dict)
    overdue_ids: Sequence[str] = ()
    next_due_ns: int | None = None


@frozen
class EventBatch:
    """Events of a run, in order.

    position: where the next batch begins; only the backend that made it knows what is in it.
    is_all: whether nothing more was there when the batch was read. A batch without events that is not all means that
        there are some which may not be shown yet, since the run's record lags behind them.
    """

    events: Sequence[RunEvent]
    position: Any = None
    is_all: bool = True


class Backend(ABC):
    """Keeps threads, and tells who waits that something changed. Implement these methods to add a backend.

    The methods are called with ids that are valid, between ``open`` and ``close``. They raise ``StoreIOError`` where
    the storage fails, ``SerializationError`` where a record is damaged, ``StoreBusyError`` where somebody else keeps a
    thread locked for too long. Cancelling a caller never leaves half a write: a write that has not begun is withdrawn,
    one that has is awaited, then the cancellation goes on.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    @abstractmethod
    async def open(self) -> None:
        """Prepare for use."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what has begun, and release every thread, task and descriptor. Nothing is called afterwards."""

    # Threads

    @abstractmethod
    async def transact(
        self, thread_id: str, decide: Callable[[ThreadView], Change[T]], *, key: str | None = None, waits: bool = True
    ) -> T:
        """Apply what ``decide`` returns for a view that nobody else changes meanwhile, and return its result.

        ``decide`` is quick, synchronous and pure. It may be called again on a newer view, and in any OS thread. What it
        raises is raised, and nothing is written. ``key`` is an idempotency key of threads: transactions with the same
        one exclude each other. With ``waits`` false, ``StoreBusyError`` is raised at once where somebody else has the
        thread locked. Afterwards every listener is notified of what changed, in every process.
        """

    async def override(self, thread_id: str, run_id: str, change: Callable[[Run], Run]) -> Run | None:
        """Replace a run's record although somebody keeps the thread locked; return the run, None if that is impossible.

        It is for a force, which nothing may hold up: a process may be frozen in the middle of a transaction. The next
        transaction finds that the record differs from the run's events, and does the rest.
        """
        del thread_id, run_id, change
        return None

    @abstractmethod
    async def read(self, thread_id: str, look: Callable[[ThreadView], T]) -> T:
        """Return what ``look`` returns for a view of the thread; it sees every write that returned before.

        ``look`` is quick, synchronous and pure. It need not wait for transactions that are under way.
        """

    @abstractmethod
    async def list_thread_ids(self, page: PageRequest) -> Page[str]:
        """Return a page of the ids of threads, in their own order; any id is a cursor."""

    @abstractmethod
    async def read_events(self, thread_id: str, run_id: str, position: Any = None) -> EventBatch:
        """Return events of a run from ``position`` on, checkpoints included, at first from the beginning.

        Raise ``RunNotFoundError`` or ``ThreadNotFoundError`` where there is no such run.
        """

    # Assistants

    @abstractmethod
    async def transact_assistant(
        self, assistant_id: str, decide: Callable[[AssistantView], AssistantChange[T]], *, key: str | None = None
    ) -> T:
        """Do for an assistant what ``transact`` does for a thread."""

    @abstractmethod
    async def read_assistant(self, assistant_id: str) -> Assistant | None:
        """Return an assistant, None where there is none."""

    @abstractmethod
    async def list_assistant_ids(self, page: PageRequest) -> Page[str]:
        """Return a page of the ids of assistants, in their own order; any id is a cursor."""

    # Work

    @abstractmethod
    async def candidates(self, limit: int, *, adopt: bool) -> Candidates:
        """Return at most ``limit`` threads to try for a claim; with ``adopt``, those with runs driven by hand too.

        Threads with overdue runs do not count towards ``limit``, which may be 0. A thread that was returned is not
        returned again until a transaction on it has returned, or was cancelled, or something in it has changed; after
        one that has failed, a thread that may recover is returned again in a while. There may turn out to be nothing
        to claim in it. The caller begins a transaction on every thread that was returned.
        """

    @abstractmethod
    async def register_worker(self) -> str:
        """Begin to prove this store's liveness; return the ``liveness_id`` for its leases. Called before a claim."""

    @abstractmethod
    async def abandoned(self) -> Sequence[str]:
        """Wait until workers are found gone; return the threads that may have runs under their leases."""

    @abstractmethod
    def listen(self, *topics: Topic) -> AbstractAsyncContextManager[Listener]:
        """Return a context in which changes of ``topics`` wake the listener, whichever process makes them."""

    # Upkeep

    @abstractmethod
    async def check(self, *, fix: bool, progress: Callable[[int, int], object]) -> CheckReport:
        """Read everything, and report what is damaged; with ``fix`` repair what can be repaired without guessing."""
