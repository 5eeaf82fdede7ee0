"""A run that others make way for: one act over the records of many, whatever a external writer does, or a kill."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.files.crash_stories import a_run, a_thread, directory_in_memory, taken
from tests.support.disk_calls import Call, intercept
from threadloom import (
    ActiveRunError,
    FileStore,
    IdempotencyKey,
    Message,
    ProblemKind,
    Run,
    RunStatus,
    RunWrite,
    StoreIOError,
    ThreadStore,
)

EVERY_FAULT = bool(os.environ.get("THREADLOOM_EVERY_FAULT"))
KEY = IdempotencyKey("new", "asked for")
BEFORE = {"leased": "in_progress", "second": "queued", "third": "queued"}
STOPPED = {"leased": "cancelling", "second": "cancelled", "third": "cancelled"}


@pytest.fixture
def base():
    with directory_in_memory() as directory:
        yield directory


@define
class Meanwhile:
    """Does something right before a change of the file system with a certain number, and looks before each one."""

    at: int
    do: Callable[[], object]
    look: Callable[[int], object] = lambda _: None
    changes: int | None = field(default=None, init=False)
    is_done: bool = field(default=False, init=False)

    def __call__(self, call: Call) -> Any:
        if self.changes is not None and call.is_change:
            if self.changes == self.at:
                self.do()
                self.is_done = True
            self.look(self.changes)
            self.changes += 1
        return call()


async def set_the_scene(root: Path) -> None:
    async with FileStore(root) as store:
        await store.create_thread(a_thread("t"))
        await store.append_message("t", Message.user("t", "first"))
        await store.create_run("t", a_run("t", id="leased"))
        claim = await taken(store)
        reply = Message.assistant("t", "a reply", run_id="leased")
        await store.write_run(claim.lease, RunWrite(items=(reply,)))
        for run_id in ("second", "third"):
            await store.create_run("t", a_run("t", id=run_id))


async def make_way(store: ThreadStore, on_busy: Any) -> Run:
    more = [Message.user("t", "rather this")]
    return await store.create_run("t", a_run("t", id="new"), on_busy=on_busy, messages=more, key=KEY)


def rewrite(path: Path, **changes: object) -> None:
    foreign = path.with_name("foreign")
    foreign.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    foreign.replace(path)


def statuses(root: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_bytes())["status"] for path in root.glob("t/runs/*/status.json")}


async def texts(store: ThreadStore, **options: Any) -> list[str]:
    return [message.text for message in await store.list_messages("t", **options)]


@pytest.mark.parametrize("on_busy", ["interrupt", "rollback"])
@pytest.mark.parametrize("run_id", ["leased", "third"])
async def test_what_an_external_writer_writes_at_any_moment_stands_and_all_others_are_stopped_once(
    base, on_busy, run_id
):
    await set_the_scene(base / "prepared")
    at = 0
    while True:
        root = base / str(at)
        shutil.copytree(base / "prepared", root)
        status = root / "t" / "runs" / run_id / "status.json"
        meanwhile = Meanwhile(at, partial(rewrite, status, x_foreign=True))
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, meanwhile)
            async with FileStore(root) as store:
                meanwhile.changes = 0
                await make_way(store, on_busy)
                meanwhile.changes = None
                # What it read before our commit and wrote after it is the run's next event: then it is active again.
                found = statuses(root)
                assert found.pop(run_id) in {STOPPED[run_id], BEFORE[run_id]}, at
                stopped = {id_: status for id_, status in STOPPED.items() if id_ != run_id}
                assert found == stopped | {"new": "queued"}, at
                reply = [] if on_busy == "rollback" else ["a reply"]
                assert await texts(store) == ["first", *reply, "rather this"], at
                assert await texts(store, seen_by="new") == ["first", *reply, "rather this"], at
                report = await store.check()
                assert {problem.kind for problem in report.problems} == {ProblemKind.DEAD_LEASE}, at
        if not meanwhile.is_done:
            break
        assert json.loads(status.read_bytes())["x_foreign"] is True, at
        shutil.rmtree(root)
        at += 1
    assert at > 10


@pytest.mark.parametrize("on_busy", ["interrupt", "rollback"])
async def test_after_a_kill_all_runs_are_stopped_or_none_whatever_an_external_writer_wrote_before(base, on_busy):
    await set_the_scene(base / "prepared")
    at, seen = 0, set()
    while True:
        root, images = base / "store", base / "images"
        shutil.copytree(base / "prepared", root)
        third = root / "t" / "runs" / "third" / "status.json"

        def look(number: int, at: int = at, root: Path = root, images: Path = images) -> None:
            if number >= at:
                shutil.copytree(root, images / str(number))

        meanwhile = Meanwhile(at, partial(rewrite, third, x_foreign=True), look)
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, meanwhile)
            async with FileStore(root) as store:
                meanwhile.changes = 0
                await make_way(store, on_busy)
                meanwhile.changes = None
        if not meanwhile.is_done:
            break
        for image in sorted(images.iterdir())[:: 1 if EVERY_FAULT else 5]:
            seen.add(await whole_or_not_at_all(image, on_busy))
        shutil.rmtree(root)
        shutil.rmtree(images)
        at += 1 if EVERY_FAULT else 5
    assert seen == {True, False}


async def whole_or_not_at_all(root: Path, on_busy: str) -> bool:
    """Return whether the act was made, once it is clear that all of it was or nothing."""
    async with FileStore(root) as store:
        # Readers take no lock: what was cut off is finished by the next transaction in the thread.
        await store.update_thread("t", metadata={"any": "transaction"})
        has_foreign = "x_foreign" in json.loads((store.run_dir("t", "third") / "status.json").read_bytes())
        is_made = "new" in {run.id for run in await store.list_runs("t")}
        found = statuses(root)
        third = found.pop("third")
        assert found == (
            {"leased": "cancelling", "second": "cancelled", "new": "queued"}
            if is_made
            else {"leased": "in_progress", "second": "queued"}
        )
        # What the external writer has put in the place of a record counts as written after the act. Where it came
        # between our last look and the exchange, and the kill before the exchange back, it is lost.
        assert (third, has_foreign) in (
            {("cancelled", True), ("queued", True), ("cancelled", False)} if is_made else {("queued", True)}
        )
        has_reply = not (is_made and on_busy == "rollback")
        expected = ["first", *(["a reply"] if has_reply else []), *(["rather this"] if is_made else [])]
        assert await texts(store) == expected
        assert not is_made or list(root.glob("t/keys/*")), "a key that was written first counts once its run is there"
        assert (await make_way(store, on_busy)).id == "new"
        assert await texts(store, seen_by="new") == await texts(store)
        assert (await texts(store)).count("rather this") == 1
    return is_made


def append_externally(root: Path, content: Sequence[object] = ()) -> None:
    message = {"id": "msg_f", "created_at": 1, "thread_id": "t", "role": "user", "content": list(content)}
    with (root / "t" / "messages.jsonl").open("a") as log:
        log.write(json.dumps(message) + "\n")


async def test_what_an_external_writer_appends_at_any_moment_hides_no_message_from_the_new_run(base):
    await set_the_scene(base / "prepared")
    at = 0
    while True:
        root = base / str(at)
        shutil.copytree(base / "prepared", root)

        meanwhile = Meanwhile(at, partial(append_externally, root))
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, meanwhile)
            async with FileStore(root) as store:
                meanwhile.changes = 0
                await make_way(store, "interrupt")
                meanwhile.changes = None
                assert (await texts(store, seen_by="new")).count("rather this") == 1, at
                assert (await texts(store)).count("rather this") == 1, at
        if not meanwhile.is_done:
            break
        assert "msg_f" in (root / "t" / "messages.jsonl").read_text()
        turn = json.loads((root / ".threadloom" / "queue" / "t").read_bytes())
        assert [run_id for _, run_id in turn["active"]] == ["leased", "new"], at
        at += 1


async def test_g8_after_a_power_cut_what_an_external_writer_had_appended_meanwhile_is_there(base):
    await set_the_scene(base / "prepared")
    for at in range(3):
        root, image = base / f"store_{at}", base / f"image_{at}"
        shutil.copytree(base / "prepared", root)

        meanwhile = Meanwhile(at, partial(append_externally, root))
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, meanwhile)
            async with FileStore(root) as store:
                meanwhile.changes = 0
                await make_way(store, "interrupt")
                meanwhile.changes = None
                before = await store.list_messages("t")
                assert "msg_f" in [message.id for message in before]
                shutil.copytree(root, image)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("threadloom.stores.files.file_backend.boot_id", lambda: "another")
            async with FileStore(image) as store:
                assert await store.list_messages("t") == before, at


@pytest.mark.parametrize("is_before", [True, False])
async def test_after_a_kill_a_run_that_is_there_sees_its_messages_whatever_an_external_writer_appended(base, is_before):
    await set_the_scene(base / "prepared")
    content = [{"type": "text", "text": {"value": "a long one " * 100, "annotations": []}}]
    at, seen = 0, set()
    while True:
        root, image = base / f"store_{at}", base / f"image_{at}"
        shutil.copytree(base / "prepared", root)

        def kill(number: int, at: int = at, root: Path = root, image: Path = image) -> None:
            if is_before and number == 2:
                append_externally(root, content)
            if number == at:
                shutil.copytree(root, image)

        meanwhile = Meanwhile(at, lambda: None, kill)
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, meanwhile)
            async with FileStore(root) as store:
                meanwhile.changes = 0
                await make_way(store, "interrupt")
                meanwhile.changes = None
        if not meanwhile.is_done:
            break
        if not is_before:
            append_externally(image, content)
        async with FileStore(image) as store:
            await store.update_thread("t", metadata={"any": "transaction"})  # which finishes what was cut off
            is_made = "new" in {run.id for run in await store.list_runs("t")}
            assert (await texts(store)).count("rather this") == is_made, at
            if is_made:
                assert (await texts(store, seen_by="new")).count("rather this") == 1, at
            seen.add(is_made)
        shutil.rmtree(root)
        at += 1
    assert seen == {True, False}


async def test_a_disk_that_is_full_while_a_run_is_created_beside_an_external_writer_leaves_nothing_of_it(base):
    await set_the_scene(base)
    before = statuses(base)

    def fail(call: Call) -> Any:
        if call.is_change and call.name == "open" and str(call.args[0]).endswith("events.jsonl"):
            raise OSError(28, "No space left on device", str(call.args[0]))
        return meanwhile(call)

    meanwhile = Meanwhile(0, partial(append_externally, base))
    async with FileStore(base) as store:
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, fail)
            meanwhile.changes = 0
            with pytest.raises(StoreIOError):
                await make_way(store, "interrupt")
            assert meanwhile.is_done
        await store.append_message("t", Message.user("t", "next"))
        assert statuses(base) == before
        assert await texts(store) == ["first", "a reply", "", "next"]


async def test_a_run_that_an_external_writer_ends_meanwhile_stays_as_it_ended(base):
    await set_the_scene(base)
    third = base / "t" / "runs" / "third" / "status.json"
    meanwhile = Meanwhile(1, lambda: rewrite(third, status="completed"))
    with pytest.MonkeyPatch.context() as patch:
        intercept(patch, meanwhile)
        async with FileStore(base) as store:
            meanwhile.changes = 0
            await make_way(store, "interrupt")
            assert meanwhile.is_done
            assert statuses(base) == STOPPED | {"third": "completed", "new": "queued"}
            kinds = [event.type async for event in store.events("t", "third")]
            assert kinds[-1] == "thread.run.completed"


async def test_what_a_run_wrote_that_an_external_writer_ends_meanwhile_is_not_taken_back(base):
    await set_the_scene(base)
    runs = base / "t" / "runs"
    rewrite(runs / "second" / "status.json", status="completed")
    meanwhile = Meanwhile(0, lambda: rewrite(runs / "leased" / "status.json", status="completed"))
    with pytest.MonkeyPatch.context() as patch:
        intercept(patch, meanwhile)
        async with FileStore(base) as store:
            meanwhile.changes = 0  # the first is the settlement of the second
            await make_way(store, "rollback")
            assert meanwhile.is_done
            assert statuses(base) == {
                "leased": "completed",
                "second": "completed",
                "third": "cancelled",
                "new": "queued",
            }
            assert await texts(store) == ["first", "a reply", "rather this"]


async def test_of_many_runs_that_are_stopped_none_is_held_open_afterwards(base):
    opened = len(list(Path("/proc/self/fd").iterdir()))
    async with FileStore(base) as store:
        await store.create_thread(a_thread("t"))
        for number in range(5):
            await store.create_run("t", a_run("t", id=f"run_{number}"))
        await make_way(store, "interrupt")
        assert statuses(base) == {f"run_{number}": "cancelled" for number in range(5)} | {"new": "queued"}
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


async def test_a_damaged_run_is_stopped_by_nobody_and_holds_nobody_up(base):
    await set_the_scene(base)
    (base / "t" / "runs" / "second" / "status.json").write_bytes(b"\0")
    async with FileStore(base) as store:
        await make_way(store, "rollback")
        assert [run.id for run in await store.list_runs("t")] == ["leased", "third", "new"]
        assert (await store.get_run("t", "third")).status is RunStatus.CANCELLED
        assert len((await store.list_runs("t")).damaged) == 1


async def test_a_message_is_rejected_while_a_run_is_active_and_nothing_is_written(base):
    await set_the_scene(base)
    async with FileStore(base) as store:
        before = await texts(store)
        with pytest.raises(ActiveRunError, match="leased"):
            await store.append_message("t", Message.user("t", "no"), on_busy="reject", key=KEY)
        assert await texts(store) == before
        assert not list(base.glob("t/keys/*"))


async def test_workers_of_this_and_of_other_stores_hear_that_their_runs_are_to_stop(base):
    async with FileStore(base) as here, FileStore(base) as elsewhere:
        for store in (here, elsewhere):
            thread_id = "here" if store is here else "elsewhere"
            await store.create_thread(a_thread(thread_id))
            await store.create_run(thread_id, a_run(thread_id))
            claim = await taken(store)
            stop = store.wait_for_stop(claim.lease)
            await here.create_run(thread_id, a_run(thread_id), on_busy="interrupt")
            await stop
            assert (await store.check_lease(claim.lease)).status is RunStatus.CANCELLING


async def test_a_disk_that_is_full_stops_no_run_and_makes_none(base):
    await set_the_scene(base)

    def fail() -> None:
        raise OSError(28, "No space left on device", str(base))

    async with FileStore(base):
        pass
    before = statuses(base)
    for at in (1, 4, 9):
        meanwhile = Meanwhile(at, fail)
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, meanwhile)
            async with FileStore(base) as store:
                meanwhile.changes = 0
                with pytest.raises(StoreIOError):
                    await make_way(store, "interrupt")
                meanwhile.changes = None
                assert statuses(base) == before
