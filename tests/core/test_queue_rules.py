"""What a backend is told of a thread's place in the queue, and what the queue of candidates makes of it."""

import attrs
import pytest

from tests.core.rule_fixtures import LEASE, a_log, a_record
from threadloom.candidates import CandidateQueue
from threadloom.records import RunRecord, RunState
from threadloom.rules.queue import Standing, standing

SECOND = 1_000_000_000
READY = Standing(sequence=1, is_ready=True)


def states(*described):
    made = []
    for n, one in enumerate(described, start=1):
        status, fields = one if isinstance(one, tuple) else (one, {})
        record = a_record(status, **fields)
        made.append(
            RunState(attrs.evolve(record, run=attrs.evolve(record.run, id=f"run_{n}", sequence=n)), a_log(record))
        )
    return made


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        ([], Standing()),
        (["queued"], Standing(sequence=1, is_ready=True)),
        (["queued", "queued"], Standing(sequence=1, is_ready=True)),
        ([("queued", {"retry_at": 7}), "queued"], Standing(sequence=1, is_ready=True, ready_at_ns=7 * SECOND)),
        (["leased in_progress", "queued"], Standing(sequence=1, leases=("",))),
        (["requires_action", "queued"], Standing(sequence=1)),
        (["in_progress", "queued"], Standing(sequence=1, is_by_hand=True)),
        ([("queued", {"expires_at": 9}), ("queued", {"expires_at": 8})],
         Standing(sequence=1, is_ready=True, expires_at_ns=8 * SECOND)),
        ([("leased in_progress", {"expires_at": 8})], Standing(sequence=1, leases=("",))),
        ([("requires_action", {"expires_at": 8})], Standing(sequence=1, expires_at_ns=8 * SECOND)),
        (["failed"], Standing(sequence=1, expires_at_ns=0)),
    ],
)  # fmt: skip
def test_the_standing_of_a_thread(active, expected):
    assert standing(states(*active)) == expected


def test_a_standing_names_the_leases_by_what_their_workers_live_by():
    record = a_record("leased cancelling")
    held = RunRecord(record.run, attrs.evolve(LEASE, liveness_id="process_1"))
    assert standing([RunState(held, a_log(record))]).leases == ("process_1",)


def taken(queue, limit=10, *, adopt=False, now=0):
    found = queue.take(limit, adopt=adopt, now_ns=now)
    return list(found.places), list(found.overdue_ids), found.next_due_ns


def test_threads_are_offered_by_how_long_they_have_waited():
    queue = CandidateQueue()
    for sequence in (3, 1, 2):
        assert queue.update(f"t{sequence}", Standing(sequence=sequence, is_ready=True))
    assert taken(queue, 2) == (["t1", "t2"], [], None)
    assert taken(queue, 2) == (["t3"], [], None)
    assert taken(queue, 2) == ([], [], None)


def test_a_thread_that_was_returned_is_withheld_until_it_is_updated():
    queue = CandidateQueue()
    queue.update("t", READY)
    assert queue.is_withheld("t") is False
    assert taken(queue)[0] == ["t"]
    assert queue.is_withheld("t")
    assert taken(queue)[0] == []
    assert queue.update("t", READY), "there is something to offer again"
    assert not queue.update("t", READY)
    assert taken(queue)[0] == ["t"]
    assert not queue.update("t", Standing(sequence=1, leases=("",)))
    assert taken(queue)[0] == []


def test_a_thread_whose_transaction_failed_is_offered_again_after_a_while():
    queue = CandidateQueue()
    queue.update("t", READY)
    assert not queue.offer_again("t"), "it was never withheld"
    taken(queue)
    assert queue.offer_again("t", at_ns=5)
    assert taken(queue, now=4) == ([], [], 5)
    assert taken(queue, now=5)[0] == ["t"]
    assert queue.offer_again("t")
    assert taken(queue, now=5)[0] == ["t"]


def test_a_thread_is_due_at_its_moment():
    queue = CandidateQueue()
    assert queue.update("t", Standing(sequence=1, is_ready=True, ready_at_ns=5))
    assert taken(queue, now=4) == ([], [], 5)
    assert taken(queue, now=5) == (["t"], [], None)


def test_overdue_threads_come_first_and_count_towards_no_limit():
    queue = CandidateQueue()
    queue.update("ready", READY)
    queue.update("late", Standing(sequence=2, is_ready=True, expires_at_ns=5))
    queue.update("held", Standing(sequence=3, expires_at_ns=6))
    assert taken(queue, 0, now=4) == ([], [], 5)
    assert taken(queue, 0, now=6)[1] == ["late", "held"]
    assert taken(queue, 10, now=6)[0] == ["ready"]


def test_a_thread_driven_by_hand_is_offered_to_those_who_adopt_in_its_order():
    queue = CandidateQueue()
    queue.update("ready", Standing(sequence=2, is_ready=True))
    queue.update("hand", Standing(sequence=1, is_by_hand=True))
    queue.update("later", Standing(sequence=3, is_by_hand=True))
    assert taken(queue, 1) == (["ready"], [], None)
    assert taken(queue, 3, adopt=True)[0] == ["hand", "later"]


def test_a_thread_without_active_runs_is_forgotten():
    queue = CandidateQueue()
    queue.update("t", Standing(sequence=1, is_ready=True, expires_at_ns=5))
    assert not queue.update("t", Standing())
    assert taken(queue, now=9) == ([], [], None)
