"""What is asked of the files does not grow with what is kept, or grows no faster than that."""

import json
import os
from contextlib import asynccontextmanager

import pytest

from threadloom import FileStore, Run, RunStatus, RunWrite
from threadloom.errors import SerializationError
from threadloom.stores.files import log_lines, views

FILE_CALLS = ("open", "read", "pread", "write", "pwrite", "stat", "lstat", "fstat", "scandir", "listdir", "rename")


def write_thread(root, *, messages=0, runs=0):
    """Write a thread as another program would, with ended runs, and return its id."""
    thread = root / "thread_old"
    (thread / "runs").mkdir(parents=True)
    (thread / "meta.json").write_text(json.dumps({"id": thread.name, "created_at": 1}))
    record = {"created_at": 1, "thread_id": thread.name}
    lines = [record | {"id": f"msg_{number}", "role": "user", "content": []} for number in range(messages)]
    (thread / "messages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in range(runs):
        directory = thread / "runs" / f"run_{number:04}"
        directory.mkdir()
        # Their names say nothing of their order.
        status = record | {"id": directory.name, "status": "completed", "sequence": (number * 7) % runs + 1}
        (directory / "status.json").write_text(json.dumps(status))
    return thread.name


def counted(monkeypatch, owner, names):
    """Return a list that grows by the name of each call of a function that ``owner`` has."""
    calls = []

    def counting(name, plain):
        def call(*args, **options):
            calls.append(name)
            return plain(*args, **options)

        return call

    for name in names:
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    return calls


@asynccontextmanager
async def opened(root):
    """Yield a store that does nothing by itself any more."""
    async with FileStore(root, durability="process") as store:
        await store.check()  # which waits for the index
        yield store


@pytest.mark.parametrize("options", [{"order": "desc"}, {"order": "asc"}, {"before": "msg_9"}])
async def test_a_page_of_messages_costs_the_same_in_a_short_and_in_a_long_thread(tmp_path, monkeypatch, options):
    costs = []
    for messages in (30, 3000):
        thread_id = write_thread(tmp_path / str(messages), messages=messages)
        async with opened(tmp_path / str(messages)) as store:
            await store.list_messages(thread_id, limit=10)
            with monkeypatch.context() as patch:
                calls = counted(patch, os, FILE_CALLS)
                await store.list_messages(thread_id, limit=3, **options)
        costs.append(sorted(calls))
    assert costs[0] == costs[1]


async def test_to_page_through_a_thread_by_cursors_costs_each_page_the_same(tmp_path, monkeypatch):
    thread_id = write_thread(tmp_path, messages=3000)
    async with opened(tmp_path) as store:
        page = await store.list_messages(thread_id, limit=10)
        costs = []
        while page.has_more:
            with monkeypatch.context() as patch:
                calls = counted(patch, os, FILE_CALLS)
                page = await store.list_messages(thread_id, limit=10, after=page[-1].id)
            costs.append(len(calls))
    assert len(costs) == 299
    assert max(costs) <= min(costs) + 2, "where a page goes on in another block"


async def test_of_the_runs_of_a_thread_only_those_on_the_page_are_decoded(tmp_path, monkeypatch):
    thread_id = write_thread(tmp_path, runs=100)
    async with opened(tmp_path) as store:
        in_order = sorted(range(100), key=lambda number: (number * 7) % 100)
        ids = [f"run_{number:04}" for number in in_order]
        decoded = counted(monkeypatch, views, ["decode"])
        page = await store.list_runs(thread_id, limit=3, order="desc")
        assert ([run.id for run in page], page.has_more) == (ids[:-4:-1], True)
        page = await store.list_runs(thread_id, limit=3, after=ids[9])
        assert ([run.id for run in page], page.has_more) == (ids[10:13], True)
        page = await store.list_runs(thread_id, limit=3, before=ids[9])
        assert ([run.id for run in page], page.has_more) == (ids[6:9], True)
    assert len(decoded) <= 3 * 4, "and the next one, which says that there is more"


@pytest.mark.parametrize("damage", [{"status": 7}, {"model": 7}, {"id": None}])
async def test_a_run_that_is_damaged_beyond_its_place_takes_none_on_a_page(tmp_path, damage):
    thread_id = write_thread(tmp_path, runs=3)
    status = tmp_path / thread_id / "runs" / "run_0001" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | damage))
    async with opened(tmp_path) as store:
        found, after = [], None
        for has_more in (True, False):
            page = await store.list_runs(thread_id, limit=1, after=after)
            assert page.has_more is has_more
            found.append(after := page[0].id)
        whole = await store.list_runs(thread_id)
        assert found == [run.id for run in whole] == ["run_0000", "run_0002"]
        assert [(type(error), error.where) for error in whole.damaged] == [(SerializationError, str(status))]


@pytest.mark.parametrize("block", [5, 7, 64])
def test_a_text_is_found_in_a_log_wherever_blocks_end(tmp_path, monkeypatch, block):
    monkeypatch.setattr(log_lines, "_BLOCK_BYTES", block)
    path = tmp_path / "log"
    for shift in range(block + 1):
        lines = [b"x" * shift, b"", b"ab-cd", b"y" * 3 * block + b"abcd", b"abc", b"d", b"abcdabcd", b"z" * shift]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        with path.open("rb") as file:
            fd = file.fileno()
            stop = log_lines.end_of_lines(fd, path.stat().st_size)
            every = list(log_lines.lines_backward(fd, 0, stop))
            assert list(log_lines.lines_with(fd, b"abcd", stop)) == [line for line in every if b"abcd" in line[1]]
            assert list(log_lines.lines_with(fd, b"none", stop)) == []


async def test_a_claim_costs_the_same_with_ten_and_with_thousands_of_ended_runs(tmp_path, monkeypatch):
    costs = []
    for runs in (10, 2_000):
        root = tmp_path / str(runs)
        thread_id = write_thread(root, runs=runs)
        async with opened(root) as store:
            for _ in range(2):
                await store.create_run(thread_id, Run.new(thread_id, model="m"))
            first = await store.try_claim_run("worker")
            await store.write_run(first.lease, RunWrite(status=RunStatus.COMPLETED))
            with monkeypatch.context() as patch:
                calls = counted(patch, os, FILE_CALLS)
                assert await store.try_claim_run("worker") is not None
            costs.append(sorted(calls))
    assert costs[0] == costs[1]


async def test_creating_and_ending_a_run_costs_the_same_however_many_there_are(tmp_path, monkeypatch):
    costs = []
    for runs in (10, 1_000):
        root = tmp_path / str(runs)
        thread_id = write_thread(root, runs=runs, messages=runs)
        async with opened(root) as store:
            for _ in range(2):  # the first one finds out what there is
                with monkeypatch.context() as patch:
                    calls = counted(patch, os, FILE_CALLS)
                    run = await store.create_run(thread_id, Run.new(thread_id, model="m"))
                    await store.update_run_status(thread_id, run.id, RunStatus.COMPLETED)
            costs.append(sorted(calls))
    assert costs[0] == costs[1]
