"""What a log says of a run whose record an external writer has replaced."""

import attrs
import pytest

from tests.core.rule_fixtures import ERROR, LEASE, NOW, NOW_NS, a_log, a_message, a_record, a_run, a_step, names
from threadloom.events import EventType, RunEvent, RunLog
from threadloom.models import MessageStatus, RunStatus, Usage
from threadloom.records import RunRecord, RunState
from threadloom.rules.run import adopt_external

FULL = {
    "instructions": "Be brief.",
    "tools": ({"type": "function"},),
    "metadata": {"k": "v"},
    "turn": 2,
    "spent": Usage(1, 1, 2),
}


def adopted(state, record):
    return adopt_external(state, record, now_ns=NOW_NS)


@pytest.mark.parametrize("status", RunStatus)
def test_an_external_status_becomes_an_event_and_stands(status):
    known = a_record("queued", started_at=None)
    record = RunRecord(attrs.evolve(known.run, status=status, last_error=ERROR))
    change = adopted(RunState(known, a_log(known)), record)
    assert change.record == record
    assert change.events == (RunEvent(6, EventType.of_run(status), NOW, record.run),)
    assert (change.steps, change.messages) == ((), ())


@pytest.mark.parametrize("status", ["completed", "failed", "incomplete", "expired", "cancelled"])
def test_an_external_end_closes_what_the_worker_left_open(status):
    known = a_record("leased in_progress")
    log = a_log(known, step=a_step(), message=a_message(status=MessageStatus.IN_PROGRESS), pieces=("half ", "a "))
    record = RunRecord(attrs.evolve(known.run, status=RunStatus(status)))
    change = adopted(RunState(known, log), record)
    assert change.record == record
    assert names(change)[0] == "message.incomplete"
    assert names(change)[1].startswith("run.step.")
    assert names(change)[2:] == [f"run.{status}"]
    assert [message.text for message in change.messages] == ["half a "]
    assert change.events[0].number == 1_000_001, "the worker's last events may have been read, and lost since"


def test_a_run_that_was_rolled_back_keeps_no_text_even_where_the_record_forgets_it():
    known = a_record("leased cancelling", is_rolled_back=True)
    log = a_log(known, message=a_message(status=MessageStatus.IN_PROGRESS), pieces=("half a ",))
    record = RunRecord(attrs.evolve(known.run, status=RunStatus.CANCELLED, is_rolled_back=False))
    change = adopted(RunState(known, log), record)
    assert change.messages == ()
    assert change.record.run.is_rolled_back


def test_the_lease_stays_only_if_the_record_has_a_live_one():
    known = a_record("leased in_progress")
    changed = attrs.evolve(known.run, metadata={"new": "value"})
    state = RunState(known, a_log(known))
    assert adopted(state, RunRecord(changed, LEASE)).record.lease == LEASE
    assert adopted(state, RunRecord(changed)).record.lease is None
    queued = RunRecord(attrs.evolve(changed, status=RunStatus.QUEUED), LEASE)
    assert adopted(state, queued).record.lease is None


def test_a_record_that_says_what_the_log_says_is_no_event():
    known = a_record("queued")
    change = adopted(RunState(known, a_log(known)), RunRecord(known.run))
    assert (change.record, change.events) == (known, ())


def test_a_record_without_our_keys_keeps_what_was_asked_for_and_our_own_fields():
    known = a_record("leased in_progress", **FULL)
    bare = a_run("completed", sequence=None, attempt=1, messages_before=None, started_at=None, last_error=None)
    change = adopted(RunState(known, a_log(known)), RunRecord(bare))
    assert change.record.run == attrs.evolve(known.run, status=RunStatus.COMPLETED, last_error=None)


def test_what_such_a_record_says_itself_stands():
    known = a_record("queued", **FULL)
    bare = a_run("queued", sequence=None, instructions="Be long.", metadata={"new": "value"})
    run = adopted(RunState(known, a_log(known)), RunRecord(bare)).record.run
    assert (run.instructions, run.metadata, run.sequence) == ("Be long.", {"new": "value"}, 7)


def test_a_record_that_says_where_the_run_is_is_not_mixed_with_where_it_was():
    known = a_record("failed", **FULL, failed_at=9)
    bare = a_run("queued", sequence=None, last_error=None)
    run = adopted(RunState(known, a_log(known)), RunRecord(bare)).record.run
    assert (run.status, run.failed_at, run.last_error) == (RunStatus.QUEUED, None, None)


@pytest.mark.parametrize("status", RunStatus)
def test_a_run_without_a_log_is_given_the_events_of_its_creation(status):
    record = RunRecord(a_run(status, sequence=None))
    change = adopted(RunState(record, RunLog(), [a_step()]), record)
    assert change.record == record
    assert [(event.number, event.type, event.data) for event in change.events] == [
        (1, EventType.RUN_CREATED, record.run),
        (2, EventType.of_run(status), record.run),
    ]
    assert change.steps == (), "what it left open is history"
