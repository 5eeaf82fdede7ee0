"""What a handler has: its run, the messages before it, and the ways to answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from threadloom.errors import InvalidInputError
from threadloom.lifecycle import RunWrite
from threadloom.models import (
    FunctionCall,
    IncompleteDetails,
    Message,
    Run,
    RunError,
    RunStatus,
    Thread,
    ToolCall,
    Usage,
)
from threadloom.pages import Order, Page, page_of
from threadloom.store import Claim, ThreadStore
from threadloom.worker._parts import MessageWriter, StepWriter, check_text, whole_message
from threadloom.worker._writer import Items, RunWriter

__all__ = ["RunContext", "RunEnding"]


class RunEnding(BaseException):
    """Leaves the handler, as ``ctx.fail`` and ``ctx.incomplete`` decided; ``except Exception`` does not hold it up."""


class RunContext:
    """One call of a handler: made by the worker for each attempt at a run, and of no use after the handler has ended.

    What it writes goes out under the run's lease, one act at a time, in the order of the calls. ``LeaseLostError`` says
    that the run was given another status meanwhile, or was deleted: nothing was written, and the handler is about to be
    cancelled. An act that has begun is carried out before a cancellation goes on.
    """

    def __init__(self, store: ThreadStore, claim: Claim, writer: RunWriter) -> None:
        self._store = store
        self._run = claim.run
        self._attempt = claim.lease.attempt
        self._writer = writer

    @property
    def run(self) -> Run:
        """The run as it was when it was claimed."""
        return self._run

    @property
    def attempt(self) -> int:
        """Which attempt at the run this is, from 1 up."""
        return self._attempt

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
        """
        run = self._run
        newest = None if run.truncation_strategy is None else run.truncation_strategy.last_messages
        if newest is None:
            return await self._store.list_messages(
                run.thread_id, seen_by=run.id, run_id=run_id, limit=limit, order=order, after=after, before=before
            )
        given = await self._store.list_messages(run.thread_id, seen_by=run.id, limit=newest, order=Order.DESC)
        page = page_of(
            tuple(reversed(given)),
            lambda message: message.id,
            "messages that the run is given",
            wanted=None if run_id is None else lambda message: message.run_id == run_id,
            limit=limit,
            order=order,
            after=after,
            before=before,
        )
        return Page(page.items, page.has_more, damaged=given.damaged)

    async def reply(self, text: str) -> Message:
        """Add a whole message and its ``message_creation`` step, in one act, and return the message."""
        check_text(text)
        made: list[Message] = []

        def items(now: int) -> Items:
            message, whole = whole_message(self._run, text, now)
            made.append(message)
            return whole

        await self._writer.put(items)
        return made[-1]

    def message(self) -> MessageWriter:
        """Return a message to be streamed: ``async with ctx.message() as m: await m.write(text)``.

        It and its step are announced on entering, each ``write`` is an event, and the message is appended to the
        thread whole on leaving. ``InvalidInputError`` while another message or step is open.
        """
        return MessageWriter(self._writer)

    def step(self, calls: Iterable[FunctionCall | ToolCall]) -> StepWriter:
        """Return a ``tool_calls`` step for tools that the handler calls itself: ``async with ctx.step(calls) as step``.

        A ``FunctionCall`` is given an id; ``step.calls`` has them all. Outputs set by ``step.set_output`` are written
        when the step ends. ``InvalidInputError`` while another message or step is open.
        """
        return StepWriter(self._writer, calls)

    def add_usage(self, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Add tokens to the run's ``usage``, which is written in the act that ends the run.

        Not before: an attempt that is done again, be it after an exception, a crash or a worker's stop, starts from
        what the run had when it was claimed, so that its tokens count once. They are lost where the run is taken away
        from the worker by a forced status.
        """
        self._writer.check()
        for tokens in (prompt_tokens, completion_tokens):
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
                raise InvalidInputError(f"Tokens are counted in whole numbers from 0 up, not {tokens!r}.")
        added = Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
        self._writer.usage = added if self._writer.usage is None else self._writer.usage + added

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
