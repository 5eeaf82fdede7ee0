"""A store with a worker finds what other programs queued without touching the queue directory.

``test_external_runs.py`` tests the walk itself. The pauses between two walks are shortened here, which is private.
"""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from threadloom import FileStore, Run, RunStatus, RunWrite, Thread
from threadloom.stores.files import external_runs

PATIENCE = 60


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        yield store


@pytest.fixture
def at_once(monkeypatch):
    """Let walks follow each other without a long rest."""
    monkeypatch.setattr(external_runs, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(external_runs, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(external_runs, "_BUDGET", 0.5)


def write_run(directory: Path, status="queued", created_at=1) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    record = {"id": directory.name, "created_at": created_at, "thread_id": directory.parent.parent.name}
    new = directory / "new"
    new.write_text(json.dumps(record | {"status": status, "model": "m"}))
    new.replace(directory / "status.json")


def write_thread(directory: Path, *runs: str, status="queued") -> None:
    directory.mkdir(parents=True)
    (directory / "meta.json").write_text(json.dumps({"id": directory.name, "object": "thread", "created_at": 1}))
    for run_id in runs:
        write_run(directory / "runs" / run_id, status)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("kind", ["new", "again", "by hand"])
async def test_a_worker_that_waits_is_given_what_another_program_queues(store, at_once, kind):
    thread = await store.create_thread(Thread.new())
    done = await store.create_run(thread.id, Run.new(thread.id, model="m", status=RunStatus.COMPLETED))
    async with asyncio.timeout(PATIENCE):
        waiting = asyncio.create_task(store.claim_run("worker", adopt=kind == "by hand"))
        for _ in range(20):
            await store.list_thread_ids()
        run_id = done.id if kind == "again" else "run_new"
        write_run(store.run_dir(thread.id, run_id), "in_progress" if kind == "by hand" else "queued")
        claim = await waiting
    assert claim.run.id == run_id
    await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))


async def test_what_other_programs_queue_comes_first_in_its_own_order_and_all_keep_their_turn(store, at_once):
    thread = await store.create_thread(Thread.new())
    ours = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    claim = await store.try_claim_run("worker")
    for run_id, created_at in (("run_c", 5), ("run_a", 5), ("run_b", 3)):
        write_run(store.run_dir(thread.id, run_id), created_at=created_at)
    async with asyncio.timeout(PATIENCE):
        turn = store.root / ".threadloom" / "queue" / thread.id
        while turn.read_text().count("run_") < 4:  # noqa: ASYNC110 - files are all there is to look at
            await asyncio.sleep(0.01)
        await store.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED))
        taken = []
        for _ in range(4):
            claim = await store.claim_run("worker")
            taken.append(claim.run.id)
            await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
    assert taken == ["run_b", "run_a", "run_c", ours.id]


async def test_a_claim_waits_for_the_index_before_it_finds_nothing(tmp_path):
    for number in range(100):
        write_thread(tmp_path / f"thread_{number}", "run_1")
    async with FileStore(tmp_path, durability="process") as store:
        claimed = 0
        while await store.try_claim_run("worker") is not None:
            claimed += 1
        assert claimed == 100, "None is returned only when all are found"


async def test_after_a_start_of_the_machine_runs_are_claimed_in_their_order(tmp_path):
    async with FileStore(tmp_path, durability="process") as store:
        threads = [await store.create_thread(Thread.new()) for _ in range(5)]
        runs = [await store.create_run(thread.id, Run.new(thread.id, model="m")) for thread in threads]
    own = tmp_path / ".threadloom"
    (own / "boot").write_text("another\n")
    for turn in (own / "queue").iterdir():
        turn.write_text(json.dumps(json.loads(turn.read_bytes()) | {"boot": "another"}))
    async with FileStore(tmp_path, durability="process") as store:
        claims = [await store.try_claim_run("worker") for _ in runs]
        assert [claim.run.id for claim in claims if claim] == [run.id for run in runs]


@pytest.mark.parametrize("is_indexed", [False, True])
async def test_a_store_that_is_closed_in_the_middle_of_a_walk_leaves_nothing_open(tmp_path, monkeypatch, is_indexed):
    monkeypatch.setattr(external_runs, "_FIRST_PAUSE_SECONDS", 0)
    for number in range(30):
        write_thread(tmp_path / f"thread_{number}", "run_1", status="completed")
    if is_indexed:
        async with FileStore(tmp_path, durability="process") as store:
            assert await store.try_claim_run("worker") is None
    before = open_descriptors()
    for ticks in (0, 1, 5, 20, 50, 100):
        if not is_indexed:
            shutil.rmtree(tmp_path / ".threadloom", ignore_errors=True)
        async with FileStore(tmp_path, durability="process") as store:
            if is_indexed:
                assert await store.try_claim_run("worker") is None
            for _ in range(ticks):
                await asyncio.sleep(0)
        assert open_descriptors() == before
