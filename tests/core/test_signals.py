"""Notifications: none is missed between a look and the wait after it, and none wakes others."""

import asyncio
from datetime import timedelta

import pytest

from threadloom.notifications import QUEUE, EventsTopic, Notifier, RunTopic

RUN = RunTopic("thread_1", "run_1")


async def is_woken(listener):
    """Return whether a wait returns at once."""
    try:
        async with asyncio.timeout(0):
            await listener.wait()
    except TimeoutError:
        return False
    return True


async def test_a_notification_before_the_wait_is_not_missed():
    notifier = Notifier()
    with notifier.listening(RUN) as listener:
        notifier.notify(RUN)
        async with asyncio.timeout(5):
            await listener.wait()


async def test_a_notification_wakes_all_listeners_to_its_topic():
    notifier = Notifier()
    with notifier.listening(RUN) as one, notifier.listening(RUN, QUEUE) as other:
        waiting = [asyncio.create_task(listener.wait()) for listener in (one, other)]
        await asyncio.sleep(0)
        notifier.notify(RunTopic("thread_1", "run_1"))
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)


@pytest.mark.parametrize(
    "topic", [QUEUE, RunTopic("thread_1", "run_2"), RunTopic("thread_2", "run_1"), EventsTopic("thread_1", "run_1")]
)
async def test_a_notification_wakes_nobody_who_listens_to_another_topic(topic):
    notifier = Notifier()
    with notifier.listening(RUN) as listener:
        notifier.notify(topic)
        assert not await is_woken(listener)


async def test_a_wait_returns_the_topics_that_were_notified():
    notifier = Notifier()
    with notifier.listening(RUN, QUEUE, slow_look=timedelta(0)) as listener:
        notifier.notify(RUN)
        assert await listener.wait() == frozenset({RUN})
        assert await listener.wait() is None, "it was time to look all the same"
        notifier.notify(QUEUE)
        notifier.notify(RUN)
        assert await listener.wait() == frozenset({RUN, QUEUE})
        notifier.notify(RUN)
        notifier.notify_all()
        assert await listener.wait() is None


async def test_two_notifications_are_one_look_and_the_next_wait_waits():
    notifier = Notifier()
    with notifier.listening(RUN, QUEUE) as listener:
        notifier.notify(RUN)
        notifier.notify(QUEUE)
        assert await is_woken(listener)
        assert not await is_woken(listener)
        notifier.notify(QUEUE)
        assert await is_woken(listener)


async def test_all_listeners_are_woken_at_once():
    notifier = Notifier()
    with notifier.listening(RUN) as one, notifier.listening(QUEUE) as other:
        notifier.notify_all()
        assert await is_woken(one)
        assert await is_woken(other)


async def test_a_listener_that_has_left_is_forgotten():
    notifier = Notifier()
    with notifier.listening(RUN) as stays:
        with notifier.listening(RUN, QUEUE):
            pass
        notifier.notify(QUEUE)
        notifier.notify(RUN)
        assert await is_woken(stays)
    notifier.notify_all()
    assert not notifier._listeners


async def test_a_slow_look_comes_without_a_notification():
    with Notifier().listening(RUN, slow_look=timedelta(milliseconds=1)) as listener:
        async with asyncio.timeout(5):
            assert await listener.wait() is None


async def test_a_wait_may_have_a_timeout_of_its_own():
    with Notifier().listening(RUN) as listener:
        assert await listener.wait(0.001) is None


async def test_a_cancelled_wait_loses_no_notification():
    notifier = Notifier()
    with notifier.listening(RUN) as listener:
        waiting = asyncio.create_task(listener.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        notifier.notify(RUN)
        await asyncio.wait([waiting])
        if waiting.cancelled():
            assert await is_woken(listener)
