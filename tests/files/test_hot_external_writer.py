"""A program that knows no locks replaces a run's record in a hot loop, while the store writes the same run."""

import asyncio
import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.files.crash_stories import a_run, a_thread, taken
from threadloom import Checkpoint, FileStore, LeaseLostError, Message, Run, RunStatus, RunStep, RunWrite
from threadloom.testing._stage import every_event

WRITES = 60  # of the store's, at least

REPLACING = """
import json, os, sys
path, field = sys.argv[1:]
number = 0
os.set_blocking(0, False)
print("begun", flush=True)
while not sys.stdin.buffer.read(1):
    number += 1
    record = json.loads(open(path, "rb").read())
    record.setdefault("metadata", {})["n"] = str(number)
    record["x_seen"] = number
    temporary = path + ".new"
    with open(temporary, "w") as file:
        json.dump(record, file)
    os.replace(temporary, path)
print(number, flush=True)
"""


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_the_last_change_of_a_hot_external_writer_stands_and_nothing_of_ours_is_undone(tmp_path, durability):
    async with FileStore(tmp_path, durability=durability) as store, FileStore(tmp_path, durability=durability) as other:
        await store.create_thread(a_thread("t"))
        await store.create_run("t", a_run("t", id="r"))
        claim = await taken(store)
        path = store.run_dir("t", "r") / "status.json"
        command = [sys.executable, "-c", REPLACING, str(path), "n"]
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert writer.stdin is not None
        assert writer.stdout is not None
        await asyncio.to_thread(writer.stdout.readline)
        written: list[str] = []
        for number in range(WRITES):
            text = f"message {number}"
            if number % 4 == 3:
                await other.append_message("t", Message.assistant("t", text, run_id="r"))
            else:
                items = (Message.assistant("t", text, run_id="r"), Checkpoint(text, number))
                try:
                    await store.write_run(claim.lease, RunWrite(items=items))
                except LeaseLostError:  # only if the writer's copy of the record was older than the claim
                    continue
            written.append(text)
            if number % 10 == 0:
                await other.append_step("t", "r", RunStep.tool_calls(thread_id="t", run_id="r"))
        writer.stdin.write(b"x")
        writer.stdin.close()
        last = (await asyncio.to_thread(writer.stdout.readline)).decode().strip()
        await asyncio.to_thread(writer.wait)
        writer.stdout.close()
        await store.append_message("t", Message.user("t", "look"))

        run = await store.get_run("t", "r")
        assert run.metadata["n"] == last
        assert json.loads(path.read_bytes())["x_seen"] == int(last)
        told = [event.data for event in await every_event(store, run) if isinstance(event.data, Run)]
        assert told[-1].metadata["n"] == last
        texts = Counter(message.text for message in await store.list_messages("t"))
        assert texts == Counter([*written, "look"])
        assert len(written) > WRITES // 4
        assert len(await store.list_steps("t", "r")) == WRITES // 10
        numbers = [event.number for event in await every_event(store, run)]
        assert numbers == sorted(set(numbers))
        assert (await store.force_update_run_status("t", "r", RunStatus.CANCELLED)).status is RunStatus.CANCELLED
