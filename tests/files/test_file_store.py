"""What is FileStore's own: hops, locks, waiting for other processes, its index, opening and closing."""

import asyncio
import fcntl
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import tracemalloc
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from pathlib import Path

import attrs
import pytest

from threadloom import (
    ActiveRunError,
    Claim,
    EventType,
    FileStore,
    InvalidInputError,
    LeaseLostError,
    Message,
    MessageDelta,
    MessageStatus,
    Run,
    RunNotFoundError,
    RunStatus,
    RunWrite,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    StoreIOError,
    Thread,
    ThreadNotFoundError,
)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process", lock_timeout=timedelta(milliseconds=300)) as store:
        yield store


@pytest.fixture
async def thread(store):
    return await store.create_thread(Thread.new())


async def taken(store: FileStore) -> Claim:
    claim = await store.try_claim_run("worker")
    assert claim is not None
    return claim


class Locks:
    """Takes the lock of a directory, as another process would have it."""

    def __init__(self):
        self._descriptors = {}

    def take(self, directory):
        self._descriptors[directory] = os.open(directory, os.O_RDONLY)
        fcntl.flock(self._descriptors[directory], fcntl.LOCK_EX)

    def release(self, directory):
        os.close(self._descriptors.pop(directory))


@pytest.fixture
def lock():
    locks = Locks()
    yield locks
    for directory in list(locks._descriptors):
        locks.release(directory)


# Opening and closing


async def test_missing_parents_are_made(tmp_path):
    async with FileStore(tmp_path / "a" / "b" / "c") as store:
        await store.create_thread(Thread.new())
    assert (tmp_path / "a" / "b" / "c" / ".threadloom" / "format").read_text() == "2\n"


@pytest.mark.parametrize(("found", "said"), [("1\n", "unreleased version"), ("3\n", "expects b'2")])
async def test_a_format_that_is_not_known_is_refused_and_nothing_is_changed(tmp_path, found, said):
    own = tmp_path / ".threadloom"
    own.mkdir()
    (own / "format").write_text(found)

    with pytest.raises(StoreError, match=said):
        await FileStore.open(tmp_path)
    assert (own / "format").read_text() == found
    assert [path.name for path in own.iterdir()] == ["format"]


async def test_a_root_that_is_a_file_is_an_io_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreIOError, match="file"):
        await FileStore.open(tmp_path / "file")


WITHOUT_LOCKS = """
import asyncio, sys
sys.modules["fcntl"] = None  # as where there is no such module
from threadloom import FileStore, StoreError
try:
    asyncio.run(FileStore.open(sys.argv[1]))
except StoreError as error:
    print(error)
"""


def test_where_the_system_has_no_flock_opening_is_refused_and_nothing_is_made(tmp_path):
    command = [sys.executable, "-c", WITHOUT_LOCKS, str(tmp_path / "store")]
    refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert refused == "FileStore needs flock, which this system does not have; it runs on Linux and macOS.\n"
    assert list(tmp_path.iterdir()) == []


async def test_an_unknown_durability_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="'power' or 'process'"):
        FileStore(tmp_path, durability="ram")  # type: ignore[arg-type]


async def test_closing_leaves_no_thread_task_or_descriptor(tmp_path):
    before = open_descriptors()
    for _ in range(3):
        async with FileStore(tmp_path) as store:
            thread = await store.create_thread(Thread.new())
            run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
            waiting = asyncio.create_task(store.wait_for_run(thread.id, run.id))
            await store.get_run(thread.id, run.id)
        with pytest.raises(StoreClosedError):
            await waiting
    assert [t.name for t in threading.enumerate() if t.name.startswith("threadloom")] == []
    assert len(asyncio.all_tasks()) == 1
    assert open_descriptors() == before


async def test_what_was_handed_in_before_closing_is_written(tmp_path):
    store = await FileStore.open(tmp_path)
    thread = await store.create_thread(Thread.new())
    appends = [asyncio.create_task(store.append_message(thread.id, Message.user(thread.id, str(n)))) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*appends)

    async with FileStore(tmp_path) as again:
        assert [message.text for message in await again.list_messages(thread.id)] == [str(n) for n in range(50)]


