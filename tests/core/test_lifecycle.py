"""The rules of a run's life, as tables: what is asked of a run in each status, and what comes of it."""

from typing import Any

import attrs
import pytest

from tests.core.rule_fixtures import (
    ACTION,
    CALL,
    ERROR,
    GUESSED,
    HELD,
    LEASE,
    LEASED,
    NOW,
    NOW_NS,
    OLD_ERROR,
    STATUSES,
    a_log,
    a_message,
    a_record,
    a_run,
    a_step,
    names,
)
from threadloom.errors import (
    InvalidIdError,
    InvalidInputError,
    InvalidMetadataError,
    InvalidTransitionError,
    LeaseLostError,
    RunInTerminalStateError,
    ToolOutputsRefusedError,
)
from threadloom.events import Checkpoint, EventType, MessageDelta, RunEvent, RunLog, StepDelta
from threadloom.models import (
    IncompleteDetails,
    MessageStatus,
    RequiredAction,
    RunStatus,
    RunStepStatus,
    TextContent,
    ToolCalls,
    ToolOutput,
    Usage,
)
from threadloom.records import RunChange, RunRecord, RunState, RunWrite
from threadloom.rules import run as rules
from threadloom.rules.queue import next_in_turn
from threadloom.validation import owned_work


def next_number(record):
    """Return the number that the next event has where somebody else than the worker says it, after event 5."""
    return 1_000_001 if rules.is_leased(record) else 6


def read_table(table):
    """Return (row, column, cell) for all of a table whose first line names the columns."""
    head, *rows = [line.split() for line in table.strip().splitlines()]
    return [
        (" ".join(row[: -len(head)]), column, cell)
        for row in rows
        for column, cell in zip(head, row[-len(head) :], strict=True)
    ]


# yes: it becomes what was asked. terminal: RunInTerminalStateError. no: InvalidTransitionError.
UPDATE = """
                     queued   in_progress requires_action cancelling cancelled failed   completed incomplete expired
queued               yes      yes         yes             yes        yes       yes      yes       yes        yes
in_progress          yes      yes         yes             yes        yes       yes      yes       yes        yes
leased in_progress   yes      yes         yes             yes        yes       yes      yes       yes        yes
requires_action      yes      yes         yes             yes        yes       yes      yes       yes        yes
cancelling           no       no          no              yes        yes       no       no        no         no
leased cancelling    no       no          no              yes        yes       no       no        no         no
cancelled            terminal terminal    terminal        terminal   terminal  terminal terminal  terminal   terminal
failed               terminal terminal    terminal        terminal   terminal  terminal terminal  terminal   terminal
completed            terminal terminal    terminal        terminal   terminal  terminal terminal  terminal   terminal
incomplete           terminal terminal    terminal        terminal   terminal  terminal terminal  terminal   terminal
expired              terminal terminal    terminal        terminal   terminal  terminal terminal  terminal   terminal
"""
STATES = list(dict.fromkeys(state for state, _, _ in read_table(UPDATE)))

# The moment that says how a run ended.
ENDED_AT = {"completed": "completed_at", "failed": "failed_at", "cancelled": "cancelled_at"}


def check_moments(before, after):
    """One moment at the most says how the run ended; it starts once."""
    for status, name in ENDED_AT.items():
        assert getattr(after, name) == (NOW if after.status == status else None)
    if before.started_at is None and after.status == "in_progress":
        assert after.started_at == NOW


@pytest.mark.parametrize(("state", "asked", "answer"), read_table(UPDATE))
def test_updating_a_status(state, asked, answer):
    record = a_record(state, completed_at=9, failed_at=9, cancelled_at=9)
    if answer == "yes":
        change = rules.update_status(RunState(record, a_log(record)), RunStatus(asked), ERROR, now_ns=NOW_NS)
        run = change.record.run
        assert (run.status, run.last_error) == (asked, ERROR)
        assert change.record.lease is None
        assert (run.attempt, run.sequence, run.messages_before, run.started_at) == (2, 7, 3, 500)
        check_moments(record.run, run)
        assert names(change) == [f"run.{asked}"]
        assert change.events[0] == RunEvent(next_number(record), EventType(f"thread.run.{asked}"), NOW, run)
        assert (change.steps, change.messages) == ((), ())
        return
    errors: dict[str, type[Any]] = {"terminal": RunInTerminalStateError, "no": InvalidTransitionError}
    with pytest.raises(errors[answer]) as caught:
        rules.update_status(RunState(record, a_log(record)), RunStatus(asked), ERROR, now_ns=NOW_NS)
    assert (caught.value.run_id, caught.value.status) == ("run_1", record.run.status)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("asked", STATUSES)
def test_forcing_a_status_takes_any_to_any(state, asked):
    record = a_record(state, completed_at=9, failed_at=9, cancelled_at=9, retry_at=2_000, turn=3, anew_from=4)
    change = rules.force_status(RunState(record, a_log(record)), RunStatus(asked), ERROR, now_ns=NOW_NS)
    run = change.record.run
    assert (run.status, run.last_error) == (asked, ERROR)
    assert change.record.lease is None
    assert (run.sequence, run.messages_before) == (7, 3)
    check_moments(record.run, run)
    anew = asked == "queued"
    assert (run.attempt, run.started_at, run.retry_at) == ((1, None, None) if anew else (2, 500, 2_000))
    assert (run.turn, run.anew_from) == ((0, next_number(record)) if anew else (3, 4))
    assert names(change) == [f"run.{asked}"]


