"""Conformance: idempotency keys, under which a create is done once however often it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
from attrs import frozen

from threadloom.errors import ConflictError, IdempotencyKeyReusedError, InvalidInputError
from threadloom.models import Assistant, Message, Run, RunStatus, Thread
from threadloom.store import ThreadStore
from threadloom.testing._stage import NOT_TEXT, Stage, new_thread, picture, scribble
from threadloom.validation import IdempotencyKey

__all__ = ["KeyConformance"]

KEY = IdempotencyKey("key", "what is asked for")
OTHER = IdempotencyKey("key", "something else")


@frozen
class Kind:
    """One of the things that are created: made anew in the thread, under a key or none; and changed, and read."""

    create: Callable[..., Awaitable[Any]]
    change: Callable[[ThreadStore, Any], Awaitable[object]]
    ids: Callable[[ThreadStore, str], Awaitable[list[str]]]

    async def made(self, store: ThreadStore, thread_id: str, old: list[str]) -> list[str]:
        """Return the ids of what was made besides ``old``."""
        return [id_ for id_ in await self.ids(store, thread_id) if id_ not in old]


async def _assistants(store: ThreadStore, _: str) -> list[str]:
    return [assistant.id for assistant in await store.list_assistants()]


async def _threads(store: ThreadStore, _: str) -> list[str]:
    return list(await store.list_thread_ids())


async def _messages(store: ThreadStore, thread_id: str) -> list[str]:
    return [message.id for message in await store.list_messages(thread_id)]


async def _runs(store: ThreadStore, thread_id: str) -> list[str]:
    return [run.id for run in await store.list_runs(thread_id)]


def _assistant(store: ThreadStore, _: str, key: Any, **changes: Any) -> Awaitable[Any]:
    return store.create_assistant(attrs.evolve(Assistant.new(model="any", metadata={"k": "v"}), **changes), key=key)


def _thread(store: ThreadStore, _: str, key: Any, **changes: Any) -> Awaitable[Any]:
    return store.create_thread(attrs.evolve(Thread.new(metadata={"k": "v"}), **changes), key=key)


def _message(store: ThreadStore, thread_id: str, key: Any, **changes: Any) -> Awaitable[Any]:
    message = Message.user(thread_id, "hello", metadata={"k": "v"})
    return store.append_message(thread_id, attrs.evolve(message, **changes), key=key)


def _run(store: ThreadStore, thread_id: str, key: Any, **changes: Any) -> Awaitable[Any]:
    run = Run.new(thread_id, model="any", metadata={"k": "v"})
    return store.create_run(thread_id, attrs.evolve(run, **changes), key=key)


KINDS = {
    "assistant": Kind(
        _assistant,
        lambda store, made: store.update_assistant(made.id, lambda old: attrs.evolve(old, metadata={"new": "value"})),
        _assistants,
    ),
    "thread": Kind(_thread, lambda store, made: store.update_thread(made.id, metadata={"new": "value"}), _threads),
    "message": Kind(
        _message,
        lambda store, made: store.update_message(made.thread_id, made.id, metadata={"new": "value"}),
        _messages,
    ),
    "run": Kind(
        _run,
        lambda store, made: store.force_update_run_status(made.thread_id, made.id, RunStatus.FAILED),
        _runs,
    ),
}
for_every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)

GOOD_KEYS = ["k", "K", " ", "..", "../../x", "a/b", "a\\b", "\0", "two\nlines", "ä", "a\u0308", "☕" * 255, "k" * 255]
BAD_KEYS: dict[str, Any] = {
    "empty": IdempotencyKey("", ""),
    "too_long": IdempotencyKey("k" * 256, ""),
    "no_text": IdempotencyKey(NOT_TEXT, ""),
    "number": IdempotencyKey(7, ""),  # type: ignore[arg-type]
    "none": IdempotencyKey(None, ""),  # type: ignore[arg-type]
    "fingerprint_no_text": IdempotencyKey("key", NOT_TEXT),
    "fingerprint_none": IdempotencyKey("key", None),  # type: ignore[arg-type]
    "a_text": "key",
}


class KeyConformance(Stage):
    """What a store does with idempotency keys."""

    @for_every_kind
    async def test_a_create_that_is_sent_again_writes_nothing_and_returns_what_was_made(
        self, store: ThreadStore, kind: Kind
    ) -> None:
        thread = await new_thread(store)
        old = await kind.ids(store, thread.id)
        made = await kind.create(store, thread.id, KEY)
        before = await picture(store)
        async for view in self.views(store):
            assert await kind.create(view, thread.id, KEY) == made
            assert await kind.made(view, thread.id, old) == [made.id]
            assert await picture(view) == before

    @for_every_kind
    async def test_what_a_key_stands_for_is_returned_as_it_was_made(self, store: ThreadStore, kind: Kind) -> None:
        thread = await new_thread(store)
        made = await kind.create(store, thread.id, KEY)
        await kind.change(store, made)
        before = await picture(store)
        async for view in self.views(store):
            again = await kind.create(view, thread.id, KEY)
            assert again == made
            scribble(again.metadata)
            assert await picture(view) == before

    @for_every_kind
    async def test_a_key_with_another_fingerprint_is_refused_and_changes_nothing(
        self, store: ThreadStore, kind: Kind
    ) -> None:
        thread = await new_thread(store)
        old = await kind.ids(store, thread.id)
        made = await kind.create(store, thread.id, KEY)
        before = await picture(store)
        async for view in self.views(store):
            with pytest.raises(IdempotencyKeyReusedError) as caught:
                await kind.create(view, thread.id, OTHER)
            assert caught.value.key == "key"
            assert await kind.made(view, thread.id, old) == [made.id]
            assert await picture(view) == before
            assert await kind.create(view, thread.id, KEY) == made

    @for_every_kind
    async def test_g1_of_ten_creates_under_one_key_one_is_made(self, store: ThreadStore, kind: Kind) -> None:
        thread = await new_thread(store)
        old = await kind.ids(store, thread.id)
        async with self.beside(store) as other:
            creates = (kind.create((store, other)[n % 2], thread.id, KEY) for n in range(10))
            results = await asyncio.gather(*creates)
        assert results == results[:1] * 10
        async for view in self.views(store):
            assert await kind.made(view, thread.id, old) == [results[0].id]

    @for_every_kind
    async def test_g1_a_create_that_fails_leaves_no_key(self, store: ThreadStore, kind: Kind) -> None:
        thread = await new_thread(store)
        taken = await kind.create(store, thread.id, None)
        with pytest.raises(InvalidInputError):
            await kind.create(store, thread.id, KEY, metadata={"k": NOT_TEXT})
        with pytest.raises(InvalidInputError):
            await kind.create(store, thread.id, KEY, id="../bad")
        if kind is not KINDS["message"]:
            with pytest.raises(ConflictError):
                await kind.create(store, thread.id, KEY, id=taken.id)
        async for view in self.views(store):
            assert taken.id in await kind.ids(view, thread.id)
        made = await kind.create(store, thread.id, OTHER)
        async for view in self.views(store):
            assert await kind.create(view, thread.id, OTHER) == made

    @pytest.mark.parametrize("name", ["assistant", "thread", "run"])
    async def test_g1_what_could_not_be_read_again_is_not_made_and_leaves_no_key(
        self, store: ThreadStore, name: str
    ) -> None:
        thread, kind = await new_thread(store), KINDS[name]
        before = await kind.ids(store, thread.id)
        with pytest.raises(InvalidInputError):
            await kind.create(store, thread.id, KEY, created_at="today")
        async for view in self.views(store):
            assert await kind.ids(view, thread.id) == before
            assert not (await view.list_threads()).damaged
            assert not (await view.list_runs(thread.id)).damaged
            assert not (await view.list_assistants()).damaged
        await kind.create(store, thread.id, KEY)

    @for_every_kind
    async def test_creates_without_a_key_are_done_each_time(self, store: ThreadStore, kind: Kind) -> None:
        thread = await new_thread(store)
        old = await kind.ids(store, thread.id)
        made = [(await kind.create(store, thread.id, None)).id for _ in range(3)]
        async for view in self.views(store):
            assert sorted(await kind.made(view, thread.id, old)) == sorted(made)

    async def test_a_key_stands_by_itself_in_each_place(self, store: ThreadStore) -> None:
        first, second = await new_thread(store), await new_thread(store)
        creates: list[Callable[..., Awaitable[Any]]] = [_assistant, _thread, _message, _run]
        places = [*((create, first) for create in creates), (_message, second), (_run, second)]
        made = [
            await create(store, thread.id, IdempotencyKey("key", str(n))) for n, (create, thread) in enumerate(places)
        ]
        assert len({each.id for each in made}) == len(places)
        async for view in self.views(store):
            for n, (create, thread) in enumerate(places):
                assert await create(view, thread.id, IdempotencyKey("key", str(n))) == made[n]

    @for_every_kind
    async def test_any_text_up_to_its_limit_is_a_key_of_its_own(self, store: ThreadStore, kind: Kind) -> None:
        thread = await new_thread(store)
        made = [await kind.create(store, thread.id, IdempotencyKey(value, value)) for value in GOOD_KEYS]
        assert len({each.id for each in made}) == len(GOOD_KEYS)
        async for view in self.views(store):
            for value, each in zip(GOOD_KEYS, made, strict=True):
                assert await kind.create(view, thread.id, IdempotencyKey(value, value)) == each

    @for_every_kind
    @pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=BAD_KEYS)
    async def test_what_is_no_key_is_refused_and_nothing_is_made(
        self, store: ThreadStore, kind: Kind, bad: Any
    ) -> None:
        thread = await new_thread(store)
        old = await kind.ids(store, thread.id)
        with pytest.raises(InvalidInputError):
            await kind.create(store, thread.id, bad)
        async for view in self.views(store):
            assert await kind.made(view, thread.id, old) == []

    async def test_the_keys_of_a_thread_are_deleted_with_it(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        for create in (_message, _run):
            await create(store, thread.id, KEY)
        await store.delete_thread(thread.id, force=True)
        await store.create_thread(thread)
        made = [await create(store, thread.id, OTHER) for create in (_message, _run)]
        async for view in self.views(store):
            assert await _messages(view, thread.id) == [made[0].id]
            assert await _runs(view, thread.id) == [made[1].id]

    async def test_a_key_stands_also_for_what_was_deleted_since(self, store: ThreadStore) -> None:
        place = await new_thread(store)
        assistant, thread, message = [await create(store, place.id, KEY) for create in (_assistant, _thread, _message)]
        await store.delete_assistant(assistant.id)
        await store.delete_thread(thread.id)
        await store.delete_message(place.id, message.id)
        async for view in self.views(store):
            for create, made in ((_assistant, assistant), (_thread, thread), (_message, message)):
                assert await create(view, place.id, KEY) == made
            assert await _assistants(view, "") == []
            assert await _threads(view, "") == [place.id]
            assert await _messages(view, place.id) == []

    async def test_messages_that_come_with_a_create_are_not_appended_again(self, store: ThreadStore) -> None:
        thread = Thread.new()

        async def create(store: ThreadStore) -> tuple[Thread, Run]:
            messages = [Message.user(thread.id, "one"), Message.user(thread.id, "two")]
            made = await store.create_thread(thread, messages=messages, key=KEY)
            run = Run.new(thread.id, model="any")
            asked = [Message.user(thread.id, "three")]
            return made, await store.create_run(thread.id, run, messages=asked, key=KEY)

        made = await create(store)
        async for view in self.views(store):
            assert await create(view) == made
            assert [message.text for message in await view.list_messages(thread.id)] == ["one", "two", "three"]

    async def test_what_is_sent_again_is_not_refused_by_what_it_has_made(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        message = Message.user(thread.id, "hello")
        await store.append_message(thread.id, message, on_busy="reject", key=KEY)
        run = Run.new(thread.id, model="any")
        made = await store.create_run(thread.id, run, on_busy="reject", key=KEY)
        async for view in self.views(store):
            assert await view.append_message(thread.id, message, on_busy="reject", key=KEY) == message
            assert await view.create_run(thread.id, run, on_busy="reject", key=KEY) == made

    @pytest.mark.parametrize("way", ["interrupt", "rollback"])
    async def test_what_is_sent_again_stops_nobody(self, store: ThreadStore, way: Any) -> None:
        thread = await new_thread(store)
        run = Run.new(thread.id, model="any")
        made = await store.create_run(thread.id, run, on_busy=way, key=KEY)
        before = await picture(store)
        async for view in self.views(store):
            assert await view.create_run(thread.id, Run.new(thread.id, model="any"), on_busy=way, key=KEY) == made
            assert await picture(view) == before
