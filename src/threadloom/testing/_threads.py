"""Conformance: threads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from threadloom.errors import (
    ActiveRunError,
    InvalidInputError,
    InvalidMetadataError,
    ThreadAlreadyExistsError,
    ThreadNotFoundError,
)
from threadloom.models import Message, MessageStatus, RunStatus, Thread
from threadloom.store import KEEP, ThreadStore
from threadloom.testing._stage import (
    LIVE,
    NOT_TEXT,
    TERMINAL,
    TEXTS,
    Stage,
    new_run,
    new_thread,
    picture,
    say,
    scribble,
    working_run,
)

__all__ = ["BAD_METADATA", "ThreadConformance", "increment"]

AT_THE_LIMITS = {("ä" * 62 + f"{n:02}"): "ö" * 512 for n in range(16)}

BAD_METADATA: dict[str, Any] = {
    "17_pairs": {str(n): "" for n in range(17)},
    "key_of_65": {"k" * 65: ""},
    "value_of_513": {"k": "v" * 513},
    "number_as_value": {"k": 1},
    "true_as_value": {"k": True},
    "none_as_value": {"k": None},
    "number_as_key": {1: "v"},
    "a_list": ["k", "v"],
    "a_text": "k",
}


def increment(metadata: dict[str, Any]) -> Mapping[str, str]:
    """Count one more: a change that is lost where two of them come between reading and writing."""
    return metadata | {"count": str(int(metadata.get("count", "0")) + 1)}


class ThreadConformance(Stage):
    """What a store does with threads."""

    async def test_creating_a_thread_returns_it_as_written(self, store: ThreadStore) -> None:
        thread = Thread.new(metadata={"topic": "coffee"}, tool_resources={"file_search": {"vector_store_ids": ["a"]}})
        assert await store.create_thread(thread) == thread
        async for view in self.views(store):
            assert await view.get_thread(thread.id) == thread

    async def test_a_store_without_threads_lists_none(self, store: ThreadStore) -> None:
        async for view in self.views(store):
            assert list(await view.list_threads()) == []
            assert list(await view.list_thread_ids()) == []

    async def test_threads_are_listed_in_the_order_of_their_ids(self, store: ThreadStore) -> None:
        for name in ("b", "B", "a", "10", "9", "a-1", "a_1", "a" * 128):
            await store.create_thread(Thread.new(id=name))
        async for view in self.views(store):
            ids = list(await view.list_thread_ids())
            assert ids == ["10", "9", "B", "a", "a-1", "a_1", "a" * 128, "b"]
            assert [thread.id for thread in await view.list_threads()] == ids

    async def test_creating_a_thread_on_a_taken_id_overwrites_nothing(self, store: ThreadStore) -> None:
        thread = await new_thread(store, metadata={"was": "here"})
        await say(store, thread.id, "hello")
        before = await picture(store)
        with pytest.raises(ThreadAlreadyExistsError) as caught:
            await store.create_thread(Thread.new(id=thread.id, metadata={"came": "late"}))
        assert caught.value.thread_id == thread.id
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_of_20_who_create_the_same_thread_one_succeeds(self, store: ThreadStore) -> None:
        async with self.beside(store) as other:
            attempts = (
                (store, other)[n % 2].create_thread(Thread.new(id="thread_one", metadata={"by": str(n)}))
                for n in range(20)
            )
            results = await asyncio.gather(*attempts, return_exceptions=True)
        made = [result for result in results if isinstance(result, Thread)]
        assert len(made) == 1
        assert all(isinstance(result, Thread | ThreadAlreadyExistsError) for result in results)
        async for view in self.views(store):
            assert await view.get_thread("thread_one") == made[0]

    async def test_metadata_up_to_the_limits_is_kept(self, store: ThreadStore) -> None:
        thread = await new_thread(store, metadata=AT_THE_LIMITS)
        async for view in self.views(store):
            assert (await view.get_thread(thread.id)).metadata == AT_THE_LIMITS

    @pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
    async def test_any_text_comes_back_from_metadata(self, store: ThreadStore, text: str) -> None:
        metadata = {text[:30]: text[:500]}
        thread = await new_thread(store, metadata=metadata)
        async for view in self.views(store):
            assert (await view.get_thread(thread.id)).metadata == metadata

    @pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
    async def test_a_thread_with_bad_metadata_is_not_created(self, store: ThreadStore, metadata: Any) -> None:
        with pytest.raises(InvalidMetadataError):
            await store.create_thread(attrs.evolve(Thread.new(id="bad"), metadata=metadata))
        async for view in self.views(store):
            assert list(await view.list_thread_ids()) == []
            with pytest.raises(ThreadNotFoundError):
                await view.get_thread("bad")

    @pytest.mark.parametrize(
        "resources",
        [
            {"text": NOT_TEXT},
            {"not json": NotImplemented},
            {"a set": {1}},
            {1: "a number as key"},
            {"too large": 2**70},
        ],
        ids=str,
    )
    async def test_g1_a_thread_that_is_no_json_leaves_nothing(self, store: ThreadStore, resources: Any) -> None:
        with pytest.raises(InvalidInputError):
            await store.create_thread(Thread.new(id="bad", tool_resources=resources))
        async for view in self.views(store):
            assert list(await view.list_thread_ids()) == []
        async with self.fresh(store) as again:
            await again.create_thread(Thread.new(id="bad"))

    @pytest.mark.parametrize(
        ("change", "metadata"),
        [
            ({"new": "value"}, {"new": "value"}),
            (None, {}),
            ({}, {}),
            (lambda old: old | {"new": "value"}, {"old": "value", "new": "value"}),
            (lambda old: old.clear() or old, {}),
        ],
        ids=["mapping", "none", "empty", "function", "function_that_changes_its_argument"],
    )
    async def test_updating_a_thread_replaces_its_metadata(
        self, store: ThreadStore, change: Any, metadata: dict[str, str]
    ) -> None:
        thread = await new_thread(store, metadata={"old": "value"}, tool_resources={"kept": {}})
        written = await store.update_thread(thread.id, metadata=change)
        assert written == attrs.evolve(thread, metadata=metadata)
        async for view in self.views(store):
            assert await view.get_thread(thread.id) == written

    @pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
    @pytest.mark.parametrize("by_function", [False, True], ids=["mapping", "function"])
    async def test_updating_a_thread_with_bad_metadata_changes_nothing(
        self, store: ThreadStore, metadata: Any, *, by_function: bool
    ) -> None:
        thread = await new_thread(store, metadata={"old": "value"})
        with pytest.raises(InvalidMetadataError):
            await store.update_thread(thread.id, metadata=(lambda _: metadata) if by_function else metadata)
        async for view in self.views(store):
            assert await view.get_thread(thread.id) == thread

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({}, {}),
            ({"metadata": KEEP, "tool_resources": KEEP}, {}),
            ({"tool_resources": {"new": {}}}, {"tool_resources": {"new": {}}}),
            ({"tool_resources": {}}, {"tool_resources": {}}),
            ({"tool_resources": None}, {"tool_resources": None}),
            ({"metadata": None, "tool_resources": KEEP}, {"metadata": {}}),
            ({"metadata": {}, "tool_resources": None}, {"metadata": {}, "tool_resources": None}),
        ],
        ids=str,
    )
    async def test_updating_a_thread_changes_what_is_given_and_keeps_the_rest(
        self, store: ThreadStore, change: Any, expected: Any
    ) -> None:
        thread = await new_thread(store, metadata={"old": "value"}, tool_resources={"old": {}}, tenant="acme")
        written = await store.update_thread(thread.id, **change)
        assert written == attrs.evolve(thread, **expected)
        async for view in self.views(store):
            assert await view.get_thread(thread.id) == written

    @pytest.mark.parametrize(
        "resources", [{"text": NOT_TEXT}, {"a set": {1}}, {"n": float("nan")}, {"too large": 2**70}], ids=str
    )
    async def test_g1_updating_a_thread_with_what_is_no_json_changes_nothing(
        self, store: ThreadStore, resources: Any
    ) -> None:
        thread = await new_thread(store, metadata={"old": "value"}, tool_resources={"old": {}})
        with pytest.raises(InvalidInputError):
            await store.update_thread(thread.id, metadata={"new": "value"}, tool_resources=resources)
        async for view in self.views(store):
            assert await view.get_thread(thread.id) == thread

    async def test_g4_a_thread_is_created_with_its_first_messages_in_their_order(self, store: ThreadStore) -> None:
        thread = Thread.new()
        given = [Message.user(thread.id, "one"), Message.assistant(thread.id, "two"), Message.user(thread.id, "three")]
        assert await store.create_thread(thread, messages=(message for message in given)) == thread
        await say(store, thread.id, "four")
        async for view in self.views(store):
            messages = await view.list_messages(thread.id)
            assert list(messages)[:3] == given
            assert [message.text for message in messages] == ["one", "two", "three", "four"]
            assert [message.text for message in await view.list_messages(thread.id, after=given[0].id, limit=1)] == [
                "two"
            ]

    @pytest.mark.parametrize(
        "changes",
        [
            {"id": "../bad"},
            {"id": None},
            {"thread_id": "thread_other"},
            {"run_id": "run_1"},
            {"status": MessageStatus.IN_PROGRESS},
            {"metadata": {"k": 1}},
            {"metadata": {"k": NOT_TEXT}},
            {"attachments": ({"file_id": {1}},)},
        ],
        ids=str,
    )
    async def test_g1_a_thread_with_a_message_that_cannot_be_kept_is_not_created(
        self, store: ThreadStore, changes: Any
    ) -> None:
        good = Message.user("thread_bad", "hello")
        bad: list[Any] = [attrs.evolve(good, **changes), {"role": "user", "content": "hello"}, "hello"]
        for messages in ([good, each] for each in bad):
            with pytest.raises(InvalidInputError):
                await store.create_thread(Thread.new(id="thread_bad"), messages=messages)
        async for view in self.views(store):
            assert list(await view.list_thread_ids()) == []
        thread = await store.create_thread(Thread.new(id="thread_bad"), messages=[good])
        async for view in self.views(store):
            assert list(await view.list_messages(thread.id)) == [good]

    async def test_g1_a_thread_on_a_taken_id_brings_no_messages(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        await say(store, thread.id, "hello")
        before = await picture(store)
        with pytest.raises(ThreadAlreadyExistsError):
            await store.create_thread(thread, messages=[Message.user(thread.id, "late")])
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_g1_an_update_whose_function_raises_changes_nothing(self, store: ThreadStore) -> None:
        thread = await new_thread(store, metadata={"old": "value"})

        def fail(metadata: dict[str, Any]) -> Mapping[str, str]:
            metadata["half"] = "done"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await store.update_thread(thread.id, metadata=fail)
        async for view in self.views(store):
            assert await view.get_thread(thread.id) == thread
        async with self.fresh(store) as again:
            assert (await again.update_thread(thread.id, metadata={"still": "works"})).metadata == {"still": "works"}

    async def test_g1_eight_tasks_that_count_in_a_thread_lose_nothing(self, store: ThreadStore) -> None:
        thread = await new_thread(store)

        async def count(store: ThreadStore) -> None:
            for _ in range(50):
                await store.update_thread(thread.id, metadata=increment)

        async with self.beside(store) as other, asyncio.TaskGroup() as tasks:
            for n in range(8):
                tasks.create_task(count((store, other)[n % 2]))
        async for view in self.views(store):
            assert (await view.get_thread(thread.id)).metadata == {"count": "400"}

    async def test_a_thread_is_deleted_with_all_that_is_in_it(self, store: ThreadStore) -> None:
        kept = await new_thread(store)
        thread = await new_thread(store)
        await say(store, thread.id, "one", "two")
        await new_run(store, thread.id, status=RunStatus.COMPLETED)
        await store.delete_thread(thread.id)
        async for view in self.views(store):
            assert list(await view.list_threads()) == [kept]
            with pytest.raises(ThreadNotFoundError):
                await view.get_thread(thread.id)
            with pytest.raises(ThreadNotFoundError):
                await view.list_messages(thread.id)
            with pytest.raises(ThreadNotFoundError):
                await view.list_runs(thread.id)

    async def test_a_thread_that_is_made_anew_has_nothing_of_the_old(self, store: ThreadStore) -> None:
        thread = await new_thread(store, metadata={"old": "value"})
        await say(store, thread.id, "one", "two")
        old = await new_run(store, thread.id, status=RunStatus.COMPLETED)
        await store.delete_thread(thread.id)
        await store.create_thread(Thread.new(id=thread.id))
        await say(store, thread.id, "three")
        run = await store.create_run(thread.id, old)
        async for view in self.views(store):
            assert (await view.get_thread(thread.id)).metadata == {}
            assert [message.text for message in await view.list_messages(thread.id)] == ["three"]
            assert list(await view.list_runs(thread.id)) == [run]
            assert list(await view.list_steps(thread.id, run.id)) == []

    @pytest.mark.parametrize("status", LIVE)
    async def test_a_thread_with_an_active_run_is_not_deleted(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store)
        await store.force_update_run_status(run.thread_id, run.id, status)
        before = await picture(store)
        with pytest.raises(ActiveRunError) as caught:
            await store.delete_thread(run.thread_id)
        assert (caught.value.thread_id, caught.value.run_id) == (run.thread_id, run.id)
        async for view in self.views(store):
            assert await picture(view) == before

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_a_thread_whose_runs_are_terminal_is_deleted(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store)
        await store.force_update_run_status(run.thread_id, run.id, status)
        await store.delete_thread(run.thread_id)
        async for view in self.views(store):
            assert list(await view.list_thread_ids()) == []

    async def test_a_thread_is_deleted_by_force_while_a_run_is_at_work(self, store: ThreadStore) -> None:
        work = await working_run(store, "half a ")
        await store.delete_thread(work.run.thread_id, force=True)
        assert await store.try_claim_run("worker_2") is None
        async for view in self.views(store):
            assert list(await view.list_thread_ids()) == []
            with pytest.raises(ThreadNotFoundError):
                await view.get_run(work.run.thread_id, work.run.id)

    async def test_a_deleted_thread_cannot_be_deleted_again(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        await store.delete_thread(thread.id)
        async for view in self.views(store):
            for force in (False, True):
                with pytest.raises(ThreadNotFoundError):
                    await view.delete_thread(thread.id, force=force)

    async def test_a_thread_handed_in_or_out_is_not_the_one_that_is_kept(self, store: ThreadStore) -> None:
        metadata = {"as": "written"}
        resources: dict[str, Any] = {"list": [1]}
        thread = attrs.evolve(Thread.new(tool_resources=resources), metadata=metadata)
        returned = await store.create_thread(thread)
        handed_out = [returned, await store.get_thread(thread.id), (await store.list_threads())[0]]
        updated = await store.update_thread(thread.id, metadata=metadata)
        metadata["changed"] = "in"
        resources["list"].append(2)
        for out in (*handed_out, updated):
            assert out.tool_resources is not None
            scribble(out.metadata)
            out.tool_resources["list"].append(3)
        async for view in self.views(store):
            kept = await view.get_thread(thread.id)
            assert kept.metadata == {"as": "written"}
            assert kept.tool_resources == {"list": [1]}