def test_forcing_a_run_to_the_queue_takes_back_what_it_came_to():
    record = a_record(
        "leased cancelling",
        usage=Usage(1, 2, 3),
        spent=Usage(4, 5, 9),
        is_rolled_back=True,
        expires_at=560,
        expires_after_seconds=60,
    )
    run = rules.force_status(RunState(record, a_log(record)), RunStatus.QUEUED, None, now_ns=NOW_NS).record.run
    assert (run.usage, run.spent, run.is_rolled_back) == (None, None, False)
    assert (run.expires_at, run.expires_after_seconds) == (None, 60)
    for status in STATUSES:
        if status != "queued":
            run = rules.force_status(RunState(record, a_log(record)), RunStatus(status), None, now_ns=NOW_NS).record.run
            assert (run.usage, run.spent, run.is_rolled_back) == (Usage(1, 2, 3), Usage(4, 5, 9), True)
            assert (run.expires_at, run.expires_after_seconds) == (560, 60)


def test_forcing_a_run_to_the_queue_leaves_an_expiry_that_was_set():
    record = a_record("failed", expires_at=560)
    run = rules.force_status(RunState(record, a_log(record)), RunStatus.QUEUED, None, now_ns=NOW_NS).record.run
    assert run.expires_at == 560


@pytest.mark.parametrize("act", [rules.update_status, rules.force_status])
def test_no_error_clears_the_last_one(act):
    record = a_record("in_progress")
    change = act(RunState(record, a_log(record)), RunStatus.COMPLETED, None, now_ns=NOW_NS)
    assert change.record.run.last_error is None


# What a request to cancel makes of a run: its status, whether the lease stays. same: no change. terminal: an error.
CANCEL = """
                     becomes    lease
queued               cancelled  gone
in_progress          cancelled  gone
leased in_progress   cancelling stays
requires_action      cancelled  gone
cancelling           cancelled  gone
leased cancelling    same       stays
cancelled            terminal   -
failed               terminal   -
completed            terminal   -
incomplete           terminal   -
expired              terminal   -
"""


@pytest.mark.parametrize("state", STATES)
def test_requesting_to_cancel(state):
    answers = {(row, column): cell for row, column, cell in read_table(CANCEL)}
    becomes, lease = answers[state, "becomes"], answers[state, "lease"]
    record = a_record(state)
    if becomes == "terminal":
        with pytest.raises(RunInTerminalStateError):
            rules.request_cancel(RunState(record, a_log(record)), now_ns=NOW_NS)
        return
    change = rules.request_cancel(RunState(record, a_log(record)), now_ns=NOW_NS)
    if becomes == "same":
        assert change is None
        return
    assert change is not None
    assert change.record.run.status == becomes
    assert change.record.lease == (LEASE if lease == "stays" else None)
    assert change.record.run.last_error is None
    assert names(change) == [f"run.{becomes}"]
    check_moments(record.run, change.record.run)


# The same, where the run is rolled back: it is told of again where it was asked to stop before.
ROLL_BACK = CANCEL.replace("same      ", "cancelling")


@pytest.mark.parametrize("state", STATES)
def test_rolling_back(state):
    answers = {(row, column): cell for row, column, cell in read_table(ROLL_BACK)}
    becomes, lease = answers[state, "becomes"], answers[state, "lease"]
    record = a_record(state)
    log = a_log(record, step=a_step(), message=a_message(status=MessageStatus.IN_PROGRESS), pieces=["half a "])
    if becomes == "terminal":
        with pytest.raises(RunInTerminalStateError):
            rules.roll_back(RunState(record, log), now_ns=NOW_NS)
        return
    change = rules.roll_back(RunState(record, log), now_ns=NOW_NS)
    run = change.record.run
    assert (run.status, run.is_rolled_back, run.last_error) == (becomes, True, None)
    assert change.record.lease == (LEASE if lease == "stays" else None)
    ended = [] if becomes == "cancelling" else ["message.incomplete", "run.step.cancelled"]
    assert names(change) == [*ended, f"run.{becomes}"]
    assert change.messages == ()
    assert change.events[0].number == next_number(record)
    assert change.events[-1].data == run
    check_moments(record.run, run)


def reclaimed(record, log):
    return rules.reclaim(RunState(record, log), max_attempts=3, now_ns=NOW_NS)


def settled_after_a_foreign_write_that_knows_our_keys(record, log):
    return rules.finalize(RunState(RunRecord(attrs.evolve(record.run, status=RunStatus.FAILED)), log), now_ns=NOW_NS)


def settled_after_a_foreign_write_that_dropped_them(record, log):
    foreign = attrs.evolve(record.run, status=RunStatus.FAILED, is_rolled_back=False)
    return rules.finalize(RunState(RunRecord(foreign), log), now_ns=NOW_NS)


def cancelled_after_the_lease_was_dropped(record, log):
    foreign = attrs.evolve(record.run, is_rolled_back=False)
    return rules.request_cancel(RunState(RunRecord(foreign), log), now_ns=NOW_NS)


def cancelled_by_its_worker(record, log):
    return rules.write(RunState(record, log), LEASE, RunWrite(status=RunStatus.CANCELLED), now_ns=NOW_NS)


def cancelled_by_hand(record, log):
    return rules.update_status(RunState(record, log), RunStatus.CANCELLED, None, now_ns=NOW_NS)


def failed_by_force(record, log):
    return rules.force_status(RunState(record, log), RunStatus.FAILED, ERROR, now_ns=NOW_NS)


@pytest.mark.parametrize(
    "way",
    [
        reclaimed,
        settled_after_a_foreign_write_that_knows_our_keys,
        settled_after_a_foreign_write_that_dropped_them,
        cancelled_after_the_lease_was_dropped,
        cancelled_by_its_worker,
        cancelled_by_hand,
        failed_by_force,
    ],
)
def test_however_a_rolled_back_run_ends_its_half_message_is_not_kept(way):
    record = a_record("leased cancelling", is_rolled_back=True)
    log = a_log(record, step=a_step(), message=a_message(status=MessageStatus.IN_PROGRESS), pieces=["half a "])
    change = way(record, log)
    assert change.messages == ()
    assert names(change)[0] == "message.incomplete"
    assert change.record.run.status.is_terminal
    assert change.record.run.is_rolled_back
    assert change.events[-1].data == change.record.run


