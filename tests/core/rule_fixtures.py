"""What the tests of the rules share: a run, what is in it, and its log, after event 5."""

from typing import Any

from threadloom.events import EventType, MessageDelta, RunEvent, RunLog
from threadloom.models import (
    FunctionCall,
    Message,
    MessageRole,
    MessageStatus,
    RequiredAction,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    TextContent,
    ToolCall,
)
from threadloom.records import Lease, RunRecord

NOW_NS = 1_000_999_999_999  # within second 1000
NOW = 1_000
ERROR = RunError("server_error", "Something broke.")
OLD_ERROR = RunError("server_error", "Something broke before.")
CALL = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments="{}"))
ACTION = RequiredAction((CALL,))
HELD, GUESSED = "held", "guessed"
LEASE = Lease(thread_id="thread_1", run_id="run_1", worker_id="worker_1", token=HELD, attempt=2)
STATUSES = [status.value for status in RunStatus]
LEASED = "leased "


def a_run(status: str, **given: Any):
    fields: dict[str, Any] = {
        "sequence": 7,
        "attempt": 2,
        "messages_before": 3,
        "started_at": 500,
        "last_error": OLD_ERROR,
    } | given
    return Run(id="run_1", created_at=1, thread_id="thread_1", status=RunStatus(status), model="any", **fields)


def a_step(step_id="step_1", status=RunStepStatus.IN_PROGRESS, **fields):
    return RunStep(
        id=step_id,
        created_at=1,
        run_id="run_1",
        thread_id="thread_1",
        type=RunStepType.TOOL_CALLS,
        status=status,
        **fields,
    )


def a_message(text="", status=MessageStatus.COMPLETED, **fields):
    return Message(
        id="msg_1",
        created_at=1,
        thread_id="thread_1",
        role=MessageRole.ASSISTANT,
        content=(TextContent(text),) if text else (),
        status=status,
        run_id="run_1",
        **fields,
    )


def a_record(state, **fields):
    """Return the record of a run in a state: a status, after ``leased`` where a worker has it."""
    is_leased = state.startswith(LEASED)
    return RunRecord(a_run(state.removeprefix(LEASED), **fields), LEASE if is_leased else None)


def a_log(record, *, step=None, message=None, pieces=()):
    """Return what the log says of a run that has come to event 5, with what is open in it."""
    log = RunLog(number=5, run=record.run)
    if step is not None:
        log.open_steps[step.id] = step
    if message is not None:
        log.open_message = message
        for piece in pieces:
            log.apply(RunEvent(5, EventType.MESSAGE_DELTA, 1, MessageDelta(message.id, piece)))
    return log


def names(change):
    return [event.type.removeprefix("thread.") for event in change.events]
