"""Links, FIFOs and directories in the place of records are reported, and never followed, opened or removed."""

import json
import os
import shutil

import pytest

from tests.support.check_fixtures import DONE, EVENTS, MESSAGES, OTHER, OWN, THREAD, change, files_in, found, full_store
from threadloom import CheckReport, Message, Run, RunStatus, SerializationError

STEP = f"{DONE}/steps/step_a.json"
PLACES = [
    f"{THREAD}/meta.json",
    MESSAGES,
    EVENTS,
    STEP,
    f"{DONE}/status.json",
    f"{OWN}/queue/{THREAD}",
    f"{OWN}/assistants/asst_a.json",
]


@pytest.fixture
async def store(tmp_path):
    async with full_store(tmp_path / "store") as store:
        yield store


def a_link(path, outside):
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside)


def a_dangling_link(path, outside):
    path.unlink()
    path.symlink_to(outside)


def a_fifo(path, _):
    path.unlink()
    os.mkfifo(path)


def a_directory(path, _):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("replace", [a_link, a_dangling_link, a_fifo, a_directory])
@pytest.mark.parametrize("place", PLACES)
async def test_what_is_no_file_is_reported_and_left_as_it_is(store, tmp_path, place, replace):
    path, outside = store.root / place, tmp_path / "outside"
    replace(path, outside)
    before = path.lstat()
    kept = outside.read_bytes() if outside.exists() else None

    for report in (await store.check(), await store.check(fix=True), await store.check(fix=True)):
        [problem] = [problem for problem in report.problems if problem.where == place]
        assert problem.kind == "not_a_file"
        assert not problem.is_fixed
        assert "Somebody has to look at it." in problem.description
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert (outside.read_bytes() if outside.exists() else None) == kept


@pytest.mark.parametrize("directory", [THREAD, f"{THREAD}/runs", DONE, f"{DONE}/steps"])
async def test_a_link_in_the_place_of_a_directory_is_reported_and_not_followed(store, tmp_path, directory):
    outside = tmp_path / "outside"
    (store.root / directory).rename(outside)
    (store.root / directory).symlink_to(outside)
    for path in outside.rglob("step_a.json"):
        path.unlink()
    before = files_in(outside)

    report = await store.check(fix=True)

    assert ("not_a_file", directory) in found(report)
    assert (store.root / directory).is_symlink()
    assert files_in(outside) == before


async def test_a_link_among_left_overs_is_removed_and_not_entered(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    for name in ("tmp", "trash"):
        (store.root / OWN / name / "store_gone-1").symlink_to(outside)

    report = await store.check(fix=True)

    assert found(report) == [("left_over", f"{OWN}/{name}/store_gone-1") for name in ("tmp", "trash")]
    assert report.is_clean
    assert (outside / "precious").read_text() == "kept"


def nested(levels):
    value: dict[str, object] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


async def test_a_record_that_is_nested_too_deep_is_damage_that_blocks_nobody(store):
    metadata = nested(900)
    run = await store.create_run(OTHER, Run.new(OTHER, model="any"))
    path = store.run_dir(OTHER, run.id) / "status.json"
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps(record | {"metadata": metadata}))

    with pytest.raises(SerializationError, match="nested more than 240 levels deep"):
        await store.get_run(OTHER, run.id)
    await store.force_update_run_status(OTHER, "run_hand", RunStatus.CANCELLED)
    assert found(await store.check()) == [("damaged_record", f"{OTHER}/runs/{run.id}/status.json")]
    assert (await store.check(fix=True)).is_clean
    assert await store.get_run(OTHER, run.id) == run
    assert (await store.force_update_run_status(OTHER, run.id, RunStatus.CANCELLED)).status is RunStatus.CANCELLED


async def test_a_record_of_another_program_that_is_nested_as_deep_as_may_be_is_forced(store):
    metadata = nested(238)
    change(store.run_dir(THREAD, "run_hand") / "status.json", metadata=metadata)
    run = await store.force_update_run_status(THREAD, "run_hand", RunStatus.CANCELLED)
    assert (run.status, run.metadata) == (RunStatus.CANCELLED, metadata)
    assert (await store.check()).problems == ()


async def test_an_empty_directory_is_no_thread(store):
    (store.root / "thread_empty").mkdir()
    assert await store.check(fix=True) == CheckReport((), 2)
    assert (store.root / "thread_empty").is_dir()


async def test_a_file_with_the_name_of_a_thread_is_none_of_ours(store):
    (store.root / "notes").write_text("remember the milk")
    assert await store.check(fix=True) == CheckReport((), 2)


async def test_what_may_not_be_read_is_reported_and_hides_no_other(store, monkeypatch):
    read = type(store._backend._disk).read

    def refuse(disk, path):
        if path == f"{DONE}/status.json":
            raise PermissionError(13, "Permission denied", path)
        return read(disk, path)

    monkeypatch.setattr(type(store._backend._disk), "read", refuse)
    (store.root / STEP).unlink()
    await store.append_message(OTHER, Message.user(OTHER, "hello"))
    report = await store.check()
    assert ("not_checked", f"{DONE}/status.json") in found(report)