def test_a_rolled_back_run_says_its_messages_in_its_events_only():
    record = a_record("leased cancelling", is_rolled_back=True)
    begun, whole = a_message(status=MessageStatus.IN_PROGRESS), a_message("hello", completed_at=9)
    change = rules.write(RunState(record, a_log(record)), LEASE, RunWrite(items=(begun, whole)), now_ns=NOW_NS)
    assert change.messages == ()
    assert names(change) == ["message.created", "message.in_progress", "message.completed"]
    by_hand = rules.append_message(RunState(record, a_log(record)), whole, now_ns=NOW_NS)
    assert by_hand.messages == (whole,)


def test_a_rolled_back_run_that_is_taken_again_keeps_its_messages():
    record = a_record("queued", is_rolled_back=True)
    claimed = rules.claim(
        RunState(record, a_log(record)), worker_id="worker_1", token=HELD, liveness_id="", now_ns=NOW_NS
    ).record
    assert not claimed.run.is_rolled_back
    items = (a_message(status=MessageStatus.IN_PROGRESS), a_message("hello", completed_at=9))
    change = rules.write(RunState(claimed, a_log(claimed)), LEASE, RunWrite(items=items), now_ns=NOW_NS)
    assert change.messages == items[1:]


# What comes of a worker's write, under the lease that it was given. lost: LeaseLostError.
WRITE = """
                     nothing queued in_progress requires_action cancelling cancelled failed completed incomplete expired
queued               lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
in_progress          lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
leased in_progress   keeps   gives  keeps       gives           gives      gives     gives  gives     gives      gives
requires_action      lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
cancelling           lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
leased cancelling    keeps   no     no          no              keeps      gives     no     no        no         no
cancelled            lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
failed               lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
completed            lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
incomplete           lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
expired              lost    lost   lost        lost            lost       lost      lost   lost      lost       lost
"""


@pytest.mark.parametrize(("state", "asked", "answer"), read_table(WRITE))
def test_writing_under_a_lease(state, asked, answer):
    record = a_record(state)
    work = RunWrite(status=None if asked == "nothing" else RunStatus(asked), error=ERROR, usage=Usage(1, 2, 3))
    errors = {"lost": LeaseLostError, "no": InvalidTransitionError}
    if answer in errors:
        with pytest.raises(errors[answer]):
            rules.write(RunState(record, a_log(record)), LEASE, work, now_ns=NOW_NS)
        return
    change = rules.write(RunState(record, a_log(record)), LEASE, work, now_ns=NOW_NS)
    run = change.record.run
    assert run.usage == Usage(1, 2, 3)
    assert (run.attempt, run.started_at) == (2, 500)
    if answer == "keeps":
        assert change.record == RunRecord(attrs.evolve(record.run, usage=run.usage), LEASE)
        assert names(change) == []
        return
    assert (run.status, run.last_error) == (asked, ERROR)
    assert change.record.lease is None
    assert names(change) == [f"run.{asked}"]
    check_moments(record.run, run)


@pytest.mark.parametrize("status", [None, RunStatus.QUEUED, RunStatus.REQUIRES_ACTION, RunStatus.COMPLETED])
@pytest.mark.parametrize(
    ("usage", "spent", "becomes"),
    [
        (None, None, (Usage(1, 2, 3), Usage(4, 5, 9))),
        (None, Usage(5, 5, 10), (Usage(1, 2, 3), Usage(5, 5, 10))),
        (Usage(2, 2, 4), None, (Usage(2, 2, 4), Usage(4, 5, 9))),
        (Usage(2, 2, 4), Usage(), (Usage(2, 2, 4), None)),
    ],
)
def test_tokens_are_written_where_they_are_given_and_kept_where_not(status, usage, spent, becomes):
    record = a_record("leased in_progress", usage=Usage(1, 2, 3), spent=Usage(4, 5, 9))
    work = RunWrite(status=status, usage=usage, spent=spent)
    run = rules.write(RunState(record, a_log(record)), LEASE, work, now_ns=NOW_NS).record.run
    assert (run.usage, run.spent) == becomes


# What comes of tool outputs: the status, or an error.
SUBMIT = """
                     becomes
queued               refused
in_progress          refused
leased in_progress   refused
requires_action      queued
cancelling           refused
leased cancelling    refused
cancelled            refused
failed               refused
completed            refused
incomplete           refused
expired              refused
"""


@pytest.mark.parametrize(("state", "_", "becomes"), read_table(SUBMIT))
def test_submitting_tool_outputs(state, _, becomes):
    record = a_record(state, required_action=ACTION, turn=1, retry_at=9)
    step = a_step(sequence=3, step_details=ToolCalls((CALL,)))
    log = a_log(record, step=step)
    if becomes == "refused":
        with pytest.raises(ToolOutputsRefusedError) as caught:
            rules.submit_tool_outputs(RunState(record, log), [ToolOutput("call_1", "hot")], now_ns=NOW_NS)
        assert (caught.value.run_id, caught.value.status) == ("run_1", record.run.status)
        return
    change = rules.submit_tool_outputs(RunState(record, log), [ToolOutput("call_1", "hot")], now_ns=NOW_NS)
    run = attrs.evolve(
        record.run, status=RunStatus.QUEUED, required_action=None, last_error=None, turn=2, retry_at=None
    )
    done = attrs.evolve(
        step, status=RunStepStatus.COMPLETED, completed_at=NOW, step_details=ToolCalls((answered(CALL, "hot"),))
    )
    assert change.record == RunRecord(run)
    assert change.steps == (done,)
    assert change.events == (
        RunEvent(6, EventType.STEP_COMPLETED, NOW, done),
        RunEvent(7, EventType.RUN_QUEUED, NOW, run),
    )


