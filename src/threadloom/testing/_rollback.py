"""Conformance: what is left of a run that was rolled back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import pytest

from threadloom.errors import MessageNotFoundError
from threadloom.models import IncompleteDetails, Message, MessageStatus, Run, RunStatus, TextContent, Thread
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._busy import for_every_end, reply, superseded, texts
from threadloom.testing._stage import (
    Stage,
    Work,
    announced,
    every_event,
    names,
    new_claim,
    new_run,
    new_thread,
    picture,
    say,
    working_run,
)

__all__ = ["RollbackConformance"]


class RollbackConformance(Stage):
    """What a store keeps of a run that was rolled back, and what not."""

    async def test_what_a_rolled_back_run_wrote_is_gone_and_what_others_said_stays(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        await say(store, thread.id, "one")
        first = await new_claim(store, thread.id)
        await reply(store, first, "an answer")
        await store.write_run(first.lease, RunWrite(status=RunStatus.COMPLETED))
        (second,) = await say(store, thread.id, "two")
        old = await new_claim(store, thread.id)
        written = await reply(store, old, "a wrong answer")
        by_hand = Message.assistant(thread.id, "by hand", run_id=old.run.id)
        await store.append_message(thread.id, by_hand)
        run = await superseded(store, thread.id, "rollback", messages=[Message.user(thread.id, "three")])
        async for view in self.views(store):
            assert await texts(view, thread.id) == ["one", "an answer", "two", "three"]
            assert await texts(view, thread.id, seen_by=run.id) == ["one", "an answer", "two", "three"]
            assert await texts(view, thread.id, run_id=old.run.id) == []
            for gone in (written, by_hand):
                with pytest.raises(MessageNotFoundError):
                    await view.get_message(thread.id, gone.id)
                with pytest.raises(MessageNotFoundError):
                    await view.update_message(thread.id, gone.id, metadata={})
                with pytest.raises(MessageNotFoundError):
                    await view.delete_message(thread.id, gone.id)
                # They still serve as cursors.
                assert await texts(view, thread.id, after=gone.id) == ["three"]
                assert (await view.list_messages(thread.id, before=gone.id, limit=1))[0].id == second.id

    async def test_all_active_runs_are_rolled_back_also_those_that_wait_for_tools_or_in_the_queue(
        self, store: ThreadStore
    ) -> None:
        thread = await new_thread(store)
        claim = await new_claim(store, thread.id)
        await reply(store, claim, "I am going to look")
        await store.write_run(claim.lease, RunWrite(status=RunStatus.REQUIRES_ACTION))
        queued = await new_run(store, thread.id)
        await store.append_message(thread.id, Message.assistant(thread.id, "brought in", run_id=queued.id))
        await superseded(store, thread.id, "rollback")
        async for view in self.views(store):
            assert await texts(view, thread.id) == []
            runs = await view.list_runs(thread.id)
            assert [run.is_rolled_back for run in runs] == [True, True, False]

    async def test_what_names_a_run_and_was_there_before_it_is_not_taken_back_with_it(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        first, second = (Run.new(thread.id, model="any") for _ in range(2))
        for run in (first, second):
            for named in (first, second):
                message = Message.assistant(thread.id, f"{named is first} before {run is first}", run_id=named.id)
                await store.append_message(thread.id, message)
            await store.create_run(thread.id, run)
        await superseded(store, thread.id, "rollback")
        async for view in self.views(store):
            assert await texts(view, thread.id) == ["True before True", "False before True", "False before False"]

    async def test_an_interrupted_run_keeps_what_it_wrote_and_goes_on_to_its_end(self, store: ThreadStore) -> None:
        work = await working_run(store, "half ")
        await superseded(store, work.run.thread_id, "interrupt")
        whole = attrs.evolve(work.message, content=(TextContent("half full"),), status=MessageStatus.COMPLETED)
        await store.write_run(work.lease, RunWrite(items=(whole,)))
        await reply(store, work, "good bye")
        await store.write_run(work.lease, RunWrite(status=RunStatus.CANCELLED))
        async for view in self.views(store):
            assert await texts(view, work.run.thread_id) == ["half full", "good bye"]

    @for_every_end
    async def test_nothing_that_a_rolled_back_run_still_writes_is_kept(
        self, store: ThreadStore, end: Callable[[ThreadStore, Work], Awaitable[object]]
    ) -> None:
        work = await working_run(store, "half ")
        await superseded(store, work.run.thread_id, "rollback")
        whole = attrs.evolve(work.message, content=(TextContent("half full"),), status=MessageStatus.COMPLETED)
        await store.write_run(work.lease, RunWrite(items=(whole,)))
        await reply(store, work, "good bye")
        cut = Message.assistant(work.run.thread_id, "cut", run_id=work.run.id)
        early = attrs.evolve(
            cut, status=MessageStatus.INCOMPLETE, incomplete_at=7, incomplete_details=IncompleteDetails("max_tokens")
        )
        await store.write_run(work.lease, RunWrite(items=(announced(cut), early)))
        last = Message.assistant(work.run.thread_id, "", run_id=work.run.id)
        await store.write_run(work.lease, RunWrite(items=(announced(last),)))
        await end(store, work)
        async for view in self.views(store):
            assert await texts(view, work.run.thread_id) == []
            for gone in (whole, early, last):
                with pytest.raises(MessageNotFoundError):
                    await view.get_message(gone.thread_id, gone.id)
            told = names(await every_event(view, work.run))
            assert told.count("message.completed") == told.count("message.incomplete") == 2
            assert told[-1] == f"run.{(await view.get_run(work.run.thread_id, work.run.id)).status}"

    async def test_a_run_that_was_asked_to_stop_before_can_still_be_rolled_back(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        await superseded(store, work.run.thread_id, "interrupt")
        await superseded(store, work.run.thread_id, "rollback")
        await superseded(store, work.run.thread_id, "interrupt")  # takes nothing back
        await store.write_run(work.lease, RunWrite(status=RunStatus.CANCELLED))
        async for view in self.views(store):
            old, *_ = await view.list_runs(work.run.thread_id)
            assert (old.status, old.is_rolled_back) == (RunStatus.CANCELLED, True)
            assert await texts(view, work.run.thread_id) == []

    async def test_finalizing_a_rolled_back_run_keeps_nothing(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        await superseded(store, work.run.thread_id, "rollback")
        await store.write_run(work.lease, RunWrite(status=RunStatus.CANCELLED))
        before = await picture(store)
        async for view in self.views(store):
            await view.finalize_run(work.run.thread_id, work.run.id)
            assert await picture(view) == before

    async def test_a_message_that_is_added_to_a_rolled_back_run_by_hand_is_kept(self, store: ThreadStore) -> None:
        run = await new_run(store)
        await superseded(store, run.thread_id, "rollback")
        message = Message.assistant(run.thread_id, "as I said", run_id=run.id)
        await store.append_message(run.thread_id, message)
        async for view in self.views(store):
            assert await view.get_message(run.thread_id, message.id) == message

    @pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.IN_PROGRESS, RunStatus.REQUIRES_ACTION])
    async def test_a_rolled_back_run_that_is_forced_on_keeps_its_messages_again(
        self, store: ThreadStore, status: RunStatus
    ) -> None:
        claim = await new_claim(store)
        run = claim.run
        await reply(store, claim, "gone")
        successor = await superseded(store, run.thread_id, "rollback")
        await store.update_run_status(run.thread_id, successor.id, RunStatus.CANCELLED)
        await store.force_update_run_status(run.thread_id, run.id, status)
        if status is RunStatus.REQUIRES_ACTION:
            await store.submit_tool_outputs(run.thread_id, run.id, [])
        again = await store.try_claim_run("worker_2", adopt=True)
        assert again is not None
        assert (again.run.id, again.run.is_rolled_back) == (run.id, False)
        await reply(store, again, "kept")
        begun = Message.assistant(run.thread_id, "", run_id=run.id)
        await store.write_run(again.lease, RunWrite(items=(announced(begun),)))
        await store.write_run(again.lease, RunWrite(status=RunStatus.COMPLETED))
        async for view in self.views(store):
            assert await texts(view, run.thread_id) == ["kept"]

    async def test_a_thread_of_rolled_back_runs_goes_on_as_any_other(self, store: ThreadStore) -> None:
        thread = await store.create_thread(Thread.new(), messages=[])
        for n in range(3):
            await superseded(store, thread.id, "rollback", messages=[Message.user(thread.id, f"try {n}")])
            claim = await store.try_claim_run("worker_1")
            assert claim is not None
            await reply(store, claim, f"answer {n}")
            if n < 2:
                await superseded(store, thread.id, "rollback")
                await store.write_run(claim.lease, RunWrite(status=RunStatus.CANCELLED))
            else:
                await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        async for view in self.views(store):
            assert await texts(view, thread.id) == ["try 0", "try 1", "try 2", "answer 2"]
            statuses = [run.status for run in await view.list_runs(thread.id)]
            assert statuses == [RunStatus.CANCELLED] * 4 + [RunStatus.COMPLETED]
