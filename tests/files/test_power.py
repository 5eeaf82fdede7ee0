"""After a crash at any point, all that was acknowledged is there, and the rest whole or not at all.

Recorded disks, rebuilt as a crash may leave them. With ``THREADLOOM_EVERY_IMAGE=1`` every image of every point is
looked at, which takes minutes; otherwise some, spread evenly, with all kinds of crash among them.
"""

import asyncio
import hashlib
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import frozen

from tests.files.crash_stories import (
    STORIES,
    Durability,
    Seen,
    Story,
    a_key,
    a_run,
    a_thread,
    difference,
    directory_in_memory,
    finished,
    shown,
    taken,
    without_deltas,
    works,
)
from tests.files.recorded_disk import KINDS, RecordedDisk, Tree, after_kill, after_power_cut
from tests.support.disk_calls import CHANGES, SYNCS, WRITES, intercept
from tests.support.faulty_disk import FaultyDisk, faults_of
from threadloom import FileStore, Message, RunStatus, RunWrite, StoreError, StoreIOError
from threadloom.stores.files import file_backend, stamps
from threadloom.testing._stage import picture

EVERY_IMAGE = bool(os.environ.get("THREADLOOM_EVERY_IMAGE"))
KILLED = "killed"
Allowed = dict[str, list[Seen | None]]
SOME_IMAGES = 60
MOST_FAILURES = 5  # that are reported at once

# What is reported of any crash, and of the limits of a machine on which others work too: no sign of damage.
HARMLESS = ("Reclaimed run ", "inotify is unavailable", "inotify cannot watch ")


@pytest.fixture(autouse=True)
def few_stamps(monkeypatch):
    """Keep the file of stamps small, which is in each image: nothing in it needs to survive."""
    monkeypatch.setattr(stamps, "_SLOTS", 64)
    monkeypatch.setattr(stamps, "_BYTES", 64 * 8)


@pytest.fixture
def base():
    with directory_in_memory() as directory:
        yield directory


