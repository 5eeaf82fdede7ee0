"""Several processes on one directory: real ones, started and awaited here."""

import asyncio
import collections
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import attrs
import pytest

from threadloom import (
    EventType,
    FileStore,
    LeaseLostError,
    Message,
    MessageDelta,
    MessageStatus,
    Run,
    RunStatus,
    RunWrite,
    Thread,
)

PROCESSES = 4

PRELUDE = """
import asyncio, sys
from datetime import timedelta
from threadloom import *

ROOT, THREAD, NAME, *REST = sys.argv[1:]

def ready():
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        yield store


@pytest.fixture
async def thread(store):
    return await store.create_thread(Thread.new(metadata={"count": "0"}))


class Others:
    """Processes that run a script; those that print ``ready`` wait until they are let go, all at once."""

    def __init__(self, store: FileStore, thread: Thread, script: str, *rest: str, number: int = PROCESSES) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", PRELUDE + script, str(store.root), thread.id, f"p{name}", *rest],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in range(number)
        ]

    async def start(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            line = await asyncio.to_thread(process.stdout.readline)
            assert line == "ready\n"
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    async def end(self) -> list[str]:
        outputs = [await asyncio.to_thread(process.communicate) for process in self.processes]
        assert [process.returncode for process in self.processes] == [0] * len(self.processes)
        return [output for output, _ in outputs]


async def test_increments_of_one_counter_by_tasks_of_many_processes_lose_none(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m", metadata={"count": "0"}))
    others = Others(
        store,
        thread,
        """
async def main():
    async with FileStore(ROOT, durability="process") as store:
        ready()
        async def increment():
            for _ in range(100):
                await store.update_run(THREAD, REST[0], metadata=lambda old: {"count": str(int(old["count"]) + 1)})
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(increment())
asyncio.run(main())
""",
        run.id,
    )
    await others.start()
    await others.end()

    assert (await store.get_run(thread.id, run.id)).metadata == {"count": "3200"}


async def test_appends_of_many_processes_to_one_thread_are_all_whole_and_each_in_its_order(store, thread):
    others = Others(
        store,
        thread,
        """
async def main():
    async with FileStore(ROOT, durability="process") as store:
        ready()
        for number in range(1000):
            await store.append_message(THREAD, Message.user(THREAD, f"{NAME} {number} " + "\u00e9" * (number % 300)))
asyncio.run(main())
""",
    )
    await others.start()
    await others.end()

    page = await store.list_messages(thread.id)
    assert page.damaged == ()
    assert len(page) == 4000
    by_process = collections.defaultdict(list)
    for message in page:
        name, number, _ = message.text.split(" ")
        by_process[name].append(int(number))
    assert by_process == {f"p{name}": list(range(1000)) for name in range(PROCESSES)}


async def test_of_processes_that_race_for_a_thread_one_wins(store):
    for _ in range(5):
        thread = await store.create_thread(Thread.new())
        others = Others(
            store,
            thread,
            """
async def main():
    async with FileStore(ROOT, durability="process") as store:
        ready()
        try:
            run = await store.create_run(THREAD, Run.new(THREAD, model="m"), on_busy="reject")
            print("won", run.id)
        except ActiveRunError as error:
            print("lost", error.run_id)
asyncio.run(main())
""",
        )
        await others.start()
        outcomes = [output.split() for output in await others.end()]

        assert sorted(word for word, _ in outcomes) == ["lost", "lost", "lost", "won"]
        assert len({run_id for _, run_id in outcomes}) == 1, "the losers name the winner"
        assert len(await store.list_runs(thread.id)) == 1


async def test_each_run_is_taken_by_one_process_only(store, thread):
    threads = [await store.create_thread(Thread.new()) for _ in range(40)]
    runs = [await store.create_run(t.id, Run.new(t.id, model="m")) for t in threads]
    others = Others(
        store,
        thread,
        """
async def main():
    async with FileStore(ROOT, durability="process") as store:
        ready()
        while any((store.root / ".threadloom" / "queue").iterdir()):
            claim = await store.try_claim_run(NAME)
            if claim is None:
                continue
            print(claim.run.id)
            await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
asyncio.run(main())
""",
    )
    await others.start()
    taken = [run_id for output in await others.end() for run_id in output.split()]

    assert sorted(taken) == sorted(run.id for run in runs)


async def test_a_process_hears_of_work_and_of_its_end_that_another_made(store, thread):
    others = Others(
        store,
        thread,
        """
async def main():
    async with FileStore(ROOT, durability="process") as store:
        ready()
        claim = await store.claim_run(NAME)
        await store.write_run(claim.lease, RunWrite(
            items=(Message.assistant(THREAD, "done", run_id=claim.run.id),), status=RunStatus.COMPLETED))
asyncio.run(main())
""",
        number=1,
    )
    await others.start()
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))

    async def follow():
        return [event.type async for event in store.events(thread.id, run.id)]

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        ended = await store.wait_for_run(thread.id, run.id, timeout=timedelta(seconds=10))
    assert ended.status is RunStatus.COMPLETED
    assert following.result()[-1] is EventType.RUN_COMPLETED
    assert [message.text for message in await store.list_messages(thread.id)] == ["done"]
    await others.end()


FOREIGN_LOOP = """
import json, os
from pathlib import Path
status = Path(ROOT) / THREAD / "runs" / REST[0] / "status.json"
bare = {"id": REST[0], "object": "thread.run", "created_at": 1, "thread_id": THREAD, "model": "m"}
ready()
for number in range(int(REST[1])):
    other = status.with_name(f"foreign-{number}")
    other.write_text(json.dumps(bare | {"status": "cancelled", "x_number": number}))
    os.replace(other, status)
