"""Assistants in files: what lies there, damage, foreign programs, and other stores."""

import asyncio
import json
from functools import partial

import attrs
import pytest

from tests.files.test_file_busy import Meanwhile, rewrite
from tests.support.disk_calls import intercept
from threadloom import (
    Assistant,
    AssistantNotFoundError,
    FileStore,
    InvalidInputError,
    SerializationError,
)


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        yield store


def place(store, assistant_id):
    return store.root / ".threadloom" / "assistants" / f"{assistant_id}.json"


def named(name):
    return lambda old: attrs.evolve(old, name=name)


async def test_an_assistant_is_a_file_that_a_person_can_read(store):
    await store.create_assistant(Assistant.new(id="asst_old", model="gpt-x", tools=[{"type": "function"}]))
    text = place(store, "asst_old").read_text()
    assert text.startswith('{\n  "id": "asst_old",\n  "object": "assistant",\n')
    assert json.loads(text)["tools"] == [{"type": "function"}]


async def test_keys_that_we_do_not_know_are_kept_when_an_assistant_is_changed(store):
    await store.create_assistant(Assistant.new(id="one", model="m"))
    rewrite(place(store, "one"), x_color="green", x_number=10**30)
    await store.update_assistant("one", named("new"))
    record = json.loads(place(store, "one").read_bytes())
    assert (record["x_color"], record["x_number"], record["name"]) == ("green", 10**30, "new")


async def test_a_damaged_assistant_is_an_error_that_names_its_file_and_hides_no_other(store):
    for name in ("one", "two"):
        await store.create_assistant(Assistant.new(id=name, model="m", tenant="a"))
    path = place(store, "one")
    path.write_bytes(b'{"id": "one"}')
    for attempt in (
        lambda: store.get_assistant("one"),
        lambda: store.update_assistant("one", named("new")),
        lambda: store.create_assistant(Assistant.new(id="one", model="m")),
        lambda: store.delete_assistant("one"),
    ):
        with pytest.raises(SerializationError) as caught:
            await attempt()
        assert caught.value.where == str(path)
    for options in ({}, {"tenant": "a"}, {"tenant": "a", "limit": 5, "order": "desc"}):
        page = await store.list_assistants(**options)
        assert [assistant.id for assistant in page] == ["two"]
        assert [error.where for error in page.damaged] == [str(path)]
    assert path.read_bytes() == b'{"id": "one"}'


async def test_what_is_no_assistant_is_passed_over(store):
    (place(store, "x").parent / "read me.json").write_text("no id")
    (place(store, "x").parent / "notes").write_text("no record")
    assert list(await store.list_assistants()) == []


@pytest.mark.parametrize("durability", ["power", "process"])
async def test_an_external_writer_that_replaces_an_assistant_at_any_moment_ends_standing(tmp_path, durability):
    async with FileStore(tmp_path, durability=durability) as store:
        await store.create_assistant(Assistant.new(id="one", model="m"))
        at = 0
        while True:
            key = f"x_{at}"
            meanwhile = Meanwhile(at, partial(rewrite, place(store, "one"), **{key: True}))
            with pytest.MonkeyPatch.context() as patch:
                intercept(patch, meanwhile)
                meanwhile.changes = 0
                await store.update_assistant("one", named(f"name {at}"))
            if not meanwhile.is_done:
                break
            record = json.loads(place(store, "one").read_bytes())
            assert (record[key], record["name"]) == (True, f"name {at}")
            at += 1
        assert at


async def test_changes_of_one_assistant_by_many_stores_lose_none(tmp_path):
    async with FileStore(tmp_path) as one, FileStore(tmp_path) as other:
        await one.create_assistant(Assistant.new(id="one", model="m", name="0"))

        def increment(old):
            return attrs.evolve(old, name=str(int(old.name) + 1))

        await asyncio.gather(*(store.update_assistant("one", increment) for store in (one, other) for _ in range(20)))
        assert (await other.get_assistant("one")).name == "40"


async def test_a_deleted_assistant_does_not_come_back_when_the_store_is_opened_again(tmp_path):
    async with FileStore(tmp_path) as store:
        await store.create_assistant(Assistant.new(id="one", model="m"))
        await store.delete_assistant("one")
    async with FileStore(tmp_path) as store:
        with pytest.raises(AssistantNotFoundError):
            await store.get_assistant("one")
        with pytest.raises(AssistantNotFoundError):
            await store.delete_assistant("one")


async def test_a_change_of_the_id_changes_nothing(store):
    await store.create_assistant(Assistant.new(id="one", model="m"))
    before = place(store, "one").read_bytes()
    with pytest.raises(InvalidInputError):
        await store.update_assistant("one", lambda old: attrs.evolve(old, id="two"))
    assert place(store, "one").read_bytes() == before
