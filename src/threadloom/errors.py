"""Every error that threadloom raises on purpose.

    ThreadloomError
    ├── InvalidInputError (ValueError)        what was handed in cannot be used
    │   ├── InvalidIdError                    not an id, so never a path
    │   ├── InvalidMetadataError              breaks the limits on metadata
    │   └── InvalidCursorError                ``after`` or ``before`` names nothing in the list
    ├── NotFoundError (LookupError)           the object is not in the store
    │   ├── AssistantNotFoundError
    │   ├── ThreadNotFoundError
    │   ├── MessageNotFoundError
    │   ├── RunNotFoundError
    │   └── RunStepNotFoundError
    ├── ConflictError                         what is there does not allow it
    │   ├── AssistantAlreadyExistsError
    │   ├── ThreadAlreadyExistsError
    │   ├── RunAlreadyExistsError
    │   ├── RunStepAlreadyExistsError
    │   ├── ActiveRunError                    another run of the thread is not finished
    │   ├── RunInTerminalStateError           a settled run stays settled
    │   ├── InvalidTransitionError            no such step in a run's life
    │   ├── ToolOutputsRefusedError           the run does not wait for any
    │   ├── IdempotencyKeyReusedError         the key was given with something else
    │   └── LeaseLostError                    the run is not this worker's any more
    └── StoreError                            the store cannot do its work
        ├── SerializationError                a file does not hold what it should
        ├── StoreIOError (OSError's context)  the operating system refused
        ├── StoreBusyError                    another process held a lock for too long
        └── StoreClosedError                  used before it was opened or after it was closed

Every message is one sentence that names what was wrong; the values in it are attributes too.
"""

from __future__ import annotations

from pathlib import Path

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
    """The root of the tree: catch it to catch all that threadloom raises on purpose."""


class InvalidInputError(ThreadloomError, ValueError):
    """What was handed in cannot be used; nothing was written."""


class InvalidIdError(InvalidInputError):
    """Not an id: it was refused before it could become a path."""

    def __init__(self, value: object) -> None:
        super().__init__(
            f"{_shortened(value)} is not an id: 1 to 128 ASCII letters, digits, '_' and '-', "
            "beginning with a letter or a digit."
        )
        self.value = value


class InvalidMetadataError(InvalidInputError):
    """Metadata that breaks the limits: 16 pairs of strings, keys to 64 characters, values to 512."""


class InvalidCursorError(InvalidInputError):
    """``after`` or ``before`` is no id of the list that is paged through."""

    def __init__(self, cursor: str, listing: str) -> None:
        super().__init__(f"{_shortened(cursor)} is no cursor here: it names nothing among the {listing}.")
        self.cursor = cursor


class NotFoundError(ThreadloomError, LookupError):
    """The object is not in the store."""


class AssistantNotFoundError(NotFoundError):
    """No such assistant."""

    def __init__(self, assistant_id: str) -> None:
        super().__init__(f"No assistant {assistant_id!r}.")
        self.assistant_id = assistant_id


class ThreadNotFoundError(NotFoundError):
    """No such thread."""

    def __init__(self, thread_id: str) -> None:
        super().__init__(f"No thread {thread_id!r}.")
        self.thread_id = thread_id


class MessageNotFoundError(NotFoundError):
    """No such message in the thread, or it was deleted."""

    def __init__(self, thread_id: str, message_id: str) -> None:
        super().__init__(f"No message {message_id!r} in thread {thread_id!r}.")
        self.thread_id = thread_id
        self.message_id = message_id


class RunNotFoundError(NotFoundError):
    """No such run in the thread."""

    def __init__(self, thread_id: str, run_id: str) -> None:
        super().__init__(f"No run {run_id!r} in thread {thread_id!r}.")
        self.thread_id = thread_id
        self.run_id = run_id


class RunStepNotFoundError(NotFoundError):
    """No such step in the run."""

    def __init__(self, run_id: str, step_id: str) -> None:
        super().__init__(f"No step {step_id!r} in run {run_id!r}.")
        self.run_id = run_id
        self.step_id = step_id


