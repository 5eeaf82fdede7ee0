"""Selects the events of a stream, from its start to its end, by reading the log of the run. Any process can do this."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from threadloom.events import EventType, MessageDelta, RunEvent
from threadloom.models import Run, RunStatus, Thread
from threadloom.store import ThreadStore
from threadloom.web._frames import DONE, FrameWriter, thread_frame

__all__ = ["events_past", "events_since_outputs", "events_until_stop"]


async def events_until_stop(
    store: ThreadStore, run: Run, *, created: Thread | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a run from its start until it ends or first waits for tool outputs.

    Args:
        store: Store of the run.

        run: The run.

        created: Thread that was created together with the run. Its frame comes first. None if there is none.
    """
    if created is not None:
        yield thread_frame(created)
    writer = FrameWriter()
    async with aclosing(store.events(run.thread_id, run.id)) as events:
        async for event in events:
            if frames := writer.frames(event):
                yield frames
            if _stops(event):
                break
    yield DONE


async def events_since_outputs(store: ThreadStore, run: Run) -> AsyncGenerator[bytes, None]:
    """Yield the frames of the turn that ``run`` started when its tool outputs were submitted.

    They start with the step that the outputs complete, which this stream has not opened. They end when the run ends or
    waits for tool outputs again.

    Args:
        store: Store of the run.

        run: The run, as ``submit_tool_outputs`` returned it.
    """
    writer = FrameWriter()
    pending: list[RunEvent] = []
    has_begun = False
    async with aclosing(store.events(run.thread_id, run.id, after=run.anew_from or 0)) as events:
        async for event in events:
            if isinstance(event.data, MessageDelta) and not has_begun:
                continue  # text of an earlier turn, which may be long
            pending.append(event)
            if isinstance(event.data, Run) and not has_begun:
                has_begun = event.data.turn >= run.turn
                if not has_begun:
                    pending.clear()
            if not has_begun:
                continue
            if frames := b"".join(map(writer.frames, pending)):
                yield frames
            pending.clear()
            if _stops(event):
                break
    yield DONE


async def events_past(store: ThreadStore, run: Run, number: int) -> AsyncGenerator[bytes, None]:
    """Yield the frames after an event, exactly as a stream from the start would have sent them.

    They end when the run ends. They also end with a later event that says the run waits for tool outputs, if it still
    waits when that event is read.

    Args:
        store: Store of the run.

        run: The run.

        number: Number of the last event that the reader has.
    """
    writer = FrameWriter()
    async with aclosing(store.events(run.thread_id, run.id)) as events:
        async for event in events:
            if event.number <= number:
                writer.pass_over(event)
                continue
            if frames := writer.frames(event):
                yield frames
            if event.type is EventType.RUN_REQUIRES_ACTION and isinstance(event.data, Run):
                now = await store.get_run(run.thread_id, run.id)
                if now.status is RunStatus.REQUIRES_ACTION and now.turn == event.data.turn:
                    break
    yield DONE


def _stops(event: RunEvent) -> bool:
    if not isinstance(event.data, Run):
        return False
    return event.data.status.is_terminal or event.data.status is RunStatus.REQUIRES_ACTION
