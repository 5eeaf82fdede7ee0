"""What is kept open, and what is refused in the middle of an act, be it only a look: nothing stays half done."""

import errno
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.files.crash_stories import a_run, a_thread, taken
from tests.support.disk_calls import Call, intercept
from threadloom import FileStore, Message, RunStatus, RunStep, RunWrite, StoreIOError

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
async def test_a_transaction_that_is_refused_any_look_is_made_or_not_and_leaves_nothing_open(
    tmp_path, monkeypatch, status
):
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
                # The next write in the thread finishes what the refusal has cut off.
                await store.force_update_run_status("t", "r", RunStatus.FAILED)
                problems = (await store.check()).problems
                assert {str(problem.kind) for problem in problems} <= {"dead_lease"}, (at, problems)
                assert [step.status == "in_progress" for step in await store.list_steps("t", "r")] == [False]
        assert open_descriptors() == opened, at
        if not refusal.is_done:
            break
        at += 1
    assert failed > 3
