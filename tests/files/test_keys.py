"""Idempotency keys in files: real processes that race or are killed, damage, and where the files lie."""

import asyncio
import itertools
import json
import random
import shutil

import pytest

from tests.files.fork_server import ForkServer
from tests.files.killable import SHARED, creating
from tests.support.check_fixtures import key_path
from threadloom import (
    ActiveRunError,
    Assistant,
    FileStore,
    IdempotencyKey,
    Message,
    Run,
    SerializationError,
    Thread,
    ThreadAlreadyExistsError,
)

KEY = IdempotencyKey("any ☕ text / with\n..", "asked for")
PROCESSES = 4
ROUNDS = 40
MOST_CALLS = 6_000  # and returns of functions: more than all four take


@pytest.fixture(scope="module")
def server():
    server = ForkServer("tests.files.killable")
    yield server
    server.close()


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        await store.create_thread(Thread.new(id=SHARED))
        yield store


async def made_under(store, value):
    """Return the ids of all that was created under a key: assistants, threads, messages, runs."""
    return [
        [assistant.id for assistant in await store.list_assistants() if assistant.name == value],
        [thread.id for thread in await store.list_threads() if thread.metadata.get("key") == value],
        [message.id for message in await store.list_messages(SHARED) if message.text == value],
        [run.id for run in await store.list_runs(SHARED) if run.metadata.get("key") == value],
    ]


async def test_processes_that_race_on_one_key_create_one_object_and_all_are_told_of_it(store, server):
    for number in range(10):
        key = f"race {number}"
        children = [server.fork("create", str(store.root), "process", None, key) for _ in range(PROCESSES)]
        for child in children:
            assert await child.ended() == 0
        made = await made_under(store, key)
        assert [len(ids) for ids in made] == [1, 1, 1, 1]
        assert [child.lines for child in children] == [[id_ for [id_] in made]] * PROCESSES
    assert (await store.check()).is_clean


async def test_what_a_killed_process_was_creating_is_created_once_when_it_is_asked_for_again(store, server):
    chance = random.Random("keys")
    for number in range(ROUNDS):
        key = f"killed {number}"
        durability = "power" if number % 4 == 3 else "process"
        child = server.fork("create", str(store.root), durability, chance.randrange(MOST_CALLS), key)
        await child.ended()
        again = [item.id async for item in creating(store, key)]
        assert [[id_] for id_ in again] == await made_under(store, key)
        assert again[: len(child.lines)] == child.lines
    assert (await store.check()).is_clean


async def test_tasks_that_race_on_one_key_create_one_thread(store):
    threads = await asyncio.gather(*(store.create_thread(Thread.new(), key=KEY) for _ in range(20)))
    assert len({thread.id for thread in threads}) == 1
    assert list(await store.list_thread_ids()) == sorted([SHARED, threads[0].id])


async def test_keys_of_a_thread_go_with_it_also_where_another_program_removes_it(store):
    for remove in (store.delete_thread, None):
        thread = await store.create_thread(Thread.new(id="again"))
        await store.append_message("again", Message.user("again", "one"), key=KEY)
        run = await store.create_run("again", Run.new("again", model="m"), key=KEY)
        assert len(list(store.thread_dir("again").glob("keys/*.json"))) == 2
        with pytest.raises(ActiveRunError):
            await store.delete_thread("again")
        if remove is None:
            shutil.rmtree(store.thread_dir(thread.id))
        else:
            await remove(thread.id, force=True)
        await store.create_thread(Thread.new(id="again"))
        assert (await store.append_message("again", Message.user("again", "two"), key=KEY)).text == "two"
        assert (await store.create_run("again", Run.new("again", model="m"), key=KEY)).id != run.id
        await store.delete_thread("again", force=True)


async def test_a_thread_whose_id_is_taken_leaves_no_key(store):
    with pytest.raises(ThreadAlreadyExistsError):
        await store.create_thread(Thread.new(id=SHARED), key=KEY)
    assert (await store.create_thread(Thread.new(id="other"), key=KEY)).id == "other"


async def test_a_damaged_key_is_an_error_that_names_its_file_and_nothing_is_created(store):
    made = [item.id async for item in creating(store, "key")]
    before = await made_under(store, "key")
    assert [[id_] for id_ in made] == before
    key = IdempotencyKey("key", "asked for")
    creates = {
        ".threadloom/keys/assistants": lambda: store.create_assistant(Assistant.new(model="m", name="key"), key=key),
        ".threadloom/keys/threads": lambda: store.create_thread(Thread.new(metadata={"key": "key"}), key=key),
        f"{SHARED}/keys": lambda: store.append_message(SHARED, Message.user(SHARED, "key"), key=key),
    }
    for data, (place, create) in itertools.product((b"", b"[]", b'{"key": "key"}'), creates.items()):
        [path, *_] = (store.root / place).rglob("message-*.json" if place.startswith(SHARED) else "*.json")
        path.write_bytes(data)
        with pytest.raises(SerializationError) as caught:
            await create()
        assert caught.value.where == str(path)
        assert await made_under(store, "key") == before


async def test_the_file_of_another_key_answers_for_no_other(store):
    await store.create_thread(Thread.new(), key=KEY)
    path = key_path(store.root, KEY.value)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"key": "another"}))
    with pytest.raises(SerializationError, match="another key"):
        await store.create_thread(Thread.new(), key=KEY)
