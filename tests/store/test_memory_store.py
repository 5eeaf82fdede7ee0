"""MemoryStore, the reference: the conformance suite on both event loops, and the machine on itself."""

from __future__ import annotations

import tracemalloc
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from threadloom import MemoryStore, Thread, ThreadStore
from threadloom.testing import ManualClock, StoreConformance, store_machine


@pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
class TestMemoryStore(StoreConformance):
    async def open_store(self, clock: ManualClock) -> ThreadStore:
        return await MemoryStore.open(clock=clock)


@cache
def the_store_at(clock: ManualClock, root: Path) -> MemoryStore:
    """Return the same store whenever it is opened again: what it keeps is in it."""
    return MemoryStore(clock=clock)


TestMemoryMachine = store_machine(the_store_at, oracle=lambda clock, root: MemoryStore(clock=clock)).TestCase
TestMemoryMachine.settings = settings(max_examples=40, stateful_step_count=40)


async def test_a_record_takes_no_more_memory_than_its_bytes():
    async with MemoryStore() as store:
        threads = [Thread.new() for _ in range(100)]
        tracemalloc.start()
        try:
            for thread in threads:
                await store.create_thread(thread)
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert taken < 100 * 1_000
