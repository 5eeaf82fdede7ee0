"""The parts that a handler fills piece by piece: messages, and steps with tool calls."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import attrs

from threadloom.errors import InvalidInputError, MessageNotFoundError
from threadloom.events import MessageDelta, StepDelta
from threadloom.ids import new_message_id
from threadloom.models import (
    FunctionCall,
    IncompleteDetails,
    Message,
    MessageCreation,
    MessageRole,
    MessageStatus,
    Run,
    RunError,
    RunStep,
    RunStepStatus,
    RunStepType,
    TextContent,
    ToolCall,
    ToolCalls,
)
from threadloom.store import ThreadStore
from threadloom.worker._past import Place, tool_calls_of
from threadloom.worker._writer import Items, Part, RunWriter

__all__ = ["MessageWriter", "StepWriter", "check_text", "kept_message", "made_calls", "raised", "whole_message"]


def check_text(text: object) -> None:
    """Raise ``InvalidInputError`` if ``text`` is not a string."""
    if not isinstance(text, str):
        raise InvalidInputError(f"The text of a message must be a str, not {type(text).__name__}.")


def raised(error: BaseException) -> RunError:
    """Return what anyone may see of an exception: only the name of its class, because its message may hold secrets."""
    return RunError("server_error", f"The handler raised {type(error).__name__}.")


class MessageWriter(Part):
    """A streamed message. ``ctx.message()`` returns it, and its ``async with`` block opens and ends it.

    If an earlier attempt completed a message at this place of the handler, that message is kept: it is already in the
    thread, new text is dropped, and ``text`` is the earlier text.
    """

    kind = "message"

    def __init__(self, store: ThreadStore, writer: RunWriter) -> None:
        self._store = store
        self._writer = writer
        self._pieces: list[str] = []
        self._was_opened = False
        place = writer.past.next_place()
        self._kept = writer.past.kept(place, RunStepType.MESSAGE_CREATION)
        self._message = _new_message(writer.run, writer.now)
        self._step = _message_step(self._message, writer.run, place)

    @property
    def id(self) -> str:
        """The id of the message."""
        return self._message.id if self._kept is None else _message_id(self._kept)

    @property
    def is_kept(self) -> bool:
        """Whether an earlier attempt completed the message. Then there is nothing to write."""
        return self._kept is not None

    @property
    def text(self) -> str:
        """The text written so far. For a kept message, the complete text once the block is entered."""
        return "".join(self._pieces)

    async def write(self, text: str) -> None:
        """Add text as one event. Empty text, and any text in a kept message, does nothing.

        It returns once the text is accepted, before it is written. Texts that arrive while a write is under way go into
        one transaction, the next one. If that transaction fails, the next call raises its error: ``LeaseLostError`` if
        the worker no longer holds the run.

        Args:
            text: The text to add.
        """
        check_text(text)
        if self._kept is not None:
            self._writer.check()
        elif text:
            await self._writer.add(self, MessageDelta(self.id, text), lambda: self._pieces.append(text))

    async def begin(self, text: str) -> bool:
        """Open the message with its first piece in one transaction. For an empty piece, do nothing and return False."""
        check_text(text)
        if text:
            await self._open(text)
        return bool(text)

    async def __aenter__(self) -> Self:
        """Open the message and its step in one transaction."""
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the message and its step in one transaction. After an exception, leave them open.

        The end of the run then decides how they end. If the handler continues instead, the next message or step ends
        them: the message as ``incomplete`` because of ``run_failed``, the step as ``failed``.
        """
        self.is_left = True
        if error is None and self._kept is None:
            await self._writer.close(self, self.completing)

    async def _open(self, *first: str) -> None:
        if self._was_opened:
            raise InvalidInputError("A message can be opened once: call ctx.message() again for the next one.")
        self._was_opened = True
        if self._kept is not None:
            self._pieces.append((await kept_message(self._store, self._writer, self._kept)).text)
            return
        deltas = tuple(MessageDelta(self.id, text) for text in first)
        await self._writer.open(self, lambda _: deltas)
        self._pieces.extend(first)

    def opening(self, now: int) -> Items:
        """Return the items that open the message."""
        self._message = attrs.evolve(self._message, created_at=now)
        self._step = attrs.evolve(self._step, created_at=now)
        return (self._step, self._message)

    def completing(self, now: int) -> Items:
        """Return the items that complete the message. Empty for a kept message."""
        if self._kept is not None:
            return ()
        return (_completed(self._message, self.text, now), _ended(self._step, RunStepStatus.COMPLETED, now))

    def failing(self, now: int) -> Items:
        """Return the items that end the message after the handler left it open."""
        message = attrs.evolve(
            self._message,
            status=MessageStatus.INCOMPLETE,
            content=_content(self.text),
            incomplete_at=now,
            incomplete_details=IncompleteDetails("run_failed"),
        )
        return (message, _ended(self._step, RunStepStatus.FAILED, now))


