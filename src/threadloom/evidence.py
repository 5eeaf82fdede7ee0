"""What the events of a run prove about its record, its steps and its messages: for checks, and for mending."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field

from threadloom.events import NUMBERS_PER_CLAIM, EventType, RunEvent, RunLog
from threadloom.models import Message, MessageStatus, Run, RunStatus, RunStep, RunStepStatus

__all__ = ["Evidence"]

# Why a message ends whose run is going to be done again: such a one stays in the events only.
_ABANDONED = frozenset({"run_failed", "run_cancelled"})


@define
class Evidence:
    """The fold of ``apply`` over the events of a run, and of ``miss`` over those that cannot be read.

    ``run`` is what the run came to last, none where what was missed may have said more. ``is_at_work`` says whether a
    worker had it then. ``steps`` and ``messages`` are those that have to lie in the store, as they were told of last.
    """

    run: Run | None = None
    is_at_work: bool = False
    steps: dict[str, RunStep] = field(factory=dict)
    messages: dict[str, Message] = field(factory=dict)
    _ended_early: list[Message] = field(factory=list)
    _has_ended: bool = False
    _is_rolled_back: bool = False
    _by_hand: set[str] = field(factory=set)

    def apply(self, event: RunEvent) -> None:
        """Take in the next event."""
        match event.data:
            case Run() as run:
                self._come_to(run, event)
            case RunStep() as step:
                self.steps[step.id] = step
                if self._has_ended:
                    self._by_hand.add(step.id)
            case Message() if self._is_rolled_back:
                pass
            case Message(status=MessageStatus.COMPLETED) as message:
                self.messages[message.id] = message
            case Message(status=MessageStatus.INCOMPLETE) as message if message.content:
                self._ended_early.append(message)

    def miss(self) -> None:
        """Know that an event is not to be had, whatever it said."""
        self.run = None
        self.is_at_work = False
        self._ended_early = []
        for step in tuple(self.steps.values()):
            if step.status is RunStepStatus.IN_PROGRESS:
                del self.steps[step.id]

    def is_left_open(self, run: Run, log: RunLog, steps: Iterable[RunStep]) -> bool:
        """Return whether something of a terminal run is not closed; what was done to it by hand afterwards may be."""
        open_steps = {*log.open_steps, *(step.id for step in steps if step.status is RunStepStatus.IN_PROGRESS)}
        is_closed = log.has_ended and log.open_message is None and open_steps <= self._by_hand
        return run.status.is_terminal and not is_closed

    def _come_to(self, run: Run, event: RunEvent) -> None:
        self.run = run
        self._has_ended = run.status.is_terminal
        self._is_rolled_back = run.is_rolled_back and not self._has_ended
        self._by_hand.clear()
        if event.type is EventType.RUN_IN_PROGRESS:
            self.is_at_work = event.number % NUMBERS_PER_CLAIM == 1
        elif run.status is not RunStatus.CANCELLING:
            self.is_at_work = False
        if run.is_rolled_back:
            # What it wrote before was removed, and what it wrote since was not kept, also if that event was missed.
            self.messages.clear()
            self._ended_early = []
        for message in self._ended_early:
            details = message.incomplete_details
            if run.status.is_terminal or details is None or details.reason not in _ABANDONED:
                self.messages[message.id] = message
        self._ended_early = []
