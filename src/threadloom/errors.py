"""Every error that threadloom raises on purpose.

    ThreadloomError
    ├── InvalidInputError (ValueError)        an argument is invalid
    │   ├── InvalidIdError                    an id is malformed
    │   ├── InvalidMetadataError              metadata exceeds its limits
    │   └── InvalidCursorError                ``after`` or ``before`` is not in the list
    ├── NotFoundError (LookupError)           the object does not exist
    │   ├── AssistantNotFoundError
    │   ├── ThreadNotFoundError
    │   ├── MessageNotFoundError
    │   ├── RunNotFoundError
    │   └── RunStepNotFoundError
    ├── ConflictError                         the state of the store does not allow it
    │   ├── AssistantAlreadyExistsError
    │   ├── ThreadAlreadyExistsError
    │   ├── RunAlreadyExistsError
    │   ├── RunStepAlreadyExistsError
    │   ├── ActiveRunError                    the thread has an active run
    │   ├── RunInTerminalStateError           the run is terminal
    │   ├── InvalidTransitionError            the run cannot move to that status
    │   ├── ToolOutputsRefusedError           the run does not wait for tool outputs
    │   ├── IdempotencyKeyReusedError         the key belongs to a different request
    │   └── LeaseLostError                    the worker no longer holds the run's lease
    └── StoreError                            the store failed
        ├── SerializationError                a record is damaged
        ├── StoreIOError (wraps OSError)      the operating system reported an error
        ├── StoreBusyError                    another process held a lock for too long
        └── StoreClosedError                  the store is not open

Every message is one sentence that names the problem. Its values are attributes of the error too.
"""

from __future__ import annotations

__all__ = [
    "ActiveRunError",
    "AssistantAlreadyExistsError",
    "AssistantNotFoundError",
    "ConflictError",
    "IdempotencyKeyReusedError",
    "InvalidCursorError",
    "InvalidIdError",
    "InvalidInputError",
    "InvalidMetadataError",
    "InvalidTransitionError",
    "LeaseLostError",
    "MessageNotFoundError",
    "NotFoundError",
    "RunAlreadyExistsError",
    "RunInTerminalStateError",
    "RunNotFoundError",
    "RunStepAlreadyExistsError",
    "RunStepNotFoundError",
    "SerializationError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreError",
    "StoreIOError",
    "ThreadAlreadyExistsError",
    "ThreadNotFoundError",
    "ThreadloomError",
    "ToolOutputsRefusedError",
]


class ThreadloomError(Exception):
    """Base class of all errors that threadloom raises on purpose."""


class InvalidInputError(ThreadloomError, ValueError):
    """An argument is invalid. Nothing was written."""


class InvalidIdError(InvalidInputError):
    """An id is malformed. It is refused before any path is built from it.

    Attributes:
        value: The malformed id.
    """

    def __init__(self, value: object) -> None:
        super().__init__(
            f"{_shortened(value)} is not a valid id: use 1 to 128 ASCII letters, digits, '_' and '-', "
            "starting with a letter or a digit."
        )
        self.value = value


class InvalidMetadataError(InvalidInputError):
    """Metadata exceeds its limits: at most 16 pairs of strings, keys up to 64 characters, values up to 512."""


class InvalidCursorError(InvalidInputError):
    """``after`` or ``before`` is not the id of an item in the list.

    Attributes:
        cursor: The unknown id.
    """

    def __init__(self, cursor: str, listing: str) -> None:
        super().__init__(f"{_shortened(cursor)} is not a valid cursor: it is not among the {listing}.")
        self.cursor = cursor


class NotFoundError(ThreadloomError, LookupError):
    """The object does not exist in the store."""


class AssistantNotFoundError(NotFoundError):
    """The assistant does not exist.

    Attributes:
        assistant_id: Id of the assistant.
    """

    def __init__(self, assistant_id: str) -> None:
        super().__init__(f"Assistant {assistant_id!r} does not exist.")
        self.assistant_id = assistant_id


class ThreadNotFoundError(NotFoundError):
    """The thread does not exist.

    Attributes:
        thread_id: Id of the thread.
    """

    def __init__(self, thread_id: str) -> None:
        super().__init__(f"Thread {thread_id!r} does not exist.")
        self.thread_id = thread_id


class MessageNotFoundError(NotFoundError):
    """The message does not exist in the thread, or was deleted.

    Attributes:
        thread_id: Id of the thread.
        message_id: Id of the message.
    """

    def __init__(self, thread_id: str, message_id: str) -> None:
        super().__init__(f"Message {message_id!r} does not exist in thread {thread_id!r}.")
        self.thread_id = thread_id
        self.message_id = message_id


class RunNotFoundError(NotFoundError):
    """The run does not exist in the thread.

    Attributes:
        thread_id: Id of the thread.
        run_id: Id of the run.
    """

    def __init__(self, thread_id: str, run_id: str) -> None:
        super().__init__(f"Run {run_id!r} does not exist in thread {thread_id!r}.")
        self.thread_id = thread_id
        self.run_id = run_id


class RunStepNotFoundError(NotFoundError):
    """The step does not exist in the run.

    Attributes:
        run_id: Id of the run.
        step_id: Id of the step.
    """

    def __init__(self, run_id: str, step_id: str) -> None:
        super().__init__(f"Step {step_id!r} does not exist in run {run_id!r}.")
        self.run_id = run_id
        self.step_id = step_id


