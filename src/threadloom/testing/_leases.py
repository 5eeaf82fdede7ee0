"""Conformance: what a worker writes under its lease, and when it may not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import attrs
import pytest

from threadloom.errors import (
    InvalidIdError,
    InvalidInputError,
    InvalidTransitionError,
    LeaseLostError,
)
from threadloom.events import MessageDelta, StepDelta
from threadloom.models import (
    FunctionCall,
    IncompleteDetails,
    Message,
    MessageCreation,
    MessageStatus,
    RequiredAction,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    TextContent,
    ToolCall,
    ToolCalls,
    Usage,
)
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._queue import claimed
from threadloom.testing._stage import (
    NOT_TEXT,
    PATIENCE,
    Stage,
    announced,
    every_event,
    names,
    new_claim,
    new_run,
    new_step,
    picture,
    scribble,
    still_waiting,
    working_run,
)

__all__ = ["LeaseConformance"]

ERROR = RunError("server_error", "Something broke.")


class LeaseConformance(Stage):
    """What a worker may write, and when it may not."""

    async def test_g1_a_run_is_finished_with_all_that_belongs_to_it_in_one_act(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        work = await working_run(store, "Hello ", "world")
        clock.advance(timedelta(seconds=5))
        now = clock.time_ns() // 1_000_000_000
        message = attrs.evolve(
            work.message, content=(TextContent("Hello world"),), status=MessageStatus.COMPLETED, completed_at=now
        )
        step = attrs.evolve(work.step, status=RunStepStatus.COMPLETED, completed_at=now)
        run = await store.write_run(
            work.lease, RunWrite(items=(message, step), status=RunStatus.COMPLETED, usage=Usage(1, 2, 3))
        )
        assert run == attrs.evolve(work.run, status=RunStatus.COMPLETED, completed_at=now, usage=Usage(1, 2, 3))
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
            assert list(await view.list_messages(run.thread_id)) == [message]
            assert list(await view.list_steps(run.thread_id, run.id)) == [step]
            assert names(await every_event(view, run)) == [
                *("run.created", "run.queued", "run.in_progress"),
                *("run.step.created", "run.step.in_progress", "message.created", "message.in_progress"),
                *("message.delta", "message.delta", "message.completed", "run.step.completed", "run.completed"),
            ]

    async def test_items_are_written_in_their_order(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        thread_id, run_id = claim.run.thread_id, claim.run.id
        call = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments="{}"))
        step = RunStep.tool_calls(thread_id=thread_id, run_id=run_id)
        ended = attrs.evolve(step, status=RunStepStatus.COMPLETED, step_details=ToolCalls((call,)), completed_at=1)
        whole = [Message.assistant(thread_id, text, run_id=run_id) for text in ("one", "two")]
        begun = [attrs.evolve(message, status=MessageStatus.IN_PROGRESS, content=()) for message in whole]
        items = (
            *(begun[0], MessageDelta(whole[0].id, "one"), whole[0]),
            *(step, StepDelta(step.id, 0, call), ended),
            *(begun[1], whole[1]),
        )
        await store.write_run(claim.lease, RunWrite(items=items))
        async for view in self.views(store):
            events = await every_event(view, claim.run)
            assert names(events)[3:] == [
                *("message.created", "message.in_progress", "message.delta", "message.completed"),
                *("run.step.created", "run.step.in_progress", "run.step.delta", "run.step.completed"),
                *("message.created", "message.in_progress", "message.completed"),
            ]
            assert events[5].data == MessageDelta(whole[0].id, "one")
            assert events[9].data == StepDelta(step.id, 0, call)
            assert list(await view.list_messages(thread_id)) == whole
            assert [attrs.evolve(kept, sequence=None) for kept in await view.list_steps(thread_id, run_id)] == [ended]

    async def test_a_step_that_is_written_again_is_replaced_and_keeps_its_place(self, store: ThreadStore) -> None:
        work = await working_run(store)
        await new_step(store, work.run)
        changed = attrs.evolve(work.step, step_details=MessageCreation("msg_other"), sequence=None)
        await store.write_run(work.lease, RunWrite(items=(changed,)))
        async for view in self.views(store):
            first, _ = await view.list_steps(work.run.thread_id, work.run.id)
            assert first == attrs.evolve(changed, sequence=work.step.sequence)

    async def test_a_write_without_a_status_keeps_the_lease(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        for work in (RunWrite(), RunWrite(usage=Usage(1, 1, 2)), RunWrite(status=RunStatus.IN_PROGRESS)):
            run = await store.write_run(claim.lease, work)
            assert run.status is RunStatus.IN_PROGRESS
        async for view in self.views(store):
            assert await view.check_lease(claim.lease) == run
            assert run.usage == Usage(1, 1, 2)

    async def test_a_run_that_needs_an_action_gives_its_lease_back_and_says_what_it_needs(
        self, store: ThreadStore
    ) -> None:
        claim = await new_claim(store)
        call = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments="not json"))
        action = RequiredAction((call,))
        step = RunStep.tool_calls(thread_id=claim.run.thread_id, run_id=claim.run.id, calls=[call])
        run = await store.write_run(
            claim.lease, RunWrite(items=(step,), status=RunStatus.REQUIRES_ACTION, required_action=action)
        )
        assert (run.status, run.required_action) == (RunStatus.REQUIRES_ACTION, action)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
            with pytest.raises(LeaseLostError):
                await view.check_lease(claim.lease)
        async with self.fresh(store) as again:
            done = attrs.evolve(call, function=attrs.evolve(call.function, output="done"))
            await again.update_step_status(
                run.thread_id, run.id, step.id, RunStepStatus.COMPLETED, details=ToolCalls((done,))
            )
            queued = await again.update_run_status(run.thread_id, run.id, RunStatus.QUEUED)
            assert (queued.required_action, queued.attempt) == (None, 1)
            taken = await again.claim_run("worker_2")
            assert (taken.run.id, taken.lease.attempt) == (run.id, 1)
            assert taken.run.started_at == claim.run.started_at

    async def test_a_run_ends_incomplete_with_its_reason(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        details = IncompleteDetails("max_completion_tokens")
        run = await store.write_run(claim.lease, RunWrite(status=RunStatus.INCOMPLETE, incomplete_details=details))
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
            assert (run.status, run.incomplete_details) == (RunStatus.INCOMPLETE, details)

    async def test_a_run_ends_failed_with_its_error(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        run = await store.write_run(claim.lease, RunWrite(status=RunStatus.FAILED, error=ERROR))
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
            assert (run.status, run.last_error) == (RunStatus.FAILED, ERROR)

    async def test_a_run_that_is_put_back_is_done_again_at_the_same_attempt(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        run = await store.write_run(work.lease, RunWrite(status=RunStatus.QUEUED))
        assert (run.status, run.attempt, run.retry_at) == (RunStatus.QUEUED, 1, None)
        async for view in self.views(store):
            assert list(await view.list_messages(run.thread_id)) == []
            assert [step.status for step in await view.list_steps(run.thread_id, run.id)] == [RunStepStatus.CANCELLED]
            assert names(await every_event(view, run))[-3:] == [
                *("message.incomplete", "run.step.cancelled", "run.queued")
            ]
        async with self.fresh(store) as again:
            assert await claimed(again) == run.id

    async def test_a_run_that_is_asked_to_stop_takes_writes_and_may_become_cancelled_only(
        self, store: ThreadStore
    ) -> None:
        work = await working_run(store, "half a ")
        await store.request_cancel(work.run.thread_id, work.run.id)
        await store.write_run(work.lease, RunWrite(items=(MessageDelta(work.message.id, "word"),)))
        before = await picture(store)
        for status in set(RunStatus) - {RunStatus.CANCELLING, RunStatus.CANCELLED}:
            with pytest.raises(InvalidTransitionError):
                await store.write_run(work.lease, RunWrite(items=(work.step,), status=status))
        async for view in self.views(store):
            assert await picture(view) == before
        async with self.fresh(store) as again:
            run = await again.write_run(work.lease, RunWrite(status=RunStatus.CANCELLED))
            assert run.status is RunStatus.CANCELLED
            (message,) = await again.list_messages(run.thread_id)
            assert message.text == "half a word"

    @pytest.mark.parametrize("how", ["another_token", "forced", "by_hand", "deleted", "finished", "put_back"])
    async def test_g5_a_write_without_the_lease_changes_nothing(self, store: ThreadStore, how: str) -> None:
        work = await working_run(store, "half a ")
        thread_id, run_id = work.run.thread_id, work.run.id
        taking: dict[str, Callable[[], Awaitable[object]]] = {
            "another_token": lambda: asyncio.sleep(0),
            "forced": lambda: store.force_update_run_status(thread_id, run_id, RunStatus.CANCELLED),
            "by_hand": lambda: store.update_run_status(thread_id, run_id, RunStatus.IN_PROGRESS),
            "deleted": lambda: store.delete_thread(thread_id, force=True),
            "finished": lambda: store.write_run(work.lease, RunWrite(status=RunStatus.COMPLETED)),
            "put_back": lambda: store.write_run(work.lease, RunWrite(status=RunStatus.QUEUED)),
        }
        await taking[how]()
        lease = attrs.evolve(work.lease, token="0" * 32) if how == "another_token" else work.lease
        before = await picture(store)
        for write in (
            RunWrite(),
            RunWrite(items=(Message.assistant(thread_id, "late", run_id=run_id),)),
            RunWrite(items=(RunStep.tool_calls(thread_id=thread_id, run_id=run_id),)),
            RunWrite(items=(MessageDelta(work.message.id, "late"),)),
            RunWrite(status=RunStatus.COMPLETED, usage=Usage(1, 1, 2)),
        ):
            with pytest.raises(LeaseLostError) as caught:
                await store.write_run(lease, write)
            assert (caught.value.run_id, caught.value.worker_id) == (run_id, "worker_1")
        with pytest.raises(LeaseLostError):
            await store.check_lease(lease)
        with pytest.raises(LeaseLostError):
            await store.wait_for_stop(lease)
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_g5_the_lease_of_an_earlier_claim_is_not_that_of_a_later_one(self, store: ThreadStore) -> None:
        first = await new_claim(store)
        await store.force_update_run_status(first.run.thread_id, first.run.id, RunStatus.QUEUED)
        second = await store.claim_run("worker_1")
        assert second.run.id == first.run.id
        with pytest.raises(LeaseLostError):
            await store.write_run(first.lease, RunWrite(status=RunStatus.FAILED))
        async for view in self.views(store):
            assert await view.check_lease(second.lease) == second.run

    async def test_g5_a_lease_of_a_thread_that_was_made_anew_is_lost(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        thread = await store.get_thread(claim.run.thread_id)
        await store.delete_thread(thread.id, force=True)
        await store.create_thread(thread)
        await store.create_run(thread.id, attrs.evolve(claim.run, status=RunStatus.QUEUED))
        await store.claim_run("worker_1")
        with pytest.raises(LeaseLostError):
            await store.write_run(claim.lease, RunWrite(status=RunStatus.FAILED))
        async for view in self.views(store):
            assert (await view.get_run(thread.id, claim.run.id)).status is RunStatus.IN_PROGRESS

    @pytest.mark.parametrize("hours", [1_000, -1_000])
    async def test_g5_a_step_of_the_wall_clock_loses_no_lease(
        self, store: ThreadStore, clock: ManualClock, hours: int
    ) -> None:
        claim = await new_claim(store)
        clock.step_wall_clock(timedelta(hours=hours))
        async with self.beside(store) as other:
            assert await claimed(other, "worker_2") is None
            assert await other.check_lease(claim.lease) == claim.run
        run = await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        assert (run.status, run.attempt) == (RunStatus.COMPLETED, 1)

    async def test_metadata_and_steps_by_hand_leave_the_lease(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        thread_id, run_id = claim.run.thread_id, claim.run.id
        await store.update_run(thread_id, run_id, metadata={"k": "v"})
        step = await new_step(store, claim.run)
        await store.update_step_status(thread_id, run_id, step.id, RunStepStatus.COMPLETED)
        await store.append_message(thread_id, Message.assistant(thread_id, "by hand", run_id=run_id))
        async for view in self.views(store):
            assert (await view.check_lease(claim.lease)).metadata == {"k": "v"}
        async with self.fresh(store) as again:
            await again.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))

    @pytest.mark.parametrize("bad", range(4))
    async def test_g1_a_write_with_one_bad_item_changes_nothing(self, store: ThreadStore, bad: int) -> None:
        work = await working_run(store, "half a ")
        thread_id, run_id = work.run.thread_id, work.run.id
        good = RunStep.tool_calls(thread_id=thread_id, run_id=run_id)
        whole = attrs.evolve(work.message, status=MessageStatus.COMPLETED, content=(TextContent("half a word"),))
        items: tuple[Any, ...] = (
            attrs.evolve(good, step_details=ToolCalls((ToolCall.new(FunctionCall(name=NOT_TEXT, arguments="")),))),
            MessageDelta(work.message.id, NOT_TEXT),
            attrs.evolve(whole, content=(TextContent(NOT_TEXT),)),
            Message.assistant(thread_id, "", run_id=run_id, metadata={"surrogate": NOT_TEXT}),
        )
        before = await picture(store)
        with pytest.raises(InvalidInputError):
            await store.write_run(work.lease, RunWrite(items=(good, whole, items[bad]), status=RunStatus.COMPLETED))
        async for view in self.views(store):
            assert await picture(view) == before
            await view.check_lease(work.lease)

    async def test_an_item_of_another_run_is_not_written(self, store: ThreadStore) -> None:
        work = await working_run(store)
        other = await new_run(store)
        before = await picture(store)
        for thread_id, run_id in itertools.product((work.run.thread_id, other.thread_id), (work.run.id, other.id)):
            if (thread_id, run_id) == (work.run.thread_id, work.run.id):
                continue
            for item in (
                RunStep.tool_calls(thread_id=thread_id, run_id=run_id),
                Message.assistant(thread_id, "lost", run_id=run_id),
            ):
                with pytest.raises(InvalidInputError):
                    await store.write_run(work.lease, RunWrite(items=(item,)))
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_an_item_whose_id_is_none_is_not_written(self, store: ThreadStore) -> None:
        work = await working_run(store)
        thread_id, run_id = work.run.thread_id, work.run.id
        before = await picture(store)
        for item in (
            attrs.evolve(RunStep.tool_calls(thread_id=thread_id, run_id=run_id), id="../../escaped"),
            attrs.evolve(Message.assistant(thread_id, "lost", run_id=run_id), id="../../escaped"),
        ):
            with pytest.raises(InvalidIdError):
                await store.write_run(work.lease, RunWrite(items=(item,)))
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_what_a_worker_handed_in_may_change_afterwards(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        thread_id, run_id = claim.run.thread_id, claim.run.id
        metadata = {"as": "written"}
        step = attrs.evolve(RunStep.tool_calls(thread_id=thread_id, run_id=run_id), metadata=metadata)
        message = attrs.evolve(announced(Message.assistant(thread_id, "", run_id=run_id)), metadata=metadata)
        items = (step, message, MessageDelta(message.id, "half a "))
        await store.write_run(claim.lease, RunWrite(items=items))
        metadata["changed"] = "in"
        for event in await every_event(store, claim.run):
            if isinstance(event.data, RunStep | Message):
                scribble(event.data.metadata)
        await store.force_update_run_status(thread_id, run_id, RunStatus.CANCELLED)
        async for view in self.views(store):
            kept: list[Any] = [*await view.list_steps(thread_id, run_id), *await view.list_messages(thread_id)]
            assert [item.metadata for item in kept] == [{"as": "written"}] * 2

    async def test_a_second_message_is_not_begun_before_the_first_has_ended(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        before = await picture(store)
        second = attrs.evolve(
            Message.assistant(work.run.thread_id, "", run_id=work.run.id), status=MessageStatus.IN_PROGRESS
        )
        with pytest.raises(InvalidInputError):
            await store.write_run(work.lease, RunWrite(items=(second,)))
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_a_text_whose_worker_is_gone_holds_up_no_later_one(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        await store.update_run_status(work.run.thread_id, work.run.id, RunStatus.QUEUED)
        claim = await store.claim_run("worker_2")
        message = Message.assistant(work.run.thread_id, "whole", run_id=work.run.id)
        begun = attrs.evolve(message, status=MessageStatus.IN_PROGRESS, content=())
        await store.write_run(claim.lease, RunWrite(items=(begun, message), status=RunStatus.COMPLETED))
        async for view in self.views(store):
            assert list(await view.list_messages(work.run.thread_id)) == [message]

    async def test_who_waits_for_a_stop_hears_of_it(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        async with asyncio.timeout(PATIENCE), self.beside(store) as other:
            waiting = asyncio.create_task(store.wait_for_stop(claim.lease))
            await other.update_run(claim.run.thread_id, claim.run.id, metadata={"not": "this"})
            await still_waiting(waiting)
            await other.request_cancel(claim.run.thread_id, claim.run.id)
            await waiting
            await store.wait_for_stop(claim.lease)

    @pytest.mark.parametrize("how", ["forced", "by_hand", "deleted"])
    async def test_who_waits_for_a_stop_hears_that_the_lease_is_lost(self, store: ThreadStore, how: str) -> None:
        claim = await new_claim(store)
        thread_id, run_id = claim.run.thread_id, claim.run.id
        async with asyncio.timeout(PATIENCE), self.beside(store) as other:
            waiting = asyncio.create_task(store.wait_for_stop(claim.lease))
            await still_waiting(waiting)
            if how == "forced":
                await other.force_update_run_status(thread_id, run_id, RunStatus.IN_PROGRESS)
            elif how == "by_hand":
                await other.update_run_status(thread_id, run_id, RunStatus.COMPLETED)
            else:
                await other.delete_thread(thread_id, force=True)
            with pytest.raises(LeaseLostError):
                await waiting