def answered(call, output):
    return attrs.evolve(call, function=attrs.evolve(call.function, output=output))


def test_outputs_find_their_calls_in_all_open_steps_and_leave_the_others_open():
    other, third = attrs.evolve(CALL, id="call_2"), attrs.evolve(CALL, id="call_3")
    record = a_record("requires_action", required_action=RequiredAction((CALL, other)))
    log = a_log(record, step=a_step("step_1", step_details=ToolCalls((CALL,))))
    on_disk = [
        a_step("step_2", step_details=ToolCalls((other,))),
        a_step("step_3", step_details=ToolCalls((third,))),
        a_step("step_4"),
    ]
    outputs = [ToolOutput("call_2", "cold"), ToolOutput("call_1", "hot")]
    change = rules.submit_tool_outputs(RunState(record, log, on_disk), outputs, now_ns=NOW_NS)
    assert [(step.id, step.status, step.step_details) for step in change.steps] == [
        ("step_1", "completed", ToolCalls((answered(CALL, "hot"),))),
        ("step_2", "completed", ToolCalls((answered(other, "cold"),))),
    ]


def test_a_run_that_does_not_say_what_it_waits_for_waits_for_the_calls_of_its_open_steps():
    done = answered(attrs.evolve(CALL, id="call_2"), "there already")
    record = a_record("requires_action")
    log = a_log(record, step=a_step(step_details=ToolCalls((CALL, done))))
    with pytest.raises(InvalidInputError, match=r"Expected tool outputs for call_ids \['call_1'\], got \[\]."):
        rules.submit_tool_outputs(RunState(record, log), [], now_ns=NOW_NS)
    change = rules.submit_tool_outputs(RunState(record, log), [ToolOutput("call_1", "hot")], now_ns=NOW_NS)
    assert change.steps[0].step_details == ToolCalls((answered(CALL, "hot"), done))


def test_outputs_of_calls_without_a_step_are_given_one():
    record = a_record("requires_action", required_action=ACTION, turn=1)
    change = rules.submit_tool_outputs(RunState(record, a_log(record)), [ToolOutput("call_1", "hot")], now_ns=NOW_NS)
    assert [(step.status, step.turn, step.step_details) for step in change.steps] == [
        ("completed", 1, ToolCalls((answered(CALL, "hot"),)))
    ]
    assert names(change) == ["run.step.created", "run.step.in_progress", "run.step.completed", "run.queued"]


@pytest.mark.parametrize(
    ("number", "turn", "anew_from", "has_past"),
    [
        (2, 0, None, False),  # created
        (1_000_001, 0, None, True),  # claimed once
        (1_000_009, 0, 1_000_009, False),  # and forced to begin anew
        (2_000_001, 0, 1_000_009, True),  # and claimed again
        (5, 1, None, True),  # given outputs by hand, never claimed
    ],
)
def test_a_run_has_a_past_once_somebody_worked_on_it(number, turn, anew_from, has_past):
    record = a_record("queued", turn=turn, anew_from=anew_from)
    assert rules.has_past(RunState(record, RunLog(number=number))) is has_past


def test_a_checkpoint_is_an_event_and_nothing_else():
    record = a_record("leased in_progress")
    checkpoint = Checkpoint("plan", {"steps": [1]})
    log = a_log(record, step=a_step(), message=a_message(status=MessageStatus.IN_PROGRESS))
    change = rules.write(RunState(record, log), LEASE, RunWrite(items=(checkpoint,)), now_ns=NOW_NS)
    assert change == RunChange(record, events=(RunEvent(6, EventType.CHECKPOINT, NOW, checkpoint),))


@pytest.mark.parametrize("state", ["leased in_progress", "leased cancelling"])
def test_another_token_holds_nothing(state):
    record = a_record(state)
    other = attrs.evolve(LEASE, token=GUESSED)
    assert rules.holds(record, LEASE)
    assert not rules.holds(record, other)
    with pytest.raises(LeaseLostError):
        rules.write(RunState(record, a_log(record)), other, RunWrite(), now_ns=NOW_NS)


@pytest.mark.parametrize("status", STATUSES)
def test_a_lease_is_live_only_while_the_run_is_at_work_or_asked_to_stop(status):
    record = RunRecord(a_run(status), LEASE)
    is_live = status in {"in_progress", "cancelling"}
    assert rules.holds(record, LEASE) is is_live
    assert rules.is_leased(record) is is_live
    assert not rules.is_leased(RunRecord(a_run(status)))


def test_what_belongs_to_a_status_goes_with_it():
    record = a_record("leased in_progress")
    details = IncompleteDetails("max_prompt_tokens")
    for status, action, reason in (
        (RunStatus.REQUIRES_ACTION, ACTION, None),
        (RunStatus.INCOMPLETE, None, details),
        (RunStatus.COMPLETED, None, None),
    ):
        work = RunWrite(status=status, required_action=action, incomplete_details=reason)
        run = rules.write(RunState(record, a_log(record)), LEASE, work, now_ns=NOW_NS).record.run
        assert (run.required_action, run.incomplete_details) == (action, reason)
        waiting = RunRecord(run)
        if status is RunStatus.REQUIRES_ACTION:
            again = rules.update_status(RunState(waiting, a_log(waiting)), RunStatus.QUEUED, None, now_ns=NOW_NS)
            assert again.record.run.required_action is None
        forced = rules.force_status(RunState(waiting, a_log(waiting)), RunStatus.CANCELLED, None, now_ns=NOW_NS)
        assert (forced.record.run.required_action, forced.record.run.incomplete_details) == (None, None)


