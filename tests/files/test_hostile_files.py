"""Links, FIFOs and directories in the place of records; too many open files; a store of another event loop."""

import asyncio
import os
import resource
import shutil
from pathlib import Path

import pytest

from threadloom import FileStore, Message, Run, RunStatus, RunWorker, SerializationError, StoreError, Thread


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        yield store


@pytest.fixture
def outside(tmp_path):
    """Return a directory outside the store with a file in it."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "precious").write_text("mine")
    return directory


def kept(outside: Path) -> bool:
    return [path.name for path in outside.iterdir()] == ["precious"] and (outside / "precious").read_text() == "mine"


@pytest.mark.parametrize("place", ["trash", "tmp"])
async def test_a_link_among_left_overs_is_removed_and_never_entered(tmp_path, outside, place):
    async with FileStore(tmp_path / "store"):
        pass
    link = tmp_path / "store" / ".threadloom" / place / "store_0123456789abcdef-1"
    link.symlink_to(outside)
    nested = tmp_path / "store" / ".threadloom" / place / "store_0123456789abcdef-2"
    nested.mkdir()
    (nested / "link").symlink_to(outside)

    async with FileStore(tmp_path / "store"):
        assert not link.is_symlink()
        assert not nested.exists()
    assert kept(outside)


async def test_a_thread_directory_that_is_a_link_is_damage_that_says_what_to_do_and_is_never_deleted(store, outside):
    async with FileStore(store.root) as before:
        thread = await before.create_thread(Thread.new())
        await before.append_message(thread.id, Message.user(thread.id, "one"))
    moved = outside.parent / "moved"
    shutil.move(store.thread_dir(thread.id), moved)
    store.thread_dir(thread.id).symlink_to(moved)

    for call in (
        store.get_thread(thread.id),
        store.append_message(thread.id, Message.user(thread.id, "two")),
        store.delete_thread(thread.id, force=True),
        store.list_messages(thread.id),
    ):
        with pytest.raises(SerializationError, match=r"symbolic link.*move the directory itself here"):
            await call
    assert len((moved / "messages.jsonl").read_text().splitlines()) == 1
    assert len((await store.list_threads()).damaged) == 1
    assert (await store.check()).problems


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
@pytest.mark.parametrize("name", ["meta.json", "messages.jsonl", "runs/{}/status.json"])
async def test_what_is_no_regular_file_is_damage_that_is_reported_and_never_followed(store, outside, name, kind):
    thread = await store.create_thread(Thread.new())
    await store.append_message(thread.id, Message.user(thread.id, "one"))
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    path = store.thread_dir(thread.id) / name.format(run.id)
    moved = outside.parent / "moved"
    shutil.move(path, moved)
    before = moved.read_bytes()
    match kind:
        case "link":
            path.symlink_to(moved)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()

    async with asyncio.timeout(20):
        calls = {
            "meta.json": [lambda: store.get_thread(thread.id), lambda: store.update_thread(thread.id, metadata={})],
            "messages.jsonl": [
                lambda: store.list_messages(thread.id),
                lambda: store.append_message(thread.id, Message.user(thread.id, "two")),
            ],
            "runs/{}/status.json": [
                lambda: store.get_run(thread.id, run.id),
                lambda: store.force_update_run_status(thread.id, run.id, RunStatus.FAILED),
            ],
        }
        for call in calls[name]:
            with pytest.raises(SerializationError, match=path.name):
                await call()
        assert [problem for problem in (await store.check()).problems if path.name in problem.where]
        other = await store.create_thread(Thread.new())
        assert (await store.get_thread(other.id)).id == other.id
    assert moved.read_bytes() == before


async def test_where_too_many_files_are_open_what_is_kept_open_is_closed(store):
    threads = [await store.create_thread(Thread.new()) for _ in range(20)]
    runs = [await store.create_run(thread.id, Run.new(thread.id, model="m")) for thread in threads]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 1, limit[1]))
    held = []
    try:
        try:
            while True:  # take the gaps too
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for thread, run in zip(threads, runs, strict=True):
            await store.append_message(thread.id, Message.user(thread.id, "one"))
            assert (await store.get_run(thread.id, run.id)).id == run.id
            await store.update_run_status(thread.id, run.id, RunStatus.COMPLETED)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for fd in held:
            os.close(fd)
    assert (await store.check()).problems == ()


async def test_a_run_whose_handler_meets_too_many_open_files_is_done_again(store):
    attempts = []

    async def answer(ctx):
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            raise OSError(24, "Too many open files")
        return "done"

    thread = await store.create_thread(Thread.new())
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    async with RunWorker(store, answer):
        ended = await store.wait_for_run(thread.id, run.id, timeout=30)
    assert ended.status is RunStatus.COMPLETED
    assert attempts == [1, 1]


def test_a_store_of_another_event_loop_says_so_at_once_and_can_be_closed(tmp_path):
    store = FileStore(tmp_path)

    async def use():
        await store.__aenter__()
        asyncio.create_task(store.claim_run("worker"))  # noqa: RUF006 - asyncio.run cancels it
        return (await store.create_thread(Thread.new())).id

    async def use_again(thread_id):
        for call in (store.get_thread(thread_id), store.create_thread(Thread.new()), store.check()):
            with pytest.raises(StoreError, match="another event loop"):
                await call
        async with asyncio.timeout(10):
            await store.close()
        assert list((tmp_path / ".threadloom" / "stores").iterdir()) == []
        async with store:
            assert (await store.get_thread(thread_id)).id == thread_id

    asyncio.run(use_again(asyncio.run(use())))
