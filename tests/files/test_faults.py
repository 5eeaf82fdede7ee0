"""A disk that fails at any change of any writing method: old state or new state, a clear error, and it works again.

With ``THREADLOOM_EVERY_FAULT=1`` every fault is made at every change, which takes minutes; otherwise some, spread
evenly.
"""

import os
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from tests.files.crash_stories import Durability, Seen, difference, directory_in_memory, finished, shown, works
from tests.files.fault_scenes import METHODS, Method, Scene, set_the_scene
from tests.support.disk_calls import intercept
from tests.support.faulty_disk import Fault, FaultyDisk, faults_of
from threadloom import ConflictError, FileStore, InvalidInputError, NotFoundError, Page, Run, StoreError, StoreIOError
from threadloom.testing import ManualClock
from threadloom.testing._stage import picture

EVERY_FAULT = bool(os.environ.get("THREADLOOM_EVERY_FAULT"))
SOME_FAULTS = 3  # of one method, that come once; and as many that stay
MOST_FAILURES = 5  # that are reported at once


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def base():
    with directory_in_memory() as directory:
        yield directory


@pytest.fixture
def disk(monkeypatch):
    disk = FaultyDisk()
    intercept(monkeypatch, disk)
    return disk


@frozen
class Failing:
    """Which change fails, and how."""

    at: int
    call: str
    fault: Fault
    lasts: bool


@frozen
class Bench:
    """A store in the state that a method starts from, and what is seen before and after the method."""

    base: Path
    durability: Durability
    scene: Scene
    method: Method
    disk: FaultyDisk
    changes: tuple[str, ...]
    old: Seen | None
    after: tuple[Seen | None, ...]

    @property
    def root(self) -> Path:
        return self.base / "store"

    @asynccontextmanager
    async def opened(self, root: Path) -> AsyncIterator[FileStore]:
        async with FileStore(root, durability=self.durability, clock=ManualClock()) as store:
            yield store

    def failings(self) -> list[Failing]:
        numbered = list(enumerate(self.changes))
        once = [Failing(at, call, fault, lasts=False) for at, call in numbered for fault in faults_of(call)]
        faults: tuple[Fault, ...] = ("full", "broken")
        stays = [Failing(at, call, fault, lasts=True) for at, call in numbered for fault in faults]
        return [failing for failings in (once, stays) for failing in some_of(failings)]


