"""The only place that writes for a handler: under the lease of the run, one transaction at a time."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from threadloom.errors import InvalidInputError, LeaseLostError, StoreError
from threadloom.events import Checkpoint, MessageDelta
from threadloom.models import RunStatus, RunStep, RunStepStatus
from threadloom.records import RunItem, RunWrite
from threadloom.store import Claim, ThreadStore
from threadloom.tasks import carried_out, finish, until_done
from threadloom.worker._past import Past
from threadloom.worker._tokens import Tokens

__all__ = ["Items", "Part", "RunEnding", "RunWriter"]

Items = tuple[RunItem, ...]

_MOST_DELTAS: Final = 256  # pieces that may wait before the handler must wait


class RunEnding(BaseException):
    """Leaves the handler after a call that ends it.

    It is not an ``Exception``, so handlers do not catch it by accident.
    """


class Part(ABC):
    """A message or step that a handler fills. A run has at most one open at a time, as readers of its events expect.

    Attributes:
        kind: Name of the part in error messages.

        is_left: Whether an exception left the part, after which the handler may have continued.
    """

    kind: str
    is_left = False

    @abstractmethod
    def opening(self, now: int) -> Items:
        """Return the items that open the part."""

    @abstractmethod
    def failing(self, now: int) -> Items:
        """Return the items that end the part after the handler left it open and continued."""


class RunWriter:
    """Writes for one claim. Transactions run one at a time, and complete even if the caller is cancelled."""

    def __init__(self, store: ThreadStore, claim: Claim) -> None:
        self.run = claim.run
        self.past = Past(claim.run)
        # For the transaction that ends the run: the tokens so far, and the decision of the handler.
        self.tokens = Tokens(claim.run)
        self.ending: RunWrite | None = None
        self._store = store
        self._lease = claim.lease
        self._lock = asyncio.Lock()
        self._part: Part | None = None
        self._has_ended = False
        self._deltas: list[MessageDelta] = []  # accepted, and not yet written
        self._flusher: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    @property
    def now(self) -> int:
        """The current time of the store's clock, in whole seconds."""
        return self._store.clock.time_ns() // 1_000_000_000

    def check(self) -> None:
        """Raise ``LeaseLostError`` if the handler has ended, so that tasks it left behind write nothing.

        If a handler asked for tool outputs and swallowed the exception, raise that exception again.
        """
        if self._has_ended:
            raise LeaseLostError(self._lease.run_id, self._lease.worker_id)
        if self.ending is not None and self.ending.status is RunStatus.REQUIRES_ACTION:
            raise RunEnding

    def check_room(self) -> None:
        """Raise ``InvalidInputError`` if a part is open."""
        if self._part is not None and not self._part.is_left:
            raise InvalidInputError(f"A {self._part.kind} of the run is still open: end it before you start another.")

    async def open(self, part: Part, *items: Callable[[int], Items]) -> None:
        """Open a part and write ``items`` into it, in one transaction."""

        async def transaction() -> None:
            async with self._lock:
                self.check()
                await self._write(self._room(), part.opening(self.now), *(make(self.now) for make in items))
                self._part = part

        try:
            await carried_out(transaction())
        except BaseException:
            part.is_left = True  # the part may be open even so, but its ``async with`` was never entered
            raise

    async def add(self, part: Part, delta: MessageDelta, then: Callable[[], object]) -> None:
        """Accept a piece of text for an open part. Pieces that arrive while a write is under way share the next one.

        Call ``then`` at once, and return before the piece is written, unless too many pieces wait. If the write fails,
        the next call raises its error.
        """
        self._check_open(part)
        self._raise_failure()
        self._deltas.append(delta)
        then()
        if self._flusher is None or self._flusher.done():  # done, and its callback not called: it writes no more
            self._flusher = asyncio.create_task(self._flush())
            self._flusher.add_done_callback(self._note_flushed)
        if len(self._deltas) >= _MOST_DELTAS:
            await until_done(self._flusher)
            self._raise_failure()
        else:
            await asyncio.sleep(0)  # let the write begin, and let other tasks run

    async def _flush(self) -> None:
        """Write the pieces that wait, until none is left."""
        while self._deltas and not self._has_ended:
            async with self._lock:
                await self._write_items(())

    def _note_flushed(self, flusher: asyncio.Task[None]) -> None:
        if self._flusher is flusher:
            self._flusher = None
        if not flusher.cancelled() and flusher.exception() is not None:
            self._failure = flusher.exception()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def close(self, part: Part, items: Callable[[int], Items]) -> None:
        """Write ``items``, which end the part."""

        async def transaction() -> None:
            async with self._lock:
                self._check_open(part)
                await self._write(items(self.now))
                self._part = None

        await carried_out(transaction())

    async def put(self, items: Callable[[int], Items]) -> None:
        """Write ``items``, which open a part and end it."""

        async def transaction() -> None:
            async with self._lock:
                self.check()
                await self._write(self._room(), items(self.now))
                self._part = None

        await carried_out(transaction())

    async def keep(self, checkpoint: Checkpoint, then: Callable[[], object]) -> None:
        """Write a checkpoint, whatever is open, then call ``then``. Do not call it if the write failed."""

        async def transaction() -> None:
            async with self._lock:
                await self._write((checkpoint,))
                then()

        await carried_out(transaction())

    async def end(self) -> None:
        """Wait until all accepted pieces and the current transaction are written, and write nothing from now on."""
        if self._flusher is not None:
            await finish(self._flusher)
        self._has_ended = True
        async with self._lock:
            pass

    def left_open(self) -> Items:
        """Return the items that end the part that the handler left open, if there is one."""
        return () if self._part is None else self._part.failing(self.now)

    async def _write(self, *items: Items) -> None:
        self.check()
        self._raise_failure()
        await self._write_items(tuple(item for some in items for item in some))

    async def _write_items(self, items: Items) -> None:
        """Write the waiting pieces, then ``items``."""
        deltas, self._deltas = self._deltas, []
        all_items = (*deltas, *items)
        if not all_items:
            return
        spent = self.tokens.to_tell()
        try:
            await self._store.write_run(self._lease, RunWrite(items=all_items, spent=spent))
        except StoreError:
            self._deltas[:0] = deltas  # the store may recover: the next write includes them
            raise
        self.tokens.note_told(spent)
        for item in all_items:
            if isinstance(item, RunStep) and item.status is RunStepStatus.COMPLETED:
                self.past.reach(item)

    def _room(self) -> Items:
        self.check_room()
        return self.left_open()

    def _check_open(self, part: Part) -> None:
        self.check()
        if self._part is not part:
            raise InvalidInputError(f"The {part.kind} is not open: use it inside its 'async with' block.")
