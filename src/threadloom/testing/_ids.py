"""Conformance: what is named wrongly, is not there, or is asked of a closed store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import attrs
import pytest

from threadloom.errors import (
    InvalidIdError,
    LeaseLostError,
    MessageNotFoundError,
    RunNotFoundError,
    RunStepNotFoundError,
    StoreClosedError,
    ThreadNotFoundError,
)
from threadloom.models import Assistant, Message, Run, RunStatus, RunStep, RunStepStatus, Thread
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._stage import NOT_IDS, Stage, new_claim, new_step, picture, say

__all__ = ["NameConformance"]

Calls = Mapping[str, Callable[..., Awaitable[object]]]


async def first_event(store: ThreadStore, thread_id: str, run_id: str) -> object:
    """Read one event of a run."""
    return await anext(store.events(thread_id, run_id))


ASSISTANT_CALLS: Calls = {
    "get_assistant": lambda store, assistant: store.get_assistant(assistant),
    "update_assistant": lambda store, assistant: store.update_assistant(assistant, lambda old: old),
    "delete_assistant": lambda store, assistant: store.delete_assistant(assistant),
}
THREAD_CALLS: Calls = {
    "get_thread": lambda store, thread: store.get_thread(thread),
    "update_thread": lambda store, thread: store.update_thread(thread, metadata={}),
    "delete_thread": lambda store, thread: store.delete_thread(thread, force=True),
    "append_message": lambda store, thread: store.append_message(thread, Message.user(thread, "hello")),
    "list_messages": lambda store, thread: store.list_messages(thread),
    "create_run": lambda store, thread: store.create_run(thread, Run.new(thread, model="any")),
    "list_runs": lambda store, thread: store.list_runs(thread),
}
MESSAGE_CALLS: Calls = {
    "get_message": lambda store, thread, message: store.get_message(thread, message),
    "update_message": lambda store, thread, message: store.update_message(thread, message, metadata={}),
    "delete_message": lambda store, thread, message: store.delete_message(thread, message),
}
RUN_CALLS: Calls = {
    "get_run": lambda store, thread, run: store.get_run(thread, run),
    "update_run": lambda store, thread, run: store.update_run(thread, run, metadata={}),
    "update_run_status": lambda store, thread, run: store.update_run_status(thread, run, RunStatus.IN_PROGRESS),
    "force_update_run_status": lambda store, thread, run: store.force_update_run_status(
        thread, run, RunStatus.IN_PROGRESS
    ),
    "request_cancel": lambda store, thread, run: store.request_cancel(thread, run),
    "wait_for_run": lambda store, thread, run: store.wait_for_run(thread, run, timeout=timedelta(minutes=1)),
    "append_step": lambda store, thread, run: store.append_step(
        thread, run, RunStep.tool_calls(thread_id=thread, run_id=run)
    ),
    "list_steps": lambda store, thread, run: store.list_steps(thread, run),
    "finalize_run": lambda store, thread, run: store.finalize_run(thread, run),
    "submit_tool_outputs": lambda store, thread, run: store.submit_tool_outputs(thread, run, []),
    "get_checkpoints": lambda store, thread, run: store.get_checkpoints(thread, run),
    "events": first_event,
    "read_events": lambda store, thread, run: store.read_events(thread, run),
}
STEP_CALLS: Calls = {
    "get_step": lambda store, thread, run, step: store.get_step(thread, run, step),
    "update_step_status": lambda store, thread, run, step: store.update_step_status(
        thread, run, step, RunStepStatus.COMPLETED
    ),
}
LEASE_CALLS: Calls = {
    "write_run": lambda store, lease: store.write_run(lease, RunWrite()),
    "check_lease": lambda store, lease: store.check_lease(lease),
    "wait_for_stop": lambda store, lease: store.wait_for_stop(lease),
}
LIST_CALLS: Calls = {
    "list_assistants": lambda store, _, __, **page: store.list_assistants(**page),
    "list_thread_ids": lambda store, _, __, **page: store.list_thread_ids(**page),
    "list_threads": lambda store, _, __, **page: store.list_threads(**page),
    "list_messages": lambda store, thread, _, **page: store.list_messages(thread, **page),
    "list_runs": lambda store, thread, _, **page: store.list_runs(thread, **page),
    "list_steps": lambda store, thread, run, **page: store.list_steps(thread, run, **page),
}
# Ids that may be left out, so that none is fine.
OPTIONAL_CALLS: Calls = {
    "list_messages of a run": lambda store, thread, _, bad: store.list_messages(thread, run_id=bad),
    "list_messages seen by a run": lambda store, thread, _, bad: store.list_messages(thread, seen_by=bad),
    "append_message of a run": lambda store, thread, _, bad: store.append_message(
        thread, attrs.evolve(Message.user(thread, "hello"), run_id=bad)
    ),
}
NEW_CALLS: Calls = {
    "create_assistant": lambda store, _, __, bad: store.create_assistant(
        attrs.evolve(Assistant.new(model="any"), id=bad)
    ),
    "create_thread": lambda store, _, __, bad: store.create_thread(attrs.evolve(Thread.new(), id=bad)),
    "append_message": lambda store, thread, _, bad: store.append_message(
        thread, attrs.evolve(Message.user(thread, "hello"), id=bad)
    ),
    "create_run": lambda store, thread, _, bad: store.create_run(
        thread, attrs.evolve(Run.new(thread, model="any"), id=bad)
    ),
    "append_step": lambda store, thread, run, bad: store.append_step(
        thread, run, attrs.evolve(RunStep.tool_calls(thread_id=thread, run_id=run), id=bad)
    ),
    "create_thread with messages": lambda store, _, __, bad: store.create_thread(
        Thread.new(id="new_2"), messages=[attrs.evolve(Message.user("new_2", "hello"), id=bad)]
    ),
    "create_run with messages": lambda store, thread, _, bad: store.create_run(
        thread, Run.new(thread, model="any"), messages=[attrs.evolve(Message.user(thread, "hello"), id=bad)]
    ),
    "claim_run": lambda store, _, __, bad: store.claim_run(bad),
    "try_claim_run": lambda store, _, __, bad: store.try_claim_run(bad),
    "try_claim_runs": lambda store, _, __, bad: store.try_claim_runs(bad, 2),
}


class NameConformance(Stage):
    """What every method does with a name that is no id, or the name of nothing, and when the store is closed."""

    @pytest.mark.parametrize("bad", NOT_IDS.values(), ids=NOT_IDS)
    async def test_what_is_not_an_id_is_refused_by_every_method_and_leaves_nothing(
        self, store: ThreadStore, bad: Any
    ) -> None:
        lease = (await new_claim(store)).lease
        thread, run = lease.thread_id, lease.run_id
        (message,) = await say(store, thread, "hello")
        before = await picture(store)
        calls: dict[str, Callable[[], Awaitable[object]]] = {}

        def add(kind: str, some: Calls, *arguments: Any) -> None:
            calls.update({f"{name} ({kind})": partial(call, store, *arguments) for name, call in some.items()})

        add("new", NEW_CALLS, thread, run, bad)
        add("assistant", ASSISTANT_CALLS, bad)
        add("thread", THREAD_CALLS, bad)
        add("message", MESSAGE_CALLS, thread, bad)
        add("thread of message", MESSAGE_CALLS, bad, message.id)
        add("run", RUN_CALLS, thread, bad)
        add("thread of run", RUN_CALLS, bad, run)
        add("step", STEP_CALLS, thread, run, bad)
        add("run of step", STEP_CALLS, thread, bad, "step_1")
        add("thread of step", STEP_CALLS, bad, run, "step_1")
        add("run of lease", LEASE_CALLS, attrs.evolve(lease, run_id=bad))
        add("thread of lease", LEASE_CALLS, attrs.evolve(lease, thread_id=bad))
        if bad is not None:
            add("optional", OPTIONAL_CALLS, thread, run, bad)
            for cursor in ("after", "before"):
                cursors = {name: partial(call, **{cursor: bad}) for name, call in LIST_CALLS.items()}
                add(cursor, cursors, thread, run)
        for name, call in calls.items():
            (outcome,) = await asyncio.gather(call(), return_exceptions=True)
            assert isinstance(outcome, InvalidIdError), (name, outcome)
            assert outcome.value == bad
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_g8_an_unknown_thread_is_an_error_in_every_method(self, store: ThreadStore) -> None:
        run = (await new_claim(store)).run
        step = await new_step(store, run)
        before = await picture(store)
        unknown = "thread_unheard_of"
        async for view in self.views(store):
            for calls, rest in (
                (THREAD_CALLS, ()),
                (MESSAGE_CALLS, ("msg_1",)),
                (RUN_CALLS, (run.id,)),
                (STEP_CALLS, (run.id, step.id)),
            ):
                for call in calls.values():
                    with pytest.raises(ThreadNotFoundError) as caught:
                        await call(view, unknown, *rest)
                    assert caught.value.thread_id == unknown
            assert await picture(view) == before

    async def test_g8_an_unknown_message_is_an_error_in_every_method(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        await say(store, claim.run.thread_id, "hello")
        before = await picture(store)
        async for view in self.views(store):
            for call in MESSAGE_CALLS.values():
                with pytest.raises(MessageNotFoundError):
                    await call(view, claim.run.thread_id, "msg_unheard_of")
            assert await picture(view) == before

    async def test_g8_an_unknown_run_is_an_error_in_every_method(self, store: ThreadStore) -> None:
        run = (await new_claim(store)).run
        step = await new_step(store, run)
        before = await picture(store)
        async for view in self.views(store):
            for calls, rest in ((RUN_CALLS, ()), (STEP_CALLS, (step.id,))):
                for call in calls.values():
                    with pytest.raises(RunNotFoundError) as caught:
                        await call(view, run.thread_id, "run_unheard_of", *rest)
                    assert (caught.value.thread_id, caught.value.run_id) == (run.thread_id, "run_unheard_of")
            assert await picture(view) == before

    async def test_g8_an_unknown_step_is_an_error_in_every_method(self, store: ThreadStore) -> None:
        run = (await new_claim(store)).run
        before = await picture(store)
        async for view in self.views(store):
            for call in STEP_CALLS.values():
                with pytest.raises(RunStepNotFoundError):
                    await call(view, run.thread_id, run.id, "step_unheard_of")
            assert await picture(view) == before

    async def test_g5_a_lease_on_what_is_not_there_is_lost(self, store: ThreadStore) -> None:
        lease = (await new_claim(store)).lease
        lost = [attrs.evolve(lease, thread_id="thread_unheard_of"), attrs.evolve(lease, run_id="run_unheard_of")]
        async for view in self.views(store):
            for call in LEASE_CALLS.values():
                for wrong in lost:
                    with pytest.raises(LeaseLostError):
                        await call(view, wrong)

    async def test_a_closed_store_refuses_every_method(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        thread, run = claim.run.thread_id, claim.run.id
        step = await new_step(store, claim.run)
        (message,) = await say(store, thread, "hello")
        before = await picture(store)
        await store.close()
        for calls, arguments in (
            (ASSISTANT_CALLS, ("asst_1",)),
            (THREAD_CALLS, (thread,)),
            (MESSAGE_CALLS, (thread, message.id)),
            (RUN_CALLS, (thread, run)),
            (STEP_CALLS, (thread, run, step.id)),
            (LEASE_CALLS, (claim.lease,)),
            (NEW_CALLS, (thread, run, "new_1")),
            (LIST_CALLS, (thread, run)),
            (OPTIONAL_CALLS, (thread, run, run)),
        ):
            for call in calls.values():
                with pytest.raises(StoreClosedError):
                    await call(store, *arguments)
        async with self.fresh(store) as again:
            assert await picture(again) == before

    async def test_a_store_is_closed_twice_and_opened_twice_without_a_word(self, store: ThreadStore) -> None:
        async with store as same:
            assert same is store
            assert store.is_open
        assert not store.is_open
        await store.close()
        await store.close()
        assert not store.is_open
        async with self.fresh(store) as again:
            assert again.is_open
            assert list(await again.list_thread_ids()) == []
