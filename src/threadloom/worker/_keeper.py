"""One claimed run, from its handler's start to the act that ends it, whatever comes between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from enum import Enum, auto
from typing import Any

import attrs
from attrs import frozen

from threadloom.errors import InvalidTransitionError, LeaseLostError, NotFoundError, StoreError
from threadloom.lifecycle import RunWrite
from threadloom.models import IncompleteDetails, Run, RunError, RunStatus
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
_LONGEST_SLEEP = timedelta(hours=1)  # to the next look at a clock that an administrator may set
_SHORTEST_NAG = timedelta(seconds=1)  # between two cancellations of one handler, also where there is no grace
_SAID = {RunStatus.QUEUED: "run put back", RunStatus.REQUIRES_ACTION: "run waits for tools"}
_LAST_TRIES = 3  # at a write that fails, once the worker is stopping


@frozen(kw_only=True)
class HandlerOptions:
    """What a worker does with its handler."""

    handler: Handler
    retry: RetryPolicy | None
    run_timeout: timedelta | None
    grace: timedelta


class _Cause(Enum):
    """Why a handler was cancelled; the first cause stands."""

    ASKED = auto()  # the run is ``cancelling``
    LOST = auto()  # the lease is not live any more: forced, a foreign status, deleted
    EXPIRED = auto()
    STOPPING = auto()  # the worker is


@frozen
class _Raised:
    """What a handler raised. A value, because asyncio lets some exceptions of a task out through the event loop."""

    error: BaseException


_Result = str | MessageWriter | _Raised | None


class RunKeeper:
    """Keeps one claimed run: calls the handler, hears of what should stop it, and writes how it ended."""

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

    async def keep(self) -> None:
        """Call the handler, wait for its end, and write what came of it. It raises nothing but a cancellation."""
        if self._cause is not None:
            await self.put_back()
            return
        passed = self._writer.tokens.passed_limit()
        if passed is not None:
            await self._close(self._ending(RunStatus.INCOMPLETE, incomplete_details=IncompleteDetails(passed)))
            return
        logger.info("run started", extra=self._ids)
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
                self._cause = _Cause.STOPPING  # the loop is being torn down, and had cancelled the handler before us
            result: _Result = _Raised(asyncio.CancelledError())
        else:
            error = handler.exception()
            result = handler.result() if error is None else _Raised(error)
        await self._end(result)
        if cancelled is not None:
            raise cancelled

    async def put_back(self) -> None:
        """Give the run back to the queue, before its handler was called."""
        await self._write_last(RunWrite(status=RunStatus.QUEUED))

    def stop(self) -> None:
        """Cancel the handler, as the worker is stopping, and let its run go back to the queue."""
        self._is_hurried = True
        if self._pause is not None:
            self._pause.cancel()
        self._interrupt(_Cause.STOPPING)

    # While the handler is at work

    async def _call(self) -> _Result:
        try:
            if self._has_past:
                await self._recall()
            return await call_handler(self._options.handler, self._ctx)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this run and nothing else
            return _Raised(error)

    async def _recall(self) -> None:
        """Tell the context what the run did before."""
        failures = 0
        while True:
            try:
                steps = await self._store.list_steps(self._run.thread_id, self._run.id)
            except StoreError as error:
                failures += 1
                self.log_failure("read failed", error)
                if failures >= STORE_PATIENCE.max_attempts:
                    raise
                await self._clock.sleep(STORE_PATIENCE.delay_after(failures))
            else:
                break
        for damage in steps.damaged:
            logger.warning("step set aside", exc_info=damage, extra=self._ids)
        self._writer.past.recall(steps)

    def _help(self, work: Coroutine[Any, Any, None]) -> None:
        self._helpers.append(asyncio.create_task(work))

    def _interrupt(self, cause: _Cause) -> None:
        """Cancel the handler, unless it is done: then what it did is written, if the store still allows it."""
        if self._cause is not None or (self._handler is not None and self._handler.done()):
            return
        self._cause = cause
        if self._handler is not None:
            self._handler.cancel()
            self._help(self._nag(self._handler))

    async def _nag(self, handler: asyncio.Task[_Result]) -> None:
        """Cancel again, and say so, as long as the handler ignores it. Its slot stays taken."""
        while True:
            await self._clock.sleep(max(self._options.grace, _SHORTEST_NAG))
            logger.warning("handler ignores its cancellation", extra=self._ids)
            handler.cancel()

    async def _watch(self) -> None:
        if self._handler is not None and self._handler.done():
            return  # it never waited for anything, and there is nothing to stop
        failures = 0
        while True:
            try:
                await self._store.wait_for_stop(self._lease)
            except LeaseLostError:
                self._interrupt(_Cause.LOST)
                return
            except Exception as error:  # noqa: BLE001 - a run must not go on unwatched
                failures += 1
                self.log_failure("watch failed", error)
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

    # When it has ended

    async def _end(self, result: _Result) -> None:
        error = result.error if isinstance(result, _Raised) else None
        if error is not None and self._writer.ending is None and not self._was_told(error):
            self.log_failure("handler failed", error)
        if self._cause is _Cause.LOST:
            await self._settle()
            return
        await self._close(self._last_write(result))

    async def _close(self, work: RunWrite) -> None:
        status = await self._write_last(work)
        if status is not None:
            logger.info(_SAID.get(status, "run ended"), extra={**self._ids, "status": status})

    def _was_told(self, error: BaseException) -> bool:
        """Whether ``error`` is no more than the answer to a cancellation, or to a lease that is lost."""
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
            # What comes with it is the next step, before which the one that was left open has to end.
            items = ending.items and self._writer.left_open() + ending.items
            tokens = self._writer.tokens
            return attrs.evolve(ending, items=items, usage=tokens.usage, spent=tokens.spent_before)
        if self._cause is _Cause.STOPPING:
            return RunWrite(status=RunStatus.QUEUED, spent=self._writer.tokens.spent)
        if isinstance(result, _Raised):
            return self._failing(result.error)
        return self._ending(RunStatus.COMPLETED, items=self._completing(result))

    def _ending(self, status: RunStatus, **fields: Any) -> RunWrite:
        """Return the act that ends the run, with the tokens that it has come to."""
        tokens = self._writer.tokens
        return RunWrite(status=status, usage=tokens.usage, spent=tokens.spent_before, **fields)

    def _failing(self, error: BaseException) -> RunWrite:
        retry = self._options.retry
        if retry is not None and self._lease.attempt < retry.max_attempts:
            delay_ns = retry.delay_after(self._lease.attempt) // timedelta(microseconds=1) * 1_000
            retry_at = -(-(self._clock.time_ns() + delay_ns) // _SECOND_NS)
            spent = self._writer.tokens.spent
            return RunWrite(status=RunStatus.QUEUED, spent=spent, attempt_failed=True, retry_at=retry_at)
        shown = raised(error)
        if isinstance(error, asyncio.CancelledError):
            shown = RunError("server_error", "The handler was cancelled from within.")
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
        """Write the act that gives the lease back, as ``work`` or as what the run allows; none if it is lost."""
        failed = RunWrite(
            status=RunStatus.FAILED, error=RunError("server_error", "What the handler returned cannot be kept.")
        )
        while True:
            try:
                run = await self._patiently(lambda work=work: self._store.write_run(self._lease, work))  # type: ignore[misc]
            except LeaseLostError:
                await self._settle()
                return None
            except InvalidTransitionError:  # it was asked to stop in the last moment
                work = self._ending(RunStatus.CANCELLED)
            except Exception as error:  # noqa: BLE001 - the worker goes on, and the run must not stay open
                self.log_failure("write failed", error)
                if work is failed:
                    return None
                work = failed
            else:
                return None if run is None else run.status

    async def _settle(self) -> None:
        logger.info("run lost", extra=self._ids)
        try:
            await self._patiently(lambda: self._store.settle_run(self._lease.thread_id, self._lease.run_id))
        except NotFoundError:
            pass  # deleted, with all that was open
        except Exception as error:  # noqa: BLE001 - the worker goes on
            self.log_failure("settlement failed", error)

    async def _patiently(self, write: Callable[[], Awaitable[Run]]) -> Run | None:
        """Return what ``write`` returns, tried again where the store cannot do its work; none where it is given up."""
        failures = 0
        while True:
            try:
                return await write()
            except StoreError as error:
                failures += 1
                self.log_failure("write failed", error)
                if failures >= (_LAST_TRIES if self._is_hurried else STORE_PATIENCE.max_attempts):
                    # The lease stays with this worker, and recovery takes the run over when the worker is gone.
                    logger.error("run given up", extra=self._ids)  # noqa: TRY400 - told above
                    return None
                self._pause = asyncio.create_task(self._clock.sleep(STORE_PATIENCE.delay_after(failures)))
                cancelled = await finish(self._pause, when_cancelled=self.stop)
                if cancelled is not None:
                    raise cancelled from None

    def log_failure(self, event: str, error: BaseException) -> None:
        """Log an error with its traceback and the ids of the run."""
        logger.error(event, exc_info=error, extra=self._ids)