# Attempts count what went wrong, not an orderly stop and not tool outputs that came in.
@pytest.mark.parametrize(
    ("work", "attempt", "retry_at"),
    [
        (RunWrite(status=RunStatus.QUEUED), 2, None),
        (RunWrite(status=RunStatus.QUEUED, attempt_failed=True), 3, None),
        (RunWrite(status=RunStatus.QUEUED, attempt_failed=True, retry_at=2_000), 3, 2_000),
        (RunWrite(status=RunStatus.QUEUED, retry_at=2_000), 2, 2_000),
    ],
)
def test_putting_a_run_back_counts_an_attempt_that_failed(work, attempt, retry_at):
    record = a_record("leased in_progress")
    run = rules.write(RunState(record, a_log(record)), LEASE, work, now_ns=NOW_NS).record.run
    assert (run.attempt, run.retry_at) == (attempt, retry_at)


@pytest.mark.parametrize("status", STATUSES)
def test_a_run_is_due_when_it_is_queued_and_its_wait_is_over(status):
    queued = status == "queued"
    assert rules.is_due(a_record(status), NOW_NS) is queued
    assert rules.is_due(a_record(status, retry_at=1_000), NOW_NS) is queued
    assert rules.is_due(a_record(status, retry_at=1_001), NOW_NS) is False


@pytest.mark.parametrize("status", STATUSES)
def test_a_run_is_expired_when_its_time_is_over_and_it_is_not_settled(status):
    live = status in {"queued", "in_progress", "requires_action", "cancelling"}
    assert rules.is_expired(a_run(status), NOW_NS) is False
    assert rules.is_expired(a_run(status, expires_at=1_000), NOW_NS) is live
    assert rules.is_expired(a_run(status, expires_at=1_001), NOW_NS) is False


@pytest.mark.parametrize(
    ("statuses", "whose", "adopted"),
    [
        ("", None, None),
        ("completed,failed", None, None),
        ("queued", 0, 0),
        ("queued,queued", 0, 0),
        ("cancelled,queued,queued", 1, 1),
        ("leased in_progress,queued", None, None),
        ("requires_action,queued", None, None),
        ("cancelling,queued", None, None),
        ("queued,leased in_progress", None, None),
        ("queued,completed,requires_action", None, None),
        ("in_progress", None, 0),
        ("in_progress,queued", None, 0),
        ("queued,in_progress", None, 1),
        ("completed,in_progress,in_progress", None, 1),
        ("in_progress,leased in_progress", None, None),
        ("in_progress,requires_action", None, None),
        ("in_progress,cancelling", None, None),
    ],
)
def test_whose_turn_it_is(statuses, whose, adopted):
    records = [a_record(state) for state in statuses.split(",") if state]
    records = [attrs.evolve(record, run=attrs.evolve(record.run, id=f"run_{n}")) for n, record in enumerate(records)]
    for adopt, turn in ((False, whose), (True, adopted)):
        assert next_in_turn(records, adopt=adopt) == (None if turn is None else records[turn])


# Who may take a run that is not queued: only one who adopts, and only what has no lease, live or dead.
TAKE = """
                     plainly adopting
queued               yes     yes
in_progress          no      yes
leased in_progress   no      no
requires_action      no      no
cancelling           no      no
leased cancelling    no      no
cancelled            no      no
failed               no      no
completed            no      no
incomplete           no      no
expired              no      no
"""


@pytest.mark.parametrize(("state", "how", "answer"), read_table(TAKE))
def test_what_may_be_taken(state, how, answer):
    record = a_record(state)
    assert rules.is_due(record, NOW_NS, adopt=how == "adopting") is (answer == "yes")
    assert rules.is_by_hand(record) is (state == "in_progress")


def test_a_run_that_is_adopted_stays_in_its_attempt_and_what_the_hand_left_open_is_done_again():
    record = a_record("in_progress", turn=1, retry_at=2_000)
    in_events, on_disk = a_step("step_1"), a_step("step_2")
    message = a_message(status=MessageStatus.IN_PROGRESS)
    log = a_log(record, step=in_events, message=message, pieces=("half",))
    assert rules.has_past(RunState(record, log))
    change = rules.claim(
        RunState(record, log, [on_disk]), worker_id="worker_1", token=HELD, liveness_id="", now_ns=NOW_NS
    )
    assert change.record == RunRecord(attrs.evolve(record.run, retry_at=None), LEASE)
    assert [(step.id, step.status) for step in change.steps] == [("step_1", "cancelled"), ("step_2", "cancelled")]
    assert change.messages == ()
    assert names(change) == ["message.incomplete", "run.step.cancelled", "run.step.cancelled", "run.in_progress"]


def test_claiming_gives_a_lease_and_starts_the_run_once():
    record = a_record("queued", started_at=None, retry_at=900)
    change = rules.claim(
        RunState(record, a_log(record)), worker_id="worker_1", token=HELD, liveness_id="", now_ns=NOW_NS
    )
    assert change.record.lease == LEASE
    assert change.record.run == attrs.evolve(record.run, status=RunStatus.IN_PROGRESS, started_at=NOW, retry_at=None)
    again = rules.claim(
        RunState(RunRecord(attrs.evolve(change.record.run, status=RunStatus.QUEUED)), a_log(record)),
        worker_id="worker_1",
        token=HELD,
        liveness_id="",
        now_ns=NOW_NS + 5_000_000_000,
    )
    assert again.record.run.started_at == NOW


