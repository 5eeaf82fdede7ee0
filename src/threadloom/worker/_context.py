"""The context that a handler gets: its run, the messages before it, and the methods that answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import attrs

from threadloom import codec
from threadloom.errors import InvalidInputError
from threadloom.events import StepDelta
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
from threadloom.records import RunWrite
from threadloom.store import Claim, ThreadStore
from threadloom.worker._chat import chat_messages
from threadloom.worker._checkpoints import Checkpoints
from threadloom.worker._parts import MessageWriter, StepWriter, check_text, kept_message, made_calls, whole_message
from threadloom.worker._writer import Items, RunEnding, RunWriter

__all__ = ["RunContext"]


class RunContext:
    """One call of a handler. The worker creates it for each call, and it is useless after the handler has ended.

    A handler is one turn. The worker calls it again, from the top, when the client submits tool outputs and when an
    attempt is retried. Its calls of ``reply``, ``message``, ``step`` and ``call_tools`` are numbered in each turn. If
    an earlier attempt completed the call with the same number, its result is returned and not written again.

    Each write is a transaction under the run's lease, in the order of the calls. ``LeaseLostError`` means that someone
    gave the run another status or deleted it: nothing was written, and the worker is about to cancel the handler. A
    transaction that has begun completes before a cancellation is raised.
    """

    def __init__(self, store: ThreadStore, claim: Claim, writer: RunWriter) -> None:
        self._store = store
        self._run = claim.run
        self._attempt = claim.lease.attempt
        self._writer = writer
        self._checkpoints = Checkpoints(store, claim, writer)

    @property
    def run(self) -> Run:
        """The run as it was when the worker claimed it."""
        return self._run

    @property
    def attempt(self) -> int:
        """Number of the attempt, starting at 1."""
        return self._attempt

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that the run has completed so far, with their outputs, in order.

        These are the calls that a client executed and those of ``step``. Calls that an earlier attempt completed in
        this turn appear once the handler reaches their place.
        """
        return self._writer.past.tool_calls

    async def get_thread(self) -> Thread:
        """Return the thread of the run as it is now."""
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
        """Return the messages that the run may see, oldest first.

        These are the messages that were in the thread when the run was created, and those that it and earlier runs have
        written since. If ``truncation_strategy.last_messages`` is set, they are only that many of the newest. Messages
        that an earlier attempt wrote in this turn appear once the handler reaches their place.

        Args:
            limit: Maximum number of messages. None, the default, for all.

            order: ``asc``, the default, for oldest first, or ``desc`` for newest first.

            after: Id of the message before the page, in this order. None, the default, to start at the beginning.

            before: Id of the message after the page, in this order. None, the default, to continue to the end.

            run_id: Return only messages that this run wrote. None, the default, for all.
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
        """Return the conversation as the ``messages`` of a chat-completions request.

        It consists of the run's instructions as ``system``, the messages that ``list_messages`` returns, and, in the
        order of its steps, the run's own messages and tool calls with their outputs. The ``content`` of a message that
        has only text is a string; otherwise it is a list of parts.
        """
        return chat_messages(self._run, await self.list_messages(), self._writer.past.steps)

    async def checkpoint(self, name: str, function: Callable[[], Any]) -> Any:
        """Return the result of ``function``, which is called once per run.

        Later attempts and turns of the run get the same result. Each caller gets its own copy, in which tuples have
        become lists. If the function raises, nothing is kept. If the process dies while the function runs, it is called
        again, so make its side effects idempotent. If two tasks ask for the same name at the same time, one waits for
        the other.

        Args:
            name: Name of the checkpoint, any text, unique within the run.

            function: Function without arguments, plain or async. A plain one must be quick, because it runs in the
                event loop. It must return JSON, otherwise ``InvalidInputError`` is raised.
        """
        return await self._checkpoints.result_of(name, function)

    async def reply(self, text: str) -> Message:
        """Write a complete message and its ``message_creation`` step in one transaction, and return the message.

        If an earlier attempt completed a message at this place, return that message and write nothing.

        Args:
            text: Text of the message.
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
        """Return a message to stream: ``async with ctx.message() as m: await m.write(text)``.

        Entering the block opens the message and its step, each ``write`` is one event, and leaving the block appends
        the complete message to the thread. If another message or step is open, ``InvalidInputError`` is raised.

        If an earlier attempt completed a message at this place, ``m.is_kept`` is true: nothing is written, and
        ``m.text`` is the earlier text.
        """
        return MessageWriter(self._store, self._writer)

    def step(self, calls: Iterable[FunctionCall | ToolCall]) -> StepWriter:
        """Return a ``tool_calls`` step for tools that the handler executes: ``async with ctx.step(calls) as step``.

        The step is written when the block is entered, and its outputs (``step.set_output``) when the block is left. If
        another message or step is open, ``InvalidInputError`` is raised.

        If an earlier attempt completed a step at this place, ``step.is_kept`` is true: nothing is written, and
        ``step.calls`` are the earlier calls with their outputs, whatever calls the model made this time.

        Args:
            calls: The calls. A ``FunctionCall`` gets a new id, which is in ``step.calls``.
        """
        return StepWriter(self._writer, calls)

    async def call_tools(self, calls: Iterable[FunctionCall | ToolCall]) -> NoReturn:
        """Ask the client to execute ``calls``, and leave the handler as ``fail`` does.

        When the handler has ended, one transaction writes the step with the calls, moves the run to
        ``requires_action``, and releases the lease and the worker's slot. Once a client submits the outputs with
        ``store.submit_tool_outputs``, any worker calls the handler again, from the top, with the outputs in
        ``tool_calls``. threadloom never parses names and arguments. A handler that swallows the exception cannot write
        any more. If a message or step is open, or there are no calls, ``InvalidInputError`` is raised.

        Args:
            calls: The calls, at least one and without outputs. A ``FunctionCall`` gets a new id.
        """
        self._writer.check()
        made = made_calls(calls)
        self._writer.check_room()
        if not made:
            raise InvalidInputError("call_tools needs at least one call: without one, the run would wait forever.")
        if any(call.function.output is not None for call in made):
            raise InvalidInputError("A call for the client to execute must not have an output yet.")
        run, place = self._run, self._writer.past.next_place()
        step = RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id, calls=made, assistant_id=run.assistant_id)
        step = attrs.evolve(step, created_at=self._writer.now, turn=place.turn, position=place.position)
        codec.dump_line(codec.to_record(step))  # raises here, while the handler can react, if the step cannot be stored
        deltas = tuple(StepDelta(step.id, index, call) for index, call in enumerate(made))
        self._end(
            RunWrite(
                items=(step, *deltas),
                status=RunStatus.REQUIRES_ACTION,
                required_action=RequiredAction(made),
            )
        )

    def add_usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Add tokens to the run's ``usage``, which is written when the run ends or asks for tool outputs.

        A retry, after an exception, a crash or a worker's stop, starts from the usage that the run had when it was
        claimed, so tokens count once. If a forced status takes the run from the worker, they are lost.

        All attempts count towards ``max_prompt_tokens`` and ``max_completion_tokens``. If a limit is exceeded, the run
        ends at once, as ``incomplete`` does with the name of the limit. If the worker is killed, the tokens added since
        its last write are lost.

        Args:
            prompt_tokens: Tokens that the model read. Default 0.

            completion_tokens: Tokens that the model wrote. Default 0.
        """
        self._writer.check()
        for tokens in (prompt_tokens, completion_tokens):
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
                raise InvalidInputError(f"Numbers of tokens must be integers of at least 0, not {tokens!r}.")
        self._writer.tokens.add(prompt_tokens, completion_tokens)
        passed = self._writer.tokens.passed_limit()
        if passed is not None:
            self.incomplete(passed)

    def fail(self, code: str, message: str) -> NoReturn:
        """End the run as ``failed``, without another attempt, and leave the handler with a ``BaseException``.

        If the handler swallows the exception and decides again, the first decision counts.

        Args:
            code: Code of the error, visible to anyone who reads the run. OpenAI's clients know ``server_error``,
                ``rate_limit_exceeded`` and ``invalid_prompt``.

            message: Message of the error, visible to anyone who reads the run.
        """
        _check_words(code=code, message=message)
        self._end(RunWrite(status=RunStatus.FAILED, error=RunError(code, message)))

    def incomplete(self, reason: str) -> NoReturn:
        """End the run as ``incomplete``, and leave the handler as ``fail`` does.

        Args:
            reason: Why the run is incomplete. OpenAI's clients know ``max_completion_tokens`` and
                ``max_prompt_tokens``.
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
            raise InvalidInputError(f"{name} must be a non-empty str, not {word!r}.")
