"""After a crash at any point of what a store does, all that was acknowledged is there, and the rest whole or not at all.

Recorded disks, rebuilt as a crash may leave them. ``THREADLOOM_EVERY_IMAGE=1`` looks at every image of every point,
which takes minutes; otherwise each point is looked at once or twice, and the kinds of crash take turns.
"""

import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.crash_stories import STORIES, Durability, Story, a_thread, shown, without_deltas
from tests.disk_calls import HOUSE, intercept
from tests.recorded_disk import KINDS, RecordedDisk, Tree, after_kill, after_power_cut
from threadloom import FileStore, Message, Run, RunStatus, RunStep, RunWrite
from threadloom.testing._stage import picture

EVERY_IMAGE = bool(os.environ.get("THREADLOOM_EVERY_IMAGE"))
KILLED = "killed"
MOST_FAILURES = 5  # that are told of at once

# What is no sign of damage: the workers of a process that died are missed, and its journals are carried out.
TOLD_OF_ANY_CRASH = {"run reclaimed"}


@pytest.fixture
def base() -> Iterator[Path]:
    """Return a directory in memory: thousands of trees are made in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


class Told(logging.Handler):
    """Collects what is said aloud while stores are looked at."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

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


def power_cuts(story: Story) -> Iterator[Image]:
    acknowledged = set(story.acknowledgements)
    for count in range(len(story.disk.effects) + 1):
        kinds = {KINDS[count % len(KINDS)], *(("nothing",) if count in acknowledged else ())}
        for kind in KINDS if EVERY_IMAGE else sorted(kinds):
            yield Image(count, kind)


def kills(story: Story) -> Iterator[Image]:
    for count in range(len(story.disk.effects) + 1):
        yield Image(count, KILLED)


async def check(story: Story, images: Iterator[Image], base: Path, told: Told, durability: Durability) -> None:
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
            loud = [message for message in told.messages if message.split(":")[0] not in TOLD_OF_ANY_CRASH]
            assert not loud, f"was told: {loud}"
        except Exception as error:  # all are looked at, and what they have in common is the news
            failures.append(f"{image} after {story.disk.effects[image.recorded - 1]}: {type(error).__name__}: {error}")
        shutil.rmtree(directory)
    print(f"{len(looked_at)} images, {len(failures)} failures")
    assert not failures, "\n".join([f"{len(failures)} of {len(looked_at)} images:", *failures[:MOST_FAILURES]])


async def look_at(image: Image, root: Path, allowed: dict, durability: Durability) -> None:
    async with FileStore(root, durability=durability) as store:
        ids = await store.list_thread_ids()
        assert set(ids) <= allowed.keys()
        for thread_id in allowed:
            seen = await shown(store, thread_id)
            may_be = allowed[thread_id]
            if image.kind != KILLED:
                seen, may_be = without_deltas(seen), [without_deltas(picture) for picture in may_be]
            assert seen in may_be, f"{thread_id} is {seen}, and not one of {len(may_be)}: {may_be}"
        await works(store, image.recorded)
        before = await picture(store)
        for thread in before:
            assert not any(page.damaged for page in (thread.messages, thread.runs, *thread.steps)), f"damaged: {thread}"
    left = [path for place in ("tmp", "trash") for path in (root / ".threadloom" / place).iterdir()]
    assert not left, f"left behind: {left}"
    if EVERY_IMAGE or image.recorded % 5 == 0:
        async with FileStore(root, durability=durability) as again:
            assert await picture(again) == before, "closed and opened, it shows something else"


async def works(store: FileStore, seed: int) -> None:
    """Use what is there: a thread that was in the story, and one that is new."""
    new = await store.create_thread(a_thread("new"))
    ids = sorted({*await store.list_thread_ids()} - {new.id})
    for thread_id in [new.id, *([ids[seed % len(ids)]] if ids else [])]:
        await store.append_message(thread_id, Message.user(thread_id, "weiter ☕"))
        for run in await store.list_runs(thread_id):
            if not run.status.is_terminal:
                await store.force_update_run_status(thread_id, run.id, RunStatus.CANCELLED)
        run = await store.create_run(thread_id, Run.new(thread_id, model="any"))
        while (claim := await store.try_claim_run("worker")) is not None:
            reply = Message.assistant(claim.run.thread_id, "ja", run_id=claim.run.id)
            step = RunStep.message_creation(
                thread_id=claim.run.thread_id, run_id=claim.run.id, message_id=reply.id
            )
            await store.write_run(claim.lease, RunWrite(items=(step, reply), status=RunStatus.COMPLETED))
        assert (await store.get_run(thread_id, run.id)).status is RunStatus.COMPLETED


def another_boot(monkeypatch):
    """Let the machine have been started anew."""
    patched = 0
    for name, module in list(sys.modules.items()):
        if name.startswith(HOUSE) and hasattr(module, "_BOOT"):
            monkeypatch.setattr(module, "_BOOT", b"another\n")
            patched += 1
    assert patched


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
