"""One hop of a thread for all operations that wait at the same moment.

A hop from the event loop to a thread and back costs more than most file operations (80 to 115 µs), so operations that
are pending share one. An operation is a plain function, or one that returns a generator: then it is carried on to its
first ``yield`` with all the others, ``finish`` is called once for all that wait there, and each goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, overload

import aiofiles.os
from attrs import define, field

from threadloom.errors import StoreBusyError, StoreClosedError
from threadloom.stores.files._lock import LockedElsewhereError
from threadloom.tasks import until_done

__all__ = ["Hop", "Work", "as_work"]

_logger = logging.getLogger("threadloom")

T = TypeVar("T")

Work = Generator[None, None, T]
"""An operation that waits at each ``yield`` until what it has put down is safe."""

_FIRST_RETRY_SECONDS = 0.0005
_LAST_RETRY_SECONDS = 0.05
_MOST_ROUNDS = 8  # in which a batch begins operations: others have come meanwhile, and wait for its end
_MOST_UNDER_WAY = 64  # at once in the thread: each holds a lock and the record that it has read, two descriptors


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


@define
class _Flight:
    """An operation that has begun, and waits at a ``yield``."""

    operation: _Operation
    work: Work[Any]


@define(eq=False)
class _Batch:
    operations: list[_Operation] = field(factory=list)
    # Whoever takes the one token decides: the thread, that the batch is run, or the loop, that it never is.
    token: deque[None] = field(factory=lambda: deque([None]))

    def take(self) -> bool:
        try:
            self.token.pop()
        except IndexError:
            return False
        return True


class Hop:
    """Runs plain functions in a thread, in the order they come, those that wait together in one go.

    Operations with the same ``key`` never overtake each other, and are never under way at once: where one finds its
    lock taken by another process, it waits, and those behind it with the same key wait with it, while all others go on.
    ``begin`` is called before the first of a batch, ``end`` after the last.
    """

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        *,
        begin: Callable[[], object] = lambda: None,
        finish: Callable[[], object] = lambda: None,
        end: Callable[[], object] = lambda: None,
        lock_patience: timedelta = timedelta(seconds=10),
    ) -> None:
        self._executor = executor
        self._begin = begin
        self._finish = finish
        self._end = end
        self._patience = lock_patience
        self._loop = asyncio.get_running_loop()
        self._run_in_thread = aiofiles.os.wrap(self._run_batch)
        self._pending: list[_Operation] = []
        self._hop: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._pause = _FIRST_RETRY_SECONDS
        self._is_closed = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @overload
    async def run(
        self, function: Callable[..., Work[T]], *args: Any, key: str | None = None, patience: timedelta | None = None
    ) -> T: ...

    @overload
    async def run(
        self, function: Callable[..., T], *args: Any, key: str | None = None, patience: timedelta | None = None
    ) -> T: ...

    async def run(
        self, function: Callable[..., Any], *args: Any, key: str | None = None, patience: timedelta | None = None
    ) -> Any:
        """Return what ``function`` returns, run in the thread, or what the work that it returns comes to.

        A caller that is cancelled before the function has begun withdraws it; else its end is awaited, and then the
        cancellation goes on (G7). ``StoreBusyError`` where another process keeps its lock for longer than ``patience``.
        """
        return await self.ended(self.start(function, *args, key=key, patience=patience))

    def start(
        self, function: Callable[..., Any], *args: Any, key: str | None = None, patience: timedelta | None = None
    ) -> asyncio.Future[Any]:
        """Hand in a function and return the future of its answer, to be awaited by ``ended``."""
        if self._is_closed:
            raise StoreClosedError
        deadline = self._loop.time() + (self._patience if patience is None else patience).total_seconds()
        operation = _Operation(key, partial(function, *args), self._loop.create_future(), deadline)
        self._pending.append(operation)
        self._is_idle.clear()
        self._go()
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
        """Refuse more, and return when all that was handed in is done."""
        self._is_closed = True
        await self._is_idle.wait()

    def _withdraw(self, answer: asyncio.Future[Any]) -> bool:
        for operation in self._pending:
            if operation.answer is answer:
                self._pending.remove(operation)
                answer.cancel()
                self._go()
                return True
        return False

    # On the loop

    def _go(self) -> None:
        """Send all that is pending to the thread, unless a batch is there already."""
        if self._hop is not None:
            return
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if not self._pending:
            self._is_idle.set()
            return
        batch = _Batch()
        self._hop = self._loop.create_task(self._send(batch), name="threadloom hop")
        self._hop.add_done_callback(lambda _: self._put_back(batch))

    async def _send(self, batch: _Batch) -> None:
        # By now all that was handed in during the same turn of the loop has arrived.
        batch.operations, self._pending = self._pending, []
        # The thread answers by itself: a cancellation of this task, as by asyncio.run at its end, loses nothing.
        await self._run_in_thread(batch, executor=self._executor)

    def _put_back(self, batch: _Batch) -> None:
        if batch.take():  # cancelled before the thread had come to it
            self._next(batch.operations, at_once=True)

    def _answer(self, outcomes: list[_Outcome], blocked: list[_Operation], not_begun: list[_Operation]) -> None:
        for outcome in outcomes:
            if outcome.error is None:
                outcome.operation.answer.set_result(outcome.result)
            else:
                outcome.operation.answer.set_exception(outcome.error)
        now = self._loop.time()
        for operation in blocked:
            if now >= operation.deadline:
                operation.answer.set_exception(
                    StoreBusyError(f"Another process holds the lock on {operation.key!r}, and did not give it back.")
                )
        self._pause = _FIRST_RETRY_SECONDS if outcomes else min(self._pause * 2, _LAST_RETRY_SECONDS)
        # What was blocked came before what has its key and was not begun.
        self._next([*(operation for operation in blocked if not operation.answer.done()), *not_begun], bool(not_begun))

    def _next(self, first: list[_Operation], at_once: bool) -> None:  # noqa: FBT001 - says when
        self._hop = None
        at_once = at_once or bool(self._pending)
        self._pending[:0] = first
        if first and not at_once:
            # All that is pending waits for locks of other processes. Whatever arrives does not wait with it.
            self._retry = self._loop.call_later(self._pause, self._go)
        else:
            self._go()

    # In the thread

    def _run_batch(self, batch: _Batch) -> None:
        if not batch.take():
            return
        outcomes: list[_Outcome] = []
        blocked: list[_Operation] = []
        waiting = batch.operations
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 - told to each caller
            outcomes.extend(_Outcome(operation, error=error) for operation in waiting)
            waiting = []
        flights: list[_Flight] = []
        rounds = 0
        while flights or (waiting and rounds < _MOST_ROUNDS):
            rounds += 1
            if rounds <= _MOST_ROUNDS:
                waiting = self._start(waiting, flights, outcomes, blocked)
            failure = self._finished() if flights else None
            flights = [flight for flight in flights if self._go_on(flight, failure, outcomes, blocked)]
        try:
            self._end()
        except Exception as error:
            _logger.warning("batch not ended", exc_info=error)
        self._loop.call_soon_threadsafe(self._answer, outcomes, blocked, waiting)

    def _finished(self) -> Exception | None:
        try:
            self._finish()
        except Exception as error:  # noqa: BLE001 - told to all that waited for it
            return error
        return None

    def _start(
        self,
        waiting: list[_Operation],
        flights: list[_Flight],
        outcomes: list[_Outcome],
        blocked: list[_Operation],
    ) -> list[_Operation]:
        """Begin what may begin, and return what has to wait for others, such as one with its key."""
        still_waiting: list[_Operation] = []
        busy = {flight.operation.key for flight in flights}
        blocked_keys = {operation.key for operation in blocked}
        for operation in waiting:
            if operation.key is not None and operation.key in blocked_keys:
                blocked.append(operation)
            elif len(flights) >= _MOST_UNDER_WAY or (operation.key is not None and operation.key in busy):
                still_waiting.append(operation)
            else:
                flight = _Flight(operation, as_work(operation.function))
                if self._go_on(flight, None, outcomes, blocked):
                    flights.append(flight)
                    busy.add(operation.key)
                elif blocked and blocked[-1] is operation:
                    blocked_keys.add(operation.key)
        return still_waiting

    @staticmethod
    def _go_on(flight: _Flight, failure: Exception | None, outcomes: list[_Outcome], blocked: list[_Operation]) -> bool:
        """Carry an operation on to its next ``yield``, with the error of what it waited for; return if there is one."""
        try:
            if failure is None:
                next(flight.work)
            else:
                flight.work.throw(failure)
        except StopIteration as stop:
            outcomes.append(_Outcome(flight.operation, stop.value))
        except LockedElsewhereError:
            blocked.append(flight.operation)
        except BaseException as error:  # noqa: BLE001 - each operation's error is its own caller's
            outcomes.append(_Outcome(flight.operation, error=error))
        else:
            return True
        return False


def as_work(function: Callable[[], Any]) -> Work[Any]:
    """Return what a function does as work, also where it does all of it at once."""
    result = function()
    return (yield from result) if isinstance(result, Generator) else result