def test_it_stays_where_it_was_made_wherever_the_process_goes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    made = FileStore("data")

    async def use():
        async with made as store:
            thread = await store.create_thread(Thread.new())
            os.chdir(tmp_path / "elsewhere")
            assert (await store.get_thread(thread.id)).id == thread.id
            assert list(await store.list_thread_ids()) == [thread.id]

    asyncio.run(use())
    assert (tmp_path / "data" / ".threadloom").is_dir()


async def test_what_is_kept_open_leaves_most_descriptors_to_others_however_many_stores_there_are(tmp_path):
    before = open_descriptors()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 100, limit[1]))
    try:
        async with AsyncExitStack() as stack:
            for number in range(4):
                store = await stack.enter_async_context(FileStore(tmp_path / str(number), durability="process"))
                for _ in range(50):
                    thread = await store.create_thread(Thread.new())
                    await store.append_message(thread.id, Message.user(thread.id, "hello"))
                    await store.update_thread(thread.id, metadata={"key": "value"})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert open_descriptors() == before


async def test_opened_and_closed_at_once_it_leaks_nothing(tmp_path):
    before = open_descriptors()
    store = FileStore(tmp_path)
    for ticks in range(30):
        opening = [asyncio.create_task(store.__aenter__()) for _ in range(2)]
        for _ in range(ticks):
            await asyncio.sleep(0)
        closing = [asyncio.create_task(store.close()) for _ in range(2)]
        for _ in range(ticks // 2):
            await asyncio.sleep(0)
        for task in (opening[0], closing[0]):
            task.cancel()
        await asyncio.gather(*opening, *closing, return_exceptions=True)
        await store.close()
        assert open_descriptors() == before
    assert [t.name for t in threading.enumerate() if t.name.startswith("threadloom")] == []


async def test_a_claim_that_is_cancelled_as_the_store_closes_leaks_no_lease(tmp_path):
    async with FileStore(tmp_path, durability="process") as store:
        thread = await store.create_thread(Thread.new())
    for ticks in range(30):
        async with FileStore(tmp_path, durability="process") as store:
            run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
            claiming = asyncio.create_task(store.claim_run("worker"))
            for _ in range(ticks):
                await asyncio.sleep(0)
            claiming.cancel()
        [outcome] = await asyncio.gather(claiming, return_exceptions=True)
        async with FileStore(tmp_path, durability="process") as store:
            status = (await store.get_run(thread.id, run.id)).status
            assert status is (
                RunStatus.QUEUED if isinstance(outcome, asyncio.CancelledError) else RunStatus.IN_PROGRESS
            )
            await store.force_update_run_status(thread.id, run.id, RunStatus.CANCELLED)


# Hops


async def test_operations_that_wait_at_the_same_moment_share_a_hop(store, thread, monkeypatch):
    hops = []
    loop = asyncio.get_running_loop()
    plain = loop.run_in_executor

    def count(*args):
        hops.append(args)
        return plain(*args)

    monkeypatch.setattr(loop, "run_in_executor", count)

    await asyncio.gather(
        *(store.append_message(thread.id, Message.user(thread.id, str(number))) for number in range(100))
    )

    assert len(hops) <= 5, "a store that was just opened may look at its index too"
    assert [message.text for message in await store.list_messages(thread.id)] == [str(n) for n in range(100)]


async def test_an_operation_that_fails_does_not_fail_its_neighbours(store, thread):
    calls = [
        store.append_message(thread.id, Message.user(thread.id, "one")),
        store.update_thread(thread.id, metadata=lambda _: 1 / 0),
        store.append_message(thread.id, Message.user(thread.id, "two")),
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(outcomes[1], ZeroDivisionError)
    assert [message.text for message in await store.list_messages(thread.id)] == ["one", "two"]


async def test_no_write_runs_on_the_event_loop(store, thread):
    # conftest lets every blocking call on the loop fail its test; here the thread that did the work is named.
    changed = await store.update_thread(thread.id, metadata=lambda _: {"by": threading.current_thread().name})
    assert changed.metadata["by"].startswith("threadloom")


@pytest.mark.parametrize("error", [StopIteration, GeneratorExit, ValueError, asyncio.CancelledError])
async def test_whatever_a_function_raises_is_its_callers_and_the_store_goes_on(store, thread, error):
    def fail(_):
        raise error

    with pytest.raises(RuntimeError if error is StopIteration else error):
        await store.update_thread(thread.id, metadata=fail)
    assert (await store.update_thread(thread.id, metadata={"still": "works"})).metadata == {"still": "works"}


async def test_a_message_of_many_blocks_is_read_from_either_end(store, thread):
    texts = ["before", "x" * 3_000_000, "after"]
    for text in texts:
        await store.append_message(thread.id, Message.user(thread.id, text))
    assert [message.text for message in await store.list_messages(thread.id)] == texts
    assert [message.text for message in await store.list_messages(thread.id, order="desc", limit=2)] == texts[:0:-1]


# What lasts


async def test_each_write_is_synced_in_the_journal_before_its_files_are_touched_and_a_delta_is_not(
    tmp_path, monkeypatch
):
    synced = []
    plain = os.fdatasync

    def fdatasync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        [messages] = [*tmp_path.glob("thread_*/messages.jsonl")] or [Path(os.devnull)]
        written = os.pread(descriptor, os.fstat(descriptor).st_size, 0)  # another descriptor would take the lock along
        synced.append((path.parent.name, written, messages.read_bytes()))
        plain(descriptor)

    async with FileStore(tmp_path) as store:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
        claim = await taken(store)
        message = Message.assistant(thread.id, "the word", run_id=run.id)
        begun = attrs.evolve(message, status=MessageStatus.IN_PROGRESS, content=())
        await store.write_run(claim.lease, RunWrite(items=(begun,)))
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        await store.write_run(claim.lease, RunWrite(items=(MessageDelta(message.id, "the word"),)))
        assert synced == []
        await store.write_run(claim.lease, RunWrite(items=(message,), status=RunStatus.COMPLETED))
        [(directory, journal, messages)] = synced
        assert directory == "journals"
        assert journal.count(b"the word") == 3, "the delta, the message, and the event that says so"
        assert messages == b""
        assert [message.text for message in await store.list_messages(thread.id)] == ["the word"]


async def test_what_waits_at_the_same_moment_shares_one_sync(tmp_path, monkeypatch):
    synced = []
    plain = os.fdatasync

    def fdatasync(descriptor):
        synced.append(descriptor)
        plain(descriptor)

    async with FileStore(tmp_path) as store:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        await asyncio.gather(*[store.create_thread(Thread.new()) for _ in range(64)])
        assert len(synced) == 1


async def test_many_appends_to_one_thread_hold_up_no_other_thread(tmp_path):
    async with FileStore(tmp_path) as store:
        crowded, other = [await store.create_thread(Thread.new()) for _ in range(2)]
        flood = [
            asyncio.create_task(store.append_message(crowded.id, Message.user(crowded.id, str(number))))
            for number in range(200)
        ]
        await asyncio.sleep(0)
        await store.append_message(other.id, Message.user(other.id, "one"))
        await asyncio.gather(*flood)
        assert [message.text for message in await store.list_messages(crowded.id)] == [str(n) for n in range(200)]


# Locks of other processes


async def test_a_lock_that_stays_taken_ends_in_a_clear_error_and_holds_up_no_other_thread(store, thread, lock):
    other = await store.create_thread(Thread.new())
    lock.take(store.thread_dir(thread.id))

    waiting = asyncio.create_task(store.append_message(thread.id, Message.user(thread.id, "late")))
    for number in range(20):
        await store.append_message(other.id, Message.user(other.id, str(number)))
    assert not waiting.done()
    with pytest.raises(StoreBusyError, match=thread.id):
        await waiting
    assert list(await store.list_messages(thread.id)) == [], "reading needs no lock"


async def test_writes_that_wait_for_a_lock_keep_their_order(store, thread, lock):
    lock.take(store.thread_dir(thread.id))
    appends = [asyncio.create_task(store.append_message(thread.id, Message.user(thread.id, str(n)))) for n in range(10)]
    await store.list_messages(thread.id)
    lock.release(store.thread_dir(thread.id))
    await asyncio.gather(*appends)

    assert [message.text for message in await store.list_messages(thread.id)] == [str(n) for n in range(10)]


async def test_a_write_that_waits_for_a_lock_is_withdrawn_when_its_caller_is_cancelled(store, thread, lock):
    lock.take(store.thread_dir(thread.id))
    waiting = asyncio.create_task(store.append_message(thread.id, Message.user(thread.id, "never")))
    await store.list_messages(thread.id)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    lock.release(store.thread_dir(thread.id))

    await store.append_message(thread.id, Message.user(thread.id, "after"))
    assert [message.text for message in await store.list_messages(thread.id)] == ["after"]


async def test_a_thread_that_is_locked_elsewhere_does_not_hide_the_work_of_others(store, thread, lock):
    await store.create_run(thread.id, Run.new(thread.id, model="m"))
    other = await store.create_thread(Thread.new())
    run = await store.create_run(other.id, Run.new(other.id, model="m"))
    lock.take(store.thread_dir(thread.id))

    assert (await taken(store)).run.id == run.id
    waiting = asyncio.create_task(store.claim_run("worker"))
    await store.list_thread_ids()
    lock.release(store.thread_dir(thread.id))
    async with asyncio.timeout(5):
        assert (await waiting).run.thread_id == thread.id


async def test_a_directory_that_was_deleted_and_made_anew_is_locked_anew(store, thread):
    await store.delete_thread(thread.id)
    await store.create_thread(thread)
    await store.append_message(thread.id, Message.user(thread.id, "in the new one"))

    assert len(await store.list_messages(thread.id)) == 1
    assert list((store.root / ".threadloom" / "trash").iterdir()) == []


# External writers


async def test_a_program_that_writes_a_record_in_place_is_seen(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    waiting = asyncio.create_task(store.wait_for_run(thread.id, run.id, timeout=timedelta(seconds=5)))
    await store.get_run(thread.id, run.id)
    path = store.run_dir(thread.id, run.id) / "status.json"
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps(record | {"status": "completed"}))

    assert (await waiting).status is RunStatus.COMPLETED


async def test_a_lease_is_lost_to_a_program_that_replaces_the_status(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    claim = await taken(store)
    watching = asyncio.create_task(store.wait_for_stop(claim.lease))
    await store.check_lease(claim.lease)
    path = store.run_dir(thread.id, run.id) / "status.json"
    other = path.with_name("other")
    other.write_text(json.dumps(json.loads(path.read_bytes()) | {"status": "cancelled"}))
    other.replace(path)

    async with asyncio.timeout(5):
        with pytest.raises(LeaseLostError):
            await watching


class ExternalWrite:
    """Puts an external writer's replacement right before our own, between the commit and the record.

    It reaches into the backend, for no other way hits this moment.
    """

    def __init__(self, store, monkeypatch, path, change):
        self._disk = store._backend._disk
        self._plain = self._disk.exchange
        self._path = path
        self._change = change
        self.writes = 0
        monkeypatch.setattr(self._disk, "exchange", self)

    def __call__(self, temporary, ours, path, expected):
        if self._disk.where(path) == str(self._path) and self.writes == 0:
            self.writes += 1
            external = self._path.with_name("external")
            external.write_text(json.dumps(self._change(json.loads(self._path.read_bytes()))))
            external.replace(self._path)
        return self._plain(temporary, ours, path, expected)


async def test_a_transaction_that_commits_before_an_external_write_stands_and_that_write_is_the_next_event(
    store, thread, monkeypatch
):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    claim = await taken(store)
    path = store.run_dir(thread.id, run.id) / "status.json"
    external = ExternalWrite(store, monkeypatch, path, lambda record: record | {"status": "cancelled", "x_seen": True})
    replies = [Message.assistant(thread.id, text, run_id=run.id) for text in ("one", "two")]

    await store.write_run(claim.lease, RunWrite(items=tuple(replies), status=RunStatus.COMPLETED))

    assert external.writes == 1
    page = await store.list_messages(thread.id)
    assert [message.text for message in page] == ["one", "two"]
    assert page.damaged == ()
    record = json.loads(path.read_bytes())
    assert (record["status"], record["x_seen"]) == ("cancelled", True)
    types = [event.type async for event in store.events(thread.id, run.id)]
    assert types[-2:] == ["thread.run.completed", "thread.run.cancelled"]
    assert (await store.check()).problems == ()


async def test_a_run_that_another_program_queued_in_the_middle_of_its_message_is_done_again(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    claim = await taken(store)
    message = attrs.evolve(
        Message.assistant(thread.id, "", run_id=run.id), status=MessageStatus.IN_PROGRESS, content=()
    )
    await store.write_run(claim.lease, RunWrite(items=(message, MessageDelta(message.id, "half"))))
    path = store.run_dir(thread.id, run.id) / "status.json"
    external = path.with_name("external")
    external.write_text(json.dumps(json.loads(path.read_bytes()) | {"status": "queued"}))
    external.replace(path)

    async with FileStore(store.root, durability="process") as other:
        again = await taken(other)
        reply = Message.assistant(thread.id, "", run_id=run.id)
        begun = attrs.evolve(reply, status=MessageStatus.IN_PROGRESS, content=())
        await other.write_run(again.lease, RunWrite(items=(begun, reply), status=RunStatus.COMPLETED))

    names = [event.type.removeprefix("thread.message.") async for event in store.events(thread.id, run.id)]
    assert [name for name in names if "." not in name] == [
        "created",
        "in_progress",
        "delta",
        "incomplete",
        "created",
        "in_progress",
        "completed",
    ]
    assert [message.id for message in await store.list_messages(thread.id)] == [reply.id]


async def test_a_claim_whose_disk_fails_leaks_no_lease(tmp_path, monkeypatch):
    def fail(descriptor):
        monkeypatch.undo()
        raise OSError(5, "Input/output error")

    async with FileStore(tmp_path) as store:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
        monkeypatch.setattr(os, "fdatasync", fail)
        assert await store.try_claim_run("worker") is None
        async with asyncio.timeout(10):
            assert (await store.claim_run("worker")).run.id == run.id


async def test_a_thread_that_takes_the_place_of_another_knows_nothing_of_it(store):
    for _ in range(20):
        thread = await store.create_thread(Thread.new(id="thread_again"))
        run = attrs.evolve(Run.new(thread.id, model="m"), id="run_again")
        await store.create_run(thread.id, run)
        claim = await taken(store)
        assert list(await store.list_messages(thread.id)) == []
        message = Message.assistant(thread.id, "", run_id=run.id)
        begun = attrs.evolve(message, status=MessageStatus.IN_PROGRESS, content=())
        await store.write_run(claim.lease, RunWrite(items=(begun, MessageDelta(message.id, "secret"))))
        await store.delete_thread(thread.id, force=True)
        thread = await store.create_thread(thread)
        await store.create_run(thread.id, run)
        await store.update_run_status(thread.id, run.id, RunStatus.CANCELLED)
        assert list(await store.list_messages(thread.id)) == []
        await store.delete_thread(thread.id)


@pytest.mark.parametrize("how", ["removed", "cut"])
async def test_a_follower_of_a_log_that_another_program_took_away_comes_to_an_end(store, thread, how):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    events = store.events(thread.id, run.id)
    assert (await anext(events)).number == 1
    path = store.run_dir(thread.id, run.id) / "events.jsonl"
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(b"")
    await store.update_run_status(thread.id, run.id, RunStatus.COMPLETED)
    async with asyncio.timeout(5):
        assert [event.type async for event in events][-1] == "thread.run.completed"


async def test_the_next_run_has_its_turn_as_soon_as_a_external_ending_is_finalized(store, thread):
    first = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    second = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    await taken(store)
    async with FileStore(store.root, durability="process") as other:
        waiting = asyncio.create_task(other.claim_run("other"))
        await other.list_thread_ids()
        path = store.run_dir(thread.id, first.id) / "status.json"
        external = path.with_name("external")
        external.write_text(json.dumps(json.loads(path.read_bytes()) | {"status": "cancelled"}))
        external.replace(path)
        await store.finalize_run(thread.id, first.id)
        async with asyncio.timeout(5):
            assert (await waiting).run.id == second.id


async def test_whole_numbers_of_any_size_survive_in_keys_that_are_not_ours(store, thread):
    path = store.thread_dir(thread.id) / "meta.json"
    big = 1180591620717411303424
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"x_big": big}))
    await store.update_thread(thread.id, metadata={"a": "b"})
    record = json.loads(path.read_bytes())
    assert (record["x_big"], record["metadata"]) == (big, {"a": "b"})


async def test_a_settled_run_needs_no_time_to_be_waited_for(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m", status=RunStatus.COMPLETED))
    assert (await store.wait_for_run(thread.id, run.id, timeout=timedelta())).id == run.id


async def test_a_run_that_is_made_while_it_is_looked_for_is_no_damage(store, thread, monkeypatch):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))

    disk = store._backend._disk  # no other way hits the moment before the rename
    plain = disk.read

    def missing(name):
        def read(path):
            if path.endswith(name):
                raise FileNotFoundError(path)
            return plain(path)

        return read

    with monkeypatch.context() as patch:
        patch.setattr(disk, "read", missing("status.json"))
        with pytest.raises(RunNotFoundError):
            await store.get_run(thread.id, run.id)
        patch.setattr(disk, "read", missing("meta.json"))
        with pytest.raises(ThreadNotFoundError):
            await store.get_thread(thread.id)
    assert (await store.get_run(thread.id, run.id)).id == run.id


