"""Executes one claimed run, from the start of its handler to the transaction that ends it."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from enum import Enum, auto
from typing import Any

import attrs
from attrs import frozen

from threadloom.errors import InvalidTransitionError, LeaseLostError, NotFoundError, StoreError, StoreIOError
from threadloom.models import IncompleteDetails, Run, RunError, RunStatus
from threadloom.records import RunWrite
from threadloom.store import Claim, ThreadStore
from threadloom.tasks import finish
from threadloom.worker._context import RunContext
from threadloom.worker._handler import Handler, call_handler
from threadloom.worker._parts import MessageWriter, raised, whole_message
from threadloom.worker._retry import STORE_PATIENCE, RetryPolicy
from threadloom.worker._writer import Items, RunWriter

__all__ = ["HandlerOptions", "RunKeeper"]

logger = logging.getLogger("threadloom")

_SECOND_NS = 1_000_000_000
_LONGEST_SLEEP = timedelta(hours=1)  # before it reads the wall clock again, which someone may set
_SHORTEST_NAG = timedelta(seconds=1)  # between two cancellations of one handler, even if ``grace`` is zero
_LAST_TRIES = 3  # of a failing write, once the worker is stopping


@frozen(kw_only=True)
class HandlerOptions:
    """How a worker calls its handler.

    Attributes:
        handler: The handler.

        retry: When to try again if the handler raises. None for a single attempt.

        run_timeout: Maximum time for one call of the handler. None for no limit.

        grace: Time between two cancellations of a handler that ignores them.
    """

    handler: Handler
    retry: RetryPolicy | None
    run_timeout: timedelta | None
    grace: timedelta


class _Cause(Enum):
    """Why a handler was cancelled. The first cause counts."""

    ASKED = auto()  # the run is ``cancelling``
    LOST = auto()  # the lease is not live: the run was forced, changed by an external writer, or deleted
    EXPIRED = auto()
    STOPPING = auto()  # the worker stops


@frozen
class _Raised:
    """What a handler raised, as a value: asyncio lets some exceptions of a task escape through the event loop."""

    error: BaseException


_Result = str | MessageWriter | _Raised | None


class RunKeeper:
    """Executes one claimed run: calls the handler, watches for reasons to cancel it, and writes the result."""

    def __init__(self, store: ThreadStore, claim: Claim, options: HandlerOptions) -> None:
        self._store = store
        self._clock = store.clock
        self._run = claim.run
        self._lease = claim.lease
        self._has_past = claim.has_past
        self._options = options
        self._writer = RunWriter(store, claim)
        self._ctx = RunContext(store, claim, self._writer)
        self._cause: _Cause | None = None
        self._handler: asyncio.Task[_Result] | None = None
        self._helpers: list[asyncio.Task[None]] = []
        self._pause: asyncio.Task[None] | None = None
        self._is_hurried = False
        self._ids = {
            "thread_id": claim.lease.thread_id,
            "run_id": claim.lease.run_id,
            "worker_id": claim.lease.worker_id,
            "attempt": claim.lease.attempt,
        }
        self._run_and_thread = (claim.lease.run_id, claim.lease.thread_id)

    async def keep(self) -> None:
        """Call the handler, wait until it ends, and write the result. Raise nothing except a cancellation."""
        if self._cause is not None:
            await self.put_back()
            return
        passed = self._writer.tokens.passed_limit()
        if passed is not None:
            await self._close(self._ending(RunStatus.INCOMPLETE, incomplete_details=IncompleteDetails(passed)))
            return
        logger.info(
            "Run %s of thread %s started on worker %s, attempt %s",
            *self._run_and_thread,
            self._lease.worker_id,
            self._lease.attempt,
            extra=self._ids,
        )
        handler = self._handler = asyncio.create_task(self._call())
        self._help(self._watch())
        if self._run.expires_at is not None:
            self._help(self._expire(self._run.expires_at))
        if self._options.run_timeout is not None:
            self._help(self._time_out(self._options.run_timeout))
        cancelled = await finish(handler, when_cancelled=self.stop)
        for helper in self._helpers:
            helper.cancel()
        cancelled = await finish(*self._helpers) or cancelled
        await self._writer.end()
        if handler.cancelled():
            if cancelled is not None and self._cause is None:
                self._cause = _Cause.STOPPING  # the loop is shutting down and cancelled the handler before this task
            result: _Result = _Raised(asyncio.CancelledError())
        else:
            error = handler.exception()
            result = handler.result() if error is None else _Raised(error)
        await self._end(result)
        if cancelled is not None:
            raise cancelled

    async def put_back(self) -> None:
        """Requeue the run without calling its handler."""
        await self._write_last(RunWrite(status=RunStatus.QUEUED))

    def stop(self) -> None:
        """Cancel the handler because the worker stops, and requeue its run."""
        self._is_hurried = True
        if self._pause is not None:
            self._pause.cancel()
        self._interrupt(_Cause.STOPPING)

    # While the handler runs

    async def _call(self) -> _Result:
        try:
            if self._has_past:
                await self._recall()
            return await call_handler(self._options.handler, self._ctx)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - any exception ends this run and nothing else
            return _Raised(error)

    async def _recall(self) -> None:
        """Tell the context what earlier attempts and turns of the run completed."""
        failures = 0
        while True:
            try:
                steps = await self._store.list_steps(self._run.thread_id, self._run.id)
            except StoreError as error:
                failures += 1
                self.log_failure("Could not read the steps of run %s of thread %s", error)
                if failures >= STORE_PATIENCE.max_attempts:
                    raise
                await self._clock.sleep(STORE_PATIENCE.delay_after(failures))
            else:
                break
        for damage in steps.damaged:
            logger.warning(
                "Skipped a damaged step of run %s of thread %s",
                *self._run_and_thread,
                exc_info=damage,
                extra=self._ids,
            )
        self._writer.past.recall(steps)

    def _help(self, work: Coroutine[Any, Any, None]) -> None:
        self._helpers.append(asyncio.create_task(work))

    def _interrupt(self, cause: _Cause) -> None:
        """Cancel the handler, unless it is done: then its result is written if the store still allows it."""
        if self._cause is not None or (self._handler is not None and self._handler.done()):
            return
        self._cause = cause
        if self._handler is not None:
            self._handler.cancel()
            self._help(self._nag(self._handler))

    async def _nag(self, handler: asyncio.Task[_Result]) -> None:
        """Cancel the handler again, and log it, until it ends. It keeps its slot."""
        while True:
            await self._clock.sleep(max(self._options.grace, _SHORTEST_NAG))
            logger.warning(
                "The handler ignored its cancellation in run %s of thread %s",
                *self._run_and_thread,
                extra=self._ids,
            )
            handler.cancel()

    async def _watch(self) -> None:
        if self._handler is not None and self._handler.done():
            return  # it never awaited anything, so there is nothing to cancel
        failures = 0
        while True:
            try:
                await self._store.wait_for_stop(self._lease)
            except LeaseLostError:
                self._interrupt(_Cause.LOST)
                return
            except Exception as error:  # noqa: BLE001 - an unwatched run could not be cancelled
                failures += 1
                self.log_failure("Could not watch run %s of thread %s", error)
                await self._clock.sleep(STORE_PATIENCE.delay_after(failures))
            else:
                self._interrupt(_Cause.ASKED)
                return

    async def _expire(self, expires_at: int) -> None:
        while (left := expires_at * _SECOND_NS - self._clock.time_ns()) > 0:
            await self._clock.sleep(min(timedelta(microseconds=-(-left // 1_000)), _LONGEST_SLEEP))
        self._interrupt(_Cause.EXPIRED)

    async def _time_out(self, delay: timedelta) -> None:
        await self._clock.sleep(delay)
        self._interrupt(_Cause.EXPIRED)

    # After the handler has ended

    async def _end(self, result: _Result) -> None:
        error = result.error if isinstance(result, _Raised) else None
        if error is not None and self._writer.ending is None and not self._was_told(error):
            self.log_failure("The handler failed in run %s of thread %s", error)
        if self._cause is _Cause.LOST:
            await self._finalize()
            return
        await self._close(self._last_write(result))

    async def _close(self, work: RunWrite) -> None:
        status = await self._write_last(work)
        if status is not None:
            self._log_end(status)

    def _log_end(self, status: RunStatus) -> None:
        ids = {**self._ids, "status": status}
        match status:
            case RunStatus.QUEUED:
                logger.info("Run %s of thread %s was requeued", *self._run_and_thread, extra=ids)
            case RunStatus.REQUIRES_ACTION:
                logger.info("Run %s of thread %s waits for tool outputs", *self._run_and_thread, extra=ids)
            case _:
                logger.info("Run %s of thread %s ended as %s", *self._run_and_thread, status, extra=ids)

    def _was_told(self, error: BaseException) -> bool:
        """Return whether ``error`` only results from a cancellation or from a lost lease."""
        return isinstance(error, LeaseLostError) or (
            self._cause is not None and isinstance(error, asyncio.CancelledError)
        )

    def _last_write(self, result: _Result) -> RunWrite:
        match self._cause:
            case _Cause.ASKED | _Cause.LOST:
                return self._ending(RunStatus.CANCELLED)
            case _Cause.EXPIRED:
                return self._ending(RunStatus.EXPIRED)
        ending = self._writer.ending
        if ending is not None:
            # The items contain the next step, so a step that the handler left open must end first.
            items = ending.items and self._writer.left_open() + ending.items
            tokens = self._writer.tokens
            return attrs.evolve(ending, items=items, usage=tokens.usage, spent=tokens.spent_before)
        if self._cause is _Cause.STOPPING:
            return RunWrite(status=RunStatus.QUEUED, spent=self._writer.tokens.spent)
        if isinstance(result, _Raised):
            return self._failing(result.error)
        return self._ending(RunStatus.COMPLETED, items=self._completing(result))

    def _ending(self, status: RunStatus, **fields: Any) -> RunWrite:
        """Return the transaction that ends the run, with the tokens it has used."""
        tokens = self._writer.tokens
        return RunWrite(status=status, usage=tokens.usage, spent=tokens.spent_before, **fields)

    def _failing(self, error: BaseException) -> RunWrite:
        if isinstance(error, OSError | StoreIOError) and error.errno in {errno.EMFILE, errno.ENFILE}:
            # The process has too many files open, which is no fault of the run: no attempt is counted.
            retry_at = self._clock.time_ns() // _SECOND_NS + 1
            return RunWrite(status=RunStatus.QUEUED, spent=self._writer.tokens.spent, retry_at=retry_at)
        retry = self._options.retry
        if retry is not None and self._lease.attempt < retry.max_attempts:
            delay_ns = retry.delay_after(self._lease.attempt) // timedelta(microseconds=1) * 1_000
            retry_at = -(-(self._clock.time_ns() + delay_ns) // _SECOND_NS)
            spent = self._writer.tokens.spent
            return RunWrite(status=RunStatus.QUEUED, spent=spent, attempt_failed=True, retry_at=retry_at)
        shown = raised(error)
        if isinstance(error, asyncio.CancelledError):
            shown = RunError("server_error", "The handler cancelled itself.")
        return self._ending(RunStatus.FAILED, error=shown)

    def _completing(self, result: str | MessageWriter | None) -> Items:
        match result:
            case MessageWriter():
                return result.completing(self._writer.now)
            case str():
                place = self._writer.past.next_place()
                return self._writer.left_open() + whole_message(self._run, result, self._writer.now, place)[1]
            case None:
                return self._writer.left_open()

    async def _write_last(self, work: RunWrite) -> RunStatus | None:
        """Write the transaction that releases the lease: ``work``, or the one that the run allows.

        Return the new status, or None if the lease is lost or the worker gave up.
        """
        failed = RunWrite(
            status=RunStatus.FAILED, error=RunError("server_error", "The result of the handler cannot be stored.")
        )
        while True:
            try:
                run = await self._patiently(lambda work=work: self._store.write_run(self._lease, work))  # type: ignore[misc]
            except LeaseLostError:
                await self._finalize()
                return None
            except InvalidTransitionError:  # someone asked the run to stop at the last moment
                work = self._ending(RunStatus.CANCELLED)
            except Exception as error:  # noqa: BLE001 - the worker must continue, and the run must not stay open
                self.log_failure("Could not write run %s of thread %s", error)
                if work is failed:
                    return None
                work = failed
            else:
                return None if run is None else run.status

    async def _finalize(self) -> None:
        logger.info("Worker %s lost run %s of thread %s", self._lease.worker_id, *self._run_and_thread, extra=self._ids)
        try:
            await self._patiently(lambda: self._store.finalize_run(self._lease.thread_id, self._lease.run_id))
        except NotFoundError:
            pass  # the run was deleted, so nothing is open
        except Exception as error:  # noqa: BLE001 - the worker must continue
            self.log_failure("Could not finalize run %s of thread %s", error)

    async def _patiently(self, write: Callable[[], Awaitable[Run]]) -> Run | None:
        """Return the result of ``write``, retrying if the store fails. Return None after giving up."""
        failures = 0
        while True:
            try:
                return await write()
            except StoreError as error:
                failures += 1
                self.log_failure("Could not write run %s of thread %s", error)
                if failures >= (_LAST_TRIES if self._is_hurried else STORE_PATIENCE.max_attempts):
                    # The worker keeps the lease. Once it is gone, another worker reclaims the run.
                    logger.error("Gave up run %s of thread %s", *self._run_and_thread, extra=self._ids)  # noqa: TRY400 - the traceback is logged above
                    return None
                self._pause = asyncio.create_task(self._clock.sleep(STORE_PATIENCE.delay_after(failures)))
                cancelled = await finish(self._pause, when_cancelled=self.stop)
                if cancelled is not None:
                    raise cancelled from None

    def log_failure(self, message: str, error: BaseException) -> None:
        """Log an error with its traceback.

        Args:
            message: The message, with a ``%s`` for the id of the run and one for the id of the thread.

            error: The error.
        """
        logger.error(message, *self._run_and_thread, exc_info=error, extra=self._ids)
