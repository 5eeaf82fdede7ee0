"""The runs are the truth: what the index does not say is found, in slices, and what is found costs no more for it."""

import asyncio
import json
import os
import shutil
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from threadloom import FileStore, Run, RunStatus, RunWrite, Thread
from threadloom.stores.files import _dead, _sweep
from threadloom.stores.files._sweep import Mark, Slice, Sweep, Walk

PATIENCE = 10

# What a program asks of the file system through Python.
FILE_CALLS = (
    *("open", "close", "read", "pread", "write", "pwrite", "stat", "lstat", "fstat", "scandir", "listdir"),
    *("mkdir", "rename", "unlink", "ftruncate", "fsync", "fdatasync"),
)


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        yield store


@pytest.fixture(autouse=True)
def no_slack(monkeypatch):
    """Let what changed before a walk count as old at once: the files here are made moments before."""
    monkeypatch.setattr(_sweep, "_SLACK_NS", 0)


def write_foreign_run(directory: Path, status="queued", **keys) -> str:
    """Write a run as a program does that knows the layout and nothing else; return its id."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {"object": "thread.run", "created_at": 1, "thread_id": directory.parents[1].name, "model": "m"}
    other = directory / "other"
    other.write_text(json.dumps(record | {"id": directory.name, "status": status} | keys))
    other.replace(directory / "status.json")
    return directory.name


def write_foreign_thread(directory: Path, *runs: str, status="queued") -> None:
    directory.mkdir(parents=True)
    (directory / "meta.json").write_text(json.dumps({"id": directory.name, "object": "thread", "created_at": 1}))
    for run_id in runs:
        write_foreign_run(directory / "runs" / run_id, status)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def let_time_go_by(root: Path) -> None:
    """Return when the clock that files bear, which moves in ticks, has moved on."""
    probe = root / ".threadloom" / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.chmod(0o600)
    probe.unlink()


def mark_now(root: Path) -> Mark:
    let_time_go_by(root)
    mark = Mark(time.monotonic_ns(), _sweep._ahead())
    let_time_go_by(root)
    return mark


async def found_by(store: FileStore, last: Mark | None) -> list[tuple[str, tuple[str, ...]]]:
    """Walk to the end, and return what was found, by thread."""
    slices = await slices_of(store, last)
    return sorted((found.thread_id, found.run_ids) for part in slices for found in part.found)


async def slices_of(store: FileStore, last: Mark | None, seconds: float = 1) -> list[Slice]:
    walk = Walk(store._layout, store._parts.disk, store._parts.runs, last)
    slices = [await asyncio.to_thread(walk.slice, seconds)]
    while not slices[-1].is_last:
        slices.append(await asyncio.to_thread(walk.slice, seconds))
    return slices


def counted(monkeypatch, owner, name: str, calls: list[str]) -> None:
    """Note in ``calls`` each call of a function that somebody owns."""
    plain = getattr(owner, name)

    def call(*args, **options):
        calls.append(name)
        return plain(*args, **options)

    monkeypatch.setattr(owner, name, call)


async def new_run(store: FileStore, thread_id: str | None = None, status=RunStatus.QUEUED) -> Run:
    thread_id = thread_id or (await store.create_thread(Thread.new())).id
    return await store.create_run(thread_id, Run.new(thread_id, model="m", status=status))


# What a walk finds


async def test_what_did_not_change_since_the_last_walk_is_not_read(store, monkeypatch):
    for status in (RunStatus.COMPLETED, RunStatus.QUEUED, RunStatus.COMPLETED):
        await new_run(store, status=status)
    mark = mark_now(store.root)
    read: list[str] = []
    counted(monkeypatch, store._parts.runs, "record", read)
    assert await found_by(store, mark) == []
    assert read == []
    await new_run(store)
    read.clear()
    assert await found_by(store, mark) == [], "the turn names it"
    assert len(read) == 1


@pytest.mark.parametrize("how", ["made", "renamed over", "written in place", "moved here", "thread moved here"])
async def test_a_run_that_another_program_queues_is_found_however_it_is_written(store, tmp_path, how):
    done = await new_run(store, status=RunStatus.COMPLETED)
    aside = tmp_path / "aside"
    write_foreign_thread(aside / done.thread_id, "run_aside")
    write_foreign_thread(aside / "thread_aside", "run_aside", "run_too")
    mark = mark_now(store.root)
    assert await found_by(store, mark) == []
    expected: tuple[str, tuple[str, ...]] = (done.thread_id, ("run_new",))
    match how:
        case "made":
            write_foreign_run(store.run_dir(done.thread_id, "run_new"))
        case "renamed over":
            write_foreign_run(store.run_dir(done.thread_id, done.id), sequence=done.sequence)
            expected = (done.thread_id, (done.id,))
        case "written in place":
            status = store.run_dir(done.thread_id, done.id) / "status.json"
            status.write_text(status.read_text().replace("completed", "queued"))
            expected = (done.thread_id, (done.id,))
        case "moved here":
            (aside / done.thread_id / "runs" / "run_aside").rename(store.run_dir(done.thread_id, "run_aside"))
            expected = (done.thread_id, ("run_aside",))
        case "thread moved here":
            (aside / "thread_aside").rename(store.thread_dir("thread_aside"))
            expected = ("thread_aside", ("run_aside", "run_too"))
    [(thread_id, run_ids)] = await found_by(store, mark)
    assert (thread_id, tuple(sorted(run_ids))) == expected


async def test_a_change_is_found_although_the_clock_was_set_back_since_the_last_walk(store):
    done = await new_run(store, status=RunStatus.COMPLETED)
    mark = mark_now(store.root)
    an_hour_ahead = Mark(mark.began, mark.ahead + 3_600_000_000_000)  # what the wall's clock said before it was set
    write_foreign_run(store.run_dir(done.thread_id, "run_new"))
    assert await found_by(store, an_hour_ahead) == [(done.thread_id, ("run_new",))]


async def test_damage_in_one_run_hides_no_other(store):
    done = await new_run(store, status=RunStatus.COMPLETED)
    write_foreign_run(store.run_dir(done.thread_id, "run_a"))
    (store.run_dir(done.thread_id, "run_a") / "status.json").write_text("{")
    store.run_dir(done.thread_id, "run_b").mkdir()
    (store.root / "thread_file").write_text("no directory")
    (store.root / "thread_odd").mkdir()
    (store.root / "thread_odd" / "runs").write_text("no directory")
    write_foreign_run(store.run_dir(done.thread_id, "run_c"))
    for last in (None, Mark(0, 0)):
        assert await found_by(store, last) == [(done.thread_id, ("run_c",))]


# In slices


async def test_a_slice_ends_when_its_time_is_used_and_the_next_goes_on(store):
    for _ in range(5):
        await new_run(store, status=RunStatus.COMPLETED)
    slices = await slices_of(store, None, seconds=0)
    assert len(slices) > 10, "one for each thread and each run"
    assert all(part.seconds >= 0 for part in slices)


async def test_each_slice_is_rested_for_by_the_budget(store, monkeypatch):
    monkeypatch.setattr(_sweep, "_SLICE_SECONDS", 0)
    done = [await new_run(store, status=RunStatus.COMPLETED) for _ in range(3)]
    write_foreign_run(store.run_dir(done[0].thread_id, "run_new"))
    used, rests, has_swept = [], [], asyncio.Event()
    plain = Walk.slice

    def measured(walk, seconds=0):
        part = plain(walk, seconds)
        used.append(part.seconds)
        return part

    async def rest(self, seconds):
        rests.append(seconds)
        if rests.count(_sweep._PAUSE_SECONDS):
            has_swept.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(Walk, "slice", measured)
    monkeypatch.setattr(Sweep, "_rest", rest)
    async with asyncio.timeout(PATIENCE):
        claim = await store.claim_run("worker")
        await has_swept.wait()
    assert claim.run.id == "run_new"
    assert rests == [_sweep._FIRST_PAUSE_SECONDS, *(seconds / 0.0003 for seconds in used), _sweep._PAUSE_SECONDS]


async def test_a_sweep_is_not_done_twice_for_what_any_process_has_swept(store, monkeypatch):
    async def rest(self, seconds):
        if seconds == _sweep._PAUSE_SECONDS:
            await asyncio.Event().wait()

    monkeypatch.setattr(Sweep, "_rest", rest)
    before = time.monotonic_ns()
    async with asyncio.timeout(PATIENCE):
        assert await store.try_claim_run("worker") is None
        while store._parts.sweep._mark is None or store._parts.sweep._mark.began < before:  # noqa: ASYNC110
            await asyncio.sleep(0)
    async with FileStore(store.root) as other:
        assert await asyncio.to_thread(other._parts.sweep._last_mark) == store._parts.sweep._mark
        other._parts.runs.turns.boot = "another"
        assert await asyncio.to_thread(other._parts.sweep._last_mark) is None


# The whole of it


@pytest.fixture
def at_once(monkeypatch):
    """Let sweeps follow each other without a rest."""

    async def rest(self, seconds):
        await asyncio.sleep(0)

    monkeypatch.setattr(Sweep, "_rest", rest)


@pytest.mark.parametrize("kind", ["new", "again", "by hand"])
async def test_a_worker_that_waits_is_given_what_another_program_queues(store, at_once, kind):
    done = await new_run(store, status=RunStatus.COMPLETED)
    async with asyncio.timeout(PATIENCE):
        waiting = asyncio.create_task(store.claim_run("worker", adopt=kind == "by hand"))
        while store._parts.sweep._mark is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        run_id = done.id if kind == "again" else "run_new"
        status = "in_progress" if kind == "by hand" else "queued"
        write_foreign_run(store.run_dir(done.thread_id, run_id), status)
        claim = await waiting
    assert claim.run.id == run_id
    await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))


async def test_what_other_programs_queue_comes_first_in_its_own_order_and_all_keep_their_turn(store, at_once):
    ours = await new_run(store)
    claim = await store.try_claim_run("worker")
    for run_id, created_at in (("run_c", 5), ("run_a", 5), ("run_b", 3)):
        write_foreign_run(store.run_dir(ours.thread_id, run_id), created_at=created_at)
    async with asyncio.timeout(PATIENCE):
        turn = store.root / ".threadloom" / "turns" / f"{ours.thread_id}.json"
        while turn.read_text().count("run_") < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await store.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED))
        taken = []
        for _ in range(4):
            claim = await store.claim_run("worker")
            taken.append(claim.run.id)
            await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
    assert taken == ["run_b", "run_a", "run_c", ours.id]


async def test_a_take_has_what_the_making_of_the_index_has_found_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(_sweep, "_SLICE_SECONDS", 0)
    for number in range(300):
        write_foreign_thread(tmp_path / f"thread_{number}", "run_1")
    async with FileStore(tmp_path, durability="process") as store:
        assert await store.try_claim_run("worker") is not None
        assert store._parts.sweep.is_indexing, "it was not waited for"
        taken = 1
        while await store.try_claim_run("worker") is not None:
            taken += 1
        assert taken == 300, "none is called nothing before all are found"
        assert not store._parts.sweep.is_indexing


async def test_after_a_start_of_the_machine_the_old_index_says_where_to_begin(tmp_path):
    async with FileStore(tmp_path, durability="process") as store:
        runs = []
        for _ in range(5):
            thread = await store.create_thread(Thread.new())
            runs.append(await new_run(store, thread.id))
    own = tmp_path / ".threadloom"
    (own / "boot").write_text("another\n")
    for turn in (own / "turns").iterdir():
        turn.write_text(json.dumps(json.loads(turn.read_bytes()) | {"boot": "another"}))
    async with FileStore(tmp_path, durability="process") as store:
        claims = [await store.try_claim_run("worker") for _ in runs]
        assert [claim.run.id for claim in claims if claim] == [run.id for run in runs], "and in which order"


@pytest.mark.parametrize("is_indexed", [False, True])
async def test_a_store_that_is_closed_in_the_middle_of_a_walk_leaves_nothing_open(tmp_path, monkeypatch, is_indexed):
    monkeypatch.setattr(_sweep, "_SLICE_SECONDS", 0)
    monkeypatch.setattr(_sweep, "_FIRST_PAUSE_SECONDS", 0)
    for number in range(30):
        write_foreign_thread(tmp_path / f"thread_{number}", "run_1", status="completed")
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


# What a claim costs


def while_taking(monkeypatch, parts, calls: list[str]) -> None:
    """Note in ``calls`` what is asked of files while a run is being taken, and nothing that others ask meanwhile."""
    taking: set[int] = set()
    plain_take = parts.take
    for name in FILE_CALLS:
        plain = getattr(os, name)

        def call(*args, name=name, plain=plain, **options):
            if threading.get_ident() in taking:
                calls.append(name)
            return plain(*args, **options)

        monkeypatch.setattr(os, name, call)

    def take(attempt):
        work = plain_take(attempt)
        while True:
            taking.add(threading.get_ident())
            try:
                next(work)
            except StopIteration as stop:
                return stop.value
            finally:
                taking.clear()
            yield

    monkeypatch.setattr(parts, "take", take)


async def test_a_claim_costs_the_same_with_ten_and_with_thousands_of_finished_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(_sweep, "_FIRST_PAUSE_SECONDS", 3600)
    monkeypatch.setattr(_dead, "_TICK_NS", 0)  # journals that were made just now are not listed once more
    costs = []
    for finished in (10, 3000):
        root = tmp_path / str(finished)
        for number in range(5):
            write_foreign_thread(root / f"thread_{number}")
        for number in range(finished):
            write_foreign_run(root / f"thread_{number % 5}" / "runs" / f"run_{number}", "completed")
        # Nothing else is to happen in between: nobody looks for the dead, and the index is made.
        async with FileStore(root, durability="process", lease_duration=timedelta(hours=1)) as store:
            assert await store.try_claim_run("worker") is None
            while store._parts.recovery._searched is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            runs = [await new_run(store, f"thread_{number}") for number in (0, 0, 1)]
            calls: list[str] = []
            with monkeypatch.context() as patch:
                while_taking(patch, store._parts, calls)
                claims = [await store.try_claim_run("worker") for _ in range(3)]
        assert [claim and claim.run.id for claim in claims] == [runs[0].id, runs[2].id, None]
        costs.append(sorted(calls))
    assert costs[0] == costs[1]
    assert 0 < len(costs[0]) < 150
