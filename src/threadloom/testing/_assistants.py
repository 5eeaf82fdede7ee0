"""Conformance: assistants."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

from threadloom.errors import (
    AssistantAlreadyExistsError,
    AssistantNotFoundError,
    InvalidInputError,
    InvalidMetadataError,
)
from threadloom.models import Assistant
from threadloom.store import ThreadStore
from threadloom.testing._stage import NOT_TEXT, TEXTS, Stage, new_run, new_thread, picture, scribble
from threadloom.testing._threads import BAD_METADATA, increment

__all__ = ["AssistantConformance"]


async def new_assistant(store: ThreadStore, **options: Any) -> Assistant:
    """Create an assistant."""
    return await store.create_assistant(Assistant.new(model="any", **options))


def renamed(assistant: Assistant) -> Assistant:
    """Change an assistant's name."""
    return attrs.evolve(assistant, name="renamed")


class AssistantConformance(Stage):
    """What a store does with assistants."""

    async def test_every_field_of_an_assistant_comes_back(self, store: ThreadStore) -> None:
        assistant = Assistant.new(
            model="a model",
            name="Barista",
            description="Brews.",
            instructions="Be\nkind.",
            tools=[{"type": "function", "function": {"name": "brew", "parameters": {"type": "object"}}}],
            tool_resources={"file_search": {"vector_store_ids": ["a"]}},
            metadata={"k": "v"},
            temperature=0.5,
            top_p=1,
            response_format={"type": "json_object"},
            reasoning_effort="low",
            tenant="acme",
        )
        assert await store.create_assistant(assistant) == assistant
        async for view in self.views(store):
            assert await view.get_assistant(assistant.id) == assistant
            assert list(await view.list_assistants()) == [assistant]

    async def test_an_assistant_is_made_under_the_id_that_old_code_knows(self, store: ThreadStore) -> None:
        await new_assistant(store, id="asst_abc123")
        async for view in self.views(store):
            assert (await view.get_assistant("asst_abc123")).model == "any"

    @pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
    async def test_any_text_comes_back_from_an_assistant(self, store: ThreadStore, text: str) -> None:
        assistant = await new_assistant(store, name=text[:256], instructions=text, tenant=text)
        async for view in self.views(store):
            assert await view.get_assistant(assistant.id) == assistant
            assert list(await view.list_assistants(tenant=text)) == [assistant]

    async def test_assistants_are_listed_in_the_order_of_their_ids(self, store: ThreadStore) -> None:
        for name in ("b", "B", "a", "10", "9", "a-1", "a_1", "a" * 128):
            await new_assistant(store, id=name)
        async for view in self.views(store):
            ids = [assistant.id for assistant in await view.list_assistants()]
            assert ids == ["10", "9", "B", "a", "a-1", "a_1", "a" * 128, "b"]

    async def test_an_assistant_and_a_thread_may_have_the_same_id(self, store: ThreadStore) -> None:
        thread = await new_thread(store, id="same")
        assistant = await new_assistant(store, id="same")
        await store.delete_thread("same")
        async for view in self.views(store):
            assert await view.get_assistant("same") == assistant
            assert list(await view.list_thread_ids()) == []
        assert await store.create_thread(thread) == thread
        await store.delete_assistant("same")
        async for view in self.views(store):
            assert await view.get_thread("same") == thread

    async def test_creating_an_assistant_on_a_taken_id_overwrites_nothing(self, store: ThreadStore) -> None:
        assistant = await new_assistant(store, metadata={"was": "here"})
        with pytest.raises(AssistantAlreadyExistsError) as caught:
            await new_assistant(store, id=assistant.id, metadata={"came": "late"})
        assert caught.value.assistant_id == assistant.id
        async for view in self.views(store):
            assert list(await view.list_assistants()) == [assistant]

    async def test_of_20_who_create_the_same_assistant_one_succeeds(self, store: ThreadStore) -> None:
        async with self.beside(store) as other:
            attempts = (new_assistant((store, other)[n % 2], id="one", name=str(n)) for n in range(20))
            results = await asyncio.gather(*attempts, return_exceptions=True)
        made = [result for result in results if isinstance(result, Assistant)]
        assert len(made) == 1
        assert all(isinstance(result, Assistant | AssistantAlreadyExistsError) for result in results)
        async for view in self.views(store):
            assert await view.get_assistant("one") == made[0]

    @pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
    async def test_an_assistant_with_bad_metadata_is_neither_created_nor_changed_to(
        self, store: ThreadStore, metadata: Any
    ) -> None:
        assistant = await new_assistant(store)
        with pytest.raises(InvalidMetadataError):
            await store.create_assistant(attrs.evolve(Assistant.new(model="any"), metadata=metadata))
        with pytest.raises(InvalidMetadataError):
            await store.update_assistant(assistant.id, lambda old: attrs.evolve(old, metadata=metadata))
        async for view in self.views(store):
            assert list(await view.list_assistants()) == [assistant]

    @pytest.mark.parametrize(
        "changes",
        [
            {"instructions": NOT_TEXT},
            {"temperature": float("nan")},
            {"tool_resources": {"a set": {1}}},
            {"tools": ({"too large": 2**70},)},
            {"response_format": {1: "a number as key"}},
        ],
        ids=str,
    )
    async def test_g1_an_assistant_that_is_no_json_leaves_nothing(self, store: ThreadStore, changes: Any) -> None:
        assistant = await new_assistant(store)
        with pytest.raises(InvalidInputError):
            await store.create_assistant(attrs.evolve(Assistant.new(model="any", id="bad"), **changes))
        with pytest.raises(InvalidInputError):
            await store.update_assistant(assistant.id, lambda old: attrs.evolve(old, **changes))
        async for view in self.views(store):
            assert list(await view.list_assistants()) == [assistant]
        await new_assistant(store, id="bad")

    async def test_updating_an_assistant_changes_it_to_what_the_function_makes_of_it(self, store: ThreadStore) -> None:
        assistant = await new_assistant(store, name="old", description="kept", metadata={"old": "value"})
        written = await store.update_assistant(
            assistant.id, lambda old: attrs.evolve(old, name="new", metadata={**old.metadata, "new": "value"})
        )
        assert written == attrs.evolve(assistant, name="new", metadata={"old": "value", "new": "value"})
        async for view in self.views(store):
            assert await view.get_assistant(assistant.id) == written

    async def test_g1_an_update_that_raises_changes_nothing_in_an_assistant(self, store: ThreadStore) -> None:
        assistant = await new_assistant(store, metadata={"old": "value"})

        def fail(old: Assistant) -> Assistant:
            scribble(old.metadata)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await store.update_assistant(assistant.id, fail)
        async for view in self.views(store):
            assert await view.get_assistant(assistant.id) == assistant
        assert (await store.update_assistant(assistant.id, renamed)).name == "renamed"

    async def test_g1_an_update_to_what_could_not_be_read_again_changes_nothing(self, store: ThreadStore) -> None:
        assistant = await new_assistant(store)
        hot: Any = "hot"
        with pytest.raises(InvalidInputError):
            await store.update_assistant(assistant.id, lambda old: attrs.evolve(old, temperature=hot))
        async for view in self.views(store):
            assert await view.get_assistant(assistant.id) == assistant

    async def test_an_update_that_makes_another_assistant_or_none_is_refused(self, store: ThreadStore) -> None:
        assistant = await new_assistant(store)
        changes: list[Any] = [
            lambda old: attrs.evolve(old, id="asst_other"),
            lambda old: attrs.evolve(old, id="../other"),
            lambda _: None,
            lambda _: {"id": assistant.id},
        ]
        for change in changes:
            with pytest.raises(InvalidInputError, match=assistant.id):
                await store.update_assistant(assistant.id, change)
        async for view in self.views(store):
            assert list(await view.list_assistants()) == [assistant]

    async def test_g1_eight_tasks_that_count_in_an_assistant_lose_nothing(self, store: ThreadStore) -> None:
        assistant = await new_assistant(store)

        def count_one(old: Assistant) -> Assistant:
            return attrs.evolve(old, metadata=increment(dict(old.metadata)))

        async def count(store: ThreadStore) -> None:
            for _ in range(25):
                await store.update_assistant(assistant.id, count_one)

        async with self.beside(store) as other, asyncio.TaskGroup() as tasks:
            for n in range(8):
                tasks.create_task(count((store, other)[n % 2]))
        async for view in self.views(store):
            assert (await view.get_assistant(assistant.id)).metadata == {"count": "200"}

    async def test_a_deleted_assistant_is_gone_and_its_threads_and_runs_stay(self, store: ThreadStore) -> None:
        assistant = await new_assistant(store)
        await new_run(store, assistant_id=assistant.id)
        before = await picture(store)
        await store.delete_assistant(assistant.id)
        async for view in self.views(store):
            assert await picture(view) == before
            assert list(await view.list_assistants()) == []
            with pytest.raises(AssistantNotFoundError) as caught:
                await view.get_assistant(assistant.id)
            assert caught.value.assistant_id == assistant.id

    async def test_g8_an_unknown_assistant_is_an_error_in_every_method(self, store: ThreadStore) -> None:
        await new_assistant(store, id="known")
        async for view in self.views(store):
            for call in (
                view.get_assistant("unknown"),
                view.update_assistant("unknown", renamed),
                view.delete_assistant("unknown"),
            ):
                with pytest.raises(AssistantNotFoundError):
                    await call
            assert [assistant.id for assistant in await view.list_assistants()] == ["known"]

    async def test_an_assistant_that_is_made_anew_has_nothing_of_the_old(self, store: ThreadStore) -> None:
        old = await new_assistant(store, name="old", metadata={"old": "value"})
        await store.delete_assistant(old.id)
        new = await new_assistant(store, id=old.id)
        async for view in self.views(store):
            assert await view.get_assistant(old.id) == new
            assert (new.name, new.metadata) == (None, {})

    async def test_an_assistant_handed_in_or_out_is_not_the_one_that_is_kept(self, store: ThreadStore) -> None:
        metadata = {"as": "written"}
        tool: dict[str, Any] = {"type": "function", "function": {"name": "brew"}}
        assistant = attrs.evolve(Assistant.new(model="any", tools=[tool]), metadata=metadata)
        handed_out = [
            await store.create_assistant(assistant),
            await store.get_assistant(assistant.id),
            (await store.list_assistants())[0],
            await store.update_assistant(assistant.id, lambda old: old),
        ]
        metadata["changed"] = tool["function"]["name"] = "in"
        for out in handed_out:
            scribble(out.metadata)
            out.tools[0]["function"]["name"] = "out"
        async for view in self.views(store):
            kept = await view.get_assistant(assistant.id)
            assert kept.metadata == {"as": "written"}
            assert kept.tools == ({"type": "function", "function": {"name": "brew"}},)
