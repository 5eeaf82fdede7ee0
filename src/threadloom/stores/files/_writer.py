"""One hop of a thread for all operations that wait at the same moment.

A hop from the event loop to a thread and back costs more than most file operations (80 to 115 µs), so operations that
are pending share one: it runs them one after the other, makes what they changed durable together, and answers each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import aiofiles.os
from attrs import define

from threadloom.errors import StoreBusyError, StoreClosedError
from threadloom.stores.files._lock import LockedElsewhereError

__all__ = ["Hop", "until_done"]

T = TypeVar("T")

_FIRST_RETRY_SECONDS = 0.0005
_LAST_RETRY_SECONDS = 0.05


@define(eq=False)
class _Operation:
    key: str | None
    function: Callable[[], Any]
    answer: asyncio.Future[Any]
    deadline: float


@define
class _Outcome:
    operation: _Operation
    result: Any = None
    error: BaseException | None = None


class Hop:
    """Runs plain functions in a thread, in the order they come, those that wait together in one go.

    Operations with the same ``key`` never overtake each other: where one finds its lock taken by another process, it
    waits, and those behind it with the same key wait with it, while all others go on.
    """

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        *,
        finish: Callable[[], None] = lambda: None,
        lock_patience: timedelta = timedelta(seconds=10),
    ) -> None:
        self._executor = executor
        self._finish = finish
        self._patience = lock_patience.total_seconds()
        self._pending: deque[_Operation] = deque()
        self._running: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._is_closed = False

    async def run(self, function: Callable[..., T], *args: Any, key: str | None = None, **options: Any) -> T:
        """Return what ``function`` returns, run in the thread.

        A caller that is cancelled before the function has begun withdraws it; else its end is awaited, and then the
        cancellation goes on (G7). ``StoreBusyError`` where another process keeps its lock for too long.
        """
        answer = self.start(function, *args, key=key, **options)
        return cast("T", await self.ended(answer))

    def start(
        self, function: Callable[..., T], *args: Any, key: str | None = None, **options: Any
    ) -> asyncio.Future[T]:
        """Hand in a function and return the future of its answer, to be awaited by ``ended``."""
        if self._is_closed:
            raise StoreClosedError
        loop = asyncio.get_running_loop()
        operation = _Operation(
            key, partial(function, *args, **options), loop.create_future(), loop.time() + self._patience
        )
        self._pending.append(operation)
        self._arrived.set()
        if self._running is None:
            self._running = loop.create_task(self._run_pending(), name="threadloom writer")
        return operation.answer

    async def ended(self, answer: asyncio.Future[T]) -> T:
        """Return the answer; when cancelled, withdraw its operation or await its end first."""
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            try:
                if not answer.done() and not self._withdraw(answer):
                    await until_done(answer)
            finally:
                if not answer.cancelled():
                    answer.exception()  # looked at, so that nobody complains that it was not
            raise

    async def close(self) -> None:
        """Await all that was handed in, and refuse more."""
        self._is_closed = True
        if self._running is not None:
            await until_done(self._running)

    def _withdraw(self, answer: asyncio.Future[Any]) -> bool:
        for operation in self._pending:
            if operation.answer is answer:
                self._pending.remove(operation)
                answer.cancel()
                return True
        return False

    async def _run_pending(self) -> None:
        loop = asyncio.get_running_loop()
        run_batch = aiofiles.os.wrap(self._run_batch)
        pause = _FIRST_RETRY_SECONDS
        try:
            while self._pending:
                self._arrived.clear()
                batch, self._pending = self._pending, deque()
                outcomes, blocked = await run_batch(batch, executor=self._executor)
                for outcome in outcomes:
                    _answer(outcome)
                self._pending.extendleft(reversed(self._still_patient(blocked, loop.time())))
                if outcomes:
                    pause = _FIRST_RETRY_SECONDS
                elif self._pending:
                    # All that is pending waits for locks of other processes; whatever arrives need not wait with it.
                    await self._arrival(pause)
                    pause = min(pause * 2, _LAST_RETRY_SECONDS)
        finally:
            self._running = None

    async def _arrival(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            return

    def _still_patient(self, blocked: list[_Operation], now: float) -> list[_Operation]:
        patient = [operation for operation in blocked if now < operation.deadline]
        for operation in blocked:
            if now >= operation.deadline:
                error = StoreBusyError(
                    f"Another process has held the lock on {operation.key!r} for {self._patience:g} seconds."
                )
                _answer(_Outcome(operation, error=error))
        return patient

    def _run_batch(self, batch: deque[_Operation]) -> tuple[list[_Outcome], list[_Operation]]:
        """Run in the thread: every operation of the batch, but those whose keys are locked elsewhere."""
        outcomes: list[_Outcome] = []
        blocked: list[_Operation] = []
        blocked_keys: set[str] = set()
        for operation in batch:
            if operation.key is not None and operation.key in blocked_keys:
                blocked.append(operation)
                continue
            try:
                outcomes.append(_Outcome(operation, operation.function()))
            except LockedElsewhereError:
                blocked.append(operation)
                if operation.key is not None:
                    blocked_keys.add(operation.key)
            except BaseException as error:  # noqa: BLE001 - each operation's error is its own caller's
                outcomes.append(_Outcome(operation, error=error))
        try:
            self._finish()
        except OSError as error:
            # None of them may be called durable; what each of them changed may or may not outlive a power cut.
            for outcome in outcomes:
                outcome.error = outcome.error or error
        return outcomes, blocked


def _answer(outcome: _Outcome) -> None:
    answer = outcome.operation.answer
    if outcome.error is None:
        answer.set_result(outcome.result)
    else:
        answer.set_exception(outcome.error)


async def until_done(future: asyncio.Future[Any]) -> None:
    """Return when ``future`` is done; a cancellation meanwhile goes on then, and not before."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