@pytest.mark.parametrize(
    ("expires_at", "after", "becomes"),
    [(None, None, None), (None, 60, NOW + 60), (2_000, None, 2_000), (2_000, 60, 2_000), (NOW + 1, 60, NOW + 1)],
)
def test_claiming_sets_when_a_run_expires_unless_it_is_set(expires_at, after, becomes):
    record = a_record("queued", expires_at=expires_at, expires_after_seconds=after)
    run = rules.claim(
        RunState(record, a_log(record)), worker_id="worker_1", token=HELD, liveness_id="", now_ns=NOW_NS
    ).record.run
    assert (run.expires_at, run.expires_after_seconds) == (becomes, after)


@pytest.mark.parametrize(("number", "first"), [(0, 1_000_001), (5, 1_000_001), (1_000_000, 2_000_001)])
def test_the_numbers_of_a_claim_begin_anew_far_ahead(number, first):
    record = a_record("queued")
    log = RunLog(number=number, run=record.run)
    change = rules.claim(RunState(record, log), worker_id="worker_1", token=HELD, liveness_id="", now_ns=NOW_NS)
    assert [(event.number, event.type) for event in change.events] == [(first, "thread.run.in_progress")]
    assert log.number == number  # the log of the store is not touched


@pytest.mark.parametrize("status", STATUSES)
def test_creating_a_run_gives_it_its_place_and_two_events(status):
    run = a_run(
        status,
        sequence=None,
        attempt=9,
        turn=9,
        retry_at=9,
        messages_before=None,
        anew_from=9,
        spent=Usage(9, 9, 18),
        is_rolled_back=True,
        expires_after_seconds=60,
    )
    change = rules.create(run, sequence=11, messages_before=4, now_ns=NOW_NS)
    made = attrs.evolve(
        run,
        sequence=11,
        messages_before=4,
        attempt=1,
        turn=0,
        retry_at=None,
        anew_from=None,
        spent=None,
        is_rolled_back=False,
    )
    assert change.record == RunRecord(made, None)
    assert change.events == (
        RunEvent(1, EventType.RUN_CREATED, NOW, made),
        RunEvent(2, EventType(f"thread.run.{status}"), NOW, made),
    )


def test_a_run_whose_expiry_is_set_expires_after_nothing_else():
    run = a_run("queued", expires_at=2_000, expires_after_seconds=60)
    made = rules.create(run, sequence=11, messages_before=4, now_ns=NOW_NS).record.run
    assert (made.expires_at, made.expires_after_seconds) == (2_000, None)


# What a run came to: what its open steps come to, the moment of it, why its open message is not whole.
SETTLED = """
             step       moment        reason
completed    completed  completed_at  run_cancelled
failed       failed     failed_at     run_failed
incomplete   cancelled  cancelled_at  max_tokens
expired      expired    expired_at    run_expired
cancelled    cancelled  cancelled_at  run_cancelled
"""
SETTLEMENTS = {
    row: {column: cell for other, column, cell in read_table(SETTLED) if other == row}
    for row, _, _ in read_table(SETTLED)
}


def settled_by_force(record, log, status):
    return rules.force_status(RunState(record, log), status, ERROR, now_ns=NOW_NS)


def settled_by_hand(record, log, status):
    return rules.update_status(RunState(record, log), status, ERROR, now_ns=NOW_NS)


def settled_by_its_worker(record, log, status):
    return rules.write(RunState(record, log), LEASE, RunWrite(status=status, error=ERROR), now_ns=NOW_NS)


def settled_after_a_foreign_write(record, log, status):
    foreign = RunRecord(attrs.evolve(record.run, status=status, last_error=ERROR))
    return rules.finalize(RunState(foreign, log), now_ns=NOW_NS)


WAYS = [settled_by_force, settled_by_hand, settled_by_its_worker, settled_after_a_foreign_write]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", SETTLEMENTS)
def test_a_run_that_ends_closes_what_is_open(way, status):
    expected = SETTLEMENTS[status]
    record = a_record("leased in_progress")
    step = a_step(sequence=3)
    message = a_message(status=MessageStatus.IN_PROGRESS, assistant_id="asst_1", metadata={"k": "v"})
    log = a_log(record, step=step, message=message, pieces=("half ", "a ", "word"))
    change = way(record, log, RunStatus(status))
    closed = attrs.evolve(
        step,
        status=RunStepStatus(expected["step"]),
        last_error=ERROR if status == "failed" else None,
        **{expected["moment"]: NOW},
    )
    kept = attrs.evolve(
        message,
        content=(TextContent("half a word"),),
        status=MessageStatus.INCOMPLETE,
        incomplete_at=NOW,
        incomplete_details=IncompleteDetails(expected["reason"]),
    )
    assert change.steps == (closed,)
    assert change.messages == (kept,)
    first = 6 if way is settled_by_its_worker else 1_000_001
    assert [(event.number, event.type, event.data) for event in change.events] == [
        (first, "thread.message.incomplete", kept),
        (first + 1, f"thread.run.step.{expected['step']}", closed),
        (first + 2, f"thread.run.{status}", change.record.run),
    ]
    assert change.record.lease is None


@pytest.mark.parametrize("way", WAYS)
def test_a_message_in_which_nothing_was_said_is_not_kept(way):
    record = a_record("leased in_progress")
    log = a_log(record, message=a_message(status=MessageStatus.IN_PROGRESS))
    change = way(record, log, RunStatus.CANCELLED)
    assert change.messages == ()
    assert names(change) == ["message.incomplete", "run.cancelled"]