class ConflictError(ThreadloomError):
    """The state of the store does not allow the operation. Nothing was written."""


class AssistantAlreadyExistsError(ConflictError):
    """An assistant with this id exists. It was not changed.

    Attributes:
        assistant_id: Id of the assistant.
    """

    def __init__(self, assistant_id: str) -> None:
        super().__init__(f"Assistant {assistant_id!r} already exists.")
        self.assistant_id = assistant_id


class ThreadAlreadyExistsError(ConflictError):
    """A thread with this id exists. It was not changed.

    Attributes:
        thread_id: Id of the thread.
    """

    def __init__(self, thread_id: str) -> None:
        super().__init__(f"Thread {thread_id!r} already exists.")
        self.thread_id = thread_id


class RunAlreadyExistsError(ConflictError):
    """A run with this id exists in the thread. It was not changed.

    Attributes:
        thread_id: Id of the thread.
        run_id: Id of the run.
    """

    def __init__(self, thread_id: str, run_id: str) -> None:
        super().__init__(f"Run {run_id!r} already exists in thread {thread_id!r}.")
        self.thread_id = thread_id
        self.run_id = run_id


class RunStepAlreadyExistsError(ConflictError):
    """A step with this id exists in the run. It was not changed.

    Attributes:
        run_id: Id of the run.
        step_id: Id of the step.
    """

    def __init__(self, run_id: str, step_id: str) -> None:
        super().__init__(f"Step {step_id!r} already exists in run {run_id!r}.")
        self.run_id = run_id
        self.step_id = step_id


class ActiveRunError(ConflictError):
    """The thread has an active run.

    Attributes:
        thread_id: Id of the thread.
        run_id: Id of the active run.
    """

    def __init__(self, thread_id: str, run_id: str) -> None:
        super().__init__(f"Thread {thread_id!r} already has an active run {run_id!r}.")
        self.thread_id = thread_id
        self.run_id = run_id


class RunInTerminalStateError(ConflictError):
    """The run is terminal, and a terminal run stays terminal (G6).

    Attributes:
        run_id: Id of the run.
        status: The terminal status of the run.
    """

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(f"Run {run_id!r} is already {status}; only force_update_run_status can change it.")
        self.run_id = run_id
        self.status = status


class InvalidTransitionError(ConflictError):
    """The run cannot move from its status to the requested one.

    Attributes:
        run_id: Id of the run.
        status: The current status of the run.
        asked: The requested status.
    """

    def __init__(self, run_id: str, status: str, asked: str, allowed: str) -> None:
        super().__init__(f"Run {run_id!r} is {status} and cannot become {asked}; it can only become {allowed}.")
        self.run_id = run_id
        self.status = status
        self.asked = asked


class ToolOutputsRefusedError(ConflictError):
    """The run does not wait for tool outputs.

    Attributes:
        run_id: Id of the run.
        status: The current status of the run.
    """

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(f'Runs in status "{status}" do not accept tool outputs.')
        self.run_id = run_id
        self.status = status


class IdempotencyKeyReusedError(ConflictError):
    """The idempotency key was used before, for a different request.

    Attributes:
        key: Value of the key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"The idempotency key {_shortened(key)} was already used for a different request.")
        self.key = key


class LeaseLostError(ConflictError):
    """The worker no longer holds the run's lease. Its write changed nothing (G5).

    Attributes:
        run_id: Id of the run.
        worker_id: Id of the worker.
    """

    def __init__(self, run_id: str, worker_id: str) -> None:
        super().__init__(f"Worker {worker_id!r} no longer holds the lease on run {run_id!r}.")
        self.run_id = run_id
        self.worker_id = worker_id


class StoreError(ThreadloomError):
    """The store failed."""


class SerializationError(StoreError):
    """A record is damaged. It stays where it is, and is never reported as "not found" (G8).

    Attributes:
        where: File or other place that holds the record.
        reason: The problem with it, as the end of a sentence.
        offset: Byte of the log at which the damaged line starts, or None for a whole file.
    """

    def __init__(self, where: str, reason: str, *, offset: int | None = None) -> None:
        place = where if offset is None else f"{where}, byte {offset}"
        super().__init__(f"{place} is damaged: {reason}.")
        self.where = where
        self.reason = reason
        self.offset = offset


class StoreIOError(StoreError):
    """The storage failed. Its error is the ``__cause__``.

    Attributes:
        errno: The system's number of the error, or None if it has none.
        where: File or other place that the error names, or None if it names none.
    """

    def __init__(self, doing: str, error: Exception, *, where: str | None = None) -> None:
        if where is None and isinstance(error, OSError) and error.filename is not None:
            where = str(error.filename)
        reason = (isinstance(error, OSError) and error.strerror) or error
        super().__init__(f"Could not {doing}: {reason} ({where or 'no place is known'}).")
        self.errno: int | None = error.errno if isinstance(error, OSError) else None
        self.where = where


class StoreBusyError(StoreError):
    """Another process held a lock for longer than the store waits. Nothing was written."""


class StoreClosedError(StoreError):
    """The store is not open."""

    def __init__(self) -> None:
        super().__init__("The store is not open: use 'async with', or call open() first and close() last.")


def _shortened(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
