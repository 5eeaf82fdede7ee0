"""Which writes are notified: whole records, and each line of a log. Never a heartbeat or half a record."""

import asyncio
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest

from threadloom.stores.files import inotify, layout
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.inotify import Watcher
from threadloom.stores.files.liveness import Peers, StoreFile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify exists on Linux only")


@pytest.fixture
async def watcher():
    watcher = Watcher()
    watcher.start(lambda: None)
    yield watcher
    watcher.close()


class Names:
    """A callback that collects names."""

    def __init__(self) -> None:
        self.names: list[str | None] = []
        self._called = asyncio.Event()

    def __call__(self, name: str | None) -> None:
        self.names.append(name)
        self._called.set()

    async def until(self, last: str | None) -> list[str | None]:
        """Return the names when ``last`` has come."""
        async with asyncio.timeout(10):
            while last not in self.names:
                self._called.clear()
                await self._called.wait()
        return self.names


async def test_each_write_into_a_log_is_notified_and_other_files_when_they_are_closed(tmp_path, watcher):
    names = Names()
    with watcher.watching(str(tmp_path), names, log="log") as is_watched, (tmp_path / "log").open("a") as log:
        assert is_watched
        with (tmp_path / "record").open("w") as record:
            for file in (log, record, log):
                file.write("x")
                file.flush()
        (tmp_path / "last").touch()
        assert await names.until("last") == ["log", "log", "record", "last"]


async def test_a_file_that_is_renamed_into_the_directory_is_notified_and_a_deletion_only_with_a_log(tmp_path, watcher):
    for directory, log in (("with", "log"), ("without", None)):
        names = Names()
        (tmp_path / directory).mkdir()
        with watcher.watching(str(tmp_path / directory), names, log=log):
            (tmp_path / "aside").touch()
            (tmp_path / "aside").rename(tmp_path / directory / "moved")
            (tmp_path / directory / "moved").unlink()
            (tmp_path / directory / "last").touch()
            seen = await names.until("last")
        assert seen == ["moved", "moved", "last"] if log else ["moved", "last"]


async def test_heartbeats_and_looks_wake_nobody_but_the_end_of_a_store_does(tmp_path, watcher):
    for own in layout.OWN_DIRECTORIES:
        (tmp_path / own).mkdir(parents=True)
    directory = tmp_path / layout.STORES
    disk = await asyncio.to_thread(Disk, str(tmp_path), "ours")
    file = await asyncio.to_thread(StoreFile.create, disk, "ours")
    names = Names()
    with watcher.watching(str(directory), names):
        peers = Peers(str(directory), 30)
        for _ in range(20):
            await asyncio.to_thread(file.beat)
            await asyncio.to_thread(peers.look, 0)
        (directory / "before").touch()
        assert await names.until("before") == ["before"]
        await asyncio.to_thread(file.close)
        assert await names.until("ours") == ["before", "ours"]
    disk.close()


async def test_all_callbacks_of_a_directory_share_a_watch_that_ends_with_the_last(tmp_path, watcher):
    one, two = Names(), Names()
    with watcher.watching(str(tmp_path), one):
        with watcher.watching(str(tmp_path), two):
            (tmp_path / "first").touch()
            assert await one.until("first") == await two.until("first")
        (tmp_path / "second").touch()
        assert await one.until("second") == ["first", "second"]
    assert two.names == ["first"]
    assert not watcher._watches


async def test_the_end_of_a_directory_is_notified_and_it_can_be_watched_again(tmp_path, watcher):
    names = Names()
    directory = tmp_path / "directory"
    directory.mkdir()
    with watcher.watching(str(directory), names):
        shutil.rmtree(directory)
        await names.until(None)
        async with asyncio.timeout(10):
            while watcher._watches:  # noqa: ASYNC110
                await asyncio.sleep(0)
        directory.mkdir()
        with watcher.watching(str(directory), names) as is_watched:
            assert is_watched
            (directory / "again").touch()
            await names.until("again")


async def test_a_missing_directory_is_not_watched_and_nothing_is_logged(tmp_path, watcher, caplog):
    with watcher.watching(str(tmp_path / "missing"), Names()) as is_watched:
        assert not is_watched
    assert not caplog.records


async def test_without_inotify_nothing_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(inotify, "asyncinotify", None)
    watcher = Watcher()
    watcher.start(lambda: None)
    with watcher.watching(str(tmp_path), Names()) as is_watched:
        assert not is_watched
    watcher.close()


async def test_an_overflow_is_reported_as_missed(tmp_path, caplog):
    missed = asyncio.Event()
    watcher = Watcher()
    watcher.start(missed.set)
    with watcher.watching(str(tmp_path), lambda _: None), caplog.at_level(logging.WARNING):
        # More events than the queue holds, of which no two in a row are the same, for these the kernel merges.
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        for number in range(limit + 2):
            os.close(os.open(tmp_path / f"file_{number % 2}", os.O_WRONLY | os.O_CREAT))
        async with asyncio.timeout(60):
            await missed.wait()
    watcher.close()
    assert "The inotify queue overflowed" in caplog.text


async def test_many_events_are_all_notified_a_few_at_a_time(tmp_path, watcher):
    names = Names()
    most_at_once = 0
    with watcher.watching(str(tmp_path), names):
        for number in range(300):
            (tmp_path / f"file_{number}").touch()
        async with asyncio.timeout(10):
            while len(names.names) < 300:
                before = len(names.names)
                await asyncio.sleep(0)
                most_at_once = max(most_at_once, len(names.names) - before)
    assert 0 < most_at_once <= 2 * inotify._MAX_EVENTS, "once for the descriptor, once for what was already read"


@pytest.mark.parametrize("closes_in_callback", [False, True])
async def test_nothing_is_called_after_close(tmp_path, closes_in_callback):
    names = []
    is_called = asyncio.Event()

    def call(name):
        names.append(name)
        if closes_in_callback:
            closing.close()
        is_called.set()

    closing = Watcher()
    closing.start(lambda: None)
    with closing.watching(str(tmp_path), call):
        for number in range(3):
            (tmp_path / f"file_{number}").touch()
        if closes_in_callback:
            async with asyncio.timeout(10):
                await is_called.wait()
        else:
            closing.close()
        for _ in range(3):
            await asyncio.sleep(0)
    assert names == (["file_0"] if closes_in_callback else [])
