"""The rules of a thread and of all that is in it: from a view of the thread and a caller's arguments to a change.

An error that a rule raises writes nothing. Where a transaction has something to write all the same, such as the expiry
of a run that it met, the error is the result of its change, and the store raises it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from threadloom.backend import AssistantView, ThreadView
from threadloom.copies import detached
from threadloom.errors import (
    ActiveRunError,
    AssistantAlreadyExistsError,
    AssistantNotFoundError,
    LeaseLostError,
    MessageNotFoundError,
    RunAlreadyExistsError,
    RunInTerminalStateError,
    RunNotFoundError,
    RunStepAlreadyExistsError,
    RunStepNotFoundError,
    ThreadAlreadyExistsError,
    ThreadloomError,
    ThreadNotFoundError,
    ToolOutputsRefusedError,
)
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
from threadloom.pages import Page, PageRequest
from threadloom.records import (
    AssistantChange,
    Change,
    Created,
    Lease,
    MessageEdit,
    RunChange,
    RunState,
    RunWrite,
)
from threadloom.rules import run as rules
from threadloom.rules.queue import overdue_changes
from threadloom.validation import (
    IdempotencyKey,
    Keep,
    MetadataChange,
    changed_assistant,
    changed_thread,
    check_same_request,
    new_metadata,
)

__all__ = [
    "append_message",
    "append_step",
    "cancel_run",
    "check_lease",
    "create_assistant",
    "create_run",
    "create_thread",
    "delete_assistant",
    "delete_message",
    "delete_thread",
    "finalize_run",
    "force_run_status",
    "get_message",
    "get_run",
    "get_step",
    "get_thread",
    "list_messages",
    "list_runs",
    "list_steps",
    "submit_tool_outputs",
    "update_assistant",
    "update_message",
    "update_run",
    "update_run_status",
    "update_step_status",
    "update_thread",
    "write_run",
]

M = TypeVar("M", Thread, Message, Run)


# Reads


def get_thread(view: ThreadView) -> Thread:
    """Return the thread."""
    if view.thread is None:
        raise ThreadNotFoundError(view.thread_id)
    return view.thread


def get_message(view: ThreadView, message_id: str) -> Message:
    """Return a message."""
    get_thread(view)
    message = view.message(message_id)
    if message is None:
        raise MessageNotFoundError(view.thread_id, message_id)
    return message


def get_run(view: ThreadView, run_id: str) -> Run:
    """Return a run."""
    return _state(view, run_id).run


def get_step(view: ThreadView, run_id: str, step_id: str) -> RunStep:
    """Return a step."""
    _state(view, run_id)
    step = view.step(run_id, step_id)
    if step is None:
        raise RunStepNotFoundError(run_id, step_id)
    return step


def list_messages(view: ThreadView, page: PageRequest, *, run_id: str | None, seen_by: str | None) -> Page[Message]:
    """Return a page of messages."""
    get_thread(view)
    if seen_by is not None:
        _state(view, seen_by)
    return view.list_messages(page, run_id=run_id, seen_by=seen_by)


def list_runs(view: ThreadView, page: PageRequest) -> Page[Run]:
    """Return a page of runs."""
    get_thread(view)
    return view.list_runs(page)


def list_steps(view: ThreadView, run_id: str, page: PageRequest) -> Page[RunStep]:
    """Return a page of a run's steps."""
    _state(view, run_id)
    return view.list_steps(run_id, page)


def check_lease(view: ThreadView, lease: Lease) -> Run:
    """Return the run, or raise ``LeaseLostError``."""
    return _leased_state(view, lease).run


# Threads


def create_thread(
    view: ThreadView, thread: Thread, messages: tuple[Message, ...], key: IdempotencyKey | None
) -> Change[Thread]:
    """Return the change that creates a thread with its first messages."""
    before = _created(view, Thread, key)
    if before is not None:
        return Change(result=before)
    if view.thread is not None:
        raise ThreadAlreadyExistsError(thread.id)
    return Change(result=thread, thread=thread, messages=messages, created=_noted(key, thread))


def update_thread(
    view: ThreadView, metadata: MetadataChange | Keep, tool_resources: Mapping[str, Any] | Keep | None
) -> Change[Thread]:
    """Return the change of a thread's metadata and tool resources, where they are given."""
    thread = changed_thread(get_thread(view), metadata, tool_resources)
    return Change(result=thread, thread=thread)


def delete_thread(view: ThreadView, *, force: bool) -> Change[None]:
    """Return the change that removes a thread; ``ActiveRunError`` while a run is active, unless forced."""
    get_thread(view)
    if not force:
        _check_not_busy(view, overdue_changes(view))
    return Change(result=None, is_deleted=True)


# Messages


