"""What a backend keeps besides the models, and what a transaction may change: the vocabulary of the seam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from attrs import define, frozen

from threadloom.events import Checkpoint, MessageDelta, RunEvent, RunLog, StepDelta
from threadloom.models import (
    Assistant,
    IncompleteDetails,
    Message,
    RequiredAction,
    Run,
    RunError,
    RunStatus,
    RunStep,
    Thread,
    Usage,
)

__all__ = [
    "AssistantChange",
    "Change",
    "Claim",
    "Created",
    "Lease",
    "MessageEdit",
    "RunChange",
    "RunItem",
    "RunRecord",
    "RunState",
    "RunWrite",
]

T_co = TypeVar("T_co", covariant=True)


@frozen(kw_only=True)
class Lease:
    """The right of one worker to write for one run.

    thread_id: the run's thread.
    run_id: the run.
    worker_id: the worker, by the name it gave when it claimed the run.
    token: random, new with each claim; a write without the current token raises ``LeaseLostError``.
    attempt: the run's attempt when it was claimed, from 1.
    liveness_id: what the backend judges the worker's liveness by; empty where the backend needs nothing.
    """

    thread_id: str
    run_id: str
    worker_id: str
    token: str
    attempt: int
    liveness_id: str = ""


@frozen
class RunRecord:
    """A run, and the lease on it while it has one."""

    run: Run
    lease: Lease | None = None


@frozen
class Claim:
    """A run that a worker has claimed.

    run: the run as it is now.
    lease: the right to write for it.
    has_past: whether somebody worked on it before. Then its steps and checkpoints tell what was done.
    """

    run: Run
    lease: Lease
    has_past: bool = False


RunItem = RunStep | Message | MessageDelta | StepDelta | Checkpoint


@frozen(kw_only=True)
class RunWrite:
    """What a worker writes for its run in one transaction.

    items: taken in order. A step, new or changed; a message ``in_progress``, which is only announced; a whole message,
        which is appended to the thread; deltas; checkpoints.
    status: the run's new status, None to keep it. Any status but ``in_progress`` gives the lease back; ``queued`` puts
        the run back to be claimed again.
    error: the run's ``last_error`` with a new status.
    incomplete_details: why the run is ``incomplete``, with that status.
    required_action: the calls whose outputs the run waits for, with ``requires_action``.
    usage: the run's tokens, None to keep them.
    spent: tokens of failed attempts, None to keep them; zero tokens clear them.
    retry_at: with ``queued``, the moment before which nobody claims the run.
    attempt_failed: with ``queued``, whether the attempt counts as failed.
    """

    items: tuple[RunItem, ...] = ()
    status: RunStatus | None = None
    error: RunError | None = None
    incomplete_details: IncompleteDetails | None = None
    required_action: RequiredAction | None = None
    usage: Usage | None = None
    spent: Usage | None = None
    retry_at: int | None = None
    attempt_failed: bool = False


@define
class RunState:
    """A run as a transaction sees it: its record, and the fold of its event log.

    unlogged_steps: open steps that the log does not know, written by an external writer. Iterating may read them.
    """

    record: RunRecord
    log: RunLog
    unlogged_steps: Iterable[RunStep] = ()

    @property
    def run(self) -> Run:
        """The run."""
        return self.record.run


@frozen
class RunChange:
    """What a transaction writes for one run.

    record: the run and its lease afterwards, the same object as before where neither changes.
    steps: steps to put, whole.
    messages: messages to append to the thread, in order. Each is in ``events`` too.
    events: events to append to the run's log, with their numbers.
    is_new: whether the transaction creates the run.
    """

    record: RunRecord
    steps: tuple[RunStep, ...] = ()
    messages: tuple[Message, ...] = ()
    events: tuple[RunEvent, ...] = ()
    is_new: bool = False


@frozen
class MessageEdit:
    """New metadata of a message that is in the thread, or None to delete it; a deleted one stays a cursor."""

    message_id: str
    metadata: dict[str, Any] | None


@frozen
class Created:
    """An idempotency key, and the object that was created under it, as it was then."""

    key: str
    fingerprint: str
    value: Assistant | Thread | Message | Run


@frozen(kw_only=True)
class Change(Generic[T_co]):
    """What one transaction writes in a thread, completely or not at all, and what it returns.

    result: what ``Backend.transact`` returns.
    thread: the thread's record to put; it creates the thread where there is none.
    messages: messages that belong to no run, to append before those of ``runs``.
    runs: changes of runs. A new run comes first, and there is at most one.
    edits: changes of messages that are in the thread already.
    created: an idempotency key to keep.
    is_deleted: whether the thread is removed with all that is in it.
    """

    result: T_co
    thread: Thread | None = None
    messages: tuple[Message, ...] = ()
    runs: tuple[RunChange, ...] = ()
    edits: tuple[MessageEdit, ...] = ()
    created: Created | None = None
    is_deleted: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.thread or self.messages or self.runs or self.edits or self.created or self.is_deleted)


@frozen(kw_only=True)
class AssistantChange(Generic[T_co]):
    """What one transaction writes of an assistant, and what it returns.

    assistant: the record to put, None to leave it as it is.
    created: an idempotency key to keep.
    is_deleted: whether the assistant is removed.
    """

    result: T_co
    assistant: Assistant | None = None
    created: Created | None = None
    is_deleted: bool = False
