"""Bells: none is missed between a look and the wait after it, and none rings for others."""

import asyncio
from datetime import timedelta

import pytest

from threadloom.signals import QUEUE, EventsTopic, RunTopic, Signals

RUN = RunTopic("thread_1", "run_1")


async def rings(listener):
    """Return whether a bell rings now."""
    try:
        async with asyncio.timeout(0):
            await listener.wait()
    except TimeoutError:
        return False
    return True


async def test_a_bell_that_was_rung_before_the_wait_is_not_missed():
    signals = Signals()
    with signals.listening(RUN) as listener:
        signals.ring(RUN)
        async with asyncio.timeout(5):
            await listener.wait()


async def test_a_bell_wakes_all_who_wait_for_its_topic():
    signals = Signals()
    with signals.listening(RUN) as one, signals.listening(RUN, QUEUE) as other:
        waiting = [asyncio.create_task(listener.wait()) for listener in (one, other)]
        await asyncio.sleep(0)
        signals.ring(RunTopic("thread_1", "run_1"))
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)


@pytest.mark.parametrize(
    "topic", [QUEUE, RunTopic("thread_1", "run_2"), RunTopic("thread_2", "run_1"), EventsTopic("thread_1", "run_1")]
)
async def test_a_bell_does_not_ring_for_another_topic(topic):
    signals = Signals()
    with signals.listening(RUN) as listener:
        signals.ring(topic)
        assert not await rings(listener)


async def test_a_bell_says_for_which_of_its_topics_it_was_rung():
    signals = Signals()
    with signals.listening(RUN, QUEUE, slow_look=timedelta(0)) as listener:
        signals.ring(RUN)
        assert await listener.wait() == frozenset({RUN})
        assert await listener.wait() is None, "it was time to look all the same"
        signals.ring(QUEUE)
        signals.ring(RUN)
        assert await listener.wait() == frozenset({RUN, QUEUE})
        signals.ring(RUN)
        signals.ring_all()
        assert await listener.wait() is None


async def test_two_rings_are_one_look_and_the_next_wait_waits():
    signals = Signals()
    with signals.listening(RUN, QUEUE) as listener:
        signals.ring(RUN)
        signals.ring(QUEUE)
        assert await rings(listener)
        assert not await rings(listener)
        signals.ring(QUEUE)
        assert await rings(listener)


async def test_all_bells_ring_at_once():
    signals = Signals()
    with signals.listening(RUN) as one, signals.listening(QUEUE) as other:
        signals.ring_all()
        assert await rings(one)
        assert await rings(other)


async def test_who_has_left_is_forgotten():
    signals = Signals()
    with signals.listening(RUN) as stays:
        with signals.listening(RUN, QUEUE):
            pass
        signals.ring(QUEUE)
        signals.ring(RUN)
        assert await rings(stays)
    signals.ring_all()
    assert not signals._listeners


async def test_a_slow_look_comes_without_a_bell():
    with Signals().listening(RUN, slow_look=timedelta(milliseconds=1)) as listener:
        async with asyncio.timeout(5):
            await listener.wait()


async def test_a_wait_that_is_cancelled_loses_no_bell():
    signals = Signals()
    with signals.listening(RUN) as listener:
        waiting = asyncio.create_task(listener.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        signals.ring(RUN)
        await asyncio.wait([waiting])
        if waiting.cancelled():
            assert await rings(listener)
