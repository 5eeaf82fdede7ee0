"""What holds for all tests: nothing blocks the event loop, and nothing is left behind."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from blockbuster import BlockBuster, BlockBusterFunction
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("threadloom.testing")

# A busy machine makes an example slow, and says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}

# What waits for a disk or for another process, beside what blockbuster knows of itself.
BLOCKING = (
    "fcntl.flock",
    "fcntl.lockf",
    "os.fdatasync",
    "os.fsync",
    "os.ftruncate",
    "os.open",
    "os.pread",
    "os.pwrite",
    "os.truncate",
)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run a test on asyncio's own loop, unless its mark ``asyncio`` names others."""
    mark = item.get_closest_marker("asyncio")
    return LOOPS if mark is not None and "loop_factories" in mark.kwargs else {"asyncio": LOOPS["asyncio"]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every async test be asked about the tasks that it leaves; a test that is not async has no loop to ask."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(0, "no_task_is_left")


@pytest.fixture(scope="session", autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """Raise BlockingError from a blocking call of ours in a thread whose event loop runs; other threads may block.

    What a test does itself between two steps of the loop may block: it holds up nobody but the test.
    """
    ours: Any = {"scanned_modules": ["threadloom"], "excluded_modules": ["threadloom.testing"]}
    blockbuster = BlockBuster(**ours)
    for name in BLOCKING:
        blockbuster.functions[name] = BlockBusterFunction(None, name, **ours)
    blockbuster.activate()
    yield
    blockbuster.deactivate()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test after which a thread of threadloom's still lives."""
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("threadloom")]
    for thread in left:
        thread.join(timeout=1)
    assert not [thread for thread in left if thread.is_alive()]


@pytest_asyncio.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """Fail an async test after which a task of its loop still goes on."""
    yield
    for _ in range(10):  # a task that was cancelled needs a tick or two to end
        await asyncio.sleep(0)
    assert not asyncio.all_tasks() - {asyncio.current_task()}
