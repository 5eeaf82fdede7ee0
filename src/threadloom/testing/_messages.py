"""Conformance: messages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import attrs
import pytest

from threadloom.errors import (
    InvalidInputError,
    InvalidMetadataError,
    MessageNotFoundError,
    RunNotFoundError,
)
from threadloom.models import (
    Content,
    ImageFileContent,
    ImageUrlContent,
    IncompleteDetails,
    Message,
    MessageRole,
    MessageStatus,
    RefusalContent,
    RunStatus,
    TextContent,
    UnknownObject,
)
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import (
    NOT_TEXT,
    TEXTS,
    Stage,
    every_event,
    names,
    new_claim,
    new_run,
    new_thread,
    picture,
    say,
    scribble,
)
from threadloom.testing._threads import BAD_METADATA, increment

__all__ = ["MessageConformance"]

CONTENT: dict[str, tuple[Content, ...]] = {
    "none": (),
    "two_texts": (TextContent("one"), TextContent("two", ({"type": "file_path", "start_index": 0},))),
    "pictures": (ImageFileContent("file_1", "low"), ImageUrlContent("https://example.org/a.png")),
    "refusal": (RefusalContent("No."),),
    "unknown": (UnknownObject({"type": "audio", "audio": {"data": "AAAA"}}),),
}


async def texts(store: ThreadStore, thread_id: str, **page: Any) -> list[str]:
    """Return the texts of messages."""
    return [message.text for message in await store.list_messages(thread_id, **page)]


class MessageConformance(Stage):
    """What a store does with messages."""

    async def test_appending_a_message_returns_it_as_written(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        message = Message.user(thread.id, "hello", metadata={"from": "me"}, attachments=[{"file_id": "file_1"}])
        assert await store.append_message(thread.id, message) == message
        async for view in self.views(store):
            assert await view.get_message(thread.id, message.id) == message
            assert list(await view.list_messages(thread.id)) == [message]

    async def test_a_thread_without_messages_lists_none(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        async for view in self.views(store):
            page = await view.list_messages(thread.id)
            assert (list(page), page.has_more, page.damaged) == ([], False, ())

    @pytest.mark.parametrize("content", CONTENT.values(), ids=CONTENT)
    async def test_every_kind_of_content_comes_back(self, store: ThreadStore, content: tuple[Content, ...]) -> None:
        thread = await new_thread(store)
        message = await store.append_message(thread.id, Message.user(thread.id, content))
        assert message.content == content
        async for view in self.views(store):
            assert list(await view.list_messages(thread.id)) == [message]

    @pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
    async def test_any_text_comes_back(self, store: ThreadStore, text: str) -> None:
        thread = await new_thread(store)
        await say(store, thread.id, "before", text, "after")
        async for view in self.views(store):
            assert await texts(view, thread.id) == ["before", text, "after"]

    async def test_every_field_of_a_message_comes_back(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        message = Message(
            id="m",
            created_at=0,
            thread_id=thread.id,
            role=MessageRole.ASSISTANT,
            content=(TextContent("cut"),),
            status=MessageStatus.INCOMPLETE,
            assistant_id="asst_1",
            run_id="run_elsewhere",
            attachments=({"file_id": "file_1", "tools": [{"type": "code_interpreter"}]},),
            metadata={"k": "v"},
            incomplete_at=-5,
            incomplete_details=IncompleteDetails("content_filter"),
        )
        await store.append_message(thread.id, message)
        async for view in self.views(store):
            assert await view.get_message(thread.id, "m") == message

    @pytest.mark.parametrize(
        "content",
        [
            (TextContent(NOT_TEXT),),
            (TextContent("fine", ({"not json": NotImplemented},)),),
            (UnknownObject({"type": "audio", "data": b"bytes"}),),
        ],
        ids=["surrogate", "object", "bytes"],
    )
    async def test_g1_a_message_that_is_no_json_leaves_nothing(self, store: ThreadStore, content: Any) -> None:
        run = await new_run(store)
        await say(store, run.thread_id, "before")
        before = await picture(store)
        for run_id in (None, run.id):
            with pytest.raises(InvalidInputError):
                await store.append_message(run.thread_id, Message.assistant(run.thread_id, content, run_id=run_id))
        async for view in self.views(store):
            assert await picture(view) == before
        async with self.fresh(store) as again:
            await say(again, run.thread_id, "after")
            assert await texts(again, run.thread_id) == ["before", "after"]

    @pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
    async def test_a_message_with_bad_metadata_is_not_appended(self, store: ThreadStore, metadata: Any) -> None:
        thread = await new_thread(store)
        with pytest.raises(InvalidMetadataError):
            await store.append_message(thread.id, attrs.evolve(Message.user(thread.id, "hello"), metadata=metadata))
        async for view in self.views(store):
            assert list(await view.list_messages(thread.id)) == []

    async def test_a_message_that_is_not_whole_is_not_appended(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        message = attrs.evolve(Message.user(thread.id, "half"), status=MessageStatus.IN_PROGRESS)
        with pytest.raises(InvalidInputError):
            await store.append_message(thread.id, message)
        async for view in self.views(store):
            assert list(await view.list_messages(thread.id)) == []

    async def test_a_message_of_another_thread_is_not_appended(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        other = await new_thread(store)
        with pytest.raises(InvalidInputError):
            await store.append_message(thread.id, Message.user(other.id, "lost"))
        async for view in self.views(store):
            assert await texts(view, thread.id) == await texts(view, other.id) == []

    async def test_a_message_that_is_appended_twice_is_there_twice(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        (message,) = await say(store, thread.id, "again")
        await store.append_message(thread.id, message)
        async for view in self.views(store):
            assert list(await view.list_messages(thread.id)) == [message, message]
            assert await view.get_message(thread.id, message.id) == message

    async def test_a_message_of_a_run_is_an_event_of_it(self, store: ThreadStore) -> None:
        run = await new_run(store)
        message = Message.assistant(run.thread_id, "hello", run_id=run.id)
        await store.append_message(run.thread_id, message)
        async for view in self.views(store):
            events = await every_event(view, run)
            assert names(events) == [
                "run.created",
                "run.queued",
                "message.created",
                "message.in_progress",
                "message.completed",
            ]
            assert events[-1].data == message

    async def test_g4_messages_keep_their_order_within_one_second_and_when_the_clock_runs_backwards(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        thread = await new_thread(store)
        ids = [f"msg_{9 - n}" for n in range(9)]
        for n, message_id in enumerate(ids):
            message = Message.user(thread.id, "")
            created_at = clock.time_ns() // 1_000_000_000
            await store.append_message(thread.id, attrs.evolve(message, id=message_id, created_at=created_at))
            if n % 3 == 2:
                clock.step_wall_clock(timedelta(hours=-1))
        async for view in self.views(store):
            assert [message.id for message in await view.list_messages(thread.id)] == ids
            newest_first = await view.list_messages(thread.id, order="desc")
            assert [message.id for message in newest_first] == ids[::-1]

    async def test_g4_messages_of_tasks_that_race_are_all_there_and_each_tasks_in_its_order(
        self, store: ThreadStore
    ) -> None:
        thread = await new_thread(store)

        async def speak(store: ThreadStore, name: str) -> None:
            for n in range(20):
                await say(store, thread.id, f"{name} {n:02}")

        async with self.beside(store) as other, asyncio.TaskGroup() as tasks:
            for name in "abcdefgh":
                tasks.create_task(speak((store, other)[name < "e"], name))
        async for view in self.views(store):
            said = await texts(view, thread.id)
            assert len(said) == 160
            for name in "abcdefgh":
                assert [text for text in said if text[0] == name] == [f"{name} {n:02}" for n in range(20)]

    async def test_messages_are_narrowed_to_those_of_a_run(self, store: ThreadStore) -> None:
        run = await new_run(store)
        other = await new_run(store, run.thread_id)
        for n, run_id in enumerate([None, run.id, other.id, run.id, None]):
            await store.append_message(run.thread_id, Message.assistant(run.thread_id, str(n), run_id=run_id))
        async for view in self.views(store):
            assert await texts(view, run.thread_id, run_id=run.id) == ["1", "3"]
            assert await texts(view, run.thread_id, run_id=run.id, order="desc", limit=1) == ["3"]
            assert await texts(view, run.thread_id, run_id="run_unheard_of") == []

    async def test_a_cursor_may_lie_outside_what_a_run_wrote(self, store: ThreadStore) -> None:
        run = await new_run(store)
        ids = []
        for n, run_id in enumerate([run.id, None, run.id]):
            message = Message.assistant(run.thread_id, str(n), run_id=run_id)
            ids.append((await store.append_message(run.thread_id, message)).id)
        async for view in self.views(store):
            assert await texts(view, run.thread_id, run_id=run.id, after=ids[1]) == ["2"]
            assert await texts(view, run.thread_id, run_id=run.id, before=ids[1]) == ["0"]

    async def test_a_run_sees_what_was_there_when_it_was_created_and_the_replies_up_to_its_own(
        self, store: ThreadStore
    ) -> None:
        thread = await new_thread(store)

        async def reply(run_id: str, text: str) -> None:
            await store.append_message(thread.id, Message.assistant(thread.id, text, run_id=run_id))

        await say(store, thread.id, "question 1")
        first = await new_run(store, thread.id)
        await say(store, thread.id, "question 2")
        second = await new_run(store, thread.id)
        await say(store, thread.id, "question 3")
        third = await new_run(store, thread.id)
        await reply(first.id, "answer 1")
        await reply(second.id, "answer 2")
        await reply(third.id, "answer 3")
        await say(store, thread.id, "too late")
        async for view in self.views(store):
            assert await texts(view, thread.id, seen_by=first.id) == ["question 1", "answer 1"]
            assert await texts(view, thread.id, seen_by=second.id) == [
                *("question 1", "question 2", "answer 1", "answer 2"),
            ]
            assert await texts(view, thread.id, seen_by=third.id) == [
                *("question 1", "question 2", "question 3", "answer 1", "answer 2", "answer 3"),
            ]
            assert await texts(view, thread.id, seen_by=third.id, run_id=first.id) == ["answer 1"]
            assert await texts(view, thread.id, seen_by=second.id, order="desc", limit=2) == ["answer 2", "answer 1"]

    async def test_what_a_run_sees_does_not_move_when_messages_are_deleted(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        messages = await say(store, thread.id, "one", "two", "three")
        run = await new_run(store, thread.id)
        await say(store, thread.id, "too late")
        await store.delete_message(thread.id, messages[0].id)
        async for view in self.views(store):
            assert await texts(view, thread.id, seen_by=run.id) == ["two", "three"]

    async def test_what_an_unknown_run_sees_is_an_error(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        async for view in self.views(store):
            with pytest.raises(RunNotFoundError):
                await view.list_messages(thread.id, seen_by="run_unheard_of")

    async def test_what_a_worker_has_only_announced_is_no_message_yet(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        message = Message.assistant(claim.run.thread_id, "", run_id=claim.run.id)
        announced = attrs.evolve(message, status=MessageStatus.IN_PROGRESS)
        await store.write_run(claim.lease, RunWrite(items=(announced,)))
        async for view in self.views(store):
            assert list(await view.list_messages(claim.run.thread_id)) == []
            with pytest.raises(MessageNotFoundError):
                await view.get_message(claim.run.thread_id, message.id)

    @pytest.mark.parametrize(
        ("change", "metadata"),
        [
            ({"new": "value"}, {"new": "value"}),
            (None, {}),
            (lambda old: old | {"new": "value"}, {"old": "value", "new": "value"}),
        ],
        ids=["mapping", "none", "function"],
    )
    async def test_updating_a_message_replaces_its_metadata_and_keeps_its_place(
        self, store: ThreadStore, change: Any, metadata: dict[str, str]
    ) -> None:
        thread = await new_thread(store)
        await say(store, thread.id, "before")
        message = await store.append_message(thread.id, Message.user(thread.id, "this", metadata={"old": "value"}))
        await say(store, thread.id, "after")
        written = await store.update_message(thread.id, message.id, metadata=change)
        assert written == attrs.evolve(message, metadata=metadata)
        async for view in self.views(store):
            assert await view.get_message(thread.id, message.id) == written
            assert list(await view.list_messages(thread.id))[1] == written
            assert await texts(view, thread.id) == ["before", "this", "after"]

    @pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
    async def test_updating_a_message_with_bad_metadata_changes_nothing(
        self, store: ThreadStore, metadata: Any
    ) -> None:
        thread = await new_thread(store)
        (message,) = await say(store, thread.id, "hello")
        for change in (metadata, lambda _: metadata):
            with pytest.raises(InvalidMetadataError):
                await store.update_message(thread.id, message.id, metadata=change)
        async for view in self.views(store):
            assert await view.get_message(thread.id, message.id) == message

    async def test_g1_a_message_update_whose_function_raises_changes_nothing(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        (message,) = await say(store, thread.id, "hello")

        def fail(_: dict[str, Any]) -> Mapping[str, str]:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await store.update_message(thread.id, message.id, metadata=fail)
        async for view in self.views(store):
            assert list(await view.list_messages(thread.id)) == [message]

    async def test_g1_eight_tasks_that_count_in_a_message_lose_nothing(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        (message,) = await say(store, thread.id, "hello")

        async def count(store: ThreadStore) -> None:
            for _ in range(50):
                await store.update_message(thread.id, message.id, metadata=increment)

        async with self.beside(store) as other, asyncio.TaskGroup() as tasks:
            for n in range(8):
                tasks.create_task(count((store, other)[n % 2]))
        async for view in self.views(store):
            assert (await view.get_message(thread.id, message.id)).metadata == {"count": "400"}

    async def test_a_deleted_message_is_gone_and_the_others_stay(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        messages = await say(store, thread.id, "one", "two", "three")
        await store.update_message(thread.id, messages[1].id, metadata={"soon": "gone"})
        await store.delete_message(thread.id, messages[1].id)
        async for view in self.views(store):
            assert await texts(view, thread.id) == ["one", "three"]
            with pytest.raises(MessageNotFoundError) as caught:
                await view.get_message(thread.id, messages[1].id)
            assert (caught.value.thread_id, caught.value.message_id) == (thread.id, messages[1].id)
            with pytest.raises(MessageNotFoundError):
                await view.update_message(thread.id, messages[1].id, metadata={"back": "again"})
            with pytest.raises(MessageNotFoundError):
                await view.delete_message(thread.id, messages[1].id)

    async def test_g4_a_deleted_message_still_serves_as_a_cursor(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        messages = await say(store, thread.id, "one", "two", "three", "four")
        await store.delete_message(thread.id, messages[1].id)
        async for view in self.views(store):
            cursor = messages[1].id
            assert await texts(view, thread.id, after=cursor) == ["three", "four"]
            assert await texts(view, thread.id, before=cursor) == ["one"]
            assert await texts(view, thread.id, after=cursor, order="desc") == ["one"]
            assert await texts(view, thread.id, before=cursor, order="desc", limit=1) == ["three"]

    async def test_a_message_of_a_terminal_run_may_be_brought_in(self, store: ThreadStore) -> None:
        run = await new_run(store, status=RunStatus.COMPLETED)
        message = Message.assistant(run.thread_id, "history", run_id=run.id)
        await store.append_message(run.thread_id, message)
        async for view in self.views(store):
            assert list(await view.list_messages(run.thread_id, run_id=run.id)) == [message]
            assert await view.get_run(run.thread_id, run.id) == run

    async def test_a_message_handed_in_or_out_is_not_the_one_that_is_kept(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        metadata = {"as": "written"}
        attachment = {"file_id": "file_1"}
        message = attrs.evolve(Message.user(thread.id, "hello"), metadata=metadata, attachments=(attachment,))
        handed_out = [
            await store.append_message(thread.id, message),
            await store.get_message(thread.id, message.id),
            (await store.list_messages(thread.id))[0],
            await store.update_message(thread.id, message.id, metadata=metadata),
        ]
        metadata["changed"] = attachment["changed"] = "in"
        for out in handed_out:
            scribble(out.metadata, *out.attachments)
        async for view in self.views(store):
            kept = await view.get_message(thread.id, message.id)
            assert kept.metadata == {"as": "written"}
            assert kept.attachments == ({"file_id": "file_1"},)