class StepWriter(Part):
    """A step for tools that the handler executes. ``ctx.step(calls)`` returns it; its ``async with`` opens and ends it.

    If an earlier attempt completed a step at this place of the handler, that step is kept: ``calls`` are the earlier
    calls with their outputs, whatever the new calls, nothing is written, and new outputs are dropped.
    """

    kind = "step"

    def __init__(self, writer: RunWriter, calls: Iterable[FunctionCall | ToolCall]) -> None:
        self._writer = writer
        self._was_opened = False
        run = writer.run
        made = made_calls(calls)
        place = writer.past.next_place()
        self._kept = writer.past.kept(place, RunStepType.TOOL_CALLS)
        if self._kept is not None:
            made = tuple(tool_calls_of(self._kept))
        step = RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id, calls=made, assistant_id=run.assistant_id)
        self._step = self._kept or attrs.evolve(step, turn=place.turn, position=place.position)
        self._calls = {call.id: call for call in made}

    @property
    def id(self) -> str:
        """The id of the step."""
        return self._step.id

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls in their order, with the outputs set so far."""
        return tuple(self._calls.values())

    @property
    def is_kept(self) -> bool:
        """Whether an earlier attempt completed the step. Then there is nothing to do."""
        return self._kept is not None

    def set_output(self, call: ToolCall | str, output: str) -> None:
        """Set the output of a call. It is written when the step ends.

        Args:
            call: The call, or its id.

            output: The output, any text.
        """
        if not isinstance(output, str):
            raise InvalidInputError(f"The output of a call must be a str, not {type(output).__name__}.")
        if self._kept is not None:
            return
        id_ = call.id if isinstance(call, ToolCall) else call
        if id_ not in self._calls:
            raise InvalidInputError(
                f"{id_!r} is not a call of this step; it has {', '.join(self._calls) or 'no calls'}."
            )
        old = self._calls[id_]
        self._calls[id_] = attrs.evolve(old, function=attrs.evolve(old.function, output=output))

    async def __aenter__(self) -> Self:
        """Open the step with its calls in one transaction."""
        if self._was_opened:
            raise InvalidInputError("A step can be opened once: call ctx.step() again for the next one.")
        self._was_opened = True
        if self._kept is None:
            await self._writer.open(self)
        else:
            self._writer.check()
            self._writer.past.reach(self._kept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the step: as ``completed`` with the outputs, or as ``failed`` after an exception.

        After a cancellation, ``ctx.fail`` or ``ctx.incomplete``, the end of the run decides how the step ends.
        """
        self.is_left = True
        if self._kept is not None:
            return
        if error is None:
            await self._writer.close(self, self._completing)
        elif isinstance(error, Exception):
            reason = raised(error)
            await self._writer.close(self, lambda now: (self._with(RunStepStatus.FAILED, now, reason),))

    def opening(self, now: int) -> Items:
        """Return the items that open the step."""
        self._step = attrs.evolve(self._step, created_at=now, step_details=ToolCalls(self.calls))
        return (self._step, *(StepDelta(self.id, index, call) for index, call in enumerate(self.calls)))

    def failing(self, now: int) -> Items:
        """Return the items that end the step after the handler left it open."""
        return (self._with(RunStepStatus.FAILED, now, RunError("server_error", "The handler left the step.")),)

    def _completing(self, now: int) -> Items:
        return (self._with(RunStepStatus.COMPLETED, now),)

    def _with(self, status: RunStepStatus, now: int, error: RunError | None = None) -> RunStep:
        step = attrs.evolve(self._step, step_details=ToolCalls(self.calls))
        return _ended(step, status, now, error)


