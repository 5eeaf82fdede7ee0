"""FileStore keeps every promise of a store, with both durabilities and on both event loops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings

from threadloom import FileStore, MemoryStore, ThreadStore
from threadloom.testing import ManualClock, StoreConformance, store_machine


class FileStoreConformance(StoreConformance):
    """A fresh look is taken by a second store on the same root, while the first is open."""

    durability: Literal["power", "process"] = "process"
    root: Path

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.root = tmp_path / "not" / "yet" / "there"

    async def open_store(self, clock: ManualClock) -> ThreadStore:
        return await FileStore.open(self.root, durability=self.durability, clock=clock)

    @asynccontextmanager
    async def fresh(self, store: ThreadStore) -> AsyncIterator[ThreadStore]:
        async with FileStore(self.root, durability=self.durability, clock=store.clock) as again:
            yield again

    beside = fresh


class TestFileStore(FileStoreConformance):
    """As fast as it goes: what a process that dies leaves behind survives."""


class TestFileStoreThatOutlivesThePower(FileStoreConformance):
    """As it is by default: a power cut is survived too."""

    durability = "power"


@pytest.mark.asyncio(loop_factories=["uvloop"])
class TestFileStoreThatIsClosedAndOpened(FileStoreConformance):
    """A fresh look is taken by a store that is opened after the first was closed, as after a restart.

    On uvloop, so that each truth is asked on both event loops.
    """

    @asynccontextmanager
    async def fresh(self, store: ThreadStore) -> AsyncIterator[ThreadStore]:
        await store.close()
        async with FileStore(self.root, durability=self.durability, clock=store.clock) as again:
            yield again
        await store.__aenter__()


TestFileStoreMachine = store_machine(
    lambda clock, root: FileStore(root, durability="process", clock=clock),
    oracle=lambda clock, root: MemoryStore(clock=clock),
).TestCase
TestFileStoreMachine.settings = settings(max_examples=30, stateful_step_count=40)