"""


async def test_a_foreign_program_that_replaces_a_record_in_a_hot_loop_always_ends_standing(store, thread):
    for _ in range(3):
        run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
        others = Others(store, thread, FOREIGN_LOOP, run.id, "1500", number=1)
        await others.start()
        writes = 0
        while others.processes[0].poll() is None:
            writes += 1
            await store.update_run(thread.id, run.id, metadata={"ours": str(writes)})
        await others.end()

        status = json.loads((store.run_dir(thread.id, run.id) / "status.json").read_bytes())
        assert status["x_number"] == 1499, "the last foreign write is there"
        assert status["status"] == "cancelled"
        assert writes > 20
        leftovers = {path.name for path in store.run_dir(thread.id, run.id).iterdir()}
        assert leftovers == {"status.json", "events.jsonl"}
        assert list((store.root / ".threadloom" / "tmp").iterdir()) == []


async def test_no_message_comes_after_a_foreign_program_has_ended_the_run(store, thread):
    for ticks in range(40):
        run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
        claim = await store.try_claim_run("worker")
        status = store.run_dir(thread.id, run.id) / "status.json"
        cancelled = status.with_name("foreign")
        cancelled.write_text(json.dumps(json.loads(status.read_bytes()) | {"status": "cancelled"}))
        reply = Message.assistant(thread.id, "late", run_id=run.id)

        finishing = asyncio.create_task(
            store.write_run(claim.lease, RunWrite(items=(reply,), status=RunStatus.COMPLETED))
        )
        for _ in range(ticks % 4):
            await asyncio.sleep(0)
        cancelled.replace(status)
        outcome = (await asyncio.gather(finishing, return_exceptions=True))[0]

        assert (await store.get_run(thread.id, run.id)).status is RunStatus.CANCELLED
        messages = await store.list_messages(thread.id, run_id=run.id)
        if isinstance(outcome, LeaseLostError):
            assert list(messages) == []
        else:
            assert isinstance(outcome, Run)
            assert outcome.status is RunStatus.COMPLETED, "it was written before the other program came"
            assert len(messages) == 1


async def test_a_waiting_process_hears_of_a_status_that_a_foreign_program_wrote(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    waiting = asyncio.create_task(store.wait_for_run(thread.id, run.id, timeout=timedelta(seconds=10)))
    following = asyncio.create_task(_events(store, thread, run))
    others = Others(store, thread, FOREIGN_LOOP, run.id, "1", number=1)
    await others.start()

    assert (await waiting).status is RunStatus.CANCELLED
    assert (await following)[-1] is EventType.RUN_CANCELLED, "a reader settles what nobody else did"
    await others.end()


async def _events(store, thread, run):
    async with asyncio.timeout(10):
        return [event.type async for event in store.events(thread.id, run.id)]


async def test_the_last_page_of_a_long_thread_is_read_from_the_end(store, thread):
    line = json.dumps(
        {
            "id": "msg_%06d",
            "object": "thread.message",
            "created_at": 1,
            "thread_id": thread.id,
            "role": "user",
            "content": [{"type": "text", "text": {"value": "x" * 400, "annotations": []}}],
        }
    )
    log = store.thread_dir(thread.id) / "messages.jsonl"
    log.write_text("".join(f"{line % number}\n" for number in range(100_000)))

    def bytes_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    page = await store.list_messages(thread.id, limit=20, order="desc")
    older = await store.list_messages(thread.id, limit=20, order="desc", after=page[-1].id)
    newer = await store.list_messages(thread.id, limit=20, order="desc", before=older[0].id)
    read = bytes_read() - before

    assert [message.id for message in page] == [f"msg_{number:06d}" for number in range(99_999, 99_979, -1)]
    assert [message.id for message in older] == [f"msg_{number:06d}" for number in range(99_979, 99_959, -1)]
    assert list(newer) == list(page)
    assert page.has_more
    assert read < 1_000_000 < log.stat().st_size / 10


async def test_another_store_hears_of_each_word_though_the_log_of_its_writer_stays_open(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    claim = await store.claim_run("worker")
    message = attrs.evolve(
        Message.assistant(thread.id, "", run_id=run.id), status=MessageStatus.IN_PROGRESS, content=()
    )
    await store.write_run(claim.lease, RunWrite(items=(message,)))
    async with FileStore(store.root, durability="process") as other, asyncio.timeout(10):  # before it looks by itself
        following = other.events(thread.id, run.id)
        while (await anext(following)).type is not EventType.MESSAGE_IN_PROGRESS:
            pass
        for word in ("never", "mind", "the", "gap"):
            heard = asyncio.create_task(anext(following))
            await other.list_messages(thread.id)  # by now it listens
            await store.write_run(claim.lease, RunWrite(items=(MessageDelta(message.id, word),)))
            assert (await heard).data == MessageDelta(message.id, word)
        await following.aclose()


INTERRUPTED = """
import asyncio, sys
from pathlib import Path
from threadloom import FileStore

def interrupt():
    raise KeyboardInterrupt  # as what hears a signal does, in the middle of what is due

loop = asyncio.new_event_loop()
store = FileStore(sys.argv[1])
loop.run_until_complete(store.__aenter__())
Path(sys.argv[1], ".threadloom", "queue", "thread_1").touch()
loop.call_soon(interrupt)
try:
    loop.run_until_complete(asyncio.sleep(0))
except KeyboardInterrupt:
    loop.run_until_complete(store.close())
    print("closed")
"""


def test_a_store_is_closed_by_a_loop_that_was_interrupted_before_it_read_of_what_was_heard(tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("closed\n", "")