def test_a_cancelled_run_that_nobody_has_closes_what_is_open():
    record = a_record("in_progress")
    change = rules.request_cancel(RunState(record, a_log(record, step=a_step())), now_ns=NOW_NS)
    assert names(change) == ["run.step.cancelled", "run.cancelled"]


@pytest.mark.parametrize("status", SETTLEMENTS)
@pytest.mark.parametrize("way", [settled_by_force, settled_by_hand, settled_after_a_foreign_write])
def test_a_run_that_ends_while_it_waits_for_outputs_closes_the_step_that_waits(way, status):
    record = a_record("requires_action", required_action=ACTION)
    change = way(record, a_log(record, step=a_step(step_details=ToolCalls((CALL,)))), RunStatus(status))
    expected = SETTLEMENTS[status]["step"]
    assert [(step.status, step.step_details) for step in change.steps] == [(expected, ToolCalls((CALL,)))]
    assert names(change) == [f"run.step.{expected}", f"run.{status}"]


def test_open_steps_that_no_log_knows_of_are_closed_too():
    record = a_record("in_progress")
    change = rules.force_status(
        RunState(record, a_log(record, step=a_step("step_1")), [a_step("step_1"), a_step("step_2")]),
        RunStatus.CANCELLED,
        None,
        now_ns=NOW_NS,
    )
    assert [(step.id, step.status) for step in change.steps] == [("step_1", "cancelled"), ("step_2", "cancelled")]


@pytest.mark.parametrize("state", STATES)
def test_settling_touches_only_what_is_terminal_and_not_settled(state):
    record = a_record(state)
    settled = a_log(record)
    assert rules.finalize(RunState(record, settled), now_ns=NOW_NS) is None
    unsettled = a_log(a_record("in_progress"), step=a_step())
    change = rules.finalize(RunState(record, unsettled), now_ns=NOW_NS)
    if not record.run.status.is_terminal:
        assert change is None
        return
    assert change is not None
    assert change.record == RunRecord(record.run, None)
    assert names(change)[-1] == f"run.{record.run.status}"
    for event in change.events:
        unsettled.apply(event)
    assert rules.finalize(RunState(record, unsettled), now_ns=NOW_NS) is None


@pytest.mark.parametrize("status", ["queued", "in_progress", "requires_action", "cancelling"])
@pytest.mark.parametrize("act", [rules.update_status, rules.force_status])
def test_what_a_worker_left_open_ends_when_its_lease_is_taken_and_is_kept_in_the_events_only(act, status):
    record = a_record("leased in_progress")
    log = a_log(record, step=a_step(), message=a_message(status=MessageStatus.IN_PROGRESS), pieces=["half a "])
    change = act(RunState(record, log), RunStatus(status), None, now_ns=NOW_NS)
    assert change.messages == ()
    assert names(change) == ["message.incomplete", "run.step.cancelled", f"run.{status}"]


def test_a_step_that_waits_for_its_outputs_stays_open_when_they_are_in():
    record = a_record("requires_action")
    change = rules.update_status(RunState(record, a_log(record, step=a_step())), RunStatus.QUEUED, None, now_ns=NOW_NS)
    assert change.steps == ()
    assert names(change) == ["run.queued"]


@pytest.mark.parametrize(
    ("failed", "step_status", "reason"), [(False, "cancelled", "run_cancelled"), (True, "failed", "run_failed")]
)
def test_a_run_that_is_put_back_leaves_nothing_open(failed, step_status, reason):
    record = a_record("leased in_progress")
    log = a_log(record, step=a_step(), message=a_message(status=MessageStatus.IN_PROGRESS), pieces=["half a "])
    work = RunWrite(status=RunStatus.QUEUED, attempt_failed=failed)
    change = rules.write(RunState(record, log), LEASE, work, now_ns=NOW_NS)
    assert change.messages == ()
    assert [step.status for step in change.steps] == [step_status]
    assert names(change) == ["message.incomplete", f"run.step.{step_status}", "run.queued"]
    ended: Any = change.events[0].data
    assert ended.incomplete_details == IncompleteDetails(reason)


def test_items_become_events_in_their_order():
    record = a_record("leased in_progress")
    step = a_step()
    done = a_step(status=RunStepStatus.COMPLETED, step_details=ToolCalls((CALL,)), completed_at=9)
    begun = a_message(status=MessageStatus.IN_PROGRESS)
    whole = a_message("hello", completed_at=9)
    items = (step, StepDelta("step_1", 0, CALL), done, begun, MessageDelta("msg_1", "hello"), whole)
    change = rules.write(
        RunState(record, a_log(record)), LEASE, RunWrite(items=items, status=RunStatus.COMPLETED), now_ns=NOW_NS
    )
    assert [(event.number, event.type.removeprefix("thread.")) for event in change.events] == [
        (6, "run.step.created"),
        (7, "run.step.in_progress"),
        (8, "run.step.delta"),
        (9, "run.step.completed"),
        (10, "message.created"),
        (11, "message.in_progress"),
        (12, "message.delta"),
        (13, "message.completed"),
        (14, "run.completed"),
    ]
    assert change.steps == (attrs.evolve(done, sequence=6),)
    assert change.messages == (whole,)
    assert {event.created_at for event in change.events} == {NOW}


def test_a_step_that_is_written_ended_was_begun_all_the_same():
    record = a_record("leased in_progress")
    step = a_step(status=RunStepStatus.FAILED, failed_at=9, last_error=ERROR)
    change = rules.write(RunState(record, a_log(record)), LEASE, RunWrite(items=(step,)), now_ns=NOW_NS)
    assert names(change) == ["run.step.created", "run.step.in_progress", "run.step.failed"]
    data: list[Any] = [event.data for event in change.events]
    assert [(step.status, step.failed_at) for step in data] == [
        ("in_progress", None),
        ("in_progress", None),
        ("failed", 9),
    ]


