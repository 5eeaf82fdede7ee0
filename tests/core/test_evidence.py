"""What the events of a run prove of its messages: which of them have to lie in the store."""

import attrs
import pytest

from threadloom.events import EventType, RunEvent
from threadloom.evidence import Evidence
from threadloom.models import IncompleteDetails, Message, MessageStatus, Run, RunStatus

RUN = attrs.evolve(Run.new("thread_1", model="any"), id="run_1")
ROLLED_BACK = attrs.evolve(RUN, is_rolled_back=True)


def come_to(status, run=RUN):
    return EventType.of_run(status), attrs.evolve(run, status=status)


def completed(name):
    message = Message.assistant("thread_1", "hello", run_id="run_1")
    return EventType.MESSAGE_COMPLETED, attrs.evolve(message, id=name)


def ended_early(name, reason):
    message = Message.assistant("thread_1", "half a ", run_id="run_1")
    return EventType.MESSAGE_INCOMPLETE, attrs.evolve(
        message, id=name, status=MessageStatus.INCOMPLETE, incomplete_details=IncompleteDetails(reason)
    )


MISSED = None


def proved(*told):
    """Return the ids of the messages that have to be there after such events; a missed one is none."""
    evidence = Evidence()
    for number, event in enumerate(told, 1):
        if event is MISSED:
            evidence.miss()
        else:
            kind, data = event
            evidence.apply(RunEvent(number, kind, 1, data))
    return set(evidence.messages)


CANCELLING = come_to(RunStatus.CANCELLING)
ROLLING_BACK = come_to(RunStatus.CANCELLING, ROLLED_BACK)
WAS_ROLLED_BACK = come_to(RunStatus.CANCELLED, ROLLED_BACK)
BEGUN = come_to(RunStatus.IN_PROGRESS)


@pytest.mark.parametrize(
    ("told", "messages"),
    [
        ([BEGUN, completed("a")], {"a"}),
        ([BEGUN, completed("a"), CANCELLING, completed("b"), come_to(RunStatus.CANCELLED)], {"a", "b"}),
        ([BEGUN, ended_early("a", "run_cancelled"), come_to(RunStatus.CANCELLED)], {"a"}),
        ([BEGUN, ended_early("a", "run_cancelled"), come_to(RunStatus.QUEUED)], set()),
        ([BEGUN, ended_early("a", "max_tokens"), come_to(RunStatus.QUEUED)], {"a"}),
        # A run that is rolled back has none: what it wrote was removed, and no more is kept.
        ([BEGUN, completed("a"), ROLLING_BACK], set()),
        ([BEGUN, ROLLING_BACK, completed("a")], set()),
        ([BEGUN, ROLLING_BACK, completed("a"), ended_early("b", "max_tokens"), WAS_ROLLED_BACK], set()),
        ([BEGUN, completed("a"), ended_early("b", "run_cancelled"), WAS_ROLLED_BACK], set()),
        ([BEGUN, ended_early("a", "max_tokens"), ROLLING_BACK, WAS_ROLLED_BACK], set()),
        ([BEGUN, MISSED, completed("a"), WAS_ROLLED_BACK], set()),
        # It is kept what is added by hand afterwards, and what it writes once it is taken again.
        ([BEGUN, ROLLING_BACK, WAS_ROLLED_BACK, completed("a")], {"a"}),
        ([BEGUN, completed("a"), ROLLING_BACK, WAS_ROLLED_BACK, come_to(RunStatus.QUEUED), completed("b")], {"b"}),
        ([BEGUN, ROLLING_BACK, WAS_ROLLED_BACK, BEGUN, ended_early("b", "max_tokens"), BEGUN], {"b"}),
    ],
)
def test_which_messages_have_to_be_there(told, messages):
    assert proved(*told) == messages