class ConflictError(ThreadloomError):
    """What is in the store does not allow it; nothing was written."""


class AssistantAlreadyExistsError(ConflictError):
    """The id is taken; the assistant that has it is untouched."""

    def __init__(self, assistant_id: str) -> None:
        super().__init__(f"Assistant {assistant_id!r} already exists.")
        self.assistant_id = assistant_id


class ThreadAlreadyExistsError(ConflictError):
    """The id is taken; the thread that has it is untouched."""

    def __init__(self, thread_id: str) -> None:
        super().__init__(f"Thread {thread_id!r} already exists.")
        self.thread_id = thread_id


class RunAlreadyExistsError(ConflictError):
    """The id is taken within its thread; the run that has it is untouched."""

    def __init__(self, thread_id: str, run_id: str) -> None:
        super().__init__(f"Run {run_id!r} already exists in thread {thread_id!r}.")
        self.thread_id = thread_id
        self.run_id = run_id


class RunStepAlreadyExistsError(ConflictError):
    """The id is taken within its run; the step that has it is untouched."""

    def __init__(self, run_id: str, step_id: str) -> None:
        super().__init__(f"Step {step_id!r} already exists in run {run_id!r}.")
        self.run_id = run_id
        self.step_id = step_id


class ActiveRunError(ConflictError):
    """The thread has a run that is not finished."""

    def __init__(self, thread_id: str, run_id: str) -> None:
        super().__init__(f"Thread {thread_id!r} already has an active run {run_id!r}.")
        self.thread_id = thread_id
        self.run_id = run_id


class RunInTerminalStateError(ConflictError):
    """The run is settled, and a settled run stays settled (G6)."""

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(f"Run {run_id!r} is {status} and stays so; only force_update_run_status may change it.")
        self.run_id = run_id
        self.status = status


class InvalidTransitionError(ConflictError):
    """The life of a run has no such step."""

    def __init__(self, run_id: str, status: str, asked: str, allowed: str) -> None:
        super().__init__(f"Run {run_id!r} is {status} and cannot become {asked}; it may become {allowed}.")
        self.run_id = run_id
        self.status = status
        self.asked = asked


class ToolOutputsRefusedError(ConflictError):
    """The run does not wait for tool outputs."""

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(f'Runs in status "{status}" do not accept tool outputs.')
        self.run_id = run_id
        self.status = status


class IdempotencyKeyReusedError(ConflictError):
    """An idempotency key stands for the one thing that was created under it; this is another."""

    def __init__(self, key: str) -> None:
        super().__init__(f"The idempotency key {_shortened(key)} was used before, and with something else.")
        self.key = key


class LeaseLostError(ConflictError):
    """The run is not this worker's any more; its write was not made (G5)."""

    def __init__(self, run_id: str, worker_id: str) -> None:
        super().__init__(f"Worker {worker_id!r} does not hold run {run_id!r} any more.")
        self.run_id = run_id
        self.worker_id = worker_id


class StoreError(ThreadloomError):
    """The store cannot do its work."""


class SerializationError(StoreError):
    """A record is damaged. It is left where it is, and never read as "not found" (G8)."""

    def __init__(self, path: Path | str, reason: str, *, offset: int | None = None) -> None:
        where = str(path) if offset is None else f"{path}, byte {offset}"
        super().__init__(f"{where} is damaged: {reason}.")
        self.path = Path(path)
        self.reason = reason
        self.offset = offset


class StoreIOError(StoreError):
    """The operating system refused. ``__cause__`` is its error; ``errno`` and ``path`` are taken from it."""

    def __init__(self, doing: str, error: OSError) -> None:
        super().__init__(f"Could not {doing}: {error.strerror or error} ({error.filename or 'no path'}).")
        self.errno = error.errno
        self.path = None if error.filename is None else Path(str(error.filename))


class StoreBusyError(StoreError):
    """Another process held what is needed for longer than the store waits; nothing was written."""


class StoreClosedError(StoreError):
    """The store is not open."""

    def __init__(self) -> None:
        super().__init__("The store is not open: use 'async with', or open() before and close() after.")


def _shortened(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
