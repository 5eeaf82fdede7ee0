"""The worker: takes queued runs from a store, so many at a time, and stops in order."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self

from threadloom.errors import ConflictError, InvalidInputError
from threadloom.ids import check_id
from threadloom.store import Claim, ThreadStore
from threadloom.tasks import finish
from threadloom.worker._handler import Handler, check_handler
from threadloom.worker._keeper import HandlerOptions, RunKeeper
from threadloom.worker._retry import STORE_PATIENCE, RetryPolicy

__all__ = ["RunWorker"]

logger = logging.getLogger("threadloom")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOST_AT_ONCE = 16  # claims, for a store may do them in one go, in which the loop does nothing else


class RunWorker:
    """Takes queued runs from a store, in their order, and calls a handler for each, up to ``concurrency`` at a time.

    Within ``async with RunWorker(store, handler):`` it is at work; leaving stops it (``close``). It takes runs that
    any process queued, also before it was started. How a run ends:

    * The handler returns: ``completed``. A text it returned, or the pieces it yielded, become the assistant's message.
    * It raises: ``failed``, with no more than the exception's class in ``last_error``, or, where ``retry`` allows it
      another attempt, ``queued`` once more.
    * The run is asked to stop (``request_cancel``): the handler's task is cancelled, then the run is ``cancelled``.
    * The run is forced, or deleted: the handler's task is cancelled, and the run stays what it was forced to.
    * Its ``expires_at`` is past, or ``run_timeout``, which one call of the handler may take, counted anew for each
      attempt: the handler's task is cancelled, then the run is ``expired``.
    * Its handler's tokens pass ``max_prompt_tokens`` or ``max_completion_tokens``, over all attempts: ``incomplete``.
    * The worker stops: handlers have ``grace`` to end, then they are cancelled and their runs go back to the queue,
      which is no failed attempt.

    With ``adopt`` it also takes over runs that somebody drives by hand, ``in_progress`` without a worker: for what a
    program has left so that is not going to come back to it.

    A handler that ignores its cancellation keeps its slot and is cancelled again after each ``grace``; what it returns
    then is not kept. Where the store cannot do its work, the worker logs it and tries again, ever more slowly. All
    waiting is done on the store's clock. A worker belongs to the event loop that it was started in. Once it is closed
    it may be started again, under a new ``worker_id`` unless one was given.
    """

    def __init__(
        self,
        store: ThreadStore,
        handler: Handler,
        *,
        concurrency: int = 8,
        retry: RetryPolicy | None = None,
        run_timeout: timedelta | None = None,
        grace: timedelta = timedelta(seconds=10),
        worker_id: str | None = None,
        adopt: bool = False,
    ) -> None:
        check_handler(handler)
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise InvalidInputError(f"concurrency must be a whole number from 1 up, not {concurrency!r}.")
        if run_timeout is not None and run_timeout <= timedelta():
            raise InvalidInputError(f"run_timeout must be positive, or None for no limit, not {run_timeout!r}.")
        if grace < timedelta():
            raise InvalidInputError(f"grace must not be negative, as {grace!r} is.")
        if worker_id is not None:
            check_id(worker_id)
        self._store = store
        self._options = HandlerOptions(handler=handler, retry=retry, run_timeout=run_timeout, grace=grace)
        self._concurrency = concurrency
        self._given_id = worker_id
        self._adopt = adopt
        self._id = worker_id
        self._slots = asyncio.Semaphore(concurrency)
        self._keepers: dict[asyncio.Task[None], RunKeeper] = {}
        self._taker: asyncio.Task[None] | None = None
        self._stopper: asyncio.Task[None] | None = None
        self._grace: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()

    @property
    def worker_id(self) -> str | None:
        """The id under which runs are claimed; none before the first start, unless one was given."""
        return self._id

    async def __aenter__(self) -> Self:
        """Start to take runs; ``ConflictError`` where the worker is at work already."""
        if self._taker is not None:
            raise ConflictError("The worker is at work already.")
        self._id = self._given_id or f"worker_{secrets.token_hex(16)}"
        self._slots = asyncio.Semaphore(self._concurrency)
        self._stop_asked = asyncio.Event()
        self._stopper = None
        self._taker = asyncio.create_task(self._take_runs(self._id))
        logger.info("worker started", extra={"worker_id": self._id})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, as ``close`` does."""
        await self.close()

    async def run_until_stopped(self) -> None:
        """Work until ``stop`` is called or the process is sent SIGINT or SIGTERM, then stop in order.

        A second signal ends the grace at once. It is for the main thread of a process of its own; the handlers that
        Python had for the two signals are put back at the end.
        """
        with self._signals_heard():
            async with self:
                await self._stop_asked.wait()

    def stop(self) -> None:
        """Begin to stop, without waiting for it: no run is taken from now on, and the grace begins.

        For a task of the worker's own event loop, also within a handler.
        """
        if self._taker is None or self._stopper is not None:
            return
        logger.info("worker stopping", extra={"worker_id": self._id})
        self._stop_asked.set()
        self._taker.cancel()
        self._grace = asyncio.create_task(self._store.clock.sleep(self._options.grace))
        self._stopper = asyncio.create_task(self._stop_in_order(self._taker, self._grace))

    async def close(self) -> None:
        """Stop, and return when no run is at work here any more; nothing where the worker is not at work.

        Cancelling it ends the grace: handlers are cancelled at once, all is waited for as ever, then the cancellation
        goes on. A handler must not await it, for it would wait for itself.
        """
        self.stop()
        if self._stopper is None:
            return
        cancelled = await finish(self._stopper, when_cancelled=self._end_grace)
        if cancelled is not None:
            raise cancelled

    # Taking runs

    async def _take_runs(self, worker_id: str) -> None:
        failures = 0
        at_once = 1
        while self._stopper is None:  # a store that had a claim in hand may have taken the cancellation for itself
            wanted = await self._free_slots(at_once)
            try:
                taken = await self._take(worker_id, wanted)
            except Exception:  # whatever it is, a worker that takes no runs any more would be worse
                failures += 1
                at_once = 1
                logger.exception("claim failed", extra={"worker_id": worker_id})
                await self._store.clock.sleep(STORE_PATIENCE.delay_after(failures))
            else:
                failures = 0
                # As long as there are so many, more are asked for, which go to the store's disk together.
                at_once = min(2 * wanted, self._concurrency, _MOST_AT_ONCE) if taken == wanted else 1

    async def _free_slots(self, most: int) -> int:
        """Wait until a slot is free, take it, and with it others that are free, and return how many."""
        await self._slots.acquire()
        taken = 1
        while taken < most and not self._slots.locked():
            await self._slots.acquire()
            taken += 1
        return taken

    async def _take(self, worker_id: str, wanted: int) -> int:
        """Start so many runs, and return how many there were: at least one where one was wanted, which is waited for.

        What was taken is started, or put back, also where something has failed. Slots for what was not are given back.
        """
        tasks = [asyncio.create_task(self._take_one(worker_id, waits=wanted == 1)) for _ in range(wanted)]
        cancelled = await finish(*tasks, when_cancelled=lambda: [task.cancel() for task in tasks])
        failures = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
        taken = sum(not task.cancelled() and task.exception() is None and task.result() for task in tasks)
        for _ in range(wanted - taken):
            self._slots.release()
        if cancelled is not None:
            raise cancelled
        for error in failures:
            raise error
        return taken

    async def _take_one(self, worker_id: str, *, waits: bool) -> bool:
        """Start a run as soon as it is taken, whatever others are waiting for, and return whether there was one."""
        take = self._store.claim_run if waits else self._store.try_claim_run
        claim = await take(worker_id, adopt=self._adopt)
        if claim is None:
            return False
        self._start_run(claim)
        return True

    def _start_run(self, claim: Claim) -> None:
        keeper = RunKeeper(self._store, claim, self._options)
        # A claim may arrive although its wait was cancelled: the store had it in hand already.
        task = asyncio.create_task(keeper.keep() if self._stopper is None else keeper.put_back())
        self._keepers[task] = keeper
        task.add_done_callback(self._end_run)

    def _end_run(self, task: asyncio.Task[None]) -> None:
        keeper = self._keepers.pop(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            keeper.log_failure("worker failed", error)

    # Stopping

    async def _stop_in_order(self, taker: asyncio.Task[None], grace: asyncio.Task[None]) -> None:
        cancelled = await finish(taker, when_cancelled=self._end_grace)
        while self._keepers and not grace.done():
            try:
                await asyncio.wait({*self._keepers, grace}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as error:
                cancelled = error
                grace.cancel()
        grace.cancel()
        for keeper in self._keepers.values():
            keeper.stop()
        cancelled = await finish(grace, *self._keepers) or cancelled
        self._taker = None
        logger.info("worker stopped", extra={"worker_id": self._id})
        if cancelled is not None:
            raise cancelled

    def _end_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()

    def _hear_signal(self) -> None:
        if self._stopper is None:
            self.stop()
        else:
            self._end_grace()

    @contextmanager
    def _signals_heard(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            for number in _SIGNALS:
                loop.add_signal_handler(number, self._hear_signal)
            yield
        finally:
            for number, handler in before.items():
                if loop.remove_signal_handler(number) and handler is not None:
                    signal.signal(number, handler)
