"""The tools of the tests themselves: a clock that stands still, and an alarm that hears who blocks the loop."""

import asyncio
import fcntl
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from blockbuster import BlockingError

import threadloom
from threadloom.testing import ManualClock, StoreConformance

BLOCKING_CALLS = [
    "fcntl.flock(descriptor, fcntl.LOCK_UN)",
    "fcntl.lockf(descriptor, fcntl.LOCK_UN)",
    "os.close(os.open(os.devnull, os.O_RDONLY))",
    "os.fdatasync(descriptor)",
    "os.fsync(descriptor)",
    "os.pwrite(descriptor, b'x', 0)",
    "os.stat('/')",
    "os.write(descriptor, b'x')",
    "time.sleep(0)",
]


def make_as_ours(call, descriptor):
    """Make a call as if it stood in a module of threadloom's."""
    code = compile(call, Path(threadloom.__file__).with_name("_blocking.py"), "eval")
    return eval(code, {"descriptor": descriptor, "fcntl": fcntl, "os": os, "time": time})  # noqa: S307 - ours, above


@pytest.fixture
def descriptor(tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
@pytest.mark.parametrize("call", BLOCKING_CALLS)
async def test_a_blocking_call_on_the_loop_fails_a_test(call, descriptor):
    with pytest.raises(BlockingError):
        make_as_ours(call, descriptor)


@pytest.mark.parametrize("call", BLOCKING_CALLS)
async def test_another_thread_may_block(call, descriptor):
    await asyncio.to_thread(make_as_ours, call, descriptor)


@pytest.mark.parametrize("call", BLOCKING_CALLS)
def test_where_no_loop_runs_anything_may_block(call, descriptor):
    make_as_ours(call, descriptor)


def test_no_chapter_of_the_conformance_suite_hides_a_test_of_another():
    names = [name for chapter in StoreConformance.__bases__ for name in vars(chapter) if name.startswith("test_")]
    assert len(names) > 150
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("promise", range(1, 9))
def test_every_promise_has_a_test_that_carries_its_number(promise):
    assert any(name.startswith(f"test_g{promise}_") for name in dir(StoreConformance))


async def test_a_manual_clock_wakes_who_has_slept_enough():
    clock = ManualClock()
    woken = []

    async def sleep(seconds):
        await clock.sleep(timedelta(seconds=seconds))
        woken.append(seconds)

    async with asyncio.TaskGroup() as tasks:
        for seconds in (3, 1, 2, 0, -1):
            tasks.create_task(sleep(seconds))
        await asyncio.sleep(0)
        assert clock.sleepers == 3
        for now, expected in ((1.5, [0, -1, 1]), (0.5, [0, -1, 1, 2]), (10, [0, -1, 1, 2, 3])):
            clock.advance(timedelta(seconds=now))
            for _ in range(3):
                await asyncio.sleep(0)
            assert woken == expected
    assert clock.sleepers == 0


async def test_setting_a_manual_clock_wakes_nobody():
    clock = ManualClock(start_ns=0)
    sleeping = asyncio.create_task(clock.sleep(timedelta(seconds=1)))
    await asyncio.sleep(0)
    clock.step_wall_clock(timedelta(hours=2))
    assert clock.time_ns() == 7_200_000_000_000
    clock.step_wall_clock(timedelta(hours=-3))
    assert clock.time_ns() == -3_600_000_000_000
    await asyncio.sleep(0)
    assert not sleeping.done()
    clock.advance(timedelta(seconds=1))
    await sleeping