def made_calls(calls: Iterable[FunctionCall | ToolCall]) -> tuple[ToolCall, ...]:
    """Return the calls, with new ids where they have none, or raise ``InvalidInputError``."""
    made = tuple(ToolCall.new(call) if isinstance(call, FunctionCall) else call for call in calls)
    if len({call.id for call in made if isinstance(call, ToolCall)}) != len(made):
        raise InvalidInputError("The calls of a step must be FunctionCall or ToolCall objects with distinct ids.")
    for call in made:
        if not isinstance(call.function.name, str) or not isinstance(call.function.arguments, str):
            raise InvalidInputError(f"The name and arguments of a call must be strings, unlike in {call.function!r}.")
    return made


async def kept_message(store: ThreadStore, writer: RunWriter, step: RunStep) -> Message:
    """Return the message that an earlier attempt wrote with ``step``, and count the step as reached."""
    writer.check()
    run, id_ = writer.run, _message_id(step)
    try:
        message = await store.get_message(run.thread_id, id_)
    except MessageNotFoundError:
        # Someone deleted the message on purpose, so it is not written again.
        message = _completed(attrs.evolve(_new_message(run, step.created_at), id=id_), "", step.created_at)
    writer.past.reach(step)
    return message


def whole_message(run: Run, text: str, now: int, place: Place) -> tuple[Message, Items]:
    """Return a message with ``text``, and the items that open, stream and complete it together with its step."""
    announced = _new_message(run, now)
    step = _message_step(announced, run, place)
    delta = (MessageDelta(announced.id, text),) if text else ()
    message = _completed(announced, text, now)
    return message, (step, announced, *delta, message, _ended(step, RunStepStatus.COMPLETED, now))


def _new_message(run: Run, now: int) -> Message:
    return Message(
        id=new_message_id(),
        created_at=now,
        thread_id=run.thread_id,
        role=MessageRole.ASSISTANT,
        content=(),
        status=MessageStatus.IN_PROGRESS,
        assistant_id=run.assistant_id or None,
        run_id=run.id,
    )


def _message_step(message: Message, run: Run, place: Place) -> RunStep:
    step = RunStep.message_creation(
        thread_id=run.thread_id, run_id=run.id, message_id=message.id, assistant_id=run.assistant_id
    )
    return attrs.evolve(step, created_at=message.created_at, turn=place.turn, position=place.position)


def _message_id(step: RunStep) -> str:
    details = step.step_details
    return details.message_id if isinstance(details, MessageCreation) else ""


def _content(text: str) -> tuple[TextContent, ...]:
    return (TextContent(text),) if text else ()


def _completed(message: Message, text: str, now: int) -> Message:
    return attrs.evolve(message, status=MessageStatus.COMPLETED, content=_content(text), completed_at=now)


def _ended(step: RunStep, status: RunStepStatus, now: int, error: RunError | None = None) -> RunStep:
    if status is RunStepStatus.COMPLETED:
        return attrs.evolve(step, status=status, completed_at=now)
    return attrs.evolve(step, status=status, failed_at=now, last_error=error)
