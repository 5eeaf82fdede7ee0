"""The conformance suite: what every store has to do, as tests that a store's own test class inherits."""

from __future__ import annotations

from threadloom.testing._assistants import AssistantConformance
from threadloom.testing._busy import BusyConformance
from threadloom.testing._cancellation import CancellationConformance
from threadloom.testing._events import EventConformance
from threadloom.testing._expiry import ExpiryConformance
from threadloom.testing._ids import NameConformance
from threadloom.testing._keys import KeyConformance
from threadloom.testing._leases import LeaseConformance
from threadloom.testing._messages import MessageConformance
from threadloom.testing._pages import CursorConformance, PageConformance
from threadloom.testing._queue import QueueConformance
from threadloom.testing._rollback import RollbackConformance
from threadloom.testing._runs import RunConformance
from threadloom.testing._settlement import SettlementConformance
from threadloom.testing._statuses import StatusConformance
from threadloom.testing._steps import StepConformance
from threadloom.testing._threads import ThreadConformance
from threadloom.testing._tools import ToolConformance

__all__ = ["StoreConformance"]


class StoreConformance(
    AssistantConformance,
    ThreadConformance,
    MessageConformance,
    RunConformance,
    BusyConformance,
    RollbackConformance,
    ExpiryConformance,
    StatusConformance,
    StepConformance,
    QueueConformance,
    LeaseConformance,
    SettlementConformance,
    EventConformance,
    ToolConformance,
    PageConformance,
    CursorConformance,
    NameConformance,
    KeyConformance,
    CancellationConformance,
):
    """Everything that ``ThreadStore`` promises, as tests: a store's test class inherits them and opens the store.

        class TestMyStore(StoreConformance):
            async def open_store(self, clock: ManualClock) -> ThreadStore:
                return await MyStore.open(clock=clock)

    ``open_store`` returns a new, empty store that is open. What is true of the open store is asked again of one that
    was just opened on the same data: ``fresh``, an async context manager, closes the store and opens it again, until
    it is told how to open another one. ``beside`` is for stores that can be open twice on the same data, in one process
    or several: it yields the second, and until it is told how, the store itself. A name of a test begins with the
    number of the promise it is about, where it is about one.

    Each test ends with a ``check`` of the store, which has to be clean.

    The tests are for pytest and pytest-asyncio, in its mode ``auto`` (or with the mark ``asyncio`` on the class), and
    none takes longer than its store does: time is a ``ManualClock``.
    """
