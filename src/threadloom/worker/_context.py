"""What a handler has: its run, the messages before it, and the ways to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import attrs

from threadloom import codec
from threadloom.errors import InvalidInputError
from threadloom.events import StepDelta
from threadloom.lifecycle import RunWrite
from threadloom.models import (
    FunctionCall,
    IncompleteDetails,
    Message,
    RequiredAction,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepType,
    Thread,
    ToolCall,
)
from threadloom.pages import Order, Page, page_of
from threadloom.store import Claim, ThreadStore
from threadloom.worker._chat import chat_messages
from threadloom.worker._checkpoints import Checkpoints
from threadloom.worker._parts import MessageWriter, StepWriter, check_text, kept_message, made_calls, whole_message
from threadloom.worker._writer import Items, RunEnding, RunWriter

__all__ = ["RunContext"]


class RunContext:
    """One call of a handler: made by the worker for each attempt at a run, and of no use after the handler has ended.

    A handler is one turn. It is called again, from the top, when the outputs came in that it had called for, and when
    an attempt is done again. Its calls of ``reply``, ``message``, ``step`` and ``call_tools`` are numbered in each
    turn, and what an earlier attempt completed at the same number is kept and returned, not written twice.

    What it writes goes out under the run's lease, one act at a time, in the order of the calls. ``LeaseLostError`` says
    that the run was given another status meanwhile, or was deleted: nothing was written, and the handler is about to be
    cancelled. An act that has begun is carried out before a cancellation goes on.
    """

    def __init__(self, store: ThreadStore, claim: Claim, writer: RunWriter) -> None:
        self._store = store
        self._run = claim.run
        self._attempt = claim.lease.attempt
        self._writer = writer
        self._checkpoints = Checkpoints(store, claim, writer)

    @property
    def run(self) -> Run:
        """The run as it was when it was claimed."""
        return self._run

    @property
    def attempt(self) -> int:
        """Which attempt at the run this is, from 1 up."""
        return self._attempt

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools that the run has completed so far, with their outputs, in order.

        Those that a client carried out, and those of ``step``. What an earlier attempt completed in this turn is among
        them once this one has come to its place.
        """
        return self._writer.past.tool_calls

    async def get_thread(self) -> Thread:
        """Return the run's thread as it is now."""
        return await self._store.get_thread(self._run.thread_id)

    async def list_messages(
        self,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
        run_id: str | None = None,
    ) -> Page[Message]:
        """Return the messages that the run is given, all, oldest first, unless narrowed as in the store.

        These are the ones that were there when the run was created, and what it and the runs before it have written
        since; with a ``truncation_strategy`` that has ``last_messages``, the newest of them, that many at the most.
        What an earlier attempt wrote in this turn is among them once this one has come to its place.
        """
        run = self._run
        newest = None if run.truncation_strategy is None else run.truncation_strategy.last_messages
        hidden = self._writer.past.hidden_messages
        if newest is None and not hidden:
            return await self._store.list_messages(
                run.thread_id, seen_by=run.id, run_id=run_id, limit=limit, order=order, after=after, before=before
            )
        at_most = None if newest is None else newest + len(hidden)
        given = await self._store.list_messages(run.thread_id, seen_by=run.id, limit=at_most, order=Order.DESC)
        seen = [message for message in given if message.id not in hidden][:newest]
        page = page_of(
            tuple(reversed(seen)),
            lambda message: message.id,
            "messages that the run is given",
            wanted=None if run_id is None else lambda message: message.run_id == run_id,
            limit=limit,
            order=order,
            after=after,
            before=before,
        )
        return Page(page.items, page.has_more, damaged=given.damaged)

    async def chat_messages(self) -> list[dict[str, Any]]:
        """Return all of it as the ``messages`` of a chat-completions request.

        The run's instructions as ``system``, the messages as ``list_messages`` gives them, and in the order of its
        steps what this run did: its messages, and its calls of tools with their outputs. A message of nothing but text
        has a string for its ``content``, any other a list of parts.
        """
        return chat_messages(self._run, await self.list_messages(), self._writer.past.steps)

    async def checkpoint(self, name: str, function: Callable[[], Any]) -> Any:
        """Return what ``function`` returns, found out once per run and kept: a later attempt or turn is given that.

        ``function`` takes no arguments and may be async; a plain one must be quick, for it runs in the event loop. What
        it returns must be JSON, else ``InvalidInputError``; each caller gets a copy of its own, in which a tuple has
        become a list. It is kept under ``name``, any string, once it is there: a function that raises keeps nothing,
        and one that was at work when the process died is called again. Of two at the same time under one name, one
        waits for the other.
        """
        return await self._checkpoints.result_of(name, function)

    async def reply(self, text: str) -> Message:
        """Add a whole message and its ``message_creation`` step, in one act, and return the message.

        Where an earlier attempt completed a message at this place, return that one, and write nothing.
        """
        check_text(text)
        place = self._writer.past.next_place()
        kept = self._writer.past.kept(place, RunStepType.MESSAGE_CREATION)
        if kept is not None:
            return await kept_message(self._store, self._writer, kept)
        made: list[Message] = []

        def items(now: int) -> Items:
            message, whole = whole_message(self._run, text, now, place)
            made.append(message)
            return whole

        await self._writer.put(items)
        return made[-1]

    def message(self) -> MessageWriter:
        """Return a message to be streamed: ``async with ctx.message() as m: await m.write(text)``.

        It and its step are announced on entering, each ``write`` is an event, and the message is appended to the
        thread whole on leaving. ``InvalidInputError`` while another message or step is open.

        Where an earlier attempt completed a message at this place, ``m.is_kept``: nothing is written, and ``m.text`` is
        what was written then.
        """
        return MessageWriter(self._store, self._writer)

    def step(self, calls: Iterable[FunctionCall | ToolCall]) -> StepWriter:
        """Return a ``tool_calls`` step for tools that the handler calls itself: ``async with ctx.step(calls) as step``.

        A ``FunctionCall`` is given an id; ``step.calls`` has them all. Outputs set by ``step.set_output`` are written
        when the step ends. ``InvalidInputError`` while another message or step is open.

        Where an earlier attempt completed a step at this place, ``step.is_kept``: nothing is written, and
        ``step.calls`` are the calls of that attempt with their outputs, whatever a model has come up with this time.
        """
        return StepWriter(self._writer, calls)

    async def call_tools(self, calls: Iterable[FunctionCall | ToolCall]) -> NoReturn:
        """Ask the client to carry out ``calls``, and leave the handler as ``fail`` does.

        When the handler has ended, one act writes the step with the calls, brings the run to ``requires_action``, and
        gives back the lease and the worker's slot. Once ``store.submit_tool_outputs`` brings the outputs, the handler
        is called again, from the top, by any worker, with the outputs in ``tool_calls``. Names and arguments are any
        strings, and never parsed. A handler that does not let the exception out writes nothing more.
        ``InvalidInputError`` while a message or step is open, and where there is no call.
        """
        self._writer.check()
        made = made_calls(calls)
        self._writer.check_room()
        if not made:
            raise InvalidInputError("There must be a call: a run that waits for nothing waits for ever.")
        if any(call.function.output is not None for call in made):
            raise InvalidInputError("A call that a client is to carry out has no output yet.")
        run, place = self._run, self._writer.past.next_place()
        step = RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id, calls=made, assistant_id=run.assistant_id)
        step = attrs.evolve(step, created_at=self._writer.now, turn=place.turn, position=place.position)
        codec.dump_line(codec.to_record(step))  # what cannot be kept is refused here, and not when nobody is left
        deltas = tuple(StepDelta(step.id, index, call) for index, call in enumerate(made))
        self._end(
            RunWrite(
                items=(step, *deltas),
                status=RunStatus.REQUIRES_ACTION,
                required_action=RequiredAction(made),
            )
        )

    def add_usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Add tokens to the run's ``usage``, which is written in the act that ends the run or asks for tools.

        Not before: an attempt that is done again, be it after an exception, a crash or a worker's stop, starts from
        what the run had when it was claimed, so that its tokens count once. They are lost where the run is taken away
        from the worker by a forced status.

        Against ``max_prompt_tokens`` and ``max_completion_tokens`` all attempts count: where one is passed, the run
        ends at once as by ``incomplete`` with its name. What a killed worker had added since its last write is lost.
        """
        self._writer.check()
        for tokens in (prompt_tokens, completion_tokens):
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
                raise InvalidInputError(f"Tokens are counted in whole numbers from 0 up, not {tokens!r}.")
        self._writer.tokens.add(prompt_tokens, completion_tokens)
        passed = self._writer.tokens.passed_limit()
        if passed is not None:
            self.incomplete(passed)

    def fail(self, code: str, message: str) -> NoReturn:
        """End the run as ``failed``, without another attempt, and leave the handler by a ``BaseException``.

        ``code`` and ``message`` are shown to anyone who reads the run. OpenAI's clients know the codes
        ``server_error``, ``rate_limit_exceeded`` and ``invalid_prompt``. The first decision stands, also if the
        handler does not let the exception out.
        """
        _check_words(code=code, message=message)
        self._end(RunWrite(status=RunStatus.FAILED, error=RunError(code, message)))

    def incomplete(self, reason: str) -> NoReturn:
        """End the run as ``incomplete``, and leave the handler as ``fail`` does.

        OpenAI's clients know the reasons ``max_completion_tokens`` and ``max_prompt_tokens``.
        """
        _check_words(reason=reason)
        self._end(RunWrite(status=RunStatus.INCOMPLETE, incomplete_details=IncompleteDetails(reason)))

    def _end(self, ending: RunWrite) -> NoReturn:
        self._writer.check()
        self._writer.ending = self._writer.ending or ending
        raise RunEnding


def _check_words(**words: object) -> None:
    for name, word in words.items():
        if not isinstance(word, str) or not word:
            raise InvalidInputError(f"{name} must be a str that says something, not {word!r}.")