def some_of(failings: list[Failing]) -> list[Failing]:
    return failings if EVERY_FAULT else failings[:: (len(failings) // SOME_FAULTS) | 1]


async def bench_for(base: Path, durability: Durability, method: Method, disk: FaultyDisk) -> Bench:
    scene = await set_the_scene(base / "prepared", durability)
    bench = Bench(base, durability, scene, method, disk, (), None, ())
    after: list[Seen | None] = []
    changes: tuple[str, ...] = ()
    for ending in (method.call, *method.also):
        shutil.copytree(base / "prepared", bench.root)
        async with bench.opened(bench.root) as store:
            old = await shown(store, method.thread_id)
            disk.mend()
            await ending(store, scene)
            changes = changes or tuple(disk.changes)
            after.append(await shown(store, method.thread_id))
        shutil.rmtree(bench.root)
    return Bench(base, durability, scene, method, disk, changes, old, tuple(after))


def without_places(seen: Seen | None) -> Seen | None:
    """Return what is the same although a number was given in vain."""

    def without_place(item: Any) -> Any:
        return evolve(item, sequence=None) if isinstance(item, Run) else item

    if seen is None or seen.thread is None:
        return seen
    thread = seen.thread
    events = tuple(tuple(evolve(event, data=without_place(event.data)) for event in events) for events in thread.events)
    return evolve(seen, thread=evolve(thread, runs=Page(map(without_place, thread.runs)), events=events))


def differences(seen: Seen | None, states: Iterable[Seen | None]) -> str:
    return "; or ".join(difference(seen, state) for state in states)


def problems_of(error: BaseException | None) -> Iterator[str]:
    if error is not None and not isinstance(error, StoreError):
        yield f"raised {error!r}"
    if isinstance(error, StoreIOError) and error.where is None:
        yield f"an error that names no path: {error}"


async def problems_with(bench: Bench, failing: Failing) -> list[str]:
    """Return what goes wrong where a change fails in the middle of a method."""
    problems: list[str] = []
    method = bench.method
    states = [bench.old, *bench.after]
    dead = bench.base / "dead"
    shutil.copytree(bench.base / "prepared", bench.root)
    async with bench.opened(bench.root) as store:
        bench.disk.fail_at(failing.at, failing.fault, lasts=failing.lasts)
        error = await error_of(method, store, bench.scene)
        bench.disk.mend()
        problems += problems_of(error)
        copy(bench.root, dead)
        await finished(store)
        seen = await shown(store, method.thread_id)
        if seen not in states:
            problems.append(f"neither old nor new state after {error!r}: {differences(seen, states)}")
        if error is None and seen == bench.old and not method.may_do_nothing:
            problems.append("no error, and nothing done")
        async with bench.opened(dead) as other:
            survived = await shown(other, method.thread_id)
        # While the disk is broken nobody can write down that an act came to nothing: a death may bring it about.
        if survived not in (states if failing.lasts else [seen]):
            problems.append(f"of the dead process there is another state: {differences(survived, [seen])}")
        again = await error_of(method, store, bench.scene)
        if seen == bench.old and again is not None:
            problems.append(f"does not work again: {again!r}")
        now, new = without_places(await shown(store, method.thread_id)), without_places(bench.after[0])
        if seen == bench.old and now != new and not (method.may_do_nothing and now == without_places(bench.old)):
            problems.append(f"called again, it comes to another state: {difference(now, new)}")
        if not isinstance(again, ConflictError | NotFoundError | InvalidInputError | None):
            problems.append(f"called again, it raises {again!r}")
        await works(store, 0)
        before = await picture(store)
    async with bench.opened(bench.root) as reopened:
        if await picture(reopened) != before:
            problems.append("closed and opened, it shows something else")
    left = [path for place in ("tmp", "trash") for path in (bench.root / ".threadloom" / place).iterdir()]
    if left:
        problems.append(f"left behind for ever: {left}")
    shutil.rmtree(bench.root)
    shutil.rmtree(dead)
    return problems


def copy(root: Path, target: Path) -> None:
    """Copy a store that is open, as a death of its process would leave it; its recovery may be at work."""
    while True:
        try:
            shutil.copytree(root, target)
        except shutil.Error:
            shutil.rmtree(target)
        else:
            return


async def error_of(method: Method, store: FileStore, scene: Scene) -> Exception | None:
    try:
        await method.call(store, scene)
    except Exception as error:  # noqa: BLE001 - which kinds there may be is what is asked
        return error
    return None


def report(cases: int, failures: list[str]) -> None:
    assert not failures, "\n".join([f"{len(failures)} of {cases} faults:", *failures[:MOST_FAILURES]])


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("name", METHODS)
async def test_a_change_that_fails_leaves_the_old_state_or_the_new_and_a_store_that_works(name, durability, base, disk):
    bench = await bench_for(base, durability, METHODS[name], disk)
    failings = bench.failings()
    failures = []
    for failing in failings:
        try:
            problems = await problems_with(bench, failing)
        except Exception as error:  # noqa: BLE001 - all are tried, and what they have in common is the news
            problems = [f"the test ended with {error!r}"]
            shutil.rmtree(bench.root, ignore_errors=True)
            shutil.rmtree(base / "dead", ignore_errors=True)
        failures += [f"{failing}: {problem[:1_000]}" for problem in problems]
    report(len(failings), failures)


@pytest.mark.parametrize("durability", ["power", "process"])
async def test_a_store_that_could_not_be_opened_is_opened_once_the_fault_is_gone(durability, base, disk):
    root = base / "store"
    async with FileStore(root, durability=durability):
        changes = tuple(disk.changes)
    shutil.rmtree(root)
    failures = []
    for at, call in enumerate(changes):
        for fault in faults_of(call):
            for lasts in (False, True):
                failing = Failing(at, call, fault, lasts)
                store = FileStore(root, durability=durability)
                disk.fail_at(at, fault, lasts=lasts)
                descriptors = open_descriptors()
                error = await error_of_opening(store)
                disk.mend()
                if open_descriptors() > descriptors:
                    failures.append(f"{failing}: a descriptor is left open")
                failures += [f"{failing}: {problem}" for problem in problems_of(error)]
                async with store:
                    await works(store, 0)
                    before = await picture(store)
                async with FileStore(root, durability=durability) as again:
                    assert await picture(again) == before, failing
                left = list((root / ".threadloom" / "tmp").iterdir())
                failures += [f"{failing}: left behind: {left}"] if left else []
                shutil.rmtree(root)
    report(len(changes), failures)


async def error_of_opening(store: FileStore) -> Exception | None:
    try:
        async with store:
            return None
    except Exception as error:  # noqa: BLE001 - which kinds there may be is what is asked
        return error


@pytest.mark.parametrize("durability", ["power", "process"])
async def test_a_fault_at_closing_loses_nothing(durability, base, disk):
    root = base / "store"

    async def closed_with(failing: Failing | None) -> tuple[str, ...]:
        descriptors = open_descriptors()
        store = await FileStore.open(root, durability=durability)
        await works(store, 0)
        before = await picture(store)
        disk.mend()
        if failing is not None:
            disk.fail_at(failing.at, failing.fault, lasts=failing.lasts)
        try:
            await store.close()
        except StoreError as error:
            failures.extend(problems_of(error))
        changes = tuple(disk.changes)
        disk.mend()
        if open_descriptors() > descriptors:
            failures.append(f"{failing}: a descriptor is left open")
        async with FileStore(root, durability=durability) as again:
            if await picture(again) != before:
                failures.append(f"{failing}: something is lost")
            await works(again, 0, "newer")
        shutil.rmtree(root)
        return changes

    failures: list[str] = []
    changes = await closed_with(None)
    failings = [
        Failing(at, call, fault, lasts)
        for at, call in enumerate(changes)
        for fault in faults_of(call)
        for lasts in (False, True)
    ]
    for failing in failings:
        await closed_with(failing)
    report(len(failings), failures)