class Told(logging.Handler):
    """Collects what is said aloud while stores are looked at."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.harmless = HARMLESS

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.getMessage()}: {record.exc_info[1] if record.exc_info else ''}")


@pytest.fixture
def told():
    handler = Told()
    logging.getLogger("threadloom").addHandler(handler)
    yield handler
    logging.getLogger("threadloom").removeHandler(handler)


async def recorded(base: Path, name: str, durability: Durability) -> Story:
    """Return a story that was told on a recorded disk."""
    disk = RecordedDisk(base)
    story = Story(disk)
    with pytest.MonkeyPatch.context() as patch:
        intercept(patch, disk)
        await STORIES[name](story, lambda: FileStore(base / "store", durability=durability))
    return story


@frozen
class Image:
    """What may be found after the end of the first ``recorded`` effects."""

    recorded: int
    kind: str

    def tree(self, story: Story) -> Tree:
        effects = story.disk.effects[: self.recorded]
        return after_kill(effects) if self.kind == KILLED else after_power_cut(effects, self.kind)


def power_cuts(story: Story) -> list[Image]:
    """Return the images of power cuts; where a write has just returned, always the one in which least is left."""
    points = range(len(story.disk.effects) + 1)
    some = some_of([Image(point, kind) for point in points for kind in KINDS])
    return sorted({*some, *(Image(point, "nothing") for point in story.acknowledgements)}, key=repr)


def kills(story: Story) -> list[Image]:
    return some_of([Image(point, KILLED) for point in range(len(story.disk.effects) + 1)])


def some_of(images: list[Image]) -> list[Image]:
    # An odd step goes through all kinds, which are eight.
    return images if EVERY_IMAGE else images[:: (len(images) // SOME_IMAGES) | 1]


async def check(story: Story, images: list[Image], base: Path, told: Told, durability: Durability) -> None:
    """Look at each image, and fail with those that break a promise."""
    failures: list[str] = []
    looked_at = set()
    for image in images:
        tree = image.tree(story)
        allowed = {thread_id: story.allowed(thread_id, image.recorded) for thread_id in story.versions}
        key = hashlib.sha256(repr((list(tree.contents()), image.kind == KILLED)).encode()).digest(), repr(allowed)
        if key in looked_at:
            continue
        looked_at.add(key)
        directory = base / "image"
        directory.mkdir()
        tree.put_into(directory)
        told.messages.clear()
        try:
            await look_at(image, directory / "store", allowed, durability)
            loud = [message for message in told.messages if not message.startswith(told.harmless)]
            assert not loud, f"was told: {loud}"
        except Exception as error:  # noqa: BLE001 - all are looked at, and what they have in common is the news
            last = story.disk.effects[image.recorded - 1]
            failures.append(f"{image} after {last}: {type(error).__name__}: {str(error)[:1_000]}")
        shutil.rmtree(directory)
    assert not failures, "\n".join([f"{len(failures)} of {len(looked_at)} images:", *failures[:MOST_FAILURES]])


async def look_at(image: Image, root: Path, allowed: Allowed, durability: Durability) -> None:
    async with FileStore(root, durability=durability) as store:
        ids = await store.list_thread_ids()
        assert set(ids) <= allowed.keys()
        for thread_id, may_be in allowed.items():
            seen = await shown(store, thread_id)
            if image.kind != KILLED:
                seen = without_deltas(seen)
            states = may_be if image.kind == KILLED else [without_deltas(state) for state in may_be]
            assert seen in states, "; or ".join(difference(seen, state, thread_id) for state in states)
        await works(store, image.recorded)
        before = await picture(store)
        for thread in before:
            damaged = [*thread.messages.damaged, *thread.runs.damaged]
            damaged += [error for steps in thread.steps for error in steps.damaged]
            assert not damaged, f"damaged: {damaged}"
    left = [path for place in ("tmp", "trash") for path in (root / ".threadloom" / place).iterdir()]
    assert not left, f"left behind: {left}"
    if EVERY_IMAGE or image.recorded % 5 == 0:
        async with FileStore(root, durability=durability) as again:
            assert await picture(again) == before, "closed and opened, it shows something else"


def another_boot(monkeypatch):
    """Let the machine have been restarted."""
    monkeypatch.setattr(file_backend, "boot_id", lambda: "another")


@pytest.mark.parametrize("name", STORIES)
async def test_after_a_power_cut_what_was_acknowledged_is_there_and_the_rest_whole_or_not_at_all(
    name, base, told, monkeypatch
):
    story = await recorded(base, name, "power")
    another_boot(monkeypatch)
    await check(story, power_cuts(story), base, told, "power")


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("name", STORIES)
async def test_after_a_kill_what_was_acknowledged_is_there_and_the_rest_whole_or_not_at_all(
    name, durability, base, told
):
    story = await recorded(base, name, durability)
    await check(story, kills(story), base, told, durability)


async def test_a_sync_that_fails_fails_those_that_waited_for_it_and_its_journal_is_not_trusted_again(
    base, told, monkeypatch
):
    disk = RecordedDisk(base)
    faulty = FaultyDisk(disk)
    story = Story(disk)
    with pytest.MonkeyPatch.context() as patch:
        intercept(patch, faulty)
        async with FileStore(base / "store") as store:
            for thread_id in ("t1", "t2", "t3"):
                await story.tell(store, thread_id, store.create_thread(a_thread(thread_id)))
            before = await picture(store)
            faulty.fail_at(0, "broken", only=SYNCS)
            answers = await asyncio.gather(
                store.append_message("t1", Message.user("t1", "fällt aus")),
                store.create_run("t2", a_run("t2")),
                store.update_thread("t3", metadata={"drink": "none"}),
                return_exceptions=True,
            )
            faulty.mend()
            assert [type(answer) for answer in answers] == [StoreIOError] * 3
            assert await picture(store) == before
            for thread_id in ("t1", "t2", "t3"):
                message = Message.user(thread_id, "geht wieder ☕")
                await story.tell(store, thread_id, store.append_message(thread_id, message))
    another_boot(monkeypatch)
    points = range(story.acknowledgements[-1], len(disk.effects) + 1)
    await check(story, [Image(point, kind) for point in points for kind in KINDS], base, told, "power")


async def test_a_line_that_was_torn_in_the_journal_of_another_store_takes_nothing_with_it(base, told, monkeypatch):
    for fault in ("full", "torn"):
        disk = RecordedDisk(base)
        faulty = FaultyDisk(disk)
        story = Story(disk)
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, faulty)
            async with FileStore(base / "store") as a, FileStore(base / "store") as b:
                for thread_id in ("t1", "t2"):
                    await story.tell(a, thread_id, a.create_thread(a_thread(thread_id)))
                faulty.fail_at(0, fault, only=WRITES)
                with pytest.raises(StoreIOError):
                    await a.delete_thread("t2")
                faulty.mend()
                for store in (a, b):
                    message = Message.user("t1", "steht fest ☕")
                    await story.tell(store, "t1", store.append_message("t1", message))
                end = len(disk.effects)
        with pytest.MonkeyPatch.context() as patch:
            another_boot(patch)
            await check(story, [Image(end, kind) for kind in KINDS], base, told, "power")
        shutil.rmtree(base / "store")


async def test_what_a_full_disk_has_forbidden_does_not_come_back_after_a_power_cut_and_takes_nothing_with_it(
    base, told
):
    for at in range(2, 27, 1 if EVERY_IMAGE else 4):  # what comes after only clears away, and refuses nothing
        disk = RecordedDisk(base)
        faulty = FaultyDisk(disk)
        story = Story(disk)
        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, faulty)
            async with FileStore(base / "store") as store:
                await story.tell(store, "t1", store.create_thread(a_thread("t1")))
                await story.tell(store, "t1", store.create_run("t1", a_run("t1", id="leased")))
                claim = await story.tell(store, "t1", taken(store))
                reply = Message.assistant("t1", "eine Antwort", run_id="leased")
                await story.tell(store, "t1", store.write_run(claim.lease, RunWrite(items=(reply,))))
                await story.tell(store, "t1", store.create_run("t1", a_run("t1", id="second")))
                await story.tell(store, "t2", store.create_thread(a_thread("t2")))
                await story.tell(store, "t2", store.delete_thread("t2"))  # no journal tells of what was there before
                more = [Message.user("t1", "lieber dies")]
                faulty.fail_at(at, "full", only=(CHANGES | {"open"}) - SYNCS)
                with suppress(StoreIOError):  # a fault that only leaves something to clear away is not raised
                    await store.create_run("t1", a_run("t1"), on_busy="rollback", messages=more, key=a_key("one"))
                faulty.mend()
                # What fails behind the commit stands all the same.
                await finished(store)
                stands = (await store.get_run("t1", "leased")).status is RunStatus.CANCELLING
                await story.tell(store, "t1", store.append_message("t1", Message.user("t1", "dann eben nicht")))
                await story.tell(store, "t1", store.update_run("t1", "second", metadata={"drink": "☕"}))
                ends = RunStatus.CANCELLED if stands else RunStatus.COMPLETED
                await story.tell(store, "t1", store.write_run(claim.lease, RunWrite(status=ends)))
                end = len(disk.effects)
        with pytest.MonkeyPatch.context() as patch:
            another_boot(patch)
            await check(story, [Image(end, kind) for kind in KINDS], base, told, "power")
        shutil.rmtree(base / "store")


@pytest.mark.parametrize("kind", [KILLED, "nothing", "everything"])
async def test_a_disk_that_fails_while_a_crash_is_mended_loses_nothing(kind, base, told, monkeypatch):
    story = await recorded(base, "one_store", "power")
    threads = ((version, version.picture and version.picture.thread) for version in story.versions["t1"][5:])
    version = next(version for version, thread in threads if thread and thread.messages[1:])
    image = Image((version.begun + version.acknowledged) // 2, kind)
    tree = image.tree(story)
    allowed = {thread_id: story.allowed(thread_id, image.recorded) for thread_id in story.versions}
    if kind != KILLED:
        another_boot(monkeypatch)
    faulty = FaultyDisk()
    intercept(monkeypatch, faulty)
    root = base / "image" / "store"

    async def opened() -> None:
        async with FileStore(root) as store:
            await picture(store)

    (base / "image").mkdir()
    tree.put_into(base / "image")
    await opened()
    changes = tuple(faulty.changes)
    cases = [(at, fault, lasts) for at, call in enumerate(changes) for fault in faults_of(call) for lasts in (0, 1)]
    for at, fault, lasts in cases if EVERY_IMAGE else cases[::5]:
        shutil.rmtree(base / "image")
        (base / "image").mkdir()
        tree.put_into(base / "image")
        faulty.fail_at(at, fault, lasts=bool(lasts))
        with suppress(StoreError):
            await opened()
        faulty.mend()
        try:
            await look_at(image, root, allowed, "power")
        except AssertionError as error:
            raise AssertionError(f"{image} with change {at} ({changes[at]}) {fault}, lasting: {lasts}") from error
