"""Conformance: what is left of a run that ended while a worker was in the middle of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest

from threadloom.models import (
    IncompleteDetails,
    MessageCreation,
    MessageStatus,
    RunError,
    RunStatus,
    RunStepStatus,
    TextContent,
)
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import (
    LIVE,
    Stage,
    Work,
    every_event,
    names,
    new_run,
    new_step,
    picture,
    working_run,
)

__all__ = ["FinalizationConformance"]

ERROR = RunError("server_error", "Something broke.")

# What a run came to: what its open steps come to, and why its open message is not whole.
ENDS = [
    (RunStatus.FAILED, RunStepStatus.FAILED, "run_failed"),
    (RunStatus.EXPIRED, RunStepStatus.EXPIRED, "run_expired"),
    (RunStatus.CANCELLED, RunStepStatus.CANCELLED, "run_cancelled"),
    (RunStatus.COMPLETED, RunStepStatus.COMPLETED, "run_cancelled"),
    (RunStatus.INCOMPLETE, RunStepStatus.CANCELLED, "max_tokens"),
]
MOMENTS = {
    RunStepStatus.COMPLETED: "completed_at",
    RunStepStatus.FAILED: "failed_at",
    RunStepStatus.CANCELLED: "cancelled_at",
    RunStepStatus.EXPIRED: "expired_at",
}
Way = Callable[[ThreadStore, Work, RunStatus], Awaitable[object]]
WAYS: dict[str, Way] = {
    "by_force": lambda store, work, status: store.force_update_run_status(work.run.thread_id, work.run.id, status),
    "by_hand": lambda store, work, status: store.update_run_status(work.run.thread_id, work.run.id, status),
    "by_its_worker": lambda store, work, status: store.write_run(work.lease, RunWrite(status=status)),
}
for_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class FinalizationConformance(Stage):
    """What a store does with open steps and streamed text when a run becomes terminal."""

    @for_every_way
    @pytest.mark.parametrize("end", ENDS, ids=[status for status, *_ in ENDS])
    async def test_a_run_that_ends_closes_its_steps_and_keeps_the_streamed_text(
        self, store: ThreadStore, clock: ManualClock, way: Way, end: tuple[RunStatus, RunStepStatus, str]
    ) -> None:
        status, step_status, reason = end
        work = await working_run(store, "half ", "a ")
        await way(store, work, status)
        now = clock.time_ns() // 1_000_000_000
        message = attrs.evolve(
            work.message,
            content=(TextContent("half a "),),
            status=MessageStatus.INCOMPLETE,
            incomplete_at=now,
            incomplete_details=IncompleteDetails(reason),
        )
        moment: dict[str, Any] = {MOMENTS[step_status]: now}
        step = attrs.evolve(work.step, status=step_status, **moment)
        async for view in self.views(store):
            assert (await view.get_run(work.run.thread_id, work.run.id)).status is status
            assert list(await view.list_messages(work.run.thread_id)) == [message]
            assert list(await view.list_steps(work.run.thread_id, work.run.id)) == [step]
            assert names(await every_event(view, work.run))[-3:] == [
                *("message.incomplete", f"run.step.{step_status}", f"run.{status}")
            ]

    @for_every_way
    async def test_where_nothing_was_streamed_no_message_is_kept(self, store: ThreadStore, way: Way) -> None:
        work = await working_run(store)
        await way(store, work, RunStatus.CANCELLED)
        async for view in self.views(store):
            assert list(await view.list_messages(work.run.thread_id)) == []
            assert names(await every_event(view, work.run))[-3:] == [
                *("message.incomplete", "run.step.cancelled", "run.cancelled")
            ]

    async def test_a_failed_run_gives_its_error_to_the_steps_it_left_open(self, store: ThreadStore) -> None:
        work = await working_run(store)
        await store.force_update_run_status(work.run.thread_id, work.run.id, RunStatus.FAILED, ERROR)
        async for view in self.views(store):
            (step,) = await view.list_steps(work.run.thread_id, work.run.id)
            assert step.last_error == ERROR

    async def test_details_that_came_to_an_open_step_are_there_when_it_is_closed(self, store: ThreadStore) -> None:
        work = await working_run(store)
        details = MessageCreation("msg_other")
        await store.write_run(work.lease, RunWrite(items=(attrs.evolve(work.step, step_details=details),)))
        by_hand = await new_step(store, work.run)
        await store.update_step_status(
            by_hand.thread_id, by_hand.run_id, by_hand.id, RunStepStatus.IN_PROGRESS, details=details
        )
        async with self.beside(store) as other:
            await other.force_update_run_status(work.run.thread_id, work.run.id, RunStatus.CANCELLED)
        async for view in self.views(store):
            steps = await view.list_steps(work.run.thread_id, work.run.id)
            assert [step.step_details for step in steps] == [details, details]

    async def test_what_had_ended_before_stays_as_it_was(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        whole = attrs.evolve(
            work.message, content=(TextContent("half a word"),), status=MessageStatus.COMPLETED, completed_at=7
        )
        ended = attrs.evolve(work.step, status=RunStepStatus.FAILED, failed_at=7)
        await store.write_run(work.lease, RunWrite(items=(whole, ended)))
        await store.force_update_run_status(work.run.thread_id, work.run.id, RunStatus.CANCELLED)
        async for view in self.views(store):
            assert list(await view.list_messages(work.run.thread_id)) == [whole]
            assert list(await view.list_steps(work.run.thread_id, work.run.id)) == [ended]

    async def test_steps_of_a_run_that_is_driven_by_hand_are_closed_too(self, store: ThreadStore) -> None:
        run = await new_run(store)
        await store.update_run_status(run.thread_id, run.id, RunStatus.IN_PROGRESS)
        await new_step(store, run)
        await store.request_cancel(run.thread_id, run.id)
        async for view in self.views(store):
            (step,) = await view.list_steps(run.thread_id, run.id)
            assert step.status is RunStepStatus.CANCELLED

    @pytest.mark.parametrize("status", [status for status, *_ in ENDS])
    async def test_finalizing_a_run_again_changes_nothing(self, store: ThreadStore, status: RunStatus) -> None:
        work = await working_run(store, "half a ")
        run = await store.force_update_run_status(work.run.thread_id, work.run.id, status)
        before = await picture(store)
        for _ in range(3):
            assert await store.finalize_run(run.thread_id, run.id) == run
        async for view in self.views(store):
            assert await view.finalize_run(run.thread_id, run.id) == run
            assert await picture(view) == before

    @pytest.mark.parametrize("status", LIVE)
    async def test_finalizing_a_run_that_is_not_terminal_does_nothing(
        self, store: ThreadStore, status: RunStatus
    ) -> None:
        work = await working_run(store, "half a ")
        if status is RunStatus.CANCELLING:
            run = await store.request_cancel(work.run.thread_id, work.run.id)
        else:
            run = await store.update_run_status(work.run.thread_id, work.run.id, status)
        before = await picture(store)
        async for view in self.views(store):
            assert await view.finalize_run(run.thread_id, run.id) == run
            assert await picture(view) == before

    async def test_history_needs_no_finalizing(self, store: ThreadStore) -> None:
        run = await new_run(store, status=RunStatus.COMPLETED)
        before = await picture(store)
        async for view in self.views(store):
            assert await view.finalize_run(run.thread_id, run.id) == run
            assert await picture(view) == before

    async def test_a_run_that_is_forced_from_one_end_to_another_keeps_one_text(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        for status, *_ in ENDS:
            await store.force_update_run_status(work.run.thread_id, work.run.id, status)
        async for view in self.views(store):
            (message,) = await view.list_messages(work.run.thread_id)
            assert message.incomplete_details == IncompleteDetails("run_failed")

    async def test_a_run_that_is_queued_anew_leaves_its_text_in_the_events_only(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        await store.force_update_run_status(work.run.thread_id, work.run.id, RunStatus.QUEUED)
        async for view in self.views(store):
            assert list(await view.list_messages(work.run.thread_id)) == []
            (step,) = await view.list_steps(work.run.thread_id, work.run.id)
            assert step.status is RunStepStatus.CANCELLED
            assert names(await every_event(view, work.run))[-3:] == [
                *("message.incomplete", "run.step.cancelled", "run.queued")
            ]
