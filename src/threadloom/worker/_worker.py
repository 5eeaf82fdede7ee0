"""The worker claims queued runs, executes a limited number of them at a time, and stops in order."""

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
_MOST_AT_ONCE = 16  # claims: a store may process a batch at once, which blocks the loop meanwhile


class RunWorker:
    """Claims queued runs from a store and calls a handler for each of them.

    Use it as ``async with RunWorker(store, handler):``. The worker runs inside the block and stops on exit, as
    ``close`` does. It claims runs that any process queued, including those queued before it started. A run ends like
    this:

    * If the handler returns, the run is ``completed``. The returned text, or the yielded pieces, become the assistant's
      message.
    * If the handler raises, the run is ``failed``, with only the exception's class in ``last_error``. If ``retry``
      allows another attempt, the run is ``queued`` again instead.
    * If someone calls ``request_cancel``, the worker cancels the handler's task and makes the run ``cancelled``.
    * If someone forces or deletes the run, the worker cancels the handler's task and leaves the run as it is.
    * If ``expires_at`` or ``run_timeout`` passes, the worker cancels the handler's task and makes the run ``expired``.
    * If the handler's tokens exceed ``max_prompt_tokens`` or ``max_completion_tokens``, over all attempts, the run is
      ``incomplete``.
    * If the worker stops, handlers get ``grace`` to end. Then the worker cancels them and requeues their runs, which
      does not count as a failed attempt.

    A handler that ignores its cancellation keeps its slot. The worker cancels it again after each ``grace`` and drops
    its return value. If the store fails, the worker logs the error and retries with growing delays. All delays use the
    store's clock. A worker belongs to the event loop in which it was started. You may start a closed worker again; it
    gets a new ``worker_id`` unless you passed one.

    Args:
        store: Store to claim runs from. Open it before the worker, and close it after the worker.

        handler: Async function that takes a ``RunContext``.

        concurrency: Maximum number of runs at a time. Default 8.

        retry: When to try again if the handler raises. None, the default, for a single attempt.

        run_timeout: Maximum time for one call of the handler, counted anew for each attempt. None, the default, for no
            limit.

        grace: Time that handlers get to end when the worker stops. Default 10 seconds.

        worker_id: Id under which the worker claims runs. None, the default, for a new one at each start.

        adopt: Whether to take over runs that a program drives by hand, ``in_progress`` without a worker. Use it for
            runs that their program has abandoned. Default false.
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
            raise InvalidInputError(f"concurrency must be a positive integer, not {concurrency!r}.")
        if run_timeout is not None and run_timeout <= timedelta():
            raise InvalidInputError(f"run_timeout must be positive, or None for no limit, not {run_timeout!r}.")
        if grace < timedelta():
            raise InvalidInputError(f"grace must not be negative, but it is {grace!r}.")
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
        self._claimer: asyncio.Task[None] | None = None
        self._stopper: asyncio.Task[None] | None = None
        self._grace: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()

    @property
    def worker_id(self) -> str | None:
        """The id under which the worker claims runs. None before the first start, unless you passed one."""
        return self._id

    async def __aenter__(self) -> Self:
        """Start claiming runs. Raise ``ConflictError`` if the worker is already running."""
        if self._claimer is not None:
            raise ConflictError("The worker is already running.")
        self._id = self._given_id or f"worker_{secrets.token_hex(16)}"
        self._slots = asyncio.Semaphore(self._concurrency)
        self._stop_asked = asyncio.Event()
        self._stopper = None
        self._claimer = asyncio.create_task(self._claim_runs(self._id))
        logger.info("Worker %s started", self._id, extra={"worker_id": self._id})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, as ``close`` does."""
        await self.close()

    async def run_until_stopped(self) -> None:
        """Run until ``stop`` is called or the process receives SIGINT or SIGTERM, then stop in order.

        A second signal ends the grace period at once. Call this in the main thread of a worker-only process. It
        restores Python's handlers of the two signals at the end.
        """
        with self._signals_heard():
            async with self:
                await self._stop_asked.wait()

    def stop(self) -> None:
        """Begin to stop, without waiting: the worker claims no more runs, and the grace period starts.

        Call it from a task in the worker's event loop. Handlers may call it too.
        """
        if self._claimer is None or self._stopper is not None:
            return
        logger.info("Worker %s is stopping", self._id, extra={"worker_id": self._id})
        self._stop_asked.set()
        self._claimer.cancel()
        self._grace = asyncio.create_task(self._store.clock.sleep(self._options.grace))
        self._stopper = asyncio.create_task(self._stop_in_order(self._claimer, self._grace))

    async def close(self) -> None:
        """Stop, and return when no run executes here any more. Do nothing if the worker is not running.

        If the caller is cancelled, the grace period ends and handlers are cancelled at once; ``close`` still waits for
        them before it raises the cancellation. A handler must not await this method, because it would wait for itself.
        """
        self.stop()
        if self._stopper is None:
            return
        cancelled = await finish(self._stopper, when_cancelled=self._end_grace)
        if cancelled is not None:
            raise cancelled

    # Claiming runs

    async def _claim_runs(self, worker_id: str) -> None:
        """Claim runs and start them, as long as the worker is not stopping."""
        failures = 0
        at_once = 1
        while self._stopper is None:  # the store may have swallowed the cancellation to complete a claim
            wanted = await self._free_slots(at_once)
            started = 0
            try:
                for claim in await self._claim(worker_id, wanted):
                    self._start_run(claim)
                    started += 1
            except Exception:  # a worker that claims no more runs would be worse than any error
                failures += 1
                at_once = 1
                logger.exception("Worker %s could not claim a run", worker_id, extra={"worker_id": worker_id})
                await self._store.clock.sleep(STORE_PATIENCE.delay_after(failures))
            else:
                failures = 0
                # While there are many runs, claim several at once, which costs less than one after the other.
                at_once = max(1, min(2 * started, self._concurrency, _MOST_AT_ONCE))
            finally:
                for _ in range(wanted - started):
                    self._slots.release()

    async def _free_slots(self, most: int) -> int:
        """Wait for a free slot, take it with up to ``most - 1`` other free slots, and return how many it took."""
        await self._slots.acquire()
        taken = 1
        while taken < most and not self._slots.locked():
            await self._slots.acquire()
            taken += 1
        return taken

    async def _claim(self, worker_id: str, wanted: int) -> list[Claim]:
        """Return up to ``wanted`` claims. If ``wanted`` is 1, wait for a run."""
        if wanted == 1:
            return [await self._store.claim_run(worker_id, adopt=self._adopt)]
        return await self._store.try_claim_runs(worker_id, wanted, adopt=self._adopt)

    def _start_run(self, claim: Claim) -> None:
        keeper = RunKeeper(self._store, claim, self._options)
        # A claim may succeed even though it was cancelled, if the store had already begun to write it.
        task = asyncio.create_task(keeper.keep() if self._stopper is None else keeper.put_back())
        self._keepers[task] = keeper
        task.add_done_callback(self._end_run)

    def _end_run(self, task: asyncio.Task[None]) -> None:
        keeper = self._keepers.pop(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            keeper.log_failure("Unexpected error in run %s of thread %s", error)

    # Stopping

    async def _stop_in_order(self, claimer: asyncio.Task[None], grace: asyncio.Task[None]) -> None:
        cancelled = await finish(claimer, when_cancelled=self._end_grace)
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
        self._claimer = None
        logger.info("Worker %s stopped", self._id, extra={"worker_id": self._id})
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