# Without inotify


async def test_where_there_is_no_inotify_a_slow_look_serves(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("asyncinotify.Inotify", refuse)
    monkeypatch.setattr("threadloom.stores.files.file_backend._SLOW_LOOK_WITHOUT_INOTIFY", timedelta(milliseconds=20))
    with caplog.at_level(logging.WARNING, logger="threadloom"):
        async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
            claiming = asyncio.create_task(other.claim_run("worker"))
            await asyncio.sleep(0)
            thread = await store.create_thread(Thread.new())
            run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
            async with asyncio.timeout(5):
                claim = await claiming
                assert claim.run.id == run.id
                waiting = asyncio.create_task(store.wait_for_run(thread.id, run.id))
                await other.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
                assert (await waiting).status is RunStatus.COMPLETED
    assert "inotify is unavailable" in caplog.messages


# The queue index


async def queued(store, number):
    thread = await store.create_thread(Thread.new())
    return [await store.create_run(thread.id, Run.new(thread.id, model="m")) for _ in range(number)]


@pytest.mark.parametrize("damage", ["gone", "torn", "after a reboot"])
async def test_the_index_is_made_again_from_the_runs(tmp_path, damage):
    async with FileStore(tmp_path, durability="process") as store:
        runs = await queued(store, 2)
        [other] = await queued(store, 1)
    own = tmp_path / ".threadloom"
    match damage:
        case "gone":
            shutil.rmtree(own)
        case "torn":
            for turn in (own / "queue").iterdir():
                turn.write_bytes(turn.read_bytes()[:-9])
        case "after a reboot":
            (own / "boot").write_text("another\n")
            shutil.rmtree(own / "queue")

    async with FileStore(tmp_path, durability="process") as store:
        # While it is being made, a run is taken as soon as it is found.
        first, second = sorted([await taken(store), await taken(store)], key=lambda claim: claim.run.sequence or 0)
        assert [first.run.id, second.run.id] == [runs[0].id, other.id]
        assert await store.try_claim_run("worker") is None
        await store.write_run(first.lease, RunWrite(status=RunStatus.COMPLETED))
        assert (await taken(store)).run.id == runs[1].id


async def test_an_index_of_before_a_power_cut_is_not_believed(tmp_path):
    async with FileStore(tmp_path, durability="process") as store:
        [run] = await queued(store, 1)
    [turn] = (tmp_path / ".threadloom" / "queue").iterdir()
    turn.write_text(json.dumps({"boot": "another", "sequence": 0, "active": []}))

    async with FileStore(tmp_path, durability="process") as store:
        with pytest.raises(ActiveRunError):
            await store.create_run(run.thread_id, Run.new(run.thread_id, model="m"), on_busy="reject")


async def test_sequence_numbers_go_on_when_the_index_is_gone(tmp_path):
    async with FileStore(tmp_path, durability="process") as store:
        [run] = await queued(store, 1)
    shutil.rmtree(tmp_path / ".threadloom")
    async with FileStore(tmp_path, durability="process") as store:
        later = await store.create_run(run.thread_id, Run.new(run.thread_id, model="m"))
        assert later.sequence > run.sequence


async def test_terminal_runs_leave_nothing_in_the_index(store):
    runs = await queued(store, 2)
    for run in runs:
        await store.update_run_status(run.thread_id, run.id, RunStatus.COMPLETED)

    assert list((store.root / ".threadloom" / "queue").iterdir()) == []
    [idle] = (store.root / ".threadloom" / "idle").iterdir()
    assert idle.name == runs[0].thread_id


async def test_no_temporary_file_stays(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    for number in range(5):
        await store.update_run(thread.id, run.id, metadata={"n": str(number)})
        await store.update_thread(thread.id, metadata={"n": str(number)})
    assert list((store.root / ".threadloom" / "tmp").iterdir()) == []


async def test_a_loop_that_is_shut_down_in_the_middle_loses_no_write_that_has_begun(tmp_path):
    script = """
import asyncio, sys
from threadloom import *

async def main():
    store = await FileStore.open(sys.argv[1], durability="process")
    thread = await store.create_thread(Thread.new())
    async def write():
        for number in range(1000):
            await store.append_message(thread.id, Message.user(thread.id, str(number)))
            print(number, flush=True)
    main.tasks = [asyncio.create_task(write()) for _ in range(4)]
    while len(await store.list_messages(thread.id)) < 50:
        pass
    # Neither the tasks are awaited nor the store is closed: asyncio.run cancels whatever is left.

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(20):
        said, complaints = await process.communicate()
    assert process.returncode == 0, complaints
    async with FileStore(tmp_path) as store:
        [thread_id] = await store.list_thread_ids()
        page = await store.list_messages(thread_id)
    assert page.damaged == ()
    assert 0 <= len(page) - len(said.splitlines()) <= 4


async def test_a_reader_of_a_long_text_holds_no_more_of_it_than_it_is_reading(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
    claim = await taken(store)
    message = Message.assistant(thread.id, "", run_id=run.id)
    await store.write_run(claim.lease, RunWrite(items=(attrs.evolve(message, status=MessageStatus.IN_PROGRESS),)))
    for _ in range(20):
        await store.write_run(claim.lease, RunWrite(items=(MessageDelta(message.id, "x" * 1_000_000),)))
    await store.request_cancel(thread.id, run.id)
    most = 0
    async with FileStore(store.root, durability="process") as other:
        tracemalloc.start()
        try:
            async with aclosing(other.events(thread.id, run.id)) as events:
                async for event in events:
                    most = max(most, tracemalloc.get_traced_memory()[0])
                    if event.type is EventType.RUN_CANCELLING:
                        break
        finally:
            tracemalloc.stop()
    assert most < 8_000_000