def append_message(view: ThreadView, message: Message, *, rejects: bool, key: IdempotencyKey | None) -> Change[Message]:
    """Return the change that appends a message; one that names a run becomes events of that run too.

    ``rejects`` raises ``ActiveRunError`` where a run of the thread is active.
    """
    get_thread(view)
    before = _created(view, Message, key)
    if before is not None:
        return Change(result=before)
    expired = overdue_changes(view, but=message.run_id)
    if rejects:
        _check_not_busy(view, expired)
    created = _noted(key, message)
    state = None if message.run_id is None else view.run(message.run_id)
    if state is None:
        return Change(result=message, messages=(message,), runs=expired, created=created)
    change = rules.append_message(state, message, now_ns=view.now_ns)
    return Change(result=message, runs=(*expired, change), created=created)


def update_message(view: ThreadView, message_id: str, metadata: MetadataChange) -> Change[Message]:
    """Return the change of a message's metadata."""
    old = get_message(view, message_id)
    changed = new_metadata(old.metadata, metadata)
    return Change(result=attrs.evolve(old, metadata=changed), edits=(MessageEdit(message_id, changed),))


def delete_message(view: ThreadView, message_id: str) -> Change[None]:
    """Return the change that removes a message."""
    get_message(view, message_id)
    return Change(result=None, edits=(MessageEdit(message_id, None),))


# Runs


def create_run(
    view: ThreadView,
    run: Run,
    messages: tuple[Message, ...],
    *,
    on_busy: str,
    sequence: int,
    key: IdempotencyKey | None,
) -> Change[Run]:
    """Return the change that creates a run, appends ``messages`` before it, and stops others as ``on_busy`` says.

    ``sequence`` is the least that the run may get. A terminal run is history: it neither waits for others, nor stops
    them.
    """
    get_thread(view)
    before = _created(view, Run, key)
    if before is not None:
        return Change(result=before)
    if view.run(run.id) is not None:
        raise RunAlreadyExistsError(view.thread_id, run.id)
    others = overdue_changes(view)
    edits: tuple[MessageEdit, ...] = ()
    if not run.status.is_terminal:
        if on_busy == "reject":
            _check_not_busy(view, others)
        elif on_busy in {"interrupt", "rollback"}:
            stopped = _active(view, others)
            others += _stops(view, stopped, rolls_back=on_busy == "rollback")
            edits = _rollbacks(view, stopped) if on_busy == "rollback" else ()
    made = rules.create(
        run,
        sequence=max(sequence, view.last_sequence + 1),
        messages_before=view.message_count + len(messages),
        now_ns=view.now_ns,
    )
    written = made.record.run
    return Change(result=written, messages=messages, runs=(made, *others), edits=edits, created=_noted(key, written))


def _stops(view: ThreadView, active: Sequence[RunState], *, rolls_back: bool) -> tuple[RunChange, ...]:
    """Return the changes that ask runs to stop."""
    if rolls_back:
        return tuple([rules.roll_back(state, now_ns=view.now_ns) for state in active])
    changes = [rules.request_cancel(state, now_ns=view.now_ns) for state in active]
    return tuple([change for change in changes if change is not None])


def _rollbacks(view: ThreadView, active: Sequence[RunState]) -> tuple[MessageEdit, ...]:
    """Return the edits that remove what runs have written since they were created."""
    return tuple(
        MessageEdit(message_id, None)
        for state in active
        for message_id in view.messages_written_by([state.run.id], state.run.messages_before or 0)
    )


def update_run(view: ThreadView, run_id: str, metadata: MetadataChange) -> Change[Run]:
    """Return the change of a run's metadata, which is no event."""
    record = _state(view, run_id).record
    run = attrs.evolve(record.run, metadata=new_metadata(record.run.metadata, metadata))
    return Change(result=run, runs=(RunChange(attrs.evolve(record, run=run)),))


def update_run_status(view: ThreadView, run_id: str, status: RunStatus, error: RunError | None) -> Change[Run]:
    """Return the change that brings a run to a status by hand."""
    return _of_run(rules.update_status(_state(view, run_id), status, error, now_ns=view.now_ns))


def force_run_status(view: ThreadView, run_id: str, status: RunStatus, error: RunError | None) -> Change[Run]:
    """Return the change that brings a run to a status from any other."""
    return _of_run(rules.force_status(_state(view, run_id), status, error, now_ns=view.now_ns))


def cancel_run(view: ThreadView, run_id: str) -> Change[Run | ThreadloomError]:
    """Return the change that asks a run to stop; a run that is overdue is expired instead, and refuses."""
    state = _state(view, run_id)
    if rules.is_overdue(state.record, view.now_ns):
        return Change(result=RunInTerminalStateError(run_id, RunStatus.EXPIRED), runs=overdue_changes(view))
    change = rules.request_cancel(state, now_ns=view.now_ns)
    return Change(result=state.run) if change is None else _of_run(change)


