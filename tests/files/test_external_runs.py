"""Runs that the queue does not name are found, in slices, on a budget, however they were written."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from threadloom import RunNotFoundError, RunStatus, StoreBusyError
from threadloom.stores.files import external_runs, layout, walk
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.external_runs import Scan
from threadloom.stores.files.walk import Mark, Walk

PATIENCE = 10


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for directory in layout.OWN_DIRECTORIES:
        (root / directory).mkdir(parents=True)
    return root


@pytest.fixture
def disk(root):
    disk = Disk(str(root), "ours")
    yield disk
    disk.close()


@pytest.fixture(autouse=True)
def no_slack(monkeypatch):
    """Let changes before a walk count as old at once: the files here are made moments before."""
    monkeypatch.setattr(walk, "_SLACK_NS", 0)


def write_run(thread: Path, run_id: str, status: str = "queued") -> None:
    directory = thread / "runs" / run_id
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "other").write_text(json.dumps({"id": run_id, "status": status}))
    (directory / "other").replace(directory / "status.json")


def write_queue_entry(root: Path, thread_id: str, *run_ids: str) -> None:
    entry = {"active": [[number, run_id] for number, run_id in enumerate(run_ids, 1)]}
    (root / layout.queue_entry(thread_id)).write_text(json.dumps(entry))


def let_time_go_by(root: Path) -> None:
    """Return when the clock of ctime, which is coarse, has moved on."""
    probe = root / layout.OWN / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.chmod(0o600)
    probe.unlink()


def mark_now(root: Path) -> Mark:
    let_time_go_by(root)
    mark = Mark(time.monotonic_ns(), walk._ahead_ns())
    let_time_go_by(root)
    return mark


def found_by(disk: Disk, last: Mark | None) -> list[str]:
    walk = Walk(disk, last)
    part = walk.slice(PATIENCE)
    walk.close()
    assert part.is_last
    return sorted(part.thread_ids)


# What a walk finds


def test_every_status_that_is_not_terminal_counts_as_active():
    assert {status.value for status in RunStatus if not status.is_terminal} == walk._ACTIVE


def test_an_active_run_is_found_unless_the_queue_names_it(disk, root):
    write_run(root / "thread_named", "run_1")
    write_queue_entry(root, "thread_named", "run_0", "run_1")
    write_run(root / "thread_other", "run_1")
    write_queue_entry(root, "thread_other", "run_2")
    write_run(root / "thread_no_entry", "run_1")
    write_run(root / "thread_torn_entry", "run_1")
    (root / layout.queue_entry("thread_torn_entry")).write_text('{"active": [[1]]}')
    write_run(root / "thread_done", "run_1", "completed")
    assert found_by(disk, None) == ["thread_no_entry", "thread_other", "thread_torn_entry"]


def test_only_what_changed_since_the_last_walk_is_read(disk, root, monkeypatch):
    for number in range(3):
        write_run(root / f"thread_{number}", "run_1", "completed")
    mark = mark_now(root)
    read: list[str] = []
    plain = disk.read

    def counting(path):
        read.append(path)
        return plain(path)

    monkeypatch.setattr(disk, "read", counting)
    assert found_by(disk, mark) == []
    assert read == []
    write_run(root / "thread_1", "run_1")
    assert found_by(disk, mark) == ["thread_1"]
    assert read == [layout.status("thread_1", "run_1"), layout.queue_entry("thread_1")]


@pytest.mark.parametrize("how", ["made", "renamed over", "written in place", "moved here", "thread moved here"])
def test_an_external_run_is_found_however_it_was_written(disk, root, tmp_path, how):
    write_run(root / "thread_1", "run_done", "completed")
    write_run(tmp_path / "aside" / "thread_1", "run_aside")
    write_run(tmp_path / "aside" / "thread_2", "run_aside")
    mark = mark_now(root)
    assert found_by(disk, mark) == []
    match how:
        case "made":
            write_run(root / "thread_1", "run_new")
        case "renamed over":
            write_run(root / "thread_1", "run_done")
        case "written in place":
            (root / layout.status("thread_1", "run_done")).write_text('{"status": "queued"}')
        case "moved here":
            (tmp_path / "aside" / "thread_1" / "runs" / "run_aside").rename(root / layout.run("thread_1", "run_aside"))
        case "thread moved here":
            (tmp_path / "aside" / "thread_2").rename(root / "thread_2")
    assert found_by(disk, mark) == ["thread_2" if how == "thread moved here" else "thread_1"]


def test_a_change_is_found_although_the_wall_clock_was_set_back_since_the_last_walk(disk, root):
    mark = mark_now(root)
    an_hour_ahead = Mark(mark.began_ns, mark.ahead_ns + 3_600_000_000_000)  # before the clock was set back
    write_run(root / "thread_1", "run_1")
    assert found_by(disk, an_hour_ahead) == ["thread_1"]


def test_damage_and_links_hide_nothing_and_are_not_followed(disk, root, tmp_path):
    thread = root / "thread_1"
    for number, content in enumerate(["{", "[]", '"queued"', '{"status": ["queued"]}', '{"status": "odd"}', "\udcff"]):
        (thread / "runs" / f"run_{number}").mkdir(parents=True)
        status = thread / "runs" / f"run_{number}" / "status.json"
        status.write_bytes(content.encode(errors="surrogateescape"))
    (thread / "runs" / "run_empty").mkdir()
    (thread / "runs" / "run_file").touch()
    (root / "thread_file").touch()
    (root / "thread_odd").mkdir()
    (root / "thread_odd" / "runs").touch()
    write_run(tmp_path / "outside", "run_1")
    (root / "thread_link").symlink_to(tmp_path / "outside")
    (root / "thread_linked_runs").mkdir()
    (root / "thread_linked_runs" / "runs").symlink_to(tmp_path / "outside" / "runs")
    (root / "thread_linked_run" / "runs").mkdir(parents=True)
    (root / layout.run("thread_linked_run", "run_1")).symlink_to(tmp_path / "outside" / "runs" / "run_1")
    for last in (None, Mark(0, 0)):
        assert found_by(disk, last) == []
    write_run(thread, "run_good")
    for last in (None, Mark(0, 0)):
        assert found_by(disk, last) == ["thread_1"]


def test_a_slice_ends_when_its_time_is_used_and_the_next_one_goes_on(disk, root):
    for number in range(5):
        write_run(root / f"thread_{number}", "run_1", "completed")
    write_run(root / "thread_2", "run_2")
    walk = Walk(disk, None)
    slices = [walk.slice(0)]
    while not slices[-1].is_last:
        slices.append(walk.slice(0))
    walk.close()
    assert len(slices) > 10, "one for each thread and each run"
    assert [thread_id for part in slices for thread_id in part.thread_ids] == ["thread_2"]


def test_a_walk_that_is_closed_early_leaves_nothing_open(disk, root):
    for number in range(5):
        write_run(root / f"thread_{number}", "run_1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    walk = Walk(disk, None)
    walk.slice(0)
    walk.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# The scan


class Backend:
    """Runs a scan, and records what it finds and how long it rests."""

    def __init__(self, disk: Disk, root: Path) -> None:
        self.scan = Scan(disk, "boot")
        self.root = root
        self.found: list[str] = []
        self.rests: list[float] = []
        self.used: list[float] = []
        self.error: Exception | None = None  # raised instead of correcting anything

    async def read(self, function):
        result = await asyncio.to_thread(function)
        if isinstance(result, walk.Slice):
            self.used.append(result.seconds)
        return result

    async def correct(self, thread_id: str) -> None:
        self.found.append(thread_id)
        if self.error is not None:
            raise self.error
        await asyncio.to_thread(write_queue_entry, self.root, thread_id, "run_1")

    async def run(self, walks: int) -> None:
        """Let the scan walk that often; each rest takes no time."""

        async def sleep(seconds: float) -> None:
            self.rests.append(seconds)
            if self.rests.count(external_runs._PAUSE_SECONDS) == walks:
                is_done.set()
                await asyncio.Event().wait()

        is_done = asyncio.Event()
        self.scan.repeat()
        async with self.running(sleep), asyncio.timeout(PATIENCE):
            await is_done.wait()

    @asynccontextmanager
    async def running(self, sleep=asyncio.sleep):
        task = asyncio.create_task(self.scan.run_forever(self.read, self.correct, sleep))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture
def backend(disk, root):
    return Backend(disk, root)


async def test_a_found_thread_is_reported_once_if_it_is_corrected(backend, root):
    write_run(root / "thread_1", "run_1")
    await backend.run(walks=3)
    assert backend.found == ["thread_1"]


async def test_each_slice_is_paid_for_by_a_rest(backend, root, monkeypatch):
    monkeypatch.setattr(Walk.slice, "__defaults__", (0,))
    write_run(root / "thread_1", "run_1")
    await backend.run(walks=1)
    rests = [seconds / 0.0003 for seconds in backend.used]
    assert backend.rests == [external_runs._FIRST_PAUSE_SECONDS, *rests, external_runs._PAUSE_SECONDS]
    assert len(rests) > 3


@pytest.mark.parametrize("error", [StoreBusyError("locked"), RunNotFoundError("thread_1", "run_1"), OSError("disk")])
async def test_a_busy_thread_is_read_again_and_any_other_error_ends_nothing(backend, root, error):
    write_run(root / "thread_1", "run_1")
    write_run(root / "thread_2", "run_1")
    let_time_go_by(root)
    backend.error = error
    await backend.run(walks=2)
    times = 2 if isinstance(error, StoreBusyError) else 1
    assert sorted(backend.found) == ["thread_1"] * times + ["thread_2"] * times


async def test_a_walk_past_everything_takes_no_rest_and_says_when_it_is_complete(backend, root):
    write_run(root / "thread_1", "run_1")
    backend.scan.walk_all()
    assert not backend.scan.walked.is_set()
    async with backend.running(), asyncio.timeout(PATIENCE):
        await backend.scan.walked.wait()
        assert backend.scan.is_complete
        assert backend.found == ["thread_1"]
        count = len(backend.used)
        await backend.read(lambda: None)
        assert len(backend.used) == count, "nothing is repeated for a store that claims no runs"


async def test_nobody_waits_for_a_walk_that_failed_and_it_is_not_complete(backend, root, caplog):
    backend.scan._disk.root = str(root / "missing")
    backend.scan.walk_all()
    async with backend.running(), asyncio.timeout(PATIENCE):
        await backend.scan.walked.wait()
    assert not backend.scan.is_complete
    assert "The scan for external runs failed" in caplog.text


async def test_a_walk_begins_where_that_of_any_process_ended_since_the_machine_started(backend, disk):
    await backend.run(walks=1)
    assert backend.scan._mark is not None
    assert await asyncio.to_thread(Scan(disk, "boot")._last_mark) == backend.scan._mark
    for boot in ("another boot", ""):
        assert await asyncio.to_thread(Scan(disk, boot)._last_mark) is None
    await asyncio.to_thread(disk.replace, external_runs._SCANNED, b"{")
    assert await asyncio.to_thread(Scan(disk, "boot")._last_mark) is None
    assert await asyncio.to_thread(backend.scan._last_mark) == backend.scan._mark
