"""One hop to a thread for all operations that wait at the same moment.

A hop from the event loop to a thread and back costs more than most file operations, so operations that are pending
share one, and get one answer together. Operations with the same key never overtake each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import aiofiles.os
from attrs import define, field

from threadloom.errors import StoreBusyError, StoreClosedError
from threadloom.tasks import until_done

__all__ = ["Hop", "Operation"]

_FIRST_RETRY_SECONDS: Final = 0.0005
_LAST_RETRY_SECONDS: Final = 0.05


@define(eq=False)
class Operation:
    """Something to do in the thread, and what came of it: a result or an error; neither if a lock was taken."""

    key: str | None
    work: Any
    answer: asyncio.Future[Any]
    deadline: float
    is_done: bool = False
    is_answered: bool = False
    result: Any = None
    error: BaseException | None = None

    def succeed(self, result: Any) -> None:
        """Note what it returns."""
        self.is_done = True
        self.result = result

    def fail(self, error: BaseException) -> None:
        """Note what it raises."""
        self.is_done = True
        if isinstance(error, StopIteration):  # which no future can hold
            self.error = RuntimeError(f"A function that was passed in raised {error!r}.")
            self.error.__cause__ = error
        else:
            self.error = error


@define(eq=False)
class _Batch:
    operations: list[Operation] = field(factory=list)
    # The one token decides: if the thread takes it, the batch is run; if the loop does, it never is.
    token: deque[None] = field(factory=lambda: deque([None]))

    def take(self) -> bool:
        try:
            self.token.pop()
        except IndexError:
            return False
        return True


class Hop:
    """Gives operations to ``process`` in a thread, all that are pending at once.

    ``process`` marks each operation as done, or leaves it as it is where a lock was taken elsewhere: it is given again
    after a pause, until its deadline; then it raises ``StoreBusyError``. ``answered`` is called on the event loop
    before the callers go on.
    """

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        process: Callable[[list[Operation]], object],
        answered: Callable[[], object] = lambda: None,
    ) -> None:
        self._executor = executor
        self._process = process
        self._answered = answered
        self._loop = asyncio.get_running_loop()
        self._run_in_thread = aiofiles.os.wrap(self._run_batch)
        self._pending: list[Operation] = []
        self._hop: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._pause = _FIRST_RETRY_SECONDS
        self._is_closed = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def run(self, work: Any, *, key: str | None = None, patience: float = 60.0) -> Any:
        """Return what came of ``work``.

        A caller that is cancelled before the work has begun withdraws it; else the end of the work is awaited, and then
        the cancellation goes on (G7).
        """
        if self._is_closed:
            raise StoreClosedError
        answer = self._loop.create_future()
        operation = Operation(key, work, answer, self._loop.time() + patience)
        self._pending.append(operation)
        self._is_idle.clear()
        self._go()
        try:
            return await answer
        except asyncio.CancelledError:
            # The future was cancelled with its caller, and the operation may be under way all the same.
            if not operation.is_answered and not self._withdraw(operation):
                operation.answer = self._loop.create_future()
                try:
                    await until_done(operation.answer)
                finally:
                    if operation.answer.done() and not operation.answer.cancelled():
                        operation.answer.exception()  # retrieved, so that asyncio does not report it
            raise

    async def close(self) -> None:
        """Refuse more, and return when all that was handed in is done."""
        self._is_closed = True
        await self._is_idle.wait()

    def _withdraw(self, operation: Operation) -> bool:
        if operation not in self._pending:
            return False
        self._pending.remove(operation)
        self._go()
        return True

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

    def _answer(self, operations: list[Operation]) -> None:
        self._answered()
        blocked: list[Operation] = []
        now = self._loop.time()
        for operation in operations:
            answer = operation.answer
            if not operation.is_done and now < operation.deadline:
                blocked.append(operation)
                continue
            operation.is_answered = True
            if answer.done():
                continue  # its caller is being cancelled in this moment
            if operation.error is not None:
                answer.set_exception(operation.error)
            elif operation.is_done:
                answer.set_result(operation.result)
            else:
                busy = f"Another process holds the lock on {operation.key!r}, and did not release it in time."
                answer.set_exception(StoreBusyError(busy))
        all_blocked = len(blocked) == len(operations)
        self._pause = min(self._pause * 2, _LAST_RETRY_SECONDS) if all_blocked else _FIRST_RETRY_SECONDS
        self._next(blocked, at_once=False)

    def _next(self, first: list[Operation], *, at_once: bool) -> None:
        self._hop = None
        at_once = at_once or bool(self._pending)
        self._pending[:0] = first  # they came before what has arrived meanwhile
        if first and not at_once:
            # All that is pending waits for locks of other processes. Whatever arrives does not wait with it.
            self._retry = self._loop.call_later(self._pause, self._go)
        else:
            self._go()

    # In the thread

    def _run_batch(self, batch: _Batch) -> None:
        if not batch.take():
            return
        try:
            self._process(batch.operations)
        except BaseException as error:  # noqa: BLE001 - raised to each caller
            for operation in batch.operations:
                if not operation.is_done:
                    operation.fail(error)
        self._loop.call_soon_threadsafe(self._answer, batch.operations)