def submit_tool_outputs(
    view: ThreadView, run_id: str, outputs: tuple[ToolOutput, ...]
) -> Change[Run | ThreadloomError]:
    """Return the change that gives a run its tool outputs; a run that is overdue is expired instead, and refuses."""
    state = _state(view, run_id)
    if rules.is_overdue(state.record, view.now_ns):
        return Change(result=ToolOutputsRefusedError(run_id, RunStatus.EXPIRED), runs=overdue_changes(view))
    return _of_run(rules.submit_tool_outputs(state, outputs, now_ns=view.now_ns))


def write_run(view: ThreadView, lease: Lease, work: RunWrite) -> Change[Run]:
    """Return the change that a worker makes under its lease."""
    state = _leased_state(view, lease)
    change = rules.write(
        state, lease, work, now_ns=view.now_ns, find_step=lambda step_id: view.step(lease.run_id, step_id)
    )
    return _of_run(change)


def finalize_run(view: ThreadView, run_id: str) -> Change[Run]:
    """Return the change that closes what a terminal run left open."""
    state = _state(view, run_id)
    change = rules.finalize(state, now_ns=view.now_ns)
    return Change(result=state.run) if change is None else _of_run(change)


# Steps


def append_step(view: ThreadView, run_id: str, step: RunStep) -> Change[RunStep]:
    """Return the change that adds a step to a run by hand."""
    state = _state(view, run_id)
    if view.step(run_id, step.id) is not None:
        raise RunStepAlreadyExistsError(run_id, step.id)
    change = rules.append_step(state, step, now_ns=view.now_ns)
    return Change(result=change.steps[0], runs=(change,))


def update_step_status(
    view: ThreadView,
    run_id: str,
    step_id: str,
    status: RunStepStatus,
    *,
    details: StepDetails | None,
    error: RunError | None,
) -> Change[RunStep]:
    """Return the change that brings a step to a status by hand."""
    step = get_step(view, run_id, step_id)
    change = rules.update_step(_state(view, run_id), step, status, details=details, error=error, now_ns=view.now_ns)
    return Change(result=change.steps[0], runs=(change,))


# Assistants


def create_assistant(
    view: AssistantView, assistant: Assistant, key: IdempotencyKey | None
) -> AssistantChange[Assistant]:
    """Return the change that creates an assistant."""
    before = None if key is None else view.created(key.value)
    if key is not None and before is not None:
        check_same_request(key, before.fingerprint)
        assert isinstance(before.value, Assistant)  # noqa: S101 - keys of assistants are their own
        return AssistantChange(result=before.value)
    if view.assistant is not None:
        raise AssistantAlreadyExistsError(assistant.id)
    return AssistantChange(result=assistant, assistant=assistant, created=_noted(key, assistant))


def update_assistant(
    view: AssistantView, assistant_id: str, change: Callable[[Assistant], Assistant]
) -> AssistantChange[Assistant]:
    """Return the change of an assistant to what the caller's function ``change`` returns for it."""
    if view.assistant is None:
        raise AssistantNotFoundError(assistant_id)
    assistant = changed_assistant(assistant_id, change(detached(view.assistant)))
    return AssistantChange(result=assistant, assistant=assistant)


def delete_assistant(view: AssistantView, assistant_id: str) -> AssistantChange[None]:
    """Return the change that removes an assistant."""
    if view.assistant is None:
        raise AssistantNotFoundError(assistant_id)
    return AssistantChange(result=None, is_deleted=True)


# What they share


def _state(view: ThreadView, run_id: str) -> RunState:
    get_thread(view)
    state = view.run(run_id)
    if state is None:
        raise RunNotFoundError(view.thread_id, run_id)
    return state


def _leased_state(view: ThreadView, lease: Lease) -> RunState:
    state = None if view.thread is None else view.run(lease.run_id)
    if state is None or not rules.holds(state.record, lease):
        raise LeaseLostError(lease.run_id, lease.worker_id)
    return state


def _of_run(change: RunChange) -> Change[Run]:
    return Change(result=change.record.run, runs=(change,))


def _active(view: ThreadView, ended: Sequence[RunChange]) -> list[RunState]:
    """Return the runs that are active besides those that the transaction ends."""
    ids = {change.record.run.id for change in ended}
    return [state for state in view.active_runs if state.run.id not in ids and not state.run.status.is_terminal]


def _check_not_busy(view: ThreadView, ended: Sequence[RunChange]) -> None:
    active = _active(view, ended)
    if active:
        raise ActiveRunError(view.thread_id, active[0].run.id)


def _created(view: ThreadView, kind: type[M], key: IdempotencyKey | None) -> M | None:
    """Return what was created under ``key`` before, as it was then."""
    before = None if key is None else view.created(kind, key.value)
    if key is None or before is None:
        return None
    check_same_request(key, before.fingerprint)
    assert isinstance(before.value, kind)  # noqa: S101 - keys of each kind are their own
    return before.value


def _noted(key: IdempotencyKey | None, value: Assistant | Thread | Message | Run) -> Created | None:
    return None if key is None else Created(key.value, key.fingerprint, value)
