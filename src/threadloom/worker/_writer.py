"""The one place where what a handler does is written: under the run's lease, one act after the other."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from threadloom.acts import RunItem, RunWrite
from threadloom.errors import InvalidInputError, LeaseLostError
from threadloom.events import Checkpoint
from threadloom.models import RunStatus, RunStep, RunStepStatus
from threadloom.store import Claim, ThreadStore
from threadloom.tasks import carried_out
from threadloom.worker._past import Past
from threadloom.worker._tokens import Tokens

__all__ = ["Items", "Part", "RunEnding", "RunWriter"]

Items = tuple[RunItem, ...]


class RunEnding(BaseException):
    """Leaves the handler, as it decided by one of its calls; ``except Exception`` does not hold it up."""


class Part(ABC):
    """A message or step that a handler fills. At most one of a run is open at a time, as its readers expect."""

    kind: str
    is_left = False  # whether the handler left it by an exception, and may have gone on

    @abstractmethod
    def opening(self, now: int) -> Items:
        """Return what announces it."""

    @abstractmethod
    def failing(self, now: int) -> Items:
        """Return what ends it, as the handler left it open and went on."""


class RunWriter:
    """Writes for one claim: one act after the other, each carried out whole, also when its caller is cancelled."""

    def __init__(self, store: ThreadStore, claim: Claim) -> None:
        self.run = claim.run
        self.past = Past(claim.run)
        # What the act that ends the run is going to say of it: the tokens so far, and what the handler decided.
        self.tokens = Tokens(claim.run)
        self.ending: RunWrite | None = None
        self._store = store
        self._lease = claim.lease
        self._lock = asyncio.Lock()
        self._part: Part | None = None
        self._has_ended = False

    @property
    def now(self) -> int:
        """The moment, in whole seconds, by the store's clock."""
        return self._store.clock.time_ns() // 1_000_000_000

    def check(self) -> None:
        """Raise ``LeaseLostError`` once the handler has ended: tasks that it left behind write nothing more.

        A handler that has called for tools, and did not let the exception out, is left again.
        """
        if self._has_ended:
            raise LeaseLostError(self._lease.run_id, self._lease.worker_id)
        if self.ending is not None and self.ending.status is RunStatus.REQUIRES_ACTION:
            raise RunEnding

    def check_room(self) -> None:
        """Raise ``InvalidInputError`` while a part is open."""
        if self._part is not None and not self._part.is_left:
            raise InvalidInputError(f"A {self._part.kind} of the run is still open: end it before the next one.")

    async def open(self, part: Part, *items: Callable[[int], Items]) -> None:
        """Announce a part, and write ``items`` into it, in one act."""

        async def act() -> None:
            async with self._lock:
                self.check()
                await self._write(self._room(), part.opening(self.now), *(make(self.now) for make in items))
                self._part = part

        try:
            await carried_out(act())
        except BaseException:
            part.is_left = True  # it may be open all the same, but its ``async with`` is never entered
            raise

    async def add(self, part: Part, items: Items, then: Callable[[], object]) -> None:
        """Write ``items`` into an open part; call ``then`` if and when that was done."""

        async def act() -> None:
            async with self._lock:
                self._check_open(part)
                await self._write(items)
                then()

        await carried_out(act())

    async def close(self, part: Part, items: Callable[[int], Items]) -> None:
        """Write ``items``, with which a part ends."""

        async def act() -> None:
            async with self._lock:
                self._check_open(part)
                await self._write(items(self.now))
                self._part = None

        await carried_out(act())

    async def put(self, items: Callable[[int], Items]) -> None:
        """Write ``items``, which open a part and end it."""

        async def act() -> None:
            async with self._lock:
                self.check()
                await self._write(self._room(), items(self.now))
                self._part = None

        await carried_out(act())

    async def keep(self, checkpoint: Checkpoint, then: Callable[[], object]) -> None:
        """Write a checkpoint, whatever is open; call ``then`` if and when that was done."""

        async def act() -> None:
            async with self._lock:
                await self._write((checkpoint,))
                then()

        await carried_out(act())

    async def end(self) -> None:
        """Write nothing more, once an act that is under way is done."""
        self._has_ended = True
        async with self._lock:
            pass

    def left_open(self) -> Items:
        """Return what ends the part that the handler left open, if it did."""
        return () if self._part is None else self._part.failing(self.now)

    async def _write(self, *items: Items) -> None:
        self.check()
        all_items = tuple(item for some in items for item in some)
        spent = self.tokens.to_tell()
        await self._store.write_run(self._lease, RunWrite(items=all_items, spent=spent))
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
            raise InvalidInputError(f"The {part.kind} is not open: use it within its 'async with'.")