def test_new_details_of_an_open_step_are_not_lost_when_it_is_closed():
    record = a_record("leased in_progress")
    detailed = a_step(step_details=ToolCalls((CALL,)))
    work = RunWrite(items=(a_step(), detailed), status=RunStatus.CANCELLED)
    change = rules.write(RunState(record, a_log(record)), LEASE, work, now_ns=NOW_NS)
    (step,) = change.steps
    assert (step.status, step.step_details) == ("cancelled", ToolCalls((CALL,)))
    assert names(change) == [
        *("run.step.created", "run.step.in_progress", "run.step.in_progress"),
        *("run.step.cancelled", "run.cancelled"),
    ]


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (attrs.evolve(a_step(), id="../step"), InvalidIdError),
        (attrs.evolve(a_message("hi"), id="a/b"), InvalidIdError),
        (attrs.evolve(a_step(), run_id="run_2"), InvalidInputError),
        (attrs.evolve(a_message("hi"), thread_id="thread_2"), InvalidInputError),
        (attrs.evolve(a_message("hi"), run_id=None), InvalidInputError),
        (attrs.evolve(a_message("hi"), metadata={"k": 1}), InvalidMetadataError),
        (attrs.evolve(a_step(), metadata={"k": "v" * 513}), InvalidMetadataError),
        (MessageDelta("msg_1", "not announced"), InvalidInputError),
        (Checkpoint(7, None), InvalidInputError),  # type: ignore[arg-type]
        (StepDelta("step_1", 0, CALL), InvalidInputError),
    ],
    ids=repr,
)
def test_an_item_that_cannot_be_written_is_refused(item, error):
    record = a_record("leased in_progress")
    with pytest.raises(error):
        rules.write(RunState(record, a_log(record)), LEASE, owned_work(LEASE, RunWrite(items=(item,))), now_ns=NOW_NS)


def test_a_step_that_was_closed_before_is_not_written_again():
    record = a_record("leased in_progress")
    closed = a_step(status=RunStepStatus.COMPLETED)
    with pytest.raises(InvalidInputError, match="step_1"):
        rules.write(
            RunState(record, a_log(record)),
            LEASE,
            RunWrite(items=(a_step(),)),
            now_ns=NOW_NS,
            find_step={closed.id: closed}.get,
        )


def test_a_second_message_is_refused_while_the_first_is_open():
    record = a_record("leased in_progress")
    log = a_log(record, message=a_message(status=MessageStatus.IN_PROGRESS))
    second = attrs.evolve(a_message(status=MessageStatus.IN_PROGRESS), id="msg_2")
    with pytest.raises(InvalidInputError, match="msg_1"):
        rules.write(RunState(record, log), LEASE, RunWrite(items=(second,)), now_ns=NOW_NS)


@pytest.mark.parametrize("state", STATES)
def test_what_is_added_by_hand_leaves_status_and_lease(state):
    record = a_record(state)
    step = rules.append_step(RunState(record, a_log(record)), a_step(sequence=99), now_ns=NOW_NS)
    assert step.record == record
    assert step.steps == (a_step(sequence=6),)
    assert names(step) == ["run.step.created", "run.step.in_progress"]
    message = rules.append_message(RunState(record, a_log(record)), a_message("hello", completed_at=9), now_ns=NOW_NS)
    assert message.record == record
    assert message.messages == (a_message("hello", completed_at=9),)
    assert names(message) == ["message.created", "message.in_progress", "message.completed"]
    assert message.events[0].data == a_message(status=MessageStatus.IN_PROGRESS)


# What a step had, what is asked, the moment that is set, the event that says so.
STEP = """
             moment        event
in_progress  -             -
completed    completed_at  run.step.completed
failed       failed_at     run.step.failed
cancelled    cancelled_at  run.step.cancelled
expired      expired_at    run.step.expired
"""


@pytest.mark.parametrize("status", RunStepStatus)
def test_updating_a_step(status):
    answers = {column: cell for row, column, cell in read_table(STEP) if row == status}
    record = a_record("leased in_progress")
    step = a_step(sequence=3, step_details=ToolCalls(()))
    change = rules.update_step(
        RunState(record, a_log(record, step=step)), step, status, details=None, error=None, now_ns=NOW_NS
    )
    moment = {} if answers["moment"] == "-" else {answers["moment"]: NOW}
    assert change.steps == (attrs.evolve(step, status=status, **moment),)
    assert names(change) == ([] if answers["event"] == "-" else [answers["event"]])
    assert change.record == record


def test_details_and_error_of_a_step_are_replaced_where_they_are_given_and_kept_where_not():
    record = a_record("in_progress")
    step = a_step(step_details=ToolCalls(()), last_error=OLD_ERROR)

    def update(**given):
        given = {"details": None, "error": None} | given
        (changed,) = rules.update_step(
            RunState(record, a_log(record, step=step)), step, RunStepStatus.FAILED, now_ns=NOW_NS, **given
        ).steps
        return changed.step_details, changed.last_error

    assert update() == (ToolCalls(()), OLD_ERROR)
    assert update(details=ToolCalls((CALL,))) == (ToolCalls((CALL,)), OLD_ERROR)
    assert update(error=ERROR) == (ToolCalls(()), ERROR)


def test_every_status_stands_in_every_table():
    assert {state.removeprefix(LEASED) for state in STATES} == set(STATUSES)
    for table in (UPDATE, CANCEL, ROLL_BACK, WRITE, SUBMIT):
        assert list(dict.fromkeys(row for row, _, _ in read_table(table))) == STATES
    assert set(SETTLEMENTS) == {status for status in RunStatus if status.is_terminal}
