"""What is heard of the writes of others, and what is not: a record that is half written, and one's own life."""

import asyncio
import json
import os
import sys

import pytest

from threadloom import EventType, FileStore, Run, Thread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is only there")


async def test_a_store_that_waits_for_work_does_not_hear_of_itself(tmp_path, monkeypatch):
    beats = []
    pwrite = os.pwrite

    def counting(fd, data, offset):
        if data.strip().isdigit():
            beats.append(data)
        return pwrite(fd, data, offset)

    async with FileStore(tmp_path, durability="process") as store:
        claiming = asyncio.create_task(store.claim_run("worker"))
        thread = await store.create_thread(Thread.new())
        monkeypatch.setattr(os, "pwrite", counting)
        for _ in range(200):
            await store.get_thread(thread.id)
        monkeypatch.undo()
        claiming.cancel()
        await asyncio.wait([claiming])

    assert len(beats) <= 2, "one beat a third of a lease, and none for each beat"


async def all_was_looked_at(store, thread):
    """Return when whatever was about to be read in this moment has been read: reads are made in their order."""
    for _ in range(2):
        await store.list_messages(thread.id)


async def test_a_reader_looks_at_a_record_that_is_written_in_place_when_it_is_whole(tmp_path):
    async with FileStore(tmp_path, durability="process") as store, asyncio.timeout(10):
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
        path = store.run_dir(thread.id, run.id) / "status.json"
        record = json.loads(path.read_bytes()) | {"status": "completed"}
        following = store.events(thread.id, run.id)
        assert [(await anext(following)).type for _ in range(2)] == [EventType.RUN_CREATED, EventType.RUN_QUEUED]
        coming = asyncio.create_task(anext(following))
        await all_was_looked_at(store, thread)
        with path.open("w") as status:
            log = path.with_name("events.jsonl")
            last = json.loads(log.read_bytes().splitlines()[-1])
            with log.open("a") as events:
                events.write(json.dumps(last | {"number": last["number"] + 1}) + "\n")
            assert (await coming).number == last["number"] + 1
            coming = asyncio.create_task(anext(following))
            await all_was_looked_at(store, thread)
            json.dump(record, status)
        assert (await coming).type is EventType.RUN_COMPLETED
        await following.aclose()
