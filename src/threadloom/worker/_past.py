"""What earlier attempts and turns of a run completed, and how much of it the handler has reached."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from attrs import frozen

from threadloom.models import MessageCreation, Run, RunStep, RunStepStatus, RunStepType, ToolCall, ToolCalls

__all__ = ["Past", "Place", "tool_calls_of"]


@frozen
class Place:
    """Place of a message or step in a handler.

    Attributes:
        turn: Number of times that tool outputs were submitted before.

        position: Number of the handler's call in that turn, starting at 1.
    """

    turn: int
    position: int


class Past:
    """The completed steps that the handler may know: those of earlier turns, and those it has reached in this turn.

    A step that an earlier attempt completed in this turn is kept at its place. It counts only when the handler reaches
    the place: until then, a retry knows no more than the first attempt did.
    """

    def __init__(self, run: Run) -> None:
        self._turn = run.turn
        self._anew_from = run.anew_from or 0
        self._positions = itertools.count(1)
        self._kept: dict[tuple[Place, RunStepType], RunStep] = {}
        self._reached: dict[str, RunStep] = {}

    def recall(self, steps: Iterable[RunStep]) -> None:
        """Read the steps of the run, before the handler is called."""
        for step in steps:
            if step.status is not RunStepStatus.COMPLETED or (step.sequence or 0) < self._anew_from:
                continue
            if step.turn == self._turn and step.position is not None:
                self._kept[Place(step.turn, step.position), step.type] = step
            else:
                self.reach(step)

    def next_place(self) -> Place:
        """Return the place of the handler's next call."""
        return Place(self._turn, next(self._positions))

    def kept(self, place: Place, kind: RunStepType) -> RunStep | None:
        """Return the step of this kind that an earlier attempt completed at this place, or None."""
        return self._kept.get((place, kind))

    def reach(self, step: RunStep) -> None:
        """Count a completed step as reached from now on."""
        if step.turn is not None and step.position is not None:
            self._kept.pop((Place(step.turn, step.position), step.type), None)
        self._reached[step.id] = step

    @property
    def steps(self) -> tuple[RunStep, ...]:
        """The completed steps so far, in order."""
        return tuple(self._reached.values())

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the completed steps so far, in order."""
        return tuple(call for step in self._reached.values() for call in tool_calls_of(step))

    @property
    def hidden_messages(self) -> frozenset[str]:
        """Ids of messages that an earlier attempt wrote, at places that the handler has not reached yet."""
        details = (step.step_details for step in self._kept.values())
        return frozenset(detail.message_id for detail in details if isinstance(detail, MessageCreation))


def tool_calls_of(step: RunStep) -> list[ToolCall]:
    """Return the function calls of a step. Empty for a step that wrote a message."""
    details = step.step_details
    if not isinstance(details, ToolCalls):
        return []
    return [call for call in details.tool_calls if isinstance(call, ToolCall)]
