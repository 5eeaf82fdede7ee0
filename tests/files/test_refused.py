"""What is kept open, and what is refused in the middle of an act, be it only a look: nothing stays half done."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.files.crash_stories import a_run, a_thread, taken
from tests.support.disk_calls import Call, intercept
from threadloom import FileStore, Message, RunStatus, RunStep, RunWrite, StoreIOError
from threadloom.stores.files import _disk
from threadloom.stores.files._log import Logs

LOOKS = frozenset({"stat", "fstat", "pread", "read", "open", "close"})


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@define
class Refusal:
    """Refuses one call, the one with a certain number of those that are made while it counts."""

    at: int
    calls: int | None = field(default=None, init=False)
    is_done: bool = field(default=False, init=False)

    def __call__(self, call: Call) -> Any:
        if self.calls is None or call.name not in LOOKS:
            return call()
        number, self.calls = self.calls, self.calls + 1
        if number != self.at:
            return call()
        self.is_done = True
        if call.name == "close":
            call()
        raise OSError(errno.EIO, "refused")


async def set_the_scene(store: FileStore) -> Any:
    await store.create_thread(a_thread("t"))
    await store.append_message("t", Message.user("t", "first"))
    await store.create_run("t", a_run("t", id="r"))
    claim = await taken(store)
    step = RunStep.tool_calls(thread_id="t", run_id="r")
    await store.write_run(claim.lease, RunWrite(items=(step, Message.assistant("t", "a reply", run_id="r"))))
    return claim


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.CANCELLED])
async def test_an_act_that_is_refused_any_look_is_made_or_not_and_leaves_nothing_open(tmp_path, monkeypatch, status):
    monkeypatch.setattr("tests.support.disk_calls.TRACKED", LOOKS | {"write", "rename", "unlink", "ftruncate"})
    at, failed = 0, 0
    while True:
        root, opened, refusal = tmp_path / str(at), open_descriptors(), Refusal(at)
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, refusal)
            async with FileStore(root, durability="process") as store:
                claim = await set_the_scene(store)
                refusal.calls = 0
                try:
                    if status is RunStatus.COMPLETED:
                        await store.write_run(claim.lease, RunWrite(status=status))
                    else:
                        await store.force_update_run_status("t", "r", status)
                except StoreIOError:
                    failed += 1
                refusal.calls = None
                problems = (await store.check()).problems
                assert {str(problem.kind) for problem in problems} <= {"dead_lease"}, (at, problems)
                await store.force_update_run_status("t", "r", RunStatus.FAILED)
                assert [step.status == "in_progress" for step in await store.list_steps("t", "r")] == [False]
        assert open_descriptors() == opened, at
        if not refusal.is_done:
            break
        at += 1
    assert failed > 10


@define
class Displaced:
    """A foreign program that replaces a record right before ours comes, and then one call that is refused."""

    foreign: Callable[[], object] | None
    refused: str
    is_exchanged: bool = field(default=False, init=False)
    is_done: bool = field(default=False, init=False)

    def __call__(self, call: Call) -> Any:
        if call.name == "renameat2" and call.args[-1] == 2 and not self.is_exchanged:
            self.is_exchanged = True
            if self.foreign is not None:
                self.foreign()
        elif call.name == self.refused and self.is_exchanged and not self.is_done:
            self.is_done = True
            raise OSError(errno.EMFILE, "refused")
        return call()


@pytest.mark.parametrize("refused", ["stat", "open"])
@pytest.mark.parametrize("is_foreign", [False, True])
def test_a_record_that_was_displaced_and_cannot_be_looked_at_goes_back(tmp_path, monkeypatch, refused, is_foreign):
    monkeypatch.setattr("tests.support.disk_calls.TRACKED", {"stat", "open", "renameat2"})
    path = tmp_path / "status.json"
    path.write_text("old")

    def replace() -> None:
        path.with_name("foreign").write_text("of another")
        path.with_name("foreign").replace(path)

    disk = _disk.Disk(str(tmp_path), "ours")
    with disk.hold(str(path)) as held, pytest.MonkeyPatch.context() as patch:
        displaced = Displaced(replace if is_foreign else None, refused)
        intercept(patch, displaced)
        if refused == "open" and not is_foreign:
            disk.rewrite(held, b"new").clear()
        else:
            with pytest.raises(OSError, match="refused"):
                disk.rewrite(held, b"new")
    expected = "of another" if is_foreign else "new" if refused == "open" else "old"
    assert path.read_text() == expected
    assert list(tmp_path.iterdir()) == [path]
    disk.close()


def test_what_was_taken_back_says_nothing_of_where_a_log_ends(tmp_path):
    (tmp_path / "damaged").mkdir()
    disk, path = _disk.Disk(str(tmp_path), "ours"), tmp_path / "messages.jsonl"
    logs = Logs(disk, str(tmp_path / "damaged"))
    start = logs.append(str(path), b'{"a": 1}\n')
    logs.cut(str(path), start, b'{"a": 1}\n')
    path.write_bytes(b'{"b": "to')  # as long as that, by another writer, who was killed in the middle of it

    logs.append(str(path), b'{"c": 1}\n')
    assert path.read_bytes() == b'{"c": 1}\n'
    assert [file.read_bytes() for file in (tmp_path / "damaged").iterdir()] == [b'{"b": "to']
    logs.close()


def test_of_a_record_that_stays_open_only_the_descriptor_is_kept(tmp_path):
    path, disk = tmp_path / "record.json", _disk.Disk(str(tmp_path), "ours")
    path.write_bytes(b"old")
    with disk.hold(str(path)) as held:
        disk.rewrite(held, b"new").clear()
        placed = held.placed
    assert placed is not None
    assert placed.data == b""
    with disk.hold(str(path)) as held:
        assert held is placed
        assert held.data == b"new"
    disk.close()
