"""The conformance suite: what every store must do, as tests that its own test class inherits."""

from __future__ import annotations

from threadloom.testing._assistants import AssistantConformance
from threadloom.testing._busy import BusyConformance
from threadloom.testing._cancellation import CancellationConformance
from threadloom.testing._events import EventConformance
from threadloom.testing._expiry import ExpiryConformance
from threadloom.testing._finalization import FinalizationConformance
from threadloom.testing._ids import NameConformance
from threadloom.testing._keys import KeyConformance
from threadloom.testing._leases import LeaseConformance
from threadloom.testing._messages import MessageConformance
from threadloom.testing._pages import CursorConformance, PageConformance
from threadloom.testing._queue import QueueConformance
from threadloom.testing._rollback import RollbackConformance
from threadloom.testing._runs import RunConformance
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
    FinalizationConformance,
    EventConformance,
    ToolConformance,
    PageConformance,
    CursorConformance,
    NameConformance,
    KeyConformance,
    CancellationConformance,
):
    """Everything that ``ThreadStore`` promises, as tests that the test class of a store inherits.

        class TestMyStore(StoreConformance):
            async def open_store(self, clock: ManualClock) -> ThreadStore:
                return await MyStore.open(clock=clock)

    ``open_store`` returns an open store without any data. A backend with a slow set-up, such as a server, pays for it
    once a session: a fixture of the session sets it up, an ``autouse`` fixture hands it to the test, and ``open_store``
    only empties it or takes a new namespace in it.

            @pytest.fixture(autouse=True)
            def use_server(self, server: Server) -> None:  # a fixture with scope="session"
                self.server = server

            async def open_store(self, clock: ManualClock) -> ThreadStore:
                return await MyStore.open(self.server.url, schema=await self.server.new_schema(), clock=clock)

    Most tests ask the open store, and then a store that was just opened on the same data: ``fresh``, an async context
    manager, closes the store and opens it again; override it to open another one. ``beside`` yields a second store that
    is open on the same data at the same time; override it where there can be one, in this process or another. Until
    then it yields the store itself.

    A test that is about one promise begins with its number. Each test ends with a ``check`` of the store, which must
    find nothing.

    The tests are for pytest and pytest-asyncio, in its mode ``auto`` or with the mark ``asyncio`` on the class. They
    use public methods only, and assume neither files nor one process. Time is a ``ManualClock``; a test that makes sure
    that something goes on waiting takes a fiftieth of a second for it.
    """
