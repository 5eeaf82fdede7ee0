"""A store is gone if its process is dead, or if the observer saw its heartbeat stop for as long as a lease."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from threadloom.stores.files import layout, process_lock
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.liveness import Peers, StoreFile, owners_of_temporaries, remove_left_overs

LEASE = 30.0

OTHER_STORE = """
import os, sys
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.liveness import StoreFile

disk = Disk(sys.argv[1], "other")
file = StoreFile.create(disk, "other")
print("ready", flush=True)
for line in sys.stdin:
    match line.strip():
        case "beat":
            file.beat()
        case "close":
            file.close()
        case "lose lock":
            os.close(os.open(f"{sys.argv[1]}/.threadloom/stores/other", os.O_RDONLY))
        case "fork":
            if not os.fork():
                file.close()
                os.execlp("sleep", "sleep", "1000")
    print("done", flush=True)
"""


class OtherStore:
    """A store in another process that does what it is asked."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_STORE, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._answer() == "ready"

    def do(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self._answer() == "done"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with the child that it may have forked
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def root(tmp_path):
    for directory in layout.OWN_DIRECTORIES:
        (tmp_path / directory).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def disk(root):
    disk = Disk(str(root), "ours")
    yield disk
    disk.close()


@pytest.fixture
def other(root):
    other = OtherStore(root)
    yield other
    other.end()


@pytest.fixture
def peers(root):
    return Peers(f"{root}/{layout.STORES}", LEASE)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def path_of(root: Path, store_id: str) -> Path:
    return root / layout.STORES / store_id


# Hung


def test_a_store_whose_counter_stands_still_for_a_lease_is_gone_but_not_dead(peers, other):
    peers.look(0)
    for now in range(5, 30, 5):
        peers.look(now)
        assert not peers.is_gone("other")
    peers.look(30)
    assert peers.is_gone("other")
    assert peers.gone() == {"other"}
    assert not peers.is_dead("other")


def test_time_during_which_the_observer_slept_does_not_count(peers, other):
    peers.look(0)
    peers.look(5)
    peers.look(100_000)
    assert not peers.is_gone("other")
    other.do("beat")
    peers.look(100_005)
    for now in range(100_010, 100_035, 5):
        peers.look(now)
        assert not peers.is_gone("other")
    peers.look(100_035)
    assert peers.is_gone("other")


def test_a_heartbeat_after_the_last_look_counts(peers, other):
    for now in range(0, 65, 5):
        peers.look(now)
    assert peers.is_gone("other")
    other.do("beat")
    assert not peers.is_gone("other")


def test_a_clock_that_stands_still_or_runs_backwards_makes_no_store_hung(peers, other):
    for now in (0, 5, 5, 5, 4, 3, -1_000, -1_000):
        peers.look(now)
        assert not peers.is_gone("other")


def test_a_clock_that_runs_backwards_takes_nothing_back(peers, other):
    for now in (0, 10, 20, -1_000, -990):
        peers.look(now)
    assert peers.is_gone("other")


def test_a_store_of_the_observers_own_process_is_never_hung(peers, disk):
    ours = StoreFile.create(disk, "ours")
    for now in range(0, 65, 5):
        peers.look(now)
    assert not peers.is_gone("ours")
    assert peers.process_ids() == frozenset()
    ours.close()
    assert peers.is_gone("ours")


# Dead


def test_a_store_whose_process_was_killed_is_gone_at_once(peers, other):
    peers.look(0)
    assert peers.process_ids() == {other.process.pid}
    other.kill()
    assert peers.is_gone("other")
    assert peers.gone() == {"other"}


def test_a_store_without_a_file_is_gone(peers):
    assert peers.is_gone("unknown")
    assert peers.is_gone("../stores")
    assert peers.gone() == frozenset()


def test_a_process_is_dead_although_its_forked_child_lives_on(root, peers, other):
    other.do("fork")
    assert path_of(root, "other").exists(), "the child's close is not its parent's"
    assert not peers.is_gone("other")
    other.kill()
    assert peers.is_gone("other")


def test_a_process_that_lost_its_lock_is_found_by_its_identity(root, peers, other):
    other.do("lose lock")
    assert process_lock.examine(str(path_of(root, "other")), 0).holder is None
    assert not peers.is_gone("other")
    peers.look(0)
    assert peers.process_ids() == {other.process.pid}
    other.kill()
    assert peers.is_gone("other")


@pytest.mark.parametrize("field", [0, 1, 2])
def test_an_identity_is_that_of_one_process_only(field, other):
    identity = process_lock._identity(other.process.pid)
    assert process_lock.is_running(identity)
    fields = identity.split()
    fields[field] = str(int(fields[field]) + 1)
    assert not process_lock.is_running(" ".join(fields))
    assert not process_lock.is_running(process_lock.this_process()), "the process itself knows without asking"


def test_examining_a_file_of_this_process_keeps_its_lock(root, disk, peers):
    ours = StoreFile.create(disk, "ours")
    assert process_lock.examine(str(path_of(root, "ours")), 20).head == b"00000000000000000001"
    assert not peers.is_gone("ours")
    ask = "import sys; from threadloom.stores.files.process_lock import examine; print(examine(sys.argv[1], 0).holder)"
    answer = subprocess.run(
        [sys.executable, "-c", ask, str(path_of(root, "ours"))], stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(answer.stdout) == os.getpid()
    ours.close()


# Closing and removing


def test_closing_a_store_removes_its_file_and_reports_it_gone_to_stores_that_saw_it(root, peers, other):
    peers.look(0)
    other.do("close")
    assert not path_of(root, "other").exists()
    assert peers.is_gone("other")
    peers.look(5)
    assert peers.gone() == {"other"}, "it may have left leases"
    peers.remove_dead("other")
    assert peers.gone() == frozenset()


def test_a_store_is_dead_when_closed_even_if_its_file_cannot_be_removed(root, disk, peers, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    ours = StoreFile.create(disk, "ours")
    monkeypatch.setattr(os, "unlink", refuse)
    ours.close()
    ours.close()
    monkeypatch.undo()
    assert path_of(root, "ours").read_bytes() == b"00000000000000000001\n"
    assert peers.gone() == {"ours"}


def test_only_a_dead_store_loses_its_file(root, peers, other):
    for now in range(0, 65, 5):
        peers.look(now)
    assert peers.is_gone("other")
    peers.remove_dead("other")
    assert path_of(root, "other").exists()
    other.kill()
    peers.remove_dead("other")
    assert not path_of(root, "other").exists()
    assert peers.gone() == frozenset()


def test_what_is_no_file_is_no_store(root, peers, tmp_path):
    path_of(root, "directory").mkdir()
    path_of(root, "link").symlink_to(tmp_path)
    os.mkfifo(path_of(root, "fifo"))
    peers.look(0)
    assert peers.gone() == frozenset()
    assert all(peers.is_gone(name) for name in ("directory", "link", "fifo"))


def test_a_store_file_that_was_taken_for_a_left_over_is_created_again(root, disk, monkeypatch):
    lock = process_lock.lock
    names: list[str] = []

    def lock_after_removal(fd):
        if not names:
            names.extend(names_in(root / layout.TMP))
            (root / layout.TMP / names[0]).unlink()
        lock(fd)

    monkeypatch.setattr(process_lock, "lock", lock_after_removal)
    ours = StoreFile.create(disk, "ours")
    assert names == ["ours-0"]
    assert path_of(root, "ours").exists()
    assert not names_in(root / layout.TMP)
    ours.close()


def test_a_store_file_that_cannot_be_created_leaves_nothing(root, disk):
    (root / layout.STORES).rmdir()
    before = names_in(Path("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        StoreFile.create(disk, "ours")
    assert not names_in(root / layout.TMP)
    assert names_in(Path("/proc/self/fd")) == before


# What a dead store leaves


def test_left_overs_of_dead_stores_are_removed_and_links_not_followed(root, disk, peers, other, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    ours = StoreFile.create(disk, "ours")
    for directory in (layout.TMP, layout.TRASH):
        for store_id in ("ours", "other", "dead", "de-ad"):
            (root / directory / f"{store_id}-1").mkdir()
            (root / directory / f"{store_id}-1" / "link").symlink_to(precious)
            (root / directory / f"{store_id}-2").symlink_to(precious)
            (root / directory / f"{store_id}-3").touch()
        (root / directory / "nameless").touch()
    assert owners_of_temporaries(disk).keys() == {"ours", "other", "dead", "de-ad", ""}

    remove_left_overs(disk, peers)

    for directory in (layout.TMP, layout.TRASH):
        left = {f"{store_id}-{number}" for store_id in ("ours", "other") for number in (1, 2, 3)}
        assert set(names_in(root / directory)) == left
    assert names_in(precious) == ["file"]
    other.kill()
    remove_left_overs(disk, peers)
    assert owners_of_temporaries(disk).keys() == {"ours"}
    ours.close()


def test_a_hung_store_keeps_its_temporaries(root, disk, peers, other):
    (root / layout.TMP / "other-1").touch()
    for now in range(0, 65, 5):
        peers.look(now)
    assert peers.is_gone("other")
    remove_left_overs(disk, peers)
    assert (root / layout.TMP / "other-1").exists()


def test_the_file_of_a_store_that_is_just_being_created_is_no_left_over(root, disk, peers, monkeypatch):
    rename = os.rename

    def rename_after_another_cleaned_up(source, target):
        remove_left_overs(disk, peers)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_after_another_cleaned_up)
    ours = StoreFile.create(disk, "ours")
    monkeypatch.undo()
    assert not peers.is_gone("ours")
    ours.close()
